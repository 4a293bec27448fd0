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

/* completion, taken: the answer's shape, or NULL. */
static enum MHD_Result submit(struct call *c, struct job *job, enum stream_form form,
                              struct completion *completion)
{
    struct err err;
    uint64_t handle = 0;
    call_open_stream(c, form, job->kind, completion);
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
            engine_state(c->service->engine) == ENGINE_FAILED ? "the engine failed"
                                                              : "the model is loading");
    *answered = call_fail(c, &err);
    return NULL;
}

static bool wants_sse(const struct call *c)
{
    const char *accept = call_header(c, MHD_HTTP_HEADER_ACCEPT);
    return accept && strstr(accept, "text/event-stream");
}

/* A reader of request.h. */
typedef int read_request(struct job **, struct request_opts *, const char *body, size_t len,
                         const struct engine_info *, struct err *);

/* The body as a job. NULL: there is none, and the call is answered - or this is its second turn,
 * with an answer that is whole. */
static struct job *read_job(struct call *c, read_request *read, struct request_opts *opts,
                            enum MHD_Result *answered)
{
    struct job *job;
    struct err err;
    if (c->stream) {
        *answered = answer_whole(c);
        return NULL;
    }
    const struct engine_info *info = need_info(c, answered);
    if (!info)
        return NULL;
    if (read(&job, opts, c->body.data, c->body.len, info, &err) == 0)
        return job;
    *answered = call_fail(c, &err);
    return NULL;
}

/* A job, whose events are streamed unless the request says otherwise. */
static enum MHD_Result post_job(struct call *c, read_request *read)
{
    struct request_opts opts;
    enum MHD_Result answered;
    struct job *job = read_job(c, read, &opts, &answered);
    if (!job)
        return answered;
    return submit(c, job,
                  !opts.stream   ? STREAM_WHOLE
                  : wants_sse(c) ? STREAM_SSE
                                 : STREAM_LINES,
                  NULL);
}

static enum MHD_Result post_sample(struct call *c)
{
    return post_job(c, request_sample);
}

static enum MHD_Result post_bounds(struct call *c)
{
    return post_job(c, request_bounds);
}

static enum MHD_Result post_twists(struct call *c)
{
    return post_job(c, request_learn);
}

static int request_score_whole(struct job **out, struct request_opts *opts, const char *body,
                               size_t len, const struct engine_info *info, struct err *err)
{
    opts->stream = false;
    return request_score(out, body, len, info, err);
}

static enum MHD_Result post_score(struct call *c)
{
    return post_job(c, request_score_whole);
}

/* A job whose answer has OpenAI's shape. */
static enum MHD_Result post_completion(struct call *c, read_request *read)
{
    struct request_opts opts;
    enum MHD_Result answered;
    struct job *job = read_job(c, read, &opts, &answered);
    if (!job)
        return answered;
    return submit(c, job, opts.stream ? STREAM_SSE : STREAM_WHOLE,
                  completion_open(job, &opts, engine_info(c->service->engine)));
}

static enum MHD_Result post_completions(struct call *c)
{
    return post_completion(c, request_completion);
}

static enum MHD_Result post_chat(struct call *c)
{
    return post_completion(c, request_chat);
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

/* ------------------------------------------------------- learned twists: files, no job */

/* Answers 404 unless there can be a twist of this name. */
static bool need_twist(struct call *c, enum MHD_Result *answered)
{
    struct err err;
    if (c->service->config->twist_dir && twist_name_ok(c->name))
        return true;
    err_set(&err, ERR_NOT_FOUND, "there is no twist \"%s\"", c->name);
    *answered = call_fail(c, &err);
    return false;
}

static enum MHD_Result get_twists(struct call *c)
{
    const char *dir = c->service->config->twist_dir;
    struct twist_file *files = NULL;
    struct buf json = {0};
    struct err err;
    int n = dir ? twist_list(&files, dir, &err) : 0;
    if (n < 0)
        return call_fail(c, &err);
    twists_json(&json, files, n);
    free(files);
    return call_reply(c, MHD_HTTP_OK, json_type, &json);
}

static enum MHD_Result get_twist(struct call *c)
{
    enum MHD_Result answered;
    struct twist_file file;
    struct arena arena = {0};
    struct buf json = {0};
    struct err err;
    if (!need_twist(c, &answered))
        return answered;
    int failed = twist_describe(&file, &arena, c->service->config->twist_dir, c->name, &err);
    if (!failed)
        twist_json(&json, &file);
    arena_free(&arena);
    if (failed)
        return call_fail(c, &err);
    return call_reply(c, MHD_HTTP_OK, json_type, &json);
}

static enum MHD_Result delete_twist(struct call *c)
{
    enum MHD_Result answered;
    struct buf json = {0};
    struct err err;
    if (!need_twist(c, &answered))
        return answered;
    if (twist_remove(c->service->config->twist_dir, c->name, &err))
        return call_fail(c, &err);
    twist_removed_json(&json, c->name);
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
    struct metrics_load load = {.client_memory = c->service->budget->used};
    struct client_usage *clients;
    load.n_clients = auth_usage(c->service->auth, &clients);
    load.clients = clients;
    http_count(c->http, &load.connections, &load.calls);
    metrics_text(&text, c->service->metrics, c->service->engine, &load);
    free(clients);
    return call_reply(c, MHD_HTTP_OK, "text/plain; version=0.0.4; charset=utf-8", &text);
}

/* ------------------------------------------------------- the table */

const struct route routes[] = {
    {"POST", "/v1/sample", post_sample, false},
    {"POST", "/v1/score", post_score, false},
    {"POST", "/v1/completions", post_completions, false},
    {"POST", "/v1/chat/completions", post_chat, false},
    {"POST", "/v1/bounds", post_bounds, false},
    {"POST", "/v1/twists", post_twists, false},
    {"GET", "/v1/twists", get_twists, false},
    {"GET", "/v1/twists/{name}", get_twist, false},
    {"DELETE", "/v1/twists/{name}", delete_twist, false},
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

/* What a path may be asked for, by the methods that are in the table. */
enum { KNOWS_GET = 1, KNOWS_POST = 2, KNOWS_DELETE = 4 };
static const char *const allows[] = {
    [KNOWS_GET] = "GET, HEAD, OPTIONS",
    [KNOWS_POST] = "POST, OPTIONS",
    [KNOWS_GET | KNOWS_POST] = "GET, HEAD, POST, OPTIONS",
    [KNOWS_GET | KNOWS_DELETE] = "GET, HEAD, DELETE, OPTIONS",
};

static int method_bit(const char *method)
{
    return strcmp(method, "GET") == 0    ? KNOWS_GET
           : strcmp(method, "POST") == 0 ? KNOWS_POST
                                         : KNOWS_DELETE;
}

static bool has_path(const struct route *r, const char *path, const char **name)
{
    size_t fixed = strcspn(r->path, "{");
    *name = NULL;
    if (!r->path[fixed])
        return strcmp(r->path, path) == 0;
    if (strncmp(r->path, path, fixed) != 0 || !path[fixed] || strchr(path + fixed, '/'))
        return false;
    *name = path + fixed;
    return true;
}

const struct route *route_find(const char *method, const char *path, const char **name,
                               const char **allow)
{
    int known = 0;
    if (strcmp(method, "HEAD") == 0)
        method = "GET";
    for (int i = 0; i < n_routes; i++) {
        if (!has_path(&routes[i], path, name))
            continue;
        if (strcmp(routes[i].method, method) == 0)
            return &routes[i];
        known |= method_bit(routes[i].method);
    }
    *allow = allows[known];
    return NULL;
}
