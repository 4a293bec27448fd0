#include "utf8.h"

/* Bytes of the sequence that a lead byte begins; 0: not a lead byte (Unicode 15, table 3-7). */
static size_t sequence_length(unsigned char lead)
{
    if (lead < 0x80)
        return 1;
    if (lead < 0xc2 || lead > 0xf4)
        return 0;
    return lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
}

/* May `byte` be at position i >= 1 of a sequence with this lead? The second byte's range is what
 * keeps out overlong forms, surrogates and everything above U+10FFFF. */
static bool continues(unsigned char lead, size_t i, unsigned char byte)
{
    unsigned char low = 0x80, high = 0xbf;
    if (i == 1 && lead == 0xe0)
        low = 0xa0;
    if (i == 1 && lead == 0xf0)
        low = 0x90;
    if (i == 1 && lead == 0xed)
        high = 0x9f;
    if (i == 1 && lead == 0xf4)
        high = 0x8f;
    return byte >= low && byte <= high;
}

/* How many bytes of s (n >= 1) belong together: a whole character (*whole), or a maximal subpart of
 * one, or one stray byte. */
static size_t step(const char *s, size_t n, bool *whole)
{
    const unsigned char *p = (const unsigned char *)s;
    size_t want = sequence_length(p[0]), have = 1;
    while (have < want && have < n && continues(p[0], have, p[have]))
        have++;
    *whole = have == want;
    return have;
}

size_t utf8_complete(const char *s, size_t n)
{
    /* A lead byte always begins a new sequence, so the last one decides. */
    for (size_t back = 1; back <= 3 && back <= n; back++) {
        const char *p = s + n - back;
        size_t want = sequence_length((unsigned char)*p);
        if (want == 0)
            continue;
        bool whole;
        return want > back && step(p, back, &whole) == back ? n - back : n;
    }
    return n;
}

void utf8_sanitize(struct buf *out, const char *s, size_t n)
{
    size_t good = 0; /* length of the valid run that is still to be copied */
    for (size_t at = 0; at < n;) {
        bool whole;
        size_t k = step(s + at, n - at, &whole);
        at += k;
        if (whole) {
            good += k;
            continue;
        }
        buf_add(out, s + at - k - good, good);
        buf_puts(out, "\xef\xbf\xbd");
        good = 0;
    }
    buf_add(out, good ? s + n - good : "", good); /* s may be NULL when n is 0 */
}

size_t utf8_char(const char *s, size_t n)
{
    bool whole = false;
    size_t k = n ? step(s, n, &whole) : 0;
    return whole ? k : 0;
}

bool utf8_valid(const char *s, size_t n)
{
    for (size_t at = 0, k; at < n; at += k) {
        k = utf8_char(s + at, n - at);
        if (k == 0)
            return false;
    }
    return true;
}
