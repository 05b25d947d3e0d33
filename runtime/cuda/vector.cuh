/* vector.cuh - vectors of WIDE neighbouring elements, f32 or bf16, as f32 in registers.
 *
 * The dtype is looked at when a kernel runs: the branch is the same for all threads of a launch, and one kernel serves every
 * mixture of dtypes. Memory is touched 16 bytes at a time. Kernels that use this exist for W = WIDE and for W = 1, where a row's
 * length or a pointer does not allow vectors. */
#ifndef SZ_VECTOR_CUH
#define SZ_VECTOR_CUH
#include "device.cuh"

enum { WIDE = 8 };

/* Elements of a tensor on the device, or of workspace. */
typedef struct {
    void *data;
    bool narrow;                    /* bf16 */
} sz_elements;

static inline sz_elements sz_elements_of(const sz_tensor *t) { return sz_elements{ t->data, t->dtype == SZ_BF16 }; }
static inline sz_elements sz_elements_f32(float *p) { return sz_elements{ p, false }; }
/* From element `first` on. */
static inline sz_elements sz_elements_from(const sz_tensor *t, int64_t first)
{
    return sz_elements{ (char *)t->data + first * (int64_t)sz_dtype_size(t->dtype), t->dtype == SZ_BF16 };
}

/* Whether vectors can start at data. */
static inline bool sz_wide_at(const void *data) { return ((uintptr_t)data & 15) == 0; }
static inline bool sz_wide_at(const sz_tensor *t) { return sz_wide_at(t->data); }

/* Bytes of any type as words, so that the compiler moves all of them at once. */
template <int WORDS> struct sz_words;
template <> struct __attribute__((may_alias, aligned(4))) sz_words<1> { uint32_t v[1]; };
template <> struct __attribute__((may_alias, aligned(8))) sz_words<2> { uint32_t v[2]; };
template <> struct __attribute__((may_alias, aligned(16))) sz_words<4> { uint32_t v[4]; };

template <int W> __device__ __forceinline__ void sz_get_vector(const float *p, float (&v)[W])
{
    constexpr int N = W < 4 ? W : 4;
    for (int i = 0; i < W; i += N) {
        const sz_words<N> q = *reinterpret_cast<const sz_words<N> *>(p + i);
        for (int j = 0; j < N; j++) v[i + j] = __uint_as_float(q.v[j]);
    }
}

template <int W> __device__ __forceinline__ void sz_get_vector(const bf16 *p, float (&v)[W])
{
    if constexpr (W == 1) {
        v[0] = sz_load(p);
    } else {
        const sz_words<W / 2> q = *reinterpret_cast<const sz_words<W / 2> *>(p);
        for (int j = 0; j < W / 2; j++) {
            v[2 * j] = __uint_as_float(q.v[j] << 16);
            v[2 * j + 1] = __uint_as_float(q.v[j] & 0xffff0000u);
        }
    }
}

template <int W> __device__ __forceinline__ void sz_put_vector(float *p, const float (&v)[W])
{
    constexpr int N = W < 4 ? W : 4;
    for (int i = 0; i < W; i += N) {
        sz_words<N> q;
        for (int j = 0; j < N; j++) q.v[j] = __float_as_uint(v[i + j]);
        *reinterpret_cast<sz_words<N> *>(p + i) = q;
    }
}

template <int W> __device__ __forceinline__ void sz_put_vector(bf16 *p, const float (&v)[W])
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

template <int W> __device__ __forceinline__ void sz_get_vector(const sz_elements &e, int64_t i, float (&v)[W])
{
    if (e.narrow) sz_get_vector<W>((const bf16 *)e.data + i, v);
    else sz_get_vector<W>((const float *)e.data + i, v);
}

template <int W> __device__ __forceinline__ void sz_put_vector(const sz_elements &e, int64_t i, const float (&v)[W])
{
    if (e.narrow) sz_put_vector<W>((bf16 *)e.data + i, v);
    else sz_put_vector<W>((float *)e.data + i, v);
}

__device__ __forceinline__ float sz_get_element(const sz_elements &e, int64_t i)
{
    return e.narrow ? sz_load((const bf16 *)e.data + i) : ((const float *)e.data)[i];
}
__device__ __forceinline__ void sz_put_element(const sz_elements &e, int64_t i, float v)
{
    if (e.narrow) sz_store((bf16 *)e.data + i, v);
    else ((float *)e.data)[i] = v;
}
__device__ __forceinline__ float sz_through_bf16(float v) { return __bfloat162float(__float2bfloat16(v)); }

static inline int64_t sz_blocks(int64_t items, int64_t per_block) { return (items + per_block - 1) / per_block; }
/* Blocks of a kernel whose threads or blocks go on to the next item in strides of the grid. */
static inline unsigned sz_grid(int64_t blocks) { return (unsigned)(blocks < 1 << 20 ? blocks : 1 << 20); }

/* A copy of host bytes in workspace, for this kernel call; the host's may go at once. NULL with a message. */
static inline void *sz_cuda_upload(const void *host, size_t bytes)
{
    void *device = sz_cuda_scratch(bytes ? bytes : 1);
    return device && sz_cuda_to_device(device, host, bytes) == 0 ? device : NULL;
}

#endif
