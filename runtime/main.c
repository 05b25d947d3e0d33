/* main.c - the host program: embeds LuaJIT, reads the options, runs chunks, scripts and the REPL.
 *
 *     segzero [options] SCRIPT ARGS...      a script, with `arg` set as lua does
 *     segzero [options] COMMAND ARGS...     a row of lua/segzero/commands/init.lua
 *     segzero                               the REPL on a terminal; a script from standard input
 *                                           otherwise
 *
 * A file that has the name of a command, such as plan, is run as ./plan.
 * The program links nothing of the core: LuaJIT opens libsegzero.so by path, so `-e ''` starts in
 * milliseconds. The parts are in runtime/host: paths.c, options.c, ranks.c, run.c, streams.c,
 * spawn.c (ranks without MPI), processors.c (limits on threads), passing.c (signals for ranks),
 * interrupt.c (Ctrl-C and stops), compiled.c and exits.c (what they need), message.c (errors),
 * watchdog.c (time limits) and module.c (what scripts see as "segzero.host").
 * Leaves out: Windows and macOS, script bytecode checks.
 */
#include "host/host.h"
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Appends `list` to the search path on top of the stack, less the entries that depend on the
 * current folder. LUA_PATH often has such entries: `luarocks path` writes ./?.lua. */
static void append_path(luaL_Buffer *b, const char *list)
{
    while (*list) {
        size_t n = strcspn(list, ";");
        if (*list == '/') {
            luaL_addlstring(b, list, n);
            luaL_addchar(b, ';');
        }
        list += n;
        if (*list) list++;
    }
}

/* Sets package[key] to `first` and what LuaJIT had there. Stack: package. */
static void set_path(lua_State *L, const char *key, const char *first)
{
    luaL_Buffer b;

    lua_getfield(L, -1, key);
    lua_insert(L, -2); /* the buffer uses the top of the stack */
    const char *before = lua_tostring(L, -2);
    luaL_buffinit(L, &b);
    append_path(&b, first);
    append_path(&b, before);
    luaL_pushresult(&b);
    lua_setfield(L, -2, key);
    lua_remove(L, -2);
}

/* Searches what came with segzero, then LuaJIT's own path, where lua-cjson is. The current folder
 * is not in it: a folder from elsewhere may hold a file that is named like one of these modules.
 * lua/segzero/core/user_modules.lua finds a user's own modules. */
static void set_paths(lua_State *L)
{
    const char *root = sz_paths.root;

    lua_getglobal(L, "package");
    const char *ours = lua_pushfstring(L, "%s/?.lua;%s/lua/?.lua;%s/lua/?/init.lua", root, root,
                                       root);
    lua_insert(L, -2);
    set_path(L, "path", ours);
    set_path(L, "cpath", "");

    lua_getfield(L, -1, "preload");
    lua_pushcfunction(L, sz_host_open);
    lua_setfield(L, -2, "segzero.host");
    lua_pop(L, 3);
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
    sz_compiled_choose(L);
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
    return sz_run_with_args(L, "require('segzero.commands.help').print()", NULL, 0);
}

/* Whether the table of commands has a row for this word. What may be a file's name is none. */
static bool is_command(lua_State *L, const char *word)
{
    bool found = false;
    int top = lua_gettop(L);

    if (strpbrk(word, "/.")) return false;
    lua_getglobal(L, "require");
    lua_pushliteral(L, "segzero.commands");
    if (lua_pcall(L, 1, 1, 0) == 0) {
        lua_getfield(L, -1, "by_name");
        lua_getfield(L, -1, word);
        found = lua_istable(L, -1);
    } else {
        fprintf(stderr, "segzero: %s\n", lua_tostring(L, -1));
    }
    lua_settop(L, top);
    return found;
}

static bool is_python(const char *script)
{
    size_t length = strlen(script);

    return length > 3 && strcmp(script + length - 3, ".py") == 0;
}

/* Runs what follows the options. */
static int run(lua_State *L, const host_options *o, char **argv, int argc)
{
    /* A command of segzero, or a script. */
    if (o->script < argc) {
        char **words = argv + o->script;
        int n = argc - o->script;

        if (is_command(L, words[0]))
            return sz_run_with_args(L, "require('segzero.commands').main(...)", words, n);
        if (is_python(words[0]))
            return sz_run_with_args(L, "require('segzero.tools.scripts').python(...)", words, n);
        return sz_run_script(L, words[0], words + 1, n - 1);
    }

    /* Nothing but options: the -e chunks have been run; without any, read standard input. */
    if (o->chunks > 0) return 0;
    if (isatty(STDIN_FILENO)) return sz_run_module(L, "segzero.repl", "run");
    return sz_run_script(L, NULL, NULL, 0);
}

int main(int argc, char **argv)
{
    static const char prelude[] = "require 'segzero.core.strict' require 'segzero.core.aliases' "
                                  "require 'segzero.core.user_modules'";
    host_options o;

    sz_streams_prepare();
    sz_exits_watch();

    /* Read and check the options before anything is loaded. */
    if (sz_options_read(&o, argv, argc, NULL)) return EXIT_USAGE;
    set_environment(&o);
    if (sz_paths_find()) return EXIT_SCRIPT;
    if (o.version) return print_version();
    int job = 0;
    if (o.ranks && !sz_ranks_launched() && sz_ranks_start(&o, argv, argc, &job)) return job;

    sz_ranks_remember(&o, argv, argc);
    sz_ranks_set_threads();
    sz_processors_set_environment();
    lua_State *L = state_new(&o, argv, argc);
    if (!L) return EXIT_SCRIPT;

    int status;
    if (o.help) {
        status = print_help(L);
    } else {
        /* The second reading of the options runs the -e chunks. */
        sz_interrupt_install(L);
        sz_watchdog_install(L);
        status = sz_run_chunk(L, prelude);
        if (status == 0) status = sz_options_read(&o, argv, argc, L);
        if (status == 0) status = run(L, &o, argv, argc);
        /* The core goes away with the state, and so does the flag that the handler would set. */
        signal(SIGINT, SIG_DFL);
    }
    lua_close(L);
    /* A pipe that was closed ends the program as it ends any other. */
    if (sz_stop_signal() == SIGPIPE) raise(SIGPIPE);
    return status;
}
