/* Block tables of the KV cache: which pages hold which sequence. Host bookkeeping only, owned by
 * the engine thread; the bytes live in the backend's kv_store. Pages are reference-counted. A page
 * is written only while exactly one sequence holds it: full pages are shared freely, a shared
 * partial tail is copied at the next append (copy on write). Nothing here allocates after kv_open.
 */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "../kernels/backend.h"
#include "err.h"

struct kv_pool;

/* A budget of pages, of one request. Sequences share pages only within an account. */
struct kv_account {
    int used, limit; /* pages; a page shared by several sequences counts once */
};

/* A sequence's table. The caller gives the storage for the ids; capacity is in pages. */
struct kv_seq {
    struct kv_account *account;
    int32_t *page;
    int n_pages, cap;
    int n_tokens; /* tokens whose keys and values are stored (or will be, by rows already appended)
                   */
};

int kv_open(struct kv_pool **out, int n_pages, struct err *err);
void kv_close(struct kv_pool *);

/* Give s room for n more tokens. slots[0..n) receives where each goes (page * KV_PAGE + offset). If
 * the tail page must be copied first, *cow_from and *cow_to name the pages, else both are -1; the
 * copy is to be queued before the tokens are written. Returns 0, or -1 with nothing changed when
 * the pool or the account has too few pages left. */
int kv_append(struct kv_pool *, struct kv_seq *s, int n, int32_t *slots, int32_t *cow_from,
              int32_t *cow_to);

/* Make the empty dst share the first n_tokens tokens of src. */
void kv_fork(struct kv_pool *, struct kv_seq *dst, const struct kv_seq *src, int n_tokens);

/* Forget all tokens from n_tokens on. kv_truncate(p, s, 0) releases the sequence. */
void kv_truncate(struct kv_pool *, struct kv_seq *s, int n_tokens);

/* Resampling: seqs[i] becomes a fork of seqs[ancestor[i]]. Survivors keep their slot:
 * ancestor[ancestor[i]] == ancestor[i] for all i. */
void kv_retable(struct kv_pool *, struct kv_seq *seqs, const int32_t *ancestor, int k);

static inline int kv_pages_for(int n_tokens)
{
    return (n_tokens + KV_PAGE - 1) / KV_PAGE;
}

int kv_pages_total(const struct kv_pool *);
int kv_pages_free(const struct kv_pool *);
int kv_pages_shared(const struct kv_pool *); /* pages held by more than one sequence */

/* Abort unless: every page is either free with count 0 or held with count > 0, and the counts are
 * those of the given sequences, which must be all that exist. For debug builds and tests. */
void kv_check(const struct kv_pool *, const struct kv_seq *const *seqs, int n);
