/* Runs the folders of tests/proto/{valid,invalid}: each holds an input.json and what is expected of
 * it. The first word of a folder's name is the request (sample, score, tokenize, detokenize); a
 * file `model` in it names another model than the one whose tokenizer adds BOS. A new case needs no
 * code: write the input, run `test_request --update`, and read what it wrote as `expected`. */
#include <dirent.h>
#include <stdbool.h>

#include "../../core/job.h"
#include "../../proto/event_json.h"
#include "../../proto/request.h"
#include "../check.h"
#include "../tiny_info.h"

static struct tiny_info models[3];
static const char *const model_names[] = {"bos", "no-bos", "ids"}; /* by enum tiny_kind */

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
    static const char *const twists[] = {"none", "factor", "potential"};
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
    buf_puts(out, "\n");
}

/* again: the job of the same request; a seed that was drawn is another one there. */
static void dump_sample(struct buf *out, const struct job *j, const struct job *again, bool stream)
{
    static const char *const schemes[] = {"systematic", "stratified", "multinomial", "residual"};
    dump_target(out, j);
    buf_printf(out, "proposal: %s\n", j->base_proposal ? "base" : "twist");
    buf_printf(out, "particles: %d\n", j->particles);
    buf_printf(out, "resampling: %s %.9g\n", schemes[j->scheme], j->ess_threshold);
    if (j->seed == again->seed)
        buf_printf(out, "seed: %lld\n", (long long)j->seed);
    else
        buf_puts(out, j->seed < UINT64_C(1) << 53 ? "seed: drawn\n" : "seed: too large\n");
    for (int i = 0; i < j->n_segments; i++)
        dump_segment(out, &j->segments[i]);
    buf_printf(out, "named_holes: %d\nlogprobs: %d\nstream: %d\n", j->named_holes, j->logprobs,
               stream);
    buf_printf(out, "events: step %d resample %d sample %d particles %d\n", j->ev_step,
               j->ev_resample, j->ev_sample, j->ev_particles);
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

static bool run_sample(struct buf *out, const char *body, size_t len,
                       const struct engine_info *info, struct err *err)
{
    struct request_opts opts;
    struct job *j, *again;
    if (request_sample(&j, &opts, body, len, info, err))
        return false;
    EXPECT_INT(request_sample(&again, &opts, body, len, info, err), 0);
    EXPECT(!strncmp(j->id, "smp-", 4) && strlen(j->id) == 20);
    EXPECT_INT(j->kind, JOB_SAMPLE);
    EXPECT(strcmp(j->id, again->id) != 0);
    dump_sample(out, j, again, opts.stream);
    job_free(j);
    job_free(again);
    return true;
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
    {"sample", run_sample},
    {"score", run_score},
    {"tokenize", run_tokenize},
    {"detokenize", run_detokenize},
};

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
        for (int i = 0; i < 3; i++)
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
    while (request < 4 && (strncmp(name, requests[request].name, strcspn(name, "-")) ||
                           requests[request].name[strcspn(name, "-")]))
        request++;
    if (request == 4 || !read_file(folder, "input.json", &input)) {
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
    for (int i = 0; i < 3; i++)
        tiny_open(&models[i], (enum tiny_kind)i);
    EXPECT(run_folder(TEST_DATA "/proto/valid", true, update) > 30);
    EXPECT(run_folder(TEST_DATA "/proto/invalid", false, update) > 60);
    for (int i = 0; i < 3; i++)
        tiny_close(&models[i]);
    return test_failures();
}
