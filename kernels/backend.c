/* Which backend: the CPU is built in; CUDA is a plug-in next to the program or on the library path,
 * so that one binary runs with and without the CUDA libraries. */
#include "backend.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#include "cpu_ops.h"

/* The plug-in's entry point has the contract of backend_open. It stays loaded until the process
 * ends.
 */
typedef int plugin_open(struct backend **out, const struct backend_opts *, char *why,
                        size_t why_size);

static int cuda_open(struct backend **out, const struct backend_opts *o, char *why, size_t why_size)
{
    plugin_open *open;
    void *lib = dlopen("libclotho-cuda.so", RTLD_NOW | RTLD_LOCAL);
    if (!lib) {
        snprintf(why, why_size, "no CUDA backend: %s", dlerror());
        return -1;
    }
    *(void **)&open = dlsym(lib, "clotho_cuda_open");
    if (open)
        return open(out, o, why, why_size);
    snprintf(why, why_size, "libclotho-cuda.so is not a backend of this program");
    dlclose(lib);
    return -1;
}

/* The plug-in is large: without a driver it is not even looked for. */
static bool has_driver(char *why, size_t why_size)
{
    void *driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
    if (!driver)
        snprintf(why, why_size, "no NVIDIA driver (libcuda.so.1)");
    else
        dlclose(driver);
    return driver;
}

static int auto_open(struct backend **out, const struct backend_opts *o, char *why, size_t why_size)
{
    char reason[sizeof((struct backend *)0)->fallback];
    if (has_driver(reason, sizeof reason) && cuda_open(out, o, reason, sizeof reason) == 0)
        return 0;
    if (cpu_open(out, o, why, why_size))
        return -1;
    memcpy((*out)->fallback, reason, sizeof reason);
    return 0;
}

int backend_open(struct backend **out, const struct backend_opts *o, char *why, size_t why_size)
{
    if (strcmp(o->kind, "cpu") == 0)
        return cpu_open(out, o, why, why_size);
    if (strcmp(o->kind, "cuda") == 0)
        return cuda_open(out, o, why, why_size);
    if (strcmp(o->kind, "auto") == 0)
        return auto_open(out, o, why, why_size);
    snprintf(why, why_size, "backend \"%s\" is none of auto, cpu, cuda", o->kind);
    return -1;
}

void backend_close(struct backend *b)
{
    if (b)
        b->ops->close(b);
}
