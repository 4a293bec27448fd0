/* The transformer of arch "llama" (SmolLM2, TinyStories, Llama 2/3, Mistral), written once over the
 * backend's operations, and the GGUF loading for it. One thread: the engine's. All device memory is
 * taken in model_open. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../kernels/backend.h"
#include "batch.h"
#include "err.h"
#include "gguf.h"
#include "head.h"

struct model_config {
    char name[128]; /* general.name, or the file's name without .gguf */
    int dim, n_layers, n_heads, n_kv_heads, head_dim, ffn, vocab, context;
    int rope_dim;
    float norm_eps, rope_base, rope_scale; /* positions are divided by rope_scale */
    int64_t parameters;
};

/* Read the metadata, and check it and every tensor's name and shape; no weight is read. */
int model_config_read(struct model_config *out, const struct gguf *, const char *path,
                      struct err *err);

struct model;

struct model_opts {
    int max_rows;   /* rows of one forward */
    int max_hidden; /* rows of the hidden store that outlive a forward, beside max_rows scratch ones
                     */
    int n_pages;    /* KV pages */
    int context;    /* longest sequence served; at most the model's */
    bool twists;    /* learned twists may be used: their log ψ is planned for */
};

/* Bytes model_open will take from the device, itemised (but for the one page of rows that pad);
 * nothing is allocated. The embedding table counts as the file stores it, and once more as the
 * head's weights if it is both. */
struct model_memory {
    size_t weights, kv, activations, total;
};
void model_memory(const struct model_config *, const struct backend *, const struct gguf *,
                  const struct model_opts *, struct model_memory *out);

/* The file stays open as long as the model: rows of the embedding table are read from its mapping.
 */
int model_open(struct model **out, struct backend *, const struct gguf *,
               const struct model_config *, const struct model_opts *, struct err *err);
void model_close(struct model *);

/* One forward pass. The hidden states (after the last norm) of the wanted rows stay in the hidden
 * store until overwritten. Returns 0, or -1 when the device failed (ERR_INTERNAL). */
int model_forward(struct model *, const struct batch *, struct err *err);

/* Copy rows of the hidden store, dim act each: row to_row[i] of the dev memory to[i] = hidden row
 * from[i]. Host arrays of n <= max_rows + max_hidden, borrowed for the call; the copies of adjacent
 * rows with equal `to` are one operation. Queued: to be followed by a model_propose before the next
 * one. */
int model_copy_hidden(struct model *, const int32_t *from, void *const *to, const int32_t *to_row,
                      int n, struct err *err);

/* The learned twist that a row is proposed by. */
struct model_twist {
    struct head *head;     /* NULL: none. Opened for model_chunk_rows */
    const void *condition; /* dev act (dim): the hidden state of a conditional twist's condition */
};

/* What is asked of rows of the hidden store: at most max_rows + max_hidden rows, and as many draws.
 * Host memory, but for the priors. */
struct model_ask {
    const int32_t *hidden;           /* (n_rows) */
    const struct propose_row *rows;  /* (n_rows) rows[i] belongs to hidden[i]; .twist is ignored */
    const struct model_twist *twist; /* (n_rows); one pass of a head serves adjacent equal ones */
    int n_rows;
    const struct propose_draw *draws; /* (n_draws), as rows[].first_draw, n_draws say */
    int n_draws;
    const struct prior *priors; /* dev */
    int top;                    /* > 0: so many likeliest tokens of each row by its logits */
    struct top_token *top_out;  /* (n_rows, 1 + top) of it, as the operation `top` has it */
};

/* Logits, twists, and propose, in chunks of rows so that the logits stay small. Returns when out
 * (n_draws) is filled. */
int model_propose(struct model *, const struct model_ask *, struct propose_out *out,
                  struct err *err);

int model_chunk_rows(const struct model *); /* rows of a chunk */

/* For learning. The input of a head: rows row[i] (dev) of hidden states (dev act (…, dim)), and the
 * condition with each of them if it is conditional. At most model_chunk_rows. -1: the device
 * failed. */
int model_head_input(struct model *, const struct model_twist *, const void *hidden,
                     const int32_t *row, int n);

/* The same, and the gradient of the rows' forced draws with respect to all log twists, dy dev
 * (n, vocab), as the operation propose_grad has it. args: rows, whose .twist is their place among
 * the n, draws, priors and vocab; dev. */
int model_propose_grad(struct model *, const struct model_twist *, const void *hidden,
                       const int32_t *row, const struct propose_args *, const float *coef,
                       float *dy, int n);
