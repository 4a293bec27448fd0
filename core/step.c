/* One step of work: rows in, probabilities out. See machine.h. */
#include <math.h>
#include <string.h>
#include <time.h>

#include "machine.h"
#include "run.h"

double seconds_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static bool wants_log_p(const struct seq *s, int pos)
{
    return pos + 1 < seq_len(s) && pos + 1 >= s->logp_from;
}

static bool wants_draw(const struct seq *s, int pos)
{
    return s->fan_out > 0 && pos == seq_len(s) - 1;
}

static bool wants_state(const struct seq *s, int pos)
{
    return s->state && pos == seq_len(s) - 1;
}

static void add_row(struct machine *m, struct run *run, struct seq *s, int pos, int32_t slot)
{
    struct batch *b = &m->batch;
    int i = b->n++;
    b->token[i] = seq_token(s, pos);
    b->pos[i] = pos;
    b->slot[i] = slot;
    b->seq[i] = b->n_seq;
    bool draw = wants_draw(s, pos);
    if (!draw && !wants_log_p(s, pos) && !wants_state(s, pos))
        return;
    int o = b->n_out++;
    b->out_row[o] = i;
    b->out_hidden[o] = draw && s->hidden >= 0 ? b->max_rows + s->hidden : o;
    m->want[o] = (struct want){run, s, pos};
}

int step_add(struct machine *m, struct run *run, struct seq *s, int budget)
{
    struct batch *b = &m->batch;
    int first = s->kv->n_tokens, n = s->target - first;
    n = n < budget ? n : budget;
    if (n <= 0)
        return 0;
    int32_t from, to;
    if (kv_append(m->pool, s->kv, n, m->slots, &from, &to) != 0)
        return 0;
    if (from >= 0) {
        b->cow_from[b->n_cow] = from;
        b->cow_to[b->n_cow++] = to;
    }
    for (int i = 0; i < n; i++)
        add_row(m, run, s, first + i, m->slots[i]);
    int start = b->page_start[b->n_seq];
    memcpy(b->page + start, s->kv->page, (size_t)s->kv->n_pages * sizeof *b->page);
    b->page_start[++b->n_seq] = start + s->kv->n_pages;
    if (s->in_step != m->step)
        m->collected[m->n_collected++] = (struct collected){run, s};
    s->in_step = m->step;
    return n;
}

/* EOS has probability 0 in the row that predicts position pos. */
static bool bans_eos(const struct run *run, const struct seq *s, int pos)
{
    return run->job->ignore_eos || (!s->own_context && pos - run->n_prompt < run->job->min_tokens);
}

/* ---- hidden states that outlive the step ---- */

static void copy_hidden(struct machine *m, int32_t hidden, void *to, int row)
{
    int i = m->n_copies++;
    m->copy_from[i] = hidden;
    m->copy_to[i] = to;
    m->copy_row[i] = row;
}

/* The row that predicts token t of the text of particle i. */
static void trace_hidden(struct machine *m, const struct run *run, int32_t hidden, int t, int i)
{
    if (run->trace)
        copy_hidden(m, hidden, run->trace->hidden, t * run->k + i);
}

static int run_copies(struct machine *m, struct err *err)
{
    int n = m->n_copies;
    m->n_copies = 0;
    return n ? model_copy_hidden(m->model, m->copy_from, m->copy_to, m->copy_row, n, err) : 0;
}

static int keep_hidden(struct machine *m, struct err *err)
{
    const struct batch *b = &m->batch;
    for (int o = 0; o < b->n_out; o++) {
        const struct want *w = &m->want[o];
        const struct seq *s = w->seq;
        if (wants_state(s, w->pos))
            copy_hidden(m, b->out_hidden[o], s->state, 0);
        else if (wants_draw(s, w->pos))
            for (int i = 0; i < s->fan_out; i++)
                trace_hidden(m, w->run, b->out_hidden[o], w->run->t, s->particle + i);
        else if (s->scored)
            trace_hidden(m, w->run, b->out_hidden[o], w->pos + 1 - s->n_head, s->particle);
    }
    return run_copies(m, err);
}

/* ---- asking ---- */

static struct model_twist twist_of(const struct run *run)
{
    return (struct model_twist){run->job->twist.head, run->condition.state};
}

static int32_t pinned_token(const struct run *run, int particle)
{
    const struct ids *text = run->job->pinned;
    if (!text || particle != 0)
        return -1;
    CHECK(run->t < text->n);
    return text->id[run->t];
}

static struct propose_draw draw_of(const struct run *run, int particle, int32_t forced)
{
    return (struct propose_draw){
        .seed = run->job->seed,
        .step = (uint32_t)(run->clock_base + run->t),
        .particle = (uint32_t)particle,
        .forced = forced,
    };
}

static int add_draws(struct machine *m, int n, const struct run *run, const struct seq *s, int pos)
{
    if (!wants_draw(s, pos)) {
        m->draws[n] = draw_of(run, s->particle, seq_token(s, pos + 1));
        return 1;
    }
    for (int i = 0; i < s->fan_out; i++)
        m->draws[n + i] = draw_of(run, s->particle + i, pinned_token(run, s->particle + i));
    return s->fan_out;
}

static void deliver(struct machine *m, const struct want *w, const struct propose_out *out,
                    const struct top_token *top)
{
    struct run *run = w->run;
    struct seq *s = w->seq;
    int next = w->pos + 1;
    run->overflows |= !(out->lambda < INFINITY); /* NaN is beyond them, too */
    if (next < seq_len(s)) {
        s->logp_sum += out->log_p0;
        s->logq_sum += out->log_q;
        s->logp_from = next + 1;
        if (s->logp && next >= s->n_head)
            s->logp[next - s->n_head] = out->log_p0;
        if (s->scored)
            score_token(run, s, next - s->n_head, out, top);
        m->stats.forced_tokens++;
        return;
    }
    for (int i = 0; i < s->fan_out; i++) {
        run->p[s->particle + i].drawn = out[i];
        run->p[s->particle + i].drew = true;
    }
    m->stats.sampled_tokens += (uint64_t)s->fan_out;
}

static int propose(struct machine *m, struct err *err)
{
    const struct batch *b = &m->batch;
    struct model_ask ask = {
        .hidden = m->hidden,
        .rows = m->rows,
        .twist = m->twists,
        .draws = m->draws,
        .priors = m->priors,
        .top_out = m->top,
    };
    for (int o = 0; o < b->n_out; o++) {
        const struct want *w = &m->want[o];
        if (wants_state(w->seq, w->pos))
            continue;
        int i = ask.n_rows++;
        ask.top = w->run->job->top > ask.top ? w->run->job->top : ask.top;
        m->want[i] = *w; /* those that ask nothing drop out */
        m->hidden[i] = b->out_hidden[o];
        /* log p of texts is the prior's alone; draws and scored tokens are the proposal's */
        bool proposed = w->seq->scored || wants_draw(w->seq, w->pos);
        m->twists[i] = proposed ? twist_of(w->run) : (struct model_twist){0};
        m->rows[i] = (struct propose_row){
            .prior = w->run->prior_slot,
            .ban_eos = bans_eos(w->run, w->seq, w->pos + 1),
            .first_draw = ask.n_draws,
        };
        m->rows[i].n_draws = add_draws(m, ask.n_draws, w->run, w->seq, w->pos);
        ask.n_draws += m->rows[i].n_draws;
    }
    if (ask.n_rows == 0)
        return 0;
    if (model_propose(m->model, &ask, m->out, err) != 0)
        return -1;
    for (int i = 0; i < ask.n_rows; i++)
        deliver(m, &m->want[i], m->out + m->rows[i].first_draw, m->top + i * (1 + ask.top));
    return 0;
}

static void count_rows(struct engine_stats *s, int n)
{
    s->steps++;
    s->rows += (uint64_t)n;
    int bucket = 0;
    while (bucket < ROWS_BUCKETS - 1 && n > 1 << bucket)
        bucket++;
    s->rows_histogram[bucket]++;
}

int step_run(struct machine *m, struct err *err)
{
    if (m->batch.n == 0)
        return 0;
    count_rows(&m->stats, m->batch.n);
    if (model_forward(m->model, &m->batch, err) != 0 || keep_hidden(m, err) != 0 ||
        propose(m, err) != 0)
        return -1;
    for (int i = 0; i < m->n_collected; i++) {
        struct collected *c = &m->collected[i];
        if (!c->seq->done && c->seq->kv->n_tokens >= c->seq->target)
            run_delivered(c->run, c->seq);
    }
    return 0;
}

static int redraw_some(struct machine *m, const struct redraw *list, int n, struct err *err)
{
    const struct seq *parent = NULL;
    struct model_ask ask = {
        .hidden = m->hidden,
        .rows = m->rows,
        .twist = m->twists,
        .draws = m->draws,
        .n_draws = n,
        .priors = m->priors,
    };
    for (int i = 0; i < n; i++) {
        const struct run *run = list[i].run;
        const struct seq *s = &run->p[run->pop.ancestor[list[i].particle]].seq;
        int32_t hidden = m->batch.max_rows + s->hidden;
        if (s != parent) {
            CHECK(s->hidden >= 0);
            m->hidden[ask.n_rows] = hidden;
            m->twists[ask.n_rows] = twist_of(run);
            m->rows[ask.n_rows++] = (struct propose_row){
                .prior = run->prior_slot,
                .ban_eos = bans_eos(run, s, seq_len(s)),
                .first_draw = i,
            };
        }
        parent = s;
        m->rows[ask.n_rows - 1].n_draws++;
        m->draws[i] = draw_of(run, list[i].particle, -1);
        trace_hidden(m, run, hidden, run->t, list[i].particle);
    }
    return run_copies(m, err) != 0 ? -1 : model_propose(m->model, &ask, m->out, err);
}

int step_redraw(struct machine *m, struct err *err)
{
    for (int first = 0, n; first < m->n_redraws; first += n) {
        const struct redraw *list = m->redraws + first;
        n = m->n_redraws - first;
        n = n < m->batch.max_rows ? n : m->batch.max_rows;
        if (redraw_some(m, list, n, err) != 0)
            return -1;
        for (int i = 0; i < n; i++)
            list[i].run->p[list[i].particle].drawn = m->out[i];
        m->stats.sampled_tokens += (uint64_t)n;
    }
    m->n_redraws = 0;
    return 0;
}
