/* rowwise.c - "rowwise" rows of ops.def on the CPU: RMSNorm, LayerNorm, softmax, rotary embedding.
 *
 * Rows are spread over the threads. Within a row the loops run over blocks of at most SZ_BLOCK
 * elements as f32, as in elementwise.c. The reference is reference/rowwise.c.
 * Leaves out: the ops that move rows by index (rows.c).
 */
#include "vecmath.h"
#include <math.h>

/* ---- RMSNorm: y = w * round(x * r), r = 1 / sqrt(mean(x^2) + eps) ----
 * round: to x's dtype, as Hugging Face does. */

static float inverse_rms(const sz_tensor *x, int64_t start, int64_t d, double eps)
{
    float buffer[SZ_BLOCK];
    double sum_sq = 0;
    for (int64_t col = 0; col < d; col += SZ_BLOCK) {
        int64_t n = sz_min64(SZ_BLOCK, d - col);
        const float *v = sz_block(x, start + col, n, buffer);
        /* At most 64 squares per lane: f32 is enough within a block. */
        float block_sum = 0;
#pragma omp simd reduction(+ : block_sum)
        for (int64_t i = 0; i < n; i++) block_sum += v[i] * v[i];
        sum_sq += (double)block_sum;
    }
    return (float)(1.0 / sqrt(sum_sq / (double)d + eps));
}

static void scale_block(const float *restrict x, float *restrict y, int64_t n, float r)
{
    for (int64_t i = 0; i < n; i++) y[i] = x[i] * r;
}
static void mul_block(const float *restrict w, float *restrict y, int64_t n)
{
    for (int64_t i = 0; i < n; i++) y[i] *= w[i];
}

int sz_cpu_rmsnorm(const sz_call *c)
{
    const sz_tensor *x = c->in[0];
    const sz_tensor *w = c->in[1];
    sz_tensor *y = c->out[0];
    const int64_t d = sz_cols(x);
    const int64_t rows = sz_rows(x);

#pragma omp parallel for schedule(static) if (x->numel >= SZ_PARALLEL_FROM)
    for (int64_t row = 0; row < rows; row++) {
        float x_buffer[SZ_BLOCK], w_buffer[SZ_BLOCK], y_buffer[SZ_BLOCK];
        uint16_t rounded[SZ_BLOCK];
        const float r = inverse_rms(x, row * d, d, c->args[0]);

        for (int64_t col = 0; col < d; col += SZ_BLOCK) {
            int64_t n = sz_min64(SZ_BLOCK, d - col);
            int64_t first = row * d + col;
            const float *values = sz_block(x, first, n, x_buffer);
            const float *weights = sz_block(w, col, n, w_buffer);
            float *result = sz_block_begin(y, first, y_buffer);
            scale_block(values, result, n, r);
            /* Round x * r before it is multiplied by w. */
            if (x->dtype == SZ_BF16) {
                sz_f32_to_bf16(rounded, result, n);
                sz_bf16_to_f32(result, rounded, n);
            }
            mul_block(weights, result, n);
            sz_block_end(y, first, n, result);
        }
    }
    return 0;
}

static float weighted_dot(const float *x, const float *w, const float *g, int64_t n)
{
    float s = 0;
#pragma omp simd reduction(+ : s)
    for (int64_t i = 0; i < n; i++) s += w[i] * g[i] * x[i];
    return s;
}

/* dx = r w g - x k;  dw += g x r */
static void rmsnorm_backward_block(const float *restrict x, const float *restrict w,
                                   const float *restrict g, float *restrict dx, float *restrict dw,
                                   int64_t n, float r, float k)
{
    for (int64_t i = 0; i < n; i++) {
        dx[i] = r * w[i] * g[i] - x[i] * k;
        dw[i] += g[i] * x[i] * r;
    }
}

/* Rows of a chunk, for the gradients of weights: rows are cut into at most 64 chunks of at least 16
 * rows. Each chunk has its own sums, which are added in order, so the result does not depend on the
 * thread count. */
static int64_t chunk_rows(int64_t rows) { return rows > 1024 ? sz_ceil_div(rows, 64) : 16; }

/* sums [d] = the sum over the chunks' sums, which are `stride` apart in partial. */
static void add_chunks(const float *partial, int64_t stride, int64_t chunks, float *sums, int64_t d)
{
#pragma omp parallel for schedule(static) if (chunks * d >= SZ_PARALLEL_FROM)
    for (int64_t block = 0; block < sz_ceil_div(d, SZ_BLOCK); block++) {
        double s[SZ_BLOCK] = { 0 };
        int64_t col = block * SZ_BLOCK;
        int64_t n = sz_min64(SZ_BLOCK, d - col);
        for (int64_t chunk = 0; chunk < chunks; chunk++)
            for (int64_t i = 0; i < n; i++) s[i] += (double)partial[chunk * stride + col + i];
        for (int64_t i = 0; i < n; i++) sums[col + i] = (float)s[i];
    }
}

/* dx = r w g - x r^3 / d * sum_j(w_j g_j x_j);  dw = sum over rows of g x r */
int sz_cpu_rmsnorm_backward(const sz_call *c)
{
    const sz_tensor *x = c->in[0];
    const sz_tensor *w = c->in[1];
    const sz_tensor *dy = c->in[2];
    sz_tensor *dx = c->out[0];
    float *dw = sz_f32(c->out[1]);
    const int64_t d = sz_cols(x);
    const int64_t rows = sz_rows(x);
    const int64_t rows_per_chunk = chunk_rows(rows);
    const int64_t chunks = sz_ceil_div(rows, rows_per_chunk);
    float *partial = sz_scratch((size_t)(chunks * d + 1) * sizeof *partial);
    if (!partial) return -1;

#pragma omp parallel for schedule(static) if (x->numel >= SZ_PARALLEL_FROM)
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
        float x_buffer[SZ_BLOCK], w_buffer[SZ_BLOCK], g_buffer[SZ_BLOCK], dx_buffer[SZ_BLOCK];
        float *chunk_dw = partial + chunk * d;
        memset(chunk_dw, 0, (size_t)d * sizeof *chunk_dw);
        for (int64_t row = chunk * rows_per_chunk;
             row < sz_min64(rows, (chunk + 1) * rows_per_chunk); row++) {
            /* The row's sum of w g x. */
            const float r = inverse_rms(x, row * d, d, c->args[0]);
            double dot = 0;
            for (int64_t col = 0; col < d; col += SZ_BLOCK) {
                int64_t n = sz_min64(SZ_BLOCK, d - col);
                int64_t first = row * d + col;
                dot += (double)weighted_dot(sz_block(x, first, n, x_buffer),
                                            sz_block(w, col, n, w_buffer),
                                            sz_block(dy, first, n, g_buffer), n);
            }

            /* The gradients. */
            const float k = (float)((double)r * (double)r * (double)r / (double)d * dot);
            for (int64_t col = 0; col < d; col += SZ_BLOCK) {
                int64_t n = sz_min64(SZ_BLOCK, d - col);
                int64_t first = row * d + col;
                const float *values = sz_block(x, first, n, x_buffer);
                const float *weights = sz_block(w, col, n, w_buffer);
                const float *g = sz_block(dy, first, n, g_buffer);
                float *result = sz_block_begin(dx, first, dx_buffer);
                rmsnorm_backward_block(values, weights, g, result, chunk_dw + col, n, r, k);
                sz_block_end(dx, first, n, result);
            }
        }
    }
    add_chunks(partial, d, chunks, dw, d);
    return 0;
}

/* ---- LayerNorm: y = w * (x - mean) * r + b, r = 1 / sqrt(variance + eps) ----
 * The variance is that of all d elements. */

/* Mean and r of a row. The first pass gives a provisional mean, the second the squared distances
 * from it. The sum of the distances corrects what the f32 sums of the first pass lost, which is
 * much where the mean is large and sums are not vectors. */
static void moments(const sz_tensor *x, int64_t start, int64_t d, double eps, float *mean, float *r)
{
    float buffer[SZ_BLOCK];
    double sum = 0;
    double sum_sq = 0;
    double correction = 0;

    /* The sum. */
    for (int64_t col = 0; col < d; col += SZ_BLOCK) {
        int64_t n = sz_min64(SZ_BLOCK, d - col);
        const float *v = sz_block(x, start + col, n, buffer);
        float block_sum = 0;
#pragma omp simd reduction(+ : block_sum)
        for (int64_t i = 0; i < n; i++) block_sum += v[i];
        sum += (double)block_sum;
    }

    /* The squared distances, and the distances. */
    const float provisional_mean = (float)(sum / (double)d);
    for (int64_t col = 0; col < d; col += SZ_BLOCK) {
        int64_t n = sz_min64(SZ_BLOCK, d - col);
        const float *v = sz_block(x, start + col, n, buffer);
        float block_sum_sq = 0;
        float block_sum = 0;
#pragma omp simd reduction(+ : block_sum_sq, block_sum)
        for (int64_t i = 0; i < n; i++) {
            float distance = v[i] - provisional_mean;
            block_sum_sq += distance * distance;
            block_sum += distance;
        }
        sum_sq += (double)block_sum_sq;
        correction += (double)block_sum;
    }

    correction /= (double)d;
    *mean = (float)((double)provisional_mean + correction);
    *r = (float)(1.0 / sqrt(sum_sq / (double)d - correction * correction + eps));
}

static void layernorm_block(const float *x, const float *w, const float *b, float *restrict y,
                            int64_t n, float mean, float r)
{
    for (int64_t i = 0; i < n; i++) y[i] = (x[i] - mean) * r * w[i] + b[i];
}

int sz_cpu_layernorm(const sz_call *c)
{
    const sz_tensor *x = c->in[0];
    const sz_tensor *w = c->in[1];
    const sz_tensor *b = c->in[2];
    sz_tensor *y = c->out[0];
    const int64_t d = sz_cols(x);
    const int64_t rows = sz_rows(x);

#pragma omp parallel for schedule(static) if (x->numel >= SZ_PARALLEL_FROM)
    for (int64_t row = 0; row < rows; row++) {
        float buffer[4][SZ_BLOCK];
        float mean, r;
        moments(x, row * d, d, c->args[0], &mean, &r);
        /* Normalise, scale and shift. */
        for (int64_t col = 0; col < d; col += SZ_BLOCK) {
            int64_t n = sz_min64(SZ_BLOCK, d - col);
            int64_t first = row * d + col;
            float *result = sz_block_begin(y, first, buffer[3]);
            layernorm_block(sz_block(x, first, n, buffer[0]), sz_block(w, col, n, buffer[1]),
                            sz_block(b, col, n, buffer[2]), result, n, mean, r);
            sz_block_end(y, first, n, result);
        }
    }
    return 0;
}

/* Adds a block's sums of w g and of w g x', x' = (x - mean) r. */
static void layernorm_sums(const float *x, const float *w, const float *g, int64_t n, float mean,
                           float r, double *sum, double *dot)
{
    float s = 0;
    float t = 0;
#pragma omp simd reduction(+ : s, t)
    for (int64_t i = 0; i < n; i++) {
        float v = w[i] * g[i];
        s += v;
        t += v * ((x[i] - mean) * r);
    }
    *sum += (double)s;
    *dot += (double)t;
}

/* dx = r (w g - sum - x' dot), where sum and dot are means over the row;  dw += g x';  db += g */
static void layernorm_backward_block(const float *restrict x, const float *restrict w,
                                     const float *restrict g, float *restrict dx,
                                     float *restrict dw, float *restrict db, int64_t n, float mean,
                                     float r, float sum, float dot)
{
    for (int64_t i = 0; i < n; i++) {
        float normal = (x[i] - mean) * r;
        dx[i] = r * (w[i] * g[i] - sum - normal * dot);
        dw[i] += g[i] * normal;
        db[i] += g[i];
    }
}

int sz_cpu_layernorm_backward(const sz_call *c)
{
    const sz_tensor *x = c->in[0];
    const sz_tensor *w = c->in[1];
    const sz_tensor *dy = c->in[2];
    sz_tensor *dx = c->out[0];
    const int64_t d = sz_cols(x);
    const int64_t rows = sz_rows(x);
    const int64_t rows_per_chunk = chunk_rows(rows);
    const int64_t chunks = sz_ceil_div(rows, rows_per_chunk);
    /* dw and db of each chunk. */
    float *partial = sz_scratch((size_t)(2 * chunks * d + 1) * sizeof *partial);
    if (!partial) return -1;

#pragma omp parallel for schedule(static) if (x->numel >= SZ_PARALLEL_FROM)
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
        float buffer[4][SZ_BLOCK];
        float *dw = partial + 2 * chunk * d;
        float *db = dw + d;
        memset(dw, 0, (size_t)(2 * d) * sizeof *dw);
        for (int64_t row = chunk * rows_per_chunk;
             row < sz_min64(rows, (chunk + 1) * rows_per_chunk); row++) {
            /* The row's mean and r, and its sums of w g and w g x'. */
            float mean, r;
            double sum = 0;
            double dot = 0;
            moments(x, row * d, d, c->args[0], &mean, &r);
            for (int64_t col = 0; col < d; col += SZ_BLOCK) {
                int64_t n = sz_min64(SZ_BLOCK, d - col);
                int64_t first = row * d + col;
                layernorm_sums(sz_block(x, first, n, buffer[0]), sz_block(w, col, n, buffer[1]),
                               sz_block(dy, first, n, buffer[2]), n, mean, r, &sum, &dot);
            }

            /* The gradients. */
            for (int64_t col = 0; col < d; col += SZ_BLOCK) {
                int64_t n = sz_min64(SZ_BLOCK, d - col);
                int64_t first = row * d + col;
                float *result = sz_block_begin(dx, first, buffer[3]);
                layernorm_backward_block(
                    sz_block(x, first, n, buffer[0]), sz_block(w, col, n, buffer[1]),
                    sz_block(dy, first, n, buffer[2]), result, dw + col, db + col, n, mean, r,
                    (float)(sum / (double)d), (float)(dot / (double)d));
                sz_block_end(dx, first, n, result);
            }
        }
    }
    add_chunks(partial, 2 * d, chunks, sz_f32(c->out[1]), d);
    add_chunks(partial + d, 2 * d, chunks, sz_f32(c->out[2]), d);
    return 0;
}

/* ---- softmax over the last dimension ---- */

static float max_block(const float *x, int64_t n, float start)
{
    float m = start;
#pragma omp simd reduction(max : m)
    for (int64_t i = 0; i < n; i++) m = x[i] > m ? x[i] : m;
    return m;
}

/* y = exp(x - shift); returns the sum of y. */
static float exp_sum_block(const float *restrict x, float *restrict y, int64_t n, float shift)
{
    float s = 0;
#pragma omp simd reduction(+ : s)
    for (int64_t i = 0; i < n; i++) {
        float e = sz_exp(x[i] - shift);
        y[i] = e;
        s += e;
    }
    return s;
}
static void exp_scaled_block(const float *restrict x, float *restrict y, int64_t n, float shift,
                             float scale)
{
    for (int64_t i = 0; i < n; i++) y[i] = sz_exp(x[i] - shift) * scale;
}

int sz_cpu_softmax(const sz_call *c)
{
    const sz_tensor *x = c->in[0];
    sz_tensor *y = c->out[0];
    const int64_t d = sz_cols(x);
    const int64_t rows = sz_rows(x);

#pragma omp parallel for schedule(static) if (x->numel >= SZ_PARALLEL_FROM / 4)
    for (int64_t row = 0; row < rows; row++) {
        float x_buffer[SZ_BLOCK], y_buffer[SZ_BLOCK];
        float highest = -INFINITY;
        double sum = 0;

        /* The maximum. */
        for (int64_t col = 0; col < d; col += SZ_BLOCK) {
            int64_t n = sz_min64(SZ_BLOCK, d - col);
            highest = max_block(sz_block(x, row * d + col, n, x_buffer), n, highest);
        }

        /* The exponentials and their sum. */
        for (int64_t col = 0; col < d; col += SZ_BLOCK) {
            int64_t n = sz_min64(SZ_BLOCK, d - col);
            int64_t first = row * d + col;
            sum += (double)exp_sum_block(sz_block(x, first, n, x_buffer),
                                         sz_block_begin(y, first, y_buffer), n, highest);
        }

        /* Scale. In bf16 the exponentials have no f32 place to stay in: compute them again. */
        const float scale = (float)(1.0 / sum);
        if (y->dtype == SZ_F32) {
            float *result = sz_f32(y) + row * d;
            for (int64_t i = 0; i < d; i++) result[i] *= scale;
            continue;
        }
        for (int64_t col = 0; col < d; col += SZ_BLOCK) {
            int64_t n = sz_min64(SZ_BLOCK, d - col);
            int64_t first = row * d + col;
            exp_scaled_block(sz_block(x, first, n, x_buffer), y_buffer, n, highest, scale);
            sz_block_end(y, first, n, y_buffer);
        }
    }
    return 0;
}

static void softmax_backward_block(const float *y, const float *g, float *restrict dx, int64_t n,
                                   float dot)
{
    for (int64_t i = 0; i < n; i++) dx[i] = y[i] * (g[i] - dot);
}

/* dx = y (dy - sum(y dy)) */
int sz_cpu_softmax_backward(const sz_call *c)
{
    const sz_tensor *y = c->in[0];
    const sz_tensor *dy = c->in[1];
    sz_tensor *dx = c->out[0];
    const int64_t d = sz_cols(y);
    const int64_t rows = sz_rows(y);

#pragma omp parallel for schedule(static) if (y->numel >= SZ_PARALLEL_FROM)
    for (int64_t row = 0; row < rows; row++) {
        float y_buffer[SZ_BLOCK], g_buffer[SZ_BLOCK], dx_buffer[SZ_BLOCK];
        double dot = 0;

        /* The row's sum of y dy. */
        for (int64_t col = 0; col < d; col += SZ_BLOCK) {
            int64_t n = sz_min64(SZ_BLOCK, d - col);
            int64_t first = row * d + col;
            dot += sz_block_dot(sz_block(y, first, n, y_buffer), sz_block(dy, first, n, g_buffer),
                                n);
        }

        /* The gradient. */
        for (int64_t col = 0; col < d; col += SZ_BLOCK) {
            int64_t n = sz_min64(SZ_BLOCK, d - col);
            int64_t first = row * d + col;
            const float *p = sz_block(y, first, n, y_buffer);
            const float *g = sz_block(dy, first, n, g_buffer);
            float *result = sz_block_begin(dx, first, dx_buffer);
            softmax_backward_block(p, g, result, n, (float)dot);
            sz_block_end(dx, first, n, result);
        }
    }
    return 0;
}

/* ---- rotary embedding: pairs (j, j + half) of each head turn by sign * angle(row, j) ---- */

static void rotate_block(const float *x1, const float *x2, const float *cosines, const float *sines,
                         float *restrict y1, float *restrict y2, int64_t n, float sign)
{
    for (int64_t i = 0; i < n; i++) {
        float s = sign * sines[i];
        y1[i] = x1[i] * cosines[i] - x2[i] * s;
        y2[i] = x2[i] * cosines[i] + x1[i] * s;
    }
}

/* A finite x, rounded to bf16. */
static inline float round_to_bf16(float x)
{
    uint32_t u = sz_float_bits(x);
    return sz_bits_float((u + 0x7fff + ((u >> 16) & 1)) & 0xffff0000u);
}

/* The same as PyTorch computes x * cos + rotate_half(x) * sin in bf16: each product is rounded
 * before the sum is. */
static void rotate_rounded_block(const float *x1, const float *x2, const float *cosines,
                                 const float *sines, float *restrict y1, float *restrict y2,
                                 int64_t n, float sign)
{
    for (int64_t i = 0; i < n; i++) {
        float s = sign * sines[i];
        y1[i] = round_to_bf16(x1[i] * cosines[i]) - round_to_bf16(x2[i] * s);
        y2[i] = round_to_bf16(x2[i] * cosines[i]) + round_to_bf16(x1[i] * s);
    }
}

int sz_cpu_rope(const sz_call *c)
{
    const sz_tensor *x = c->in[0];
    const sz_tensor *cosines = c->in[1];
    const sz_tensor *sines = c->in[2];
    sz_tensor *y = c->out[0];
    const int64_t cols = sz_cols(x);
    const int64_t rows = sz_rows(x);
    const int64_t heads = (int64_t)c->args[0];
    const int64_t head_dim = (int64_t)c->args[1];
    const int64_t half = head_dim / 2;
    const int64_t rotated = heads * head_dim;
    const float sign = (float)c->args[2];
    const bool rounded = x->dtype == SZ_BF16 && cosines->dtype == SZ_BF16;

#pragma omp parallel for schedule(static) if (x->numel >= SZ_PARALLEL_FROM)
    for (int64_t row = 0; row < rows; row++) {
        float buffer[6][SZ_BLOCK];
        for (int64_t j = 0; j < half; j += SZ_BLOCK) {
            /* The angles are the same for all heads. */
            int64_t n = sz_min64(SZ_BLOCK, half - j);
            const float *cos_row = sz_block(cosines, row * half + j, n, buffer[0]);
            const float *sin_row = sz_block(sines, row * half + j, n, buffer[1]);
            for (int64_t head = 0; head < heads; head++) {
                int64_t first1 = row * cols + head * head_dim + j;
                int64_t first2 = first1 + half;
                const float *x1 = sz_block(x, first1, n, buffer[2]);
                const float *x2 = sz_block(x, first2, n, buffer[3]);
                float *y1 = sz_block_begin(y, first1, buffer[4]);
                float *y2 = sz_block_begin(y, first2, buffer[5]);
                if (rounded) rotate_rounded_block(x1, x2, cos_row, sin_row, y1, y2, n, sign);
                else rotate_block(x1, x2, cos_row, sin_row, y1, y2, n, sign);
                sz_block_end(y, first1, n, y1);
                sz_block_end(y, first2, n, y2);
            }
        }
        /* The columns after the rotated heads are copied. */
        sz_copy_elements(y, row * cols + rotated, x, row * cols + rotated, cols - rotated);
    }
    return 0;
}
