/* base.c - what is neither tensor nor op: the error message of each thread, panics, threads, interrupts, clock, memory
 * figures. Leaves out signal handling: the host program sets the interrupt flag. */
#include "core.h"
#include <omp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>

static __thread char message[1024];
static volatile int interrupt_flag;

const char *sz_version(void) { return SZ_VERSION; }
const char *sz_last_error(void) { return message; }

int sz_fail(const char *format, ...)
{
    va_list ap;
    va_start(ap, format);
    vsnprintf(message, sizeof message, format, ap);
    va_end(ap);
    return -1;
}

void *sz_null(const char *format, ...)
{
    va_list ap;
    va_start(ap, format);
    vsnprintf(message, sizeof message, format, ap);
    va_end(ap);
    return NULL;
}

void sz_panic(const char *file, int line, const char *what)
{
    fprintf(stderr, "segzero: broken invariant at %s:%d: %s\n", file, line, what);
    abort();
}

void sz_set_threads(int n) { omp_set_num_threads(n < 1 ? omp_get_num_procs() : n); }
int  sz_threads(void) { return omp_get_max_threads(); }

void sz_interrupt_set(int on) { interrupt_flag = on; }
int  sz_interrupt_pending(void) { return interrupt_flag; }

double sz_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void sz_unload_pages(const void *p, size_t bytes)
{
    const uintptr_t page = 4096, first = ((uintptr_t)p + page - 1) & ~(page - 1), last = ((uintptr_t)p + bytes) & ~(page - 1);
    if (last > first) madvise((void *)first, last - first, MADV_DONTNEED);
}

void sz_zero_pages(void *p, size_t bytes)
{
    const uintptr_t page = 4096, first = ((uintptr_t)p + page - 1) & ~(page - 1), last = ((uintptr_t)p + bytes) & ~(page - 1);
    if (bytes < (1 << 20) || madvise((void *)first, last - first, MADV_DONTNEED) != 0) {
        memset(p, 0, bytes);
        return;
    }
    memset(p, 0, first - (uintptr_t)p);
    memset((void *)last, 0, (uintptr_t)p + bytes - last);
}

int64_t sz_peak_rss(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (int64_t)u.ru_maxrss * 1024;
}
