/* Memory of the device, and pinned memory of the host.
 *
 * The device's memory has two ranges of addresses. The host knows arrays by those of one that
 * nobody may ever touch; the bytes are in the other one. Pointers change from one to the other on
 * their way to the device: arguments of kernels, and what copies bring there. So no code of the
 * host can touch device memory, not even while the device runs, and nothing need be switched for
 * it.
 *
 * Arrays lie one behind the other, each followed by a red zone. The host's view changes when it
 * calls (chunk.freed), the device's when the stream gets there (memory_begin, memory_end): memory
 * is given out again only after the device has done with it. */
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <sys/mman.h>

#include "emu.h"

namespace emu
{
static const size_t RED = 512, ALIGN = 256;

enum device_view { FRESH, COMING, LIVE, FREE };

struct chunk {
    size_t bytes; /* asked for */
    size_t room;  /* until the red zone */
    cudaStream_t owner;
    device_view view;
    bool freed;  /* by the host */
    bool reused; /* was FREE: all of it is as memory_end left it */
};

static struct {
    char *base, *real; /* what the host sees, and where the bytes are */
    size_t reserved, used;
    size_t high;                    /* behind the last chunk */
    size_t opened;                  /* of real: bytes that kernels may touch */
    std::map<size_t, chunk> chunks; /* by offset */
    struct sigaction before;
} arena;

/* ---- who touches it ---- */

static bool is_within(const char *range, const void *p)
{
    return range && (const char *)p >= range && (const char *)p < range + arena.reserved;
}

/* The process is about to end: it does not matter here that printf is no friend of signals. */
static void on_fault(int number, siginfo_t *info, void *context)
{
    const char *p = (const char *)info->si_addr;
    if (is_within(arena.real, p))
        fail("an access to device memory that nobody has, at offset %td", p - arena.real);
    if (is_within(arena.base, p) && is_running())
        fail("a pointer to memory that was freed, at offset %td", p - arena.base);
    if (is_within(arena.base, p))
        fail("host code touches device memory, at offset %td", p - arena.base);
    if (arena.before.sa_flags & SA_SIGINFO)
        arena.before.sa_sigaction(number, info, context);
    else
        sigaction(number, &arena.before, nullptr); /* and it happens again */
}

static char *reserve(void *where, int flags)
{
    void *p = mmap(where, arena.reserved, PROT_NONE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | flags, -1, 0);
    if (p == MAP_FAILED)
        fail("no addresses for %zu bytes of device memory", arena.reserved);
    return (char *)p;
}

/* Nothing but a pointer should look like an address that the host knows (translate_words): neither
 * half of these is a number that programs work with, as an int or as a float. */
static void *const HOST_VIEW = (void *)0x2c0d80000000;

static void open_arena()
{
    arena.reserved = 2 * memory_total() + ((size_t)64 << 20);
    arena.base = reserve(HOST_VIEW, MAP_FIXED_NOREPLACE);
    arena.real = reserve(nullptr, 0);
    arena.high = 4096;
    madvise(arena.real, arena.reserved, MADV_HUGEPAGE); /* fewer faults, where there are any */
    struct sigaction handler = {};
    handler.sa_sigaction = on_fault;
    handler.sa_flags = SA_SIGINFO;
    sigaction(SIGSEGV, &handler, &arena.before);
}

/* Kernels may touch what lies below `high`. */
static void open_until(size_t high)
{
    const size_t unit = (size_t)2 << 20, until = (high + unit - 1) / unit * unit;
    if (until <= arena.opened)
        return;
    if (mprotect(arena.real + arena.opened, until - arena.opened, PROT_READ | PROT_WRITE))
        fail("no memory for %zu bytes of device memory", until);
    arena.opened = until;
}

void *memory_real(const void *p)
{
    return is_within(arena.base, p) ? arena.real + ((const char *)p - arena.base)
                                    : const_cast<void *>(p);
}

/* ---- arrays ---- */

static size_t offset_of(const void *p)
{
    return (size_t)((const char *)p - arena.base);
}

bool memory_is_device(const void *p)
{
    return is_within(arena.base, p);
}

/* The chunk that p lies in, or in whose red zone. */
static std::map<size_t, chunk>::iterator find(const void *p)
{
    auto it = memory_is_device(p) ? arena.chunks.upper_bound(offset_of(p)) : arena.chunks.begin();
    return it == arena.chunks.begin() ? arena.chunks.end() : std::prev(it);
}

/* The first that is free and large enough, what is left over as a chunk of its own; or a new one.
 */
static size_t place_chunk(size_t room)
{
    for (auto &[offset, c] : arena.chunks) {
        if (c.view != FREE || c.room < room)
            continue;
        if (c.room >= room + RED + ALIGN) {
            arena.chunks[offset + room + RED] = {0, c.room - room - RED, nullptr, FREE, true, true};
            c.room = room;
        }
        return offset;
    }
    const size_t offset = arena.high;
    if (offset + room + RED > arena.reserved)
        fail("device memory is in too many pieces");
    arena.high += room + RED;
    open_until(arena.high);
    arena.chunks[offset] = {0, room, nullptr, FRESH, false, false};
    return offset;
}

void *memory_alloc(size_t bytes, cudaStream_t owner)
{
    const size_t room = (bytes + ALIGN - 1) / ALIGN * ALIGN;
    if (!arena.base)
        open_arena();
    if (bytes > memory_total() || room > memory_available())
        return nullptr;
    const size_t offset = place_chunk(room);
    chunk &c = arena.chunks[offset];
    c = {bytes, c.room, owner, COMING, false, c.view == FREE};
    arena.used += c.room;
    return arena.base + offset;
}

void memory_begin(void *p)
{
    chunk &c = arena.chunks[offset_of(p)];
    p = memory_real(p);
    char *end = (char *)p + c.bytes;
    const size_t rest = c.room - c.bytes + RED;
    ASAN_UNPOISON_MEMORY_REGION(p, c.room + RED);
    if (c.reused && !is_canary(p, c.room + RED))
        fail("somebody has written to device memory after it was freed");
    memset(p, 0xff, c.bytes);
    fill_canary(end, rest);
    ASAN_POISON_MEMORY_REGION(end, rest);
    c.view = LIVE;
}

bool memory_free(void *p)
{
    auto it = find(p);
    if (it == arena.chunks.end() || arena.base + it->first != p || it->second.freed)
        return false;
    it->second.freed = true;
    return true;
}

/* Together with free neighbours. What is free reads as NaN. */
void memory_end(void *p)
{
    auto it = find(p);
    it->second.view = FREE;
    arena.used -= it->second.room;
    p = memory_real(p);
    ASAN_UNPOISON_MEMORY_REGION(p, it->second.room + RED);
    fill_canary(p, it->second.room + RED);
    ASAN_POISON_MEMORY_REGION(p, it->second.room + RED);
    auto next = std::next(it);
    if (next != arena.chunks.end() && next->second.view == FREE) {
        it->second.room += RED + next->second.room;
        arena.chunks.erase(next);
    }
    if (it != arena.chunks.begin() && std::prev(it)->second.view == FREE) {
        std::prev(it)->second.room += RED + it->second.room;
        arena.chunks.erase(it);
    }
}

/* The sanitizer sees every access itself, and would see ours. */
void memory_check()
{
#ifndef EMU_ASAN
    for (const auto &[offset, c] : arena.chunks)
        if (c.view == LIVE && !is_canary(arena.real + offset + c.bytes, c.room - c.bytes + RED))
            fail("a write behind an array of %zu bytes of device memory", c.bytes);
#endif
}

bool memory_holds(const void *p, size_t bytes)
{
    auto it = find(p);
    if (it == arena.chunks.end() || (is_running() ? it->second.view != LIVE : it->second.freed))
        return false;
    const size_t at = offset_of(p) - it->first, size = it->second.bytes;
    return at <= size && bytes <= size - at;
}

void translate_words(void *object, size_t bytes)
{
    char *at = (char *)object, *end = at + bytes;
    for (; at + sizeof(void *) <= end; at += sizeof(void *)) {
        void *p;
        memcpy(&p, at, sizeof p);
        if (!is_within(arena.base, p) || !memory_holds(p, 0))
            continue;
        p = memory_real(p);
        memcpy(at, &p, sizeof p);
    }
}

size_t memory_total()
{
    static const size_t total = setting("CLOTHO_EMU_MEMORY", (size_t)1 << 30);
    return total;
}

size_t memory_available()
{
    return memory_total() - std::min(arena.used, memory_total());
}

int memory_leaks(cudaStream_t owner, size_t *bytes)
{
    int n = 0;
    *bytes = 0;
    for (const auto &[offset, c] : arena.chunks)
        if (c.view != FREE && c.owner == owner && !c.freed) {
            n++;
            *bytes += c.bytes;
        }
    return n;
}

/* ---- pinned memory ---- */

static std::map<const char *, size_t> pinned;

void *pinned_alloc(size_t bytes)
{
    void *p = malloc(bytes);
    if (p)
        pinned[(const char *)p] = bytes;
    return p;
}

bool pinned_free(void *p)
{
    if (pinned.erase((const char *)p) == 0)
        return false;
    free(p);
    return true;
}

bool pinned_holds(const void *p, size_t bytes)
{
    auto it = pinned.upper_bound((const char *)p);
    if (it == pinned.begin())
        return false;
    --it;
    const size_t at = (size_t)((const char *)p - it->first);
    return at <= it->second && bytes <= it->second - at;
}
} // namespace emu
