/* Who may call, how much at once and how often. Keys are grouped by name: those of one name are one
 * client, with one set of limits, so that a key can be replaced while both work. Any thread. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "../core/err.h"

enum { CLIENT_NAME_MAX = 64, KEY_MAX = 255, KEYS_MAX = 1024 };

struct auth;

/* The accepted keys: `key`, whose name is "api-key", and those of `file`. Both may be NULL: then
 * everyone may call, without limits. Both strings are borrowed. A line of the file is
 *
 *     KEY [name=NAME] [concurrent=N] [per_minute=N]
 *
 * or blank, or starts with #. Without a name it is "key-1", "key-2", … by its place among the keys.
 * A file without keys is a refusal. No message has a key in it. */
int auth_open(struct auth **out, const char *key, const char *file, struct err *err);
void auth_close(struct auth *);

/* Read the file again. Refused, all stays as it was. Clients keep what is counted of them. */
int auth_reload(struct auth *, struct err *err);
int auth_keys(struct auth *, int *clients); /* how many keys there are, and names */

/* A client's request. */
struct visit {
    char name[CLIENT_NAME_MAX + 1]; /* "": none; no key was needed */
    struct client *client;          /* set while it counts as in progress: to be left */
    int limit;                      /* which was reached … */
    int retry_after;                /* … and seconds until it is worth another try */
};

enum auth_verdict {
    AUTH_WELCOME,
    AUTH_UNKNOWN,   /* no header has an accepted key */
    AUTH_TOO_MANY,  /* as many requests as it may have are in progress */
    AUTH_TOO_OFTEN, /* it has used up its requests for now */
};

/* A request with these headers (NULL: absent) comes at `now` (seconds, monotonic). Only one that
 * counts is subject to limits. Every key is compared in full, whatever is found on the way. */
enum auth_verdict auth_enter(struct auth *, const char *authorization, const char *x_api_key,
                             bool counts, double now, struct visit *out);

/* It is over, and has read and drawn so many tokens. A visit without a client is fine. */
void auth_leave(struct auth *, struct visit *, uint64_t prompt_tokens, uint64_t sampled_tokens);

/* What is counted of a client. */
struct client_usage {
    char name[CLIENT_NAME_MAX + 1];
    int active;
    uint64_t requests, too_many, too_often, prompt_tokens, sampled_tokens;
};
int auth_usage(struct auth *, struct client_usage **out); /* how many; *out is the caller's */
