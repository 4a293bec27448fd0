/* What the files of core/twist share: twist.c has the memory, twist_metadata.c a spec as texts,
 * twist_file.c the files. */
#pragma once
#include "arena.h"
#include "safetensors.h"
#include "twist.h"

enum {
    TWIST_DIM_MAX = 65536,
    TWIST_TEXTS_MAX = 18,
    TWIST_TENSORS_MAX = 2 * TWIST_LAYERS_MAX + 1,
};

/* The metadata's key for a member that is out of its range; NULL: all is well. */
const char *twist_fault(const struct twist_spec *);

/* A spec without fault as metadata, in the file's order. Returns how many; texts that are not
 * static are in the arena. */
int twist_texts(const struct twist_spec *, struct arena *,
                struct safetensors_text out[TWIST_TEXTS_MAX]);

/* The same backwards: all members but name and calibration; request is borrowed from the file.
 * ERR_FILE for what is missing, makes no sense or is out of range. */
int twist_read_texts(struct twist_spec *out, const struct safetensors *, const char *path,
                     struct err *err);

/* As twist_new, but the calibration, where there is to be one, is left to the caller. */
struct twist *twist_allocate(const struct twist_spec *, bool calibrated);
