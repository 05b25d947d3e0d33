/* elementwise.c - the "elementwise" rows of ops.def on the CPU, except adamw_ and sum_squares
 * (optim.c).
 *
 * Every kernel goes through its output in blocks of at most SZ_BLOCK elements: bf16 inputs are
 * converted to f32 in a buffer on the stack, one f32 loop computes the block, a bf16 output is
 * rounded once at its end. The loops are plain so that the compiler vectorises them. The shapes
 * have been checked by the ops layer. The reference for all of it is reference/elementwise.c.
 *
 * Leaves out: i32 and u8, except in cast.
 */
#include "vecmath.h"

/* y[0..n) from up to three input blocks; args are the op's numbers. */
typedef void (*block_fn)(const float *a, const float *b, const float *x, float *restrict y,
                         int64_t n, const float *args);

enum { MAX_BLOCK_INPUTS = 3 };

/* Runs fn over out[0]. in[0] and in[2] have out's shape. in[1] has `period` elements and repeats;
 * where nothing repeats, period == numel. A short period is first repeated in `tiled`, so that
 * blocks stay long; a block never straddles two periods. */
static int run_blocks(const sz_call *c, int inputs, int args, block_fn fn)
{
    sz_tensor *out = c->out[0];
    const int64_t numel = out->numel;
    float numbers[SZ_MAX_ARGS];
    float tiled[SZ_BLOCK];
    const float *repeated = NULL;
    int64_t period = inputs > 1 ? c->in[1]->numel : numel;

    if (numel == 0) return 0;
    for (int i = 0; i < args; i++) numbers[i] = (float)c->args[i];

    /* Repeat a short second input. */
    if (period != numel && period <= SZ_BLOCK / 2) {
        int64_t copies = SZ_BLOCK / period;
        for (int64_t i = 0; i < copies * period; i++) tiled[i] = sz_get(c->in[1], i % period);
        period *= copies;
        repeated = tiled;
    }
    const int64_t blocks_per_period = sz_ceil_div(period, SZ_BLOCK);
    const int64_t blocks = sz_ceil_div(numel, period) * blocks_per_period;

#pragma omp parallel for schedule(static) if (numel >= SZ_PARALLEL_FROM)
    for (int64_t block = 0; block < blocks; block++) {
        float buffer[MAX_BLOCK_INPUTS + 1][SZ_BLOCK];
        const float *in[MAX_BLOCK_INPUTS] = { NULL, NULL, NULL };
        int64_t offset = block % blocks_per_period * SZ_BLOCK;
        int64_t start = block / blocks_per_period * period + offset;
        int64_t n = sz_min64(sz_min64(SZ_BLOCK, period - offset), numel - start);
        if (n <= 0) continue; /* past the end of a last period that is cut short */

        in[0] = sz_block(c->in[0], start, n, buffer[0]);
        if (inputs > 1) in[1] = repeated ? repeated : sz_block(c->in[1], offset, n, buffer[1]);
        if (inputs > 2) in[2] = sz_block(c->in[2], start, n, buffer[2]);
        float *y = sz_block_begin(out, start, buffer[MAX_BLOCK_INPUTS]);
        fn(in[0], in[1], in[2], y, n, numbers);
        sz_block_end(out, start, n, y);
    }
    return 0;
}

/* A block function whose element i is EXPRESSION of a[i], b[i], x[i], args. */
#define BLOCK_FUNCTION(name, EXPRESSION) \
    static void name(const float *a, const float *b, const float *x, float *restrict y, int64_t n, \
                     const float *args) \
    { \
        (void)b, (void)x, (void)args; \
        for (int64_t i = 0; i < n; i++) y[i] = (EXPRESSION); \
    }

BLOCK_FUNCTION(add_block, a[i] + b[i])
BLOCK_FUNCTION(sub_block, a[i] - b[i])
BLOCK_FUNCTION(mul_block, a[i] * b[i])
BLOCK_FUNCTION(div_block, a[i] / b[i])
/* A NaN on either side comes out, as in PyTorch. */
BLOCK_FUNCTION(minimum_block, a[i] < b[i] || a[i] != a[i] ? a[i] : b[i])
BLOCK_FUNCTION(maximum_block, a[i] > b[i] || a[i] != a[i] ? a[i] : b[i])
BLOCK_FUNCTION(mask_le_block, a[i] <= b[i] ? x[i] : 0.0f)
BLOCK_FUNCTION(exp_block, sz_exp(a[i]))
BLOCK_FUNCTION(log_block, sz_log(a[i]))
BLOCK_FUNCTION(sigmoid_block, sz_sigmoidf(a[i]))
BLOCK_FUNCTION(silu_block, a[i] / (1.0f + sz_exp(-a[i])))

static inline float silu_slope(float x)
{
    float s = sz_sigmoidf(x);
    return s * (1.0f + x * (1.0f - s));
}
static inline float gelu(float x)
{
    float density;
    return x * sz_normal(x, &density);
}
static inline float gelu_slope(float x)
{
    float density;
    float below = sz_normal(x, &density);
    return below + x * density;
}
static inline float quick_gelu_slope(float x)
{
    float s = sz_sigmoidf(1.702f * x);
    return s * (1.0f + 1.702f * x * (1.0f - s));
}

/* max(x, 0) + log(1 + t), t = exp(-|x|); log(1 + t) = 2 atanh(s), s = t / (2 + t) <= 1/3: the
 * series up to s^15 leaves 2e-9. */
static inline float softplus(float x)
{
    float t = sz_exp(x < 0.0f ? x : -x);
    float s = t / (2.0f + t);
    float z = s * s;
    float p = 2.0f / 15.0f;
    p = p * z + 2.0f / 13.0f;
    p = p * z + 2.0f / 11.0f;
    p = p * z + 2.0f / 9.0f;
    p = p * z + 2.0f / 7.0f;
    p = p * z + 2.0f / 5.0f;
    p = p * z + 2.0f / 3.0f;
    p = p * z + 2.0f;
    return (x > 0.0f ? x : 0.0f) + s * p;
}
BLOCK_FUNCTION(silu_backward_block, b[i] * silu_slope(a[i]))
BLOCK_FUNCTION(gelu_block, gelu(a[i]))
BLOCK_FUNCTION(gelu_backward_block, b[i] * gelu_slope(a[i]))
BLOCK_FUNCTION(quick_gelu_block, a[i] * sz_sigmoidf(1.702f * a[i]))
BLOCK_FUNCTION(quick_gelu_backward_block, b[i] * quick_gelu_slope(a[i]))
BLOCK_FUNCTION(relu_block, a[i] < 0.0f ? 0.0f : a[i]) /* NaN stays */
BLOCK_FUNCTION(relu_backward_block, a[i] > 0.0f ? b[i] : 0.0f)
BLOCK_FUNCTION(softplus_block, softplus(a[i]))

static void affine_block(const float *a, const float *b, const float *x, float *restrict y,
                         int64_t n, const float *args)
{
    const float scale = args[0];
    const float shift = args[1];
    (void)b, (void)x;
    for (int64_t i = 0; i < n; i++) y[i] = a[i] * scale + shift;
}
static void clamp_block(const float *a, const float *b, const float *x, float *restrict y,
                        int64_t n, const float *args)
{
    const float lo = args[0];
    const float hi = args[1];
    (void)b, (void)x;
    for (int64_t i = 0; i < n; i++) {
        float v = a[i] < lo ? lo : a[i];
        y[i] = v > hi ? hi : v;
    }
}
static void clamp_backward_block(const float *a, const float *b, const float *x, float *restrict y,
                                 int64_t n, const float *args)
{
    const float lo = args[0];
    const float hi = args[1];
    (void)x;
    for (int64_t i = 0; i < n; i++) y[i] = (a[i] >= lo) & (a[i] <= hi) ? b[i] : 0.0f;
}

int sz_cpu_add(const sz_call *c) { return run_blocks(c, 2, 0, add_block); }
int sz_cpu_sub(const sz_call *c) { return run_blocks(c, 2, 0, sub_block); }
int sz_cpu_mul(const sz_call *c) { return run_blocks(c, 2, 0, mul_block); }
int sz_cpu_div(const sz_call *c) { return run_blocks(c, 2, 0, div_block); }
int sz_cpu_minimum(const sz_call *c) { return run_blocks(c, 2, 0, minimum_block); }
int sz_cpu_maximum(const sz_call *c) { return run_blocks(c, 2, 0, maximum_block); }
int sz_cpu_mask_le(const sz_call *c) { return run_blocks(c, 3, 0, mask_le_block); }
int sz_cpu_affine(const sz_call *c) { return run_blocks(c, 1, 2, affine_block); }
int sz_cpu_exp(const sz_call *c) { return run_blocks(c, 1, 0, exp_block); }
int sz_cpu_log(const sz_call *c) { return run_blocks(c, 1, 0, log_block); }
int sz_cpu_sigmoid(const sz_call *c) { return run_blocks(c, 1, 0, sigmoid_block); }
int sz_cpu_silu(const sz_call *c) { return run_blocks(c, 1, 0, silu_block); }
int sz_cpu_silu_backward(const sz_call *c) { return run_blocks(c, 2, 0, silu_backward_block); }
int sz_cpu_gelu(const sz_call *c) { return run_blocks(c, 1, 0, gelu_block); }
int sz_cpu_gelu_backward(const sz_call *c) { return run_blocks(c, 2, 0, gelu_backward_block); }
int sz_cpu_quick_gelu(const sz_call *c) { return run_blocks(c, 1, 0, quick_gelu_block); }
int sz_cpu_quick_gelu_backward(const sz_call *c)
{
    return run_blocks(c, 2, 0, quick_gelu_backward_block);
}
int sz_cpu_relu(const sz_call *c) { return run_blocks(c, 1, 0, relu_block); }
int sz_cpu_relu_backward(const sz_call *c) { return run_blocks(c, 2, 0, relu_backward_block); }
int sz_cpu_softplus(const sz_call *c) { return run_blocks(c, 1, 0, softplus_block); }
int sz_cpu_clamp(const sz_call *c) { return run_blocks(c, 1, 2, clamp_block); }
int sz_cpu_clamp_backward(const sz_call *c) { return run_blocks(c, 2, 2, clamp_backward_block); }

/* ---- swiglu: x [n, 2w] = gate | up, y [n, w] = silu(gate) * up ---- */

static void swiglu_block(const float *gate, const float *up, float *restrict y, int64_t n)
{
    for (int64_t i = 0; i < n; i++) y[i] = gate[i] / (1.0f + sz_exp(-gate[i])) * up[i];
}
static void swiglu_backward_block(const float *gate, const float *up, const float *dy,
                                  float *restrict dgate, float *restrict dup, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        float s = sz_sigmoidf(gate[i]);
        float silu = gate[i] * s;
        dgate[i] = dy[i] * up[i] * (s + silu * (1.0f - s));
        dup[i] = dy[i] * silu;
    }
}

int sz_cpu_swiglu(const sz_call *c)
{
    const sz_tensor *x = c->in[0];
    sz_tensor *y = c->out[0];
    const int64_t w = sz_cols(y);
    const int64_t blocks_per_row = sz_ceil_div(w, SZ_BLOCK);
    const int64_t blocks = sz_rows(y) * blocks_per_row;

#pragma omp parallel for schedule(static) if (y->numel >= SZ_PARALLEL_FROM / 4)
    for (int64_t block = 0; block < blocks; block++) {
        /* The same columns of gate and up. */
        float gate_buffer[SZ_BLOCK], up_buffer[SZ_BLOCK], y_buffer[SZ_BLOCK];
        int64_t row = block / blocks_per_row;
        int64_t col = block % blocks_per_row * SZ_BLOCK;
        int64_t n = sz_min64(SZ_BLOCK, w - col);
        const float *gate = sz_block(x, row * 2 * w + col, n, gate_buffer);
        const float *up = sz_block(x, row * 2 * w + w + col, n, up_buffer);
        float *result = sz_block_begin(y, row * w + col, y_buffer);
        swiglu_block(gate, up, result, n);
        sz_block_end(y, row * w + col, n, result);
    }
    return 0;
}

int sz_cpu_swiglu_backward(const sz_call *c)
{
    const sz_tensor *x = c->in[0];
    const sz_tensor *dy = c->in[1];
    sz_tensor *dx = c->out[0];
    const int64_t w = sz_cols(dy);
    const int64_t blocks_per_row = sz_ceil_div(w, SZ_BLOCK);
    const int64_t blocks = sz_rows(dy) * blocks_per_row;

#pragma omp parallel for schedule(static) if (dy->numel >= SZ_PARALLEL_FROM / 4)
    for (int64_t block = 0; block < blocks; block++) {
        /* The same columns of gate, up and dy. */
        float buffer[5][SZ_BLOCK];
        int64_t row = block / blocks_per_row;
        int64_t col = block % blocks_per_row * SZ_BLOCK;
        int64_t n = sz_min64(SZ_BLOCK, w - col);
        int64_t gate_first = row * 2 * w + col;
        int64_t up_first = gate_first + w;
        const float *gate = sz_block(x, gate_first, n, buffer[0]);
        const float *up = sz_block(x, up_first, n, buffer[1]);
        const float *g = sz_block(dy, row * w + col, n, buffer[2]);

        float *dgate = sz_block_begin(dx, gate_first, buffer[3]);
        float *dup = sz_block_begin(dx, up_first, buffer[4]);
        swiglu_backward_block(gate, up, g, dgate, dup, n);
        sz_block_end(dx, gate_first, n, dgate);
        sz_block_end(dx, up_first, n, dup);
    }
    return 0;
}

/* ---- cast: C conversions; f32 -> bf16 rounds to nearest even, floats -> integers truncate ---- */

static bool is_float(const sz_tensor *t) { return t->dtype == SZ_F32 || t->dtype == SZ_BF16; }

static void cast_block(const sz_tensor *src, const sz_tensor *dst, int64_t start, int64_t n)
{
    float buffer[SZ_BLOCK];
    bool src_float = is_float(src);
    bool dst_float = is_float(dst);

    if (src->dtype == dst->dtype || (src_float && dst_float)) {
        sz_copy_elements(dst, start, src, start, n);
    } else if (src_float) {
        /* Floats to integers. */
        const float *x = sz_block(src, start, n, buffer);
        if (dst->dtype == SZ_I32) {
            int32_t *y = sz_i32(dst) + start;
            for (int64_t i = 0; i < n; i++) y[i] = (int32_t)x[i];
        } else {
            uint8_t *y = (uint8_t *)dst->data + start;
            for (int64_t i = 0; i < n; i++) y[i] = (uint8_t)(int32_t)x[i];
        }
    } else if (dst_float) {
        /* Integers to floats. */
        float *y = sz_block_begin(dst, start, buffer);
        if (src->dtype == SZ_I32) {
            const int32_t *x = sz_i32(src) + start;
            for (int64_t i = 0; i < n; i++) y[i] = (float)x[i];
        } else {
            const uint8_t *x = (const uint8_t *)src->data + start;
            for (int64_t i = 0; i < n; i++) y[i] = (float)x[i];
        }
        sz_block_end(dst, start, n, y);
    } else if (dst->dtype == SZ_I32) {
        /* u8 to i32. */
        const uint8_t *x = (const uint8_t *)src->data + start;
        for (int64_t i = 0; i < n; i++) sz_i32(dst)[start + i] = x[i];
    } else {
        /* i32 to u8. */
        const int32_t *x = sz_i32(src) + start;
        for (int64_t i = 0; i < n; i++) ((uint8_t *)dst->data)[start + i] = (uint8_t)x[i];
    }
}

int sz_cpu_cast(const sz_call *c)
{
    const sz_tensor *x = c->in[0];
    const sz_tensor *y = c->out[0];
    const int64_t blocks = sz_ceil_div(y->numel, SZ_BLOCK);
#pragma omp parallel for schedule(static) if (y->numel >= SZ_PARALLEL_FROM)
    for (int64_t block = 0; block < blocks; block++)
        cast_block(x, y, block * SZ_BLOCK, sz_min64(SZ_BLOCK, y->numel - block * SZ_BLOCK));
    return 0;
}

/* ---- sums: fixed chunks, added in order, so that the thread count does not change the result ----
 */

enum { SUM_CHUNK = 8 * SZ_BLOCK };

int sz_cpu_sum(const sz_call *c)
{
    const sz_tensor *x = c->in[0];
    const int64_t chunks = sz_ceil_div(x->numel, SUM_CHUNK);
    double *partial = sz_scratch((size_t)(chunks + 1) * sizeof *partial);
    if (!partial) return -1;

/* The sum of each chunk. */
#pragma omp parallel for schedule(static) if (x->numel >= SZ_PARALLEL_FROM)
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
        float buffer[SZ_BLOCK];
        int64_t end = sz_min64(x->numel, (chunk + 1) * SUM_CHUNK);
        double s = 0;
        for (int64_t i = chunk * SUM_CHUNK; i < end; i += SZ_BLOCK) {
            int64_t n = sz_min64(SZ_BLOCK, end - i);
            s += sz_block_sum(sz_block(x, i, n, buffer), n);
        }
        partial[chunk] = s;
    }

    /* Their sum. */
    double total = 0;
    for (int64_t chunk = 0; chunk < chunks; chunk++) total += partial[chunk];
    sz_f32(c->out[0])[0] = (float)total;
    return 0;
}

/* x [m, n] -> column sums [n] in f32. The m rows are cut into at most 64 chunks (one, if n alone
 * gives enough work), each with its own sums in double, which are then added in order. If rows are
 * short, a chunk adds several at a time. */
int sz_cpu_sum_leading(const sz_call *c)
{
    enum { MAX_CHUNKS = 64, LONG_ROW = 8 * SZ_BLOCK };
    const sz_tensor *x = c->in[0];
    float *y = sz_f32(c->out[0]);
    const int64_t n = c->out[0]->numel;
    if (n == 0) return 0;
    const int64_t m = x->numel / n;

    /* Rows of a chunk: those of MAX_CHUNKS chunks, but enough for LONG_ROW elements. */
    int64_t rows_per_chunk = m;
    if (n < LONG_ROW) {
        rows_per_chunk = sz_ceil_div(m, MAX_CHUNKS);
        if (rows_per_chunk <= LONG_ROW / n) rows_per_chunk = LONG_ROW / n;
    }
    const int64_t chunks = m ? sz_ceil_div(m, rows_per_chunk) : 0;

    /* Elements that a chunk adds at a time: several whole rows, or one. */
    const int64_t width = n <= SZ_BLOCK / 2 ? SZ_BLOCK / n * n : n;
    const int64_t column_blocks = sz_ceil_div(width, SZ_BLOCK);
    double *partial = sz_scratch((size_t)(chunks * width + 1) * sizeof *partial);
    if (!partial) return -1;

#pragma omp parallel for collapse(2) schedule(static) if (x->numel >= SZ_PARALLEL_FROM)
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
        for (int64_t block = 0; block < column_blocks; block++) {
            float buffer[SZ_BLOCK];
            int64_t col = block * SZ_BLOCK;
            int64_t cols = sz_min64(SZ_BLOCK, width - col);
            int64_t end = sz_min64(m, (chunk + 1) * rows_per_chunk) * n;
            double *sums = partial + chunk * width + col;
            for (int64_t j = 0; j < cols; j++) sums[j] = 0;
            for (int64_t i = chunk * rows_per_chunk * n + col; i < end; i += width) {
                int64_t k = sz_min64(cols, end - i);
                const float *v = sz_block(x, i, k, buffer);
                for (int64_t j = 0; j < k; j++) sums[j] += (double)v[j];
            }
        }
    }

/* Add the chunks, and the rows that were added side by side. */
#pragma omp parallel for schedule(static) if (n >= SZ_PARALLEL_FROM)
    for (int64_t j = 0; j < n; j++) {
        double s = 0;
        for (int64_t chunk = 0; chunk < chunks; chunk++)
            for (int64_t k = j; k < width; k += n) s += partial[chunk * width + k];
        y[j] = (float)s;
    }
    return 0;
}

int sz_cpu_expand(const sz_call *c)
{
    sz_tensor *y = c->out[0];
    const float value = sz_get(c->in[0], 0);
    const uint16_t rounded = sz_to_bf16(value);
#pragma omp parallel for schedule(static) if (y->numel >= SZ_PARALLEL_FROM)
    for (int64_t start = 0; start < y->numel; start += SZ_BLOCK) {
        int64_t end = sz_min64(y->numel, start + SZ_BLOCK);
        if (y->dtype == SZ_F32)
            for (int64_t i = start; i < end; i++) sz_f32(y)[i] = value;
        else
            for (int64_t i = start; i < end; i++) sz_bf16(y)[i] = rounded;
    }
    return 0;
}

int sz_cpu_add_(const sz_call *c)
{
    const sz_tensor *b = c->in[1];
    sz_tensor *a = c->out[0];
#pragma omp parallel for schedule(static) if (a->numel >= SZ_PARALLEL_FROM)
    for (int64_t start = 0; start < a->numel; start += SZ_BLOCK) {
        float a_buffer[SZ_BLOCK], b_buffer[SZ_BLOCK];
        int64_t n = sz_min64(SZ_BLOCK, a->numel - start);
        const float *addend = sz_block(b, start, n, b_buffer);
        float *sum = sz_block_begin(a, start, a_buffer);
        if (sum == a_buffer) sz_bf16_to_f32(a_buffer, sz_bf16(a) + start, n);
/* b may be a itself, but never a shifted part of it. */
#pragma omp simd
        for (int64_t i = 0; i < n; i++) sum[i] += addend[i];
        sz_block_end(a, start, n, sum);
    }
    return 0;
}
