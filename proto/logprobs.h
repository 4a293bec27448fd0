/* The log-probabilities of a choice in OpenAI's two shapes, of an EVENT_CHOICE that has them. A
 * token is written as its text; one that is a part of a character as "bytes:\xe2\x80". */
#pragma once
#include "../core/buf.h"
#include "../core/event.h"
#include "../core/tokenizer.h"

/* /v1/completions: tokens, token_logprobs, top_logprobs, text_offset. Offsets count characters of
 * the choice's text, which is text_len bytes long, echo_len of them the prompt's. */
void logprobs_json(struct buf *out, const struct tokenizer *, const struct event *, size_t echo_len,
                   size_t text_len);

/* /v1/chat/completions: a list of tokens, each with the likeliest in its place. */
void logprobs_chat_json(struct buf *out, const struct tokenizer *, const struct event *);
