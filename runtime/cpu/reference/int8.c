/* reference/int8.c - the reference kernels of cpu/int8.c: the format read element by element, sums
 * in double. Leaves out: speed. */
#include "core/core.h"
#include "cpu/int8.h"

/* Where the code of a weight is in q, and where its scale is. */
static int64_t code_index(const sz_tensor *q, int64_t row, int64_t col)
{
    int64_t word = row / SZ_Q_ROWS * q->shape[1] + col / 4;
    return word * 64 + row % SZ_Q_ROWS * 4 + col % 4;
}
static int64_t scale_index(const sz_tensor *scale, int64_t row, int64_t group)
{
    return (row / SZ_Q_ROWS * scale->shape[1] + group) * SZ_Q_ROWS + row % SZ_Q_ROWS;
}

/* v[0..n) = the elements of row r of t in a group of columns; returns n. */
static int64_t load_group(const sz_tensor *t, int64_t r, int64_t group, float *v)
{
    int64_t k = sz_cols(t);
    int64_t n = 0;
    for (int64_t i = group * SZ_Q_GROUP; i < k && n < SZ_Q_GROUP; i++)
        v[n++] = sz_get(t, r * k + i);
    return n;
}

static int code_of(float x, float inverse) { return inverse == 0 ? 0 : (int)rintf(x * inverse); }

int sz_ref_quantize_int8(const sz_call *c)
{
    sz_tensor *q = c->out[0];
    sz_tensor *scale = c->out[1];
    uint8_t *codes = (uint8_t *)q->data;
    int64_t row = 0;

    /* Padding is weight 0. */
    memset(q->data, SZ_Q_ZERO, sz_bytes(q));
    memset(scale->data, 0, sz_bytes(scale));
    for (int t = 0; t < 3 && c->in[t]; t++)
        for (int64_t r = 0; r < c->in[t]->shape[0]; r++, row++)
            for (int64_t g = 0; g < scale->shape[1]; g++) {
                float x[SZ_Q_GROUP];
                float inverse;
                int64_t n = load_group(c->in[t], r, g, x);
                sz_f32(scale)[scale_index(scale, row, g)] = sz_q_scale(x, n, &inverse);
                for (int64_t i = 0; i < n; i++) {
                    uint8_t code = (uint8_t)(SZ_Q_ZERO + code_of(x[i], inverse));
                    codes[code_index(q, row, g * SZ_Q_GROUP + i)] = code;
                }
            }
    return 0;
}

int sz_ref_dequantize_int8(const sz_call *c)
{
    const sz_tensor *q = c->in[0];
    const sz_tensor *scale = c->in[1];
    sz_tensor *w = c->out[0];
    const uint8_t *codes = (const uint8_t *)q->data;
    for (int64_t r = 0; r < w->shape[0]; r++)
        for (int64_t i = 0; i < w->shape[1]; i++) {
            const float unit = sz_f32(scale)[scale_index(scale, r, i / SZ_Q_GROUP)];
            sz_put(w, r * w->shape[1] + i, (float)(codes[code_index(q, r, i)] - SZ_Q_ZERO) * unit);
        }
    return 0;
}

int sz_ref_linear_int8(const sz_call *c)
{
    sz_tensor *x = c->in[0];
    sz_tensor *q = c->in[1];
    sz_tensor *scale = c->in[2];
    sz_tensor *b = c->in[3];
    sz_tensor *y = c->out[0];
    const uint8_t *codes = (const uint8_t *)q->data;
    int64_t n = sz_rows(x);
    int64_t m = sz_cols(y);

    /* One output at a time: integer sums of each group, scaled and added. */
    for (int64_t r = 0; r < n; r++)
        for (int64_t j = 0; j < m; j++) {
            double sum = b ? sz_get(b, j) : 0;
            for (int64_t g = 0; g < scale->shape[1]; g++) {
                float v[SZ_Q_GROUP];
                float inverse;
                int64_t count = load_group(x, r, g, v);
                float x_scale = sz_q_scale(v, count, &inverse);
                int64_t products = 0;
                for (int64_t i = 0; i < count; i++) {
                    int weight = codes[code_index(q, j, g * SZ_Q_GROUP + i)] - SZ_Q_ZERO;
                    products += weight * code_of(v[i], inverse);
                }
                sum += (double)products * x_scale * sz_f32(scale)[scale_index(scale, j, g)];
            }
            sz_put(y, r * m + j, (float)sum);
        }
    return 0;
}
