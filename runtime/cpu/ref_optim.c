/* ref_optim.c - the plain kernels of adamw_ and sum_squares, in double. */
#include "../core.h"
#include <math.h>

/* (param, grad, m, v, master | NULL; lr, b1, b2, eps, wd, step, grad_scale) */
int sz_ref_adamw_(const sz_call *c)
{
    sz_tensor *param = c->out[0], *grad = c->in[1], *m = c->in[2], *v = c->in[3], *master = c->in[4] ? c->in[4] : param;
    double lr = c->args[0], b1 = c->args[1], b2 = c->args[2], eps = c->args[3], wd = c->args[4], step = c->args[5];
    for (int64_t i = 0; i < param->numel; i++) {
        double g = (double)sz_get(grad, i) * c->args[6];
        double m1 = b1 * (double)sz_get(m, i) + (1 - b1) * g, v1 = b2 * (double)sz_get(v, i) + (1 - b2) * g * g;
        double p = (double)sz_get(master, i) * (1 - lr * wd);
        p -= lr * (m1 / (1 - pow(b1, step))) / (sqrt(v1 / (1 - pow(b2, step))) + eps);
        sz_put(m, i, (float)m1);
        sz_put(v, i, (float)v1);
        sz_put(master, i, (float)p);
        if (master != param) sz_put(param, i, sz_get(master, i));
    }
    return 0;
}

int sz_ref_sum_squares(const sz_call *c)
{
    double s = 0;
    for (int64_t i = 0; i < c->in[0]->numel; i++) s += (double)sz_get(c->in[0], i) * (double)sz_get(c->in[0], i);
    sz_put(c->out[0], 0, (float)s);
    return 0;
}
