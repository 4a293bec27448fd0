/* Learned twists do not bias: on a model whose texts can all be enumerated, the mean of Ẑ is Z for
 * every scheme, proposal, threshold and kind of head, that of 1/Ẑ is 1/Z when an exact draw is
 * pinned, and the weighted texts are those of σ. */
#include "../machine_run.h"
#include "../mean.h"

enum { T = 3, TEXTS_MAX = 64, K = 4, TOGETHER = 64 };

static const int32_t CONDITION[] = {4, 2};

/* ---- everything there is ---- */

/* EOS and three letters have p0 > 0. */
static const int32_t LETTERS[] = {1, 2, 3, 4};

struct texts {
    int32_t token[TEXTS_MAX][T];
    int length[TEXTS_MAX], n;
    double log_p[TEXTS_MAX], log_phi[TEXTS_MAX], sigma[TEXTS_MAX], log_z;
};

static void enumerate(struct texts *all, const int32_t *prefix, int n)
{
    for (int i = 0; i < 4; i++) {
        int32_t text[T];
        memcpy(text, prefix, (size_t)n * sizeof *text);
        text[n] = LETTERS[i];
        if (LETTERS[i] != 1 && n + 1 < T) {
            enumerate(all, text, n + 1);
            continue;
        }
        CHECK(all->n < TEXTS_MAX);
        memcpy(all->token[all->n], text, (size_t)(n + 1) * sizeof *text);
        all->length[all->n++] = n + 1;
    }
}

static struct job *new_job(enum job_kind kind, uint64_t seed)
{
    static const int32_t lexicon_id[] = {2, 4};
    static const float lexicon_bias[] = {0.8f, -0.6f};
    static const int32_t banned[] = {0, 5, 6, 7, 8, 9, 10};
    static const float ban[] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY,
                                -INFINITY, -INFINITY, -INFINITY};
    struct job *j = job_new();
    j->kind = kind;
    j->prompt_ids = (struct ids){PROMPT, 6};
    j->seed = seed;
    j->particles = K;
    j->temperature = 3; /* all texts have their chance */
    j->bias_id = banned;
    j->bias = ban;
    j->n_bias = 7;
    j->potentials = ARENA_NEW(&j->arena, struct potential, 2);
    j->potentials[0] = (struct potential){
        .type = POTENTIAL_LEXICON, .weight = 1, .lexicon = {lexicon_id, lexicon_bias, 2}};
    j->potentials[1] = (struct potential){
        .type = POTENTIAL_CONTINUATION, .weight = 0.5, .continuation = {CONDITION, 2}};
    j->n_potentials = 2;
    if (kind == JOB_SCORE)
        return j;
    j->segments = ARENA_NEW(&j->arena, struct segment, 1);
    j->segments[0] = (struct segment){.type = SEGMENT_SAMPLE, .max_tokens = T};
    j->n_segments = 1;
    return j;
}

static int take_score(void *user, const struct event *e)
{
    struct texts *all = user;
    CHECK(e->type != EVENT_ERROR);
    if (e->type == EVENT_SCORE) {
        all->log_p[e->score.index] = e->score.log_p;
        all->log_phi[e->score.index] = e->score.log_phi;
    }
    return 0;
}

static void find_posterior(struct machine *m, struct texts *all)
{
    struct job *j = new_job(JOB_SCORE, 0);
    double joint[TEXTS_MAX], mass = 0;
    enumerate(all, (const int32_t[1]){0}, 0);
    j->completions = ARENA_NEW(&j->arena, struct ids, all->n);
    for (int i = 0; i < all->n; i++)
        j->completions[i] = (struct ids){all->token[i], all->length[i]};
    j->n_completions = all->n;
    struct run *r = run_new(m, j, (struct sink){take_score, NULL, all}, NULL);
    run_together(m, &r, 1);
    for (int i = 0; i < all->n; i++) {
        mass += exp(all->log_p[i]);
        joint[i] = all->log_p[i] + all->log_phi[i];
    }
    EXPECT_NEAR(mass, 1, 1e-6);
    all->log_z = smc_lse(joint, all->n);
    for (int i = 0; i < all->n; i++)
        all->sigma[i] = exp(joint[i] - all->log_z);
}

/* ---- means over many runs ---- */

struct setup {
    const char *twist;
    bool base, pinned;
    enum resample_scheme scheme;
    double threshold;
};

/* Of one setup. f says whether a text begins with "a". */
struct findings {
    const struct texts *all;
    struct mean ratio; /* Ẑ/Z; pinned: Z/Ẑ */
    struct mean f;     /* Ẑ f̂/Z; pinned: f̂ Z/Ẑ */
    int n_resamples;
};

struct one_run {
    struct findings *into;
    bool pinned;
    double log_mean_f; /* of exp(log_w) f, as it goes */
    int32_t text[T];
};

static int take_run(void *user, const struct event *e)
{
    struct one_run *r = user;
    struct findings *f = r->into;
    CHECK(e->type != EVENT_ERROR);
    f->n_resamples += e->type == EVENT_RESAMPLE;
    if (e->type == EVENT_SAMPLE) {
        bool pinned_kept =
            memcmp(e->sample.tokens, r->text, (size_t)e->sample.n_tokens * sizeof *r->text) == 0;
        EXPECT(!r->pinned || e->sample.index != 0 || pinned_kept);
        if (e->sample.tokens[0] == 2)
            r->log_mean_f += exp(e->sample.log_weight) / K;
    }
    if (e->type == EVENT_DONE) {
        double ratio = exp(e->done.log_z - f->all->log_z);
        mean_add(&f->ratio, r->pinned ? 1 / ratio : ratio);
        mean_add(&f->f, r->log_mean_f / exp(f->all->log_z));
    }
    return 0;
}

static void expect_mean(const struct mean *m, double want, const char *what, const struct setup *s)
{
    double mean = mean_of(m), se = mean_error(m);
    if (fabs(mean - want) <= 5 * se + 1e-6 && se < 2.3 / sqrt(m->n)) /* it could be seen */
        return;
    EXPECT(!"unbiased");
    fprintf(stderr, "twist %s, %s proposal, scheme %d, threshold %g%s: %s is %g +- %g, not %g\n",
            s->twist, s->base ? "base" : "twisted", (int)s->scheme, s->threshold,
            s->pinned ? ", pinned" : "", what, mean, se, want);
}

static int exact_draw(const struct texts *all, uint64_t n)
{
    struct philox r = philox4x32(77, (uint32_t)n, 0, 0, 0);
    double u = philox_u01(r.v[0], r.v[1]);
    int i = 0;
    while (i + 1 < all->n && (u -= all->sigma[i]) >= 0)
        i++;
    return i;
}

static struct job *job_of_setup(const struct setup *s, const struct texts *all, uint64_t seed,
                                struct one_run *one)
{
    struct job *j = new_job(JOB_SAMPLE, seed);
    j->twist = (struct twist_choice){.type = TWIST_LEARNED, .name = s->twist};
    j->base_proposal = s->base;
    j->scheme = s->scheme;
    j->ess_threshold = s->threshold;
    if (!s->pinned)
        return j;
    int i = exact_draw(all, seed);
    struct ids *pinned = ARENA_NEW(&j->arena, struct ids, 1);
    *pinned = (struct ids){all->token[i], all->length[i]};
    memcpy(one->text, all->token[i], sizeof one->text);
    j->pinned = pinned;
    return j;
}

static void check_setup(struct machine *m, const struct texts *all, const struct setup *s)
{
    int n = test_is_slow() ? 256 : s->pinned ? 4096 : 2048;
    struct findings f = {.all = all};
    struct one_run one[TOGETHER];
    struct run *runs[TOGETHER];
    double f_sigma = 0;
    for (int done = 0; done < n; done += TOGETHER) {
        for (int i = 0; i < TOGETHER; i++) {
            one[i] = (struct one_run){.into = &f, .pinned = s->pinned};
            struct job *j = job_of_setup(s, all, (uint64_t)(done + i), &one[i]);
            runs[i] = run_new(m, j, (struct sink){take_run, NULL, &one[i]}, NULL);
        }
        run_together(m, runs, TOGETHER);
    }
    for (int i = 0; i < all->n; i++)
        f_sigma += all->token[i][0] == 2 ? all->sigma[i] : 0;
    expect_mean(&f.ratio, 1, s->pinned ? "E[Z/Z^]" : "E[Z^]/Z", s);
    if (!s->pinned)
        expect_mean(&f.f, f_sigma, "the share of texts with a", s);
    bool may_resample = s->threshold > 0 && strcmp(s->twist, "proposer") != 0;
    EXPECT(may_resample == (f.n_resamples > 0));
}

/* ---- tests ---- */

static void save_twists(const struct machine *m)
{
    static const float calibration[T] = {1.5f, -2, 0.7f};
    struct twist_spec s = random_spec(m, "linear", 1, false);
    save_random(&s, 1);
    s = random_spec(m, "mlp", 3, false);
    save_random(&s, 2);
    s = random_spec(m, "conditional", 2, true);
    save_random(&s, 3);
    s = random_spec(m, "calibrated", 1, false);
    s.calibration = calibration;
    save_random(&s, 4);
    s = random_spec(m, "sigmoid", 1, false);
    s.log_sigmoid = true;
    save_random(&s, 5);
    s = random_spec(m, "proposer", 1, false);
    s.resample = false;
    save_random(&s, 6);
}

static const enum resample_scheme SCHEMES[] = {RESAMPLE_SYSTEMATIC, RESAMPLE_STRATIFIED,
                                               RESAMPLE_MULTINOMIAL, RESAMPLE_RESIDUAL};

static void test_every_scheme(struct machine *m, const struct texts *all)
{
    static const double thresholds[] = {0, 0.7, 1};
    for (int scheme = 0; scheme < 4; scheme++)
        for (int base = 0; base < 2; base++)
            for (int i = 0; i < 3; i++) {
                struct setup s = {"linear", base, false, SCHEMES[scheme], thresholds[i]};
                if (!test_is_slow() || i == (scheme + base) % 3)
                    check_setup(m, all, &s);
            }
}

static void test_every_head(struct machine *m, const struct texts *all)
{
    static const char *const names[] = {"mlp", "conditional", "calibrated", "sigmoid", "proposer"};
    for (int i = 0; i < 5; i++)
        for (int base = 0; base < 2; base++) {
            struct setup s = {names[i], base, false, RESAMPLE_SYSTEMATIC, 1};
            if (!test_is_slow() || base == i % 2)
                check_setup(m, all, &s);
        }
}

static void test_pinned(struct machine *m, const struct texts *all)
{
    static const char *const names[] = {"linear", "calibrated", "proposer"};
    for (int scheme = 0; scheme < 4; scheme++)
        for (int base = 0; base < 2; base++) {
            struct setup s = {names[0], base, true, SCHEMES[scheme], 1};
            if (!test_is_slow() || base == scheme % 2)
                check_setup(m, all, &s);
        }
    for (int i = 1; i < 3; i++) {
        struct setup s = {names[i], false, true, RESAMPLE_SYSTEMATIC, 0.7};
        check_setup(m, all, &s);
    }
}

int main(void)
{
    struct machine m;
    struct texts all = {0};
    files_open();
    machine_run_open(&m, 256, 0, 1 << 20);
    save_twists(&m);
    find_posterior(&m, &all);
    test_every_scheme(&m, &all);
    test_every_head(&m, &all);
    test_pinned(&m, &all);
    machine_close(&m);
    files_close();
    return test_failures();
}
