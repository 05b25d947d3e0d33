/* packed.c - linear layers with 8 and 4-bit weights: checks, workspace, the gradient of x, typed
 * wrappers. cpu/int8.h and cpu/int4.h describe the formats.
 *
 *   x [n, k] -> y [n, m]; w [m, k] is frozen
 *
 * The gradient of x is that of the weight as q and scale hold it, as if x were not rounded to 8
 * bits. It takes the whole weight again, in dy's dtype, for one product.
 * Leaves out: gradients of the weight and the bias. */
#include "op.h"
#include <omp.h>

enum {
    ROWS = 16,   /* of a block */
    GROUP = 256, /* columns that share a scale */
    WORD = 4,    /* columns whose 8-bit codes lie together */
    INT4_BLOCK = 2304,
    INT4_GROUPS = 16,
};

/* What q and scale of a weight are. */
typedef struct {
    int64_t q[3];
    int64_t scale[3];
    int scale_dtype;
} packed_form;

static int64_t ceil_div(int64_t n, int64_t by) { return (n + by - 1) / by; }

static packed_form int8_form(int64_t m, int64_t k)
{
    const int64_t blocks = ceil_div(m, ROWS);
    return (packed_form){
        { blocks, ceil_div(k, WORD), ROWS * WORD },
        { blocks, ceil_div(k, GROUP), ROWS },
        SZ_F32,
    };
}

static packed_form int4_form(int64_t m, int64_t k)
{
    const int64_t blocks = ceil_div(m, ROWS);
    const int64_t across = ceil_div(k, GROUP);
    return (packed_form){
        { blocks, across, INT4_BLOCK },
        { blocks, across, ROWS },
        SZ_BF16,
    };
}

static packed_form form_of(int bits, int64_t m, int64_t k)
{
    return bits == 8 ? int8_form(m, k) : int4_form(m, k);
}

/* ---- shapes ---- */
static int shape_quantize(int op, sz_call *c, int bits)
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

    const packed_form form = form_of(bits, rows, first->shape[1]);
    c->out[1] = sz_tensor_new(form.scale_dtype, 3, form.scale, first->device);
    if (!c->out[1]) return -1;
    return sz_out(c, sz_tensor_new(SZ_U8, 3, form.q, first->device));
}

int sz_shape_quantize_int8(int op, sz_call *c) { return shape_quantize(op, c, 8); }
int sz_shape_quantize_int4(int op, sz_call *c) { return shape_quantize(op, c, 4); }

static bool has_shape(const sz_tensor *t, int dtype, const int64_t shape[3])
{
    return t && t->dtype == dtype && t->ndim == 3 && t->shape[0] == shape[0] &&
           t->shape[1] == shape[1] && t->shape[2] == shape[2];
}

/* Are q and scale those of a weight [m, k]? */
static bool are_packed(int bits, const sz_tensor *q, const sz_tensor *scale, int64_t m, int64_t k)
{
    const packed_form form = form_of(bits, m, k);
    return has_shape(q, SZ_U8, form.q) && has_shape(scale, form.scale_dtype, form.scale);
}

static int shape_dequantize(int op, sz_call *c, int bits)
{
    int64_t shape[2];
    int64_t dtype;
    if (sz_whole(op, c, 0, 1, &shape[0]) != 0 || sz_whole(op, c, 1, 1, &shape[1]) != 0 ||
        sz_whole(op, c, 2, 0, &dtype) != 0)
        return -1;
    SZ_REQUIRE(dtype == SZ_F32 || dtype == SZ_BF16, "the dtype must be f32 or bf16");
    SZ_REQUIRE(are_packed(bits, c->in[0], c->in[1], shape[0], shape[1]),
               "q and scale must be those of a weight [m, k]");
    return sz_out(c, sz_tensor_new((int)dtype, 2, shape, c->in[0]->device));
}

int sz_shape_dequantize_int8(int op, sz_call *c) { return shape_dequantize(op, c, 8); }
int sz_shape_dequantize_int4(int op, sz_call *c) { return shape_dequantize(op, c, 4); }

static int shape_linear(int op, sz_call *c, int bits)
{
    const sz_tensor *x = c->in[0];
    const sz_tensor *b = c->in[3];
    int64_t m;
    SZ_REQUIRE(sz_is_float(x) && x->ndim >= 1, "takes x, and q and scale of a packed weight");
    if (sz_whole(op, c, 0, 1, &m) != 0) return -1;
    SZ_REQUIRE(are_packed(bits, c->in[1], c->in[2], m, sz_cols(x)) &&
                   (!b || (sz_is_float(b) && b->numel == m)),
               "q and scale must be those of a weight [m, k], the bias [m]");
    const int dtype = c->args[1] != 0 ? SZ_F32 : x->dtype;
    return sz_out(c, sz_new_with_cols(x, dtype, m));
}

int sz_shape_linear_int8(int op, sz_call *c) { return shape_linear(op, c, 8); }
int sz_shape_linear_int4(int op, sz_call *c) { return shape_linear(op, c, 4); }

/* ---- workspace ---- */
/* x in 8 bits, four columns to a word or two, and for each group of columns a scale and `starts`
 * starts of sums; and each thread's sums. */
static int64_t workspace(const sz_call *c, int64_t starts)
{
    const int64_t n = sz_rows(c->in[0]);
    const int64_t groups = c->in[2]->shape[1];
    const int64_t words = groups * (2 * GROUP / 4 + 1 + starts);
    const int64_t x = (sz_packed_rows(n) * words + 3) * (int64_t)sizeof(float);
    return x + omp_get_max_threads() * sz_packed_sums_bytes(n);
}

int64_t sz_workspace_linear_int8(const sz_call *c) { return workspace(c, 1); }
int64_t sz_workspace_linear_int4(const sz_call *c) { return workspace(c, INT4_GROUPS); }

/* ---- the gradient of x ---- */
/* dequantize: the op that makes the whole weight. */
static int grad_linear(sz_node *n, int dequantize)
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

int sz_grad_linear_int8(sz_node *n) { return grad_linear(n, SZ_OP_dequantize_int8); }
int sz_grad_linear_int4(sz_node *n) { return grad_linear(n, SZ_OP_dequantize_int4); }

/* ---- wrappers ---- */
static int quantize(int op, sz_tensor *w[3], sz_tensor **q, sz_tensor **scale)
{
    sz_call c = { .in = { w[0], w[1], w[2] } };
    if (!w[0] || sz_apply(op, &c) != 0) return -1;
    *q = c.out[0];
    *scale = c.out[1];
    return 0;
}

int sz_quantize_int8(sz_tensor *w[3], sz_tensor **q, sz_tensor **scale)
{
    return quantize(SZ_OP_quantize_int8, w, q, scale);
}

int sz_quantize_int4(sz_tensor *w[3], sz_tensor **q, sz_tensor **scale)
{
    return quantize(SZ_OP_quantize_int4, w, q, scale);
}

sz_tensor *sz_linear_int8(sz_tensor *x, sz_tensor *q, sz_tensor *scale, sz_tensor *b, int64_t m,
                          bool f32_out)
{
    sz_call call = { .in = { x, q, scale, b }, .args = { (double)m, f32_out } };
    return sz_run_wrapped(SZ_OP_linear_int8, 3, call);
}

sz_tensor *sz_linear_int4(sz_tensor *x, sz_tensor *q, sz_tensor *scale, sz_tensor *b, int64_t m,
                          bool f32_out)
{
    sz_call call = { .in = { x, q, scale, b }, .args = { (double)m, f32_out } };
    return sz_run_wrapped(SZ_OP_linear_int4, 3, call);
}
