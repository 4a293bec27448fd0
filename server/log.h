/* Lines on standard error, each written at once. Any thread. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "../core/buf.h"

enum log_level { LOG_ALWAYS, LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG };

/* At start-up. level: "error", "warn", "info", "debug". format: "text" is messages as they are, and
 * entries as logfmt; in "logfmt" and "json" both have a time, a level and fields. */
void log_set_level(const char *level);
void log_set_format(const char *format);

/* A message, if the level asks for it. */
void log_line(enum log_level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* An entry: fields after the time and the level. Texts may be any bytes. */
struct log_entry {
    struct buf text;
    bool wanted, comma;
};
void log_begin(struct log_entry *, enum log_level);
void log_text(struct log_entry *, const char *name, const char *value);
void log_count(struct log_entry *, const char *name, int64_t);
void log_seconds(struct log_entry *, const char *name, double);
void log_end(struct log_entry *); /* writes it */

/* A client's text for a message: what is not plain printable ASCII becomes '?'. */
void log_clean(char *out, int size, const char *text);
