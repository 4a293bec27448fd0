/* Learning a twist, inside: what learn.c (the life of the study), learn_runs.c (the runs of an
 * update) and learn_step.c (from what they wrote down to a step of Adam) share. The engine's
 * thread, but for the saver's own. */
#pragma once
#include <pthread.h>

#include "losses.h"
#include "rejection.h"
#include "study.h"

enum { CALIBRATION_UPDATES = 10 /* the scales of the last so many go into the calibration */ };

/* One run of an update, and what it writes down. */
struct recording {
    struct learner *of;
    int k;              /* texts; 0: the method does not want it */
    struct arena arena; /* of trace and grad: an update's */
    struct trace trace;
    double *grad;         /* (t_max k) d loss / d output of its entries */
    void *hidden;         /* dev act (t_max k, dim) */
    void *condition;      /* dev act (dim), or NULL */
    int staged, n_staged; /* its part of struct staging */
};

/* A run that bounds log Z. */
struct bounding {
    struct learner *of;
    double log_z; /* NaN: not known */
};

/* The draws for one target: the job's, or a condition's. */
struct group {
    int32_t *drawn; /* (T + c) a draw of the prior: the text and its ending; NULL: unconditional */
    struct ids text, ending;
    struct recording q, base, exact;
    struct bounding lower, upper;
};

/* The entries with a gradient, of all recordings; host and dev alike. */
struct staging {
    int32_t *row;               /* (cells) of the recording's hidden */
    int32_t *token;             /* (cells) */
    float *grad;                /* (cells) */
    struct propose_row *rows;   /* (cells) dpg: what to ask of the row again; else NULL */
    struct propose_draw *draws; /* (cells) */
};

struct saver {
    pthread_t thread;
    bool started;
    struct run *run;
    struct twist *twist;
    const char *dir;
    int rc;
    struct err err;
};

enum learn_stage {
    LEARN_TARGETS,    /* exact draws are made by rejection */
    LEARN_CONDITIONS, /* texts and their endings are drawn from the prior */
    LEARN_DRAWS,      /* an update's runs */
    LEARN_END,        /* the last save and the last bounds */
};

struct learner {
    struct run *run;
    enum learn_stage stage;
    int t_max;
    struct head *head;
    bool reserved; /* run->twist_bytes */
    struct rejection *rejection;
    const struct ids *target; /* exact draws */
    int n_targets;
    struct group *group;
    int n_groups;
    int updates; /* steps made */
    bool bounding;
    int64_t tokens;          /* drawn */
    bool mortal;             /* the prior lets particles die while they draw */
    double log_z, loss, ess; /* of the last update */
    struct loss_scales scales[CALIBRATION_UPDATES];
    int n_scales; /* ever made */
    /* the step */
    struct staging host, dev;
    struct prior prior; /* dpg */
    void *prior_memory; /* dev */
    struct prior *dev_prior;
    float *dense; /* dev (model_chunk_rows, vocab) dpg: gradients of whole rows */
    struct saver saver;
};

static inline struct recording *learn_recording(struct group *g, int i)
{
    return i == 0 ? &g->q : i == 1 ? &g->base : &g->exact;
}
enum { RECORDINGS = 3 };

/* The population that an update's log Ẑ and the calibration are of. */
static inline struct recording *learn_population(struct group *g)
{
    return g->q.k ? &g->q : &g->base;
}

/* learn_runs.c */
int learn_spawn_conditions(struct learner *, struct err *err);
int learn_spawn_draws(struct learner *, struct err *err);
int learn_spawn_bounds(struct learner *, struct err *err);
int learn_check_runs(struct run *, struct err *err); /* could they ever be run? For plan */

/* learn_step.c */
size_t learn_step_bytes(const struct learner *); /* the head, recordings and steps; dev and host */
int learn_step_open(struct learner *, struct err *err);
void learn_step_close(struct learner *);
int learn_step(struct learner *, struct err *err); /* one update from its recordings */
