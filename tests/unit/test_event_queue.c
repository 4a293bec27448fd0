/* What goes into an event queue comes out of it, whatever is borrowed is gone by then. */
#include "../../server/event_queue.c"

#include "../check.h"

/* A copy in memory that is overwritten and freed once the event was added. */
struct borrowed {
    void *at[64];
    size_t size[64];
    int n;
};

static void *lend(struct borrowed *b, const void *bytes, size_t n)
{
    void *copy = malloc(n ? n : 1);
    memcpy(copy, bytes, n);
    b->at[b->n] = copy;
    b->size[b->n++] = n;
    return copy;
}

static void take_back(struct borrowed *b)
{
    for (int i = 0; i < b->n; i++) {
        memset(b->at[i], 0xdd, b->size[i]);
        free(b->at[i]);
    }
    b->n = 0;
}

static void add_each(struct event_queue *q, struct borrowed *b)
{
    int32_t ids[] = {3, 1, 4, 1, 5};
    double logs[] = {-1, -2, -3, -4, -5};
    struct event_hole holes[2] = {{lend(b, "z", 2), {lend(b, "hole one", 8), 8}},
                                  {lend(b, "second name", 12), {lend(b, "", 0), 0}}};
    struct event_text texts[3] = {
        {lend(b, "a", 1), 1}, {lend(b, "", 0), 0}, {lend(b, "nine byte", 9), 9}};

    event_queue_add(q, &(struct event){.type = EVENT_START,
                                       .start = {.id = lend(b, "smp-1", 6),
                                                 .model = lend(b, "a model", 8),
                                                 .particles = 7,
                                                 .prompt_tokens = 2,
                                                 .seed = -9}});
    event_queue_add(q, &(struct event){.type = EVENT_STEP,
                                       .step = {.step = 1,
                                                .active = 3,
                                                .ess = 2.5,
                                                .log_z = -INFINITY,
                                                .n_texts = 3,
                                                .texts = lend(b, texts, sizeof texts)}});
    event_queue_add(q, &(struct event){.type = EVENT_STEP, .step = {.step = 2}});
    event_queue_add(
        q, &(struct event){
               .type = EVENT_RESAMPLE,
               .resample = {.step = 2, .ess = 1, .ancestors = lend(b, ids, sizeof ids), .n = 5}});
    event_queue_add(q, &(struct event){.type = EVENT_SAMPLE,
                                       .sample = {.index = 4,
                                                  .text = {lend(b, "some text", 9), 9},
                                                  .tokens = lend(b, ids, sizeof ids),
                                                  .n_tokens = 5,
                                                  .token_log_p = lend(b, logs, sizeof logs),
                                                  .log_weight = -3,
                                                  .stopped = true,
                                                  .holes = lend(b, holes, sizeof holes),
                                                  .n_holes = 2}});
    event_queue_add(q, &(struct event){.type = EVENT_SCORE,
                                       .score = {.index = 1,
                                                 .log_p = -7,
                                                 .tokens = lend(b, ids, sizeof ids),
                                                 .n_tokens = 5,
                                                 .log_twist = NULL,
                                                 .token_log_p = lend(b, logs, sizeof logs)}});
    struct event_token grown[] = {{3, 77, true, false}, {5, 78, false, false}};
    event_queue_add(
        q, &(struct event){.type = EVENT_TOKENS,
                           .tokens = {.first = 8, .token = lend(b, grown, sizeof grown), .n = 2}});
    struct event_top top[] = {{9, -1}, {8, -2}, {7, -3}, {6, -4}, {5, -5},
                              {9, -1}, {8, -2}, {7, -3}, {6, -4}, {5, -6}};
    event_queue_add(q, &(struct event){.type = EVENT_CHOICE,
                                       .choice = {.index = 6,
                                                  .tokens = lend(b, ids, sizeof ids),
                                                  .n_tokens = 5,
                                                  .stopped = true,
                                                  .token_log_p = lend(b, logs, sizeof logs),
                                                  .top = lend(b, top, sizeof top),
                                                  .n_top = 2}});
    event_queue_add(q, &(struct event){.type = EVENT_DONE, .done = {.log_z = -1.5, .ess = 3}});
    struct event error = {.type = EVENT_ERROR};
    err_field(&error.error, "prompt", "is wrong");
    event_queue_add(q, &error);
    take_back(b);
}

static bool is_text(struct event_text t, const char *want)
{
    return t.len == strlen(want) && memcmp(t.s, want, t.len) == 0;
}

static void expect_progress(struct event_queue *q)
{
    struct event e;
    EXPECT(event_queue_next(q, &e));
    EXPECT_INT(e.type, EVENT_START);
    EXPECT_STR(e.start.id, "smp-1");
    EXPECT_STR(e.start.model, "a model");
    EXPECT_INT(e.start.seed, -9);
    EXPECT(event_queue_next(q, &e));
    EXPECT_INT(e.step.active, 3);
    EXPECT_NEAR(e.step.log_z, -INFINITY, 0);
    EXPECT_INT(e.step.n_texts, 3);
    EXPECT(is_text(e.step.texts[0], "a"));
    EXPECT(is_text(e.step.texts[1], ""));
    EXPECT(is_text(e.step.texts[2], "nine byte"));
    EXPECT(event_queue_next(q, &e));
    EXPECT_INT(e.step.step, 2);
    EXPECT(e.step.texts == NULL);
    EXPECT(event_queue_next(q, &e));
    EXPECT_INT(e.resample.n, 5);
    EXPECT_INT(e.resample.ancestors[4], 5);
}

static void expect_answer(struct event_queue *q)
{
    struct event e;
    EXPECT(event_queue_next(q, &e));
    EXPECT_INT(e.sample.index, 4);
    EXPECT(is_text(e.sample.text, "some text"));
    EXPECT_INT(e.sample.tokens[2], 4);
    EXPECT_NEAR(e.sample.token_log_p[4], -5, 0);
    EXPECT(e.sample.stopped);
    EXPECT_STR(e.sample.holes[0].name, "z");
    EXPECT(is_text(e.sample.holes[0].text, "hole one"));
    EXPECT_STR(e.sample.holes[1].name, "second name");
    EXPECT(is_text(e.sample.holes[1].text, ""));
    EXPECT(event_queue_next(q, &e));
    EXPECT_INT(e.score.tokens[1], 1);
    EXPECT(e.score.log_twist == NULL);
    EXPECT_NEAR(e.score.token_log_p[0], -1, 0);
    EXPECT(event_queue_next(q, &e));
    EXPECT_INT(e.tokens.first, 8);
    EXPECT_INT(e.tokens.token[0].token, 77);
    EXPECT(e.tokens.token[0].ended && !e.tokens.token[1].ended);
    EXPECT(event_queue_next(q, &e));
    EXPECT_INT(e.choice.tokens[2], 4);
    EXPECT(e.choice.index == 6 && e.choice.stopped);
    EXPECT_NEAR(e.choice.token_log_p[4], -5, 0);
    EXPECT(e.choice.top[9].id == 5 && e.choice.top[9].log_p == -6);
    EXPECT(event_queue_next(q, &e));
    EXPECT_INT(e.type, EVENT_DONE);
    EXPECT_NEAR(e.done.log_z, -1.5, 0);
    EXPECT(event_queue_next(q, &e));
    EXPECT_STR(e.error.param, "prompt");
    EXPECT_STR(e.error.msg, "prompt: is wrong");
}

int main(void)
{
    struct event_queue q = {0};
    struct borrowed b = {0};
    struct event e;
    EXPECT(!event_queue_next(&q, &e));
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 50; i++)
            add_each(&q, &b);
        EXPECT(!event_queue_is_empty(&q));
        for (int i = 0; i < 50; i++) {
            expect_progress(&q);
            expect_answer(&q);
        }
        EXPECT(event_queue_is_empty(&q));
        EXPECT(!event_queue_next(&q, &e));
        event_queue_clear(&q);
    }
    event_queue_free(&q);
    return test_failures();
}
