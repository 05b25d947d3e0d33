/* interpolate.cu - resize [b, h, w, c] -> [b, oh, ow, c] and its transpose on the device, as
 * PyTorch's interpolate with align_corners = False: 0 nearest, 1 bilinear, 2 bicubic with a =
 * -0.75, 3 bilinear with antialiasing.
 *
 * All modes are separable. The host makes a table for each axis: the range of inputs that an output
 * reads, and their weights. The transposed table serves the gradient, so that one kernel computes
 * both directions: each output element collects its inputs in order. An axis that keeps its size
 * has one input with weight 1, so equal sizes return the input bit for bit. Positions and weights
 * are computed in f32, in PyTorch's order of operations.
 *
 * Leaves out: align_corners; scale factors other than the ratio of sizes; antialiased bicubic; one
 * pass for each axis, which would pay where many inputs make one output. The reference is
 * cpu/reference/interpolate.c. */
#include "vector.cuh"
#include <math.h>
#include <stdlib.h>

enum { THREADS = 256 };

/* Output i of n is the sum over t < count[i] of weight[i * taps + t] times input first[i] + t. The
 * arrays are one allocation, which starts at first. */
typedef struct {
    int64_t in, n, taps;
    int32_t *first, *count;
    float *weight; /* [n, taps], 0 from count on */
} axis;

static size_t axis_bytes(const axis &a) { return (size_t)(a.n * (2 + a.taps)) * 4; }

/* Returns a zeroed table; if memory is out, one whose first is NULL, with a message. */
static axis new_axis(int64_t in, int64_t n, int64_t taps)
{
    axis a = { in, n, taps, NULL, NULL, NULL };
    a.first = (int32_t *)calloc(1, axis_bytes(a));
    if (!a.first) sz_fail("no memory for a table of %lld places", (long long)n);
    a.count = a.first + n;
    a.weight = (float *)(a.count + n);
    return a;
}

/* ---- tables, on the host ---- */
/* Returns the position of output i among the inputs. PyTorch rounds the product to f32; volatile
 * keeps the compiler from fusing it with the subtraction. */
static float position(float step, int64_t i)
{
    volatile float product = step * ((float)i + 0.5f);
    return product - 0.5f;
}

/* The cubic kernel for |x| <= 1 and for 1 < |x| < 2. */
static float cubic_near(float x) { return ((-0.75f + 2.0f) * x - (-0.75f + 3.0f)) * x * x + 1.0f; }
static float cubic_far(float x)
{
    return ((-0.75f * x + 5.0f * 0.75f) * x - 8.0f * 0.75f) * x + 4.0f * 0.75f;
}

/* Adds a tap at input j, or at the border if j is outside. Taps come in rising order of j. */
static void add_tap(axis &a, int64_t i, int64_t j, float w)
{
    if (j >= a.in) j = a.in - 1;
    if (j < 0) j = 0;
    if (a.count[i] == 0) a.first[i] = (int32_t)j;
    a.count[i] = (int32_t)(j - a.first[i] + 1);
    a.weight[i * a.taps + j - a.first[i]] += w;
}

static void bilinear_taps(axis &a, int64_t i, float x)
{
    const float inside = x < 0 ? 0 : x;
    const int64_t j = (int64_t)inside < a.in - 1 ? (int64_t)inside : a.in - 1;
    const float after = inside - (float)j < 1.0f ? inside - (float)j : 1.0f;
    add_tap(a, i, j, 1.0f - after);
    add_tap(a, i, j + 1, after);
}

static void bicubic_taps(axis &a, int64_t i, float x)
{
    const float before = floorf(x);
    const float t = x - before;
    const int64_t j = (int64_t)before;
    add_tap(a, i, j - 1, cubic_far(t + 1.0f));
    add_tap(a, i, j, cubic_near(t));
    add_tap(a, i, j + 1, cubic_near(1.0f - t));
    add_tap(a, i, j + 2, cubic_far(2.0f - t));
}

/* A triangle of half width `support`, scaled so that the weights add up to 1. */
static void antialiased_taps(axis &a, int64_t i, float step, float support)
{
    const float centre = (float)((double)step * ((double)i + 0.5));
    const float scale = step >= 1.0f ? 1.0f / step : 1.0f;
    int64_t from = (int64_t)((double)(centre - support) + 0.5);
    int64_t to = (int64_t)((double)(centre + support) + 0.5);
    if (from < 0) from = 0;
    if (to > a.in) to = a.in;
    if (to > from + a.taps) to = from + a.taps;
    a.first[i] = (int32_t)from;
    a.count[i] = (int32_t)(to - from);

    float *w = a.weight + i * a.taps;
    float total = 0;
    for (int64_t j = from; j < to; j++) {
        const float x = fabsf((float)(((double)((float)j - centre) + 0.5) * (double)scale));
        w[j - from] = x < 1.0f ? 1.0f - x : 0.0f;
        total += w[j - from];
    }
    for (int64_t t = 0; t < to - from; t++) w[t] /= total;
}

/* Returns the most inputs that one output reads. */
static int64_t most_taps(bool same_size, int mode, float support)
{
    if (same_size || mode == SZ_NEAREST) return 1;
    if (mode == SZ_BILINEAR) return 2;
    if (mode == SZ_BICUBIC) return 4;
    return 2 * (int64_t)ceilf(support) + 1;
}

static axis axis_table(int64_t in, int64_t n, int mode)
{
    const float step = (float)in / (float)n;
    const float support = step >= 1.0f ? step : 1.0f;
    const int64_t most = most_taps(in == n, mode, support);
    axis a = new_axis(in, n, most < in ? most : in);
    for (int64_t i = 0; i < n && a.first; i++) {
        if (in == n) add_tap(a, i, i, 1.0f);
        else if (mode == SZ_NEAREST) add_tap(a, i, (int64_t)((float)i * step), 1.0f);
        else if (mode == SZ_BILINEAR) bilinear_taps(a, i, position(step, i));
        else if (mode == SZ_BICUBIC) bicubic_taps(a, i, position(step, i));
        else antialiased_taps(a, i, step, support);
    }
    return a;
}

/* Sets first[j] and end[j] to the range of outputs of f that read input j, and returns the length
 * of the longest one. The ranges of f begin and end in rising order, so these are ranges, too. */
static int64_t reading_ranges(const axis &f, int32_t *first, int32_t *end)
{
    for (int64_t i = 0; i < f.n; i++)
        for (int64_t j = f.first[i]; j < f.first[i] + f.count[i]; j++) {
            if (end[j] == 0) first[j] = (int32_t)i;
            end[j] = (int32_t)i + 1;
        }
    int64_t longest = 1;
    for (int64_t j = 0; j < f.in; j++)
        if (end[j] - first[j] > longest) longest = end[j] - first[j];
    return longest;
}

/* Returns the table of the transposed map; if memory is out, one whose first is NULL, with a
 * message. */
static axis transposed(const axis &f)
{
    const axis none = { f.n, f.in, 1, NULL, NULL, NULL };
    if (!f.first) return none;
    int32_t *first = (int32_t *)calloc((size_t)(2 * f.in), sizeof *first);
    if (!first) {
        sz_fail("no memory for a table of %lld places", (long long)f.in);
        return none;
    }
    int32_t *end = first + f.in;
    const int64_t longest = reading_ranges(f, first, end);

    axis t = new_axis(f.n, f.in, longest);
    for (int64_t j = 0; j < f.in && t.first; j++) {
        t.first[j] = first[j];
        t.count[j] = end[j] - first[j];
    }
    for (int64_t i = 0; i < f.n && t.first; i++)
        for (int64_t k = 0; k < f.count[i]; k++) {
            const int64_t j = f.first[i] + k;
            t.weight[j * t.taps + i - first[j]] = f.weight[i * f.taps + k];
        }
    free(first);
    return t;
}

/* ---- on the device ---- */
__global__ void resize_kernel(sz_elements x, sz_elements y, int64_t n, int64_t channels, axis rows,
                              axis cols)
{
    const int64_t start = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    for (int64_t e = start; e < n; e += (int64_t)gridDim.x * THREADS) {
        const int64_t channel = e % channels;
        const int64_t ox = e / channels % cols.n;
        const int64_t oy = e / (channels * cols.n) % rows.n;
        const int64_t b = e / (channels * cols.n * rows.n);
        float sum = 0;
        for (int r = 0; r < rows.count[oy]; r++) {
            /* One input row's part. */
            const int64_t row = b * rows.in + rows.first[oy] + r;
            const int64_t at = (row * cols.in + cols.first[ox]) * channels + channel;
            float line = 0;
            for (int q = 0; q < cols.count[ox]; q++)
                line += cols.weight[ox * cols.taps + q] * sz_load_element(x, at + q * channels);
            sum += rows.weight[oy * rows.taps + r] * line;
        }
        sz_store_element(y, e, sum);
    }
}

/* Returns the table's copy on the device and frees the host's. If first is NULL, there is a
 * message. */
static axis upload(axis a)
{
    if (!a.first) return a;
    int32_t *device = (int32_t *)sz_cuda_upload(a.first, axis_bytes(a));
    free(a.first);
    a.first = device;
    a.count = device ? device + a.n : NULL;
    a.weight = device ? (float *)(device + 2 * a.n) : NULL;
    return a;
}

static int run(const char *op, const sz_tensor *x, const sz_tensor *y, const axis &rows,
               const axis &cols)
{
    if (!rows.first || !cols.first) return -1;
    SZ_LAUNCH(resize_kernel, sz_grid(sz_blocks(y->numel, THREADS)), THREADS, 0, sz_elements_of(x),
              sz_elements_of(y), y->numel, x->shape[3], rows, cols);
    return sz_cuda_launched(op);
}

extern "C" int sz_cuda_resize(const sz_call *c)
{
    const sz_tensor *x = c->in[0];
    const sz_tensor *y = c->out[0];
    const int mode = (int)c->args[2];
    const axis rows = upload(axis_table(x->shape[1], y->shape[1], mode));
    const axis cols = upload(axis_table(x->shape[2], y->shape[2], mode));
    return run("resize", x, y, rows, cols);
}

static axis transposed_table(int64_t in, int64_t n, int mode)
{
    const axis forward = axis_table(in, n, mode);
    const axis backward = transposed(forward);
    free(forward.first);
    return upload(backward);
}

extern "C" int sz_cuda_resize_backward(const sz_call *c)
{
    const sz_tensor *dy = c->in[0];
    const sz_tensor *dx = c->out[0];
    const int mode = (int)c->args[2];
    const axis rows = transposed_table(dx->shape[1], dy->shape[1], mode);
    const axis cols = transposed_table(dx->shape[2], dy->shape[2], mode);
    return run("resize_backward", dy, dx, rows, cols);
}
