/* Runs with learned twists: what they write down agrees with itself, with scored texts and with the
 * head's own numbers; who else is in the step changes nothing; twist memory is shared and bounded.
 */
#include "../machine_run.h"

static const int32_t CONDITION[] = {4, 2, 7}, OTHER_CONDITION[] = {9};
static const float CALIBRATION[] = {1.5f, -2, 0.7f, 0.25f};

static struct job *new_job(enum job_kind kind, const char *twist, int particles, int max_tokens)
{
    struct job *j = job_new();
    j->kind = kind;
    j->prompt_ids = (struct ids){PROMPT, 6};
    j->seed = 9;
    j->particles = particles;
    j->temperature = 3;
    if (twist)
        j->twist = (struct twist_choice){.type = TWIST_LEARNED, .name = twist};
    j->base_proposal = !twist;
    if (kind != JOB_SAMPLE)
        return j;
    j->segments = ARENA_NEW(&j->arena, struct segment, 1);
    j->segments[0] = (struct segment){.type = SEGMENT_SAMPLE, .max_tokens = max_tokens};
    j->n_segments = 1;
    return j;
}

static void add_lexicon(struct job *j)
{
    static const int32_t id[] = {3, 5};
    static const float bias[] = {0.7f, -0.4f};
    j->potentials = ARENA_NEW(&j->arena, struct potential, 1);
    j->potentials[0] =
        (struct potential){.type = POTENTIAL_LEXICON, .weight = 1, .lexicon = {id, bias, 2}};
    j->n_potentials = 1;
}

static struct job *conditioned(struct job *j, const int32_t *ids, int n)
{
    j->twist.condition = (struct ids){ids, n};
    return j;
}

static void save_twists(const struct machine *m)
{
    struct twist_spec s = random_spec(m, "linear", 1, false);
    s.max_tokens = 4;
    save_random(&s, 1);
    s = random_spec(m, "calibrated", 1, false);
    s.max_tokens = 4;
    s.calibration = CALIBRATION;
    save_random(&s, 1); /* the same numbers */
    s = random_spec(m, "mlp", 3, false);
    save_random(&s, 2);
    s = random_spec(m, "conditional", 1, true);
    save_random(&s, 3);
    s = random_spec(m, "proposer", 1, false);
    s.resample = false;
    save_random(&s, 4);
}

/* A page holds 16 tokens of 2 layers, 2 heads of 4 floats, keys and values: 2 KiB. These are hardly
 * more than two particles need. */
enum { SMALL_KV = 16 * 2048 };

/* ---- what a run says ---- */

struct record {
    struct buf said;
    double log_z, step_log_z[64], log_w[64];
    int n_steps, n_resamples;
    struct { /* of a scored text */
        double log_p, log_q, log_phi, log_twist[64];
    } score[64];
};

static int record_event(void *user, const struct event *e)
{
    struct record *r = user;
    CHECK(e->type != EVENT_ERROR);
    if (e->type == EVENT_STEP)
        r->step_log_z[r->n_steps++] = e->step.log_z;
    r->n_resamples += e->type == EVENT_RESAMPLE;
    if (e->type == EVENT_SAMPLE) {
        r->log_w[e->sample.index] = e->sample.log_weight;
        buf_printf(&r->said, "%a %a %a %a\n", e->sample.log_weight, e->sample.weight,
                   e->sample.log_p, e->sample.log_phi);
        buf_add(&r->said, e->sample.tokens, (size_t)e->sample.n_tokens * sizeof(int32_t));
    }
    if (e->type == EVENT_SCORE) {
        int i = e->score.index;
        r->score[i].log_p = e->score.log_p;
        r->score[i].log_q = e->score.log_q;
        r->score[i].log_phi = e->score.log_phi;
        if (e->score.log_twist)
            memcpy(r->score[i].log_twist, e->score.log_twist,
                   (size_t)e->score.n_tokens * sizeof(double));
    }
    if (e->type == EVENT_DONE)
        r->log_z = e->done.log_z;
    return 0;
}

static struct run *recorded(struct machine *m, struct job *j, struct record *r, struct trace *t)
{
    *r = (struct record){0};
    return run_new(m, j, (struct sink){record_event, NULL, r}, t);
}

static struct run *small_run(struct machine *m, const char *twist)
{
    static struct record ignored;
    return recorded(m, new_job(JOB_SAMPLE, twist, 2, 4), &ignored, NULL);
}

/* ---- traces ---- */

struct traced {
    struct arena arena;
    struct trace t;
    struct record said;
    float *hidden;            /* (t_max k, dim) copied to the host */
    float condition[2 * DIM]; /* its first half */
};

static void traced_run(struct machine *m, struct job *j, struct traced *out)
{
    const struct backend_ops *ops = m->backend->ops;
    bool score = j->kind == JOB_SCORE;
    int k = score ? j->n_completions : j->particles;
    int t_max = score ? j->completions[0].n : j->segments[0].max_tokens;
    for (int i = 0; score && i < k; i++)
        t_max = j->completions[i].n > t_max ? j->completions[i].n : t_max;
    size_t bytes = sizeof(float) * (size_t)(t_max * k) * DIM;
    *out = (struct traced){0};
    trace_init(&out->t, &out->arena, k, t_max);
    out->hidden = arena_alloc(&out->arena, bytes);
    CHECK(ops->alloc(m->backend, &out->t.hidden, bytes) == 0);
    CHECK(ops->alloc(m->backend, &out->t.condition, sizeof out->condition) == 0);
    struct run *r = recorded(m, j, &out->said, &out->t);
    run_together(m, &r, 1);
    CHECK(ops->download(m->backend, out->hidden, out->t.hidden, bytes) == 0);
    CHECK(ops->download(m->backend, out->condition, out->t.condition, sizeof out->condition) == 0);
    ops->release(m->backend, out->t.hidden);
    ops->release(m->backend, out->t.condition);
}

static void traced_free(struct traced *t)
{
    buf_free(&t->said.said);
    arena_free(&t->arena);
}

/* The texts of a finished population, scored under the same twist. */
static void score_texts(struct machine *m, const struct traced *from, struct job *j,
                        struct traced *out)
{
    const struct trace *t = &from->t;
    j->completions = ARENA_NEW(&j->arena, struct ids, t->k);
    j->n_completions = t->k;
    for (int i = 0; i < t->k; i++) {
        int n = t->n_history[i];
        int32_t *ids = ARENA_NEW(&j->arena, int32_t, n);
        for (int s = 0; s < n; s++)
            ids[s] = t->entry[t->history[i * t->t_max + s]].token;
        j->completions[i] = (struct ids){ids, n};
    }
    traced_run(m, j, out);
}

/* Everything that was written down of drawn tokens is, bit for bit, what is written down of the
 * same tokens when they are given. */
static void expect_as_scored(const struct traced *drawn, const struct traced *scored)
{
    const struct trace *d = &drawn->t, *s = &scored->t;
    for (int i = 0; i < d->k; i++) {
        EXPECT_INT(s->n_history[i], d->n_history[i]);
        double log_q = 0, log_p = 0;
        for (int n = 0; n < d->n_history[i]; n++) {
            int de = d->history[i * d->t_max + n], se = s->history[i * s->t_max + n];
            const struct trace_entry *a = &d->entry[de], *b = &s->entry[se];
            EXPECT_INT(de / d->k, n);
            EXPECT_INT(se, n * s->k + i);
            EXPECT(a->token == b->token && a->ended == b->ended && a->log_p0 == b->log_p0 &&
                   a->log_q == b->log_q && a->log_psi == b->log_psi && a->lambda == b->lambda);
            EXPECT_INT(a->ended, n + 1 == d->n_history[i]);
            EXPECT(memcmp(drawn->hidden + de * DIM, scored->hidden + se * DIM,
                          DIM * sizeof(float)) == 0);
            log_q += a->log_q;
            log_p += a->log_p0;
        }
        EXPECT_NEAR(scored->said.score[i].log_q, log_q, 1e-9);
        EXPECT_NEAR(scored->said.score[i].log_p, log_p, 1e-9);
        EXPECT_NEAR(d->log_phi[i], s->log_phi[i], 1e-9);
    }
}

/* Every entry of a linear head: log ψ is its numbers times the hidden row, which is to the last bit
 * what the head was given. */
static void expect_numbers(const struct traced *from, const struct twist *head)
{
    const struct trace *t = &from->t;
    int in = twist_in(&head->spec, 0);
    for (int i = 0; i < t->k; i++)
        for (int n = 0; n < t->n_history[i]; n++) {
            int e = t->history[i * t->t_max + n], v = t->entry[e].token;
            double x = head->b[0][v];
            for (int d = 0; d < in; d++)
                x += (double)head->w[0][v * in + d] *
                     (double)(d < DIM ? from->hidden[e * DIM + d] : from->condition[d - DIM]);
            EXPECT_NEAR(t->entry[e].log_psi, x, 1e-4);
        }
}

static double calibration(const struct trace *t, const float *c, int e)
{
    int n = e / t->k;
    return c ? (double)c[n < 4 ? n : 3] : 0;
}

/* The clouds: log ψ is the last entry's, L what the entries add up to where nothing resampled. */
static void expect_clouds(const struct traced *from, const float *c)
{
    const struct trace *t = &from->t;
    for (int n = 0; n < t->n_steps; n++)
        for (int i = 0; i < t->k; i++) {
            int at = n * t->k + i, e = t->cloud[at];
            EXPECT(e >= 0 && e / t->k <= n);
            EXPECT(e / t->k == n || t->entry[e].ended);
            double log_psi = t->entry[e].log_psi + calibration(t, c, e);
            EXPECT_NEAR(t->cloud_log_w[at] - t->cloud_L[at], log_psi, 1e-12);
        }
    for (int i = 0; i < t->k && from->said.n_resamples == 0; i++) {
        double L = 0;
        for (int n = 0; n < t->n_history[i]; n++) {
            const struct trace_entry *e = &t->entry[t->history[i * t->t_max + n]];
            L += e->log_p0 - e->log_q;
            EXPECT_NEAR(t->cloud_L[n * t->k + i], L, 1e-9);
        }
        EXPECT_NEAR(t->log_w[i], L + t->log_phi[i], 1e-9);
    }
    for (int i = 0; i < t->k; i++)
        EXPECT(t->log_w[i] == from->said.log_w[i]);
    EXPECT_NEAR(smc_lse(t->log_w, t->k) - log(t->k), from->said.log_z, 1e-12);
}

/* The weight that is known before the draw: L + Λ on ψ's own scale, of the finished L + ψ. */
static void expect_priorities(const struct traced *from, const float *c)
{
    const struct trace *t = &from->t;
    double priority[64];
    CHECK(from->said.n_resamples == 0 && t->k <= 64);
    EXPECT_INT(from->said.n_steps, t->n_steps);
    for (int n = 0; n < t->n_steps; n++) {
        for (int i = 0; i < t->k; i++) {
            int at = n * t->k + i, e = t->cloud[at];
            double before = n ? t->cloud_L[at - t->k] : 0;
            priority[i] = e / t->k < n ? t->cloud_log_w[at]
                                       : before + t->entry[e].lambda + calibration(t, c, e);
        }
        EXPECT_NEAR(from->said.step_log_z[n], smc_lse(priority, t->k) - log(t->k), 1e-9);
    }
}

static struct job *traced_job(enum job_kind kind, const char *twist, double threshold, bool base)
{
    struct job *j = new_job(kind, twist, 24, 12);
    add_lexicon(j);
    j->ess_threshold = threshold;
    j->base_proposal = base;
    if (strcmp(twist, "conditional") == 0)
        conditioned(j, CONDITION, 3);
    return j;
}

static void check_trace(struct machine *m, const char *twist, double threshold, bool base,
                        const float *c)
{
    struct traced drawn, scored;
    struct twist *head;
    struct err err;
    must(twist_load(&head, twist_dir, twist, &err), &err);
    traced_run(m, traced_job(JOB_SAMPLE, twist, threshold, base), &drawn);
    score_texts(m, &drawn, traced_job(JOB_SCORE, twist, threshold, base), &scored);
    bool resampled = threshold > 0.1 && strcmp(twist, "proposer") != 0;
    EXPECT(resampled == (drawn.said.n_resamples > 0));
    expect_as_scored(&drawn, &scored);
    if (head->spec.n_layers == 1)
        expect_numbers(&drawn, head);
    expect_clouds(&drawn, c);
    if (!resampled && !base && head->spec.resample)
        expect_priorities(&drawn, c);
    for (int i = 0; i < drawn.t.k; i++)
        for (int n = 0; n < drawn.t.n_history[i]; n++) {
            int e = drawn.t.history[i * drawn.t.t_max + n];
            EXPECT_NEAR(scored.said.score[i].log_twist[n],
                        drawn.t.entry[e].log_psi + calibration(&drawn.t, c, e), 1e-12);
        }
    twist_free(head);
    traced_free(&drawn);
    traced_free(&scored);
}

static void test_traces(struct machine *m)
{
    struct machine pages;
    machine_run_open(&pages, 64, SMALL_KV, 1 << 20);
    check_trace(&pages, "linear", 0.95, false, NULL);
    check_trace(&pages, "proposer", 0.95, false, NULL);
    machine_close(&pages);
    for (int base = 0; base < 2; base++) {
        check_trace(m, "linear", 0.95, base, NULL);
        check_trace(m, "linear", 1e-9, base, NULL);
        check_trace(m, "calibrated", 0.95, base, CALIBRATION);
        check_trace(m, "calibrated", 1e-9, base, CALIBRATION);
        check_trace(m, "mlp", 0.95, base, NULL);
        check_trace(m, "conditional", 0.95, base, NULL);
        check_trace(m, "proposer", 0.95, base, NULL);
    }
}

/* h_o is the state of the condition's last token, as a text from position 0. */
static void test_condition(struct machine *m)
{
    static const struct ids next[] = {{CONDITION, 1}};
    struct traced conditional, plain;
    struct job *j = new_job(JOB_SCORE, NULL, 0, 0);
    j->prompt_ids = (struct ids){CONDITION, 3};
    j->completions = (struct ids *)next;
    j->n_completions = 1;
    traced_run(m, j, &plain);
    traced_run(m, traced_job(JOB_SAMPLE, "conditional", 0.5, false), &conditional);
    EXPECT(memcmp(conditional.condition, plain.hidden, DIM * sizeof(float)) == 0);
    traced_free(&plain);
    traced_free(&conditional);
}

/* A pinned text is particle 0's, whatever happens around it. */
static void test_pinned_trace(struct machine *m)
{
    static const int32_t text[] = {5, 6, 2, 9, 1}; /* ends with EOS */
    static const struct ids pinned = {text, 5};
    struct traced drawn, scored;
    struct job *j = traced_job(JOB_SAMPLE, "linear", 1, false);
    j->pinned = &pinned;
    traced_run(m, j, &drawn);
    EXPECT(drawn.said.n_resamples > 0);
    EXPECT_INT(drawn.t.n_history[0], 5);
    for (int n = 0; n < 5; n++)
        EXPECT_INT(drawn.t.entry[drawn.t.history[n]].token, text[n]);
    score_texts(m, &drawn, traced_job(JOB_SCORE, "linear", 1, false), &scored);
    expect_as_scored(&drawn, &scored);
    expect_clouds(&drawn, NULL);
    traced_free(&drawn);
    traced_free(&scored);
}

/* ---- nothing changes what a run says ---- */

enum { KINDS = 9 };

static struct job *job_of_kind(int kind)
{
    static const char *const names[] = {"linear",      "mlp",      "conditional", "conditional",
                                        "conditional", "proposer", "calibrated"};
    struct job *j = new_job(JOB_SAMPLE, kind < 7 ? names[kind] : NULL, 24, 40);
    add_lexicon(j);
    j->seed = 40 + (uint64_t)kind;
    j->ess_threshold = 0.9;
    if (kind == 2 || kind == 3)
        conditioned(j, CONDITION, 3);
    if (kind == 4)
        conditioned(j, OTHER_CONDITION, 1);
    if (kind == 3 || kind == 6)
        j->base_proposal = true;
    if (kind == 8) {
        j->twist.type = TWIST_FACTOR;
        j->base_proposal = false;
    }
    return j;
}

static void run_kinds(struct machine *m, bool together, struct record out[KINDS])
{
    struct run *runs[KINDS];
    for (int kind = 0; kind < KINDS; kind++)
        runs[kind] = recorded(m, job_of_kind(kind), &out[kind], NULL);
    if (together) {
        run_together(m, runs, KINDS);
        return;
    }
    for (int kind = 0; kind < KINDS; kind++)
        run_together(m, &runs[kind], 1);
}

static void expect_same(struct record *got, const struct record *want)
{
    for (int kind = 0; kind < KINDS; kind++) {
        EXPECT(want[kind].said.len > 0 && got[kind].said.len == want[kind].said.len &&
               memcmp(got[kind].said.data, want[kind].said.data, want[kind].said.len) == 0);
        buf_free(&got[kind].said);
    }
}

static void test_nothing_changes_the_samples(struct machine *m)
{
    struct record want[KINDS], got[KINDS];
    struct machine rows, pages;
    machine_run_open(&rows, 13, 0, 1 << 20);
    machine_run_open(&pages, 64, SMALL_KV, 1 << 20);
    run_kinds(m, false, want);
    run_kinds(m, true, got);
    expect_same(got, want);
    run_kinds(&rows, true, got);
    expect_same(got, want);
    EXPECT(rows.backend->calls[OP_RESAMPLE] <= rows.stats.steps); /* one for all runs */
    run_kinds(&pages, false, got);
    EXPECT(pages.stats.recomputed_tokens > 0);
    expect_same(got, want);
    struct run *free_run = small_run(&pages, "proposer"); /* nothing couples its particles */
    EXPECT(!free_run->coupled && !free_run->adapted);
    run_close(free_run);
    for (int a = 0; a < KINDS; a++) {
        for (int b = 0; b < a; b++)
            EXPECT(want[a].said.len != want[b].said.len ||
                   memcmp(want[a].said.data, want[b].said.data, want[a].said.len) != 0);
        buf_free(&want[a].said);
    }
    machine_close(&rows);
    machine_close(&pages);
}

/* ---- twist memory ---- */

static void test_memory(size_t bytes)
{
    struct machine m;
    struct err err;
    machine_run_open(&m, 64, 0, 2 * bytes + bytes / 2); /* two linear heads' */
    struct run *a = small_run(&m, "linear"), *again = small_run(&m, "linear");
    struct run *b = small_run(&m, "calibrated"), *c = small_run(&m, "proposer");
    must(run_admit(a, &err), &err);
    must(run_admit(again, &err), &err);
    EXPECT_INT(machine_heads(&m), 1); /* shared */
    EXPECT(a->head == again->head);
    must(run_admit(b, &err), &err);
    EXPECT_INT(m.head_bytes, 2 * bytes);
    EXPECT(!run_fits(c) && !run_waits_for_study(c)); /* both are in use */
    run_close(a);
    EXPECT(!run_fits(c));
    run_close(again);
    EXPECT(run_fits(c)); /* in place of the one that nobody uses … */
    EXPECT_INT(machine_heads(&m), 2);
    must(run_admit(c, &err), &err);
    EXPECT_INT(machine_heads(&m), 2); /* … which goes now */
    struct run *late = small_run(&m, "linear");
    EXPECT(!run_fits(late));
    m.step++;
    run_close(c);
    m.step++;
    run_close(b);
    struct run *kept = small_run(&m, "calibrated"), *gone = small_run(&m, "proposer");
    EXPECT_INT(machine_twist_bytes_free(&m), 2 * bytes + bytes / 2);
    EXPECT(machine_take_twist_bytes(&m, bytes)); /* the older of the two goes */
    EXPECT_INT(machine_heads(&m), 1);
    snprintf(m.info.twist_dir, sizeof m.info.twist_dir, "/nowhere");
    must(run_admit(kept, &err), &err);
    EXPECT_INT(run_admit(gone, &err), -1);
    EXPECT_STR(err.param, "twist.name");
    run_close(kept);
    EXPECT(machine_take_twist_bytes(&m, bytes + bytes / 2));
    EXPECT(!machine_take_twist_bytes(&m, 1));
    EXPECT_INT(machine_heads(&m), 0);
    EXPECT(!run_fits(late) && run_waits_for_study(late)); /* learning has it all */
    machine_give_twist_bytes(&m, 2 * bytes + bytes / 2);
    EXPECT(run_fits(late) && !run_waits_for_study(late));
    run_close(late);
    run_close(gone);
    machine_close(&m);
}

/* A twist replaced while it is in use, and while a request for it waits. */
static void test_replaced(struct machine *m)
{
    struct twist_spec s = random_spec(m, "changing", 1, false);
    struct err err;
    save_random(&s, 1);
    struct run *old = small_run(m, "changing"), *waiting = small_run(m, "changing");
    must(run_admit(old, &err), &err);
    save_random(&s, 2);
    struct run *fresh = small_run(m, "changing");
    must(run_admit(waiting, &err), &err); /* what it was accepted for is still there */
    must(run_admit(fresh, &err), &err);
    EXPECT(waiting->head == old->head && fresh->head != old->head);
    struct run *next = small_run(m, "changing");
    s = random_spec(m, "changing", 1, true);
    run_close(old);
    run_close(waiting);
    run_close(fresh);
    EXPECT(machine_take_twist_bytes(m, machine_twist_bytes_free(m))); /* forget it all */
    machine_give_twist_bytes(m, m->learning_bytes);
    save_random(&s, 3);
    EXPECT(run_fits(next));
    EXPECT_INT(run_admit(next, &err), -1);
    EXPECT_INT(err.code, ERR_INVALID);
    EXPECT_STR(err.param, "twist.name");
    run_close(next);
    must(twist_remove(twist_dir, "changing", &err), &err);
}

/* A head whose numbers are finite, but what it says is not: the run fails, and says so. */
static void test_overflow(struct machine *m)
{
    struct err err;
    struct twist_spec s = random_spec(m, "huge", 1, false);
    struct twist *t = random_twist(&s, 1);
    for (int v = 2; v < 4; v++) { /* whatever the state: for one of the two it is too much */
        t->b[0][v] = 0x1.fffffep127f;
        for (int d = 0; d < DIM; d++)
            t->w[0][v * DIM + d] = v == 2 ? 1e38f : -1e38f;
    }
    must(twist_save(t, twist_dir, &err), &err);
    twist_free(t);
    for (int base = 0; base < 2; base++) {
        struct run *r = small_run(m, "huge");
        r->job->base_proposal = base;
        must(run_admit(r, &err), &err);
        while (r->outstanding > 0)
            machine_forward(m, &r, 1);
        EXPECT_INT(run_advance(r, &err), -1);
        EXPECT_INT(err.code, ERR_INVALID);
        run_close(r);
    }
    must(twist_remove(twist_dir, "huge", &err), &err);
}

/* ---- refusals ---- */

static void expect_refused(struct machine *m, struct job *j, enum err_code code, const char *param,
                           const char *part)
{
    struct run *r;
    struct err err = {0};
    EXPECT_INT(run_open(&r, m, j, (struct sink){0}, NULL, &err), -1);
    EXPECT_INT(err.code, code);
    EXPECT_STR(err.param, param);
    if (!strstr(err.msg, part))
        EXPECT_STR(err.msg, part);
    job_free(j);
}

static void add_continuation(struct job *j, int n)
{
    j->potentials = ARENA_NEW(&j->arena, struct potential, n);
    j->n_potentials = n;
    for (int i = 0; i < n; i++)
        j->potentials[i] = (struct potential){
            .type = POTENTIAL_CONTINUATION, .weight = 1, .continuation = {CONDITION, 3}};
}

static void test_refusals(struct machine *m, size_t bytes)
{
    struct machine no_folder, little;
    machine_run_open(&no_folder, 64, 0, 1 << 20);
    no_folder.info.twist_dir[0] = '\0';
    machine_run_open(&little, 64, 0, bytes - 1);
    struct twist_spec s = random_spec(m, "foreign", 1, false);
    snprintf(s.fingerprint, sizeof s.fingerprint, "0123456789abcdef");
    save_random(&s, 1);
    expect_refused(m, new_job(JOB_SAMPLE, "nobody", 2, 4), ERR_NOT_FOUND, "twist.name", "nobody");
    expect_refused(m, new_job(JOB_SAMPLE, "foreign", 2, 4), ERR_INVALID, "twist.name", "model");
    expect_refused(&no_folder, new_job(JOB_SAMPLE, "linear", 2, 4), ERR_INVALID, "twist.name",
                   "--twist-dir");
    expect_refused(&little, new_job(JOB_SAMPLE, "linear", 2, 4), ERR_INVALID, "twist.name",
                   "--twist-memory");
    expect_refused(m, conditioned(new_job(JOB_SAMPLE, "linear", 2, 4), CONDITION, 3), ERR_INVALID,
                   "twist.condition", "takes none");
    expect_refused(m, new_job(JOB_SAMPLE, "conditional", 2, 4), ERR_INVALID, "twist.condition",
                   "needs one");
    struct job *two = new_job(JOB_SAMPLE, "conditional", 2, 4);
    add_continuation(two, 2);
    expect_refused(m, two, ERR_INVALID, "twist.condition", "needs one");
    machine_close(&no_folder);
    machine_close(&little);
}

/* The text that a continuation potential asks about is the condition, if nothing else is said. */
static void test_condition_of_potential(struct machine *m)
{
    struct record said, named;
    struct job *j = new_job(JOB_SAMPLE, "conditional", 4, 6),
               *same = new_job(JOB_SAMPLE, "conditional", 4, 6);
    add_continuation(j, 1);
    add_continuation(same, 1);
    struct run *runs[] = {recorded(m, j, &said, NULL),
                          recorded(m, conditioned(same, CONDITION, 3), &named, NULL)};
    run_together(m, runs, 2);
    EXPECT(said.said.len == named.said.len &&
           memcmp(said.said.data, named.said.data, said.said.len) == 0);
    buf_free(&said.said);
    buf_free(&named.said);
}

int main(void)
{
    struct machine m;
    files_open();
    machine_run_open(&m, 64, 0, 1 << 20);
    save_twists(&m);
    struct twist_spec linear = random_spec(&m, "linear", 1, false);
    size_t bytes = machine_head_bytes(&m, &linear);
    test_traces(&m);
    test_condition(&m);
    test_pinned_trace(&m);
    test_nothing_changes_the_samples(&m);
    test_memory(bytes);
    test_replaced(&m);
    test_overflow(&m);
    test_refusals(&m, bytes);
    test_condition_of_potential(&m);
    machine_close(&m);
    files_close();
    return test_failures();
}
