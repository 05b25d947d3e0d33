/* attention_bf16.h - attention in bf16 with AVX-512: the right operands of its two products, and
 * the softmax between them.
 *
 * The layout is that of attention_tile.h: a panel has 32 columns, its scores are [keys][32] and its
 * output [D][32], both f32. The scores are K Q: K's rows are left operands, and the queries are
 * packed as right ones. The output is V^T P: V is packed as left operands when a tile of keys is
 * loaded, and the softmax writes P as right ones. Queries are not scaled; the softmax does it, so
 * that the products of the scores are exact. P is rounded to bf16, as PyTorch does.
 *
 * The products are tiles of AMX (attention_amx.h) or of words (attention_pairs.h). Each has a right
 * operand in blocks of 32 numbers along the inner dimension, and a block has 16 rows of words for
 * each half of the panel: two tiles of AMX, or the halves side by side.
 *
 * Compiled to nothing except for processors with AVX-512 for bytes and words.
 * Leaves out: heads narrower than 16, and those whose width is no multiple of SZ_HEAD_STEP. They
 * use f32 vectors.
 */
#ifndef SZ_ATTENTION_BF16_H
#define SZ_ATTENTION_BF16_H

#include "bf16_words.h"
#ifdef SZ_HAS_WORDS

#include "attention_args.h"
#include "attention_product.h"

enum {
    SZ_INNER = 32, /* numbers of a block along the inner dimension */
#ifdef SZ_AMX
    SZ_HEAD_STEP = 16,
    SZ_RIGHT_ROW = SZ_INNER,             /* numbers from row to row of a right operand, */
    SZ_RIGHT_HALF = SZ_WORDS * SZ_INNER, /* and from half to half */
#else
    SZ_HEAD_STEP = 8,
    SZ_RIGHT_ROW = 2 * SZ_PANEL,
    SZ_RIGHT_HALF = SZ_PANEL,
#endif
};

/* Rows of keys and of values, ldk and ldv numbers apart. */
typedef struct {
    const uint16_t *k, *v;
    int64_t ldk, ldv;
} sz_bf16_rows;

/* A tile of keys as left operands. Rows of keys are ldk numbers apart. */
typedef struct {
    const uint16_t *k, *v;
    int64_t ldk;
} sz_bf16_keys;

/* What attention_amx.h and attention_pairs.h have: */

/* Before the first product of a block, and after the last one. */
static inline void sz_bf16_begin(void);
static inline void sz_bf16_end(void);

/* A tile's left operands, in the buffers k and v or where they are. columns: those of the block
 * that uses them. */
static inline sz_bf16_keys sz_bf16_load(uint16_t *k, uint16_t *v, const sz_bf16_rows *r,
                                        int64_t keys, int64_t dim, int64_t columns);

/* s [keys][32] = K Q of one panel with that many columns in use. */
static inline void sz_bf16_scores(float *s, const sz_bf16_keys *t, const uint16_t *q, int64_t keys,
                                  int64_t columns, int64_t dim, sz_ahead *ahead);

/* o [D][32] = V^T P of one panel, or grows by it. */
static inline void sz_bf16_output(float *o, const sz_bf16_keys *t, const uint16_t *p, int64_t keys,
                                  int64_t columns, int64_t dim, bool add, sz_ahead *ahead);

/* An inner dimension, such as a head's width, in whole blocks: the numbers after its end are 0. */
static inline int64_t sz_bf16_inner(int64_t dim) { return sz_round_up(dim, SZ_INNER); }

/* Columns as right operands, one panel after the other, from where each has its dim numbers. The
 * last half is filled with copies of the last column. */
static inline void sz_bf16_pack_columns(uint16_t *to, const uint16_t *const *rows, int64_t n,
                                        int64_t dim)
{
    const int64_t inner = sz_bf16_inner(dim);
    for (int64_t c = 0; c < n; c += SZ_WORDS) {
        const int64_t half = c % SZ_PANEL / SZ_WORDS;
        uint16_t *panel = to + c / SZ_PANEL * SZ_PANEL * inner + half * SZ_RIGHT_HALF;
        for (int64_t d = 0; d < inner; d += SZ_INNER) {
            const __mmask32 mask = dim - d < SZ_INNER ? (1u << (dim - d)) - 1 : 0xffffffff;
            __m512i r[SZ_WORDS];
            for (int i = 0; i < SZ_WORDS; i++)
                r[i] = _mm512_maskz_loadu_epi16(mask, rows[c + i < n ? c + i : n - 1] + d);
            sz_words_transpose(r);
            sz_words_store(panel + d * SZ_PANEL, SZ_RIGHT_ROW, r);
        }
    }
}

/* ---- softmax ---- */

/* 2^(x - base), 2e-9 relative before rounding, for whole numbers in base: a power of 2 times a
 * polynomial in what is left of x, which is at most 1/2. 0 where x is -inf; NaN stays NaN. */
static inline __m512 sz_bf16_power_of_2(__m512 x, __m512 base)
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
 * NaN whose bits are all ones, which arithmetic does not make, may become 0. */
static inline __m512i sz_bf16_round_pairs(__m512 a, __m512 b)
{
#ifdef SZ_HAS_PAIRS
    return sz_pairs_weave(sz_pairs_round_rows((sz_vec)a, (sz_vec)b));
#else
    const __m512i one = _mm512_set1_epi32(1);
    const __m512i almost_half = _mm512_set1_epi32(0x7fff);
    __m512i low = _mm512_castps_si512(a);
    __m512i high = _mm512_castps_si512(b);
    low = _mm512_add_epi32(low, _mm512_and_si512(_mm512_srli_epi32(low, 16), one));
    low = _mm512_srli_epi32(_mm512_add_epi32(low, almost_half), 16);
    high = _mm512_add_epi32(high, _mm512_and_si512(_mm512_srli_epi32(high, 16), one));
    high = _mm512_add_epi32(high, almost_half);
    return _mm512_mask_blend_epi16(0xaaaaaaaa, low, high);
#endif
}

/* sum + both numbers of each lane of pairs. */
static inline __m512 sz_bf16_add_pairs(__m512 sum, __m512i pairs)
{
#ifdef SZ_HAS_PAIRS
    const __m512i ones = _mm512_set1_epi32(0x3f803f80);
    return (__m512)sz_pairs_add((sz_vec)sum, (sz_vec)pairs, (sz_vec)ones);
#else
    const __m512i high = _mm512_and_si512(pairs, _mm512_set1_epi32((int)0xffff0000));
    const __m512i low = _mm512_slli_epi32(pairs, 16);
    sum = _mm512_add_ps(sum, _mm512_castsi512_ps(low));
    return _mm512_add_ps(sum, _mm512_castsi512_ps(high));
#endif
}

/* The softmax of 16 columns over some keys. s: their scores, in rows of a panel, to be multiplied
 * by scale. p: their half of a right operand of weights; rows past the last key are 0. Updates of
 * each column:
 *
 *   max        log2 of what the exponentials are divided by, a whole number. So a weight's mantissa
 *              is the same whatever the maximum is, and it rounds in a decoding step as it does in
 *              a pass over the whole answer.
 *   sum        of the exponentials as rounded: divided by it, the weights add up to 1.
 *   exact_sum  of the exponentials before rounding, for the log-sum-exp.
 *
 * Returns what earlier outputs are to be multiplied by, powers of 2. */
static inline __m512 sz_bf16_softmax(uint16_t *p, const float *s, int64_t keys, float scale,
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
    for (int64_t j = 0; j < sz_bf16_inner(keys); j += 2) {
        __m512 e[2] = { { 0 } };
        for (int i = 0; i < 2; i++) {
            if (j + i >= keys) continue;
            const __m512 x = _mm512_loadu_ps(s + (j + i) * SZ_PANEL);
            e[i] = sz_bf16_power_of_2(_mm512_mul_ps(x, unit), base);
            exact = _mm512_add_ps(exact, e[i]);
        }
        uint16_t *row = p + (j - j % SZ_INNER) * SZ_PANEL;
        row += j % SZ_INNER / 2 * SZ_RIGHT_ROW;
        const __m512i pairs = sz_bf16_round_pairs(e[0], e[1]);
        rounded = sz_bf16_add_pairs(rounded, pairs);
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
