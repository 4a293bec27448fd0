/* Every tensor format against values from an independent reader (tests/golden/make_dequant.py). */
#include "../../kernels/dequant.h"

#include <stdint.h>
#include <stdlib.h>

#include "../check.h"

static int type_by_name(const char *name)
{
    for (int t = 0; t < 64; t++)
        if (strcmp(tensor_type_name(t), name) == 0)
            return t;
    return -1;
}

static int hex_digit(int c)
{
    return c <= '9' ? c - '0' : c - 'a' + 10;
}

/* Bytes in hex up to a space or the line's end. */
static size_t read_hex(FILE *f, uint8_t *out, size_t cap)
{
    size_t n = 0;
    for (int c = fgetc(f); c > ' '; c = fgetc(f)) {
        int low = fgetc(f);
        if (n < cap)
            out[n] = (uint8_t)(hex_digit(c) << 4 | hex_digit(low));
        n++;
    }
    return n;
}

static void test_goldens(void)
{
    FILE *f = fopen(TEST_DATA "/golden/dequant.txt", "r");
    EXPECT(f != NULL);
    if (!f)
        return;
    char name[16];
    int n, formats = 0;
    while (fscanf(f, "%15s %d ", name, &n) == 2) {
        int type = type_by_name(name);
        enum { MAX = 1024 };
        static uint8_t raw[4 * MAX + 1];
        static float want[MAX], got[MAX + 1];
        size_t bytes = read_hex(f, raw + 1, 4 * MAX); /* misaligned on purpose */
        EXPECT(type >= 0 && n <= MAX);
        EXPECT_INT(read_hex(f, (uint8_t *)want, sizeof want), n * sizeof(float));
        EXPECT_INT(bytes, tensor_row_bytes(type, (size_t)n));
        got[n] = 12345;
        dequant(type, raw + 1, got, (size_t)n);
        EXPECT(got[n] == 12345);
        for (int i = 0; i < n; i++)
            if (got[i] != want[i]) {
                fprintf(stderr, "%s, element %d\n", name, i);
                EXPECT_NEAR(got[i], want[i], 0);
            }
        formats++;
    }
    fclose(f);
    EXPECT_INT(formats, 11);
}

/* All 65536 halves against their definition. */
static void test_half(void)
{
    for (uint32_t h = 0; h < 0x10000; h++) {
        uint16_t half = (uint16_t)h;
        int exponent = h >> 10 & 31, mantissa = h & 1023;
        float got;
        dequant(TENSOR_F16, &half, &got, 1);
        EXPECT_INT(signbit(got) != 0, h >> 15);
        if (exponent == 31) {
            EXPECT(mantissa ? isnan(got) : isinf(got));
            continue;
        }
        double want = exponent ? ldexp(1024 + mantissa, exponent - 25) : ldexp(mantissa, -24);
        EXPECT_NEAR(fabs(got), want, 0);
    }
}

static void test_types(void)
{
    EXPECT(tensor_type_known(TENSOR_Q4_1));
    EXPECT(!tensor_type_known(4) && !tensor_type_known(-1) && !tensor_type_known(1 << 20));
    EXPECT_STR(tensor_type_name(TENSOR_Q6_K), "Q6_K");
    EXPECT_STR(tensor_type_name(99), "?");
    EXPECT_INT(tensor_type_block(TENSOR_BF16), 1);
    EXPECT_INT(tensor_type_block(TENSOR_Q5_1), 32);
    EXPECT_INT(tensor_row_bytes(TENSOR_Q5_K, 512), 352);
}

int main(void)
{
    test_goldens();
    test_half();
    test_types();
    return test_failures();
}
