/* OpenAI's answer to POST /v1/completions, made of a JOB_COMPLETE's events: one object, or a stream
 * of chunks with what is new of each choice. The text of a choice ends before the first stop string
 * in it. While it grows, what may turn out to be the beginning of a stop string, or of a character,
 * is held back; so the chunks' texts are valid UTF-8, and together the text of the whole answer.
 * HTTP thread. */
#pragma once
#include <stdbool.h>

#include "../core/buf.h"
#include "../core/engine.h"
#include "../core/event.h"
#include "request.h"

struct completion;

/* Copies what it needs of the job. The tokenizer is info's, and must outlive it. */
struct completion *completion_open(const struct job *, const struct request_opts *,
                                   const struct engine_info *);
void completion_close(struct completion *); /* NULL is fine */

/* What an event adds to the stream: no, one or several server-sent events. The last event brings
 * the end of the stream with it. */
void completion_say(struct completion *, struct buf *out, const struct event *);

/* The same as one object: all events, and then the answer. */
void completion_add(struct completion *, const struct event *);
void completion_json(struct completion *, struct buf *out);
