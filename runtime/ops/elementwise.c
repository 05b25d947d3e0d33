/* elementwise.c - ops that compute each element on its own, and sums over all elements: shape
 * checks, gradient rules, typed wrappers. In a binary op b has a's shape, is its trailing part,
 * or is one element. Gradients are summed in f32 and have the dtype of the input they belong to.
 * Leaves out: workspace and FLOP counts. These ops take next to none, and memory is what limits
 * them.
 */
#include "op.h"

/* ---- two tensors ---- */
/* b equals the last dimensions of a, leading dimensions of 1 left out, or is one element. */
static bool is_trailing(const sz_tensor *a, const sz_tensor *b)
{
    if (b->numel == 1) return true;
    int n = b->ndim;
    while (n > 0 && b->shape[b->ndim - n] == 1) n--;
    if (n > a->ndim) return false;
    for (int i = 1; i <= n; i++)
        if (a->shape[a->ndim - i] != b->shape[b->ndim - i]) return false;
    return true;
}

static int shape_binary(int op, sz_call *c)
{
    SZ_REQUIRE(sz_is_float(c->in[0]) && sz_is_float(c->in[1]), "takes two f32 or bf16 tensors");
    SZ_REQUIRE(is_trailing(c->in[0], c->in[1]),
               "the second shape must equal the first, be its trailing part, or be one element");
    return sz_out_like(c, c->in[0]);
}

int sz_shape_add(int op, sz_call *c) { return shape_binary(op, c); }
int sz_shape_sub(int op, sz_call *c) { return shape_binary(op, c); }
int sz_shape_mul(int op, sz_call *c) { return shape_binary(op, c); }
int sz_shape_div(int op, sz_call *c) { return shape_binary(op, c); }

/* Sums g, in the shape of a broadcast result, to b's shape and dtype. Takes over g. */
static sz_tensor *reduce_to(sz_tensor *g, const sz_tensor *b)
{
    if (!g) return NULL;
    if (g->numel != b->numel) {
        const int op = b->numel == 1 ? SZ_OP_sum : SZ_OP_sum_leading;
        g = sz_run_consuming(op, (sz_call){ .in = { g }, .args = { (double)b->numel } });
    }
    if (g && g->dtype != b->dtype)
        g = sz_run_consuming(SZ_OP_cast, (sz_call){ .in = { g }, .args = { b->dtype } });
    sz_tensor *reduced = sz_shaped_like(g, b);
    sz_tensor_release(g);
    return reduced;
}

int sz_grad_add(sz_node *n)
{
    sz_tensor *dy = sz_dy(n);
    if (sz_wants(n, 0) && sz_give(n, 0, sz_tensor_retain(dy)) != 0) return -1;
    if (!sz_wants(n, 1)) return 0;
    return sz_give(n, 1, reduce_to(sz_tensor_retain(dy), n->call.in[1]));
}

int sz_grad_sub(sz_node *n)
{
    sz_tensor *dy = sz_dy(n);
    if (sz_wants(n, 0) && sz_give(n, 0, sz_tensor_retain(dy)) != 0) return -1;
    if (!sz_wants(n, 1)) return 0;
    return sz_give(n, 1, reduce_to(sz_affine(dy, -1, 0), n->call.in[1]));
}

/* dy * t, with t broadcast. */
static sz_tensor *dy_times(const sz_node *n, sz_tensor *t)
{
    return sz_run(SZ_OP_mul, (sz_call){ .in = { sz_dy(n), t } });
}

int sz_grad_mul(sz_node *n)
{
    sz_tensor *a = n->call.in[0];
    sz_tensor *b = n->call.in[1];
    if (sz_wants(n, 0) && sz_give(n, 0, dy_times(n, b)) != 0) return -1;
    if (!sz_wants(n, 1)) return 0;
    return sz_give(n, 1, reduce_to(dy_times(n, a), b));
}

int sz_grad_div(sz_node *n)
{
    sz_tensor *b = n->call.in[1];
    if (sz_wants(n, 0)) {
        sz_tensor *da = sz_run(SZ_OP_div, (sz_call){ .in = { sz_dy(n), b } });
        if (sz_give(n, 0, da) != 0) return -1;
    }
    if (!sz_wants(n, 1)) return 0;
    /* d(a/b)/db = -(a/b)/b */
    sz_tensor *g = dy_times(n, n->call.out[0]);
    g = sz_run_consuming(SZ_OP_div, (sz_call){ .in = { g, b } });
    g = sz_run_consuming(SZ_OP_affine, (sz_call){ .in = { g }, .args = { -1, 0 } });
    return sz_give(n, 1, reduce_to(g, b));
}

/* Two tensors of one shape and dtype. */
static int shape_pair(int op, sz_call *c)
{
    const sz_tensor *a = c->in[0];
    const sz_tensor *b = c->in[1];
    SZ_REQUIRE(sz_is_float(a) && sz_is_float(b), "takes two f32 or bf16 tensors");
    SZ_REQUIRE(sz_same_shape(a, b) && a->dtype == b->dtype,
               "takes two tensors of one shape and dtype");
    return sz_out_like(c, a);
}

int sz_shape_minimum(int op, sz_call *c) { return shape_pair(op, c); }
int sz_shape_maximum(int op, sz_call *c) { return shape_pair(op, c); }

int sz_shape_mask_le(int op, sz_call *c)
{
    SZ_REQUIRE(sz_is_float(c->in[0]) && sz_is_float(c->in[1]) && sz_is_float(c->in[2]),
               "takes three f32 or bf16 tensors");
    SZ_REQUIRE(sz_same_shape(c->in[0], c->in[1]) && sz_same_shape(c->in[0], c->in[2]),
               "takes three tensors of one shape");
    return sz_out_like(c, c->in[2]);
}

/* dy goes to input 0 where in[low] <= in[high], else to input 1: on a tie input 0 receives it. */
static int grad_choice(sz_node *n, int low, int high)
{
    sz_tensor *dy = sz_dy(n);
    sz_tensor *first = sz_run(SZ_OP_mask_le,
                              (sz_call){ .in = { n->call.in[low], n->call.in[high], dy } });
    int rc = first ? 0 : -1;
    if (rc == 0 && sz_wants(n, 1))
        rc = sz_give(n, 1, sz_run(SZ_OP_sub, (sz_call){ .in = { dy, first } }));
    if (rc == 0 && sz_wants(n, 0)) rc = sz_give(n, 0, sz_tensor_retain(first));
    sz_tensor_release(first);
    return rc;
}

int sz_grad_minimum(sz_node *n) { return grad_choice(n, 0, 1); }
int sz_grad_maximum(sz_node *n) { return grad_choice(n, 1, 0); }

int sz_shape_add_(int op, sz_call *c)
{
    SZ_REQUIRE(sz_is_float(c->in[0]) && sz_is_float(c->in[1]) && c->in[0]->numel == c->in[1]->numel,
               "takes two f32 or bf16 tensors of equal size");
    return sz_out_in_place(c);
}

/* ---- one tensor ---- */
static int shape_unary(int op, sz_call *c)
{
    SZ_REQUIRE(sz_is_float(c->in[0]), "takes an f32 or bf16 tensor");
    return sz_out_like(c, c->in[0]);
}

int sz_shape_affine(int op, sz_call *c) { return shape_unary(op, c); }
int sz_shape_exp(int op, sz_call *c) { return shape_unary(op, c); }
int sz_shape_log(int op, sz_call *c) { return shape_unary(op, c); }
int sz_shape_sigmoid(int op, sz_call *c) { return shape_unary(op, c); }
int sz_shape_silu(int op, sz_call *c) { return shape_unary(op, c); }
int sz_shape_gelu(int op, sz_call *c) { return shape_unary(op, c); }
int sz_shape_quick_gelu(int op, sz_call *c) { return shape_unary(op, c); }
int sz_shape_relu(int op, sz_call *c) { return shape_unary(op, c); }
int sz_shape_softplus(int op, sz_call *c) { return shape_unary(op, c); }
int sz_shape_clamp(int op, sz_call *c) { return shape_unary(op, c); }

int sz_shape_silu_backward(int op, sz_call *c) { return shape_pair(op, c); }
int sz_shape_gelu_backward(int op, sz_call *c) { return shape_pair(op, c); }
int sz_shape_quick_gelu_backward(int op, sz_call *c) { return shape_pair(op, c); }
int sz_shape_relu_backward(int op, sz_call *c) { return shape_pair(op, c); }
int sz_shape_clamp_backward(int op, sz_call *c) { return shape_pair(op, c); }

/* Gives input 0 the result of a backward op (x, dy) -> dx; x is the input, or the output, as it
 * takes. */
static int grad_unary(sz_node *n, int backward, sz_tensor *x)
{
    sz_call call = { .in = { x, sz_dy(n) } };
    memcpy(call.args, n->call.args, sizeof call.args);
    return sz_give(n, 0, sz_run(backward, call));
}

int sz_grad_silu(sz_node *n) { return grad_unary(n, SZ_OP_silu_backward, n->call.in[0]); }
int sz_grad_gelu(sz_node *n) { return grad_unary(n, SZ_OP_gelu_backward, n->call.in[0]); }
int sz_grad_quick_gelu(sz_node *n)
{
    return grad_unary(n, SZ_OP_quick_gelu_backward, n->call.in[0]);
}
int sz_grad_swiglu(sz_node *n) { return grad_unary(n, SZ_OP_swiglu_backward, n->call.in[0]); }
int sz_grad_clamp(sz_node *n) { return grad_unary(n, SZ_OP_clamp_backward, n->call.in[0]); }
int sz_grad_relu(sz_node *n) { return grad_unary(n, SZ_OP_relu_backward, n->call.out[0]); }

int sz_grad_affine(sz_node *n) { return sz_give(n, 0, sz_affine(sz_dy(n), n->call.args[0], 0)); }
int sz_grad_exp(sz_node *n) { return sz_give(n, 0, dy_times(n, n->call.out[0])); }

int sz_grad_log(sz_node *n)
{
    return sz_give(n, 0, sz_run(SZ_OP_div, (sz_call){ .in = { sz_dy(n), n->call.in[0] } }));
}

int sz_grad_sigmoid(sz_node *n)
{
    /* dx = (1 - y) y dy */
    sz_tensor *y = n->call.out[0];
    sz_tensor *g = sz_affine(y, -1, 1);
    g = sz_run_consuming(SZ_OP_mul, (sz_call){ .in = { g, y } });
    g = sz_run_consuming(SZ_OP_mul, (sz_call){ .in = { g, sz_dy(n) } });
    return sz_give(n, 0, g);
}

int sz_grad_softplus(sz_node *n)
{
    /* dx = sigmoid(x) dy */
    sz_call product = { .in = { sz_sigmoid(n->call.in[0]), sz_dy(n) } };
    return sz_give(n, 0, sz_run_consuming(SZ_OP_mul, product));
}

int sz_shape_swiglu(int op, sz_call *c)
{
    sz_tensor *x = c->in[0];
    SZ_REQUIRE(sz_is_float(x) && x->ndim >= 1, "takes an f32 or bf16 tensor");
    SZ_REQUIRE(sz_cols(x) % 2 == 0, "the last dimension must be even");
    return sz_out(c, sz_new_with_cols(x, x->dtype, sz_cols(x) / 2));
}

int sz_shape_swiglu_backward(int op, sz_call *c)
{
    sz_tensor *x = c->in[0];
    sz_tensor *dy = c->in[1];
    SZ_REQUIRE(sz_is_float(x) && sz_is_float(dy), "takes two f32 or bf16 tensors");
    SZ_REQUIRE(x->numel == 2 * dy->numel && sz_cols(x) == 2 * sz_cols(dy),
               "x must be twice as wide as dy");
    SZ_REQUIRE(x->dtype == dy->dtype, "takes two tensors of one dtype");
    return sz_out_like(c, x);
}

int sz_shape_cast(int op, sz_call *c)
{
    sz_tensor *x = c->in[0];
    int64_t dtype;
    SZ_REQUIRE(x, "takes a tensor");
    if (sz_whole(op, c, 0, SZ_F32, &dtype) != 0) return -1;
    if (dtype > SZ_U8) return sz_refuse_number(op, c, 0, "0 (f32), 1 (bf16), 2 (i32) or 3 (u8)");
    return sz_out(c, sz_tensor_new((int)dtype, x->ndim, x->shape, x->device));
}

int sz_grad_cast(sz_node *n) { return sz_give(n, 0, sz_cast(sz_dy(n), n->call.in[0]->dtype)); }

/* ---- sums ---- */
static int shape_total(int op, sz_call *c)
{
    SZ_REQUIRE(sz_is_float(c->in[0]), "takes an f32 or bf16 tensor");
    return sz_out(c, sz_new1(SZ_F32, 1, c->in[0]->device));
}

int sz_shape_sum(int op, sz_call *c) { return shape_total(op, c); }
int sz_shape_sum_squares(int op, sz_call *c) { return shape_total(op, c); }

int sz_grad_sum(sz_node *n)
{
    return sz_give(n, 0, sz_run(SZ_OP_expand, (sz_call){ .in = { sz_dy(n), n->call.in[0] } }));
}

int sz_shape_sum_leading(int op, sz_call *c)
{
    int64_t n;
    SZ_REQUIRE(sz_is_float(c->in[0]), "takes an f32 or bf16 tensor");
    if (sz_whole(op, c, 0, 1, &n) != 0) return -1;
    SZ_REQUIRE(c->in[0]->numel % n == 0, "n must divide the number of elements");
    return sz_out(c, sz_new1(SZ_F32, n, c->in[0]->device));
}

int sz_shape_expand(int op, sz_call *c)
{
    SZ_REQUIRE(sz_is_float(c->in[0]) && sz_is_float(c->in[1]) && c->in[0]->numel == 1,
               "takes one element and a tensor");
    return sz_out_like(c, c->in[1]);
}

/* ---- wrappers ---- */
static sz_tensor *run_unary(int op, sz_tensor *x)
{
    return sz_run_wrapped(op, 1, (sz_call){ .in = { x } });
}

sz_tensor *sz_gelu(sz_tensor *x) { return run_unary(SZ_OP_gelu, x); }
sz_tensor *sz_quick_gelu(sz_tensor *x) { return run_unary(SZ_OP_quick_gelu, x); }
sz_tensor *sz_relu(sz_tensor *x) { return run_unary(SZ_OP_relu, x); }
sz_tensor *sz_sigmoid(sz_tensor *x) { return run_unary(SZ_OP_sigmoid, x); }
sz_tensor *sz_swiglu(sz_tensor *x) { return run_unary(SZ_OP_swiglu, x); }

sz_tensor *sz_add(sz_tensor *a, sz_tensor *b)
{
    return sz_run_wrapped(SZ_OP_add, 2, (sz_call){ .in = { a, b } });
}

sz_tensor *sz_affine(sz_tensor *x, double scale, double shift)
{
    return sz_run_wrapped(SZ_OP_affine, 1, (sz_call){ .in = { x }, .args = { scale, shift } });
}

sz_tensor *sz_cast(sz_tensor *x, int dtype)
{
    return sz_run_wrapped(SZ_OP_cast, 1, (sz_call){ .in = { x }, .args = { dtype } });
}
