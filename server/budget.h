/* Memory that clients fill: bodies that come in, events and answers that wait to be read. One
 * number for all connections, so that it is bounded whatever they do. Half of it is for whoever
 * comes first; the other half is one equal part for each connection, so that those who hold little
 * are not refused because others hold much. Any thread. */
#pragma once
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

struct budget {
    size_t common, part; /* bytes */
    atomic_size_t used;
};

static inline void budget_init(struct budget *b, size_t bytes, int connections)
{
    b->common = bytes / 2;
    b->part = bytes / 2 / (size_t)connections;
    b->used = 0;
}

/* May a connection that holds `held` bytes take `more`? */
static inline bool budget_allows(const struct budget *b, size_t held, size_t more)
{
    return held + more <= b->part || atomic_load(&b->used) + more <= b->common;
}

/* What a connection holds has changed from `held` to `now`; returns now. */
static inline size_t budget_count(struct budget *b, size_t held, size_t now)
{
    atomic_fetch_add(&b->used, now - held); /* wraps as it should when it is less */
    return now;
}
