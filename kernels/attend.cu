/* Causal attention over paged keys and values.
 *
 * A warp works on one row and up to HEADS query heads of one KV head; PARTS warps share out the
 * row's pages, page p going to warp p % PARTS, and put their parts together at the end. A warp
 * takes its pages in order of position with a running maximum (online softmax: Milakov and
 * Gimelshein 2018). So the order of every sum is fixed by the position alone: a row gives the same
 * bits in a prompt chunk and in a decode step, whoever its neighbours are.
 *
 * What is read: every key and value of a row's pages once for its HEADS heads, 16 bytes a lane. The
 * rows of a block are neighbours in the batch and walk their tables at the same pace, so a page
 * that they share - the prompt's, a common ancestor's, the own one of a prompt chunk - comes from
 * the L2 cache once a block and from then on out of the multiprocessor's own; and from device
 * memory once for all blocks, as all of a step's rows are at work at the same time. How many rows a
 * block has changes no bit.
 *
 * A lane holds 16 bytes of a key, LANES lanes a whole one, so that a warp scores WARP / LANES
 * tokens at once. */
#include "cuda.cuh"

static constexpr int HEAD_DIM_MAX = 512;
static constexpr int PARTS = 4; /* warps of a row */
static constexpr int BATCH = 4; /* loads of a lane in flight */

/* What one warp keeps in shared memory: scores and then shares of a page's tokens, and what its
 * sums are to be multiplied by, for each head; behind all warps, their sums to be put together. */
template <int HEADS> struct page_scores {
    float p[HEADS][KV_PAGE];
    float shrink[HEADS];
};

static __device__ __forceinline__ float max16(float x)
{
#pragma unroll
    for (int m = KV_PAGE / 2; m > 0; m /= 2)
        x = fmaxf(x, __shfl_xor_sync(~0u, x, m));
    return x;
}

static __device__ __forceinline__ float sum16(float x)
{
#pragma unroll
    for (int m = KV_PAGE / 2; m > 0; m /= 2)
        x += __shfl_xor_sync(~0u, x, m);
    return x;
}

/* A warp's row and heads. LANES lanes hold VECS vectors of each key, one behind the other. */
template <class T, int LANES, int VECS, int HEADS> struct walker {
    enum {
        N = vec<T>::N,
        WIDTH = LANES * VECS * N,  /* elements of a head, with what fills it up */
        TOKENS = WARP / LANES,     /* at once */
        ROUNDS = KV_PAGE / TOKENS, /* of them for a page */
        CHUNK = VECS > 1 ? 1
                : ROUNDS<BATCH ? ROUNDS : BATCH, SOFTMAX = HEADS * KV_PAGE> WARP
                    ? HEADS *KV_PAGE / WARP
                    : 1, /* scores of a lane */
    };
    float q[HEADS][VECS * N], acc[HEADS][VECS * N];
    float max[SOFTMAX], sum[SOFTMAX]; /* of head (SOFTMAX lane ...): see softmax() */
    page_scores<HEADS> *scores;
    int lane, row_elements;

    __device__ __forceinline__ int dim(int vector) const /* of this lane's first element */
    {
        return (vector * LANES + lane % LANES) * N;
    }

    __device__ __forceinline__ void begin(const float *from, int heads, int head_dim, float scale)
    {
#pragma unroll
        for (int h = 0; h < HEADS; h++)
#pragma unroll
            for (int e = 0; e < VECS * N; e++) {
                const int d = dim(e / N) + e % N;
                q[h][e] = h < heads && d < head_dim ? from[h * head_dim + d] * scale : 0.0f;
                acc[h][e] = 0;
            }
#pragma unroll
        for (int i = 0; i < SOFTMAX; i++) {
            max[i] = -INFINITY;
            sum[i] = 0;
        }
    }

    /* This lane's part of a token's key or value; zeros behind the row's last token: what lies
     * there is not of this sequence. */
    __device__ __forceinline__ uint4 load(const T *rows, int token, int tokens, int vector) const
    {
        const int d = dim(vector);
        if (token < tokens && d < row_elements)
            return load_raw(rows + (size_t)token * (size_t)row_elements + d);
        return make_uint4(0, 0, 0, 0);
    }

    /* Scores of the page's first `tokens` tokens, -inf behind them. */
    __device__ __forceinline__ void score(const T *keys, int tokens)
    {
#pragma unroll 1
        for (int first = 0; first < ROUNDS; first += CHUNK) {
            uint4 k[CHUNK][VECS];
#pragma unroll
            for (int i = 0; i < CHUNK; i++)
#pragma unroll
                for (int j = 0; j < VECS; j++)
                    k[i][j] = load(keys, (first + i) * TOKENS + lane / LANES, tokens, j);
#pragma unroll
            for (int i = 0; i < CHUNK; i++) {
                const int token = (first + i) * TOKENS + lane / LANES;
                float dot[HEADS] = {};
#pragma unroll
                for (int j = 0; j < VECS; j++) {
                    const vec<T> x = widen(keys, k[i][j]);
#pragma unroll
                    for (int h = 0; h < HEADS; h++)
#pragma unroll
                        for (int e = 0; e < N; e++)
                            dot[h] += q[h][j * N + e] * x.v[e];
                }
#pragma unroll
                for (int h = 0; h < HEADS; h++) {
#pragma unroll
                    for (int m = LANES / 2; m > 0; m /= 2)
                        dot[h] += __shfl_xor_sync(~0u, dot[h], m);
                    if (lane % LANES == 0)
                        scores->p[h][token] = token < tokens ? dot[h] : -INFINITY;
                }
            }
        }
        __syncwarp();
    }

    /* Scores to exponentials. Sixteen lanes share a head, each has a token of it; with one head the
     * upper half of the warp does what the lower does. */
    __device__ __forceinline__ void softmax()
    {
#pragma unroll
        for (int i = 0; i < SOFTMAX; i++) {
            const int at = (i * WARP + lane) % (HEADS * KV_PAGE);
            const int h = at / KV_PAGE, t = at % KV_PAGE;
            const float x = scores->p[h][t], top = fmaxf(max[i], max16(x));
            const float shrink = expf(max[i] - top), p = expf(x - top);
            max[i] = top;
            sum[i] = sum[i] * shrink + sum16(p);
            __syncwarp(); /* the halves of a warp may share a head */
            scores->p[h][t] = p;
            scores->shrink[h] = shrink;
        }
        __syncwarp();
    }

    /* acc = shrink acc + Σ p v over the page. */
    __device__ __forceinline__ void add_values(const T *values, int tokens)
    {
#pragma unroll
        for (int h = 0; h < HEADS; h++)
#pragma unroll
            for (int e = 0; e < VECS * N; e++)
                acc[h][e] *= scores->shrink[h];
#pragma unroll 1
        for (int first = 0; first < ROUNDS; first += CHUNK) {
            uint4 v[CHUNK][VECS];
#pragma unroll
            for (int i = 0; i < CHUNK; i++)
#pragma unroll
                for (int j = 0; j < VECS; j++)
                    v[i][j] = load(values, (first + i) * TOKENS + lane / LANES, tokens, j);
#pragma unroll
            for (int i = 0; i < CHUNK; i++)
#pragma unroll
                for (int j = 0; j < VECS; j++) {
                    const vec<T> x = widen(values, v[i][j]);
#pragma unroll
                    for (int h = 0; h < HEADS; h++) {
                        const float p = scores->p[h][(first + i) * TOKENS + lane / LANES];
#pragma unroll
                        for (int e = 0; e < N; e++)
                            acc[h][j * N + e] += p * x.v[e];
                    }
                }
        }
        __syncwarp(); /* before the next page's scores */
    }

    /* Of each head, `stride` floats apart: the maximum, the sum of shares relative to it, and the
     * sums of shares times values. */
    __device__ __forceinline__ void store(float *to, int stride)
    {
#pragma unroll
        for (int i = 0; i < SOFTMAX; i++) {
            const int at = (i * WARP + lane) % (HEADS * KV_PAGE);
            to[at / KV_PAGE * stride] = max[i];
            to[at / KV_PAGE * stride + 1] = sum[i];
        }
#pragma unroll
        for (int h = 0; h < HEADS; h++)
#pragma unroll
            for (int e = 0; e < VECS * N; e++) {
                float x = acc[h][e];
#pragma unroll
                for (int m = WARP / 2; m >= LANES; m /= 2)
                    x += __shfl_xor_sync(~0u, x, m);
                if (lane < LANES)
                    to[h * stride + 2 + dim(e / N) + e % N] = x;
            }
    }
};

/* out = (Σ_part e^(max - top) values) / (Σ_part e^(max - top) sum): a thread an element. The parts
 * of a head lie `apart` floats apart. */
template <class T>
static __device__ __forceinline__ void put_together(T *out, const float *parts, int apart, int d)
{
    float top = parts[0], sum = 0, value = 0;
#pragma unroll
    for (int i = 1; i < PARTS; i++)
        top = fmaxf(top, parts[i * apart]);
#pragma unroll
    for (int i = 0; i < PARTS; i++) {
        const float scale = expf(parts[i * apart] - top);
        sum += scale * parts[i * apart + 1];
        value += scale * parts[i * apart + 2 + d];
    }
    *out = from_float<T>(value / sum);
}

/* A block for blockDim / (PARTS WARP) adjacent rows and HEADS query heads of a KV head, PARTS warps
 * a row. groups: blocks of heads of one KV head. */
template <class T, int LANES, int VECS, int HEADS>
static __global__ void __launch_bounds__(512)
    attend_kernel(const unsigned char *layer, struct kv_store s, struct attend_args a, int groups,
                  int n)
{
    typedef walker<T, LANES, VECS, HEADS> W;
    SMEM_DYN(float, shared);
    const int warp = threadIdx.x / WARP, rows = blockDim.x / (PARTS * WARP);
    const int row = blockIdx.x * rows + warp / PARTS, part = warp % PARTS;
    const int per_kv = a.heads / a.kv_heads, kv_head = blockIdx.y / groups;
    const int head = kv_head * per_kv + blockIdx.y % groups * HEADS;
    const int left = (kv_head + 1) * per_kv - head, heads = left < HEADS ? left : HEADS;
    const int tokens = row < n ? a.pos[row] + 1 : 0;
    const int stride = 2 + W::WIDTH;
    float *partials = shared + rows * PARTS * (int)(sizeof(page_scores<HEADS>) / sizeof(float));
    W w;
    w.lane = threadIdx.x % WARP;
    w.row_elements = s.row;
    w.scores = reinterpret_cast<page_scores<HEADS> *>(shared) + warp;
    if (tokens > 0) {
        const size_t width = (size_t)(a.heads + 2 * a.kv_heads) * (size_t)a.head_dim;
        const int32_t *pages = a.pages + a.page_start[a.seq[row]];
        w.begin(a.qkv + (size_t)row * width + head * a.head_dim, heads, a.head_dim, a.scale);
        for (int page = part; page * KV_PAGE < tokens; page += PARTS) {
            const T *keys = reinterpret_cast<const T *>(layer + (size_t)pages[page] * s.page_bytes +
                                                        (size_t)kv_head * s.head_bytes);
            const int here = min(tokens - page * KV_PAGE, (int)KV_PAGE);
            w.score(keys, here);
            w.softmax();
            w.add_values(keys + KV_PAGE * s.row, here);
        }
        w.store(partials + warp * HEADS * stride, stride);
    }
    __syncthreads();
    if (tokens == 0)
        return;
    const float *mine = partials + warp / PARTS * PARTS * HEADS * stride;
    T *out = (T *)a.out + (size_t)row * (size_t)(a.heads * a.head_dim) + head * a.head_dim;
    for (int i = threadIdx.x % (PARTS * WARP); i < heads * a.head_dim; i += PARTS * WARP)
        put_together(out + i, mine + i / a.head_dim * stride, HEADS * stride, i % a.head_dim);
}

/* A step's work, however it is cut into blocks: rows a block as long as all multiprocessors have
 * some. */
static int block_rows(const struct cuda *c, int n, int groups)
{
    int rows = 4;
    while (rows > 1 && (n + rows - 1) / rows * groups < 2 * c->n_sm)
        rows /= 2;
    return rows;
}

template <class T, int LANES, int VECS, int HEADS>
static int launch(struct backend *b, const struct kv_store *s, int layer,
                  const struct attend_args *a, int n)
{
    typedef walker<T, LANES, VECS, HEADS> W;
    const int per_kv = a->heads / a->kv_heads, groups = (per_kv + HEADS - 1) / HEADS;
    const int rows = VECS > 1 ? 1 : block_rows(cuda(b), n, groups * a->kv_heads);
    const size_t warp_bytes =
        sizeof(page_scores<HEADS>) + sizeof(float) * HEADS * (size_t)(2 + W::WIDTH);
    const size_t smem = (size_t)(rows * PARTS) * warp_bytes;
    const dim3 grid((n + rows - 1) / rows, groups * a->kv_heads);
    const int threads = rows * PARTS * WARP;
    auto kernel = attend_kernel<T, LANES, VECS, HEADS>;
    if (smem > 48 << 10 &&
        cuda_check(
            b, "attend",
            cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)smem)))
        return -1;
    LAUNCH(kernel, grid, threads, smem, cuda(b)->stream)
    (s->data + (size_t)layer * s->layer_bytes, *s, *a, groups, n);
    return cuda_done(b, OP_ATTEND);
}

/* Four heads at once if there are two or more to a KV head. */
template <class T, int LANES>
static int launch_heads(struct backend *b, const struct kv_store *s, int layer,
                        const struct attend_args *a, int n)
{
    return a->heads == a->kv_heads ? launch<T, LANES, 1, 1>(b, s, layer, a, n)
                                   : launch<T, LANES, 1, 4>(b, s, layer, a, n);
}

template <class T>
static int attend(struct backend *b, const struct kv_store *s, int layer,
                  const struct attend_args *a, int n)
{
    const int lanes = s->row / vec<T>::N;
    if (lanes <= 8)
        return launch_heads<T, 8>(b, s, layer, a, n);
    if (lanes <= 16)
        return launch_heads<T, 16>(b, s, layer, a, n);
    if (lanes <= 32)
        return launch_heads<T, 32>(b, s, layer, a, n);
    if (s->head_dim <= HEAD_DIM_MAX)
        return launch<T, 32, HEAD_DIM_MAX / 32 / vec<T>::N, 1>(b, s, layer, a, n);
    return cuda_fail(b, "attend", "the model's heads are wider than 512 elements");
}

int cuda_attend(struct backend *b, const struct kv_store *s, int layer, const struct attend_args *a,
                int n)
{
    return b->act == ACT_BF16 ? attend<bf16>(b, s, layer, a, n) : attend<float>(b, s, layer, a, n);
}
