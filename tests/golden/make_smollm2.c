/* Writes smollm2.txt: SmolLM2's log-probabilities as llama.cpp computes them, which shares nothing
 * with the program under test. llama.cpp rounds the activations that meet a quantised matrix to 8
 * bits; so that the golden is the model itself, it first turns the file into float32 matrices, and
 * the KV cache is float32 too.
 *
 *   cc make_smollm2.c -I LLAMA/include -I LLAMA/ggml/include -L BUILD/bin -lllama -lggml-base -lm
 *   ./a.out SmolLM2-135M-Instruct.Q4_1.gguf texts_smollm2.txt /tmp/f32.gguf > smollm2.txt
 *
 * Made with llama.cpp as in llama-cpp-python 0.3.36. texts_smollm2.txt has a text a line, \n for
 * newlines. The output has for each text a line "text <tokens>" and then a line a token:
 *   <token> <log p of the next one, 0 at the end> <id> <log p> ... the five likeliest next tokens
 */
#include <llama.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_TOKENS = 512, TOP = 5 };

static void die(const char *what)
{
    fprintf(stderr, "%s\n", what);
    exit(1);
}

static void quiet(enum ggml_log_level level, const char *text, void *user)
{
    (void)user;
    if (level == GGML_LOG_LEVEL_ERROR)
        fputs(text, stderr);
}

static void to_f32(const char *from, const char *to)
{
    struct llama_model_quantize_params p = llama_model_quantize_default_params();
    p.ftype = LLAMA_FTYPE_ALL_F32;
    p.allow_requantize = true;
    if (llama_model_quantize(from, to, &p) != 0)
        die("cannot write the float32 model");
}

/* "\n" becomes a newline; the line's own end goes. */
static void unescape(char *line)
{
    char *out = line;
    for (char *s = line; *s && *s != '\n'; s++) {
        if (s[0] == '\\' && s[1] == 'n') {
            *out++ = '\n';
            s++;
        } else {
            *out++ = *s;
        }
    }
    *out = '\0';
}

static double log_sum_exp(const float *x, int n)
{
    double max = -INFINITY, sum = 0;
    for (int i = 0; i < n; i++)
        max = x[i] > max ? (double)x[i] : max;
    for (int i = 0; i < n; i++)
        sum += exp((double)x[i] - max);
    return max + log(sum);
}

static void print_row(float *logits, int vocab, llama_token token, llama_token next)
{
    double lse = log_sum_exp(logits, vocab);
    printf("%d %.6f", token, next < 0 ? 0.0 : (double)logits[next] - lse);
    for (int rank = 0; rank < TOP; rank++) {
        int best = 0;
        for (int i = 1; i < vocab; i++)
            if (logits[i] > logits[best])
                best = i;
        printf(" %d %.6f", best, (double)logits[best] - lse);
        logits[best] = -INFINITY;
    }
    printf("\n");
}

static void print_text(struct llama_context *ctx, const struct llama_vocab *vocab, const char *text)
{
    llama_token tokens[MAX_TOKENS];
    int n = llama_tokenize(vocab, text, (int)strlen(text), tokens, MAX_TOKENS, true, true);
    if (n < 1)
        die("cannot tokenize");
    struct llama_batch batch = llama_batch_init(n, 0, 1);
    batch.n_tokens = n;
    for (int i = 0; i < n; i++) {
        batch.token[i] = tokens[i];
        batch.pos[i] = i;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i] = 1;
    }
    llama_memory_clear(llama_get_memory(ctx), true);
    if (llama_decode(ctx, batch) != 0)
        die("cannot decode");
    printf("text %d\n", n);
    for (int i = 0; i < n; i++)
        print_row(llama_get_logits_ith(ctx, i), llama_vocab_n_tokens(vocab), tokens[i],
                  i + 1 < n ? tokens[i + 1] : -1);
    llama_batch_free(batch);
}

int main(int argc, char **argv)
{
    if (argc != 4)
        die("usage: make_smollm2 MODEL TEXTS SCRATCH > OUT");
    llama_log_set(quiet, NULL);
    llama_backend_init();
    to_f32(argv[1], argv[3]);
    struct llama_model *model = llama_model_load_from_file(argv[3], llama_model_default_params());
    struct llama_context_params p = llama_context_default_params();
    p.n_ctx = p.n_batch = p.n_ubatch = MAX_TOKENS;
    p.type_k = p.type_v = GGML_TYPE_F32;
    p.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    p.n_threads = p.n_threads_batch = 1;
    struct llama_context *ctx = model ? llama_init_from_model(model, p) : NULL;
    FILE *texts = fopen(argv[2], "r");
    if (!ctx || !texts)
        die("cannot open the model or the texts");
    char line[4096];
    while (fgets(line, sizeof line, texts)) {
        unescape(line);
        print_text(ctx, llama_model_get_vocab(model), line);
    }
    fclose(texts);
    llama_free(ctx);
    llama_model_free(model);
    return 0;
}
