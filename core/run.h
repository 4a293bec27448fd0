/* A running job: its population, what phase it is in, and what it owes. Internal to the engine.
 *
 *   root      the prompt, and inserted segments before the first hole, computed once
 *   draw      every live particle takes a token; then weigh, resample, say so; as long as one lives
 *   force     given tokens go into every particle: an observed segment, a completion to score
 *   phi       potentials are evaluated, on finished texts or (potential twist) on partial ones
 *   weigh     the population is to be weighed, together with those of other runs
 *   weighed   it has been, and resampled if need be; the run goes on from where it asked for it
 *   study     of a job made of jobs: its runs go through the phases above (study.h)
 *
 * A phase ends when all its sequences have got what they owe; run_advance then decides the next. A
 * population whose pages do not fit its account still runs: with intermediate weights, particles
 * that have drawn give up their cache and are computed again in the next step; without, the
 * population goes through in cohorts, as nothing couples it. */
#pragma once
#include "machine.h"
#include "smc.h"
#include "trace.h"

struct ticket { /* one accepted job; the engine's thread and those who cancel share it */
    uint64_t handle;
    atomic_bool cancelled;
    struct ticket *next;
};

enum run_phase {
    RUN_ROOT,
    RUN_DRAW,
    RUN_FORCE,
    RUN_PHI,
    RUN_WEIGH,
    RUN_WEIGHED,
    RUN_STUDY,
    RUN_ENDED,
};

struct particle {
    struct seq seq; /* own: all tokens after the prompt, inserted ones included */
    double log_p;   /* Σ log p0 of the drawn tokens */
    double log_obs; /* Σ log p0 of the observed tokens */
    double twist;   /* log ψ of the twist alone */
    int hole_start; /* in own */
    int n_total;    /* tokens drawn, in all holes */
    bool drew, stopped;
    struct propose_out drawn;
};

/* One text whose φ is wanted: the first n own tokens of a particle. */
struct phi_item {
    int particle, n;
    double log_phi;
};

/* A side text that asks the model about an item. */
struct branch {
    struct seq seq;
    struct kv_seq kv;
    int item;      /* -1: idle */
    int n_context; /* tokens before the answer */
    int answer;
    double *answer_log_p;
};

struct phi {
    struct phi_item *item; /* (n_items) */
    int n_items, next;
    int *item_of;           /* (k) which item is a particle's */
    int *table, table_mask; /* hash table of items by their tokens */
    int potential;          /* the model potential being asked; n_potentials: none left */
    struct branch *branch;
    int n_branches;
    struct branch *donor; /* (n_potentials) a judge's text so far as every text shares it */
};

struct run {
    struct machine *m;
    struct job *job;
    struct sink sink;
    struct trace *trace; /* NULL: nothing is written down */
    struct ticket *ticket;
    struct run *next; /* in the waiting queue */

    /* a study (study.h), and what its runs know of it */
    const struct study_ops *ops;        /* NULL: an ordinary run */
    void *study;                        /* ops' own */
    struct run *spawned, **spawned_end; /* its runs that are yet to join the waiting queue … */
    bool in_line;                       /* … where one of them is now */
    int sharing;                        /* runs that share its part of the step being collected */
    size_t twist_bytes;                 /* of twist memory it takes while it runs */
    bool asleep;
    atomic_bool awake;  /* set by any thread */
    struct run *parent; /* whose run this is; NULL: a client's own job */

    double submitted, admitted, first_draw;

    /* plan: made at submission */
    int k;             /* particles, or completions to score */
    int n_prompt, cap; /* own tokens of a particle, at most */
    int lead;          /* segments before the first hole */
    int n_holes;
    int n_branches, branch_cap;
    int *donor_len;          /* (n_potentials) */
    bool adapted;            /* the weight is known before the draw: resample first */
    bool coupled;            /* intermediate weights: the population steps as one */
    double ess_threshold;    /* the job's, or 0 where a learned twist must not be resampled on */
    struct twist_file twist; /* a learned twist that is named, as its file was at submission */
    int root_pages, particle_pages, quota;
    size_t host_bytes; /* of its arena while it runs, about */

    /* state */
    enum run_phase phase;
    bool
        root_complete; /* no segment is left for the root: it has drawn, or is ready to be forked */
    bool failed_sink;
    bool overflows; /* log ψ has been beyond all numbers */
    struct kv_account account;
    int32_t prior_slot;
    void *prior_memory; /* dev */
    struct prior prior;
    struct head *head;    /* taken; NULL: none, or the job's own */
    struct seq condition; /* of a conditional twist: .state is not NULL */
    struct kv_seq condition_kv;
    void *condition_memory; /* dev act (dim); NULL: none, or the trace's */
    struct seq root;
    struct kv_seq root_kv;
    double root_log_obs;
    struct particle *p; /* (k) */
    struct kv_seq *kv;  /* (k) the particles' tables, as kv_retable wants them */
    struct population pop;
    int cohort, cohort_end, cohort_size; /* particles in flight: [cohort, cohort_end) */
    int segment, hole;
    int t;          /* tokens drawn in this hole by a live particle */
    int clock_base; /* random-number step of the hole's first token */
    int n_steps;    /* draws so far, for events */
    int *active_at; /* (cap+1) live particles after each step, over cohorts */
    int max_steps;
    uint32_t n_weighings;
    struct smc_weighing weighing;               /* being asked for, or the last one */
    int (*then)(struct run *, struct err *err); /* goes on when that is done */
    int (*span)[2];                             /* (k, n_holes) own tokens of each hole */
    struct seq **work;                          /* sequences of the phase */
    int n_work, outstanding;
    struct phi phi;
    bool phi_final;
    /* scratch of population size */
    double *log_w, *weight, *log_phi;
    double *log_twist;          /* (cap) of one scored text */
    struct event_text *texts;   /* (k) with "particles" */
    struct event_hole *holes;   /* (n_holes) */
    struct event_token *tokens; /* (k) with ev_tokens */
};

/* Plan a job: sizes and page quota. HTTP thread. Refuses (ERR_INVALID) what could never fit. Takes
 * job and sink on success only. trace: to be filled as the run goes, the caller's, of its k and cap
 * or more; NULL: none. */
int run_open(struct run **out, struct machine *, struct job *take, struct sink, struct trace *,
             struct err *err);
void run_close(struct run *); /* frees the job too; releases all it holds; calls sink.closed */

bool run_fits(const struct run *);            /* now: pages, particles, slots, twist memory */
bool run_waits_for_study(const struct run *); /* for twist memory that a study has taken */
int run_admit(struct run *, struct err *err); /* take them and begin */
/* A job's prior on the device, and the memory of its lists (dev, the caller's to release). -1: the
 * device failed. */
int run_prior_open(struct machine *, const struct job *, struct prior *out, void **memory);
int run_collect(struct run *, int budget); /* rows it adds to the step */
bool run_drop_cache(struct run *,
                    struct seq *); /* down to what its base gives; whether that freed pages */
void run_delivered(struct run *, struct seq *); /* one of its sequences has got all it owed */
/* Nothing outstanding: next phase. Stops where rows are owed again, or at RUN_WEIGH. */
int run_advance(struct run *, struct err *err);
/* Weigh and resample those of n runs that ask for it, and draw again what has to be, all together;
 * they are to be advanced then. Returns how many they were, or -1: the device failed. */
int run_weigh(struct machine *, struct run *const *, int n, struct err *err);

/* say.c */
void run_say(struct run *, const struct event *);
void run_say_start(struct run *);
void run_say_step(struct run *, int active, double ess, double log_z);
void run_say_resample(struct run *, double ess);
void run_say_tokens(struct run *);                   /* those that were just drawn */
void run_say_sample(struct run *, int i, int index); /* particle i, under this index */
void run_say_done(struct run *, double log_z, double ess, int64_t tokens); /* and the end */
void run_fail(struct run *, const struct err *); /* error event, and the end, if it is not over */
/* The text of own tokens [from, to), appended to out. Uses the machine's `bytes` scratch. */
void run_text(struct run *, const struct particle *, int from, int to, struct buf *out);

/* c_t of a learned twist, t = 1.. tokens into the hole: log ψ_t = what its head says + c_t. */
double run_calibration(const struct run *, int t);

static inline int judge_longest_answer(const struct potential *p)
{
    int n = 0;
    for (int i = 0; i < p->judge.n_answers; i++)
        n = p->judge.answer[i].n > n ? p->judge.answer[i].n : n;
    return n;
}

/* phi.c */
void phi_prepare(struct run *);
int phi_begin(struct run *, struct err *err); /* phi.item is filled; leaves work, or has ended */
bool phi_ended(const struct run *);
int phi_advance(struct run *, struct err *err);
void phi_items_of_population(struct run *, bool drew_only);

/* score.c */
/* Own token t. top: the row's likeliest tokens, as the operation `top` has them, or NULL. */
void score_token(struct run *, struct seq *, int t, const struct propose_out *,
                 const struct top_token *top);
void score_finish(struct run *); /* JOB_SCORE: all is known; says it, and ends */

/* trace.c: into the run's trace, if it has one */
void run_trace_token(struct run *, int i);             /* particle i has taken a token */
void run_trace_lineage(struct run *, int i, int from); /* slot i takes over a lineage */
void run_trace_cloud(struct run *);                    /* all have */
void run_trace_end(struct run *);                      /* log_w and log_phi are known */
void run_trace_score(struct run *, const struct seq *, int t, const struct propose_out *);
void run_trace_scores(struct run *); /* phi.item has φ of all texts */
