/* int4.c - linear layers with 4-bit weights (format: int4.h).
 *
 *   linear_int4   x [n, k] quantized to 8 bits; integer products of 256 columns, scaled and summed
 *                 in f32
 *
 * A sum runs over the blocks of 256 columns in order, whatever n is, so an answer's numbers do not
 * depend on how many answers decode with it. The integer products are exact, so all kinds of
 * processors have the same. Sixteen products of a code with 8 bits of x, less 8 times the sum of
 * these, fit 16 bits: AVX2 and AVX-512 sum them there, and multiply two such sums by the part with
 * one instruction.
 * Leaves out: making the weights (int4_weights.c); devices other than the CPU.
 */
#include "packed_store.h"
#include "packed_x.h"
#include "packed_amx.h"
#include "tasks.h"
#include "core/processor.h"
#include <omp.h>
#ifdef __x86_64__
#include <immintrin.h>
#endif

/* A block of 16 rows of weights is VECTORS vectors of SZ_LANES rows. */
enum { VECTORS = SZ_Q4_ROWS / SZ_LANES };

/* Sizes of a tile: up to FEW rows of x meet WIDE vectors of weights, up to SOME meet 2, and up to
 * MAX_TILE_ROWS one. The more rows, the less often a weight is unpacked; the more vectors, the more
 * streams memory is read as. A group's sums fit the registers; a block's totals need not (measured,
 * docs/speed.md). Four codes of x take X_WORDS words.
 * SUMS_OF_16: two sums of 16 bits in each lane. */
#if defined(__AVX512VNNI__)
enum { FEW = 4, SOME = 8, WIDE = 4, MAX_TILE_ROWS = 8, X_WORDS = 1, SUMS_OF_16 = 0 };
#elif defined(__AVXVNNI__)
enum { FEW = 1, SOME = 6, WIDE = 4, MAX_TILE_ROWS = 8, X_WORDS = 1, SUMS_OF_16 = 0 };
#elif defined(__AVX512BW__)
enum { FEW = 2, SOME = 8, WIDE = 4, MAX_TILE_ROWS = 8, X_WORDS = 1, SUMS_OF_16 = 1 };
#elif defined(__AVX2__)
enum { FEW = 1, SOME = 4, WIDE = 4, MAX_TILE_ROWS = 4, X_WORDS = 1, SUMS_OF_16 = 1 };
#else
enum { FEW = 1, SOME = 3, WIDE = 4, MAX_TILE_ROWS = 3, X_WORDS = 2, SUMS_OF_16 = 0 };
#endif

enum {
    MAX_SUMS = 2 * MAX_TILE_ROWS > 16 ? 2 * MAX_TILE_ROWS : 16, /* vectors of sums of a tile */
    WORDS = SZ_Q4_COLS / 4,                                     /* of x, for a block's columns */
};

/* Vectors of weights that a tile of m rows of x has: a constant if m is. */
#define VECTORS_OF(m) ((m) <= FEW ? WIDE : (m) <= SOME ? 2 : 1)
/* The same where memory is read as a single stream: of one block at most. */
#define STREAM_VECTORS_OF(m) (VECTORS_OF(m) < VECTORS ? VECTORS_OF(m) : VECTORS)

typedef uint32_t word_vec_any __attribute__((vector_size(4 * SZ_LANES), aligned(4), may_alias));
typedef int8_t part_vec __attribute__((vector_size(SZ_LANES), aligned(1), may_alias));
typedef uint16_t scale_vec __attribute__((vector_size(2 * SZ_LANES), aligned(2), may_alias));

/* ---- x ---- */
/* Rows of x in 8 bits, in blocks of MAX_TILE_ROWS (the last may have fewer): words
 * [words][rows][X_WORDS] of four codes, for each 256 columns scale [..][rows], and for each 16
 * start [..][rows]. A sum begins with start, which cancels the 8 in every weight's code. */
typedef struct {
    int32_t *words;
    float *scale;
    int32_t *start;
} quantized_rows;

/* Four codes as dot4 reads them: as they are, or the even and then the odd ones in 16 bits each. */
static inline void put_word(int32_t *to, const int8_t *codes)
{
    if (X_WORDS == 1) {
        memcpy(to, codes, 4);
    } else {
        int16_t pairs[4] = { codes[0], codes[2], codes[1], codes[3] };
        memcpy(to, pairs, 4 * X_WORDS);
    }
}

/* The start of 16 codes: one sum, or one of the first two and one of the last two of each word. */
static inline int32_t start_of(const int8_t *codes)
{
#ifdef __AVX2__
    /* Sums of two, then four, then eight codes, all times 8: they fit 16 bits. */
    const __m128i eight = _mm_set1_epi8(SZ_Q4_ZERO);
    __m128i sums = _mm_maddubs_epi16(eight, _mm_loadu_si128((const __m128i_u *)codes));
    sums = _mm_add_epi16(sums, _mm_srli_si128(sums, 8));
    sums = _mm_add_epi16(sums, _mm_srli_si128(sums, 4));
    const __m128i signs = _mm_set1_epi16(-1);
    if (SUMS_OF_16) return _mm_cvtsi128_si32(_mm_sign_epi16(sums, signs));
    return _mm_cvtsi128_si32(_mm_madd_epi16(sums, signs));
#else
    int32_t sum = 0;
    for (int j = 0; j < SZ_Q4_GROUP; j++) sum += codes[j];
    return -SZ_Q4_ZERO * sum;
#endif
}

/* Quantizes row i of x; rows: of its block, which is the distance between neighbours in the
 * results. across: groups of 256 columns. */
static void quantize_x(const sz_tensor *x, int64_t i, int64_t rows, int64_t across,
                       quantized_rows out)
{
    for (int64_t block = 0; block < across; block++) {
        int8_t codes[SZ_Q4_COLS];
        sz_quantize_group(x, i, block, codes, out.scale);
        for (int64_t g = 0; g < SZ_Q4_GROUPS; g++)
            out.start[g * rows] = start_of(codes + g * SZ_Q4_GROUP);
        for (int64_t j = 0; j < WORDS; j++) put_word(out.words + j * rows * X_WORDS, codes + 4 * j);
        out.scale += rows;
        out.start += SZ_Q4_GROUPS * rows;
        out.words += WORDS * rows * X_WORDS;
    }
}

/* ---- the product ---- */
/* Four codes of weights in each lane as dot4 reads them: unsigned bytes; or the even and the odd
 * ones apart, in 16 bits each. */
typedef struct {
    sz_uvec part[X_WORDS];
} weight_words;

/* The low four bits of each byte. */
static inline __attribute__((always_inline)) weight_words unpack(sz_uvec bytes)
{
    weight_words w;
    if (X_WORDS == 1) {
        w.part[0] = bytes & 0x0f0f0f0fu;
    } else {
        w.part[0] = bytes & 0x000f000fu;
        w.part[X_WORDS - 1] = bytes >> 8 & 0x000f000fu;
    }
    return w;
}

/* The sum of the products of the two halves of each lane. */
static inline __attribute__((always_inline)) sz_ivec dot2(sz_ivec a, sz_ivec b)
{
#if defined(__AVX512BW__)
    return (sz_ivec)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (sz_ivec)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__x86_64__)
    return (sz_ivec)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
    return (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
#endif
}

/* sums += the products of four codes in each lane of w with the four signed ones of x. */
static inline __attribute__((always_inline)) void dot4(sz_ivec *sums, const weight_words *w,
                                                       const int32_t *x)
{
#if defined(__AVX512VNNI__)
    *sums = (sz_ivec)_mm512_dpbusd_epi32((__m512i)*sums, (__m512i)w->part[0],
                                         _mm512_set1_epi32(*x));
#elif defined(__AVXVNNI__)
    *sums = (sz_ivec)_mm256_dpbusd_avx_epi32((__m256i)*sums, (__m256i)w->part[0],
                                             _mm256_set1_epi32(*x));
#elif defined(__AVX512BW__)
    *sums = (sz_ivec)_mm512_add_epi16(
        (__m512i)*sums, _mm512_maddubs_epi16((__m512i)w->part[0], _mm512_set1_epi32(*x)));
#elif defined(__AVX2__)
    *sums = (sz_ivec)_mm256_add_epi16(
        (__m256i)*sums, _mm256_maddubs_epi16((__m256i)w->part[0], _mm256_set1_epi32(*x)));
#else
    const sz_ivec zero = { 0 };
    *sums += dot2((sz_ivec)w->part[0], x[0] - zero);
    *sums += dot2((sz_ivec)w->part[X_WORDS - 1], x[X_WORDS - 1] - zero);
#endif
}

/* Signed bytes and the high halves of floats, one for each lane. GCC 12 would widen them one by
 * one. */
static inline __attribute__((always_inline)) sz_uvec widen_bytes(const uint8_t *bytes)
{
#if defined(__AVX512BW__)
    return (sz_uvec)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i_u *)bytes));
#elif defined(__AVX2__)
    return (sz_uvec)_mm256_cvtepi8_epi32(_mm_loadu_si64(bytes));
#elif defined(__x86_64__)
    const __m128i b = _mm_loadu_si32(bytes);
    const __m128i twice = _mm_unpacklo_epi8(b, b);
    return (sz_uvec)_mm_srai_epi32(_mm_unpacklo_epi16(twice, twice), 24);
#else
    return (sz_uvec) __builtin_convertvector(*(const part_vec *)bytes, sz_ivec);
#endif
}

static inline __attribute__((always_inline)) sz_vec load_scale(const uint16_t *scale)
{
#if defined(__AVX512BW__)
    const __m256i halves = _mm256_loadu_si256((const __m256i_u *)scale);
    return (sz_vec)((sz_uvec)_mm512_cvtepu16_epi32(halves) << 16);
#elif defined(__AVX2__)
    const __m128i halves = _mm_loadu_si128((const __m128i_u *)scale);
    return (sz_vec)((sz_uvec)_mm256_cvtepu16_epi32(halves) << 16);
#elif defined(__x86_64__)
    return (sz_vec)_mm_unpacklo_epi16(_mm_setzero_si128(), _mm_loadu_si64(scale));
#else
    return (sz_vec)(__builtin_convertvector(*(const scale_vec *)scale, sz_uvec) << 16);
#endif
}

/* The parts of a vector's rows, for the multiplication below: in the low half of each lane, and
 * again in the high half where a sum has two. */
static inline __attribute__((always_inline)) sz_ivec load_parts(const uint8_t *parts)
{
    const sz_uvec p = widen_bytes(parts);
    if (SUMS_OF_16) return (sz_ivec)(p << 16 | (p & 0xffff));
    return (sz_ivec)(p & 0xffff);
}

/* total + part times the sum of 16 products, which fits 16 bits. */
static inline __attribute__((always_inline)) sz_ivec add_parts(sz_ivec total, sz_ivec sum,
                                                               sz_ivec part)
{
#if defined(__AVX512VNNI__)
    return (sz_ivec)_mm512_dpwssd_epi32((__m512i)total, (__m512i)sum, (__m512i)part);
#elif defined(__AVXVNNI__)
    return (sz_ivec)_mm256_dpwssd_avx_epi32((__m256i)total, (__m256i)sum, (__m256i)part);
#else
    return total + dot2(sum, part);
#endif
}

/* What a tile fetches: the weights `ahead` blocks on, all lines or every other one (the processor
 * brings the lines between by itself), and the scales `scales` blocks on (0: none). */
typedef struct {
    int ahead;
    bool alternate;
    int scales;
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
    for (int p = 0; p < SZ_Q4_PIECES; p++, x += 2 * M * X_WORDS) {
        weight_words low[WIDE];
        weight_words high[WIDE];
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            const int at = (g * SZ_Q4_PIECES + p) * SZ_Q4_PIECE;
            const sz_uvec bytes = *(const word_vec_any *)(w[r].codes + at);
            low[r] = unpack(bytes);
            high[r] = unpack(bytes >> 4);
            if (r % VECTORS == 0 && (p == 0 || !fetch.alternate))
                __builtin_prefetch(w[r].later + at);
        }
#pragma GCC unroll 8
        for (int i = 0; i < M; i++)
#pragma GCC unroll 4
            for (int r = 0; r < R; r++) {
                dot4(&s[r * M + i], &low[r], x + i * X_WORDS);
                SZ_IN_REGISTER(s[r * M + i]);
                dot4(&s[r * M + i], &high[r], x + (M + i) * X_WORDS);
                SZ_IN_REGISTER(s[r * M + i]);
            }
    }

    /* Times the parts. */
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
        const sz_ivec part = load_parts(w[r].parts + g * SZ_Q4_ROWS);
#pragma GCC unroll 8
        for (int i = 0; i < M; i++)
            total[r * M + i] = add_parts(total[r * M + i], s[r * M + i], part);
    }
}

/* R vectors of weights times M rows of x over a block: adds to sums [R][M]. scale: one pointer for
 * each vector. */
static inline __attribute__((always_inline)) void block(const int M, const int R,
                                                        const fetch_plan fetch,
                                                        const vector_weights *w,
                                                        const uint16_t *const *scale,
                                                        const int32_t *x, const float *x_scale,
                                                        const int32_t *start, sz_vec *sums)
{
    /* Integer totals of the block. */
    sz_ivec total[MAX_SUMS];
#pragma GCC unroll 16
    for (int i = 0; i < R * M; i++) total[i] = (sz_ivec){ 0 };
    for (int g = 0; g < SZ_Q4_GROUPS; g++) {
        group(M, R, fetch, w, g, x, start, total);
        x += SZ_Q4_GROUP / 4 * M * X_WORDS;
        start += M;
    }

    /* Scaled and added in f32. */
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
        const sz_vec unit = load_scale(scale[r]);
        if (r % VECTORS == 0 && fetch.scales)
            __builtin_prefetch(scale[r] + fetch.scales * SZ_Q4_ROWS);
#pragma GCC unroll 8
        for (int i = 0; i < M; i++)
            sums[r * M + i] += __builtin_convertvector(total[r * M + i], sz_vec) *
                               (unit * x_scale[i]);
    }
}

/* The weights of a task: q and scale of its first block, how many columns and rows of blocks it has,
 * and how many blocks away the next one to the right and the next one down are. later: q of the
 * thread's next task. one_stream: the blocks lie in a band, which is read as one stream. */
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
 * another: memory is read as a single stream. Each vector's sums are cleared and stored on their own.
 * Doing all of them together takes so long that the stream stops. M, R and fetch are constants in
 * each inlined copy, here and below. */
static inline __attribute__((always_inline)) void tile_by_columns(
    const int M, const int R, const fetch_plan fetch, const task_weights *t, const int32_t *x,
    const float *x_scale, const int32_t *start, const destination *y)
{
    sz_vec sums[SZ_Q4_BAND * VECTORS * MAX_TILE_ROWS];
    const int64_t all = t->across * t->rows;
    const int64_t jump = t->later - (t->q + all * SZ_Q4_BLOCK);
    for (int64_t col = 0; col < t->across; col++) {
        for (int64_t v = 0; v < t->rows * VECTORS; v += R) {
            const int64_t at = v / VECTORS * t->down + col * t->right;
            const int64_t later = at + fetch.ahead;
            vector_weights w[WIDE];
            const uint16_t *scale[WIDE];
#pragma GCC unroll 4
            for (int r = 0; r < R; r++) {
                const int64_t lane = (v + r) % VECTORS * SZ_LANES;
                /* No branch to later: with one, GCC keeps pointers in memory, and one answer reads
                 * 8 % less. */
                w[r] = (vector_weights){
                    t->q + at * SZ_Q4_BLOCK + lane * 4,
                    t->q + at * SZ_Q4_BLOCK + SZ_Q4_CODES + lane,
                    t->q + later * SZ_Q4_BLOCK + (-(int64_t)(later >= all) & jump),
                };
                scale[r] = t->scale + at * SZ_Q4_ROWS + lane;
            }
            if (col == 0)
#pragma GCC unroll 16
                for (int i = 0; i < R * M; i++) sums[v * M + i] = (sz_vec){ 0 };
            block(M, R, fetch, w, scale, x, x_scale, start, sums + v * M);
            if (col == t->across - 1) put(y, v, R, sums + v * M);
        }
        x += WORDS * M * X_WORDS;
        x_scale += M;
        start += SZ_Q4_GROUPS * M;
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
            block(M, R, fetch, w, scale, x + col * WORDS * M * X_WORDS, x_scale + col * M,
                  start + col * SZ_Q4_GROUPS * M, sums);
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

/* One of these for any m <= MAX_TILE_ROWS. What each instance fetches is measured. */
static __attribute__((noinline)) void any_tile(int64_t m, const task_weights *t, const int32_t *x,
                                               const float *x_scale, const int32_t *start,
                                               const destination *y)
{
    const fetch_plan half_of_next = { .ahead = 1, .alternate = true, .scales = 8 };
    const fetch_plan with_scales = { .ahead = 2, .scales = 8 };
    const fetch_plan next = { .ahead = 1 };
#define TILE(by, M, R, fetch) tile_by_##by(M, R, fetch, t, x, x_scale, start, y)
#define CASE(M) \
    case M: \
        if (M > MAX_TILE_ROWS) break; \
        if (!t->one_stream) TILE(rows, M, VECTORS_OF(M), next); \
        else if (M == 1) TILE(columns, M, STREAM_VECTORS_OF(M), half_of_next); \
        else TILE(columns, M, STREAM_VECTORS_OF(M), with_scales); \
        break
    switch (m) {
        CASE(1);
        CASE(2);
        CASE(3);
        CASE(4);
        CASE(5);
        CASE(6);
        CASE(7);
        CASE(8);
    }
#undef CASE
#undef TILE
}

/* Rows first .. first + MAX_TILE_ROWS of x of the n times a task's weights, into the columns of y
 * from col on. in: all rows. */
static void multiply_task(const sz_call *c, const task_weights *w, int64_t col, int64_t first,
                          int64_t n, const quantized_rows *in)
{
    const int64_t rows = sz_min64(MAX_TILE_ROWS, n - first);
    const int64_t blocks = first * w->across;
    const destination y = { c->out[0], c->in[3], first, rows, col };
    any_tile(rows, w, in->words + blocks * WORDS * X_WORDS, in->scale + blocks,
             in->start + blocks * SZ_Q4_GROUPS, &y);
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

    /* x in 8 bits. */
    quantized_rows in = {
        sz_scratch((size_t)(n * across * WORDS * X_WORDS + 1) * sizeof *in.words),
        sz_scratch((size_t)(n * across + 1) * sizeof *in.scale),
        sz_scratch((size_t)(n * across * SZ_Q4_GROUPS + 1) * sizeof *in.start),
    };
    if (!in.words || !in.scale || !in.start) return -1;
#pragma omp parallel for schedule(static) if (n * k >= SZ_PARALLEL_FROM)
    for (int64_t i = 0; i < n; i++) {
        const int64_t first = i - i % MAX_TILE_ROWS;
        const int64_t rows = sz_min64(MAX_TILE_ROWS, n - first);
        const int64_t lane = i - first;
        quantize_x(x, i, rows, across,
                   (quantized_rows){ in.words + (first * across * WORDS + lane) * X_WORDS,
                                     in.scale + first * across + lane,
                                     in.start + first * across * SZ_Q4_GROUPS + lane });
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
            sz_processor_is_zen_1_to_4(),
        };
        for (int64_t i = 0; i < n; i += MAX_TILE_ROWS)
            multiply_task(c, &w, t.first * SZ_Q4_ROWS, i, n, &in);
    }
    return 0;
}
