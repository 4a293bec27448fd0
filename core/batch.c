/* The host's side of a forward: its rows, before they go to the device. */
#include <stdlib.h>

#include "model.h"

int batch_open(struct batch *b, int max_rows, int max_pages, struct err *err)
{
    size_t rows = (size_t)max_rows, pages = (size_t)max_pages;
    int32_t *block = calloc(9 * rows + 1 + pages, sizeof *block);
    if (!block)
        return err_set(err, ERR_UNAVAILABLE, "no memory for batches of %d rows and %d pages",
                       max_rows, max_pages);
    *b = (struct batch){.token = block, .max_rows = max_rows, .max_pages = max_pages};
    b->pos = b->token + rows;
    b->slot = b->pos + rows;
    b->seq = b->slot + rows;
    b->out_row = b->seq + rows;
    b->out_hidden = b->out_row + rows;
    b->cow_from = b->out_hidden + rows;
    b->cow_to = b->cow_from + rows;
    b->page_start = b->cow_to + rows;
    b->page = b->page_start + rows + 1;
    return 0;
}

void batch_close(struct batch *b)
{
    free(b->token); /* the start of the one block */
    *b = (struct batch){0};
}

void batch_reset(struct batch *b)
{
    b->n = b->n_seq = b->n_cow = b->n_out = 0;
    b->page_start[0] = 0;
}
