/* cuda.cuh - what the CUDA kernels' files share: launching, workspace, index tensors on the device, element access, reductions.
 *
 * A kernel file defines extern "C" int sz_cuda_<op>(const sz_call *c) for each of its rows of ops.def. Floating tensors of the call
 * are on the device; index tensors (i32: ids, segments) stay in host memory, where ops.c has checked them, and
 * sz_cuda_indices() gives their copy on the device. All work goes to one stream, in order.
 *
 * The same files also compile for a host processor (emulate.h): tests run every kernel without a GPU. So a launch is
 * SZ_LAUNCH(...), dynamic shared memory is SZ_SHARED_DYNAMIC, and what is not in emulate.h is not used.
 * Sums are f32 or better, in an order that depends on the shapes alone: no float atomics, so runs repeat bit for bit. */
#ifndef SZ_CUDA_CUH
#define SZ_CUDA_CUH

#ifdef SZ_EMULATE
#include "emulate.h"
#else
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#define SZ_LAUNCH(kernel, grid, block, shared_bytes, ...) kernel<<<(grid), (block), (shared_bytes), sz_cuda_stream()>>>(__VA_ARGS__)
#define SZ_SHARED_DYNAMIC(type, name) extern __shared__ __align__(128) unsigned char sz_shared_bytes[]; type *name = reinterpret_cast<type *>(sz_shared_bytes)
#endif

extern "C" {
#include "core/core.h"
}
#include <cstdlib>
#include <cstring>

typedef __nv_bfloat16 bf16;

extern "C" {
/* ---- device.cu ---- */
cudaStream_t   sz_cuda_stream(void);
int            sz_cuda_check(cudaError_t e, const char *what);   /* 0, or -1 with a message */
int            sz_cuda_launched(const char *op);                 /* after SZ_LAUNCH: 0, or -1 with a message that names the op */
/* Workspace on the device, 256-byte aligned, until this kernel call returns (later calls may reuse it: one stream). NULL with a message. */
void          *sz_cuda_scratch(size_t bytes);
/* The device's copy of a host i32 tensor, kept by its content. NULL with a message. */
const int32_t *sz_cuda_indices(const sz_tensor *t);
/* What a kernel makes of a host i32 tensor and three numbers, kept by their content and kind (from 1 on): device NULL says that it
 * is still to be made, filled by sz_cuda_plan_fill with bytes that go to the device; numbers are the caller's, 0 at first. To be
 * used in this kernel call. NULL or -1 with a message. */
typedef struct { const char *device; int64_t number[8]; } sz_cuda_plan;
sz_cuda_plan  *sz_cuda_plan_of(const sz_tensor *t, int32_t kind, int32_t x, int32_t y, int32_t z);
int            sz_cuda_plan_fill(sz_cuda_plan *plan, const void *host, size_t bytes);
int            sz_cuda_processors(void);                         /* multiprocessors of the device */
}

/* ---- what is kept by a key: of entries with a key, whose padding is set, and `used` ---- */
/* The key's entry, or a free one near its place (FNV-1a), or, as all of those are taken, one that is to be given up: used, with another key. */
template <class Entry, class Key> Entry *sz_cuda_entry(Entry *table, int size, const Key &key)
{
    enum { PROBES = 8 };
    uint64_t hash = 14695981039346656037u;
    for (size_t i = 0; i < sizeof key; i++) hash = (hash ^ ((const unsigned char *)&key)[i]) * 1099511628211u;
    for (int i = 0; i < PROBES; i++) {
        Entry *e = &table[(hash + (uint64_t)i) % (uint64_t)size];
        if (!e->used || memcmp(&e->key, &key, sizeof key) == 0) return e;
    }
    return &table[hash % (uint64_t)size];
}

/* The environment variable is this digit. */
static inline bool sz_cuda_setting(const char *name, char digit)
{
    const char *set = getenv(name);
    return set && set[0] == digit && !set[1];
}

/* ---- elements ---- */
__device__ __forceinline__ float sz_load(const float *p) { return *p; }
__device__ __forceinline__ float sz_load(const bf16 *p) { return __bfloat162float(*p); }
__device__ __forceinline__ void sz_store(float *p, float v) { *p = v; }
__device__ __forceinline__ void sz_store(bf16 *p, float v) { *p = __float2bfloat16(v); }      /* to nearest even */

/* Runs the statement with T as the element type of dtype. */
#define SZ_FLOATING(dtype, T, ...) do { \
        if ((dtype) == SZ_F32) { typedef float T; __VA_ARGS__; } \
        else { typedef bf16 T; __VA_ARGS__; } \
    } while (0)

/* ---- reductions; every thread gets the result ---- */
__device__ __forceinline__ float sz_warp_sum(float v)
{
    for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(0xffffffffu, v, step);
    return v;
}

__device__ __forceinline__ float sz_warp_max(float v)
{
    for (int step = 16; step > 0; step /= 2) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, step));
    return v;
}

/* Over the THREADS threads of a block (a multiple of 32, one dimension); two may follow each other without a barrier between. */
template <int THREADS> __device__ __forceinline__ float sz_block_sum(float v)
{
    __shared__ float part[THREADS / 32];
    v = sz_warp_sum(v);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = v;
    __syncthreads();
    float sum = 0;
    for (int i = 0; i < THREADS / 32; i++) sum += part[i];
    __syncthreads();
    return sum;
}

template <int THREADS> __device__ __forceinline__ float sz_block_max(float v)
{
    __shared__ float part[THREADS / 32];
    v = sz_warp_max(v);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = v;
    __syncthreads();
    float largest = part[0];
    for (int i = 1; i < THREADS / 32; i++) largest = fmaxf(largest, part[i]);
    __syncthreads();
    return largest;
}

#endif
