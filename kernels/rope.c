/* Rotary position embedding (Su et al. 2021) on adjacent pairs, and the store of keys and values.
 */
#include "cpu_ops.h"
#include "num.h"

/* Element (block, lane, half) of one head's part of a page; half 0 is vector a, 1 is b. */
static void put(enum act_type act, unsigned char *head, size_t block, int lane, int half, float x)
{
    if (act == ACT_BF16)
        ((bf16 *)head)[block * 32 + (size_t)(2 * lane + half)] = bf16_from_float(x);
    else
        ((float *)head)[block * 32 + (size_t)(VF * half + lane)] = x;
}

static void rotate(float *y, const float *x, const float *cos_sin, int rope_dim)
{
    for (int i = 0; i < rope_dim; i += 2) {
        float c = cos_sin[i], s = cos_sin[i + 1], a = x[i], b = x[i + 1];
        y[i] = a * c - b * s;
        y[i + 1] = a * s + b * c;
    }
}

static void store_key(enum act_type act, unsigned char *head, const float *k, int head_dim,
                      const float *cos_sin, int rope_dim, int lane)
{
    for (int i = 0; i < head_dim; i++) {
        float pair[2] = {k[i], 0};
        if (i < rope_dim)
            rotate(pair, k + (i & ~1), cos_sin + (i & ~1), 2);
        put(act, head, (size_t)(i / 2), lane, i & 1, i < rope_dim ? pair[i & 1] : k[i]);
    }
}

static void store_value(enum act_type act, unsigned char *values, const float *v, int head_dim,
                        int value_blocks, int token)
{
    for (int i = 0; i < head_dim; i++)
        put(act, values, (size_t)(token * value_blocks + i / 32), i % VF, i / VF % 2, v[i]);
}

void CPU_FN(rope_store)(enum act_type act, struct kv_store *s, int layer, const struct rope_args *a,
                        int n)
{
    const int hd = a->head_dim;
    const size_t row = (size_t)(a->heads + 2 * a->kv_heads) * (size_t)hd;
    unsigned char *base = s->data + (size_t)layer * s->layer_bytes;
#pragma omp parallel for if (n > 4)
    for (int i = 0; i < n; i++) {
        float *q = a->qkv + (size_t)i * row, *k = q + a->heads * hd, *v = k + a->kv_heads * hd;
        const float *cos_sin = a->cos_sin + (size_t)a->pos[i] * (size_t)a->rope_dim;
        unsigned char *page = base + (size_t)(a->slot[i] / KV_PAGE) * s->page_bytes;
        int token = a->slot[i] % KV_PAGE;
        for (int h = 0; h < a->heads; h++)
            rotate(q + h * hd, q + h * hd, cos_sin, a->rope_dim);
        for (int h = 0; h < a->kv_heads; h++, page += s->head_bytes) {
            store_key(act, page, k + h * hd, hd, cos_sin, a->rope_dim, token);
            store_value(act, page + (size_t)s->key_blocks * s->block_bytes, v + h * hd, hd,
                        s->value_blocks, token);
        }
    }
}
