/* attention_cached.c - attention of new queries over key and value caches: prefill and decoding.
 *
 * q [A, C], C >= H*D, queries in the first H*D columns; k, v [R, G*D]; the segment table of attention.c with key rows in the
 * caches; out [A, H*D]. Decoding has many answers of one query each that share a parent, so short segments with the same
 * parent form a group: their queries stand side by side as the columns of one block, the parent's keys are read once a
 * block, then each segment passes its own keys, and the two softmaxes are merged by their maxima and sums.
 * Whether a segment is short depends on itself alone, so its result does not depend on its neighbours.
 * Leaves out: gradients, splitting one long sequence's keys over threads.
 */
#include "attention_tile.h"
#include <omp.h>
#include <stdlib.h>

enum { PARALLEL_FROM = 1 << 19 };     /* multiply-adds below which one thread is faster */

/* Short: segments order[first .. first + n) of one group share a parent. Long: n = 0, queries from `query` of one segment. */
typedef struct { int64_t first, n, query; int32_t segment, group; } cached_task;
typedef struct { int32_t segment; int64_t start, len; } parent_key;

/* Buffers of one thread: blocks of the parent's and of the own keys. */
typedef struct { sz_columns parent, own; } cached_buffers;

static bool is_short(const sz_attention_args *a, const sz_segment_row *s) { return s->p_len > 0 && s->q_len * a->share < SZ_PANEL; }

static int by_parent(const void *x, const void *y)
{
    const parent_key *a = x, *b = y;
    if (a->start != b->start) return a->start < b->start ? -1 : 1;
    if (a->len != b->len) return a->len < b->len ? -1 : 1;
    return (a->segment > b->segment) - (a->segment < b->segment);
}

/* own's rows become the softmax over both key sets; from: the parent block's first column of this segment. */
static void merge(const sz_columns *parent, int64_t from, sz_columns *own)
{
    for (int64_t i = 0; i < own->n; i++) {
        float m1 = parent->max[from + i], m2 = own->max[i], m = m1 > m2 ? m1 : m2, base = m == -INFINITY ? 0 : m;
        float w1 = parent->sum[from + i] * expf(m1 - base), w2 = own->sum[i] * expf(m2 - base), sum = w1 + w2;
        w1 = sum == 0 ? 0 : w1 / sum;
        w2 = sum == 0 ? 0 : w2 / sum;
        float *restrict r = own->rows + i * own->ld;
        const float *restrict p = parent->rows + (from + i) * parent->ld;
        for (int64_t d = 0; d < own->dim; d++) r[d] = w1 * p[d] + w2 * r[d];
    }
}

static void short_group(const sz_attention_args *a, sz_tensor *out, const cached_task *t, const parent_key *order, cached_buffers *w)
{
    int64_t columns = 0, at = 0;
    for (int64_t i = 0; i < t->n; i++) {
        sz_segment_row s = sz_segment_get(a->segments, order[t->first + i].segment);
        sz_queries_load(w->parent.rows + columns * w->parent.ld, w->parent.ld, a, &s, t->group, 0, s.q_len);
        columns += s.q_len * a->share;
    }
    sz_columns_start(&w->parent, columns);
    sz_columns_attend(&w->parent, a, t->group, order[t->first].start, order[t->first].len, false);
    sz_columns_finish(&w->parent);
    for (int64_t i = 0; i < t->n; i++) {
        sz_segment_row s = sz_segment_get(a->segments, order[t->first + i].segment);
        sz_queries_load(w->own.rows, w->own.ld, a, &s, t->group, 0, s.q_len);
        sz_columns_start(&w->own, s.q_len * a->share);
        sz_columns_attend_own(&w->own, a, &s, t->group, 0);
        sz_columns_finish(&w->own);
        merge(&w->parent, at, &w->own);
        sz_queries_store(&w->own, a, &s, t->group, 0, out);
        at += w->own.n;
    }
}

int sz_cpu_attention_cached(const sz_call *c)
{
    sz_attention_args a = sz_attention_separate(c);
    const sz_tensor *segments = a.segments;
    sz_tensor *out = c->out[0];
    int64_t count = segments->shape[0], tasks = 0, n = 0, covered, work = sz_attention_work(&a, &covered);
    int threads = work > PARALLEL_FROM ? omp_get_max_threads() : 1;
    sz_attention_cut(&a, sz_columns_aim(a.dim, covered * a.heads / (8 * threads)));
    int64_t step = a.block, most = step * a.share;
    for (int64_t i = 0; i < count; i++) tasks += (sz_segment_get(segments, i).q_len + step - 1) / step * a.groups;
    size_t block = sz_columns_bytes(&a);
    char *memory = sz_scratch(2 * block * (size_t)threads + (size_t)(tasks + 1) * sizeof(cached_task) + (size_t)(count + 1) * sizeof(parent_key));
    if (!memory) return sz_fail("attention_cached: out of memory");
    cached_task *task = (cached_task *)(memory + 2 * block * (size_t)threads);
    parent_key *order = (parent_key *)(task + tasks + 1);
    tasks = 0;
    for (int64_t i = 0; i < count; i++) {
        sz_segment_row s = sz_segment_get(segments, i);
        if (s.q_len == 0) continue;
        if (is_short(&a, &s)) {
            order[n++] = (parent_key){ (int32_t)i, s.p_start, s.p_len };
            continue;
        }
        for (int64_t g = 0; g < a.groups; g++)
            for (int64_t q = 0; q < s.q_len; q += step) task[tasks++] = (cached_task){ 0, 0, q, (int32_t)i, (int32_t)g };
    }
    qsort(order, (size_t)n, sizeof *order, by_parent);
    for (int64_t i = 0, next; i < n; i = next) {
        int64_t columns = 0;
        for (next = i; next < n && order[next].start == order[i].start && order[next].len == order[i].len; next++) {
            columns += sz_segment_get(segments, order[next].segment).q_len * a.share;
            if (next > i && columns > most) break;
        }
        for (int64_t g = 0; g < a.groups; g++) task[tasks++] = (cached_task){ i, next - i, 0, 0, (int32_t)g };
    }
    if (covered < out->shape[0]) memset(out->data, 0, sz_bytes(out));
#pragma omp parallel num_threads(threads)
    {
        char *at = memory + 2 * block * (size_t)omp_get_thread_num();
        cached_buffers w;
        sz_columns_place(&w.parent, at, &a);
        sz_columns_place(&w.own, at + block, &a);
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < tasks; i++) {
            sz_segment_row s = sz_segment_get(segments, task[i].segment);
            if (task[i].n) short_group(&a, out, task + i, order, &w);
            else sz_columns_run(&w.parent, &a, &s, task[i].group, task[i].query, out);
        }
    }
    return 0;
}
