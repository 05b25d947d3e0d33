/* rows.c - rows of ops.def that move or compare whole rows: embedding, gather_rows, index_add_, index_copy, scatter_cols_, pad_rows,
 * max_pool_rows and its gradient.
 *
 * Rows are spread over the threads. Where several rows add into one (index_add_, max_pool_rows_backward) threads own ranges of
 * columns instead, so that sums always have the order in which the rows come. Ids have been range-checked by ops.c.
 * The reference is ref_rowwise.c. Leaves out: what PyTorch does with NaN in max_pool_rows.
 */
#include "vecmath.h"
#include <omp.h>

/* out[i] = x[ids[i]], any dtype */
static int take_rows(const sz_tensor *x, const sz_tensor *ids, sz_tensor *out)
{
    const int64_t n = ids->numel, d = n ? out->numel / n : 0;
    #pragma omp parallel for schedule(static) if (out->numel >= SZ_PARALLEL_FROM)
    for (int64_t i = 0; i < n; i++) sz_copy_elements(out, i * d, x, sz_i32(ids)[i] * d, d);
    return 0;
}
int sz_cpu_embedding(const sz_call *c) { return take_rows(c->in[0], c->in[1], c->out[0]); }
int sz_cpu_gather_rows(const sz_call *c) { return take_rows(c->in[0], c->in[1], c->out[0]); }

int sz_cpu_index_add_(const sz_call *c)
{
    const sz_tensor *ids = c->in[1], *x = c->in[2];
    const int64_t n = ids->numel, d = sz_cols(x), slice = d >= 1024 ? 256 : 64, slices = sz_ceil_div(d, slice);
    float *acc = sz_f32(c->out[0]);
    #pragma omp parallel for schedule(static) if (x->numel >= SZ_PARALLEL_FROM)
    for (int64_t k = 0; k < slices; k++) {
        float buffer[SZ_BLOCK];
        int64_t col = k * slice, width = sz_min64(slice, d - col);
        for (int64_t i = 0; i < n; i++) {
            const float *from = sz_block(x, i * d + col, width, buffer);
            float *restrict to = acc + sz_i32(ids)[i] * d + col;
            for (int64_t j = 0; j < width; j++) to[j] += from[j];
        }
    }
    return 0;
}

int sz_cpu_index_copy(const sz_call *c)
{
    const sz_tensor *x = c->in[0], *ids = c->in[1], *src = c->in[2];
    sz_tensor *y = c->out[0];
    const int64_t n = ids->numel, d = n ? src->numel / n : 0, blocks = sz_ceil_div(y->numel, SZ_BLOCK);
    #pragma omp parallel for schedule(static) if (y->numel >= SZ_PARALLEL_FROM)
    for (int64_t block = 0; block < blocks; block++)
        sz_copy_elements(y, block * SZ_BLOCK, x, block * SZ_BLOCK, sz_min64(SZ_BLOCK, y->numel - block * SZ_BLOCK));
    #pragma omp parallel for schedule(static) if (src->numel >= SZ_PARALLEL_FROM)
    for (int64_t i = 0; i < n; i++) sz_copy_elements(y, sz_i32(ids)[i] * d, src, i * d, d);
    return 0;
}

/* dst[ids[i]] = src[i, col : col + w]: keys and values into their cache */
int sz_cpu_scatter_cols_(const sz_call *c)
{
    const sz_tensor *ids = c->in[1], *src = c->in[2];
    sz_tensor *dst = c->out[0];
    const int64_t n = ids->numel, w = sz_cols(dst), width = sz_cols(src), col = (int64_t)c->args[0];
    #pragma omp parallel for schedule(static) if (n * w >= SZ_PARALLEL_FROM)
    for (int64_t i = 0; i < n; i++) sz_copy_elements(dst, sz_i32(ids)[i] * w, src, i * width + col, w);
    return 0;
}

int sz_cpu_pad_rows(const sz_call *c)
{
    const sz_tensor *x = c->in[0];
    sz_tensor *y = c->out[0];
    const int64_t blocks = sz_ceil_div(x->numel, SZ_BLOCK);
    #pragma omp parallel for schedule(static) if (x->numel >= SZ_PARALLEL_FROM)
    for (int64_t block = 0; block < blocks; block++)
        sz_copy_elements(y, block * SZ_BLOCK, x, block * SZ_BLOCK, sz_min64(SZ_BLOCK, x->numel - block * SZ_BLOCK));
    memset((char *)y->data + sz_bytes(x), 0, sz_bytes(y) - sz_bytes(x));
    return 0;
}

/* ---- max_pool_rows: y[i] = max over k of x[ids[i, k]], column by column; ids [n, count] ---- */

int sz_cpu_max_pool_rows(const sz_call *c)
{
    const sz_tensor *x = c->in[0], *ids = c->in[1];
    sz_tensor *y = c->out[0];
    const int64_t n = ids->shape[0], count = ids->shape[1], d = x->shape[1];
    #pragma omp parallel for schedule(static) if (n * count * d >= SZ_PARALLEL_FROM)
    for (int64_t i = 0; i < n; i++) {
        const int32_t *row = sz_i32(ids) + i * count;
        for (int64_t col = 0; col < d; col += SZ_BLOCK) {
            float x_buffer[SZ_BLOCK], best[SZ_BLOCK];
            int64_t width = sz_min64(SZ_BLOCK, d - col);
            memcpy(best, sz_block(x, row[0] * d + col, width, x_buffer), (size_t)width * sizeof *best);
            for (int64_t k = 1; k < count; k++) {
                const float *v = sz_block(x, row[k] * d + col, width, x_buffer);
                for (int64_t j = 0; j < width; j++) best[j] = v[j] > best[j] ? v[j] : best[j];
            }
            if (y->dtype == SZ_F32) memcpy(sz_f32(y) + i * d + col, best, (size_t)width * sizeof *best);
            sz_block_end(y, i * d + col, width, best);
        }
    }
    return 0;
}

/* Adds dy of one output row and `width` columns to the first of its rows with the largest element. acc [m, d] and dy are at the
 * slice's first column already. */
static void max_backward_slice(const sz_tensor *x, int64_t col, int64_t width, const int32_t *row, int64_t count, const float *dy, float *acc)
{
    const int64_t d = x->shape[1];
    float buffer[SZ_BLOCK], best[SZ_BLOCK];
    int32_t winner[SZ_BLOCK];
    const float *first = sz_block(x, row[0] * d + col, width, buffer);
    for (int64_t j = 0; j < width; j++) best[j] = first[j], winner[j] = 0;
    for (int32_t k = 1; k < count; k++) {
        const float *v = sz_block(x, row[k] * d + col, width, buffer);
        for (int64_t j = 0; j < width; j++) {
            winner[j] = v[j] > best[j] ? k : winner[j];
            best[j] = v[j] > best[j] ? v[j] : best[j];
        }
    }
    for (int32_t k = 0; k < count; k++) {
        float *restrict to = acc + row[k] * d;
        for (int64_t j = 0; j < width; j++) to[j] += winner[j] == k ? dy[j] : 0.0f;
    }
}

int sz_cpu_max_pool_rows_backward(const sz_call *c)
{
    const sz_tensor *x = c->in[0], *ids = c->in[1], *dy = c->in[2];
    sz_tensor *dx = c->out[0];
    const int64_t n = ids->shape[0], count = ids->shape[1], d = x->shape[1];
    float *acc = dx->dtype == SZ_F32 ? sz_f32(dx) : sz_scratch((size_t)(x->numel + 1) * sizeof *acc);
    if (!acc) return -1;
    memset(acc, 0, (size_t)x->numel * sizeof *acc);
    /* Long stretches of a row, and one for each thread; where rows are cut has no effect on the results. */
    const int64_t slice = sz_min64(SZ_BLOCK, sz_ceil_div(sz_ceil_div(d, omp_get_max_threads()), 16) * 16);
    #pragma omp parallel for schedule(static) if (n * count * d >= SZ_PARALLEL_FROM)
    for (int64_t col = 0; col < d; col += slice) {
        float buffer[SZ_BLOCK];
        int64_t width = sz_min64(slice, d - col);
        for (int64_t i = 0; i < n; i++)
            max_backward_slice(x, col, width, sz_i32(ids) + i * count, count, sz_block(dy, i * d + col, width, buffer), acc + col);
    }
    if (dx->dtype == SZ_F32) return 0;
    #pragma omp parallel for schedule(static) if (x->numel >= SZ_PARALLEL_FROM)
    for (int64_t start = 0; start < x->numel; start += SZ_BLOCK)
        sz_block_end(dx, start, sz_min64(SZ_BLOCK, x->numel - start), acc + start);
    return 0;
}
