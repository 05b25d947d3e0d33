/* conv.c - conv2d, its two gradients and conv_transpose2d on the CPU. Images are [b, h, w, c],
 * weights [o, c, kh, kw].
 *
 * A position of the kernel on the image becomes a row of kh * kw * c numbers (im2col), which is kh
 * runs of kw * c neighbours because the channels are innermost; the weight is reordered once to [o,
 * kh, kw, c] to match. conv2d is then rows times weight^T, the weight's gradient dy^T times rows,
 * and the input's gradient dy times weight, whose rows are added to the pixels that they came from.
 * Rows are made a block at a time, never those of a whole image. bf16 is converted to f32 as it is
 * copied; the sums are f32 and rounded once.
 *
 * Measured, one thread of a shared Cascade Lake Xeon at 2.5 GHz, f32, best of several runs;
 * oneDNN's own primitives, on nhwc data with weights in the layout they prefer, in parentheses: [1,
 * 512, 512, 3], 7x7, stride 4, padding 3, 112 outputs 7.2 ms (5.3), its weight gradient 7.4 (7.3);
 * [1, 64, 64, 256] transposed 2x2, stride 2, 64 outputs 4.9 ms (10.6), [1, 128, 128, 64] to 32
 * outputs 3.6 (14.9). The slower one runs once an image, so all use this method.
 *
 * The reference is reference/conv.c.
 * Leaves out: dilation, groups, unequal strides, output padding.
 */
#include "gemm.h"
#include "vecmath.h"
#include <omp.h>

/* x [batch, h, w, c] under a kernel kh x kw gives y [batch, oh, ow, o]. */
typedef struct {
    int64_t batch, h, w, c, oh, ow, o, kh, kw, stride, padding;
    int64_t run; /* kw * c: one row of the kernel */
    int64_t k;   /* kh * run: all of it */
} conv;

static conv geometry(const sz_tensor *x, const sz_tensor *weight, const sz_tensor *y,
                     const double *args)
{
    const int64_t *d = weight->shape;
    return (conv){
        .batch = x->shape[0],
        .h = x->shape[1],
        .w = x->shape[2],
        .c = x->shape[3],
        .oh = y->shape[1],
        .ow = y->shape[2],
        .o = d[0],
        .kh = d[2],
        .kw = d[3],
        .stride = (int64_t)args[0],
        .padding = (int64_t)args[1],
        .run = d[3] * d[1],
        .k = d[2] * d[3] * d[1],
    };
}

/* Positions per block: 256 KiB of rows a thread, so that rows and sums are still in the
 * second-level cache when they are used. */
static int64_t block_rows(const conv *g, int64_t positions)
{
    const int64_t bytes = (int64_t)omp_get_max_threads() << 18;
    const int64_t rows = bytes / (4 * (g->k + 1));
    return sz_min64(rows < 64 ? 64 : rows, positions);
}

/* n elements of t from element i on as f32: t's own, or in buffer. */
static const float *as_f32(const sz_tensor *t, int64_t i, int64_t n, float *buffer)
{
    if (t->dtype == SZ_F32) return sz_f32(t) + i;
#pragma omp parallel for schedule(static) if (n > SZ_PARALLEL_FROM)
    for (int64_t j = 0; j < n; j += SZ_BLOCK)
        sz_bf16_to_f32(buffer + j, sz_bf16(t) + i + j, sz_min64(SZ_BLOCK, n - j));
    return buffer;
}

/* Rounds n sums into t from element i on; f32 tensors hold them already. */
static void store_sums(const sz_tensor *t, int64_t i, int64_t n, const float *sums)
{
    if (t->dtype == SZ_F32) return;
#pragma omp parallel for schedule(static) if (n > SZ_PARALLEL_FROM)
    for (int64_t j = 0; j < n; j += SZ_BLOCK)
        sz_f32_to_bf16(sz_bf16(t) + i + j, sums + j, sz_min64(SZ_BLOCK, n - j));
}

/* Workspace for n elements of t as f32; f32 tensors need none. Sets *failed if memory is out. */
static float *space_for(const sz_tensor *t, int64_t n, bool *failed)
{
    if (t->dtype == SZ_F32) return NULL;
    float *space = sz_scratch((size_t)n * sizeof *space);
    if (!space) *failed = true;
    return space;
}

/* The weight as f32 [o, kh, kw, c]; NULL if memory is out. */
static const float *packed(const conv *g, const sz_tensor *weight)
{
    bool failed = false;
    float *buffer = space_for(weight, weight->numel, &failed);
    if (failed) return NULL;
    const float *src = as_f32(weight, 0, weight->numel, buffer);
    const int64_t cells = g->kh * g->kw;
    if (cells == 1 || g->c == 1) return src;

    /* Channels innermost. */
    float *dst = sz_scratch((size_t)weight->numel * sizeof *dst);
    if (!dst) return NULL;
    for (int64_t o = 0; o < g->o; o++)
        for (int64_t i = 0; i < cells; i++)
            for (int64_t c = 0; c < g->c; c++)
                dst[o * g->k + i * g->c + c] = src[o * g->k + c * cells + i];
    return dst;
}

/* The bias repeated to n elements, n a multiple of o; zeros without a bias; NULL if memory is out.
 */
static float *repeated_bias(const sz_tensor *bias, int64_t o, int64_t n)
{
    float *dst = sz_scratch((size_t)(n > 0 ? n : 1) * sizeof *dst);
    if (!dst) return NULL;
    for (int64_t i = 0; i < n; i++) dst[i] = bias ? sz_get(bias, i % o) : 0.0f;
    return dst;
}

/* Which cells [lo, hi) of a kernel row at column x0 are inside the image. */
static inline int64_t inside_lo(int64_t x0, int64_t kw) { return x0 >= 0 ? 0 : sz_min64(-x0, kw); }
static inline int64_t inside_hi(int64_t x0, int64_t kw, int64_t w)
{
    if (x0 + kw <= w) return kw;
    return x0 < w ? w - x0 : 0;
}

/* Whether the rows are the image itself. */
static bool rows_are_image(const conv *g)
{
    return g->kh == 1 && g->kw == 1 && g->stride == 1 && g->padding == 0;
}

/* Workspace for the rows of a block; NULL if none is needed. Sets *failed if memory is out. */
static float *space_for_rows(const conv *g, const sz_tensor *x, int64_t block, bool *failed)
{
    if (rows_are_image(g)) return space_for(x, block * g->k, failed);
    float *space = sz_scratch((size_t)(block * g->k) * sizeof *space);
    if (!space) *failed = true;
    return space;
}

/* The row of one position, [k]. */
static void im2col_row(const conv *g, const sz_tensor *x, int64_t position, float *dst)
{
    const int64_t ox = position % g->ow;
    const int64_t oy = position / g->ow % g->oh;
    const int64_t b = position / (g->ow * g->oh);
    const int64_t x0 = ox * g->stride - g->padding;
    const int64_t lo = inside_lo(x0, g->kw);
    const int64_t hi = inside_hi(x0, g->kw, g->w);

    for (int64_t ky = 0; ky < g->kh; ky++, dst += g->run) {
        /* Outside the image: zeros. */
        const int64_t y = oy * g->stride - g->padding + ky;
        if (y < 0 || y >= g->h || lo >= hi) {
            memset(dst, 0, (size_t)g->run * sizeof *dst);
            continue;
        }

        /* Zeros to the left, pixels, zeros to the right. */
        const int64_t first = ((b * g->h + y) * g->w + x0 + lo) * g->c;
        const int64_t count = (hi - lo) * g->c;
        float *pixels = dst + lo * g->c;
        if (lo > 0) memset(dst, 0, (size_t)(lo * g->c) * sizeof *dst);
        if (x->dtype == SZ_F32) memcpy(pixels, sz_f32(x) + first, (size_t)count * sizeof *dst);
        else sz_bf16_to_f32(pixels, sz_bf16(x) + first, count);
        if (hi < g->kw) memset(dst + hi * g->c, 0, (size_t)((g->kw - hi) * g->c) * sizeof *dst);
    }
}

/* Rows [first, first + n) of the positions batch * oh * ow: in rows [n, k], or in x itself. */
static const float *im2col(const conv *g, const sz_tensor *x, int64_t first, int64_t n, float *rows)
{
    if (rows_are_image(g)) return as_f32(x, first * g->c, n * g->c, rows);
#pragma omp parallel for schedule(static) if (n * g->k > SZ_PARALLEL_FROM)
    for (int64_t r = 0; r < n; r++) im2col_row(g, x, first + r, rows + r * g->k);
    return rows;
}

/* Adds kernel row ky of positions [begin, end) to image row y. rows holds the positions from
 * `first` on; base is as for col2im. */
static inline void col2im_row(const conv *g, const float *rows, int64_t first, int64_t begin,
                              int64_t end, int64_t oy, int64_t ky, const float *base, float *row)
{
    for (int64_t position = begin; position < end; position++) {
        const int64_t x0 = (position - oy * g->ow) * g->stride - g->padding;
        const int64_t lo = inside_lo(x0, g->kw);
        const int64_t hi = inside_hi(x0, g->kw, g->w);
        const int64_t count = (hi - lo) * g->c;
        const float *restrict src = rows + (position - first) * g->k + ky * g->run + lo * g->c;
        float *restrict dst = row + (x0 + lo) * g->c;
        if (base)
            for (int64_t i = 0; i < count; i++) dst[i] = src[i] + base[i];
        else
            for (int64_t i = 0; i < count; i++) dst[i] += src[i];
    }
}

/* Adds rows [n, k] of positions [first, first + n) of one image to the pixels that they stand for,
 * in image [h, w, c]. One thread adds all of an image row, kernel rows and positions in order. If
 * base [run] is given, the rows cover the image without overlapping: the image is not read, and
 * base is added. */
static void col2im(const conv *g, const float *rows, int64_t first, int64_t n, const float *base,
                   float *image)
{
    /* The image rows that these positions reach. */
    const int64_t top = first / g->ow * g->stride - g->padding;
    const int64_t bottom = (first + n - 1) / g->ow * g->stride - g->padding + g->kh;
    const int64_t y_from = top > 0 ? top : 0;
    const int64_t y_to = sz_min64(bottom, g->h);

#pragma omp parallel for schedule(static) if (n * g->k > SZ_PARALLEL_FROM)
    for (int64_t y = y_from; y < y_to; y++) {
        for (int64_t ky = 0; ky < g->kh; ky++) {
            const int64_t scaled = y + g->padding - ky;
            const int64_t oy = scaled / g->stride;
            if (scaled < 0 || scaled % g->stride != 0 || oy >= g->oh) continue;
            const int64_t begin = oy * g->ow > first ? oy * g->ow : first;
            const int64_t end = sz_min64((oy + 1) * g->ow, first + n);
            float *row = image + y * g->w * g->c;
            col2im_row(g, rows, first, begin, end, oy, ky, base, row);
        }
    }
}

/* dst [n, width] = row [width], repeated. */
static void repeat_row(float *dst, const float *row, int64_t n, int64_t width)
{
#pragma omp parallel for schedule(static) if (n * width > SZ_PARALLEL_FROM)
    for (int64_t r = 0; r < n; r++) memcpy(dst + r * width, row, (size_t)width * sizeof *row);
}

int sz_cpu_conv2d(const sz_call *c)
{
    const sz_tensor *x = c->in[0];
    const sz_tensor *y = c->out[0];
    const conv g = geometry(x, c->in[1], y, c->args);
    const int64_t positions = g.batch * g.oh * g.ow;
    const int64_t block = block_rows(&g, positions);
    if (y->numel == 0) return 0;

    /* Workspace. */
    bool failed = false;
    const float *w = packed(&g, c->in[1]);
    const float *bias = c->in[2] ? repeated_bias(c->in[2], g.o, g.o) : NULL;
    float *space = space_for_rows(&g, x, block, &failed);
    float *rounded = space_for(y, block * g.o, &failed);
    if (failed || !w || (c->in[2] && !bias)) return -1;

    for (int64_t first = 0; first < positions; first += block) {
        const int64_t n = sz_min64(block, positions - first);
        float *sums = y->dtype == SZ_F32 ? sz_f32(y) + first * g.o : rounded;
        const float beta = bias ? 1 : 0;
        if (bias) repeat_row(sums, bias, n, g.o);
        const float *rows = im2col(&g, x, first, n, space);
        if (sz_gemm(false, true, n, g.o, g.k, rows, g.k, w, g.k, SZ_F32, beta, sums, g.o))
            return -1;
        store_sums(y, first * g.o, n * g.o, sums);
    }
    return 0;
}

/* dx (what conv2d reads) from dy, plus bias [c] if there is one. */
static int input_gradient(const conv *g, const sz_tensor *dy, const sz_tensor *weight,
                          const sz_tensor *bias, const sz_tensor *dx)
{
    const int64_t positions = g->oh * g->ow;
    const int64_t size = g->h * g->w * g->c;
    const int64_t block = block_rows(g, positions);
    const bool square_step = g->padding == 0 && g->kh == g->stride && g->kw == g->stride;
    const bool tiles = square_step && g->h == g->oh * g->stride && g->w == g->ow * g->stride;
    if (dx->numel == 0) return 0;

    /* Workspace. */
    bool failed = false;
    const float *w = packed(g, weight);
    const float *base = repeated_bias(bias, g->c, g->run);
    float *rows = sz_scratch((size_t)(block * g->k + 1) * sizeof *rows);
    float *dy_f32 = space_for(dy, block * g->o, &failed);
    float *dx_f32 = space_for(dx, size, &failed);
    if (failed || !w || !base || !rows) return -1;

    for (int64_t b = 0; b < g->batch; b++) {
        /* Start from the bias, except where every pixel is written once. */
        float *image = dx->dtype == SZ_F32 ? sz_f32(dx) + b * size : dx_f32;
        if (!tiles) repeat_row(image, base, g->h * g->w, g->c);
        for (int64_t first = 0; first < positions; first += block) {
            const int64_t n = sz_min64(block, positions - first);
            const float *d = as_f32(dy, (b * positions + first) * g->o, n * g->o, dy_f32);
            if (sz_gemm(false, false, n, g->k, g->o, d, g->o, w, g->k, SZ_F32, 0, rows, g->k))
                return -1;
            col2im(g, rows, first, n, tiles ? base : NULL, image);
        }
        store_sums(dx, b * size, size, image);
    }
    return 0;
}

int sz_cpu_conv2d_dx(const sz_call *c)
{
    const conv g = geometry(c->out[0], c->in[1], c->in[0], c->args);
    return input_gradient(&g, c->in[0], c->in[1], NULL, c->out[0]);
}

int sz_cpu_conv_transpose2d(const sz_call *c)
{
    const conv g = geometry(c->out[0], c->in[1], c->in[0], c->args);
    return input_gradient(&g, c->in[0], c->in[1], c->in[2], c->out[0]);
}

int sz_cpu_conv2d_dw_(const sz_call *c)
{
    const sz_tensor *acc = c->in[0];
    const sz_tensor *x = c->in[1];
    const sz_tensor *dy = c->in[2];
    const conv g = geometry(x, acc, dy, c->args);
    const int64_t positions = g.batch * g.oh * g.ow;
    const int64_t block = block_rows(&g, positions);
    const int64_t cells = g.kh * g.kw;
    if (positions == 0 || acc->numel == 0) return 0;

    /* Workspace. */
    bool failed = false;
    float *sums = sz_scratch((size_t)acc->numel * sizeof *sums);
    float *space = space_for_rows(&g, x, block, &failed);
    float *dy_f32 = space_for(dy, block * g.o, &failed);
    if (failed || !sums) return -1;

    /* sums [o, kh, kw, c] = dy^T rows. */
    for (int64_t first = 0; first < positions; first += block) {
        const int64_t n = sz_min64(block, positions - first);
        const float *rows = im2col(&g, x, first, n, space);
        const float *d = as_f32(dy, first * g.o, n * g.o, dy_f32);
        const float beta = first > 0 ? 1 : 0;
        if (sz_gemm(true, false, g.o, g.k, n, d, g.o, rows, g.k, SZ_F32, beta, sums, g.k))
            return -1;
    }

    /* Add them in the weight's order. */
    for (int64_t o = 0; o < g.o; o++)
        for (int64_t ch = 0; ch < g.c; ch++)
            for (int64_t i = 0; i < cells; i++)
                sz_f32(acc)[o * g.k + ch * cells + i] += sums[o * g.k + i * g.c + ch];
    return 0;
}
