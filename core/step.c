/* One step of work: rows in, probabilities out. See machine.h. */
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

static void add_row(struct machine *m, struct run *run, struct seq *s, int pos, int32_t slot)
{
    struct batch *b = &m->batch;
    int i = b->n++;
    b->token[i] = seq_token(s, pos);
    b->pos[i] = pos;
    b->slot[i] = slot;
    b->seq[i] = b->n_seq;
    bool draw = wants_draw(s, pos);
    if (!draw && !wants_log_p(s, pos))
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

static int add_draws(struct machine *m, int n, const struct run *run, const struct seq *s, int pos)
{
    int32_t forced = pos + 1 < seq_len(s) ? seq_token(s, pos + 1) : -1;
    int count = forced >= 0 ? 1 : s->fan_out;
    for (int i = 0; i < count; i++)
        m->draws[n + i] = (struct propose_draw){
            .seed = run->job->seed,
            .step = (uint32_t)(run->clock_base + run->t),
            .particle = (uint32_t)(s->particle + i),
            .forced = forced,
        };
    return count;
}

static void deliver(struct machine *m, const struct want *w, const struct propose_out *out)
{
    struct run *run = w->run;
    struct seq *s = w->seq;
    int next = w->pos + 1;
    if (next < seq_len(s)) {
        s->logp_sum += out->log_p0;
        s->logq_sum += out->log_q;
        s->logp_from = next + 1;
        if (s->logp && next >= s->n_head)
            s->logp[next - s->n_head] = out->log_p0;
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
    int n_draws = 0;
    for (int i = 0; i < b->n_out; i++) {
        const struct want *w = &m->want[i];
        m->rows[i] = (struct propose_row){
            .prior = w->run->prior_slot,
            .twist = -1,
            .ban_eos = bans_eos(w->run, w->seq, w->pos + 1),
            .first_draw = n_draws,
        };
        m->rows[i].n_draws = add_draws(m, n_draws, w->run, w->seq, w->pos);
        n_draws += m->rows[i].n_draws;
    }
    if (n_draws == 0)
        return 0;
    if (model_propose(m->model, b->out_hidden, m->rows, b->n_out, m->draws, n_draws, m->priors,
                      m->out, err) != 0)
        return -1;
    for (int i = 0; i < b->n_out; i++)
        deliver(m, &m->want[i], m->out + m->rows[i].first_draw);
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
    if (model_forward(m->model, &m->batch, err) != 0 || propose(m, err) != 0)
        return -1;
    for (int i = 0; i < m->n_collected; i++) {
        struct collected *c = &m->collected[i];
        if (!c->seq->done && c->seq->kv->n_tokens >= c->seq->target)
            run_delivered(c->run, c->seq);
    }
    return 0;
}

int step_redraw(struct machine *m, struct run *run, const struct seq *const *parent,
                const int *particle, int n, struct err *err)
{
    int n_rows = 0;
    int32_t *hidden = m->slots;
    for (int i = 0; i < n; i++) {
        if (n_rows == 0 || parent[i] != parent[i - 1]) {
            CHECK(n_rows < m->batch.max_rows && parent[i]->hidden >= 0);
            hidden[n_rows] = m->batch.max_rows + parent[i]->hidden;
            m->rows[n_rows++] = (struct propose_row){
                .prior = run->prior_slot,
                .twist = -1,
                .ban_eos = bans_eos(run, parent[i], seq_len(parent[i])),
                .first_draw = i,
            };
        }
        m->rows[n_rows - 1].n_draws++;
        m->draws[i] = (struct propose_draw){
            .seed = run->job->seed,
            .step = (uint32_t)(run->clock_base + run->t),
            .particle = (uint32_t)particle[i],
            .forced = -1,
        };
    }
    return model_propose(m->model, hidden, m->rows, n_rows, m->draws, n, m->priors, m->out, err);
}
