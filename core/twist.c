#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../kernels/philox.h"
#include "twist_impl.h"

enum { ALIGNMENT = 64 / sizeof(float) }; /* every array begins a cache line */

bool twist_name_ok(const char *name)
{
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
                                  "0123456789._-";
    size_t len = strspn(name, letters);
    return len >= 1 && len <= TWIST_NAME_MAX && !name[len] && !strchr("._-", name[0]);
}

static size_t padded(size_t floats)
{
    return (floats + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

static size_t weights(const struct twist_spec *s, int layer)
{
    return (size_t)twist_out(s, layer) * (size_t)twist_in(s, layer);
}

/* The next floats of the memory whose rest begins at *at. */
static float *take(float **at, size_t floats)
{
    float *p = *at;
    *at += padded(floats);
    return p;
}

struct twist *twist_allocate(const struct twist_spec *spec, bool calibrated)
{
    size_t floats = calibrated ? padded((size_t)spec->max_tokens) : 0;
    size_t text = spec->request ? strlen(spec->request) + 1 : 0;
    CHECK(!twist_fault(spec));
    for (int i = 0; i < spec->n_layers; i++)
        floats += padded(weights(spec, i)) + padded((size_t)twist_out(spec, i));
    struct twist *t = calloc(1, sizeof *t);
    float *memory = calloc(floats + ALIGNMENT + padded(text), sizeof(float));
    if (!t || !memory) {
        free(t);
        free(memory);
        return NULL;
    }
    float *at = memory + ALIGNMENT - (uintptr_t)memory / sizeof(float) % ALIGNMENT;
    t->memory = memory;
    t->spec = *spec;
    for (int i = 0; i < spec->n_layers; i++) {
        t->w[i] = take(&at, weights(spec, i));
        t->b[i] = take(&at, (size_t)twist_out(spec, i));
    }
    t->spec.calibration = calibrated ? take(&at, (size_t)spec->max_tokens) : NULL;
    if (spec->request)
        t->spec.request = memcpy(at, spec->request, text);
    return t;
}

struct twist *twist_new(const struct twist_spec *spec)
{
    struct twist *t = twist_allocate(spec, spec->calibration);
    if (t && spec->calibration)
        memcpy((float *)t->spec.calibration, spec->calibration,
               (size_t)spec->max_tokens * sizeof(float));
    return t;
}

void twist_free(struct twist *t)
{
    if (!t)
        return;
    free(t->memory);
    free(t);
}

/* In (0, 1). */
static float uniform(uint32_t word)
{
    return ((float)(word >> 9) + 0.5f) * 0x1p-23f;
}

/* Four normal numbers by Box and Muller: as many as one call of the generator gives words, as there
 * may be tens of millions. Fours are counted in 64 bits, so that every weight of every layer has
 * uniforms of its own. */
static void normal_four(uint64_t seed, int layer, uint64_t four, float out[4])
{
    const float two_pi = 6.28318531f;
    struct philox r =
        philox4x32(seed, (uint32_t)four, (uint32_t)layer, PHILOX_INIT, (uint32_t)(four >> 32));
    for (int i = 0; i < 4; i += 2) {
        float radius = sqrtf(-2 * logf(uniform(r.v[i])));
        float angle = two_pi * uniform(r.v[i + 1]);
        out[i] = radius * cosf(angle);
        out[i + 1] = radius * sinf(angle);
    }
}

void twist_init(struct twist *t, int n_layers, uint64_t seed)
{
    for (int layer = 0; layer < n_layers; layer++) {
        int in = twist_in(&t->spec, layer), out = twist_out(&t->spec, layer);
        float sd = sqrtf(2.0f / (float)(in + out)), x[4];
        size_t n = weights(&t->spec, layer);
        for (size_t i = 0; i < n; i++) {
            if (i % 4 == 0)
                normal_four(seed, layer, i / 4, x);
            t->w[layer][i] = sd * x[i % 4];
        }
        memset(t->b[layer], 0, (size_t)out * sizeof(float));
    }
}

int twist_check_model(const struct twist_spec *s, const char *fingerprint, int dim, int vocab,
                      struct err *err)
{
    if (!strcmp(s->fingerprint, fingerprint) && s->dim == dim && s->vocab == vocab)
        return 0;
    return err_field(err, "twist.name",
                     "\"%s\" was learned for the model \"%s\" (%s), not for this one (%s)", s->name,
                     s->model, s->fingerprint, fingerprint);
}
