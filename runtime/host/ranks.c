/* ranks.c - `--ranks N`: the program starts itself N times and waits. And the processors of a
 * machine are divided among its ranks, whatever launcher started them, unless --threads says how
 * many each has.
 *
 * The ranks run under Open MPI's mpirun, or without it where there is none (spawn.c). mpirun kills
 * the ranks two seconds after a SIGTERM, which is too soon for a run that saves itself. It passes
 * SIGUSR1 on and waits, so this process sends that for the signals that stop a run; a second one
 * within two seconds ends all at once. mpirun has a process group of its own: Ctrl-C comes here
 * only.
 * Leaves out: several machines, where mpirun, srun or torchrun starts the ranks.
 */
#define _GNU_SOURCE
#include "host.h"
#include "comm/launch.h"
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MOST_RANKS = 1024, MPIRUN_OPTIONS = 10 };

bool sz_ranks_launched(void)
{
    sz_launch l;
    sz_launch_read(&l);
    return l.kind != SZ_LAUNCH_ALONE;
}

/* ---- threads ---- */
/* How many processors this process may use. A launcher may have bound it to some. */
static int processors(void) { return sz_processors_find()->usable; }

/* The processors of a list like "0-3,8". */
static int count_list(const char *list)
{
    int count = 0;
    while (*list >= '0' && *list <= '9') {
        char *end;
        const long first = strtol(list, &end, 10);
        const long last = *end == '-' ? strtol(end + 1, &end, 10) : first;
        count += (int)(last - first) + 1;
        list = *end == ',' ? end + 1 : end;
    }
    return count;
}

/* The processors of this machine, or those that a container has of it. */
static int all_processors(void)
{
    char list[4096] = "";
    FILE *file = fopen("/sys/fs/cgroup/cpuset.cpus.effective", "r");
    const char *text = file ? fgets(list, sizeof list, file) : NULL;
    if (file) fclose(file);
    const int count = text ? count_list(text) : 0;
    const host_processors *p = sz_processors_find();
    const int most = p->quota > 0 && p->usable < p->affinity ? p->usable : p->online;
    return count > 0 && count < most ? count : most;
}

/* Sets a variable that the user has not set. */
static void set_default(const char *name, const char *value) { setenv(name, value, 0); }

static void set_threads(long each)
{
    char threads[32];
    snprintf(threads, sizeof threads, "%ld", each > 1 ? each : 1);
    set_default("SEGZERO_THREADS", threads);
    set_default("OMP_NUM_THREADS", getenv("SEGZERO_THREADS"));
    /* Threads that wait in a loop would take the processor from the other ranks. */
    set_default("OMP_WAIT_POLICY", "passive");
}

void sz_ranks_set_threads(void)
{
    sz_launch l;
    sz_launch_read(&l);
    if (l.kind != SZ_LAUNCH_MPI && l.kind != SZ_LAUNCH_TCP) return;
    /* torchrun sets one thread for programs that cannot tell. */
    if (getenv("TORCHELASTIC_RUN_ID") && !getenv("SEGZERO_THREADS")) unsetenv("OMP_NUM_THREADS");
    const char *given = getenv("OMP_NUM_THREADS");
    const int neighbours = l.local_size > 0 ? l.local_size : 1;
    const int share = all_processors() / neighbours;
    const int own = processors();
    if (given) set_threads(strtol(given, NULL, 10));
    else if (l.processors > 0) set_threads(l.processors < own ? l.processors : own);
    else set_threads(share < own ? share : own);
}

static void set_environment(long ranks)
{
    set_threads(processors() / ranks);
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

/* ---- mpirun's folder ---- */
static char session[PATH_MAX];

/* A folder for what mpirun keeps while the job runs. Open MPI's usual one belongs to all jobs of a
 * user: a job that ends removes it while another one starts, which then fails. */
static void make_session(void)
{
    static const char variable[] = "OMPI_MCA_orte_tmpdir_base";
    const char *base = getenv("TMPDIR");
    if (getenv(variable)) return;
    snprintf(session, sizeof session, "%s/segzero-ranks-XXXXXX", base && *base ? base : "/tmp");
    if (mkdtemp(session)) setenv(variable, session, 1);
    else session[0] = 0;
}

/* mpirun has emptied it. */
static void remove_session(void)
{
    if (session[0]) rmdir(session);
}

/* ---- waiting for mpirun ---- */
/* The exit status of the job. */
static int wait_for(pid_t child)
{
    int status = 0;
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR) return EXIT_SCRIPT;
    if (sz_passed_signal() && status != 0) return 128 + sz_passed_signal();
    return sz_child_status(status);
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
        sz_pass_signals_to(child);
        sz_pass_signals(SIGUSR1, SIGTERM);
        return wait_for(child);
    }

    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent) _exit(EXIT_SCRIPT);
    execvp(list[0], list);
    fprintf(stderr,
            "segzero: --ranks: mpirun does not start: %s (SEGZERO_TRANSPORT=tcp does without)\n",
            strerror(errno));
    _exit(EXIT_SCRIPT);
}

/* ---- starting ---- */
/* Commands of which each rank would do the whole. */
static bool works_alone(const char *command)
{
    static const char *const commands[] = { "fetch", "report", "completion", "help" };
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        if (strcmp(command, commands[i]) == 0) return true;
    return false;
}

/* Whether a program of this name is in one of PATH's folders. */
static bool has_program(const char *name)
{
    const char *path = getenv("PATH");
    char file[PATH_MAX];
    while (path && *path) {
        const size_t n = strcspn(path, ":");
        snprintf(file, sizeof file, "%.*s/%s", (int)n, path, name);
        if (access(file, X_OK) == 0) return true;
        path += n;
        if (*path) path++;
    }
    return false;
}

/* Whether mpirun starts the ranks: it is here, make built what talks to it, and the user does not
 * want it otherwise. */
static bool uses_mpirun(void)
{
    const char *wanted = getenv("SEGZERO_TRANSPORT");
    char library[PATH_MAX + 32];
    if (wanted && strcmp(wanted, "tcp") == 0) return false;
    const char *slash = strrchr(sz_paths.library, '/');
    const int folder = slash ? (int)(slash - sz_paths.library + 1) : 0;
    snprintf(library, sizeof library, "%.*slibsegzero_mpi.so", folder, sz_paths.library);
    return access(library, R_OK) == 0 && has_program("mpirun");
}

/* The number of --ranks; -1 with a message printed. */
static long count_of(const char *text)
{
    char *end;
    const long ranks = strtol(text, &end, 10);
    if (!*end && ranks >= 1 && ranks <= MOST_RANKS) return ranks;
    fprintf(stderr, "segzero: --ranks expects a number from 1 to %d, got '%s'\n", MOST_RANKS, text);
    return -1;
}

static bool transport_is_known(void)
{
    const char *wanted = getenv("SEGZERO_TRANSPORT");
    if (!wanted || strcmp(wanted, "tcp") == 0 || strcmp(wanted, "mpi") == 0) return true;
    fprintf(stderr, "segzero: SEGZERO_TRANSPORT expects mpi or tcp, got '%s'\n", wanted);
    return false;
}

/* Runs `ranks` processes of this program with its arguments but --ranks. The job's exit status. */
static int start(long ranks, const host_options *o, char **argv, int argc)
{
    static char *const first[] = {
        "mpirun", "--quiet", "--oversubscribe", "--bind-to", "none", "-n"
    };
    enum { FIRST = sizeof first / sizeof *first };
    char **list = calloc((size_t)argc + MPIRUN_OPTIONS, sizeof *list);
    char count[32];
    int n = 0;
    if (!list) return EXIT_SCRIPT;
    const bool by_mpirun = uses_mpirun();
    snprintf(count, sizeof count, "%ld", ranks);
    for (int i = 0; by_mpirun && i < FIRST; i++) list[n++] = first[i];
    if (by_mpirun) list[n++] = count;
    list[n++] = sz_paths.executable;
    for (int i = 1; i < argc; i++) {
        bool takes_next;
        if (i < o->script && is_ranks_option(argv[i], &takes_next)) i += takes_next;
        else list[n++] = argv[i];
    }

    set_environment(ranks);
    if (by_mpirun) make_session();
    const int status = by_mpirun ? run_launcher(list) : sz_spawn_ranks(ranks, list);
    remove_session();
    free(list);
    return status;
}

bool sz_ranks_start(const host_options *o, char **argv, int argc, int *status)
{
    const long ranks = count_of(o->ranks);
    *status = EXIT_USAGE;
    if (ranks < 0) return true;
    if (ranks == 1) return false;
    if (o->script < argc && works_alone(argv[o->script])) {
        fprintf(stderr, "segzero: %s works on one rank: leave out --ranks\n", argv[o->script]);
        return true;
    }
    const bool reads_stdin = o->script < argc ? strcmp(argv[o->script], "-") == 0 : !o->chunks;
    if (reads_stdin) {
        fprintf(stderr, "segzero: --ranks: only one rank can read the standard input; name a "
                        "script\n");
        return true;
    }
    if (!transport_is_known()) return true;
    *status = start(ranks, o, argv, argc);
    return true;
}

/* ---- a script that asks for ranks ---- */
static struct {
    host_options options;
    char **argv;
    int argc;
} remembered;

void sz_ranks_remember(const host_options *o, char **argv, int argc)
{
    remembered.options = *o;
    remembered.argv = argv;
    remembered.argc = argc;
}

bool sz_ranks_restart(long ranks, int *status)
{
    const host_options *o = &remembered.options;
    const bool has_script = o->script < remembered.argc;
    if (sz_ranks_launched() || !has_script || strcmp(remembered.argv[o->script], "-") == 0)
        return false;
    *status = EXIT_USAGE;
    if (transport_is_known()) *status = start(ranks, o, remembered.argv, remembered.argc);
    return true;
}
