/* packed_store.h - where products with 8 and 4-bit weights put their results.
 * Leaves out: the products (int8.c, int4.c).
 */
#ifndef SZ_PACKED_STORE_H
#define SZ_PACKED_STORE_H

#include "vecmath.h"
#include "gemm_tile.h"

/* Stores one vector of results, columns [col, col + SZ_LANES) of rows [row, row + rows) of y f32 or
 * bf16 [n, m]: sums plus bias [m] (NULL: none). sums: a vector for each row. */
static inline void sz_store_columns(const sz_tensor *y, const sz_tensor *bias, int64_t row,
                                    int64_t rows, int64_t col, const sz_vec *sums)
{
    const int64_t m = sz_cols(y);
    const int64_t width = sz_min64(SZ_LANES, m - col);
    if (width <= 0) return;
    float b[SZ_LANES] = { 0 };
    for (int64_t j = 0; bias && j < width; j++) b[j] = sz_get(bias, col + j);
    for (int64_t t = 0; t < rows; t++) {
        /* A whole vector is stored at once: its loops have constant lengths. */
        float v[SZ_LANES];
        sz_vec_store(v, sums[t] + sz_vec_load(b));
        const int64_t first = (row + t) * m + col;
        if (y->dtype == SZ_F32 && width == SZ_LANES) {
            sz_vec_store(sz_f32(y) + first, sz_vec_load(v));
        } else if (y->dtype == SZ_F32) {
            memcpy(sz_f32(y) + first, v, (size_t)width * sizeof *v);
        } else {
            uint16_t rounded[SZ_LANES];
            for (int j = 0; j < SZ_LANES; j++) rounded[j] = sz_to_bf16(v[j]);
            if (width == SZ_LANES) memcpy(sz_bf16(y) + first, rounded, sizeof rounded);
            else memcpy(sz_bf16(y) + first, rounded, (size_t)width * sizeof *rounded);
        }
    }
}

#endif
