/* grads.c - the gradient rule of each op: reads the gradients of a node's outputs, gives its inputs theirs.
 *
 * dy is the gradient of output 0. Rules are built from ops, so they run on any device. Recording is off while they run.
 * Shapes and conventions: ops.def, tape.c. Leaves out: ops whose row says NONE. */
#include "core/core.h"

#define DY(n) ((n)->call.out[0]->grad)
#define IN(n, i) ((n)->call.in[i])
#define NEEDS(n, i) sz_needs_grad(IN(n, i))

/* A call with one output, as an expression; NULL when it or an earlier one failed. */
static sz_tensor *run(int op, sz_call c) { return sz_apply(op, &c) == 0 ? c.out[0] : NULL; }
#define RUN(op, ...) run(SZ_OP_##op, (sz_call){ __VA_ARGS__ })

/* Runs an op on a temporary and lets go of the temporary. */
static sz_tensor *run_consuming(int op, sz_call c)
{
    sz_tensor *y = c.in[0] ? run(op, c) : NULL;
    sz_tensor_release(c.in[0]);
    return y;
}

/* Same bytes in t's shape; marked, because another gradient may share them. */
static sz_tensor *shaped_like(sz_tensor *g, const sz_tensor *t)
{
    sz_tensor *v = g ? sz_tensor_view(g, t->ndim, t->shape, 0) : NULL;
    if (v) v->flags |= SZ_GRAD_SHARED;
    return v;
}

/* Sums g (in the shape of a broadcast result) down to b's shape and dtype. Consumes g. */
static sz_tensor *reduce_to(sz_tensor *g, const sz_tensor *b)
{
    if (!g) return NULL;
    if (g->numel != b->numel)
        g = run_consuming(b->numel == 1 ? SZ_OP_sum : SZ_OP_sum_leading, (sz_call){ .in = { g }, .args = { (double)b->numel } });
    if (g && g->dtype != b->dtype) g = run_consuming(SZ_OP_cast, (sz_call){ .in = { g }, .args = { b->dtype } });
    sz_tensor *r = shaped_like(g, b);
    sz_tensor_release(g);
    return r;
}

static int give_if(sz_node *n, int i, sz_tensor *g) { return g ? sz_accumulate_grad(IN(n, i), g) : -1; }

/* ---- elementwise ---- */
static int sz_grad_add_op(sz_node *n)
{
    if (NEEDS(n, 0) && give_if(n, 0, sz_tensor_retain(DY(n))) != 0) return -1;
    return NEEDS(n, 1) ? give_if(n, 1, reduce_to(sz_tensor_retain(DY(n)), IN(n, 1))) : 0;
}

static int sz_grad_sub(sz_node *n)
{
    if (NEEDS(n, 0) && give_if(n, 0, sz_tensor_retain(DY(n))) != 0) return -1;
    return NEEDS(n, 1) ? give_if(n, 1, reduce_to(sz_affine(DY(n), -1, 0), IN(n, 1))) : 0;
}

static int sz_grad_mul(sz_node *n)
{
    if (NEEDS(n, 0) && give_if(n, 0, RUN(mul, .in = { DY(n), IN(n, 1) })) != 0) return -1;
    return NEEDS(n, 1) ? give_if(n, 1, reduce_to(RUN(mul, .in = { DY(n), IN(n, 0) }), IN(n, 1))) : 0;
}

static int sz_grad_div(sz_node *n)
{
    if (NEEDS(n, 0) && give_if(n, 0, RUN(div, .in = { DY(n), IN(n, 1) })) != 0) return -1;
    if (!NEEDS(n, 1)) return 0;
    /* d(a/b)/db = -(a/b)/b */
    sz_tensor *g = RUN(mul, .in = { DY(n), n->call.out[0] });
    g = run_consuming(SZ_OP_div, (sz_call){ .in = { g, IN(n, 1) } });
    g = run_consuming(SZ_OP_affine, (sz_call){ .in = { g }, .args = { -1, 0 } });
    return give_if(n, 1, reduce_to(g, IN(n, 1)));
}

/* The smaller (or larger) one receives dy; on a tie input 0 does. */
static int pick(sz_node *n, int first, int second)
{
    sz_tensor *g = RUN(mask_le, .in = { IN(n, first), IN(n, second), DY(n) });
    sz_tensor *rest = g && NEEDS(n, 1) ? RUN(sub, .in = { DY(n), g }) : NULL;
    int rc = g ? 0 : -1;
    if (rc == 0 && NEEDS(n, 1)) rc = give_if(n, 1, rest);
    if (rc == 0 && NEEDS(n, 0)) rc = give_if(n, 0, sz_tensor_retain(g));
    sz_tensor_release(g);
    return rc;
}
static int sz_grad_minimum(sz_node *n) { return pick(n, 0, 1); }
static int sz_grad_maximum(sz_node *n) { return pick(n, 1, 0); }

static int sz_grad_affine(sz_node *n) { return give_if(n, 0, sz_affine(DY(n), n->call.args[0], 0)); }
static int sz_grad_exp(sz_node *n) { return give_if(n, 0, RUN(mul, .in = { DY(n), n->call.out[0] })); }
static int sz_grad_log(sz_node *n) { return give_if(n, 0, RUN(div, .in = { DY(n), IN(n, 0) })); }
static int sz_grad_silu(sz_node *n) { return give_if(n, 0, RUN(silu_backward, .in = { IN(n, 0), DY(n) })); }
static int sz_grad_gelu(sz_node *n) { return give_if(n, 0, RUN(gelu_backward, .in = { IN(n, 0), DY(n) })); }
static int sz_grad_quick_gelu(sz_node *n) { return give_if(n, 0, RUN(quick_gelu_backward, .in = { IN(n, 0), DY(n) })); }
static int sz_grad_swiglu(sz_node *n) { return give_if(n, 0, RUN(swiglu_backward, .in = { IN(n, 0), DY(n) })); }
static int sz_grad_softmax(sz_node *n) { return give_if(n, 0, RUN(softmax_backward, .in = { n->call.out[0], DY(n) })); }
static int sz_grad_cast(sz_node *n) { return give_if(n, 0, sz_cast(DY(n), IN(n, 0)->dtype)); }
static int sz_grad_sum(sz_node *n) { return give_if(n, 0, RUN(expand, .in = { DY(n), IN(n, 0) })); }

static int sz_grad_sigmoid(sz_node *n)
{
    /* y (1 - y) dy */
    sz_tensor *y = n->call.out[0];
    sz_tensor *g = sz_affine(y, -1, 1);
    g = run_consuming(SZ_OP_mul, (sz_call){ .in = { g, y } });
    return give_if(n, 0, run_consuming(SZ_OP_mul, (sz_call){ .in = { g, DY(n) } }));
}

static int sz_grad_relu(sz_node *n) { return give_if(n, 0, RUN(relu_backward, .in = { n->call.out[0], DY(n) })); }

static int sz_grad_softplus(sz_node *n)
{
    return give_if(n, 0, run_consuming(SZ_OP_mul, (sz_call){ .in = { sz_sigmoid(IN(n, 0)), DY(n) } }));
}

static int sz_grad_clamp(sz_node *n)
{
    return give_if(n, 0, RUN(clamp_backward, .in = { IN(n, 0), DY(n) }, .args = { n->call.args[0], n->call.args[1] }));
}

/* ---- rowwise ---- */
static int sz_grad_rmsnorm(sz_node *n)
{
    sz_call c = { .in = { IN(n, 0), IN(n, 1), DY(n) }, .args = { n->call.args[0] } };
    if (sz_apply(SZ_OP_rmsnorm_backward, &c) != 0) return -1;
    int rc = sz_accumulate_grad(IN(n, 0), c.out[0]);
    if (rc == 0) rc = sz_accumulate_grad(IN(n, 1), c.out[1]);
    else sz_tensor_release(c.out[1]);
    return rc;
}

static int sz_grad_layernorm(sz_node *n)
{
    sz_call c = { .in = { IN(n, 0), IN(n, 1), DY(n) }, .args = { n->call.args[0] } };
    if (sz_apply(SZ_OP_layernorm_backward, &c) != 0) return -1;
    int rc = 0;
    for (int i = 0; i < 3; i++) {
        if (rc == 0 && NEEDS(n, i)) rc = sz_accumulate_grad(IN(n, i), c.out[i]);
        else sz_tensor_release(c.out[i]);
    }
    return rc;
}

static int sz_grad_rope(sz_node *n)
{
    return give_if(n, 0, RUN(rope, .in = { DY(n), IN(n, 1), IN(n, 2) }, .args = { n->call.args[0], n->call.args[1], -n->call.args[2] }));
}

/* A parameter whose own buffer cannot be summed into: the sum is made in f32, in a scope of its own, and added to it. */
static bool is_narrow(const sz_tensor *w) { return (w->flags & SZ_PARAMETER) && (w->flags & SZ_GRAD_BF16) && w->ndim > 1; }

/* Where a weight's gradient is summed: the parameter's own buffer, or a fresh zeroed one. */
static sz_tensor *accumulator(sz_tensor *w)
{
    if ((w->flags & SZ_PARAMETER) && !is_narrow(w)) return sz_tensor_retain(sz_grad_buffer(w));
    return sz_tensor_zeros(SZ_F32, w->ndim, w->shape, w->device);
}

/* Hands over what accumulator() returned: nothing to do for a parameter with a buffer in f32. */
static int accumulated(sz_tensor *w, sz_tensor *acc, int rc)
{
    if (rc != 0 || ((w->flags & SZ_PARAMETER) && !is_narrow(w))) {
        sz_tensor_release(acc);
        return rc;
    }
    if (w->dtype != SZ_F32 && !is_narrow(w)) acc = run_consuming(SZ_OP_cast, (sz_call){ .in = { acc }, .args = { w->dtype } });
    return acc ? sz_accumulate_grad(w, acc) : -1;
}

/* Runs an op that adds to a weight's gradient, which is its input 0. */
static int accumulate(sz_tensor *w, int op, sz_call c)
{
    bool narrow = is_narrow(w);
    if (narrow) sz_scope_push();
    sz_tensor *acc = c.in[0] = accumulator(w), *sum = acc ? run(op, c) : NULL;
    int rc = accumulated(w, acc, sum ? 0 : -1);
    sz_tensor_release(sum);
    if (narrow) sz_scope_pop();
    return rc;
}

static int scatter_rows(sz_node *n)
{
    if (!NEEDS(n, 0)) return 0;
    return accumulate(IN(n, 0), SZ_OP_index_add_, (sz_call){ .in = { NULL, IN(n, 1), DY(n) } });
}
static int sz_grad_embedding(sz_node *n) { return scatter_rows(n); }
static int sz_grad_gather_rows(sz_node *n) { return scatter_rows(n); }

static int sz_grad_index_copy(sz_node *n)
{
    int rc = 0;
    if (NEEDS(n, 0)) {
        sz_tensor *zeros = sz_tensor_zeros(DY(n)->dtype, IN(n, 2)->ndim, IN(n, 2)->shape, DY(n)->device);
        rc = zeros ? give_if(n, 0, RUN(index_copy, .in = { DY(n), IN(n, 1), zeros })) : -1;
        sz_tensor_release(zeros);
    }
    if (rc == 0 && NEEDS(n, 2)) rc = give_if(n, 2, sz_gather_rows(DY(n), IN(n, 1)));
    return rc;
}

static int sz_grad_pad_rows(sz_node *n)
{
    sz_tensor *rows = sz_narrow(DY(n), 0, IN(n, 0)->shape[0]);
    if (rows) rows->flags |= SZ_GRAD_SHARED;
    return give_if(n, 0, rows);
}

static int sz_grad_max_pool_rows(sz_node *n) { return give_if(n, 0, RUN(max_pool_rows_backward, .in = { IN(n, 0), IN(n, 1), DY(n) })); }

/* ---- views ---- */
static int sz_grad_reshape(sz_node *n) { return give_if(n, 0, shaped_like(DY(n), IN(n, 0))); }

static int sz_grad_narrow(sz_node *n)
{
    sz_tensor *x = IN(n, 0);
    sz_tensor *g = sz_tensor_zeros(x->dtype, x->ndim, x->shape, x->device);
    if (!g) return -1;
    sz_tensor *rows = sz_tensor_view(g, DY(n)->ndim, DY(n)->shape, (int64_t)n->call.args[0] * (x->shape[0] ? x->numel / x->shape[0] : 0));
    int rc = rows ? sz_tensor_copy(rows, DY(n)) : -1;
    sz_tensor_release(rows);
    if (rc != 0) {
        sz_tensor_release(g);
        return rc;
    }
    return sz_accumulate_grad(x, g);
}

/* ---- matmul ---- */
static int sz_grad_matmul(sz_node *n)
{
    /* y = A B with A = a or a^T, B = b or b^T: dA = dy B^T, dB = A^T dy, each transposed back. */
    double ta = n->call.args[0], tb = n->call.args[1];
    sz_tensor *a = IN(n, 0), *b = IN(n, 1), *dy = DY(n);
    if (NEEDS(n, 0)) {
        sz_tensor *g = ta ? RUN(matmul, .in = { b, dy }, .args = { tb, 1 }) : RUN(matmul, .in = { dy, b }, .args = { 0, !tb });
        if (give_if(n, 0, g) != 0) return -1;
    }
    if (NEEDS(n, 1)) {
        sz_tensor *g = tb ? RUN(matmul, .in = { dy, a }, .args = { 1, ta }) : RUN(matmul, .in = { a, dy }, .args = { !ta, 0 });
        if (give_if(n, 1, g) != 0) return -1;
    }
    return 0;
}

/* linear (x, w, b) and linear_cat (x, w1..w3, b1..b3): weight i sees its own columns of dy. */
static int sz_grad_linear(sz_node *n)
{
    int weights = n->op == SZ_OP_linear ? 1 : 3;
    sz_tensor *const *w = &n->call.in[1], *const *b = &n->call.in[1 + weights];
    sz_tensor *x = IN(n, 0), *dy = DY(n);
    double col = 0;
    for (int i = 0; i < weights && w[i]; i++) {
        if (sz_needs_grad(w[i]) && accumulate(w[i], SZ_OP_linear_dw_, (sz_call){ .in = { NULL, x, dy }, .args = { col } }) != 0) return -1;
        if (sz_needs_grad(b[i]) && accumulate(b[i], SZ_OP_column_sum_, (sz_call){ .in = { NULL, dy }, .args = { col } }) != 0) return -1;
        col += (double)w[i]->shape[0];
    }
    if (!sz_needs_grad(x)) return 0;
    return give_if(n, 0, RUN(linear_dx, .in = { dy, w[0], weights > 1 ? w[1] : NULL, weights > 2 ? w[2] : NULL }));
}

/* (y, x, w; col): y's own gradient is dy as it stands. */
static int sz_grad_linear_add(sz_node *n)
{
    sz_tensor *x = IN(n, 1), *w = IN(n, 2), *dy = DY(n);
    const double col = n->call.args[0];
    if (NEEDS(n, 2) && accumulate(w, SZ_OP_linear_dw_, (sz_call){ .in = { NULL, x, dy }, .args = { col } }) != 0) return -1;
    if (NEEDS(n, 1) && give_if(n, 1, RUN(linear_dx, .in = { dy, w }, .args = { col })) != 0) return -1;
    return NEEDS(n, 0) ? give_if(n, 0, shaped_like(dy, IN(n, 0))) : 0;
}

/* ---- attention, log-probability ---- */
static int sz_grad_attention(sz_node *n)
{
    if (n->call.out[1]->grad) return sz_fail("attention: its log-sum-exp has no gradient");
    sz_call c = { .in = { IN(n, 0), IN(n, 1), n->call.out[0], n->call.out[1], DY(n) } };
    memcpy(c.args, n->call.args, sizeof c.args);
    return sz_apply(SZ_OP_attention_backward, &c) == 0 ? sz_accumulate_grad(IN(n, 0), c.out[0]) : -1;
}

static int sz_grad_attention_cross(sz_node *n)
{
    if (n->call.out[1]->grad) return sz_fail("attention_cross: its log-sum-exp has no gradient");
    sz_call c = { .in = { IN(n, 0), IN(n, 1), IN(n, 2), IN(n, 3), n->call.out[0], n->call.out[1], DY(n) } };
    memcpy(c.args, n->call.args, sizeof c.args);
    if (sz_apply(SZ_OP_attention_cross_backward, &c) != 0) return -1;
    int rc = 0;
    for (int i = 0; i < 3; i++) {
        if (rc == 0 && NEEDS(n, i)) rc = sz_accumulate_grad(IN(n, i), c.out[i]);
        else sz_tensor_release(c.out[i]);
    }
    return rc;
}

/* ---- pictures ---- */
/* The weight's and the bias's share of conv2d (x, w, b) -> y and of conv_transpose2d, which is conv2d with x and y swapped. */
static int conv_weights(sz_node *n, sz_tensor *x, sz_tensor *dy)
{
    sz_tensor *w = IN(n, 1), *b = IN(n, 2);
    sz_call c = { .in = { NULL, x, dy }, .args = { n->call.args[0], n->call.args[1] } };
    if (sz_needs_grad(w) && accumulate(w, SZ_OP_conv2d_dw_, c) != 0) return -1;
    return sz_needs_grad(b) ? accumulate(b, SZ_OP_column_sum_, (sz_call){ .in = { NULL, DY(n) }, .args = { 0 } }) : 0;
}

static int sz_grad_conv2d(sz_node *n)
{
    sz_tensor *x = IN(n, 0);
    int rc = conv_weights(n, x, DY(n));
    if (rc != 0 || !sz_needs_grad(x)) return rc;
    return give_if(n, 0, RUN(conv2d_dx, .in = { DY(n), IN(n, 1) },
                             .args = { n->call.args[0], n->call.args[1], (double)x->shape[1], (double)x->shape[2] }));
}

static int sz_grad_conv_transpose2d(sz_node *n)
{
    int rc = conv_weights(n, DY(n), IN(n, 0));
    if (rc != 0 || !NEEDS(n, 0)) return rc;
    return give_if(n, 0, sz_conv2d(DY(n), IN(n, 1), NULL, (int)n->call.args[0], (int)n->call.args[1]));
}

static int sz_grad_resize(sz_node *n)
{
    const sz_tensor *x = IN(n, 0);
    return give_if(n, 0, RUN(resize_backward, .in = { DY(n) }, .args = { (double)x->shape[1], (double)x->shape[2], n->call.args[2] }));
}

static int sz_grad_logprob(sz_node *n)
{
    sz_tensor *const *out = n->call.out, *w = IN(n, 1);
    if (out[2]->grad) return sz_fail("logprob: its log-sum-exp has no gradient");
    bool narrow = sz_needs_grad(w) && is_narrow(w);
    if (narrow) sz_scope_push();
    sz_tensor *acc = sz_needs_grad(w) ? accumulator(w) : NULL;
    sz_call c = { .in = { IN(n, 0), w, IN(n, 2), out[2], out[1], out[0]->grad, out[1]->grad, acc }, .args = { n->call.args[0] } };
    int rc = sz_needs_grad(w) && !acc ? -1 : sz_apply(SZ_OP_logprob_backward, &c);
    if (acc) rc = accumulated(w, acc, rc);
    sz_tensor *dx = narrow ? sz_scope_pop_keep(c.out[0]) : c.out[0];
    return rc == 0 ? sz_accumulate_grad(IN(n, 0), dx) : rc;
}

#define NONE NULL
const sz_gradient sz_gradients[SZ_OP_COUNT] = {
#define SZ_OP(name, inputs, outputs, args, gradient) gradient,
#include "ops.def"
#undef SZ_OP
};
