/* optim.c - the optimizer's two kernels on the CPU: the AdamW update and the sum of squares behind the gradient norm.
 * Both are bound by memory. The reference is ref_optim.c; the optimizer object around them is runtime/optim.c.
 */
#include "vecmath.h"
#include <math.h>

typedef struct { float decay, one_minus_b1, b2, one_minus_b2, step_size, root_correction, eps, grad_scale; } adamw_numbers;

/* p is the f32 parameter or its f32 master. Decoupled decay, bias-corrected moments, as PyTorch's AdamW. */
static void adamw_block(float *restrict p, const float *restrict grad, float *restrict m, float *restrict v, int64_t n,
                        const adamw_numbers *k)
{
    const adamw_numbers a = *k;
    for (int64_t i = 0; i < n; i++) {
        float g = grad[i] * a.grad_scale;
        float m1 = m[i] + a.one_minus_b1 * (g - m[i]);
        float v1 = a.b2 * v[i] + a.one_minus_b2 * g * g;
        m[i] = m1;
        v[i] = v1;
        p[i] = p[i] * a.decay - a.step_size * m1 / (sqrtf(v1) * a.root_correction + a.eps);
    }
}

/* (param, grad, m, v, master | NULL; lr, b1, b2, eps, wd, step, grad_scale) */
int sz_cpu_adamw_(const sz_call *c)
{
    const sz_tensor *grad = c->in[1], *m = c->in[2], *v = c->in[3], *master = c->in[4];
    sz_tensor *param = c->out[0];
    const double lr = c->args[0], b1 = c->args[1], b2 = c->args[2], step = c->args[5];
    const adamw_numbers k = {
        .decay = (float)(1.0 - lr * c->args[4]),
        .one_minus_b1 = (float)(1.0 - b1), .b2 = (float)b2, .one_minus_b2 = (float)(1.0 - b2),
        .step_size = (float)(lr / (1.0 - pow(b1, step))),
        .root_correction = (float)(1.0 / sqrt(1.0 - pow(b2, step))),
        .eps = (float)c->args[3], .grad_scale = (float)c->args[6],
    };
    float *p = sz_f32(master ? master : param);
    #pragma omp parallel for schedule(static) if (param->numel >= SZ_PARALLEL_FROM)
    for (int64_t start = 0; start < param->numel; start += SZ_BLOCK) {
        float buffer[SZ_BLOCK];
        int64_t n = sz_min64(SZ_BLOCK, param->numel - start);
        adamw_block(p + start, sz_block(grad, start, n, buffer), sz_f32(m) + start, sz_f32(v) + start, n, &k);
        if (master) sz_copy_elements(param, start, master, start, n);
    }
    return 0;
}

/* Fixed chunks in double, added in order: the result does not depend on the thread count. NaN and inf come through. */
int sz_cpu_sum_squares(const sz_call *c)
{
    enum { CHUNK = 8 * SZ_BLOCK };
    const sz_tensor *x = c->in[0];
    const int64_t chunks = sz_ceil_div(x->numel, CHUNK);
    double total = 0, *partial = sz_scratch((size_t)(chunks + 1) * sizeof *partial);
    if (!partial) return -1;
    #pragma omp parallel for schedule(static) if (x->numel >= SZ_PARALLEL_FROM)
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
        float buffer[SZ_BLOCK];
        int64_t end = sz_min64(x->numel, (chunk + 1) * CHUNK);
        double s = 0;
        for (int64_t i = chunk * CHUNK; i < end; i += SZ_BLOCK) {
            int64_t n = sz_min64(SZ_BLOCK, end - i);
            const float *values = sz_block(x, i, n, buffer);
            s += sz_block_dot(values, values, n);
        }
        partial[chunk] = s;
    }
    for (int64_t chunk = 0; chunk < chunks; chunk++) total += partial[chunk];
    sz_f32(c->out[0])[0] = (float)total;
    return 0;
}
