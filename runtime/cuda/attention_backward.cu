/* attention_backward.cu - gradients of attention.cu's ops: attention_backward (qkv, segments, out, lse, dout) -> dqkv, and
 * attention_cross_backward (q, k, v, segments, out, lse, dout) -> dq, dk, dv.
 *
 * Three passes, none with atomic sums, so that the same call gives the same bits:
 *   deltas       dout . out of every row and head
 *   query_side   64 columns (attention.cuh) against tiles of their keys -> dq
 *   key_side     64 key rows against tiles of the columns that see them -> dk, dv
 * Both sides compute scores and probabilities anew: 7 products a tile instead of the 5 of a kernel that adds to dq atomically.
 * The host cuts key rows into tiles that do not cross the ends of separate ranges, and lists for each which columns of which
 * segments see it, as own keys or as a parent's. A tile that many columns see (a prompt's, by its answers) is cut into parts,
 * whose f32 sums join_parts adds in order. How they are cut depends on the shapes alone.
 * Leaves out: what attention.cu leaves out. */
#include "attention.cuh"

enum { THREADS = SZ_ATTENTION_THREADS, COLUMNS = SZ_ATTENTION_COLUMNS, KEY_ROWS = 64,
       UNITS = 1024,            /* into about how many equal pieces (tile, key head) the key side is cut at most, */
       LEAST_COLUMNS = 1024 };  /* and the least columns of such a piece */

/* Columns [first, end) of a segment that see keys of a tile, as a parent's or as their own. */
struct key_entry { int64_t first, end; int32_t segment, parent; };
/* Key rows [row, row + rows) and entries that see them. slot: -1, or where the sums go for a join. */
struct key_part { int64_t first; int32_t row, rows, entries, slot; };
struct key_join { int32_t row, rows, slot, slots; };

template <typename T, int DIM> struct step_shape { enum { N = sizeof(T) == 4 ? (DIM > 96 ? 8 : 16) : DIM > 64 ? 32 : 64 }; };

/* lse in powers of two, so that exp2(score * scale * log2(e) - lse) is the probability. */
__device__ __forceinline__ float base2(float lse) { return lse * 1.44269504f; }

template <typename T>
static __global__ void deltas(const T *out, const T *dout, float *delta, int64_t rows, int heads, int dim)
{
    int64_t i = (int64_t)blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    if (i >= rows * heads) return;
    float sum = 0;
    for (int d = (int)threadIdx.x % 32; d < dim; d += 32) sum += sz_load(out + i * dim + d) * sz_load(dout + i * dim + d);
    sum = sz_warp_sum(sum);
    if (threadIdx.x % 32 == 0) delta[i % heads * rows + i / heads] = sum;
}

template <typename T, int DIM, int N>
static __global__ void __launch_bounds__(SZ_ATTENTION_THREADS)
query_side(sz_attention_args a, const sz_flash_task *tasks, const T *dout, const float *lse, const float *delta, int64_t rows, T *dq)
{
    enum { LD = sz_tile<T, DIM>::LD };
    SZ_SHARED_DYNAMIC(T, q);                        /* q, dout [64], twice k, v [N] */
    T *g = q + COLUMNS * LD, *stages = g + COLUMNS * LD;
    const sz_flash_task t = tasks[blockIdx.x / (unsigned)a.groups];
    const sz_segment_row s = a.segments[t.segment];
    const int group = (int)(blockIdx.x % (unsigned)a.groups), dim = a.dim, heads = a.heads;
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    const int64_t q_ld = a.q_ld, k_ld = a.k_ld;
    const sz_columns columns = sz_columns_at(a, s.q_start, group, t.column);
    auto limit_of = [=](int c) { return (int)(s.p_len + sz_own_keys(s, columns.row(c) - s.q_start, a.causal)); };
    const int end = limit_of(t.columns - 1), everyone = limit_of(0);

    const T *queries = (const T *)a.q, *keys = (const T *)a.k + (int64_t)group * dim, *values = (const T *)a.v + (int64_t)group * dim;
    auto fetch = [&](T *stage, int at) {
        sz_tile_fetch<T, DIM, N>(stage, a, keys, [=](int r) { return at + r < end ? keys + sz_key_row(s, at + r) * k_ld : (const T *)NULL; });
        sz_tile_fetch<T, DIM, N>(stage + N * LD, a, values, [=](int r) { return at + r < end ? values + sz_key_row(s, at + r) * k_ld : (const T *)NULL; });
    };
    sz_tile_fetch<T, DIM, COLUMNS>(q, a, queries, [=](int c) { return c < t.columns ? queries + columns.row(c) * q_ld + (int64_t)columns.head(c) * dim : (const T *)NULL; });
    sz_tile_fetch<T, DIM, COLUMNS>(g, a, dout, [=](int c) { return c < t.columns ? dout + (columns.row(c) * heads + columns.head(c)) * dim : (const T *)NULL; });
    if (end > 0) fetch(stages, 0);

    const float scale = base2(a.scale);
    const bool live = 16 * warp < t.columns;
    int limit[2];
    float l[2], dl[2], acc[DIM / 8][4];
    for (int h = 0; h < 2; h++) {
        int c = 16 * warp + lane / 4 + 8 * h;
        bool there = c < t.columns;
        int64_t at = columns.head(c) * rows + columns.row(c);
        limit[h] = there ? limit_of(c) : 0;
        l[h] = there ? base2(lse[at]) : 0.0f;
        dl[h] = there ? delta[at] : 0.0f;
    }
#pragma unroll
    for (int d = 0; d < DIM / 8; d++)
        for (int i = 0; i < 4; i++) acc[d][i] = 0;

    for (int at = 0, turn = 0; at < end; at += N, turn ^= 1) {
        const T *k = stages + turn * 2 * N * LD, *v = k + N * LD;
        sz_copy_async_wait();
        __syncthreads();                            /* this tile is here, the one before is used up */
        if (at + N < end) fetch(stages + (turn ^ 1) * 2 * N * LD, at + N);
        if (!live) continue;
        float p[N / 8][4], ds[N / 8][4];
        sz_tile_dot<DIM, N>(p, q + 16 * warp * LD, k);
        sz_tile_dot<DIM, N>(ds, g + 16 * warp * LD, v);
        const bool masked = at + N > everyone;
#pragma unroll
        for (int n = 0; n < N / 8; n++)
            for (int i = 0; i < 4; i++) {
                float e = exp2f(p[n][i] * scale - l[i / 2]);
                if (masked && at + 8 * n + 2 * (lane % 4) + i % 2 >= limit[i / 2]) e = 0;
                ds[n][i] = e * (ds[n][i] - dl[i / 2]);
            }
        sz_tile_add<DIM, N>(acc, ds, k);
    }
    if (!(end > 0)) {                               /* q has not been waited for */
        sz_copy_async_wait();
        __syncthreads();
    }
    if (!live) return;
    const float factor[2] = { a.scale, a.scale };
    sz_tile_write<T, DIM>(q + 16 * warp * LD, acc, factor, a, a.whole16, [=](int r) {
        int c = 16 * warp + r;
        return c < t.columns ? dq + columns.row(c) * q_ld + (int64_t)columns.head(c) * dim : (T *)NULL;
    });
}

/* parts f32 [slot, group, dk and dv, 64, DIM] */
template <typename T, int DIM, int N>
static __global__ void __launch_bounds__(SZ_ATTENTION_THREADS)
key_side(sz_attention_args a, const key_part *parts, const key_entry *entries, const T *dout, const float *lse, const float *delta, int64_t rows,
         T *dk, T *dv, float *sums)
{
    enum { LD = sz_tile<T, DIM>::LD };
    SZ_SHARED_DYNAMIC(T, k);                        /* k, v [64], twice q, dout [N] */
    T *v = k + KEY_ROWS * LD, *stages = v + KEY_ROWS * LD;
    __shared__ float lse_of[2][N], delta_of[2][N];
    __shared__ int32_t limit_of[2][N];              /* keys of the tile below it are seen */
    const key_part t = parts[blockIdx.x / (unsigned)a.groups];
    const int group = (int)(blockIdx.x % (unsigned)a.groups), dim = a.dim, heads = a.heads;
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    const int64_t q_ld = a.q_ld, k_ld = a.k_ld;

    const T *queries = (const T *)a.q, *keys = (const T *)a.k + (int64_t)group * dim, *values = (const T *)a.v + (int64_t)group * dim;
    auto fetch = [&](int turn, const sz_segment_row &s, bool parent, const sz_columns &columns, int left) {
        T *stage = stages + turn * 2 * N * LD;
        sz_tile_fetch<T, DIM, N>(stage, a, queries, [=](int c) { return c < left ? queries + columns.row(c) * q_ld + (int64_t)columns.head(c) * dim : (const T *)NULL; });
        sz_tile_fetch<T, DIM, N>(stage + N * LD, a, dout, [=](int c) { return c < left ? dout + (columns.row(c) * heads + columns.head(c)) * dim : (const T *)NULL; });
        if (threadIdx.x < N) {
            int c = (int)threadIdx.x;
            bool there = c < left;
            int64_t at = columns.head(c) * rows + columns.row(c);
            int64_t limit = parent ? (int64_t)s.p_start + s.p_len : s.k_start + sz_own_keys(s, columns.row(c) - s.q_start, a.causal);
            lse_of[turn][c] = there ? base2(lse[at]) : 0.0f;
            delta_of[turn][c] = there ? delta[at] : 0.0f;
            limit_of[turn][c] = there ? (int32_t)min(limit - t.row, (int64_t)t.rows) : INT32_MIN;
        }
    };
    sz_tile_fetch<T, DIM, KEY_ROWS>(k, a, keys, [=](int r) { return r < t.rows ? keys + (t.row + r) * k_ld : (const T *)NULL; });
    sz_tile_fetch<T, DIM, KEY_ROWS>(v, a, values, [=](int r) { return r < t.rows ? values + (t.row + r) * k_ld : (const T *)NULL; });

    /* The step to be fetched next: columns [column, ..) of entry `at`. */
    int64_t at = t.first, column = 0, end = 0;
    const int64_t last = t.first + t.entries;
    sz_segment_row s = {};
    sz_columns columns = {};
    bool parent = false;
    auto open = [&] {
        if (at >= last) return;
        const key_entry e = entries[at];
        s = a.segments[e.segment];
        parent = e.parent;
        column = e.first;
        end = e.end;
        columns = sz_columns_at(a, s.q_start, group, column);
    };
    open();
    int left = (int)min(end - column, (int64_t)N);
    if (at < last) fetch(0, s, parent, columns, left);
    const float scale = base2(a.scale);
    float key_sums[DIM / 8][4], value_sums[DIM / 8][4];
#pragma unroll
    for (int d = 0; d < DIM / 8; d++)
        for (int i = 0; i < 4; i++) key_sums[d][i] = value_sums[d][i] = 0;

    for (int turn = 0; at < last; turn ^= 1) {
        const int from = (parent ? s.p_start : s.k_start) - t.row, nearest = left - 1;
        sz_copy_async_wait();
        __syncthreads();                            /* this step's columns are here, those before are used up */
        column += N;
        columns.advance(N);
        if (column >= end) {
            at++;
            open();
        }
        left = (int)min(end - column, (int64_t)N);
        if (at < last) fetch(turn ^ 1, s, parent, columns, left);
        if (limit_of[turn][nearest] <= 16 * warp || from >= 16 * warp + 16) continue;
        const T *q = stages + turn * 2 * N * LD, *g = q + N * LD;
        float p[N / 8][4], ds[N / 8][4];
        sz_tile_dot<DIM, N>(p, k + 16 * warp * LD, q);
        sz_tile_dot<DIM, N>(ds, v + 16 * warp * LD, g);
#pragma unroll
        for (int n = 0; n < N / 8; n++)
            for (int i = 0; i < 4; i++) {
                int c = 8 * n + 2 * (lane % 4) + i % 2, key = 16 * warp + lane / 4 + i / 2 * 8;
                float e = exp2f(p[n][i] * scale - lse_of[turn][c]);
                p[n][i] = key >= from && key < limit_of[turn][c] ? e : 0.0f;
                ds[n][i] = p[n][i] * (ds[n][i] - delta_of[turn][c]);
            }
        sz_tile_add<DIM, N>(value_sums, p, g);
        sz_tile_add<DIM, N>(key_sums, ds, q);
    }
    sz_copy_async_wait();                               /* keys, if nobody sees them */
    __syncthreads();
    if (16 * warp >= t.rows) return;
    if (t.slot >= 0) {
        float *to = sums + ((int64_t)t.slot * a.groups + group) * 2 * KEY_ROWS * DIM + (16 * warp + lane / 4) * DIM + 2 * (lane % 4);
        for (int h = 0; h < 2; h++)
#pragma unroll
            for (int d = 0; d < DIM / 8; d++) {
                *(float2 *)(to + 8 * h * DIM + 8 * d) = make_float2(key_sums[d][2 * h], key_sums[d][2 * h + 1]);
                *(float2 *)(to + (KEY_ROWS + 8 * h) * DIM + 8 * d) = make_float2(value_sums[d][2 * h], value_sums[d][2 * h + 1]);
            }
        return;
    }
    const float factor[2] = { a.scale, a.scale }, one[2] = { 1, 1 };
    auto place = [=](T *to, int r) { return 16 * warp + r < t.rows ? to + (t.row + 16 * warp + r) * k_ld + (int64_t)group * dim : (T *)NULL; };
    sz_tile_write<T, DIM>(k + 16 * warp * LD, key_sums, factor, a, a.whole16, [=](int r) { return place(dk, r); });
    sz_tile_write<T, DIM>(v + 16 * warp * LD, value_sums, one, a, a.whole16, [=](int r) { return place(dv, r); });
}

template <typename T>
static __global__ void join_parts(sz_attention_args a, const key_join *joins, const float *sums, int width, T *dk, T *dv)
{
    const key_join j = joins[blockIdx.x / (unsigned)a.groups];
    const int group = (int)(blockIdx.x % (unsigned)a.groups);
    const int64_t size = 2 * KEY_ROWS * width, apart = a.groups * size;
    const float *from = sums + ((int64_t)j.slot * a.groups + group) * size;
    for (int i = (int)threadIdx.x; i < 2 * KEY_ROWS * a.dim; i += (int)blockDim.x) {
        int r = i / a.dim, d = i % a.dim, row = r % KEY_ROWS;
        if (row >= j.rows) continue;
        float sum = 0;
        for (int x = 0; x < j.slots; x++) sum += from[x * apart + (int64_t)r * width + d];
        int64_t to = (int64_t)(j.row + row) * a.k_ld + (int64_t)group * a.dim + d;
        if (r < KEY_ROWS) sz_store(dk + to, sum * a.scale);
        else sz_store(dv + to, sum);
    }
}

/* ---- the host's plan of the key side ---- */
struct key_range { int64_t start, end; };
struct key_tile { int64_t row, rows, entries, columns, first; };
struct key_plan {
    key_part *part;
    key_entry *entry;
    key_join *join;
    int64_t parts, entries, joins, slots, covered;      /* covered: key rows that are in some tile */
};

static int by_start(const void *x, const void *y)
{
    const key_range *a = (const key_range *)x, *b = (const key_range *)y;
    if (a->start != b->start) return a->start < b->start ? -1 : 1;
    return (a->end > b->end) - (a->end < b->end);
}

/* Own range of a segment, or its parent's; empty if it has no queries. */
static key_range range_of(const sz_segment_row &s, int parent)
{
    int64_t start = parent ? s.p_start : s.k_start, n = s.q_len == 0 ? 0 : parent ? s.p_len : s.k_len;
    return key_range{ start, start + n };
}

/* Cuts the union of all ranges into tiles; to may be NULL. Returns how many. */
static int64_t cut_tiles(const key_range *range, int64_t n, key_tile *to)
{
    int64_t count = 0;
    for (int64_t i = 0; i < n; i++)
        for (int64_t row = range[i].start; row < range[i].end; row += KEY_ROWS, count++)
            if (to) to[count] = key_tile{ row, range[i].end - row < KEY_ROWS ? range[i].end - row : (int64_t)KEY_ROWS, 0, 0, 0 };
    return count;
}

/* Counts the entries of every tile, or writes them to `to` in the table's order. */
static void visit(const sz_attention_args &a, const sz_tensor *table, key_tile *tile, int64_t tiles, key_entry *to)
{
    for (int64_t i = 0; i < table->shape[0]; i++) {
        const sz_segment_row &s = sz_segment_rows(table)[i];
        for (int parent = 0; parent < 2; parent++) {
            key_range r = range_of(s, parent);
            if (r.start >= r.end) continue;
            int64_t lo = 0, hi = tiles - 1;
            while (lo < hi) {
                int64_t mid = (lo + hi + 1) / 2;
                if (tile[mid].row <= r.start) lo = mid; else hi = mid - 1;
            }
            for (; lo < tiles && tile[lo].row < r.end; lo++) {
                int64_t key = tile[lo].row > r.start ? tile[lo].row - r.start : 0, query = key - (s.k_len - (int64_t)s.q_len);
                if (parent || !a.causal || query < 0) query = 0;
                if (query >= s.q_len) continue;
                key_entry e = { query * a.share, (int64_t)s.q_len * a.share, (int32_t)i, parent };
                if (to) to[tile[lo].first + tile[lo].entries] = e;
                tile[lo].entries++;
                tile[lo].columns += e.end - e.first;
            }
        }
    }
}

/* Gives the entries of all tiles to parts of at most `most` columns. */
static void cut_parts(const key_tile *tile, int64_t tiles, const key_entry *entry, int64_t most, key_plan *p)
{
    for (int64_t i = 0; i < tiles; i++) {
        const key_tile &t = tile[i];
        int64_t parts = t.columns > most ? (t.columns + most - 1) / most : 1, room = (t.columns + parts - 1) / parts, at = t.first, used = 0;
        room = (room + COLUMNS - 1) / COLUMNS * COLUMNS;
        int64_t first_part = p->parts;
        do {
            key_part *part = p->part + p->parts++;
            *part = key_part{ p->entries, (int32_t)t.row, (int32_t)t.rows, 0, -1 };
            for (int64_t left = room; left > 0 && at < t.first + t.entries;) {
                key_entry e = entry[at];
                e.first += used;
                if (e.end - e.first > left) {
                    e.end = e.first + left;
                    used += left;
                } else {
                    at++;
                    used = 0;
                }
                left -= e.end - e.first;
                p->entry[p->entries++] = e;
                part->entries++;
            }
        } while (at < t.first + t.entries);
        p->covered += t.rows;
        if (p->parts - first_part == 1) continue;
        p->join[p->joins++] = key_join{ (int32_t)t.row, (int32_t)t.rows, (int32_t)p->slots, (int32_t)(p->parts - first_part) };
        for (; first_part < p->parts; first_part++) p->part[first_part].slot = (int32_t)p->slots++;
    }
}

static void plan_drop(key_plan *p)
{
    free(p->part);
    free(p->entry);
    free(p->join);
}

/* 0, or -1 without memory. */
static int plan_keys(const sz_attention_args &a, const sz_tensor *table, key_plan *p)
{
    int64_t count = table->shape[0], n = 0, ranges = 0, tiles, entries = 0, columns = 0, parts = 0, most;
    key_range *range = (key_range *)malloc((size_t)(2 * count + 1) * sizeof(key_range));
    key_tile *tile = NULL;
    key_entry *entry = NULL;
    int rc = -1;
    if (!range) goto done;
    for (int64_t i = 0; i < count; i++)
        for (int parent = 0; parent < 2; parent++) {
            key_range r = range_of(sz_segment_rows(table)[i], parent);
            if (r.end > r.start) range[n++] = r;
        }
    qsort(range, (size_t)n, sizeof *range, by_start);
    for (int64_t i = 0; i < n; i++) {
        if (ranges && range[i].start < range[ranges - 1].end) {
            if (range[i].end > range[ranges - 1].end) range[ranges - 1].end = range[i].end;
        } else {
            range[ranges++] = range[i];
        }
    }
    tiles = cut_tiles(range, ranges, NULL);
    if (!(tile = (key_tile *)malloc((size_t)(tiles + 1) * sizeof *tile))) goto done;
    cut_tiles(range, ranges, tile);
    visit(a, table, tile, tiles, NULL);
    for (int64_t i = 0; i < tiles; i++) {
        tile[i].first = entries;
        entries += tile[i].entries;
        columns += tile[i].columns;
        tile[i].entries = tile[i].columns = 0;
    }
    if (!(entry = (key_entry *)malloc((size_t)(entries + 1) * sizeof *entry))) goto done;
    visit(a, table, tile, tiles, entry);
    most = columns * a.groups / UNITS;
    if (most < LEAST_COLUMNS) most = LEAST_COLUMNS;
    for (int64_t i = 0; i < tiles; i++) parts += 1 + tile[i].columns / most;
    p->part = (key_part *)malloc((size_t)(parts + 1) * sizeof *p->part);
    p->entry = (key_entry *)malloc((size_t)(entries + parts + 1) * sizeof *p->entry);
    p->join = (key_join *)malloc((size_t)(tiles + 1) * sizeof *p->join);
    if (!p->part || !p->entry || !p->join) goto done;
    cut_parts(tile, tiles, entry, most, p);
    rc = 0;
done:
    free(range);
    free(tile);
    free(entry);
    return rc;
}

/* ---- both ops ---- */
struct backward_call {
    const char *op;
    sz_attention_args a;
    const sz_tensor *out, *lse, *dout;
    void *dq, *dk, *dv;
    const sz_flash_task *tasks;
    const key_part *part;
    const key_entry *entry;
    const key_join *join;
    float *delta, *sums;
    int64_t count, parts, joins;
};

template <typename T, int DIM> static int launch(const backward_call &b)
{
    enum { N = step_shape<T, DIM>::N };
    size_t bytes = (size_t)(2 * COLUMNS + 4 * N) * sz_tile<T, DIM>::LD * sizeof(T);
    const sz_attention_args &a = b.a;
    const T *out = (const T *)b.out->data, *dout = (const T *)b.dout->data;
    const float *lse = sz_f32(b.lse);
    int64_t rows = b.lse->numel / a.heads;
    auto queries = query_side<T, DIM, N>;
    auto keys = key_side<T, DIM, N>;
    if (sz_cuda_check(cudaFuncSetAttribute(queries, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes), b.op) != 0
        || sz_cuda_check(cudaFuncSetAttribute(keys, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes), b.op) != 0)
        return -1;
    SZ_LAUNCH(deltas<T>, (unsigned)((rows * a.heads + THREADS / 32 - 1) / (THREADS / 32)), THREADS, 0, out, dout, b.delta, rows, a.heads, a.dim);
    SZ_LAUNCH(queries, (unsigned)(b.count * a.groups), THREADS, bytes, a, b.tasks, dout, lse, b.delta, rows, (T *)b.dq);
    if (b.parts) SZ_LAUNCH(keys, (unsigned)(b.parts * a.groups), THREADS, bytes, a, b.part, b.entry, dout, lse, b.delta, rows, (T *)b.dk, (T *)b.dv, b.sums);
    if (b.joins) SZ_LAUNCH(join_parts<T>, (unsigned)(b.joins * a.groups), 256, 0, a, b.join, b.sums, (int)DIM, (T *)b.dk, (T *)b.dv);
    return sz_cuda_launched(b.op);
}

/* The key side's plan on the device: parts [number 0], entries [4], joins [1]; [2] slots, [3] key rows that are covered. */
static const sz_cuda_cache_entry *keys_plan(const char *op, const sz_attention_args &a, const sz_tensor *table)
{
    sz_cuda_cache_entry *to = sz_cuda_cache_get(table, SZ_PLAN_BACKWARD, a.share, a.groups, a.causal);
    if (!to || to->device) return to;
    key_plan p = {};
    int rc = plan_keys(a, table, &p);
    const size_t part = (size_t)p.parts * sizeof *p.part, join = (size_t)p.joins * sizeof *p.join, entry = (size_t)p.entries * sizeof *p.entry;
    char *bytes = rc == 0 ? (char *)malloc(part + join + entry + 1) : NULL;
    if (!bytes) rc = sz_fail("%s: out of memory", op);
    else {
        /* Entries have 8-byte numbers: they come before what is a multiple of 4. */
        memcpy(bytes, p.part, part);
        memcpy(bytes + part, p.entry, entry);
        memcpy(bytes + part + entry, p.join, join);
        to->number[0] = p.parts, to->number[1] = p.joins, to->number[2] = p.slots, to->number[3] = p.covered, to->number[4] = p.entries;
        rc = sz_cuda_cache_fill(to, bytes, part + join + entry);
    }
    free(bytes);
    plan_drop(&p);
    return rc == 0 ? to : NULL;
}

static int backward(const sz_call *c, bool packed, const char *op)
{
    const sz_tensor *q = c->in[0], *k = packed ? q : c->in[1], *table = c->in[packed ? 1 : 3];
    int first = packed ? 2 : 4;
    backward_call b = {};
    b.op = op;
    if (sz_attention_from(c, packed, op, &b.a) != 0) return -1;
    b.out = c->in[first], b.lse = c->in[first + 1], b.dout = c->in[first + 2];
    b.a.whole16 = b.a.whole16 && sz_on16(b.dout->data);
    char *to = (char *)c->out[0]->data;
    int64_t size = (int64_t)sz_dtype_size(q->dtype);
    b.dq = to;
    b.dk = packed ? to + (int64_t)b.a.heads * b.a.dim * size : (char *)c->out[1]->data;
    b.dv = packed ? to + (int64_t)(b.a.heads + b.a.groups) * b.a.dim * size : (char *)c->out[2]->data;

    const sz_cuda_cache_entry *tasks = sz_flash_plan(op, table, b.a.share), *plan = tasks ? keys_plan(op, b.a, table) : NULL;
    if (!plan) return -1;
    b.count = tasks->number[0], b.parts = plan->number[0], b.joins = plan->number[1];
    const int64_t slots = plan->number[2], covered = plan->number[3], blocks = (b.count > b.parts ? b.count : b.parts) * b.a.groups;
    const bool rest = sz_segment_queries(table) < q->shape[0];
    if ((rest || (packed && covered < k->shape[0])) && sz_cuda_fill(c->out[0]->data, 0, sz_bytes(c->out[0])) != 0) return -1;
    if (!packed && covered < k->shape[0]
        && (sz_cuda_fill(c->out[1]->data, 0, sz_bytes(c->out[1])) != 0 || sz_cuda_fill(c->out[2]->data, 0, sz_bytes(c->out[2])) != 0))
        return -1;
    if (b.count == 0) return 0;
    if (blocks > INT32_MAX || b.lse->numel / (THREADS / 32) >= INT32_MAX) return sz_fail("%s: %lld blocks are more than one launch takes", op, (long long)blocks);
    b.tasks = (const sz_flash_task *)tasks->device;
    b.part = (const key_part *)plan->device;
    b.entry = (const key_entry *)(b.part + b.parts);
    b.join = (const key_join *)(b.entry + plan->number[4]);
    b.delta = (float *)sz_cuda_scratch(sz_bytes(b.lse));
    b.sums = (float *)sz_cuda_scratch((size_t)(slots * b.a.groups) * 2 * KEY_ROWS * (size_t)sz_flash_width(q->dtype, b.a.dim) * sizeof(float) + 1);
    if (!b.delta || !b.sums) return -1;
    int rc = -1;
    SZ_ATTENTION_TILE(q->dtype, b.a.dim, T, DIM, rc = launch<T, DIM>(b));
    return rc;
}

extern "C" int sz_cuda_attention_backward(const sz_call *c) { return backward(c, true, "attention_backward"); }
extern "C" int sz_cuda_attention_cross_backward(const sz_call *c) { return backward(c, false, "attention_cross_backward"); }
