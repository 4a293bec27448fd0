/* Rotary position embedding (Su et al. 2021) on adjacent pairs, and the store of keys and values.
 */
#include "cuda.cuh"

/* Where a row's key of KV head h lies; its value follows KV_PAGE keys later. */
template <class T>
static __device__ __forceinline__ T *key_of(unsigned char *layer, const struct kv_store &s, int h,
                                            int slot)
{
    unsigned char *head =
        layer + (size_t)(slot / KV_PAGE) * s.page_bytes + (size_t)h * s.head_bytes;
    return reinterpret_cast<T *>(head) + (size_t)(slot % KV_PAGE) * (size_t)s.row;
}

/* One block a row; a thread for four adjacent elements of q, k or v. head_dim and rope_dim are
 * multiples of 4. */
template <class T>
static __global__ void rope_store_kernel(unsigned char *layer, struct kv_store s,
                                         struct rope_args a)
{
    const int i = blockIdx.x, hd = a.head_dim, n_heads = a.heads + 2 * a.kv_heads;
    const int slot = a.slot[i];
    const float *cos_sin = a.cos_sin + (size_t)a.pos[i] * (size_t)a.rope_dim;
    float *qkv = a.qkv + (size_t)i * (size_t)(n_heads * hd);
    for (int at = 4 * threadIdx.x; at < n_heads * hd; at += 4 * blockDim.x) {
        const int head = at / hd, d = at % hd, h = head - a.heads;
        vec<float> x = load_vec(qkv + at);
        if (d < a.rope_dim && h < a.kv_heads) {
            const vec<float> r = load_vec(cos_sin + d);
            x = {{x.v[0] * r.v[0] - x.v[1] * r.v[1], x.v[0] * r.v[1] + x.v[1] * r.v[0],
                  x.v[2] * r.v[2] - x.v[3] * r.v[3], x.v[2] * r.v[3] + x.v[3] * r.v[2]}};
        }
        const float4 y = make_float4(x.v[0], x.v[1], x.v[2], x.v[3]);
        if (h < 0)
            store4(qkv + at, y);
        else if (h < a.kv_heads)
            store4(key_of<T>(layer, s, h, slot) + d, y);
        else
            store4(key_of<T>(layer, s, h - a.kv_heads, slot) + KV_PAGE * s.row + d, y);
    }
}

/* The same for any head_dim and even rope_dim: a thread for two elements of a head. */
template <class T>
static __global__ void rope_store_odd_kernel(unsigned char *layer, struct kv_store s,
                                             struct rope_args a)
{
    const int i = blockIdx.x, hd = a.head_dim, n_heads = a.heads + 2 * a.kv_heads;
    const int pairs = (hd + 1) / 2, slot = a.slot[i];
    const float *cos_sin = a.cos_sin + (size_t)a.pos[i] * (size_t)a.rope_dim;
    for (int at = threadIdx.x; at < n_heads * pairs; at += blockDim.x) {
        const int head = at / pairs, d = at % pairs * 2, h = head - a.heads;
        const int both = d + 1 < hd;
        float *from = a.qkv + (size_t)i * (size_t)(n_heads * hd) + head * hd + d;
        float x = from[0], y = both ? from[1] : 0;
        if (d < a.rope_dim && h < a.kv_heads) {
            const float c = cos_sin[d], sn = cos_sin[d + 1], x0 = x;
            x = x0 * c - y * sn;
            y = x0 * sn + y * c;
        }
        if (h < 0) {
            from[0] = x;
            if (both)
                from[1] = y;
            continue;
        }
        T *to = h < a.kv_heads ? key_of<T>(layer, s, h, slot)
                               : key_of<T>(layer, s, h - a.kv_heads, slot) + KV_PAGE * s.row;
        to[d] = from_float<T>(x);
        if (both)
            to[d + 1] = from_float<T>(y);
    }
}

template <class T>
static void launch(const struct cuda *c, struct kv_store *s, int layer, const struct rope_args *a,
                   int n)
{
    unsigned char *base = s->data + (size_t)layer * s->layer_bytes;
    const bool whole = a->head_dim % 4 == 0 && a->rope_dim % 4 == 0;
    const int width = (a->heads + 2 * a->kv_heads) * a->head_dim;
    const int threads = row_threads(whole ? width / 4 : width / 2, 256);
    if (whole)
        LAUNCH(rope_store_kernel<T>, n, threads, 0, c->stream)(base, *s, *a);
    else
        LAUNCH(rope_store_odd_kernel<T>, n, threads, 0, c->stream)(base, *s, *a);
}

int cuda_rope_store(struct backend *b, struct kv_store *s, int layer, const struct rope_args *a,
                    int n)
{
    if (b->act == ACT_BF16)
        launch<bf16>(cuda(b), s, layer, a, n);
    else
        launch<float>(cuda(b), s, layer, a, n);
    return cuda_done(b, OP_ROPE_STORE);
}
