/* pointwise.c - sqrt, pow, comparisons and choose on the CPU: element by element, a second tensor
 * of pow and compare may be shorter and repeats.
 *
 * pow calls libm for each element, which no compiler vectorises. Leaves out: the other elementwise
 * ops (elementwise.c). The reference is reference/pointwise.c. */
#include "ops/dims.h"
#include "vecmath.h"
#include <math.h>

int sz_cpu_sqrt(const sz_call *c)
{
    const sz_tensor *x = c->in[0];
    sz_tensor *y = c->out[0];
#pragma omp parallel for schedule(static) if (x->numel >= SZ_PARALLEL_FROM)
    for (int64_t start = 0; start < x->numel; start += SZ_BLOCK) {
        float x_buffer[SZ_BLOCK];
        float y_buffer[SZ_BLOCK];
        int64_t count = sz_min64(SZ_BLOCK, x->numel - start);
        const float *values = sz_block(x, start, count, x_buffer);
        float *roots = sz_block_begin(y, start, y_buffer);
        for (int64_t i = 0; i < count; i++) roots[i] = sqrtf(values[i]);
        sz_block_end(y, start, count, roots);
    }
    return 0;
}

int sz_cpu_pow(const sz_call *c)
{
    const sz_tensor *a = c->in[0];
    const sz_tensor *b = c->in[1];
    sz_tensor *y = c->out[0];
#pragma omp parallel for schedule(static) if (a->numel >= SZ_PARALLEL_FROM)
    for (int64_t i = 0; i < a->numel; i++)
        sz_put(y, i, powf(sz_get(a, i), sz_get(b, i % b->numel)));
    return 0;
}

/* da = dy b a^(b - 1), 0 where b = 0;  db = dy a^b log(a), 0 where a = 0 and b >= 0: PyTorch's
 * limits. */
int sz_cpu_pow_backward(const sz_call *c)
{
    const sz_tensor *a = c->in[0];
    const sz_tensor *b = c->in[1];
#pragma omp parallel for schedule(static) if (a->numel >= SZ_PARALLEL_FROM)
    for (int64_t i = 0; i < a->numel; i++) {
        float base = sz_get(a, i);
        float exponent = sz_get(b, i % b->numel);
        float dy = sz_get(c->in[2], i);
        float da = 0;
        float db = 0;
        if (exponent != 0) da = dy * exponent * powf(base, exponent - 1);
        if (!(base == 0 && exponent >= 0)) db = dy * powf(base, exponent) * logf(base);
        sz_put(c->out[0], i, da);
        sz_put(c->out[1], i, db);
    }
    return 0;
}

/* Any dtype as double, which holds all of them. */
static inline double number(const sz_tensor *t, int64_t i)
{
    switch (t->dtype) {
    case SZ_I32: return sz_i32(t)[i];
    case SZ_U8: return ((const uint8_t *)t->data)[i];
    default: return (double)sz_get(t, i);
    }
}

static inline bool holds(double a, double b, int kind)
{
    switch (kind) {
    case SZ_EQ: return a == b;
    case SZ_NE: return a != b;
    case SZ_LT: return a < b;
    case SZ_LE: return a <= b;
    case SZ_GT: return a > b;
    default: return a >= b;
    }
}

int sz_cpu_compare(const sz_call *c)
{
    const sz_tensor *a = c->in[0];
    const sz_tensor *b = c->in[1];
    const int kind = (int)c->args[0];
    float *y = sz_f32(c->out[0]);
#pragma omp parallel for schedule(static) if (a->numel >= SZ_PARALLEL_FROM)
    for (int64_t i = 0; i < a->numel; i++)
        y[i] = holds(number(a, i), number(b, i % b->numel), kind);
    return 0;
}

/* (condition, a | NULL, b | NULL): a where the condition is not 0, else b. A missing one is 0. */
int sz_cpu_choose(const sz_call *c)
{
    const sz_tensor *condition = c->in[0];
    sz_tensor *y = c->out[0];
#pragma omp parallel for schedule(static) if (y->numel >= SZ_PARALLEL_FROM)
    for (int64_t i = 0; i < y->numel; i++) {
        const sz_tensor *chosen = number(condition, i) != 0 ? c->in[1] : c->in[2];
        sz_put(y, i, chosen ? sz_get(chosen, i) : 0.0f);
    }
    return 0;
}
