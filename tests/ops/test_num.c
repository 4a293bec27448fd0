/* The number helpers of the CPU kernels: exp over its whole range, sums, bfloat16. */
#include "../../kernels/num.h"

#include "../check.h"

static float exp_at(float x)
{
    float y[VF];
    vf_store(y, vf_exp(vf_set(x)));
    for (int i = 1; i < VF; i++)
        EXPECT(memcmp(&y[i], &y[0], sizeof y[0]) == 0);
    return y[0];
}

static float float_of(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

/* The bound that num.h states. The stride meets every exponent and many mantissas. */
static void test_exp_error(void)
{
    for (uint32_t bits = 0; bits < 0x7f800000; bits += 4099)
        for (int negative = 0; negative < 2; negative++) {
            float x = float_of(bits | (uint32_t)negative << 31);
            if (x >= -87.33f && x <= 88.37f)
                EXPECT_NEAR((double)exp_at(x), exp((double)x), 1.2e-7 * exp((double)x));
        }
}

static void test_exp_edges(void)
{
    EXPECT(exp_at(0.0f) == 1.0f && exp_at(-0.0f) == 1.0f);
    EXPECT(exp_at(-INFINITY) == 0.0f && exp_at(-1e30f) == 0.0f && exp_at(-87.34f) == 0.0f);
    EXPECT(exp_at(INFINITY) == INFINITY && exp_at(88.4f) == INFINITY);
    EXPECT(isnan(exp_at(NAN)));
    EXPECT(exp_at(1e-40f) == 1.0f); /* subnormal */
}

static void test_exp_neg(void)
{
    for (uint32_t bits = 0; bits < 0x42ae0000; bits += 4099) { /* down to -87 */
        double x = (double)-float_of(bits), y = (double)vf_exp_neg(vf_set((float)x))[VF - 1];
        EXPECT_NEAR(y, exp(x), (2.5e-7 - 7e-8 * x) * exp(x));
    }
    EXPECT(vf_exp_neg(vf_set(-0.0f))[0] == 1.0f);
    EXPECT(vf_exp_neg(vf_set(-87.7f))[0] == 0.0f);
    EXPECT(vf_exp_neg(vf_set(-INFINITY))[0] == 0.0f);
}

static void test_store_within(void)
{
    float x[VF], to[VF];
    for (int i = 0; i < VF; i++)
        x[i] = (float)(i % 5);
    EXPECT_INT(vf_store_within(to, vf_load(x), 3, 4), 6);
    EXPECT(to[0] == 3 && to[1] == 4 && to[4] == 3 && to[5] == 4);
    EXPECT_INT(vf_store_within(x, vf_load(x), -INFINITY, 1), 7); /* onto itself */
    EXPECT(x[0] == 0 && x[1] == 1 && x[6] == 0);
    EXPECT_INT(vf_store_within(to, vf_load(x), 7, INFINITY), 0);
}

static void test_folds(void)
{
    float x[VF];
    for (int i = 0; i < VF; i++)
        x[i] = (float)((i * 5) % VF); /* 0..15 in another order */
    EXPECT(vf_sum(vf_load(x)) == 120.0f);
    EXPECT(vf_hmax(vf_load(x)) == 15.0f);
    EXPECT(vf_hmax(vf_set(-INFINITY)) == -INFINITY);
    EXPECT(vf_sum(vf_load_part(x, 3, 1.0f)) == x[0] + x[1] + x[2] + 13.0f);
}

/* Every bf16 survives; halfway cases go to the even one; the vector rounds like the scalar. */
static void test_bf16(void)
{
    for (uint32_t h = 0; h < 0x10000; h++) {
        float f = bf16_to_float((bf16)h);
        EXPECT(isnan(f) ? isnan(bf16_to_float(bf16_from_float(f))) : bf16_from_float(f) == h);
    }
    for (uint32_t bits = 0; bits < 0xffffff00; bits += 65521 / 16) {
        float x = float_of(bits), in[VF];
        bf16 out[VF];
        for (int i = 0; i < VF; i++)
            in[i] = x;
        vf_store_bf16(out, vf_load(in));
        EXPECT(out[VF - 1] == bf16_from_float(x));
        if (isfinite(x) && fabsf(x) < 3e38f && fabsf(x) > 1.2e-38f)
            EXPECT_NEAR((double)bf16_to_float(out[0]), (double)x, fabs((double)x) * 0x1p-8);
    }
    EXPECT(bf16_from_float(float_of(0x3f808000)) == 0x3f80); /* tie, even below */
    EXPECT(bf16_from_float(float_of(0x3f818000)) == 0x3f82); /* tie, even above */
    EXPECT(bf16_from_float(INFINITY) == 0x7f80);
    EXPECT(isnan(bf16_to_float(bf16_from_float(float_of(0x7f800001)))));
}

int main(void)
{
    test_exp_error();
    test_exp_edges();
    test_exp_neg();
    test_store_within();
    test_folds();
    test_bf16();
    return test_failures();
}
