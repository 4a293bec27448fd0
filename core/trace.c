#include "trace.h"

void trace_init(struct trace *t, struct arena *arena, int k, int t_max)
{
    size_t cells = (size_t)k * (size_t)t_max;
    *t = (struct trace){
        .k = k,
        .t_max = t_max,
        .entry = ARENA_NEW(arena, struct trace_entry, cells),
        .cloud = ARENA_NEW(arena, int32_t, cells),
        .cloud_log_w = ARENA_NEW(arena, double, cells),
        .cloud_L = ARENA_NEW(arena, double, cells),
        .history = ARENA_NEW(arena, int32_t, cells),
        .n_history = ARENA_NEW(arena, int, k),
        .log_w = ARENA_NEW(arena, double, k),
        .log_phi = ARENA_NEW(arena, double, k),
    };
}
