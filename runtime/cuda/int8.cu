/* int8.cu - linear layers with 8-bit weights on the device (format: cpu/int8.h; the reference is cpu/ref_int8.c).
 *
 *   quantize_int8   w1, w2, w3 [m, k] side by side -> q, scale: the same bytes as the processor's
 *   linear_int8     x [n, k] brought to 8 bits, whole-number products of groups of 128 columns, scaled and summed in f32
 *
 * Products run on tensor cores (sz_mma_s8) with weights as the 16-row side: a warp has two blocks of 16 weight rows, and a lane's
 * 16 bytes of a block are one word of four rows. Which rows and columns stand where in a fragment is free as long as sums end
 * where they belong: fragment row r of product h is row 4 (r % 4) + 2h of block r / 4, row r + 8 the next one. x is written in
 * the order that a lane reads: word 4i + t of a group at place 8t + i, so that two 16-byte moves bring all eight.
 *
 * few_kernel (decoding) is bound by reading the weight once: the warps of a block share 32 weight rows and take a group each,
 * so that all of the device reads even when the layer is narrow. many_kernel gives each warp 32 rows of either side. Both add
 * groups in order with the same roundings: an answer's numbers do not hang on how many decode beside it.
 * Leaves out: gradients. */
#include "mma.cuh"
#include "vector.cuh"
#include "cpu/int8.h"

enum { THREADS = 256, WARPS = THREADS / 32, PAIR = 2 * SZ_Q_ROWS,   /* weight rows of a warp */
       FEW = 64,                /* up to so many rows of x few_kernel, */
       FEW_TILES = 4,           /* in tiles of 8, at most four a block; */
       MANY_TILES = 4, MANY_DOWN = 4, MANY_ACROSS = 2 };            /* many_kernel: 4 x 2 warps, 128 weight rows x 64 of x */

/* What q is made of: the scale of n elements that a warp holds, four a lane (zeros behind n), and what to multiply them by. As
 * sz_q_scale, to the bit: a maximum and a sum of zeros or NaN have no order. */
__device__ __forceinline__ float warp_scale(const float (&x)[4], float *inverse)
{
    float largest = 0, strange = 0;
    for (int i = 0; i < 4; i++) {
        largest = fmaxf(largest, fabsf(x[i]));
        strange += x[i] * 0.0f;
    }
    largest = sz_warp_max(largest);
    strange = sz_warp_sum(strange);
    *inverse = largest > 0 && strange == 0 ? 127.0f / largest : 0.0f;
    return largest / 127.0f + strange;
}

/* Four bytes, each x * inverse to the nearest whole number, plus zero. Not finite: inverse is 0, the scale NaN. */
__device__ __forceinline__ uint32_t word_of(const float (&x)[4], float inverse, int zero)
{
    uint32_t word = 0;
    for (int i = 0; i < 4; i++) word |= (uint32_t)(uint8_t)(zero + (inverse == 0 ? 0 : (int)rintf(x[i] * inverse))) << (8 * i);
    return word;
}

/* Columns 4 lane .. + 3 of group g of row `row`, zeros past k and where there is no row. */
__device__ __forceinline__ void group_of(const sz_elements &e, int64_t row, int64_t k, int64_t g, bool there, float (&x)[4])
{
    const int64_t first = g * SZ_Q_GROUP + (int)threadIdx.x % 32 * 4;
    for (int i = 0; i < 4; i++) x[i] = there && first + i < k ? sz_load_element(e, row * k + first + i) : 0.0f;
}

struct weights { sz_elements w[3]; int64_t rows[3]; };

/* A warp has a group of a row. */
static __global__ void quantize_kernel(weights w, int64_t k, int64_t rows, int64_t words, int64_t groups, uint8_t *q, float *scale)
{
    const int64_t at = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32, row = at / groups, g = at % groups;
    const int lane = (int)threadIdx.x % 32;
    if (row >= rows) return;
    int64_t r = row;
    int which = 0;
    while (which < 3 && r >= w.rows[which]) r -= w.rows[which++];
    float x[4], inverse;
    group_of(w.w[which < 3 ? which : 0], r, k, g, which < 3, x);
    const float s = warp_scale(x, &inverse);
    const int64_t block = row / SZ_Q_ROWS, l = row % SZ_Q_ROWS, p = g * SZ_Q_WORDS + lane;
    if (lane == 0) scale[(block * groups + g) * SZ_Q_ROWS + l] = s;
    if (p < words) *(uint32_t *)(q + (block * words + p) * 64 + l * 4) = word_of(x, inverse, SZ_Q_ZERO);
}

extern "C" int sz_cuda_quantize_int8(const sz_call *c)
{
    const sz_tensor *q = c->out[0], *scale = c->out[1];
    const int64_t k = sz_cols(c->in[0]), words = q->shape[1], groups = scale->shape[1], rows = q->shape[0] * SZ_Q_ROWS;
    weights w = {};
    for (int i = 0; i < 3 && c->in[i]; i++) w.w[i] = sz_elements_of(c->in[i]), w.rows[i] = c->in[i]->shape[0];
    if (rows * groups > (int64_t)INT32_MAX * WARPS) return sz_fail("quantize_int8: the weight is too large for one launch");
    SZ_LAUNCH(quantize_kernel, (unsigned)sz_blocks(rows * groups, WARPS), THREADS, 0, w, k, rows, words, groups, (uint8_t *)q->data, sz_f32(scale));
    return sz_cuda_launched("quantize_int8");
}

/* ---- the product ---- */
/* x in 8 bits: word [rows][groups][32] in the order above, scale [groups][rows]; rows past n are zeros. */
struct short_rows { uint4 *word; float *scale; int64_t rows, groups; };

static __global__ void shorten_kernel(sz_elements x, int64_t n, int64_t k, short_rows to)
{
    const int64_t at = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32, row = at / to.groups, g = at % to.groups;
    const int lane = (int)threadIdx.x % 32;
    if (row >= to.rows) return;
    float v[4], inverse;
    group_of(x, row, k, g, row < n, v);
    const float s = warp_scale(v, &inverse);
    if (lane == 0) to.scale[g * to.rows + row] = s;
    ((uint32_t *)to.word)[at * SZ_Q_WORDS + lane % 4 * 8 + lane / 4] = word_of(v, inverse, 0);
}

/* The two blocks of weight rows that a warp has, for one lane. */
struct weight_rows {
    const uint4 *q;                 /* the lane's four rows at word 0 */
    const float *scale;
    int64_t words, groups;
};

__device__ __forceinline__ weight_rows weights_at(const uint8_t *q, const float *scale, int64_t pair, int64_t blocks, int64_t words, int64_t groups)
{
    const int r = (int)threadIdx.x % 32 / 4;
    const int64_t block = min(pair * 2 + r / 4, blocks - 1);
    return weight_rows{ (const uint4 *)q + block * words * 4 + r % 4, scale + block * groups * SZ_Q_ROWS + r % 4 * 4, words, groups };
}

/* A lane's part of group g: words 4i + t, i = 0 .. 7, of four rows each, as signed bytes. */
__device__ __forceinline__ void weight_group(const weight_rows &w, int64_t g, uint4 (&a)[8])
{
    const int t = (int)threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const int64_t p = g * SZ_Q_WORDS + 4 * i + t;
        a[i] = p < w.words ? w.q[p * 4] : make_uint4(0x80808080u, 0x80808080u, 0x80808080u, 0x80808080u);
    }
}

/* v[tile][j][i] = weight row i of the lane's four times row 8 tile + 2t + j of x from `row` on, over group g, scaled. */
template <int TILES>
__device__ __forceinline__ void group_products(const weight_rows &w, const uint4 (&a)[8], int64_t g, const short_rows &x, int64_t row, float (&v)[TILES][2][4])
{
    const int lane = (int)threadIdx.x % 32, t = lane % 4;
    const float4 scale = *(const float4 *)(w.scale + g * SZ_Q_ROWS);
    const float of[4] = { scale.x, scale.y, scale.z, scale.w };
    uint32_t bytes[8][4];
#pragma unroll
    for (int i = 0; i < 8; i++) {
        bytes[i][0] = a[i].x ^ 0x80808080u, bytes[i][1] = a[i].y ^ 0x80808080u;
        bytes[i][2] = a[i].z ^ 0x80808080u, bytes[i][3] = a[i].w ^ 0x80808080u;
    }
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
        const uint4 *from = x.word + ((row + 8 * tile + lane / 4) * x.groups + g) * 8 + 2 * t;
        const uint4 low = from[0], high = from[1];
        const uint32_t b[8] = { low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w };
        int32_t sum[2][4] = { { 0, 0, 0, 0 }, { 0, 0, 0, 0 } };
#pragma unroll
        for (int s = 0; s < 8; s += 2)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const uint32_t rows[4] = { bytes[s][2 * h], bytes[s][2 * h + 1], bytes[s + 1][2 * h], bytes[s + 1][2 * h + 1] };
                sz_mma_s8(sum[h], rows, b[s], b[s + 1]);
            }
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const float xs = x.scale[g * x.rows + row + 8 * tile + 2 * t + j];
#pragma unroll
            for (int i = 0; i < 4; i++) v[tile][j][i] = __fmul_rn((float)sum[i / 2][i % 2 * 2 + j], __fmul_rn(of[i], xs));
        }
    }
}

/* Rows 8 TILES blockIdx.y .. of x, weight rows 32 blockIdx.x ... */
template <int TILES>
static __global__ void __launch_bounds__(THREADS)
few_kernel(const uint8_t *q, const float *scale, int64_t blocks, int64_t words, short_rows x, int64_t n, int64_t m, sz_elements bias, sz_elements y)
{
    enum { WIDTH = PAIR + 4 };                      /* rows start in different banks */
    __shared__ __align__(16) float part[WARPS][8 * TILES][WIDTH];
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32, r = lane / 4, t = lane % 4;
    const int64_t row = (int64_t)blockIdx.y * 8 * TILES, groups = x.groups;
    const weight_rows w = weights_at(q, scale, blockIdx.x, blocks, words, groups);
    float sum[TILES];
    for (int i = 0; i < TILES; i++) sum[i] = 0;
    uint4 a[8];
    if (warp < groups) weight_group(w, warp, a);
    for (int64_t first = 0; first < groups; first += WARPS) {
        const int64_t g = first + warp;
        if (g < groups) {
            float v[TILES][2][4];
            group_products<TILES>(w, a, g, x, row, v);
#pragma unroll
            for (int tile = 0; tile < TILES; tile++)
                for (int j = 0; j < 2; j++)
                    *(float4 *)&part[warp][8 * tile + 2 * t + j][4 * r] = make_float4(v[tile][j][0], v[tile][j][1], v[tile][j][2], v[tile][j][3]);
        }
        if (g + WARPS < groups) weight_group(w, g + WARPS, a);      /* under way while the others are waited for */
        __syncthreads();
        for (int i = 0; i < WARPS && first + i < groups; i++)
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) sum[tile] = __fadd_rn(sum[tile], part[i][8 * tile + warp][lane]);
        __syncthreads();
    }
    const int64_t col = (int64_t)blockIdx.x * PAIR + lane;
    for (int tile = 0; tile < TILES; tile++) {
        const int64_t to = row + 8 * tile + warp;
        if (to < n && col < m) sz_store_element(y, to * m + col, bias.data ? __fadd_rn(sum[tile], sz_load_element(bias, col)) : sum[tile]);
    }
}

static __global__ void __launch_bounds__(THREADS)
many_kernel(const uint8_t *q, const float *scale, int64_t blocks, int64_t words, short_rows x, int64_t n, int64_t m, sz_elements bias, sz_elements y)
{
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    const int64_t pair = (int64_t)blockIdx.x * MANY_DOWN + warp % MANY_DOWN;
    const int64_t row = ((int64_t)blockIdx.y * MANY_ACROSS + warp / MANY_DOWN) * 8 * MANY_TILES;
    if (pair * PAIR >= m || row >= n) return;
    const weight_rows w = weights_at(q, scale, pair, blocks, words, x.groups);
    float sum[MANY_TILES][2][4];
    for (int i = 0; i < 8 * MANY_TILES; i++) sum[i / 8][i / 4 % 2][i % 4] = 0;
    for (int64_t g = 0; g < x.groups; g++) {
        uint4 a[8];
        float v[MANY_TILES][2][4];
        weight_group(w, g, a);
        group_products<MANY_TILES>(w, a, g, x, row, v);
#pragma unroll
        for (int i = 0; i < 8 * MANY_TILES; i++) sum[i / 8][i / 4 % 2][i % 4] = __fadd_rn(sum[i / 8][i / 4 % 2][i % 4], v[i / 8][i / 4 % 2][i % 4]);
    }
    const int64_t first = pair * PAIR + lane / 4 * 4;
    for (int tile = 0; tile < MANY_TILES; tile++)
        for (int j = 0; j < 2; j++) {
            const int64_t to = row + 8 * tile + lane % 4 * 2 + j;
            for (int i = 0; i < 4; i++)
                if (to < n && first + i < m)
                    sz_store_element(y, to * m + first + i, bias.data ? __fadd_rn(sum[tile][j][i], sz_load_element(bias, first + i)) : sum[tile][j][i]);
        }
}

extern "C" int sz_cuda_linear_int8(const sz_call *c)
{
    const sz_tensor *x = c->in[0], *q = c->in[1], *scale = c->in[2], *b = c->in[3], *y = c->out[0];
    const int64_t n = sz_rows(x), k = sz_cols(x), m = sz_cols(y), blocks = q->shape[0], words = q->shape[1], groups = scale->shape[1];
    if (n == 0) return 0;
    const bool many = n > FEW && sz_blocks(m, PAIR * MANY_DOWN) * sz_blocks(n, 8 * MANY_TILES * MANY_ACROSS) >= sz_cuda_processors();
    const int64_t tiles = n <= 8 ? 1 : n <= 16 ? 2 : FEW_TILES, tall = 8 * (many ? MANY_TILES * MANY_ACROSS : tiles), rows = sz_blocks(n, tall) * tall;
    const sz_elements bias = b ? sz_elements_of(b) : sz_elements{ NULL, false }, out = sz_elements_of(y);
    const short_rows in = { (uint4 *)sz_cuda_scratch((size_t)(rows * groups) * SZ_Q_GROUP), (float *)sz_cuda_scratch((size_t)(rows * groups) * sizeof(float)), rows, groups };
    if (!in.word || !in.scale) return -1;
    if (rows / tall > 65535 || rows * groups > (int64_t)INT32_MAX * WARPS) return sz_fail("linear_int8: %lld rows are more than one launch takes", (long long)n);
    SZ_LAUNCH(shorten_kernel, (unsigned)sz_blocks(rows * groups, WARPS), THREADS, 0, sz_elements_of(x), n, k, in);
    const uint8_t *weight = (const uint8_t *)q->data;
    const dim3 grid((unsigned)sz_blocks(m, many ? PAIR * MANY_DOWN : PAIR), (unsigned)(rows / tall));
    if (many) SZ_LAUNCH(many_kernel, grid, THREADS, 0, weight, sz_f32(scale), blocks, words, in, n, m, bias, out);
    else if (tiles == 1) SZ_LAUNCH(few_kernel<1>, grid, THREADS, 0, weight, sz_f32(scale), blocks, words, in, n, m, bias, out);
    else if (tiles == 2) SZ_LAUNCH(few_kernel<2>, grid, THREADS, 0, weight, sz_f32(scale), blocks, words, in, n, m, bias, out);
    else SZ_LAUNCH(few_kernel<FEW_TILES>, grid, THREADS, 0, weight, sz_f32(scale), blocks, words, in, n, m, bias, out);
    return sz_cuda_launched("linear_int8");
}
