/* Learning a twist, as a client sees it, on a model whose texts can all be enumerated: every method
 * brings the proposal nearer to σ, the file is the same whatever else the engine does, and however
 * it ends there is a whole file, the old or the new one, and nothing else. */
#include <dirent.h>
#include <pthread.h>
#include <sys/stat.h>

#include "../engine_run.h"

enum { MAX_TOKENS = 3, MAX_TEXTS = 1200 };

/* ---- what a job says ---- */

struct record {
    struct waiter waiter; /* first: the sink knows it as that */
    int n_updates, n_scores, n_bounds[2], n_extinct;
    int stop_after;       /* updates, then the sink asks to cancel; 0: never */
    const char *moves_to; /* here goes the folder of twists at the first update; NULL: nowhere */
    bool done;
    struct err err;         /* code 0: none */
    double bound[2], log_z; /* the last ones */
    int updates;
    double log_p[MAX_TEXTS], log_phi[MAX_TEXTS], log_q[MAX_TEXTS];
};

static void take(struct record *r, const struct event *e)
{
    if (e->type == EVENT_UPDATE) {
        EXPECT_INT(e->update.update, ++r->n_updates);
        EXPECT(isfinite(e->update.loss) && !isnan(e->update.log_z));
        r->n_extinct += e->update.log_z == -INFINITY;
    }
    if (e->type == EVENT_BOUND) {
        r->n_bounds[e->bound.upper]++;
        r->bound[e->bound.upper] = e->bound.log_z;
    }
    if (e->type == EVENT_SCORE) {
        r->log_p[r->n_scores] = e->score.log_p;
        r->log_phi[r->n_scores] = e->score.log_phi;
        r->log_q[r->n_scores++] = e->score.log_q;
    }
    if (e->type == EVENT_ERROR)
        r->err = e->error;
    if (e->type == EVENT_DONE) {
        r->done = true;
        r->log_z = e->done.log_z;
        r->updates = e->done.updates;
    }
}

static int record_event(void *user, const struct event *e)
{
    struct record *r = user;
    pthread_mutex_lock(&r->waiter.mutex);
    EXPECT(!r->done && !r->err.code);
    take(r, e);
    bool stop = r->stop_after && r->n_updates == r->stop_after;
    if (r->moves_to && e->type == EVENT_UPDATE && r->n_updates == 1)
        EXPECT(rename(twist_dir, r->moves_to) == 0);
    pthread_mutex_unlock(&r->waiter.mutex);
    return stop;
}

static struct record *record_new(void)
{
    struct record *r = calloc(1, sizeof *r);
    waiter_init(&r->waiter);
    return r;
}

static void record_free(struct record *r)
{
    waiter_free(&r->waiter);
    free(r);
}

static uint64_t submit(struct engine *e, struct job *j, struct record *r)
{
    uint64_t handle = 0;
    if (engine_submit(e, j, (struct sink){record_event, waiter_closed, r}, &handle, &r->err) != 0) {
        job_free(j);
        waiter_closed(r);
    }
    return handle;
}

static struct record *run(struct engine *e, struct job *j)
{
    struct record *r = record_new();
    submit(e, j, r);
    waiter_wait(&r->waiter);
    return r;
}

static void must(const struct record *r)
{
    if (!r->done)
        fprintf(stderr, "%s\n", r->err.msg);
    EXPECT(r->done);
}

/* ---- jobs ---- */

static const int32_t OTHER_PROMPT[] = {0, 7};

/* φ <= 1, of some tokens and of how well "ca" would follow. */
static void set_target(struct job *j)
{
    static const int32_t text[] = {4, 2};
    int32_t *ids = ARENA_NEW(&j->arena, int32_t, VOCAB);
    float *bias = ARENA_NEW(&j->arena, float, VOCAB);
    for (int v = 0; v < VOCAB; v++) {
        ids[v] = v;
        bias[v] = v % 2 ? 0 : -3;
    }
    j->potentials = ARENA_NEW(&j->arena, struct potential, 2);
    j->potentials[j->n_potentials++] =
        (struct potential){.type = POTENTIAL_LEXICON, .weight = 1, .lexicon = {ids, bias, VOCAB}};
    j->potentials[j->n_potentials++] = (struct potential){
        .type = POTENTIAL_CONTINUATION, .weight = 0.1, .continuation = {text, 2}};
}

static struct job *learn_job(struct engine *e, const char *name, enum twist_method method,
                             int updates, uint64_t seed)
{
    const struct engine_info *info = engine_info(e);
    struct job *j = new_job(JOB_LEARN, 64, MAX_TOKENS, seed);
    struct learn *l = &j->learn;
    j->ess_threshold = 0;
    l->n_prompts = 1;
    l->prompts = ARENA_NEW(&j->arena, struct ids, 2);
    l->prompt_text = ARENA_NEW(&j->arena, const char *, 2);
    l->prompt_text_len = ARENA_NEW(&j->arena, size_t, 2);
    l->prompts[0] = j->prompt_ids;
    l->prompt_text[0] = j->prompt;
    l->prompt_text_len[0] = j->prompt_len;
    l->spec = (struct twist_spec){.dim = DIM,
                                  .vocab = VOCAB,
                                  .n_layers = 1,
                                  .log_sigmoid = method == TWIST_FUDGE,
                                  .resample = method != TWIST_DPG,
                                  .max_tokens = MAX_TOKENS,
                                  .method = method,
                                  .particles = j->particles,
                                  .updates = updates,
                                  .learning_rate = 0.02,
                                  .seed = seed,
                                  .request = "{}"};
    snprintf(l->spec.name, sizeof l->spec.name, "%s", name);
    snprintf(l->spec.model, sizeof l->spec.model, "%s", info->model);
    snprintf(l->spec.fingerprint, sizeof l->spec.fingerprint, "%s", info->fingerprint);
    return j;
}

/* ---- all texts ---- */

struct texts {
    int n;
    int32_t token[MAX_TEXTS][MAX_TOKENS];
    struct ids ids[MAX_TEXTS];
    double log_sigma[MAX_TEXTS], log_z, kl; /* KL(σ‖q) */
};

static void add_texts(struct texts *t, int32_t *token, int n, int max_tokens, bool eos)
{
    bool whole = n == max_tokens || (n && eos && token[n - 1] == 1);
    for (int v = 0; v < VOCAB && !whole; v++) {
        token[n] = v;
        add_texts(t, token, n + 1, max_tokens, eos);
    }
    if (!whole || (!eos && memchr(token, 1, (size_t)n * sizeof *token) && token[n - 1] == 1))
        return;
    memcpy(t->token[t->n], token, (size_t)n * sizeof *token);
    t->ids[t->n] = (struct ids){t->token[t->n], n};
    t->n++;
}

/* The texts' numbers under a target, and of the proposal by a twist, or none. */
static struct texts *enumerate(struct engine *e, const char *twist, const int32_t *ending)
{
    struct texts *t = calloc(1, sizeof *t);
    int32_t token[MAX_TOKENS];
    double z = 0;
    add_texts(t, token, 0, ending ? 2 : MAX_TOKENS, !ending);
    double *log_q = calloc((size_t)t->n, sizeof *log_q);
    for (int from = 0; from < t->n; from += 400) {
        struct job *j = new_job(JOB_SCORE, 0, 0, 0);
        if (ending) {
            j->ignore_eos = true;
            j->potentials = ARENA_NEW(&j->arena, struct potential, 1);
            j->potentials[j->n_potentials++] = (struct potential){
                .type = POTENTIAL_CONTINUATION, .weight = 1, .continuation = {ending, 1}};
        } else {
            set_target(j);
        }
        if (twist) {
            j->twist = (struct twist_choice){.type = TWIST_LEARNED, .name = twist};
            j->base_proposal = false;
            if (ending)
                j->twist.condition = (struct ids){ending, 1};
        }
        j->completions = t->ids + from;
        j->n_completions = t->n - from < 400 ? t->n - from : 400;
        struct record *r = run(e, j);
        must(r);
        for (int i = 0; i < r->n_scores; i++) {
            t->log_sigma[from + i] = r->log_p[i] + r->log_phi[i];
            log_q[from + i] = r->log_q[i];
            z += exp(t->log_sigma[from + i]);
        }
        record_free(r);
    }
    t->log_z = log(z);
    for (int i = 0; i < t->n; i++) {
        t->log_sigma[i] -= t->log_z;
        if (t->log_sigma[i] > -INFINITY)
            t->kl += exp(t->log_sigma[i]) * (t->log_sigma[i] - log_q[i]);
    }
    free(log_q);
    return t;
}

static double kl_of(struct engine *e, const char *twist, const int32_t *ending)
{
    struct texts *t = enumerate(e, twist, ending);
    double kl = t->kl;
    free(t);
    return kl;
}

/* n exact draws of σ. */
static void give_targets(struct job *j, const struct texts *t, int n, uint32_t seed)
{
    j->targets.given = ARENA_NEW(&j->arena, struct ids, n);
    for (int d = 0; d < n; d++) {
        struct philox random = philox4x32(seed, (uint32_t)d, 0, 0, 0);
        double u = philox_u01(random.v[0], random.v[1]);
        int i = 0;
        while (i + 1 < t->n && (u -= exp(t->log_sigma[i])) >= 0)
            i++;
        j->targets.given[j->targets.n++] = t->ids[i];
    }
}

/* ---- files ---- */

static struct buf read_twist(const char *name)
{
    char path[128], block[4096];
    struct buf out = {0};
    size_t n;
    snprintf(path, sizeof path, "%s/%s.safetensors", twist_dir, name);
    FILE *f = fopen(path, "rb");
    while (f && (n = fread(block, 1, sizeof block, f)) > 0)
        buf_add(&out, block, n);
    if (f)
        fclose(f);
    return out;
}

static bool same_bytes(const struct buf *a, const struct buf *b)
{
    return a->len == b->len && a->len > 0 && memcmp(a->data, b->data, a->len) == 0;
}

static int n_files(void)
{
    int n = 0;
    DIR *dir = opendir(twist_dir);
    for (struct dirent *d; dir && (d = readdir(dir));)
        n += d->d_name[0] != '.' || d->d_name[1] > '.';
    if (dir)
        closedir(dir);
    return n;
}

static void remove_twist(const char *name)
{
    struct err err;
    EXPECT(twist_remove(twist_dir, name, &err) == 0);
    EXPECT_INT(n_files(), 0);
}

/* ---- every method ---- */

enum positives { DRAWN, GIVEN, REJECTION, POSITIVES };

/* How long is learned, and how much of KL(σ‖q) may be left. Where steps take long: fewer and larger
 * ones, of which less is asked. */
struct effort {
    int updates, bounds, draws;
    double linear_rate, mlp_rate, left;
};

static struct effort effort(void)
{
    return test_is_slow() ? (struct effort){40, 20, 2000, 0.1, 0.01, 0.6}
                          : (struct effort){250, 100, 30000, 0.02, 0.02, 0.2};
}

static void test_method(struct engine *e, enum twist_method method, enum positives from)
{
    struct effort much = effort();
    struct texts *before = enumerate(e, NULL, NULL);
    struct job *j = learn_job(e, "t", method, much.updates, 5);
    struct twist *t;
    struct err err;
    set_target(j);
    bool mlp = method == TWIST_RL || from == REJECTION; /* a linear head cannot be on φ's scale */
    j->learn.spec.n_layers = mlp ? 3 : 1;
    j->learn.spec.hidden = mlp ? 24 : 0;
    j->learn.spec.learning_rate = method == TWIST_FUDGE ? 0.1
                                  : mlp                 ? much.mlp_rate
                                                        : much.linear_rate;
    j->learn.bounds = much.bounds;
    if (from == GIVEN)
        give_targets(j, before, 1000, 3);
    if (from == REJECTION)
        j->targets.max_draws = much.draws;
    struct record *r = run(e, j);
    must(r);
    EXPECT_INT(r->n_updates, much.updates);
    EXPECT_INT(r->updates, much.updates);
    EXPECT_INT(r->n_bounds[0], 2);
    EXPECT_INT(r->n_bounds[1], from == DRAWN ? 0 : 2);
    EXPECT_NEAR(r->bound[0], before->log_z, 0.5);
    EXPECT_NEAR(r->log_z, before->log_z, 0.5);
    if (from != DRAWN)
        EXPECT_NEAR(r->bound[1], before->log_z, 0.5);
    double kl = kl_of(e, "t", NULL);
    EXPECT(kl > -1e-6 && kl < much.left * before->kl);
    EXPECT(twist_load(&t, twist_dir, "t", &err) == 0);
    EXPECT_INT(t->spec.updates, much.updates);
    EXPECT_NEAR(t->spec.log_z, r->log_z, 0);
    EXPECT_INT(t->spec.calibration != NULL, method != TWIST_DPG);
    twist_free(t);
    record_free(r);
    free(before);
    remove_twist("t");
}

/* ---- a twist for all endings ---- */

static struct job *conditional_job(struct engine *e, enum twist_method method, int updates)
{
    struct job *j = learn_job(e, "t", method, updates, 9);
    j->ignore_eos = true;
    j->segments[0].max_tokens = 2;
    j->learn.spec.max_tokens = 2;
    j->learn.spec.conditional = true;
    j->learn.spec.n_layers = 2;
    j->learn.spec.hidden = 32;
    j->learn.condition_tokens = 1;
    j->learn.condition_batch = 64;
    j->particles = 192;
    return j;
}

static void test_conditional(struct engine *e, enum twist_method method)
{
    double before = 0, after = 0;
    struct job *j = conditional_job(e, method, 300);
    j->learn.bounds = 100;
    struct record *r = run(e, j);
    must(r);
    EXPECT_INT(r->n_bounds[0], 3);
    EXPECT_INT(r->n_bounds[1], 3);
    EXPECT(r->bound[0] < r->bound[1] + 0.5);
    for (int32_t ending = 2; ending < VOCAB; ending++) {
        before += kl_of(e, NULL, &ending);
        after += kl_of(e, "t", &ending);
    }
    EXPECT(after < 0.4 * before);
    record_free(r);
    remove_twist("t");
}

/* ---- the same bytes ---- */

static struct job *short_job(struct engine *e, enum twist_method method, int updates)
{
    struct job *j = learn_job(e, "t", method, updates, 7);
    struct learn *l = &j->learn;
    set_target(j);
    l->n_prompts = 2;
    l->prompts[1] = (struct ids){OTHER_PROMPT, 2};
    l->prompt_text[1] = "f";
    l->prompt_text_len[1] = 1;
    j->ess_threshold = 0.7;
    return j;
}

/* The file of a job, which leaves none behind. */
static struct buf learn(struct engine *e, struct job *j)
{
    struct record *r = run(e, j);
    must(r);
    record_free(r);
    struct buf file = read_twist("t");
    remove_twist("t");
    return file;
}

/* Live requests come and go meanwhile; another twist is learned beside. */
static struct buf learn_in_a_crowd(struct engine *e, struct job *j)
{
    struct record *r = record_new(), *crowd[12];
    struct job *other = learn_job(e, "other", TWIST_CTL, 8, 1);
    set_target(other);
    struct record *beside = record_new();
    submit(e, other, beside);
    submit(e, j, r);
    for (int i = 0; i < 12; i++) {
        struct job *live = new_job(JOB_SAMPLE, 5 + i, MAX_TOKENS, (uint64_t)i);
        set_target(live);
        submit(e, live, crowd[i] = record_new());
    }
    waiter_wait(&r->waiter);
    must(r);
    record_free(r);
    waiter_wait(&beside->waiter);
    must(beside);
    record_free(beside);
    for (int i = 0; i < 12; i++) {
        waiter_wait(&crowd[i]->waiter);
        must(crowd[i]);
        record_free(crowd[i]);
    }
    struct err err;
    EXPECT(twist_remove(twist_dir, "other", &err) == 0);
    struct buf file = read_twist("t");
    remove_twist("t");
    return file;
}

static void test_same_bytes(struct engine *e, struct engine *narrow)
{
    const int updates = test_is_slow() ? 3 : 12;
    for (int method = 0; method < 6; method++) {
        struct buf file[4];
        for (int i = 0; i < 4; i++) {
            struct engine *at = i == 3 ? narrow : e;
            struct job *j = method < 5 ? short_job(at, (enum twist_method)method, updates)
                                       : conditional_job(at, TWIST_CTL, updates);
            j->learn.checkpoint = i == 1 ? 2 : 0;
            j->learn.bounds = i == 1 ? 3 : 0;
            file[i] = i == 2 ? learn_in_a_crowd(at, j) : learn(at, j);
        }
        for (int i = 1; i < 4; i++)
            EXPECT(same_bytes(&file[0], &file[i]));
        struct job *j = short_job(e, (enum twist_method)(method % 5), updates);
        j->seed++;
        struct buf different = learn(e, j);
        EXPECT(!same_bytes(&file[0], &different));
        buf_free(&different);
        for (int i = 0; i < 4; i++)
            buf_free(&file[i]);
    }
}

/* ---- ends ---- */

static int updates_in_file(const char *name)
{
    struct twist *t;
    struct err err;
    if (twist_load(&t, twist_dir, name, &err) != 0)
        return -1;
    int n = t->spec.updates;
    twist_free(t);
    return n;
}

/* A client that goes away leaves the last checkpoint, or the file of before. */
static void test_cancelled(struct engine *e)
{
    struct job *j = short_job(e, TWIST_CTL, 1000);
    struct record *r = record_new();
    j->learn.checkpoint = 4;
    r->stop_after = 10;
    submit(e, j, r);
    waiter_wait(&r->waiter);
    EXPECT(!r->done && !r->err.code);
    record_free(r);
    EXPECT_INT(updates_in_file("t"), 8);
    EXPECT_INT(n_files(), 1);
    struct buf before = read_twist("t");
    for (int stop = 1; stop < 4; stop++) {
        j = short_job(e, TWIST_RL, 1000);
        r = record_new();
        r->stop_after = stop;
        submit(e, j, r);
        waiter_wait(&r->waiter);
        record_free(r);
        struct buf after = read_twist("t");
        EXPECT(same_bytes(&before, &after));
        buf_free(&after);
        EXPECT_INT(n_files(), 1);
    }
    buf_free(&before);
    remove_twist("t");
}

/* At any moment, also while it is saved. */
static void test_cancelled_anywhere(struct engine *e)
{
    for (int i = 0; i < 20; i++) {
        struct record *r = record_new();
        struct job *j = short_job(e, TWIST_SIXO, 3);
        j->learn.checkpoint = 1;
        uint64_t handle = submit(e, j, r);
        usleep((useconds_t)(500 * i));
        engine_cancel(e, handle);
        waiter_wait(&r->waiter);
        record_free(r);
        EXPECT(n_files() == 0 || updates_in_file("t") > 0);
        EXPECT(n_files() < 2);
    }
    struct err err;
    twist_remove(twist_dir, "t", &err);
}

static void expect_error(struct record *r, enum err_code code, const char *param, const char *text)
{
    EXPECT(!r->done);
    EXPECT_INT(r->err.code, code);
    EXPECT_STR(r->err.param, param);
    if (!strstr(r->err.msg, text))
        EXPECT_STR(r->err.msg, text);
    record_free(r);
    EXPECT_INT(n_files(), 0);
}

static void test_refusals(struct engine *e, struct engine *small)
{
    struct job *j = short_job(small, TWIST_CTL, 10);
    j->learn.spec.n_layers = 3;
    j->learn.spec.hidden = 512;
    expect_error(run(small, j), ERR_INVALID, "head", "MiB of twist memory, the server has 1");

    j = conditional_job(e, TWIST_CTL, 1);
    j->ignore_eos = false;
    expect_error(run(e, j), ERR_INVALID, "ignore_eos", "must be true");

    j = short_job(e, TWIST_CTL, 1);
    j->targets.max_draws = 10;
    expect_error(run(e, j), ERR_INVALID, "targets", "are for one prompt");

    j = learn_job(e, "t", TWIST_CTL, 1, 0);
    j->potentials = ARENA_NEW(&j->arena, struct potential, 1);
    j->potentials[j->n_potentials++] = (struct potential){
        .type = POTENTIAL_CONTAINS, .weight = 1, .contains = {"xyz", 3, -INFINITY}};
    j->targets.max_draws = 200;
    expect_error(run(e, j), ERR_INVALID, "targets", "none of 200 draws");
}

/* Steps so long that the numbers leave what a float can say. */
static void test_divergence(struct engine *e)
{
    for (int method = 0; method < 5; method++) {
        struct job *j = short_job(e, (enum twist_method)method, 100);
        j->learn.spec.n_layers = 3;
        j->learn.spec.hidden = 32;
        j->learn.spec.learning_rate = 1e38;
        expect_error(run(e, j), ERR_INVALID, "learning_rate", "not finite after");
    }
}

/* φ = 0 for all that can be said: nothing is learned, and it is said. */
static void test_extinct(struct engine *e)
{
    for (int method = 0; method < 5; method++) {
        struct job *j = learn_job(e, "t", (enum twist_method)method, 5, 0);
        j->potentials = ARENA_NEW(&j->arena, struct potential, 1);
        j->potentials[j->n_potentials++] = (struct potential){
            .type = POTENTIAL_CONTAINS, .weight = 1, .contains = {"xyz", 3, -INFINITY}};
        struct record *r = run(e, j);
        must(r);
        EXPECT_INT(r->n_extinct, 5);
        EXPECT(r->log_z == -INFINITY);
        record_free(r);
        EXPECT_INT(updates_in_file("t"), 5);
        remove_twist("t");
    }
}

/* A folder that is gone, or goes meanwhile: the error is said, and the engine goes on. */
static void test_save_fails(struct engine *e)
{
    char away[sizeof twist_dir + 5];
    snprintf(away, sizeof away, "%s-away", twist_dir);
    struct record *r = record_new();
    r->moves_to = away;
    submit(e, short_job(e, TWIST_CTL, 2), r);
    waiter_wait(&r->waiter);
    EXPECT(!r->done);
    EXPECT_INT(r->err.code, ERR_FILE);
    EXPECT_INT(r->n_updates, 2);
    record_free(r);
    expect_error(run(e, short_job(e, TWIST_CTL, 2)), ERR_INVALID, "", "can keep no twists");
    EXPECT(rename(away, twist_dir) == 0);
    r = run(e, new_job(JOB_SAMPLE, 4, MAX_TOKENS, 1));
    must(r);
    record_free(r);
}

/* The engine goes while it learns and saves. */
static void test_engine_ends(void)
{
    struct engine *e = open_engine(64, 0, 64 << 20);
    struct record *r = record_new();
    struct job *j = short_job(e, TWIST_CTL, 100000);
    j->learn.checkpoint = 1;
    submit(e, j, r);
    for (bool running = false; !running; usleep(1000)) {
        pthread_mutex_lock(&r->waiter.mutex);
        running = r->n_updates > 2;
        pthread_mutex_unlock(&r->waiter.mutex);
    }
    engine_close(e);
    waiter_wait(&r->waiter);
    record_free(r);
    EXPECT(updates_in_file("t") > 0);
    remove_twist("t");
}

int main(void)
{
    files_open();
    struct engine *e = open_engine(64, 0, 64 << 20), *narrow = open_engine(7, 0, 1 << 20);
    for (int method = 0; method < 5; method++)
        for (int from = 0; from < (method == TWIST_FUDGE ? 1 : POSITIVES); from++)
            if (!test_is_slow() || method == TWIST_FUDGE || from == method % POSITIVES)
                test_method(e, (enum twist_method)method, (enum positives)from);
    if (!test_is_slow()) {
        test_conditional(e, TWIST_CTL);
        test_conditional(e, TWIST_DPG);
    }
    test_same_bytes(e, narrow);
    test_cancelled(e);
    test_cancelled_anywhere(e);
    test_refusals(e, narrow);
    test_divergence(e);
    test_extinct(e);
    test_save_fails(e);
    test_engine_ends();
    engine_close(e);
    engine_close(narrow);
    files_close();
    return test_failures();
}
