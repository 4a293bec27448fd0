#include "gguf.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../kernels/dequant.h"
#include "arena.h"

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
              "numbers are copied from the file as they are");

/* Everything in memory points into the file's bytes; only the tables below are allocated, each
 * after its count was checked against the bytes that are there. Names of keys and tensors are
 * looked up by bisection: sorting also finds duplicates. */

enum value_type {
    TYPE_U8,
    TYPE_I8,
    TYPE_U16,
    TYPE_I16,
    TYPE_U32,
    TYPE_I32,
    TYPE_F32,
    TYPE_BOOL,
    TYPE_STRING,
    TYPE_ARRAY,
    TYPE_U64,
    TYPE_I64,
    TYPE_F64,
    N_TYPES
};

/* Bytes of a scalar; of a string and an array the least they can take. */
static const size_t type_bytes[N_TYPES] = {1, 1, 2, 2, 4, 4, 4, 1, 8, 12, 8, 8, 8};

enum {
    MAX_KEYS = 1 << 16,
    MAX_TENSORS = 1 << 20,
    MAX_NAME = 65535,
    MAX_NESTING = 4,
    DEFAULT_ALIGNMENT = 32,
    MAX_ALIGNMENT = 1 << 20,
    MIN_KEY_BYTES = 13, /* length, type and one byte of value */
    MIN_TENSOR_BYTES = 32,
};

struct key {
    struct gguf_str name;
    enum value_type type;
    enum value_type item;           /* of an array */
    uint64_t n;                     /* items of an array */
    const unsigned char *data;      /* the scalar, or the first item */
    const struct gguf_str *strings; /* of a string (1) or an array of strings (n) */
};

struct gguf {
    const unsigned char *base;
    size_t size, meta_size; /* of the file; of header, metadata and tensor table */
    bool mapped;
    struct arena arena;
    struct key *keys; /* ascending by name */
    int n_keys;
    struct gguf_tensor *tensors;        /* in the file's order */
    const struct gguf_tensor **by_name; /* ascending */
    int n_tensors;
};

struct reader {
    const unsigned char *base;
    size_t size, at; /* at <= size */
    const char *path;
    struct arena *arena;
    struct err *err;
};

__attribute__((format(printf, 2, 3))) static int refuse(struct reader *r, const char *fmt, ...)
{
    char text[256];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    return err_set(r->err, ERR_FILE, "%s: %s", r->path, text);
}

static int refuse_truncated(struct reader *r)
{
    return refuse(r, "truncated: the file ends within its metadata");
}

/* A name of the file, made fit to be part of a message. */
struct shown {
    char s[72];
};

static struct shown show(struct gguf_str name)
{
    struct shown out;
    size_t n = name.len < sizeof out.s - 1 ? name.len : sizeof out.s - 1;
    for (size_t i = 0; i < n; i++)
        out.s[i] = name.s[i] >= ' ' && name.s[i] <= '~' ? name.s[i] : '?';
    out.s[n] = '\0';
    return out;
}

static size_t left(const struct reader *r)
{
    return r->size - r->at;
}

static int skip(struct reader *r, uint64_t n)
{
    if (n > left(r))
        return refuse_truncated(r);
    r->at += n;
    return 0;
}

static int read_bytes(struct reader *r, void *out, size_t n)
{
    const unsigned char *from = r->base + r->at;
    if (skip(r, n))
        return -1;
    memcpy(out, from, n);
    return 0;
}

static int read_u32(struct reader *r, uint32_t *out)
{
    return read_bytes(r, out, sizeof *out);
}

static int read_u64(struct reader *r, uint64_t *out)
{
    return read_bytes(r, out, sizeof *out);
}

static int read_string(struct reader *r, struct gguf_str *out)
{
    uint64_t len;
    if (read_u64(r, &len))
        return -1;
    const unsigned char *s = r->base + r->at;
    if (skip(r, len))
        return -1;
    *out = (struct gguf_str){(const char *)s, len};
    return 0;
}

static int read_name(struct reader *r, const char *what, struct gguf_str *out)
{
    if (read_string(r, out))
        return -1;
    if (out->len == 0 || out->len > MAX_NAME)
        return refuse(r, "the name of a %s has %zu bytes, not 1 to %d", what, out->len, MAX_NAME);
    return 0;
}

static int read_type(struct reader *r, const struct key *k, enum value_type *out)
{
    uint32_t type;
    if (read_u32(r, &type))
        return -1;
    if (type >= N_TYPES)
        return refuse(r, "key \"%s\" has the unknown type %u", show(k->name).s, type);
    *out = (enum value_type)type;
    return 0;
}

/* The head of an array: its items cannot be more than the bytes that are left. */
static int read_array_head(struct reader *r, const struct key *k, enum value_type *item,
                           uint64_t *n)
{
    if (read_type(r, k, item) || read_u64(r, n))
        return -1;
    if (*n > left(r) / type_bytes[*item])
        return refuse(r, "truncated: key \"%s\" is an array of %llu items that are not there",
                      show(k->name).s, (unsigned long long)*n);
    return 0;
}

static int skip_items(struct reader *r, const struct key *k, enum value_type item, uint64_t n,
                      int depth)
{
    if (item != TYPE_STRING && item != TYPE_ARRAY)
        return skip(r, n * type_bytes[item]);
    if (depth > MAX_NESTING)
        return refuse(r, "key \"%s\" nests arrays too deep", show(k->name).s);
    for (uint64_t i = 0; i < n; i++) {
        struct gguf_str s;
        enum value_type inner;
        uint64_t n_inner;
        if (item == TYPE_STRING ? read_string(r, &s)
                                : read_array_head(r, k, &inner, &n_inner) ||
                                      skip_items(r, k, inner, n_inner, depth + 1))
            return -1;
    }
    return 0;
}

static int read_strings(struct reader *r, struct key *k, uint64_t n)
{
    struct gguf_str *strings = ARENA_NEW(r->arena, struct gguf_str, n);
    for (uint64_t i = 0; i < n; i++)
        if (read_string(r, &strings[i]))
            return -1;
    k->strings = strings;
    return 0;
}

static int read_key(struct reader *r, struct key *k)
{
    if (read_name(r, "key", &k->name) || read_type(r, k, &k->type))
        return -1;
    if (k->type == TYPE_STRING)
        return read_strings(r, k, 1);
    if (k->type == TYPE_ARRAY && read_array_head(r, k, &k->item, &k->n))
        return -1;
    k->data = r->base + r->at;
    if (k->type != TYPE_ARRAY)
        return skip(r, type_bytes[k->type]);
    if (k->item == TYPE_STRING)
        return read_strings(r, k, k->n);
    return skip_items(r, k, k->item, k->n, 1);
}

static int compare(struct gguf_str a, struct gguf_str b)
{
    int c = memcmp(a.s, b.s, a.len < b.len ? a.len : b.len);
    return c ? c : (a.len > b.len) - (a.len < b.len);
}

static int compare_keys(const void *a, const void *b)
{
    const struct key *x = a, *y = b;
    return compare(x->name, y->name);
}

static int compare_tensors(const void *a, const void *b)
{
    const struct gguf_tensor *const *x = a, *const *y = b;
    return compare((*x)->name, (*y)->name);
}

static struct gguf_str str(const char *s)
{
    return (struct gguf_str){s, strlen(s)};
}

static const struct key *find(const struct gguf *g, const char *name)
{
    struct key wanted = {.name = str(name)};
    return bsearch(&wanted, g->keys, (size_t)g->n_keys, sizeof *g->keys, compare_keys);
}

static int read_keys(struct reader *r, struct gguf *g, uint64_t n)
{
    if (n > MAX_KEYS)
        return refuse(r, "%llu metadata keys exceed the limit %d", (unsigned long long)n, MAX_KEYS);
    if (n > left(r) / MIN_KEY_BYTES)
        return refuse_truncated(r);
    g->keys = ARENA_NEW(r->arena, struct key, n);
    g->n_keys = (int)n;
    for (int i = 0; i < g->n_keys; i++)
        if (read_key(r, &g->keys[i]))
            return -1;
    qsort(g->keys, n, sizeof *g->keys, compare_keys);
    for (int i = 1; i < g->n_keys; i++)
        if (compare_keys(&g->keys[i - 1], &g->keys[i]) == 0)
            return refuse(r, "key \"%s\" is there twice", show(g->keys[i].name).s);
    return 0;
}

/* The shape, with its number of bytes; every product is checked. */
static int read_shape(struct reader *r, struct gguf_tensor *t)
{
    uint32_t n_dims;
    if (read_u32(r, &n_dims))
        return -1;
    if (n_dims < 1 || n_dims > 4)
        return refuse(r, "tensor \"%s\" has %u dimensions, not 1 to 4", show(t->name).s, n_dims);
    t->n_dims = (int)n_dims;
    int64_t elements = 1;
    for (int i = 0; i < 4; i++) {
        t->dim[i] = 1;
        if (i < t->n_dims && read_bytes(r, &t->dim[i], sizeof t->dim[i]))
            return -1;
        if (t->dim[i] < 1 || __builtin_mul_overflow(elements, t->dim[i], &elements) ||
            elements > INT64_MAX / 8) /* so that no format's bytes overflow */
            return refuse(r, "tensor \"%s\" has an impossible shape", show(t->name).s);
    }
    return 0;
}

/* A row of the tensor table. *offset is relative to the data section, which is checked later. */
static int read_tensor(struct reader *r, struct gguf_tensor *t, uint64_t *offset)
{
    uint32_t type;
    if (read_name(r, "tensor", &t->name) || read_shape(r, t) || read_u32(r, &type) ||
        read_u64(r, offset))
        return -1;
    if (type > INT32_MAX || !tensor_type_known((int)type))
        return refuse(r,
                      "tensor \"%s\" is of type %u, which is not supported (F32 F16 BF16 Q8_0 "
                      "Q4_0 Q4_1 Q5_0 Q5_1 Q4_K Q5_K Q6_K are)",
                      show(t->name).s, type);
    t->type = (int)type;
    int block = tensor_type_block(t->type);
    if (t->dim[0] % block)
        return refuse(r, "tensor \"%s\" has rows of %lld elements, not a multiple of %s's %d",
                      show(t->name).s, (long long)t->dim[0], tensor_type_name(t->type), block);
    t->bytes = tensor_row_bytes(t->type, (size_t)(t->dim[0] * t->dim[1] * t->dim[2] * t->dim[3]));
    return 0;
}

/* 0: refused. */
static uint32_t read_alignment(struct reader *r, const struct gguf *g)
{
    static const char name[] = "general.alignment";
    uint32_t a = find(g, name) ? 0 : DEFAULT_ALIGNMENT;
    gguf_u32(g, name, &a);
    if (a == 0 || a & (a - 1) || a > MAX_ALIGNMENT) {
        refuse(r, "%s is not a power of two up to %d", name, MAX_ALIGNMENT);
        return 0;
    }
    return a;
}

/* The data section begins at the next multiple of the alignment after the tensor table. */
static int place_tensors(struct reader *r, struct gguf *g, const uint64_t *offset)
{
    uint32_t alignment = read_alignment(r, g);
    if (!alignment)
        return -1;
    size_t start = (g->meta_size + alignment - 1) / alignment * alignment;
    for (int i = 0; i < g->n_tensors; i++) {
        struct gguf_tensor *t = &g->tensors[i];
        if (offset[i] % alignment)
            return refuse(r, "tensor \"%s\" is not aligned to %u bytes", show(t->name).s,
                          alignment);
        if (start > r->size || offset[i] > r->size - start ||
            t->bytes > r->size - start - offset[i])
            return refuse(r, "truncated: the data of tensor \"%s\" lies beyond the file's end",
                          show(t->name).s);
        t->data = r->base + start + offset[i];
    }
    return 0;
}

static int index_tensors(struct reader *r, struct gguf *g)
{
    g->by_name = ARENA_NEW(r->arena, const struct gguf_tensor *, g->n_tensors);
    for (int i = 0; i < g->n_tensors; i++)
        g->by_name[i] = &g->tensors[i];
    qsort(g->by_name, (size_t)g->n_tensors, sizeof *g->by_name, compare_tensors);
    for (int i = 1; i < g->n_tensors; i++)
        if (compare(g->by_name[i - 1]->name, g->by_name[i]->name) == 0)
            return refuse(r, "tensor \"%s\" is there twice", show(g->by_name[i]->name).s);
    return 0;
}

static int read_tensors(struct reader *r, struct gguf *g, uint64_t n)
{
    if (n > MAX_TENSORS)
        return refuse(r, "%llu tensors exceed the limit %d", (unsigned long long)n, MAX_TENSORS);
    if (n > left(r) / MIN_TENSOR_BYTES)
        return refuse_truncated(r);
    g->tensors = ARENA_NEW(r->arena, struct gguf_tensor, n);
    g->n_tensors = (int)n;
    uint64_t *offset = ARENA_NEW(r->arena, uint64_t, n);
    for (int i = 0; i < g->n_tensors; i++)
        if (read_tensor(r, &g->tensors[i], &offset[i]))
            return -1;
    g->meta_size = r->at;
    return index_tensors(r, g) ? -1 : place_tensors(r, g, offset);
}

/* Versions 2 and 3 have one layout; version 1 had 32-bit counts. */
static int read_header(struct reader *r, uint64_t *n_tensors, uint64_t *n_keys)
{
    char magic[4];
    uint32_t version;
    if (r->size < 4 || read_bytes(r, magic, 4) || memcmp(magic, "GGUF", 4) != 0)
        return refuse(r, "not a GGUF file");
    if (read_u32(r, &version))
        return -1;
    if (version == 0x02000000 || version == 0x03000000)
        return refuse(r, "a big-endian GGUF file, which is not supported");
    if (version != 2 && version != 3)
        return refuse(r, "GGUF version %u is not supported (2 and 3 are)", version);
    return read_u64(r, n_tensors) || read_u64(r, n_keys) ? -1 : 0;
}

static int open_bytes(struct gguf **out, const void *data, size_t size, bool mapped,
                      const char *path, struct err *err)
{
    struct gguf *g = calloc(1, sizeof *g);
    CHECK(g && "out of memory");
    g->base = data;
    g->size = size;
    g->mapped = mapped;
    struct reader r = {g->base, size, 0, path, &g->arena, err};
    uint64_t n_tensors = 0, n_keys = 0;
    if (read_header(&r, &n_tensors, &n_keys) || read_keys(&r, g, n_keys) ||
        read_tensors(&r, g, n_tensors)) {
        gguf_close(g);
        return -1;
    }
    *out = g;
    return 0;
}

int gguf_open_memory(struct gguf **out, const void *data, size_t size, struct err *err)
{
    return open_bytes(out, data, size, false, "GGUF in memory", err);
}

static int open_descriptor(struct gguf **out, int fd, const char *path, struct err *err)
{
    struct stat st;
    if (fstat(fd, &st) != 0)
        return err_set(err, ERR_FILE, "%s: %s", path, strerror(errno));
    if (!S_ISREG(st.st_mode))
        return err_set(err, ERR_FILE, "%s: not a regular file", path);
    if (st.st_size == 0)
        return err_set(err, ERR_FILE, "%s: the file is empty", path);
    size_t size = (size_t)st.st_size;
    void *data = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
    if (data == MAP_FAILED)
        return err_set(err, ERR_FILE, "%s: cannot map it: %s", path, strerror(errno));
    madvise(data, size, MADV_WILLNEED); /* a hint: loading reads all of it once, in order */
    return open_bytes(out, data, size, true, path, err);
}

int gguf_open(struct gguf **out, const char *path, struct err *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO must not make us wait */
    if (fd < 0)
        return err_set(err, ERR_FILE, "%s: %s", path, strerror(errno));
    int rc = open_descriptor(out, fd, path, err);
    close(fd);
    return rc;
}

void gguf_forget(const struct gguf *g)
{
    if (g->mapped)
        madvise((void *)g->base, g->size, MADV_DONTNEED);
}

void gguf_close(struct gguf *g)
{
    if (!g)
        return;
    if (g->mapped)
        munmap((void *)g->base, g->size);
    arena_free(&g->arena);
    free(g);
}

const struct gguf_tensor *gguf_tensor(const struct gguf *g, const char *name)
{
    struct gguf_tensor wanted = {.name = str(name)};
    const struct gguf_tensor *key = &wanted, **found;
    found = bsearch(&key, g->by_name, (size_t)g->n_tensors, sizeof *g->by_name, compare_tensors);
    return found ? *found : NULL;
}

int gguf_n_tensors(const struct gguf *g)
{
    return g->n_tensors;
}

const struct gguf_tensor *gguf_tensor_at(const struct gguf *g, int i)
{
    return &g->tensors[i];
}

static bool is_integer(enum value_type t)
{
    return t <= TYPE_I32 || t == TYPE_U64 || t == TYPE_I64;
}

static bool is_signed(enum value_type t)
{
    return t == TYPE_I8 || t == TYPE_I16 || t == TYPE_I32 || t == TYPE_I64;
}

bool gguf_u32(const struct gguf *g, const char *name, uint32_t *out)
{
    const struct key *k = find(g, name);
    if (!k || !is_integer(k->type))
        return false;
    uint64_t v = 0;
    size_t n = type_bytes[k->type];
    memcpy(&v, k->data, n);
    bool negative = is_signed(k->type) && v >> (8 * n - 1);
    if (negative || v > UINT32_MAX)
        return false;
    *out = (uint32_t)v;
    return true;
}

bool gguf_f32(const struct gguf *g, const char *name, float *out)
{
    const struct key *k = find(g, name);
    if (k && k->type == TYPE_F32) {
        memcpy(out, k->data, sizeof *out);
        return true;
    }
    if (k && k->type == TYPE_F64) {
        double v;
        memcpy(&v, k->data, sizeof v);
        *out = (float)v;
        return true;
    }
    return false;
}

bool gguf_bool(const struct gguf *g, const char *name, bool *out)
{
    const struct key *k = find(g, name);
    if (!k || k->type != TYPE_BOOL)
        return false;
    *out = k->data[0] != 0;
    return true;
}

bool gguf_string(const struct gguf *g, const char *name, struct gguf_str *out)
{
    const struct key *k = find(g, name);
    if (!k || k->type != TYPE_STRING)
        return false;
    *out = k->strings[0];
    return true;
}

static const struct key *find_array(const struct gguf *g, const char *name, enum value_type item)
{
    const struct key *k = find(g, name);
    return k && k->type == TYPE_ARRAY && k->item == item ? k : NULL;
}

int64_t gguf_array_strings(const struct gguf *g, const char *name, const struct gguf_str **out)
{
    const struct key *k = find_array(g, name, TYPE_STRING);
    if (!k)
        return -1;
    *out = k->strings;
    return (int64_t)k->n;
}

int64_t gguf_array_f32(const struct gguf *g, const char *name, const float **out)
{
    const struct key *k = find_array(g, name, TYPE_F32);
    if (!k)
        return -1;
    *out = (const float *)(const void *)k->data;
    return (int64_t)k->n;
}

int64_t gguf_array_i32(const struct gguf *g, const char *name, const int32_t **out)
{
    const struct key *k = find_array(g, name, TYPE_I32);
    if (!k)
        return -1;
    *out = (const int32_t *)(const void *)k->data;
    return (int64_t)k->n;
}

size_t gguf_bytes(const struct gguf *g)
{
    return g->size;
}

/* FNV-1a, 64 bits. */
static uint64_t hash(uint64_t h, const unsigned char *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        h = (h ^ p[i]) * 0x100000001b3u;
    return h;
}

void gguf_fingerprint(const struct gguf *g, char out[17])
{
    enum { SAMPLES = 4, SAMPLE = 256 }; /* a few pages a tensor: models are larger than memory */
    uint64_t h = hash(0xcbf29ce484222325u, g->base, g->meta_size);
    for (int i = 0; i < g->n_tensors; i++) {
        const struct gguf_tensor *t = &g->tensors[i];
        size_t n = t->bytes < SAMPLE ? t->bytes : SAMPLE;
        for (size_t s = 0; s < SAMPLES; s++) /* the first bytes, the last, and between */
            h = hash(h, (const unsigned char *)t->data + (t->bytes - n) / (SAMPLES - 1) * s, n);
    }
    snprintf(out, 17, "%016llx", (unsigned long long)h);
}
