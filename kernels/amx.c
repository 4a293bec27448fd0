/* The matrix multiply on AMX tiles.
 *
 * A tile is 16 rows of 64 bytes: 16x32 of x, 16x16 of y, or 32x16 of W with pairs of rows
 * interleaved. One step multiplies 32 rows of x by a panel's 32 outputs, 32 elements deep: four
 * tiles of sums, two of x, two of W. The sums of a row run over `in` in one order whatever n is; a
 * step of fewer rows uses tiles of fewer rows.
 *
 * Each thread walks its own panels once, all rows per panel, so that a weight crosses the memory
 * bus once. While it multiplies it prefetches the next panel, spread evenly over its steps. */
#include <string.h>

#include "num.h"
#include "panels.h"

#ifdef __x86_64__

#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { TILE_ROWS = 16, STEP_ROWS = 2 * TILE_ROWS, TILE_ELEMENTS = 512, STEP_LINES = 32 };

bool amx_open(void)
{
    enum { BF16 = 1 << 22, TILE = 1 << 24 };               /* CPUID 7.0 edx */
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XTILEDATA = 18 }; /* Linux: asm/prctl.h */
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & BF16) || !(d & TILE))
        return false;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0;
}

/* What ldtilecfg reads. */
struct tile_shapes {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16]; /* of a row */
    uint8_t rows[16];
};

#define AMX static inline __attribute__((always_inline, target("amx-tile,amx-bf16")))

/* Tiles 0..3 are sums (rows 0-15: 0 and 1, rows 16-31: 2 and 3), 4 and 5 are x, 6 and 7 are W. */
AMX void shape_tiles(int rows)
{
    int upper = rows < TILE_ROWS ? rows : TILE_ROWS, lower = rows - upper;
    struct tile_shapes s = {.palette = 1};
    const int tile_rows[8] = {upper, upper, lower, lower, upper, lower, TILE_ROWS, TILE_ROWS};
    for (int i = 0; i < 8; i++) {
        s.rows[i] = (uint8_t)tile_rows[i];
        s.bytes[i] = tile_rows[i] ? 64 : 0;
    }
    __asm__ volatile("ldtilecfg %0" ::"m"(s));
}

/* A stretch of memory to be fetched bit by bit, `lines` of 64 bytes at a time. */
struct prefetch {
    const char *at;
    int lines;
};

/* y (up to 32 rows, 32 columns of a row length ldy) = or += x W, `depth` steps deep. */
AMX void multiply_block(float *y, size_t ldy, bool add, const bf16 *x, size_t ldx, const bf16 *w,
                        int depth, bool lower, struct prefetch *ahead)
{
    const size_t y_row = ldy * sizeof *y, x_row = ldx * sizeof *x;
    if (add) {
        _tile_loadd(0, y, y_row);
        _tile_loadd(1, y + 16, y_row);
    } else {
        _tile_zero(0);
        _tile_zero(1);
    }
    if (add && lower) {
        _tile_loadd(2, y + TILE_ROWS * ldy, y_row);
        _tile_loadd(3, y + TILE_ROWS * ldy + 16, y_row);
    } else if (lower) {
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int i = 0; i < depth; i++, x += DEPTH, w += 2 * TILE_ELEMENTS) {
        _tile_loadd(4, x, x_row);
        _tile_loadd(6, w, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, w + TILE_ELEMENTS, 64);
        _tile_dpbf16ps(1, 4, 7);
        if (lower) {
            _tile_loadd(5, x + TILE_ROWS * ldx, x_row);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        for (int line = 0; line < ahead->lines; line++, ahead->at += 64)
            _mm_prefetch(ahead->at, _MM_HINT_T1);
    }
    _tile_stored(0, y, y_row);
    _tile_stored(1, y + 16, y_row);
    if (lower) {
        _tile_stored(2, y + TILE_ROWS * ldy, y_row);
        _tile_stored(3, y + TILE_ROWS * ldy + 16, y_row);
    }
}

/* The tiles are shaped for `rows` rows. */
AMX void multiply_rows(float *y, size_t ldy, bool add, const bf16 *x, size_t ldx, const bf16 *w,
                       int depth, int rows, struct prefetch *ahead)
{
    if (rows > TILE_ROWS)
        multiply_block(y, ldy, add, x, ldx, w, depth, true, ahead);
    else
        multiply_block(y, ldy, add, x, ldx, w, depth, false, ahead);
}

static void copy_block(float *to, size_t ld_to, const float *from, size_t ld_from, int rows,
                       int columns)
{
    for (int i = 0; i < rows; i++)
        memcpy(to + (size_t)i * ld_to, from + (size_t)i * ld_from, sizeof *to * (size_t)columns);
}

/* A last panel of fewer than 32 outputs goes through a block of its own. */
AMX void multiply_edge(float *y, size_t ldy, bool add, const bf16 *x, size_t ldx, const bf16 *w,
                       int depth, int rows, int columns, struct prefetch *ahead)
{
    float block[STEP_ROWS * PANEL] = {0};
    if (add)
        copy_block(block, PANEL, y, ldy, rows, columns);
    __asm__ volatile("" ::"r"(block) : "memory"); /* tile loads and stores are hidden from the */
    multiply_rows(block, PANEL, add, x, ldx, w, depth, rows, ahead);
    __asm__ volatile("" ::"r"(block) : "memory"); /* compiler: it must not move the copies */
    copy_block(y, ldy, block, PANEL, rows, columns);
}

/* All rows times one panel. */
__attribute__((target("amx-tile,amx-bf16"))) static void
multiply_panel(float *y, bool add, const bf16 *x, const struct panels *panels, int panel, int n)
{
    const int first = panel * PANEL, left = panels->out - first, depth = panels->steps;
    const int columns = left < PANEL ? left : PANEL, blocks = (n + STEP_ROWS - 1) / STEP_ROWS;
    const size_t ldx = (size_t)depth * DEPTH, ldy = (size_t)panels->out;
    const unsigned char *data = panels->data + (size_t)panel * panels->panel_bytes;
    const bf16 *w = (const bf16 *)data;
    struct prefetch ahead = {(const char *)data + panels->panel_bytes,
                             (STEP_LINES + blocks - 1) / blocks};
    y += first;
    for (int i = 0; i < n; i += STEP_ROWS) {
        int rows = n - i < STEP_ROWS ? n - i : STEP_ROWS;
        if (i == 0 || rows < STEP_ROWS)
            shape_tiles(rows);
        if (columns == PANEL)
            multiply_rows(y + (size_t)i * ldy, ldy, add, x + (size_t)i * ldx, ldx, w, depth, rows,
                          &ahead);
        else
            multiply_edge(y + (size_t)i * ldy, ldy, add, x + (size_t)i * ldx, ldx, w, depth, rows,
                          columns, &ahead);
    }
    _tile_release();
}

void amx_multiply(float *y, bool add, const void *x, const struct panels *w, int n)
{
    const int n_panels = (w->out + PANEL - 1) / PANEL;
#pragma omp parallel for schedule(static)
    for (int p = 0; p < n_panels; p++)
        multiply_panel(y, add, x, w, p, n);
}

#else

bool amx_open(void)
{
    return false;
}

void amx_multiply(float *y, bool add, const void *x, const struct panels *w, int n)
{
    (void)y, (void)add, (void)x, (void)w, (void)n;
}

#endif
