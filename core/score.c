/* What is said of given texts. */
#include "potential.h"
#include "run.h"

/* log ψ_t(s_1:t) for every t of a text, into r->log_twist. partial: the φ of its parts that a
 * potential twist looks at. */
static void find_twist(struct run *r, const struct particle *p, const struct phi_item *partial)
{
    const struct twist_choice *t = &r->job->twist;
    double now = 0;
    for (int n = 0; n < p->seq.n_own; n++) {
        if (t->type == TWIST_FACTOR)
            now += potential_factor(r->job, &p->seq.own[n], 1);
        else if ((n + 1) % t->every == 0)
            now = potential_weigh(t->power, (partial++)->log_phi);
        r->log_twist[n] = now;
    }
}

static void say_score(struct run *r, int i)
{
    const struct particle *p = &r->p[i];
    run_say(r, &(struct event){
                   .type = EVENT_SCORE,
                   .score = {.index = i,
                             .log_p = p->log_p,
                             .log_phi = r->phi.item[i].log_phi,
                             .log_q = p->seq.logq_sum,
                             .has_phi = r->job->n_potentials > 0,
                             .tokens = p->seq.own,
                             .n_tokens = p->seq.n_own,
                             .log_twist = r->job->twist.type == TWIST_NONE ? NULL : r->log_twist,
                             .token_log_p = p->seq.logp}});
}

void score_finish(struct run *r)
{
    int64_t tokens = 0;
    const struct phi_item *partial = r->phi.item + r->k;
    for (int i = 0; i < r->k; i++) {
        const struct particle *p = &r->p[i];
        tokens += p->seq.n_own;
        if (r->job->twist.type != TWIST_NONE)
            find_twist(r, p, partial);
        if (r->job->twist.type == TWIST_POTENTIAL)
            partial += p->seq.n_own / r->job->twist.every;
        say_score(r, i);
    }
    run_say_done(r, 0, 0, tokens);
}
