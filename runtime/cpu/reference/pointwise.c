/* pointwise.c - the plain kernels of sqrt, pow, compare and choose: one loop, libm, double. What
 * the fast kernels are compared with. */
#include "ops/dims.h"
#include <math.h>

int sz_ref_sqrt(const sz_call *c)
{
    for (int64_t i = 0; i < c->in[0]->numel; i++)
        sz_put(c->out[0], i, (float)sqrt((double)sz_get(c->in[0], i)));
    return 0;
}

int sz_ref_pow(const sz_call *c)
{
    const sz_tensor *b = c->in[1];
    for (int64_t i = 0; i < c->in[0]->numel; i++) {
        double base = (double)sz_get(c->in[0], i);
        sz_put(c->out[0], i, (float)pow(base, (double)sz_get(b, i % b->numel)));
    }
    return 0;
}

int sz_ref_pow_backward(const sz_call *c)
{
    for (int64_t i = 0; i < c->in[0]->numel; i++) {
        double a = (double)sz_get(c->in[0], i);
        double b = (double)sz_get(c->in[1], i % c->in[1]->numel);
        double dy = (double)sz_get(c->in[2], i);
        double da = b == 0 ? 0 : dy * b * pow(a, b - 1);
        double db = a == 0 && b >= 0 ? 0 : dy * pow(a, b) * log(a);
        sz_put(c->out[0], i, (float)da);
        sz_put(c->out[1], i, (float)db);
    }
    return 0;
}

static double number(const sz_tensor *t, int64_t i)
{
    if (t->dtype == SZ_I32) return sz_i32(t)[i];
    if (t->dtype == SZ_U8) return ((const uint8_t *)t->data)[i];
    return (double)sz_get(t, i);
}

int sz_ref_compare(const sz_call *c)
{
    for (int64_t i = 0; i < c->in[0]->numel; i++) {
        double a = number(c->in[0], i);
        double b = number(c->in[1], i % c->in[1]->numel);
        const bool holds[SZ_COMPARISONS] = {
            [SZ_EQ] = a == b,
            [SZ_NE] = a != b,
            [SZ_LT] = a<b, [SZ_LE] = a <= b, [SZ_GT] = a> b,
            [SZ_GE] = a >= b,
        };
        sz_put(c->out[0], i, holds[(int)c->args[0]]);
    }
    return 0;
}

int sz_ref_choose(const sz_call *c)
{
    for (int64_t i = 0; i < c->out[0]->numel; i++) {
        const sz_tensor *chosen = number(c->in[0], i) != 0 ? c->in[1] : c->in[2];
        sz_put(c->out[0], i, chosen ? sz_get(chosen, i) : 0.0f);
    }
    return 0;
}
