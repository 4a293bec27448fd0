/* The emulated device finds what it is there for. Each case runs a program with a bug and its
 * correct twin, every one in a process of its own and under several schedules: the twin always
 * gives the right result, the bug always ends the process with its message, or, where it is a race,
 * gives a wrong result under some schedule. */
#include <cublasLt.h>

#include <csignal>
#include <cstdlib>
#include <string>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

#include "../check.h"

/* ---- programs on the device ---- */

enum { N = 128 };

/* A stream, and arrays of N floats: x[i] = i, y to be written. */
struct fixture {
    cudaStream_t stream;
    float *x, *y;
    std::vector<float> got;

    fixture() : got(N)
    {
        cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
        cudaMallocAsync((void **)&x, sizeof(float) * N, stream);
        cudaMallocAsync((void **)&y, sizeof(float) * N, stream);
        for (int i = 0; i < N; i++)
            got[(size_t)i] = (float)i;
        cudaMemcpyAsync(x, got.data(), sizeof(float) * N, cudaMemcpyHostToDevice, stream);
    }
    ~fixture()
    {
        cudaFreeAsync(x, stream);
        cudaFreeAsync(y, stream);
        cudaStreamDestroy(stream);
    }
    const std::vector<float> &read()
    {
        cudaMemcpyAsync(got.data(), y, sizeof(float) * N, cudaMemcpyDeviceToHost, stream);
        cudaStreamSynchronize(stream);
        return got;
    }
    /* y[i] = want(i) */
    template <class F> bool gives(F want)
    {
        read();
        for (int i = 0; i < N; i++)
            if (got[(size_t)i] != want(i))
                return false;
        return true;
    }
};

/* Kernels: one block of N threads; `bug` leaves something out. */

static __global__ void reverse_kernel(float *y, const float *x, bool bug)
{
    SMEM_DYN(float, s);
    const int i = threadIdx.x;
    s[i] = x[i];
    if (!bug)
        __syncthreads();
    y[i] = s[N - 1 - i];
}

static bool barrier_before(bool bug)
{
    fixture f;
    LAUNCH(reverse_kernel, 1, N, sizeof(float) * N, f.stream)(f.y, f.x, bug);
    return f.gives([](int i) { return (float)(N - 1 - i); });
}

/* Three rounds through the same shared memory. */
static __global__ void rounds_kernel(float *y, const float *x, bool bug)
{
    SMEM_DYN(float, s);
    const int i = threadIdx.x;
    float sum = 0;
    for (int round = 0; round < 3; round++) {
        s[i] = x[i] + (float)(N * round);
        __syncthreads();
        sum += s[N - 1 - i];
        if (!bug)
            __syncthreads();
    }
    y[i] = sum;
}

static bool barrier_after(bool bug)
{
    fixture f;
    LAUNCH(rounds_kernel, 1, N, sizeof(float) * N, f.stream)(f.y, f.x, bug);
    return f.gives([](int i) { return (float)(3 * (N - 1 - i) + 3 * N); });
}

static __global__ void in_warp_kernel(float *y, const float *x, bool bug)
{
    SMEM_DYN(float, s);
    const int i = threadIdx.x;
    s[i] = x[i];
    if (!bug)
        __syncwarp();
    y[i] = s[i ^ 5];
}

static bool warp_barrier(bool bug)
{
    fixture f;
    LAUNCH(in_warp_kernel, 1, N, sizeof(float) * N, f.stream)(f.y, f.x, bug);
    return f.gives([](int i) { return (float)(i ^ 5); });
}

/* Which block is the last one is nobody's business. */
static __global__ void blocks_kernel(float *y, bool bug)
{
    y[bug ? threadIdx.x : blockIdx.x * blockDim.x + threadIdx.x] = (float)blockIdx.x;
}

static bool race_of_blocks(bool bug)
{
    fixture f;
    if (bug)
        LAUNCH(blocks_kernel, 2, N, 0, f.stream)(f.y, true);
    else
        LAUNCH(blocks_kernel, 4, N / 4, 0, f.stream)(f.y, false);
    return f.gives([bug](int i) { return bug ? 1.0f : (float)(i / (N / 4)); });
}

/* Writes `count` elements. */
static __global__ void fill_kernel(float *y, int count)
{
    for (int i = threadIdx.x; i < count; i += blockDim.x)
        y[i] = 1;
}

static bool out_of_bounds(bool bug)
{
    fixture f;
    LAUNCH(fill_kernel, 1, 32, 0, f.stream)(f.y, bug ? N + 1 : N);
    return f.gives([](int) { return 1.0f; });
}

static __global__ void shared_bounds_kernel(float *y, int count)
{
    SMEM_DYN(float, s);
    for (int i = threadIdx.x; i < count; i += blockDim.x)
        s[i] = 1;
    __syncthreads();
    y[threadIdx.x] = s[threadIdx.x];
}

static bool shared_out_of_bounds(bool bug)
{
    fixture f;
    LAUNCH(shared_bounds_kernel, 1, N, sizeof(float) * N, f.stream)(f.y, bug ? N + 1 : N);
    return f.gives([](int) { return 1.0f; });
}

/* Both blocks want the second one's shared memory to begin at 0. */
static __global__ void uninitialised_kernel(float *y, bool bug)
{
    SMEM_DYN(float, s);
    if (!bug || blockIdx.x == 0)
        s[threadIdx.x] = 0;
    __syncthreads();
    y[blockIdx.x * blockDim.x + threadIdx.x] = s[threadIdx.x];
}

static bool uninitialised_shared(bool bug)
{
    fixture f;
    LAUNCH(uninitialised_kernel, 2, N / 2, sizeof(float) * N, f.stream)(f.y, bug);
    return f.gives([](int) { return 0.0f; });
}

static bool uninitialised_device(bool bug)
{
    fixture f;
    if (!bug)
        cudaMemsetAsync(f.y, 0, sizeof(float) * N, f.stream);
    return f.gives([](int) { return 0.0f; });
}

static __global__ void divergent_kernel(float *y, bool bug)
{
    if (bug && threadIdx.x < 32)
        __syncthreads();
    else
        __syncthreads();
    y[threadIdx.x] = 1;
}

static bool divergent_barrier(bool bug)
{
    fixture f;
    LAUNCH(divergent_kernel, 1, N, 0, f.stream)(f.y, bug);
    return f.gives([](int) { return 1.0f; });
}

static __global__ void early_exit_kernel(float *y, int n, bool bug)
{
    const int i = threadIdx.x;
    if (bug && i >= n)
        return;
    __syncthreads();
    if (i < n)
        y[i] = 1;
}

static bool early_exit(bool bug)
{
    fixture f;
    cudaMemsetAsync(f.y, 0, sizeof(float) * N, f.stream);
    LAUNCH(early_exit_kernel, 1, N, 0, f.stream)(f.y, 70, bug);
    return f.gives([](int i) { return i < 70 ? 1.0f : 0.0f; });
}

static __global__ void divided_kernel(float *y, bool bug)
{
    const int i = threadIdx.x;
    float v = (float)i;
    if (bug && i % 32 < 16)
        __syncwarp();
    else
        v = __shfl_xor_sync(~0u, v, 1);
    y[i] = v;
}

static bool divided_warp(bool bug)
{
    fixture f;
    LAUNCH(divided_kernel, 1, N, 0, f.stream)(f.y, bug);
    return f.gives([](int i) { return (float)(i ^ 1); });
}

/* Half a warp, whose last lane must not read the other half. */
static __global__ void mask_kernel(float *y, bool bug)
{
    const int i = threadIdx.x, l = i % 32;
    float v = (float)i;
    if (l < 16)
        v = __shfl_sync(0xffffu, v, bug ? l + 1 : (l + 1) % 16);
    y[i] = v;
}

static bool lane_outside_mask(bool bug)
{
    fixture f;
    LAUNCH(mask_kernel, 1, N, 0, f.stream)(f.y, bug);
    return f.gives(
        [](int i) { return (float)(i % 32 < 16 ? i / 32 * 32 + (i % 32 + 1) % 16 : i); });
}

static bool half_a_warp(bool bug)
{
    fixture f;
    cudaMemsetAsync(f.y, 0, sizeof(float) * N, f.stream);
    LAUNCH(divided_kernel, 1, bug ? 16 : 32, 0, f.stream)(f.y, false);
    return f.gives([](int i) { return i < 32 ? (float)(i ^ 1) : 0.0f; });
}

/* ---- programs of the host ---- */

static bool host_reads(bool bug)
{
    fixture f;
    volatile const float *p = bug ? f.x : f.got.data();
    return p[3] == 3;
}

static bool host_writes(bool bug)
{
    fixture f;
    cudaStreamSynchronize(f.stream);
    volatile float *p = bug ? f.y : f.got.data();
    p[3] = 3;
    return true;
}

/* The pinned buffer belongs to the copy until the stream is through. */
static bool buffer_reused(bool bug)
{
    fixture f;
    float *pinned;
    cudaMallocHost((void **)&pinned, sizeof(float) * N);
    std::fill(pinned, pinned + N, 1.0f);
    cudaMemcpyAsync(f.y, pinned, sizeof(float) * N, cudaMemcpyHostToDevice, f.stream);
    if (!bug)
        cudaStreamSynchronize(f.stream);
    std::fill(pinned, pinned + N, 2.0f);
    const bool right = f.gives([](int) { return 1.0f; });
    cudaFreeHost(pinned);
    return right;
}

/* A result is there when the stream is through. */
static bool read_too_early(bool bug)
{
    fixture f;
    float *pinned;
    cudaMallocHost((void **)&pinned, sizeof(float) * N);
    std::fill(pinned, pinned + N, 0.0f);
    LAUNCH(fill_kernel, 1, N, 0, f.stream)(f.y, (int)N);
    cudaMemcpyAsync(pinned, f.y, sizeof(float) * N, cudaMemcpyDeviceToHost, f.stream);
    if (!bug)
        cudaStreamSynchronize(f.stream);
    const bool right = pinned[0] == 1;
    cudaFreeHost(pinned);
    return right;
}

static bool host_pointer(bool bug)
{
    fixture f;
    LAUNCH(fill_kernel, 1, N, 0, f.stream)(bug ? f.got.data() : f.y, (int)N);
    return f.gives([](int) { return 1.0f; });
}

/* Numbers that look like halves of pointers beside a pointer. */
struct arguments {
    float *y;
    int count;
    uint32_t other;
};

static __global__ void struct_kernel(arguments a)
{
    if ((int)threadIdx.x < a.count)
        a.y[threadIdx.x] = (float)a.other;
}

static bool freed_in_struct(bool bug)
{
    fixture f;
    float *p;
    cudaMallocAsync((void **)&p, sizeof(float) * N, f.stream);
    if (bug)
        cudaFreeAsync(p, f.stream);
    LAUNCH(struct_kernel, 1, N, 0, f.stream)({bug ? p : f.y, N, (uint32_t)((uintptr_t)f.y >> 32)});
    if (!bug)
        cudaFreeAsync(p, f.stream);
    return f.gives([&f](int) { return (float)(uint32_t)((uintptr_t)f.y >> 32); });
}

static bool used_after_free(bool bug)
{
    fixture f;
    float *p = nullptr, *q = nullptr;
    cudaMallocAsync((void **)&p, sizeof(float) * N, f.stream);
    if (bug)
        cudaFreeAsync(p, f.stream);
    LAUNCH(fill_kernel, 1, N, 0, f.stream)(p, (int)N);
    if (!bug)
        cudaFreeAsync(p, f.stream);
    cudaStreamSynchronize(f.stream);
    cudaMallocAsync((void **)&q, sizeof(float) * N, f.stream);
    cudaFreeAsync(q, f.stream);
    cudaStreamSynchronize(f.stream);
    return true;
}

static bool leak(bool bug)
{
    fixture f;
    void *p;
    cudaMallocAsync(&p, 1000, f.stream);
    if (!bug)
        cudaFreeAsync(p, f.stream);
    return true;
}

static bool too_many_threads(bool bug)
{
    fixture f;
    LAUNCH(fill_kernel, 1, bug ? 1025 : 1024, 0, f.stream)(f.y, (int)N);
    return f.gives([](int) { return 1.0f; });
}

static bool too_many_blocks(bool bug)
{
    fixture f;
    LAUNCH(fill_kernel, dim3(1, bug ? 65536 : 65535), 1, 0, f.stream)(f.y, 1);
    return f.read()[0] == 1;
}

static bool empty_grid(bool bug)
{
    fixture f;
    LAUNCH(fill_kernel, bug ? 0 : 1, N, 0, f.stream)(f.y, (int)N);
    return f.gives([](int) { return 1.0f; });
}

static bool too_much_shared(bool bug)
{
    fixture f;
    if (!bug)
        cudaFuncSetAttribute(shared_bounds_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             227 << 10);
    LAUNCH(shared_bounds_kernel, 1, N, 227 << 10, f.stream)(f.y, (227 << 10) / 4);
    return f.gives([](int) { return 1.0f; });
}

/* ---- programs without a bug ---- */

/* Counts what threads of a warp see in each other; sums by several routes. */
static __global__ void votes_kernel(float *y, const float *x)
{
    const int i = threadIdx.x, l = i % 32;
    const uint32_t odd = __ballot_sync(~0u, i % 2 == 1);
    double sum = (double)x[i];
    for (int d = 1; d < 32; d *= 2) {
        const double other = __shfl_up_sync(~0u, sum, d);
        sum += l >= d ? other : 0;
    }
    const float last = (float)__shfl_sync(~0u, sum, 31);
    const float next = __shfl_down_sync(~0u, x[i], 1, 8);
    y[i] = odd == 0xaaaaaaaau && next == (l % 8 == 7 ? x[i] : x[i] + 1) ? last : -1;
}

static bool votes(bool)
{
    fixture f;
    LAUNCH(votes_kernel, 1, N, 0, f.stream)(f.y, f.x);
    return f.gives([](int i) { return (float)(i / 32 * 1024 + 496); });
}

/* A graph runs as often as it is launched, each time with what pinned memory then holds. */
static __global__ void add_kernel(float *y, const float *x)
{
    y[threadIdx.x] += x[threadIdx.x];
}

static bool graph(bool)
{
    fixture f;
    cudaGraph_t g;
    cudaGraphExec_t e;
    float *pinned;
    cudaMallocHost((void **)&pinned, sizeof(float) * N);
    cudaMemsetAsync(f.y, 0, sizeof(float) * N, f.stream);
    cudaStreamBeginCapture(f.stream, cudaStreamCaptureModeRelaxed);
    cudaMemcpyAsync(f.x, pinned, sizeof(float) * N, cudaMemcpyHostToDevice, f.stream);
    LAUNCH(add_kernel, 1, N, 0, f.stream)(f.y, f.x);
    EXPECT_INT(cudaStreamSynchronize(f.stream), cudaErrorStreamCaptureUnsupported);
    EXPECT_INT(cudaStreamEndCapture(f.stream, &g), cudaSuccess);
    EXPECT_INT(cudaGraphInstantiate(&e, g, 0), cudaSuccess);
    cudaGraphDestroy(g);
    for (int i = 1; i <= 3; i++) {
        std::fill(pinned, pinned + N, (float)i);
        EXPECT_INT(cudaGraphLaunch(e, f.stream), cudaSuccess);
        EXPECT_INT(cudaStreamSynchronize(f.stream), cudaSuccess);
    }
    cudaGraphExecDestroy(e);
    cudaFreeHost(pinned);
    return f.gives([](int) { return 6.0f; }) && check_failures == 0;
}

/* Pointers in device memory; freed behind their use. */
static __global__ void table_kernel(float *y, float *const *table)
{
    y[threadIdx.x] = table[threadIdx.x % 2][threadIdx.x / 2];
}

static bool table_of_pointers(bool bug)
{
    fixture f;
    float *a;
    void **table;
    cudaMallocAsync((void **)&table, 2 * sizeof(void *), f.stream);
    cudaMallocAsync((void **)&a, sizeof(float) * N, f.stream);
    LAUNCH(fill_kernel, 1, N, 0, f.stream)(a, (int)N);
    float *const host[] = {f.x + 3, a};
    if (bug)
        cudaFreeAsync(a, f.stream);
    cudaMemcpyAsync(table, host, sizeof host, cudaMemcpyHostToDevice, f.stream);
    LAUNCH(table_kernel, 1, N, 0, f.stream)(f.y, (float *const *)table);
    if (!bug)
        cudaFreeAsync(a, f.stream);
    cudaFreeAsync(table, f.stream);
    return f.gives([](int i) { return i % 2 ? 1.0f : (float)(i / 2 + 3); });
}

/* Pageable memory is the caller's again at once. */
static bool pageable(bool)
{
    fixture f;
    cudaMemcpyAsync(f.y, f.got.data(), sizeof(float) * N, cudaMemcpyHostToDevice, f.stream);
    std::fill(f.got.begin(), f.got.end(), 0.0f);
    return f.gives([](int i) { return (float)i; });
}

static bool wrong_arguments(bool)
{
    fixture f;
    cudaEvent_t a, b;
    float ms;
    cudaEventCreate(&a);
    cudaEventCreate(&b);
    EXPECT_INT(cudaEventElapsedTime(&ms, a, b), cudaErrorInvalidResourceHandle);
    cudaEventRecord(a, f.stream);
    cudaEventRecord(b, f.stream);
    EXPECT_INT(cudaEventElapsedTime(&ms, a, b), cudaErrorNotReady);
    cudaStreamSynchronize(f.stream);
    EXPECT_INT(cudaEventElapsedTime(&ms, a, b), cudaSuccess);
    cudaEventDestroy(a);
    cudaEventDestroy(b);
    EXPECT_INT(cudaGetLastError(), cudaErrorNotReady);
    EXPECT_INT(cudaGetLastError(), cudaSuccess);
    EXPECT_INT(cudaSetDevice(1), cudaErrorInvalidDevice);
    EXPECT_INT(cudaMemsetAsync(f.y + 1, 0, sizeof(float) * N, f.stream), cudaErrorInvalidValue);
    EXPECT_INT(cudaMemcpyAsync(f.got.data(), f.x, sizeof(float), cudaMemcpyHostToDevice, f.stream),
               cudaErrorInvalidValue);
    EXPECT_INT(cudaMemcpyAsync(f.y, f.x + N, sizeof(float), cudaMemcpyDeviceToDevice, f.stream),
               cudaErrorInvalidValue);
    EXPECT_INT(cudaFreeAsync(f.x + 1, f.stream), cudaErrorInvalidValue);
    EXPECT_INT(
        cudaFuncSetAttribute(fill_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 228 << 10),
        cudaErrorInvalidValue);
    return check_failures == 0;
}

/* A device of 1 MiB: what was freed is there again. */
static bool small_device(bool)
{
    setenv("CLOTHO_EMU_MEMORY", "1048576", 1);
    fixture f;
    size_t available, total;
    void *p[3], *q;
    cudaMemGetInfo(&available, &total);
    EXPECT_INT(total, 1 << 20);
    EXPECT_INT(available, (1 << 20) - 2 * 512);
    EXPECT_INT(cudaMallocAsync(&q, 1 << 20, f.stream), cudaErrorMemoryAllocation);
    for (int round = 0; round < 4; round++) {
        for (void *&a : p)
            EXPECT_INT(cudaMallocAsync(&a, 300 << 10, f.stream), cudaSuccess);
        EXPECT_INT(cudaMallocAsync(&q, 300 << 10, f.stream), cudaErrorMemoryAllocation);
        for (void *a : p)
            EXPECT_INT(cudaFreeAsync(a, f.stream), cudaSuccess);
        EXPECT_INT(cudaFreeAsync(p[0], f.stream), cudaErrorInvalidValue);
    }
    return check_failures == 0;
}

/* The second kernel fails; the host learns of it when it waits, and for ever after. */
static bool injected_failure(bool)
{
    setenv("CLOTHO_EMU_FAIL_AFTER", "2", 1);
    fixture f;
    LAUNCH(fill_kernel, 1, N, 0, f.stream)(f.y, (int)N);
    EXPECT(f.gives([](int) { return 1.0f; }));
    LAUNCH(fill_kernel, 1, N, 0, f.stream)(f.y, (int)N);
    EXPECT_INT(cudaGetLastError(), cudaSuccess);
    EXPECT_INT(cudaStreamSynchronize(f.stream), cudaErrorLaunchFailure);
    EXPECT_INT(cudaGetLastError(), cudaErrorLaunchFailure);
    EXPECT_INT(cudaMemsetAsync(f.y, 0, sizeof(float), f.stream), cudaErrorLaunchFailure);
    return check_failures == 0;
}

/* y = x Wᵀ + y, one algorithm for any number of columns, to the bit; and as a loop says. */
static bool product(bool)
{
    enum { IN = 48, OUT = 20, ROWS = 6 };
    fixture f;
    cublasLtHandle_t lt;
    cublasLtMatmulDesc_t m;
    cublasLtMatmulPreference_t p;
    cublasLtMatrixLayout_t wl, xl, yl;
    cublasLtMatmulHeuristicResult_t best;
    const cublasOperation_t t = CUBLAS_OP_T;
    const float one = 1;
    int found;
    std::vector<float> w(OUT * IN), x(ROWS * IN), y(ROWS * OUT, 0.5f), alone(OUT, 0.5f);
    float *dw, *dx, *dy;
    for (size_t i = 0; i < w.size(); i++)
        w[i] = (float)((int)(i * 37 % 101) - 50) / 64;
    for (size_t i = 0; i < x.size(); i++)
        x[i] = (float)((int)(i * 53 % 89) - 44) / 32;
    auto upload = [&](float **dev, const std::vector<float> &host) {
        cudaMallocAsync((void **)dev, host.size() * sizeof(float), f.stream);
        cudaMemcpyAsync(*dev, host.data(), host.size() * sizeof(float), cudaMemcpyHostToDevice,
                        f.stream);
    };
    upload(&dw, w);
    upload(&dx, x);
    upload(&dy, y);
    cublasLtCreate(&lt);
    cublasLtMatmulDescCreate(&m, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    cublasLtMatmulDescSetAttribute(m, CUBLASLT_MATMUL_DESC_TRANSA, &t, sizeof t);
    cublasLtMatmulPreferenceCreate(&p);
    cublasLtMatrixLayoutCreate(&wl, CUDA_R_32F, IN, OUT, IN);
    cublasLtMatrixLayoutCreate(&xl, CUDA_R_32F, IN, ROWS, IN);
    cublasLtMatrixLayoutCreate(&yl, CUDA_R_32F, OUT, ROWS, OUT);
    EXPECT_INT(cublasLtMatmulAlgoGetHeuristic(lt, m, wl, xl, yl, yl, p, 1, &best, &found),
               CUBLAS_STATUS_SUCCESS);
    EXPECT_INT(found, 1);
    auto multiply = [&](int row, int rows, float *to) {
        const uint64_t columns = (uint64_t)rows;
        cublasLtMatrixLayoutSetAttribute(xl, CUBLASLT_MATRIX_LAYOUT_COLS, &columns, 8);
        cublasLtMatrixLayoutSetAttribute(yl, CUBLASLT_MATRIX_LAYOUT_COLS, &columns, 8);
        EXPECT_INT(cublasLtMatmul(lt, m, &one, dw, wl, dx + row * IN, xl, &one, dy, yl, dy, yl,
                                  &best.algo, nullptr, 0, f.stream),
                   CUBLAS_STATUS_SUCCESS);
        cudaMemcpyAsync(to, dy, sizeof(float) * (size_t)(rows * OUT), cudaMemcpyDeviceToHost,
                        f.stream);
        cudaMemcpyAsync(dy, alone.data(), sizeof(float) * OUT, cudaMemcpyHostToDevice, f.stream);
    };
    const std::vector<float> half = alone;
    multiply(0, ROWS, y.data());
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < OUT; j++) {
            double want = 0.5;
            for (int k = 0; k < IN; k++)
                want += (double)x[(size_t)(i * IN + k)] * (double)w[(size_t)(j * IN + k)];
            EXPECT_NEAR(y[(size_t)(i * OUT + j)], want, 1e-4);
        }
    multiply(ROWS - 1, 1, alone.data());
    EXPECT(memcmp(alone.data(), &y[(ROWS - 1) * OUT], sizeof(float) * OUT) == 0);
    const int32_t split = 2;
    cublasLtMatmulAlgoConfigSetAttribute(&best.algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &split, 4);
    EXPECT_INT(cublasLtMatmulAlgoCheck(lt, m, wl, xl, yl, yl, &best.algo, &best),
               CUBLAS_STATUS_NOT_SUPPORTED);
    cublasLtMatrixLayoutDestroy(wl);
    cublasLtMatrixLayoutDestroy(xl);
    cublasLtMatrixLayoutDestroy(yl);
    cublasLtMatmulPreferenceDestroy(p);
    cublasLtMatmulDescDestroy(m);
    cublasLtDestroy(lt);
    cudaFreeAsync(dw, f.stream);
    cudaFreeAsync(dx, f.stream);
    cudaFreeAsync(dy, f.stream);
    return check_failures == 0;
}

/* ---- the table ---- */

struct emu_case {
    const char *name;
    bool (*run)(bool bug);
    const char *says; /* a message; "": a wrong result under some schedule; null: there is no bug */
};

#ifdef __SANITIZE_ADDRESS__
#define OR_SANITIZER(message) "AddressSanitizer: use-after-poison"
#else
#define OR_SANITIZER(message) message
#endif

static const emu_case cases[] = {
    {"a missing barrier before", barrier_before, ""},
    {"a missing barrier after", barrier_after, ""},
    {"a missing barrier in a warp", warp_barrier, ""},
    {"a race of blocks", race_of_blocks, ""},
    {"out of bounds", out_of_bounds, OR_SANITIZER("fill_kernel: a write behind an array of 512")},
    {"out of bounds of shared memory", shared_out_of_bounds,
     OR_SANITIZER("shared_bounds_kernel block (0, 0, 0): a write outside of the 512")},
    {"uninitialised shared memory", uninitialised_shared, ""},
    {"uninitialised device memory", uninitialised_device, ""},
    {"a divergent barrier", divergent_barrier, "different barriers: thread"},
    {"an early exit", early_exit, "a barrier that not all reach: thread"},
    {"a divided warp", divided_warp, "a divided warp: thread"},
    {"a lane outside of the mask", lane_outside_mask, "which takes no part"},
    {"half a warp", half_a_warp, "lanes that the block does not have"},
    {"the host reads", host_reads, "host code touches device memory"},
    {"the host writes", host_writes, "host code touches device memory"},
    {"a buffer used again too early", buffer_reused, ""},
    {"a result read too early", read_too_early, ""},
    {"a pointer to host memory", host_pointer, "no memory of the device"},
    {"memory used after it was freed", used_after_free, "no memory of the device"},
    {"freed memory in a struct", freed_in_struct,
     "struct_kernel block (0, 0, 0): a pointer to memory that was freed"},
    {"freed memory in a table", table_of_pointers,
     "table_kernel block (0, 0, 0): a pointer to memory that was freed"},
    {"a leak", leak, "1 arrays of 1000 bytes of device memory were never freed"},
    {"too many threads", too_many_threads, "too many threads"},
    {"too many blocks", too_many_blocks, "too many blocks"},
    {"an empty grid", empty_grid, "an empty launch"},
    {"too much shared memory", too_much_shared, "232448 bytes of shared memory, of at most 49152"},
    {"votes", votes, nullptr},
    {"graphs", graph, nullptr},
    {"pageable memory", pageable, nullptr},
    {"wrong arguments", wrong_arguments, nullptr},
    {"a small device", small_device, nullptr},
    {"a failure", injected_failure, nullptr},
    {"a product", product, nullptr},
};

struct outcome {
    bool right, wrong; /* neither: the process died */
    std::string output;
};

static outcome run(const emu_case &c, bool bug, int schedule)
{
    int ends[2];
    if (pipe(ends))
        abort();
    const pid_t child = fork();
    if (child == 0) {
        const rlimit no_core = {0, 0};
        setrlimit(RLIMIT_CORE, &no_core);
        setenv("CLOTHO_EMU_SCHEDULE", std::to_string(schedule).c_str(), 1);
        dup2(ends[1], STDERR_FILENO);
        close(ends[0]);
        check_failures = 0;
        _exit(c.run(bug) ? 0 : 2);
    }
    outcome o{};
    char text[4096];
    int status;
    close(ends[1]);
    for (ssize_t n; (n = read(ends[0], text, sizeof text)) > 0;)
        o.output.append(text, (size_t)n);
    close(ends[0]);
    waitpid(child, &status, 0);
    o.right = WIFEXITED(status) && WEXITSTATUS(status) == 0;
    o.wrong = WIFEXITED(status) && WEXITSTATUS(status) == 2;
    return o;
}

static void report(const emu_case &c, const char *what, int schedule, const outcome &o)
{
    check_failures++;
    fprintf(stderr, "%s: %s, schedule %d: %s\n", c.name, what, schedule,
            o.right   ? "all is well"
            : o.wrong ? "a wrong result"
                      : "dies");
    fprintf(stderr, "%s", o.output.c_str());
}

int main()
{
    enum { SCHEDULES = 6 };
    for (const emu_case &c : cases) {
        int wrong = 0;
        for (int schedule = 0; schedule < SCHEDULES; schedule++) {
            const outcome twin = run(c, false, schedule);
            if (!twin.right || !twin.output.empty())
                report(c, "the correct twin", schedule, twin);
            if (!c.says)
                continue;
            const outcome bug = run(c, true, schedule);
            const bool dies = !bug.right && !bug.wrong;
            wrong += bug.wrong;
            if (*c.says ? !dies || bug.output.find(c.says) == std::string::npos : dies)
                report(c, "the bug", schedule, bug);
        }
        if (c.says && !*c.says && !wrong)
            report(c, "the bug", SCHEDULES, {true, false, ""});
    }
    return test_failures();
}
