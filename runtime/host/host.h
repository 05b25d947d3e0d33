/* host.h - what the files of the host program share. See main.c for what the program does. */
#ifndef SZ_HOST_H
#define SZ_HOST_H

#include <limits.h>
#include <stdbool.h>

#include <lauxlib.h>
#include <lua.h>
#include <luajit.h>
#include <lualib.h>

/* ---- paths.c ---- */

/* Where things are; each ends with 0. library is "" when the core has not been built. */
typedef struct {
    char executable[PATH_MAX];
    char root[PATH_MAX];    /* the folder that holds lua/, recipes/, examples/ */
    char library[PATH_MAX]; /* libsegzero.so */
} host_paths;

extern host_paths sz_paths;

/* Fills sz_paths. Returns 0, or -1 with a message printed. */
int sz_paths_find(void);

/* ---- interrupt.c ---- */

/* Installs the handler of Ctrl-C, which interrupts what runs in L. */
void sz_interrupt_install(lua_State *L);
/* The core's sz_interrupt_set, which the handler calls too. */
void sz_interrupt_set_core(void (*set)(int));
/* Whether Ctrl-C was pressed outside sz_call_protected since the last call of this function. */
bool sz_interrupt_noted(void);

/* lua_pcall with a traceback; Ctrl-C raises "interrupted!" meanwhile. Stack: a function and its
 * nargs arguments -> its results, or one message. Returns lua_pcall's status. */
int sz_call_protected(lua_State *L, int nargs, int nresults);

/* ---- module.c ---- */

/* Opens the Lua module "segzero.host"; a lua_CFunction. */
int sz_host_open(lua_State *L);

/* ---- options.c ---- */

typedef struct {
    const char *device; /* NULL: not given */
    const char *threads;
    int script; /* index in argv of the script; argc when there is none */
    int chunks; /* number of -e options */
    bool version;
    bool help;
} host_options;

extern const char sz_usage[];

/* Reads the options that come before the script. With L it also runs the -e chunks in order.
 * Returns 0, or -1 with a message printed. */
int sz_options_read(host_options *o, char **argv, int argc, lua_State *L);

/* ---- run.c: each prints its error and returns 0 or Lua's status ---- */

int sz_run_chunk(lua_State *L, const char *chunk);
/* Runs `chunk` with args as its `...`; for calls of segzero's own modules. */
int sz_run_with_args(lua_State *L, const char *chunk, char **args, int nargs);
/* Runs require(module)[field](), outside sz_call_protected: the REPL answers Ctrl-C by itself. */
int sz_run_module(lua_State *L, const char *module, const char *field);
/* Runs the file `name` with args as its `...`; standard input if name is NULL or "-". */
int sz_run_script(lua_State *L, const char *name, char **args, int nargs);

#endif
