/* Events to bytes. Runs on the HTTP thread, never inside an engine step. -inf becomes null. */
#pragma once
#include <stdbool.h>

#include "../core/buf.h"
#include "../core/engine.h"
#include "../core/event.h"
#include "../core/twist.h"

/* Append one JSON object, no newline. */
void event_json(struct buf *out, const struct event *);

/* The OpenAI error body {"error":{"message","type","param","code"}} for an err, and its status. */
void error_json(struct buf *out, const struct err *);
int error_status(const struct err *);

/* A whole answer put together from its events (stream: false), added in order. */
struct answer;
struct answer *answer_open(enum job_kind);
void answer_add(struct answer *, const struct event *);
void answer_json(struct answer *, struct buf *out);
void answer_close(struct answer *);

void models_json(struct buf *out, const struct engine_info *); /* GET /v1/models */

/* GET /v1/twists; GET /v1/twists/{name}: all that is known of one, request and calibration too if
 * it has them; DELETE. */
void twists_json(struct buf *out, const struct twist_file *, int n);
void twist_json(struct buf *out, const struct twist_file *);
void twist_removed_json(struct buf *out, const char *name);

/* GET /openapi.json: static bytes, made at build time from openapi.yaml. */
const char *openapi_json(size_t *len);
