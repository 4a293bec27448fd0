#include "event_queue.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* One walk over an event's pointers serves to measure, to copy and to find again, so that the three
 * cannot disagree about the layout. */
struct walk {
    enum { MEASURE, COPY, FIND } what;
    unsigned char *at; /* COPY, FIND: where the next part is */
    size_t bytes;      /* so far */
};

static size_t padded(size_t n)
{
    return (n + 7) & ~(size_t)7;
}

/* A pointer and the bytes behind it. NULL stays NULL. */
static void part(struct walk *w, const void **pointer, size_t bytes)
{
    if (!*pointer)
        return;
    if (w->what == COPY && bytes)
        memcpy(w->at + w->bytes, *pointer, bytes);
    else if (w->what == FIND)
        *pointer = w->at + w->bytes;
    w->bytes += padded(bytes);
}

#define PART(w, pointer, n) part((w), (const void **)&(pointer), (size_t)(n) * sizeof *(pointer))

static void part_string(struct walk *w, const char **s)
{
    if (!*s)
        return;
    const char *text = w->what == FIND ? (const char *)w->at + w->bytes : *s;
    PART(w, *s, strlen(text) + 1);
}

static void part_texts(struct walk *w, const struct event_text **texts, int n)
{
    PART(w, *texts, n);
    for (int i = 0; i < n; i++) { /* written to in FIND only, and then they are the queue's */
        struct event_text *t = (struct event_text *)&(*texts)[i];
        PART(w, t->s, t->len);
    }
}

static void part_holes(struct walk *w, const struct event_hole **holes, int n)
{
    PART(w, *holes, n);
    for (int i = 0; i < n; i++) {
        struct event_hole *h = (struct event_hole *)&(*holes)[i];
        part_string(w, &h->name);
        PART(w, h->text.s, h->text.len);
    }
}

static void walk_event(struct walk *w, struct event *e)
{
    switch (e->type) {
    case EVENT_START:
        part_string(w, &e->start.id);
        part_string(w, &e->start.model);
        break;
    case EVENT_STEP:
        part_texts(w, &e->step.texts, e->step.n_texts);
        break;
    case EVENT_RESAMPLE:
        PART(w, e->resample.ancestors, e->resample.n);
        break;
    case EVENT_SAMPLE:
        PART(w, e->sample.text.s, e->sample.text.len);
        PART(w, e->sample.tokens, e->sample.n_tokens);
        PART(w, e->sample.token_log_p, e->sample.n_tokens);
        part_holes(w, &e->sample.holes, e->sample.n_holes);
        break;
    case EVENT_SCORE:
        PART(w, e->score.tokens, e->score.n_tokens);
        PART(w, e->score.log_twist, e->score.n_tokens);
        PART(w, e->score.token_log_p, e->score.n_tokens);
        PART(w, e->score.top, (size_t)e->score.n_tokens * (size_t)e->score.n_top);
        break;
    case EVENT_TOKENS:
        PART(w, e->tokens.token, e->tokens.n);
        break;
    case EVENT_CHOICE:
        PART(w, e->choice.tokens, e->choice.n_tokens);
        PART(w, e->choice.token_log_p, e->choice.n_tokens);
        PART(w, e->choice.top, (size_t)e->choice.n_tokens * (size_t)e->choice.n_top);
        break;
    case EVENT_DONE:
        part_string(w, &e->done.name);
        break;
    case EVENT_BOUND:
    case EVENT_UPDATE:
    case EVENT_ERROR:
        break;
    }
}

/* Bytes of struct event that its type uses. */
static size_t used_size(enum event_type type)
{
    const struct event *e = NULL;
    size_t head = offsetof(struct event, error);
    switch (type) {
    case EVENT_START:
        return head + sizeof e->start;
    case EVENT_STEP:
        return head + sizeof e->step;
    case EVENT_RESAMPLE:
        return head + sizeof e->resample;
    case EVENT_SAMPLE:
        return head + sizeof e->sample;
    case EVENT_SCORE:
        return head + sizeof e->score;
    case EVENT_TOKENS:
        return head + sizeof e->tokens;
    case EVENT_CHOICE:
        return head + sizeof e->choice;
    case EVENT_BOUND:
        return head + sizeof e->bound;
    case EVENT_UPDATE:
        return head + sizeof e->update;
    case EVENT_DONE:
        return head + sizeof e->done;
    case EVENT_ERROR:
        break;
    }
    return sizeof(struct event);
}

static void reserve(struct event_queue *q, size_t extra)
{
    if (q->cap - q->len >= extra)
        return;
    size_t cap = q->cap ? q->cap : 1024;
    while (cap - q->len < extra)
        cap *= 2;
    q->data = realloc(q->data, cap);
    CHECK(q->data && "out of memory");
    q->cap = cap;
}

void event_queue_add(struct event_queue *q, const struct event *e)
{
    struct event copy = *e;
    size_t used = padded(used_size(e->type));
    struct walk w = {.what = MEASURE};
    walk_event(&w, &copy);
    reserve(q, used + w.bytes);
    memcpy(q->data + q->len, e, used_size(e->type));
    w = (struct walk){.what = COPY, .at = q->data + q->len + used};
    walk_event(&w, &copy);
    q->len += used + w.bytes;
}

bool event_queue_next(struct event_queue *q, struct event *out)
{
    if (event_queue_is_empty(q))
        return false;
    unsigned char *record = q->data + q->read;
    memcpy(out, record, offsetof(struct event, error)); /* its type says how much it is */
    size_t used = used_size(out->type);
    memcpy(out, record, used);
    struct walk w = {.what = FIND, .at = record + padded(used)};
    walk_event(&w, out);
    q->read += padded(used) + w.bytes;
    return true;
}

bool event_queue_is_empty(const struct event_queue *q)
{
    return q->read == q->len;
}

void event_queue_clear(struct event_queue *q)
{
    q->len = q->read = 0;
}

void event_queue_free(struct event_queue *q)
{
    free(q->data);
    *q = (struct event_queue){0};
}
