#include "commands.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

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

int command_open_twists(const struct config *c, bool writes, struct err *err)
{
    const char *dir = c->twist_dir;
    struct stat st;
    if (!dir)
        return 0;
    if ((mkdir(dir, 0777) && errno != EEXIST) || stat(dir, &st))
        return err_set(err, ERR_FILE, "--twist-dir: %s: %s", dir, strerror(errno));
    if (!S_ISDIR(st.st_mode))
        return err_set(err, ERR_FILE, "--twist-dir: %s: is not a folder", dir);
    if (access(dir, R_OK | X_OK))
        return err_set(err, ERR_FILE, "--twist-dir: %s: %s", dir, strerror(errno));
    if (access(dir, W_OK) == 0)
        return 0;
    if (writes)
        return err_set(err, ERR_FILE, "--twist-dir: %s: %s", dir, strerror(errno));
    log_line(LOG_WARN, "--twist-dir: %s: %s; its twists can be used, none can be learned", dir,
             strerror(errno));
    return 0;
}

int command_populations(const struct config *c, int out[MAX_POPULATIONS], struct err *err)
{
    int n = 0;
    for (const char *s = c->populations;; s++) {
        char *end;
        long k = strtol(s, &end, 10);
        if (end == s || k < 1 || k > MAX_POPULATION || (*end && *end != ','))
            return err_field(err, "particles", "\"%s\" is not a list of counts like 1,16,64",
                             c->populations);
        if (n == MAX_POPULATIONS)
            return err_field(err, "particles", "more than %d counts", MAX_POPULATIONS);
        out[n++] = (int)k;
        s = end;
        if (!*s)
            return n;
    }
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
        .backend = {.kind = c->backend, .dtype = c->dtype, .threads = c->threads, .fast = c->fast},
        .batch_rows = c->batch_rows,
        .max_particles = c->max_running_particles,
        .max_queue = c->max_queue,
        .context = c->context,
        .kv_bytes = c->kv_memory,
        .twist_dir = c->twist_dir,
        .twist_bytes = c->twist_dir ? c->twist_memory : 0,
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
