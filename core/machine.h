/* What the engine's thread owns: the device, the model, the KV pool, and one step of work over
 * them. Internal to the engine (core/{engine,machine,heads,plan,run,phi,score,step,study,…}.c).
 *
 * Everything is rows. A sequence owes rows for its tokens that are not in the cache yet; a row may
 * want the log p of the token that follows it (forced), or a draw of the next one. A step collects
 * owed rows of all runs up to a budget, runs one forward, proposes for the rows that want
 * something, and delivers. Who owes what is decided by run.c. */
#pragma once
#include <limits.h>
#include <stdbool.h>
#include <stdint.h>

#include "buf.h"
#include "engine.h"
#include "kv.h"
#include "model.h"
#include "smc.h"
#include "tokenizer.h"

struct run;

/* A text in progress: its tokens, and how many of them the cache holds (kv->n_tokens). Cached
 * tokens can be given up at any time: they are computed again, to the same bits, when rows are next
 * owed. */
struct seq {
    struct kv_seq *kv;
    const struct seq *base; /* who can give the first n_base cached tokens again; NULL: nobody */
    int n_base;
    const int32_t *head; /* (n_head) borrowed tokens at the start: the prompt */
    int n_head;
    int32_t *own; /* (cap) the tokens after them */
    int n_own, cap;
    int target;      /* rows are owed for positions kv->n_tokens .. target-1 */
    int logp_from;   /* tokens from this position on want their log p; INT_MAX: none */
    double logp_sum; /* of those delivered since it was last set to 0 */
    double logq_sum; /* of the same, their log q under the run's proposal */
    double *logp;    /* (cap) each own token's log p as delivered, or NULL */
    int fan_out;     /* draws wanted of the row that predicts the first unknown token; 0: none */
    int particle;    /* whose random stream draws: particle .. particle+fan_out-1 */
    int32_t hidden;  /* kept row of the hidden store for the drawing row; -1: none */
    void *state;     /* dev act (dim): gets the hidden state of the last token; NULL: not wanted */
    struct event_top *top; /* (cap, job->top) of a scored text, or NULL */
    double *log_psi;       /* (cap) of a scored text: log ψ of each own token, or NULL */
    bool scored;      /* a given text of JOB_SCORE: its tokens want all that the proposal says */
    bool own_context; /* a judge's text: min_tokens does not apply */
    bool done;        /* owes nothing in the present phase */
    uint64_t in_step; /* the last step that computed rows of it */
};

static inline int seq_len(const struct seq *s)
{
    return s->n_head + s->n_own;
}

static inline int32_t seq_token(const struct seq *s, int pos)
{
    return pos < s->n_head ? s->head[pos] : s->own[pos - s->n_head];
}

/* A row that wants something. */
struct want {
    struct run *run;
    struct seq *seq;
    int pos;
};

struct collected {
    struct run *run;
    struct seq *seq;
};

/* A particle that draws again, from the kept row of its ancestor. */
struct redraw {
    struct run *run;
    int particle;
};

struct machine {
    struct engine *engine; /* whose this is */
    struct backend *backend;
    struct gguf *gguf;
    struct model *model;
    struct kv_pool *pool;
    struct tokenizer *tokenizer;
    struct engine_info info;

    struct smc_device weigher; /* for the populations of all runs */
    struct prior *priors;      /* dev (MAX_RUNS) one for each run */
    bool prior_used[256];
    int32_t *hidden_free; /* (max_particles) free rows of the hidden store, counted from 0 */
    int n_hidden_free;
    int kv_reserved;      /* pages promised to running jobs */
    size_t host_reserved; /* host memory promised to running jobs */
    int particles, max_particles;
    int n_studies;                     /* running */
    struct loaded_head *heads;         /* heads.c */
    size_t head_bytes, learning_bytes; /* twist memory that they have, and that learning has */

    /* the step being built; sized once */
    uint64_t step;
    struct batch batch;
    struct want *want;           /* (batch.max_rows) parallel to batch.out_row */
    struct collected *collected; /* (batch.max_rows) */
    int n_collected;
    int32_t *hidden;            /* (max_rows) hidden rows that are asked something … */
    struct propose_row *rows;   /* (max_rows) … what … */
    struct model_twist *twists; /* (max_rows) … and by which twist */
    struct propose_draw *draws; /* (max_rows + max_particles) */
    struct propose_out *out;    /* (max_rows + max_particles) */
    struct top_token *top;      /* (max_rows, 1 + TOP_MAX) */
    int32_t *slots;             /* (max_rows) */
    int32_t *copy_from; /* (max_rows + max_particles) hidden rows to be kept elsewhere … */
    void **copy_to;     /* … in this memory … */
    int32_t *copy_row;  /* … as this row of it */
    int n_copies;
    struct smc_weighing **weighings; /* (MAX_RUNS) of the runs that ask for it */
    struct redraw *redraws;          /* (max_particles) of what is to be drawn again */
    int n_redraws;

    struct buf text, bytes;    /* scratch */
    struct tokens tokens;      /* scratch */
    struct engine_stats stats; /* the engine copies it out after each step */
};
enum {
    MAX_RUNS = 256,
    JOB_MB = 32, /* MiB of host memory of all running jobs; and once more of all waiting ones */
    JOB_BYTES = JOB_MB << 20,
};

/* Load a model and plan its memory, on the engine's thread. gguf is open, info has its path, name
 * and config. What a failure leaves behind, too, is machine_close's. */
int machine_open(struct machine *, const struct engine_opts *, struct err *err);
void machine_close(struct machine *);
void machine_log(const struct engine_opts *, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

/* The engine's thread is to look again at what it has to do. Any thread. */
void engine_wake(struct engine *);
/* Twist memory (heads.c): info.twist_bytes for loaded heads and for learning. Taking it for
 * learning closes heads that nobody uses, if need be. False: it does not fit now. */
bool machine_take_twist_bytes(struct machine *, size_t bytes);
void machine_give_twist_bytes(struct machine *, size_t bytes);
size_t machine_twist_bytes_free(const struct machine *); /* the most that could be taken now */

/* A twist of this model by its name. Any thread. Errors have the param "twist.name". */
int machine_find_twist(const struct machine *, const char *name, struct twist_file *out,
                       struct err *err);

/* The head of a file as machine_find_twist described it: shared, and loaded if it is not. To be
 * taken only when it fits. ERR_INVALID: the file has been replaced by a twist of another shape. */
int machine_take_head(struct machine *, const struct twist_file *, bool study, struct head **out,
                      struct err *err);
void machine_give_head(struct machine *, struct head *, bool study);
/* Now, or `later`, when only studies still have what they have. */
bool machine_head_fits(const struct machine *, const struct twist_file *, bool later);
size_t machine_head_bytes(const struct machine *, const struct twist_spec *);
int machine_heads(const struct machine *); /* how many are loaded */
void machine_close_heads(struct machine *);

/* Add up to budget rows that seq owes. Returns the number added; 0 when no pages are left for it.
 */
int step_add(struct machine *, struct run *, struct seq *, int budget);

/* Run what was added: forward, propose, deliver. Nothing added: nothing done. -1: the device
 * failed. */
int step_run(struct machine *, struct err *err);

/* Draw again, outside of a forward, all that m->redraws lists; then none is left. Adjacent ones of
 * one ancestor share a row of logits. -1: the device failed. */
int step_redraw(struct machine *, struct err *err);

double seconds_now(void); /* monotonic */
