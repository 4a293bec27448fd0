/* The accepted keys as they are written down. */
#pragma once
#include "auth.h"

struct client_limits {
    int concurrent, per_minute; /* 0: none */
};

struct key_entry {
    unsigned char bytes[KEY_MAX + 1]; /* zeros behind it */
    char name[CLIENT_NAME_MAX + 1];
    struct client_limits limits;
};

struct key_list { /* {0} is an empty one */
    struct key_entry *key;
    int n;
};

/* The flag's key and the file's keys, either may be NULL; see auth.h for the form. On a refusal the
 * list is still to be freed. */
int key_list_read(struct key_list *, const char *key, const char *file, struct err *err);
void key_list_free(struct key_list *);
