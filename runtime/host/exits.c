/* exits.c - a run that a library or a user's code ends by exit() has not succeeded.
 *
 * os.exit inside a user's function is an error (lua/segzero/core/user_code.lua). C's exit(),
 * quick_exit() and _exit() can be called through the FFI or by a C module: in the middle of a run
 * they end the program with a line on stderr, and a status of 0 or less becomes 1 (lua-cjson calls
 * exit(-1) when memory is out). A child that the user's code has forked ends as it likes.
 * Leaves out: kill(getpid(), 9) and the system call itself. Sanitizers bring an _exit of their own.
 */
#define _GNU_SOURCE
#include "host.h"
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

static volatile pid_t running; /* the process of the run; 0: none */

void sz_exits_refuse(bool on) { running = on ? getpid() : 0; }

/* The status to end with instead of `status`. Writes with write() only: any lock may be held. */
static int judge(int status)
{
    static const char message[] = "segzero: exit() was called in the middle of a run, by a reward, "
                                  "another function of yours or a library\n";

    if (running == 0 || running != getpid()) return status;
    running = 0;
    ssize_t ignored = write(STDERR_FILENO, message, sizeof message - 1);
    (void)ignored;
    return status > 0 ? status : EXIT_SCRIPT;
}

static void check_status(int status, void *unused)
{
    (void)unused;
    int judged = judge(status);
    if (judged == status) return;
    fflush(NULL);
    _exit(judged);
}

static void leave_quickly(void)
{
    if (judge(0)) _exit(EXIT_SCRIPT);
}

void sz_exits_watch(void)
{
    on_exit(check_status, NULL);
    at_quick_exit(leave_quickly);
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)

/* For calls from outside this program, so not static. */
__attribute__((visibility("default"), noreturn)) void _exit(int status)
{
    status = judge(status);
    for (;;) syscall(SYS_exit_group, status);
}

__attribute__((visibility("default"), noreturn)) void _Exit(int status) { _exit(status); }

#endif
