/* attention_amx.h - attention's two products in bf16 with AMX, and the softmax between them.
 *
 * The layout is that of attention_tile.h: a panel has 32 columns, its scores are [keys][32] and its
 * output [D][32], both f32. The scores are K Q: K's rows are left operands, and the queries are
 * packed as right ones. The output is V^T P: V is transposed into left operands when a tile of keys
 * is loaded, and the softmax writes P as right ones. Queries are not scaled; the softmax does it,
 * so that the products of the scores are exact. P is rounded to bf16, as in the reference.
 *
 * Compiled to nothing except for processors with AMX.
 * Leaves out: heads whose width is no multiple of 16, which use f32 vectors.
 */
#ifndef SZ_ATTENTION_AMX_H
#define SZ_ATTENTION_AMX_H
#ifdef SZ_AMX

#include "amx.h"
#include "attention_args.h"

enum {
    SZ_AMX_INNER = 32,                           /* numbers of bf16 in a row of a tile */
    SZ_AMX_NUMBERS = SZ_AMX_TILE * SZ_AMX_INNER, /* in a tile */
    SZ_AMX_KEY_STEPS = SZ_KEYS / SZ_AMX_INNER,
};

/* A head's width as an inner dimension: the numbers after its end are 0. */
static inline int64_t sz_amx_inner(int64_t dim) { return sz_round_up(dim, SZ_AMX_INNER); }

/* ---- packing ---- */

/* Queries as right operands: [panel][inner / 32][2 tiles] from rows [n][ld] of numbers of bf16 in
 * f32. The last tile is filled with copies of the last row. */
static inline void sz_amx_pack_queries(uint16_t *to, const float *rows, int64_t ld, int64_t n,
                                       int64_t dim)
{
    const int64_t inner = sz_amx_inner(dim);
    for (int64_t c = 0; c < n; c += SZ_AMX_TILE) {
        const int64_t second = c % SZ_PANEL;
        uint16_t *panel = to + (c - second) * inner + second * SZ_AMX_INNER;
        for (int64_t d = 0; d < inner; d += SZ_AMX_INNER) {
            __m512i r[SZ_AMX_TILE];
            for (int i = 0; i < SZ_AMX_TILE; i++) {
                const float *row = rows + (c + i < n ? c + i : n - 1) * ld + d;
                const bool whole = d + SZ_AMX_INNER <= dim;
                const __m512 high = whole ? _mm512_loadu_ps(row + SZ_AMX_TILE)
                                          : _mm512_setzero_ps();
                r[i] = sz_amx_to_bf16_32(_mm512_loadu_ps(row), high);
            }
            sz_amx_transpose(r);
            sz_amx_store(panel + d * SZ_PANEL, SZ_AMX_INNER, r);
        }
    }
}

/* Keys as left operands: rows [keys][inner] from rows ld apart. Scores of rows that are not written
 * are not used. Rows of the values, ldv apart, are fetched on the way. */
static inline void sz_amx_pack_keys(uint16_t *to, const uint16_t *rows, int64_t ld, int64_t keys,
                                    int64_t dim, const uint16_t *values, int64_t ldv)
{
    enum { PREFETCH_ROWS = 6 };
    const int64_t inner = sz_amx_inner(dim);
    for (int64_t j = 0; j < keys; j++, rows += ld, values += ldv, to += inner) {
        for (int64_t d = 0; d < dim; d += SZ_AMX_INNER) {
            _mm_prefetch((const char *)(rows + PREFETCH_ROWS * ld + d), _MM_HINT_T0);
            _mm_prefetch((const char *)(values + d), _MM_HINT_T1);
        }
        for (int64_t d = 0; d < inner; d += SZ_AMX_INNER) {
            const __mmask32 mask = d + SZ_AMX_INNER <= dim ? 0xffffffff : 0xffff;
            _mm512_store_si512(to + d, _mm512_maskz_loadu_epi16(mask, rows + d));
        }
    }
}

/* Values as left operands: V^T, [D / 16][SZ_AMX_KEY_STEPS] tiles, from rows ld apart. Keys up to
 * the next multiple of 32 are 0. */
static inline void sz_amx_pack_values(uint16_t *to, const uint16_t *rows, int64_t ld, int64_t keys,
                                      int64_t dim)
{
    for (int64_t j = 0; j < keys; j += SZ_AMX_INNER)
        for (int64_t d = 0; d < dim; d += SZ_AMX_TILE) {
            __m512i r[SZ_AMX_TILE];
            sz_amx_load_pairs(r, rows + j * ld + d, ld, SZ_AMX_TILE, keys - j);
            sz_amx_transpose(r);
            uint16_t *tile = to + (d / SZ_AMX_TILE * SZ_AMX_KEY_STEPS + j / SZ_AMX_INNER) *
                                      SZ_AMX_NUMBERS;
            sz_amx_store(tile, SZ_AMX_INNER, r);
        }
}

/* ---- products ---- */

/* s [keys][32] = K Q of one panel, for keys up to the next multiple of 32. width: columns, 16 or
 * 32.
 */
static inline void sz_amx_scores(float *s, const uint16_t *k, const uint16_t *q, int64_t keys,
                                 int64_t width, int64_t dim)
{
    const int64_t inner = sz_amx_inner(dim);
    const int64_t half = SZ_AMX_TILE * inner;
    for (int64_t j = 0; j < keys; j += SZ_AMX_INNER) {
        const uint16_t *rows = k + j * inner;
        float *to = s + j * SZ_PANEL;
        sz_amx_clear_sums();
        for (int64_t d = 0; d < inner; d += SZ_AMX_INNER) {
            const uint16_t *right = q + d * SZ_PANEL;
            _tile_loadd(6, right, SZ_AMX_ROW_BYTES);
            _tile_loadd(4, rows + d, 2 * inner);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(5, rows + half + d, 2 * inner);
            _tile_dpbf16ps(2, 5, 6);
            if (width <= SZ_AMX_TILE) continue;
            _tile_loadd(7, right + SZ_AMX_NUMBERS, SZ_AMX_ROW_BYTES);
            _tile_dpbf16ps(1, 4, 7);
            _tile_dpbf16ps(3, 5, 7);
        }
        _tile_stored(0, to, 4 * SZ_PANEL);
        _tile_stored(2, to + SZ_AMX_TILE * SZ_PANEL, 4 * SZ_PANEL);
        if (width <= SZ_AMX_TILE) continue;
        _tile_stored(1, to + SZ_AMX_TILE, 4 * SZ_PANEL);
        _tile_stored(3, to + SZ_AMX_TILE * SZ_PANEL + SZ_AMX_TILE, 4 * SZ_PANEL);
    }
}

/* o [D][32] = V^T P of one panel, or grows by it. */
static inline void sz_amx_output(float *o, const uint16_t *v, const uint16_t *p, int64_t keys,
                                 int64_t width, int64_t dim, bool add)
{
    const bool wide = width > SZ_AMX_TILE;
    for (int64_t d = 0; d < dim; d += 2 * SZ_AMX_TILE) {
        const bool tall = d + SZ_AMX_TILE < dim;
        const uint16_t *left = v + d / SZ_AMX_TILE * SZ_AMX_KEY_STEPS * SZ_AMX_NUMBERS;
        float *upper = o + d * SZ_PANEL;
        float *lower = upper + (tall ? SZ_AMX_TILE * SZ_PANEL : 0);
        if (add) {
            _tile_loadd(0, upper, 4 * SZ_PANEL);
            _tile_loadd(1, upper + SZ_AMX_TILE, 4 * SZ_PANEL);
            _tile_loadd(2, lower, 4 * SZ_PANEL);
            _tile_loadd(3, lower + SZ_AMX_TILE, 4 * SZ_PANEL);
        } else {
            sz_amx_clear_sums();
        }
        for (int64_t j = 0; j < keys; j += SZ_AMX_INNER) {
            const uint16_t *right = p + j * SZ_PANEL;
            const uint16_t *tile = left + j * SZ_AMX_TILE;
            _tile_loadd(6, right, SZ_AMX_ROW_BYTES);
            _tile_loadd(4, tile, SZ_AMX_ROW_BYTES);
            _tile_dpbf16ps(0, 4, 6);
            if (wide) {
                _tile_loadd(7, right + SZ_AMX_NUMBERS, SZ_AMX_ROW_BYTES);
                _tile_dpbf16ps(1, 4, 7);
            }
            if (!tall) continue;
            _tile_loadd(5, tile + SZ_AMX_KEY_STEPS * SZ_AMX_NUMBERS, SZ_AMX_ROW_BYTES);
            _tile_dpbf16ps(2, 5, 6);
            if (wide) _tile_dpbf16ps(3, 5, 7);
        }
        _tile_stored(0, upper, 4 * SZ_PANEL);
        if (wide) _tile_stored(1, upper + SZ_AMX_TILE, 4 * SZ_PANEL);
        if (!tall) continue;
        _tile_stored(2, lower, 4 * SZ_PANEL);
        if (wide) _tile_stored(3, lower + SZ_AMX_TILE, 4 * SZ_PANEL);
    }
}

/* ---- softmax ---- */

/* 2^(x - base), 2e-9 relative before rounding, for whole numbers in base: a power of 2 times a
 * polynomial in what is left of x, which is at most 1/2. 0 where x is -inf; NaN stays NaN. */
static inline __m512 sz_amx_power_of_2(__m512 x, __m512 base)
{
    x = _mm512_max_ps(_mm512_set1_ps(-1e9f), x);
    const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 f = _mm512_sub_ps(x, whole);
    __m512 y = _mm512_set1_ps(1.53458118e-4f);
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(1.33999312e-3f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(9.61848896e-3f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(0.0555032878f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(0.240226469f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(0.693147206f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(y, _mm512_sub_ps(whole, base));
}

/* a and b rounded to bf16, to nearest even: a in the lower half of each lane, b in the upper one. A
 * NaN whose bits are all ones, which arithmetic does not make, would become 0. */
static inline __m512i sz_amx_round_pairs(__m512 a, __m512 b)
{
    const __m512i one = _mm512_set1_epi32(1);
    const __m512i almost_half = _mm512_set1_epi32(0x7fff);
    __m512i low = _mm512_castps_si512(a);
    __m512i high = _mm512_castps_si512(b);
    low = _mm512_add_epi32(low, _mm512_and_si512(_mm512_srli_epi32(low, 16), one));
    low = _mm512_srli_epi32(_mm512_add_epi32(low, almost_half), 16);
    high = _mm512_add_epi32(high, _mm512_and_si512(_mm512_srli_epi32(high, 16), one));
    high = _mm512_add_epi32(high, almost_half);
    return _mm512_mask_blend_epi16(0xaaaaaaaa, low, high);
}

/* The softmax of 16 columns over some keys. s: their scores, in rows of a panel, to be multiplied
 * by scale. p: their tiles of weights, SZ_PANEL * SZ_AMX_INNER numbers apart; rows past the last
 * key are 0. Updates of each column:
 *
 *   max        log2 of what the exponentials are divided by, a whole number. So a weight's mantissa
 *              is the same whatever the maximum is, and it rounds in a decoding step as it does in
 *              a pass over the whole answer.
 *   sum        of the exponentials as rounded: divided by it, the weights add up to 1.
 *   exact_sum  of the exponentials before rounding, for the log-sum-exp.
 *
 * Returns what earlier outputs are to be multiplied by, powers of 2. */
static inline __m512 sz_amx_softmax(uint16_t *p, const float *s, int64_t keys, float scale,
                                    float *max, float *sum, float *exact_sum)
{
    /* The new maximum. If no key has been seen yet, subtract 0: 2^-inf = 0, not NaN. */
    const __m512 unit = _mm512_set1_ps(scale * 1.44269504f);
    const __m512 lowest = _mm512_set1_ps(-__builtin_inff());
    const __m512 before = _mm512_loadu_ps(max);
    __m512 after = lowest;
    for (int64_t j = 0; j < keys; j++)
        after = _mm512_max_ps(after, _mm512_loadu_ps(s + j * SZ_PANEL));
    after = _mm512_roundscale_ps(_mm512_mul_ps(after, unit),
                                 _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    after = _mm512_max_ps(before, after);
    const __mmask16 none = _mm512_cmp_ps_mask(after, lowest, _CMP_EQ_OQ);
    const __m512 base = _mm512_mask_mov_ps(after, none, _mm512_setzero_ps());

    /* The exponentials and their sum. */
    __m512 exact = _mm512_setzero_ps();
    __m512 rounded = _mm512_setzero_ps();
    for (int64_t j = 0; j < sz_amx_inner(keys); j += 2) {
        __m512 e[2] = { { 0 } };
        for (int i = 0; i < 2; i++) {
            if (j + i >= keys) continue;
            const __m512 x = _mm512_loadu_ps(s + (j + i) * SZ_PANEL);
            e[i] = sz_amx_power_of_2(_mm512_mul_ps(x, unit), base);
            exact = _mm512_add_ps(exact, e[i]);
        }
        uint16_t *row = p + (j - j % SZ_AMX_INNER) * SZ_PANEL;
        row += j % SZ_AMX_INNER / 2 * SZ_AMX_INNER;
        const __m512i pairs = sz_amx_round_pairs(e[0], e[1]);
        const __m512i high = _mm512_and_si512(pairs, _mm512_set1_epi32((int)0xffff0000));
        const __m512i low = _mm512_slli_epi32(pairs, 16);
        rounded = _mm512_add_ps(rounded, _mm512_castsi512_ps(low));
        rounded = _mm512_add_ps(rounded, _mm512_castsi512_ps(high));
        _mm512_store_si512(row, pairs);
    }
    const __m512 shrink = _mm512_scalef_ps(_mm512_set1_ps(1), _mm512_sub_ps(before, base));
    _mm512_storeu_ps(sum, _mm512_fmadd_ps(_mm512_loadu_ps(sum), shrink, rounded));
    _mm512_storeu_ps(exact_sum, _mm512_fmadd_ps(_mm512_loadu_ps(exact_sum), shrink, exact));
    _mm512_storeu_ps(max, after);
    return shrink;
}

#endif
#endif
