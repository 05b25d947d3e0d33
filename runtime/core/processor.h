/* processor.h - the CPU kernels that this machine runs.
 * Leaves out: the kernels (cpu/), the interface for scripts (sz.h).
 */
#ifndef SZ_PROCESSOR_H
#define SZ_PROCESSOR_H

#include "cpu/kernels.h"

/* The kernels that sz_processor_choose chose, or the best ones for this processor. */
const sz_cpu_kernels *sz_processor(void);

#endif
