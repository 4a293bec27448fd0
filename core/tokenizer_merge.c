/* Merging neighbours, best first: a linked list of symbols and a heap of the merges that are
 * possible. A merge in the heap may be out of date when it comes up; it is then dropped. */
#include "tokenizer_impl.h"

#include <stdlib.h>

static bool before(const struct merge *a, const struct merge *b)
{
    return a->cost != b->cost ? a->cost < b->cost : a->left < b->left;
}

static void heap_push(struct encoding *e, struct merge m)
{
    if (e->n_heap == e->max_heap) {
        e->max_heap = e->max_heap ? 2 * e->max_heap : 64;
        e->heap = realloc(e->heap, e->max_heap * sizeof *e->heap);
        CHECK(e->heap && "out of memory");
    }
    size_t i = e->n_heap++;
    for (size_t up; i > 0 && before(&m, &e->heap[up = (i - 1) / 2]); i = up)
        e->heap[i] = e->heap[up];
    e->heap[i] = m;
}

static struct merge heap_pop(struct encoding *e)
{
    struct merge top = e->heap[0], last = e->heap[--e->n_heap];
    size_t i = 0;
    for (size_t down; (down = 2 * i + 1) < e->n_heap; i = down) {
        if (down + 1 < e->n_heap && before(&e->heap[down + 1], &e->heap[down]))
            down++;
        if (!before(&e->heap[down], &last))
            break;
        e->heap[i] = e->heap[down];
    }
    e->heap[i] = last;
    return top;
}

/* Offer the merge of the symbol at `left` with the one after it. */
static void offer(struct encoding *e, const char *text, int32_t len, int32_t left, merge_rule *rule)
{
    const struct symbol *l = &e->symbols[left];
    if (l->next == len)
        return;
    const struct symbol *r = &e->symbols[l->next];
    struct merge m = {.left = left, .len = r->next - left};
    if (rule(e->t, text, l, r, &m))
        heap_push(e, m);
}

void merge_reserve(struct encoding *e, size_t len)
{
    if (len <= e->max_symbols)
        return;
    free(e->symbols);
    e->max_symbols = len < 256 ? 256 : len;
    e->symbols = malloc(e->max_symbols * sizeof *e->symbols);
    CHECK(e->symbols && "out of memory");
}

void merge_all(struct encoding *e, const char *text, int32_t len, merge_rule *rule)
{
    struct symbol *s = e->symbols;
    e->n_heap = 0;
    for (int32_t at = 0; at < len; at = s[at].next)
        offer(e, text, len, at, rule);
    while (e->n_heap > 0) {
        struct merge m = heap_pop(e);
        struct symbol *left = &s[m.left];
        if (left->next == 0 || left->next == len)
            continue;
        struct symbol *right = &s[left->next];
        if (right->next - m.left != m.len) /* one of the two has grown since */
            continue;
        left->id = m.id;
        left->next = right->next;
        right->next = 0;
        if (left->next != len)
            s[left->next].prev = m.left;
        if (left->prev >= 0)
            offer(e, text, len, left->prev, rule);
        offer(e, text, len, m.left, rule);
    }
}

static int emit_bytes(struct encoding *e, const char *text, int32_t from, int32_t to)
{
    for (int32_t i = from; i < to; i++) {
        unsigned char byte = (unsigned char)text[i];
        int32_t id = e->t->byte_id[byte];
        if (id < 0)
            return err_set(e->err, ERR_INVALID,
                           "the text cannot be spelt: the model's vocabulary has no token for the "
                           "byte 0x%02x",
                           byte);
        tokens_add(e->out, id);
    }
    return 0;
}

int merge_emit(struct encoding *e, const char *text, int32_t len)
{
    const struct symbol *s = e->symbols;
    for (int32_t at = 0; at < len; at = s[at].next) {
        if (s[at].id >= 0)
            tokens_add(e->out, s[at].id);
        else if (emit_bytes(e, text, at, s[at].next))
            return -1;
    }
    return 0;
}
