/* Token embeddings, read from the mapped file. */
#include "cpu_ops.h"

static void embed_row(float *x, const struct cpu_table *t, int32_t id)
{
    const struct weight_part *p = t->parts;
    while (id >= p->rows)
        id -= p++->rows;
    size_t row_bytes = tensor_row_bytes(p->type, (size_t)t->in);
    dequant(p->type, (const char *)p->data + (size_t)id * row_bytes, x, (size_t)t->in);
}

void CPU_FN(embed)(float *x, const struct cpu_table *t, const int32_t *ids, int n)
{
#pragma omp parallel for if (n > 16)
    for (int i = 0; i < n; i++)
        embed_row(x + (size_t)i * (size_t)t->in, t, ids[i]);
}
