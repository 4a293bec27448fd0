/* A file that is replaced whole: at any moment, also across a crash of the machine, it is the old
 * one or the new one. The new one is written under a name of its own in the same folder,
 * .NAME.<16 hex digits>, and locked (flock) as long as it is written, so that whatever carries such
 * a name without a lock was left behind by a process that died; the next replacement of that NAME
 * removes it. Any number of threads and processes may replace the same file: the last one wins.
 * All functions that fail say ERR_FILE. */
#pragma once
#include "err.h"

enum { REPLACE_NAME_MAX = 200 };

struct replace {
    int folder, fd; /* write to fd */
    char name[REPLACE_NAME_MAX + 1], temporary[REPLACE_NAME_MAX + 32];
    char path[256]; /* folder/name for messages; a long one is cut */
};

/* name has no slash and at most REPLACE_NAME_MAX bytes. On success end with commit or cancel. */
int replace_begin(struct replace *, const char *folder, const char *name, struct err *err);

/* The new file takes the old one's place, durably. When it fails the old one is still there, unless
 * it was the folder alone that could not be synced. */
int replace_commit(struct replace *, struct err *err);

/* All is as before. */
void replace_cancel(struct replace *);

/* Remove what dead processes left of a file. folder: a descriptor. */
void replace_sweep(int folder, const char *name);

/* Make renames and removals in a folder durable. 0, or -1 with errno. */
int replace_sync_folder(int folder);
