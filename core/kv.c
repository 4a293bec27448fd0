#include "kv.h"

#include <stdlib.h>
#include <string.h>

struct kv_pool {
    int n_pages;
    int n_free;
    int n_shared;
    int32_t *refs; /* (n_pages) sequences that hold the page; 0: free */
    int32_t
        *free; /* (n_pages) the first n_free are the free pages; the last freed is taken first */
    int32_t *count; /* (n_pages) scratch of kv_check */
};

int kv_open(struct kv_pool **out, int n_pages, struct err *err)
{
    if (n_pages < 1)
        return err_set(err, ERR_INVALID, "a KV cache of %d pages is too small", n_pages);
    struct kv_pool *p = calloc(1, sizeof *p);
    CHECK(p && "out of memory");
    p->n_pages = p->n_free = n_pages;
    p->refs = calloc((size_t)n_pages, sizeof *p->refs);
    p->free = calloc((size_t)n_pages, sizeof *p->free);
    p->count = calloc((size_t)n_pages, sizeof *p->count);
    CHECK(p->refs && p->free && p->count && "out of memory");
    for (int i = 0; i < n_pages; i++)
        p->free[i] = n_pages - 1 - i; /* page 0 goes first */
    *out = p;
    return 0;
}

void kv_close(struct kv_pool *p)
{
    if (!p)
        return;
    free(p->refs);
    free(p->free);
    free(p->count);
    free(p);
}

static int32_t page_take(struct kv_pool *p, struct kv_account *account)
{
    account->used++;
    int32_t page = p->free[--p->n_free];
    p->refs[page] = 1;
    return page;
}

static void page_hold(struct kv_pool *p, int32_t page)
{
    if (++p->refs[page] == 2)
        p->n_shared++;
}

static void page_drop(struct kv_pool *p, struct kv_account *account, int32_t page)
{
    int32_t refs = --p->refs[page];
    if (refs == 1)
        p->n_shared--;
    if (refs == 0) {
        p->free[p->n_free++] = page;
        account->used--;
    }
}

int kv_append(struct kv_pool *p, struct kv_seq *s, int n, int32_t *slots, int32_t *cow_from,
              int32_t *cow_to)
{
    *cow_from = *cow_to = -1;
    if (n == 0)
        return 0;
    bool partial = s->n_tokens % KV_PAGE != 0;
    bool copy = partial && p->refs[s->page[s->n_pages - 1]] > 1;
    int n_pages = kv_pages_for(s->n_tokens + n);
    CHECK(n > 0 && n_pages <= s->cap);
    int need = n_pages - s->n_pages + copy;
    if (need > p->n_free || need > s->account->limit - s->account->used)
        return -1;

    if (copy) {
        int32_t *tail = &s->page[s->n_pages - 1];
        *cow_from = *tail;
        *cow_to = page_take(p, s->account);
        page_drop(p, s->account, *tail); /* another sequence still holds it: it is not freed */
        *tail = *cow_to;
    }
    while (s->n_pages < n_pages)
        s->page[s->n_pages++] = page_take(p, s->account);
    for (int i = 0; i < n; i++, s->n_tokens++)
        slots[i] = s->page[s->n_tokens / KV_PAGE] * KV_PAGE + s->n_tokens % KV_PAGE;
    return 0;
}

void kv_fork(struct kv_pool *p, struct kv_seq *dst, const struct kv_seq *src, int n_tokens)
{
    int n_pages = kv_pages_for(n_tokens);
    CHECK(dst->account == src->account);
    CHECK(dst->n_pages == 0 && n_tokens >= 0 && n_tokens <= src->n_tokens && n_pages <= dst->cap);
    for (int i = 0; i < n_pages; i++) {
        page_hold(p, src->page[i]);
        dst->page[i] = src->page[i];
    }
    dst->n_pages = n_pages;
    dst->n_tokens = n_tokens;
}

void kv_truncate(struct kv_pool *p, struct kv_seq *s, int n_tokens)
{
    CHECK(n_tokens >= 0 && n_tokens <= s->n_tokens);
    int n_pages = kv_pages_for(n_tokens);
    while (s->n_pages > n_pages)
        page_drop(p, s->account, s->page[--s->n_pages]);
    s->n_tokens = n_tokens;
}

/* As survivors keep their slot, a sequence that is replaced is nobody's ancestor, and one that is
 * forked is still whole: slots can be replaced one after the other. */
void kv_retable(struct kv_pool *p, struct kv_seq *seqs, const int32_t *ancestor, int k)
{
    for (int i = 0; i < k; i++) {
        int32_t a = ancestor[i];
        CHECK(a >= 0 && a < k && ancestor[a] == a);
        if (a == i)
            continue;
        kv_truncate(p, &seqs[i], 0);
        kv_fork(p, &seqs[i], &seqs[a], seqs[a].n_tokens);
    }
}

int kv_pages_total(const struct kv_pool *p)
{
    return p->n_pages;
}

int kv_pages_free(const struct kv_pool *p)
{
    return p->n_free;
}

int kv_pages_shared(const struct kv_pool *p)
{
    return p->n_shared;
}

void kv_check(const struct kv_pool *p, const struct kv_seq *const *seqs, int n)
{
    memset(p->count, 0, (size_t)p->n_pages * sizeof *p->count);
    for (int i = 0; i < n; i++) {
        const struct kv_seq *s = seqs[i];
        CHECK(s->n_pages == kv_pages_for(s->n_tokens) && s->n_pages <= s->cap);
        for (int j = 0; j < s->n_pages; j++) {
            CHECK(s->page[j] >= 0 && s->page[j] < p->n_pages);
            p->count[s->page[j]]++;
        }
    }
    int held = 0, shared = 0;
    for (int i = 0; i < p->n_pages; i++) {
        CHECK(p->refs[i] == p->count[i]);
        held += p->count[i] > 0;
        shared += p->count[i] > 1;
    }
    CHECK(p->n_shared == shared && p->n_free == p->n_pages - held);
    for (int i = 0; i < p->n_free; i++) /* each free page once: a count of 0 becomes -1 */
        CHECK(p->free[i] >= 0 && p->free[i] < p->n_pages && p->count[p->free[i]]-- == 0);
}
