/* A request between JSON and job: its plain values read and checked one by one, the others still
 * JSON. They are turned into the job in an order of our own, whatever the client's was. */
#pragma once
#include "fields.h"

struct draft {
    /* /v1/sample and /v1/score */
    const json_t *model, *prompt, *potential, *twist, *logit_bias;
    int min_tokens, top_k;
    double temperature, top_p;
    bool ignore_eos, special;
    /* /v1/sample */
    int particles, proposal;
    int max_tokens; /* 0: absent */
    const json_t *seed, *stop, *resampling, *segments, *events;
    bool logprobs, stream;
    /* /v1/score */
    const json_t *completions;
    bool per_token;
};

/* request_bias.c: an object from tokens to numbers, ascending by token, each once. */
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

/* request_potential.c: fill j->potentials, after the prior, which they look at. */
int potentials_read(const struct reader *, const json_t *value, struct job *j);
/* Do they fit into the context behind texts of up to `longest` tokens, prompt included? */
int potentials_fit(const struct reader *, const json_t *value, const struct job *j,
                   int64_t longest);
/* Fill j->twist. */
int twist_read(const struct reader *, const json_t *value, struct job *j);

/* request_segments.c: fill j->segments from the request's segments, or from max_tokens and stop. */
int segments_read(const struct reader *, const struct draft *, struct job *j);
/* The most tokens of a sample: those drawn, and with the inserted ones. */
int64_t segments_drawn(const struct job *j);
int64_t segments_length(const struct job *j);
