/* A request, parsed and checked: all that the engine needs, nothing that it must still look up by
 * name. Everything in it lives in its arena (and in the compiled patterns, freed by job_free).
 * Written by proto/request.c and the command line, owned by the engine once submitted. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../kernels/backend.h"
#include "arena.h"
#include "err.h"
#include "twist.h"

/* The largest a request may be. One table for the parser's refusals, `--help` and the engine's
 * planning. */
struct limits {
    int max_particles; /* per request */
    int max_tokens;    /* longest continuation */
    int max_prompt_tokens;
    int max_completions; /* texts of one /v1/score */
    int max_potentials;  /* per request */
    int max_segments;
    int max_pattern; /* bytes of a regular expression */
    size_t max_body; /* bytes of a request */
};
#define LIMITS_DEFAULT ((struct limits){1024, 4096, 32768, 1024, 16, 64, 4096, 8u << 20})

struct ids { /* a list of tokens, in the arena */
    const int32_t *id;
    int n;
};

enum potential_type {
    POTENTIAL_CONTINUATION, /* log p0(text | prompt, s) */
    POTENTIAL_LEXICON,      /* Σ over the sample's tokens of their bias */
    POTENTIAL_CONTAINS,     /* 0 if the text is in s, else `miss` */
    POTENTIAL_REGEX,        /* 0 if the pattern matches all of s, else `miss` */
    POTENTIAL_JUDGE,  /* log p0(answer | template filled in), normalised over answer and against if
                         given */
    POTENTIAL_TOKENS, /* 0, or log_phi where s starts with one of the lists */
};

struct regex; /* core/potential.h */

struct potential {
    enum potential_type type;
    double weight;
    union {
        struct ids continuation;
        struct {
            const int32_t *id; /* ascending, distinct */
            const float *bias;
            int n;
        } lexicon;
        struct {
            const char *text;
            size_t len;
            double miss; /* -inf, or `soft` */
        } contains;
        struct {
            struct regex *regex;
            double miss;
        } regex;
        struct {
            const char *template_text; /* with {prompt} and {text} */
            size_t template_len;
            const struct ids *answer; /* answer[0] is the answer, the rest `against` */
            int n_answers;            /* 1: not normalised */
        } judge;
        struct {
            const struct ids *list;
            int n;
            double log_phi;
        } tokens;
    };
};

enum twist_type {
    TWIST_NONE,
    TWIST_FACTOR,    /* the lexicon potentials, token by token, in the proposal as well */
    TWIST_POTENTIAL, /* φ(s_1:t)^power every `every` tokens */
    TWIST_LEARNED,   /* a learned head: log ψ of all next tokens, in the proposal as well */
};

struct head;

struct twist_choice {
    enum twist_type type;
    int every;
    double power;
    /* learned */
    const char *name;
    struct ids condition; /* of a conditional twist: the ending it is to foresee */
    struct head *head;    /* set by the engine: the one being learned, or the named one, loaded */
};

enum segment_type {
    SEGMENT_TEXT,    /* inserted, not weighed: an intervention (do) */
    SEGMENT_OBSERVE, /* inserted, its log p0 enters the weight: a condition (see) */
    SEGMENT_SAMPLE,  /* a hole, drawn */
};

struct segment {
    enum segment_type type;
    struct ids ids;   /* text, observe */
    const char *name; /* sample */
    int max_tokens;
    const char **stop; /* a hole ends right after its text first contains one of these */
    const size_t *stop_len;
    int n_stop;
};

enum job_kind {
    JOB_SAMPLE,   /* draw a population */
    JOB_SCORE,    /* probabilities of given completions */
    JOB_BOUNDS,   /* lower and upper bounds on log Z */
    JOB_LEARN,    /* a twist */
    JOB_COMPLETE, /* choices for each of several prompts */
};

struct prompt {
    struct ids ids;   /* not empty */
    const char *text; /* for {prompt} of judges */
    size_t len;
};

/* Exact draws of σ: given, or drawn by rejection. */
struct targets {
    struct ids *given; /* whole texts: they end with EOS, a stop string, or at max_tokens */
    int n;             /* 0: none */
    int64_t max_draws; /* > 0: by rejection, with at most so many draws of p0 */
};

/* What JOB_LEARN learns. The prior, the potentials, particles (a prompt's), seed, the one hole's
 * max_tokens and the resampling (by default none) are the job's. */
struct learn {
    struct twist_spec
        spec;            /* name, layers, hidden, conditional, method, updates, learning_rate … */
    struct ids *prompts; /* each update takes the next; the job's own prompt is the first */
    const char **prompt_text; /* (n_prompts) for judges */
    size_t *prompt_text_len;
    int n_prompts;
    int condition_tokens; /* conditional: endings of so many tokens, drawn from the prior … */
    int condition_batch;  /* … so many in an update, particles shared among them */
    int checkpoint;       /* save every so many updates; 0: at the end only */
    int bounds;           /* say bounds every so many updates; 0: never */
};

/* What JOB_COMPLETE answers. The prior, the potentials, particles (a prompt's), seed, resampling
 * and the one hole are the job's. */
struct complete {
    struct prompt *prompts; /* the first is the job's own */
    int n_prompts;
    int n;      /* choices for each: all its particles, or with potentials so many draws of them */
    bool draws; /* false: max_tokens 0, nothing is drawn, and the hole's one token is a stand-in */
    bool echo;  /* the prompt belongs to the choice */
    int logprobs; /* log-probabilities under the model itself: of the choices' tokens, and so many
                     of the likeliest in each place; -1: none */
    bool tokens;  /* say each token as it is drawn; no potentials, no
                     logprobs then */
};

struct job {
    struct arena arena;
    enum job_kind kind;
    char id[40]; /* "smp-…", as reported */

    const char *prompt; /* the prompt's text for {prompt} of judges; decoded when given as ids */
    size_t prompt_len;
    bool special;          /* special tokens in texts are parsed; judge templates follow it too */
    struct ids prompt_ids; /* BOS included, never empty: without BOS an empty prompt is refused,
                            * as there is nothing that predicts a first token */
    /* the prior */
    float temperature; /* > 0; a request's 0 becomes top_k = 1 at temperature 1 */
    int top_k;
    float top_p;
    int min_tokens;
    bool ignore_eos;
    const int32_t *bias_id; /* logit_bias, ascending */
    const float *bias;
    int n_bias;

    /* the target */
    struct potential *potentials;
    int n_potentials;
    bool borrowed; /* the potentials are another job's, which outlives this one */
    struct twist_choice twist;
    bool base_proposal; /* "base", or "auto" without a twist over the vocabulary */

    /* JOB_SAMPLE */
    int particles;
    enum resample_scheme scheme;
    double ess_threshold;
    uint64_t seed;
    struct segment
        *segments; /* one unnamed hole unless the request has segments; always at least one */
    int n_segments;
    bool named_holes; /* samples report "holes" */
    bool logprobs;    /* samples carry token_log_p */
    bool ev_step, ev_resample, ev_sample, ev_particles;
    bool ev_tokens;
    int n_choices; /* > 0: the samples are so many draws from the final weights */

    /* JOB_BOUNDS, JOB_LEARN */
    struct targets targets;
    int repeats; /* JOB_BOUNDS: runs of each kind */
    struct learn learn;

    struct complete complete; /* JOB_COMPLETE */

    /* of a bounds' or a learning's own runs */
    const struct ids *pinned; /* particle 0 is this text: conditional SMC */

    /* JOB_SCORE */
    struct ids *completions;
    int n_completions;
    bool per_token; /* results carry token_log_p */
    int top;        /* … and so many likeliest tokens in each place; at most TOP_MAX */
};

struct job *
job_new(void); /* zeroed, with defaults: temperature 1, top_p 1, weight-free, threshold 0.5 … */
void job_free(struct job *); /* NULL is fine */
