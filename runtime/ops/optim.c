/* optim.c - AdamW: the checks of its two ops, and the optimizer over a list of parameters. It
 * owns the moments, the f32 masters of bf16 parameters, and the global gradient norm. f32 moments
 * and masters are the default, 12 bytes of a bf16 parameter; 8-bit moments without masters are 2.
 *
 * An optimizer of parts keeps state of a range of each parameter and updates that range alone. With
 * several ranks each has its own ranges (lua/segzero/train/shards.lua). They begin at multiples of
 * SZ_ROUNDING_BLOCK elements, so that blocks and random numbers are those of the whole.
 *
 * The arithmetic is the op adamw_, or adamw_compact_ where any tensor is narrower than adamw_
 * takes. Moments start, and gradients end, as pages that occupy no memory (sz_bytes_clear).
 * Leaves out: schedules and the decision to clip (Lua's); state that waits in host memory
 * (optim_offload.c).
 */
#include "optim.h"
#include "core/processor.h"
#include "core/device.h"
#include <math.h>
#include <stdlib.h>

/* ---- the ops adamw_ and adamw_compact_ ---- */
static bool same_size(const sz_tensor *p, const sz_tensor *g, const sz_tensor *m,
                      const sz_tensor *v)
{
    return g->numel == p->numel && m->numel == p->numel && v->numel == p->numel;
}

static bool is_master_of(const sz_tensor *master, const sz_tensor *p)
{
    return master->dtype == SZ_F32 && master->numel == p->numel;
}

int sz_shape_adamw_(int op, sz_call *c)
{
    sz_tensor *p = c->in[0];
    sz_tensor *g = c->in[1];
    sz_tensor *m = c->in[2];
    sz_tensor *v = c->in[3];
    sz_tensor *master = c->in[4];
    SZ_REQUIRE(sz_is_float(p) && sz_is_f32(g) && sz_is_f32(m) && sz_is_f32(v),
               "takes a parameter and f32 gradient, m, v");
    SZ_REQUIRE(same_size(p, g, m, v), "takes tensors of equal size");
    SZ_REQUIRE(master ? is_master_of(master, p) : p->dtype == SZ_F32,
               "a bf16 parameter needs an f32 master of its size");
    return sz_out_in_place(c);
}

static int64_t scale_count(int64_t elements)
{
    return (elements + SZ_MOMENT_BLOCK - 1) / SZ_MOMENT_BLOCK;
}

/* 8-bit moments have an f32 scale for each block, others have none. */
static bool scale_fits(const sz_tensor *scale, const sz_tensor *moment, const sz_tensor *p)
{
    if (moment->dtype != SZ_U8) return !scale;
    return sz_is_f32(scale) && scale->numel == scale_count(p->numel);
}

int sz_shape_adamw_compact_(int op, sz_call *c)
{
    sz_tensor *p = c->in[0];
    sz_tensor *g = c->in[1];
    sz_tensor *m = c->in[2];
    sz_tensor *v = c->in[3];
    sz_tensor *master = c->in[6];
    SZ_REQUIRE(sz_is_float(p) && sz_is_float(g) && m && v && m->dtype == v->dtype &&
                   m->dtype != SZ_I32,
               "takes a parameter, its gradient, m and v");
    SZ_REQUIRE(same_size(p, g, m, v), "takes tensors of equal size");
    SZ_REQUIRE(scale_fits(c->in[4], m, p) && scale_fits(c->in[5], v, p),
               "u8 moments need an f32 scale for each block, others none");
    SZ_REQUIRE(!master || is_master_of(master, p), "a master is f32 and of the parameter's size");
    SZ_REQUIRE((int64_t)c->args[8] % SZ_ROUNDING_BLOCK == 0, "first is a multiple of 512");
    return sz_out_in_place(c);
}

/* ---- the optimizer: its state ---- */
void sz_adamw_free(sz_adamw *o)
{
    if (!o) return;
    for (int i = 0; i < o->n; i++) {
        sz_tensor_release(o->params ? o->params[i] : NULL);
        for (int k = 0; k < SZ_ADAMW_STATES; k++)
            sz_tensor_release(o->state[k] ? o->state[k][i] : NULL);
    }
    for (int k = 0; k < SZ_ADAMW_STATES; k++) free(o->state[k]);
    free(o->params);
    free(o->squares);
    free(o->first);
    free(o->count);
    free(o);
}

static bool has_state(int k, const sz_tensor *p, int moments, bool masters)
{
    if (k == SZ_ADAMW_MASTER) return masters && p->dtype != SZ_F32;
    if (k == SZ_ADAMW_FIRST_SCALE || k == SZ_ADAMW_SECOND_SCALE) return moments == SZ_U8;
    return true;
}

sz_tensor *sz_adamw_part(const sz_adamw *o, int i, sz_tensor *whole)
{
    if (!o->first) return sz_tensor_retain(whole);
    return sz_tensor_view(whole, 1, &o->count[i], o->first[i]);
}

static bool is_empty(const sz_adamw *o, int i) { return o->count && o->count[i] == 0; }

/* State k of a parameter or part: moments and scales are 0, a master is a copy. NULL with a
 * message. */
static sz_tensor *state_new(int k, sz_tensor *p, int moments, bool away)
{
    const int device = away ? SZ_CPU : p->device;
    if (k == SZ_ADAMW_MASTER) {
        sz_tensor *master = away ? sz_tensor_new_locked(SZ_F32, p->ndim, p->shape)
                                 : sz_tensor_new_heap(SZ_F32, p->ndim, p->shape, device);
        if (master && sz_tensor_copy(master, p) == 0) return master;
        sz_tensor_release(master);
        return NULL;
    }
    sz_tensor *t;
    if (k == SZ_ADAMW_FIRST || k == SZ_ADAMW_SECOND) {
        t = away ? sz_tensor_new_locked(moments, p->ndim, p->shape)
                 : sz_tensor_new_heap(moments, p->ndim, p->shape, device);
    } else {
        const int64_t count = scale_count(p->numel);
        t = sz_tensor_new_heap(SZ_F32, 1, &count, p->device);
    }
    /* Page-locked memory cannot go back to the system. */
    const bool cleared = t && (away ? sz_bytes_fill(SZ_CPU, t->data, 0, sz_bytes(t))
                                    : sz_bytes_clear(t->device, t->data, sz_bytes(t))) == 0;
    if (cleared) return t;
    sz_tensor_release(t);
    return NULL;
}

/* Takes parameter i on, with its state. */
static int add_parameter(sz_adamw *o, int i, sz_tensor *p, int moments, bool masters)
{
    if (!sz_needs_grad(p)) return sz_fail("adamw: parameter %d does not require a gradient", i + 1);
    o->params[i] = sz_tensor_retain(p);
    if (is_empty(o, i)) return 0;
    sz_tensor *part = sz_adamw_part(o, i, p);
    int rc = part ? 0 : -1;
    for (int k = 0; rc == 0 && k < SZ_ADAMW_STATES; k++) {
        if (!has_state(k, p, moments, masters)) continue;
        o->state[k][i] = state_new(k, part, moments, sz_adamw_is_away(o, k, part));
        if (!o->state[k][i]) rc = -1;
    }
    sz_tensor_release(part);
    return rc;
}

/* Takes the ranges on. first: NULL for whole parameters. */
static int set_parts(sz_adamw *o, sz_tensor **params, const int64_t *first, const int64_t *count)
{
    if (!first) return 0;
    o->first = calloc((size_t)o->n + 1, sizeof *first);
    o->count = calloc((size_t)o->n + 1, sizeof *count);
    if (!o->first || !o->count) return sz_fail("out of memory");
    for (int i = 0; i < o->n; i++) {
        const int64_t end = first[i] + count[i];
        if (first[i] < 0 || count[i] < 0 || end > params[i]->numel ||
            (count[i] > 0 && first[i] % SZ_ROUNDING_BLOCK != 0))
            return sz_fail("adamw: part [%lld, %lld) of parameter %d is not one of its blocks",
                           (long long)first[i], (long long)end, i + 1);
        o->first[i] = first[i];
        o->count[i] = count[i];
    }
    return 0;
}

sz_adamw *sz_adamw_new(sz_tensor **params, int n, int moments, int masters)
{
    return sz_adamw_new_parts(params, n, moments, masters, NULL, NULL, 0);
}

sz_adamw *sz_adamw_new_parts(sz_tensor **params, int n, int moments, int masters,
                             const int64_t *first, const int64_t *count, int offload)
{
    if (moments != SZ_F32 && moments != SZ_BF16 && moments != SZ_U8)
        return sz_null("adamw: moments are f32, bf16 or 8-bit codes (u8)");
    sz_adamw *o = calloc(1, sizeof *o);
    if (!o) return sz_null("out of memory");
    o->n = n;
    o->offload = offload;
    o->params = calloc((size_t)n, sizeof *o->params);
    o->squares = calloc((size_t)n + 1, sizeof *o->squares);
    int rc = o->params && o->squares ? 0 : sz_fail("out of memory");
    if (rc == 0) rc = set_parts(o, params, first, count);
    for (int k = 0; rc == 0 && k < SZ_ADAMW_STATES; k++) {
        o->state[k] = calloc((size_t)n, sizeof *o->state[k]);
        if (!o->state[k]) rc = sz_fail("out of memory");
    }
    for (int i = 0; rc == 0 && i < n; i++)
        rc = add_parameter(o, i, params[i], moments, masters != 0);
    if (rc == 0) return o;
    sz_adamw_free(o);
    return NULL;
}

/* ---- norms ---- */
/* Sum of squares of x into sums[i], on the parameters' device. x: a new reference, or NULL. */
static int square_sum(sz_tensor *x, int i, sz_tensor *sums)
{
    if (!x) return -1;
    sz_tensor *sum = sz_run(SZ_OP_sum_squares, (sz_call){ .in = { x } });
    sz_tensor_release(x);
    if (!sum) return -1;
    const int64_t one = 1;
    sz_tensor *place = sz_tensor_view(sums, 1, &one, i);
    int rc = place ? sz_tensor_copy(place, sum) : -1;
    sz_tensor_release(place);
    sz_tensor_release(sum);
    return rc;
}

/* The sum of squares of all parameters, or of the gradients of the parts; -1 with a message.
 * counts: NULL, or 0 for parameters that are left out. */
static double squares(sz_adamw *o, bool gradients, const uint8_t *counts)
{
    if (!o->n) return 0;
    /* The sums are arena tensors, so a step asks the system for nothing. They are read once for all
     * parameters: on a device each reading would wait. */
    sz_scope_push();
    const int64_t count = o->n;
    sz_tensor *sums = sz_tensor_zeros(SZ_F32, 1, &count, o->params[0]->device);
    sz_tensor *read = NULL;
    int rc = sums ? 0 : -1;
    for (int i = 0; rc == 0 && i < o->n; i++) {
        sz_tensor *p = o->params[i];
        if (counts && !counts[i]) continue;
        if (!gradients) rc = square_sum(sz_tensor_retain(p), i, sums);
        else if (p->grad && !is_empty(o, i)) rc = square_sum(sz_adamw_part(o, i, p->grad), i, sums);
    }
    if (rc == 0) {
        read = sz_tensor_to(sums, SZ_CPU);
        rc = read ? 0 : -1;
    }

    double total = 0;
    for (int i = 0; rc == 0 && i < o->n; i++) {
        double square = (double)sz_f32(read)[i];
        /* Lua reads only a NaN without other bits. */
        if (isnan(square)) square = NAN;
        if (gradients) o->squares[i] = square;
        total += square;
    }
    sz_tensor_release(read);
    sz_tensor_release(sums);
    sz_scope_pop();
    return rc == 0 ? total : -1;
}

/* Failure stays negative. */
static double root(double total) { return total < 0 ? total : sqrt(total); }

double sz_adamw_grad_squares(sz_adamw *o, const uint8_t *counts)
{
    return squares(o, true, counts);
}

const double *sz_adamw_squares(const sz_adamw *o) { return o->squares; }

double sz_adamw_grad_norm(sz_adamw *o) { return root(squares(o, true, NULL)); }

double sz_adamw_weight_squares(sz_adamw *o, const uint8_t *counts)
{
    const int before = sz_set_grad_enabled(0);
    double result = squares(o, false, counts);
    sz_set_grad_enabled(before);
    return result;
}

double sz_adamw_weight_norm(sz_adamw *o) { return root(sz_adamw_weight_squares(o, NULL)); }

/* ---- an update ---- */
int sz_adamw_update_part(sz_tensor *p, sz_tensor *g, sz_tensor *const *state, int i, int64_t first,
                         const double *numbers)
{
    sz_tensor *m = state[SZ_ADAMW_FIRST];
    sz_tensor *v = state[SZ_ADAMW_SECOND];
    sz_tensor *master = state[SZ_ADAMW_MASTER];
    sz_call c = { .in = { p, g, m, v } };
    memcpy(c.args, numbers, SZ_ADAMW_NUMBERS * sizeof *numbers);

    const bool all_f32 = g->dtype == SZ_F32 && m->dtype == SZ_F32 && (master || p->dtype == SZ_F32);
    if (all_f32) {
        c.in[4] = master;
    } else {
        c.in[4] = state[SZ_ADAMW_FIRST_SCALE];
        c.in[5] = state[SZ_ADAMW_SECOND_SCALE];
        c.in[6] = master;
        c.args[SZ_ADAMW_NUMBERS] = i; /* index and first: key the random numbers of rounding */
        c.args[SZ_ADAMW_NUMBERS + 1] = (double)first;
    }
    sz_tensor *updated = sz_run(all_f32 ? SZ_OP_adamw_ : SZ_OP_adamw_compact_, c);
    if (!updated) return -1;
    sz_tensor_release(updated);
    return 0;
}

int sz_adamw_update(sz_adamw *o, int i, const double *numbers)
{
    sz_tensor *whole = sz_grad_buffer(o->params[i]);
    if (!whole) return -1;
    if (!is_empty(o, i)) {
        sz_tensor *p = sz_adamw_part(o, i, o->params[i]);
        sz_tensor *g = p ? sz_adamw_part(o, i, whole) : NULL;
        sz_tensor *state[SZ_ADAMW_STATES];
        for (int k = 0; k < SZ_ADAMW_STATES; k++) state[k] = o->state[k][i];
        const int64_t first = o->first ? o->first[i] : 0;
        const int rc = g ? sz_adamw_update_part(p, g, state, i, first, numbers) : -1;
        sz_tensor_release(g);
        sz_tensor_release(p);
        if (rc != 0) return rc;
    }
    /* Cleared at once: its pages are then free for the moments that the next update touches. */
    sz_tensor_zero_grad(o->params[i]);
    return 0;
}

int sz_adamw_step(sz_adamw *o, double lr, double beta1, double beta2, double eps,
                  double weight_decay, double grad_scale)
{
    o->steps++;
    const double numbers[] = { lr, beta1, beta2, eps, weight_decay, (double)o->steps, grad_scale };
    const int before = sz_set_grad_enabled(0);
    int rc = 0;
    if (o->offload) rc = sz_adamw_step_away(o, numbers);
    for (int i = 0; !o->offload && i < o->n && rc == 0; i++) rc = sz_adamw_update(o, i, numbers);
    sz_set_grad_enabled(before);
    return rc;
}

void sz_adamw_zero_grad(sz_adamw *o)
{
    for (int i = 0; i < o->n; i++) sz_tensor_zero_grad(o->params[i]);
}

int64_t sz_adamw_steps(const sz_adamw *o) { return o->steps; }
void sz_adamw_set_steps(sz_adamw *o, int64_t steps) { o->steps = steps; }

/* ---- the state for others ---- */
static bool exists(const sz_adamw *o, int i, int which)
{
    return i >= 0 && i < o->n && which >= 0 && which < SZ_ADAMW_STATES;
}

sz_tensor *sz_adamw_state(sz_adamw *o, int i, int which)
{
    if (!exists(o, i, which)) return sz_null("adamw: no state %d of parameter %d", which, i);
    return o->state[which][i];
}

int64_t sz_adamw_state_first(const sz_adamw *o, int i, int which)
{
    if (!exists(o, i, which) || !o->first) return 0;
    const bool is_scale = which == SZ_ADAMW_FIRST_SCALE || which == SZ_ADAMW_SECOND_SCALE;
    return is_scale ? o->first[i] / SZ_MOMENT_BLOCK : o->first[i];
}

int sz_moment_recode(sz_tensor *codes, sz_tensor *scales, int second, const sz_place *place,
                     sz_tensor *old_scales, int64_t rows, int64_t columns, int64_t row_slices,
                     int64_t column_slices)
{
    return sz_processor()->moment_recode(codes, scales, second, place, old_scales, rows, columns,
                                         row_slices, column_slices);
}
