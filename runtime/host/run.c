/* run.c - runs chunks and scripts and prints their errors.
 *
 * A name that is not a file here is looked up in the folder that came with segzero; if it is not
 * there either, one line names the nearest script (lua/segzero/tools/scripts.lua). If two different
 * files have the name, one line asks which is meant.
 */
#include "host.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Prints and pops the message if status says that there is one. Returns 0 or the exit status. */
static int report(lua_State *L, int status)
{
    if (status == 0) return 0;
    const char *message = lua_tostring(L, -1);
    status = sz_report("segzero", message ? message : "(an error without a message)", EXIT_SCRIPT);
    lua_pop(L, 1);
    return status;
}

/* Calls the chunk on top of the stack with args. load_status: what loading it returned. */
static int run_loaded(lua_State *L, int load_status, char **args, int nargs)
{
    if (load_status) return report(L, load_status);
    luaL_checkstack(L, nargs + 2, "too many script arguments");
    for (int i = 0; i < nargs; i++) lua_pushstring(L, args[i]);
    sz_interrupt_is_script(true);
    int status = report(L, sz_call_protected(L, nargs, 0));
    sz_interrupt_is_script(false);
    /* A script may go on after a run of its that was stopped; it has not succeeded. */
    return status ? status : sz_stop_status();
}

int sz_run_chunk(lua_State *L, const char *chunk)
{
    int status = luaL_loadbuffer(L, chunk, strlen(chunk), "=(command line)");
    return run_loaded(L, status, NULL, 0);
}

int sz_run_with_args(lua_State *L, const char *chunk, char **args, int nargs)
{
    return run_loaded(L, luaL_loadstring(L, chunk), args, nargs);
}

int sz_run_module(lua_State *L, const char *module, const char *field)
{
    sz_compiled_prepare(L);
    lua_getglobal(L, "require");
    lua_pushstring(L, module);
    int status = sz_call_protected(L, 1, 1);
    if (status == 0) {
        lua_getfield(L, -1, field);
        lua_remove(L, -2);
        status = lua_pcall(L, 0, 0, 0);
    }
    return report(L, status);
}

/* Sets `installed` to the file `name` of those that came with segzero. Returns whether there is
 * one; a name that begins with / or . is a path of the user's. */
static bool find_installed(const char *name, char *installed)
{
    if (name[0] == '/' || name[0] == '.') return false;
    int n = snprintf(installed, PATH_MAX, "%s/%s", sz_paths.root, name);
    return n > 0 && n < PATH_MAX && access(installed, R_OK) == 0;
}

static bool same_file(const char *a, const char *b)
{
    struct stat of_a, of_b;
    if (stat(a, &of_a) != 0 || stat(b, &of_b) != 0) return false;
    return of_a.st_dev == of_b.st_dev && of_a.st_ino == of_b.st_ino;
}

/* Whether the file is one of segzero's own recipes or examples, whose loops end. */
static bool is_own_script(const char *name)
{
    static const char *const folders[] = { "/recipes/", "/examples/" };
    size_t root = strlen(sz_paths.root);
    char path[PATH_MAX];

    if (!realpath(name, path) || strncmp(path, sz_paths.root, root) != 0) return false;
    for (int i = 0; i < 2; i++)
        if (strncmp(path + root, folders[i], strlen(folders[i])) == 0) return true;
    return false;
}

int sz_run_script(lua_State *L, const char *name, char **args, int nargs)
{
    char installed[PATH_MAX];

    if (name && strcmp(name, "-") == 0) name = NULL;
    if (!name) {
        sz_compiled_prepare(L);
        return run_loaded(L, luaL_loadfile(L, NULL), args, nargs);
    }

    /* A file here, or one that came with segzero. A downloaded folder may hold a file that is named
     * like one of ours, so the user says which is meant. */
    bool is_ours = find_installed(name, installed);
    bool is_here = access(name, F_OK) == 0;
    if (is_ours && is_here && !same_file(name, installed)) {
        fprintf(stderr, "segzero: %s is in this folder and came with segzero: say ./%s or %s\n",
                name, name, installed);
        return EXIT_USAGE;
    }
    if (is_here) {
        if (!is_own_script(name)) sz_compiled_prepare(L);
        return run_loaded(L, luaL_loadfile(L, name), args, nargs);
    }
    if (is_ours) return run_loaded(L, luaL_loadfile(L, installed), args, nargs);

    /* Neither: an error that names the nearest. */
    char *missing[] = { (char *)name };
    return sz_run_with_args(L, "require('segzero.tools.scripts').missing(...)", missing, 1);
}
