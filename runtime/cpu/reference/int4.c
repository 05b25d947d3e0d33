/* reference/int4.c - the reference kernels of cpu/int4.c: the format read element by element, sums
 * in double. Leaves out: speed. */
#include "core/core.h"
#include "cpu/int4.h"

/* ---- the format ---- */
/* The place of a weight's block in q or scale. */
static int64_t place_of(const sz_tensor *t, int64_t row, int64_t col)
{
    return sz_q4_place(row / SZ_Q4_ROWS, col / SZ_Q4_COLS, t->shape[0], t->shape[1]);
}

static uint8_t *block_of(const sz_tensor *q, int64_t row, int64_t col)
{
    return (uint8_t *)q->data + place_of(q, row, col) * SZ_Q4_BLOCK;
}

/* The byte that has the code of a weight; *shift is 0 or 4. */
static uint8_t *code_of(const sz_tensor *q, int64_t row, int64_t col, int *shift)
{
    const int64_t c = col % SZ_Q4_COLS;
    *shift = c % 8 >= 4 ? 4 : 0;
    return block_of(q, row, col) + c / 8 * 64 + row % SZ_Q4_ROWS * 4 + c % 4;
}

static int8_t *part_of(const sz_tensor *q, int64_t row, int64_t col)
{
    const int64_t group = col % SZ_Q4_COLS / SZ_Q4_GROUP;
    uint8_t *parts = block_of(q, row, col) + SZ_Q4_CODES;
    return (int8_t *)parts + group * SZ_Q4_ROWS + row % SZ_Q4_ROWS;
}

static int64_t scale_index(const sz_tensor *scale, int64_t row, int64_t col)
{
    return place_of(scale, row, col) * SZ_Q4_ROWS + row % SZ_Q4_ROWS;
}

/* A weight without its scale. */
static int whole_weight(const sz_tensor *q, int64_t row, int64_t col)
{
    int shift;
    const int byte = *code_of(q, row, col, &shift);
    return ((byte >> shift & 15) - SZ_Q4_ZERO) * *part_of(q, row, col);
}

/* ---- quantizing ---- */
/* The best part, as a float, of n elements. */
static float part_for(const float *x, int64_t n)
{
    float extreme = 0;
    for (int64_t i = 0; i < n; i++)
        if (fabsf(x[i]) > fabsf(extreme)) extreme = x[i];
    if (fabsf(extreme) < SZ_Q4_LEAST) return 0;

    /* With codes c the best part is sum(c x) / sum(c c), which takes sum(c x)^2 / sum(c c) off the
     * squared error. */
    float best = 0;
    float part = 0;
    for (int f = 0; f < SZ_Q4_FACTORS; f++) {
        const float factor = -8.0f / extreme * sz_q4_factors[f];
        float cx = 0;
        float cc = 0;
        for (int64_t i = 0; i < n; i++) {
            const float code = sz_q4_round(x[i], factor);
            cx += code * x[i];
            cc += code * code;
        }
        const float gain = cx * cx / cc;
        if (gain > best) {
            best = gain;
            part = cx / cc;
        }
    }
    return part;
}

/* The whole part that leaves the least error in n elements: one of the two next to `part`, which is
 * in units of `unit`. */
static int whole_part_for(const float *x, int64_t n, float part, float unit)
{
    const int lower = (int)fminf(floorf(fabsf(part)), SZ_Q4_MOST_PART);
    int best = 0;
    float most = 0;
    for (int size = lower; size <= lower + 1 && size <= SZ_Q4_MOST_PART; size++) {
        if (size == 0) continue;
        const int whole = part < 0 ? -size : size;
        const float step = unit * (float)whole;
        float cx = 0;
        float cc = 0;
        for (int64_t i = 0; i < n; i++) {
            const float code = sz_q4_round(x[i], 1.0f / step);
            cx += code * x[i];
            cc += code * code;
        }
        const float gain = sz_q4_gain(step, cx, cc);
        if (gain <= most) continue;
        most = gain;
        best = whole;
    }
    return best;
}

/* Columns col .. col + 255 of a row of q, from n elements. */
static void quantize_row(const float *x, int64_t n, sz_tensor *q, sz_tensor *scale, int64_t row,
                         int64_t col)
{
    /* The parts, and the scale that makes the largest of them 15. */
    float part[SZ_Q4_GROUPS] = { 0 };
    float largest = 0;
    float not_finite = 0;
    for (int64_t i = 0; i < n; i++)
        if (!(fabsf(x[i]) < SZ_Q4_MOST)) not_finite = NAN;
    for (int64_t g = 0; not_finite == 0 && g * SZ_Q4_GROUP < n; g++) {
        const int64_t left = n - g * SZ_Q4_GROUP;
        part[g] = part_for(x + g * SZ_Q4_GROUP, left < SZ_Q4_GROUP ? left : SZ_Q4_GROUP);
        largest = fmaxf(largest, fabsf(part[g]));
    }
    const int64_t at = scale_index(scale, row, col);
    sz_put(scale, at, largest / SZ_Q4_MOST_PART + not_finite);
    const float unit = sz_get(scale, at);
    if (!(unit > 0)) return;

    /* Whole parts, and the codes for these. */
    int whole[SZ_Q4_GROUPS] = { 0 };
    for (int64_t g = 0; g * SZ_Q4_GROUP < n; g++) {
        const int64_t left = n - g * SZ_Q4_GROUP;
        whole[g] = whole_part_for(x + g * SZ_Q4_GROUP, left < SZ_Q4_GROUP ? left : SZ_Q4_GROUP,
                                  part[g] / unit, unit);
    }
    for (int64_t i = 0; i < n; i++) {
        int8_t *to = part_of(q, row, col + i);
        *to = (int8_t)whole[i / SZ_Q4_GROUP];
        if (*to == 0) continue;
        int shift;
        uint8_t *byte = code_of(q, row, col + i, &shift);
        const int code = SZ_Q4_ZERO + (int)sz_q4_round(x[i], 1.0f / (unit * (float)*to));
        *byte = (uint8_t)((*byte & (0xf0 >> shift)) | code << shift);
    }
}

int sz_ref_quantize_int4(const sz_call *c)
{
    sz_tensor *q = c->out[0];
    sz_tensor *scale = c->out[1];
    int64_t row = 0;

    /* Codes of padding are 8, and its parts and scales 0. */
    for (int64_t r = 0; r < q->shape[0] * q->shape[1]; r++) {
        uint8_t *block = (uint8_t *)q->data + r * SZ_Q4_BLOCK;
        memset(block, SZ_Q4_ZERO * 0x11, SZ_Q4_CODES);
        memset(block + SZ_Q4_CODES, 0, SZ_Q4_BLOCK - SZ_Q4_CODES);
    }
    memset(scale->data, 0, sz_bytes(scale));
    for (int t = 0; t < 3 && c->in[t]; t++) {
        const int64_t k = sz_cols(c->in[t]);
        for (int64_t r = 0; r < c->in[t]->shape[0]; r++, row++)
            for (int64_t col = 0; col < k; col += SZ_Q4_COLS) {
                const int64_t n = k - col < SZ_Q4_COLS ? k - col : SZ_Q4_COLS;
                float x[SZ_Q4_COLS];
                for (int64_t i = 0; i < n; i++)
                    x[i] = sz_from_bf16(sz_to_bf16(sz_get(c->in[t], r * k + col + i)));
                quantize_row(x, n, q, scale, row, col);
            }
    }
    return 0;
}

/* ---- reading ---- */
int sz_ref_dequantize_int4(const sz_call *c)
{
    const sz_tensor *q = c->in[0];
    const sz_tensor *scale = c->in[1];
    sz_tensor *w = c->out[0];
    for (int64_t r = 0; r < w->shape[0]; r++)
        for (int64_t i = 0; i < w->shape[1]; i++) {
            const float unit = sz_get(scale, scale_index(scale, r, i));
            sz_put(w, r * w->shape[1] + i, (float)whole_weight(q, r, i) * unit);
        }
    return 0;
}

int sz_ref_linear_int4(const sz_call *c)
{
    sz_tensor *x = c->in[0];
    sz_tensor *q = c->in[1];
    sz_tensor *scale = c->in[2];
    sz_tensor *b = c->in[3];
    sz_tensor *y = c->out[0];
    const int64_t n = sz_rows(x);
    const int64_t m = sz_cols(y);
    const int64_t k = sz_cols(x);

    /* One output at a time: integer sums of 256 columns, scaled and added. */
    for (int64_t r = 0; r < n; r++)
        for (int64_t j = 0; j < m; j++) {
            double sum = b ? sz_get(b, j) : 0;
            for (int64_t col = 0; col < k; col += SZ_Q4_COLS) {
                const int64_t count = k - col < SZ_Q4_COLS ? k - col : SZ_Q4_COLS;
                float v[SZ_Q4_COLS];
                float inverse;
                int64_t products = 0;
                for (int64_t i = 0; i < count; i++) v[i] = sz_get(x, r * k + col + i);
                const float x_scale = sz_q_scale(v, count, &inverse);
                for (int64_t i = 0; inverse != 0 && i < count; i++)
                    products += whole_weight(q, j, col + i) * (int)rintf(v[i] * inverse);
                const float unit = sz_get(scale, scale_index(scale, j, col));
                sum += (double)products * x_scale * unit;
            }
            sz_put(y, r * m + j, (float)sum);
        }
    return 0;
}
