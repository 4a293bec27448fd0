/* Any bytes as the body of each request, for models with and without a tokenizer. What is accepted
 * keeps the promises of struct job; what is refused says why, in JSON. */
#include <math.h>
#include <stdbool.h>

#include "../../core/job.h"
#include "../../core/tokenizer.h"
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

static void check_population(const struct job *j, const struct engine_info *info)
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

/* A text ends where its first EOS is, or at max_tokens, or with a stop string, if there are any. */
static void check_given(const struct job *j, struct ids text, const struct engine_info *info)
{
    const struct segment *hole = &j->segments[0];
    check_ids(text);
    CHECK(text.n <= hole->max_tokens);
    for (int i = 0; i + 1 < text.n; i++)
        CHECK(!tokenizer_is_eos(info->tokenizer, text.id[i]));
    bool eos = tokenizer_is_eos(info->tokenizer, text.id[text.n - 1]);
    CHECK(eos || hole->n_stop || text.n == hole->max_tokens);
    CHECK(!eos || (!j->ignore_eos && text.n > j->min_tokens));
}

static void check_targets(const struct job *j, const struct engine_info *info)
{
    const struct targets *t = &j->targets;
    CHECK(t->n >= 0 && t->n <= info->limits.max_completions);
    CHECK(t->max_draws >= 0 && (!t->n || !t->max_draws));
    for (int i = 0; i < t->n; i++)
        check_given(j, t->given[i], info);
}

static void check_bounds(const struct job *j, const struct engine_info *info)
{
    check_population(j, info);
    CHECK(j->n_segments == 1 && j->repeats >= 1 && j->repeats <= 1000);
    check_targets(j, info);
}

/* What the file of a twist and the learner rely on. */
static void check_spec(const struct twist_spec *s, const struct job *j)
{
    CHECK(twist_name_ok(s->name) && s->dim > 0 && s->vocab == TINY_VOCAB);
    CHECK(s->n_layers >= 1 && s->n_layers <= TWIST_LAYERS_MAX);
    CHECK(s->n_layers == 1 || (s->hidden >= 1 && s->hidden <= TWIST_HIDDEN_MAX));
    CHECK(s->max_tokens == j->segments[0].max_tokens && s->particles == j->particles);
    CHECK(s->updates >= 1 && s->learning_rate > 0 && isfinite(s->learning_rate));
    CHECK(utf8_valid(s->request, strlen(s->request)) && s->request[0] == '{');
}

static void check_learn(const struct job *j, const struct engine_info *info)
{
    const struct learn *l = &j->learn;
    check_population(j, info);
    check_targets(j, info);
    check_spec(&l->spec, j);
    CHECK(j->n_segments == 1 && !j->named_holes && j->particles >= 2);
    CHECK(l->n_prompts >= 1 && l->n_prompts <= 1024);
    for (int i = 0; i < l->n_prompts; i++) {
        check_ids(l->prompts[i]);
        CHECK(l->prompts[i].n + l->spec.max_tokens + l->condition_tokens <= info->context);
    }
    CHECK(l->spec.conditional == (l->condition_tokens > 0));
    CHECK(l->spec.conditional != (j->n_potentials > 0));
    CHECK(2 * l->condition_batch <= j->particles && l->checkpoint >= 0 && l->bounds >= 0);
}

static void check_completion(const struct job *j, const struct engine_info *info)
{
    const struct complete *c = &j->complete;
    check_population(j, info);
    CHECK(j->n_segments == 1 && !j->named_holes && c->n >= 1 && c->n <= j->particles);
    CHECK(c->n_prompts >= 1 && c->n_prompts <= info->limits.max_completions);
    CHECK(c->logprobs >= -1 && c->logprobs <= TOP_MAX);
    CHECK(!c->tokens || (c->logprobs < 0 && c->draws && !j->n_potentials));
    for (int i = 0; i < c->n_prompts; i++) {
        check_ids(c->prompts[i].ids);
        CHECK(c->prompts[i].ids.n + j->segments[0].max_tokens <= info->context);
    }
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

static int score(struct job **out, struct request_opts *opts, const char *body, size_t len,
                 const struct engine_info *info, struct err *err)
{
    (void)opts;
    return request_score(out, body, len, info, err);
}

static const struct {
    int (*read)(struct job **, struct request_opts *, const char *, size_t,
                const struct engine_info *, struct err *);
    void (*check)(const struct job *, const struct engine_info *);
} requests[] = {
    {request_sample, check_population},     {score, check_score},
    {request_bounds, check_bounds},         {request_learn, check_learn},
    {request_completion, check_completion}, {request_chat, check_completion},
};

static void ask_all(const char *body, size_t len, const struct engine_info *info)
{
    struct err err;
    for (size_t i = 0; i < sizeof requests / sizeof *requests; i++) {
        struct request_opts opts;
        struct job *j = NULL;
        if (requests[i].read(&j, &opts, body, len, info, &err) == 0)
            requests[i].check(j, info);
        else
            check_refusal(&err);
        job_free(j);
    }
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
