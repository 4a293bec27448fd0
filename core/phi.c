/* Evaluating potentials on texts. What needs no model is computed at once. For the rest, each text
 * asks the model by branches: a continuation is a fork of its particle with the given text
 * appended; a judge's question shares the computed part of the template (the donor) and then tries
 * each answer after it. Only distinct texts are asked about, and none whose φ is already 0. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "potential.h"
#include "run.h"

static const struct potential *asked(const struct run *r)
{
    return &r->job->potentials[r->phi.potential];
}

bool phi_ended(const struct run *r)
{
    return r->phi.potential == r->job->n_potentials;
}

/* ---- which texts
 * --------------------------------------------------------------------------------------- */

void phi_prepare(struct run *r)
{
    const struct job *j = r->job;
    int n = r->k;
    if (j->kind == JOB_SCORE && j->twist.type == TWIST_POTENTIAL)
        for (int i = 0; i < j->n_completions; i++)
            n += j->completions[i].n / j->twist.every;
    r->phi.item = ARENA_NEW(&r->job->arena, struct phi_item, n);
    r->phi.item_of = ARENA_NEW(&r->job->arena, int, r->k);
    int n_table = 1;
    while (n_table < 2 * r->k)
        n_table *= 2;
    r->phi.table = ARENA_NEW(&r->job->arena, int, n_table);
    r->phi.table_mask = n_table - 1;
}

static uint64_t hash_tokens(const int32_t *id, int n) /* FNV-1a */
{
    uint64_t h = 0xcbf29ce484222325u;
    for (int i = 0; i < n; i++)
        h = (h ^ (uint32_t)id[i]) * 0x100000001b3u;
    return h ^ h >> 32;
}

/* The item that has the same text as particle i, or a new one. */
static int item_for(struct run *r, int i)
{
    struct phi *f = &r->phi;
    const struct seq *s = &r->p[i].seq;
    unsigned at = (unsigned)hash_tokens(s->own, s->n_own) & (unsigned)f->table_mask;
    for (; f->table[at] >= 0; at = (at + 1) & (unsigned)f->table_mask) {
        const struct phi_item *it = &f->item[f->table[at]];
        const struct seq *other = &r->p[it->particle].seq;
        if (it->n == s->n_own && memcmp(other->own, s->own, (size_t)it->n * sizeof *s->own) == 0)
            return f->table[at];
    }
    f->item[f->n_items] = (struct phi_item){.particle = i, .n = s->n_own};
    return f->table[at] = f->n_items++;
}

static void items_to_score(struct run *r)
{
    struct phi *f = &r->phi;
    for (int i = 0; i < r->k; i++) {
        f->item_of[i] = i;
        f->item[f->n_items++] = (struct phi_item){.particle = i, .n = r->p[i].seq.n_own};
    }
    const struct twist_choice *t = &r->job->twist;
    for (int i = 0; i < r->k && t->type == TWIST_POTENTIAL; i++)
        for (int n = t->every; n <= r->p[i].seq.n_own; n += t->every)
            f->item[f->n_items++] = (struct phi_item){.particle = i, .n = n};
}

void phi_items_of_population(struct run *r, bool drew_only)
{
    struct phi *f = &r->phi;
    f->n_items = 0;
    if (r->job->kind == JOB_SCORE) {
        items_to_score(r);
        return;
    }
    for (int i = 0; i <= f->table_mask; i++)
        f->table[i] = -1;
    for (int i = 0; i < r->k; i++)
        if (r->pop.status[i] != PARTICLE_DEAD && (!drew_only || r->p[i].drew))
            f->item_of[i] = item_for(r, i);
}

/* ---- branches
 * ------------------------------------------------------------------------------------------ */

static void ask(struct run *r, struct branch *b, int target)
{
    b->seq.target = target;
    b->seq.done = b->kv.n_tokens >= target;
    r->outstanding += !b->seq.done;
}

static void fork_from(struct run *r, struct branch *b, const struct seq *from, int n_tokens)
{
    int n = n_tokens < from->kv->n_tokens ? n_tokens : from->kv->n_tokens;
    kv_truncate(r->m->pool, &b->kv, 0);
    kv_fork(r->m->pool, &b->kv, from->kv, n);
}

static void put_answer(struct run *r, struct branch *b, const struct ids *ids)
{
    struct seq *s = &b->seq;
    s->n_own = b->n_context - s->n_head;
    memcpy(s->own + s->n_own, ids->id, (size_t)ids->n * sizeof *ids->id);
    s->n_own += ids->n;
    s->logp_from = b->n_context;
    s->logp_sum = 0;
    if (b->kv.n_tokens >= b->n_context)
        kv_truncate(r->m->pool, &b->kv,
                    b->n_context - 1); /* its row predicts the answer's first token */
    ask(r, b, seq_len(s) - 1);
}

static int refuse_judge(const struct run *r, const char *why, struct err *err)
{
    char param[40];
    snprintf(param, sizeof param, "potential[%d].template", r->phi.potential);
    return err_field(err, param, "filled in with a text, it %s", why);
}

/* Tokenise the judge's template around a text into the scratch list. */
static int judge_tokens(struct run *r, const char *text, size_t len, struct err *err)
{
    struct machine *m = r->m;
    buf_reset(&m->bytes);
    judge_fill(&m->bytes, asked(r), r->job->prompt, r->job->prompt_len, text, len);
    m->tokens.n = 0;
    int flags = TOKENIZE_START | (r->job->special ? TOKENIZE_SPECIAL : 0);
    if (tokenizer_encode(m->tokenizer, m->bytes.data ? m->bytes.data : "", m->bytes.len, flags,
                         &m->tokens, err) != 0)
        return -1;
    bool fits = m->tokens.n + judge_longest_answer(asked(r)) <= r->branch_cap;
    return fits ? 0 : refuse_judge(r, "has more tokens than there is room for", err);
}

static int begin_judge(struct run *r, struct branch *b, const struct phi_item *it, struct err *err)
{
    struct machine *m = r->m;
    const struct branch *donor = &r->phi.donor[r->phi.potential];
    buf_reset(&m->text);
    run_text(r, &r->p[it->particle], 0, it->n, &m->text);
    if (judge_tokens(r, m->text.data ? m->text.data : "", m->text.len, err) != 0)
        return -1;
    if (m->tokens.n == 0)
        return refuse_judge(r, "is empty", err);
    struct seq *s = &b->seq;
    s->n_head = 0;
    s->own_context = true;
    memcpy(s->own, m->tokens.ids, (size_t)m->tokens.n * sizeof *s->own);
    b->n_context = m->tokens.n;
    int same = 0;
    while (same < b->n_context - 1 && same < donor->seq.n_own &&
           s->own[same] == donor->seq.own[same])
        same++;
    s->base = &donor->seq;
    s->n_base = same;
    fork_from(r, b, &donor->seq, same);
    b->answer = 0;
    put_answer(r, b, &asked(r)->judge.answer[0]);
    return 0;
}

static void begin_continuation(struct run *r, struct branch *b, const struct phi_item *it)
{
    const struct seq *from = &r->p[it->particle].seq;
    struct seq *s = &b->seq;
    s->n_head = r->n_prompt;
    s->own_context = false;
    memcpy(s->own, from->own, (size_t)it->n * sizeof *s->own);
    b->n_context = r->n_prompt + it->n;
    s->base = &r->root;
    s->n_base = r->root.kv->n_tokens < b->n_context ? r->root.kv->n_tokens : b->n_context - 1;
    fork_from(r, b, from->kv->n_tokens > s->n_base ? from : &r->root, b->n_context - 1);
    put_answer(r, b, &asked(r)->continuation);
}

/* Hand waiting items to idle branches. */
static int hand_out(struct run *r, struct err *err)
{
    struct phi *f = &r->phi;
    for (int i = 0; i < f->n_branches; i++) {
        struct branch *b = &f->branch[i];
        if (b->item >= 0)
            continue;
        while (f->next < f->n_items && f->item[f->next].log_phi == -INFINITY)
            f->next++;
        if (f->next == f->n_items)
            return 0;
        b->item = f->next++;
        if (asked(r)->type == POTENTIAL_CONTINUATION)
            begin_continuation(r, b, &f->item[b->item]);
        else if (begin_judge(r, b, &f->item[b->item], err) != 0)
            return -1;
    }
    return 0;
}

/* A branch has its log p. Returns whether the item is settled. */
static bool take_answer(struct run *r, struct branch *b)
{
    const struct potential *p = asked(r);
    double value = b->seq.logp_sum;
    if (p->type == POTENTIAL_JUDGE) {
        b->answer_log_p[b->answer++] = value;
        if (b->answer < p->judge.n_answers) {
            put_answer(r, b, &p->judge.answer[b->answer]);
            return false;
        }
        value = b->answer_log_p[0];
        double all = smc_lse(b->answer_log_p, p->judge.n_answers);
        if (p->judge.n_answers > 1)
            value = all == -INFINITY ? -INFINITY : value - all;
    }
    r->phi.item[b->item].log_phi += potential_weigh(p->weight, value);
    b->item = -1;
    kv_truncate(r->m->pool, &b->kv, 0);
    return true;
}

/* ---- the course of an evaluation
 * ------------------------------------------------------------------------ */

static int begin_potential(struct run *r, struct err *err)
{
    struct phi *f = &r->phi;
    const struct job *j = r->job;
    while (f->potential < j->n_potentials && !potential_needs_model(asked(r)))
        f->potential++;
    if (phi_ended(r))
        return 0;
    f->next = 0;
    r->n_work = 0;
    r->outstanding = 0;
    struct branch *donor = &f->donor[f->potential];
    if (asked(r)->type == POTENTIAL_JUDGE && donor->seq.n_own == 0) {
        if (judge_tokens(r, "", 0, err) != 0)
            return -1;
        donor->seq.n_head = 0;
        donor->seq.n_own = r->m->tokens.n;
        memcpy(donor->seq.own, r->m->tokens.ids, (size_t)r->m->tokens.n * sizeof *donor->seq.own);
        r->work[r->n_work++] = &donor->seq;
        ask(r, donor, donor->seq.n_own);
        return 0;
    }
    for (int i = 0; i < f->n_branches; i++)
        r->work[r->n_work++] = &f->branch[i].seq;
    return hand_out(r, err);
}

/* Start with what needs no model; then the first potential that does. */
int phi_begin(struct run *r, struct err *err)
{
    struct phi *f = &r->phi;
    struct buf *text = &r->m->text;
    const struct job *j = r->job;
    for (int i = 0; i < f->n_items; i++) {
        struct phi_item *it = &f->item[i];
        const struct particle *p = &r->p[it->particle];
        buf_reset(text);
        run_text(r, p, 0, it->n, text);
        for (int k = 0; k < j->n_potentials; k++)
            if (!potential_needs_model(&j->potentials[k]))
                it->log_phi += potential_weigh(j->potentials[k].weight,
                                               potential_log_phi(&j->potentials[k],
                                                                 text->data ? text->data : "",
                                                                 text->len, p->seq.own, it->n));
    }
    f->potential = 0;
    r->outstanding = 0;
    return begin_potential(r, err);
}

/* All that was asked has been answered. */
int phi_advance(struct run *r, struct err *err)
{
    struct phi *f = &r->phi;
    bool settled = true;
    for (int i = 0; i < f->n_branches; i++) {
        struct branch *b = &f->branch[i];
        if (b->item >= 0 && !take_answer(r, b))
            settled = false;
    }
    if (!settled)
        return 0;
    if (r->work[0] == &f->donor[f->potential].seq) { /* the donor is ready: now its texts */
        r->n_work = 0;
        for (int i = 0; i < f->n_branches; i++)
            r->work[r->n_work++] = &f->branch[i].seq;
    }
    if (hand_out(r, err) != 0)
        return -1;
    for (int i = 0; i < f->n_branches; i++)
        if (f->branch[i].item >= 0)
            return 0;
    f->potential++;
    return begin_potential(r, err);
}
