/* Potentials that need no model, the judge's template, and patterns that try to take forever. */
#include "../../core/potential.h"

#include <stdlib.h>
#include <time.h>

#include "../check.h"

static double log_phi(const struct potential *p, const char *text)
{
    return potential_log_phi(p, text, strlen(text), NULL, 0);
}

static double log_phi_ids(const struct potential *p, const int32_t *ids, int n)
{
    return potential_log_phi(p, "", 0, ids, n);
}

static void test_contains(void)
{
    struct potential p = {.type = POTENTIAL_CONTAINS};
    p.contains.text = "cat";
    p.contains.len = 3;
    p.contains.miss = -INFINITY;
    EXPECT_NEAR(log_phi(&p, "concatenate"), 0, 0);
    EXPECT_NEAR(log_phi(&p, "cat"), 0, 0);
    EXPECT_NEAR(log_phi(&p, "ca"), -INFINITY, 0);
    EXPECT_NEAR(log_phi(&p, ""), -INFINITY, 0);
    EXPECT_NEAR(potential_log_phi(&p, "a\0cat", 5, NULL, 0), 0, 0);
    p.contains.miss = -2.5;
    EXPECT_NEAR(log_phi(&p, "dog"), -2.5, 0);
    p.contains.len = 0;
    EXPECT_NEAR(log_phi(&p, ""), 0, 0);
    EXPECT_NEAR(potential_log_phi(&p, NULL, 0, NULL, 0), 0, 0);
}

static void test_lexicon(void)
{
    static const int32_t id[] = {3, 7, 900};
    static const float bias[] = {0.5f, -INFINITY, -1.25f};
    struct potential p = {.type = POTENTIAL_LEXICON};
    p.lexicon.id = id;
    p.lexicon.bias = bias;
    p.lexicon.n = 3;
    EXPECT_NEAR(log_phi_ids(&p, (int32_t[]){3, 900, 3, 8}, 4), -0.25, 0);
    EXPECT_NEAR(log_phi_ids(&p, (int32_t[]){3, 7}, 2), -INFINITY, 0);
    EXPECT_NEAR(log_phi_ids(&p, (int32_t[]){0, 4, 901}, 3), 0, 0);
    EXPECT_NEAR(log_phi_ids(&p, NULL, 0), 0, 0);
    p.lexicon.n = 0;
    EXPECT_NEAR(log_phi_ids(&p, (int32_t[]){3}, 1), 0, 0);
}

static void test_tokens(void)
{
    const struct ids lists[] = {{(int32_t[]){1, 2, 3}, 3}, {(int32_t[]){9}, 1}};
    struct potential p = {.type = POTENTIAL_TOKENS};
    p.tokens.list = lists;
    p.tokens.n = 2;
    p.tokens.log_phi = -4;
    EXPECT_NEAR(log_phi_ids(&p, (int32_t[]){1, 2, 3, 4}, 4), -4, 0);
    EXPECT_NEAR(log_phi_ids(&p, (int32_t[]){1, 2}, 2), 0, 0);
    EXPECT_NEAR(log_phi_ids(&p, (int32_t[]){9, 9}, 2), -4, 0);
    EXPECT_NEAR(log_phi_ids(&p, (int32_t[]){2, 9}, 2), 0, 0);
    EXPECT_NEAR(log_phi_ids(&p, NULL, 0), 0, 0);
    const struct ids empty = {NULL, 0}; /* every text starts with nothing */
    p.tokens.list = &empty;
    p.tokens.n = 1;
    EXPECT_NEAR(log_phi_ids(&p, NULL, 0), -4, 0);
}

static bool matches(const char *pattern, const char *text)
{
    struct regex *r = NULL;
    struct err err = {.msg = ""};
    EXPECT_INT(regex_open(&r, pattern, strlen(pattern), "p", &err), 0);
    EXPECT_STR(err.msg, "");
    bool yes = r && regex_matches_all(r, text, strlen(text));
    regex_close(r);
    return yes;
}

static void test_regex(void)
{
    EXPECT(matches("a|ab", "ab")); /* all of the text: the shorter alternative is not enough */
    EXPECT(!matches("a", "ab") && !matches("b", "ab") && matches("a", "a"));
    EXPECT(matches("", "") && !matches("", "a"));
    EXPECT(matches("\\d{3}-\\d{4}", "555-1234") && !matches("\\d{3}-\\d{4}", "555-1234\n"));
    EXPECT(matches("..", "é🦙") && !matches("..", "é")); /* characters, not bytes */
    EXPECT(!matches("a.b", "a\nb") && matches("(?s)a.b", "a\nb"));
    EXPECT(matches("(?i)straße", "STRAßE") && matches("[^x]*", "abc\n"));
    EXPECT(matches("a.b", "a\xff"
                          "b")); /* a broken byte is U+FFFD, as the client sees it */
    EXPECT(matches("a\ufffd", "a\xf0\x9f"));

    struct regex *r = NULL;
    struct err err;
    EXPECT_INT(regex_open(&r, "x\0y", 3, "p", &err), 0);
    EXPECT(regex_matches_all(r, "x\0y", 3) && !regex_matches_all(r, "x", 1));
    struct potential p = {.type = POTENTIAL_REGEX};
    p.regex.regex = r;
    p.regex.miss = -INFINITY;
    EXPECT_NEAR(log_phi(&p, "x"), -INFINITY, 0);
    EXPECT_NEAR(potential_log_phi(&p, "x\0y", 3, NULL, 0), 0, 0);
    regex_close(r);
    regex_close(NULL);
}

static void test_bad_patterns(void)
{
    static const struct {
        const char *pattern, *why;
    } bad[] = {
        {"a(b", "potential.pattern: missing closing parenthesis (at byte 3)"},
        {"*a", "potential.pattern: quantifier does not follow a repeatable item (at byte 0)"},
        {"\\C", "potential.pattern: using \\C is disabled by the application (at byte 2)"},
        {"\xff", "potential.pattern: UTF-8 error: illegal byte (0xfe or 0xff) (at byte 0)"},
        {"(?:(?:(?:a{900}){900}){900}){900}",
         "potential.pattern: regular expression is too large (at byte 33)"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct regex *r = NULL;
        struct err err = {.msg = ""};
        EXPECT_INT(
            regex_open(&r, bad[i].pattern, strlen(bad[i].pattern), "potential.pattern", &err), -1);
        EXPECT(err.code == ERR_INVALID && !r);
        EXPECT_STR(err.param, "potential.pattern");
        EXPECT_STR(err.msg, bad[i].why);
    }
}

/* Exponential, polynomial and deeply recursive patterns end soon, as no match; a long text with a
 * harmless pattern is matched. */
static void test_limits(void)
{
    static const char *const slow[] = {"(a+)+b",         "(a|a)*b",    "(.*)*(.*)*(.*)*c",
                                       "(a?){60}a{60}b", "((?1)?a)+b", "(?:a|(?R))*b",
                                       "(?=(a+))*\\1+b"};
    char text[20001];
    struct timespec from, to;
    memset(text, 'a', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    for (size_t i = 0; i < sizeof slow / sizeof *slow; i++) {
        clock_gettime(CLOCK_MONOTONIC, &from);
        EXPECT(!matches(slow[i], text));
        clock_gettime(CLOCK_MONOTONIC, &to);
        double seconds =
            (double)(to.tv_sec - from.tv_sec) + 1e-9 * (double)(to.tv_nsec - from.tv_nsec);
        EXPECT(seconds < 1); /* without limits: longer than the universe */
    }
    EXPECT(matches("(?:a|b)*", text) && matches(".*a.*", text) && matches("(?:\\w+ ?)*", text));
}

static void expect_filled(const char *template, const char *want)
{
    struct potential p = {.type = POTENTIAL_JUDGE};
    struct buf out = {0};
    p.judge.template_text = template;
    p.judge.template_len = strlen(template);
    judge_fill(&out, &p, "P{text}", 7, "T", 1);
    EXPECT_STR(out.data, want);
    buf_free(&out);
}

static void test_judge(void)
{
    expect_filled("Q: {prompt}{text}? {prompt}", "Q: P{text}T? P{text}");
    expect_filled("", "");
    expect_filled("{text}", "T");
    expect_filled("{{text}} {prompt", "{T} {prompt");
    expect_filled("{Text}{}{", "{Text}{}{");
}

static void test_weigh(void)
{
    EXPECT_NEAR(potential_weigh(0, -INFINITY), 0, 0);
    EXPECT_NEAR(potential_weigh(2, -INFINITY), -INFINITY, 0);
    EXPECT_NEAR(potential_weigh(-0.5, 3), -1.5, 0);
    struct potential p = {.type = POTENTIAL_JUDGE};
    EXPECT(potential_needs_model(&p));
    p.type = POTENTIAL_CONTINUATION;
    EXPECT(potential_needs_model(&p));
    p.type = POTENTIAL_TOKENS;
    EXPECT(!potential_needs_model(&p));
}

int main(void)
{
    test_contains();
    test_lexicon();
    test_tokens();
    test_regex();
    test_bad_patterns();
    test_limits();
    test_judge();
    test_weigh();
    return test_failures();
}
