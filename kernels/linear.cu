/* `linear`: weights of a model file onto the device, and their products (matmul.cu). */
#include <stdlib.h>

#include "dequant.cuh"

/* ---- from the file's formats to act ---- */

/* A block for each row; threads stride over its elements, 16 bytes of the result at a time. */
template <class T>
static __global__ void unpack_kernel(T *w, const uint8_t *rows, enum tensor_type type,
                                     size_t row_bytes, int in)
{
    struct alignas(16) {
        T v[vec<T>::N];
    } some;
    const uint8_t *row = rows + blockIdx.x * row_bytes;
    w += blockIdx.x * (size_t)in;
    for (int j = vec<T>::N * threadIdx.x; j < in; j += vec<T>::N * blockDim.x) {
        const int n = in - j < vec<T>::N ? in - j : vec<T>::N;
#pragma unroll
        for (int k = 0; k < vec<T>::N; k++)
            some.v[k] = from_float<T>(k < n ? dequant_at(type, row, j + k) : 0);
        if (n == vec<T>::N && (uintptr_t)(w + j) % sizeof some == 0)
            *reinterpret_cast<decltype(some) *>(w + j) = some;
        else
            for (int k = 0; k < n; k++)
                w[j + k] = some.v[k];
    }
}

/* The file passes through this much device memory. */
static const size_t piece_bytes = 16 << 20;

template <class T>
static int unpack_part(struct backend *b, T *w, const struct weight_part *p, int in, uint8_t *piece)
{
    const cudaStream_t stream = cuda(b)->stream;
    const size_t row_bytes = tensor_row_bytes(p->type, (size_t)in);
    const size_t rows = row_bytes < piece_bytes ? piece_bytes / row_bytes : 1, all = p->rows;
    for (size_t first = 0; first < all; first += rows) {
        const size_t n = all - first < rows ? all - first : rows;
        const uint8_t *from = (const uint8_t *)p->data + first * row_bytes;
        if (cuda_check(b, "weights",
                       cudaMemcpyAsync(piece, from, n * row_bytes, cudaMemcpyHostToDevice, stream)))
            return -1;
        LAUNCH(unpack_kernel<T>, (unsigned)n, row_threads((in + vec<T>::N - 1) / vec<T>::N, 256), 0,
               stream)
        (w + first * (size_t)in, piece, p->type, row_bytes, in);
    }
    return cuda_check(b, "weights", cudaGetLastError());
}

/* Waits for the copies: the caller's memory may go. */
template <class T>
static int unpack(struct backend *b, T *w, const struct weight_part *p, int n_parts, int in)
{
    const size_t f32_row = sizeof(float) * (size_t)in;
    void *piece;
    int rc = 0;
    if (cuda_alloc(b, &piece, f32_row < piece_bytes ? piece_bytes : f32_row))
        return -1;
    for (int i = 0; i < n_parts && rc == 0; i++) {
        rc = unpack_part(b, w, &p[i], in, (uint8_t *)piece);
        w += (size_t)p[i].rows * (size_t)in;
    }
    cuda_release(b, piece);
    return rc ? rc : cuda_check(b, "weights", cudaStreamSynchronize(cuda(b)->stream));
}

/* ---- weights ---- */

/* The matrix is all noise until its algorithms are chosen. */
static int open_linear(struct backend *b, struct weight *w, const struct weight_part *p,
                       int n_parts)
{
    if (cuda_alloc(b, &w->data, (size_t)w->out * (size_t)w->in * act_size(b->act)) ||
        matmul_shape(cuda(b), &w->shape, w->in, w->out, w->data))
        return -1;
    if (b->act == ACT_BF16)
        return unpack(b, (bf16 *)w->data, p, n_parts, w->in);
    return unpack(b, (float *)w->data, p, n_parts, w->in);
}

/* A table stays as the file has it: few of its rows are read. */
static int open_table(struct backend *b, struct weight *w, const struct weight_part *p, int n_parts)
{
    if (n_parts > (int)(sizeof w->part / sizeof *w->part))
        return cuda_fail(b, "weight_open", "a table of more than four parts");
    for (int i = 0; i < n_parts; i++) {
        struct weight::table_part *to = &w->part[w->n_parts++];
        void *data = NULL;
        to->type = p[i].type;
        to->rows = p[i].rows;
        to->row_bytes = tensor_row_bytes(p[i].type, (size_t)w->in);
        const size_t bytes = (size_t)to->rows * to->row_bytes;
        if (cuda_alloc(b, &data, bytes))
            return -1;
        to->data = data;
        if (cuda_check(
                b, "weights",
                cudaMemcpyAsync(data, p[i].data, bytes, cudaMemcpyHostToDevice, cuda(b)->stream)))
            return -1;
    }
    return 0;
}

int cuda_weight_open(struct backend *b, struct weight **out, const struct weight_part *parts,
                     int n_parts, int in, enum weight_use use)
{
    struct weight *w = (struct weight *)calloc(1, sizeof *w);
    if (!w)
        return cuda_fail(b, "weight_open", "out of memory");
    w->use = use;
    w->in = in;
    for (int i = 0; i < n_parts; i++)
        w->out += parts[i].rows;
    if (use == WEIGHT_TABLE ? open_table(b, w, parts, n_parts)
                            : open_linear(b, w, parts, n_parts)) {
        cuda_weight_close(b, w);
        return -1;
    }
    *out = w;
    return 0;
}

void cuda_weight_close(struct backend *b, struct weight *w)
{
    if (!w)
        return;
    cuda_release(b, w->data);
    for (int i = 0; i < w->n_parts; i++)
        cuda_release(b, (void *)w->part[i].data);
    free(w);
}

/* A thread for four elements. */
static __global__ void convert_kernel(bf16 *to, const float *from, size_t n)
{
    const size_t i = 4 * ((size_t)blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n)
        store_quad(to + i, n - i, load_quad(from + i, n - i));
}

int cuda_weight_update(struct backend *b, struct weight *w, const float *from)
{
    const size_t n = (size_t)w->out * (size_t)w->in;
    if (b->act == ACT_BF16)
        LAUNCH(convert_kernel, (unsigned)((n + 1023) / 1024), 256, 0, cuda(b)->stream)
    ((bf16 *)w->data, from, n);
    else if (cuda_check(b, "weight_update",
                        cudaMemcpyAsync(w->data, from, n * sizeof *from, cudaMemcpyDeviceToDevice,
                                        cuda(b)->stream))) return -1;
    return cuda_done(b, OP_WEIGHT_UPDATE);
}

/* ---- the operation ---- */

int cuda_linear(struct backend *b, float *y, enum linear_out how, const void *x,
                const struct weight *w, int n)
{
    if (matmul_run(cuda(b), w->shape, y, how, x, w->data, n))
        return -1;
    return cuda_done(b, OP_LINEAR);
}
