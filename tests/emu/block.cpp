/* Blocks of threads. The blocks of a grid run one after the other. Within one, a warp runs until
 * all of its lanes wait for the block or have ended, and only then the next warp begins: each is
 * once as far ahead of the others as it can be, and so is each lane between two operations of its
 * warp. That shows a missing barrier where running in lockstep would hide it: what is read was not
 * yet written (before), or was already overwritten (after).
 *
 * A thread begins on whatever stack is free. Until it waits, the next lane begins on the same one,
 * so that kernels without barriers never switch. A lane that waits switches to the next one itself.
 */
#include <cstdio>
#include <map>
#include <numeric>
#include <vector>

#include "fiber.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emu
{
unsigned char *shared_memory;
int current_lane;

enum { WARP = 32, MAX_THREADS = 1024 };
enum state { READY, AT_BLOCK, AT_WARP, ENDED };

struct thread {
    uint3 index;
    int number; /* in its block */
    state st;
    fiber *on; /* null before it begins and when it has ended */
    /* Where it waits, and for whom. */
    meeting what;
    const char *file;
    int line;
    unsigned mask;
    uint64_t give, got;
    int from;
};

static thread threads[MAX_THREADS];
static thread *current;
static std::vector<fiber *> idle;
static const std::function<void()> *body;
static bool running;

/* ---- schedules ---- */

/* The numbers 0 .. n-1 in some order: from a start in equal steps, which have no factor in common
 * with n. */
struct order {
    size_t n, place, step, left;
    bool next(size_t *i)
    {
        if (left == 0)
            return false;
        left--;
        *i = place;
        place = place + step >= n ? place + step - n : place + step;
        return true;
    }
};

static size_t random_below(size_t n)
{
    static uint64_t state = setting("CLOTHO_EMU_SCHEDULE", 0);
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (size_t)(state >> 33) % n;
}

static order make_order(size_t n)
{
    static const size_t schedule = setting("CLOTHO_EMU_SCHEDULE", 0);
    if (schedule == 0 || n < 2)
        return {n, 0, 1, n};
    if (schedule == 1)
        return {n, n - 1, n - 1, n};
    size_t step = 1 + random_below(n - 1);
    while (std::gcd(step, n) != 1)
        step = 1 + random_below(n - 1);
    return {n, random_below(n), step, n};
}

/* ---- lanes ---- */

/* The warp that runs, and which lanes have had their turn. */
static struct {
    thread *first;
    order lanes;
} turn;

static thread *next_ready()
{
    size_t i;
    while (turn.lanes.next(&i))
        if (turn.first[i].st == READY)
            return turn.first + i;
    return nullptr;
}

static fiber *stack_of(thread *t);

/* From the stack `mine` to the thread t, or to the host when there is none. */
static void leave(fiber *mine, thread *t)
{
    if (t) {
        current = t;
        current_lane = t->number % WARP;
        threadIdx = t->index;
    }
    fiber *to = t ? stack_of(t) : fiber_host();
    if (to != mine)
        fiber_switch(mine, to);
}

/* Run threads, one after the other, on one stack. */
static void run_threads()
{
    for (;;) {
        (*body)();
        fiber *mine = current->on;
        current->st = ENDED;
        current->on = nullptr;
        idle.push_back(mine);
        leave(mine, next_ready());
    }
}

/* The stack that was given back last is the warmest: of a thread that has just ended, its own. */
static fiber *stack_of(thread *t)
{
    if (!t->on && idle.empty())
        t->on = fiber_new(run_threads);
    if (!t->on) {
        t->on = idle.back();
        idle.pop_back();
    }
    return t->on;
}

uint64_t meet(meeting what, unsigned mask, uint64_t give, int from, const char *file, int line)
{
    thread *me = current;
    if (!running)
        fail("%s:%d: host code calls a function of the device", file, line);
    me->st = what == BLOCK_BARRIER ? AT_BLOCK : AT_WARP;
    me->what = what;
    me->mask = mask;
    me->give = give;
    me->from = from;
    me->file = file;
    me->line = line;
    leave(me->on, next_ready());
    return me->got;
}

/* ---- warps ---- */

static bool same_place(const thread &a, const thread &b)
{
    return a.line == b.line && a.what == b.what &&
           (a.file == b.file || strcmp(a.file, b.file) == 0);
}

struct place {
    char text[256];
};

static place describe(const thread &t)
{
    static const char *const names[] = {"__syncthreads", "__syncwarp", "a shuffle", "a vote"};
    place p;
    const int n =
        snprintf(p.text, sizeof p.text, "thread (%u, %u, %u) ", t.index.x, t.index.y, t.index.z);
    if (t.st == ENDED)
        snprintf(p.text + n, sizeof p.text - (size_t)n, "has ended");
    else
        snprintf(p.text + n, sizeof p.text - (size_t)n, "is at %s, %s:%d", names[t.what], t.file,
                 t.line);
    return p;
}

/* The lane that keeps those of t's mask from going on, or null; all of them may be at the same
 * operation. */
static const thread *missing(const thread *warp, size_t lanes, const thread &t)
{
    for (size_t i = 0; i < WARP; i++) {
        if (!(t.mask >> i & 1))
            continue;
        if (i >= lanes)
            fail("%s, for lanes that the block does not have", describe(t).text);
        if (warp[i].st != AT_WARP || warp[i].mask != t.mask || !same_place(warp[i], t))
            return warp + i;
    }
    return nullptr;
}

/* The lanes of a mask are all there: give each its result. */
static void perform(thread *warp, const thread &t)
{
    const unsigned mask = t.mask;
    const meeting what = t.what;
    uint64_t ballot = 0;
    for (size_t i = 0; i < WARP; i++)
        if (mask >> i & 1)
            ballot |= (uint64_t)(warp[i].give != 0) << i;
    for (size_t i = 0; i < WARP; i++) {
        if (!(mask >> i & 1))
            continue;
        if (what == SHUFFLE && !(mask >> warp[i].from & 1))
            fail("%s, and reads lane %d, which takes no part", describe(warp[i]).text,
                 warp[i].from);
        warp[i].got = what == SHUFFLE ? warp[warp[i].from].give : ballot;
        warp[i].st = READY;
    }
}

/* Let lanes go on whose operation all of their mask have reached. Returns whether there are any. */
static bool release_lanes(thread *warp, size_t lanes)
{
    const thread *waits = nullptr, *other = nullptr;
    bool any = false;
    for (size_t i = 0; i < lanes; i++) {
        if (warp[i].st != AT_WARP)
            continue;
        if (!(warp[i].mask >> i & 1))
            fail("%s, with a mask without itself", describe(warp[i]).text);
        const thread *late = missing(warp, lanes, warp[i]);
        if (!late) {
            perform(warp, warp[i]);
            any = true;
        } else if (!other) {
            waits = warp + i;
            other = late;
        }
    }
    if (!any && waits)
        fail("a divided warp: %s, where %s", describe(*waits).text, describe(*other).text);
    return any;
}

static void run_warp(thread *warp, size_t lanes)
{
    do {
        turn = {warp, make_order(lanes)};
        leave(fiber_host(), next_ready());
    } while (release_lanes(warp, lanes));
}

/* ---- blocks ---- */

/* All warps have stopped: true when all threads have ended, false when all wait for each other. */
static bool block_ended(size_t n)
{
    const thread *waits = nullptr, *ended = nullptr;
    for (size_t i = 0; i < n; i++)
        (threads[i].st == ENDED ? ended : waits) = threads + i;
    for (size_t i = 0; i < n; i++)
        if (threads[i].st == AT_BLOCK && !same_place(threads[i], *waits))
            fail("different barriers: %s, where %s", describe(threads[i]).text,
                 describe(*waits).text);
    if (waits && ended)
        fail("a barrier that not all reach: %s, where %s", describe(*waits).text,
             describe(*ended).text);
    return ended;
}

static void run_block(size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const unsigned u = (unsigned)i, x = blockDim.x, y = blockDim.y;
        threads[i].number = (int)i;
        threads[i].index = {u % x, u / x % y, u / (x * y)};
        threads[i].st = READY;
    }
    for (;;) {
        order warps = make_order((n + WARP - 1) / WARP);
        for (size_t w; warps.next(&w);)
            run_warp(threads + w * WARP, std::min<size_t>(WARP, n - w * WARP));
        if (block_ended(n))
            return;
        for (size_t i = 0; i < n; i++)
            threads[i].st = READY;
    }
}

/* ---- grids ---- */

/* A block's shared memory, all NaN, between two red zones. */
static const size_t RED = 256;
alignas(256) static unsigned char shared_room[RED + SHARED_MOST + RED];

static void shared_begin(size_t bytes)
{
    ASAN_UNPOISON_MEMORY_REGION(shared_room, sizeof shared_room);
    shared_memory = shared_room + RED;
    fill_canary(shared_room, RED);
    memset(shared_memory, 0xff, bytes);
    fill_canary(shared_memory + bytes, RED);
    ASAN_POISON_MEMORY_REGION(shared_room, RED);
    ASAN_POISON_MEMORY_REGION(shared_memory + bytes, RED);
}

static void shared_end(size_t bytes)
{
    ASAN_UNPOISON_MEMORY_REGION(shared_room, sizeof shared_room);
    if (!is_canary(shared_room, RED) || !is_canary(shared_memory + bytes, RED))
        fail("a write outside of the %zu bytes of shared memory", bytes);
}

int describe_block(char *to, size_t size)
{
    if (!running)
        return 0;
    return snprintf(to, size, " block (%u, %u, %u)", blockIdx.x, blockIdx.y, blockIdx.z);
}

void run_grid(const launch_shape &s, const std::function<void()> &f)
{
    const size_t n = (size_t)s.block.x * s.block.y * s.block.z;
    order blocks = make_order((size_t)s.grid.x * s.grid.y * s.grid.z);
    blockDim = s.block;
    gridDim = s.grid;
    body = &f;
    running = true;
    for (size_t b; blocks.next(&b);) {
        blockIdx = {(unsigned)(b % s.grid.x), (unsigned)(b / s.grid.x % s.grid.y),
                    (unsigned)(b / s.grid.x / s.grid.y)};
        shared_begin(s.smem);
        run_block(n);
        shared_end(s.smem);
    }
    running = false;
}
} // namespace emu
