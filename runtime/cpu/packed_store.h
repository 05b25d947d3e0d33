/* packed_store.h - where products with 8 and 4-bit weights put their results.
 * Leaves out: the products (int8.c, int4.c).
 */
#ifndef SZ_PACKED_STORE_H
#define SZ_PACKED_STORE_H

#include "vecmath.h"
#include "gemm_tile.h"

typedef uint16_t sz_half_vec __attribute__((vector_size(2 * SZ_LANES)));

/* Rounds to bf16, to nearest even; NaN stays NaN. A loop over sz_to_bf16 would round one by one:
 * GCC unrolls it before it looks for vectors. */
static inline sz_half_vec sz_vec_to_bf16(sz_vec v)
{
    const sz_uvec u = (sz_uvec)v;
    const sz_uvec is_nan = (sz_uvec)((u & 0x7fffffff) > 0x7f800000);
    const sz_uvec rounded = (u + 0x7fff + (u >> 16 & 1)) >> 16;
    const sz_uvec quiet = u >> 16 | 0x40;
    return __builtin_convertvector((rounded & ~is_nan) | (quiet & is_nan), sz_half_vec);
}

/* Stores one vector of results, columns [col, col + SZ_LANES) of rows [row, row + rows) of y f32 or
 * bf16 [n, m]: sums plus bias [m] (NULL: none). sums: a vector for each row. */
static inline void sz_store_columns(const sz_tensor *y, const sz_tensor *bias, int64_t row,
                                    int64_t rows, int64_t col, const sz_vec *sums)
{
    const int64_t m = sz_cols(y);
    const int64_t width = sz_min64(SZ_LANES, m - col);
    if (width <= 0) return;
    float b[SZ_LANES] = { 0 };
    if (bias) {
        float buffer[SZ_LANES];
        memcpy(b, sz_block(bias, col, width, buffer), (size_t)width * sizeof *b);
    }
    for (int64_t t = 0; t < rows; t++) {
        /* A whole vector is stored at once: its copies have constant lengths. */
        const sz_vec v = sums[t] + sz_vec_load(b);
        const int64_t first = (row + t) * m + col;
        if (y->dtype == SZ_F32) {
            if (width == SZ_LANES) sz_vec_store(sz_f32(y) + first, v);
            else memcpy(sz_f32(y) + first, &v, (size_t)width * sizeof(float));
        } else {
            const sz_half_vec rounded = sz_vec_to_bf16(v);
            if (width == SZ_LANES) memcpy(sz_bf16(y) + first, &rounded, sizeof rounded);
            else memcpy(sz_bf16(y) + first, &rounded, (size_t)width * sizeof(uint16_t));
        }
    }
}

#endif
