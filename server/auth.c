#include "auth.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

struct auth {
    char **key;
    int n_keys;
};

static void add_key(struct auth *a, const char *key)
{
    a->key = realloc(a->key, sizeof *a->key * (size_t)(a->n_keys + 1));
    CHECK(a->key && "out of memory");
    a->key[a->n_keys] = strdup(key);
    CHECK(a->key[a->n_keys] && "out of memory");
    a->n_keys++;
}

static void add_file_line(struct auth *a, char *line)
{
    line += strspn(line, " \t");
    size_t n = strlen(line);
    while (n && strchr(" \t\r\n", line[n - 1]))
        line[--n] = '\0';
    if (n && line[0] != '#')
        add_key(a, line);
}

static int add_file(struct auth *a, const char *path, struct err *err)
{
    FILE *f = fopen(path, "re");
    if (!f)
        return err_set(err, ERR_FILE, "--api-key-file: %s: %s", path, strerror(errno));
    char *line = NULL;
    size_t size = 0;
    while (getline(&line, &size, f) >= 0)
        add_file_line(a, line);
    free(line);
    bool broken = ferror(f);
    fclose(f);
    if (broken || !a->n_keys)
        return err_set(err, ERR_FILE, "--api-key-file: %s: %s", path,
                       broken ? "cannot be read" : "holds no key");
    return 0;
}

int auth_open(struct auth **out, const char *key, const char *file, struct err *err)
{
    struct auth *a = calloc(1, sizeof *a);
    CHECK(a && "out of memory");
    int failed = file ? add_file(a, file, err) : 0;
    if (failed) {
        auth_close(a);
        return -1;
    }
    if (key && key[0])
        add_key(a, key);
    *out = a;
    return 0;
}

void auth_close(struct auth *a)
{
    if (!a)
        return;
    for (int i = 0; i < a->n_keys; i++)
        free(a->key[i]);
    free(a->key);
    free(a);
}

/* Goes through all of `given` whatever it finds, so that the time says nothing about the key. */
static bool same(const char *given, const char *key)
{
    size_t n = strlen(given), n_key = strlen(key);
    unsigned differ = n != n_key;
    for (size_t i = 0; i < n; i++)
        differ |= (unsigned)(given[i] ^ key[n_key ? i % n_key : 0]);
    return differ == 0;
}

static bool is_known(const struct auth *a, const char *given)
{
    bool known = false;
    for (int i = 0; i < a->n_keys; i++)
        known |= same(given, a->key[i]);
    return known;
}

bool auth_allows(const struct auth *a, const char *authorization, const char *x_api_key)
{
    static const char scheme[] = "Bearer ";
    if (a->n_keys == 0)
        return true;
    bool known = x_api_key && is_known(a, x_api_key);
    if (authorization && strncasecmp(authorization, scheme, sizeof scheme - 1) == 0)
        known |= is_known(a, authorization + sizeof scheme - 1);
    return known;
}
