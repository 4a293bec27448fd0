#include "key_file.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LIMIT_MAX = 1000000 };
static const char blanks[] = " \t\r\n";

/* Where a line is, for messages; the words of a line may be keys and are in none. */
struct place {
    const char *file;
    int line;
};

static int refuse(struct err *err, const struct place *p, const char *why)
{
    return err_set(err, ERR_FILE, "--api-key-file: %s: line %d: %s", p->file, p->line, why);
}

static int read_limit(int *out, const char *text, const struct place *p, struct err *err)
{
    char *end;
    errno = 0;
    long n = strtol(text, &end, 10);
    if (end == text || *end || errno || n < 1 || n > LIMIT_MAX)
        return refuse(err, p, "a limit is a number from 1 to 1000000");
    *out = (int)n;
    return 0;
}

static int read_name(struct key_entry *e, const char *text, const struct place *p, struct err *err)
{
    static const char allowed[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                  "0123456789-_.";
    size_t n = strlen(text);
    if (n == 0 || n > CLIENT_NAME_MAX || strspn(text, allowed) != n)
        return refuse(err, p, "a name has 1 to 64 letters, digits, dots, dashes and underscores");
    memcpy(e->name, text, n + 1);
    return 0;
}

/* The value of a word "field=value", or NULL. */
static const char *value_of(const char *word, const char *field)
{
    size_t n = strlen(field);
    return strncmp(word, field, n) == 0 && word[n] == '=' ? word + n + 1 : NULL;
}

static int read_word(struct key_entry *e, const char *word, const struct place *p, struct err *err)
{
    const char *value;
    if ((value = value_of(word, "name")))
        return read_name(e, value, p, err);
    if ((value = value_of(word, "concurrent")))
        return read_limit(&e->limits.concurrent, value, p, err);
    if ((value = value_of(word, "per_minute")))
        return read_limit(&e->limits.per_minute, value, p, err);
    return refuse(err, p, "a key is followed by name=, concurrent= and per_minute= only");
}

static int read_key(struct key_entry *e, const char *text, const struct place *p, struct err *err)
{
    size_t n = strlen(text);
    for (size_t i = 0; i < n; i++)
        if (text[i] <= ' ' || text[i] >= 127)
            return refuse(err, p, "a key is plain ASCII without blanks");
    if (n > KEY_MAX)
        return refuse(err, p, "a key has at most 255 characters");
    memcpy(e->bytes, text, n);
    return 0;
}

static int check_against(const struct key_entry *e, const struct key_entry *other,
                         const struct place *p, struct err *err)
{
    if (memcmp(e->bytes, other->bytes, sizeof e->bytes) == 0)
        return refuse(err, p, "the key is there already");
    if (strcmp(e->name, other->name) == 0 &&
        memcmp(&e->limits, &other->limits, sizeof e->limits) != 0)
        return refuse(err, p, "keys of one name have the same limits");
    return 0;
}

static void append(struct key_list *l, const struct key_entry *e)
{
    l->key = realloc(l->key, sizeof *l->key * (size_t)(l->n + 1));
    CHECK(l->key && "out of memory");
    l->key[l->n++] = *e;
}

static int add(struct key_list *l, const struct key_entry *e, const struct place *p,
               struct err *err)
{
    if (l->n == KEYS_MAX)
        return refuse(err, p, "more than 1024 keys");
    for (int i = 0; i < l->n; i++)
        if (check_against(e, &l->key[i], p, err))
            return -1;
    append(l, e);
    return 0;
}

/* A line, which is cut into words. */
static int read_line(struct key_list *l, int n_keys, char *line, const struct place *p,
                     struct err *err)
{
    struct key_entry e = {0};
    char *rest = line, *word;
    snprintf(e.name, sizeof e.name, "key-%d", n_keys + 1);
    for (int i = 0; (word = strsep(&rest, blanks));) {
        if (!*word)
            continue;
        if (i++ == 0 ? read_key(&e, word, p, err) : read_word(&e, word, p, err))
            return -1;
    }
    return add(l, &e, p, err);
}

static bool is_blank(const char *line)
{
    line += strspn(line, blanks);
    return !*line || *line == '#';
}

static int read_lines(struct key_list *l, FILE *f, const char *path, struct err *err)
{
    struct place p = {path, 0};
    char *line = NULL;
    size_t size = 0;
    int n_keys = 0, failed = 0;
    while (!failed && getline(&line, &size, f) >= 0) {
        p.line++;
        if (!is_blank(line))
            failed = read_line(l, n_keys++, line, &p, err);
    }
    free(line);
    if (!failed && (ferror(f) || !n_keys))
        return err_set(err, ERR_FILE, "--api-key-file: %s: %s", path,
                       ferror(f) ? "cannot be read" : "holds no key");
    return failed;
}

static int read_flag(struct key_list *l, const char *key, struct err *err)
{
    struct key_entry e = {.name = "api-key"};
    size_t n = strlen(key);
    if (n > KEY_MAX)
        return err_set(err, ERR_INVALID, "--api-key: a key has at most 255 characters");
    memcpy(e.bytes, key, n);
    append(l, &e);
    return 0;
}

int key_list_read(struct key_list *l, const char *key, const char *file, struct err *err)
{
    if (key && key[0] && read_flag(l, key, err))
        return -1;
    if (!file)
        return 0;
    FILE *f = fopen(file, "re");
    if (!f)
        return err_set(err, ERR_FILE, "--api-key-file: %s: %s", file, strerror(errno));
    int failed = read_lines(l, f, file, err);
    fclose(f);
    return failed;
}

void key_list_free(struct key_list *l)
{
    free(l->key);
    *l = (struct key_list){0};
}
