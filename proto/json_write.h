/* Writing JSON: the few words that events are made of. Commas are seen to; names may be NULL in an
 * array. Numbers come with 15 significant digits, the same on every locale. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../core/buf.h"

struct json {
    struct buf *out;
    bool comma; /* before the next value */
};

void json_open(struct json *, const char *name, char bracket); /* '{' or '[' */
void json_close(struct json *, char bracket);
void json_text(struct json *, const char *name, const char *s, size_t len); /* valid UTF-8 */
void json_string_member(struct json *, const char *name, const char *s);
void json_clean_member(struct json *, const char *name, const char *s); /* any bytes */
void json_int_member(struct json *, const char *name, int64_t n);
void json_real_member(struct json *, const char *name, double x); /* null unless finite */
void json_bool_member(struct json *, const char *name, bool yes);
void json_null_member(struct json *, const char *name);
void json_ids_member(struct json *, const char *name, const int32_t *id, int n);
void json_reals_member(struct json *, const char *name, const double *x, int n);
void json_raw(struct json *, const struct buf *values); /* values or members already written */
void json_raw_member(struct json *, const char *name, const char *value); /* JSON itself */
