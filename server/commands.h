/* The commands of the program, one file each. argv[0] is the command's name; the return value is
 * the exit status. */
#pragma once
#include "../config/config.h"
#include "../core/engine.h"

int command_serve(int argc, char **argv);
int command_sample(int argc, char **argv);
int command_bench(int argc, char **argv);

/* Read the settings of a command. Returns -1 to go on, else the exit status: --help and
 * --print-config are done with, and a wrong setting was reported on stderr. */
int command_config(struct config *, enum config_command, int argc, char **argv);

/* The engine that a configuration asks for. Strings are borrowed from it. */
struct engine_opts command_engine_opts(const struct config *);
