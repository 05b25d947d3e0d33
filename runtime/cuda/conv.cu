/* conv.cu - conv2d, its two gradients and conv_transpose2d on the device. Pictures are [b, h, w, c], weights [o, c, kh, kw].
 *
 * The weight is reordered once to [o, kh, kw, c]; then cuDNN does it (cudnn.cu), but for a 1x1 kernel with stride 1, which is a matrix product
 * alone (gemm.cu), and for what cuDNN is not there for or has no exact plan for. That goes as on the CPU: a position of the kernel on the picture
 * becomes a row of kh * kw * c numbers (im2col) in the picture's own dtype, a block of positions at a time, and the rest is matrix products. The
 * input's gradient makes such rows in f32; each element of the picture then collects what is its own, in a fixed order. Sums are f32 and
 * rounded once either way.
 *
 * Leaves out: dilation, groups, unequal strides, output padding. The reference is cpu/ref_conv.c. */
#include "cudnn.cuh"
#include "gemm.cuh"

enum { THREADS = 256 };
typedef sz_conv conv;

static conv geometry(const sz_tensor *x, const sz_tensor *weight, const sz_tensor *y, const double *args)
{
    const int64_t *d = weight->shape;
    return conv{ x->shape[0], x->shape[1], x->shape[2], x->shape[3], y->shape[1], y->shape[2], d[0], d[2], d[3],
                 (int64_t)args[0], (int64_t)args[1], d[2] * d[3] * d[1] };
}

static bool rows_are_picture(const conv &g) { return g.kh == 1 && g.kw == 1 && g.stride == 1 && g.padding == 0; }

/* ---- weights: [o, c, cells] and [o, cells, c] ---- */
template <typename T> __global__ void pack_kernel(const T *from, T *to, int64_t n, int64_t c, int64_t cells)
{
    for (int64_t e = (int64_t)blockIdx.x * THREADS + threadIdx.x; e < n; e += (int64_t)gridDim.x * THREADS) {
        const int64_t ch = e % c, cell = e / c % cells, o = e / (c * cells);
        to[e] = from[(o * c + ch) * cells + cell];
    }
}

/* acc [o, c, cells] += sums [o, cells, c] */
__global__ void unpack_add_kernel(const float *sums, float *acc, int64_t n, int64_t c, int64_t cells)
{
    for (int64_t e = (int64_t)blockIdx.x * THREADS + threadIdx.x; e < n; e += (int64_t)gridDim.x * THREADS) {
        const int64_t cell = e % cells, ch = e / cells % c, o = e / (c * cells);
        acc[e] += sums[(o * cells + cell) * c + ch];
    }
}

/* The weight as [o, kh, kw, c] in its dtype; NULL with a message. */
static const void *packed(const conv &g, const sz_tensor *weight)
{
    const int64_t n = weight->numel, cells = g.kh * g.kw;
    if (cells == 1 || g.c == 1) return weight->data;
    void *to = sz_cuda_scratch(sz_bytes(weight));
    if (!to) return NULL;
    SZ_FLOATING(weight->dtype, T, SZ_LAUNCH((pack_kernel<T>), sz_grid(sz_blocks(n, THREADS)), THREADS, 0, (const T *)weight->data, (T *)to, n, g.c, cells));
    return sz_cuda_launched("conv2d") == 0 ? to : NULL;
}

/* ---- pictures to rows and back ---- */
/* rows [n, k] of positions [first, first + n) of batch * oh * ow; 0 outside the picture. */
template <int W> __global__ void im2col_kernel(conv g, sz_elements x, int64_t first, int64_t n, sz_elements rows)
{
    const int64_t vectors = g.k / W;
    for (int64_t e = (int64_t)blockIdx.x * THREADS + threadIdx.x; e < n * vectors; e += (int64_t)gridDim.x * THREADS) {
        const int64_t r = e / vectors, at = first + r, ox = at % g.ow, oy = at / g.ow % g.oh, b = at / (g.ow * g.oh);
        const int i = (int)(e % vectors) * W, ch = i % (int)g.c, cell = i / (int)g.c;
        const int64_t y = oy * g.stride - g.padding + cell / (int)g.kw, col = ox * g.stride - g.padding + cell % (int)g.kw;
        float v[W];
        for (int j = 0; j < W; j++) v[j] = 0;
        if (y >= 0 && y < g.h && col >= 0 && col < g.w) sz_load_vector<W>(x, ((b * g.h + y) * g.w + col) * g.c + ch, v);
        sz_store_vector<W>(rows, r * g.k + i, v);
    }
}

/* Rows [first, first + n) of the positions, in space [n, k] of x's dtype, or where x has them. */
static const void *im2col(const conv &g, const sz_tensor *x, int64_t first, int64_t n, void *space)
{
    if (rows_are_picture(g)) return sz_elements_from(x, first * g.c).data;
    const sz_elements rows = { space, x->dtype == SZ_BF16 };
    if (g.c % SZ_VECTOR == 0 && sz_is_aligned16(x))
        SZ_LAUNCH((im2col_kernel<SZ_VECTOR>), sz_grid(sz_blocks(n * g.k / SZ_VECTOR, THREADS)), THREADS, 0, g, sz_elements_of(x), first, n, rows);
    else SZ_LAUNCH((im2col_kernel<1>), sz_grid(sz_blocks(n * g.k, THREADS)), THREADS, 0, g, sz_elements_of(x), first, n, rows);
    return sz_cuda_launched("conv2d") == 0 ? space : NULL;
}

/* out [h, w, c] = what was there before (prior, or the bias [c], or 0) + what rows [n, k] of positions [first, first + n) of one
 * picture have for it. */
template <int W> __global__ void col2im_kernel(conv g, const float *rows, int64_t first, int64_t n, const float *prior, sz_elements bias, sz_elements out)
{
    const int64_t vectors = g.c / W, size = g.h * g.w * vectors;
    for (int64_t e = (int64_t)blockIdx.x * THREADS + threadIdx.x; e < size; e += (int64_t)gridDim.x * THREADS) {
        const int64_t ch = e % vectors * W, col = e / vectors % g.w + g.padding, y = e / (vectors * g.w) + g.padding;
        float sum[W], v[W];
        for (int j = 0; j < W; j++) sum[j] = 0;
        if (prior) sz_load_vector<W>(prior + e * W, sum);
        else if (bias.data) sz_load_vector<W>(bias, ch, sum);
        /* Kernel cells that reach (y, col) from a position: every stride-th one. */
        for (int64_t ky = y % g.stride; ky < g.kh && ky <= y; ky += g.stride) {
            const int64_t oy = (y - ky) / g.stride;
            if (oy >= g.oh) continue;
            for (int64_t kx = col % g.stride; kx < g.kw && kx <= col; kx += g.stride) {
                const int64_t ox = (col - kx) / g.stride, at = oy * g.ow + ox - first;
                if (ox >= g.ow || at < 0 || at >= n) continue;
                sz_load_vector<W>(rows + at * g.k + (ky * g.kw + kx) * g.c + ch, v);
                for (int j = 0; j < W; j++) sum[j] += v[j];
            }
        }
        sz_store_vector<W>(out, e * W, sum);
    }
}

static void *space_for_rows(const conv &g, int64_t block, int dtype, bool *failed)
{
    if (rows_are_picture(g)) return NULL;
    void *space = sz_cuda_scratch((size_t)(block * g.k) * sz_dtype_size(dtype));
    if (!space) *failed = true;
    return space;
}

/* As sz_cudnn_conv; SZ_CUDNN_NONE for what is a matrix product alone, too. */
static int by_cudnn(sz_conv_kind kind, const conv &g, int dtype, const void *x, const void *w, const void *y, const sz_tensor *bias)
{
    return rows_are_picture(g) ? (int)SZ_CUDNN_NONE : sz_cudnn_conv(kind, g, dtype, x, w, y, bias);
}

extern "C" int sz_cuda_conv2d(const sz_call *c)
{
    const sz_tensor *x = c->in[0], *y = c->out[0];
    const conv g = geometry(x, c->in[1], y, c->args);
    const int64_t positions = g.batch * g.oh * g.ow, block = rows_are_picture(g) ? positions : sz_cuda_block_rows(positions, g.k);
    bool no_space = false;
    if (y->numel == 0) return 0;
    const void *w = packed(g, c->in[1]);
    if (!w) return -1;
    const int rc = by_cudnn(SZ_CONV_FORWARD, g, x->dtype, x->data, w, y->data, c->in[2]);
    if (rc != SZ_CUDNN_NONE) return rc;
    void *space = space_for_rows(g, block, x->dtype, &no_space);
    if (no_space) return -1;
    for (int64_t first = 0; first < positions; first += block) {
        const int64_t n = block < positions - first ? block : positions - first;
        const void *rows = im2col(g, x, first, n, space);
        if (!rows || sz_cuda_gemm_linear(n, g.o, g.k, rows, w, x->dtype, c->in[2], false, sz_elements_from(y, first * g.o).data, g.o, y->dtype)) return -1;
    }
    return 0;
}

/* dx (what conv2d reads) from dy, plus bias [c] when there is one. */
static int input_gradient(const char *op, const conv &g, const sz_tensor *dy, const sz_tensor *weight, const sz_tensor *bias, const sz_tensor *dx)
{
    const int64_t places = g.oh * g.ow, size = g.h * g.w * g.c, block = sz_cuda_block_rows(places, g.k);
    if (dx->numel == 0) return 0;
    const void *w = packed(g, weight);
    if (!w) return -1;
    /* cuDNN adds no bias here: in f32 one follows, in bf16 the sums would be rounded before it. */
    const bool whole = dy->numel > 0 && (!bias || dx->dtype == SZ_F32);
    const int rc = whole ? by_cudnn(SZ_CONV_INPUT, g, dy->dtype, dx->data, w, dy->data, NULL) : (int)SZ_CUDNN_NONE;
    if (rc == 0 && bias) sz_cuda_finish(sz_f32(dx), g.batch * g.h * g.w, g.c, bias, false, sz_elements_of(dx), g.c);
    if (rc != SZ_CUDNN_NONE) return rc == 0 ? sz_cuda_launched(op) : rc;
    float *rows = (float *)sz_cuda_scratch((size_t)(block * g.k + 1) * sizeof *rows);
    float *unfinished = block < places ? (float *)sz_cuda_scratch((size_t)size * sizeof *unfinished) : NULL;
    if (!rows || (block < places && !unfinished)) return -1;
    const sz_elements added = bias ? sz_elements_of(bias) : sz_elements{ NULL, false };
    for (int64_t b = 0; b < g.batch; b++) {
        const sz_elements picture = sz_elements_from(dx, b * size);
        const bool wide = g.c % SZ_VECTOR == 0 && sz_is_aligned16(added.data) && sz_is_aligned16(picture.data);
        for (int64_t first = 0; first < places; first += block) {
            const int64_t n = block < places - first ? block : places - first;
            const void *from = sz_elements_from(dy, (b * places + first) * g.o).data;
            if (sz_cuda_gemm(false, false, n, g.k, g.o, from, g.o, w, g.k, dy->dtype, 0, rows, g.k, SZ_F32)) return -1;
            const float *prior = first > 0 ? unfinished : NULL;
            const sz_elements out = first + n < places ? sz_elements_f32(unfinished) : picture;
            if (wide) SZ_LAUNCH((col2im_kernel<SZ_VECTOR>), sz_grid(sz_blocks(size / SZ_VECTOR, THREADS)), THREADS, 0, g, rows, first, n, prior, added, out);
            else SZ_LAUNCH((col2im_kernel<1>), sz_grid(sz_blocks(size, THREADS)), THREADS, 0, g, rows, first, n, prior, added, out);
            if (sz_cuda_launched(op)) return -1;
        }
    }
    return 0;
}

extern "C" int sz_cuda_conv2d_dx(const sz_call *c)
{
    const conv g = geometry(c->out[0], c->in[1], c->in[0], c->args);
    return input_gradient("conv2d_dx", g, c->in[0], c->in[1], NULL, c->out[0]);
}

extern "C" int sz_cuda_conv_transpose2d(const sz_call *c)
{
    const conv g = geometry(c->out[0], c->in[1], c->in[0], c->args);
    return input_gradient("conv_transpose2d", g, c->in[0], c->in[1], c->in[2], c->out[0]);
}

static int add_weights(const float *sums, const conv &g, const sz_tensor *acc)
{
    SZ_LAUNCH(unpack_add_kernel, sz_grid(sz_blocks(acc->numel, THREADS)), THREADS, 0, sums, sz_f32(acc), acc->numel, g.c, g.kh * g.kw);
    return sz_cuda_launched("conv2d_dw_");
}

extern "C" int sz_cuda_conv2d_dw_(const sz_call *c)
{
    const sz_tensor *acc = c->in[0], *x = c->in[1], *dy = c->in[2];
    const conv g = geometry(x, acc, dy, c->args);
    const int64_t positions = g.batch * g.oh * g.ow, block = rows_are_picture(g) ? positions : sz_cuda_block_rows(positions, g.k);
    const bool direct = (g.kh == 1 && g.kw == 1) || g.c == 1;
    bool no_space = false;
    if (positions == 0 || acc->numel == 0) return 0;
    /* cuDNN's gradient has the pictures' dtype: only f32 is added up unrounded. */
    float *sums = rows_are_picture(g) ? sz_f32(acc) : (float *)sz_cuda_scratch((size_t)acc->numel * sizeof *sums);
    if (!sums) return -1;
    if (x->dtype == SZ_F32) {
        const int rc = by_cudnn(SZ_CONV_WEIGHT, g, SZ_F32, x->data, sums, dy->data, NULL);
        if (rc != SZ_CUDNN_NONE) return rc == 0 ? add_weights(sums, g, acc) : rc;
    }
    if (direct) sums = sz_f32(acc);
    void *space = space_for_rows(g, block, x->dtype, &no_space);
    if (no_space) return -1;
    for (int64_t first = 0; first < positions; first += block) {
        const int64_t n = block < positions - first ? block : positions - first;
        const void *rows = im2col(g, x, first, n, space);
        if (!rows || sz_cuda_gemm(true, false, g.o, g.k, n, sz_elements_from(dy, first * g.o).data, g.o, rows, g.k, x->dtype, direct || first > 0 ? 1.0f : 0.0f,
                                  sums, g.k, SZ_F32))
            return -1;
    }
    return direct ? 0 : add_weights(sums, g, acc);
}
