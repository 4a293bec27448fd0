/* Choices for several prompts, in one answer. Each prompt has a run of its own, all of them from
 * the beginning: they share the client's part of the steps. The first prompt's run has the
 * request's own seed, so that a prompt alone draws what it draws in front of others; those behind
 * it have seeds made from that one and their number. */
#include "run.h"
#include "study.h"

struct completing {
    struct run *run;
    int64_t tokens; /* drawn */
};

/* One prompt's run, for its sink. */
struct part {
    struct completing *of;
    int prompt;
};

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

static void say_choice(struct part *p, const struct event *e)
{
    struct run *r = p->of->run;
    run_say(r, &(struct event){.type = EVENT_CHOICE,
                               .choice = {.index = p->prompt * r->job->complete.n + e->sample.index,
                                          .tokens = e->sample.tokens,
                                          .n_tokens = e->sample.n_tokens,
                                          .stopped = e->sample.stopped}});
}

static void say_tokens(struct part *p, const struct event *e)
{
    struct event tokens = *e;
    tokens.tokens.first = p->prompt * p->of->run->job->complete.n;
    run_say(p->of->run, &tokens);
}

static int on_event(void *user, const struct event *e)
{
    struct part *p = user;
    if (e->type == EVENT_TOKENS)
        say_tokens(p, e);
    if (e->type == EVENT_SAMPLE)
        say_choice(p, e);
    if (e->type == EVENT_DONE)
        p->of->tokens += e->done.completion_tokens;
    if (e->type == EVENT_ERROR)
        run_fail(p->of->run, &e->error);
    return 0;
}

static int spawn(struct completing *c, int prompt, struct err *err)
{
    struct part *p = ARENA_NEW(&c->run->job->arena, struct part, 1);
    *p = (struct part){.of = c, .prompt = prompt};
    struct sink sink = {.event = on_event, .user = p};
    return study_spawn(c->run, sampling_job(c->run, prompt), sink, NULL, err);
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

static int plan(struct run *r, struct err *err)
{
    return study_check(r, sampling_job(r, longest_prompt(&r->job->complete)), err);
}

static void say_nothing(struct run *r)
{
    const struct complete *c = &r->job->complete;
    for (int i = 0; i < c->n_prompts * c->n; i++)
        run_say(r, &(struct event){.type = EVENT_CHOICE, .choice = {.index = i}});
}

static int begin(struct run *r, struct err *err)
{
    const struct complete *c = &r->job->complete;
    struct completing *study = ARENA_NEW(&r->job->arena, struct completing, 1);
    r->study = study;
    study->run = r;
    if (!c->draws)
        say_nothing(r);
    for (int i = 0; i < c->n_prompts && c->draws; i++)
        if (spawn(study, i, err) != 0)
            return -1;
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
    (void)r; /* all is in its arena */
}

const struct study_ops complete_ops = {plan, begin, advance, close};
