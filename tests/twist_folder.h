/* Twists in a folder of their own, for tests of what is on the disk. */
#pragma once
#include <dirent.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../core/buf.h"
#include "../core/twist.h"
#include "check.h"

static char folder[] = "/tmp/clotho_twist_XXXXXX";

static const float calibration[4] = {0.5f, -1.25f, 0, 3};

static inline struct twist_spec sample_spec(void)
{
    return (struct twist_spec){.name = "sample",
                               .model = "tiny \"модель\"",
                               .fingerprint = "0123456789abcdef",
                               .dim = 3,
                               .vocab = 5,
                               .n_layers = 2,
                               .hidden = 4,
                               .conditional = true,
                               .log_sigmoid = true,
                               .resample = true,
                               .max_tokens = 4,
                               .method = TWIST_FUDGE,
                               .particles = 16,
                               .updates = 200,
                               .learning_rate = 3e-5,
                               .seed = UINT64_MAX,
                               .log_z = -1.0 / 3,
                               .request = "{\"prompts\":[\"a\\n\xe2\x82\xac\"]}",
                               .calibration = calibration};
}

static inline struct twist *sample_twist(void)
{
    struct twist_spec spec = sample_spec();
    struct twist *t = twist_new(&spec);
    EXPECT(t != NULL);
    twist_init(t, t->spec.n_layers, 7);
    for (int i = 0; i < spec.vocab; i++)
        t->b[1][i] = (float)i - 2;
    return t;
}

/* ---- files ---- */

static inline void path_of(char out[200], const char *leaf)
{
    snprintf(out, 200, "%s/%s", folder, leaf);
}

static inline void get(const char *leaf, struct buf *out)
{
    char path[200], part[4096];
    size_t n;
    path_of(path, leaf);
    FILE *f = fopen(path, "rb");
    EXPECT(f != NULL);
    while (f && (n = fread(part, 1, sizeof part, f)) > 0)
        buf_add(out, part, n);
    if (f)
        fclose(f);
}

static inline void put(const char *leaf, const void *bytes, size_t n)
{
    char path[200];
    path_of(path, leaf);
    FILE *f = fopen(path, "wb");
    EXPECT(f && fwrite(bytes, 1, n, f) == n && fclose(f) == 0);
}

static inline void drop(const char *leaf)
{
    char path[200];
    path_of(path, leaf);
    EXPECT(unlink(path) == 0);
}

/* Entries of the folder that nobody should see. */
static inline int hidden_files(void)
{
    int n = 0;
    DIR *d = opendir(folder);
    for (struct dirent *e; (e = readdir(d));)
        n += e->d_name[0] == '.' && strlen(e->d_name) > 2;
    closedir(d);
    return n;
}

static inline void expect_spec(const struct twist_spec *got, const struct twist_spec *want)
{
    EXPECT_STR(got->name, want->name);
    EXPECT_STR(got->model, want->model);
    EXPECT_STR(got->fingerprint, want->fingerprint);
    EXPECT(got->dim == want->dim && got->vocab == want->vocab);
    EXPECT(got->n_layers == want->n_layers && got->hidden == want->hidden);
    EXPECT(got->conditional == want->conditional && got->log_sigmoid == want->log_sigmoid);
    EXPECT(got->resample == want->resample && got->max_tokens == want->max_tokens);
    EXPECT(got->method == want->method && got->particles == want->particles);
    EXPECT(got->updates == want->updates && got->seed == want->seed);
    EXPECT(got->learning_rate == want->learning_rate && got->log_z == want->log_z);
}

static inline void expect_twist(const struct twist *got, const struct twist *want)
{
    expect_spec(&got->spec, &want->spec);
    EXPECT(!got->spec.request == !want->spec.request);
    if (got->spec.request && want->spec.request)
        EXPECT_STR(got->spec.request, want->spec.request);
    EXPECT(!got->spec.calibration == !want->spec.calibration);
    if (got->spec.calibration && want->spec.calibration)
        EXPECT(!memcmp(got->spec.calibration, want->spec.calibration,
                       sizeof(float) * (size_t)want->spec.max_tokens));
    for (int i = 0; i < want->spec.n_layers; i++) {
        size_t out = (size_t)twist_out(&want->spec, i), in = (size_t)twist_in(&want->spec, i);
        EXPECT(!memcmp(got->w[i], want->w[i], sizeof(float) * out * in));
        EXPECT(!memcmp(got->b[i], want->b[i], sizeof(float) * out));
    }
}
