/* To be written: see grad.c. */
#include "cuda.cuh"

int cuda_linear_grad(struct backend *b, const struct linear_grad_args *, int)
{
    return cuda_fail(b, "linear_grad", "not there yet");
}
