/* Exact draws of σ: given as whole texts, or to be drawn by rejection. */
#include <stdint.h>
#include <string.h>

#include "../core/tokenizer.h"
#include "draft.h"

enum { DRAWS_MAX = 1000000000 };

/* Where a stop string is first complete in these bytes. SIZE_MAX: nowhere. */
static size_t first_stop(const struct segment *hole, const struct buf *bytes)
{
    size_t first = SIZE_MAX;
    for (int i = 0; bytes->len && i < hole->n_stop; i++) {
        const char *at = memmem(bytes->data, bytes->len, hole->stop[i], hole->stop_len[i]);
        size_t end = at ? (size_t)(at - bytes->data) + hole->stop_len[i] : SIZE_MAX;
        first = end < first ? end : first;
    }
    return first;
}

/* How many tokens there are when the text ends by itself: with EOS, or with the one that completes
 * a stop string. 0: it does not. */
static int length_at_end(const struct reader *r, const struct segment *hole, struct ids text)
{
    const struct tokenizer *t = r->info->tokenizer;
    struct buf bytes = {0};
    size_t len, so_far = 0;
    for (int i = 0; i < text.n; i++) {
        const char *piece = tokenizer_piece(t, text.id[i], &len);
        buf_add(&bytes, piece, len);
    }
    size_t stop = first_stop(hole, &bytes);
    buf_free(&bytes);
    for (int i = 0; i < text.n; i++) {
        tokenizer_piece(t, text.id[i], &len);
        so_far += len;
        if (tokenizer_is_eos(t, text.id[i]) || so_far >= stop)
            return i + 1;
    }
    return 0;
}

/* A text that is written out ends as its author would have it: with EOS, unless otherwise. */
static void end_with_eos(const struct reader *r, const struct job *j, struct ids *text)
{
    const struct segment *hole = &j->segments[0];
    int32_t eos = tokenizer_eos_id(r->info->tokenizer);
    if (j->ignore_eos || eos < 0 || text->n >= hole->max_tokens || length_at_end(r, hole, *text))
        return;
    int32_t *id = ARENA_NEW(r->arena, int32_t, text->n + 1);
    if (text->n)
        memcpy(id, text->id, sizeof *id * (size_t)text->n);
    id[text->n] = eos;
    *text = (struct ids){id, text->n + 1};
}

/* Could the sampler have ended with exactly these tokens? */
static int check_whole(const struct reader *r, struct place at, const struct job *j,
                       struct ids text)
{
    const struct segment *hole = &j->segments[0];
    if (text.n > hole->max_tokens)
        return err_field(r->err, at.s, "%d tokens are more than max_tokens, %d", text.n,
                         hole->max_tokens);
    int end = length_at_end(r, hole, text);
    if (!end && text.n < hole->max_tokens)
        return err_field(
            r->err, at.s,
            "is not a whole text: its %d tokens end with neither EOS nor a stop string, "
            "and max_tokens is %d",
            text.n, hole->max_tokens);
    if (end && end < text.n)
        return err_field(r->err, at.s, "%d tokens, but the text has its end after %d", text.n, end);
    bool eos = end && tokenizer_is_eos(r->info->tokenizer, text.id[end - 1]);
    if (eos && j->ignore_eos)
        return err_field(r->err, at.s, "ends with EOS, which ignore_eos excludes");
    if (eos && end <= j->min_tokens)
        return err_field(r->err, at.s, "ends with EOS after %d tokens, which min_tokens excludes",
                         end - 1);
    return 0;
}

static int read_given(const struct reader *r, struct place at, const json_t *value,
                      const struct job *j, struct ids *out)
{
    if (model_text_read(r, at, value, 0, out))
        return -1;
    if (json_is_string(value))
        end_with_eos(r, j, out);
    return check_whole(r, at, j, *out);
}

static int read_list(const struct reader *r, struct place at, const json_t *list, struct job *j)
{
    size_t n = json_array_size(list), max = (size_t)r->info->limits.max_completions;
    if (!n)
        return err_field(r->err, at.s, "is empty");
    if (n > max)
        return err_field(r->err, at.s, "%zu texts exceed the limit %zu", n, max);
    j->targets.given = ARENA_NEW(r->arena, struct ids, n);
    for (size_t i = 0; i < n; i++)
        if (read_given(r, place_index(at, i), json_array_get(list, i), j, &j->targets.given[i]))
            return -1;
    j->targets.n = (int)n;
    return 0;
}

static int read_source(const struct reader *r, const struct draft *d, struct job *j)
{
    static const char *const sources[] = {"rejection", NULL};
    struct source {
        int source, max_draws;
    } out;
    static const struct field fields[] = {
        {"source", FIELD_CHOICE, offsetof(struct source, source), .choices = sources,
         .required = true},
        {"max_draws", FIELD_INT, offsetof(struct source, max_draws), .min = 1, .max = DRAWS_MAX,
         .required = true},
    };
    if (fields_read(r, top("targets"), d->targets, fields, 2, &out))
        return -1;
    j->targets.max_draws = out.max_draws;
    return potentials_bounded(r, d->potential, j, "rejection");
}

int targets_read(const struct reader *r, const struct draft *d, struct job *j)
{
    struct place at = top("targets");
    if (!d->targets)
        return 0;
    if (json_is_array(d->targets))
        return read_list(r, at, d->targets, j);
    if (json_is_object(d->targets))
        return read_source(r, d, j);
    return wrong_type(r, at, "an array of texts or {\"source\":\"rejection\"}", d->targets);
}
