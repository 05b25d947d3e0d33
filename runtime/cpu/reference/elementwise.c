/* reference/elementwise.c - the reference kernels of the "elementwise" rows: one loop, libm,
 * double. The fast kernels of the CPU and of CUDA are compared with them; sz_use_reference(1) makes
 * the program run on them. Leaves out: threads, blocks.
 */
#include "core/core.h"
#include <math.h>

static double sigmoid(double x) { return 1 / (1 + exp(-x)); }
static double normal_below(double x) { return 0.5 * erfc(-x * M_SQRT1_2); }
static double normal_density(double x) { return exp(-0.5 * x * x) / sqrt(2 * M_PI); }

/* y[i] = EXPRESSION of a, b, x (elements i; b repeats when it is shorter) and args. */
#define REF_LOOP(c, EXPRESSION) \
    do { \
        const double *args = (c)->args; \
        (void)args; \
        for (int64_t i = 0; i < (c)->out[0]->numel; i++) { \
            double a = (double)sz_get((c)->in[0], i); \
            double b = (c)->in[1] ? (double)sz_get((c)->in[1], i % (c)->in[1]->numel) : 0; \
            double x = (c)->in[2] ? (double)sz_get((c)->in[2], i) : 0; \
            (void)a, (void)b, (void)x; \
            sz_put((c)->out[0], i, (float)(EXPRESSION)); \
        } \
        return 0; \
    } while (0)

int sz_ref_add(const sz_call *c) { REF_LOOP(c, a + b); }
int sz_ref_sub(const sz_call *c) { REF_LOOP(c, a - b); }
int sz_ref_mul(const sz_call *c) { REF_LOOP(c, a * b); }
int sz_ref_div(const sz_call *c) { REF_LOOP(c, a / b); }
int sz_ref_minimum(const sz_call *c) { REF_LOOP(c, isnan(a) || a < b ? a : b); }
int sz_ref_maximum(const sz_call *c) { REF_LOOP(c, isnan(a) || a > b ? a : b); }
int sz_ref_mask_le(const sz_call *c) { REF_LOOP(c, a <= b ? x : 0); }
int sz_ref_affine(const sz_call *c) { REF_LOOP(c, a * args[0] + args[1]); }
int sz_ref_exp(const sz_call *c) { REF_LOOP(c, exp(a)); }
int sz_ref_log(const sz_call *c) { REF_LOOP(c, log(a)); }
int sz_ref_sigmoid(const sz_call *c) { REF_LOOP(c, sigmoid(a)); }
int sz_ref_silu(const sz_call *c) { REF_LOOP(c, a * sigmoid(a)); }
int sz_ref_silu_backward(const sz_call *c)
{
    REF_LOOP(c, b * sigmoid(a) * (1 + a * (1 - sigmoid(a))));
}
int sz_ref_gelu(const sz_call *c) { REF_LOOP(c, a * normal_below(a)); }
int sz_ref_gelu_backward(const sz_call *c)
{
    REF_LOOP(c, b * (normal_below(a) + a * normal_density(a)));
}
int sz_ref_quick_gelu(const sz_call *c) { REF_LOOP(c, a * sigmoid(1.702 * a)); }
int sz_ref_quick_gelu_backward(const sz_call *c)
{
    REF_LOOP(c, b * sigmoid(1.702 * a) * (1 + 1.702 * a * (1 - sigmoid(1.702 * a))));
}
int sz_ref_relu(const sz_call *c) { REF_LOOP(c, a < 0 ? 0 : a); }
int sz_ref_relu_backward(const sz_call *c) { REF_LOOP(c, a > 0 ? b : 0); }
int sz_ref_softplus(const sz_call *c) { REF_LOOP(c, (a > 0 ? a : 0) + log1p(exp(-fabs(a)))); }
/* Limits are f32 numbers, as the elements that are compared with them. */
int sz_ref_clamp(const sz_call *c)
{
    REF_LOOP(c, a < (double)(float)args[0] ? args[0] : a > (double)(float)args[1] ? args[1] : a);
}
int sz_ref_clamp_backward(const sz_call *c)
{
    REF_LOOP(c, a >= (double)(float)args[0] && a <= (double)(float)args[1] ? b : 0);
}

int sz_ref_swiglu(const sz_call *c)
{
    sz_tensor *x = c->in[0];
    sz_tensor *y = c->out[0];
    int64_t w = sz_cols(y);
    for (int64_t i = 0; i < y->numel; i++) {
        int64_t at = i / w * 2 * w + i % w;
        double gate = (double)sz_get(x, at);
        double up = (double)sz_get(x, at + w);
        sz_put(y, i, (float)(gate * sigmoid(gate) * up));
    }
    return 0;
}

int sz_ref_swiglu_backward(const sz_call *c)
{
    sz_tensor *x = c->in[0];
    sz_tensor *dy = c->in[1];
    sz_tensor *dx = c->out[0];
    int64_t w = sz_cols(dy);
    for (int64_t i = 0; i < dy->numel; i++) {
        int64_t at = i / w * 2 * w + i % w;
        double gate = (double)sz_get(x, at);
        double up = (double)sz_get(x, at + w);
        double g = (double)sz_get(dy, i);
        double s = sigmoid(gate);
        sz_put(dx, at, (float)(g * up * s * (1 + gate * (1 - s))));
        sz_put(dx, at + w, (float)(g * gate * s));
    }
    return 0;
}

int sz_ref_cast(const sz_call *c)
{
    sz_tensor *x = c->in[0];
    sz_tensor *y = c->out[0];
    for (int64_t i = 0; i < y->numel; i++) {
        double v = x->dtype == SZ_I32  ? (double)sz_i32(x)[i]
                   : x->dtype == SZ_U8 ? (double)((uint8_t *)x->data)[i]
                                       : (double)sz_get(x, i);
        if (y->dtype == SZ_I32) sz_i32(y)[i] = (int32_t)v;
        else if (y->dtype == SZ_U8) ((uint8_t *)y->data)[i] = (uint8_t)(int32_t)v;
        else sz_put(y, i, (float)v);
    }
    return 0;
}

int sz_ref_sum(const sz_call *c)
{
    double s = 0;
    for (int64_t i = 0; i < c->in[0]->numel; i++) s += (double)sz_get(c->in[0], i);
    sz_put(c->out[0], 0, (float)s);
    return 0;
}

int sz_ref_sum_leading(const sz_call *c)
{
    int64_t n = c->out[0]->numel;
    for (int64_t j = 0; j < n; j++) {
        double s = 0;
        for (int64_t i = j; i < c->in[0]->numel; i += n) s += (double)sz_get(c->in[0], i);
        sz_put(c->out[0], j, (float)s);
    }
    return 0;
}

int sz_ref_expand(const sz_call *c)
{
    for (int64_t i = 0; i < c->out[0]->numel; i++) sz_put(c->out[0], i, sz_get(c->in[0], 0));
    return 0;
}

int sz_ref_add_(const sz_call *c)
{
    for (int64_t i = 0; i < c->out[0]->numel; i++)
        sz_put(c->out[0], i, (float)((double)sz_get(c->out[0], i) + (double)sz_get(c->in[1], i)));
    return 0;
}
