/* processor.h - the CPU kernels that this machine runs.
 * Leaves out: the kernels (cpu/), the interface for scripts (sz.h).
 */
#ifndef SZ_PROCESSOR_H
#define SZ_PROCESSOR_H

#include "cpu/kernels.h"

/* The kernels that sz_processor_choose chose, or the best ones for this processor. */
const sz_cpu_kernels *sz_processor(void);

/* Whether Intel made this one: what suits it in bf16 (cpu/gemm.c) and in reading memory
 * (cpu/int8.c) is not what suits AMD's. */
static inline bool sz_processor_is_intel(void)
{
#ifdef __x86_64__
    return __builtin_cpu_is("intel");
#else
    return false;
#endif
}

#endif
