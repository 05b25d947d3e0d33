/* compiled.c - lets Ctrl-C reach loops that LuaJIT has compiled, where debug hooks do not fire; and
 * turns a compiler off that makes wrong code.
 *
 * LuaJIT's profiler can leave compiled code: code that is compiled while it is on tests a flag at
 * each line, and the handler of SIGPROF sets the flag. So the profiler is started, its timer is
 * stopped at once, and the handler of Ctrl-C calls the profiler's. The loop then goes on in the
 * interpreter, where the debug hook fires.
 *
 * The tests cost nothing that can be measured but in loops of a few machine instructions, which
 * take twice the time. So this is for scripts of a user's; the loops of our own scripts end.
 * Leaves out: a script that uses LuaJIT's profiler itself: what is compiled after its end has no
 * such tests, and a second Ctrl-C ends it.
 */
#include "host.h"
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>

/* ---- a compiler that cannot be used ---- */

/* LuaJIT for 64-bit ARM made wrong code until this second of September 2023: a side trace took the
 * address of Lua's stack from a place where half of it was another value, and wrote there
 * (tests/aarch64/README.md). Versions name the second of their last change since August 2023; those
 * before, such as Debian 12's, are called 2.1.0-beta3. */
enum { ARM64_MENDED = 1695257292 };

void sz_compiled_choose(lua_State *L)
{
#ifdef __aarch64__
    static const char before[] = "LuaJIT 2.1.";

    lua_getglobal(L, "jit");
    lua_getfield(L, -1, "version");
    const char *version = lua_tostring(L, -1);
    bool is_known = version && strncmp(version, before, sizeof before - 1) == 0;
    if (!is_known || atol(version + sizeof before - 1) < ARM64_MENDED)
        luaJIT_setmode(L, 0, LUAJIT_MODE_ENGINE | LUAJIT_MODE_OFF);
    lua_pop(L, 2);
#else
    (void)L;
#endif
}

/* ---- leaving compiled code ---- */

static void (*volatile set_flag)(int); /* the profiler's handler of SIGPROF; NULL: not started */

/* What the profiler calls after it has left compiled code. The debug hook does the work. */
static void ignore_sample(void *data, lua_State *L, int samples, int state)
{
    (void)data;
    (void)L;
    (void)samples;
    (void)state;
}

void sz_compiled_prepare(lua_State *L)
{
    struct sigaction before;
    struct sigaction profiler;
    static const struct itimerval off;

    if (set_flag) return;
    sigaction(SIGPROF, NULL, &before);
    luaJIT_profile_start(L, "li1000000000", ignore_sample, NULL); /* tests by line; milliseconds */
    setitimer(ITIMER_PROF, &off, NULL);

    /* A SIGPROF of somebody else's does what it did before. */
    sigaction(SIGPROF, &before, &profiler);
    bool found = profiler.sa_handler != SIG_DFL && profiler.sa_handler != SIG_IGN;
    if (found) set_flag = profiler.sa_handler;
}

void sz_compiled_leave(void)
{
    if (set_flag) set_flag(SIGPROF);
}
