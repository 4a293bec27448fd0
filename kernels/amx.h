/* Matrix multiply of bfloat16 on the AMX tiles of recent x86 CPUs, weights packed for it. Elsewhere
 * amx_open says no and nothing else is called. */
#pragma once
#include <stdbool.h>
#include <stddef.h>

#include "num.h"

/* Ask the system for the tiles. False: this CPU or kernel has none. Call it before the others. */
bool amx_open(void);

/* W (out, in) is kept in panels of AMX_PANEL outputs, `in` filled up with zeros to a multiple of
 * AMX_DEPTH and `out` to one of AMX_PANEL. */
enum { AMX_PANEL = 32, AMX_DEPTH = 32 };
size_t amx_panel_bytes(int in);

/* Pack up to 32 rows of W, each a plain row of in bf16; panel is zeroed memory, aligned to 64. */
void amx_pack(void *panel, const bf16 *rows, int n_rows, int in);

/* y (n, out) = x (n, in) Wᵀ, or += with add. x is read in rows of amx_padded(in) elements, the ones
 * behind `in` zero. Parallel over panels. */
int amx_padded(int in);
void amx_multiply(float *y, bool add, const bf16 *x, const void *panels, int n, int in, int out);
