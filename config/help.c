/* The settings as a manual page and as a config file: one walk over the table each. */
#include <stdio.h>
#include <string.h>

#include "settings.h"

enum { PAGE_WIDTH = 80 };

static const struct page {
    enum config_command command;
    const char *usage, *purpose, *examples;
} pages[] = {
    {CONFIG_SERVE, "clotho serve --model PATH [flags]",
     "Draw weighted samples from posteriors over text, as an HTTP server. It logs one line with "
     "its URL when it is ready, finishes running requests on SIGTERM, and exits with a message and "
     "a non-zero status when it cannot start.",
     "    clotho serve --model SmolLM2-135M-Instruct.Q4_1.gguf\n"
     "    clotho serve --model models/ --host 0.0.0.0 --port 80 --api-key-file keys.txt\n"
     "    CLOTHO_MODEL=model.gguf CLOTHO_KV_MEMORY=2G clotho serve\n"
     "    clotho serve --config clotho.yaml --print-config\n"},
    {CONFIG_SAMPLE, "clotho sample --model PATH [flags] \"prompt\"",
     "Draw weighted samples from one posterior, without a server, and print them with their "
     "weights and the log of the normalising constant.",
     "    clotho sample --model model.gguf --particles 64 --seed 1 \"Once upon a time\" \\\n"
     "        --potential '{\"type\":\"continuation\",\"text\":\" The end.\"}'\n"
     "    clotho sample --model model.gguf --json --stop . \"The capital of France is\"\n"},
    {CONFIG_BENCH, "clotho bench --model PATH [flags]",
     "Measure the engine on this machine: rows a second of the forward pass alone and of sampling, "
     "and where the time of a step goes.",
     "    clotho bench --model model.gguf --particles 1,16,64,256\n"},
    {CONFIG_BOUNDS, "clotho bounds --model PATH [flags] \"prompt\"",
     "Bound the log of a posterior's normalising constant from below and, where exact draws of it "
     "are given or found, from above, and say how far the proposal and the posterior are apart. "
     "It runs without a server.",
     "    clotho bounds --model model.gguf --particles 4,16,64 --repeats 8 --max-draws 10000 \\\n"
     "        --max-tokens 8 --potential '{\"type\":\"contains\",\"text\":\"sea\"}' \"Once\"\n"
     "    clotho bounds --model model.gguf --particles 4,16,64 --twist-dir twists --twist sea \\\n"
     "        --plot sea.svg --potential '{\"type\":\"contains\",\"text\":\"sea\"}' \"Once\"\n"},
    {CONFIG_LEARN,
     "clotho twist learn --model PATH --twist-dir DIR --name NAME [flags] \"prompt\"...",
     "Learn a twist for a potential and one or more prompts, without a server, and save it in the "
     "folder of twists. Stopped early, it leaves the folder as it was at the last checkpoint.",
     "    clotho twist learn --model model.gguf --twist-dir twists --name sea --updates 500 \\\n"
     "        --max-tokens 8 --potential '{\"type\":\"contains\",\"text\":\"sea\"}' \\\n"
     "        --plot curves.svg \"Once upon a time\" \"There was\"\n"},
    {CONFIG_TWISTS, "clotho twist list|show NAME|remove NAME --twist-dir DIR [flags]",
     "List the learned twists of a folder, say all that is known of one, or remove one.",
     "    clotho twist list --twist-dir twists\n"
     "    clotho twist show sea --twist-dir twists --json\n"},
};

static const struct page *page_of(enum config_command command)
{
    const struct page *page = pages;
    while (page->command != command)
        page++;
    return page;
}

/* A paragraph, filled; every line starts with the margin. */
static void fill(const char *margin, const char *text)
{
    int room = PAGE_WIDTH - (int)strlen(margin);
    while (*text) {
        int len = (int)strlen(text);
        if (len > room) {
            len = room;
            while (len > 0 && text[len] != ' ')
                len--;
            if (!len) /* a word longer than a line */
                len = (int)strcspn(text, " ");
        }
        printf("%s%.*s\n", margin, len, text);
        text += len + (text[len] == ' ');
    }
}

/* A setting's paragraph, with its default where a new user wants to know it. */
static void fill_help(const char *margin, const struct setting *s)
{
    char text[640];
    snprintf(text, sizeof text, s->fallback ? "%s Default: %s." : "%s", s->help, s->fallback);
    fill(margin, text);
}

void config_help(enum config_command command)
{
    const struct page *page = page_of(command);
    printf("Usage: %s\n\n", page->usage);
    fill("", page->purpose);
    for (int i = 0; i < n_settings; i++) {
        const struct setting *s = &settings[i];
        if (!(s->commands & (int)command))
            continue;
        if (s->kind == SETTING_SECTION) {
            printf("\n%s:\n", s->help);
            continue;
        }
        printf("  --%s%s%s\n", s->flag, s->arg ? " " : "", s->arg ? s->arg : "");
        fill_help("        ", s);
    }
    printf("\nSources:\n");
    fill("  ",
         "Every flag has a variable, CLOTHO_ and its name (CLOTHO_KV_MEMORY for --kv-memory), "
         "and a line in the config file (kv-memory: 2G). Flags beat variables, variables "
         "beat the file. A SIZE is in bytes, or ends in K, M or G.");
    printf("\nExamples:\n%s", page->examples);
}

/* A YAML double-quoted scalar. Bytes above ASCII go through: YAML is UTF-8. */
static void print_quoted(const char *s)
{
    putchar('"');
    for (; *s; s++)
        if ((unsigned char)*s < ' ' || *s == 127)
            printf("\\x%02x", (unsigned char)*s);
        else
            printf(*s == '"' || *s == '\\' ? "\\%c" : "%c", *s);
    putchar('"');
}

static void print_value(const struct config *c, const struct setting *s)
{
    const void *value = setting_value(c, s);
    char size[32];
    switch (s->kind) {
    case SETTING_INT:
        printf("%d", *(const int *)value);
        break;
    case SETTING_SIZE:
        setting_size_text((int64_t) * (const size_t *)value, size, sizeof size);
        printf("%s", size);
        break;
    case SETTING_BOOL:
        printf("%s", *(const bool *)value ? "true" : "false");
        break;
    case SETTING_STRING:
    case SETTING_JSON:
    case SETTING_TWIST:
        print_quoted(*(const char *const *)value);
        break;
    case SETTING_CHOICE:
    case SETTING_NUMBER:
    case SETTING_SECTION:
        printf("%s", *(const char *const *)value);
        break;
    }
}

static bool is_text(const struct setting *s)
{
    return s->kind != SETTING_INT && s->kind != SETTING_SIZE && s->kind != SETTING_BOOL;
}

/* A secret is not printed: such pages end up in tickets. An absent value is a comment. */
static void print_setting(const struct config *c, const struct setting *s)
{
    bool absent = is_text(s) && !*(const char *const *)setting_value(c, s);
    bool secret = s->offset == offsetof(struct config, api_key);
    if (absent || secret) {
        printf("# %s:%s\n", s->flag, absent ? "" : " (set, not shown)");
        return;
    }
    printf("%s: ", s->flag);
    print_value(c, s);
    putchar('\n');
}

void config_print(const struct config *c, enum config_command command)
{
    fill("# ", "Settings of clotho. Each line may be left out, and each can be overridden by a "
               "flag (--port 80) or a variable (CLOTHO_PORT=80).");
    const char *title = NULL; /* of the section, until it has its first line */
    for (int i = 0; i < n_settings; i++) {
        const struct setting *s = &settings[i];
        if (!(s->commands & (int)command) || s->weakest > FROM_FILE)
            continue;
        if (s->kind == SETTING_SECTION) {
            title = s->help;
            continue;
        }
        if (title)
            printf("\n# ---- %s ----\n", title);
        title = NULL;
        putchar('\n');
        fill_help("# ", s);
        print_setting(c, s);
    }
}
