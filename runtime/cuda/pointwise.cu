/* pointwise.cu - sqrt, pow, comparisons and choose on the device: a thread takes an element; a
 * second tensor of pow and compare may be shorter and repeats.
 *
 * Leaves out: i32, which stays in host memory; the other elementwise ops (elementwise.cu). The
 * reference is cpu/reference/pointwise.c. */
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

__global__ void sqrt_kernel(sz_elements x, sz_elements y, int64_t n)
{
    for (int64_t i = thread_index(); i < n; i += thread_count())
        sz_store_element(y, i, sqrtf(sz_load_element(x, i)));
}

extern "C" int sz_cuda_sqrt(const sz_call *c)
{
    const int64_t n = c->in[0]->numel;
    if (n == 0) return 0;
    SZ_LAUNCH(sqrt_kernel, blocks_of(n), THREADS, 0, sz_elements_of(c->in[0]),
              sz_elements_of(c->out[0]), n);
    return sz_cuda_launched("sqrt");
}

__global__ void pow_kernel(sz_elements a, sz_elements b, sz_elements y, int64_t n, int64_t period)
{
    for (int64_t i = thread_index(); i < n; i += thread_count())
        sz_store_element(y, i, powf(sz_load_element(a, i), sz_load_element(b, i % period)));
}

extern "C" int sz_cuda_pow(const sz_call *c)
{
    const int64_t n = c->in[0]->numel;
    if (n == 0) return 0;
    SZ_LAUNCH(pow_kernel, blocks_of(n), THREADS, 0, sz_elements_of(c->in[0]),
              sz_elements_of(c->in[1]), sz_elements_of(c->out[0]), n, c->in[1]->numel);
    return sz_cuda_launched("pow");
}

/* da = dy b a^(b - 1), 0 where b = 0;  db = dy a^b log(a), 0 where a = 0 and b >= 0: PyTorch's
 * limits. */
__global__ void pow_backward_kernel(sz_elements a, sz_elements b, sz_elements dy, sz_elements da,
                                    sz_elements db, int64_t n, int64_t period)
{
    for (int64_t i = thread_index(); i < n; i += thread_count()) {
        const float base = sz_load_element(a, i);
        const float exponent = sz_load_element(b, i % period);
        const float slope = sz_load_element(dy, i);
        float to_base = 0;
        float to_exponent = 0;
        if (exponent != 0) to_base = slope * exponent * powf(base, exponent - 1);
        if (!(base == 0 && exponent >= 0)) to_exponent = slope * powf(base, exponent) * logf(base);
        sz_store_element(da, i, to_base);
        sz_store_element(db, i, to_exponent);
    }
}

extern "C" int sz_cuda_pow_backward(const sz_call *c)
{
    const int64_t n = c->in[0]->numel;
    if (n == 0) return 0;
    SZ_LAUNCH(pow_backward_kernel, blocks_of(n), THREADS, 0, sz_elements_of(c->in[0]),
              sz_elements_of(c->in[1]), sz_elements_of(c->in[2]), sz_elements_of(c->out[0]),
              sz_elements_of(c->out[1]), n, c->in[1]->numel);
    return sz_cuda_launched("pow_backward");
}

/* ---- compare, choose: u8 as well ---- */

struct numbers {
    const void *data;
    int dtype;
};
static numbers numbers_of(const sz_tensor *t) { return numbers{ t->data, t->dtype }; }

__device__ __forceinline__ float number(const numbers &t, int64_t i)
{
    if (t.dtype == SZ_F32) return ((const float *)t.data)[i];
    if (t.dtype == SZ_BF16) return sz_load((const bf16 *)t.data + i);
    return (float)((const uint8_t *)t.data)[i];
}

__device__ __forceinline__ bool holds(float a, float b, int kind)
{
    switch (kind) {
    case SZ_EQ: return a == b;
    case SZ_NE: return a != b;
    case SZ_LT: return a < b;
    case SZ_LE: return a <= b;
    case SZ_GT: return a > b;
    default: return a >= b;
    }
}

__global__ void compare_kernel(numbers a, numbers b, float *y, int64_t n, int64_t period, int kind)
{
    for (int64_t i = thread_index(); i < n; i += thread_count())
        y[i] = holds(number(a, i), number(b, i % period), kind) ? 1.0f : 0.0f;
}

/* Two index tensors, which stay in host memory, are compared there: the core calls the CPU's kernel
 * for them. */
extern "C" int sz_cuda_compare(const sz_call *c)
{
    const int64_t n = c->in[0]->numel;
    if (n == 0) return 0;
    SZ_LAUNCH(compare_kernel, blocks_of(n), THREADS, 0, numbers_of(c->in[0]), numbers_of(c->in[1]),
              sz_f32(c->out[0]), n, c->in[1]->numel, (int)c->args[0]);
    return sz_cuda_launched("compare");
}

__global__ void choose_kernel(numbers condition, sz_elements a, sz_elements b, sz_elements y,
                              int64_t n)
{
    for (int64_t i = thread_index(); i < n; i += thread_count()) {
        const sz_elements chosen = number(condition, i) != 0.0f ? a : b;
        sz_store_element(y, i, chosen.data ? sz_load_element(chosen, i) : 0.0f);
    }
}

extern "C" int sz_cuda_choose(const sz_call *c)
{
    const sz_elements none = { NULL, false };
    const int64_t n = c->out[0]->numel;
    const sz_elements a = c->in[1] ? sz_elements_of(c->in[1]) : none;
    const sz_elements b = c->in[2] ? sz_elements_of(c->in[2]) : none;
    if (n == 0) return 0;
    SZ_LAUNCH(choose_kernel, blocks_of(n), THREADS, 0, numbers_of(c->in[0]), a, b,
              sz_elements_of(c->out[0]), n);
    return sz_cuda_launched("choose");
}
