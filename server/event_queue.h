/* Events in plain bytes: what the engine's sink keeps of a borrowed event until another thread has
 * time for it. An event is its used part of struct event and, behind it, all that it points to.
 * No locks in here: its user (stream.c) has one. */
#pragma once
#include <stdbool.h>
#include <stddef.h>

#include "../core/event.h"

/* {0} is a valid empty one. */
struct event_queue {
    unsigned char *data; /* records, each a multiple of 8 bytes */
    size_t len, cap;
    size_t read; /* records before it were taken */
};

void event_queue_add(struct event_queue *, const struct event *);

/* The next event, false if there is none. Its pointers lead into the queue: valid until the queue
 * is added to, cleared or freed. */
bool event_queue_next(struct event_queue *, struct event *out);

bool event_queue_is_empty(const struct event_queue *); /* all were taken */
void event_queue_clear(struct event_queue *);          /* memory kept */
void event_queue_free(struct event_queue *);
