/* ranks.c - `--ranks N`: the program starts itself N times under Open MPI's mpirun.
 *
 * The processors are divided among the ranks unless --threads says how many each has. mpirun gets
 * more patience than its one second before it kills what it stops, so that a run can save itself.
 * Leaves out: several machines, where mpirun or srun starts the ranks.
 */
#define _GNU_SOURCE
#include "host.h"
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
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
    set_default("OMPI_MCA_odls_base_sigkill_timeout", "60");
}

static bool is_ranks_option(const char *s, bool *takes_next)
{
    static const char name[] = "--ranks";
    *takes_next = strcmp(s, name) == 0;
    return *takes_next || strncmp(s, "--ranks=", sizeof name) == 0;
}

int sz_ranks_start(const host_options *o, char **argv, int argc)
{
    static char *const first[] = { "mpirun", "--quiet", "--oversubscribe", "--bind-to", "none",
                                   "-n" };
    enum { FIRST = sizeof first / sizeof *first };
    char *end;
    const long ranks = strtol(o->ranks, &end, 10);
    if (*end || ranks < 1 || ranks > MOST_RANKS) {
        fprintf(stderr, "segzero: --ranks expects a number from 1 to %d, got '%s'\n", MOST_RANKS,
                o->ranks);
        return EXIT_USAGE;
    }
    if (ranks == 1) return 0;

    /* mpirun's options, the program, and its arguments without --ranks. */
    char **list = calloc((size_t)argc + MPIRUN_OPTIONS, sizeof *list);
    if (!list) return EXIT_SCRIPT;
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
    execvp(list[0], list);
    fprintf(stderr, "segzero: --ranks needs Open MPI's mpirun: %s (apt-get install openmpi-bin "
                    "libopenmpi-dev, then make)\n", strerror(errno));
    return EXIT_SCRIPT;
}
