/* clotho sample: one posterior request on the engine without HTTP, or on servers. On a terminal a
 * line on stderr says how far it is; then a table of the weighted samples, the heaviest first. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../proto/request.h"
#include "commands.h"
#include "islands.h"
#include "local.h"

enum { TABLE_ROWS = 40 };

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

static void show_event(void *user, const struct event *e)
{
    struct show *s = user;
    if (s->json) {
        local_print(e);
        return;
    }
    switch (e->type) {
    case EVENT_START:
        s->particles = e->start.particles;
        break;
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
    case EVENT_RESAMPLE:
    case EVENT_SCORE:
    case EVENT_TOKENS:
    case EVENT_CHOICE:
    case EVENT_BOUND:
    case EVENT_UPDATE:
        break;
    }
}

/* ------------------------------------------------------- the run */

static int longest(const struct job *job)
{
    int n = 0;
    for (int i = 0; i < job->n_segments; i++)
        if (job->segments[i].type == SEGMENT_SAMPLE)
            n += job->segments[i].max_tokens;
    return n;
}

static int make_job(struct job **out, const struct config *c, const struct engine_info *info,
                    struct err *err)
{
    struct request_opts opts;
    char *body = config_request_body(c, CONFIG_SAMPLE, err);
    if (!body)
        return -1;
    int failed = request_sample(out, &opts, body, strlen(body), info, err);
    free(body);
    return failed;
}

static int run(struct local *l, const struct config *c, struct show *show, struct err *err)
{
    struct job *job;
    if (make_job(&job, c, local_info(l), err))
        return -1;
    show->max_steps = longest(job);
    return local_run(l, job, show_event, show, err);
}

static int sample_here(const struct config *c, struct show *show, struct err *err)
{
    struct local *l = NULL;
    int failed = command_open_twists(c, false, err) || local_open(&l, c, show->progress, err) ||
                 (!local_interrupted() && run(l, c, show, err));
    local_close(l);
    return failed;
}

static int sample(const struct config *c)
{
    struct show show = {.json = c->json, .progress = !c->json && isatty(STDERR_FILENO)};
    struct err err;
    bool failed = (c->server ? islands_run(c, show.progress, show_event, &show, &err)
                             : sample_here(c, &show, &err)) != 0;
    if (failed || local_interrupted())
        clear_progress(&show);
    if (failed)
        fprintf(stderr, "clotho: %s\n", err.msg);
    for (int i = 0; i < show.n_rows; i++)
        free(show.row[i].text);
    free(show.row);
    return local_interrupted() ? LOCAL_INTERRUPTED : failed;
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
