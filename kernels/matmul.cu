/* y = x Wᵀ with cuBLASLt, and which of its algorithms.
 *
 * cuBLASLt would choose by all dimensions, and so would let a row's sums depend on how many rows
 * there are. Here a shape W (out, in) gets its algorithms when it comes for the first time, and
 * keeps them; nothing is chosen in a step.
 *
 * The first algorithm is the library's best for many rows among those that do not split the sum
 * over `in`. It must show on numbers drawn at random that a row's result does not depend on the
 * number of rows and its place among them, to the bit; else the next one has to. Few rows want
 * another tile than many: each range of n has an algorithm of its own, the library's best for it
 * that gives the first one's results, bit for bit, or else the first one itself. Most do: the
 * order of a sum is the instruction's, and tiles only cut up rows and columns. With --fast they
 * need to agree no closer than sums in two orders do, and may split the sum.
 *
 * Rows that are no multiple of 16 bytes, which no tensor core reads, and shapes for which the
 * library has nothing are multiplied by product.cuh: right, and no faster than need be. */
#include <cublasLt.h>

#include <stdlib.h>
#include <string.h>

#include "product.cuh"

enum { WORKSPACE_BYTES = 32 << 20, CANDIDATES = 16 };

/* The ranges of n, by their last; the one behind them has no end. */
static const int range_end[] = {16, 64, 256};
enum { RANGES = sizeof range_end / sizeof *range_end + 1, MANY_ROWS = 1024 };

struct shape {
    int in, out;
    cublasLtMatrixLayout_t w, x, y;
    cublasLtMatmulAlgo_t algo[RANGES];
    bool plain; /* product.cuh */
};

struct matmul {
    cublasLtHandle_t lt;
    cublasLtMatmulDesc_t desc;
    void *workspace;
    struct shape *shape; /* (n_shapes) */
    int n_shapes;
};

static int lt_check(struct cuda *c, cublasStatus_t s)
{
    return s == CUBLAS_STATUS_SUCCESS ? 0
                                      : cuda_fail(&c->base, "cuBLASLt", cublasLtGetStatusString(s));
}

/* ---- one product ---- */

/* What cuBLASLt calls a matrix has its columns adjacent: (n, out) here is (out, n) there, and
 * y = x Wᵀ is yᵀ = W xᵀ, with a W that it takes for its transpose. */
static cublasStatus_t set_rows(const struct shape *s, int n)
{
    const uint64_t columns = (uint64_t)n;
    const cublasStatus_t e = cublasLtMatrixLayoutSetAttribute(s->x, CUBLASLT_MATRIX_LAYOUT_COLS,
                                                              &columns, sizeof columns);
    return e == CUBLAS_STATUS_SUCCESS
               ? cublasLtMatrixLayoutSetAttribute(s->y, CUBLASLT_MATRIX_LAYOUT_COLS, &columns,
                                                  sizeof columns)
               : e;
}

static cublasStatus_t multiply(const struct cuda *c, const struct shape *s,
                               const cublasLtMatmulAlgo_t *algo, float *y, enum linear_out how,
                               const void *x, const void *w, int n)
{
    const struct matmul *m = c->matmul;
    const float one = 1, beta = how == LINEAR_ADD ? 1 : 0;
    const cublasStatus_t e = set_rows(s, n);
    if (e != CUBLAS_STATUS_SUCCESS)
        return e;
    return cublasLtMatmul(m->lt, m->desc, &one, w, s->w, x, s->x, &beta, y, s->y, y, s->y, algo,
                          m->workspace, WORKSPACE_BYTES, c->stream);
}

template <class T>
static void multiply_plain(const struct cuda *c, const struct shape *s, float *y,
                           enum linear_out how, const void *x, const void *w, int n)
{
    const size_t in = (size_t)s->in;
    const operand<T> a = {(const T *)x, in, 1, n}, b = {(const T *)w, in, 1, s->out};
    product(c, y, how == LINEAR_ADD, a, b, s->in);
}

int matmul_run(struct cuda *c, int shape, float *y, enum linear_out how, const void *x,
               const void *w, int n)
{
    const struct shape *s = &c->matmul->shape[shape];
    int range = 0;
    while (range < RANGES - 1 && n > range_end[range])
        range++;
    if (!s->plain)
        return lt_check(c, multiply(c, s, &s->algo[range], y, how, x, w, n));
    if (c->base.act == ACT_BF16)
        multiply_plain<bf16>(c, s, y, how, x, w, n);
    else
        multiply_plain<float>(c, s, y, how, x, w, n);
    return 0;
}

/* ---- a trial: an algorithm against the results of the shape's first one ---- */

struct trial {
    void *w, *x;       /* noise, act (out, in) and (rows, in) */
    float *want, *got; /* (rows, out) */
    int *differ;       /* dev */
    int rows;
    float bound; /* on differences; 0: none */
};

enum { TRIAL_ROWS = 300, TRIAL_ROWS_MIN = 20, TRIAL_BYTES = 192 << 20 }; /* of results */

/* A thread for each element: a number in [-1, 1) made from its index. */
template <class T> static __global__ void noise_kernel(T *p, size_t n)
{
    const size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    uint32_t h = (uint32_t)i * 0x9e3779b9u + (uint32_t)(i >> 32);
    h = (h ^ h >> 16) * 0x85ebca6bu;
    h = (h ^ h >> 13) * 0xc2b2ae35u;
    if (i < n)
        p[i] = from_float<T>((float)(int32_t)(h ^ h >> 16) * 0x1p-31f);
}

/* A thread for each element; whoever finds a difference says so. */
static __global__ void compare_kernel(int *differ, const float *a, const float *b, float bound,
                                      size_t n)
{
    const size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n && !(fabsf(a[i] - b[i]) <= bound))
        *differ = 1;
}

static unsigned blocks_for(size_t n)
{
    return (unsigned)((n + 255) / 256);
}

static void fill(const struct cuda *c, void *p, size_t n)
{
    if (c->base.act == ACT_BF16)
        LAUNCH(noise_kernel<bf16>, blocks_for(n), 256, 0, c->stream)((bf16 *)p, n);
    else
        LAUNCH(noise_kernel<float>, blocks_for(n), 256, 0, c->stream)((float *)p, n);
}

static void trial_close(struct cuda *c, struct trial *t)
{
    cuda_release(&c->base, t->x);
    cuda_release(&c->base, t->want);
    cuda_release(&c->base, t->got);
    cuda_release(&c->base, t->differ);
}

static int trial_open(struct cuda *c, struct trial *t, const struct shape *s, void *w)
{
    struct backend *b = &c->base;
    const size_t row = sizeof(float) * (size_t)s->out, act = act_size(b->act);
    const int most = (int)(TRIAL_BYTES / row);
    *t = {};
    t->w = w;
    t->rows = most < TRIAL_ROWS_MIN ? TRIAL_ROWS_MIN : most < TRIAL_ROWS ? most : TRIAL_ROWS;
    const size_t rows = (size_t)t->rows;
    if (cuda_alloc(b, &t->x, rows * (size_t)s->in * act) ||
        cuda_alloc(b, (void **)&t->want, rows * row) ||
        cuda_alloc(b, (void **)&t->got, rows * row) ||
        cuda_alloc(b, (void **)&t->differ, sizeof *t->differ))
        return -1;
    fill(c, t->x, rows * (size_t)s->in);
    fill(c, t->w, (size_t)s->out * (size_t)s->in);
    return 0;
}

/* The product, added once more to itself, which is exact: both forms of the operation. False:
 * cuBLASLt refuses. */
static bool twice(const struct cuda *c, const struct shape *s, const cublasLtMatmulAlgo_t *algo,
                  const struct trial *t, float *y, int n)
{
    const char *x =
        (const char *)t->x + (size_t)(t->rows - n) * (size_t)s->in * act_size(c->base.act);
    if (multiply(c, s, algo, y, LINEAR_F32, x, t->w, n) == CUBLAS_STATUS_SUCCESS &&
        multiply(c, s, algo, y, LINEAR_ADD, x, t->w, n) == CUBLAS_STATUS_SUCCESS)
        return true;
    cudaGetLastError(); /* the refusal's, if it left one, is no failure */
    return false;
}

/* 1: the last n rows alone have the results that they have among all; 0: they have not, or cuBLASLt
 * refuses; -1: the device fails. */
static int agrees(struct cuda *c, const struct shape *s, const cublasLtMatmulAlgo_t *algo,
                  const struct trial *t, int n)
{
    const size_t count = (size_t)n * (size_t)s->out;
    const float *want = t->want + (size_t)(t->rows - n) * (size_t)s->out;
    int differ = 0;
    if (!twice(c, s, algo, t, t->got, n))
        return 0;
    if (cuda_check(&c->base, "trial", cudaMemsetAsync(t->differ, 0, sizeof differ, c->stream)))
        return -1;
    LAUNCH(compare_kernel, blocks_for(count), 256, 0, c->stream)
    (t->differ, want, t->got, t->bound, count);
    if (cuda_check(&c->base, "trial", cudaGetLastError()) ||
        cuda_check(&c->base, "trial",
                   cudaMemcpyAsync(&differ, t->differ, sizeof differ, cudaMemcpyDeviceToHost,
                                   c->stream)) ||
        cuda_check(&c->base, "trial", cudaStreamSynchronize(c->stream)))
        return -1;
    return !differ;
}

/* As `agrees`, for numbers of rows from all ranges that an algorithm is for. */
static int agrees_in(struct cuda *c, const struct shape *s, const cublasLtMatmulAlgo_t *algo,
                     const struct trial *t, int first_range, int last_range)
{
    static const int rows[RANGES][2] = {{1, 13}, {17, 50}, {65, 200}, {257, TRIAL_ROWS}};
    for (int r = first_range; r <= last_range; r++)
        for (int i = 0; i < 2; i++) {
            const int n = rows[r][i] < t->rows ? rows[r][i] : t->rows;
            const int yes = agrees(c, s, algo, t, n);
            if (yes != 1)
                return yes;
        }
    return 1;
}

/* ---- the choice ---- */

struct candidates {
    cublasLtMatmulHeuristicResult_t at[CANDIDATES];
    int n;
};

/* The greatest power of two, 16 at most, that divides `bytes`. */
static uint32_t alignment(size_t bytes)
{
    uint32_t a = 16;
    while (bytes % a)
        a /= 2;
    return a;
}

static int prefer(struct cuda *c, cublasLtMatmulPreference_t p,
                  cublasLtMatmulPreferenceAttributes_t what, uint32_t value)
{
    return lt_check(c, cublasLtMatmulPreferenceSetAttribute(p, what, &value, sizeof value));
}

static int set_preferences(struct cuda *c, cublasLtMatmulPreference_t p, const struct shape *s,
                           cublasLtReductionScheme_t reduction)
{
    const uint64_t workspace = WORKSPACE_BYTES;
    const uint32_t x = alignment((size_t)s->in * act_size(c->base.act));
    const uint32_t y = alignment((size_t)s->out * sizeof(float));
    return lt_check(
               c, cublasLtMatmulPreferenceSetAttribute(p, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                       &workspace, sizeof workspace)) ||
           prefer(c, p, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, reduction) ||
           prefer(c, p, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, x) ||
           prefer(c, p, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, x) ||
           prefer(c, p, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, y) ||
           prefer(c, p, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, y);
}

static bool splits(const cublasLtMatmulAlgo_t *algo)
{
    int32_t parts = 1;
    size_t written;
    return cublasLtMatmulAlgoConfigGetAttribute(algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &parts,
                                                sizeof parts, &written) != CUBLAS_STATUS_SUCCESS ||
           parts > 1;
}

/* Algorithms for n rows, best first; maybe none. Only with `split` do some split the sum, and add
 * up its parts in a fixed order. */
static int find_candidates(struct cuda *c, const struct shape *s, int n, bool split,
                           struct candidates *out)
{
    const cublasLtReductionScheme_t reduction =
        split ? CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE : CUBLASLT_REDUCTION_SCHEME_NONE;
    const struct matmul *m = c->matmul;
    cublasLtMatmulPreference_t p;
    int found = 0;
    out->n = 0;
    if (lt_check(c, cublasLtMatmulPreferenceCreate(&p)))
        return -1;
    if (set_preferences(c, p, s, reduction) || lt_check(c, set_rows(s, n))) {
        cublasLtMatmulPreferenceDestroy(p);
        return -1;
    }
    if (cublasLtMatmulAlgoGetHeuristic(m->lt, m->desc, s->w, s->x, s->y, s->y, p, CANDIDATES,
                                       out->at, &found) != CUBLAS_STATUS_SUCCESS)
        found = 0;
    cublasLtMatmulPreferenceDestroy(p);
    for (int i = 0; i < found; i++)
        if (out->at[i].state == CUBLAS_STATUS_SUCCESS && (split || !splits(&out->at[i].algo)))
            out->at[out->n++] = out->at[i];
    return 0;
}

/* The first algorithm, for all ranges; none: the shape is plain. */
static int choose_first(struct cuda *c, struct shape *s, const struct trial *t)
{
    struct candidates best;
    if (find_candidates(c, s, MANY_ROWS, false, &best))
        return -1;
    s->plain = true;
    for (int i = 0; i < best.n && s->plain; i++) {
        const cublasLtMatmulAlgo_t *algo = &best.at[i].algo;
        const int yes =
            twice(c, s, algo, t, t->want, t->rows) ? agrees_in(c, s, algo, t, 0, RANGES - 1) : 0;
        if (yes < 0)
            return -1;
        s->plain = !yes;
        for (int r = 0; r < RANGES; r++)
            s->algo[r] = *algo;
    }
    return 0;
}

static int choose_for_range(struct cuda *c, struct shape *s, const struct trial *t, int range)
{
    const int n = range < RANGES - 1 ? range_end[range] : MANY_ROWS;
    struct candidates best;
    if (find_candidates(c, s, n, c->fast, &best))
        return -1;
    for (int i = 0; i < best.n; i++) {
        const cublasLtMatmulAlgo_t *algo = &best.at[i].algo;
        if (memcmp(algo, &s->algo[range], sizeof *algo) == 0)
            return 0; /* the first one itself */
        const int yes = agrees_in(c, s, algo, t, range, range);
        if (yes < 0)
            return -1;
        if (yes) {
            s->algo[range] = *algo;
            return 0;
        }
    }
    return 0;
}

static int choose(struct cuda *c, struct shape *s, void *w)
{
    struct trial t;
    int rc = trial_open(c, &t, s, w) || choose_first(c, s, &t) ? -1 : 0;
    t.bound = c->fast ? (float)s->in * 0x1p-18f : 0;
    for (int r = 0; r < RANGES && rc == 0 && !s->plain; r++)
        rc = choose_for_range(c, s, &t, r);
    trial_close(c, &t);
    return rc;
}

/* ---- shapes ---- */

static int shape_open(struct cuda *c, struct shape *s, int in, int out, void *scratch)
{
    const cudaDataType act = c->base.act == ACT_BF16 ? CUDA_R_16BF : CUDA_R_32F;
    const uint64_t rows = (uint64_t)in, columns = (uint64_t)out;
    *s = {};
    s->in = in;
    s->out = out;
    s->plain = rows * act_size(c->base.act) % 16 != 0;
    if (s->plain)
        return 0;
    if (lt_check(c, cublasLtMatrixLayoutCreate(&s->w, act, rows, columns, in)) ||
        lt_check(c, cublasLtMatrixLayoutCreate(&s->x, act, rows, 1, in)) ||
        lt_check(c, cublasLtMatrixLayoutCreate(&s->y, CUDA_R_32F, columns, 1, out)))
        return -1;
    return choose(c, s, scratch);
}

static void shape_close(struct shape *s)
{
    const cublasLtMatrixLayout_t layout[] = {s->w, s->x, s->y};
    for (cublasLtMatrixLayout_t l : layout)
        if (l)
            cublasLtMatrixLayoutDestroy(l);
}

int matmul_shape(struct cuda *c, int *out_shape, int in, int out, void *scratch)
{
    struct matmul *m = c->matmul;
    struct shape s, *all;
    for (int i = 0; i < m->n_shapes; i++)
        if (m->shape[i].in == in && m->shape[i].out == out) {
            *out_shape = i;
            return 0;
        }
    all = (struct shape *)realloc(m->shape, sizeof *all * (size_t)(m->n_shapes + 1));
    if (!all)
        return cuda_fail(&c->base, "matmul", "out of memory");
    m->shape = all;
    if (shape_open(c, &s, in, out, scratch)) {
        shape_close(&s);
        return -1;
    }
    all[m->n_shapes] = s;
    *out_shape = m->n_shapes++;
    return 0;
}

/* ---- open and close ---- */

int matmul_open(struct cuda *c)
{
    struct matmul *m = c->matmul = (struct matmul *)calloc(1, sizeof *m);
    const cublasOperation_t transposed = CUBLAS_OP_T;
    if (!m)
        return cuda_fail(&c->base, "matmul", "out of memory");
    if (lt_check(c, cublasLtCreate(&m->lt)) ||
        lt_check(c, cublasLtMatmulDescCreate(&m->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F)) ||
        lt_check(c, cublasLtMatmulDescSetAttribute(m->desc, CUBLASLT_MATMUL_DESC_TRANSA,
                                                   &transposed, sizeof transposed)))
        return -1;
    return cuda_alloc(&c->base, &m->workspace, WORKSPACE_BYTES);
}

void matmul_close(struct cuda *c)
{
    struct matmul *m = c->matmul;
    if (!m)
        return;
    for (int i = 0; i < m->n_shapes; i++)
        shape_close(&m->shape[i]);
    cuda_release(&c->base, m->workspace);
    if (m->desc)
        cublasLtMatmulDescDestroy(m->desc);
    if (m->lt)
        cublasLtDestroy(m->lt);
    free(m->shape);
    free(m);
}
