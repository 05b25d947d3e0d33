/* attention_cached.cu - attention of new queries over key and value caches: q [a, c], c >= h*d, k and v [r, g*d] -> out [a, h*d].
 *
 * A short segment has at most 64 columns (attention.cuh): a decoding answer has one query, 7 columns with 7 heads a key head.
 * Short segments of one parent stand side by side in blocks of 64 columns, so that a prompt's keys are read once for all its
 * answers and heads. Keys are cut into stretches, one block each, that leave their sums; join_keys adds them in order, the
 * parent's before the segment's own. Where a stretch ends depends on the length of its range alone, so an answer's result does
 * not depend on what else is in the batch. Long segments (prefill) are attention.cu's.
 * How many tasks and slots a plan has grows with every few tokens; they are rounded up, with tasks that do nothing, so that the launches of a
 * decode step stay the same for many steps (decode.cu records them): what there is to do is read from the plan, in device memory.
 * Leaves out: lse, gradients. */
#include "attention.cuh"

enum { STRETCH = 128,           /* keys; of ranges beyond MANY stretches they get longer instead of more */
       MANY = 32 };

/* The sums of a query: `parent` and `own` stretches, each `*_apart` columns after the one before. */
struct cached_join { int32_t row, parent, parent_slot, parent_apart, own, own_slot, own_apart; };

template <typename T>
static __global__ void join_keys(const cached_join *joins, sz_flash_parts parts, int width, int heads, int groups, int dim, T *out)
{
    const cached_join j = joins[blockIdx.x / (unsigned)heads];
    const int head = (int)(blockIdx.x % (unsigned)heads), share = heads / groups, group = head / share;
    const int stretches = j.parent + j.own, d = (int)threadIdx.x;
    auto place = [=](int i) {
        int64_t slot = i < j.parent ? j.parent_slot + (int64_t)i * j.parent_apart : j.own_slot + (int64_t)(i - j.parent) * j.own_apart;
        return (slot + head % share) * groups + group;
    };
    float max = -INFINITY, total = 0, sum = 0;
    for (int i = 0; i < stretches; i++) max = fmaxf(max, parts.weights[place(i)].x);
    const float base = max == -INFINITY ? 0.0f : max;
    for (int i = 0; i < stretches; i++) {
        const float2 w = parts.weights[place(i)];
        const float e = exp2f(w.x - base);
        total += e * w.y;
        if (d < dim) sum += e * parts.sums[place(i) * width + d];
    }
    if (d < dim) sz_store(out + ((int64_t)j.row * heads + head) * dim + d, total == 0 ? 0.0f : sum / total);
}

static int32_t stretch_of(int64_t keys)
{
    int64_t n = keys > (int64_t)STRETCH * MANY ? (keys + MANY - 1) / MANY : (int64_t)STRETCH;
    return (int32_t)((n + 63) / 64 * 64);
}
static int32_t stretches(int64_t keys) { return (int32_t)((keys + stretch_of(keys) - 1) / stretch_of(keys)); }

/* A short segment in the order of parents. */
struct by_parent { int32_t start, len, segment; };
static int compare_parents(const void *x, const void *y)
{
    const by_parent *a = (const by_parent *)x, *b = (const by_parent *)y;
    if (a->start != b->start) return a->start < b->start ? -1 : 1;
    if (a->len != b->len) return a->len < b->len ? -1 : 1;
    return (a->segment > b->segment) - (a->segment < b->segment);
}

struct cached_plan {
    sz_flash_task *task;
    sz_flash_query *query;      /* of short segments, in the order of parents */
    cached_join *join;          /* beside query */
    int64_t tasks, queries, slots;
};

/* Keys [first, end) of a segment's columns in stretches of their own. */
static void add_stretches(cached_plan *p, int32_t segment, int32_t list, int32_t columns, int32_t first, int32_t keys)
{
    for (int32_t at = 0, step = stretch_of(keys); at < keys; at += step) {
        int32_t n = keys - at < step ? keys - at : step;
        p->task[p->tasks++] = sz_flash_task{ 0, segment, list, columns, first + at, first + at + n, (int32_t)p->slots };
        p->slots += columns;
    }
}

/* Short segments order[0 .. n) of one parent, together at most 64 columns. */
static void add_block(cached_plan *p, const sz_attention_args &a, const sz_segment_row *rows, const by_parent *order, int64_t n)
{
    const int32_t list = (int32_t)p->queries, parent_slot = (int32_t)p->slots, parent = stretches(order->len);
    int64_t at = p->queries;
    for (int64_t i = 0; i < n; i++) {
        const sz_segment_row &s = rows[order[i].segment];
        for (int32_t x = 0; x < s.q_len; x++)
            p->query[p->queries++] = sz_flash_query{ s.q_start + x, (int32_t)(s.p_len + sz_own_keys(s, x, a.causal)) };
    }
    const int32_t columns = (int32_t)(p->queries - at) * a.share;
    if (order->len) add_stretches(p, order->segment, list, columns, 0, order->len);
    for (int64_t i = 0; i < n; i++) {
        const sz_segment_row &s = rows[order[i].segment];
        const int32_t own_slot = (int32_t)p->slots;
        if (s.k_len) add_stretches(p, order[i].segment, -1, s.q_len * a.share, s.p_len, s.k_len);
        for (int32_t x = 0; x < s.q_len; x++, at++)
            p->join[at] = cached_join{ s.q_start + x, parent, parent_slot + (int32_t)(at - list) * a.share, columns,
                                       s.k_len ? stretches(s.k_len) : 0, own_slot + x * a.share, s.q_len * a.share };
    }
}

/* An upper bound of the tasks that one segment needs. */
static int64_t most_tasks(const sz_segment_row &s, int32_t share)
{
    return ((int64_t)s.q_len * share + SZ_ATTENTION_COLUMNS - 1) / SZ_ATTENTION_COLUMNS + stretches(s.p_len) + stretches(s.k_len);
}

/* n rounded up to one of four steps between powers of two. */
static int64_t rounded(int64_t n)
{
    int64_t step = 8;
    while (8 * step < n) step *= 2;
    return (n + step - 1) / step * step;
}

/* Makes the plan: tasks [number 0], then the short segments' queries [1] and joins [1]; [2] slots. */
static int make_plan(const char *op, const sz_attention_args &a, const sz_tensor *table, sz_cuda_cache_entry *to)
{
    const sz_segment_row *rows = sz_segment_rows(table);
    int64_t count = table->shape[0], tasks = 0, queries = 0, n = 0;
    auto is_short = [&](const sz_segment_row &s) { return (int64_t)s.q_len * a.share <= SZ_ATTENTION_COLUMNS; };
    for (int64_t i = 0; i < count; i++) {
        if (rows[i].q_len == 0) continue;
        tasks += most_tasks(rows[i], a.share);
        queries += is_short(rows[i]) ? rows[i].q_len : 0;
    }
    tasks = rounded(tasks);
    size_t task_bytes = (size_t)tasks * sizeof(sz_flash_task), query_bytes = (size_t)queries * sizeof(sz_flash_query), join_bytes = (size_t)queries * sizeof(cached_join);
    char *memory = (char *)malloc(task_bytes + query_bytes + join_bytes + (size_t)count * sizeof(by_parent) + 1);
    if (!memory) return sz_fail("%s: out of memory", op);
    cached_plan p = { (sz_flash_task *)memory, (sz_flash_query *)(memory + task_bytes), (cached_join *)(memory + task_bytes + query_bytes), 0, 0, 0 };
    by_parent *order = (by_parent *)(memory + task_bytes + query_bytes + join_bytes);
    for (int64_t i = 0; i < count; i++) {
        if (rows[i].q_len == 0) continue;
        if (is_short(rows[i])) order[n++] = by_parent{ rows[i].p_start, rows[i].p_len, (int32_t)i };
        else p.tasks += sz_flash_cut(rows, (int32_t)i, a.share, p.task + p.tasks);
    }
    qsort(order, (size_t)n, sizeof *order, compare_parents);
    for (int64_t i = 0, next; i < n; i = next) {
        int64_t columns = 0;
        for (next = i; next < n && order[next].len == order[i].len && order[next].start == order[i].start; next++) {
            columns += (int64_t)rows[order[next].segment].q_len * a.share;
            if (columns > SZ_ATTENTION_COLUMNS || (next > i && order[i].len == 0)) break;
        }
        add_block(&p, a, rows, order + i, next - i);
    }
    memset(p.task + p.tasks, 0, (size_t)(tasks - p.tasks) * sizeof *p.task);
    to->number[0] = tasks, to->number[1] = p.queries, to->number[2] = rounded(p.slots), to->number[3] = (int64_t)task_bytes;
    int rc = sz_cuda_cache_fill(to, memory, task_bytes + query_bytes + join_bytes);
    free(memory);
    return rc;
}

static const sz_cuda_cache_entry *plan_of(const char *op, const sz_attention_args &a, const sz_tensor *table)
{
    sz_cuda_cache_entry *plan = sz_cuda_cache_get(table, SZ_PLAN_CACHED, a.share, a.causal, 0);
    return plan && (plan->device || make_plan(op, a, table, plan) == 0) ? plan : NULL;
}

const sz_cuda_cache_entry *sz_cuda_attention_cached_schedule(const sz_tensor *segments, int heads, int kv_heads)
{
    sz_attention_args a = {};
    a.share = heads / kv_heads;
    a.causal = true;
    return plan_of("attention_cached", a, segments);
}

extern "C" int sz_cuda_attention_cached(const sz_call *c)
{
    const char *op = "attention_cached";
    sz_attention_args a;
    if (sz_attention_from(c, false, op, &a) != 0) return -1;
    const sz_tensor *table = c->in[3];
    sz_tensor *out = c->out[0];
    if (sz_segment_queries(table) < out->shape[0] && sz_cuda_fill(out->data, 0, sz_bytes(out)) != 0) return -1;
    const sz_cuda_cache_entry *plan = plan_of(op, a, table);
    if (!plan) return -1;
    const int64_t tasks = plan->number[0], queries = plan->number[1], slots = plan->number[2], width = sz_flash_width(out->dtype, a.dim);
    const sz_flash_query *list = (const sz_flash_query *)(plan->device + plan->number[3]);
    const cached_join *joins = (const cached_join *)(list + queries);
    if (slots > INT32_MAX || queries * a.heads > INT32_MAX) return sz_fail("%s: the table has too many short segments", op);
    sz_flash_parts parts = { (float *)sz_cuda_scratch((size_t)(slots * a.groups * width) * sizeof(float) + 1),
                             (float2 *)sz_cuda_scratch((size_t)(slots * a.groups) * sizeof(float2) + 1) };
    if (!parts.sums || !parts.weights) return -1;
    if (sz_flash_run(op, out->dtype, a, (const sz_flash_task *)plan->device, tasks, list, out->data, NULL, out->shape[0], parts) != 0) return -1;
    if (queries == 0) return 0;
    SZ_FLOATING(out->dtype, T, SZ_LAUNCH(join_keys<T>, (unsigned)(queries * a.heads), (unsigned)(a.dim + 31) / 32 * 32, 0,
                                         joins, parts, (int)width, a.heads, a.groups, a.dim, (T *)out->data));
    return sz_cuda_launched(op);
}
