/* Causal attention over paged keys and values. */
#include <math.h>
#include <string.h>

#include "cpu_ops.h"
#include "num.h"

/* One row and up to GROUP query heads of one KV head are worked on together, so that each vector of
 * keys and values is loaded and widened once for all of them. The row's tokens are taken in chunks
 * from position 0 on, with a running maximum (online softmax: Milakov and Gimelshein 2018). The
 * order of every sum is fixed by the position alone, so a row gives the same bits in a prompt chunk
 * and in a decode step. */
enum { GROUP = 4, CHUNK_PAGES = 16, CHUNK = CHUNK_PAGES * KV_PAGE };

_Static_assert((int)KV_PAGE == (int)VF, "a vector holds one page's scores");

struct group {
    float q[GROUP][CPU_HEAD_DIM_MAX + 1];        /* scaled; 0 behind an odd head_dim */
    float acc[GROUP][CPU_HEAD_DIM_MAX + 2 * VF]; /* Σ p v so far, relative to max */
    float p[GROUP][CHUNK];                       /* scores, then their exponentials */
    vf sum[GROUP];                               /* Σ p by lane */
    float max[GROUP];                            /* of all scores so far */
    float shrink[GROUP];                         /* e^(old max - new max) */
    const unsigned char *page[CHUNK_PAGES + 2]; /* this KV head's part of the chunk's pages, and two
more that are only prefetched */
    int tokens;                                 /* of the chunk */
};

/* p[h][first page's tokens ...] = q[h] · k for n_pages adjacent pages of the chunk. Pages lie
 * anywhere in memory: the keys after these and the values of these are fetched on the way. */
NUM_FN void score_pages(enum act_type act, int heads, int n_pages, struct group *g, int page,
                        int key_blocks)
{
    vf even[2][GROUP] = {0}, odd[2][GROUP] = {0};
    const size_t line = act == ACT_BF16 ? 64 : 128; /* bytes of a block */
    for (int i = 0; i < key_blocks; i++)
#pragma GCC unroll 2
        for (int j = 0; j < n_pages; j++) {
            vf a, b;
            __builtin_prefetch(g->page[page + j + 2] + (size_t)i * line);
            __builtin_prefetch(g->page[page + j] + (size_t)(key_blocks + i) * line);
            num_load_block(act == ACT_BF16, g->page[page + j], (size_t)i, &a, &b);
#pragma GCC unroll 4
            for (int h = 0; h < heads; h++) {
                even[j][h] += a * g->q[h][2 * i];
                odd[j][h] += b * g->q[h][2 * i + 1];
            }
        }
#pragma GCC unroll 2
    for (int j = 0; j < n_pages; j++)
#pragma GCC unroll 4
        for (int h = 0; h < heads; h++)
            vf_store(g->p[h] + (page + j) * VF, even[j][h] + odd[j][h]);
}

/* Scores to exponentials. Lanes behind the last token become exactly 0. */
NUM_FN void exponentiate(int heads, struct group *g)
{
    const int n_pages = (g->tokens + VF - 1) / VF;
    for (int h = 0; h < heads; h++) {
        for (int t = g->tokens; t < n_pages * VF; t++)
            g->p[h][t] = -INFINITY;
        vf top = vf_set(g->max[h]);
        for (int i = 0; i < n_pages; i++)
            top = vf_max(top, vf_load(g->p[h] + i * VF));
        float max = vf_hmax(top);
        vf shrink = vf_exp(vf_set(g->max[h] - max));
        g->shrink[h] = shrink[0];
        g->max[h] = max;
        g->sum[h] *= shrink;
        for (int i = 0; i < n_pages; i++) {
            vf p = vf_exp(vf_load(g->p[h] + i * VF) - max);
            vf_store(g->p[h] + i * VF, p);
            g->sum[h] += p;
        }
    }
}

/* acc = shrink acc + Σ p v over the chunk, in n_blocks adjacent blocks of the values. Tokens behind
 * the last one are not touched: what lies there is not of this sequence. */
NUM_FN void add_values(enum act_type act, int heads, int n_blocks, struct group *g, int block,
                       const struct kv_store *s)
{
    vf acc[GROUP][4];
#pragma GCC unroll 4
    for (int h = 0; h < heads; h++)
#pragma GCC unroll 4
        for (int j = 0; j < 2 * n_blocks; j++)
            acc[h][j] = vf_load(g->acc[h] + (2 * block + j) * VF) * g->shrink[h];
    for (int page = 0, t = 0; t < g->tokens; page++) {
        const unsigned char *values = g->page[page] + (size_t)s->key_blocks * s->block_bytes;
        int end = t + KV_PAGE < g->tokens ? t + KV_PAGE : g->tokens;
        for (size_t at = (size_t)block; t < end; t++, at += (size_t)s->value_blocks) {
            vf v[4];
#pragma GCC unroll 2
            for (int j = 0; j < n_blocks; j++)
                num_load_block(act == ACT_BF16, values, at + (size_t)j, &v[2 * j], &v[2 * j + 1]);
#pragma GCC unroll 4
            for (int h = 0; h < heads; h++)
#pragma GCC unroll 4
                for (int j = 0; j < 2 * n_blocks; j++)
                    acc[h][j] += v[j] * g->p[h][t];
        }
    }
#pragma GCC unroll 4
    for (int h = 0; h < heads; h++)
#pragma GCC unroll 4
        for (int j = 0; j < 2 * n_blocks; j++)
            vf_store(g->acc[h] + (2 * block + j) * VF, acc[h][j]);
}

NUM_FN void add_chunk(enum act_type act, int heads, struct group *g, const struct kv_store *s)
{
    const int n_pages = (g->tokens + KV_PAGE - 1) / KV_PAGE;
    int i = 0;
    for (; i + 2 <= n_pages; i += 2)
        score_pages(act, heads, 2, g, i, s->key_blocks);
    if (i < n_pages)
        score_pages(act, heads, 1, g, i, s->key_blocks);
    exponentiate(heads, g);
    for (i = 0; i + 2 <= s->value_blocks; i += 2)
        add_values(act, heads, 2, g, i, s);
    if (i < s->value_blocks)
        add_values(act, heads, 1, g, i, s);
}

/* add_chunk for every number of heads and both types, so that each keeps its sums in registers. */
#define ADD_CHUNK(act, heads)                                                                      \
    static void add_chunk_##act##_##heads(struct group *g, const struct kv_store *s)               \
    {                                                                                              \
        add_chunk(act, heads, g, s);                                                               \
    }
#define ADD_CHUNK_ALL(act) ADD_CHUNK(act, 1) ADD_CHUNK(act, 2) ADD_CHUNK(act, 3) ADD_CHUNK(act, 4)
ADD_CHUNK_ALL(ACT_F32)
ADD_CHUNK_ALL(ACT_BF16)

static void (*const add_chunk_table[2][GROUP])(struct group *, const struct kv_store *) = {
    [ACT_F32] = {add_chunk_ACT_F32_1, add_chunk_ACT_F32_2, add_chunk_ACT_F32_3,
                 add_chunk_ACT_F32_4},
    [ACT_BF16] = {add_chunk_ACT_BF16_1, add_chunk_ACT_BF16_2, add_chunk_ACT_BF16_3,
                  add_chunk_ACT_BF16_4},
};

static void group_init(struct group *g, int heads, const float *q, int head_dim, float scale)
{
    for (int h = 0; h < heads; h++) {
        for (int i = 0; i < head_dim; i++)
            g->q[h][i] = q[h * head_dim + i] * scale;
        g->q[h][head_dim] = 0.0f;
        memset(g->acc[h], 0, sizeof g->acc[h]);
        g->sum[h] = vf_set(0.0f);
        g->max[h] = -INFINITY;
    }
}

static void group_store(const struct group *g, int heads, enum act_type act, void *out, size_t at,
                        int head_dim)
{
    for (int h = 0; h < heads; h++, at += (size_t)head_dim) {
        float norm = 1.0f / vf_sum(g->sum[h]);
        for (int i = 0; i < head_dim; i++)
            if (act == ACT_BF16)
                ((bf16 *)out)[at + (size_t)i] = bf16_from_float(g->acc[h][i] * norm);
            else
                ((float *)out)[at + (size_t)i] = g->acc[h][i] * norm;
    }
}

/* Row `row`, query heads [head, head + heads), all of one KV head. */
static void attend_group(enum act_type act, const struct kv_store *s, int layer,
                         const struct attend_args *a, int row, int head, int heads)
{
    struct group g;
    const int hd = a->head_dim, kv_head = head / (a->heads / a->kv_heads);
    const size_t width = (size_t)(a->heads + 2 * a->kv_heads) * (size_t)hd;
    const unsigned char *base =
        s->data + (size_t)layer * s->layer_bytes + (size_t)kv_head * s->head_bytes;
    const int32_t *pages = a->pages + a->page_start[a->seq[row]];
    group_init(&g, heads, a->qkv + (size_t)row * width + head * hd, hd, a->scale);
    for (int left = a->pos[row] + 1; left > 0; left -= CHUNK, pages += CHUNK_PAGES) {
        g.tokens = left < CHUNK ? left : CHUNK;
        int n_pages = (g.tokens + KV_PAGE - 1) / KV_PAGE;
        for (int i = 0; i < n_pages; i++)
            g.page[i] = base + (size_t)pages[i] * s->page_bytes;
        g.page[n_pages] = g.page[n_pages + 1] = g.page[0];
        add_chunk_table[act][heads - 1](&g, s);
    }
    group_store(&g, heads, act, a->out, (size_t)row * (size_t)(a->heads * hd) + (size_t)(head * hd),
                hd);
}

/* KV heads outside, rows inside: rows of one sequence, or of a shared prompt, find the pages of
 * their KV head in the cache. */
void CPU_FN(attend)(enum act_type act, const struct kv_store *s, int layer,
                    const struct attend_args *a, int n)
{
    const int per_kv = a->heads / a->kv_heads, groups = (per_kv + GROUP - 1) / GROUP;
    const int items = a->kv_heads * groups * n;
#pragma omp parallel for schedule(dynamic, 1 + items / 256)
    for (int item = 0; item < items; item++) {
        int at = item / n, first = at / groups * per_kv + at % groups * GROUP;
        int end = (at / groups + 1) * per_kv;
        attend_group(act, s, layer, a, item % n, first, end - first < GROUP ? end - first : GROUP);
    }
}
