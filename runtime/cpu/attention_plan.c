/* attention_plan.c - divides the backward pass of attention into chunks (see attention_plan.h).
 *
 * The steps: merge the key ranges of the segment table, connect those that one segment sees, list
 * the query blocks of each component, cut each component into chunks. Nothing is computed here.
 * The plan depends on the thread count, and on nothing else that can change between runs.
 */
#include "attention_plan.h"
#include <stdlib.h>

enum { CHUNK_KEYS = 1024 }; /* keys of a chunk that is cut for the cache */

static int by_start(const void *x, const void *y)
{
    const key_range *a = x;
    const key_range *b = y;
    if (a->start != b->start) return a->start < b->start ? -1 : 1;
    return (a->end > b->end) - (a->end < b->end);
}

/* The range that holds a key row; the row must be in one. */
static key_range *find_range(const attention_plan *p, int64_t row)
{
    int64_t lo = 0;
    int64_t hi = p->ranges - 1;
    while (lo < hi) {
        int64_t mid = (lo + hi + 1) / 2;
        if (p->range[mid].start <= row) lo = mid;
        else hi = mid - 1;
    }
    return p->range + lo;
}

/* ---- components ---- */

/* Collects the key ranges of the table, sorts them and merges those that overlap. */
static void merge_ranges(attention_plan *p)
{
    /* All ranges of the table. */
    int64_t n = 0;
    for (int64_t i = 0; i < p->a.segments->shape[0]; i++) {
        sz_segment_row s = sz_segment_get(p->a.segments, i);
        if (s.k_len > 0)
            p->range[n++] =
                (key_range){ .start = s.k_start, .end = s.k_start + s.k_len, .chunk = -1 };
        if (s.p_len > 0)
            p->range[n++] = (key_range){
                .start = s.p_start, .end = s.p_start + s.p_len, .chunk = -1, .parent = true
            };
    }
    qsort(p->range, (size_t)n, sizeof(key_range), by_start);

    /* Extend the last range by each that overlaps it. */
    for (int64_t i = 0; i < n; i++) {
        key_range *last = p->range + p->ranges - 1;
        if (p->ranges && p->range[i].start < last->end) {
            if (p->range[i].end > last->end) last->end = p->range[i].end;
            last->parent |= p->range[i].parent;
        } else {
            p->range[p->ranges++] = p->range[i];
        }
    }
}

/* Union-find over ranges: the root of range i, with the path halved on the way. */
static int64_t find_root(key_range *r, int64_t i)
{
    while (r[i].component != i) {
        r[i].component = r[r[i].component].component;
        i = r[i].component;
    }
    return i;
}

/* Connects the own and the parent range of each segment; the lower range becomes the root. */
static void connect_ranges(attention_plan *p)
{
    for (int64_t i = 0; i < p->ranges; i++) p->range[i].component = i;
    for (int64_t i = 0; i < p->a.segments->shape[0]; i++) {
        sz_segment_row s = sz_segment_get(p->a.segments, i);
        if (s.k_len <= 0 || s.p_len <= 0) continue;
        int64_t x = find_root(p->range, find_range(p, s.k_start) - p->range);
        int64_t y = find_root(p->range, find_range(p, s.p_start) - p->range);
        if (x > y) p->range[x].component = y;
        else p->range[y].component = x;
    }
    for (int64_t i = 0; i < p->ranges; i++) p->range[i].component = find_root(p->range, i);
}

/* Numbers the components by their first key row, which is their root's, and counts their keys. */
static void number_components(attention_plan *p)
{
    for (int64_t i = 0; i < p->ranges; i++) {
        key_range *r = p->range + i;
        if (r->component == i) {
            p->component[p->components] = (kv_component){ 0 };
            r->component = p->components++;
        } else {
            r->component = p->range[r->component].component;
        }
        kv_component *k = p->component + r->component;
        k->keys += r->end - r->start;
        if (r->parent) k->parent_keys += r->end - r->start;
    }
}

/* ---- blocks ---- */

/* Appends the query blocks of segment i to its component; if p->block is not yet divided among the
 * components, only counts them. */
static void add_blocks(attention_plan *p, int64_t i, bool count_only)
{
    sz_segment_row s = sz_segment_get(p->a.segments, i);
    if (s.k_len + s.p_len <= 0) return;
    key_range *range = find_range(p, s.k_len > 0 ? s.k_start : s.p_start);
    kv_component *k = p->component + range->component;

    for (int64_t q = 0; q < s.q_len; q += p->a.block, k->blocks++) {
        if (count_only) continue;
        int64_t n = sz_min64(s.q_len - q, p->a.block);
        int64_t own = sz_own_keys(&s, q + n - 1, p->a.causal);
        k->work += n * (s.p_len + own + 16);
        p->block[k->first_block + k->blocks] =
            (query_block){ .query = q, .n = n, .work = k->work, .segment = (int32_t)i };
    }
}

/* Lists each component's blocks in the order of the table. */
static void list_blocks(attention_plan *p)
{
    int64_t count = p->a.segments->shape[0];
    int64_t next = 0;

    for (int64_t i = 0; i < count; i++) add_blocks(p, i, true);
    for (int64_t i = 0; i < p->components; i++) {
        p->component[i].first_block = next;
        next += p->component[i].blocks;
        p->component[i].blocks = 0;
    }
    for (int64_t i = 0; i < count; i++) add_blocks(p, i, false);
}

/* ---- chunks ---- */

/* How many chunks each component needs so that the threads can share the tasks evenly. The tasks of
 * a single component are equal; otherwise there should be four for each thread. */
static int64_t chunks_for_threads(const attention_plan *p, int64_t threads)
{
    int64_t tasks = p->components * p->a.groups;
    if (threads == 1 || tasks >= 4 * threads) return 1;
    if (p->components == 1 && tasks % threads == 0) return 1;
    return (4 * threads + tasks - 1) / tasks;
}

/* How many chunks a component needs so that the keys of a chunk stay in the cache: for many windows
 * that share a few parent keys. A chunk has at least eight times as many keys of its own, so that
 * the sums of the shared keys stay small compared with dK and dV. */
static int64_t chunks_for_cache(const kv_component *k)
{
    int64_t own = k->keys - k->parent_keys;
    int64_t aim = 8 * k->parent_keys;
    if (aim < CHUNK_KEYS) aim = CHUNK_KEYS;
    return k->parent_keys > 0 && own > aim ? own / aim : 1;
}

/* The position of a key row within the chunk that is being made, which is the plan's last. */
static int64_t key_position(attention_plan *p, int64_t row)
{
    int64_t number = p->chunks - 1;
    work_chunk *chunk = p->chunk + number;
    key_range *r = find_range(p, row);

    /* The chunk meets this range for the first time: append it. */
    if (r->chunk != number) {
        r->chunk = number;
        r->base = chunk->keys;
        p->ref[p->refs++] = (range_ref){ r - p->range, r->base, r->chunks++ };
        chunk->refs++;
        chunk->keys += r->end - r->start;
    }
    return r->base + row - r->start;
}

/* Assigns each block to a chunk by its share of the component's work. least: chunks a component. */
static void make_chunks(attention_plan *p, int64_t least)
{
    for (int64_t i = 0; i < p->components; i++) {
        const kv_component *k = p->component + i;
        int64_t chunks = chunks_for_cache(k);
        int64_t previous = -1;
        if (chunks < least) chunks = least;

        /* A new chunk begins where the block's number changes. */
        for (int64_t j = k->first_block; j < k->first_block + k->blocks; j++) {
            query_block *t = p->block + j;
            sz_segment_row s = sz_segment_get(p->a.segments, t->segment);
            int64_t number = (t->work - 1) * chunks / k->work;
            if (number != previous)
                p->chunk[p->chunks++] = (work_chunk){ .first_block = j, .first_ref = p->refs };
            previous = number;
            p->chunk[p->chunks - 1].blocks++;
            if (s.p_len > 0) t->parent = key_position(p, s.p_start);
            if (s.k_len > 0) t->own = key_position(p, s.k_start);
        }
    }
}

/* ---- the plan ---- */

/* Places for the plan's lists: at most 2 ranges a segment, a chunk and 2 references a block. */
static int allocate_lists(attention_plan *p)
{
    /* Count the blocks. */
    int64_t count = p->a.segments->shape[0];
    int64_t blocks = 0;
    for (int64_t i = 0; i < count; i++) {
        sz_segment_row s = sz_segment_get(p->a.segments, i);
        blocks += sz_ceil_div(s.q_len, p->a.block);
        if (s.k_len + s.p_len > 0) p->queries += s.q_len;
    }

    int64_t ranges = 2 * count + 1;
    size_t range_bytes = (size_t)ranges * (sizeof(key_range) + sizeof(kv_component));
    size_t per_block = sizeof(query_block) + sizeof(work_chunk) + 2 * sizeof(range_ref);
    char *memory = sz_scratch(range_bytes + (size_t)blocks * per_block);
    if (!memory) return sz_fail("attention_backward: out of memory");
    p->range = (key_range *)memory;
    p->component = (kv_component *)(p->range + ranges);
    p->block = (query_block *)(p->component + ranges);
    p->chunk = (work_chunk *)(p->block + blocks);
    p->ref = (range_ref *)(p->chunk + blocks);
    return 0;
}

int sz_attention_plan(attention_plan *p, int threads)
{
    /* Divide the work. */
    p->ld = sz_round_up(p->a.dim, 16);
    if (allocate_lists(p)) return -1;
    merge_ranges(p);
    connect_ranges(p);
    number_components(p);
    list_blocks(p);
    make_chunks(p, chunks_for_threads(p, threads));

    /* The sizes of what the threads need. */
    for (int64_t i = 0; i < p->chunks; i++)
        if (p->chunk[i].keys > p->most_keys) p->most_keys = p->chunk[i].keys;
    for (int64_t i = 0; i < p->ranges; i++) {
        key_range *r = p->range + i;
        int64_t keys = r->end - r->start;
        if (r->chunks > 0) p->keys += keys;
        r->sums_start = p->sum_floats;
        if (r->chunks > 1) p->sum_floats += r->chunks * p->a.groups * 2 * keys * p->ld;
    }
    return 0;
}
