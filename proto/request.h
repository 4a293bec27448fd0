/* Bytes to jobs: JSON request bodies, parsed and checked against the wire contract. Every refusal
 * names the field. Pure and reentrant; runs on the HTTP thread. jansson lives in this folder,
 * in config/ and in core/safetensors.c only. */
#pragma once
#include <stdbool.h>
#include <stddef.h>

#include "../core/engine.h"
#include "../core/job.h"

struct request_opts { /* what concerns the answer's form, not the engine */
    bool stream;
    bool include_usage; /* a completion's stream says it */
    bool chat;          /* a completion is a message */
};

/* POST /v1/sample and /v1/score. On success *out is the caller's (job_free). On failure err says
 * why: ERR_INVALID with param, ERR_NOT_FOUND for an unknown model. A missing seed is drawn below
 * 2^53. */
int request_sample(struct job **out, struct request_opts *, const char *body, size_t len,
                   const struct engine_info *, struct err *err);
int request_score(struct job **out, const char *body, size_t len, const struct engine_info *,
                  struct err *err);

/* POST /v1/bounds: draws of σ, given or by rejection, and the runs that they bound log Z with. */
int request_bounds(struct job **out, struct request_opts *, const char *body, size_t len,
                   const struct engine_info *, struct err *err);

/* POST /v1/twists: a twist to be learned. job.learn.spec is complete but for calibration and log_z;
 * its `request` lies in the job's arena: what was asked for as compact JSON, keys sorted. Refused
 * (ERR_INVALID, no param) where the server has no folder of twists. */
int request_learn(struct job **out, struct request_opts *, const char *body, size_t len,
                  const struct engine_info *, struct err *err);

/* POST /v1/completions: OpenAI's request, and ours in it. Its answer: completion.h. */
int request_completion(struct job **out, struct request_opts *, const char *body, size_t len,
                       const struct engine_info *, struct err *err);

/* POST /v1/chat/completions: the same, the prompt being a conversation. */
int request_chat(struct job **out, struct request_opts *, const char *body, size_t len,
                 const struct engine_info *, struct err *err);

/* POST /tokenize, /detokenize: body in, whole JSON answer out (malloc'ed, NUL-terminated, the
 * caller's). NULL: err. */
char *request_tokenize(const char *body, size_t len, const struct engine_info *, struct err *err);
char *request_detokenize(const char *body, size_t len, const struct engine_info *, struct err *err);
