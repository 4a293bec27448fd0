#include "trace.h"

#include <math.h>
#include <string.h>

#include "run.h"

void trace_init(struct trace *t, struct arena *arena, int k, int t_max)
{
    size_t cells = (size_t)k * (size_t)t_max;
    *t = (struct trace){
        .k = k,
        .t_max = t_max,
        .entry = ARENA_NEW(arena, struct trace_entry, cells),
        .cloud = ARENA_NEW(arena, int32_t, cells),
        .cloud_log_w = ARENA_NEW(arena, double, cells),
        .cloud_L = ARENA_NEW(arena, double, cells),
        .history = ARENA_NEW(arena, int32_t, cells),
        .n_history = ARENA_NEW(arena, int, k),
        .log_w = ARENA_NEW(arena, double, k),
        .log_phi = ARENA_NEW(arena, double, k),
    };
}

/* ---- what a run writes down ---- */

/* Entry t of slot i, with which text i goes on. Its hidden row was written when it was drawn
 * (step.c), also where it was drawn from another slot's. */
static void add_entry(struct trace *t, int at, int i, const struct propose_out *o, bool ended)
{
    int32_t e = at * t->k + i;
    t->entry[e] = (struct trace_entry){.token = o->token,
                                       .ended = ended,
                                       .log_p0 = o->log_p0,
                                       .log_q = o->log_q,
                                       .log_psi = o->log_psi,
                                       .lambda = o->lambda};
    t->history[i * t->t_max + t->n_history[i]++] = e;
}

void run_trace_token(struct run *r, int i)
{
    if (r->trace)
        add_entry(r->trace, r->t, i, &r->p[i].drawn, r->pop.status[i] == PARTICLE_DONE);
}

void run_trace_lineage(struct run *r, int i, int from)
{
    struct trace *t = r->trace;
    if (!t)
        return;
    t->n_history[i] = t->n_history[from];
    memcpy(t->history + i * t->t_max, t->history + from * t->t_max,
           (size_t)t->n_history[i] * sizeof *t->history);
}

void run_trace_cloud(struct run *r)
{
    struct trace *t = r->trace;
    if (!t)
        return;
    for (int i = 0, at = r->t * t->k; i < t->k; i++, at++) {
        bool dead = r->pop.status[i] == PARTICLE_DEAD;
        t->cloud[at] = dead ? -1 : t->history[i * t->t_max + t->n_history[i] - 1];
        t->cloud_L[at] = dead ? -INFINITY : r->pop.L[i];
        t->cloud_log_w[at] = dead ? -INFINITY : r->pop.L[i] + r->pop.lpsi[i];
    }
    t->n_steps = r->t + 1;
}

void run_trace_end(struct run *r)
{
    struct trace *t = r->trace;
    if (!t)
        return;
    memcpy(t->log_w, r->log_w, (size_t)t->k * sizeof *t->log_w);
    memcpy(t->log_phi, r->log_phi, (size_t)t->k * sizeof *t->log_phi);
}

void run_trace_score(struct run *r, const struct seq *s, int t, const struct propose_out *out)
{
    if (r->trace)
        add_entry(r->trace, t, s->particle, out, t + 1 == s->n_own);
}

void run_trace_scores(struct run *r)
{
    for (int i = 0; r->trace && i < r->k; i++)
        r->trace->log_phi[i] = r->phi.item[i].log_phi;
}
