/* arrange.cu - ops that move elements without computing, on the device: broadcast_to, transpose,
 * cat, slice, pad_dim.
 *
 * A thread takes an element of the result and looks up where it comes from; elements are moved as
 * words of 1, 2 or 4 bytes, so that every dtype is served. Leaves out: vectors and shared-memory
 * tiles, which these ops do not need where they are used. The reference is cpu/reference/arrange.c.
 */
#include "vector.cuh"
extern "C" {
#include "ops/dims.h"
}

enum { THREADS = 256 };

__device__ __forceinline__ int64_t thread_index()
{
    return (int64_t)blockIdx.x * THREADS + threadIdx.x;
}
__device__ __forceinline__ int64_t thread_count() { return (int64_t)gridDim.x * THREADS; }

static unsigned blocks_of(int64_t items) { return sz_grid(sz_blocks(items, THREADS)); }

/* Runs the statement with T as an unsigned integer of the dtype's width. */
#define OF_WIDTH(dtype, T, ...) \
    do { \
        if (sz_dtype_size(dtype) == 4) { \
            typedef uint32_t T; \
            __VA_ARGS__; \
        } else if (sz_dtype_size(dtype) == 2) { \
            typedef uint16_t T; \
            __VA_ARGS__; \
        } else { \
            typedef uint8_t T; \
            __VA_ARGS__; \
        } \
    } while (0)

/* ---- broadcast_to ---- */

struct layout {
    int ndim;
    int64_t shape[SZ_MAX_DIMS];
    int64_t strides[SZ_MAX_DIMS]; /* in x; 0: repeated */
};

template <class T> __global__ void broadcast_kernel(const T *x, T *y, layout l, int64_t n)
{
    for (int64_t i = thread_index(); i < n; i += thread_count()) {
        int64_t from = 0;
        int64_t rest = i;
        for (int k = l.ndim - 1; k >= 0; k--) {
            from += rest % l.shape[k] * l.strides[k];
            rest /= l.shape[k];
        }
        y[i] = x[from];
    }
}

extern "C" int sz_cuda_broadcast_to(const sz_call *c)
{
    const sz_tensor *x = c->in[0];
    const sz_tensor *y = c->out[0];
    layout l;
    if (y->numel == 0) return 0;
    memset(&l, 0, sizeof l);
    l.ndim = y->ndim;
    memcpy(l.shape, y->shape, sizeof l.shape);
    sz_broadcast_strides(x, y, l.strides);
    OF_WIDTH(x->dtype, T,
             SZ_LAUNCH((broadcast_kernel<T>), blocks_of(y->numel), THREADS, 0, (const T *)x->data,
                       (T *)y->data, l, y->numel));
    return sz_cuda_launched("broadcast_to");
}

/* ---- transpose: [a, m, b, n, c] -> [a, n, b, m, c] ---- */

struct swap {
    int64_t a;
    int64_t m;
    int64_t b;
    int64_t n;
    int64_t c;
};

template <class T> __global__ void transpose_kernel(const T *x, T *y, swap s, int64_t count)
{
    for (int64_t i = thread_index(); i < count; i += thread_count()) {
        const int64_t k = i % s.c;
        int64_t rest = i / s.c;
        const int64_t m = rest % s.m;
        rest /= s.m;
        const int64_t b = rest % s.b;
        rest /= s.b;
        const int64_t n = rest % s.n;
        const int64_t a = rest / s.n;
        y[i] = x[(((a * s.m + m) * s.b + b) * s.n + n) * s.c + k];
    }
}

extern "C" int sz_cuda_transpose(const sz_call *c)
{
    const sz_tensor *x = c->in[0];
    const sz_tensor *y = c->out[0];
    const sz_swap host = sz_swap_dims(x, (int)c->args[0], (int)c->args[1]);
    const swap s = { host.a, host.m, host.b, host.n, host.c };
    if (x->numel == 0) return 0;
    OF_WIDTH(x->dtype, T,
             SZ_LAUNCH((transpose_kernel<T>), blocks_of(x->numel), THREADS, 0, (const T *)x->data,
                       (T *)y->data, s, x->numel));
    return sz_cuda_launched("transpose");
}

/* ---- cat, slice, pad_dim: a part that starts at element `first` of each outer index of a whole
 * ---- */

template <class T, bool INTO> __global__ void part_kernel(T *whole, T *part, int64_t whole_run,
                                                          int64_t part_run, int64_t first,
                                                          int64_t n)
{
    for (int64_t i = thread_index(); i < n; i += thread_count()) {
        const int64_t place = i / part_run * whole_run + first + i % part_run;
        if (INTO) whole[place] = part[i];
        else part[i] = whole[place];
    }
}

/* Elements of one outer index. */
static int64_t run_of(const sz_tensor *t, int dim)
{
    const sz_around a = sz_around_dim(t, dim);
    return a.n * a.inner;
}

/* Copies the part into the whole, or out of it. start: the part's first index of the dimension. */
template <bool INTO>
static void move_part(const sz_tensor *whole, const sz_tensor *part, int dim, int64_t start)
{
    const int64_t first = start * sz_around_dim(whole, dim).inner;
    if (part->numel == 0) return;
    OF_WIDTH(part->dtype, T,
             SZ_LAUNCH((part_kernel<T, INTO>), blocks_of(part->numel), THREADS, 0, (T *)whole->data,
                       (T *)part->data, run_of(whole, dim), run_of(part, dim), first, part->numel));
}

extern "C" int sz_cuda_cat(const sz_call *c)
{
    const int dim = (int)c->args[0];
    int64_t start = 0;
    for (int i = 0; i < SZ_MAX_IN && c->in[i]; i++) {
        move_part<true>(c->out[0], c->in[i], dim, start);
        start += c->in[i]->shape[dim];
    }
    return sz_cuda_launched("cat");
}

extern "C" int sz_cuda_slice(const sz_call *c)
{
    move_part<false>(c->in[0], c->out[0], (int)c->args[0], (int64_t)c->args[1]);
    return sz_cuda_launched("slice");
}

extern "C" int sz_cuda_pad_dim(const sz_call *c)
{
    const sz_tensor *y = c->out[0];
    if (sz_cuda_check(cudaMemsetAsync(y->data, 0, sz_bytes(y), sz_cuda_stream()), "pad_dim") != 0)
        return -1;
    move_part<true>(y, c->in[0], (int)c->args[0], (int64_t)c->args[1]);
    return sz_cuda_launched("pad_dim");
}
