#include "safetensors.h"

#include <assert.h>
#include <errno.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "buf.h"

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
              "numbers are copied from and to the file as they are");

enum { LENGTH_BYTES = 8, ALIGNMENT = 8 };

static const char metadata_key[] = "__metadata__";

struct safetensors {
    int fd;
    const char *path;
    uint64_t data_at, data_bytes; /* in the file */
    uint64_t hash;
    json_t *header;
    const json_t *metadata;             /* in header; may be NULL */
    struct safetensors_tensor *tensors; /* ascending by place; strings are in header */
    int n_tensors;
};

/* ---- numbers ---- */

static const struct {
    char name[8];
    unsigned bytes;
} dtypes[] = {
    {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1},
    {"U16", 2},  {"I16", 2}, {"F16", 2}, {"BF16", 2},    {"U32", 4},
    {"I32", 4},  {"F32", 4}, {"U64", 8}, {"I64", 8},     {"F64", 8},
};

/* 0: no type of the format. */
static unsigned dtype_bytes(const char *name)
{
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++)
        if (!strcmp(name, dtypes[i].name))
            return dtypes[i].bytes;
    return 0;
}

/* What the type and shape come to; false: more than 64 bits hold. */
static bool tensor_bytes(const struct safetensors_tensor *t, uint64_t *bytes)
{
    *bytes = dtype_bytes(t->dtype);
    for (int i = 0; i < t->n_dims; i++)
        if (__builtin_mul_overflow(*bytes, t->dim[i], bytes))
            return false;
    return true;
}

/* FNV-1a, 64 bits. */
static uint64_t hash_bytes(const char *p, size_t n)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < n; i++)
        h = (h ^ (unsigned char)p[i]) * 0x100000001b3u;
    return h;
}

/* ---- reading ---- */

static int refuse_truncated(const struct safetensors *s, struct err *err)
{
    return err_set(err, ERR_FILE, "%s: truncated", s->path);
}

static int read_at(const struct safetensors *s, uint64_t at, void *to, uint64_t bytes,
                   struct err *err)
{
    for (uint64_t done = 0; done < bytes;) {
        ssize_t n = pread(s->fd, (char *)to + done, bytes - done, (off_t)(at + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_set(err, ERR_FILE, "%s: %s", s->path, strerror(errno));
        if (n == 0)
            return refuse_truncated(s, err);
        done += (uint64_t)n;
    }
    return 0;
}

static bool get_count(const json_t *value, uint64_t *out)
{
    if (!json_is_integer(value) || json_integer_value(value) < 0)
        return false;
    *out = (uint64_t)json_integer_value(value);
    return true;
}

static bool get_shape(const json_t *shape, struct safetensors_tensor *t)
{
    if (!json_is_array(shape) || json_array_size(shape) > SAFETENSORS_DIMS_MAX)
        return false;
    t->n_dims = (int)json_array_size(shape);
    for (int i = 0; i < t->n_dims; i++)
        if (!get_count(json_array_get(shape, (size_t)i), &t->dim[i]))
            return false;
    return true;
}

static int read_tensor(const struct safetensors *s, const json_t *entry,
                       struct safetensors_tensor *t, struct err *err)
{
    const json_t *offsets = json_object_get(entry, "data_offsets");
    uint64_t end, bytes;
    t->dtype = json_string_value(json_object_get(entry, "dtype"));
    if (!t->dtype || !dtype_bytes(t->dtype))
        return err_set(err, ERR_FILE, "%s: tensor \"%.64s\" has the unknown dtype \"%.32s\"",
                       s->path, t->name, t->dtype ? t->dtype : "");
    if (!get_shape(json_object_get(entry, "shape"), t) || !tensor_bytes(t, &bytes))
        return err_set(err, ERR_FILE, "%s: tensor \"%.64s\" has an impossible shape", s->path,
                       t->name);
    if (json_array_size(offsets) != 2 || !get_count(json_array_get(offsets, 0), &t->begin) ||
        !get_count(json_array_get(offsets, 1), &end) || end < t->begin)
        return err_set(err, ERR_FILE, "%s: tensor \"%.64s\" has impossible data_offsets", s->path,
                       t->name);
    t->bytes = end - t->begin;
    if (t->bytes != bytes)
        return err_set(err, ERR_FILE,
                       "%s: tensor \"%.64s\" has %llu bytes of data, its shape comes to %llu",
                       s->path, t->name, (unsigned long long)t->bytes, (unsigned long long)bytes);
    return 0;
}

static int by_place(const void *a, const void *b)
{
    const struct safetensors_tensor *x = a, *y = b;
    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes); /* empty ones first */
}

/* The tensors must fill the file's data, each where the one before ends. */
static int check_places(const struct safetensors *s, struct err *err)
{
    uint64_t end = 0;
    for (int i = 0; i < s->n_tensors; i++) {
        const struct safetensors_tensor *t = &s->tensors[i];
        if (t->begin != end)
            return err_set(err, ERR_FILE, "%s: tensor \"%.64s\" %s", s->path, t->name,
                           t->begin < end ? "overlaps another" : "leaves a gap before it");
        if (t->bytes > s->data_bytes - end)
            return err_set(err, ERR_FILE, "%s: truncated within tensor \"%.64s\"", s->path,
                           t->name);
        end += t->bytes;
    }
    if (end != s->data_bytes)
        return err_set(err, ERR_FILE, "%s: has %llu bytes after its last tensor", s->path,
                       (unsigned long long)(s->data_bytes - end));
    return 0;
}

static int read_metadata(struct safetensors *s, const json_t *metadata, struct err *err)
{
    const char *key;
    const json_t *value;
    if (!json_is_object(metadata))
        return err_set(err, ERR_FILE, "%s: %s is not an object", s->path, metadata_key);
    json_object_foreach((json_t *)metadata, key, value) if (!json_is_string(value)) return err_set(
        err, ERR_FILE, "%s: \"%.64s\" of %s is not a string", s->path, key, metadata_key);
    s->metadata = metadata;
    return 0;
}

static int read_entries(struct safetensors *s, struct err *err)
{
    const char *name;
    const json_t *entry;
    s->tensors = calloc(json_object_size(s->header) + 1, sizeof *s->tensors);
    CHECK(s->tensors && "out of memory");
    json_object_foreach(s->header, name, entry)
    {
        if (!strcmp(name, metadata_key)) {
            if (read_metadata(s, entry, err))
                return -1;
            continue;
        }
        struct safetensors_tensor *t = &s->tensors[s->n_tensors++];
        t->name = name;
        if (read_tensor(s, entry, t, err))
            return -1;
    }
    qsort(s->tensors, (size_t)s->n_tensors, sizeof *s->tensors, by_place);
    return check_places(s, err);
}

static int parse_header(struct safetensors *s, const char *text, size_t len, struct err *err)
{
    json_error_t why;
    if (len == 0 || text[0] != '{')
        return err_set(err, ERR_FILE, "%s: not a safetensors file", s->path);
    s->hash = hash_bytes(text, len);
    s->header = json_loadb(text, len, JSON_REJECT_DUPLICATES, &why);
    if (!s->header)
        return err_set(err, ERR_FILE, "%s: the header is not JSON: %s", s->path, why.text);
    return read_entries(s, err);
}

static int read_header(struct safetensors *s, struct err *err)
{
    struct stat st;
    uint64_t len, size;
    if (fstat(s->fd, &st))
        return err_set(err, ERR_FILE, "%s: %s", s->path, strerror(errno));
    if (!S_ISREG(st.st_mode))
        return err_set(err, ERR_FILE, "%s: not a regular file", s->path);
    size = (uint64_t)st.st_size;
    if (read_at(s, 0, &len, sizeof len, err))
        return -1;
    if (len > SAFETENSORS_HEADER_MAX)
        return err_set(err, ERR_FILE,
                       "%s: not a safetensors file, or one with a header of over %d bytes", s->path,
                       SAFETENSORS_HEADER_MAX);
    s->data_at = LENGTH_BYTES + len;
    if (s->data_at > size)
        return refuse_truncated(s, err);
    s->data_bytes = size - s->data_at;
    char *text = malloc(len + 1);
    CHECK(text && "out of memory");
    int rc = read_at(s, LENGTH_BYTES, text, len, err);
    if (!rc)
        rc = parse_header(s, text, len, err);
    free(text);
    return rc;
}

int safetensors_open(struct safetensors **out, int fd, const char *path, struct err *err)
{
    struct safetensors *s = calloc(1, sizeof *s);
    CHECK(s && "out of memory");
    s->fd = fd;
    s->path = path;
    if (read_header(s, err)) {
        safetensors_close(s);
        return -1;
    }
    *out = s;
    return 0;
}

void safetensors_close(struct safetensors *s)
{
    if (!s)
        return;
    json_decref(s->header);
    free(s->tensors);
    free(s);
}

const char *safetensors_metadata(const struct safetensors *s, const char *key)
{
    return json_string_value(json_object_get(s->metadata, key));
}

int safetensors_n_tensors(const struct safetensors *s)
{
    return s->n_tensors;
}

const struct safetensors_tensor *safetensors_find(const struct safetensors *s, const char *name)
{
    for (int i = 0; i < s->n_tensors; i++)
        if (!strcmp(s->tensors[i].name, name))
            return &s->tensors[i];
    return NULL;
}

int safetensors_read(const struct safetensors *s, const struct safetensors_tensor *t, void *to,
                     struct err *err)
{
    return read_at(s, s->data_at + t->begin, to, t->bytes, err);
}

uint64_t safetensors_hash(const struct safetensors *s)
{
    return s->hash;
}

/* ---- writing ---- */

/* Setting can fail only for a string that is not UTF-8, or for want of memory. */
static void set(json_t *object, const char *key, json_t *take)
{
    CHECK(json_object_set_new(object, key, take) == 0);
}

static void append(json_t *array, uint64_t n)
{
    CHECK(json_array_append_new(array, json_integer((json_int_t)n)) == 0);
}

static json_t *make_entry(const struct safetensors_tensor *t, uint64_t begin, uint64_t end)
{
    json_t *entry = json_object(), *shape = json_array(), *offsets = json_array();
    for (int i = 0; i < t->n_dims; i++)
        append(shape, t->dim[i]);
    append(offsets, begin);
    append(offsets, end);
    set(entry, "dtype", json_string(t->dtype));
    set(entry, "shape", shape);
    set(entry, "data_offsets", offsets);
    return entry;
}

static char *make_header(const struct safetensors_text *texts, int n_texts,
                         const struct safetensors_tensor *tensors, int n_tensors)
{
    json_t *header = json_object(), *metadata = json_object();
    uint64_t at = 0;
    for (int i = 0; i < n_texts; i++)
        set(metadata, texts[i].key, json_string(texts[i].value));
    set(header, metadata_key, metadata);
    for (int i = 0; i < n_tensors; i++) {
        uint64_t bytes;
        CHECK(tensor_bytes(&tensors[i], &bytes));
        set(header, tensors[i].name, make_entry(&tensors[i], at, at + bytes));
        at += bytes;
    }
    char *text = json_dumps(header, JSON_COMPACT); /* in the order of insertion */
    CHECK(text && "out of memory");
    json_decref(header);
    return text;
}

static int write_all(int fd, const char *path, const void *data, uint64_t bytes, struct err *err)
{
    for (uint64_t done = 0; done < bytes;) {
        ssize_t n = write(fd, (const char *)data + done, bytes - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_set(err, ERR_FILE, "%s: %s", path, strerror(errno));
        done += (uint64_t)n;
    }
    return 0;
}

static int write_header(int fd, const char *path, const char *json, struct err *err)
{
    struct buf out = {0};
    uint64_t len = (strlen(json) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    if (len > SAFETENSORS_HEADER_MAX)
        return err_set(err, ERR_FILE, "%s: its metadata would exceed %d bytes", path,
                       SAFETENSORS_HEADER_MAX);
    buf_add(&out, &len, sizeof len);
    buf_puts(&out, json);
    while (out.len % ALIGNMENT)
        buf_puts(&out, " ");
    int rc = write_all(fd, path, out.data, out.len, err);
    buf_free(&out);
    return rc;
}

int safetensors_write(int fd, const char *path, const struct safetensors_text *texts, int n_texts,
                      const struct safetensors_tensor *tensors, int n_tensors, struct err *err)
{
    char *json = make_header(texts, n_texts, tensors, n_tensors);
    int rc = write_header(fd, path, json, err);
    free(json);
    for (int i = 0; i < n_tensors && !rc; i++) {
        uint64_t bytes;
        CHECK(tensor_bytes(&tensors[i], &bytes));
        rc = write_all(fd, path, tensors[i].data, bytes, err);
    }
    return rc;
}
