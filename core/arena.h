/* Memory that is freed all at once. Used for what lives exactly as long as one request. Not
 * thread-safe. */
#pragma once
#include <stddef.h>

struct arena {
    struct arena_block *head; /* {0} is a valid empty arena */
    size_t bytes;             /* taken from the system */
};

/* Zeroed and aligned for any type; never NULL: the process ends with a message when memory runs
 * out. Whatever is sized by a client is checked against a limit before it gets here. */
void *arena_alloc(struct arena *, size_t bytes);
char *arena_strdup(struct arena *, const char *s,
                   size_t len);  /* NUL-terminated copy of len bytes */
void arena_free(struct arena *); /* leaves an empty arena */

#define ARENA_NEW(a, type, n) ((type *)arena_alloc((a), sizeof(type) * (size_t)(n)))
