/* Potentials φ: the scores of finished texts that define the target σ ∝ p0 φ. This file has those
 * that need no model (pure functions of text and tokens) and the texts that the model-based ones
 * need; the engine runs the latter as forced rows. */
#pragma once
#include <stdbool.h>

#include "buf.h"
#include "job.h"

/* A compiled pattern (PCRE2, UTF, matched against the whole text). Immutable; any thread may match.
 * Time and memory of a match are bounded; a match that exceeds them counts as none. Broken UTF-8 in
 * the text is matched as U+FFFD, as which it is sent. */
int regex_open(struct regex **out, const char *pattern, size_t len, const char *param,
               struct err *err);
void regex_close(struct regex *);
bool regex_matches_all(const struct regex *, const char *text, size_t len);

/* Does the potential need the model (continuation, judge)? */
bool potential_needs_model(const struct potential *);

/* log φ_i without its weight, of a text (UTF-8) with these tokens. Only for potentials that need no
 * model. */
double potential_log_phi(const struct potential *, const char *text, size_t len,
                         const int32_t *tokens, int n_tokens);

/* weight · x with 0 · (-inf) = 0. */
double potential_weigh(double weight, double x);

/* log ψ of the tokens under a factor twist: the job's lexicons. 0 with any other twist. Tokens put
 * in by an inserted text count like drawn ones. */
double potential_factor(const struct job *, const int32_t *tokens, int n_tokens);

/* The judge's template with {prompt} and {text} filled in. */
void judge_fill(struct buf *out, const struct potential *, const char *prompt, size_t prompt_len,
                const char *text, size_t text_len);
