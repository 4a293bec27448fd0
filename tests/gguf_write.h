/* Builds GGUF files in memory, so that tests need no outside data. Keys and tensors are written in
 * the order of the calls; gguf_write_end puts the file together and leaves the writer empty. */
#pragma once
#include <stdint.h>
#include <string.h>

#include "../core/buf.h"

struct gguf_write {
    struct buf keys, table, data; /* metadata, tensor table, data section */
    uint64_t n_keys, n_tensors;
};

static inline void gguf_put_u32(struct buf *b, uint32_t v)
{
    buf_add(b, &v, sizeof v);
}

static inline void gguf_put_u64(struct buf *b, uint64_t v)
{
    buf_add(b, &v, sizeof v);
}

static inline void gguf_put_string(struct buf *b, const char *s, size_t len)
{
    gguf_put_u64(b, len);
    buf_add(b, s, len);
}

/* A key with a value of a GGUF type, given as its bytes. */
static inline void gguf_write_key(struct gguf_write *w, const char *key, uint32_t type,
                                  const void *value, size_t bytes)
{
    w->n_keys++;
    gguf_put_string(&w->keys, key, strlen(key));
    gguf_put_u32(&w->keys, type);
    buf_add(&w->keys, value, bytes);
}

static inline void gguf_write_u32(struct gguf_write *w, const char *key, uint32_t v)
{
    gguf_write_key(w, key, 4, &v, sizeof v);
}

static inline void gguf_write_f32(struct gguf_write *w, const char *key, float v)
{
    gguf_write_key(w, key, 6, &v, sizeof v);
}

static inline void gguf_write_bool(struct gguf_write *w, const char *key, int v)
{
    unsigned char byte = v != 0;
    gguf_write_key(w, key, 7, &byte, 1);
}

static inline void gguf_write_string(struct gguf_write *w, const char *key, const char *s)
{
    gguf_write_key(w, key, 8, NULL, 0);
    gguf_put_string(&w->keys, s, strlen(s));
}

static inline void gguf_write_array(struct gguf_write *w, const char *key, uint32_t item,
                                    uint64_t n, const void *items, size_t bytes)
{
    gguf_write_key(w, key, 9, NULL, 0);
    gguf_put_u32(&w->keys, item);
    gguf_put_u64(&w->keys, n);
    buf_add(&w->keys, items, bytes);
}

static inline void gguf_write_f32s(struct gguf_write *w, const char *key, const float *v, size_t n)
{
    gguf_write_array(w, key, 6, n, v, n * sizeof *v);
}

static inline void gguf_write_i32s(struct gguf_write *w, const char *key, const int32_t *v,
                                   size_t n)
{
    gguf_write_array(w, key, 5, n, v, n * sizeof *v);
}

static inline void gguf_write_strings(struct gguf_write *w, const char *key, const char *const *s,
                                      size_t n)
{
    gguf_write_array(w, key, 8, n, NULL, 0);
    for (size_t i = 0; i < n; i++)
        gguf_put_string(&w->keys, s[i], strlen(s[i]));
}

static inline void gguf_pad(struct buf *b)
{
    while (b->len % 32)
        buf_add(b, "", 1);
}

/* A tensor whose bytes are those of the data section from `at` on; tensors may share them. */
static inline void gguf_write_tensor_at(struct gguf_write *w, const char *name, uint32_t type,
                                        uint32_t n_dims, const int64_t *dim, uint64_t at)
{
    w->n_tensors++;
    gguf_put_string(&w->table, name, strlen(name));
    gguf_put_u32(&w->table, n_dims);
    buf_add(&w->table, dim, n_dims * sizeof *dim);
    gguf_put_u32(&w->table, type);
    gguf_put_u64(&w->table, at);
}

static inline void gguf_write_tensor(struct gguf_write *w, const char *name, uint32_t type,
                                     uint32_t n_dims, const int64_t *dim, const void *data,
                                     size_t bytes)
{
    gguf_pad(&w->data);
    gguf_write_tensor_at(w, name, type, n_dims, dim, w->data.len);
    buf_add(&w->data, data, bytes);
}

static inline void gguf_write_end(struct gguf_write *w, struct buf *out)
{
    buf_add(out, "GGUF\3\0\0", 8);
    gguf_put_u64(out, w->n_tensors);
    gguf_put_u64(out, w->n_keys);
    buf_add(out, w->keys.data, w->keys.len);
    buf_add(out, w->table.data, w->table.len);
    if (w->n_tensors)
        gguf_pad(out);
    buf_add(out, w->data.data, w->data.len);
    buf_free(&w->keys);
    buf_free(&w->table);
    buf_free(&w->data);
    *w = (struct gguf_write){0};
}
