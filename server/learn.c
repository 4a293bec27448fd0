/* clotho twist learn: learn a twist on the engine without HTTP. On a terminal a line on stderr says
 * how far it is; at the end, a summary. What the curves need is kept as it comes. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../proto/request.h"
#include "commands.h"
#include "local.h"
#include "plot.h"

enum curve { LOSS, LOG_Z, ESS, LOWER, UPPER, CURVES };

struct points {
    struct plot_point *at;
    int n, cap;
};

/* Bounds that came after one update. */
struct spot {
    double sum, squares;
    int n;
};

struct learning {
    const struct config *c;
    bool progress;
    int update, updates; /* the last one, and how many there will be */
    struct points curve[CURVES];
    struct spot lower, upper; /* since the last update */
    char name[TWIST_NAME_MAX + 1];
    double loss, ess, log_z, seconds;
};

static void add_point(struct points *p, double x, double y, double bar)
{
    if (p->n == p->cap) {
        p->cap = p->cap ? 2 * p->cap : 256;
        p->at = realloc(p->at, sizeof *p->at * (size_t)p->cap);
        CHECK(p->at && "out of memory");
    }
    p->at[p->n++] = (struct plot_point){x, y, bar};
}

/* ------------------------------------------------------- events */

static void clear_progress(const struct learning *l)
{
    if (l->progress)
        fputs("\r\033[K", stderr);
}

/* The bounds so far become one point, with the half of a 95 % interval. */
static void settle(struct learning *l, struct spot *s, enum curve curve)
{
    double n = s->n, mean = s->sum / n;
    double variance = fmax(0, (s->squares - n * mean * mean) / (n - 1));
    if (s->n)
        add_point(&l->curve[curve], l->update, mean, 1.96 * sqrt(variance / n));
    *s = (struct spot){0};
}

static void take_bound(struct learning *l, const struct event *e)
{
    struct spot *s = e->bound.upper ? &l->upper : &l->lower;
    s->sum += e->bound.log_z;
    s->squares += e->bound.log_z * e->bound.log_z;
    s->n++;
}

static void settle_bounds(struct learning *l)
{
    settle(l, &l->lower, LOWER);
    settle(l, &l->upper, UPPER);
}

static void take_update(struct learning *l, const struct event *e)
{
    settle_bounds(l);
    l->update = e->update.update;
    l->loss = e->update.loss;
    l->ess = e->update.ess;
    add_point(&l->curve[LOSS], l->update, l->loss, 0);
    add_point(&l->curve[LOG_Z], l->update, e->update.log_z, 0);
    add_point(&l->curve[ESS], l->update, l->ess, 0);
    if (l->progress)
        fprintf(stderr, "\r\033[Kupdate %d of %d   loss %.4f   log Z %.3f   ESS %.1f", l->update,
                l->updates, l->loss, e->update.log_z, l->ess);
}

static void on_event(void *user, const struct event *e)
{
    struct learning *l = user;
    if (l->c->json)
        local_print(e);
    if (e->type == EVENT_UPDATE) {
        take_update(l, e);
    } else if (e->type == EVENT_BOUND) {
        take_bound(l, e);
    } else if (e->type == EVENT_DONE) {
        settle_bounds(l);
        l->log_z = e->done.log_z;
        l->seconds = e->done.prompt_seconds + e->done.sample_seconds;
    }
}

/* ------------------------------------------------------- what is shown */

static void print_summary(const struct learning *l)
{
    printf("%s/%s.safetensors: %d updates in %.1f s   loss %.4f   log Z %.4f   ESS %.1f\n",
           l->c->twist_dir, l->name, l->update, l->seconds, l->loss, l->log_z, l->ess);
}

static struct plot_series series_of(const struct learning *l, enum curve curve, const char *name,
                                    int hue, bool open)
{
    return (struct plot_series){name, hue, open, l->curve[curve].at, l->curve[curve].n};
}

static int draw(const struct learning *l, const char *model, struct err *err)
{
    struct plot_series loss = series_of(l, LOSS, NULL, 0, false),
                       ess = series_of(l, ESS, NULL, 2, false),
                       log_z[] = {series_of(l, LOG_Z, "of an update", 0, false),
                                  series_of(l, LOWER, "lower bound", 1, false),
                                  series_of(l, UPPER, "upper bound", 1, true)};
    struct plot_panel panels[] = {
        {"update", "loss", false, &loss, 1, NAN, NULL},
        {"update", "log Z", false, log_z, 3, NAN, NULL},
        {"update", "effective samples", false, &ess, 1, NAN, NULL},
    };
    char title[TWIST_NAME_MAX + 32], subtitle[256];
    snprintf(title, sizeof title, "Learning %s", l->name);
    snprintf(subtitle, sizeof subtitle, "%s, %d updates; bars of bounds: 95 %%", model, l->update);
    struct plot plot = {title, subtitle, panels, 3};
    return plot_write(l->c->plot, &plot, err);
}

/* ------------------------------------------------------- the command */

static int make_job(struct job **out, const struct config *c, const struct engine_info *info,
                    struct err *err)
{
    struct request_opts opts;
    char *body = config_request_body(c, CONFIG_LEARN, err);
    if (!body)
        return -1;
    int failed = request_learn(out, &opts, body, strlen(body), info, err);
    free(body);
    return failed;
}

static int run(struct learning *l, struct local *local, struct err *err)
{
    struct job *job;
    if (make_job(&job, l->c, local_info(local), err))
        return -1;
    snprintf(l->name, sizeof l->name, "%s", job->learn.spec.name);
    l->updates = job->learn.spec.updates;
    int failed = local_run(local, job, on_event, l, err);
    clear_progress(l);
    if (failed || local_interrupted())
        return failed;
    if (!l->c->json)
        print_summary(l);
    return l->c->plot ? draw(l, local_info(local)->model, err) : 0;
}

static int learn(const struct config *c)
{
    struct learning l = {.c = c, .progress = !c->json && isatty(STDERR_FILENO)};
    struct local *local = NULL;
    struct err err;
    int failed = (c->plot && plot_check(c->plot, &err)) || command_open_twists(c, true, &err) ||
                 local_open(&local, c, l.progress, &err) ||
                 (!local_interrupted() && run(&l, local, &err));
    if (failed)
        fprintf(stderr, "clotho: %s\n", err.msg);
    local_close(local);
    for (int i = 0; i < CURVES; i++)
        free(l.curve[i].at);
    return local_interrupted() ? LOCAL_INTERRUPTED : failed;
}

int command_learn(int argc, char **argv)
{
    struct config c;
    int status = command_config(&c, CONFIG_LEARN, argc, argv);
    if (status < 0)
        status = learn(&c);
    config_free(&c);
    return status;
}
