/* matmul.c - matrix products: matmul, and the linear layer with up to three weights, and its
 * gradients. Shape checks, gradient rules, workspace, FLOP counts, typed wrappers.
 *
 * x is [n, k] (its leading dimensions are seen as one), a weight [m, k], the result [n, m]. bf16
 * products are summed in f32 workspace and rounded once.
 * Leaves out: the products themselves (cpu/gemm.c, cuda/gemm.cu).
 */
#include "op.h"
#include "core/processor.h"
#include <omp.h>

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

/* ---- matmul ---- */
int sz_shape_matmul(int op, sz_call *c)
{
    sz_tensor *a = c->in[0];
    sz_tensor *b = c->in[1];
    SZ_REQUIRE(sz_is_float(a) && sz_is_float(b) && (a->ndim == 2 || a->ndim == 3) &&
                   b->ndim == a->ndim,
               "takes two f32 or bf16 matrices, or two stacks of them");
    const int batch = a->ndim - 2;
    const int trans_a = c->args[0] != 0;
    const int trans_b = c->args[1] != 0;
    const int64_t *a_shape = a->shape + batch;
    const int64_t *b_shape = b->shape + batch;
    SZ_REQUIRE(!batch || a->shape[0] == b->shape[0], "the stacks are of different height");
    SZ_REQUIRE(a_shape[!trans_a] == b_shape[trans_b] && a->dtype == b->dtype,
               "the inner dimensions or the dtypes differ");

    int64_t shape[3];
    if (batch) shape[0] = a->shape[0];
    shape[batch] = a_shape[trans_a];
    shape[batch + 1] = b_shape[!trans_b];
    return sz_out(c, sz_tensor_new(a->dtype, a->ndim, shape, a->device));
}

/* The dimension that is summed over. */
static int64_t inner(const sz_call *c)
{
    const sz_tensor *a = c->in[0];
    return a->shape[a->ndim - (c->args[0] != 0 ? 2 : 1)];
}

int64_t sz_workspace_matmul(const sz_call *c)
{
    const sz_tensor *y = c->out[0];
    const int64_t n = y->shape[y->ndim - 2];
    const bool ta = c->args[0] != 0;
    const bool tb = c->args[1] != 0;
    return sz_workspace_sums(y) +
           sz_processor()->gemm_workspace(ta, tb, n, sz_cols(y), inner(c), y->dtype);
}

double sz_flops_matmul(const sz_call *c)
{
    return 2.0 * (double)c->out[0]->numel * (double)inner(c);
}

static sz_tensor *product(sz_tensor *a, sz_tensor *b, double trans_a, double trans_b)
{
    return sz_run(SZ_OP_matmul, (sz_call){ .in = { a, b }, .args = { trans_a, trans_b } });
}

/* y = A B with A = a or a^T and B = b or b^T: dA = dy B^T and dB = A^T dy, transposed back. */
int sz_grad_matmul(sz_node *n)
{
    sz_tensor *a = n->call.in[0];
    sz_tensor *b = n->call.in[1];
    sz_tensor *dy = sz_dy(n);
    const double trans_a = n->call.args[0];
    const double trans_b = n->call.args[1];
    if (sz_wants(n, 0)) {
        sz_tensor *da = trans_a ? product(b, dy, trans_b, 1) : product(dy, b, 0, !trans_b);
        if (sz_give(n, 0, da) != 0) return -1;
    }
    if (!sz_wants(n, 1)) return 0;
    sz_tensor *db = trans_b ? product(dy, a, 1, trans_a) : product(a, dy, !trans_a, 0);
    return sz_give(n, 1, db);
}

/* ---- linear layers: checks ---- */
static bool is_weight(const sz_tensor *w, int dtype, int64_t k)
{
    return sz_is_float(w) && w->dtype == dtype && w->ndim >= 2 && w->numel == w->shape[0] * k;
}

/* The rows of up to `count` weights [m_i, k] (NULL ends them) with biases [m_i] or NULL: their
 * sum, or -1 when one does not fit. biases may be NULL. */
static int64_t weight_rows(int dtype, sz_tensor *const *w, sz_tensor *const *biases, int count,
                           int64_t k)
{
    int64_t rows = 0;
    for (int i = 0; i < count && w[i]; i++) {
        if (!is_weight(w[i], dtype, k)) return -1;
        const sz_tensor *b = biases ? biases[i] : NULL;
        if (b && (!sz_is_float(b) || b->numel != w[i]->shape[0])) return -1;
        rows += w[i]->shape[0];
    }
    return rows ? rows : -1;
}

/* (x, weights, biases) -> [n, m] in x's dtype */
static int shape_layers(int op, sz_call *c, int count, const char *takes, const char *fits)
{
    sz_tensor *x = c->in[0];
    SZ_REQUIRE(sz_is_float(x) && x->ndim >= 1 && c->in[1], takes);
    const int64_t m = weight_rows(x->dtype, &c->in[1], &c->in[1 + count], count, sz_cols(x));
    SZ_REQUIRE(m > 0, fits);
    return sz_out(c, sz_new_with_cols(x, x->dtype, m));
}

int sz_shape_linear(int op, sz_call *c)
{
    return shape_layers(
        op, c, 1, "takes x, a weight and maybe a bias",
        "the weight must be [m, k] and the bias [m] for x [n, k], all of one dtype");
}

int sz_shape_linear_gelu(int op, sz_call *c) { return sz_shape_linear(op, c); }

int sz_shape_linear_cat(int op, sz_call *c)
{
    return shape_layers(op, c, 3, "takes x, weights and biases",
                        "weights must be [m, k] and biases [m] for x [n, k], all of one dtype");
}

int sz_shape_linear_f32_out(int op, sz_call *c)
{
    sz_tensor *x = c->in[0];
    SZ_REQUIRE(sz_is_float(x) && x->ndim >= 1 && c->in[1], "takes x and a weight");
    const int64_t m = weight_rows(x->dtype, &c->in[1], NULL, 1, sz_cols(x));
    SZ_REQUIRE(m > 0, "the weight must be [m, k] for x [n, k], both of one dtype");
    return sz_out(c, sz_new_with_cols(x, SZ_F32, m));
}

/* The result is a view and not y itself: on the tape y stays the output of the op that made it. */
int sz_shape_linear_add_(int op, sz_call *c)
{
    sz_tensor *y = c->in[0];
    sz_tensor *x = c->in[1];
    sz_tensor *w = c->in[2];
    int64_t col;
    SZ_REQUIRE(sz_is_float(y) && sz_is_float(x) && w && y->ndim >= 1 && x->ndim >= 1 &&
                   y->dtype == x->dtype,
               "takes y [n, c], x [n, k] and w [m, k] of one dtype");
    const int64_t m = weight_rows(x->dtype, &c->in[2], NULL, 1, sz_cols(x));
    SZ_REQUIRE(m > 0 && sz_rows(x) == sz_rows(y),
               "y and x must have the same rows, and w x's columns and dtype");
    if (sz_whole(op, c, 0, 0, &col) != 0) return -1;
    SZ_REQUIRE(col + m <= sz_cols(y), "the columns reach past y");
    return sz_out(c, sz_tensor_view(y, y->ndim, y->shape, 0));
}

int sz_shape_linear_dx(int op, sz_call *c)
{
    sz_tensor *dy = c->in[0];
    sz_tensor *w = c->in[1];
    int64_t col;
    SZ_REQUIRE(sz_is_float(dy) && dy->ndim >= 1 && w && w->shape[0] > 0, "takes dy and weights");
    if (sz_whole(op, c, 0, 0, &col) != 0) return -1;
    const int64_t k = w->numel / w->shape[0];
    const int64_t m = weight_rows(dy->dtype, &c->in[1], NULL, 3, k);
    SZ_REQUIRE(m > 0 && col + m <= sz_cols(dy), "the weights' rows must be columns of dy");
    return sz_out(c, sz_new_with_cols(dy, dy->dtype, k));
}

int sz_shape_linear_dw_(int op, sz_call *c)
{
    sz_tensor *acc = c->in[0];
    sz_tensor *x = c->in[1];
    sz_tensor *dy = c->in[2];
    int64_t col;
    SZ_REQUIRE(sz_is_f32(acc) && acc->ndim >= 2 && sz_is_float(x) && sz_is_float(dy) &&
                   x->dtype == dy->dtype,
               "takes acc f32 [m, k], x [n, k], dy [n, c]");
    SZ_REQUIRE(acc->numel == acc->shape[0] * sz_cols(x) && sz_rows(x) == sz_rows(dy),
               "x and dy must have the same rows and x acc's columns");
    if (sz_whole(op, c, 0, 0, &col) != 0) return -1;
    SZ_REQUIRE(col + acc->shape[0] <= sz_cols(dy), "the columns reach past dy");
    return sz_out_in_place(c);
}

int sz_shape_column_sum_(int op, sz_call *c)
{
    sz_tensor *acc = c->in[0];
    sz_tensor *dy = c->in[1];
    int64_t col;
    SZ_REQUIRE(sz_is_f32(acc) && sz_is_float(dy), "takes acc f32 [m] and dy [n, c]");
    if (sz_whole(op, c, 0, 0, &col) != 0) return -1;
    SZ_REQUIRE(col + acc->numel <= sz_cols(dy), "the columns reach past dy");
    return sz_out_in_place(c);
}

/* ---- linear layers: workspace ---- */

/* Of X W^T. */
static int64_t workspace_layer(const sz_tensor *x, int64_t m)
{
    return sz_processor()->gemm_workspace(false, true, sz_rows(x), m, sz_cols(x), x->dtype);
}

static int64_t workspace_layers(const sz_call *c, int weights, bool gelu)
{
    const sz_tensor *x = c->in[0];
    const bool direct = c->out[0]->dtype == SZ_BF16 && !gelu &&
                        sz_processor()->gemm_stores_bf16(sz_rows(x), sz_cols(x));
    int64_t most = 0;
    for (int i = 1; i <= weights && c->in[i]; i++)
        most = larger(most, workspace_layer(x, c->in[i]->shape[0]));
    return (direct ? 0 : sz_workspace_sums(c->out[0])) + most;
}

int64_t sz_workspace_linear(const sz_call *c) { return workspace_layers(c, 1, false); }
int64_t sz_workspace_linear_gelu(const sz_call *c) { return workspace_layers(c, 1, true); }
int64_t sz_workspace_linear_cat(const sz_call *c) { return workspace_layers(c, 3, false); }

int64_t sz_workspace_linear_f32_out(const sz_call *c)
{
    return workspace_layer(c->in[0], sz_cols(c->out[0]));
}

int64_t sz_workspace_linear_add_(const sz_call *c)
{
    const sz_tensor *x = c->in[1];
    const int64_t n = sz_rows(x);
    const int64_t m = c->in[2]->shape[0];
    const int64_t sums = c->in[0]->dtype == SZ_F32 ? 0 : (int64_t)sizeof(float) * n * m;
    return sums + workspace_layer(x, m);
}

int64_t sz_workspace_linear_dx(const sz_call *c)
{
    const sz_tensor *dy = c->in[0];
    const int64_t k = sz_cols(c->out[0]);
    int64_t most = 0;
    for (int i = 1; i <= 3 && c->in[i]; i++)
        most = larger(most, sz_processor()->gemm_workspace(false, false, sz_rows(dy), k,
                                                           c->in[i]->shape[0], dy->dtype));
    return sz_workspace_sums(c->out[0]) + most;
}

int64_t sz_workspace_linear_dw_(const sz_call *c)
{
    const sz_tensor *x = c->in[1];
    return sz_processor()->gemm_workspace(true, false, c->in[0]->shape[0], sz_cols(x), sz_rows(x),
                                          x->dtype);
}

/* ---- linear layers: FLOPs ---- */
double sz_flops_linear(const sz_call *c)
{
    return 2.0 * (double)c->in[0]->numel * (double)sz_cols(c->out[0]);
}

double sz_flops_linear_add_(const sz_call *c)
{
    return 2.0 * (double)c->in[1]->numel * (double)c->in[2]->shape[0];
}

double sz_flops_linear_dx(const sz_call *c)
{
    double weights = 0;
    for (int i = 1; i <= 3 && c->in[i]; i++) weights += (double)c->in[i]->numel;
    return 2.0 * (double)sz_rows(c->in[0]) * weights;
}

double sz_flops_linear_dw_(const sz_call *c)
{
    return 2.0 * (double)c->in[0]->numel * (double)sz_rows(c->in[1]);
}

/* ---- linear layers: gradients ---- */
/* w's gradient from x and dy's columns from col on. */
static int grad_weight(sz_tensor *w, sz_tensor *x, sz_tensor *dy, double col)
{
    if (!sz_needs_grad(w)) return 0;
    sz_call sum = { .in = { NULL, x, dy }, .args = { col } };
    return sz_accumulate_into(w, SZ_OP_linear_dw_, sum);
}

static int grad_bias(sz_tensor *b, sz_tensor *dy, double col)
{
    if (!sz_needs_grad(b)) return 0;
    sz_call sum = { .in = { NULL, dy }, .args = { col } };
    return sz_accumulate_into(b, SZ_OP_column_sum_, sum);
}

/* (x, weights, biases): weight i sees its own columns of dy. */
static int grad_layers(sz_node *n, int count)
{
    sz_tensor *const *w = &n->call.in[1];
    sz_tensor *const *b = &n->call.in[1 + count];
    sz_tensor *x = n->call.in[0];
    sz_tensor *dy = sz_dy(n);
    sz_call to_x = { .in = { dy } };
    double col = 0;
    for (int i = 0; i < count && w[i]; i++) {
        if (grad_weight(w[i], x, dy, col) != 0 || grad_bias(b[i], dy, col) != 0) return -1;
        to_x.in[1 + i] = w[i];
        col += (double)w[i]->shape[0];
    }
    if (!sz_needs_grad(x)) return 0;
    return sz_give(n, 0, sz_run(SZ_OP_linear_dx, to_x));
}

int sz_grad_linear(sz_node *n) { return grad_layers(n, 1); }
int sz_grad_linear_cat(sz_node *n) { return grad_layers(n, 3); }

/* (y, x, w; col): y's own gradient is dy. */
int sz_grad_linear_add_(sz_node *n)
{
    sz_tensor *y = n->call.in[0];
    sz_tensor *x = n->call.in[1];
    sz_tensor *w = n->call.in[2];
    sz_tensor *dy = sz_dy(n);
    const double col = n->call.args[0];
    if (grad_weight(w, x, dy, col) != 0) return -1;
    if (sz_wants(n, 1)) {
        sz_tensor *dx = sz_run(SZ_OP_linear_dx, (sz_call){ .in = { dy, w }, .args = { col } });
        if (sz_give(n, 1, dx) != 0) return -1;
    }
    return sz_wants(n, 0) ? sz_give(n, 0, sz_shaped_like(dy, y)) : 0;
}

/* ---- wrappers ---- */
sz_tensor *sz_matmul(sz_tensor *a, sz_tensor *b, bool trans_a, bool trans_b)
{
    sz_call call = { .in = { a, b }, .args = { trans_a, trans_b } };
    return sz_run_wrapped(SZ_OP_matmul, 2, call);
}

sz_tensor *sz_linear(sz_tensor *x, sz_tensor *w, sz_tensor *b)
{
    return sz_run_wrapped(SZ_OP_linear, 2, (sz_call){ .in = { x, w, b } });
}

sz_tensor *sz_linear_gelu(sz_tensor *x, sz_tensor *w, sz_tensor *b)
{
    return sz_run_wrapped(SZ_OP_linear_gelu, 2, (sz_call){ .in = { x, w, b } });
}

sz_tensor *sz_linear_f32_out(sz_tensor *x, sz_tensor *w)
{
    return sz_run_wrapped(SZ_OP_linear_f32_out, 2, (sz_call){ .in = { x, w } });
}

sz_tensor *sz_linear_cat(sz_tensor *x, sz_tensor *w[3], sz_tensor *b[3])
{
    sz_call call = { .in = { x, w[0], w[1], w[2], b[0], b[1], b[2] } };
    return sz_run_wrapped(SZ_OP_linear_cat, 2, call);
}

sz_tensor *sz_linear_add(sz_tensor *y, sz_tensor *x, sz_tensor *w, int64_t col)
{
    sz_call call = { .in = { y, x, w }, .args = { (double)col } };
    return sz_run_wrapped(SZ_OP_linear_add_, 3, call);
}
