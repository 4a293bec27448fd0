/* Twists in the answers of /v1/twists, in the manner of OpenAI's lists. */
#include <jansson.h>
#include <stdlib.h>

#include "event_json.h"
#include "json_write.h"

/* As a request would have it. */
static void head_member(struct json *w, const struct twist_spec *s)
{
    bool mlp = s->n_layers > 1;
    json_open(w, "head", '{');
    json_string_member(w, "type", mlp ? "mlp" : "linear");
    if (mlp) {
        json_int_member(w, "hidden", s->hidden);
        json_int_member(w, "layers", s->n_layers);
    }
    json_close(w, '}');
}

static void twist_members(struct json *w, const struct twist_file *f)
{
    const struct twist_spec *s = &f->spec;
    json_string_member(w, "id", s->name);
    json_string_member(w, "object", "twist");
    json_int_member(w, "created", f->created_unix);
    json_clean_member(w, "model", s->model);
    json_string_member(w, "method", twist_method_names[s->method]);
    head_member(w, s);
    json_bool_member(w, "conditional", s->conditional);
    json_bool_member(w, "resample", s->resample);
    json_int_member(w, "max_tokens", s->max_tokens);
    json_int_member(w, "particles", s->particles);
    json_int_member(w, "updates", s->updates);
    json_real_member(w, "learning_rate", s->learning_rate);
    json_int_member(w, "seed", (int64_t)s->seed);
    json_real_member(w, "log_z", s->log_z);
    json_int_member(w, "bytes", (int64_t)f->bytes);
}

void twists_json(struct buf *out, const struct twist_file *list, int n)
{
    struct json w = {.out = out};
    json_open(&w, NULL, '{');
    json_string_member(&w, "object", "list");
    json_open(&w, "data", '[');
    for (int i = 0; i < n; i++) {
        json_open(&w, NULL, '{');
        twist_members(&w, &list[i]);
        json_close(&w, '}');
    }
    json_close(&w, ']');
    json_close(&w, '}');
}

/* The text of a file that somebody may have edited: null if it is not JSON. */
static void request_member(struct json *w, const char *request)
{
    json_t *parsed = json_loads(request, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, NULL);
    char *text = parsed ? json_dumps(parsed, JSON_COMPACT | JSON_REAL_PRECISION(15)) : NULL;
    json_raw_member(w, "request", text ? text : "null");
    free(text);
    json_decref(parsed);
}

static void calibration_member(struct json *w, const struct twist_spec *s)
{
    json_open(w, "calibration", '[');
    for (int t = 0; t < s->max_tokens; t++)
        json_real_member(w, NULL, (double)s->calibration[t]);
    json_close(w, ']');
}

void twist_json(struct buf *out, const struct twist_file *f)
{
    struct json w = {.out = out};
    json_open(&w, NULL, '{');
    twist_members(&w, f);
    if (f->spec.request)
        request_member(&w, f->spec.request);
    if (f->spec.calibration)
        calibration_member(&w, &f->spec);
    json_close(&w, '}');
}

void twist_removed_json(struct buf *out, const char *name)
{
    struct json w = {.out = out};
    json_open(&w, NULL, '{');
    json_clean_member(&w, "id", name);
    json_string_member(&w, "object", "twist");
    json_bool_member(&w, "deleted", true);
    json_close(&w, '}');
}
