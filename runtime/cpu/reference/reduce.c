/* reduce.c - the plain kernels of sum_dim, max_dim, min_dim, their gradient, and cross_entropy: one
 * loop an element, sums in double. What the fast kernels are compared with. */
#include "ops/dims.h"
#include <math.h>

/* Element k of the dimension, of result i. */
static double along(const sz_tensor *x, sz_around a, int64_t i, int64_t k)
{
    return (double)sz_get(x, (i / a.inner * a.n + k) * a.inner + i % a.inner);
}

int sz_ref_sum_dim(const sz_call *c)
{
    const sz_around a = sz_around_dim(c->in[0], (int)c->args[0]);
    for (int64_t i = 0; i < a.outer * a.inner; i++) {
        double sum = 0;
        for (int64_t k = 0; k < a.n; k++) sum += along(c->in[0], a, i, k);
        sz_put(c->out[0], i, (float)sum);
    }
    return 0;
}

/* sign 1: the largest, -1: the smallest. The first NaN, if there is one. */
static int extreme(const sz_call *c, double sign)
{
    const sz_around a = sz_around_dim(c->in[0], (int)c->args[0]);
    for (int64_t i = 0; i < a.outer * a.inner; i++) {
        int64_t best = 0;
        for (int64_t k = 1; k < a.n; k++) {
            double value = along(c->in[0], a, i, k);
            double so_far = along(c->in[0], a, i, best);
            if (!isnan(so_far) && (isnan(value) || sign * value > sign * so_far)) best = k;
        }
        sz_put(c->out[0], i, (float)along(c->in[0], a, i, best));
        sz_i32(c->out[1])[i] = (int32_t)best;
    }
    return 0;
}

int sz_ref_max_dim(const sz_call *c) { return extreme(c, 1); }
int sz_ref_min_dim(const sz_call *c) { return extreme(c, -1); }

int sz_ref_extreme_backward(const sz_call *c)
{
    const sz_around a = sz_around_dim(c->in[0], (int)c->args[0]);
    for (int64_t i = 0; i < a.outer * a.inner; i++) {
        bool found = false;
        double wanted = (double)sz_get(c->in[1], i);
        for (int64_t k = 0; k < a.n; k++) {
            double value = along(c->in[0], a, i, k);
            bool hit = !found && (value == wanted || (isnan(value) && isnan(wanted)));
            int64_t place = (i / a.inner * a.n + k) * a.inner + i % a.inner;
            sz_put(c->out[0], place, hit ? sz_get(c->in[2], i) : 0.0f);
            found |= hit;
        }
    }
    return 0;
}

static double log_sum_exp(const sz_tensor *x, int64_t row)
{
    const int64_t v = x->shape[1];
    double highest = -INFINITY;
    double sum = 0;
    for (int64_t j = 0; j < v; j++) {
        const double value = (double)sz_get(x, row * v + j);
        if (value > highest) highest = value;
    }
    for (int64_t j = 0; j < v; j++) sum += exp((double)sz_get(x, row * v + j) - highest);
    return highest + log(sum);
}

int sz_ref_cross_entropy(const sz_call *c)
{
    const sz_tensor *x = c->in[0];
    for (int64_t row = 0; row < x->shape[0]; row++) {
        int32_t id = sz_i32(c->in[1])[row];
        double lse = log_sum_exp(x, row);
        double loss = 0;
        if (id != (int32_t)c->args[0]) loss = lse - (double)sz_get(x, row * x->shape[1] + id);
        sz_put(c->out[0], row, (float)loss);
        sz_put(c->out[1], row, (float)lse);
    }
    return 0;
}

int sz_ref_cross_entropy_backward(const sz_call *c)
{
    const sz_tensor *x = c->in[0];
    const int64_t v = x->shape[1];
    for (int64_t row = 0; row < x->shape[0]; row++) {
        int32_t id = sz_i32(c->in[1])[row];
        double lse = (double)sz_get(c->in[2], row);
        double dloss = id == (int32_t)c->args[0] ? 0 : (double)sz_get(c->in[3], row);
        for (int64_t j = 0; j < v; j++) {
            double p = exp((double)sz_get(x, row * v + j) - lse);
            sz_put(c->out[0], row * v + j, (float)((p - (j == id)) * dloss));
        }
    }
    return 0;
}
