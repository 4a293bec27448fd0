/* What the files of the tokenizer share; tokenizer.h is for everybody else.
 *
 * All matching is done on the raw bytes that a token stands for: the byte-to-letter code of GPT-2
 * vocabularies and SentencePiece's "▁" are undone once, on loading. Text therefore needs no
 * rewriting before it is encoded, and encode and decode are inverse on every text, a literal "▁"
 * included. */
#pragma once
#include "tokenizer.h"

#include "arena.h"

enum token_type { /* numbered as in tokenizer.ggml.token_type */
                  TOKEN_NORMAL = 1,
                  TOKEN_UNKNOWN,
                  TOKEN_CONTROL,
                  TOKEN_USER_DEFINED,
                  TOKEN_UNUSED,
                  TOKEN_BYTE,
};

struct piece {
    const char *raw; /* the bytes; of a control token its written form */
    uint32_t len;
    enum token_type type;
};

enum tokenizer_kind { TOKENIZER_NONE, TOKENIZER_BPE, TOKENIZER_SPM };

enum {
    MAX_EOS = 24,
    MAX_PIECE = 4096, /* bytes of a token as the file writes it */
};

struct bpe;

struct tokenizer {
    enum tokenizer_kind kind;
    int vocab;
    struct arena arena;
    struct piece *piece;  /* (vocab) */
    int32_t byte_id[256]; /* the token of a single byte, or -1 */

    /* Tokens that text may become, normal before user-defined ones: open addressing by hash of raw,
     * -1 is free, at most half full. */
    int32_t *slot;
    uint32_t slot_mask;
    uint32_t longest; /* bytes of the longest of them */

    /* Tokens that are looked for in the text before it is split: ascending by raw bytes. */
    const struct piece **special;
    int n_special;
    bool special_begins[256]; /* first bytes of theirs */

    int32_t bos, eos_id, eos[MAX_EOS];
    int n_eos;
    bool adds_bos, adds_space;

    struct bpe *bpe;    /* TOKENIZER_BPE */
    const float *score; /* TOKENIZER_SPM: (vocab), the arena's */
    bool words_apart;   /* TOKENIZER_SPM: no token goes on over a space after another letter */
};

/* The token of these bytes, or -1. */
int32_t tokenizer_find(const struct tokenizer *, const char *s, size_t len);

/* A merge of two neighbours into one symbol. The cheapest comes first, the leftmost among equals.
 */
struct merge {
    double cost;
    int32_t left; /* where the left symbol starts */
    int32_t len;  /* of both together */
    int32_t id;   /* what they become */
};

/* A symbol lives at the index of its first byte; it ends where the next one begins. */
struct symbol {
    int32_t id;   /* -1: not a token */
    int32_t prev; /* -1: none */
    int32_t next; /* 0: this symbol was merged into its left neighbour */
};

/* Scratch memory of one tokenizer_encode, and where its ids go. */
struct encoding {
    const struct tokenizer *t;
    struct tokens *out;
    struct err *err;
    struct symbol *symbols;
    struct merge *heap;
    size_t max_symbols, n_heap, max_heap;
};

/* May the symbols left.. and right.. become one? Fills cost and id. */
typedef bool merge_rule(const struct tokenizer *, const char *text, const struct symbol *left,
                        const struct symbol *right, struct merge *);

/* Make room for a text of len bytes; then put its symbols down from left to right, each after the
 * one before it; then merge by the rule until nothing merges. O(len log len). */
void merge_reserve(struct encoding *, size_t len);
void merge_all(struct encoding *, const char *text, int32_t len, merge_rule *);

/* Emit the ids of the symbols; those that are no token byte by byte. */
int merge_emit(struct encoding *, const char *text, int32_t len);

/* GPT-2's letters back to bytes; out has room for len bytes. Returns how many there are. */
size_t bpe_decode(char *out, const char *s, size_t len);

int bpe_open(struct tokenizer *, const struct gguf *, struct err *);
void bpe_close(struct tokenizer *);
int bpe_encode(struct encoding *, const char *text, size_t len);

int spm_open(struct tokenizer *, const struct gguf *, struct err *);
int spm_encode(struct encoding *, const char *text, size_t len);
