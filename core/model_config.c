/* What a GGUF file says about its model, and whether that is a model this program can run. */
#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "model.h"
#include "utf8.h"

/* The sides a tensor may have, as functions of the metadata. */
enum side { ONE, DIM, HEADS, KV_HEADS, FFN, VOCAB, ROPE_PAIRS };

struct tensor_rule {
    const char *name;
    enum side in, out;
    bool optional;
};

static const struct tensor_rule file_rules[] = {
    {"token_embd.weight", DIM, VOCAB, false},
    {"output_norm.weight", DIM, ONE, false},
    {"output.weight", DIM, VOCAB, true},          /* absent: tied to token_embd */
    {"rope_freqs.weight", ROPE_PAIRS, ONE, true}, /* Llama 3's scaling */
};

static const struct tensor_rule layer_rules[] = {
    {"attn_norm.weight", DIM, ONE, false},     {"attn_q.weight", DIM, HEADS, false},
    {"attn_k.weight", DIM, KV_HEADS, false},   {"attn_v.weight", DIM, KV_HEADS, false},
    {"attn_output.weight", HEADS, DIM, false}, {"ffn_norm.weight", DIM, ONE, false},
    {"ffn_gate.weight", DIM, FFN, false},      {"ffn_up.weight", DIM, FFN, false},
    {"ffn_down.weight", FFN, DIM, false},
};

enum {
    FILE_RULES = sizeof file_rules / sizeof *file_rules,
    LAYER_RULES = sizeof layer_rules / sizeof *layer_rules,
};

static int64_t side_length(const struct model_config *c, enum side side)
{
    switch (side) {
    case ONE:
        return 1;
    case DIM:
        return c->dim;
    case HEADS:
        return (int64_t)c->n_heads * c->head_dim;
    case KV_HEADS:
        return (int64_t)c->n_kv_heads * c->head_dim;
    case FFN:
        return c->ffn;
    case VOCAB:
        return c->vocab;
    case ROPE_PAIRS:
        return c->rope_dim / 2;
    }
    return 0;
}

static bool is(struct gguf_str s, const char *text)
{
    return s.len == strlen(text) && memcmp(s.s, text, s.len) == 0;
}

/* The rule for a tensor of this name: "blk.<layer>.<rule>" or "<rule>"; NULL: there is none. */
static const struct tensor_rule *rule_of(struct gguf_str name, int n_layers)
{
    if (name.len < 4 || memcmp(name.s, "blk.", 4) != 0) {
        for (int i = 0; i < FILE_RULES; i++)
            if (is(name, file_rules[i].name))
                return &file_rules[i];
        return NULL;
    }
    int layer = 0;
    size_t i = 4;
    for (; i < name.len && i < 9 && isdigit((unsigned char)name.s[i]); i++)
        layer = layer * 10 + (name.s[i] - '0');
    if (i == 4 || i == name.len || name.s[i] != '.' || layer >= n_layers)
        return NULL;
    struct gguf_str rest = {name.s + i + 1, name.len - i - 1};
    for (int r = 0; r < LAYER_RULES; r++)
        if (is(rest, layer_rules[r].name))
            return &layer_rules[r];
    return NULL;
}

static int check_tensor(const struct model_config *c, const struct gguf_tensor *t, struct err *err)
{
    int len = t->name.len < 80 ? (int)t->name.len : 80;
    const struct tensor_rule *rule = rule_of(t->name, c->n_layers);
    if (!rule)
        return err_set(err, ERR_FILE, "tensor %.*s is not one of a llama model this program knows",
                       len, t->name.s);
    int64_t in = side_length(c, rule->in), out = side_length(c, rule->out);
    if (t->dim[0] != in || t->dim[1] != out || t->dim[2] != 1 || t->dim[3] != 1)
        return err_set(err, ERR_FILE,
                       "tensor %.*s is (%lld, %lld, %lld, %lld), not (%lld, %lld) as the metadata "
                       "says",
                       len, t->name.s, (long long)t->dim[0], (long long)t->dim[1],
                       (long long)t->dim[2], (long long)t->dim[3], (long long)in, (long long)out);
    return 0;
}

static int check_present(const struct gguf *g, const struct tensor_rule *rule, int layer,
                         struct err *err)
{
    char name[64];
    if (layer < 0)
        snprintf(name, sizeof name, "%s", rule->name);
    else
        snprintf(name, sizeof name, "blk.%d.%s", layer, rule->name);
    if (!rule->optional && !gguf_tensor(g, name))
        return err_set(err, ERR_FILE, "tensor %s is missing", name);
    return 0;
}

static int check_tensors(struct model_config *c, const struct gguf *g, struct err *err)
{
    for (int i = 0; i < gguf_n_tensors(g); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(g, i);
        if (check_tensor(c, t, err) != 0)
            return -1;
        c->parameters += t->dim[0] * t->dim[1];
    }
    for (int i = 0; i < FILE_RULES; i++)
        if (check_present(g, &file_rules[i], -1, err) != 0)
            return -1;
    for (int layer = 0; layer < c->n_layers; layer++)
        for (int i = 0; i < LAYER_RULES; i++)
            if (check_present(g, &layer_rules[i], layer, err) != 0)
                return -1;
    return 0;
}

/* A count from the metadata; fallback 0: the key must be there. */
static int read_count(const struct gguf *g, const char *key, int max, int fallback, int *out,
                      struct err *err)
{
    uint32_t value = (uint32_t)fallback;
    if (!gguf_u32(g, key, &value) && fallback == 0)
        return err_set(err, ERR_FILE, "%s is missing or not a number", key);
    if (value < 1 || value > (uint32_t)max)
        return err_set(err, ERR_FILE, "%s: %u is not in 1..%d", key, value, max);
    *out = (int)value;
    return 0;
}

static int read_positive(const struct gguf *g, const char *key, float fallback, float *out,
                         struct err *err)
{
    float value = fallback;
    gguf_f32(g, key, &value);
    if (!(value > 0) || !isfinite(value))
        return err_set(err, ERR_FILE, "%s: %g is not a positive number", key, (double)value);
    *out = value;
    return 0;
}

static int read_rope(struct model_config *c, const struct gguf *g, struct err *err)
{
    if (read_count(g, "llama.rope.dimension_count", c->head_dim, c->head_dim, &c->rope_dim, err) !=
            0 ||
        read_positive(g, "llama.rope.freq_base", 10000.0f, &c->rope_base, err) != 0)
        return -1;
    if (c->rope_dim % 2 != 0)
        return err_set(err, ERR_FILE, "llama.rope.dimension_count: %d is odd", c->rope_dim);
    struct gguf_str type = {"linear", 6};
    gguf_string(g, "llama.rope.scaling.type", &type);
    c->rope_scale = 1;
    if (is(type, "none"))
        return 0;
    if (!is(type, "linear"))
        return err_set(err, ERR_FILE, "llama.rope.scaling.type: \"%.*s\" is not supported",
                       (int)(type.len < 40 ? type.len : 40), type.s);
    return read_positive(g, "llama.rope.scaling.factor", 1.0f, &c->rope_scale, err);
}

static int read_heads(struct model_config *c, const struct gguf *g, struct err *err)
{
    if (read_count(g, "llama.attention.head_count", 1024, 0, &c->n_heads, err) != 0 ||
        read_count(g, "llama.attention.head_count_kv", c->n_heads, c->n_heads, &c->n_kv_heads,
                   err) != 0)
        return -1;
    if (c->n_heads % c->n_kv_heads != 0)
        return err_set(err, ERR_FILE, "%d attention heads do not share %d key heads evenly",
                       c->n_heads, c->n_kv_heads);
    int value_length = 0, even = c->dim / c->n_heads;
    if (read_count(g, "llama.attention.key_length", 1024, even, &c->head_dim, err) != 0 ||
        read_count(g, "llama.attention.value_length", 1024, c->head_dim, &value_length, err) != 0)
        return -1;
    if (value_length != c->head_dim)
        return err_set(err, ERR_FILE, "keys of %d and values of %d are not supported", c->head_dim,
                       value_length);
    return 0;
}

static int read_metadata(struct model_config *c, const struct gguf *g, struct err *err)
{
    struct gguf_str arch = {"", 0};
    gguf_string(g, "general.architecture", &arch);
    if (!is(arch, "llama"))
        return err_set(err, ERR_FILE, "architecture \"%.*s\" is not supported",
                       (int)(arch.len < 40 ? arch.len : 40), arch.s);
    if (read_count(g, "llama.embedding_length", 1 << 16, 0, &c->dim, err) != 0 ||
        read_count(g, "llama.block_count", 1 << 10, 0, &c->n_layers, err) != 0 ||
        read_count(g, "llama.feed_forward_length", 1 << 20, 0, &c->ffn, err) != 0 ||
        read_count(g, "llama.context_length", 1 << 24, 0, &c->context, err) != 0 ||
        read_heads(c, g, err) != 0 || read_rope(c, g, err) != 0)
        return -1;
    const char *eps = "llama.attention.layer_norm_rms_epsilon";
    if (read_positive(g, eps, 1e-5f, &c->norm_eps, err) != 0)
        return -1;
    const struct gguf_tensor *embd = gguf_tensor(g, "token_embd.weight");
    if (!embd)
        return err_set(err, ERR_FILE, "tensor token_embd.weight is missing");
    if (embd->dim[1] > PROPOSE_VOCAB_MAX)
        return err_set(err, ERR_FILE, "a vocabulary of %lld exceeds the limit %d",
                       (long long)embd->dim[1], PROPOSE_VOCAB_MAX);
    c->vocab = (int)embd->dim[1];
    return 0;
}

static bool printable(struct gguf_str s)
{
    for (size_t i = 0; i < s.len; i++)
        if ((unsigned char)s.s[i] < 0x20 || s.s[i] == 0x7f)
            return false;
    return utf8_valid(s.s, s.len);
}

static void read_name(struct model_config *c, const struct gguf *g, const char *path)
{
    struct gguf_str name;
    if (!gguf_string(g, "general.name", &name) || name.len == 0 || name.len >= sizeof c->name ||
        !printable(name)) {
        const char *slash = strrchr(path, '/');
        name.s = slash ? slash + 1 : path;
        name.len = strlen(name.s);
        if (name.len > 5 && strcmp(name.s + name.len - 5, ".gguf") == 0)
            name.len -= 5;
    }
    snprintf(c->name, sizeof c->name, "%.*s", (int)name.len, name.s);
}

int model_config_read(struct model_config *out, const struct gguf *g, const char *path,
                      struct err *err)
{
    struct model_config c = {0};
    struct err why;
    if (read_metadata(&c, g, &why) != 0 || check_tensors(&c, g, &why) != 0)
        return err_set(err, why.code, "%s: %s", path, why.msg);
    read_name(&c, g, path);
    *out = c;
    return 0;
}
