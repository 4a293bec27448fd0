/* One table of settings (settings.c). It drives the flags, their CLOTHO_<FLAG> environment
 * variables, the keys of the config file, --help and --print-config. Flags beat environment,
 * environment beats file, file beats default. Used by the main thread at start-up only. */
#pragma once
#include <stdbool.h>
#include <stddef.h>

#include "../core/err.h"

/* The request that a command makes: fields of POST /v1/sample, /v1/bounds or /v1/twists as given,
 * NULL where not. config_request_body puts them together; their meaning is checked where every
 * request's is. */
struct config_request {
    const char *particles, *max_tokens, *min_tokens, *stop, *temperature, *top_k, *top_p, *seed;
    const char *potential, *twist, *proposal, *resampling, *segments; /* JSON, but proposal */
    bool ignore_eos, special, logprobs;
    /* clotho bounds, twist learn */
    const char *repeats, *targets, *max_draws; /* targets: JSON */
    const char *name, *method, *head, *layers, *hidden, *updates, *learning_rate;
    const char *condition_tokens, *condition_batch, *checkpoint, *bounds;
};

struct config {
    /* the model and the device */
    const char *model, *alias, *backend, *dtype; /* alias may be NULL: the model's own name */
    bool fast;
    int threads;      /* 0: one per usable core */
    size_t kv_memory; /* bytes; 0: planned */
    int context;      /* tokens; 0: the model's, at most 8192 */
    int batch_rows, max_running_particles;
    const char *twist_dir; /* NULL: no learned twists */
    size_t twist_memory;   /* bytes for those that are loaded, and for learning */
    /* the server */
    const char *host;
    int port;                                          /* 0: any free one */
    const char *api_key, *api_key_file, *cors_origins; /* NULL: none */
    int max_queue, max_connections;
    int drain_seconds, idle_seconds, header_seconds;
    size_t stream_buffer; /* bytes of events that may wait for one client */
    size_t client_memory; /* bytes of all requests and answers that are under way */
    const char *log_level, *log_format;
    bool log_prompts;
    /* limits of a request (--limit-*), as in struct limits */
    int max_particles, max_tokens, max_prompt_tokens, max_completions, max_potentials, max_segments,
        max_pattern;
    size_t max_body; /* bytes */
    int max_seconds; /* 0: as long as it takes */
    /* clotho sample, bounds and twist learn */
    struct config_request request;
    const char *server; /* clotho sample: URLs that draw instead, separated by commas; NULL: here */
    int islands;
    /* clotho bench, bounds */
    const char *populations; /* "1,16,64,256" */
    int prompt_tokens, tokens, repeat;
    /* what runs without a server */
    bool json;
    const char *plot; /* the file of the picture, or NULL */

    const char *config; /* the file that was read, or NULL */
    bool print_config, help;
    /* what is left of the command line; borrowed from argv */
    char **args;
    int n_args;
    struct config_text *owned; /* all other strings */
};

enum config_command {
    CONFIG_SERVE = 1,
    CONFIG_SAMPLE = 2,
    CONFIG_BENCH = 4,
    CONFIG_BOUNDS = 8,
    CONFIG_LEARN = 16,  /* clotho twist learn */
    CONFIG_TWISTS = 32, /* clotho twist list, show, remove */
};

/* Read all sources for a command. argv[0] is the command's name ("serve", "twist learn"). Refusals
 * are ERR_INVALID and name the flag, variable, or file, line and key. With --help or --print-config
 * what the command cannot do without may be missing. Whether read or refused, *out is to be freed.
 */
int config_read(struct config *out, enum config_command, int argc, char **argv, struct err *err);
void config_free(struct config *);

void config_help(enum config_command);                         /* to stdout */
void config_print(const struct config *, enum config_command); /* as a config file, to stdout */

/* The body of the POST that the flags and arguments of a command say. NUL-terminated, malloc'ed,
 * the caller's. NULL: a text is not valid UTF-8, or two flags exclude each other; err names it. */
char *config_request_body(const struct config *, enum config_command, struct err *err);
