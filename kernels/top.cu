/* The likeliest tokens of rows of logits: k looks at the row, each for the best of those that come
 * after the last one found. A row is in the second-level cache, and k is small. */
#include "cuda.cuh"

#include <limits.h>

enum { THREADS = 256 };

/* Does a come before b? By falling logits, and among equals by ascending ids. */
static __device__ __forceinline__ bool precedes(struct top_token a, struct top_token b)
{
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

static __device__ __forceinline__ struct top_token first_of_warp(struct top_token t)
{
#pragma unroll
    for (int m = WARP / 2; m > 0; m /= 2) {
        const struct top_token other = {__shfl_xor_sync(~0u, t.id, m),
                                        __shfl_xor_sync(~0u, t.logit, m)};
        t = precedes(other, t) ? other : t;
    }
    return t;
}

/* The first of all threads' tokens, the same in each; scratch: one for each warp. */
static __device__ struct top_token first_of_block(struct top_token t, struct top_token *scratch)
{
    t = first_of_warp(t);
    if (threadIdx.x % WARP == 0)
        scratch[threadIdx.x / WARP] = t;
    __syncthreads();
    t = scratch[0];
    for (int i = 1; i < (int)blockDim.x / WARP; i++)
        t = precedes(scratch[i], t) ? scratch[i] : t;
    __syncthreads();
    return t;
}

/* One block a row; threads stride over its tokens. */
static __global__ void top_kernel(const __grid_constant__ struct top_args a)
{
    SMEM_DYN(struct top_token, scratch);
    const float *x = a.logits + (size_t)blockIdx.x * (size_t)a.vocab;
    const int forced = a.draws[a.rows[blockIdx.x].first_draw].forced;
    struct top_token *out = a.out + (size_t)blockIdx.x * (size_t)(1 + a.k);
    struct top_token last = {-1, INFINITY};
    if (threadIdx.x == 0)
        out[0] = {forced, forced < 0 ? -INFINITY : x[forced]};
    for (int i = 1; i <= a.k; i++) {
        struct top_token best = {INT_MAX, -INFINITY};
        for (int v = threadIdx.x; v < a.vocab; v += blockDim.x) {
            const struct top_token t = {v, x[v]};
            best = precedes(last, t) && precedes(t, best) ? t : best;
        }
        last = first_of_block(best, scratch);
        if (threadIdx.x == 0)
            out[i] = {last.id < INT_MAX ? last.id : -1, last.logit};
    }
}

int cuda_top(struct backend *b, const struct top_args *a, int n)
{
    const int threads = row_threads(a->vocab, THREADS);
    LAUNCH(top_kernel, n, threads, sizeof(struct top_token) * (threads / WARP), cuda(b)->stream)
    (*a);
    return cuda_done(b, OP_TOP);
}
