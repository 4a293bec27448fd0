/* What is said of given texts. */
#include "potential.h"
#include "run.h"

/* Their log-probabilities, from that of the token itself and the differences of logits: for a prior
 * that is the model's own distribution. */
static void keep_top(struct seq *s, int t, int n, const struct propose_out *out,
                     const struct top_token *top)
{
    for (int i = 0; i < n; i++) {
        double difference = (double)top[1 + i].logit - (double)top[0].logit;
        s->top[t * n + i] = (struct event_top){top[1 + i].id, out->log_p0 + difference};
    }
}

void score_token(struct run *r, struct seq *s, int t, const struct propose_out *out,
                 const struct top_token *top)
{
    if (s->top)
        keep_top(s, t, r->job->top, out, top);
    if (s->log_psi)
        s->log_psi[t] = out->log_psi + run_calibration(r, t + 1);
    run_trace_score(r, s, t, out);
}

/* log ψ_t(s_1:t) for every t of a text, or NULL without a twist. A potential twist takes the φ of
 * the parts it looks at from *partial, and moves it on. */
static const double *find_twist(struct run *r, const struct seq *s, const struct phi_item **partial)
{
    const struct twist_choice *t = &r->job->twist;
    double now = 0;
    if (t->type == TWIST_NONE || t->type == TWIST_LEARNED)
        return s->log_psi;
    for (int n = 0; n < s->n_own; n++) {
        if (t->type == TWIST_FACTOR)
            now += potential_factor(r->job, &s->own[n], 1);
        else if ((n + 1) % t->every == 0)
            now = potential_weigh(t->power, (*partial)++->log_phi);
        r->log_twist[n] = now;
    }
    return r->log_twist;
}

void score_finish(struct run *r)
{
    int64_t tokens = 0;
    const struct phi_item *partial = r->phi.item + r->k;
    run_trace_scores(r);
    for (int i = 0; i < r->k; i++) {
        const struct particle *p = &r->p[i];
        tokens += p->seq.n_own;
        run_say(r, &(struct event){.type = EVENT_SCORE,
                                   .score = {.index = i,
                                             .log_p = p->log_p,
                                             .log_phi = r->phi.item[i].log_phi,
                                             .log_q = p->seq.logq_sum,
                                             .has_phi = r->job->n_potentials > 0,
                                             .tokens = p->seq.own,
                                             .n_tokens = p->seq.n_own,
                                             .log_twist = find_twist(r, &p->seq, &partial),
                                             .token_log_p = p->seq.logp,
                                             .top = p->seq.top,
                                             .n_top = r->job->top}});
    }
    run_say_done(r, 0, 0, tokens);
}
