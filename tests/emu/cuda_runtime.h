/* CUDA on the CPU, for tests: the same .cu files, compiled as C++ against this header, which stands
 * in for CUDA's, give a plug-in that runs anywhere and is stricter than a device.
 *
 * What is emulated: launches, with the limits of a device; blocks of threads, barriers, shuffles
 * and votes (block.cpp), each thread on a stack of its own (fiber.cpp); shared memory, filled with
 * NaN before each block; one stream or several, whose work waits until somebody waits for it;
 * copies, events, captured graphs (runtime.cpp); device memory that host code cannot touch, filled
 * with NaN, with red zones (memory.cpp); matrix products (cublaslt.cpp).
 *
 * What is not: static __shared__ arrays and textures; textual PTX, tensor cores, cp.async,
 * cooperative groups and clusters; blocks that wait for each other - they run one after the other;
 * memory shared by several devices, and time: events tell that of the CPU.
 *
 * What it finds ends the process with one line on stderr:
 *   - a write behind an array of device or shared memory; under AddressSanitizer each access
 *   - a read of device or shared memory that nobody has written: it is NaN
 *   - threads of a block at different barriers, lanes of a warp at different operations, or ended
 *     where others wait; a lane that reads one that takes no part
 *   - a missing barrier, before or after: each warp runs as far as it can before another one does,
 *     and so does each lane between the operations of its warp, in an order that
 *     CLOTHO_EMU_SCHEDULE picks: 0 ascending, 1 descending, more: shuffled, blocks as well
 *   - host code that touches device memory: the addresses that the host knows are of memory that
 *     nobody can touch; kernels get others, in their arguments and in what is copied to the device
 *   - kernels that are given host memory as an argument of its own, or memory that was freed; a
 * copy whose pinned memory changes before it runs; memory never freed
 *   - launches that a device would refuse
 * CLOTHO_EMU_MEMORY is the size of the device in bytes; with CLOTHO_EMU_FAIL_AFTER=n the n-th
 * kernel fails, and everything after it, as with a device that is gone.
 *
 * To add a function: declare it here with CUDA's name and types. What a kernel calls is mostly one
 * inline line. What threads do together calls emu::meet, with the place of the call as defaults of
 * its last arguments. What the host calls begins in runtime.cpp like its neighbours: the lock, a
 * check that fails like a device, and enqueue() for everything that touches device memory. */
#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>
#include <utility>

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
    cudaErrorInvalidDevice = 101,
    cudaErrorInvalidResourceHandle = 400,
    cudaErrorNotReady = 600,
    cudaErrorLaunchFailure = 719,
    cudaErrorStreamCaptureUnsupported = 900
};
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

const char *cudaGetErrorString(cudaError_t);
cudaError_t cudaGetLastError();
cudaError_t cudaGetDeviceCount(int *);
cudaError_t cudaSetDevice(int);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *, int);
cudaError_t cudaMemGetInfo(size_t *available, size_t *total);
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
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t, cudaEvent_t);
cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode);
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t *);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *, cudaGraph_t, unsigned long long);
cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t);
cudaError_t cudaGraphDestroy(cudaGraph_t);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t);

namespace emu
{
struct launch_shape {
    const char *name;
    const void *kernel;
    dim3 grid, block;
    size_t smem;
};

/* The calling host thread's work for the device, in stream order. */
void launch_kernel(const launch_shape &, cudaStream_t, std::function<void()> body);
void launch_library(const char *name, cudaStream_t, std::function<void()> work);
/* The host knows device memory by addresses that nobody can touch: these are what kernels get. Ends
 * the process unless p is null, or device or pinned memory with `bytes` behind it. */
void *device_pointer(const char *kernel, const void *p, size_t bytes);
/* The same for the pointers in a struct that is an argument, unchecked. */
void translate_argument(void *object, size_t bytes);
cudaError_t set_shared_limit(const void *kernel, int bytes);

template <class T> T translate(const char *kernel, T x)
{
    static_assert(std::is_trivially_copyable_v<T>, "an argument that a device could not be given");
    if constexpr (std::is_pointer_v<T>)
        x = (T)device_pointer(kernel, (const void *)x, 0);
    else if constexpr (std::is_class_v<T>)
        translate_argument(&x, sizeof x);
    return x;
}

template <class... P> struct launcher {
    launch_shape shape;
    void (*kernel)(P...);
    cudaStream_t stream;
    void operator()(P... p) const
    {
        launch_kernel(shape, stream, [k = kernel, ... p = translate(shape.name, p)] { k(p...); });
    }
};

template <class... P>
launcher<P...> launch(const char *name, void (*k)(P...), dim3 grid, dim3 block, size_t smem,
                      cudaStream_t s)
{
    return {{name, reinterpret_cast<const void *>(k), grid, block, smem}, k, s};
}
} // namespace emu

template <class F> cudaError_t cudaFuncSetAttribute(F *kernel, cudaFuncAttribute, int bytes)
{
    return emu::set_shared_limit(reinterpret_cast<const void *>(kernel), bytes);
}

#define LAUNCH(kernel, grid, block, smem, stream)                                                  \
    emu::launch(#kernel, kernel, grid, block, smem, stream)
#define SMEM_DYN(type, name) type *name = reinterpret_cast<type *>(emu::shared_memory)

/* ---- what threads do together ---- */

extern uint3 threadIdx, blockIdx; /* of the thread that runs */
extern dim3 blockDim, gridDim;

namespace emu
{
extern unsigned char *shared_memory; /* of the block that runs */
extern int current_lane;             /* of the thread that runs, in its warp */

enum meeting { BLOCK_BARRIER, WARP_BARRIER, SHUFFLE, BALLOT };

/* The running thread waits until all of its block, or the lanes of `mask`, have come to the same
 * line. SHUFFLE: each gives 8 bytes and gets those of lane `from`. BALLOT: the lanes that gave
 * something but 0, as bits. */
uint64_t meet(meeting, unsigned mask, uint64_t give, int from, const char *file, int line);

inline int lane()
{
    return current_lane;
}

template <class T> T shuffle(unsigned mask, T x, int from, bool inside, const char *file, int line)
{
    static_assert(sizeof x <= 8 && std::is_trivially_copyable_v<T>);
    uint64_t bits = 0;
    memcpy(&bits, &x, sizeof x);
    bits = meet(SHUFFLE, mask, bits, inside ? from : lane(), file, line);
    memcpy(&x, &bits, sizeof x);
    return x;
}
} // namespace emu

inline void __syncthreads(const char *file = __builtin_FILE(), int line = __builtin_LINE())
{
    emu::meet(emu::BLOCK_BARRIER, ~0u, 0, 0, file, line);
}

inline void __syncwarp(unsigned mask = ~0u, const char *file = __builtin_FILE(),
                       int line = __builtin_LINE())
{
    emu::meet(emu::WARP_BARRIER, mask, 0, 0, file, line);
}

inline uint32_t __ballot_sync(unsigned mask, bool p, const char *file = __builtin_FILE(),
                              int line = __builtin_LINE())
{
    return (uint32_t)emu::meet(emu::BALLOT, mask, p, 0, file, line);
}

/* width: a power of two; shuffles stay inside of segments of that many lanes. */
template <class T>
T __shfl_sync(unsigned mask, T x, int from, int width = 32, const char *file = __builtin_FILE(),
              int line = __builtin_LINE())
{
    const int first = emu::lane() & -width;
    return emu::shuffle(mask, x, first + (from & (width - 1)), true, file, line);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T x, int m, int width = 32, const char *file = __builtin_FILE(),
                  int line = __builtin_LINE())
{
    const int from = emu::lane() ^ m;
    return emu::shuffle(mask, x, from, from < (emu::lane() & -width) + width, file, line);
}

template <class T>
T __shfl_down_sync(unsigned mask, T x, unsigned d, int width = 32,
                   const char *file = __builtin_FILE(), int line = __builtin_LINE())
{
    const int from = emu::lane() + (int)d;
    return emu::shuffle(mask, x, from, from < (emu::lane() & -width) + width, file, line);
}

template <class T>
T __shfl_up_sync(unsigned mask, T x, unsigned d, int width = 32,
                 const char *file = __builtin_FILE(), int line = __builtin_LINE())
{
    const int from = emu::lane() - (int)d;
    return emu::shuffle(mask, x, from, from >= (emu::lane() & -width), file, line);
}

/* ---- what a thread does alone ---- */

using std::max;
using std::min;

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
template <class T> T __ldg(const T *p)
{
    return *p;
}
/* One thread runs at a time: this is atomic. */
inline int atomicAdd(int *p, int v)
{
    const int old = *p;
    *p += v;
    return old;
}
