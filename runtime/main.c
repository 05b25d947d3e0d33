/* main.c - the host program: embeds LuaJIT, reads the options, runs chunks, scripts and the REPL.
 *
 *     segzero [options] SCRIPT ARGS...      a script, with `arg` set as lua does
 *     segzero plan RECIPE key=value...      require("segzero.tools.plan").main{RECIPE, ...}
 *     segzero doctor                        require("segzero.tools.doctor").run()
 *     segzero help                          the same as --help
 *     segzero                               the REPL on a terminal; a script from standard input
 *                                           otherwise
 *
 * A file named plan, doctor or help in the current folder is run instead of the command.
 * The program links nothing of the core: LuaJIT opens libsegzero.so by path, so `-e ''` starts in
 * milliseconds. The parts are in runtime/host: paths.c, options.c, run.c, interrupt.c (Ctrl-C) and
 * module.c (what scripts see as "segzero.host").
 * Leaves out: Windows and macOS, script bytecode checks.
 */
#include "host/host.h"
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { EXIT_SCRIPT = 1, EXIT_USAGE = 2 };

/* Searches the current folder first, then what came with segzero, then LuaJIT's own path, where
 * lua-cjson is. */
static void set_paths(lua_State *L)
{
    const char *root = sz_paths.root;

    lua_getglobal(L, "package");
    lua_getfield(L, -1, "path");
    lua_pushfstring(L, "./?.lua;./?/init.lua;%s/?.lua;%s/lua/?.lua;%s/lua/?/init.lua;", root, root,
                    root);
    lua_insert(L, -2);
    lua_concat(L, 2);
    lua_setfield(L, -2, "path");

    lua_getfield(L, -1, "preload");
    lua_pushcfunction(L, sz_host_open);
    lua_setfield(L, -2, "segzero.host");
    lua_pop(L, 2);
}

/* arg[0] is the script, arg[1..] what follows it, and negative indices what comes before. Without
 * a script, arg[0] is the program. */
static void set_arg(lua_State *L, char **argv, int argc, int script)
{
    int zero = script < argc ? script : 0;

    lua_newtable(L);
    for (int i = 0; i < argc; i++) {
        lua_pushstring(L, argv[i]);
        lua_rawseti(L, -2, i - zero);
    }
    lua_setglobal(L, "arg");
}

/* A state with the standard libraries, segzero's paths and `arg`; NULL with a message printed. */
static lua_State *state_new(const host_options *o, char **argv, int argc)
{
    lua_State *L = luaL_newstate();
    if (!L) {
        fprintf(stderr, "segzero: no memory for a Lua state\n");
        return NULL;
    }
    luaL_openlibs(L);
    set_paths(L);
    set_arg(L, argv, argc, o->script);
    return L;
}

/* The environment must be set before the core is opened: OpenMP reads it once, when it loads. */
static void set_environment(const host_options *o)
{
    if (o->device) setenv("SEGZERO_DEVICE", o->device, 1);
    if (o->threads) {
        setenv("SEGZERO_THREADS", o->threads, 1);
        setenv("OMP_NUM_THREADS", o->threads, 1);
    }
}

static int print_version(void)
{
    const char *core = sz_paths.library[0] ? sz_paths.library : "not built";
    printf("segzero %s\n%s\ncore    %s\nscripts %s\n", SZ_VERSION, LUAJIT_VERSION, core,
           sz_paths.root);
    return 0;
}

static int print_help(lua_State *L)
{
    fputs(sz_usage, stdout);
    return sz_run_with_args(L, "require('segzero.tools.scripts').print()", NULL, 0);
}

/* Whether the script's name is the command, and no file has this name. */
static bool is_command(const char *script, const char *command)
{
    return strcmp(script, command) == 0 && access(command, F_OK) != 0;
}

/* Runs what follows the options. */
static int run(lua_State *L, const host_options *o, char **argv, int argc)
{
    /* A command of segzero, or a script. */
    if (o->script < argc) {
        const char *script = argv[o->script];
        char **args = argv + o->script + 1;
        int nargs = argc - o->script - 1;

        if (is_command(script, "plan"))
            return sz_run_with_args(L, "require('segzero.tools.plan').main {...}", args, nargs);
        if (is_command(script, "doctor")) return sz_run_module(L, "segzero.tools.doctor", "run");
        if (is_command(script, "help")) return print_help(L);
        return sz_run_script(L, script, args, nargs);
    }

    /* Nothing but options: the -e chunks have been run; without any, read standard input. */
    if (o->chunks > 0) return 0;
    if (isatty(STDIN_FILENO)) return sz_run_module(L, "segzero.tools.repl", "run");
    return sz_run_script(L, NULL, NULL, 0);
}

int main(int argc, char **argv)
{
    static const char prelude[] = "require 'segzero.core.strict' require 'segzero.core.aliases'";
    host_options o;

    /* Read and check the options before anything is loaded. */
    if (sz_options_read(&o, argv, argc, NULL)) return EXIT_USAGE;
    set_environment(&o);
    if (sz_paths_find()) return EXIT_SCRIPT;
    if (o.version) return print_version();

    lua_State *L = state_new(&o, argv, argc);
    if (!L) return EXIT_SCRIPT;

    int status;
    if (o.help) {
        status = print_help(L);
    } else {
        /* The second reading of the options runs the -e chunks. */
        sz_interrupt_install(L);
        status = sz_run_chunk(L, prelude);
        if (status == 0) status = sz_options_read(&o, argv, argc, L);
        if (status == 0) status = run(L, &o, argv, argc);
        /* The core goes away with the state, and so does the flag that the handler would set. */
        signal(SIGINT, SIG_DFL);
    }
    lua_close(L);
    return status ? EXIT_SCRIPT : 0;
}
