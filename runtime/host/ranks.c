/* ranks.c - `--ranks N`: the program starts itself N times under Open MPI's mpirun, and waits.
 *
 * The processors are divided among the ranks unless --threads says how many each has. mpirun kills
 * the ranks two seconds after a SIGTERM, which is too soon for a run that saves itself. It passes
 * SIGUSR1 on and waits, so this process sends that for the signals that stop a run; a second one
 * within two seconds ends all at once. mpirun has a process group of its own: Ctrl-C comes here only.
 * Leaves out: several machines, where mpirun or srun starts the ranks.
 */
#define _GNU_SOURCE
#include "host.h"
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MOST_RANKS = 1024, MPIRUN_OPTIONS = 10 };

bool sz_ranks_launched(void)
{
    return getenv("OMPI_COMM_WORLD_SIZE") || getenv("PMI_SIZE") || getenv("PMIX_RANK");
}

/* How many processors this process may use. */
static int processors(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
    return CPU_COUNT(&set);
}

/* Sets a variable that the user has not set. */
static void set_default(const char *name, const char *value) { setenv(name, value, 0); }

static void set_environment(long ranks)
{
    char threads[16];
    const long each = processors() / ranks;
    snprintf(threads, sizeof threads, "%ld", each > 1 ? each : 1);
    set_default("SEGZERO_THREADS", threads);
    set_default("OMP_NUM_THREADS", threads);
    /* Threads that wait in a loop would take the processor from the other ranks. */
    set_default("OMP_WAIT_POLICY", "passive");
    /* Otherwise mpirun refuses to work for root, who is the user in most containers. */
    set_default("OMPI_ALLOW_RUN_AS_ROOT", "1");
    set_default("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
}

static bool is_ranks_option(const char *s, bool *takes_next)
{
    static const char name[] = "--ranks";
    *takes_next = strcmp(s, name) == 0;
    return *takes_next || strncmp(s, "--ranks=", sizeof name) == 0;
}

/* ---- waiting for mpirun ---- */
static volatile sig_atomic_t stop_signal; /* the first one */
static volatile sig_atomic_t launcher;    /* mpirun's process */
static volatile time_t stopped_at;

static void on_stop(int sig)
{
    enum { SECOND_PRESS = 2 }; /* seconds */
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    const bool again = stop_signal && now.tv_sec - stopped_at <= SECOND_PRESS;
    if (!stop_signal) stop_signal = sig;
    stopped_at = now.tv_sec;
    kill(launcher, again ? SIGTERM : SIGUSR1);
}

static void pass_signals_on(void)
{
    static const int stopping[] = { SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2 };
    for (size_t i = 0; i < sizeof stopping / sizeof *stopping; i++) {
        struct sigaction action = { .sa_handler = on_stop, .sa_flags = SA_RESTART };
        sigaction(stopping[i], &action, NULL);
    }
}

/* The exit status of the job. */
static int wait_for(pid_t child)
{
    int status = 0;
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR) return EXIT_SCRIPT;
    if (stop_signal && status != 0) return 128 + stop_signal;
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

/* Runs the list as a child. It ends with this process, however this one ends. */
static int run_launcher(char **list)
{
    const pid_t parent = getpid();
    const pid_t child = fork();
    if (child < 0) {
        fprintf(stderr, "segzero: --ranks: %s\n", strerror(errno));
        return EXIT_SCRIPT;
    }
    if (child > 0) {
        launcher = child;
        pass_signals_on();
        return wait_for(child);
    }

    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent) _exit(EXIT_SCRIPT);
    execvp(list[0], list);
    fprintf(stderr,
            "segzero: --ranks needs Open MPI's mpirun: %s (apt-get install openmpi-bin "
            "libopenmpi-dev, then make)\n",
            strerror(errno));
    _exit(EXIT_SCRIPT);
}

/* ---- starting ---- */
/* Commands of which each rank would do the whole. */
static bool works_alone(const char *command)
{
    static const char *const commands[] = { "fetch", "report", "help" };
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        if (strcmp(command, commands[i]) == 0) return true;
    return false;
}

bool sz_ranks_start(const host_options *o, char **argv, int argc, int *status)
{
    static char *const first[] = {
        "mpirun", "--quiet", "--oversubscribe", "--bind-to", "none", "-n"
    };
    enum { FIRST = sizeof first / sizeof *first };
    char *end;
    const long ranks = strtol(o->ranks, &end, 10);
    if (*end || ranks < 1 || ranks > MOST_RANKS) {
        fprintf(stderr, "segzero: --ranks expects a number from 1 to %d, got '%s'\n", MOST_RANKS,
                o->ranks);
        *status = EXIT_USAGE;
        return true;
    }
    if (ranks == 1) return false;
    if (o->script < argc && works_alone(argv[o->script])) {
        fprintf(stderr, "segzero: %s works on one rank: leave out --ranks\n", argv[o->script]);
        *status = EXIT_USAGE;
        return true;
    }

    /* mpirun's options, the program, and its arguments without --ranks. */
    char **list = calloc((size_t)argc + MPIRUN_OPTIONS, sizeof *list);
    *status = EXIT_SCRIPT;
    if (!list) return true;
    int n = 0;
    while (n < FIRST) {
        list[n] = first[n];
        n++;
    }
    list[n++] = (char *)o->ranks;
    list[n++] = sz_paths.executable;
    for (int i = 1; i < argc; i++) {
        bool takes_next;
        if (i < o->script && is_ranks_option(argv[i], &takes_next)) i += takes_next;
        else list[n++] = argv[i];
    }

    set_environment(ranks);
    *status = run_launcher(list);
    free(list);
    return true;
}
