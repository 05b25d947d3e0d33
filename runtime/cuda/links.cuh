/* links.cuh - what device.cu, decode.cu and table.cu use of nccl.cu.
 * Leaves out: messages and sums, which the core calls through the table (comm/links.h). */
#ifndef SZ_CUDA_LINKS_CUH
#define SZ_CUDA_LINKS_CUH

#include "device.cuh"

extern "C" {
#include "comm/links.h"
}

/* Waits for the event, or for all work if it is NULL. While devices of ranks talk to each other
 * the wait ends when one of them fails (nccl.cu). Returns 0, or -1 with a message. */
int sz_cuda_wait(cudaEvent_t e, const char *what);

/* Returns the line "nccl: ..." of the device description; borrowed. */
const char *sz_cuda_links_describe(void);

const sz_links *sz_cuda_links(void);

#endif
