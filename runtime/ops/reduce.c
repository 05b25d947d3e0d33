/* reduce.c - sum, maximum and minimum over one dimension, and cross-entropy: shape checks, gradient
 * rules.
 *
 * The dimension either stays with size 1 (keepdim) or goes; where it was the only one, the result
 * is [1], as that of sum. Leaves out: workspace and FLOP counts: these ops take none, and memory is
 * what limits them. */
#include "dims.h"
#include "op.h"

/* Number i is a dimension of x. */
static int dimension(int op, const sz_call *c, int i, const sz_tensor *x, int64_t *dim)
{
    if (sz_whole(op, c, i, 0, dim) != 0) return -1;
    return *dim < x->ndim ? 0 : sz_refuse_number(op, c, i, "a dimension of the tensor");
}

/* The shape of x without dimension dim, or with size 1 there. Returns the number of dimensions. */
static int reduced_shape(const sz_tensor *x, int dim, bool keep, int64_t *shape)
{
    int ndim = 0;
    for (int i = 0; i < x->ndim; i++) {
        if (i != dim) shape[ndim++] = x->shape[i];
        else if (keep || x->ndim == 1) shape[ndim++] = 1;
    }
    return ndim;
}

static sz_tensor *new_reduced(int dtype, const sz_call *c)
{
    const sz_tensor *x = c->in[0];
    int64_t shape[SZ_MAX_DIMS];
    int ndim = reduced_shape(x, (int)c->args[0], c->args[1] != 0, shape);
    return sz_tensor_new(dtype, ndim, shape, x->device);
}

/* ---- sums ---- */
int sz_shape_sum_dim(int op, sz_call *c)
{
    int64_t dim;
    SZ_REQUIRE(sz_is_float(c->in[0]), "takes an f32 or bf16 tensor");
    if (dimension(op, c, 0, c->in[0], &dim) != 0) return -1;
    return sz_out(c, new_reduced(SZ_F32, c));
}

/* dy in x's dtype, repeated along the dimension. */
int sz_grad_sum_dim(sz_node *n)
{
    sz_tensor *x = n->call.in[0];
    sz_tensor *dy = sz_cast(sz_dy(n), x->dtype);
    if (!dy) return -1;

    int64_t shape[SZ_MAX_DIMS];
    int ndim = reduced_shape(x, (int)n->call.args[0], true, shape);
    sz_call call = { .in = { sz_tensor_view(dy, ndim, shape, 0) }, .args = { x->ndim } };
    for (int i = 0; i < x->ndim; i++) call.args[1 + i] = (double)x->shape[i];
    sz_tensor_release(dy);
    return sz_give(n, 0, sz_run_consuming(SZ_OP_broadcast_to, call));
}

/* ---- maxima and minima ---- */
static int shape_extreme(int op, sz_call *c)
{
    int64_t dim;
    SZ_REQUIRE(sz_is_float(c->in[0]), "takes an f32 or bf16 tensor");
    if (dimension(op, c, 0, c->in[0], &dim) != 0) return -1;
    SZ_REQUIRE(c->in[0]->shape[dim] > 0, "the dimension is empty");
    SZ_REQUIRE(c->in[0]->shape[dim] <= INT32_MAX, "the dimension is too long for an i32 index");
    c->out[1] = new_reduced(SZ_I32, c);
    return sz_out(c, new_reduced(c->in[0]->dtype, c)) == 0 && c->out[1] ? 0 : -1;
}
int sz_shape_max_dim(int op, sz_call *c) { return shape_extreme(op, c); }
int sz_shape_min_dim(int op, sz_call *c) { return shape_extreme(op, c); }

int sz_grad_extreme_dim(sz_node *n)
{
    sz_call call = { .in = { n->call.in[0], n->call.out[0], sz_dy(n) },
                     .args = { n->call.args[0] } };
    return sz_give(n, 0, sz_run(SZ_OP_extreme_backward, call));
}

int sz_shape_extreme_backward(int op, sz_call *c)
{
    const sz_tensor *x = c->in[0];
    int64_t dim;
    SZ_REQUIRE(sz_is_float(x) && sz_is_float(c->in[1]) && sz_is_float(c->in[2]),
               "takes f32 or bf16 tensors");
    if (dimension(op, c, 0, x, &dim) != 0) return -1;
    const sz_around a = sz_around_dim(x, (int)dim);
    SZ_REQUIRE(c->in[1]->numel == a.outer * a.inner && c->in[2]->numel == a.outer * a.inner,
               "y and dy must have x's size without the dimension");
    return sz_out_like(c, x);
}

/* ---- cross-entropy ---- */
static bool ids_fit(const sz_tensor *ids, int64_t limit, int64_t ignore)
{
    for (int64_t i = 0; i < ids->numel; i++) {
        int32_t id = sz_i32(ids)[i];
        if (id != ignore && (id < 0 || id >= limit)) return false;
    }
    return true;
}

int sz_shape_cross_entropy(int op, sz_call *c)
{
    const sz_tensor *x = c->in[0];
    SZ_REQUIRE(sz_is_float_nd(x, 2) && sz_is_ids(c->in[1]), "takes logits [n, v] and i32 ids [n]");
    SZ_REQUIRE(c->in[1]->numel == x->shape[0], "there must be one id for each row of logits");
    SZ_REQUIRE(ids_fit(c->in[1], x->shape[1], (int64_t)c->args[0]),
               "an id is outside the logits' columns");
    c->out[1] = sz_new1(SZ_F32, x->shape[0], x->device);
    return sz_out(c, sz_new1(SZ_F32, x->shape[0], x->device)) == 0 && c->out[1] ? 0 : -1;
}

int sz_grad_cross_entropy(sz_node *n)
{
    if (n->call.out[1]->grad) return sz_fail("cross_entropy: its log-sum-exp has no gradient");
    sz_call call = { .in = { n->call.in[0], n->call.in[1], n->call.out[1], sz_dy(n) },
                     .args = { n->call.args[0] } };
    return sz_give(n, 0, sz_run(SZ_OP_cross_entropy_backward, call));
}

int sz_shape_cross_entropy_backward(int op, sz_call *c)
{
    const sz_tensor *x = c->in[0];
    SZ_REQUIRE(sz_is_float_nd(x, 2) && sz_is_ids(c->in[1]), "takes logits [n, v] and i32 ids [n]");
    SZ_REQUIRE(c->in[1]->numel == x->shape[0], "there must be one id for each row of logits");
    SZ_REQUIRE(sz_is_f32(c->in[2]) && sz_is_f32(c->in[3]) && c->in[2]->numel == x->shape[0] &&
                   c->in[3]->numel == x->shape[0],
               "the log-sum-exp and dloss must be f32 [n]");
    return sz_out_like(c, x);
}
