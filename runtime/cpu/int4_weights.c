/* int4_weights.c - weights to 4 bits and back (format: int4.h).
 *
 *   quantize_int4     w1, w2, w3 [m, k], one below the other -> q, scale
 *   dequantize_int4   q, scale -> w [m, k], for gradients
 *
 * Leaves out: products (int4.c); devices other than the CPU.
 */
#include "int4.h"
#include "vecmath.h"

/* ---- to 4 bits ---- */

/* 256 columns of 16 rows, column by column, and for each row 0, or NaN if an element is not finite
 * or too large. */
typedef struct {
    float x[SZ_Q4_COLS][SZ_Q4_ROWS];
    float not_finite[SZ_Q4_ROWS];
} block_elements;

/* The weight that has row *r of those side by side, and *r becomes its row there; NULL for
 * padding. */
static const sz_tensor *weight_of(const sz_call *c, int64_t *r)
{
    for (int i = 0; i < 3 && c->in[i]; i++) {
        if (*r < c->in[i]->shape[0]) return c->in[i];
        *r -= c->in[i]->shape[0];
    }
    return NULL;
}

/* Reads the block; zeros past the weights' end, and in rows that are not finite. */
static void load_block(const sz_call *c, int64_t block, int64_t col, block_elements *e)
{
    const int64_t k = sz_cols(c->in[0]);
    const int64_t n = sz_min64(SZ_Q4_COLS, k - col);
    memset(e, 0, sizeof *e);
    for (int64_t lane = 0; lane < SZ_Q4_ROWS; lane++) {
        int64_t r = block * SZ_Q4_ROWS + lane;
        const sz_tensor *w = weight_of(c, &r);
        if (!w) continue;
        const int64_t first = r * k + col;
        float row[SZ_Q4_COLS] = { 0 };
        if (w->dtype == SZ_BF16) sz_bf16_to_f32(row, sz_bf16(w) + first, n);
        else
            for (int64_t i = 0; i < n; i++) row[i] = sz_from_bf16(sz_to_bf16(sz_f32(w)[first + i]));

        int beyond = 0;
        for (int i = 0; i < SZ_Q4_COLS; i++) beyond += !(fabsf(row[i]) < SZ_Q4_MOST);
        if (beyond > 0) e->not_finite[lane] = NAN;
        else
            for (int i = 0; i < SZ_Q4_COLS; i++) e->x[i][lane] = row[i];
    }
}

/* The best parts of 16 columns, for each row (reference/int4.c says why these are the best). */
static void find_parts(float x[SZ_Q4_GROUP][SZ_Q4_ROWS], float *restrict part)
{
    /* The element of the largest size, and what makes it -8. */
    float factor[SZ_Q4_ROWS];
    float extreme[SZ_Q4_ROWS] = { 0 };
    float best[SZ_Q4_ROWS] = { 0 };
    for (int i = 0; i < SZ_Q4_GROUP; i++)
        for (int l = 0; l < SZ_Q4_ROWS; l++) {
            const float element = x[i][l];
            extreme[l] = fabsf(element) > fabsf(extreme[l]) ? element : extreme[l];
        }
    for (int l = 0; l < SZ_Q4_ROWS; l++) {
        factor[l] = fabsf(extreme[l]) < SZ_Q4_LEAST ? 0 : -8.0f / extreme[l];
        part[l] = 0;
    }

    /* Products of codes and elements are exact, so that all kinds find the same. */
    for (int f = 0; f < SZ_Q4_FACTORS; f++) {
        float cx[SZ_Q4_ROWS] = { 0 };
        float cc[SZ_Q4_ROWS] = { 0 };
        for (int i = 0; i < SZ_Q4_GROUP; i++)
            for (int l = 0; l < SZ_Q4_ROWS; l++) {
                const float code = sz_q4_round(x[i][l], factor[l] * sz_q4_factors[f]);
                cx[l] += code * x[i][l];
                cc[l] += code * code;
            }
        for (int l = 0; l < SZ_Q4_ROWS; l++) {
            const float gain = cc[l] > 0 ? cx[l] * cx[l] / cc[l] : 0;
            const bool better = gain > best[l];
            part[l] = better ? cx[l] / cc[l] : part[l];
            best[l] = better ? gain : best[l];
        }
    }
}

/* The whole parts that leave the least error in 16 columns, one for each row: part is in units of
 * `unit`. */
static void find_whole_parts(float x[SZ_Q4_GROUP][SZ_Q4_ROWS], const float *part, const float *unit,
                             float *restrict whole)
{
    float best[SZ_Q4_ROWS] = { 0 };
    for (int l = 0; l < SZ_Q4_ROWS; l++) whole[l] = 0;
    for (int more = 0; more < 2; more++) {
        /* The one below, then the one above. */
        float size[SZ_Q4_ROWS];
        float step[SZ_Q4_ROWS];
        float factor[SZ_Q4_ROWS];
        for (int l = 0; l < SZ_Q4_ROWS; l++) {
            const float lower = floorf(fabsf(part[l]));
            size[l] = (lower < SZ_Q4_MOST_PART ? lower : SZ_Q4_MOST_PART) + (float)more;
            size[l] = part[l] < 0 ? -size[l] : size[l];
            step[l] = unit[l] * size[l];
            factor[l] = size[l] == 0 ? 0 : 1.0f / step[l];
        }
        float cx[SZ_Q4_ROWS] = { 0 };
        float cc[SZ_Q4_ROWS] = { 0 };
        for (int i = 0; i < SZ_Q4_GROUP; i++)
            for (int l = 0; l < SZ_Q4_ROWS; l++) {
                const float code = sz_q4_round(x[i][l], factor[l]);
                cx[l] += code * x[i][l];
                cc[l] += code * code;
            }
        for (int l = 0; l < SZ_Q4_ROWS; l++) {
            const float gain = sz_q4_gain(step[l], cx[l], cc[l]);
            const bool better = gain > best[l] && fabsf(size[l]) <= SZ_Q4_MOST_PART;
            whole[l] = better ? size[l] : whole[l];
            best[l] = better ? gain : best[l];
        }
    }
}

/* The codes of 16 columns with factor 1 / (part scale), packed in two pieces of 64 bytes. */
static void put_codes(float x[SZ_Q4_GROUP][SZ_Q4_ROWS], const float *factor, uint8_t *to)
{
    for (int p = 0; p < SZ_Q4_PIECES; p++) {
        uint32_t words[SZ_Q4_ROWS] = { 0 };
        for (int i = 0; i < 8; i++)
            for (int l = 0; l < SZ_Q4_ROWS; l++) {
                const int code = SZ_Q4_ZERO + (int)sz_q4_round(x[8 * p + i][l], factor[l]);
                words[l] |= (uint32_t)code << (8 * (i % 4) + i / 4 * 4);
            }
        memcpy(to + p * SZ_Q4_PIECE, words, SZ_Q4_PIECE);
    }
}

/* Writes a block of q and its 16 scales. */
static void quantize_block(block_elements *e, uint8_t *q, uint16_t *scale)
{
    /* The parts, and the scale that makes a row's largest 15. */
    float part[SZ_Q4_GROUPS][SZ_Q4_ROWS];
    float largest[SZ_Q4_ROWS] = { 0 };
    float unit[SZ_Q4_ROWS];
    for (int g = 0; g < SZ_Q4_GROUPS; g++) {
        find_parts(e->x + g * SZ_Q4_GROUP, part[g]);
        for (int l = 0; l < SZ_Q4_ROWS; l++) {
            const float size = fabsf(part[g][l]);
            largest[l] = size > largest[l] ? size : largest[l];
        }
    }
    for (int l = 0; l < SZ_Q4_ROWS; l++) {
        scale[l] = sz_to_bf16(largest[l] / SZ_Q4_MOST_PART + e->not_finite[l]);
        unit[l] = sz_from_bf16(scale[l]);
    }

    /* Whole parts, and the codes for these. */
    for (int g = 0; g < SZ_Q4_GROUPS; g++) {
        float whole[SZ_Q4_ROWS];
        float factor[SZ_Q4_ROWS];
        for (int l = 0; l < SZ_Q4_ROWS; l++) part[g][l] = unit[l] > 0 ? part[g][l] / unit[l] : 0;
        find_whole_parts(e->x + g * SZ_Q4_GROUP, part[g], unit, whole);
        for (int l = 0; l < SZ_Q4_ROWS; l++) {
            q[SZ_Q4_CODES + g * SZ_Q4_ROWS + l] = (uint8_t)(int8_t)whole[l];
            factor[l] = whole[l] == 0 ? 0 : 1.0f / (unit[l] * whole[l]);
        }
        put_codes(e->x + g * SZ_Q4_GROUP, factor, q + g * SZ_Q4_PIECES * SZ_Q4_PIECE);
    }
}

int sz_cpu_quantize_int4(const sz_call *c)
{
    sz_tensor *q = c->out[0];
    sz_tensor *scale = c->out[1];
    const int64_t across = q->shape[1];
    const int64_t blocks = q->shape[0] * across;

#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < blocks; i++) {
        block_elements e;
        const int64_t at = sz_q4_place(i / across, i % across, q->shape[0], across);
        load_block(c, i / across, i % across * SZ_Q4_COLS, &e);
        quantize_block(&e, (uint8_t *)q->data + at * SZ_Q4_BLOCK, sz_bf16(scale) + at * SZ_Q4_ROWS);
    }
    return 0;
}

/* ---- whole again ---- */

/* 256 columns of a row. */
static void dequantize_row(const uint8_t *block, float unit, int64_t lane, float *w)
{
    const uint8_t *codes = block + lane * 4;
    const int8_t *parts = (const int8_t *)block + SZ_Q4_CODES + lane;
    for (int64_t g = 0; g < SZ_Q4_GROUPS; g++) {
        const float step = unit * (float)parts[g * SZ_Q4_ROWS];
        for (int64_t p = g * SZ_Q4_PIECES; p < (g + 1) * SZ_Q4_PIECES; p++)
            for (int64_t b = 0; b < 4; b++) {
                const int byte = codes[p * SZ_Q4_PIECE + b];
                w[p * 8 + b] = (float)((byte & 15) - SZ_Q4_ZERO) * step;
                w[p * 8 + 4 + b] = (float)((byte >> 4) - SZ_Q4_ZERO) * step;
            }
    }
}

int sz_cpu_dequantize_int4(const sz_call *c)
{
    const sz_tensor *q = c->in[0];
    const sz_tensor *scale = c->in[1];
    sz_tensor *w = c->out[0];
    const int64_t k = w->shape[1];
    const int64_t across = q->shape[1];

#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < w->shape[0]; r++)
        for (int64_t i = 0; i < across; i++) {
            const int64_t at = sz_q4_place(r / SZ_Q4_ROWS, i, q->shape[0], across);
            const int64_t lane = r % SZ_Q4_ROWS;
            const uint8_t *block = (const uint8_t *)q->data + at * SZ_Q4_BLOCK;
            const float unit = sz_from_bf16(sz_bf16(scale)[at * SZ_Q4_ROWS + lane]);
            float row[SZ_Q4_COLS];
            dequantize_row(block, unit, lane, row);

            const int64_t first = r * k + i * SZ_Q4_COLS;
            const int64_t n = sz_min64(SZ_Q4_COLS, k - i * SZ_Q4_COLS);
            if (w->dtype == SZ_F32) memcpy(sz_f32(w) + first, row, (size_t)n * sizeof *row);
            else sz_f32_to_bf16(sz_bf16(w) + first, row, n);
        }
    return 0;
}
