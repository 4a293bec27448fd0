/* A matrix product in float whose every element is one chain of fused multiply-adds, in order of
 * depth: c (rows, columns) = or += Σ_s a(row, s) b(column, s).
 *
 * The chain starts from what c holds, or 0, and does not know of tiles: two products, the second
 * added to the first, are the same as one over both depths, to the bit, and the side of the tiles
 * may follow the size of c. */
#pragma once
#include "cuda.cuh"

/* Element (i, s) is p[i across + s down]; one of the two steps is 1. */
template <class T> struct operand {
    const T *p;
    size_t across, down;
    int count; /* of i */
};

static const int TILE_DEPTH = 16;

/* What a tile of SIDE by SIDE needs. A thread computes 4 by 4 elements of it; its rows in shared
 * memory are four floats longer, so that writing them across meets few bank conflicts. */
template <int SIDE> struct tile {
    static constexpr int THREADS = SIDE / 4 * (SIDE / 4), PITCH = SIDE + 4;
    static constexpr int LOADS = SIDE * TILE_DEPTH / THREADS; /* of one operand, a thread */
    static constexpr int FLOATS = TILE_DEPTH * PITCH;
};

/* A thread's loads of an operand: neighbours in memory go to neighbouring threads. */
template <int SIDE, class T> struct reader {
    const T *p;  /* the first one's element */
    size_t step; /* from a load to the next: in memory, in rows and in depth */
    int i, s, step_i, step_s;

    __device__ __forceinline__ reader(const operand<T> &o, int first)
    {
        const int t = threadIdx.x, across = o.down == 1;
        i = across ? t / TILE_DEPTH : t % SIDE;
        s = across ? t % TILE_DEPTH : t / SIDE;
        step_i = across ? tile<SIDE>::THREADS / TILE_DEPTH : 0;
        step_s = across ? 0 : tile<SIDE>::THREADS / SIDE;
        step = step_i * o.across + step_s * o.down;
        i += first;
        p = o.p + (size_t)i * o.across + (size_t)s * o.down;
    }

    /* The tile `from` deep; 0 outside of the operand. */
    __device__ __forceinline__ void fetch(float (&v)[tile<SIDE>::LOADS], const operand<T> &o,
                                          int from, int depth) const
    {
        const T *at = p + (size_t)from * o.down;
#pragma unroll
        for (int r = 0; r < tile<SIDE>::LOADS; r++, at += step) {
            const bool there = i + r * step_i < o.count && from + s + r * step_s < depth;
            v[r] = there ? to_float(*at) : 0;
        }
    }

    __device__ __forceinline__ void put(float *shared, const float (&v)[tile<SIDE>::LOADS],
                                        int first) const
    {
        shared += s * tile<SIDE>::PITCH + i - first;
#pragma unroll
        for (int r = 0; r < tile<SIDE>::LOADS; r++)
            shared[r * (step_s * tile<SIDE>::PITCH + step_i)] = v[r];
    }
};

/* One step of depth. */
static __device__ __forceinline__ void add_step(float (&sum)[4][4], const float *a, const float *b)
{
    const vec<float> x = load_vec(a), y = load_vec(b);
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
            sum[i][j] = fmaf(x.v[i], y.v[j], sum[i][j]);
}

/* The last tile may have fewer steps: what is added must not be 0 instead, -0 would not survive. */
template <int SIDE>
static __device__ __forceinline__ void add_tile(float (&sum)[4][4], const float *a, const float *b,
                                                int steps)
{
    const int pitch = tile<SIDE>::PITCH;
    if (steps < TILE_DEPTH) {
        for (int s = 0; s < steps; s++)
            add_step(sum, a + s * pitch, b + s * pitch);
        return;
    }
#pragma unroll
    for (int s = 0; s < TILE_DEPTH; s++)
        add_step(sum, a + s * pitch, b + s * pitch);
}

/* A block for each tile of c (x: columns, y: rows), a thread for 4 by 4 elements. While a tile is
 * added from shared memory, the next one is on its way to registers. */
template <int SIDE, class A, class B>
static __global__ void __launch_bounds__(tile<SIDE>::THREADS)
    product_kernel(float *c, bool add, operand<A> a, operand<B> b, int depth)
{
    SMEM_DYN(float, shared);
    float *tile_a = shared, *tile_b = shared + tile<SIDE>::FLOATS;
    const int i0 = threadIdx.x / (SIDE / 4) * 4, j0 = threadIdx.x % (SIDE / 4) * 4;
    const int row = blockIdx.y * SIDE, column = blockIdx.x * SIDE;
    const int rows = a.count - row - i0, columns = b.count - column - j0; /* that are left */
    const reader<SIDE, A> read_a(a, row);
    const reader<SIDE, B> read_b(b, column);
    float sum[4][4] = {}, next_a[tile<SIDE>::LOADS], next_b[tile<SIDE>::LOADS];
    c += (size_t)(row + i0) * b.count + column + j0;
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (add && i < rows) {
            const float4 f = load_quad(c + (size_t)i * b.count, columns);
            sum[i][0] = f.x, sum[i][1] = f.y, sum[i][2] = f.z, sum[i][3] = f.w;
        }
    read_a.fetch(next_a, a, 0, depth);
    read_b.fetch(next_b, b, 0, depth);
    for (int from = 0; from < depth; from += TILE_DEPTH) {
        read_a.put(tile_a, next_a, row);
        read_b.put(tile_b, next_b, column);
        __syncthreads();
        read_a.fetch(next_a, a, from + TILE_DEPTH, depth);
        read_b.fetch(next_b, b, from + TILE_DEPTH, depth);
        add_tile<SIDE>(sum, tile_a + i0, tile_b + j0, depth - from);
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (i < rows)
            store_quad(c + (size_t)i * b.count, columns,
                       make_float4(sum[i][0], sum[i][1], sum[i][2], sum[i][3]));
}

template <int SIDE, class A, class B>
static void launch_product(const struct cuda *d, float *c, bool add, operand<A> a, operand<B> b,
                           int depth)
{
    auto kernel = product_kernel<SIDE, A, B>;
    const dim3 grid((b.count + SIDE - 1) / SIDE, (a.count + SIDE - 1) / SIDE);
    LAUNCH(kernel, grid, tile<SIDE>::THREADS, 2 * tile<SIDE>::FLOATS * sizeof(float), d->stream)
    (c, add, a, b, depth);
}

/* Large tiles, unless they leave multiprocessors without work. */
template <class A, class B>
static void product(const struct cuda *d, float *c, bool add, operand<A> a, operand<B> b, int depth)
{
    const long long tiles = (long long)((a.count + 63) / 64) * ((b.count + 63) / 64);
    if (tiles >= d->n_sm)
        launch_product<64>(d, c, add, a, b, depth);
    else
        launch_product<32>(d, c, add, a, b, depth);
}
