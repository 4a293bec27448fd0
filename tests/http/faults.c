/* What a machine does to a program, on demand: allocations that fail and a clock that jumps. To be
 * preloaded; the file that $CLOTHO_FAULTS names holds the switches, which a test turns while the
 * program runs. */
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

struct switches {
    _Atomic int64_t seen; /* allocations so far */
    _Atomic int64_t fail; /* of those, the one that fails; 0: none */
    _Atomic int64_t jump; /* seconds that the time of day is off */
};

static struct switches none, *now = &none;

__attribute__((constructor)) static void open_switches(void)
{
    const char *path = getenv("CLOTHO_FAULTS");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    void *map = mmap(NULL, sizeof *now, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (map != MAP_FAILED)
        now = map;
}

/* ---- allocations, over those of glibc */

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);

static int fails(void)
{
    if (atomic_fetch_add(&now->seen, 1) + 1 != now->fail)
        return 0;
    errno = ENOMEM;
    return 1;
}

void *malloc(size_t n)
{
    return fails() ? NULL : __libc_malloc(n);
}

void *calloc(size_t n, size_t size)
{
    return fails() ? NULL : __libc_calloc(n, size);
}

void *realloc(void *p, size_t n)
{
    return fails() ? NULL : __libc_realloc(p, n);
}

void *aligned_alloc(size_t alignment, size_t n)
{
    return fails() ? NULL : __libc_memalign(alignment, n);
}

int posix_memalign(void **out, size_t alignment, size_t n)
{
    *out = fails() ? NULL : __libc_memalign(alignment, n);
    return *out ? 0 : ENOMEM;
}

/* ---- the time of day; the monotonic clock does not jump */

int clock_gettime(clockid_t clock, struct timespec *t)
{
    int rc = (int)syscall(SYS_clock_gettime, clock, t);
    if (rc == 0 && clock == CLOCK_REALTIME)
        t->tv_sec += now->jump;
    return rc;
}

int gettimeofday(struct timeval *t, void *zone)
{
    struct timespec ts;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &ts);
    *t = (struct timeval){ts.tv_sec, ts.tv_nsec / 1000};
    return 0;
}

time_t time(time_t *out)
{
    struct timespec ts;
    clock_gettime(CLOCK_REALTIME, &ts);
    if (out)
        *out = ts.tv_sec;
    return ts.tv_sec;
}
