/* shards.c - the ops of a model that is split over ranks (tensor parallel): collectives in the
 * forward and backward pass, and the ends of the network that are split by words: the embedding and
 * the log-probability of chosen tokens. Shape checks, gradient rules, wrappers.
 *
 * A layer that is split by its outputs reads tp_copy(x): each rank's gradient of x is a part, and
 * their sum goes on. One that is split by its inputs is followed by tp_sum. (Megatron-LM calls the
 * two f and g.) What is not split has the same bits on all ranks, values and gradients.
 * Leaves out: the exchange itself (comm/).
 */
#include "comm/group.h"
#include "op.h"
#include <limits.h>

/* ---- the group ---- */
/* Checked on the way forward, because the gradient of tp_copy needs the group, too. */
static int check_group(int op, const sz_call *c)
{
    int64_t group;
    if (sz_whole(op, c, 0, 0, &group) != 0) return -1;
    if (group == 0 || (group <= INT_MAX && sz_comm_of_handle((int)group))) return 0;
    return sz_refuse_number(op, c, 0, "0 or the handle of a group of ranks");
}

/* This rank's place in the group of a call; -1 with a message if the group is gone. */
static int rank_in(int group)
{
    if (group == 0) return 0;
    const sz_comm *c = sz_comm_of_handle(group);
    return c ? sz_comm_rank(c) : -1;
}

/* ---- tp_copy and tp_sum ---- */
int sz_shape_tp_copy(int op, sz_call *c)
{
    sz_tensor *x = c->in[0];
    SZ_REQUIRE(sz_is_float(x), "takes an f32 or bf16 tensor");
    if (check_group(op, c) != 0) return -1;
    return sz_out(c, sz_tensor_view(x, x->ndim, x->shape, 0));
}

int sz_grad_tp_copy(sz_node *n) { return sz_give(n, 0, sz_tp_sum(sz_dy(n), (int)n->call.args[0])); }

int sz_shape_tp_sum(int op, sz_call *c)
{
    SZ_REQUIRE(sz_is_float(c->in[0]), "takes an f32 or bf16 tensor");
    return check_group(op, c) == 0 ? sz_out_like(c, c->in[0]) : -1;
}

int sz_shape_tp_sum_(int op, sz_call *c) { return sz_shape_tp_copy(op, c); }

int sz_grad_tp_sum(sz_node *n) { return sz_give(n, 0, sz_tensor_retain(sz_dy(n))); }

/* ---- tp_gather ---- */
/* The sizes of the parts from `first` up to `last`. */
static int64_t sizes_between(const sz_call *c, int64_t first, int64_t last)
{
    const sz_tensor *x = c->in[0];
    const sz_tensor *sizes = c->in[1];
    if (!sizes) return (last - first) * x->shape[(int)c->args[2]];
    int64_t total = 0;
    for (int64_t r = first; r < last; r++) total += sz_i32(sizes)[r];
    return total;
}

int sz_shape_tp_gather(int op, sz_call *c)
{
    sz_tensor *x = c->in[0];
    const sz_tensor *sizes = c->in[1];
    int64_t parts;
    int64_t dim;
    SZ_REQUIRE(x, "takes a tensor");
    if (check_group(op, c) != 0 || sz_whole(op, c, 1, 1, &parts) != 0) return -1;
    if (sz_whole(op, c, 2, 0, &dim) != 0) return -1;
    if (dim >= x->ndim) return sz_refuse_number(op, c, 2, "a dimension of the tensor");
    SZ_REQUIRE(!sizes || (sz_is_ids(sizes) && sizes->numel == parts), "takes i32 sizes [parts]");
    for (int64_t r = 0; sizes && r < parts; r++)
        SZ_REQUIRE(sz_i32(sizes)[r] >= 0, "a size is below 0");
    const int group = (int)c->args[0];
    SZ_REQUIRE(!group || sz_comm_size(sz_comm_of_handle(group)) == parts,
               "parts is not the number of ranks in the group");

    /* This rank's size. In a dry run there may be no group to ask. */
    const int rank = rank_in(group);
    SZ_REQUIRE(sz_is_dry_run() || sizes_between(c, rank, rank + 1) == x->shape[dim],
               "x is not as long as its rank's size says");
    int64_t shape[SZ_MAX_DIMS];
    memcpy(shape, x->shape, sizeof shape);
    shape[dim] = sizes_between(c, 0, parts);
    return sz_out(c, sz_tensor_new(x->dtype, x->ndim, shape, x->device));
}

int sz_grad_tp_gather(sz_node *n)
{
    const int dim = (int)n->call.args[2];
    const int rank = rank_in((int)n->call.args[0]);
    if (rank < 0) return -1;
    const double first = (double)sizes_between(&n->call, 0, rank);
    const double length = (double)n->call.in[0]->shape[dim];
    if (n->call.in[0]->numel == 0) return 0;
    sz_call call = { .in = { sz_dy(n) }, .args = { dim, first, length } };
    return sz_give(n, 0, sz_run(SZ_OP_slice, call));
}

/* ---- embedding_part ---- */
int sz_shape_embedding_part(int op, sz_call *c)
{
    sz_tensor *table = c->in[0];
    sz_tensor *ids = c->in[1];
    int64_t first;
    int64_t whole;
    SZ_REQUIRE(sz_is_float_nd(table, 2) && sz_is_ids(ids), "takes a table [v, d] and i32 ids");
    if (sz_whole(op, c, 0, 0, &first) != 0 || sz_whole(op, c, 1, 1, &whole) != 0) return -1;
    SZ_REQUIRE(first + table->shape[0] <= whole, "the part reaches past the whole table");
    SZ_REQUIRE(sz_ids_below(ids, whole), "an id is outside the whole table");
    return sz_out(c, sz_new2(table->dtype, ids->numel, sz_cols(table), table->device));
}

/* The places of the ids that the part has, and their rows in it: two new i32 tensors of one size,
 * which may be 0. */
static int find_own(const sz_node *n, sz_tensor **places, sz_tensor **rows)
{
    const int64_t first = (int64_t)n->call.args[0];
    const int64_t count = n->call.in[0]->shape[0];
    const sz_tensor *ids = n->call.in[1];
    int64_t own = 0;
    for (int64_t i = 0; i < ids->numel; i++)
        own += sz_i32(ids)[i] >= first && sz_i32(ids)[i] < first + count;
    *places = sz_new1(SZ_I32, own, SZ_CPU);
    *rows = sz_new1(SZ_I32, own, SZ_CPU);
    if (!*places || !*rows) return -1;
    for (int64_t i = 0, k = 0; i < ids->numel; i++) {
        const int64_t row = sz_i32(ids)[i] - first;
        if (row < 0 || row >= count) continue;
        sz_i32(*places)[k] = (int32_t)i;
        sz_i32(*rows)[k++] = (int32_t)row;
    }
    return 0;
}

int sz_grad_embedding_part(sz_node *n)
{
    sz_tensor *places = NULL;
    sz_tensor *rows = NULL;
    if (!sz_wants(n, 0)) return 0;
    int rc = find_own(n, &places, &rows);
    if (rc == 0 && rows->numel == 0) {
        /* Zeros, and not no gradient: the optimizer decays the other shards' rows, and these. */
        sz_tensor *acc = sz_accumulator(n->call.in[0]);
        rc = acc ? sz_accumulated(n->call.in[0], acc, 0) : -1;
    } else if (rc == 0) {
        sz_tensor *dy = sz_gather_rows(sz_dy(n), places);
        sz_call add = { .in = { NULL, rows, dy } };
        rc = dy ? sz_accumulate_into(n->call.in[0], SZ_OP_index_add_, add) : -1;
        sz_tensor_release(dy);
    }
    sz_tensor_release(places);
    sz_tensor_release(rows);
    return rc;
}

/* ---- logprob_part ---- */
static bool fits_head(const sz_tensor *x, const sz_tensor *w, const sz_tensor *ids)
{
    return sz_is_float_nd(x, 2) && sz_is_float_nd(w, 2) && sz_is_ids(ids) &&
           x->shape[1] == w->shape[1] && ids->numel == x->shape[0] && x->dtype == w->dtype;
}

int sz_shape_logprob_part(int op, sz_call *c)
{
    sz_tensor *x = c->in[0];
    sz_tensor *w = c->in[1];
    sz_tensor *ids = c->in[2];
    int64_t first;
    int64_t whole;
    SZ_REQUIRE(fits_head(x, w, ids), "takes x [n, k], w [v, k] of one dtype, i32 ids [n]");
    if (sz_whole(op, c, 0, 0, &first) != 0 || sz_whole(op, c, 1, 1, &whole) != 0) return -1;
    SZ_REQUIRE(first + w->shape[0] <= whole, "the part reaches past the whole vocabulary");
    SZ_REQUIRE(sz_ids_below(ids, whole), "an id is outside the whole vocabulary");
    return sz_out(c, sz_new2(SZ_F32, 3, x->shape[0], x->device));
}

static bool is_part_of(const sz_tensor *part, const sz_tensor *x)
{
    return sz_is_f32(part) && part->numel == 3 * x->shape[0];
}

int sz_shape_logprob_part_backward(int op, sz_call *c)
{
    sz_tensor *x = c->in[0];
    sz_tensor *w = c->in[1];
    sz_tensor *acc = c->in[5];
    int64_t first;
    SZ_REQUIRE(fits_head(x, w, c->in[2]), "takes x [n, k], w [v, k] of one dtype, i32 ids [n]");
    SZ_REQUIRE(is_part_of(c->in[3], x) && is_part_of(c->in[4], x),
               "takes part and dpart, f32 [3, n]");
    SZ_REQUIRE(!acc || (acc->dtype == SZ_F32 && acc->numel == w->numel),
               "acc must be f32 of w's size");
    if (sz_whole(op, c, 0, 0, &first) != 0) return -1;
    return sz_out_like(c, x);
}

/* The logits again, dx, and dw where an accumulator is given. */
double sz_flops_logprob_part_backward(const sz_call *c)
{
    const double products = c->in[5] ? 3 : 2;
    return products * 2 * (double)c->in[0]->numel * (double)c->in[1]->shape[0];
}

int sz_grad_logprob_part(sz_node *n)
{
    sz_tensor *x = n->call.in[0];
    sz_tensor *w = n->call.in[1];

    /* A sum of dw that is made apart is released with a scope of its own; dx is kept. */
    const bool wants_dw = sz_needs_grad(w);
    const bool apart = wants_dw && sz_sums_apart(w);
    if (apart) sz_scope_push();
    sz_tensor *acc = wants_dw ? sz_accumulator(w) : NULL;
    sz_call c = { .in = { x, w, n->call.in[2], n->call.out[0], sz_dy(n), acc },
                  .args = { n->call.args[0], n->call.args[2] } };
    int rc = wants_dw && !acc ? -1 : sz_apply(SZ_OP_logprob_part_backward, &c);
    if (acc) rc = sz_accumulated(w, acc, rc);
    sz_tensor *dx = apart ? sz_scope_pop_keep(c.out[0]) : c.out[0];
    return rc == 0 ? sz_accumulate_grad(x, dx) : rc;
}

/* ---- logprob_join ---- */
static bool are_parts(const sz_tensor *t)
{
    return sz_is_f32(t) && t->ndim == 2 && t->shape[0] > 0 && t->shape[0] % 3 == 0;
}

int sz_shape_logprob_join(int op, sz_call *c)
{
    sz_tensor *parts = c->in[0];
    SZ_REQUIRE(are_parts(parts), "takes parts f32 [p * 3, n]");
    for (int i = 0; i < 2; i++) {
        c->out[i] = sz_new1(SZ_F32, parts->shape[1], parts->device);
        if (!c->out[i]) return -1;
    }
    return 0;
}

int sz_shape_logprob_join_backward(int op, sz_call *c)
{
    sz_tensor *parts = c->in[0];
    SZ_REQUIRE(are_parts(parts), "takes parts f32 [p * 3, n]");
    for (int i = 1; i < 3; i++)
        SZ_REQUIRE(!c->in[i] || (sz_is_f32(c->in[i]) && c->in[i]->numel == parts->shape[1]),
                   "takes dlogprob and dentropy f32 [n]");
    return sz_out_like(c, parts);
}

int sz_grad_logprob_join(sz_node *n)
{
    sz_tensor *const *out = n->call.out;
    sz_call call = { .in = { n->call.in[0], out[0]->grad, out[1]->grad } };
    return sz_give(n, 0, sz_run(SZ_OP_logprob_join_backward, call));
}

/* ---- wrappers ---- */
sz_tensor *sz_tp_copy(sz_tensor *x, int group)
{
    return sz_run_wrapped(SZ_OP_tp_copy, 1, (sz_call){ .in = { x }, .args = { group } });
}

sz_tensor *sz_tp_sum(sz_tensor *x, int group)
{
    return sz_run_wrapped(SZ_OP_tp_sum, 1, (sz_call){ .in = { x }, .args = { group } });
}

sz_tensor *sz_tp_sum_in_place(sz_tensor *x, int group)
{
    return sz_run_wrapped(SZ_OP_tp_sum_, 1, (sz_call){ .in = { x }, .args = { group } });
}

sz_tensor *sz_tp_gather(sz_tensor *x, sz_tensor *sizes, int group, int parts, int dim)
{
    sz_call call = { .in = { x, sizes }, .args = { group, parts, dim } };
    return sz_run_wrapped(SZ_OP_tp_gather, 1, call);
}

sz_tensor *sz_embedding_part(sz_tensor *table, sz_tensor *ids, int64_t first, int64_t whole)
{
    sz_call call = { .in = { table, ids }, .args = { (double)first, (double)whole } };
    return sz_run_wrapped(SZ_OP_embedding_part, 2, call);
}

sz_tensor *sz_logprob_part(sz_tensor *x, sz_tensor *w, sz_tensor *ids, int64_t first, int64_t whole,
                           double inverse_temperature)
{
    sz_call call = { .in = { x, w, ids },
                     .args = { (double)first, (double)whole, inverse_temperature } };
    return sz_run_wrapped(SZ_OP_logprob_part, 3, call);
}

int sz_logprob_join(sz_tensor *parts, sz_tensor **logprob, sz_tensor **entropy)
{
    sz_call c = { .in = { parts } };
    if (!parts || sz_apply(SZ_OP_logprob_join, &c) != 0) return -1;
    *logprob = c.out[0];
    *entropy = c.out[1];
    return 0;
}
