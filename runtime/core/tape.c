/* tape.c - the ops that ran, in order, and the walk back over them.
 *
 * sz_apply records an op here when an input needs a gradient. sz_backward takes nodes off the end,
 * calls the gradient rule of each op (ops/<family>.c), and so reaches the parameters. A parameter's
 * gradient accumulates in f32 (or bf16 where asked for) until the optimizer clears it. An
 * activation's gradient is assigned, and added to where the value was used twice.
 * A node keeps the bytes of those tensors that its rule reads. The results of cheap ops are not
 * kept: when a rule reads one, the op that made it runs again (ops/reads.c).
 * A checkpointed part is one node that knows how to run again (sz_checkpoint). A shared tensor
 * collects the gradients of several walks (sz_share).
 * Leaves out: gradients of gradients.
 */
#include "core.h"
#include "scope.h"
#include "tape.h"
#include <stdlib.h>

/* How to run a checkpointed part again. */
struct sz_recompute {
    sz_checkpoint_fn fn;
    sz_tensor *ctx; /* u8, a copy of the caller's struct */
};

static sz_node *nodes;
static int node_count;
static int node_room;
static int enabled = 1; /* recording */

int sz_tape_length(void) { return node_count; }
int sz_grad_enabled(void) { return enabled; }

int sz_set_grad_enabled(int on)
{
    const int before = enabled;
    enabled = on != 0;
    return before;
}

/* ---- recording ---- */
static sz_node *node_push(int op)
{
    if (node_count == node_room) {
        int room = node_room ? 2 * node_room : 1024;
        sz_node *list = realloc(nodes, (size_t)room * sizeof *list);
        if (!list) return sz_null("out of memory");
        nodes = list;
        node_room = room;
    }
    sz_node *n = &nodes[node_count++];
    memset(n, 0, sizeof *n);
    n->op = op;
    return n;
}

static bool has_bit(uint8_t bits, int i) { return bits >> i & 1; }

/* Drops the node's reference to a tensor. */
static void drop(sz_tensor *t, bool idle)
{
    if (t && idle) t->idle--;
    sz_tensor_release(t);
}

static void node_drop(sz_node *n)
{
    for (int i = 0; i < SZ_MAX_IN; i++) drop(n->call.in[i], has_bit(n->idle_in, i));
    for (int i = 0; i < SZ_MAX_OUT; i++) {
        if (n->call.out[i]) n->call.out[i]->node = -1;
        drop(n->call.out[i], has_bit(n->idle_out, i));
    }
    if (n->recompute) {
        sz_tensor_release(n->recompute->ctx);
        free(n->recompute);
    }
}

void sz_tape_truncate(int length)
{
    while (node_count > length) node_drop(&nodes[--node_count]);
}

static bool floating(const sz_tensor *t) { return t->dtype == SZ_F32 || t->dtype == SZ_BF16; }

/* Whether t is the result of an op that runs again when its bytes are gone and a rule needs
 * them. */
static bool comes_again(const sz_tensor *t)
{
    if (t->node < 0) return false;
    const sz_node *maker = &nodes[t->node];
    return maker->op >= 0 && maker->call.out[0] == t && sz_reads_of(maker->op).again;
}

/* Keeps the call's tensors, and the bytes of those that the op's gradient rule reads. */
static void keep(sz_node *n)
{
    const sz_gradient_reads reads = sz_reads_of(n->op);
    for (int i = 0; i < SZ_MAX_IN; i++) {
        sz_tensor *t = sz_tensor_retain(n->call.in[i]);
        if (!t || (has_bit(reads.in, i) && !comes_again(t))) continue;
        n->idle_in |= (uint8_t)(1 << i);
        t->idle++;
    }
    for (int i = 0; i < SZ_MAX_OUT; i++) {
        sz_tensor *t = sz_tensor_retain(n->call.out[i]);
        if (!t || has_bit(reads.out, i)) continue;
        n->idle_out |= (uint8_t)(1 << i);
        t->idle++;
    }
}

int sz_tape_record(int op, const sz_call *c)
{
    sz_node *n = node_push(op);
    if (!n) return -1;
    n->call = *c;
    keep(n);
    for (int i = 0; i < SZ_MAX_OUT; i++) {
        sz_tensor *t = n->call.out[i];
        if (!t || !floating(t)) continue;
        t->node = node_count - 1;
        t->flags |= SZ_REQUIRES_GRAD;
    }
    return 0;
}

/* ---- a tensor's gradient ---- */
sz_tensor *sz_grad_buffer(sz_tensor *t)
{
    if (t->grad) return t->grad;
    const bool bf16 = (t->flags & SZ_GRAD_BF16) && t->ndim > 1;
    t->grad = sz_tensor_new_heap(bf16 ? SZ_BF16 : SZ_F32, t->ndim, t->shape, t->device);
    if (t->grad && sz_tensor_zero_grad(t) != 0) return NULL;
    return t->grad;
}

/* Whether something other than its tensor reads this gradient's bytes. An arena tensor has its
 * scope's reference, too. */
static bool is_read_elsewhere(const sz_tensor *grad)
{
    return grad->refs > (grad->storage ? 1 : 2) || (grad->flags & SZ_GRAD_SHARED);
}

/* acc += g; 0, or -1 when acc is NULL or the sum fails. */
static int add_in_place(sz_tensor *acc, sz_tensor *g)
{
    if (!acc) return -1;
    sz_call c = { .in = { acc, g } };
    if (sz_apply(SZ_OP_add_, &c) != 0) return -1;
    sz_tensor_release(c.out[0]);
    return 0;
}

int sz_accumulate_grad(sz_tensor *t, sz_tensor *g)
{
    if (!g) return -1;
    if (!sz_needs_grad(t)) {
        sz_tensor_release(g);
        return 0;
    }
    SZ_ASSERT(g->numel == t->numel, "a gradient has another size than its tensor");
    int rc = 0;
    if (t->flags & SZ_PARAMETER) {
        rc = add_in_place(sz_grad_buffer(t), g);
    } else if (!t->grad) {
        t->grad = sz_tensor_retain(g);
    } else if (is_read_elsewhere(t->grad)) {
        /* It may be an output's gradient passed through: add into a new tensor. */
        sz_tensor *sum = sz_add(t->grad, g);
        if (!sum) rc = -1;
        sz_tensor_release(t->grad);
        t->grad = sum;
    } else {
        rc = add_in_place(t->grad, g);
    }
    sz_tensor_release(g);
    return rc;
}

/* ---- the walk back ---- */
static int recompute_backward(sz_node *n);

/* An output has a gradient, so the node's inputs get theirs. */
static bool is_reached(const sz_node *n)
{
    for (int i = 0; i < SZ_MAX_OUT; i++)
        if (n->call.out[i] && n->call.out[i]->grad) return true;
    return false;
}

static void drop_output_grads(sz_node *n)
{
    for (int i = 0; i < SZ_MAX_OUT; i++) {
        if (!n->call.out[i]) continue;
        sz_tensor_release(n->call.out[i]->grad);
        n->call.out[i]->grad = NULL;
    }
}

/* Computes the result of a node again whose bytes were given back. The node then keeps them until
 * it is dropped. */
static int compute_again(sz_node *maker)
{
    sz_tensor *y = maker->call.out[0];
    sz_call c = { .in = { NULL }, .out = { y } };
    memcpy(c.in, maker->call.in, sizeof c.in);
    memcpy(c.args, maker->call.args, sizeof c.args);
    y->idle--;
    maker->idle_out &= (uint8_t)~1;
    if (sz_tensor_take_bytes(y) != 0) return -1;
    return sz_apply_again(maker->op, &c);
}

/* Brings back what the node's rule reads. The inputs of an op that comes again are read by its own
 * rule, so they may have to come again first. */
static int bring_back(const sz_node *n)
{
    const sz_gradient_reads reads = sz_reads_of(n->op);
    for (int i = 0; i < SZ_MAX_IN; i++) {
        const sz_tensor *t = n->call.in[i];
        if (!t || t->data || !has_bit(reads.in, i) || t->node < 0) continue;
        sz_node *maker = &nodes[t->node];
        if (bring_back(maker) != 0 || compute_again(maker) != 0) return -1;
    }
    return 0;
}

/* Takes nodes off the end, down to that length, and runs their rules. */
static int walk_back(int length)
{
    static int depth; /* more than 1 in a part that runs again: its memory is needed again soon */
    int rc = 0;
    depth++;
    while (rc == 0 && node_count > length) {
        sz_node n = nodes[--node_count];
        if (is_reached(&n)) {
            rc = bring_back(&n);
            if (rc == 0) rc = n.op < 0 ? recompute_backward(&n) : sz_ops[n.op].gradient(&n);
        }
        drop_output_grads(&n);
        node_drop(&n);
        if (depth == 1 && n.op >= 0) sz_arena_trim();
    }
    depth--;
    sz_tape_truncate(length);
    return rc;
}

/* Gives t the gradient g to begin with; takes over the reference. */
static int seed(sz_tensor *t, sz_tensor *g)
{
    sz_tensor_release(t->grad);
    t->grad = g;
    return g ? 0 : -1;
}

int sz_backward(sz_tensor *loss, int from)
{
    if (sz_tensor_alive(loss) != 0) return -1;
    if (loss->numel != 1 || loss->dtype != SZ_F32)
        return sz_fail("backward starts from one f32 element, not from %lld",
                       (long long)loss->numel);
    if (loss->node < 0 && sz_needs_grad(loss) && !(loss->flags & SZ_PARAMETER))
        return sz_fail("what led to this loss is no longer recorded: backward() clears all of it; "
                       "add up the losses and call backward() once");
    if (loss->node < 0) return sz_fail("this loss depends on no tensor that requires a gradient");
    if (from < 0 || loss->node < from)
        return sz_fail("backward is to go back to %d, this loss is at %d", from, loss->node);

    const float one = 1;
    sz_tensor *grad = sz_tensor_like(loss);
    if (grad && sz_tensor_write(grad, &one) != 0) {
        sz_tensor_release(grad);
        grad = NULL;
    }
    const int before = sz_set_grad_enabled(0);
    int rc = seed(loss, grad);
    if (rc == 0) rc = walk_back(from);
    sz_set_grad_enabled(before);
    return rc;
}

/* ---- sharing ---- */
/* The node is a cast, whose gradient rule rounds the f32 sum to x's dtype. */
sz_tensor *sz_share(sz_tensor *x)
{
    if (!x || !enabled || !sz_needs_grad(x)) return sz_tensor_retain(x);
    sz_tensor *y = sz_tensor_detach(x);
    sz_call c = { .in = { x }, .out = { y } };
    if (y) y->grad = sz_tensor_zeros(SZ_F32, x->ndim, x->shape, x->device);
    if (!y || !y->grad || sz_tape_record(SZ_OP_cast, &c) != 0) {
        sz_tensor_release(y);
        return NULL;
    }
    y->flags |= SZ_PARAMETER;
    return y;
}

/* ---- recomputation ---- */
/* Records that y came from x by fn; 0, or -1 with a message. */
static int record_recompute(sz_checkpoint_fn fn, const void *ctx, size_t ctx_size, sz_tensor *x,
                            sz_tensor *y)
{
    struct sz_recompute *recompute = calloc(1, sizeof *recompute);
    if (!recompute) return sz_fail("out of memory");
    sz_tensor *copy = sz_new1(SZ_U8, (int64_t)ctx_size, SZ_CPU);
    sz_call c = { .in = { x }, .out = { y } };
    if (!copy || sz_tape_record(-1, &c) != 0) {
        free(recompute);
        sz_tensor_release(copy);
        return -1;
    }
    memcpy(copy->data, ctx, ctx_size);
    recompute->fn = fn;
    recompute->ctx = copy;
    nodes[node_count - 1].recompute = recompute;
    return 0;
}

sz_tensor *sz_checkpoint(sz_checkpoint_fn fn, const void *ctx, size_t ctx_size, sz_tensor *x)
{
    if (!x) return NULL;
    const int before = sz_set_grad_enabled(0);
    sz_scope_push();
    sz_tensor *y = sz_scope_pop_keep(fn(ctx, x));
    sz_set_grad_enabled(before);
    if (!y || !before) return y;
    if (record_recompute(fn, ctx, ctx_size, x, y) == 0) return y;
    sz_tensor_release(y);
    return NULL;
}

static int recompute_backward(sz_node *n)
{
    sz_tensor *x = n->call.in[0];
    sz_tensor *y = n->call.out[0];
    const int length = node_count;
    sz_scope_push();

    /* Run the part again on a leaf with x's bytes, recording. */
    sz_tensor *leaf = sz_tensor_detach(x);
    sz_tensor *again = NULL;
    int rc = leaf ? 0 : -1;
    if (rc == 0) {
        leaf->flags |= SZ_REQUIRES_GRAD;
        sz_set_grad_enabled(1);
        again = n->recompute->fn(n->recompute->ctx->data, leaf);
        sz_set_grad_enabled(0);
        rc = again ? seed(again, sz_tensor_retain(y->grad)) : -1;
    }

    /* Walk back over it; the leaf's gradient is x's. */
    if (rc == 0) rc = walk_back(length);
    sz_tensor *dx = rc == 0 ? sz_tensor_retain(leaf->grad) : NULL;
    sz_tensor_release(again);
    sz_tensor_release(leaf);
    dx = sz_scope_pop_keep(dx);
    if (rc == 0 && dx) rc = sz_accumulate_grad(x, dx);
    return rc;
}
