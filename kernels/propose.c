/* Fused: a row of logits to its prior p0, its proposal q ∝ p0 ψ, and draws from either.
 *
 * A row is worked on in blocks that stay in the first-level cache. One pass gives each block's
 * maximum and, in units of it, its sum of exponentials; put together in double these are the
 * log-sum-exp, and they are all that a draw needs: the uniform picks a block, then a token within
 * it, by the inverse of the cumulative distribution in order of ids. Only the picked block is read
 * again. Blocks are fixed by the vocabulary, so a draw depends on its row and its uniform alone.
 *
 * Top-k and top-p keep the first so many tokens in the order of falling logits, lower ids first
 * among equals: they are a threshold on the logits and the last id that is kept at it. The
 * threshold is searched by bisection over the floats between two bounds, counting or weighing what
 * lies above; nothing is sorted. What falls below is overwritten by -inf.
 *
 * Precision: values within a block are float, relative to the block's maximum; sums across blocks
 * are double. Logs are off by at most 1e-5 max(1, |log|) from those of exact arithmetic on the same
 * logits, and are of the very numbers that the draw used. */
#include <float.h>
#include <math.h>
#include <stdbool.h>

#include "cpu_ops.h"
#include "num.h"
#include "philox.h"

enum {
    BLOCK = 512, /* tokens; a multiple of VF */
    BLOCKS_MAX = PROPOSE_VOCAB_MAX / BLOCK,
    CANDIDATES_MAX = 16384, /* for a threshold; a flatter row is searched as a whole */
};

/* A distribution over the blocks. A token's value is the log of its share, in units of its block.
 */
struct blocks {
    float max[BLOCKS_MAX];   /* what values are relative to; -inf: the block is empty */
    float sum[BLOCKS_MAX];   /* Σ exp(value) */
    float unit[BLOCKS_MAX];  /* log of the block's unit, relative to the largest; <= 0 */
    float mass[BLOCKS_MAX];  /* sum exp(unit) */
    double total, log_total; /* of mass; 0 and -inf if nothing is possible */
    double top;              /* the largest log unit */
};

/* A row at work. */
struct row {
    float *x;           /* (vocab) logits */
    const float *twist; /* (vocab) dense log ψ, or NULL */
    const struct prior *prior;
    int vocab, n_blocks;
    float inv_t;
    bool twisted;
    struct blocks p; /* max is of x, a value is (x - max) / temperature */
    struct blocks q; /* max is of p's value + log ψ, a value is that sum - max */
};

static int block_size(const struct row *r, int b)
{
    int left = r->vocab - b * BLOCK;
    return left < BLOCK ? left : BLOCK;
}

/* The last n % VF of n numbers, -inf in the other lanes. */
static vf load_tail(const float *x, int n)
{
    return vf_load_part(x + n / VF * VF, n % VF, -INFINITY);
}

static float maximum(const float *x, int n)
{
    vf max = load_tail(x, n);
    for (int i = 0; i + VF <= n; i += VF)
        max = vf_max(max, vf_load(x + i));
    return vf_hmax(max);
}

/* A maximum that can be subtracted: -inf less this is -inf. */
static float anchor(float max)
{
    return max > -FLT_MAX ? max : -FLT_MAX;
}

/* Σ exp((x - max) scale); 0 for a max of -inf. */
static float sum_exp(const float *x, int n, float max, float scale)
{
    vf top = vf_set(anchor(max)), sum = vf_exp_neg((load_tail(x, n) - top) * scale);
    for (int i = 0; i + VF <= n; i += VF)
        sum += vf_exp_neg((vf_load(x + i) - top) * scale);
    return vf_sum(sum);
}

/* The same for a whole block, and on the way the maximum of the whole block behind it: its memory
 * is fetched while the exponentials keep the processor busy. The prefetch, 8 KiB ahead, brings a
 * row that is in no cache from 2 times to 1.3 times the time of merely reading it. */
static float sum_exp_ahead(const float *x, float max, float scale, float *next_max)
{
    vf top = vf_set(anchor(max)), sum = vf_set(0), next = vf_set(-INFINITY);
    for (int i = 0; i < BLOCK; i += VF) {
        sum += vf_exp_neg((vf_load(x + i) - top) * scale);
        next = vf_max(next, vf_load(x + BLOCK + i));
        __builtin_prefetch(x + 4 * BLOCK + i);
    }
    *next_max = vf_hmax(next);
    return vf_sum(sum);
}

/* Put the blocks together, given the logs of their units divided by scale. */
static void add_up(struct blocks *s, const float *level, int n_blocks, float scale)
{
    float top = maximum(level, n_blocks);
    s->total = 0;
    for (int i = 0; top > -INFINITY && i < n_blocks; i += VF) {
        int n = n_blocks - i < VF ? n_blocks - i : VF;
        vf unit = (vf_load_part(level + i, n, -INFINITY) - top) * scale;
        vf mass = vf_exp_neg(unit) * vf_load_part(s->sum + i, n, 0);
        vf_store_part(s->unit + i, unit, n);
        vf_store_part(s->mass + i, mass, n);
        for (int j = i; j < i + n; j++)
            s->total += s->mass[j];
    }
    s->top = (double)top * scale;
    s->log_total = s->total > 0 ? log(s->total) : -INFINITY;
}

/* ---- the prior ---- */

static void add_bias(const struct row *r, bool ban_eos)
{
    for (int i = 0; i < r->prior->n_bias; i++)
        r->x[r->prior->bias_id[i]] += r->prior->bias[i];
    for (int i = 0; ban_eos && i < r->prior->n_eos; i++)
        r->x[r->prior->eos_id[i]] = -INFINITY;
}

static void weigh_block(struct row *r, int b)
{
    const float *x = r->x + (size_t)b * BLOCK;
    int n = block_size(r, b);
    r->p.max[b] = maximum(x, n);
    r->p.sum[b] = sum_exp(x, n, r->p.max[b], r->inv_t);
}

static void weigh_row(struct row *r)
{
    int b = 0, whole = r->vocab / BLOCK;
    if (whole > 0)
        r->p.max[0] = maximum(r->x, BLOCK);
    for (; b + 1 < whole; b++)
        r->p.sum[b] =
            sum_exp_ahead(r->x + (size_t)b * BLOCK, r->p.max[b], r->inv_t, &r->p.max[b + 1]);
    for (; b < r->n_blocks; b++)
        weigh_block(r, b);
}

/* ---- top-k and top-p ---- */

/* Floats in ascending order as integers in ascending order, and back. */
static int32_t key_of(float f)
{
    int32_t i;
    memcpy(&i, &f, sizeof i);
    return i < 0 ? i ^ INT32_MAX : i;
}

static float of_key(int32_t key)
{
    int32_t i = key < 0 ? key ^ INT32_MAX : key;
    float f;
    memcpy(&f, &i, sizeof f);
    return f;
}

/* The search for the highest threshold from which upwards the numbers amount to `wanted`: by their
 * count, or by their mass, Σ exp((x - max) scale). */
struct search {
    bool by_mass;
    float max, scale;
    double wanted;
    const float *x; /* (n) all numbers in [lo, hi], and maybe others */
    int n;
    double beyond;  /* the amount of the numbers above these, if they were left out of x */
    int64_t lo, hi; /* keys: the threshold is within */
    double above;   /* the amount above hi */
};

enum { PROBES = 8 };

static vf load(const struct search *s, int i)
{
    return s->n - i >= VF ? vf_load(s->x + i) : load_tail(s->x, s->n);
}

static void count_from(const struct search *s, const float *probe, double *amount)
{
    vi count[PROBES] = {0};
    for (int i = 0; i < s->n; i += VF) {
        vf x = load(s, i);
        for (int j = 0; j < PROBES; j++)
            count[j] -= (vi)(x >= probe[j]);
    }
    for (int j = 0; j < PROBES; j++)
        for (int i = 0; i < VF; i++)
            amount[j] += count[j][i];
}

static void mass_from(const struct search *s, const float *probe, double *amount)
{
    for (int begin = 0; begin < s->n; begin += BLOCK) {
        vf sum[PROBES] = {0};
        for (int i = begin; i < s->n && i < begin + BLOCK; i += VF) {
            vf x = load(s, i), share = vf_exp_neg((x - s->max) * s->scale);
            for (int j = 0; j < PROBES; j++)
                sum[j] += vf_select(x >= probe[j], share, vf_set(0));
        }
        for (int j = 0; j < PROBES; j++)
            amount[j] += vf_sum(sum[j]);
    }
}

/* One look at the numbers cuts [lo, hi] into PROBES + 1 parts and leaves one of them. */
static void narrow(struct search *s)
{
    int64_t key[PROBES]; /* lo < key[0] <= ... <= key[PROBES - 1] <= hi */
    float probe[PROBES];
    double amount[PROBES];
    for (int j = 0; j < PROBES; j++) {
        key[j] = s->lo + (s->hi - s->lo + PROBES) * (j + 1) / (PROBES + 1);
        key[j] = key[j] < s->hi ? key[j] : s->hi;
        probe[j] = of_key((int32_t)key[j]);
        amount[j] = s->beyond;
    }
    if (s->by_mass)
        mass_from(s, probe, amount);
    else
        count_from(s, probe, amount);
    for (int j = PROBES - 1; j >= 0; j--) {
        if (amount[j] >= s->wanted) {
            s->lo = key[j];
            break;
        }
        s->hi = key[j] - 1;
        s->above = amount[j];
    }
}

/* Copy those of n numbers that may be the threshold; returns how many. to[] has room for n, and may
 * be from[]. */
static int pick(const struct search *s, const float *from, int n, float *to)
{
    float low = of_key((int32_t)s->lo), high = of_key((int32_t)s->hi);
    int i = 0, picked = 0;
    for (; i + VF <= n; i += VF)
        picked += vf_store_within(to + picked, vf_load(from + i), low, high);
    for (; i < n; i++)
        if (from[i] >= low && from[i] <= high)
            to[picked++] = from[i];
    return picked;
}

/* Leave in s only what may be the threshold, or the row as a whole if that is too much. */
static void gather(const struct row *r, struct search *s, float *candidates)
{
    int n = 0;
    if (s->x == candidates)
        n = pick(s, s->x, s->n, candidates);
    for (int b = 0; s->x == r->x && b < r->n_blocks; b++) {
        if (r->p.max[b] < of_key((int32_t)s->lo))
            continue;
        if (n > CANDIDATES_MAX - BLOCK)
            return;
        n += pick(s, r->x + (size_t)b * BLOCK, block_size(r, b), candidates + n);
    }
    s->x = candidates;
    s->n = n;
    s->beyond = s->above;
}

/* The threshold, known to be in [low, high]; *above: the amount above it. */
static float search_row(const struct row *r, struct search *s, float low, float high, double *above)
{
    float candidates[CANDIDATES_MAX];
    s->x = r->x;
    s->n = r->vocab;
    s->lo = key_of(low);
    s->hi = key_of(high);
    while (s->lo < s->hi) {
        gather(r, s, candidates);
        narrow(s);
    }
    *above = s->above;
    return of_key((int32_t)s->lo);
}

/* The id of the m-th token (from 1) whose logit is x; the last id if there are fewer. */
static int id_of_equal(const struct row *r, float x, double m)
{
    for (int b = 0; b < r->n_blocks; b++) {
        if (r->p.max[b] < x)
            continue;
        for (int v = b * BLOCK; v < b * BLOCK + block_size(r, b); v++)
            if (r->x[v] == x && --m < 1)
                return v;
    }
    return r->vocab - 1;
}

static void cut_block(float *x, int n, float threshold, int last)
{
    for (int i = 0; i < n; i++) {
        bool kept = (x[i] > threshold) | ((x[i] == threshold) & (i <= last));
        x[i] = kept ? x[i] : -INFINITY;
    }
}

/* Keep what is above the threshold, and at it up to the id `last`. */
static void cut(struct row *r, float threshold, int last)
{
    for (int b = 0; b < r->n_blocks; b++) {
        cut_block(r->x + (size_t)b * BLOCK, block_size(r, b), threshold, last - b * BLOCK);
        if (r->p.max[b] >= threshold) {
            weigh_block(r, b);
        } else {
            r->p.max[b] = -INFINITY;
            r->p.sum[b] = 0;
        }
    }
}

/* The k-th largest of the blocks' maxima, which k numbers reach: a lower bound of the k-th largest.
 */
static float kth_maximum(const struct row *r, int k, float high)
{
    struct search s = {.wanted = k, .x = r->p.max, .n = r->n_blocks};
    s.lo = key_of(-INFINITY);
    s.hi = key_of(high);
    while (s.lo < s.hi)
        narrow(&s);
    return of_key((int32_t)s.lo);
}

static void keep_top_k(struct row *r)
{
    int k = r->prior->top_k;
    float high = maximum(r->p.max, r->n_blocks);
    float low = k <= r->n_blocks ? kth_maximum(r, k, high) : -INFINITY;
    struct search s = {.wanted = k};
    double above;
    float threshold = search_row(r, &s, low, high, &above);
    cut(r, threshold, id_of_equal(r, threshold, k - above));
}

/* Tokens below (1 - p) / vocab have less than 1 - p in all: what is kept lies above. Half of that
 * leaves room for rounding. */
static void keep_top_p(struct row *r)
{
    add_up(&r->p, r->p.max, r->n_blocks, r->inv_t);
    if (r->p.total == 0)
        return;
    float high = maximum(r->p.max, r->n_blocks);
    double negligible = 0.5 * (1 - (double)r->prior->top_p) * r->p.total / r->vocab;
    float low = (float)(high + log(negligible) / r->inv_t);
    struct search s = {
        .by_mass = true,
        .max = high,
        .scale = r->inv_t,
        .wanted = r->prior->top_p * r->p.total,
    };
    double above;
    float threshold = search_row(r, &s, low, high, &above);
    float each = vf_exp_neg(vf_set((threshold - high) * r->inv_t))[0];
    cut(r, threshold, id_of_equal(r, threshold, fmax(1, ceil((s.wanted - above) / each))));
}

static void make_prior(struct row *r, bool ban_eos)
{
    add_bias(r, ban_eos);
    weigh_row(r);
    if (r->prior->top_k > 0 && r->prior->top_k < r->vocab)
        keep_top_k(r);
    if (r->prior->top_p < 1)
        keep_top_p(r);
    add_up(&r->p, r->p.max, r->n_blocks, r->inv_t);
}

/* ---- the twist ---- */

/* The first place in psi_id of an id >= v. */
static int psi_place(const struct prior *prior, int v)
{
    int lo = 0, hi = prior->n_psi;
    while (lo < hi) {
        int mid = (lo + hi) / 2;
        if (prior->psi_id[mid] < v)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

static float log_psi(const struct row *r, int v)
{
    int i = psi_place(r->prior, v);
    float psi = i < r->prior->n_psi && r->prior->psi_id[i] == v ? r->prior->psi[i] : 0;
    return r->twist ? r->twist[v] + psi : psi;
}

/* p's values of block b. */
static void prior_values(const struct row *r, int b, float *value)
{
    const float *x = r->x + (size_t)b * BLOCK;
    const float top = anchor(r->p.max[b]), inv_t = r->inv_t;
    for (int i = 0, n = block_size(r, b); i < n; i++)
        value[i] = (x[i] - top) * inv_t;
}

/* p's values of block b plus log ψ. */
static void twisted_values(const struct row *r, int b, float *value)
{
    const struct prior *prior = r->prior;
    int first = b * BLOCK, n = block_size(r, b);
    prior_values(r, b, value);
    for (int i = 0; r->twist && i < n; i++)
        value[i] += r->twist[first + i];
    for (int i = psi_place(prior, first); i < prior->n_psi && prior->psi_id[i] < first + n; i++)
        value[prior->psi_id[i] - first] += prior->psi[i];
}

/* Is log ψ anything but 0 in block b? */
static bool is_twisted(const struct row *r, int b)
{
    int first = b * BLOCK, i = psi_place(r->prior, first);
    return r->twist || (i < r->prior->n_psi && r->prior->psi_id[i] < first + BLOCK);
}

/* Where log ψ is 0 the block is p's: its values reach 0, and their sum is known. */
static void make_proposal(struct row *r)
{
    float level[BLOCKS_MAX], value[BLOCK];
    for (int b = 0; b < r->n_blocks; b++) {
        int n = block_size(r, b);
        if (is_twisted(r, b)) {
            twisted_values(r, b, value);
            r->q.max[b] = maximum(value, n);
            r->q.sum[b] = sum_exp(value, n, r->q.max[b], 1);
        } else {
            r->q.max[b] = r->p.max[b] > -INFINITY ? 0 : -INFINITY;
            r->q.sum[b] = r->p.sum[b];
        }
        level[b] = r->p.total > 0 ? r->p.unit[b] + r->q.max[b] : -INFINITY;
    }
    add_up(&r->q, level, r->n_blocks, 1);
}

/* ---- draws ---- */

static void values(const struct row *r, const struct blocks *s, int b, float *value)
{
    if (s == &r->p) {
        prior_values(r, b, value);
        return;
    }
    twisted_values(r, b, value);
    float top = anchor(s->max[b]);
    for (int i = 0, n = block_size(r, b); i < n; i++)
        value[i] -= top;
}

/* The owner of the point in [0, total) of the masses in their order; a point that rounding puts at
 * the end belongs to the last one that is not 0. *below: the masses before it. */
static int owner(const float *mass, int n, double point, double *below)
{
    double sum = 0;
    int last = -1;
    for (int i = 0; i < n && sum <= point; i++) {
        if (!(mass[i] > 0))
            continue;
        *below = sum;
        sum += mass[i];
        last = i;
    }
    return last;
}

/* e^value of block b's tokens. */
static void shares(const struct row *r, const struct blocks *s, int b, float *share)
{
    const int n = block_size(r, b);
    values(r, s, b, share);
    for (int i = 0; i < n; i += VF) {
        int part = n - i < VF ? n - i : VF;
        vf_store_part(share + i, vf_exp_neg(vf_load_part(share + i, part, -INFINITY)), part);
    }
}

static int draw(const struct row *r, const struct blocks *s, double u)
{
    float share[BLOCK];
    double below = 0, total = 0, point = u * s->total;
    int b = s->total > 0 ? owner(s->mass, r->n_blocks, point, &below) : -1;
    if (b < 0)
        return -1;
    int n = block_size(r, b);
    shares(r, s, b, share);
    for (int i = 0; i < n; i++)
        total += share[i];
    return b * BLOCK + owner(share, n, (point - below) / s->mass[b] * total, &below);
}

static double log_share(const struct row *r, const struct blocks *s, int v)
{
    float value[BLOCK];
    int b = v / BLOCK;
    if (s->total == 0 || s->max[b] == -INFINITY)
        return -INFINITY;
    values(r, s, b, value);
    return (double)s->unit[b] + value[v % BLOCK] - s->log_total;
}

/* What a row draws from. */
static const struct blocks *proposal(const struct row *r)
{
    return r->twisted && !r->prior->base_proposal ? &r->q : &r->p;
}

static struct propose_out propose_one(const struct row *r, const struct propose_draw *d)
{
    const struct blocks *q = proposal(r);
    struct philox random = philox4x32(d->seed, d->step, d->particle, PHILOX_DRAW, 0);
    struct propose_out out = {
        .token = d->forced,
        .log_p0 = -INFINITY,
        .log_q = -INFINITY,
        .lambda = r->p.total > 0 ? 0 : -INFINITY,
    };
    if (r->twisted && r->p.total > 0)
        out.lambda = r->q.top + r->q.log_total - r->p.log_total;
    if (d->forced < 0)
        out.token = draw(r, q, philox_u01(random.v[0], random.v[1]));
    if (out.token < 0)
        return out;
    out.log_p0 = log_share(r, &r->p, out.token);
    out.log_q = q == &r->p ? out.log_p0 : log_share(r, q, out.token);
    out.log_psi = r->twisted ? log_psi(r, out.token) : 0;
    return out;
}

/* Row i with its prior and its proposal. */
static void open_row(struct row *r, const struct propose_args *a, int i)
{
    const struct propose_row *row = &a->rows[i];
    r->x = a->logits + (size_t)i * (size_t)a->vocab;
    r->twist = row->twist >= 0 ? a->twist + (size_t)row->twist * (size_t)a->vocab : NULL;
    r->prior = &a->priors[row->prior];
    r->vocab = a->vocab;
    r->n_blocks = (a->vocab + BLOCK - 1) / BLOCK;
    r->inv_t = 1 / r->prior->temperature;
    r->twisted = r->twist || r->prior->n_psi > 0;
    make_prior(r, row->ban_eos);
    if (r->twisted)
        make_proposal(r);
}

static void propose_row(const struct propose_args *a, int i)
{
    const struct propose_row *row = &a->rows[i];
    struct row r;
    open_row(&r, a, i);
    for (int j = row->first_draw; j < row->first_draw + row->n_draws; j++)
        a->out[j] = propose_one(&r, &a->draws[j]);
}

void CPU_FN(propose)(const struct propose_args *a, int n)
{
#pragma omp parallel for schedule(dynamic)
    for (int i = 0; i < n; i++)
        propose_row(a, i);
}

/* ---- the gradient of a forced token's log q ---- */

/* dy = coef q. Where q is empty all of it is 0. */
static void scaled_proposal(const struct row *r, const struct blocks *q, float coef, float *dy)
{
    for (int b = 0; b < r->n_blocks; b++) {
        float share[BLOCK];
        const int n = block_size(r, b);
        const bool empty = q->total == 0 || q->max[b] == -INFINITY;
        const float scale = empty ? 0 : coef * (float)exp((double)q->unit[b] - q->log_total);
        shares(r, q, b, share);
        for (int i = 0; i < n; i++)
            dy[(size_t)b * BLOCK + (size_t)i] = scale * share[i];
    }
}

static void propose_grad_row(const struct propose_args *a, float coef, float *dy, int i)
{
    struct row r;
    open_row(&r, a, i);
    scaled_proposal(&r, proposal(&r), coef, dy);
    dy[a->draws[a->rows[i].first_draw].forced] -= coef;
}

void CPU_FN(propose_grad)(const struct propose_args *a, const float *coef, float *dy, int n)
{
#pragma omp parallel for schedule(dynamic)
    for (int i = 0; i < n; i++)
        propose_grad_row(a, coef[i], dy + (size_t)i * (size_t)a->vocab, i);
}
