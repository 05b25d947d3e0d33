/* emulate_internal.h - what the emulator's parts share: emulate.cc has memory and the runtime's
 * functions, streams.cc the streams, threads.cc runs kernels.
 * Leaves out: what kernels and the backend see (emulate.h). */
#ifndef SZ_EMULATE_INTERNAL_H
#define SZ_EMULATE_INTERNAL_H

#include "emulate.h"

enum { SZ_EMU_MAX_SHARED = 227 << 10 }; /* bytes of shared memory in a block */

/* Keeps e for cudaGetLastError unless it is cudaSuccess, and returns it. */
cudaError_t sz_emu_fail(cudaError_t e);

/* What sz_emu_counts returns, to be counted up. */
sz_emu_count *sz_emu_counted(void);

/* Whether a call that CUDA refuses during a capture is to be refused now; the capture is broken
 * then. */
bool sz_emu_refused(void);
#define SZ_EMU_REFUSED_IN_CAPTURE \
    do { \
        if (sz_emu_refused()) return cudaErrorStreamCaptureUnsupported; \
    } while (0)

/* Runs all work of all streams. */
void sz_emu_drain(void);

/* Aborts unless the bytes are allocated device memory (device), or host memory. */
void sz_emu_check_memory(const char *what, const void *p, size_t bytes, bool device);

/* Counts a kernel that the host launched; a graph's kernels do not count. */
void sz_emu_count_launch(void);

#endif
