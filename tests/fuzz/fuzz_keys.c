/* Any bytes as the file of keys: refused in one line without a key in it, or read; and then every
 * key is one that a header can carry, and keys of one name have the same limits. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../../server/key_file.h"

static char path[] = "/dev/shm/clotho_keys_XXXXXX";

static void remove_file(void)
{
    unlink(path);
}

static void put(const uint8_t *data, size_t size)
{
    if (strstr(path, "XXXXXX")) {
        CHECK(close(mkstemp(path)) == 0);
        atexit(remove_file);
    }
    FILE *f = fopen(path, "wb");
    CHECK(f && fwrite(data, 1, size, f) == size && fclose(f) == 0);
}

static void check_entry(const struct key_entry *e)
{
    size_t n = strlen((const char *)e->bytes);
    CHECK(n > 0 && n <= KEY_MAX && strlen(e->name) > 0);
    for (size_t i = 0; i < sizeof e->bytes; i++)
        CHECK(i < n ? e->bytes[i] > ' ' && e->bytes[i] < 127 : e->bytes[i] == 0);
    CHECK(e->limits.concurrent >= 0 && e->limits.per_minute >= 0);
}

static void check_list(const struct key_list *l)
{
    CHECK(l->n > 0 && l->n <= KEYS_MAX);
    for (int i = 0; i < l->n; i++) {
        check_entry(&l->key[i]);
        for (int j = 0; j < i; j++) {
            CHECK(memcmp(l->key[i].bytes, l->key[j].bytes, sizeof l->key[i].bytes) != 0);
            CHECK(strcmp(l->key[i].name, l->key[j].name) != 0 ||
                  memcmp(&l->key[i].limits, &l->key[j].limits, sizeof l->key[i].limits) == 0);
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct key_list l = {0};
    struct err err;
    put(data, size);
    if (key_list_read(&l, NULL, path, &err) == 0)
        check_list(&l);
    else
        CHECK(strlen(err.msg) > 0 && !strchr(err.msg, '\n'));
    key_list_free(&l);
    return 0;
}
