/* arrange.c - ops that move elements without computing: broadcast_to, transpose, cat, slice,
 * pad_dim. Shape checks, gradient rules. They take tensors of any dtype. Leaves out: what is a view
 * (view.c), rows chosen by index (rows.c). */
#include "dims.h"
#include "op.h"

/* Number i is a dimension of x. */
static int dimension(int op, const sz_call *c, int i, const sz_tensor *x, int64_t *dim)
{
    if (sz_whole(op, c, i, 0, dim) != 0) return -1;
    return *dim < x->ndim ? 0 : sz_refuse_number(op, c, i, "a dimension of the tensor");
}

/* Output 0 has x's shape, but for `size` elements of dimension dim. */
static int out_resized(sz_call *c, const sz_tensor *x, int64_t dim, int64_t size)
{
    int64_t shape[SZ_MAX_DIMS];
    memcpy(shape, x->shape, sizeof shape);
    shape[dim] = size;
    return sz_out(c, sz_tensor_new(x->dtype, x->ndim, shape, x->device));
}

/* ---- broadcast_to ---- */
int sz_shape_broadcast_to(int op, sz_call *c)
{
    const sz_tensor *x = c->in[0];
    int64_t ndim;
    int64_t shape[SZ_MAX_DIMS];
    SZ_REQUIRE(x, "takes a tensor");
    if (sz_whole(op, c, 0, 0, &ndim) != 0) return -1;
    SZ_REQUIRE(ndim >= x->ndim && ndim <= SZ_MAX_DIMS,
               "the new shape has too few or too many dimensions");
    for (int i = 0; i < ndim; i++)
        if (sz_whole(op, c, 1 + i, 0, &shape[i]) != 0) return -1;
    for (int i = 1; i <= x->ndim; i++) {
        int64_t size = x->shape[x->ndim - i];
        SZ_REQUIRE(size == 1 || size == shape[ndim - i],
                   "a dimension that is not 1 must stay as it is");
    }
    return sz_out(c, sz_tensor_new(x->dtype, (int)ndim, shape, x->device));
}

/* The sum over the dimensions that were repeated, one after the other, in f32. */
int sz_grad_broadcast_to(sz_node *n)
{
    const sz_tensor *x = n->call.in[0];
    const sz_tensor *y = n->call.out[0];
    sz_tensor *g = sz_tensor_retain(sz_dy(n));
    for (int i = 0; g && i < y->ndim; i++) {
        int in_x = i - (y->ndim - x->ndim);
        int64_t size = in_x < 0 ? 1 : x->shape[in_x];
        if (size == y->shape[i]) continue;
        g = sz_run_consuming(SZ_OP_sum_dim, (sz_call){ .in = { g }, .args = { i, 1 } });
    }
    if (g && g->dtype != x->dtype)
        g = sz_run_consuming(SZ_OP_cast, (sz_call){ .in = { g }, .args = { x->dtype } });
    sz_tensor *dx = sz_shaped_like(g, x);
    sz_tensor_release(g);
    return sz_give(n, 0, dx);
}

/* ---- transpose ---- */
int sz_shape_transpose(int op, sz_call *c)
{
    const sz_tensor *x = c->in[0];
    int64_t first;
    int64_t second;
    int64_t shape[SZ_MAX_DIMS];
    SZ_REQUIRE(x, "takes a tensor");
    if (dimension(op, c, 0, x, &first) != 0 || dimension(op, c, 1, x, &second) != 0) return -1;
    memcpy(shape, x->shape, sizeof shape);
    shape[first] = x->shape[second];
    shape[second] = x->shape[first];
    return sz_out(c, sz_tensor_new(x->dtype, x->ndim, shape, x->device));
}

int sz_grad_transpose(sz_node *n)
{
    sz_call call = { .in = { sz_dy(n) }, .args = { n->call.args[0], n->call.args[1] } };
    return sz_give(n, 0, sz_run(SZ_OP_transpose, call));
}

/* ---- cat ---- */
static bool equal_but_for(const sz_tensor *a, const sz_tensor *b, int64_t dim)
{
    if (a->ndim != b->ndim) return false;
    for (int i = 0; i < a->ndim; i++)
        if (i != dim && a->shape[i] != b->shape[i]) return false;
    return true;
}

int sz_shape_cat(int op, sz_call *c)
{
    const sz_tensor *x = c->in[0];
    int64_t dim;
    int64_t size = 0;
    SZ_REQUIRE(x, "takes at least one tensor");
    if (dimension(op, c, 0, x, &dim) != 0) return -1;
    for (int i = 0; i < SZ_MAX_IN && c->in[i]; i++) {
        SZ_REQUIRE(i == 0 || c->in[i - 1], "the tensors must follow each other");
        SZ_REQUIRE(c->in[i]->dtype == x->dtype, "takes tensors of one dtype");
        SZ_REQUIRE(equal_but_for(c->in[i], x, dim),
                   "the tensors' shapes must be equal but for the dimension");
        size += c->in[i]->shape[dim];
    }
    return out_resized(c, x, dim, size);
}

int sz_grad_cat(sz_node *n)
{
    const int dim = (int)n->call.args[0];
    double start = 0;
    for (int i = 0; i < SZ_MAX_IN && n->call.in[i]; i++) {
        double size = (double)n->call.in[i]->shape[dim];
        sz_call call = { .in = { sz_dy(n) }, .args = { dim, start, size } };
        if (sz_wants(n, i) && sz_give(n, i, sz_run(SZ_OP_slice, call)) != 0) return -1;
        start += size;
    }
    return 0;
}

/* ---- slice, and its gradient pad_dim ---- */
int sz_shape_slice(int op, sz_call *c)
{
    const sz_tensor *x = c->in[0];
    int64_t dim;
    int64_t start;
    int64_t length;
    SZ_REQUIRE(x, "takes a tensor");
    if (dimension(op, c, 0, x, &dim) != 0) return -1;
    if (sz_whole(op, c, 1, 0, &start) != 0 || sz_whole(op, c, 2, 0, &length) != 0) return -1;
    SZ_REQUIRE(start + length <= x->shape[dim], "the slice reaches past the tensor");
    return out_resized(c, x, dim, length);
}

int sz_grad_slice(sz_node *n)
{
    const int dim = (int)n->call.args[0];
    double size = (double)n->call.in[0]->shape[dim];
    sz_call call = { .in = { sz_dy(n) }, .args = { dim, n->call.args[1], size } };
    return sz_give(n, 0, sz_run(SZ_OP_pad_dim, call));
}

int sz_shape_pad_dim(int op, sz_call *c)
{
    const sz_tensor *x = c->in[0];
    int64_t dim;
    int64_t start;
    int64_t size;
    SZ_REQUIRE(x, "takes a tensor");
    if (dimension(op, c, 0, x, &dim) != 0) return -1;
    if (sz_whole(op, c, 1, 0, &start) != 0 || sz_whole(op, c, 2, 0, &size) != 0) return -1;
    SZ_REQUIRE(start + x->shape[dim] <= size, "the tensor does not fit the new size");
    return out_resized(c, x, dim, size);
}
