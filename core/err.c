#include "err.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Messages quote what others wrote: control characters become spaces, so that a line stays one. */
static void one_line(char *s)
{
    for (; *s; s++)
        if ((unsigned char)*s < ' ' || *s == 127)
            *s = ' ';
}

int err_set(struct err *e, enum err_code code, const char *fmt, ...)
{
    va_list ap;
    e->code = code;
    e->param[0] = '\0';
    va_start(ap, fmt);
    vsnprintf(e->msg, sizeof e->msg, fmt, ap);
    va_end(ap);
    one_line(e->msg);
    return -1;
}

int err_field(struct err *e, const char *param, const char *fmt, ...)
{
    va_list ap;
    e->code = ERR_INVALID;
    snprintf(e->param, sizeof e->param, "%s", param);
    int n = snprintf(e->msg, sizeof e->msg, "%s: ", e->param);
    va_start(ap, fmt);
    vsnprintf(e->msg + n, sizeof e->msg - (size_t)n, fmt, ap);
    va_end(ap);
    one_line(e->param);
    one_line(e->msg);
    return -1;
}

void check_failed(const char *file, int line, const char *cond)
{
    fprintf(stderr, "%s:%d: check failed: %s\n", file, line, cond);
    abort();
}
