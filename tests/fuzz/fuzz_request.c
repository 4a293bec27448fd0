/* Any bytes as the body of each request, for models with and without a tokenizer. What is accepted
 * keeps the promises of struct job; what is refused says why, in JSON. */
#include <math.h>
#include <stdbool.h>

#include "../../core/job.h"
#include "../../core/utf8.h"
#include "../../proto/event_json.h"
#include "../../proto/request.h"
#include "../tiny_info.h"

static void check_refusal(const struct err *err)
{
    struct buf json = {0};
    CHECK(err->msg[0] && !strchr(err->msg, '\n'));
    CHECK(error_status(err) == 400 || error_status(err) == 404);
    error_json(&json, err);
    CHECK(utf8_valid(json.data, json.len));
    buf_free(&json);
}

static void check_ids(struct ids ids)
{
    CHECK(ids.n > 0);
    for (int i = 0; i < ids.n; i++)
        CHECK(ids.id[i] >= 0 && ids.id[i] < TINY_VOCAB);
}

static void check_potential(const struct potential *p)
{
    CHECK(isfinite(p->weight));
    if (p->type == POTENTIAL_CONTINUATION)
        check_ids(p->continuation);
    if (p->type == POTENTIAL_LEXICON)
        for (int i = 0; i < p->lexicon.n; i++)
            CHECK(isfinite(p->lexicon.bias[i]) && (!i || p->lexicon.id[i - 1] < p->lexicon.id[i]));
    if (p->type == POTENTIAL_JUDGE)
        for (int i = 0; i < p->judge.n_answers; i++)
            check_ids(p->judge.answer[i]);
    if (p->type == POTENTIAL_TOKENS)
        for (int i = 0; i < p->tokens.n; i++)
            check_ids(p->tokens.list[i]);
}

static void check_target(const struct job *j, const struct engine_info *info)
{
    check_ids(j->prompt_ids);
    CHECK(j->prompt_ids.n < info->context);
    CHECK(j->temperature > 0 && isfinite(j->temperature) && j->top_p > 0 && j->top_p <= 1);
    CHECK(j->top_k >= 0 && j->top_k < TINY_VOCAB);
    CHECK(j->n_potentials <= info->limits.max_potentials);
    for (int i = 0; i < j->n_potentials; i++)
        check_potential(&j->potentials[i]);
}

static void check_sample(const struct job *j, const struct engine_info *info)
{
    int drawn = 0, length = j->prompt_ids.n;
    check_target(j, info);
    CHECK(j->particles >= 1 && j->particles <= info->limits.max_particles);
    CHECK(j->ess_threshold >= 0 && j->ess_threshold <= 1);
    CHECK(j->n_segments >= 1 && j->n_segments <= info->limits.max_segments);
    for (int i = 0; i < j->n_segments; i++) {
        const struct segment *s = &j->segments[i];
        if (s->type == SEGMENT_SAMPLE) {
            CHECK(s->max_tokens >= 1 && (s->name != NULL) == j->named_holes);
            drawn += s->max_tokens;
        } else {
            check_ids(s->ids);
        }
        length += s->type == SEGMENT_SAMPLE ? s->max_tokens : s->ids.n;
    }
    CHECK(drawn >= 1 && drawn <= info->limits.max_tokens && length <= info->context);
}

static void check_score(const struct job *j, const struct engine_info *info)
{
    check_target(j, info);
    CHECK(j->n_completions >= 1 && j->n_completions <= info->limits.max_completions);
    for (int i = 0; i < j->n_completions; i++) {
        check_ids(j->completions[i]);
        CHECK(j->prompt_ids.n + j->completions[i].n <= info->context);
    }
}

static void ask_all(const char *body, size_t len, const struct engine_info *info)
{
    struct request_opts opts;
    struct job *j = NULL;
    struct err err;
    if (request_sample(&j, &opts, body, len, info, &err) == 0)
        check_sample(j, info);
    else
        check_refusal(&err);
    job_free(j);
    j = NULL;
    if (request_score(&j, body, len, info, &err) == 0)
        check_score(j, info);
    else
        check_refusal(&err);
    job_free(j);
    char *tokens = request_tokenize(body, len, info, &err);
    if (!tokens)
        check_refusal(&err);
    char *text = request_detokenize(body, len, info, &err);
    if (!text)
        check_refusal(&err);
    free(tokens);
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct tiny_info models[2];
    static bool open;
    if (!open) {
        tiny_open(&models[0], TINY_BOS);
        tiny_open(&models[1], TINY_IDS);
        open = true;
    }
    ask_all((const char *)data, size, &models[0].info);
    ask_all((const char *)data, size, &models[1].info);
    return 0;
}
