/* Any GGUF file as a model: refused with a line of text, or taken, and then what the metadata says
 * is what the tensors are. */
#include <stdint.h>
#include <string.h>

#include "../../core/model.h"

static void check_config(const struct model_config *c, const struct gguf *g)
{
    struct model_opts opts = {.max_rows = 64, .max_hidden = 16, .n_pages = 32, .context = 1};
    struct model_memory memory;
    const struct gguf_tensor *down = gguf_tensor(g, "blk.0.ffn_down.weight");
    CHECK(c->n_heads % c->n_kv_heads == 0 && c->rope_dim % 2 == 0 && c->rope_dim <= c->head_dim);
    CHECK(c->norm_eps > 0 && c->rope_base > 0 && c->rope_scale > 0 && c->context > 0);
    CHECK(down && down->dim[0] == c->ffn && down->dim[1] == c->dim);
    CHECK(strlen(c->name) > 0);
    model_memory(c, &(struct backend){.act = ACT_BF16}, g, &opts, &memory);
    CHECK(memory.total >= memory.weights && memory.weights >= (size_t)c->parameters);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct gguf *g;
    struct err err = {0};
    struct model_config c;
    if (gguf_open_memory(&g, data, size, &err))
        return 0;
    if (model_config_read(&c, g, "file.gguf", &err) == 0)
        check_config(&c, g);
    else
        CHECK(strlen(err.msg) > 0);
    gguf_close(g);
    return 0;
}
