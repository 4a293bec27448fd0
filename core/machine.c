/* Loading a model into a machine, and the memory that is planned for it. See machine.h. */
#include "machine.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

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

/* Of the device's memory, for loaded twists and for learning. */
static size_t twist_bytes(const struct engine_info *info)
{
    return *info->twist_dir ? info->twist_bytes : 0;
}

/* What a KV cache gets when nobody says. A device's own memory is there to be used: all but a tenth
 * of what the rest leaves, and never less than one whole text. Of the machine's a fixed sum (or two
 * whole texts if they need more), at most half of what there is. */
static size_t default_kv_bytes(const struct backend *b, size_t rest, size_t text)
{
    size_t usable = b->memory / 10 * 9, bytes = 2 * text;
    if (b->own_memory)
        return usable > rest + text ? usable - rest : text;
    if (bytes < KV_BYTES_PLANNED)
        bytes = KV_BYTES_PLANNED;
    return b->memory && bytes > b->memory / 2 ? b->memory / 2 : bytes;
}

/* How many KV pages, by the memory of a plan with one. No more than all particles could fill. */
static int plan_kv(const struct machine *m, const struct engine_opts *opts,
                   const struct model_memory *with_one)
{
    const struct engine_info *info = &m->info;
    size_t page = with_one->kv, rest = with_one->total - page + twist_bytes(info);
    size_t text = (size_t)kv_pages_for(info->context), most = (size_t)opts->max_particles * text;
    size_t bytes =
        opts->kv_bytes ? opts->kv_bytes : default_kv_bytes(m->backend, rest, text * page);
    size_t n = bytes / page;
    n = n < most ? n : most;
    return n > 0 ? (int)n : 1;
}

/* The machine's memory may be lent and swapped; a device's own is all there is. */
static int check_fits(const struct machine *m, struct err *err)
{
    const struct backend *b = m->backend;
    const struct model_memory *plan = &m->info.memory;
    const double mb = 1024 * 1024;
    size_t twists = twist_bytes(&m->info), total = plan->total + twists;
    if (!b->own_memory || total <= b->memory)
        return 0;
    return err_set(err, ERR_UNAVAILABLE,
                   "%s: %.0f MiB are free, and %.0f would be needed = weights %.0f + KV cache %.0f "
                   "+ activations %.0f + twists %.0f",
                   b->name, (double)b->memory / mb, (double)total / mb, (double)plan->weights / mb,
                   (double)plan->kv / mb, (double)plan->activations / mb, (double)twists / mb);
}

static int plan_memory(struct machine *m, const struct engine_opts *opts, struct model_opts *mo,
                       struct err *err)
{
    struct engine_info *info = &m->info;
    *mo = (struct model_opts){.max_rows = info->batch_rows,
                              .max_hidden = m->max_particles,
                              .n_pages = 1,
                              .context = info->context,
                              .twists = *info->twist_dir};
    model_memory(&info->config, m->backend, m->gguf, mo, &info->memory);
    info->n_pages = mo->n_pages = plan_kv(m, opts, &info->memory);
    model_memory(&info->config, m->backend, m->gguf, mo, &info->memory);
    return check_fits(m, err);
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
    m->top = zeroed((size_t)rows * (1 + TOP_MAX), sizeof *m->top);
    m->slots = zeroed((size_t)rows, sizeof *m->slots);
    m->copy_from = zeroed((size_t)draws, sizeof *m->copy_from);
    m->copy_to = zeroed((size_t)draws, sizeof *m->copy_to);
    m->copy_row = zeroed((size_t)draws, sizeof *m->copy_row);
    m->weighings = zeroed(MAX_RUNS, sizeof *m->weighings);
    m->redraws = zeroed((size_t)m->max_particles, sizeof *m->redraws);
    m->hidden_free = zeroed((size_t)m->max_particles, sizeof *m->hidden_free);
    for (int i = 0; i < m->max_particles; i++)
        m->hidden_free[i] = m->max_particles - 1 - i;
    m->n_hidden_free = m->max_particles;
    return 0;
}

static void say_plan(const struct machine *m, const struct engine_opts *opts)
{
    const struct engine_info *i = &m->info;
    const struct backend *b = m->backend;
    const double mb = 1024 * 1024, twists = (double)twist_bytes(i);
    const int requests = b->own_memory ? 0 : 2 * JOB_MB; /* of the host */
    char rest[64];
    if (b->own_memory)
        snprintf(rest, sizeof rest, "; %.0f MiB were free", (double)b->memory / mb);
    else
        snprintf(rest, sizeof rest, " + requests %d", requests);
    machine_log(opts, "model %s: %.1f M parameters, context %d, on %s", i->model,
                (double)i->config.parameters / 1e6, i->context, i->device);
    machine_log(opts,
                "memory planned: %.0f MiB = weights %.0f + KV cache %.0f (%d pages of %d tokens) + "
                "activations %.0f + twists %.0f%s",
                ((double)i->memory.total + twists) / mb + requests, (double)i->memory.weights / mb,
                (double)i->memory.kv / mb, i->n_pages, KV_PAGE, (double)i->memory.activations / mb,
                twists / mb, rest);
}

static int open_backend(struct machine *m, const struct engine_opts *opts, struct err *err)
{
    struct engine_info *info = &m->info;
    char why[256];
    if (backend_open(&m->backend, &opts->backend, why, sizeof why) != 0)
        return err_set(err, ERR_INTERNAL, "%s", why);
    snprintf(info->device, sizeof info->device, "%s: %s", m->backend->name, m->backend->device);
    if (*m->backend->fallback)
        machine_log(opts, "no GPU is used: %s", m->backend->fallback);
    return 0;
}

int machine_open(struct machine *m, const struct engine_opts *opts, struct err *err)
{
    struct engine_info *info = &m->info;
    struct model_opts mo;
    double begun = seconds_now();
    if (open_backend(m, opts, err) != 0 ||
        tokenizer_open(&m->tokenizer, m->gguf, info->config.vocab, err) != 0)
        return -1;
    int context = opts->context ? opts->context : DEFAULT_CONTEXT;
    info->context = context < info->config.context ? context : info->config.context;
    info->batch_rows = opts->batch_rows ? opts->batch_rows : m->backend->own_memory ? 2048 : 256;
    info->limits = opts->limits;
    info->tokenizer = m->tokenizer;
    chat_template_read(&info->chat, m->gguf);
    m->max_particles = opts->max_particles;
    gguf_fingerprint(m->gguf, info->fingerprint);
    if (plan_memory(m, opts, &mo, err) != 0)
        return -1;
    say_plan(m, opts);
    if (model_open(&m->model, m->backend, m->gguf, &info->config, &mo, err) != 0 ||
        kv_open(&m->pool, info->n_pages, err) != 0 || open_scratch(m, err) != 0 ||
        smc_device_open(&m->weigher, m->backend, m->max_particles, MAX_RUNS, err) != 0)
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
    smc_device_close(&m->weigher);
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
    free(m->top);
    free(m->slots);
    free(m->copy_from);
    free(m->copy_to);
    free(m->copy_row);
    free(m->weighings);
    free(m->redraws);
    free(m->hidden_free);
    buf_free(&m->text);
    buf_free(&m->bytes);
    free(m->tokens.ids);
}
