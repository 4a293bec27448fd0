/* Weights as the matrix multiplies read them: `linear` of the CPU backend, its AMX kernel, its
 * kernel for all other CPUs.
 *
 * W (out, in) is cut into panels of PANEL outputs, and a panel into steps of DEPTH elements of the
 * rows. A step is two halves of 16 outputs, a half 16 blocks (num.h): block p holds elements 2p (a)
 * and 2p + 1 (b) of the 16 outputs. As bf16 a half is just what an AMX tile wants. Both dimensions
 * are filled up with zeros. */
#pragma once
#include "backend.h"

enum { PANEL = 32, DEPTH = 32 };

struct panels {
    enum act_type type;
    int in, out;
    int steps;          /* ceil(in / DEPTH) */
    size_t panel_bytes; /* a multiple of 64 */
    size_t bytes;       /* of data, ceil(out / PANEL) panels */
    unsigned char *data;
};

/* amx.c. The AMX tiles: ask the system for them; false when this CPU or kernel has none. */
bool amx_open(void);

/* y (n, out) = x (n, in) Wᵀ, or += with add, on AMX. Weights are bf16. x is bf16 in rows of steps *
 * DEPTH elements, those behind `in` zero. */
void amx_multiply(float *y, bool add, const void *x, const struct panels *, int n);
