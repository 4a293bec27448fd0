/* The likeliest tokens of rows of logits. A list of the best so far is kept in order; blocks of the
 * row whose maximum would not make it are passed over, which are nearly all. */
#include <math.h>

#include "cpu_ops.h"
#include "num.h"

enum { BLOCK = 256 }; /* tokens; a multiple of VF */

static float maximum(const float *x, int n)
{
    vf max = vf_load_part(x + n / VF * VF, n % VF, -INFINITY);
    for (int i = 0; i + VF <= n; i += VF)
        max = vf_max(max, vf_load(x + i));
    return vf_hmax(max);
}

/* Later ones, whose ids are higher, come behind their equals. */
static int insert(struct top_token *best, int n, int k, struct top_token t)
{
    int at = n < k ? n : k - 1;
    if (n == k && !(t.logit > best[k - 1].logit))
        return n;
    for (; at > 0 && t.logit > best[at - 1].logit; at--)
        best[at] = best[at - 1];
    best[at] = t;
    return n < k ? n + 1 : k;
}

static void top_row(const float *x, int vocab, int k, struct top_token *best)
{
    int n = 0;
    for (int b = 0; b < vocab; b += BLOCK) {
        const int size = vocab - b < BLOCK ? vocab - b : BLOCK;
        if (n == k && !(maximum(x + b, size) > best[k - 1].logit))
            continue;
        for (int v = b; v < b + size; v++)
            n = insert(best, n, k, (struct top_token){v, x[v]});
    }
    for (; n < k; n++)
        best[n] = (struct top_token){-1, -INFINITY};
}

void CPU_FN(top)(const struct top_args *a, int n)
{
#pragma omp parallel for
    for (int i = 0; i < n; i++) {
        const float *x = a->logits + (size_t)i * (size_t)a->vocab;
        const int forced = a->draws[a->rows[i].first_draw].forced;
        struct top_token *out = a->out + (size_t)i * (size_t)(1 + a->k);
        out[0] = (struct top_token){forced, forced < 0 ? -INFINITY : x[forced]};
        top_row(x, a->vocab, a->k, out + 1);
    }
}
