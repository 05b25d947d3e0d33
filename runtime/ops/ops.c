/* ops.c - the front of every op: sz_shape_<name> checks the inputs of a call and makes its outputs; sz_apply then runs the
 * kernel of the device and records the call for the tape. The shapes are the ones written in ops.def.
 * Leaves out: the kernels (cpu/), the gradient rules (grads.c). */
#include "core/core.h"
#include "core/device.h"
#include "core/tape.h"
#include <stdio.h>

typedef long long ll;

const char *const sz_op_names[SZ_OP_COUNT] = {
#define SZ_OP(name, inputs, outputs, args, gradient) #name,
#include "ops.def"
#undef SZ_OP
};

static const struct { int8_t inputs, outputs, args; } arity[SZ_OP_COUNT] = {
#define SZ_OP(name, inputs, outputs, args, gradient) { inputs, outputs, args },
#include "ops.def"
#undef SZ_OP
};

#define SZ_OP(name, inputs, outputs, args, gradient) int sz_cpu_##name(const sz_call *); int sz_ref_##name(const sz_call *); static int sz_shape_##name(sz_call *);
#include "ops.def"
#undef SZ_OP

const sz_kernel sz_cpu_kernels[SZ_OP_COUNT] = {
#define SZ_OP(name, inputs, outputs, args, gradient) sz_cpu_##name,
#include "ops.def"
#undef SZ_OP
};
const sz_kernel sz_ref_kernels[SZ_OP_COUNT] = {
#define SZ_OP(name, inputs, outputs, args, gradient) sz_ref_##name,
#include "ops.def"
#undef SZ_OP
};
static int (*const shapes[SZ_OP_COUNT])(sz_call *) = {
#define SZ_OP(name, inputs, outputs, args, gradient) sz_shape_##name,
#include "ops.def"
#undef SZ_OP
};

static int use_reference;
void sz_use_reference(int on) { use_reference = on; }

int sz_op_count(void) { return SZ_OP_COUNT; }
static bool known(int op) { return op >= 0 && op < SZ_OP_COUNT; }
const char *sz_op_name(int op) { return known(op) ? sz_op_names[op] : sz_null("there is no op %d", op); }
int sz_op_inputs(int op) { return known(op) ? arity[op].inputs : sz_fail("there is no op %d", op); }
int sz_op_outputs(int op) { return known(op) ? arity[op].outputs : sz_fail("there is no op %d", op); }
int sz_op_args(int op) { return known(op) ? arity[op].args : sz_fail("there is no op %d", op); }
int sz_op_has_grad(int op) { return known(op) && sz_gradients[op] != NULL; }

/* Where a call is computed: on the one device of its inputs. Index tensors stay in host memory, where they are checked; a cast
 * and the views take anything. -1 with a message when the inputs do not agree. */
static int device_of(int op, const sz_call *c)
{
    bool any = op == SZ_OP_cast || op == SZ_OP_reshape || op == SZ_OP_narrow;
    int device = -1, first = 0;
    for (int i = 0; i < arity[op].inputs; i++) {
        const sz_tensor *t = c->in[i];
        if (!t) continue;
        if (t->dtype == SZ_I32 && !any) {
            if (t->device != SZ_CPU) return sz_fail("%s: input %d, i32, must be on the cpu, not on %s", sz_op_names[op], i + 1, sz_device_name(t->device));
        } else if (device < 0) {
            device = t->device;
            first = i;
        } else if (t->device != device) {
            return sz_fail("%s: input %d is on %s, input %d on %s", sz_op_names[op], first + 1, sz_device_name(device), i + 1, sz_device_name(t->device));
        }
    }
    return device < 0 ? SZ_CPU : device;
}

int sz_apply(int op, sz_call *c)
{
    if (sz_interrupt_pending()) return sz_fail("interrupted");
    bool wants_grad = false;
    for (int i = 0; i < arity[op].inputs; i++) {
        if (!c->in[i]) continue;
        if (!c->in[i]->data) return sz_fail("%s: input %d belonged to a step that has ended", sz_op_names[op], i + 1);
        wants_grad |= sz_needs_grad(c->in[i]);
    }
    wants_grad = wants_grad && sz_grad_enabled();
    if (wants_grad && !sz_gradients[op])
        return sz_fail("%s has no gradient, and an input requires one (detach it, or use no_grad)", sz_op_names[op]);
    memset(c->out, 0, sizeof c->out);
    int device = device_of(op, c);
    if (device < 0) return -1;
    int rc = shapes[op](c);
    if (rc == 0) {
        sz_scratch_begin();
        if (sz_is_dry_run()) rc = sz_scratch((size_t)sz_cpu_workspace(op, c)) ? 0 : -1;
        else if (sz_profiling()) rc = sz_profile(op, device != SZ_CPU ? sz_device->kernels[op] : use_reference ? sz_ref_kernels[op] : sz_cpu_kernels[op], c, device);
        else rc = (device != SZ_CPU ? sz_device->kernels : use_reference ? sz_ref_kernels : sz_cpu_kernels)[op](c);
        sz_scratch_end();
    }
    if (rc == 0 && wants_grad) rc = sz_tape_record(op, c);
    if (rc != 0)
        for (int i = 0; i < SZ_MAX_OUT; i++) {
            sz_tensor_release(c->out[i]);
            c->out[i] = NULL;
        }
    return rc;
}

int sz_op_apply(int op, sz_tensor **in, const double *args, sz_tensor **out)
{
    if (!known(op)) return sz_fail("there is no op %d", op);
    sz_call c = { 0 };
    for (int i = 0; i < arity[op].inputs; i++) c.in[i] = in[i];
    for (int i = 0; i < arity[op].args; i++) c.args[i] = args[i];
    if (sz_apply(op, &c) != 0) return -1;
    for (int i = 0; i < arity[op].outputs; i++) out[i] = c.out[i];
    return 0;
}

/* ---- checks ---- */
static const char *describe(const sz_tensor *t, char *buf, size_t size)
{
    static const char *const dtypes[] = { "f32", "bf16", "i32", "u8" };
    if (!t) return "nothing";
    int n = snprintf(buf, size, "%s [", dtypes[t->dtype]);
    for (int i = 0; i < t->ndim; i++) n += snprintf(buf + n, size - (size_t)n, "%s%lld", i ? ", " : "", (ll)t->shape[i]);
    snprintf(buf + n, size - (size_t)n, "]");
    return buf;
}

/* The message of a refused call: op, what is wrong, and every input's dtype and shape. */
static int refuse(const sz_call *c, const char *name, const char *what)
{
    char text[600] = "", one[160];
    size_t n = 0;
    for (int i = 0; i < SZ_MAX_IN && n < sizeof text - 170; i++)
        if (c->in[i]) n += (size_t)snprintf(text + n, sizeof text - n, "%s%s", n ? ", " : "", describe(c->in[i], one, sizeof one));
    return sz_fail("%s: %s; given %s", name, what, n ? text : "no tensor");
}
#define REQUIRE(cond, what) do { if (!(cond)) return refuse(c, __func__ + 9, what); } while (0)   /* + 9: past "sz_shape_" */

static bool floating(const sz_tensor *t) { return t && (t->dtype == SZ_F32 || t->dtype == SZ_BF16); }
static bool ints(const sz_tensor *t) { return t && t->dtype == SZ_I32; }
static bool same_shape(const sz_tensor *a, const sz_tensor *b)
{
    return a->ndim == b->ndim && memcmp(a->shape, b->shape, sizeof a->shape[0] * (size_t)a->ndim) == 0;
}
static bool trailing(const sz_tensor *a, const sz_tensor *b)
{
    if (b->numel == 1) return true;
    int n = b->ndim;
    while (n > 0 && b->shape[b->ndim - n] == 1) n--;         /* leading ones say nothing */
    if (n > a->ndim) return false;
    for (int i = 1; i <= n; i++)
        if (a->shape[a->ndim - i] != b->shape[b->ndim - i]) return false;
    return true;
}
static bool in_range(const sz_tensor *ids, int64_t n)
{
    const int32_t *p = sz_i32(ids);
    int32_t lo = 0;
    int64_t hi = -1;
    for (int64_t i = 0; i < ids->numel; i++) {
        if (p[i] < lo) lo = p[i];
        if (p[i] > hi) hi = p[i];
    }
    return lo >= 0 && hi < n;
}
static int out0(sz_call *c, sz_tensor *t)
{
    c->out[0] = t;
    return t ? 0 : -1;
}
static int in_place(sz_call *c) { return out0(c, sz_tensor_retain(c->in[0])); }
static int like_first(sz_call *c) { return out0(c, sz_tensor_like(c->in[0])); }
/* Input 0's shape with another last dimension. */
static sz_tensor *with_cols(const sz_tensor *x, int dtype, int64_t cols)
{
    int64_t shape[SZ_MAX_DIMS];
    memcpy(shape, x->shape, sizeof shape);
    shape[x->ndim - 1] = cols;
    return sz_tensor_new(dtype, x->ndim, shape, x->device);
}

/* ---- elementwise ---- */
#define BROADCAST(name) \
    static int sz_shape_##name(sz_call *c) \
    { \
        REQUIRE(floating(c->in[0]) && floating(c->in[1]), "takes two f32 or bf16 tensors"); \
        REQUIRE(trailing(c->in[0], c->in[1]), "the second shape must equal the first, be its trailing part, or be one element"); \
        return like_first(c); \
    }
BROADCAST(add) BROADCAST(sub) BROADCAST(mul) BROADCAST(div)

#define UNARY(name) \
    static int sz_shape_##name(sz_call *c) \
    { \
        REQUIRE(floating(c->in[0]), "takes an f32 or bf16 tensor"); \
        return like_first(c); \
    }
UNARY(affine) UNARY(exp) UNARY(log) UNARY(sigmoid) UNARY(silu) UNARY(gelu) UNARY(quick_gelu) UNARY(relu)
UNARY(softplus) UNARY(clamp)

#define SAME(name) \
    static int sz_shape_##name(sz_call *c) \
    { \
        REQUIRE(floating(c->in[0]) && floating(c->in[1]), "takes two f32 or bf16 tensors"); \
        REQUIRE(same_shape(c->in[0], c->in[1]) && c->in[0]->dtype == c->in[1]->dtype, "takes two tensors of one shape and dtype"); \
        return like_first(c); \
    }
SAME(minimum) SAME(maximum) SAME(silu_backward) SAME(gelu_backward) SAME(quick_gelu_backward) SAME(relu_backward)
SAME(clamp_backward) SAME(softmax_backward)

static int sz_shape_mask_le(sz_call *c)
{
    REQUIRE(floating(c->in[0]) && floating(c->in[1]) && floating(c->in[2]), "takes three f32 or bf16 tensors");
    REQUIRE(same_shape(c->in[0], c->in[1]) && same_shape(c->in[0], c->in[2]), "takes three tensors of one shape");
    return out0(c, sz_tensor_like(c->in[2]));
}

static int sz_shape_swiglu(sz_call *c)
{
    REQUIRE(floating(c->in[0]) && c->in[0]->ndim >= 1, "takes an f32 or bf16 tensor");
    REQUIRE(sz_cols(c->in[0]) % 2 == 0, "the last dimension must be even");
    return out0(c, with_cols(c->in[0], c->in[0]->dtype, sz_cols(c->in[0]) / 2));
}

static int sz_shape_swiglu_backward(sz_call *c)
{
    REQUIRE(floating(c->in[0]) && floating(c->in[1]), "takes two f32 or bf16 tensors");
    REQUIRE(c->in[0]->numel == 2 * c->in[1]->numel && sz_cols(c->in[0]) == 2 * sz_cols(c->in[1]), "x must be twice as wide as dy");
    REQUIRE(c->in[0]->dtype == c->in[1]->dtype, "takes two tensors of one dtype");
    return like_first(c);
}

static int sz_shape_cast(sz_call *c)
{
    REQUIRE(c->in[0], "takes a tensor");
    return out0(c, sz_tensor_new((int)c->args[0], c->in[0]->ndim, c->in[0]->shape, c->in[0]->device));
}

static int sz_shape_sum(sz_call *c)
{
    REQUIRE(floating(c->in[0]), "takes an f32 or bf16 tensor");
    return out0(c, sz_new1(SZ_F32, 1, c->in[0]->device));
}
static int sz_shape_sum_squares(sz_call *c)
{
    REQUIRE(floating(c->in[0]), "takes an f32 or bf16 tensor");
    return out0(c, sz_new1(SZ_F32, 1, c->in[0]->device));
}

static int sz_shape_sum_leading(sz_call *c)
{
    int64_t n = (int64_t)c->args[0];
    REQUIRE(floating(c->in[0]), "takes an f32 or bf16 tensor");
    REQUIRE(n > 0 && c->in[0]->numel % n == 0, "n must divide the number of elements");
    return out0(c, sz_new1(SZ_F32, n, c->in[0]->device));
}

static int sz_shape_expand(sz_call *c)
{
    REQUIRE(floating(c->in[0]) && floating(c->in[1]) && c->in[0]->numel == 1, "takes one element and a tensor");
    return out0(c, sz_tensor_like(c->in[1]));
}

static int sz_shape_add_(sz_call *c)
{
    REQUIRE(floating(c->in[0]) && floating(c->in[1]) && c->in[0]->numel == c->in[1]->numel, "takes two f32 or bf16 tensors of equal size");
    return in_place(c);
}

static int sz_shape_adamw_(sz_call *c)
{
    sz_tensor *p = c->in[0], *g = c->in[1], *m = c->in[2], *v = c->in[3], *master = c->in[4];
    REQUIRE(floating(p) && g && m && v && g->dtype == SZ_F32 && m->dtype == SZ_F32 && v->dtype == SZ_F32, "takes a parameter and f32 gradient, m, v");
    REQUIRE(g->numel == p->numel && m->numel == p->numel && v->numel == p->numel, "takes tensors of equal size");
    REQUIRE(master ? master->dtype == SZ_F32 && master->numel == p->numel : p->dtype == SZ_F32, "a bf16 parameter needs an f32 master of its size");
    return in_place(c);
}

static int sz_shape_adamw_compact_(sz_call *c)
{
    sz_tensor *p = c->in[0], *g = c->in[1], *m = c->in[2], *v = c->in[3], *master = c->in[6];
    REQUIRE(floating(p) && floating(g) && m && v && m->dtype == v->dtype && m->dtype != SZ_I32, "takes a parameter, its gradient, m and v");
    REQUIRE(g->numel == p->numel && m->numel == p->numel && v->numel == p->numel, "takes tensors of equal size");
    for (int i = 4; i < 6; i++)
        REQUIRE(m->dtype == SZ_U8 ? c->in[i] && c->in[i]->dtype == SZ_F32 && c->in[i]->numel == (p->numel + SZ_MOMENT_BLOCK - 1) / SZ_MOMENT_BLOCK : !c->in[i],
                "u8 moments need an f32 scale for each block, others none");
    REQUIRE(!master || (master->dtype == SZ_F32 && master->numel == p->numel), "a master is f32 and of the parameter's size");
    return in_place(c);
}

/* ---- rowwise ---- */
static int sz_shape_rmsnorm(sz_call *c)
{
    REQUIRE(floating(c->in[0]) && floating(c->in[1]) && c->in[0]->ndim >= 1, "takes f32 or bf16 tensors");
    REQUIRE(c->in[1]->numel == sz_cols(c->in[0]), "the weight must have one element a column");
    return like_first(c);
}

static int sz_shape_rmsnorm_backward(sz_call *c)
{
    REQUIRE(floating(c->in[0]) && floating(c->in[1]) && floating(c->in[2]) && c->in[0]->ndim >= 1, "takes f32 or bf16 tensors");
    REQUIRE(c->in[1]->numel == sz_cols(c->in[0]) && c->in[2]->numel == c->in[0]->numel, "dy must have x's size and w one element a column");
    c->out[1] = sz_new1(SZ_F32, sz_cols(c->in[0]), c->in[0]->device);
    return like_first(c) == 0 && c->out[1] ? 0 : -1;
}

static int sz_shape_layernorm(sz_call *c)
{
    REQUIRE(floating(c->in[0]) && floating(c->in[1]) && floating(c->in[2]) && c->in[0]->ndim >= 1, "takes f32 or bf16 tensors");
    REQUIRE(c->in[1]->numel == sz_cols(c->in[0]) && c->in[2]->numel == sz_cols(c->in[0]), "weight and bias must have one element a column");
    return like_first(c);
}

static int sz_shape_layernorm_backward(sz_call *c)
{
    REQUIRE(floating(c->in[0]) && floating(c->in[1]) && floating(c->in[2]) && c->in[0]->ndim >= 1, "takes f32 or bf16 tensors");
    REQUIRE(c->in[1]->numel == sz_cols(c->in[0]) && c->in[2]->numel == c->in[0]->numel, "dy must have x's size and w one element a column");
    c->out[1] = sz_new1(SZ_F32, sz_cols(c->in[0]), c->in[0]->device);
    c->out[2] = sz_new1(SZ_F32, sz_cols(c->in[0]), c->in[0]->device);
    return like_first(c) == 0 && c->out[1] && c->out[2] ? 0 : -1;
}

static int sz_shape_softmax(sz_call *c)
{
    REQUIRE(floating(c->in[0]) && c->in[0]->ndim >= 1, "takes an f32 or bf16 tensor");
    return like_first(c);
}

static int sz_shape_rope(sz_call *c)
{
    int64_t heads = (int64_t)c->args[0], d = (int64_t)c->args[1];
    REQUIRE(floating(c->in[0]) && floating(c->in[1]) && floating(c->in[2]) && c->in[0]->ndim == 2, "takes x [n, c], cos, sin");
    REQUIRE(heads >= 0 && d > 0 && d % 2 == 0 && heads * d <= sz_cols(c->in[0]), "heads of an even width must fit the columns");
    REQUIRE(c->in[1]->numel == sz_rows(c->in[0]) * d / 2 && c->in[2]->numel == c->in[1]->numel && c->in[1]->dtype == c->in[2]->dtype,
            "cos and sin must be [n, head_dim / 2]");
    return like_first(c);
}

static int sz_shape_embedding(sz_call *c)
{
    REQUIRE(floating(c->in[0]) && c->in[0]->ndim == 2 && ints(c->in[1]), "takes a table [v, d] and i32 ids");
    REQUIRE(in_range(c->in[1], c->in[0]->shape[0]), "an id is outside the table");
    return out0(c, sz_new2(c->in[0]->dtype, c->in[1]->numel, sz_cols(c->in[0]), c->in[0]->device));
}

static int sz_shape_gather_rows(sz_call *c) 
{
    REQUIRE(floating(c->in[0]) && c->in[0]->ndim == 2 && ints(c->in[1]), "takes x [m, d] and i32 ids");
    REQUIRE(in_range(c->in[1], c->in[0]->shape[0]), "an id is outside x");
    return out0(c, sz_new2(c->in[0]->dtype, c->in[1]->numel, sz_cols(c->in[0]), c->in[0]->device));
}

static int sz_shape_index_add_(sz_call *c)
{
    REQUIRE(floating(c->in[0]) && c->in[0]->dtype == SZ_F32 && c->in[0]->ndim == 2 && ints(c->in[1]) && floating(c->in[2]), "takes acc f32 [v, d], i32 ids, x [n, d]");
    REQUIRE(c->in[2]->numel == c->in[1]->numel * sz_cols(c->in[0]), "x must have a row for each id");
    REQUIRE(in_range(c->in[1], c->in[0]->shape[0]), "an id is outside acc");
    return in_place(c);
}

static int sz_shape_index_copy(sz_call *c)
{
    REQUIRE(floating(c->in[0]) && c->in[0]->ndim == 2 && ints(c->in[1]) && floating(c->in[2]), "takes x [m, d], i32 ids, src [n, d]");
    REQUIRE(c->in[2]->numel == c->in[1]->numel * sz_cols(c->in[0]) && c->in[2]->dtype == c->in[0]->dtype, "src must have a row of x's width and dtype for each id");
    REQUIRE(in_range(c->in[1], c->in[0]->shape[0]), "an id is outside x");
    return like_first(c);
}

static int sz_shape_pad_rows(sz_call *c)
{
    int64_t count = (int64_t)c->args[0];
    REQUIRE(floating(c->in[0]) && c->in[0]->ndim == 2 && count >= 0, "takes x [n, d] and a number of rows");
    return out0(c, sz_new2(c->in[0]->dtype, c->in[0]->shape[0] + count, c->in[0]->shape[1], c->in[0]->device));
}

static int sz_shape_max_pool_rows(sz_call *c)
{
    REQUIRE(floating(c->in[0]) && c->in[0]->ndim == 2 && ints(c->in[1]) && c->in[1]->ndim == 2 && c->in[1]->shape[1] > 0, "takes x [m, d] and i32 ids [n, k]");
    REQUIRE(in_range(c->in[1], c->in[0]->shape[0]), "an id is outside x");
    return out0(c, sz_new2(c->in[0]->dtype, c->in[1]->shape[0], c->in[0]->shape[1], c->in[0]->device));
}

static int sz_shape_max_pool_rows_backward(sz_call *c)
{
    sz_tensor *x = c->in[0], *ids = c->in[1], *dy = c->in[2];
    REQUIRE(floating(x) && x->ndim == 2 && ints(ids) && ids->ndim == 2 && ids->shape[1] > 0 && floating(dy), "takes x [m, d], i32 ids [n, k], dy [n, d]");
    REQUIRE(dy->numel == ids->shape[0] * x->shape[1] && dy->dtype == x->dtype, "dy must have a row of x's width and dtype for each row of ids");
    REQUIRE(in_range(ids, x->shape[0]), "an id is outside x");
    return like_first(c);
}

static int sz_shape_scatter_cols_(sz_call *c)
{
    REQUIRE(floating(c->in[0]) && c->in[0]->ndim == 2 && ints(c->in[1]) && floating(c->in[2]) && c->in[2]->ndim == 2, "takes dst [r, w], i32 ids, src [n, c]");
    REQUIRE(c->in[2]->shape[0] == c->in[1]->numel && c->in[0]->dtype == c->in[2]->dtype, "src must have a row of dst's dtype for each id");
    REQUIRE(c->args[0] >= 0 && (int64_t)c->args[0] + c->in[0]->shape[1] <= c->in[2]->shape[1], "the columns reach past src");
    REQUIRE(in_range(c->in[1], c->in[0]->shape[0]), "an id is outside dst");
    return in_place(c);
}

/* ---- views ---- */
static int sz_shape_reshape(sz_call *c)
{
    int64_t shape[4];
    int n = 0;
    while (n < 4 && c->args[n] > 0) {
        shape[n] = (int64_t)c->args[n];
        n++;
    }
    int64_t total = 1;
    for (int i = 0; i < n; i++) total *= shape[i];
    REQUIRE(c->in[0] && total == c->in[0]->numel, "the new shape has another number of elements");
    return out0(c, sz_tensor_view(c->in[0], n, shape, 0));
}

static int sz_shape_narrow(sz_call *c)
{
    int64_t start = (int64_t)c->args[0], length = (int64_t)c->args[1], shape[SZ_MAX_DIMS];
    REQUIRE(c->in[0] && c->in[0]->ndim >= 1, "takes a tensor with a dimension");
    REQUIRE(start >= 0 && length >= 0 && start + length <= c->in[0]->shape[0], "the rows reach past the tensor");
    memcpy(shape, c->in[0]->shape, sizeof shape);
    int64_t row = shape[0] ? c->in[0]->numel / shape[0] : 0;
    shape[0] = length;
    return out0(c, sz_tensor_view(c->in[0], c->in[0]->ndim, shape, start * row));
}
/* A view has nothing to compute. */
int sz_cpu_reshape(const sz_call *c) { (void)c; return 0; }
int sz_ref_reshape(const sz_call *c) { (void)c; return 0; }
int sz_cpu_narrow(const sz_call *c) { (void)c; return 0; }
int sz_ref_narrow(const sz_call *c) { (void)c; return 0; }

/* ---- matmul ---- */
static int sz_shape_matmul(sz_call *c)
{
    sz_tensor *a = c->in[0], *b = c->in[1];
    REQUIRE(floating(a) && floating(b) && (a->ndim == 2 || a->ndim == 3) && b->ndim == a->ndim, "takes two f32 or bf16 matrices, or two stacks of them");
    int batch = a->ndim - 2;
    int64_t ta = c->args[0] != 0, tb = c->args[1] != 0;
    const int64_t *as = a->shape + batch, *bs = b->shape + batch;
    REQUIRE(!batch || a->shape[0] == b->shape[0], "the stacks are of different height");
    REQUIRE(as[!ta] == bs[tb] && a->dtype == b->dtype, "the inner dimensions or the dtypes differ");
    return out0(c, sz_tensor_new(a->dtype, a->ndim, batch ? (int64_t[]){ a->shape[0], as[ta], bs[!tb] } : (int64_t[]){ as[ta], bs[!tb] }, a->device));
}

/* Weights w[0..n) [m_i, k] with biases b[i] [m_i] or NULL; returns the sum of m_i, or -1 when something does not fit. */
static int64_t weight_rows(const sz_tensor *x, sz_tensor *const *w, sz_tensor *const *b, int n, int64_t k)
{
    int64_t m = 0;
    for (int i = 0; i < n && w[i]; i++) {
        if (!floating(w[i]) || w[i]->dtype != x->dtype || w[i]->ndim < 2 || w[i]->numel != w[i]->shape[0] * k) return -1;
        if (b && b[i] && (!floating(b[i]) || b[i]->numel != w[i]->shape[0])) return -1;
        m += w[i]->shape[0];
    }
    return m ? m : -1;
}

static int sz_shape_linear(sz_call *c)
{
    REQUIRE(floating(c->in[0]) && c->in[0]->ndim >= 1 && c->in[1], "takes x, a weight and maybe a bias");
    int64_t m = weight_rows(c->in[0], &c->in[1], &c->in[2], 1, sz_cols(c->in[0]));
    REQUIRE(m > 0, "the weight must be [m, k] and the bias [m] for x [n, k], all of one dtype");
    return out0(c, with_cols(c->in[0], c->in[0]->dtype, m));
}

static int sz_shape_linear_gelu(sz_call *c) { return sz_shape_linear(c); }

static int sz_shape_linear_f32_out(sz_call *c)
{
    REQUIRE(floating(c->in[0]) && c->in[0]->ndim >= 1 && c->in[1], "takes x and a weight");
    int64_t m = weight_rows(c->in[0], &c->in[1], NULL, 1, sz_cols(c->in[0]));
    REQUIRE(m > 0, "the weight must be [m, k] for x [n, k], both of one dtype");
    return out0(c, with_cols(c->in[0], SZ_F32, m));
}

static int sz_shape_quantize_int8(sz_call *c)
{
    int64_t rows = 0, k = 0;
    for (int i = 0; i < 3 && c->in[i]; i++) {
        const sz_tensor *w = c->in[i];
        REQUIRE(floating(w) && w->ndim == 2 && w->shape[0] > 0 && w->shape[1] > 0 && w->shape[1] == c->in[0]->shape[1] && w->dtype == c->in[0]->dtype,
                "takes weights [m, k] with one k and dtype");
        rows += w->shape[0], k = w->shape[1];
    }
    REQUIRE(rows > 0, "takes weights [m, k]");
    c->out[1] = sz_tensor_new(SZ_F32, 3, (int64_t[]){ (rows + 15) / 16, (k + 127) / 128, 16 }, c->in[0]->device);
    return out0(c, sz_tensor_new(SZ_U8, 3, (int64_t[]){ (rows + 15) / 16, (k + 3) / 4, 64 }, c->in[0]->device)) == 0 && c->out[1] ? 0 : -1;
}

static int sz_shape_linear_int8(sz_call *c)
{
    const sz_tensor *x = c->in[0], *q = c->in[1], *s = c->in[2], *b = c->in[3];
    REQUIRE(floating(x) && x->ndim >= 1 && q && q->dtype == SZ_U8 && q->ndim == 3 && s && s->dtype == SZ_F32 && s->ndim == 3, "takes x, and q and scale of quantize_int8");
    int64_t k = sz_cols(x), m = (int64_t)c->args[0];
    REQUIRE(m > 0 && q->shape[0] == (m + 15) / 16 && q->shape[1] == (k + 3) / 4 && q->shape[2] == 64 && s->shape[0] == q->shape[0] && s->shape[1] == (k + 127) / 128
            && s->shape[2] == 16 && (!b || (floating(b) && b->numel == m)), "q and scale must be those of a weight [m, k], the bias [m]");
    return out0(c, with_cols(x, c->args[1] != 0 ? SZ_F32 : x->dtype, m));
}

static int sz_shape_linear_cat(sz_call *c)
{
    REQUIRE(floating(c->in[0]) && c->in[0]->ndim >= 1 && c->in[1], "takes x, weights and biases");
    int64_t m = weight_rows(c->in[0], &c->in[1], &c->in[4], 3, sz_cols(c->in[0]));
    REQUIRE(m > 0, "weights must be [m, k] and biases [m] for x [n, k], all of one dtype");
    return out0(c, with_cols(c->in[0], c->in[0]->dtype, m));
}

/* A view is returned, not y itself: on the tape y stays the output of what made it. */
static int sz_shape_linear_add_(sz_call *c)
{
    sz_tensor *y = c->in[0], *x = c->in[1], *w = c->in[2];
    REQUIRE(floating(y) && floating(x) && w && y->ndim >= 1 && x->ndim >= 1 && y->dtype == x->dtype, "takes y [n, c], x [n, k] and w [m, k] of one dtype");
    int64_t m = weight_rows(x, &c->in[2], NULL, 1, sz_cols(x));
    REQUIRE(m > 0 && sz_rows(x) == sz_rows(y), "y and x must have the same rows, and w x's columns and dtype");
    REQUIRE(c->args[0] >= 0 && (int64_t)c->args[0] + m <= sz_cols(y), "the columns reach past y");
    return out0(c, sz_tensor_view(y, y->ndim, y->shape, 0));
}

static int sz_shape_linear_dx(sz_call *c)
{
    REQUIRE(floating(c->in[0]) && c->in[0]->ndim >= 1 && c->in[1] && c->in[1]->shape[0] > 0, "takes dy and weights");
    int64_t k = c->in[1]->numel / c->in[1]->shape[0], m = weight_rows(c->in[0], &c->in[1], NULL, 3, k);
    REQUIRE(m > 0 && c->args[0] >= 0 && (int64_t)c->args[0] + m <= sz_cols(c->in[0]), "the weights' rows must be columns of dy");
    return out0(c, with_cols(c->in[0], c->in[0]->dtype, k));
}

static int sz_shape_linear_dw_(sz_call *c)
{
    sz_tensor *acc = c->in[0], *x = c->in[1], *dy = c->in[2];
    REQUIRE(acc && acc->dtype == SZ_F32 && acc->ndim >= 2 && floating(x) && floating(dy) && x->dtype == dy->dtype, "takes acc f32 [m, k], x [n, k], dy [n, c]");
    REQUIRE(acc->numel == acc->shape[0] * sz_cols(x) && sz_rows(x) == sz_rows(dy), "x and dy must have the same rows and x acc's columns");
    REQUIRE(c->args[0] >= 0 && (int64_t)c->args[0] + acc->shape[0] <= sz_cols(dy), "the columns reach past dy");
    return in_place(c);
}

static int sz_shape_column_sum_(sz_call *c)
{
    REQUIRE(c->in[0] && c->in[0]->dtype == SZ_F32 && floating(c->in[1]), "takes acc f32 [m] and dy [n, c]");
    REQUIRE(c->args[0] >= 0 && (int64_t)c->args[0] + c->in[0]->numel <= sz_cols(c->in[1]), "the columns reach past dy");
    return in_place(c);
}

/* ---- attention ---- */
/* Every segment's ranges must lie inside q_rows and k_rows. */
static bool segments_fit(const sz_tensor *segments, int64_t q_rows, int64_t k_rows)
{
    if (!ints(segments) || sz_cols(segments) != 6 || segments->ndim != 2) return false;
    const int32_t *s = sz_i32(segments);
    for (int64_t i = 0; i < segments->shape[0]; i++, s += 6) {
        for (int j = 0; j < 6; j++) if (s[j] < 0) return false;
        if ((int64_t)s[0] + s[1] > q_rows || (int64_t)s[2] + s[3] > k_rows || (int64_t)s[4] + s[5] > k_rows) return false;
    }
    return true;
}

bool sz_decode_fits(const sz_tensor *ids, int64_t vocab, const sz_tensor *cache_rows, const sz_tensor *segments, int64_t rows)
{
    return in_range(ids, vocab) && in_range(cache_rows, rows) && segments_fit(segments, ids->numel, rows);
}

static bool heads_fit(const sz_call *c, int64_t *h, int64_t *g, int64_t *d)
{
    *h = (int64_t)c->args[0], *g = (int64_t)c->args[1], *d = (int64_t)c->args[2];
    return *h > 0 && *g > 0 && *d > 0 && *h % *g == 0;
}

static int sz_shape_attention(sz_call *c)
{
    int64_t h, g, d;
    REQUIRE(floating(c->in[0]) && c->in[0]->ndim == 2 && heads_fit(c, &h, &g, &d), "takes qkv [t, (h + 2g) * d] with g dividing h");
    REQUIRE(c->in[0]->shape[1] == (h + 2 * g) * d, "qkv must be (h + 2g) * d wide");
    int64_t t = c->in[0]->shape[0];
    REQUIRE(segments_fit(c->in[1], t, t), "segments must be i32 [s, 6] inside qkv's rows");
    c->out[1] = sz_new2(SZ_F32, h, t, c->in[0]->device);
    return out0(c, sz_new2(c->in[0]->dtype, t, h * d, c->in[0]->device)) == 0 && c->out[1] ? 0 : -1;
}

static int sz_shape_attention_backward(sz_call *c)
{
    int64_t h, g, d;
    REQUIRE(floating(c->in[0]) && c->in[0]->ndim == 2 && heads_fit(c, &h, &g, &d), "takes qkv [t, (h + 2g) * d] with g dividing h");
    int64_t t = c->in[0]->shape[0];
    REQUIRE(c->in[0]->shape[1] == (h + 2 * g) * d && segments_fit(c->in[1], t, t), "qkv or the segments do not fit");
    REQUIRE(floating(c->in[2]) && c->in[3] && floating(c->in[4]) && c->in[2]->numel == t * h * d && c->in[3]->numel == t * h && c->in[4]->numel == t * h * d
            && c->in[2]->dtype == c->in[0]->dtype && c->in[4]->dtype == c->in[0]->dtype, "out, lse and dout must fit qkv");
    return like_first(c);
}

static int sz_shape_attention_cached(sz_call *c)
{
    int64_t h, g, d;
    REQUIRE(floating(c->in[0]) && c->in[0]->ndim == 2 && floating(c->in[1]) && floating(c->in[2]) && heads_fit(c, &h, &g, &d), "takes q, k, v with g dividing h");
    REQUIRE(sz_cols(c->in[0]) >= h * d && sz_cols(c->in[1]) == g * d && same_shape(c->in[1], c->in[2]), "q must be at least h * d wide, k and v g * d");
    REQUIRE(c->in[0]->dtype == c->in[1]->dtype && c->in[1]->dtype == c->in[2]->dtype, "q, k and v must have one dtype");
    REQUIRE(segments_fit(c->in[3], c->in[0]->shape[0], c->in[1]->shape[0]), "segments must be i32 [s, 6] inside q's and k's rows");
    return out0(c, sz_new2(c->in[0]->dtype, c->in[0]->shape[0], h * d, c->in[0]->device));
}

/* q [a, h*d], k and v [r, g*d], all of one dtype, and a table inside their rows. */
static bool cross_fits(const sz_call *c)
{
    int64_t h, g, d;
    const sz_tensor *q = c->in[0], *k = c->in[1], *v = c->in[2];
    return floating(q) && floating(k) && floating(v) && q->ndim == 2 && k->ndim == 2 && v->ndim == 2 && heads_fit(c, &h, &g, &d)
        && q->shape[1] == h * d && k->shape[1] == g * d && same_shape(k, v) && q->dtype == k->dtype && k->dtype == v->dtype
        && segments_fit(c->in[3], q->shape[0], k->shape[0]);
}

static int sz_shape_attention_cross(sz_call *c)
{
    REQUIRE(cross_fits(c), "takes q [a, h*d], k and v [r, g*d] of one dtype, g dividing h, and segments i32 [s, 6] inside their rows");
    c->out[1] = sz_new2(SZ_F32, (int64_t)c->args[0], c->in[0]->shape[0], c->in[0]->device);
    return like_first(c) == 0 && c->out[1] ? 0 : -1;
}

static int sz_shape_attention_cross_backward(sz_call *c)
{
    sz_tensor *q = c->in[0], *out = c->in[4], *lse = c->in[5], *dout = c->in[6];
    REQUIRE(cross_fits(c), "takes q [a, h*d], k and v [r, g*d] of one dtype, g dividing h, and segments i32 [s, 6] inside their rows");
    REQUIRE(floating(out) && lse && floating(dout) && out->numel == q->numel && dout->numel == q->numel && out->dtype == q->dtype
            && dout->dtype == q->dtype && lse->numel == (int64_t)c->args[0] * q->shape[0], "out, lse and dout must fit q");
    c->out[1] = sz_tensor_like(c->in[1]);
    c->out[2] = sz_tensor_like(c->in[2]);
    return like_first(c) == 0 && c->out[1] && c->out[2] ? 0 : -1;
}

/* ---- pictures ---- */
static bool picture(const sz_tensor *x) { return floating(x) && x->ndim == 4; }
/* A new [b, h, w, c]. */
static sz_tensor *new4(const sz_tensor *like, int64_t h, int64_t w, int64_t channels)
{
    return sz_tensor_new(like->dtype, 4, (int64_t[]){ like->shape[0], h, w, channels }, like->device);
}
/* Positions of a kernel of k cells on n cells; 0 or less: it does not fit. */
static int64_t places(int64_t n, int64_t k, int64_t stride, int64_t padding)
{
    return n + 2 * padding < k ? 0 : (n + 2 * padding - k) / stride + 1;
}

static int sz_shape_conv2d(sz_call *c)
{
    sz_tensor *x = c->in[0], *w = c->in[1], *b = c->in[2];
    int64_t stride = (int64_t)c->args[0], padding = (int64_t)c->args[1];
    REQUIRE(picture(x) && picture(w) && w->dtype == x->dtype && stride > 0 && padding >= 0, "takes x [b, h, w, c] and weight [o, c, kh, kw] of one dtype");
    REQUIRE(w->shape[1] == x->shape[3] && (!b || (floating(b) && b->numel == w->shape[0])), "the weight must be [o, c, kh, kw] and the bias [o]");
    int64_t oh = places(x->shape[1], w->shape[2], stride, padding), ow = places(x->shape[2], w->shape[3], stride, padding);
    REQUIRE(oh > 0 && ow > 0, "the kernel is larger than the picture");
    return out0(c, new4(x, oh, ow, w->shape[0]));
}

static int sz_shape_conv2d_dx(sz_call *c)
{
    sz_tensor *dy = c->in[0], *w = c->in[1];
    int64_t stride = (int64_t)c->args[0], padding = (int64_t)c->args[1], height = (int64_t)c->args[2], width = (int64_t)c->args[3];
    REQUIRE(picture(dy) && picture(w) && w->dtype == dy->dtype && w->shape[0] == dy->shape[3] && stride > 0 && padding >= 0, "takes dy [b, oh, ow, o] and weight [o, c, kh, kw] of one dtype");
    REQUIRE(places(height, w->shape[2], stride, padding) == dy->shape[1] && places(width, w->shape[3], stride, padding) == dy->shape[2], "dy is not what conv2d makes of h x w");
    return out0(c, new4(dy, height, width, w->shape[1]));
}

static int sz_shape_conv2d_dw_(sz_call *c)
{
    sz_tensor *acc = c->in[0], *x = c->in[1], *dy = c->in[2];
    int64_t stride = (int64_t)c->args[0], padding = (int64_t)c->args[1];
    REQUIRE(acc && acc->dtype == SZ_F32 && acc->ndim == 4 && picture(x) && picture(dy) && x->dtype == dy->dtype && stride > 0 && padding >= 0, "takes acc f32 [o, c, kh, kw], x, dy");
    REQUIRE(acc->shape[0] == dy->shape[3] && acc->shape[1] == x->shape[3] && x->shape[0] == dy->shape[0]
            && places(x->shape[1], acc->shape[2], stride, padding) == dy->shape[1] && places(x->shape[2], acc->shape[3], stride, padding) == dy->shape[2],
            "acc, x and dy do not fit each other");
    return in_place(c);
}

static int sz_shape_conv_transpose2d(sz_call *c)
{
    sz_tensor *x = c->in[0], *w = c->in[1], *b = c->in[2];
    int64_t stride = (int64_t)c->args[0], padding = (int64_t)c->args[1];
    REQUIRE(picture(x) && picture(w) && w->dtype == x->dtype && stride > 0 && padding >= 0, "takes x [b, h, w, c] and weight [c, o, kh, kw] of one dtype");
    REQUIRE(w->shape[0] == x->shape[3] && (!b || (floating(b) && b->numel == w->shape[1])), "the weight must be [c, o, kh, kw] and the bias [o]");
    int64_t oh = (x->shape[1] - 1) * stride - 2 * padding + w->shape[2], ow = (x->shape[2] - 1) * stride - 2 * padding + w->shape[3];
    REQUIRE(oh > 0 && ow > 0, "the padding leaves nothing");
    return out0(c, new4(x, oh, ow, w->shape[1]));
}

static int sz_shape_resize(sz_call *c)
{
    int64_t oh = (int64_t)c->args[0], ow = (int64_t)c->args[1], mode = (int64_t)c->args[2];
    REQUIRE(picture(c->in[0]) && c->in[0]->numel > 0 && oh > 0 && ow > 0 && mode >= 0 && mode <= 3, "takes x [b, h, w, c], a new height and width, and a mode from 0 to 3");
    return out0(c, new4(c->in[0], oh, ow, c->in[0]->shape[3]));
}
static int sz_shape_resize_backward(sz_call *c) { return sz_shape_resize(c); }

/* ---- log-probability ---- */
static int sz_shape_logprob(sz_call *c)
{
    sz_tensor *x = c->in[0], *w = c->in[1], *ids = c->in[2];
    REQUIRE(floating(x) && floating(w) && x->ndim == 2 && w->ndim == 2 && ints(ids), "takes x [n, k], w [v, k], i32 ids [n]");
    REQUIRE(x->shape[1] == w->shape[1] && ids->numel == x->shape[0] && x->dtype == w->dtype, "x, w and ids do not fit");
    REQUIRE(in_range(ids, w->shape[0]), "an id is outside the vocabulary");
    for (int i = 0; i < 3; i++)
        if (!(c->out[i] = sz_new1(SZ_F32, x->shape[0], c->in[0]->device))) return -1;
    return 0;
}

static int sz_shape_logprob_backward(sz_call *c)
{
    sz_tensor *x = c->in[0], *w = c->in[1], *acc = c->in[7];
    REQUIRE(floating(x) && floating(w) && x->ndim == 2 && w->ndim == 2 && ints(c->in[2]) && c->in[3] && c->in[4], "takes x, w, ids, lse, entropy");
    REQUIRE(x->shape[1] == w->shape[1] && x->dtype == w->dtype, "x and w do not fit");
    for (int i = 2; i < 7; i++) REQUIRE(!c->in[i] || c->in[i]->numel == x->shape[0], "one element a row of x is needed");
    REQUIRE(!acc || (acc->dtype == SZ_F32 && acc->numel == w->numel), "acc must be f32 of w's size");
    REQUIRE(in_range(c->in[2], w->shape[0]), "an id is outside the vocabulary");
    return like_first(c);
}

/* ---- typed wrappers ---- */
/* One-output ops: NULL inputs up to `required` mean that an earlier call failed. */
static sz_tensor *apply(int op, int required, sz_call c)
{
    for (int i = 0; i < required; i++)
        if (!c.in[i]) return NULL;
    return sz_apply(op, &c) == 0 ? c.out[0] : NULL;
}

sz_tensor *sz_add(sz_tensor *a, sz_tensor *b) { return apply(SZ_OP_add, 2, (sz_call){ .in = { a, b } }); }
sz_tensor *sz_affine(sz_tensor *x, double scale, double shift) { return apply(SZ_OP_affine, 1, (sz_call){ .in = { x }, .args = { scale, shift } }); }
sz_tensor *sz_cast(sz_tensor *x, int dtype) { return apply(SZ_OP_cast, 1, (sz_call){ .in = { x }, .args = { dtype } }); }
sz_tensor *sz_gelu(sz_tensor *x) { return apply(SZ_OP_gelu, 1, (sz_call){ .in = { x } }); }
sz_tensor *sz_quick_gelu(sz_tensor *x) { return apply(SZ_OP_quick_gelu, 1, (sz_call){ .in = { x } }); }
sz_tensor *sz_relu(sz_tensor *x) { return apply(SZ_OP_relu, 1, (sz_call){ .in = { x } }); }
sz_tensor *sz_sigmoid(sz_tensor *x) { return apply(SZ_OP_sigmoid, 1, (sz_call){ .in = { x } }); }
sz_tensor *sz_swiglu(sz_tensor *x) { return apply(SZ_OP_swiglu, 1, (sz_call){ .in = { x } }); }
sz_tensor *sz_rmsnorm(sz_tensor *x, sz_tensor *w, double eps) { return apply(SZ_OP_rmsnorm, 2, (sz_call){ .in = { x, w }, .args = { eps } }); }
sz_tensor *sz_layernorm(sz_tensor *x, sz_tensor *w, sz_tensor *b, double eps) { return apply(SZ_OP_layernorm, 3, (sz_call){ .in = { x, w, b }, .args = { eps } }); }
sz_tensor *sz_rope(sz_tensor *x, sz_tensor *cosines, sz_tensor *sines, int heads, int head_dim)
{
    return apply(SZ_OP_rope, 3, (sz_call){ .in = { x, cosines, sines }, .args = { heads, head_dim, 1 } });
}
sz_tensor *sz_embedding(sz_tensor *table, sz_tensor *ids) { return apply(SZ_OP_embedding, 2, (sz_call){ .in = { table, ids } }); }
sz_tensor *sz_gather_rows(sz_tensor *x, sz_tensor *ids) { return apply(SZ_OP_gather_rows, 2, (sz_call){ .in = { x, ids } }); }
sz_tensor *sz_index_copy(sz_tensor *x, sz_tensor *ids, sz_tensor *src) { return apply(SZ_OP_index_copy, 3, (sz_call){ .in = { x, ids, src } }); }
sz_tensor *sz_pad_rows(sz_tensor *x, int64_t count) { return apply(SZ_OP_pad_rows, 1, (sz_call){ .in = { x }, .args = { (double)count } }); }
sz_tensor *sz_max_pool_rows(sz_tensor *x, sz_tensor *ids) { return apply(SZ_OP_max_pool_rows, 2, (sz_call){ .in = { x, ids } }); }
sz_tensor *sz_reshape2(sz_tensor *x, int64_t n, int64_t m) { return apply(SZ_OP_reshape, 1, (sz_call){ .in = { x }, .args = { (double)n, (double)m } }); }
sz_tensor *sz_reshape4(sz_tensor *x, int64_t b, int64_t h, int64_t w, int64_t c) { return apply(SZ_OP_reshape, 1, (sz_call){ .in = { x }, .args = { (double)b, (double)h, (double)w, (double)c } }); }
sz_tensor *sz_narrow(sz_tensor *x, int64_t start, int64_t length) { return apply(SZ_OP_narrow, 1, (sz_call){ .in = { x }, .args = { (double)start, (double)length } }); }
sz_tensor *sz_matmul(sz_tensor *a, sz_tensor *b, bool trans_a, bool trans_b) { return apply(SZ_OP_matmul, 2, (sz_call){ .in = { a, b }, .args = { trans_a, trans_b } }); }
sz_tensor *sz_linear(sz_tensor *x, sz_tensor *w, sz_tensor *b) { return apply(SZ_OP_linear, 2, (sz_call){ .in = { x, w, b } }); }
sz_tensor *sz_linear_gelu(sz_tensor *x, sz_tensor *w, sz_tensor *b) { return apply(SZ_OP_linear_gelu, 2, (sz_call){ .in = { x, w, b } }); }
sz_tensor *sz_linear_f32_out(sz_tensor *x, sz_tensor *w) { return apply(SZ_OP_linear_f32_out, 2, (sz_call){ .in = { x, w } }); }
sz_tensor *sz_linear_cat(sz_tensor *x, sz_tensor *w[3], sz_tensor *b[3])
{
    return apply(SZ_OP_linear_cat, 2, (sz_call){ .in = { x, w[0], w[1], w[2], b[0], b[1], b[2] } });
}
sz_tensor *sz_linear_add(sz_tensor *y, sz_tensor *x, sz_tensor *w, int64_t col)
{
    return apply(SZ_OP_linear_add_, 3, (sz_call){ .in = { y, x, w }, .args = { (double)col } });
}
sz_tensor *sz_attention(sz_tensor *qkv, sz_tensor *segments, int heads, int kv_heads, int head_dim, bool causal, double scale)
{
    sz_call c = { .in = { qkv, segments }, .args = { heads, kv_heads, head_dim, causal, scale } };
    if (!qkv || !segments || sz_apply(SZ_OP_attention, &c) != 0) return NULL;
    sz_tensor_release(c.out[1]);
    return c.out[0];
}
sz_tensor *sz_attention_cached(sz_tensor *q, sz_tensor *k, sz_tensor *v, sz_tensor *segments, int heads, int kv_heads, int head_dim, bool causal, double scale)
{
    return apply(SZ_OP_attention_cached, 4, (sz_call){ .in = { q, k, v, segments }, .args = { heads, kv_heads, head_dim, causal, scale } });
}
sz_tensor *sz_attention_cross(sz_tensor *q, sz_tensor *k, sz_tensor *v, sz_tensor *segments, int heads, int kv_heads, int head_dim, bool causal, double scale)
{
    sz_call c = { .in = { q, k, v, segments }, .args = { heads, kv_heads, head_dim, causal, scale } };
    if (!q || !k || !v || !segments || sz_apply(SZ_OP_attention_cross, &c) != 0) return NULL;
    sz_tensor_release(c.out[1]);
    return c.out[0];
}
sz_tensor *sz_conv2d(sz_tensor *x, sz_tensor *w, sz_tensor *b, int stride, int padding)
{
    return apply(SZ_OP_conv2d, 2, (sz_call){ .in = { x, w, b }, .args = { stride, padding } });
}
sz_tensor *sz_conv_transpose2d(sz_tensor *x, sz_tensor *w, sz_tensor *b, int stride, int padding)
{
    return apply(SZ_OP_conv_transpose2d, 2, (sz_call){ .in = { x, w, b }, .args = { stride, padding } });
}
sz_tensor *sz_resize(sz_tensor *x, int64_t height, int64_t width, int mode)
{
    return apply(SZ_OP_resize, 1, (sz_call){ .in = { x }, .args = { (double)height, (double)width, mode } });
}

int sz_quantize_int8(sz_tensor *w[3], sz_tensor **q, sz_tensor **scale)
{
    sz_call c = { .in = { w[0], w[1], w[2] } };
    if (!w[0] || sz_apply(SZ_OP_quantize_int8, &c) != 0) return -1;
    *q = c.out[0];
    *scale = c.out[1];
    return 0;
}
sz_tensor *sz_linear_int8(sz_tensor *x, sz_tensor *q, sz_tensor *scale, sz_tensor *b, int64_t m, bool wide)
{
    return apply(SZ_OP_linear_int8, 3, (sz_call){ .in = { x, q, scale, b }, .args = { (double)m, wide } });
}

int sz_scatter_cols(sz_tensor *dst, sz_tensor *ids, sz_tensor *src, int64_t col)
{
    sz_tensor *t = apply(SZ_OP_scatter_cols_, 3, (sz_call){ .in = { dst, ids, src }, .args = { (double)col } });
    sz_tensor_release(t);
    return t ? 0 : -1;
}

int sz_logprob(sz_tensor *x, sz_tensor *w, sz_tensor *ids, double inverse_temperature, sz_tensor **logprob, sz_tensor **entropy)
{
    sz_call c = { .in = { x, w, ids }, .args = { inverse_temperature } };
    if (!x || !w || !ids || sz_apply(SZ_OP_logprob, &c) != 0) return -1;
    sz_tensor_release(c.out[2]);
    *logprob = c.out[0];
    *entropy = c.out[1];
    return 0;
}
