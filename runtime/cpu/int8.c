/* int8.c - linear layers with 8-bit weights (format: int8.h), for inference.
 *
 *   quantize_int8   w1, w2, w3 [m, k], one below the other -> q, scale
 *   linear_int8     x [n, k] quantized to 8 bits; integer products of groups of 128 columns, scaled
 *                   and summed in f32
 *
 * A sum runs over the groups in order, whatever n is, so an answer's numbers do not depend on how
 * many answers decode with it. With AVX512-VNNI, four products a lane are one instruction.
 * Leaves out: gradients.
 */
#include "vecmath.h"
#include "int8.h"
#include <omp.h>
#ifdef __AVX512VNNI__
#include <immintrin.h>
#endif

enum {
    MAX_TILE_ROWS = 12, /* rows of x whose sums for two blocks of weights fit the registers */
    TASK_BLOCKS = 4,    /* blocks of weights that a thread takes at once */
    MAX_SUMS = 24       /* vectors of sums of a tile */
};

typedef int32_t int_vec __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint32_t uint_vec __attribute__((vector_size(64)));
typedef float float_vec __attribute__((vector_size(64), aligned(4), may_alias));

/* ---- weights ---- */

/* One row of weights: codes into every 64th group of four bytes from `codes` on, scales into every
 * 16th float from `scales` on. w NULL: padding. */
static void quantize_row(const sz_tensor *w, int64_t r, int64_t k, int64_t words, int64_t groups,
                         uint8_t *codes, float *scales)
{
    for (int64_t g = 0; g < groups; g++) {
        /* The group's elements as f32, 0 past the end. */
        const int64_t first = g * SZ_Q_GROUP;
        const int64_t n = sz_min64(SZ_Q_GROUP, k - first);
        float x[SZ_Q_GROUP] = { 0 };
        float inverse = 0;
        float scale = 0;
        for (int64_t i = 0; w && i < n; i++) x[i] = sz_get(w, r * k + first + i);
        if (w) scale = sz_q_scale(x, n, &inverse);
        if (inverse == 0) memset(x, 0, sizeof x);
        scales[g * SZ_Q_ROWS] = scale;

        /* Four codes a word. */
        const int64_t group_words = sz_min64(SZ_Q_WORDS, words - g * SZ_Q_WORDS);
        for (int64_t i = 0; i < group_words; i++, codes += 64)
            for (int64_t b = 0; b < 4; b++)
                codes[b] = (uint8_t)(SZ_Q_ZERO + (int32_t)rintf(x[4 * i + b] * inverse));
    }
}

int sz_cpu_quantize_int8(const sz_call *c)
{
    sz_tensor *q = c->out[0];
    sz_tensor *scale = c->out[1];
    const int64_t k = sz_cols(c->in[0]);
    const int64_t blocks = q->shape[0];
    const int64_t words = q->shape[1];
    const int64_t groups = scale->shape[1];

#pragma omp parallel for schedule(static)
    for (int64_t block = 0; block < blocks; block++)
        for (int64_t lane = 0; lane < SZ_Q_ROWS; lane++) {
            /* The weight that has this row; none for padding. */
            int64_t r = block * SZ_Q_ROWS + lane;
            int which = 0;
            while (which < 3 && c->in[which] && r >= c->in[which]->shape[0])
                r -= c->in[which++]->shape[0];
            const sz_tensor *w = which < 3 ? c->in[which] : NULL;
            uint8_t *codes = (uint8_t *)q->data + block * words * 64 + lane * 4;
            float *scales = sz_f32(scale) + block * groups * SZ_Q_ROWS + lane;
            quantize_row(w, r, k, words, groups, codes, scales);
        }
    return 0;
}

/* ---- x ---- */

/* Rows of x in 8 bits, in blocks of MAX_TILE_ROWS (the last may have fewer): words [words][rows] of
 * four codes, and for each group scale [groups][rows] and start [groups][rows]. A sum begins with
 * start, which cancels the 128 in every weight's code. */
typedef struct {
    int32_t *words;
    float *scale;
    int32_t *start;
} quantized_rows;

/* Quantizes row i of x; rows: of its block, which is the distance between neighbours in the
 * results. */
static void quantize_x(const sz_tensor *x, int64_t i, int64_t rows, int64_t k, int64_t words,
                       int64_t groups, quantized_rows out)
{
    for (int64_t g = 0; g < groups; g++) {
        /* The group's elements as f32, 0 past the end. */
        const int64_t first = g * SZ_Q_GROUP;
        const int64_t n = sz_min64(SZ_Q_GROUP, k - first);
        float v[SZ_Q_GROUP] = { 0 };
        if (x->dtype == SZ_F32) memcpy(v, sz_f32(x) + i * k + first, (size_t)n * sizeof *v);
        else
            for (int64_t j = 0; j < n; j++) v[j] = sz_from_bf16(sz_bf16(x)[i * k + first + j]);

        /* Zeros if it is all 0, or if it is not finite: then the scale is NaN. */
        float inverse;
        out.scale[g * rows] = sz_q_scale(v, n, &inverse);
        if (inverse == 0) memset(v, 0, sizeof v);

        /* The codes and their sum. */
        int8_t q[SZ_Q_GROUP];
        int32_t sum = 0;
        for (int64_t j = 0; j < SZ_Q_GROUP; j++) {
            int32_t code = (int32_t)rintf(v[j] * inverse);
            q[j] = (int8_t)code;
            sum += code;
        }
        out.start[g * rows] = -SZ_Q_ZERO * sum;
        for (int64_t j = 0; j < sz_min64(SZ_Q_WORDS, words - g * SZ_Q_WORDS); j++)
            memcpy(out.words + (g * SZ_Q_WORDS + j) * rows, q + 4 * j, 4);
    }
}

/* ---- the product ---- */

/* sums += the products of four unsigned bytes in each lane of w with the four signed ones of x. */
static inline __attribute__((always_inline)) void dot4(int_vec *sums, const int_vec *w, int32_t x)
{
#ifdef __AVX512VNNI__
    *sums = (int_vec)_mm512_dpbusd_epi32((__m512i)*sums, (__m512i)*w, _mm512_set1_epi32(x));
#else
    for (int b = 0; b < 4; b++) {
        int32_t xb = (int8_t)((uint32_t)x >> (8 * b));
        *sums += (int_vec)((uint_vec)*w >> (8 * b) & 255) * xb;
    }
#endif
}

/* R blocks of weights times M rows of x: sums [R][M] of 16 lanes. M and R are constants where it is
 * inlined. */
static inline __attribute__((always_inline)) void tile(const int M, const int R, int64_t words,
                                                       int64_t groups, const uint8_t *const *w,
                                                       const float *const *w_scale,
                                                       const int32_t *x, const float *x_scale,
                                                       const int32_t *start, float_vec *sums)
{
#pragma GCC unroll 24
    for (int i = 0; i < R * M; i++) sums[i] = (float_vec){ 0 };
    for (int64_t g = 0; g < groups; g++, x_scale += M, start += M) {
        const int64_t left = words - g * SZ_Q_WORDS;
        const int64_t n = left < SZ_Q_WORDS ? left : SZ_Q_WORDS;

        /* Integer sums of the group. */
        int_vec s[MAX_SUMS];
#pragma GCC unroll 4
        for (int r = 0; r < R; r++)
#pragma GCC unroll 12
            for (int i = 0; i < M; i++) s[r * M + i] = start[i] - (int_vec){ 0 };
        for (int64_t p = 0; p < n; p++, x += M) {
            int_vec a[4];
#pragma GCC unroll 4
            for (int r = 0; r < R; r++) {
                const uint8_t *codes = w[r] + (g * SZ_Q_WORDS + p) * 64;
                a[r] = *(const int_vec *)codes;
                __builtin_prefetch(codes + 2048);
            }
#pragma GCC unroll 12
            for (int i = 0; i < M; i++)
#pragma GCC unroll 4
                for (int r = 0; r < R; r++) dot4(&s[r * M + i], &a[r], x[i]);
        }

        /* Scaled and added in f32. */
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            float_vec scale = *(const float_vec *)(w_scale[r] + g * SZ_Q_ROWS);
#pragma GCC unroll 12
            for (int i = 0; i < M; i++)
                sums[r * M + i] += __builtin_convertvector(s[r * M + i], float_vec) *
                                   (scale * x_scale[i]);
        }
    }
}

/* tile for any m <= MAX_TILE_ROWS. Returns R, the number of blocks that it computes; those past
 * `left` repeat the last one. */
static __attribute__((noinline)) int any_tile(int64_t m, int64_t left, int64_t words,
                                              int64_t groups, const uint8_t *w,
                                              const float *w_scale, const int32_t *x,
                                              const float *x_scale, const int32_t *start,
                                              float_vec *sums)
{
    const int R = m <= 4 ? 4 : 2;
    const uint8_t *rows[4];
    const float *scales[4];
    for (int r = 0; r < R; r++) {
        int64_t b = r < left ? r : left - 1;
        rows[r] = w + b * words * 64;
        scales[r] = w_scale + b * groups * SZ_Q_ROWS;
    }

    /* One instance for each m. */
#define CASE(M) \
    case M: tile(M, M <= 4 ? 4 : 2, words, groups, rows, scales, x, x_scale, start, sums); break
    switch (m) {
        CASE(1);
        CASE(2);
        CASE(3);
        CASE(4);
        CASE(5);
        CASE(6);
        CASE(7);
        CASE(8);
        CASE(9);
        CASE(10);
        CASE(11);
        CASE(12);
    }
#undef CASE
    return R;
}

/* Stores one block of results, columns [col, col + 16) of rows [row, row + rows): sums plus bias.
 */
static inline void store_block(const sz_tensor *y, const sz_tensor *bias, int64_t row, int64_t rows,
                               int64_t col, const float_vec *sums)
{
    const int64_t m = sz_cols(y);
    const int64_t width = sz_min64(SZ_Q_ROWS, m - col);
    float b[SZ_Q_ROWS] = { 0 };
    for (int64_t j = 0; bias && j < width; j++) b[j] = sz_get(bias, col + j);
    for (int64_t t = 0; t < rows; t++) {
        float_vec v = sums[t] + *(const float_vec *)b;
        const int64_t first = (row + t) * m + col;
        if (y->dtype == SZ_F32)
            for (int64_t j = 0; j < width; j++) sz_f32(y)[first + j] = v[j];
        else
            for (int64_t j = 0; j < width; j++) sz_bf16(y)[first + j] = sz_to_bf16(v[j]);
    }
}

int sz_cpu_linear_int8(const sz_call *c)
{
    const sz_tensor *x = c->in[0];
    const sz_tensor *q = c->in[1];
    const sz_tensor *scale = c->in[2];
    const sz_tensor *bias = c->in[3];
    sz_tensor *y = c->out[0];
    const int64_t n = sz_rows(x);
    const int64_t k = sz_cols(x);
    const int64_t m = sz_cols(y);
    const int64_t blocks = q->shape[0];
    const int64_t words = q->shape[1];
    const int64_t groups = scale->shape[1];

    /* x in 8 bits. */
    quantized_rows in = {
        sz_scratch((size_t)(n * words + 1) * sizeof *in.words),
        sz_scratch((size_t)(n * groups + 1) * sizeof *in.scale),
        sz_scratch((size_t)(n * groups + 1) * sizeof *in.start),
    };
    if (!in.words || !in.scale || !in.start) return -1;
#pragma omp parallel for schedule(static) if (n * k >= SZ_PARALLEL_FROM)
    for (int64_t i = 0; i < n; i++) {
        const int64_t first = i - i % MAX_TILE_ROWS;
        const int64_t rows = sz_min64(MAX_TILE_ROWS, n - first);
        quantized_rows row = { in.words + first * words + i - first,
                               in.scale + first * groups + i - first,
                               in.start + first * groups + i - first };
        quantize_x(x, i, rows, k, words, groups, row);
    }

/* A task is TASK_BLOCKS blocks of weights times all rows. */
#pragma omp parallel for schedule(dynamic, 1) if (n * k * m >= SZ_PARALLEL_FROM)
    for (int64_t task = 0; task < blocks; task += TASK_BLOCKS) {
        const int64_t end = sz_min64(task + TASK_BLOCKS, blocks);
        for (int64_t i = 0; i < n; i += MAX_TILE_ROWS) {
            const int64_t rows = sz_min64(MAX_TILE_ROWS, n - i);
            for (int64_t block = task, computed; block < end; block += computed) {
                float_vec sums[MAX_SUMS];
                const uint8_t *w = (const uint8_t *)q->data + block * words * 64;
                const float *w_scale = sz_f32(scale) + block * groups * SZ_Q_ROWS;
                computed = any_tile(rows, end - block, words, groups, w, w_scale,
                                    in.words + i * words, in.scale + i * groups,
                                    in.start + i * groups, sums);
                for (int64_t r = 0; r < sz_min64(computed, end - block); r++)
                    store_block(y, bias, i, rows, (block + r) * SZ_Q_ROWS, sums + r * rows);
            }
        }
    }
    return 0;
}
