/* interrupt.c - Ctrl-C, the signals that stop a training run, and the protected calls that they
 * interrupt.
 *
 * SIGINT arms a debug hook that raises "interrupted!" and sets the core's flag, which makes the
 * next op fail. Debug hooks do not fire inside loops that LuaJIT has compiled: compiled.c leaves
 * those of a user's script; rewards and hooks are not compiled, nor is what is typed into the REPL
 * (lua/segzero/repl/init.lua).
 *
 * While a run is armed (lua/segzero/core/stop.lua), the signals in `stopping` do the same, and the
 * first signal is noted, so that the run can save and say so. Inside a hold, such as an optimizer
 * step, a signal is noted only; the release at the end of the hold raises. A second signal within
 * two seconds ends the process at once, in a script also where the first one was answered: the
 * script may have caught the error and gone on. A signal that the parent ignores (nohup) stays
 * ignored.
 */
#include "host.h"
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum {
    SECOND_PRESS_MS = 2000,   /* two signals within this time end the process */
    SAME_PRESS_MS = 50,       /* closer ones count as one: a signal to the process and its group */
    SIGNAL_STACK = 256 << 10, /* bytes: registers with AMX take 11 KB, raising an error some more */
    SIGNAL_STATUS = 128       /* exit status of a program that signal n ended: 128 + n */
};

static lua_State *main_state;
static pthread_t main_thread;
static void (*volatile core_interrupt)(int);    /* the core's flag; NULL until Lua registers it */
static volatile sig_atomic_t call_depth;        /* > 0: user code runs, so Ctrl-C raises */
static volatile sig_atomic_t interrupt_noted;   /* pressed while no user code ran */
static volatile sig_atomic_t interrupt_pending; /* pressed, and nothing has answered yet */
static volatile long interrupt_time;            /* the last press, CLOCK_MONOTONIC milliseconds */
static volatile sig_atomic_t is_script;         /* not the REPL, which goes on after Ctrl-C */
static volatile sig_atomic_t armed;             /* a training run notes signals */
static volatile sig_atomic_t held;              /* > 0: a noted signal does not raise */
static volatile sig_atomic_t stop_signal;       /* the first signal of an armed run; 0: none */

void sz_interrupt_is_script(bool on) { is_script = on; }

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

bool sz_interrupt_is_pending(void) { return interrupt_pending; }

void sz_interrupt_raise(lua_State *L) { interrupt_hook(L, NULL); }

/* Stops both C loops and Lua code at the next opportunity. */
static void raise_soon(void)
{
    interrupt_pending = 1;
    if (core_interrupt) core_interrupt(1);
    lua_sethook(main_state, interrupt_hook, LUA_MASKCALL | LUA_MASKRET | LUA_MASKCOUNT, 1);
    sz_compiled_leave();
}

/* Dies of the signal, so that a shell loop around this process stops too. */
static void leave(int sig)
{
    static const char message[] = "\nsegzero: interrupted twice without an answer, leaving\n";
    ssize_t ignored = write(STDERR_FILENO, message, sizeof message - 1);
    (void)ignored;
    signal(sig, SIG_DFL);
    raise(sig);
}

static void on_signal(int sig)
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

    /* Each write to a closed pipe sends another SIGPIPE, and each second of processor time beyond
     * the limit another SIGXCPU; only the first one counts. */
    if ((sig == SIGPIPE || sig == SIGXCPU) && stop_signal) return;

    /* A second signal shortly after an unanswered one. */
    clock_gettime(CLOCK_MONOTONIC, &now);
    long ms = (long)now.tv_sec * 1000 + now.tv_nsec / 1000000;
    long since = ms - interrupt_time;
    bool answered = !interrupt_pending && !stop_signal && !(is_script && interrupt_time);
    interrupt_time = ms;
    if (!answered && since <= SAME_PRESS_MS) return;
    if (!answered && since <= SECOND_PRESS_MS) {
        leave(sig);
        return;
    }

    if (armed && !stop_signal) stop_signal = sig;
    if (!held) raise_soon();
}

/* Handlers run on a stack of their own: see threads.c. It is never freed. */
static void make_stack(void)
{
    static char memory[SIGNAL_STACK] __attribute__((aligned(64)));
    stack_t stack = { .ss_sp = memory, .ss_size = sizeof memory };
    sigaltstack(&stack, NULL);
}

/* Without SA_RESTART a blocked read returns, so Ctrl-C also ends a wait for input. */
static void handle(int sig)
{
    struct sigaction action = { .sa_handler = on_signal, .sa_flags = SA_ONSTACK };
    sigemptyset(&action.sa_mask);
    sigaction(sig, &action, NULL);
}

void sz_interrupt_install(lua_State *L)
{
    main_state = L;
    main_thread = pthread_self();
    make_stack();
    handle(SIGINT);
    /* A parent that ignores SIGPIPE would make a run go on without its output. */
    signal(SIGPIPE, SIG_DFL);
    /* A write past `ulimit -f` is an error of this write, not the end of the process. */
    signal(SIGXFSZ, SIG_IGN);
}

/* ---- stopping a training run ---- */
/* Batch systems warn a job of its end by SIGUSR1 or SIGUSR2 (Slurm's --signal, Grid Engine's
 * -notify) or SIGXCPU (a limit of processor time). */
static const int stopping[] = { SIGTERM, SIGHUP, SIGPIPE, SIGUSR1, SIGUSR2, SIGXCPU };
enum { STOPPING = sizeof stopping / sizeof stopping[0] };

void sz_stop_arm(bool on)
{
    static struct sigaction before[STOPPING];

    armed = on;
    sz_exits_refuse(on);
    for (int i = 0; i < STOPPING; i++) {
        if (!on) {
            sigaction(stopping[i], &before[i], NULL);
            continue;
        }
        sigaction(stopping[i], NULL, &before[i]);
        if (before[i].sa_handler != SIG_IGN) handle(stopping[i]);
    }

    /* The end of a run ends its holds, and has answered what was pending. */
    if (on) return;
    held = 0;
    lua_sethook(main_state, NULL, 0, 0);
    interrupt_answered();
}

void sz_stop_hold(bool on)
{
    if (!armed) return;
    if (!on) {
        if (held > 0) held--;
        if (!held && stop_signal) raise_soon();
        return;
    }

    /* What has been noted waits for the release. */
    held++;
    if (!interrupt_pending) return;
    lua_sethook(main_state, NULL, 0, 0);
    interrupt_answered();
}

int sz_stop_signal(void) { return stop_signal; }
int sz_stop_status(void) { return stop_signal ? SIGNAL_STATUS + stop_signal : 0; }

/* Whether the first line of a message ends with what an interrupt raises. */
static bool is_interrupt(const char *message)
{
    static const char *const endings[] = { "interrupted!", "interrupted" };
    size_t n = strcspn(message, "\n");
    for (int i = 0; i < 2; i++) {
        size_t length = strlen(endings[i]);
        if (n >= length && memcmp(message + n - length, endings[i], length) == 0) return true;
    }
    return false;
}

int sz_report(const char *name, const char *message, int status)
{
    int sig = stop_signal;
    if (sig == 0 && is_interrupt(message)) {
        message = "interrupted";
        sig = SIGINT;
    }
    fflush(stdout);
    /* Nobody reads what a closed pipe would get. */
    if (sig != SIGPIPE) sz_print_error(name, message);
    return sig ? SIGNAL_STATUS + sig : status;
}

/* ---- protected calls ---------------------------------------------------------------- */

/* Turns an error value into text, and adds the traceback where one is wanted. */
static int add_traceback(lua_State *L)
{
    if (!lua_isstring(L, 1)) {
        if (!luaL_callmeta(L, 1, "__tostring") || !lua_isstring(L, -1))
            lua_pushfstring(L, "(the error is a %s, not a message)", luaL_typename(L, 1));
        lua_replace(L, 1);
        lua_settop(L, 1);
    }
    return sz_explain(L);
}

int sz_call_protected(lua_State *L, int nargs, int nresults)
{
    int base = lua_gettop(L) - nargs;

    /* The message handler goes below the function. */
    lua_pushcfunction(L, add_traceback);
    lua_insert(L, base);

    if (call_depth == 0) {
        interrupt_answered();
        stop_signal = 0;
    }
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
