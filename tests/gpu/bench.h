/* What the benches share: their arguments, the clock, and the middle of several timings. */
#pragma once
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../../kernels/backend.h"
#include "random_model.h"

/* KIND SHAPE BANDWIDTH RATE N... */
struct bench_args {
    struct backend *b;
    const struct shape *shape;
    double bandwidth, rate; /* bytes and operations a second that were measured; 0: unknown */
    int n[8], n_n, most;    /* particles or rows, and the most of them */
};

/* KIND is cpu, cuda, or cuda-fast: rows may depend on their number. Ends the program when the
 * arguments are wrong or the backend does not open. */
static inline struct bench_args bench_open(int argc, char **argv)
{
    struct bench_args a = {0};
    char why[256];
    if (argc < 6 || argc > 5 + 8) {
        fprintf(stderr, "usage: %s cpu|cuda|cuda-fast SHAPE GB/s TFLOP/s N...\n", argv[0]);
        exit(2);
    }
    const bool fast = strcmp(argv[1], "cuda-fast") == 0;
    a.shape = shape_named(argv[2]);
    a.bandwidth = 1e9 * strtod(argv[3], NULL);
    a.rate = 1e12 * strtod(argv[4], NULL);
    for (int i = 5; i < argc; i++) {
        const int n = (int)strtol(argv[i], NULL, 10);
        a.n[a.n_n++] = n > 0 ? n : 1;
        a.most = n > a.most ? n : a.most;
    }
    if (backend_open(
            &a.b,
            &(struct backend_opts){.kind = fast ? "cuda" : argv[1], .dtype = "auto", .fast = fast},
            why, sizeof why)) {
        fprintf(stderr, "%s\n", why);
        exit(1);
    }
    fprintf(stderr, "%s: %s\n", a.shape->name, a.b->device);
    return a;
}

static inline double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static inline int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static inline double median(double *x, int n) /* sorts x */
{
    qsort(x, (size_t)n, sizeof *x, ascending);
    return x[n / 2];
}
