/* Philox4x32-10 against the known answers of Random123's kat_vectors, and the uniforms made of it.
 */
#include "../../kernels/philox.h"
#include "../check.h"

static void known_answer(const uint32_t counter[4], uint64_t seed, const uint32_t want[4])
{
    struct philox got = philox4x32(seed, counter[0], counter[1], counter[2], counter[3]);
    for (int i = 0; i < 4; i++)
        EXPECT_INT(got.v[i], want[i]);
}

int main(void)
{
    known_answer((uint32_t[]){0, 0, 0, 0}, 0,
                 (uint32_t[]){0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
    known_answer((uint32_t[]){0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, UINT64_MAX,
                 (uint32_t[]){0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
    known_answer((uint32_t[]){0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, 0x299f31d0a4093822,
                 (uint32_t[]){0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});

    EXPECT_NEAR(philox_u01(0, 0), 0, 0);
    EXPECT_NEAR(philox_u01(0x80000000, 0), 0.5, 0);
    EXPECT_NEAR(philox_u01(UINT32_MAX, UINT32_MAX), 1 - 0x1p-53, 0);
    EXPECT(philox_u01(0, 2048) == 0x1p-53 && philox_u01(0, 2047) == 0);

    double sum = 0, sum2 = 0;
    enum { N = 100000 };
    for (uint32_t i = 0; i < N; i++) {
        struct philox p = philox4x32(7, i, 3, PHILOX_DRAW, 0);
        double u = philox_u01(p.v[0], p.v[1]);
        sum += u;
        sum2 += u * u;
    }
    EXPECT_NEAR(sum / N, 0.5, 5 * sqrt(1.0 / 12 / N));
    EXPECT_NEAR(sum2 / N, 1.0 / 3, 5 * sqrt(4.0 / 45 / N));
    return test_failures();
}
