/* The CUDA backend: device, memory, copies, recordings, and the operation table.
 *
 * Everything goes through one stream, in order; only `download` waits for it. Small copies pass
 * through pinned memory, so that they neither wait nor need the caller's memory afterwards. A
 * device error is sticky: `why` is set once and every later call returns -1. */
#include "cuda.cuh"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int cuda_fail(struct backend *b, const char *what, const char *why)
{
    if (!b->why[0])
        snprintf(b->why, sizeof b->why, "%s: %s", what, why);
    return -1;
}

int cuda_check(struct backend *b, const char *what, cudaError_t e)
{
    if (e != cudaSuccess)
        return cuda_fail(b, what, cudaGetErrorString(e));
    return b->why[0] ? -1 : 0;
}

/* ---- time: an event behind every operation and copy; what lies between two is the second's ----
 */

enum { MARKS = 2048 }; /* until the next download; what is beyond them is not timed */

struct timer {
    cudaEvent_t event[MARKS];
    enum backend_op op[MARKS]; /* that ended there; OP_COUNT: a copy, which nobody counts */
    int n;
};

static int timer_open(struct cuda *c)
{
    c->timer = (struct timer *)calloc(1, sizeof *c->timer);
    if (!c->timer)
        return cuda_fail(&c->base, "timer", "out of memory");
    for (int i = 0; i < MARKS; i++)
        if (cuda_check(&c->base, "cudaEventCreate", cudaEventCreate(&c->timer->event[i])))
            return -1;
    return 0;
}

static void timer_close(struct cuda *c)
{
    for (int i = 0; c->timer && i < MARKS && c->timer->event[i]; i++)
        cudaEventDestroy(c->timer->event[i]);
    free(c->timer);
}

static int timer_mark(struct cuda *c, enum backend_op op)
{
    struct timer *t = c->timer;
    if (t->n == MARKS)
        return 0;
    t->op[t->n] = op;
    return cuda_check(&c->base, "cudaEventRecord", cudaEventRecord(t->event[t->n++], c->stream));
}

/* The stream is idle: add up. */
static void timer_read(struct cuda *c)
{
    struct timer *t = c->timer;
    for (int i = 1; i < t->n; i++) {
        float ms = 0;
        if (t->op[i] != OP_COUNT &&
            cudaEventElapsedTime(&ms, t->event[i - 1], t->event[i]) == cudaSuccess)
            c->base.seconds[t->op[i]] += 1e-3 * (double)ms;
    }
    t->n = 0;
}

/* ---- recordings ---- */

enum { RECORDS_MAX = 64 };

struct records {
    struct {
        int key;
        cudaGraphExec_t exec; /* NULL: has come once */
    } at[RECORDS_MAX];
    int n;
    int recording; /* the index, or -1 */
};

static int records_open(struct cuda *c)
{
    c->records = (struct records *)calloc(1, sizeof *c->records);
    if (!c->records)
        return cuda_fail(&c->base, "recordings", "out of memory");
    c->records->recording = -1;
    return 0;
}

static void records_close(struct cuda *c)
{
    for (int i = 0; c->records && i < c->records->n; i++)
        if (c->records->at[i].exec)
            cudaGraphExecDestroy(c->records->at[i].exec);
    free(c->records);
}

static bool is_recording(const struct cuda *c)
{
    return c->records->recording >= 0;
}

static int replay(struct cuda *c, cudaGraphExec_t exec)
{
    if (cuda_check(&c->base, "cudaGraphLaunch", cudaGraphLaunch(exec, c->stream)))
        return -1;
    return cuda_done(&c->base, OP_REPLAY);
}

/* The place of a key among the recordings; n: it has none. */
static int record_of(const struct records *r, int key)
{
    int i = 0;
    while (i < r->n && r->at[i].key != key)
        i++;
    return i;
}

/* When a key comes for the first time its operations are launched one by one: a kernel is loaded
 * when it is launched first, and loading may need what a capture forbids. So they are with as many
 * recordings as there is room for. */
static int op_record(struct backend *b, int key)
{
    struct records *r = cuda(b)->records;
    if (b->why[0])
        return -1;
    const int i = record_of(r, key);
    if (i == RECORDS_MAX)
        return 0;
    if (i == r->n) {
        r->at[r->n++] = {key, NULL};
        return 0;
    }
    if (r->at[i].exec)
        return replay(cuda(b), r->at[i].exec) ? -1 : 1;
    r->recording = i;
    return cuda_check(b, "cudaStreamBeginCapture",
                      cudaStreamBeginCapture(cuda(b)->stream, cudaStreamCaptureModeRelaxed));
}

static int op_record_end(struct backend *b)
{
    struct records *r = cuda(b)->records;
    cudaGraph_t graph;
    if (!is_recording(cuda(b)))
        return b->why[0] ? -1 : 0;
    cudaGraphExec_t *exec = &r->at[r->recording].exec;
    r->recording = -1;
    if (cuda_check(b, "cudaStreamEndCapture", cudaStreamEndCapture(cuda(b)->stream, &graph)))
        return -1;
    const cudaError_t e = cudaGraphInstantiate(exec, graph, 0);
    cudaGraphDestroy(graph);
    if (cuda_check(b, "cudaGraphInstantiate", e))
        return -1;
    return replay(cuda(b), *exec);
}

int cuda_done(struct backend *b, enum backend_op op)
{
    b->calls[op]++;
    if (cuda_check(b, backend_op_names[op], cudaGetLastError()))
        return -1;
    return is_recording(cuda(b)) ? 0 : timer_mark(cuda(b), op);
}

/* ---- memory ---- */

/* Stream-ordered and from a pool that is never given back: at admission nothing waits for the
 * device. */
int cuda_alloc(struct backend *b, void **out, size_t bytes)
{
    void *p = NULL;
    const size_t size = bytes ? bytes : 1;
    if (b->why[0])
        return -1;
    if (cuda_check(b, "device memory", cudaMallocAsync(&p, size, cuda(b)->stream)) ||
        cuda_check(b, "cudaMemsetAsync", cudaMemsetAsync(p, 0, size, cuda(b)->stream)))
        return -1;
    *out = p;
    return 0;
}

void cuda_release(struct backend *b, void *dev)
{
    if (dev)
        cuda_check(b, "cudaFreeAsync", cudaFreeAsync(dev, cuda(b)->stream));
}

/* Uploads of a step lie one behind the other in `up` until a download says that they are done. */
enum { STAGING_BYTES = 4 << 20 };

struct staging {
    unsigned char *up, *down; /* pinned, STAGING_BYTES each */
    size_t used;              /* of up */
};

static int staging_open(struct cuda *c)
{
    struct staging *s = c->staging = (struct staging *)calloc(1, sizeof *c->staging);
    if (!s)
        return cuda_fail(&c->base, "staging", "out of memory");
    return cuda_check(&c->base, "pinned memory", cudaMallocHost((void **)&s->up, STAGING_BYTES)) ||
           cuda_check(&c->base, "pinned memory", cudaMallocHost((void **)&s->down, STAGING_BYTES));
}

static void staging_close(struct cuda *c)
{
    if (!c->staging)
        return;
    cudaFreeHost(c->staging->up);
    cudaFreeHost(c->staging->down);
    free(c->staging);
}

/* What does not fit the staging memory goes from the caller's, which stays as it is until the next
 * download. */
int cuda_upload(struct backend *b, void *dev, const void *host, size_t bytes)
{
    struct staging *s = cuda(b)->staging;
    if (bytes == 0 || b->why[0])
        return b->why[0] ? -1 : 0;
    if (bytes <= STAGING_BYTES - s->used) {
        host = memcpy(s->up + s->used, host, bytes);
        s->used += (bytes + 15) / 16 * 16;
    }
    if (cuda_check(b, "upload",
                   cudaMemcpyAsync(dev, host, bytes, cudaMemcpyHostToDevice, cuda(b)->stream)))
        return -1;
    return timer_mark(cuda(b), OP_COUNT);
}

static int op_download(struct backend *b, void *host, const void *dev, size_t bytes)
{
    struct cuda *c = cuda(b);
    const bool staged = bytes <= STAGING_BYTES;
    void *to = staged ? c->staging->down : host;
    if (b->why[0])
        return -1;
    if (bytes && cuda_check(b, "download",
                            cudaMemcpyAsync(to, dev, bytes, cudaMemcpyDeviceToHost, c->stream)))
        return -1;
    if (cuda_check(b, "the device", cudaStreamSynchronize(c->stream)))
        return -1;
    if (staged && bytes)
        memcpy(host, to, bytes);
    c->staging->used = 0;
    timer_read(c);
    return 0;
}

/* ---- keys and values ---- */

static int op_kv_open(struct backend *b, struct kv_store **out, int n_layers, int n_pages,
                      int kv_heads, int head_dim)
{
    const size_t act = act_size(b->act);
    const int unit = (int)(16 / act);
    struct kv_store *s = (struct kv_store *)calloc(1, sizeof *s);
    if (!s)
        return cuda_fail(b, "KV cache", "out of memory");
    s->n_layers = n_layers;
    s->n_pages = n_pages;
    s->kv_heads = kv_heads;
    s->head_dim = head_dim;
    s->row = (head_dim + unit - 1) / unit * unit;
    s->head_bytes = 2 * KV_PAGE * (size_t)s->row * act;
    s->page_bytes = (size_t)kv_heads * s->head_bytes;
    s->layer_bytes = (size_t)n_pages * s->page_bytes;
    if (cuda_alloc(b, (void **)&s->data, (size_t)n_layers * s->layer_bytes)) {
        free(s);
        return -1;
    }
    *out = s;
    return 0;
}

static void op_kv_close(struct backend *b, struct kv_store *s)
{
    if (!s)
        return;
    cuda_release(b, s->data);
    free(s);
}

/* ---- open and close ---- */

static void op_close(struct backend *b)
{
    struct cuda *c = cuda(b);
    if (c->stream)
        cudaStreamSynchronize(c->stream);
    matmul_close(c);
    records_close(c);
    staging_close(c);
    timer_close(c);
    if (c->stream)
        cudaStreamDestroy(c->stream);
    free(c);
}

static const struct backend_ops cuda_ops = {
    .close = op_close,
    .alloc = cuda_alloc,
    .release = cuda_release,
    .upload = cuda_upload,
    .download = op_download,
    .weight_open = cuda_weight_open,
    .weight_close = cuda_weight_close,
    .kv_open = op_kv_open,
    .kv_close = op_kv_close,
    .embed = cuda_embed,
    .rmsnorm = cuda_rmsnorm,
    .linear = cuda_linear,
    .rope_store = cuda_rope_store,
    .attend = cuda_attend,
    .swiglu = cuda_swiglu,
    .copy_rows = cuda_copy_rows,
    .kv_copy = cuda_kv_copy,
    .propose = cuda_propose,
    .top = cuda_top,
    .activate = cuda_activate,
    .weight_update = cuda_weight_update,
    .linear_grad = cuda_linear_grad,
    .relu_grad = cuda_relu_grad,
    .propose_grad = cuda_propose_grad,
    .adam = cuda_adam,
    .resample = cuda_resample,
    .record = op_record,
    .record_end = op_record_end,
};

/* The pool keeps what is released: later allocations take it without the driver. */
static int open_pool(struct cuda *c)
{
    cudaMemPool_t pool;
    uint64_t all = UINT64_MAX;
    return cuda_check(&c->base, "memory pool", cudaDeviceGetDefaultMemPool(&pool, 0)) ||
           cuda_check(&c->base, "memory pool",
                      cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &all));
}

static int open_device(struct cuda *c)
{
    struct backend *b = &c->base;
    struct cudaDeviceProp p;
    size_t available, total;
    int n = 0;
    if (cuda_check(b, "no CUDA device", cudaGetDeviceCount(&n)))
        return -1;
    if (n == 0)
        return cuda_fail(b, "no CUDA device", "none is visible");
    if (cuda_check(b, "CUDA device 0", cudaSetDevice(0)) ||
        cuda_check(b, "CUDA device 0", cudaGetDeviceProperties(&p, 0)))
        return -1;
    if (p.major < 9)
        return cuda_fail(b, "CUDA device 0", "compute capability 9.0 or newer is needed");
    if (cuda_check(b, "device memory", cudaMemGetInfo(&available, &total)))
        return -1;
    c->n_sm = p.multiProcessorCount;
    b->memory = available;
    snprintf(b->device, sizeof b->device, "%.64s, %d multiprocessors, %.1f GiB, %s", p.name,
             p.multiProcessorCount, (double)total / (1 << 30), b->act == ACT_BF16 ? "bf16" : "f32");
    return cuda_check(b, "stream", cudaStreamCreateWithFlags(&c->stream, cudaStreamNonBlocking));
}

static int pick_act(struct backend *b, const char *dtype)
{
    b->act = strcmp(dtype, "f32") == 0 ? ACT_F32 : ACT_BF16;
    if (strcmp(dtype, "auto") == 0 || strcmp(dtype, "bf16") == 0 || b->act == ACT_F32)
        return 0;
    snprintf(b->why, sizeof b->why, "dtype \"%s\" is none of auto, bf16, f32", dtype);
    return -1;
}

/* backend.c looks it up by name. */
extern "C" __attribute__((visibility("default"))) int
clotho_cuda_open(struct backend **out, const struct backend_opts *o, char *why, size_t why_size)
{
    struct cuda *c = (struct cuda *)calloc(1, sizeof *c);
    if (!c) {
        snprintf(why, why_size, "out of memory");
        return -1;
    }
    c->base.ops = &cuda_ops;
    c->base.name = "cuda";
    c->base.records = true;
    c->fast = o->fast;
    c->base.own_memory = true;
    if (pick_act(&c->base, o->dtype) || open_device(c) || open_pool(c) || timer_open(c) ||
        staging_open(c) || records_open(c) || matmul_open(c)) {
        snprintf(why, why_size, "%s", c->base.why);
        op_close(&c->base);
        return -1;
    }
    *out = &c->base;
    return 0;
}
