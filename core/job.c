#include "job.h"

#include <stdlib.h>

#include "potential.h"

struct job *job_new(void)
{
    struct arena a = {0};
    struct job *j = ARENA_NEW(&a, struct job, 1);
    j->arena = a;
    j->temperature = 1;
    j->top_p = 1;
    j->particles = 16;
    j->ess_threshold = 0.5;
    j->base_proposal = true;
    j->ev_step = j->ev_resample = j->ev_sample = true;
    return j;
}

void job_free(struct job *j)
{
    if (!j)
        return;
    for (int i = 0; i < j->n_potentials && !j->borrowed; i++)
        if (j->potentials[i].type == POTENTIAL_REGEX)
            regex_close(j->potentials[i].regex.regex);
    struct arena a = j->arena; /* the job itself lies in it */
    arena_free(&a);
}
