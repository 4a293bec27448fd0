#include "call.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/random.h>

#include "../proto/event_json.h"
#include "link.h"
#include "log.h"
#include "routes.h"

const char json_type[] = "application/json";

enum {
    DISCARD_MAX = 64 << 20,      /* bytes of a refused body that are read for the answer's sake */
    WHOLE_ANSWER_MAX = 64 << 20, /* bytes of events of an answer that is not streamed */
    BODY_RATE = 16 << 10,        /* bytes a second that a body's sender must manage in the end */
    LOGGED_BODY = 4 << 10,
    BUSY_SECONDS = 1,            /* until a place in the queue may be free */
    DOWN_SECONDS = 5,            /* until a server may be up again */
    CLIENT_CLOSED_REQUEST = 499, /* nginx's code for a client that left before the answer */
};

/* ------------------------------------------------------- open, close */

struct call *call_open(struct http *http, struct service *service, struct link *link,
                       struct MHD_Connection *connection, const char *uri)
{
    struct call *c = calloc(1, sizeof *c);
    CHECK(c && "out of memory");
    c->http = http;
    c->service = service;
    c->link = link;
    c->connection = connection;
    c->started = stream_clock();
    log_clean(c->path, sizeof c->path, uri);
    c->path[strcspn(c->path, "?")] = '\0';
    const char *nul = strstr(uri, "%00");
    c->has_nul = nul && (size_t)(nul - uri) < strcspn(uri, "?");
    return c;
}

/* libmicrohttpd answers broken requests by itself: nothing was asked of us then. */
static int final_status(const struct call *c)
{
    if (c->status)
        return c->status;
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(c->connection, MHD_CONNECTION_INFO_HTTP_STATUS);
    return info && info->http_status ? (int)info->http_status : CLIENT_CLOSED_REQUEST;
}

static void log_account(struct log_entry *e, const struct account *a)
{
    if (a->particles)
        log_count(e, "particles", a->particles);
    if (!a->is_done)
        return;
    log_seconds(e, "queue_seconds", a->queue_seconds);
    log_count(e, "prompt_tokens", a->prompt_tokens);
    log_count(e, "tokens", a->tokens);
}

static void log_begin_call(struct log_entry *e, const struct call *c)
{
    log_begin(e, LOG_INFO);
    log_text(e, "request", c->id[0] ? c->id : "-");
    if (c->visit.name[0])
        log_text(e, "key", c->visit.name);
}

static void log_call(const struct call *c, int status, double seconds, const char *end)
{
    struct log_entry e;
    log_begin_call(&e, c);
    log_text(&e, "method", c->method[0] ? c->method : "-");
    log_text(&e, "path", c->path);
    log_count(&e, "status", status);
    log_seconds(&e, "seconds", seconds);
    log_account(&e, &c->account);
    if (end)
        log_text(&e, "end", end);
    log_end(&e);
}

/* What was asked for, if that is wanted: its beginning. */
static void log_body(const struct call *c)
{
    struct log_entry e;
    char text[LOGGED_BODY];
    if (!c->service->config->log_prompts || !c->body.len)
        return;
    snprintf(text, sizeof text, "%s", c->body.data);
    log_begin_call(&e, c);
    log_text(&e, "path", c->path);
    log_text(&e, "body", text);
    log_end(&e);
}

void call_close(struct call *c)
{
    int status = final_status(c);
    double seconds = stream_clock() - c->started;
    const char *end_name = NULL;
    if (c->stream) {
        link_set_stream(c->http, c->link, NULL);
        enum stream_end end = stream_leave(c->stream);
        metrics_stream_end(c->service->metrics, end);
        end_name = stream_end_names[end];
    }
    int endpoint = c->route ? (int)(c->route - routes) : n_routes;
    metrics_request(c->service->metrics, endpoint, status, seconds);
    log_call(c, status, seconds, end_name);
    const struct config *config = c->service->config;
    link_must_send(c->http, c->link,
                   stream_clock() + config->idle_seconds + config->header_seconds);
    budget_count(c->service->budget, c->held, 0);
    auth_leave(c->service->auth, &c->visit, (uint64_t)c->account.prompt_tokens,
               (uint64_t)c->account.tokens);
    if (c->is_answered)
        http_count_call(c->http, -1);
    buf_free(&c->body);
    buf_free(&c->refusal.json);
    free(c);
}

/* ------------------------------------------------------- answers */

const char *call_header(const struct call *c, const char *name)
{
    return MHD_lookup_connection_value(c->connection, MHD_HEADER_KIND, name);
}

/* Is the origin in the list "https://a, https://b"? */
static bool is_listed(const char *list, const char *origin)
{
    size_t n = strlen(origin);
    while (*list) {
        list += strspn(list, ", ");
        size_t item = strcspn(list, ", ");
        if (item == n && strncasecmp(list, origin, n) == 0)
            return true;
        list += item;
    }
    return false;
}

static void add_cors_headers(const struct call *c, struct MHD_Response *r)
{
    const char *list = c->service->config->cors_origins;
    const char *origin = call_header(c, MHD_HTTP_HEADER_ORIGIN);
    if (!list || !list[0])
        return;
    MHD_add_response_header(r, "Vary", "Origin");
    if (!origin || (strcmp(list, "*") != 0 && !is_listed(list, origin)))
        return;
    MHD_add_response_header(r, "Access-Control-Allow-Origin", origin);
    MHD_add_response_header(r, "Access-Control-Expose-Headers", "X-Request-Id, Retry-After");
    if (strcmp(c->method, "OPTIONS") != 0)
        return;
    MHD_add_response_header(r, "Access-Control-Allow-Methods", "GET, POST, DELETE, OPTIONS");
    const char *asked = call_header(c, "Access-Control-Request-Headers");
    MHD_add_response_header(r, "Access-Control-Allow-Headers",
                            asked ? asked : "Authorization, Content-Type, X-Api-Key, X-Request-Id");
    MHD_add_response_header(r, "Access-Control-Max-Age", "86400");
}

static void add_retry_after(struct MHD_Response *r, int seconds)
{
    char text[16];
    snprintf(text, sizeof text, "%d", seconds);
    MHD_add_response_header(r, "Retry-After", text);
}

static void add_status_headers(const struct call *c, struct MHD_Response *r, int status)
{
    if (status == MHD_HTTP_UNAUTHORIZED)
        MHD_add_response_header(r, "WWW-Authenticate", "Bearer");
    if (status == MHD_HTTP_TOO_MANY_REQUESTS || status == MHD_HTTP_SERVICE_UNAVAILABLE)
        add_retry_after(r, c->refusal.retry_after                 ? c->refusal.retry_after
                           : status == MHD_HTTP_TOO_MANY_REQUESTS ? BUSY_SECONDS
                                                                  : DOWN_SECONDS);
    if (c->refusal.allow)
        MHD_add_response_header(r, "Allow", c->refusal.allow);
}

static void hold(struct call *c, size_t bytes)
{
    c->held = budget_count(c->service->budget, c->held, bytes);
}

/* Takes the response. */
static enum MHD_Result queue(struct call *c, int status, const char *content_type,
                             struct MHD_Response *r)
{
    CHECK(r && "out of memory");
    if (content_type)
        MHD_add_response_header(r, "Content-Type", content_type);
    MHD_add_response_header(r, "X-Request-Id", c->id);
    add_status_headers(c, r, status);
    add_cors_headers(c, r);
    c->status = status;
    enum MHD_Result queued = MHD_queue_response(c->connection, (unsigned)status, r);
    MHD_destroy_response(r);
    return queued;
}

enum MHD_Result call_reply(struct call *c, int status, const char *content_type, struct buf *take)
{
    struct MHD_Response *r =
        MHD_create_response_from_buffer(take->len, take->data, MHD_RESPMEM_MUST_FREE);
    hold(c, c->body.cap + take->cap);
    link_must_read(c->http, c->link,
                   stream_clock() + c->service->config->idle_seconds +
                       (double)take->len / ANSWER_RATE);
    *take = (struct buf){0};
    return queue(c, status, content_type, r);
}

enum MHD_Result call_reply_static(struct call *c, const char *content_type, const char *bytes,
                                  size_t n)
{
    struct MHD_Response *r =
        MHD_create_response_from_buffer(n, (void *)bytes, MHD_RESPMEM_PERSISTENT);
    return queue(c, MHD_HTTP_OK, content_type, r);
}

enum MHD_Result call_fail(struct call *c, const struct err *err)
{
    struct buf json = {0};
    error_json(&json, err);
    return call_reply(c, error_status(err), json_type, &json);
}

/* The client's picture of an event: the first one, and the wait that the last one reports. */
static void saw_event(void *user, const struct event *e)
{
    struct call *c = user;
    if (!c->saw_event)
        metrics_first_event(c->service->metrics, (int)(c->route - routes),
                            stream_clock() - c->started);
    c->saw_event = true;
    struct account *a = &c->account;
    if (e->type == EVENT_START)
        a->particles = e->start.particles;
    if (e->type != EVENT_DONE)
        return;
    metrics_queued(c->service->metrics, e->done.queue_seconds);
    a->is_done = true;
    a->queue_seconds = e->done.queue_seconds;
    a->prompt_tokens = e->done.prompt_tokens;
    a->tokens = e->done.completion_tokens;
}

void call_open_stream(struct call *c, enum stream_form form, enum job_kind kind,
                      struct completion *completion)
{
    bool whole = form == STREAM_WHOLE;
    const struct config *config = c->service->config;
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(c->connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    c->stream = stream_open(&(struct stream_opts){
        .form = form,
        .kind = kind,
        .completion = completion,
        .limit = whole ? WHOLE_ANSWER_MAX : config->stream_buffer,
        .budget = c->service->budget,
        .deadline = config->max_seconds ? c->started + config->max_seconds : 0,
        .longest = config->max_seconds,
        .patience = config->idle_seconds,
        .connection = c->connection,
        .fd = info->connect_fd,
        .interim = c->http_1_1,
        .saw = saw_event,
        .user = c,
    });
    link_set_stream(c->http, c->link, c->stream);
    buf_free(&c->body); /* it has become the job */
    hold(c, 0);
}

void call_drop_stream(struct call *c)
{
    struct sink sink = stream_sink(c->stream);
    sink.closed(sink.user);
    link_set_stream(c->http, c->link, NULL);
    stream_leave(c->stream);
    c->stream = NULL;
}

enum MHD_Result call_reply_stream(struct call *c, const char *content_type)
{
    struct MHD_Response *r = stream_response(c->stream);
    CHECK(r && "out of memory");
    MHD_add_response_header(r, "Cache-Control", "no-cache");
    MHD_add_response_header(r, "X-Accel-Buffering", "no"); /* nginx: pass each chunk on at once */
    return queue(c, MHD_HTTP_OK, content_type, r);
}

/* ------------------------------------------------------- refusals */

/* param: the header that is wrong, or NULL. The texts are ours and need no escaping. */
__attribute__((format(printf, 5, 6))) static void
refuse(struct call *c, int status, const char *type, const char *param, const char *fmt, ...)
{
    struct buf *json = &c->refusal.json;
    char message[256];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(message, sizeof message, fmt, ap);
    va_end(ap);
    c->refusal.status = status;
    const char *quote = param ? "\"" : "";
    buf_printf(json,
               "{\"error\":{\"message\":\"%s\",\"type\":\"%s\",\"param\":%s%s%s,\"code\":null}}",
               message, type, quote, param ? param : "null", quote);
}

static enum MHD_Result reply_refusal(struct call *c)
{
    return call_reply(c, c->refusal.status, c->refusal.json.len ? json_type : NULL,
                      &c->refusal.json);
}

static const char invalid[] = "invalid_request_error";

/* What the headers say about where this request ends. A proxy in front of us must not be able to
 * read that differently (request smuggling), and libmicrohttpd takes nearly anything. */
struct framing {
    int n_lengths, n_encodings, n_hosts;
    const char *encoding;
    bool bad_name;
    unsigned long long length;
};

static bool is_token(const char *s, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (s[i] <= ' ' || s[i] >= 127 || strchr("\"(),/:;<=>?@[\\]{}", s[i]))
            return false;
    return n > 0;
}

static enum MHD_Result see_header(void *user, enum MHD_ValueKind kind, const char *name,
                                  size_t name_size, const char *value, size_t value_size)
{
    struct framing *f = user;
    (void)kind, (void)value_size;
    if (!is_token(name, name_size))
        f->bad_name = true;
    if (strcasecmp(name, "Content-Length") == 0) {
        f->n_lengths++;
        f->length = strtoull(value, NULL, 10); /* digits: libmicrohttpd has checked */
    } else if (strcasecmp(name, "Transfer-Encoding") == 0) {
        f->n_encodings++;
        f->encoding = value;
    } else if (strcasecmp(name, "Host") == 0) {
        f->n_hosts++;
    }
    return MHD_YES;
}

static void check_framing(struct call *c, const struct framing *f)
{
    if (f->bad_name)
        refuse(c, 400, invalid, NULL, "a header's name is not a token");
    else if (f->n_lengths > 1)
        refuse(c, 400, invalid, "Content-Length", "Content-Length is given %d times", f->n_lengths);
    else if (f->n_encodings && f->n_lengths)
        refuse(c, 400, invalid, "Transfer-Encoding",
               "both Content-Length and Transfer-Encoding are given");
    else if (f->n_encodings > 1 ||
             (f->n_encodings && (!c->http_1_1 || strcasecmp(f->encoding, "chunked") != 0)))
        refuse(c, 400, invalid, "Transfer-Encoding", "Transfer-Encoding may only be chunked");
    else if (f->n_hosts > 1 || (c->http_1_1 && f->n_hosts == 0))
        refuse(c, 400, invalid, "Host", "a request has one Host header");
}

/* Other types are refused because browsers send some of them (forms, plain text) across origins
 * without asking first. */
static bool is_json(const char *type)
{
    if (!type)
        return true;
    size_t n = strcspn(type, "; \t");
    return (n == 16 && strncasecmp(type, json_type, n) == 0) ||
           (n > 5 && strncasecmp(type + n - 5, "+json", 5) == 0);
}

static void refuse_body_size(struct call *c)
{
    refuse(c, 413, invalid, "Content-Length", "the body is larger than the limit of %zu bytes",
           c->service->config->max_body);
}

static void check_route(struct call *c, const char *method, const char *path)
{
    const char *allow, *name;
    bool options = strcmp(method, "OPTIONS") == 0;
    if (c->has_nul) {
        refuse(c, 404, "not_found_error", NULL, "no path has a NUL in it");
        return;
    }
    c->route = route_find(method, path, &name, &allow);
    if (c->route) {
        snprintf(c->name, sizeof c->name, "%s", name ? name : "");
        return;
    }
    c->refusal.allow = allow;
    if (options && strcmp(path, "*") == 0)
        c->refusal.allow = "GET, HEAD, POST, DELETE, OPTIONS";
    if (options && c->refusal.allow)
        c->refusal.status = MHD_HTTP_NO_CONTENT;
    else if (allow)
        refuse(c, 405, invalid, NULL, "the path does not know this method; it knows %s", allow);
    else
        refuse(c, 404, "not_found_error", NULL, "there is no such path");
}

static void refuse_key(struct call *c)
{
    refuse(c, 401, "authentication_error", "Authorization",
           "a valid API key is needed, as Authorization: Bearer KEY or X-Api-Key: KEY");
}

static void refuse_for_now(struct call *c, const char *what)
{
    c->refusal.retry_after = c->visit.retry_after;
    refuse(c, 429, "rate_limit_error", NULL, "the key %s may %s %d requests", c->visit.name, what,
           c->visit.limit);
}

/* Browsers ask for permission (OPTIONS) without credentials. Work is what the limits count. */
static void check_key(struct call *c)
{
    bool open = c->route ? c->route->open : c->refusal.status == MHD_HTTP_NO_CONTENT;
    bool counts = c->route && strcmp(c->route->method, "POST") == 0;
    if (open)
        return;
    enum auth_verdict verdict =
        auth_enter(c->service->auth, call_header(c, MHD_HTTP_HEADER_AUTHORIZATION),
                   call_header(c, "X-Api-Key"), counts, stream_clock(), &c->visit);
    if (verdict == AUTH_WELCOME)
        return;
    buf_reset(&c->refusal.json);
    c->refusal.allow = NULL;
    if (verdict == AUTH_UNKNOWN)
        refuse_key(c);
    else
        refuse_for_now(c, verdict == AUTH_TOO_MANY ? "have in progress at most"
                                                   : "make each minute at most");
}

static void check_body(struct call *c, const struct framing *f)
{
    if (strcmp(c->method, "POST") != 0)
        return;
    if (!is_json(call_header(c, MHD_HTTP_HEADER_CONTENT_TYPE)))
        refuse(c, 415, invalid, "Content-Type", "the body's Content-Type must be application/json");
    else if (f->length > c->service->config->max_body)
        refuse_body_size(c);
}

/* ------------------------------------------------------- a request comes in */

static bool is_safe_id(const char *s)
{
    size_t n = strlen(s);
    if (n == 0 || n > REQUEST_ID_MAX)
        return false;
    return strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:/+=@") == n;
}

static void choose_id(struct call *c)
{
    const char *theirs = call_header(c, "X-Request-Id");
    if (theirs && is_safe_id(theirs)) {
        snprintf(c->id, sizeof c->id, "%s", theirs);
        return;
    }
    unsigned char random[12];
    CHECK(getrandom(random, sizeof random, 0) == sizeof random);
    int n = snprintf(c->id, sizeof c->id, "req-");
    for (size_t i = 0; i < sizeof random; i++)
        n += snprintf(c->id + n, sizeof c->id - (size_t)n, "%02x", random[i]);
}

enum MHD_Result call_headers(struct call *c, const char *method, const char *path,
                             const char *version)
{
    struct framing f = {0};
    c->has_headers = true;
    c->http_1_1 = strcmp(version, "HTTP/1.0") != 0;
    log_clean(c->method, sizeof c->method, method);
    choose_id(c);
    MHD_get_connection_values_n(c->connection, MHD_HEADER_KIND, see_header, &f);
    check_framing(c, &f);
    if (c->refusal.status) /* at once, which closes the connection: what follows is nobody's */
        return reply_refusal(c);
    check_route(c, method, path);
    check_key(c);
    if (!c->refusal.status)
        check_body(c, &f);
    bool waits = call_header(c, MHD_HTTP_HEADER_EXPECT) != NULL;
    if (c->refusal.status && (f.length > DISCARD_MAX || (waits && f.length)))
        return reply_refusal(c);
    c->deadline = stream_clock() + c->service->config->header_seconds;
    link_must_send(c->http, c->link, c->deadline);
    return MHD_YES;
}

/* What may be wrong with so many bytes more. */
static void check_growth(struct call *c, size_t n)
{
    if (c->body.len + n > c->service->config->max_body)
        refuse_body_size(c);
    else if (!budget_allows(c->service->budget, c->held, n))
        refuse(c, 429, "rate_limit_error", NULL, "the memory for requests is full");
    else
        return;
    buf_free(&c->body);
    hold(c, 0);
}

enum MHD_Result call_body(struct call *c, const char *bytes, size_t n)
{
    c->deadline += (double)n / BODY_RATE;
    link_must_send(c->http, c->link, c->deadline);
    if (!c->refusal.status)
        check_growth(c, n);
    if (c->refusal.status) {
        c->discarded += n;
        return c->discarded > DISCARD_MAX ? MHD_NO : MHD_YES;
    }
    buf_add(&c->body, bytes, n);
    hold(c, c->body.cap);
    return MHD_YES;
}

enum MHD_Result call_answer(struct call *c)
{
    if (!c->is_answered)
        http_count_call(c->http, 1);
    c->is_answered = true;
    link_must_read(c->http, c->link, 0);
    if (c->refusal.status)
        return reply_refusal(c);
    log_body(c);
    return c->route->handle(c);
}
