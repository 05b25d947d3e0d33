/* int4.c - linear layers with 4-bit weights: checks, workspace and the gradient of x. cpu/int4.h
 * describes the format.
 *
 *   x [n, k] -> y [n, m]; w [m, k] is frozen
 *
 * The gradient of x is that of the weight as q and scale hold it, as if x were not rounded to 8
 * bits. It takes the whole weight again, in dy's dtype, for one product.
 * Leaves out: gradients of the weight and the bias. */
#include "op.h"
#include <omp.h>

enum { ROWS = 16, COLS = 256, BLOCK = 2304, GROUPS = 16 };

static int64_t ceil_div(int64_t n, int64_t by) { return (n + by - 1) / by; }

int sz_shape_quantize_int4(int op, sz_call *c)
{
    const sz_tensor *first = c->in[0];
    int64_t rows = 0;
    for (int i = 0; i < 3 && c->in[i]; i++) {
        const sz_tensor *w = c->in[i];
        SZ_REQUIRE(sz_is_float_nd(w, 2) && w->shape[0] > 0 && w->shape[1] > 0 &&
                       w->shape[1] == first->shape[1] && w->dtype == first->dtype,
                   "takes weights [m, k] with one k and dtype");
        rows += w->shape[0];
    }
    SZ_REQUIRE(rows > 0, "takes weights [m, k]");

    const int64_t blocks = ceil_div(rows, ROWS);
    const int64_t across = ceil_div(first->shape[1], COLS);
    const int64_t q_shape[] = { blocks, across, BLOCK };
    const int64_t scale_shape[] = { blocks, across, ROWS };
    c->out[1] = sz_tensor_new(SZ_BF16, 3, scale_shape, first->device);
    if (!c->out[1]) return -1;
    return sz_out(c, sz_tensor_new(SZ_U8, 3, q_shape, first->device));
}

/* Are q and scale those of a weight [m, k]? */
static bool are_packed(const sz_tensor *q, const sz_tensor *scale, int64_t m, int64_t k)
{
    if (!q || !scale || q->dtype != SZ_U8 || scale->dtype != SZ_BF16) return false;
    if (q->ndim != 3 || scale->ndim != 3) return false;
    const int64_t blocks = ceil_div(m, ROWS);
    const int64_t across = ceil_div(k, COLS);
    return q->shape[0] == blocks && q->shape[1] == across && q->shape[2] == BLOCK &&
           scale->shape[0] == blocks && scale->shape[1] == across && scale->shape[2] == ROWS;
}

int sz_shape_dequantize_int4(int op, sz_call *c)
{
    int64_t shape[2];
    int64_t dtype;
    if (sz_whole(op, c, 0, 1, &shape[0]) != 0 || sz_whole(op, c, 1, 1, &shape[1]) != 0 ||
        sz_whole(op, c, 2, 0, &dtype) != 0)
        return -1;
    SZ_REQUIRE(dtype == SZ_F32 || dtype == SZ_BF16, "the dtype must be f32 or bf16");
    SZ_REQUIRE(are_packed(c->in[0], c->in[1], shape[0], shape[1]),
               "q and scale must be those of a weight [m, k]");
    return sz_out(c, sz_tensor_new((int)dtype, 2, shape, c->in[0]->device));
}

int sz_shape_linear_int4(int op, sz_call *c)
{
    const sz_tensor *x = c->in[0];
    const sz_tensor *b = c->in[3];
    int64_t m;
    SZ_REQUIRE(sz_is_float(x) && x->ndim >= 1, "takes x, and q and scale of quantize_int4");
    if (sz_whole(op, c, 0, 1, &m) != 0) return -1;
    SZ_REQUIRE(are_packed(c->in[1], c->in[2], m, sz_cols(x)) &&
                   (!b || (sz_is_float(b) && b->numel == m)),
               "q and scale must be those of a weight [m, k], the bias [m]");
    const int dtype = c->args[1] != 0 ? SZ_F32 : x->dtype;
    return sz_out(c, sz_new_with_cols(x, dtype, m));
}

/* x in 8 bits, four columns to a word or two, and for each block of columns a scale and the starts
 * of its groups; and each thread's sums. */
int64_t sz_workspace_linear_int4(const sz_call *c)
{
    const int64_t n = sz_rows(c->in[0]);
    const int64_t across = c->in[1]->shape[1];
    const int64_t words = across * (2 * COLS / 4 + 1 + GROUPS);
    const int64_t x = (sz_packed_rows(n) * words + 3) * (int64_t)sizeof(float);
    return x + omp_get_max_threads() * sz_packed_sums_bytes(n);
}

int sz_grad_packed(sz_node *n, int dequantize)
{
    if (!sz_wants(n, 0)) return 0;
    sz_tensor *dy = sz_dy(n);
    const sz_tensor *x = n->call.in[0];
    sz_call whole = {
        .in = { n->call.in[1], n->call.in[2] },
        .args = { n->call.args[0], (double)sz_cols(x), dy->dtype },
    };
    sz_tensor *w = sz_run(dequantize, whole);
    sz_tensor *dx = w ? sz_run(SZ_OP_linear_dx, (sz_call){ .in = { dy, w } }) : NULL;
    sz_tensor_release(w);
    return sz_give(n, 0, dx);
}

/* ---- wrappers ---- */
int sz_quantize_int4(sz_tensor *w[3], sz_tensor **q, sz_tensor **scale)
{
    sz_call c = { .in = { w[0], w[1], w[2] } };
    if (!w[0] || sz_apply(SZ_OP_quantize_int4, &c) != 0) return -1;
    *q = c.out[0];
    *scale = c.out[1];
    return 0;
}

sz_tensor *sz_linear_int4(sz_tensor *x, sz_tensor *q, sz_tensor *scale, sz_tensor *b, int64_t m,
                          bool f32_out)
{
    sz_call call = { .in = { x, q, scale, b }, .args = { (double)m, f32_out } };
    return sz_run_wrapped(SZ_OP_linear_int4, 3, call);
}

int sz_grad_linear_int4(sz_node *n) { return sz_grad_packed(n, SZ_OP_dequantize_int4); }
