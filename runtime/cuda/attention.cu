/* attention.cu - attention over a table of segments, forward: attention (packed qkv [t, (h+2g)*d])
 * and attention_cross (q [a, h*d], k and v [r, g*d]) -> out [a, h*d], lse f32 [h, a]. lse is the
 * natural logarithm of the softmax's denominator; in a row without keys it is -inf and out is 0.
 *
 * A block moves 64 columns of one key head (attention.cuh) past the keys in tiles of N, parent's
 * keys and own keys in one online softmax. Keys and values have one buffer each: values arrive
 * while scores are computed, the next keys arrive while values are accumulated. A column's result
 * depends on its segment alone. sz_flash_run also serves attention_cached.cu, whose tasks cover a
 * part of the keys and leave partial results to be combined.
 * Leaves out: Hopper's warpgroup products, about twice as fast as mma.sync there; and cuDNN's fused
 * attention, which has them. cuDNN compiles its kernel at run time for each set of lengths, a
 * second or more for each direction (docs/speed.md), and GRPO's lengths are new in every step. It
 * has no f32, no parent ranges and, for packed sequences, no backward pass that repeats bit for
 * bit on sm_80. The possible gain is small: counted in operations, attention is 5 to 6 % of a 3B
 * model's GRPO update (1,200-token prompts, 8 answers of 256 tokens) and of its vision tower (840
 * x 840). */
#include "attention_tile.cuh"

/* Keys in a tile, bounded by registers and shared memory. */
template <typename T, int DIM> struct flash_shape {
    enum { F32_N = DIM > 64 ? 16 : 32, N = sizeof(T) == 2 ? 64 : (int)F32_N };
};

/* Looks up row and limit of each of the task's columns; the others get row -1 and limit 0. */
static __device__ __forceinline__ void find_limits(const sz_attention_args &a,
                                                   const sz_flash_task &t, const sz_segment_row &s,
                                                   const sz_columns &columns,
                                                   const sz_flash_query *list, int32_t *row_of,
                                                   int32_t *limit_of)
{
    if (threadIdx.x < SZ_ATTENTION_COLUMNS) {
        int c = (int)threadIdx.x;
        sz_flash_query query = { -1, 0 };
        if (c < t.columns) {
            int64_t row = columns.row(c);
            if (t.list >= 0) {
                query = list[t.list + row - s.q_start];
            } else {
                int64_t own = sz_own_keys(s, row - s.q_start, a.causal);
                query = sz_flash_query{ (int32_t)row, (int32_t)(s.p_len + own) };
            }
        }
        row_of[c] = query.row;
        limit_of[c] = min(query.limit, t.end_key);
    }
    __syncthreads();
}

/* Scales the scores of keys [first, first + N) and, unless all columns see all of them, sets those
 * at or past the limit to -inf. */
template <int N>
static __device__ __forceinline__ void scale_and_mask(float (&p)[N / 8][4], float scale, int first,
                                                      int lowest_limit, const int (&limit)[2])
{
    const int lane = (int)threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < N / 8; n++)
        for (int i = 0; i < 4; i++) p[n][i] *= scale;
    if (first + N > lowest_limit) {
#pragma unroll
        for (int n = 0; n < N / 8; n++)
            for (int i = 0; i < 4; i++)
                if (first + 8 * n + 2 * (lane % 4) + i % 2 >= limit[i / 2]) p[n][i] = -INFINITY;
    }
}

/* Completes the softmax's sum over the four lanes of each row, and inverts it: 0 for a row without
 * keys; NaN stays NaN. */
static __device__ __forceinline__ void finish_sums(sz_online_softmax &w, float (&inverse)[2])
{
    for (int h = 0; h < 2; h++) {
        w.sum[h] += __shfl_xor_sync(0xffffffffu, w.sum[h], 1);
        w.sum[h] += __shfl_xor_sync(0xffffffffu, w.sum[h], 2);
        const float otherwise = w.sum[h] == 0 ? 0.0f : w.sum[h];
        inverse[h] = w.sum[h] > 0 ? 1.0f / w.sum[h] : otherwise;
    }
}

/* Writes unnormalised sums, maximum and weight of this lane's two columns, c0 and c0 + 8. */
template <int DIM> static __device__ __forceinline__ void write_partials(
    const sz_flash_partials &partials, const sz_flash_task &t, int kv_heads, int kv_head, int c0,
    const sz_online_softmax &w, const float (&acc)[DIM / 8][4])
{
    const int lane = (int)threadIdx.x % 32;
    for (int h = 0; h < 2; h++) {
        if (c0 + 8 * h >= t.columns) continue;
        int64_t place = ((int64_t)t.slot + c0 + 8 * h) * kv_heads + kv_head;
        if (lane % 4 == 0) partials.weights[place] = make_float2(w.max[h], w.sum[h]);
#pragma unroll
        for (int d = 0; d < DIM / 8; d++)
            *(float2 *)(partials.sums + place * DIM + 8 * d + 2 * (lane % 4)) =
                make_float2(acc[d][2 * h], acc[d][2 * h + 1]);
    }
}

/* Writes the natural logarithm of the sums, and the normalised result, of the warp's columns.
 * `tile` is shared memory for 16 rows. */
template <typename T, int DIM> static __device__ __forceinline__ void write_result(
    T *tile, const sz_attention_args &a, const sz_flash_task &t, const sz_columns &columns,
    const int32_t *row_of, const sz_online_softmax &w, const float (&inverse)[2],
    const float (&acc)[DIM / 8][4], T *out, float *lse, int64_t rows)
{
    const int lane = (int)threadIdx.x % 32;
    const int warp = (int)threadIdx.x / 32;
    const int c0 = 16 * warp + lane / 4;
    const int dim = a.dim;
    const int heads = a.heads;
    if (lse && lane % 4 == 0)
        for (int h = 0; h < 2; h++)
            if (c0 + 8 * h < t.columns)
                lse[columns.head(c0 + 8 * h) * rows + row_of[c0 + 8 * h]] =
                    (w.max[h] + log2f(w.sum[h])) * 0.693147181f;
    const bool aligned16 = dim % (16 / (int)sizeof(T)) == 0;
    sz_tile_write<T, DIM>(tile, acc, inverse, a, aligned16, [=](int r) {
        int c = 16 * warp + r;
        return c < t.columns ? out + ((int64_t)row_of[c] * heads + columns.head(c)) * dim
                             : (T *)NULL;
    });
}

/* Starts loading the task's queries. */
template <typename T, int DIM>
static __device__ __forceinline__ void load_queries(T *q, const sz_attention_args &a,
                                                    const sz_flash_task &t,
                                                    const sz_columns &columns,
                                                    const int32_t *row_of)
{
    const T *queries = (const T *)a.q;
    const int64_t q_ld = a.q_ld;
    const int dim = a.dim;
    sz_tile_load<T, DIM, SZ_ATTENTION_COLUMNS>(q, a, queries, [=](int c) {
        return c < t.columns ? queries + row_of[c] * q_ld + (int64_t)columns.head(c) * dim
                             : (const T *)NULL;
    });
}

/* One block for each task and key head. */
template <typename T, int DIM, int N> static __global__ void __launch_bounds__(SZ_ATTENTION_THREADS)
    flash(sz_attention_args a, const sz_flash_task *tasks, const sz_flash_query *list, T *out,
          float *lse, int64_t rows, sz_flash_partials partials)
{
    enum { LD = sz_tile<T, DIM>::LD, COLUMNS = SZ_ATTENTION_COLUMNS };
    SZ_SHARED_DYNAMIC(T, q);
    T *k = q + COLUMNS * LD;
    T *v = k + N * LD;
    __shared__ int32_t row_of[COLUMNS], limit_of[COLUMNS];
    const sz_flash_task t = tasks[blockIdx.x / (unsigned)a.kv_heads];
    if (t.columns == 0) return;
    const sz_segment_row s = a.segments[t.segment];
    const int kv_head = (int)(blockIdx.x % (unsigned)a.kv_heads);
    const int lane = (int)threadIdx.x % 32;
    const int warp = (int)threadIdx.x / 32;
    const sz_columns columns = sz_columns_at(a, s.q_start, kv_head, t.column);

    find_limits(a, t, s, columns, list, row_of, limit_of);
    const int end = limit_of[t.columns - 1];
    const int lowest_limit = limit_of[0];

    /* Start loading the queries and the first keys. */
    const T *keys = (const T *)a.k + (int64_t)kv_head * a.dim;
    const T *values = (const T *)a.v + (int64_t)kv_head * a.dim;
    auto load = [&](T *tile, const T *from, int first) {
        sz_load_key_rows<T, DIM, N>(tile, a, from, s, first, end);
    };
    if (t.first_key < end) {
        load_queries<T, DIM>(q, a, t, columns, row_of);
        load(k, keys, t.first_key);
    }

    /* This lane's two columns; a warp whose columns are all past the end only helps to load. */
    const float scale = a.scale * 1.44269504f; /* log2(e), because the softmax uses exp2 */
    const int c0 = 16 * warp + lane / 4;
    const int limit[2] = { limit_of[c0], limit_of[c0 + 8] };
    const bool active = 16 * warp < t.columns;
    sz_online_softmax w = { { -INFINITY, -INFINITY }, { 0, 0 } };
    float acc[DIM / 8][4], p[N / 8][4];
    sz_tile_clear(acc);

    for (int first = t.first_key; first < end; first += N) {
        sz_copy_async_wait();
        __syncthreads(); /* keys are here; the last values have been read */
        load(v, values, first);
        if (active) {
            sz_tile_dot<DIM, N>(p, q + 16 * warp * LD, k);
            scale_and_mask<N>(p, scale, first, lowest_limit, limit);
            sz_online_softmax_update<N, DIM / 8>(w, p, acc);
        }
        sz_copy_async_wait();
        __syncthreads(); /* values are here; the keys have been read */
        if (first + N < end) load(k, keys, first + N);
        if (active) sz_tile_accumulate<DIM, N>(acc, p, v);
    }
    if (!active) return;
    float inverse[2];
    finish_sums(w, inverse);
    if (t.slot >= 0) write_partials<DIM>(partials, t, a.kv_heads, kv_head, c0, w, acc);
    else
        write_result<T, DIM>(q + 16 * warp * LD, a, t, columns, row_of, w, inverse, acc, out, lse,
                             rows);
}

/* ---- host ---- */
template <typename T, int DIM>
static int flash_launch(const char *op, const sz_attention_args &a, const sz_flash_task *tasks,
                        int64_t count, const sz_flash_query *list, void *out, float *lse,
                        int64_t rows, const sz_flash_partials &partials)
{
    enum { N = flash_shape<T, DIM>::N };
    size_t bytes = (size_t)(SZ_ATTENTION_COLUMNS + 2 * N) * sz_tile<T, DIM>::LD * sizeof(T);
    auto kernel = flash<T, DIM, N>;
    if (sz_cuda_check(
            cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes),
            op) != 0)
        return -1;
    SZ_LAUNCH(kernel, (unsigned)(count * a.kv_heads), SZ_ATTENTION_THREADS, bytes, a, tasks, list,
              (T *)out, lse, rows, partials);
    return sz_cuda_launched(op);
}

int sz_flash_run(const char *op, int dtype, const sz_attention_args &a, const sz_flash_task *tasks,
                 int64_t count, const sz_flash_query *list, void *out, float *lse, int64_t rows,
                 const sz_flash_partials &partials)
{
    if (count == 0) return 0;
    if (count * a.kv_heads > INT32_MAX)
        return sz_fail("%s: %lld blocks are more than one launch takes", op,
                       (long long)(count * a.kv_heads));
    SZ_ATTENTION_TILE(
        dtype, a.dim, T, DIM,
        return flash_launch<T, DIM>(op, a, tasks, count, list, out, lse, rows, partials));
}

int sz_flash_width(int dtype, int dim)
{
    SZ_ATTENTION_TILE(dtype, dim, T, DIM, (void)sizeof(T); return DIM);
}

static __global__ void fill(float *x, int64_t n, float value)
{
    const int64_t first = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    for (int64_t i = first; i < n; i += (int64_t)gridDim.x * blockDim.x) x[i] = value;
}

static int forward(const sz_call *c, bool packed, const char *op)
{
    sz_attention_args a;
    if (sz_attention_from(c, packed, op, &a) != 0) return -1;
    const sz_tensor *table = c->in[packed ? 1 : 3];
    sz_tensor *out = c->out[0];
    sz_tensor *lse = c->out[1];
    const sz_cuda_cache_entry *schedule = sz_flash_schedule(op, table, a.heads_per_kv);
    if (!schedule) return -1;

    /* Rows that belong to no segment. */
    if (sz_segment_queries(table) < out->shape[0]) {
        if (sz_cuda_fill(out->data, 0, sz_bytes(out)) != 0) return -1;
        if (lse->numel) SZ_LAUNCH(fill, 256, 256, 0, sz_f32(lse), lse->numel, -INFINITY);
        if (sz_cuda_launched(op) != 0) return -1;
    }
    const sz_flash_task *tasks = (const sz_flash_task *)schedule->device;
    return sz_flash_run(op, out->dtype, a, tasks, schedule->number[0], NULL, out->data, sz_f32(lse),
                        out->shape[0], sz_flash_partials{ NULL, NULL });
}

extern "C" int sz_cuda_attention(const sz_call *c) { return forward(c, true, "attention"); }

extern "C" int sz_cuda_attention_cross(const sz_call *c)
{
    return forward(c, false, "attention_cross");
}
