/* Chat templates: how a model wants a conversation written. A template is a program (Jinja) in the
 * model's file; it is not run, but recognised by its markers as one of those known here. */
#pragma once
#include <stdbool.h>
#include <stddef.h>

#include "err.h"
#include "gguf.h"
#include "tokenizer.h"

enum chat_format {
    CHAT_NONE,    /* the file has no template */
    CHAT_UNKNOWN, /* none of these */
    CHAT_CHATML,  /* <|im_start|>role\ncontent<|im_end|>\n */
    CHAT_LLAMA3,  /* <|start_header_id|>role<|end_header_id|>\n\ncontent<|eot_id|> */
};

struct chat_template {
    enum chat_format format;
    char system[512]; /* what the template itself begins with where no message does; "": nothing */
};

void chat_template_read(struct chat_template *out, const struct gguf *);

struct chat_message {
    const char *role; /* "system", "user", "assistant" */
    const char *text;
    size_t len;
};

/* Append the ids of the conversation up to where the assistant is to speak. The template's own
 * special tokens are special; those written out in messages are so with `special` only. Fails
 * (ERR_INVALID) where there is no known template, or the vocabulary does not have what it takes. */
int chat_encode(const struct chat_template *, const struct tokenizer *, const struct chat_message *,
                int n, bool special, struct tokens *out, struct err *err);
