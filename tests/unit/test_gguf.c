/* The GGUF reader on files built here: what it gives, and one refusal for each way to be broken. */
#include "../../core/gguf.h"

#include <stdlib.h>
#include <unistd.h>

#include "../../kernels/dequant.h"
#include "../check.h"
#include "../gguf_write.h"

static const float matrix[64] = {1, 2, 3, 4, 5, 6, 7, 8};

static void write_sample(struct gguf_write *w)
{
    static const char *const words[] = {"zero", "", "two"};
    static const float floats[] = {0.5f, -1};
    static const int32_t ints[] = {7, -8, 9};
    int64_t minus = -5, many = 70000;
    double pi = 3.25;
    unsigned char byte = 200;
    gguf_write_string(w, "general.name", "sample");
    gguf_write_u32(w, "u32", 4000000000u);
    gguf_write_f32(w, "f32", 2.5f);
    gguf_write_bool(w, "yes", 1);
    gguf_write_key(w, "u8", 0, &byte, 1);
    gguf_write_key(w, "minus", 11, &minus, 8);
    gguf_write_key(w, "i64", 11, &many, 8);
    gguf_write_key(w, "f64", 12, &pi, 8);
    gguf_write_strings(w, "words", words, 3);
    gguf_write_f32s(w, "floats", floats, 2);
    gguf_write_i32s(w, "ints", ints, 3);
    gguf_write_array(w, "nested", 9, 1, NULL, 0); /* one array of two arrays */
    gguf_put_u32(&w->keys, 9);
    gguf_put_u64(&w->keys, 2);
    gguf_put_u32(&w->keys, 8); /* {"x"} */
    gguf_put_u64(&w->keys, 1);
    gguf_put_string(&w->keys, "x", 1);
    gguf_put_u32(&w->keys, 4); /* {} of u32 */
    gguf_put_u64(&w->keys, 0);
    gguf_write_tensor(w, "b", TENSOR_F32, 2, (int64_t[]){8, 2}, matrix, 64);
    gguf_write_tensor(w, "a", TENSOR_Q4_0, 1, (int64_t[]){32}, "123456789012345678", 18);
}

static void test_metadata(const struct gguf *g)
{
    uint32_t u = 1;
    float f = 1;
    bool b = false;
    struct gguf_str s;
    EXPECT(gguf_u32(g, "u32", &u) && u == 4000000000u);
    EXPECT(gguf_u32(g, "u8", &u) && u == 200);
    EXPECT(gguf_u32(g, "i64", &u) && u == 70000);
    EXPECT(!gguf_u32(g, "minus", &u) && !gguf_u32(g, "f32", &u) && !gguf_u32(g, "", &u));
    EXPECT(!gguf_u32(g, "u3", &u) && !gguf_u32(g, "u32 ", &u) && u == 70000);
    EXPECT(gguf_f32(g, "f32", &f) && f == 2.5f);
    EXPECT(gguf_f32(g, "f64", &f) && f == 3.25f);
    EXPECT(!gguf_f32(g, "u32", &f) && f == 3.25f);
    EXPECT(gguf_bool(g, "yes", &b) && b && !gguf_bool(g, "u32", &b));
    EXPECT(gguf_string(g, "general.name", &s) && s.len == 6 && memcmp(s.s, "sample", 6) == 0);
    EXPECT(!gguf_string(g, "words", &s));

    const struct gguf_str *words;
    const float *floats;
    const int32_t *ints;
    EXPECT_INT(gguf_array_strings(g, "words", &words), 3);
    EXPECT(words[0].len == 4 && words[1].len == 0 && memcmp(words[2].s, "two", 3) == 0);
    EXPECT_INT(gguf_array_f32(g, "floats", &floats), 2);
    memcpy(&f, (const char *)floats + 4, sizeof f);
    EXPECT(f == -1);
    EXPECT_INT(gguf_array_i32(g, "ints", &ints), 3);
    EXPECT_INT(gguf_array_i32(g, "floats", &ints), -1);
    EXPECT_INT(gguf_array_strings(g, "nested", &words), -1);
    EXPECT_INT(gguf_array_strings(g, "none", &words), -1);
}

static void test_tensors(const struct gguf *g)
{
    EXPECT_INT(gguf_n_tensors(g), 2);
    const struct gguf_tensor *a = gguf_tensor(g, "a"), *b = gguf_tensor(g, "b");
    EXPECT(b == gguf_tensor_at(g, 0) && a == gguf_tensor_at(g, 1));
    EXPECT(!gguf_tensor(g, "") && !gguf_tensor(g, "ab") && !gguf_tensor(g, "c"));
    EXPECT(b->type == TENSOR_F32 && b->n_dims == 2 && b->dim[0] == 8 && b->dim[1] == 2);
    EXPECT(b->dim[2] == 1 && b->dim[3] == 1);
    EXPECT(b->bytes == 64 && memcmp(b->data, matrix, 64) == 0);
    EXPECT(a->type == TENSOR_Q4_0 && a->bytes == 18 && memcmp(a->data, "1234", 4) == 0);
}

static void test_sample(void)
{
    struct gguf_write w = {0};
    struct buf file = {0};
    struct gguf *g = NULL;
    struct err err;
    write_sample(&w);
    gguf_write_end(&w, &file);
    EXPECT_INT(gguf_open_memory(&g, file.data, file.len, &err), 0);
    test_metadata(g);
    test_tensors(g);
    EXPECT_INT(gguf_bytes(g), file.len);
    char before[17], after[17];
    gguf_fingerprint(g, before);
    file.data[file.len - 1] ^= 1;
    gguf_fingerprint(g, after);
    EXPECT(strlen(before) == 16 && strcmp(before, after) != 0);
    gguf_close(g);

    /* Version 2 is the same; every shorter file is a refusal. */
    file.data[4] = 2;
    EXPECT_INT(gguf_open_memory(&g, file.data, file.len, &err), 0);
    gguf_close(g);
    for (size_t n = 0; n < file.len; n++) {
        char *exact = malloc(n + 1); /* so that a sanitizer sees any byte read past the end */
        memcpy(exact, file.data, n);
        exact = realloc(exact, n ? n : 1);
        struct gguf *none = NULL;
        EXPECT(gguf_open_memory(&none, exact, n, &err) == -1 && !none);
        EXPECT(err.code == ERR_FILE &&
               (n < 4 || strstr(err.msg, "GGUF in memory: truncated") == err.msg));
        free(exact);
    }
    buf_free(&file);
}

/* Expect the file that w makes (w is emptied) to be refused with a message that has `why` in it. */
static void expect_refusal(struct gguf_write *w, const char *why)
{
    struct buf file = {0};
    struct gguf *g = NULL;
    struct err err = {.msg = ""};
    gguf_write_end(w, &file);
    EXPECT_INT(gguf_open_memory(&g, file.data, file.len, &err), -1);
    if (!strstr(err.msg, why))
        EXPECT_STR(err.msg, why);
    buf_free(&file);
}

static void test_broken_metadata(void)
{
    struct gguf_write w = {0};
    gguf_write_u32(&w, "x", 1);
    gguf_write_u32(&w, "y", 1);
    gguf_write_u32(&w, "x", 2);
    expect_refusal(&w, "key \"x\" is there twice");
    gguf_write_u32(&w, "", 1);
    expect_refusal(&w, "the name of a key has 0 bytes");
    gguf_write_key(&w, "a\nb", 13, "", 1);
    expect_refusal(&w, "key \"a?b\" has the unknown type 13");
    gguf_write_array(&w, "huge", 4, UINT64_MAX / 2, "1234", 4);
    expect_refusal(&w, "key \"huge\" is an array of 9223372036854775807 items");
    gguf_write_array(&w, "huge", 8, 2, "1234567", 8);
    expect_refusal(&w, "truncated");
    gguf_write_array(&w, "deep", 9, 1, NULL, 0);
    for (int i = 0; i < 50; i++) {
        gguf_put_u32(&w.keys, 9);
        gguf_put_u64(&w.keys, 1);
    }
    expect_refusal(&w, "key \"deep\" nests arrays too deep");
    gguf_write_u32(&w, "a", 1);
    w.n_keys = UINT64_MAX;
    expect_refusal(&w, "metadata keys exceed the limit");
    gguf_write_u32(&w, "a", 1);
    w.n_keys = 60000;
    expect_refusal(&w, "truncated");
    gguf_write_u32(&w, "general.alignment", 24);
    gguf_write_tensor(&w, "t", TENSOR_F32, 1, (int64_t[]){1}, matrix, 4);
    expect_refusal(&w, "general.alignment");
    gguf_write_string(&w, "general.alignment", "32");
    gguf_write_tensor(&w, "t", TENSOR_F32, 1, (int64_t[]){1}, matrix, 4);
    expect_refusal(&w, "general.alignment");
}

static void test_broken_tensors(void)
{
    struct gguf_write w = {0};
    gguf_write_tensor(&w, "t", TENSOR_F32, 1, (int64_t[]){17}, matrix, 64);
    expect_refusal(&w, "truncated: the data of tensor \"t\"");
    gguf_write_tensor(&w, "t", 10, 1, (int64_t[]){256}, matrix, 64);
    expect_refusal(&w, "tensor \"t\" is of type 10, which is not supported");
    gguf_write_tensor(&w, "t", UINT32_MAX, 1, (int64_t[]){256}, matrix, 64);
    expect_refusal(&w, "which is not supported");
    gguf_write_tensor(&w, "t", TENSOR_Q4_0, 2, (int64_t[]){16, 2}, matrix, 64);
    expect_refusal(&w, "not a multiple of Q4_0's 32");
    gguf_write_tensor(&w, "t", TENSOR_F32, 0, (int64_t[]){1}, matrix, 64);
    expect_refusal(&w, "0 dimensions");
    gguf_write_tensor(&w, "t", TENSOR_F32, 5, (int64_t[]){1, 1, 1, 1, 1}, matrix, 64);
    expect_refusal(&w, "5 dimensions");
    gguf_write_tensor(&w, "t", TENSOR_F32, 2, (int64_t[]){1, 0}, matrix, 64);
    expect_refusal(&w, "impossible shape");
    gguf_write_tensor(&w, "t", TENSOR_F32, 1, (int64_t[]){-4}, matrix, 64);
    expect_refusal(&w, "impossible shape");
    gguf_write_tensor(&w, "t", TENSOR_F32, 4, (int64_t[]){1 << 20, 1 << 20, 1 << 20, 16}, matrix,
                      64);
    expect_refusal(&w, "impossible shape");
    gguf_write_tensor(&w, "t", TENSOR_F32, 4, (int64_t[]){1 << 20, 1 << 20, 1 << 20, 4}, matrix,
                      64); /* 2^62 elements, 2^64 bytes */
    expect_refusal(&w, "impossible shape");
    gguf_write_tensor(&w, "t", TENSOR_F32, 1, (int64_t[]){1}, matrix, 4);
    gguf_write_tensor(&w, "t", TENSOR_F32, 1, (int64_t[]){1}, matrix, 4);
    expect_refusal(&w, "tensor \"t\" is there twice");
    gguf_write_tensor(&w, "t", TENSOR_F32, 1, (int64_t[]){1}, matrix, 64);
    w.table.data[w.table.len - 8] = 4;
    expect_refusal(&w, "tensor \"t\" is not aligned to 32 bytes");
    gguf_write_tensor(&w, "t", TENSOR_F32, 1, (int64_t[]){1}, matrix, 64);
    memset(w.table.data + w.table.len - 7, 0xff, 7);
    expect_refusal(&w, "truncated: the data of tensor \"t\"");
}

static void expect_open_fails(const char *path, const char *why)
{
    struct gguf *g = NULL;
    struct err err = {.msg = ""};
    EXPECT_INT(gguf_open(&g, path, &err), -1);
    EXPECT(strncmp(err.msg, path, strlen(path)) == 0);
    if (!strstr(err.msg, why))
        EXPECT_STR(err.msg, why);
}

/* Replace the file at path. */
static void put(const char *path, const void *bytes, size_t n)
{
    FILE *f = fopen(path, "wb");
    EXPECT(f && fwrite(bytes, 1, n, f) == n && fclose(f) == 0);
}

static void test_files(void)
{
    char path[] = "/tmp/clotho_gguf_XXXXXX";
    int fd = mkstemp(path);
    EXPECT(fd >= 0);
    close(fd);
    expect_open_fails(path, "the file is empty");
    expect_open_fails("/nowhere/model.gguf", "No such file");
    expect_open_fails("/tmp", "not a regular file");
    put(path, "{\"json\": true}", 14);
    expect_open_fails(path, "not a GGUF file");
    put(path, "GGUF\1\0\0\0\0\0\0\0\0\0\0\0", 16);
    expect_open_fails(path, "version 1 is not supported");
    put(path, "GGUF\0\0\0\3\0\0\0\0\0\0\0\0", 16);
    expect_open_fails(path, "big-endian");

    struct gguf_write w = {0};
    struct buf file = {0};
    struct gguf *g = NULL;
    struct err err;
    write_sample(&w);
    gguf_write_end(&w, &file);
    put(path, file.data, file.len);
    EXPECT_INT(gguf_open(&g, path, &err), 0);
    test_tensors(g);
    gguf_close(g);
    gguf_close(NULL);
    unlink(path);
    buf_free(&file);
}

int main(void)
{
    test_sample();
    test_broken_metadata();
    test_broken_tensors();
    test_files();
    return test_failures();
}
