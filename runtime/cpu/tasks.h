/* tasks.h - threads take pieces of work from a counter. A thread takes its next piece before it
 * computes one, so that it can fetch the next piece's weights meanwhile.
 *
 *     int64_t taken = 0;
 *     #pragma omp parallel
 *     for (sz_task t = sz_first_task(&taken, some); t.first < all; sz_next_task(&t, &taken, some))
 *
 * Leaves out: a fixed division of the work, which schedule(static) has.
 */
#ifndef SZ_TASKS_H
#define SZ_TASKS_H

#include <stdbool.h>
#include <stdint.h>

/* Where a thread's piece begins and where its next one does; from `all` on there is none. */
typedef struct {
    int64_t first, next;
} sz_task;

/* Takes `some` of what *taken counts; returns the first. */
static inline int64_t sz_take(int64_t *taken, int64_t some)
{
    int64_t first;
#pragma omp atomic capture
    {
        first = *taken;
        *taken += some;
    }
    return first;
}

static inline sz_task sz_first_task(int64_t *taken, int64_t some)
{
    const int64_t first = sz_take(taken, some);
    return (sz_task){ first, sz_take(taken, some) };
}

static inline void sz_next_task(sz_task *t, int64_t *taken, int64_t some)
{
    t->first = t->next;
    t->next = sz_take(taken, some);
}

/* Takes up to `most` of what is left of `all`; less towards the end, so that all threads end at
 * about the same time. Returns how many, from *first on; 0 if nothing is left. */
static inline int64_t sz_take_shrinking(int64_t *taken, int64_t all, int64_t most, int threads,
                                        int64_t *first)
{
    *first = __atomic_load_n(taken, __ATOMIC_RELAXED);
    for (;;) {
        int64_t some = (all - *first) / (2 * threads);
        if (some > most) some = most;
        if (some < 1) some = *first < all ? 1 : 0;
        if (__atomic_compare_exchange_n(taken, first, *first + some, false, __ATOMIC_RELAXED,
                                        __ATOMIC_RELAXED))
            return some;
    }
}

#endif
