/* Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC
 * 2011): a stateless counter-based generator. Key = the request's seed; counter = (step, particle,
 * purpose, lane), never a batch slot, so a number depends on nothing but what it is for. Compiled
 * by both gcc and nvcc. */
#pragma once
#include <stdint.h>

#ifdef __CUDACC__
#define PHILOX_FN static __host__ __device__ inline
#else
#define PHILOX_FN static inline
#endif

enum philox_purpose {
    PHILOX_DRAW = 0,     /* a particle's next token */
    PHILOX_RESAMPLE = 1, /* ancestors */
    PHILOX_CHOICE = 2,   /* choosing returned samples from a weighted population */
    PHILOX_INIT = 3,     /* the first numbers of a twist */
    PHILOX_REJECT = 4,   /* accepting exact draws */
    PHILOX_SEED = 5,     /* seeds of the runs that a study is made of */
};

struct philox {
    uint32_t v[4];
};

PHILOX_FN struct philox philox4x32(uint64_t seed, uint32_t step, uint32_t particle,
                                   uint32_t purpose, uint32_t lane)
{
    uint32_t c0 = step, c1 = particle, c2 = purpose, c3 = lane;
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int i = 0; i < 10; i++) {
        uint64_t a = (uint64_t)0xD2511F53u * c0, b = (uint64_t)0xCD9E8D57u * c2;
        uint32_t n0 = (uint32_t)(b >> 32) ^ c1 ^ k0, n2 = (uint32_t)(a >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)b;
        c3 = (uint32_t)a;
        c0 = n0;
        c2 = n2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    struct philox r = {{c0, c1, c2, c3}};
    return r;
}

/* A uniform in [0, 1) with 53 bits, from two words. */
PHILOX_FN double philox_u01(uint32_t hi, uint32_t lo)
{
    uint64_t x = ((uint64_t)hi << 32 | lo) >> 11;
    return (double)x * 0x1p-53;
}
