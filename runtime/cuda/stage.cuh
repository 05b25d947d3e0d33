/* stage.cuh - what device.cu uses of the staging buffer (stage.cu). decode.cu uses the functions in
 * device.cuh.
 * Leaves out: the buffer itself. */
#ifndef SZ_CUDA_STAGE_CUH
#define SZ_CUDA_STAGE_CUH

#include "device.cuh"

/* Returns -1 with a message while a decode step is being recorded, else 0. What would follow
 * belongs to this one step, or would break the recording. */
int sz_cuda_not_recording(const char *what);

bool sz_cuda_stage_is_open(void);

/* Returns the staged entry of these host bytes and key once they have been sent, else NULL. */
sz_cuda_cache_entry *sz_cuda_staged(const void *source, size_t bytes, const int32_t key[4]);

/* Adds an entry, which sz_cuda_stage_fill then fills. NULL with a message if there are too many. */
sz_cuda_cache_entry *sz_cuda_stage_entry(const void *source, size_t bytes, const int32_t key[4]);

/* Whether an entry is the staging buffer's. */
bool sz_cuda_is_staged(const sz_cuda_cache_entry *entry);

/* Copies the bytes into the buffer. Returns 0, or -1 with a message. */
int sz_cuda_stage_fill(sz_cuda_cache_entry *entry, const void *host, size_t bytes);

#endif
