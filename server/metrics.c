#include "metrics.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SECONDS_BUCKETS = 16 };
static const double seconds_bounds[SECONDS_BUCKETS] = {
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 600};

struct histogram {
    uint64_t count[SECONDS_BUCKETS + 1]; /* the last: beyond all bounds */
    double sum;
};

static const int codes[] = {200, 204, 400, 401, 404, 405, 411, 413, 414,
                            415, 429, 431, 499, 500, 501, 503, 505, 0 /* any other */};
enum { N_CODES = sizeof codes / sizeof *codes };

struct endpoint_metrics {
    struct metrics_endpoint of;
    uint64_t requests[N_CODES];
    struct histogram duration, first_event;
};

struct metrics {
    struct endpoint_metrics *endpoint; /* (n) */
    int n;
    struct histogram queued;
    uint64_t ends[STREAM_ENDS];
};

struct metrics *metrics_open(const struct metrics_endpoint *endpoint, int n)
{
    struct metrics *m = calloc(1, sizeof *m);
    CHECK(m && "out of memory");
    m->n = n + 1;
    m->endpoint = calloc((size_t)m->n, sizeof *m->endpoint);
    CHECK(m->endpoint && "out of memory");
    for (int i = 0; i < n; i++)
        m->endpoint[i].of = endpoint[i];
    m->endpoint[n].of = (struct metrics_endpoint){"any", "other"};
    return m;
}

void metrics_close(struct metrics *m)
{
    if (!m)
        return;
    free(m->endpoint);
    free(m);
}

static void observe(struct histogram *h, double seconds)
{
    int i = 0;
    while (i < SECONDS_BUCKETS && seconds > seconds_bounds[i])
        i++;
    h->count[i]++;
    h->sum += seconds;
}

static int code_index(int code)
{
    int i = 0;
    while (codes[i] && codes[i] != code)
        i++;
    return i;
}

void metrics_request(struct metrics *m, int endpoint, int code, double seconds)
{
    m->endpoint[endpoint].requests[code_index(code)]++;
    observe(&m->endpoint[endpoint].duration, seconds);
}

void metrics_first_event(struct metrics *m, int endpoint, double seconds)
{
    observe(&m->endpoint[endpoint].first_event, seconds);
}

void metrics_queued(struct metrics *m, double seconds)
{
    observe(&m->queued, seconds);
}

void metrics_stream_end(struct metrics *m, enum stream_end end)
{
    m->ends[end]++;
}

/* ------------------------------------------------------- the page */

static void head(struct buf *out, const char *name, const char *type, const char *help)
{
    buf_printf(out, "# HELP clotho_%s %s\n# TYPE clotho_%s %s\n", name, help, name, type);
}

static void counter(struct buf *out, const char *name, uint64_t value, const char *help)
{
    head(out, name, "counter", help);
    buf_printf(out, "clotho_%s %llu\n", name, (unsigned long long)value);
}

static void counter_seconds(struct buf *out, const char *name, double value, const char *help)
{
    head(out, name, "counter", help);
    buf_printf(out, "clotho_%s %.6f\n", name, value);
}

static void gauge(struct buf *out, const char *name, double value, const char *help)
{
    head(out, name, "gauge", help);
    buf_printf(out, "clotho_%s %.15g\n", name, value);
}

static uint64_t observations(const struct histogram *h)
{
    uint64_t n = 0;
    for (int i = 0; i <= SECONDS_BUCKETS; i++)
        n += h->count[i];
    return n;
}

/* labels: `endpoint="/v1/sample",method="POST",` with its comma, or "". */
static void histogram_lines(struct buf *out, const char *name, const char *labels,
                            const struct histogram *h)
{
    uint64_t n = 0;
    for (int i = 0; i < SECONDS_BUCKETS; i++) {
        n += h->count[i];
        buf_printf(out, "clotho_%s_bucket{%sle=\"%g\"} %llu\n", name, labels, seconds_bounds[i],
                   (unsigned long long)n);
    }
    n += h->count[SECONDS_BUCKETS];
    int bare = (int)strlen(labels);
    bare -= bare > 0; /* the comma */
    const char *open = bare ? "{" : "", *close = bare ? "}" : "";
    buf_printf(out, "clotho_%s_bucket{%sle=\"+Inf\"} %llu\n", name, labels, (unsigned long long)n);
    buf_printf(out, "clotho_%s_sum%s%.*s%s %.6f\n", name, open, bare, labels, close, h->sum);
    buf_printf(out, "clotho_%s_count%s%.*s%s %llu\n", name, open, bare, labels, close,
               (unsigned long long)n);
}

static void endpoint_histograms(struct buf *out, const struct metrics *m, const char *name,
                                size_t member, const char *help)
{
    head(out, name, "histogram", help);
    for (int i = 0; i < m->n; i++) {
        const struct histogram *h = (const void *)((const char *)&m->endpoint[i] + member);
        char labels[128];
        snprintf(labels, sizeof labels, "endpoint=\"%s\",method=\"%s\",", m->endpoint[i].of.path,
                 m->endpoint[i].of.method);
        if (observations(h))
            histogram_lines(out, name, labels, h);
    }
}

static void request_metrics(struct buf *out, const struct metrics *m)
{
    head(out, "requests_total", "counter", "Requests answered; code 499: the client left first.");
    for (int i = 0; i < m->n; i++)
        for (int c = 0; c < N_CODES; c++)
            if (m->endpoint[i].requests[c])
                buf_printf(
                    out, "clotho_requests_total{endpoint=\"%s\",method=\"%s\",code=\"%d\"} %llu\n",
                    m->endpoint[i].of.path, m->endpoint[i].of.method, codes[c],
                    (unsigned long long)m->endpoint[i].requests[c]);
    endpoint_histograms(out, m, "request_duration_seconds",
                        offsetof(struct endpoint_metrics, duration),
                        "From a request's first line to the end of its answer.");
    endpoint_histograms(out, m, "time_to_first_event_seconds",
                        offsetof(struct endpoint_metrics, first_event),
                        "From a request's first line to the first event that is sent.");
    head(out, "queue_seconds", "histogram", "Time that finished requests had waited to run.");
    histogram_lines(out, "queue_seconds", "", &m->queued);
}

/* Each reason is there from the start, as rates need a first value. */
static void cancelled_metrics(struct buf *out, const struct metrics *m)
{
    static const enum stream_end reasons[] = {STREAM_LEFT, STREAM_SLOW, STREAM_LATE, STREAM_FULL,
                                              STREAM_CANCEL};
    head(out, "cancelled_total", "counter",
         "Requests that ended early: the client left or read too slowly, they took too long, "
         "memory for clients was full, the server shut down.");
    for (size_t i = 0; i < sizeof reasons / sizeof *reasons; i++)
        buf_printf(out, "clotho_cancelled_total{reason=\"%s\"} %llu\n",
                   stream_end_names[reasons[i]], (unsigned long long)m->ends[reasons[i]]);
}

/* A histogram of `n` buckets that the engine has counted; the last one has no bound. */
static void engine_histogram(struct buf *out, const char *name, const char *help,
                             const uint64_t *count, const double *bound, int n, double sum)
{
    head(out, name, "histogram", help);
    uint64_t total = 0;
    for (int i = 0; i < n; i++) {
        total += count[i];
        buf_printf(out, "clotho_%s_bucket{le=\"%g\"} %llu\n", name, bound[i],
                   (unsigned long long)total);
    }
    buf_printf(out,
               "clotho_%s_bucket{le=\"+Inf\"} %llu\nclotho_%s_sum %.15g\nclotho_%s_count %llu\n",
               name, (unsigned long long)total, name, sum, name, (unsigned long long)total);
}

static void shape_metrics(struct buf *out, const struct engine_stats *s)
{
    double rows[ROWS_BUCKETS], ess[ESS_BUCKETS], ess_sum = 0;
    for (int i = 0; i < ROWS_BUCKETS; i++)
        rows[i] = 1 << i;
    for (int i = 0; i < ESS_BUCKETS; i++) {
        ess[i] = (i + 1.0) / ESS_BUCKETS;
        ess_sum += (double)s->ess_histogram[i] * (i + 0.5) / ESS_BUCKETS;
    }
    engine_histogram(out, "forward_rows", "Rows of a forward pass.", s->rows_histogram, rows,
                     ROWS_BUCKETS, (double)s->rows);
    engine_histogram(out, "ess_ratio",
                     "Effective sample size over particles, at every weighing; the sum is of "
                     "bucket middles.",
                     s->ess_histogram, ess, ESS_BUCKETS, ess_sum);
}

static void work_metrics(struct buf *out, const struct engine_stats *s)
{
    counter(out, "jobs_done_total", s->jobs_done, "Requests that the engine finished.");
    counter(out, "jobs_cancelled_total", s->jobs_cancelled,
            "Requests whose client left or was cut off.");
    counter(out, "jobs_failed_total", s->jobs_failed, "Requests that ended in an error.");
    counter(out, "jobs_refused_total", s->jobs_refused,
            "Requests not taken: queue full, or not ready.");
    counter(out, "prompt_tokens_total", s->prompt_tokens, "Tokens of prompts that were read.");
    counter(out, "sampled_tokens_total", s->sampled_tokens, "Tokens that particles drew.");
    counter(out, "forced_tokens_total", s->forced_tokens, "Given tokens that were scored.");
    counter(out, "recomputed_tokens_total", s->recomputed_tokens, "Tokens read once more.");
    counter(out, "steps_total", s->steps, "Forward passes.");
    counter(out, "learning_updates_total", s->learning_updates, "Updates of twists being learned.");
    counter(out, "bounds_runs_total", s->bounds_runs, "Runs that gave a bound on log Z.");
    counter(out, "resamples_total", s->resamples, "Populations resampled.");
    counter(out, "extinctions_total", s->extinctions, "Populations in which every particle died.");
}

static void time_metrics(struct buf *out, const struct engine_stats *s)
{
    counter_seconds(out, "forward_seconds_total", s->forward_seconds,
                    "Time from embedding to logits: what plain sampling would also take.");
    counter_seconds(out, "smc_seconds_total", s->smc_seconds,
                    "Time of the rest of the steps: draws, weights, resampling, events.");
    counter_seconds(out, "idle_seconds_total", s->idle_seconds, "Time without work.");
    head(out, "op_seconds_total", "counter", "Time in each operation of the device.");
    for (int i = 0; i < OP_COUNT; i++)
        buf_printf(out, "clotho_op_seconds_total{op=\"%s\"} %.6f\n", backend_op_names[i],
                   s->op_seconds[i]);
    head(out, "op_calls_total", "counter", "Calls of each operation of the device.");
    for (int i = 0; i < OP_COUNT; i++)
        buf_printf(out, "clotho_op_calls_total{op=\"%s\"} %llu\n", backend_op_names[i],
                   (unsigned long long)s->op_calls[i]);
}

static void load_metrics(struct buf *out, const struct engine_stats *s,
                         const struct metrics_load *load)
{
    gauge(out, "connections", load->connections, "Open connections.");
    gauge(out, "requests_active", load->calls, "HTTP requests in progress, of all kinds.");
    gauge(out, "client_memory_bytes", (double)load->client_memory,
          "Requests that come in and answers that wait for their clients.");
    gauge(out, "requests_running", s->jobs_running, "Requests in the batch.");
    gauge(out, "requests_waiting", s->jobs_waiting, "Requests in the queue.");
    gauge(out, "particles_active", s->particles, "Particles of the running requests.");
    gauge(out, "twists_loaded", s->twists_loaded, "Learned twists in the device's memory.");
    gauge(out, "twist_memory_bytes", (double)s->twist_bytes_used,
          "Memory of loaded twists and of learning.");
    gauge(out, "kv_pages", s->kv_pages_total, "Pages of the KV cache.");
    gauge(out, "kv_pages_used", s->kv_pages_used, "Pages that hold something.");
    gauge(out, "kv_pages_shared", s->kv_pages_shared, "Pages that several sequences hold.");
    gauge(out, "kv_pages_peak", s->kv_pages_peak, "The most pages that ever held something.");
}

/* A label's value: backslash, quote and line end are escaped. */
static void label(struct buf *out, const char *name, const char *value)
{
    buf_printf(out, "%s=\"", name);
    for (; *value; value++) {
        if (*value == '\\' || *value == '"')
            buf_add(out, "\\", 1);
        if (*value != '\n')
            buf_add(out, value, 1);
    }
    buf_puts(out, "\"");
}

static void client_line(struct buf *out, const char *name, const struct client_usage *c,
                        const char *more, uint64_t value)
{
    buf_printf(out, "clotho_%s{key=\"%s\"%s} %llu\n", name, c->name, more,
               (unsigned long long)value);
}

/* By the names of keys, which need no escaping; there are as many as the key file has. */
static void client_metrics(struct buf *out, const struct client_usage *c, int n)
{
    head(out, "key_requests_total", "counter", "POST requests of a key that were let in.");
    for (int i = 0; i < n; i++)
        client_line(out, "key_requests_total", &c[i], "", c[i].requests);
    head(out, "key_refused_total", "counter", "POST requests of a key that its limits refused.");
    for (int i = 0; i < n; i++) {
        client_line(out, "key_refused_total", &c[i], ",limit=\"concurrent\"", c[i].too_many);
        client_line(out, "key_refused_total", &c[i], ",limit=\"per_minute\"", c[i].too_often);
    }
    head(out, "key_requests_active", "gauge", "POST requests of a key that are in progress.");
    for (int i = 0; i < n; i++)
        client_line(out, "key_requests_active", &c[i], "", (uint64_t)c[i].active);
    head(out, "key_prompt_tokens_total", "counter", "Prompts' tokens of a key's whole answers.");
    for (int i = 0; i < n; i++)
        client_line(out, "key_prompt_tokens_total", &c[i], "", c[i].prompt_tokens);
    head(out, "key_tokens_total", "counter", "Tokens drawn or scored in a key's whole answers.");
    for (int i = 0; i < n; i++)
        client_line(out, "key_tokens_total", &c[i], "", c[i].sampled_tokens);
}

static void build_info(struct buf *out, const struct engine_info *info)
{
    head(out, "build_info", "gauge", "Always 1; what is running is in the labels.");
    buf_puts(out, "clotho_build_info{");
    label(out, "version", CLOTHO_VERSION);
    if (info) {
        label(out, ",backend", info->device);
        label(out, ",model", info->model);
        label(out, ",fingerprint", info->fingerprint);
    }
    buf_puts(out, "} 1\n");
    if (!info)
        return;
    gauge(out, "model_load_seconds", info->load_seconds, "Time that loading the model took.");
    gauge(out, "memory_weights_bytes", (double)info->memory.weights, "Planned for weights.");
    gauge(out, "memory_kv_bytes", (double)info->memory.kv, "Planned for keys and values.");
    gauge(out, "memory_activations_bytes", (double)info->memory.activations,
          "Planned for activations.");
}

void metrics_text(struct buf *out, const struct metrics *m, const struct engine *engine,
                  const struct metrics_load *load)
{
    struct engine_stats s;
    engine_stats(engine, &s);
    build_info(out, engine_info(engine));
    gauge(out, "ready", engine_state(engine) == ENGINE_READY, "1 when requests are served.");
    request_metrics(out, m);
    cancelled_metrics(out, m);
    load_metrics(out, &s, load);
    if (load->n_clients)
        client_metrics(out, load->clients, load->n_clients);
    work_metrics(out, &s);
    shape_metrics(out, &s);
    time_metrics(out, &s);
}
