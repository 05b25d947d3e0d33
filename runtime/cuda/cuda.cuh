/* cuda.cuh - what all CUDA files share: kernel launches, workspace, device copies of index tensors,
 * loads and stores of one element, reductions over a warp or a block.
 *
 * For each of its rows of ops.def a kernel file defines extern "C" int sz_cuda_<op>(const sz_call
 * *). The floating tensors of a call are in device memory. Index tensors (i32: ids, segments) stay
 * in host memory, where the core has already checked them; sz_cuda_indices() returns a device copy.
 * All work goes to one stream, in order.
 *
 * The same files also compile for the host processor (tests/cuda_emulator/emulate.h), so that tests
 * run every kernel without a GPU. Kernels are therefore launched with SZ_LAUNCH(...), dynamic
 * shared memory is declared with SZ_SHARED_DYNAMIC, and only what emulate.h provides may be used.
 * Sums are f32 or better, in an order that depends on the shapes alone. There are no floating-point
 * atomics, so two runs give the same bits.
 * Leaves out: several devices, several streams. */
#ifndef SZ_CUDA_CUH
#define SZ_CUDA_CUH

#ifdef SZ_EMULATE
#include "emulate.h"
#else
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#define SZ_LAUNCH(kernel, grid, block, shared_bytes, ...) \
    kernel<<<(grid), (block), (shared_bytes), sz_cuda_stream()>>>(__VA_ARGS__)
#define SZ_SHARED_DYNAMIC(type, name) \
    extern __shared__ __align__(128) unsigned char sz_shared_bytes[]; \
    type *name = reinterpret_cast<type *>(sz_shared_bytes)
#endif

extern "C" {
#include "core/core.h"
}
#include <cstdlib>
#include <cstring>

typedef __nv_bfloat16 bf16;

extern "C" {
/* ---- device.cu ---- */
cudaStream_t sz_cuda_stream(void);

/* Returns 0 for cudaSuccess, else -1 with the message "cuda: <what>: <CUDA's text>". */
int sz_cuda_check(cudaError_t error, const char *what);

/* Call after SZ_LAUNCH. Returns 0, or -1 with a message that names the op. */
int sz_cuda_launched(const char *op);

/* Returns device workspace, 256-byte aligned, valid until this kernel call returns. A later call
 * may get the same bytes, which is safe because all work goes to one stream. NULL with a message.
 * */
void *sz_cuda_scratch(size_t bytes);

/* Returns the device copy of a host i32 tensor, cached by content. NULL with a message. */
const int32_t *sz_cuda_indices(const sz_tensor *t);

/* An entry of the cache of device data that kernels derive from a host i32 tensor, such as the task
 * list that attention makes of a segment table. The key is the tensor's content, a kind (1 or more)
 * and three numbers. While device is NULL the entry is empty: the caller computes the bytes and
 * hands them to sz_cuda_cache_fill. number[] belongs to the caller and starts as zeros.
 * An entry is valid during the kernel call that looked it up. */
typedef struct {
    const char *device;
    int64_t number[8];
} sz_cuda_cache_entry;

/* Returns the entry, which may be empty. NULL with a message. */
sz_cuda_cache_entry *sz_cuda_cache_get(const sz_tensor *t, int32_t kind, int32_t x, int32_t y,
                                       int32_t z);

/* Copies the bytes to the device and sets entry->device. Returns 0, or -1 with a message. */
int sz_cuda_cache_fill(sz_cuda_cache_entry *entry, const void *host, size_t bytes);

/* Returns the number of multiprocessors of the device. */
int sz_cuda_processors(void);
}

/* ---- small hash tables with a fixed number of slots ---- */
/* Entry needs the members `key` (with its padding bytes set) and `used`. Hashes the key with FNV-1a
 * and probes 8 slots. Returns the key's slot or a free one; if all probed slots are taken, returns
 * one that the caller must evict: it is `used` and has another key. */
template <class Entry, class Key> Entry *sz_cuda_hash_slot(Entry *table, int size, const Key &key)
{
    enum { PROBES = 8 };
    uint64_t hash = 14695981039346656037u;
    for (size_t i = 0; i < sizeof key; i++)
        hash = (hash ^ ((const unsigned char *)&key)[i]) * 1099511628211u;
    for (int i = 0; i < PROBES; i++) {
        Entry *e = &table[(hash + (uint64_t)i) % (uint64_t)size];
        if (!e->used || memcmp(&e->key, &key, sizeof key) == 0) return e;
    }
    return &table[hash % (uint64_t)size];
}

/* Returns whether the environment variable consists of exactly this digit. */
static inline bool sz_cuda_env_is(const char *name, char digit)
{
    const char *value = getenv(name);
    return value && value[0] == digit && !value[1];
}

/* ---- one element ---- */
__device__ __forceinline__ float sz_load(const float *p) { return *p; }
__device__ __forceinline__ float sz_load(const bf16 *p) { return __bfloat162float(*p); }
__device__ __forceinline__ void sz_store(float *p, float v) { *p = v; }
/* Rounds to nearest even. */
__device__ __forceinline__ void sz_store(bf16 *p, float v) { *p = __float2bfloat16(v); }

/* Runs the statement with T defined as the element type of dtype (f32 or bf16). */
#define SZ_FLOATING(dtype, T, ...) \
    do { \
        if ((dtype) == SZ_F32) { \
            typedef float T; \
            __VA_ARGS__; \
        } else { \
            typedef bf16 T; \
            __VA_ARGS__; \
        } \
    } while (0)

/* ---- reductions; every thread gets the result ---- */
__device__ __forceinline__ float sz_warp_sum(float v)
{
    for (int distance = 16; distance > 0; distance /= 2)
        v += __shfl_xor_sync(0xffffffffu, v, distance);
    return v;
}

__device__ __forceinline__ float sz_warp_max(float v)
{
    for (int distance = 16; distance > 0; distance /= 2)
        v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, distance));
    return v;
}

/* Reduces over a one-dimensional block of THREADS threads, a multiple of 32. Ends with a barrier,
 * so two reductions may follow each other directly. */
template <int THREADS> __device__ __forceinline__ float sz_block_sum(float v)
{
    __shared__ float partial[THREADS / 32];
    v = sz_warp_sum(v);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = v;
    __syncthreads();
    float sum = 0;
    for (int i = 0; i < THREADS / 32; i++) sum += partial[i];
    __syncthreads();
    return sum;
}

template <int THREADS> __device__ __forceinline__ float sz_block_max(float v)
{
    __shared__ float partial[THREADS / 32];
    v = sz_warp_max(v);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = v;
    __syncthreads();
    float largest = partial[0];
    for (int i = 1; i < THREADS / 32; i++) largest = fmaxf(largest, partial[i]);
    __syncthreads();
    return largest;
}

#endif
