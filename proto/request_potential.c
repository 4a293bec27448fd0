/* Potentials. A potential's type picks a row of `types`: the fields it has, and how they
 * become a struct potential. A new type is a row, a table of fields and a function. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../core/potential.h"
#include "../core/tokenizer.h"
#include "draft.h"

enum { TEMPLATE_PLACES_MAX = 16 };

/* No sum of weighted terms may reach infinity by itself. */
#define NUMBER_MAX 1e6

struct potential_draft {
    double weight;
    double soft, log_phi; /* -inf: absent */
    const json_t *text, *bias, *against, *answer, *ids, *class;
    struct text contained, pattern, template, model;
};

#define AT(member)   .offset = offsetof(struct potential_draft, member)
#define COUNT(table) ((int)(sizeof(table) / sizeof *(table)))
/* clang-format off */
#define COMMON                                                                                     \
    FIELD_TYPE,                                                                                    \
    {"weight", FIELD_NUMBER, AT(weight), .min = -NUMBER_MAX, .max = NUMBER_MAX}
/* clang-format on */

static const struct field continuation_fields[] = {
    COMMON,
    {"text", FIELD_ANY, AT(text), .required = true},
};
static const struct field lexicon_fields[] = {
    COMMON,
    {"bias", FIELD_ANY, AT(bias), .required = true},
};
static const struct field contains_fields[] = {
    COMMON,
    {"text", FIELD_TEXT, AT(contained), .required = true},
    {"soft", FIELD_NUMBER, AT(soft), .min = -NUMBER_MAX, .max = NUMBER_MAX},
};
static const struct field regex_fields[] = {
    COMMON,
    {"pattern", FIELD_TEXT, AT(pattern), .required = true},
    {"soft", FIELD_NUMBER, AT(soft), .min = -NUMBER_MAX, .max = NUMBER_MAX},
};
static const struct field judge_fields[] = {
    COMMON,
    {"template", FIELD_TEXT, AT(template), .required = true},
    {"answer", FIELD_ANY, AT(answer), .required = true},
    {"against", FIELD_ANY, AT(against)},
};
static const struct field tokens_fields[] = {
    COMMON,
    {"ids", FIELD_ANY, AT(ids), .required = true},
    {"log_phi", FIELD_NUMBER, AT(log_phi), .min = -NUMBER_MAX, .max = NUMBER_MAX},
};
static const struct field classifier_fields[] = {
    COMMON,
    {"model", FIELD_TEXT, AT(model), .required = true},
    {"class", FIELD_ANY, AT(class), .required = true},
};
static const struct field reward_fields[] = {
    COMMON,
    {"model", FIELD_TEXT, AT(model), .required = true},
};

static int read_continuation(const struct reader *r, struct place at,
                             const struct potential_draft *d, struct potential *out)
{
    out->type = POTENTIAL_CONTINUATION;
    return insert_read(r, place_field(at, "text"), d->text, &out->continuation);
}

static int read_lexicon(const struct reader *r, struct place at, const struct potential_draft *d,
                        struct potential *out)
{
    struct biases list;
    if (biases_read(r, place_field(at, "bias"), d->bias, BIAS_BY_TEXT, &list))
        return -1;
    if (!list.n)
        return err_field(r->err, place_field(at, "bias").s, "is empty");
    out->type = POTENTIAL_LEXICON;
    out->lexicon.id = list.id;
    out->lexicon.bias = list.bias;
    out->lexicon.n = list.n;
    return 0;
}

static int read_contains(const struct reader *r, struct place at, const struct potential_draft *d,
                         struct potential *out)
{
    if (!d->contained.len)
        return err_field(r->err, place_field(at, "text").s, "is empty");
    out->type = POTENTIAL_CONTAINS;
    out->contains.text = arena_strdup(r->arena, d->contained.s, d->contained.len);
    out->contains.len = d->contained.len;
    out->contains.miss = d->soft;
    return 0;
}

static int read_regex(const struct reader *r, struct place at, const struct potential_draft *d,
                      struct potential *out)
{
    struct place here = place_field(at, "pattern");
    size_t max = (size_t)r->info->limits.max_pattern;
    if (d->pattern.len > max)
        return err_field(r->err, here.s, "%zu bytes exceed the limit %zu", d->pattern.len, max);
    out->type = POTENTIAL_REGEX;
    out->regex.miss = d->soft;
    return regex_open(&out->regex.regex, d->pattern.s, d->pattern.len, here.s, r->err);
}

static size_t occurrences(const char *s, size_t len, const char *word)
{
    size_t n = 0;
    for (const char *end = s + len, *at; (at = memmem(s, (size_t)(end - s), word, strlen(word)));) {
        s = at + strlen(word);
        n++;
    }
    return n;
}

/* A template asks about the text, and is not much longer than it when filled in. */
static int check_template(const struct reader *r, struct place at, struct text t)
{
    size_t texts = occurrences(t.s, t.len, "{text}");
    size_t places = texts + occurrences(t.s, t.len, "{prompt}");
    if (!texts)
        return err_field(r->err, at.s, "does not contain {text}");
    if (places > TEMPLATE_PLACES_MAX)
        return err_field(r->err, at.s, "%zu times {text} and {prompt} exceed the limit %d", places,
                         TEMPLATE_PLACES_MAX);
    return 0;
}

static int read_judge(const struct reader *r, struct place at, const struct potential_draft *d,
                      struct potential *out)
{
    struct place against = place_field(at, "against");
    size_t n = json_array_size(d->against), max = (size_t)r->info->limits.max_completions;
    if (check_template(r, place_field(at, "template"), d->template))
        return -1;
    if (d->against && !json_is_array(d->against))
        return wrong_type(r, against, "an array", d->against);
    if (n > max)
        return err_field(r->err, against.s, "%zu texts exceed the limit %zu", n, max);
    struct ids *answer = ARENA_NEW(r->arena, struct ids, n + 1);
    if (insert_read(r, place_field(at, "answer"), d->answer, &answer[0]))
        return -1;
    for (size_t i = 0; i < n; i++)
        if (insert_read(r, place_index(against, i), json_array_get(d->against, i), &answer[i + 1]))
            return -1;
    out->type = POTENTIAL_JUDGE;
    out->judge.template_text = arena_strdup(r->arena, d->template.s, d->template.len);
    out->judge.template_len = d->template.len;
    out->judge.answer = answer;
    out->judge.n_answers = (int)n + 1;
    return 0;
}

static int read_tokens(const struct reader *r, struct place potential,
                       const struct potential_draft *d, struct potential *out)
{
    struct place at = place_field(potential, "ids");
    size_t n = json_array_size(d->ids), max = (size_t)r->info->limits.max_completions;
    if (!json_is_array(d->ids))
        return wrong_type(r, at, "an array of arrays of token ids", d->ids);
    if (!n)
        return err_field(r->err, at.s, "is empty");
    if (n > max)
        return err_field(r->err, at.s, "%zu lists exceed the limit %zu", n, max);
    struct ids *list = ARENA_NEW(r->arena, struct ids, n);
    for (size_t i = 0; i < n; i++) {
        const json_t *value = json_array_get(d->ids, i);
        if (!json_is_array(value))
            return wrong_type(r, place_index(at, i), "an array of token ids", value);
        if (ids_read(r, place_index(at, i), value, &list[i]))
            return -1;
        if (!list[i].n)
            return err_field(r->err, place_index(at, i).s, "is empty");
    }
    out->type = POTENTIAL_TOKENS;
    out->tokens.list = list;
    out->tokens.n = (int)n;
    out->tokens.log_phi = d->log_phi;
    return 0;
}

/* Classifiers and reward models: none can be loaded, so none has this name. */
static int refuse_model(const struct reader *r, struct place at, const struct potential_draft *d,
                        struct potential *out)
{
    (void)out;
    err_field(r->err, place_field(at, "model").s, "no such model is loaded: \"%.80s\"", d->model.s);
    r->err->code = ERR_NOT_FOUND;
    return -1;
}

/* ---- all types ---- */

static const char *const type_names[] = {"continuation", "lexicon",    "contains", "regex", "judge",
                                         "tokens",       "classifier", "reward",   NULL};
static const struct {
    const struct field *fields;
    int n_fields;
    int (*read)(const struct reader *, struct place, const struct potential_draft *,
                struct potential *);
} types[] = {
    /* by type_names */
    {continuation_fields, COUNT(continuation_fields), read_continuation},
    {lexicon_fields, COUNT(lexicon_fields), read_lexicon},
    {contains_fields, COUNT(contains_fields), read_contains},
    {regex_fields, COUNT(regex_fields), read_regex},
    {judge_fields, COUNT(judge_fields), read_judge},
    {tokens_fields, COUNT(tokens_fields), read_tokens},
    {classifier_fields, COUNT(classifier_fields), refuse_model},
    {reward_fields, COUNT(reward_fields), refuse_model},
};

/* Can the prior give this text probability 0? By top-k and top-p any, by a ban those with EOS. */
static bool is_excluded(const struct reader *r, const struct job *j, struct ids text)
{
    if (j->top_k > 0 || j->top_p < 1)
        return true;
    for (int i = 0; i < text.n; i++)
        if ((j->ignore_eos || j->min_tokens) && tokenizer_is_eos(r->info->tokenizer, text.id[i]))
            return true;
    return false;
}

/* Can log φ be -inf? Then a negative weight would make some text infinitely likely. */
static bool can_exclude(const struct reader *r, const struct potential *p, const struct job *j)
{
    switch (p->type) {
    case POTENTIAL_CONTINUATION:
        return is_excluded(r, j, p->continuation);
    case POTENTIAL_JUDGE:
        return is_excluded(r, j, p->judge.answer[0]);
    case POTENTIAL_LEXICON:
        return false;
    case POTENTIAL_CONTAINS:
        return isinf(p->contains.miss);
    case POTENTIAL_REGEX:
        return isinf(p->regex.miss);
    case POTENTIAL_TOKENS:
        return isinf(p->tokens.log_phi);
    }
    return true;
}

/* Can φ exceed 1? */
static bool can_exceed(const struct potential *p)
{
    switch (p->type) {
    case POTENTIAL_CONTINUATION:
    case POTENTIAL_JUDGE:
        return p->weight < 0;
    case POTENTIAL_LEXICON:
        for (int i = 0; i < p->lexicon.n; i++)
            if (p->weight * (double)p->lexicon.bias[i] > 0)
                return true;
        return false;
    case POTENTIAL_CONTAINS:
        return p->weight * p->contains.miss > 0;
    case POTENTIAL_REGEX:
        return p->weight * p->regex.miss > 0;
    case POTENTIAL_TOKENS:
        return p->weight * p->tokens.log_phi > 0;
    }
    return true;
}

static int read_potential(const struct reader *r, struct place at, const json_t *object,
                          struct job *j)
{
    struct potential_draft d = {.weight = 1, .soft = -INFINITY, .log_phi = -INFINITY};
    struct potential *p = &j->potentials[j->n_potentials];
    int type;
    if (type_read(r, at, object, type_names, &type) ||
        fields_read(r, at, object, types[type].fields, types[type].n_fields, &d) ||
        types[type].read(r, at, &d, p))
        return -1;
    p->weight = d.weight;
    j->n_potentials++; /* from here on job_free releases what it holds */
    if (p->weight < 0 && can_exclude(r, p, j))
        return err_field(r->err, place_field(at, "weight").s,
                         "%.15g is negative, but this potential can be 0, and its inverse infinite",
                         p->weight);
    return 0;
}

/* The field is one object or an array of them. */
static size_t count(const json_t *value)
{
    return json_is_array(value) ? json_array_size(value) : value != NULL;
}

static const json_t *element(const json_t *value, size_t i, struct place *at)
{
    const struct place none = {""};
    *at = place_field(none, "potential");
    if (!json_is_array(value))
        return value;
    *at = place_index(*at, i);
    return json_array_get(value, i);
}

int potentials_read(const struct reader *r, const json_t *value, struct job *j)
{
    size_t n = count(value), max = (size_t)r->info->limits.max_potentials;
    if (n > max)
        return err_field(r->err, "potential", "%zu potentials exceed the limit %zu", n, max);
    j->potentials = ARENA_NEW(r->arena, struct potential, n);
    for (size_t i = 0; i < n; i++) {
        struct place at;
        const json_t *object = element(value, i, &at);
        if (read_potential(r, at, object, j))
            return -1;
    }
    return 0;
}

int potentials_bounded(const struct reader *r, const json_t *value, const struct job *j,
                       const char *who)
{
    for (int i = 0; i < j->n_potentials; i++) {
        struct place at;
        element(value, (size_t)i, &at);
        if (can_exceed(&j->potentials[i]))
            return err_field(r->err, at.s, "can exceed 1; %s takes φ for a probability", who);
    }
    return 0;
}

/* ---- do they fit ---- */

/* The template filled in with an empty text, and the longest answer. -1 with err filled when the
 * template cannot be tokenized. */
static int64_t judge_length(const struct reader *r, struct place at, const struct potential *p,
                            const struct job *j)
{
    struct buf filled = {0};
    struct tokens t = {0};
    int longest = 0;
    judge_fill(&filled, p, j->prompt, j->prompt_len, "", 0);
    int flags = TOKENIZE_START | (j->special ? TOKENIZE_SPECIAL : 0);
    int rc = text_encode(r, at, filled.data ? filled.data : "", filled.len, flags, &t);
    for (int i = 0; i < p->judge.n_answers; i++)
        longest = p->judge.answer[i].n > longest ? p->judge.answer[i].n : longest;
    int64_t n = rc ? -1 : t.n + longest;
    free(t.ids);
    buf_free(&filled);
    return n;
}

size_t templates_filled(const struct job *j, size_t n_prompts, size_t prompts_len)
{
    size_t bytes = 0;
    for (int i = 0; i < j->n_potentials; i++) {
        const struct potential *p = &j->potentials[i];
        if (p->type != POTENTIAL_JUDGE)
            continue;
        const char *s = p->judge.template_text;
        size_t len = p->judge.template_len;
        bytes += n_prompts * len + prompts_len * occurrences(s, len, "{prompt}");
    }
    return bytes;
}

static int check_length(const struct reader *r, struct place at, int64_t n)
{
    if (n <= r->info->context)
        return 0;
    return err_field(r->err, at.s,
                     "with it a sequence may have %lld tokens, more than the context of %d",
                     (long long)n, r->info->context);
}

int potentials_fit(const struct reader *r, const json_t *value, const struct job *j,
                   int64_t longest)
{
    for (int i = 0; i < j->n_potentials; i++) {
        const struct potential *p = &j->potentials[i];
        struct place at;
        element(value, (size_t)i, &at);
        struct place text = place_field(at, "text"), template = place_field(at, "template");
        if (p->type == POTENTIAL_CONTINUATION && check_length(r, text, longest + p->continuation.n))
            return -1;
        if (p->type != POTENTIAL_JUDGE)
            continue;
        int64_t n = judge_length(r, template, p, j);
        if (n < 0 || check_length(r, template, n + longest - j->prompt_ids.n))
            return -1;
    }
    return 0;
}
