/* Weigh populations and choose ancestors: a block a population, everything in double. See
 * resample.c for what is computed and why.
 *
 * What is a walk there is a search here: inclusive sums once, and then each child finds its
 * particle, each particle its children or each gap its parent. All sums are made in an order that
 * k alone gives, whatever the block and the other populations are. They need 12 bytes a particle
 * beside the priorities: shared memory, or for large populations log_rho and ancestor themselves.
 */
#include "cuda.cuh"
#include "philox.h"

#include <algorithm>

enum {
    MAX_THREADS = 512,
    CHUNK = 32,         /* populations of a launch: their arguments fit the launch's own */
    SMALL = 2048,       /* a population of up to so many works in shared memory */
    LEAST_SCRATCH = 17, /* doubles: one for each warp, and one */
};

struct chunk {
    struct resample_args at[CHUNK];
};

/* A population as its block sees it. */
struct cloud {
    const struct resample_args &a;
    double max;      /* of log_w */
    double *scratch; /* shared (scratch_size) */
    double *share;   /* (k) shared, or log_rho */
    int32_t *count;  /* (k) children of each particle; shared, or ancestor */
};

/* Inclusive sums are made of segments of about √k, an odd number, which spares bank conflicts. */
static __host__ __device__ int segment_size(int k)
{
    return (int)sqrt((double)k) | 1;
}

/* One for each segment and one more. */
static __host__ __device__ int scratch_size(int k)
{
    const int n = (k - 1) / segment_size(k) + 2;
    return n > LEAST_SCRATCH ? n : LEAST_SCRATCH;
}

static __device__ double weight(const struct cloud &c, int i)
{
    return exp(c.a.log_w[i] - c.max);
}

static __device__ double uniform(const struct resample_args &a, int lane, int pair)
{
    const struct philox p = philox4x32(a.seed, a.step, 0, PHILOX_RESAMPLE, (uint32_t)lane);
    return philox_u01(p.v[2 * pair], p.v[2 * pair + 1]);
}

static __device__ double block_max(double x, double *scratch)
{
    x = warp_max(x);
    if (threadIdx.x % WARP == 0)
        scratch[threadIdx.x / WARP] = x;
    __syncthreads();
    x = scratch[0];
    for (int i = 1; i < (int)blockDim.x / WARP; i++)
        x = fmax(x, scratch[i]);
    __syncthreads();
    return x;
}

/* x to its inclusive sums; returns the last. A thread adds up a segment, one thread the segments. A
 * segment ends exactly where the next begins: the sums never fall, and 0 adds nothing. All threads
 * call, and have written x. */
template <class T> static __device__ T accumulate(T *x, int k, T *end)
{
    const int size = segment_size(k), n = (k - 1) / size + 1;
    __syncthreads();
    for (int s = threadIdx.x; s < n; s += blockDim.x) {
        T sum = 0;
        for (int i = s * size; i < k && i < (s + 1) * size; i++)
            x[i] = sum += x[i];
        end[s + 1] = sum;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        end[0] = 0;
        for (int s = 1; s <= n; s++)
            end[s] += end[s - 1];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < k; i += blockDim.x)
        x[i] += end[i / size];
    const T total = end[n];
    __syncthreads();
    return total;
}

/* The smallest i with u < sum[i]. */
template <class T> static __device__ int owner(const T *sum, int k, T u)
{
    int lo = 0, hi = k - 1;
    while (lo < hi) {
        const int mid = (lo + hi) / 2;
        if (u < sum[mid])
            hi = mid;
        else
            lo = mid + 1;
    }
    return lo;
}

/* Shares to a distribution function, and children to its particles. */
static __device__ void scatter(const struct cloud &c, int children)
{
    const double total = accumulate(c.share, c.a.k, c.scratch);
    for (int i = threadIdx.x; i < c.a.k; i += blockDim.x)
        c.share[i] /= total;
    __syncthreads();
    for (int n = threadIdx.x; n < children; n += blockDim.x)
        atomicAdd(&c.count[owner(c.share, c.a.k, uniform(c.a, n, 0))], 1);
}

static __device__ void count_multinomial(const struct cloud &c)
{
    for (int i = threadIdx.x; i < c.a.k; i += blockDim.x) {
        c.share[i] = weight(c, i);
        c.count[i] = i == 0 && c.a.pinned;
    }
    scatter(c, c.a.k - c.a.pinned);
}

static __device__ void count_residual(const struct cloud &c, double sum)
{
    const double first = c.a.k * weight(c, 0) / sum;
    const bool kept = c.a.pinned && uniform(c.a, c.a.k, 0) * first >= (int)first;
    int certain = 0;
    for (int i = threadIdx.x; i < c.a.k; i += blockDim.x) {
        const double expected = c.a.k * weight(c, i) / sum;
        const int copies = (int)expected;
        c.share[i] = expected - copies;
        c.count[i] = copies + (i == 0 && kept);
        certain += copies;
    }
    const int random = c.a.k - kept - block_sum(certain, (int *)c.scratch);
    if (random > 0)
        scatter(c, random);
}

/* ---- strata ---- */

/* Fisher and Yates: the numbers are drawn by all, the swaps are one thread's work. */
static __device__ void shuffle(const struct cloud &c)
{
    int *other = (int *)c.share;
    for (int i = threadIdx.x; i < c.a.k; i += blockDim.x)
        other[i] = (int)(uniform(c.a, i, 1) * (i + 1));
    __syncthreads();
    if (threadIdx.x > 0)
        return;
    for (int i = c.a.k - 1; i > 0; i--) {
        const int32_t swapped = c.count[other[i]];
        c.count[other[i]] = c.count[i];
        c.count[i] = swapped;
    }
}

/* Where the kept child is, in units of strata. */
static __device__ double kept_point(const struct cloud &c, double total)
{
    for (int m = threadIdx.x; m < c.a.k; m += blockDim.x)
        if (c.count[m] == 0)
            c.scratch[0] = m > 0 ? c.share[m - 1] : 0;
    __syncthreads();
    return c.a.k * (c.scratch[0] + uniform(c.a, c.a.k, 0) * weight(c, 0)) / total;
}

/* How many of the points u_n = (n + U_n) / k are below `end`; without the kept one. */
static __device__ int points_below(const struct resample_args &a, double end, int kept,
                                   double place)
{
    int n = (int)(end * a.k) - 2; /* that many are, surely */
    for (n = n > 0 ? n : 0; n < a.k; n++) {
        const double own = a.scheme == RESAMPLE_SYSTEMATIC ? place : uniform(a, n, 0);
        if (fmin((n + own) / a.k, 1 - 0x1p-53) >= end)
            break;
    }
    return n - (kept >= 0 && kept < n);
}

/* What takes an inclusive sum's place: the points below it, and whose interval it ends. */
struct cell {
    int32_t below, particle;
};

static __device__ void count_strata(const struct cloud &c)
{
    const int k = c.a.k;
    for (int m = threadIdx.x; m < k; m += blockDim.x)
        c.count[m] = m; /* the order, until the children are counted */
    if (c.a.pinned)
        shuffle(c);
    __syncthreads();
    for (int m = threadIdx.x; m < k; m += blockDim.x)
        c.share[m] = weight(c, c.count[m]);
    const double total = accumulate(c.share, k, c.scratch);

    int kept = -1; /* the kept child's stratum */
    double place = uniform(c.a, 0, 0);
    if (c.a.pinned) {
        const double v = kept_point(c, total);
        kept = v < k ? (int)v : k - 1;
        place = v - kept;
    }

    struct cell *cell = (struct cell *)c.share;
    for (int m = threadIdx.x; m < k; m += blockDim.x)
        cell[m] = {points_below(c.a, c.share[m] / total, kept, place), c.count[m]};
    __syncthreads();
    for (int m = threadIdx.x; m < k; m += blockDim.x) {
        const int own = cell[m].below - (m > 0 ? cell[m - 1].below : 0), i = cell[m].particle;
        c.count[i] = own + (i == 0 && c.a.pinned);
    }
}

/* ---- ancestors ---- */

/* Gap number n gets surplus child number n; both are counted by inclusive sums. */
static __device__ void settle(const struct cloud &c)
{
    const int k = c.a.k;
    int *surplus = (int *)c.share, *gap = surplus + k, *scratch = (int *)c.scratch;
    __syncthreads();
    for (int i = threadIdx.x; i < k; i += blockDim.x) {
        surplus[i] = c.count[i] > 1 ? c.count[i] - 1 : 0;
        gap[i] = c.count[i] == 0;
    }
    accumulate(surplus, k, scratch);
    accumulate(gap, k, scratch);
    for (int slot = threadIdx.x; slot < k; slot += blockDim.x)
        c.a.ancestor[slot] = c.count[slot] > 0 ? slot : owner(surplus, k, gap[slot] - 1);
    __syncthreads();
}

static __device__ void choose_ancestors(const struct cloud &c, double sum)
{
    if (c.a.scheme == RESAMPLE_MULTINOMIAL)
        count_multinomial(c);
    else if (c.a.scheme == RESAMPLE_RESIDUAL)
        count_residual(c, sum);
    else
        count_strata(c);
    settle(c);
}

static __device__ bool wants_resampling(const struct resample_args &a, double ess)
{
    if (a.ess_threshold == 0 || (a.pinned && a.log_w[0] == -INFINITY))
        return false;
    return a.ess_threshold == 1 || ess < a.ess_threshold * a.k * (1 - 1e-12);
}

/* One block a population; threads stride over its particles. With more threads than particles the
 * idle ones add zeros. */
static __global__ void resample_kernel(const __grid_constant__ struct chunk chunk,
                                       struct resample_out *outs)
{
    SMEM_DYN(double, scratch);
    const struct resample_args a = chunk.at[blockIdx.x];
    double *const own = scratch + scratch_size(a.k);
    struct cloud c = {a, -INFINITY, scratch, a.log_rho, a.ancestor};
    if (a.k <= SMALL) {
        c.share = own;
        c.count = (int32_t *)(own + a.k);
    }
    struct resample_out out = {-INFINITY, 0, 0};
    for (int i = threadIdx.x; i < a.k; i += blockDim.x) {
        c.max = fmax(c.max, a.log_w[i]);
        a.ancestor[i] = i;
    }
    c.max = block_max(c.max, scratch);
    double sum = 0, sum2 = 0;
    if (c.max > -INFINITY) {
        for (int i = threadIdx.x; i < a.k; i += blockDim.x) {
            const double w = weight(c, i);
            sum += w;
            sum2 += w * w;
        }
        sum = block_sum(sum, scratch);
        sum2 = block_sum(sum2, scratch);
        out.log_mean = c.max + log(sum / a.k);
        out.ess = sum / sum2 * sum;
        out.resampled = wants_resampling(a, out.ess);
        if (out.resampled)
            choose_ancestors(c, sum);
    }
    for (int i = threadIdx.x; i < a.k; i += blockDim.x)
        a.log_rho[i] = out.ess > 0 ? a.log_w[i] - c.max - log(sum) : -INFINITY;
    if (threadIdx.x == 0)
        outs[blockIdx.x] = out;
}

/* Bytes of shared memory for a population. */
static size_t shared_bytes(int k)
{
    const size_t work = k <= SMALL ? (size_t)k * (sizeof(double) + sizeof(int32_t)) : 0;
    return (size_t)scratch_size(k) * sizeof(double) + work;
}

int cuda_resample(struct backend *b, const struct resample_args *args, struct resample_out *out,
                  int n)
{
    for (int first = 0; first < n; first += CHUNK) {
        const int some = n - first < CHUNK ? n - first : CHUNK;
        struct chunk chunk = {};
        int largest = 1;
        size_t smem = 0;
        for (int i = 0; i < some; i++) {
            chunk.at[i] = args[first + i];
            largest = std::max(largest, args[first + i].k);
            smem = std::max(smem, shared_bytes(args[first + i].k));
        }
        LAUNCH(resample_kernel, some, row_threads(largest, MAX_THREADS), smem, cuda(b)->stream)
        (chunk, out + first);
    }
    return cuda_done(b, OP_RESAMPLE);
}
