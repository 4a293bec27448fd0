#include "stream.h"

#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include "../proto/event_json.h"
#include "event_queue.h"

enum {
    PING_SECONDS = 15,
    TEXT_BLOCK = 4096,
};

const char *const stream_end_names[STREAM_ENDS] = {"running", "done",     "error", "left",
                                                   "slow",    "shutdown", "late",  "full"};

struct stream {
    struct stream_opts opts;
    atomic_int owners;

    pthread_mutex_t lock; /* of the following */
    struct event_queue inbox;
    enum stream_end end; /* as soon as it is known */
    bool closed;         /* the engine is through with it */
    bool attached;       /* the connection is still ours */
    bool suspended;
    double quiet_since; /* while suspended */
    double read_by;     /* once closed: the last moment for its reader */
    size_t held;        /* bytes of both queues, as counted in the budget */
    bool ping_wanted;
    bool probed; /* its client shut its side, and was sent something to see whether it is there */

    /* the HTTP thread's own */
    struct event_queue taken;
    struct buf text;        /* of the event that is being sent */
    size_t sent, text_held; /* text_held: as counted in the budget */
    bool turned;            /* STREAM_WHOLE: one turn was let pass */
    enum stream_end said;   /* STREAM_DONE, STREAM_ERROR: the event that ends an answer was taken */
    struct engine *engine;
    uint64_t handle;
};

double stream_clock(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ------------------------------------------------------- under the lock, any thread */

static void suspend(struct stream *s)
{
    s->suspended = true;
    s->quiet_since = stream_clock();
    MHD_suspend_connection(s->opts.connection);
}

/* Have the HTTP thread look at the stream, if it is not about to anyway. */
static void wake(struct stream *s)
{
    if (!s->suspended)
        return;
    s->suspended = false;
    MHD_resume_connection(s->opts.connection);
}

static void end_early(struct stream *s, enum stream_end end)
{
    if (s->end != STREAM_RUNNING)
        return;
    s->end = end;
    wake(s);
}

/* The client reads too slowly: its socket is full, so the HTTP thread waits for that and not for
 * us. Without the socket it will find out. */
static void cut_off(struct stream *s)
{
    end_early(s, STREAM_SLOW);
    if (s->attached)
        shutdown(s->opts.fd, SHUT_RDWR);
}

/* More progress than may wait. An answer that is not streamed has not begun: it can be an error. */
static void overflow(struct stream *s)
{
    if (s->opts.form == STREAM_WHOLE)
        end_early(s, STREAM_SLOW);
    else
        cut_off(s);
}

/* ------------------------------------------------------- the engine's side */

/* Only progress piles up without bound. The answer itself is bounded by the request's limits, comes
 * in one burst, and is never the reason to cut a client off; but the choices of many prompts that
 * are kept for one answer pile up, too. */
static bool piles_up(const struct stream *s, const struct event *e)
{
    return (e->type == EVENT_CHOICE && s->opts.form == STREAM_WHOLE) || e->type == EVENT_STEP ||
           e->type == EVENT_RESAMPLE || e->type == EVENT_BOUND || e->type == EVENT_UPDATE ||
           e->type == EVENT_TOKENS;
}

/* What grows is the inbox alone: the two queues take turns. */
static void keep(struct stream *s, const struct event *e)
{
    size_t before = s->inbox.cap;
    event_queue_add(&s->inbox, e);
    s->held = budget_count(s->opts.budget, s->held, s->held + s->inbox.cap - before);
}

static int take_event(void *user, const struct event *e)
{
    struct stream *s = user;
    pthread_mutex_lock(&s->lock);
    if (piles_up(s, e) && s->inbox.len > s->opts.limit)
        overflow(s);
    else if (!budget_allows(s->opts.budget, s->held, 0))
        end_early(s, STREAM_FULL);
    bool stop = s->end != STREAM_RUNNING;
    if (!stop) {
        keep(s, e);
        if (s->opts.form != STREAM_WHOLE)
            wake(s);
    }
    pthread_mutex_unlock(&s->lock);
    return stop;
}

static void release(struct stream *s)
{
    if (atomic_fetch_sub(&s->owners, 1) > 1)
        return;
    pthread_mutex_destroy(&s->lock);
    budget_count(s->opts.budget, s->held + s->text_held, 0);
    event_queue_free(&s->inbox);
    event_queue_free(&s->taken);
    buf_free(&s->text);
    completion_close(s->opts.completion);
    free(s);
}

static void take_closed(void *user)
{
    struct stream *s = user;
    pthread_mutex_lock(&s->lock);
    s->closed = true;
    size_t left = s->inbox.len + s->taken.len;
    s->read_by = stream_clock() + s->opts.patience + (double)left / ANSWER_RATE;
    wake(s);
    pthread_mutex_unlock(&s->lock);
    release(s);
}

struct sink stream_sink(struct stream *s)
{
    return (struct sink){.event = take_event, .closed = take_closed, .user = s};
}

/* ------------------------------------------------------- the watching thread */

/* The client has shut its side of the connection. It may have left, or it may have said all it had
 * to say and be listening still. Send it something: if it has left, its system answers that with a
 * reset, which the next look will see. Before the answer's first byte, the one thing that every
 * HTTP/1.1 client puts up with is an interim answer. */
static void probe(struct stream *s)
{
    static const char interim[] = "HTTP/1.1 100 Continue\r\n\r\n";
    s->probed = true;
    if (s->opts.form != STREAM_WHOLE) {
        s->ping_wanted = true;
        wake(s);
        return;
    }
    size_t n = sizeof interim - 1;
    if (!s->opts.interim || send(s->opts.fd, interim, n, MSG_NOSIGNAL | MSG_DONTWAIT) != (ssize_t)n)
        end_early(s, STREAM_LEFT);
}

static void watch_suspended(struct stream *s, double now)
{
    struct pollfd p = {.fd = s->opts.fd, .events = POLLRDHUP};
    poll(&p, 1, 0);
    if (p.revents & (POLLERR | POLLHUP)) {
        end_early(s, STREAM_LEFT);
    } else if ((p.revents & POLLRDHUP) && !s->probed) {
        probe(s);
    } else if (s->opts.form != STREAM_WHOLE && now - s->quiet_since >= PING_SECONDS) {
        s->ping_wanted = true;
        wake(s);
    }
}

void stream_watch(struct stream *s, double now)
{
    pthread_mutex_lock(&s->lock);
    if (s->closed && now > s->read_by)
        cut_off(s);
    else if (s->opts.deadline > 0 && now > s->opts.deadline && !s->closed)
        end_early(s, STREAM_LATE);
    if (s->suspended)
        watch_suspended(s, now);
    pthread_mutex_unlock(&s->lock);
}

void stream_cancel(struct stream *s)
{
    pthread_mutex_lock(&s->lock);
    end_early(s, STREAM_CANCEL);
    pthread_mutex_unlock(&s->lock);
}

/* ------------------------------------------------------- the HTTP thread */

struct stream *stream_open(const struct stream_opts *opts)
{
    struct stream *s = calloc(1, sizeof *s);
    CHECK(s && "out of memory");
    s->opts = *opts;
    s->owners = 2;
    s->attached = true;
    pthread_mutex_init(&s->lock, NULL);
    return s;
}

void stream_submitted(struct stream *s, struct engine *engine, uint64_t handle)
{
    s->engine = engine;
    s->handle = handle;
}

/* Called with the lock held and the taken events used up. */
static void swap_queues(struct stream *s)
{
    struct event_queue empty = s->taken;
    event_queue_clear(&empty);
    s->taken = s->inbox;
    s->inbox = empty;
}

/* Did the server end it, though its client is there? Then err says why. */
static bool is_broken_off(const struct stream *s, enum stream_end end, struct err *err)
{
    if (end == STREAM_CANCEL)
        err_set(err, ERR_UNAVAILABLE, "the server is shutting down");
    else if (end == STREAM_FULL)
        err_set(err, ERR_BUSY, "the memory for answers is full");
    else if (end == STREAM_LATE)
        err_set(err, ERR_INVALID,
                "the request took longer than the limit of %d s; ask for fewer particles or tokens",
                s->opts.longest);
    else
        return false;
    return true;
}

static void note_last(struct stream *s, const struct event *e)
{
    if (e->type == EVENT_DONE)
        s->said = STREAM_DONE;
    else if (e->type == EVENT_ERROR)
        s->said = STREAM_ERROR;
}

static void say_event(struct stream *s, const struct event *e)
{
    bool sse = s->opts.form == STREAM_SSE;
    if (sse)
        buf_puts(&s->text, "data: ");
    event_json(&s->text, e);
    buf_puts(&s->text, sse ? "\n\n" : "\n");
    note_last(s, e);
    if (s->said && sse)
        buf_puts(&s->text, "data: [DONE]\n\n");
}

static void say(struct stream *s, const struct event *e)
{
    s->opts.saw(s->opts.user, e);
    if (s->opts.completion) {
        completion_say(s->opts.completion, &s->text, e);
        note_last(s, e);
    } else {
        say_event(s, e);
    }
    s->text_held = budget_count(s->opts.budget, s->text_held, s->text.cap);
}

static void say_ping(struct stream *s)
{
    buf_puts(&s->text, s->opts.form == STREAM_SSE ? ": ping\n\n" : "{\"event\":\"ping\"}\n");
}

/* Nothing is taken, nothing is being sent. Returns 1 if there is something now, else what the
 * reader is to return. Called with the lock held. */
static ssize_t refill(struct stream *s)
{
    if (s->end == STREAM_LEFT || s->end == STREAM_SLOW)
        return MHD_CONTENT_READER_END_WITH_ERROR;
    if (!event_queue_is_empty(&s->inbox)) {
        swap_queues(s);
        return 1;
    }
    struct event broken = {.type = EVENT_ERROR};
    if (is_broken_off(s, s->end, &broken.error)) {
        say(s, &broken);
        return 1;
    }
    if (s->closed) /* without a last word */
        return MHD_CONTENT_READER_END_WITH_ERROR;
    if (s->ping_wanted) {
        s->ping_wanted = false;
        say_ping(s);
        return 1;
    }
    suspend(s);
    return 0;
}

/* Put the next event's text into the empty s->text, if it has one: 1, or what the reader is to
 * return. */
static ssize_t next_text(struct stream *s)
{
    struct event e;
    if (s->said)
        return MHD_CONTENT_READER_END_OF_STREAM;
    if (event_queue_is_empty(&s->taken)) {
        pthread_mutex_lock(&s->lock);
        ssize_t status = refill(s);
        pthread_mutex_unlock(&s->lock);
        if (status != 1)
            return status;
    }
    if (s->text.len == 0 && event_queue_next(&s->taken, &e))
        say(s, &e);
    return 1;
}

/* Each call's return is one chunk, so it never crosses into the next event. */
static ssize_t read_text(void *cls, uint64_t pos, char *out, size_t max)
{
    struct stream *s = cls;
    (void)pos;
    while (s->sent == s->text.len) {
        buf_reset(&s->text);
        s->sent = 0;
        ssize_t status = next_text(s);
        if (status != 1)
            return status;
    }
    size_t n = s->text.len - s->sent;
    n = n < max ? n : max;
    memcpy(out, s->text.data + s->sent, n);
    s->sent += n;
    return (ssize_t)n;
}

struct MHD_Response *stream_response(struct stream *s)
{
    return MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, TEXT_BLOCK, read_text, s, NULL);
}

/* All events of an answer that is not streamed. */
static int put_together(struct stream *s, struct buf *json, struct err *err)
{
    struct completion *c = s->opts.completion;
    struct answer *a = c ? NULL : answer_open(s->opts.kind);
    struct event e;
    while (event_queue_next(&s->taken, &e)) {
        s->opts.saw(s->opts.user, &e);
        note_last(s, &e);
        if (e.type == EVENT_ERROR)
            *err = e.error;
        else if (c)
            completion_add(c, &e);
        else
            answer_add(a, &e);
    }
    if (s->said == STREAM_DONE && c)
        completion_json(c, json);
    else if (s->said == STREAM_DONE)
        answer_json(a, json);
    answer_close(a);
    if (s->said == STREAM_RUNNING)
        err_set(err, ERR_INTERNAL, "the engine ended the request");
    return s->said == STREAM_DONE ? 1 : -1;
}

/* The first turn goes by unused: libmicrohttpd, suspended in the very turn in which it has read the
 * request, reads on when it is resumed, and takes a client that shut its side for gone. */
int stream_whole(struct stream *s, struct buf *json, struct err *err)
{
    if (!s->turned) {
        s->turned = true;
        return 0;
    }
    pthread_mutex_lock(&s->lock);
    enum stream_end end = s->end;
    bool ready = s->closed || end != STREAM_RUNNING;
    if (ready)
        swap_queues(s);
    else
        suspend(s);
    pthread_mutex_unlock(&s->lock);
    if (!ready)
        return 0;
    if (end == STREAM_LEFT)
        return -2;
    if (end == STREAM_SLOW)
        return err_field(err, s->opts.completion ? "stream" : "events",
                         "the answer grew past %zu MiB; ask for less, or stream it",
                         s->opts.limit >> 20);
    if (is_broken_off(s, end, err))
        return -1;
    return put_together(s, json, err);
}

enum stream_end stream_leave(struct stream *s)
{
    pthread_mutex_lock(&s->lock);
    s->attached = false;
    bool over = s->closed || (s->end == STREAM_RUNNING && s->said); /* only about to close */
    if (s->end == STREAM_RUNNING)
        s->end = s->said ? s->said : STREAM_LEFT;
    enum stream_end end = s->end;
    pthread_mutex_unlock(&s->lock);
    if (!over && s->engine)
        engine_cancel(s->engine, s->handle);
    release(s);
    return end;
}
