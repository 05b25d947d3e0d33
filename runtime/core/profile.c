/* profile.c - with SEGZERO_PROFILE=1: where the time of a run's ops went, printed to stderr at
 * its end. For each op: seconds, share, calls, and 10^9 floating-point operations a second where
 * the op has a FLOP count (the column flops of ops.def).
 *
 * The seconds are those of kernels alone. On the CPU they are processor time of all threads, so
 * that other programs do not count; on a device they are wall time, and each kernel is waited
 * for. What the backward pass computes again is counted again.
 * Leaves out: the work between ops.
 */
#include "core.h"
#include "device.h"
#include "tape.h"
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static struct {
    int64_t calls;
    double seconds, flops;
} spent[SZ_OP_COUNT];

static double now(int device)
{
    struct timespec t;
    clock_gettime(device == SZ_CPU ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int by_time(const void *a, const void *b)
{
    const double x = spent[*(const int *)a].seconds;
    const double y = spent[*(const int *)b].seconds;
    return (x < y) - (x > y);
}

static void report(void)
{
    int order[SZ_OP_COUNT];
    double total = 0;
    for (int i = 0; i < SZ_OP_COUNT; i++) {
        order[i] = i;
        total += spent[i].seconds;
    }
    qsort(order, SZ_OP_COUNT, sizeof *order, by_time);

    fprintf(stderr, "%-26s %9s %6s %9s %8s\n", "op", "seconds", "%", "calls", "GFLOP/s");
    for (int i = 0; i < SZ_OP_COUNT && spent[order[i]].calls; i++) {
        const int op = order[i];
        const double seconds = spent[op].seconds;
        fprintf(stderr, "%-26s %9.3f %6.1f %9lld", sz_ops[op].name, seconds, 100 * seconds / total,
                (long long)spent[op].calls);
        if (spent[op].flops > 0) fprintf(stderr, " %8.1f", spent[op].flops / seconds / 1e9);
        fprintf(stderr, "\n");
    }
    fprintf(stderr, "%-26s %9.3f\n", "all ops", total);
}

bool sz_profiling(void)
{
    static int on = -1;
    if (on < 0) {
        const char *wanted = getenv("SEGZERO_PROFILE");
        on = wanted && strcmp(wanted, "1") == 0;
        if (on) atexit(report);
    }
    return on;
}

int sz_profile(int op, sz_kernel kernel, const sz_call *c, int device)
{
    const double start = now(device);
    int rc = kernel(c);
    if (device != SZ_CPU && rc == 0) rc = sz_device_synchronise();
    spent[op].seconds += now(device) - start;
    if (sz_ops[op].flops) spent[op].flops += sz_ops[op].flops(c);
    spent[op].calls++;
    return rc;
}
