/* Token embeddings, dequantised from the table's rows as the file has them. */
#include "dequant.cuh"

/* The weight's parts one below the other: row `id` of them. */
static __device__ const uint8_t *table_row(const struct weight &t, int id, enum tensor_type *type)
{
    int p = 0;
    while (id >= t.part[p].rows)
        id -= t.part[p++].rows;
    *type = t.part[p].type;
    return (const uint8_t *)t.part[p].data + (size_t)id * t.part[p].row_bytes;
}

/* One block a row; threads stride over its elements. */
static __global__ void embed_kernel(float *x, const __grid_constant__ weight t, const int32_t *ids)
{
    enum tensor_type type;
    const uint8_t *row = table_row(t, ids[blockIdx.x], &type);
    x += (size_t)blockIdx.x * (size_t)t.in;
    for (int j = threadIdx.x; j < t.in; j += blockDim.x)
        x[j] = dequant_at(type, row, j);
}

int cuda_embed(struct backend *b, float *x, const struct weight *table, const int32_t *ids, int n)
{
    LAUNCH(embed_kernel, n, row_threads(table->in, 256), 0, cuda(b)->stream)(x, *table, ids);
    return cuda_done(b, OP_EMBED);
}
