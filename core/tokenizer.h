/* Text to token ids and back, from a GGUF's metadata: byte-level BPE (tokenizer.ggml.model = gpt2;
 * pre-tokenizers gpt-2, smollm, llama-bpe and their aliases, by PCRE2) and SentencePiece BPE
 * (llama). A model whose tokenizer is absent, "none" or "no_vocab" opens too: it takes and gives
 * ids only. Immutable after opening; any thread. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "buf.h"
#include "err.h"
#include "gguf.h"

struct tokenizer;

/* vocab: the model's number of tokens; a list of another length is a refusal. */
int tokenizer_open(struct tokenizer **out, const struct gguf *, int vocab, struct err *err);
void tokenizer_close(struct tokenizer *);

enum {
    TOKENIZE_START =
        1, /* the text starts a sequence: BOS as the metadata says, SentencePiece's dummy prefix */
    TOKENIZE_SPECIAL =
        2, /* special tokens written out in the text ("<|im_end|>") become their ids */
};

/* A growing list of ids. {0} is valid and empty; free(ids) releases it. */
struct tokens {
    int32_t *ids;
    int n, cap;
};
void tokens_add(struct tokens *, int32_t id);

/* Append the ids of text to out. Invalid UTF-8 is taken byte by byte where the vocabulary can say
 * it. Fails (ERR_INVALID) only where the vocabulary cannot spell the text (no byte tokens), or
 * there is no tokenizer. */
int tokenizer_encode(const struct tokenizer *, const char *text, size_t len, int flags,
                     struct tokens *out, struct err *err);

/* The raw bytes that token id adds to a text: none for control tokens (BOS, EOS, <|im_start|>…).
 * May be part of a UTF-8 character. Borrowed; valid as long as the tokenizer. "▁" is a space; a
 * leading space is kept. */
const char *tokenizer_piece(const struct tokenizer *, int32_t id, size_t *len);
/* The same, but control tokens as their written form, for display. */
const char *tokenizer_piece_special(const struct tokenizer *, int32_t id, size_t *len);

int tokenizer_vocab(const struct tokenizer *);
int32_t tokenizer_bos(const struct tokenizer *);   /* -1: none */
bool tokenizer_adds_bos(const struct tokenizer *); /* does TOKENIZE_START add it */
/* Ids that end a text: EOS, and EOT where the metadata names one or the vocabulary holds a token
 * known to be one
 * (<|im_end|>, <|eot_id|>, <|endoftext|>, </s> … as control tokens). Ascending, distinct. */
int tokenizer_eos(const struct tokenizer *, const int32_t **ids);
/* The one of them that the metadata calls EOS, else the least; -1: none. */
int32_t tokenizer_eos_id(const struct tokenizer *);
bool tokenizer_is_eos(const struct tokenizer *, int32_t id);
