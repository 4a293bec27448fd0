/* Any bytes as the file of a twist - or, where they begin with a brace, as its header up to the
 * last brace, and its data. Refused in one line, or loaded; what was loaded is as the header says,
 * finite, and the same again when it is saved. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../../core/twist.h"
#include "../../kernels/backend.h"

static char folder[] = "/dev/shm/clotho_fuzz_XXXXXX"; /* saving syncs: keep that off the disks */
static char path[64];

static void remove_folder(void)
{
    unlink(path);
    rmdir(folder);
}

static void make_folder(void)
{
    CHECK(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/t.safetensors", folder);
    atexit(remove_folder);
}

static void put(const uint8_t *data, size_t size)
{
    FILE *f = fopen(path, "wb");
    uint64_t header = size;
    CHECK(f);
    while (header && data[header - 1] != '}')
        header--;
    if (header && data[0] == '{')
        CHECK(fwrite(&header, sizeof header, 1, f) == 1);
    CHECK(fwrite(data, 1, size, f) == size && fclose(f) == 0);
}

static void check_finite(const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        CHECK(isfinite(x[i]));
}

static void check_numbers(const struct twist *t)
{
    const struct twist_spec *s = &t->spec;
    for (int i = 0; i < s->n_layers; i++) {
        check_finite(t->w[i], (size_t)twist_out(s, i) * (size_t)twist_in(s, i));
        check_finite(t->b[i], (size_t)twist_out(s, i));
    }
    if (s->calibration)
        check_finite(s->calibration, (size_t)s->max_tokens);
}

static void check_spec(const struct twist_spec *s)
{
    CHECK(!strcmp(s->name, "t"));
    CHECK(s->dim >= 1 && s->dim <= 65536 && s->vocab >= 1 && s->vocab <= PROPOSE_VOCAB_MAX);
    CHECK(s->n_layers >= 1 && s->n_layers <= TWIST_LAYERS_MAX && s->max_tokens >= 1);
    CHECK(s->hidden >= (s->n_layers > 1) && s->hidden <= TWIST_HIDDEN_MAX);
    CHECK((unsigned)s->method <= TWIST_DPG && s->particles >= 0 && s->updates >= 0);
    CHECK(isfinite(s->learning_rate) && !isnan(s->log_z) && s->log_z < INFINITY);
    CHECK(strlen(s->model) < sizeof s->model && strlen(s->fingerprint) < sizeof s->fingerprint);
}

/* The file's bytes; the caller's. */
static char *get(size_t *size)
{
    FILE *f = fopen(path, "rb");
    CHECK(f && fseek(f, 0, SEEK_END) == 0);
    *size = (size_t)ftell(f);
    char *bytes = malloc(*size);
    rewind(f);
    CHECK(bytes && fread(bytes, 1, *size, f) == *size && fclose(f) == 0);
    return bytes;
}

static char *save(const struct twist *t, size_t *size)
{
    struct err err;
    CHECK(twist_save(t, folder, &err) == 0);
    return get(size);
}

static void check_saved(const struct twist *t)
{
    struct twist *again;
    struct err err;
    size_t n, n_again;
    char *bytes = save(t, &n);
    CHECK(twist_load(&again, folder, "t", &err) == 0);
    char *same = save(again, &n_again);
    CHECK(n == n_again && !memcmp(bytes, same, n));
    twist_free(again);
    free(bytes);
    free(same);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct twist_file file;
    struct twist *t;
    struct err err = {.msg = ""};
    if (!*path)
        make_folder();
    put(data, size);
    int header = twist_stat(&file, folder, "t", &err);
    if (twist_load(&t, folder, "t", &err)) {
        CHECK(err.code == ERR_FILE && err.msg[0] && !strchr(err.msg, '\n'));
        return 0;
    }
    CHECK(header == 0);
    check_spec(&t->spec);
    check_numbers(t);
    check_saved(t);
    twist_free(t);
    return 0;
}
