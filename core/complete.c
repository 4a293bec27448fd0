/* Choices for several prompts, in one answer. Each prompt has a run of its own, a number of them at
 * a time, which share the client's part of the steps. The first prompt's run has the request's own
 * seed, so that a prompt alone draws what it draws in front of others; those behind it have seeds
 * made from that one and their number.
 *
 * Where log-probabilities are wanted, a second run for each prompt scores its texts: by the model's
 * own distribution, as other servers do, and not by the prior that the texts were drawn from. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "run.h"
#include "study.h"

enum { AT_ONCE = 32 }; /* prompts: enough to fill the steps, and few enough for their memory */

/* One prompt's runs, for their sinks. */
struct part {
    struct completing *of;
    bool busy;
    int prompt;
    struct arena arena; /* of the following, while it is busy */
    struct ids *texts;  /* (n) as they are scored: with logprobs, after what is left of an echo */
    bool *stopped;      /* (n) */
};

struct completing {
    struct run *run;
    int next;       /* prompt to begin with */
    int64_t tokens; /* drawn */
    struct part part[AT_ONCE];
};

static const struct complete *wanted(const struct completing *c)
{
    return &c->run->job->complete;
}

static const struct prompt *prompt_of(const struct part *p)
{
    return &wanted(p->of)->prompts[p->prompt];
}

/* ---- jobs ---- */

static struct job *sampling_job(const struct run *r, int prompt)
{
    const struct complete *c = &r->job->complete;
    const struct prompt *p = &c->prompts[prompt];
    struct job *j = study_job(r, JOB_SAMPLE, (uint64_t)prompt);
    if (prompt == 0)
        j->seed = r->job->seed;
    j->prompt_ids = p->ids;
    j->prompt = p->text;
    j->prompt_len = p->len;
    j->ev_tokens = c->tokens;
    j->ev_sample = !c->tokens;
    j->n_choices = j->n_potentials ? c->n : 0;
    return j;
}

/* An echoed prompt is scored as well, but for its first token, which nothing predicts. */
static struct job *scoring_job(const struct run *r, int prompt, struct ids *texts)
{
    const struct complete *c = &r->job->complete;
    struct job *j = study_job(r, JOB_SCORE, 0);
    j->prompt_ids = c->prompts[prompt].ids;
    if (c->echo)
        j->prompt_ids.n = 1;
    j->temperature = 1;
    j->top_k = 0;
    j->top_p = 1;
    j->min_tokens = 0;
    j->ignore_eos = false;
    j->n_bias = 0;
    j->n_potentials = 0;
    j->twist = (struct twist_choice){0};
    j->base_proposal = true;
    j->completions = texts;
    j->n_completions = c->n;
    j->per_token = true;
    j->top = c->logprobs;
    return j;
}

/* ---- what is said ---- */

static void say_choice(struct part *p, const struct event *e)
{
    int index = p->prompt * wanted(p->of)->n + e->sample.index;
    run_say(p->of->run, &(struct event){.type = EVENT_CHOICE,
                                        .choice = {.index = index,
                                                   .tokens = e->sample.tokens,
                                                   .n_tokens = e->sample.n_tokens,
                                                   .stopped = e->sample.stopped}});
}

static void say_tokens(struct part *p, const struct event *e)
{
    struct event tokens = *e;
    tokens.tokens.first = p->prompt * wanted(p->of)->n;
    run_say(p->of->run, &tokens);
}

/* A text and what was found of it, behind `lead` tokens of the prompt that have no numbers. */
static void say_scored(struct part *p, int i, int lead, const struct event *score)
{
    const struct complete *c = wanted(p->of);
    int n_top = c->logprobs, n = lead + p->texts[i].n;
    int32_t *tokens = calloc((size_t)n + 1, sizeof *tokens);
    double *log_p = calloc((size_t)n + 1, sizeof *log_p);
    struct event_top *top = calloc((size_t)n * (size_t)n_top + 1, sizeof *top);
    CHECK(tokens && log_p && top && "out of memory");
    for (int t = 0; t < n; t++) {
        tokens[t] = t < lead ? prompt_of(p)->ids.id[t] : p->texts[i].id[t - lead];
        log_p[t] = t < lead ? NAN : score->score.token_log_p[t - lead];
    }
    for (int t = 0; t < lead * n_top; t++)
        top[t] = (struct event_top){-1, NAN};
    if (score && n_top)
        memcpy(top + lead * n_top, score->score.top,
               (size_t)p->texts[i].n * (size_t)n_top * sizeof *top);
    run_say(p->of->run, &(struct event){.type = EVENT_CHOICE,
                                        .choice = {.index = p->prompt * c->n + i,
                                                   .tokens = tokens,
                                                   .n_tokens = n,
                                                   .n_echo = c->echo ? prompt_of(p)->ids.n : 0,
                                                   .stopped = p->stopped[i],
                                                   .token_log_p = log_p,
                                                   .top = top,
                                                   .n_top = n_top}});
    free(tokens);
    free(log_p);
    free(top);
}

/* ---- scoring ---- */

/* What is to be scored of choice i: what was drawn, behind the rest of an echoed prompt.
 */
static void keep_text(struct part *p, int i, const int32_t *tokens, int n, bool stopped)
{
    const struct complete *c = wanted(p->of);
    const struct ids *prompt = &prompt_of(p)->ids;
    int lead = c->echo ? prompt->n - 1 : 0;
    int32_t *id = ARENA_NEW(&p->arena, int32_t, lead + n + 1);
    memcpy(id, prompt->id + (c->echo ? 1 : 0), (size_t)lead * sizeof *id);
    if (n)
        memcpy(id + lead, tokens, (size_t)n * sizeof *id);
    p->texts[i] = (struct ids){id, lead + n};
    p->stopped[i] = stopped;
}

static void fill(struct completing *);

static void end_part(struct part *p)
{
    arena_free(&p->arena);
    p->busy = false;
}

static int on_score(void *user, const struct event *e)
{
    struct part *p = user;
    if (e->type == EVENT_SCORE)
        say_scored(p, e->score.index, wanted(p->of)->echo ? 1 : 0, e);
    if (e->type == EVENT_ERROR)
        run_fail(p->of->run, &e->error);
    if (e->type == EVENT_DONE) {
        end_part(p);
        fill(p->of);
    }
    return 0;
}

static int begin_scores(struct part *p, struct err *err)
{
    struct run *r = p->of->run;
    if (p->texts[0].n > 0) {
        struct sink sink = {.event = on_score, .user = p};
        return study_spawn(r, scoring_job(r, p->prompt, p->texts), sink, NULL, err);
    }
    for (int i = 0; i < wanted(p->of)->n; i++) /* a single token echoed, or nothing at all */
        say_scored(p, i, wanted(p->of)->echo ? 1 : 0, NULL);
    end_part(p);
    return 0;
}

/* ---- drawing ---- */

static void drawn(struct part *p, const struct event *e)
{
    struct err err;
    p->of->tokens += e->done.completion_tokens;
    if (!p->texts)
        end_part(p);
    else if (begin_scores(p, &err) != 0)
        run_fail(p->of->run, &err);
    fill(p->of);
}

static int on_draw(void *user, const struct event *e)
{
    struct part *p = user;
    if (e->type == EVENT_TOKENS)
        say_tokens(p, e);
    if (e->type == EVENT_SAMPLE && p->texts)
        keep_text(p, e->sample.index, e->sample.tokens, e->sample.n_tokens, e->sample.stopped);
    else if (e->type == EVENT_SAMPLE)
        say_choice(p, e);
    if (e->type == EVENT_DONE)
        drawn(p, e);
    if (e->type == EVENT_ERROR)
        run_fail(p->of->run, &e->error);
    return 0;
}

static int begin_nothing(struct part *p, struct err *err)
{
    const struct complete *c = wanted(p->of);
    for (int i = 0; i < c->n && p->texts; i++)
        keep_text(p, i, NULL, 0, false);
    if (p->texts)
        return begin_scores(p, err);
    for (int i = 0; i < c->n; i++)
        run_say(p->of->run,
                &(struct event){.type = EVENT_CHOICE, .choice = {.index = p->prompt * c->n + i}});
    end_part(p);
    return 0;
}

static int begin_part(struct part *p, struct completing *study, int prompt, struct err *err)
{
    const struct complete *c = wanted(study);
    *p = (struct part){.of = study, .busy = true, .prompt = prompt};
    if (c->logprobs >= 0) {
        p->texts = ARENA_NEW(&p->arena, struct ids, c->n);
        p->stopped = ARENA_NEW(&p->arena, bool, c->n);
    }
    if (!c->draws)
        return begin_nothing(p, err);
    struct sink sink = {.event = on_draw, .user = p};
    return study_spawn(study->run, sampling_job(study->run, prompt), sink, NULL, err);
}

/* Go on with the next prompts, as far as there are places. */
static void fill(struct completing *study)
{
    struct err err;
    for (int i = 0; i < AT_ONCE; i++)
        while (!study->part[i].busy && study->next < wanted(study)->n_prompts &&
               study->run->phase != RUN_ENDED)
            if (begin_part(&study->part[i], study, study->next++, &err) != 0)
                run_fail(study->run, &err);
}

/* ---- the study ---- */

static int longest_prompt(const struct complete *c)
{
    int longest = 0;
    for (int i = 1; i < c->n_prompts; i++)
        if (c->prompts[i].ids.n > c->prompts[longest].ids.n)
            longest = i;
    return longest;
}

/* Texts as long as they can get, all of them the same one. */
static int check_scores(struct run *r, int prompt, struct err *err)
{
    const struct complete *c = &r->job->complete;
    int n = c->prompts[prompt].ids.n + r->job->segments[0].max_tokens - (c->echo ? 1 : 0);
    n -= c->echo ? 0 : c->prompts[prompt].ids.n;
    int32_t *id = calloc((size_t)n, sizeof *id);
    struct ids *texts = calloc((size_t)c->n, sizeof *texts);
    CHECK(id && texts && "out of memory");
    for (int i = 0; i < c->n; i++)
        texts[i] = (struct ids){id, n};
    struct err why;
    int rc = study_check(r, scoring_job(r, prompt, texts), &why);
    free(id);
    free(texts);
    return rc == 0 ? 0 : err_field(err, "logprobs", "to find them: %s", why.msg);
}

static int plan(struct run *r, struct err *err)
{
    const struct complete *c = &r->job->complete;
    int longest = longest_prompt(c);
    if (study_check(r, sampling_job(r, longest), err) != 0)
        return -1;
    return c->logprobs >= 0 ? check_scores(r, longest, err) : 0;
}

static int begin(struct run *r, struct err *err)
{
    struct completing *study = ARENA_NEW(&r->job->arena, struct completing, 1);
    (void)err;
    r->study = study;
    study->run = r;
    fill(study);
    return 0;
}

static int advance(struct run *r, struct err *err)
{
    const struct complete *c = &r->job->complete;
    const struct completing *study = r->study;
    int prompt_tokens = 0;
    (void)err;
    for (int i = 0; i < c->n_prompts; i++)
        prompt_tokens += c->prompts[i].ids.n;
    run_say(r, &(struct event){.type = EVENT_DONE,
                               .done = {.kind = JOB_COMPLETE,
                                        .prompt_tokens = prompt_tokens,
                                        .completion_tokens = study->tokens,
                                        .queue_seconds = r->admitted - r->submitted,
                                        .sample_seconds = seconds_now() - r->admitted}});
    r->phase = RUN_ENDED;
    return 0;
}

static void close(struct run *r)
{
    struct completing *study = r->study;
    for (int i = 0; study && i < AT_ONCE; i++)
        arena_free(&study->part[i].arena);
}

const struct study_ops complete_ops = {plan, begin, advance, close};
