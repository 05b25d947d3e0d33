/* conv.c - conv2d, its two gradients and conv_transpose2d on the CPU. Pictures are [b, h, w, c], weights [o, c, kh, kw].
 *
 * A position of the kernel on the picture becomes a row of kh * kw * c numbers (im2col), which is kh runs of kw * c
 * neighbours as the channels are innermost; the weight is reordered once to [o, kh, kw, c] to match. conv2d is then rows
 * times weight^T, the weight's gradient dy^T times rows, and the input's gradient dy times weight, its rows added back to
 * where they came from. Rows are made a block at a time, never those of a whole picture. bf16 is widened as it is copied; the
 * sums are f32 and rounded once.
 *
 * Measured, one thread of a shared Cascade Lake Xeon at 2.5 GHz, f32, best of several runs, beside oneDNN's own primitives on
 * nhwc data with weights in the layout they prefer: [1, 512, 512, 3], 7x7, stride 4, padding 3, 112 outputs 7.2 ms (oneDNN
 * 5.3), its weight gradient 7.4 (7.3); [1, 64, 64, 256] transposed 2x2, stride 2, 64 outputs 4.9 ms (10.6), [1, 128, 128, 64]
 * to 32 outputs 3.6 (14.9). The one that loses runs once a picture, so there is one way for all.
 *
 * Leaves out: dilation, groups, unequal strides, output padding. The reference is ref_conv.c.
 */
#include "gemm.h"
#include "vecmath.h"
#include <omp.h>

/* x [batch, h, w, c] under a kernel kh x kw gives y [batch, oh, ow, o]; run = kw * c, k = kh * run. */
typedef struct {
    int64_t batch, h, w, c, oh, ow, o, kh, kw, stride, padding, run, k;
} conv;

static conv geometry(const sz_tensor *x, const sz_tensor *weight, const sz_tensor *y, const double *args)
{
    const int64_t *d = weight->shape;
    return (conv){ x->shape[0], x->shape[1], x->shape[2], x->shape[3], y->shape[1], y->shape[2], d[0], d[2], d[3],
                   (int64_t)args[0], (int64_t)args[1], d[3] * d[1], d[2] * d[3] * d[1] };
}

/* Positions per block: 256 KiB of rows a thread, so that rows and sums are still in the second-level cache when used. */
static int64_t block_rows(const conv *g, int64_t positions)
{
    const int64_t bytes = (int64_t)omp_get_max_threads() << 18, rows = bytes / (4 * (g->k + 1));
    return sz_min64(rows < 64 ? 64 : rows, positions);
}

/* n elements of t from element i on as f32: t's own, or in buffer. */
static const float *as_f32(const sz_tensor *t, int64_t i, int64_t n, float *buffer)
{
    if (t->dtype == SZ_F32) return sz_f32(t) + i;
    #pragma omp parallel for schedule(static) if (n > SZ_PARALLEL_FROM)
    for (int64_t j = 0; j < n; j += SZ_BLOCK) sz_bf16_to_f32(buffer + j, sz_bf16(t) + i + j, sz_min64(SZ_BLOCK, n - j));
    return buffer;
}

/* Rounds n sums into t from element i on, unless they are there already. */
static void put_sums(const sz_tensor *t, int64_t i, int64_t n, const float *sums)
{
    if (t->dtype == SZ_F32) return;
    #pragma omp parallel for schedule(static) if (n > SZ_PARALLEL_FROM)
    for (int64_t j = 0; j < n; j += SZ_BLOCK) sz_f32_to_bf16(sz_bf16(t) + i + j, sums + j, sz_min64(SZ_BLOCK, n - j));
}

/* Workspace for n elements of t as f32; f32 tensors need none. *failed is set when memory is out. */
static float *space_for(const sz_tensor *t, int64_t n, bool *failed)
{
    if (t->dtype == SZ_F32) return NULL;
    float *space = sz_scratch((size_t)n * sizeof *space);
    if (!space) *failed = true;
    return space;
}

/* The weight as f32 [o, kh, kw, c]; NULL when memory is out. */
static const float *packed(const conv *g, const sz_tensor *weight)
{
    bool failed = false;
    float *wide = space_for(weight, weight->numel, &failed);
    if (failed) return NULL;
    const float *from = as_f32(weight, 0, weight->numel, wide);
    const int64_t cells = g->kh * g->kw;
    if (cells == 1 || g->c == 1) return from;
    float *to = sz_scratch((size_t)weight->numel * sizeof *to);
    for (int64_t o = 0; to && o < g->o; o++)
        for (int64_t i = 0; i < cells; i++)
            for (int64_t c = 0; c < g->c; c++) to[o * g->k + i * g->c + c] = from[o * g->k + c * cells + i];
    return to;
}

/* The bias repeated to n elements, n a multiple of o; zeros without a bias; NULL when memory is out. */
static float *repeated_bias(const sz_tensor *bias, int64_t o, int64_t n)
{
    float *to = sz_scratch((size_t)(n > 0 ? n : 1) * sizeof *to);
    for (int64_t i = 0; to && i < n; i++) to[i] = bias ? sz_get(bias, i % o) : 0.0f;
    return to;
}

/* Which cells [lo, hi) of a kernel row at column x0 of the picture are inside. */
static inline int64_t inside_lo(int64_t x0, int64_t kw) { return x0 >= 0 ? 0 : sz_min64(-x0, kw); }
static inline int64_t inside_hi(int64_t x0, int64_t kw, int64_t w) { return x0 + kw <= w ? kw : x0 < w ? w - x0 : 0; }

/* True when the rows are the picture itself. */
static bool rows_are_picture(const conv *g) { return g->kh == 1 && g->kw == 1 && g->stride == 1 && g->padding == 0; }

/* Rows [first, first + n) of the positions batch * oh * ow: in rows [n, k], or where x has them. */
static const float *im2col(const conv *g, const sz_tensor *x, int64_t first, int64_t n, float *rows)
{
    if (rows_are_picture(g)) return as_f32(x, first * g->c, n * g->c, rows);
    #pragma omp parallel for schedule(static) if (n * g->k > SZ_PARALLEL_FROM)
    for (int64_t r = 0; r < n; r++) {
        const int64_t at = first + r, ox = at % g->ow, oy = at / g->ow % g->oh, b = at / (g->ow * g->oh);
        const int64_t x0 = ox * g->stride - g->padding, lo = inside_lo(x0, g->kw), hi = inside_hi(x0, g->kw, g->w);
        float *to = rows + r * g->k;
        for (int64_t ky = 0; ky < g->kh; ky++, to += g->run) {
            const int64_t y = oy * g->stride - g->padding + ky;
            if (y < 0 || y >= g->h || lo >= hi) {
                memset(to, 0, (size_t)g->run * sizeof *to);
                continue;
            }
            const int64_t from = ((b * g->h + y) * g->w + x0 + lo) * g->c, count = (hi - lo) * g->c;
            if (lo > 0) memset(to, 0, (size_t)(lo * g->c) * sizeof *to);
            if (x->dtype == SZ_F32) memcpy(to + lo * g->c, sz_f32(x) + from, (size_t)count * sizeof *to);
            else sz_bf16_to_f32(to + lo * g->c, sz_bf16(x) + from, count);
            if (hi < g->kw) memset(to + hi * g->c, 0, (size_t)((g->kw - hi) * g->c) * sizeof *to);
        }
    }
    return rows;
}

/* Adds rows [n, k] of positions [first, first + n) of one picture to the places they stand for, in image [h, w, c]. Each row
 * of the image has one thread, which goes through kernel rows and positions in order. With base [run] the rows are known to
 * cover the image without overlapping: what is there is not read, base is added. */
static void col2im(const conv *g, const float *rows, int64_t first, int64_t n, const float *base, float *image)
{
    const int64_t top = first / g->ow * g->stride - g->padding, bottom = (first + n - 1) / g->ow * g->stride - g->padding + g->kh;
    const int64_t y_from = top > 0 ? top : 0, y_to = sz_min64(bottom, g->h);
    #pragma omp parallel for schedule(static) if (n * g->k > SZ_PARALLEL_FROM)
    for (int64_t y = y_from; y < y_to; y++) {
        for (int64_t ky = 0; ky < g->kh; ky++) {
            const int64_t scaled = y + g->padding - ky, oy = scaled / g->stride;
            if (scaled < 0 || scaled % g->stride != 0 || oy >= g->oh) continue;
            const int64_t begin = oy * g->ow > first ? oy * g->ow : first, end = sz_min64((oy + 1) * g->ow, first + n);
            for (int64_t at = begin; at < end; at++) {
                const int64_t x0 = (at - oy * g->ow) * g->stride - g->padding;
                const int64_t lo = inside_lo(x0, g->kw), hi = inside_hi(x0, g->kw, g->w), count = (hi - lo) * g->c;
                const float *restrict from = rows + (at - first) * g->k + ky * g->run + lo * g->c;
                float *restrict to = image + (y * g->w + x0 + lo) * g->c;
                if (base) for (int64_t i = 0; i < count; i++) to[i] = from[i] + base[i];
                else for (int64_t i = 0; i < count; i++) to[i] += from[i];
            }
        }
    }
}

int sz_cpu_conv2d(const sz_call *c)
{
    const sz_tensor *x = c->in[0], *y = c->out[0];
    const conv g = geometry(x, c->in[1], y, c->args);
    const int64_t positions = g.batch * g.oh * g.ow, block = block_rows(&g, positions);
    bool failed = false;
    if (y->numel == 0) return 0;
    const float *w = packed(&g, c->in[1]), *bias = c->in[2] ? repeated_bias(c->in[2], g.o, g.o) : NULL;
    float *space = rows_are_picture(&g) ? space_for(x, block * g.k, &failed) : sz_scratch((size_t)(block * g.k) * sizeof(float));
    float *rounded = space_for(y, block * g.o, &failed);
    if (failed || !w || (c->in[2] && !bias) || (!space && !rows_are_picture(&g))) return -1;
    for (int64_t first = 0; first < positions; first += block) {
        const int64_t n = sz_min64(block, positions - first);
        float *sums = y->dtype == SZ_F32 ? sz_f32(y) + first * g.o : rounded;
        if (bias) {
            #pragma omp parallel for schedule(static) if (n * g.o > SZ_PARALLEL_FROM)
            for (int64_t r = 0; r < n; r++) memcpy(sums + r * g.o, bias, (size_t)g.o * sizeof *bias);
        }
        const float *rows = im2col(&g, x, first, n, space);
        if (sz_gemm(false, true, n, g.o, g.k, rows, g.k, w, g.k, SZ_F32, bias ? 1 : 0, sums, g.o)) return -1;
        put_sums(y, first * g.o, n * g.o, sums);
    }
    return 0;
}

/* dx (what conv2d reads) from dy, plus bias [c] when there is one. */
static int input_gradient(const conv *g, const sz_tensor *dy, const sz_tensor *weight, const sz_tensor *bias, const sz_tensor *dx)
{
    const int64_t places = g->oh * g->ow, size = g->h * g->w * g->c, block = block_rows(g, places);
    const bool tiles = g->padding == 0 && g->kh == g->stride && g->kw == g->stride && g->h == g->oh * g->stride && g->w == g->ow * g->stride;
    bool failed = false;
    if (dx->numel == 0) return 0;
    const float *w = packed(g, weight), *base = repeated_bias(bias, g->c, g->run);
    float *rows = sz_scratch((size_t)(block * g->k + 1) * sizeof *rows);
    float *wide = space_for(dy, block * g->o, &failed), *rounded = space_for(dx, size, &failed);
    if (failed || !w || !base || !rows) return -1;
    for (int64_t b = 0; b < g->batch; b++) {
        float *image = dx->dtype == SZ_F32 ? sz_f32(dx) + b * size : rounded;
        if (!tiles) {
            #pragma omp parallel for schedule(static) if (size > SZ_PARALLEL_FROM)
            for (int64_t i = 0; i < g->h * g->w; i++) memcpy(image + i * g->c, base, (size_t)g->c * sizeof *base);
        }
        for (int64_t first = 0; first < places; first += block) {
            const int64_t n = sz_min64(block, places - first);
            const float *from = as_f32(dy, (b * places + first) * g->o, n * g->o, wide);
            if (sz_gemm(false, false, n, g->k, g->o, from, g->o, w, g->k, SZ_F32, 0, rows, g->k)) return -1;
            col2im(g, rows, first, n, tiles ? base : NULL, image);
        }
        put_sums(dx, b * size, size, image);
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
    const sz_tensor *acc = c->in[0], *x = c->in[1], *dy = c->in[2];
    const conv g = geometry(x, acc, dy, c->args);
    const int64_t positions = g.batch * g.oh * g.ow, block = block_rows(&g, positions), cells = g.kh * g.kw;
    bool failed = false;
    if (positions == 0 || acc->numel == 0) return 0;
    float *sums = sz_scratch((size_t)acc->numel * sizeof *sums);
    float *space = rows_are_picture(&g) ? space_for(x, block * g.k, &failed) : sz_scratch((size_t)(block * g.k) * sizeof(float));
    float *wide = space_for(dy, block * g.o, &failed);
    if (failed || !sums || (!space && !rows_are_picture(&g))) return -1;
    for (int64_t first = 0; first < positions; first += block) {
        const int64_t n = sz_min64(block, positions - first);
        const float *rows = im2col(&g, x, first, n, space), *from = as_f32(dy, first * g.o, n * g.o, wide);
        if (sz_gemm(true, false, g.o, g.k, n, from, g.o, rows, g.k, SZ_F32, first > 0 ? 1 : 0, sums, g.k)) return -1;
    }
    for (int64_t o = 0; o < g.o; o++)
        for (int64_t ch = 0; ch < g.c; ch++)
            for (int64_t i = 0; i < cells; i++) sz_f32(acc)[o * g.k + ch * cells + i] += sums[o * g.k + i * g.c + ch];
    return 0;
}
