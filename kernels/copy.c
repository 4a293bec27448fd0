/* Moving rows and KV pages. */
#include <string.h>

#include "cpu_ops.h"

void cpu_copy_rows(void *dst, const int32_t *dst_row, const void *src, const int32_t *src_row,
                   int n, size_t bytes)
{
#pragma omp parallel for if ((size_t)n * bytes > 1 << 20)
    for (int i = 0; i < n; i++) {
        size_t to = (size_t)(dst_row ? dst_row[i] : i), from = (size_t)(src_row ? src_row[i] : i);
        memcpy((char *)dst + to * bytes, (const char *)src + from * bytes, bytes);
    }
}

void cpu_kv_copy(struct kv_store *s, const int32_t *from, const int32_t *to, int n)
{
#pragma omp parallel for
    for (int layer = 0; layer < s->n_layers; layer++) {
        unsigned char *base = s->data + (size_t)layer * s->layer_bytes;
        for (int i = 0; i < n; i++)
            memcpy(base + (size_t)to[i] * s->page_bytes, base + (size_t)from[i] * s->page_bytes,
                   s->page_bytes);
    }
}
