/* logprob.c - log-probability and entropy of chosen tokens from hidden states: the linear layer
 * of the logits and their softmax in one op, so that the logits [n, vocab] never exist as a
 * whole. Shape checks, gradient rule, workspace, FLOP counts, typed wrapper.
 * Leaves out: the gradient of the log-sum-exp. Nothing asks for it.
 */
#include "op.h"
#include "core/processor.h"
#include "cpu/gemm.h"

int sz_shape_logprob(int op, sz_call *c)
{
    sz_tensor *x = c->in[0];
    sz_tensor *w = c->in[1];
    sz_tensor *ids = c->in[2];
    SZ_REQUIRE(sz_is_float_nd(x, 2) && sz_is_float_nd(w, 2) && sz_is_ids(ids),
               "takes x [n, k], w [v, k], i32 ids [n]");
    SZ_REQUIRE(x->shape[1] == w->shape[1] && ids->numel == x->shape[0] && x->dtype == w->dtype,
               "x, w and ids do not fit");
    SZ_REQUIRE(sz_ids_below(ids, w->shape[0]), "an id is outside the vocabulary");
    for (int i = 0; i < 3; i++) {
        c->out[i] = sz_new1(SZ_F32, x->shape[0], x->device);
        if (!c->out[i]) return -1;
    }
    return 0;
}

int sz_shape_logprob_backward(int op, sz_call *c)
{
    sz_tensor *x = c->in[0];
    sz_tensor *w = c->in[1];
    sz_tensor *ids = c->in[2];
    sz_tensor *acc = c->in[7];
    SZ_REQUIRE(sz_is_float_nd(x, 2) && sz_is_float_nd(w, 2) && sz_is_ids(ids) && c->in[3] &&
                   c->in[4],
               "takes x, w, ids, lse, entropy");
    SZ_REQUIRE(x->shape[1] == w->shape[1] && x->dtype == w->dtype, "x and w do not fit");
    for (int i = 2; i < 7; i++)
        SZ_REQUIRE(!c->in[i] || c->in[i]->numel == x->shape[0], "one element a row of x is needed");
    SZ_REQUIRE(!acc || (acc->dtype == SZ_F32 && acc->numel == w->numel),
               "acc must be f32 of w's size");
    SZ_REQUIRE(sz_ids_below(ids, w->shape[0]), "an id is outside the vocabulary");
    return sz_out_like(c, x);
}

/* ---- workspace: the logits of a block of rows, and what its products take ---- */
/* Rows whose logits exist at one time. */
static int64_t block_rows(const sz_call *c)
{
    const int64_t rows = c->in[0]->shape[0];
    return rows < SZ_LOGPROB_ROWS ? rows : SZ_LOGPROB_ROWS;
}

int64_t sz_workspace_logprob(const sz_call *c)
{
    const sz_tensor *x = c->in[0];
    const int64_t rows = block_rows(c);
    const int64_t vocab = c->in[1]->shape[0];
    const int64_t logits = (int64_t)sizeof(float) * rows * vocab;
    return logits + sz_processor()->gemm_workspace(false, true, rows, vocab, x->shape[1], x->dtype);
}

int64_t sz_workspace_logprob_backward(const sz_call *c)
{
    const sz_tensor *x = c->in[0];
    const int64_t rows = block_rows(c);
    const int64_t k = x->shape[1];
    const int64_t vocab = c->in[1]->shape[0];

    /* The largest of the three products: the logits again, dx, dw. */
    int64_t product = sz_processor()->gemm_workspace(false, true, rows, vocab, k, x->dtype);
    const int64_t dx = sz_processor()->gemm_workspace(false, false, rows, k, vocab, x->dtype);
    const int64_t dw = sz_processor()->gemm_workspace(true, false, vocab, k, rows, x->dtype);
    if (dx > product) product = dx;
    if (dw > product) product = dw;

    const int64_t logits = (int64_t)sizeof(float) * rows * vocab;
    const int64_t bf16_logits = x->dtype == SZ_BF16 ? 2 * rows * vocab : 0;
    const int64_t sums = (int64_t)sizeof(float) * rows * k;
    return logits + sums + bf16_logits + product;
}

/* ---- FLOPs ---- */
static double product_flops(const sz_call *c)
{
    return 2.0 * (double)c->in[0]->numel * (double)c->in[1]->shape[0];
}

double sz_flops_logprob(const sz_call *c) { return product_flops(c); }

/* The logits again, dx, and dw where an accumulator is given. */
double sz_flops_logprob_backward(const sz_call *c)
{
    const double products = c->in[7] ? 3 : 2;
    return products * product_flops(c);
}

/* ---- gradient ---- */
int sz_grad_logprob(sz_node *n)
{
    sz_tensor *const *out = n->call.out;
    sz_tensor *x = n->call.in[0];
    sz_tensor *w = n->call.in[1];
    sz_tensor *ids = n->call.in[2];
    if (out[2]->grad) return sz_fail("logprob: its log-sum-exp has no gradient");

    /* A sum of dw that is made apart is released with a scope of its own; dx is kept. */
    const bool wants_dw = sz_needs_grad(w);
    const bool apart = wants_dw && sz_sums_apart(w);
    if (apart) sz_scope_push();
    sz_tensor *acc = wants_dw ? sz_accumulator(w) : NULL;
    sz_call c = { .in = { x, w, ids, out[2], out[1], out[0]->grad, out[1]->grad, acc },
                  .args = { n->call.args[0] } };
    int rc = wants_dw && !acc ? -1 : sz_apply(SZ_OP_logprob_backward, &c);
    if (acc) rc = sz_accumulated(w, acc, rc);
    sz_tensor *dx = apart ? sz_scope_pop_keep(c.out[0]) : c.out[0];
    return rc == 0 ? sz_accumulate_grad(x, dx) : rc;
}

/* ---- wrapper ---- */
int sz_logprob(sz_tensor *x, sz_tensor *w, sz_tensor *ids, double inverse_temperature,
               sz_tensor **logprob, sz_tensor **entropy)
{
    sz_call c = { .in = { x, w, ids }, .args = { inverse_temperature } };
    if (!x || !w || !ids || sz_apply(SZ_OP_logprob, &c) != 0) return -1;
    sz_tensor_release(c.out[2]);
    *logprob = c.out[0];
    *entropy = c.out[1];
    return 0;
}
