/* attention_keys.cu - makes the schedule of attention's dk and dv on the host: tiles of key rows,
 * the columns that see each tile, tasks of bounded size (attention_backward.cuh).
 * Leaves out: work on the device. */
#include "attention_backward.cuh"

enum {
    COLUMNS = SZ_ATTENTION_COLUMNS,
    MAX_PIECES = 1024,       /* about the most pieces (task, key head) to cut into ... */
    MIN_TASK_COLUMNS = 1024, /* ... but a piece has at least this many columns */
};

struct key_range {
    int64_t start, end;
};

struct key_tile {
    int64_t row, rows;
    int64_t first, ranges; /* its column ranges */
    int64_t columns;       /* total of these ranges */
};

/* What is built, and the arrays that it takes. */
struct key_builder {
    key_range *range;
    key_tile *tile;
    sz_key_columns *seen_by; /* column ranges by tile */
    int64_t ranges, tiles;
    /* The schedule. */
    sz_key_task *task;
    sz_key_columns *columns; /* column ranges by task */
    sz_key_combine *combine;
    int64_t tasks, column_ranges, combines, slots;
    int64_t covered; /* key rows in tiles */
};

static void builder_free(key_builder *b)
{
    free(b->range);
    free(b->tile);
    free(b->seen_by);
    free(b->task);
    free(b->columns);
    free(b->combine);
}

template <class Item> static bool allocate(Item **to, int64_t count)
{
    *to = (Item *)malloc((size_t)(count + 1) * sizeof(Item));
    return *to != NULL;
}

static int by_start(const void *x, const void *y)
{
    const key_range *a = (const key_range *)x;
    const key_range *b = (const key_range *)y;
    if (a->start != b->start) return a->start < b->start ? -1 : 1;
    return (a->end > b->end) - (a->end < b->end);
}

/* Returns a segment's own key rows, or its parent's; empty if the segment has no queries. */
static key_range range_of(const sz_segment_row &s, int parent)
{
    const int64_t start = parent ? s.p_start : s.k_start;
    int64_t n = parent ? s.p_len : s.k_len;
    if (s.q_len == 0) n = 0;
    return key_range{ start, start + n };
}

/* Sets b->range to the union of all segments' ranges: disjoint and sorted. Returns false if memory
 * is out. */
static bool find_ranges(key_builder *b, const sz_tensor *table)
{
    if (!allocate(&b->range, 2 * table->shape[0])) return false;
    key_range *range = b->range;
    int64_t n = 0;
    for (int64_t i = 0; i < table->shape[0]; i++)
        for (int parent = 0; parent < 2; parent++) {
            key_range r = range_of(sz_segment_rows(table)[i], parent);
            if (r.end > r.start) range[n++] = r;
        }
    qsort(range, (size_t)n, sizeof *range, by_start);
    /* Merge ranges that overlap. */
    for (int64_t i = 0; i < n; i++) {
        key_range *last = range + b->ranges - 1;
        if (b->ranges && range[i].start < last->end) {
            if (range[i].end > last->end) last->end = range[i].end;
        } else {
            range[b->ranges++] = range[i];
        }
    }
    return true;
}

/* Cuts the ranges into tiles and returns their number; tile may be NULL. */
static int64_t cut_tiles(const key_range *range, int64_t n, key_tile *tile)
{
    int64_t count = 0;
    for (int64_t i = 0; i < n; i++)
        for (int64_t row = range[i].start; row < range[i].end; row += SZ_KEY_ROWS, count++) {
            int64_t rows = range[i].end - row;
            if (rows > SZ_KEY_ROWS) rows = SZ_KEY_ROWS;
            if (tile) tile[count] = key_tile{ row, rows, 0, 0, 0 };
        }
    return count;
}

/* Returns the last tile that starts at or before this row (0 if none does). */
static int64_t tile_of(const key_tile *tile, int64_t tiles, int64_t row)
{
    int64_t low = 0;
    int64_t high = tiles - 1;
    while (low < high) {
        int64_t middle = (low + high + 1) / 2;
        if (tile[middle].row <= row) low = middle;
        else high = middle - 1;
    }
    return low;
}

/* Counts the column ranges of every tile; if to is not NULL, also writes them there, each tile's
 * from tile.first on, in the order of the table. */
static void visit_columns(const sz_attention_args &a, const sz_tensor *table, key_tile *tile,
                          int64_t tiles, sz_key_columns *to)
{
    for (int64_t i = 0; i < table->shape[0]; i++) {
        const sz_segment_row &s = sz_segment_rows(table)[i];
        for (int parent = 0; parent < 2; parent++) {
            const key_range r = range_of(s, parent);
            if (r.start >= r.end) continue;
            int64_t n = tile_of(tile, tiles, r.start);
            for (; n < tiles && tile[n].row < r.end; n++) {
                /* The first query that sees a key of the tile. */
                int64_t key = tile[n].row > r.start ? tile[n].row - r.start : 0;
                int64_t query = key - (s.k_len - (int64_t)s.q_len);
                if (parent || !a.causal || query < 0) query = 0;
                if (query >= s.q_len) continue;
                /* All columns from that query on see the tile. */
                sz_key_columns seen_by = { query * a.heads_per_kv,
                                           (int64_t)s.q_len * a.heads_per_kv, (int32_t)i, parent };
                if (to) to[tile[n].first + tile[n].ranges] = seen_by;
                tile[n].ranges++;
                tile[n].columns += seen_by.end - seen_by.first;
            }
        }
    }
}

/* Appends one task that takes up to `room` columns of the tile, from column `*used` of range `*at`
 * on, and moves both past what it took. */
static void add_task(key_builder *b, const key_tile &t, int64_t room, int64_t *at, int64_t *used)
{
    sz_key_task *task = b->task + b->tasks++;
    *task = sz_key_task{ b->column_ranges, (int32_t)t.row, (int32_t)t.rows, 0, -1 };
    for (int64_t left = room; left > 0 && *at < t.first + t.ranges;) {
        sz_key_columns range = b->seen_by[*at];
        range.first += *used;
        if (range.end - range.first > left) {
            /* The rest of this range goes to the next task. */
            range.end = range.first + left;
            *used += left;
        } else {
            (*at)++;
            *used = 0;
        }
        left -= range.end - range.first;
        b->columns[b->column_ranges++] = range;
        task->ranges++;
    }
}

/* Makes tasks of at most about max_columns columns of all tiles. */
static void cut_tasks(key_builder *b, int64_t max_columns)
{
    for (int64_t i = 0; i < b->tiles; i++) {
        const key_tile &t = b->tile[i];
        /* Equal tasks, each a multiple of a block's columns. */
        const bool is_large = t.columns > max_columns;
        const int64_t count = is_large ? (t.columns + max_columns - 1) / max_columns : 1;
        int64_t room = (t.columns + count - 1) / count;
        room = (room + COLUMNS - 1) / COLUMNS * COLUMNS;
        int64_t first_task = b->tasks;
        int64_t at = t.first;
        int64_t used = 0;
        do add_task(b, t, room, &at, &used);
        while (at < t.first + t.ranges);
        b->covered += t.rows;

        /* Several tasks leave partial sums, which are combined. */
        const int64_t tasks = b->tasks - first_task;
        if (tasks == 1) continue;
        b->combine[b->combines++] = sz_key_combine{ (int32_t)t.row, (int32_t)t.rows,
                                                    (int32_t)b->slots, (int32_t)tasks };
        for (; first_task < b->tasks; first_task++) b->task[first_task].slot = (int32_t)b->slots++;
    }
}

/* Returns false if memory is out; the caller frees the builder either way. */
static bool build(key_builder *b, const sz_attention_args &a, const sz_tensor *table)
{
    if (!find_ranges(b, table)) return false;
    b->tiles = cut_tiles(b->range, b->ranges, NULL);
    if (!allocate(&b->tile, b->tiles)) return false;
    cut_tiles(b->range, b->ranges, b->tile);

    /* Count each tile's column ranges, place them one after the other, then write them. */
    visit_columns(a, table, b->tile, b->tiles, NULL);
    int64_t ranges = 0;
    int64_t columns = 0;
    for (int64_t i = 0; i < b->tiles; i++) {
        key_tile *t = b->tile + i;
        t->first = ranges;
        ranges += t->ranges;
        columns += t->columns;
        t->ranges = 0;
        t->columns = 0;
    }
    if (!allocate(&b->seen_by, ranges)) return false;
    visit_columns(a, table, b->tile, b->tiles, b->seen_by);

    /* Bound the tasks' number, then cut. A cut can split a column range in two. */
    int64_t max_columns = columns * a.kv_heads / MAX_PIECES;
    if (max_columns < MIN_TASK_COLUMNS) max_columns = MIN_TASK_COLUMNS;
    int64_t tasks = 0;
    for (int64_t i = 0; i < b->tiles; i++) tasks += 1 + b->tile[i].columns / max_columns;
    if (!allocate(&b->task, tasks) || !allocate(&b->columns, ranges + tasks) ||
        !allocate(&b->combine, b->tiles))
        return false;
    cut_tasks(b, max_columns);
    return true;
}

/* Packs the schedule into one block of bytes for the device. Returns 0, or -1 with a message. */
static int pack(const char *op, const key_builder &b, sz_cuda_cache_entry *entry)
{
    /* Column ranges hold 8-byte numbers, so they must not follow the combines, which hold 4-byte
     * ones. */
    const size_t tasks = (size_t)b.tasks * sizeof *b.task;
    const size_t columns = (size_t)b.column_ranges * sizeof *b.columns;
    const size_t combines = (size_t)b.combines * sizeof *b.combine;
    char *bytes = (char *)malloc(tasks + columns + combines + 1);
    if (!bytes) return sz_fail("%s: out of memory", op);
    memcpy(bytes, b.task, tasks);
    memcpy(bytes + tasks, b.columns, columns);
    memcpy(bytes + tasks + columns, b.combine, combines);
    entry->number[SZ_KEY_TASKS] = b.tasks;
    entry->number[SZ_KEY_COMBINES] = b.combines;
    entry->number[SZ_KEY_SLOTS] = b.slots;
    entry->number[SZ_KEY_COVERED] = b.covered;
    entry->number[SZ_KEY_RANGES] = b.column_ranges;
    int rc = sz_cuda_cache_fill(entry, bytes, tasks + columns + combines);
    free(bytes);
    return rc;
}

const sz_cuda_cache_entry *sz_key_schedule(const char *op, const sz_attention_args &a,
                                           const sz_tensor *table)
{
    sz_cuda_cache_entry *entry = sz_cuda_cache_get(table, SZ_CACHE_BACKWARD, a.heads_per_kv,
                                                   a.kv_heads, a.causal);
    if (!entry || entry->device) return entry;
    key_builder b = {};
    int rc = build(&b, a, table) ? pack(op, b, entry) : sz_fail("%s: out of memory", op);
    builder_free(&b);
    return rc == 0 ? entry : NULL;
}
