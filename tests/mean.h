/* The mean of many draws, and how far it is from what it should be. */
#pragma once
#include <math.h>

struct mean {
    double sum, sum2;
    int n;
};

static inline void mean_add(struct mean *m, double x)
{
    m->sum += x;
    m->sum2 += x * x;
    m->n++;
}

static inline double mean_of(const struct mean *m)
{
    return m->sum / m->n;
}

/* Of one draw. */
static inline double mean_variance(const struct mean *m)
{
    double mean = mean_of(m);
    return (m->sum2 / m->n - mean * mean) * m->n / (m->n - 1);
}

static inline double mean_error(const struct mean *m)
{
    return sqrt(mean_variance(m) / m->n);
}

/* Standard errors between the mean and what it should be. */
static inline double mean_z(const struct mean *m, double want)
{
    return (mean_of(m) - want) / mean_error(m);
}
