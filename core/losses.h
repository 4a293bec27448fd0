/* The losses of twist learning (Zhao et al. 2024, section 4 and appendix C), as numbers: from what
 * runs wrote down, the gradient of the loss with respect to each entry's head output. Pure, in
 * double.
 *
 * Texts are thought of as T = t_max tokens long, with padding behind an early end: there log ψ_t
 * stays what it was at the text's last token, so that entry gets the gradient of every later t as
 * well. What was drawn and what a loss compares with - weights W and ω, targets y, the q of an
 * expectation under q - are numbers that carry no gradient. */
#pragma once
#include "trace.h"
#include "twist.h"

/* log φ = -∞ as a target of regression (rl): the paper's code has log 1e-16 too. */
#define LOG_PHI_FLOOR (-36.841361487904734)

/* Entries' d loss / d output, parallel to trace.entry; those of tokens in no text are 0.
 * For fudge the output is z with log ψ = log sigmoid(z); else it is log ψ. For dpg it is the
 * coefficient c of the row's whole gradient c (q(v) - [v = token]). */
struct loss_grad {
    double *q, *base, *exact; /* (t_max k) each, of the traces given; NULL where that is NULL */
};

/* q: draws from the twist-induced proposal. base: draws from p0, never resampled (sixo, fudge).
 * exact: exact draws of σ (ctl, sixo, dpg take their positives there; rl adds them). A trace that
 * loss_needs does not name is ignored. Returns the loss, with x_t = log ψ_t(s_1:t) and Σ_+ the mean
 * over exact draws, or without any Σ_k W^k over q's, W its final weights:
 *   ctl    -(1/T) Σ_t [ Σ_+ x_t - Σ_k ω_t^k x_t^k ],  ω_t = softmax of q's cloud_log_w
 *   rl      (1/T) Σ_t mean_k (x_t - y_t)²,  y_t = Λ_{t+1} of the next row, log φ at the end
 *   sixo   -(1/T) Σ_t [ Σ_+ log sigmoid(x_t) + mean_{p0} log(1 - sigmoid(x_t)) ]
 *   fudge   (1/T) Σ_t mean_{p0} BCE(sigmoid(z_t), φ)
 *   dpg    -(1/T) Σ_t Σ_+ log q(s_t | s_<t)
 * Without a positive (all of q's W are 0) ctl, sixo and dpg are 0, and so are their gradients. */
double loss_gradient(enum twist_method, const struct trace *q, const struct trace *base,
                     const struct trace *exact, struct loss_grad *out);

/* Which traces a method wants. */
struct loss_needs {
    bool q, base;
};
struct loss_needs loss_needs(enum twist_method, bool has_exact);

/* What a population knows of the scales of ψ, for loss_calibration; t counts from 1. */
struct loss_scales {
    double *live; /* (t_max) log mean of e^L ψ_t over the texts that go on after t (t_max: all
                     that get there) */
    double
        *longer; /* (t_max) log mean of e^L φ over the final texts longer than t (t_max: as long) */
};
void loss_scales(const struct trace *, struct loss_scales *out);

/* What to add to log ψ_t to bring it to the scale of φ: then live texts' π_t and ended texts' σ
 * have one normaliser, for every t. That is a recursion backwards over t, from φ at the end, each
 * ψ_t getting the mean of what follows it; with weighted texts it telescopes to live[t] +
 * out[t] = longer[t]. From n populations' scales; where they know nothing of a t it gets its
 * successor's value, and 0 if there is none. out (t_max). */
void loss_calibration(const struct loss_scales *, int n, int t_max, float *out);
