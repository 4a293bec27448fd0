#include "log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "../proto/json_write.h"

static const char *const names[] = {"info", "error", "warn", "info", "debug"};
static enum log_level most = LOG_INFO;
static enum { PLAIN, LOGFMT, JSON } format = PLAIN;

void log_set_level(const char *level)
{
    for (int i = LOG_ERROR; i <= LOG_DEBUG; i++)
        if (strcmp(names[i], level) == 0)
            most = (enum log_level)i;
}

void log_set_format(const char *name)
{
    format = strcmp(name, "json") == 0 ? JSON : strcmp(name, "logfmt") == 0 ? LOGFMT : PLAIN;
}

static void put(const char *line, size_t n)
{
    ssize_t written = write(STDERR_FILENO, line, n);
    (void)written; /* nowhere left to complain */
}

/* ------------------------------------------------------- entries */

/* May the value stand in logfmt without quotes? */
static bool is_bare(const char *value)
{
    for (const char *s = value; *s; s++)
        if (*s <= ' ' || *s >= 127 || strchr("\"=\\", *s))
            return false;
    return *value != '\0';
}

/* A member as JSON writes it, or a field of logfmt, whose quoted values are JSON's strings. */
static void field(struct log_entry *e, const char *name, const char *value, bool is_text)
{
    struct json w = {.out = &e->text, .comma = e->comma};
    if (!e->wanted)
        return;
    if (format != JSON) {
        buf_printf(&e->text, "%s%s=", e->comma ? " " : "", name);
        w.comma = false;
        name = NULL;
    }
    if (format != JSON && (!is_text || is_bare(value)))
        buf_puts(&e->text, value);
    else if (is_text)
        json_clean_member(&w, name, value);
    else
        json_raw_member(&w, name, value);
    e->comma = true;
}

static void stamp(char out[32])
{
    struct timespec now;
    struct tm utc;
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);
    size_t n = strftime(out, 32, "%Y-%m-%dT%H:%M:%S", &utc);
    snprintf(out + n, 32 - n, ".%03ldZ", now.tv_nsec / 1000000);
}

void log_begin(struct log_entry *e, enum log_level level)
{
    char time[32];
    *e = (struct log_entry){.wanted = level <= most};
    stamp(time);
    if (e->wanted && format == JSON)
        buf_puts(&e->text, "{");
    log_text(e, "time", time);
    log_text(e, "level", names[level]);
}

void log_text(struct log_entry *e, const char *name, const char *value)
{
    field(e, name, value, true);
}

void log_count(struct log_entry *e, const char *name, int64_t n)
{
    char text[32];
    snprintf(text, sizeof text, "%lld", (long long)n);
    field(e, name, text, false);
}

void log_seconds(struct log_entry *e, const char *name, double seconds)
{
    char text[32];
    snprintf(text, sizeof text, "%.4f", seconds);
    field(e, name, text, false);
}

void log_end(struct log_entry *e)
{
    if (!e->wanted)
        return;
    buf_puts(&e->text, format == JSON ? "}\n" : "\n");
    put(e->text.data, e->text.len);
    buf_free(&e->text);
}

/* ------------------------------------------------------- messages */

static void put_message(enum log_level level, const char *text)
{
    struct log_entry e;
    log_begin(&e, level);
    log_text(&e, "message", text);
    log_end(&e);
}

void log_line(enum log_level level, const char *fmt, ...)
{
    static const char prefix[] = "clotho: ";
    enum { HEAD = sizeof prefix - 1 };
    char line[1024]; /* of which the last one becomes the line's end */
    if (level > most)
        return;
    memcpy(line, prefix, HEAD);
    va_list ap;
    va_start(ap, fmt);
    int n = HEAD + vsnprintf(line + HEAD, sizeof line - HEAD, fmt, ap);
    va_end(ap);
    if (format != PLAIN) {
        put_message(level, line + HEAD);
        return;
    }
    n = n < (int)sizeof line - 1 ? n : (int)sizeof line - 1;
    line[n] = '\n';
    put(line, (size_t)n + 1);
}

void log_clean(char *out, int size, const char *text)
{
    int n = 0;
    for (; text[n] && n < size - 1; n++)
        out[n] = text[n] > ' ' && text[n] < 127 && text[n] != '"' ? text[n] : '?';
    out[n] = '\0';
}
