/* attention.c - the forward pass of attention over a table of segments.
 *
 * H query heads, G key heads, G value heads of width D; query head h uses key head h / (H/G). They
 * come packed, as qkv [T, (H+2G)*D] (attention), or separately, as q [A, H*D], k and v [R, G*D]
 * (attention_cross); sz_attention_args says where they are.
 *
 * Segment table i32 [S, 6], rows {q_start, q_len, k_start, k_len, p_start, p_len}. The queries of a
 * segment see all keys of the parent range (p), and own keys (k): all of them or, if causal, query
 * i sees own key j iff j <= i + (k_len - q_len). Query ranges do not overlap; key ranges may be
 * shared by many segments. out [A, H*D], 0 in rows without keys; lse f32 [H, A], natural log of the
 * sum of exponentials of the scaled scores, -inf without keys.
 *
 * A task is (block of about 128 query columns of one segment, key head); scores exist only for the
 * current tile of keys. The gradient is in attention_backward.c.
 * Leaves out: dropout, biases, masks other than the table.
 */
#include "attention_tile.h"
#include <omp.h>

enum { PARALLEL_FROM = 1 << 20 }; /* multiply-adds below which one thread is faster */

typedef struct {
    int32_t segment, group;
    int64_t query; /* the block's first query in its segment */
} forward_task;

/* Lets b fetch the rows of a later block while it computes. Long segments fetch their own keys as
 * they go, so that only windows and the like need this. */
static void fetch_later(const sz_attention_args *a, const forward_task *t, const sz_tensor *out,
                        sz_columns *b)
{
    const sz_segment_row s = sz_segment_get(a->segments, t->segment);
    if (s.k_len + s.p_len > sz_keys_few(a->dim)) return;

    const int64_t row = s.q_start + t->query;
    const int64_t n = sz_min64(s.q_len - t->query, a->block);
    const int64_t first = t->group * a->dim;
    const int64_t width = a->share * a->dim;
    sz_ahead_rows(&b->ahead, out, row, n, first * a->share, width);
    sz_ahead_rows(&b->ahead, a->v, s.k_start, s.k_len, a->v_col + first, a->dim);
    sz_ahead_rows(&b->ahead, a->k, s.k_start, s.k_len, a->k_col + first, a->dim);
    sz_ahead_rows(&b->ahead, a->q, row, n, a->q_col + first * a->share, width);
}

/* The output and log-sum-exps of one block. */
static void forward_block(const sz_attention_args *a, const forward_task *t, sz_tensor *out,
                          sz_tensor *lse, sz_columns *b)
{
    sz_segment_row s = sz_segment_get(a->segments, t->segment);
    b->fetch_keys = s.k_len + s.p_len > sz_keys_few(a->dim);
    sz_columns_run(b, a, &s, t->group, t->query, out);
    for (int64_t i = 0; i < b->n; i++) {
        int64_t head = t->group * a->share + i % a->share;
        int64_t row = s.q_start + t->query + i / a->share;
        float value = b->sum[i] == 0 ? -INFINITY : b->max[i] + logf(b->exact_sum[i]);
        sz_f32(lse)[head * lse->shape[1] + row] = value;
    }
}

/* Lists the blocks of all segments in task; returns how many. The longest come first: the last
 * queries of a causal segment see the most keys. */
static int64_t list_tasks(const sz_attention_args *a, forward_task *task)
{
    int64_t tasks = 0;
    for (int64_t i = 0; i < a->segments->shape[0]; i++) {
        sz_segment_row s = sz_segment_get(a->segments, i);
        int64_t last = (s.q_len - 1) / a->block * a->block;
        for (int64_t g = 0; g < a->groups; g++)
            for (int64_t q = last; s.q_len && q >= 0; q -= a->block)
                task[tasks++] = (forward_task){ (int32_t)i, (int32_t)g, q };
    }
    return tasks;
}

static int forward(sz_attention_args a, sz_tensor *out, sz_tensor *lse)
{
    /* The size of a block. */
    int64_t covered;
    int64_t work = sz_attention_work(&a, &covered);
    int threads = work > PARALLEL_FROM ? omp_get_max_threads() : 1;
    sz_attention_cut_even(&a, covered * a.heads / (8 * threads));

    /* One set of buffers for each thread, and the tasks. */
    int64_t count = a.segments->shape[0];
    int64_t tasks = 0;
    for (int64_t i = 0; i < count; i++)
        tasks += sz_ceil_div(sz_segment_get(a.segments, i).q_len, a.block) * a.groups;
    size_t buffer_bytes = sz_columns_bytes(&a);
    size_t task_bytes = (size_t)(tasks + 1) * sizeof(forward_task);
    char *memory = sz_scratch(buffer_bytes * (size_t)threads + task_bytes);
    if (!memory) return sz_fail("attention: out of memory");
    forward_task *task = (forward_task *)(memory + buffer_bytes * (size_t)threads);
    tasks = list_tasks(&a, task);

    /* Rows that belong to no segment. */
    if (covered < out->shape[0]) {
        memset(out->data, 0, sz_bytes(out));
        for (int64_t i = 0; i < lse->numel; i++) sz_f32(lse)[i] = -INFINITY;
    }

#pragma omp parallel num_threads(threads)
    {
        sz_columns b;
        sz_columns_place(&b, memory + buffer_bytes * (size_t)omp_get_thread_num(), &a);
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < tasks; i++) {
            sz_ahead_clear(&b.ahead);
            if (i + threads < tasks) fetch_later(&a, task + i + threads, out, &b);
            forward_block(&a, task + i, out, lse, &b);
        }
    }
    return 0;
}

int sz_cpu_attention(const sz_call *c)
{
    return forward(sz_attention_packed(c), c->out[0], c->out[1]);
}

int sz_cpu_attention_cross(const sz_call *c)
{
    return forward(sz_attention_separate(c), c->out[0], c->out[1]);
}
