/* The safetensors format: the length of a header (8 bytes, little-endian); the header, JSON with
 * the type, shape and place of every tensor and texts under "__metadata__"; the tensors' bytes, one
 * after the other. Every count, size and place is checked before it is believed: a broken, cut or
 * foreign file is a refusal with one clear line. Tensors are read rather than mapped, so that a
 * file that somebody cuts short meanwhile is a refusal too. Immutable once open; any thread may
 * read. core/safetensors.c is where jansson lives outside of proto/ and config/. */
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "err.h"

enum {
    SAFETENSORS_DIMS_MAX = 8,
    SAFETENSORS_HEADER_MAX = 32 << 20, /* bytes: what a header may cost to parse */
};

struct safetensors_tensor {
    const char *name, *dtype; /* "F32", "BF16", … */
    int n_dims;               /* 0: a single number */
    uint64_t dim[SAFETENSORS_DIMS_MAX];
    const void *data;      /* the bytes to write; NULL in a file that is read */
    uint64_t begin, bytes; /* of a file that is read: where they are in its data */
};

struct safetensors_text {
    const char *key, *value; /* UTF-8 */
};

struct safetensors;

/* Reads the header. fd and path (for messages) are borrowed until close. ERR_FILE. */
int safetensors_open(struct safetensors **out, int fd, const char *path, struct err *err);
void safetensors_close(struct safetensors *); /* NULL is fine */

/* A text of the metadata, or NULL. */
const char *safetensors_metadata(const struct safetensors *, const char *key);

int safetensors_n_tensors(const struct safetensors *);
const struct safetensors_tensor *safetensors_find(const struct safetensors *, const char *name);

/* All bytes of a tensor of this file, to `to`. ERR_FILE. */
int safetensors_read(const struct safetensors *, const struct safetensors_tensor *, void *to,
                     struct err *err);

/* A hash of the header. */
uint64_t safetensors_hash(const struct safetensors *);

/* Write a whole file from fd's position on: the texts and the tensors in the order given; the data
 * begin at a multiple of 8 bytes. The same input gives the same bytes. Names differ from each
 * other; all strings are UTF-8. ERR_FILE. */
int safetensors_write(int fd, const char *path, const struct safetensors_text *, int n_texts,
                      const struct safetensors_tensor *, int n_tensors, struct err *err);
