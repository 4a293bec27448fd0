#include "chat.h"

#include <stdlib.h>
#include <string.h>

/* ---- recognising a template ---- */

static bool contains(struct gguf_str s, const char *marker)
{
    return memmem(s.s, s.len, marker, strlen(marker)) != NULL;
}

/* The literal text behind `marker` and a newline, written as one or as \n, up to `end`. Nothing
 * where the template computes it. */
static void find_system(struct gguf_str s, const char *marker, const char *end, char *out,
                        size_t size)
{
    for (const char *at = s.s, *last = s.s + s.len; at < last; at++) {
        at = memmem(at, (size_t)(last - at), marker, strlen(marker));
        if (!at)
            return;
        const char *from = at + strlen(marker);
        size_t left = (size_t)(last - from);
        size_t newline = left > 0 && *from == '\n'             ? 1
                         : left > 1 && !memcmp(from, "\\n", 2) ? 2
                                                               : 0;
        const char *to = memmem(from, left, end, strlen(end));
        from += newline;
        if (!newline || !to || to <= from || (size_t)(to - from) >= size)
            continue;
        size_t len = (size_t)(to - from);
        memcpy(out, from, len);
        out[len] = '\0';
        if (strlen(out) == len && !strpbrk(out, "'\"{}\\"))
            return;
        out[0] = '\0';
    }
}

void chat_template_read(struct chat_template *out, const struct gguf *g)
{
    struct gguf_str s;
    *out = (struct chat_template){0};
    if (!gguf_string(g, "tokenizer.chat_template", &s))
        return;
    out->format = CHAT_UNKNOWN;
    bool separated = contains(s, "<|im_sep|>"); /* a dialect with that instead of the newline */
    if (contains(s, "<|im_start|>") && contains(s, "<|im_end|>") && !separated) {
        out->format = CHAT_CHATML;
        find_system(s, "<|im_start|>system", "<|im_end|>", out->system, sizeof out->system);
    } else if (contains(s, "<|start_header_id|>") && contains(s, "<|eot_id|>")) {
        out->format = CHAT_LLAMA3;
    }
}

/* ---- writing a conversation ---- */

/* Text between special tokens is encoded as one piece, as if the whole had been written out. */
struct writer {
    const struct tokenizer *t;
    struct tokens *out;
    struct buf text;
    int flags;
    struct err *err;
    bool failed;
};

static void flush(struct writer *w)
{
    const struct buf *text = &w->text;
    if (text->len && tokenizer_encode(w->t, text->data, text->len, w->flags, w->out, w->err))
        w->failed = true;
    buf_reset(&w->text);
}

static void add_special(struct writer *w, const char *name)
{
    flush(w);
    int before = w->out->n;
    if (w->failed)
        return;
    if (tokenizer_encode(w->t, name, strlen(name), TOKENIZE_SPECIAL, w->out, w->err))
        w->failed = true;
    else if (w->out->n != before + 1)
        w->failed = err_set(w->err, ERR_INVALID,
                            "the model's chat template has %s, its vocabulary does not", name);
}

static void write_chatml(struct writer *w, const struct chat_message *m)
{
    add_special(w, "<|im_start|>");
    buf_puts(&w->text, m->role);
    buf_puts(&w->text, "\n");
    if (!m->text)
        return;
    buf_add(&w->text, m->text, m->len);
    add_special(w, "<|im_end|>");
    buf_puts(&w->text, "\n");
}

/* Its template takes white space off both ends. */
static void write_llama3(struct writer *w, const struct chat_message *m)
{
    static const char space[] = " \t\n\r\v\f";
    const char *s = m->text;
    size_t len = m->len;
    add_special(w, "<|start_header_id|>");
    buf_puts(&w->text, m->role);
    add_special(w, "<|end_header_id|>");
    buf_puts(&w->text, "\n\n");
    if (!s)
        return;
    for (; len && strchr(space, *s) && *s; s++)
        len--;
    while (len && s[len - 1] && strchr(space, s[len - 1]))
        len--;
    buf_add(&w->text, s, len);
    add_special(w, "<|eot_id|>");
}

static void write_all(struct writer *w, const struct chat_template *t,
                      void (*write)(struct writer *, const struct chat_message *),
                      const struct chat_message *m, int n)
{
    if (*t->system && strcmp(m[0].role, "system") != 0)
        write(w, &(struct chat_message){"system", t->system, strlen(t->system)});
    for (int i = 0; i < n && !w->failed; i++)
        write(w, &m[i]);
    write(w, &(struct chat_message){.role = "assistant"});
    flush(w);
}

int chat_encode(const struct chat_template *t, const struct tokenizer *tokenizer,
                const struct chat_message *m, int n, bool special, struct tokens *out,
                struct err *err)
{
    struct writer w = {.t = tokenizer, .out = out, .err = err};
    if (t->format == CHAT_NONE)
        return err_set(err, ERR_INVALID, "the model has no chat template; use /v1/completions");
    if (t->format == CHAT_UNKNOWN)
        return err_set(err, ERR_INVALID,
                       "the model's chat template is not one that is known here (ChatML, Llama 3); "
                       "use /v1/completions");
    w.flags = special ? TOKENIZE_SPECIAL : 0;
    if (tokenizer_adds_bos(tokenizer))
        tokens_add(out, tokenizer_bos(tokenizer));
    else if (t->format == CHAT_LLAMA3)
        add_special(&w, "<|begin_of_text|>");
    write_all(&w, t, t->format == CHAT_CHATML ? write_chatml : write_llama3, m, n);
    buf_free(&w.text);
    return w.failed ? -1 : 0;
}
