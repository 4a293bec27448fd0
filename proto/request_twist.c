/* Twists: what guides particles, and whether tokens are drawn from it too. */
#include <string.h>

#include "draft.h"

enum { PROPOSAL_AUTO, PROPOSAL_BASE, PROPOSAL_TWIST };
const char *const proposal_names[] = {"auto", "base", "twist", NULL};

struct twist_draft {
    int every;
    double power;
    struct text name;
    const json_t *condition;
};
#define AT(member)   .offset = offsetof(struct twist_draft, member)
#define COUNT(table) ((int)(sizeof(table) / sizeof *(table)))

static const struct field no_fields[] = {FIELD_TYPE};
static const struct field potential_fields[] = {
    FIELD_TYPE,
    {"every", FIELD_INT, AT(every), .min = 1, FIELD_LIMIT(max_tokens)},
    {"power", FIELD_NUMBER, AT(power), .min = 0, .max = 1000},
};
static const struct field learned_fields[] = {
    FIELD_TYPE,
    {"name", FIELD_TEXT, AT(name), .required = true},
    {"condition", FIELD_ANY, AT(condition)},
};

static const char *const type_names[] = {"none", "factor", "potential", "learned", NULL};
static const struct {
    const struct field *fields;
    int n;
} types[] = {
    /* by type_names, as enum twist_type */
    {no_fields, COUNT(no_fields)},
    {no_fields, COUNT(no_fields)},
    {potential_fields, COUNT(potential_fields)},
    {learned_fields, COUNT(learned_fields)},
};

int twist_name_read(const struct reader *r, struct place at, struct text name, const char **out)
{
    *out = arena_strdup(r->arena, name.s, name.len);
    if (strlen(*out) == name.len && twist_name_ok(*out))
        return 0;
    return err_field(r->err, at.s,
                     "\"%.80s\" is not a name: at most %d letters, digits, \".\", \"_\" and \"-\", "
                     "the first a letter or digit",
                     *out, TWIST_NAME_MAX);
}

static bool has_lexicon(const struct job *j)
{
    for (int i = 0; i < j->n_potentials; i++)
        if (j->potentials[i].type == POTENTIAL_LEXICON)
            return true;
    return false;
}

/* Is there such a twist, and is it one of the model's? The engine knows when the job begins. */
static int read_learned(const struct reader *r, struct place at, const struct twist_draft *d,
                        struct job *j)
{
    if (twist_name_read(r, place_field(at, "name"), d->name, &j->twist.name))
        return -1;
    if (!d->condition)
        return 0;
    return insert_read(r, place_field(at, "condition"), d->condition, &j->twist.condition);
}

int twist_read(const struct reader *r, const json_t *value, struct job *j)
{
    const struct place none = {""};
    struct place at = place_field(none, "twist");
    struct twist_draft d = {.every = 1, .power = 1};
    int type;
    if (!value)
        return 0;
    if (type_read(r, at, value, type_names, &type) ||
        fields_read(r, at, value, types[type].fields, types[type].n, &d))
        return -1;
    j->twist.type = (enum twist_type)type;
    j->twist.every = d.every;
    j->twist.power = d.power;
    if (j->twist.type == TWIST_FACTOR && !has_lexicon(j))
        return err_field(r->err, "twist", "\"factor\" needs a potential of type \"lexicon\"");
    if (j->twist.type == TWIST_POTENTIAL && !j->n_potentials)
        return err_field(r->err, "twist", "\"potential\" needs a potential");
    return j->twist.type == TWIST_LEARNED ? read_learned(r, at, &d, j) : 0;
}

int proposal_set(const struct reader *r, int proposal, struct job *j)
{
    bool whole_vocabulary = j->twist.type == TWIST_FACTOR || j->twist.type == TWIST_LEARNED;
    if (proposal == PROPOSAL_TWIST && !whole_vocabulary)
        return err_field(r->err, "proposal",
                         "\"twist\" needs a twist with values for the whole vocabulary: "
                         "{\"type\":\"factor\"} or {\"type\":\"learned\"}");
    j->base_proposal = proposal == PROPOSAL_BASE || !whole_vocabulary;
    return 0;
}
