/* optim.c - the optimizer's kernels on the CPU: the AdamW update, the same with moments of 8 or 16
 * bits and without masters, and the sum of squares for the gradient norm. The reference is
 * reference/optim.c; the optimizer object that calls them is runtime/ops/optim.c.
 *
 * 8-bit moments. 256 elements share an f32 scale. A code is a small float, so that its error is
 * relative to the element and not to the block's largest: the update divides one moment by the root
 * of the other, and a linear code would lose both of every small element.
 *   m  sign, 4 bits of exponent, 3 of fraction: 15 octaves below the block's largest, then linear
 *      down to 0
 *   v  5 bits of exponent, 3 of fraction: 31 octaves, that is 15.5 of its root. What is not 0 never
 *      becomes 0, because it is a divisor.
 * value = scale * 1.fraction * 2^(exponent - largest exponent). The largest element of a block is
 * the largest code, exactly.
 *
 * Rounding is stochastic, and right on average. A second moment moves by a thousandth a step (beta2
 * = 0.999), less than the distance between 8 or 16 bit codes, and bf16 weights by less than half of
 * theirs (lr = 1e-6): rounded to nearest, neither would ever move. After 300 steps of
 * tests/unit/test_optim.lua the weights differ from plain AdamW's by 0.060 of the way they went,
 * and by 0.185 with nearest codes; bf16 weights without masters reach a loss of 0.0116, as f32
 * does, and 0.045 if rounded to nearest.
 * Leaves out: optimizers other than AdamW.
 */
#include "vecmath.h"
#include <math.h>

typedef struct {
    float decay; /* 1 - lr * weight_decay */
    float one_minus_b1;
    float b2, one_minus_b2;
    float step_size;       /* lr / (1 - b1^step) */
    float root_correction; /* 1 / sqrt(1 - b2^step) */
    float eps;
    float grad_scale;
} adamw_numbers;

/* One block: decoupled decay and bias-corrected moments, as in PyTorch's AdamW. p is the f32
 * parameter or its f32 master. */
static void adamw_block(float *restrict p, const float *restrict grad, float *restrict m,
                        float *restrict v, int64_t n, const adamw_numbers *k)
{
    const adamw_numbers a = *k;
    for (int64_t i = 0; i < n; i++) {
        float g = grad[i] * a.grad_scale;
        float m1 = m[i] + a.one_minus_b1 * (g - m[i]);
        float v1 = a.b2 * v[i] + a.one_minus_b2 * g * g;
        m[i] = m1;
        v[i] = v1;
        p[i] = p[i] * a.decay - a.step_size * m1 / (sqrtf(v1) * a.root_correction + a.eps);
    }
}

/* args: lr, b1, b2, eps, wd, step, grad_scale */
static adamw_numbers numbers_of(const double *args)
{
    const double lr = args[0];
    const double b1 = args[1];
    const double b2 = args[2];
    const double step = args[5];
    return (adamw_numbers){
        .decay = (float)(1.0 - lr * args[4]),
        .one_minus_b1 = (float)(1.0 - b1),
        .b2 = (float)b2,
        .one_minus_b2 = (float)(1.0 - b2),
        .step_size = (float)(lr / (1.0 - pow(b1, step))),
        .root_correction = (float)(1.0 / sqrt(1.0 - pow(b2, step))),
        .eps = (float)args[3],
        .grad_scale = (float)args[6],
    };
}

/* (param, grad, m, v, master | NULL; lr, b1, b2, eps, wd, step, grad_scale) */
int sz_cpu_adamw_(const sz_call *c)
{
    const sz_tensor *grad = c->in[1];
    const sz_tensor *m = c->in[2];
    const sz_tensor *v = c->in[3];
    const sz_tensor *master = c->in[4];
    sz_tensor *param = c->out[0];
    const adamw_numbers k = numbers_of(c->args);
    float *p = sz_f32(master ? master : param);

#pragma omp parallel for schedule(static) if (param->numel >= SZ_PARALLEL_FROM)
    for (int64_t start = 0; start < param->numel; start += SZ_BLOCK) {
        float buffer[SZ_BLOCK];
        int64_t n = sz_min64(SZ_BLOCK, param->numel - start);
        /* Update, then round the master into the parameter. */
        const float *g = sz_block(grad, start, n, buffer);
        adamw_block(p + start, g, sz_f32(m) + start, sz_f32(v) + start, n, &k);
        if (master) sz_copy_elements(param, start, master, start, n);
    }
    return 0;
}

/* ---- random numbers: 16 bits for each of m, v and the parameter of an element ---- */

enum {
    LANES = 64,
    WORDS = 3 * SZ_BLOCK / 2, /* 32-bit words of a block of elements */
    COUNTERS = WORDS / 4      /* Philox calls of a block */
};

/* Ten rounds of Philox on LANES counters. */
static inline void philox_rounds(uint32_t c[4][LANES])
{
    uint32_t k0 = (uint32_t)SZ_ROUNDING_SEED;
    uint32_t k1 = (uint32_t)(SZ_ROUNDING_SEED >> 32);
    for (int round = 0; round < 10; round++) {
        for (int i = 0; i < LANES; i++) {
            /* Upper and lower halves apart make vectors of 32 bits; whole products would need
             * vectors of 64 and a slower multiplication. */
            uint32_t x = c[0][i];
            uint32_t z = c[2][i];
            c[0][i] = (uint32_t)((uint64_t)0xcd9e8d57u * z >> 32) ^ c[1][i] ^ k0;
            c[2][i] = (uint32_t)((uint64_t)0xd2511f53u * x >> 32) ^ c[3][i] ^ k1;
            c[1][i] = 0xcd9e8d57u * z;
            c[3][i] = 0xd2511f53u * x;
        }
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
}

/* words = sz_random_bits(SZ_ROUNDING_SEED, block * COUNTERS + i, index, step) for each i <
 * COUNTERS, many at a time. */
static void random_words(int64_t block, uint32_t index, uint32_t step, uint32_t *restrict words)
{
    for (int first = 0; first < COUNTERS; first += LANES) {
        uint32_t c[4][LANES];
        for (int i = 0; i < LANES; i++) {
            uint64_t row = (uint64_t)block * COUNTERS + (uint64_t)(first + i);
            c[0][i] = (uint32_t)row;
            c[1][i] = (uint32_t)(row >> 32);
            c[2][i] = index;
            c[3][i] = step;
        }
        philox_rounds(c);
        for (int i = 0; i < LANES; i++)
            for (int k = 0; k < 4; k++) words[4 * (first + i) + k] = c[k][i];
    }
}

/* Element i's 16 random bits of one of the three streams: the lower half of a word first, as in
 * memory. */
typedef uint16_t __attribute__((may_alias)) half_word;
static inline uint32_t draw(const uint32_t *stream, int64_t i)
{
    return ((const half_word *)stream)[i];
}

/* ---- moments of few bits ---- */

/* Codes with exponents - 1 octaves above the linear part, after a sign if there is one. */
typedef struct {
    int exponents, sign;
} code_format;
static const code_format first_moment = { 16, 1 };
static const code_format second_moment = { 32, 0 };

static void decode8(code_format f, const uint8_t *restrict codes, float scale, int64_t n,
                    float *restrict out)
{
    const uint32_t sign = f.sign ? 0x80 : 0;
    const uint32_t bias = (uint32_t)(128 - f.exponents);
    const float linear_step = sz_bits_float((bias + 1) << 23) / 8;
    for (int64_t i = 0; i < n; i++) {
        uint32_t code = codes[i];
        uint32_t size = code & (0xff ^ sign);
        float normal = sz_bits_float((size << 20) + (bias << 23));
        float linear = (float)size * linear_step;
        float x = scale * (size < 8 ? linear : normal);
        out[i] = code & sign ? -x : x;
    }
}

/* Largest |x|. As bits, which are in the same order and make vectors. */
static inline float largest_of(const float *x, int64_t n)
{
    uint32_t top = 0;
    for (int64_t i = 0; i < n; i++) {
        uint32_t size = sz_float_bits(fabsf(x[i]));
        top = size > top ? size : top;
    }
    return sz_bits_float(top);
}

/* Returns the block's scale. x is finite: the norm would have skipped the update otherwise. */
static float encode8(code_format f, const float *restrict x, const uint32_t *stream, int64_t first,
                     int64_t n, uint8_t *restrict codes)
{
    const uint32_t sign = f.sign ? 0x80 : 0;
    const uint32_t largest_code = 0xff ^ sign;
    const uint32_t bias = (uint32_t)(128 - f.exponents);
    const float linear_step = sz_bits_float((bias + 1) << 23) / 8;

    /* A block of zeros, or too small to divide by. */
    float scale = largest_of(x, n) / 1.875f;
    if (!(scale > 1e-37f)) {
        memset(codes, 0, (size_t)n);
        return 0;
    }

    for (int64_t i = 0; i < n; i++) {
        /* Both codes; `normal` is garbage below the octaves, where it is not used. */
        float size = fabsf(x[i]) / scale;
        uint32_t r = draw(stream, first + i);
        uint32_t bits = sz_float_bits(size) + (r << 4);
        uint32_t normal = (bits >> 20) - (bias << 3);
        uint32_t linear = (uint32_t)(size / linear_step + (float)r * 0x1p-16f);

        uint32_t code = size < 8 * linear_step ? linear : normal;
        code = code > largest_code ? largest_code : code;
        code = !sign && code == 0 && size > 0 ? 1 : code;
        codes[i] = (uint8_t)(x[i] < 0 ? code | sign : code);
    }
    return scale;
}

static void round_bf16(const float *restrict x, const uint32_t *stream, int64_t n,
                       uint16_t *restrict out)
{
    for (int64_t i = 0; i < n; i++)
        out[i] = (uint16_t)((sz_float_bits(x[i]) + draw(stream, i)) >> 16);
}

/* out = elements [start, start + n) of a moment. */
static void load_moment(const sz_tensor *t, const sz_tensor *scales, code_format f, int64_t start,
                        int64_t n, float *out)
{
    for (int64_t i = 0; t->dtype == SZ_U8 && i < n; i += SZ_MOMENT_BLOCK) {
        const uint8_t *codes = (const uint8_t *)t->data + start + i;
        float scale = sz_f32(scales)[(start + i) / SZ_MOMENT_BLOCK];
        decode8(f, codes, scale, sz_min64(SZ_MOMENT_BLOCK, n - i), out + i);
    }
    if (t->dtype == SZ_BF16) sz_bf16_to_f32(out, sz_bf16(t) + start, n);
    if (t->dtype == SZ_F32) memcpy(out, sz_f32(t) + start, (size_t)n * sizeof *out);
}

static void store_moment(const sz_tensor *t, const sz_tensor *scales, code_format f,
                         const uint32_t *stream, int64_t start, int64_t n, const float *in)
{
    for (int64_t i = 0; t->dtype == SZ_U8 && i < n; i += SZ_MOMENT_BLOCK) {
        uint8_t *codes = (uint8_t *)t->data + start + i;
        float *scale = sz_f32(scales) + (start + i) / SZ_MOMENT_BLOCK;
        *scale = encode8(f, in + i, stream, i, sz_min64(SZ_MOMENT_BLOCK, n - i), codes);
    }
    if (t->dtype == SZ_BF16) round_bf16(in, stream, n, sz_bf16(t) + start);
    if (t->dtype == SZ_F32) memcpy(sz_f32(t) + start, in, (size_t)n * sizeof *in);
}

/* (param, grad, m, v, m_scale | NULL, v_scale | NULL, master | NULL; lr, b1, b2, eps, wd, step,
 * grad_scale, index, first) */
int sz_cpu_adamw_compact_(const sz_call *c)
{
    const sz_tensor *grad = c->in[1];
    const sz_tensor *m = c->in[2];
    const sz_tensor *v = c->in[3];
    const sz_tensor *master = c->in[6];
    sz_tensor *param = c->out[0];
    const adamw_numbers k = numbers_of(c->args);
    const bool round_param = !master && param->dtype == SZ_BF16;
    const bool needs_random = round_param || m->dtype != SZ_F32;
    const uint32_t step = (uint32_t)c->args[5];
    const uint32_t index = (uint32_t)c->args[7];
    const int64_t first_block = (int64_t)c->args[8] / SZ_BLOCK;

#pragma omp parallel for schedule(static) if (param->numel >= SZ_PARALLEL_FROM)
    for (int64_t start = 0; start < param->numel; start += SZ_BLOCK) {
        float g[SZ_BLOCK], m1[SZ_BLOCK], v1[SZ_BLOCK], param_f32[SZ_BLOCK];
        uint32_t words[WORDS];
        int64_t n = sz_min64(SZ_BLOCK, param->numel - start);
        float *p = param_f32;
        if (!round_param) p = sz_f32(master ? master : param) + start;

        /* Parameter and moments as f32. */
        if (needs_random) random_words(first_block + start / SZ_BLOCK, index, step, words);
        if (round_param) sz_bf16_to_f32(param_f32, sz_bf16(param) + start, n);
        load_moment(m, c->in[4], first_moment, start, n, m1);
        load_moment(v, c->in[5], second_moment, start, n, v1);

        /* Update, and store them again. */
        adamw_block(p, sz_block(grad, start, n, g), m1, v1, n, &k);
        store_moment(m, c->in[4], first_moment, words, start, n, m1);
        store_moment(v, c->in[5], second_moment, words + SZ_BLOCK / 2, start, n, v1);
        if (round_param) round_bf16(param_f32, words + SZ_BLOCK, n, sz_bf16(param) + start);
        else if (master) sz_copy_elements(param, start, master, start, n);
    }
    return 0;
}

/* ---- moments in the blocks of another split ---- */

/* Where a whole tensor [rows, columns] is divided into slices, each with blocks of its own. */
typedef struct {
    int64_t columns;
    int64_t slice_rows, slice_columns;
    int64_t column_slices;
    int64_t slice_blocks;
} block_grid;

/* The block of the element at this place of the whole tensor. */
static int64_t block_of(const block_grid *g, int64_t place)
{
    const int64_t row = place / g->columns;
    const int64_t column = place % g->columns;
    const int64_t slice = row / g->slice_rows * g->column_slices + column / g->slice_columns;
    const int64_t in_slice = row % g->slice_rows * g->slice_columns + column % g->slice_columns;
    return slice * g->slice_blocks + in_slice / SZ_MOMENT_BLOCK;
}

/* One block of new codes, from n old ones. */
static float recode_block(code_format f, uint8_t *codes, int64_t first, int64_t n,
                          const sz_place *place, int64_t count, const block_grid *g,
                          const float *old_scales)
{
    float x[SZ_MOMENT_BLOCK];
    uint32_t middle[SZ_MOMENT_BLOCK / 2]; /* random numbers that round to the nearest code */
    for (int i = 0; i < SZ_MOMENT_BLOCK / 2; i++) middle[i] = 0x80008000u;
    for (int64_t i = 0; i < n; i++) {
        int64_t at = 0;
        sz_place_run(place, first + i, count, &at);
        decode8(f, codes + first + i, old_scales[block_of(g, at)], 1, x + i);
    }
    return encode8(f, x, middle, 0, n, codes + first);
}

int sz_cpu_moment_recode(sz_tensor *codes, sz_tensor *scales, int second, const sz_place *place,
                         sz_tensor *old_scales, int64_t rows, int64_t columns, int64_t row_slices,
                         int64_t column_slices)
{
    if (rows < 1 || columns < 1 || row_slices < 1 || column_slices < 1 || rows % row_slices ||
        columns % column_slices)
        return sz_fail("moments: [%lld, %lld] is not divided into %lld by %lld slices",
                       (long long)rows, (long long)columns, (long long)row_slices,
                       (long long)column_slices);
    block_grid g = { .columns = columns,
                     .slice_rows = rows / row_slices,
                     .slice_columns = columns / column_slices,
                     .column_slices = column_slices };
    g.slice_blocks = sz_ceil_div(g.slice_rows * g.slice_columns, SZ_MOMENT_BLOCK);
    const int64_t blocks = sz_ceil_div(codes->numel, SZ_MOMENT_BLOCK);
    const bool fits = codes->dtype == SZ_U8 && scales->dtype == SZ_F32 &&
                      old_scales->dtype == SZ_F32 && scales->numel == blocks &&
                      old_scales->numel == row_slices * column_slices * g.slice_blocks;
    if (!fits) return sz_fail("moments: the scales do not belong to the codes");
    if (sz_place_check(place, codes->numel, rows * columns) != 0) return -1;

    const code_format f = second ? second_moment : first_moment;
#pragma omp parallel for schedule(static) if (codes->numel >= SZ_PARALLEL_FROM)
    for (int64_t b = 0; b < blocks; b++) {
        const int64_t first = b * SZ_MOMENT_BLOCK;
        const int64_t n = sz_min64(SZ_MOMENT_BLOCK, codes->numel - first);
        sz_f32(scales)[b] = recode_block(f, codes->data, first, n, place, codes->numel, &g,
                                         sz_f32(old_scales));
    }
    return 0;
}

/* Fixed chunks in double, added in order: the result does not depend on the thread count. NaN and
 * inf reach the result. */
int sz_cpu_sum_squares(const sz_call *c)
{
    enum { CHUNK = 8 * SZ_BLOCK };
    const sz_tensor *x = c->in[0];
    const int64_t chunks = sz_ceil_div(x->numel, CHUNK);
    double *partial = sz_scratch((size_t)(chunks + 1) * sizeof *partial);
    if (!partial) return -1;

/* The sum of each chunk. */
#pragma omp parallel for schedule(static) if (x->numel >= SZ_PARALLEL_FROM)
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
        float buffer[SZ_BLOCK];
        int64_t end = sz_min64(x->numel, (chunk + 1) * CHUNK);
        double s = 0;
        for (int64_t i = chunk * CHUNK; i < end; i += SZ_BLOCK) {
            int64_t n = sz_min64(SZ_BLOCK, end - i);
            const float *values = sz_block(x, i, n, buffer);
            s += sz_block_dot(values, values, n);
        }
        partial[chunk] = s;
    }

    /* Their sum. */
    double total = 0;
    for (int64_t chunk = 0; chunk < chunks; chunk++) total += partial[chunk];
    sz_f32(c->out[0])[0] = (float)total;
    return 0;
}
