/* The whole unit-test framework: EXPECT prints file, line and values of a failure and goes on; main
 * returns test_failures() . Silence is success. */
#pragma once
#include <math.h>
#include <stdio.h>
#include <string.h>

static int check_failures;

enum { CHECK_SHOWN = 200 }; /* failures that are printed; the rest are only counted */

#define EXPECT(cond)                                                                               \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            if (check_failures++ < CHECK_SHOWN)                                                    \
                fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #cond);                 \
        }                                                                                          \
    } while (0)

#define EXPECT_INT(got, want)                                                                      \
    do {                                                                                           \
        long long g_ = (long long)(got), w_ = (long long)(want);                                   \
        if (g_ != w_) {                                                                            \
            if (check_failures++ < CHECK_SHOWN)                                                    \
                fprintf(stderr, "%s:%d: %s is %lld, not %lld\n", __FILE__, __LINE__, #got, g_,     \
                        w_);                                                                       \
        }                                                                                          \
    } while (0)

/* |got - want| <= tol; two infinities of one sign are equal; NaN never is. */
#define EXPECT_NEAR(got, want, tol)                                                                \
    do {                                                                                           \
        double g_ = (got), w_ = (want), t_ = (tol);                                                \
        if (!(g_ == w_ || fabs(g_ - w_) <= t_)) {                                                  \
            if (check_failures++ < CHECK_SHOWN)                                                    \
                fprintf(stderr, "%s:%d: %s is %.17g, not %.17g (within %g)\n", __FILE__, __LINE__, \
                        #got, g_, w_, t_);                                                         \
        }                                                                                          \
    } while (0)

#define EXPECT_STR(got, want)                                                                      \
    do {                                                                                           \
        const char *g_ = (got), *w_ = (want);                                                      \
        if (strcmp(g_, w_) != 0) {                                                                 \
            if (check_failures++ < CHECK_SHOWN)                                                    \
                fprintf(stderr, "%s:%d: %s is\n  %s\nnot\n  %s\n", __FILE__, __LINE__, #got, g_,   \
                        w_);                                                                       \
        }                                                                                          \
    } while (0)

static inline int test_failures(void)
{
    if (check_failures)
        fprintf(stderr, "%d checks failed\n", check_failures);
    return check_failures != 0;
}
