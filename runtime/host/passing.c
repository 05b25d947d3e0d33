/* passing.c - a process that only waits for others passes the signals that stop a run on to them.
 *
 * A second signal within two seconds ends them at once. A signal that this process was told to
 * ignore, as nohup does with SIGHUP, is left ignored: they inherit that.
 * Leaves out: starting them and waiting for them (ranks.c, spawn.c).
 */
#define _GNU_SOURCE
#include "host.h"
#include <signal.h>
#include <sys/wait.h>
#include <time.h>

static volatile pid_t target; /* as kill() takes it; 0: nobody yet */
static volatile sig_atomic_t stop_signal;
static volatile time_t stopped_at;
static int passed, ending;

static void on_stop(int sig)
{
    enum { SECOND_PRESS = 2 }; /* seconds */
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    const bool again = stop_signal && now.tv_sec - stopped_at <= SECOND_PRESS;
    if (!stop_signal) stop_signal = sig;
    stopped_at = now.tv_sec;
    const int first = passed ? passed : sig;
    if (target) kill(target, again ? ending : first);
}

void sz_pass_signals(int first, int second)
{
    static const int stopping[] = { SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2 };
    passed = first;
    ending = second;
    for (size_t i = 0; i < sizeof stopping / sizeof *stopping; i++) {
        struct sigaction before;
        struct sigaction action = { .sa_handler = on_stop, .sa_flags = SA_RESTART };
        sigaction(stopping[i], NULL, &before);
        /* SIGINT is obeyed in any case, as in a single process (interrupt.c). */
        if (before.sa_handler == SIG_IGN && stopping[i] != SIGINT) continue;
        sigaction(stopping[i], &action, NULL);
    }
}

void sz_pass_signals_to(pid_t process) { target = process; }

int sz_passed_signal(void) { return stop_signal; }

int sz_child_status(int status)
{
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}
