/* amx.h - the tile registers of AMX, for gemm_amx.c, packed_amx.c and attention_amx.h.
 *
 * A thread has eight tiles of 16 rows of 64 bytes. Its system must have allowed them
 * (core/processor.c), and sz_amx_begin must have told it their shape. A tile of the left operand
 * has the inner dimension along a row: 32 numbers of bf16, or 64 of 8 bits. A tile of the right
 * operand has one 32-bit word for each column in a row: two numbers of bf16, or four of 8 bits,
 * that follow each other along the inner dimension.
 * Leaves out: tiles of less than 16 rows. Smaller operands are padded with zeros.
 */
#ifndef SZ_AMX_H
#define SZ_AMX_H

#include <immintrin.h>
#include <stdint.h>

enum {
    SZ_AMX_TILE = 16,    /* rows of a tile, and 32-bit words of a row */
    SZ_AMX_BYTES = 1024, /* of a tile */
    SZ_AMX_ROW_BYTES = 64,
};

/* Shapes all eight tiles of this thread: those of the right operand in tile 6 and of the sums in
 * tiles 0 and 2 have `columns` columns, at most 16. Another program part may have shaped them
 * otherwise since the last time (oneDNN), so each task begins with this or sz_amx_begin. */
static inline void sz_amx_begin_narrow(int64_t columns)
{
    struct {
        uint8_t palette;
        uint8_t start_row;
        uint8_t reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } shape = { .palette = 1 };
    for (int i = 0; i < 8; i++) {
        shape.row_bytes[i] = SZ_AMX_ROW_BYTES;
        shape.rows[i] = SZ_AMX_TILE;
    }
    shape.row_bytes[0] = shape.row_bytes[2] = shape.row_bytes[6] = (uint16_t)(4 * columns);
    /* GCC's _tile_loadconfig tells the compiler of the first eight bytes alone. */
    __asm__ volatile("" : : "m"(shape));
    _tile_loadconfig(&shape);
}

/* The same with 16 columns. */
static inline void sz_amx_begin(void) { sz_amx_begin_narrow(SZ_AMX_TILE); }

/* Gives the tiles back: a thread whose tiles are in use is switched more slowly. */
static inline void sz_amx_end(void) { _tile_release(); }

/* Rounds to nearest even, as sz_to_bf16 does. */
static inline __m256i sz_amx_to_bf16(__m512 v)
{
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}

/* 32 numbers of bf16, those of low first. */
static inline __m512i sz_amx_to_bf16_32(__m512 low, __m512 high)
{
    const __m512i first = _mm512_castsi256_si512(sz_amx_to_bf16(low));
    return _mm512_inserti64x4(first, sz_amx_to_bf16(high), 1);
}

/* Sets the tiles of sums, 0 to 3, to 0. */
static inline void sz_amx_clear_sums(void)
{
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

/* 32 rows of 16 columns of bf16 from rows ld apart, two rows in each vector: a tile of the right
 * operand whose inner dimension goes down. What is past `columns` or `height` is 0. */
static inline void sz_amx_load_pairs(__m512i r[SZ_AMX_TILE], const uint16_t *first, int64_t ld,
                                     int64_t columns, int64_t height)
{
    const __mmask16 mask = columns >= SZ_AMX_TILE ? 0xffff : (__mmask16)((1u << columns) - 1);
    for (int i = 0; i < SZ_AMX_TILE; i++) {
        const int64_t row = 2 * i;
        const __mmask16 even = row < height ? mask : 0;
        const __mmask16 odd = row + 1 < height ? mask : 0;
        const __m256i a = _mm256_maskz_loadu_epi16(even, first + (even ? row : 0) * ld);
        const __m256i b = _mm256_maskz_loadu_epi16(odd, first + (odd ? row + 1 : 0) * ld);
        r[i] = _mm512_or_si512(_mm512_cvtepu16_epi32(a),
                               _mm512_slli_epi32(_mm512_cvtepu16_epi32(b), 16));
    }
}

/* Stores a tile of bf16 as rows ld apart. */
static inline void sz_amx_store(uint16_t *to, int64_t ld, const __m512i r[SZ_AMX_TILE])
{
    for (int i = 0; i < SZ_AMX_TILE; i++) _mm512_storeu_si512(to + i * ld, r[i]);
}

/* Transposes 16 rows of 16 words. */
static inline __attribute__((always_inline)) void sz_amx_transpose(__m512i r[SZ_AMX_TILE])
{
    __m512i t[SZ_AMX_TILE];

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

#endif
