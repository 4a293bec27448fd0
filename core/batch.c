#include "batch.h"

#include <stdlib.h>
#include <string.h>

#include "kv.h"

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

void batch_check(const struct batch *b, const struct batch_limits *most)
{
    int pages_each = kv_pages_for(most->context);
    CHECK(b->n > 0 && b->n <= most->rows && b->n_seq > 0 && b->n_seq <= b->n);
    CHECK(b->n_out >= 0 && b->n_out <= b->n && b->n_cow >= 0);
    int n_pages = b->page_start[b->n_seq];
    CHECK(n_pages <= b->n_seq * pages_each);
    for (int i = 0; i < n_pages; i++)
        CHECK(b->page[i] >= 0 && b->page[i] < most->pages);
    for (int i = 0; i < b->n; i++) {
        CHECK(b->token[i] >= 0 && b->token[i] < most->vocab);
        CHECK(b->pos[i] >= 0 && b->pos[i] < most->context);
        CHECK(b->slot[i] >= 0 && b->slot[i] < most->pages * KV_PAGE);
        CHECK(b->seq[i] >= 0 && b->seq[i] < b->n_seq);
        int pages = b->page_start[b->seq[i] + 1] - b->page_start[b->seq[i]];
        CHECK(b->pos[i] < pages * KV_PAGE && pages <= pages_each);
    }
    for (int i = 0; i < b->n_out; i++) {
        CHECK(b->out_row[i] >= 0 && b->out_row[i] < b->n);
        CHECK(i == 0 || b->out_row[i] > b->out_row[i - 1]);
        CHECK(b->out_hidden[i] >= 0 && b->out_hidden[i] < most->hidden);
        CHECK(b->out_hidden[i] < b->n_out || b->out_hidden[i] >= most->rows);
    }
}

/* ---- on the device ---- */

size_t batch_dev_size(int max_rows, int max_pages)
{
    return 7 * (size_t)max_rows + 1 + (size_t)max_pages;
}

/* The next array, n of `room` numbers. */
static int32_t *stage(int32_t *host, size_t *used, const int32_t *src, int n, int room)
{
    int32_t *at = host + *used;
    memcpy(at, src, (size_t)n * sizeof *src);
    *used += (size_t)room;
    return at;
}

size_t batch_stage(const struct batch *b, int rows, int spare_page, int32_t *host,
                   const int32_t *dev, struct batch_dev *out)
{
    size_t used = 0;
    int n_pages = b->page_start[b->n_seq];
    CHECK(rows == b->n || (rows > b->n && b->n_out == b->n));
    int32_t *token = stage(host, &used, b->token, b->n, rows);
    int32_t *pos = stage(host, &used, b->pos, b->n, rows);
    int32_t *slot = stage(host, &used, b->slot, b->n, rows);
    int32_t *seq = stage(host, &used, b->seq, b->n, rows);
    int32_t *out_row = stage(host, &used, b->out_row, b->n_out, rows);
    int32_t *out_hidden = stage(host, &used, b->out_hidden, b->n_out, rows);
    int32_t *page_start = stage(host, &used, b->page_start, b->n_seq + 1, rows + 1);
    int32_t *page = stage(host, &used, b->page, n_pages, n_pages);
    for (int i = b->n; i < rows; i++) {
        token[i] = pos[i] = 0;
        slot[i] = spare_page * KV_PAGE;
        seq[i] = b->n_seq;
        out_row[i] = out_hidden[i] = i;
    }
    if (rows > b->n) { /* n_seq <= n: there is room for one more */
        page_start[b->n_seq + 1] = n_pages + 1;
        page[n_pages] = spare_page;
        used++;
    }
    *out = (struct batch_dev){
        .token = dev + (token - host),
        .pos = dev + (pos - host),
        .slot = dev + (slot - host),
        .seq = dev + (seq - host),
        .out_row = dev + (out_row - host),
        .out_hidden = dev + (out_hidden - host),
        .page_start = dev + (page_start - host),
        .page = dev + (page - host),
    };
    return used;
}

int batch_padded_rows(int n, int max_rows)
{
    int size = 1;
    while (size < n) {
        bool power_of_2 = (size & (size - 1)) == 0;
        if (size >= 256)
            size += 128;
        else if (size < 16)
            size *= 2;
        else
            size = power_of_2 ? size / 2 * 3 : size / 3 * 4;
    }
    return size < max_rows ? size : max_rows;
}
