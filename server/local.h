/* The engine without HTTP, for the commands that run on their own: one job at a time, its events
 * shown on the calling thread. ^C ends what runs; a second one finds its default action. */
#pragma once
#include <stdbool.h>

#include "../config/config.h"
#include "../core/engine.h"

struct local;

enum { LOCAL_INTERRUPTED = 130 }; /* the exit status after ^C, as a shell says it */

/* Load the model and wait for it. verbose: say on stderr how that goes. After ^C it returns 0 like
 * any success; local_interrupted tells. config is borrowed. */
int local_open(struct local **out, const struct config *, bool verbose, struct err *err);
void local_close(struct local *); /* NULL is fine */

const struct engine_info *local_info(const struct local *); /* NULL only after ^C */
bool local_interrupted(void);

/* Run a job, which is taken, and show its events. Returns 0 when it is done or was interrupted,
 * else -1 with why; `show` has seen the error's event, too, if there was one. */
int local_run(struct local *, struct job *take, void (*show)(void *user, const struct event *),
              void *user, struct err *err);

void local_print(const struct event *); /* as a line of JSON on stdout */
