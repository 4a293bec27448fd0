/* Jobs made of jobs: bounds and learning have no rows of their own, but spawn ordinary runs, which
 * share the steps with everyone's, and look at what these say. Internal to the engine. */
#pragma once
#include "run.h"
#include "trace.h"

/* What a kind of study does; run->study is its own state, in the run's arena or freed by close. */
struct study_ops {
    int (*plan)(struct run *, struct err *);    /* HTTP thread: refuse what could never fit */
    int (*begin)(struct run *, struct err *);   /* admitted: spawn the first runs */
    int (*advance)(struct run *, struct err *); /* none of its runs is left: take what they found,
                                                   spawn more, or set phase = RUN_ENDED */
    void (*close)(struct run *); /* also after a failure or a cancellation, begun or not */
};
extern const struct study_ops bounds_ops, learn_ops;

/* Run a job for a study. It queues behind those already waiting, is cancelled with its parent, and
 * is counted in no statistics of jobs. The sink is called on the engine's thread during a step and
 * its user data must live until `closed`; EVENT_ERROR there is the study's to pass on (run_fail).
 * trace, or NULL, is filled as the run goes and complete at EVENT_DONE. A job that could never fit
 * is refused at once. Takes the job in any case. */
int study_spawn(struct run *parent, struct job *take, struct sink, struct trace *, struct err *err);

/* A job like the parent's - model, prior, potentials and twist (borrowed, so the parent must
 * outlive it), one hole - with one of the parent's own seeds: number n gives the n-th. */
struct job *study_job(const struct run *parent, enum job_kind, uint64_t n);

/* Wait, without blocking the engine, for something another thread does: `advance` is called again
 * after study_awake was called from there. */
void study_sleep(struct run *);
void study_awake(struct run *);
