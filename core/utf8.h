/* Streaming UTF-8: never splits a character, never emits an invalid byte. */
#pragma once
#include <stdbool.h>
#include <stddef.h>

#include "buf.h"

/* How many of the n bytes form whole characters or certainly invalid bytes; the rest (at most 3)
 * may be the start of a character that is still to come. */
size_t utf8_complete(const char *s, size_t n);

/* Append s to out with every maximal invalid subpart replaced by U+FFFD (Unicode 15, section 3.9,
 * as browsers do). */
void utf8_sanitize(struct buf *out, const char *s, size_t n);

bool utf8_valid(const char *s, size_t n);

/* Bytes of the character at the start of s; 0 if there is no whole, valid one. */
size_t utf8_char(const char *s, size_t n);
