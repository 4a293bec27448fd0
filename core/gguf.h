/* A GGUF v3 file, mapped read-only. Every count, offset and length in it is checked before it is
 * believed: a broken file is a refusal with one clear line, never a crash. Immutable after
 * gguf_open; any thread may read. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "err.h"

struct gguf;

struct gguf_str {
    const char *s; /* not NUL-terminated, borrowed from the mapping */
    size_t len;
};

struct gguf_tensor {
    struct gguf_str name;
    int type;         /* enum tensor_type, one that dequant knows */
    int n_dims;       /* 1..4 */
    int64_t dim[4];   /* dim[0] is the row length (adjacent elements); the rest 1 */
    const void *data; /* into the mapping, size checked */
    size_t bytes;
};

/* *out is untouched on failure. The message begins with the path. */
int gguf_open(struct gguf **out, const char *path, struct err *err);
int gguf_open_memory(struct gguf **out, const void *data, size_t size,
                     struct err *err); /* data stays the caller's */
void gguf_close(struct gguf *);

const struct gguf_tensor *gguf_tensor(const struct gguf *,
                                      const char *name); /* NULL: none of that name */
int gguf_n_tensors(const struct gguf *);
const struct gguf_tensor *gguf_tensor_at(const struct gguf *, int i);

/* Metadata. Each returns false, leaving *out alone, when the key is absent or of another type;
 * integers of any width convert when the value fits. */
bool gguf_u32(const struct gguf *, const char *key, uint32_t *out);
bool gguf_f32(const struct gguf *, const char *key, float *out);
bool gguf_bool(const struct gguf *, const char *key, bool *out);
bool gguf_string(const struct gguf *, const char *key, struct gguf_str *out);

/* Arrays: n elements, or -1 when absent or of another element type. The iterators below are O(1) an
 * element. */
int64_t gguf_array_strings(const struct gguf *, const char *key,
                           const struct gguf_str **out); /* index built on open */
int64_t gguf_array_f32(const struct gguf *, const char *key,
                       const float **out); /* may be unaligned: memcpy */
int64_t gguf_array_i32(const struct gguf *, const char *key, const int32_t **out);

/* Let go of the file's pages in memory; those that are read again come back by themselves. */
void gguf_forget(const struct gguf *);

size_t gguf_bytes(const struct gguf *); /* size of the file */

/* A fingerprint of the contents for provenance: 16 hex digits over header, metadata and tensor
 * table and a sample of every tensor's bytes. */
void gguf_fingerprint(const struct gguf *, char out[17]);
