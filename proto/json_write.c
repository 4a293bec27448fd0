#include "json_write.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "../core/utf8.h"

static void write_string(struct buf *out, const char *s, size_t len)
{
    static const char names[] = "\b\f\n\r\t\"\\", letters[] = "bfnrt\"\\";
    size_t from = 0;
    buf_add(out, "\"", 1);
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)s[i];
        if (c >= ' ' && c != '"' && c != '\\')
            continue;
        buf_add(out, s + from, i - from);
        from = i + 1;
        const char *named = c ? strchr(names, c) : NULL;
        if (named)
            buf_printf(out, "\\%c", letters[named - names]);
        else
            buf_printf(out, "\\u%04x", c);
    }
    buf_add(out, s + from, len - from);
    buf_add(out, "\"", 1);
}

static void write_real(struct buf *out, double x)
{
    char text[40];
    if (!isfinite(x)) {
        buf_puts(out, "null");
        return;
    }
    int n = snprintf(text, sizeof text, "%.15g", x + 0.0); /* -0 becomes 0 */
    for (int i = 0; i < n; i++)
        if (!strchr("0123456789+-e", text[i]))
            text[i] = '.'; /* the locale's decimal point */
    buf_add(out, text, (size_t)n);
}

/* What comes before a value: a comma, its name. */
static void begin(struct json *w, const char *name)
{
    if (w->comma)
        buf_add(w->out, ",", 1);
    w->comma = true;
    if (!name)
        return;
    write_string(w->out, name, strlen(name));
    buf_add(w->out, ":", 1);
}

void json_open(struct json *w, const char *name, char bracket)
{
    begin(w, name);
    buf_add(w->out, &bracket, 1);
    w->comma = false;
}

void json_close(struct json *w, char bracket)
{
    buf_add(w->out, &bracket, 1);
    w->comma = true;
}

void json_text(struct json *w, const char *name, const char *s, size_t len)
{
    begin(w, name);
    write_string(w->out, len ? s : "", len);
}

void json_string_member(struct json *w, const char *name, const char *s)
{
    json_text(w, name, s, strlen(s));
}

void json_clean_member(struct json *w, const char *name, const char *s)
{
    struct buf clean = {0};
    utf8_sanitize(&clean, s, strlen(s));
    json_text(w, name, clean.data, clean.len);
    buf_free(&clean);
}

void json_int_member(struct json *w, const char *name, int64_t n)
{
    begin(w, name);
    buf_printf(w->out, "%lld", (long long)n);
}

void json_real_member(struct json *w, const char *name, double x)
{
    begin(w, name);
    write_real(w->out, x);
}

void json_raw_member(struct json *w, const char *name, const char *value)
{
    begin(w, name);
    buf_puts(w->out, value);
}

void json_bool_member(struct json *w, const char *name, bool yes)
{
    json_raw_member(w, name, yes ? "true" : "false");
}

void json_null_member(struct json *w, const char *name)
{
    json_raw_member(w, name, "null");
}

void json_ids_member(struct json *w, const char *name, const int32_t *id, int n)
{
    json_open(w, name, '[');
    for (int i = 0; i < n; i++)
        json_int_member(w, NULL, id[i]);
    json_close(w, ']');
}

void json_reals_member(struct json *w, const char *name, const double *x, int n)
{
    json_open(w, name, '[');
    for (int i = 0; i < n; i++)
        json_real_member(w, NULL, x[i]);
    json_close(w, ']');
}

void json_raw(struct json *w, const struct buf *values)
{
    if (!values->len)
        return;
    begin(w, NULL);
    buf_add(w->out, values->data, values->len);
}
