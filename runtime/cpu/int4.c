/* int4.c - linear layers with 4-bit weights (format: int4.h).
 *
 *   linear_int4   x [n, k] quantized to 8 bits; integer products of 256 columns, scaled and summed
 *                 in f32
 *
 * A sum runs over the blocks of 256 columns in order, whatever n is, so an answer's numbers do not
 * depend on how many answers decode with it. The integer products are exact, so all kinds of
 * processors have the same. Sixteen products of a code with 8 bits of x, less 8 times the sum of
 * these, fit 16 bits: AVX2 and AVX-512 sum them there, and multiply two such sums by the part with
 * one instruction. With VNNI, many rows of x are faster if each code is multiplied by its part
 * first: that is done once for all rows.
 * Leaves out: making the weights (int4_weights.c); devices other than the CPU.
 */
#include "int4_lanes.h"
#include "packed_store.h"
#include "packed_x.h"
#include "packed_amx.h"
#include "tasks.h"
#include "core/processor.h"
#include <omp.h>

/* A block of 16 rows of weights is VECTORS vectors of SZ_LANES rows. */
enum { VECTORS = SZ_Q4_ROWS / SZ_LANES };

/* Sizes of a tile: up to FEW rows of x meet WIDE vectors of weights, up to SOME meet 2, and up to
 * MAX_TILE_ROWS one. The more rows, the less often a weight is unpacked; the more vectors, the more
 * streams memory is read as. A group's sums fit the registers; a block's totals need not (measured,
 * docs/speed.md). */
#if defined(__AVX512VNNI__)
enum { FEW = 4, SOME = 8, WIDE = 4, MAX_TILE_ROWS = 12 };
#elif defined(__AVXVNNI__)
enum { FEW = 1, SOME = 6, WIDE = 4, MAX_TILE_ROWS = 8 };
#elif defined(__AVX512BW__)
enum { FEW = 2, SOME = 8, WIDE = 4, MAX_TILE_ROWS = 8 };
#elif defined(__AVX2__)
enum { FEW = 1, SOME = 4, WIDE = 4, MAX_TILE_ROWS = 4 };
#else
enum { FEW = 1, SOME = 3, WIDE = 4, MAX_TILE_ROWS = 3 };
#endif

enum {
    MAX_SUMS = 2 * MAX_TILE_ROWS > 16 ? 2 * MAX_TILE_ROWS : 16, /* vectors of sums of a tile */
    WORDS = SZ_Q4_COLS / 4,                                     /* of x, for a block's columns */
    STARTS = SZ_Q4_GROUPS + 1,                                  /* of each row of x in a block */
};

/* Tiles that read one row of blocks after another have up to MOST_BY_ROWS rows of x. The others
 * multiply codes by parts first from PARTS_FIRST_FROM rows on.
 * AT_ONCE(R): how many of a tile's R vectors are multiplied by x together. With VNNI one, since
 * each product reads x from memory and more sums would not fit the registers; codes times parts
 * need that too. Elsewhere all of them, so that x is loaded once. */
#if defined(__AVX512VNNI__)
enum { MOST_BY_ROWS = 8, PARTS_FIRST_FROM = 6 };
#define AT_ONCE(R) 1
#else
enum { MOST_BY_ROWS = MAX_TILE_ROWS, PARTS_FIRST_FROM = MAX_TILE_ROWS + 1 };
#define AT_ONCE(R) (R)
#endif

/* Vectors of weights that a tile of m rows of x has: a constant if m is. */
#define VECTORS_OF(m) ((m) <= FEW ? WIDE : (m) <= SOME ? 2 : 1)
/* The same where memory is read as a single stream: of one block at most. */
#define STREAM_VECTORS_OF(m) (VECTORS_OF(m) < VECTORS ? VECTORS_OF(m) : VECTORS)

/* ---- x ---- */
/* Rows of x in 8 bits, in blocks of a tile's rows (the last may have fewer): words
 * [words][rows][SZ_Q4_X_WORDS] of four codes, and for each 256 columns scale [..][rows] and start
 * [..][STARTS][rows]. A sum begins with start: one for each 16 columns cancels the 8 in every
 * weight's code, and the last one the SZ_Q4_BYTE_ZERO in 256 weights (0 with sums of 16 bits, which
 * do not multiply by parts first). */
typedef struct {
    int32_t *words;
    float *scale;
    int32_t *start;
} quantized_rows;

/* Quantizes row i of x; rows: of its block, which is the distance between neighbours in the
 * results. across: groups of 256 columns. */
static void quantize_x(const sz_tensor *x, int64_t i, int64_t rows, int64_t across,
                       quantized_rows out)
{
    for (int64_t block = 0; block < across; block++) {
        int8_t codes[SZ_Q4_COLS];
        sz_quantize_group(x, i, block, codes, out.scale);
        int32_t all = 0;
        for (int64_t g = 0; g < SZ_Q4_GROUPS; g++) {
            const int32_t start = sz_q4_start(codes + g * SZ_Q4_GROUP);
            out.start[g * rows] = start;
            if (!SZ_Q4_SUMS_OF_16) all += start;
        }
        out.start[SZ_Q4_GROUPS * rows] = all * (SZ_Q4_BYTE_ZERO / SZ_Q4_ZERO);
        for (int64_t j = 0; j < WORDS; j++)
            sz_put_word(out.words + j * rows * SZ_Q4_X_WORDS, codes + 4 * j, SZ_Q4_X_WORDS);
        out.scale += rows;
        out.start += STARTS * rows;
        out.words += WORDS * rows * SZ_Q4_X_WORDS;
    }
}

/* ---- the product ---- */
/* What a tile fetches: the weights `ahead` blocks on and the scales `scales` blocks on; 0: none. */
typedef struct {
    int ahead, scales;
} fetch_plan;

/* The weights of a vector of rows in a block: its codes and parts, and the block that is fetched
 * meanwhile. */
typedef struct {
    const uint8_t *codes, *parts, *later;
} vector_weights;

/* R vectors of weights times M rows of x over group g of a block: adds to total [R][M]. */
static inline __attribute__((always_inline)) void group(const int M, const int R,
                                                        const fetch_plan fetch,
                                                        const vector_weights *w, int g,
                                                        const int32_t *x, const int32_t *start,
                                                        sz_ivec *total)
{
    /* Sums of 16 products. */
    sz_ivec s[MAX_SUMS];
#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int i = 0; i < M; i++) s[r * M + i] = start[i] - (sz_ivec){ 0 };
#pragma GCC unroll 2
    for (int p = 0; p < SZ_Q4_PIECES; p++) {
        sz_q4_words half[2][WIDE];
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            const int at = (g * SZ_Q4_PIECES + p) * SZ_Q4_PIECE;
            const sz_uvec bytes = *(const sz_uvec_any *)(w[r].codes + at);
            half[0][r] = sz_q4_unpack(bytes);
            half[1][r] = sz_q4_unpack(bytes >> 4);
            if (r % VECTORS == 0 && fetch.ahead) __builtin_prefetch(w[r].later + at);
        }
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++, x += M * SZ_Q4_X_WORDS)
#pragma GCC unroll 8
            for (int i = 0; i < M; i++)
#pragma GCC unroll 4
                for (int r = 0; r < R; r++)
                    sz_q4_dot4(&s[r * M + i], &half[h][r], x + i * SZ_Q4_X_WORDS);
    }

    /* Times the parts. */
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
        const sz_ivec part = sz_q4_load_parts(w[r].parts + g * SZ_Q4_ROWS);
#pragma GCC unroll 8
        for (int i = 0; i < M; i++)
            total[r * M + i] = sz_q4_add_parts(total[r * M + i], s[r * M + i], part);
    }
}

/* The same for one vector, but each code is multiplied by its part first. The last start must be in
 * total already. */
static inline __attribute__((always_inline)) void group_parts_first(const int M,
                                                                    const fetch_plan fetch,
                                                                    const vector_weights *w, int g,
                                                                    const int32_t *x,
                                                                    sz_ivec *total)
{
    const sz_q4_byte_parts parts = sz_q4_load_byte_parts(w->parts + g * SZ_Q4_ROWS);
#pragma GCC unroll 2
    for (int p = 0; p < SZ_Q4_PIECES; p++) {
        const int at = (g * SZ_Q4_PIECES + p) * SZ_Q4_PIECE;
        const sz_uvec bytes = *(const sz_uvec_any *)(w->codes + at);
        const sz_q4_words half[2] = { sz_q4_times_part(sz_q4_unpack(bytes), &parts),
                                      sz_q4_times_part(sz_q4_unpack(bytes >> 4), &parts) };
        if (fetch.ahead) __builtin_prefetch(w->later + at);
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++, x += M)
#pragma GCC unroll 12
            for (int i = 0; i < M; i++) sz_q4_dot4(&total[i], &half[h], x + i);
    }
}

/* R vectors of weights times M rows of x over a block: adds to sums [R][M]. scale: one pointer for
 * each vector. */
static inline __attribute__((always_inline)) void block(
    const int M, const int R, const bool parts_first, const fetch_plan fetch,
    const vector_weights *w, const uint16_t *const *scale, const int32_t *x, const float *x_scale,
    const int32_t *start, sz_vec *sums)
{
    /* Integer totals of the block. */
    sz_ivec total[MAX_SUMS];
#pragma GCC unroll 16
    for (int i = 0; i < R * M; i++)
        total[i] = (parts_first ? start[SZ_Q4_GROUPS * M + i % M] : 0) - (sz_ivec){ 0 };
    for (int g = 0; g < SZ_Q4_GROUPS; g++) {
#pragma GCC unroll 4
        for (int r = 0; r < R; r += AT_ONCE(R))
            if (parts_first) group_parts_first(M, fetch, w + r, g, x, total + r * M);
            else group(M, AT_ONCE(R), fetch, w + r, g, x, start, total + r * M);
        x += SZ_Q4_GROUP / 4 * M * SZ_Q4_X_WORDS;
        start += M;
    }

    /* Scaled and added in f32. */
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
        const sz_vec unit = sz_q4_load_scale(scale[r]);
        if (r % VECTORS == 0 && fetch.scales)
            __builtin_prefetch(scale[r] + fetch.scales * SZ_Q4_ROWS);
#pragma GCC unroll 12
        for (int i = 0; i < M; i++)
            sums[r * M + i] += __builtin_convertvector(total[r * M + i], sz_vec) *
                               (unit * x_scale[i]);
    }
}

/* The weights of a task: q and scale of its first block, how many columns and rows of blocks it
 * has, and how many blocks away the next one to the right and the next one down are. later: q of
 * the thread's next task. one_stream: the blocks lie in a band, which is read as one stream. */
typedef struct {
    const uint8_t *q, *later;
    const uint16_t *scale;
    int64_t across, rows, right, down;
    bool one_stream;
} task_weights;

/* Where a task's results go: columns from col on of some rows of y; bias may be NULL. */
typedef struct {
    const sz_tensor *y, *bias;
    int64_t row, rows, col;
} destination;

/* Stores the sums of n vectors. */
static __attribute__((noinline)) void put(const destination *to, int64_t vector, int64_t n,
                                          const sz_vec *sums)
{
    for (int64_t v = 0; v < n; v++)
        sz_store_columns(to->y, to->bias, to->row, to->rows, to->col + (vector + v) * SZ_LANES,
                         sums + v * to->rows);
}

/* A task's weights times M rows of x, R <= VECTORS vectors at once, one column of blocks after
 * another: memory is read as a single stream. Each vector's sums are cleared and stored on their
 * own. Doing all of them together takes so long that the stream stops. M, R and fetch are constants
 * in each inlined copy, here and below. */
static inline __attribute__((always_inline)) void tile_by_columns(
    const int M, const int R, const fetch_plan fetch, const task_weights *t, const int32_t *x,
    const float *x_scale, const int32_t *start, const destination *y)
{
    sz_vec sums[SZ_Q4_BAND * VECTORS * MAX_TILE_ROWS];
    const int64_t all = t->across * t->rows;
    for (int64_t col = 0; col < t->across; col++) {
        for (int64_t v = 0; v < t->rows * VECTORS; v += R) {
            const int64_t at = v / VECTORS * t->down + col * t->right;
            const int64_t past = at + fetch.ahead - all;
            const uint8_t *later = past < 0 ? t->q + (at + fetch.ahead) * SZ_Q4_BLOCK
                                            : t->later + past * SZ_Q4_BLOCK;
            vector_weights w[WIDE];
            const uint16_t *scale[WIDE];
#pragma GCC unroll 4
            for (int r = 0; r < R; r++) {
                const int64_t lane = (v + r) % VECTORS * SZ_LANES;
                w[r] = (vector_weights){
                    t->q + at * SZ_Q4_BLOCK + lane * 4,
                    t->q + at * SZ_Q4_BLOCK + SZ_Q4_CODES + lane,
                    later,
                };
                scale[r] = t->scale + at * SZ_Q4_ROWS + lane;
            }
            if (col == 0)
#pragma GCC unroll 16
                for (int i = 0; i < R * M; i++) sums[v * M + i] = (sz_vec){ 0 };
            block(M, R, M >= PARTS_FIRST_FROM, fetch, w, scale, x, x_scale, start, sums + v * M);
            if (col == t->across - 1) put(y, v, R, sums + v * M);
        }
        x += WORDS * M * SZ_Q4_X_WORDS;
        x_scale += M;
        start += STARTS * M;
    }
}

/* The same for R <= WIDE vectors at once (those past the last one repeat it), one row of blocks
 * after another: memory is read as several streams, one for each row of blocks. */
static inline __attribute__((always_inline)) void tile_by_rows(
    const int M, const int R, const fetch_plan fetch, const task_weights *t, const int32_t *x,
    const float *x_scale, const int32_t *start, const destination *y)
{
    const int64_t vectors = t->rows * VECTORS;
    for (int64_t v = 0; v < vectors; v += R) {
        const int64_t end = v + R;
        const uint8_t *next = end < vectors ? t->q + end / VECTORS * t->down * SZ_Q4_BLOCK
                                            : t->later;
        vector_weights w[WIDE];
        const uint8_t *codes[WIDE];
        const uint16_t *scale[WIDE];
        for (int r = 0; r < R; r++) {
            const int64_t of = sz_min64(v + r, vectors - 1);
            const int64_t at = of / VECTORS * t->down;
            const int64_t lane = of % VECTORS * SZ_LANES;
            codes[r] = t->q + at * SZ_Q4_BLOCK + lane * 4;
            w[r].parts = t->q + at * SZ_Q4_BLOCK + SZ_Q4_CODES + lane;
            scale[r] = t->scale + at * SZ_Q4_ROWS + lane;
        }

        sz_vec sums[MAX_SUMS];
#pragma GCC unroll 16
        for (int i = 0; i < R * M; i++) sums[i] = (sz_vec){ 0 };
        for (int64_t col = 0; col < t->across; col++) {
            const int64_t past = col + fetch.ahead - t->across;
#pragma GCC unroll 4
            for (int r = 0; r < R; r++) {
                w[r].codes = codes[r];
                w[r].later = past < 0 ? codes[r] + fetch.ahead * SZ_Q4_BLOCK
                                      : next + (r / VECTORS * t->down + past) * SZ_Q4_BLOCK;
            }
            block(M, R, false, fetch, w, scale, x + col * WORDS * M * SZ_Q4_X_WORDS,
                  x_scale + col * M, start + col * STARTS * M, sums);
#pragma GCC unroll 4
            for (int r = 0; r < R; r++) {
                codes[r] += SZ_Q4_BLOCK;
                w[r].parts += SZ_Q4_BLOCK;
                scale[r] += SZ_Q4_ROWS;
            }
        }
        put(y, v, sz_min64(R, vectors - v), sums);
    }
}

/* A tile for any m <= MOST_BY_ROWS; below, for any m <= MAX_TILE_ROWS. What each instance fetches
 * is measured. */
static __attribute__((noinline)) void any_by_rows(int64_t m, const task_weights *t,
                                                  const int32_t *x, const float *x_scale,
                                                  const int32_t *start, const destination *y)
{
    const fetch_plan next = { .ahead = 1 };
#define CASE(M) \
    case M: \
        if (M > MOST_BY_ROWS) break; \
        tile_by_rows(M, VECTORS_OF(M), next, t, x, x_scale, start, y); \
        break;
    switch (m) {
        SZ_CASES_TO_8
    }
#undef CASE
}

static __attribute__((noinline)) void any_by_columns(int64_t m, const task_weights *t,
                                                     const int32_t *x, const float *x_scale,
                                                     const int32_t *start, const destination *y)
{
    /* For one or two rows, Zen 4 fetches weights just as fast by itself. When they are fetched into
     * the first-level cache here, the attention that follows takes 1.6 times as long. */
    const fetch_plan scales = { .scales = 8 };
    const fetch_plan both = { .ahead = 2, .scales = 8 };
#define CASE(M) \
    case M: \
        if (M > MAX_TILE_ROWS) break; \
        tile_by_columns(M, STREAM_VECTORS_OF(M), M <= 2 ? scales : both, t, x, x_scale, start, y); \
        break;
    switch (m) {
        SZ_CASES_TO_12
    }
#undef CASE
}

/* `rows` rows of x from `first` on times a task's weights, into the columns of y from col on.
 * in: all rows. */
static void multiply_task(const sz_call *c, const task_weights *w, int64_t col, int64_t first,
                          int64_t rows, const quantized_rows *in)
{
    const int64_t blocks = first * w->across;
    const int32_t *words = in->words + blocks * WORDS * SZ_Q4_X_WORDS;
    const float *scale = in->scale + blocks;
    const int32_t *start = in->start + blocks * STARTS;
    const destination y = { c->out[0], c->in[3], first, rows, col };
    if (w->one_stream) any_by_columns(rows, w, words, scale, start, &y);
    else any_by_rows(rows, w, words, scale, start, &y);
}

int sz_cpu_linear_int4(const sz_call *c)
{
    const sz_tensor *x = c->in[0];
    const sz_tensor *q = c->in[1];
    const sz_tensor *scale = c->in[2];
    const int64_t n = sz_rows(x);
    const int64_t k = sz_cols(x);
    const int64_t m = sz_cols(c->out[0]);
    const int64_t blocks = q->shape[0];
    const int64_t across = q->shape[1];
#ifdef SZ_AMX
    if (n >= SZ_PACKED_MANY) return sz_amx_linear_int4(c);
#endif

    /* x in 8 bits, in blocks of as many rows as a tile has. */
    const bool one_stream = sz_processor_is_zen_1_to_4();
    const int64_t most = one_stream ? MAX_TILE_ROWS : MOST_BY_ROWS;
    quantized_rows in = {
        sz_scratch((size_t)(n * across * WORDS * SZ_Q4_X_WORDS + 1) * sizeof *in.words),
        sz_scratch((size_t)(n * across + 1) * sizeof *in.scale),
        sz_scratch((size_t)(n * across * STARTS + 1) * sizeof *in.start),
    };
    if (!in.words || !in.scale || !in.start) return -1;
#pragma omp parallel for schedule(static) if (n * k >= SZ_PARALLEL_FROM)
    for (int64_t i = 0; i < n; i++) {
        const int64_t first = i - i % most;
        const int64_t rows = sz_min64(most, n - first);
        const int64_t lane = i - first;
        quantize_x(x, i, rows, across,
                   (quantized_rows){ in.words + (first * across * WORDS + lane) * SZ_Q4_X_WORDS,
                                     in.scale + first * across + lane,
                                     in.start + first * across * STARTS + lane });
    }

    /* A task is some rows of blocks of weights times all rows of x. */
    int64_t taken = 0;
#pragma omp parallel if (n * k * m >= SZ_PARALLEL_FROM)
    for (sz_task t = sz_first_task(&taken, SZ_Q4_BAND); t.first < blocks;
         sz_next_task(&t, &taken, SZ_Q4_BAND)) {
        const int64_t later = t.next < blocks ? t.next : t.first;
        const int64_t first = sz_q4_place(t.first, 0, blocks, across);
        const task_weights w = {
            (const uint8_t *)q->data + first * SZ_Q4_BLOCK,
            (const uint8_t *)q->data + sz_q4_place(later, 0, blocks, across) * SZ_Q4_BLOCK,
            sz_bf16(scale) + first * SZ_Q4_ROWS,
            across,
            sz_min64(SZ_Q4_BAND, blocks - t.first),
            sz_q4_place(t.first, 1, blocks, across) - first,
            sz_q4_place(t.first + 1, 0, blocks, across) - first,
            one_stream,
        };
        for (int64_t i = 0; i < n; i += most)
            multiply_task(c, &w, t.first * SZ_Q4_ROWS, i, sz_min64(most, n - i), &in);
    }
    return 0;
}
