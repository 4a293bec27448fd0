#include "settings.h"

#include <ctype.h>
#include <stdio.h>

/* A line of the table is a flag; adding a setting is a member of struct config and a line here. */
#define AT(member) .offset = offsetof(struct config, member)
#define SECTION(title, of)                                                                         \
    {                                                                                              \
        .kind = SETTING_SECTION, .commands = (of), .help = (title)                                 \
    }
#define RANGE(low, high) .min = (low), .max = (high)

enum { SERVE = CONFIG_SERVE, SAMPLE = CONFIG_SAMPLE, BENCH = CONFIG_BENCH };
enum { EVERY = ALL_COMMANDS, RUNS_ALONE = SAMPLE | BENCH };

const struct setting settings[] = {
    SECTION("The model and the device", EVERY),
    {"model", SETTING_STRING, EVERY, AT(model), .arg = "PATH",
     .help = "The language model: a .gguf file, or a folder that holds exactly one. Required."},
    {"alias", SETTING_STRING, EVERY, AT(alias), .arg = "NAME",
     .help = "The model's name in the API. Default: its file's name."},
    {"backend", SETTING_CHOICE, EVERY, AT(backend), "auto", .arg = "auto|cpu|cuda",
     .help = "The device that computes; auto takes a GPU where there is one."},
    {"dtype", SETTING_CHOICE, EVERY, AT(dtype), "auto", .arg = "auto|bf16|f32",
     .help = "The numbers that are multiplied (sums are f32 or wider); auto takes bf16 where the "
             "device is fast at it, else f32."},
    {"threads", SETTING_INT, EVERY, AT(threads), "0", RANGE(0, 1024), .arg = "N",
     .help = "CPU threads that compute; 0 is one for each usable core."},
    {"context", SETTING_INT, EVERY, AT(context), "0", RANGE(0, 1 << 20), .arg = "TOKENS",
     .help = "The longest sequence: prompt, continuation and what potentials append. 0 is the "
             "model's own limit, at most 8192."},
    {"kv-memory", SETTING_SIZE, EVERY, AT(kv_memory), "0", RANGE(0, INT64_C(1) << 44),
     .arg = "SIZE",
     .help = "Memory for the keys and values of all running requests. 0 plans it from the model, "
             "the context and the particles that may run."},
    {"batch-rows", SETTING_INT, EVERY, AT(batch_rows), "256", RANGE(1, 65536), .arg = "ROWS",
     .help = "Rows of one forward pass: particles that take a token, and tokens of prompts."},
    {"max-running-particles", SETTING_INT, EVERY, AT(max_running_particles), "1024",
     RANGE(1, 1 << 20), .arg = "N", .help = "Particles of all running requests together."},

    SECTION("The server", SERVE),
    {"host", SETTING_STRING, SERVE, AT(host), "127.0.0.1", .arg = "ADDRESS",
     .help = "The address to listen on; 0.0.0.0 is every IPv4 one."},
    {"port", SETTING_INT, SERVE, AT(port), "8080", RANGE(0, 65535), .arg = "PORT",
     .help = "The TCP port to listen on; 0 takes any free one."},
    {"api-key", SETTING_STRING, SERVE, AT(api_key), .arg = "KEY",
     .help = "Answer only requests that carry this key, as \"Authorization: Bearer KEY\" or "
             "\"X-Api-Key: KEY\". The health routes stay open. Others can see the flags of a "
             "process: prefer --api-key-file or the environment."},
    {"api-key-file", SETTING_STRING, SERVE, AT(api_key_file), .arg = "FILE",
     .help = "The same, with the accepted keys in a file, one a line."},
    {"cors-origins", SETTING_STRING, SERVE, AT(cors_origins), .arg = "LIST",
     .help = "Web origins that may call the server from a browser, separated by commas; * is any. "
             "Default: none."},
    {"max-queue", SETTING_INT, SERVE, AT(max_queue), "64", RANGE(0, 1 << 20), .arg = "N",
     .help = "Requests that may wait; one more is answered 429."},
    {"max-connections", SETTING_INT, SERVE, AT(max_connections), "1024", RANGE(1, 1 << 20),
     .arg = "N", .help = "Open connections."},
    {"header-seconds", SETTING_INT, SERVE, AT(header_seconds), "10", RANGE(1, 3600),
     .arg = "SECONDS", .help = "How long a client may take to send a request."},
    {"idle-seconds", SETTING_INT, SERVE, AT(idle_seconds), "60", RANGE(1, 86400), .arg = "SECONDS",
     .help = "How long a connection may stay open without a request."},
    {"drain-seconds", SETTING_INT, SERVE, AT(drain_seconds), "30", RANGE(0, 86400),
     .arg = "SECONDS", .help = "How long running requests may go on after SIGTERM."},
    {"stream-buffer", SETTING_SIZE, SERVE, AT(stream_buffer), "4M", RANGE(64 << 10, 1 << 30),
     .arg = "SIZE",
     .help = "Events that may wait for one slow client; one that falls further behind is cut "
             "off."},
    {"log-level", SETTING_CHOICE, SERVE, AT(log_level), "info", .arg = "error|warn|info|debug",
     .help = "What to log to standard error."},

    SECTION("The largest a request may be", EVERY),
    {"limit-body", SETTING_SIZE, EVERY, AT(max_body), "8M", RANGE(1 << 10, 1 << 30), .arg = "SIZE",
     .help = "Its JSON."},
    {"limit-particles", SETTING_INT, EVERY, AT(max_particles), "1024", RANGE(1, 1 << 20),
     .arg = "N", .help = "Particles."},
    {"limit-tokens", SETTING_INT, EVERY, AT(max_tokens), "4096", RANGE(1, 1 << 20), .arg = "TOKENS",
     .help = "Its longest continuation: max_tokens, or all segments together."},
    {"limit-prompt-tokens", SETTING_INT, EVERY, AT(max_prompt_tokens), "32768", RANGE(1, 1 << 20),
     .arg = "TOKENS", .help = "Its prompt, and every other text that the model has to read."},
    {"limit-completions", SETTING_INT, EVERY, AT(max_completions), "1024", RANGE(1, 1 << 20),
     .arg = "N", .help = "Texts to score at once."},
    {"limit-potentials", SETTING_INT, EVERY, AT(max_potentials), "16", RANGE(0, 4096), .arg = "N",
     .help = "Potentials."},
    {"limit-segments", SETTING_INT, EVERY, AT(max_segments), "64", RANGE(1, 4096), .arg = "N",
     .help = "Segments."},
    {"limit-pattern", SETTING_INT, EVERY, AT(max_pattern), "4096", RANGE(1, 1 << 20),
     .arg = "BYTES", .help = "A regular expression."},

    SECTION("The request", SAMPLE),
    {"particles", SETTING_NUMBER, SAMPLE, AT(sample.particles), .arg = "K", .field = "particles",
     .help = "Samples to draw together; more is closer to the posterior. Default: 16."},
    {"max-tokens", SETTING_NUMBER, SAMPLE, AT(sample.max_tokens), .arg = "TOKENS",
     .field = "max_tokens", .help = "The longest continuation. Default: 64."},
    {"min-tokens", SETTING_NUMBER, SAMPLE, AT(sample.min_tokens), .arg = "TOKENS",
     .field = "min_tokens", .help = "The prior does not end a text before it. Default: 0."},
    {"ignore-eos", SETTING_BOOL, SAMPLE, AT(sample.ignore_eos), .field = "ignore_eos",
     .help = "The prior never ends a text."},
    {"stop", SETTING_STRING, SAMPLE, AT(sample.stop), .arg = "TEXT", .field = "stop",
     .help = "A sample ends right after it first contains this text."},
    {"temperature", SETTING_NUMBER, SAMPLE, AT(sample.temperature), .arg = "X",
     .field = "temperature",
     .help = "Of the prior; 0 leaves it the likeliest token alone. Default: 1."},
    {"top-k", SETTING_NUMBER, SAMPLE, AT(sample.top_k), .arg = "N", .field = "top_k",
     .help = "The prior keeps the N likeliest tokens. Default: 0, all."},
    {"top-p", SETTING_NUMBER, SAMPLE, AT(sample.top_p), .arg = "X", .field = "top_p",
     .help = "The prior keeps the smallest set of tokens whose probability reaches X. Default: 1, "
             "all."},
    {"seed", SETTING_STRING, SAMPLE, AT(sample.seed), .arg = "N", .field = "seed",
     .help = "A 64-bit integer; the same one gives the same samples. Default: drawn, and "
             "reported."},
    {"potential", SETTING_JSON, SAMPLE, AT(sample.potential), .arg = "JSON", .field = "potential",
     .help = "What the samples are weighted by: an object or an array of them, as in the API, such "
             "as '{\"type\":\"continuation\",\"text\":\" The end.\"}'."},
    {"twist", SETTING_JSON, SAMPLE, AT(sample.twist), .arg = "JSON", .field = "twist",
     .help = "What guides them on the way, such as '{\"type\":\"potential\",\"every\":4}'. "
             "Default: nothing."},
    {"proposal", SETTING_STRING, SAMPLE, AT(sample.proposal), .arg = "auto|base|twist",
     .field = "proposal", .help = "Where tokens are drawn from. Default: auto."},
    {"resampling", SETTING_JSON, SAMPLE, AT(sample.resampling), .arg = "JSON",
     .field = "resampling",
     .help = "Default: '{\"scheme\":\"systematic\",\"ess_threshold\":0.5}'."},
    {"segments", SETTING_JSON, SAMPLE, AT(sample.segments), .arg = "JSON", .field = "segments",
     .help = "A template with several holes instead of one continuation."},
    {"special", SETTING_BOOL, SAMPLE, AT(sample.special), .field = "special",
     .help = "Read special tokens that are written out in the prompt, such as <|im_end|>, as "
             "tokens."},
    {"logprobs", SETTING_BOOL, SAMPLE, AT(sample.logprobs), .field = "logprobs",
     .help = "Report the log-probability of every token (with --json)."},

    SECTION("What is measured", BENCH),
    {"particles", SETTING_STRING, BENCH, AT(bench_particles), "1,16,64,256", .arg = "LIST",
     .help = "Populations to run, separated by commas."},
    {"prompt-tokens", SETTING_INT, BENCH, AT(prompt_tokens), "32", RANGE(1, 1 << 20),
     .arg = "TOKENS", .help = "Length of the prompt."},
    {"tokens", SETTING_INT, BENCH, AT(tokens), "64", RANGE(1, 1 << 20), .arg = "TOKENS",
     .help = "Tokens that every particle draws."},
    {"repeat", SETTING_INT, BENCH, AT(repeat), "3", RANGE(1, 1000), .arg = "N",
     .help = "Runs of each line; their median is shown."},

    SECTION("Output", RUNS_ALONE),
    {"json", SETTING_BOOL, RUNS_ALONE, AT(json), .help = "One JSON object a line, no table."},

    SECTION("Settings and help", EVERY),
    {"config", SETTING_STRING, EVERY, AT(config), .weakest = FROM_ENVIRONMENT, .arg = "FILE",
     .help = "Read settings from a YAML file of \"flag: value\" lines, without the dashes. "
             "Settings of another command in it are left alone."},
    {"print-config", SETTING_BOOL, EVERY, AT(print_config), .weakest = FROM_FLAG,
     .help = "Print all settings in force as such a file, and exit."},
    {"help", SETTING_BOOL, EVERY, AT(help), .weakest = FROM_FLAG,
     .help = "Print this page, and exit."},
};

const int n_settings = (int)(sizeof settings / sizeof *settings);

void setting_variable(const struct setting *s, char *out, size_t size)
{
    static const char prefix[] = "CLOTHO_";
    size_t n = 0;
    for (const char *p = prefix; *p && n + 1 < size; p++)
        out[n++] = *p;
    for (const char *p = s->flag; *p && n + 1 < size; p++)
        out[n++] = *p == '-' ? '_' : (char)toupper((unsigned char)*p);
    out[n] = '\0';
}

void setting_size_text(int64_t bytes, char *out, size_t size)
{
    static const char *const suffixes[] = {"", "K", "M", "G"};
    int i = 0;
    for (; i < 3 && bytes && bytes % 1024 == 0; i++)
        bytes /= 1024;
    snprintf(out, size, "%lld%s", (long long)bytes, suffixes[i]);
}
