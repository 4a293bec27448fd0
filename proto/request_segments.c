/* Segments: text, observed text and holes; and the one hole of a request without them. */
#include <string.h>

#include "draft.h"

enum { MAX_STOPS = 8, MAX_STOP_BYTES = 1024, MAX_NAME_BYTES = 64, HOLE_MAX_TOKENS = 64 };

static int read_stop_string(const struct reader *r, struct place at, const json_t *value,
                            const char **stop, size_t *len)
{
    if (!json_is_string(value))
        return wrong_type(r, at, "a string", value);
    *len = json_string_length(value);
    if (!*len)
        return err_field(r->err, at.s, "is empty");
    if (*len > MAX_STOP_BYTES)
        return err_field(r->err, at.s, "%zu bytes exceed the limit %d", *len, MAX_STOP_BYTES);
    *stop = arena_strdup(r->arena, json_string_value(value), *len);
    return 0;
}

static int read_stop(const struct reader *r, struct place at, const json_t *value,
                     struct segment *s)
{
    if (!value)
        return 0;
    bool one = json_is_string(value);
    if (!one && !json_is_array(value))
        return wrong_type(r, at, "a string or an array of strings", value);
    size_t n = one ? 1 : json_array_size(value);
    if (n > MAX_STOPS)
        return err_field(r->err, at.s, "%zu strings exceed the limit %d", n, MAX_STOPS);
    const char **stop = ARENA_NEW(r->arena, const char *, n);
    size_t *len = ARENA_NEW(r->arena, size_t, n);
    for (size_t i = 0; i < n; i++)
        if (read_stop_string(r, one ? at : place_index(at, i),
                             one ? value : json_array_get(value, i), &stop[i], &len[i]))
            return -1;
    s->stop = stop;
    s->stop_len = len;
    s->n_stop = (int)n;
    return 0;
}

struct segment_draft {
    const json_t *text, *stop;
    struct text name;
    int max_tokens;
};
#define AT(member) .offset = offsetof(struct segment_draft, member)

static const struct field text_fields[] = {{"text", FIELD_ANY, AT(text)}};
static const struct field observe_fields[] = {{"observe", FIELD_ANY, AT(text)}};
static const struct field sample_fields[] = {
    {"sample", FIELD_TEXT, AT(name)},
    {"max_tokens", FIELD_INT, AT(max_tokens), .min = 1, FIELD_LIMIT(max_tokens)},
    {"stop", FIELD_ANY, AT(stop)},
};

/* By enum segment_type; the first field of each is the one that tells it from the others. */
static const struct {
    const struct field *fields;
    int n;
} forms[] = {{text_fields, 1}, {observe_fields, 1}, {sample_fields, 3}};

static int find_form(const struct reader *r, struct place at, const json_t *o,
                     enum segment_type *out)
{
    int found = 0;
    for (int i = 0; i < 3; i++) {
        const json_t *value = json_object_get(o, forms[i].fields[0].name);
        if (!value || json_is_null(value))
            continue;
        *out = (enum segment_type)i;
        found++;
    }
    if (found != 1)
        return err_field(r->err, at.s, "has %s \"text\", \"observe\" and \"sample\"",
                         found ? "more than one of" : "none of");
    return 0;
}

static int read_name(const struct reader *r, struct place at, struct text name,
                     const struct segment *before, int n_before, struct segment *out)
{
    if (!name.len)
        return err_field(r->err, at.s, "is empty");
    if (name.len > MAX_NAME_BYTES)
        return err_field(r->err, at.s, "%zu bytes exceed the limit %d", name.len, MAX_NAME_BYTES);
    if (strlen(name.s) != name.len)
        return err_field(r->err, at.s, "holds a NUL byte");
    for (int i = 0; i < n_before; i++)
        if (before[i].type == SEGMENT_SAMPLE && !strcmp(before[i].name, name.s))
            return err_field(r->err, at.s, "\"%s\" is the name of two holes", name.s);
    out->name = arena_strdup(r->arena, name.s, name.len);
    return 0;
}

static int read_segment(const struct reader *r, struct place at, const json_t *o,
                        const struct segment *before, int n_before, struct segment *out)
{
    struct segment_draft d = {.max_tokens = HOLE_MAX_TOKENS};
    if (!json_is_object(o))
        return wrong_type(r, at, "an object", o);
    if (find_form(r, at, o, &out->type) ||
        fields_read(r, at, o, forms[out->type].fields, forms[out->type].n, &d))
        return -1;
    struct place main_field = place_field(at, forms[out->type].fields[0].name);
    if (out->type != SEGMENT_SAMPLE)
        return insert_read(r, main_field, d.text, &out->ids);
    out->max_tokens = d.max_tokens;
    if (read_name(r, main_field, d.name, before, n_before, out))
        return -1;
    return read_stop(r, place_field(at, "stop"), d.stop, out);
}

static int check_holes(const struct reader *r, struct place at, const struct job *j)
{
    int64_t drawn = segments_drawn(j);
    if (!drawn)
        return err_field(r->err, at.s, "needs at least one {\"sample\": name}");
    if (drawn > r->info->limits.max_tokens)
        return err_field(r->err, at.s, "%lld tokens in all holes exceed the limit %d",
                         (long long)drawn, r->info->limits.max_tokens);
    return 0;
}

static int read_array(const struct reader *r, struct place at, const json_t *value, struct job *j)
{
    if (!json_is_array(value))
        return wrong_type(r, at, "an array", value);
    size_t n = json_array_size(value), max = (size_t)r->info->limits.max_segments;
    if (n > max)
        return err_field(r->err, at.s, "%zu segments exceed the limit %zu", n, max);
    j->segments = ARENA_NEW(r->arena, struct segment, n);
    for (size_t i = 0; i < n; i++)
        if (read_segment(r, place_index(at, i), json_array_get(value, i), j->segments, (int)i,
                         &j->segments[i]))
            return -1;
    j->n_segments = (int)n;
    j->named_holes = true;
    return check_holes(r, at, j);
}

int segments_read(const struct reader *r, const struct draft *d, struct job *j)
{
    const struct place none = {""};
    if (d->segments && d->stop)
        return err_field(r->err, "stop", "cannot be combined with segments; give it to a hole");
    if (d->segments && d->max_tokens)
        return err_field(r->err, "max_tokens",
                         "cannot be combined with segments; give it to a hole");
    if (d->segments)
        return read_array(r, place_field(none, "segments"), d->segments, j);
    j->segments = ARENA_NEW(r->arena, struct segment, 1);
    j->n_segments = 1;
    j->segments[0].type = SEGMENT_SAMPLE;
    j->segments[0].max_tokens = d->max_tokens ? d->max_tokens : HOLE_MAX_TOKENS;
    return read_stop(r, place_field(none, "stop"), d->stop, &j->segments[0]);
}

int64_t segments_drawn(const struct job *j)
{
    int64_t n = 0;
    for (int i = 0; i < j->n_segments; i++)
        n += j->segments[i].type == SEGMENT_SAMPLE ? j->segments[i].max_tokens : 0;
    return n;
}

int64_t segments_length(const struct job *j)
{
    int64_t n = 0;
    for (int i = 0; i < j->n_segments; i++) {
        const struct segment *s = &j->segments[i];
        n += s->type == SEGMENT_SAMPLE ? s->max_tokens : s->ids.n;
    }
    return n;
}
