#include "local.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "../proto/event_json.h"
#include "commands.h"
#include "event_queue.h"

enum { POLL_MS = 100, LOADING_MS = 10 };

struct local {
    struct engine *engine;
    pthread_mutex_t lock; /* of the following */
    pthread_cond_t changed;
    struct event_queue inbox;
    bool closed; /* there is no job, or none any more */
};

static volatile sig_atomic_t interrupted;

static void on_interrupt(int signal)
{
    (void)signal;
    interrupted = 1;
}

bool local_interrupted(void)
{
    return interrupted;
}

/* ------------------------------------------------------- events, from the engine's thread */

static int take_event(void *user, const struct event *e)
{
    struct local *l = user;
    pthread_mutex_lock(&l->lock);
    event_queue_add(&l->inbox, e);
    pthread_cond_signal(&l->changed);
    pthread_mutex_unlock(&l->lock);
    return 0;
}

static void take_closed(void *user)
{
    struct local *l = user;
    pthread_mutex_lock(&l->lock);
    l->closed = true;
    pthread_cond_signal(&l->changed);
    pthread_mutex_unlock(&l->lock);
}

/* Wait a moment for events; they are swapped into the used-up `taken`. False: there will be none
 * any more. */
static bool fetch(struct local *l, struct event_queue *taken)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += POLL_MS * 1000000L;
    if (until.tv_nsec >= 1000000000L) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000L;
    }
    struct event_queue empty = *taken;
    event_queue_clear(&empty);
    pthread_mutex_lock(&l->lock);
    if (event_queue_is_empty(&l->inbox) && !l->closed)
        pthread_cond_timedwait(&l->changed, &l->lock, &until);
    *taken = l->inbox;
    l->inbox = empty;
    bool more = !l->closed || !event_queue_is_empty(taken);
    pthread_mutex_unlock(&l->lock);
    return more;
}

/* ------------------------------------------------------- up and down */

static int wait_ready(struct engine *engine, struct err *err)
{
    struct timespec pause = {.tv_nsec = LOADING_MS * 1000000L};
    while (!interrupted && engine_state(engine) == ENGINE_LOADING)
        nanosleep(&pause, NULL);
    return interrupted ? 0 : engine_wait_ready(engine, err);
}

int local_open(struct local **out, const struct config *c, bool verbose, struct err *err)
{
    struct sigaction on = {.sa_handler = on_interrupt, .sa_flags = (int)SA_RESETHAND};
    struct engine_opts opts = command_engine_opts(c);
    struct local *l = calloc(1, sizeof *l);
    CHECK(l && "out of memory");
    pthread_mutex_init(&l->lock, NULL);
    pthread_cond_init(&l->changed, NULL);
    sigaction(SIGINT, &on, NULL);
    opts.max_queue = 1;
    if (!verbose)
        opts.log = NULL;
    if (engine_open(&l->engine, &opts, err) || wait_ready(l->engine, err)) {
        local_close(l);
        return -1;
    }
    *out = l;
    return 0;
}

/* The engine goes before the inbox that it writes to. */
void local_close(struct local *l)
{
    if (!l)
        return;
    engine_close(l->engine);
    event_queue_free(&l->inbox);
    pthread_cond_destroy(&l->changed);
    pthread_mutex_destroy(&l->lock);
    free(l);
}

const struct engine_info *local_info(const struct local *l)
{
    return engine_info(l->engine);
}

/* ------------------------------------------------------- a job */

int local_run(struct local *l, struct job *job, void (*show)(void *user, const struct event *),
              void *user, struct err *err)
{
    struct event_queue taken = {0};
    struct event e;
    uint64_t handle;
    int rc = -1;
    l->closed = false;
    if (engine_submit(l->engine, job, (struct sink){take_event, take_closed, l}, &handle, err)) {
        job_free(job);
        return -1;
    }
    err_set(err, ERR_INTERNAL, "the engine ended the request");
    while (!interrupted && fetch(l, &taken))
        while (event_queue_next(&taken, &e)) {
            show(user, &e);
            if (e.type == EVENT_ERROR)
                *err = e.error;
            else if (e.type == EVENT_DONE)
                rc = 0;
        }
    event_queue_free(&taken);
    return interrupted ? 0 : rc;
}

void local_print(const struct event *e)
{
    struct buf line = {0};
    event_json(&line, e);
    puts(line.data);
    fflush(stdout);
    buf_free(&line);
}
