/* Matrix multiply by oneDNN, for CPUs without AMX. Functions that can fail return 0 or -1. */
#pragma once
#include "backend.h"

struct onednn;        /* an engine, and the primitives made so far */
struct onednn_weight; /* one matrix in the layout oneDNN likes */

/* It multiplies bf16 natively. */
bool onednn_has_bf16(void);

int onednn_open(struct onednn **out, enum act_type);
void onednn_close(struct onednn *); /* NULL is fine */

/* From a plain (out, in) matrix of the activations' type, which may go afterwards. Fails when out
 * of memory, or when the library cannot keep the rows of a product independent of each other. */
int onednn_weight_open(struct onednn *, struct onednn_weight **out, const void *plain, int in,
                       int n_out);
void onednn_weight_close(struct onednn_weight *);

int onednn_multiply(struct onednn *, float *y, enum linear_out how, const void *x,
                    const struct onednn_weight *, int n);
