/* What the engine has to say about a job, as plain structs. An event and all it points to is
 * borrowed: valid during the sink call only. Numbers may be -inf; never NaN. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "err.h"

enum event_type {
    EVENT_START,
    EVENT_STEP,
    EVENT_RESAMPLE,
    EVENT_SAMPLE,
    EVENT_SCORE,  /* one result of /v1/score */
    EVENT_TOKENS, /* tokens of choices that are still growing */
    EVENT_CHOICE, /* a whole choice of JOB_COMPLETE */
    EVENT_BOUND,  /* one run's bound on log Z */
    EVENT_UPDATE, /* one step of learning */
    EVENT_DONE,   /* the last one of a whole answer */
    EVENT_ERROR,  /* the last one of a broken one */
};

struct event_text {
    const char *s; /* valid UTF-8 */
    size_t len;
};

struct event_hole {
    const char *name;
    struct event_text text;
};

struct event_token {
    int index; /* of its choice, or particle */
    int32_t token;
    bool ended;   /* the text ends with it … */
    bool stopped; /* … as it is EOS or completes a stop string */
};

/* One of the likeliest tokens in a place. */
struct event_top {
    int32_t id;
    double log_p;
};

/* A mean over runs; se, its standard error, is NaN (JSON: null) for n < 2, mean for n = 0. */
struct event_mean {
    double mean, se;
    int n;
};

struct event {
    enum event_type type;
    union {
        struct {
            const char *id, *model;
            int particles, prompt_tokens;
            int64_t seed;
        } start;
        struct {
            int step;   /* tokens drawn so far, 1 = the first */
            int active; /* live particles */
            double ess, log_z;
            int n_texts; /* with "particles": all partial texts, else 0 */
            const struct event_text *texts;
        } step;
        struct {
            int step;
            double ess; /* before resampling */
            const int32_t *ancestors;
            int n;
        } resample;
        struct {
            int index;
            struct event_text text;
            const int32_t *tokens; /* all after the prompt, EOS included */
            int n_tokens;
            const double
                *token_log_p; /* (n_tokens) or NULL; NaN marks an inserted token that has none */
            double log_weight, weight, log_p, log_phi;
            bool stopped; /* finish_reason: true "stop", false "length" */
            const struct event_hole *holes;
            int n_holes;
        } sample;
        struct {
            int index;
            double log_p, log_phi;
            double log_q; /* Σ log q of its tokens under the request's proposal */
            bool has_phi;
            const int32_t *tokens;
            int n_tokens;
            const double *log_twist;     /* (n_tokens) or NULL without a twist */
            const double *token_log_p;   /* (n_tokens) or NULL */
            const struct event_top *top; /* (n_tokens, n_top) by falling log p */
            int n_top;
        } score;
        struct {
            int first; /* to be added to the indices */
            const struct event_token *token;
            int n;
        } tokens;
        struct {
            int index;             /* prompt * n + its number */
            const int32_t *tokens; /* EOS and stop strings included */
            int n_tokens;
            int n_echo; /* of them are the prompt's */
            bool stopped;
            const double *token_log_p;   /* (n_tokens) or NULL; NaN for what nothing predicts */
            const struct event_top *top; /* (n_tokens, n_top) by falling log p; NaN: unknown */
            int n_top;
        } choice;
        struct {
            bool upper; /* kind */
            double log_z;
        } bound;
        struct {
            int update; /* 1 = the first */
            double loss, log_z, ess;
        } update;
        struct {
            int kind;          /* enum job_kind: which of these it has */
            double log_z, ess; /* JOB_SAMPLE; log_z also JOB_LEARN */
            struct event_mean lower, upper, kl_q_sigma, kl_sigma_q; /* JOB_BOUNDS; NaN: unknown */
            double gap;
            const char *name; /* JOB_LEARN */
            int updates;
            int prompt_tokens;
            int64_t completion_tokens; /* drawn (sample), given (score) */
            double queue_seconds, prompt_seconds, sample_seconds;
        } done;
        struct err error;
    };
};

/* Called on the engine thread; must not block and must not call the engine. Returns 0, or nonzero
 * to cancel the job: then no further event follows. After EVENT_DONE, EVENT_ERROR, a nonzero
 * return, or engine_cancel, `closed` is called exactly once and user is never used again. */
struct sink {
    int (*event)(void *user, const struct event *);
    void (*closed)(void *user);
    void *user;
};
