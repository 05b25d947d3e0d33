/* attention_product.h - a register-blocked product for operands that fit the cache. While it
 * computes, it fetches what the thread reads next.
 *
 *     sz_tile(m, n, k, a, a_row, a_col, b, ldb, c, ldc, add, ahead)
 *                                       C[m x n] (+)= A[m x k] B[k x n]; add: SZ_SET, SZ_CHAIN,
 *                                       SZ_ADD
 *     sz_tile_few(...)                  the same, with AVX-512 faster for at most 8 columns
 *     sz_tile_pairs(...)                sz_tile_few of words of two numbers of bf16: two such
 *                                       products for each k (bf16_words.h)
 *
 * A has row stride a_row and column stride a_col, one of which is 1: so a transposed A costs
 * nothing. B and C are row-major. n is rounded up to a multiple of SZ_LANES: B and C must have that
 * many columns. Each element of C is one chain of multiply-adds in the order of k, whatever m and n
 * are, so a result does not depend on the other rows and columns of the call.
 * Leaves out: cache blocking (callers tile), packing, threads.
 */
#ifndef SZ_ATTENTION_PRODUCT_H
#define SZ_ATTENTION_PRODUCT_H

#include "bf16_words.h"
#include "gemm_tile.h"
#include <stdbool.h>

/* ---- what is read next ---- */

/* Rows of `bytes` bytes, `stride` bytes apart. */
typedef struct {
    const char *row;
    int64_t rows, bytes, stride;
} sz_ahead_part;

enum { SZ_AHEAD_PARTS = 8, SZ_LINE = 64 };

/* A list of parts that are fetched line by line, one for each step of a product. The lines of the
 * last row of a part are fetched again and again until a block of the product ends. */
typedef struct {
    sz_ahead_part part[SZ_AHEAD_PARTS]; /* those to come */
    int parts;
    const char *line; /* the next line */
    ptrdiff_t step;   /* from line to line; 0 when there is none to come */
    int64_t left;     /* lines to come in this row */
    int64_t rows;     /* rows to come, this one included; not positive when the part is done */
    int64_t lines;    /* of a row */
    ptrdiff_t gap;    /* from the end of a row's last line to the next row */
    ptrdiff_t back;   /* from there to the row's beginning */
} sz_ahead;

/* Adds a part. Parts are fetched from the last one on. */
static inline void sz_ahead_add(sz_ahead *ahead, const void *row, int64_t rows, int64_t bytes,
                                int64_t stride)
{
    if (rows > 0 && ahead->parts < SZ_AHEAD_PARTS)
        ahead->part[ahead->parts++] = (sz_ahead_part){ row, rows, bytes, stride };
}

/* An empty list: the line is in the cache, its own. */
static inline void sz_ahead_clear(sz_ahead *ahead)
{
    *ahead = (sz_ahead){ .line = (const char *)ahead, .left = INT64_MAX };
}

/* Goes on to the next part when one is done. */
static inline void sz_ahead_next(sz_ahead *ahead)
{
    if (ahead->rows > 0) return;
    if (!ahead->parts) {
        if (ahead->step) sz_ahead_clear(ahead);
        return;
    }
    const sz_ahead_part p = ahead->part[--ahead->parts];
    ahead->line = p.row;
    ahead->step = SZ_LINE;
    ahead->rows = p.rows;
    ahead->lines = (p.bytes + SZ_LINE - 1) / SZ_LINE;
    ahead->left = ahead->lines;
    ahead->gap = p.stride - ahead->lines * SZ_LINE;
    ahead->back = -ahead->lines * SZ_LINE;
}

/* Where a list is. A block of the product keeps it in registers while it runs. */
typedef struct {
    const char *line;
    ptrdiff_t step;
    int64_t left;
} sz_ahead_place;

/* Where a block begins to fetch. */
static inline __attribute__((always_inline)) sz_ahead_place sz_ahead_begin(sz_ahead *ahead)
{
    sz_ahead_next(ahead);
    return (sz_ahead_place){ ahead->line, ahead->step, ahead->left };
}

/* Fetches a line into the second-level cache. */
static inline __attribute__((always_inline)) void sz_ahead_fetch(sz_ahead *ahead,
                                                                 sz_ahead_place *at)
{
    __builtin_prefetch(at->line, 0, 2);
    at->line += at->step;
    if (--at->left) return;
    at->left = ahead->lines;
    at->line += --ahead->rows > 0 ? ahead->gap : ahead->back;
}

/* Puts the place back into the list. */
static inline __attribute__((always_inline)) void sz_ahead_end(sz_ahead *ahead,
                                                               const sz_ahead_place *at)
{
    ahead->line = at->line;
    ahead->left = at->left;
}

/* ---- the product ---- */

/* What becomes of C: the product is stored, or the sums begin with C, or C grows by the product. */
enum { SZ_SET, SZ_CHAIN, SZ_ADD };

/* What A and B hold. SZ_PAIRS is for SZ_HAS_PAIRS alone. */
typedef enum { SZ_FLOATS, SZ_PAIRS } sz_tile_form;

/* The element of A at `at` in all lanes. */
static inline __attribute__((always_inline)) sz_vec sz_tile_spread(const sz_tile_form form,
                                                                   const float *at)
{
#ifdef SZ_HAS_PAIRS
    if (form == SZ_PAIRS) return sz_pairs_spread(at);
#endif
    (void)form;
    return sz_vec_all(*at);
}

static inline __attribute__((always_inline)) sz_vec sz_tile_add(const sz_tile_form form, sz_vec sum,
                                                                sz_vec x, sz_vec b)
{
#ifdef SZ_HAS_PAIRS
    if (form == SZ_PAIRS) return sz_pairs_add(sum, x, b);
#endif
    (void)form;
    return sum + x * b;
}

/* A block of rows x (vectors * SZ_LANES). A's rows are lda apart if by_row, else its columns. rows,
 * vectors, form and by_row are constants where it is inlined, so that the sums become registers and
 * the elements of A are found from few addresses. */
static inline __attribute__((always_inline)) void sz_tile_block(
    const int rows, const int vectors, const sz_tile_form form, const int by_row, int64_t k,
    const float *restrict a, ptrdiff_t lda, const float *restrict b, ptrdiff_t ldb,
    float *restrict c, ptrdiff_t ldc, int add, sz_ahead *ahead)
{
    sz_vec sum[SZ_TILE_ROWS][2];
    const float *row[4] = { a, a + 3 * lda, a + 6 * lda, a + 9 * lda }; /* used if by_row */

    sz_ahead_place fetch = sz_ahead_begin(ahead);

    /* Start from C or from 0. */
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
        for (int j = 0; j < vectors; j++)
            sum[i][j] = add == SZ_CHAIN ? sz_vec_load(c + i * ldc + j * SZ_LANES) : (sz_vec){ 0 };

    /* One row of B against one column of A at a time. */
    for (int64_t p = k; p > 0; p--) {
        sz_vec b0 = sz_vec_load(b);
        sz_vec b1 = vectors > 1 ? sz_vec_load(b + SZ_LANES) : b0;
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++) {
            sz_vec x = sz_tile_spread(form, by_row ? row[i / 3] + i % 3 * lda : a + i);
            sum[i][0] = sz_tile_add(form, sum[i][0], x, b0);
            if (vectors > 1) sum[i][1] = sz_tile_add(form, sum[i][1], x, b1);
        }
        if (by_row) row[0]++, row[1]++, row[2]++, row[3]++;
        else a += lda;
        b += ldb;
        sz_ahead_fetch(ahead, &fetch);
    }
    sz_ahead_end(ahead, &fetch);

    /* Store C. */
    if (add == SZ_ADD) {
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
            for (int j = 0; j < vectors; j++) sum[i][j] += sz_vec_load(c + i * ldc + j * SZ_LANES);
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
        for (int j = 0; j < vectors; j++) sz_vec_store(c + i * ldc + j * SZ_LANES, sum[i][j]);
}

/* The largest blocks as functions of their own: inlined among others, or for known strides, gcc
 * keeps addresses in vector registers and parts of B in memory. */
#define SZ_TILE_LARGEST(name, form, by_row) \
    static __attribute__((noipa, unused)) void name(int64_t k, const float *a, ptrdiff_t lda, \
                                                    const float *b, ptrdiff_t ldb, float *c, \
                                                    ptrdiff_t ldc, int add, sz_ahead *ahead) \
    { \
        sz_tile_block(SZ_TILE_ROWS, 2, form, by_row, k, a, lda, b, ldb, c, ldc, add, ahead); \
    }
SZ_TILE_LARGEST(sz_tile_rows, SZ_FLOATS, 1)
SZ_TILE_LARGEST(sz_tile_columns, SZ_FLOATS, 0)
#ifdef SZ_HAS_PAIRS
SZ_TILE_LARGEST(sz_tile_rows_pairs, SZ_PAIRS, 1)
SZ_TILE_LARGEST(sz_tile_columns_pairs, SZ_PAIRS, 0)
#endif
#undef SZ_TILE_LARGEST

/* All m rows of a strip of `vectors` vectors: the largest blocks first. */
static inline __attribute__((always_inline)) void sz_tile_strip(
    const int vectors, const sz_tile_form form, const int by_row, int64_t m, int64_t k,
    const float *a, ptrdiff_t lda, const float *b, ptrdiff_t ldb, float *c, ptrdiff_t ldc, int add,
    sz_ahead *ahead)
{
    const ptrdiff_t a_row = by_row ? lda : 1;
#define SZ_TILE_STEP(rows) \
    sz_tile_block(rows, vectors, form, by_row, k, a, lda, b, ldb, c, ldc, add, ahead), \
        a += (rows)*a_row, c += (rows)*ldc, m -= (rows)
    for (; vectors == 2 && m >= SZ_TILE_ROWS; m -= SZ_TILE_ROWS) {
        if (form == SZ_FLOATS && by_row) sz_tile_rows(k, a, lda, b, ldb, c, ldc, add, ahead);
        else if (form == SZ_FLOATS) sz_tile_columns(k, a, lda, b, ldb, c, ldc, add, ahead);
#ifdef SZ_HAS_PAIRS
        else if (by_row) sz_tile_rows_pairs(k, a, lda, b, ldb, c, ldc, add, ahead);
        else sz_tile_columns_pairs(k, a, lda, b, ldb, c, ldc, add, ahead);
#endif
        a += SZ_TILE_ROWS * a_row;
        c += SZ_TILE_ROWS * ldc;
    }
    while (m >= SZ_TILE_ROWS) SZ_TILE_STEP(SZ_TILE_ROWS);
    if (SZ_TILE_ROWS > 8 && m >= 8) SZ_TILE_STEP(8 < SZ_TILE_ROWS ? 8 : 1);
    if (m >= 4) SZ_TILE_STEP(4);
    if (m >= 2) SZ_TILE_STEP(2);
    if (m >= 1) SZ_TILE_STEP(1);
#undef SZ_TILE_STEP
}

/* All strips. */
static inline __attribute__((always_inline)) void sz_tile_strips(
    const sz_tile_form form, const int by_row, int64_t m, int64_t n, int64_t k, const float *a,
    ptrdiff_t lda, const float *b, ptrdiff_t ldb, float *c, ptrdiff_t ldc, int add, sz_ahead *ahead)
{
    for (; n > SZ_LANES; n -= 2 * SZ_LANES, b += 2 * SZ_LANES, c += 2 * SZ_LANES)
        sz_tile_strip(2, form, by_row, m, k, a, lda, b, ldb, c, ldc, add, ahead);
    if (n > 0) sz_tile_strip(1, form, by_row, m, k, a, lda, b, ldb, c, ldc, add, ahead);
}

static __attribute__((noinline, unused)) void sz_tile(int64_t m, int64_t n, int64_t k,
                                                      const float *a, ptrdiff_t a_row,
                                                      ptrdiff_t a_col, const float *b,
                                                      ptrdiff_t ldb, float *c, ptrdiff_t ldc,
                                                      int add, sz_ahead *ahead)
{
    if (a_col == 1) sz_tile_strips(SZ_FLOATS, 1, m, n, k, a, a_row, b, ldb, c, ldc, add, ahead);
    else sz_tile_strips(SZ_FLOATS, 0, m, n, k, a, a_col, b, ldb, c, ldc, add, ahead);
}

/* ---- few columns ---- */

#ifdef SZ_HAS_WORDS
enum { SZ_HALF_LANES = SZ_LANES / 2 };
typedef sz_half_floats sz_half_floats_any __attribute__((aligned(4), may_alias));

static inline sz_half_floats sz_half_load(const float *p) { return *(const sz_half_floats_any *)p; }

/* sum + x * b, x being the element of A at `at`. */
static inline __attribute__((always_inline)) sz_half_floats sz_half_add(const sz_tile_form form,
                                                                        sz_half_floats sum,
                                                                        const float *at,
                                                                        sz_half_floats b)
{
#ifdef SZ_HAS_PAIRS
    if (form == SZ_PAIRS) return sz_pairs_add_half(sum, at, b);
#endif
    (void)form;
    return sum + *at * b;
}

/* A block of rows x SZ_HALF_LANES. Zen 4 computes two half vectors in the time of a whole one. The
 * other half of C becomes a copy. */
static inline __attribute__((always_inline)) void sz_tile_half_block(
    const int rows, const sz_tile_form form, const int by_row, int64_t k, const float *restrict a,
    ptrdiff_t lda, const float *restrict b, ptrdiff_t ldb, float *restrict c, ptrdiff_t ldc,
    int add, sz_ahead *ahead)
{
    sz_half_floats sum[SZ_TILE_ROWS];
    const float *row[4] = { a, a + 3 * lda, a + 6 * lda, a + 9 * lda }; /* used if by_row */
    sz_ahead_place fetch = sz_ahead_begin(ahead);
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
        sum[i] = add == SZ_CHAIN ? sz_half_load(c + i * ldc) : (sz_half_floats){ 0 };

    for (int64_t p = k; p > 0; p--) {
        const sz_half_floats b0 = sz_half_load(b);
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++)
            sum[i] = sz_half_add(form, sum[i], by_row ? row[i / 3] + i % 3 * lda : a + i, b0);
        if (by_row) row[0]++, row[1]++, row[2]++, row[3]++;
        else a += lda;
        b += ldb;
        sz_ahead_fetch(ahead, &fetch);
    }
    sz_ahead_end(ahead, &fetch);

#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
        if (add == SZ_ADD) sum[i] += sz_half_load(c + i * ldc);
        *(sz_half_floats_any *)(c + i * ldc) = sum[i];
        *(sz_half_floats_any *)(c + i * ldc + SZ_HALF_LANES) = sum[i];
    }
}

/* All m rows of a strip of half a vector. */
static inline __attribute__((always_inline)) void sz_tile_half_strip(
    const sz_tile_form form, const int by_row, int64_t m, int64_t k, const float *a, ptrdiff_t lda,
    const float *b, ptrdiff_t ldb, float *c, ptrdiff_t ldc, int add, sz_ahead *ahead)
{
    const ptrdiff_t a_row = by_row ? lda : 1;
#define SZ_TILE_STEP(rows) \
    sz_tile_half_block(rows, form, by_row, k, a, lda, b, ldb, c, ldc, add, ahead), \
        a += (rows)*a_row, c += (rows)*ldc, m -= (rows)
    while (m >= SZ_TILE_ROWS) SZ_TILE_STEP(SZ_TILE_ROWS);
    while (m >= 4) SZ_TILE_STEP(4);
    while (m >= 1) SZ_TILE_STEP(1);
#undef SZ_TILE_STEP
}

/* sz_tile, but if n is at most SZ_HALF_LANES, half vectors are computed, and columns from
 * SZ_HALF_LANES on become copies of the first ones. */
static __attribute__((noinline, unused)) void sz_tile_few(int64_t m, int64_t n, int64_t k,
                                                          const float *a, ptrdiff_t a_row,
                                                          ptrdiff_t a_col, const float *b,
                                                          ptrdiff_t ldb, float *c, ptrdiff_t ldc,
                                                          int add, sz_ahead *ahead)
{
    if (n > SZ_HALF_LANES) sz_tile(m, n, k, a, a_row, a_col, b, ldb, c, ldc, add, ahead);
    else if (a_col == 1)
        sz_tile_half_strip(SZ_FLOATS, 1, m, k, a, a_row, b, ldb, c, ldc, add, ahead);
    else sz_tile_half_strip(SZ_FLOATS, 0, m, k, a, a_col, b, ldb, c, ldc, add, ahead);
}
#else
#define sz_tile_few sz_tile
#endif

/* ---- pairs ---- */

#ifdef SZ_HAS_PAIRS
/* The sizes and strides are those of words. */
static __attribute__((noinline, unused)) void sz_tile_pairs(int64_t m, int64_t n, int64_t k,
                                                            const void *a, ptrdiff_t a_row,
                                                            ptrdiff_t a_col, const void *b,
                                                            ptrdiff_t ldb, float *c, ptrdiff_t ldc,
                                                            int add, sz_ahead *ahead)
{
    const bool few = n <= SZ_HALF_LANES;
    const ptrdiff_t lda = a_col == 1 ? a_row : a_col;
    if (few && a_col == 1)
        sz_tile_half_strip(SZ_PAIRS, 1, m, k, a, lda, b, ldb, c, ldc, add, ahead);
    else if (few) sz_tile_half_strip(SZ_PAIRS, 0, m, k, a, lda, b, ldb, c, ldc, add, ahead);
    else if (a_col == 1) sz_tile_strips(SZ_PAIRS, 1, m, n, k, a, lda, b, ldb, c, ldc, add, ahead);
    else sz_tile_strips(SZ_PAIRS, 0, m, n, k, a, lda, b, ldb, c, ldc, add, ahead);
}
#endif

#endif
