/* Helpers for the tests of backend operations: seeded inputs, device buffers with sentinels behind
 * them, and the numbers of a model file. */
#pragma once
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../../kernels/backend.h"
#include "../check.h"

/* A number in [-1, 1) that depends on its name and index alone, so that the operation and its
 * reference find the same inputs without sharing an array. */
static inline float noise(uint32_t name, size_t index)
{
    uint64_t x = ((uint64_t)name << 40) + index + 1;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return (float)((x ^ x >> 31) >> 40) * 0x1p-23f - 1.0f;
}

static inline uint16_t to_bf16(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

static inline float from_bf16(uint16_t h)
{
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

/* f as the activations' type holds it. */
static inline float as_act(enum act_type act, float f)
{
    return act == ACT_BF16 ? from_bf16(to_bf16(f)) : f;
}

enum { SENTINEL = 192, SENTINEL_BYTE = 0xa5 };

/* Device memory of a run, released together. The bytes behind each buffer must stay as they are. */
struct buffers {
    struct backend *b;
    int n;
    struct {
        char *dev;
        size_t bytes;
    } at[16];
};

static inline void *dev_new(struct buffers *m, const void *host, size_t bytes)
{
    void *dev = NULL;
    unsigned char *image = malloc(bytes + SENTINEL);
    memset(image, SENTINEL_BYTE, bytes + SENTINEL); /* as floats: -2.87e-16, nothing to rely on */
    if (host)
        memcpy(image, host, bytes);
    EXPECT_INT(m->b->ops->alloc(m->b, &dev, bytes + SENTINEL), 0);
    EXPECT_INT(m->b->ops->upload(m->b, dev, image, bytes + SENTINEL), 0);
    free(image);
    m->at[m->n].dev = dev;
    m->at[m->n++].bytes = bytes;
    return dev;
}

static inline void dev_free_all(struct buffers *m)
{
    unsigned char tail[SENTINEL];
    while (m->n > 0) {
        m->n--;
        EXPECT_INT(m->b->ops->download(m->b, tail, m->at[m->n].dev + m->at[m->n].bytes, SENTINEL),
                   0);
        for (int i = 0; i < SENTINEL; i++)
            if (tail[i] != SENTINEL_BYTE) {
                EXPECT(!"the sentinel behind a buffer is intact");
                break;
            }
        m->b->ops->release(m->b, m->at[m->n].dev);
    }
}

/* n activations from floats, or back. */
static inline void *act_from_float(enum act_type act, const float *x, size_t n)
{
    void *a = malloc(n * act_size(act));
    for (size_t i = 0; i < n; i++)
        if (act == ACT_BF16)
            ((uint16_t *)a)[i] = to_bf16(x[i]);
        else
            ((float *)a)[i] = x[i];
    return a;
}

static inline float act_at(enum act_type act, const void *a, size_t i)
{
    return act == ACT_BF16 ? from_bf16(((const uint16_t *)a)[i]) : ((const float *)a)[i];
}
