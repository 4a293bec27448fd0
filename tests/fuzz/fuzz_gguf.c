/* Any bytes as a GGUF file: opened or refused; whatever was opened can be read in full. */
#include <stdint.h>
#include <stdlib.h>

#include "../../core/gguf.h"
#include "../../kernels/dequant.h"

static volatile unsigned sink;

/* Read every byte, so that a sanitizer sees it. */
static void touch(const void *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        sink += ((const unsigned char *)p)[i];
}

static void read_scalars(const struct gguf *g, const char *key)
{
    uint32_t u;
    float f;
    bool b;
    struct gguf_str s;
    sink += gguf_u32(g, key, &u);
    sink += gguf_f32(g, key, &f);
    sink += gguf_bool(g, key, &b);
    if (gguf_string(g, key, &s))
        touch(s.s, s.len);
}

static void read_arrays(const struct gguf *g, const char *key)
{
    const struct gguf_str *s;
    const float *f;
    const int32_t *i;
    int64_t n = gguf_array_strings(g, key, &s);
    for (int64_t k = 0; k < n; k++)
        touch(s[k].s, s[k].len);
    if ((n = gguf_array_f32(g, key, &f)) > 0)
        touch(f, 4 * (size_t)n);
    if ((n = gguf_array_i32(g, key, &i)) > 0)
        touch(i, 4 * (size_t)n);
}

static void read_tensors(const struct gguf *g)
{
    for (int i = 0; i < gguf_n_tensors(g); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(g, i);
        size_t n = (size_t)(t->dim[0] * t->dim[1] * t->dim[2] * t->dim[3]);
        float *x = malloc(n * sizeof *x); /* at most about eight times the file */
        dequant(t->type, t->data, x, n);
        free(x);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const keys[] = {"general.alignment", "a", "b", "c", "d", "e", "f"};
    struct gguf *g;
    struct err err;
    char fingerprint[17];
    if (gguf_open_memory(&g, data, size, &err))
        return 0;
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        read_scalars(g, keys[i]);
        read_arrays(g, keys[i]);
    }
    read_tensors(g);
    gguf_fingerprint(g, fingerprint);
    gguf_close(g);
    return 0;
}
