/* host.h - what the files of the host program share. See main.c for what the program does. */
#ifndef SZ_HOST_H
#define SZ_HOST_H

#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/types.h>

#include <lauxlib.h>
#include <lua.h>
#include <luajit.h>
#include <lualib.h>

/* Exit statuses. A signal that ends the program makes it 128 + its number. */
enum { EXIT_SCRIPT = 1, EXIT_USAGE = 2 };

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
/* Whether a script runs: a second Ctrl-C within two seconds ends it, whatever it did with the
 * first. */
void sz_interrupt_is_script(bool on);
/* The core's sz_interrupt_set, which the handler calls too. */
void sz_interrupt_set_core(void (*set)(int));
/* Whether Ctrl-C was pressed outside sz_call_protected since the last call of this function. */
bool sz_interrupt_noted(void);

/* Whether Ctrl-C or a stop has not been raised yet. */
bool sz_interrupt_is_pending(void);
/* Raises it from L; does not return. For the watchdog. */
void sz_interrupt_raise(lua_State *L);

/* A training run begins or ends: SIGINT and the those in `stopping` (interrupt.c) are noted
 * meanwhile and raise "interrupted!". The end also ends all holds. */
void sz_stop_arm(bool on);
/* Begins or ends a hold, in which signals are noted and do not raise. Calls nest; without an armed
 * run they do nothing. */
void sz_stop_hold(bool on);
/* The first signal that was noted, or 0. It stays until the next outermost protected call. */
int sz_stop_signal(void);
/* The exit status for it, 128 + the signal, or 0. */
int sz_stop_status(void);

/* Prints "NAME: message" to stderr with control characters escaped; an interrupt is one line
 * without its place, and after SIGPIPE nothing is printed. Returns the exit status: `status`, or
 * 128 + n for an interrupt or a stop by signal n. */
int sz_report(const char *name, const char *message, int status);

/* lua_pcall with a traceback; Ctrl-C raises "interrupted!" meanwhile. Stack: a function and its
 * nargs arguments -> its results, or one message. Returns lua_pcall's status. */
int sz_call_protected(lua_State *L, int nargs, int nresults);

/* ---- compiled.c ---- */

/* Turns LuaJIT's compiler off where its code is known to crash: on 64-bit ARM, a version from
 * before October 2023. `-e 'jit.on()'` turns it on. To be called once, on a new state. */
void sz_compiled_choose(lua_State *L);
/* What LuaJIT compiles from now on can be left. Calls after the first one do nothing. */
void sz_compiled_prepare(lua_State *L);
/* Makes compiled code that runs, if any, go on in the interpreter. For signal handlers. */
void sz_compiled_leave(void);

/* ---- exits.c ---- */

/* To be called once, after sz_streams_prepare. */
void sz_exits_watch(void);
/* A run begins or ends: exit() with status 0 is an error meanwhile. */
void sz_exits_refuse(bool on);

/* ---- message.c ---- */

/* A lua_CFunction: an error's message -> what the user sees of it, with a traceback where the
 * user's own code failed. To be called as, or inside, a message handler. */
int sz_explain(lua_State *L);

/* ---- watchdog.c ---- */

/* To be called once, before any limit. */
void sz_watchdog_install(lua_State *L);
/* Sets the limit of what runs next: "time limit reached!" is raised `left` seconds from now. The
 * other arguments are for the message of code that cannot be stopped: the limit in seconds, what it
 * is, such as "the reward of row 7", and the answer or "". The two texts must stay valid until the
 * end. */
void sz_limit_begin(lua_State *L, double seconds, double left, const char *what,
                    const char *answer);
/* Takes the limit away. Returns the seconds that were left, below 0 if it was over. */
double sz_limit_end(lua_State *L);

/* ---- streams.c ---- */

/* Opens /dev/null in place of each of descriptors 0-2 that is closed, so that no file of ours gets
 * such a number, makes stdout flush each line, and sees to it that a failed write to it is reported
 * at the end. To be called before anything is opened. */
void sz_streams_prepare(void);
/* Writes the line "name: text" to stderr, with the control characters of text, except newline and
 * tab, as \\xNN. Up to 4096 bytes go out in one write, so that lines of several processes that
 * share a terminal or a log do not mix. Allocates nothing. */
void sz_print_error(const char *name, const char *text);

/* ---- module.c ---- */

/* Opens the Lua module "segzero.host"; a lua_CFunction. */
int sz_host_open(lua_State *L);

/* ---- options.c ---- */

typedef struct {
    const char *device; /* NULL: not given */
    const char *threads;
    const char *ranks;
    int script; /* index in argv of the script; argc when there is none */
    int chunks; /* number of -e options */
    bool version;
    bool help;
} host_options;

/* Reads the options that come before the script. With L it also runs the -e chunks in order.
 * Returns 0, -1 for a bad option or the exit status of a chunk that failed; the message has been
 * printed. */
int sz_options_read(host_options *o, char **argv, int argc, lua_State *L);

/* ---- processors.c ---- */

typedef struct {
    int online;   /* processors of the machine */
    int affinity; /* those that this process may run on */
    double quota; /* processors' worth of time that its control groups grant; 0: no limit */
    int usable;   /* at least 1: what affinity and quota leave */
} host_processors;

/* What this process may use, as it was at the first call. */
const host_processors *sz_processors_find(void);
/* Sets the number of OpenMP's threads and how they wait, where the user has not. To be called
 * before the core is opened. */
void sz_processors_set_environment(void);

/* ---- ranks.c ---- */

/* Whether a launcher started this process as one of several. */
bool sz_ranks_launched(void);
/* A rank's share of the processors, for the environment; --threads and the user's variables stay.
 * To be called before the core is opened. */
void sz_ranks_set_threads(void);
/* Runs o->ranks processes of this program and waits for them. False for 1 rank: this process is it.
 * Sets *status to the job's exit status. */
bool sz_ranks_start(const host_options *o, char **argv, int argc, int *status);

/* Remembers the command line of this process, for the next one. */
void sz_ranks_remember(const host_options *o, char **argv, int argc);
/* Runs the same command line as `ranks` processes and waits for them. False if a launcher started
 * this process, or if there is no script. */
bool sz_ranks_restart(long ranks, int *status);

/* ---- passing.c ---- */

/* From now on the signals that stop a run are passed on: the first one as `first` (0: as it came),
 * one within two seconds of another as `second`. Those that are ignored stay so. */
void sz_pass_signals(int first, int second);
/* To whom, as kill() takes it: a process, or - a process group. */
void sz_pass_signals_to(pid_t process);
/* The first signal that came, or 0. */
int sz_passed_signal(void);
/* The exit status of a program that ended with this status of waitpid(). */
int sz_child_status(int status);

/* ---- spawn.c ---- */

/* Runs the program list[0] with the arguments list[1..] `count` times, as ranks that talk over TCP.
 * The job's exit status; a message was printed if they could not be started. */
int sz_spawn_ranks(long count, char **list);

/* ---- run.c: each prints its error and returns 0 or the exit status ---- */

int sz_run_chunk(lua_State *L, const char *chunk);
/* Runs `chunk` with args as its `...`; for calls of segzero's own modules. */
int sz_run_with_args(lua_State *L, const char *chunk, char **args, int nargs);
/* Runs require(module)[field](), outside sz_call_protected: the REPL answers Ctrl-C by itself. */
int sz_run_module(lua_State *L, const char *module, const char *field);
/* Runs the file `name` with args as its `...`; standard input if name is NULL or "-". */
int sz_run_script(lua_State *L, const char *name, char **args, int nargs);

#endif
