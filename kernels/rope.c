/* Rotary position embedding (Su et al. 2021) on adjacent pairs, and the store of keys and values.
 */
#include <string.h>

#include "cpu_ops.h"
#include "num.h"

/* y = x with the pairs of its first rope_dim elements rotated. y may be x. */
static void rotate(float *y, const float *x, const float *cos_sin, int head_dim, int rope_dim)
{
    for (int i = 0; i < rope_dim; i += 2) {
        float c = cos_sin[i], s = cos_sin[i + 1], a = x[i], b = x[i + 1];
        y[i] = a * c - b * s;
        y[i + 1] = a * s + b * c;
    }
    for (int i = rope_dim; i < head_dim; i++)
        y[i] = x[i];
}

/* k, of 2 key_blocks elements, becomes lane `token` of the keys. */
NUM_FN void store_key(enum act_type act, unsigned char *head, const struct kv_store *s,
                      const float *k, int token)
{
    for (int i = 0; i < s->key_blocks; i++)
        num_put_pair(act == ACT_BF16, head, (size_t)i, token, k[2 * i], k[2 * i + 1]);
}

/* v, of 32 value_blocks elements, becomes row `token` of the values. */
NUM_FN void store_value(enum act_type act, unsigned char *head, const struct kv_store *s,
                        const float *v, int token)
{
    size_t first = (size_t)(s->key_blocks + token * s->value_blocks);
    for (int j = 0; j < s->value_blocks; j++, v += 2 * VF)
        for (int i = 0; i < VF; i++)
            num_put_pair(act == ACT_BF16, head, first + (size_t)j, i, v[i], v[VF + i]);
}

/* Row i, KV head h and its query heads. */
static void rope_store_head(enum act_type act, unsigned char *page, const struct kv_store *s,
                            const struct rope_args *a, int i, int h)
{
    const int hd = a->head_dim, per_kv = a->heads / a->kv_heads;
    const float *cos_sin = a->cos_sin + (size_t)a->pos[i] * (size_t)a->rope_dim;
    float *q = a->qkv + (size_t)i * (size_t)(a->heads + 2 * a->kv_heads) * (size_t)hd;
    const float *k = q + (a->heads + h) * hd, *v = k + a->kv_heads * hd;
    unsigned char *head = page + (size_t)h * s->head_bytes;
    float padded[CPU_HEAD_DIM_MAX + 2 * VF];
    for (int j = h * per_kv; j < (h + 1) * per_kv; j++)
        rotate(q + j * hd, q + j * hd, cos_sin, hd, a->rope_dim);
    memset(padded + hd, 0, 2 * VF * sizeof *padded);
    rotate(padded, k, cos_sin, hd, a->rope_dim);
    store_key(act, head, s, padded, a->slot[i] % KV_PAGE);
    memcpy(padded, v, sizeof *padded * (size_t)hd);
    store_value(act, head, s, padded, a->slot[i] % KV_PAGE);
}

/* A token's key has one line in each of its head's blocks. */
static void fetch_keys(const unsigned char *page, const struct kv_store *s)
{
    for (int h = 0; h < s->kv_heads; h++)
        for (int i = 0; i < s->key_blocks; i++)
            __builtin_prefetch(page + (size_t)h * s->head_bytes + (size_t)i * s->block_bytes, 1);
}

void CPU_FN(rope_store)(enum act_type act, struct kv_store *s, int layer, const struct rope_args *a,
                        int n)
{
    unsigned char *base = s->data + (size_t)layer * s->layer_bytes;
#pragma omp parallel for if (n > 4)
    for (int i = 0; i < n; i++) {
        if (i + 1 < n)
            fetch_keys(base + (size_t)(a->slot[i + 1] / KV_PAGE) * s->page_bytes, s);
        for (int h = 0; h < a->kv_heads; h++)
            rope_store_head(act, base + (size_t)(a->slot[i] / KV_PAGE) * s->page_bytes, s, a, i, h);
    }
}
