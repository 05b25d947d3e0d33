/* rows.c - ops that move, add or compare whole rows by i32 ids: embedding, gather, copy, add,
 * pool, pad, and the KV cache's scatter. Shape checks, gradient rules, workspace, typed wrappers.
 * x is [m, d]; ids are in host memory and are checked here, so that a kernel never meets one
 * outside its table.
 * Leaves out: FLOP counts. Memory is what limits these ops.
 */
#include "op.h"

/* ---- rows by id ---- */
/* (x [m, d], ids [n]) -> [n, d] */
static int shape_rows_of(int op, sz_call *c, const char *takes, const char *outside)
{
    sz_tensor *x = c->in[0];
    sz_tensor *ids = c->in[1];
    SZ_REQUIRE(sz_is_float_nd(x, 2) && sz_is_ids(ids), takes);
    SZ_REQUIRE(sz_ids_below(ids, x->shape[0]), outside);
    return sz_out(c, sz_new2(x->dtype, ids->numel, sz_cols(x), x->device));
}

int sz_shape_embedding(int op, sz_call *c)
{
    return shape_rows_of(op, c, "takes a table [v, d] and i32 ids", "an id is outside the table");
}

int sz_shape_gather_rows(int op, sz_call *c)
{
    return shape_rows_of(op, c, "takes x [m, d] and i32 ids", "an id is outside x");
}

int sz_shape_index_add_(int op, sz_call *c)
{
    sz_tensor *acc = c->in[0];
    sz_tensor *ids = c->in[1];
    sz_tensor *x = c->in[2];
    SZ_REQUIRE(sz_is_f32(acc) && acc->ndim == 2 && sz_is_ids(ids) && sz_is_float(x),
               "takes acc f32 [v, d], i32 ids, x [n, d]");
    SZ_REQUIRE(x->numel == ids->numel * sz_cols(acc), "x must have a row for each id");
    SZ_REQUIRE(sz_ids_below(ids, acc->shape[0]), "an id is outside acc");
    return sz_out_in_place(c);
}

/* The gradient of rows taken by id: dy is added to the rows that they came from. */
static int grad_rows_of(sz_node *n)
{
    if (!sz_wants(n, 0)) return 0;
    sz_call add = { .in = { NULL, n->call.in[1], sz_dy(n) } };
    return sz_accumulate_into(n->call.in[0], SZ_OP_index_add_, add);
}

int sz_grad_embedding(sz_node *n) { return grad_rows_of(n); }
int sz_grad_gather_rows(sz_node *n) { return grad_rows_of(n); }

int sz_shape_index_copy(int op, sz_call *c)
{
    sz_tensor *x = c->in[0];
    sz_tensor *ids = c->in[1];
    sz_tensor *src = c->in[2];
    SZ_REQUIRE(sz_is_float_nd(x, 2) && sz_is_ids(ids) && sz_is_float(src),
               "takes x [m, d], i32 ids, src [n, d]");
    SZ_REQUIRE(src->numel == ids->numel * sz_cols(x) && src->dtype == x->dtype,
               "src must have a row of x's width and dtype for each id");
    SZ_REQUIRE(sz_ids_below(ids, x->shape[0]), "an id is outside x");
    return sz_out_like(c, x);
}

/* dy reaches x but for the replaced rows, and src from these. */
int sz_grad_index_copy(sz_node *n)
{
    sz_tensor *dy = sz_dy(n);
    sz_tensor *ids = n->call.in[1];
    sz_tensor *src = n->call.in[2];
    if (sz_wants(n, 0)) {
        sz_tensor *zeros = sz_tensor_zeros(dy->dtype, src->ndim, src->shape, dy->device);
        sz_call erase = { .in = { dy, ids, zeros } };
        int rc = zeros ? sz_give(n, 0, sz_run(SZ_OP_index_copy, erase)) : -1;
        sz_tensor_release(zeros);
        if (rc != 0) return rc;
    }
    return sz_wants(n, 2) ? sz_give(n, 2, sz_gather_rows(dy, ids)) : 0;
}

int sz_shape_scatter_cols_(int op, sz_call *c)
{
    sz_tensor *dst = c->in[0];
    sz_tensor *ids = c->in[1];
    sz_tensor *src = c->in[2];
    int64_t col;
    SZ_REQUIRE(sz_is_float_nd(dst, 2) && sz_is_ids(ids) && sz_is_float_nd(src, 2),
               "takes dst [r, w], i32 ids, src [n, c]");
    SZ_REQUIRE(src->shape[0] == ids->numel && dst->dtype == src->dtype,
               "src must have a row of dst's dtype for each id");
    if (sz_whole(op, c, 0, 0, &col) != 0) return -1;
    SZ_REQUIRE(col + dst->shape[1] <= src->shape[1], "the columns reach past src");
    SZ_REQUIRE(sz_ids_below(ids, dst->shape[0]), "an id is outside dst");
    return sz_out_in_place(c);
}

/* ---- padding ---- */
int sz_shape_pad_rows(int op, sz_call *c)
{
    sz_tensor *x = c->in[0];
    int64_t count;
    SZ_REQUIRE(sz_is_float_nd(x, 2), "takes x [n, d] and a number of rows");
    if (sz_whole(op, c, 0, 0, &count) != 0) return -1;
    return sz_out(c, sz_new2(x->dtype, x->shape[0] + count, x->shape[1], x->device));
}

int sz_grad_pad_rows(sz_node *n)
{
    sz_tensor *rows = sz_narrow(sz_dy(n), 0, n->call.in[0]->shape[0]);
    if (rows) rows->flags |= SZ_GRAD_SHARED;
    return sz_give(n, 0, rows);
}

/* ---- pooling ---- */
/* ids [n, k] with k > 0 */
static bool is_id_table(const sz_tensor *ids)
{
    return sz_is_ids(ids) && ids->ndim == 2 && ids->shape[1] > 0;
}

int sz_shape_max_pool_rows(int op, sz_call *c)
{
    sz_tensor *x = c->in[0];
    sz_tensor *ids = c->in[1];
    SZ_REQUIRE(sz_is_float_nd(x, 2) && is_id_table(ids), "takes x [m, d] and i32 ids [n, k]");
    SZ_REQUIRE(sz_ids_below(ids, x->shape[0]), "an id is outside x");
    return sz_out(c, sz_new2(x->dtype, ids->shape[0], x->shape[1], x->device));
}

int sz_shape_max_pool_rows_backward(int op, sz_call *c)
{
    sz_tensor *x = c->in[0];
    sz_tensor *ids = c->in[1];
    sz_tensor *dy = c->in[2];
    SZ_REQUIRE(sz_is_float_nd(x, 2) && is_id_table(ids) && sz_is_float(dy),
               "takes x [m, d], i32 ids [n, k], dy [n, d]");
    SZ_REQUIRE(dy->numel == ids->shape[0] * x->shape[1] && dy->dtype == x->dtype,
               "dy must have a row of x's width and dtype for each row of ids");
    SZ_REQUIRE(sz_ids_below(ids, x->shape[0]), "an id is outside x");
    return sz_out_like(c, x);
}

/* bf16 results are summed in f32 first. */
int64_t sz_workspace_max_pool_rows_backward(const sz_call *c)
{
    return sz_workspace_sums(c->out[0]);
}

int sz_grad_max_pool_rows(sz_node *n)
{
    sz_call call = { .in = { n->call.in[0], n->call.in[1], sz_dy(n) } };
    return sz_give(n, 0, sz_run(SZ_OP_max_pool_rows_backward, call));
}

/* ---- wrappers ---- */
sz_tensor *sz_embedding(sz_tensor *table, sz_tensor *ids)
{
    return sz_run_wrapped(SZ_OP_embedding, 2, (sz_call){ .in = { table, ids } });
}

sz_tensor *sz_gather_rows(sz_tensor *x, sz_tensor *ids)
{
    return sz_run_wrapped(SZ_OP_gather_rows, 2, (sz_call){ .in = { x, ids } });
}

sz_tensor *sz_index_copy(sz_tensor *x, sz_tensor *ids, sz_tensor *src)
{
    return sz_run_wrapped(SZ_OP_index_copy, 3, (sz_call){ .in = { x, ids, src } });
}

int sz_scatter_cols(sz_tensor *dst, sz_tensor *ids, sz_tensor *src, int64_t col)
{
    sz_call call = { .in = { dst, ids, src }, .args = { (double)col } };
    sz_tensor *t = sz_run_wrapped(SZ_OP_scatter_cols_, 3, call);
    sz_tensor_release(t);
    return t ? 0 : -1;
}

sz_tensor *sz_pad_rows(sz_tensor *x, int64_t count)
{
    return sz_run_wrapped(SZ_OP_pad_rows, 1, (sz_call){ .in = { x }, .args = { (double)count } });
}

sz_tensor *sz_max_pool_rows(sz_tensor *x, sz_tensor *ids)
{
    return sz_run_wrapped(SZ_OP_max_pool_rows, 2, (sz_call){ .in = { x, ids } });
}
