/* ref_int8.c - the plain reference kernels of int8.c: the format read element by element, double sums. */
#include "core/core.h"
#include "cpu/int8.h"

int sz_ref_quantize_int8(const sz_call *c)
{
    sz_tensor *q = c->out[0], *scale = c->out[1];
    int64_t k = sz_cols(c->in[0]), words = q->shape[1], groups = scale->shape[1], row = 0;
    memset(q->data, SZ_Q_ZERO, sz_bytes(q));
    memset(scale->data, 0, sz_bytes(scale));
    for (int t = 0; t < 3 && c->in[t]; t++)
        for (int64_t r = 0; r < c->in[t]->shape[0]; r++, row++)
            for (int64_t g = 0; g < groups; g++) {
                float x[SZ_Q_GROUP], inverse;
                int64_t n = 0;
                for (int64_t i = g * SZ_Q_GROUP; i < k && n < SZ_Q_GROUP; i++) x[n++] = sz_get(c->in[t], r * k + i);
                sz_f32(scale)[(row / SZ_Q_ROWS * groups + g) * SZ_Q_ROWS + row % SZ_Q_ROWS] = sz_q_scale(x, n, &inverse);
                for (int64_t i = 0; i < n; i++) {
                    int64_t col = g * SZ_Q_GROUP + i;
                    ((uint8_t *)q->data)[(row / SZ_Q_ROWS * words + col / 4) * 64 + row % SZ_Q_ROWS * 4 + col % 4] = (uint8_t)(SZ_Q_ZERO + (inverse == 0 ? 0 : (int)rintf(x[i] * inverse)));
                }
            }
    return 0;
}

int sz_ref_linear_int8(const sz_call *c)
{
    sz_tensor *x = c->in[0], *q = c->in[1], *scale = c->in[2], *b = c->in[3], *y = c->out[0];
    int64_t n = sz_rows(x), k = sz_cols(x), m = sz_cols(y), words = q->shape[1], groups = scale->shape[1];
    for (int64_t r = 0; r < n; r++)
        for (int64_t j = 0; j < m; j++) {
            double sum = b ? sz_get(b, j) : 0;
            for (int64_t g = 0; g < groups; g++) {
                float v[SZ_Q_GROUP], inverse;
                int64_t count = 0, whole = 0;
                for (int64_t i = g * SZ_Q_GROUP; i < k && count < SZ_Q_GROUP; i++) v[count++] = sz_get(x, r * k + i);
                float xs = sz_q_scale(v, count, &inverse);
                for (int64_t i = 0; i < count; i++) {
                    int64_t col = g * SZ_Q_GROUP + i;
                    int weight = ((uint8_t *)q->data)[(j / SZ_Q_ROWS * words + col / 4) * 64 + j % SZ_Q_ROWS * 4 + col % 4] - SZ_Q_ZERO;
                    whole += weight * (inverse == 0 ? 0 : (int)rintf(v[i] * inverse));
                }
                sum += (double)whole * xs * sz_f32(scale)[(j / SZ_Q_ROWS * groups + g) * SZ_Q_ROWS + j % SZ_Q_ROWS];
            }
            sz_put(y, r * m + j, (float)sum);
        }
    return 0;
}
