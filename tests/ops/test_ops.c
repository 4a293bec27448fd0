/* The operations of the transformer that work on rows, and those that copy. */
#include "driver.h"

/* ---- weights: a matrix as a file holds it, in two parts when it has more than one row ---- */

struct file_matrix {
    unsigned char *data;
    struct weight_part part[2];
    int n_parts;
};

/* Where halves lie in a block: of random ones the top bit of the exponent is cleared, which leaves
 * numbers below 2. */
static const struct {
    int type;
    size_t block, half[2];
} halves[] = {
    {TENSOR_F16, 2, {0, 0}},        {TENSOR_BF16, 2, {0, 0}},   {TENSOR_Q8_0, 34, {0, 0}},
    {TENSOR_Q4_0, 18, {0, 0}},      {TENSOR_Q4_1, 20, {0, 2}},  {TENSOR_Q5_0, 22, {0, 0}},
    {TENSOR_Q5_1, 24, {0, 2}},      {TENSOR_Q4_K, 144, {0, 2}}, {TENSOR_Q5_K, 176, {0, 2}},
    {TENSOR_Q6_K, 210, {208, 208}},
};
enum { N_HALVES = sizeof halves / sizeof *halves };

/* Random bytes are a matrix in any format, once the scales of the blocks are sane. */
static struct file_matrix matrix_new(int type, int rows, int in)
{
    struct file_matrix m = {0};
    size_t row_bytes = tensor_row_bytes(type, (size_t)in), bytes = row_bytes * (size_t)rows;
    m.data = malloc(bytes);
    for (size_t i = 0; i < bytes; i++)
        m.data[i] = (unsigned char)(noise(IN_W, i) * 127);
    if (type == TENSOR_F32)
        for (size_t i = 0; i < bytes / 4; i++)
            ((float *)m.data)[i] = noise(IN_W, i);
    for (int f = 0; f < N_HALVES; f++)
        for (size_t i = 0; halves[f].type == type && i < bytes; i += halves[f].block)
            for (int k = 0; k < 2; k++)
                m.data[i + halves[f].half[k] + 1] &= 0xbf;
    int first = rows / 3;
    m.part[0] = (struct weight_part){m.data, (enum tensor_type)type, first ? first : rows};
    m.part[1] = (struct weight_part){m.data + (size_t)first * row_bytes, (enum tensor_type)type,
                                     rows - first};
    m.n_parts = first ? 2 : 1;
    return m;
}

static void matrix_row(int type, int row, int in, float *out)
{
    struct file_matrix m = matrix_new(type, row + 1, in);
    size_t row_bytes = tensor_row_bytes(type, (size_t)in);
    dequant(type, m.data + (size_t)row * row_bytes, out, (size_t)in);
    free(m.data);
}

/* ---- embed: d = {in, vocab, tensor type} ---- */

static int embed_width(const int *d)
{
    return d[0];
}

static int32_t embed_id(const int *d, int row)
{
    return (int32_t)((row * 7919) % d[1]);
}

static void embed_run(struct backend *b, const int *d, const int32_t *rows, int n, void *out)
{
    struct file_matrix m = matrix_new(d[2], d[1], d[0]);
    struct weight *w;
    int32_t ids[MAX_ROWS];
    for (int i = 0; i < n; i++)
        ids[i] = embed_id(d, rows[i]);
    struct buffers mem = {.b = b};
    size_t bytes = sizeof(float) * (size_t)n * (size_t)d[0];
    float *x = dev_new(&mem, NULL, bytes);
    EXPECT_INT(b->ops->weight_open(b, &w, m.part, m.n_parts, d[0], WEIGHT_TABLE), 0);
    EXPECT_INT(b->ops->embed(b, x, w, dev_new(&mem, ids, sizeof *ids * (size_t)n), n), 0);
    EXPECT_INT(b->ops->download(b, out, x, bytes), 0);
    b->ops->weight_close(b, w);
    dev_free_all(&mem);
    free(m.data);
}

static void embed_want(enum act_type act, const int *d, int row, double *y, double *bound)
{
    float *x = malloc(sizeof *x * (size_t)d[0]);
    (void)act;
    matrix_row(d[2], embed_id(d, row), d[0], x);
    for (int j = 0; j < d[0]; j++) {
        y[j] = (double)x[j];
        bound[j] = 0;
    }
    free(x);
}

/* ---- rmsnorm: d = {dim} ---- */

static int rmsnorm_width(const int *d)
{
    return d[0];
}

static const float norm_eps = 1e-5f;

static void rmsnorm_run(struct backend *b, const int *d, const int32_t *rows, int n, void *out)
{
    struct buffers mem = {.b = b};
    const size_t count = (size_t)n * (size_t)d[0];
    float *x = gather(IN_X, rows, n, d[0]), *w = gather(IN_W, &(int32_t){0}, 1, d[0]);
    void *y = dev_new(&mem, NULL, count * act_size(b->act));
    EXPECT_INT(b->ops->rmsnorm(b, y, dev_new(&mem, x, count * sizeof *x),
                               dev_new(&mem, w, sizeof *w * (size_t)d[0]), n, d[0], norm_eps),
               0);
    EXPECT_INT(b->ops->download(b, out, y, count * act_size(b->act)), 0);
    dev_free_all(&mem);
    free(x);
    free(w);
}

/* The mean of squares is off by dim u at most, half of that after the root; six more roundings. */
static void rmsnorm_want(enum act_type act, const int *d, int row, double *y, double *bound)
{
    const size_t dim = (size_t)d[0];
    double sum = 0;
    for (size_t j = 0; j < dim; j++)
        sum += pow((double)noise(IN_X, (size_t)row * dim + j), 2);
    for (size_t j = 0; j < dim; j++) {
        y[j] = (double)noise(IN_X, (size_t)row * dim + j) * (double)noise(IN_W, j) /
               sqrt(sum / (double)dim + (double)norm_eps);
        bound[j] = fabs(y[j]) * (((double)dim / 2 + 6) * u + rounding(act));
    }
}

/* ---- linear: d = {in, out, tensor type, enum linear_out, update}. With update, the weight (F32)
 * is opened with other numbers, and gets its own by weight_update. ---- */

static int linear_width(const int *d)
{
    return d[1];
}

/* What the weight is opened from is overwritten afterwards: it is a copy. */
static struct weight *linear_weight(struct backend *b, struct buffers *mem, const int *d)
{
    struct file_matrix m = matrix_new(d[2], d[1], d[0]);
    struct weight *w;
    const size_t bytes = tensor_row_bytes(d[2], (size_t)d[0]) * (size_t)d[1];
    const float *update = d[4] ? dev_new(mem, m.data, bytes) : NULL;
    if (update)
        memset(m.data, 0x3f, bytes);
    EXPECT_INT(b->ops->weight_open(b, &w, m.part, m.n_parts, d[0], WEIGHT_LINEAR), 0);
    memset(m.data, SENTINEL_BYTE, bytes);
    free(m.data);
    if (update)
        EXPECT_INT(b->ops->weight_update(b, w, update), 0);
    return w;
}

static void linear_run(struct backend *b, const int *d, const int32_t *rows, int n, void *out)
{
    struct buffers mem = {.b = b};
    const size_t n_x = (size_t)n * (size_t)d[0], n_y = (size_t)n * (size_t)d[1];
    float *x = gather(IN_X, rows, n, d[0]), *y = gather(IN_Y, rows, n, d[1]);
    void *x_act = act_from_float(b->act, x, n_x);
    void *x_dev = dev_new(&mem, x_act, n_x * act_size(b->act));
    float *y_dev = dev_new(&mem, y, n_y * sizeof *y);
    struct weight *w = linear_weight(b, &mem, d);
    EXPECT_INT(b->ops->linear(b, y_dev, (enum linear_out)d[3], x_dev, w, n), 0);
    EXPECT_INT(b->ops->download(b, out, y_dev, n_y * sizeof *y), 0);
    b->ops->weight_close(b, w);
    dev_free_all(&mem);
    free(x);
    free(y);
    free(x_act);
}

/* One matrix is remembered between calls: a case asks for its rows one after the other. */
static const float *linear_matrix(enum act_type act, const int *d)
{
    static int have[4] = {-1};
    static float *w;
    int key[4] = {(int)act, d[0], d[1], d[2]};
    if (memcmp(have, key, sizeof key) == 0)
        return w;
    memcpy(have, key, sizeof key);
    free(w);
    const size_t n = (size_t)d[0] * (size_t)d[1];
    struct file_matrix m = matrix_new(d[2], d[1], d[0]);
    w = malloc(sizeof *w * n);
    dequant(d[2], m.data, w, n);
    for (size_t i = 0; i < n; i++)
        w[i] = as_act(act, w[i]);
    free(m.data);
    return w;
}

static void linear_want(enum act_type act, const int *d, int row, double *y, double *bound)
{
    const size_t in = (size_t)d[0], out = (size_t)d[1];
    const float *w = linear_matrix(act, d);
    for (size_t j = 0; j < out; j++) {
        double sum = d[3] == LINEAR_ADD ? (double)noise(IN_Y, (size_t)row * out + j) : 0;
        double size = fabs(sum);
        for (size_t i = 0; i < in; i++) {
            double p =
                (double)as_act(act, noise(IN_X, (size_t)row * in + i)) * (double)w[j * in + i];
            sum += p;
            size += fabs(p);
        }
        y[j] = sum;
        bound[j] = ((double)in + 1) * u * size;
    }
}

/* ---- swiglu: d = {ffn} ---- */

static int swiglu_width(const int *d)
{
    return d[0];
}

/* Gates reach to where e^-g overflows and underflows. */
static float swiglu_input(const int *d, int row, int j)
{
    float x = noise(IN_X, (size_t)row * 2 * (size_t)d[0] + (size_t)j);
    return j < d[0] ? x * (row % 3 ? 6.0f : 110.0f) : x;
}

static void swiglu_run(struct backend *b, const int *d, const int32_t *rows, int n, void *out)
{
    struct buffers mem = {.b = b};
    const size_t n_y = (size_t)n * (size_t)d[0];
    float *gu = malloc(2 * n_y * sizeof *gu);
    for (int i = 0; i < n; i++)
        for (int j = 0; j < 2 * d[0]; j++)
            gu[(size_t)i * 2 * (size_t)d[0] + (size_t)j] = swiglu_input(d, rows[i], j);
    void *y = dev_new(&mem, NULL, n_y * act_size(b->act));
    EXPECT_INT(b->ops->swiglu(b, y, dev_new(&mem, gu, 2 * n_y * sizeof *gu), n, d[0]), 0);
    EXPECT_INT(b->ops->download(b, out, y, n_y * act_size(b->act)), 0);
    dev_free_all(&mem);
    free(gu);
}

/* e^-g is good to 2u, three more roundings. A result below the smallest normal float may be 0. */
static void swiglu_want(enum act_type act, const int *d, int row, double *y, double *bound)
{
    for (int j = 0; j < d[0]; j++) {
        double g = (double)swiglu_input(d, row, j), up = (double)swiglu_input(d, row, d[0] + j);
        y[j] = g * up / (1 + exp(-g));
        bound[j] = fabs(y[j]) * (6 * u + rounding(act)) + 2e-36;
    }
}

/* ---- attention: d = {heads, kv_heads, head_dim, rope_dim, longest sequence}
 *
 * Three sequences: one of the full length, one that shares its first pages and goes on by itself,
 * and a short one. Tokens are stored in chunks of n, so that one run is a prefill and another a
 * decode. Slots behind a sequence's end hold NaN. A row is a token of a sequence. ---- */

enum { MAX_PAGES = 64, N_SEQ = 3 };

struct layout {
    int length[N_SEQ], first_row[N_SEQ + 1];
    int shared; /* pages of sequence 0 that sequence 1 begins with */
    int32_t page_start[N_SEQ + 1], pages[N_SEQ * MAX_PAGES];
    int n_pages;
};

static struct layout layout_of(const int *d)
{
    struct layout l = {.length = {d[4], d[4] - d[4] / 3, (d[4] + 3) / 4}};
    int used = 0;
    l.shared = l.length[1] / 2 / KV_PAGE;
    for (int s = 0; s < N_SEQ; s++) {
        int n = (l.length[s] + KV_PAGE - 1) / KV_PAGE;
        l.first_row[s + 1] = l.first_row[s] + l.length[s];
        l.page_start[s + 1] = l.page_start[s] + n;
        for (int i = 0; i < n; i++)
            l.pages[l.page_start[s] + i] = s == 1 && i < l.shared ? l.pages[i] : used++;
    }
    for (int i = 0; i < l.page_start[N_SEQ]; i++) /* not in order of position */
        l.pages[i] = used - 1 - l.pages[i];
    l.n_pages = used;
    return l;
}

static int row_seq(const struct layout *l, int row)
{
    return row < l->first_row[1] ? 0 : row < l->first_row[2] ? 1 : 2;
}

static int32_t row_slot(const struct layout *l, int seq, int pos)
{
    return l->pages[l->page_start[seq] + pos / KV_PAGE] * KV_PAGE + pos % KV_PAGE;
}

/* Where sequence 1 shares sequence 0's pages, it has its tokens. */
static int token_row(const struct layout *l, int seq, int pos)
{
    return l->first_row[seq == 1 && pos < l->shared * KV_PAGE ? 0 : seq] + pos;
}

static int qkv_width(const int *d)
{
    return (d[0] + 2 * d[1]) * d[2];
}

/* (longest, rope_dim) cosines and sines; the last table is remembered, as the reference asks for it
 * row by row. */
static const float *rope_table(const int *d)
{
    static int rope_dim, length;
    static float *t;
    if (t && rope_dim == d[3] && length == d[4])
        return t;
    rope_dim = d[3];
    length = d[4];
    t = realloc(t, sizeof *t * (size_t)(rope_dim * length));
    for (int p = 0; p < length; p++)
        for (int i = 0; i < rope_dim; i += 2) {
            double angle = p * pow(100.0, -(double)i / rope_dim);
            t[p * rope_dim + i] = (float)cos(angle);
            t[p * rope_dim + i + 1] = (float)sin(angle);
        }
    return t;
}

/* Store the tokens of rows[0..n); leaves their qkv, with q rotated, in `out` if it is not NULL. */
static void store(struct backend *b, struct kv_store *kv, const int *d, const struct layout *l,
                  const int32_t *rows, int n, bool junk, float *out)
{
    struct buffers mem = {.b = b};
    int32_t pos[MAX_ROWS], slot[MAX_ROWS];
    float *qkv = gather(IN_Q, rows, n, qkv_width(d));
    const float *table = rope_table(d);
    const size_t bytes = sizeof *qkv * (size_t)n * (size_t)qkv_width(d);
    for (int i = 0; i < n; i++) {
        int seq = row_seq(l, rows[i]);
        pos[i] = rows[i] - l->first_row[seq];
        slot[i] = row_slot(l, seq, pos[i]);
        if (junk)
            slot[i] = slot[i] / KV_PAGE * KV_PAGE + KV_PAGE - 1;
    }
    for (size_t i = 0; junk && i < bytes / sizeof *qkv; i++)
        qkv[i] = NAN;
    struct rope_args a = {
        .qkv = dev_new(&mem, qkv, bytes),
        .pos = dev_new(&mem, pos, sizeof *pos * (size_t)n),
        .slot = dev_new(&mem, slot, sizeof *slot * (size_t)n),
        .cos_sin = dev_new(&mem, table, sizeof *table * (size_t)(d[3] * d[4])),
        .heads = d[0],
        .kv_heads = d[1],
        .head_dim = d[2],
        .rope_dim = d[3],
    };
    EXPECT_INT(b->ops->rope_store(b, kv, 1, &a, n), 0);
    if (out)
        EXPECT_INT(b->ops->download(b, out, a.qkv, bytes), 0);
    dev_free_all(&mem);
    free(qkv);
}

/* All tokens of all sequences, `chunk` at a time; first NaN into the last slot of every page. */
static struct kv_store *store_all(struct backend *b, const int *d, const struct layout *l,
                                  int chunk)
{
    struct kv_store *kv;
    int32_t rows[MAX_ROWS];
    EXPECT_INT(b->ops->kv_open(b, &kv, 2, l->n_pages + 2, d[1], d[2]), 0);
    for (int pass = 0; pass < 2; pass++)
        for (int row = 0; row < l->first_row[N_SEQ];) {
            int n = 0;
            for (; n < chunk && row < l->first_row[N_SEQ]; row++) {
                int seq = row_seq(l, row), p = row - l->first_row[seq];
                if (token_row(l, seq, p) == row)
                    rows[n++] = row;
            }
            if (n)
                store(b, kv, d, l, rows, n, pass == 0, NULL);
        }
    return kv;
}

/* Tokens spread over all sequences, each one once. */
static int pick_tokens(const struct op_case *c, int32_t *rows)
{
    struct layout l = layout_of(c->d);
    int total = l.first_row[N_SEQ], n = 0;
    for (int i = 0; i < c->rows && i < total; i++) {
        int row = (int)((long long)i * total / c->rows), seq = row_seq(&l, row);
        if (token_row(&l, seq, row - l.first_row[seq]) == row)
            rows[n++] = row;
    }
    return n;
}

static int rope_width(const int *d)
{
    return qkv_width(d);
}

static void rope_run(struct backend *b, const int *d, const int32_t *rows, int n, void *out)
{
    struct layout l = layout_of(d);
    struct kv_store *kv;
    EXPECT_INT(b->ops->kv_open(b, &kv, 2, l.n_pages, d[1], d[2]), 0);
    store(b, kv, d, &l, rows, n, false, out);
    b->ops->kv_close(b, kv);
}

/* x rotated to its position, in double; pairs are adjacent. */
static void rotate(const int *d, const float *table, int pos, const float *x, double *y)
{
    for (int i = 0; i < d[2]; i++)
        y[i] = (double)x[i];
    for (int i = 0; i < d[3]; i += 2) {
        double c = (double)table[pos * d[3] + i], s = (double)table[pos * d[3] + i + 1];
        y[i] = (double)x[i] * c - (double)x[i + 1] * s;
        y[i + 1] = (double)x[i] * s + (double)x[i + 1] * c;
    }
}

static void rope_want(enum act_type act, const int *d, int row, double *y, double *bound)
{
    struct layout l = layout_of(d);
    float *x = gather(IN_Q, &row, 1, qkv_width(d));
    const float *table = rope_table(d);
    (void)act;
    for (int j = 0; j < qkv_width(d); j++) {
        y[j] = (double)x[j];
        bound[j] = j < d[0] * d[2] ? 4 * u : 0; /* |x|, |cos| <= 1; k and v are only read */
    }
    for (int h = 0; h < d[0]; h++)
        rotate(d, table, row - l.first_row[row_seq(&l, row)], x + h * d[2], y + h * d[2]);
    free(x);
}

static int attend_width(const int *d)
{
    return d[0] * d[2];
}

static float attend_scale(const int *d)
{
    return (float)(1 / sqrt((double)d[2]));
}

static void attend(struct backend *b, const struct kv_store *kv, const int *d,
                   const struct layout *l, const int32_t *rows, int n, void *out)
{
    struct buffers mem = {.b = b};
    int32_t pos[MAX_ROWS], seq[MAX_ROWS];
    float *qkv = gather(IN_Q, rows, n, qkv_width(d));
    const float *table = rope_table(d);
    double *rotated = malloc(sizeof *rotated * (size_t)d[2]);
    const size_t out_bytes = (size_t)(n * attend_width(d)) * act_size(b->act);
    for (int i = 0; i < n; i++) {
        seq[i] = row_seq(l, rows[i]);
        pos[i] = rows[i] - l->first_row[seq[i]];
        for (int h = 0; h < d[0]; h++) {
            float *q = qkv + i * qkv_width(d) + h * d[2];
            rotate(d, table, pos[i], q, rotated);
            for (int j = 0; j < d[2]; j++)
                q[j] = (float)rotated[j];
        }
    }
    struct attend_args a = {
        .out = dev_new(&mem, NULL, out_bytes),
        .qkv = dev_new(&mem, qkv, sizeof *qkv * (size_t)(n * qkv_width(d))),
        .pos = dev_new(&mem, pos, sizeof *pos * (size_t)n),
        .seq = dev_new(&mem, seq, sizeof *seq * (size_t)n),
        .page_start = dev_new(&mem, l->page_start, sizeof l->page_start),
        .pages = dev_new(&mem, l->pages, sizeof *l->pages * (size_t)l->page_start[N_SEQ]),
        .heads = d[0],
        .kv_heads = d[1],
        .head_dim = d[2],
        .scale = attend_scale(d),
    };
    EXPECT_INT(b->ops->attend(b, kv, 1, &a, n), 0);
    EXPECT_INT(b->ops->download(b, out, a.out, out_bytes), 0);
    dev_free_all(&mem);
    free(qkv);
    free(rotated);
}

static void attend_run(struct backend *b, const int *d, const int32_t *rows, int n, void *out)
{
    struct layout l = layout_of(d);
    struct kv_store *kv = store_all(b, d, &l, n);
    attend(b, kv, d, &l, rows, n, out);
    b->ops->kv_close(b, kv);
}

/* A score is off by at most e = 2 (head_dim + 4) u |q|·|k| scale, and r |q|·|k| scale when keys are
 * stored with a rounding r; so a weight by a factor of e^±2e, and a result, whose values are below
 * √2 in size (they are not rotated: below 1), by e^2e - 1, plus the roundings of v, the sum and the
 * output. */
static void attend_want(enum act_type act, const int *d, int row, double *y, double *bound)
{
    const struct layout l = layout_of(d);
    const int seq = row_seq(&l, row), pos = row - l.first_row[seq], hd = d[2];
    const float *table = rope_table(d);
    float *x = gather(IN_Q, &row, 1, qkv_width(d));
    double *q = malloc(sizeof *q * (size_t)hd), *k = malloc(sizeof *k * (size_t)hd);
    double *p = malloc(sizeof *p * (size_t)(pos + 1));
    const double scale = (double)attend_scale(d);
    const double r = act == ACT_BF16 ? u_bf16 : 0;
    for (int h = 0; h < d[0]; h++) {
        const int kv_head = h / (d[0] / d[1]);
        double sum = 0, worst = 0, max = -INFINITY, *out = y + h * hd;
        rotate(d, table, pos, x + h * hd, q);
        for (int t = 0; t <= pos; t++) {
            int from = token_row(&l, seq, t);
            float *kv = gather(IN_Q, &from, 1, qkv_width(d));
            double size = 0;
            rotate(d, table, t, kv + (d[0] + kv_head) * hd, k);
            p[t] = 0;
            for (int i = 0; i < hd; i++) {
                p[t] += q[i] * k[i] * scale;
                size += fabs(q[i] * k[i]) * scale;
            }
            worst = fmax(worst, size);
            max = fmax(max, p[t]);
            free(kv);
        }
        for (int i = 0; i < hd; i++)
            out[i] = 0;
        for (int t = 0; t <= pos; t++) {
            int from = token_row(&l, seq, t);
            float *kv = gather(IN_Q, &from, 1, qkv_width(d));
            double w = exp(p[t] - max);
            sum += w;
            for (int i = 0; i < hd; i++)
                out[i] += w * (double)kv[(d[0] + d[1] + kv_head) * hd + i];
            free(kv);
        }
        double e = worst * (2 * (hd + 4) * u + r);
        for (int i = 0; i < hd; i++) {
            out[i] /= sum;
            bound[h * hd + i] =
                exp(2 * e) - 1 + r + 2 * (pos + 16) * u + rounding(act) * fabs(out[i]);
        }
    }
    free(x);
    free(q);
    free(k);
    free(p);
}

/* Copied pages hold the same keys and values: attention over the copies gives the same bits. */
static void test_kv_copy(struct backend *b)
{
    const int d[6] = {4, 2, 10, 8, 40};
    struct layout l = layout_of(d), moved = l;
    struct kv_store *kv = store_all(b, d, &l, 16);
    int32_t last = l.first_row[1] - 1; /* of sequence 0: its pages are moved behind all others */
    float before[MAX_ROWS], after[MAX_ROWS];
    int32_t from[2] = {l.pages[0], l.pages[1]}, to[2] = {l.n_pages, l.n_pages + 1};
    moved.pages[0] = to[0];
    moved.pages[1] = to[1];
    attend(b, kv, d, &l, &last, 1, before);
    EXPECT_INT(b->ops->kv_copy(b, kv, from, to, 2), 0);
    attend(b, kv, d, &moved, &last, 1, after);
    EXPECT(memcmp(before, after, (size_t)attend_width(d) * act_size(b->act)) == 0);
    b->ops->kv_close(b, kv);
}

/* ---- copy_rows: d = {bytes}, each index given or NULL ---- */

static void test_copy_rows(struct backend *b)
{
    enum { N = 5, WIDE = 7 };
    unsigned char src[N * WIDE], got[N * WIDE];
    const int32_t to[N] = {4, 2, 0, 1, 3}, from[N] = {1, 1, 0, 4, 2};
    for (int i = 0; i < N * WIDE; i++)
        src[i] = (unsigned char)i;
    for (int mask = 0; mask < 4; mask++) {
        struct buffers mem = {.b = b};
        unsigned char *dst = dev_new(&mem, NULL, sizeof got);
        EXPECT_INT(b->ops->copy_rows(b, dst, mask & 1 ? dev_new(&mem, to, sizeof to) : NULL,
                                     dev_new(&mem, src, sizeof src),
                                     mask & 2 ? dev_new(&mem, from, sizeof from) : NULL, N, WIDE),
                   0);
        EXPECT_INT(b->ops->download(b, got, dst, sizeof got), 0);
        for (int i = 0; i < N; i++)
            EXPECT(memcmp(got + (mask & 1 ? to[i] : i) * WIDE,
                          src + (mask & 2 ? from[i] : i) * WIDE, WIDE) == 0);
        dev_free_all(&mem);
    }
}

/* ---- the table ---- */

static const struct op op_embed = {"embed", false, embed_width, embed_run, embed_want, NULL};
static const struct op op_rmsnorm = {"rmsnorm",   true,         rmsnorm_width,
                                     rmsnorm_run, rmsnorm_want, NULL};
static const struct op op_linear = {"linear", false, linear_width, linear_run, linear_want, NULL};
static const struct op op_swiglu = {"swiglu", true, swiglu_width, swiglu_run, swiglu_want, NULL};
static const struct op op_rope = {"rope_store", false,     rope_width,
                                  rope_run,     rope_want, pick_tokens};
static const struct op op_attend = {"attend",   true,        attend_width,
                                    attend_run, attend_want, pick_tokens};

static const struct op_test cases[] = {
    {&op_embed, {9, {33, 50, TENSOR_F16}}},
    {&op_embed, {9, {33, 50, TENSOR_BF16}}},
    {&op_embed, {9, {64, 50, TENSOR_Q8_0}}},
    {&op_embed, {9, {64, 50, TENSOR_Q4_0}}},
    {&op_embed, {9, {64, 50, TENSOR_Q4_1}}},
    {&op_embed, {9, {64, 50, TENSOR_Q5_0}}},
    {&op_embed, {9, {64, 50, TENSOR_Q5_1}}},
    {&op_embed, {9, {512, 50, TENSOR_Q4_K}}},
    {&op_embed, {9, {512, 50, TENSOR_Q5_K}}},
    {&op_embed, {9, {512, 50, TENSOR_Q6_K}}},
    {&op_embed, {40, {6, 5, TENSOR_F32}}},
    {&op_rmsnorm, {5, {1}}},
    {&op_rmsnorm, {3, {6}}},
    {&op_rmsnorm, {40, {47}}},
    {&op_rmsnorm, {257, {576}}},
    {&op_linear, {3, {1, 1, TENSOR_F32, LINEAR_F32}}},
    {&op_linear, {4, {6, 5, TENSOR_F32, LINEAR_ADD}}},
    {&op_linear, {35, {7, 6, TENSOR_F32, LINEAR_F32}}},
    {&op_linear, {9, {44, 70, TENSOR_F16, LINEAR_F32}}},
    {&op_linear, {9, {256, 70, TENSOR_Q6_K, LINEAR_F32}}},
    {&op_linear, {40, {32, 17, TENSOR_Q8_0, LINEAR_ADD}}},
    {&op_linear, {70, {172, 64, TENSOR_F32, LINEAR_ADD}}},
    {&op_linear, {130, {576, 192, TENSOR_Q8_0, LINEAR_F32}}},
    {&op_linear, {33, {1536, 576, TENSOR_Q8_0, LINEAR_ADD}}},
    {&op_linear, {66, {64, 2050, TENSOR_F32, LINEAR_F32}}},
    {&op_linear, {3, {1, 1, TENSOR_F32, LINEAR_F32, true}}},
    {&op_linear, {5, {33, 70, TENSOR_F32, LINEAR_F32, true}}},
    {&op_linear, {40, {172, 64, TENSOR_F32, LINEAR_ADD, true}}},
    {&op_swiglu, {5, {1}}},
    {&op_swiglu, {7, {7}}},
    {&op_swiglu, {30, {172}}},
    {&op_swiglu, {9, {1536}}},
    {&op_rope, {6, {1, 1, 2, 2, 4}}},
    {&op_rope, {60, {9, 3, 64, 64, 33}}},
    {&op_rope, {12, {4, 2, 10, 6, 7}}},
    {&op_attend, {6, {1, 1, 2, 2, 4}}},
    {&op_attend, {7, {3, 3, 3, 2, 4}}},
    {&op_attend, {44, {8, 4, 8, 8, 23}}},
    {&op_attend, {62, {9, 3, 64, 64, 33}}},
    {&op_attend, {62, {4, 2, 10, 6, 33}}},
    {&op_attend, {30, {5, 1, 33, 32, 16}}},
    {&op_attend, {30, {6, 1, 128, 128, 16}}},
    {&op_attend, {300, {4, 1, 32, 32, 600}}},
    {&op_attend, {24, {2, 1, 16, 16, 300}}},
    {&op_attend, {14, {7, 1, 64, 64, 150}}},
    {&op_attend, {5, {10, 1, 40, 40, 35}}},
    {&op_attend, {4, {35, 1, 8, 8, 20}}},
    {&op_attend, {6, {4, 1, 256, 256, 150}}},
    {&op_attend, {5, {3, 1, 512, 512, 20}}},
};
enum { N_CASES = sizeof cases / sizeof *cases };

static void test_others(struct backend *b)
{
    test_kv_copy(b);
    test_copy_rows(b);
    EXPECT(b->calls[OP_LINEAR] > 0 && b->seconds[OP_LINEAR] > 0);
}

/* With .fast rows may depend on their number, but are right. */
static void test_fast(const char *kind)
{
    const struct op_case c = {100, {64, 96, TENSOR_Q8_0, LINEAR_F32}};
    const struct backend_opts o = {.kind = kind, .dtype = "bf16", .threads = 1, .fast = true};
    struct backend *b;
    char why[256];
    int32_t rows[MAX_ROWS];
    const int n = case_rows(&op_linear, &c, rows);
    float *y = malloc(row_bytes(&op_linear, &c, ACT_BF16) * (size_t)n);
    if (backend_open(&b, &o, why, sizeof why)) {
        EXPECT(!"the backend opens");
        free(y);
        return;
    }
    op_linear.run(b, c.d, rows, n, y);
    check_values(&op_linear, &c, b, rows, n, y);
    op_linear.run(b, c.d, rows, 3, y);
    check_values(&op_linear, &c, b, rows, 3, y);
    backend_close(b);
    free(y);
}

int main(int argc, char **argv)
{
    run_everywhere(argc, argv, cases, N_CASES, test_others);
    test_fast(argc > 1 ? argv[1] : "cpu");
    return test_failures();
}
