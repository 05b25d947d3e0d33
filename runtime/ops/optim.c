/* optim.c - AdamW over a list of parameters: the moments, f32 masters for bf16 parameters, the global gradient norm. f32 moments
 * and masters are the default, 12 bytes of a bf16 parameter; 8-bit moments without masters are 2.
 * The arithmetic is the op adamw_, or adamw_compact_ where anything is narrower than it takes; this file owns the state. Moments start, and
 * gradients end, as pages that are not there (sz_bytes_clear). Leaves out: schedules and clipping decisions (Lua's). */
#include "core/core.h"
#include "core/device.h"
#include <math.h>
#include <stdlib.h>

enum { FIRST, SECOND, MASTER, FIRST_SCALE, SECOND_SCALE, STATES };      /* as sz_adamw_state counts them */

struct sz_adamw {
    int n;
    int64_t steps;
    sz_tensor **params;
    sz_tensor **state[STATES];
};

void sz_adamw_free(sz_adamw *o)
{
    if (!o) return;
    for (int i = 0; i < o->n; i++) {
        sz_tensor_release(o->params ? o->params[i] : NULL);
        for (int k = 0; k < STATES; k++) sz_tensor_release(o->state[k] ? o->state[k][i] : NULL);
    }
    for (int k = 0; k < STATES; k++) free(o->state[k]);
    free(o->params);
    free(o);
}

/* State k of a parameter, NULL with *wanted false where it has none. Moments are 0. */
static sz_tensor *state_new(int k, sz_tensor *p, int moments, bool masters, bool *wanted)
{
    const bool scale = k >= FIRST_SCALE;
    *wanted = k == MASTER ? masters && p->dtype != SZ_F32 : !scale || moments == SZ_U8;
    if (!*wanted) return NULL;
    sz_tensor *t = scale ? sz_tensor_new_heap(SZ_F32, 1, (int64_t[]){ (p->numel + SZ_MOMENT_BLOCK - 1) / SZ_MOMENT_BLOCK }, p->device)
                         : sz_tensor_new_heap(k == MASTER ? SZ_F32 : moments, p->ndim, p->shape, p->device);
    if (t && (k == MASTER ? sz_tensor_copy(t, p) : sz_bytes_clear(t->device, t->data, sz_bytes(t))) != 0) {
        sz_tensor_release(t);
        return NULL;
    }
    return t;
}

sz_adamw *sz_adamw_new(sz_tensor **params, int n, int moments, int masters)
{
    if (moments != SZ_F32 && moments != SZ_BF16 && moments != SZ_U8) return sz_null("adamw: moments are f32, bf16 or 8-bit codes (u8)");
    sz_adamw *o = calloc(1, sizeof *o);
    if (!o) return sz_null("out of memory");
    o->n = n;
    o->params = calloc((size_t)n, sizeof *o->params);
    bool ok = o->params != NULL;
    for (int k = 0; k < STATES; k++) ok = (o->state[k] = calloc((size_t)n, sizeof *o->state[k])) && ok;
    for (int i = 0; ok && i < n; i++) {
        sz_tensor *p = params[i];
        if (!sz_needs_grad(p)) {
            sz_fail("adamw: parameter %d does not require a gradient", i + 1);
            ok = false;
            break;
        }
        o->params[i] = sz_tensor_retain(p);
        for (int k = 0; ok && k < STATES; k++) {
            bool wanted;
            o->state[k][i] = state_new(k, p, moments, masters != 0, &wanted);
            ok = o->state[k][i] || !wanted;
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
        sz_tensor *p = o->params[i], *g = sz_grad_buffer(p), *of[STATES];
        for (int k = 0; k < STATES; k++) of[k] = o->state[k][i];
        const bool plain = g && g->dtype == SZ_F32 && of[FIRST]->dtype == SZ_F32 && (of[MASTER] || p->dtype == SZ_F32);
        sz_call c = { .in = { p, g, of[FIRST], of[SECOND] }, .args = { lr, beta1, beta2, eps, weight_decay, (double)o->steps, grad_scale } };
        if (plain) {
            c.in[4] = of[MASTER];
        } else {
            c.in[4] = of[FIRST_SCALE], c.in[5] = of[SECOND_SCALE], c.in[6] = of[MASTER];
            c.args[7] = i;
        }
        rc = g ? sz_apply(plain ? SZ_OP_adamw_ : SZ_OP_adamw_compact_, &c) : -1;
        if (rc == 0) sz_tensor_release(c.out[0]);
        if (rc == 0) sz_tensor_zero_grad(p);        /* at once: its pages are free for the moments that the next one touches */
    }
    sz_set_grad_enabled(before);
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
    if (i < 0 || i >= o->n || which < 0 || which >= STATES) return sz_null("adamw: no state %d of parameter %d", which, i);
    return o->state[which][i];
}
