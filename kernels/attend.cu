/* Causal attention over paged keys and values.
 *
 * A warp works on one row, up to HEADS query heads of one KV head and every parts-th range of
 * RANGE tokens. It takes a range's pages in order of position with a running maximum (online
 * softmax: Milakov and Gimelshein 2018); ranges are put together in order of position. So the order
 * of every sum is fixed by the position alone: a row gives the same bits in a prompt chunk and in a
 * decode step, whoever its neighbours are. Of attend.c's functions score_pages is score() here,
 * add_chunk is add_page(), and the state that its struct group keeps from chunk to chunk is in
 * struct range, in registers; the order of its sums is another one.
 *
 * A block has the warps of `rows` adjacent rows and one KV head, all its query heads where they
 * fit. What is read: the rows' page ids at the same place of their tables are compared, and each
 * distinct page is brought to shared memory once for all of the block's rows that have it there -
 * the prompt's, a common ancestor's, those of a prompt chunk. A page that m neighbours share comes
 * from the L2 cache about m / rows times, from device memory once as long as L2 keeps it. From
 * shared memory each of these rows reads it once for HEADS heads.
 *
 * Neither the rows of a block nor its parts change a bit: the launcher takes as many rows as leave
 * no multiprocessor idle, and for what warps are then free a row has parts, so that a few rows with
 * long contexts are not the work of a few warps. */
#include "cuda.cuh"

static constexpr int WARPS = 8;       /* of a block, at most */
static constexpr int RANGE_PAGES = 8; /* of a range */
static constexpr int RANGE = RANGE_PAGES * KV_PAGE;
static constexpr int TABLE = WARPS * RANGE_PAGES; /* page ids of a round, at most */
static constexpr int TILE = 4;                    /* tokens a lane scores at once */
static constexpr int BATCH = 4;                   /* loads of a thread in flight */
static constexpr int HEAD_DIM_MAX = 512;

/* How a warp shares out a page. LANES lanes hold a token's key or value, VECS vectors each; each of
 * the warp's GROUPS of lanes has every GROUPS-th token, and works on TILE of them at once. A score,
 * and later the share of its token, belongs to one of the SPREAD lanes of its head, OWN of each
 * tile; where there are more lanes than scores, SAME adjacent ones have the same.
 *
 * In bf16 with 4 query heads of 64 a KV head: a key is 8 vectors in 8 lanes, so there are 4 groups,
 * each with 4 tokens of a page's 16: one tile. Its 4 x 4 scores belong to the group's 8 lanes,
 * lanes 0 and 1 those of the first head, 2 each. */
template <class Type, int LANES_, int VECS_, int HEADS_> struct shape {
    typedef Type T;
    static constexpr int LANES = LANES_, VECS = VECS_, HEADS = HEADS_;
    static constexpr int N = vec<T>::N, DIMS = VECS * N; /* a lane's elements */
    static constexpr int WIDTH = LANES * VECS;           /* vectors of a key in shared memory */
    static constexpr int GROUPS = WARP / LANES, TILES = KV_PAGE / GROUPS / TILE;
    static constexpr int PAD = HEADS == 3 ? 4 : HEADS, SPREAD = LANES / PAD;
    static constexpr int OWN = SPREAD < TILE ? TILE / SPREAD : 1;
    static constexpr int SAME = SPREAD < TILE ? 1 : SPREAD / TILE;
    static constexpr int SLOTS = WIDTH <= 16 ? 8 : 128 / WIDTH; /* pages: 64 KiB at most */
};

/* A block's shared memory. */
template <class S> struct block {
    uint4 page[S::SLOTS][2 * KV_PAGE * S::WIDTH]; /* keys, values; zeros behind an element's end */
    float share[WARPS][KV_PAGE * S::PAD];         /* of a page's tokens: e^(score - max) */
    float acc[WARPS][S::HEADS][S::WIDTH * S::N];  /* of the ranges so far: Σ share v, */
    float max[WARPS][S::PAD], sum[WARPS][S::PAD]; /* relative to max, and Σ share */
    int32_t place[TABLE], distinct[TABLE], before[RANGE_PAGES + 1]; /* see list_pages() */
    uint32_t fresh[TABLE / WARP];
};

/* What a launch is about. A block has rows × parts × subs warps, parts next to each other, then
 * rows, then subs; rows × parts is a power of two, called units: a unit is a row and a part. A
 * round is the next range of each unit: parts × RANGE tokens of every row. */
struct call {
    struct attend_args a;
    const unsigned char *layer;
    size_t page_bytes, head_bytes;
    int vectors; /* of a key in memory */
    int n, rows, parts;
    int subs, chunks; /* warps for a KV head's query heads: in a block, and blocks */
};

/* ---- a warp's range ---- */

template <class S> struct range {
    float q[S::HEADS][S::DIMS];   /* scaled */
    float acc[S::HEADS][S::DIMS]; /* Σ share v of this lane's tokens, relative to max */
    float max, sum;               /* of this lane's head; sum over its own tokens */
};

static __device__ __forceinline__ int lane_id()
{
    return threadIdx.x % WARP;
}

/* The head whose scores this lane owns, and the first of its tokens in a tile. */
template <class S> static __device__ __forceinline__ int own_head()
{
    return lane_id() % S::LANES / S::SPREAD;
}

template <class S> static __device__ __forceinline__ int own_token()
{
    return lane_id() % S::SPREAD * S::OWN / S::SAME;
}

/* Of the page: the j-th token of a tile of this lane's. */
template <class S> static __device__ __forceinline__ int token_of(int tile, int j)
{
    return (tile * TILE + j) * S::GROUPS + lane_id() / S::LANES;
}

/* Element e of this lane's DIMS, as an element of the head. */
template <class S> static __device__ __forceinline__ int dim_of(int e)
{
    return (e / S::N * S::LANES + lane_id() % S::LANES) * S::N + e % S::N;
}

template <class S>
static __device__ __forceinline__ vec<typename S::T> load_part(const uint4 *line, int i)
{
    const typename S::T *type = nullptr;
    return widen(type, line[i * S::LANES + lane_id() % S::LANES]);
}

/* Every lane of a group of 2 M has N numbers; afterwards lane c has their sums over the group: the
 * one with index c N / 2M where 2M >= N, else N / 2M of them from there on. */
template <int N, int M> static __device__ __forceinline__ void scatter_sums(float *x)
{
    if constexpr (M == 0) {
        return;
    } else if constexpr (N == 1) {
        x[0] += __shfl_xor_sync(~0u, x[0], M);
        scatter_sums<1, M / 2>(x);
    } else {
        const bool upper = lane_id() & M;
#pragma unroll
        for (int i = 0; i < N / 2; i++) {
            const float give = upper ? x[i] : x[i + N / 2], keep = upper ? x[i + N / 2] : x[i];
            x[i] = keep + __shfl_xor_sync(~0u, give, M);
        }
        scatter_sums<N / 2, M / 2>(x);
    }
}

/* x[tile][i]: the scores this lane owns; -inf for tokens that are not the row's: what lies there
 * is not of this sequence, and may be NaN. */
template <class S>
static __device__ __forceinline__ void score(float (&x)[S::TILES][S::OWN], const range<S> &r,
                                             const uint4 *keys, int tokens)
{
#pragma unroll
    for (int tile = 0; tile < S::TILES; tile++) {
        float s[S::PAD * TILE] = {};
#pragma unroll
        for (int j = 0; j < TILE; j++)
#pragma unroll
            for (int i = 0; i < S::VECS; i++) {
                const auto k = load_part<S>(keys + token_of<S>(tile, j) * S::WIDTH, i);
#pragma unroll
                for (int h = 0; h < S::HEADS; h++)
#pragma unroll
                    for (int e = 0; e < S::N; e++)
                        s[h * TILE + j] += r.q[h][i * S::N + e] * k.v[e];
            }
        scatter_sums<S::PAD * TILE, S::LANES / 2>(s);
#pragma unroll
        for (int i = 0; i < S::OWN; i++)
            x[tile][i] = token_of<S>(tile, own_token<S>() + i) < tokens ? s[i] : -INFINITY;
    }
}

/* Scores to shares in shared memory. Returns what the sums of before are to be multiplied by. */
template <class S>
static __device__ __forceinline__ float
exponentiate(range<S> &r, const float (&x)[S::TILES][S::OWN], float *share)
{
    float top = r.max;
#pragma unroll
    for (int i = 0; i < S::TILES * S::OWN; i++)
        top = fmaxf(top, x[i / S::OWN][i % S::OWN]);
#pragma unroll
    for (int m = 1; m < WARP; m *= 2)
        if (m < S::SPREAD || m >= S::LANES)
            top = fmaxf(top, __shfl_xor_sync(~0u, top, m));
    const float shrink = expf(r.max - top);
    r.max = top;
    r.sum *= shrink;
#pragma unroll
    for (int i = 0; i < S::TILES * S::OWN; i++) {
        const int token = token_of<S>(i / S::OWN, own_token<S>() + i % S::OWN);
        const float p = expf(x[i / S::OWN][i % S::OWN] - top);
        r.sum += p;
        if (lane_id() % S::SAME == 0)
            share[token * S::PAD + own_head<S>()] = p;
    }
    return shrink;
}

/* acc = shrink acc + Σ share v over the page. Tokens that are not the row's have share 0 and read
 * the first one's value, as 0 times what lies there might not be 0. */
template <class S>
static __device__ __forceinline__ void add_values(range<S> &r, float shrink, const float *share,
                                                  const uint4 *values, int tokens)
{
    if (__ballot_sync(~0u, shrink != 1.0f)) /* seldom, once the maximum is found */
#pragma unroll
        for (int h = 0; h < S::HEADS; h++) {
            const float factor = __shfl_sync(~0u, shrink, h * S::SPREAD);
#pragma unroll
            for (int e = 0; e < S::DIMS; e++)
                r.acc[h][e] *= factor;
        }
#pragma unroll(TILE)
    for (int j = 0; j < S::TILES * TILE; j++) {
        const int t = token_of<S>(0, j);
        const uint4 *line = values + (t < tokens ? t : 0) * S::WIDTH;
        struct alignas(4 * S::PAD) {
            float head[S::PAD];
        } p;
        p = *reinterpret_cast<const decltype(p) *>(share + t * S::PAD);
#pragma unroll
        for (int i = 0; i < S::VECS; i++) {
            const auto v = load_part<S>(line, i);
#pragma unroll
            for (int h = 0; h < S::HEADS; h++)
#pragma unroll
                for (int e = 0; e < S::N; e++)
                    r.acc[h][i * S::N + e] += p.head[h] * v.v[e];
        }
    }
}

template <class S>
static __device__ __forceinline__ void add_page(range<S> &r, float *share, const uint4 *page,
                                                int tokens)
{
    float x[S::TILES][S::OWN];
    score<S>(x, r, page, tokens);
    const float shrink = exponentiate<S>(r, x, share);
    __syncwarp();
    add_values<S>(r, shrink, share, page + KV_PAGE * S::WIDTH, tokens);
    __syncwarp(); /* before the next page's shares */
}

template <class S> static __device__ __forceinline__ void range_begin(range<S> &r)
{
    r.max = -INFINITY;
    r.sum = 0;
#pragma unroll
    for (int i = 0; i < S::HEADS * S::DIMS; i++)
        r.acc[i / S::DIMS][i % S::DIMS] = 0;
}

/* Add a range to those before it, in shared memory at `to`: the row's and sub's. */
template <class S>
static __device__ __forceinline__ void range_end(range<S> &r, block<S> *b, int to)
{
    const int lane = lane_id(), h_own = own_head<S>();
    float sum = r.sum;
#pragma unroll
    for (int m = S::SAME; m < WARP; m *= 2)
        if (m < S::SPREAD || m >= S::LANES)
            sum += __shfl_xor_sync(~0u, sum, m);
    const float top = fmaxf(b->max[to][h_own], r.max);
    const float old_factor = expf(b->max[to][h_own] - top), factor = expf(r.max - top);
    sum = b->sum[to][h_own] * old_factor + sum * factor;
    __syncwarp();
    if (lane < S::LANES && lane % S::SPREAD == 0) {
        b->max[to][h_own] = top;
        b->sum[to][h_own] = sum;
    }
#pragma unroll
    for (int h = 0; h < S::HEADS; h++) {
        const float f_old = __shfl_sync(~0u, old_factor, h * S::SPREAD);
        const float f = __shfl_sync(~0u, factor, h * S::SPREAD);
#pragma unroll
        for (int e = 0; e < S::DIMS; e++) {
            float x = r.acc[h][e], *acc = &b->acc[to][h][dim_of<S>(e)];
#pragma unroll
            for (int m = S::LANES; m < WARP; m *= 2)
                x += __shfl_xor_sync(~0u, x, m);
            if (lane < S::LANES)
                *acc = *acc * f_old + x * f;
        }
    }
    __syncwarp();
}

/* ---- a block's pages ----
 *
 * In a round each row wants up to RANGE_PAGES pages of each of its parts. They are entries of a
 * table, in order of their index in the range and then of their unit: so what is at the same place
 * of several rows' contexts, and likely the same page, is adjacent. Of each index list_pages()
 * finds the distinct pages, load_pages() brings them to slots. */

/* Entry j of a round's table is the page of (row, part) j % units at index j / units of its range.
 */
struct entry {
    const int32_t *pages; /* the row's, from the entry's on */
    int tokens;           /* of the row, from the entry's first one on */
};

static __device__ __forceinline__ struct entry entry_begin(const struct call &c)
{
    const int units = c.rows * c.parts, j = threadIdx.x, unit = j % units;
    const int row = blockIdx.x * c.rows + unit / c.parts;
    const int page = unit % c.parts * RANGE_PAGES + j / units;
    if (j >= units * RANGE_PAGES || row >= c.n)
        return {nullptr, 0};
    return {c.a.pages + c.a.page_start[c.a.seq[row]] + page, c.a.pos[row] + 1 - page * KV_PAGE};
}

/* The page's id, -1 where the row has none; goes on to the next round. */
static __device__ __forceinline__ int32_t entry_id(struct entry &e, int parts)
{
    const int32_t id = e.tokens > 0 ? *e.pages : -1;
    e.pages += parts * RANGE_PAGES;
    e.tokens -= parts * RANGE;
    return id;
}

/* How many entries before entry k, or with k = TABLE of all, are the first of their page. (With
 * TABLE there is no word that k is in; the first stands in for it, and none of its bits count.) */
template <class S> static __device__ __forceinline__ int rank_of(const block<S> *b, int k)
{
    int rank = __popc(b->fresh[k / WARP % (TABLE / WARP)] & ((1u << k % WARP) - 1));
    for (int i = 0; i < k / WARP; i++)
        rank += __popc(b->fresh[i]);
    return rank;
}

/* From the entries' ids: `distinct`, the round's distinct pages in order of index; `place`, where
 * in it each entry's page is (at first, the ids); `before`, how many belong to smaller indices. All
 * threads call. */
template <class S> static __device__ void list_pages(block<S> *b, int units, int32_t id)
{
    const int j = threadIdx.x, n = units * RANGE_PAGES, row = j / units * units;
    int first = j;
    if (j < n)
        b->place[j] = id;
    __syncthreads();
    if (j < n)
        for (int k = j - 1; k >= row; k--)
            first = b->place[k] == id ? k : first;
    const uint32_t fresh = __ballot_sync(~0u, j < n && id >= 0 && first == j);
    if (j < TABLE && j % WARP == 0)
        b->fresh[j / WARP] = fresh;
    __syncthreads();
    if (j < n)
        b->place[j] = rank_of<S>(b, first);
    if (j < n && first == j && id >= 0)
        b->distinct[rank_of<S>(b, j)] = id;
    if (j <= RANGE_PAGES)
        b->before[j] = rank_of<S>(b, j * units);
    __syncthreads();
}

/* Bring distinct pages first, first + 1 ... to the slots. */
template <class S>
static __device__ __forceinline__ void load_pages(block<S> *b, const struct call &c, int first,
                                                  int count)
{
    constexpr int UNITS = 2 * KV_PAGE * S::WIDTH; /* 16-byte units of a page */
    const int total = count * UNITS, threads = blockDim.x;
    uint4 *slots = b->page[0];
    for (int base = threadIdx.x; base < total; base += BATCH * threads) {
        uint4 x[BATCH];
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            const int at = base + i * threads, line = at % UNITS / S::WIDTH;
            x[i] = make_uint4(0, 0, 0, 0);
            if (at < total && at % S::WIDTH < c.vectors)
                x[i] = *(reinterpret_cast<const uint4 *>(
                             c.layer + (size_t)b->distinct[first + at / UNITS] * c.page_bytes +
                             (size_t)(blockIdx.y / c.chunks) * c.head_bytes) +
                         line * c.vectors + at % S::WIDTH);
        }
#pragma unroll
        for (int i = 0; i < BATCH; i++)
            if (base + i * threads < total)
                slots[base + i * threads] = x[i];
    }
}

/* ---- the kernel ---- */

/* What a warp is to do. */
struct work {
    int row, head, heads; /* heads 0: nothing */
    int unit, part;       /* (row, part) in the block; part of the row's ranges */
    int tokens;           /* of the row */
};

template <class S> static __device__ __forceinline__ struct work work_begin(const struct call &c)
{
    const int warp = threadIdx.x / WARP, units = c.rows * c.parts, unit = warp % units;
    const int per_kv = c.a.heads / c.a.kv_heads, kv_head = blockIdx.y / c.chunks;
    const int first = (blockIdx.y % c.chunks * c.subs + warp / units) * S::HEADS;
    const int row = blockIdx.x * c.rows + unit / c.parts;
    const int heads = row < c.n ? max(0, min(S::HEADS, per_kv - first)) : 0;
    return {row,  kv_head * per_kv + first, heads,
            unit, unit % c.parts,           heads ? c.a.pos[row] + 1 : 0};
}

/* Tokens of the block's longest row. */
static __device__ __forceinline__ int most_tokens(const struct call &c)
{
    int most = 0;
    for (int i = blockIdx.x * c.rows, end = min(i + c.rows, c.n); i < end; i++)
        most = max(most, c.a.pos[i] + 1);
    return most;
}

template <class S>
static __device__ __forceinline__ void load_q(range<S> &r, const struct call &c,
                                              const struct work &w)
{
    const int hd = c.a.head_dim, width = (c.a.heads + 2 * c.a.kv_heads) * hd;
    const float *q = c.a.qkv + (size_t)w.row * (size_t)width + w.head * hd;
#pragma unroll
    for (int h = 0; h < S::HEADS; h++)
#pragma unroll
        for (int e = 0; e < S::DIMS; e++) {
            const int d = dim_of<S>(e);
            r.q[h][e] = h < w.heads && d < hd ? q[h * hd + d] * c.a.scale : 0.0f;
        }
}

template <class S> static __device__ __forceinline__ void clear_sums(block<S> *b)
{
    float *acc = b->acc[0][0], *max = b->max[0], *sum = b->sum[0];
    for (int i = threadIdx.x; i < WARPS * S::HEADS * S::WIDTH * S::N; i += blockDim.x)
        acc[i] = 0;
    for (int i = threadIdx.x; i < WARPS * S::PAD; i += blockDim.x) {
        max[i] = -INFINITY;
        sum[i] = 0;
    }
}

/* The listed pages, as many indices at a time as have room; `tokens` of the warp's row from its
 * range's first one on. */
template <class S>
static __device__ __forceinline__ void add_range(range<S> &r, block<S> *b, const struct call &c,
                                                 int unit, int tokens)
{
    float *share = b->share[threadIdx.x / WARP];
    for (int i = 0, end; i < RANGE_PAGES; i = end) {
        const int loaded = b->before[i];
        for (end = i + 1; end < RANGE_PAGES && b->before[end + 1] - loaded <= S::SLOTS;)
            end++;
        load_pages<S>(b, c, loaded, b->before[end] - loaded);
        __syncthreads();
        for (int j = i; j < end && j * KV_PAGE < tokens; j++)
            add_page<S>(r, share, b->page[b->place[j * c.rows * c.parts + unit] - loaded],
                        tokens - j * KV_PAGE);
        __syncthreads();
    }
}

template <class S>
static __device__ __forceinline__ void store_out(const block<S> *b, const struct call &c,
                                                 const struct work &w, int from)
{
    typedef typename S::T T;
    const int hd = c.a.head_dim;
    T *out = (T *)c.a.out + (size_t)w.row * (size_t)(c.a.heads * hd) + w.head * hd;
    for (int i = lane_id(); i < w.heads * hd; i += WARP)
        out[i] = from_float<T>(b->acc[from][i / hd][i % hd] / b->sum[from][i / hd]);
}

/* A block for c.rows adjacent rows and a KV head, or one of the c.chunks of its query heads; a warp
 * for a row, a part of its ranges and HEADS query heads. */
template <class S>
static __global__ void __launch_bounds__(WARPS *WARP, S::VECS > 1 ? 1 : 2)
    attend_kernel(struct call c)
{
    SMEM_DYN(block<S>, b);
    const struct work w = work_begin<S>(c);
    const int total = threadIdx.x / WARP - w.part; /* the row's first part puts ranges together */
    const int round = c.parts * RANGE;
    struct entry entry = entry_begin(c);
    int32_t id = entry_id(entry, c.parts);
    int tokens = w.tokens - w.part * RANGE;
    range<S> r;
    load_q<S>(r, c, w);
    clear_sums<S>(b);
    for (int most = most_tokens(c); most > 0; most -= round, tokens -= round) {
        list_pages<S>(b, c.rows * c.parts, id);
        id = entry_id(entry, c.parts); /* for the next round */
        range_begin<S>(r);
        add_range<S>(r, b, c, w.unit, tokens);
        for (int part = 0; part < c.parts && part * RANGE < most; part++) { /* in order */
            if (part == w.part && tokens > 0)
                range_end<S>(r, b, total);
            if (c.parts > 1)
                __syncthreads();
        }
    }
    if (w.part == 0 && w.heads)
        store_out<S>(b, c, w, total);
}

/* ---- launch ---- */

/* As many rows a block as leave no multiprocessor without one. */
static int block_rows(const struct cuda *c, int n, int units, int blocks_a_row)
{
    int rows = units;
    while (rows > 1 && (rows > n || (n + rows - 1) / rows * blocks_a_row < c->n_sm))
        rows /= 2;
    return rows;
}

/* The largest power of two that is not above x. */
static int power_below(int x)
{
    int p = 1;
    while (2 * p <= x)
        p *= 2;
    return p;
}

template <class S>
static int launch(struct backend *b, const struct kv_store *s, int layer,
                  const struct attend_args *a, int n)
{
    static_assert(sizeof(block<S>) <= 99 << 10, "what every device since 9.0 can give a block");
    const int per_kv = a->heads / a->kv_heads, warps = (per_kv + S::HEADS - 1) / S::HEADS;
    const int subs = warps < WARPS ? warps : WARPS, chunks = (warps + subs - 1) / subs;
    const int units = power_below(WARPS / subs < S::SLOTS ? WARPS / subs : S::SLOTS);
    const int rows = block_rows(cuda(b), n, units, a->kv_heads * chunks);
    const struct call c = {*a,
                           s->data + (size_t)layer * s->layer_bytes,
                           s->page_bytes,
                           s->head_bytes,
                           s->row / S::N,
                           n,
                           rows,
                           units / rows,
                           subs,
                           chunks};
    const dim3 grid((n + rows - 1) / rows, a->kv_heads * chunks);
    auto kernel = attend_kernel<S>;
    if (cuda_check(b, "attend",
                   cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        (int)sizeof(block<S>))))
        return -1;
    LAUNCH(kernel, grid, units * subs * WARP, sizeof(block<S>), cuda(b)->stream)(c);
    return cuda_done(b, OP_ATTEND);
}

/* A KV head's query heads, shared out evenly to as few warps as there can be. */
template <class T, int LANES, int VECS>
static int launch_heads(struct backend *b, const struct kv_store *s, int layer,
                        const struct attend_args *a, int n)
{
    constexpr int MOST = LANES == WARP ? 2 : 4; /* what registers hold */
    const int per_kv = a->heads / a->kv_heads, warps = (per_kv + MOST - 1) / MOST;
    const int heads = (per_kv + warps - 1) / warps;
    if (heads == 1)
        return launch<shape<T, LANES, VECS, 1>>(b, s, layer, a, n);
    if (heads == 2)
        return launch<shape<T, LANES, VECS, 2>>(b, s, layer, a, n);
    if constexpr (MOST == 4)
        return heads == 3 ? launch<shape<T, LANES, VECS, 3>>(b, s, layer, a, n)
                          : launch<shape<T, LANES, VECS, 4>>(b, s, layer, a, n);
    return -1;
}

template <class T>
static int attend(struct backend *b, const struct kv_store *s, int layer,
                  const struct attend_args *a, int n)
{
    const int vectors = s->row / vec<T>::N;
    if (vectors <= 8)
        return launch_heads<T, 8, 1>(b, s, layer, a, n);
    if (vectors <= 16)
        return launch_heads<T, 16, 1>(b, s, layer, a, n);
    if (vectors <= 32)
        return launch_heads<T, 32, 1>(b, s, layer, a, n);
    if (s->head_dim <= HEAD_DIM_MAX)
        return launch_heads<T, 32, HEAD_DIM_MAX / 32 / vec<T>::N>(b, s, layer, a, n);
    return cuda_fail(b, "attend", "the model's heads are wider than 512 elements");
}

int cuda_attend(struct backend *b, const struct kv_store *s, int layer, const struct attend_args *a,
                int n)
{
    return b->act == ACT_BF16 ? attend<bf16>(b, s, layer, a, n) : attend<float>(b, s, layer, a, n);
}
