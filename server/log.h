/* Lines on standard error, each written at once. Any thread. */
#pragma once

enum log_level { LOG_ALWAYS, LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG };

void log_set_level(const char *name); /* "error", "warn", "info", "debug"; at start-up */

/* "clotho: ...", if the level asks for it. */
void log_line(enum log_level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* The same as `key=value ...` after the time and the level. */
void log_fields(enum log_level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* A client's text for a log line: what is not plain printable ASCII becomes '?'. */
void log_clean(char *out, int size, const char *text);
