/* The functions that the host calls. Work for the device waits in its stream until somebody waits
 * for the stream, or until there is much of it. */
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <vector>

#include "emu.h"

struct work {
    const char *name;
    bool is_kernel;
    std::function<void()> run;
};

struct emu_graph {
    std::vector<work> nodes;
};

struct emu_stream {
    std::vector<work> queue;
    size_t held; /* bytes of pageable memory that its copies hold */
    emu_graph *capture;
};

/* The stream may get there when the host has destroyed the event. */
struct emu_event {
    struct moment {
        bool passed;
        double ms;
    };
    std::shared_ptr<moment> at; /* null: never recorded */
};

enum { LONG_QUEUE = 4096, MUCH_HELD = 64 << 20, MAX_GRID_YZ = 65535, MAX_BLOCK_Z = 64 };

static struct {
    std::mutex lock;
    std::set<cudaStream_t> streams;
    std::map<const void *, size_t> shared_limits; /* of kernels that have asked for one */
    cudaError_t failed;                           /* for good */
    cudaError_t last;
    size_t kernels; /* that have run */
    const char *running;
} device;

struct locked : std::lock_guard<std::mutex> {
    locked() : std::lock_guard<std::mutex>(device.lock)
    {
    }
};

/* Every call that touches the device fails once it is gone. */
static cudaError_t done(cudaError_t e = cudaSuccess)
{
    if (device.failed)
        return device.failed;
    if (e)
        device.last = e;
    return e;
}

namespace emu
{
void fail(const char *format, ...)
{
    char text[1024], block[96] = "";
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    describe_block(block, sizeof block);
    fprintf(stderr, "emulated device: %s%s%s%s\n", device.running ? device.running : "", block,
            device.running ? ": " : "", text);
    abort();
}

bool is_running()
{
    return device.running;
}

size_t setting(const char *name, size_t otherwise)
{
    const char *text = getenv(name);
    return text ? strtoull(text, nullptr, 10) : otherwise;
}

static const unsigned char canary[2] = {0xd5, 0xff};

void fill_canary(void *p, size_t bytes)
{
    unsigned char *c = (unsigned char *)p;
    memcpy(c, canary, std::min(bytes, sizeof canary));
    for (size_t done = sizeof canary; done < bytes; done *= 2)
        memcpy(c + done, c, std::min(done, bytes - done));
}

bool is_canary(const void *p, size_t bytes)
{
    const unsigned char *c = (const unsigned char *)p;
    return bytes == 0 || (c[0] == canary[0] && (bytes == 1 || c[1] == canary[1]) &&
                          (bytes <= 2 || memcmp(c, c + 2, bytes - 2) == 0));
}
} // namespace emu

/* ---- the queue ---- */

static void run(const work &w)
{
    static const size_t fail_after = emu::setting("CLOTHO_EMU_FAIL_AFTER", 0);
    if (w.is_kernel && ++device.kernels == fail_after) {
        device.failed = cudaErrorLaunchFailure;
        return;
    }
    device.running = w.name;
    w.run();
    emu::memory_check();
    device.running = nullptr;
}

static void drain(cudaStream_t s)
{
    for (const work &w : s->queue)
        if (!device.failed)
            run(w);
    s->queue.clear();
    s->held = 0;
}

static void drain_all()
{
    for (cudaStream_t s : device.streams)
        drain(s);
}

static void enqueue(cudaStream_t s, const char *name, bool is_kernel, std::function<void()> f)
{
    if (device.failed)
        return;
    if (s->capture) {
        s->capture->nodes.push_back({name, is_kernel, std::move(f)});
        return;
    }
    s->queue.push_back({name, is_kernel, std::move(f)});
    if (s->queue.size() >= LONG_QUEUE || s->held >= MUCH_HELD)
        drain(s);
}

/* ---- launches ---- */

static size_t shared_limit(const void *kernel)
{
    auto it = device.shared_limits.find(kernel);
    return it == device.shared_limits.end() ? (size_t)emu::SHARED_DEFAULT : it->second;
}

/* A program that asks for what no device has is wrong: it is told at once. */
static void check_shape(const emu::launch_shape &s)
{
    const size_t threads = (size_t)s.block.x * s.block.y * s.block.z;
    if (s.grid.x == 0 || s.grid.y == 0 || s.grid.z == 0 || threads == 0)
        emu::fail("%s: an empty launch, grid (%u, %u, %u), block (%u, %u, %u)", s.name, s.grid.x,
                  s.grid.y, s.grid.z, s.block.x, s.block.y, s.block.z);
    if (threads > 1024 || s.block.z > MAX_BLOCK_Z)
        emu::fail("%s: too many threads in a block (%u, %u, %u)", s.name, s.block.x, s.block.y,
                  s.block.z);
    if (s.grid.x > INT32_MAX || s.grid.y > MAX_GRID_YZ || s.grid.z > MAX_GRID_YZ)
        emu::fail("%s: too many blocks in a grid (%u, %u, %u)", s.name, s.grid.x, s.grid.y,
                  s.grid.z);
    if (s.smem > shared_limit(s.kernel))
        emu::fail("%s: %zu bytes of shared memory, of at most %zu", s.name, s.smem,
                  shared_limit(s.kernel));
}

void emu::launch_kernel(const launch_shape &s, cudaStream_t stream, std::function<void()> body)
{
    const locked l;
    check_shape(s);
    enqueue(stream, s.name, true, [s, body = std::move(body)] { run_grid(s, body); });
}

void emu::launch_library(const char *name, cudaStream_t stream, std::function<void()> work)
{
    const locked l;
    enqueue(stream, name, true, std::move(work));
}

void *emu::device_pointer(const char *kernel, const void *p, size_t bytes)
{
    const locked l;
    if (p && !memory_holds(p, bytes) && !pinned_holds(p, bytes))
        fail("%s: it is given %p, which is no memory of the device, or not %zu bytes", kernel, p,
             bytes);
    return memory_real(p);
}

void emu::translate_argument(void *object, size_t bytes)
{
    const locked l;
    translate_words(object, bytes);
}

cudaError_t emu::set_shared_limit(const void *kernel, int bytes)
{
    const locked l;
    if (bytes < 0 || bytes > SHARED_MOST)
        return done(cudaErrorInvalidValue);
    device.shared_limits[kernel] = (size_t)bytes;
    return done();
}

/* ---- the device ---- */

const char *cudaGetErrorString(cudaError_t e)
{
    switch (e) {
    case cudaSuccess:
        return "no error";
    case cudaErrorInvalidValue:
        return "invalid argument";
    case cudaErrorMemoryAllocation:
        return "out of memory";
    case cudaErrorInvalidDevice:
        return "invalid device ordinal";
    case cudaErrorInvalidResourceHandle:
        return "invalid resource handle";
    case cudaErrorNotReady:
        return "device not ready";
    case cudaErrorLaunchFailure:
        return "unspecified launch failure";
    case cudaErrorStreamCaptureUnsupported:
        return "operation not permitted when stream is capturing";
    }
    return "unrecognized error code";
}

cudaError_t cudaGetLastError()
{
    const locked l;
    const cudaError_t e = device.failed ? device.failed : device.last;
    device.last = cudaSuccess;
    return e;
}

cudaError_t cudaGetDeviceCount(int *n)
{
    const locked l;
    *n = 1;
    return done();
}

cudaError_t cudaSetDevice(int i)
{
    const locked l;
    return done(i == 0 ? cudaSuccess : cudaErrorInvalidDevice);
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int i)
{
    const locked l;
    if (i != 0)
        return done(cudaErrorInvalidDevice);
    *p = {"emulated device", 9, 0, 4, 1 << 20, emu::memory_total(), emu::SHARED_MOST};
    return done();
}

cudaError_t cudaMemGetInfo(size_t *available, size_t *total)
{
    const locked l;
    *available = emu::memory_available();
    *total = emu::memory_total();
    return done();
}

cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *p, int i)
{
    const locked l;
    *p = nullptr;
    return done(i == 0 ? cudaSuccess : cudaErrorInvalidDevice);
}

cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void *value)
{
    const locked l;
    return done(value ? cudaSuccess : cudaErrorInvalidValue);
}

/* ---- streams ---- */

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned)
{
    const locked l;
    if (device.failed)
        return done();
    *s = new emu_stream{};
    device.streams.insert(*s);
    return done();
}

cudaError_t cudaStreamDestroy(cudaStream_t s)
{
    const locked l;
    size_t bytes;
    if (device.streams.erase(s) == 0)
        return done(cudaErrorInvalidResourceHandle);
    drain(s);
    const int n = emu::memory_leaks(s, &bytes);
    if (n && !device.failed)
        emu::fail("%d arrays of %zu bytes of device memory were never freed", n, bytes);
    delete s->capture;
    delete s;
    return done();
}

cudaError_t cudaStreamSynchronize(cudaStream_t s)
{
    const locked l;
    if (s->capture)
        return done(cudaErrorStreamCaptureUnsupported);
    drain(s);
    return done();
}

/* ---- memory ---- */

cudaError_t cudaMallocAsync(void **p, size_t bytes, cudaStream_t s)
{
    const locked l;
    if (s->capture)
        return done(cudaErrorStreamCaptureUnsupported);
    if (device.failed || bytes == 0) {
        *p = nullptr;
        return done();
    }
    void *got = emu::memory_alloc(bytes, s);
    if (!got) {
        drain_all(); /* what was freed is given back */
        got = emu::memory_alloc(bytes, s);
    }
    if (!got)
        return done(cudaErrorMemoryAllocation);
    enqueue(s, "cudaMallocAsync", false, [got] { emu::memory_begin(got); });
    *p = got;
    return done();
}

cudaError_t cudaFreeAsync(void *p, cudaStream_t s)
{
    const locked l;
    if (device.failed || !p)
        return done();
    if (s->capture)
        return done(cudaErrorStreamCaptureUnsupported);
    if (!emu::memory_free(p))
        return done(cudaErrorInvalidValue);
    enqueue(s, "cudaFreeAsync", false, [p] { emu::memory_end(p); });
    return done();
}

cudaError_t cudaMallocHost(void **p, size_t bytes)
{
    const locked l;
    if (device.failed)
        return done();
    *p = emu::pinned_alloc(bytes);
    return done(*p ? cudaSuccess : cudaErrorMemoryAllocation);
}

/* Waits for the device, as a real one does. */
cudaError_t cudaFreeHost(void *p)
{
    const locked l;
    drain_all();
    return done(!p || emu::pinned_free(p) ? cudaSuccess : cudaErrorInvalidValue);
}

cudaError_t cudaMemsetAsync(void *p, int c, size_t n, cudaStream_t s)
{
    const locked l;
    if (n && !emu::memory_holds(p, n))
        return done(cudaErrorInvalidValue);
    enqueue(s, "cudaMemsetAsync", false, [=] { memset(emu::memory_real(p), c, n); });
    return done();
}

static bool ends_fit(const void *to, const void *from, size_t n, cudaMemcpyKind kind)
{
    const bool to_device = kind != cudaMemcpyDeviceToHost,
               from_device = kind != cudaMemcpyHostToDevice;
    return (to_device ? emu::memory_holds(to, n) : !emu::memory_is_device(to)) &&
           (from_device ? emu::memory_holds(from, n) : !emu::memory_is_device(from));
}

static void copy(void *to, const void *from, size_t n, cudaMemcpyKind kind)
{
    memcpy(emu::memory_real(to), emu::memory_real(from), n);
    if (kind == cudaMemcpyHostToDevice)
        emu::translate_words(emu::memory_real(to), n);
}

/* From pageable memory: it is read at once. In a graph it is read when that runs, like pinned. */
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, cudaMemcpyKind kind,
                            cudaStream_t s)
{
    const locked l;
    if (device.failed || n == 0)
        return done();
    if (!ends_fit(to, from, n, kind))
        return done(cudaErrorInvalidValue);
    if (kind == cudaMemcpyHostToDevice && !s->capture && !emu::pinned_holds(from, n)) {
        const char *bytes = (const char *)from;
        s->held += n;
        enqueue(s, "cudaMemcpyAsync", false, [=, held = std::vector<char>(bytes, bytes + n)] {
            copy(to, held.data(), n, kind);
        });
        return done();
    }
    enqueue(s, "cudaMemcpyAsync", false, [=] { copy(to, from, n, kind); });
    if (kind == cudaMemcpyDeviceToHost && !s->capture && !emu::pinned_holds(to, n))
        drain(s);
    return done();
}

/* ---- events ---- */

cudaError_t cudaEventCreate(cudaEvent_t *e)
{
    const locked l;
    if (device.failed)
        return done();
    *e = new emu_event{};
    return done();
}

cudaError_t cudaEventDestroy(cudaEvent_t e)
{
    const locked l;
    delete e;
    return done();
}

cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s)
{
    const locked l;
    auto at = e->at = std::make_shared<emu_event::moment>();
    enqueue(s, "cudaEventRecord", false, [at] {
        timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        *at = {true, 1e3 * (double)t.tv_sec + 1e-6 * (double)t.tv_nsec};
    });
    return done();
}

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to)
{
    const locked l;
    if (!from->at || !to->at)
        return done(cudaErrorInvalidResourceHandle);
    if (!from->at->passed || !to->at->passed)
        return done(cudaErrorNotReady);
    *ms = (float)(to->at->ms - from->at->ms);
    return done();
}

/* ---- graphs ---- */

cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode)
{
    const locked l;
    if (device.failed)
        return done();
    if (s->capture)
        return done(cudaErrorStreamCaptureUnsupported);
    s->capture = new emu_graph{};
    return done();
}

cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *g)
{
    const locked l;
    if (device.failed)
        return done();
    if (!s->capture)
        return done(cudaErrorInvalidValue);
    *g = s->capture;
    s->capture = nullptr;
    return done();
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *e, cudaGraph_t g, unsigned long long)
{
    const locked l;
    if (device.failed)
        return done();
    *e = new emu_graph(*g);
    return done();
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t e, cudaStream_t s)
{
    const locked l;
    for (const work &w : e->nodes)
        enqueue(s, w.name, w.is_kernel, w.run);
    return done();
}

cudaError_t cudaGraphDestroy(cudaGraph_t g)
{
    const locked l;
    delete g;
    return done();
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t e)
{
    const locked l;
    delete e;
    return done();
}
