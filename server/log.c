#include "log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const char *const names[] = {"always", "error", "warn", "info", "debug"};
static enum log_level most = LOG_INFO;

void log_set_level(const char *name)
{
    for (int i = LOG_ERROR; i <= LOG_DEBUG; i++)
        if (strcmp(names[i], name) == 0)
            most = (enum log_level)i;
}

/* Behind `used` bytes of head: the text, cut to what fits, and a line end. */
static void finish(char *line, int size, int used, const char *fmt, va_list ap)
{
    int n = vsnprintf(line + used, (size_t)(size - used - 1), fmt, ap);
    used = n < size - used - 1 ? used + n : size - 2;
    line[used++] = '\n';
    ssize_t written = write(STDERR_FILENO, line, (size_t)used);
    (void)written; /* nowhere left to complain */
}

void log_line(enum log_level level, const char *fmt, ...)
{
    if (level > most)
        return;
    char line[1024] = "clotho: ";
    va_list ap;
    va_start(ap, fmt);
    finish(line, sizeof line, 8, fmt, ap);
    va_end(ap);
}

void log_fields(enum log_level level, const char *fmt, ...)
{
    if (level > most)
        return;
    char line[1024];
    struct timespec now;
    struct tm utc;
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);
    int n = (int)strftime(line, sizeof line, "time=%Y-%m-%dT%H:%M:%S", &utc);
    n += snprintf(line + n, sizeof line - (size_t)n, ".%03ldZ level=%s ", now.tv_nsec / 1000000,
                  names[level]);
    va_list ap;
    va_start(ap, fmt);
    finish(line, sizeof line, n, fmt, ap);
    va_end(ap);
}

void log_clean(char *out, int size, const char *text)
{
    int n = 0;
    for (; text[n] && n < size - 1; n++)
        out[n] = text[n] > ' ' && text[n] < 127 && text[n] != '"' ? text[n] : '?';
    out[n] = '\0';
}
