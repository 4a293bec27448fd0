#include "routes.h"

#include <stdlib.h>
#include <string.h>

#include "../proto/event_json.h"
#include "../proto/request.h"
#include "link.h"

/* The playground, linked in as it is. */
__asm__(".section .rodata\n"
        "playground_start: .incbin \"" PLAYGROUND "\"\n"
        "playground_end:\n"
        ".previous\n");
extern const char playground_start[], playground_end[];

/* ------------------------------------------------------- jobs */

static enum MHD_Result answer_whole(struct call *c)
{
    struct buf json = {0};
    struct err err;
    switch (stream_whole(c->stream, &json, &err)) {
    case 0:
        return MHD_YES; /* suspended */
    case 1:
        return call_reply(c, MHD_HTTP_OK, json_type, &json);
    case -1:
        return call_fail(c, &err);
    default:
        return MHD_NO; /* nobody to answer */
    }
}

static enum MHD_Result submit(struct call *c, struct job *job, enum stream_form form)
{
    struct err err;
    uint64_t handle = 0;
    call_open_stream(c, form, job->kind);
    if (engine_submit(c->service->engine, job, stream_sink(c->stream), &handle, &err)) {
        call_drop_stream(c);
        job_free(job);
        return call_fail(c, &err);
    }
    stream_submitted(c->stream, c->service->engine, handle);
    if (form == STREAM_WHOLE)
        return answer_whole(c);
    return call_reply_stream(c, form == STREAM_SSE ? "text/event-stream" : "application/x-ndjson");
}

/* NULL while the model is loading, which was answered then. */
static const struct engine_info *need_info(struct call *c, enum MHD_Result *answered)
{
    const struct engine_info *info = engine_info(c->service->engine);
    if (info)
        return info;
    struct err err;
    err_set(&err, ERR_UNAVAILABLE,
            engine_state(c->service->engine) == ENGINE_FAILED ? "the model could not be loaded"
                                                              : "the model is loading");
    *answered = call_fail(c, &err);
    return NULL;
}

static bool wants_sse(const struct call *c)
{
    const char *accept = call_header(c, MHD_HTTP_HEADER_ACCEPT);
    return accept && strstr(accept, "text/event-stream");
}

static enum MHD_Result post_sample(struct call *c)
{
    if (c->stream)
        return answer_whole(c);
    enum MHD_Result answered;
    const struct engine_info *info = need_info(c, &answered);
    if (!info)
        return answered;
    struct job *job;
    struct request_opts opts;
    struct err err;
    if (request_sample(&job, &opts, c->body.data, c->body.len, info, &err))
        return call_fail(c, &err);
    return submit(c, job, !opts.stream ? STREAM_WHOLE : wants_sse(c) ? STREAM_SSE : STREAM_LINES);
}

static enum MHD_Result post_score(struct call *c)
{
    if (c->stream)
        return answer_whole(c);
    enum MHD_Result answered;
    const struct engine_info *info = need_info(c, &answered);
    if (!info)
        return answered;
    struct job *job;
    struct err err;
    if (request_score(&job, c->body.data, c->body.len, info, &err))
        return call_fail(c, &err);
    return submit(c, job, STREAM_WHOLE);
}

/* ------------------------------------------------------- the tokenizer, the model */

static enum MHD_Result reply_text(struct call *c, const char *content_type, const char *text)
{
    struct buf b = {0};
    buf_puts(&b, text);
    return call_reply(c, MHD_HTTP_OK, content_type, &b);
}

static enum MHD_Result translate(struct call *c,
                                 char *(*request)(const char *body, size_t len,
                                                  const struct engine_info *, struct err *))
{
    enum MHD_Result answered;
    const struct engine_info *info = need_info(c, &answered);
    if (!info)
        return answered;
    struct err err;
    char *json = request(c->body.data, c->body.len, info, &err);
    if (!json)
        return call_fail(c, &err);
    size_t n = strlen(json);
    return call_reply(c, MHD_HTTP_OK, json_type, &(struct buf){.data = json, .len = n, .cap = n});
}

static enum MHD_Result post_tokenize(struct call *c)
{
    return translate(c, request_tokenize);
}

static enum MHD_Result post_detokenize(struct call *c)
{
    return translate(c, request_detokenize);
}

static enum MHD_Result get_models(struct call *c)
{
    enum MHD_Result answered;
    const struct engine_info *info = need_info(c, &answered);
    if (!info)
        return answered;
    struct buf json = {0};
    models_json(&json, info);
    return call_reply(c, MHD_HTTP_OK, json_type, &json);
}

/* ------------------------------------------------------- health, description, page */

static enum MHD_Result get_health(struct call *c)
{
    static const char *const why[] = {
        [ENGINE_LOADING] = "the model is loading",
        [ENGINE_DRAINING] = "the server is shutting down",
        [ENGINE_FAILED] = "the engine failed",
    };
    enum engine_state state = engine_state(c->service->engine);
    if (state == ENGINE_READY)
        return reply_text(c, json_type, "{\"status\":\"ok\"}\n");
    struct err err;
    err_set(&err, ERR_UNAVAILABLE, "%s", why[state]);
    return call_fail(c, &err);
}

static enum MHD_Result get_live(struct call *c)
{
    return reply_text(c, json_type, "{\"status\":\"ok\"}\n");
}

static enum MHD_Result get_openapi(struct call *c)
{
    size_t n;
    const char *json = openapi_json(&n);
    return call_reply_static(c, json_type, json, n);
}

static enum MHD_Result get_playground(struct call *c)
{
    return call_reply_static(c, "text/html; charset=utf-8", playground_start,
                             (size_t)(playground_end - playground_start));
}

static enum MHD_Result get_metrics(struct call *c)
{
    struct buf text = {0};
    int connections, calls;
    http_count(c->http, &connections, &calls);
    metrics_text(&text, c->service->metrics, c->service->engine, connections, calls);
    return call_reply(c, MHD_HTTP_OK, "text/plain; version=0.0.4; charset=utf-8", &text);
}

/* ------------------------------------------------------- the table */

const struct route routes[] = {
    {"POST", "/v1/sample", post_sample, false},
    {"POST", "/v1/score", post_score, false},
    {"GET", "/v1/models", get_models, false},
    {"POST", "/tokenize", post_tokenize, false},
    {"POST", "/detokenize", post_detokenize, false},
    {"GET", "/health", get_health, true},
    {"GET", "/readyz", get_health, true},
    {"GET", "/livez", get_live, true},
    {"GET", "/metrics", get_metrics, false},
    {"GET", "/openapi.json", get_openapi, false},
    {"GET", "/", get_playground, false},
};
const int n_routes = (int)(sizeof routes / sizeof *routes);

const struct route *route_find(const char *method, const char *path, const char **allow)
{
    *allow = NULL;
    if (strcmp(method, "HEAD") == 0)
        method = "GET";
    for (int i = 0; i < n_routes; i++) {
        if (strcmp(routes[i].path, path) != 0)
            continue;
        if (strcmp(routes[i].method, method) == 0)
            return &routes[i];
        *allow = strcmp(routes[i].method, "GET") == 0 ? "GET, HEAD, OPTIONS" : "POST, OPTIONS";
    }
    return NULL;
}
