/* op.h - what the files of this folder share: the checks of shape functions, the steps that
 * gradient rules are made of, and the call behind a typed wrapper.
 *
 *   int sz_shape_relu(int op, sz_call *c)
 *   {
 *       SZ_REQUIRE(sz_is_float(c->in[0]), "takes an f32 or bf16 tensor");
 *       return sz_out_like(c, c->in[0]);
 *   }
 *   int sz_grad_relu(sz_node *n)
 *   {
 *       sz_call call = { .in = { n->call.out[0], sz_dy(n) } };
 *       return sz_give(n, 0, sz_run(SZ_OP_relu_backward, call));
 *   }
 *
 * A shape function returns 0 with every output set, or -1 with a message. A gradient rule returns
 * 0 or -1; recording is off while it runs. Rules are built from ops, so they run on any device.
 * Leaves out: the tape itself (core/tape.c).
 */
#ifndef SZ_OP_H
#define SZ_OP_H
#include "core/core.h"
#include "graph.h"

/* ---- shape functions: checks ---- */
/* Returns -1 from a shape function, with a message of the op, what it requires and what it was
 * given. */
#define SZ_REQUIRE(condition, what) \
    do { \
        if (!(condition)) return sz_refuse(op, c, what); \
    } while (0)
int sz_refuse(int op, const sz_call *c, const char *what);
/* -1, with a message that names number i: "resize: mode is 7, it must be from 0 to 3". */
int sz_refuse_number(int op, const sz_call *c, int i, const char *what);
/* Number i as a whole number of at least `least`: 0, or -1 with a message that names it. */
int sz_whole(int op, const sz_call *c, int i, int64_t least, int64_t *value);

static inline bool sz_is_float(const sz_tensor *t)
{
    return t && (t->dtype == SZ_F32 || t->dtype == SZ_BF16);
}
static inline bool sz_is_f32(const sz_tensor *t) { return t && t->dtype == SZ_F32; }
static inline bool sz_is_ids(const sz_tensor *t) { return t && t->dtype == SZ_I32; }
/* A floating tensor of that many dimensions. */
static inline bool sz_is_float_nd(const sz_tensor *t, int ndim)
{
    return sz_is_float(t) && t->ndim == ndim;
}
bool sz_same_shape(const sz_tensor *a, const sz_tensor *b);
/* Every id is in [0, limit). */
bool sz_ids_below(const sz_tensor *ids, int64_t limit);

/* ---- shape functions: outputs. They return 0, or -1 when memory is out. ---- */
/* Output 0; takes over the reference. */
int sz_out(sz_call *c, sz_tensor *t);
/* Output 0 is a new tensor of t's shape, dtype and device. */
int sz_out_like(sz_call *c, const sz_tensor *t);
/* Output 0 is input 0 itself. */
int sz_out_in_place(sz_call *c);
/* A new tensor of x's shape but for its last dimension. */
sz_tensor *sz_new_with_cols(const sz_tensor *x, int dtype, int64_t cols);

/* ---- workspace ---- */
/* Bytes of the f32 sums from which a bf16 result is rounded; an f32 result is summed in place. */
static inline int64_t sz_workspace_sums(const sz_tensor *y)
{
    return y->dtype == SZ_F32 ? 0 : (int64_t)sizeof(float) * y->numel;
}

/* With AMX, products of many rows with 8 or 4-bit weights are computed in panels of rows, a task of
 * some rows and some panels of weights at a time (cpu/packed_amx.c). With fewer rows the tiles are
 * no faster. */
enum {
    SZ_PACKED_MANY = 12,
    SZ_PACKED_PANEL = 32,
    SZ_PACKED_TASK_ROWS = 512, /* at most */
    SZ_PACKED_TASK_PANELS = 8, /* at most */
};

/* Without VNNI, products of SZ_WIDENED_ROWS rows or more with 8-bit weights take up to
 * SZ_WIDENED_BYTES for each thread (cpu/int8_many.c). */
enum { SZ_WIDENED_ROWS = 24, SZ_WIDENED_BYTES = 136 << 10 };

/* Rows that such a product has room for. */
static inline int64_t sz_packed_rows(int64_t n)
{
    if (n < SZ_PACKED_MANY) return n;
    return (n + SZ_PACKED_PANEL - 1) / SZ_PACKED_PANEL * SZ_PACKED_PANEL;
}

/* Bytes of the sums of one thread's task, on the kind of processor that takes most. */
static inline int64_t sz_packed_sums_bytes(int64_t n)
{
    if (n < SZ_PACKED_MANY) return 0;
    int64_t rows = sz_packed_rows(n);
    if (rows > SZ_PACKED_TASK_ROWS) rows = SZ_PACKED_TASK_ROWS;
    const int64_t amx = SZ_PACKED_TASK_PANELS * rows * SZ_PACKED_PANEL * (int64_t)sizeof(float);
    return n >= SZ_WIDENED_ROWS && amx < SZ_WIDENED_BYTES ? SZ_WIDENED_BYTES : amx;
}

/* ---- calls ---- */
/* Output 0 of a call, NULL when it fails. For ops with one output. */
sz_tensor *sz_run(int op, sz_call c);
/* The same for a wrapper: NULL among the first `required` inputs means that an earlier call
 * failed. */
sz_tensor *sz_run_wrapped(int op, int required, sz_call c);
/* The same, and input 0, a temporary, is released; NULL when input 0 is NULL. */
sz_tensor *sz_run_consuming(int op, sz_call c);

/* ---- gradient rules ---- */
/* The gradient of output 0; borrowed. */
static inline sz_tensor *sz_dy(const sz_node *n) { return n->call.out[0]->grad; }
/* Whether input i needs a gradient. */
static inline bool sz_wants(const sz_node *n, int i) { return sz_needs_grad(n->call.in[i]); }
/* Gives input i the gradient g, and takes over the reference; -1 when g is NULL. */
int sz_give(sz_node *n, int i, sz_tensor *g);
/* Gives the inputs that need one the outputs 0 .. count of a backward op, and releases the
 * others. */
int sz_give_outputs(sz_node *n, int count, sz_tensor **outputs);
/* A view of g in t's shape, marked as shared: another gradient may read the same bytes. */
sz_tensor *sz_shaped_like(sz_tensor *g, const sz_tensor *t);

/* The gradient of a weight is a sum that an op adds to (linear_dw_, index_add_, ...). A
 * parameter's own f32 buffer takes it directly. A bf16 buffer cannot be summed into, so the sum
 * is made in f32 first. */
/* Runs such an op with the accumulator as its input 0, and gives w the result. */
int sz_accumulate_into(sz_tensor *w, int op, sz_call c);
/* The same in two steps, for an op that makes another gradient in the same call. */
bool sz_sums_apart(const sz_tensor *w);  /* w's own buffer cannot be summed into */
sz_tensor *sz_accumulator(sz_tensor *w); /* a new reference; NULL when memory is out */
/* Takes over acc; rc is what the op returned, and what this returns where nothing else fails. */
int sz_accumulated(sz_tensor *w, sz_tensor *acc, int rc);

#endif
