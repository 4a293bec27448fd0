/* Objects from tokens to numbers: logit_bias, and the bias of a lexicon. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../core/tokenizer.h"
#include "draft.h"

/* No sum of these may reach infinity. */
#define BIAS_MAX 1e6

struct entry {
    int32_t id;
    double value;
};

static int by_id(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;
    return (x->id > y->id) - (x->id < y->id);
}

static bool is_number(const char *s)
{
    return *s && !s[strspn(s, "0123456789")];
}

static int read_id(const struct reader *r, struct place at, const char *key, const char *digits,
                   int32_t *id)
{
    int vocab = r->info->config.vocab;
    long n = strlen(digits) < 10 && is_number(digits) ? strtol(digits, NULL, 10) : vocab;
    *id = (int32_t)n;
    return n < vocab ? 0
                     : err_field(r->err, at.s, "\"%.40s\" is not a token (0..%d)", key, vocab - 1);
}

static int read_text(const struct reader *r, struct place at, const char *key, int32_t *id)
{
    struct tokens t = {0};
    int rc = text_encode(r, at, key, strlen(key), r->special ? TOKENIZE_SPECIAL : 0, &t);
    if (!rc && t.n != 1)
        rc = err_field(r->err, at.s,
                       "\"%.40s\" is %d tokens, not one (\"#id\" is a token by its id)", key, t.n);
    if (!rc)
        *id = t.ids[0];
    free(t.ids);
    return rc;
}

static int read_key(const struct reader *r, struct place at, enum bias_keys keys, const char *key,
                    int32_t *id)
{
    if (keys == BIAS_BY_ID)
        return read_id(r, at, key, key, id);
    if (*key == '#' && is_number(key + 1))
        return read_id(r, at, key, key + 1, id);
    return read_text(r, at, key, id);
}

static int read_entries(const struct reader *r, struct place at, const json_t *object,
                        enum bias_keys keys, struct entry *list)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)object, key, value)
    {
        struct place here = place_field(at, key);
        double x = json_number_value(value);
        if (!json_is_number(value))
            return wrong_type(r, here, "a number", value);
        if (fabs(x) > BIAS_MAX)
            return err_field(r->err, here.s, "%.15g is not in %g..%g", x, -BIAS_MAX, BIAS_MAX);
        if (read_key(r, at, keys, key, &list->id))
            return -1;
        list++->value = x;
    }
    return 0;
}

/* Ascending and distinct: two keys of one token add up. Returns what is left of n. */
static int merge(struct entry *list, int n)
{
    int kept = 0;
    qsort(list, (size_t)n, sizeof *list, by_id);
    for (int i = 0; i < n; i++)
        if (kept && list[kept - 1].id == list[i].id)
            list[kept - 1].value += list[i].value;
        else
            list[kept++] = list[i];
    return kept;
}

int biases_read(const struct reader *r, struct place at, const json_t *object, enum bias_keys keys,
                struct biases *out)
{
    if (!json_is_object(object))
        return wrong_type(r, at, "an object from tokens to numbers", object);
    int n = (int)json_object_size(object);
    struct entry *list = ARENA_NEW(r->arena, struct entry, n);
    if (read_entries(r, at, object, keys, list))
        return -1;
    n = merge(list, n);
    int32_t *id = ARENA_NEW(r->arena, int32_t, n);
    float *bias = ARENA_NEW(r->arena, float, n);
    for (int i = 0; i < n; i++) {
        id[i] = list[i].id;
        bias[i] = (float)list[i].value;
    }
    *out = (struct biases){id, bias, n};
    return 0;
}
