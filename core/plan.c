/* What a job will need, its admission, and how its rows are collected under its page quota. */
#include "run.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "potential.h"
#include "study.h"

enum { MAX_BRANCHES = 64 };

/* ---- the plan
 * -------------------------------------------------------------------------------------- */

static int longest_own(const struct job *j)
{
    int n = 0;
    for (int i = 0; i < j->n_segments; i++)
        n += j->segments[i].type == SEGMENT_SAMPLE ? j->segments[i].max_tokens
                                                   : j->segments[i].ids.n;
    for (int i = 0; i < j->n_completions; i++)
        n = j->completions[i].n > n ? j->completions[i].n : n;
    return n;
}

/* Tokens of a judge's template with an empty text: what its filled-in texts are at least. */
static int donor_length(struct run *r, const struct potential *p, struct err *err)
{
    struct buf text = {0};
    struct tokens ids = {0};
    const struct job *j = r->job;
    judge_fill(&text, p, j->prompt, j->prompt_len, "", 0);
    int flags = TOKENIZE_START | (j->special ? TOKENIZE_SPECIAL : 0);
    int rc =
        tokenizer_encode(r->m->tokenizer, text.data ? text.data : "", text.len, flags, &ids, err);
    buf_free(&text);
    free(ids.ids);
    return rc == 0 ? ids.n : -1;
}

/* The named twist: there, of this model, and no larger than twist memory. */
static int find_twist(struct run *r, struct err *err)
{
    const size_t mib = 1 << 20, most = r->m->info.twist_bytes;
    if (machine_find_twist(r->m, r->job->twist.name, &r->twist, err) != 0)
        return -1;
    size_t bytes = machine_head_bytes(r->m, &r->twist.spec);
    if (bytes <= most)
        return 0;
    return err_field(err, "twist.name",
                     "needs %zu MiB of twist memory, the server has %zu (--twist-memory)",
                     (bytes + mib - 1) / mib, most / mib);
}

/* The text of the only continuation potential; none: empty. */
static struct ids only_continuation(const struct job *j)
{
    struct ids found = {0};
    for (int i = 0; i < j->n_potentials; i++) {
        if (j->potentials[i].type != POTENTIAL_CONTINUATION)
            continue;
        if (found.n)
            return (struct ids){0};
        found = j->potentials[i].continuation;
    }
    return found;
}

static int plan_condition(struct run *r, bool conditional, struct err *err)
{
    struct ids *condition = &r->job->twist.condition;
    const char *param = "twist.condition";
    if (!conditional)
        return condition->n == 0 ? 0 : err_field(err, param, "this twist takes none");
    if (condition->n == 0)
        *condition = only_continuation(r->job);
    if (condition->n == 0)
        return err_field(err, param,
                         "this twist needs one, or exactly one potential of type continuation");
    if (condition->n > r->m->info.context)
        return err_field(err, param, "%d tokens exceed the context of %d", condition->n,
                         r->m->info.context);
    return 0;
}

static int plan_twist(struct run *r, struct err *err)
{
    struct twist_choice *t = &r->job->twist;
    r->ess_threshold = r->job->ess_threshold;
    if (t->type != TWIST_LEARNED)
        return 0;
    if (!t->head && find_twist(r, err) != 0)
        return -1;
    const struct twist_spec *spec = t->head ? head_spec(t->head) : &r->twist.spec;
    if (!spec->resample)
        r->ess_threshold = 0;
    return plan_condition(r, spec->conditional, err);
}

static int plan_branches(struct run *r, struct err *err)
{
    const struct job *j = r->job;
    r->donor_len = ARENA_NEW(&r->job->arena, int, j->n_potentials + 1);
    for (int i = 0; i < j->n_potentials; i++) {
        const struct potential *p = &j->potentials[i];
        if (!potential_needs_model(p))
            continue;
        int len = r->n_prompt + r->cap;
        if (p->type == POTENTIAL_CONTINUATION) {
            len += p->continuation.n;
        } else {
            r->donor_len[i] = donor_length(r, p, err);
            if (r->donor_len[i] < 0)
                return -1;
            /* the text is tokenised anew: as a rule to about as many tokens as it was drawn in */
            len = r->donor_len[i] + 2 * r->cap + judge_longest_answer(p) + 16;
        }
        len = len < r->m->info.context ? len : r->m->info.context;
        r->branch_cap = len > r->branch_cap ? len : r->branch_cap;
        r->n_branches = r->k < MAX_BRANCHES ? r->k : MAX_BRANCHES;
    }
    return 0;
}

/* Pages: all of it if that fits, else a share that lets the population go through in parts. */
static int plan_pages(struct run *r, struct err *err)
{
    const struct job *j = r->job;
    int total = r->m->info.n_pages, root = r->n_prompt, branch = 0;
    for (int i = 0; i < r->lead; i++)
        root += j->segments[i].ids.n;
    r->root_pages = kv_pages_for(root) + kv_pages_for(j->twist.condition.n);
    for (int i = 0; i < j->n_potentials; i++)
        r->root_pages += kv_pages_for(r->donor_len[i]);
    r->particle_pages = kv_pages_for(r->n_prompt + r->cap) - r->n_prompt / KV_PAGE + 1;
    if (r->n_branches)
        branch = kv_pages_for(r->branch_cap) + 1;
    int64_t all =
        r->root_pages + (int64_t)r->k * r->particle_pages + (int64_t)r->n_branches * branch;
    int least = r->root_pages + (2 * r->particle_pages > branch ? 2 * r->particle_pages : branch);
    int share = 3 * (total / 4) > least ? 3 * (total / 4) : least;
    if (least > total)
        return err_field(err, j->kind == JOB_SAMPLE ? "max_tokens" : "completions",
                         "this needs %d KV pages of %d tokens at the least, the server has %d",
                         least, KV_PAGE, total);
    r->quota = all < share ? (int)all : share;
    r->cohort_size = r->k;
    if (r->quota < all && !r->coupled && !r->trace) /* a trace tells of the whole population */
        r->cohort_size = (r->quota - r->root_pages) / r->particle_pages;
    return 0;
}

static bool scores_log_psi(const struct job *j)
{
    return j->kind == JOB_SCORE && j->twist.type == TWIST_LEARNED;
}

/* Host memory: tokens, their log p, page tables, holes, and scratch, by population and branches. */
static int plan_host(struct run *r, struct err *err)
{
    const struct job *j = r->job;
    size_t per_token = sizeof(int32_t) + (j->logprobs || j->per_token ? sizeof(double) : 0) +
                       (scores_log_psi(j) ? sizeof(double) : 0) +
                       (size_t)j->top * sizeof(struct event_top);
    size_t particle = sizeof(struct particle) + sizeof(struct kv_seq) + 256 +
                      (size_t)r->cap * per_token + 2 * sizeof(int) * (size_t)(r->n_holes + 1) +
                      sizeof(int32_t) * (size_t)kv_pages_for(r->n_prompt + r->cap);
    size_t branch = sizeof(struct branch) + 2 * sizeof(int32_t) * (size_t)r->branch_cap;
    r->host_bytes = j->arena.bytes + (size_t)(r->k + 2) * particle +
                    (size_t)(r->n_branches + j->n_potentials) * branch;
    if (r->host_bytes <= JOB_BYTES)
        return 0;
    return err_field(
        err, j->kind == JOB_SAMPLE ? "particles" : "completions",
        "%d texts of up to %d tokens need %zu MiB, more than the %d MiB there are for requests",
        r->k, r->cap, r->host_bytes >> 20, JOB_MB);
}

/* Do weights change before the end, so that the population must step as one? */
static bool is_coupled(const struct run *r)
{
    const struct job *j = r->job;
    if (j->kind == JOB_SCORE)
        return false;
    if (j->twist.type == TWIST_LEARNED && r->ess_threshold == 0)
        return false;
    if (j->twist.type != TWIST_NONE || r->ess_threshold >= 1)
        return true;
    for (int i = r->lead; i < j->n_segments; i++)
        if (j->segments[i].type == SEGMENT_OBSERVE)
            return true;
    return false;
}

static int plan(struct run *r, struct err *err)
{
    const struct job *j = r->job;
    r->k = j->kind == JOB_SCORE ? j->n_completions : j->particles;
    r->n_prompt = j->prompt_ids.n;
    r->cap = longest_own(j);
    while (r->lead < j->n_segments && j->segments[r->lead].type != SEGMENT_SAMPLE)
        r->lead++;
    for (int i = 0; i < j->n_segments; i++)
        r->n_holes += j->segments[i].type == SEGMENT_SAMPLE;
    if (plan_twist(r, err) != 0)
        return -1;
    r->coupled = is_coupled(r);
    r->adapted = r->coupled && !j->base_proposal &&
                 (j->twist.type == TWIST_FACTOR || j->twist.type == TWIST_LEARNED);
    if (r->n_prompt + r->cap > r->m->info.context)
        return err_field(err, j->kind == JOB_SAMPLE ? "max_tokens" : "completions",
                         "the prompt's %d tokens and %d more exceed the context of %d", r->n_prompt,
                         r->cap, r->m->info.context);
    if (r->k > r->m->max_particles)
        return err_field(err, j->kind == JOB_SAMPLE ? "particles" : "completions",
                         "%d exceeds the %d particles this server runs at once", r->k,
                         r->m->max_particles);
    if (plan_branches(r, err) != 0 || plan_host(r, err) != 0)
        return -1;
    return plan_pages(r, err);
}

/* A study has its job's learned twist for its runs, so that all of them have the same. */
static int plan_study(struct run *r, struct err *err)
{
    return plan_twist(r, err) == 0 ? study_plan(r, err) : -1;
}

int run_open(struct run **out, struct machine *m, struct job *job, struct sink sink,
             struct trace *trace, struct err *err)
{
    struct run *r = ARENA_NEW(&job->arena, struct run, 1);
    *r = (struct run){.m = m,
                      .job = job,
                      .sink = sink,
                      .trace = trace,
                      .submitted = seconds_now(),
                      .prior_slot = -1};
    r->ops = study_ops_of(job->kind);
    if ((r->ops ? plan_study(r, err) : plan(r, err)) != 0)
        return -1;
    CHECK(!trace || (trace->k == r->k && trace->t_max >= r->cap && r->n_holes <= 1));
    *out = r;
    return 0;
}

/* ---- admission
 * ---------------------------------------------------------------------------------------- */

static int free_prior(const struct machine *m)
{
    for (int i = 0; i < MAX_RUNS; i++)
        if (!m->prior_used[i])
            return i;
    return -1;
}

/* Is there a learned twist for this run to take? */
static bool takes_head(const struct run *r)
{
    return r->job->twist.type == TWIST_LEARNED && !r->job->twist.head;
}

static bool head_fits(const struct run *r, bool later)
{
    return !takes_head(r) || machine_head_fits(r->m, &r->twist, later);
}

bool run_waits_for_study(const struct run *r)
{
    return !head_fits(r, true);
}

bool run_fits(const struct run *r)
{
    const struct machine *m = r->m;
    if (r->ops)
        return m->n_studies < MAX_STUDIES && r->twist_bytes <= machine_twist_bytes_free(m) &&
               head_fits(r, false);
    return m->kv_reserved + r->quota <= m->info.n_pages &&
           m->host_reserved + r->host_bytes <= JOB_BYTES &&
           m->particles + r->k <= m->max_particles && free_prior(m) >= 0 && head_fits(r, false);
}

static void seq_init(struct run *r, struct seq *s, struct kv_seq *kv, int n_pages, int cap,
                     bool logp)
{
    struct arena *a = &r->job->arena;
    *kv = (struct kv_seq){
        .account = &r->account, .page = ARENA_NEW(a, int32_t, n_pages), .cap = n_pages};
    *s = (struct seq){.kv = kv,
                      .head = r->job->prompt_ids.id,
                      .n_head = r->n_prompt,
                      .own = ARENA_NEW(a, int32_t, cap + 1),
                      .cap = cap,
                      .logp_from = INT_MAX,
                      .logp = logp ? ARENA_NEW(a, double, cap + 1) : NULL,
                      .hidden = -1,
                      .done = true};
}

static void branch_init(struct run *r, struct branch *b, int n_answers)
{
    seq_init(r, &b->seq, &b->kv, kv_pages_for(r->branch_cap), r->branch_cap, false);
    b->seq.own_context = true;
    b->item = -1;
    b->answer_log_p = ARENA_NEW(&r->job->arena, double, n_answers + 1);
}

static void allocate(struct run *r)
{
    const struct job *j = r->job;
    struct arena *a = &r->job->arena;
    int k = r->k, n_pages = kv_pages_for(r->n_prompt + r->cap), n_answers = 0;
    bool logp = j->logprobs || j->per_token;
    seq_init(r, &r->root, &r->root_kv, n_pages, r->cap, logp);
    r->p = ARENA_NEW(a, struct particle, k);
    r->kv = ARENA_NEW(a, struct kv_seq, k);
    for (int i = 0; i < k; i++) {
        seq_init(r, &r->p[i].seq, &r->kv[i], n_pages, r->cap, logp);
        r->p[i].seq.particle = i;
        r->p[i].seq.scored = j->kind == JOB_SCORE;
        if (scores_log_psi(j))
            r->p[i].seq.log_psi = ARENA_NEW(a, double, r->cap);
        if (j->top)
            r->p[i].seq.top = ARENA_NEW(a, struct event_top, (size_t)r->cap * (size_t)j->top);
        if (r->adapted)
            r->p[i].seq.hidden = r->m->hidden_free[--r->m->n_hidden_free];
    }
    smc_init(&r->pop, a, k, j->scheme, r->ess_threshold, j->seed);
    r->pop.pinned = j->pinned;
    r->span = arena_alloc(a, sizeof *r->span * (size_t)k * (size_t)(r->n_holes + 1));
    r->active_at = ARENA_NEW(a, int, r->cap + 2);
    int n_work = (k > r->n_branches ? k : r->n_branches) + 1;
    r->work = ARENA_NEW(a, struct seq *, n_work);
    r->log_w = ARENA_NEW(a, double, k);
    r->weight = ARENA_NEW(a, double, k);
    r->log_phi = ARENA_NEW(a, double, k);
    r->log_twist = ARENA_NEW(a, double, r->cap + 1);
    r->texts = ARENA_NEW(a, struct event_text, k);
    r->holes = ARENA_NEW(a, struct event_hole, r->n_holes + 1);
    r->tokens = j->ev_tokens ? ARENA_NEW(a, struct event_token, k) : NULL;
    for (int i = 0; i < j->n_potentials; i++)
        if (j->potentials[i].type == POTENTIAL_JUDGE &&
            j->potentials[i].judge.n_answers > n_answers)
            n_answers = j->potentials[i].judge.n_answers;
    r->phi.n_branches = r->n_branches;
    r->phi.branch = ARENA_NEW(a, struct branch, r->n_branches);
    for (int i = 0; i < r->n_branches; i++)
        branch_init(r, &r->phi.branch[i], n_answers);
    r->phi.donor = ARENA_NEW(a, struct branch, j->n_potentials);
    for (int i = 0; i < j->n_potentials; i++)
        if (j->potentials[i].type == POTENTIAL_JUDGE)
            branch_init(r, &r->phi.donor[i], 0);
    phi_prepare(r);
}

/* The lexicons' sum as one sparse list: log ψ of each next token. */
static int merge_lexicons(const struct job *j, int vocab, int32_t **ids, float **bias)
{
    float *dense = calloc((size_t)vocab, sizeof *dense);
    CHECK(dense && "out of memory");
    for (int i = 0; i < j->n_potentials; i++) {
        const struct potential *p = &j->potentials[i];
        if (p->type == POTENTIAL_LEXICON)
            for (int e = 0; e < p->lexicon.n; e++)
                dense[p->lexicon.id[e]] += (float)potential_weigh(p->weight, p->lexicon.bias[e]);
    }
    int n = 0;
    for (int v = 0; v < vocab; v++)
        n += dense[v] != 0;
    *ids = calloc((size_t)n + 1, sizeof **ids);
    *bias = calloc((size_t)n + 1, sizeof **bias);
    CHECK(*ids && *bias && "out of memory");
    n = 0;
    for (int v = 0; v < vocab; v++)
        if (dense[v] != 0) {
            (*ids)[n] = v;
            (*bias)[n++] = dense[v];
        }
    free(dense);
    return n;
}

int run_prior_open(struct machine *m, const struct job *j, struct prior *out, void **memory)
{
    struct backend *b = m->backend;
    const int32_t *eos;
    int32_t *psi_id = NULL;
    float *psi = NULL;
    int n_eos = tokenizer_eos(m->tokenizer, &eos), n_psi = 0;
    if (j->twist.type == TWIST_FACTOR)
        n_psi = merge_lexicons(j, m->info.config.vocab, &psi_id, &psi);
    size_t n = 2 * (size_t)j->n_bias + (size_t)n_eos + 2 * (size_t)n_psi;
    int rc = b->ops->alloc(b, memory, (n + 1) * sizeof(int32_t));
    char *at = *memory;
    struct {
        const void *host;
        int n;
        const void *dev;
    } list[] = {{j->bias_id, j->n_bias, NULL},
                {j->bias, j->n_bias, NULL},
                {eos, n_eos, NULL},
                {psi_id, n_psi, NULL},
                {psi, n_psi, NULL}};
    for (int i = 0; i < 5 && rc == 0; i++) {
        size_t bytes = (size_t)list[i].n * 4;
        list[i].dev = at;
        if (bytes)
            rc = b->ops->upload(b, at, list[i].host, bytes);
        at += bytes;
    }
    if (rc == 0 && n_psi > 0) /* until then psi is read */
        rc = b->ops->download(b, psi, list[4].dev, sizeof *psi);
    *out = (struct prior){.temperature = j->temperature,
                          .top_k = j->top_k,
                          .top_p = j->top_p,
                          .bias_id = list[0].dev,
                          .bias = list[1].dev,
                          .n_bias = j->n_bias,
                          .eos_id = list[2].dev,
                          .n_eos = n_eos,
                          .psi_id = list[3].dev,
                          .psi = list[4].dev,
                          .n_psi = n_psi,
                          .base_proposal = j->base_proposal};
    free(psi_id);
    free(psi);
    return rc;
}

/* The run's entry in the table of priors. It is waited for, as the run and its job may be gone
 * before anything else is downloaded. */
static int upload_prior(struct run *r)
{
    struct machine *m = r->m;
    struct backend *b = m->backend;
    struct prior *dev = m->priors + r->prior_slot;
    return run_prior_open(m, r->job, &r->prior, &r->prior_memory) ||
           b->ops->upload(b, dev, &r->prior, sizeof r->prior) ||
           b->ops->download(b, &r->prior, dev, sizeof r->prior);
}

/* The condition is a text of its own, from position 0 on. */
static int open_condition(struct run *r)
{
    struct backend *b = r->m->backend;
    const struct ids *ids = &r->job->twist.condition;
    seq_init(r, &r->condition, &r->condition_kv, kv_pages_for(ids->n), 0, false);
    r->condition.head = ids->id;
    r->condition.n_head = ids->n;
    r->condition.state = r->trace ? r->trace->condition : NULL;
    if (r->condition.state)
        return 0;
    size_t bytes = (size_t)r->m->info.config.dim * act_size(b->act);
    if (b->ops->alloc(b, &r->condition_memory, bytes) != 0)
        return -1;
    r->condition.state = r->condition_memory;
    return 0;
}

static int take_head(struct run *r, struct err *err)
{
    if (!takes_head(r))
        return 0;
    if (machine_take_head(r->m, &r->twist, r->ops != NULL, &r->head, err) != 0)
        return -1;
    r->job->twist.head = r->head;
    return 0;
}

static int open_twist(struct run *r, struct err *err)
{
    if (take_head(r, err) != 0)
        return -1;
    bool conditional = r->job->twist.head && head_spec(r->job->twist.head)->conditional;
    if (conditional && open_condition(r) != 0)
        return err_set(err, ERR_INTERNAL, "%s", r->m->backend->why);
    return 0;
}

int run_admit(struct run *r, struct err *err)
{
    struct machine *m = r->m;
    r->admitted = seconds_now();
    if (r->ops) {
        m->n_studies++;
        return take_head(r, err) == 0 ? study_admit(r, err) : -1;
    }
    r->prior_slot = free_prior(m);
    m->prior_used[r->prior_slot] = true;
    m->kv_reserved += r->quota;
    m->host_reserved += r->host_bytes;
    m->particles += r->k;
    r->account.limit = r->quota;
    allocate(r);
    m->stats.prompt_tokens += (uint64_t)r->n_prompt;
    if (open_twist(r, err) != 0)
        return -1;
    if (upload_prior(r) != 0)
        return err_set(err, ERR_INTERNAL, "%s", m->backend->why);
    r->phase = RUN_ROOT;
    return run_advance(r, err);
}

static void release(struct run *r)
{
    struct machine *m = r->m;
    for (int i = r->k - 1; i >= 0; i--) {
        kv_truncate(m->pool, &r->kv[i], 0);
        if (r->p[i].seq.hidden >= 0)
            m->hidden_free[m->n_hidden_free++] = r->p[i].seq.hidden;
    }
    for (int i = 0; i < r->phi.n_branches; i++)
        kv_truncate(m->pool, &r->phi.branch[i].kv, 0);
    for (int i = 0; i < r->job->n_potentials; i++)
        if (r->job->potentials[i].type == POTENTIAL_JUDGE)
            kv_truncate(m->pool, &r->phi.donor[i].kv, 0);
    kv_truncate(m->pool, &r->root_kv, 0);
    if (r->condition.kv)
        kv_truncate(m->pool, r->condition.kv, 0);
    m->backend->ops->release(m->backend, r->condition_memory);
    m->backend->ops->release(m->backend, r->prior_memory);
    m->prior_used[r->prior_slot] = false;
    m->kv_reserved -= r->quota;
    m->host_reserved -= r->host_bytes;
    m->particles -= r->k;
}

void run_close(struct run *r)
{
    if (r->prior_slot >= 0)
        release(r);
    if (r->ops) {
        study_close(r);
        r->m->n_studies -= r->admitted > 0;
    }
    if (r->head)
        machine_give_head(r->m, r->head, r->ops != NULL);
    if (r->sink.closed)
        r->sink.closed(r->sink.user);
    job_free(r->job); /* the run lies in its arena */
}

/* ---- collecting rows
 * ------------------------------------------------------------------------------------- */

bool run_drop_cache(struct run *r, struct seq *s)
{
    int used = r->account.used;
    kv_truncate(r->m->pool, s->kv, 0);
    if (s->base) {
        int n = s->n_base < s->base->kv->n_tokens ? s->n_base : s->base->kv->n_tokens;
        kv_fork(r->m->pool, s->kv, s->base->kv, n);
    }
    return r->account.used < used;
}

/* Does this step copy a page of s? Such a page must not change hands before the copy is done. */
static bool is_copied_from(const struct batch *b, const struct kv_seq *s)
{
    for (int i = 0; i < b->n_cow; i++)
        for (int j = 0; j < s->n_pages; j++)
            if (s->page[j] == b->cow_from[i])
                return true;
    return false;
}

static bool give_up(struct run *r, struct seq *s)
{
    if (s->in_step == r->m->step || s->kv->n_tokens <= s->n_base ||
        is_copied_from(&r->m->batch, s->kv))
        return false;
    int cached = s->kv->n_tokens;
    bool freed = run_drop_cache(r, s);
    r->m->stats.recomputed_tokens += (uint64_t)(cached - s->kv->n_tokens);
    return freed;
}

/* Free pages of the account so that `work[self]` can go on. Of those that need nothing more in
 * this phase, then of those behind it in line; never of those before it, so the first in line
 * always gets through. */
static bool make_room(struct run *r, int self)
{
    for (int i = r->k - 1; i >= 0; i--)
        if (r->p[i].seq.done && give_up(r, &r->p[i].seq))
            return true;
    for (int i = r->n_work - 1; i >= 0; i--)
        if ((i > self || r->work[i]->done) && give_up(r, r->work[i]))
            return true;
    return false;
}

int run_collect(struct run *r, int budget)
{
    int n = 0;
    for (int i = 0; i < r->n_work && n < budget; i++) {
        struct seq *s = r->work[i];
        if (s->done || s->kv->n_tokens >= s->target)
            continue;
        int added = step_add(r->m, r, s, budget - n);
        while (added == 0 && make_room(r, i))
            added = step_add(r->m, r, s, budget - n);
        if (added == 0)
            break;
        n += added;
    }
    return n;
}

void run_delivered(struct run *r, struct seq *s)
{
    s->done = true;
    r->outstanding--;
}
