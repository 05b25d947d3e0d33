/* optim.c - AdamW over a list of parameters: f32 moments, f32 masters for bf16 parameters, the global gradient norm.
 * The arithmetic is the op adamw_; this file owns the state. Leaves out: schedules and clipping decisions (Lua's). */
#include "core.h"
#include "device.h"
#include <math.h>
#include <stdlib.h>

struct sz_adamw {
    int n;
    int64_t steps;
    sz_tensor **params;
    sz_tensor **state[3];           /* first moment, second moment, master */
};

void sz_adamw_free(sz_adamw *o)
{
    if (!o) return;
    for (int i = 0; i < o->n; i++) {
        sz_tensor_release(o->params ? o->params[i] : NULL);
        for (int k = 0; k < 3; k++) sz_tensor_release(o->state[k] ? o->state[k][i] : NULL);
    }
    for (int k = 0; k < 3; k++) free(o->state[k]);
    free(o->params);
    free(o);
}

sz_adamw *sz_adamw_new(sz_tensor **params, int n)
{
    sz_adamw *o = calloc(1, sizeof *o);
    if (!o) return sz_null("out of memory");
    o->n = n;
    o->params = calloc((size_t)n, sizeof *o->params);
    for (int k = 0; k < 3; k++) o->state[k] = calloc((size_t)n, sizeof *o->state[k]);
    bool ok = o->params && o->state[0] && o->state[1] && o->state[2];
    for (int i = 0; ok && i < n; i++) {
        sz_tensor *p = params[i];
        if (!sz_needs_grad(p)) {
            sz_fail("adamw: parameter %d does not require a gradient", i + 1);
            ok = false;
            break;
        }
        o->params[i] = sz_tensor_retain(p);
        for (int k = 0; ok && k < (p->dtype == SZ_F32 ? 2 : 3); k++) {
            sz_tensor *t = o->state[k][i] = sz_tensor_new_heap(SZ_F32, p->ndim, p->shape, p->device);
            ok = t != NULL;
            if (ok) ok = (k < 2 ? sz_bytes_fill(t->device, t->data, 0, sz_bytes(t)) : sz_tensor_copy(t, p)) == 0;
        }
    }
    if (ok) return o;
    sz_adamw_free(o);
    return NULL;
}

/* Sum of squares of parameter i's gradient into sums[i], on the parameters' device. */
static int square_sum(sz_adamw *o, int i, sz_tensor *sums)
{
    sz_call c = { .in = { o->params[i]->grad } };
    if (sz_apply(SZ_OP_sum_squares, &c) != 0) return -1;
    sz_tensor *one = sz_tensor_view(sums, 1, (int64_t[]){ 1 }, i);
    int rc = one ? sz_tensor_copy(one, c.out[0]) : -1;
    sz_tensor_release(one);
    sz_tensor_release(c.out[0]);
    return rc;
}

double sz_adamw_grad_norm(sz_adamw *o)
{
    double total = 0;
    if (!o->n) return 0;
    sz_scope_push();                /* the sums are arena tensors: a step asks the system for nothing */
    /* One reading for all parameters: on a device each would wait for it. */
    sz_tensor *sums = sz_tensor_zeros(SZ_F32, 1, (int64_t[]){ o->n }, o->params[0]->device), *read = NULL;
    int rc = sums ? 0 : -1;
    for (int i = 0; rc == 0 && i < o->n; i++)
        if (o->params[i]->grad) rc = square_sum(o, i, sums);
    if (rc == 0) rc = (read = sz_tensor_to(sums, SZ_CPU)) ? 0 : -1;
    for (int i = 0; rc == 0 && i < o->n; i++) total += (double)sz_f32(read)[i];
    sz_tensor_release(read);
    sz_tensor_release(sums);
    sz_scope_pop();
    return rc == 0 ? sqrt(total) : -1;
}

int sz_adamw_step(sz_adamw *o, double lr, double beta1, double beta2, double eps, double weight_decay, double grad_scale)
{
    o->steps++;
    int before = sz_set_grad_enabled(0), rc = 0;
    for (int i = 0; i < o->n && rc == 0; i++) {
        sz_tensor *p = o->params[i], *g = sz_grad_buffer(p);
        if (!g) rc = -1;
        sz_call c = { .in = { p, g, o->state[0][i], o->state[1][i], o->state[2][i] },
                      .args = { lr, beta1, beta2, eps, weight_decay, (double)o->steps, grad_scale } };
        if (rc == 0) rc = sz_apply(SZ_OP_adamw_, &c);
        if (rc == 0) sz_tensor_release(c.out[0]);
    }
    sz_set_grad_enabled(before);
    if (rc == 0) sz_adamw_zero_grad(o);
    return rc;
}

void sz_adamw_zero_grad(sz_adamw *o)
{
    for (int i = 0; i < o->n; i++) sz_tensor_zero_grad(o->params[i]);
}

int64_t sz_adamw_steps(const sz_adamw *o) { return o->steps; }
void    sz_adamw_set_steps(sz_adamw *o, int64_t steps) { o->steps = steps; }
sz_tensor *sz_adamw_state(sz_adamw *o, int i, int which)
{
    if (i < 0 || i >= o->n || which < 0 || which > 2) return sz_null("adamw: no state %d of parameter %d", which, i);
    return o->state[which][i];
}
