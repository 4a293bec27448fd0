/* What the server counts, in the Prometheus text format. HTTP thread only. */
#pragma once
#include "../core/buf.h"
#include "../core/engine.h"
#include "auth.h"
#include "stream.h"

struct metrics;

struct metrics_endpoint { /* borrowed */
    const char *method, *path;
};

/* n endpoints, and one more "other". */
struct metrics *metrics_open(const struct metrics_endpoint *, int n);
void metrics_close(struct metrics *);

/* endpoint: 0..n-1, or n for other. code: the HTTP status, 499 if the client left before one. */
void metrics_request(struct metrics *, int endpoint, int code, double seconds);
void metrics_first_event(struct metrics *, int endpoint, double seconds);
void metrics_queued(struct metrics *, double seconds);
void metrics_stream_end(struct metrics *, enum stream_end);

/* What is under way now. */
struct metrics_load {
    int connections, calls; /* open; requests in progress */
    size_t client_memory;   /* bytes */
    const struct client_usage *clients;
    int n_clients;
};

/* The whole page. */
void metrics_text(struct buf *out, const struct metrics *, const struct engine *,
                  const struct metrics_load *);
