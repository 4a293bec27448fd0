/* What the tests of operations say beside right and wrong: with CLOTHO_TEST_REPORT set, each
 * operation's largest error as a fraction of its bound. And how much they do. */
#pragma once
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../kernels/backend.h"

/* CLOTHO_TEST_SIZE: "small" under tools that slow a device down a hundredfold, "large" on a device
 * that is fast; on the CPU everything is done. */
static inline bool test_size_is(const char *size)
{
    const char *given = getenv("CLOTHO_TEST_SIZE");
    return given && strcmp(given, size) == 0;
}

static struct {
    const char *op;
    enum act_type act;
    double worst; /* error / bound */
    long values;
} errors[64];

/* An error of an operation whose name outlives the program's main. */
static inline void note_error(const char *op, enum act_type act, double got, double want,
                              double bound)
{
    const double error = got == want ? 0 : fabs(got - want) / bound;
    int i = 0;
    while (errors[i].op && (errors[i].act != act || strcmp(errors[i].op, op) != 0))
        i++;
    errors[i].op = op;
    errors[i].act = act;
    errors[i].values++;
    if (!(error <= errors[i].worst)) /* NaN, too */
        errors[i].worst = error;
}

/* A line an operation: "error WORST VALUES TYPE NAME". */
static inline void print_errors(void)
{
    if (!getenv("CLOTHO_TEST_REPORT"))
        return;
    for (int i = 0; errors[i].op; i++)
        printf("error %.3f %ld %s %s\n", errors[i].worst, errors[i].values,
               errors[i].act == ACT_BF16 ? "bf16" : "f32", errors[i].op);
}
