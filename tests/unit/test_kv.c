/* The page tables against a naive model that stores every sequence's whole history. Each appended
 * token has its own tag; tags go into a flat store through the slots kv_append gives, page copies
 * are honoured, and a sequence read back through its table must be its own history. */
#include "../../core/kv.h"

#include <stdlib.h>

#include "../../kernels/philox.h"
#include "../check.h"

enum {
    SEQS = 24,
    CAP = 12, /* pages of a sequence */
    TOKENS = CAP * KV_PAGE,
    PAGES = 40, /* fewer than SEQS * CAP: the pool does run out */
};

struct world {
    struct kv_pool *pool;
    struct kv_account account;
    int n_seqs, cap;
    struct kv_seq *seq;
    const struct kv_seq **all;
    int32_t *store;   /* (pages, KV_PAGE) tag in each slot */
    int32_t *history; /* (n_seqs, cap * KV_PAGE) the naive model */
    int *length;      /* (n_seqs) */
    int32_t *slots;   /* (cap * KV_PAGE) scratch */
    int32_t next_tag;
    uint32_t draws;
};

static void *zeroed(size_t n, size_t size)
{
    void *p = calloc(n, size);
    CHECK(p);
    return p;
}

static void world_open(struct world *w, int n_pages, int n_seqs, int cap)
{
    struct err err;
    *w = (struct world){.n_seqs = n_seqs, .cap = cap, .account = {0, n_pages}};
    size_t n = (size_t)n_seqs, tokens = (size_t)cap * KV_PAGE;
    EXPECT_INT(kv_open(&w->pool, n_pages, &err), 0);
    w->seq = zeroed(n, sizeof *w->seq);
    w->all = zeroed(n, sizeof *w->all);
    w->store = zeroed((size_t)n_pages * KV_PAGE, sizeof *w->store);
    w->history = zeroed(n * tokens, sizeof *w->history);
    w->length = zeroed(n, sizeof *w->length);
    w->slots = zeroed(tokens, sizeof *w->slots);
    for (int i = 0; i < n_seqs; i++) {
        w->seq[i].page = zeroed((size_t)cap, sizeof(int32_t));
        w->seq[i].cap = cap;
        w->seq[i].account = &w->account;
        w->all[i] = &w->seq[i];
    }
}

static void world_close(struct world *w)
{
    for (int i = 0; i < w->n_seqs; i++)
        free(w->seq[i].page);
    kv_close(w->pool);
    free(w->seq);
    free(w->all);
    free(w->store);
    free(w->history);
    free(w->length);
    free(w->slots);
}

static int below(struct world *w, int n)
{
    return (int)(philox4x32(7, w->draws++, 0, 0, 0).v[0] % (uint32_t)n);
}

static int32_t *history(struct world *w, int i)
{
    return w->history + (size_t)i * (size_t)w->cap * KV_PAGE;
}

/* The naive model's fork: copy everything. */
static void remember_fork(struct world *w, int dst, int src, int n_tokens)
{
    memmove(history(w, dst), history(w, src), (size_t)n_tokens * sizeof(int32_t));
    w->length[dst] = n_tokens;
}

static bool append(struct world *w, int i, int n)
{
    struct kv_seq *s = &w->seq[i];
    int free_before = kv_pages_free(w->pool), pages_before = s->n_pages;
    int32_t from, to;
    if (kv_append(w->pool, s, n, w->slots, &from, &to) != 0) {
        EXPECT_INT(s->n_tokens, w->length[i]); /* nothing changed … */
        EXPECT_INT(kv_pages_free(w->pool), free_before);
        int most = kv_pages_for(w->length[i] + n) - pages_before + 1;
        EXPECT(free_before < most); /* … and for a reason */
        return false;
    }
    if (from >= 0)
        memcpy(w->store + to * KV_PAGE, w->store + from * KV_PAGE, KV_PAGE * sizeof(int32_t));
    for (int j = 0; j < n; j++) {
        w->store[w->slots[j]] = w->next_tag;
        history(w, i)[w->length[i]++] = w->next_tag++;
    }
    return true;
}

static void retable(struct world *w, const int32_t *ancestor)
{
    kv_retable(w->pool, w->seq, ancestor, w->n_seqs);
    for (int i = 0; i < w->n_seqs; i++)
        remember_fork(w, i, ancestor[i], w->length[ancestor[i]]);
}

static void check_world(struct world *w)
{
    kv_check(w->pool, w->all, w->n_seqs);
    EXPECT_INT(w->account.used, kv_pages_total(w->pool) - kv_pages_free(w->pool));
    for (int i = 0; i < w->n_seqs; i++) {
        const struct kv_seq *s = &w->seq[i];
        EXPECT_INT(s->n_tokens, w->length[i]);
        int wrong = 0;
        for (int t = 0; t < w->length[i]; t++)
            wrong += w->store[s->page[t / KV_PAGE] * KV_PAGE + t % KV_PAGE] != history(w, i)[t];
        EXPECT_INT(wrong, 0);
    }
}

/* Random ancestors of which each survivor is its own; a third of the slots survive. */
static void random_ancestors(struct world *w, int32_t *ancestor)
{
    for (int i = 0; i < w->n_seqs; i++)
        ancestor[i] = below(w, 3) == 0 ? i : -1;
    ancestor[below(w, w->n_seqs)] = -1;
    int survivor = below(w, w->n_seqs);
    ancestor[survivor] = survivor;
    for (int i = 0; i < w->n_seqs; i++) {
        if (ancestor[i] >= 0)
            continue;
        int a = below(w, w->n_seqs);
        ancestor[i] = ancestor[a] == a ? a : survivor;
    }
}

static void walk_one(struct world *w)
{
    int i = below(w, w->n_seqs), j = below(w, w->n_seqs), op = below(w, 100);
    if (op < 60) {
        int room = TOKENS - w->length[i], n = below(w, op < 50 ? 3 : 40);
        append(w, i, n < room ? n : room);
    } else if (op < 75) {
        int n = below(w, w->length[i] + 1);
        kv_truncate(w->pool, &w->seq[i], n);
        w->length[i] = n;
    } else if (op < 99 && i != j) {
        int n = below(w, w->length[j] + 1);
        kv_truncate(w->pool, &w->seq[i], 0);
        kv_fork(w->pool, &w->seq[i], &w->seq[j], n);
        remember_fork(w, i, j, n);
    } else {
        int32_t ancestor[SEQS];
        random_ancestors(w, ancestor);
        retable(w, ancestor);
    }
}

static void test_random_walk(void)
{
    struct world w;
    world_open(&w, PAGES, SEQS, CAP);
    int fullest = PAGES;
    for (int i = 0; i < 20000 && !check_failures; i++) {
        walk_one(&w);
        check_world(&w);
        fullest = kv_pages_free(w.pool) < fullest ? kv_pages_free(w.pool) : fullest;
    }
    EXPECT(fullest <= 1); /* the walk did reach the end of the pool */
    for (int i = 0; i < SEQS; i++)
        kv_truncate(w.pool, &w.seq[i], 0);
    EXPECT_INT(kv_pages_free(w.pool), PAGES);
    EXPECT_INT(kv_pages_shared(w.pool), 0);
    world_close(&w);
}

static void test_account_limit(void)
{
    struct world w;
    world_open(&w, PAGES, 2, CAP);
    w.account.limit = 3;
    EXPECT(append(&w, 0, 3 * KV_PAGE - 1));
    int32_t slot, from, to;
    EXPECT_INT(kv_append(w.pool, &w.seq[1], 1, &slot, &from, &to), -1);
    kv_fork(w.pool, &w.seq[1], &w.seq[0], 3 * KV_PAGE - 1); /* shared pages count once */
    remember_fork(&w, 1, 0, 3 * KV_PAGE - 1);
    EXPECT_INT(w.account.used, 3);
    EXPECT_INT(kv_append(w.pool, &w.seq[1], 1, &slot, &from, &to),
               -1); /* the copy would be a 4th */
    w.account.limit = 4;
    EXPECT(append(&w, 1, 1));
    check_world(&w);
    world_close(&w);
}

static int by_value(const void *a, const void *b)
{
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

static int distinct_tokens(struct world *w)
{
    int n = 0, distinct = 0;
    int32_t *tags = zeroed((size_t)w->n_seqs * (size_t)w->cap * KV_PAGE, sizeof *tags);
    for (int i = 0; i < w->n_seqs; i++)
        for (int t = 0; t < w->length[i]; t++)
            tags[n++] = history(w, i)[t];
    qsort(tags, (size_t)n, sizeof *tags, by_value);
    for (int i = 0; i < n; i++)
        distinct += i == 0 || tags[i] != tags[i - 1];
    free(tags);
    return distinct;
}

/* A population that is resampled every few tokens. Its distinct tokens form a tree of at most 2K
 * stretches; a stretch of L tokens ends at most L / KV_PAGE + 1 pages, and every particle may have
 * a partial one: used <= distinct / KV_PAGE + 3 K. */
static void test_population(void)
{
    enum { K = 64, PROMPT = 37, STEPS = 400, POPULATION_CAP = 32 };
    struct world w;
    world_open(&w, K * POPULATION_CAP, K, POPULATION_CAP);
    append(&w, 0, PROMPT);
    int32_t ancestor[K] = {0};
    retable(&w, ancestor); /* K forks of the prompt */
    EXPECT_INT(kv_pages_total(w.pool) - kv_pages_free(w.pool), kv_pages_for(PROMPT));
    EXPECT_INT(kv_pages_shared(w.pool), kv_pages_for(PROMPT));
    for (int step = 0; step < STEPS; step++) {
        for (int i = 0; i < K; i++)
            EXPECT(append(&w, i, 1));
        if (step % 4 == 0) {
            random_ancestors(&w, ancestor);
            retable(&w, ancestor);
        }
        check_world(&w);
        int used = kv_pages_total(w.pool) - kv_pages_free(w.pool);
        EXPECT(used <= distinct_tokens(&w) / KV_PAGE + 3 * K);
    }
    int used = kv_pages_total(w.pool) - kv_pages_free(w.pool);
    EXPECT(used * 8 < K * kv_pages_for(PROMPT + STEPS)); /* far from a table of its own each */
    world_close(&w);
}

/* Of the sequences that share a partial page the last one to append writes in place. */
static void test_last_holder_keeps_the_page(void)
{
    struct world w;
    world_open(&w, 8, 3, 4);
    append(&w, 0, KV_PAGE + 5);
    int32_t ancestor[3] = {0, 0, 0}, from, to;
    retable(&w, ancestor);
    int32_t tail = w.seq[0].page[1];
    for (int i = 0; i < 2; i++) {
        EXPECT_INT(kv_append(w.pool, &w.seq[i], 1, w.slots, &from, &to), 0);
        EXPECT_INT(from, tail);
        EXPECT_INT(to, w.seq[i].page[1]);
        EXPECT_INT(w.slots[0], to * KV_PAGE + 5);
    }
    EXPECT_INT(kv_append(w.pool, &w.seq[2], 1, w.slots, &from, &to), 0);
    EXPECT_INT(from, -1);
    EXPECT_INT(to, -1);
    EXPECT_INT(w.slots[0], tail * KV_PAGE + 5);
    EXPECT_INT(kv_pages_free(w.pool), 8 - 4);
    world_close(&w);
}

/* A full tail needs no copy, a pool that is too small changes nothing. */
static void test_edges(void)
{
    struct world w;
    struct err err;
    struct kv_pool *none = NULL;
    int32_t from, to;
    EXPECT_INT(kv_open(&none, 0, &err), -1);
    EXPECT(none == NULL);
    world_open(&w, 3, 2, 4);
    append(&w, 0, 2 * KV_PAGE);
    retable(&w, (int32_t[]){0, 0});
    EXPECT_INT(kv_append(w.pool, &w.seq[1], KV_PAGE + 1, w.slots, &from, &to), -1);
    EXPECT_INT(w.seq[1].n_tokens, 2 * KV_PAGE);
    EXPECT_INT(kv_append(w.pool, &w.seq[1], KV_PAGE, w.slots, &from, &to), 0);
    EXPECT_INT(from, -1);
    EXPECT_INT(kv_pages_free(w.pool), 0);
    EXPECT_INT(kv_pages_shared(w.pool), 2);
    EXPECT_INT(kv_append(w.pool, &w.seq[0], 0, w.slots, &from, &to), 0);
    EXPECT_INT(kv_append(w.pool, &w.seq[0], 1, w.slots, &from, &to), -1);
    kv_truncate(w.pool, &w.seq[1], 0);
    EXPECT_INT(kv_append(w.pool, &w.seq[0], 1, w.slots, &from, &to), 0);
    kv_fork(w.pool, &w.seq[1], &w.seq[0], 2 * KV_PAGE + 1);
    EXPECT_INT(kv_pages_free(w.pool), 0); /* the shared tail has room, but its copy would not */
    EXPECT_INT(kv_append(w.pool, &w.seq[1], 1, w.slots, &from, &to), -1);
    EXPECT_INT(from, -1);
    EXPECT_INT(w.seq[1].n_tokens, 2 * KV_PAGE + 1);
    kv_check(w.pool, w.all, 2);
    world_close(&w);
}

int main(void)
{
    test_random_walk();
    test_account_limit();
    test_population();
    test_last_holder_keeps_the_page();
    test_edges();
    return test_failures();
}
