/* Which backend: the CPU is built in; CUDA is a plug-in next to the program or on the library path,
 * so that one binary runs with and without the CUDA libraries. */
#include "backend.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#include "cpu_ops.h"

const char *const backend_op_names[OP_COUNT] = {
    [OP_EMBED] = "embed",
    [OP_RMSNORM] = "rmsnorm",
    [OP_LINEAR] = "linear",
    [OP_ROPE_STORE] = "rope_store",
    [OP_ATTEND] = "attend",
    [OP_SWIGLU] = "swiglu",
    [OP_COPY_ROWS] = "copy_rows",
    [OP_KV_COPY] = "kv_copy",
    [OP_PROPOSE] = "propose",
    [OP_RESAMPLE] = "resample",
    [OP_ACTIVATE] = "activate",
    [OP_WEIGHT_UPDATE] = "weight_update",
    [OP_LINEAR_GRAD] = "linear_grad",
    [OP_RELU_GRAD] = "relu_grad",
    [OP_PROPOSE_GRAD] = "propose_grad",
    [OP_ADAM] = "adam",
};

size_t act_size(enum act_type act)
{
    return act == ACT_BF16 ? 2 : 4;
}

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

int backend_open(struct backend **out, const struct backend_opts *o, char *why, size_t why_size)
{
    if (strcmp(o->kind, "cpu") == 0)
        return cpu_open(out, o, why, why_size);
    if (strcmp(o->kind, "cuda") == 0)
        return cuda_open(out, o, why, why_size);
    if (strcmp(o->kind, "auto") == 0)
        return cuda_open(out, o, why, why_size) == 0 ? 0 : cpu_open(out, o, why, why_size);
    snprintf(why, why_size, "backend \"%s\" is none of auto, cpu, cuda", o->kind);
    return -1;
}

void backend_close(struct backend *b)
{
    if (b)
        b->ops->close(b);
}
