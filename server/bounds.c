/* clotho bounds: bounds on log Z on the engine without HTTP, one line of a table for each number of
 * particles. For a picture, each is run in up to four ways: never resampling (SIS) and as the
 * request says (SMC), with tokens drawn from the base model and from the twist. All have the same
 * seed, and with it the same exact draws. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../proto/json_write.h"
#include "../proto/request.h"
#include "commands.h"
#include "local.h"
#include "plot.h"

enum { WAYS = 4, MAX_ROWS = MAX_POPULATIONS * WAYS };

/* Half of a 95 % interval, in standard errors. */
static const double interval = 1.96;

struct row {
    int k;
    bool resamples, twisted; /* twisted: the proposal */
    struct event_mean lower, upper, kl_q_sigma, kl_sigma_q;
    double gap;
};

struct bounds {
    const struct config *c;
    struct local *local;
    bool progress, several;
    int n_bounds; /* of the run so far */
    uint64_t seed;
    struct row row[MAX_ROWS];
    int n;
};

static const char *kind_name(const struct row *r)
{
    return r->resamples ? "SMC" : "SIS";
}

static const char *proposal_name(const struct row *r)
{
    return r->twisted ? "twist" : "base";
}

/* ------------------------------------------------------- the table */

/* "-3.2104 ± 0.0123", right-aligned. The sign is one column and two bytes. */
static void print_mean(const struct event_mean *m)
{
    char cell[64];
    if (m->n == 0 || isnan(m->mean))
        printf("  %18s", "-");
    else if (isnan(m->se))
        printf("  %18.4f", m->mean);
    else {
        snprintf(cell, sizeof cell, "%.4f ± %.4f", m->mean, m->se);
        printf("  %19s", cell);
    }
}

static void print_head(void)
{
    printf("%9s  kind  proposal  %18s  %18s  %8s  %18s  %18s\n", "particles", "lower", "upper",
           "gap", "KL(q|sigma)", "KL(sigma|q)");
}

static void print_row(const struct row *r)
{
    printf("%9d  %-4s  %-8s", r->k, kind_name(r), proposal_name(r));
    print_mean(&r->lower);
    print_mean(&r->upper);
    if (isnan(r->gap))
        printf("  %8s", "-");
    else
        printf("  %8.4f", r->gap);
    print_mean(&r->kl_q_sigma);
    print_mean(&r->kl_sigma_q);
    putchar('\n');
    fflush(stdout);
}

/* The row with the least gap, or NULL. */
static const struct row *tightest(const struct bounds *b)
{
    const struct row *best = NULL;
    for (int i = 0; i < b->n; i++)
        if (isfinite(b->row[i].gap) && (!best || b->row[i].gap < best->gap))
            best = &b->row[i];
    return best;
}

static void print_foot(const struct bounds *b)
{
    const struct row *best = tightest(b);
    putchar('\n');
    if (best)
        printf("log Z is about %.4f, between %.4f and %.4f   ",
               (best->lower.mean + best->upper.mean) / 2, best->lower.mean, best->upper.mean);
    printf("seed %lld\n", (long long)b->seed);
}

/* ------------------------------------------------------- events */

static void clear_progress(const struct bounds *b)
{
    if (b->progress)
        fputs("\r\033[K", stderr);
}

static void show_progress(const struct bounds *b)
{
    const struct row *r = &b->row[b->n];
    if (b->progress)
        fprintf(stderr, "\r\033[K%d particles, %s, %s proposal: %d bounds", r->k, kind_name(r),
                proposal_name(r), b->n_bounds);
}

static void take_done(struct row *r, const struct event *e)
{
    r->lower = e->done.lower;
    r->upper = e->done.upper;
    r->kl_q_sigma = e->done.kl_q_sigma;
    r->kl_sigma_q = e->done.kl_sigma_q;
    r->gap = e->done.gap;
}

static void on_event(void *user, const struct event *e)
{
    struct bounds *b = user;
    if (b->c->json)
        local_print(e);
    if (e->type == EVENT_DONE)
        take_done(&b->row[b->n], e);
    b->n_bounds += e->type == EVENT_BOUND;
    show_progress(b);
}

/* Which of several runs the following events are of. */
static void print_run(const struct row *r)
{
    struct buf line = {0};
    struct json w = {.out = &line};
    json_open(&w, NULL, '{');
    json_string_member(&w, "event", "run");
    json_int_member(&w, "particles", r->k);
    json_string_member(&w, "kind", kind_name(r));
    json_string_member(&w, "proposal", proposal_name(r));
    json_close(&w, '}');
    puts(line.data);
    buf_free(&line);
}

/* ------------------------------------------------------- runs */

static int make_job(struct job **out, const struct bounds *b, int k, struct err *err)
{
    struct config c = *b->c;
    struct request_opts opts;
    char particles[16];
    snprintf(particles, sizeof particles, "%d", k);
    c.request.particles = particles;
    char *body = config_request_body(&c, CONFIG_BOUNDS, err);
    if (!body)
        return -1;
    int failed = request_bounds(out, &opts, body, strlen(body), local_info(b->local), err);
    free(body);
    return failed;
}

/* Run a job, which is taken, and keep its row. */
static int run(struct bounds *b, struct job *job, struct err *err)
{
    struct row *r = &b->row[b->n];
    *r = (struct row){
        .k = job->particles, .resamples = job->ess_threshold > 0, .twisted = !job->base_proposal};
    if (b->n == 0)
        b->seed = job->seed;
    job->seed = b->seed;
    b->n_bounds = 0;
    if (b->c->json && b->several)
        print_run(r);
    show_progress(b);
    int failed = local_run(b->local, job, on_event, b, err);
    clear_progress(b);
    if (failed || local_interrupted())
        return failed;
    if (!b->c->json)
        print_row(r);
    b->n++;
    return 0;
}

enum way { AS_ASKED, NO_RESAMPLING = 1, BASE_PROPOSAL = 2 };

/* What would be one of the others once more is left out. */
static int run_way(struct bounds *b, int k, enum way way, struct err *err)
{
    struct job *job;
    if (make_job(&job, b, k, err))
        return -1;
    if ((way & NO_RESAMPLING && job->ess_threshold <= 0) ||
        (way & BASE_PROPOSAL && job->base_proposal)) {
        job_free(job);
        return 0;
    }
    if (way & NO_RESAMPLING)
        job->ess_threshold = 0;
    job->base_proposal |= (way & BASE_PROPOSAL) != 0;
    return run(b, job, err);
}

/* Refuse what is wrong with any of the requests before there is work done for the others. */
static int check_all(const struct bounds *b, const int *k, int n, struct err *err)
{
    for (int i = 0; i < n; i++) {
        struct job *job;
        if (make_job(&job, b, k[i], err))
            return -1;
        job_free(job);
    }
    return 0;
}

static int run_all(struct bounds *b, const int *k, int n, struct err *err)
{
    int ways = b->c->plot ? WAYS : 1;
    b->several = n * ways > 1;
    if (check_all(b, k, n, err))
        return -1;
    if (!b->c->json)
        print_head();
    for (int i = 0; i < n; i++)
        for (int way = ways - 1; way >= AS_ASKED; way--) {
            if (run_way(b, k[i], (enum way)way, err))
                return -1;
            if (local_interrupted())
                return 0;
        }
    if (!b->c->json)
        print_foot(b);
    return 0;
}

/* ------------------------------------------------------- the picture */

static struct plot_point point(const struct row *r, const struct event_mean *m)
{
    return (struct plot_point){r->k, m->n ? m->mean : NAN, interval * m->se};
}

/* One way's lower and upper bounds as series; the points go behind those of the series before. */
static int add_way(const struct bounds *b, int way, struct plot_series *s,
                   struct plot_point *points)
{
    static const char *const names[WAYS][2] = {
        {"SIS, base: lower", "SIS, base: upper"},
        {"SMC, base: lower", "SMC, base: upper"},
        {"SIS, twist: lower", "SIS, twist: upper"},
        {"SMC, twist: lower", "SMC, twist: upper"},
    };
    struct plot_point *lower = points, *upper = points + MAX_POPULATIONS;
    int n = 0;
    for (int i = 0; i < b->n; i++) {
        const struct row *r = &b->row[i];
        if (r->resamples + 2 * r->twisted != way)
            continue;
        lower[n] = point(r, &r->lower);
        upper[n++] = point(r, &r->upper);
    }
    if (n == 0)
        return 0;
    s[0] = (struct plot_series){names[way][0], way, false, lower, n};
    s[1] = (struct plot_series){names[way][1], way, true, upper, n};
    return 2;
}

static int draw(const struct bounds *b, struct err *err)
{
    struct plot_point points[WAYS][2 * MAX_POPULATIONS];
    struct plot_series series[2 * WAYS];
    const struct row *best = tightest(b);
    char level[48] = "", subtitle[256];
    int n = 0;
    for (int way = 0; way < WAYS; way++)
        n += add_way(b, way, series + n, points[way]);
    double log_z = best ? (best->lower.mean + best->upper.mean) / 2 : NAN;
    if (best)
        snprintf(level, sizeof level, "log Z is about %.3f", log_z);
    snprintf(subtitle, sizeof subtitle, "%s, %d runs each, bars: 95 %%",
             local_info(b->local)->model, b->row[0].lower.n);
    struct plot_panel panel = {.x_label = "particles",
                               .y_label = "log Z",
                               .log_x = true,
                               .series = series,
                               .n_series = n,
                               .level = log_z,
                               .level_name = level};
    struct plot plot = {"Bounds on log Z", subtitle, &panel, 1};
    return plot_write(b->c->plot, &plot, err);
}

/* ------------------------------------------------------- the command */

static int bounds(struct bounds *b, struct err *err)
{
    int k[MAX_POPULATIONS], n = command_populations(b->c, k, err);
    if (n < 0 || (b->c->plot && plot_check(b->c->plot, err)) ||
        command_open_twists(b->c, false, err) || local_open(&b->local, b->c, b->progress, err))
        return -1;
    if (!local_interrupted() && run_all(b, k, n, err))
        return -1;
    return b->c->plot && !local_interrupted() ? draw(b, err) : 0;
}

int command_bounds(int argc, char **argv)
{
    struct config c;
    struct err err;
    int status = command_config(&c, CONFIG_BOUNDS, argc, argv);
    if (status < 0) {
        struct bounds b = {.c = &c, .progress = !c.json && isatty(STDERR_FILENO)};
        status = bounds(&b, &err) ? 1 : 0;
        if (status)
            fprintf(stderr, "clotho: %s\n", err.msg);
        local_close(b.local);
        status = local_interrupted() ? LOCAL_INTERRUPTED : status;
    }
    config_free(&c);
    return status;
}
