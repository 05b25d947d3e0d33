/* rows.c - the rows of ops.def that move or compare whole rows: embedding, embedding_part,
 * gather_rows, index_add_, index_copy, scatter_cols_, pad_rows, max_pool_rows and its gradient.
 *
 * Rows are spread over the threads. Where several rows are added into one (index_add_,
 * max_pool_rows_backward), threads own ranges of columns instead, so that a sum is always taken in
 * the order of the rows. The ops layer has checked the range of the ids. The reference is
 * reference/rowwise.c.
 * Leaves out: what PyTorch does with NaN in max_pool_rows.
 */
#include "vecmath.h"
#include <omp.h>

/* out[i] = x[ids[i]], any dtype. */
static int gather(const sz_tensor *x, const sz_tensor *ids, sz_tensor *out)
{
    const int64_t n = ids->numel;
    const int64_t d = n ? out->numel / n : 0;
#pragma omp parallel for schedule(static) if (out->numel >= SZ_PARALLEL_FROM)
    for (int64_t i = 0; i < n; i++) sz_copy_elements(out, i * d, x, sz_i32(ids)[i] * d, d);
    return 0;
}
int sz_cpu_embedding(const sz_call *c) { return gather(c->in[0], c->in[1], c->out[0]); }
int sz_cpu_gather_rows(const sz_call *c) { return gather(c->in[0], c->in[1], c->out[0]); }

/* out[i] = table[ids[i] - first], or zeros where the table has no such row. */
int sz_cpu_embedding_part(const sz_call *c)
{
    const sz_tensor *table = c->in[0];
    const sz_tensor *ids = c->in[1];
    sz_tensor *out = c->out[0];
    const int64_t first = (int64_t)c->args[0];
    const int64_t d = sz_cols(table);
    const size_t bytes = (size_t)d * sz_dtype_size(out->dtype);
#pragma omp parallel for schedule(static) if (out->numel >= SZ_PARALLEL_FROM)
    for (int64_t i = 0; i < ids->numel; i++) {
        const int64_t row = sz_i32(ids)[i] - first;
        if (row >= 0 && row < table->shape[0]) sz_copy_elements(out, i * d, table, row * d, d);
        else memset((char *)out->data + (size_t)i * bytes, 0, bytes);
    }
    return 0;
}

/* acc[ids[i]] += x[i] */
int sz_cpu_index_add_(const sz_call *c)
{
    const sz_tensor *ids = c->in[1];
    const sz_tensor *x = c->in[2];
    const int64_t n = ids->numel;
    const int64_t d = sz_cols(x);
    const int64_t slice = d >= 1024 ? 256 : 64;
    const int64_t slices = sz_ceil_div(d, slice);
    float *acc = sz_f32(c->out[0]);

/* Each thread adds all rows in its slice of columns. */
#pragma omp parallel for schedule(static) if (x->numel >= SZ_PARALLEL_FROM)
    for (int64_t k = 0; k < slices; k++) {
        float buffer[SZ_BLOCK];
        int64_t col = k * slice;
        int64_t width = sz_min64(slice, d - col);
        for (int64_t i = 0; i < n; i++) {
            const float *addend = sz_block(x, i * d + col, width, buffer);
            float *restrict sum = acc + sz_i32(ids)[i] * d + col;
            for (int64_t j = 0; j < width; j++) sum[j] += addend[j];
        }
    }
    return 0;
}

/* The first elements of y = all elements of x. */
static void copy_all(const sz_tensor *y, const sz_tensor *x)
{
    const int64_t blocks = sz_ceil_div(x->numel, SZ_BLOCK);
#pragma omp parallel for schedule(static) if (x->numel >= SZ_PARALLEL_FROM)
    for (int64_t block = 0; block < blocks; block++) {
        int64_t start = block * SZ_BLOCK;
        sz_copy_elements(y, start, x, start, sz_min64(SZ_BLOCK, x->numel - start));
    }
}

/* y = x, but y[ids[i]] = src[i] */
int sz_cpu_index_copy(const sz_call *c)
{
    const sz_tensor *ids = c->in[1];
    const sz_tensor *src = c->in[2];
    sz_tensor *y = c->out[0];
    const int64_t n = ids->numel;
    const int64_t d = n ? src->numel / n : 0;
    copy_all(y, c->in[0]);
#pragma omp parallel for schedule(static) if (src->numel >= SZ_PARALLEL_FROM)
    for (int64_t i = 0; i < n; i++) sz_copy_elements(y, sz_i32(ids)[i] * d, src, i * d, d);
    return 0;
}

/* dst[ids[i]] = src[i, col : col + w]; puts keys and values into their cache. */
int sz_cpu_scatter_cols_(const sz_call *c)
{
    const sz_tensor *ids = c->in[1];
    const sz_tensor *src = c->in[2];
    sz_tensor *dst = c->out[0];
    const int64_t n = ids->numel;
    const int64_t w = sz_cols(dst);
    const int64_t src_cols = sz_cols(src);
    const int64_t col = (int64_t)c->args[0];
#pragma omp parallel for schedule(static) if (n * w >= SZ_PARALLEL_FROM)
    for (int64_t i = 0; i < n; i++)
        sz_copy_elements(dst, sz_i32(ids)[i] * w, src, i * src_cols + col, w);
    return 0;
}

/* y = x, followed by rows of zeros. */
int sz_cpu_pad_rows(const sz_call *c)
{
    const sz_tensor *x = c->in[0];
    sz_tensor *y = c->out[0];
    copy_all(y, x);
    memset((char *)y->data + sz_bytes(x), 0, sz_bytes(y) - sz_bytes(x));
    return 0;
}

/* ---- max_pool_rows: y[i] = max over k of x[ids[i, k]], column by column; ids [n, count] ---- */

int sz_cpu_max_pool_rows(const sz_call *c)
{
    const sz_tensor *x = c->in[0];
    const sz_tensor *ids = c->in[1];
    sz_tensor *y = c->out[0];
    const int64_t n = ids->shape[0];
    const int64_t count = ids->shape[1];
    const int64_t d = x->shape[1];

#pragma omp parallel for schedule(static) if (n * count * d >= SZ_PARALLEL_FROM)
    for (int64_t i = 0; i < n; i++) {
        const int32_t *row = sz_i32(ids) + i * count;
        for (int64_t col = 0; col < d; col += SZ_BLOCK) {
            /* The first row, then what is larger in the others. */
            float x_buffer[SZ_BLOCK], best[SZ_BLOCK];
            int64_t width = sz_min64(SZ_BLOCK, d - col);
            const float *v = sz_block(x, row[0] * d + col, width, x_buffer);
            memcpy(best, v, (size_t)width * sizeof *best);
            for (int64_t k = 1; k < count; k++) {
                v = sz_block(x, row[k] * d + col, width, x_buffer);
                for (int64_t j = 0; j < width; j++) best[j] = v[j] > best[j] ? v[j] : best[j];
            }
            if (y->dtype == SZ_F32)
                memcpy(sz_f32(y) + i * d + col, best, (size_t)width * sizeof *best);
            sz_block_end(y, i * d + col, width, best);
        }
    }
    return 0;
}

/* Adds `width` columns of dy of one output row to the first of its rows with the largest element.
 * acc [m, d] and dy point to column `col`. */
static void max_backward_slice(const sz_tensor *x, int64_t col, int64_t width, const int32_t *row,
                               int64_t count, const float *dy, float *acc)
{
    const int64_t d = x->shape[1];
    float buffer[SZ_BLOCK], best[SZ_BLOCK];
    int32_t winner[SZ_BLOCK];

    /* Which row has the largest element of each column. */
    const float *v = sz_block(x, row[0] * d + col, width, buffer);
    for (int64_t j = 0; j < width; j++) {
        best[j] = v[j];
        winner[j] = 0;
    }
    for (int32_t k = 1; k < count; k++) {
        v = sz_block(x, row[k] * d + col, width, buffer);
        for (int64_t j = 0; j < width; j++) {
            winner[j] = v[j] > best[j] ? k : winner[j];
            best[j] = v[j] > best[j] ? v[j] : best[j];
        }
    }

    /* That row gets the gradient. */
    for (int32_t k = 0; k < count; k++) {
        float *restrict sum = acc + row[k] * d;
        for (int64_t j = 0; j < width; j++) sum[j] += winner[j] == k ? dy[j] : 0.0f;
    }
}

int sz_cpu_max_pool_rows_backward(const sz_call *c)
{
    const sz_tensor *x = c->in[0];
    const sz_tensor *ids = c->in[1];
    const sz_tensor *dy = c->in[2];
    sz_tensor *dx = c->out[0];
    const int64_t n = ids->shape[0];
    const int64_t count = ids->shape[1];
    const int64_t d = x->shape[1];

    /* Sums in f32: in place, or in workspace. */
    float *acc = sz_f32(dx);
    if (dx->dtype != SZ_F32) acc = sz_scratch((size_t)(x->numel + 1) * sizeof *acc);
    if (!acc) return -1;
    memset(acc, 0, (size_t)x->numel * sizeof *acc);

    /* One long slice of columns for each thread. How the columns are cut does not change the
     * results. */
    const int64_t even_share = sz_ceil_div(d, omp_get_max_threads());
    const int64_t slice = sz_min64(SZ_BLOCK, sz_ceil_div(even_share, 16) * 16);
#pragma omp parallel for schedule(static) if (n * count * d >= SZ_PARALLEL_FROM)
    for (int64_t col = 0; col < d; col += slice) {
        float buffer[SZ_BLOCK];
        int64_t width = sz_min64(slice, d - col);
        for (int64_t i = 0; i < n; i++) {
            const float *g = sz_block(dy, i * d + col, width, buffer);
            max_backward_slice(x, col, width, sz_i32(ids) + i * count, count, g, acc + col);
        }
    }

    /* Round the sums. */
    if (dx->dtype == SZ_F32) return 0;
#pragma omp parallel for schedule(static) if (x->numel >= SZ_PARALLEL_FROM)
    for (int64_t start = 0; start < x->numel; start += SZ_BLOCK)
        sz_block_end(dx, start, sz_min64(SZ_BLOCK, x->numel - start), acc + start);
    return 0;
}
