/* A learned twist as a file and as host memory: the layers of a head, what it was learned for, and
 * how. Files are safetensors, NAME.safetensors in one folder; tensors "layer.<i>.weight" (out, in)
 * and "layer.<i>.bias" (out), F32; everything else is text in the metadata. Any thread; no state
 * but the folder. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "arena.h"
#include "err.h"

enum { TWIST_LAYERS_MAX = 8, TWIST_NAME_MAX = 64, TWIST_HIDDEN_MAX = 16384 };

enum twist_method { TWIST_CTL, TWIST_RL, TWIST_SIXO, TWIST_FUDGE, TWIST_DPG };
extern const char *const twist_method_names[5]; /* "ctl", … */

/* What a twist is, without its numbers. Plain memory, but for the text in `request`. */
struct twist_spec {
    char name[TWIST_NAME_MAX + 1]; /* [A-Za-z0-9][A-Za-z0-9._-]*, at most 64 characters */
    char model[128];               /* the base model's name, for people */
    char fingerprint[17];          /* and its hash: a twist fits no other */
    int dim, vocab;                /* of the base model */
    int n_layers, hidden;          /* 1 layer: linear; more: ReLU between, `hidden` wide */
    bool conditional;              /* the input is [h_t ; h_o]: 2 dim wide */
    bool log_sigmoid; /* log ψ = log sigmoid(output) (fudge), else the output itself */
    bool resample;    /* false: ψ serves the proposal only (dpg) */
    int max_tokens;   /* T it was learned for */
    enum twist_method method;
    int particles, updates;
    double learning_rate, log_z; /* log_z: the last update's estimate; -inf allowed */
    uint64_t seed;
    const char *request; /* JSON: potential, prompts and prior as they were asked for; borrowed */
    const float
        *calibration; /* (max_tokens) added to log ψ_t, t = 1.. (later t: the last); or NULL */
};

static inline int twist_in(const struct twist_spec *s, int layer)
{
    return layer ? s->hidden : s->conditional ? 2 * s->dim : s->dim;
}

static inline int twist_out(const struct twist_spec *s, int layer)
{
    return layer + 1 == s->n_layers ? s->vocab : s->hidden;
}

struct twist {
    struct twist_spec spec;
    float *w[TWIST_LAYERS_MAX]; /* (out, in), row-major */
    float *b[TWIST_LAYERS_MAX]; /* (out) */
    void *memory;               /* what all pointers point into; freed by twist_free */
};

bool twist_name_ok(const char *name);

/* All zero but the spec, whose texts and calibration are copied; NULL: no memory. */
struct twist *twist_new(const struct twist_spec *);
void twist_free(struct twist *); /* NULL is fine */

/* Of the first n_layers layers: w ~ N(0, 2/(in + out)), b = 0 (Zhao et al., app. G.2); Philox,
 * purpose PHILOX_INIT. */
void twist_init(struct twist *, int n_layers, uint64_t seed);

/* Write dir/NAME.safetensors so that at any moment, also across a crash of the machine, the file is
 * the old one or the new one: temporary file, fsync, rename, fsync of the folder. The same twist
 * gives the same bytes. ERR_FILE; ERR_INVALID: numbers that are not finite or out of range, which
 * twist_load would refuse. */
int twist_save(const struct twist *, const char *dir, struct err *err);

/* May files be made in the folder? To be asked before hours are spent on one. ERR_INVALID. */
int twist_can_save(const char *dir, struct err *err);

/* Read a file whole, every number finite. ERR_NOT_FOUND: no such file; ERR_FILE: broken, in one
 * line. */
int twist_load(struct twist **out, const char *dir, const char *name, struct err *err);

/* What is there, without its numbers. request and calibration are NULL but from twist_describe. */
struct twist_file {
    struct twist_spec spec;
    int64_t created_unix; /* seconds */
    size_t bytes;
    uint64_t identity; /* changes when the file is replaced */
};
int twist_stat(struct twist_file *out, const char *dir, const char *name, struct err *err);

/* The same with request and calibration, in the arena. */
int twist_describe(struct twist_file *out, struct arena *, const char *dir, const char *name,
                   struct err *err);

/* All twists of a folder, by name; broken files are left out. Returns how many; *out is the
 * caller's (free). -1: the folder cannot be read. */
int twist_list(struct twist_file **out, const char *dir, struct err *err);

int twist_remove(const char *dir, const char *name, struct err *err);

/* Refuse a twist of another model: ERR_INVALID with param "twist.name". */
int twist_check_model(const struct twist_spec *, const char *fingerprint, int dim, int vocab,
                      struct err *err);
