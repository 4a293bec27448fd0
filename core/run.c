/* The life of a job. The loop of a population is the "server loop" of twisted SMC with early ends:
 * finished particles stay in every resampling with their weight, take no tokens, and may be cloned
 * or dropped like any other. */
#include "run.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "potential.h"
#include "study.h"

/* ---- weighing and resampling ---- */

/* Slot i takes over everything that belongs to the lineage of particle a; its own are the random
 * stream, the page table (retabled by the caller) and the kept hidden row. */
static void copy_lineage(struct run *r, int i, int a)
{
    struct particle *to = &r->p[i];
    const struct particle *from = &r->p[a];
    struct seq s = to->seq;
    s.n_own = from->seq.n_own;
    memcpy(s.own, from->seq.own, (size_t)s.n_own * sizeof *s.own);
    if (s.logp)
        memcpy(s.logp, from->seq.logp, (size_t)s.n_own * sizeof *s.logp);
    *to = *from;
    to->seq = s;
    run_trace_lineage(r, i, a);
    memcpy(r->span[i * r->n_holes], r->span[a * r->n_holes], (size_t)r->n_holes * sizeof *r->span);
}

static void gather(struct run *r)
{
    kv_retable(r->m->pool, r->kv, r->pop.ancestor, r->k);
    for (int i = 0; i < r->k; i++)
        if (r->pop.ancestor[i] != i)
            copy_lineage(r, i, r->pop.ancestor[i]);
}

/* The population is to be weighed, and resampled if it may be and the ESS asks for it; `then` goes
 * on with weighing.stats. */
static int weigh(struct run *r, enum smc_priority by, bool may_resample,
                 int (*then)(struct run *, struct err *))
{
    r->weighing = (struct smc_weighing){
        .population = &r->pop, .by = by, .may_resample = may_resample, .step = r->n_weighings++};
    r->then = then;
    r->phase = RUN_WEIGH;
    return 0;
}

/* After a resampling before the draw, children in new slots draw from their parents' rows. They
 * come in the order of their parents. */
static void list_redraws(struct run *r)
{
    struct machine *m = r->m;
    for (int i = 0; i < r->k; i++)
        if (r->pop.ancestor[i] != i && r->pop.status[i] == PARTICLE_LIVE)
            m->redraws[m->n_redraws++] = (struct redraw){r, i};
}

static void weighed(struct run *r)
{
    struct engine_stats *count = &r->m->stats;
    const struct smc_stats *stats = &r->weighing.stats;
    int bucket = (int)ceil(stats->ess / r->k * ESS_BUCKETS - 1e-9) - 1;
    count->ess_histogram[bucket < 0 ? 0 : bucket >= ESS_BUCKETS ? ESS_BUCKETS - 1 : bucket]++;
    r->phase = RUN_WEIGHED;
    if (!stats->resampled)
        return;
    count->resamples++;
    gather(r);
    if (r->job->ev_resample)
        run_say_resample(r, stats->ess);
    if (r->weighing.by == SMC_BY_LAMBDA)
        list_redraws(r);
}

int run_weigh(struct machine *m, struct run *const *runs, int n, struct err *err)
{
    int asked = 0;
    for (int i = 0; i < n; i++)
        if (runs[i]->phase == RUN_WEIGH)
            m->weighings[asked++] = &runs[i]->weighing;
    if (smc_weigh(&m->weigher, m->weighings, asked, err) != 0)
        return -1;
    for (int i = 0; i < n; i++)
        if (runs[i]->phase == RUN_WEIGH)
            weighed(runs[i]);
    return step_redraw(m, err) == 0 ? asked : -1;
}

static int count_live(const struct run *r)
{
    int n = 0;
    for (int i = r->cohort; i < r->cohort_end; i++)
        n += r->pop.status[i] == PARTICLE_LIVE;
    return n;
}

static bool extinct(const struct run *r)
{
    for (int i = 0; i < r->k; i++)
        if (r->pop.status[i] != PARTICLE_DEAD)
            return false;
    return true;
}

/* ---- phases: who owes what ---- */

static void owe(struct run *r, struct seq *s, int target, int fan_out)
{
    s->target = target;
    s->fan_out = fan_out;
    s->done = target <= s->kv->n_tokens;
    r->work[r->n_work++] = s;
    r->outstanding += !s->done;
}

static void work_reset(struct run *r)
{
    r->n_work = 0;
    r->outstanding = 0;
}

static void append_ids(struct seq *s, const struct ids *ids)
{
    CHECK(s->n_own + ids->n <= s->cap);
    memcpy(s->own + s->n_own, ids->id, (size_t)ids->n * sizeof *ids->id);
    if (s->logp)
        for (int i = 0; i < ids->n; i++)
            s->logp[s->n_own + i] = NAN; /* overwritten where it is observed */
    s->n_own += ids->n;
}

static void set_lpsi(struct run *r, int i)
{
    if (r->pop.status[i] != PARTICLE_DEAD)
        r->pop.lpsi[i] = r->p[i].log_obs + r->p[i].twist;
}

static void owe_draws(struct run *r)
{
    work_reset(r);
    r->phase = RUN_DRAW;
    for (int i = r->cohort; i < r->cohort_end; i++)
        if (r->pop.status[i] == PARTICLE_LIVE && !r->p[i].drew)
            owe(r, &r->p[i].seq, seq_len(&r->p[i].seq), 1);
}

static void begin_hole(struct run *r)
{
    for (int i = r->cohort; i < r->cohort_end; i++) {
        if (r->pop.status[i] == PARTICLE_DEAD)
            continue;
        r->pop.status[i] = PARTICLE_LIVE;
        r->p[i].hole_start = r->p[i].seq.n_own;
    }
    r->t = 0;
    owe_draws(r);
}

static void insert(struct run *r, const struct segment *g)
{
    work_reset(r);
    r->phase = RUN_FORCE;
    double factor = potential_factor(r->job, g->ids.id, g->ids.n);
    for (int i = r->cohort; i < r->cohort_end; i++) {
        struct particle *p = &r->p[i];
        if (r->pop.status[i] == PARTICLE_DEAD)
            continue;
        int before = seq_len(&p->seq);
        append_ids(&p->seq, &g->ids);
        p->twist += factor;
        set_lpsi(r, i);
        if (g->type != SEGMENT_OBSERVE)
            continue;
        p->seq.logp_from = before;
        p->seq.logp_sum = 0;
        owe(r, &p->seq, seq_len(&p->seq) - 1, 0);
    }
}

static int begin_final(struct run *r, struct err *err)
{
    phi_items_of_population(r, false);
    r->phi_final = true;
    r->phase = RUN_PHI;
    return phi_begin(r, err);
}

static void begin_cohort(struct run *r);

/* The cohort has come to its end: the next one, or the potentials. */
static int end_cohort(struct run *r, struct err *err)
{
    if (r->cohort_end == r->k)
        return begin_final(r, err);
    for (int i = r->cohort; i < r->cohort_end; i++)
        run_drop_cache(r, &r->p[i].seq);
    r->cohort = r->cohort_end;
    begin_cohort(r);
    return 0;
}

/* Go on after a segment: insert texts until there is something to compute. */
static int next_segment(struct run *r, struct err *err)
{
    const struct job *j = r->job;
    for (; r->segment < j->n_segments; r->segment++) {
        const struct segment *g = &j->segments[r->segment];
        if (g->type == SEGMENT_SAMPLE) {
            begin_hole(r);
            return 0;
        }
        insert(r, g);
        if (g->type == SEGMENT_OBSERVE)
            return 0;
    }
    return end_cohort(r, err);
}

/* ---- the root ---- */

/* The hidden state of a conditional twist's condition, which everything that draws needs. */
static void ask_condition(struct run *r)
{
    work_reset(r);
    owe(r, &r->condition, seq_len(&r->condition), 0);
}

/* Put the segments before the first hole into the root, one observed text at a time. */
static void root_advance(struct run *r)
{
    if (r->condition.state && r->condition.target == 0) {
        ask_condition(r);
        return;
    }
    if (r->condition.state)
        kv_truncate(r->m->pool, r->condition.kv, 0);
    struct seq *s = &r->root;
    const struct job *j = r->job;
    r->root_log_obs += s->logp_sum;
    s->logp_sum = 0;
    s->logp_from = INT_MAX;
    work_reset(r);
    while (r->segment < r->lead) {
        const struct segment *g = &j->segments[r->segment++];
        int before = seq_len(s);
        append_ids(s, &g->ids);
        if (g->type == SEGMENT_OBSERVE) {
            s->logp_from = before;
            owe(r, s, seq_len(s) - 1, 0);
            return;
        }
    }
    bool draw = j->kind == JOB_SAMPLE;
    owe(r, s, draw ? seq_len(s) : seq_len(s) - 1, draw ? r->k : 0);
    r->root_complete = true;
}

static void fork_particle(struct run *r, int i)
{
    struct seq *s = &r->p[i].seq;
    const struct seq *root = &r->root;
    memcpy(s->own, root->own, (size_t)root->n_own * sizeof *s->own);
    if (s->logp)
        memcpy(s->logp, root->logp, (size_t)root->n_own * sizeof *s->logp);
    s->n_own = root->n_own;
    s->base = root;
    s->n_base = root->kv->n_tokens;
    kv_fork(r->m->pool, s->kv, root->kv, s->n_base);
}

static void begin_samples(struct run *r)
{
    double factor = potential_factor(r->job, r->root.own, r->root.n_own);
    for (int i = r->cohort; i < r->cohort_end; i++) {
        fork_particle(r, i);
        r->p[i].log_obs = r->root_log_obs;
        r->p[i].twist = factor;
        set_lpsi(r, i);
    }
    r->segment = r->lead;
    r->hole = 0;
    r->clock_base = 0;
    r->n_steps = 0;
    begin_hole(r);
}

static void begin_scores(struct run *r)
{
    work_reset(r);
    r->phase = RUN_FORCE;
    for (int i = r->cohort; i < r->cohort_end; i++) {
        struct seq *s = &r->p[i].seq;
        fork_particle(r, i);
        s->logp_from = seq_len(s);
        append_ids(s, &r->job->completions[i]);
        owe(r, s, seq_len(s) - 1, 0);
    }
}

static void begin_cohort(struct run *r)
{
    int n = r->k - r->cohort;
    r->cohort_end = r->cohort + (n < r->cohort_size ? n : r->cohort_size);
    if (r->job->kind == JOB_SCORE)
        begin_scores(r);
    else
        begin_samples(r);
}

/* ---- drawing ---- */

/* Does the hole's text, whose last token is new, contain a stop string now? Only what the new token
 * can have completed is looked at. */
static bool stop_found(struct run *r, const struct particle *p, const struct segment *g)
{
    struct buf *tail = &r->m->bytes;
    size_t longest = 0, len;
    for (int i = 0; i < g->n_stop; i++)
        longest = g->stop_len[i] > longest ? g->stop_len[i] : longest;
    if (longest == 0)
        return false;
    int from = p->seq.n_own - 1;
    tokenizer_piece(r->m->tokenizer, p->seq.own[from], &len);
    for (size_t before = 0; before + 1 < longest && from > p->hole_start; before += len)
        tokenizer_piece(r->m->tokenizer, p->seq.own[--from], &len);
    buf_reset(tail);
    for (int i = from; i < p->seq.n_own; i++) {
        const char *piece = tokenizer_piece(r->m->tokenizer, p->seq.own[i], &len);
        buf_add(tail, piece, len);
    }
    for (int i = 0; i < g->n_stop; i++)
        if (tail->len >= g->stop_len[i] &&
            memmem(tail->data, tail->len, g->stop[i], g->stop_len[i]))
            return true;
    return false;
}

static void end_hole(struct run *r, int i, bool stopped)
{
    struct particle *p = &r->p[i];
    r->pop.status[i] = PARTICLE_DONE;
    p->stopped = stopped;
    int *span = r->span[i * r->n_holes + r->hole];
    span[0] = p->hole_start;
    span[1] = p->seq.n_own;
}

double run_calibration(const struct run *r, int t)
{
    const struct twist_spec *s = head_spec(r->job->twist.head);
    return s->calibration ? s->calibration[(t < s->max_tokens ? t : s->max_tokens) - 1] : 0;
}

/* log ψ of the text with the token drawn. A learned twist says it of the whole text, factors of the
 * token alone. */
static double next_twist(const struct run *r, const struct particle *p)
{
    switch (r->job->twist.type) {
    case TWIST_FACTOR:
        return p->twist + p->drawn.log_psi;
    case TWIST_LEARNED:
        return p->drawn.log_psi + run_calibration(r, r->t + 1);
    case TWIST_NONE:
    case TWIST_POTENTIAL:
        break;
    }
    return p->twist;
}

/* The particle takes the token it drew. */
static void commit(struct run *r, int i)
{
    struct particle *p = &r->p[i];
    const struct segment *g = &r->job->segments[r->segment];
    const struct propose_out *o = &p->drawn;
    if (o->token >= 0)
        p->twist = next_twist(r, p);
    smc_extend(&r->pop, i, o->token < 0 ? -INFINITY : o->log_p0, o->token < 0 ? 0 : o->log_q,
               p->log_obs + p->twist);
    if (r->pop.status[i] == PARTICLE_DEAD) {
        kv_truncate(r->m->pool, p->seq.kv, 0);
        return;
    }
    struct seq *s = &p->seq;
    CHECK(s->n_own < s->cap);
    if (s->logp)
        s->logp[s->n_own] = o->log_p0;
    s->own[s->n_own++] = o->token;
    p->log_p += o->log_p0;
    p->n_total++;
    if (tokenizer_is_eos(r->m->tokenizer, o->token) || stop_found(r, p, g))
        end_hole(r, i, true);
    else if (r->t + 1 == g->max_tokens)
        end_hole(r, i, false);
    run_trace_token(r, i);
}

/* log Σ_v p0 ψ of a live particle's next token, ψ absolute. */
static double next_lambda(const struct run *r, int i)
{
    const struct particle *p = &r->p[i];
    if (r->job->twist.type == TWIST_LEARNED)
        return p->log_obs + p->drawn.lambda + run_calibration(r, r->t + 1);
    return r->pop.lpsi[i] + p->drawn.lambda;
}

/* A step is over, and so may be the hole, or all. */
static int end_step(struct run *r, struct err *err)
{
    const struct smc_stats *stats = &r->weighing.stats;
    int active = count_live(r) + r->active_at[r->n_steps];
    r->active_at[r->n_steps] = active;
    r->max_steps = r->n_steps > r->max_steps ? r->n_steps : r->max_steps;
    if (r->job->ev_step && r->cohort_end == r->k)
        run_say_step(r, active, stats->ess, stats->log_mean);
    for (int i = r->cohort; i < r->cohort_end; i++)
        r->p[i].drew = false;
    r->t++;
    if (count_live(r) > 0) {
        owe_draws(r);
        return 0;
    }
    if (extinct(r))
        return begin_final(r, err);
    r->clock_base += r->job->segments[r->segment].max_tokens;
    r->hole++;
    r->segment++;
    r->t = 0;
    return next_segment(r, err);
}

static int weigh_after_draw(struct run *r)
{
    bool over = count_live(r) == 0 && r->segment + 1 == r->job->n_segments;
    return weigh(r, SMC_BY_TWIST, r->coupled && !over, end_step);
}

static bool twist_due(struct run *r)
{
    const struct twist_choice *t = &r->job->twist;
    bool over = count_live(r) == 0 && r->segment + 1 == r->job->n_segments;
    return t->type == TWIST_POTENTIAL && r->n_steps % t->every == 0 && !over;
}

/* What the population weighs after the draw is known already if it was adapted before it. */
static int take_tokens(struct run *r, struct err *err)
{
    for (int i = r->cohort; i < r->cohort_end; i++) {
        r->p[i].drew = r->pop.status[i] == PARTICLE_LIVE;
        if (r->p[i].drew)
            commit(r, i);
    }
    run_trace_cloud(r);
    if (r->job->ev_tokens)
        run_say_tokens(r);
    if (!twist_due(r))
        return r->adapted ? end_step(r, err) : weigh_after_draw(r);
    phi_items_of_population(r, true);
    r->phi_final = false;
    r->phase = RUN_PHI;
    return phi_begin(r, err);
}

static int weigh_before_draw(struct run *r)
{
    for (int i = 0; i < r->k; i++)
        if (r->pop.status[i] == PARTICLE_LIVE)
            r->pop.lambda[i] = next_lambda(r, i);
    bool all_equal = r->n_steps == 1; /* one and the same text in every slot */
    return weigh(r, SMC_BY_LAMBDA, !all_equal, take_tokens);
}

/* All live particles have drawn. */
static int draw_advance(struct run *r, struct err *err)
{
    r->n_steps++;
    return r->adapted ? weigh_before_draw(r) : take_tokens(r, err);
}

static int end_observed(struct run *r, struct err *err)
{
    if (extinct(r))
        return begin_final(r, err);
    r->segment++;
    return next_segment(r, err);
}

static int force_advance(struct run *r, struct err *err)
{
    for (int i = r->cohort; i < r->cohort_end; i++) {
        struct particle *p = &r->p[i];
        if (r->job->kind == JOB_SCORE) {
            p->log_p = p->seq.logp_sum;
            continue;
        }
        if (r->pop.status[i] == PARTICLE_DEAD)
            continue;
        p->log_obs += p->seq.logp_sum;
        p->seq.logp_from = INT_MAX; /* rows computed again want it no more */
        set_lpsi(r, i);
    }
    if (r->job->kind == JOB_SCORE)
        return end_cohort(r, err);
    bool over = r->segment + 1 == r->job->n_segments;
    return weigh(r, SMC_BY_TWIST, !over, end_observed);
}

/* ---- potentials have been evaluated ---- */

/* ψ = φ^power of the partial texts. A text whose φ is 0 so far can still come to have φ > 0, so its
 * ψ must not be 0: it gets a finite floor under the population's smallest. */
static void set_twists(struct run *r)
{
    double floor_log = 0;
    for (int i = 0; i < r->phi.n_items; i++) {
        double x = potential_weigh(r->job->twist.power, r->phi.item[i].log_phi);
        if (isfinite(x) && x < floor_log)
            floor_log = x;
    }
    floor_log -=
        2; /* lower, and these texts die out in nearly every run, to weigh e^floor in one */
    for (int i = 0; i < r->k; i++) {
        if (!r->p[i].drew || r->pop.status[i] == PARTICLE_DEAD)
            continue;
        double x = potential_weigh(r->job->twist.power, r->phi.item[r->phi.item_of[i]].log_phi);
        r->p[i].twist = isfinite(x) ? x : floor_log;
        set_lpsi(r, i);
    }
}

/* Unweighted draws from a weighted population, which must have some weight. */
static void say_choices(struct run *r)
{
    const struct job *j = r->job;
    int32_t *chosen = ARENA_NEW(&r->job->arena, int32_t, j->n_choices);
    smc_choose(r->weight, r->k, j->scheme, j->seed, j->n_choices, chosen);
    for (int i = 0; i < j->n_choices; i++)
        run_say_sample(r, chosen[i], i);
}

static void fail_extinct(struct run *r)
{
    struct err err;
    err_field(&err, "potential",
              "is 0 for every one of the %d particles: more of them, a twist or a softer potential "
              "may find a text that it allows",
              r->k);
    run_fail(r, &err);
}

static void say_samples(struct run *r)
{
    for (int i = 0; i < r->k; i++)
        run_say_sample(r, i, i);
}

static void finish_samples(struct run *r)
{
    int64_t tokens = 0;
    for (int i = 0; i < r->k; i++) {
        bool dead = r->pop.status[i] == PARTICLE_DEAD;
        r->log_phi[i] = dead ? -INFINITY : r->phi.item[r->phi.item_of[i]].log_phi + r->p[i].log_obs;
        tokens += r->p[i].n_total;
    }
    double ess, log_z = smc_finish(&r->pop, r->log_phi, r->log_w, r->weight, &ess);
    r->m->stats.extinctions += log_z == -INFINITY;
    run_trace_end(r);
    for (;
         r->n_steps < r->max_steps && r->job->ev_step;) { /* an earlier cohort went on for longer */
        r->n_steps++;
        run_say_step(r, r->active_at[r->n_steps], r->k, r->root_log_obs);
    }
    if (r->job->n_choices && log_z == -INFINITY) {
        fail_extinct(r);
        return;
    }
    if (r->job->n_choices)
        say_choices(r);
    else if (r->job->ev_sample)
        say_samples(r);
    run_say_done(r, log_z, ess, tokens);
}

static int phi_over(struct run *r)
{
    if (!r->phi_final) {
        set_twists(r);
        return weigh_after_draw(r);
    }
    if (r->job->kind == JOB_SCORE)
        score_finish(r);
    else
        finish_samples(r);
    return 0;
}

int run_advance(struct run *r, struct err *err)
{
    if (r->overflows)
        return err_set(err, ERR_INVALID, "the twist's values are beyond all numbers");
    while (r->outstanding == 0 && r->phase != RUN_WEIGH && r->phase != RUN_ENDED) {
        int rc = 0;
        switch (r->phase) {
        case RUN_ROOT:
            if (!r->root_complete) {
                root_advance(r);
            } else {
                r->first_draw = seconds_now();
                begin_cohort(r);
            }
            break;
        case RUN_DRAW:
            rc = draw_advance(r, err);
            break;
        case RUN_FORCE:
            rc = force_advance(r, err);
            break;
        case RUN_PHI:
            rc = phi_ended(r) ? phi_over(r) : phi_advance(r, err);
            break;
        case RUN_WEIGHED:
            rc = r->then(r, err);
            break;
        case RUN_STUDY:
            rc = r->ops->advance(r, err);
            break;
        case RUN_WEIGH:
        case RUN_ENDED:
            break;
        }
        if (rc != 0)
            return -1;
    }
    return 0;
}
