/* optim.cu - the AdamW update on the device: one pass over gradient, moments, f32 parameter or master, and the bf16 parameter.
 * Bound by memory. The reference is cpu/ref_optim.c; sum_squares is in elementwise.cu. */
#include "vector.cuh"
#include <math.h>

enum { THREADS = 256, QUAD = 4 };

typedef struct { float decay, one_minus_b1, b2, one_minus_b2, step_size, root_correction, eps, grad_scale; } adamw_numbers;

/* p is the f32 parameter or its f32 master; rounded, when not NULL, the bf16 (or another f32) parameter. Decoupled decay,
 * bias-corrected moments, as PyTorch's AdamW. */
template <int W> __global__ void adamw_kernel(float *p, sz_elements rounded, const float *grad, float *m, float *v, int64_t first, int64_t n, adamw_numbers a)
{
    const int64_t i = first + ((int64_t)blockIdx.x * THREADS + threadIdx.x) * W;
    if (i >= n) return;
    float g[W], m1[W], v1[W], now[W];
    sz_get_vector<W>(grad + i, g);
    sz_get_vector<W>(m + i, m1);
    sz_get_vector<W>(v + i, v1);
    sz_get_vector<W>(p + i, now);
    for (int j = 0; j < W; j++) {
        g[j] *= a.grad_scale;
        m1[j] += a.one_minus_b1 * (g[j] - m1[j]);
        v1[j] = a.b2 * v1[j] + a.one_minus_b2 * g[j] * g[j];
        now[j] = now[j] * a.decay - a.step_size * m1[j] / (sqrtf(v1[j]) * a.root_correction + a.eps);
    }
    sz_put_vector<W>(m + i, m1);
    sz_put_vector<W>(v + i, v1);
    sz_put_vector<W>(p + i, now);
    if (rounded.data) sz_put_vector<W>(rounded, i, now);
}

/* (param, grad, m, v, master | NULL; lr, b1, b2, eps, wd, step, grad_scale) */
extern "C" int sz_cuda_adamw_(const sz_call *c)
{
    const sz_tensor *param = c->in[0], *grad = c->in[1], *m = c->in[2], *v = c->in[3], *master = c->in[4];
    const double lr = c->args[0], b1 = c->args[1], b2 = c->args[2], step = c->args[5];
    const adamw_numbers a = {
        (float)(1.0 - lr * c->args[4]), (float)(1.0 - b1), (float)b2, (float)(1.0 - b2), (float)(lr / (1.0 - pow(b1, step))),
        (float)(1.0 / sqrt(1.0 - pow(b2, step))), (float)c->args[3], (float)c->args[6],
    };
    float *p = sz_f32(master ? master : param);
    const sz_elements rounded = master ? sz_elements_of(param) : sz_elements{ NULL, false };
    const bool wide = sz_wide_at(p) && sz_wide_at(rounded.data) && sz_wide_at(grad) && sz_wide_at(m) && sz_wide_at(v);
    const int64_t n = param->numel, quads = wide ? n / QUAD : 0, rest = n - quads * QUAD;
    if (quads) SZ_LAUNCH((adamw_kernel<QUAD>), (unsigned)sz_blocks(quads, THREADS), THREADS, 0, p, rounded, sz_f32(grad), sz_f32(m), sz_f32(v), (int64_t)0, quads * QUAD, a);
    if (rest) SZ_LAUNCH((adamw_kernel<1>), (unsigned)sz_blocks(rest, THREADS), THREADS, 0, p, rounded, sz_f32(grad), sz_f32(m), sz_f32(v), quads * QUAD, n, a);
    return sz_cuda_launched("adamw_");
}
