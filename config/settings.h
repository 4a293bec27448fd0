/* The table of settings, for the files of this folder. */
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "config.h"

enum setting_kind {
    SETTING_SECTION, /* a heading: help is its title */
    SETTING_STRING,
    SETTING_CHOICE, /* one of arg's words, "auto|cpu|cuda" */
    SETTING_INT,
    SETTING_SIZE, /* bytes, with a suffix K, M or G (powers of 1024) */
    SETTING_BOOL,
    SETTING_NUMBER, /* kept as its text: a JSON number for `field` */
    SETTING_JSON,   /* kept as its text: a JSON value for `field` */
    SETTING_TWIST,  /* the same; what is not an object is a learned twist's name */
};

/* Where a value came from; the greater beats the smaller. */
enum source { FROM_DEFAULT = 1, FROM_FILE, FROM_ENVIRONMENT, FROM_FLAG };

enum {
    ENGINE_COMMANDS = CONFIG_SERVE | CONFIG_SAMPLE | CONFIG_BENCH | CONFIG_BOUNDS | CONFIG_LEARN,
    ALL_COMMANDS = ENGINE_COMMANDS | CONFIG_TWISTS,
};

struct setting {
    const char *flag; /* "kv-memory": --kv-memory, CLOTHO_KV_MEMORY, kv-memory: */
    enum setting_kind kind;
    int commands;         /* which it belongs to, enum config_command or'ed */
    size_t offset;        /* of its member in struct config */
    const char *fallback; /* the default, read like any other value; NULL: none (NULL, 0, false) */
    int64_t min, max;     /* SETTING_INT, SETTING_SIZE */
    enum source weakest;  /* that may set it; 0: any */
    const char *arg;      /* its value's name in --help */
    const char *field;    /* of the request that the command makes; "a.b": a member of object a */
    const char *help;     /* one paragraph, to which --help adds the default */
};

extern const struct setting settings[];
extern const int n_settings;

/* "CLOTHO_KV_MEMORY" of "kv-memory". */
void setting_variable(const struct setting *, char *out, size_t size);

/* Is a SETTING_TWIST's text meant as JSON? No twist is called so. */
static inline bool setting_is_object(const char *text)
{
    return *text == '{';
}

/* "4M" for bytes. */
void setting_size_text(int64_t bytes, char *out, size_t size);

static inline const void *setting_value(const struct config *c, const struct setting *s)
{
    return (const char *)c + s->offset;
}
