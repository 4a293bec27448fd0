#include "islands.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../core/job.h"
#include "../proto/client.h"
#include "remote.h"

enum {
    MAX_SERVERS = 64,
    PER_SERVER = 4, /* islands that one draws at a time: enough to keep its batch full */
    MAX_TRIES = 8,  /* that fail; being told to come later is no failure */
    MAX_PAUSE = 4,  /* seconds that a server rests after a failure */
    POLL_MS = 200,
};

struct host {
    char *url;
    int running, failures; /* failures: since it last answered */
    double rests_until;
};

enum state { WAITING, RUNNING, WHOLE };

struct island {
    enum state state;
    uint64_t seed;
    struct host *host; /* that draws it, or was the last to fail */
    int tries;         /* that failed */
    struct remote remote;
};

struct fleet {
    const struct config *config;
    bool verbose;
    struct host host[MAX_SERVERS];
    int n_hosts;
    char *hosts; /* what their urls are in */
    char *body;
    uint64_t seed;
    struct island *island; /* (n) */
    int n, n_whole;
    CURLM *multi;
    double begun;
};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void note(const struct fleet *f, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void note(const struct fleet *f, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    if (f->verbose)
        fputs("\r\033[K", stderr);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
}

/* ------------------------------------------------------- drawing */

/* The least busy one that is not resting and has room; the one that failed last only if no other
 * has. */
static struct host *choose(struct fleet *f, const struct island *d)
{
    struct host *best = NULL;
    int least = 0;
    double t = now();
    for (int i = 0; i < f->n_hosts; i++) {
        struct host *h = &f->host[i];
        int burden = h->running + (h == d->host ? PER_SERVER : 0);
        int room = h->failures ? 1 : PER_SERVER;
        if (h->running >= room || h->rests_until > t || (best && burden >= least))
            continue;
        best = h;
        least = burden;
    }
    return best;
}

static void start(struct fleet *f, struct island *d, struct host *h)
{
    d->state = RUNNING;
    d->host = h;
    h->running++;
    remote_open(&d->remote, h->url, f->config->api_key, client_body(f->body, d->seed), d);
    CHECK(curl_multi_add_handle(f->multi, d->remote.curl) == CURLM_OK);
}

/* Returns how many. */
static int start_waiting(struct fleet *f)
{
    int n = 0;
    for (int i = 0; i < f->n; i++) {
        struct island *d = &f->island[i];
        struct host *h = d->state == WAITING ? choose(f, d) : NULL;
        if (!h)
            continue;
        start(f, d, h);
        n++;
    }
    return n;
}

/* Returns -1 if there is no use in trying again. */
static int try_again(struct fleet *f, struct island *d, enum remote_end end, double after,
                     struct err *err)
{
    struct err why = *err;
    d->state = WAITING;
    d->tries += end == REMOTE_BROKEN;
    if (end == REMOTE_REFUSED || d->tries == MAX_TRIES) {
        err_set(err, why.code, "%s: %s", d->host->url, why.msg);
        return -1;
    }
    double pause = fmin(0.25 * (1 << d->tries), MAX_PAUSE);
    d->host->failures++;
    d->host->rests_until = now() + (after > 0 ? after : pause);
    note(f, "clotho: %s: %s; its island is drawn again\n", d->host->url, why.msg);
    remote_close(&d->remote);
    return 0;
}

static int finish(struct fleet *f, struct island *d, CURLcode result, struct err *err)
{
    double after;
    enum remote_end end = remote_end(&d->remote, result, &after, err);
    curl_multi_remove_handle(f->multi, d->remote.curl);
    d->host->running--;
    if (end != REMOTE_WHOLE)
        return try_again(f, d, end, after, err);
    d->state = WHOLE;
    d->host->failures = 0;
    f->n_whole++;
    if (f->verbose)
        note(f, "%d of %d islands", f->n_whole, f->n);
    return 0;
}

static int finish_done(struct fleet *f, struct err *err)
{
    CURLMsg *m;
    int left, failed = 0;
    while (!failed && (m = curl_multi_info_read(f->multi, &left))) {
        struct island *d;
        curl_easy_getinfo(m->easy_handle, CURLINFO_PRIVATE, (char **)&d);
        failed = finish(f, d, m->data.result, err);
    }
    return failed;
}

static int draw(struct fleet *f, struct err *err)
{
    int running;
    while (f->n_whole < f->n) {
        if (start_waiting(f) == 0)
            curl_multi_poll(f->multi, NULL, 0, POLL_MS, NULL);
        CHECK(curl_multi_perform(f->multi, &running) == CURLM_OK);
        if (finish_done(f, err))
            return -1;
    }
    return 0;
}

/* ------------------------------------------------------- merging */

static int check_models(const struct fleet *f, struct err *err)
{
    const char *model = f->island[0].remote.start.start.model;
    for (int i = 1; i < f->n; i++) {
        const char *other = f->island[i].remote.start.start.model;
        if (strcmp(model, other) != 0)
            return err_set(err, ERR_INVALID, "--server: they have different models, %s and %s",
                           model, other);
    }
    return 0;
}

/* Weights of all samples together, and what follows from them. */
static void weigh(struct fleet *f, struct event *done)
{
    double most = -INFINITY, sum = 0, squares = 0;
    long n = 0;
    for (int i = 0; i < f->n; i++)
        for (int k = 0; k < f->island[i].remote.n_samples; k++)
            most = fmax(most, f->island[i].remote.sample[k].sample.log_weight);
    for (int i = 0; i < f->n; i++)
        for (int k = 0; k < f->island[i].remote.n_samples; k++, n++) {
            struct event *e = &f->island[i].remote.sample[k];
            e->sample.weight = most == -INFINITY ? 0 : exp(e->sample.log_weight - most);
            sum += e->sample.weight;
            squares += e->sample.weight * e->sample.weight;
        }
    done->done.log_z = most + log(sum / (double)n);
    done->done.ess = squares > 0 ? sum * sum / squares : 0;
    if (most == -INFINITY) { /* every particle died */
        done->done.log_z = -INFINITY;
        return;
    }
    for (int i = 0; i < f->n; i++)
        for (int k = 0; k < f->island[i].remote.n_samples; k++)
            f->island[i].remote.sample[k].sample.weight /= sum;
}

static void show_all(struct fleet *f, void (*show)(void *user, const struct event *), void *user)
{
    struct event first = f->island[0].remote.start, last = {.type = EVENT_DONE};
    last.done.kind = JOB_SAMPLE;
    first.start.seed = (int64_t)f->seed;
    first.start.particles = 0;
    weigh(f, &last);
    for (int i = 0; i < f->n; i++) {
        const struct remote *r = &f->island[i].remote;
        first.start.particles += r->n_samples;
        last.done.prompt_tokens += r->done.done.prompt_tokens;
        last.done.completion_tokens += r->done.done.completion_tokens;
    }
    last.done.sample_seconds = now() - f->begun;
    show(user, &first);
    int index = 0;
    for (int i = 0; i < f->n; i++)
        for (int k = 0; k < f->island[i].remote.n_samples; k++) {
            struct event *e = &f->island[i].remote.sample[k];
            e->sample.index = index++;
            show(user, e);
        }
    show(user, &last);
}

/* ------------------------------------------------------- up and down */

static int read_hosts(struct fleet *f, struct err *err)
{
    char *rest = f->hosts = strdup(f->config->server);
    CHECK(f->hosts && "out of memory");
    for (char *url; (url = strsep(&rest, ", "));) {
        if (!*url)
            continue;
        if (f->n_hosts == MAX_SERVERS)
            return err_set(err, ERR_INVALID, "--server: more than %d", MAX_SERVERS);
        f->host[f->n_hosts++].url = url;
    }
    return f->n_hosts ? 0 : err_set(err, ERR_INVALID, "--server: names none");
}

static int fleet_open(struct fleet *f, const struct config *c, bool verbose, struct err *err)
{
    *f = (struct fleet){.config = c, .verbose = verbose, .n = c->islands, .begun = now()};
    f->island = calloc((size_t)f->n, sizeof *f->island);
    CHECK(f->island && "out of memory");
    if (curl_global_init(CURL_GLOBAL_DEFAULT) || !(f->multi = curl_multi_init()))
        return err_set(err, ERR_INTERNAL, "libcurl cannot be started");
    f->body = config_request_body(c, CONFIG_SAMPLE, err);
    if (!f->body || read_hosts(f, err) || client_seed(f->body, &f->seed, err))
        return -1;
    for (int i = 0; i < f->n; i++)
        f->island[i].seed = f->seed + (uint64_t)i;
    return 0;
}

static void fleet_close(struct fleet *f)
{
    for (int i = 0; i < f->n; i++) {
        struct island *d = &f->island[i];
        if (d->state == RUNNING)
            curl_multi_remove_handle(f->multi, d->remote.curl);
        remote_close(&d->remote);
    }
    curl_multi_cleanup(f->multi);
    curl_global_cleanup();
    free(f->island);
    free(f->hosts);
    free(f->body);
}

int islands_run(const struct config *config, bool verbose,
                void (*show)(void *user, const struct event *), void *user, struct err *err)
{
    struct fleet f;
    int failed = fleet_open(&f, config, verbose, err) || draw(&f, err) || check_models(&f, err);
    if (verbose)
        note(&f, "%s", "");
    if (!failed)
        show_all(&f, show, user);
    fleet_close(&f);
    return failed ? -1 : 0;
}
