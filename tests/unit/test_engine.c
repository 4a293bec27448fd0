/* The engine as its callers see it: what a job says, that nothing changes what it says (other jobs,
 * small batches, a KV cache too small to hold it), and that every sink is closed exactly once,
 * however a job ends. The numbers themselves are checked against enumeration elsewhere. Run in a
 * debug build, each step also checks the page tables. */
#include <pthread.h>

#include "../engine_run.h"

/* ---- jobs and what they say
 * ------------------------------------------------------------------------- */

struct record {
    struct waiter waiter; /* first: the sink knows it as that */
    int n_events, n_samples, n_steps, n_resamples;
    int stop_after; /* events, then the sink asks to cancel; 0: never */
    bool done, failed;
    double log_z, weight_sum;
    struct buf samples; /* the bytes of all samples */
};

static int record_event(void *user, const struct event *e)
{
    struct record *r = user;
    pthread_mutex_lock(&r->waiter.mutex);
    int n = ++r->n_events;
    r->n_steps += e->type == EVENT_STEP;
    r->n_resamples += e->type == EVENT_RESAMPLE;
    if (e->type == EVENT_SAMPLE) {
        EXPECT_INT(e->sample.index, r->n_samples++);
        r->weight_sum += e->sample.weight;
        buf_printf(&r->samples, "%s %a %a %a %a\n", e->sample.text.len ? e->sample.text.s : "",
                   e->sample.log_weight, e->sample.weight, e->sample.log_p, e->sample.log_phi);
        buf_add(&r->samples, e->sample.tokens, (size_t)e->sample.n_tokens * sizeof(int32_t));
    }
    if (e->type == EVENT_DONE) {
        r->done = true;
        r->log_z = e->done.log_z;
    }
    r->failed |= e->type == EVENT_ERROR;
    pthread_mutex_unlock(&r->waiter.mutex);
    return r->stop_after && n >= r->stop_after;
}

static void record_init(struct record *r)
{
    *r = (struct record){0};
    waiter_init(&r->waiter);
}

static void record_free(struct record *r)
{
    buf_free(&r->samples);
    waiter_free(&r->waiter);
}

static void add_potentials(struct job *j, bool continuation)
{
    static const int32_t ids[] = {3, 5, 7};
    static const float bias[] = {1.5f, -2, 0.7f};
    static const int32_t text[] = {4, 2};
    j->potentials = ARENA_NEW(&j->arena, struct potential, 2);
    j->potentials[j->n_potentials++] =
        (struct potential){.type = POTENTIAL_LEXICON, .weight = 1, .lexicon = {ids, bias, 3}};
    if (continuation)
        j->potentials[j->n_potentials++] = (struct potential){
            .type = POTENTIAL_CONTINUATION, .weight = 0.5, .continuation = {text, 2}};
}

/* A mixed bag, by number. */
static struct job *job_of_kind(int kind, int particles, int max_tokens, uint64_t seed)
{
    struct job *j = new_job(JOB_SAMPLE, particles, max_tokens, seed);
    if (kind > 0)
        add_potentials(j, kind >= 2);
    if (kind == 1 || kind == 3) {
        j->twist.type = TWIST_FACTOR;
        j->base_proposal = false;
        j->ess_threshold = 0.9;
    }
    if (kind == 4) {
        j->twist = (struct twist_choice){.type = TWIST_POTENTIAL, .every = 3, .power = 0.5};
        j->ess_threshold = 1;
    }
    return j;
}
enum { KINDS = 5 };

static void submit(struct engine *e, struct job *j, struct record *r)
{
    uint64_t handle;
    struct err err;
    struct sink sink = {record_event, waiter_closed, r};
    if (engine_submit(e, j, sink, &handle, &err) == 0)
        return;
    fprintf(stderr, "%s\n", err.msg);
    EXPECT(!"submitted");
    job_free(j);
    waiter_closed(r);
}

static void run(struct engine *e, struct job *j, struct record *r)
{
    record_init(r);
    submit(e, j, r);
    waiter_wait(&r->waiter);
}

/* ---- tests
 * --------------------------------------------------------------------------------------------- */

static void test_plain_sampling(struct engine *e)
{
    struct record r;
    run(e, job_of_kind(0, 8, 12, 3), &r);
    EXPECT(r.done && !r.failed);
    EXPECT_INT(r.n_samples, 8);
    EXPECT(r.n_steps >= 1 && r.n_steps <= 12);
    EXPECT_INT(r.n_resamples, 0);
    EXPECT(r.log_z == 0); /* exactly: nothing is weighed */
    EXPECT_NEAR(r.weight_sum, 1, 1e-12);
    record_free(&r);
}

static void expect_same(const struct record *got, const struct record *want)
{
    EXPECT(got->done);
    EXPECT_INT(got->samples.len, want->samples.len);
    EXPECT(got->samples.len == want->samples.len &&
           memcmp(got->samples.data, want->samples.data, want->samples.len) == 0);
}

/* A page holds 16 tokens of 2 layers, 2 heads of 4 floats, keys and values: 2 KiB. 14 pages hold a
 * prompt and the whole length of two particles, hardly more. */
enum { SMALL_KV = 14 * 2048 };

static void test_nothing_changes_the_samples(struct engine *e)
{
    struct engine *small_batch = open_engine(7, 0, 0), *small_kv = open_engine(64, SMALL_KV, 0);
    for (int kind = 0; kind < KINDS; kind++) {
        struct record want, again, rows, pages;
        run(e, job_of_kind(kind, 24, 40, 11), &want);
        run(e, job_of_kind(kind, 24, 40, 11), &again);
        run(small_batch, job_of_kind(kind, 24, 40, 11), &rows);
        run(small_kv, job_of_kind(kind, 24, 40, 11), &pages);
        EXPECT(kind == 0 || want.log_z != 0);
        expect_same(&again, &want);
        expect_same(&rows, &want);
        expect_same(&pages, &want);
        record_free(&want);
        record_free(&again);
        record_free(&rows);
        record_free(&pages);
    }
    struct engine_stats stats;
    do { /* they are published at the end of the step that ended the job */
        usleep(1000);
        engine_stats(small_kv, &stats);
    } while (stats.jobs_running > 0);
    EXPECT(stats.recomputed_tokens > 0); /* the small cache did not hold them */
    EXPECT_INT(stats.kv_pages_used, 0);
    engine_close(small_batch);
    engine_close(small_kv);
}

static void test_could_never_fit(void)
{
    struct engine *e = open_engine(64, 4 * 2048, 0);
    struct job *j = new_job(JOB_SAMPLE, 2, 200, 1);
    struct err err;
    uint64_t handle;
    struct record r;
    record_init(&r);
    EXPECT_INT(engine_submit(e, j, (struct sink){record_event, waiter_closed, &r}, &handle, &err),
               -1);
    EXPECT_INT(err.code, ERR_INVALID);
    EXPECT_STR(err.param, "max_tokens");
    EXPECT_INT(r.waiter.closed, 0);
    job_free(j);
    waiter_closed(&r);
    record_free(&r);
    engine_close(e);
}

struct client {
    struct engine *engine;
    int id;
    pthread_t thread;
};

/* Submits jobs of all kinds, lets some run, has some cancelled by their sink and some by the
 * caller. */
static void *client_main(void *arg)
{
    struct client *c = arg;
    for (int i = 0; i < 30; i++) {
        struct philox random = philox4x32(99, (uint32_t)c->id, (uint32_t)i, 0, 0);
        struct record r;
        record_init(&r);
        r.stop_after = random.v[0] % 3 == 0 ? 1 + (int)(random.v[1] % 9) : 0;
        struct job *j =
            job_of_kind((int)(random.v[2] % KINDS), 1 + (int)(random.v[3] % 20), 12, random.v[1]);
        struct err err;
        uint64_t handle;
        struct sink sink = {record_event, waiter_closed, &r};
        if (engine_submit(c->engine, j, sink, &handle, &err) == 0) {
            if (random.v[0] % 3 == 1)
                engine_cancel(c->engine, handle);
            waiter_wait(&r.waiter);
        } else {
            EXPECT_INT(err.code, ERR_BUSY);
            job_free(j);
            waiter_closed(&r);
        }
        record_free(&r);
    }
    return NULL;
}

static void test_amid_others(struct engine *e)
{
    enum { CLIENTS = 6 };
    struct client c[CLIENTS];
    struct record want[KINDS], got;
    for (int kind = 0; kind < KINDS; kind++)
        run(e, job_of_kind(kind, 16, 24, 5), &want[kind]);
    for (int i = 0; i < CLIENTS; i++) {
        c[i] = (struct client){.engine = e, .id = i};
        pthread_create(&c[i].thread, NULL, client_main, &c[i]);
    }
    for (int i = 0; i < 3 * KINDS; i++) {
        run(e, job_of_kind(i % KINDS, 16, 24, 5), &got);
        expect_same(&got, &want[i % KINDS]);
        record_free(&got);
    }
    for (int i = 0; i < CLIENTS; i++)
        pthread_join(c[i].thread, NULL);
    for (int kind = 0; kind < KINDS; kind++)
        record_free(&want[kind]);
    while (engine_jobs(e) > 0) /* the last is taken off the list right after its sink is closed */
        usleep(1000);
}

/* However many jobs there are, their populations are weighed in one operation a step, and those of
 * their particles that draw again do so in one more than the step itself has. */
static void test_together(void)
{
    enum { N = 8 }; /* of 4 particles: the rows of all fit a step */
    struct engine *e = open_engine(64, 0, 0);
    struct engine_stats stats;
    struct record r[N];
    for (int i = 0; i < N; i++) {
        struct job *j = job_of_kind(i % 4 == 3 ? 4 : 1, 4, 10, (uint64_t)i);
        j->ess_threshold = 1;
        record_init(&r[i]);
        submit(e, j, &r[i]);
    }
    for (int i = 0; i < N; i++) {
        waiter_wait(&r[i].waiter);
        EXPECT(r[i].done && r[i].n_resamples > 0);
        record_free(&r[i]);
    }
    do { /* they are published at the end of the step that ended the job */
        usleep(1000);
        engine_stats(e, &stats);
    } while (stats.jobs_running > 0);
    EXPECT(stats.op_calls[OP_RESAMPLE] > 0 && stats.op_calls[OP_RESAMPLE] <= stats.steps);
    EXPECT(stats.op_calls[OP_PROPOSE] > stats.steps);
    EXPECT(stats.op_calls[OP_PROPOSE] <= 2 * stats.steps);
    engine_close(e);
}

static void test_drain_and_close(void)
{
    enum { N = 12 };
    struct engine *e = open_engine(64, 0, 0);
    struct record r[N];
    for (int i = 0; i < N; i++) {
        record_init(&r[i]);
        submit(e, job_of_kind(i % KINDS, 16, 100, (uint64_t)i), &r[i]);
    }
    engine_drain(e);
    struct job *late = new_job(JOB_SAMPLE, 1, 1, 1);
    struct err err;
    uint64_t handle;
    EXPECT_INT(engine_submit(e, late, (struct sink){0}, &handle, &err), -1);
    EXPECT_INT(err.code, ERR_UNAVAILABLE);
    job_free(late);
    waiter_wait(&r[0].waiter); /* draining lets jobs finish … */
    EXPECT(r[0].done);
    engine_close(e); /* … closing does not, but every sink is closed */
    for (int i = 0; i < N; i++)
        record_free(&r[i]);
}

int main(void)
{
    files_open();
    struct engine *e = open_engine(64, 0, 0);
    test_plain_sampling(e);
    test_nothing_changes_the_samples(e);
    test_amid_others(e);
    engine_close(e);
    test_together();
    test_could_never_fit();
    test_drain_and_close();
    files_close();
    return test_failures();
}
