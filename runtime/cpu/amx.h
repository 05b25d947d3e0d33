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

#include "bf16_words.h"

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

/* Sets the tiles of sums, 0 to 3, to 0. */
static inline void sz_amx_clear_sums(void)
{
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

#endif
