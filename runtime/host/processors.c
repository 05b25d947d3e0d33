/* processors.c - how many processors this process may use, and how OpenMP's threads wait.
 *
 * The limits are the affinity mask (taskset, a launcher's binding, a container's cpuset) and the
 * CPU quota of the process's control group and of the groups above it:
 *
 *     version 2   <mount>/<group>/cpu.max             "150000 100000", or "max 100000"
 *     version 1   <mount>/<group>/cpu.cfs_quota_us    150000, or -1; and cpu.cfs_period_us
 *
 * In a container the mount may begin at the process's own group. Then the path of
 * /proc/self/cgroup is not below it, and the files at the mount itself count. A share of a
 * processor counts as one: a quota of 1.5 gives two threads.
 *
 * OpenMP reads the environment when the core is loaded, so all is settled before that. What the
 * user has set stays.
 * Leaves out: weights (cpu.shares), which limit nothing on an idle machine; limits that change
 * later.
 */
#define _GNU_SOURCE
#include "host.h"
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* Reads the first line of DIR/NAME. Returns whether there is one. */
static bool read_line(const char *dir, const char *name, char *line, size_t size)
{
    char path[2 * PATH_MAX + 32];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *file = fopen(path, "r");
    const bool found = file && fgets(line, (int)size, file);
    if (file) fclose(file);
    return found;
}

/* The quota of a group in processors; 0 if it has none. */
static double quota_of(const char *dir)
{
    char line[128];
    double quota = 0;
    double period = 0;
    if (read_line(dir, "cpu.max", line, sizeof line)) {
        /* "max" is no number. */
        if (sscanf(line, "%lf %lf", &quota, &period) != 2) return 0;
    } else if (read_line(dir, "cpu.cfs_quota_us", line, sizeof line)) {
        quota = strtod(line, NULL);
        if (read_line(dir, "cpu.cfs_period_us", line, sizeof line)) period = strtod(line, NULL);
    }
    return quota > 0 && period > 0 ? quota / period : 0;
}

/* The smallest quota of a group and of those above it, up to the mount. */
static double smallest_quota(const char *mount, const char *group)
{
    char dir[2 * PATH_MAX];
    double smallest = 0;
    snprintf(dir, sizeof dir, "%s%s", mount, group);
    while (strlen(dir) >= strlen(mount)) {
        const double quota = quota_of(dir);
        if (quota > 0 && (smallest == 0 || quota < smallest)) smallest = quota;
        *strrchr(dir, '/') = 0;
    }
    return smallest;
}

/* Whether the comma-separated list has the word "cpu". */
static bool has_cpu(char *list)
{
    char *rest = NULL;
    for (char *word = strtok_r(list, ",", &rest); word; word = strtok_r(NULL, ",", &rest))
        if (strcmp(word, "cpu") == 0) return true;
    return false;
}

/* The quota that a line of /proc/self/cgroup leads to: "0::/a" or "3:cpu,cpuacct:/a". */
static double quota_of_line(char *line)
{
    static const char *const mounts[] = { "/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct",
                                          "/sys/fs/cgroup/cpuacct,cpu" };
    char *names = strchr(line, ':');
    char *group = names ? strchr(names + 1, ':') : NULL;
    if (!group) return 0;
    *names++ = 0;
    *group++ = 0;
    group[strcspn(group, "\n")] = 0;

    /* Version 2 has one hierarchy without names. */
    if (strcmp(line, "0") == 0 && !*names) return smallest_quota("/sys/fs/cgroup", group);
    if (!has_cpu(names)) return 0;
    for (size_t i = 0; i < sizeof mounts / sizeof *mounts; i++) {
        const double quota = smallest_quota(mounts[i], group);
        if (quota > 0) return quota;
    }
    return 0;
}

/* The smallest quota that limits this process; 0 if none does. */
static double own_quota(void)
{
    char line[PATH_MAX];
    double smallest = 0;
    FILE *file = fopen("/proc/self/cgroup", "r");
    while (file && fgets(line, sizeof line, file)) {
        const double quota = quota_of_line(line);
        if (quota > 0 && (smallest == 0 || quota < smallest)) smallest = quota;
    }
    if (file) fclose(file);
    return smallest;
}

/* The processors of the affinity mask; 0 if it cannot be read. */
static int affinity(void)
{
    int most = 1024;
    int count = 0;
    /* A mask that is too small for the machine is refused. */
    for (; most <= 1 << 16 && count == 0; most *= 2) {
        cpu_set_t *set = CPU_ALLOC((size_t)most);
        const size_t size = CPU_ALLOC_SIZE((size_t)most);
        if (set && sched_getaffinity(0, size, set) == 0) count = CPU_COUNT_S(size, set);
        CPU_FREE(set);
    }
    return count;
}

const host_processors *sz_processors_find(void)
{
    static host_processors found;
    if (found.usable) return &found;
    found.online = (int)sysconf(_SC_NPROCESSORS_ONLN);
    if (found.online < 1) found.online = 1;
    found.affinity = affinity();
    if (found.affinity < 1) found.affinity = found.online;
    found.quota = own_quota();

    const int whole = (int)found.quota;
    const int rounded_up = whole + (found.quota > whole);
    found.usable = found.affinity;
    if (found.quota > 0 && rounded_up < found.usable) found.usable = rounded_up;
    return &found;
}

/* Whether /proc/loadavg says that other programs keep the machine busy: now, and in the last
 * minute. */
static bool looks_busy(const host_processors *p)
{
    char line[128];
    double minute = 0;
    int running = 0; /* this process is one of them */
    if (!read_line("/proc", "loadavg", line, sizeof line)) return false;
    if (sscanf(line, "%lf %*f %*f %d/", &minute, &running) != 2) return false;
    return running - 1 + p->usable > p->online && minute + p->usable > p->online + 0.5;
}

/* Whether it keeps saying so for a few milliseconds. The load of the last minute may come from this
 * user's previous command, and the program that runs now may be the shell that started this one, or
 * one that reads its output: those are soon waiting. */
static bool is_busy(const host_processors *p)
{
    enum { LOOKS = 5, MOST_IDLE = 1 };
    static const struct timespec moment = { 0, 1000000 };
    int idle = 0;
    for (int look = 0; look < LOOKS; look++) {
        if (look > 0) nanosleep(&moment, NULL);
        idle += !looks_busy(p);
        if (idle > MOST_IDLE) return false;
    }
    return true;
}

/* How often a thread of OpenMP looks whether there is work before it sleeps: 1000 looks take 24 to
 * 45 microseconds. libgomp's own 300,000 take milliseconds, which on a busy machine are taken from
 * the thread that it waits for (docs/speed.md). */
#define SPINS_ALONE "10000"
#define SPINS_BUSY "0"

void sz_processors_set_environment(void)
{
    char threads[16];
    const host_processors *p = sz_processors_find();
    snprintf(threads, sizeof threads, "%d", p->usable);
    /* OpenMP follows the affinity mask by itself, but knows no quota. */
    if (p->usable < p->affinity && !getenv("SEGZERO_THREADS"))
        setenv("OMP_NUM_THREADS", threads, 0);
    if (!getenv("OMP_WAIT_POLICY"))
        setenv("GOMP_SPINCOUNT", is_busy(p) ? SPINS_BUSY : SPINS_ALONE, 0);
}
