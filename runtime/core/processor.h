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

/* Whether it is one of AMD's Zen 1 to 4. One thread of Zen 4 reads 32 GB/s as a single stream that
 * it fetches by itself, and 21 as four. With four streams and the next weights fetched into the
 * second-level cache alone it reads 26 GB/s, and 19 if they go to the first as well. Zen 1 to 3
 * were not measured. */
static inline bool sz_processor_is_zen_1_to_4(void)
{
#ifdef __x86_64__
    return __builtin_cpu_is("amdfam17h") || __builtin_cpu_is("amdfam19h");
#else
    return false;
#endif
}

#endif
