/* Errors as values. The layer that understands a failure writes its text once; the layer that
 * speaks to the user passes it on unchanged. A struct err is the caller's, needs no initialisation
 * before err_set and no clean-up after. Functions that take one return 0, or -1 with it filled. */
#pragma once
#include <stddef.h>

enum err_code {
    ERR_INVALID = 1, /* the request is wrong: 400, param names the field */
    ERR_NOT_FOUND,   /* no such model, route or twist: 404 */
    ERR_BUSY,        /* the queue is full: 429 */
    ERR_UNAVAILABLE, /* loading, draining, out of KV memory: 503 */
    ERR_FILE,        /* a file cannot be read, or is broken */
    ERR_INTERNAL,    /* a device or this program failed: 500 */
};

struct err {
    enum err_code code;
    char param[96]; /* the offending field as the client wrote it ("potential[1].weight"), or "" */
    char msg[320];  /* one line, no newline at its end */
};

/* Fill e and return -1, so that a refusal is one statement. */
int err_set(struct err *e, enum err_code code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* A refused field: ERR_INVALID with param set. msg becomes "<param>: <text>". Returns -1. */
int err_field(struct err *e, const char *param, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Programmer errors only: prints file, line and the condition, then aborts. */
#define CHECK(cond) ((cond) ? (void)0 : check_failed(__FILE__, __LINE__, #cond))
_Noreturn void check_failed(const char *file, int line, const char *cond);
