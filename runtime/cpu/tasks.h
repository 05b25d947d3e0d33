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

#endif
