/* emulate_internal.h - what the emulator's parts share: emulate.cc has memory, streams and the
 * runtime's functions, threads.cc runs kernels.
 * Leaves out: what kernels and the backend see (emulate.h). */
#ifndef SZ_EMULATE_INTERNAL_H
#define SZ_EMULATE_INTERNAL_H

#include "emulate.h"

enum { SZ_EMU_MAX_SHARED = 227 << 10 }; /* bytes of shared memory in a block */

/* Keeps e for cudaGetLastError unless it is cudaSuccess, and returns it. */
cudaError_t sz_emu_fail(cudaError_t e);

/* Counts a kernel that the host launched; a graph's kernels do not count. */
void sz_emu_count_launch(void);

#endif
