/* attention_backward.cu - gradients of attention.cu's ops: attention_backward (qkv, segments, out,
 * lse, dout) -> dqkv, and attention_cross_backward (q, k, v, segments, out, lse, dout) -> dq, dk,
 * dv.
 *
 * There are three passes, none with atomic sums, so that the same call gives the same bits:
 *   deltas_kernel   delta = dout . out of every row and head
 *   dq_kernel       64 columns (attention.cuh) against tiles of their keys -> dq
 *   dkv_kernel      64 key rows against tiles of the columns that see them -> dk, dv
 * dq_kernel and dkv_kernel both recompute scores and probabilities: 7 products for each tile
 * instead of the 5 of a kernel that adds to dq atomically. attention_keys.cu makes the schedule of
 * dkv_kernel on the host; combine_kernel adds the partial sums of key tiles that were cut into
 * several tasks. Leaves out: what attention.cu leaves out. */
#include "attention_backward.cuh"
#include "attention_tile.cuh"

enum { THREADS = SZ_ATTENTION_THREADS, COLUMNS = SZ_ATTENTION_COLUMNS, KEY_ROWS = SZ_KEY_ROWS };

/* Keys (dq_kernel) or columns (dkv_kernel) in a tile, bounded by shared memory. */
template <typename T, int DIM> struct tile_shape {
    enum {
        F32_N = DIM > 96 ? 8 : 16,
        BF16_N = DIM > 64 ? 32 : 64,
        N = sizeof(T) == 4 ? (int)F32_N : (int)BF16_N,
    };
};

/* Converts to units of log2, so that exp2(score * base2(scale) - base2(lse)) is the probability. */
__device__ __forceinline__ float base2(float natural) { return natural * 1.44269504f; }

/* ---- delta [heads, rows] = dout . out; one warp for each row and head ---- */
template <typename T> static __global__ void deltas_kernel(const T *out, const T *dout,
                                                           float *delta, int64_t rows, int heads,
                                                           int dim)
{
    int64_t i = (int64_t)blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    if (i >= rows * heads) return;
    float sum = 0;
    for (int d = (int)threadIdx.x % 32; d < dim; d += 32)
        sum += sz_load(out + i * dim + d) * sz_load(dout + i * dim + d);
    sum = sz_warp_sum(sum);
    if (threadIdx.x % 32 == 0) delta[i % heads * rows + i / heads] = sum;
}

/* Starts loading q, and behind it dout, of the first `count` of ROWS columns; the rest become
 * zeros. */
template <typename T, int DIM, int ROWS>
static __device__ __forceinline__ void load_columns(T *tile, const sz_attention_args &a,
                                                    const T *dout, const sz_columns &columns,
                                                    int count)
{
    enum { LD = sz_tile<T, DIM>::LD };
    const T *queries = (const T *)a.q;
    const int dim = a.dim;
    const int heads = a.heads;
    const int64_t q_ld = a.q_ld;
    sz_tile_load<T, DIM, ROWS>(tile, a, queries, [=](int c) {
        return c < count ? queries + columns.row(c) * q_ld + (int64_t)columns.head(c) * dim
                         : (const T *)NULL;
    });
    sz_tile_load<T, DIM, ROWS>(tile + ROWS * LD, a, dout, [=](int c) {
        return c < count ? dout + (columns.row(c) * heads + columns.head(c)) * dim
                         : (const T *)NULL;
    });
}

/* ---- dq ---- */
/* What a lane knows of its two columns. A column past the end has limit 0. */
struct lane_columns {
    int limit[2];
    float lse[2]; /* in units of log2 */
    float delta[2];
};

/* Turns scores p and products ds = dout . v of keys [first, first + N) into gradients of the
 * scores, in ds. */
template <int N> static __device__ __forceinline__ void score_gradients(const float (&p)[N / 8][4],
                                                                        float (&ds)[N / 8][4],
                                                                        float scale, int first,
                                                                        int lowest_limit,
                                                                        const lane_columns &own)
{
    const int lane = (int)threadIdx.x % 32;
    const bool masked = first + N > lowest_limit;
#pragma unroll
    for (int n = 0; n < N / 8; n++)
        for (int i = 0; i < 4; i++) {
            float e = exp2f(p[n][i] * scale - own.lse[i / 2]);
            if (masked && first + 8 * n + 2 * (lane % 4) + i % 2 >= own.limit[i / 2]) e = 0;
            ds[n][i] = e * (ds[n][i] - own.delta[i / 2]);
        }
}

/* Reads lse and delta of the column at this place; 0 if it is not valid. */
static __device__ __forceinline__ void load_statistics(lane_columns &own, int h, bool valid,
                                                       int64_t place, const float *lse,
                                                       const float *delta)
{
    own.lse[h] = valid ? base2(lse[place]) : 0.0f;
    own.delta[h] = valid ? delta[place] : 0.0f;
}

/* Writes the warp's 16 columns of dq. */
template <typename T, int DIM>
static __device__ __forceinline__ void write_dq(T *tile, const float (&acc)[DIM / 8][4],
                                                const sz_attention_args &a, const sz_flash_task &t,
                                                const sz_columns &columns, T *dq)
{
    const int warp = (int)threadIdx.x / 32;
    const int dim = a.dim;
    const int64_t q_ld = a.q_ld;
    const float factor[2] = { a.scale, a.scale };
    sz_tile_write<T, DIM>(tile, acc, factor, a, a.aligned16, [=](int r) {
        int c = 16 * warp + r;
        return c < t.columns ? dq + columns.row(c) * q_ld + (int64_t)columns.head(c) * dim
                             : (T *)NULL;
    });
}

/* One block for each task (attention.cuh) and key head. */
template <typename T, int DIM, int N> static __global__ void __launch_bounds__(SZ_ATTENTION_THREADS)
    dq_kernel(sz_attention_args a, const sz_flash_task *tasks, const T *dout, const float *lse,
              const float *delta, int64_t rows, T *dq)
{
    enum { LD = sz_tile<T, DIM>::LD };
    SZ_SHARED_DYNAMIC(T, q); /* q and dout [64]; two stages of k and v [N] */
    T *g = q + COLUMNS * LD;
    T *stages = g + COLUMNS * LD;
    const sz_flash_task t = tasks[blockIdx.x / (unsigned)a.kv_heads];
    const sz_segment_row s = a.segments[t.segment];
    const int kv_head = (int)(blockIdx.x % (unsigned)a.kv_heads);
    const int lane = (int)threadIdx.x % 32;
    const int warp = (int)threadIdx.x / 32;
    const sz_columns columns = sz_columns_at(a, s.q_start, kv_head, t.column);
    auto limit_of = [=](int c) {
        return (int)(s.p_len + sz_own_keys(s, columns.row(c) - s.q_start, a.causal));
    };
    const int end = limit_of(t.columns - 1);
    const int lowest_limit = limit_of(0);

    /* Start loading the columns and the first tile of keys and values. */
    const T *keys = (const T *)a.k + (int64_t)kv_head * a.dim;
    const T *values = (const T *)a.v + (int64_t)kv_head * a.dim;
    auto load = [&](T *stage, int first) {
        sz_load_key_rows<T, DIM, N>(stage, a, keys, s, first, end);
        sz_load_key_rows<T, DIM, N>(stage + N * LD, a, values, s, first, end);
    };
    load_columns<T, DIM, COLUMNS>(q, a, dout, columns, t.columns);
    if (end > 0) load(stages, 0);

    /* This lane's two columns. */
    const float scale = base2(a.scale);
    const bool active = 16 * warp < t.columns;
    lane_columns own;
    float acc[DIM / 8][4];
    for (int h = 0; h < 2; h++) {
        int c = 16 * warp + lane / 4 + 8 * h;
        const bool valid = c < t.columns;
        own.limit[h] = valid ? limit_of(c) : 0;
        load_statistics(own, h, valid, columns.head(c) * rows + columns.row(c), lse, delta);
    }
    sz_tile_clear(acc);

    /* Use one stage while the next tile arrives in the other. */
    for (int first = 0, turn = 0; first < end; first += N, turn ^= 1) {
        const T *k = stages + turn * 2 * N * LD;
        const T *v = k + N * LD;
        sz_copy_async_wait();
        __syncthreads(); /* this tile is here; the one before has been read */
        if (first + N < end) load(stages + (turn ^ 1) * 2 * N * LD, first + N);
        if (!active) continue;
        float p[N / 8][4], ds[N / 8][4];
        sz_tile_dot<DIM, N>(p, q + 16 * warp * LD, k);
        sz_tile_dot<DIM, N>(ds, g + 16 * warp * LD, v);
        score_gradients<N>(p, ds, scale, first, lowest_limit, own);
        sz_tile_accumulate<DIM, N>(acc, ds, k);
    }
    if (!(end > 0)) { /* nothing has waited for q yet */
        sz_copy_async_wait();
        __syncthreads();
    }
    if (!active) return;
    write_dq<T, DIM>(q + 16 * warp * LD, acc, a, t, columns, dq);
}

/* ---- dk and dv ---- */
/* lse (in units of log2), delta and limit of a tile's columns, for both stages. A column sees the
 * key rows below its limit, counted from the tile's first row. */
template <int N> struct staged_columns {
    float lse[2][N], delta[2][N];
    int32_t limit[2][N];
};

/* Walks the column ranges of a task, N columns at a time. */
struct column_cursor {
    int64_t range, last; /* the current range; the end of the task's ranges */
    int64_t column, end; /* what is left of the current range */
    sz_segment_row s;
    sz_columns columns;
    bool parent;

    __device__ __forceinline__ bool more() const { return range < last; }
    __device__ __forceinline__ void open(const sz_attention_args &a, const sz_key_columns *ranges,
                                         int kv_head)
    {
        if (range >= last) return;
        const sz_key_columns r = ranges[range];
        s = a.segments[r.segment];
        parent = r.parent;
        column = r.first;
        end = r.end;
        columns = sz_columns_at(a, s.q_start, kv_head, column);
    }
    __device__ __forceinline__ void advance(int n, const sz_attention_args &a,
                                            const sz_key_columns *ranges, int kv_head)
    {
        column += n;
        columns.advance(n);
        if (column < end) return;
        range++;
        open(a, ranges, kv_head);
    }
    __device__ __forceinline__ int count(int most) const
    {
        return (int)min(end - column, (int64_t)most);
    }
};

/* Starts loading the cursor's next `count` columns into stage `turn`. */
template <typename T, int DIM, int N>
static __device__ __forceinline__ void load_stage(T *stages, staged_columns<N> &staged, int turn,
                                                  const sz_attention_args &a, const sz_key_task &t,
                                                  const column_cursor &cursor, int count,
                                                  const T *dout, const float *lse,
                                                  const float *delta, int64_t rows)
{
    enum { LD = sz_tile<T, DIM>::LD };
    const sz_columns &columns = cursor.columns;
    const sz_segment_row &s = cursor.s;
    load_columns<T, DIM, N>(stages + turn * 2 * N * LD, a, dout, columns, count);
    if (threadIdx.x < N) {
        int c = (int)threadIdx.x;
        bool valid = c < count;
        int64_t place = columns.head(c) * rows + columns.row(c);
        int64_t own_limit = s.k_start + sz_own_keys(s, columns.row(c) - s.q_start, a.causal);
        int64_t limit = cursor.parent ? (int64_t)s.p_start + s.p_len : own_limit;
        staged.lse[turn][c] = valid ? base2(lse[place]) : 0.0f;
        staged.delta[turn][c] = valid ? delta[place] : 0.0f;
        staged.limit[turn][c] = valid ? (int32_t)min(limit - t.row, (int64_t)t.rows) : INT32_MIN;
    }
}

/* Turns scores p and products ds = v . dout of a stage into probabilities (p) and gradients of the
 * scores (ds). Keys below `from` belong to another range and are masked. */
template <int N>
static __device__ __forceinline__ void key_gradients(float (&p)[N / 8][4], float (&ds)[N / 8][4],
                                                     float scale, int from,
                                                     const staged_columns<N> &staged, int turn)
{
    const int lane = (int)threadIdx.x % 32;
    const int warp = (int)threadIdx.x / 32;
#pragma unroll
    for (int n = 0; n < N / 8; n++)
        for (int i = 0; i < 4; i++) {
            int c = 8 * n + 2 * (lane % 4) + i % 2;
            int key = 16 * warp + lane / 4 + i / 2 * 8;
            float e = exp2f(p[n][i] * scale - staged.lse[turn][c]);
            p[n][i] = key >= from && key < staged.limit[turn][c] ? e : 0.0f;
            ds[n][i] = p[n][i] * (ds[n][i] - staged.delta[turn][c]);
        }
}

/* Writes this lane's partial sums to `to`, f32 [dk and dv, 64, DIM]. */
template <int DIM>
static __device__ __forceinline__ void write_partial(float *to, const float (&dk)[DIM / 8][4],
                                                     const float (&dv)[DIM / 8][4])
{
    const int lane = (int)threadIdx.x % 32;
    const int warp = (int)threadIdx.x / 32;
    to += (16 * warp + lane / 4) * DIM + 2 * (lane % 4);
    for (int h = 0; h < 2; h++)
#pragma unroll
        for (int d = 0; d < DIM / 8; d++) {
            *(float2 *)(to + 8 * h * DIM + 8 * d) = make_float2(dk[d][2 * h], dk[d][2 * h + 1]);
            *(float2 *)(to + (KEY_ROWS + 8 * h) * DIM + 8 * d) = make_float2(dv[d][2 * h],
                                                                             dv[d][2 * h + 1]);
        }
}

/* Starts loading the task's key or value rows. */
template <typename T, int DIM>
static __device__ __forceinline__ void load_keys(T *tile, const sz_attention_args &a,
                                                 const sz_key_task &t, const T *from)
{
    const int64_t k_ld = a.k_ld;
    sz_tile_load<T, DIM, KEY_ROWS>(tile, a, from, [=](int r) {
        return r < t.rows ? from + (t.row + r) * k_ld : (const T *)NULL;
    });
}

/* Writes the warp's 16 rows of dk or dv; `to` is row 0 of the block's key head. */
template <typename T, int DIM>
static __device__ __forceinline__ void write_keys(T *tile, const float (&sums)[DIM / 8][4],
                                                  const float (&factor)[2],
                                                  const sz_attention_args &a, const sz_key_task &t,
                                                  T *to)
{
    const int warp = (int)threadIdx.x / 32;
    const int64_t k_ld = a.k_ld;
    sz_tile_write<T, DIM>(tile, sums, factor, a, a.aligned16, [=](int r) {
        return 16 * warp + r < t.rows ? to + (t.row + 16 * warp + r) * k_ld : (T *)NULL;
    });
}

/* One block for each task and key head. partials f32 [slot, kv_head, dk and dv, 64, DIM]. */
template <typename T, int DIM, int N> static __global__ void __launch_bounds__(SZ_ATTENTION_THREADS)
    dkv_kernel(sz_attention_args a, const sz_key_task *tasks, const sz_key_columns *ranges,
               const T *dout, const float *lse, const float *delta, int64_t rows, T *dk, T *dv,
               float *partials)
{
    enum { LD = sz_tile<T, DIM>::LD };
    SZ_SHARED_DYNAMIC(T, k); /* k and v [64]; two stages of q and dout [N] */
    T *v = k + KEY_ROWS * LD;
    T *stages = v + KEY_ROWS * LD;
    __shared__ staged_columns<N> staged;
    const sz_key_task t = tasks[blockIdx.x / (unsigned)a.kv_heads];
    const int kv_head = (int)(blockIdx.x % (unsigned)a.kv_heads);
    const int64_t head_offset = (int64_t)kv_head * a.dim;
    const int warp = (int)threadIdx.x / 32;

    /* Start loading the keys, the values and the first columns. */
    load_keys<T, DIM>(k, a, t, (const T *)a.k + head_offset);
    load_keys<T, DIM>(v, a, t, (const T *)a.v + head_offset);
    column_cursor cursor = { t.first, t.first + t.ranges, 0, 0, {}, {}, false };
    cursor.open(a, ranges, kv_head);
    int count = cursor.count(N);
    auto load = [&](int turn) {
        load_stage<T, DIM, N>(stages, staged, turn, a, t, cursor, count, dout, lse, delta, rows);
    };
    if (cursor.more()) load(0);
    const float scale = base2(a.scale);
    float dk_sums[DIM / 8][4], dv_sums[DIM / 8][4];
    sz_tile_clear(dk_sums);
    sz_tile_clear(dv_sums);

    /* Use one stage while the next columns arrive in the other. */
    for (int turn = 0; cursor.more(); turn ^= 1) {
        const int from = (cursor.parent ? cursor.s.p_start : cursor.s.k_start) - t.row;
        const int last_column = count - 1;
        sz_copy_async_wait();
        __syncthreads(); /* these columns are here; the ones before have been read */
        cursor.advance(N, a, ranges, kv_head);
        count = cursor.count(N);
        if (cursor.more()) load(turn ^ 1);
        /* Skip the stage if none of its columns sees a key of this warp. */
        if (staged.limit[turn][last_column] <= 16 * warp || from >= 16 * warp + 16) continue;
        const T *q = stages + turn * 2 * N * LD;
        const T *g = q + N * LD;
        float p[N / 8][4], ds[N / 8][4];
        sz_tile_dot<DIM, N>(p, k + 16 * warp * LD, q);
        sz_tile_dot<DIM, N>(ds, v + 16 * warp * LD, g);
        key_gradients<N>(p, ds, scale, from, staged, turn);
        sz_tile_accumulate<DIM, N>(dv_sums, p, g);
        sz_tile_accumulate<DIM, N>(dk_sums, ds, q);
    }
    sz_copy_async_wait(); /* for the keys, if no column sees them */
    __syncthreads();
    if (16 * warp >= t.rows) return;

    /* Write partial sums, or the result. */
    if (t.slot >= 0) {
        const int64_t place = (int64_t)t.slot * a.kv_heads + kv_head;
        write_partial<DIM>(partials + place * 2 * KEY_ROWS * DIM, dk_sums, dv_sums);
        return;
    }
    const float factor[2] = { a.scale, a.scale };
    const float one[2] = { 1, 1 };
    write_keys<T, DIM>(k + 16 * warp * LD, dk_sums, factor, a, t, dk + head_offset);
    write_keys<T, DIM>(v + 16 * warp * LD, dv_sums, one, a, t, dv + head_offset);
}

/* Adds the partial sums of each combine in order. One block for each combine and key head. */
template <typename T>
static __global__ void combine_kernel(sz_attention_args a, const sz_key_combine *combines,
                                      const float *partials, int width, T *dk, T *dv)
{
    const sz_key_combine j = combines[blockIdx.x / (unsigned)a.kv_heads];
    const int kv_head = (int)(blockIdx.x % (unsigned)a.kv_heads);
    const int64_t size = 2 * KEY_ROWS * width; /* of one partial sum ... */
    const int64_t stride = a.kv_heads * size;  /* ... and from one slot to the next */
    const float *from = partials + ((int64_t)j.slot * a.kv_heads + kv_head) * size;
    for (int i = (int)threadIdx.x; i < 2 * KEY_ROWS * a.dim; i += (int)blockDim.x) {
        int r = i / a.dim;
        int d = i % a.dim;
        int row = r % KEY_ROWS;
        if (row >= j.rows) continue;
        float sum = 0;
        for (int x = 0; x < j.slots; x++) sum += from[x * stride + (int64_t)r * width + d];
        int64_t to = (int64_t)(j.row + row) * a.k_ld + (int64_t)kv_head * a.dim + d;
        if (r < KEY_ROWS) sz_store(dk + to, sum * a.scale);
        else sz_store(dv + to, sum);
    }
}

/* ---- host ---- */
struct backward_call {
    const char *op;
    sz_attention_args a;
    const sz_tensor *out, *lse, *dout;
    void *dq, *dk, *dv;
    /* dq_kernel's tasks. */
    const sz_flash_task *tasks;
    int64_t task_count;
    /* dkv_kernel's schedule (attention_backward.cuh). */
    const sz_key_task *key_tasks;
    const sz_key_columns *ranges;
    const sz_key_combine *combines;
    int64_t key_task_count, combine_count;
    /* Workspace. */
    float *delta, *partials;
};

template <typename Kernel> static int allow_shared(Kernel kernel, size_t bytes, const char *op)
{
    return sz_cuda_check(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes), op);
}

template <typename T, int DIM> static int launch(const backward_call &b)
{
    enum { N = tile_shape<T, DIM>::N };
    const size_t bytes = (size_t)(2 * COLUMNS + 4 * N) * sz_tile<T, DIM>::LD * sizeof(T);
    const sz_attention_args &a = b.a;
    const T *out = (const T *)b.out->data;
    const T *dout = (const T *)b.dout->data;
    T *dk = (T *)b.dk;
    T *dv = (T *)b.dv;
    const float *lse = sz_f32(b.lse);
    const int64_t rows = b.lse->numel / a.heads;
    auto dq_of = dq_kernel<T, DIM, N>;
    auto dkv_of = dkv_kernel<T, DIM, N>;
    if (allow_shared(dq_of, bytes, b.op) != 0 || allow_shared(dkv_of, bytes, b.op) != 0) return -1;

    const int64_t delta_blocks = (rows * a.heads + THREADS / 32 - 1) / (THREADS / 32);
    SZ_LAUNCH(deltas_kernel<T>, (unsigned)delta_blocks, THREADS, 0, out, dout, b.delta, rows,
              a.heads, a.dim);
    SZ_LAUNCH(dq_of, (unsigned)(b.task_count * a.kv_heads), THREADS, bytes, a, b.tasks, dout, lse,
              b.delta, rows, (T *)b.dq);
    if (b.key_task_count)
        SZ_LAUNCH(dkv_of, (unsigned)(b.key_task_count * a.kv_heads), THREADS, bytes, a, b.key_tasks,
                  b.ranges, dout, lse, b.delta, rows, dk, dv, b.partials);
    if (b.combine_count)
        SZ_LAUNCH(combine_kernel<T>, (unsigned)(b.combine_count * a.kv_heads), 256, 0, a,
                  b.combines, b.partials, (int)DIM, dk, dv);
    return sz_cuda_launched(b.op);
}

/* Fills inputs and outputs of a call. Returns 0, or -1 with a message. */
static int backward_from(const sz_call *c, bool packed, const char *op, backward_call *b)
{
    b->op = op;
    if (sz_attention_from(c, packed, op, &b->a) != 0) return -1;
    const sz_attention_args &a = b->a;
    const int first = packed ? 2 : 4;
    b->out = c->in[first];
    b->lse = c->in[first + 1];
    b->dout = c->in[first + 2];
    b->a.aligned16 = a.aligned16 && sz_on16(b->dout->data);
    char *to = (char *)c->out[0]->data;
    b->dq = to;
    if (packed) {
        const int64_t size = (int64_t)sz_dtype_size(c->in[0]->dtype);
        b->dk = to + (int64_t)a.heads * a.dim * size;
        b->dv = to + (int64_t)(a.heads + a.kv_heads) * a.dim * size;
    } else {
        b->dk = c->out[1]->data;
        b->dv = c->out[2]->data;
    }
    return 0;
}

static int zero(sz_tensor *t) { return sz_cuda_fill(t->data, 0, sz_bytes(t)); }

/* Zeroes the outputs that have rows in no segment; `covered` key rows are in some. Returns 0, or -1
 * with a message. */
static int zero_uncovered(const sz_call *c, bool packed, const sz_tensor *table, int64_t covered)
{
    const sz_tensor *q = c->in[0];
    const sz_tensor *k = packed ? q : c->in[1];
    const bool queries_left = sz_segment_queries(table) < q->shape[0];
    const bool keys_left = covered < k->shape[0];
    if ((queries_left || (packed && keys_left)) && zero(c->out[0]) != 0) return -1;
    if (!packed && keys_left && (zero(c->out[1]) != 0 || zero(c->out[2]) != 0)) return -1;
    return 0;
}

static int backward(const sz_call *c, bool packed, const char *op)
{
    const sz_tensor *q = c->in[0];
    const sz_tensor *table = c->in[packed ? 1 : 3];
    backward_call b = {};
    if (backward_from(c, packed, op, &b) != 0) return -1;
    const int64_t kv_heads = b.a.kv_heads;

    /* Both schedules. */
    const sz_cuda_cache_entry *tasks = sz_flash_schedule(op, table, b.a.heads_per_kv);
    if (!tasks) return -1;
    const sz_cuda_cache_entry *keys = sz_key_schedule(op, b.a, table);
    if (!keys) return -1;
    b.tasks = (const sz_flash_task *)tasks->device;
    b.task_count = tasks->number[0];
    b.key_tasks = (const sz_key_task *)keys->device;
    b.key_task_count = keys->number[SZ_KEY_TASKS];
    b.ranges = (const sz_key_columns *)(b.key_tasks + b.key_task_count);
    b.combines = (const sz_key_combine *)(b.ranges + keys->number[SZ_KEY_RANGES]);
    b.combine_count = keys->number[SZ_KEY_COMBINES];

    if (zero_uncovered(c, packed, table, keys->number[SZ_KEY_COVERED]) != 0) return -1;
    if (b.task_count == 0) return 0;
    const int64_t most = b.task_count > b.key_task_count ? b.task_count : b.key_task_count;
    const int64_t blocks = most * kv_heads;
    if (blocks > INT32_MAX || b.lse->numel / (THREADS / 32) >= INT32_MAX)
        return sz_fail("%s: %lld blocks are more than one launch takes", op, (long long)blocks);

    const size_t slots = (size_t)(keys->number[SZ_KEY_SLOTS] * kv_heads);
    const size_t width = (size_t)sz_flash_width(q->dtype, b.a.dim);
    b.delta = (float *)sz_cuda_scratch(sz_bytes(b.lse));
    b.partials = (float *)sz_cuda_scratch(slots * 2 * KEY_ROWS * width * sizeof(float) + 1);
    if (!b.delta || !b.partials) return -1;
    int rc = -1;
    SZ_ATTENTION_TILE(q->dtype, b.a.dim, T, DIM, rc = launch<T, DIM>(b));
    return rc;
}

extern "C" int sz_cuda_attention_backward(const sz_call *c)
{
    return backward(c, true, "attention_backward");
}

extern "C" int sz_cuda_attention_cross_backward(const sz_call *c)
{
    return backward(c, false, "attention_cross_backward");
}
