/* device.cuh - what device.cu gives table.cu: the entries of sz_backend (backend.h says what each does). */
#ifndef SZ_CUDA_DEVICE_CUH
#define SZ_CUDA_DEVICE_CUH

#include "cuda.cuh"

extern "C" {
#include "../backend.h"

int         sz_cuda_count(void);
int         sz_cuda_open(const sz_backend_core *core);
const char *sz_cuda_describe(void);
int         sz_cuda_memory(int64_t *available, int64_t *total);
void       *sz_cuda_allocate(size_t bytes);
void        sz_cuda_release(void *p);
int         sz_cuda_to_device(void *dst, const void *src, size_t bytes);
int         sz_cuda_to_host(void *dst, const void *src, size_t bytes);
int         sz_cuda_move(void *dst, const void *src, size_t bytes);
int         sz_cuda_fill(void *dst, int byte, size_t bytes);
int         sz_cuda_synchronise(void);
}

#endif
