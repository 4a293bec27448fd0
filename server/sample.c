/* clotho sample: one posterior request on the engine without HTTP. On a terminal a line on stderr
 * says how far it is; then a table of the weighted samples, the heaviest first. */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "../proto/event_json.h"
#include "../proto/request.h"
#include "commands.h"
#include "event_queue.h"

enum { INTERRUPTED = 130, POLL_MS = 100, LOADING_MS = 10, TABLE_ROWS = 40 };

/* ------------------------------------------------------- events, from the engine's thread */

struct mailbox {
    pthread_mutex_t lock; /* of all */
    pthread_cond_t changed;
    struct event_queue inbox;
    bool closed;
};

static int take_event(void *user, const struct event *e)
{
    struct mailbox *m = user;
    pthread_mutex_lock(&m->lock);
    event_queue_add(&m->inbox, e);
    pthread_cond_signal(&m->changed);
    pthread_mutex_unlock(&m->lock);
    return 0;
}

static void take_closed(void *user)
{
    struct mailbox *m = user;
    pthread_mutex_lock(&m->lock);
    m->closed = true;
    pthread_cond_signal(&m->changed);
    pthread_mutex_unlock(&m->lock);
}

/* Wait a moment for events; they are swapped into the used-up `taken`. False: there will be none
 * any more. */
static bool fetch(struct mailbox *m, struct event_queue *taken)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += POLL_MS * 1000000L;
    until.tv_sec += until.tv_nsec / 1000000000L;
    until.tv_nsec %= 1000000000L;
    pthread_mutex_lock(&m->lock);
    if (event_queue_is_empty(&m->inbox) && !m->closed)
        pthread_cond_timedwait(&m->changed, &m->lock, &until);
    struct event_queue empty = *taken;
    event_queue_clear(&empty);
    *taken = m->inbox;
    m->inbox = empty;
    bool more = !m->closed || !event_queue_is_empty(taken);
    pthread_mutex_unlock(&m->lock);
    return more;
}

/* ------------------------------------------------------- what is shown */

struct row { /* samples of one text */
    char *text;
    double weight;
    int count;
};

struct show {
    bool json, progress; /* progress: stderr is a terminal */
    int max_steps;
    struct row *row;
    int n_rows, particles;
    bool failed; /* the last event so far was not `done` */
};

/* One line whatever the text holds. */
static char *one_line(const char *s, size_t n)
{
    struct buf out = {0};
    buf_puts(&out, "");
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)s[i];
        if (c == '\n')
            buf_puts(&out, "\\n");
        else if (c < ' ' || c == 127)
            buf_printf(&out, "\\x%02x", c);
        else
            buf_add(&out, &s[i], 1);
    }
    return out.data;
}

static void add_sample(struct show *s, const struct event *e)
{
    char *text = one_line(e->sample.text.s, e->sample.text.len);
    for (int i = 0; i < s->n_rows; i++) {
        if (strcmp(s->row[i].text, text) != 0)
            continue;
        s->row[i].weight += e->sample.weight;
        s->row[i].count++;
        free(text);
        return;
    }
    s->row = realloc(s->row, sizeof *s->row * (size_t)(s->n_rows + 1));
    CHECK(s->row && "out of memory");
    s->row[s->n_rows++] = (struct row){.text = text, .weight = e->sample.weight, .count = 1};
}

static int heavier_first(const void *a, const void *b)
{
    const struct row *x = a, *y = b;
    if (x->weight != y->weight)
        return x->weight < y->weight ? 1 : -1;
    return strcmp(x->text, y->text);
}

static void print_table(struct show *s)
{
    if (s->n_rows == 0)
        return;
    qsort(s->row, (size_t)s->n_rows, sizeof *s->row, heavier_first);
    puts("weight  count  text");
    int shown = s->n_rows < TABLE_ROWS ? s->n_rows : TABLE_ROWS;
    for (int i = 0; i < shown; i++)
        printf("%.4f  %5d  %s\n", s->row[i].weight, s->row[i].count, s->row[i].text);
    if (shown < s->n_rows)
        printf("… and %d lighter ones (--json prints all)\n", s->n_rows - shown);
}

static void print_done(struct show *s, const struct event *e)
{
    double seconds = e->done.prompt_seconds + e->done.sample_seconds;
    print_table(s);
    printf("\nlog Z %.4f   ESS %.1f of %d   %lld tokens in %.2f s", e->done.log_z, e->done.ess,
           s->particles, (long long)e->done.completion_tokens, seconds);
    if (e->done.sample_seconds > 0)
        printf(" (%.0f tokens/s)", (double)e->done.completion_tokens / e->done.sample_seconds);
    putchar('\n');
}

static void clear_progress(const struct show *s)
{
    if (s->progress)
        fputs("\r\033[K", stderr);
}

static void show_progress(const struct show *s, const struct event *e)
{
    if (s->progress)
        fprintf(stderr, "\r\033[Kstep %d of at most %d   %d of %d active   ESS %.1f   log Z %.3f",
                e->step.step, s->max_steps, e->step.active, s->particles, e->step.ess,
                e->step.log_z);
}

static void show_event(struct show *s, const struct event *e)
{
    switch (e->type) {
    case EVENT_STEP:
        show_progress(s, e);
        break;
    case EVENT_SAMPLE:
        add_sample(s, e);
        break;
    case EVENT_DONE:
        clear_progress(s);
        print_done(s, e);
        break;
    case EVENT_ERROR:
        clear_progress(s);
        fprintf(stderr, "clotho: %s\n", e->error.msg);
        break;
    case EVENT_START:
    case EVENT_RESAMPLE:
    case EVENT_SCORE:
    case EVENT_BOUND:
    case EVENT_UPDATE:
        break;
    }
}

static void print_json(const struct event *e)
{
    struct buf line = {0};
    event_json(&line, e);
    puts(line.data);
    fflush(stdout);
    buf_free(&line);
}

/* ------------------------------------------------------- the run */

static volatile sig_atomic_t interrupted;

static void on_interrupt(int signal)
{
    (void)signal;
    interrupted = 1;
}

/* Show everything until the engine has nothing more to say. */
static void follow(struct mailbox *m, struct show *s)
{
    struct event_queue taken = {0};
    struct event e;
    while (!interrupted && fetch(m, &taken))
        while (event_queue_next(&taken, &e)) {
            if (s->json)
                print_json(&e);
            else
                show_event(s, &e);
            s->failed = e.type != EVENT_DONE;
        }
    event_queue_free(&taken);
    if (interrupted)
        clear_progress(s);
}

static int wait_ready(struct engine *engine, struct err *err)
{
    struct timespec pause = {.tv_nsec = LOADING_MS * 1000000L};
    while (!interrupted && engine_state(engine) == ENGINE_LOADING)
        nanosleep(&pause, NULL);
    return interrupted ? 0 : engine_wait_ready(engine, err);
}

static int longest(const struct job *job)
{
    int n = 0;
    for (int i = 0; i < job->n_segments; i++)
        if (job->segments[i].type == SEGMENT_SAMPLE)
            n += job->segments[i].max_tokens;
    return n;
}

static int submit(struct engine *engine, const struct config *c, struct show *show,
                  struct sink sink, struct err *err)
{
    struct job *job;
    struct request_opts opts;
    uint64_t handle;
    char *body = config_sample_body(c, err);
    if (!body)
        return -1;
    int failed = request_sample(&job, &opts, body, strlen(body), engine_info(engine), err);
    free(body);
    if (failed)
        return -1;
    show->max_steps = longest(job);
    show->particles = job->particles;
    if (engine_submit(engine, job, sink, &handle, err)) {
        job_free(job);
        return -1;
    }
    return 0;
}

/* The engine is closed before the mailbox that it writes to goes. */
static int run(const struct config *c, struct mailbox *m, struct show *show)
{
    struct engine *engine = NULL;
    struct engine_opts opts = command_engine_opts(c);
    struct err err;
    opts.max_queue = 1;
    if (!show->progress)
        opts.log = NULL;
    int failed =
        engine_open(&engine, &opts, &err) || wait_ready(engine, &err) ||
        (!interrupted && submit(engine, c, show, (struct sink){take_event, take_closed, m}, &err));
    if (failed)
        fprintf(stderr, "clotho: %s\n", err.msg);
    else
        follow(m, show);
    engine_close(engine);
    return interrupted ? INTERRUPTED : failed || show->failed;
}

static int sample(const struct config *c)
{
    struct mailbox m = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
    struct show show = {.json = c->json, .progress = !c->json && isatty(STDERR_FILENO)};
    struct sigaction on = {.sa_handler = on_interrupt, .sa_flags = (int)SA_RESETHAND};
    sigaction(SIGINT, &on, NULL); /* the second one finds the default action */
    int status = run(c, &m, &show);
    for (int i = 0; i < show.n_rows; i++)
        free(show.row[i].text);
    free(show.row);
    event_queue_free(&m.inbox);
    return status;
}

int command_sample(int argc, char **argv)
{
    struct config c;
    int status = command_config(&c, CONFIG_SAMPLE, argc, argv);
    if (status < 0)
        status = sample(&c);
    config_free(&c);
    return status;
}
