#include "auth.h"

#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "key_file.h"

/* A client stays as long as it has a key or a request in progress. */
struct client {
    struct client *next;
    struct client_limits limits;
    bool listed;       /* it has a key */
    double allowance;  /* requests that it may start at once, … */
    double counted_at; /* … as of then */
    struct client_usage usage;
};

struct auth {
    const char *key, *file; /* borrowed */
    pthread_mutex_t lock;   /* of the following */
    struct key_list keys;
    struct client *clients;
};

/* ------------------------------------------------------- clients */

static struct client **find_client(struct auth *a, const char *name)
{
    struct client **at = &a->clients;
    while (*at && strcmp((*at)->usage.name, name) != 0)
        at = &(*at)->next;
    return at;
}

static void free_client(struct client **at)
{
    struct client *c = *at;
    *at = c->next;
    free(c);
}

/* Whoever may do more than before may do so at once. */
static void set_limits(struct client *c, const struct client_limits *l)
{
    if (l->per_minute != c->limits.per_minute)
        c->allowance = l->per_minute;
    c->limits = *l;
    c->listed = true;
}

static void list_client(struct auth *a, const struct key_entry *e)
{
    struct client **at = find_client(a, e->name);
    if (!*at) {
        *at = calloc(1, sizeof **at);
        CHECK(*at && "out of memory");
        snprintf((*at)->usage.name, sizeof(*at)->usage.name, "%s", e->name);
    }
    set_limits(*at, &e->limits);
}

/* Takes the keys. */
static void adopt(struct auth *a, struct key_list *take)
{
    pthread_mutex_lock(&a->lock);
    for (struct client *c = a->clients; c; c = c->next)
        c->listed = false;
    for (int i = 0; i < take->n; i++)
        list_client(a, &take->key[i]);
    for (struct client **at = &a->clients; *at;) {
        if ((*at)->listed || (*at)->usage.active)
            at = &(*at)->next;
        else
            free_client(at);
    }
    struct key_list old = a->keys;
    a->keys = *take;
    pthread_mutex_unlock(&a->lock);
    key_list_free(&old);
}

/* ------------------------------------------------------- open, reload */

int auth_reload(struct auth *a, struct err *err)
{
    struct key_list keys = {0};
    if (key_list_read(&keys, a->key, a->file, err)) {
        key_list_free(&keys);
        return -1;
    }
    adopt(a, &keys);
    return 0;
}

int auth_open(struct auth **out, const char *key, const char *file, struct err *err)
{
    struct auth *a = calloc(1, sizeof *a);
    CHECK(a && "out of memory");
    a->key = key;
    a->file = file;
    pthread_mutex_init(&a->lock, NULL);
    if (auth_reload(a, err)) {
        auth_close(a);
        return -1;
    }
    *out = a;
    return 0;
}

void auth_close(struct auth *a)
{
    if (!a)
        return;
    while (a->clients)
        free_client(&a->clients);
    key_list_free(&a->keys);
    pthread_mutex_destroy(&a->lock);
    free(a);
}

int auth_keys(struct auth *a, int *clients)
{
    pthread_mutex_lock(&a->lock);
    int n = a->keys.n;
    *clients = 0;
    for (const struct client *c = a->clients; c; c = c->next)
        *clients += c->listed;
    pthread_mutex_unlock(&a->lock);
    return n;
}

/* ------------------------------------------------------- a request */

/* Goes through all keys and all of their bytes whatever it finds, so that the time says nothing
 * about them. NULL: none of them. */
static const struct key_entry *find_key(const struct auth *a, const char *given)
{
    unsigned char padded[KEY_MAX + 1] = {0};
    size_t n = strlen(given);
    int found = -1;
    if (n > KEY_MAX)
        return NULL;
    memcpy(padded, given, n);
    for (int i = 0; i < a->keys.n; i++) {
        unsigned differ = 0;
        for (size_t b = 0; b < sizeof padded; b++)
            differ |= padded[b] ^ a->keys.key[i].bytes[b];
        int same = -(int)((differ - 1) >> 31); /* all ones, or 0 */
        found = (same & i) | (~same & found);
    }
    return found < 0 ? NULL : &a->keys.key[found];
}

static const struct key_entry *find_caller(const struct auth *a, const char *authorization,
                                           const char *x_api_key)
{
    static const char scheme[] = "Bearer ";
    const struct key_entry *e = x_api_key ? find_key(a, x_api_key) : NULL;
    if (!e && authorization && strncasecmp(authorization, scheme, sizeof scheme - 1) == 0)
        e = find_key(a, authorization + sizeof scheme - 1);
    return e;
}

/* A client may start per_minute requests at once, and gets them back evenly over a minute. */
static void refill(struct client *c, double now)
{
    double rate = c->limits.per_minute / 60.0;
    c->allowance = fmin(c->limits.per_minute, c->allowance + rate * (now - c->counted_at));
    c->counted_at = now;
}

static enum auth_verdict admit(struct client *c, double now, struct visit *v)
{
    refill(c, now);
    if (c->limits.concurrent && c->usage.active >= c->limits.concurrent) {
        c->usage.too_many++;
        v->limit = c->limits.concurrent;
        v->retry_after = 1; /* whenever one of its own ends */
        return AUTH_TOO_MANY;
    }
    if (c->limits.per_minute && c->allowance < 1) {
        c->usage.too_often++;
        v->limit = c->limits.per_minute;
        v->retry_after = (int)ceil((1 - c->allowance) * 60 / c->limits.per_minute);
        return AUTH_TOO_OFTEN;
    }
    c->allowance--;
    c->usage.active++;
    c->usage.requests++;
    v->client = c;
    return AUTH_WELCOME;
}

enum auth_verdict auth_enter(struct auth *a, const char *authorization, const char *x_api_key,
                             bool counts, double now, struct visit *out)
{
    enum auth_verdict verdict = AUTH_WELCOME;
    *out = (struct visit){0};
    pthread_mutex_lock(&a->lock);
    const struct key_entry *e = find_caller(a, authorization, x_api_key);
    if (e)
        snprintf(out->name, sizeof out->name, "%s", e->name);
    if (!e && a->keys.n)
        verdict = AUTH_UNKNOWN;
    else if (e && counts)
        verdict = admit(*find_client(a, e->name), now, out);
    pthread_mutex_unlock(&a->lock);
    return verdict;
}

void auth_leave(struct auth *a, struct visit *v, uint64_t prompt_tokens, uint64_t sampled_tokens)
{
    if (!v->client)
        return;
    pthread_mutex_lock(&a->lock);
    struct client *c = v->client;
    c->usage.prompt_tokens += prompt_tokens;
    c->usage.sampled_tokens += sampled_tokens;
    if (--c->usage.active == 0 && !c->listed)
        free_client(find_client(a, c->usage.name));
    pthread_mutex_unlock(&a->lock);
    v->client = NULL;
}

int auth_usage(struct auth *a, struct client_usage **out)
{
    int n = 0, i = 0;
    pthread_mutex_lock(&a->lock);
    for (const struct client *c = a->clients; c; c = c->next)
        n++;
    *out = calloc((size_t)n + 1, sizeof **out);
    CHECK(*out && "out of memory");
    for (const struct client *c = a->clients; c; c = c->next)
        (*out)[i++] = c->usage;
    pthread_mutex_unlock(&a->lock);
    return n;
}
