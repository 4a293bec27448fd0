/* Populations that are weighed together, on the backend under test: one operation and one copy each
 * way, and each population gets what it gets alone, bit for bit. */
#include <stdlib.h>

#include "../../core/smc.h"
#include "../ops/ops.h"
#include "../test_backend.h"

/* A backend's own operations, counted; one can be made to fail. */
static const struct backend_ops *real;
static struct {
    int uploads, resamples, downloads;
    int fails_at; /* the how manieth; 0: none */
} seen;

static int count(struct backend *b, int *n)
{
    ++*n;
    if (seen.uploads + seen.resamples + seen.downloads != seen.fails_at)
        return 0;
    snprintf(b->why, sizeof b->why, "the device is gone");
    return -1;
}

static int upload(struct backend *b, void *dev, const void *host, size_t bytes)
{
    return count(b, &seen.uploads) ? -1 : real->upload(b, dev, host, bytes);
}

static int resample(struct backend *b, const struct resample_args *args, struct resample_out *out,
                    int n)
{
    return count(b, &seen.resamples) ? -1 : real->resample(b, args, out, n);
}

static int download(struct backend *b, void *host, const void *dev, size_t bytes)
{
    return count(b, &seen.downloads) ? -1 : real->download(b, host, dev, bytes);
}

static void expect_seen(int uploads, int resamples, int downloads)
{
    EXPECT_INT(seen.uploads, uploads);
    EXPECT_INT(seen.resamples, resamples);
    EXPECT_INT(seen.downloads, downloads);
}

/* ---- populations ---- */

static const int sizes[] = {1, 2, 3, 300, 7, 31, 33, 64};
enum {
    N = 40, /* more than a device takes in one launch */
    N_SIZES = sizeof sizes / sizeof *sizes,
    PARTICLES = N / N_SIZES * (1 + 2 + 3 + 300 + 7 + 31 + 33 + 64),
    ALL_DEAD = 13, /* this population … */
    FORBIDDEN = 20 /* … and one that may not be resampled */
};

struct cloud {
    struct arena arena;
    struct population p[N];
    struct smc_weighing w[N], *list[N];
};

/* Weights, twists, statuses, schemes and wishes that differ from population to population. */
static void cloud_open(struct cloud *c)
{
    *c = (struct cloud){0};
    for (int i = 0; i < N; i++) {
        struct population *p = &c->p[i];
        smc_init(p, &c->arena, sizes[i % N_SIZES], (enum resample_scheme)(i / 3 % 4),
                 i % 5 ? 1 : 0.7, 40 + (uint64_t)i);
        p->pinned = i % 4 == 1;
        for (int j = 0; j < p->k; j++) {
            const size_t at = (size_t)(i * 1000 + j);
            const bool dead = i == ALL_DEAD || (j > 0 && at % 7 == 0);
            smc_extend(p, j, dead ? -INFINITY : noise(1, at), -1, 2 * noise(2, at));
            p->lambda[j] = 3 * noise(3, at);
            if (at % 11 == 0 && !dead)
                p->status[j] = PARTICLE_DONE;
        }
        c->w[i] = (struct smc_weighing){.population = p,
                                        .by = i % 2 ? SMC_BY_LAMBDA : SMC_BY_TWIST,
                                        .may_resample = i != FORBIDDEN,
                                        .step = (uint32_t)i};
        c->list[i] = &c->w[i];
    }
}

static bool same(const void *x, const void *y, int n, size_t size)
{
    return memcmp(x, y, (size_t)n * size) == 0;
}

static void expect_same(const struct smc_weighing *x, const struct smc_weighing *y)
{
    const struct population *p = x->population, *q = y->population;
    EXPECT(same(p->L, q->L, p->k, sizeof *p->L));
    EXPECT(same(p->lpsi, q->lpsi, p->k, sizeof *p->lpsi));
    EXPECT(same(p->lambda, q->lambda, p->k, sizeof *p->lambda));
    EXPECT(same(p->log_rho, q->log_rho, p->k, sizeof *p->log_rho));
    EXPECT(same(p->ancestor, q->ancestor, p->k, sizeof *p->ancestor));
    EXPECT(same(p->status, q->status, p->k, sizeof *p->status));
    EXPECT(x->stats.log_mean == y->stats.log_mean && x->stats.ess == y->stats.ess);
    EXPECT_INT(x->stats.resampled, y->stats.resampled);
}

static void together_as_alone(struct backend *b)
{
    struct cloud all, one;
    struct smc_device d;
    struct err err;
    int resampled = 0;
    cloud_open(&all);
    cloud_open(&one);
    EXPECT_INT(smc_device_open(&d, b, PARTICLES, N, &err), 0);
    memset(&seen, 0, sizeof seen);
    EXPECT_INT(smc_weigh(&d, NULL, 0, &err), 0);
    expect_seen(0, 0, 0);
    EXPECT_INT(smc_weigh(&d, all.list, N, &err), 0);
    expect_seen(1, 1, 1);
    for (int i = N - 1; i >= 0; i--) {
        EXPECT_INT(smc_weigh(&d, &one.list[i], 1, &err), 0);
        expect_same(&all.w[i], &one.w[i]);
        resampled += all.w[i].stats.resampled;
    }
    EXPECT(resampled > N / 2);
    EXPECT(!all.w[FORBIDDEN].stats.resampled && all.w[FORBIDDEN].stats.ess > 0);
    EXPECT(!all.w[ALL_DEAD].stats.resampled && all.w[ALL_DEAD].stats.ess == 0);
    EXPECT(all.w[ALL_DEAD].stats.log_mean == -INFINITY);
    smc_device_close(&d);
    arena_free(&all.arena);
    arena_free(&one.arena);
}

/* Whichever of the three fails; the populations stay as they are. */
static void a_broken_device(struct backend *b)
{
    for (int at = 1; at <= 3; at++) {
        struct cloud c;
        struct smc_device d;
        struct err err;
        cloud_open(&c);
        EXPECT_INT(smc_device_open(&d, b, PARTICLES, N, &err), 0);
        memset(&seen, 0, sizeof seen);
        seen.fails_at = at;
        EXPECT_INT(smc_weigh(&d, c.list, N, &err), -1);
        EXPECT_INT(err.code, ERR_INTERNAL);
        EXPECT_STR(err.msg, "the device is gone");
        EXPECT(c.p[3].log_rho[0] == 0 && c.p[3].ancestor[1] == 0);
        b->why[0] = '\0';
        smc_device_close(&d);
        arena_free(&c.arena);
    }
}

int main(void)
{
    struct backend *b;
    char why[256];
    const struct backend_opts opts = {.kind = test_backend(), .dtype = "f32", .threads = 1};
    if (backend_open(&b, &opts, why, sizeof why) != 0) {
        fprintf(stderr, "%s\n", why);
        return 1;
    }
    struct backend_ops ops = *(real = b->ops);
    ops.upload = upload;
    ops.resample = resample;
    ops.download = download;
    b->ops = &ops;
    together_as_alone(b);
    a_broken_device(b);
    b->ops = real;
    backend_close(b);
    return test_failures();
}
