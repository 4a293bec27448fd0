/* The population of one request: K particles, their log-weights, and when and how they are
 * resampled. The mathematics of twisted SMC (Zhao et al., ICML 2024) in the untwisted form: a
 * particle carries L, its proper log-weight with respect to the prior p0 alone, and lpsi, the log
 * of its current twist; resampling goes by the priority L + log ψ and corrects L for it, so that
 * late, re-scaled or approximate twists never bias anything, and log Ẑ = log (1/K) Σ_k exp(L_k +
 * log φ_k) needs no second accumulator. Pure: no model, no text, no clock. Its numbers are the
 * host's; the device weighs and resamples. The engine thread is its sole user. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "../kernels/backend.h"
#include "arena.h"
#include "err.h"

enum particle_status {
    PARTICLE_LIVE, /* takes tokens */
    PARTICLE_DONE, /* finished (EOS, stop string, length): stays in every resampling, takes no
                      tokens */
    PARTICLE_DEAD, /* weight 0 */
};

struct population {
    int k;
    double *L;      /* (k) log-weight with respect to p0; -inf when dead */
    double *lpsi;   /* (k) log ψ of the current text */
    double *lambda; /* (k) log Λ of a live particle's next token: Σ_v p0 ψ, with ψ absolute (lpsi
                       included) */
    uint8_t *status;   /* (k) enum particle_status */
    int32_t *ancestor; /* (k) of the last smc_weigh */
    double *log_rho;   /* (k) its normalised log priorities */
    /* the request's wishes */
    enum resample_scheme scheme;
    double ess_threshold; /* exactly 0: never, exactly 1: always */
    bool pinned;
    uint64_t seed;
};

/* All live, L = lpsi = 0. The arrays live in the arena. */
void smc_init(struct population *, struct arena *, int k, enum resample_scheme,
              double ess_threshold, uint64_t seed);

/* What to weigh by. */
enum smc_priority {
    SMC_BY_TWIST,  /* L + lpsi: after the draw */
    SMC_BY_LAMBDA, /* live: L + lambda, the weight that is known before the draw; done: L + lpsi */
};

struct smc_stats {
    double log_mean; /* log (1/K) Σ exp(priority): the running estimate of log Z */
    double ess;
    bool resampled;
};

/* A population to be weighed, and resampled if it may be and its ESS asks for it. When resampled:
 * ancestor tells where each slot's particle came from (survivors keep their slot), and L, lpsi,
 * lambda, status are already those of the ancestors with L corrected: L'[j] = L[a] - log K -
 * log rho[a]. */
struct smc_weighing {
    struct population *population;
    enum smc_priority by;
    bool may_resample;
    uint32_t step;          /* makes the random numbers of this weighing its own */
    struct smc_stats stats; /* out */
};

/* Where the device weighs populations, all of a call at once. */
struct smc_device {
    struct backend *b;
    void *dev, *host;           /* their arrays, there and on their way */
    struct resample_args *args; /* (max_populations) */
    int max_particles, max_populations;
};
/* For so many populations, of so many particles in all. What a failure leaves is
 * smc_device_close's. */
int smc_device_open(struct smc_device *, struct backend *, int max_particles, int max_populations,
                    struct err *err);
void smc_device_close(struct smc_device *);

/* Weigh n different populations, in one operation; n may be 0. What a population gets does not
 * depend on the others. -1: the device failed. */
int smc_weigh(struct smc_device *, struct smc_weighing *const *, int n, struct err *err);

/* Particle i took a token: L += log p0 - log q, lpsi = the text's new log ψ. A token that the prior
 * or the proposal makes impossible kills it; an lpsi of -inf does not, but such a particle has no
 * children when it is next weighed. */
void smc_extend(struct population *, int i, double log_p0, double log_q, double lpsi);

/* The end: log_w[i] = L[i] + log_phi[i] (-inf when dead), weight = log_w normalised (all 0 if all
 * are dead), ESS of the weights. Returns log Ẑ (-inf if all are dead). */
double smc_finish(const struct population *, const double *log_phi, double *log_w, double *weight,
                  double *ess);

/* log Σ exp x, -inf for none; and the ESS exp(2 LSE(x) - LSE(2x)), 0 if all are -inf. */
double smc_lse(const double *x, int n);
double smc_ess(const double *x, int n);

/* n draws from a weighted population by a resampling scheme: indices into it, for callers that
 * return unweighted samples. weight as smc_finish gives it (all 0 when all are dead: then index is
 * 0 throughout); counter purpose PHILOX_CHOICE. */
void smc_choose(const double *weight, int k, enum resample_scheme, uint64_t seed, int n,
                int32_t *index);
