/* The other end of the wire: bodies of requests to other servers, and their events. */
#pragma once
#include <stdint.h>

#include "../core/arena.h"
#include "../core/err.h"
#include "../core/event.h"

/* The seed in the body of a /v1/sample; one is drawn where there is none. */
int client_seed(const char *body, uint64_t *seed, struct err *err);

/* The same body with this seed, to be streamed, of the optional events the samples only. malloc'ed,
 * the caller's. */
char *client_body(const char *body, uint64_t seed);

/* Read one line of the answer to a /v1/sample; what the event points to is in the arena. Returns 1
 * if it is a start, sample, done or error event, 0 if it is any other, -1 if it is none. */
int client_event(struct event *out, struct arena *, const char *line, size_t len, struct err *err);

/* The message of an error's body (not NUL-terminated), or else `status` said in words. Returns -1.
 */
int client_refusal(struct err *err, const char *body, size_t len, long status);
