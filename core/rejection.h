/* Exact draws of σ by rejection: draws of the prior p0, each accepted with probability φ. For
 * studies; the engine's thread. */
#pragma once
#include "study.h"

struct rejection;

/* The job's potentials and targets.max_draws; stops at `wanted`. Lives in the study's arena. */
struct rejection *rejection_new(struct run *study, int wanted);

/* To be called whenever none of the study's runs is left. 1: populations of p0 have been spawned;
 * 0: it is over; -1: φ is no probability (ERR_INVALID, "targets"). */
int rejection_advance(struct rejection *, struct err *err);

/* What has been found: *n whole texts, at most `wanted`. They are the same for the same seed. */
struct ids *rejection_found(const struct rejection *, int *n);
int64_t rejection_tokens(const struct rejection *); /* drawn so far */
