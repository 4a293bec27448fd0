/* Any bytes as what another server answers: lines of a stream, and the body of a refusal. What was
 * read can be told again, and reads as the same. */
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "../../core/buf.h"
#include "../../proto/client.h"
#include "../../proto/event_json.h"

static void check_sample(const struct event *e)
{
    CHECK(strlen(e->sample.text.s) == e->sample.text.len);
    CHECK(!isnan(e->sample.log_weight) && !isnan(e->sample.log_p) && !isnan(e->sample.log_phi));
    for (int i = 0; i < e->sample.n_holes; i++)
        CHECK(e->sample.holes[i].name && e->sample.holes[i].text.s);
}

/* To the 15 digits that are written. */
static bool near(double a, double b)
{
    return a == b || fabs(a - b) <= 1e-14 * fabs(a);
}

static void check_same(const struct event *a, const struct event *b)
{
    CHECK(a->type == b->type);
    if (a->type == EVENT_SAMPLE) {
        CHECK(near(a->sample.log_weight, b->sample.log_weight));
        CHECK(a->sample.n_tokens == b->sample.n_tokens && a->sample.n_holes == b->sample.n_holes);
        CHECK(strcmp(a->sample.text.s, b->sample.text.s) == 0);
    }
    if (a->type == EVENT_DONE)
        CHECK(near(a->done.log_z, b->done.log_z));
}

static void check_line(const char *line, size_t len)
{
    struct arena arena = {0};
    struct buf again = {0};
    struct event e, same;
    struct err err;
    if (client_event(&e, &arena, line, len, &err) == 1) {
        if (e.type == EVENT_SAMPLE)
            check_sample(&e);
        event_json(&again, &e);
        CHECK(client_event(&same, &arena, again.data, again.len, &err) == 1);
        check_same(&e, &same);
    }
    buf_free(&again);
    arena_free(&arena);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *text = (const char *)data, *end = text + size;
    struct err err;
    CHECK(client_refusal(&err, text, size, 503) == -1 && strlen(err.msg) < sizeof err.msg);
    for (const char *line = text; line < end;) {
        const char *stop = memchr(line, '\n', (size_t)(end - line));
        stop = stop ? stop : end;
        check_line(line, (size_t)(stop - line));
        line = stop + 1;
    }
    return 0;
}
