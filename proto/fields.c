#include "fields.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../core/tokenizer.h"

struct place place_field(struct place parent, const char *name)
{
    struct place p;
    int n = snprintf(p.s, sizeof p.s, "%s%s%s", parent.s, *parent.s ? "." : "", name);
    CHECK(n >= 0); /* a long name is cut */
    return p;
}

struct place place_index(struct place parent, size_t i)
{
    struct place p;
    int n = snprintf(p.s, sizeof p.s, "%s[%zu]", parent.s, i);
    CHECK(n >= 0);
    return p;
}

/* Without memory jansson says anything: that a good body is none, for one. So it does not go on
 * without. Set before there are threads. */
static void *allocate(size_t bytes)
{
    void *p = malloc(bytes);
    CHECK(p && "out of memory");
    return p;
}

__attribute__((constructor)) static void set_allocator(void)
{
    json_set_alloc_funcs(allocate, free);
}

json_t *body_parse(const char *body, size_t len, struct err *err)
{
    const size_t flags = JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL;
    json_error_t why;
    json_t *object = json_loadb(body, len, flags, &why);
    /* An integer beyond int64 is left to its field to refuse, or to take as a number. */
    if (!object && json_error_code(&why) == json_error_numeric_overflow)
        object = json_loadb(body, len, flags | JSON_DECODE_INT_AS_REAL, &why);
    if (!object) {
        err_set(err, ERR_INVALID, "the body is not JSON: %s (line %d, column %d)", why.text,
                why.line, why.column);
        return NULL;
    }
    if (!json_is_object(object)) {
        json_decref(object);
        err_set(err, ERR_INVALID, "the body is not a JSON object but an array");
        return NULL;
    }
    return object;
}

void json_describe(const json_t *value, char *out, size_t size)
{
    enum { SHOWN = 40 }; /* bytes of a string */
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        snprintf(out, size, "an object");
        break;
    case JSON_ARRAY:
        snprintf(out, size, "an array");
        break;
    case JSON_STRING:
        snprintf(out, size, "the string \"%.*s%s\"", SHOWN, json_string_value(value),
                 json_string_length(value) > SHOWN ? "…" : "");
        break;
    case JSON_INTEGER:
        snprintf(out, size, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
        break;
    case JSON_REAL:
        snprintf(out, size, "%.15g", json_real_value(value));
        break;
    case JSON_TRUE:
        snprintf(out, size, "true");
        break;
    case JSON_FALSE:
        snprintf(out, size, "false");
        break;
    case JSON_NULL:
        snprintf(out, size, "null");
        break;
    }
}

int wrong_type(const struct reader *r, struct place at, const char *expected, const json_t *got)
{
    char is[96];
    json_describe(got, is, sizeof is);
    return err_field(r->err, at.s, "expected %s, got %s", expected, is);
}

bool json_to_integer(const json_t *value, int64_t *out)
{
    if (json_is_integer(value)) {
        *out = json_integer_value(value);
        return true;
    }
    double x = json_is_real(value) ? json_real_value(value) : NAN;
    if (!(x == floor(x)))
        return false;
    *out = x >= 0x1p63 ? INT64_MAX : x < -0x1p63 ? INT64_MIN : (int64_t)x;
    return true;
}

static int read_int(const struct reader *r, struct place at, const struct field *f,
                    const json_t *value, int *out)
{
    int64_t n;
    if (!json_to_integer(value, &n))
        return wrong_type(r, at, "an integer", value);
    const char *limits = (const char *)&r->info->limits;
    int max = f->limit ? *(const int *)(limits + f->limit - 1) : (int)f->max;
    char is[96];
    json_describe(value, is, sizeof is);
    if (n < (int)f->min)
        return err_field(r->err, at.s, "%s is less than %d", is, (int)f->min);
    if (n > max)
        return err_field(r->err, at.s, "%s exceeds the limit %d", is, max);
    *out = (int)n;
    return 0;
}

static int read_number(const struct reader *r, struct place at, const struct field *f,
                       const json_t *value, double *out)
{
    if (!json_is_number(value))
        return wrong_type(r, at, "a number", value);
    double x = json_number_value(value);
    if (x < f->min || x > f->max)
        return err_field(r->err, at.s, "%.15g is not in %g..%g", x, f->min, f->max);
    *out = x;
    return 0;
}

int choice_read(const struct reader *r, struct place at, const json_t *value,
                const char *const *choices, int *out)
{
    char list[256] = "one of";
    for (int i = 0; choices[i]; i++) {
        if (json_is_string(value) && !strcmp(json_string_value(value), choices[i]))
            return *out = i, 0;
        size_t len = strlen(list);
        snprintf(list + len, sizeof list - len, "%s\"%s\"", i ? ", " : " ", choices[i]);
    }
    return wrong_type(r, at, list, value);
}

int type_read(const struct reader *r, struct place at, const json_t *object,
              const char *const *names, int *out)
{
    struct place here = place_field(at, "type");
    if (!json_is_object(object))
        return wrong_type(r, at, "an object", object);
    const json_t *type = json_object_get(object, "type");
    if (!type || json_is_null(type))
        return err_field(r->err, here.s, "is missing");
    return choice_read(r, here, type, names, out);
}

static int read_member(const struct reader *r, struct place at, const struct field *f,
                       const json_t *value, void *member)
{
    switch (f->kind) {
    case FIELD_BOOL:
        if (!json_is_boolean(value))
            return wrong_type(r, at, "true or false", value);
        *(bool *)member = json_is_true(value);
        return 0;
    case FIELD_INT:
        return read_int(r, at, f, value, member);
    case FIELD_NUMBER:
        return read_number(r, at, f, value, member);
    case FIELD_TEXT:
        if (!json_is_string(value))
            return wrong_type(r, at, "a string", value);
        *(struct text *)member = (struct text){json_string_value(value), json_string_length(value)};
        return 0;
    case FIELD_CHOICE:
        return choice_read(r, at, value, f->choices, member);
    case FIELD_ANY:
        *(const json_t **)member = value;
        return 0;
    case FIELD_DONE:
        return 0;
    }
    return -1;
}

static const struct field *find(const struct field *table, int n, const char *name)
{
    for (int i = 0; i < n; i++)
        if (!strcmp(table[i].name, name))
            return &table[i];
    return NULL;
}

static int refuse_unknown(const struct reader *r, struct place at, const struct field *table, int n)
{
    char list[320] = "";
    for (int i = 0; i < n; i++) {
        size_t len = strlen(list);
        snprintf(list + len, sizeof list - len, "%s%s", i ? ", " : "", table[i].name);
    }
    return err_field(r->err, at.s, "unknown field (known: %s)", list);
}

int fields_read(const struct reader *r, struct place at, const json_t *object,
                const struct field *table, int n, void *out)
{
    const char *name;
    json_t *value;
    if (!json_is_object(object))
        return wrong_type(r, at, "an object", object);
    json_object_foreach((json_t *)object, name, value)
    {
        const struct field *f = find(table, n, name);
        struct place here = place_field(at, name);
        if (!f)
            return refuse_unknown(r, here, table, n);
        if (!json_is_null(value) && read_member(r, here, f, value, (char *)out + f->offset))
            return -1;
    }
    for (int i = 0; i < n; i++) {
        value = table[i].required ? json_object_get(object, table[i].name) : NULL;
        if (table[i].required && (!value || json_is_null(value)))
            return err_field(r->err, place_field(at, table[i].name).s, "is missing");
    }
    return 0;
}

int model_text_limit(const struct engine_info *info)
{
    int limit = info->limits.max_prompt_tokens;
    return limit < info->context ? limit : info->context;
}

int id_read(const struct reader *r, struct place at, const json_t *value, int32_t *out)
{
    int64_t id;
    if (!json_to_integer(value, &id))
        return wrong_type(r, at, "a token id", value);
    if (id < 0 || id >= r->info->config.vocab)
        return err_field(r->err, at.s, "%lld is not a token id (0..%d)", (long long)id,
                         r->info->config.vocab - 1);
    *out = (int32_t)id;
    return 0;
}

int ids_read(const struct reader *r, struct place at, const json_t *array, struct ids *out)
{
    size_t n = json_array_size(array), max = (size_t)model_text_limit(r->info);
    if (n > max)
        return err_field(r->err, at.s, "%zu tokens exceed the limit %zu", n, max);
    int32_t *id = ARENA_NEW(r->arena, int32_t, n);
    for (size_t i = 0; i < n; i++)
        if (id_read(r, place_index(at, i), json_array_get(array, i), &id[i]))
            return -1;
    *out = (struct ids){id, (int)n};
    return 0;
}

size_t longest_piece(const struct tokenizer *t)
{
    size_t longest = 1;
    for (int32_t id = 0; id < tokenizer_vocab(t); id++) {
        size_t len, special_len;
        tokenizer_piece(t, id, &len);
        tokenizer_piece_special(t, id, &special_len);
        longest = len > longest ? len : longest;
        longest = special_len > longest ? special_len : longest;
    }
    return longest;
}

int text_encode(const struct reader *r, struct place at, const char *text, size_t len, int flags,
                struct tokens *out)
{
    struct err why;
    if (!tokenizer_encode(r->info->tokenizer, text, len, flags, out, &why))
        return 0;
    return err_field(r->err, at.s, "%s", why.msg);
}

static int encode_text(const struct reader *r, struct place at, const json_t *string, int flags,
                       struct ids *out)
{
    const char *text = json_string_value(string);
    size_t len = json_string_length(string), max = (size_t)model_text_limit(r->info);
    /* A text that cannot fit is refused unread: tokenizing megabytes would hold up others. */
    if (len > max && len / longest_piece(r->info->tokenizer) > max)
        return err_field(r->err, at.s, "%zu bytes exceed the limit of %zu tokens", len, max);
    struct tokens t = {0};
    int rc = text_encode(r, at, text, len, flags | (r->special ? TOKENIZE_SPECIAL : 0), &t);
    if (!rc && (size_t)t.n > max)
        rc = err_field(r->err, at.s, "%d tokens exceed the limit %zu", t.n, max);
    if (!rc) {
        int32_t *id = ARENA_NEW(r->arena, int32_t, t.n);
        if (t.n)
            memcpy(id, t.ids, sizeof *id * (size_t)t.n);
        *out = (struct ids){id, t.n};
    }
    free(t.ids);
    return rc;
}

int model_text_read(const struct reader *r, struct place at, const json_t *value, int flags,
                    struct ids *out)
{
    if (json_is_string(value))
        return encode_text(r, at, value, flags, out);
    if (json_is_array(value))
        return ids_read(r, at, value, out);
    return wrong_type(r, at, "a string or an array of token ids", value);
}

int insert_read(const struct reader *r, struct place at, const json_t *value, struct ids *out)
{
    if (model_text_read(r, at, value, 0, out))
        return -1;
    return out->n ? 0 : err_field(r->err, at.s, "is empty");
}
