/* A machine in the test's hand: the engine without its thread. Runs are opened, and stepped
 * together until all have ended. Learned twists of random numbers, in a folder of their own.
 * Failures abort: there is nothing to go on with. */
#pragma once
#include <stdio.h>

#include "../core/run.h"
#include "test_backend.h"
#include "tiny_files.h"

static inline void must(int rc, const struct err *err)
{
    if (rc != 0)
        fprintf(stderr, "%s\n", err->msg);
    CHECK(rc == 0);
}

static inline void machine_run_open(struct machine *m, int batch_rows, size_t kv_bytes,
                                    size_t twist_bytes)
{
    struct err err;
    struct engine_opts opts = {.model_path = model_path,
                               .backend = {test_backend(), "f32", 1},
                               .batch_rows = batch_rows,
                               .max_particles = 512,
                               .kv_bytes = kv_bytes,
                               .limits = LIMITS_DEFAULT};
    *m = (struct machine){.info = {.twist_bytes = twist_bytes}};
    snprintf(m->info.twist_dir, sizeof m->info.twist_dir, "%s", twist_dir);
    must(gguf_open(&m->gguf, model_path, &err), &err);
    must(model_config_read(&m->info.config, m->gguf, model_path, &err), &err);
    must(machine_open(m, &opts, &err), &err);
}

/* One forward of n runs, those that have not ended. */
static inline void machine_forward(struct machine *m, struct run **runs, int n)
{
    struct err err;
    int left = m->batch.max_rows;
    m->step++;
    m->n_collected = 0;
    batch_reset(&m->batch);
    for (int i = 0; i < n; i++)
        if (runs[i]->phase != RUN_ENDED)
            left -= run_collect(runs[i], left);
    must(step_run(m, &err), &err);
}

/* A forward, and what follows from it. Returns how many runs are left. */
static inline int machine_step(struct machine *m, struct run **runs, int n)
{
    struct err err;
    int live = 0, weighed;
    machine_forward(m, runs, n);
    do {
        for (int i = 0; i < n; i++)
            if (runs[i]->phase != RUN_ENDED && runs[i]->outstanding == 0)
                must(run_advance(runs[i], &err), &err);
        weighed = run_weigh(m, runs, n, &err);
        must(weighed < 0, &err);
    } while (weighed > 0);
    for (int i = 0; i < n; i++)
        live += runs[i]->phase != RUN_ENDED;
    return live;
}

static inline struct run *run_new(struct machine *m, struct job *job, struct sink sink,
                                  struct trace *trace)
{
    struct run *r;
    struct err err;
    must(run_open(&r, m, job, sink, trace, &err), &err);
    return r;
}

/* All at once, from admission to their end. */
static inline void run_together(struct machine *m, struct run **runs, int n)
{
    struct err err;
    for (int i = 0; i < n; i++) {
        CHECK(run_fits(runs[i]));
        must(run_admit(runs[i], &err), &err);
    }
    while (machine_step(m, runs, n) > 0)
        continue;
    for (int i = 0; i < n; i++)
        run_close(runs[i]);
}

/* A twist of random numbers for this model, |log ψ| around 1. */
static inline struct twist_spec random_spec(const struct machine *m, const char *name, int n_layers,
                                            bool conditional)
{
    struct twist_spec s = {.dim = DIM,
                           .vocab = VOCAB,
                           .n_layers = n_layers,
                           .hidden = n_layers > 1 ? 12 : 0,
                           .conditional = conditional,
                           .resample = true,
                           .max_tokens = 3,
                           .particles = 1,
                           .updates = 1,
                           .request = "{}"};
    snprintf(s.name, sizeof s.name, "%s", name);
    snprintf(s.fingerprint, sizeof s.fingerprint, "%s", m->info.fingerprint);
    return s;
}

static inline struct twist *random_twist(const struct twist_spec *s, uint64_t seed)
{
    struct twist *t = twist_new(s);
    CHECK(t);
    for (int l = 0; l < s->n_layers; l++) {
        int in = twist_in(s, l), out = twist_out(s, l);
        double width = l + 1 == s->n_layers ? 1.5 / sqrt(in) : 1.5 / sqrt(in);
        for (int i = 0; i < out * (in + 1); i++) {
            struct philox r = philox4x32(seed, (uint32_t)l, (uint32_t)i, 0, 0);
            float x = (float)(width * (2 * philox_u01(r.v[0], r.v[1]) - 1));
            *(i < out * in ? &t->w[l][i] : &t->b[l][i - out * in]) = x;
        }
    }
    return t;
}

static inline void save_random(const struct twist_spec *s, uint64_t seed)
{
    struct err err;
    struct twist *t = random_twist(s, seed);
    must(twist_save(t, twist_dir, &err), &err);
    twist_free(t);
}
