/* The backward pass of `linear`, in float.
 *
 * Dense, dW += dYᵀ X and dX = dY W are products (product.cuh), bound by arithmetic. With one
 * gradient a row (col), rows that name the same column add to the same row of dW and must do so in
 * order: the first of them works for all, and the others have nothing to do. */
#include "product.cuh"

/* ---- dense ---- */

/* A thread for a column of dy, over all rows in order. */
static __global__ void db_kernel(float *db, const float *dy, int n, int out)
{
    const int j = blockIdx.x * blockDim.x + threadIdx.x;
    if (j >= out)
        return;
    float sum = db[j];
#pragma unroll 8
    for (int i = 0; i < n; i++)
        sum += dy[(size_t)i * (size_t)out + j];
    db[j] = sum;
}

template <class T> static void dense(const struct cuda *c, const struct linear_grad_args *a, int n)
{
    const size_t in = (size_t)a->in, out = (size_t)a->out;
    if (a->dw) {
        const operand<float> dy = {a->dy, 1, out, a->out};
        const operand<T> x = {(const T *)a->x, 1, in, a->in};
        product(c, a->dw, true, dy, x, n);
    }
    if (a->dx) {
        const operand<float> dy = {a->dy, out, 1, n}, w = {a->w, 1, in, a->in};
        product(c, a->dx, false, dy, w, a->out);
    }
    if (a->db)
        LAUNCH(db_kernel, (a->out + 127) / 128, 128, 0, c->stream)(a->db, a->dy, n, a->out);
}

/* ---- one gradient a row ---- */

/* The rows from `from` on that name column `col`, in order: calls f(row) for each. A warp looks at
 * its width of them at a time; all lanes call. */
template <class F>
static __device__ __forceinline__ void each_row(const int32_t *cols, int col, int from, int n, F f)
{
    for (int base = from; base < n; base += WARP) {
        const int i = base + threadIdx.x % WARP;
        uint32_t here = __ballot_sync(~0u, i < n && cols[i] == col);
        for (; here; here &= here - 1)
            f(base + __ffs(here) - 1);
    }
}

/* Whether no row before row i names its column. All lanes call. */
static __device__ __forceinline__ bool is_first(const int32_t *cols, int i)
{
    const int col = cols[i];
    for (int base = 0; base < i; base += WARP) {
        const int j = base + threadIdx.x % WARP;
        if (__ballot_sync(~0u, j < i && cols[j] == col))
            return false;
    }
    return true;
}

/* A block for each row of gradients; the first that names a column adds all that do, in order, with
 * threads striding over fours of the row of dw. The next to them all is that column's db. */
template <class T>
static __global__ void sparse_dw_kernel(float *dw, float *db, const float *dy, const int32_t *cols,
                                        const T *x, int n, int in)
{
    const int first = blockIdx.x, col = cols[first];
    if (!is_first(cols, first))
        return;
    for (int base = 0; dw && base < in; base += 4 * blockDim.x) {
        const int k = base + 4 * threadIdx.x, left = in - k;
        float *to = dw + (size_t)col * (size_t)in + k;
        float4 sum = load_quad(to, left);
        each_row(cols, col, first, n, [&](int i) {
            const float4 f = load_quad(x + (size_t)i * (size_t)in + k, left);
            sum.x = fmaf(f.x, dy[i], sum.x);
            sum.y = fmaf(f.y, dy[i], sum.y);
            sum.z = fmaf(f.z, dy[i], sum.z);
            sum.w = fmaf(f.w, dy[i], sum.w);
        });
        store_quad(to, left, sum);
    }
    if (!db || threadIdx.x >= WARP)
        return;
    float sum = db[col];
    each_row(cols, col, first, n, [&](int i) { sum += dy[i]; });
    __syncwarp();
    if (threadIdx.x == 0)
        db[col] = sum;
}

/* dx[i] = dy[i] W[col[i]]. A block a row; threads stride over its fours. */
static __global__ void sparse_dx_kernel(float *dx, const float *dy, const int32_t *cols,
                                        const float *w, int in)
{
    const int i = blockIdx.x;
    const float g = dy[i];
    dx += (size_t)i * (size_t)in;
    w += (size_t)cols[i] * (size_t)in;
    for (int k = 4 * threadIdx.x; k < in; k += 4 * blockDim.x) {
        const float4 f = load_quad(w + k, in - k);
        store_quad(dx + k, in - k, make_float4(f.x * g, f.y * g, f.z * g, f.w * g));
    }
}

template <class T> static void sparse(const struct cuda *c, const struct linear_grad_args *a, int n)
{
    const int threads = row_threads((a->in + 3) / 4, 256);
    if (a->dw || a->db)
        LAUNCH(sparse_dw_kernel<T>, n, threads, 0, c->stream)
    (a->dw, a->db, a->dy, a->col, (const T *)a->x, n, a->in);
    if (a->dx)
        LAUNCH(sparse_dx_kernel, n, threads, 0, c->stream)(a->dx, a->dy, a->col, a->w, a->in);
}

template <class T> static void grad(const struct cuda *c, const struct linear_grad_args *a, int n)
{
    if (a->col)
        sparse<T>(c, a, n);
    else
        dense<T>(c, a, n);
}

int cuda_linear_grad(struct backend *b, const struct linear_grad_args *a, int n)
{
    if (b->act == ACT_BF16)
        grad<bf16>(cuda(b), a, n);
    else
        grad<float>(cuda(b), a, n);
    return cuda_done(b, OP_LINEAR_GRAD);
}
