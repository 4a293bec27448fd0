/* The gated activation of the feed-forward layer (Shazeer 2020): silu(gate) * up. */
#include "cuda.cuh"

/* silu(g) u = g u / (1 + e^-g). Where e^-g overflows the result is -0, as it should be. */
static __device__ __forceinline__ float swiglu(float g, float u)
{
    return g * u / (1.0f + expf(-g));
}

/* A thread for four elements of a row, a row of blocks for each row. ffn is a multiple of 4. */
template <class T> static __global__ void swiglu_kernel(T *y, const float *gu, int ffn)
{
    const int j = 4 * (blockIdx.x * blockDim.x + threadIdx.x);
    if (j >= ffn)
        return;
    const float *g = gu + (size_t)blockIdx.y * 2 * (size_t)ffn + j;
    const vec<float> a = load_vec(g), u = load_vec(g + ffn);
    store4(y + (size_t)blockIdx.y * (size_t)ffn + j,
           make_float4(swiglu(a.v[0], u.v[0]), swiglu(a.v[1], u.v[1]), swiglu(a.v[2], u.v[2]),
                       swiglu(a.v[3], u.v[3])));
}

/* The same for any ffn, a thread an element. */
template <class T> static __global__ void swiglu_odd_kernel(T *y, const float *gu, int ffn)
{
    const int j = blockIdx.x * blockDim.x + threadIdx.x;
    if (j >= ffn)
        return;
    const float *g = gu + (size_t)blockIdx.y * 2 * (size_t)ffn + j;
    y[(size_t)blockIdx.y * (size_t)ffn + j] = from_float<T>(swiglu(g[0], g[ffn]));
}

template <class T> static void launch(const struct cuda *c, T *y, const float *gu, int n, int ffn)
{
    const int items = ffn % 4 == 0 ? ffn / 4 : ffn, threads = row_threads(items, 128);
    const dim3 grid((items + threads - 1) / threads, n);
    if (ffn % 4 == 0)
        LAUNCH(swiglu_kernel<T>, grid, threads, 0, c->stream)(y, gu, ffn);
    else
        LAUNCH(swiglu_odd_kernel<T>, grid, threads, 0, c->stream)(y, gu, ffn);
}

int cuda_swiglu(struct backend *b, void *y, const float *gu, int n, int ffn)
{
    if (b->act == ACT_BF16)
        launch(cuda(b), (bf16 *)y, gu, n, ffn);
    else
        launch(cuda(b), (float *)y, gu, n, ffn);
    return cuda_done(b, OP_SWIGLU);
}
