/* pointwise.c - sqrt, pow, comparisons and choose: shape checks, gradient rules. The second tensor
 * of pow and compare has the first one's shape or is one element; Lua broadcasts other shapes.
 * Leaves out: the other elementwise ops (elementwise.c). */
#include "dims.h"
#include "op.h"

static bool same_or_one(const sz_tensor *a, const sz_tensor *b)
{
    return b->numel == 1 || sz_same_shape(a, b);
}

/* ---- sqrt ---- */
int sz_shape_sqrt(int op, sz_call *c)
{
    SZ_REQUIRE(sz_is_float(c->in[0]), "takes an f32 or bf16 tensor");
    return sz_out_like(c, c->in[0]);
}

/* dy / (2 y) */
int sz_grad_sqrt(sz_node *n)
{
    sz_tensor *half = sz_affine(sz_dy(n), 0.5, 0);
    return sz_give(n, 0, sz_run_consuming(SZ_OP_div, (sz_call){ .in = { half, n->call.out[0] } }));
}

/* ---- pow ---- */
int sz_shape_pow(int op, sz_call *c)
{
    SZ_REQUIRE(sz_is_float(c->in[0]) && sz_is_float(c->in[1]), "takes two f32 or bf16 tensors");
    SZ_REQUIRE(same_or_one(c->in[0], c->in[1]),
               "the exponent must have the base's shape or be one element");
    return sz_out_like(c, c->in[0]);
}

/* The exponent's gradient, made in the base's shape and dtype, as a gradient of b. Takes over g. */
static sz_tensor *reduced_to(sz_tensor *g, const sz_tensor *b)
{
    if (g->numel != b->numel) g = sz_run_consuming(SZ_OP_sum, (sz_call){ .in = { g } });
    if (g && g->dtype != b->dtype)
        g = sz_run_consuming(SZ_OP_cast, (sz_call){ .in = { g }, .args = { b->dtype } });
    sz_tensor *reduced = sz_shaped_like(g, b);
    sz_tensor_release(g);
    return reduced;
}

int sz_grad_pow(sz_node *n)
{
    sz_call call = { .in = { n->call.in[0], n->call.in[1], sz_dy(n) } };
    if (sz_apply(SZ_OP_pow_backward, &call) != 0) return -1;
    int rc = sz_accumulate_grad(n->call.in[0], call.out[0]);
    if (rc == 0 && sz_wants(n, 1)) return sz_give(n, 1, reduced_to(call.out[1], n->call.in[1]));
    sz_tensor_release(call.out[1]);
    return rc;
}

int sz_shape_pow_backward(int op, sz_call *c)
{
    SZ_REQUIRE(sz_is_float(c->in[0]) && sz_is_float(c->in[1]) && sz_is_float(c->in[2]),
               "takes f32 or bf16 tensors");
    SZ_REQUIRE(same_or_one(c->in[0], c->in[1]) && sz_same_shape(c->in[0], c->in[2]),
               "the exponent must have the base's shape or be one element, dy the base's shape");
    c->out[1] = sz_tensor_like(c->in[0]);
    return sz_out_like(c, c->in[0]) == 0 && c->out[1] ? 0 : -1;
}

/* ---- compare, choose ---- */
int sz_shape_compare(int op, sz_call *c)
{
    const sz_tensor *a = c->in[0];
    const sz_tensor *b = c->in[1];
    int64_t kind;
    SZ_REQUIRE(a && b && sz_is_ids(a) == sz_is_ids(b),
               "takes two f32, bf16 or u8 tensors, or two i32 tensors");
    SZ_REQUIRE(same_or_one(a, b), "the second shape must equal the first or be one element");
    if (sz_whole(op, c, 0, 0, &kind) != 0) return -1;
    if (kind >= SZ_COMPARISONS) return sz_refuse_number(op, c, 0, "from 0 to 5");
    return sz_out(c, sz_tensor_new(SZ_F32, a->ndim, a->shape, a->device));
}

int sz_shape_choose(int op, sz_call *c)
{
    const sz_tensor *a = c->in[1];
    const sz_tensor *b = c->in[2];
    SZ_REQUIRE(c->in[0] && !sz_is_ids(c->in[0]), "takes an f32, bf16 or u8 condition");
    SZ_REQUIRE(a || b, "takes at least one tensor to choose from");
    SZ_REQUIRE((!a || sz_is_float(a)) && (!b || sz_is_float(b)),
               "chooses from f32 or bf16 tensors");
    SZ_REQUIRE(!a || !b || a->dtype == b->dtype, "takes two tensors of one dtype");
    SZ_REQUIRE((!a || sz_same_shape(c->in[0], a)) && (!b || sz_same_shape(c->in[0], b)),
               "takes tensors of one shape");
    return sz_out_like(c, a ? a : b);
}

/* dy goes to the tensor that was chosen, 0 to the other. */
int sz_grad_choose(sz_node *n)
{
    sz_tensor *condition = n->call.in[0];
    sz_tensor *dy = sz_dy(n);
    if (sz_wants(n, 1) &&
        sz_give(n, 1, sz_run(SZ_OP_choose, (sz_call){ .in = { condition, dy } })) != 0)
        return -1;
    if (!sz_wants(n, 2)) return 0;
    return sz_give(n, 2, sz_run(SZ_OP_choose, (sz_call){ .in = { condition, NULL, dy } }));
}
