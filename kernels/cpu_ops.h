/* Inside of the CPU backend: its state and one function an operation. Only files of this folder
 * include it.
 *
 * The hot files are compiled once per instruction level (kernels/CMakeLists.txt) with CPU_LEVEL set
 * to v4 (AVX-512), v3 (AVX2) or base; CPU_FN gives their functions the level's name, and cpu.c
 * picks one table by CPUID when the backend opens. To add a hot operation: its function in struct
 * cpu_level here, its line in level.c, its file in the list of kernels/CMakeLists.txt, its wrapper
 * in cpu.c.
 *
 * Operations do not fail here (shapes are the caller's promise); only those of linear.c can. They
 * are parallel over rows, or rows and heads, with OpenMP's current number of threads, and each
 * output element is computed by one thread in one fixed order: neither n nor the threads change a
 * bit. */
#pragma once
#include "backend.h"
#include "panels.h"

#define CPU_PASTE_(name, level) cpu_##name##_##level
#define CPU_PASTE(name, level)  CPU_PASTE_(name, level)
#define CPU_FN(name)            CPU_PASTE(name, CPU_LEVEL)

/* A row of embeddings is dequantised when it is looked up. */
struct cpu_table {
    struct weight_part *parts; /* (n_parts), own copy; their data is the file's */
    int n_parts, in, rows;
};

enum { CPU_HEAD_DIM_MAX = 512 };

struct weight {
    enum weight_use use;
    struct cpu_table table; /* WEIGHT_TABLE */
    struct panels panels;   /* WEIGHT_LINEAR */
};

/* A page of one layer is, for each KV head, its keys and then its values, both as blocks of 32
 * elements: two vectors a and b of 16. As float they follow each other; as bf16 lane i is the 32
 * bit word a[i] | b[i] << 16, so that one load and a shift or mask give a vector of floats. keys:
 * block i holds dimensions 2i (a) and 2i + 1 (b) of the page's 16 tokens values: token t has
 * value_blocks blocks; block j holds dimensions 32j + [0, 16) (a) and 32j + [16, 32) (b) Padding
 * (odd head_dim for keys, not a multiple of 32 for values) is zero. */
struct kv_store {
    unsigned char *data;
    size_t bytes;       /* of data */
    size_t layer_bytes; /* n_pages * page_bytes */
    size_t page_bytes;  /* kv_heads * head_bytes */
    size_t head_bytes;  /* (key_blocks + KV_PAGE * value_blocks) blocks */
    size_t block_bytes; /* 32 elements */
    int n_layers, kv_heads, head_dim;
    int key_blocks;   /* ceil(head_dim / 2) */
    int value_blocks; /* ceil(head_dim / 32) */
};

/* Contracts: backend.h. act says the type of `y` or `out`. */
struct cpu_level {
    const char *name; /* "AVX-512" */
    void (*embed)(float *x, const struct cpu_table *, const int32_t *ids, int n);
    void (*rmsnorm)(enum act_type act, void *y, const float *x, const float *w, int n, int dim,
                    float eps);
    void (*rope_store)(enum act_type act, struct kv_store *, int layer, const struct rope_args *,
                       int n);
    void (*attend)(enum act_type act, const struct kv_store *, int layer,
                   const struct attend_args *, int n);
    void (*swiglu)(enum act_type act, void *y, const float *gu, int n, int ffn);
    void (*propose)(const struct propose_args *, int n);
    void (*top)(const struct top_args *, int n);
    void (*propose_grad)(const struct propose_args *, const float *coef, float *dy, int n);
    void (*activate)(enum act_type act, void *y, enum activation, const float *x, int n, int dim);
    void (*relu_grad)(enum act_type act, float *dx, const float *dy, const void *y, int n, int dim);
    /* act says the type of x. scratch: GRAD_DEPTH rows of `in`, filled up to a multiple of
     * GRAD_PAD, floats; unused with col. */
    void (*linear_grad)(enum act_type act, const struct linear_grad_args *, int n, float *scratch);
    void (*adam)(const struct adam_args *, size_t n);
    /* y (n, out) = or += x Wᵀ. scratch: GEMM_ROWS rows of steps * DEPTH floats, aligned to 64. */
    void (*multiply)(float *y, bool add, enum act_type act, const void *x, const struct panels *,
                     int n, float *scratch);
};
extern const struct cpu_level cpu_level_v4, cpu_level_v3, cpu_level_base;

enum { GEMM_ROWS = 256 }; /* rows that share one pass over the weights */
enum { GRAD_DEPTH = 256, GRAD_PAD = 32 };

#ifdef CPU_LEVEL
void CPU_FN(embed)(float *x, const struct cpu_table *, const int32_t *ids, int n);
void CPU_FN(rmsnorm)(enum act_type act, void *y, const float *x, const float *w, int n, int dim,
                     float eps);
void CPU_FN(rope_store)(enum act_type act, struct kv_store *, int layer, const struct rope_args *,
                        int n);
void CPU_FN(attend)(enum act_type act, const struct kv_store *, int layer,
                    const struct attend_args *, int n);
void CPU_FN(swiglu)(enum act_type act, void *y, const float *gu, int n, int ffn);
void CPU_FN(propose)(const struct propose_args *, int n);
void CPU_FN(top)(const struct top_args *, int n);
void CPU_FN(propose_grad)(const struct propose_args *, const float *coef, float *dy, int n);
void CPU_FN(activate)(enum act_type act, void *y, enum activation, const float *x, int n, int dim);
void CPU_FN(relu_grad)(enum act_type act, float *dx, const float *dy, const void *y, int n,
                       int dim);
void CPU_FN(linear_grad)(enum act_type act, const struct linear_grad_args *, int n, float *scratch);
void CPU_FN(adam)(const struct adam_args *, size_t n);
void CPU_FN(multiply)(float *y, bool add, enum act_type act, const void *x, const struct panels *,
                      int n, float *scratch);
#endif

void cpu_copy_rows(void *dst, const int32_t *dst_row, const void *src, const int32_t *src_row,
                   int n, size_t bytes);
void cpu_kv_copy(struct kv_store *, const int32_t *from, const int32_t *to, int n);
void cpu_resample(const struct resample_args *, struct resample_out *out, int n);

/* linear.c: weights of a file into panels, and the choice of the kernel. Functions that can fail
 * return 0, or -1 when out of memory. */
struct linear;
int linear_open(struct linear **out, enum act_type, const struct cpu_level *);
void linear_close(struct linear *);
const char *linear_kernel(const struct linear *); /* "AMX bf16": for people */
int linear_pack(const struct linear *, struct panels *out, const struct weight_part *, int n_parts,
                int in);
int linear_repack(struct panels *, const float *w); /* other numbers, same shape */
void linear_unpack(struct panels *);                /* frees them; an empty one is fine */
int linear_run(struct linear *, float *y, enum linear_out how, const void *x, const struct panels *,
               int n);
int linear_grad_run(struct linear *, const struct linear_grad_args *, int n);

/* backend.c opens it through this. */
int cpu_open(struct backend **out, const struct backend_opts *, char *why, size_t why_size);

/* Zeroed memory straight from the system, on huge pages where it has them; untouched pages cost
 * nothing. NULL when there is none. */
void *cpu_map(size_t bytes);
void cpu_unmap(void *, size_t bytes);
