/* attention_product.h - a register-blocked f32 product for operands that fit the cache. While it
 * computes, it fetches what the thread reads next.
 *
 *     sz_tile(m, n, k, a, a_row, a_col, b, ldb, c, ldc, add, ahead)
 *                                                             C[m x n] (+)= A[m x k] B[k x n]
 *
 * A has any row stride a_row and column stride a_col, so a transposed A costs nothing; B and C are
 * row-major. n is rounded up to a multiple of SZ_LANES: B and C must have that many columns. Each
 * element of C is one chain of multiply-adds in the order of k, whatever m and n are, so a result
 * does not depend on the other rows and columns of the call.
 * Leaves out: cache blocking (callers tile), packing, threads.
 */
#ifndef SZ_ATTENTION_PRODUCT_H
#define SZ_ATTENTION_PRODUCT_H

#include "gemm_tile.h"

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
    const char *line, *end;  /* the next line, and where its row ends */
    const char *last_end;    /* where the last row of the part ends */
    ptrdiff_t bytes, stride; /* of the rows of the part */
} sz_ahead;

/* Goes on to the next part; without one it stays where it is. */
static inline void sz_ahead_next(sz_ahead *ahead)
{
    if (!ahead->parts) return;
    sz_ahead_part p = ahead->part[--ahead->parts];
    ahead->line = p.row;
    ahead->bytes = p.bytes;
    ahead->stride = p.stride;
    ahead->end = p.row + p.bytes;
    ahead->last_end = ahead->end + (p.rows - 1) * p.stride;
}

/* Adds a part. Parts are fetched from the last one on. */
static inline void sz_ahead_add(sz_ahead *ahead, const void *row, int64_t rows, int64_t bytes,
                                int64_t stride)
{
    if (rows > 0 && ahead->parts < SZ_AHEAD_PARTS)
        ahead->part[ahead->parts++] = (sz_ahead_part){ row, rows, bytes, stride };
}

/* An empty list: it fetches one line that is in the cache, its own. */
static inline void sz_ahead_clear(sz_ahead *ahead)
{
    *ahead = (sz_ahead){ .line = (const char *)ahead,
                         .end = (const char *)ahead + SZ_LINE,
                         .last_end = (const char *)ahead + SZ_LINE,
                         .bytes = SZ_LINE };
}

/* ---- the product ---- */

/* A block of rows x (vectors * SZ_LANES). rows and vectors are constants where it is inlined, so
 * that the sums become registers. */
static inline __attribute__((always_inline)) void sz_tile_block(
    const int rows, const int vectors, int64_t k, const float *restrict a, ptrdiff_t a_row,
    ptrdiff_t a_col, const float *restrict b, ptrdiff_t ldb, float *restrict c, ptrdiff_t ldc,
    int add, sz_ahead *ahead)
{
    sz_vec sum[SZ_TILE_ROWS][2];

    /* What to fetch. */
    if (ahead->end == ahead->last_end) sz_ahead_next(ahead);
    const char *line = ahead->line;
    const char *end = ahead->end;
    const char *last_end = ahead->last_end;
    ptrdiff_t bytes = ahead->bytes;
    ptrdiff_t stride = ahead->stride;

    /* Start from C or from 0. */
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
        for (int j = 0; j < vectors; j++)
            sum[i][j] = add ? sz_vec_load(c + i * ldc + j * SZ_LANES) : (sz_vec){ 0 };

    /* One row of B against one column of A at a time. */
    for (int64_t p = 0; p < k; p++) {
        sz_vec b0 = sz_vec_load(b);
        sz_vec b1 = vectors > 1 ? sz_vec_load(b + SZ_LANES) : b0;
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++) {
            sz_vec x = sz_vec_all(a[i * a_row]);
            sum[i][0] += x * b0;
            if (vectors > 1) sum[i][1] += x * b1;
        }
        a += a_col;
        b += ldb;

        /* Fetch a line into the second-level cache. */
        __builtin_prefetch(line, 0, 2);
        line += SZ_LINE;
        if (line >= end) {
            end += end < last_end ? stride : 0;
            line = end - bytes;
        }
    }
    ahead->line = line;
    ahead->end = end;

    /* Store C. */
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
        for (int j = 0; j < vectors; j++) sz_vec_store(c + i * ldc + j * SZ_LANES, sum[i][j]);
}

/* All m rows of a strip of `vectors` vectors: the largest blocks first. */
static inline __attribute__((always_inline)) void sz_tile_strip(
    const int vectors, int64_t m, int64_t k, const float *a, ptrdiff_t a_row, ptrdiff_t a_col,
    const float *b, ptrdiff_t ldb, float *c, ptrdiff_t ldc, int add, sz_ahead *ahead)
{
#define SZ_TILE_STEP(rows) \
    sz_tile_block(rows, vectors, k, a, a_row, a_col, b, ldb, c, ldc, add, ahead), \
        a += (rows)*a_row, c += (rows)*ldc, m -= (rows)
    while (m >= SZ_TILE_ROWS) SZ_TILE_STEP(SZ_TILE_ROWS);
    if (SZ_TILE_ROWS > 8 && m >= 8) SZ_TILE_STEP(8 < SZ_TILE_ROWS ? 8 : 1);
    if (m >= 4) SZ_TILE_STEP(4);
    if (m >= 2) SZ_TILE_STEP(2);
    if (m >= 1) SZ_TILE_STEP(1);
#undef SZ_TILE_STEP
}

static __attribute__((noinline, unused)) void sz_tile(int64_t m, int64_t n, int64_t k,
                                                      const float *a, ptrdiff_t a_row,
                                                      ptrdiff_t a_col, const float *b,
                                                      ptrdiff_t ldb, float *c, ptrdiff_t ldc,
                                                      int add, sz_ahead *ahead)
{
    for (; n > SZ_LANES; n -= 2 * SZ_LANES, b += 2 * SZ_LANES, c += 2 * SZ_LANES)
        sz_tile_strip(2, m, k, a, a_row, a_col, b, ldb, c, ldc, add, ahead);
    if (n > 0) sz_tile_strip(1, m, k, a, a_row, a_col, b, ldb, c, ldc, add, ahead);
}

#endif
