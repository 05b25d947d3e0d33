/* interrupt.c - Ctrl-C, and the protected calls that it interrupts.
 *
 * The signal handler arms a debug hook that raises "interrupted!" and sets the core's flag, which
 * long C loops poll. Debug hooks do not fire inside loops that LuaJIT has compiled, so a loop that
 * calls no C keeps running; a second Ctrl-C within two seconds ends the process. The REPL does not
 * compile what is typed into it (see lua/segzero/tools/repl.lua).
 */
#include "host.h"
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { SECOND_PRESS_MS = 2000 }; /* two presses within this time end the process */

static lua_State *main_state;
static pthread_t main_thread;
static void (*volatile core_interrupt)(int);    /* the core's flag; NULL until Lua registers it */
static volatile sig_atomic_t call_depth;        /* > 0: user code runs, so Ctrl-C raises */
static volatile sig_atomic_t interrupt_noted;   /* pressed while no user code ran */
static volatile sig_atomic_t interrupt_pending; /* pressed, and nothing has answered yet */
static volatile long interrupt_time;            /* the last press, CLOCK_MONOTONIC milliseconds */

void sz_interrupt_set_core(void (*set)(int)) { core_interrupt = set; }

bool sz_interrupt_noted(void)
{
    bool noted = interrupt_noted;
    interrupt_noted = 0;
    return noted;
}

static void interrupt_answered(void)
{
    interrupt_pending = 0;
    if (core_interrupt) core_interrupt(0);
}

static void interrupt_hook(lua_State *L, lua_Debug *ar)
{
    (void)ar;
    lua_sethook(L, NULL, 0, 0);
    interrupt_answered();

    /* luaL_error would name the caller's line, because a hook has no frame of its own. */
    luaL_where(L, 0);
    lua_pushliteral(L, "interrupted!");
    lua_concat(L, 2);
    lua_error(L);
}

/* Dies of the signal, so that a shell loop around this process stops too. */
static void leave(void)
{
    static const char message[] = "\nsegzero: interrupted twice without an answer, leaving\n";
    ssize_t ignored = write(STDERR_FILENO, message, sizeof message - 1);
    (void)ignored;
    signal(SIGINT, SIG_DFL);
    raise(SIGINT);
}

static void on_sigint(int sig)
{
    struct timespec now;

    /* Another thread, such as a kernel's worker, must not touch the Lua state. */
    if (!pthread_equal(pthread_self(), main_thread)) {
        pthread_kill(main_thread, sig);
        return;
    }
    if (call_depth == 0) {
        interrupt_noted = 1;
        return;
    }

    /* A second press shortly after an unanswered one. */
    clock_gettime(CLOCK_MONOTONIC, &now);
    long ms = (long)now.tv_sec * 1000 + now.tv_nsec / 1000000;
    if (interrupt_pending && ms - interrupt_time <= SECOND_PRESS_MS) {
        leave();
        return;
    }

    /* Stop both C loops and Lua code at the next opportunity. */
    interrupt_pending = 1;
    interrupt_time = ms;
    if (core_interrupt) core_interrupt(1);
    lua_sethook(main_state, interrupt_hook, LUA_MASKCALL | LUA_MASKRET | LUA_MASKCOUNT, 1);
}

/* Without SA_RESTART a blocked read returns, so Ctrl-C also ends a wait for input. */
void sz_interrupt_install(lua_State *L)
{
    struct sigaction action = { .sa_handler = on_sigint };

    main_state = L;
    main_thread = pthread_self();
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
}

/* ---- protected calls ---------------------------------------------------------------- */

/* Whether a message gets a traceback: yes if it begins with a place, "file:line: ", as Lua's own
 * do, or comes from Ctrl-C. Other messages are addressed to the user. */
static bool wants_traceback(const char *message)
{
    if (strcmp(message, "interrupted!") == 0) return true;
    if (strstr(message, "\nstack traceback:")) return false;

    /* Look for ":digits:" in the first line. */
    for (const char *p = message; *p && *p != '\n'; p++) {
        const char *end = p + 1;
        while (*end >= '0' && *end <= '9') end++;
        if (*p == ':' && end > p + 1 && *end == ':') return true;
    }
    return false;
}

/* Turns an error value into text, and adds the traceback where one is wanted. */
static int add_traceback(lua_State *L)
{
    if (!lua_isstring(L, 1)) {
        if (!luaL_callmeta(L, 1, "__tostring") || !lua_isstring(L, -1))
            lua_pushfstring(L, "(the error is a %s, not a message)", luaL_typename(L, 1));
        lua_replace(L, 1);
        lua_settop(L, 1);
    }
    if (wants_traceback(lua_tostring(L, 1))) luaL_traceback(L, L, lua_tostring(L, 1), 1);
    return 1;
}

int sz_call_protected(lua_State *L, int nargs, int nresults)
{
    int base = lua_gettop(L) - nargs;

    /* The message handler goes below the function. */
    lua_pushcfunction(L, add_traceback);
    lua_insert(L, base);

    if (call_depth == 0) interrupt_answered();
    call_depth++;
    int status = lua_pcall(L, nargs, nresults, base);
    call_depth--;

    /* A press that came too late to be raised must not hit the next call. */
    if (call_depth == 0) {
        lua_sethook(L, NULL, 0, 0);
        interrupt_answered();
    }
    lua_remove(L, base);
    return status;
}
