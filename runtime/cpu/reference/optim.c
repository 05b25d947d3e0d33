/* reference/optim.c - the reference kernels of adamw_, adamw_compact_ and sum_squares, in double.
 * The 8-bit codes: cpu/optim.c. */
#include "core/core.h"
#include <math.h>

/* (param, grad, m, v, master | NULL; lr, b1, b2, eps, wd, step, grad_scale) */
int sz_ref_adamw_(const sz_call *c)
{
    sz_tensor *param = c->out[0];
    sz_tensor *grad = c->in[1];
    sz_tensor *m = c->in[2];
    sz_tensor *v = c->in[3];
    sz_tensor *master = c->in[4] ? c->in[4] : param;
    double lr = c->args[0];
    double b1 = c->args[1];
    double b2 = c->args[2];
    double eps = c->args[3];
    double wd = c->args[4];
    double step = c->args[5];
    for (int64_t i = 0; i < param->numel; i++) {
        double g = (double)sz_get(grad, i) * c->args[6];
        double m1 = b1 * (double)sz_get(m, i) + (1 - b1) * g;
        double v1 = b2 * (double)sz_get(v, i) + (1 - b2) * g * g;
        double p = (double)sz_get(master, i) * (1 - lr * wd);
        p -= lr * (m1 / (1 - pow(b1, step))) / (sqrt(v1 / (1 - pow(b2, step))) + eps);
        sz_put(m, i, (float)m1);
        sz_put(v, i, (float)v1);
        sz_put(master, i, (float)p);
        if (master != param) sz_put(param, i, sz_get(master, i));
    }
    return 0;
}

/* ---- adamw_compact_ ---- */
/* 16 random bits as a fraction in [0, 1): stream 0 is m's, 1 v's, 2 the parameter's. Element i of a
 * block of 512 has half of a word. */
static double fraction(const sz_call *c, int stream, int64_t i)
{
    i += (int64_t)c->args[8]; /* where the part begins */
    int64_t word = stream * 256 + i % 512 / 2;
    uint32_t out[4];
    sz_random_bits(SZ_ROUNDING_SEED, (uint64_t)(i / 512 * 192 + word / 4), (uint32_t)c->args[7],
                   (uint32_t)c->args[5], out);
    return (out[word % 4] >> (i % 2 ? 16 : 0) & 0xffff) / 65536.0;
}

/* A code's size, for a block whose scale is 1: exponents from 1 to top are octaves, 0 is linear. */
static double code_value(int size, int top)
{
    int exponent = size / 8;
    int rest = size % 8;
    return exponent ? ldexp(1 + rest / 8.0, exponent - top) : ldexp(rest / 8.0, 1 - top);
}

static int code_of(double x, int top, double u)
{
    int exponent;
    if (x < ldexp(1, 1 - top)) return (int)floor(ldexp(x, top + 2) + u);
    frexp(x, &exponent); /* x = f 2^exponent, f in [1/2, 1) */
    return (exponent - 1 + top) * 8 + (int)floor(ldexp(x, 4 - exponent) - 8 + u);
}

static double load(const sz_tensor *t, const sz_tensor *scales, int top, int64_t i)
{
    if (t->dtype != SZ_U8) return (double)sz_get(t, i);
    int code = ((const uint8_t *)t->data)[i];
    int negative = top == 15 && code >= 128;
    double x = (double)sz_f32(scales)[i / 256] * code_value(negative ? code - 128 : code, top);
    return negative ? -x : x;
}

static uint16_t bf16_of(float x, double u)
{
    union {
        float f;
        uint32_t u;
    } v = { x };
    return (uint16_t)((v.u + (uint32_t)(u * 65536)) >> 16);
}

/* Stores what values [n] says; 8-bit moments by blocks, since the largest of a block is its scale.
 */
static void store(const sz_call *c, int stream, sz_tensor *t, sz_tensor *scales, int top,
                  const double *values)
{
    for (int64_t i = 0; i < t->numel; i++) {
        if (t->dtype == SZ_F32) sz_put(t, i, (float)values[i]);
        else if (t->dtype == SZ_BF16)
            sz_bf16(t)[i] = bf16_of((float)values[i], fraction(c, stream, i));
    }
    for (int64_t first = 0; t->dtype == SZ_U8 && first < t->numel; first += 256) {
        int64_t end = first + 256 < t->numel ? first + 256 : t->numel;
        double most = 0;
        for (int64_t i = first; i < end; i++) most = fmax(most, fabs(values[i]));
        double scale = most / 1.875 > 1e-37 ? most / 1.875 : 0;
        sz_f32(scales)[first / 256] = (float)scale;
        for (int64_t i = first; i < end; i++) {
            int largest = top == 15 ? 127 : 255;
            int code = scale > 0 ? code_of(fabs(values[i]) / scale, top, fraction(c, stream, i))
                                 : 0;
            if (code > largest) code = largest;
            if (top == 31 && code == 0 && scale > 0 && values[i] != 0) code = 1;
            ((uint8_t *)t->data)[i] = (uint8_t)(values[i] < 0 && scale > 0 ? code + 128 : code);
        }
    }
}

int sz_ref_adamw_compact_(const sz_call *c)
{
    sz_tensor *param = c->out[0];
    sz_tensor *grad = c->in[1];
    sz_tensor *m = c->in[2];
    sz_tensor *v = c->in[3];
    sz_tensor *master = c->in[6];
    double lr = c->args[0];
    double b1 = c->args[1];
    double b2 = c->args[2];
    double eps = c->args[3];
    double wd = c->args[4];
    double step = c->args[5];
    double *moments = sz_scratch((size_t)(2 * param->numel + 1) * sizeof *moments);
    double *m1 = moments;
    double *v1 = moments + param->numel;
    if (!moments) return -1;
    for (int64_t i = 0; i < param->numel; i++) {
        double g = (double)sz_get(grad, i) * c->args[6];
        m1[i] = b1 * load(m, c->in[4], 15, i) + (1 - b1) * g;
        v1[i] = b2 * load(v, c->in[5], 31, i) + (1 - b2) * g * g;
        double p = (double)sz_get(master ? master : param, i) * (1 - lr * wd);
        p -= lr * (m1[i] / (1 - pow(b1, step))) / (sqrt(v1[i] / (1 - pow(b2, step))) + eps);
        if (master) sz_put(master, i, (float)p);
        if (master || param->dtype == SZ_F32) sz_put(param, i, (float)p);
        else sz_bf16(param)[i] = bf16_of((float)p, fraction(c, 2, i));
    }
    store(c, 0, m, c->in[4], 15, m1);
    store(c, 1, v, c->in[5], 31, v1);
    return 0;
}

int sz_ref_sum_squares(const sz_call *c)
{
    double s = 0;
    for (int64_t i = 0; i < c->in[0]->numel; i++)
        s += (double)sz_get(c->in[0], i) * (double)sz_get(c->in[0], i);
    sz_put(c->out[0], 0, (float)s);
    return 0;
}
