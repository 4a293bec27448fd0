/* The driver of the tests of backend operations that work on rows, against a float64 reference.
 *
 * A row operation is a struct op: `run` executes it for any list of rows of a case, `want` gives
 * one row's exact result and its error bound. The driver runs each case with all rows at once,
 * permuted, in parts and one by one, and wants the same bits each time; the whole table runs in f32
 * and bf16, with one thread and several, at every instruction level of the CPU, and threads must
 * not change a bit either. To add an operation: write run and want, a struct op, and rows in the
 * table of cases.
 *
 * Bounds: u = 2^-24 is the rounding of one float operation, 2^-8 of one bf16 conversion. A sum of n
 * products in float has an error of at most n u Σ|x y| in any order. */
#pragma once
#include <stdio.h>

#include "ops.h"
#include "report.h"

static const double u = 0x1p-24, u_bf16 = 0x1p-8;

enum { MAX_ROWS = 300 };

struct op_case {
    int rows, d[6]; /* d: what the op's comment says */
};

struct op {
    const char *name;
    bool out_act; /* the result is of the activations' type, else float */
    int (*width)(const int *d);
    /* out (n, width) on the host = the operation on these rows of the case. */
    void (*run)(struct backend *, const int *d, const int32_t *rows, int n, void *out);
    void (*want)(enum act_type, const int *d, int row, double *y, double *bound);
    /* The rows of a case, at most MAX_ROWS; returns how many. NULL: 0 .. c->rows. */
    int (*pick)(const struct op_case *c, int32_t *rows);
};

/* A row of the table of cases. */
struct op_test {
    const struct op *op;
    struct op_case c;
};

/* Names of input streams. */
enum { IN_X = 1, IN_W, IN_Y, IN_Q, IN_COS };

static inline double rounding(enum act_type act)
{
    return act == ACT_BF16 ? u_bf16 : u;
}

/* (n, width) floats of a stream, for the given rows. */
static inline float *gather(uint32_t stream, const int32_t *rows, int n, int width)
{
    float *x = malloc(sizeof *x * (size_t)n * (size_t)width);
    for (int i = 0; i < n; i++)
        for (int j = 0; j < width; j++)
            x[(size_t)i * (size_t)width + (size_t)j] =
                noise(stream, (size_t)rows[i] * (size_t)width + (size_t)j);
    return x;
}

static inline int case_rows(const struct op *op, const struct op_case *c, int32_t *rows)
{
    if (op->pick)
        return op->pick(c, rows);
    for (int i = 0; i < c->rows; i++)
        rows[i] = i;
    return c->rows;
}

static inline size_t row_bytes(const struct op *op, const struct op_case *c, enum act_type act)
{
    return (size_t)op->width(c->d) * (op->out_act ? act_size(act) : sizeof(float));
}

static inline void say(const struct op *op, const struct op_case *c, const struct backend *b)
{
    fprintf(stderr, "  in %s {%d, %d, %d, %d, %d} on %s, %s\n", op->name, c->d[0], c->d[1], c->d[2],
            c->d[3], c->d[4], b->device, b->act == ACT_BF16 ? "bf16" : "f32");
}

static inline void check_values(const struct op *op, const struct op_case *c,
                                const struct backend *b, const int32_t *rows, int n,
                                const void *got)
{
    const int width = op->width(c->d);
    double *want = malloc(sizeof *want * (size_t)width),
           *bound = malloc(sizeof *bound * (size_t)width);
    int failures = check_failures, step = n > 60 ? n / 40 : 1;
    for (int i = 0; i < n && check_failures < failures + 5; i += step) {
        op->want(b->act, c->d, rows[i], want, bound);
        for (int j = 0; j < width && check_failures < failures + 5; j++) {
            const double y = (double)act_at(op->out_act ? b->act : ACT_F32, got,
                                            (size_t)i * (size_t)width + (size_t)j);
            note_error(op->name, b->act, y, want[j], bound[j]);
            EXPECT_NEAR(y, want[j], bound[j]);
        }
    }
    if (check_failures > failures)
        say(op, c, b);
    free(want);
    free(bound);
}

/* order[] lists places in rows[]; every part of `step` of them must give the bytes of `all`. */
static inline void check_rows(const struct op *op, const struct op_case *c, struct backend *b,
                              const int32_t *rows, const int *order, int n, int step,
                              const char *all)
{
    const size_t size = row_bytes(op, c, b->act);
    char *out = malloc(size * (size_t)step);
    int32_t some[MAX_ROWS];
    bool equal = true;
    for (int i = 0; i < n; i += step) {
        int count = n - i < step ? n - i : step;
        for (int j = 0; j < count; j++)
            some[j] = rows[order[i + j]];
        op->run(b, c->d, some, count, out);
        for (int j = 0; j < count; j++)
            equal = equal &&
                    memcmp(out + (size_t)j * size, all + (size_t)order[i + j] * size, size) == 0;
    }
    EXPECT(equal && "rows do not depend on n, their place and each other");
    if (!equal)
        say(op, c, b);
    free(out);
}

/* Returns the case's output, the caller's. */
static inline char *run_case(const struct op *op, const struct op_case *c, struct backend *b,
                             size_t *bytes)
{
    int32_t rows[MAX_ROWS];
    int order[MAX_ROWS], n = case_rows(op, c, rows);
    *bytes = row_bytes(op, c, b->act) * (size_t)n;
    char *all = malloc(*bytes);
    op->run(b, c->d, rows, n, all);
    check_values(op, c, b, rows, n, all);
    for (int i = 0; i < n; i++)
        order[i] = (i * 7 + 3) % n;
    for (int i = 0; i < n && n % 7 == 0; i++)
        order[i] = n - 1 - i;
    check_rows(op, c, b, rows, order, n, n, all);
    check_rows(op, c, b, rows, order, n, n / 3 + 1, all);
    const int alone = test_size_is("small") ? 1 : 12;
    check_rows(op, c, b, rows, order, n > alone ? alone : n, 1, all);
    return all;
}

/* The whole table on one backend, and what is no row operation (`others`); `outputs` of an earlier
 * backend must be the same bytes. */
static inline void run_table(const struct backend_opts *o, const struct op_test *cases, int n_cases,
                             void (*others)(struct backend *), char **outputs)
{
    struct backend *b;
    char why[256];
    if (backend_open(&b, o, why, sizeof why)) {
        fprintf(stderr, "%s\n", why);
        EXPECT(!"the backend opens");
        return;
    }
    for (int i = 0; i < n_cases; i++) {
        size_t bytes;
        if (test_size_is("small") && cases[i].c.rows > 70)
            continue;
        char *out = run_case(cases[i].op, &cases[i].c, b, &bytes);
        if (outputs[i] && memcmp(outputs[i], out, bytes) != 0) {
            EXPECT(!"threads do not change a bit");
            say(cases[i].op, &cases[i].c, b);
        }
        free(outputs[i]);
        outputs[i] = out;
    }
    others(b);
    backend_close(b);
}

/* On the CPU at every instruction level, or, with "cuda" as the program's argument, on the device
 * that the CUDA plug-in finds. */
static inline void run_everywhere(int argc, char **argv, const struct op_test *cases, int n_cases,
                                  void (*others)(struct backend *))
{
    static const char *const levels[] = {"base", "v3", "v4"};
    static const char *const dtypes[] = {"f32", "bf16"};
    const char *kind = argc > 1 ? argv[1] : "cpu";
    const int n_levels = strcmp(kind, "cpu") == 0 ? 3 : 1;
    for (int level = 0; level < n_levels; level++)
        for (int dtype = 0; dtype < 2; dtype++) {
            char **outputs = calloc((size_t)n_cases, sizeof *outputs);
            setenv("CLOTHO_CPU_LEVEL", levels[level], 1);
            for (int threads = 1; threads <= 2; threads++)
                if (threads == 1 || level == 2) /* they are shared out alike on all levels */
                    run_table(&(struct backend_opts){kind, dtypes[dtype], threads, false}, cases,
                              n_cases, others, outputs);
            for (int i = 0; i < n_cases; i++)
                free(outputs[i]);
            free(outputs);
        }
    print_errors();
}
