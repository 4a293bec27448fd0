/* Runs the folders of tests/proto/{valid,invalid}: each holds an input.json and what is expected of
 * it. The first word of a folder's name is the request (`requests` below); a file `model` in it
 * names another model than the one whose tokenizer adds BOS. A new case needs no code: write the
 * input, run `test_request --update`, and read what it wrote as `expected`. */
#include <dirent.h>
#include <stdbool.h>

#include "../../core/job.h"
#include "../../proto/event_json.h"
#include "../../proto/request.h"
#include "../check.h"
#include "../tiny_info.h"

enum { N_MODELS = 4 };
static struct tiny_info models[N_MODELS];
static const char *const model_names[] = {"bos", "no-bos", "ids", /* by enum tiny_kind */
                                          "no-folder"};           /* a server without twists */

/* ---- a job as text ---- */

/* Quoted, with what does not show as \xNN. */
static void dump_text(struct buf *out, const char *name, const char *s, size_t len)
{
    buf_printf(out, "%s: \"", name);
    for (size_t i = 0; i < len; i++)
        if ((unsigned char)s[i] < ' ')
            buf_printf(out, "\\x%02x", (unsigned char)s[i]);
        else
            buf_add(out, &s[i], 1);
    buf_puts(out, "\"\n");
}

static void dump_ids(struct buf *out, const char *name, struct ids ids)
{
    buf_printf(out, "%s:", name);
    for (int i = 0; i < ids.n; i++)
        buf_printf(out, " %d", ids.id[i]);
    buf_puts(out, "\n");
}

static void dump_potential(struct buf *out, const struct potential *p)
{
    static const char *const names[] = {"continuation", "lexicon", "contains",
                                        "regex",        "judge",   "tokens"};
    buf_printf(out, "potential: %s weight %.9g\n", names[p->type], p->weight);
    switch (p->type) {
    case POTENTIAL_CONTINUATION:
        dump_ids(out, "  text", p->continuation);
        break;
    case POTENTIAL_LEXICON:
        for (int i = 0; i < p->lexicon.n; i++)
            buf_printf(out, "  bias: %d %.9g\n", p->lexicon.id[i], (double)p->lexicon.bias[i]);
        break;
    case POTENTIAL_CONTAINS:
        dump_text(out, "  text", p->contains.text, p->contains.len);
        buf_printf(out, "  miss: %.9g\n", p->contains.miss);
        break;
    case POTENTIAL_REGEX:
        buf_printf(out, "  pattern: compiled\n  miss: %.9g\n", p->regex.miss);
        break;
    case POTENTIAL_JUDGE:
        dump_text(out, "  template", p->judge.template_text, p->judge.template_len);
        for (int i = 0; i < p->judge.n_answers; i++)
            dump_ids(out, i ? "  against" : "  answer", p->judge.answer[i]);
        break;
    case POTENTIAL_TOKENS:
        for (int i = 0; i < p->tokens.n; i++)
            dump_ids(out, "  ids", p->tokens.list[i]);
        buf_printf(out, "  log_phi: %.9g\n", p->tokens.log_phi);
        break;
    }
}

static void dump_segment(struct buf *out, const struct segment *s)
{
    static const char *const names[] = {"segment text", "segment observe"};
    if (s->type != SEGMENT_SAMPLE) {
        dump_ids(out, names[s->type], s->ids);
        return;
    }
    buf_printf(out, "segment sample: %s max_tokens %d\n", s->name ? s->name : "(unnamed)",
               s->max_tokens);
    for (int i = 0; i < s->n_stop; i++)
        dump_text(out, "  stop", s->stop[i], s->stop_len[i]);
}

static void dump_target(struct buf *out, const struct job *j)
{
    static const char *const twists[] = {"none", "factor", "potential", "learned"};
    dump_text(out, "prompt", j->prompt, j->prompt_len);
    dump_ids(out, "prompt_ids", j->prompt_ids);
    buf_printf(out, "special: %d\n", j->special);
    buf_printf(out, "prior: temperature %.9g top_k %d top_p %.9g min_tokens %d ignore_eos %d\n",
               (double)j->temperature, j->top_k, (double)j->top_p, j->min_tokens, j->ignore_eos);
    for (int i = 0; i < j->n_bias; i++)
        buf_printf(out, "logit_bias: %d %.9g\n", j->bias_id[i], (double)j->bias[i]);
    for (int i = 0; i < j->n_potentials; i++)
        dump_potential(out, &j->potentials[i]);
    buf_printf(out, "twist: %s", twists[j->twist.type]);
    if (j->twist.type == TWIST_POTENTIAL)
        buf_printf(out, " every %d power %.9g", j->twist.every, j->twist.power);
    if (j->twist.type == TWIST_LEARNED)
        buf_printf(out, " %s", j->twist.name);
    buf_puts(out, "\n");
    if (j->twist.condition.n)
        dump_ids(out, "  condition", j->twist.condition);
    buf_printf(out, "proposal: %s\n", j->base_proposal ? "base" : "twist");
}

/* again: the job of the same request; a seed that was drawn is another one there. */
static void dump_population(struct buf *out, const struct job *j, const struct job *again,
                            bool stream)
{
    static const char *const schemes[] = {"systematic", "stratified", "multinomial", "residual"};
    dump_target(out, j);
    buf_printf(out, "particles: %d\n", j->particles);
    buf_printf(out, "resampling: %s %.9g\n", schemes[j->scheme], j->ess_threshold);
    if (j->seed == again->seed)
        buf_printf(out, "seed: %lld\n", (long long)j->seed);
    else
        buf_puts(out, j->seed < UINT64_C(1) << 53 ? "seed: drawn\n" : "seed: too large\n");
    for (int i = 0; i < j->n_segments; i++)
        dump_segment(out, &j->segments[i]);
    buf_printf(out, "stream: %d\n", stream);
}

static void dump_sample(struct buf *out, const struct job *j)
{
    buf_printf(out, "named_holes: %d\nlogprobs: %d\n", j->named_holes, j->logprobs);
    buf_printf(out, "events: step %d resample %d sample %d particles %d\n", j->ev_step,
               j->ev_resample, j->ev_sample, j->ev_particles);
}

static void dump_targets(struct buf *out, const struct targets *t)
{
    for (int i = 0; i < t->n; i++)
        dump_ids(out, "target", t->given[i]);
    if (t->max_draws)
        buf_printf(out, "targets: rejection %lld\n", (long long)t->max_draws);
}

static void dump_bounds(struct buf *out, const struct job *j)
{
    dump_targets(out, &j->targets);
    buf_printf(out, "repeats: %d\n", j->repeats);
}

static void dump_spec(struct buf *out, const struct job *j)
{
    static const char *const methods[] = {"ctl", "rl", "sixo", "fudge", "dpg"};
    const struct twist_spec *s = &j->learn.spec;
    buf_printf(out, "name: %s\nmodel: %s %s dim %d vocab %d\n", s->name, s->model, s->fingerprint,
               s->dim, s->vocab);
    buf_printf(out, "head: layers %d hidden %d conditional %d log_sigmoid %d resample %d\n",
               s->n_layers, s->hidden, s->conditional, s->log_sigmoid, s->resample);
    buf_printf(out, "method: %s updates %d learning_rate %.9g\n", methods[s->method], s->updates,
               s->learning_rate);
    buf_printf(out, "request: %s\n", s->request);
    EXPECT_INT(s->max_tokens, j->segments[0].max_tokens);
    EXPECT_INT(s->particles, j->particles);
    EXPECT(s->seed == j->seed && !s->calibration);
}

static void dump_learn(struct buf *out, const struct job *j)
{
    const struct learn *l = &j->learn;
    dump_spec(out, j);
    for (int i = 0; i < l->n_prompts; i++) {
        dump_text(out, "learn prompt", l->prompt_text[i], l->prompt_text_len[i]);
        dump_ids(out, "  ids", l->prompts[i]);
    }
    EXPECT(j->prompt == l->prompt_text[0] && j->prompt_ids.id == l->prompts[0].id);
    EXPECT(j->prompt_len == l->prompt_text_len[0] && j->prompt_ids.n == l->prompts[0].n);
    dump_targets(out, &j->targets);
    buf_printf(out, "condition: tokens %d batch %d\ncheckpoint: %d\nbounds: %d\n",
               l->condition_tokens, l->condition_batch, l->checkpoint, l->bounds);
}

static void dump_completion(struct buf *out, const struct job *j)
{
    const struct complete *c = &j->complete;
    buf_printf(out, "choices: %d draws %d tokens %d echo %d logprobs %d\n", c->n, c->draws,
               c->tokens, c->echo, c->logprobs);
    for (int i = 0; i < c->n_prompts; i++) {
        dump_text(out, "completion prompt", c->prompts[i].text, c->prompts[i].len);
        dump_ids(out, "  ids", c->prompts[i].ids);
    }
    EXPECT(j->prompt == c->prompts[0].text && j->prompt_ids.id == c->prompts[0].ids.id);
}

static void dump_score(struct buf *out, const struct job *j)
{
    dump_target(out, j);
    for (int i = 0; i < j->n_completions; i++)
        dump_ids(out, "completion", j->completions[i]);
    buf_printf(out, "per_token: %d\n", j->per_token);
}

/* ---- running a request ---- */

static void dump_refusal(struct buf *out, const struct err *err)
{
    buf_printf(out, "%d ", error_status(err));
    error_json(out, err);
    buf_puts(out, "\n");
}

/* The requests that a population answers. */
static bool run_population(int (*request)(struct job **, struct request_opts *, const char *,
                                          size_t, const struct engine_info *, struct err *),
                           const char *prefix, void (*dump)(struct buf *, const struct job *),
                           struct buf *out, const char *body, size_t len,
                           const struct engine_info *info, struct err *err)
{
    struct request_opts opts;
    struct job *j, *again;
    if (request(&j, &opts, body, len, info, err))
        return false;
    EXPECT_INT(request(&again, &opts, body, len, info, err), 0);
    EXPECT(!strncmp(j->id, prefix, strlen(prefix)) && strlen(j->id) == strlen(prefix) + 16);
    EXPECT(strcmp(j->id, again->id) != 0);
    dump_population(out, j, again, opts.stream);
    if (opts.include_usage)
        buf_puts(out, "include_usage: 1\n");
    EXPECT_INT(opts.chat, !strcmp(prefix, "chatcmpl-"));
    dump(out, j);
    job_free(j);
    job_free(again);
    return true;
}

static bool run_sample(struct buf *out, const char *body, size_t len,
                       const struct engine_info *info, struct err *err)
{
    return run_population(request_sample, "smp-", dump_sample, out, body, len, info, err);
}

static bool run_bounds(struct buf *out, const char *body, size_t len,
                       const struct engine_info *info, struct err *err)
{
    return run_population(request_bounds, "bnd-", dump_bounds, out, body, len, info, err);
}

static bool run_learn(struct buf *out, const char *body, size_t len, const struct engine_info *info,
                      struct err *err)
{
    return run_population(request_learn, "lrn-", dump_learn, out, body, len, info, err);
}

static bool run_completion(struct buf *out, const char *body, size_t len,
                           const struct engine_info *info, struct err *err)
{
    return run_population(request_completion, "cmpl-", dump_completion, out, body, len, info, err);
}

static bool run_chat(struct buf *out, const char *body, size_t len, const struct engine_info *info,
                     struct err *err)
{
    return run_population(request_chat, "chatcmpl-", dump_completion, out, body, len, info, err);
}

static bool run_score(struct buf *out, const char *body, size_t len, const struct engine_info *info,
                      struct err *err)
{
    struct job *j;
    if (request_score(&j, body, len, info, err))
        return false;
    EXPECT(!strncmp(j->id, "scr-", 4));
    EXPECT_INT(j->kind, JOB_SCORE);
    dump_score(out, j);
    job_free(j);
    return true;
}

static bool keep_answer(struct buf *out, char *answer)
{
    if (answer)
        buf_printf(out, "%s\n", answer);
    free(answer);
    return answer != NULL;
}

static bool run_tokenize(struct buf *out, const char *body, size_t len,
                         const struct engine_info *info, struct err *err)
{
    return keep_answer(out, request_tokenize(body, len, info, err));
}

static bool run_detokenize(struct buf *out, const char *body, size_t len,
                           const struct engine_info *info, struct err *err)
{
    return keep_answer(out, request_detokenize(body, len, info, err));
}

static const struct {
    const char *name;
    bool (*run)(struct buf *out, const char *body, size_t len, const struct engine_info *,
                struct err *);
} requests[] = {
    {"sample", run_sample},     {"score", run_score},           {"bounds", run_bounds},
    {"learn", run_learn},       {"completion", run_completion}, {"chat", run_chat},
    {"tokenize", run_tokenize}, {"detokenize", run_detokenize},
};

enum { N_REQUESTS = sizeof requests / sizeof *requests };

/* ---- the folders ---- */

static FILE *open_file(const char *folder, const char *name, const char *mode)
{
    struct buf path = {0};
    buf_printf(&path, "%s/%s", folder, name);
    FILE *f = fopen(path.data, mode);
    buf_free(&path);
    return f;
}

static bool read_file(const char *folder, const char *name, struct buf *out)
{
    char part[4096];
    size_t n;
    FILE *f = open_file(folder, name, "rb");
    if (!f)
        return false;
    while ((n = fread(part, 1, sizeof part, f)) > 0)
        buf_add(out, part, n);
    fclose(f);
    buf_puts(out, ""); /* an empty file is an empty text */
    return true;
}

static void write_file(const char *folder, const char *name, const struct buf *text)
{
    FILE *f = open_file(folder, name, "wb");
    EXPECT(f && fwrite(text->data, 1, text->len, f) == text->len);
    if (f)
        fclose(f);
}

static const struct engine_info *model_of(const char *folder)
{
    struct buf name = {0};
    int found = TINY_BOS;
    if (read_file(folder, "model", &name))
        for (int i = 0; i < N_MODELS; i++)
            if (!strncmp(name.data, model_names[i], strlen(model_names[i])))
                found = i;
    buf_free(&name);
    return &models[found].info;
}

static void run_case(const char *folder, const char *name, bool valid, bool update)
{
    struct buf input = {0}, expected = {0}, got = {0};
    struct err err;
    size_t request = 0;
    while (request < N_REQUESTS && (strncmp(name, requests[request].name, strcspn(name, "-")) ||
                                    requests[request].name[strcspn(name, "-")]))
        request++;
    if (request == N_REQUESTS || !read_file(folder, "input.json", &input)) {
        fprintf(stderr, "%s: no such request, or no input.json\n", folder);
        check_failures++;
        return;
    }
    char *body = malloc(input.len); /* without a byte behind it, for the sanitizers */
    memcpy(body, input.data, input.len);
    bool ok = requests[request].run(&got, body, input.len, model_of(folder), &err);
    if (!ok)
        dump_refusal(&got, &err);
    if (ok != valid) {
        fprintf(stderr, "%s: %s\n", folder, ok ? "was accepted" : err.msg);
        check_failures++;
    } else if (update) {
        write_file(folder, "expected", &got);
    } else if (!read_file(folder, "expected", &expected) || strcmp(got.data, expected.data) != 0) {
        fprintf(stderr, "%s: is\n%s\nnot\n%s\n", folder, got.data,
                expected.data ? expected.data : "(no file)");
        check_failures++;
    }
    free(body);
    buf_free(&input);
    buf_free(&expected);
    buf_free(&got);
}

static int run_folder(const char *root, bool valid, bool update)
{
    DIR *dir = opendir(root);
    int n = 0;
    for (struct dirent *e; dir && (e = readdir(dir));) {
        if (e->d_name[0] == '.')
            continue;
        struct buf path = {0};
        buf_printf(&path, "%s/%s", root, e->d_name);
        run_case(path.data, e->d_name, valid, update);
        buf_free(&path);
        n++;
    }
    if (dir)
        closedir(dir);
    return n;
}

int main(int argc, char **argv)
{
    bool update = argc > 1 && !strcmp(argv[1], "--update");
    for (int i = 0; i < N_MODELS; i++)
        tiny_open(&models[i], i < 3 ? (enum tiny_kind)i : TINY_BOS);
    models[3].info.twist_dir[0] = 0;
    EXPECT(run_folder(TEST_DATA "/proto/valid", true, update) > 30);
    EXPECT(run_folder(TEST_DATA "/proto/invalid", false, update) > 60);
    for (int i = 0; i < N_MODELS; i++)
        tiny_close(&models[i]);
    return test_failures();
}
