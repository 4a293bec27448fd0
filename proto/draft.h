/* A request between JSON and job: its plain values read and checked one by one, the others still
 * JSON. They are turned into the job in an order of our own, whatever the client's was. */
#pragma once
#include "fields.h"
#include "request.h"

struct draft {
    const json_t *body; /* all of it */
    /* every request for a job */
    const json_t *model, *prompt, *potential, *logit_bias;
    int min_tokens, top_k;
    double temperature, top_p;
    bool ignore_eos, special;
    /* all but /v1/twists */
    const json_t *twist;
    /* all but /v1/score */
    int particles;
    int max_tokens; /* 0: absent */
    const json_t *seed, *stop, *resampling;
    bool stream;
    /* /v1/sample */
    const json_t *events;
    bool logprobs;
    /* /v1/sample and /v1/bounds */
    const json_t *segments;
    int proposal;
    /* /v1/score */
    const json_t *completions;
    bool per_token;
    /* /v1/bounds and /v1/twists */
    const json_t *targets;
    /* /v1/bounds */
    int repeats;
    /* /v1/completions */
    int n, best_of;
    int top_logprobs; /* -1: absent */
    const json_t *messages;
    int max_completion_tokens; /* -1: absent */
    bool echo;
    const json_t *stream_options;
    /* /v1/twists */
    struct text name;
    const json_t *prompts, *head, *condition;
    int method, updates, checkpoint;
    int bounds; /* -1: absent */
    double learning_rate;
};

/* Temperatures below the least would overflow a logit, and are as good as 0. */
#define TEMPERATURE_MIN 1e-3
#define TEMPERATURE_MAX 1e3

/* Fields that several requests share; a new one is a member of struct draft and a line. */
/* clang-format off */
#define DRAFT(member) .offset = offsetof(struct draft, member)
#define TARGET_FIELDS                                                                              \
    {"model", FIELD_ANY, DRAFT(model)},                                                            \
    {"prompt", FIELD_ANY, DRAFT(prompt)},                                                          \
    {"special", FIELD_BOOL, DRAFT(special)},                                                       \
    {"potential", FIELD_ANY, DRAFT(potential)},                                                    \
    {"min_tokens", FIELD_INT, DRAFT(min_tokens), .min = 0, FIELD_LIMIT(max_tokens)},               \
    {"ignore_eos", FIELD_BOOL, DRAFT(ignore_eos)},                                                 \
    {"temperature", FIELD_NUMBER, DRAFT(temperature), .min = 0, .max = TEMPERATURE_MAX},           \
    {"top_k", FIELD_INT, DRAFT(top_k), .min = 0, .max = 0x7fffffff},                               \
    {"top_p", FIELD_NUMBER, DRAFT(top_p), .min = 1e-6, .max = 1},                                  \
    {"logit_bias", FIELD_ANY, DRAFT(logit_bias)}
#define POPULATION_FIELDS(least, least_tokens)                                                                   \
    {"particles", FIELD_INT, DRAFT(particles), .min = (least), FIELD_LIMIT(max_particles)},        \
    {"max_tokens", FIELD_INT, DRAFT(max_tokens), .min = (least_tokens), FIELD_LIMIT(max_tokens)},               \
    {"stop", FIELD_ANY, DRAFT(stop)},                                                              \
    {"seed", FIELD_ANY, DRAFT(seed)},                                                              \
    {"resampling", FIELD_ANY, DRAFT(resampling)},                                                  \
    {"stream", FIELD_BOOL, DRAFT(stream)}
/* clang-format on */

/* One kind of request. */
struct request_form {
    const struct field *fields;
    int n_fields;
    struct draft defaults;
    int (*make)(const struct reader *, const struct draft *, struct job *);
    enum job_kind kind;
    const char *prefix; /* of its ids */
    bool tolerant;      /* fields that other servers know are fine as long as they change nothing */
};

/* A body of this form to a job: what every request_ function of request.h does. */
int request_read(const struct request_form *, struct job **out, struct request_opts *,
                 const char *body, size_t len, const struct engine_info *, struct err *err);

/* ---- request.c: parts of requests ---- */

struct place top(const char *field);

/* A prompt as ids, and as a text in the arena. value NULL: the empty prompt. */
int prompt_read(const struct reader *, struct place, const json_t *value, struct prompt *out);
void prompt_set(struct job *j, const struct prompt *);
/* The text of ids, for judges: out->ids are there. */
void prompt_decode(const struct reader *, struct prompt *out);

/* All but the prompt: model, prior, potentials, twist. */
int target_read(const struct reader *, const struct draft *, struct job *j);
/* Particles, holes, resampling, seed. j->ess_threshold holds the default. */
int population_read(const struct reader *, const struct draft *, struct job *j);
/* Do the job's prompt, named `prompt`, and `longest` tokens after it, because of the field `why`,
 * fit into the context, and the potentials behind them? */
int fit_check(const struct reader *, const struct draft *, const struct job *j, struct place prompt,
              int64_t longest, struct place why);

/* ---- request_completion.c ---- */

/* Take out of a body the fields that change nothing, and refuse those that would change something.
 */
int fields_tolerate(const struct reader *, json_t *body);
/* All of a completion but its prompts, which are there. */
int completion_make(const struct reader *, const struct draft *, struct job *);
int stream_options_read(const struct reader *, const json_t *value, bool *include_usage);

/* ---- request_bias.c: an object from tokens to numbers, ascending by token, each once ---- */

struct biases {
    const int32_t *id;
    const float *bias;
    int n;
};
enum bias_keys {
    BIAS_BY_ID,   /* "123" */
    BIAS_BY_TEXT, /* the text of exactly one token, or "#123" */
};
int biases_read(const struct reader *, struct place, const json_t *object, enum bias_keys,
                struct biases *out);

/* ---- request_potential.c ---- */

/* Fill j->potentials, after the prior, which they look at. */
int potentials_read(const struct reader *, const json_t *value, struct job *j);
/* Do they fit into the context behind texts of up to `longest` tokens, prompt included? */
int potentials_fit(const struct reader *, const json_t *value, const struct job *j,
                   int64_t longest);
/* Bytes of the judges' templates, filled in with so many prompts of so many bytes in all. */
size_t templates_filled(const struct job *j, size_t n_prompts, size_t prompts_len);
/* Refuse those that can exceed 1. who: what needs a probability. */
int potentials_bounded(const struct reader *, const json_t *value, const struct job *j,
                       const char *who);

/* ---- request_twist.c ---- */

/* Fill j->twist, after the potentials. */
int twist_read(const struct reader *, const json_t *value, struct job *j);
int twist_name_read(const struct reader *, struct place, struct text name, const char **out);
extern const char *const proposal_names[];
/* Fill j->base_proposal, after the twist, by a proposal's index among the names. */
int proposal_set(const struct reader *, int proposal, struct job *j);

/* ---- request_segments.c ---- */

/* Fill j->segments from the request's segments, or from max_tokens and stop. */
int segments_read(const struct reader *, const struct draft *, struct job *j);
/* The most tokens of a sample: those drawn, and with the inserted ones. */
int64_t segments_drawn(const struct job *j);
int64_t segments_length(const struct job *j);

/* ---- request_targets.c ---- */

/* Fill j->targets, after the potentials and the one hole. */
int targets_read(const struct reader *, const struct draft *, struct job *j);
