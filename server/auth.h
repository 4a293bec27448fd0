/* Who may call. Immutable after auth_open. */
#pragma once
#include <stdbool.h>

#include "../core/err.h"

struct auth;

/* The accepted keys: `key`, and the lines of `file` (blank lines and lines that start with # are
 * none). Both may be NULL: then everyone may call. A file without keys is a refusal. */
int auth_open(struct auth **out, const char *key, const char *file, struct err *err);
void auth_close(struct auth *);

/* Do these headers (NULL: absent) carry an accepted key? Takes the same time for every wrong key of
 * a length. */
bool auth_allows(const struct auth *, const char *authorization, const char *x_api_key);
