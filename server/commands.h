/* The commands of the program, one file each. argv[0] is the command's name; the return value is
 * the exit status. */
#pragma once
#include "../config/config.h"
#include "../core/engine.h"

int command_serve(int argc, char **argv);
int command_sample(int argc, char **argv);
int command_bounds(int argc, char **argv);
int command_twist(int argc, char **argv); /* learn, list, show, remove */
int command_learn(int argc, char **argv);
int command_bench(int argc, char **argv);

/* Read the settings of a command. Returns -1 to go on, else the exit status: --help and
 * --print-config are done with, and a wrong setting was reported on stderr. */
int command_config(struct config *, enum config_command, int argc, char **argv);

/* Have the folder of twists there, if one is named: made if it is missing. writes: it must be
 * writable; else that it is not is only warned of. */
int command_open_twists(const struct config *, bool writes, struct err *err);

/* The list of --particles; returns how many. A text that is none is refused. */
enum { MAX_POPULATIONS = 16, MAX_POPULATION = 1 << 24 };
int command_populations(const struct config *, int out[MAX_POPULATIONS], struct err *err);

/* The engine that a configuration asks for. Strings are borrowed from it. */
struct engine_opts command_engine_opts(const struct config *);
