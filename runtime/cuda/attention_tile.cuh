/* attention_tile.cuh - tiles of rows in shared memory, products of tiles, and the online softmax,
 * for the attention kernels.
 *
 * A tile holds rows of DIM elements, the head's width rounded up and padded with zeros. Rows are
 * DIM elements plus 16 bytes apart, so that they start in different banks. The sums of products are
 * fragments with the layout of c in mma.cuh: of a warp's 16 rows, lane 4r + t holds columns 8n +
 * 2t and 8n + 2t + 1 of rows r and r + 8. Both element types provide the same two products:
 *   sz_tile_dot         c [16, N] = a [16, DIM] b [N, DIM]^T
 *   sz_tile_accumulate  acc [16, DIM] += p [16, N] y [N, DIM]
 * For bf16 they use tensor cores with f32 sums (p is rounded to bf16), for f32 plain multiply-adds.
 * Leaves out: Hopper's warpgroup products. */
#ifndef SZ_ATTENTION_TILE_CUH
#define SZ_ATTENTION_TILE_CUH

#include "attention.cuh"
#include "mma.cuh"

/* LD: elements from one row of a tile to the next. */
template <typename T, int DIM> struct sz_tile {
    enum { LD = DIM + 16 / (int)sizeof(T) };
};

/* ---- between global memory and tiles ---- */
/* Starts copying ROWS rows of a.dim elements into a tile. row(i) returns the address of row i, or
 * NULL for a row of zeros. valid_address is any address inside the tensor. All threads of the
 * block call this. The rows have arrived after every thread's sz_copy_async_wait and a barrier. */
template <typename T, int DIM, int ROWS, typename Row>
__device__ __forceinline__ void sz_tile_load(T *tile, const sz_attention_args &a,
                                             const T *valid_address, Row row)
{
    enum { LD = sz_tile<T, DIM>::LD, PIECE = 16 / (int)sizeof(T), PIECES = DIM / PIECE };
    if (a.aligned16) {
        /* Asynchronous copies of 16 bytes. */
#pragma unroll 4
        for (int i = (int)threadIdx.x; i < ROWS * PIECES; i += SZ_ATTENTION_THREADS) {
            int r = i / PIECES;
            int x = i % PIECES * PIECE;
            const T *from = row(r);
            bool valid = from && x < a.dim;
            sz_copy_async16(tile + r * LD + x, valid ? from + x : valid_address, valid);
        }
    } else {
        /* One element at a time. */
        for (int i = (int)threadIdx.x; i < ROWS * DIM; i += SZ_ATTENTION_THREADS) {
            int r = i / DIM;
            int x = i % DIM;
            const T *from = row(r);
            sz_store(tile + r * LD + x, from && x < a.dim ? sz_load(from + x) : 0.0f);
        }
    }
}

/* Starts loading the segment's key or value rows [first, first + N); zeros from `end` on. */
template <typename T, int DIM, int N>
__device__ __forceinline__ void sz_load_key_rows(T *tile, const sz_attention_args &a, const T *from,
                                                 const sz_segment_row &s, int first, int end)
{
    const int64_t k_ld = a.k_ld;
    sz_tile_load<T, DIM, N>(tile, a, from, [=](int r) {
        return first + r < end ? from + sz_key_row(s, first + r) * k_ld : (const T *)NULL;
    });
}

/* Writes the warp's 16 rows of acc, multiplied by factor[0] (upper 8 rows) or factor[1] (lower 8).
 * `tile` is shared memory for 16 rows that belong to this warp. row(i) returns where row i goes, or
 * NULL to skip it. All lanes of the warp call this. */
template <typename T, int DIM, typename Row>
__device__ __forceinline__ void sz_tile_write(T *tile, const float (&acc)[DIM / 8][4],
                                              const float (&factor)[2], const sz_attention_args &a,
                                              bool aligned16, Row row)
{
    enum { LD = sz_tile<T, DIM>::LD, PIECE = 16 / (int)sizeof(T), PIECES = DIM / PIECE };
    int lane = (int)threadIdx.x % 32;
    /* Convert to T in shared memory, where rows are contiguous. */
    __syncwarp();
#pragma unroll
    for (int d = 0; d < DIM / 8; d++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            sz_store(tile + (lane / 4 + i / 2 * 8) * LD + 8 * d + 2 * (lane % 4) + i % 2,
                     acc[d][i] * factor[i / 2]);
    __syncwarp();
    /* Copy the rows out, 16 bytes or one element at a time. */
    if (aligned16) {
        for (int i = lane; i < 16 * PIECES; i += 32) {
            int r = i / PIECES;
            int x = i % PIECES * PIECE;
            T *to = row(r);
            if (to && x < a.dim) *(uint4 *)(to + x) = *(const uint4 *)(tile + r * LD + x);
        }
    } else {
        for (int i = lane; i < 16 * DIM; i += 32) {
            int r = i / DIM;
            int x = i % DIM;
            T *to = row(r);
            if (to && x < a.dim) to[x] = tile[r * LD + x];
        }
    }
}

/* ---- products ---- */
template <int N> __device__ __forceinline__ void sz_tile_clear(float (&c)[N][4])
{
#pragma unroll
    for (int n = 0; n < N; n++)
        for (int i = 0; i < 4; i++) c[n][i] = 0;
}

/* c = a b^T. a points to the warp's 16 rows; b has N rows. */
template <int DIM, int N>
__device__ __forceinline__ void sz_tile_dot(float (&c)[N / 8][4], const bf16 *a, const bf16 *b)
{
    enum { LD = sz_tile<bf16, DIM>::LD };
    /* The row whose address this lane passes to sz_ldmatrix. */
    int lane = (int)threadIdx.x % 32;
    a += lane % 16 * LD + lane / 16 * 8;
    b += (lane / 16 * 8 + lane % 8) * LD + lane / 8 % 2 * 8;
    sz_tile_clear(c);
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

/* sum + x . y, the first element's product first. */
__device__ __forceinline__ float sz_dot4(const float4 &x, const float4 &y, float sum)
{
    return fmaf(x.w, y.w, fmaf(x.z, y.z, fmaf(x.y, y.y, fmaf(x.x, y.x, sum))));
}

template <int DIM, int N>
__device__ __forceinline__ void sz_tile_dot(float (&c)[N / 8][4], const float *a, const float *b)
{
    enum { LD = sz_tile<float, DIM>::LD };
    /* This lane's first row of a and of b. */
    int lane = (int)threadIdx.x % 32;
    a += lane / 4 * LD;
    b += 2 * (lane % 4) * LD;
    sz_tile_clear(c);
#pragma unroll 2
    for (int k = 0; k < DIM; k += 4) {
        float4 x[2] = { *(const float4 *)(a + k), *(const float4 *)(a + 8 * LD + k) };
#pragma unroll
        for (int n = 0; n < N / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float4 y = *(const float4 *)(b + (8 * n + i % 2) * LD + k);
                c[n][i] = sz_dot4(x[i / 2], y, c[n][i]);
            }
        }
    }
}

/* acc += p y. p holds fragments of the warp's 16 rows; y has N rows. */
template <int DIM, int N>
__device__ __forceinline__ void sz_tile_accumulate(float (&acc)[DIM / 8][4],
                                                   const float (&p)[N / 8][4], const bf16 *y)
{
    enum { LD = sz_tile<bf16, DIM>::LD };
    int lane = (int)threadIdx.x % 32;
    y += lane % 16 * LD + lane / 16 * 8;
#pragma unroll
    for (int n = 0; n < N; n += 16) {
        /* Two neighbouring c fragments are one a fragment. */
        const float *p0 = p[n / 8];
        const float *p1 = p[n / 8 + 1];
        uint32_t x[4] = { sz_bf16_pair(p0[0], p0[1]), sz_bf16_pair(p0[2], p0[3]),
                          sz_bf16_pair(p1[0], p1[1]), sz_bf16_pair(p1[2], p1[3]) };
#pragma unroll
        for (int d = 0; d < DIM; d += 16) {
            uint32_t z[4];
            sz_ldmatrix_transposed(z, y + n * LD + d);
            sz_mma(acc[d / 8], x, z[0], z[1]);
            sz_mma(acc[d / 8 + 1], x, z[2], z[3]);
        }
    }
}

template <int DIM, int N>
__device__ __forceinline__ void sz_tile_accumulate(float (&acc)[DIM / 8][4],
                                                   const float (&p)[N / 8][4], const float *y)
{
    enum { LD = sz_tile<float, DIM>::LD };
    int lane = (int)threadIdx.x % 32;
    int t = lane % 4;
#pragma unroll
    for (int n = 0; n < N / 8; n++) {
#pragma unroll
        for (int j = 0; j < 8; j++) {
            /* p of column 8n + j comes from the lane that holds it. */
            float upper = __shfl_sync(0xffffffffu, p[n][j % 2], lane - t + j / 2);
            float lower = __shfl_sync(0xffffffffu, p[n][2 + j % 2], lane - t + j / 2);
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

/* ---- online softmax over the keys, for a lane's two rows; scores are in units of log2 ---- */
struct sz_online_softmax {
    float max[2];
    float sum[2]; /* over this lane's columns only */
};

/* Takes the scores s of N more keys: updates maximum and sum, replaces s by the weights and
 * rescales acc to the new maximum. */
template <int N, int D8>
__device__ __forceinline__ void sz_online_softmax_update(sz_online_softmax &w, float (&s)[N / 8][4],
                                                         float (&acc)[D8][4])
{
#pragma unroll
    for (int h = 0; h < 2; h++) {
        /* The row's new maximum; the four lanes of a row exchange theirs. */
        float m = w.max[h];
        float sum = 0;
#pragma unroll
        for (int n = 0; n < N / 8; n++) m = fmaxf(m, fmaxf(s[n][2 * h], s[n][2 * h + 1]));
        m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 1));
        m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 2));
        /* -inf - -inf would be NaN: a row without any visible key counts from 0. */
        float base = m == -INFINITY ? 0.0f : m;
        float shrink = exp2f(w.max[h] - base);
#pragma unroll
        for (int n = 0; n < N / 8; n++) {
            s[n][2 * h] = exp2f(s[n][2 * h] - base);
            s[n][2 * h + 1] = exp2f(s[n][2 * h + 1] - base);
            sum += s[n][2 * h] + s[n][2 * h + 1];
        }
        /* Rescale what was summed relative to the old maximum. */
        w.max[h] = m;
        w.sum[h] = w.sum[h] * shrink + sum;
#pragma unroll
        for (int d = 0; d < D8; d++) {
            acc[d][2 * h] *= shrink;
            acc[d][2 * h + 1] *= shrink;
        }
    }
}

#endif
