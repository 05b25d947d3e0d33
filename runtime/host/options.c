/* options.c - the command line up to the script: parsing and checks.
 *
 * What --help says about each option is a table in lua/segzero/commands/init.lua.
 * A bad option is one line with the option, its value and the cure. Leaves out: -l and -i of lua,
 * and what follows the script, which belongs to the script.
 */
#include "host.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Prints "segzero: WHAT 'VALUE'; CURE" and returns -1. */
static int bad_option(const char *what, const char *value, const char *cure)
{
    fprintf(stderr, "segzero: %s '%s'; %s\n", what, value, cure);
    return -1;
}

static const char list_options[] = "segzero --help lists the options";
static const char no_modules[] = "in place of python3 -m verl.trainer.main write segzero "
                                 "recipes/refcocog_grpo.lua";

/* If argv[*i] is the option `name`, or name=value for a long option, sets *value, moves *i to the
 * last argument used and returns 1. Returns 0 for another option, -1 if the value is missing. */
static int option_value(char **argv, int argc, int *i, const char *name, const char **value)
{
    size_t n = strlen(name);

    if (strncmp(argv[*i], name, n) != 0) return 0;
    if (argv[*i][n] == '=' && n > 2) {
        *value = argv[*i] + n + 1;
    } else if (argv[*i][n] == 0) {
        if (*i + 1 >= argc) return bad_option("a value is missing after", name, list_options);
        *value = argv[++*i];
    } else {
        return 0;
    }
    return 1;
}

static int check_threads(const char *threads)
{
    char *end;
    long n = strtol(threads, &end, 10);
    if (*end || n < 1 || n > 4096)
        return bad_option("--threads expects a number from 1 to 4096, got", threads,
                          "leave it out to use all cores that it may");
    return 0;
}

static int check_device(const char *device)
{
    if (strcmp(device, "cpu") == 0 || strcmp(device, "cuda") == 0 || strcmp(device, "cuda:0") == 0)
        return 0;
    if (strncmp(device, "cuda:", 5) == 0)
        return bad_option("--device expects cpu or cuda, got", device,
                          "segzero uses one GPU, and CUDA_VISIBLE_DEVICES=N picks which");
    return bad_option("--device expects cpu or cuda, got", device,
                      "cpu is the default where there is no GPU");
}

/* The options that stand alone. Returns whether s is one. */
static bool read_flag(host_options *o, const char *s)
{
    if (strcmp(s, "--version") == 0 || strcmp(s, "-v") == 0) o->version = true;
    else if (strcmp(s, "--help") == 0 || strcmp(s, "-h") == 0) o->help = true;
    else return false;
    return true;
}

/* Reads the option at argv[*i] and its value. *chunk is set by -e. Returns 0 or -1. */
static int read_option(host_options *o, char **argv, int argc, int *i, const char **chunk)
{
    if (read_flag(o, argv[*i])) return 0;

    int found = option_value(argv, argc, i, "-e", chunk);
    if (found == 0) found = option_value(argv, argc, i, "--device", &o->device);
    if (found == 0) found = option_value(argv, argc, i, "--threads", &o->threads);
    if (found == 0) found = option_value(argv, argc, i, "--ranks", &o->ranks);

    if (found < 0) return -1;
    /* Users of Seg-Zero replace python3 in `python3 -m verl.trainer.main`. */
    if (found == 0 && strcmp(argv[*i], "-m") == 0)
        return bad_option("unknown option", "-m", no_modules);
    if (found == 0) return bad_option("unknown option", argv[*i], list_options);
    return 0;
}

int sz_options_read(host_options *o, char **argv, int argc, lua_State *L)
{
    int i;

    memset(o, 0, sizeof *o);
    /* Options end at the first argument that is not one; "-" is standard input. */
    for (i = 1; i < argc && argv[i][0] == '-' && argv[i][1]; i++) {
        const char *chunk = NULL;

        if (strcmp(argv[i], "--") == 0) {
            i++;
            break;
        }
        if (read_option(o, argv, argc, &i, &chunk)) return -1;
        if (chunk) {
            o->chunks++;
            if (L) sz_compiled_prepare(L);
            int status = L ? sz_run_chunk(L, chunk) : 0;
            if (status) return status;
        }
    }
    o->script = i < argc ? i : argc;

    if (o->threads && check_threads(o->threads)) return -1;
    return o->device ? check_device(o->device) : 0;
}
