/* THE contract between the model and a device. A short table of operations, all of them mandatory;
 * the transformer (core/model.c) and the engine are written over it once, and know no device beyond
 * it. Read by C and by C++ (the CUDA files).
 *
 * Preconditions, common to all operations:
 * - One thread uses a backend: the one that opened it, the engine's. Operations are queued in
 * order; only `download` waits.
 * - "dev" pointers come from `alloc` and are not dereferenced by the host (on the CPU they could
 * be). Everything an operation reads or writes is dev memory, unless its comment says host.
 * - Shapes are row-major, (rows, columns), the last index adjacent. n is the number of rows, n
 * >= 1.
 * - "act" is the type of the activations that enter a `linear`: float, or bfloat16 when
 * backend->act says so.
 * - Outputs do not overlap inputs, unless the comment allows it.
 * - A row of any output depends on that row's inputs alone, bit for bit: not on n, not on its
 * place, not on the other rows. This is what makes a request's answer independent of what else the
 * server is doing.
 * - Every operation returns 0, or -1 with backend->why set; after -1 the backend is finished
 * (device failure is sticky): every later call returns -1 too.
 * - -inf is a legal value of log-weights, biases and log twists. NaN is not. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "dequant.h"

#ifdef __cplusplus
extern "C" {
#endif

enum act_type { ACT_F32, ACT_BF16 };

struct backend;
struct weight;   /* a matrix on the device, in the device's own layout; W (out, in) */
struct kv_store; /* keys and values of all layers, in pages */

enum { KV_PAGE = 16 }; /* tokens a page */

/* One horizontal slice of a matrix: `rows` rows of the weight's `in` columns. Host memory; that of
 * a WEIGHT_TABLE is a mapped file, which stays mapped as long as the weight lives, that of a
 * WEIGHT_LINEAR may go when weight_open has returned. Several slices stack to one weight (q, k, v →
 * one matrix). */
struct weight_part {
    const void *data;
    enum tensor_type type;
    int rows;
};
enum weight_use {
    WEIGHT_LINEAR, /* for `linear`: packed once for the device's matrix multiply */
    WEIGHT_TABLE,  /* for `embed`: rows are looked up; the CPU reads them from the mapped file */
};

/* What `linear` does with the product. */
enum linear_out {
    LINEAR_F32, /* y float (n, out)  = x Wᵀ */
    LINEAR_ADD, /* y float (n, out) += x Wᵀ (the residual stream) */
};

/* Rotary embedding tables and head shapes; the same for every layer. */
struct rope_args {
    float *qkv; /* (n, (heads + 2 kv_heads) head_dim): q | k | v; q is rotated in place, k and v are
                   read */
    const int32_t *pos;   /* (n) position of each row */
    const int32_t *slot;  /* (n) where its key and value go: page * KV_PAGE + offset */
    const float *cos_sin; /* (context, rope_dim) : cos, sin of pair i at columns 2i, 2i+1 */
    int heads, kv_heads, head_dim;
    int rope_dim; /* the first rope_dim elements of a head are rotated, as adjacent pairs (2i, 2i+1)
                   */
};

/* Causal attention of n rows over their sequences' pages. A row of position p sees tokens 0..p. */
struct attend_args {
    void *out;        /* act (n, heads head_dim) */
    const float *qkv; /* (n, (heads + 2 kv_heads) head_dim); the q part, already rotated, is read */
    const int32_t *pos;        /* (n) */
    const int32_t *seq;        /* (n) index of the row's sequence in page_start */
    const int32_t *page_start; /* (n_seq + 1) where each sequence's page ids start in `pages` */
    const int32_t *pages;      /* page ids, a sequence's in order of position */
    int heads, kv_heads, head_dim;
    float scale; /* 1/sqrt(head_dim) */
};

/* The prior p0 made from logits, and the sparse part of the twist. One per request.
 * p0 is built in this order: bans and bias, temperature, top-k (a tie at the k-th value keeps the
 * lower ids), top-p (the smallest set whose probability reaches p), renormalise. */
struct prior {
    float temperature;      /* > 0 */
    int top_k;              /* 0: off */
    float top_p;            /* 1: off */
    const int32_t *bias_id; /* dev (n_bias) distinct ids, ascending */
    const float *bias;      /* dev (n_bias) added to their logits; -inf bans */
    int n_bias;
    const int32_t *eos_id; /* dev (n_eos) banned in rows with ban_eos */
    int n_eos;
    const int32_t *psi_id; /* dev (n_psi) distinct ids, ascending */
    const float *psi; /* dev (n_psi) log ψ of these tokens as the next one; 0 for all others */
    int n_psi;
    bool base_proposal; /* draw from p0 although there is a twist */
};

struct propose_row {    /* one row of logits */
    int32_t prior;      /* index into priors */
    int32_t twist;      /* row of propose_args.twist: its dense log ψ; -1: none */
    int32_t ban_eos;    /* 0 or 1 */
    int32_t first_draw; /* its draws are draws[first_draw .. first_draw + n_draws) */
    int32_t n_draws;
};
struct propose_draw {
    uint64_t seed; /* Philox key */
    uint32_t step; /* Philox counter: (step, particle, purpose, lane) */
    uint32_t particle;
    int32_t forced; /* a token whose probabilities are wanted, or -1: draw one */
};
struct propose_out { /* all logs natural; -inf allowed */
    int32_t token;   /* -1 if every token has probability 0 (then lambda = -inf) */
    double log_p0;   /* log p0(token | row) */
    double log_q;    /* log q(token | row); q ∝ p0 ψ, or p0 with base_proposal */
    double log_psi;  /* the token's twist increment (psi of the prior plus the dense row); 0 without
                        a twist */
    double lambda;   /* Λ = log Σ_v p0(v) ψ(v): 0 without a twist */
};
enum { PROPOSE_VOCAB_MAX = 1 << 20 };
struct propose_args {
    float *logits;              /* (n, vocab), overwritten */
    const float *twist;         /* (…, vocab) dense log ψ of the rows that have one, or NULL */
    int vocab;                  /* <= PROPOSE_VOCAB_MAX */
    const struct prior *priors; /* dev */
    const struct propose_row *rows;   /* dev (n) */
    const struct propose_draw *draws; /* dev (n_draws) */
    struct propose_out *out;          /* dev (n_draws) */
    int n_draws;
};

struct top_token {
    int32_t id; /* -1: there is none */
    float logit;
};
enum { TOP_MAX = 20 };
struct top_args {
    const float *logits;              /* (n, vocab) */
    int vocab, k;                     /* k in 1..TOP_MAX */
    const struct propose_row *rows;   /* dev (n) */
    const struct propose_draw *draws; /* dev */
    struct top_token *out; /* dev (n, 1 + k): the forced token of the row's first draw, -1 and -inf
                              if it is drawn, and then the k likeliest tokens in order, the lower
                              id first among equals */
};

/* What stands between the layers of a twist's head, or behind the last. */
enum activation {
    ACTIVATE_RELU,        /* y act = max(x, 0) */
    ACTIVATE_LOG_SIGMOID, /* y float = -log(1 + exp(-x)); y may be x */
};

/* The backward pass of y = x Wᵀ + b for n rows, in float. What is NULL is not wanted. dw and db are
 * added to, each element over the rows in order, whatever the threads are. */
struct linear_grad_args {
    const float *dy; /* (n, out), or with col (n): row i is dy[i] in column col[i], 0 elsewhere */
    const int32_t *col; /* (n) each in [0, out), or NULL */
    const void *x;      /* act (n, in) */
    const float *w;     /* (out, in), row-major: the master copy */
    float *dx;          /* (n, in)   = dY W */
    float *dw;          /* (out, in) += dYᵀ X */
    float *db;          /* (out)     += Σ_i dY_i */
    int in, out;
};

/* One step of Adam (Kingma and Ba 2015) with bias correction, element by element:
 *   m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g²;  w -= rate (m/(1-b1^step)) / (sqrt(v/(1-b2^step)) +
 * eps);  g = 0 */
struct adam_args {
    float *w, *m, *v, *g;
    float rate, b1, b2, eps;
    int step; /* 1 = the first */
};

enum resample_scheme {
    RESAMPLE_SYSTEMATIC,
    RESAMPLE_STRATIFIED,
    RESAMPLE_MULTINOMIAL,
    RESAMPLE_RESIDUAL
};

/* One population to weigh and, if its ESS asks for it, resample. */
struct resample_args {
    const double *log_w; /* dev (k) priorities: unnormalised log-weights; -inf = dead */
    int32_t *ancestor;   /* dev (k) out. Survivors keep their slot: a particle with offspring has
                            ancestor[i] == i; those of the other slots ascend */
    double
        *log_rho; /* dev (k) out: normalised log-weights (-inf allowed), also when not resampled */
    int k;
    enum resample_scheme scheme;
    double ess_threshold; /* resample when ESS < threshold k; exactly 0 never, exactly 1 always */
    bool pinned;          /* slot 0 keeps its particle, by the conditional law of the scheme. Never
                             resampled when that one is dead */
    uint64_t seed;        /* Philox key; the counter is (step, 0, PHILOX_RESAMPLE, lane) */
    uint32_t step;
};
struct resample_out {
    double log_mean;   /* log (1/k) Σ exp log_w; -inf if all are dead */
    double ess;        /* exp(2 LSE(w) - LSE(2w)); 0 if all are dead */
    int32_t resampled; /* 0 or 1; 0: ancestor is the identity. All dead: never */
};

struct backend_ops {
    void (*close)(struct backend *); /* for backend_close alone */

    /* Memory. alloc zeroes, and may be called at start-up and admission only. upload/download copy
     * between host and dev; upload may return before the copy is done (the source is kept unchanged
     * until the next download); download waits for everything queued. */
    int (*alloc)(struct backend *, void **out, size_t bytes);
    void (*release)(struct backend *, void *dev);
    int (*upload)(struct backend *, void *dev, const void *host, size_t bytes);
    int (*download)(struct backend *, void *host, const void *dev, size_t bytes);

    /* W from slices of a file. The slices' columns are all `in`. */
    int (*weight_open)(struct backend *, struct weight **out, const struct weight_part *parts,
                       int n_parts, int in, enum weight_use use);
    void (*weight_close)(struct backend *, struct weight *);

    /* Memory for n_pages pages of KV_PAGE tokens in every layer. */
    int (*kv_open)(struct backend *, struct kv_store **out, int n_layers, int n_pages, int kv_heads,
                   int head_dim);
    void (*kv_close)(struct backend *, struct kv_store *);

    /* x[i] = row ids[i] of the table.  x float (n, in) */
    int (*embed)(struct backend *, float *x, const struct weight *table, const int32_t *ids, int n);

    /* y[i] = x[i] / sqrt(mean(x[i]²) + eps) * w.  y act, x float (n, dim); w float (dim) */
    int (*rmsnorm)(struct backend *, void *y, const float *x, const float *w, int n, int dim,
                   float eps);

    /* y = x Wᵀ, stored as `how` says.  x act (n, in) */
    int (*linear)(struct backend *, float *y, enum linear_out how, const void *x,
                  const struct weight *w, int n);

    /* Rotate q and k of each row to its position; store k and v in its slot. */
    int (*rope_store)(struct backend *, struct kv_store *, int layer, const struct rope_args *,
                      int n);

    /* out[i] = softmax(q kᵀ scale) v over the row's own sequence. */
    int (*attend)(struct backend *, const struct kv_store *, int layer, const struct attend_args *,
                  int n);

    /* y[i,j] = silu(gu[i,j]) * gu[i,ffn+j].  y act (n, ffn); gu float (n, 2 ffn): gate | up */
    int (*swiglu)(struct backend *, void *y, const float *gu, int n, int ffn);

    /* dst[dst_row[i]] = src[src_row[i]], rows of `bytes` bytes; a NULL index means i. Destinations
     * are distinct. */
    int (*copy_rows)(struct backend *, void *dst, const int32_t *dst_row, const void *src,
                     const int32_t *src_row, int n, size_t bytes);

    /* Copy whole pages in every layer: page to[i] = page from[i]. HOST arrays. No page is in both.
     */
    int (*kv_copy)(struct backend *, struct kv_store *, const int32_t *from, const int32_t *to,
                   int n);

    /* Fused: prior, log-normalisers, draws or forced tokens. A draw is a fixed function of its row
     * and its Philox counter. n rows. */
    int (*propose)(struct backend *, const struct propose_args *, int n);

    /* The likeliest tokens of n rows, before `propose` overwrites them. */
    int (*top)(struct backend *, const struct top_args *, int n);

    /* Between layers of a head: y[i] = activation(x[i]), n rows of dim. x float. */
    int (*activate)(struct backend *, void *y, enum activation, const float *x, int n, int dim);

    /* ---- learning: denormal numbers may count as 0 */

    /* A WEIGHT_LINEAR weight anew, from float memory: w dev (out, in), row-major. */
    int (*weight_update)(struct backend *, struct weight *, const float *w);

    int (*linear_grad)(struct backend *, const struct linear_grad_args *, int n);

    /* dx[i,j] = y[i,j] > 0 ? dy[i,j] : 0.  dx may be dy; y act (n, dim): what activate made */
    int (*relu_grad)(struct backend *, float *dx, const float *dy, const void *y, int n, int dim);

    /* The gradient of a proposal's cross-entropy with respect to its log twists: for row i with one
     * forced draw, dy[i,v] = coef[i] (q(v | row i) - [v is the forced token]), q as `propose` has
     * it. coef dev (n), dy dev (n, vocab); logits are overwritten, out is not touched. */
    int (*propose_grad)(struct backend *, const struct propose_args *, const float *coef, float *dy,
                        int n);

    int (*adam)(struct backend *, const struct adam_args *, size_t n);

    /* Weigh n populations and resample those that need it. HOST array of args; out dev (n). */
    int (*resample)(struct backend *, const struct resample_args *, struct resample_out *out,
                    int n);

    /* ---- recording: one launch instead of hundreds, on devices where that counts
     *
     * Between record(key) and record_end() the caller queues operations (no memory, copies between
     * host and dev, or kv_copy) that are the same, with the same arguments, every time that `key`
     * is the same; what differs lies in dev memory. record returns 1 when the device has replayed
     * what it recorded before: then neither the operations nor record_end are to be called; 0: call
     * them; -1 failure. Only where backend->records is set; key >= 0. */
    int (*record)(struct backend *, int key);
    int (*record_end)(struct backend *);
};

enum backend_op {
    OP_EMBED,
    OP_RMSNORM,
    OP_LINEAR,
    OP_ROPE_STORE,
    OP_ATTEND,
    OP_SWIGLU,
    OP_COPY_ROWS,
    OP_KV_COPY,
    OP_PROPOSE,
    OP_TOP,
    OP_RESAMPLE,
    OP_ACTIVATE,
    OP_WEIGHT_UPDATE,
    OP_LINEAR_GRAD,
    OP_RELU_GRAD,
    OP_PROPOSE_GRAD,
    OP_ADAM,
    OP_REPLAY, /* all the operations of a recording */
    OP_COUNT
};
extern const char *const backend_op_names[OP_COUNT]; /* "embed", "rmsnorm", … */

struct backend {
    const struct backend_ops *ops;
    const char *name; /* "cpu" or "cuda" */
    char device[128]; /* in words, for logs: "2 threads, AVX-512, AMX bf16" */
    enum act_type act;
    bool records;             /* `record` is worth calling: steps are padded to few sizes for it */
    bool own_memory;          /* a device's own, ours alone; else it is the machine's */
    size_t memory;            /* bytes: what is free of a device's own when it is opened, else all
                                 that the machine has; 0: unknown */
    char why[256];            /* the first failure, one line */
    char fallback[256];       /* why "auto" did not take a GPU; else empty */
    double seconds[OP_COUNT]; /* time spent in each operation since the start, on a device up to the
                                 last download; the engine reads it */
    uint64_t calls[OP_COUNT];
};

struct backend_opts {
    const char *kind;  /* "auto", "cpu", "cuda" */
    const char *dtype; /* "auto", "bf16", "f32" */
    int threads;       /* CPU threads; 0: one per usable core */
    bool fast;         /* rows may depend on their number, where that is faster: GPU products */
};

/* Open a backend. Returns 0, or -1 with a one-line reason in why. "auto" takes a GPU when its
 * plug-in and a device are there, else the CPU. */
int backend_open(struct backend **out, const struct backend_opts *, char *why, size_t why_size);
void backend_close(
    struct backend *); /* NULL is fine; weights, stores and memory are released before it */

static inline size_t act_size(enum act_type act) /* bytes of one element */
{
    return act == ACT_BF16 ? 2 : 4;
}

#ifdef __cplusplus
}
#endif
