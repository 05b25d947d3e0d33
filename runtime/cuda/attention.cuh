/* attention.cuh - what the attention kernels share: the call, tiles of rows in shared memory, products of tiles, running softmax.
 *
 * Query head h of H sees key head h / (H/G) of G; share = H/G. The queries of a segment (ops.def) times share are its columns of
 * a key head: column c is head c % share of the segment's query c / share. A block of 128 threads takes 64 columns, 16 each warp.
 * A segment's keys are numbered through, its parent's first: key j < p_len is row p_start + j, else row k_start + j - p_len; a
 * query sees the keys below its limit.
 *
 * Tiles lie in shared memory as rows of DIM elements, the head's width rounded up, with zeros behind it, 16 bytes apart from
 * each other so that rows start in different banks. Sums of products are in fragments as mma.cuh has c: of a warp's 16 rows,
 * lane 4r + t holds columns 8n + 2t, + 1 of rows r and r + 8. Two element types offer the same two products:
 *   sz_tile_dot   c [16, N] = a [16, DIM] b [N, DIM]^T        sz_tile_add   acc [16, DIM] += p [16, N] y [N, DIM]
 * bf16 on tensor cores with f32 sums (p is rounded to bf16), f32 by plain multiply-adds.
 * Leaves out: heads wider than 128. */
#ifndef SZ_ATTENTION_CUH
#define SZ_ATTENTION_CUH

#include "device.cuh"
#include "mma.cuh"
#include <cstdlib>

enum { SZ_ATTENTION_THREADS = 128, SZ_ATTENTION_COLUMNS = 64, SZ_ATTENTION_WIDEST = 128 };

struct sz_segment_row { int32_t q_start, q_len, k_start, k_len, p_start, p_len; };

/* Device addresses of head 0 of row 0, and how many elements rows are apart. */
struct sz_attention_args {
    const void *q, *k, *v;
    int64_t q_ld, k_ld;                 /* k's and v's rows are as far apart */
    const sz_segment_row *segments;
    int32_t heads, groups, share, dim;
    uint32_t inverse;                   /* of share, for sz_columns */
    float scale;
    bool causal;
    bool whole16;                       /* rows may be moved in pieces of 16 bytes */
};

__host__ __device__ __forceinline__ int64_t sz_own_keys(const sz_segment_row &s, int64_t query, bool causal)
{
    int64_t n = query + s.k_len - s.q_len + 1;
    return !causal || n > s.k_len ? s.k_len : n < 0 ? 0 : n;
}

/* Where the columns from `column` on lie: column + c is head(c) of row(c). c stays below a tile's columns, so that x / share is
 * x * inverse / 2^31: one long division a block instead of one for every 16 bytes. */
struct sz_columns {
    int64_t first_row;
    int32_t first_head, turn, share;
    uint32_t inverse;
    __device__ __forceinline__ int over(int c) const { return (int)((uint64_t)(uint32_t)(turn + c) * inverse >> 31); }
    __device__ __forceinline__ int64_t row(int c) const { return first_row + over(c); }
    __device__ __forceinline__ int head(int c) const { return first_head + turn + c - over(c) * share; }
    __device__ __forceinline__ void advance(int c) { int n = over(c); first_row += n; turn += c - n * share; }
};
__device__ __forceinline__ sz_columns sz_columns_at(const sz_attention_args &a, int64_t q_start, int group, int64_t column)
{
    int64_t query = column / a.share;
    return sz_columns{ q_start + query, group * a.share, (int32_t)(column - query * a.share), a.share, a.inverse };
}

/* ---- host: from a call ---- */
static inline bool sz_on16(const void *p) { return (uintptr_t)p % 16 == 0; }

/* Inputs q, k, v, segments; or, packed, qkv, segments. -1 with a message. */
static inline int sz_attention_from(const sz_call *c, bool packed, const char *op, sz_attention_args *a)
{
    const sz_tensor *q = c->in[0], *k = packed ? q : c->in[1], *v = packed ? q : c->in[2];
    a->heads = (int32_t)c->args[0];
    a->groups = (int32_t)c->args[1];
    a->dim = (int32_t)c->args[2];
    a->share = a->heads / a->groups;
    a->inverse = (1u << 31) / (uint32_t)a->share + 1;
    a->causal = c->args[3] != 0;
    a->scale = (float)c->args[4];
    if (a->dim > SZ_ATTENTION_WIDEST) return sz_fail("%s: head_dim is %d; on CUDA it may be up to %d", op, a->dim, SZ_ATTENTION_WIDEST);
    int64_t size = (int64_t)sz_dtype_size(q->dtype), first_key = packed ? (int64_t)a->heads * a->dim : 0;
    a->q = q->data;
    a->k = (const char *)k->data + first_key * size;
    a->v = (const char *)v->data + (packed ? first_key + (int64_t)a->groups * a->dim : 0) * size;
    a->q_ld = sz_cols(q);
    a->k_ld = sz_cols(k);
    a->whole16 = a->dim * size % 16 == 0 && a->q_ld * size % 16 == 0 && a->k_ld * size % 16 == 0 && sz_on16(a->q) && sz_on16(a->k) && sz_on16(a->v);
    a->segments = (const sz_segment_row *)sz_cuda_indices(c->in[packed ? 1 : 3]);
    return a->segments ? 0 : -1;
}

static inline const sz_segment_row *sz_segment_rows(const sz_tensor *table) { return (const sz_segment_row *)table->data; }

/* Runs the statement with T as the element type of dtype and DIM as the tile's width for heads of width dim. */
#define SZ_ATTENTION_TILE(dtype, dim, T, DIM, ...) do { \
        if ((dtype) == SZ_F32) { \
            typedef float T; \
            if ((dim) <= 32) { enum { DIM = 32 }; __VA_ARGS__; } \
            else if ((dim) <= 64) { enum { DIM = 64 }; __VA_ARGS__; } \
            else if ((dim) <= 96) { enum { DIM = 96 }; __VA_ARGS__; } \
            else { enum { DIM = 128 }; __VA_ARGS__; } \
        } else { \
            typedef bf16 T; \
            if ((dim) <= 16) { enum { DIM = 16 }; __VA_ARGS__; } \
            else if ((dim) <= 32) { enum { DIM = 32 }; __VA_ARGS__; } \
            else if ((dim) <= 64) { enum { DIM = 64 }; __VA_ARGS__; } \
            else if ((dim) <= 80) { enum { DIM = 80 }; __VA_ARGS__; } \
            else if ((dim) <= 96) { enum { DIM = 96 }; __VA_ARGS__; } \
            else if ((dim) <= 112) { enum { DIM = 112 }; __VA_ARGS__; } \
            else { enum { DIM = 128 }; __VA_ARGS__; } \
        } \
    } while (0)

/* ---- tiles ---- */
template <typename T, int DIM> struct sz_tile { enum { LD = DIM + 16 / (int)sizeof(T) }; };

__device__ __forceinline__ int64_t sz_key_row(const sz_segment_row &s, int64_t j)
{
    return j < s.p_len ? s.p_start + j : s.k_start + (j - s.p_len);
}

/* Starts to bring ROWS rows of dim elements into a tile; row(i) is the address of row i's elements, NULL for zeros. All threads of
 * the block; the rows are there after each thread's sz_copy_async_wait and a barrier. anywhere: an address of the tensor. */
template <typename T, int DIM, int ROWS, typename Row>
__device__ __forceinline__ void sz_tile_fetch(T *tile, const sz_attention_args &a, const T *anywhere, Row row)
{
    enum { LD = sz_tile<T, DIM>::LD, PIECE = 16 / (int)sizeof(T), PIECES = DIM / PIECE };
    if (a.whole16) {
#pragma unroll 4
        for (int i = (int)threadIdx.x; i < ROWS * PIECES; i += SZ_ATTENTION_THREADS) {
            int r = i / PIECES, x = i % PIECES * PIECE;
            const T *from = row(r);
            bool there = from && x < a.dim;
            sz_copy_async16(tile + r * LD + x, there ? from + x : anywhere, there);
        }
    } else {
        for (int i = (int)threadIdx.x; i < ROWS * DIM; i += SZ_ATTENTION_THREADS) {
            int r = i / DIM, x = i % DIM;
            const T *from = row(r);
            sz_store(tile + r * LD + x, from && x < a.dim ? sz_load(from + x) : 0.0f);
        }
    }
}

/* c = a b^T: a is the warp's 16 rows, b has N rows. */
template <int DIM, int N> __device__ __forceinline__ void sz_tile_dot(float (&c)[N / 8][4], const bf16 *a, const bf16 *b)
{
    enum { LD = sz_tile<bf16, DIM>::LD };
    int lane = (int)threadIdx.x % 32;
    a += lane % 16 * LD + lane / 16 * 8;
    b += (lane / 16 * 8 + lane % 8) * LD + lane / 8 % 2 * 8;
#pragma unroll
    for (int n = 0; n < N / 8; n++)
        for (int i = 0; i < 4; i++) c[n][i] = 0;
#pragma unroll
    for (int k = 0; k < DIM; k += 16) {
        uint32_t x[4], y[4];
        sz_ldmatrix(x, a + k);
#pragma unroll
        for (int n = 0; n < N; n += 16) {
            sz_ldmatrix(y, b + n * LD + k);
            sz_mma(c[n / 8], x, y[0], y[1]);
            sz_mma(c[n / 8 + 1], x, y[2], y[3]);
        }
    }
}

template <int DIM, int N> __device__ __forceinline__ void sz_tile_dot(float (&c)[N / 8][4], const float *a, const float *b)
{
    enum { LD = sz_tile<float, DIM>::LD };
    int lane = (int)threadIdx.x % 32;
    a += lane / 4 * LD;
    b += 2 * (lane % 4) * LD;
#pragma unroll
    for (int n = 0; n < N / 8; n++)
        for (int i = 0; i < 4; i++) c[n][i] = 0;
#pragma unroll 2
    for (int k = 0; k < DIM; k += 4) {
        float4 x[2] = { *(const float4 *)(a + k), *(const float4 *)(a + 8 * LD + k) };
#pragma unroll
        for (int n = 0; n < N / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float4 y = *(const float4 *)(b + (8 * n + i % 2) * LD + k);
                c[n][i] = fmaf(x[i / 2].w, y.w, fmaf(x[i / 2].z, y.z, fmaf(x[i / 2].y, y.y, fmaf(x[i / 2].x, y.x, c[n][i]))));
            }
        }
    }
}

/* acc += p y: p in fragments of the warp's 16 rows, y has N rows. */
template <int DIM, int N> __device__ __forceinline__ void sz_tile_add(float (&acc)[DIM / 8][4], const float (&p)[N / 8][4], const bf16 *y)
{
    enum { LD = sz_tile<bf16, DIM>::LD };
    int lane = (int)threadIdx.x % 32;
    y += lane % 16 * LD + lane / 16 * 8;
#pragma unroll
    for (int n = 0; n < N; n += 16) {
        const float *p0 = p[n / 8], *p1 = p[n / 8 + 1];
        uint32_t x[4] = { sz_bf16_pair(p0[0], p0[1]), sz_bf16_pair(p0[2], p0[3]), sz_bf16_pair(p1[0], p1[1]), sz_bf16_pair(p1[2], p1[3]) };
#pragma unroll
        for (int d = 0; d < DIM; d += 16) {
            uint32_t z[4];
            sz_ldmatrix_transposed(z, y + n * LD + d);
            sz_mma(acc[d / 8], x, z[0], z[1]);
            sz_mma(acc[d / 8 + 1], x, z[2], z[3]);
        }
    }
}

template <int DIM, int N> __device__ __forceinline__ void sz_tile_add(float (&acc)[DIM / 8][4], const float (&p)[N / 8][4], const float *y)
{
    enum { LD = sz_tile<float, DIM>::LD };
    int lane = (int)threadIdx.x % 32, t = lane % 4;
#pragma unroll
    for (int n = 0; n < N / 8; n++) {
#pragma unroll
        for (int j = 0; j < 8; j++) {
            float upper = __shfl_sync(0xffffffffu, p[n][j % 2], lane - t + j / 2), lower = __shfl_sync(0xffffffffu, p[n][2 + j % 2], lane - t + j / 2);
            const float *row = y + (8 * n + j) * LD + 2 * t;
#pragma unroll
            for (int d = 0; d < DIM / 8; d++) {
                float2 z = *(const float2 *)(row + 8 * d);
                acc[d][0] = fmaf(upper, z.x, acc[d][0]);
                acc[d][1] = fmaf(upper, z.y, acc[d][1]);
                acc[d][2] = fmaf(lower, z.x, acc[d][2]);
                acc[d][3] = fmaf(lower, z.y, acc[d][3]);
            }
        }
    }
}

/* Writes the warp's 16 rows acc * factor[0 or 1: upper or lower rows], through `tile`, 16 rows of shared memory that are the
 * warp's own. row(i) is where row i of the 16 goes, NULL for nowhere. All lanes of the warp. */
template <typename T, int DIM, typename Row>
__device__ __forceinline__ void sz_tile_write(T *tile, const float (&acc)[DIM / 8][4], const float (&factor)[2], const sz_attention_args &a, bool whole16, Row row)
{
    enum { LD = sz_tile<T, DIM>::LD, PIECE = 16 / (int)sizeof(T), PIECES = DIM / PIECE };
    int lane = (int)threadIdx.x % 32;
    __syncwarp();
#pragma unroll
    for (int d = 0; d < DIM / 8; d++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            sz_store(tile + (lane / 4 + i / 2 * 8) * LD + 8 * d + 2 * (lane % 4) + i % 2, acc[d][i] * factor[i / 2]);
    __syncwarp();
    if (whole16) {
        for (int i = lane; i < 16 * PIECES; i += 32) {
            int r = i / PIECES, x = i % PIECES * PIECE;
            T *to = row(r);
            if (to && x < a.dim) *(uint4 *)(to + x) = *(const uint4 *)(tile + r * LD + x);
        }
    } else {
        for (int i = lane; i < 16 * DIM; i += 32) {
            int r = i / DIM, x = i % DIM;
            T *to = row(r);
            if (to && x < a.dim) to[x] = tile[r * LD + x];
        }
    }
}

/* ---- softmax that runs along the keys, for a lane's two rows; in powers of two ---- */
struct sz_running { float max[2], sum[2]; };      /* sum: of this lane's columns alone */

template <int N, int D8> __device__ __forceinline__ void sz_running_step(sz_running &w, float (&s)[N / 8][4], float (&acc)[D8][4])
{
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float m = w.max[h], sum = 0;
#pragma unroll
        for (int n = 0; n < N / 8; n++) m = fmaxf(m, fmaxf(s[n][2 * h], s[n][2 * h + 1]));
        m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 1));
        m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 2));
        float base = m == -INFINITY ? 0.0f : m, shrink = exp2f(w.max[h] - base);
#pragma unroll
        for (int n = 0; n < N / 8; n++) {
            s[n][2 * h] = exp2f(s[n][2 * h] - base);
            s[n][2 * h + 1] = exp2f(s[n][2 * h + 1] - base);
            sum += s[n][2 * h] + s[n][2 * h + 1];
        }
        w.max[h] = m;
        w.sum[h] = w.sum[h] * shrink + sum;
#pragma unroll
        for (int d = 0; d < D8; d++) {
            acc[d][2 * h] *= shrink;
            acc[d][2 * h + 1] *= shrink;
        }
    }
}

/* ---- a forward task: up to 64 columns of one key head against a stretch of keys ---- */
/* Columns: `columns` of them from `column` on, of segment `segment`; or, if list >= 0, of the queries list[list + ...], which
 * then name their rows and limits and may be of many segments with the same keys here. Keys [first_key, end_key) of that
 * segment. slot: -1 to write the result, else where the sums of its first column go for a later join. No columns: nothing to do. */
struct sz_flash_task { int64_t column; int32_t segment, list, columns, first_key, end_key, slot; };
struct sz_flash_query { int32_t row, limit; };

/* Sums for a join, [slot + column, group]: DIM sums each, and {max, sum} in powers of two. */
struct sz_flash_parts { float *sums; float2 *weights; };

/* Runs tasks for every key head. out [rows, H * dim] and lse f32 [H, rows] (NULL: not wanted) for slots of -1, parts for others
 * (laid out with the width that sz_flash_width says). tasks and list are on the device. 0, or -1 with a message. */
int sz_flash_run(const char *op, int dtype, const sz_attention_args &a, const sz_flash_task *tasks, int64_t count, const sz_flash_query *list,
                 void *out, float *lse, int64_t rows, const sz_flash_parts &parts);
int sz_flash_width(int dtype, int dim);

/* Tasks for all columns of one segment that nothing else shares, the longest first; returns how many. to may be NULL. */
static inline int64_t sz_flash_cut(const sz_segment_row *table, int32_t segment, int32_t share, sz_flash_task *to)
{
    int64_t columns = (int64_t)table[segment].q_len * share, n = (columns + SZ_ATTENTION_COLUMNS - 1) / SZ_ATTENTION_COLUMNS;
    for (int64_t i = 0; to && i < n; i++) {
        int64_t at = (n - 1 - i) * SZ_ATTENTION_COLUMNS, left = columns - at;
        to[i] = sz_flash_task{ at, segment, -1, left < SZ_ATTENTION_COLUMNS ? (int32_t)left : (int32_t)SZ_ATTENTION_COLUMNS, 0, INT32_MAX, -1 };
    }
    return n;
}

/* The tasks of all segments, on the device. How many: number[0]. NULL with a message. */
enum { SZ_PLAN_FLASH = 1, SZ_PLAN_CACHED, SZ_PLAN_BACKWARD };
static inline const sz_cuda_cache_entry *sz_flash_plan(const char *op, const sz_tensor *table, int32_t share)
{
    sz_cuda_cache_entry *p = sz_cuda_cache_get(table, SZ_PLAN_FLASH, share, 0, 0);
    if (!p || p->device) return p;
    const sz_segment_row *rows = sz_segment_rows(table);
    int64_t count = 0, at = 0;
    for (int64_t i = 0; i < table->shape[0]; i++) count += sz_flash_cut(rows, (int32_t)i, share, NULL);
    sz_flash_task *tasks = (sz_flash_task *)malloc((size_t)(count + 1) * sizeof *tasks);
    if (!tasks) return (sz_cuda_cache_entry *)sz_null("%s: out of memory", op);
    for (int64_t i = 0; i < table->shape[0]; i++) at += sz_flash_cut(rows, (int32_t)i, share, tasks + at);
    p->number[0] = count;
    int rc = sz_cuda_cache_fill(p, tasks, (size_t)count * sizeof *tasks);
    free(tasks);
    return rc == 0 ? p : NULL;
}

/* Queries that the table names; they do not overlap. */
static inline int64_t sz_segment_queries(const sz_tensor *segments)
{
    int64_t n = 0;
    for (int64_t i = 0; i < segments->shape[0]; i++) n += sz_segment_rows(segments)[i].q_len;
    return n;
}

#endif
