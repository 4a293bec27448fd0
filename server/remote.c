#include "remote.h"

#include <stdlib.h>
#include <string.h>

#include "../proto/client.h"

enum {
    REFUSAL_MAX = 64 << 10,
    CONNECT_SECONDS = 5,
    SILENCE_SECONDS = 60, /* streams say something every 15 s */
};

/* ------------------------------------------------------- what comes */

static void add_sample(struct remote *r, const struct event *e)
{
    if (r->n_samples == r->sample_cap) {
        r->sample_cap = r->sample_cap ? 2 * r->sample_cap : 64;
        r->sample = realloc(r->sample, sizeof *r->sample * (size_t)r->sample_cap);
        CHECK(r->sample && "out of memory");
    }
    r->sample[r->n_samples++] = *e;
}

static void take_line(struct remote *r)
{
    struct event e;
    int found = client_event(&e, &r->arena, r->text.data, r->text.len, &r->err);
    r->failed |= found < 0;
    if (found <= 0)
        return;
    if (e.type == EVENT_START) {
        r->start = e;
    } else if (e.type == EVENT_SAMPLE) {
        add_sample(r, &e);
    } else if (e.type == EVENT_DONE) {
        r->done = e;
    } else {
        r->failed = true;
        r->err = e.error;
    }
}

static long status_of(const struct remote *r)
{
    long status = 0;
    curl_easy_getinfo(r->curl, CURLINFO_RESPONSE_CODE, &status);
    return status;
}

static size_t on_data(char *data, size_t size, size_t n, void *user)
{
    struct remote *r = user;
    const char *end = data + size * n;
    if (status_of(r) != 200) {
        if (r->text.len < REFUSAL_MAX)
            buf_add(&r->text, data, size * n);
        return size * n;
    }
    for (const char *s = data; s < end;) {
        const char *newline = memchr(s, '\n', (size_t)(end - s));
        const char *stop = newline ? newline : end;
        buf_add(&r->text, s, (size_t)(stop - s));
        s = stop + (newline != NULL);
        if (!newline)
            break;
        take_line(r);
        buf_reset(&r->text);
    }
    return size * n;
}

/* ------------------------------------------------------- open, close */

static void add_header(struct remote *r, const char *name, const char *value)
{
    struct buf line = {0};
    buf_printf(&line, "%s: %s", name, value);
    r->headers = curl_slist_append(r->headers, line.data);
    CHECK(r->headers && "out of memory");
    buf_free(&line);
}

static void set_url(struct remote *r, const char *url)
{
    struct buf whole = {0};
    size_t n = strlen(url);
    while (n && url[n - 1] == '/')
        n--;
    buf_printf(&whole, "%.*s/v1/sample", (int)n, url);
    curl_easy_setopt(r->curl, CURLOPT_URL, whole.data); /* libcurl copies it */
    buf_free(&whole);
}

void remote_open(struct remote *r, const char *url, const char *key, char *body, void *user)
{
    *r = (struct remote){.curl = curl_easy_init(), .body = body};
    CHECK(r->curl && "out of memory");
    set_url(r, url);
    add_header(r, "Content-Type", "application/json");
    add_header(r, "Expect", ""); /* none: the body is small */
    if (key && key[0])
        add_header(r, "X-Api-Key", key);
    curl_easy_setopt(r->curl, CURLOPT_HTTPHEADER, r->headers);
    curl_easy_setopt(r->curl, CURLOPT_POSTFIELDS, body);
    curl_easy_setopt(r->curl, CURLOPT_USERAGENT, "clotho/" CLOTHO_VERSION);
    curl_easy_setopt(r->curl, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(r->curl, CURLOPT_HTTP_VERSION, CURL_HTTP_VERSION_1_1);
    curl_easy_setopt(r->curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(r->curl, CURLOPT_CONNECTTIMEOUT, (long)CONNECT_SECONDS);
    curl_easy_setopt(r->curl, CURLOPT_LOW_SPEED_LIMIT, 1L);
    curl_easy_setopt(r->curl, CURLOPT_LOW_SPEED_TIME, (long)SILENCE_SECONDS);
    curl_easy_setopt(r->curl, CURLOPT_WRITEFUNCTION, on_data);
    curl_easy_setopt(r->curl, CURLOPT_WRITEDATA, r);
    curl_easy_setopt(r->curl, CURLOPT_PRIVATE, user);
}

void remote_close(struct remote *r)
{
    curl_easy_cleanup(r->curl);
    curl_slist_free_all(r->headers);
    buf_free(&r->text);
    arena_free(&r->arena);
    free(r->sample);
    free(r->body);
    *r = (struct remote){0};
}

/* ------------------------------------------------------- how it went */

static enum remote_end refused(struct remote *r, long status, double *after, struct err *err)
{
    curl_off_t seconds = 0;
    curl_easy_getinfo(r->curl, CURLINFO_RETRY_AFTER, &seconds);
    *after = (double)seconds;
    client_refusal(err, r->text.data, r->text.len, status);
    if (status == 429 || status == 503)
        return REMOTE_LATER;
    return status >= 400 && status < 500 ? REMOTE_REFUSED : REMOTE_BROKEN;
}

enum remote_end remote_end(struct remote *r, CURLcode result, double *after, struct err *err)
{
    long status = status_of(r);
    *after = 0;
    if (result != CURLE_OK)
        err_set(err, ERR_UNAVAILABLE, "%s", curl_easy_strerror(result));
    else if (status != 200)
        return refused(r, status, after, err);
    else if (r->failed)
        *err = r->err;
    else if (r->done.type != EVENT_DONE || r->n_samples == 0 ||
             r->n_samples != r->start.start.particles)
        err_set(err, ERR_INTERNAL, "the answer is not whole");
    else
        return REMOTE_WHOLE;
    return REMOTE_BROKEN;
}
