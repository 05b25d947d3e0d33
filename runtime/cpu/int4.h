/* int4.h - the format of 4-bit weights, shared by the fast and the reference kernels.
 *
 * A weight matrix [m, k] is cut into blocks of 16 rows and 256 columns (both rounded up). A weight
 * is (code - 8) * part * scale, with a code from 0 to 15; part, from -15 to 15, belongs to 16
 * columns of a row, and scale bf16 [m/16, k/256, 16] to 256. A weight without its scale fits eight
 * bits, as AMX multiplies them. That is 4.5625 bits a weight.
 * q u8 [m/16, k/256, 2304] has for each block (sz_q4_place says where; scale has the same order)
 *
 *   32 x 64 bytes   byte 4 r + b of number p: row r's codes of columns 8 p + b (the low four bits)
 *                   and 8 p + 4 + b (the high ones)
 *   16 x 16 bytes   the parts, signed: one for each group of 16 columns and each row
 *
 * Padding is weight 0. A weight is rounded to bf16 first. When x is multiplied, it is quantized to
 * 8 bits with one scale for each row and 256 columns, as for 8-bit weights (int8.h).
 *
 * The part is the one that leaves the least squared error: first a real number, of FACTORS, then
 * the whole number just below or just above it. Relative error of normally distributed weights:
 * 7.4 % (NF4 in groups of 64, 4.5 bits: 9.2 %; parts of 8 bits: 7.2 %, but their products with
 * codes have 11).
 * Leaves out: zero points, importance of columns.
 */
#ifndef SZ_INT4_H
#define SZ_INT4_H

#include "int8.h"
#include "core/processor.h"

enum {
    SZ_Q4_ROWS = 16,         /* of a block */
    SZ_Q4_BAND = 4,          /* rows of blocks that a thread takes at once */
    SZ_Q4_COLS = SZ_Q_GROUP, /* of a block */
    SZ_Q4_GROUP = 16,        /* columns that share a part */
    SZ_Q4_GROUPS = SZ_Q4_COLS / SZ_Q4_GROUP,
    SZ_Q4_CODES = SZ_Q4_ROWS * SZ_Q4_COLS / 2, /* bytes of codes */
    SZ_Q4_BLOCK = SZ_Q4_CODES + SZ_Q4_GROUPS * SZ_Q4_ROWS,
    SZ_Q4_ZERO = 8,
    SZ_Q4_MOST_PART = 15,
    SZ_Q4_PIECE = 64,               /* bytes with the codes of 8 columns */
    SZ_Q4_PIECES = SZ_Q4_GROUP / 8, /* in a group */
};

/* The place of a block in q and scale, from its row and column of blocks, of rows and across.
 * Where memory is read best as a single stream, SZ_Q4_BAND rows of blocks (the last band may have
 * fewer) lie column by column, so that 256 columns of x serve them all while they are in the
 * first-level cache. Elsewhere each row of blocks lies whole, as packed_amx.c expects where it
 * fetches. So q and scale are for the kind of processor that made them: they must not be saved or
 * sent to another host. */
static inline int64_t sz_q4_place(int64_t row, int64_t col, int64_t rows, int64_t across)
{
    const int64_t band = sz_processor_is_zen_1_to_4() ? SZ_Q4_BAND : 1;
    const int64_t in_band = row % band;
    const int64_t left = rows - (row - in_band);
    return (row - in_band) * across + col * (left < band ? left : band) + in_band;
}

/* The group's element of the largest size becomes code 0 times each of these. */
enum { SZ_Q4_FACTORS = 4 };
static const float sz_q4_factors[SZ_Q4_FACTORS] = { 0.95f, 1.03f, 1.12f, 1.23f };

/* Elements below count as 0, and those above as infinite; then the scale is NaN. */
#define SZ_Q4_LEAST 1e-30f
#define SZ_Q4_MOST 1e18f

/* How much of the squared error of 16 elements x codes c take off if a code is worth `step`, from
 * sum(c x) and sum(c c). A step has at most 12 bits and sum(c c) 11, so their product is exact, and
 * all kinds of processors have the same. */
static inline float sz_q4_gain(float step, float cx, float cc)
{
    return step * (2.0f * cx - step * cc);
}

/* x * factor, between -8 and 7, rounded to nearest even. */
static inline float sz_q4_round(float x, float factor)
{
    float t = x * factor;
    t = t < 7.0f ? t : 7.0f;
    t = t > -8.0f ? t : -8.0f;
    return rintf(t);
}

#endif
