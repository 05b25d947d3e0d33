/* module.c - the Lua module "segzero.host", which package.preload makes available to scripts.
 *
 *     host.executable, host.root, host.library, host.version
 *                             strings; library is nil if the core has not been built
 *     host.on_interrupt(f)    f: cdata of a C function void (*)(int). Ctrl-C calls f(1) inside the
 *                             signal handler, so f may only set a flag; f(0) when the interrupt has
 *                             been answered
 *     host.call(f, ...)       -> true, results  or  false, message with traceback. Ctrl-C stops f
 *     host.interrupted()      whether Ctrl-C was pressed outside host.call since the last question
 *     host.isatty()           whether standard input is a terminal
 *     host.arm(on), host.hold(on), host.stop_signal() -> number | 0
 *                             signals that stop a training run; see lua/segzero/core/stop.lua
 *     host.processors() -> { online =, affinity =, quota = (nil: no limit), usable = }
 *                             what this process may use (processors.c)
 *     host.limit(seconds, left, what, answer), host.limit() -> seconds left
 *                             the time limit of a reward; see lua/segzero/reward/guard.lua
 *     host.start_ranks(n)     ends the program by running it again with --ranks n; nil if this
 *                             process cannot: it reads standard input, or a launcher started it
 *     host.explain(message) -> text
 *                             in a message handler: what the user sees of the error (message.c)
 *     host.fail(name, message, status)
 *                             prints "NAME: message" and ends the program; with 128 + n if signal n
 *                             was the reason
 */
#include "host.h"
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LUAJIT_TCDATA = 10 }; /* lua_type of cdata, which LuaJIT's headers do not name */

static int host_call(lua_State *L)
{
    luaL_checktype(L, 1, LUA_TFUNCTION);
    int status = sz_call_protected(L, lua_gettop(L) - 1, LUA_MULTRET);
    lua_pushboolean(L, status == 0);
    lua_insert(L, 1);
    return lua_gettop(L);
}

static int host_interrupted(lua_State *L)
{
    lua_pushboolean(L, sz_interrupt_noted());
    return 1;
}

static int host_processors_found(lua_State *L)
{
    const host_processors *p = sz_processors_find();
    lua_newtable(L);
    lua_pushinteger(L, p->online);
    lua_setfield(L, -2, "online");
    lua_pushinteger(L, p->affinity);
    lua_setfield(L, -2, "affinity");
    lua_pushinteger(L, p->usable);
    lua_setfield(L, -2, "usable");
    if (p->quota > 0) {
        lua_pushnumber(L, p->quota);
        lua_setfield(L, -2, "quota");
    }
    return 1;
}

static int host_isatty(lua_State *L)
{
    lua_pushboolean(L, isatty(STDIN_FILENO));
    return 1;
}

static int host_arm(lua_State *L)
{
    sz_stop_arm(lua_toboolean(L, 1));
    return 0;
}

static int host_hold(lua_State *L)
{
    sz_stop_hold(lua_toboolean(L, 1));
    return 0;
}

static int host_stop_signal(lua_State *L)
{
    lua_pushinteger(L, sz_stop_signal());
    return 1;
}

static int host_limit(lua_State *L)
{
    if (lua_isnoneornil(L, 1)) {
        lua_pushnumber(L, sz_limit_end(L));
        return 1;
    }
    sz_limit_begin(L, luaL_checknumber(L, 1), luaL_checknumber(L, 2), luaL_checkstring(L, 3),
                   luaL_checkstring(L, 4));
    return 0;
}

static int host_start_ranks(lua_State *L)
{
    int status;

    if (!sz_ranks_restart(luaL_checkint(L, 1), &status)) return 0;
    exit(status);
}

static int host_fail(lua_State *L)
{
    int status = sz_report(luaL_checkstring(L, 1), luaL_checkstring(L, 2), luaL_checkint(L, 3));
    if (sz_stop_signal() == SIGPIPE) raise(SIGPIPE);
    exit(status);
}

/* The payload of a function's cdata, whether pointer or symbol, is its address. */
static int host_on_interrupt(lua_State *L)
{
    void *address = NULL;
    void (*set)(int);

    if (lua_type(L, 1) == LUAJIT_TCDATA) memcpy(&address, lua_topointer(L, 1), sizeof address);
    luaL_argcheck(L, address != NULL, 1, "expected a C function void (*)(int)");
    memcpy(&set, &address, sizeof set);
    sz_interrupt_set_core(set);
    return 0;
}

static void set_string(lua_State *L, const char *key, const char *value)
{
    lua_pushstring(L, value);
    lua_setfield(L, -2, key);
}

int sz_host_open(lua_State *L)
{
    static const luaL_Reg functions[] = { { "arm", host_arm },
                                          { "call", host_call },
                                          { "explain", sz_explain },
                                          { "fail", host_fail },
                                          { "hold", host_hold },
                                          { "interrupted", host_interrupted },
                                          { "isatty", host_isatty },
                                          { "limit", host_limit },
                                          { "on_interrupt", host_on_interrupt },
                                          { "processors", host_processors_found },
                                          { "start_ranks", host_start_ranks },
                                          { "stop_signal", host_stop_signal },
                                          { NULL, NULL } };

    /* The functions. */
    lua_newtable(L);
    for (const luaL_Reg *r = functions; r->name; r++) {
        lua_pushcfunction(L, r->func);
        lua_setfield(L, -2, r->name);
    }

    /* The strings. */
    set_string(L, "executable", sz_paths.executable);
    set_string(L, "root", sz_paths.root);
    set_string(L, "version", SZ_VERSION);
    if (sz_paths.library[0]) set_string(L, "library", sz_paths.library);
    return 1;
}
