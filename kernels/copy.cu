/* Moving rows and KV pages: as fast as memory, in 16 bytes at a time wherever rows allow it. */
#include "cuda.cuh"

/* ---- rows ---- */

/* A row of blocks for each row; a thread for one unit of it, the next one a block's width on. */
template <class T>
static __global__ void copy_rows_kernel(T *__restrict__ dst, const int32_t *dst_row,
                                        const T *__restrict__ src, const int32_t *src_row,
                                        size_t units)
{
    const size_t i = blockIdx.x, to = dst_row ? dst_row[i] : i, from = src_row ? src_row[i] : i;
    const size_t step = (size_t)gridDim.y * blockDim.x;
    for (size_t j = (size_t)blockIdx.y * blockDim.x + threadIdx.x; j < units; j += step)
        dst[to * units + j] = src[from * units + j];
}

struct rows {
    void *dst;
    const int32_t *dst_row;
    const void *src;
    const int32_t *src_row;
    int n;
    size_t bytes;
};

/* Four units for a thread, more in rows beyond a grid's height. */
template <class T> static void launch_rows(const struct cuda *c, const struct rows *r)
{
    const size_t units = r->bytes / sizeof(T), blocks = (units + 4 * 256 - 1) / (4 * 256);
    const int threads = units < 256 ? row_threads((int)units, 256) : 256;
    const dim3 grid(r->n, blocks < 65535 ? (unsigned)blocks : 65535);
    LAUNCH(copy_rows_kernel<T>, grid, threads, 0, c->stream)
    ((T *)r->dst, r->dst_row, (const T *)r->src, r->src_row, units);
}

int cuda_copy_rows(struct backend *b, void *dst, const int32_t *dst_row, const void *src,
                   const int32_t *src_row, int n, size_t bytes)
{
    const struct rows r = {dst, dst_row, src, src_row, n, bytes};
    const size_t together = (uintptr_t)dst | (uintptr_t)src | bytes;
    if (bytes == 0)
        return cuda_done(b, OP_COPY_ROWS);
    if (together % sizeof(uint4) == 0)
        launch_rows<uint4>(cuda(b), &r);
    else if (together % sizeof(uint32_t) == 0)
        launch_rows<uint32_t>(cuda(b), &r);
    else
        launch_rows<unsigned char>(cuda(b), &r);
    return cuda_done(b, OP_COPY_ROWS);
}

/* ---- pages ---- */

/* The pages of one launch travel as its arguments, of which there may be 4 KiB: nothing is
 * uploaded, and the caller's arrays may go. */
enum { PAGES_MAX = 256 };

struct pages {
    int32_t from[PAGES_MAX], to[PAGES_MAX];
};

/* A block for a page (x) of a layer (y); threads stride over its 16-byte units. */
static __global__ void kv_copy_kernel(const struct kv_store s, const __grid_constant__ pages p)
{
    unsigned char *layer = s.data + blockIdx.y * s.layer_bytes;
    const uint4 *__restrict__ from =
        (const uint4 *)(layer + (size_t)p.from[blockIdx.x] * s.page_bytes);
    uint4 *__restrict__ to = (uint4 *)(layer + (size_t)p.to[blockIdx.x] * s.page_bytes);
    for (size_t j = threadIdx.x; j < s.page_bytes / sizeof *to; j += blockDim.x)
        to[j] = from[j];
}

int cuda_kv_copy(struct backend *b, struct kv_store *s, const int32_t *from, const int32_t *to,
                 int n)
{
    for (int first = 0; first < n; first += PAGES_MAX) {
        const int count = n - first < PAGES_MAX ? n - first : PAGES_MAX;
        struct pages p = {};
        for (int i = 0; i < count; i++) {
            p.from[i] = from[first + i];
            p.to[i] = to[first + i];
        }
        LAUNCH(kv_copy_kernel, dim3(count, s->n_layers), 256, 0, cuda(b)->stream)(*s, p);
    }
    return cuda_done(b, OP_KV_COPY);
}
