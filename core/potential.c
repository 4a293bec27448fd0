#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "potential.h"

#include <stdlib.h>
#include <string.h>

#include "err.h"
#include "utf8.h"

/* What one match may cost, so that a pattern like (a+)+b cannot hold up the engine: steps of
 * backtracking (about 3 ms), and KiB of memory for them. */
enum { MATCH_STEPS = 100000, MATCH_KIB = 16384 };

struct regex {
    pcre2_code *code;
    pcre2_match_context *limits;
};

int regex_open(struct regex **out, const char *pattern, size_t len, const char *param,
               struct err *err)
{
    int code;
    size_t at;
    uint32_t options = PCRE2_UTF | PCRE2_ANCHORED | PCRE2_ENDANCHORED | PCRE2_NEVER_BACKSLASH_C;
    pcre2_code *compiled = pcre2_compile((PCRE2_SPTR)pattern, len, options, &code, &at, NULL);
    CHECK((compiled || code != PCRE2_ERROR_HEAP_FAILED) && "out of memory");
    if (!compiled) {
        char why[160] = "";
        pcre2_get_error_message(code, (PCRE2_UCHAR *)why, sizeof why);
        return err_field(err, param, "%s (at byte %zu)", why, at);
    }
    struct regex *r = malloc(sizeof *r);
    CHECK(r && "out of memory");
    *r = (struct regex){compiled, pcre2_match_context_create(NULL)};
    CHECK(r->limits && "out of memory");
    pcre2_set_match_limit(r->limits, MATCH_STEPS);
    pcre2_set_depth_limit(r->limits, MATCH_STEPS);
    pcre2_set_heap_limit(r->limits, MATCH_KIB);
    *out = r;
    return 0;
}

void regex_close(struct regex *r)
{
    if (!r)
        return;
    pcre2_code_free(r->code);
    pcre2_match_context_free(r->limits);
    free(r);
}

/* The scratch memory of a match lives as long as the match: it may grow to MATCH_KIB, which must
 * not add up over the patterns of many requests. */
static bool match_valid(const struct regex *r, const char *text, size_t len)
{
    pcre2_match_data *match = pcre2_match_data_create(1, NULL);
    CHECK(match && "out of memory");
    int rc = pcre2_match(r->code, (PCRE2_SPTR)text, len, 0, PCRE2_NO_UTF_CHECK, match, r->limits);
    pcre2_match_data_free(match);
    CHECK(rc != PCRE2_ERROR_NOMEMORY && "out of memory");
    return rc >= 0;
}

bool regex_matches_all(const struct regex *r, const char *text, size_t len)
{
    if (utf8_valid(text, len))
        return match_valid(r, text, len);
    struct buf shown = {0}; /* as the client is going to see it */
    utf8_sanitize(&shown, text, len);
    bool matches = match_valid(r, shown.data, shown.len);
    buf_free(&shown);
    return matches;
}

bool potential_needs_model(const struct potential *p)
{
    return p->type == POTENTIAL_CONTINUATION || p->type == POTENTIAL_JUDGE;
}

static double lexicon_bias(const struct potential *p, int32_t token)
{
    int lo = 0, hi = p->lexicon.n;
    while (lo < hi) {
        int mid = lo + (hi - lo) / 2;
        if (p->lexicon.id[mid] < token)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < p->lexicon.n && p->lexicon.id[lo] == token ? (double)p->lexicon.bias[lo] : 0;
}

static double lexicon_sum(const struct potential *p, const int32_t *tokens, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += lexicon_bias(p, tokens[i]);
    return sum;
}

static bool starts_with(const int32_t *tokens, int n, const struct ids *list)
{
    for (int i = 0; i < list->n; i++)
        if (i == n || tokens[i] != list->id[i])
            return false;
    return true;
}

static bool starts_with_one(const struct potential *p, const int32_t *tokens, int n)
{
    for (int i = 0; i < p->tokens.n; i++)
        if (starts_with(tokens, n, &p->tokens.list[i]))
            return true;
    return false;
}

static bool contains(const struct potential *p, const char *text, size_t len)
{
    return p->contains.len == 0 || memmem(text, len, p->contains.text, p->contains.len);
}

double potential_log_phi(const struct potential *p, const char *text, size_t len,
                         const int32_t *tokens, int n_tokens)
{
    switch (p->type) {
    case POTENTIAL_LEXICON:
        return lexicon_sum(p, tokens, n_tokens);
    case POTENTIAL_CONTAINS:
        return contains(p, text, len) ? 0 : p->contains.miss;
    case POTENTIAL_REGEX:
        return regex_matches_all(p->regex.regex, text, len) ? 0 : p->regex.miss;
    case POTENTIAL_TOKENS:
        return starts_with_one(p, tokens, n_tokens) ? p->tokens.log_phi : 0;
    case POTENTIAL_CONTINUATION:
    case POTENTIAL_JUDGE:
        break;
    }
    CHECK(!potential_needs_model(p));
    return 0;
}

double potential_weigh(double weight, double x)
{
    return weight == 0 ? 0 : weight * x;
}

double potential_factor(const struct job *j, const int32_t *tokens, int n_tokens)
{
    double sum = 0;
    if (j->twist.type != TWIST_FACTOR)
        return 0;
    for (int i = 0; i < j->n_potentials; i++)
        if (j->potentials[i].type == POTENTIAL_LEXICON)
            sum += potential_weigh(j->potentials[i].weight,
                                   lexicon_sum(&j->potentials[i], tokens, n_tokens));
    return sum;
}

static bool at_word(const char *s, size_t len, const char *word)
{
    return len >= strlen(word) && memcmp(s, word, strlen(word)) == 0;
}

/* One pass: what is filled in is not searched again. */
void judge_fill(struct buf *out, const struct potential *p, const char *prompt, size_t prompt_len,
                const char *text, size_t text_len)
{
    const char *s = p->judge.template_text;
    size_t len = p->judge.template_len, from = 0;
    for (size_t at = 0; at < len;) {
        bool is_prompt = at_word(s + at, len - at, "{prompt}");
        bool is_text = at_word(s + at, len - at, "{text}");
        if (!is_prompt && !is_text) {
            at++;
            continue;
        }
        buf_add(out, s + from, at - from);
        buf_add(out, is_prompt ? prompt : text, is_prompt ? prompt_len : text_len);
        from = at += strlen(is_prompt ? "{prompt}" : "{text}");
    }
    buf_add(out, s + from, len - from);
}
