/* clotho twist: learning is in learn.c; list, show and remove are about the folder's files alone.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../core/twist.h"
#include "../proto/event_json.h"
#include "commands.h"

/* ------------------------------------------------------- what is shown */

static void print_buf(struct buf *take)
{
    puts(take->data);
    buf_free(take);
}

static void date_text(int64_t unix_seconds, char *out, size_t size)
{
    time_t t = (time_t)unix_seconds;
    struct tm tm;
    gmtime_r(&t, &tm);
    strftime(out, size, "%Y-%m-%d %H:%M", &tm);
}

static void head_text(const struct twist_spec *s, char *out, size_t size)
{
    if (s->n_layers == 1)
        snprintf(out, size, "linear");
    else
        snprintf(out, size, "mlp %dx%d", s->n_layers, s->hidden);
}

static void print_list(const struct twist_file *file, int n)
{
    char head[32], date[32];
    printf("%-20s  %-6s  %-10s  %-24s  %7s  %8s  %8s  %s\n", "name", "method", "head", "model",
           "updates", "log Z", "MiB", "made (UTC)");
    for (int i = 0; i < n; i++) {
        const struct twist_spec *s = &file[i].spec;
        head_text(s, head, sizeof head);
        date_text(file[i].created_unix, date, sizeof date);
        printf("%-20s  %-6s  %-10s  %-24s  %7d  %8.3f  %8.1f  %s\n", s->name,
               twist_method_names[s->method], head, s->model, s->updates, s->log_z,
               (double)file[i].bytes / (1 << 20), date);
    }
}

static void print_one(const struct twist_file *file)
{
    const struct twist_spec *s = &file->spec;
    char head[32], date[32];
    head_text(s, head, sizeof head);
    date_text(file->created_unix, date, sizeof date);
    printf("name           %s\nmade           %s UTC\nbytes          %zu\n", s->name, date,
           file->bytes);
    printf("model          %s (%s)\nhead           %s%s\n", s->model, s->fingerprint, head,
           s->conditional ? ", conditional" : "");
    printf("method         %s, %d updates of %d particles, learning rate %g\n",
           twist_method_names[s->method], s->updates, s->particles, s->learning_rate);
    printf("resampled on   %s\ncalibrated     %s\n", s->resample ? "yes" : "no",
           s->calibration ? "yes" : "no");
    printf("max_tokens     %d\nseed           %lld\nlog Z          %.4f\nrequest        %s\n",
           s->max_tokens, (long long)s->seed, s->log_z, s->request ? s->request : "");
}

/* ------------------------------------------------------- list, show, remove */

static int list(const struct config *c, const char *name, struct err *err)
{
    struct twist_file *files;
    struct buf json = {0};
    (void)name;
    int n = twist_list(&files, c->twist_dir, err);
    if (n < 0)
        return -1;
    if (c->json) {
        twists_json(&json, files, n);
        print_buf(&json);
    } else {
        print_list(files, n);
    }
    free(files);
    return 0;
}

static int show(const struct config *c, const char *name, struct err *err)
{
    struct twist_file file;
    struct arena arena = {0};
    struct buf json = {0};
    int failed = twist_describe(&file, &arena, c->twist_dir, name, err);
    if (!failed && c->json) {
        twist_json(&json, &file);
        print_buf(&json);
    } else if (!failed) {
        print_one(&file);
    }
    arena_free(&arena);
    return failed;
}

static int removal(const struct config *c, const char *name, struct err *err)
{
    struct buf json = {0};
    if (twist_remove(c->twist_dir, name, err))
        return -1;
    if (c->json) {
        twist_removed_json(&json, name);
        print_buf(&json);
    } else {
        printf("%s is removed\n", name);
    }
    return 0;
}

/* ------------------------------------------------------- the command */

static const struct action {
    const char *name, *title;                                             /* title: for messages */
    int (*run)(const struct config *, const char *name, struct err *err); /* NULL: learn.c's */
    bool named;
} actions[] = {
    {"learn", "twist learn", NULL, false},
    {"list", "twist list", list, false},
    {"show", "twist show", show, true},
    {"remove", "twist remove", removal, true},
};
enum { N_ACTIONS = sizeof actions / sizeof *actions };

static int check_name(const struct action *a, const struct config *c, struct err *err)
{
    if (c->n_args != a->named)
        return err_set(err, ERR_INVALID,
                       a->named ? "clotho %s: needs the name of a twist"
                                : "clotho %s: takes no argument",
                       a->title);
    if (a->named && !twist_name_ok(c->args[0]))
        return err_set(err, ERR_INVALID, "\"%s\": is not a name of a twist", c->args[0]);
    return 0;
}

static int run(const struct action *a, int argc, char **argv)
{
    struct config c;
    struct err err;
    int status = command_config(&c, CONFIG_TWISTS, argc, argv);
    if (status < 0) {
        status = check_name(a, &c, &err)                         ? 2
                 : a->run(&c, a->named ? c.args[0] : NULL, &err) ? 1
                                                                 : 0;
        if (status)
            fprintf(stderr, "clotho: %s\n", err.msg);
    }
    config_free(&c);
    return status;
}

int command_twist(int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : "";
    for (int i = 0; i < N_ACTIONS; i++) {
        const struct action *a = &actions[i];
        if (strcmp(a->name, name) != 0)
            continue;
        argv[1] = (char *)a->title;
        return a->run ? run(a, argc - 1, argv + 1) : command_learn(argc - 1, argv + 1);
    }
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0) {
        config_help(CONFIG_TWISTS);
        return 0;
    }
    fprintf(stderr, "clotho: twist: say learn, list, show or remove (see clotho twist --help)\n");
    return 2;
}
