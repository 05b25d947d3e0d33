/* attention.c - attention over a table of segments: on packed qkv rows, against a KV cache, and
 * with queries and keys of their own. Shape checks, gradient rules, workspace, FLOP counts, typed
 * wrappers.
 *
 * The table is i32 [s, 6], in host memory; ops.def says what its columns mean. It is checked
 * here, so that a kernel never reads outside the rows of q and k.
 * Leaves out: dense masks, dropout.
 */
#include "op.h"
#include "sampling/decode.h"
#include <omp.h>

enum { Q_START, Q_LEN, K_START, K_LEN, P_START, P_LEN, SEGMENT_COLUMNS };

/* ---- checks ---- */
/* Every segment's ranges are inside q_rows and k_rows. */
static bool segments_fit(const sz_tensor *segments, int64_t q_rows, int64_t k_rows)
{
    if (!sz_is_ids(segments) || segments->ndim != 2 || sz_cols(segments) != SEGMENT_COLUMNS)
        return false;
    const int32_t *s = sz_i32(segments);
    for (int64_t i = 0; i < segments->shape[0]; i++, s += SEGMENT_COLUMNS) {
        for (int j = 0; j < SEGMENT_COLUMNS; j++)
            if (s[j] < 0) return false;
        if ((int64_t)s[Q_START] + s[Q_LEN] > q_rows) return false;
        if ((int64_t)s[K_START] + s[K_LEN] > k_rows) return false;
        if ((int64_t)s[P_START] + s[P_LEN] > k_rows) return false;
    }
    return true;
}

bool sz_decode_fits(const sz_tensor *ids, int64_t vocab, const sz_tensor *cache_rows,
                    const sz_tensor *segments, int64_t rows)
{
    return sz_ids_below(ids, vocab) && sz_ids_below(cache_rows, rows) &&
           segments_fit(segments, ids->numel, rows);
}

/* The numbers of a call: heads, key and value heads, width of a head. */
typedef struct {
    int64_t heads, kv_heads, dim;
} head_counts;

static int read_heads(int op, const sz_call *c, head_counts *h)
{
    if (sz_whole(op, c, 0, 1, &h->heads) != 0) return -1;
    if (sz_whole(op, c, 1, 1, &h->kv_heads) != 0) return -1;
    if (sz_whole(op, c, 2, 1, &h->dim) != 0) return -1;
    if (h->heads % h->kv_heads != 0) return sz_refuse_number(op, c, 1, "a divisor of heads");
    return 0;
}

static int check_packed(int op, const sz_call *c, head_counts *h)
{
    const sz_tensor *qkv = c->in[0];
    SZ_REQUIRE(sz_is_float_nd(qkv, 2), "takes qkv [t, (heads + 2 kv_heads) * head_dim]");
    if (read_heads(op, c, h) != 0) return -1;
    SZ_REQUIRE(qkv->shape[1] == (h->heads + 2 * h->kv_heads) * h->dim,
               "qkv must be (heads + 2 kv_heads) * head_dim wide");
    SZ_REQUIRE(segments_fit(c->in[1], qkv->shape[0], qkv->shape[0]),
               "segments must be i32 [s, 6] inside qkv's rows");
    return 0;
}

/* q, k, v and a table inside their rows; q may be wider than its heads. */
static int check_separate(int op, const sz_call *c, head_counts *h)
{
    const sz_tensor *q = c->in[0];
    const sz_tensor *k = c->in[1];
    const sz_tensor *v = c->in[2];
    SZ_REQUIRE(sz_is_float_nd(q, 2) && sz_is_float_nd(k, 2) && sz_is_float(v), "takes q, k and v");
    if (read_heads(op, c, h) != 0) return -1;
    SZ_REQUIRE(sz_cols(q) >= h->heads * h->dim && sz_cols(k) == h->kv_heads * h->dim &&
                   sz_same_shape(k, v),
               "q must be at least heads * head_dim wide, k and v kv_heads * head_dim");
    SZ_REQUIRE(q->dtype == k->dtype && k->dtype == v->dtype, "q, k and v must have one dtype");
    SZ_REQUIRE(segments_fit(c->in[3], q->shape[0], k->shape[0]),
               "segments must be i32 [s, 6] inside q's and k's rows");
    return 0;
}

static int check_cross(int op, const sz_call *c, head_counts *h)
{
    if (check_separate(op, c, h) != 0) return -1;
    SZ_REQUIRE(sz_cols(c->in[0]) == h->heads * h->dim, "q must be heads * head_dim wide");
    return 0;
}

/* out, lse and dout belong to `rows` queries of dtype. */
static bool results_fit(const head_counts *h, int64_t rows, int dtype, sz_tensor *const results[3])
{
    const sz_tensor *out = results[0];
    const sz_tensor *lse = results[1];
    const sz_tensor *dout = results[2];
    const int64_t numel = rows * h->heads * h->dim;
    if (!sz_is_float(out) || !lse || !sz_is_float(dout)) return false;
    if (out->dtype != dtype || dout->dtype != dtype) return false;
    return out->numel == numel && dout->numel == numel && lse->numel == rows * h->heads;
}

/* ---- shapes ---- */
int sz_shape_attention(int op, sz_call *c)
{
    head_counts h;
    if (check_packed(op, c, &h) != 0) return -1;
    const sz_tensor *qkv = c->in[0];
    const int64_t tokens = qkv->shape[0];
    c->out[1] = sz_new2(SZ_F32, h.heads, tokens, qkv->device);
    if (!c->out[1]) return -1;
    return sz_out(c, sz_new2(qkv->dtype, tokens, h.heads * h.dim, qkv->device));
}

int sz_shape_attention_backward(int op, sz_call *c)
{
    head_counts h;
    if (check_packed(op, c, &h) != 0) return -1;
    const sz_tensor *qkv = c->in[0];
    SZ_REQUIRE(results_fit(&h, qkv->shape[0], qkv->dtype, &c->in[2]),
               "out, lse and dout must fit qkv");
    return sz_out_like(c, qkv);
}

int sz_shape_attention_cached(int op, sz_call *c)
{
    head_counts h;
    if (check_separate(op, c, &h) != 0) return -1;
    const sz_tensor *q = c->in[0];
    return sz_out(c, sz_new2(q->dtype, q->shape[0], h.heads * h.dim, q->device));
}

int sz_shape_attention_cross(int op, sz_call *c)
{
    head_counts h;
    if (check_cross(op, c, &h) != 0) return -1;
    const sz_tensor *q = c->in[0];
    c->out[1] = sz_new2(SZ_F32, h.heads, q->shape[0], q->device);
    if (!c->out[1]) return -1;
    return sz_out_like(c, q);
}

int sz_shape_attention_cross_backward(int op, sz_call *c)
{
    head_counts h;
    if (check_cross(op, c, &h) != 0) return -1;
    const sz_tensor *q = c->in[0];
    SZ_REQUIRE(results_fit(&h, q->shape[0], q->dtype, &c->in[4]), "out, lse and dout must fit q");
    for (int i = 1; i <= 2; i++) {
        c->out[i] = sz_tensor_like(c->in[i]);
        if (!c->out[i]) return -1;
    }
    return sz_out_like(c, q);
}

/* ---- workspace: buffers of each thread ---- */
static int64_t thread_buffers(const sz_call *c)
{
    const int64_t head_dim = (int64_t)c->args[2];
    return omp_get_max_threads() * ((128 << 10) + 3072 * head_dim);
}

/* In backward also P and dS of a tile of keys, and the sums of keys that several threads work
 * on. */
static int64_t backward_buffers(const sz_call *c, int64_t keys)
{
    const int64_t kv_heads = (int64_t)c->args[1];
    const int64_t head_dim = (int64_t)c->args[2];
    const int64_t tiles = omp_get_max_threads() * (112 << 10);
    return thread_buffers(c) + tiles + 16 * keys * kv_heads * head_dim;
}

int64_t sz_workspace_attention(const sz_call *c) { return thread_buffers(c); }
int64_t sz_workspace_attention_cached(const sz_call *c) { return thread_buffers(c); }

int64_t sz_workspace_attention_backward(const sz_call *c)
{
    return backward_buffers(c, c->in[0]->shape[0]);
}

int64_t sz_workspace_attention_cross_backward(const sz_call *c)
{
    return backward_buffers(c, c->in[1]->shape[0]);
}

/* ---- FLOPs ---- */
/* Pairs of a query and a key that it sees. */
static double count_pairs(const sz_tensor *segments, bool causal)
{
    double sum = 0;
    const int32_t *s = sz_i32(segments);
    for (int64_t i = 0; i < segments->shape[0]; i++, s += SEGMENT_COLUMNS) {
        const double queries = s[Q_LEN];
        const double keys = s[K_LEN];
        sum += queries * s[P_LEN];
        if (causal) sum += queries * (keys - queries) + queries * (queries + 1) / 2;
        else sum += queries * keys;
    }
    return sum;
}

/* `products` products of a multiply and an add for each pair, head and column. */
static double count_flops(const sz_call *c, const sz_tensor *segments, int products)
{
    const double heads = c->args[0];
    const double head_dim = c->args[2];
    return 2.0 * products * heads * head_dim * count_pairs(segments, c->args[3] != 0);
}

/* Forward: scores and weighted values. Backward: scores again, and a product for each of dv, dp,
 * dq, dk. */
enum { FORWARD_PRODUCTS = 2, BACKWARD_PRODUCTS = 5 };

double sz_flops_attention(const sz_call *c) { return count_flops(c, c->in[1], FORWARD_PRODUCTS); }
double sz_flops_attention_cached(const sz_call *c)
{
    return count_flops(c, c->in[3], FORWARD_PRODUCTS);
}
double sz_flops_attention_cross(const sz_call *c)
{
    return count_flops(c, c->in[3], FORWARD_PRODUCTS);
}
double sz_flops_attention_backward(const sz_call *c)
{
    return count_flops(c, c->in[1], BACKWARD_PRODUCTS);
}

double sz_flops_attention_cross_backward(const sz_call *c)
{
    return count_flops(c, c->in[3], BACKWARD_PRODUCTS);
}

/* ---- gradients ---- */
/* A backward op's call: the `count` inputs of the forward op, its two outputs, dout, the same
 * numbers. */
static sz_call backward_call(const sz_node *n, int count)
{
    sz_call c = { .in = { NULL } };
    for (int i = 0; i < count; i++) c.in[i] = n->call.in[i];
    c.in[count] = n->call.out[0];
    c.in[count + 1] = n->call.out[1];
    c.in[count + 2] = sz_dy(n);
    memcpy(c.args, n->call.args, sizeof c.args);
    return c;
}

int sz_grad_attention(sz_node *n)
{
    if (n->call.out[1]->grad) return sz_fail("attention: its log-sum-exp has no gradient");
    return sz_give(n, 0, sz_run(SZ_OP_attention_backward, backward_call(n, 2)));
}

int sz_grad_attention_cross(sz_node *n)
{
    if (n->call.out[1]->grad) return sz_fail("attention_cross: its log-sum-exp has no gradient");
    sz_call c = backward_call(n, 4);
    if (sz_apply(SZ_OP_attention_cross_backward, &c) != 0) return -1;
    return sz_give_outputs(n, 3, c.out);
}

/* ---- wrappers ---- */
sz_tensor *sz_attention(sz_tensor *qkv, sz_tensor *segments, int heads, int kv_heads, int head_dim,
                        bool causal, double scale)
{
    sz_call c = { .in = { qkv, segments }, .args = { heads, kv_heads, head_dim, causal, scale } };
    if (!qkv || !segments || sz_apply(SZ_OP_attention, &c) != 0) return NULL;
    sz_tensor_release(c.out[1]);
    return c.out[0];
}

sz_tensor *sz_attention_cached(sz_tensor *q, sz_tensor *k, sz_tensor *v, sz_tensor *segments,
                               int heads, int kv_heads, int head_dim, bool causal, double scale)
{
    sz_call c = { .in = { q, k, v, segments },
                  .args = { heads, kv_heads, head_dim, causal, scale } };
    return sz_run_wrapped(SZ_OP_attention_cached, 4, c);
}

sz_tensor *sz_attention_cross(sz_tensor *q, sz_tensor *k, sz_tensor *v, sz_tensor *segments,
                              int heads, int kv_heads, int head_dim, bool causal, double scale)
{
    sz_call c = { .in = { q, k, v, segments },
                  .args = { heads, kv_heads, head_dim, causal, scale } };
    if (!q || !k || !v || !segments || sz_apply(SZ_OP_attention_cross, &c) != 0) return NULL;
    sz_tensor_release(c.out[1]);
    return c.out[0];
}
