/* Adam (Kingma and Ba 2015): bound by memory, eight streams of floats. Denormal moments are kept:
 * they cost nothing here. */
#include "cuda.cuh"

struct rates {
    float b1, b2, rest1, rest2; /* rest: 1 - b */
    float rate;                 /* over 1 - b1^step */
    float unbias2;              /* 1 / (1 - b2^step) */
    float eps;
};

static struct rates rates_of(const struct adam_args *a)
{
    const double b1 = (double)a->b1, b2 = (double)a->b2;
    return {
        .b1 = a->b1,
        .b2 = a->b2,
        .rest1 = (float)(1 - b1),
        .rest2 = (float)(1 - b2),
        .rate = (float)((double)a->rate / (1 - pow(b1, a->step))),
        .unbias2 = (float)(1 / (1 - pow(b2, a->step))),
        .eps = a->eps,
    };
}

static __device__ __forceinline__ void advance(const struct rates &r, float &w, float &m, float &v,
                                               float g)
{
    m = r.b1 * m + r.rest1 * g;
    v = r.b2 * v + r.rest2 * (g * g);
    w -= r.rate * m / (sqrtf(v * r.unbias2) + r.eps);
}

/* A thread for four numbers. */
static __global__ void adam_kernel(const struct adam_args a, const struct rates r, size_t n)
{
    const size_t i = 4 * ((size_t)blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= n)
        return;
    float4 w = load_quad(a.w + i, n - i), m = load_quad(a.m + i, n - i);
    float4 v = load_quad(a.v + i, n - i), g = load_quad(a.g + i, n - i);
    advance(r, w.x, m.x, v.x, g.x);
    advance(r, w.y, m.y, v.y, g.y);
    advance(r, w.z, m.z, v.z, g.z);
    advance(r, w.w, m.w, v.w, g.w);
    store_quad(a.w + i, n - i, w);
    store_quad(a.m + i, n - i, m);
    store_quad(a.v + i, n - i, v);
    store_quad(a.g + i, n - i, make_float4(0, 0, 0, 0));
}

int cuda_adam(struct backend *b, const struct adam_args *a, size_t n)
{
    LAUNCH(adam_kernel, (unsigned)((n + 1023) / 1024), 256, 0, cuda(b)->stream)
    (*a, rates_of(a), n);
    return cuda_done(b, OP_ADAM);
}
