/* What a run says: its events. */
#include "run.h"

#include "utf8.h"

void run_say(struct run *r, const struct event *e)
{
    r->m->stats.bounds_runs += e->type == EVENT_BOUND;
    r->m->stats.learning_updates += e->type == EVENT_UPDATE;
    if (!r->failed_sink && r->sink.event(r->sink.user, e) != 0)
        r->failed_sink = true;
}

void run_fail(struct run *r, const struct err *err)
{
    if (r->phase == RUN_ENDED)
        return;
    r->m->stats.jobs_failed += !r->parent;
    run_say(r, &(struct event){.type = EVENT_ERROR, .error = *err});
    r->phase = RUN_ENDED;
}

void run_text(struct run *r, const struct particle *p, int from, int to, struct buf *out)
{
    struct buf *bytes = &r->m->bytes;
    buf_reset(bytes);
    for (int i = from; i < to; i++) {
        size_t len;
        const char *piece = tokenizer_piece(r->m->tokenizer, p->seq.own[i], &len);
        buf_add(bytes, piece, len);
    }
    utf8_sanitize(out, bytes->data, bytes->len);
}

void run_say_start(struct run *r)
{
    const struct job *j = r->job;
    run_say(r, &(struct event){.type = EVENT_START,
                               .start = {.id = j->id,
                                         .model = r->m->info.model,
                                         .particles = r->ops ? j->particles : r->k,
                                         .prompt_tokens = r->n_prompt,
                                         .seed = (int64_t)j->seed}});
}

/* All partial texts, in the scratch buffer; the texts' places are in the arena of this event only.
 */
void run_say_step(struct run *r, int active, double ess, double log_z)
{
    struct event e = {.type = EVENT_STEP,
                      .step = {.step = r->n_steps, .active = active, .ess = ess, .log_z = log_z}};
    if (!r->job->ev_particles) {
        run_say(r, &e);
        return;
    }
    struct buf *text = &r->m->text;
    buf_reset(text);
    for (int i = 0; i < r->k; i++) {
        size_t before = text->len;
        run_text(r, &r->p[i], 0, r->p[i].seq.n_own, text);
        r->texts[i].len = text->len - before;
    }
    const char *at = text->data;
    for (int i = 0; i < r->k; at += r->texts[i++].len)
        r->texts[i].s = at ? at : "";
    e.step.n_texts = r->k;
    e.step.texts = r->texts;
    run_say(r, &e);
}

void run_say_resample(struct run *r, double ess)
{
    run_say(r, &(struct event){
                   .type = EVENT_RESAMPLE,
                   .resample = {
                       .step = r->n_steps, .ess = ess, .ancestors = r->pop.ancestor, .n = r->k}});
}

void run_say_tokens(struct run *r)
{
    int n = 0;
    for (int i = r->cohort; i < r->cohort_end; i++) {
        const struct particle *p = &r->p[i];
        if (!p->drew || r->pop.status[i] == PARTICLE_DEAD)
            continue;
        bool ended = r->pop.status[i] == PARTICLE_DONE;
        r->tokens[n++] = (struct event_token){.index = i,
                                              .token = p->seq.own[p->seq.n_own - 1],
                                              .ended = ended,
                                              .stopped = ended && p->stopped};
    }
    run_say(r, &(struct event){.type = EVENT_TOKENS, .tokens = {.token = r->tokens, .n = n}});
}

void run_say_sample(struct run *r, int i, int index)
{
    const struct particle *p = &r->p[i];
    struct event_hole *holes = r->holes;
    struct buf *text = &r->m->text;
    buf_reset(text);
    run_text(r, p, 0, p->seq.n_own, text);
    size_t len = text->len;
    int n_holes = r->job->named_holes ? r->n_holes : 0;
    for (int h = 0; h < n_holes; h++) {
        size_t before = text->len;
        const int *span = r->span[i * r->n_holes + h];
        run_text(r, p, span[0], span[1], text);
        holes[h].text.len = text->len - before;
    }
    const char *at = text->data ? text->data + len : "";
    for (int g = 0, h = 0; h < n_holes; g++)
        if (r->job->segments[g].type == SEGMENT_SAMPLE) {
            holes[h].name = r->job->segments[g].name;
            holes[h].text.s = at;
            at += holes[h++].text.len;
        }
    run_say(r, &(struct event){.type = EVENT_SAMPLE,
                               .sample = {.index = index,
                                          .text = {text->data ? text->data : "", len},
                                          .tokens = p->seq.own,
                                          .n_tokens = p->seq.n_own,
                                          .token_log_p = p->seq.logp,
                                          .log_weight = r->log_w[i],
                                          .weight = r->weight[i],
                                          .log_p = p->log_p,
                                          .log_phi = r->log_phi[i],
                                          .stopped = p->stopped,
                                          .holes = holes,
                                          .n_holes = n_holes}});
}

void run_say_done(struct run *r, double log_z, double ess, int64_t tokens)
{
    double now = seconds_now();
    run_say(r, &(struct event){.type = EVENT_DONE,
                               .done = {.kind = (int)r->job->kind,
                                        .log_z = log_z,
                                        .ess = ess,
                                        .prompt_tokens = r->n_prompt,
                                        .completion_tokens = tokens,
                                        .queue_seconds = r->admitted - r->submitted,
                                        .prompt_seconds = r->first_draw - r->admitted,
                                        .sample_seconds = now - r->first_draw}});
    r->phase = RUN_ENDED;
}
