/* attention.cu - attention over a table of segments, forward: attention (packed qkv [t, (h+2g)*d]) and attention_cross (q [a, h*d],
 * k and v [r, g*d]) -> out [a, h*d], lse f32 [h, a], natural log, -inf in rows without keys, where out is 0.
 *
 * A block takes 64 columns of one key head (attention.cuh) past the keys in tiles of N, parent's and own in one running softmax.
 * Keys and values each have one buffer: values arrive while scores are computed, the next keys while values are added up.
 * A column's result depends on its segment alone. sz_flash_run also serves attention_cached.cu, whose tasks cover a part of
 * the keys and leave their sums for a join.
 * Leaves out: Hopper's warpgroup products, about twice as fast as mma.sync there. cuDNN's fused attention, which has them: it is compiled at
 * run time for each set of lengths, a second or more each way (docs/speed.md), and GRPO's lengths are new in every step; it has no f32, no
 * parent ranges, and for packed sequences no backward pass that repeats bit for bit on sm_80. What it could save: attention is 5 to 6 % of the
 * operations, counted, of a 3B's GRPO update (1,200-token prompts, 8 answers of 256) and of its vision tower (840 x 840). */
#include "attention.cuh"

template <typename T, int DIM> struct flash_shape { enum { N = sizeof(T) == 2 ? 64 : DIM > 64 ? 16 : 32 }; };

template <typename T, int DIM, int N>
static __global__ void __launch_bounds__(SZ_ATTENTION_THREADS)
flash(sz_attention_args a, const sz_flash_task *tasks, const sz_flash_query *list, T *out, float *lse, int64_t rows, sz_flash_parts parts)
{
    enum { LD = sz_tile<T, DIM>::LD, COLUMNS = SZ_ATTENTION_COLUMNS };
    SZ_SHARED_DYNAMIC(T, q);
    T *k = q + COLUMNS * LD, *v = k + N * LD;
    __shared__ int32_t row_of[COLUMNS], limit_of[COLUMNS];
    const sz_flash_task t = tasks[blockIdx.x / (unsigned)a.groups];
    if (t.columns == 0) return;
    const sz_segment_row s = a.segments[t.segment];
    const int group = (int)(blockIdx.x % (unsigned)a.groups), dim = a.dim;
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    const int64_t q_ld = a.q_ld, k_ld = a.k_ld;
    const sz_columns columns = sz_columns_at(a, s.q_start, group, t.column);

    if (threadIdx.x < COLUMNS) {
        int c = (int)threadIdx.x;
        sz_flash_query query = { -1, 0 };
        if (c < t.columns) {
            int64_t row = columns.row(c);
            if (t.list >= 0) query = list[t.list + row - s.q_start];
            else query = sz_flash_query{ (int32_t)row, (int32_t)(s.p_len + sz_own_keys(s, row - s.q_start, a.causal)) };
        }
        row_of[c] = query.row;
        limit_of[c] = min(query.limit, t.end_key);
    }
    __syncthreads();
    const int end = limit_of[t.columns - 1], everyone = limit_of[0];

    const T *queries = (const T *)a.q, *keys = (const T *)a.k + (int64_t)group * dim, *values = (const T *)a.v + (int64_t)group * dim;
    auto fetch = [&](T *tile, const T *from, int at) {
        sz_tile_fetch<T, DIM, N>(tile, a, from, [=](int r) { return at + r < end ? from + sz_key_row(s, at + r) * k_ld : (const T *)NULL; });
    };
    if (t.first_key < end) {
        sz_tile_fetch<T, DIM, COLUMNS>(q, a, queries, [=](int c) { return c < t.columns ? queries + row_of[c] * q_ld + (int64_t)columns.head(c) * dim : (const T *)NULL; });
        fetch(k, keys, t.first_key);
    }

    const float scale = a.scale * 1.44269504f;      /* log2(e): the softmax runs in powers of two */
    const int c0 = 16 * warp + lane / 4;
    const int limit[2] = { limit_of[c0], limit_of[c0 + 8] };
    const bool live = 16 * warp < t.columns;
    sz_running w = { { -INFINITY, -INFINITY }, { 0, 0 } };
    float acc[DIM / 8][4], p[N / 8][4];
#pragma unroll
    for (int d = 0; d < DIM / 8; d++)
        for (int i = 0; i < 4; i++) acc[d][i] = 0;

    for (int at = t.first_key; at < end; at += N) {
        sz_copy_async_wait();
        __syncthreads();                            /* keys are here, values of the last tile are used up */
        fetch(v, values, at);
        if (live) {
            sz_tile_dot<DIM, N>(p, q + 16 * warp * LD, k);
#pragma unroll
            for (int n = 0; n < N / 8; n++)
                for (int i = 0; i < 4; i++) p[n][i] *= scale;
            if (at + N > everyone) {
#pragma unroll
                for (int n = 0; n < N / 8; n++)
                    for (int i = 0; i < 4; i++)
                        if (at + 8 * n + 2 * (lane % 4) + i % 2 >= limit[i / 2]) p[n][i] = -INFINITY;
            }
            sz_running_step<N, DIM / 8>(w, p, acc);
        }
        sz_copy_async_wait();
        __syncthreads();                            /* values are here, keys are used up */
        if (at + N < end) fetch(k, keys, at + N);
        if (live) sz_tile_add<DIM, N>(acc, p, v);
    }
    if (!live) return;

    float inverse[2];
    for (int h = 0; h < 2; h++) {
        w.sum[h] += __shfl_xor_sync(0xffffffffu, w.sum[h], 1);
        w.sum[h] += __shfl_xor_sync(0xffffffffu, w.sum[h], 2);
        inverse[h] = w.sum[h] > 0 ? 1.0f / w.sum[h] : w.sum[h] == 0 ? 0.0f : w.sum[h];     /* NaN stays */
    }
    if (t.slot >= 0) {
        for (int h = 0; h < 2; h++) {
            if (c0 + 8 * h >= t.columns) continue;
            int64_t place = ((int64_t)t.slot + c0 + 8 * h) * a.groups + group;
            if (lane % 4 == 0) parts.weights[place] = make_float2(w.max[h], w.sum[h]);
#pragma unroll
            for (int d = 0; d < DIM / 8; d++)
                *(float2 *)(parts.sums + place * DIM + 8 * d + 2 * (lane % 4)) = make_float2(acc[d][2 * h], acc[d][2 * h + 1]);
        }
        return;
    }
    if (lse && lane % 4 == 0)
        for (int h = 0; h < 2; h++)
            if (c0 + 8 * h < t.columns) lse[columns.head(c0 + 8 * h) * rows + row_of[c0 + 8 * h]] = (w.max[h] + log2f(w.sum[h])) * 0.693147181f;
    sz_tile_write<T, DIM>(q + 16 * warp * LD, acc, inverse, a, dim % (16 / (int)sizeof(T)) == 0, [=](int r) {
        int c = 16 * warp + r;
        return c < t.columns ? out + ((int64_t)row_of[c] * a.heads + columns.head(c)) * dim : (T *)NULL;
    });
}

template <typename T, int DIM>
static int flash_launch(const char *op, const sz_attention_args &a, const sz_flash_task *tasks, int64_t count, const sz_flash_query *list,
                        void *out, float *lse, int64_t rows, const sz_flash_parts &parts)
{
    enum { N = flash_shape<T, DIM>::N };
    size_t bytes = (size_t)(SZ_ATTENTION_COLUMNS + 2 * N) * sz_tile<T, DIM>::LD * sizeof(T);
    auto kernel = flash<T, DIM, N>;
    if (sz_cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes), op) != 0) return -1;
    SZ_LAUNCH(kernel, (unsigned)(count * a.groups), SZ_ATTENTION_THREADS, bytes, a, tasks, list, (T *)out, lse, rows, parts);
    return sz_cuda_launched(op);
}

int sz_flash_run(const char *op, int dtype, const sz_attention_args &a, const sz_flash_task *tasks, int64_t count, const sz_flash_query *list,
                 void *out, float *lse, int64_t rows, const sz_flash_parts &parts)
{
    if (count == 0) return 0;
    if (count * a.groups > INT32_MAX) return sz_fail("%s: %lld blocks are more than one launch takes", op, (long long)(count * a.groups));
    SZ_ATTENTION_TILE(dtype, a.dim, T, DIM, return flash_launch<T, DIM>(op, a, tasks, count, list, out, lse, rows, parts));
}

int sz_flash_width(int dtype, int dim)
{
    SZ_ATTENTION_TILE(dtype, dim, T, DIM, (void)sizeof(T); return DIM);
}

static __global__ void fill(float *x, int64_t n, float value)
{
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (int64_t)gridDim.x * blockDim.x) x[i] = value;
}

static int forward(const sz_call *c, bool packed, const char *op)
{
    sz_attention_args a;
    if (sz_attention_from(c, packed, op, &a) != 0) return -1;
    const sz_tensor *table = c->in[packed ? 1 : 3];
    sz_tensor *out = c->out[0], *lse = c->out[1];
    const sz_cuda_cache_entry *plan = sz_flash_plan(op, table, a.share);
    if (!plan) return -1;
    if (sz_segment_queries(table) < out->shape[0]) {
        if (sz_cuda_fill(out->data, 0, sz_bytes(out)) != 0) return -1;
        if (lse->numel) SZ_LAUNCH(fill, 256, 256, 0, sz_f32(lse), lse->numel, -INFINITY);
        if (sz_cuda_launched(op) != 0) return -1;
    }
    return sz_flash_run(op, out->dtype, a, (const sz_flash_task *)plan->device, plan->number[0], NULL, out->data, sz_f32(lse), out->shape[0], sz_flash_parts{ NULL, NULL });
}

extern "C" int sz_cuda_attention(const sz_call *c) { return forward(c, true, "attention"); }
extern "C" int sz_cuda_attention_cross(const sz_call *c) { return forward(c, false, "attention_cross"); }
