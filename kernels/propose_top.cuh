/* Top-k and top-p: the threshold on a row's logits, and the last id that is kept at it. See
 * propose.cu.
 *
 * A threshold is searched by bisection over the floats as integers: each look at the numbers
 * tries a few probes and leaves the part of the interval that holds the threshold. The first looks
 * go through the row; as soon as the numbers in question are few enough they are listed in shared
 * memory, and the last few hundred are compared with each other. Counts and masses are integers: so
 * the order in which threads come across numbers does not matter. */
#pragma once
#include "propose.cuh"

/* Numbers of a block that a lane looks at together: it has no registers for more. */
constexpr int PART = 8;

/* Floats in ascending order as integers in ascending order, and back. The two zeros are one. */
static __device__ __forceinline__ int key_of(float f)
{
    const int i = __float_as_int(f + 0.0f);
    return i < 0 ? i ^ INT_MAX : i;
}

static __device__ __forceinline__ float of_key(int key)
{
    return __int_as_float(key < 0 ? key ^ INT_MAX : key);
}

/* The search for the highest threshold from which upwards the numbers amount to `wanted`: by their
 * count, or by their mass, Σ exp((x - max) / temperature), in units of 2^-43: a row's is below
 * 2^64. */
struct search {
    bool by_mass;
    float max;
    uint64_t wanted;
    int lo, hi;      /* keys: the threshold is within */
    uint64_t above;  /* the amount above hi */
    int equal;       /* numbers at the threshold; 0: not counted */
    const int *list; /* (n) shared: keys, all of those in [lo, hi]; NULL: in the row */
    int n;
    uint64_t beyond; /* the amount above the list's */
};

static __device__ __forceinline__ uint64_t weight_of(const struct row &r, const struct search &s,
                                                     int key)
{
    if (!s.by_mass)
        return 1;
    return (uint64_t)(expf((of_key(key) - anchor(s.max)) * r.inv_t) * 0x1p43f);
}

/* The j-th of PROBES keys that cut [lo, hi] into parts: lo < probe 0 <= probe 1 … <= hi. */
static __device__ __forceinline__ int probe(const struct search &s, int j)
{
    const uint32_t span = (uint32_t)s.hi - (uint32_t)s.lo, step = span / (PROBES + 1) + 1;
    return (int)((uint32_t)s.lo + min(step * (uint32_t)(j + 1), span));
}

/* Lane i's result: the sum over the warp of everyone's x[i % PROBES]. Each exchange gives away the
 * half of the numbers that the other lane goes on with: fewer shuffles than a warp_sum of each. */
static __device__ __forceinline__ uint64_t sum_each(uint64_t x[PROBES])
{
#pragma unroll
    for (int half = PROBES / 2; half > 0; half /= 2) {
        const bool upper = lane_id() & half;
#pragma unroll
        for (int j = 0; j < half; j++) {
            const uint64_t theirs = upper ? x[j] : x[j + half];
            x[j] = (upper ? x[j + half] : x[j]) + __shfl_xor_sync(~0u, theirs, half);
        }
    }
#pragma unroll
    for (int m = PROBES; m < WARP; m *= 2)
        x[0] += __shfl_xor_sync(~0u, x[0], m);
    return x[0];
}

/* One look at the numbers. */
struct look {
    uint64_t amount[PROBES]; /* of this thread's numbers, from each probe upwards */
    int *to;                 /* (room) where the numbers in [lo, hi] go */
    int room, gathered;      /* before this look */
};

/* At a thread's next numbers. */
template <int N>
static __device__ __forceinline__ void look_at(const struct row &r, const struct search &s,
                                               struct look &l, const int (&key)[N])
{
    int n = 0;
#pragma unroll
    for (int i = 0; i < N; i++) {
        if (key[i] < s.lo)
            continue;
        const uint64_t weight = weight_of(r, s, key[i]);
#pragma unroll
        for (int j = 0; j < PROBES; j++)
            l.amount[j] += key[i] >= probe(s, j) ? weight : 0;
        n += key[i] <= s.hi;
    }
    if (n == 0)
        return;
    int to = atomicAdd(&r.board->gathered, n) - l.gathered;
#pragma unroll
    for (int i = 0; i < N; i++)
        if (key[i] >= s.lo && key[i] <= s.hi && to < l.room)
            l.to[to++] = key[i];
}

static __device__ __forceinline__ void look_at_row(const struct row &r, const struct search &s,
                                                   struct look &l)
{
    for (int b = warp_id(); b < r.n_blocks; b += n_warps()) {
        if (r.p.at[b].max < of_key(s.lo))
            continue;
#pragma unroll 1
        for (int first = 0; first < EACH; first += PART) {
            float v[PART];
            int key[PART];
            load_logits(r, b, first, v);
#pragma unroll
            for (int i = 0; i < PART; i++)
                key[i] = key_of(v[i]);
            look_at(r, s, l, key);
        }
    }
}

static __device__ __forceinline__ void look_at_list(const struct row &r, const struct search &s,
                                                    struct look &l)
{
    for (int i = threadIdx.x; i < s.n; i += blockDim.x) {
        const int key[1] = {s.list[i]};
        look_at(r, s, l, key);
    }
}

/* Lane i's result: the sum over all threads of their x[i % PROBES]. */
static __device__ __forceinline__ uint64_t block_sum_each(const struct row &r, uint64_t x[PROBES])
{
    const int j = lane_id() % PROBES;
    uint64_t sum = sum_each(x);
    if (lane_id() < PROBES)
        r.board->part[warp_id() * PROBES + j] = sum;
    __syncthreads();
    sum = 0;
    for (int w = lane_id() / PROBES; w < n_warps(); w += WARP / PROBES)
        sum += r.board->part[w * PROBES + j];
#pragma unroll
    for (int m = PROBES; m < WARP; m *= 2)
        sum += __shfl_xor_sync(~0u, sum, m);
    return sum;
}

/* Cut [lo, hi] into PROBES + 1 parts and leave one of them; on the way, make a list of the numbers
 * within, if there is room for them. Lists have halves of the scratch memory in turn. */
static __device__ __forceinline__ void narrow(const struct row &r, struct search &s)
{
    int *const half = reinterpret_cast<int *>(r.scratch);
    const int room = n_warps() * BLOCK / 2;
    struct look l = {{0}, s.list == half ? half + room : half, room, r.board->gathered};
    __syncthreads();
    if (s.list)
        look_at_list(r, s, l);
    else
        look_at_row(r, s, l);
    const uint64_t amount = s.beyond + block_sum_each(r, l.amount);
    const int n = r.board->gathered - l.gathered;
    if (n <= room) {
        s.list = l.to;
        s.n = n;
        s.beyond = s.above;
    }
    /* Amounts fall from probe to probe: so many have enough, and the threshold is from the last of
     * these up to what is below the next. */
    const int enough = warp_sum((int)(lane_id() < PROBES && amount >= s.wanted));
    const int lo = probe(s, enough - 1), hi = probe(s, enough) - 1;
    if (enough > 0)
        s.lo = lo;
    if (enough < PROBES) {
        s.hi = hi;
        s.above = __shfl_sync(~0u, amount, enough);
    }
}

/* The threshold from a short list: the highest number with enough from it upwards. */
static __device__ __forceinline__ void rank(const struct row &r, struct search &s)
{
    uint64_t *weight = r.board->weight, above = 0;
    int best = s.lo, equal = 0;
    for (int i = threadIdx.x; i < s.n; i += blockDim.x)
        weight[i] = weight_of(r, s, s.list[i]);
    __syncthreads();
    for (int i = threadIdx.x; i < s.n; i += blockDim.x) {
        uint64_t amount = s.beyond;
        for (int j = 0; j < s.n; j++)
            amount += s.list[j] >= s.list[i] ? weight[j] : 0;
        best = amount >= s.wanted ? max(best, s.list[i]) : best;
    }
    best = warp_max(best);
    if (lane_id() == 0)
        r.board->best[warp_id()] = best;
    __syncthreads();
    best = warp_max(r.board->best[lane_id() % n_warps()]);
    for (int i = lane_id(); i < s.n; i += WARP) {
        above += s.list[i] > best ? weight[i] : 0;
        equal += s.list[i] == best;
    }
    s.lo = s.hi = best;
    s.above = s.beyond + warp_sum(above);
    s.equal = warp_sum(equal);
    __syncthreads(); /* the list's memory may have another use */
}

/* Leaves the threshold in lo and hi. */
static __device__ __forceinline__ void search_row(const struct row &r, struct search &s)
{
    while (s.lo < s.hi && (!s.list || s.n > RANKED))
        narrow(r, s);
    if (s.lo < s.hi)
        rank(r, s);
}

/* The largest logit, by each warp. */
static __device__ __forceinline__ float row_maximum(const struct row &r)
{
    float max = -INFINITY;
    for (int b = lane_id(); b < r.n_blocks; b += WARP)
        max = fmaxf(max, r.p.at[b].max);
    return warp_max(max);
}

/* The k-th largest of the blocks' maxima: k numbers reach it, so the threshold does. */
static __device__ __forceinline__ int kth_maximum(const struct row &r, struct search s)
{
    int *list = reinterpret_cast<int *>(r.scratch);
    for (int b = threadIdx.x; b < r.n_blocks; b += blockDim.x)
        list[b] = key_of(r.p.at[b].max);
    __syncthreads();
    s.list = list;
    s.n = r.n_blocks;
    search_row(r, s);
    return s.lo;
}

static __device__ __forceinline__ struct search search_top_k(const struct row &r)
{
    struct search s = {};
    s.wanted = (uint64_t)r.prior->top_k;
    s.hi = key_of(row_maximum(r));
    s.lo = key_of(-INFINITY);
    if (r.prior->top_k <= r.n_blocks)
        s.lo = kth_maximum(r, s);
    return s;
}

/* Tokens below (1 - p) / vocab have less than 1 - p in all: what is kept lies above. Half of that
 * leaves room for rounding. */
static __device__ __forceinline__ struct search search_top_p(const struct row &r)
{
    if (warp_id() == 0)
        add_up_prior(r);
    __syncthreads();
    const double p = (double)r.prior->top_p, total = r.p.of->total;
    struct search s = {};
    s.by_mass = true;
    s.max = row_maximum(r);
    s.wanted = max((uint64_t)(p * total * 0x1p43), (uint64_t)1);
    s.hi = key_of(s.max);
    s.lo = key_of((float)(s.max + log(0.5 * (1 - p) * total / r.vocab) / r.inv_t));
    return s;
}

/* Which of block b's tokens have the logit x? Their number; v: 1 for each of them, else 0. */
static __device__ __forceinline__ int equals(const struct row &r, int b, float x, float (&v)[EACH])
{
    int n = 0;
    load_logits(r, b, 0, v);
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        n += v[i] == x;
        v[i] = v[i] == x;
    }
    return warp_sum(n);
}

/* The id of the m-th token (from 1) whose logit is x; INT_MAX if there is none. The masses of p's
 * blocks serve to count; they are not needed any more. */
static __device__ __forceinline__ int id_of_equal(const struct row &r, float x, double m)
{
    float v[EACH];
    for (int b = warp_id(); b < r.n_blocks; b += n_warps()) {
        const int n = r.p.at[b].max < x ? 0 : equals(r, b, x, v);
        if (lane_id() == 0)
            r.p.at[b].mass = (float)n;
    }
    __syncthreads();
    if (warp_id() == 0) {
        double below;
        const int b = max(owning_block(r, r.p, m - 0.5, &below), 0), n = equals(r, b, x, v);
        const int i = owner_in_block(r, v, (m - 0.5 - below) / n);
        if (lane_id() == 0)
            r.board->last = i < 0 ? INT_MAX : b * BLOCK + i;
    }
    __syncthreads();
    return r.board->last;
}

/* Keep what is above the threshold, and at it as many, lower ids first, as are wanted. */
static __device__ __forceinline__ void cut(struct row &r, const struct search &s)
{
    const float threshold = of_key(s.lo);
    const uint64_t each = max(weight_of(r, s, s.lo), (uint64_t)1);
    const uint64_t missing = s.wanted > s.above ? s.wanted - s.above : 1;
    const double m = (double)((missing + each - 1) / each);
    if (s.equal == 0 || s.equal > m)
        r.last = id_of_equal(r, threshold, m);
    else if (threshold > r.threshold)
        r.last = INT_MAX;
    r.threshold = threshold;
}
