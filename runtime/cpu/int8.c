/* int8.c - linear layers with 8-bit weights (format: int8.h).
 *
 *   quantize_int8   w1, w2, w3 [m, k], one below the other -> q, scale
 *   dequantize_int8 q, scale -> w [m, k], for gradients
 *   linear_int8     x [n, k] quantized to 8 bits; integer products of groups of 256 columns, scaled
 *                   and summed in f32
 *
 * A sum runs over the groups in order, whatever n is, so an answer's numbers do not depend on how
 * many answers decode with it. The integer products are exact, so all kinds of processors have the
 * same; with VNNI four of them in each lane are one instruction, without it two are.
 * Leaves out: gradients of weights.
 */
#include "int8_lanes.h"
#include "int8_many.h"
#include "packed_store.h"
#include "packed_x.h"
#include "packed_amx.h"
#include "tasks.h"
#include "fetch.h"
#include <omp.h>

/* Sizes of a tile, so that its sums and operands fit the registers: up to FEW rows of x meet WIDE
 * vectors of weights, up to SOME meet 2, and up to MAX_TILE_ROWS meet 1. */
#if defined(__AVX512VNNI__)
enum { FEW = 4, SOME = 12, MAX_TILE_ROWS = 12 };
#elif defined(__AVXVNNI__)
enum { FEW = 2, SOME = 4, MAX_TILE_ROWS = 10 };
#elif defined(__AVX512BW__)
enum { FEW = 2, SOME = 10, MAX_TILE_ROWS = 10 };
#elif defined(__AVX2__)
enum { FEW = 2, SOME = 4, MAX_TILE_ROWS = 8 };
#else
enum { FEW = 2, SOME = 4, MAX_TILE_ROWS = 4 };
#endif
enum { WIDE = 4 };

/* Where memory is read best as a single stream, one block of weights at a time meets up to this
 * number of rows of x. */
enum { STREAM_ROWS = SZ_Q_X_WORDS == 1 && SZ_Q_VECTORS == 1 ? 2 : 1 };

/* Vectors of weights that m rows of x meet. */
static inline __attribute__((always_inline)) int tile_width(int64_t m, bool one_stream)
{
    if (one_stream && m <= STREAM_ROWS) return SZ_Q_VECTORS;
    if (m <= FEW) return WIDE;
    return m <= SOME ? 2 : 1;
}

enum {
    /* Blocks that a thread takes at once; fewer if they are more than the second-level cache has
     * room for. */
    TASK_BLOCKS = 4,
    FEW_TASK_BLOCKS = WIDE / SZ_Q_VECTORS > 1 ? WIDE / SZ_Q_VECTORS : 1,
    TASK_BYTES = 256 << 10,
    MAX_SUMS = 24 /* vectors of sums of a tile */
};

/* With AVX2, a single row of x takes many instructions for each line of weights, and the processor
 * seems not to look far enough ahead. So the line NEAR_BYTES further on is fetched: 28.6 instead of
 * 26 GB/s; with 256 bytes 26, with 768 bytes 23.5 (Zen 4). */
enum { NEAR_BYTES = SZ_Q_X_WORDS == 2 && SZ_Q_VECTORS == 2 ? 448 : 0 };

/* What is fetched while weights are multiplied: on Intel's processors the weights FETCH_BYTES
 * further on, elsewhere those of the next task. On Granite Rapids the first way reads memory at 16
 * GB/s and the second at 13. The second was tuned on Zen 5, where the first has not been tried.
 * With AVX2 more than FETCH_ROWS rows are limited by arithmetic, and the first way makes 8 rows 14
 * % slower. */
enum { FETCH_BYTES = 2048, FETCH_ROWS = SZ_Q_VECTORS == 1 ? 1 << 30 : 3 };

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

/* One row of weights again, from the places that quantize_row writes to. */
static void dequantize_row(const uint8_t *codes, const float *scales, sz_tensor *w, int64_t r)
{
    const int64_t k = w->shape[1];
    for (int64_t first = 0; first < k; first += SZ_Q_GROUP, scales += SZ_Q_ROWS) {
        const int64_t n = sz_min64(SZ_Q_GROUP, k - first);
        float buffer[SZ_Q_GROUP];
        float *x = sz_block_begin(w, r * k + first, buffer);
        for (int64_t i = 0; i < n; i++)
            x[i] = (float)(codes[(first + i) / 4 * 64 + i % 4] - SZ_Q_ZERO) * *scales;
        sz_block_end(w, r * k + first, n, x);
    }
}

int sz_cpu_dequantize_int8(const sz_call *c)
{
    const sz_tensor *q = c->in[0];
    const sz_tensor *scale = c->in[1];
    sz_tensor *w = c->out[0];
    const int64_t words = q->shape[1];
    const int64_t groups = scale->shape[1];

#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < w->shape[0]; r++) {
        const int64_t block = r / SZ_Q_ROWS;
        const int64_t lane = r % SZ_Q_ROWS;
        dequantize_row((const uint8_t *)q->data + block * words * 64 + lane * 4,
                       sz_f32(scale) + block * groups * SZ_Q_ROWS + lane, w, r);
    }
    return 0;
}

/* ---- x ---- */

/* Quantizes row i of x; rows: of its block, which is the distance between neighbours in the
 * results. */
static void quantize_x(const sz_tensor *x, int64_t i, int64_t rows, int64_t words, int64_t groups,
                       sz_q_rows out)
{
    for (int64_t g = 0; g < groups; g++) {
        int8_t codes[SZ_Q_GROUP];
        const int32_t sum = sz_quantize_group(x, i, g, codes, &out.scale[g * rows]);
        out.start[g * rows] = -SZ_Q_ZERO * sum;
        for (int64_t j = 0; j < sz_min64(SZ_Q_WORDS, words - g * SZ_Q_WORDS); j++)
            sz_put_word(out.words + (g * SZ_Q_WORDS + j) * rows * SZ_Q_X_WORDS, codes + 4 * j,
                        SZ_Q_X_WORDS);
    }
}

/* ---- the product ---- */

/* What to fetch. distance: bytes from the weights in use; 0 to fetch the next task's instead, from
 * codes on, `step` bytes for each word. to_l2: into the second-level cache alone. */
typedef struct {
    const uint8_t *codes;
    int64_t step;
    int64_t distance;
    bool to_l2;
} prefetcher;

/* R vectors of weights times M rows of x: sums [R][M]. fetch: with the weights of `ahead`
 * meanwhile. M, R and fetch are constants where it is inlined. */
static inline __attribute__((always_inline)) void tile(
    const int M, const int R, const bool fetch, int64_t words, int64_t groups,
    const uint8_t *const *w, const float *const *w_scale, const int32_t *x, const float *x_scale,
    const int32_t *start, prefetcher ahead, sz_vec *sums)
{
    const int LINES = R > SZ_Q_VECTORS ? R / SZ_Q_VECTORS : 1;
#pragma GCC unroll 24
    for (int i = 0; i < R * M; i++) sums[i] = (sz_vec){ 0 };
    for (int64_t g = 0; g < groups; g++, x_scale += M, start += M) {
        const int64_t left = words - g * SZ_Q_WORDS;
        const int64_t n = left < SZ_Q_WORDS ? left : SZ_Q_WORDS;

        /* Integer sums of the group. */
        sz_ivec s[MAX_SUMS];
#pragma GCC unroll 4
        for (int r = 0; r < R; r++)
#pragma GCC unroll 12
            for (int i = 0; i < M; i++) s[r * M + i] = start[i] - (sz_ivec){ 0 };
        for (int64_t p = 0; p < n; p++, x += M * SZ_Q_X_WORDS, ahead.codes += ahead.step) {
#pragma GCC unroll 4
            for (int line = 0; line < LINES && fetch; line++) {
                const uint8_t *later = w[line * SZ_Q_VECTORS] + (g * SZ_Q_WORDS + p) * 64 +
                                       ahead.distance;
                sz_fetch(ahead.distance ? later : ahead.codes + 64 * line, ahead.to_l2);
            }
            sz_q_weights a[WIDE];
#pragma GCC unroll 4
            for (int r = 0; r < R; r++) a[r] = sz_q_load(w[r] + (g * SZ_Q_WORDS + p) * 64);
#pragma GCC unroll 12
            for (int i = 0; i < M; i++)
#pragma GCC unroll 4
                for (int r = 0; r < R; r++) {
                    sz_q_dot4(&s[r * M + i], &a[r], x + i * SZ_Q_X_WORDS);
                    SZ_IN_REGISTER(s[r * M + i]);
                }
        }

        /* Scaled and added in f32. */
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            sz_vec scale = sz_vec_load(w_scale[r] + g * SZ_Q_ROWS);
#pragma GCC unroll 12
            for (int i = 0; i < M; i++)
                sums[r * M + i] += __builtin_convertvector(s[r * M + i], sz_vec) *
                                   (scale * x_scale[i]);
        }
    }
}

/* The weights of a task: q and scale of its first block, and how many vectors of rows it has. */
typedef struct {
    const uint8_t *q;
    const float *scale;
    int64_t words, groups, vectors;
} task_weights;

/* tile for any m <= MAX_TILE_ROWS, with the vectors from `first` on. Returns R, the number that it
 * computes; those past the last one repeat it. */
static __attribute__((noinline)) int any_tile(int64_t m, int64_t first, const task_weights *w,
                                              const int32_t *x, const float *x_scale,
                                              const int32_t *start, prefetcher ahead, sz_vec *sums)
{
    const bool one_stream = sz_processor_is_zen_1_to_4();
    const int R = tile_width(m, one_stream);
    const uint8_t *rows[WIDE];
    const float *scales[WIDE];
    for (int r = 0; r < R; r++) {
        const int64_t v = sz_min64(first + r, w->vectors - 1);
        const int64_t block = v / SZ_Q_VECTORS;
        const int64_t lane = v % SZ_Q_VECTORS * SZ_LANES;
        rows[r] = w->q + block * w->words * 64 + lane * 4;
        scales[r] = w->scale + block * w->groups * SZ_Q_ROWS + lane;
    }

    /* One instance for each m. */
#define TILE(M, one_stream) \
    tile(M, tile_width(M, one_stream), !(one_stream) || NEAR_BYTES, w->words, w->groups, rows, \
         scales, x, x_scale, start, ahead, sums)
#define CASE(M) \
    case M: \
        if (one_stream && M <= STREAM_ROWS) TILE(M, true); \
        else if (M <= MAX_TILE_ROWS) TILE(M, false); \
        break;
    switch (m) {
        SZ_CASES_TO_12
    }
#undef CASE
#undef TILE
    return R;
}

/* All rows times the weights of a task, whose first column of y is `first`. Meanwhile the weights
 * at `later` are fetched, evenly over all tiles. */
static void run_task(const task_weights *w, int64_t first, const uint8_t *later,
                     const sz_q_rows *in, const sz_tensor *y, const sz_tensor *bias, int64_t n)
{
    const bool one_stream = sz_processor_is_zen_1_to_4();
    int64_t tiles = 0;
    for (int64_t i = 0; i < n; i += MAX_TILE_ROWS) {
        const int width = tile_width(sz_min64(MAX_TILE_ROWS, n - i), one_stream);
        tiles += (w->vectors + width - 1) / width;
    }
    prefetcher ahead = { later, w->vectors * 64 / SZ_Q_VECTORS / tiles, 0, one_stream };
    if (sz_processor_is_intel() && n <= FETCH_ROWS) ahead.distance = FETCH_BYTES;
    if (one_stream && n <= STREAM_ROWS && NEAR_BYTES) {
        ahead.distance = NEAR_BYTES;
        ahead.to_l2 = false;
    }
    for (int64_t i = 0; i < n; i += MAX_TILE_ROWS) {
        const int64_t rows = sz_min64(MAX_TILE_ROWS, n - i);
        for (int64_t v = 0, computed; v < w->vectors; v += computed) {
            sz_vec sums[MAX_SUMS];
            computed = any_tile(rows, v, w, in->words + i * w->words * SZ_Q_X_WORDS,
                                in->scale + i * w->groups, in->start + i * w->groups, ahead, sums);
            ahead.codes += ahead.step * w->words;
            for (int64_t r = 0; r < sz_min64(computed, w->vectors - v); r++)
                sz_store_columns(y, bias, i, rows, first + (v + r) * SZ_LANES, sums + r * rows);
        }
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
#ifdef SZ_AMX
    if (n >= SZ_PACKED_MANY) return sz_amx_linear_int8(c);
#endif

    /* x in 8 bits, in blocks of as many rows as a tile has. */
    const bool many = SZ_Q_X_WORDS == 2 && n >= SZ_Q_MANY;
    const int64_t most = many ? SZ_Q_MANY_TILE : MAX_TILE_ROWS;
    sz_q_rows in = {
        sz_scratch((size_t)(n * words * SZ_Q_X_WORDS + 1) * sizeof *in.words),
        sz_scratch((size_t)(n * groups + 1) * sizeof *in.scale),
        sz_scratch((size_t)(n * groups + 1) * sizeof *in.start),
    };
    if (!in.words || !in.scale || !in.start) return -1;
#pragma omp parallel for schedule(static) if (n * k >= SZ_PARALLEL_FROM)
    for (int64_t i = 0; i < n; i++) {
        const int64_t first = i - i % most;
        const int64_t rows = sz_min64(most, n - first);
        sz_q_rows row = { in.words + (first * words + i - first) * SZ_Q_X_WORDS,
                          in.scale + first * groups + i - first,
                          in.start + first * groups + i - first };
        quantize_x(x, i, rows, words, groups, row);
    }
#if SZ_Q_X_WORDS == 2
    if (many) return sz_q_many(c, &in);
#endif

    /* A task is some blocks of weights times all rows. */
    const int64_t task_blocks = words * 64 * TASK_BLOCKS > TASK_BYTES ? FEW_TASK_BLOCKS
                                                                      : TASK_BLOCKS;
    int64_t taken = 0;
#pragma omp parallel if (n * k * m >= SZ_PARALLEL_FROM)
    for (sz_task t = sz_first_task(&taken, task_blocks); t.first < blocks;
         sz_next_task(&t, &taken, task_blocks)) {
        const int64_t later = t.next < blocks ? t.next : t.first;
        const task_weights w = {
            (const uint8_t *)q->data + t.first * words * 64,
            sz_f32(scale) + t.first * groups * SZ_Q_ROWS,
            words,
            groups,
            sz_min64(task_blocks, blocks - t.first) * SZ_Q_VECTORS,
        };
        run_task(&w, t.first * SZ_Q_ROWS, (const uint8_t *)q->data + later * words * 64, &in, y,
                 bias, n);
    }
    return 0;
}
