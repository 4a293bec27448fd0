#include "replace.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

enum { DIGITS = 16 };

static bool is_temporary(const char *entry, const char *name)
{
    size_t len = strlen(name);
    return entry[0] == '.' && !strncmp(entry + 1, name, len) && entry[1 + len] == '.' &&
           strlen(entry + 2 + len) == DIGITS &&
           strspn(entry + 2 + len, "0123456789abcdef") == DIGITS;
}

/* Should its writer come between the lock and the removal - it has just created the file and not
 * locked it yet - then it finds its file unlinked and takes another (lock_own). Should its writer
 * have finished before the lock, then the file has its real name and there is nothing to remove. */
static void remove_if_unlocked(int folder, const char *entry)
{
    int fd = openat(folder, entry, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0)
        return;
    if (flock(fd, LOCK_EX | LOCK_NB) == 0)
        unlinkat(folder, entry, 0);
    close(fd);
}

void replace_sweep(int folder, const char *name)
{
    int fd = openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return;
    DIR *dir = fdopendir(fd);
    if (!dir) {
        close(fd);
        return;
    }
    for (struct dirent *entry; (entry = readdir(dir));)
        if (is_temporary(entry->d_name, name))
            remove_if_unlocked(folder, entry->d_name);
    closedir(dir);
}

/* False: a sweep came between creation and lock, the file has no name any more. A file system
 * without locks leaves the file unlocked, and every sweep as well, so that nothing is removed. */
static bool lock_own(int fd)
{
    struct stat st;
    while (flock(fd, LOCK_EX) != 0 && errno == EINTR)
        ;
    return fstat(fd, &st) == 0 && st.st_nlink > 0;
}

static int create_temporary(struct replace *r)
{
    for (;;) {
        uint64_t bits;
        CHECK(getrandom(&bits, sizeof bits, 0) == sizeof bits);
        snprintf(r->temporary, sizeof r->temporary, ".%s.%016llx", r->name,
                 (unsigned long long)bits);
        r->fd = openat(r->folder, r->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (r->fd < 0 && errno == EEXIST)
            continue;
        if (r->fd < 0)
            return -1;
        if (lock_own(r->fd))
            return 0;
        close(r->fd);
    }
}

int replace_begin(struct replace *r, const char *folder, const char *name, struct err *err)
{
    CHECK(strlen(name) <= REPLACE_NAME_MAX && !strchr(name, '/'));
    snprintf(r->name, sizeof r->name, "%s", name);
    snprintf(r->path, sizeof r->path, "%s/%s", folder, name);
    r->folder = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (r->folder < 0)
        return err_set(err, ERR_FILE, "%.255s: %s", folder, strerror(errno));
    replace_sweep(r->folder, name);
    if (create_temporary(r)) {
        err_set(err, ERR_FILE, "%s: %s", r->path, strerror(errno));
        close(r->folder);
        return -1;
    }
    return 0;
}

int replace_sync_folder(int folder)
{
    return fsync(folder) && errno != EINVAL ? -1 : 0; /* EINVAL: a folder that needs none */
}

int replace_commit(struct replace *r, struct err *err)
{
    if (fsync(r->fd) || renameat(r->folder, r->temporary, r->folder, r->name)) {
        err_set(err, ERR_FILE, "%s: %s", r->path, strerror(errno));
        replace_cancel(r);
        return -1;
    }
    int rc = replace_sync_folder(r->folder);
    if (rc)
        err_set(err, ERR_FILE, "%s: %s", r->path, strerror(errno));
    close(r->fd);
    close(r->folder);
    return rc;
}

void replace_cancel(struct replace *r)
{
    unlinkat(r->folder, r->temporary, 0);
    close(r->fd);
    close(r->folder);
}
