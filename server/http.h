/* The HTTP side: one listening socket, one libmicrohttpd thread, and the connections' lives:
 * bodies and their limits, deadlines, request ids, refusals, the log of requests. What is served
 * is in routes.c. */
#pragma once
#include "../config/config.h"
#include "../core/engine.h"
#include "budget.h"

struct http;

/* Bind the port. Nothing is answered yet; clients wait. config and budget are borrowed; streams,
 * which the engine may still have when this is closed, count in the budget until engine_close. */
int http_open(struct http **out, const struct config *, struct budget *, struct err *err);
const char *http_url(const struct http *); /* "http://127.0.0.1:8080" */

/* Answer from now on, from this engine (which may still be loading). */
int http_start(struct http *, struct engine *, struct err *err);

/* Read the keys again, and say how many there are. Refused, they stay. */
int http_reload(struct http *, struct err *err);

/* About once a second, from one thread: deadlines, clients that left, pings. */
void http_watch(struct http *);

/* The way down: accept no more; see the requests in progress go; end those that do not, with an
 * error; then close, which cuts what is still open. */
void http_quiesce(struct http *);
int http_calls(struct http *);
void http_cancel(struct http *);
void http_close(struct http *); /* NULL is fine. Before engine_close */
