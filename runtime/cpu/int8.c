/* int8.c - linear layers with 8-bit weights (format: int8.h), for inference.
 *
 *   quantize_int8   w1, w2, w3 [m, k] side by side -> q, scale
 *   linear_int8     x [n, k] brought to 8 bits, whole-number products of groups of 128 columns, scaled and summed in f32
 *
 * A sum runs over the groups in order, whatever n is: an answer's numbers do not hang on how many decode beside it.
 * With AVX512-VNNI four products a lane are one instruction. Leaves out: gradients. */
#include "vecmath.h"
#include "int8.h"
#include <omp.h>
#ifdef __AVX512VNNI__
#include <immintrin.h>
#endif

enum { MOST_X = 12, UNIT = 4 };     /* rows of x whose sums fit the registers beside two blocks; blocks that a thread takes at once */

typedef int32_t int_vec __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint32_t uint_vec __attribute__((vector_size(64)));
typedef float float_vec __attribute__((vector_size(64), aligned(4), may_alias));

int sz_cpu_quantize_int8(const sz_call *c)
{
    sz_tensor *q = c->out[0], *scale = c->out[1];
    const int64_t k = sz_cols(c->in[0]), words = q->shape[1], groups = scale->shape[1], blocks = q->shape[0];
    #pragma omp parallel for schedule(static)
    for (int64_t block = 0; block < blocks; block++)
        for (int64_t l = 0; l < SZ_Q_ROWS; l++) {
            int64_t r = block * SZ_Q_ROWS + l;
            int which = 0;
            while (which < 3 && c->in[which] && r >= c->in[which]->shape[0]) r -= c->in[which++]->shape[0];
            const sz_tensor *w = which < 3 ? c->in[which] : NULL;
            uint8_t *to = (uint8_t *)q->data + block * words * 64 + l * 4;
            for (int64_t g = 0; g < groups; g++) {
                const int64_t first = g * SZ_Q_GROUP, n = sz_min64(SZ_Q_GROUP, k - first), padded = sz_min64(SZ_Q_WORDS, words - g * SZ_Q_WORDS);
                float x[SZ_Q_GROUP] = { 0 }, inverse = 0, s = 0;
                for (int64_t i = 0; w && i < n; i++) x[i] = sz_get(w, r * k + first + i);
                if (w) s = sz_q_scale(x, n, &inverse);
                if (inverse == 0) memset(x, 0, sizeof x);
                sz_f32(scale)[(block * groups + g) * SZ_Q_ROWS + l] = s;
                for (int64_t i = 0; i < padded; i++, to += 64)
                    for (int64_t b = 0; b < 4; b++) to[b] = (uint8_t)(SZ_Q_ZERO + (int32_t)rintf(x[4 * i + b] * inverse));
            }
        }
    return 0;
}

/* Rows of x in 8 bits, in blocks of MOST_X (the last may have fewer): words [words][rows] of four bytes, and of each group
 * scale [groups][rows] and start [groups][rows], which takes back the 128 in every weight. */
typedef struct { int32_t *words; float *scale; int32_t *start; } short_rows;

static void shorten(const sz_tensor *x, int64_t i, int64_t rows, int64_t k, int64_t words, int64_t groups, int32_t *to, float *scale, int32_t *start)
{
    for (int64_t g = 0; g < groups; g++) {
        const int64_t first = g * SZ_Q_GROUP, n = sz_min64(SZ_Q_GROUP, k - first);
        float v[SZ_Q_GROUP] = { 0 }, inverse;
        if (x->dtype == SZ_F32) memcpy(v, sz_f32(x) + i * k + first, (size_t)n * sizeof *v);
        else for (int64_t j = 0; j < n; j++) v[j] = sz_from_bf16(sz_bf16(x)[i * k + first + j]);
        scale[g * rows] = sz_q_scale(v, n, &inverse);
        if (inverse == 0) memset(v, 0, sizeof v);       /* zeros already, or not finite: the scale is NaN then */
        int8_t q[SZ_Q_GROUP];
        int32_t sum = 0;
        for (int64_t j = 0; j < SZ_Q_GROUP; j++) {
            int32_t whole = (int32_t)rintf(v[j] * inverse);
            q[j] = (int8_t)whole;
            sum += whole;
        }
        start[g * rows] = -SZ_Q_ZERO * sum;
        for (int64_t j = 0; j < sz_min64(SZ_Q_WORDS, words - g * SZ_Q_WORDS); j++) memcpy(to + (g * SZ_Q_WORDS + j) * rows, q + 4 * j, 4);
    }
}

/* sums += the products of four unsigned bytes a lane with the four signed ones of x. */
static inline __attribute__((always_inline)) void dot4(int_vec *sums, const int_vec *w, int32_t x)
{
#ifdef __AVX512VNNI__
    *sums = (int_vec)_mm512_dpbusd_epi32((__m512i)*sums, (__m512i)*w, _mm512_set1_epi32(x));
#else
    for (int b = 0; b < 4; b++) *sums += (int_vec)((uint_vec)*w >> (8 * b) & 255) * (int32_t)(int8_t)((uint32_t)x >> (8 * b));
#endif
}

/* R blocks of weights times M rows of x: sums [R][M] of 16 lanes. M and R are constants where it is inlined. */
static inline __attribute__((always_inline)) void tile(const int M, const int R, int64_t words, int64_t groups, const uint8_t *const *w, const float *const *ws,
                                                       const int32_t *x, const float *xs, const int32_t *start, float_vec *sums)
{
#pragma GCC unroll 24
    for (int i = 0; i < R * M; i++) sums[i] = (float_vec){ 0 };
    for (int64_t g = 0; g < groups; g++, xs += M, start += M) {
        const int64_t n = words - g * SZ_Q_WORDS < SZ_Q_WORDS ? words - g * SZ_Q_WORDS : SZ_Q_WORDS;
        int_vec s[24];
#pragma GCC unroll 4
        for (int r = 0; r < R; r++)
#pragma GCC unroll 12
            for (int i = 0; i < M; i++) s[r * M + i] = start[i] - (int_vec){ 0 };
        for (int64_t p = 0; p < n; p++, x += M) {
            int_vec a[4];
#pragma GCC unroll 4
            for (int r = 0; r < R; r++) {
                const uint8_t *at = w[r] + (g * SZ_Q_WORDS + p) * 64;
                a[r] = *(const int_vec *)at;
                __builtin_prefetch(at + 2048);
            }
#pragma GCC unroll 12
            for (int i = 0; i < M; i++)
#pragma GCC unroll 4
                for (int r = 0; r < R; r++) dot4(&s[r * M + i], &a[r], x[i]);
        }
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            float_vec scale = *(const float_vec *)(ws[r] + g * SZ_Q_ROWS);
#pragma GCC unroll 12
            for (int i = 0; i < M; i++) sums[r * M + i] += __builtin_convertvector(s[r * M + i], float_vec) * (scale * xs[i]);
        }
    }
}

/* The same for any m <= MOST_X; returns R, the blocks it takes (those past `left` are the last one again). */
static __attribute__((noinline)) int any_tile(int64_t m, int64_t left, int64_t words, int64_t groups, const uint8_t *w, const float *ws,
                                              const int32_t *x, const float *xs, const int32_t *start, float_vec *sums)
{
    const int R = m <= 4 ? 4 : 2;
    const uint8_t *rows[4];
    const float *scales[4];
    for (int r = 0; r < R; r++) {
        int64_t b = r < left ? r : left - 1;
        rows[r] = w + b * words * 64, scales[r] = ws + b * groups * SZ_Q_ROWS;
    }
#define SZ_TILE(M) case M: tile(M, M <= 4 ? 4 : 2, words, groups, rows, scales, x, xs, start, sums); break
    switch (m) {
        SZ_TILE(1); SZ_TILE(2); SZ_TILE(3); SZ_TILE(4); SZ_TILE(5); SZ_TILE(6);
        SZ_TILE(7); SZ_TILE(8); SZ_TILE(9); SZ_TILE(10); SZ_TILE(11); SZ_TILE(12);
    }
#undef SZ_TILE
    return R;
}

int sz_cpu_linear_int8(const sz_call *c)
{
    const sz_tensor *x = c->in[0], *q = c->in[1], *scale = c->in[2], *b = c->in[3];
    sz_tensor *y = c->out[0];
    const int64_t n = sz_rows(x), k = sz_cols(x), m = sz_cols(y), blocks = q->shape[0], words = q->shape[1], groups = scale->shape[1];
    short_rows in = { sz_scratch((size_t)(n * words + 1) * sizeof *in.words), sz_scratch((size_t)(n * groups + 1) * sizeof *in.scale),
                      sz_scratch((size_t)(n * groups + 1) * sizeof *in.start) };
    if (!in.words || !in.scale || !in.start) return -1;
    #pragma omp parallel for schedule(static) if (n * k >= SZ_PARALLEL_FROM)
    for (int64_t i = 0; i < n; i++) {
        int64_t first = i - i % MOST_X, rows = sz_min64(MOST_X, n - first), at = i - first;
        shorten(x, i, rows, k, words, groups, in.words + first * words + at, in.scale + first * groups + at, in.start + first * groups + at);
    }
    #pragma omp parallel for schedule(dynamic, 1) if (n * k * m >= SZ_PARALLEL_FROM)
    for (int64_t unit = 0; unit < blocks; unit += UNIT) {
        const int64_t end = sz_min64(unit + UNIT, blocks);
        for (int64_t i = 0; i < n; i += MOST_X) {
            const int64_t rows = sz_min64(MOST_X, n - i);
            for (int64_t block = unit, took; block < end; block += took) {
                float_vec sums[24];
                took = any_tile(rows, end - block, words, groups, (const uint8_t *)q->data + block * words * 64, sz_f32(scale) + block * groups * SZ_Q_ROWS,
                                in.words + i * words, in.scale + i * groups, in.start + i * groups, sums);
                for (int64_t r = 0; r < sz_min64(took, end - block); r++) {
                    const int64_t col = (block + r) * SZ_Q_ROWS, width = sz_min64(SZ_Q_ROWS, m - col);
                    float bias[SZ_Q_ROWS] = { 0 };
                    for (int64_t j = 0; b && j < width; j++) bias[j] = sz_get(b, col + j);
                    for (int64_t t = 0; t < rows; t++) {
                        float_vec v = sums[r * rows + t] + *(const float_vec *)bias;
                        const int64_t to = (i + t) * m + col;
                        if (y->dtype == SZ_F32) for (int64_t j = 0; j < width; j++) sz_f32(y)[to + j] = v[j];
                        else for (int64_t j = 0; j < width; j++) sz_bf16(y)[to + j] = sz_to_bf16(v[j]);
                    }
                }
            }
        }
    }
    return 0;
}
