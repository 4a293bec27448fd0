/* What stands between the layers of a twist's head and behind its last, and the way back: element
 * by element, bound by memory. */
#include "cuda.cuh"

/* -log(1 + e^-x) = min(x, 0) - log(1 + e^-|x|): no exponential overflows. */
static __device__ __forceinline__ float log_sigmoid(float x)
{
    return fminf(x, 0) - log1pf(expf(-fabsf(x)));
}

/* A thread for four elements of all rows together; y may be x. */
static __global__ void log_sigmoid_kernel(float *y, const float *x, size_t n)
{
    const size_t i = 4 * ((size_t)blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= n)
        return;
    const float4 f = load_quad(x + i, n - i);
    store_quad(y + i, n - i,
               make_float4(log_sigmoid(f.x), log_sigmoid(f.y), log_sigmoid(f.z), log_sigmoid(f.w)));
}

/* The same mapping. */
template <class T> static __global__ void relu_kernel(T *y, const float *x, size_t n)
{
    const size_t i = 4 * ((size_t)blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= n)
        return;
    const float4 f = load_quad(x + i, n - i);
    store_quad(y + i, n - i,
               make_float4(fmaxf(f.x, 0), fmaxf(f.y, 0), fmaxf(f.z, 0), fmaxf(f.w, 0)));
}

/* The same mapping; dx may be dy. */
template <class T>
static __global__ void relu_grad_kernel(float *dx, const float *dy, const T *y, size_t n)
{
    const size_t i = 4 * ((size_t)blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= n)
        return;
    const float4 f = load_quad(dy + i, n - i), at = load_quad(y + i, n - i);
    store_quad(dx + i, n - i,
               make_float4(at.x > 0 ? f.x : 0, at.y > 0 ? f.y : 0, at.z > 0 ? f.z : 0,
                           at.w > 0 ? f.w : 0));
}

enum { THREADS = 256 };

static unsigned blocks_for(size_t n)
{
    return (unsigned)((n + 4 * THREADS - 1) / (4 * THREADS));
}

int cuda_activate(struct backend *b, void *y, enum activation f, const float *x, int n, int dim)
{
    const size_t count = (size_t)n * (size_t)dim;
    const cudaStream_t stream = cuda(b)->stream;
    if (f == ACTIVATE_LOG_SIGMOID)
        LAUNCH(log_sigmoid_kernel, blocks_for(count), THREADS, 0, stream)((float *)y, x, count);
    else if (b->act == ACT_BF16)
        LAUNCH(relu_kernel<bf16>, blocks_for(count), THREADS, 0, stream)((bf16 *)y, x, count);
    else
        LAUNCH(relu_kernel<float>, blocks_for(count), THREADS, 0, stream)((float *)y, x, count);
    return cuda_done(b, OP_ACTIVATE);
}

int cuda_relu_grad(struct backend *b, float *dx, const float *dy, const void *y, int n, int dim)
{
    const size_t count = (size_t)n * (size_t)dim;
    const cudaStream_t stream = cuda(b)->stream;
    if (b->act == ACT_BF16)
        LAUNCH(relu_grad_kernel<bf16>, blocks_for(count), THREADS, 0, stream)
    (dx, dy, (const bf16 *)y, count);
    else LAUNCH(relu_grad_kernel<float>, blocks_for(count), THREADS, 0,
                stream)(dx, dy, (const float *)y, count);
    return cuda_done(b, OP_RELU_GRAD);
}
