/* The CPU backend: threads, memory, weights, and the operation table. Every entry of the table
 * times itself and calls the function of the instruction level that was picked when the backend
 * opened.
 *
 * Threads are OpenMP's, forked from the thread that opened the backend. */
#include <omp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "cpu_ops.h"

struct cpu {
    struct backend base; /* first: a struct backend * is a struct cpu * */
    const struct cpu_level *level;
    struct linear *linear;
    int threads;
    cpu_set_t allowed; /* of the opening thread, before its workers were pinned */
};

static struct cpu *cpu(struct backend *b)
{
    return (struct cpu *)b;
}

/* ---- memory ---- */

enum { ALIGNMENT = 64 };

void *cpu_map(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return NULL;
    madvise(p, bytes, MADV_HUGEPAGE); /* a hint: where there are none, small pages do */
    return p;
}

void cpu_unmap(void *p, size_t bytes)
{
    if (p)
        munmap(p, bytes);
}

static int fail(struct backend *b, const char *why)
{
    if (!b->why[0])
        snprintf(b->why, sizeof b->why, "%s", why);
    return -1;
}

static int op_alloc(struct backend *b, void **out, size_t bytes)
{
    size_t size = (bytes + ALIGNMENT) / ALIGNMENT * ALIGNMENT; /* never 0 */
    void *p = size > bytes ? aligned_alloc(ALIGNMENT, size) : NULL;
    if (!p)
        return fail(b, "out of memory");
    *out = memset(p, 0, size);
    return 0;
}

static void op_release(struct backend *b, void *dev)
{
    (void)b;
    free(dev);
}

static int op_upload(struct backend *b, void *dev, const void *host, size_t bytes)
{
    if (bytes)
        memcpy(dev, host, bytes);
    return b->why[0] ? -1 : 0;
}

static int op_download(struct backend *b, void *host, const void *dev, size_t bytes)
{
    if (bytes)
        memcpy(host, dev, bytes);
    return b->why[0] ? -1 : 0;
}

/* ---- weights ---- */

static int table_open(struct cpu_table *t, const struct weight_part *parts, int n_parts, int in)
{
    size_t bytes = sizeof *parts * (size_t)n_parts;
    t->parts = malloc(bytes);
    if (!t->parts)
        return -1;
    memcpy(t->parts, parts, bytes);
    t->n_parts = n_parts;
    t->in = in;
    return 0;
}

static int op_weight_open(struct backend *b, struct weight **out, const struct weight_part *parts,
                          int n_parts, int in, enum weight_use use)
{
    struct weight *w = calloc(1, sizeof *w);
    int rc;
    if (!w)
        return fail(b, "out of memory");
    if (use == WEIGHT_TABLE)
        rc = table_open(&w->table, parts, n_parts, in);
    else
        rc = linear_pack(cpu(b)->linear, &w->panels, parts, n_parts, in);
    if (rc) {
        free(w);
        return fail(b, "out of memory for the weights");
    }
    *out = w;
    return 0;
}

static void op_weight_close(struct backend *b, struct weight *w)
{
    (void)b;
    if (!w)
        return;
    linear_unpack(&w->panels);
    free(w->table.parts);
    free(w);
}

/* ---- keys and values ---- */

static int op_kv_open(struct backend *b, struct kv_store **out, int n_layers, int n_pages,
                      int kv_heads, int head_dim)
{
    if (head_dim > CPU_HEAD_DIM_MAX)
        return fail(b, "the model's heads are wider than 512 elements");
    struct kv_store *s = calloc(1, sizeof *s);
    if (!s)
        return fail(b, "out of memory");
    s->n_layers = n_layers;
    s->kv_heads = kv_heads;
    s->head_dim = head_dim;
    s->key_blocks = (head_dim + 1) / 2;
    s->value_blocks = (head_dim + 31) / 32;
    s->block_bytes = 32 * act_size(b->act);
    s->head_bytes = (size_t)(s->key_blocks + KV_PAGE * s->value_blocks) * s->block_bytes;
    s->page_bytes = (size_t)kv_heads * s->head_bytes;
    s->layer_bytes = (size_t)n_pages * s->page_bytes;
    s->bytes = (size_t)n_layers * s->layer_bytes;
    s->data = cpu_map(s->bytes);
    if (!s->data) {
        free(s);
        return fail(b, "out of memory for the KV cache");
    }
    *out = s;
    return 0;
}

static void op_kv_close(struct backend *b, struct kv_store *s)
{
    (void)b;
    if (!s)
        return;
    cpu_unmap(s->data, s->bytes);
    free(s);
}

/* ---- recording: nothing to gain, so nobody should ask ---- */

static int op_record(struct backend *b, int key)
{
    (void)key;
    return b->why[0] ? -1 : 0;
}

static int op_record_end(struct backend *b)
{
    return b->why[0] ? -1 : 0;
}

/* ---- the timed operations ---- */

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* The end of an operation that began at `start`. A failure stays. */
static int done(struct backend *b, enum backend_op op, double start)
{
    b->seconds[op] += now() - start;
    b->calls[op]++;
    return b->why[0] ? -1 : 0;
}

static int op_embed(struct backend *b, float *x, const struct weight *table, const int32_t *ids,
                    int n)
{
    double start = now();
    cpu(b)->level->embed(x, &table->table, ids, n);
    return done(b, OP_EMBED, start);
}

static int op_rmsnorm(struct backend *b, void *y, const float *x, const float *w, int n, int dim,
                      float eps)
{
    double start = now();
    cpu(b)->level->rmsnorm(b->act, y, x, w, n, dim, eps);
    return done(b, OP_RMSNORM, start);
}

static int op_linear(struct backend *b, float *y, enum linear_out how, const void *x,
                     const struct weight *w, int n)
{
    double start = now();
    if (linear_run(cpu(b)->linear, y, how, x, &w->panels, n))
        fail(b, "out of memory for the activations");
    return done(b, OP_LINEAR, start);
}

static int op_rope_store(struct backend *b, struct kv_store *s, int layer,
                         const struct rope_args *a, int n)
{
    double start = now();
    cpu(b)->level->rope_store(b->act, s, layer, a, n);
    return done(b, OP_ROPE_STORE, start);
}

static int op_attend(struct backend *b, const struct kv_store *s, int layer,
                     const struct attend_args *a, int n)
{
    double start = now();
    cpu(b)->level->attend(b->act, s, layer, a, n);
    return done(b, OP_ATTEND, start);
}

static int op_swiglu(struct backend *b, void *y, const float *gu, int n, int ffn)
{
    double start = now();
    cpu(b)->level->swiglu(b->act, y, gu, n, ffn);
    return done(b, OP_SWIGLU, start);
}

static int op_copy_rows(struct backend *b, void *dst, const int32_t *dst_row, const void *src,
                        const int32_t *src_row, int n, size_t bytes)
{
    double start = now();
    cpu_copy_rows(dst, dst_row, src, src_row, n, bytes);
    return done(b, OP_COPY_ROWS, start);
}

static int op_kv_copy(struct backend *b, struct kv_store *s, const int32_t *from, const int32_t *to,
                      int n)
{
    double start = now();
    cpu_kv_copy(s, from, to, n);
    return done(b, OP_KV_COPY, start);
}

static int op_propose(struct backend *b, const struct propose_args *a, int n)
{
    double start = now();
    cpu(b)->level->propose(a, n);
    return done(b, OP_PROPOSE, start);
}

static int op_activate(struct backend *b, void *y, enum activation f, const float *x, int n,
                       int dim)
{
    double start = now();
    cpu(b)->level->activate(b->act, y, f, x, n, dim);
    return done(b, OP_ACTIVATE, start);
}

static int op_weight_update(struct backend *b, struct weight *w, const float *from)
{
    double start = now();
    if (linear_repack(&w->panels, from))
        fail(b, "out of memory for the weights");
    return done(b, OP_WEIGHT_UPDATE, start);
}

static int op_linear_grad(struct backend *b, const struct linear_grad_args *a, int n)
{
    double start = now();
    if (linear_grad_run(cpu(b)->linear, a, n))
        fail(b, "out of memory for the gradients");
    return done(b, OP_LINEAR_GRAD, start);
}

static int op_relu_grad(struct backend *b, float *dx, const float *dy, const void *y, int n,
                        int dim)
{
    double start = now();
    cpu(b)->level->relu_grad(b->act, dx, dy, y, n, dim);
    return done(b, OP_RELU_GRAD, start);
}

static int op_top(struct backend *b, const struct top_args *a, int n)
{
    double start = now();
    cpu(b)->level->top(a, n);
    return done(b, OP_TOP, start);
}

static int op_propose_grad(struct backend *b, const struct propose_args *a, const float *coef,
                           float *dy, int n)
{
    double start = now();
    cpu(b)->level->propose_grad(a, coef, dy, n);
    return done(b, OP_PROPOSE_GRAD, start);
}

static int op_adam(struct backend *b, const struct adam_args *a, size_t n)
{
    double start = now();
    cpu(b)->level->adam(a, n);
    return done(b, OP_ADAM, start);
}

static int op_resample(struct backend *b, const struct resample_args *a, struct resample_out *out,
                       int n)
{
    double start = now();
    cpu_resample(a, out, n);
    return done(b, OP_RESAMPLE, start);
}

/* ---- threads ---- */

/* CPUs' worth of time that the control group grants, rounded up; CPU_SETSIZE when there is no
 * limit. */
static int cgroup_cpus(void)
{
    FILE *f = fopen("/sys/fs/cgroup/cpu.max", "r");
    double quota, period;
    int cpus = CPU_SETSIZE;
    if (!f)
        return cpus;
    if (fscanf(f, "%lf %lf", &quota, &period) == 2 && quota > 0 && period > 0 &&
        quota / period < cpus)
        cpus = (int)(quota / period + 0.999);
    fclose(f);
    return cpus;
}

/* Tie each thread of the team to a CPU of its own. Only when the team has as many threads as there
 * are CPUs: the kernel then tends to stack sleeping threads on one CPU, and a CPU of its own is the
 * only right place for each. With spare CPUs, or fewer than threads, it places them better. */
static void pin_threads(const cpu_set_t *allowed, int threads)
{
    if (threads == 1 || CPU_COUNT(allowed) != threads)
        return;
#pragma omp parallel num_threads(threads)
    {
        int skip = omp_get_thread_num(), id = 0;
        while (!CPU_ISSET(id, allowed) || skip--)
            id++;
        cpu_set_t own;
        CPU_ZERO(&own);
        CPU_SET(id, &own);
        sched_setaffinity(0, sizeof own, &own); /* of this thread; a hint */
    }
}

static void threads_open(struct cpu *c, int wanted)
{
    if (sched_getaffinity(0, sizeof c->allowed, &c->allowed)) { /* more CPUs than the set holds */
        CPU_ZERO(&c->allowed);
        c->threads = (int)sysconf(_SC_NPROCESSORS_ONLN);
    } else {
        c->threads = CPU_COUNT(&c->allowed);
    }
    int granted = cgroup_cpus();
    if (c->threads > granted)
        c->threads = granted;
    if (wanted > 0)
        c->threads = wanted;
    omp_set_dynamic(0);
    omp_set_num_threads(c->threads);
    pin_threads(&c->allowed, c->threads);
}

/* The opening thread gets its CPUs back; the workers are only ever used by it. */
static void threads_close(const struct cpu *c)
{
    if (CPU_COUNT(&c->allowed))
        sched_setaffinity(0, sizeof c->allowed, &c->allowed);
}

/* ---- open and close ---- */

static size_t physical_memory(void)
{
    long pages = sysconf(_SC_PHYS_PAGES), size = sysconf(_SC_PAGESIZE);
    return pages > 0 && size > 0 ? (size_t)pages * (size_t)size : 0;
}

/* The best level this CPU has. CLOTHO_CPU_LEVEL=base, v3 or v4 asks for at most that one: so one
 * machine can test them all. */
static const struct cpu_level *pick_level(void)
{
    const char *most = getenv("CLOTHO_CPU_LEVEL");
    if (!most)
        most = "v4";
#ifdef __x86_64__
    if (strcmp(most, "v4") == 0 && __builtin_cpu_supports("avx512f") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return &cpu_level_v4;
    if (strcmp(most, "base") != 0 && __builtin_cpu_supports("avx2") &&
        __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2"))
        return &cpu_level_v3;
#endif
    return &cpu_level_base;
}

/* bf16 halves the bytes of the weights everywhere, and is what AMX multiplies. `auto` takes it
 * where the CPU knows the type; elsewhere widening costs more than it saves on large batches. */
static bool has_bf16(void)
{
#ifdef __x86_64__
    return amx_open() || __builtin_cpu_supports("avx512bf16");
#else
    return false;
#endif
}

static int pick_act(enum act_type *act, const char *dtype, char *why, size_t why_size)
{
    if (strcmp(dtype, "f32") == 0)
        *act = ACT_F32;
    else if (strcmp(dtype, "bf16") == 0)
        *act = ACT_BF16;
    else if (strcmp(dtype, "auto") == 0)
        *act = has_bf16() ? ACT_BF16 : ACT_F32;
    else {
        snprintf(why, why_size, "dtype \"%s\" is none of auto, bf16, f32", dtype);
        return -1;
    }
    return 0;
}

static void cpu_close(struct backend *b)
{
    linear_close(cpu(b)->linear);
    threads_close(cpu(b));
    free(b);
}

static const struct backend_ops cpu_ops = {
    .close = cpu_close,
    .alloc = op_alloc,
    .release = op_release,
    .upload = op_upload,
    .download = op_download,
    .weight_open = op_weight_open,
    .weight_close = op_weight_close,
    .kv_open = op_kv_open,
    .kv_close = op_kv_close,
    .embed = op_embed,
    .rmsnorm = op_rmsnorm,
    .linear = op_linear,
    .rope_store = op_rope_store,
    .attend = op_attend,
    .swiglu = op_swiglu,
    .copy_rows = op_copy_rows,
    .kv_copy = op_kv_copy,
    .propose = op_propose,
    .top = op_top,
    .activate = op_activate,
    .weight_update = op_weight_update,
    .linear_grad = op_linear_grad,
    .relu_grad = op_relu_grad,
    .propose_grad = op_propose_grad,
    .adam = op_adam,
    .resample = op_resample,
    .record = op_record,
    .record_end = op_record_end,
};

int cpu_open(struct backend **out, const struct backend_opts *o, char *why, size_t why_size)
{
    enum act_type act;
    if (o->threads < 0 || o->threads > CPU_SETSIZE) {
        snprintf(why, why_size, "threads: %d is not in 0..%d", o->threads, CPU_SETSIZE);
        return -1;
    }
    if (pick_act(&act, o->dtype, why, why_size))
        return -1;
    struct cpu *c = calloc(1, sizeof *c);
    if (!c) {
        snprintf(why, why_size, "out of memory");
        return -1;
    }
    c->base.ops = &cpu_ops;
    c->base.name = "cpu";
    c->base.act = act;
    c->base.memory = physical_memory();
    c->level = pick_level();
    threads_open(c, o->threads);
    if (linear_open(&c->linear, act, c->level)) {
        snprintf(why, why_size, "out of memory");
        threads_close(c);
        free(c);
        return -1;
    }
    snprintf(c->base.device, sizeof c->base.device, "%d thread%s, %s, %s", c->threads,
             c->threads == 1 ? "" : "s", c->level->name, linear_kernel(c->linear));
    *out = &c->base;
    return 0;
}
