/* The engine's thread, its inbox, and what others may ask of it. See engine.h, machine.h and run.h.
 */
#include "engine.h"

#include <dirent.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "study.h"

struct engine {
    struct engine_opts opts;
    char path[512], alias[128];
    struct machine m;     /* the thread's own, but for info once ready */
    struct run **running; /* (MAX_RUNS + MAX_STUDIES) in the order of their admission */
    int n_running, turn;
    struct run *waiting, **waiting_end;
    pthread_t thread;

    pthread_mutex_t mutex;  /* guards what follows */
    pthread_cond_t wake;    /* inbox, stop */
    pthread_cond_t changed; /* state */
    enum engine_state state;
    struct err failure;
    bool stop, started;
    struct run *inbox, **inbox_end;
    int n_waiting, n_jobs;
    size_t waiting_bytes; /* host memory of the jobs that wait */
    struct ticket *tickets;
    uint64_t last_handle;
    uint64_t refused;
    struct engine_stats stats;
};

/* ---- opening
 * ------------------------------------------------------------------------------------------- */

static void *zeroed(size_t n, size_t size)
{
    void *p = calloc(n, size);
    CHECK(p && "out of memory");
    return p;
}

static bool is_gguf_name(const char *name)
{
    size_t n = strlen(name);
    return n > 5 && strcmp(name + n - 5, ".gguf") == 0;
}

/* The file itself, or the one .gguf in a folder. */
static int find_model(struct engine *e, struct err *err)
{
    struct stat st;
    const char *path = e->opts.model_path;
    if (!path || !*path)
        return err_set(err, ERR_FILE, "no model given");
    if (stat(path, &st) != 0)
        return err_set(err, ERR_FILE, "%s: no such file", path);
    snprintf(e->path, sizeof e->path, "%s", path);
    if (!S_ISDIR(st.st_mode))
        return 0;
    int found = 0;
    DIR *dir = opendir(path);
    for (struct dirent *d; dir && (d = readdir(dir));)
        if (is_gguf_name(d->d_name) && found++ == 0)
            snprintf(e->path, sizeof e->path, "%s/%s", path, d->d_name);
    if (dir)
        closedir(dir);
    return found == 1 ? 0
                      : err_set(err, ERR_FILE, "%s: holds %d .gguf files, not one", path, found);
}

static void set_state(struct engine *e, enum engine_state state, const struct err *why)
{
    pthread_mutex_lock(&e->mutex);
    if (why)
        e->failure = *why;
    if (e->state != ENGINE_FAILED && !(e->state == ENGINE_DRAINING && state == ENGINE_READY))
        e->state = state;
    pthread_cond_broadcast(&e->changed);
    pthread_mutex_unlock(&e->mutex);
}

/* ---- running
 * ------------------------------------------------------------------------------------------- */

/* End a run: its sink is closed, its job is freed, and with a client's job goes its ticket. */
static void end_run(struct engine *e, struct run *r)
{
    struct run *parent = r->parent;
    struct ticket *t = r->ticket;
    bool cancelled = atomic_load(&t->cancelled) || r->failed_sink;
    run_close(r);
    if (parent) {
        parent->outstanding--;
        return;
    }
    if (cancelled)
        e->m.stats.jobs_cancelled++;
    else
        e->m.stats.jobs_done++;
    pthread_mutex_lock(&e->mutex);
    struct ticket **at = &e->tickets;
    while (*at != t)
        at = &(*at)->next;
    *at = t->next;
    e->n_jobs--;
    pthread_mutex_unlock(&e->mutex);
    free(t);
}

/* Is nobody interested any more? A study that has ended is not in its runs. */
static bool is_cancelled(const struct run *r)
{
    const struct run *study = r->parent;
    return r->failed_sink || atomic_load(&r->ticket->cancelled) ||
           (study && (study->failed_sink || study->phase == RUN_ENDED));
}

/* Take a run out of the waiting queue, where *at points to it. */
static struct run *leave_queue(struct engine *e, struct run **at)
{
    struct run *r = *at;
    *at = r->next;
    if (!*at)
        e->waiting_end = at;
    if (r->parent)
        r->parent->in_line = false;
    r->next = NULL;
    return r;
}

/* Of a study's runs one at a time stands in line, so that however many it has, whoever comes has at
 * most one of them before him. */
static void queue_spawned(struct engine *e, struct run *study)
{
    struct run *r = study->spawned;
    if (!r || study->in_line)
        return;
    study->spawned = r->next;
    if (!study->spawned)
        study->spawned_end = &study->spawned;
    r->next = NULL;
    *e->waiting_end = r;
    e->waiting_end = &r->next;
    study->in_line = true;
}

static void end_spawned(struct engine *e, struct run *study)
{
    while (study->spawned) {
        struct run *r = study->spawned;
        study->spawned = r->next;
        end_run(e, r);
    }
    study->spawned_end = &study->spawned;
}

static void drop_cancelled(struct engine *e)
{
    for (struct run **at = &e->waiting; *at;) {
        if (is_cancelled(*at))
            end_run(e, leave_queue(e, at));
        else
            at = &(*at)->next;
    }
    for (int i = 0; i < e->n_running; i++)
        if (e->running[i]->phase == RUN_ENDED || is_cancelled(e->running[i]))
            end_spawned(e, e->running[i]);
}

/* Does it wait for a study to end? A study waits for runs of its own, which may be behind this one
 * in line. */
static bool waits_for_study(const struct run *r)
{
    return r->ops ? !run_fits(r) : run_waits_for_study(r);
}

/* Who is next: the first in line, but for those that are passed by. */
static struct run **first_in_line(struct engine *e)
{
    struct run **at = &e->waiting;
    while (*at && waits_for_study(*at))
        at = &(*at)->next;
    return at;
}

/* First come, first served: a large job at the head of the line is not overtaken. Returns -1 when
 * the device failed. */
static int admit(struct engine *e, struct err *err)
{
    for (int i = 0; i < e->n_running; i++)
        queue_spawned(e, e->running[i]);
    for (struct run **at; *(at = first_in_line(e)) && run_fits(*at);) {
        struct run *r = leave_queue(e, at);
        e->running[e->n_running++] = r;
        if (run_admit(r, err) != 0) {
            if (err->code == ERR_INTERNAL)
                return -1;
            run_fail(r, err);
        }
        queue_spawned(e, r->parent ? r->parent : r);
    }
    return 0;
}

/* Count who shares the step: the clients' jobs, and in each the runs it has. */
static int count_sharers(struct engine *e)
{
    int n_jobs = 0;
    for (int i = 0; i < e->n_running; i++)
        e->running[i]->sharing = 0;
    for (int i = 0; i < e->n_running; i++) {
        struct run *r = e->running[i];
        if (!r->ops)
            n_jobs += (r->parent ? r->parent : r)->sharing++ == 0;
    }
    return n_jobs;
}

/* Share the row budget: each job its part, in turn; then what is left, to whoever has more. */
static void collect(struct engine *e)
{
    struct machine *m = &e->m;
    int left = m->batch.max_rows, n_jobs = count_sharers(e);
    int part = left / (n_jobs ? n_jobs : 1);
    m->step++;
    m->n_collected = 0;
    batch_reset(&m->batch);
    for (int pass = 0; pass < 2; pass++) {
        for (int i = 0; i < e->n_running && left > 0; i++) {
            struct run *r = e->running[(e->turn + i) % e->n_running];
            if (r->ops)
                continue;
            int share = pass == 0 ? part / (r->parent ? r->parent : r)->sharing : left;
            share = share > 0 ? share : 1;
            left -= run_collect(r, share < left ? share : left);
        }
    }
    e->turn = (e->turn + 1) % e->n_running;
}

/* Each run as far as it gets without others. */
static int advance_each(struct engine *e, struct err *err)
{
    for (int i = 0; i < e->n_running; i++) {
        struct run *r = e->running[i];
        study_rouse(r);
        if (r->outstanding > 0 || r->phase == RUN_ENDED || is_cancelled(r))
            continue;
        if (run_advance(r, err) != 0) {
            if (err->code == ERR_INTERNAL)
                return -1;
            run_fail(r, err);
        }
    }
    return 0;
}

/* In rounds: a population that has been weighed goes on, and may ask for it again. */
static int advance(struct engine *e, struct err *err)
{
    int weighed;
    do {
        if (advance_each(e, err) != 0)
            return -1;
        weighed = run_weigh(&e->m, e->running, e->n_running, err);
    } while (weighed > 0);
    return weighed;
}

/* From the youngest: the runs of a study are younger than itself, and end before it does. One that
 * still has some in line ends when they are gone. */
static void end_ended(struct engine *e)
{
    for (int i = e->n_running - 1; i >= 0; i--) {
        struct run *r = e->running[i];
        if ((r->phase != RUN_ENDED && !is_cancelled(r)) || study_has_runs(r))
            continue;
        memmove(e->running + i, e->running + i + 1,
                (size_t)(--e->n_running - i) * sizeof *e->running);
        end_run(e, r);
    }
}

static double forward_seconds(const struct backend *b)
{
    double s = 0;
    for (int op = 0; op < OP_COUNT; op++)
        if (op != OP_KV_COPY && op != OP_PROPOSE && op != OP_TOP && op != OP_RESAMPLE)
            s += b->seconds[op];
    return s;
}

static void publish(struct engine *e)
{
    struct machine *m = &e->m;
    struct engine_stats *s = &m->stats;
    memcpy(s->op_seconds, m->backend->seconds, sizeof s->op_seconds);
    memcpy(s->op_calls, m->backend->calls, sizeof s->op_calls);
    s->jobs_running = 0;
    for (int i = 0; i < e->n_running; i++)
        s->jobs_running += !e->running[i]->parent;
    s->particles = m->particles;
    s->twists_loaded = machine_heads(m);
    s->twist_bytes_used = m->head_bytes + m->learning_bytes;
    s->kv_pages_total = kv_pages_total(m->pool);
    s->kv_pages_used = kv_pages_total(m->pool) - kv_pages_free(m->pool);
    s->kv_pages_shared = kv_pages_shared(m->pool);
    if (s->kv_pages_used > s->kv_pages_peak)
        s->kv_pages_peak = s->kv_pages_used;
    pthread_mutex_lock(&e->mutex);
    e->stats = *s;
    pthread_mutex_unlock(&e->mutex);
}

#ifndef NDEBUG
/* Every page table that exists agrees with the pool's counts. */
static void check_kv(const struct engine *e)
{
    int n = 0, cap = 0;
    for (int i = 0; i < e->n_running; i++)
        cap += e->running[i]->k + e->running[i]->n_branches + e->running[i]->job->n_potentials + 2;
    const struct kv_seq **all = zeroed((size_t)cap, sizeof *all);
    for (int i = 0; i < e->n_running; i++) {
        const struct run *r = e->running[i];
        if (r->ops)
            continue;
        all[n++] = &r->root_kv;
        if (r->condition.kv)
            all[n++] = r->condition.kv;
        for (int k = 0; k < r->k; k++)
            all[n++] = &r->kv[k];
        for (int k = 0; k < r->n_branches; k++)
            all[n++] = &r->phi.branch[k].kv;
        for (int k = 0; k < r->job->n_potentials; k++)
            all[n++] = &r->phi.donor[k].kv;
    }
    kv_check(e->m.pool, all, n);
    free(all);
}
#endif

/* One step of all runs. -1: the device failed. */
static int step(struct engine *e, struct err *err)
{
    struct machine *m = &e->m;
    double begun = seconds_now(), forward = forward_seconds(m->backend);
    collect(e);
    if (step_run(m, err) != 0)
        return -1;
    forward = forward_seconds(m->backend) - forward; /* what a resampling draws anew is SMC's */
    if (advance(e, err) != 0)
        return -1;
#ifndef NDEBUG
    check_kv(e);
#endif
    end_ended(e);
    m->stats.forward_seconds += forward;
    m->stats.smc_seconds += seconds_now() - begun - forward;
    return 0;
}

/* Is there nothing to do until somebody comes? What runs is asleep, and what waits, waits for it.
 */
static bool idle(const struct engine *e)
{
    for (int i = 0; i < e->n_running; i++)
        if (is_cancelled(e->running[i]) || !study_is_asleep(e->running[i]))
            return false;
    for (const struct run *r = e->waiting; r; r = r->next)
        if (is_cancelled(r) || !waits_for_study(r))
            return false;
    return true;
}

/* New jobs from the inbox; sleep when there is nothing to do. False: stop. */
static bool take_jobs(struct engine *e)
{
    double begun = seconds_now();
    pthread_mutex_lock(&e->mutex);
    while (!e->stop && !e->inbox && idle(e))
        pthread_cond_wait(&e->wake, &e->mutex);
    struct run *fresh = e->inbox;
    e->inbox = NULL;
    e->inbox_end = &e->inbox;
    bool stop = e->stop;
    pthread_mutex_unlock(&e->mutex);
    e->m.stats.idle_seconds += seconds_now() - begun;
    *e->waiting_end = fresh;
    for (; *e->waiting_end; e->waiting_end = &(*e->waiting_end)->next)
        run_say_start(*e->waiting_end);
    return !stop;
}

static void count_waiting(struct engine *e)
{
    int n = 0;
    size_t bytes = 0;
    for (const struct run *r = e->waiting; r; r = r->next) {
        n += !r->parent;
        bytes += r->parent ? 0 : r->job->arena.bytes;
    }
    pthread_mutex_lock(&e->mutex);
    for (const struct run *r = e->inbox; r; r = r->next, n++)
        bytes += r->job->arena.bytes;
    e->n_waiting = n;
    e->waiting_bytes = bytes;
    pthread_mutex_unlock(&e->mutex);
}

/* The end of all jobs, with an error event if there is a reason to give. */
static void end_all(struct engine *e, const struct err *why)
{
    pthread_mutex_lock(&e->mutex);
    *e->waiting_end = e->inbox;
    e->inbox = NULL;
    e->inbox_end = &e->inbox;
    pthread_mutex_unlock(&e->mutex);
    for (struct run *r = e->waiting; r && why; r = r->next)
        if (!r->parent)
            run_fail(r, why);
    for (int i = 0; i < e->n_running && why; i++)
        if (!e->running[i]->parent)
            run_fail(e->running[i], why);
    while (e->waiting)
        end_run(e, leave_queue(e, &e->waiting));
    while (e->n_running) { /* the runs of a study first, as they came after it */
        struct run *r = e->running[--e->n_running];
        end_spawned(e, r);
        end_run(e, r);
    }
}

static void *engine_main(void *arg)
{
    struct engine *e = arg;
    struct err err;
    if (machine_open(&e->m, &e->opts, &err) != 0) {
        set_state(e, ENGINE_FAILED, &err);
        end_all(e, &err);
        return NULL;
    }
    set_state(e, ENGINE_READY, NULL);
    while (take_jobs(e)) {
        drop_cancelled(e);
        if (admit(e, &err) != 0 || (e->n_running > 0 && step(e, &err) != 0)) {
            machine_log(&e->opts, "device failure: %s", err.msg);
            set_state(e, ENGINE_FAILED, &err);
            end_all(e, &err);
            return NULL;
        }
        count_waiting(e);
        publish(e);
    }
    end_all(e, NULL);
    return NULL;
}

/* ---- what others may ask
 * ----------------------------------------------------------------------------------- */

/* The model's name: the alias, or what people call the file: no folder, no .gguf. */
static void name_model(const struct engine *e, char *out, size_t size)
{
    const char *slash = strrchr(e->path, '/'), *stem = slash ? slash + 1 : e->path;
    size_t len = strlen(stem) - (is_gguf_name(stem) ? strlen(".gguf") : 0);
    if (*e->alias) {
        stem = e->alias;
        len = strlen(stem);
    }
    len = len < size ? len : size - 1;
    memcpy(out, stem, len);
    out[len] = '\0';
}

static int name_twist_dir(struct engine *e, struct err *err)
{
    struct engine_info *info = &e->m.info;
    const char *dir = e->opts.twist_dir ? e->opts.twist_dir : "";
    if (strlen(dir) >= sizeof info->twist_dir)
        return err_set(err, ERR_FILE, "%s: too long a path", dir);
    snprintf(info->twist_dir, sizeof info->twist_dir, "%s", dir);
    info->twist_bytes = e->opts.twist_bytes;
    return 0;
}

static int open_file(struct engine *e, struct err *err)
{
    struct engine_info *info = &e->m.info;
    if (find_model(e, err) != 0 || gguf_open(&e->m.gguf, e->path, err) != 0 ||
        model_config_read(&info->config, e->m.gguf, e->path, err) != 0)
        return -1;
    snprintf(info->path, sizeof info->path, "%s", e->path);
    if (name_twist_dir(e, err) != 0)
        return -1;
    name_model(e, info->model, sizeof info->model);
    return 0;
}

int engine_open(struct engine **out, const struct engine_opts *opts, struct err *err)
{
    struct engine *e = zeroed(1, sizeof *e);
    e->opts = *opts;
    e->m.engine = e;
    snprintf(e->alias, sizeof e->alias, "%s", opts->alias ? opts->alias : "");
    e->running = zeroed(MAX_RUNS + MAX_STUDIES, sizeof *e->running);
    e->inbox_end = &e->inbox;
    e->waiting_end = &e->waiting;
    pthread_mutex_init(&e->mutex, NULL);
    pthread_cond_init(&e->wake, NULL);
    pthread_cond_init(&e->changed, NULL);
    if (open_file(e, err) != 0) {
        engine_close(e);
        return -1;
    }
    if (pthread_create(&e->thread, NULL, engine_main, e) != 0) {
        engine_close(e);
        return err_set(err, ERR_INTERNAL, "cannot start the engine's thread");
    }
    e->started = true;
    *out = e;
    return 0;
}

void engine_close(struct engine *e)
{
    if (!e)
        return;
    if (e->started) {
        pthread_mutex_lock(&e->mutex);
        e->stop = true;
        for (struct ticket *t = e->tickets; t; t = t->next)
            atomic_store(&t->cancelled, true);
        pthread_cond_signal(&e->wake);
        pthread_mutex_unlock(&e->mutex);
        pthread_join(e->thread, NULL);
    }
    machine_close(&e->m);
    pthread_cond_destroy(&e->changed);
    pthread_cond_destroy(&e->wake);
    pthread_mutex_destroy(&e->mutex);
    free(e->running);
    free(e);
}

static enum engine_state locked_state(const struct engine *e)
{
    pthread_mutex_t *mutex = (pthread_mutex_t *)&e->mutex;
    pthread_mutex_lock(mutex);
    enum engine_state s = e->state;
    pthread_mutex_unlock(mutex);
    return s;
}

enum engine_state engine_state(const struct engine *e)
{
    return locked_state(e);
}

int engine_wait_ready(struct engine *e, struct err *err)
{
    pthread_mutex_lock(&e->mutex);
    while (e->state == ENGINE_LOADING)
        pthread_cond_wait(&e->changed, &e->mutex);
    int rc = e->state == ENGINE_FAILED ? -1 : 0;
    if (rc != 0)
        *err = e->failure;
    pthread_mutex_unlock(&e->mutex);
    return rc;
}

const struct engine_info *engine_info(const struct engine *e)
{
    enum engine_state s = locked_state(e);
    return s == ENGINE_READY || s == ENGINE_DRAINING ? &e->m.info : NULL;
}

static int refuse(struct engine *e, struct err *err)
{
    if (e->state == ENGINE_LOADING)
        return err_set(err, ERR_UNAVAILABLE, "the model is loading");
    if (e->state == ENGINE_DRAINING)
        return err_set(err, ERR_UNAVAILABLE, "the server is shutting down");
    if (e->state == ENGINE_FAILED)
        return err_set(err, ERR_UNAVAILABLE, "the device has failed");
    if (e->n_waiting >= e->opts.max_queue)
        return err_set(err, ERR_BUSY, "%d requests are waiting already", e->n_waiting);
    if (e->waiting_bytes > JOB_BYTES)
        return err_set(err, ERR_BUSY, "the waiting requests fill %d MiB already", JOB_MB);
    return 0;
}

/* Whether a job could be taken now; counted if not. */
static int check_open(struct engine *e, struct err *err)
{
    pthread_mutex_lock(&e->mutex);
    int rc = refuse(e, err);
    e->refused += rc != 0;
    pthread_mutex_unlock(&e->mutex);
    return rc;
}

/* From the moment the mutex is let go the run, its ticket and its job are the engine's, and may be
 * gone. */
static int enqueue(struct engine *e, struct run *r, struct ticket *t, uint64_t *handle,
                   struct err *err)
{
    pthread_mutex_lock(&e->mutex);
    int rc = refuse(e, err);
    if (rc == 0) {
        r->ticket = t;
        *handle = ++e->last_handle;
        *t = (struct ticket){.handle = *handle, .next = e->tickets};
        e->tickets = t;
        *e->inbox_end = r;
        e->inbox_end = &r->next;
        e->n_waiting++;
        e->waiting_bytes += r->job->arena.bytes;
        e->n_jobs++;
        pthread_cond_signal(&e->wake);
    }
    e->refused += rc != 0;
    pthread_mutex_unlock(&e->mutex);
    return rc;
}

int engine_submit(struct engine *e, struct job *job, struct sink sink, uint64_t *handle,
                  struct err *err)
{
    struct run *r;
    if (check_open(e, err) != 0 || run_open(&r, &e->m, job, sink, NULL, err) != 0)
        return -1;
    struct ticket *t = zeroed(1, sizeof *t);
    if (enqueue(e, r, t, handle, err) == 0)
        return 0;
    free(t);
    return -1;
}

void engine_cancel(struct engine *e, uint64_t handle)
{
    pthread_mutex_lock(&e->mutex);
    for (struct ticket *t = e->tickets; t; t = t->next)
        if (t->handle == handle)
            atomic_store(&t->cancelled, true);
    pthread_cond_signal(&e->wake);
    pthread_mutex_unlock(&e->mutex);
}

void engine_wake(struct engine *e)
{
    pthread_mutex_lock(&e->mutex);
    pthread_cond_signal(&e->wake);
    pthread_mutex_unlock(&e->mutex);
}

void engine_drain(struct engine *e)
{
    set_state(e, ENGINE_DRAINING, NULL);
}

int engine_jobs(const struct engine *e)
{
    pthread_mutex_t *mutex = (pthread_mutex_t *)&e->mutex;
    pthread_mutex_lock(mutex);
    int n = e->n_jobs;
    pthread_mutex_unlock(mutex);
    return n;
}

void engine_stats(const struct engine *e, struct engine_stats *out)
{
    pthread_mutex_t *mutex = (pthread_mutex_t *)&e->mutex;
    pthread_mutex_lock(mutex);
    *out = e->stats;
    out->jobs_refused = e->refused;
    out->jobs_waiting = e->n_waiting;
    pthread_mutex_unlock(mutex);
}
