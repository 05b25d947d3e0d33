/* rowwise.cu - "rowwise" rows of ops.def on the device: RMSNorm, LayerNorm, softmax, and
 * column_sum_, which is LayerNorm's bias gradient.
 *
 * A short row is processed by a warp, a longer one by a block. The first KEEP vectors of each
 * thread stay in f32 registers (1024 or 8192 elements), so that they are read once. Gradients of
 * weights take two more passes over fixed chunks of rows: the sums of each chunk, then the chunks
 * in order.
 *
 * Leaves out: the ops that move rows by index (rows.cu), rotary embedding (rope.cu). The reference
 * is cpu/reference/rowwise.c. */
#include "vector.cuh"

enum { THREADS = 256, KEEP = 4, SHORT = 32 * KEEP * SZ_VECTOR };

/* ---- a row spread over LANES threads: a warp or the block ---- */
template <int W, int LANES> struct held_row {
    sz_elements from;
    int64_t start, d;
    float v[KEEP][W];

    /* First column of this thread's i-th vector. */
    static __device__ __forceinline__ int64_t column(int i)
    {
        return ((int64_t)i * LANES + threadIdx.x % LANES) * W;
    }

    __device__ __forceinline__ held_row(const sz_elements &x, int64_t row, int64_t width)
        : from(x), start(row * width), d(width)
    {
        for (int i = 0; i < KEEP; i++) {
            if (column(i) < d) sz_load_vector<W>(from, start + column(i), v[i]);
            else
                for (int j = 0; j < W; j++) v[i][j] = 0;
        }
    }

    /* Calls f(column, its W elements) for all vectors of this thread. */
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

    /* Calls f(element) for all elements of this thread. */
    template <typename F> __device__ __forceinline__ void each_element(F f) const
    {
        each([&](int64_t, const float(&x)[W]) {
            for (int j = 0; j < W; j++) f(x[j]);
        });
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

/* The rows of this warp or block: from first_row on, with a stride of row_stride. */
template <int LANES> __device__ __forceinline__ int64_t first_row()
{
    return (int64_t)blockIdx.x * (THREADS / LANES) + threadIdx.x / LANES;
}
template <int LANES> __device__ __forceinline__ int64_t row_stride()
{
    return (int64_t)gridDim.x * (THREADS / LANES);
}

/* Launches kernel<W, LANES>(..., rows, d) with W and LANES as the row length allows. `aligned`
 * tells whether all pointers allow vectors. */
#define ON_ROWS(kernel, aligned, rows, d, ...) \
    do { \
        const unsigned warp_grid = sz_grid(sz_blocks(rows, THREADS / 32)); \
        const unsigned block_grid = sz_grid(rows); \
        const bool vectors = (aligned) && (d) % SZ_VECTOR == 0; \
        if ((rows) <= 0 || (d) <= 0) break; \
        if (vectors && (d) <= SHORT) \
            SZ_LAUNCH((kernel<SZ_VECTOR, 32>), warp_grid, THREADS, 0, __VA_ARGS__, rows, d); \
        else if (vectors) \
            SZ_LAUNCH((kernel<SZ_VECTOR, THREADS>), block_grid, THREADS, 0, __VA_ARGS__, rows, d); \
        else if ((d) <= SHORT) \
            SZ_LAUNCH((kernel<1, 32>), warp_grid, THREADS, 0, __VA_ARGS__, rows, d); \
        else SZ_LAUNCH((kernel<1, THREADS>), block_grid, THREADS, 0, __VA_ARGS__, rows, d); \
    } while (0)

/* ---- sums over rows ---- */
/* A row's mean as the sum of two f32, and r = 1 / deviation. */
typedef struct {
    float mean;
    float correction; /* what rounding took from mean */
    float r;
} row_stats;

__device__ __forceinline__ float normalised(float x, const row_stats &s)
{
    return ((x - s.mean) - s.correction) * s.r;
}

enum { SUM_WARPS = THREADS / 32 };

/* partial [chunk, 1 or 2, d] = a chunk's sums of g and, unless x is NULL, of g times the
 * normalised x. g is `ld` wide; its columns count from `col`. */
template <int W> __global__ void chunk_sums_kernel(sz_elements x, sz_elements g, int64_t col,
                                                   int64_t ld, const row_stats *stats,
                                                   float *partial, int64_t rows, int64_t d,
                                                   int64_t chunk_rows)
{
    __shared__ float sums[SUM_WARPS][2][32 * W];
    const int lane = threadIdx.x % 32;
    const int warp = threadIdx.x / 32;
    const int kinds = x.data ? 2 : 1;
    const int64_t at = ((int64_t)blockIdx.x * 32 + lane) * W;
    const int64_t chunk = blockIdx.y;
    const int64_t end = min(rows, (chunk + 1) * chunk_rows);
    float plain[W], scaled[W];
    for (int j = 0; j < W; j++) plain[j] = scaled[j] = 0;
    /* Each warp adds every SUM_WARPS-th row of the chunk. */
    if (at < d)
        for (int64_t row = chunk * chunk_rows + warp; row < end; row += SUM_WARPS) {
            float gradient[W];
            sz_load_vector<W>(g, row * ld + col + at, gradient);
            for (int j = 0; j < W; j++) plain[j] += gradient[j];
            if (x.data) {
                const row_stats s = stats[row];
                float value[W];
                sz_load_vector<W>(x, row * d + at, value);
                for (int j = 0; j < W; j++) scaled[j] += gradient[j] * normalised(value[j], s);
            }
        }
    for (int j = 0; j < W; j++) {
        sums[warp][0][lane * W + j] = plain[j];
        sums[warp][1][lane * W + j] = scaled[j];
    }
    __syncthreads();
    /* Add the warps' sums in order. */
    for (int i = threadIdx.x; i < kinds * 32 * W; i += THREADS) {
        const int kind = i / (32 * W);
        const int c = i % (32 * W);
        const int64_t to = (int64_t)blockIdx.x * 32 * W + c;
        float sum = 0;
        for (int w = 0; w < SUM_WARPS; w++) sum += sums[w][kind][c];
        if (to < d) partial[(chunk * kinds + kind) * d + to] = sum;
    }
}

/* plain [d] and scaled [d] = the sums of all chunks, in order; either may be NULL. Accumulates if
 * `add`. */
__global__ void add_chunks_kernel(const float *partial, int64_t chunks, int kinds, int64_t d,
                                  float *plain, float *scaled, bool add)
{
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    const int64_t j = i % d;
    if (i >= kinds * d) return;
    float *to = i < d ? plain : scaled;
    if (!to) return;
    double sum = 0;
    for (int64_t chunk = 0; chunk < chunks; chunk++) sum += partial[chunk * kinds * d + i];
    to[j] = add ? to[j] + (float)sum : (float)sum;
}

/* The gradients to be summed: rows of g, `ld` wide, d columns from `col` on. */
struct gradient_rows {
    const sz_tensor *g;
    int64_t col, ld, rows, d;
};

/* plain [d] = the sum of the rows; scaled [d] = the sum of each row times the normalised row of x.
 * scaled needs x and stats; either result may be NULL. Returns 0, or -1 with a message. */
static int row_sums(const char *op, const sz_tensor *x, const gradient_rows &from,
                    const row_stats *stats, float *plain, float *scaled, bool add)
{
    const int64_t rows = from.rows;
    const int64_t d = from.d;
    if (d == 0) return 0;
    /* At most 128 chunks, of at least 64 rows. */
    const int64_t chunk_rows = rows > 128 * 64 ? sz_blocks(rows, 128) : 64;
    const int64_t chunks = sz_blocks(rows, chunk_rows);
    const int kinds = x ? 2 : 1;
    float *partial = (float *)sz_cuda_scratch((size_t)(chunks * kinds * d + 1) * sizeof *partial);
    if (!partial) return -1;
    const sz_elements values = x ? sz_elements_of(x) : sz_elements{ NULL, false };
    const sz_elements g = sz_elements_of(from.g);
    if (rows > 0) {
        const bool vectors = d % SZ_VECTOR == 0 && from.ld % SZ_VECTOR == 0 &&
                             from.col % SZ_VECTOR == 0 && sz_is_aligned16(from.g) &&
                             (!x || sz_is_aligned16(x));
        const int64_t per_block = 32 * (vectors ? SZ_VECTOR : 1);
        const dim3 grid((unsigned)sz_blocks(d, per_block), (unsigned)chunks);
        if (vectors)
            SZ_LAUNCH((chunk_sums_kernel<SZ_VECTOR>), grid, THREADS, 0, values, g, from.col,
                      from.ld, stats, partial, rows, d, chunk_rows);
        else
            SZ_LAUNCH((chunk_sums_kernel<1>), grid, THREADS, 0, values, g, from.col, from.ld, stats,
                      partial, rows, d, chunk_rows);
    }
    SZ_LAUNCH(add_chunks_kernel, (unsigned)sz_blocks(kinds * d, THREADS), THREADS, 0, partial,
              chunks, kinds, d, plain, scaled, add);
    return sz_cuda_launched(op);
}

extern "C" int sz_cuda_column_sum_(const sz_call *c)
{
    sz_tensor *acc = c->in[0];
    sz_tensor *dy = c->in[1];
    const gradient_rows g = { dy, (int64_t)c->args[0], sz_cols(dy), sz_rows(dy), acc->numel };
    return row_sums("column_sum_", NULL, g, NULL, sz_f32(acc), NULL, true);
}

/* Workspace for the statistics of each row. NULL with a message. */
static row_stats *allocate_stats(int64_t rows)
{
    return (row_stats *)sz_cuda_scratch((size_t)(rows + 1) * sizeof(row_stats));
}

/* ---- RMSNorm: y = w * round(x * r), r = 1 / sqrt(mean(x^2) + eps) ---- */
/* round: to x's dtype, as Hugging Face does. */
template <int W, int LANES>
__device__ __forceinline__ float inverse_rms(const held_row<W, LANES> &x, float eps)
{
    float squares = 0;
    x.each_element([&](float v) { squares += v * v; });
    return 1 / sqrtf(row_sum<LANES>(squares) / (float)x.d + eps);
}

template <int W, int LANES> __global__ void rmsnorm_kernel(sz_elements x, sz_elements w,
                                                           sz_elements y, float eps, int64_t rows,
                                                           int64_t d)
{
    for (int64_t row = first_row<LANES>(); row < rows; row += row_stride<LANES>()) {
        const held_row<W, LANES> held(x, row, d);
        const float r = inverse_rms<W, LANES>(held, eps);
        held.each([&](int64_t col, const float(&v)[W]) {
            float weight[W], out[W];
            sz_load_vector<W>(w, col, weight);
            for (int j = 0; j < W; j++)
                out[j] = (x.is_bf16 ? sz_round_bf16(v[j] * r) : v[j] * r) * weight[j];
            sz_store_vector<W>(y, row * d + col, out);
        });
    }
}

extern "C" int sz_cuda_rmsnorm(const sz_call *c)
{
    const sz_tensor *x = c->in[0];
    const sz_tensor *w = c->in[1];
    const sz_tensor *y = c->out[0];
    const int64_t d = sz_cols(x);
    const int64_t rows = sz_rows(x);
    const bool aligned = sz_is_aligned16(x) && sz_is_aligned16(w) && sz_is_aligned16(y);
    ON_ROWS(rmsnorm_kernel, aligned, rows, d, sz_elements_of(x), sz_elements_of(w),
            sz_elements_of(y), (float)c->args[0]);
    return sz_cuda_launched("rmsnorm");
}

/* dx = r w g - x r^3 / d * sum_j(w_j g_j x_j) */
template <int W, int LANES> __global__ void rmsnorm_backward_kernel(sz_elements x, sz_elements w,
                                                                    sz_elements dy, sz_elements dx,
                                                                    row_stats *stats, float eps,
                                                                    int64_t rows, int64_t d)
{
    for (int64_t row = first_row<LANES>(); row < rows; row += row_stride<LANES>()) {
        const held_row<W, LANES> held(x, row, d);
        const float r = inverse_rms<W, LANES>(held, eps);
        float dot = 0;
        held.each([&](int64_t col, const float(&v)[W]) {
            float weight[W], g[W];
            sz_load_vector<W>(w, col, weight);
            sz_load_vector<W>(dy, row * d + col, g);
            for (int j = 0; j < W; j++) dot += weight[j] * g[j] * (v[j] * r);
        });
        const float k = row_sum<LANES>(dot) / (float)d * r * r;
        held.each([&](int64_t col, const float(&v)[W]) {
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
    const sz_tensor *x = c->in[0];
    const sz_tensor *w = c->in[1];
    const sz_tensor *dy = c->in[2];
    const sz_tensor *dx = c->out[0];
    const int64_t d = sz_cols(x);
    const int64_t rows = sz_rows(x);
    row_stats *stats = allocate_stats(rows);
    if (!stats) return -1;
    const bool aligned = sz_is_aligned16(x) && sz_is_aligned16(w) && sz_is_aligned16(dy) &&
                         sz_is_aligned16(dx);
    ON_ROWS(rmsnorm_backward_kernel, aligned, rows, d, sz_elements_of(x), sz_elements_of(w),
            sz_elements_of(dy), sz_elements_of(dx), stats, (float)c->args[0]);
    const gradient_rows g = { dy, 0, d, rows, d };
    return row_sums("rmsnorm_backward", x, g, stats, NULL, sz_f32(c->out[1]), false);
}

/* ---- LayerNorm: y = w * (x - mean) * r + b, r = 1 / sqrt(variance + eps) ---- */
/* The variance is over all d elements. The sum of the distances from the f32 mean gives back what
 * rounding took from the mean, which matters when the mean is large relative to the deviation. */
template <int W, int LANES>
__device__ __forceinline__ row_stats moments(const held_row<W, LANES> &x, float eps)
{
    float sum = 0;
    x.each_element([&](float v) { sum += v; });
    const float mean = row_sum<LANES>(sum) / (float)x.d;
    float squares = 0;
    float distances = 0;
    x.each_element([&](float v) {
        const float distance = v - mean;
        squares += distance * distance;
        distances += distance;
    });
    const float correction = row_sum<LANES>(distances) / (float)x.d;
    const float variance = fmaxf(row_sum<LANES>(squares) / (float)x.d - correction * correction, 0);
    return row_stats{ mean, correction, 1 / sqrtf(variance + eps) };
}

template <int W, int LANES> __global__ void layernorm_kernel(sz_elements x, sz_elements w,
                                                             sz_elements b, sz_elements y,
                                                             float eps, int64_t rows, int64_t d)
{
    for (int64_t row = first_row<LANES>(); row < rows; row += row_stride<LANES>()) {
        const held_row<W, LANES> held(x, row, d);
        const row_stats s = moments<W, LANES>(held, eps);
        held.each([&](int64_t col, const float(&v)[W]) {
            float weight[W], bias[W], out[W];
            sz_load_vector<W>(w, col, weight);
            sz_load_vector<W>(b, col, bias);
            for (int j = 0; j < W; j++) out[j] = normalised(v[j], s) * weight[j] + bias[j];
            sz_store_vector<W>(y, row * d + col, out);
        });
    }
}

extern "C" int sz_cuda_layernorm(const sz_call *c)
{
    const sz_tensor *x = c->in[0];
    const sz_tensor *w = c->in[1];
    const sz_tensor *b = c->in[2];
    const sz_tensor *y = c->out[0];
    const int64_t d = sz_cols(x);
    const int64_t rows = sz_rows(x);
    const bool aligned = sz_is_aligned16(x) && sz_is_aligned16(w) && sz_is_aligned16(b) &&
                         sz_is_aligned16(y);
    ON_ROWS(layernorm_kernel, aligned, rows, d, sz_elements_of(x), sz_elements_of(w),
            sz_elements_of(b), sz_elements_of(y), (float)c->args[0]);
    return sz_cuda_launched("layernorm");
}

/* dx = r (w g - mean(w g) - x' mean(w g x')), x' = (x - mean) r */
template <int W, int LANES>
__global__ void layernorm_backward_kernel(sz_elements x, sz_elements w, sz_elements dy,
                                          sz_elements dx, row_stats *stats, float eps, int64_t rows,
                                          int64_t d)
{
    for (int64_t row = first_row<LANES>(); row < rows; row += row_stride<LANES>()) {
        const held_row<W, LANES> held(x, row, d);
        const row_stats s = moments<W, LANES>(held, eps);
        /* Both means. */
        float sum = 0;
        float dot = 0;
        held.each([&](int64_t col, const float(&v)[W]) {
            float weight[W], g[W];
            sz_load_vector<W>(w, col, weight);
            sz_load_vector<W>(dy, row * d + col, g);
            for (int j = 0; j < W; j++) {
                sum += weight[j] * g[j];
                dot += weight[j] * g[j] * normalised(v[j], s);
            }
        });
        sum = row_sum<LANES>(sum) / (float)d;
        dot = row_sum<LANES>(dot) / (float)d;
        /* The gradient, and what row_sums needs. */
        held.each([&](int64_t col, const float(&v)[W]) {
            float weight[W], g[W], out[W];
            sz_load_vector<W>(w, col, weight);
            sz_load_vector<W>(dy, row * d + col, g);
            for (int j = 0; j < W; j++)
                out[j] = s.r * (weight[j] * g[j] - sum - normalised(v[j], s) * dot);
            sz_store_vector<W>(dx, row * d + col, out);
        });
        if (threadIdx.x % LANES == 0) stats[row] = s;
    }
}

extern "C" int sz_cuda_layernorm_backward(const sz_call *c)
{
    const sz_tensor *x = c->in[0];
    const sz_tensor *w = c->in[1];
    const sz_tensor *dy = c->in[2];
    const sz_tensor *dx = c->out[0];
    const int64_t d = sz_cols(x);
    const int64_t rows = sz_rows(x);
    row_stats *stats = allocate_stats(rows);
    if (!stats) return -1;
    const bool aligned = sz_is_aligned16(x) && sz_is_aligned16(w) && sz_is_aligned16(dy) &&
                         sz_is_aligned16(dx);
    ON_ROWS(layernorm_backward_kernel, aligned, rows, d, sz_elements_of(x), sz_elements_of(w),
            sz_elements_of(dy), sz_elements_of(dx), stats, (float)c->args[0]);
    const gradient_rows g = { dy, 0, d, rows, d };
    return row_sums("layernorm_backward", x, g, stats, sz_f32(c->out[2]), sz_f32(c->out[1]), false);
}

/* ---- softmax over the last dimension ---- */
template <int W, int LANES>
__global__ void softmax_kernel(sz_elements x, sz_elements y, int64_t rows, int64_t d)
{
    for (int64_t row = first_row<LANES>(); row < rows; row += row_stride<LANES>()) {
        const held_row<W, LANES> held(x, row, d);
        float highest = -INFINITY;
        held.each_element([&](float v) { highest = fmaxf(highest, v); });
        highest = row_max<LANES>(highest);
        float sum = 0;
        held.each_element([&](float v) { sum += expf(v - highest); });
        const float scale = 1 / row_sum<LANES>(sum);
        held.each([&](int64_t col, const float(&v)[W]) {
            float out[W];
            for (int j = 0; j < W; j++) out[j] = expf(v[j] - highest) * scale;
            sz_store_vector<W>(y, row * d + col, out);
        });
    }
}

extern "C" int sz_cuda_softmax(const sz_call *c)
{
    const sz_tensor *x = c->in[0];
    const sz_tensor *y = c->out[0];
    const int64_t d = sz_cols(x);
    const int64_t rows = sz_rows(x);
    ON_ROWS(softmax_kernel, sz_is_aligned16(x) && sz_is_aligned16(y), rows, d, sz_elements_of(x),
            sz_elements_of(y));
    return sz_cuda_launched("softmax");
}

/* dx = y (dy - sum(y dy)) */
template <int W, int LANES> __global__ void softmax_backward_kernel(sz_elements y, sz_elements dy,
                                                                    sz_elements dx, int64_t rows,
                                                                    int64_t d)
{
    for (int64_t row = first_row<LANES>(); row < rows; row += row_stride<LANES>()) {
        const held_row<W, LANES> held(y, row, d);
        float dot = 0;
        held.each([&](int64_t col, const float(&v)[W]) {
            float g[W];
            sz_load_vector<W>(dy, row * d + col, g);
            for (int j = 0; j < W; j++) dot += v[j] * g[j];
        });
        dot = row_sum<LANES>(dot);
        held.each([&](int64_t col, const float(&v)[W]) {
            float g[W], out[W];
            sz_load_vector<W>(dy, row * d + col, g);
            for (int j = 0; j < W; j++) out[j] = v[j] * (g[j] - dot);
            sz_store_vector<W>(dx, row * d + col, out);
        });
    }
}

extern "C" int sz_cuda_softmax_backward(const sz_call *c)
{
    const sz_tensor *y = c->in[0];
    const sz_tensor *dy = c->in[1];
    const sz_tensor *dx = c->out[0];
    const int64_t d = sz_cols(y);
    const int64_t rows = sz_rows(y);
    const bool aligned = sz_is_aligned16(y) && sz_is_aligned16(dy) && sz_is_aligned16(dx);
    ON_ROWS(softmax_backward_kernel, aligned, rows, d, sz_elements_of(y), sz_elements_of(dy),
            sz_elements_of(dx));
    return sz_cuda_launched("softmax_backward");
}
