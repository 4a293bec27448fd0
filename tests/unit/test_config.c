/* The sources of settings: what each reads, which one wins, and how refusals name them. */
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../../config/config.h"
#include "../../core/buf.h"
#include "../check.h"

enum { MAX_ARGS = 32 };

static enum config_command command_of(const char *name)
{
    static const char *const names[] = {"serve", "sample", "bench", "bounds", "learn", "twists"};
    int i = 0;
    while (strcmp(names[i], name) != 0)
        i++;
    return (enum config_command)(1 << i);
}

/* Read a command line ("serve --port 1 …", split at spaces). */
static int read_line(struct config *c, const char *line, struct err *err)
{
    static char words[1024]; /* args stay borrowed from it until the next call */
    static char *argv[MAX_ARGS + 1];
    int argc = 0;
    char *save;
    snprintf(words, sizeof words, "%s", line);
    for (char *w = strtok_r(words, " ", &save); w && argc < MAX_ARGS;
         w = strtok_r(NULL, " ", &save))
        argv[argc++] = w;
    argv[argc] = NULL;
    return config_read(c, command_of(argv[0]), argc, argv, err);
}

static void expect_refusal(const char *line, const char *message)
{
    struct config c;
    struct err err = {0};
    EXPECT_INT(read_line(&c, line, &err), -1);
    EXPECT_STR(err.msg, message);
    config_free(&c);
}

static void test_defaults(void)
{
    struct config c;
    struct err err;
    EXPECT_INT(read_line(&c, "serve --model m.gguf", &err), 0);
    EXPECT_STR(c.model, "m.gguf");
    EXPECT(!c.alias && !c.api_key && !c.cors_origins && !c.config);
    EXPECT_STR(c.backend, "auto");
    EXPECT_STR(c.host, "127.0.0.1");
    EXPECT_INT(c.port, 8080);
    EXPECT_INT(c.max_body, 8 << 20);
    EXPECT_INT(c.max_particles, 1024);
    EXPECT_INT(c.n_args, 0);
    EXPECT(!c.help && !c.print_config);
    config_free(&c);
    EXPECT_INT(read_line(&c, "bench --model m", &err), 0);
    EXPECT_STR(c.populations, "1,16,64,256");
    EXPECT(!c.host); /* not its business */
    config_free(&c);
}

static void test_forms(void)
{
    struct config c;
    struct err err;
    EXPECT_INT(read_line(&c,
                         "serve --port=0 --model a --model b --kv-memory 3g --stream-buffer=64K "
                         "--limit-body 1048576",
                         &err),
               0);
    EXPECT_INT(c.port, 0);
    EXPECT_STR(c.model, "b"); /* the last one counts */
    EXPECT_INT(c.kv_memory, 3LL << 30);
    EXPECT_INT(c.stream_buffer, 64 << 10);
    EXPECT_INT(c.max_body, 1 << 20);
    config_free(&c);
    EXPECT_INT(read_line(&c, "sample --model m --json --ignore-eos=off -- --prompt", &err), 0);
    EXPECT(c.json && !c.request.ignore_eos);
    EXPECT_INT(c.n_args, 1);
    EXPECT_STR(c.args[0], "--prompt");
    config_free(&c);
    EXPECT_INT(read_line(&c, "serve -h", &err), 0); /* without a model */
    EXPECT(c.help);
    config_free(&c);
}

static void test_refusals(void)
{
    expect_refusal("serve", "--model: is missing; name a .gguf file (see --help)");
    expect_refusal("serve --prot 3", "--prot: no such flag of clotho serve (see --help)");
    expect_refusal("serve --particles 3", "--particles: no such flag of clotho serve (see --help)");
    expect_refusal("serve -m x", "-m: no such flag (flags begin with two dashes)");
    expect_refusal("serve --port", "--port: needs a value (PORT)");
    expect_refusal("serve --port x", "--port: \"x\" is not a whole number");
    expect_refusal("serve --port 80x", "--port: \"80x\" is not a whole number");
    expect_refusal("serve --port=", "--port: \"\" is not a whole number");
    expect_refusal("serve --port 8K", "--port: \"8K\" is not a whole number");
    expect_refusal("serve --port 65536", "--port: 65536 is not in 0..65535");
    expect_refusal("serve --port -1", "--port: -1 is not in 0..65535");
    expect_refusal("serve --port 99999999999999999999",
                   "--port: 99999999999999999999 is not in 0..65535");
    expect_refusal("serve --kv-memory 1T", "--kv-memory: \"1T\" is not a size (such as 512M)");
    expect_refusal("serve --stream-buffer 1K", "--stream-buffer: 1K is not in 64K..1G");
    expect_refusal("serve --kv-memory 99999999999999G",
                   "--kv-memory: 99999999999999G is not in 0..16384G");
    expect_refusal("serve --dtype f", "--dtype: \"f\" is not one of auto|bf16|f32");
    expect_refusal("serve --dtype=", "--dtype: \"\" is not one of auto|bf16|f32");
    expect_refusal("sample --json=maybe", "--json: \"maybe\" is not true or false");
    expect_refusal("sample --top-k five", "--top-k: not JSON: invalid token near 'five'");
    expect_refusal("sample --top-k {}", "--top-k: \"{}\" is not a number");
    expect_refusal("sample --model m a b",
                   "\"b\": unexpected argument; the prompt is one argument, so quote it");
    expect_refusal("serve --model m a", "\"a\": unexpected argument (see --help)");
    expect_refusal("serve --config /nowhere/x.yaml", "/nowhere/x.yaml: No such file or directory");
}

static void test_environment(void)
{
    struct config c;
    struct err err;
    setenv("CLOTHO_MODEL", "env.gguf", 1);
    setenv("CLOTHO_KV_MEMORY", "1G", 1);
    setenv("CLOTHO_ALIAS", "", 1); /* empty is unset */
    setenv("CLOTHO_HELP", "1", 1); /* no setting of the environment */
    EXPECT_INT(read_line(&c, "serve --kv-memory 2G", &err), 0);
    EXPECT_STR(c.model, "env.gguf");
    EXPECT_INT(c.kv_memory, 2LL << 30);
    EXPECT(!c.alias && !c.help);
    config_free(&c);
    setenv("CLOTHO_PORT", "tcp://10.0.0.1:80", 1);
    expect_refusal("serve", "CLOTHO_PORT: \"tcp://10.0.0.1:80\" is not a whole number");
    EXPECT_INT(read_line(&c, "bench", &err), 0); /* which has no port */
    config_free(&c);
    unsetenv("CLOTHO_MODEL");
    unsetenv("CLOTHO_KV_MEMORY");
    unsetenv("CLOTHO_ALIAS");
    unsetenv("CLOTHO_HELP");
    unsetenv("CLOTHO_PORT");
}

/* Read "serve --config FILE" plus more flags, the file holding text. */
static int read_yaml(struct config *c, const char *text, const char *flags, struct err *err)
{
    char path[] = "/tmp/clotho-config-XXXXXX", line[256];
    int fd = mkstemp(path);
    EXPECT(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
    close(fd);
    snprintf(line, sizeof line, "serve --config %s %s", path, flags);
    int rc = read_line(c, line, err);
    unlink(path);
    return rc;
}

static void expect_yaml_refusal(const char *text, const char *message)
{
    struct config c;
    struct err err = {0};
    EXPECT_INT(read_yaml(&c, text, "", &err), -1);
    const char *behind = strchr(err.msg, ':'); /* the path is another each time */
    EXPECT_STR(behind ? behind : err.msg, message);
    config_free(&c);
}

static void test_file(void)
{
    struct config c;
    struct err err;
    setenv("CLOTHO_PORT", "2", 1);
    EXPECT_INT(read_yaml(&c,
                         "# comment\nmodel: \"a b.gguf\"\nport: 1\nmax-queue: 1\nhost: 1\n"
                         "kv-memory: 1G\nalias:\ncors-origins: ~\nparticles: 7\n",
                         "--max-queue 3", &err),
               0);
    EXPECT_STR(c.model, "a b.gguf");
    EXPECT_INT(c.port, 2);      /* environment beats file */
    EXPECT_INT(c.max_queue, 3); /* flag beats both */
    EXPECT_STR(c.host, "1");
    EXPECT_INT(c.kv_memory, 1 << 30);
    EXPECT(!c.alias && !c.cors_origins);
    config_free(&c);
    unsetenv("CLOTHO_PORT");
    EXPECT_INT(read_yaml(&c, "", "--model m", &err), 0);
    config_free(&c);
    expect_yaml_refusal("port: 1\nport: 2\n", ":2: port: is there twice");
    expect_yaml_refusal("\nprt: 1\n", ":2: prt: no such setting of a file");
    expect_yaml_refusal("config: x\n", ":1: config: no such setting of a file");
    expect_yaml_refusal("help: true\n", ":1: help: no such setting of a file");
    expect_yaml_refusal("port: [1]\n", ":1: port: is not a single value");
    expect_yaml_refusal("? [a]\n: 1\n", ":1: the key is not a name");
    expect_yaml_refusal("- port\n", ": is not a list of \"setting: value\" lines");
    expect_yaml_refusal("port: [1\n", ":2: not YAML: did not find expected ',' or ']'");
    expect_yaml_refusal("port: 99999\n", ":1: port: 99999 is not in 0..65535");
    expect_yaml_refusal("port: \"\"\n", ":1: port: \"\" is not a whole number");
}

/* What a value that a stronger source overrides says still has to be right. */
static void test_overridden(void)
{
    struct config c;
    struct err err = {0};
    EXPECT_INT(read_yaml(&c, "port: many\n", "--model m --port 1", &err), -1);
    config_free(&c);
}

static void test_request_body(void)
{
    struct config c;
    struct err err;
    EXPECT_INT(read_line(&c, "sample --model m", &err), 0);
    char *body = config_request_body(&c, CONFIG_SAMPLE, &err);
    EXPECT_STR(body, "{}");
    free(body);
    config_free(&c);
    EXPECT_INT(read_line(&c,
                         "sample --model m --particles 64 --seed 9223372036854775807 "
                         "--stop \" --temperature 0.5 --ignore-eos "
                         "--potential {\"type\":\"contains\",\"text\":\"x\"} --proposal base hi",
                         &err),
               0);
    body = config_request_body(&c, CONFIG_SAMPLE, &err);
    EXPECT_STR(body, "{\"particles\":64,\"ignore_eos\":true,\"stop\":\"\\\"\",\"temperature\":0.5,"
                     "\"seed\":\"9223372036854775807\","
                     "\"potential\":{\"type\":\"contains\",\"text\":\"x\"},\"proposal\":\"base\","
                     "\"prompt\":\"hi\"}");
    free(body);
    config_free(&c);
    EXPECT_INT(read_line(&c, "sample --model m \xff", &err), 0);
    EXPECT(!config_request_body(&c, CONFIG_SAMPLE, &err));
    EXPECT_STR(err.msg, "the prompt is not valid UTF-8");
    config_free(&c);
    EXPECT_INT(read_line(&c, "sample --model m --stop \xff", &err), 0);
    EXPECT(!config_request_body(&c, CONFIG_SAMPLE, &err));
    EXPECT_STR(err.msg, "--stop: is not valid UTF-8");
    config_free(&c);
}

static void expect_body(const char *line, const char *body)
{
    struct config c;
    struct err err = {0};
    EXPECT_INT(read_line(&c, line, &err), 0);
    char *got = config_request_body(&c, command_of(line[0] == 'b' ? "bounds" : "learn"), &err);
    EXPECT_STR(got ? got : err.msg, body);
    free(got);
    config_free(&c);
}

static void test_study_bodies(void)
{
    expect_body(
        "bounds --model m --repeats 3 --twist sea a",
        "{\"repeats\":3,\"twist\":{\"type\":\"learned\",\"name\":\"sea\"},\"prompt\":\"a\"}");
    expect_body("bounds --model m --twist {\"type\":\"factor\"} --targets [[1]]",
                "{\"targets\":[[1]],\"twist\":{\"type\":\"factor\"}}");
    expect_body("bounds --model m --max-draws 9",
                "{\"targets\":{\"source\":\"rejection\",\"max_draws\":9}}");
    expect_body("bounds --model m --max-draws 9 --targets []",
                "--max-draws: finds what --targets gives; one of them");
    expect_body("learn --model m --twist-dir d", "{}");
    expect_body("learn --model m --twist-dir d --name x --head mlp --layers 2 --updates 5 "
                "--condition-tokens 3 a b",
                "{\"name\":\"x\",\"head\":{\"type\":\"mlp\",\"layers\":2},\"updates\":5,"
                "\"condition\":{\"tokens\":3},\"prompts\":[\"a\",\"b\"]}");
    expect_body("learn --model m --twist-dir d a \xff", "the prompt is not valid UTF-8");
}

static void test_study_refusals(void)
{
    expect_refusal("learn --model m", "--twist-dir: is missing; name the folder of twists (see "
                                      "--help)");
    expect_refusal("twists", "--twist-dir: is missing; name the folder of twists (see --help)");
    expect_refusal("learn --twist-dir d", "--model: is missing; name a .gguf file (see --help)");
    expect_refusal("twists --twist-dir d --model m",
                   "--model: no such flag of clotho twists (see --help)");
    expect_refusal("twists --twist-dir d a b", "\"b\": unexpected argument (see --help)");
    expect_refusal("bounds --model m a b",
                   "\"b\": unexpected argument; the prompt is one argument, so quote it");
    expect_refusal("sample --model m --twist {sea",
                   "--twist: not JSON: string or '}' expected near "
                   "'sea'");
    expect_refusal("bench --model m --twist sea", "--twist: no such flag of clotho bench (see "
                                                  "--help)");
}

/* ---- pages ---- */

static char *printed; /* what the last of these wrote to stdout */

static void capture(void (*print)(const struct config *, enum config_command),
                    const struct config *c, enum config_command command)
{
    FILE *terminal = stdout;
    size_t size;
    free(printed);
    printed = NULL;
    stdout = open_memstream(&printed, &size);
    print(c, command);
    fclose(stdout);
    stdout = terminal;
}

static void print_help(const struct config *c, enum config_command command)
{
    (void)c;
    config_help(command);
}

static void test_help(void)
{
    for (int command = CONFIG_SERVE; command <= CONFIG_BENCH; command *= 2) {
        capture(print_help, NULL, (enum config_command)command);
        EXPECT(strstr(printed, "--model PATH") && strstr(printed, "Examples:"));
        EXPECT(!strstr(printed, "--port") == (command != CONFIG_SERVE));
        for (const char *line = printed; *line; line += strcspn(line, "\n") + 1)
            EXPECT(strcspn(line, "\n") <= 96);
    }
}

static void test_print_config(void)
{
    struct config c, again;
    struct err err;
    EXPECT_INT(read_line(&c,
                         "serve --print-config --port 81 --kv-memory 2G --api-key secret "
                         "--host a\"b\\c\x01\xc3\xa9",
                         &err),
               0);
    capture(config_print, &c, CONFIG_SERVE);
    EXPECT(strstr(printed, "\nport: 81\n") && strstr(printed, "\nkv-memory: 2G\n"));
    EXPECT(strstr(printed, "\n# api-key: (set, not shown)\n") && !strstr(printed, "secret"));
    EXPECT_INT(read_yaml(&again, printed, "--model m", &err), 0); /* it reads back */
    EXPECT_STR(again.host, "a\"b\\c\x01\xc3\xa9");
    EXPECT_INT(again.kv_memory, 2LL << 30);
    config_free(&again);
    config_free(&c);
}

/* config/clotho.example.yaml is what --print-config says of the defaults. */
static void test_example(void)
{
    struct config c;
    struct err err;
    struct buf example = {0};
    char part[4096];
    size_t n;
    FILE *f = fopen(TEST_DATA "/../config/clotho.example.yaml", "rb");
    EXPECT(f != NULL);
    while (f && (n = fread(part, 1, sizeof part, f)) > 0)
        buf_add(&example, part, n);
    if (f)
        fclose(f);
    EXPECT_INT(read_line(&c, "serve --print-config", &err), 0);
    capture(config_print, &c, CONFIG_SERVE);
    EXPECT_STR(printed, example.data ? example.data : "");
    config_free(&c);
    EXPECT_INT(read_yaml(&c, example.data, "--model m", &err), 0);
    EXPECT_INT(c.port, 8080);
    config_free(&c);
    buf_free(&example);
}

/* The caller's own settings are not these tests' business. */
static void clear_environment(void)
{
    char name[128];
    for (char **e = environ; *e;) {
        size_t n = strcspn(*e, "=");
        snprintf(name, sizeof name, "%.*s", (int)n, *e);
        if (strncmp(name, "CLOTHO_", 7) != 0 || unsetenv(name) != 0)
            e++; /* unsetenv moves the rest down */
    }
}

int main(void)
{
    clear_environment();
    test_defaults();
    test_forms();
    test_refusals();
    test_environment();
    test_file();
    test_overridden();
    test_request_body();
    test_study_bodies();
    test_study_refusals();
    test_help();
    test_print_config();
    test_example();
    free(printed);
    return test_failures();
}
