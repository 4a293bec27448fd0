/* What the watching thread knows of an open connection (http.c). */
#pragma once

struct http;
struct link;
struct stream;

/* Cut the connection if it is not told otherwise before then (stream_clock; 0: never): a client
 * that is to send a request, or to read an answer. */
void link_must_send(struct http *, struct link *, double by);
void link_must_read(struct http *, struct link *, double by);

/* The stream whose client is on this connection; NULL: none any more. */
void link_set_stream(struct http *, struct link *, struct stream *);

/* Requests in progress: one more, one less. */
void http_count_call(struct http *, int more);
void http_count(struct http *, int *connections, int *calls);
