/* watchdog.c - a time limit for code of a user's: a reward, so far.
 *
 * A thread watches the clock while a limit is set. When it is over, the thread signals the main
 * thread, whose handler arms a debug hook. The hook raises "time limit reached!" until the caller
 * takes the limit away, because the code may catch the error. Hooks fire in interpreted Lua only,
 * so the caller keeps the code from being compiled (lua/segzero/reward/guard.lua).
 *
 * Lua's pattern matching may take exponential time in C, where no hook fires. It holds no memory
 * and no lock while it matches, so the handler raises from inside it. Ctrl-C is answered in the
 * same way there. Other C code cannot be left: the thread waits a while, says which answer it was,
 * and ends the process.
 * Leaves out: several limits at a time, limits outside the main thread.
 */
#include "host.h"
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define MS INT64_C(1000000) /* nanoseconds */

enum {
    POLL_MS = 100,     /* how often the thread looks at the clock */
    AGAIN_MS = 50,     /* between two signals for one limit */
    MATCHING_MS = 200, /* a hook that has not fired for so long waits behind C code */
    LEAVE_MS = 3000,   /* C code that has not ended so long after the limit ends the process */
    QUIET_POLLS = 20,  /* the thread sleeps after this many looks without a limit */
    MOST_SECONDS = 1000000000, /* longer limits are this one */
    SHOWN = 200                /* bytes of the answer that the last message shows */
};

static lua_State *main_state;
static pthread_t main_thread;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake;
static atomic_bool asleep;
static _Atomic int64_t deadline;       /* CLOCK_MONOTONIC nanoseconds; 0: no limit is set */
static _Atomic int64_t interrupt_seen; /* when the thread first saw an unanswered Ctrl-C; 0 */
static const char *volatile subject;   /* Lua's strings, which the caller keeps */
static const char *volatile answer_text;
static double limit_seconds;
static int64_t hook_time; /* when the hook was armed, or raised last */

enum { MATCHERS = 4 };
static lua_CFunction matchers[MATCHERS]; /* string.find, match, gsub and gmatch's iterator */

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 * MS + t.tv_nsec;
}

/* ---- the main thread ---- */

/* level: of the function whose place the message names. */
static void raise_limit(lua_State *L, int level)
{
    luaL_where(L, level);
    lua_pushliteral(L, "time limit reached!");
    lua_concat(L, 2);
    lua_error(L);
}

/* Whether the function is one of those that set and end the limit. */
static bool is_guard(const char *source)
{
    static const char *const files[] = { "/lua/segzero/core/user_code.lua",
                                         "/lua/segzero/reward/guard.lua" };
    size_t n = strlen(source);
    for (int i = 0; i < 2; i++) {
        size_t length = strlen(files[i]);
        if (n >= length && strcmp(source + n - length, files[i]) == 0) return true;
    }
    return false;
}

/* Stays armed until the limit ends, because the code may catch the error and go on. */
static void limit_hook(lua_State *L, lua_Debug *ar)
{
    int64_t end = deadline;

    if (!end || now_ns() < end) {
        lua_sethook(L, NULL, 0, 0);
        return;
    }
    if (!lua_getinfo(L, "S", ar) || ar->what[0] == 'C' || is_guard(ar->source)) return;
    hook_time = now_ns();
    raise_limit(L, 0);
}

/* Whether the main state is inside one of the matching functions. In a coroutine it is not: then
 * its innermost function is coroutine.resume. */
static bool is_matching(void)
{
    lua_Debug ar;
    if (!lua_getstack(main_state, 0, &ar) || !lua_getinfo(main_state, "f", &ar)) return false;
    lua_CFunction f = lua_tocfunction(main_state, -1);
    lua_pop(main_state, 1);
    for (int i = 0; f && i < MATCHERS; i++)
        if (matchers[i] == f) return true;
    return false;
}

static void on_limit(int sig)
{
    int64_t end = deadline;
    int64_t now = now_ns();
    int64_t seen = interrupt_seen;

    (void)sig;
    if (!end) return;
    if (sz_interrupt_is_pending()) {
        if (seen && now - seen >= MATCHING_MS * MS && is_matching()) sz_interrupt_raise(main_state);
        return;
    }
    if (now < end) return;

    /* A hook of an earlier signal waits: the main thread is in C code, and its stack can be
     * read. */
    if (lua_gethook(main_state) == limit_hook) {
        if (now - hook_time < MATCHING_MS * MS || !is_matching()) return;
        hook_time = now;
        raise_limit(main_state, 1);
    }
    hook_time = now;
    lua_sethook(main_state, limit_hook, LUA_MASKCALL | LUA_MASKRET | LUA_MASKCOUNT, 1);
}

/* ---- the thread ---- */

/* Appends s with control characters as '?'. */
static char *append(char *p, const char *end, const char *s, size_t most)
{
    for (size_t i = 0; i < most && s[i] && p < end; i++) {
        unsigned char c = (unsigned char)s[i];
        *p++ = s[i];
        if (c < 32 || c == 127) p[-1] = '?';
    }
    return p;
}

/* The main thread does not answer: says why and ends the process. It may hold any lock, so nothing
 * but write() is called. */
static void leave(bool interrupted)
{
    char text[1024];
    const char *end = text + sizeof text - 1;
    char seconds[32];

    snprintf(seconds, sizeof seconds, "%g", limit_seconds);
    char *p = append(text, end, "segzero: ", SHOWN);
    p = append(p, end, subject, SHOWN);
    if (interrupted) {
        p = append(p, end, " does not answer Ctrl-C, leaving", SHOWN);
    } else {
        p = append(p, end, " took longer than ", SHOWN);
        p = append(p, end, seconds, sizeof seconds);
        p = append(p, end, " s (worker.reward.timeout) and cannot be stopped, leaving", SHOWN);
        if (answer_text[0]) p = append(p, end, "; answer: ", SHOWN);
        p = append(p, end, answer_text, SHOWN);
    }
    *p++ = '\n';
    ssize_t ignored = write(STDERR_FILENO, text, (size_t)(p - text));
    (void)ignored;
    sz_exits_refuse(false);
    if (interrupted) _exit(128 + SIGINT);
    _exit(EXIT_SCRIPT);
}

static void wait_ms(int64_t ms)
{
    int64_t until = now_ns() + ms * MS;
    struct timespec t = { .tv_sec = (time_t)(until / (1000 * MS)), .tv_nsec = until % (1000 * MS) };
    pthread_cond_timedwait(&wake, &lock, &t);
}

/* Looks once while a limit is set; returns the milliseconds until the next look. */
static int64_t look(int64_t end)
{
    int64_t now = now_ns();

    /* A Ctrl-C that no hook has answered. */
    bool pending = sz_interrupt_is_pending();
    if (!pending) interrupt_seen = 0;
    else if (!interrupt_seen) interrupt_seen = now;
    if (pending && now - interrupt_seen >= LEAVE_MS * MS) leave(true);

    if (now >= end + LEAVE_MS * MS) leave(false);
    if (pending || now >= end) pthread_kill(main_thread, SIGALRM);
    if (pending || now >= end) return AGAIN_MS;
    int64_t left = (end - now) / MS + 1;
    return left < POLL_MS ? left : POLL_MS;
}

static void *watch(void *unused)
{
    int quiet = 0;

    pthread_mutex_lock(&lock);
    for (;;) {
        int64_t end = deadline;
        if (end) {
            quiet = 0;
            wait_ms(look(end));
        } else if (++quiet < QUIET_POLLS) {
            interrupt_seen = 0;
            wait_ms(POLL_MS);
        } else {
            /* sz_limit_begin sets the deadline first, then looks at `asleep`. */
            asleep = true;
            while (!deadline) pthread_cond_wait(&wake, &lock);
            asleep = false;
            quiet = 0;
        }
    }
    return unused;
}

static void find_matchers(lua_State *L)
{
    static const char *const names[] = { "find", "match", "gsub" };

    lua_getglobal(L, "string");
    for (int i = 0; i < 3; i++) {
        lua_getfield(L, -1, names[i]);
        matchers[i] = lua_tocfunction(L, -1);
        lua_pop(L, 1);
    }
    lua_getfield(L, -1, "gmatch");
    lua_pushliteral(L, "");
    lua_pushliteral(L, "");
    if (lua_pcall(L, 2, 1, 0) == 0) matchers[3] = lua_tocfunction(L, -1);
    lua_pop(L, 2);
}

/* Starts the thread. It takes no signals, so that they reach the main thread at once. */
static int start(lua_State *L)
{
    struct sigaction action = { .sa_handler = on_limit, .sa_flags = SA_NODEFER | SA_ONSTACK };
    pthread_condattr_t attributes;
    pthread_t thread;
    sigset_t all;
    sigset_t before;

    main_thread = pthread_self();
    find_matchers(L);
    sigemptyset(&action.sa_mask);
    sigaction(SIGALRM, &action, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&wake, &attributes);
    pthread_condattr_destroy(&attributes);

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int code = pthread_create(&thread, NULL, watch, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (code == 0) pthread_detach(thread);
    return code;
}

void sz_watchdog_install(lua_State *L) { main_state = L; }

void sz_limit_begin(lua_State *L, double seconds, double left, const char *what, const char *answer)
{
    static bool started;

    if (!started) {
        int code = start(L);
        if (code) luaL_error(L, "the thread of worker.reward.timeout: %s", strerror(code));
        started = true;
    }
    subject = what;
    answer_text = answer;
    limit_seconds = seconds;
    if (left > MOST_SECONDS) left = MOST_SECONDS;
    deadline = now_ns() + (int64_t)(left * 1000) * MS;
    if (asleep) {
        pthread_mutex_lock(&lock);
        pthread_cond_signal(&wake);
        pthread_mutex_unlock(&lock);
    }
}

double sz_limit_end(lua_State *L)
{
    int64_t end = deadline;

    deadline = 0;
    if (lua_gethook(L) == limit_hook) lua_sethook(L, NULL, 0, 0);
    if (!end) return 1;
    return (double)(end - now_ns()) / (1000.0 * (double)MS);
}
