/* One HTTP request, from its first line to the end of its answer. HTTP thread only. What returns
 * enum MHD_Result is what libmicrohttpd's handler is to return. */
#pragma once
#include <stdbool.h>

#include <microhttpd.h>

#include "../config/config.h"
#include "../core/buf.h"
#include "../core/engine.h"
#include "auth.h"
#include "budget.h"
#include "metrics.h"
#include "stream.h"

/* What requests are served from. */
struct service {
    const struct config *config;
    struct engine *engine;
    struct metrics *metrics;
    struct auth *auth;
    struct budget *budget;
};

enum { REQUEST_ID_MAX = 128 };

/* An answer that is known from the headers, and given when the body is through: a client that is
 * still sending would not read it. */
struct refusal {
    int status; /* 0: none */
    struct buf json;
    const char *allow; /* 405: the methods that the path knows */
    int retry_after;   /* seconds; 0: by the status */
};

/* What the answer's events have said. */
struct account {
    int particles;
    int64_t prompt_tokens, tokens; /* given; drawn or scored */
    double queue_seconds;
    bool is_done;
};

struct call {
    struct service *service;
    struct http *http;
    struct link *link; /* its connection */
    struct MHD_Connection *connection;
    const struct route *route;     /* NULL: no such path or method */
    char name[TWIST_NAME_MAX + 2]; /* what stands for {name} in the path; one that is too long for
                                    * a twist is cut, but stays too long */
    char method[16], path[128];    /* for the log: cut, and cleaned */
    char id[REQUEST_ID_MAX + 1];
    double started, deadline;
    bool has_nul; /* in its path, which ends there for libmicrohttpd */
    bool has_headers, http_1_1, is_answered;
    struct buf body;
    size_t held;      /* bytes of the body or the answer, as counted in the budget */
    size_t discarded; /* bytes of the body of a refused request */
    struct refusal refusal;
    int status;         /* of the answer; 0: none yet */
    struct visit visit; /* whose request it is */
    bool saw_event;
    struct account account;
    struct stream *stream; /* the job's, once submitted */
};

/* ---- the connection's side (http.c) */

struct call *call_open(struct http *, struct service *, struct link *, struct MHD_Connection *,
                       const char *uri);
enum MHD_Result call_headers(struct call *, const char *method, const char *path,
                             const char *version);
enum MHD_Result call_body(struct call *, const char *bytes, size_t n);
enum MHD_Result call_answer(struct call *); /* the body is through; again after each resume */
void call_close(struct call *);             /* logs and counts it */

/* ---- the routes' side */

const char *call_header(const struct call *, const char *name); /* NULL: absent */

/* The answer. The buffer's memory is taken; the static bytes are not. */
enum MHD_Result call_reply(struct call *, int status, const char *content_type, struct buf *take);
enum MHD_Result call_reply_static(struct call *, const char *content_type, const char *bytes,
                                  size_t n);
enum MHD_Result call_fail(struct call *, const struct err *);

/* Open c->stream for a job; drop it if the engine refuses the job; else answer with it, unless it
 * is STREAM_WHOLE. */
void call_open_stream(struct call *, enum stream_form, enum job_kind, struct completion *take);
void call_drop_stream(struct call *);
enum MHD_Result call_reply_stream(struct call *, const char *content_type);

extern const char json_type[]; /* "application/json" */
