/* What the device can do at most, measured: "BANDWIDTH RATE", in GB/s and TFLOP/s, on one line.
 *
 * BANDWIDTH: a copy of 2 GiB within the device's memory, bytes read and bytes written. RATE: a
 * product of two 8192 x 8192 matrices of random bf16 with sums in float, by the fastest of the
 * algorithms that cuBLASLt proposes. Medians of several; the kind of number that other figures are
 * fractions of, not the data sheet's. */
#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cublasLt.h>
#include <cuda_runtime.h>
#include <vector>

static void check(bool ok, const char *what)
{
    if (ok)
        return;
    fprintf(stderr, "ceilings: %s: %s\n", what, cudaGetErrorString(cudaGetLastError()));
    exit(1);
}

static void check(cudaError_t e, const char *what)
{
    check(e == cudaSuccess, what);
}

/* Milliseconds of job(), the median of some, after some to warm up. */
template <class Job> static double median_ms(Job job)
{
    enum { WARM = 3, TIMES = 15 };
    std::vector<float> ms(TIMES);
    cudaEvent_t from, to;
    check(cudaEventCreate(&from), "event");
    check(cudaEventCreate(&to), "event");
    for (int i = -WARM; i < TIMES; i++) {
        check(cudaEventRecord(from), "event");
        job();
        check(cudaEventRecord(to), "event");
        check(cudaEventSynchronize(to), "the device");
        check(cudaEventElapsedTime(&ms[i < 0 ? 0 : i], from, to), "event");
    }
    std::sort(ms.begin(), ms.end());
    return ms[TIMES / 2];
}

static double bandwidth()
{
    const size_t bytes = (size_t)2 << 30;
    void *from, *to;
    check(cudaMalloc(&from, bytes), "memory");
    check(cudaMalloc(&to, bytes), "memory");
    check(cudaMemset(from, 0x3d, bytes), "memory");
    const double ms = median_ms(
        [&] { check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice), "copy"); });
    cudaFree(from);
    cudaFree(to);
    return 2e-6 * (double)bytes / ms;
}

/* Uniform in ±1/16. */
static void *random_matrix(size_t n)
{
    std::vector<uint16_t> host(n);
    uint64_t x = 1;
    void *dev;
    for (uint16_t &h : host) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        const float f = (float)(int32_t)(x >> 32) * 0x1p-35f;
        h = (uint16_t)(std::bit_cast<uint32_t>(f) >> 16);
    }
    check(cudaMalloc(&dev, 2 * n), "memory");
    check(cudaMemcpy(dev, host.data(), 2 * n, cudaMemcpyHostToDevice), "copy");
    return dev;
}

static double rate()
{
    enum { N = 8192, ALGORITHMS = 8 };
    const size_t work_bytes = (size_t)64 << 20;
    const float one = 1, zero = 0;
    const cublasOperation_t transpose = CUBLAS_OP_T;
    cublasLtHandle_t lt;
    cublasLtMatmulDesc_t product;
    cublasLtMatrixLayout_t layout;
    cublasLtMatmulPreference_t wish;
    cublasLtMatmulHeuristicResult_t found[ALGORITHMS];
    int n = 0;
    void *a = random_matrix((size_t)N * N), *b = random_matrix((size_t)N * N), *y, *work;
    check(cudaMalloc(&y, (size_t)2 * N * N), "memory");
    check(cudaMalloc(&work, work_bytes), "memory");
    bool ok = !cublasLtCreate(&lt);
    ok = ok && !cublasLtMatmulDescCreate(&product, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    ok = ok && !cublasLtMatmulDescSetAttribute(product, CUBLASLT_MATMUL_DESC_TRANSA, &transpose,
                                               sizeof transpose);
    ok = ok && !cublasLtMatrixLayoutCreate(&layout, CUDA_R_16BF, N, N, N);
    ok = ok && !cublasLtMatmulPreferenceCreate(&wish);
    ok = ok && !cublasLtMatmulPreferenceSetAttribute(wish, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                     &work_bytes, sizeof work_bytes);
    ok = ok && !cublasLtMatmulAlgoGetHeuristic(lt, product, layout, layout, layout, layout, wish,
                                               ALGORITHMS, found, &n);
    check(ok && n > 0, "cuBLASLt");
    const double n3 = (double)N * (double)N * (double)N;
    double best = 0;
    for (int i = 0; i < n; i++) {
        const double ms = median_ms([&] {
            check(!cublasLtMatmul(lt, product, &one, a, layout, b, layout, &zero, y, layout, y,
                                  layout, &found[i].algo, work, work_bytes, 0),
                  "matrix product");
        });
        best = std::max(best, 2e-9 * n3 / ms);
    }
    cublasLtDestroy(lt);
    return best;
}

int main()
{
    const double b = bandwidth();
    printf("%.0f %.0f\n", b, rate());
    return 0;
}
