/* CUDA on the CPU, for tests: the runtime and the device functions that the CUDA backend uses, and
 * no more. Kernels run block by block, one fiber a CUDA thread (emu.cpp). */
#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <utility>

#define CUDA_EMULATED 1
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) alignas(n)

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c)
    {
    }
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) uint2 {
    uint32_t x, y;
};
struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};
inline float2 make_float2(float x, float y)
{
    return {x, y};
}
inline float4 make_float4(float x, float y, float z, float w)
{
    return {x, y, z, w};
}
inline uint2 make_uint2(uint32_t x, uint32_t y)
{
    return {x, y};
}
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w)
{
    return {x, y, z, w};
}

/* ---- host ---- */

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorLaunchFailure = 719
};
const char *cudaGetErrorString(cudaError_t);
typedef struct emu_stream *cudaStream_t;
typedef struct emu_event *cudaEvent_t;
typedef struct emu_graph *cudaGraph_t;
typedef struct emu_graph *cudaGraphExec_t;
typedef struct emu_pool *cudaMemPool_t;
struct cudaDeviceProp {
    char name[256];
    int major, minor, multiProcessorCount, l2CacheSize;
    size_t totalGlobalMem, sharedMemPerBlockOptin;
};
enum cudaMemcpyKind {
    cudaMemcpyHostToDevice = 1,
    cudaMemcpyDeviceToHost = 2,
    cudaMemcpyDeviceToDevice = 3
};
enum cudaStreamCaptureMode { cudaStreamCaptureModeRelaxed = 2 };
enum cudaMemPoolAttr { cudaMemPoolAttrReleaseThreshold = 4 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum { cudaStreamNonBlocking = 1 };

cudaError_t cudaGetLastError();
cudaError_t cudaGetDeviceCount(int *);
cudaError_t cudaSetDevice(int);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *, int);
cudaError_t cudaMemGetInfo(size_t *, size_t *);
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *, int);
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void *);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *, unsigned);
cudaError_t cudaStreamDestroy(cudaStream_t);
cudaError_t cudaStreamSynchronize(cudaStream_t);
cudaError_t cudaMallocAsync(void **, size_t, cudaStream_t);
cudaError_t cudaFreeAsync(void *, cudaStream_t);
cudaError_t cudaMallocHost(void **, size_t);
cudaError_t cudaFreeHost(void *);
cudaError_t cudaMemsetAsync(void *, int, size_t, cudaStream_t);
cudaError_t cudaMemcpyAsync(void *, const void *, size_t, cudaMemcpyKind, cudaStream_t);
cudaError_t cudaEventCreate(cudaEvent_t *);
cudaError_t cudaEventDestroy(cudaEvent_t);
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t);
cudaError_t cudaEventElapsedTime(float *, cudaEvent_t, cudaEvent_t);
cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode);
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t *);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *, cudaGraph_t, unsigned long long);
cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t);
cudaError_t cudaGraphDestroy(cudaGraph_t);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t);
template <class F> cudaError_t cudaFuncSetAttribute(F *, cudaFuncAttribute, int)
{
    return cudaSuccess;
}

/* ---- device ---- */

namespace emu
{
struct place {
    uint3 thread, block;
    dim3 block_dim, grid_dim;
};
extern thread_local place at;
extern thread_local unsigned char *shared;

void block_barrier(const char *file, int line);
/* Every lane gives 8 bytes and gets those of lane `from`. */
uint64_t exchange(uint64_t mine, int from, const char *file, int line);
void warp_barrier(const char *file, int line);
int lane();

/* The work of a library on the device, in stream order. */
void queue(cudaStream_t, const char *name, std::function<void()>);
void run(const char *name, dim3 grid, dim3 block, size_t smem, cudaStream_t, std::function<void()>);

template <class T> T shuffle(T x, int from, const char *file, int line)
{
    static_assert(sizeof x <= 8);
    uint64_t bits = 0;
    memcpy(&bits, &x, sizeof x);
    bits = exchange(bits, from, file, line);
    memcpy(&x, &bits, sizeof x);
    return x;
}

template <class... P> struct launcher {
    const char *name;
    void (*kernel)(P...);
    dim3 grid, block;
    size_t smem;
    cudaStream_t stream;
    void operator()(P... p) const
    {
        run(name, grid, block, smem, stream, [k = kernel, p...] { k(p...); });
    }
};
template <class... P>
launcher<P...> launch(const char *name, void (*k)(P...), dim3 g, dim3 b, size_t smem,
                      cudaStream_t s)
{
    return {name, k, g, b, smem, s};
}
} // namespace emu

#define LAUNCH(kernel, grid, block, smem, stream)                                                  \
    emu::launch(#kernel, kernel, grid, block, smem, stream)
#define SMEM_DYN(type, name) type *name = reinterpret_cast<type *>(emu::shared)

#define threadIdx                   (emu::at.thread)
#define blockIdx                    (emu::at.block)
#define blockDim                    (emu::at.block_dim)
#define gridDim                     (emu::at.grid_dim)
#define __syncthreads()             emu::block_barrier(__FILE__, __LINE__)
#define __syncwarp()                emu::warp_barrier(__FILE__, __LINE__)
#define __shfl_sync(mask, x, from)  emu::shuffle(x, from, __FILE__, __LINE__)
#define __shfl_xor_sync(mask, x, m) emu::shuffle(x, emu::lane() ^ (m), __FILE__, __LINE__)
#define __shfl_down_sync(mask, x, d)                                                               \
    emu::shuffle(x, emu::lane() + (d) < 32 ? emu::lane() + (d) : emu::lane(), __FILE__, __LINE__)
#define __shfl_up_sync(mask, x, d)                                                                 \
    emu::shuffle(x, emu::lane() >= (d) ? emu::lane() - (d) : emu::lane(), __FILE__, __LINE__)

inline float __uint_as_float(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}
inline uint32_t __float_as_uint(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}
inline int __float_as_int(float f)
{
    return (int)__float_as_uint(f);
}
inline float __int_as_float(int i)
{
    return __uint_as_float((uint32_t)i);
}
/* Never a part of a fused multiply-add. */
inline float __fmul_rn(float a, float b)
{
    return a * b;
}
inline int __popc(uint32_t x)
{
    return __builtin_popcount(x);
}
inline int __ffs(int x)
{
    return __builtin_ffs(x);
}
/* The ballot of a warp: bit i is lane i's predicate. */
#define __ballot_sync(mask, p) emu::ballot(p, __FILE__, __LINE__)
namespace emu
{
inline uint32_t ballot(bool p, const char *file, int line)
{
    uint32_t bits = 0;
    for (int i = 0; i < 32; i++)
        bits |= (uint32_t)(shuffle((int)p, i, file, line) & 1) << i;
    return bits;
}
} // namespace emu
template <class T> T __ldg(const T *p)
{
    return *p;
}
using std::max;
using std::min;
inline int atomicAdd(int *p, int v)
{
    int old = *p;
    *p += v;
    return old;
}
