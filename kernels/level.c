/* The table of one instruction level. */
#include "cpu_ops.h"

#define NAME_v4         "AVX-512"
#define NAME_v3         "AVX2"
#define NAME_base       "baseline"
#define NAME_OF_(level) NAME_##level
#define NAME_OF(level)  NAME_OF_(level)

const struct cpu_level CPU_FN(level) = {
    .name = NAME_OF(CPU_LEVEL),
    .embed = CPU_FN(embed),
    .rmsnorm = CPU_FN(rmsnorm),
    .rope_store = CPU_FN(rope_store),
    .attend = CPU_FN(attend),
    .swiglu = CPU_FN(swiglu),
    .propose = CPU_FN(propose),
    .top = CPU_FN(top),
    .propose_grad = CPU_FN(propose_grad),
    .activate = CPU_FN(activate),
    .relu_grad = CPU_FN(relu_grad),
    .linear_grad = CPU_FN(linear_grad),
    .adam = CPU_FN(adam),
    .multiply = CPU_FN(multiply),
};
