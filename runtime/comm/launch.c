/* launch.c - reads the launcher's variables (launch.h).
 *
 * torchrun holds MASTER_PORT itself, so its processes meet at the next port. Without MASTER_ADDR,
 * those of srun meet at the first node of the step, at a port made of the step's number.
 * Sources: https://docs.pytorch.org/docs/stable/elastic/run.html (environment variables), the
 * manual of srun (output environment variables).
 */
#define _GNU_SOURCE
#include "comm/launch.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A variable's whole number from `least`; -1 if there is none. */
static long number(const char *name, long least)
{
    enum { MOST = 1 << 20 };
    const char *text = getenv(name);
    char *end;
    if (!text || !*text) return -1;
    const long n = strtol(text, &end, 10);
    return *end || n < least || n > MOST ? -1 : n;
}

static int number_or(const char *name, int otherwise)
{
    const long n = number(name, 0);
    return n < 0 ? otherwise : (int)n;
}

__attribute__((format(printf, 2, 3))) static void stray(sz_launch *l, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    l->kind = SZ_LAUNCH_STRAY;
    vsnprintf(l->problem, sizeof l->problem, format, list);
    va_end(list);
}

/* MASTER_PORT, if it is there and no port: refuses. */
static void read_port(sz_launch *l)
{
    enum { LAST_PORT = 65535 };
    const char *text = getenv("MASTER_PORT");
    const long port = number("MASTER_PORT", 1);
    if (!text) return;
    if (port < 1 || port >= LAST_PORT) {
        stray(l, "MASTER_PORT=%s: it must be a port from 1 to %d", text, LAST_PORT - 1);
        return;
    }
    const char *agent = getenv("TORCHELASTIC_USE_AGENT_STORE");
    const int is_taken = agent && strcmp(agent, "True") == 0;
    l->port = (int)port + is_taken;
}

static void read_address(sz_launch *l)
{
    const char *text = getenv("MASTER_ADDR");
    if (text && *text) snprintf(l->address, sizeof l->address, "%s", text);
    read_port(l);
}

/* ---- what Slurm says about this machine ---- */
/* The tasks of this node in a list like "4(x2),3"; 0 if it does not say. */
static int tasks_here(const char *list, int node)
{
    while (list && *list) {
        char *end;
        const int tasks = (int)strtol(list, &end, 10);
        int nodes = 1;
        if (end == list) return 0;
        if (strncmp(end, "(x", 2) == 0) nodes = (int)strtol(end + 2, &end, 10);
        if (node < nodes) return tasks;
        node -= nodes;
        list = strchr(end, ',');
        if (list) list++;
    }
    return 0;
}

static void read_node(sz_launch *l)
{
    l->local_rank = number_or("SLURM_LOCALID", 0);
    l->local_size = tasks_here(getenv("SLURM_STEP_TASKS_PER_NODE"), number_or("SLURM_NODEID", 0));
    l->processors = number_or("SLURM_CPUS_PER_TASK", 0);
}

/* ---- MPI ---- */
static int read_mpi(sz_launch *l)
{
    if (!getenv("OMPI_COMM_WORLD_SIZE") && !getenv("PMIX_RANK")) return 0;
    l->kind = SZ_LAUNCH_MPI;
    l->size = number_or("OMPI_COMM_WORLD_SIZE", number_or("SLURM_STEP_NUM_TASKS", 0));
    l->rank = number_or("OMPI_COMM_WORLD_RANK", number_or("PMIX_RANK", -1));
    if (!getenv("OMPI_COMM_WORLD_LOCAL_SIZE")) {
        read_node(l);
        return 1;
    }
    l->local_rank = number_or("OMPI_COMM_WORLD_LOCAL_RANK", 0);
    l->local_size = number_or("OMPI_COMM_WORLD_LOCAL_SIZE", 0);
    return 1;
}

/* MPICH's mpirun and its like, which Open MPI cannot join. */
static void read_other_mpi(sz_launch *l)
{
    const long size = number("PMI_SIZE", 1);
    if (size <= 1) return;
    l->size = (int)size;
    l->rank = number_or("PMI_RANK", -1);
    stray(l,
          "PMI_SIZE=%ld: another MPI's launcher started several processes; start them with Open "
          "MPI's mpirun, srun, torchrun or --ranks",
          size);
}

/* ---- torchrun ---- */
static int read_torch(sz_launch *l)
{
    const char *text = getenv("WORLD_SIZE");
    const long size = number("WORLD_SIZE", 1);
    if (text && *text && size < 0) {
        stray(l, "WORLD_SIZE=%s: it must be a whole number from 1; without ranks: unset WORLD_SIZE",
              text);
        return 1;
    }
    if (size <= 1) return 0;
    l->kind = SZ_LAUNCH_TCP;
    l->size = (int)size;
    l->rank = (int)number("RANK", 0);
    l->local_rank = number_or("LOCAL_RANK", 0);
    l->local_size = number_or("LOCAL_WORLD_SIZE", 0);
    read_address(l);
    if (l->kind == SZ_LAUNCH_STRAY) return 1;
    const char *missing = NULL;
    if (!l->port) missing = "MASTER_PORT";
    if (!l->address[0]) missing = "MASTER_ADDR";
    if (l->rank < 0) missing = "RANK";
    if (missing)
        stray(l,
              "WORLD_SIZE=%ld and no %s: torchrun or its like started several processes that "
              "cannot find each other; it sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. "
              "Without it: unset WORLD_SIZE",
              size, missing);
    else if (l->rank >= l->size)
        stray(l, "RANK=%d with WORLD_SIZE=%ld: ranks count from 0", l->rank, size);
    return 1;
}

/* ---- srun ---- */
/* The first name of a list like "a[01-04,7]b,c3": "a01b". An empty one if the list is none. */
static void first_node(const char *list, char *name, size_t room)
{
    size_t n = 0;
    for (; *list && *list != ',' && n + 1 < room; list++) {
        if (*list != '[') {
            name[n++] = *list;
            continue;
        }
        /* The first number of the brackets, then what follows them. */
        for (list++; *list && !strchr(",-]", *list) && n + 1 < room; list++) name[n++] = *list;
        list = strchr(list, ']');
        if (!list) {
            n = 0;
            break;
        }
    }
    name[n] = 0;
}

/* Steps of one job, and jobs on one node, must not meet at the same port. */
static int port_of_step(void)
{
    enum { FIRST = 20000, PORTS = 12000, STEPS = 7 }; /* below the range of outgoing connections */
    const long job = strtol(getenv("SLURM_JOB_ID") ? getenv("SLURM_JOB_ID") : "0", NULL, 10);
    const long step = number_or("SLURM_STEP_ID", 0);
    return FIRST + (int)((job * STEPS + step) % PORTS);
}

static int read_slurm(sz_launch *l)
{
    const long size = number("SLURM_STEP_NUM_TASKS", 1);
    if (size <= 1) return 0;
    l->kind = SZ_LAUNCH_TCP;
    l->size = (int)size;
    l->rank = (int)number("SLURM_PROCID", 0);
    read_node(l);
    l->port = port_of_step();
    const char *nodes = getenv("SLURM_STEP_NODELIST");
    if (nodes) first_node(nodes, l->address, sizeof l->address);
    read_address(l);
    if (l->kind == SZ_LAUNCH_STRAY) return 1;
    if (l->rank < 0 || l->rank >= l->size || !l->address[0])
        stray(l,
              "SLURM_STEP_NUM_TASKS=%ld: srun started several processes that cannot find each "
              "other without SLURM_PROCID and SLURM_STEP_NODELIST; start them with srun, mpirun "
              "or --ranks",
              size);
    return 1;
}

void sz_launch_read(sz_launch *l)
{
    memset(l, 0, sizeof *l);
    l->rank = -1;
    /* The variables of srun and mpirun stay in the environment of a torchrun that they start. */
    if (getenv("TORCHELASTIC_RUN_ID") && read_torch(l)) return;
    if (read_mpi(l) || read_torch(l) || read_slurm(l)) return;
    read_other_mpi(l);
}
