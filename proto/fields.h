/* Reading JSON objects by tables: which fields may be there, of which type and range. Every refusal
 * names the place of its value as the client would write it, says what was expected and what was
 * there. For the request readers of this folder. */
#pragma once
#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../core/arena.h"
#include "../core/engine.h"
#include "../core/err.h"
#include "../core/job.h"

/* What every reader needs. The functions below return 0, or -1 with err filled. */
struct reader {
    struct arena *arena; /* of the job; NULL where none is made */
    const struct engine_info *info;
    struct err *err;
    bool special; /* special tokens written out in texts become their ids */
};

struct place { /* "potential[1].weight"; "" is the body itself */
    char s[96];
};
struct place place_field(struct place parent, const char *name);
struct place place_index(struct place parent, size_t i);

struct text { /* borrowed from the JSON; may hold NUL bytes */
    const char *s;
    size_t len;
};

enum field_kind {
    FIELD_BOOL,   /* to bool */
    FIELD_INT,    /* to int: an integer in min..max, or at most a limit of the server */
    FIELD_NUMBER, /* to double: in min..max */
    FIELD_TEXT,   /* to struct text */
    FIELD_CHOICE, /* to int: the index of a string in choices */
    FIELD_ANY,    /* to const json_t *: read by its own function */
    FIELD_DONE,   /* nowhere: has been read already ("type") */
};

struct field {
    const char *name;
    enum field_kind kind;
    size_t offset; /* of its member in the struct that is filled */
    double min, max;
    size_t limit; /* FIELD_INT: 1 + the offset of an int in struct limits, instead of max; 0: max */
    const char *const *choices; /* ends with NULL */
    bool required;
};
/* clang-format off */
#define FIELD_TYPE {.name = "type", .kind = FIELD_DONE}
#define FIELD_LIMIT(member) .limit = 1 + offsetof(struct limits, member)
/* clang-format on */

/* Fill out, which holds the defaults, from the fields of a JSON object. null counts as absent. */
int fields_read(const struct reader *, struct place, const json_t *object,
                const struct field *table, int n, void *out);

/* Parse a body, which must be an object. Returns NULL with err filled, or the caller's object. */
json_t *body_parse(const char *body, size_t len, struct err *err);

/* A refusal of the wrong type: "<place>: expected <what>, got the string "x"". Returns -1. */
int wrong_type(const struct reader *, struct place, const char *expected, const json_t *got);

/* A value in the words of a message: `the string "x"`, `1.5`, `an array`. */
void json_describe(const json_t *, char *out, size_t size);

/* Is value an integer (64.0 is one)? Values beyond int64 saturate. */
bool json_to_integer(const json_t *value, int64_t *out);

int choice_read(const struct reader *, struct place, const json_t *value,
                const char *const *choices, int *out);

/* The most tokens of one text: limits.max_prompt_tokens, or the context if that is less. */
int model_text_limit(const struct engine_info *);
/* The most bytes of text that one token can stand for. */
size_t longest_piece(const struct tokenizer *);

/* The `type` of an object that comes in several forms: its index in names. */
int type_read(const struct reader *, struct place, const json_t *object, const char *const *names,
              int *out);

/* A token id, checked against the vocabulary; and a list of them. */
int id_read(const struct reader *, struct place, const json_t *value, int32_t *out);
int ids_read(const struct reader *, struct place, const json_t *array, struct ids *out);

/* A text for the model to read: a string to be tokenized (flags as in tokenizer.h, TOKENIZE_SPECIAL
 * as the reader says), or an array of ids. May come out empty. */
int model_text_read(const struct reader *, struct place, const json_t *value, int flags,
                    struct ids *out);
/* The same in the middle of a text, and not empty. */
int insert_read(const struct reader *, struct place, const json_t *value, struct ids *out);

/* Tokenize, with the refusal under the name of the field. */
struct tokens;
int text_encode(const struct reader *, struct place, const char *text, size_t len, int flags,
                struct tokens *out);
