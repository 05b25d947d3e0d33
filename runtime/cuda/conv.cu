/* conv.cu - conv2d, its two gradients and conv_transpose2d on the device. Images are [b, h, w, c],
 * weights [o, c, kh, kw].
 *
 * The weight is reordered once to [o, kh, kw, c]. Then cuDNN does the work (cudnn.cu), with two
 * exceptions: a 1x1 kernel with stride 1 is just a matrix product (gemm.cu), and so is everything
 * for which cuDNN is missing or has no exact plan. In that case the method is the CPU's: each
 * position of the kernel on the image becomes a row of kh * kw * c numbers (im2col) in the image's
 * dtype, a block of positions at a time, and the rest is matrix products. The input's gradient
 * produces such rows in f32; each element of the image then collects its own contributions, in a
 * fixed order. Both ways sums are f32 and are rounded once.
 *
 * Leaves out: dilation, groups, unequal strides, output padding. The reference is
 * cpu/reference/conv.c. */
#include "cudnn.cuh"
#include "gemm.cuh"

enum { THREADS = 256 };
typedef sz_conv conv;

static conv geometry(const sz_tensor *x, const sz_tensor *weight, const sz_tensor *y,
                     const double *args)
{
    const int64_t *d = weight->shape;
    conv g;
    g.batch = x->shape[0];
    g.h = x->shape[1];
    g.w = x->shape[2];
    g.c = x->shape[3];
    g.oh = y->shape[1];
    g.ow = y->shape[2];
    g.o = d[0];
    g.kh = d[2];
    g.kw = d[3];
    g.stride = (int64_t)args[0];
    g.padding = (int64_t)args[1];
    g.k = d[2] * d[3] * d[1];
    return g;
}

/* Whether the image's own memory already has im2col's rows. */
static bool is_pointwise(const conv &g)
{
    return g.kh == 1 && g.kw == 1 && g.stride == 1 && g.padding == 0;
}

/* Whether [o, c, kh, kw] and [o, kh, kw, c] are the same bytes. */
static bool needs_no_packing(const conv &g) { return g.kh * g.kw == 1 || g.c == 1; }

/* The loop of all kernels here: element e of n, one for each thread, with a grid stride. */
#define FOR_EACH(e, n) \
    for (int64_t e = (int64_t)blockIdx.x * THREADS + threadIdx.x; e < (n); \
         e += (int64_t)gridDim.x * THREADS)

/* ---- weights: [o, c, cells] and [o, cells, c] ---- */
template <typename T>
__global__ void pack_kernel(const T *from, T *to, int64_t n, int64_t c, int64_t cells)
{
    FOR_EACH(e, n)
    {
        const int64_t channel = e % c;
        const int64_t cell = e / c % cells;
        const int64_t o = e / (c * cells);
        to[e] = from[(o * c + channel) * cells + cell];
    }
}

/* acc [o, c, cells] += sums [o, cells, c] */
__global__ void unpack_add_kernel(const float *sums, float *acc, int64_t n, int64_t c,
                                  int64_t cells)
{
    FOR_EACH(e, n)
    {
        const int64_t cell = e % cells;
        const int64_t channel = e / cells % c;
        const int64_t o = e / (c * cells);
        acc[e] += sums[(o * cells + cell) * c + channel];
    }
}

/* Returns the weight as [o, kh, kw, c] in its dtype. NULL with a message. */
static const void *packed(const conv &g, const sz_tensor *weight)
{
    const int64_t n = weight->numel;
    if (needs_no_packing(g)) return weight->data;
    void *to = sz_cuda_scratch(sz_bytes(weight));
    if (!to) return NULL;
    SZ_FLOATING(weight->dtype, T,
                SZ_LAUNCH((pack_kernel<T>), sz_grid(sz_blocks(n, THREADS)), THREADS, 0,
                          (const T *)weight->data, (T *)to, n, g.c, g.kh * g.kw));
    return sz_cuda_launched("conv2d") == 0 ? to : NULL;
}

/* ---- im2col ---- */
/* Writes rows [n, k] of the positions [first, first + n) of batch * oh * ow; 0 outside the image.
 * */
template <int W>
__global__ void im2col_kernel(conv g, sz_elements x, int64_t first, int64_t n, sz_elements rows)
{
    const int64_t vectors = g.k / W;
    FOR_EACH(e, n * vectors)
    {
        /* The position, and the kernel's cell and channel. */
        const int64_t r = e / vectors;
        const int64_t at = first + r;
        const int64_t ox = at % g.ow;
        const int64_t oy = at / g.ow % g.oh;
        const int64_t b = at / (g.ow * g.oh);
        const int i = (int)(e % vectors) * W;
        const int channel = i % (int)g.c;
        const int cell = i / (int)g.c;
        /* Where that is in the image. */
        const int64_t y = oy * g.stride - g.padding + cell / (int)g.kw;
        const int64_t col = ox * g.stride - g.padding + cell % (int)g.kw;
        float v[W];
        for (int j = 0; j < W; j++) v[j] = 0;
        if (y >= 0 && y < g.h && col >= 0 && col < g.w)
            sz_load_vector<W>(x, ((b * g.h + y) * g.w + col) * g.c + channel, v);
        sz_store_vector<W>(rows, r * g.k + i, v);
    }
}

/* Returns the rows of positions [first, first + n): made in space [n, k] of x's dtype, or x's own
 * memory if that already has them. NULL with a message. */
static const void *im2col(const conv &g, const sz_tensor *x, int64_t first, int64_t n, void *space)
{
    if (is_pointwise(g)) return sz_elements_from(x, first * g.c).data;
    const sz_elements rows = { space, x->dtype == SZ_BF16 };
    if (g.c % SZ_VECTOR == 0 && sz_is_aligned16(x)) {
        const int64_t vectors = n * g.k / SZ_VECTOR;
        SZ_LAUNCH((im2col_kernel<SZ_VECTOR>), sz_grid(sz_blocks(vectors, THREADS)), THREADS, 0, g,
                  sz_elements_of(x), first, n, rows);
    } else {
        SZ_LAUNCH((im2col_kernel<1>), sz_grid(sz_blocks(n * g.k, THREADS)), THREADS, 0, g,
                  sz_elements_of(x), first, n, rows);
    }
    return sz_cuda_launched("conv2d") == 0 ? space : NULL;
}

/* Allocates im2col's rows for `block` positions. Returns false, with a message, if memory is out.
 * */
static bool allocate_rows(const conv &g, int64_t block, int dtype, void **space)
{
    *space = NULL;
    if (is_pointwise(g)) return true;
    *space = sz_cuda_scratch((size_t)(block * g.k) * sz_dtype_size(dtype));
    return *space != NULL;
}

/* ---- col2im ---- */
/* out [h, w, c] = start + the contributions of rows [n, k], which belong to positions
 * [first, first + n) of one image. start is prior, or if that is NULL the bias [c], or else 0. */
template <int W> __global__ void col2im_kernel(conv g, const float *rows, int64_t first, int64_t n,
                                               const float *prior, sz_elements bias,
                                               sz_elements out)
{
    const int64_t vectors = g.c / W;
    const int64_t size = g.h * g.w * vectors;
    FOR_EACH(e, size)
    {
        const int64_t channel = e % vectors * W;
        const int64_t col = e / vectors % g.w + g.padding;
        const int64_t y = e / (vectors * g.w) + g.padding;
        float sum[W], v[W];
        for (int j = 0; j < W; j++) sum[j] = 0;
        if (prior) sz_load_vector<W>(prior + e * W, sum);
        else if (bias.data) sz_load_vector<W>(bias, channel, sum);
        /* The kernel cells through which some position reaches (y, col): every stride-th one. */
        for (int64_t ky = y % g.stride; ky < g.kh && ky <= y; ky += g.stride) {
            const int64_t oy = (y - ky) / g.stride;
            if (oy >= g.oh) continue;
            for (int64_t kx = col % g.stride; kx < g.kw && kx <= col; kx += g.stride) {
                const int64_t ox = (col - kx) / g.stride;
                const int64_t at = oy * g.ow + ox - first;
                if (ox >= g.ow || at < 0 || at >= n) continue;
                sz_load_vector<W>(rows + at * g.k + (ky * g.kw + kx) * g.c + channel, v);
                for (int j = 0; j < W; j++) sum[j] += v[j];
            }
        }
        sz_store_vector<W>(out, e * W, sum);
    }
}

/* Launches col2im_kernel. Returns 0, or -1 with a message. */
static int col2im(const char *op, const conv &g, const float *rows, int64_t first, int64_t n,
                  const float *prior, sz_elements bias, sz_elements out, bool vectors)
{
    const int64_t size = g.h * g.w * g.c;
    if (vectors)
        SZ_LAUNCH((col2im_kernel<SZ_VECTOR>), sz_grid(sz_blocks(size / SZ_VECTOR, THREADS)),
                  THREADS, 0, g, rows, first, n, prior, bias, out);
    else
        SZ_LAUNCH((col2im_kernel<1>), sz_grid(sz_blocks(size, THREADS)), THREADS, 0, g, rows, first,
                  n, prior, bias, out);
    return sz_cuda_launched(op);
}

/* As sz_cudnn_conv, but also returns SZ_CUDNN_NONE for what is just a matrix product. */
static int by_cudnn(sz_conv_kind kind, const conv &g, int dtype, const void *x, const void *w,
                    const void *y, const sz_tensor *bias)
{
    if (is_pointwise(g)) return SZ_CUDNN_NONE;
    return sz_cudnn_conv(kind, g, dtype, x, w, y, bias);
}

/* Returns how many positions are processed at a time. */
static int64_t block_of(const conv &g, int64_t positions)
{
    return is_pointwise(g) ? positions : sz_cuda_block_rows(positions, g.k);
}

/* ---- the ops ---- */
extern "C" int sz_cuda_conv2d(const sz_call *c)
{
    const sz_tensor *x = c->in[0];
    const sz_tensor *bias = c->in[2];
    const sz_tensor *y = c->out[0];
    const conv g = geometry(x, c->in[1], y, c->args);
    if (y->numel == 0) return 0;
    const void *w = packed(g, c->in[1]);
    if (!w) return -1;
    const int rc = by_cudnn(SZ_CONV_FORWARD, g, x->dtype, x->data, w, y->data, bias);
    if (rc != SZ_CUDNN_NONE) return rc;

    /* A matrix product for each block of positions. */
    const int64_t positions = g.batch * g.oh * g.ow;
    const int64_t block = block_of(g, positions);
    void *space;
    if (!allocate_rows(g, block, x->dtype, &space)) return -1;
    for (int64_t first = 0; first < positions; first += block) {
        const int64_t n = block < positions - first ? block : positions - first;
        const void *rows = im2col(g, x, first, n, space);
        if (!rows) return -1;
        void *to = sz_elements_from(y, first * g.o).data;
        if (sz_cuda_gemm_linear(n, g.o, g.k, rows, w, x->dtype, bias, false, to, g.o, y->dtype) !=
            0)
            return -1;
    }
    return 0;
}

/* The gradient of one image, dx [h, w, c], from dy [oh * ow, o] of `dtype`. rows f32 [block, k] and
 * unfinished f32 [h, w, c] are workspace; without the latter there is one block only. */
static int image_gradient(const char *op, const conv &g, const void *w, const sz_tensor *dy,
                          int64_t first_row, sz_elements bias, sz_elements image, int64_t block,
                          float *rows, float *unfinished)
{
    const int64_t places = g.oh * g.ow;
    const bool vectors = g.c % SZ_VECTOR == 0 && sz_is_aligned16(bias.data) &&
                         sz_is_aligned16(image.data);
    for (int64_t first = 0; first < places; first += block) {
        const int64_t n = block < places - first ? block : places - first;
        const void *from = sz_elements_from(dy, (first_row + first) * g.o).data;
        if (sz_cuda_gemm(false, false, n, g.k, g.o, from, g.o, w, g.k, dy->dtype, 0, rows, g.k,
                         SZ_F32) != 0)
            return -1;
        /* All but the last block leave f32 sums, on which the next one builds. */
        const float *prior = first > 0 ? unfinished : NULL;
        const sz_elements out = first + n < places ? sz_elements_f32(unfinished) : image;
        if (col2im(op, g, rows, first, n, prior, bias, out, vectors) != 0) return -1;
    }
    return 0;
}

/* dx (the input of conv2d) from dy, plus bias [c] unless it is NULL. */
static int input_gradient(const char *op, const conv &g, const sz_tensor *dy,
                          const sz_tensor *weight, const sz_tensor *bias, const sz_tensor *dx)
{
    if (dx->numel == 0) return 0;
    const void *w = packed(g, weight);
    if (!w) return -1;
    /* cuDNN adds no bias here. In f32 it can follow; in bf16 the sums would be rounded before it.
     * */
    int rc = SZ_CUDNN_NONE;
    if (dy->numel > 0 && (!bias || dx->dtype == SZ_F32))
        rc = by_cudnn(SZ_CONV_INPUT, g, dy->dtype, dx->data, w, dy->data, NULL);
    if (rc == 0 && bias)
        sz_cuda_finish(sz_f32(dx), g.batch * g.h * g.w, g.c, bias, false, sz_elements_of(dx), g.c);
    if (rc != SZ_CUDNN_NONE) return rc == 0 ? sz_cuda_launched(op) : rc;

    /* One image after the other, a block of positions at a time. */
    const int64_t places = g.oh * g.ow;
    const int64_t size = g.h * g.w * g.c;
    const int64_t block = sz_cuda_block_rows(places, g.k);
    float *rows = (float *)sz_cuda_scratch((size_t)(block * g.k + 1) * sizeof *rows);
    float *unfinished = NULL;
    if (block < places) {
        unfinished = (float *)sz_cuda_scratch((size_t)size * sizeof *unfinished);
        if (!unfinished) return -1;
    }
    if (!rows) return -1;
    const sz_elements added = bias ? sz_elements_of(bias) : sz_elements{ NULL, false };
    for (int64_t b = 0; b < g.batch; b++)
        if (image_gradient(op, g, w, dy, b * places, added, sz_elements_from(dx, b * size), block,
                           rows, unfinished) != 0)
            return -1;
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

/* acc += sums, which are [o, kh, kw, c]. */
static int add_weights(const float *sums, const conv &g, const sz_tensor *acc)
{
    SZ_LAUNCH(unpack_add_kernel, sz_grid(sz_blocks(acc->numel, THREADS)), THREADS, 0, sums,
              sz_f32(acc), acc->numel, g.c, g.kh * g.kw);
    return sz_cuda_launched("conv2d_dw_");
}

extern "C" int sz_cuda_conv2d_dw_(const sz_call *c)
{
    const sz_tensor *acc = c->in[0];
    const sz_tensor *x = c->in[1];
    const sz_tensor *dy = c->in[2];
    const conv g = geometry(x, acc, dy, c->args);
    const int64_t positions = g.batch * g.oh * g.ow;
    if (positions == 0 || acc->numel == 0) return 0;

    /* cuDNN's gradient has the images' dtype, so only in f32 is it added without being rounded. */
    float *sums = sz_f32(acc);
    if (!is_pointwise(g)) {
        sums = (float *)sz_cuda_scratch((size_t)acc->numel * sizeof *sums);
        if (!sums) return -1;
    }
    if (x->dtype == SZ_F32) {
        const int rc = by_cudnn(SZ_CONV_WEIGHT, g, SZ_F32, x->data, sums, dy->data, NULL);
        if (rc != SZ_CUDNN_NONE) return rc == 0 ? add_weights(sums, g, acc) : rc;
    }

    /* Matrix products accumulate into acc where its order allows, else into sums. */
    const bool direct = needs_no_packing(g);
    if (direct) sums = sz_f32(acc);
    const int64_t block = block_of(g, positions);
    void *space;
    if (!allocate_rows(g, block, x->dtype, &space)) return -1;
    for (int64_t first = 0; first < positions; first += block) {
        const int64_t n = block < positions - first ? block : positions - first;
        const void *rows = im2col(g, x, first, n, space);
        if (!rows) return -1;
        const float beta = direct || first > 0 ? 1.0f : 0.0f;
        if (sz_cuda_gemm(true, false, g.o, g.k, n, sz_elements_from(dy, first * g.o).data, g.o,
                         rows, g.k, x->dtype, beta, sums, g.k, SZ_F32) != 0)
            return -1;
    }
    return direct ? 0 : add_weights(sums, g, acc);
}
