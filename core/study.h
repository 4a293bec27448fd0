/* Jobs made of jobs: bounds and learning have no rows of their own, but spawn ordinary runs, which
 * share the steps with everyone's, and look at what these say. A study has no particles, pages or
 * prior, so that its runs are never kept waiting by it; `outstanding` of its run counts the runs it
 * has spawned, and its sleep. Internal to the engine. */
#pragma once
#include "run.h"
#include "trace.h"

enum { MAX_STUDIES = 256 }; /* at once; those that wait for a place are passed by in the line */

/* What a kind of study does; run->study is its own state, in the run's arena or freed by close. */
struct study_ops {
    int (*plan)(struct run *, struct err *);    /* HTTP thread: refuse what could never fit. Takes
                                                   nothing but arena memory: a planned job may still
                                                   be refused, and close is not called then */
    int (*begin)(struct run *, struct err *);   /* admitted: spawn the first runs */
    int (*advance)(struct run *, struct err *); /* none of its runs is left: take what they found,
                                                   spawn more, or set phase = RUN_ENDED */
    void (*close)(struct run *); /* also after a failure or a cancellation, begun or not; its runs
                                    are closed already */
};
extern const struct study_ops bounds_ops, learn_ops, complete_ops;

/* Run a job for a study. It queues behind those already waiting (of a study's runs one at a time,
 * so that others get their turn), is cancelled with its parent, and is counted in no statistics of
 * jobs. The sink is called on the engine's thread during a step and its user data must live until
 * `closed`; it may spawn. A nonzero return ends this run alone. EVENT_ERROR there is the study's to
 * pass on (run_fail). Once the parent has ended or is cancelled, its runs end without a word but
 * `closed`. trace, or NULL, is filled as the run goes and complete at EVENT_DONE. A job that could
 * never fit is refused at once, its sink untouched. Takes the job in any case. */
int study_spawn(struct run *parent, struct job *take, struct sink, struct trace *, struct err *err);

/* Whether such a job could ever be run, for `plan`. Takes the job. */
int study_check(struct run *parent, struct job *take, struct err *err);

/* A job like the parent's - model, prior, potentials and twist (borrowed, so the parent must
 * outlive it), resampling and particles, one hole - with one of the parent's own seeds: number n
 * gives the n-th; numbers from STUDY_SEED_REJECTION on are rejection.h's. Says nothing but its end;
 * JOB_SCORE: completions are the caller's to set. */
#define STUDY_SEED_REJECTION ((uint64_t)1 << 63)
struct job *study_job(const struct run *parent, enum job_kind, uint64_t n);

/* Refuse given targets that no draw of σ could be: not a whole text, or φ = 0 by the potentials
 * that need no model. For `plan`. */
int study_check_targets(const struct run *, struct err *err);

/* Wait, without blocking the engine, for something another thread does: `advance` is called again
 * after study_awake was called from there, once for each sleep; it may come before the sleep. By
 * the end of `close` that thread must be done with the run. */
void study_sleep(struct run *);
void study_awake(struct run *);

/* For run_open, run_admit and run_close. */
const struct study_ops *study_ops_of(enum job_kind); /* NULL: an ordinary run */
int study_plan(struct run *, struct err *err);
int study_admit(struct run *, struct err *err);
void study_close(struct run *);

/* For the engine's thread. */
static inline bool study_has_runs(const struct run *r)
{
    return r->ops && r->outstanding > r->asleep;
}
static inline bool study_is_asleep(const struct run *r) /* and nothing else is going on in it */
{
    return r->asleep && r->outstanding == 1 && !atomic_load(&r->awake);
}
void study_rouse(struct run *); /* if it has been awoken */
