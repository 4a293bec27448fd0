/* The part of a test's sink that is the same for all: waiting for the engine to be through with a
 * job. It is the first member of a test's own record. */
#pragma once
#include <pthread.h>

#include "check.h"

struct waiter {
    pthread_mutex_t mutex; /* of the whole record */
    pthread_cond_t ended;
    int closed;
};

static inline void waiter_init(struct waiter *w)
{
    pthread_mutex_init(&w->mutex, NULL);
    pthread_cond_init(&w->ended, NULL);
    w->closed = 0;
}

/* A sink's `closed`. */
static inline void waiter_closed(void *user)
{
    struct waiter *w = user;
    pthread_mutex_lock(&w->mutex);
    w->closed++;
    pthread_cond_signal(&w->ended);
    pthread_mutex_unlock(&w->mutex);
}

static inline void waiter_wait(struct waiter *w)
{
    pthread_mutex_lock(&w->mutex);
    while (!w->closed)
        pthread_cond_wait(&w->ended, &w->mutex);
    pthread_mutex_unlock(&w->mutex);
}

static inline void waiter_free(struct waiter *w)
{
    EXPECT_INT(w->closed, 1);
    pthread_mutex_destroy(&w->mutex);
    pthread_cond_destroy(&w->ended);
}
