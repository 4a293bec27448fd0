/* The model on a tiny file made here: what it refuses, and that a log-probability does not depend,
 * bit for bit, on how its row got there: one chunk or several, a fork, alone or in a crowd. */
#include "../../core/model.h"

#include "../../kernels/philox.h"
#include "../check.h"
#include "../gguf_write.h"
#include "../model_run.h"

enum {
    DIM = 40,
    LAYERS = 3,
    HEADS = 6, /* heads * head_dim is not dim */
    KV_HEADS = 2,
    HEAD_DIM = 8,
    ROPE_DIM = 6,
    FFN = 56,
    VOCAB = 70,
    CONTEXT = 256,
};

/* One deviation from the good file. */
struct flaw {
    const char *key; /* metadata with another value */
    uint32_t value;
    const char *text;           /* the value is a string, … */
    float real;                 /* … or a float, when not 0 */
    const char *drop, *reshape; /* a tensor that is missing, or has a row too many */
    const char *extra;          /* a tensor too many, of 4 elements */
    bool tied, scaled;          /* without output.weight; with rope_freqs.weight */
};

struct file {
    struct gguf_write w;
    const struct flaw *flaw;
    uint32_t draws;
};

static bool same(const char *a, const char *b)
{
    return a && b && strcmp(a, b) == 0;
}

static void key_u32(struct file *f, const char *key, uint32_t value)
{
    const struct flaw *flaw = f->flaw;
    if (!same(flaw->key, key))
        gguf_write_u32(&f->w, key, value);
}

static float uniform(struct file *f)
{
    return (float)philox4x32(3, f->draws++, 0, 0, 0).v[0] * 0x1p-31f - 1;
}

/* Random values around `center`, spread so that activations keep their size. */
static void tensor(struct file *f, const char *name, int in, int out, float center, float spread)
{
    static float data[VOCAB * (FFN + 1)];
    if (same(f->flaw->drop, name))
        return;
    int rows = out + same(f->flaw->reshape, name);
    for (int i = 0; i < in * rows; i++)
        data[i] = center + spread * uniform(f);
    gguf_write_tensor(&f->w, name, TENSOR_F32, rows > 1 ? 2 : 1, (int64_t[]){in, rows}, data,
                      (size_t)(in * rows) * sizeof *data);
}

static void write_layer(struct file *f, int layer)
{
    static const struct {
        const char *name;
        int in, out;
    } all[] = {
        {"attn_q", DIM, HEADS * HEAD_DIM},
        {"attn_k", DIM, KV_HEADS * HEAD_DIM},
        {"attn_v", DIM, KV_HEADS * HEAD_DIM},
        {"attn_output", HEADS * HEAD_DIM, DIM},
        {"ffn_gate", DIM, FFN},
        {"ffn_up", DIM, FFN},
        {"ffn_down", FFN, DIM},
        {"attn_norm", DIM, 1},
        {"ffn_norm", DIM, 1},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        char name[64];
        snprintf(name, sizeof name, "blk.%d.%s.weight", layer, all[i].name);
        if (all[i].out == 1)
            tensor(f, name, all[i].in, 1, 1, 0.3f);
        else
            tensor(f, name, all[i].in, all[i].out, 0, 0.5f);
    }
}

static void write_flaw(struct file *f)
{
    const struct flaw *flaw = f->flaw;
    if (flaw->key && flaw->text)
        gguf_write_string(&f->w, flaw->key, flaw->text);
    else if (flaw->key && flaw->real != 0)
        gguf_write_f32(&f->w, flaw->key, flaw->real);
    else if (flaw->key)
        gguf_write_u32(&f->w, flaw->key, flaw->value);
    if (flaw->extra)
        tensor(f, flaw->extra, 4, 1, 0, 1);
    if (flaw->scaled)
        tensor(f, "rope_freqs.weight", ROPE_DIM / 2, 1, 2, 0.5f);
}

static void write_model(struct buf *out, const struct flaw *flaw)
{
    struct file f = {.flaw = flaw};
    if (!same(flaw->key, "general.architecture"))
        gguf_write_string(&f.w, "general.architecture", "llama");
    key_u32(&f, "llama.embedding_length", DIM);
    key_u32(&f, "llama.block_count", LAYERS);
    key_u32(&f, "llama.feed_forward_length", FFN);
    key_u32(&f, "llama.context_length", CONTEXT);
    key_u32(&f, "llama.attention.head_count", HEADS);
    key_u32(&f, "llama.attention.head_count_kv", KV_HEADS);
    key_u32(&f, "llama.attention.key_length", HEAD_DIM);
    key_u32(&f, "llama.attention.value_length", HEAD_DIM);
    key_u32(&f, "llama.rope.dimension_count", ROPE_DIM);
    tensor(&f, "token_embd.weight", DIM, VOCAB, 0, 1);
    for (int i = 0; i < LAYERS; i++)
        write_layer(&f, i);
    tensor(&f, "output_norm.weight", DIM, 1, 1, 0.3f);
    if (!flaw->tied)
        tensor(&f, "output.weight", DIM, VOCAB, 0, 1);
    write_flaw(&f);
    gguf_write_end(&f.w, out);
}

/* ---- refusals ---- */

static const struct {
    struct flaw flaw;
    const char *says;
} refusals[] = {
    {{.key = "general.architecture", .text = "qwen2"}, "architecture \"qwen2\" is not supported"},
    {{.key = "llama.embedding_length"}, "llama.embedding_length: 0 is not in 1..65536"},
    {{.key = "llama.embedding_length", .text = "big"},
     "llama.embedding_length is missing or not a number"},
    {{.key = "llama.block_count", .value = 4000}, "llama.block_count: 4000 is not in 1..1024"},
    {{.key = "llama.block_count", .value = 4}, "tensor blk.3.attn_norm.weight is missing"},
    {{.key = "llama.block_count", .value = 2},
     "tensor blk.2.attn_q.weight is not one of a llama model this program knows"},
    {{.key = "llama.attention.head_count_kv", .value = 4},
     "6 attention heads do not share 4 key heads evenly"},
    {{.key = "llama.attention.head_count_kv", .value = 7},
     "llama.attention.head_count_kv: 7 is not in 1..6"},
    {{.key = "llama.attention.value_length", .value = 4},
     "keys of 8 and values of 4 are not supported"},
    {{.key = "llama.rope.dimension_count", .value = 5}, "llama.rope.dimension_count: 5 is odd"},
    {{.key = "llama.rope.dimension_count", .value = 10},
     "llama.rope.dimension_count: 10 is not in 1..8"},
    {{.key = "llama.rope.freq_base", .real = -1},
     "llama.rope.freq_base: -1 is not a positive number"},
    {{.key = "llama.rope.scaling.factor", .real = NAN},
     "llama.rope.scaling.factor: nan is not a positive number"},
    {{.key = "llama.attention.layer_norm_rms_epsilon", .real = INFINITY},
     "llama.attention.layer_norm_rms_epsilon: inf is not a positive number"},
    {{.key = "llama.rope.scaling.type", .text = "yarn"},
     "llama.rope.scaling.type: \"yarn\" is not supported"},
    {{.drop = "token_embd.weight"}, "tensor token_embd.weight is missing"},
    {{.drop = "output_norm.weight"}, "tensor output_norm.weight is missing"},
    {{.drop = "blk.1.ffn_up.weight"}, "tensor blk.1.ffn_up.weight is missing"},
    {{.reshape = "blk.2.ffn_down.weight"},
     "tensor blk.2.ffn_down.weight is (56, 41, 1, 1), not (56, 40) as the metadata says"},
    {{.reshape = "blk.0.attn_norm.weight"},
     "tensor blk.0.attn_norm.weight is (40, 2, 1, 1), not (40, 1) as the metadata says"},
    {{.extra = "blk.0.attn_q.bias"},
     "tensor blk.0.attn_q.bias is not one of a llama model this program knows"},
    {{.extra = "blk.99999999999.attn_q.weight"},
     "tensor blk.99999999999.attn_q.weight is not one of a llama model this program knows"},
    {{.extra = "blk."}, "tensor blk. is not one of a llama model this program knows"},
};

static void test_refusals(void)
{
    for (size_t i = 0; i < sizeof refusals / sizeof *refusals; i++) {
        struct buf file = {0};
        struct gguf *g;
        struct err err = {0};
        struct model_config c = {.dim = -1};
        char want[400];
        write_model(&file, &refusals[i].flaw);
        run_must(gguf_open_memory(&g, file.data, file.len, &err), &err);
        EXPECT_INT(model_config_read(&c, g, "dir/a.gguf", &err), -1);
        snprintf(want, sizeof want, "dir/a.gguf: %s", refusals[i].says);
        EXPECT_STR(err.msg, want);
        EXPECT_INT(err.code, ERR_FILE);
        EXPECT_INT(c.dim, -1);
        gguf_close(g);
        buf_free(&file);
    }
}

static void test_config(void)
{
    static const struct flaw named = {.key = "general.name", .text = "A B"}, plain = {0},
                             control = {.key = "general.name", .text = "A\nB"};
    const struct flaw *all[] = {&named, &plain, &control};
    static const char *const names[] = {"A B", "a-1", "a-1"};
    for (int i = 0; i < 3; i++) {
        struct buf file = {0};
        struct gguf *g;
        struct err err;
        struct model_config c;
        write_model(&file, all[i]);
        run_must(gguf_open_memory(&g, file.data, file.len, &err), &err);
        run_must(model_config_read(&c, g, "dir/a-1.gguf", &err), &err);
        EXPECT_STR(c.name, names[i]);
        EXPECT_INT(c.head_dim, HEAD_DIM);
        EXPECT_INT(c.vocab, VOCAB);
        EXPECT_INT(c.parameters,
                   2 * DIM * VOCAB + DIM +
                       LAYERS * DIM *
                           (2 + 2 * HEADS * HEAD_DIM + 2 * KV_HEADS * HEAD_DIM + 3 * FFN));
        EXPECT_NEAR(c.norm_eps, 1e-5, 1e-12);
        EXPECT_NEAR(c.rope_base, 10000, 0);
        gguf_close(g);
        buf_free(&file);
    }
}

static void test_padded_rows(void)
{
    static const int sizes[] = {1,  2,   4,   8,   16,  24,  32,  48, 64,
                                96, 128, 192, 256, 384, 512, 640, 768};
    int at = 0;
    for (int n = 1; n <= 700; n++) {
        at += n > sizes[at];
        EXPECT_INT(batch_padded_rows(n, 768), sizes[at]);
        EXPECT_INT(batch_padded_rows(n, n), n);
    }
}

/* ---- one row, many ways ---- */

enum { LENGTH = 50, ASKED = 4, CROWD = 100, ROWS = CROWD + LENGTH };

static void random_tokens(int32_t *tokens, int n, uint32_t stream)
{
    for (int i = 0; i < n; i++)
        tokens[i] = (int32_t)(philox4x32(stream, (uint32_t)i, 1, 0, 0).v[0] % VOCAB);
}

/* log p of four tokens after each of the rows hidden..hidden + n of the store. */
static void ask(struct run *r, int hidden, int n, double *log_p)
{
    int32_t ids[ROWS * ASKED];
    struct propose_out out[ROWS * ASKED];
    random_tokens(ids, n * ASKED, 77);
    run_propose(r, RUN_PLAIN, hidden, n, ASKED, ids, out);
    for (int i = 0; i < n * ASKED; i++) {
        EXPECT(out[i].log_p0 < 0 && out[i].log_p0 > -60);
        log_p[i] = out[i].log_p0;
    }
}

static void expect_same(const double *got, const double *want, int rows)
{
    EXPECT(memcmp(got, want, (size_t)(rows * ASKED) * sizeof *got) == 0);
}

static void in_chunks(struct run *r, const int32_t *tokens, int chunk, const double *want)
{
    double got[LENGTH * ASKED];
    struct kv_seq s = run_seq(r);
    for (int i = 0; i < LENGTH; i += chunk) {
        int n = LENGTH - i < chunk ? LENGTH - i : chunk;
        run_add(r, &s, tokens + i, n, n, i);
        run_forward(r);
    }
    ask(r, 0, LENGTH, got);
    expect_same(got, want, LENGTH);
    run_drop(r, &s);
}

/* Only some rows wanted, and first chunks of which none is. */
static void few_wanted(struct run *r, const int32_t *tokens, const double *want)
{
    double got[LENGTH * ASKED];
    struct kv_seq s = run_seq(r);
    run_add(r, &s, tokens, 20, 0, 0);
    run_forward(r);
    run_add(r, &s, tokens + 20, 13, 0, 0);
    run_forward(r);
    run_add(r, &s, tokens + 33, LENGTH - 33, 2, LENGTH - 2);
    run_forward(r);
    ask(r, 0, LENGTH, got); /* the first rows are those of the call before */
    expect_same(got, want, LENGTH);
    run_drop(r, &s);
}

/* Forks at every length, which then take the same tokens: pages shared and copied. */
static void by_forks(struct run *r, const int32_t *tokens, const double *want)
{
    double got[LENGTH * ASKED];
    int32_t other = 1;
    struct kv_seq trunk = run_seq(r), fork = run_seq(r);
    for (int i = 0; i < LENGTH; i++) {
        kv_truncate(r->pool, &fork, 0);
        kv_fork(r->pool, &fork, &trunk, i);
        run_add(r, &fork, &other, 1, 0, 0); /* the fork goes elsewhere, and first */
        run_add(r, &trunk, tokens + i, 1, 1, i);
        run_forward(r);
    }
    ask(r, 0, LENGTH, got);
    expect_same(got, want, LENGTH);
    kv_truncate(r->pool, &fork, 0);
    kv_fork(r->pool, &fork, &trunk, 21);
    run_add(r, &fork, tokens + 21, LENGTH - 21, LENGTH - 21, 21);
    run_forward(r);
    ask(r, 0, LENGTH, got);
    expect_same(got, want, LENGTH);
    run_drop(r, &fork);
    run_drop(r, &trunk);
}

/* The text in the middle of the batch, among a hundred sequences of other tokens. */
static void in_a_crowd(struct run *r, const int32_t *tokens, const double *want)
{
    double got[ROWS * ASKED];
    int32_t other[CROWD];
    struct kv_seq s = run_seq(r), crowd[CROWD];
    random_tokens(other, CROWD, 5);
    for (int i = 0; i < CROWD; i++) {
        crowd[i] = run_seq(r);
        if (i == CROWD / 2)
            run_add(r, &s, tokens, LENGTH, LENGTH, 0);
        run_add(r, &crowd[i], other + i, 1, 1, LENGTH + i);
    }
    run_forward(r);
    ask(r, 0, ROWS, got); /* more draws a call, too */
    expect_same(got, want, LENGTH);
    for (int i = 0; i < CROWD; i++)
        run_drop(r, &crowd[i]);
    run_drop(r, &s);
}

/* padded: as if the backend recorded, whichever it is. */
static void test_one_row_many_ways(const char *dtype, bool padded)
{
    static const struct flaw as_is = {0};
    struct buf file = {0};
    struct gguf *g;
    struct err err;
    struct run r;
    int32_t tokens[LENGTH];
    double want[LENGTH * ASKED];
    write_model(&file, &as_is);
    run_must(gguf_open_memory(&g, file.data, file.len, &err), &err);
    run_open_backend(&r, dtype);
    r.b->records |= padded;
    run_open_model(&r, g, ROWS, ROWS * ASKED, 2 * CROWD);
    random_tokens(tokens, LENGTH, 4);
    struct kv_seq s = run_seq(&r);
    run_add(&r, &s, tokens, LENGTH, LENGTH, 0);
    run_forward(&r);
    ask(&r, 0, LENGTH, want);
    run_drop(&r, &s);
    static const int chunks[] = {1, 3, 7, 16, 49};
    for (size_t i = 0; i < sizeof chunks / sizeof *chunks; i++)
        in_chunks(&r, tokens, chunks[i], want);
    few_wanted(&r, tokens, want);
    by_forks(&r, tokens, want);
    in_a_crowd(&r, tokens, want);
    EXPECT_INT(kv_pages_free(r.pool), 2 * CROWD);
    run_close(&r);
    gguf_close(g);
    buf_free(&file);
}

/* ---- against the formulas, in double ---- */

/* The forward pass as one would write it on a blackboard, over the whole text at every position. */
struct naive {
    const struct gguf *g;
    double position_scale, factor[ROPE_DIM / 2];
    double x[LENGTH][DIM], q[LENGTH][HEADS * HEAD_DIM];
    double k[LENGTH][KV_HEADS * HEAD_DIM], v[LENGTH][KV_HEADS * HEAD_DIM];
};

static const float *weights(const struct naive *m, int layer, const char *name)
{
    char full[64];
    if (layer < 0)
        snprintf(full, sizeof full, "%s.weight", name);
    else
        snprintf(full, sizeof full, "blk.%d.%s.weight", layer, name);
    const struct gguf_tensor *t = gguf_tensor(m->g, full);
    return t ? t->data : NULL;
}

static void multiply(double *y, const float *w, const double *x, int in, int out)
{
    for (int i = 0; i < out; i++) {
        y[i] = 0;
        for (int j = 0; j < in; j++)
            y[i] += (double)w[i * in + j] * x[j];
    }
}

static void norm(double *y, const double *x, const float *w)
{
    double sum = 0;
    for (int i = 0; i < DIM; i++)
        sum += x[i] * x[i];
    for (int i = 0; i < DIM; i++)
        y[i] = x[i] / sqrt(sum / DIM + 1e-5) * (double)w[i];
}

static void rotate(const struct naive *m, double *heads, int n_heads, int pos)
{
    for (int h = 0; h < n_heads; h++) {
        for (int i = 0; i < ROPE_DIM / 2; i++) {
            double *pair = heads + h * HEAD_DIM + 2 * i, a = pair[0], b = pair[1];
            double angle = pos / m->position_scale * pow(10000, -2.0 * i / ROPE_DIM) / m->factor[i];
            pair[0] = a * cos(angle) - b * sin(angle);
            pair[1] = a * sin(angle) + b * cos(angle);
        }
    }
}

static double dot(const double *a, const double *b)
{
    double sum = 0;
    for (int i = 0; i < HEAD_DIM; i++)
        sum += a[i] * b[i];
    return sum;
}

static void naive_attention(struct naive *m, int layer, int n)
{
    double h[DIM], out[HEADS * HEAD_DIM], y[DIM];
    for (int t = 0; t < n; t++) {
        norm(h, m->x[t], weights(m, layer, "attn_norm"));
        multiply(m->q[t], weights(m, layer, "attn_q"), h, DIM, HEADS * HEAD_DIM);
        multiply(m->k[t], weights(m, layer, "attn_k"), h, DIM, KV_HEADS * HEAD_DIM);
        multiply(m->v[t], weights(m, layer, "attn_v"), h, DIM, KV_HEADS * HEAD_DIM);
        rotate(m, m->q[t], HEADS, t);
        rotate(m, m->k[t], KV_HEADS, t);
    }
    for (int t = 0; t < n; t++) {
        memset(out, 0, sizeof out);
        for (int head = 0; head < HEADS; head++) {
            int kv = head / (HEADS / KV_HEADS) * HEAD_DIM;
            double p[LENGTH], sum = 0;
            for (int s = 0; s <= t; s++) {
                p[s] = exp(dot(m->q[t] + head * HEAD_DIM, m->k[s] + kv) / sqrt(HEAD_DIM));
                sum += p[s];
            }
            for (int s = 0; s <= t; s++)
                for (int i = 0; i < HEAD_DIM; i++)
                    out[head * HEAD_DIM + i] += p[s] / sum * m->v[s][kv + i];
        }
        multiply(y, weights(m, layer, "attn_output"), out, HEADS * HEAD_DIM, DIM);
        for (int i = 0; i < DIM; i++)
            m->x[t][i] += y[i];
    }
}

static void naive_mlp(struct naive *m, int layer, int n)
{
    double h[DIM], gate[FFN], up[FFN], y[DIM];
    for (int t = 0; t < n; t++) {
        norm(h, m->x[t], weights(m, layer, "ffn_norm"));
        multiply(gate, weights(m, layer, "ffn_gate"), h, DIM, FFN);
        multiply(up, weights(m, layer, "ffn_up"), h, DIM, FFN);
        for (int i = 0; i < FFN; i++)
            gate[i] *= up[i] / (1 + exp(-gate[i]));
        multiply(y, weights(m, layer, "ffn_down"), gate, FFN, DIM);
        for (int i = 0; i < DIM; i++)
            m->x[t][i] += y[i];
    }
}

/* log p of every next token after the text. */
static void naive_log_p(struct naive *m, const int32_t *tokens, int n, double log_p[VOCAB])
{
    double h[DIM], sum = 0;
    const float *embd = weights(m, -1, "token_embd"), *head = weights(m, -1, "output");
    for (int t = 0; t < n; t++)
        for (int i = 0; i < DIM; i++)
            m->x[t][i] = (double)embd[tokens[t] * DIM + i];
    for (int layer = 0; layer < LAYERS; layer++) {
        naive_attention(m, layer, n);
        naive_mlp(m, layer, n);
    }
    norm(h, m->x[n - 1], weights(m, -1, "output_norm"));
    multiply(log_p, head ? head : embd, h, DIM, VOCAB);
    for (int i = 0; i < VOCAB; i++)
        sum += exp(log_p[i]);
    for (int i = 0; i < VOCAB; i++)
        log_p[i] -= log(sum);
}

static void expect_formulas(const struct flaw *flaw, const char *dtype, double mean_gap)
{
    static struct naive m;
    struct buf file = {0};
    struct gguf *g;
    struct err err;
    struct run r;
    int32_t tokens[LENGTH], ids[VOCAB];
    struct propose_out out[VOCAB];
    double want[VOCAB], gap = 0;
    write_model(&file, flaw);
    run_must(gguf_open_memory(&g, file.data, file.len, &err), &err);
    m = (struct naive){.g = g, .position_scale = 1};
    if (same(flaw->key, "llama.rope.scaling.factor"))
        m.position_scale = (double)flaw->real;
    const float *factor = weights(&m, -1, "rope_freqs");
    for (int i = 0; i < ROPE_DIM / 2; i++)
        m.factor[i] = factor ? (double)factor[i] : 1;
    random_tokens(tokens, LENGTH, 4);
    naive_log_p(&m, tokens, LENGTH, want);

    run_open(&r, g, dtype, LENGTH, VOCAB, 16);
    struct kv_seq s = run_seq(&r);
    run_add(&r, &s, tokens, LENGTH, 1, 0);
    run_forward(&r);
    for (int i = 0; i < VOCAB; i++)
        ids[i] = i;
    run_propose(&r, RUN_PLAIN, 0, 1, VOCAB, ids, out);
    for (int i = 0; i < VOCAB; i++)
        gap += fabs(out[i].log_p0 - want[i]) / VOCAB;
    EXPECT_NEAR(gap, 0, mean_gap);
    run_drop(&r, &s);
    run_close(&r);
    gguf_close(g);
    buf_free(&file);
}

static void test_formulas(void)
{
    static const struct flaw variants[] = {
        {0},
        {.tied = true},
        {.scaled = true},
        {.key = "llama.rope.scaling.factor", .real = 4},
        {.key = "llama.rope.scaling.type", .text = "none"},
    };
    for (size_t i = 0; i < sizeof variants / sizeof *variants; i++) {
        expect_formulas(&variants[i], "f32", 5e-5);
        expect_formulas(&variants[i], "bf16", 0.15); /* weights and logits here are large */
    }
}

static void test_bad_rope_factors(void)
{
    struct buf file = {0};
    struct gguf *g;
    struct err err;
    struct run r = {0};
    static const struct flaw scaled = {.scaled = true};
    write_model(&file, &scaled);
    memset(file.data + file.len - ROPE_DIM / 2 * sizeof(float), 0, sizeof(float));
    run_must(gguf_open_memory(&g, file.data, file.len, &err), &err);
    run_must(model_config_read(&r.c, g, "x", &err), &err);
    struct backend_opts backend = {.kind = test_backend(), .dtype = "f32", .threads = 1};
    CHECK(backend_open(&r.b, &backend, err.msg, sizeof err.msg) == 0);
    struct model_opts opts = {8, 8, 8, CONTEXT, false};
    EXPECT_INT(model_open(&r.m, r.b, g, &r.c, &opts, &err), -1);
    EXPECT_STR(err.msg, "tensor rope_freqs.weight holds 0");
    EXPECT(r.m == NULL);
    backend_close(r.b);
    gguf_close(g);
    buf_free(&file);
}

int main(void)
{
    test_refusals();
    test_config();
    test_padded_rows();
    for (int padded = 0; padded < 2; padded++) {
        test_one_row_many_ways("f32", padded);
        test_one_row_many_ways("bf16", padded);
    }
    test_formulas();
    test_bad_rope_factors();
    return test_failures();
}
