/* To be written: see resample.c. */
#include "cuda.cuh"

int cuda_resample(struct backend *b, const struct resample_args *, struct resample_out *, int)
{
    return cuda_fail(b, "resample", "not there yet");
}
