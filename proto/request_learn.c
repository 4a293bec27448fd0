/* POST /v1/twists: what a twist is to be, and how it is to be learned. */
#include <stdlib.h>
#include <string.h>

#include "draft.h"

#define COUNT(table) ((int)(sizeof(table) / sizeof *(table)))

enum { PROMPTS_MAX = 1024, UPDATES_MAX = 1000000 };

static const char *const methods[] = {"ctl", "rl", "sixo", "fudge", "dpg", NULL}; /* as enum */

static const struct field learn_fields[] = {
    TARGET_FIELDS,
    POPULATION_FIELDS(2, 1),
    {"name", FIELD_TEXT, DRAFT(name), .required = true},
    {"prompts", FIELD_ANY, DRAFT(prompts)},
    {"head", FIELD_ANY, DRAFT(head)},
    {"method", FIELD_CHOICE, DRAFT(method), .choices = methods},
    {"updates", FIELD_INT, DRAFT(updates), .min = 1, .max = UPDATES_MAX},
    {"learning_rate", FIELD_NUMBER, DRAFT(learning_rate), .min = 1e-9, .max = 10},
    {"targets", FIELD_ANY, DRAFT(targets)},
    {"condition", FIELD_ANY, DRAFT(condition)},
    {"checkpoint", FIELD_INT, DRAFT(checkpoint), .min = 0, .max = UPDATES_MAX},
    {"bounds", FIELD_INT, DRAFT(bounds), .min = 0, .max = UPDATES_MAX},
};

/* ---- prompts ---- */

/* Prompt i's place: of "prompts", or the one "prompt". */
static struct place prompt_place(const struct draft *d, int i)
{
    return d->prompts ? place_index(top("prompts"), (size_t)i) : top("prompt");
}

/* How many; 0 with err filled. */
static int count_prompts(const struct reader *r, const struct draft *d)
{
    size_t n = json_array_size(d->prompts);
    if (!d->prompts)
        return 1;
    if (d->prompt)
        err_field(r->err, "prompt", "cannot be combined with prompts");
    else if (!json_is_array(d->prompts))
        wrong_type(r, top("prompts"), "an array of strings or arrays of token ids", d->prompts);
    else if (!n)
        err_field(r->err, "prompts", "is empty");
    else if (n > PROMPTS_MAX)
        err_field(r->err, "prompts", "%zu texts exceed the limit %d", n, PROMPTS_MAX);
    else
        return (int)n;
    return 0;
}

/* Make prompt i the job's own. */
static void set_prompt(struct job *j, int i)
{
    const struct learn *l = &j->learn;
    prompt_set(j, &(struct prompt){l->prompts[i], l->prompt_text[i], l->prompt_text_len[i]});
}

static int read_prompts(const struct reader *r, const struct draft *d, struct job *j)
{
    struct learn *l = &j->learn;
    int n = count_prompts(r, d);
    if (!n)
        return -1;
    l->prompts = ARENA_NEW(r->arena, struct ids, n);
    l->prompt_text = ARENA_NEW(r->arena, const char *, n);
    l->prompt_text_len = ARENA_NEW(r->arena, size_t, n);
    for (int i = 0; i < n; i++) {
        const json_t *value = d->prompts ? json_array_get(d->prompts, (size_t)i) : d->prompt;
        struct prompt p;
        if (prompt_read(r, prompt_place(d, i), value, &p))
            return -1;
        l->prompts[i] = p.ids;
        l->prompt_text[i] = p.text;
        l->prompt_text_len[i] = p.len;
    }
    l->n_prompts = n;
    set_prompt(j, 0);
    return 0;
}

/* Every prompt fills in every template, to be tokenized: no more text than a request may have. */
static int check_templates(const struct reader *r, const struct job *j)
{
    size_t prompts = 0, max = r->info->limits.max_body;
    for (int i = 0; i < j->learn.n_prompts; i++)
        prompts += j->learn.prompt_text_len[i];
    size_t filled = templates_filled(j, (size_t)j->learn.n_prompts, prompts);
    if (filled <= max)
        return 0;
    return err_field(r->err, "potential",
                     "templates of %zu bytes, filled in with %d prompts, exceed the limit %zu",
                     filled, j->learn.n_prompts, max);
}

/* Does every prompt fit? The potentials look at the job's own, so each is that for a moment. */
static int check_fit(const struct reader *r, const struct draft *d, struct job *j)
{
    int64_t longest = segments_length(j) + j->learn.condition_tokens;
    struct place why = top(d->condition ? "condition.tokens" : "max_tokens");
    if (check_templates(r, j))
        return -1;
    for (int i = j->learn.n_prompts - 1; i >= 0; i--) {
        set_prompt(j, i);
        if (fit_check(r, d, j, prompt_place(d, i), longest, why))
            return -1;
    }
    return 0;
}

/* ---- the head ---- */

struct head_draft {
    int hidden, layers;
};
static const struct field linear_fields[] = {FIELD_TYPE};
static const struct field mlp_fields[] = {
    FIELD_TYPE,
    {"hidden", FIELD_INT, offsetof(struct head_draft, hidden), .min = 1, .max = TWIST_HIDDEN_MAX},
    {"layers", FIELD_INT, offsetof(struct head_draft, layers), .min = 2, .max = TWIST_LAYERS_MAX},
};

static int read_head(const struct reader *r, const json_t *value, struct twist_spec *s)
{
    static const char *const types[] = {"linear", "mlp", NULL};
    struct head_draft d = {.hidden = 768, .layers = 3};
    struct place at = top("head");
    int mlp = false;
    if (value && (type_read(r, at, value, types, &mlp) ||
                  fields_read(r, at, value, mlp ? mlp_fields : linear_fields,
                              mlp ? COUNT(mlp_fields) : COUNT(linear_fields), &d)))
        return -1;
    s->n_layers = mlp ? d.layers : 1;
    s->hidden = mlp ? d.hidden : 0;
    return 0;
}

/* ---- what it learns from ---- */

struct condition_draft {
    int tokens, batch;
};
static const struct field condition_fields[] = {
    {"tokens", FIELD_INT, offsetof(struct condition_draft, tokens), .min = 1,
     FIELD_LIMIT(max_tokens), .required = true},
    {"batch", FIELD_INT, offsetof(struct condition_draft, batch), .min = 1,
     FIELD_LIMIT(max_particles)},
};

/* A conditional twist learns p(ending | text), for endings that the prior itself draws. */
static int read_condition(const struct reader *r, const struct draft *d, struct job *j)
{
    struct condition_draft c = {.batch = 8};
    struct place at = top("condition");
    if (fields_read(r, at, d->condition, condition_fields, COUNT(condition_fields), &c))
        return -1;
    if (d->method != TWIST_CTL)
        return err_field(r->err, "method", "\"%s\" does not learn conditional twists, \"ctl\" does",
                         methods[d->method]);
    if (j->n_potentials)
        return err_field(r->err, "potential",
                         "cannot be combined with condition, whose ending is the potential");
    if (d->targets)
        return err_field(r->err, "targets", "cannot be combined with condition");
    if (2 * c.batch > j->particles)
        return err_field(r->err, "condition.batch",
                         "%d endings share %d particles; each needs at least 2", c.batch,
                         j->particles);
    j->learn.condition_tokens = c.tokens;
    j->learn.condition_batch = c.batch;
    return 0;
}

/* A twist for one potential. */
static int read_positives(const struct reader *r, const struct draft *d, struct job *j)
{
    if (!j->n_potentials)
        return err_field(r->err, "potential", "is missing");
    if (d->method == TWIST_FUDGE && potentials_bounded(r, d->potential, j, "fudge"))
        return -1;
    if (d->method == TWIST_FUDGE && d->targets)
        return err_field(r->err, "targets", "\"fudge\" learns from draws of the prior alone");
    if (d->targets && j->learn.n_prompts > 1)
        return err_field(r->err, "targets", "belong to one prompt, and there are %d",
                         j->learn.n_prompts);
    return targets_read(r, d, j);
}

/* ---- the spec ---- */

/* The request as it was made, but for absent fields and those that change nothing in the twist. */
static const char *provenance(const struct reader *r, const json_t *body)
{
    static const char *const others[] = {"stream", "checkpoint", "bounds"};
    json_t *kept = json_object(), *value;
    const char *name;
    json_object_foreach((json_t *)body, name, value) if (!json_is_null(value))
        json_object_set(kept, name, value);
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        json_object_del(kept, others[i]);
    char *text = json_dumps(kept, JSON_COMPACT | JSON_SORT_KEYS | JSON_REAL_PRECISION(15));
    CHECK(text && "out of memory");
    const char *out = arena_strdup(r->arena, text, strlen(text));
    free(text);
    json_decref(kept);
    return out;
}

static int read_spec(const struct reader *r, const struct draft *d, const struct job *j,
                     struct twist_spec *s)
{
    const char *name;
    if (twist_name_read(r, top("name"), d->name, &name) || read_head(r, d->head, s))
        return -1;
    snprintf(s->name, sizeof s->name, "%s", name);
    snprintf(s->model, sizeof s->model, "%s", r->info->model);
    snprintf(s->fingerprint, sizeof s->fingerprint, "%s", r->info->fingerprint);
    s->dim = r->info->config.dim;
    s->vocab = r->info->config.vocab;
    s->method = (enum twist_method)d->method;
    s->conditional = d->condition;
    s->log_sigmoid = s->method == TWIST_FUDGE;
    s->resample = s->method != TWIST_DPG;
    s->max_tokens = j->segments[0].max_tokens;
    s->particles = j->particles;
    s->updates = d->updates;
    s->learning_rate = d->learning_rate;
    s->seed = j->seed;
    s->request = provenance(r, d->body);
    return 0;
}

static int make_learn(const struct reader *r, const struct draft *d, struct job *j)
{
    struct learn *l = &j->learn;
    if (!*r->info->twist_dir)
        return err_set(r->err, ERR_INVALID, "this server has no folder to keep twists in");
    j->ess_threshold = 0;
    if (read_prompts(r, d, j) || target_read(r, d, j) || population_read(r, d, j) ||
        read_spec(r, d, j, &l->spec))
        return -1;
    if (d->condition ? read_condition(r, d, j) : read_positives(r, d, j))
        return -1;
    l->checkpoint = d->checkpoint;
    l->bounds = d->bounds < 0 ? (d->updates + 9) / 10 : d->bounds;
    return check_fit(r, d, j);
}

int request_learn(struct job **out, struct request_opts *opts, const char *body, size_t len,
                  const struct engine_info *info, struct err *err)
{
    static const struct request_form form = {learn_fields,
                                             COUNT(learn_fields),
                                             .defaults = {.temperature = 1,
                                                          .top_p = 1,
                                                          .particles = 64,
                                                          .updates = 100,
                                                          .learning_rate = 1e-4,
                                                          .bounds = -1,
                                                          .stream = true},
                                             .make = make_learn,
                                             .kind = JOB_LEARN,
                                             .prefix = "lrn"};
    return request_read(&form, out, opts, body, len, info, err);
}
