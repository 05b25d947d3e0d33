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
    TASK_BLOCKS = 4,                                            /* that a thread takes at once */
    MAX_SUMS = 2 * MAX_TILE_ROWS > 16 ? 2 * MAX_TILE_ROWS : 16, /* vectors of sums of a tile */
    WORDS = SZ_Q4_COLS / 4,                                     /* of x, for a block's columns */
    /* Up to so many rows of x meet one block of weights at a time where memory is read best as a
     * single stream. */
    STREAM_ROWS = 2,
    /* A row of up to so many blocks fits a first-level cache of 32 KiB together with x. */
    SHORT_ROW = 9,
};

/* Vectors of weights that a tile of m rows of x has: a constant if m is. */
#define VECTORS_OF(m) ((m) <= FEW ? WIDE : (m) <= SOME ? 2 : 1)

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

/* The weights of a vector of rows: its codes and parts in a block, and its scales. next: the first
 * block of the same vector of the next tile. */
typedef struct {
    const uint8_t *codes, *parts, *next;
    const uint16_t *scale;
} vector_weights;

/* What a tile fetches: the weights `ahead` blocks on, all lines or every other one (the processor
 * brings the lines between by itself), and the scales `scales` blocks on (0: none). */
typedef struct {
    int ahead;
    bool alternate;
    int scales;
} fetch_plan;

/* R vectors of weights times M rows of x over group g of a block: adds to total [R][M]. later: for
 * each vector, the block that is fetched meanwhile. */
static inline __attribute__((always_inline)) void group(
    const int M, const int R, const fetch_plan fetch, const vector_weights *w,
    const uint8_t *const *later, int g, const int32_t *x, const int32_t *start, sz_ivec *total)
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
            const uint8_t *from = w[r].codes + (g * SZ_Q4_PIECES + p) * SZ_Q4_PIECE;
            const sz_uvec bytes = *(const word_vec_any *)from;
            low[r] = unpack(bytes);
            high[r] = unpack(bytes >> 4);
            if (r % VECTORS == 0 && (p == 0 || !fetch.alternate))
                __builtin_prefetch(later[r] + (g * SZ_Q4_PIECES + p) * SZ_Q4_PIECE);
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

/* R vectors of weights times M rows of x: sums [R][M]. M, R and all of fetch but `ahead` are
 * constants where it is inlined; w: the vectors in the first block, moved on. */
static inline __attribute__((always_inline)) void tile(const int M, const int R,
                                                       const fetch_plan fetch, int64_t across,
                                                       vector_weights *w, const int32_t *x,
                                                       const float *x_scale, const int32_t *start,
                                                       sz_vec *sums)
{
#pragma GCC unroll 16
    for (int i = 0; i < R * M; i++) sums[i] = (sz_vec){ 0 };
    for (int64_t block = 0; block < across; block++, x_scale += M) {
        /* Integer totals of the block. */
        sz_ivec total[MAX_SUMS];
#pragma GCC unroll 16
        for (int i = 0; i < R * M; i++) total[i] = (sz_ivec){ 0 };

        /* What is fetched: after the last block, the first ones of the next tile. */
        const uint8_t *later[WIDE];
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            const int64_t left = across - block;
            if (fetch.ahead < left) later[r] = w[r].codes + fetch.ahead * SZ_Q4_BLOCK;
            else later[r] = w[r].next + (fetch.ahead - left) * SZ_Q4_BLOCK;
        }

        for (int g = 0; g < SZ_Q4_GROUPS; g++) {
            group(M, R, fetch, w, later, g, x, start, total);
            x += SZ_Q4_GROUP / 4 * M * X_WORDS;
            start += M;
        }

        /* Scaled and added in f32. */
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            const sz_vec scale = load_scale(w[r].scale);
            if (r % VECTORS == 0 && fetch.scales)
                __builtin_prefetch(w[r].scale + fetch.scales * SZ_Q4_ROWS);
#pragma GCC unroll 8
            for (int i = 0; i < M; i++)
                sums[r * M + i] += __builtin_convertvector(total[r * M + i], sz_vec) *
                                   (scale * x_scale[i]);
            w[r].codes += SZ_Q4_BLOCK;
            w[r].parts += SZ_Q4_BLOCK;
            w[r].scale += SZ_Q4_ROWS;
        }
    }
}

/* The weights of a task: q and scale of its first block of rows, and how many vectors of rows it
 * has. later: q of the thread's next task. one_stream: whether memory is read best so. */
typedef struct {
    const uint8_t *q, *later;
    const uint16_t *scale;
    int64_t across, vectors;
    bool one_stream;
} task_weights;

/* tile for any m <= MAX_TILE_ROWS, with the vectors from `first` on. Returns R, the number that it
 * computes; those past the last one repeat it. */
static __attribute__((noinline)) int any_tile(int64_t m, int64_t first, const task_weights *t,
                                              const int32_t *x, const float *x_scale,
                                              const int32_t *start, sz_vec *sums)
{
    const int R = t->one_stream && m <= STREAM_ROWS ? VECTORS : VECTORS_OF(m);
    const int64_t end = first + R;
    const uint8_t *next = t->later;
    if (end < t->vectors) next = t->q + end / VECTORS * t->across * SZ_Q4_BLOCK;
    vector_weights w[WIDE];
    for (int r = 0; r < R; r++) {
        const int64_t v = sz_min64(first + r, t->vectors - 1);
        const int64_t block = v / VECTORS * t->across;
        const int64_t lane = v % VECTORS * SZ_LANES;
        const uint8_t *q = t->q + block * SZ_Q4_BLOCK;
        w[r] = (vector_weights){
            .codes = q + lane * 4,
            .parts = q + SZ_Q4_CODES + lane,
            .next = next + r / VECTORS * t->across * SZ_Q4_BLOCK,
            .scale = t->scale + block * SZ_Q4_ROWS + lane,
        };
    }

    /* One instance for each m and way of reading memory. What each fetches is measured. */
    const fetch_plan blocks = { .ahead = t->one_stream ? 2 : 1 };
    const fetch_plan with_scales = { .ahead = 2, .scales = 8 };
    const fetch_plan half_of_next = { .ahead = 1, .alternate = true, .scales = 8 };
#define TILE(M, R, fetch) tile(M, R, fetch, t->across, w, x, x_scale, start, sums)
#define CASE(M) \
    case M: \
        if (t->one_stream && M == 1 && t->across <= SHORT_ROW) TILE(M, VECTORS, half_of_next); \
        else if (t->one_stream && M <= STREAM_ROWS) TILE(M, VECTORS, with_scales); \
        else if (M <= MAX_TILE_ROWS) TILE(M, VECTORS_OF(M), blocks); \
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
    return R;
}

/* Rows first .. first + MAX_TILE_ROWS of x of the n times a task's weights, into the columns of y
 * from col on. in: all rows. */
static void multiply_task(const sz_call *c, const task_weights *w, int64_t col, int64_t first,
                          int64_t n, const quantized_rows *in)
{
    const int64_t rows = sz_min64(MAX_TILE_ROWS, n - first);
    const int64_t blocks = first * w->across;
    const int32_t *x = in->words + blocks * WORDS * X_WORDS;
    const int32_t *start = in->start + blocks * SZ_Q4_GROUPS;
    for (int64_t v = 0, computed; v < w->vectors; v += computed) {
        sz_vec sums[MAX_SUMS];
        computed = any_tile(rows, v, w, x, in->scale + blocks, start, sums);
        for (int64_t r = 0; r < sz_min64(computed, w->vectors - v); r++)
            sz_store_columns(c->out[0], c->in[3], first, rows, col + (v + r) * SZ_LANES,
                             sums + r * rows);
    }
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

    /* A task is TASK_BLOCKS blocks of weights times all rows. */
    int64_t taken = 0;
#pragma omp parallel if (n * k * m >= SZ_PARALLEL_FROM)
    for (sz_task t = sz_first_task(&taken, TASK_BLOCKS); t.first < blocks;
         sz_next_task(&t, &taken, TASK_BLOCKS)) {
        const int64_t later = t.next < blocks ? t.next : t.first;
        const task_weights w = {
            (const uint8_t *)q->data + t.first * across * SZ_Q4_BLOCK,
            (const uint8_t *)q->data + later * across * SZ_Q4_BLOCK,
            sz_bf16(scale) + t.first * across * SZ_Q4_ROWS,
            across,
            sz_min64(TASK_BLOCKS, blocks - t.first) * VECTORS,
            sz_processor_is_zen_1_to_4(),
        };
        for (int64_t i = 0; i < n; i += MAX_TILE_ROWS)
            multiply_task(c, &w, t.first * SZ_Q4_ROWS, i, n, &in);
    }
    return 0;
}
