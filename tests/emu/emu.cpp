/* Blocks of CUDA threads on the CPU: a fiber a thread, switched by hand at barriers and shuffles. A
 * block's warps run one after the other, each as far ahead as it can. */
#include "cuda_runtime.h"

#include <cstdio>
#include <cstdlib>
#include <vector>

struct emu_stream {
    emu_graph *capture;
};
struct emu_event {
    int unused;
};
struct emu_graph {
    std::vector<std::function<void()>> nodes;
};

namespace emu
{
thread_local place at;
thread_local unsigned char *shared;

enum state { READY, AT_BLOCK, AT_WARP, DONE };

struct fiber {
    void *stack_pointer;
    char *stack;
    uint3 thread;
    int number;
    state st;
    uint64_t slot;
};

static const size_t STACK = 64 << 10;
static thread_local std::vector<fiber> fibers;
static thread_local fiber *current;
static thread_local void *scheduler;
static thread_local const std::function<void()> *body;

extern "C" void emu_switch(void **save, void *to);
asm(R"(
.text
.globl emu_switch
.hidden emu_switch
.type emu_switch,@function
emu_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
)");

static void wait(state s)
{
    current->st = s;
    emu_switch(&current->stack_pointer, scheduler);
}

static void entry()
{
    (*body)();
    wait(DONE);
    abort();
}

static void resume(fiber &f)
{
    current = &f;
    at.thread = f.thread;
    emu_switch(&scheduler, f.stack_pointer);
}

int lane()
{
    return current->number % 32;
}

void block_barrier(const char *, int)
{
    wait(AT_BLOCK);
}

void warp_barrier(const char *, int)
{
    wait(AT_WARP);
}

uint64_t exchange(uint64_t mine, int from, const char *, int)
{
    const int first = current->number / 32 * 32;
    current->slot = mine;
    wait(AT_WARP);
    const uint64_t got = fibers[(size_t)(first + (from & 31))].slot;
    wait(AT_WARP);
    return got;
}

static void fail(const char *what)
{
    fprintf(stderr, "emulated device: %s\n", what);
    abort();
}

static void prepare(int n)
{
    while ((int)fibers.size() < n) {
        fiber f{};
        f.stack = (char *)malloc(STACK);
        fibers.push_back(f);
    }
    for (int i = 0; i < n; i++) {
        fiber &f = fibers[(size_t)i];
        const unsigned u = (unsigned)i;
        f.number = i;
        f.st = READY;
        f.thread = {u % at.block_dim.x, u / at.block_dim.x % at.block_dim.y,
                    u / (at.block_dim.x * at.block_dim.y)};
        void **sp = (void **)(((uintptr_t)f.stack + STACK) & ~(uintptr_t)15);
        *--sp = nullptr;
        *--sp = (void *)entry;
        sp -= 6;
        memset(sp, 0, 48);
        f.stack_pointer = sp;
    }
}

/* Run a warp to its next block barrier or its end. */
static void run_warp(int lo, int hi)
{
    for (;;) {
        int in_warp = 0, in_block = 0;
        for (int i = lo; i < hi; i++)
            if (fibers[(size_t)i].st == READY)
                resume(fibers[(size_t)i]);
        for (int i = lo; i < hi; i++) {
            in_warp += fibers[(size_t)i].st == AT_WARP;
            in_block += fibers[(size_t)i].st == AT_BLOCK;
        }
        if (!in_warp)
            return;
        if (in_block)
            fail("a warp is divided between a warp operation and a block barrier");
        for (int i = lo; i < hi; i++)
            if (fibers[(size_t)i].st == AT_WARP)
                fibers[(size_t)i].st = READY;
    }
}

static void run_block(int n)
{
    prepare(n);
    for (;;) {
        int done = 0;
        for (int w = 0; w < n; w += 32)
            run_warp(w, std::min(n, w + 32));
        for (int i = 0; i < n; i++)
            done += fibers[(size_t)i].st == DONE;
        if (done == n)
            return;
        if (done)
            fail("threads have ended where others wait at a barrier");
        for (int i = 0; i < n; i++)
            fibers[(size_t)i].st = READY;
    }
}

static void run_grid(dim3 grid, dim3 block, size_t smem, const std::function<void()> &f)
{
    std::vector<unsigned char> memory(smem + 16);
    at.block_dim = block;
    at.grid_dim = grid;
    body = &f;
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = 0; x < grid.x; x++) {
                at.block = {x, y, z};
                memset(memory.data(), 0xff, memory.size());
                shared = (unsigned char *)(((uintptr_t)memory.data() + 15) & ~(uintptr_t)15);
                run_block((int)(block.x * block.y * block.z));
            }
}

void queue(cudaStream_t s, const char *, std::function<void()> f)
{
    if (s->capture)
        s->capture->nodes.push_back(std::move(f));
    else
        f();
}

void run(const char *, dim3 grid, dim3 block, size_t smem, cudaStream_t s, std::function<void()> f)
{
    queue(s, "", [=] { run_grid(grid, block, smem, f); });
}
} // namespace emu

const char *cudaGetErrorString(cudaError_t e)
{
    return e == cudaSuccess                 ? "no error"
           : e == cudaErrorMemoryAllocation ? "out of memory"
                                            : "error";
}
cudaError_t cudaGetLastError()
{
    return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int *n)
{
    *n = 1;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int)
{
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int)
{
    *p = {};
    snprintf(p->name, sizeof p->name, "emulated device");
    p->major = 9;
    p->multiProcessorCount = 4;
    p->totalGlobalMem = (size_t)1 << 30;
    return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t *available, size_t *total)
{
    *available = *total = (size_t)1 << 30;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *p, int)
{
    *p = nullptr;
    return cudaSuccess;
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void *)
{
    return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned)
{
    *s = new emu_stream{};
    return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t s)
{
    delete s;
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t)
{
    return cudaSuccess;
}
cudaError_t cudaMallocAsync(void **p, size_t n, cudaStream_t)
{
    *p = aligned_alloc(256, (n + 255) / 256 * 256);
    return *p ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaFreeAsync(void *p, cudaStream_t)
{
    free(p);
    return cudaSuccess;
}
cudaError_t cudaMallocHost(void **p, size_t n)
{
    *p = malloc(n);
    return cudaSuccess;
}
cudaError_t cudaFreeHost(void *p)
{
    free(p);
    return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void *p, int c, size_t n, cudaStream_t s)
{
    emu::queue(s, "", [=] { memset(p, c, n); });
    return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, cudaMemcpyKind, cudaStream_t s)
{
    emu::queue(s, "", [=] { memcpy(to, from, n); });
    return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t *e)
{
    *e = new emu_event{};
    return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t e)
{
    delete e;
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t)
{
    return cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t, cudaEvent_t)
{
    *ms = 0.001f;
    return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode)
{
    s->capture = new emu_graph{};
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *g)
{
    *g = s->capture;
    s->capture = nullptr;
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *e, cudaGraph_t g, unsigned long long)
{
    *e = new emu_graph(*g);
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t e, cudaStream_t s)
{
    for (auto &node : e->nodes)
        emu::queue(s, "", node);
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t g)
{
    delete g;
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t e)
{
    delete e;
    return cudaSuccess;
}
