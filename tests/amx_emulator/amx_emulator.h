/* amx_emulator.h - the instructions of AMX that the kernels use, in software. So a machine with
 * AVX-512 alone runs these kernels, and sanitizers see what they read and write.
 *
 * Included before all else in the CPU kernels (make amx-emulated). After <immintrin.h> it gives the
 * intrinsics other meanings. What a processor would refuse ends the program with a message: a tile
 * without a shape, shapes that do not fit together. Results are those of Intel's description
 * (Software Developer's Manual, volume 2, TDPBF16PS and TDPBSSD), except that denormal numbers are
 * not flushed.
 * Leaves out: speed; instructions that no kernel uses; saving tiles when threads are switched.
 */
#ifndef AMX_EMULATOR_H
#define AMX_EMULATOR_H

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { AMX_TILES = 8, AMX_ROWS = 16, AMX_ROW_BYTES = 64 };

/* A tile's shape, and its rows. */
typedef struct {
    int rows, row_bytes;
    uint8_t row[AMX_ROWS][AMX_ROW_BYTES] __attribute__((aligned(64)));
} amx_tile;

/* Of one thread; each file of kernels shapes its tiles itself. */
static __thread amx_tile amx_tiles[AMX_TILES];
static __thread int amx_shaped;

static void __attribute__((noreturn, unused)) amx_stop(const char *what, int tile)
{
    fprintf(stderr, "amx_emulator: tile %d: %s\n", tile, what);
    abort();
}

static inline amx_tile *amx_get(int tile)
{
    if (!amx_shaped) amx_stop("used before the tiles have a shape", tile);
    amx_tile *t = amx_tiles + tile;
    if (t->rows == 0 || t->row_bytes == 0) amx_stop("has no shape", tile);
    return t;
}

static inline void amx_loadconfig(const void *config)
{
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } c;
    memcpy(&c, config, sizeof c);
    if (c.palette != 1 || c.start_row != 0) amx_stop("the palette is not 1 from row 0 on", -1);
    memset(amx_tiles, 0, sizeof amx_tiles);
    for (int i = 0; i < AMX_TILES; i++) {
        if (c.rows[i] > AMX_ROWS || c.row_bytes[i] > AMX_ROW_BYTES) amx_stop("is too large", i);
        amx_tiles[i].rows = c.rows[i];
        amx_tiles[i].row_bytes = c.row_bytes[i];
    }
    amx_shaped = 1;
}

static inline void amx_release(void) { amx_shaped = 0; }

static inline void amx_zero(int tile)
{
    amx_tile *t = amx_get(tile);
    memset(t->row, 0, sizeof t->row);
}

static inline void amx_load(int tile, const void *base, ptrdiff_t stride)
{
    amx_tile *t = amx_get(tile);
    memset(t->row, 0, sizeof t->row);
    for (int i = 0; i < t->rows; i++)
        memcpy(t->row[i], (const char *)base + i * stride, (size_t)t->row_bytes);
}

static inline void amx_store(int tile, void *base, ptrdiff_t stride)
{
    const amx_tile *t = amx_get(tile);
    for (int i = 0; i < t->rows; i++)
        memcpy((char *)base + i * stride, t->row[i], (size_t)t->row_bytes);
}

/* c += a b: a's row has the inner dimension in words, of which b has one row each. */
static inline void amx_check_product(int c, int a, int b)
{
    const amx_tile *sum = amx_get(c);
    const amx_tile *left = amx_get(a);
    const amx_tile *right = amx_get(b);
    if (c == a || c == b || a == b) amx_stop("is in a product twice", c);
    if (sum->rows != left->rows) amx_stop("has not as many rows as the left operand", c);
    if (sum->row_bytes != right->row_bytes)
        amx_stop("has not as many columns as the right operand", c);
    if (left->row_bytes != 4 * right->rows)
        amx_stop("has not as many rows as the left operand needs", b);
}

/* One word of the left operand in all lanes. */
static inline __m512i amx_word(const amx_tile *t, int row, int word)
{
    int32_t value;
    memcpy(&value, t->row[row] + 4 * word, 4);
    return _mm512_set1_epi32(value);
}

static inline void amx_dpbf16ps(int c, int a, int b)
{
    amx_check_product(c, a, b);
    const __m512i odd = _mm512_set1_epi32((int)0xffff0000);
    for (int i = 0; i < amx_tiles[c].rows; i++) {
        __m512 low = _mm512_setzero_ps();
        __m512 high = _mm512_setzero_ps();
        for (int k = 0; k < amx_tiles[b].rows; k++) {
            const __m512i x = amx_word(amx_tiles + a, i, k);
            const __m512i y = _mm512_load_si512(amx_tiles[b].row[k]);
            low = _mm512_fmadd_ps((__m512)_mm512_slli_epi32(x, 16),
                                  (__m512)_mm512_slli_epi32(y, 16), low);
            high = _mm512_fmadd_ps((__m512)_mm512_and_si512(x, odd),
                                   (__m512)_mm512_and_si512(y, odd), high);
        }
        float *sum = (float *)amx_tiles[c].row[i];
        _mm512_store_ps(sum, _mm512_add_ps(_mm512_load_ps(sum), _mm512_add_ps(low, high)));
    }
}

/* Byte number `at` of each word, with or without a sign. */
static inline __m512i amx_bytes(__m512i words, int at, int is_signed)
{
    const __m512i top = _mm512_slli_epi32(words, (unsigned)(24 - 8 * at));
    return is_signed ? _mm512_srai_epi32(top, 24) : _mm512_srli_epi32(top, 24);
}

static inline void amx_dp_bytes(int c, int a, int b, int is_signed_a, int is_signed_b)
{
    amx_check_product(c, a, b);
    for (int i = 0; i < amx_tiles[c].rows; i++) {
        __m512i sum = _mm512_load_si512(amx_tiles[c].row[i]);
        for (int k = 0; k < amx_tiles[b].rows; k++) {
            const __m512i x = amx_word(amx_tiles + a, i, k);
            const __m512i y = _mm512_load_si512(amx_tiles[b].row[k]);
            for (int at = 0; at < 4; at++)
                sum = _mm512_add_epi32(sum, _mm512_mullo_epi32(amx_bytes(x, at, is_signed_a),
                                                               amx_bytes(y, at, is_signed_b)));
        }
        _mm512_store_si512(amx_tiles[c].row[i], sum);
    }
}

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#undef _tile_dpbssd
#undef _tile_dpbsud
#define _tile_loadconfig(config) amx_loadconfig(config)
#define _tile_release() amx_release()
#define _tile_zero(tile) amx_zero(tile)
#define _tile_loadd(tile, base, stride) amx_load(tile, base, stride)
#define _tile_stored(tile, base, stride) amx_store(tile, base, stride)
#define _tile_dpbf16ps(c, a, b) amx_dpbf16ps(c, a, b)
#define _tile_dpbssd(c, a, b) amx_dp_bytes(c, a, b, 1, 1)
#define _tile_dpbsud(c, a, b) amx_dp_bytes(c, a, b, 1, 0)

#endif
