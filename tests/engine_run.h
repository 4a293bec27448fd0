/* An engine with its thread, on the tiny model, and jobs for it. */
#pragma once
#include "../core/engine.h"
#include "test_backend.h"
#include "tiny_files.h"
#include "waiter.h"

/* kv_bytes 0: planned; twist_bytes 0: no learned twists. */
static inline struct engine *open_engine(int batch_rows, size_t kv_bytes, size_t twist_bytes)
{
    struct engine_opts opts = {.model_path = model_path,
                               .backend = {test_backend(), "f32", 1},
                               .batch_rows = batch_rows,
                               .max_particles = 512,
                               .max_queue = 64,
                               .kv_bytes = kv_bytes,
                               .twist_dir = twist_bytes ? twist_dir : NULL,
                               .twist_bytes = twist_bytes,
                               .limits = LIMITS_DEFAULT};
    struct engine *e;
    struct err err;
    if (engine_open(&e, &opts, &err) != 0 || engine_wait_ready(e, &err) != 0) {
        fprintf(stderr, "%s\n", err.msg);
        exit(1);
    }
    return e;
}

/* Of one hole; a score has none. */
static inline struct job *new_job(enum job_kind kind, int particles, int max_tokens, uint64_t seed)
{
    struct job *j = job_new();
    j->kind = kind;
    j->prompt = "abcad";
    j->prompt_len = 5;
    j->prompt_ids = (struct ids){PROMPT, 6};
    j->particles = particles;
    j->repeats = 4;
    j->seed = seed;
    if (kind == JOB_SCORE)
        return j;
    j->segments = ARENA_NEW(&j->arena, struct segment, 1);
    j->segments[0] = (struct segment){.type = SEGMENT_SAMPLE, .max_tokens = max_tokens};
    j->n_segments = 1;
    return j;
}
