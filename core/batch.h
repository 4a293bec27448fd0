/* The rows of one forward: as the engine fills them in, and as they lie on the device. */
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "err.h"

/* Host memory, all arrays allocated by batch_open for max_rows and reused. A row is (token,
 * position, sequence); its key and value go to its slot, and it sees its sequence's tokens 0..pos.
 * Rows of one sequence are in order of position; a sequence has at least one row. */
struct batch {
    int n;          /* rows */
    int32_t *token; /* (n) */
    int32_t *pos;   /* (n) */
    int32_t *slot;  /* (n) */
    int32_t *seq;   /* (n) index into page_start */
    int n_seq;
    int32_t *page_start; /* (n_seq + 1), page_start[0] = 0 */
    int32_t *page;       /* (page_start[n_seq]) */
    int n_cow;           /* page copies to be done before anything is written */
    int32_t *cow_from, *cow_to;
    int n_out;           /* rows whose last hidden state is wanted */
    int32_t *out_row;    /* (n_out) which rows, ascending */
    int32_t *out_hidden; /* (n_out) row of the hidden store to put it in: [0, n_out) scratch, until
                            the next forward; from max_rows on kept until overwritten */
    int max_rows, max_pages;
};
int batch_open(struct batch *, int max_rows, int max_pages, struct err *err);
void batch_close(struct batch *);
void batch_reset(struct batch *); /* empty */

/* What a model has for a batch. */
struct batch_limits {
    int rows;    /* of a batch */
    int pages;   /* of the KV store */
    int context; /* tokens of a sequence */
    int vocab;
    int hidden; /* rows of the hidden store */
};
/* Abort unless a batch keeps the promises above: an index that breaks one would reach beyond the
 * device's memory. */
void batch_check(const struct batch *, const struct batch_limits *);

/* Where a batch's arrays lie in dev memory. */
struct batch_dev {
    const int32_t *token, *pos, *slot, *seq, *out_row, *out_hidden, *page_start, *page;
};
/* int32_t that a batch of up to max_rows rows and max_pages page ids takes there. */
size_t batch_dev_size(int max_rows, int max_pages);

/* Lay out a batch as `rows` >= n rows in `host`, to be copied to `dev`. *out: where its arrays will
 * be there, the same places whenever `rows` is the same. Rows beyond n take part like others and
 * mean nothing: token 0 of a sequence whose one page is spare_page, each with a scratch hidden row
 * of its own; there are some only where all rows are wanted. Returns how many int32_t to copy. */
size_t batch_stage(const struct batch *, int rows, int spare_page, int32_t *host,
                   const int32_t *dev, struct batch_dev *out);

/* The least that holds n rows of the sizes 1, 2, 4, 8, 16, 24, 32, 48, 64, 96, … 256, 384, 512,
 * 640, …; max_rows if that is less. */
int batch_padded_rows(int n, int max_rows);
