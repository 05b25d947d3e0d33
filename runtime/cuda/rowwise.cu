/* rowwise.cu - "rowwise" rows of ops.def on the device: RMSNorm, LayerNorm, softmax, rotary embedding, and column_sum_, which is a
 * LayerNorm's bias gradient.
 *
 * A row belongs to a warp when it is short, else to a block; its first KEEP vectors a thread stay in f32 registers (1024 and
 * 8192 elements), so that it is read once. Gradients of weights take two more passes over fixed chunks of rows: sums of each
 * chunk, then the chunks in order.
 *
 * Leaves out: the ops that move rows by index (rows.cu). The reference is cpu/ref_rowwise.c. */
#include "vector.cuh"

enum { THREADS = 256, KEEP = 4, SHORT = 32 * KEEP * SZ_VECTOR };

/* ---- a row spread over LANES threads, a warp or the block ---- */
template <int W, int LANES> struct held_row {
    sz_elements from;
    int64_t start, d;
    float v[KEEP][W];

    static __device__ __forceinline__ int64_t column(int i) { return ((int64_t)i * LANES + threadIdx.x % LANES) * W; }
    __device__ __forceinline__ held_row(const sz_elements &x, int64_t row, int64_t width) : from(x), start(row * width), d(width)
    {
        for (int i = 0; i < KEEP; i++) {
            if (column(i) < d) sz_load_vector<W>(from, start + column(i), v[i]);
            else for (int j = 0; j < W; j++) v[i][j] = 0;
        }
    }
    /* f(column, its W elements) for all vectors of this thread. */
    template <typename F> __device__ __forceinline__ void each(F f) const
    {
        for (int i = 0; i < KEEP; i++)
            if (column(i) < d) f(column(i), v[i]);
        for (int64_t col = column(KEEP); col < d; col += LANES * W) {
            float more[W];
            sz_load_vector<W>(from, start + col, more);
            f(col, more);
        }
    }
};

template <int LANES> __device__ __forceinline__ float row_sum(float v)
{
    if constexpr (LANES == 32) return sz_warp_sum(v);
    else return sz_block_sum<LANES>(v);
}
template <int LANES> __device__ __forceinline__ float row_max(float v)
{
    if constexpr (LANES == 32) return sz_warp_max(v);
    else return sz_block_max<LANES>(v);
}

template <int LANES> __device__ __forceinline__ int64_t first_row() { return (int64_t)blockIdx.x * (THREADS / LANES) + threadIdx.x / LANES; }
template <int LANES> __device__ __forceinline__ int64_t row_step() { return (int64_t)gridDim.x * (THREADS / LANES); }

/* Launches kernel<W, LANES>(..., rows, d) as the row length allows; wide: all pointers do. */
#define ON_ROWS(kernel, wide, rows, d, ...) do { \
        const unsigned of_warps = sz_grid(sz_blocks(rows, THREADS / 32)), of_blocks = sz_grid(rows); \
        if ((rows) <= 0 || (d) <= 0) break; \
        if ((wide) && (d) % SZ_VECTOR == 0) { \
            if ((d) <= SHORT) SZ_LAUNCH((kernel<SZ_VECTOR, 32>), of_warps, THREADS, 0, __VA_ARGS__, rows, d); \
            else SZ_LAUNCH((kernel<SZ_VECTOR, THREADS>), of_blocks, THREADS, 0, __VA_ARGS__, rows, d); \
        } else if ((d) <= SHORT) SZ_LAUNCH((kernel<1, 32>), of_warps, THREADS, 0, __VA_ARGS__, rows, d); \
        else SZ_LAUNCH((kernel<1, THREADS>), of_blocks, THREADS, 0, __VA_ARGS__, rows, d); \
    } while (0)

/* ---- sums over rows: of g, and of g (x - mean) r where the mean and r of each row are in stats ---- */
/* A mean as two f32, the second what the first's rounding lost; and 1 / deviation. */
typedef struct { float mean, rest, r; } row_stats;

enum { SUM_WARPS = THREADS / 32 };

/* partial [chunk, 1 or 2, d]: the sums of a chunk of rows; x NULL: only those of g. g is `ld` wide, its columns from `col` on. */
template <int W> __global__ void chunk_sums_kernel(sz_elements x, sz_elements g, int64_t col, int64_t ld, const row_stats *stats, float *partial,
                                                   int64_t rows, int64_t d, int64_t chunk_rows)
{
    __shared__ float sums[SUM_WARPS][2][32 * W];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, kinds = x.data ? 2 : 1;
    const int64_t at = ((int64_t)blockIdx.x * 32 + lane) * W, chunk = blockIdx.y;
    const int64_t end = min(rows, (chunk + 1) * chunk_rows);
    float plain[W], scaled[W];
    for (int j = 0; j < W; j++) plain[j] = scaled[j] = 0;
    if (at < d)
        for (int64_t row = chunk * chunk_rows + warp; row < end; row += SUM_WARPS) {
            float gradient[W];
            sz_load_vector<W>(g, row * ld + col + at, gradient);
            for (int j = 0; j < W; j++) plain[j] += gradient[j];
            if (x.data) {
                const row_stats s = stats[row];
                float value[W];
                sz_load_vector<W>(x, row * d + at, value);
                for (int j = 0; j < W; j++) scaled[j] += gradient[j] * (((value[j] - s.mean) - s.rest) * s.r);
            }
        }
    for (int j = 0; j < W; j++) {
        sums[warp][0][lane * W + j] = plain[j];
        sums[warp][1][lane * W + j] = scaled[j];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < kinds * 32 * W; i += THREADS) {
        const int kind = i / (32 * W), c = i % (32 * W);
        const int64_t to = (int64_t)blockIdx.x * 32 * W + c;
        float sum = 0;
        for (int w = 0; w < SUM_WARPS; w++) sum += sums[w][kind][c];
        if (to < d) partial[(chunk * kinds + kind) * d + to] = sum;
    }
}

/* plain [d] and scaled [d] (either may be NULL) from the chunks in order; add: onto what is there. */
__global__ void add_chunks_kernel(const float *partial, int64_t chunks, int kinds, int64_t d, float *plain, float *scaled, bool add)
{
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, j = i % d;
    if (i >= kinds * d) return;
    float *to = i < d ? plain : scaled;
    if (!to) return;
    double sum = 0;
    for (int64_t chunk = 0; chunk < chunks; chunk++) sum += partial[chunk * kinds * d + i];
    to[j] = add ? to[j] + (float)sum : (float)sum;
}

static int row_sums(const char *op, const sz_tensor *x, const sz_tensor *g, int64_t col, int64_t ld, int64_t rows, int64_t d,
                    const row_stats *stats, float *plain, float *scaled, bool add)
{
    if (d == 0) return 0;
    const int64_t chunk_rows = rows > 128 * 64 ? sz_blocks(rows, 128) : 64, chunks = sz_blocks(rows, chunk_rows);
    const int kinds = x ? 2 : 1;
    float *partial = (float *)sz_cuda_scratch((size_t)(chunks * kinds * d + 1) * sizeof *partial);
    if (!partial) return -1;
    const sz_elements values = x ? sz_elements_of(x) : sz_elements{ NULL, false }, gradient = sz_elements_of(g);
    if (rows > 0) {
        const bool wide = d % SZ_VECTOR == 0 && ld % SZ_VECTOR == 0 && col % SZ_VECTOR == 0 && sz_is_aligned16(g) && (!x || sz_is_aligned16(x));
        const dim3 grid((unsigned)sz_blocks(d, 32 * (wide ? SZ_VECTOR : 1)), (unsigned)chunks);
        if (wide) SZ_LAUNCH((chunk_sums_kernel<SZ_VECTOR>), grid, THREADS, 0, values, gradient, col, ld, stats, partial, rows, d, chunk_rows);
        else SZ_LAUNCH((chunk_sums_kernel<1>), grid, THREADS, 0, values, gradient, col, ld, stats, partial, rows, d, chunk_rows);
    }
    SZ_LAUNCH(add_chunks_kernel, (unsigned)sz_blocks(kinds * d, THREADS), THREADS, 0, partial, chunks, kinds, d, plain, scaled, add);
    return sz_cuda_launched(op);
}

extern "C" int sz_cuda_column_sum_(const sz_call *c)
{
    sz_tensor *acc = c->in[0], *dy = c->in[1];
    return row_sums("column_sum_", NULL, dy, (int64_t)c->args[0], sz_cols(dy), sz_rows(dy), acc->numel, NULL, sz_f32(acc), NULL, true);
}

/* ---- RMSNorm: y = w * round(x * r), r = 1 / sqrt(mean(x^2) + eps); round: to x's dtype, as Hugging Face does ---- */
template <int W, int LANES> __device__ __forceinline__ float inverse_rms(const held_row<W, LANES> &x, float eps)
{
    float squares = 0;
    x.each([&](int64_t, const float (&v)[W]) { for (int j = 0; j < W; j++) squares += v[j] * v[j]; });
    return 1 / sqrtf(row_sum<LANES>(squares) / (float)x.d + eps);
}

template <int W, int LANES> __global__ void rmsnorm_kernel(sz_elements x, sz_elements w, sz_elements y, float eps, int64_t rows, int64_t d)
{
    for (int64_t row = first_row<LANES>(); row < rows; row += row_step<LANES>()) {
        const held_row<W, LANES> held(x, row, d);
        const float r = inverse_rms<W, LANES>(held, eps);
        held.each([&](int64_t col, const float (&v)[W]) {
            float weight[W], out[W];
            sz_load_vector<W>(w, col, weight);
            for (int j = 0; j < W; j++) out[j] = (x.is_bf16 ? sz_round_bf16(v[j] * r) : v[j] * r) * weight[j];
            sz_store_vector<W>(y, row * d + col, out);
        });
    }
}

extern "C" int sz_cuda_rmsnorm(const sz_call *c)
{
    const sz_tensor *x = c->in[0], *w = c->in[1], *y = c->out[0];
    const int64_t d = sz_cols(x), rows = sz_rows(x);
    const bool wide = sz_is_aligned16(x) && sz_is_aligned16(w) && sz_is_aligned16(y);
    ON_ROWS(rmsnorm_kernel, wide, rows, d, sz_elements_of(x), sz_elements_of(w), sz_elements_of(y), (float)c->args[0]);
    return sz_cuda_launched("rmsnorm");
}

/* dx = r w g - x r^3 / d * sum_j(w_j g_j x_j) */
template <int W, int LANES> __global__ void rmsnorm_backward_kernel(sz_elements x, sz_elements w, sz_elements dy, sz_elements dx, row_stats *stats,
                                                                    float eps, int64_t rows, int64_t d)
{
    for (int64_t row = first_row<LANES>(); row < rows; row += row_step<LANES>()) {
        const held_row<W, LANES> held(x, row, d);
        const float r = inverse_rms<W, LANES>(held, eps);
        float dot = 0;
        held.each([&](int64_t col, const float (&v)[W]) {
            float weight[W], g[W];
            sz_load_vector<W>(w, col, weight);
            sz_load_vector<W>(dy, row * d + col, g);
            for (int j = 0; j < W; j++) dot += weight[j] * g[j] * (v[j] * r);
        });
        const float k = row_sum<LANES>(dot) / (float)d * r * r;
        held.each([&](int64_t col, const float (&v)[W]) {
            float weight[W], g[W], out[W];
            sz_load_vector<W>(w, col, weight);
            sz_load_vector<W>(dy, row * d + col, g);
            for (int j = 0; j < W; j++) out[j] = r * weight[j] * g[j] - v[j] * k;
            sz_store_vector<W>(dx, row * d + col, out);
        });
        if (threadIdx.x % LANES == 0) stats[row] = row_stats{ 0, 0, r };
    }
}

extern "C" int sz_cuda_rmsnorm_backward(const sz_call *c)
{
    const sz_tensor *x = c->in[0], *w = c->in[1], *dy = c->in[2], *dx = c->out[0];
    const int64_t d = sz_cols(x), rows = sz_rows(x);
    row_stats *stats = (row_stats *)sz_cuda_scratch((size_t)(rows + 1) * sizeof *stats);
    if (!stats) return -1;
    const bool wide = sz_is_aligned16(x) && sz_is_aligned16(w) && sz_is_aligned16(dy) && sz_is_aligned16(dx);
    ON_ROWS(rmsnorm_backward_kernel, wide, rows, d, sz_elements_of(x), sz_elements_of(w), sz_elements_of(dy), sz_elements_of(dx), stats,
            (float)c->args[0]);
    return row_sums("rmsnorm_backward", x, dy, 0, d, rows, d, stats, NULL, sz_f32(c->out[1]), false);
}

/* ---- LayerNorm: y = w * (x - mean) * r + b, r = 1 / sqrt(variance + eps), the variance over all d elements ---- */
/* The distances' own sum mends what the f32 mean lost, which counts where the mean is large beside the deviation. */
template <int W, int LANES> __device__ __forceinline__ row_stats moments(const held_row<W, LANES> &x, float eps)
{
    float sum = 0, squares = 0, off = 0;
    x.each([&](int64_t, const float (&v)[W]) { for (int j = 0; j < W; j++) sum += v[j]; });
    const float mean = row_sum<LANES>(sum) / (float)x.d;
    x.each([&](int64_t, const float (&v)[W]) {
        for (int j = 0; j < W; j++) {
            const float distance = v[j] - mean;
            squares += distance * distance;
            off += distance;
        }
    });
    const float rest = row_sum<LANES>(off) / (float)x.d;
    return row_stats{ mean, rest, 1 / sqrtf(fmaxf(row_sum<LANES>(squares) / (float)x.d - rest * rest, 0) + eps) };
}

template <int W, int LANES> __global__ void layernorm_kernel(sz_elements x, sz_elements w, sz_elements b, sz_elements y, float eps, int64_t rows, int64_t d)
{
    for (int64_t row = first_row<LANES>(); row < rows; row += row_step<LANES>()) {
        const held_row<W, LANES> held(x, row, d);
        const row_stats s = moments<W, LANES>(held, eps);
        held.each([&](int64_t col, const float (&v)[W]) {
            float weight[W], bias[W], out[W];
            sz_load_vector<W>(w, col, weight);
            sz_load_vector<W>(b, col, bias);
            for (int j = 0; j < W; j++) out[j] = ((v[j] - s.mean) - s.rest) * s.r * weight[j] + bias[j];
            sz_store_vector<W>(y, row * d + col, out);
        });
    }
}

extern "C" int sz_cuda_layernorm(const sz_call *c)
{
    const sz_tensor *x = c->in[0], *w = c->in[1], *b = c->in[2], *y = c->out[0];
    const int64_t d = sz_cols(x), rows = sz_rows(x);
    const bool wide = sz_is_aligned16(x) && sz_is_aligned16(w) && sz_is_aligned16(b) && sz_is_aligned16(y);
    ON_ROWS(layernorm_kernel, wide, rows, d, sz_elements_of(x), sz_elements_of(w), sz_elements_of(b), sz_elements_of(y), (float)c->args[0]);
    return sz_cuda_launched("layernorm");
}

/* dx = r (w g - mean(w g) - x' mean(w g x')), x' = (x - mean) r */
template <int W, int LANES> __global__ void layernorm_backward_kernel(sz_elements x, sz_elements w, sz_elements dy, sz_elements dx, row_stats *stats,
                                                                      float eps, int64_t rows, int64_t d)
{
    for (int64_t row = first_row<LANES>(); row < rows; row += row_step<LANES>()) {
        const held_row<W, LANES> held(x, row, d);
        const row_stats s = moments<W, LANES>(held, eps);
        float sum = 0, dot = 0;
        held.each([&](int64_t col, const float (&v)[W]) {
            float weight[W], g[W];
            sz_load_vector<W>(w, col, weight);
            sz_load_vector<W>(dy, row * d + col, g);
            for (int j = 0; j < W; j++) {
                sum += weight[j] * g[j];
                dot += weight[j] * g[j] * (((v[j] - s.mean) - s.rest) * s.r);
            }
        });
        sum = row_sum<LANES>(sum) / (float)d;
        dot = row_sum<LANES>(dot) / (float)d;
        held.each([&](int64_t col, const float (&v)[W]) {
            float weight[W], g[W], out[W];
            sz_load_vector<W>(w, col, weight);
            sz_load_vector<W>(dy, row * d + col, g);
            for (int j = 0; j < W; j++) out[j] = s.r * (weight[j] * g[j] - sum - ((v[j] - s.mean) - s.rest) * s.r * dot);
            sz_store_vector<W>(dx, row * d + col, out);
        });
        if (threadIdx.x % LANES == 0) stats[row] = s;
    }
}

extern "C" int sz_cuda_layernorm_backward(const sz_call *c)
{
    const sz_tensor *x = c->in[0], *w = c->in[1], *dy = c->in[2], *dx = c->out[0];
    const int64_t d = sz_cols(x), rows = sz_rows(x);
    row_stats *stats = (row_stats *)sz_cuda_scratch((size_t)(rows + 1) * sizeof *stats);
    if (!stats) return -1;
    const bool wide = sz_is_aligned16(x) && sz_is_aligned16(w) && sz_is_aligned16(dy) && sz_is_aligned16(dx);
    ON_ROWS(layernorm_backward_kernel, wide, rows, d, sz_elements_of(x), sz_elements_of(w), sz_elements_of(dy), sz_elements_of(dx), stats,
            (float)c->args[0]);
    return row_sums("layernorm_backward", x, dy, 0, d, rows, d, stats, sz_f32(c->out[2]), sz_f32(c->out[1]), false);
}

/* ---- softmax over the last dimension ---- */
template <int W, int LANES> __global__ void softmax_kernel(sz_elements x, sz_elements y, int64_t rows, int64_t d)
{
    for (int64_t row = first_row<LANES>(); row < rows; row += row_step<LANES>()) {
        const held_row<W, LANES> held(x, row, d);
        float highest = -INFINITY, sum = 0;
        held.each([&](int64_t, const float (&v)[W]) { for (int j = 0; j < W; j++) highest = fmaxf(highest, v[j]); });
        highest = row_max<LANES>(highest);
        held.each([&](int64_t, const float (&v)[W]) { for (int j = 0; j < W; j++) sum += expf(v[j] - highest); });
        const float scale = 1 / row_sum<LANES>(sum);
        held.each([&](int64_t col, const float (&v)[W]) {
            float out[W];
            for (int j = 0; j < W; j++) out[j] = expf(v[j] - highest) * scale;
            sz_store_vector<W>(y, row * d + col, out);
        });
    }
}

extern "C" int sz_cuda_softmax(const sz_call *c)
{
    const sz_tensor *x = c->in[0], *y = c->out[0];
    const int64_t d = sz_cols(x), rows = sz_rows(x);
    ON_ROWS(softmax_kernel, sz_is_aligned16(x) && sz_is_aligned16(y), rows, d, sz_elements_of(x), sz_elements_of(y));
    return sz_cuda_launched("softmax");
}

/* dx = y (dy - sum(y dy)) */
template <int W, int LANES> __global__ void softmax_backward_kernel(sz_elements y, sz_elements dy, sz_elements dx, int64_t rows, int64_t d)
{
    for (int64_t row = first_row<LANES>(); row < rows; row += row_step<LANES>()) {
        const held_row<W, LANES> held(y, row, d);
        float dot = 0;
        held.each([&](int64_t col, const float (&v)[W]) {
            float g[W];
            sz_load_vector<W>(dy, row * d + col, g);
            for (int j = 0; j < W; j++) dot += v[j] * g[j];
        });
        dot = row_sum<LANES>(dot);
        held.each([&](int64_t col, const float (&v)[W]) {
            float g[W], out[W];
            sz_load_vector<W>(dy, row * d + col, g);
            for (int j = 0; j < W; j++) out[j] = v[j] * (g[j] - dot);
            sz_store_vector<W>(dx, row * d + col, out);
        });
    }
}

extern "C" int sz_cuda_softmax_backward(const sz_call *c)
{
    const sz_tensor *y = c->in[0], *dy = c->in[1], *dx = c->out[0];
    const int64_t d = sz_cols(y), rows = sz_rows(y);
    ON_ROWS(softmax_backward_kernel, sz_is_aligned16(y) && sz_is_aligned16(dy) && sz_is_aligned16(dx), rows, d, sz_elements_of(y), sz_elements_of(dy), sz_elements_of(dx));
    return sz_cuda_launched("softmax_backward");
}

/* ---- rotary embedding: pairs (j, j + half) of each head turn by the angle of (row, j), times sign ---- */
/* A block a row. rounded: each product is rounded before the sum is, as PyTorch computes x * cos + rotate_half(x) * sin in bf16. */
template <int W> __global__ void rope_kernel(sz_elements x, sz_elements cosines, sz_elements sines, sz_elements y, int64_t rows, int64_t cols, int heads,
                                             int half, float sign, bool rounded)
{
    const int units = heads * half / W, rest = (int)(cols - (int64_t)heads * 2 * half) / W;
    for (int64_t row = blockIdx.x; row < rows; row += gridDim.x)
        for (int u = (int)threadIdx.x; u < units + rest; u += (int)blockDim.x) {
            if (u >= units) {
                const int64_t at = row * cols + (int64_t)heads * 2 * half + (int64_t)(u - units) * W;
                float v[W];
                sz_load_vector<W>(x, at, v);
                sz_store_vector<W>(y, at, v);
                continue;
            }
            const int head = u * W / half, j = u * W % half;
            const int64_t at = row * cols + (int64_t)head * 2 * half + j;
            float c[W], s[W], a[W], b[W], first[W], second[W];
            sz_load_vector<W>(cosines, row * half + j, c);
            sz_load_vector<W>(sines, row * half + j, s);
            sz_load_vector<W>(x, at, a);
            sz_load_vector<W>(x, at + half, b);
            for (int i = 0; i < W; i++) {
                const float turn = sign * s[i];
                first[i] = rounded ? sz_round_bf16(a[i] * c[i]) - sz_round_bf16(b[i] * turn) : a[i] * c[i] - b[i] * turn;
                second[i] = rounded ? sz_round_bf16(b[i] * c[i]) + sz_round_bf16(a[i] * turn) : b[i] * c[i] + a[i] * turn;
            }
            sz_store_vector<W>(y, at, first);
            sz_store_vector<W>(y, at + half, second);
        }
}

extern "C" int sz_cuda_rope(const sz_call *c)
{
    const sz_tensor *x = c->in[0], *cosines = c->in[1], *sines = c->in[2], *y = c->out[0];
    const int64_t rows = sz_rows(x), cols = sz_cols(x);
    const int heads = (int)c->args[0], half = (int)c->args[1] / 2;
    const bool rounded = x->dtype == SZ_BF16 && cosines->dtype == SZ_BF16;
    const bool wide = half % SZ_VECTOR == 0 && cols % SZ_VECTOR == 0 && sz_is_aligned16(x) && sz_is_aligned16(cosines) && sz_is_aligned16(sines) && sz_is_aligned16(y);
    if (rows == 0 || cols == 0) return 0;
    const int64_t units = (cols - (int64_t)heads * half) / (wide ? SZ_VECTOR : 1);
    const unsigned threads = (unsigned)sz_blocks(units < THREADS ? units : (int64_t)THREADS, 32) * 32;
    if (wide)
        SZ_LAUNCH((rope_kernel<SZ_VECTOR>), sz_grid(rows), threads, 0, sz_elements_of(x), sz_elements_of(cosines), sz_elements_of(sines), sz_elements_of(y),
                  rows, cols, heads, half, (float)c->args[2], rounded);
    else
        SZ_LAUNCH((rope_kernel<1>), sz_grid(rows), threads, 0, sz_elements_of(x), sz_elements_of(cosines), sz_elements_of(sines), sz_elements_of(y),
                  rows, cols, heads, half, (float)c->args[2], rounded);
    return sz_cuda_launched("rope");
}
