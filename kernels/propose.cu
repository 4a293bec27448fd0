/* To be written: see propose.c. */
#include "cuda.cuh"

int cuda_propose(struct backend *b, const struct propose_args *, int)
{
    return cuda_fail(b, "propose", "not there yet");
}

int cuda_propose_grad(struct backend *b, const struct propose_args *, const float *, float *, int)
{
    return cuda_fail(b, "propose_grad", "not there yet");
}
