/* fetch.h - fetching weights before they are needed.
 * Leaves out: which ones (the kernels know), where to (core/processor.h).
 */
#ifndef SZ_CPU_FETCH_H
#define SZ_CPU_FETCH_H

#include "core/processor.h"

/* Fetches the line at p into the second-level cache alone, or into the first as well. */
static inline __attribute__((always_inline)) void sz_fetch(const void *p, bool to_l2)
{
    if (to_l2) __builtin_prefetch(p, 0, 2);
    else __builtin_prefetch(p, 0, 3);
}

#endif
