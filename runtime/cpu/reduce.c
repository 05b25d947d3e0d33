/* reduce.c - sum, maximum and minimum over one dimension, and cross-entropy, on the CPU.
 *
 * x is seen as [outer, n, inner] around the dimension. With inner = 1 the numbers to be reduced
 * follow each other and a thread takes a row; otherwise a thread takes a block of neighbouring
 * columns and walks down the dimension. Each result is computed by one thread in a fixed order, so
 * the number of threads does not show in the bits.
 *
 * Leaves out: the sum of everything (elementwise.c), softmax (rowwise.c). The reference is
 * reference/reduce.c. */
#include "ops/dims.h"
#include "vecmath.h"
#include <math.h>

/* ---- sums ---- */

static double row_sum(const sz_tensor *x, int64_t start, int64_t n)
{
    float buffer[SZ_BLOCK];
    double sum = 0;
    for (int64_t i = 0; i < n; i += SZ_BLOCK) {
        int64_t count = sz_min64(SZ_BLOCK, n - i);
        sum += sz_block_sum(sz_block(x, start + i, count, buffer), count);
    }
    return sum;
}

/* y[0 .. width) = the sums of `width` neighbouring columns, the first of which starts at element
 * `start` of x. */
static void column_sums(const sz_tensor *x, int64_t start, sz_around a, int64_t width, float *y)
{
    float buffer[SZ_BLOCK];
    double sums[SZ_BLOCK] = { 0 };
    for (int64_t i = 0; i < a.n; i++) {
        const float *row = sz_block(x, start + i * a.inner, width, buffer);
        for (int64_t j = 0; j < width; j++) sums[j] += (double)row[j];
    }
    for (int64_t j = 0; j < width; j++) y[j] = (float)sums[j];
}

int sz_cpu_sum_dim(const sz_call *c)
{
    const sz_tensor *x = c->in[0];
    const sz_around a = sz_around_dim(x, (int)c->args[0]);
    float *y = sz_f32(c->out[0]);
    if (a.inner == 1) {
#pragma omp parallel for schedule(static) if (x->numel >= SZ_PARALLEL_FROM)
        for (int64_t row = 0; row < a.outer; row++) y[row] = (float)row_sum(x, row * a.n, a.n);
        return 0;
    }

    const int64_t blocks = sz_ceil_div(a.inner, SZ_BLOCK);
#pragma omp parallel for schedule(static) if (x->numel >= SZ_PARALLEL_FROM)
    for (int64_t i = 0; i < a.outer * blocks; i++) {
        int64_t outer = i / blocks;
        int64_t col = i % blocks * SZ_BLOCK;
        int64_t width = sz_min64(SZ_BLOCK, a.inner - col);
        column_sums(x, outer * a.n * a.inner + col, a, width, y + outer * a.inner + col);
    }
    return 0;
}

/* ---- maxima and minima: the first of several equal ones; a NaN wins, as in PyTorch ---- */

static inline bool beats(float value, float best, bool largest)
{
    if (isnan(best)) return false;
    if (isnan(value)) return true;
    return largest ? value > best : value < best;
}

/* The extremes of `width` neighbouring columns and the places where they were found. */
static void column_extremes(const sz_tensor *x, int64_t start, sz_around a, int64_t width,
                            bool largest, float *best, int32_t *where)
{
    float buffer[SZ_BLOCK];
    for (int64_t i = 0; i < a.n; i++) {
        const float *row = sz_block(x, start + i * a.inner, width, buffer);
        for (int64_t j = 0; j < width; j++) {
            if (i > 0 && !beats(row[j], best[j], largest)) continue;
            best[j] = row[j];
            where[j] = (int32_t)i;
        }
    }
}

static float row_extreme(const sz_tensor *x, int64_t start, int64_t n, bool largest, int32_t *where)
{
    float buffer[SZ_BLOCK];
    float best = sz_get(x, start);
    *where = 0;
    for (int64_t i = 0; i < n; i += SZ_BLOCK) {
        int64_t count = sz_min64(SZ_BLOCK, n - i);
        const float *values = sz_block(x, start + i, count, buffer);
        for (int64_t j = 0; j < count; j++) {
            if (!beats(values[j], best, largest)) continue;
            best = values[j];
            *where = (int32_t)(i + j);
        }
    }
    return best;
}

static int extreme_dim(const sz_call *c, bool largest)
{
    const sz_tensor *x = c->in[0];
    sz_tensor *y = c->out[0];
    int32_t *where = sz_i32(c->out[1]);
    const sz_around a = sz_around_dim(x, (int)c->args[0]);
    if (a.inner == 1) {
#pragma omp parallel for schedule(static) if (x->numel >= SZ_PARALLEL_FROM)
        for (int64_t row = 0; row < a.outer; row++)
            sz_put(y, row, row_extreme(x, row * a.n, a.n, largest, &where[row]));
        return 0;
    }

    const int64_t blocks = sz_ceil_div(a.inner, SZ_BLOCK);
#pragma omp parallel for schedule(static) if (x->numel >= SZ_PARALLEL_FROM)
    for (int64_t i = 0; i < a.outer * blocks; i++) {
        float best[SZ_BLOCK];
        int64_t outer = i / blocks;
        int64_t col = i % blocks * SZ_BLOCK;
        int64_t width = sz_min64(SZ_BLOCK, a.inner - col);
        int64_t to = outer * a.inner + col;
        column_extremes(x, outer * a.n * a.inner + col, a, width, largest, best, where + to);
        for (int64_t j = 0; j < width; j++) sz_put(y, to + j, best[j]);
    }
    return 0;
}

int sz_cpu_max_dim(const sz_call *c) { return extreme_dim(c, true); }
int sz_cpu_min_dim(const sz_call *c) { return extreme_dim(c, false); }

/* dx = 0, but dy where x is the first element that equals y. */
int sz_cpu_extreme_backward(const sz_call *c)
{
    const sz_tensor *x = c->in[0];
    const sz_tensor *y = c->in[1];
    const sz_tensor *dy = c->in[2];
    sz_tensor *dx = c->out[0];
    const sz_around a = sz_around_dim(x, (int)c->args[0]);
    memset(dx->data, 0, sz_bytes(dx));
#pragma omp parallel for schedule(static) if (x->numel >= SZ_PARALLEL_FROM)
    for (int64_t i = 0; i < a.outer * a.inner; i++) {
        int64_t place = i / a.inner * a.n * a.inner + i % a.inner;
        float wanted = sz_get(y, i);
        for (int64_t k = 0; k < a.n; k++, place += a.inner) {
            float value = sz_get(x, place);
            if (value != wanted && !(isnan(value) && isnan(wanted))) continue;
            sz_put(dx, place, sz_get(dy, i));
            break;
        }
    }
    return 0;
}

/* ---- cross-entropy: -log softmax(logits)[id] of each row; rows whose id is `ignore` give 0 ----
 */

static float row_max(const sz_tensor *x, int64_t start, int64_t n)
{
    float buffer[SZ_BLOCK];
    float highest = -INFINITY;
    for (int64_t i = 0; i < n; i += SZ_BLOCK) {
        int64_t count = sz_min64(SZ_BLOCK, n - i);
        const float *values = sz_block(x, start + i, count, buffer);
        for (int64_t j = 0; j < count; j++) highest = values[j] > highest ? values[j] : highest;
    }
    return highest;
}

static double sum_of_exp(const sz_tensor *x, int64_t start, int64_t n, float highest)
{
    float buffer[SZ_BLOCK];
    double sum = 0;
    for (int64_t i = 0; i < n; i += SZ_BLOCK) {
        int64_t count = sz_min64(SZ_BLOCK, n - i);
        const float *values = sz_block(x, start + i, count, buffer);
        float powers[SZ_BLOCK];
        for (int64_t j = 0; j < count; j++) powers[j] = sz_exp(values[j] - highest);
        sum += sz_block_sum(powers, count);
    }
    return sum;
}

int sz_cpu_cross_entropy(const sz_call *c)
{
    const sz_tensor *x = c->in[0];
    const int32_t *ids = sz_i32(c->in[1]);
    const int64_t v = x->shape[1];
    float *loss = sz_f32(c->out[0]);
    float *lse = sz_f32(c->out[1]);
#pragma omp parallel for schedule(static) if (x->numel >= SZ_PARALLEL_FROM)
    for (int64_t row = 0; row < x->shape[0]; row++) {
        float highest = row_max(x, row * v, v);
        double log_sum = (double)highest + log(sum_of_exp(x, row * v, v, highest));
        lse[row] = (float)log_sum;
        loss[row] = 0;
        if (ids[row] != (int32_t)c->args[0]) {
            loss[row] = (float)(log_sum - (double)sz_get(x, row * v + ids[row]));
        }
    }
    return 0;
}

/* dx = (softmax(logits) - [column == id]) * dloss */
int sz_cpu_cross_entropy_backward(const sz_call *c)
{
    const sz_tensor *x = c->in[0];
    const int32_t *ids = sz_i32(c->in[1]);
    const float *lse = sz_f32(c->in[2]);
    const float *dloss = sz_f32(c->in[3]);
    sz_tensor *dx = c->out[0];
    const int64_t v = x->shape[1];
#pragma omp parallel for schedule(static) if (x->numel >= SZ_PARALLEL_FROM)
    for (int64_t row = 0; row < x->shape[0]; row++) {
        float x_buffer[SZ_BLOCK];
        float dx_buffer[SZ_BLOCK];
        const bool ignored = ids[row] == (int32_t)c->args[0];
        const float scale = ignored ? 0.0f : dloss[row];
        for (int64_t col = 0; col < v; col += SZ_BLOCK) {
            int64_t count = sz_min64(SZ_BLOCK, v - col);
            int64_t start = row * v + col;
            const float *values = sz_block(x, start, count, x_buffer);
            float *slope = sz_block_begin(dx, start, dx_buffer);
            for (int64_t j = 0; j < count; j++) slope[j] = sz_exp(values[j] - lse[row]) * scale;
            int64_t hit = ids[row] - col;
            if (!ignored && hit >= 0 && hit < count) slope[hit] -= scale;
            sz_block_end(dx, start, count, slope);
        }
    }
    return 0;
}
