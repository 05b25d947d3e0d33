/* norm.c - RMSNorm, LayerNorm, softmax and the rotary embedding: ops that work on whole rows of
 * the last dimension. Shape checks, gradient rules, workspace, typed wrappers.
 * Leaves out: FLOP counts. Memory is what limits these ops.
 */
#include "op.h"

/* ---- norms ---- */
/* w has one element for each column of x. */
static bool is_row_of(const sz_tensor *w, const sz_tensor *x) { return w->numel == sz_cols(x); }

int sz_shape_rmsnorm(int op, sz_call *c)
{
    sz_tensor *x = c->in[0];
    sz_tensor *w = c->in[1];
    SZ_REQUIRE(sz_is_float(x) && sz_is_float(w) && x->ndim >= 1, "takes f32 or bf16 tensors");
    SZ_REQUIRE(is_row_of(w, x), "the weight must have one element a column");
    return sz_out_like(c, x);
}

int sz_shape_layernorm(int op, sz_call *c)
{
    sz_tensor *x = c->in[0];
    sz_tensor *w = c->in[1];
    sz_tensor *b = c->in[2];
    SZ_REQUIRE(sz_is_float(x) && sz_is_float(w) && sz_is_float(b) && x->ndim >= 1,
               "takes f32 or bf16 tensors");
    SZ_REQUIRE(is_row_of(w, x) && is_row_of(b, x),
               "weight and bias must have one element a column");
    return sz_out_like(c, x);
}

/* (x, w, dy) -> dx, and an f32 row for each further output. */
static int shape_norm_backward(int op, sz_call *c)
{
    sz_tensor *x = c->in[0];
    sz_tensor *w = c->in[1];
    sz_tensor *dy = c->in[2];
    SZ_REQUIRE(sz_is_float(x) && sz_is_float(w) && sz_is_float(dy) && x->ndim >= 1,
               "takes f32 or bf16 tensors");
    SZ_REQUIRE(is_row_of(w, x) && dy->numel == x->numel,
               "dy must have x's size and w one element a column");
    for (int i = 1; i < sz_ops[op].outputs; i++) {
        c->out[i] = sz_new1(SZ_F32, sz_cols(x), x->device);
        if (!c->out[i]) return -1;
    }
    return sz_out_like(c, x);
}

int sz_shape_rmsnorm_backward(int op, sz_call *c) { return shape_norm_backward(op, c); }
int sz_shape_layernorm_backward(int op, sz_call *c) { return shape_norm_backward(op, c); }

/* The kernels sum dw and db in at most 64 chunks of rows. */
int64_t sz_workspace_norm_backward(const sz_call *c)
{
    enum { CHUNKS = 64 };
    return 2 * (int64_t)sizeof(float) * CHUNKS * sz_cols(c->in[0]);
}

static int grad_norm(sz_node *n, int backward, int outputs)
{
    sz_call c = { .in = { n->call.in[0], n->call.in[1], sz_dy(n) }, .args = { n->call.args[0] } };
    if (sz_apply(backward, &c) != 0) return -1;
    return sz_give_outputs(n, outputs, c.out);
}

int sz_grad_rmsnorm(sz_node *n) { return grad_norm(n, SZ_OP_rmsnorm_backward, 2); }
int sz_grad_layernorm(sz_node *n) { return grad_norm(n, SZ_OP_layernorm_backward, 3); }

/* ---- softmax ---- */
int sz_shape_softmax(int op, sz_call *c)
{
    SZ_REQUIRE(sz_is_float(c->in[0]) && c->in[0]->ndim >= 1, "takes an f32 or bf16 tensor");
    return sz_out_like(c, c->in[0]);
}

int sz_shape_softmax_backward(int op, sz_call *c)
{
    sz_tensor *y = c->in[0];
    sz_tensor *dy = c->in[1];
    SZ_REQUIRE(sz_is_float(y) && sz_is_float(dy), "takes two f32 or bf16 tensors");
    SZ_REQUIRE(sz_same_shape(y, dy) && y->dtype == dy->dtype,
               "takes two tensors of one shape and dtype");
    return sz_out_like(c, y);
}

int sz_grad_softmax(sz_node *n)
{
    sz_call call = { .in = { n->call.out[0], sz_dy(n) } };
    return sz_give(n, 0, sz_run(SZ_OP_softmax_backward, call));
}

/* ---- rotary embedding ---- */
int sz_shape_rope(int op, sz_call *c)
{
    sz_tensor *x = c->in[0];
    sz_tensor *cosines = c->in[1];
    sz_tensor *sines = c->in[2];
    int64_t heads;
    int64_t head_dim;
    SZ_REQUIRE(sz_is_float_nd(x, 2) && sz_is_float(cosines) && sz_is_float(sines),
               "takes x [n, c], cos, sin");
    if (sz_whole(op, c, 0, 0, &heads) != 0 || sz_whole(op, c, 1, 2, &head_dim) != 0) return -1;
    if (head_dim % 2 != 0) return sz_refuse_number(op, c, 1, "even");
    SZ_REQUIRE(heads * head_dim <= sz_cols(x), "heads * head_dim must fit the columns");
    SZ_REQUIRE(cosines->numel == sz_rows(x) * head_dim / 2 && sines->numel == cosines->numel &&
                   cosines->dtype == sines->dtype,
               "cos and sin must be [n, head_dim / 2] of one dtype");
    return sz_out_like(c, x);
}

/* The inverse rotation. */
int sz_grad_rope(sz_node *n)
{
    const double *numbers = n->call.args;
    sz_call call = { .in = { sz_dy(n), n->call.in[1], n->call.in[2] },
                     .args = { numbers[0], numbers[1], -numbers[2] } };
    return sz_give(n, 0, sz_run(SZ_OP_rope, call));
}

/* ---- wrappers ---- */
sz_tensor *sz_rmsnorm(sz_tensor *x, sz_tensor *w, double eps)
{
    return sz_run_wrapped(SZ_OP_rmsnorm, 2, (sz_call){ .in = { x, w }, .args = { eps } });
}

sz_tensor *sz_layernorm(sz_tensor *x, sz_tensor *w, sz_tensor *b, double eps)
{
    return sz_run_wrapped(SZ_OP_layernorm, 3, (sz_call){ .in = { x, w, b }, .args = { eps } });
}

sz_tensor *sz_rope(sz_tensor *x, sz_tensor *cosines, sz_tensor *sines, int heads, int head_dim)
{
    sz_call call = { .in = { x, cosines, sines }, .args = { heads, head_dim, 1 } };
    return sz_run_wrapped(SZ_OP_rope, 3, call);
}
