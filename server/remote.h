/* One population that another server draws: a POST /v1/sample by libcurl, which is included in
 * remote.c and islands.c only. */
#pragma once
#include <curl/curl.h>
#include <stdbool.h>

#include "../core/arena.h"
#include "../core/buf.h"
#include "../core/err.h"
#include "../core/event.h"

struct remote {
    CURL *curl;
    struct curl_slist *headers;
    char *body;
    struct buf text; /* the line that is being received, or the body of a refusal */
    /* the answer; what its events point to is in the arena */
    struct arena arena;
    struct event start, done;
    struct event *sample; /* (n_samples) */
    int n_samples, sample_cap;
    bool failed; /* with err */
    struct err err;
};

enum remote_end {
    REMOTE_WHOLE,
    REMOTE_BROKEN, /* no connection, an answer that broke off, an error of the server: others may do
                    */
    REMOTE_LATER,  /* it said to come again */
    REMOTE_REFUSED, /* the request is wrong, or not allowed: so will it be elsewhere */
};

/* Get ready to ask `url` (of a server), with a body that is taken and a key that may be NULL. What
 * runs then is r->curl, whose private pointer is `user`. */
void remote_open(struct remote *r, const char *url, const char *key, char *take_body, void *user);
void remote_close(struct remote *r);

/* How it went. Only the answer of a REMOTE_WHOLE is to be used; the others fill err. after: the
 * seconds that a REMOTE_LATER asks for, 0 if it does not say. */
enum remote_end remote_end(struct remote *r, CURLcode result, double *after, struct err *err);
