/* The losses of twist learning (Zhao et al. 2024, section 4 and appendix), as numbers: from what a
 * run wrote down, the gradient of the loss with respect to each entry's head output. Pure, in
 * double. All losses average over t = 1..t_max. */
#pragma once
#include "err.h"
#include "trace.h"
#include "twist.h"

/* log φ = -∞ as a target of regression (rl): the paper's code has log 1e-16 too. */
#define LOG_PHI_FLOOR (-36.841361487904734)

/* Entries' d loss / d output, parallel to trace.entry; those of tokens that were not drawn are 0.
 * For fudge the output is z with log ψ = log sigmoid(z); else it is log ψ. For dpg it is the
 * coefficient c of the row's whole gradient c (q(v) - [v = token]). */
struct loss_grad {
    double *q, *base, *exact; /* (t_max k) each, of the traces given; NULL where that is NULL */
};

/* q: draws from the twist-induced proposal. base: draws from p0 (sixo, fudge). exact: given exact
 * draws of σ (ctl, sixo, dpg take their positives there; rl adds them). A trace that the method
 * does not use is NULL. Returns the loss. Everyone dead: all gradients 0, loss 0.
 *   ctl    -(1/T) Σ_t [ Σ_k W^k x_t^k - Σ_k ω_t^k x_t^k ],  W final weights, ω_t = softmax
 * cloud_log_w rl     (1/T) Σ_t mean_k (x_t - y_t)²,  y_t = Λ_{t+1} of the next row, log φ at the
 * end sixo   -(1/T) Σ_t [ Σ_k W^k log sigmoid(x_t) + mean_{p0} log(1 - sigmoid(x_t)) ] fudge  (1/T)
 * Σ_t mean_{p0} BCE(sigmoid(z_t), φ) dpg    -(1/T) Σ_t Σ_k W^k log q(s_t | s_<t) */
double loss_gradient(enum twist_method, const struct trace *q, const struct trace *base,
                     const struct trace *exact, struct loss_grad *out);

/* Which traces a method wants. */
struct loss_needs {
    bool q, base;
};
struct loss_needs loss_needs(enum twist_method, bool has_exact);

/* Calibration (psi_t's scales made those of the final φ): out (t_max), so that with log ψ_t +=
 * out[t] the normaliser of π_t is that of σ for all t: backwards over t on particles that are live,
 * finished children scored with φ. From one or several traces' clouds. A t that nothing is known
 * of gets its successor's value. */
void loss_calibration(const struct trace *const *trace, int n, float *out);
