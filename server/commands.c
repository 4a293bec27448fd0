#include "commands.h"

#include <stdio.h>

#include "log.h"

int command_config(struct config *c, enum config_command command, int argc, char **argv)
{
    struct err err;
    if (config_read(c, command, argc, argv, &err)) {
        fprintf(stderr, "clotho: %s\n", err.msg);
        return 2;
    }
    if (c->help)
        config_help(command);
    else if (c->print_config)
        config_print(c, command);
    return c->help || c->print_config ? 0 : -1;
}

static void log_engine(const char *line)
{
    log_line(LOG_INFO, "%s", line);
}

struct engine_opts command_engine_opts(const struct config *c)
{
    return (struct engine_opts){
        .model_path = c->model,
        .alias = c->alias,
        .backend = {.kind = c->backend, .dtype = c->dtype, .threads = c->threads},
        .batch_rows = c->batch_rows,
        .max_particles = c->max_running_particles,
        .max_queue = c->max_queue,
        .context = c->context,
        .kv_bytes = c->kv_memory,
        .limits = {.max_particles = c->max_particles,
                   .max_tokens = c->max_tokens,
                   .max_prompt_tokens = c->max_prompt_tokens,
                   .max_completions = c->max_completions,
                   .max_potentials = c->max_potentials,
                   .max_segments = c->max_segments,
                   .max_pattern = c->max_pattern,
                   .max_body = c->max_body},
        .log = log_engine,
    };
}
