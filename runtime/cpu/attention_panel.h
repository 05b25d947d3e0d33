/* attention_panel.h - moves columns of attention between rows and panels.
 *
 * A column is one query of one head. In rows its D elements are next to each other; in panels
 * [D][SZ_PANEL], one panel after the other, columns are side by side (attention_tile.h). A move is
 * a transpose of squares of SZ_LANES x SZ_LANES in registers, and multiplies on the way.
 * Leaves out: bf16. It is converted to rows of f32 first, or has panels of its own
 * (attention_bf16.h).
 */
#ifndef SZ_ATTENTION_PANEL_H
#define SZ_ATTENTION_PANEL_H

#include "attention_args.h"
#include "gemm_tile.h"

/* Column c is at base + c / share * stride + c % share * dim. */
typedef struct {
    float *base;
    int64_t stride, share, dim;
} sz_column_rows;

/* Addresses of SZ_LANES columns from c on; those after the last of n are the last one. */
static inline void sz_column_addresses(float *address[SZ_LANES], const sz_column_rows *r, int64_t c,
                                       int64_t n)
{
    float *row = r->base + c / r->share * r->stride;
    int64_t part = c % r->share;
    for (int l = 0; l < SZ_LANES; l++) {
        address[l] = row + part * r->dim;
        if (c + l + 1 >= n) continue;
        if (++part < r->share) continue;
        part = 0;
        row += r->stride;
    }
}

/* ---- squares ---- */

/* x[i], x[i + distance] = shuffles of both, for the i that start a pair. */
#define SZ_SQUARE_ROUND(x, distance, low, high) \
    do { \
        _Pragma("GCC unroll 16") for (int i_ = 0; i_ < SZ_LANES; i_++) \
        { \
            if (i_ & (distance)) continue; \
            sz_vec a_ = (x)[i_]; \
            sz_vec b_ = (x)[i_ + (distance)]; \
            (x)[i_] = sz_shuffle(a_, b_, low); \
            (x)[i_ + (distance)] = sz_shuffle(a_, b_, high); \
        } \
    } while (0)

/* Transposes x: x[i][l] becomes x[l][i]. Each round exchanges blocks next to the diagonal. */
static inline __attribute__((always_inline)) void sz_square_transpose(sz_vec x[SZ_LANES])
{
#if defined(__AVX512F__)
    SZ_SQUARE_ROUND(x, 8, ((sz_ivec){ 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23 }),
                    ((sz_ivec){ 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31 }));
    SZ_SQUARE_ROUND(x, 4, ((sz_ivec){ 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27 }),
                    ((sz_ivec){ 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31 }));
    SZ_SQUARE_ROUND(x, 2, ((sz_ivec){ 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29 }),
                    ((sz_ivec){ 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31 }));
    SZ_SQUARE_ROUND(x, 1, ((sz_ivec){ 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30 }),
                    ((sz_ivec){ 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31 }));
#elif defined(__AVX__)
    SZ_SQUARE_ROUND(x, 4, ((sz_ivec){ 0, 1, 2, 3, 8, 9, 10, 11 }),
                    ((sz_ivec){ 4, 5, 6, 7, 12, 13, 14, 15 }));
    SZ_SQUARE_ROUND(x, 2, ((sz_ivec){ 0, 1, 8, 9, 4, 5, 12, 13 }),
                    ((sz_ivec){ 2, 3, 10, 11, 6, 7, 14, 15 }));
    SZ_SQUARE_ROUND(x, 1, ((sz_ivec){ 0, 8, 2, 10, 4, 12, 6, 14 }),
                    ((sz_ivec){ 1, 9, 3, 11, 5, 13, 7, 15 }));
#else
    SZ_SQUARE_ROUND(x, 2, ((sz_ivec){ 0, 1, 4, 5 }), ((sz_ivec){ 2, 3, 6, 7 }));
    SZ_SQUARE_ROUND(x, 1, ((sz_ivec){ 0, 4, 2, 6 }), ((sz_ivec){ 1, 5, 3, 7 }));
#endif
}

/* Where the square after the one at d begins, in rows of dim elements: the last one ends with the
 * row and may overlap the one before it. */
static inline int64_t sz_square_next(int64_t d, int64_t dim)
{
    int64_t next = d + SZ_LANES;
    if (next < dim && next + SZ_LANES > dim) return dim - SZ_LANES;
    return next;
}

/* ---- moves ---- */

/* Panels from the columns of r times scale. The last vector of columns is filled with copies of
 * the last column. */
static inline void sz_panels_pack(float *restrict panels, const sz_column_rows *r, int64_t n,
                                  int64_t dim, float scale)
{
    for (int64_t c = 0; c < n; c += SZ_LANES) {
        float *address[SZ_LANES];
        float *panel = panels + c / SZ_PANEL * SZ_PANEL * dim + c % SZ_PANEL;
        sz_column_addresses(address, r, c, n);

        /* Rows shorter than a vector. */
        for (int64_t d = 0; dim < SZ_LANES && d < dim; d++)
            for (int l = 0; l < SZ_LANES; l++) panel[d * SZ_PANEL + l] = address[l][d] * scale;

        /* Whole squares. */
        for (int64_t d = 0; dim >= SZ_LANES && d < dim; d = sz_square_next(d, dim)) {
            sz_vec x[SZ_LANES];
#pragma GCC unroll 16
            for (int l = 0; l < SZ_LANES; l++) x[l] = sz_vec_load(address[l] + d) * scale;
            sz_square_transpose(x);
#pragma GCC unroll 16
            for (int l = 0; l < SZ_LANES; l++) sz_vec_store(panel + (d + l) * SZ_PANEL, x[l]);
        }
    }
}

/* The columns of r from panels, column c times factor[c]. */
static inline void sz_panels_unpack(const sz_column_rows *r, int64_t n, const float *panels,
                                    int64_t dim, const float *factor)
{
    for (int64_t c = 0; c < n; c += SZ_LANES) {
        float *address[SZ_LANES];
        const float *panel = panels + c / SZ_PANEL * SZ_PANEL * dim + c % SZ_PANEL;
        const int used = n - c < SZ_LANES ? (int)(n - c) : SZ_LANES;
        sz_column_addresses(address, r, c, n);

        /* Rows shorter than a vector. */
        for (int64_t d = 0; dim < SZ_LANES && d < dim; d++)
            for (int l = 0; l < used; l++) address[l][d] = panel[d * SZ_PANEL + l] * factor[c + l];

        /* Whole squares. */
        const sz_vec times = sz_vec_load(factor + c);
        for (int64_t d = 0; dim >= SZ_LANES && d < dim; d = sz_square_next(d, dim)) {
            sz_vec x[SZ_LANES];
#pragma GCC unroll 16
            for (int l = 0; l < SZ_LANES; l++)
                x[l] = sz_vec_load(panel + (d + l) * SZ_PANEL) * times;
            sz_square_transpose(x);
            if (used == SZ_LANES) {
#pragma GCC unroll 16
                for (int l = 0; l < SZ_LANES; l++) sz_vec_store(address[l] + d, x[l]);
            } else {
#pragma GCC unroll 16
                for (int l = 0; l < SZ_LANES; l++)
                    if (l < used) sz_vec_store(address[l] + d, x[l]);
            }
        }
    }
}

#endif
