/* Adam (Kingma and Ba 2015): bound by memory, eight streams of floats.
 *
 * Where a gradient stays 0 its moments decay until they are denormal, and there they stay: 0.9 of
 * the smallest float is the smallest float. They count as 0 here (num.h). */
#include <math.h>

#include "cpu_ops.h"
#include "num.h"

struct rates {
    float b1, b2, rest1, rest2; /* rest: 1 - b */
    float rate;                 /* over 1 - b1^step */
    float unbias2;              /* 1 / (1 - b2^step) */
    float eps;
};

static struct rates rates_of(const struct adam_args *a)
{
    const double b1 = (double)a->b1, b2 = (double)a->b2;
    return (struct rates){
        .b1 = a->b1,
        .b2 = a->b2,
        .rest1 = (float)(1 - b1),
        .rest2 = (float)(1 - b2),
        .rate = (float)((double)a->rate / (1 - pow(b1, a->step))),
        .unbias2 = (float)(1 / (1 - pow(b2, a->step))),
        .eps = a->eps,
    };
}

static vf vf_sqrt(vf x)
{
    for (int i = 0; i < VF; i++)
        x[i] = sqrtf(x[i]);
    return x;
}

/* The state of 16 numbers. */
struct lanes {
    vf w, m, v;
};

static struct lanes advance(const struct rates *r, struct lanes s, vf g)
{
    s.m = r->b1 * s.m + r->rest1 * g;
    s.v = r->b2 * s.v + r->rest2 * (g * g);
    s.w -= r->rate * s.m / (vf_sqrt(s.v * r->unbias2) + r->eps);
    return s;
}

static void advance_whole(const struct adam_args *a, const struct rates *r, size_t i)
{
    struct lanes s = {vf_load(a->w + i), vf_load(a->m + i), vf_load(a->v + i)};
    s = advance(r, s, vf_load(a->g + i));
    vf_store(a->w + i, s.w);
    vf_store(a->m + i, s.m);
    vf_store(a->v + i, s.v);
    vf_store(a->g + i, vf_set(0));
}

static void advance_part(const struct adam_args *a, const struct rates *r, size_t i, int n)
{
    struct lanes s = {vf_load_part(a->w + i, n, 0), vf_load_part(a->m + i, n, 0),
                      vf_load_part(a->v + i, n, 0)};
    s = advance(r, s, vf_load_part(a->g + i, n, 0));
    vf_store_part(a->w + i, s.w, n);
    vf_store_part(a->m + i, s.m, n);
    vf_store_part(a->v + i, s.v, n);
    vf_store_part(a->g + i, vf_set(0), n);
}

void CPU_FN(adam)(const struct adam_args *a, size_t n)
{
    const struct rates r = rates_of(a);
    const size_t whole = n / VF * VF;
#pragma omp parallel if (n > 4096)
    {
        const unsigned mode = num_denormals_zero();
#pragma omp for schedule(static)
        for (size_t i = 0; i < whole; i += VF)
            advance_whole(a, &r, i);
#pragma omp single
        if (whole < n)
            advance_part(a, &r, whole, (int)(n - whole));
        num_set_denormals(mode);
    }
}
