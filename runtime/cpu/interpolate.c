/* interpolate.c - resize [b, h, w, c] -> [b, oh, ow, c] and its transpose on the CPU, as PyTorch's interpolate does with
 * align_corners = False: 0 nearest, 1 bilinear, 2 bicubic with a = -0.75, 3 bilinear with antialiasing (a triangle as wide as
 * the step when shrinking).
 *
 * All modes are separable. A table says for each output of an axis which inputs it reads, a range, and with which weights; the
 * transposed table serves the gradient, so that both directions are one piece of code. Rows are taken together first when
 * the picture gets lower, columns first when it gets higher; then a ring of as many finished rows as an output needs is kept,
 * never a whole picture in between. An axis that keeps its size is not touched: equal sizes give the input, bit for bit.
 * Positions and weights are computed in f32 in PyTorch's order of operations: at 1500 columns another order moves a weight
 * by 1e-5. bf16 is widened on the way in and rounded once.
 *
 * Measured, one thread of a shared Cascade Lake Xeon, f32: a mask [1, 256, 256, 1] to 1000 x 1500 1.4 ms, its gradient 1.5 (copying
 * 6 MB: 0.7); a photograph [1, 1500, 2000, 3] to 1024 x 1024, antialiased, 20 ms (PyTorch 81).
 *
 * Leaves out: align_corners, scale factors that differ from the ratio of sizes, antialiased bicubic. The reference is
 * ref_interpolate.c.
 */
#include "vecmath.h"
#include <math.h>
#include <omp.h>

enum { WIDE = 16 };                 /* from so many channels on, a pixel's channels fill a vector */

/* Output i of n is the sum over t < count[i] of weight[i * taps + t] times input first[i] + t. first never decreases. */
typedef struct {
    int64_t in, n, taps;
    bool same;                      /* output i is input i */
    int32_t *first, *count;
    float *weight;                  /* [n, taps], 0 from count on */
} axis;

/* Columns for few channels, element by element: output e = (i, channel) is the sum over t < taps of weight[t * size + e] times
 * element at[e] + t * channels of the input row. */
typedef struct {
    int64_t size;                   /* n * channels */
    int32_t *at;
    float *weight;
} columns;

static int new_axis(axis *a, int64_t in, int64_t n, int64_t taps)
{
    *a = (axis){ in, n, taps, false, sz_scratch((size_t)n * sizeof(int32_t)), sz_scratch((size_t)n * sizeof(int32_t)),
                 sz_scratch((size_t)(n * taps) * sizeof(float)) };
    if (!a->first || !a->count || !a->weight) return -1;
    memset(a->weight, 0, (size_t)(n * taps) * sizeof(float));
    return 0;
}

/* ---- tables ---- */
/* Where output i lies among the inputs. PyTorch rounds the product to f32; volatile keeps the compiler from fusing it with the
 * subtraction. */
static float position(float step, int64_t i)
{
    volatile float product = step * ((float)i + 0.5f);
    return product - 0.5f;
}

static float cubic_near(float x) { return ((-0.75f + 2.0f) * x - (-0.75f + 3.0f)) * x * x + 1.0f; }                    /* |x| <= 1 */
static float cubic_far(float x) { return ((-0.75f * x + 5.0f * 0.75f) * x - 8.0f * 0.75f) * x + 4.0f * 0.75f; }         /* 1 < |x| < 2 */

/* Adds a tap at input j, taken to the border when outside; taps come in rising order of j. */
static void add_tap(axis *a, int64_t i, int64_t j, float w)
{
    j = j < 0 ? 0 : j >= a->in ? a->in - 1 : j;
    if (a->count[i] == 0) a->first[i] = (int32_t)j;
    a->count[i] = (int32_t)(j - a->first[i] + 1);
    a->weight[i * a->taps + j - a->first[i]] += w;
}

static void antialiased_taps(axis *a, int64_t i, float step, float support)
{
    const float centre = (float)((double)step * ((double)i + 0.5)), scale = step >= 1.0f ? 1.0f / step : 1.0f;
    int64_t from = (int64_t)((double)(centre - support) + 0.5), to = (int64_t)((double)(centre + support) + 0.5);
    float total = 0, *w = a->weight + i * a->taps;
    if (from < 0) from = 0;
    to = sz_min64(sz_min64(to, a->in), from + a->taps);
    a->first[i] = (int32_t)from;
    a->count[i] = (int32_t)(to - from);
    for (int64_t j = from; j < to; j++) {
        float x = fabsf((float)(((double)((float)j - centre) + 0.5) * (double)scale));
        w[j - from] = x < 1.0f ? 1.0f - x : 0.0f;
        total += w[j - from];
    }
    for (int64_t t = 0; t < to - from; t++) w[t] /= total;
}

static int axis_table(axis *a, int64_t in, int64_t n, int mode)
{
    const float step = (float)in / (float)n, support = step >= 1.0f ? step : 1.0f;
    const int64_t most = mode == SZ_NEAREST ? 1 : mode == SZ_BILINEAR ? 2 : mode == SZ_BICUBIC ? 4 : 2 * (int64_t)ceilf(support) + 1;
    if (new_axis(a, in, n, sz_min64(most, in))) return -1;
    a->same = in == n;
    for (int64_t i = 0; i < n; i++) {
        a->count[i] = 0;
        if (mode == SZ_NEAREST) add_tap(a, i, (int64_t)((float)i * step), 1.0f);
        if (mode == SZ_BILINEAR) {
            float x = position(step, i);
            x = x < 0 ? 0 : x;
            int64_t j = sz_min64((int64_t)x, in - 1);
            float after = x - (float)j < 1.0f ? x - (float)j : 1.0f;
            add_tap(a, i, j, 1.0f - after);
            add_tap(a, i, j + 1, after);
        }
        if (mode == SZ_BICUBIC) {
            float x = position(step, i), before = floorf(x), t = x - before;
            int64_t j = (int64_t)before;
            add_tap(a, i, j - 1, cubic_far(t + 1.0f));
            add_tap(a, i, j, cubic_near(t));
            add_tap(a, i, j + 1, cubic_near(1.0f - t));
            add_tap(a, i, j + 2, cubic_far(2.0f - t));
        }
        if (mode == SZ_BILINEAR_ANTIALIASED) antialiased_taps(a, i, step, support);
    }
    return 0;
}

/* The table of the transposed map. The ranges of f begin and end in rising order, so those of t are ranges too. */
static int transposed(axis *t, const axis *f)
{
    int32_t *first = sz_scratch((size_t)f->in * sizeof *first), *end = sz_scratch((size_t)f->in * sizeof *end);
    int64_t taps = 1;
    if (!first || !end) return -1;
    for (int64_t j = 0; j < f->in; j++) first[j] = end[j] = 0;
    for (int64_t i = 0; i < f->n; i++)
        for (int64_t j = f->first[i]; j < f->first[i] + f->count[i]; j++) {
            if (end[j] == 0) first[j] = (int32_t)i;
            end[j] = (int32_t)i + 1;
        }
    for (int64_t j = 0; j < f->in; j++) taps = end[j] - first[j] > taps ? end[j] - first[j] : taps;
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

/* Ranges are moved so that all `taps` inputs exist; the weights beyond an output's own range are 0 (so an infinity just beyond
 * it makes a NaN, as PyTorch's own zero weights do within it). */
static int columns_table(columns *p, const axis *a, int64_t channels)
{
    p->size = a->n * channels;
    p->at = sz_scratch((size_t)p->size * sizeof *p->at);
    p->weight = sz_scratch((size_t)(p->size * a->taps) * sizeof *p->weight);
    if (!p->at || !p->weight) return -1;
    for (int64_t i = 0; i < a->n; i++) {
        int64_t first = sz_min64(a->first[i], a->in - a->taps), moved = a->first[i] - first;
        for (int64_t c = 0; c < channels; c++) p->at[i * channels + c] = (int32_t)(first * channels + c);
        for (int64_t t = 0; t < a->taps; t++) {
            float w = t >= moved && t - moved < a->count[i] ? a->weight[i * a->taps + t - moved] : 0.0f;
            for (int64_t c = 0; c < channels; c++) p->weight[t * p->size + i * channels + c] = w;
        }
    }
    return 0;
}

/* ---- passes ---- */
/* out [size] from a row of the input, few channels: two taps at a time, each read by gathering. */
static void few_channels(const columns *p, int64_t taps, int64_t channels, const float *restrict in, float *restrict out)
{
    for (int64_t e0 = 0; e0 < p->size; e0 += SZ_BLOCK) {
        const int64_t n = sz_min64(SZ_BLOCK, p->size - e0);
        const int32_t *restrict at = p->at + e0;
        float *restrict y = out + e0;
        for (int64_t t = 0; t < taps; t += 2) {
            const float *restrict u = p->weight + t * p->size + e0, *restrict v = u + p->size;
            const float *restrict a = in + t * channels, *restrict b = a + channels;
            if (t + 1 == taps && t == 0) for (int64_t e = 0; e < n; e++) y[e] = u[e] * a[at[e]];
            else if (t + 1 == taps) for (int64_t e = 0; e < n; e++) y[e] += u[e] * a[at[e]];
            else if (t == 0) for (int64_t e = 0; e < n; e++) y[e] = u[e] * a[at[e]] + v[e] * b[at[e]];
            else for (int64_t e = 0; e < n; e++) y[e] += u[e] * a[at[e]] + v[e] * b[at[e]];
        }
    }
}

/* to[0..n), cleared first unless `add`, plus the sum over t < count of weight[t] times from[t * stride + 0..n). */
static inline void weighted(bool add, int64_t count, const float *weight, const float *restrict from, int64_t stride, int64_t n, float *restrict to)
{
    if (count == 0 && !add) memset(to, 0, (size_t)n * sizeof *to);
    for (int64_t t = 0; t < count; t += 2, add = true) {
        const float *restrict a = from + t * stride, *restrict b = a + stride;
        const float u = weight[t], v = t + 1 < count ? weight[t + 1] : 0;
        if (t + 1 == count && !add) for (int64_t e = 0; e < n; e++) to[e] = u * a[e];
        else if (t + 1 == count) for (int64_t e = 0; e < n; e++) to[e] += u * a[e];
        else if (!add) for (int64_t e = 0; e < n; e++) to[e] = u * a[e] + v * b[e];
        else for (int64_t e = 0; e < n; e++) to[e] += u * a[e] + v * b[e];
    }
}

/* What one call needs: the axes, and the columns' second table when the channels are few. */
typedef struct {
    const sz_tensor *x, *y;
    axis rows, cols;
    columns few;
    int64_t c, in_row, mid_row;     /* elements of an input row, and of an output row */
    int64_t ring;                   /* rows kept by each thread; 0: rows are combined first */
    int64_t space;                  /* floats of workspace for each thread */
} plan;

/* An input row [in.w, c] to an output row [out.w, c]. */
static void resize_columns(const plan *p, const float *in, float *out)
{
    const axis *a = &p->cols;
    if (a->same) {
        memcpy(out, in, (size_t)p->in_row * sizeof *out);
    } else if (p->c < WIDE) {
        few_channels(&p->few, a->taps, p->c, in, out);
    } else {
        for (int64_t i = 0; i < a->n; i++) weighted(false, a->count[i], a->weight + i * a->taps, in + a->first[i] * p->c, p->c, p->c, out + i * p->c);
    }
}

/* Row `row` of the input's picture b as f32, in place or in buffer. */
static const float *input_row(const plan *p, int64_t b, int64_t row, float *buffer)
{
    const int64_t at = (b * p->rows.in + row) * p->in_row;
    if (p->x->dtype == SZ_F32) return sz_f32(p->x) + at;
    sz_bf16_to_f32(buffer, sz_bf16(p->x) + at, p->in_row);
    return buffer;
}

/* Input rows of picture b combined to output row i, [in.w, c], a block at a time so that bf16 is widened in the cache. */
static void combine_inindex_copy(const plan *p, int64_t b, int64_t i, float *to)
{
    const axis *a = &p->rows;
    const int64_t at = (b * a->in + a->first[i]) * p->in_row, count = a->count[i];
    const float *weight = a->weight + i * a->taps;
    if (p->x->dtype == SZ_F32) {
        for (int64_t e = 0; e < p->in_row; e += SZ_BLOCK)
            weighted(false, count, weight, sz_f32(p->x) + at + e, p->in_row, sz_min64(SZ_BLOCK, p->in_row - e), to + e);
        return;
    }
    for (int64_t e = 0; e < p->in_row; e += SZ_BLOCK) {
        const int64_t n = sz_min64(SZ_BLOCK, p->in_row - e);
        float *restrict sum = to + e;
        memset(sum, 0, (size_t)n * sizeof *sum);
        for (int64_t t = 0; t < count; t++) {
            const uint16_t *restrict from = sz_bf16(p->x) + at + t * p->in_row + e;
            for (int64_t k = 0; k < n; k++) sum[k] += weight[t] * sz_from_bf16(from[k]);
        }
    }
}

/* Rows of the ring combined to output row i, [out.w, c]: those up to the ring's end, then those at its beginning. */
static void combine_ring(const plan *p, const float *ring, int64_t i, float *to)
{
    const int64_t slot = p->rows.first[i] % p->ring, count = p->rows.count[i], straight = sz_min64(count, p->ring - slot);
    const float *weight = p->rows.weight + i * p->rows.taps;
    weighted(false, straight, weight, ring + slot * p->mid_row, p->mid_row, p->mid_row, to);
    weighted(true, count - straight, weight + straight, ring, p->mid_row, p->mid_row, to);
}

/* Output rows [from, to) of all pictures' rows, by one thread. */
static void band(const plan *p, int64_t from, int64_t to, float *space)
{
    float *out_row = space, *row = out_row + p->mid_row, *ring = row + p->in_row;
    int64_t picture = -1, ready = 0;            /* input rows below ready of that picture have been in the ring */
    for (int64_t r = from; r < to; r++) {
        const int64_t b = r / p->rows.n, i = r % p->rows.n;
        float *out = p->y->dtype == SZ_F32 ? sz_f32(p->y) + r * p->mid_row : out_row;
        if (p->ring) {
            const int64_t first = p->rows.first[i], end = first + p->rows.count[i];
            if (b != picture || ready < first) picture = b, ready = first;
            for (; ready < end; ready++) resize_columns(p, input_row(p, b, ready, row), ring + ready % p->ring * p->mid_row);
            combine_ring(p, ring, i, out);
        } else if (p->rows.same) {
            resize_columns(p, input_row(p, b, i, row), out);
        } else if (p->cols.same) {
            combine_inindex_copy(p, b, i, out);
        } else {
            combine_inindex_copy(p, b, i, row);
            resize_columns(p, row, out);
        }
        if (p->y->dtype != SZ_F32) sz_f32_to_bf16(sz_bf16(p->y) + r * p->mid_row, out, p->mid_row);
    }
}

static int run(plan *p)
{
    const int64_t total = p->y->shape[0] * p->y->shape[1];
    const int threads = p->x->numel + p->y->numel > SZ_PARALLEL_FROM ? omp_get_max_threads() : 1;
    if (p->rows.same && p->cols.same) {
        memcpy(p->y->data, p->x->data, sz_bytes(p->y));
        return 0;
    }
    p->c = p->x->shape[3];
    p->in_row = p->x->shape[2] * p->c;
    p->mid_row = p->y->shape[2] * p->c;
    if (p->c < WIDE && !p->cols.same && columns_table(&p->few, &p->cols, p->c)) return -1;
    p->ring = p->rows.n > p->rows.in && !p->cols.same ? p->rows.taps : 0;
    p->space = (p->in_row + p->mid_row * (1 + p->ring) + 31) / 16 * 16;
    float *space = sz_scratch((size_t)(p->space * threads) * sizeof *space);
    if (!space) return -1;
    #pragma omp parallel for schedule(static) num_threads(threads)
    for (int t = 0; t < threads; t++) band(p, total * t / threads, total * (t + 1) / threads, space + p->space * t);
    return 0;
}

int sz_cpu_resize(const sz_call *c)
{
    const sz_tensor *x = c->in[0], *y = c->out[0];
    plan p = { .x = x, .y = y };
    const int mode = (int)c->args[2];
    if (axis_table(&p.rows, x->shape[1], y->shape[1], mode) || axis_table(&p.cols, x->shape[2], y->shape[2], mode)) return -1;
    return run(&p);
}

int sz_cpu_resize_backward(const sz_call *c)
{
    const sz_tensor *dy = c->in[0], *dx = c->out[0];
    plan p = { .x = dy, .y = dx };
    const int mode = (int)c->args[2];
    axis rows, cols;
    if (axis_table(&rows, dx->shape[1], dy->shape[1], mode) || axis_table(&cols, dx->shape[2], dy->shape[2], mode)) return -1;
    if (transposed(&p.rows, &rows) || transposed(&p.cols, &cols)) return -1;
    return run(&p);
}
