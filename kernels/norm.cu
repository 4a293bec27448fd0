/* Root mean square norm (Zhang and Sennrich 2019). */
#include "cuda.cuh"

/* One block a row; threads stride over dim. Four floats a load where rows are aligned to that. */
template <class T>
static __global__ void rmsnorm_kernel(T *y, const float *x, const float *w, int dim, float eps)
{
    SMEM_DYN(float, scratch);
    const size_t at = (size_t)blockIdx.x * (size_t)dim;
    const int whole = dim % 4 == 0 ? dim : 0;
    x += at;
    y += at;
    float sum = 0;
    for (int j = 4 * threadIdx.x; j < whole; j += 4 * blockDim.x) {
        const vec<float> a = load_vec(x + j);
        sum += a.v[0] * a.v[0] + a.v[1] * a.v[1] + (a.v[2] * a.v[2] + a.v[3] * a.v[3]);
    }
    for (int j = whole + threadIdx.x; j < dim; j += blockDim.x)
        sum += x[j] * x[j];
    const float scale = 1.0f / sqrtf(block_sum(sum, scratch) / (float)dim + eps);
    for (int j = 4 * threadIdx.x; j < whole; j += 4 * blockDim.x) {
        const vec<float> a = load_vec(x + j), g = load_vec(w + j);
        store4(y + j, make_float4(a.v[0] * scale * g.v[0], a.v[1] * scale * g.v[1],
                                  a.v[2] * scale * g.v[2], a.v[3] * scale * g.v[3]));
    }
    for (int j = whole + threadIdx.x; j < dim; j += blockDim.x)
        y[j] = from_float<T>(x[j] * scale * w[j]);
}

int cuda_rmsnorm(struct backend *b, void *y, const float *x, const float *w, int n, int dim,
                 float eps)
{
    const int threads = row_threads((dim + 3) / 4, 256);
    const size_t smem = sizeof(float) * (size_t)(threads / WARP);
    if (b->act == ACT_BF16)
        LAUNCH(rmsnorm_kernel<bf16>, n, threads, smem, cuda(b)->stream)((bf16 *)y, x, w, dim, eps);
    else
        LAUNCH(rmsnorm_kernel<float>, n, threads, smem, cuda(b)->stream)
    ((float *)y, x, w, dim, eps);
    return cuda_done(b, OP_RMSNORM);
}
