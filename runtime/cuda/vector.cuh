/* vector.cuh - vectors of SZ_VECTOR neighbouring elements, f32 or bf16, held as f32 in registers.
 *
 * The dtype is tested when a kernel runs. The branch is the same for all threads of a launch, and
 * one kernel serves every mixture of dtypes. Memory is accessed 16 bytes at a time. Each kernel
 * that uses vectors exists for W = SZ_VECTOR and, for row lengths or pointers that do not allow
 * vectors, W = 1. Leaves out: integer types. */
#ifndef SZ_VECTOR_CUH
#define SZ_VECTOR_CUH
#include "device.cuh"

enum { SZ_VECTOR = 8 };

/* Floating elements in device memory: of a tensor, or workspace. */
typedef struct {
    void *data;
    bool is_bf16;
} sz_elements;

static inline sz_elements sz_elements_of(const sz_tensor *t)
{
    return sz_elements{ t->data, t->dtype == SZ_BF16 };
}

static inline sz_elements sz_elements_f32(float *p) { return sz_elements{ p, false }; }

/* The tensor's elements from `first` on. */
static inline sz_elements sz_elements_from(const sz_tensor *t, int64_t first)
{
    return sz_elements{ (char *)t->data + first * (int64_t)sz_dtype_size(t->dtype),
                        t->dtype == SZ_BF16 };
}

/* Whether vectors may start at this address. */
static inline bool sz_is_aligned16(const void *data) { return ((uintptr_t)data & 15) == 0; }
static inline bool sz_is_aligned16(const sz_tensor *t) { return sz_is_aligned16(t->data); }

/* Bytes of any type as 32-bit words, which the compiler loads or stores with one instruction. */
template <int WORDS> struct sz_words;
template <> struct __attribute__((may_alias, aligned(4))) sz_words<1> {
    uint32_t v[1];
};
template <> struct __attribute__((may_alias, aligned(8))) sz_words<2> {
    uint32_t v[2];
};
template <> struct __attribute__((may_alias, aligned(16))) sz_words<4> {
    uint32_t v[4];
};

/* ---- loads and stores of W elements ---- */
template <int W> __device__ __forceinline__ void sz_load_vector(const float *p, float (&v)[W])
{
    constexpr int N = W < 4 ? W : 4;
    for (int i = 0; i < W; i += N) {
        const sz_words<N> q = *reinterpret_cast<const sz_words<N> *>(p + i);
        for (int j = 0; j < N; j++) v[i + j] = __uint_as_float(q.v[j]);
    }
}

template <int W> __device__ __forceinline__ void sz_load_vector(const bf16 *p, float (&v)[W])
{
    if constexpr (W == 1) {
        v[0] = sz_load(p);
    } else {
        /* A bf16 is the upper half of the f32 with the same value. */
        const sz_words<W / 2> q = *reinterpret_cast<const sz_words<W / 2> *>(p);
        for (int j = 0; j < W / 2; j++) {
            v[2 * j] = __uint_as_float(q.v[j] << 16);
            v[2 * j + 1] = __uint_as_float(q.v[j] & 0xffff0000u);
        }
    }
}

template <int W> __device__ __forceinline__ void sz_store_vector(float *p, const float (&v)[W])
{
    constexpr int N = W < 4 ? W : 4;
    for (int i = 0; i < W; i += N) {
        sz_words<N> q;
        for (int j = 0; j < N; j++) q.v[j] = __float_as_uint(v[i + j]);
        *reinterpret_cast<sz_words<N> *>(p + i) = q;
    }
}

template <int W> __device__ __forceinline__ void sz_store_vector(bf16 *p, const float (&v)[W])
{
    if constexpr (W == 1) {
        sz_store(p, v[0]);
    } else {
        sz_words<W / 2> q;
        for (int j = 0; j < W / 2; j++) {
            const __nv_bfloat162 pair = __floats2bfloat162_rn(v[2 * j], v[2 * j + 1]);
            memcpy(&q.v[j], &pair, sizeof pair);
        }
        *reinterpret_cast<sz_words<W / 2> *>(p) = q;
    }
}

template <int W>
__device__ __forceinline__ void sz_load_vector(const sz_elements &e, int64_t i, float (&v)[W])
{
    if (e.is_bf16) sz_load_vector<W>((const bf16 *)e.data + i, v);
    else sz_load_vector<W>((const float *)e.data + i, v);
}

template <int W> __device__ __forceinline__ void sz_store_vector(const sz_elements &e, int64_t i,
                                                                 const float (&v)[W])
{
    if (e.is_bf16) sz_store_vector<W>((bf16 *)e.data + i, v);
    else sz_store_vector<W>((float *)e.data + i, v);
}

/* ---- one element ---- */
__device__ __forceinline__ float sz_load_element(const sz_elements &e, int64_t i)
{
    return e.is_bf16 ? sz_load((const bf16 *)e.data + i) : ((const float *)e.data)[i];
}

__device__ __forceinline__ void sz_store_element(const sz_elements &e, int64_t i, float v)
{
    if (e.is_bf16) sz_store((bf16 *)e.data + i, v);
    else ((float *)e.data)[i] = v;
}

/* v rounded to bf16 and back. */
__device__ __forceinline__ float sz_round_bf16(float v)
{
    return __bfloat162float(__float2bfloat16(v));
}

/* ---- host side ---- */
/* Blocks that `items` items need: a rounded-up quotient. */
static inline int64_t sz_blocks(int64_t items, int64_t per_block)
{
    return (items + per_block - 1) / per_block;
}

/* Grid size for kernels with a grid-stride loop: at most 2^20 blocks. */
static inline unsigned sz_grid(int64_t blocks)
{
    return (unsigned)(blocks < 1 << 20 ? blocks : 1 << 20);
}

/* Copies host bytes into workspace that is valid for this kernel call. The host bytes may be freed
 * as soon as this returns. NULL with a message. */
static inline void *sz_cuda_upload(const void *host, size_t bytes)
{
    void *device = sz_cuda_scratch(bytes ? bytes : 1);
    return device && sz_cuda_to_device(device, host, bytes) == 0 ? device : NULL;
}

#endif
