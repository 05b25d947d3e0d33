/* int8_lanes.h - what each kind of processor does with one vector of 8-bit weights; rows of x in 8
 * bits.
 *
 * A vector has a row of weights in each lane.
 * Leaves out: tiles of several vectors and rows of x (int8.c, int8_many.c).
 */
#ifndef SZ_INT8_LANES_H
#define SZ_INT8_LANES_H

#include "int8.h"
#include "gemm_tile.h"

/* Four codes of x take SZ_Q_X_WORDS words. */
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
#define SZ_Q_X_WORDS 1
#else
#define SZ_Q_X_WORDS 2
#endif

/* A block of 16 rows of weights is SZ_Q_VECTORS vectors of SZ_LANES rows. */
enum { SZ_Q_VECTORS = SZ_Q_ROWS / SZ_LANES };

/* Rows of x in 8 bits, in blocks of a tile's rows (the last may have fewer): words
 * [words][rows][SZ_Q_X_WORDS] of four codes, and for each group scale [groups][rows] and start
 * [groups][rows]. A sum begins with start, which cancels the 128 in every weight's code. */
typedef struct {
    int32_t *words;
    float *scale;
    int32_t *start;
} sz_q_rows;

/* Four codes of weights in each lane as sz_q_dot4 reads them: unsigned bytes; without VNNI the even
 * and the odd ones apart, in 16 bits each. */
typedef struct {
    sz_uvec part[SZ_Q_X_WORDS];
} sz_q_weights;

static inline __attribute__((always_inline)) sz_q_weights sz_q_load(const uint8_t *codes)
{
    const sz_uvec all = *(const sz_uvec_any *)codes;
    sz_q_weights w;
    w.part[0] = SZ_Q_X_WORDS == 1 ? all : all & 0x00ff00ffu;
    if (SZ_Q_X_WORDS == 2) w.part[SZ_Q_X_WORDS - 1] = (sz_uvec)((sz_half_words)all >> 8);
    return w;
}

/* sums += the products of four codes in each lane of w with the four signed ones of x. */
static inline __attribute__((always_inline)) void sz_q_dot4(sz_ivec *sums, const sz_q_weights *w,
                                                            const int32_t *x)
{
#if defined(__AVX512VNNI__)
    *sums = (sz_ivec)_mm512_dpbusd_epi32((__m512i)*sums, (__m512i)w->part[0],
                                         _mm512_set1_epi32(*x));
#elif defined(__AVXVNNI__)
    *sums = (sz_ivec)_mm256_dpbusd_avx_epi32((__m256i)*sums, (__m256i)w->part[0],
                                             _mm256_set1_epi32(*x));
#else
    const sz_ivec zero = { 0 };
    *sums += sz_dot2((sz_ivec)w->part[0], x[0] - zero) +
             sz_dot2((sz_ivec)w->part[SZ_Q_X_WORDS - 1], x[SZ_Q_X_WORDS - 1] - zero);
#endif
}

#endif
