/* int4_lanes.h - what each kind of processor does with one vector of 4-bit weights.
 *
 *   sz_q4_unpack, sz_q4_load_parts, sz_q4_load_scale    weights from memory
 *   sz_q4_start                                         what a sum begins with, from codes of x
 *   sz_q4_dot4, sz_q4_add_parts                         sums of products, times the parts
 *   sz_q4_times_part                                    the parts first, then sz_q4_dot4
 *
 * A vector has a row of weights in each lane.
 * Leaves out: tiles of several vectors and rows of x (int4.c).
 */
#ifndef SZ_INT4_LANES_H
#define SZ_INT4_LANES_H

#include "int4.h"
#include "gemm_tile.h"

/* Four codes of x take SZ_Q4_X_WORDS words. SZ_Q4_SUMS_OF_16: two sums of 16 bits in each lane. */
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
enum { SZ_Q4_X_WORDS = 1, SZ_Q4_SUMS_OF_16 = 0 };
#elif defined(__AVX2__)
enum { SZ_Q4_X_WORDS = 1, SZ_Q4_SUMS_OF_16 = 1 };
#else
enum { SZ_Q4_X_WORDS = 2, SZ_Q4_SUMS_OF_16 = 0 };
#endif

/* What is added to a weight without its scale, so that it is an unsigned byte. */
enum { SZ_Q4_BYTE_ZERO = 128 };

typedef int8_t sz_part_vec __attribute__((vector_size(SZ_LANES), aligned(1), may_alias));
typedef uint16_t sz_scale_vec __attribute__((vector_size(2 * SZ_LANES), aligned(2), may_alias));

/* ---- x ---- */

/* The start of 16 codes: one sum, or one of the first two and one of the last two of each word. */
static inline int32_t sz_q4_start(const int8_t *codes)
{
#ifdef __AVX2__
    /* Sums of two, then four, then eight codes, all times 8: they fit 16 bits. */
    const __m128i eight = _mm_set1_epi8(SZ_Q4_ZERO);
    __m128i sums = _mm_maddubs_epi16(eight, _mm_loadu_si128((const __m128i_u *)codes));
    sums = _mm_add_epi16(sums, _mm_srli_si128(sums, 8));
    sums = _mm_add_epi16(sums, _mm_srli_si128(sums, 4));
    const __m128i signs = _mm_set1_epi16(-1);
    if (SZ_Q4_SUMS_OF_16) return _mm_cvtsi128_si32(_mm_sign_epi16(sums, signs));
    return _mm_cvtsi128_si32(_mm_madd_epi16(sums, signs));
#else
    int32_t sum = 0;
    for (int j = 0; j < SZ_Q4_GROUP; j++) sum += codes[j];
    return -SZ_Q4_ZERO * sum;
#endif
}

/* ---- weights ---- */

/* Four codes of weights in each lane as sz_q4_dot4 reads them: unsigned bytes; or the even and the
 * odd ones apart, in 16 bits each. */
typedef struct {
    sz_uvec part[SZ_Q4_X_WORDS];
} sz_q4_words;

/* The low four bits of each byte. */
static inline __attribute__((always_inline)) sz_q4_words sz_q4_unpack(sz_uvec bytes)
{
    sz_q4_words w;
    if (SZ_Q4_X_WORDS == 1) {
        w.part[0] = bytes & 0x0f0f0f0fu;
    } else {
        w.part[0] = bytes & 0x000f000fu;
        w.part[SZ_Q4_X_WORDS - 1] = bytes >> 8 & 0x000f000fu;
    }
    return w;
}

/* sums += the products of four codes in each lane of w with the four signed ones of x. */
static inline __attribute__((always_inline)) void sz_q4_dot4(sz_ivec *sums, const sz_q4_words *w,
                                                             const int32_t *x)
{
#if defined(__AVX512VNNI__)
    /* x comes from memory. GCC would load it first, and with many sums store it on the stack. */
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(*sums) : "v"(w->part[0]), "m"(*x));
#elif defined(__AVXVNNI__)
    *sums = (sz_ivec)_mm256_dpbusd_avx_epi32((__m256i)*sums, (__m256i)w->part[0],
                                             _mm256_set1_epi32(*x));
#elif defined(__AVX512BW__)
    *sums = (sz_ivec)_mm512_add_epi16(
        (__m512i)*sums, _mm512_maddubs_epi16((__m512i)w->part[0], _mm512_set1_epi32(*x)));
#elif defined(__AVX2__)
    *sums = (sz_ivec)_mm256_add_epi16(
        (__m256i)*sums, _mm256_maddubs_epi16((__m256i)w->part[0], _mm256_set1_epi32(*x)));
#else
    const sz_ivec zero = { 0 };
    *sums += sz_dot2((sz_ivec)w->part[0], x[0] - zero);
    *sums += sz_dot2((sz_ivec)w->part[SZ_Q4_X_WORDS - 1], x[SZ_Q4_X_WORDS - 1] - zero);
#endif
    SZ_IN_REGISTER(*sums);
}

/* Signed bytes and the high halves of floats, one for each lane. GCC 12 would widen them one by
 * one. */
static inline __attribute__((always_inline)) sz_uvec sz_q4_widen(const uint8_t *bytes)
{
#if defined(__AVX512BW__)
    return (sz_uvec)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i_u *)bytes));
#elif defined(__AVX2__)
    return (sz_uvec)_mm256_cvtepi8_epi32(_mm_loadu_si64(bytes));
#elif defined(__x86_64__)
    const __m128i b = _mm_loadu_si32(bytes);
    const __m128i twice = _mm_unpacklo_epi8(b, b);
    return (sz_uvec)_mm_srai_epi32(_mm_unpacklo_epi16(twice, twice), 24);
#else
    return (sz_uvec) __builtin_convertvector(*(const sz_part_vec *)bytes, sz_ivec);
#endif
}

static inline __attribute__((always_inline)) sz_vec sz_q4_load_scale(const uint16_t *scale)
{
#if defined(__AVX512BW__)
    const __m256i halves = _mm256_loadu_si256((const __m256i_u *)scale);
    return (sz_vec)((sz_uvec)_mm512_cvtepu16_epi32(halves) << 16);
#elif defined(__AVX2__)
    const __m128i halves = _mm_loadu_si128((const __m128i_u *)scale);
    return (sz_vec)((sz_uvec)_mm256_cvtepu16_epi32(halves) << 16);
#elif defined(__x86_64__)
    return (sz_vec)_mm_unpacklo_epi16(_mm_setzero_si128(), _mm_loadu_si64(scale));
#else
    return (sz_vec)(__builtin_convertvector(*(const sz_scale_vec *)scale, sz_uvec) << 16);
#endif
}

/* The parts of a vector's rows, for the multiplication below: in the low half of each lane, and
 * again in the high half where a sum has two. */
static inline __attribute__((always_inline)) sz_ivec sz_q4_load_parts(const uint8_t *parts)
{
    const sz_uvec p = sz_q4_widen(parts);
    if (SZ_Q4_SUMS_OF_16) return (sz_ivec)(p << 16 | (p & 0xffff));
    return (sz_ivec)(p & 0xffff);
}

/* total + part times the sum of 16 products, which fits 16 bits. */
static inline __attribute__((always_inline)) sz_ivec sz_q4_add_parts(sz_ivec total, sz_ivec sum,
                                                                     sz_ivec part)
{
#if defined(__AVX512VNNI__)
    return (sz_ivec)_mm512_dpwssd_epi32((__m512i)total, (__m512i)sum, (__m512i)part);
#elif defined(__AVXVNNI__)
    return (sz_ivec)_mm256_dpwssd_avx_epi32((__m256i)total, (__m256i)sum, (__m256i)part);
#else
    return total + sz_dot2(sum, part);
#endif
}

/* The parts of a vector's rows for sz_q4_times_part, in each 16 bits of a lane, and
 * SZ_Q4_BYTE_ZERO - 8 part in each byte. */
typedef struct {
    sz_half_words part, zero;
} sz_q4_byte_parts;

static inline __attribute__((always_inline)) sz_q4_byte_parts sz_q4_load_byte_parts(
    const uint8_t *parts)
{
    const sz_uvec p = sz_q4_widen(parts);
    const sz_half_words part = (sz_half_words)(p << 16 | (p & 0xffff));
    return (sz_q4_byte_parts){ part, SZ_Q4_BYTE_ZERO * 0x101 - part * (SZ_Q4_ZERO * 0x101) };
}

/* Weights without their scales, plus SZ_Q4_BYTE_ZERO, in the bytes of each lane. One multiplication
 * is for two codes: each result is from 8 to 248, so it fits its byte, and neither borrows from the
 * other. */
static inline __attribute__((always_inline)) sz_q4_words sz_q4_times_part(
    sz_q4_words codes, const sz_q4_byte_parts *parts)
{
    codes.part[0] = (sz_uvec)((sz_half_words)codes.part[0] * parts->part + parts->zero);
    return codes;
}

#endif
