/* UTF-8 against a reference made by encoding: the valid characters are what encoding every code
 * point gives, and everything else follows from "is this the start of one". */
#include "../../core/utf8.h"

#include <stdint.h>
#include <stdlib.h>

#include "../check.h"

static size_t encode(uint32_t c, unsigned char *out)
{
    if (c < 0x80) {
        out[0] = (unsigned char)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (unsigned char)(0xc0 | c >> 6);
        out[1] = (unsigned char)(0x80 | (c & 63));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (unsigned char)(0xe0 | c >> 12);
        out[1] = (unsigned char)(0x80 | (c >> 6 & 63));
        out[2] = (unsigned char)(0x80 | (c & 63));
        return 3;
    }
    out[0] = (unsigned char)(0xf0 | c >> 18);
    out[1] = (unsigned char)(0x80 | (c >> 12 & 63));
    out[2] = (unsigned char)(0x80 | (c >> 6 & 63));
    out[3] = (unsigned char)(0x80 | (c & 63));
    return 4;
}

/* Every prefix of every character, as big-endian numbers of 1 to 3 bytes, and every 4-byte one. */
static uint8_t
    is_prefix[1 << 24]; /* bit k - 1: these k bytes begin a character of more than k bytes */
static uint8_t is_whole[1 << 24];

static uint32_t number(const unsigned char *p, size_t k)
{
    uint32_t v = 0;
    for (size_t i = 0; i < k; i++)
        v = v << 8 | p[i];
    return v;
}

static void build_reference(void)
{
    for (uint32_t c = 0; c <= 0x10ffff; c++) {
        if (c >= 0xd800 && c <= 0xdfff)
            continue;
        unsigned char b[4];
        size_t n = encode(c, b);
        for (size_t k = 1; k < n; k++)
            is_prefix[number(b, k)] |= (uint8_t)(1 << (k - 1));
        if (n < 4)
            is_whole[number(b, n)] |= (uint8_t)(1 << (n - 1));
    }
}

/* Bytes of the whole character at p, or 0. The fourth byte of a character is any of 0x80..0xbf. */
static size_t ref_char(const unsigned char *p, size_t n)
{
    for (size_t k = 1; k <= 3 && k <= n; k++)
        if (is_whole[number(p, k)] >> (k - 1) & 1)
            return k;
    bool four = n >= 4 && is_prefix[number(p, 3)] >> 2 & 1 && p[3] >> 6 == 2;
    return four ? 4 : 0;
}

/* Longest beginning of a character at p, less than a whole one. */
static size_t ref_prefix(const unsigned char *p, size_t n)
{
    size_t best = 0;
    for (size_t k = 1; k <= 3 && k <= n; k++)
        if (is_prefix[number(p, k)] >> (k - 1) & 1)
            best = k;
    return best;
}

static void check(const char *s, size_t n)
{
    const unsigned char *p = (const unsigned char *)s;
    struct buf want = {0}, got = {0};
    size_t complete = 0;
    bool valid = true;
    buf_puts(&want, "");
    for (size_t at = 0, k; at < n; at += k) {
        k = ref_char(p + at, n - at);
        EXPECT_INT(utf8_char(s + at, n - at), k);
        if (k) {
            buf_add(&want, s + at, k);
            complete = at + k;
            continue;
        }
        valid = false;
        k = ref_prefix(p + at, n - at);
        bool to_come = k > 0 && at + k == n;
        k = k ? k : 1;
        if (!to_come)
            complete = at + k;
        buf_puts(&want, "\xef\xbf\xbd");
    }
    utf8_sanitize(&got, s, n);
    EXPECT_STR(got.data, want.data);
    EXPECT_INT(got.len, want.len);
    EXPECT_INT(utf8_complete(s, n), complete);
    EXPECT(utf8_valid(s, n) == valid);
    EXPECT(utf8_valid(got.data, got.len));
    buf_free(&want);
    buf_free(&got);
}

static void test_random(void)
{
    static const unsigned char edges[] = {0x00, 0x41, 0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf,
                                          0xc0, 0xc1, 0xc2, 0xdf, 0xe0, 0xe1, 0xec, 0xed, 0xee,
                                          0xef, 0xf0, 0xf1, 0xf3, 0xf4, 0xf5, 0xff};
    srand(1);
    for (int i = 0; i < 300000; i++) {
        char s[12];
        size_t n = (size_t)(rand() % (int)sizeof s) + 1;
        for (size_t j = 0; j < n; j++)
            s[j] = (char)edges[rand() % (int)sizeof edges];
        for (size_t j = 0; j < n; j++) /* NUL would end EXPECT_STR's view */
            s[j] = s[j] ? s[j] : 'x';
        check(s, n);
    }
}

static void test_known(void)
{
    /* The example of Unicode 15, table 3-11. */
    static const char s[] = "\xe1\x80\xe2\xf0\x91\x92\xf1\xbf\x41";
    struct buf out = {0};
    utf8_sanitize(&out, s, sizeof s - 1);
    EXPECT_STR(out.data, "\ufffd\ufffd\ufffd\ufffd\x41");
    buf_free(&out);
    utf8_sanitize(&out, NULL, 0);
    EXPECT_STR(out.data, "");
    buf_free(&out);
    EXPECT_INT(utf8_complete(NULL, 0), 0);
    EXPECT_INT(utf8_complete("a\xf0\x9f\xa6", 4), 1);
    EXPECT_INT(utf8_complete("a\xf0\x9f\xa6\x99", 5), 5);
    EXPECT(utf8_valid("", 0) && utf8_valid("a\0b", 3) && !utf8_valid("\xed\xa0\x80", 3));
    EXPECT_INT(utf8_char("", 0), 0);
}

int main(void)
{
    build_reference();
    test_known();
    test_random();
    return test_failures();
}
