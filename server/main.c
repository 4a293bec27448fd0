#include <stdio.h>
#include <string.h>

#include "commands.h"

static int command_version(int argc, char **argv)
{
    (void)argc, (void)argv;
    puts("clotho " CLOTHO_VERSION);
    return 0;
}

static int command_help(int argc, char **argv);

static const struct command {
    const char *name, *help;
    int (*run)(int argc, char **argv);
} commands[] = {
    {"serve", "answer requests over HTTP", command_serve},
    {"sample", "draw weighted samples once, without a server", command_sample},
    {"bounds", "bound a normalising constant, without a server", command_bounds},
    {"twist", "learn, list, show and remove twists", command_twist},
    {"bench", "measure this machine with a model", command_bench},
    {"version", "print the version", command_version},
    {"help", "print this page", command_help},
};
enum { N_COMMANDS = sizeof commands / sizeof *commands };

static void print_usage(FILE *out)
{
    fputs("usage: clotho COMMAND [--flag value]...\n\n"
          "Weighted samples from language model posteriors, by twisted sequential Monte Carlo.\n\n",
          out);
    for (int i = 0; i < N_COMMANDS; i++)
        fprintf(out, "  %-8s %s\n", commands[i].name, commands[i].help);
    fputs("\nclotho COMMAND --help says more about a command.\n", out);
}

static int command_help(int argc, char **argv)
{
    (void)argc, (void)argv;
    print_usage(stdout);
    return 0;
}

static const struct command *find_command(const char *name)
{
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0)
        name = "help";
    if (strcmp(name, "--version") == 0)
        name = "version";
    for (int i = 0; i < N_COMMANDS; i++)
        if (strcmp(commands[i].name, name) == 0)
            return &commands[i];
    return NULL;
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        print_usage(stderr);
        return 2;
    }
    const struct command *c = find_command(argv[1]);
    if (c)
        return c->run(argc - 1, argv + 1);
    fprintf(stderr, "clotho: there is no command %s; see clotho help\n", argv[1]);
    return 2;
}
