/* Inside of the emulated device: what its files share. One lock, taken by every function that the
 * host calls, guards all of it, so that one host thread at a time runs the device. */
#pragma once
#include "cuda_runtime.h"

#if defined(__SANITIZE_ADDRESS__)
#define EMU_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define EMU_ASAN 1
#endif
#endif
#ifdef EMU_ASAN
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, n)   ((void)(p), (void)(n))
#define ASAN_UNPOISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#endif

namespace emu
{
/* The largest dynamic shared memory of a block, without asking for more and with. */
enum { SHARED_DEFAULT = 48 << 10, SHARED_MOST = 227 << 10 };

/* One line, and the process ends. Names the work that runs. */
[[noreturn]] __attribute__((format(printf, 1, 2))) void fail(const char *format, ...);
/* Work of the device is running. */
bool is_running();
/* An environment variable that is a number. */
size_t setting(const char *name, size_t otherwise);

/* What red zones are filled with: NaN in every type of number, and nothing that memset writes. */
void fill_canary(void *, size_t bytes);
bool is_canary(const void *, size_t bytes);

/* ---- memory.cpp ---- */

/* Host side of cudaMallocAsync: null when the device is full. memory_begin and memory_end are the
 * device's side of the life of an array, called when their turn in the stream has come. */
void *memory_alloc(size_t bytes, cudaStream_t owner);
void memory_begin(void *);
bool memory_free(void *); /* the host has done with it; false: it is no array */
void memory_end(void *);
/* Red zones are as they were; called after each piece of work. */
void memory_check();
/* All of p .. p + bytes is in one array; whether it is there at all, host and device see each in
 * its own time. */
bool memory_holds(const void *p, size_t bytes);
/* From the host's address to where the bytes are; what is no device memory stays as it is. */
void *memory_real(const void *p);
/* The same for all words of an object that are addresses of arrays. */
void translate_words(void *object, size_t bytes);
bool memory_is_device(const void *p);
size_t memory_available();
size_t memory_total();
/* Arrays of a stream that were not freed: their number, and the bytes of all. */
int memory_leaks(cudaStream_t owner, size_t *bytes);

void *pinned_alloc(size_t bytes);
bool pinned_free(void *); /* false: it was not pinned_alloc's */
bool pinned_holds(const void *p, size_t bytes);

/* ---- block.cpp ---- */

/* Run all blocks of a grid to their end. */
void run_grid(const launch_shape &, const std::function<void()> &body);
/* What fail adds about where the device is: " block (x, y, z)", or nothing. */
int describe_block(char *to, size_t size);
} // namespace emu
