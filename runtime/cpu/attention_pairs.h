/* attention_pairs.h - attention's two products of words of bf16 with AVX512-BF16, and their left
 * operands (attention_bf16.h).
 *
 * The left operands are rows of keys as they are, and values [keys / 2][D] in words of two keys.
 * Both products are those of f32 (attention_product.h) with words in place of floats.
 *
 * Compiled to nothing except for processors with AVX-512 and without AMX.
 * Leaves out: the right operands, the softmax.
 */
#ifndef SZ_ATTENTION_PAIRS_H
#define SZ_ATTENTION_PAIRS_H

#include "attention_bf16.h"
#ifdef SZ_HAS_PAIRS

static inline void sz_bf16_begin(void) {}
static inline void sz_bf16_end(void) {}

/* Fetches the row that comes a few rows later. */
static inline void sz_pairs_fetch(const uint16_t *rows, int64_t ld, int64_t dim)
{
    enum { PREFETCH_ROWS = 6 };
    for (int64_t d = 0; d < dim; d += SZ_INNER) __builtin_prefetch(rows + PREFETCH_ROWS * ld + d);
}

/* Words of two rows of dim numbers; without a second one their upper halves are 0. */
static inline void sz_pairs_pack_two(uint16_t *to, const uint16_t *first, const uint16_t *second,
                                     int64_t dim)
{
    for (int64_t d = 0; d < dim; d += SZ_WORDS) {
        const __mmask16 mask = dim - d < SZ_WORDS ? (1u << (dim - d)) - 1 : 0xffff;
        const __mmask16 both = second ? mask : 0;
        const __m256i low = _mm256_maskz_loadu_epi16(mask, first + d);
        const __m256i high = _mm256_maskz_loadu_epi16(both, (second ? second : first) + d);
        _mm512_mask_storeu_epi32(to + 2 * d, mask, sz_words_weave(low, high));
    }
}

/* Rows in words of two: [(n + 1) / 2][dim]. */
static inline void sz_pairs_pack_rows(uint16_t *to, const uint16_t *rows, int64_t ld, int64_t n,
                                      int64_t dim)
{
    for (int64_t i = 0; i < n; i += 2, rows += 2 * ld, to += 2 * dim) {
        sz_pairs_fetch(rows, ld, dim);
        sz_pairs_fetch(rows + ld, ld, dim);
        sz_pairs_pack_two(to, rows, i + 1 < n ? rows + ld : NULL, dim);
    }
}

/* Keys next to each other. */
static inline void sz_pairs_pack_keys(uint16_t *to, const uint16_t *rows, int64_t ld, int64_t keys,
                                      int64_t dim)
{
    for (int64_t j = 0; j < keys; j++, rows += ld, to += dim) {
        sz_pairs_fetch(rows, ld, dim);
        memcpy(to, rows, (size_t)dim * sizeof *to);
    }
}

static inline sz_bf16_keys sz_bf16_load(uint16_t *k, uint16_t *v, const sz_bf16_rows *r,
                                        int64_t keys, int64_t dim, int64_t columns)
{
    const bool copied = columns > SZ_IN_PLACE;
    if (copied) sz_pairs_pack_keys(k, r->k, r->ldk, keys, dim);
    sz_pairs_pack_rows(v, r->v, r->ldv, keys, dim);
    if (copied) return (sz_bf16_keys){ k, v, dim };
    return (sz_bf16_keys){ r->k, v, r->ldk };
}

static inline void sz_bf16_scores(float *s, const sz_bf16_keys *t, const uint16_t *q, int64_t keys,
                                  int64_t columns, int64_t dim, sz_ahead *ahead)
{
    sz_tile_pairs(keys, columns, dim / 2, t->k, t->ldk / 2, 1, q, SZ_PANEL, s, SZ_PANEL, SZ_SET,
                  ahead);
}

static inline void sz_bf16_output(float *o, const sz_bf16_keys *t, const uint16_t *p, int64_t keys,
                                  int64_t columns, int64_t dim, bool add, sz_ahead *ahead)
{
    sz_tile_pairs(dim, columns, (keys + 1) / 2, t->v, 1, dim, p, SZ_PANEL, o, SZ_PANEL,
                  add ? SZ_CHAIN : SZ_SET, ahead);
}

#endif
#endif
