/* memory.c - figures about memory, failures that tests inject, and calls about pages.
 * Leaves out: who holds memory (arena.c, heap.c).
 */
#include "memory.h"
#include <sys/mman.h>
#include <sys/resource.h>

static int64_t live_bytes;
static int64_t system_allocs;
static int64_t fail_after = -1;

int64_t sz_live_bytes(void) { return live_bytes; }
int64_t sz_system_allocs(void) { return system_allocs; }
void sz_fail_alloc_after(int64_t n) { fail_after = n; }

void sz_memory_hold(int64_t bytes) { live_bytes += bytes; }
void sz_memory_asked(void) { system_allocs++; }

bool sz_memory_fails(void)
{
    if (fail_after < 0 || fail_after-- > 0) return false;
    sz_fail("out of memory (injected)");
    return true;
}

size_t sz_alignment(int device) { return device == SZ_CPU ? 64 : 256; }

int64_t sz_peak_rss(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (int64_t)u.ru_maxrss * 1024;
}

/* ---- pages ---- */
enum { PAGE = 4096 };

/* The whole pages inside [p, p + bytes): *end is not after *first when there are none. */
static void whole_pages(const void *p, size_t bytes, uintptr_t *first, uintptr_t *end)
{
    const uintptr_t mask = ~(uintptr_t)(PAGE - 1);
    *first = ((uintptr_t)p + PAGE - 1) & mask;
    *end = ((uintptr_t)p + bytes) & mask;
}

void sz_unload_pages(const void *p, size_t bytes)
{
    uintptr_t first;
    uintptr_t end;
    whole_pages(p, bytes, &first, &end);
    if (end > first) madvise((void *)first, end - first, MADV_DONTNEED);
}

void sz_zero_pages(void *p, size_t bytes)
{
    enum { LARGE = 1 << 20 };
    uintptr_t first;
    uintptr_t end;
    whole_pages(p, bytes, &first, &end);
    if (bytes < LARGE || madvise((void *)first, end - first, MADV_DONTNEED) != 0) {
        memset(p, 0, bytes);
        return;
    }
    /* The parts of pages at both ends. */
    memset(p, 0, first - (uintptr_t)p);
    memset((void *)end, 0, (uintptr_t)p + bytes - end);
}
