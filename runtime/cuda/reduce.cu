/* reduce.cu - sum, maximum and minimum over one dimension, and cross-entropy, on the device.
 *
 * x is seen as [outer, n, inner] around the dimension. With inner = 1 a block takes a row;
 * otherwise a thread takes a result and walks down the dimension, so that neighbouring threads load
 * neighbouring elements. The order of a sum depends on the shape alone.
 *
 * Leaves out: the sum of everything (elementwise.cu), softmax (rowwise.cu). The reference is
 * cpu/reference/reduce.c. */
#include "vector.cuh"
extern "C" {
#include "ops/dims.h"
}

enum { THREADS = 256 };

/* The dimensions of a kernel's x; the host's sz_around under a name that device code may use. */
struct around {
    int64_t outer;
    int64_t n;
    int64_t inner;
};

static around around_dim(const sz_tensor *x, const sz_call *c)
{
    const sz_around a = sz_around_dim(x, (int)c->args[0]);
    return around{ a.outer, a.n, a.inner };
}

__device__ __forceinline__ int64_t thread_index()
{
    return (int64_t)blockIdx.x * THREADS + threadIdx.x;
}
__device__ __forceinline__ int64_t thread_count() { return (int64_t)gridDim.x * THREADS; }

/* The element of x where the column of result i begins. */
__device__ __forceinline__ int64_t column_start(const around &a, int64_t i)
{
    return i / a.inner * a.n * a.inner + i % a.inner;
}

/* ---- sums ---- */

__global__ void sum_rows_kernel(sz_elements x, float *y, around a)
{
    for (int64_t row = blockIdx.x; row < a.outer; row += gridDim.x) {
        float sum = 0;
        for (int64_t i = threadIdx.x; i < a.n; i += THREADS)
            sum += sz_load_element(x, row * a.n + i);
        sum = sz_block_sum<THREADS>(sum);
        if (threadIdx.x == 0) y[row] = sum;
    }
}

__global__ void sum_columns_kernel(sz_elements x, float *y, around a)
{
    for (int64_t i = thread_index(); i < a.outer * a.inner; i += thread_count()) {
        int64_t place = column_start(a, i);
        double sum = 0;
        for (int64_t k = 0; k < a.n; k++, place += a.inner)
            sum += (double)sz_load_element(x, place);
        y[i] = (float)sum;
    }
}

extern "C" int sz_cuda_sum_dim(const sz_call *c)
{
    const around a = around_dim(c->in[0], c);
    const sz_elements x = sz_elements_of(c->in[0]);
    float *y = sz_f32(c->out[0]);
    const int64_t results = a.outer * a.inner;
    if (results == 0) return 0;
    if (a.inner == 1) SZ_LAUNCH(sum_rows_kernel, sz_grid(results), THREADS, 0, x, y, a);
    else SZ_LAUNCH(sum_columns_kernel, sz_grid(sz_blocks(results, THREADS)), THREADS, 0, x, y, a);
    return sz_cuda_launched("sum_dim");
}

/* ---- maxima and minima: the first of several equal ones; a NaN wins, as in PyTorch ---- */

struct found {
    float value;
    int32_t index; /* -1: nothing yet */
};

/* Whether b is to be taken instead of a. sign is 1 for the largest and -1 for the smallest. */
__device__ __forceinline__ bool beats(const found &b, const found &a, float sign)
{
    if (b.index < 0) return false;
    if (a.index < 0) return true;
    const bool b_nan = isnan(b.value);
    const bool a_nan = isnan(a.value);
    if (b_nan != a_nan) return b_nan;
    if (b_nan || a.value == b.value) return b.index < a.index;
    return sign * b.value > sign * a.value;
}

__device__ __forceinline__ found block_best(found mine, float sign)
{
    __shared__ float values[THREADS];
    __shared__ int32_t indices[THREADS];
    values[threadIdx.x] = mine.value;
    indices[threadIdx.x] = mine.index;
    __syncthreads();
    for (unsigned step = THREADS / 2; step > 0; step /= 2) {
        if (threadIdx.x < step) {
            const found other = { values[threadIdx.x + step], indices[threadIdx.x + step] };
            if (beats(other, mine, sign)) mine = other;
            values[threadIdx.x] = mine.value;
            indices[threadIdx.x] = mine.index;
        }
        __syncthreads();
    }
    const found best = { values[0], indices[0] };
    __syncthreads();
    return best;
}

__global__ void extreme_rows_kernel(sz_elements x, sz_elements y, int32_t *where, around a,
                                    float sign)
{
    for (int64_t row = blockIdx.x; row < a.outer; row += gridDim.x) {
        found best = { 0, -1 };
        for (int64_t i = threadIdx.x; i < a.n; i += THREADS) {
            const found next = { sz_load_element(x, row * a.n + i), (int32_t)i };
            if (beats(next, best, sign)) best = next;
        }
        best = block_best(best, sign);
        if (threadIdx.x == 0) {
            sz_store_element(y, row, best.value);
            where[row] = best.index;
        }
    }
}

__global__ void extreme_columns_kernel(sz_elements x, sz_elements y, int32_t *where, around a,
                                       float sign)
{
    for (int64_t i = thread_index(); i < a.outer * a.inner; i += thread_count()) {
        int64_t place = column_start(a, i);
        found best = { 0, -1 };
        for (int64_t k = 0; k < a.n; k++, place += a.inner) {
            const found next = { sz_load_element(x, place), (int32_t)k };
            if (beats(next, best, sign)) best = next;
        }
        sz_store_element(y, i, best.value);
        where[i] = best.index;
    }
}

static int extreme_dim(const sz_call *c, const char *op, float sign)
{
    const around a = around_dim(c->in[0], c);
    const sz_elements x = sz_elements_of(c->in[0]);
    const sz_elements y = sz_elements_of(c->out[0]);
    int32_t *where = sz_i32(c->out[1]);
    const int64_t results = a.outer * a.inner;
    if (results == 0) return 0;
    if (a.inner == 1)
        SZ_LAUNCH(extreme_rows_kernel, sz_grid(results), THREADS, 0, x, y, where, a, sign);
    else
        SZ_LAUNCH(extreme_columns_kernel, sz_grid(sz_blocks(results, THREADS)), THREADS, 0, x, y,
                  where, a, sign);
    return sz_cuda_launched(op);
}

extern "C" int sz_cuda_max_dim(const sz_call *c) { return extreme_dim(c, "max_dim", 1); }
extern "C" int sz_cuda_min_dim(const sz_call *c) { return extreme_dim(c, "min_dim", -1); }

__device__ __forceinline__ bool same(float a, float b) { return a == b || (isnan(a) && isnan(b)); }

/* dx = 0, but dy where x is the first element of its row that equals y. */
__global__ void extreme_backward_rows_kernel(sz_elements x, sz_elements y, sz_elements dy,
                                             sz_elements dx, around a)
{
    for (int64_t row = blockIdx.x; row < a.outer; row += gridDim.x) {
        const float wanted = sz_load_element(y, row);
        found first = { 0, -1 };
        for (int64_t i = threadIdx.x; i < a.n && first.index < 0; i += THREADS)
            if (same(sz_load_element(x, row * a.n + i), wanted)) first.index = (int32_t)i;
        first = block_best(first, 1);
        for (int64_t i = threadIdx.x; i < a.n; i += THREADS)
            sz_store_element(dx, row * a.n + i, i == first.index ? sz_load_element(dy, row) : 0.0f);
    }
}

__global__ void extreme_backward_columns_kernel(sz_elements x, sz_elements y, sz_elements dy,
                                                sz_elements dx, around a)
{
    for (int64_t i = thread_index(); i < a.outer * a.inner; i += thread_count()) {
        int64_t place = column_start(a, i);
        const float wanted = sz_load_element(y, i);
        bool found_one = false;
        for (int64_t k = 0; k < a.n; k++, place += a.inner) {
            const bool hit = !found_one && same(sz_load_element(x, place), wanted);
            sz_store_element(dx, place, hit ? sz_load_element(dy, i) : 0.0f);
            found_one = found_one || hit;
        }
    }
}

extern "C" int sz_cuda_extreme_backward(const sz_call *c)
{
    const around a = around_dim(c->in[0], c);
    const sz_elements x = sz_elements_of(c->in[0]);
    const sz_elements y = sz_elements_of(c->in[1]);
    const sz_elements dy = sz_elements_of(c->in[2]);
    const sz_elements dx = sz_elements_of(c->out[0]);
    const int64_t results = a.outer * a.inner;
    if (results == 0) return 0;
    if (a.inner == 1)
        SZ_LAUNCH(extreme_backward_rows_kernel, sz_grid(results), THREADS, 0, x, y, dy, dx, a);
    else
        SZ_LAUNCH(extreme_backward_columns_kernel, sz_grid(sz_blocks(results, THREADS)), THREADS, 0,
                  x, y, dy, dx, a);
    return sz_cuda_launched("extreme_backward");
}

/* ---- cross-entropy: a block takes a row; rows whose id is `ignore` give 0 ---- */

__global__ void cross_entropy_kernel(sz_elements x, const int32_t *ids, float *loss, float *lse,
                                     int64_t rows, int64_t v, int32_t ignore)
{
    for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
        float highest = -INFINITY;
        for (int64_t j = threadIdx.x; j < v; j += THREADS)
            highest = fmaxf(highest, sz_load_element(x, row * v + j));
        highest = sz_block_max<THREADS>(highest);

        float sum = 0;
        for (int64_t j = threadIdx.x; j < v; j += THREADS)
            sum += expf(sz_load_element(x, row * v + j) - highest);
        sum = sz_block_sum<THREADS>(sum);

        if (threadIdx.x == 0) {
            const int32_t id = ids[row];
            lse[row] = highest + logf(sum);
            loss[row] = 0;
            /* The large terms are subtracted first: the log of the sum may be much smaller. */
            if (id != ignore) loss[row] = (highest - sz_load_element(x, row * v + id)) + logf(sum);
        }
    }
}

extern "C" int sz_cuda_cross_entropy(const sz_call *c)
{
    const sz_tensor *x = c->in[0];
    const int32_t *ids = sz_cuda_indices(c->in[1]);
    if (!ids) return -1;
    if (x->numel == 0) return 0;
    SZ_LAUNCH(cross_entropy_kernel, sz_grid(x->shape[0]), THREADS, 0, sz_elements_of(x), ids,
              sz_f32(c->out[0]), sz_f32(c->out[1]), x->shape[0], x->shape[1], (int32_t)c->args[0]);
    return sz_cuda_launched("cross_entropy");
}

/* dx = (softmax(logits) - [column == id]) * dloss */
__global__ void cross_entropy_backward_kernel(sz_elements x, const int32_t *ids, const float *lse,
                                              const float *dloss, sz_elements dx, int64_t rows,
                                              int64_t v, int32_t ignore)
{
    for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
        const int32_t id = ids[row];
        const float scale = id == ignore ? 0.0f : dloss[row];
        for (int64_t j = threadIdx.x; j < v; j += THREADS) {
            const float p = expf(sz_load_element(x, row * v + j) - lse[row]);
            sz_store_element(dx, row * v + j, (p - (j == id ? 1.0f : 0.0f)) * scale);
        }
    }
}

extern "C" int sz_cuda_cross_entropy_backward(const sz_call *c)
{
    const sz_tensor *x = c->in[0];
    const int32_t *ids = sz_cuda_indices(c->in[1]);
    if (!ids) return -1;
    if (x->numel == 0) return 0;
    SZ_LAUNCH(cross_entropy_backward_kernel, sz_grid(x->shape[0]), THREADS, 0, sz_elements_of(x),
              ids, sz_f32(c->in[2]), sz_f32(c->in[3]), sz_elements_of(c->out[0]), x->shape[0],
              x->shape[1], (int32_t)c->args[0]);
    return sz_cuda_launched("cross_entropy_backward");
}
