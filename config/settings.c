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

enum {
    SERVE = CONFIG_SERVE,
    SAMPLE = CONFIG_SAMPLE,
    BENCH = CONFIG_BENCH,
    BOUNDS = CONFIG_BOUNDS,
    LEARN = CONFIG_LEARN,
    TWISTS = CONFIG_TWISTS,

    EVERY = ENGINE_COMMANDS,
    DRAWS = SAMPLE | BOUNDS,
    WEIGHS = DRAWS | LEARN, /* has a prior and a potential */
};

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
    {"batch-rows", SETTING_INT, EVERY, AT(batch_rows), "0", RANGE(0, 32768), .arg = "ROWS",
     .help = "Rows of one forward pass: particles that take a token, and tokens of prompts. 0 is "
             "256, or 2048 on a GPU."},
    {"fast", SETTING_BOOL, EVERY, AT(fast),
     .help = "On a GPU, let matrix products choose their algorithm by the number of rows: faster, "
             "but the same seed gives other texts when other requests run beside it."},
    {"max-running-particles", SETTING_INT, EVERY, AT(max_running_particles), "1024",
     RANGE(1, 1 << 20), .arg = "N", .help = "Particles of all running requests together."},

    SECTION("Learned twists", ALL_COMMANDS),
    {"twist-dir", SETTING_STRING, ALL_COMMANDS, AT(twist_dir), .arg = "DIR",
     .help =
         "The folder of learned twists, one file each. Default: none, and then none can be used "
         "or learned."},
    {"twist-memory", SETTING_SIZE, EVERY, AT(twist_memory), "1G", RANGE(1 << 20, INT64_C(1) << 44),
     .arg = "SIZE",
     .help = "Memory for the twists in use, and for learning. Used only with --twist-dir."},

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
     .help = "The same, with the accepted keys in a file, read again on SIGHUP. A line is KEY "
             "[name=NAME] [concurrent=N] [per_minute=N]: what logs and metrics call it, and how "
             "many POST requests it may have in progress and make each minute. Keys of one name "
             "share these limits."},
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
    {"client-memory", SETTING_SIZE, SERVE, AT(client_memory), "1G",
     RANGE(1 << 20, INT64_C(1) << 44), .arg = "SIZE",
     .help = "Requests that come in and answers that wait for their clients, all together. What "
             "does not fit is answered 429. An equal part of half of it is each connection's own."},
    {"log-level", SETTING_CHOICE, SERVE, AT(log_level), "info", .arg = "error|warn|info|debug",
     .help = "What to log to standard error."},
    {"log-format", SETTING_CHOICE, SERVE, AT(log_format), "text", .arg = "text|logfmt|json",
     .help =
         "How: text is messages as they are and requests as logfmt; in the others each line has "
         "a time, a level and fields."},
    {"log-prompts", SETTING_BOOL, SERVE, AT(log_prompts),
     .help = "Log the beginning of what requests say, prompts and all. Otherwise no text of theirs "
             "is logged."},

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
    {"limit-seconds", SETTING_INT, SERVE, AT(max_seconds), "0", RANGE(0, 1 << 30), .arg = "SECONDS",
     .help =
         "Its time, waiting included; 0 is as long as it takes. Learning a twist is a request."},
    {"limit-pattern", SETTING_INT, EVERY, AT(max_pattern), "4096", RANGE(1, 1 << 20),
     .arg = "BYTES", .help = "A regular expression."},

    SECTION("The twist", LEARN),
    {"name", SETTING_STRING, LEARN, AT(request.name), .arg = "NAME", .field = "name",
     .help = "Its name, by which requests ask for it. One that is there is replaced. Required."},
    {"method", SETTING_STRING, LEARN, AT(request.method), .arg = "ctl|rl|sixo|fudge|dpg",
     .field = "method", .help = "How it is learned. Default: ctl."},
    {"head", SETTING_STRING, LEARN, AT(request.head), .arg = "linear|mlp", .field = "head.type",
     .help = "What it is on top of the model. Default: linear."},
    {"layers", SETTING_NUMBER, LEARN, AT(request.layers), .arg = "N", .field = "head.layers",
     .help = "Layers of an mlp. Default: 3."},
    {"hidden", SETTING_NUMBER, LEARN, AT(request.hidden), .arg = "N", .field = "head.hidden",
     .help = "Width of an mlp. Default: 768."},
    {"updates", SETTING_NUMBER, LEARN, AT(request.updates), .arg = "N", .field = "updates",
     .help = "Steps of Adam; each takes the next prompt. Default: 100."},
    {"learning-rate", SETTING_NUMBER, LEARN, AT(request.learning_rate), .arg = "X",
     .field = "learning_rate", .help = "Of Adam. Default: 0.0001."},
    {"condition-tokens", SETTING_NUMBER, LEARN, AT(request.condition_tokens), .arg = "N",
     .field = "condition.tokens",
     .help = "Learn one twist for all endings of N tokens instead of one for a potential."},
    {"condition-batch", SETTING_NUMBER, LEARN, AT(request.condition_batch), .arg = "N",
     .field = "condition.batch",
     .help = "Endings of an update; they share its particles. Default: 8."},
    {"checkpoint", SETTING_NUMBER, LEARN, AT(request.checkpoint), .arg = "N", .field = "checkpoint",
     .help = "Save after every N updates. Default: 0, at the end only."},
    {"bounds", SETTING_NUMBER, LEARN, AT(request.bounds), .arg = "N", .field = "bounds",
     .help = "Bound log Z after every N updates; 0 is never. Default: ten times."},

    SECTION("The request", WEIGHS),
    {"particles", SETTING_NUMBER, SAMPLE, AT(request.particles), .arg = "K", .field = "particles",
     .help = "Samples to draw together; more is closer to the posterior. Default: 16."},
    {"particles", SETTING_NUMBER, LEARN, AT(request.particles), .arg = "K", .field = "particles",
     .help = "Samples of an update. Default: 64."},
    {"particles", SETTING_STRING, BOUNDS, AT(populations), "16", .arg = "LIST",
     .help = "Particles of a run, or several such numbers, separated by commas."},
    {"repeats", SETTING_NUMBER, BOUNDS, AT(request.repeats), .arg = "N", .field = "repeats",
     .help = "Runs for each bound. Default: 4."},
    {"targets", SETTING_JSON, BOUNDS | LEARN, AT(request.targets), .arg = "JSON",
     .field = "targets",
     .help = "Exact draws of the posterior, to bound from above or to learn from: an array of "
             "continuations."},
    {"max-draws", SETTING_NUMBER, BOUNDS | LEARN, AT(request.max_draws), .arg = "N",
     .field = "targets.max_draws",
     .help = "Find exact draws instead, by rejection, with at most N draws of the prior."},
    {"max-tokens", SETTING_NUMBER, WEIGHS, AT(request.max_tokens), .arg = "TOKENS",
     .field = "max_tokens", .help = "The longest continuation. Default: 64."},
    {"min-tokens", SETTING_NUMBER, WEIGHS, AT(request.min_tokens), .arg = "TOKENS",
     .field = "min_tokens", .help = "The prior does not end a text before it. Default: 0."},
    {"ignore-eos", SETTING_BOOL, WEIGHS, AT(request.ignore_eos), .field = "ignore_eos",
     .help = "The prior never ends a text."},
    {"stop", SETTING_STRING, WEIGHS, AT(request.stop), .arg = "TEXT", .field = "stop",
     .help = "A sample ends right after it first contains this text."},
    {"temperature", SETTING_NUMBER, WEIGHS, AT(request.temperature), .arg = "X",
     .field = "temperature",
     .help = "Of the prior; 0 leaves it the likeliest token alone. Default: 1."},
    {"top-k", SETTING_NUMBER, WEIGHS, AT(request.top_k), .arg = "N", .field = "top_k",
     .help = "The prior keeps the N likeliest tokens. Default: 0, all."},
    {"top-p", SETTING_NUMBER, WEIGHS, AT(request.top_p), .arg = "X", .field = "top_p",
     .help = "The prior keeps the smallest set of tokens whose probability reaches X. Default: 1, "
             "all."},
    {"seed", SETTING_STRING, WEIGHS, AT(request.seed), .arg = "N", .field = "seed",
     .help = "A 64-bit integer; the same one gives the same answer. Default: drawn, and "
             "reported."},
    {"potential", SETTING_JSON, WEIGHS, AT(request.potential), .arg = "JSON", .field = "potential",
     .help = "What the samples are weighted by: an object or an array of them, as in the API, such "
             "as '{\"type\":\"continuation\",\"text\":\" The end.\"}'."},
    {"twist", SETTING_TWIST, DRAWS, AT(request.twist), .arg = "NAME|JSON", .field = "twist",
     .help = "What guides them on the way: the name of a learned twist, or an object such as "
             "'{\"type\":\"potential\",\"every\":4}'. Default: nothing."},
    {"proposal", SETTING_STRING, DRAWS, AT(request.proposal), .arg = "auto|base|twist",
     .field = "proposal", .help = "Where tokens are drawn from. Default: auto."},
    {"resampling", SETTING_JSON, WEIGHS, AT(request.resampling), .arg = "JSON",
     .field = "resampling",
     .help =
         "Default: '{\"scheme\":\"systematic\",\"ess_threshold\":0.5}', and to learn a threshold "
         "of 0."},
    {"segments", SETTING_JSON, SAMPLE, AT(request.segments), .arg = "JSON", .field = "segments",
     .help = "A template with several holes instead of one continuation."},
    {"special", SETTING_BOOL, WEIGHS, AT(request.special), .field = "special",
     .help = "Read special tokens that are written out in texts, such as <|im_end|>, as "
             "tokens."},
    {"logprobs", SETTING_BOOL, SAMPLE, AT(request.logprobs), .field = "logprobs",
     .help = "Report the log-probability of every token (with --json)."},

    SECTION("What is measured", BENCH),
    {"particles", SETTING_STRING, BENCH, AT(populations), "1,16,64,256", .arg = "LIST",
     .help = "Populations to run, separated by commas."},
    {"prompt-tokens", SETTING_INT, BENCH, AT(prompt_tokens), "32", RANGE(1, 1 << 20),
     .arg = "TOKENS", .help = "Length of the prompt."},
    {"tokens", SETTING_INT, BENCH, AT(tokens), "64", RANGE(1, 1 << 20), .arg = "TOKENS",
     .help = "Tokens that every particle draws."},
    {"repeat", SETTING_INT, BENCH, AT(repeat), "3", RANGE(1, 1000), .arg = "N",
     .help = "Runs of each line; their median is shown."},

    SECTION("Servers that draw instead", SAMPLE),
    {"server", SETTING_STRING, SAMPLE, AT(server), .arg = "URLS",
     .help = "Have servers draw, by their URLs, separated by commas. No model is loaded here."},
    {"islands", SETTING_INT, SAMPLE, AT(islands), "1", RANGE(1, 1 << 16), .arg = "N",
     .help =
         "Draw N independent populations, with the seed and those that follow it, spread over the "
         "servers, and merge them exactly into one. One that fails is drawn again elsewhere."},
    {"api-key", SETTING_STRING, SAMPLE, AT(api_key), .arg = "KEY",
     .help = "The key that the servers want; prefer the environment."},

    SECTION("Output", ALL_COMMANDS & ~SERVE),
    {"json", SETTING_BOOL, ALL_COMMANDS & ~SERVE, AT(json),
     .help = "One JSON object a line, no table."},
    {"plot", SETTING_STRING, BOUNDS, AT(plot), .arg = "FILE",
     .help = "Draw the bounds against the particles, as SVG: with and without resampling, for the "
             "base proposal and, if there is one, that of the twist. Each is run."},
    {"plot", SETTING_STRING, LEARN, AT(plot), .arg = "FILE",
     .help = "Draw the learning curves, as SVG."},

    SECTION("Settings and help", ALL_COMMANDS),
    {"config", SETTING_STRING, ALL_COMMANDS, AT(config), .weakest = FROM_ENVIRONMENT, .arg = "FILE",
     .help = "Read settings from a YAML file of \"flag: value\" lines, without the dashes. "
             "Settings of another command in it are left alone."},
    {"print-config", SETTING_BOOL, ALL_COMMANDS, AT(print_config), .weakest = FROM_FLAG,
     .help = "Print all settings in force as such a file, and exit."},
    {"help", SETTING_BOOL, ALL_COMMANDS, AT(help), .weakest = FROM_FLAG,
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
