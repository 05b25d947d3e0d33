/* view.c - reshape and narrow: results that are views of their input's bytes. Nothing is
 * computed, so the kernels at the end are empty. Shape checks, gradient rules, typed wrappers.
 * Leaves out: views that are not contiguous.
 */
#include "op.h"

/* ---- reshape ---- */
int sz_shape_reshape(int op, sz_call *c)
{
    enum { MOST = 4 };
    int64_t shape[MOST];
    int64_t total = 1;
    int ndim = 0;
    SZ_REQUIRE(c->in[0], "takes a tensor");
    while (ndim < MOST && c->args[ndim] != 0) {
        if (sz_whole(op, c, ndim, 1, &shape[ndim]) != 0) return -1;
        if (__builtin_mul_overflow(total, shape[ndim], &total)) total = -1;
        ndim++;
    }
    SZ_REQUIRE(total == c->in[0]->numel, "the new shape has another number of elements");
    return sz_out(c, sz_tensor_view(c->in[0], ndim, shape, 0));
}

int sz_grad_reshape(sz_node *n) { return sz_give(n, 0, sz_shaped_like(sz_dy(n), n->call.in[0])); }

/* ---- narrow ---- */
/* Elements of one index of the outermost dimension. */
static int64_t elements_of_row(const sz_tensor *x)
{
    return x->shape[0] ? x->numel / x->shape[0] : 0;
}

int sz_shape_narrow(int op, sz_call *c)
{
    sz_tensor *x = c->in[0];
    int64_t start;
    int64_t length;
    SZ_REQUIRE(x && x->ndim >= 1, "takes a tensor with a dimension");
    if (sz_whole(op, c, 0, 0, &start) != 0 || sz_whole(op, c, 1, 0, &length) != 0) return -1;
    SZ_REQUIRE(start + length <= x->shape[0], "the rows reach past the tensor");

    int64_t shape[SZ_MAX_DIMS];
    memcpy(shape, x->shape, sizeof shape);
    shape[0] = length;
    return sz_out(c, sz_tensor_view(x, x->ndim, shape, start * elements_of_row(x)));
}

/* Zeros with dy in the rows that were taken. */
int sz_grad_narrow(sz_node *n)
{
    sz_tensor *x = n->call.in[0];
    sz_tensor *dy = sz_dy(n);
    sz_tensor *dx = sz_tensor_zeros(x->dtype, x->ndim, x->shape, x->device);
    if (!dx) return -1;
    const int64_t first = (int64_t)n->call.args[0] * elements_of_row(x);
    sz_tensor *rows = sz_tensor_view(dx, dy->ndim, dy->shape, first);
    int rc = rows ? sz_tensor_copy(rows, dy) : -1;
    sz_tensor_release(rows);
    if (rc == 0) return sz_accumulate_grad(x, dx);
    sz_tensor_release(dx);
    return rc;
}

/* ---- kernels ---- */
static int nothing_to_compute(const sz_call *c)
{
    (void)c;
    return 0;
}
int sz_cpu_reshape(const sz_call *c) { return nothing_to_compute(c); }
int sz_ref_reshape(const sz_call *c) { return nothing_to_compute(c); }
int sz_cpu_narrow(const sz_call *c) { return nothing_to_compute(c); }
int sz_ref_narrow(const sz_call *c) { return nothing_to_compute(c); }

/* ---- wrappers ---- */
sz_tensor *sz_reshape2(sz_tensor *x, int64_t n, int64_t m)
{
    sz_call call = { .in = { x }, .args = { (double)n, (double)m } };
    return sz_run_wrapped(SZ_OP_reshape, 1, call);
}

sz_tensor *sz_reshape4(sz_tensor *x, int64_t b, int64_t h, int64_t w, int64_t c)
{
    sz_call call = { .in = { x }, .args = { (double)b, (double)h, (double)w, (double)c } };
    return sz_run_wrapped(SZ_OP_reshape, 1, call);
}

sz_tensor *sz_narrow(sz_tensor *x, int64_t start, int64_t length)
{
    sz_call call = { .in = { x }, .args = { (double)start, (double)length } };
    return sz_run_wrapped(SZ_OP_narrow, 1, call);
}
