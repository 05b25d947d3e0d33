/* packed_x.h - rows that meet 8 and 4-bit weights are rounded to 8 bits (int8.h) here.
 * Leaves out: where the kernels put the codes (int8.c, int4.c, packed_amx.c).
 */
#ifndef SZ_PACKED_X_H
#define SZ_PACKED_X_H

#include "int8.h"
#include "vecmath.h"
#ifdef __AVX512BW__
#include <immintrin.h>

/* sz_quantize_group for the first n columns of a group of bf16, in registers. */
static inline __attribute__((always_inline)) int32_t sz_quantize_bf16(const uint16_t *x,
                                                                      const int64_t n,
                                                                      int8_t codes[SZ_Q_GROUP],
                                                                      float *scale)
{
    enum { VECTORS_OF_X = SZ_Q_GROUP / 16 };
    __m512 v[VECTORS_OF_X];
    __m512i most = _mm512_setzero_si512();
#pragma GCC unroll 16
    for (int i = 0; i < VECTORS_OF_X; i++) {
        const int64_t left = n - 16 * i;
        const __mmask16 some = left >= 16 ? 0xffff : (__mmask16)((1u << (left > 0 ? left : 0)) - 1);
        const __m256i halves = _mm256_maskz_loadu_epi16(some, x + 16 * i);
        const __m512i bits = _mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16);
        most = _mm512_max_epi32(most, _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff)));
        v[i] = _mm512_castsi512_ps(bits);
    }

    float inverse;
    *scale = sz_q_scale_of(_mm512_reduce_max_epi32(most), &inverse);
    const __mmask16 kept = inverse == 0 ? 0 : 0xffff;
    const __m512 factor = _mm512_set1_ps(inverse);
    __m512i sum = _mm512_setzero_si512();
#pragma GCC unroll 16
    for (int i = 0; i < VECTORS_OF_X; i++) {
        const __m512i code = _mm512_maskz_cvtps_epi32(kept, _mm512_mul_ps(v[i], factor));
        sum = _mm512_add_epi32(sum, code);
        _mm_storeu_si128((__m128i_u *)(codes + 16 * i), _mm512_cvtepi32_epi8(code));
    }
    return _mm512_reduce_add_epi32(sum);
}
#endif

/* Rounds columns 256 g to 256 g + 255 of row i of x, f32 or bf16 [n, k], to codes; those past the
 * end are 0. *scale: what a code is worth. All codes are 0 if an element is not finite; then the
 * scale is NaN. Returns the sum of the codes. */
static inline int32_t sz_quantize_group(const sz_tensor *x, int64_t i, int64_t g,
                                        int8_t codes[SZ_Q_GROUP], float *scale)
{
    const int64_t k = sz_cols(x);
    const int64_t first = i * k + g * SZ_Q_GROUP;
    const int64_t n = sz_min64(SZ_Q_GROUP, k - g * SZ_Q_GROUP);
#ifdef __AVX512BW__
    /* Nearly all groups are whole: a constant needs no masks. */
    if (n == SZ_Q_GROUP && x->dtype == SZ_BF16)
        return sz_quantize_bf16(sz_bf16(x) + first, SZ_Q_GROUP, codes, scale);
    if (x->dtype == SZ_BF16) return sz_quantize_bf16(sz_bf16(x) + first, n, codes, scale);
#endif
    float v[SZ_Q_GROUP];
    if (n == SZ_Q_GROUP && x->dtype == SZ_BF16) {
        /* Nearly all groups: a loop of constant length becomes vectors. */
        sz_bf16_to_f32(v, sz_bf16(x) + first, SZ_Q_GROUP);
    } else {
        memset(v, 0, sizeof v);
        if (x->dtype == SZ_F32) memcpy(v, sz_f32(x) + first, (size_t)n * sizeof *v);
        else sz_bf16_to_f32(v, sz_bf16(x) + first, n);
    }

    float inverse;
    *scale = sz_q_scale(v, SZ_Q_GROUP, &inverse);
    if (inverse == 0) memset(v, 0, sizeof v);
    int32_t sum = 0;
    for (int j = 0; j < SZ_Q_GROUP; j++) {
        const int32_t code = (int32_t)rintf(v[j] * inverse);
        codes[j] = (int8_t)code;
        sum += code;
    }
    return sum;
}

/* Two signed bytes, in the low halves of 16 bits each, widened to the 16 bits: the sign 0x80 times
 * 0x1fe is 0xff00. */
static inline uint32_t sz_widen_bytes(uint32_t bytes)
{
    return bytes | (bytes & 0x00800080u) * 0x1fe;
}

/* Four codes as products read them: in one word as they are, or in two words, the even and then the
 * odd ones in 16 bits each. */
static inline void sz_put_word(int32_t *to, const int8_t *codes, const int words)
{
    uint32_t all;
    memcpy(&all, codes, sizeof all);
    if (words == 1) {
        to[0] = (int32_t)all;
    } else {
        to[0] = (int32_t)sz_widen_bytes(all & 0x00ff00ffu);
        to[1] = (int32_t)sz_widen_bytes(all >> 8 & 0x00ff00ffu);
    }
}

#endif
