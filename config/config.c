/* Reads the sources of settings. Each hands its values to `assign` as text, under a name for
 * messages; a value is always checked, and kept unless a stronger source spoke before. So the
 * sources can be read in any order, which lets a flag or a variable name the config file. */
#include "config.h"

#include <ctype.h>
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <yaml.h>

#include "settings.h"

enum { MAX_SETTINGS = 128 };

struct reader {
    struct config *c;
    enum config_command command;
    unsigned char from[MAX_SETTINGS]; /* the source of each setting so far, 0: none */
    struct err *err;
};

struct config_text { /* a string of struct config, in a list */
    struct config_text *next;
    char s[];
};

static const char *keep(struct config *c, const char *s)
{
    size_t size = strlen(s) + 1;
    struct config_text *t = malloc(sizeof *t + size);
    CHECK(t && "out of memory");
    memcpy(t->s, s, size);
    t->next = c->owned;
    c->owned = t;
    return t->s;
}

/* ---- values ---- */

static bool read_bool(const char *text, bool *out)
{
    static const char *const yes[] = {"true", "1", "yes", "on", "enabled"};
    static const char *const no[] = {"false", "0", "no", "off", "disabled"};
    for (size_t i = 0; i < sizeof yes / sizeof *yes; i++) {
        if (!strcasecmp(text, yes[i]))
            return *out = true, true;
        if (!strcasecmp(text, no[i]))
            return *out = false, true;
    }
    return false;
}

/* How far a size's suffix shifts it; *p moves behind the suffix. */
static int size_shift(const char **p)
{
    static const char suffixes[] = "KMG";
    const char *found = **p ? strchr(suffixes, toupper((unsigned char)**p)) : NULL;
    if (!found)
        return 0;
    (*p)++;
    return 10 * (int)(found - suffixes + 1);
}

static bool read_integer(const struct setting *s, const char *text, int64_t *out)
{
    char *end;
    if (!isdigit((unsigned char)text[*text == '-']))
        return false;
    errno = 0;
    long long n = strtoll(text, &end, 10);
    const char *p = end;
    int shift = s->kind == SETTING_SIZE ? size_shift(&p) : 0;
    if (*p)
        return false;
    bool over = errno == ERANGE || n > INT64_MAX >> shift;
    *out = over ? (n < 0 ? INT64_MIN : INT64_MAX) : (n < 0 ? n : n << shift);
    return true;
}

static bool is_choice(const char *choices, const char *text)
{
    size_t len = strlen(text);
    for (const char *p = choices; p; p = strchr(p, '|'), p = p ? p + 1 : NULL)
        if (len && !strncmp(p, text, len) && (p[len] == '|' || !p[len]))
            return true;
    return false;
}

static void integer_text(const struct setting *s, int64_t n, char *out, size_t size)
{
    if (s->kind == SETTING_SIZE)
        setting_size_text(n, out, size);
    else
        snprintf(out, size, "%lld", (long long)n);
}

static int assign_integer(struct reader *r, const struct setting *s, const char *name,
                          const char *text, void *member)
{
    int64_t n;
    bool bytes = s->kind == SETTING_SIZE;
    if (!read_integer(s, text, &n))
        return err_set(r->err, ERR_INVALID, "%s: \"%s\" is not a %s", name, text,
                       bytes ? "size (such as 512M)" : "whole number");
    if (n < s->min || n > s->max) {
        char low[32], high[32];
        integer_text(s, s->min, low, sizeof low);
        integer_text(s, s->max, high, sizeof high);
        return err_set(r->err, ERR_INVALID, "%s: %s is not in %s..%s", name, text, low, high);
    }
    if (member && bytes)
        *(size_t *)member = (size_t)n;
    else if (member)
        *(int *)member = (int)n;
    return 0;
}

static int check_json(struct reader *r, const struct setting *s, const char *name, const char *text)
{
    json_error_t why;
    json_t *value = json_loads(text, JSON_DECODE_ANY | JSON_REJECT_DUPLICATES, &why);
    if (!value)
        return err_set(r->err, ERR_INVALID, "%s: not JSON: %s", name, why.text);
    bool ok = s->kind != SETTING_NUMBER || json_is_number(value);
    json_decref(value);
    return ok ? 0 : err_set(r->err, ERR_INVALID, "%s: \"%s\" is not a number", name, text);
}

/* Check a value and write it to its member, if there is one to write to. */
static int read_value(struct reader *r, const struct setting *s, const char *name, const char *text,
                      void *member)
{
    bool flag;
    switch (s->kind) {
    case SETTING_INT:
    case SETTING_SIZE:
        return assign_integer(r, s, name, text, member);
    case SETTING_BOOL:
        if (!read_bool(text, &flag))
            return err_set(r->err, ERR_INVALID, "%s: \"%s\" is not true or false", name, text);
        if (member)
            *(bool *)member = flag;
        return 0;
    case SETTING_CHOICE:
        if (!is_choice(s->arg, text))
            return err_set(r->err, ERR_INVALID, "%s: \"%s\" is not one of %s", name, text, s->arg);
        break;
    case SETTING_TWIST:
        if (!setting_is_object(text))
            break;
        /* fallthrough */
    case SETTING_NUMBER:
    case SETTING_JSON:
        if (check_json(r, s, name, text))
            return -1;
        break;
    case SETTING_STRING:
    case SETTING_SECTION:
        break;
    }
    if (member)
        *(const char **)member = keep(r->c, text);
    return 0;
}

/* name: how the source calls the setting, for messages. */
static int assign(struct reader *r, int i, enum source source, const char *name, const char *text)
{
    bool weaker = r->from[i] > source;
    void *member = (char *)r->c + settings[i].offset;
    if (read_value(r, &settings[i], name, text, weaker ? NULL : member))
        return -1;
    if (!weaker)
        r->from[i] = (unsigned char)source;
    return 0;
}

/* The setting of a command by its flag, or -1. */
static int find(const char *flag, size_t len, int commands)
{
    for (int i = 0; i < n_settings; i++)
        if (settings[i].flag && settings[i].commands & commands &&
            !strncmp(settings[i].flag, flag, len) && !settings[i].flag[len])
            return i;
    return -1;
}

/* ---- flags ---- */

static int read_flag(struct reader *r, int argc, char **argv, int *at)
{
    const char *flag = argv[*at] + 2, *equals = strchr(flag, '=');
    int len = (int)(equals ? (size_t)(equals - flag) : strlen(flag));
    int i = find(flag, (size_t)len, (int)r->command);
    if (i < 0)
        return err_set(r->err, ERR_INVALID, "--%.*s: no such flag of clotho %s (see --help)", len,
                       flag, argv[0]);
    const char *value = equals ? equals + 1 : NULL;
    if (!value && settings[i].kind == SETTING_BOOL)
        value = "true";
    if (!value && ++*at < argc)
        value = argv[*at];
    if (!value)
        return err_set(r->err, ERR_INVALID, "--%s: needs a value (%s)", settings[i].flag,
                       settings[i].arg);
    char name[64];
    snprintf(name, sizeof name, "--%s", settings[i].flag);
    return assign(r, i, FROM_FLAG, name, value);
}

static int add_argument(struct reader *r, char *text)
{
    bool prompt = r->command & (CONFIG_SAMPLE | CONFIG_BOUNDS), name = r->command == CONFIG_TWISTS;
    if (r->c->n_args == (prompt || name) && r->command != CONFIG_LEARN) /* it takes many prompts */
        return err_set(r->err, ERR_INVALID, "\"%s\": unexpected argument%s", text,
                       prompt ? "; the prompt is one argument, so quote it" : " (see --help)");
    r->c->args[r->c->n_args++] = text;
    return 0;
}

static int read_flags(struct reader *r, int argc, char **argv)
{
    bool flags = true;
    r->c->args = argv + 1; /* arguments move to its front; those places have been read */
    for (int i = 1; i < argc; i++) {
        char *word = argv[i];
        int rc = 0;
        if (flags && !strcmp(word, "--"))
            flags = false;
        else if (flags && !strcmp(word, "-h"))
            r->c->help = true;
        else if (flags && !strncmp(word, "--", 2))
            rc = read_flag(r, argc, argv, &i);
        else if (flags && word[0] == '-' && word[1])
            rc = err_set(r->err, ERR_INVALID, "%s: no such flag (flags begin with two dashes)",
                         word);
        else
            rc = add_argument(r, word);
        if (rc)
            return rc;
    }
    return 0;
}

/* ---- environment ---- */

/* A variable that is empty counts as unset: that is how compose files pass on an absent one. */
static int read_environment(struct reader *r)
{
    for (int i = 0; i < n_settings; i++) {
        char name[64];
        if (!settings[i].flag || !(settings[i].commands & (int)r->command) ||
            settings[i].weakest > FROM_ENVIRONMENT)
            continue;
        setting_variable(&settings[i], name, sizeof name);
        const char *value = getenv(name);
        if (value && *value && assign(r, i, FROM_ENVIRONMENT, name, value))
            return -1;
    }
    return 0;
}

/* ---- file ---- */

static bool is_null(const yaml_node_t *n)
{
    const char *s = (const char *)n->data.scalar.value;
    return n->data.scalar.style == YAML_PLAIN_SCALAR_STYLE &&
           (!*s || !strcmp(s, "~") || !strcasecmp(s, "null"));
}

static int read_pair(struct reader *r, const char *path, const yaml_node_t *key,
                     const yaml_node_t *value)
{
    char name[256];
    size_t line = key->start_mark.line + 1;
    if (key->type != YAML_SCALAR_NODE)
        return err_set(r->err, ERR_INVALID, "%s:%zu: the key is not a name", path, line);
    const char *flag = (const char *)key->data.scalar.value;
    snprintf(name, sizeof name, "%s:%zu: %s", path, line, flag);
    int i = find(flag, strlen(flag), ALL_COMMANDS);
    if (i < 0 || settings[i].weakest > FROM_FILE)
        return err_set(r->err, ERR_INVALID, "%s: no such setting of a file", name);
    if (value->type != YAML_SCALAR_NODE)
        return err_set(r->err, ERR_INVALID, "%s: is not a single value", name);
    i = find(flag, strlen(flag), (int)r->command);
    if (i < 0 || is_null(value))
        return 0;
    if (r->from[i] == FROM_FILE)
        return err_set(r->err, ERR_INVALID, "%s: is there twice", name);
    return assign(r, i, FROM_FILE, name, (const char *)value->data.scalar.value);
}

static int read_document(struct reader *r, const char *path, yaml_document_t *doc)
{
    const yaml_node_t *root = yaml_document_get_root_node(doc);
    if (!root) /* an empty file */
        return 0;
    if (root->type != YAML_MAPPING_NODE)
        return err_set(r->err, ERR_INVALID, "%s: is not a list of \"setting: value\" lines", path);
    const yaml_node_pair_t *pair = root->data.mapping.pairs.start;
    for (; pair < root->data.mapping.pairs.top; pair++)
        if (read_pair(r, path, yaml_document_get_node(doc, pair->key),
                      yaml_document_get_node(doc, pair->value)))
            return -1;
    return 0;
}

static int parse_file(struct reader *r, const char *path, FILE *f)
{
    yaml_parser_t parser;
    yaml_document_t doc;
    CHECK(yaml_parser_initialize(&parser));
    yaml_parser_set_input_file(&parser, f);
    int rc;
    if (yaml_parser_load(&parser, &doc)) {
        rc = read_document(r, path, &doc);
        yaml_document_delete(&doc);
    } else {
        rc = err_set(r->err, ERR_INVALID, "%s:%zu: not YAML: %s", path,
                     parser.problem_mark.line + 1, parser.problem ? parser.problem : "unreadable");
    }
    yaml_parser_delete(&parser);
    return rc;
}

static int read_file(struct reader *r)
{
    const char *path = r->c->config;
    if (!path)
        return 0;
    FILE *f = fopen(path, "rb");
    if (!f)
        return err_set(r->err, ERR_FILE, "%s: %s", path, strerror(errno));
    int rc = parse_file(r, path, f);
    fclose(f);
    return rc;
}

/* ---- all of them ---- */

static int read_defaults(struct reader *r)
{
    for (int i = 0; i < n_settings; i++)
        if (settings[i].fallback && settings[i].commands & (int)r->command &&
            assign(r, i, FROM_DEFAULT, settings[i].flag, settings[i].fallback))
            return -1;
    return 0;
}

static int check_needed(const struct config *c, enum config_command command, struct err *err)
{
    if (c->help || c->print_config)
        return 0;
    if (command & ENGINE_COMMANDS && !c->model && !c->server)
        return err_set(err, ERR_INVALID, "--model: is missing; name a .gguf file (see --help)");
    if (command & CONFIG_SAMPLE && c->islands > 1 && !c->server)
        return err_set(err, ERR_INVALID,
                       "--islands: are drawn by servers; name them with --server");
    if (command & (CONFIG_LEARN | CONFIG_TWISTS) && !c->twist_dir)
        return err_set(err, ERR_INVALID,
                       "--twist-dir: is missing; name the folder of twists (see --help)");
    return 0;
}

int config_read(struct config *out, enum config_command command, int argc, char **argv,
                struct err *err)
{
    CHECK(n_settings <= MAX_SETTINGS);
    struct reader r = {.c = out, .command = command, .err = err};
    *out = (struct config){0};
    if (read_flags(&r, argc, argv) || read_environment(&r) || read_file(&r) || read_defaults(&r))
        return -1;
    return check_needed(out, command, err);
}

void config_free(struct config *c)
{
    while (c->owned) {
        struct config_text *next = c->owned->next;
        free(c->owned);
        c->owned = next;
    }
    *c = (struct config){0};
}
