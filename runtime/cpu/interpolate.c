/* interpolate.c - resize [b, h, w, c] -> [b, oh, ow, c] and its transpose on the CPU, as PyTorch's
 * interpolate does with align_corners = False: 0 nearest, 1 bilinear, 2 bicubic with a = -0.75, 3
 * bilinear with antialiasing (when shrinking, a triangle as wide as the step).
 *
 * All modes are separable. For each output of an axis a table gives the range of inputs that it
 * reads and their weights; the transposed table serves the gradient, so that both directions share
 * one piece of code. Rows are combined first if the image gets lower, columns first if it gets
 * higher; in that case a ring keeps as many finished rows as an output needs, never a whole image.
 * An axis that keeps its size is not touched: equal sizes give the input, bit for bit. Positions
 * and weights are computed in f32 in PyTorch's order of operations: at 1500 columns another order
 * moves a weight by 1e-5. bf16 is converted to f32 when it is read, and rounded once at the end.
 *
 * Measured, one thread of a shared Cascade Lake Xeon, f32: a mask [1, 256, 256, 1] to 1000 x 1500
 * 1.4 ms, its gradient 1.5 (copying 6 MB: 0.7); a photograph [1, 1500, 2000, 3] to 1024 x 1024,
 * antialiased, 20 ms (PyTorch 81).
 *
 * The reference is reference/interpolate.c.
 * Leaves out: align_corners, scale factors that differ from the ratio of sizes, antialiased
 * bicubic.
 */
#include "vecmath.h"
#include <math.h>
#include <omp.h>

enum { VECTOR_CHANNELS = 16 }; /* from this many on, a pixel's channels fill a vector */

/* Output i of n is the sum over t < count[i] of weight[i * taps + t] times input first[i] + t.
 * first never decreases. */
typedef struct {
    int64_t in, n, taps;
    bool same; /* output i is input i */
    int32_t *first, *count;
    float *weight; /* [n, taps], 0 from count on */
} axis;

/* Columns for few channels, element by element: output e = (i, channel) is the sum over t < taps of
 * weight[t * size + e] times element start[e] + t * channels of the input row. */
typedef struct {
    int64_t size; /* n * channels */
    int32_t *start;
    float *weight;
} column_table;

static int new_axis(axis *a, int64_t in, int64_t n, int64_t taps)
{
    *a = (axis){
        .in = in,
        .n = n,
        .taps = taps,
        .first = sz_scratch((size_t)n * sizeof(int32_t)),
        .count = sz_scratch((size_t)n * sizeof(int32_t)),
        .weight = sz_scratch((size_t)(n * taps) * sizeof(float)),
    };
    if (!a->first || !a->count || !a->weight) return -1;
    memset(a->weight, 0, (size_t)(n * taps) * sizeof(float));
    return 0;
}

/* ---- tables ---- */

/* The position of output i among the inputs. PyTorch rounds the product to f32; volatile keeps the
 * compiler from fusing it with the subtraction. */
static float position(float step, int64_t i)
{
    volatile float product = step * ((float)i + 0.5f);
    return product - 0.5f;
}

/* The cubic kernel for |x| <= 1. */
static float cubic_near(float x) { return ((-0.75f + 2.0f) * x - (-0.75f + 3.0f)) * x * x + 1.0f; }

/* The cubic kernel for 1 < |x| < 2. */
static float cubic_far(float x)
{
    return ((-0.75f * x + 5.0f * 0.75f) * x - 8.0f * 0.75f) * x + 4.0f * 0.75f;
}

/* Adds a tap at input j, moved to the border if outside; taps come in rising order of j. */
static void add_tap(axis *a, int64_t i, int64_t j, float w)
{
    if (j < 0) j = 0;
    if (j >= a->in) j = a->in - 1;
    if (a->count[i] == 0) a->first[i] = (int32_t)j;
    a->count[i] = (int32_t)(j - a->first[i] + 1);
    a->weight[i * a->taps + j - a->first[i]] += w;
}

static void bilinear_taps(axis *a, int64_t i, float step)
{
    float x = position(step, i);
    x = x < 0 ? 0 : x;
    int64_t j = sz_min64((int64_t)x, a->in - 1);
    float after = x - (float)j < 1.0f ? x - (float)j : 1.0f;
    add_tap(a, i, j, 1.0f - after);
    add_tap(a, i, j + 1, after);
}

static void bicubic_taps(axis *a, int64_t i, float step)
{
    float x = position(step, i);
    float before = floorf(x);
    float t = x - before;
    int64_t j = (int64_t)before;
    add_tap(a, i, j - 1, cubic_far(t + 1.0f));
    add_tap(a, i, j, cubic_near(t));
    add_tap(a, i, j + 1, cubic_near(1.0f - t));
    add_tap(a, i, j + 2, cubic_far(2.0f - t));
}

static void antialiased_taps(axis *a, int64_t i, float step, float support)
{
    const float centre = (float)((double)step * ((double)i + 0.5));
    const float scale = step >= 1.0f ? 1.0f / step : 1.0f;
    float *w = a->weight + i * a->taps;

    /* The inputs under the triangle. */
    int64_t from = (int64_t)((double)(centre - support) + 0.5);
    int64_t to = (int64_t)((double)(centre + support) + 0.5);
    if (from < 0) from = 0;
    to = sz_min64(sz_min64(to, a->in), from + a->taps);
    a->first[i] = (int32_t)from;
    a->count[i] = (int32_t)(to - from);

    /* Their weights, which add up to 1. */
    float total = 0;
    for (int64_t j = from; j < to; j++) {
        float x = fabsf((float)(((double)((float)j - centre) + 0.5) * (double)scale));
        w[j - from] = x < 1.0f ? 1.0f - x : 0.0f;
        total += w[j - from];
    }
    for (int64_t t = 0; t < to - from; t++) w[t] /= total;
}

/* The most inputs that an output of a mode reads. */
static int64_t taps_of(int mode, float support)
{
    switch (mode) {
    case SZ_NEAREST: return 1;
    case SZ_BILINEAR: return 2;
    case SZ_BICUBIC: return 4;
    default: return 2 * (int64_t)ceilf(support) + 1;
    }
}

static int axis_table(axis *a, int64_t in, int64_t n, int mode)
{
    const float step = (float)in / (float)n;
    const float support = step >= 1.0f ? step : 1.0f;
    if (new_axis(a, in, n, sz_min64(taps_of(mode, support), in))) return -1;
    a->same = in == n;
    for (int64_t i = 0; i < n; i++) {
        a->count[i] = 0;
        /* The taps of one output. */
        if (mode == SZ_NEAREST) add_tap(a, i, (int64_t)((float)i * step), 1.0f);
        if (mode == SZ_BILINEAR) bilinear_taps(a, i, step);
        if (mode == SZ_BICUBIC) bicubic_taps(a, i, step);
        if (mode == SZ_BILINEAR_ANTIALIASED) antialiased_taps(a, i, step, support);
    }
    return 0;
}

/* The table of the transposed map. The ranges of f begin and end in rising order, so those of t are
 * ranges too. */
static int transposed(axis *t, const axis *f)
{
    int32_t *first = sz_scratch((size_t)f->in * sizeof *first);
    int32_t *end = sz_scratch((size_t)f->in * sizeof *end);
    if (!first || !end) return -1;

    /* Which outputs read input j: [first[j], end[j]). */
    for (int64_t j = 0; j < f->in; j++) {
        first[j] = 0;
        end[j] = 0;
    }
    for (int64_t i = 0; i < f->n; i++)
        for (int64_t j = f->first[i]; j < f->first[i] + f->count[i]; j++) {
            if (end[j] == 0) first[j] = (int32_t)i;
            end[j] = (int32_t)i + 1;
        }
    int64_t taps = 1;
    for (int64_t j = 0; j < f->in; j++)
        if (end[j] - first[j] > taps) taps = end[j] - first[j];

    /* The same weights by input. */
    if (new_axis(t, f->n, f->in, taps)) return -1;
    t->same = f->same;
    for (int64_t j = 0; j < f->in; j++) {
        t->first[j] = first[j];
        t->count[j] = end[j] - first[j];
    }
    for (int64_t i = 0; i < f->n; i++)
        for (int64_t k = 0; k < f->count[i]; k++) {
            int64_t j = f->first[i] + k;
            t->weight[j * taps + i - first[j]] = f->weight[i * f->taps + k];
        }
    return 0;
}

/* Ranges are moved so that all `taps` inputs exist; the weights outside an output's own range are 0
 * (so an infinity just outside it gives a NaN, as PyTorch's own zero weights do within it). */
static int make_column_table(column_table *p, const axis *a, int64_t channels)
{
    p->size = a->n * channels;
    p->start = sz_scratch((size_t)p->size * sizeof *p->start);
    p->weight = sz_scratch((size_t)(p->size * a->taps) * sizeof *p->weight);
    if (!p->start || !p->weight) return -1;

    for (int64_t i = 0; i < a->n; i++) {
        int64_t first = sz_min64(a->first[i], a->in - a->taps);
        int64_t moved = a->first[i] - first;
        for (int64_t c = 0; c < channels; c++)
            p->start[i * channels + c] = (int32_t)(first * channels + c);
        /* The same weight for each channel. */
        for (int64_t t = 0; t < a->taps; t++) {
            float w = 0.0f;
            if (t >= moved && t - moved < a->count[i]) w = a->weight[i * a->taps + t - moved];
            for (int64_t c = 0; c < channels; c++) p->weight[t * p->size + i * channels + c] = w;
        }
    }
    return 0;
}

/* ---- passes ---- */

/* out [size] from a row of the input with few channels: two taps at a time, each read by gathering.
 */
static void few_channels(const column_table *p, int64_t taps, int64_t channels,
                         const float *restrict in, float *restrict out)
{
    for (int64_t e0 = 0; e0 < p->size; e0 += SZ_BLOCK) {
        const int64_t n = sz_min64(SZ_BLOCK, p->size - e0);
        const int32_t *restrict start = p->start + e0;
        float *restrict y = out + e0;
        for (int64_t t = 0; t < taps; t += 2) {
            const float *restrict u = p->weight + t * p->size + e0;
            const float *restrict v = u + p->size;
            const float *restrict a = in + t * channels;
            const float *restrict b = a + channels;
            const bool single = t + 1 == taps;

            /* The first taps assign, the others add. */
            if (single && t == 0)
                for (int64_t e = 0; e < n; e++) y[e] = u[e] * a[start[e]];
            else if (single)
                for (int64_t e = 0; e < n; e++) y[e] += u[e] * a[start[e]];
            else if (t == 0)
                for (int64_t e = 0; e < n; e++) y[e] = u[e] * a[start[e]] + v[e] * b[start[e]];
            else
                for (int64_t e = 0; e < n; e++) y[e] += u[e] * a[start[e]] + v[e] * b[start[e]];
        }
    }
}

/* out[0..n) = the sum over t < count of weight[t] times in[t * stride + 0..n); added to out if
 * `add`. */
static inline void weighted_sum(bool add, int64_t count, const float *weight,
                                const float *restrict in, int64_t stride, int64_t n,
                                float *restrict out)
{
    if (count == 0 && !add) memset(out, 0, (size_t)n * sizeof *out);

    /* Two taps at a time. */
    for (int64_t t = 0; t < count; t += 2, add = true) {
        const float *restrict a = in + t * stride;
        const float *restrict b = a + stride;
        const float u = weight[t];
        const float v = t + 1 < count ? weight[t + 1] : 0;
        const bool single = t + 1 == count;
        if (single && !add)
            for (int64_t e = 0; e < n; e++) out[e] = u * a[e];
        else if (single)
            for (int64_t e = 0; e < n; e++) out[e] += u * a[e];
        else if (!add)
            for (int64_t e = 0; e < n; e++) out[e] = u * a[e] + v * b[e];
        else
            for (int64_t e = 0; e < n; e++) out[e] += u * a[e] + v * b[e];
    }
}

/* What one call needs. */
typedef struct {
    const sz_tensor *x, *y;
    axis rows, cols;
    column_table few;           /* of cols, if there are few channels */
    int64_t c, in_row, out_row; /* channels, elements of a row before and after the columns */
    int64_t ring;               /* rows of the ring; 0: rows are combined first */
    int64_t space;              /* floats of workspace of a thread */
} resize;

/* An input row [in.w, c] to an output row [out.w, c]. */
static void resize_columns(const resize *p, const float *in, float *out)
{
    const axis *a = &p->cols;
    if (a->same) {
        memcpy(out, in, (size_t)p->in_row * sizeof *out);
    } else if (p->c < VECTOR_CHANNELS) {
        few_channels(&p->few, a->taps, p->c, in, out);
    } else {
        /* A pixel at a time, all channels as vectors. */
        for (int64_t i = 0; i < a->n; i++) {
            const float *pixel = in + a->first[i] * p->c;
            const float *weight = a->weight + i * a->taps;
            weighted_sum(false, a->count[i], weight, pixel, p->c, p->c, out + i * p->c);
        }
    }
}

/* Row `row` of input image b as f32, in place or in buffer. */
static const float *input_row(const resize *p, int64_t b, int64_t row, float *buffer)
{
    const int64_t first = (b * p->rows.in + row) * p->in_row;
    if (p->x->dtype == SZ_F32) return sz_f32(p->x) + first;
    sz_bf16_to_f32(buffer, sz_bf16(p->x) + first, p->in_row);
    return buffer;
}

/* Combines input rows of image b to output row i, [in.w, c]; a block at a time, so that bf16 is
 * converted in the cache. */
static void combine_input_rows(const resize *p, int64_t b, int64_t i, float *out)
{
    const axis *a = &p->rows;
    const int64_t first = (b * a->in + a->first[i]) * p->in_row;
    const int64_t count = a->count[i];
    const float *weight = a->weight + i * a->taps;

    /* f32 is read in place. */
    if (p->x->dtype == SZ_F32) {
        for (int64_t e = 0; e < p->in_row; e += SZ_BLOCK) {
            const int64_t n = sz_min64(SZ_BLOCK, p->in_row - e);
            weighted_sum(false, count, weight, sz_f32(p->x) + first + e, p->in_row, n, out + e);
        }
        return;
    }

    for (int64_t e = 0; e < p->in_row; e += SZ_BLOCK) {
        const int64_t n = sz_min64(SZ_BLOCK, p->in_row - e);
        float *restrict sum = out + e;
        memset(sum, 0, (size_t)n * sizeof *sum);
        for (int64_t t = 0; t < count; t++) {
            const uint16_t *restrict row = sz_bf16(p->x) + first + t * p->in_row + e;
            for (int64_t k = 0; k < n; k++) sum[k] += weight[t] * sz_from_bf16(row[k]);
        }
    }
}

/* Combines rows of the ring to output row i, [out.w, c]: those up to the ring's end, then those at
 * its beginning. */
static void combine_ring(const resize *p, const float *ring, int64_t i, float *out)
{
    const int64_t slot = p->rows.first[i] % p->ring;
    const int64_t count = p->rows.count[i];
    const int64_t straight = sz_min64(count, p->ring - slot);
    const float *weight = p->rows.weight + i * p->rows.taps;
    const int64_t n = p->out_row;
    weighted_sum(false, straight, weight, ring + slot * n, n, n, out);
    weighted_sum(true, count - straight, weight + straight, ring, n, n, out);
}

/* Output rows [from, to), counted through all images, by one thread. */
static void resize_rows(const resize *p, int64_t from, int64_t to, float *space)
{
    float *out_row = space;
    float *row = out_row + p->out_row;
    float *ring = row + p->in_row;
    int64_t image = -1; /* the image whose rows are in the ring */
    int64_t ready = 0;  /* input rows below this have been put into it */

    for (int64_t r = from; r < to; r++) {
        const int64_t b = r / p->rows.n;
        const int64_t i = r % p->rows.n;
        float *out = p->y->dtype == SZ_F32 ? sz_f32(p->y) + r * p->out_row : out_row;

        if (p->ring) {
            /* Columns first: put the rows that are missing into the ring. */
            const int64_t first = p->rows.first[i];
            const int64_t end = first + p->rows.count[i];
            if (b != image || ready < first) {
                image = b;
                ready = first;
            }
            for (; ready < end; ready++) {
                float *slot = ring + ready % p->ring * p->out_row;
                resize_columns(p, input_row(p, b, ready, row), slot);
            }
            combine_ring(p, ring, i, out);
        } else if (p->rows.same) {
            resize_columns(p, input_row(p, b, i, row), out);
        } else if (p->cols.same) {
            combine_input_rows(p, b, i, out);
        } else {
            combine_input_rows(p, b, i, row);
            resize_columns(p, row, out);
        }
        if (p->y->dtype != SZ_F32) sz_f32_to_bf16(sz_bf16(p->y) + r * p->out_row, out, p->out_row);
    }
}

static int run(resize *p)
{
    const int64_t total = p->y->shape[0] * p->y->shape[1];
    const int64_t elements = p->x->numel + p->y->numel;
    const int threads = elements > SZ_PARALLEL_FROM ? omp_get_max_threads() : 1;
    if (p->rows.same && p->cols.same) {
        memcpy(p->y->data, p->x->data, sz_bytes(p->y));
        return 0;
    }

    /* Sizes and workspace. */
    p->c = p->x->shape[3];
    p->in_row = p->x->shape[2] * p->c;
    p->out_row = p->y->shape[2] * p->c;
    if (p->c < VECTOR_CHANNELS && !p->cols.same && make_column_table(&p->few, &p->cols, p->c))
        return -1;
    p->ring = p->rows.n > p->rows.in && !p->cols.same ? p->rows.taps : 0;
    p->space = (p->in_row + p->out_row * (1 + p->ring) + 31) / 16 * 16;
    float *space = sz_scratch((size_t)(p->space * threads) * sizeof *space);
    if (!space) return -1;

/* One band of rows for each thread. */
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int t = 0; t < threads; t++)
        resize_rows(p, total * t / threads, total * (t + 1) / threads, space + p->space * t);
    return 0;
}

int sz_cpu_resize(const sz_call *c)
{
    const sz_tensor *x = c->in[0];
    const sz_tensor *y = c->out[0];
    const int mode = (int)c->args[2];
    resize p = { .x = x, .y = y };
    if (axis_table(&p.rows, x->shape[1], y->shape[1], mode)) return -1;
    if (axis_table(&p.cols, x->shape[2], y->shape[2], mode)) return -1;
    return run(&p);
}

int sz_cpu_resize_backward(const sz_call *c)
{
    const sz_tensor *dy = c->in[0];
    const sz_tensor *dx = c->out[0];
    const int mode = (int)c->args[2];
    resize p = { .x = dy, .y = dx };
    axis rows, cols;

    /* The tables of the forward pass, transposed. */
    if (axis_table(&rows, dx->shape[1], dy->shape[1], mode)) return -1;
    if (axis_table(&cols, dx->shape[2], dy->shape[2], mode)) return -1;
    if (transposed(&p.rows, &rows) || transposed(&p.cols, &cols)) return -1;
    return run(&p);
}
