/* One large population drawn as independent islands by other servers.
 *
 * Each island is a request of its own, the same but for its seed. Its samples with their
 * log-weights are properly weighted for the same target, so all of them together are, too: Z-hat of
 * the whole is the mean of the islands', and unbiased. An island that fails or breaks off leaves
 * nothing: it is drawn again, with the same seed, by another server if there is one, and gives the
 * same samples. */
#pragma once
#include "../config/config.h"
#include "../core/event.h"

/* Draw config's request and show it as if one engine had: start, samples, done. verbose: say on
 * stderr how it goes. */
int islands_run(const struct config *, bool verbose, void (*show)(void *user, const struct event *),
                void *user, struct err *err);
