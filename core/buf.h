/* A growable byte string. {0} is a valid empty one. Always NUL-terminated once something was added.
 */
#pragma once
#include <stddef.h>

struct buf {
    char *data;
    size_t len, cap;
};

void buf_add(struct buf *, const void *bytes, size_t n);
void buf_puts(struct buf *, const char *s);
void buf_printf(struct buf *, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void buf_reset(struct buf *); /* empty, memory kept */
void buf_free(struct buf *);
