/* main.c - the host program: embeds LuaJIT, reads the options, runs chunks, scripts and the REPL.
 *
 *     segzero [options] SCRIPT ARGS...      a script, with `arg` set as lua does
 *     segzero plan RECIPE key=value...      require("segzero.tools.plan").main{RECIPE, ...}, unless there is a file named "plan"
 *     segzero                               the REPL on a terminal; a script from standard input otherwise
 *
 * It links nothing of the core: LuaJIT opens libsegzero.so by path, so `-e ''` starts in milliseconds. Where things
 * lie follows from the executable's own place, in this order:
 *     core:    EXE/libsegzero.so   EXE/build/libsegzero.so   EXE/../lib/segzero/libsegzero.so
 *     scripts: EXE                 EXE/../.. (build/address) EXE/../share/segzero
 *
 * Scripts see the module "segzero.host" (package.preload):
 *     host.executable, host.root, host.library, host.version     strings; library is nil when there is none
 *     host.on_interrupt(f)    f: cdata of a C function void (*)(int). Ctrl-C calls f(1) inside the signal handler, so f
 *                             may only set a flag; f(0) when the interrupt has been answered.
 *     host.call(f, ...)       -> true, results  or  false, message with traceback. Ctrl-C stops f.
 *     host.interrupted()      was Ctrl-C pressed outside host.call since the last question?
 *     host.isatty()           is standard input a terminal?
 *
 * Ctrl-C. The handler arms a debug hook that raises "interrupted!" and sets the core's flag, which long C loops poll.
 * Debug hooks do not fire inside loops that LuaJIT has compiled, so one that calls no C keeps running; a second Ctrl-C
 * within two seconds then ends the process. The REPL keeps what is typed into it uncompiled (see repl.lua).
 * Left out: Windows and macOS (/proc/self/exe), script bytecode checks, -l and -i.
 */
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <lauxlib.h>
#include <lua.h>
#include <luajit.h>
#include <lualib.h>

enum { EXIT_SCRIPT = 1, EXIT_USAGE = 2, LUAJIT_TCDATA = 10 };

static const char usage[] =
    "usage: segzero [options] [SCRIPT [ARGS...]]\n"
    "       segzero [options] plan RECIPE [key=value ...]    what memory a run of the recipe takes; loads nothing\n"
    "  -e CHUNK        run CHUNK (before the script; may be repeated)\n"
    "  --device D      where models live unless told otherwise: cpu or cuda\n"
    "  --threads N     threads of the CPU kernels (default: all cores)\n"
    "  --version       versions and places\n"
    "  --help          this text\n"
    "  --              end of options\n"
    "Without SCRIPT and -e: the REPL on a terminal, else a script from standard input (also as SCRIPT '-').\n"
    "A SCRIPT that is not in the current folder is looked for among those that came with segzero.\n"
    "segzero doctor: what this machine has and what will be used.\n"
    "Environment: SEGZERO_DEVICE and SEGZERO_THREADS are what --device and --threads set.\n";

/* ---- places ---------------------------------------------------------------------------------------------------- */

static char executable[PATH_MAX], root[PATH_MAX], library[PATH_MAX];

/* dst = dir + tail when that file is there; dst: PATH_MAX bytes. Returns 1 if so, else dst is "". */
static int place_find(char *dst, const char *dir, const char *tail, const char *probe)
{
    char path[PATH_MAX + 64];

    int n = snprintf(path, sizeof path, "%s%s%s", dir, tail, probe);
    if (n > 0 && n < PATH_MAX && access(path, R_OK) == 0) {
        path[strlen(dir) + strlen(tail)] = 0;
        if (realpath(path, dst))
            return 1;
    }
    dst[0] = 0;
    return 0;
}

static int places_set(void)
{
    char dir[PATH_MAX];

    ssize_t n = readlink("/proc/self/exe", executable, sizeof executable - 1);
    if (n <= 0) {
        fprintf(stderr, "segzero: cannot read /proc/self/exe to find its own place\n");
        return -1;
    }
    executable[n] = 0;
    memcpy(dir, executable, (size_t)n + 1);
    *strrchr(dir, '/') = 0;

    if (!place_find(library, dir, "/libsegzero.so", "") && !place_find(library, dir, "/build/libsegzero.so", ""))
        place_find(library, dir, "/../lib/segzero/libsegzero.so", "");
    static const char probe[] = "/lua/segzero/core/strict.lua";
    if (!place_find(root, dir, "", probe) && !place_find(root, dir, "/../..", probe) &&
        !place_find(root, dir, "/../share/segzero", probe)) {
        fprintf(stderr, "segzero: no lua/segzero beside %s, nor in ../share/segzero\n", executable);
        return -1;
    }
    return 0;
}

/* ---- Ctrl-C ---------------------------------------------------------------------------------------------------- */

static lua_State *main_state;
static pthread_t main_thread;
static void (*volatile core_interrupt)(int);       /* the core's sz_interrupt_set, once Lua has registered it */
static volatile sig_atomic_t call_depth;           /* > 0: user code runs, so Ctrl-C raises; else it is only noted */
static volatile sig_atomic_t interrupt_noted;
static volatile sig_atomic_t interrupt_pending;    /* pressed, and nothing has answered yet */
static volatile long interrupt_time;               /* of the last press, CLOCK_MONOTONIC milliseconds */

static void interrupt_answered(void)
{
    interrupt_pending = 0;
    if (core_interrupt)
        core_interrupt(0);
}

static void interrupt_hook(lua_State *L, lua_Debug *ar)
{
    (void)ar;
    lua_sethook(L, NULL, 0, 0);
    interrupt_answered();
    luaL_where(L, 0);       /* luaL_error would name the caller's line: a hook has no frame of its own */
    lua_pushliteral(L, "interrupted!");
    lua_concat(L, 2);
    lua_error(L);
}

static void on_sigint(int sig)
{
    static const char message[] = "\nsegzero: interrupted twice without an answer, leaving\n";
    struct timespec now;

    if (!pthread_equal(pthread_self(), main_thread)) {      /* a kernel's worker got it: the state is not its own */
        pthread_kill(main_thread, sig);
        return;
    }
    if (call_depth == 0) {
        interrupt_noted = 1;
        return;
    }
    clock_gettime(CLOCK_MONOTONIC, &now);
    long ms = (long)now.tv_sec * 1000 + now.tv_nsec / 1000000;
    if (interrupt_pending && ms - interrupt_time <= 2000) {
        ssize_t ignored = write(STDERR_FILENO, message, sizeof message - 1);
        (void)ignored;
        signal(SIGINT, SIG_DFL);        /* die of the signal, so that a shell loop around us stops too */
        raise(SIGINT);
        return;
    }
    interrupt_pending = 1;
    interrupt_time = ms;
    if (core_interrupt)
        core_interrupt(1);
    lua_sethook(main_state, interrupt_hook, LUA_MASKCALL | LUA_MASKRET | LUA_MASKCOUNT, 1);
}

/* No SA_RESTART: a blocked read returns, so that Ctrl-C also ends a wait for input. */
static void interrupt_install(lua_State *L)
{
    struct sigaction action = {.sa_handler = on_sigint};

    main_state = L;
    main_thread = pthread_self();
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
}

/* ---- protected calls ------------------------------------------------------------------------------------------- */

/* Whether where a message came from is worth showing: it begins with a place, "file:line: ", as Lua puts before it, or is Ctrl-C's. Others are
 * meant for who called the program. */
static bool wants_traceback(const char *message)
{
    if (strcmp(message, "interrupted!") == 0) return true;
    if (strstr(message, "\nstack traceback:")) return false;
    for (const char *p = message; *p && *p != '\n'; p++) {
        const char *end = p + 1;
        while (*end >= '0' && *end <= '9') end++;
        if (*p == ':' && end > p + 1 && *end == ':') return true;
    }
    return false;
}

/* The message of an error value as text, with the traceback from where it was raised where that is wanted. */
static int add_traceback(lua_State *L)
{
    if (!lua_isstring(L, 1)) {
        if (!luaL_callmeta(L, 1, "__tostring") || !lua_isstring(L, -1))
            lua_pushfstring(L, "(the error is a %s, not a message)", luaL_typename(L, 1));
        lua_replace(L, 1);
        lua_settop(L, 1);
    }
    if (wants_traceback(lua_tostring(L, 1)))
        luaL_traceback(L, L, lua_tostring(L, 1), 1);
    return 1;
}

/* lua_pcall with a traceback, during which Ctrl-C raises. Stack: f and its nargs arguments -> results, or a message. */
static int call_protected(lua_State *L, int nargs, int nresults)
{
    int base = lua_gettop(L) - nargs;

    lua_pushcfunction(L, add_traceback);
    lua_insert(L, base);
    if (call_depth == 0)
        interrupt_answered();
    call_depth++;
    int status = lua_pcall(L, nargs, nresults, base);
    call_depth--;
    if (call_depth == 0) {
        lua_sethook(L, NULL, 0, 0);     /* a press that came too late to be raised must not hit the next call */
        interrupt_answered();
    }
    lua_remove(L, base);
    return status;
}

static int report(lua_State *L, int status)
{
    if (status) {
        const char *message = lua_tostring(L, -1);
        fflush(stdout);
        fprintf(stderr, "segzero: %s\n", message ? message : "(an error without a message)");
        lua_pop(L, 1);
    }
    return status;
}

/* ---- the module segzero.host ----------------------------------------------------------------------------------- */

static int host_call(lua_State *L)
{
    luaL_checktype(L, 1, LUA_TFUNCTION);
    int status = call_protected(L, lua_gettop(L) - 1, LUA_MULTRET);
    lua_pushboolean(L, status == 0);
    lua_insert(L, 1);
    return lua_gettop(L);
}

static int host_interrupted(lua_State *L)
{
    lua_pushboolean(L, interrupt_noted);
    interrupt_noted = 0;
    return 1;
}

static int host_isatty(lua_State *L)
{
    lua_pushboolean(L, isatty(STDIN_FILENO));
    return 1;
}

/* The payload of a function's cdata, pointer or symbol, is its address. */
static int host_on_interrupt(lua_State *L)
{
    void *address = NULL;

    if (lua_type(L, 1) == LUAJIT_TCDATA)
        memcpy(&address, lua_topointer(L, 1), sizeof address);
    luaL_argcheck(L, address != NULL, 1, "expected a C function void (*)(int)");
    memcpy((void *)&core_interrupt, &address, sizeof address);
    return 0;
}

static int host_open(lua_State *L)
{
    static const luaL_Reg functions[] = {{"call", host_call},
                                         {"interrupted", host_interrupted},
                                         {"isatty", host_isatty},
                                         {"on_interrupt", host_on_interrupt},
                                         {NULL, NULL}};

    lua_newtable(L);
    for (const luaL_Reg *r = functions; r->name; r++) {
        lua_pushcfunction(L, r->func);
        lua_setfield(L, -2, r->name);
    }
    lua_pushstring(L, executable);
    lua_setfield(L, -2, "executable");
    lua_pushstring(L, root);
    lua_setfield(L, -2, "root");
    lua_pushstring(L, SZ_VERSION);
    lua_setfield(L, -2, "version");
    if (library[0]) {
        lua_pushstring(L, library);
        lua_setfield(L, -2, "library");
    }
    return 1;
}

/* ---- running --------------------------------------------------------------------------------------------------- */

/* The current folder first, then what came with segzero, then LuaJIT's own path (where lua-cjson is). */
static void set_paths(lua_State *L)
{
    lua_getglobal(L, "package");
    lua_getfield(L, -1, "path");
    lua_pushfstring(L, "./?.lua;./?/init.lua;%s/?.lua;%s/lua/?.lua;%s/lua/?/init.lua;", root, root, root);
    lua_insert(L, -2);
    lua_concat(L, 2);
    lua_setfield(L, -2, "path");
    lua_getfield(L, -1, "preload");
    lua_pushcfunction(L, host_open);
    lua_setfield(L, -2, "segzero.host");
    lua_pop(L, 2);
}

/* arg[0] is the script, arg[1..] what follows it, negative indices what came before; without a script, arg[0] is us. */
static void set_arg(lua_State *L, char **argv, int argc, int script)
{
    lua_newtable(L);
    for (int i = 0; i < argc; i++) {
        lua_pushstring(L, argv[i]);
        lua_rawseti(L, -2, i - (script < argc ? script : 0));
    }
    lua_setglobal(L, "arg");
}

/* Runs f = require(module)[field] with no arguments; field NULL: the require alone. */
static int run_module(lua_State *L, const char *module, const char *field)
{
    lua_getglobal(L, "require");
    lua_pushstring(L, module);
    int status = call_protected(L, 1, 1);
    if (status == 0 && field) {
        lua_getfield(L, -1, field);
        lua_remove(L, -2);
        status = lua_pcall(L, 0, 0, 0);
    } else if (status == 0) {
        lua_pop(L, 1);
    }
    return report(L, status);
}

static int run_plan(lua_State *L, char **args, int nargs)
{
    int status = luaL_loadstring(L, "require('segzero.tools.plan').main {...}");
    if (status == 0) {
        luaL_checkstack(L, nargs + 2, "too many arguments");
        for (int i = 0; i < nargs; i++)
            lua_pushstring(L, args[i]);
        status = call_protected(L, nargs, 0);
    }
    return report(L, status);
}

static int run_chunk(lua_State *L, const char *chunk)
{
    int status = luaL_loadbuffer(L, chunk, strlen(chunk), "=(command line)");
    if (status == 0)
        status = call_protected(L, 0, 0);
    return report(L, status);
}

/* name NULL or "-": standard input. nargs script arguments are passed as `...`. */
static int run_script(lua_State *L, const char *name, char **args, int nargs)
{
    char installed[PATH_MAX];

    if (name && strcmp(name, "-") == 0)
        name = NULL;
    if (name && name[0] != '/' && access(name, F_OK) != 0) {
        int n = snprintf(installed, sizeof installed, "%s/%s", root, name);
        if (n > 0 && n < PATH_MAX && access(installed, R_OK) == 0)
            name = installed;
    }
    int status = luaL_loadfile(L, name);
    if (status == 0) {
        luaL_checkstack(L, nargs + 2, "too many script arguments");
        for (int i = 0; i < nargs; i++)
            lua_pushstring(L, args[i]);
        status = call_protected(L, nargs, 0);
    }
    return report(L, status);
}

static int print_version(lua_State *L)
{
    printf("segzero %s\n%s\ncore    %s\nscripts %s\n", SZ_VERSION, LUAJIT_VERSION, library[0] ? library : "not built",
           root);
    lua_close(L);
    return 0;
}

/* ---- options --------------------------------------------------------------------------------------------------- */

typedef struct {
    const char *device, *threads;
    int script;             /* index in argv of the script; argc when there is none */
    int chunks;             /* how many -e */
    int version, help;
} options;

static int usage_error(const char *what, const char *name)
{
    fprintf(stderr, "segzero: %s '%s'\n%s", what, name, usage);
    return -1;
}

/* If argv[*i] is the option `name`, or name=value for a long one, sets *value and returns 1; -1: the value is missing. */
static int option_value(char **argv, int argc, int *i, const char *name, const char **value)
{
    size_t n = strlen(name);

    if (strncmp(argv[*i], name, n) != 0)
        return 0;
    if (argv[*i][n] == '=' && n > 2) {
        *value = argv[*i] + n + 1;
    } else if (argv[*i][n] == 0) {
        if (*i + 1 >= argc)
            return usage_error("a value is missing after", name);
        *value = argv[++*i];
    } else {
        return 0;
    }
    return 1;
}

static int options_check(const options *o)
{
    if (o->threads) {
        char *end;
        long n = strtol(o->threads, &end, 10);
        if (*end || n < 1 || n > 4096)
            return usage_error("--threads expects a number from 1 to 4096, got", o->threads);
    }
    if (o->device && strcmp(o->device, "cpu") != 0 && strcmp(o->device, "cuda") != 0) {
        const char *digits = strncmp(o->device, "cuda:", 5) == 0 ? o->device + 5 : "";
        if (!*digits || strspn(digits, "0123456789") != strlen(digits))
            return usage_error("--device expects cpu, cuda or cuda:N, got", o->device);
    }
    return 0;
}

/* With L: runs the -e chunks in order. Without: only collects and checks. Returns 0, or -1 with a message printed. */
static int options_read(options *o, char **argv, int argc, lua_State *L)
{
    int i;

    memset(o, 0, sizeof *o);
    for (i = 1; i < argc && argv[i][0] == '-' && argv[i][1]; i++) {
        const char *chunk = NULL;
        int found = 0;

        if (strcmp(argv[i], "--") == 0) {
            i++;
            break;
        }
        if (strcmp(argv[i], "--version") == 0 || strcmp(argv[i], "-v") == 0)
            o->version = found = 1;
        else if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0)
            o->help = found = 1;
        if (!found && (found = option_value(argv, argc, &i, "-e", &chunk)) == 0 &&
            (found = option_value(argv, argc, &i, "--device", &o->device)) == 0)
            found = option_value(argv, argc, &i, "--threads", &o->threads);
        if (found < 0)
            return -1;
        if (!found)
            return usage_error("unknown option", argv[i]);
        if (chunk) {
            o->chunks++;
            if (L && run_chunk(L, chunk))
                return -1;
        }
    }
    o->script = i < argc ? i : argc;
    return options_check(o);
}

int main(int argc, char **argv)
{
    options o;

    if (options_read(&o, argv, argc, NULL))
        return EXIT_USAGE;
    if (o.help) {
        fputs(usage, stdout);
        return 0;
    }
    /* Both must stand in the environment before the core is opened: OpenMP reads it once, when it is loaded. */
    if (o.device)
        setenv("SEGZERO_DEVICE", o.device, 1);
    if (o.threads) {
        setenv("SEGZERO_THREADS", o.threads, 1);
        setenv("OMP_NUM_THREADS", o.threads, 1);
    }
    if (places_set())
        return EXIT_SCRIPT;

    lua_State *L = luaL_newstate();
    if (!L) {
        fprintf(stderr, "segzero: no memory for a Lua state\n");
        return EXIT_SCRIPT;
    }
    luaL_openlibs(L);
    set_paths(L);
    set_arg(L, argv, argc, o.script);
    if (o.version)
        return print_version(L);
    interrupt_install(L);

    int status = run_module(L, "segzero.core.strict", NULL);
    if (status == 0)
        status = run_module(L, "segzero.core.aliases", NULL);
    if (status == 0)
        status = options_read(&o, argv, argc, L);
    if (status == 0 && o.script < argc && strcmp(argv[o.script], "plan") == 0 && access("plan", F_OK) != 0)
        status = run_plan(L, argv + o.script + 1, argc - o.script - 1);
    else if (status == 0 && o.script < argc && strcmp(argv[o.script], "doctor") == 0 && access("doctor", F_OK) != 0)
        status = run_module(L, "segzero.tools.doctor", "run");
    else if (status == 0 && o.script < argc)
        status = run_script(L, argv[o.script], argv + o.script + 1, argc - o.script - 1);
    else if (status == 0 && o.chunks == 0 && isatty(STDIN_FILENO))
        status = run_module(L, "segzero.tools.repl", "run");
    else if (status == 0 && o.chunks == 0)
        status = run_script(L, NULL, NULL, 0);
    signal(SIGINT, SIG_DFL);        /* the core goes away with the state, and so does its flag */
    lua_close(L);
    return status ? EXIT_SCRIPT : 0;
}
