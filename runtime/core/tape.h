/* tape.h - what the core's files need of the tape and of the profiler, and of memory.h with them.
 */
#ifndef SZ_TAPE_H
#define SZ_TAPE_H

#include "core.h"
#include "memory.h"

/* Drops the nodes after the first `length`, and the references that they hold. */
void sz_tape_truncate(int length);

/* SEGZERO_PROFILE=1; kernels are then run by sz_profile, which returns what the kernel returns. */
bool sz_profiling(void);
int sz_profile(int op, sz_kernel kernel, const sz_call *c, int device);

#endif
