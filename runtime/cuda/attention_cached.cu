/* attention_cached.cu - attention of new queries over key and value caches: q [a, c] with c >=
 * h*d, k and v [r, g*d] -> out [a, h*d].
 *
 * A short segment has at most 64 columns (attention.cuh). A decoding answer is one: it has one
 * query, which is 7 columns with 7 query heads for each key head. Short segments with the same
 * parent share blocks of 64 columns, so that a prompt's keys are read once for all its answers and
 * heads. Keys are cut into splits, one block each, which leave partial results; combine_kernel
 * adds them in order, the parent's before the segment's own. Where a split ends depends only on
 * the length of its key range, so an answer's result does not depend on the rest of the batch.
 * Long segments (prefill) use the tasks of attention.cu.
 * The numbers of tasks and slots grow every few tokens. They are rounded up, with tasks that do
 * nothing, so that the launches of a decode step stay the same for many steps (decode.cu records
 * them): the work itself is read from the schedule, in device memory.
 * Leaves out: lse, gradients. */
#include "attention.cuh"

enum {
    SPLIT_KEYS = 128, /* keys in a split ... */
    MAX_SPLITS = 32,  /* ... but longer ranges than this many get longer splits instead */
};

/* Where a query's partial results are: `parent_splits` and `own_splits` of them, each at the given
 * distance (in slots) from the one before. */
struct cached_combine {
    int32_t row;
    int32_t parent_splits, parent_slot, parent_stride;
    int32_t own_splits, own_slot, own_stride;
};

/* One block for each query and head; a thread for each element of the head. */
template <typename T>
static __global__ void combine_kernel(const cached_combine *combines, sz_flash_partials partials,
                                      int width, int heads, int kv_heads, int dim, T *out)
{
    const cached_combine j = combines[blockIdx.x / (unsigned)heads];
    const int head = (int)(blockIdx.x % (unsigned)heads);
    const int heads_per_kv = heads / kv_heads;
    const int kv_head = head / heads_per_kv;
    const int splits = j.parent_splits + j.own_splits;
    const int d = (int)threadIdx.x;
    auto place = [=](int i) {
        int64_t slot = i < j.parent_splits
                           ? j.parent_slot + (int64_t)i * j.parent_stride
                           : j.own_slot + (int64_t)(i - j.parent_splits) * j.own_stride;
        return (slot + head % heads_per_kv) * kv_heads + kv_head;
    };
    /* The largest score of all splits; without keys, count from 0 to avoid -inf - -inf. */
    float max = -INFINITY;
    for (int i = 0; i < splits; i++) max = fmaxf(max, partials.weights[place(i)].x);
    const float base = max == -INFINITY ? 0.0f : max;
    /* Rescale each split to it and add. */
    float total = 0;
    float sum = 0;
    for (int i = 0; i < splits; i++) {
        const float2 w = partials.weights[place(i)];
        const float e = exp2f(w.x - base);
        total += e * w.y;
        if (d < dim) sum += e * partials.sums[place(i) * width + d];
    }
    if (d < dim)
        sz_store(out + ((int64_t)j.row * heads + head) * dim + d, total == 0 ? 0.0f : sum / total);
}

/* ---- the schedule ---- */
/* Returns the keys in a split of a range of this length: a multiple of 64. */
static int32_t split_keys(int64_t keys)
{
    int64_t n = SPLIT_KEYS;
    if (keys > (int64_t)SPLIT_KEYS * MAX_SPLITS) n = (keys + MAX_SPLITS - 1) / MAX_SPLITS;
    return (int32_t)((n + 63) / 64 * 64);
}

static int32_t splits_of(int64_t keys)
{
    return (int32_t)((keys + split_keys(keys) - 1) / split_keys(keys));
}

/* A short segment with its parent's range, for sorting by parent. */
struct short_segment {
    int32_t start, len, segment;
};

static int compare_parents(const void *x, const void *y)
{
    const short_segment *a = (const short_segment *)x;
    const short_segment *b = (const short_segment *)y;
    if (a->start != b->start) return a->start < b->start ? -1 : 1;
    if (a->len != b->len) return a->len < b->len ? -1 : 1;
    return (a->segment > b->segment) - (a->segment < b->segment);
}

struct cached_schedule {
    sz_flash_task *task;
    sz_flash_query *query;   /* of short segments, sorted by parent */
    cached_combine *combine; /* one for each query */
    int64_t tasks, queries, slots;
};

/* Adds tasks for the keys [first, first + keys) of a segment, one for each split. */
static void add_splits(cached_schedule *p, int32_t segment, int32_t list, int32_t columns,
                       int32_t first, int32_t keys)
{
    const int32_t split = split_keys(keys);
    for (int32_t at = 0; at < keys; at += split) {
        int32_t n = keys - at < split ? keys - at : split;
        p->task[p->tasks++] = sz_flash_task{
            0, segment, list, columns, first + at, first + at + n, (int32_t)p->slots
        };
        p->slots += columns;
    }
}

/* Adds n short segments that have one parent and together at most 64 columns. */
static void add_block(cached_schedule *p, const sz_attention_args &a, const sz_segment_row *rows,
                      const short_segment *block, int64_t n)
{
    const int32_t list = (int32_t)p->queries;
    const int32_t parent_slot = (int32_t)p->slots;
    const int32_t parent_splits = splits_of(block->len);
    int64_t at = p->queries;

    /* List the block's queries; their tasks share the parent's keys. */
    for (int64_t i = 0; i < n; i++) {
        const sz_segment_row &s = rows[block[i].segment];
        for (int32_t x = 0; x < s.q_len; x++) {
            int32_t limit = (int32_t)(s.p_len + sz_own_keys(s, x, a.causal));
            p->query[p->queries++] = sz_flash_query{ s.q_start + x, limit };
        }
    }
    const int32_t columns = (int32_t)(p->queries - at) * a.heads_per_kv;
    if (block->len) add_splits(p, block->segment, list, columns, 0, block->len);

    /* Each segment has tasks of its own for its own keys. */
    for (int64_t i = 0; i < n; i++) {
        const sz_segment_row &s = rows[block[i].segment];
        const int32_t own_slot = (int32_t)p->slots;
        const int32_t own_columns = s.q_len * a.heads_per_kv;
        const int32_t own_splits = s.k_len ? splits_of(s.k_len) : 0;
        if (s.k_len) add_splits(p, block[i].segment, -1, own_columns, s.p_len, s.k_len);
        for (int32_t x = 0; x < s.q_len; x++, at++)
            p->combine[at] = cached_combine{
                s.q_start + x, parent_splits, parent_slot + (int32_t)(at - list) * a.heads_per_kv,
                columns,       own_splits,    own_slot + x * a.heads_per_kv,
                own_columns,
            };
    }
}

/* Returns an upper bound on the tasks that one segment needs. */
static int64_t most_tasks(const sz_segment_row &s, int32_t heads_per_kv)
{
    const int64_t columns = (int64_t)s.q_len * heads_per_kv;
    return (columns + SZ_ATTENTION_COLUMNS - 1) / SZ_ATTENTION_COLUMNS + splits_of(s.p_len) +
           splits_of(s.k_len);
}

/* Rounds n up to one of four steps between powers of two. */
static int64_t round_up(int64_t n)
{
    int64_t step = 8;
    while (8 * step < n) step *= 2;
    return (n + step - 1) / step * step;
}

static bool is_short(const sz_segment_row &s, int32_t heads_per_kv)
{
    return (int64_t)s.q_len * heads_per_kv <= SZ_ATTENTION_COLUMNS;
}

/* Adds the short segments, sorted by parent, in blocks of up to 64 columns. */
static void add_short_segments(cached_schedule *p, const sz_attention_args &a,
                               const sz_segment_row *rows, const short_segment *order, int64_t n)
{
    int64_t next = 0;
    for (int64_t i = 0; i < n; i = next) {
        int64_t columns = 0;
        for (next = i; next < n; next++) {
            const bool same_parent = order[next].len == order[i].len &&
                                     order[next].start == order[i].start;
            if (!same_parent) break;
            columns += (int64_t)rows[order[next].segment].q_len * a.heads_per_kv;
            if (columns > SZ_ATTENTION_COLUMNS || (next > i && order[i].len == 0)) break;
        }
        add_block(p, a, rows, order + i, next - i);
    }
}

/* Meaning of the cache entry's number[]. In device memory are the tasks, then the short segments'
 * queries, then their combines. */
enum { TASKS, QUERIES, SLOTS, TASK_BYTES };

/* Makes the schedule. Returns 0, or -1 with a message. */
static int make_schedule(const char *op, const sz_attention_args &a, const sz_tensor *table,
                         sz_cuda_cache_entry *entry)
{
    /* Bound the sizes. */
    const sz_segment_row *rows = sz_segment_rows(table);
    const int64_t count = table->shape[0];
    int64_t tasks = 0;
    int64_t queries = 0;
    for (int64_t i = 0; i < count; i++) {
        if (rows[i].q_len == 0) continue;
        tasks += most_tasks(rows[i], a.heads_per_kv);
        if (is_short(rows[i], a.heads_per_kv)) queries += rows[i].q_len;
    }
    tasks = round_up(tasks);
    const size_t task_bytes = (size_t)tasks * sizeof(sz_flash_task);
    const size_t query_bytes = (size_t)queries * sizeof(sz_flash_query);
    const size_t combine_bytes = (size_t)queries * sizeof(cached_combine);
    const size_t bytes = task_bytes + query_bytes + combine_bytes;
    char *memory = (char *)malloc(bytes + (size_t)count * sizeof(short_segment) + 1);
    if (!memory) return sz_fail("%s: out of memory", op);
    cached_schedule p = {};
    p.task = (sz_flash_task *)memory;
    p.query = (sz_flash_query *)(memory + task_bytes);
    p.combine = (cached_combine *)(memory + task_bytes + query_bytes);
    short_segment *order = (short_segment *)(memory + bytes);

    /* Long segments first, then the short ones by parent. */
    int64_t n = 0;
    for (int64_t i = 0; i < count; i++) {
        const sz_segment_row &s = rows[i];
        if (s.q_len == 0) continue;
        if (is_short(s, a.heads_per_kv))
            order[n++] = short_segment{ s.p_start, s.p_len, (int32_t)i };
        else p.tasks += sz_flash_cut(rows, (int32_t)i, a.heads_per_kv, p.task + p.tasks);
    }
    qsort(order, (size_t)n, sizeof *order, compare_parents);
    add_short_segments(&p, a, rows, order, n);

    /* The remaining tasks do nothing. */
    memset(p.task + p.tasks, 0, (size_t)(tasks - p.tasks) * sizeof *p.task);
    entry->number[TASKS] = tasks;
    entry->number[QUERIES] = p.queries;
    entry->number[SLOTS] = round_up(p.slots);
    entry->number[TASK_BYTES] = (int64_t)task_bytes;
    int rc = sz_cuda_cache_fill(entry, memory, bytes);
    free(memory);
    return rc;
}

static const sz_cuda_cache_entry *schedule_of(const char *op, const sz_attention_args &a,
                                              const sz_tensor *table)
{
    sz_cuda_cache_entry *entry = sz_cuda_cache_get(table, SZ_CACHE_CACHED, a.heads_per_kv, a.causal,
                                                   0);
    if (!entry || entry->device) return entry;
    return make_schedule(op, a, table, entry) == 0 ? entry : NULL;
}

const sz_cuda_cache_entry *sz_cuda_attention_cached_schedule(const sz_tensor *segments, int heads,
                                                             int kv_heads)
{
    sz_attention_args a = {};
    a.heads_per_kv = heads / kv_heads;
    a.causal = true;
    return schedule_of("attention_cached", a, segments);
}

/* ---- the op ---- */
extern "C" int sz_cuda_attention_cached(const sz_call *c)
{
    const char *op = "attention_cached";
    sz_attention_args a;
    if (sz_attention_from(c, false, op, &a) != 0) return -1;
    const sz_tensor *table = c->in[3];
    sz_tensor *out = c->out[0];
    /* Rows that belong to no segment. */
    const bool rows_left = sz_segment_queries(table) < out->shape[0];
    if (rows_left && sz_cuda_fill(out->data, 0, sz_bytes(out)) != 0) return -1;

    const sz_cuda_cache_entry *schedule = schedule_of(op, a, table);
    if (!schedule) return -1;
    const int64_t queries = schedule->number[QUERIES];
    const int64_t slots = schedule->number[SLOTS];
    const int64_t width = sz_flash_width(out->dtype, a.dim);
    const sz_flash_task *tasks = (const sz_flash_task *)schedule->device;
    const sz_flash_query *list =
        (const sz_flash_query *)(schedule->device + schedule->number[TASK_BYTES]);
    const cached_combine *combines = (const cached_combine *)(list + queries);
    if (slots > INT32_MAX || queries * a.heads > INT32_MAX)
        return sz_fail("%s: the table has too many short segments", op);

    /* Run all tasks, then combine the short segments' partial results. */
    const size_t partials_count = (size_t)(slots * a.kv_heads);
    sz_flash_partials partials = {
        (float *)sz_cuda_scratch((size_t)(slots * a.kv_heads * width) * sizeof(float) + 1),
        (float2 *)sz_cuda_scratch(partials_count * sizeof(float2) + 1),
    };
    if (!partials.sums || !partials.weights) return -1;
    if (sz_flash_run(op, out->dtype, a, tasks, schedule->number[TASKS], list, out->data, NULL,
                     out->shape[0], partials) != 0)
        return -1;
    if (queries == 0) return 0;
    const unsigned threads = (unsigned)(a.dim + 31) / 32 * 32;
    SZ_FLOATING(out->dtype, T,
                SZ_LAUNCH(combine_kernel<T>, (unsigned)(queries * a.heads), threads, 0, combines,
                          partials, (int)width, a.heads, a.kv_heads, a.dim, (T *)out->data));
    return sz_cuda_launched(op);
}
