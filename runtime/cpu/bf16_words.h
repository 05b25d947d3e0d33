/* bf16_words.h - numbers of bf16 two by two in 32-bit words, 16 words in a vector of AVX-512.
 *
 * The right operands of products in bf16 are made of them (amx.h, attention_bf16.h): a word has two
 * numbers that follow each other along the inner dimension. AVX512-BF16 multiplies two vectors of
 * words and adds both products of each lane to a float; denormal numbers count as 0 there. Whether
 * that suits the processor, sz_gemm_multiplies_bf16 says.
 * Leaves out: other kinds of processors, for which this file is empty.
 */
#ifndef SZ_BF16_WORDS_H
#define SZ_BF16_WORDS_H
#if defined(__AVX512BW__) && defined(__AVX512VL__)
#define SZ_HAS_WORDS

#include "gemm_tile.h"
#include <immintrin.h>
#include <stdint.h>

enum { SZ_WORDS = 16 }; /* of a vector */
typedef float sz_half_floats __attribute__((vector_size(2 * SZ_WORDS)));

/* Words of two rows: `low` in their lower halves, `high` in the upper ones. */
static inline __m512i sz_words_weave(__m256i low, __m256i high)
{
    return _mm512_or_si512(_mm512_cvtepu16_epi32(low),
                           _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
}

/* Rounds to nearest even, as sz_to_bf16 does. */
static inline __m256i sz_words_round_16(__m512 v)
{
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}

/* 32 numbers of bf16, those of low first. */
static inline __m512i sz_words_round_32(__m512 low, __m512 high)
{
    const __m512i first = _mm512_castsi256_si512(sz_words_round_16(low));
    return _mm512_inserti64x4(first, sz_words_round_16(high), 1);
}

/* 32 rows of 16 columns of bf16 from rows ld apart, two rows in each vector: a tile of the right
 * operand whose inner dimension goes down. What is past `columns` or `height` is 0. */
static inline void sz_words_load_pairs(__m512i r[SZ_WORDS], const uint16_t *first, int64_t ld,
                                       int64_t columns, int64_t height)
{
    const __mmask16 mask = columns >= SZ_WORDS ? 0xffff : (__mmask16)((1u << columns) - 1);
    for (int i = 0; i < SZ_WORDS; i++) {
        const int64_t row = 2 * i;
        const __mmask16 even = row < height ? mask : 0;
        const __mmask16 odd = row + 1 < height ? mask : 0;
        const __m256i a = _mm256_maskz_loadu_epi16(even, first + (even ? row : 0) * ld);
        const __m256i b = _mm256_maskz_loadu_epi16(odd, first + (odd ? row + 1 : 0) * ld);
        r[i] = sz_words_weave(a, b);
    }
}

/* Stores a tile of bf16 as rows ld apart. */
static inline void sz_words_store(uint16_t *to, int64_t ld, const __m512i r[SZ_WORDS])
{
    for (int i = 0; i < SZ_WORDS; i++) _mm512_storeu_si512(to + i * ld, r[i]);
}

/* Transposes 16 rows of 16 words. */
static inline __attribute__((always_inline)) void sz_words_transpose(__m512i r[SZ_WORDS])
{
    __m512i t[SZ_WORDS];

    /* Pairs of rows, then fours: lane 128 bits l of t[4 i + j] has column 4 l + j of rows 4 i .. */
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }

    /* Lanes of 128 bits from four rows apart. */
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        const __m512i a = _mm512_shuffle_i32x4(r[j], r[4 + j], 0x88);
        const __m512i b = _mm512_shuffle_i32x4(r[j], r[4 + j], 0xdd);
        const __m512i c = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0x88);
        const __m512i d = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0xdd);
        t[j] = _mm512_shuffle_i32x4(a, c, 0x88);
        t[4 + j] = _mm512_shuffle_i32x4(b, d, 0x88);
        t[8 + j] = _mm512_shuffle_i32x4(a, c, 0xdd);
        t[12 + j] = _mm512_shuffle_i32x4(b, d, 0xdd);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) r[i] = t[i];
}

/* ---- products ---- */

/* The functions of SZ_HAS_PAIRS may be called only if sz_gemm_multiplies_bf16() says so. A kind
 * with AMX has no use for them. */
#ifndef SZ_AMX
#define SZ_HAS_PAIRS

/* Numbers of bf16 may begin at any of them. */
typedef uint32_t sz_any_word __attribute__((may_alias, aligned(2)));

/* sum + both products of a and b in each lane. As assembly, since GCC has the instruction only in
 * functions for processors that all have it. */
static inline __attribute__((always_inline)) sz_vec sz_pairs_add(sz_vec sum, sz_vec a, sz_vec b)
{
    __asm__("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    return sum;
}

/* All of a, then all of b, rounded to bf16, to nearest even. */
static inline __m512i sz_pairs_round_rows(sz_vec a, sz_vec b)
{
    __m512i both;
    __asm__("vcvtne2ps2bf16 %1, %2, %0" : "=v"(both) : "v"(a), "v"(b));
    return both;
}

/* The same as words: a in the lower half of each, b in the upper one. */
static inline __m512i sz_pairs_weave(__m512i rows)
{
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i from_b = _mm512_add_epi32(lane, _mm512_set1_epi32(SZ_WORDS));
    const __m512i order = _mm512_or_si512(lane, _mm512_slli_epi32(from_b, 16));
    return _mm512_permutexvar_epi16(order, rows);
}

/* Stores both rows, ld numbers apart. */
static inline void sz_pairs_store_rows(uint16_t *to, int64_t ld, __m512i rows)
{
    _mm256_storeu_si256((__m256i_u *)to, _mm512_castsi512_si256(rows));
    _mm256_storeu_si256((__m256i_u *)(to + ld), _mm512_extracti64x4_epi64(rows, 1));
}

/* The word at `at` in all lanes. */
static inline __attribute__((always_inline)) sz_vec sz_pairs_spread(const void *at)
{
    return (sz_vec)_mm512_set1_epi32((int)*(const sz_any_word *)at);
}

/* sz_pairs_add of the word at `at`, in half a vector. */
static inline __attribute__((always_inline)) sz_half_floats sz_pairs_add_half(sz_half_floats sum,
                                                                              const void *at,
                                                                              sz_half_floats b)
{
    const __m256i a = _mm256_set1_epi32((int)*(const sz_any_word *)at);
    __asm__("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    return sum;
}
#endif

#endif
#endif
