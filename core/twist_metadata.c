#include <assert.h>
#include <errno.h>
#include <float.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../kernels/backend.h"
#include "twist_impl.h"
#include "utf8.h"

/* A file's metadata are texts alone. One table says how each member of a spec is written, read and
 * what it may be. */

static const char format[] = "clotho-twist-1";

const char *const twist_method_names[5] = {"ctl", "rl", "sixo", "fudge", "dpg"};
static const char *const yes_no[] = {"false", "true"};
static const char *const activations[] = {"none", "log_sigmoid"};

enum kind { TEXT, COUNT, REAL, SEED, FLAG, METHOD };

#define AT(member)       offsetof(struct twist_spec, member)
#define TEXT_MAX(member) (sizeof((struct twist_spec *)0)->member - 1)

static const struct field {
    const char *key;
    enum kind kind;
    size_t offset;
    double min, max;          /* of a number; bytes of a text */
    const char *const *words; /* for the numbers 0, 1, … of a flag or method */
} fields[] = {
    {"model", TEXT, AT(model), 0, TEXT_MAX(model), NULL},
    {"fingerprint", TEXT, AT(fingerprint), 0, TEXT_MAX(fingerprint), NULL},
    {"dim", COUNT, AT(dim), 1, TWIST_DIM_MAX, NULL},
    {"vocab", COUNT, AT(vocab), 1, PROPOSE_VOCAB_MAX, NULL},
    {"layers", COUNT, AT(n_layers), 1, TWIST_LAYERS_MAX, NULL},
    {"hidden", COUNT, AT(hidden), 0, TWIST_HIDDEN_MAX, NULL},
    {"conditional", FLAG, AT(conditional), 0, 1, yes_no},
    {"activation", FLAG, AT(log_sigmoid), 0, 1, activations},
    {"resample", FLAG, AT(resample), 0, 1, yes_no},
    {"max_tokens", COUNT, AT(max_tokens), 1, INT_MAX, NULL},
    {"method", METHOD, AT(method), 0, TWIST_DPG, twist_method_names},
    {"particles", COUNT, AT(particles), 0, INT_MAX, NULL},
    {"updates", COUNT, AT(updates), 0, INT_MAX, NULL},
    {"learning_rate", REAL, AT(learning_rate), 0, DBL_MAX, NULL},
    {"seed", SEED, AT(seed), 0, (double)UINT64_MAX, NULL},
    {"log_z", REAL, AT(log_z), -INFINITY, DBL_MAX, NULL},
};

enum { N_FIELDS = sizeof fields / sizeof *fields };
static_assert(N_FIELDS + 2 == TWIST_TEXTS_MAX, "format, the fields, request");

/* What a member's range is about. */
static double magnitude(const struct field *f, const struct twist_spec *spec)
{
    const void *member = (const char *)spec + f->offset;
    switch (f->kind) {
    case TEXT:
        return (double)strlen(member);
    case COUNT:
        return *(const int *)member;
    case REAL:
        return *(const double *)member;
    case SEED:
        return (double)*(const uint64_t *)member;
    case FLAG:
        return *(const bool *)member;
    case METHOD:
        return *(const enum twist_method *)member;
    }
    return NAN;
}

const char *twist_fault(const struct twist_spec *spec)
{
    for (int i = 0; i < N_FIELDS; i++) {
        double x = magnitude(&fields[i], spec);
        if (!(x >= fields[i].min && x <= fields[i].max)) /* NaN is not */
            return fields[i].key;
    }
    return spec->n_layers > 1 && spec->hidden == 0 ? "hidden" : NULL;
}

/* ---- writing ---- */

/* The fewest digits that give the same number again. */
static const char *real_text(double x, struct arena *a)
{
    char text[32];
    int n = 0;
    for (int digits = 15; digits <= 17; digits++) {
        n = snprintf(text, sizeof text, "%.*g", digits, x);
        if (strtod(text, NULL) == x)
            break;
    }
    return arena_strdup(a, text, (size_t)n);
}

static const char *integer_text(uint64_t x, struct arena *a)
{
    char text[24];
    int n = snprintf(text, sizeof text, "%llu", (unsigned long long)x);
    return arena_strdup(a, text, (size_t)n);
}

/* UTF-8 of at most max bytes: people may call a model by any bytes. */
static const char *utf8_text(const char *s, size_t max, struct arena *a)
{
    struct buf clean = {0};
    utf8_sanitize(&clean, s, strlen(s));
    size_t n = clean.len <= max ? clean.len : utf8_complete(clean.data, max);
    const char *text = n ? arena_strdup(a, clean.data, n) : "";
    buf_free(&clean);
    return text;
}

static const char *member_text(const struct field *f, const struct twist_spec *spec,
                               struct arena *a)
{
    const void *member = (const char *)spec + f->offset;
    switch (f->kind) {
    case TEXT:
        return utf8_text(member, (size_t)f->max, a);
    case COUNT:
        return integer_text((uint64_t) * (const int *)member, a);
    case REAL:
        return real_text(*(const double *)member, a);
    case SEED:
        return integer_text(*(const uint64_t *)member, a);
    case FLAG:
    case METHOD:
        return f->words[(int)magnitude(f, spec)];
    }
    return NULL;
}

int twist_texts(const struct twist_spec *spec, struct arena *a,
                struct safetensors_text out[TWIST_TEXTS_MAX])
{
    int n = 0;
    out[n++] = (struct safetensors_text){"format", format};
    for (int i = 0; i < N_FIELDS; i++)
        out[n++] = (struct safetensors_text){fields[i].key, member_text(&fields[i], spec, a)};
    if (spec->request)
        out[n++] = (struct safetensors_text){"request", utf8_text(spec->request, SIZE_MAX, a)};
    return n;
}

/* ---- reading ---- */

static bool parse_text(const char *text, size_t max, char *out)
{
    size_t n = strlen(text);
    if (n > max)
        return false;
    memcpy(out, text, n + 1);
    return true;
}

static bool parse_count(const char *text, int *out)
{
    char *end;
    long x = strtol(text, &end, 10);
    if (*end || x < INT_MIN || x > INT_MAX)
        return false;
    *out = (int)x;
    return true;
}

static bool parse_real(const char *text, double *out)
{
    char *end;
    *out = strtod(text, &end);
    return !*end;
}

static bool parse_seed(const char *text, uint64_t *out)
{
    char *end;
    errno = 0;
    *out = strtoull(text, &end, 10);
    return !*end && !errno && *text != '-';
}

/* The number of a word, or -1. */
static int parse_word(const char *text, const struct field *f)
{
    for (int i = 0; i <= (int)f->max; i++)
        if (!strcmp(text, f->words[i]))
            return i;
    return -1;
}

static bool parse_member(const struct field *f, const char *text, struct twist_spec *spec)
{
    void *member = (char *)spec + f->offset;
    int word = f->words ? parse_word(text, f) : 0;
    if (f->kind == TEXT)
        return parse_text(text, (size_t)f->max, member);
    if (word < 0 || !*text || *text == ' ')
        return false;
    if (f->kind == COUNT)
        return parse_count(text, member);
    if (f->kind == REAL)
        return parse_real(text, member);
    if (f->kind == SEED)
        return parse_seed(text, member);
    if (f->kind == FLAG)
        *(bool *)member = word;
    if (f->kind == METHOD)
        *(enum twist_method *)member = (enum twist_method)word;
    return true;
}

static int refuse(const char *path, const char *key, const char *text, struct err *err)
{
    return err_set(err, ERR_FILE, "%s: \"%s\" cannot be \"%.40s\"", path, key, text);
}

int twist_read_texts(struct twist_spec *out, const struct safetensors *file, const char *path,
                     struct err *err)
{
    const char *text = safetensors_metadata(file, "format");
    if (!text || strcmp(text, format) != 0)
        return err_set(err, ERR_FILE, "%s: not a twist: its \"format\" is not \"%s\"", path,
                       format);
    for (int i = 0; i < N_FIELDS; i++) {
        text = safetensors_metadata(file, fields[i].key);
        if (!text)
            return err_set(err, ERR_FILE, "%s: the metadata lack \"%s\"", path, fields[i].key);
        if (!parse_member(&fields[i], text, out))
            return refuse(path, fields[i].key, text, err);
    }
    out->request = safetensors_metadata(file, "request");
    const char *fault = twist_fault(out);
    return fault ? refuse(path, fault, safetensors_metadata(file, fault), err) : 0;
}
