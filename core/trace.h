/* What a run of a population writes down for learning. An entry is one token drawn (or given) and
 * what the proposal said of it; the head's input for it, the hidden state that predicted it, is a
 * row of device memory. Particles that share a history share entries. Of scored texts there are
 * entries, histories and log_phi alone. Written by run.c, read by losses.c. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "../kernels/backend.h"
#include "arena.h"

struct trace_entry {
    int32_t token;
    bool ended; /* the text ended with it: EOS, a stop string, max_tokens */
    double log_p0, log_q;
    double log_psi; /* x = log ψ_t(s_1:t) as the head gives it, without calibration */
    double lambda;  /* log Σ_v p0 ψ_t(v) of the same row, without calibration */
};

struct trace {
    int k, t_max;
    void *hidden;    /* dev act (t_max * k, dim): row t k + i of entry t k + i */
    void *condition; /* dev act (dim), the caller's, or NULL: gets the hidden state of the twist's
                        condition, h_o of a conditional head's input */
    struct trace_entry *entry; /* (t_max, k): particle i's token t */
    int32_t *cloud;      /* (t_max, k) the population as it stood after draw t, before the next
                            resampling: the last entry of each particle's text (an earlier one if it has
                            ended); -1: dead. The first n_steps rows */
    double *cloud_log_w; /* (t_max, k) L + log ψ: its log-weight under π_t, unnormalised */
    double *cloud_L;     /* (t_max, k) L alone */
    int32_t *history;    /* (k, t_max) entries of the final particles' texts */
    int *n_history;      /* (k) their lengths */
    double *log_w;       /* (k) final log-weights, log σ~/q with past resamplings; -inf: dead */
    double *log_phi;     /* (k) */
    int n_steps;         /* draws that were made */
};

/* Host arrays in the arena, all zero; `hidden` is the caller's. */
void trace_init(struct trace *, struct arena *, int k, int t_max);
