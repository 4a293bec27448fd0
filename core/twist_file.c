#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "replace.h"
#include "twist_impl.h"

static const char suffix[] = ".safetensors";

enum { FILE_NAME_MAX = TWIST_NAME_MAX + sizeof suffix };

static void file_name(char out[FILE_NAME_MAX], const char *name)
{
    snprintf(out, FILE_NAME_MAX, "%s%s", name, suffix);
}

/* ---- tensors ---- */

/* The tensors of a twist in the file's order, their data the twist's own. Of a spec alone: names
 * and shapes. */
struct tensors {
    int n;
    struct safetensors_tensor list[TWIST_TENSORS_MAX];
    char names[TWIST_TENSORS_MAX][24];
};

static void add_tensor(struct tensors *out, uint64_t rows, uint64_t columns, const float *data)
{
    struct safetensors_tensor *t = &out->list[out->n];
    *t = (struct safetensors_tensor){
        .name = out->names[out->n], .dtype = "F32", .dim = {rows, columns}, .data = data};
    t->n_dims = columns ? 2 : 1;
    out->n++;
}

static void list_tensors(struct tensors *out, const struct twist *t, bool calibrated)
{
    out->n = 0;
    for (int i = 0; i < t->spec.n_layers; i++) {
        uint64_t rows = (uint64_t)twist_out(&t->spec, i);
        snprintf(out->names[out->n], sizeof *out->names, "layer.%d.weight", i);
        add_tensor(out, rows, (uint64_t)twist_in(&t->spec, i), t->w[i]);
        snprintf(out->names[out->n], sizeof *out->names, "layer.%d.bias", i);
        add_tensor(out, rows, 0, t->b[i]);
    }
    if (!calibrated)
        return;
    snprintf(out->names[out->n], sizeof *out->names, "calibration");
    add_tensor(out, (uint64_t)t->spec.max_tokens, 0, t->spec.calibration);
}

static bool all_finite(const struct safetensors_tensor *t)
{
    const uint32_t exponent = 0x7f800000u; /* all ones: infinite or NaN */
    const float *x = t->data;
    size_t n = t->dim[0] * (t->n_dims == 2 ? t->dim[1] : 1);
    uint32_t bad = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        bad |= (bits & exponent) == exponent;
    }
    return !bad;
}

/* ---- saving ---- */

/* What twist_load would refuse is not written in the first place. */
static int check_twist(const struct twist *t, const struct tensors *tensors, struct err *err)
{
    const char *fault = twist_fault(&t->spec);
    if (fault)
        return err_set(err, ERR_INVALID, "twist \"%s\": its %s is out of range", t->spec.name,
                       fault);
    for (int i = 0; i < tensors->n; i++)
        if (!all_finite(&tensors->list[i]))
            return err_set(err, ERR_INVALID, "twist \"%s\": %s has numbers that are not finite",
                           t->spec.name, tensors->names[i]);
    return 0;
}

static int write_twist(const struct replace *file, const struct twist *t,
                       const struct tensors *tensors, struct err *err)
{
    struct safetensors_text texts[TWIST_TEXTS_MAX];
    struct arena arena = {0};
    int n = twist_texts(&t->spec, &arena, texts);
    int rc = safetensors_write(file->fd, file->path, texts, n, tensors->list, tensors->n, err);
    arena_free(&arena);
    return rc;
}

int twist_save(const struct twist *t, const char *dir, struct err *err)
{
    char name[FILE_NAME_MAX];
    struct tensors tensors;
    struct replace file;
    CHECK(twist_name_ok(t->spec.name));
    file_name(name, t->spec.name);
    list_tensors(&tensors, t, t->spec.calibration);
    if (check_twist(t, &tensors, err) || replace_begin(&file, dir, name, err))
        return -1;
    if (write_twist(&file, t, &tensors, err)) {
        replace_cancel(&file);
        return -1;
    }
    return replace_commit(&file, err);
}

/* ---- reading ---- */

struct source {
    int fd;
    struct stat st;
    struct safetensors *file;
    char path[256]; /* for messages; a long one is cut */
};

static int open_folder(const char *dir, struct err *err)
{
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return fd < 0 ? err_set(err, ERR_FILE, "%.255s: %s", dir, strerror(errno)) : fd;
}

static int not_found(const char *name, struct err *err)
{
    return err_set(err, ERR_NOT_FOUND, "there is no twist \"%s\"", name);
}

static int source_open(struct source *s, int folder, const char *dir, const char *name,
                       struct err *err)
{
    char leaf[FILE_NAME_MAX];
    if (!twist_name_ok(name))
        return not_found(name, err);
    file_name(leaf, name);
    snprintf(s->path, sizeof s->path, "%s/%s", dir, leaf);
    s->fd = openat(folder, leaf, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO must not wait */
    if (s->fd < 0)
        return errno == ENOENT ? not_found(name, err)
                               : err_set(err, ERR_FILE, "%s: %s", s->path, strerror(errno));
    int rc = fstat(s->fd, &s->st);
    if (rc)
        err_set(err, ERR_FILE, "%s: %s", s->path, strerror(errno));
    if (rc || safetensors_open(&s->file, s->fd, s->path, err)) {
        close(s->fd);
        return -1;
    }
    return 0;
}

static void source_close(struct source *s)
{
    safetensors_close(s->file);
    close(s->fd);
}

static int check_tensor(const struct source *s, const struct safetensors_tensor *want,
                        struct err *err)
{
    const struct safetensors_tensor *t = safetensors_find(s->file, want->name);
    if (!t)
        return err_set(err, ERR_FILE, "%s: lacks tensor \"%s\"", s->path, want->name);
    if (strcmp(t->dtype, want->dtype) != 0)
        return err_set(err, ERR_FILE, "%s: tensor \"%s\" is %s, not %s", s->path, t->name, t->dtype,
                       want->dtype);
    if (t->n_dims != want->n_dims || memcmp(t->dim, want->dim, sizeof t->dim) != 0)
        return err_set(err, ERR_FILE, "%s: tensor \"%s\" has not the shape that the metadata tell",
                       s->path, t->name);
    return 0;
}

/* The file's tensors must be those of a twist of this spec, and no others. */
static int check_tensors(const struct source *s, const struct twist_spec *spec, bool calibrated,
                         struct err *err)
{
    const struct twist shape = {.spec = *spec};
    struct tensors want;
    list_tensors(&want, &shape, calibrated);
    for (int i = 0; i < want.n; i++)
        if (check_tensor(s, &want.list[i], err))
            return -1;
    if (safetensors_n_tensors(s->file) != want.n)
        return err_set(err, ERR_FILE, "%s: has %d tensors, not %d", s->path,
                       safetensors_n_tensors(s->file), want.n);
    return 0;
}

/* All but the calibration; request is borrowed from the source. */
static int read_spec(const struct source *s, const char *name, struct twist_spec *out,
                     bool *calibrated, struct err *err)
{
    *out = (struct twist_spec){0};
    snprintf(out->name, sizeof out->name, "%s", name);
    *calibrated = safetensors_find(s->file, "calibration");
    return twist_read_texts(out, s->file, s->path, err) || check_tensors(s, out, *calibrated, err)
               ? -1
               : 0;
}

static int read_numbers(const struct source *s, const struct twist *t, struct err *err)
{
    struct tensors tensors;
    list_tensors(&tensors, t, t->spec.calibration);
    for (int i = 0; i < tensors.n; i++) {
        const struct safetensors_tensor *to = &tensors.list[i];
        if (safetensors_read(s->file, safetensors_find(s->file, to->name), (void *)to->data, err))
            return -1;
        if (!all_finite(to))
            return err_set(err, ERR_FILE, "%s: tensor \"%s\" has numbers that are not finite",
                           s->path, to->name);
    }
    return 0;
}

static int read_twist(const struct source *s, const char *name, struct twist **out, struct err *err)
{
    struct twist_spec spec;
    bool calibrated;
    if (read_spec(s, name, &spec, &calibrated, err))
        return -1;
    struct twist *t = twist_allocate(&spec, calibrated);
    if (!t)
        return err_set(err, ERR_FILE, "%s: too large for the memory", s->path);
    if (read_numbers(s, t, err)) {
        twist_free(t);
        return -1;
    }
    *out = t;
    return 0;
}

int twist_load(struct twist **out, const char *dir, const char *name, struct err *err)
{
    struct source s;
    int folder = open_folder(dir, err);
    if (folder < 0)
        return -1;
    int rc = source_open(&s, folder, dir, name, err);
    close(folder);
    if (rc)
        return -1;
    rc = read_twist(&s, name, out, err);
    source_close(&s);
    return rc;
}

/* A new file has another inode or another time; or, where both came back within a tick of the
 * clock, another header, which counts the updates. */
static uint64_t identity(const struct source *s)
{
    const uint64_t words[] = {s->st.st_ino, (uint64_t)s->st.st_size, (uint64_t)s->st.st_mtim.tv_sec,
                              (uint64_t)s->st.st_mtim.tv_nsec};
    uint64_t h = safetensors_hash(s->file);
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        h = (h ^ words[i]) * 0x9e3779b97f4a7c15u;
        h ^= h >> 32;
    }
    return h;
}

/* Request and calibration of a spec that was just read, in the arena. */
static int keep_texts(const struct source *s, bool calibrated, struct twist_spec *spec,
                      struct arena *arena, struct err *err)
{
    if (spec->request)
        spec->request = arena_strdup(arena, spec->request, strlen(spec->request));
    if (!calibrated)
        return 0;
    float *calibration = ARENA_NEW(arena, float, spec->max_tokens);
    spec->calibration = calibration;
    return safetensors_read(s->file, safetensors_find(s->file, "calibration"), calibration, err);
}

/* arena: NULL, or where request and calibration are to be. */
static int stat_in(struct twist_file *out, struct arena *arena, int folder, const char *dir,
                   const char *name, struct err *err)
{
    struct source s;
    bool calibrated;
    if (source_open(&s, folder, dir, name, err))
        return -1;
    *out = (struct twist_file){.created_unix = s.st.st_mtim.tv_sec,
                               .bytes = (size_t)s.st.st_size,
                               .identity = identity(&s)};
    int rc = read_spec(&s, name, &out->spec, &calibrated, err);
    if (rc == 0 && arena)
        rc = keep_texts(&s, calibrated, &out->spec, arena, err);
    else
        out->spec.request = NULL;
    source_close(&s);
    return rc;
}

int twist_describe(struct twist_file *out, struct arena *arena, const char *dir, const char *name,
                   struct err *err)
{
    int folder = open_folder(dir, err);
    if (folder < 0)
        return -1;
    int rc = stat_in(out, arena, folder, dir, name, err);
    close(folder);
    return rc;
}

int twist_stat(struct twist_file *out, const char *dir, const char *name, struct err *err)
{
    return twist_describe(out, NULL, dir, name, err);
}

/* ---- the folder ---- */

/* The twist that an entry of the folder may be: NAME of NAME.safetensors. */
static bool entry_name(const char *entry, char name[TWIST_NAME_MAX + 1])
{
    size_t len = strlen(entry), tail = strlen(suffix);
    if (len <= tail || len - tail > TWIST_NAME_MAX || strcmp(entry + len - tail, suffix) != 0)
        return false;
    memcpy(name, entry, len - tail);
    name[len - tail] = '\0';
    return twist_name_ok(name);
}

static int by_name(const void *a, const void *b)
{
    const struct twist_file *x = a, *y = b;
    return strcmp(x->spec.name, y->spec.name);
}

int twist_list(struct twist_file **out, const char *dir, struct err *err)
{
    struct twist_file *list = NULL;
    int n = 0, capacity = 0;
    DIR *folder = opendir(dir);
    if (!folder)
        return err_set(err, ERR_FILE, "%.255s: %s", dir, strerror(errno));
    for (struct dirent *entry; (entry = readdir(folder));) {
        char name[TWIST_NAME_MAX + 1];
        struct err broken;
        if (n == capacity) {
            capacity = capacity ? 2 * capacity : 16;
            list = realloc(list, (size_t)capacity * sizeof *list);
            CHECK(list && "out of memory");
        }
        if (entry_name(entry->d_name, name) &&
            stat_in(&list[n], NULL, dirfd(folder), dir, name, &broken) == 0)
            n++;
    }
    closedir(folder);
    if (n)
        qsort(list, (size_t)n, sizeof *list, by_name);
    *out = list;
    return n;
}

int twist_can_save(const char *dir, struct err *err)
{
    if (access(dir, W_OK | X_OK) == 0)
        return 0;
    return err_set(err, ERR_INVALID, "this server can keep no twists: %s: %s", dir,
                   strerror(errno));
}

int twist_remove(const char *dir, const char *name, struct err *err)
{
    char leaf[FILE_NAME_MAX];
    int folder;
    if (!twist_name_ok(name))
        return not_found(name, err);
    if ((folder = open_folder(dir, err)) < 0)
        return -1;
    file_name(leaf, name);
    replace_sweep(folder, leaf); /* nobody may ever save under this name again */
    int rc = unlinkat(folder, leaf, 0) || replace_sync_folder(folder) ? -1 : 0;
    if (rc && errno == ENOENT)
        not_found(name, err);
    else if (rc)
        err_set(err, ERR_FILE, "%.200s/%s: %s", dir, leaf, strerror(errno));
    close(folder);
    return rc;
}
