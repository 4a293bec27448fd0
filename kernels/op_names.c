/* The operations in words, for logs and metrics. */
#include "backend.h"

const char *const backend_op_names[OP_COUNT] = {
    [OP_EMBED] = "embed",
    [OP_RMSNORM] = "rmsnorm",
    [OP_LINEAR] = "linear",
    [OP_ROPE_STORE] = "rope_store",
    [OP_ATTEND] = "attend",
    [OP_SWIGLU] = "swiglu",
    [OP_COPY_ROWS] = "copy_rows",
    [OP_KV_COPY] = "kv_copy",
    [OP_PROPOSE] = "propose",
    [OP_TOP] = "top",
    [OP_RESAMPLE] = "resample",
    [OP_ACTIVATE] = "activate",
    [OP_WEIGHT_UPDATE] = "weight_update",
    [OP_LINEAR_GRAD] = "linear_grad",
    [OP_RELU_GRAD] = "relu_grad",
    [OP_PROPOSE_GRAD] = "propose_grad",
    [OP_ADAM] = "adam",
    [OP_REPLAY] = "replay",
};
