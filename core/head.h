/* A twist's head on the device: a few `linear`s from the base model's last hidden state to log ψ of
 * every next token (Zhao et al., app. G.2), and their gradients. The engine's thread. */
#pragma once
#include <stdbool.h>
#include <stddef.h>

#include "../kernels/backend.h"
#include "err.h"
#include "twist.h"

struct head;

/* Dev bytes of a head for max_rows rows a call; learning: with master copies, gradients and Adam's
 * moments. */
size_t head_bytes(const struct twist_spec *, enum act_type, int max_rows, bool learning);

/* The twist's numbers are copied to the device. ERR_INTERNAL: the device failed. */
int head_open(struct head **out, struct backend *, const struct twist *, int max_rows,
              bool learning, struct err *err);
void head_close(struct head *); /* NULL is fine */

/* What it was opened with; its calibration is the head's own copy, its request NULL. */
const struct twist_spec *head_spec(const struct head *);

/* dev act (max_rows, in): the caller puts inputs here, [h] or [h ; h_o] row by row. */
void *head_input(const struct head *);

/* log_psi dev (n, vocab) of the n input rows. 0, or -1 once the device has failed. */
int head_apply(struct head *, float *log_psi, int n);

/* Add to the gradient of Σ_i g[i] x_i[col[i]], x = the output before any log sigmoid, of the n
 * input rows. g, col dev (n); col NULL: g dev (n, vocab), all columns. Computes the layers anew. */
int head_backward(struct head *, const float *g, const int32_t *col, int n);

/* One step of Adam on the sum of gradients since the last one; step 1 is the first. */
int head_step(struct head *, float rate, int step);

/* The numbers of a learning head, into a twist of the same spec. Waits. */
int head_download(struct head *, struct twist *out);
