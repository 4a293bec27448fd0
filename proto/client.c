#include "client.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "../core/job.h"

/* ---- requests */

static int parse_seed(const char *text, uint64_t *seed)
{
    char *end;
    errno = 0;
    long long n = strtoll(text, &end, 10);
    *seed = (uint64_t)n;
    return errno || end == text || *end ? -1 : 0;
}

int client_seed(const char *body, uint64_t *seed, struct err *err)
{
    json_t *root = json_loads(body, 0, NULL);
    const json_t *value = json_object_get(root, "seed");
    int failed = 0;
    if (!value) {
        CHECK(getrandom(seed, sizeof *seed, 0) == sizeof *seed);
        *seed &= (UINT64_C(1) << 53) - 1; /* what every reader of JSON can hold */
    } else if (json_is_integer(value)) {
        *seed = (uint64_t)json_integer_value(value);
    } else if (!json_is_string(value) || parse_seed(json_string_value(value), seed)) {
        failed = err_field(err, "seed", "is not a 64-bit integer");
    }
    json_decref(root);
    return failed;
}

char *client_body(const char *body, uint64_t seed)
{
    json_t *root = json_loads(body, 0, NULL);
    CHECK(root);
    json_object_set_new(root, "seed", json_integer((json_int_t)seed));
    json_object_set_new(root, "events", json_pack("[s]", "sample"));
    json_object_set_new(root, "stream", json_true());
    char *text = json_dumps(root, JSON_COMPACT);
    CHECK(text && "out of memory");
    json_decref(root);
    return text;
}

/* ---- events: a member that is missing or of another type reads as nothing */

static const char *text_of(struct arena *a, const json_t *value, size_t *len)
{
    *len = json_string_length(value);
    return arena_strdup(a, *len ? json_string_value(value) : "", *len);
}

static const char *string_of(struct arena *a, const json_t *o, const char *name)
{
    size_t len;
    return text_of(a, json_object_get(o, name), &len);
}

static int int_of(const json_t *o, const char *name)
{
    return (int)json_integer_value(json_object_get(o, name));
}

/* null is minus infinity. */
static double real_of(const json_t *o, const char *name)
{
    const json_t *value = json_object_get(o, name);
    return json_is_number(value) ? json_number_value(value) : -INFINITY;
}

static void read_start(struct event *e, struct arena *a, const json_t *o)
{
    e->type = EVENT_START;
    e->start.id = string_of(a, o, "id");
    e->start.model = string_of(a, o, "model");
    e->start.particles = int_of(o, "particles");
    e->start.prompt_tokens = int_of(o, "prompt_tokens");
    e->start.seed = json_integer_value(json_object_get(o, "seed"));
}

static void read_tokens(struct event *e, struct arena *a, const json_t *o)
{
    const json_t *ids = json_object_get(o, "tokens"), *log_p = json_object_get(o, "token_log_p");
    size_t n = json_array_size(ids);
    int32_t *tokens = ARENA_NEW(a, int32_t, n);
    for (size_t i = 0; i < n; i++)
        tokens[i] = (int32_t)json_integer_value(json_array_get(ids, i));
    e->sample.tokens = tokens;
    e->sample.n_tokens = (int)n;
    if (json_array_size(log_p) != n || n == 0)
        return;
    double *values = ARENA_NEW(a, double, n);
    for (size_t i = 0; i < n; i++) {
        const json_t *value = json_array_get(log_p, i);
        values[i] = json_is_number(value) ? json_number_value(value) : NAN;
    }
    e->sample.token_log_p = values;
}

static void read_holes(struct event *e, struct arena *a, json_t *holes)
{
    const char *name;
    json_t *text;
    struct event_hole *hole = ARENA_NEW(a, struct event_hole, json_object_size(holes));
    e->sample.holes = hole;
    json_object_foreach(holes, name, text)
    {
        hole->name = arena_strdup(a, name, strlen(name));
        hole->text.s = text_of(a, text, &hole->text.len);
        hole++;
        e->sample.n_holes++;
    }
}

static void read_sample(struct event *e, struct arena *a, const json_t *o)
{
    e->type = EVENT_SAMPLE;
    e->sample.index = int_of(o, "index");
    e->sample.text.s = text_of(a, json_object_get(o, "text"), &e->sample.text.len);
    e->sample.log_weight = real_of(o, "log_weight");
    e->sample.weight = real_of(o, "weight");
    e->sample.log_p = real_of(o, "log_p");
    e->sample.log_phi = real_of(o, "log_phi");
    e->sample.stopped = strcmp(string_of(a, o, "finish_reason"), "stop") == 0;
    read_tokens(e, a, o);
    read_holes(e, a, json_object_get(o, "holes"));
}

static void read_done(struct event *e, const json_t *o)
{
    const json_t *usage = json_object_get(o, "usage");
    e->type = EVENT_DONE;
    e->done.kind = JOB_SAMPLE;
    e->done.log_z = real_of(o, "log_z");
    e->done.ess = real_of(o, "ess");
    e->done.prompt_tokens = int_of(usage, "prompt_tokens");
    e->done.completion_tokens = json_integer_value(json_object_get(usage, "completion_tokens"));
}

static void read_error(struct err *err, const json_t *o, const char *otherwise)
{
    const char *message =
        json_string_value(json_object_get(json_object_get(o, "error"), "message"));
    err_set(err, ERR_INTERNAL, "%s", message ? message : otherwise);
}

int client_event(struct event *out, struct arena *a, const char *line, size_t len, struct err *err)
{
    json_t *o = json_loadb(line, len, 0, NULL);
    const char *name = json_string_value(json_object_get(o, "event"));
    int found = 1;
    *out = (struct event){0};
    if (!name) {
        err_set(err, ERR_INTERNAL, "what came is no event");
        found = -1;
    } else if (strcmp(name, "start") == 0) {
        read_start(out, a, o);
    } else if (strcmp(name, "sample") == 0) {
        read_sample(out, a, o);
    } else if (strcmp(name, "done") == 0) {
        read_done(out, o);
    } else if (strcmp(name, "error") == 0) {
        out->type = EVENT_ERROR;
        read_error(&out->error, o, "an error without a message");
    } else {
        found = 0;
    }
    json_decref(o);
    return found;
}

int client_refusal(struct err *err, const char *body, size_t len, long status)
{
    char otherwise[32];
    snprintf(otherwise, sizeof otherwise, "status %ld", status);
    json_t *o = json_loadb(body ? body : "", len, 0, NULL);
    read_error(err, o, otherwise);
    json_decref(o);
    return -1;
}
