/* attention_amx.h - attention's two products in bf16 with AMX, and their left operands
 * (attention_bf16.h).
 *
 * Compiled to nothing except for processors with AMX.
 * Leaves out: the right operands, the softmax.
 */
#ifndef SZ_ATTENTION_AMX_H
#define SZ_ATTENTION_AMX_H
#ifdef SZ_AMX

#include "amx.h"
#include "attention_bf16.h"

enum {
    SZ_AMX_NUMBERS = SZ_AMX_TILE * SZ_INNER, /* in a tile */
    SZ_AMX_KEY_STEPS = SZ_KEYS / SZ_INNER,
};

static inline void sz_bf16_begin(void) { sz_amx_begin(); }
static inline void sz_bf16_end(void) { sz_amx_end(); }

/* ---- packing ---- */

/* Keys as left operands: rows [keys][inner] from rows ld apart. Scores of rows that are not written
 * are not used. Rows of the values, ldv apart, are fetched on the way. */
static inline void sz_amx_pack_keys(uint16_t *to, const uint16_t *rows, int64_t ld, int64_t keys,
                                    int64_t dim, const uint16_t *values, int64_t ldv)
{
    enum { PREFETCH_ROWS = 6 };
    const int64_t inner = sz_bf16_inner(dim);
    for (int64_t j = 0; j < keys; j++, rows += ld, values += ldv, to += inner) {
        for (int64_t d = 0; d < dim; d += SZ_INNER) {
            _mm_prefetch((const char *)(rows + PREFETCH_ROWS * ld + d), _MM_HINT_T0);
            _mm_prefetch((const char *)(values + d), _MM_HINT_T1);
        }
        for (int64_t d = 0; d < inner; d += SZ_INNER) {
            const __mmask32 mask = d + SZ_INNER <= dim ? 0xffffffff : 0xffff;
            _mm512_store_si512(to + d, _mm512_maskz_loadu_epi16(mask, rows + d));
        }
    }
}

/* Values as left operands: V^T, [D / 16][SZ_AMX_KEY_STEPS] tiles, from rows ld apart. Keys up to
 * the next multiple of 32 are 0. */
static inline void sz_amx_pack_values(uint16_t *to, const uint16_t *rows, int64_t ld, int64_t keys,
                                      int64_t dim)
{
    for (int64_t j = 0; j < keys; j += SZ_INNER)
        for (int64_t d = 0; d < dim; d += SZ_AMX_TILE) {
            __m512i r[SZ_AMX_TILE];
            sz_words_load_pairs(r, rows + j * ld + d, ld, SZ_AMX_TILE, keys - j);
            sz_words_transpose(r);
            uint16_t *tile = to +
                             (d / SZ_AMX_TILE * SZ_AMX_KEY_STEPS + j / SZ_INNER) * SZ_AMX_NUMBERS;
            sz_words_store(tile, SZ_INNER, r);
        }
}

static inline sz_bf16_keys sz_bf16_load(uint16_t *k, uint16_t *v, const sz_bf16_rows *r,
                                        int64_t keys, int64_t dim, int64_t columns)
{
    (void)columns;
    sz_amx_pack_keys(k, r->k, r->ldk, keys, dim, r->v, r->ldv);
    sz_amx_pack_values(v, r->v, r->ldv, keys, dim);
    return (sz_bf16_keys){ k, v, sz_bf16_inner(dim) };
}

/* ---- products ---- */

static inline void sz_bf16_scores(float *s, const sz_bf16_keys *t, const uint16_t *q, int64_t keys,
                                  int64_t columns, int64_t dim, sz_ahead *ahead)
{
    (void)ahead;
    const int64_t inner = sz_bf16_inner(dim);
    const int64_t half = SZ_AMX_TILE * inner;
    for (int64_t j = 0; j < keys; j += SZ_INNER) {
        const uint16_t *rows = t->k + j * inner;
        float *to = s + j * SZ_PANEL;
        sz_amx_clear_sums();
        for (int64_t d = 0; d < inner; d += SZ_INNER) {
            const uint16_t *right = q + d * SZ_PANEL;
            _tile_loadd(6, right, SZ_AMX_ROW_BYTES);
            _tile_loadd(4, rows + d, 2 * inner);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(5, rows + half + d, 2 * inner);
            _tile_dpbf16ps(2, 5, 6);
            if (columns <= SZ_AMX_TILE) continue;
            _tile_loadd(7, right + SZ_AMX_NUMBERS, SZ_AMX_ROW_BYTES);
            _tile_dpbf16ps(1, 4, 7);
            _tile_dpbf16ps(3, 5, 7);
        }
        _tile_stored(0, to, 4 * SZ_PANEL);
        _tile_stored(2, to + SZ_AMX_TILE * SZ_PANEL, 4 * SZ_PANEL);
        if (columns <= SZ_AMX_TILE) continue;
        _tile_stored(1, to + SZ_AMX_TILE, 4 * SZ_PANEL);
        _tile_stored(3, to + SZ_AMX_TILE * SZ_PANEL + SZ_AMX_TILE, 4 * SZ_PANEL);
    }
}

static inline void sz_bf16_output(float *o, const sz_bf16_keys *t, const uint16_t *p, int64_t keys,
                                  int64_t columns, int64_t dim, bool add, sz_ahead *ahead)
{
    (void)ahead;
    const bool wide = columns > SZ_AMX_TILE;
    for (int64_t d = 0; d < dim; d += 2 * SZ_AMX_TILE) {
        const bool tall = d + SZ_AMX_TILE < dim;
        const uint16_t *left = t->v + d / SZ_AMX_TILE * SZ_AMX_KEY_STEPS * SZ_AMX_NUMBERS;
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
        for (int64_t j = 0; j < keys; j += SZ_INNER) {
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

#endif
#endif
