/* Loading a model into a machine, and the memory that is planned for it. See machine.h. */
#include "machine.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

enum {
    DEFAULT_CONTEXT = 8192,
    KV_BYTES_PLANNED = 448 << 20, /* what a KV cache gets when nobody says */
};

void machine_log(const struct engine_opts *opts, const char *fmt, ...)
{
    char line[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(line, sizeof line, fmt, ap);
    va_end(ap);
    if (opts->log)
        opts->log(line);
}

static size_t physical_memory(void)
{
    long pages = sysconf(_SC_PHYS_PAGES), size = sysconf(_SC_PAGESIZE);
    return pages > 0 && size > 0 ? (size_t)pages * (size_t)size : (size_t)1 << 32;
}

/* How many KV pages: what was asked for, else a fixed sum (or two whole contexts if they need
 * more), at most half of what the machine has. */
static int plan_kv(const struct engine_opts *opts, const struct model_config *c, enum act_type act,
                   int context)
{
    size_t page =
        2 * (size_t)c->n_layers * (size_t)(c->n_kv_heads * c->head_dim) * act_size(act) * KV_PAGE;
    size_t bytes = opts->kv_bytes, whole = 2 * (size_t)kv_pages_for(context) * page;
    if (bytes == 0) {
        bytes = whole > KV_BYTES_PLANNED ? whole : KV_BYTES_PLANNED;
        bytes = bytes < physical_memory() / 2 ? bytes : physical_memory() / 2;
    }
    size_t n = bytes / page, most = (size_t)opts->max_particles * (size_t)kv_pages_for(context);
    n = n < most ? n : most;
    return n > 0 ? (int)n : 1;
}

static void *zeroed(size_t n, size_t size)
{
    void *p = calloc(n ? n : 1, size);
    CHECK(p && "out of memory");
    return p;
}

static int open_scratch(struct machine *m, struct err *err)
{
    int rows = m->info.batch_rows, draws = rows + m->max_particles;
    if (batch_open(&m->batch, rows, rows * kv_pages_for(m->info.context), err) != 0)
        return -1;
    m->want = zeroed((size_t)rows, sizeof *m->want);
    m->collected = zeroed((size_t)rows, sizeof *m->collected);
    m->hidden = zeroed((size_t)rows, sizeof *m->hidden);
    m->rows = zeroed((size_t)rows, sizeof *m->rows);
    m->twists = zeroed((size_t)rows, sizeof *m->twists);
    m->draws = zeroed((size_t)draws, sizeof *m->draws);
    m->out = zeroed((size_t)draws, sizeof *m->out);
    m->slots = zeroed((size_t)rows, sizeof *m->slots);
    m->copy_from = zeroed((size_t)draws, sizeof *m->copy_from);
    m->copy_to = zeroed((size_t)draws, sizeof *m->copy_to);
    m->copy_row = zeroed((size_t)draws, sizeof *m->copy_row);
    m->hidden_free = zeroed((size_t)m->max_particles, sizeof *m->hidden_free);
    for (int i = 0; i < m->max_particles; i++)
        m->hidden_free[i] = m->max_particles - 1 - i;
    m->n_hidden_free = m->max_particles;
    return 0;
}

static void say_plan(const struct machine *m, const struct engine_opts *opts)
{
    const struct engine_info *i = &m->info;
    const double mb = 1024 * 1024, twists = *i->twist_dir ? (double)i->twist_bytes : 0;
    machine_log(opts, "model %s: %.1f M parameters, context %d, on %s", i->model,
                (double)i->config.parameters / 1e6, i->context, i->device);
    machine_log(opts,
                "memory planned: %.0f MiB = weights %.0f + KV cache %.0f (%d pages of %d tokens) + "
                "activations %.0f + twists %.0f + requests %d",
                ((double)i->memory.total + twists) / mb + 2 * JOB_MB,
                (double)i->memory.weights / mb, (double)i->memory.kv / mb, i->n_pages, KV_PAGE,
                (double)i->memory.activations / mb, twists / mb, 2 * JOB_MB);
}

int machine_open(struct machine *m, const struct engine_opts *opts, struct err *err)
{
    struct engine_info *info = &m->info;
    char why[256];
    double begun = seconds_now();
    if (backend_open(&m->backend, &opts->backend, why, sizeof why) != 0)
        return err_set(err, ERR_INTERNAL, "%s", why);
    if (tokenizer_open(&m->tokenizer, m->gguf, info->config.vocab, err) != 0)
        return -1;
    int context = opts->context ? opts->context : DEFAULT_CONTEXT;
    info->context = context < info->config.context ? context : info->config.context;
    info->n_pages = plan_kv(opts, &info->config, m->backend->act, info->context);
    info->batch_rows = opts->batch_rows ? opts->batch_rows : m->backend->own_memory ? 2048 : 256;
    info->limits = opts->limits;
    info->tokenizer = m->tokenizer;
    m->max_particles = opts->max_particles;
    snprintf(info->device, sizeof info->device, "%s: %s", m->backend->name, m->backend->device);
    gguf_fingerprint(m->gguf, info->fingerprint);
    struct model_opts mo = {.max_rows = info->batch_rows,
                            .max_hidden = m->max_particles,
                            .n_pages = info->n_pages,
                            .context = info->context,
                            .twists = *info->twist_dir};
    model_memory(&info->config, m->backend->act, m->gguf, &mo, &info->memory);
    say_plan(m, opts);
    if (model_open(&m->model, m->backend, m->gguf, &info->config, &mo, err) != 0 ||
        kv_open(&m->pool, info->n_pages, err) != 0 || open_scratch(m, err) != 0)
        return -1;
    gguf_forget(m->gguf);
    void *priors;
    if (m->backend->ops->alloc(m->backend, &priors, MAX_RUNS * sizeof *m->priors) != 0)
        return err_set(err, ERR_INTERNAL, "%s", m->backend->why);
    m->priors = priors;
    info->load_seconds = seconds_now() - begun;
    info->loaded_unix = (int64_t)time(NULL);
    return 0;
}

void machine_close(struct machine *m)
{
    if (m->priors)
        m->backend->ops->release(m->backend, m->priors);
    machine_close_heads(m);
    model_close(m->model);
    kv_close(m->pool);
    tokenizer_close(m->tokenizer);
    backend_close(m->backend);
    gguf_close(m->gguf);
    batch_close(&m->batch);
    free(m->want);
    free(m->collected);
    free(m->hidden);
    free(m->rows);
    free(m->twists);
    free(m->draws);
    free(m->out);
    free(m->slots);
    free(m->copy_from);
    free(m->copy_to);
    free(m->copy_row);
    free(m->hidden_free);
    buf_free(&m->text);
    buf_free(&m->bytes);
    free(m->tokens.ids);
}
