/* attention_cached.c - attention of new queries over key and value caches: prefill and decoding.
 *
 * q [A, C], C >= H*D, queries in the first H*D columns; k, v [R, G*D]; the segment table of
 * attention.c with key rows in the caches; out [A, H*D]. Decoding has many answers of one query
 * each that share a parent, so short segments with the same parent form a group: their queries
 * become the columns of one block, the parent's keys are read once a block, then each segment
 * attends to its own keys, and the two softmaxes are merged by their maxima and sums.
 * Whether a segment is short depends on itself alone, so its result does not depend on other
 * segments.
 * Leaves out: gradients, splitting one long sequence's keys over threads.
 */
#include "attention_tile.h"
#include <omp.h>
#include <stdlib.h>

enum { PARALLEL_FROM = 1 << 19 }; /* multiply-adds below which one thread is faster */

/* Short segments order[first .. first + n) of one group, which share a parent; or n = 0: one block
 * of a long segment, from query number `query` on. */
typedef struct {
    int64_t first, n;
    int64_t query;
    int32_t segment, group;
} cached_task;

/* A short segment, to be sorted by its parent range. */
typedef struct {
    int32_t segment;
    int64_t start, len;
} parent_key;

/* Buffers of one thread: a block for the parent's keys and one for the own keys. */
typedef struct {
    sz_columns parent, own;
} cached_buffers;

static bool is_short(const sz_attention_args *a, const sz_segment_row *s)
{
    return s->p_len > 0 && s->q_len * a->share < SZ_PANEL;
}

static bool same_parent(const parent_key *a, const parent_key *b)
{
    return a->start == b->start && a->len == b->len;
}

static int by_parent(const void *x, const void *y)
{
    const parent_key *a = x;
    const parent_key *b = y;
    if (a->start != b->start) return a->start < b->start ? -1 : 1;
    if (a->len != b->len) return a->len < b->len ? -1 : 1;
    return (a->segment > b->segment) - (a->segment < b->segment);
}

/* Merges the softmax over the parent's keys into own's rows. from: the parent block's first column
 * of this segment. */
static void merge(const sz_columns *parent, int64_t from, sz_columns *own)
{
    for (int64_t i = 0; i < own->n; i++) {
        /* The common maximum; 0 if neither saw a key. */
        float parent_max = parent->max[from + i];
        float own_max = own->max[i];
        float max = parent_max > own_max ? parent_max : own_max;
        float base = max == -INFINITY ? 0 : max;

        /* Each side's share of the sum of exponentials. */
        float parent_weight = parent->sum[from + i] * expf(parent_max - base);
        float own_weight = own->sum[i] * expf(own_max - base);
        float sum = parent_weight + own_weight;
        parent_weight = sum == 0 ? 0 : parent_weight / sum;
        own_weight = sum == 0 ? 0 : own_weight / sum;

        float *restrict r = own->rows + i * own->ld;
        const float *restrict p = parent->rows + (from + i) * parent->ld;
        for (int64_t d = 0; d < own->dim; d++) r[d] = parent_weight * p[d] + own_weight * r[d];
    }
}

/* Makes the queries of a short segment columns of b from number `from` on. */
static void take_queries(sz_columns *b, int64_t from, const sz_attention_args *a,
                         const sz_segment_row *s, int64_t group)
{
    int64_t col = a->q_col + group * a->share * a->dim;
    sz_columns_take(b, from, a->q, s->q_start, s->q_len, col, a->share);
}

/* Starts a block with n columns, whose queries have been taken. */
static void start_rows(sz_columns *b, int64_t n)
{
    sz_columns_pack(b, n);
    sz_columns_start(b, n);
}

/* Leaves the output in rows, divided by the sums. */
static void finish_rows(sz_columns *b)
{
    sz_columns_factors(b);
    sz_panels_unpack(&(sz_column_rows){ b->rows, b->ld, 1, b->dim }, b->n, b->o, b->dim, b->factor);
}

/* Stores the finished rows of a short segment. */
static void store_rows(const sz_columns *b, const sz_attention_args *a, const sz_segment_row *s,
                       int64_t group, sz_tensor *out)
{
    for (int64_t i = 0; i < b->n; i++) {
        int64_t head = group * a->share + i % a->share;
        sz_rows_store(out, s->q_start + i / a->share, head * a->dim, b->rows + i * b->ld, a->dim);
    }
}

/* Short segments that share a parent. */
static void run_short(const sz_attention_args *a, sz_tensor *out, const cached_task *t,
                      const parent_key *order, cached_buffers *w)
{
    const parent_key *key = order + t->first;
    int64_t columns = 0;

    /* The queries of all of them over the parent's keys. */
    for (int64_t i = 0; i < t->n; i++) {
        sz_segment_row s = sz_segment_get(a->segments, key[i].segment);
        take_queries(&w->parent, columns, a, &s, t->group);
        columns += s.q_len * a->share;
    }
    start_rows(&w->parent, columns);
    sz_columns_attend(&w->parent, a, t->group, key->start, key->len, false);
    finish_rows(&w->parent);

    /* Each over its own keys, merged with its columns of the parent's block. */
    int64_t first_column = 0;
    for (int64_t i = 0; i < t->n; i++) {
        sz_segment_row s = sz_segment_get(a->segments, key[i].segment);
        take_queries(&w->own, 0, a, &s, t->group);
        start_rows(&w->own, s.q_len * a->share);
        sz_columns_attend_own(&w->own, a, &s, t->group, 0);
        finish_rows(&w->own);
        merge(&w->parent, first_column, &w->own);
        store_rows(&w->own, a, &s, t->group, out);
        first_column += w->own.n;
    }
}

/* Lists the blocks of long segments in task, and the short segments in order, sorted by parent.
 * Returns the number of tasks; *shorts is the number of short segments. */
static int64_t list_long(const sz_attention_args *a, cached_task *task, parent_key *order,
                         int64_t *shorts)
{
    int64_t tasks = 0;
    int64_t n = 0;
    for (int64_t i = 0; i < a->segments->shape[0]; i++) {
        sz_segment_row s = sz_segment_get(a->segments, i);
        if (s.q_len == 0) continue;
        /* A short one waits for others with its parent; a long one is cut into blocks. */
        if (is_short(a, &s)) {
            order[n++] = (parent_key){ (int32_t)i, s.p_start, s.p_len };
            continue;
        }
        for (int64_t g = 0; g < a->groups; g++)
            for (int64_t q = 0; q < s.q_len; q += a->block)
                task[tasks++] = (cached_task){ 0, 0, q, (int32_t)i, (int32_t)g };
    }
    qsort(order, (size_t)n, sizeof *order, by_parent);
    *shorts = n;
    return tasks;
}

/* Appends groups of short segments with the same parent, each within one block's columns. */
static int64_t list_short(const sz_attention_args *a, cached_task *task, int64_t tasks,
                          const parent_key *order, int64_t shorts)
{
    int64_t most = a->block * a->share;
    for (int64_t i = 0, next; i < shorts; i = next) {
        int64_t columns = 0;
        for (next = i; next < shorts && same_parent(order + next, order + i); next++) {
            columns += sz_segment_get(a->segments, order[next].segment).q_len * a->share;
            if (next > i && columns > most) break;
        }
        for (int64_t g = 0; g < a->groups; g++)
            task[tasks++] = (cached_task){ i, next - i, 0, 0, (int32_t)g };
    }
    return tasks;
}

int sz_cpu_attention_cached(const sz_call *c)
{
    sz_attention_args a = sz_attention_separate(c);
    const sz_tensor *segments = a.segments;
    sz_tensor *out = c->out[0];
    int64_t count = segments->shape[0];

    /* The size of a block. */
    int64_t covered;
    int64_t work = sz_attention_work(&a, &covered);
    int threads = work > PARALLEL_FROM ? omp_get_max_threads() : 1;
    sz_attention_cut_even(&a, covered * a.heads / (8 * threads));

    /* Two blocks for each thread, the tasks, and the short segments. */
    int64_t tasks = 0;
    for (int64_t i = 0; i < count; i++)
        tasks += sz_ceil_div(sz_segment_get(segments, i).q_len, a.block) * a.groups;
    size_t block_bytes = sz_columns_bytes(&a);
    size_t buffer_bytes = 2 * block_bytes * (size_t)threads;
    size_t task_bytes = (size_t)(tasks + 1) * sizeof(cached_task);
    size_t order_bytes = (size_t)(count + 1) * sizeof(parent_key);
    char *memory = sz_scratch(buffer_bytes + task_bytes + order_bytes);
    if (!memory) return sz_fail("attention_cached: out of memory");
    cached_task *task = (cached_task *)(memory + buffer_bytes);
    parent_key *order = (parent_key *)(task + tasks + 1);

    int64_t shorts;
    tasks = list_long(&a, task, order, &shorts);
    tasks = list_short(&a, task, tasks, order, shorts);
    if (covered < out->shape[0]) memset(out->data, 0, sz_bytes(out));

#pragma omp parallel num_threads(threads)
    {
        char *mine = memory + 2 * block_bytes * (size_t)omp_get_thread_num();
        cached_buffers w;
        sz_columns_place(&w.parent, mine, &a);
        sz_columns_place(&w.own, mine + block_bytes, &a);
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < tasks; i++) {
            sz_segment_row s = sz_segment_get(segments, task[i].segment);
            if (task[i].n) run_short(&a, out, task + i, order, &w);
            else sz_columns_run(&w.parent, &a, &s, task[i].group, task[i].query, out);
        }
    }
    return 0;
}
