/* One request's events on their way from the engine thread to its HTTP connection.
 *
 * The engine's sink copies events into a bounded queue, a short lock and a memcpy; the HTTP thread
 * takes the whole queue at a time and makes the JSON outside the lock. While there is nothing to
 * say the connection is suspended. A suspended connection times out never and does not see its
 * client leave, so the main thread watches it about once a second.
 *
 * The connection may be used by the HTTP thread in its callbacks, and by any thread under the lock
 * while it is suspended: suspending and resuming happen under the lock, the one lock held across
 * calls to libmicrohttpd.
 *
 * Two own a stream: the call, until libmicrohttpd says that the request is completed, and the
 * engine, until the sink's `closed`. Whoever is last frees it. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <microhttpd.h>

#include "../core/buf.h"
#include "../core/engine.h"
#include "../proto/completion.h"
#include "budget.h"

enum { ANSWER_RATE = 64 << 10 }; /* bytes a second that an answer's reader must manage in the end */

enum stream_form {
    STREAM_LINES, /* NDJSON */
    STREAM_SSE,
    STREAM_WHOLE, /* one JSON object when everything is known */
};

/* How a stream ended. */
enum stream_end {
    STREAM_RUNNING,
    STREAM_DONE,
    STREAM_ERROR,  /* told the client so */
    STREAM_LEFT,   /* the client went away */
    STREAM_SLOW,   /* the client did not keep up */
    STREAM_CANCEL, /* the server is going down */
    STREAM_LATE,   /* the request took longer than it may */
    STREAM_FULL,   /* there was no memory for its events */
    STREAM_ENDS,
};
extern const char *const stream_end_names[]; /* "done", … for logs */

struct stream_opts {
    enum stream_form form;
    enum job_kind kind;
    struct completion *completion; /* taken: JOB_COMPLETE in OpenAI's shapes; else NULL */
    size_t limit;                  /* bytes of progress events that may wait */
    struct budget *budget;         /* what all that waits is counted in */
    double deadline;               /* stream_clock: the request ends then at the latest; 0: never */
    int longest;                   /* seconds that it may take, for the message */
    int patience; /* seconds for the reader of an answer that is complete, and some more
                   * by its size */
    struct MHD_Connection *connection;
    int fd;       /* its socket */
    bool interim; /* the client knows interim answers: HTTP/1.1 */
    /* Called on the HTTP thread with every event that reaches the client. */
    void (*saw)(void *user, const struct event *);
    void *user;
};

struct stream;

struct stream *stream_open(const struct stream_opts *);
struct sink stream_sink(struct stream *); /* the engine's part. Unused, its `closed` is called */
void stream_submitted(struct stream *, struct engine *, uint64_t handle);

/* STREAM_LINES, STREAM_SSE: the answer's body. */
struct MHD_Response *stream_response(struct stream *);

/* STREAM_WHOLE, in the connection's handler: is the answer ready? 0: not yet; the handler will be
 * called again. 1: json is the answer. -1: err is. The client is gone: -2.
 */
int stream_whole(struct stream *, struct buf *json, struct err *err);

/* About once a second, from one thread: notice that the client left, break the silence. */
void stream_watch(struct stream *, double now);

void stream_cancel(struct stream *); /* end it now, with an error; any thread */

/* The request is over, and its connection no longer ours: the call's part ends. Cancels what still
 * runs. HTTP thread. */
enum stream_end stream_leave(struct stream *);

double stream_clock(void); /* seconds, monotonic */
