/* int8.cu - linear layers with 8-bit weights on the device. Format: cpu/int8.h; the reference is
 * cpu/reference/int8.c.
 *
 *   quantize_int8   w1, w2, w3 [m, k] side by side -> q, scale: the same bytes as on the CPU
 *   dequantize_int8 q, scale -> w [m, k]
 *   linear_int8     quantizes x [n, k] to 8 bits, computes integer products of groups of 256
 *                   columns, scales them and sums in f32
 *
 * Products run on tensor cores (sz_mma_s8) with the weights as the 16-row side: a warp takes two
 * blocks of 16 weight rows, and a lane's 16 bytes of a block are one word of each of four rows.
 * Rows and columns may be assigned to a fragment in any order as long as the sums are read
 * accordingly: fragment row r of product h is row 4 (r % 4) + 2h of block r / 4, and fragment row
 * r + 8 is the next row. A group is two pieces of 128 columns. x is written in the order in which
 * a lane reads it: word 4i + t of a piece at place 8t + i, so that two 16-byte loads fetch all
 * eight words.
 *
 * skinny_kernel (decoding) is bound by reading the weight once: the warps of a block share 32
 * weight rows and take one piece each, so that a narrow layer still uses the whole device.
 * tiled_kernel gives each warp 32 rows of both sides. Both add the groups in order with the same
 * roundings, so an answer's numbers do not depend on how many others decode with it.
 * Leaves out: gradients of weights. */
#include "mma.cuh"
#include "vector.cuh"
#include "cpu/int8.h"

enum {
    THREADS = 256,
    WARPS = THREADS / 32,
    PAIR = 2 * SZ_Q_ROWS, /* weight rows of a warp */
    PIECES = 2,           /* of a group */
    PIECE = SZ_Q_GROUP / PIECES,
    PIECE_WORDS = PIECE / 4,
    OWN = SZ_Q_GROUP / 32, /* a lane's elements of a group */
    /* skinny_kernel: up to SKINNY rows of x, in tiles of 8, at most SKINNY_TILES in a block. */
    SKINNY = 64,
    SKINNY_TILES = 4,
    /* tiled_kernel: 4 x 2 warps, together 128 weight rows x 64 rows of x. */
    TILES_PER_WARP = 4,
    WARPS_DOWN = 4,
    WARPS_ACROSS = 2,
};

/* ---- quantizing ---- */
/* Returns the scale of up to 256 elements, eight in each lane of the warp (zeros past the end), and
 * what to multiply them by before rounding. Bit for bit as sz_q_scale: a maximum, and a sum of
 * zeros and NaN, do not depend on the order. If an element is not finite, the scale is NaN and
 * *inverse is 0; it is also 0 if all elements are smaller than SZ_Q_LEAST. */
__device__ __forceinline__ float warp_scale(const float (&x)[OWN], float *inverse)
{
    float largest = 0;
    float not_finite = 0; /* 0, or NaN if an element is infinite or NaN */
    for (int i = 0; i < OWN; i++) {
        largest = fmaxf(largest, fabsf(x[i]));
        not_finite += x[i] * 0.0f;
    }
    largest = sz_warp_max(largest);
    not_finite = sz_warp_sum(not_finite);
    *inverse = largest >= SZ_Q_LEAST && not_finite == 0 ? 127.0f / largest : 0.0f;
    return largest / 127.0f + not_finite;
}

/* Packs four elements as bytes: each x * inverse rounded to the nearest integer, plus zero. */
__device__ __forceinline__ uint32_t pack_bytes(const float *x, float inverse, int zero)
{
    uint32_t word = 0;
    for (int i = 0; i < 4; i++) {
        const int rounded = inverse == 0 ? 0 : (int)rintf(x[i] * inverse);
        word |= (uint32_t)(uint8_t)(zero + rounded) << (8 * i);
    }
    return word;
}

/* Loads this lane's four columns of both pieces of group g of a row; zeros past k, and if the row
 * is not valid. */
__device__ __forceinline__ void load_group(const sz_elements &e, int64_t row, int64_t k, int64_t g,
                                           bool valid, float (&x)[OWN])
{
    for (int i = 0; i < OWN; i++) {
        const int64_t col = g * SZ_Q_GROUP + i / 4 * PIECE + (int)threadIdx.x % 32 * 4 + i % 4;
        x[i] = valid && col < k ? sz_load_element(e, row * k + col) : 0.0f;
    }
}

struct weights {
    sz_elements w[3];
    int64_t rows[3];
};

/* One warp for each row and group. */
static __global__ void quantize_kernel(weights w, int64_t k, int64_t rows, int64_t words,
                                       int64_t groups, uint8_t *q, float *scale)
{
    const int64_t at = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32;
    const int64_t row = at / groups;
    const int64_t g = at % groups;
    const int lane = (int)threadIdx.x % 32;
    if (row >= rows) return;
    /* Row r of weight `which`; rows past the last weight are zeros. */
    int64_t r = row;
    int which = 0;
    while (which < 3 && r >= w.rows[which]) r -= w.rows[which++];
    float x[OWN], inverse;
    load_group(w.w[which < 3 ? which : 0], r, k, g, which < 3, x);
    const float s = warp_scale(x, &inverse);
    /* Write them in the layout of cpu/int8.h. */
    const int64_t block = row / SZ_Q_ROWS;
    const int64_t l = row % SZ_Q_ROWS;
    if (lane == 0) scale[(block * groups + g) * SZ_Q_ROWS + l] = s;
    for (int i = 0; i < PIECES; i++) {
        const int64_t p = g * SZ_Q_WORDS + i * PIECE_WORDS + lane;
        if (p < words)
            *(uint32_t *)(q + (block * words + p) * 64 + l * 4) = pack_bytes(x + 4 * i, inverse,
                                                                             SZ_Q_ZERO);
    }
}

extern "C" int sz_cuda_quantize_int8(const sz_call *c)
{
    const sz_tensor *q = c->out[0];
    const sz_tensor *scale = c->out[1];
    const int64_t k = sz_cols(c->in[0]);
    const int64_t words = q->shape[1];
    const int64_t groups = scale->shape[1];
    const int64_t rows = q->shape[0] * SZ_Q_ROWS;
    weights w = {};
    for (int i = 0; i < 3 && c->in[i]; i++) {
        w.w[i] = sz_elements_of(c->in[i]);
        w.rows[i] = c->in[i]->shape[0];
    }
    if (rows * groups > (int64_t)INT32_MAX * WARPS)
        return sz_fail("quantize_int8: the weight is too large for one launch");
    SZ_LAUNCH(quantize_kernel, (unsigned)sz_blocks(rows * groups, WARPS), THREADS, 0, w, k, rows,
              words, groups, (uint8_t *)q->data, sz_f32(scale));
    return sz_cuda_launched("quantize_int8");
}

/* One thread for each element of w [m, k]. */
static __global__ void dequantize_kernel(const uint8_t *q, const float *scale, int64_t words,
                                         int64_t groups, int64_t m, int64_t k, sz_elements w)
{
    const int64_t at = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (at >= m * k) return;
    const int64_t block = at / k / SZ_Q_ROWS;
    const int64_t lane = at / k % SZ_Q_ROWS;
    const int64_t col = at % k;
    const int code = q[(block * words + col / 4) * 64 + lane * 4 + col % 4] - SZ_Q_ZERO;
    const float unit = scale[(block * groups + col / SZ_Q_GROUP) * SZ_Q_ROWS + lane];
    sz_store_element(w, at, __fmul_rn((float)code, unit));
}

extern "C" int sz_cuda_dequantize_int8(const sz_call *c)
{
    const sz_tensor *q = c->in[0];
    const sz_tensor *scale = c->in[1];
    const sz_tensor *w = c->out[0];
    const int64_t m = w->shape[0];
    const int64_t k = w->shape[1];
    if (m * k > (int64_t)INT32_MAX * THREADS)
        return sz_fail("dequantize_int8: the weight is too large for one launch");
    SZ_LAUNCH(dequantize_kernel, (unsigned)sz_blocks(m * k, THREADS), THREADS, 0,
              (const uint8_t *)q->data, sz_f32(scale), q->shape[1], scale->shape[1], m, k,
              sz_elements_of(w));
    return sz_cuda_launched("dequantize_int8");
}

/* x in 8 bits: words [rows, groups, 2, 32] in the order given above, scale [groups, rows]. Rows
 * past the end of x are zeros. */
struct quantized_rows {
    uint4 *word;
    float *scale;
    int64_t rows, groups;
};

static __global__ void quantize_rows_kernel(sz_elements x, int64_t n, int64_t k, quantized_rows to)
{
    const int64_t at = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32;
    const int64_t row = at / to.groups;
    const int64_t g = at % to.groups;
    const int lane = (int)threadIdx.x % 32;
    if (row >= to.rows) return;
    float v[OWN], inverse;
    load_group(x, row, k, g, row < n, v);
    const float s = warp_scale(v, &inverse);
    if (lane == 0) to.scale[g * to.rows + row] = s;
    for (int i = 0; i < PIECES; i++) {
        const int64_t place = at * SZ_Q_WORDS + i * PIECE_WORDS + lane % 4 * 8 + lane / 4;
        ((uint32_t *)to.word)[place] = pack_bytes(v + 4 * i, inverse, 0);
    }
}

/* ---- products ---- */
/* One lane's view of the two blocks of weight rows that its warp has. */
struct weight_rows {
    const uint4 *q; /* the lane's four rows, at word 0 */
    const float *scale;
    int64_t words;
};

__device__ __forceinline__ weight_rows weights_at(const uint8_t *q, const float *scale,
                                                  int64_t pair, int64_t blocks, int64_t words,
                                                  int64_t groups)
{
    const int r = (int)threadIdx.x % 32 / 4;
    const int64_t block = min(pair * 2 + r / 4, blocks - 1);
    return weight_rows{ (const uint4 *)q + block * words * 4 + r % 4,
                        scale + block * groups * SZ_Q_ROWS + r % 4 * 4, words };
}

/* Loads this lane's part of a piece: words 4i + t for i = 0 .. 7, each for four rows. Words past
 * the end are zeros, that is bytes of 128. */
__device__ __forceinline__ void load_weights(const weight_rows &w, int64_t piece, uint4 (&a)[8])
{
    const int t = (int)threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const int64_t p = piece * PIECE_WORDS + 4 * i + t;
        a[i] = p < w.words ? w.q[p * 4]
                           : make_uint4(0x80808080u, 0x80808080u, 0x80808080u, 0x80808080u);
    }
}

/* sum[tile][h] += the products of a piece: fragment h of the weights times rows 8 tile .. of x
 * counted from `row`. So sum[tile][i / 2][i % 2 * 2 + j] is weight row i of the lane's four, times
 * row 8 tile + 2t + j. */
template <int TILES>
__device__ __forceinline__ void piece_products(const uint4 (&a)[8], int64_t piece,
                                               const quantized_rows &x, int64_t row,
                                               int32_t (&sum)[TILES][2][4])
{
    const int lane = (int)threadIdx.x % 32;
    const int t = lane % 4;
    /* Stored bytes have 128 added; flipping the top bit makes them signed. */
    uint32_t bytes[8][4];
#pragma unroll
    for (int i = 0; i < 8; i++) {
        bytes[i][0] = a[i].x ^ 0x80808080u;
        bytes[i][1] = a[i].y ^ 0x80808080u;
        bytes[i][2] = a[i].z ^ 0x80808080u;
        bytes[i][3] = a[i].w ^ 0x80808080u;
    }
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
        /* Eight words of this lane's row of x. */
        const int64_t own = (row + 8 * tile + lane / 4) * x.groups * PIECES + piece;
        const uint4 *from = x.word + own * (PIECE_WORDS / 4) + 2 * t;
        const uint4 low = from[0];
        const uint4 high = from[1];
        const uint32_t b[8] = { low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w };
#pragma unroll
        for (int s = 0; s < 8; s += 2)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const uint32_t rows[4] = { bytes[s][2 * h], bytes[s][2 * h + 1],
                                           bytes[s + 1][2 * h], bytes[s + 1][2 * h + 1] };
                sz_mma_s8(sum[tile][h], rows, b[s], b[s + 1]);
            }
    }
}

/* The products of a group, an integer, times both scales. */
__device__ __forceinline__ float scaled(int32_t sum, float w_scale, float x_scale)
{
    return __fmul_rn((float)sum, __fmul_rn(w_scale, x_scale));
}

/* sum + the bias of this column, if there is one. */
__device__ __forceinline__ float with_bias(float sum, const sz_elements &bias, int64_t col)
{
    return bias.data ? __fadd_rn(sum, sz_load_element(bias, col)) : sum;
}

/* ---- few rows of x ---- */
/* Block (x, y) computes weight rows from 32 x on, and rows of x from 8 TILES y on. */
template <int TILES> static __global__ void __launch_bounds__(THREADS)
    skinny_kernel(const uint8_t *q, const float *scale, int64_t blocks, int64_t words,
                  quantized_rows x, int64_t n, int64_t m, sz_elements bias, sz_elements y)
{
    enum { WIDTH = PAIR + 4, GROUPS = WARPS / PIECES }; /* rows start in different banks */
    __shared__ __align__(16) int32_t part[WARPS][8 * TILES][WIDTH];
    const int lane = (int)threadIdx.x % 32;
    const int warp = (int)threadIdx.x / 32;
    const int r = lane / 4;
    const int t = lane % 4;
    const int64_t row = (int64_t)blockIdx.y * 8 * TILES;
    const int64_t groups = x.groups;
    const int64_t pieces = groups * PIECES;
    const weight_rows w = weights_at(q, scale, blockIdx.x, blocks, words, groups);
    /* The scales of the weight row whose sums this thread has. */
    const int64_t own_block = min((int64_t)blockIdx.x * 2 + lane / SZ_Q_ROWS, blocks - 1);
    const float *own_scale = scale + own_block * groups * SZ_Q_ROWS + lane % SZ_Q_ROWS;
    float sum[TILES];
    for (int i = 0; i < TILES; i++) sum[i] = 0;
    uint4 a[8];
    if (warp < pieces) load_weights(w, warp, a);
    for (int64_t first = 0; first < groups; first += GROUPS) {
        /* Each warp multiplies one piece. */
        const int64_t piece = first * PIECES + warp;
        if (piece < pieces) {
            int32_t v[TILES][2][4] = {};
            piece_products<TILES>(a, piece, x, row, v);
#pragma unroll
            for (int tile = 0; tile < TILES; tile++)
                for (int j = 0; j < 2; j++) {
                    const int32_t(&p)[2][4] = v[tile];
                    *(int4 *)&part[warp][8 * tile + 2 * t + j][4 * r] =
                        make_int4(p[0][j], p[0][2 + j], p[1][j], p[1][2 + j]);
                }
        }
        /* The next piece's weights arrive while this warp waits for the others. */
        if (piece + WARPS < pieces) load_weights(w, piece + WARPS, a);
        __syncthreads();
        /* Add the groups in order; each thread has one element of every tile. */
        for (int i = 0; i < GROUPS && first + i < groups; i++) {
            const int64_t g = first + i;
            const float w_scale = own_scale[g * SZ_Q_ROWS];
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
                const int to = 8 * tile + warp;
                int32_t products = 0;
                for (int p = 0; p < PIECES; p++) products += part[i * PIECES + p][to][lane];
                sum[tile] = __fadd_rn(sum[tile],
                                      scaled(products, w_scale, x.scale[g * x.rows + row + to]));
            }
        }
        __syncthreads();
    }
    const int64_t col = (int64_t)blockIdx.x * PAIR + lane;
    for (int tile = 0; tile < TILES; tile++) {
        const int64_t to = row + 8 * tile + warp;
        if (to < n && col < m) sz_store_element(y, to * m + col, with_bias(sum[tile], bias, col));
    }
}

/* ---- many rows of x ---- */
static __global__ void __launch_bounds__(THREADS)
    tiled_kernel(const uint8_t *q, const float *scale, int64_t blocks, int64_t words,
                 quantized_rows x, int64_t n, int64_t m, sz_elements bias, sz_elements y)
{
    const int lane = (int)threadIdx.x % 32;
    const int warp = (int)threadIdx.x / 32;
    const int t = lane % 4;
    const int64_t pair = (int64_t)blockIdx.x * WARPS_DOWN + warp % WARPS_DOWN;
    const int64_t across = (int64_t)blockIdx.y * WARPS_ACROSS + warp / WARPS_DOWN;
    const int64_t row = across * 8 * TILES_PER_WARP;
    if (pair * PAIR >= m || row >= n) return;
    const weight_rows w = weights_at(q, scale, pair, blocks, words, x.groups);
    /* Add the products of all groups, in order. */
    float sum[TILES_PER_WARP][2][4];
    for (int i = 0; i < 8 * TILES_PER_WARP; i++) sum[i / 8][i / 4 % 2][i % 4] = 0;
    for (int64_t g = 0; g < x.groups; g++) {
        int32_t v[TILES_PER_WARP][2][4] = {};
        for (int p = 0; p < PIECES; p++) {
            uint4 a[8];
            load_weights(w, g * PIECES + p, a);
            piece_products<TILES_PER_WARP>(a, g * PIECES + p, x, row, v);
        }
        const float4 four = *(const float4 *)(w.scale + g * SZ_Q_ROWS);
        const float w_scale[4] = { four.x, four.y, four.z, four.w };
#pragma unroll
        for (int tile = 0; tile < TILES_PER_WARP; tile++)
#pragma unroll
            for (int j = 0; j < 2; j++) {
                const float x_scale = x.scale[g * x.rows + row + 8 * tile + 2 * t + j];
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const int32_t products = v[tile][i / 2][i % 2 * 2 + j];
                    float &s = sum[tile][j][i];
                    s = __fadd_rn(s, scaled(products, w_scale[i], x_scale));
                }
            }
    }
    const int64_t first = pair * PAIR + lane / 4 * 4;
    for (int tile = 0; tile < TILES_PER_WARP; tile++)
        for (int j = 0; j < 2; j++) {
            const int64_t to = row + 8 * tile + 2 * t + j;
            for (int i = 0; i < 4; i++)
                if (to < n && first + i < m)
                    sz_store_element(y, to * m + first + i,
                                     with_bias(sum[tile][j][i], bias, first + i));
        }
}

/* ---- the op ---- */
/* Returns how many tiles of 8 rows a block of skinny_kernel has. */
static int64_t skinny_tiles(int64_t n)
{
    if (n <= 8) return 1;
    return n <= 16 ? 2 : SKINNY_TILES;
}

extern "C" int sz_cuda_linear_int8(const sz_call *c)
{
    const sz_tensor *x = c->in[0];
    const sz_tensor *q = c->in[1];
    const sz_tensor *b = c->in[3];
    const sz_tensor *y = c->out[0];
    const float *scale = sz_f32(c->in[2]);
    const int64_t n = sz_rows(x);
    const int64_t k = sz_cols(x);
    const int64_t m = sz_cols(y);
    const int64_t blocks = q->shape[0];
    const int64_t words = q->shape[1];
    const int64_t groups = c->in[2]->shape[1];
    if (n == 0) return 0;

    /* tiled_kernel, if there are enough rows to fill the device with its blocks. */
    const int64_t tiled_rows = 8 * TILES_PER_WARP * WARPS_ACROSS;
    const int64_t tiled_blocks = sz_blocks(m, PAIR * WARPS_DOWN) * sz_blocks(n, tiled_rows);
    const bool is_tiled = n > SKINNY && tiled_blocks >= sz_cuda_processors();
    const int64_t tiles = skinny_tiles(n);
    const int64_t block_rows = is_tiled ? tiled_rows : 8 * tiles;
    const int64_t rows = sz_blocks(n, block_rows) * block_rows;

    /* Quantize x. */
    const quantized_rows in = {
        (uint4 *)sz_cuda_scratch((size_t)(rows * groups) * SZ_Q_GROUP),
        (float *)sz_cuda_scratch((size_t)(rows * groups) * sizeof(float)),
        rows,
        groups,
    };
    if (!in.word || !in.scale) return -1;
    if (rows / block_rows > 65535 || rows * groups > (int64_t)INT32_MAX * WARPS)
        return sz_fail("linear_int8: %lld rows are more than one launch takes", (long long)n);
    SZ_LAUNCH(quantize_rows_kernel, (unsigned)sz_blocks(rows * groups, WARPS), THREADS, 0,
              sz_elements_of(x), n, k, in);

    /* Multiply. */
    const sz_elements bias = b ? sz_elements_of(b) : sz_elements{ NULL, false };
    const sz_elements out = sz_elements_of(y);
    const uint8_t *weight = (const uint8_t *)q->data;
    const int64_t weight_rows_per_block = is_tiled ? PAIR * WARPS_DOWN : PAIR;
    const dim3 grid((unsigned)sz_blocks(m, weight_rows_per_block), (unsigned)(rows / block_rows));
    if (is_tiled)
        SZ_LAUNCH(tiled_kernel, grid, THREADS, 0, weight, scale, blocks, words, in, n, m, bias,
                  out);
    else if (tiles == 1)
        SZ_LAUNCH(skinny_kernel<1>, grid, THREADS, 0, weight, scale, blocks, words, in, n, m, bias,
                  out);
    else if (tiles == 2)
        SZ_LAUNCH(skinny_kernel<2>, grid, THREADS, 0, weight, scale, blocks, words, in, n, m, bias,
                  out);
    else
        SZ_LAUNCH(skinny_kernel<SKINNY_TILES>, grid, THREADS, 0, weight, scale, blocks, words, in,
                  n, m, bias, out);
    return sz_cuda_launched("linear_int8");
}
