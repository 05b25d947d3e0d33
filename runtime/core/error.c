/* error.c - what is neither tensor nor op: the error message of each thread, panics, threads, the
 * interrupt flag, the clock.
 * Leaves out: signal handling. The host program sets the interrupt flag.
 */
#include "core.h"
#include <omp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static __thread char message[1024];
static volatile int interrupt_flag;

const char *sz_version(void) { return SZ_VERSION; }
const char *sz_last_error(void) { return message; }

int sz_fail(const char *format, ...)
{
    va_list values;
    va_start(values, format);
    vsnprintf(message, sizeof message, format, values);
    va_end(values);
    return -1;
}

void *sz_null(const char *format, ...)
{
    va_list values;
    va_start(values, format);
    vsnprintf(message, sizeof message, format, values);
    va_end(values);
    return NULL;
}

void sz_panic(const char *file, int line, const char *what)
{
    fprintf(stderr, "segzero: broken invariant at %s:%d: %s\n", file, line, what);
    abort();
}

void sz_set_threads(int n) { omp_set_num_threads(n < 1 ? omp_get_num_procs() : n); }
int sz_threads(void) { return omp_get_max_threads(); }

void sz_interrupt_set(int on) { interrupt_flag = on; }
int sz_interrupt_pending(void) { return interrupt_flag; }

double sz_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
