/* The engine: one thread that owns the model, the KV cache and every running job. Each step is one
 * forward pass over the rows of all jobs: next tokens of particles, forced tokens, prompt chunks,
 * up to a row budget shared fairly. Functions are safe from any thread, except engine_open and
 * engine_close (the owner's). */
#pragma once
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "../kernels/backend.h"
#include "chat.h"
#include "err.h"
#include "event.h"
#include "job.h"
#include "model.h"
#include "tokenizer.h"

struct engine;

struct engine_opts {
    const char *model_path; /* a .gguf file, or a folder that holds exactly one */
    const char *alias;      /* the model's name in the API; NULL: the file's name */
    struct backend_opts backend;
    int batch_rows;        /* rows of one forward; 0: what suits the device */
    int max_particles;     /* particles of all running jobs */
    int max_queue;         /* jobs waiting; one more is refused with ERR_BUSY */
    int context;           /* 0: the model's, at most 8192 */
    size_t kv_bytes;       /* KV cache; 0: planned */
    const char *twist_dir; /* learned twists; NULL: none can be used or made */
    size_t twist_bytes;    /* device memory for loaded twists and for learning */
    struct limits limits;
    void (*log)(
        const char *line); /* progress of loading and failures, one line each; may be NULL */
};

enum engine_state { ENGINE_LOADING, ENGINE_READY, ENGINE_DRAINING, ENGINE_FAILED };

/* What is known once the model is loaded; immutable from then on. */
struct engine_info {
    char model[128]; /* name in the API */
    char path[512];
    char device[160]; /* "cpu: 2 threads, AMX bf16" */
    char fingerprint[17];
    struct model_config config;
    struct model_memory memory;
    int context, n_pages, batch_rows;
    const struct tokenizer *tokenizer;
    struct chat_template chat;
    struct limits limits;
    char twist_dir[512]; /* "": none */
    size_t twist_bytes;
    int64_t loaded_unix; /* seconds */
    double load_seconds;
};

/* Checks what can be checked at once (the file exists and its header is sound) and starts the
 * thread, which loads the model; engine_state tells when it is ready. */
int engine_open(struct engine **out, const struct engine_opts *, struct err *err);
void engine_close(
    struct engine *); /* cancels all jobs, stops and joins the thread, frees everything */

enum engine_state engine_state(const struct engine *);
int engine_wait_ready(struct engine *, struct err *err); /* until READY (0) or FAILED (-1, why) */
const struct engine_info *engine_info(const struct engine *); /* NULL while loading */

/* Hand in a job. On success the engine owns it and the sink. On failure (ERR_BUSY queue full,
 * ERR_UNAVAILABLE not ready or draining, ERR_INVALID could never fit) the job remains the caller's
 * and the sink is never called. */
int engine_submit(struct engine *, struct job *take, struct sink, uint64_t *handle,
                  struct err *err);
void engine_cancel(struct engine *, uint64_t handle); /* an ended or unknown handle is fine */

/* Refuse new jobs from now on; returns at once. The engine is idle when engine_jobs is 0. */
void engine_drain(struct engine *);
int engine_jobs(const struct engine *); /* queued and running */

enum { ESS_BUCKETS = 10, ROWS_BUCKETS = 12 };

/* Counters since the start, and gauges; a consistent copy of the last step's end. */
struct engine_stats {
    uint64_t jobs_done, jobs_cancelled, jobs_failed, jobs_refused;
    uint64_t prompt_tokens, sampled_tokens, forced_tokens, recomputed_tokens;
    uint64_t steps, rows;                  /* forwards, and rows in them */
    uint64_t rows_histogram[ROWS_BUCKETS]; /* forwards with rows <= 1, 2, 4, … 2048 */
    uint64_t resamples, extinctions;
    uint64_t ess_histogram[ESS_BUCKETS]; /* weighings with ESS/K in (i/10, (i+1)/10] */
    double forward_seconds; /* embedding to logits: everything a plain sampler would also run */
    double smc_seconds; /* the rest of the steps: draw, weigh, resample, KV bookkeeping, events */
    double idle_seconds;
    double op_seconds[OP_COUNT];
    uint64_t op_calls[OP_COUNT];
    int jobs_running, jobs_waiting, particles;
    uint64_t learning_updates, bounds_runs; /* updates of twists, runs that said a bound */
    int twists_loaded;
    size_t twist_bytes_used; /* of twist_bytes */
    int kv_pages_total, kv_pages_used, kv_pages_shared, kv_pages_peak;
};
void engine_stats(const struct engine *, struct engine_stats *out);
