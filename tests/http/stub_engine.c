/* An engine that does not think: it implements core/engine.h and sends made-up events at set times,
 * so that the HTTP layer can be tested at its edges and measured without a model's cost. The words
 * of a request's prompt are its script:
 *
 *   us=N       microseconds between steps (0: as fast as it goes)
 *   quiet=N    milliseconds of silence before the first event
 *   text=N     bytes of each sample's text, and of the one that a step tells if "particles" is
 * wanted fail=N     an error event instead of step N vanish=N   the job ends without a last event
 * at step N die=N      the device fails at step N dead=N     lower bounds are minus infinity with
 * fewer than N particles
 *
 * Steps of bounds are runs, of learning updates; the numbers it says are simple ones: log Z is -2,
 * bounds are off by one over the particles, by four times that without resampling, and all that
 * twice from the base proposal. What was learned is saved.
 *
 * STUB_LOAD_MS is how long loading takes, STUB_LOAD_FAILS makes it fail, STUB_RUNNING is how many
 * jobs run at a time. */
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../../core/engine.h"
#include "../../core/gguf.h"

struct stub_job {
    struct stub_job *next;
    struct job *job;
    struct sink sink;
    uint64_t handle;
    bool cancelled, started, stopped; /* stopped: by its sink */
    int step, steps;
    double submitted, due;
    long us, text, fail, vanish, die, dead;
};

struct engine {
    struct engine_opts opts;
    struct engine_info info;
    struct gguf *gguf;
    struct tokenizer *tokenizer;
    pthread_t thread;
    int max_running;

    pthread_mutex_t lock;
    pthread_cond_t changed;
    enum engine_state state;
    struct err failure;
    struct stub_job *jobs, **end; /* the first max_running of them run */
    int n_jobs;
    bool stop;
    uint64_t last_handle;
    struct engine_stats stats;
};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static long env_number(const char *name, long fallback)
{
    const char *s = getenv(name);
    return s ? strtol(s, NULL, 10) : fallback;
}

static long script_number(const struct job *j, const char *word, long fallback)
{
    const char *at = j->prompt ? strstr(j->prompt, word) : NULL;
    return at ? strtol(at + strlen(word), NULL, 10) : fallback;
}

/* ---- events: the lock is not held */

static int tell(struct stub_job *j, const struct event *ev)
{
    j->stopped |= j->sink.event(j->sink.user, ev) != 0;
    return j->stopped;
}

static int say_start(const struct engine *e, struct stub_job *j)
{
    struct event ev = {.type = EVENT_START,
                       .start = {.id = j->job->id,
                                 .model = e->info.model,
                                 .particles = j->job->particles,
                                 .prompt_tokens = j->job->prompt_ids.n,
                                 .seed = (int64_t)j->job->seed}};
    return tell(j, &ev);
}

static int say_step(struct stub_job *j)
{
    char filler[1024];
    memset(filler, 'x', sizeof filler);
    struct event_text text = {filler, j->text < 1024 ? (size_t)j->text : sizeof filler};
    struct event ev = {.type = EVENT_STEP,
                       .step = {.step = j->step,
                                .active = j->job->particles,
                                .ess = j->job->particles / (1 + 0.01 * j->step),
                                .log_z = -0.125 * j->step,
                                .n_texts = j->job->ev_particles,
                                .texts = &text}};
    return j->job->ev_step && tell(j, &ev);
}

/* How far bounds are from log Z. */
static double slack(const struct job *job)
{
    double off = (job->ess_threshold > 0 ? 1.0 : 4.0) / job->particles;
    return job->base_proposal ? 2 * off : off;
}

static double lower_bound(const struct stub_job *j)
{
    return j->job->particles < j->dead ? -INFINITY : -2 - slack(j->job);
}

static bool has_targets(const struct job *job)
{
    return job->targets.n || job->targets.max_draws;
}

static int say_bound(struct stub_job *j, bool upper, double log_z)
{
    struct event ev = {.type = EVENT_BOUND, .bound = {upper, log_z}};
    return tell(j, &ev);
}

static int say_bounds(struct stub_job *j)
{
    return say_bound(j, false, lower_bound(j)) ||
           (has_targets(j->job) && say_bound(j, true, -2 + slack(j->job)));
}

static int say_update(struct stub_job *j)
{
    double n = j->step;
    struct event ev = {.type = EVENT_UPDATE,
                       .update = {j->step, 1 / n, -2 - 1 / n, j->job->particles - 1 / n}};
    int every = j->job->learn.bounds;
    return tell(j, &ev) || (every && j->step % every == 0 && say_bounds(j));
}

static int say_resample(struct stub_job *j)
{
    int32_t ancestors[4096] = {0};
    struct event ev = {.type = EVENT_RESAMPLE,
                       .resample = {.step = j->step, .ess = 1.5, .ancestors = ancestors}};
    ev.resample.n = j->job->particles < 4096 ? j->job->particles : 4096;
    return j->job->ev_resample && tell(j, &ev);
}

static int say_samples(struct stub_job *j)
{
    int k = j->job->particles, n = j->steps;
    int32_t *tokens = calloc((size_t)n, sizeof *tokens);
    char *text = malloc((size_t)j->text + 16);
    CHECK(tokens && text);
    memset(text, 'x', (size_t)j->text);
    int stop = 0;
    for (int i = 0; i < k && !stop; i++) {
        int len = (int)j->text + snprintf(text + j->text, 16, " %d", i);
        struct event ev = {.type = EVENT_SAMPLE,
                           .sample = {.index = i,
                                      .text = {text, (size_t)len},
                                      .tokens = tokens,
                                      .n_tokens = n,
                                      .log_weight = -0.5 * i,
                                      .weight = 1.0 / k,
                                      .log_p = -1.0 * n}};
        stop = j->job->ev_sample && tell(j, &ev);
    }
    free(tokens);
    free(text);
    return stop;
}

enum { LETTER_X = 3 + 'x' }; /* of the byte tokens */

/* Every choice of a completion is x after x. */
static int say_letters(struct stub_job *j)
{
    const struct complete *c = &j->job->complete;
    int n = c->n_prompts * c->n, stop = 0;
    for (int i = 0; i < n && c->tokens && !stop; i++) {
        struct event_token token = {i, LETTER_X, j->step == j->steps, false};
        struct event ev = {.type = EVENT_TOKENS, .tokens = {.token = &token, .n = 1}};
        stop = tell(j, &ev);
    }
    return stop;
}

static int say_choices(struct stub_job *j)
{
    const struct complete *c = &j->job->complete;
    int n = c->n_prompts * c->n, stop = 0;
    int32_t *tokens = calloc((size_t)j->steps, sizeof *tokens);
    CHECK(tokens);
    for (int i = 0; i < j->steps; i++)
        tokens[i] = LETTER_X;
    for (int i = n - 1; i >= 0 && !stop; i--) { /* in any order */
        struct event ev = {.type = EVENT_CHOICE,
                           .choice = {.index = i, .tokens = tokens, .n_tokens = j->steps}};
        stop = tell(j, &ev);
    }
    free(tokens);
    return stop;
}

static int say_scores(struct stub_job *j)
{
    int stop = 0;
    for (int i = 0; i < j->job->n_completions && !stop; i++) {
        const struct ids *c = &j->job->completions[i];
        struct event ev = {.type = EVENT_SCORE,
                           .score = {.index = i, .log_p = -i, .tokens = c->id, .n_tokens = c->n}};
        stop = tell(j, &ev);
    }
    return stop;
}

static int say_done(struct stub_job *j)
{
    struct event ev = {.type = EVENT_DONE,
                       .done = {.kind = j->job->kind,
                                .log_z = -0.125 * j->step,
                                .ess = 1,
                                .prompt_tokens = j->job->prompt_ids.n,
                                .completion_tokens = (int64_t)j->steps * j->job->particles,
                                .sample_seconds = now() - j->submitted}};
    return tell(j, &ev);
}

static int say_bounds_done(struct stub_job *j)
{
    const struct event_mean unknown = {NAN, NAN, 0};
    double off = slack(j->job), low = lower_bound(j);
    int n = j->job->repeats;
    bool up = has_targets(j->job);
    struct event ev = {.type = EVENT_DONE,
                       .done = {.kind = JOB_BOUNDS,
                                .lower = {low, isfinite(low) ? 0.05 : NAN, n},
                                .upper = up ? (struct event_mean){-2 + off, 0.05, n} : unknown,
                                .kl_q_sigma = up ? (struct event_mean){off, 0.01, n} : unknown,
                                .kl_sigma_q = up ? (struct event_mean){2 * off, 0.01, n} : unknown,
                                .gap = up ? -2 + off - low : NAN,
                                .prompt_tokens = j->job->prompt_ids.n}};
    return tell(j, &ev);
}

static int say_error(struct stub_job *j, const char *why)
{
    struct event ev = {.type = EVENT_ERROR};
    err_set(&ev.error, ERR_INTERNAL, "%s", why);
    return tell(j, &ev);
}

static int say_learned(const struct engine *e, struct stub_job *j)
{
    struct err err;
    struct twist_spec *spec = &j->job->learn.spec;
    spec->log_z = -2;
    struct twist *twist = twist_new(spec);
    CHECK(twist);
    int failed = twist_save(twist, e->info.twist_dir, &err);
    twist_free(twist);
    if (failed)
        return say_error(j, err.msg);
    struct event ev = {.type = EVENT_DONE,
                       .done = {.kind = JOB_LEARN,
                                .log_z = -2,
                                .name = spec->name,
                                .updates = spec->updates,
                                .prompt_tokens = j->job->prompt_ids.n}};
    return tell(j, &ev);
}

static int count_steps(const struct job *job)
{
    switch (job->kind) {
    case JOB_SAMPLE:
        return job->segments[0].max_tokens;
    case JOB_BOUNDS:
        return job->repeats;
    case JOB_LEARN:
        return job->learn.spec.updates;
    case JOB_COMPLETE:
        return job->segments[0].max_tokens;
    case JOB_SCORE:
        break;
    }
    return 0;
}

static int say_one_step(struct stub_job *j)
{
    if (j->job->kind == JOB_BOUNDS)
        return say_bounds(j);
    if (j->job->kind == JOB_LEARN)
        return say_update(j);
    if (j->job->kind == JOB_COMPLETE)
        return say_letters(j);
    return say_step(j) || (j->step % 8 == 0 && say_resample(j));
}

static void say_answer(const struct engine *e, struct stub_job *j)
{
    if (j->job->kind == JOB_BOUNDS)
        say_bounds_done(j);
    else if (j->job->kind == JOB_LEARN)
        say_learned(e, j);
    else if (j->job->kind == JOB_COMPLETE && !j->job->complete.tokens && say_choices(j))
        return;
    else if (j->job->kind == JOB_COMPLETE)
        say_done(j);
    else if (!(j->job->kind == JOB_SCORE ? say_scores(j) : say_samples(j)))
        say_done(j);
}

/* One step of a job. Returns nonzero when it is over. */
static int advance(struct engine *e, struct stub_job *j)
{
    if (!j->started) {
        j->started = true;
        if (say_start(e, j))
            return 1;
    }
    j->step++;
    if (j->step == j->fail)
        return say_error(j, "the script said so"), 1;
    if (j->step == j->vanish)
        return 1;
    if (j->step <= j->steps)
        return say_one_step(j);
    say_answer(e, j);
    return 1;
}

/* ---- the thread */

static void end_job(struct stub_job *j)
{
    j->sink.closed(j->sink.user);
    job_free(j->job);
    free(j);
}

/* The lock is held, and let go while the sink is called. */
static void run_due(struct engine *e)
{
    double t = now();
    struct stub_job **at = &e->jobs;
    for (int i = 0; *at && i < e->max_running; i++) {
        struct stub_job *j = *at;
        bool over = j->cancelled || e->stop;
        if (!over && j->due <= t) {
            bool dies = j->step + 1 == j->die;
            pthread_mutex_unlock(&e->lock);
            over = dies || advance(e, j);
            pthread_mutex_lock(&e->lock);
            j->due = now() + 1e-6 * (double)j->us;
            e->stats.learning_updates += j->job->kind == JOB_LEARN && j->step <= j->steps;
            e->stats.bounds_runs += j->job->kind == JOB_BOUNDS && j->step <= j->steps;
            if (dies) {
                e->state = ENGINE_FAILED;
                err_set(&e->failure, ERR_INTERNAL, "the device failed");
            }
        }
        if (!over && e->state != ENGINE_FAILED) {
            at = &j->next;
            continue;
        }
        *at = j->next;
        if (e->end == &j->next)
            e->end = at;
        e->n_jobs--;
        if (j->cancelled || j->stopped)
            e->stats.jobs_cancelled++;
        else
            e->stats.jobs_done++;
        bool failed = e->state == ENGINE_FAILED;
        pthread_mutex_unlock(&e->lock);
        if (failed)
            say_error(j, "the device failed");
        end_job(j);
        pthread_mutex_lock(&e->lock);
    }
    e->stats.steps++;
    e->stats.jobs_running = e->n_jobs < e->max_running ? e->n_jobs : e->max_running;
    e->stats.jobs_waiting = e->n_jobs - e->stats.jobs_running;
}

static void sleep_until_due(struct engine *e)
{
    double due = now() + 0.01;
    int i = 0;
    for (const struct stub_job *j = e->jobs; j && i < e->max_running; j = j->next, i++)
        due = j->due < due ? j->due : due;
    double wait = due - now();
    pthread_mutex_unlock(&e->lock);
    if (wait > 0)
        nanosleep(&(struct timespec){.tv_nsec = (long)(wait * 1e9)}, NULL);
    pthread_mutex_lock(&e->lock);
}

static int load(struct engine *e)
{
    long ms = env_number("STUB_LOAD_MS", 0);
    nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000}, NULL);
    if (getenv("STUB_LOAD_FAILS"))
        return err_set(&e->failure, ERR_FILE, "the stub was told to fail");
    if (tokenizer_open(&e->tokenizer, e->gguf, e->info.config.vocab, &e->failure))
        return -1;
    e->info.tokenizer = e->tokenizer;
    return 0;
}

static void *engine_main(void *arg)
{
    struct engine *e = arg;
    int failed = load(e);
    pthread_mutex_lock(&e->lock);
    e->state = failed ? ENGINE_FAILED : ENGINE_READY;
    pthread_cond_broadcast(&e->changed);
    while (!failed && !(e->stop && !e->jobs)) {
        while (!e->jobs && !e->stop)
            pthread_cond_wait(&e->changed, &e->lock);
        run_due(e);
        sleep_until_due(e);
    }
    pthread_mutex_unlock(&e->lock);
    return NULL;
}

/* ---- core/engine.h */

int engine_open(struct engine **out, const struct engine_opts *opts, struct err *err)
{
    struct engine *e = calloc(1, sizeof *e);
    CHECK(e);
    e->opts = *opts;
    e->max_running = (int)env_number("STUB_RUNNING", 100000);
    e->end = &e->jobs;
    if (gguf_open(&e->gguf, opts->model_path, err) ||
        model_config_read(&e->info.config, e->gguf, opts->model_path, err)) {
        gguf_close(e->gguf);
        free(e);
        return -1;
    }
    snprintf(e->info.model, sizeof e->info.model, "%s", opts->alias ? opts->alias : "stub");
    snprintf(e->info.device, sizeof e->info.device, "no device");
    snprintf(e->info.fingerprint, sizeof e->info.fingerprint, "0123456789abcdef");
    e->info.limits = opts->limits;
    snprintf(e->info.twist_dir, sizeof e->info.twist_dir, "%s",
             opts->twist_dir ? opts->twist_dir : "");
    e->info.twist_bytes = opts->twist_bytes;
    e->info.context = 1 << 20;
    pthread_mutex_init(&e->lock, NULL);
    pthread_cond_init(&e->changed, NULL);
    CHECK(pthread_create(&e->thread, NULL, engine_main, e) == 0);
    *out = e;
    return 0;
}

void engine_close(struct engine *e)
{
    if (!e)
        return;
    pthread_mutex_lock(&e->lock);
    e->stop = true;
    pthread_cond_broadcast(&e->changed);
    pthread_mutex_unlock(&e->lock);
    pthread_join(e->thread, NULL);
    tokenizer_close(e->tokenizer);
    gguf_close(e->gguf);
    free(e);
}

enum engine_state engine_state(const struct engine *engine)
{
    struct engine *e = (struct engine *)engine;
    pthread_mutex_lock(&e->lock);
    enum engine_state state = e->state;
    pthread_mutex_unlock(&e->lock);
    return state;
}

int engine_wait_ready(struct engine *e, struct err *err)
{
    pthread_mutex_lock(&e->lock);
    while (e->state == ENGINE_LOADING)
        pthread_cond_wait(&e->changed, &e->lock);
    bool failed = e->state == ENGINE_FAILED;
    if (failed)
        *err = e->failure;
    pthread_mutex_unlock(&e->lock);
    return failed ? -1 : 0;
}

const struct engine_info *engine_info(const struct engine *e)
{
    enum engine_state state = engine_state(e);
    return state == ENGINE_READY || state == ENGINE_DRAINING ? &e->info : NULL;
}

static int refuse(struct engine *e, struct err *err)
{
    if (e->state != ENGINE_READY)
        return err_set(err, ERR_UNAVAILABLE, "not ready");
    if (e->n_jobs >= e->max_running + e->opts.max_queue)
        return err_set(err, ERR_BUSY, "the queue is full");
    return 0;
}

int engine_submit(struct engine *e, struct job *job, struct sink sink, uint64_t *handle,
                  struct err *err)
{
    pthread_mutex_lock(&e->lock);
    int refused = refuse(e, err);
    e->stats.jobs_refused += refused != 0;
    if (!refused) {
        struct stub_job *j = calloc(1, sizeof *j);
        CHECK(j);
        *j = (struct stub_job){.job = job, .sink = sink, .submitted = now()};
        j->us = script_number(job, "us=", 0);
        j->text = script_number(job, "text=", 10);
        j->fail = script_number(job, "fail=", 0);
        j->vanish = script_number(job, "vanish=", 0);
        j->die = script_number(job, "die=", 0);
        j->dead = script_number(job, "dead=", 0);
        j->steps = count_steps(job);
        j->due = now() + 1e-3 * (double)script_number(job, "quiet=", 0);
        j->handle = *handle = ++e->last_handle;
        *e->end = j;
        e->end = &j->next;
        e->n_jobs++;
        pthread_cond_broadcast(&e->changed);
    }
    pthread_mutex_unlock(&e->lock);
    return refused;
}

void engine_cancel(struct engine *e, uint64_t handle)
{
    pthread_mutex_lock(&e->lock);
    for (struct stub_job *j = e->jobs; j; j = j->next)
        if (j->handle == handle)
            j->cancelled = true;
    pthread_mutex_unlock(&e->lock);
}

void engine_drain(struct engine *e)
{
    pthread_mutex_lock(&e->lock);
    if (e->state != ENGINE_FAILED)
        e->state = ENGINE_DRAINING;
    pthread_mutex_unlock(&e->lock);
}

int engine_jobs(const struct engine *engine)
{
    struct engine *e = (struct engine *)engine;
    pthread_mutex_lock(&e->lock);
    int n = e->n_jobs;
    pthread_mutex_unlock(&e->lock);
    return n;
}

void engine_stats(const struct engine *engine, struct engine_stats *out)
{
    struct engine *e = (struct engine *)engine;
    pthread_mutex_lock(&e->lock);
    *out = e->stats;
    pthread_mutex_unlock(&e->lock);
}
