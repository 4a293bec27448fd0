/* POST /tokenize and /detokenize, in llama.cpp's form. */
#include <stdlib.h>

#include "../core/tokenizer.h"
#include "../core/utf8.h"
#include "fields.h"
#include "request.h"

struct tokenize_draft {
    struct text content;
    bool add_special, parse_special, with_pieces;
};
#define AT(member) .offset = offsetof(struct tokenize_draft, member)

static const struct field tokenize_fields[] = {
    {"content", FIELD_TEXT, AT(content), .required = true},
    {"add_special", FIELD_BOOL, AT(add_special)},
    {"parse_special", FIELD_BOOL, AT(parse_special)},
    {"special", FIELD_BOOL, AT(parse_special)}, /* as /v1/sample calls it */
    {"with_pieces", FIELD_BOOL, AT(with_pieces)},
};

/* A piece as a string, or as a list of bytes when it is a part of a character. */
static json_t *piece_json(const struct tokenizer *t, int32_t id)
{
    size_t len;
    const char *piece = tokenizer_piece_special(t, id, &len);
    if (utf8_valid(piece, len))
        return json_stringn(piece, len);
    json_t *bytes = json_array();
    for (size_t i = 0; i < len; i++)
        json_array_append_new(bytes, json_integer((unsigned char)piece[i]));
    return bytes;
}

static json_t *token_json(const struct tokenizer *t, int32_t id, bool with_piece)
{
    if (!with_piece)
        return json_integer(id);
    json_t *token = json_object();
    json_object_set_new(token, "id", json_integer(id));
    json_object_set_new(token, "piece", piece_json(t, id));
    return token;
}

/* {"name": value} as text; takes value. */
static char *answer(const char *name, json_t *value)
{
    json_t *object = json_object();
    json_object_set_new(object, name, value);
    char *text = json_dumps(object, JSON_COMPACT);
    json_decref(object);
    CHECK(text && "out of memory");
    return text;
}

static char *tokenize(const struct reader *r, const json_t *request)
{
    const struct place body = {""};
    struct tokenize_draft d = {0};
    struct tokens t = {0};
    const int n_fields = sizeof tokenize_fields / sizeof *tokenize_fields;
    if (fields_read(r, body, request, tokenize_fields, n_fields, &d))
        return NULL;
    int flags = (d.add_special ? TOKENIZE_START : 0) | (d.parse_special ? TOKENIZE_SPECIAL : 0);
    if (text_encode(r, place_field(body, "content"), d.content.s, d.content.len, flags, &t)) {
        free(t.ids);
        return NULL;
    }
    json_t *list = json_array();
    for (int i = 0; i < t.n; i++)
        json_array_append_new(list, token_json(r->info->tokenizer, t.ids[i], d.with_pieces));
    free(t.ids);
    return answer("tokens", list);
}

char *request_tokenize(const char *text, size_t len, const struct engine_info *info,
                       struct err *err)
{
    struct reader r = {.info = info, .err = err};
    json_t *request = body_parse(text, len, err);
    if (!request)
        return NULL;
    char *out = tokenize(&r, request);
    json_decref(request);
    return out;
}

static char *detokenize(const struct reader *r, const json_t *request)
{
    static const struct field fields[] = {{"tokens", FIELD_ANY, 0, .required = true}};
    const struct place body = {""};
    struct place at = place_field(body, "tokens");
    const json_t *list;
    if (fields_read(r, body, request, fields, 1, &list))
        return NULL;
    if (!json_is_array(list)) {
        wrong_type(r, at, "an array of token ids", list);
        return NULL;
    }
    struct buf bytes = {0}, text = {0};
    for (size_t i = 0; i < json_array_size(list); i++) {
        int32_t id;
        size_t len;
        if (id_read(r, place_index(at, i), json_array_get(list, i), &id)) {
            buf_free(&bytes);
            return NULL;
        }
        const char *piece = tokenizer_piece_special(r->info->tokenizer, id, &len);
        buf_add(&bytes, piece, len);
    }
    utf8_sanitize(&text, bytes.data, bytes.len);
    char *out = answer("content", json_stringn(text.data ? text.data : "", text.len));
    buf_free(&bytes);
    buf_free(&text);
    return out;
}

char *request_detokenize(const char *text, size_t len, const struct engine_info *info,
                         struct err *err)
{
    struct reader r = {.info = info, .err = err};
    json_t *request = body_parse(text, len, err);
    if (!request)
        return NULL;
    char *out = detokenize(&r, request);
    json_decref(request);
    return out;
}
