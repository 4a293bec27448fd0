/* Inside of the CUDA backend (libclotho-cuda.so): its state, one launcher an operation, and what
 * kernels share. Only the .cu files of this folder include it.
 *
 * X.cu stands beside X.c, which is its specification: same names, same order. A kernel says its
 * mapping to blocks and threads in one line; its launcher picks the grid and launches. The order of
 * every sum is fixed by the shape of a row, never by the number of rows: a row's result does not
 * depend on the batch, bit for bit.
 *
 * The same files are compiled a second time for the CPU, where tests run their blocks thread by
 * thread (tests/emu). Two macros allow for that, LAUNCH and SMEM_DYN, and one habit: all shared
 * memory of a kernel is one SMEM_DYN array, sized by its launcher. */
#pragma once
#include <cuda_runtime.h>
#include <math.h>
#include <stdint.h>

#include "backend.h"

#ifndef LAUNCH
/* LAUNCH(kernel, grid, block, bytes of shared memory, stream)(arguments) */
#define LAUNCH(kernel, grid, block, smem, stream) kernel<<<grid, block, smem, stream>>>
/* type *name: the block's shared memory, aligned to 16 bytes, uninitialised. Once a kernel. */
#define SMEM_DYN(type, name)                                                                       \
    extern __shared__ __align__(16) unsigned char smem_dyn[];                                      \
    type *name = reinterpret_cast<type *>(smem_dyn)
#endif

/* ---- the backend ---- */

struct matmul;  /* matmul.cu: cuBLASLt and the algorithms that were chosen */
struct staging; /* cuda.cu: pinned memory on the way to and from the device */
struct records; /* cuda.cu: recorded steps */
struct timer;   /* cuda.cu: events between the operations */

struct cuda {
    struct backend base; /* first: a struct backend * is a struct cuda * */
    cudaStream_t stream; /* the only one: everything is in order */
    int n_sm;            /* multiprocessors */
    bool fast;           /* a row's products may depend on the number of rows */
    struct matmul *matmul;
    struct staging *staging;
    struct records *records;
    struct timer *timer;
};

static inline struct cuda *cuda(struct backend *b)
{
    return reinterpret_cast<struct cuda *>(b);
}

/* A matrix on the device. */
struct weight {
    enum weight_use use;
    int out, in;
    void *data; /* WEIGHT_LINEAR: act (out, in), row-major */
    struct table_part {
        const void *data; /* dev, as the file has it */
        enum tensor_type type;
        int rows;
        size_t row_bytes;
    } part[4]; /* WEIGHT_TABLE: (n_parts) */
    int n_parts;
    int shape; /* matmul.cu: index of its algorithms */
};

/* A page of one layer is, for each KV head, keys (KV_PAGE, row) and then values (KV_PAGE, row), row
 * elements of act each: head_dim filled up with zeros to a multiple of 16 bytes. */
struct kv_store {
    unsigned char *data; /* dev (n_layers, n_pages, kv_heads, 2, KV_PAGE, row) */
    size_t layer_bytes, page_bytes, head_bytes;
    int n_layers, n_pages, kv_heads, head_dim;
    int row; /* elements of a key or value in memory */
};

/* The end of an operation: 0, or -1 with why set when a launch failed. Counts and times it. */
int cuda_done(struct backend *, enum backend_op);
/* Keep the first failure: returns -1. */
int cuda_fail(struct backend *, const char *what, const char *why);
/* 0, or -1 with why set. */
int cuda_check(struct backend *, const char *what, cudaError_t);

/* Contracts: backend.h. */
int cuda_alloc(struct backend *, void **out, size_t bytes);
void cuda_release(struct backend *, void *dev);
int cuda_upload(struct backend *, void *dev, const void *host, size_t bytes);
int cuda_weight_open(struct backend *, struct weight **out, const struct weight_part *, int n_parts,
                     int in, enum weight_use);
void cuda_weight_close(struct backend *, struct weight *);
int cuda_embed(struct backend *, float *x, const struct weight *table, const int32_t *ids, int n);
int cuda_rmsnorm(struct backend *, void *y, const float *x, const float *w, int n, int dim,
                 float eps);
int cuda_linear(struct backend *, float *y, enum linear_out how, const void *x,
                const struct weight *, int n);
int cuda_rope_store(struct backend *, struct kv_store *, int layer, const struct rope_args *,
                    int n);
int cuda_attend(struct backend *, const struct kv_store *, int layer, const struct attend_args *,
                int n);
int cuda_swiglu(struct backend *, void *y, const float *gu, int n, int ffn);
int cuda_copy_rows(struct backend *, void *dst, const int32_t *dst_row, const void *src,
                   const int32_t *src_row, int n, size_t bytes);
int cuda_kv_copy(struct backend *, struct kv_store *, const int32_t *from, const int32_t *to,
                 int n);
int cuda_propose(struct backend *, const struct propose_args *, int n);
int cuda_top(struct backend *, const struct top_args *, int n);
int cuda_activate(struct backend *, void *y, enum activation, const float *x, int n, int dim);
int cuda_weight_update(struct backend *, struct weight *, const float *w);
int cuda_linear_grad(struct backend *, const struct linear_grad_args *, int n);
int cuda_relu_grad(struct backend *, float *dx, const float *dy, const void *y, int n, int dim);
int cuda_propose_grad(struct backend *, const struct propose_args *, const float *coef, float *dy,
                      int n);
int cuda_adam(struct backend *, const struct adam_args *, size_t n);
int cuda_resample(struct backend *, const struct resample_args *, struct resample_out *out, int n);

/* matmul.cu. 0, or -1 with why set. */
int matmul_open(struct cuda *);
void matmul_close(struct cuda *); /* fine when not open */
/* The index of the shape W (out, in), whose algorithms are chosen when it comes for the first time:
 * with `scratch`, memory of a W, which is overwritten. */
int matmul_shape(struct cuda *, int *out_shape, int in, int out, void *scratch);
int matmul_run(struct cuda *, int shape, float *y, enum linear_out, const void *x, const void *w,
               int n);

/* ---- what kernels share ---- */

static constexpr int WARP = 32;

typedef uint16_t bf16; /* the upper half of a float */

static __device__ __forceinline__ float to_float(float x)
{
    return x;
}

static __device__ __forceinline__ float to_float(bf16 x)
{
    return __uint_as_float((uint32_t)x << 16);
}

/* Round to nearest, ties to even; NaN stays NaN. */
template <class T> static __device__ __forceinline__ T from_float(float x);

template <> __device__ __forceinline__ float from_float<float>(float x)
{
    return x;
}

template <> __device__ __forceinline__ bf16 from_float<bf16>(float x)
{
    const uint32_t u = __float_as_uint(x);
    return (bf16)(x != x ? u >> 16 | 0x40 : (u + 0x7fff + (u >> 16 & 1)) >> 16);
}

/* The elements of a 16-byte load, as float; `widen` makes them of what was loaded, its pointer says
 * of which type. Addresses are multiples of 16. */
template <class T> struct vec;

template <> struct vec<float> {
    enum { N = 4 };
    float v[N];
};

template <> struct vec<bf16> {
    enum { N = 8 };
    float v[N];
};

static __device__ __forceinline__ vec<float> widen(const float *, uint4 u)
{
    return {
        {__uint_as_float(u.x), __uint_as_float(u.y), __uint_as_float(u.z), __uint_as_float(u.w)}};
}

static __device__ __forceinline__ vec<bf16> widen(const bf16 *, uint4 u)
{
    const uint32_t word[4] = {u.x, u.y, u.z, u.w};
    vec<bf16> r;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        r.v[2 * i] = __uint_as_float(word[i] << 16);
        r.v[2 * i + 1] = __uint_as_float(word[i] & 0xffff0000u);
    }
    return r;
}

template <class T> static __device__ __forceinline__ uint4 load_raw(const T *p)
{
    return *reinterpret_cast<const uint4 *>(p);
}

template <class T> static __device__ __forceinline__ vec<T> load_vec(const T *p)
{
    return widen(p, load_raw(p));
}

/* Four floats to four adjacent elements; p is a multiple of their size. */
static __device__ __forceinline__ void store4(float *p, float4 f)
{
    *reinterpret_cast<float4 *>(p) = f;
}

static __device__ __forceinline__ void store4(bf16 *p, float4 f)
{
    const uint32_t low = from_float<bf16>(f.x) | (uint32_t)from_float<bf16>(f.y) << 16;
    const uint32_t high = from_float<bf16>(f.z) | (uint32_t)from_float<bf16>(f.w) << 16;
    *reinterpret_cast<uint2 *>(p) = make_uint2(low, high);
}

/* Up to four adjacent elements of which `n` are there; 0 for the others. At once where all four are
 * there and p is a multiple of their size. */
template <class T> struct alignas(4 * sizeof(T)) quad {
    T v[4];
};

template <class T> static __device__ __forceinline__ float4 load_quad(const T *p, long long n)
{
    quad<T> q = {};
    if (n >= 4 && (uintptr_t)p % sizeof q == 0) {
        q = *reinterpret_cast<const quad<T> *>(p);
    } else {
        for (int i = 0; i < 4; i++)
            if (i < n)
                q.v[i] = p[i];
    }
    return make_float4(to_float(q.v[0]), to_float(q.v[1]), to_float(q.v[2]), to_float(q.v[3]));
}

template <class T> static __device__ __forceinline__ void store_quad(T *p, long long n, float4 f)
{
    const float v[4] = {f.x, f.y, f.z, f.w};
    if (n >= 4 && (uintptr_t)p % (4 * sizeof *p) == 0) {
        store4(p, f);
    } else {
        for (int i = 0; i < 4; i++)
            if (i < n)
                p[i] = from_float<T>(v[i]);
    }
}

/* Sums and maxima over a warp, the same in every lane, in one fixed order. All lanes call. */
template <class T> static __device__ __forceinline__ T warp_sum(T x)
{
#pragma unroll
    for (int m = WARP / 2; m > 0; m /= 2)
        x += __shfl_xor_sync(~0u, x, m);
    return x;
}

template <class T> static __device__ __forceinline__ T warp_max(T x)
{
#pragma unroll
    for (int m = WARP / 2; m > 0; m /= 2) {
        const T other = __shfl_xor_sync(~0u, x, m);
        x = x > other ? x : other;
    }
    return x;
}

/* The sum over a block of whole warps, the same in every thread; scratch: a T for each warp. All
 * threads call; scratch may be used again after it. */
template <class T> static __device__ __forceinline__ T block_sum(T x, T *scratch)
{
    const int warps = blockDim.x / WARP;
    x = warp_sum(x);
    if (threadIdx.x % WARP == 0)
        scratch[threadIdx.x / WARP] = x;
    __syncthreads();
    x = scratch[0];
    for (int i = 1; i < warps; i++)
        x += scratch[i];
    __syncthreads();
    return x;
}

/* Threads of a block that works on a row of n vectors: whole warps, at most `most`. */
static inline int row_threads(int n, int most)
{
    const int threads = (n + WARP - 1) / WARP * WARP;
    return threads < WARP ? WARP : threads < most ? threads : most;
}
