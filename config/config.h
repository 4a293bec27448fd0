/* One table of settings. It drives the flags, their CLOTHO_<FLAG> environment variables, the keys
 * of the config file,
 * --help and --print-config. Flags beat environment, environment beats file, file beats default. */
#pragma once
#include <stdbool.h>
#include <stddef.h>

#include "../core/err.h"

struct config {
    /* the model and the device */
    const char *model, *alias, *backend, *dtype, *twist_dir;
    int threads;
    size_t kv_memory; /* bytes; 0: planned */
    int context, batch_rows, max_running_particles;
    /* the server */
    const char *host;
    int port;
    const char *api_key, *api_key_file, *cors_origins;
    int max_queue, max_connections, drain_seconds, idle_seconds, header_seconds, stream_buffer;
    const char *log_level;
    /* limits of a request */
    int max_particles, max_tokens, max_prompt_tokens, max_completions, max_potentials, max_segments,
        max_pattern;
    size_t max_body;
    /* clotho sample, clotho bench: see the table in config.c */
    int particles, tokens, top_k;
    double temperature, top_p;
    const char *seed;
    bool json;
    const char *potential; /* JSON, as in the API */
    const char *twist;
    const char *bench_particles;
    int prompt_tokens, repeat;
    bool print_config, help;
    /* what is left of the command line */
    char **args;
    int n_args;
    struct config_strings *owned;
};

enum config_command { CONFIG_SERVE = 1, CONFIG_SAMPLE = 2, CONFIG_BENCH = 4 };

/* Read all sources for a command. argv[0] is the command's name. Refusals name the flag, variable
 * or key. */
int config_read(struct config *out, enum config_command, int argc, char **argv, struct err *err);
void config_free(struct config *);
void config_help(enum config_command);                         /* to stdout */
void config_print(const struct config *, enum config_command); /* as a config file, to stdout */
