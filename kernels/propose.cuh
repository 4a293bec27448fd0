/* A row of logits at work in a thread block: its blocks of tokens, each in a warp, and what is
 * known of them, in shared memory. See propose.cu. */
#pragma once
#include <float.h>
#include <limits.h>

#include "cuda.cuh"

constexpr int BLOCK = 512;         /* tokens */
constexpr int EACH = BLOCK / WARP; /* of them in a lane */
constexpr int WARPS_MAX = 12; /* threads have the registers they need, two rows a multiprocessor */

/* Of the search for a threshold. */
constexpr int PROBES = 4;   /* thresholds that a look at the numbers tries */
constexpr int RANKED = 256; /* numbers that are few enough to compare each with each */

/* A distribution over the blocks, as in propose.c: of each block and of all. A token's value is the
 * log of its share, in units of its block. */
struct block {
    float max;  /* what values are relative to; -inf: the block is empty */
    float sum;  /* Σ exp(value) */
    float unit; /* log of the block's unit, relative to the largest; <= 0 */
    float mass; /* sum exp(unit) */
};
struct total {
    double total, log_total; /* of mass; 0 and -inf if nothing is possible */
    double top;              /* the largest log unit */
};
struct blocks {
    struct block *at; /* (n_blocks) shared */
    struct total *of; /* shared */
};

/* What the warps tell each other, in front of the shared memory. */
struct alignas(16) board {
    struct total p, q;
    uint64_t part[WARPS_MAX * PROBES]; /* each warp's amounts */
    uint64_t weight[RANKED];
    int best[WARPS_MAX];
    int gathered; /* numbers put into lists since the row began */
    int last;
};

/* A row at work: the same in every thread. A token counts as it was cut: what is below the
 * threshold, or at it with an id beyond `last`, as -inf. */
struct row {
    float *x;           /* (vocab) logits */
    const float *twist; /* (vocab) dense log ψ, or NULL */
    const struct prior *prior;
    int vocab, n_blocks;
    float inv_t;
    bool twisted;
    float threshold;
    int last;
    struct blocks p, q;
    int *psi_start; /* (n_blocks + 1) shared: where each block's ids begin in
                       psi_id; n_psi > 0 */
    float *scratch; /* (warps, BLOCK) shared */
    struct board *board;
};

static __device__ __forceinline__ int lane_id()
{
    return threadIdx.x % WARP;
}

static __device__ __forceinline__ int warp_id()
{
    return threadIdx.x / WARP;
}

static __device__ __forceinline__ int n_warps()
{
    return blockDim.x / WARP;
}

/* ---- a block of tokens in a warp: 4 adjacent ones a lane, 4 times ---- */

/* Where a lane's i-th token is in its block. */
static __device__ __forceinline__ int place(int i)
{
    return i / 4 * 4 * WARP + 4 * lane_id() + i % 4;
}

/* Do the lanes find block b in whole vectors? Rows of a width that is no multiple of 4 lie
 * anywhere. */
static __device__ __forceinline__ bool in_vectors(int vocab, int b)
{
    return vocab % 4 == 0 && (b + 1) * BLOCK <= vocab;
}

/* N of a lane's numbers in block b of a row, from the first-th; -inf behind the row's end. */
template <int N>
static __device__ __forceinline__ void load_part(const float *x, int vocab, int b, int first,
                                                 float (&v)[N])
{
    x += b * BLOCK;
    if (in_vectors(vocab, b)) {
#pragma unroll
        for (int i = 0; i < N; i += 4) {
            const vec<float> f = load_vec(x + place(first + i));
#pragma unroll
            for (int k = 0; k < 4; k++)
                v[i + k] = f.v[k];
        }
    } else {
#pragma unroll
        for (int i = 0; i < N; i++)
            v[i] = b * BLOCK + place(first + i) < vocab ? x[place(first + i)] : -INFINITY;
    }
}

static __device__ __forceinline__ void store_block(float *y, int vocab, int b,
                                                   const float (&v)[EACH])
{
    y += b * BLOCK;
    if (in_vectors(vocab, b)) {
#pragma unroll
        for (int i = 0; i < EACH; i += 4)
            store4(y + place(i), make_float4(v[i], v[i + 1], v[i + 2], v[i + 3]));
    } else {
#pragma unroll
        for (int i = 0; i < EACH; i++)
            if (b * BLOCK + place(i) < vocab)
                y[place(i)] = v[i];
    }
}

static __device__ __forceinline__ float maximum(const float (&v)[EACH])
{
    float max = v[0];
#pragma unroll
    for (int i = 1; i < EACH; i++)
        max = fmaxf(max, v[i]);
    return warp_max(max);
}

/* A maximum that can be subtracted: -inf less this is -inf. */
static __device__ __forceinline__ float anchor(float max)
{
    return fmaxf(max, -FLT_MAX);
}

/* Σ exp(v - max); 0 for a max of -inf. */
static __device__ __forceinline__ float sum_exp(const float v[EACH], float max)
{
    float sum = 0;
#pragma unroll
    for (int i = 0; i < EACH; i++)
        sum += expf(v[i] - anchor(max));
    return warp_sum(sum);
}

static __device__ __forceinline__ float kept(const struct row &r, float x, int id)
{
    return x > r.threshold || (x == r.threshold && id <= r.last) ? x : -INFINITY;
}

template <int N>
static __device__ __forceinline__ void load_logits(const struct row &r, int b, int first,
                                                   float (&v)[N])
{
    load_part(r.x, r.vocab, b, first, v);
    if (r.threshold == -INFINITY)
        return;
#pragma unroll
    for (int i = 0; i < N; i++)
        v[i] = kept(r, v[i], b * BLOCK + place(first + i));
}

/* ---- values: logs of shares, in units of the block ---- */

/* Rounded before anything is added to it, wherever it is needed: of values in the thousands the
 * last bit shows. */
static __device__ __forceinline__ float prior_value(const struct row &r, float x, float max)
{
    return __fmul_rn(x - anchor(max), r.inv_t);
}

/* Has block b tokens in the list of sparse log ψ? */
static __device__ __forceinline__ bool has_psi(const struct row &r, int b)
{
    return r.prior->n_psi > 0 && r.psi_start[b] < r.psi_start[b + 1];
}

static __device__ __forceinline__ void add_psi(const struct row &r, int b, float (&v)[EACH])
{
    const struct prior *prior = r.prior;
    float *psi = r.scratch + warp_id() * BLOCK;
#pragma unroll
    for (int i = 0; i < EACH; i += 4)
        store4(psi + place(i), make_float4(0, 0, 0, 0));
    __syncwarp();
    for (int i = r.psi_start[b] + lane_id(); i < r.psi_start[b + 1]; i += WARP)
        psi[prior->psi_id[i] - b * BLOCK] = prior->psi[i];
    __syncwarp();
#pragma unroll
    for (int i = 0; i < EACH; i++)
        v[i] += psi[place(i)];
    __syncwarp();
}

/* From p's values of block b to those plus log ψ. */
static __device__ __forceinline__ void add_twist(const struct row &r, int b, float (&v)[EACH])
{
    if (r.twist) {
        float twist[EACH];
        load_part(r.twist, r.vocab, b, 0, twist);
#pragma unroll
        for (int i = 0; i < EACH; i++)
            v[i] += twist[i];
    }
    if (has_psi(r, b))
        add_psi(r, b, v);
}

/* Shares of block b's tokens in p or q: e^value. */
static __device__ __forceinline__ void shares(const struct row &r, bool q, int b, float (&v)[EACH])
{
    load_logits(r, b, 0, v);
#pragma unroll
    for (int i = 0; i < EACH; i++)
        v[i] = prior_value(r, v[i], r.p.at[b].max);
    if (q)
        add_twist(r, b, v);
    const float top = q ? anchor(r.q.at[b].max) : 0;
#pragma unroll
    for (int i = 0; i < EACH; i++)
        v[i] = expf(v[i] - top);
}

/* ---- the row's sums ---- */

static __device__ __forceinline__ void set_block(const struct blocks &s, int b, float max,
                                                 float sum)
{
    if (lane_id() > 0)
        return;
    s.at[b].max = max;
    s.at[b].sum = sum;
}

/* Maximum and sum of block b for p and, if wanted, for q. Where log ψ is 0 q's values are p's: they
 * reach 0, and their sum is known. */
static __device__ __forceinline__ void weigh_block(const struct row &r, int b, bool q)
{
    float v[EACH];
    load_logits(r, b, 0, v);
    const float max = maximum(v);
#pragma unroll
    for (int i = 0; i < EACH; i++)
        v[i] = prior_value(r, v[i], max);
    const float sum = sum_exp(v, 0);
    set_block(r.p, b, max, sum);
    if (!q)
        return;
    if (!r.twist && !has_psi(r, b)) {
        set_block(r.q, b, max > -INFINITY ? 0 : -INFINITY, sum);
        return;
    }
    add_twist(r, b, v);
    const float top = maximum(v);
    set_block(r.q, b, top, sum_exp(v, top));
}

/* All blocks, a warp a block. Of a block that a cut leaves empty nothing is read. */
static __device__ __forceinline__ void weigh_row(const struct row &r, bool q)
{
    for (int b = warp_id(); b < r.n_blocks; b += n_warps()) {
        const bool empty = r.threshold > -INFINITY && r.p.at[b].max < r.threshold;
        __syncwarp();
        if (!empty) {
            weigh_block(r, b, q);
            continue;
        }
        set_block(r.p, b, -INFINITY, 0);
        if (q)
            set_block(r.q, b, -INFINITY, 0);
    }
    __syncthreads();
}

/* Put the blocks together, given in `unit` the logs of their units divided by scale. For one warp;
 * returns the total. */
static __device__ __forceinline__ double add_up(const struct blocks &s, int n_blocks, float scale)
{
    float top = -INFINITY;
    double total = 0;
    for (int b = lane_id(); b < n_blocks; b += WARP)
        top = fmaxf(top, s.at[b].unit);
    top = warp_max(top);
    for (int b = lane_id(); b < n_blocks; b += WARP) {
        s.at[b].unit = (s.at[b].unit - anchor(top)) * scale;
        s.at[b].mass = expf(s.at[b].unit) * s.at[b].sum;
        total += s.at[b].mass;
    }
    total = warp_sum(total);
    if (lane_id() == 0)
        *s.of = {total, total > 0 ? log(total) : -INFINITY, (double)top * scale};
    return total;
}

static __device__ __forceinline__ double add_up_prior(const struct row &r)
{
    for (int b = lane_id(); b < r.n_blocks; b += WARP)
        r.p.at[b].unit = r.p.at[b].max;
    return add_up(r.p, r.n_blocks, r.inv_t);
}

static __device__ __forceinline__ void add_up_proposal(const struct row &r, double total)
{
    for (int b = lane_id(); b < r.n_blocks; b += WARP)
        r.q.at[b].unit = total > 0 ? r.p.at[b].unit + r.q.at[b].max : -INFINITY;
    add_up(r.q, r.n_blocks, 1);
}

/* The sum over the lanes below. */
static __device__ __forceinline__ double sum_below(double x)
{
    double sum = x;
#pragma unroll
    for (int d = 1; d < WARP; d *= 2) {
        const double other = __shfl_up_sync(~0u, sum, d);
        sum += lane_id() >= d ? other : 0;
    }
    const double before = __shfl_up_sync(~0u, sum, 1);
    return lane_id() > 0 ? before : 0;
}

/* The owner of the point in [0, total) of n masses in their order: the last one that is not 0 with
 * at most `point` below it; -1 if all are 0. *below: the masses before it. For one warp, in shared
 * memory; masses are `stride` apart. A lane has an odd number of adjacent ones: of those that have
 * no gaps the lanes read from different banks. */
static __device__ __forceinline__ int owner(const float *mass, int stride, int n, double point,
                                            double *below)
{
    const int part = (n + WARP - 1) / WARP | 1, begin = lane_id() * part,
              end = min(begin + part, n);
    int found = -1;
    double sum = 0, found_below = 0;
    for (int i = begin; i < end; i++)
        sum += mass[i * stride];
    sum = sum_below(sum);
    for (int i = begin; i < end; i++) {
        if (mass[i * stride] > 0 && sum <= point) {
            found = i;
            found_below = sum;
        }
        sum += mass[i * stride];
    }
    found = warp_max(found);
    *below = __shfl_sync(~0u, found_below, max(found, 0) / part);
    return found;
}

static __device__ __forceinline__ int owning_block(const struct row &r, const struct blocks &s,
                                                   double point, double *below)
{
    return owner(&s.at->mass, sizeof *s.at / sizeof(float), r.n_blocks, point, below);
}

/* The same for a block's shares, in registers; the point is in [0, 1) of their sum. */
static __device__ __forceinline__ int owner_in_block(const struct row &r,
                                                     const float (&share)[EACH], double point)
{
    float *mass = r.scratch + warp_id() * BLOCK;
    double total = 0, below;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        mass[place(i)] = share[i];
        total += share[i];
    }
    total = warp_sum(total);
    __syncwarp();
    const int found = owner(mass, 1, BLOCK, point * total, &below);
    __syncwarp();
    return found;
}
