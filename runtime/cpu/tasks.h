/* tasks.h - pieces of work that threads take one after the other, each knowing the next that it will
 * compute, to fetch it in time:
 *
 *     int64_t taken = 0;
 *     #pragma omp parallel
 *     for (sz_task t = sz_first_task(&taken, some); t.first < all; sz_next_task(&t, &taken, some))
 *
 * Leaves out: an order that is the same every time. schedule(static) has one.
 */
#ifndef SZ_TASKS_H
#define SZ_TASKS_H

#include <stdint.h>

/* Where a thread's piece begins, and where its next one does. */
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

#endif
