/* Matrix products of the emulated device, in plain loops. A product is queued like a kernel. */
#include "cublasLt.h"

#include <array>
#include <bit>
#include <vector>

struct emu_blas {
};
struct emu_matmul {
    std::array<int32_t, 2> transpose; /* of A, of B */
};
struct emu_layout {
    cudaDataType type;
    int64_t rows, cols, ld;
};
struct emu_preference {
};

namespace
{
enum { ALIGNED_ALGOS = 3, UNALIGNED_ALGO = ALIGNED_ALGOS };

size_t size_of(cudaDataType t)
{
    return t == CUDA_R_32F ? 4 : 2;
}

float load(cudaDataType t, const void *p, size_t i)
{
    if (t == CUDA_R_32F)
        return static_cast<const float *>(p)[i];
    return __uint_as_float((uint32_t) static_cast<const uint16_t *>(p)[i] << 16);
}

void store(cudaDataType t, void *p, size_t i, float x)
{
    const uint32_t u = __float_as_uint(x);
    if (t == CUDA_R_32F)
        static_cast<float *>(p)[i] = x;
    else
        static_cast<uint16_t *>(p)[i] =
            (uint16_t)(x != x ? u >> 16 | 0x40 : (u + 0x7fff + (u >> 16 & 1)) >> 16);
}

/* A config value lies in 32 bits of an algorithm. */
uint32_t config(const cublasLtMatmulAlgo_t &algo, int which)
{
    uint32_t value;
    memcpy(&value, (const char *)algo.data + 4 * which, 4);
    return value;
}

cublasLtMatmulAlgo_t make_algo(uint32_t id)
{
    cublasLtMatmulAlgo_t algo{};
    const uint32_t values[] = {id, 0, 1}; /* the rest is 0, too: no split, no reduction */
    memcpy(algo.data, values, sizeof values);
    return algo;
}

bool is_aligned(const emu_layout &m)
{
    return (size_t)m.ld * size_of(m.type) % 16 == 0;
}

bool is_aligned(const void *p)
{
    return (uintptr_t)p % 16 == 0;
}

struct product {
    emu_layout a, b, c, d;
    bool transpose_a, transpose_b;
    float alpha, beta;
    uint32_t algo;

    int64_t k() const
    {
        return transpose_a ? a.rows : a.cols;
    }
    bool fits() const
    {
        return (transpose_a ? a.cols : a.rows) == d.rows &&
               (transpose_b ? b.rows : b.cols) == d.cols &&
               (transpose_b ? b.cols : b.rows) == k() && c.rows == d.rows && c.cols == d.cols &&
               c.type == d.type && a.type == b.type;
    }
    bool aligned() const
    {
        return is_aligned(a) && is_aligned(b) && is_aligned(c) && is_aligned(d);
    }
};

product make_product(const emu_matmul &m, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                     cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d)
{
    return {*a, *b, *c, *d, m.transpose[0] != 0, m.transpose[1] != 0, 1, 0, 0};
}

cublasStatus_t check(const product &p, const cublasLtMatmulAlgo_t &algo)
{
    if (!p.fits())
        return CUBLAS_STATUS_INVALID_VALUE;
    const uint32_t id = config(algo, CUBLASLT_ALGO_CONFIG_ID);
    if (id > UNALIGNED_ALGO || config(algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM) > 1 ||
        config(algo, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME) != CUBLASLT_REDUCTION_SCHEME_NONE)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    return id < ALIGNED_ALGOS && !p.aligned() ? CUBLAS_STATUS_NOT_SUPPORTED : CUBLAS_STATUS_SUCCESS;
}

/* The k elements that belong to a row of op(A) or a column of op(B), as float. */
void unpack(float *to, const emu_layout &m, const void *from, int64_t i, bool along_row, int64_t k)
{
    for (int64_t j = 0; j < k; j++)
        to[j] = load(m.type, from, (size_t)(along_row ? i + j * m.ld : i * m.ld + j));
}

/* As LANES sums, of every LANES-th product each, and then their sum. */
template <int LANES> float dot(const float *x, const float *y, int64_t k)
{
    float part[LANES] = {}, sum = 0;
    int64_t j = 0;
    for (; j + LANES <= k; j += LANES)
        for (int l = 0; l < LANES; l++)
            part[l] += x[j + l] * y[j + l];
    for (int l = 0; j < k; j++, l++)
        part[l] += x[j] * y[j];
    for (float p : part)
        sum += p;
    return sum;
}

/* By algorithm. */
float (*const dots[])(const float *, const float *, int64_t) = {dot<4>, dot<8>, dot<16>, dot<2>};

void multiply(const product &p, const void *a, const void *b, const void *c, void *d)
{
    const int64_t k = p.k(), m = p.d.rows, n = p.d.cols;
    std::vector<float> row((size_t)k), columns((size_t)(k * n));
    for (int64_t j = 0; j < n; j++)
        unpack(&columns[(size_t)(j * k)], p.b, b, j, p.transpose_b, k);
    for (int64_t i = 0; i < m; i++) {
        unpack(row.data(), p.a, a, i, !p.transpose_a, k);
        for (int64_t j = 0; j < n; j++) {
            float x = p.alpha * dots[p.algo](row.data(), &columns[(size_t)(j * k)], k);
            if (p.beta != 0)
                x += p.beta * load(p.c.type, c, (size_t)(i + j * p.c.ld));
            store(p.d.type, d, (size_t)(i + j * p.d.ld), x);
        }
    }
}

void *matrix(const void *p, const emu_layout &m)
{
    return emu::device_pointer("cublasLtMatmul", p,
                               (size_t)((m.cols - 1) * m.ld + m.rows) * size_of(m.type));
}

template <class T> cublasStatus_t destroy(T *p)
{
    delete p;
    return CUBLAS_STATUS_SUCCESS;
}
} // namespace

const char *cublasLtGetStatusString(cublasStatus_t s)
{
    switch (s) {
    case CUBLAS_STATUS_SUCCESS:
        return "success";
    case CUBLAS_STATUS_INVALID_VALUE:
        return "invalid value";
    case CUBLAS_STATUS_EXECUTION_FAILED:
        return "execution failed";
    case CUBLAS_STATUS_NOT_SUPPORTED:
        return "not supported";
    }
    return "unknown";
}

cublasStatus_t cublasLtCreate(cublasLtHandle_t *h)
{
    *h = new emu_blas{};
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t h)
{
    return destroy(h);
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *m, cublasComputeType_t,
                                        cudaDataType_t scale)
{
    if (scale != CUDA_R_32F)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    *m = new emu_matmul{};
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t m)
{
    return destroy(m);
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t m,
                                              cublasLtMatmulDescAttributes_t which,
                                              const void *value, size_t size)
{
    if (size != 4)
        return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(&m->transpose[which == CUBLASLT_MATMUL_DESC_TRANSB], value, size);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *l, cudaDataType type,
                                          uint64_t rows, uint64_t cols, int64_t ld)
{
    if (ld < (int64_t)rows)
        return CUBLAS_STATUS_INVALID_VALUE;
    *l = new emu_layout{type, (int64_t)rows, (int64_t)cols, ld};
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t l,
                                                cublasLtMatrixLayoutAttribute_t which,
                                                const void *value, size_t size)
{
    if (size != 8)
        return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(which == CUBLASLT_MATRIX_LAYOUT_ROWS   ? &l->rows
           : which == CUBLASLT_MATRIX_LAYOUT_COLS ? &l->cols
                                                  : &l->ld,
           value, size);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t l)
{
    return destroy(l);
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *p)
{
    *p = new emu_preference{};
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t p)
{
    return destroy(p);
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t p,
                                                    cublasLtMatmulPreferenceAttributes_t which,
                                                    const void *value, size_t size)
{
    if (!p || !value || size != (which == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES ? 8 : 4))
        return CUBLAS_STATUS_INVALID_VALUE;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t m,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t, int wanted,
                                              cublasLtMatmulHeuristicResult_t *result, int *found)
{
    const product p = make_product(*m, a, b, c, d);
    const int64_t columns = std::bit_width((uint64_t)p.d.cols);
    const uint32_t first = (uint32_t)((p.d.rows / 64 + columns + p.k() / 64) % ALIGNED_ALGOS);
    *found = 0;
    if (wanted < 1 || !p.fits())
        return CUBLAS_STATUS_INVALID_VALUE;
    for (uint32_t i = 0; p.aligned() && i < ALIGNED_ALGOS && *found < wanted; i++)
        result[(*found)++] = {
            make_algo((first + i) % ALIGNED_ALGOS), 0, CUBLAS_STATUS_SUCCESS, 1, {}};
    if (*found < wanted)
        result[(*found)++] = {make_algo(UNALIGNED_ALGO), 0, CUBLAS_STATUS_SUCCESS, 1, {}};
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoConfigGetAttribute(const cublasLtMatmulAlgo_t *algo,
                                                    cublasLtMatmulAlgoConfigAttributes_t which,
                                                    void *value, size_t size, size_t *written)
{
    const uint32_t all = config(*algo, which);
    const size_t want = which >= CUBLASLT_ALGO_CONFIG_INNER_SHAPE_ID ? 2 : 4;
    if (written)
        *written = want;
    if (size == 0 && written)
        return CUBLAS_STATUS_SUCCESS;
    if (size != want)
        return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(value, &all, size);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoConfigSetAttribute(cublasLtMatmulAlgo_t *algo,
                                                    cublasLtMatmulAlgoConfigAttributes_t which,
                                                    const void *value, size_t size)
{
    if (size != (which >= CUBLASLT_ALGO_CONFIG_INNER_SHAPE_ID ? 2 : 4))
        return CUBLAS_STATUS_INVALID_VALUE;
    memcpy((char *)algo->data + 4 * which, value, size);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t, cublasLtMatmulDesc_t m,
                                       cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                       cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                       const cublasLtMatmulAlgo_t *algo,
                                       cublasLtMatmulHeuristicResult_t *result)
{
    *result = {*algo, 0, check(make_product(*m, a, b, c, d), *algo), 1, {}};
    return result->state;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t h, cublasLtMatmulDesc_t m, const void *alpha,
                              const void *a, cublasLtMatrixLayout_t al, const void *b,
                              cublasLtMatrixLayout_t bl, const void *beta, const void *c,
                              cublasLtMatrixLayout_t cl, void *d, cublasLtMatrixLayout_t dl,
                              const cublasLtMatmulAlgo_t *algo, void *, size_t, cudaStream_t s)
{
    cublasLtMatmulHeuristicResult_t chosen;
    int found = 1;
    product p = make_product(*m, al, bl, cl, dl);
    if (!algo && cublasLtMatmulAlgoGetHeuristic(h, m, al, bl, cl, dl, nullptr, 1, &chosen, &found))
        return CUBLAS_STATUS_INVALID_VALUE;
    if (!algo)
        algo = &chosen.algo;
    if (const cublasStatus_t bad = check(p, *algo))
        return bad;
    p.algo = config(*algo, CUBLASLT_ALGO_CONFIG_ID);
    if (p.algo < ALIGNED_ALGOS &&
        !(is_aligned(a) && is_aligned(b) && is_aligned(c) && is_aligned(d)))
        return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(&p.alpha, alpha, sizeof p.alpha);
    memcpy(&p.beta, beta, sizeof p.beta);
    emu::launch_library("cublasLtMatmul", s,
                        [=, a = matrix(a, p.a), b = matrix(b, p.b), c = matrix(c, p.c),
                         d = matrix(d, p.d)] { multiply(p, a, b, c, d); });
    return CUBLAS_STATUS_SUCCESS;
}
