/* Fused: a row of logits to its prior p0, its proposal q ∝ p0 ψ, and draws from either. The
 * algorithm is propose.c's; read its head first.
 *
 * A thread block works on a row, a warp on one block of 512 tokens at a time, whose logits it
 * holds in registers: 16 a lane. What is known of each block, its maximum and its sum of
 * exponentials for p and for q, stays in shared memory. What goes across blocks of tokens is
 * little, and one warp does it, or all do the same.
 *
 * Memory: a row's logits are read once, its dense twists once, and for a draw the 2 KiB of one
 * block again (with them 2 KiB of twists). Nothing is written but biases and results. Top-k and
 * top-p read the row once more for their threshold and once more to weigh what is left, but of
 * blocks whose maximum is too small nothing; one more time where more than a few thousand logits
 * may be the threshold. A gradient reads what it read once more.
 *
 * Every sum has an order that the vocabulary fixes, except those of the search for a threshold:
 * their terms are integers, and the order does not matter. */
#include "philox.h"
#include "propose_top.cuh"

/* ---- the row as a whole ---- */

/* Where each block's ids begin in psi_id: a thread fills in the blocks between two ids. */
static __device__ __forceinline__ void find_psi(const struct row &r)
{
    const int n = r.prior->n_psi;
    const int32_t *id = r.prior->psi_id;
    for (int i = threadIdx.x; n > 0 && i <= n; i += blockDim.x) {
        const int from = i > 0 ? id[i - 1] / BLOCK + 1 : 0, to = i < n ? id[i] / BLOCK : r.n_blocks;
        for (int b = from; b <= to; b++)
            r.psi_start[b] = i;
    }
}

/* A token may be in both lists. */
static __device__ __forceinline__ void add_bias(const struct row &r, bool ban_eos)
{
    for (int i = threadIdx.x; i < r.prior->n_bias; i += blockDim.x)
        r.x[r.prior->bias_id[i]] += r.prior->bias[i];
    __syncthreads();
    for (int i = threadIdx.x; ban_eos && i < r.prior->n_eos; i += blockDim.x)
        r.x[r.prior->eos_id[i]] = -INFINITY;
    __syncthreads();
}

/* The last look at the logits weighs them for q as well. */
static __device__ __forceinline__ void weigh(struct row &r)
{
    bool top_k = r.prior->top_k > 0 && r.prior->top_k < r.vocab, top_p = r.prior->top_p < 1;
    weigh_row(r, r.twisted && !top_k && !top_p);
    while (top_k || top_p) {
        struct search s = top_k ? search_top_k(r) : search_top_p(r);
        search_row(r, s);
        cut(r, s);
        top_p = top_k && top_p;
        top_k = false;
        weigh_row(r, r.twisted && !top_p);
    }
}

static __device__ __forceinline__ void set_up(struct row &r, const struct propose_args &a,
                                              unsigned char *smem)
{
    const struct propose_row *row = &a.rows[blockIdx.x];
    r.x = a.logits + (size_t)blockIdx.x * (size_t)a.vocab;
    r.twist = row->twist >= 0 ? a.twist + (size_t)row->twist * (size_t)a.vocab : NULL;
    r.prior = &a.priors[row->prior];
    r.vocab = a.vocab;
    r.n_blocks = (a.vocab + BLOCK - 1) / BLOCK;
    r.inv_t = 1 / r.prior->temperature;
    r.twisted = r.twist || r.prior->n_psi > 0;
    r.threshold = -INFINITY;
    r.last = INT_MAX;
    r.board = reinterpret_cast<struct board *>(smem);
    r.scratch = reinterpret_cast<float *>(r.board + 1);
    r.p = {reinterpret_cast<struct block *>(r.scratch + n_warps() * BLOCK), &r.board->p};
    r.q = {r.p.at + r.n_blocks, &r.board->q};
    r.psi_start = reinterpret_cast<int *>(r.q.at + r.n_blocks);
}

/* The thread block's row with its prior and its proposal. */
static __device__ __forceinline__ void open_row(struct row &r, const struct propose_args &a,
                                                unsigned char *smem)
{
    set_up(r, a, smem);
    if (threadIdx.x == 0)
        r.board->gathered = 0;
    find_psi(r);
    add_bias(r, a.rows[blockIdx.x].ban_eos);
    weigh(r);
    if (warp_id() == 0) {
        const double total = add_up_prior(r);
        if (r.twisted)
            add_up_proposal(r, total);
    }
    __syncthreads();
}

/* Does the row draw from q? Else from p. */
static __device__ __forceinline__ bool draws_from_q(const struct row &r)
{
    return r.twisted && !r.prior->base_proposal;
}

/* ---- draws, each by a warp ---- */

static __device__ __forceinline__ int draw(const struct row &r, bool q, double u)
{
    const struct blocks s = q ? r.q : r.p;
    float share[EACH];
    double below;
    const double point = u * s.of->total;
    if (!(s.of->total > 0))
        return -1;
    const int b = owning_block(r, s, point, &below);
    shares(r, q, b, share);
    return b * BLOCK + owner_in_block(r, share, (point - below) / (double)s.at[b].mass);
}

/* The sparse part of v's log ψ. */
static __device__ __forceinline__ float sparse_psi(const struct row &r, int v)
{
    const struct prior *prior = r.prior;
    const int b = v / BLOCK;
    float psi = 0;
    if (has_psi(r, b))
        for (int i = r.psi_start[b] + lane_id(); i < r.psi_start[b + 1]; i += WARP)
            psi = prior->psi_id[i] == v ? prior->psi[i] : psi;
    return warp_sum(psi);
}

static __device__ __forceinline__ double log_share(const struct blocks &s, int b, float value)
{
    return s.of->total > 0 ? (double)s.at[b].unit + value - s.of->log_total : -INFINITY;
}

static __device__ __forceinline__ struct propose_out propose_one(const struct row &r,
                                                                 const struct propose_draw &d)
{
    const bool q = draws_from_q(r);
    struct propose_out out = {d.forced, -INFINITY, -INFINITY, 0, -INFINITY};
    if (d.forced < 0) {
        const struct philox random = philox4x32(d.seed, d.step, d.particle, PHILOX_DRAW, 0);
        out.token = draw(r, q, philox_u01(random.v[0], random.v[1]));
    }
    if (r.p.of->total > 0)
        out.lambda = r.twisted ? r.q.of->top + r.q.of->log_total - r.p.of->log_total : 0;
    if (out.token < 0)
        return out;
    const int v = out.token, b = v / BLOCK;
    const float value = prior_value(r, kept(r, r.x[v], v), r.p.at[b].max);
    out.log_p0 = out.log_q = log_share(r.p, b, value);
    if (!r.twisted)
        return out;
    const float dense = r.twist ? r.twist[v] : 0, sparse = sparse_psi(r, v);
    out.log_psi = dense + sparse;
    if (q)
        out.log_q = log_share(r.q, b, value + dense + sparse - anchor(r.q.at[b].max));
    return out;
}

/* A thread block a row, a warp a block of tokens, and then a warp a draw. */
static __global__ void __launch_bounds__(WARPS_MAX *WARP, 2)
    propose_kernel(const __grid_constant__ struct propose_args a)
{
    SMEM_DYN(unsigned char, smem);
    struct row r;
    open_row(r, a, smem);
    const int first = a.rows[blockIdx.x].first_draw, end = first + a.rows[blockIdx.x].n_draws;
    for (int j = first + warp_id(); j < end; j += n_warps()) {
        const struct propose_out out = propose_one(r, a.draws[j]);
        if (lane_id() == 0)
            a.out[j] = out;
    }
}

/* ---- the gradient of a forced token's log q ---- */

/* dy = coef (q - [v is the forced token]). Where q is empty all of it is 0. */
static __device__ __forceinline__ void grad_block(const struct row &r, int b, float coef,
                                                  int forced, float *dy)
{
    const bool q = draws_from_q(r);
    const struct blocks s = q ? r.q : r.p;
    const bool empty = !(s.of->total > 0) || s.at[b].max == -INFINITY;
    const float scale = empty ? 0 : coef * (float)exp((double)s.at[b].unit - s.of->log_total);
    float v[EACH] = {0};
    if (!empty)
        shares(r, q, b, v);
#pragma unroll
    for (int i = 0; i < EACH; i++)
        v[i] = scale * v[i] - (b * BLOCK + place(i) == forced ? coef : 0);
    store_block(dy, r.vocab, b, v);
}

/* A thread block a row, a warp a block of tokens. */
static __global__ void __launch_bounds__(WARPS_MAX *WARP, 2)
    propose_grad_kernel(const __grid_constant__ struct propose_args a, const float *coef, float *dy)
{
    SMEM_DYN(unsigned char, smem);
    struct row r;
    open_row(r, a, smem);
    const int forced = a.draws[a.rows[blockIdx.x].first_draw].forced;
    dy += (size_t)blockIdx.x * (size_t)a.vocab;
    for (int b = warp_id(); b < r.n_blocks; b += n_warps())
        grad_block(r, b, coef[blockIdx.x], forced, dy);
}

/* ---- launchers ---- */

/* Threads and shared memory for a row, by the vocabulary alone. */
struct shape {
    int threads;
    size_t smem;
};

static struct shape shape_of(int vocab)
{
    const int n_blocks = (vocab + BLOCK - 1) / BLOCK;
    const int threads = row_threads(n_blocks * WARP, WARPS_MAX * WARP);
    return {threads, sizeof(struct board) + sizeof(float) * (size_t)(threads / WARP * BLOCK) +
                         sizeof(float) * (size_t)(9 * n_blocks + 1)};
}

template <class K> static cudaError_t allow(K *kernel, size_t smem)
{
    return smem > 48 << 10 ? cudaFuncSetAttribute(
                                 kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)smem)
                           : cudaSuccess;
}

int cuda_propose(struct backend *b, const struct propose_args *a, int n)
{
    const struct shape s = shape_of(a->vocab);
    if (cuda_check(b, "propose", allow(propose_kernel, s.smem)))
        return -1;
    LAUNCH(propose_kernel, n, s.threads, s.smem, cuda(b)->stream)(*a);
    return cuda_done(b, OP_PROPOSE);
}

int cuda_propose_grad(struct backend *b, const struct propose_args *a, const float *coef, float *dy,
                      int n)
{
    const struct shape s = shape_of(a->vocab);
    if (cuda_check(b, "propose_grad", allow(propose_grad_kernel, s.smem)))
        return -1;
    LAUNCH(propose_grad_kernel, n, s.threads, s.smem, cuda(b)->stream)
    (*a, coef, dy);
    return cuda_done(b, OP_PROPOSE_GRAD);
}
