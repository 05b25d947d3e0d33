/* reference/interpolate.c - the reference kernels of cpu/interpolate.c: each output pixel is the
 * weighted sum of the pixels that it reads, in double; the gradient uses the same weights the other
 * way round. Positions and weights are those that PyTorch computes, in f32. Images [b, h, w, c].
 * Leaves out: speed. */
#include "core/core.h"
#include <math.h>

/* Which inputs of an axis an output reads: `count` of them, weight[t] of input from[t]; an input
 * may come twice. */
typedef struct {
    int32_t count;
    int32_t *from;
    float *weight;
} taps;

static int64_t most_taps(int64_t in, int64_t out) { return 2 * (in / out + 1) + 4; }

static void put(taps *t, int64_t j, int64_t in, double w)
{
    if (j < 0) j = 0;
    if (j >= in) j = in - 1;
    t->from[t->count] = (int32_t)j;
    t->weight[t->count++] = (float)w;
}

/* Keys' cubic with a = -0.75 at distance x. */
static double cubic(double x)
{
    const double a = -0.75;
    x = fabs(x);
    return x <= 1  ? (a + 2) * x * x * x - (a + 3) * x * x + 1
           : x < 2 ? a * x * x * x - 5 * a * x * x + 8 * a * x - 4 * a
                   : 0;
}

static void find(taps *t, int64_t i, int64_t in, int64_t out, int mode)
{
    const float step = (float)in / (float)out;
    /* Rounded by itself, as in PyTorch: not part of a multiply-add. */
    const float product = (float)((double)step * (i + 0.5));
    const float x = product - 0.5f;
    t->count = 0;
    if (mode == SZ_NEAREST) {
        put(t, (int64_t)((float)i * step), in, 1);
    } else if (mode == SZ_BILINEAR) {
        double inside = x > 0 ? x : 0;
        double after = inside - floor(inside);
        put(t, (int64_t)floor(inside), in, 1 - after);
        put(t, (int64_t)floor(inside) + 1, in, after);
    } else if (mode == SZ_BICUBIC) {
        for (int k = -1; k <= 2; k++) put(t, (int64_t)floor(x) + k, in, cubic(x - (floor(x) + k)));
    } else {
        const float half = step > 1 ? step : 1;
        const float low = product - half;
        const float high = product + half;
        const float slope = step > 1 ? 1 / step : 1;
        double total = 0;
        for (int64_t j = 0; j < in; j++) {
            if (j < (int64_t)(low + 0.5) || j >= (int64_t)(high + 0.5)) continue;
            double w = 1 - fabs(((double)((float)j - product) + 0.5) * slope);
            put(t, j, in, w > 0 ? w : 0);
            total += w > 0 ? w : 0;
        }
        for (int32_t k = 0; k < t->count; k++) t->weight[k] = (float)(t->weight[k] / total);
    }
}

/* The taps of all outputs of an axis; NULL when memory is out. */
static taps *find_all(int64_t in, int64_t out, int mode)
{
    int64_t most = most_taps(in, out);
    taps *all = sz_scratch((size_t)out * sizeof *all);
    int32_t *from = sz_scratch((size_t)(out * most) * sizeof *from);
    float *weight = sz_scratch((size_t)(out * most) * sizeof *weight);
    if (!all || !from || !weight) return NULL;
    for (int64_t i = 0; i < out; i++) {
        all[i] = (taps){ 0, from + i * most, weight + i * most };
        find(&all[i], i, in, out, mode);
    }
    return all;
}

int sz_ref_resize(const sz_call *c)
{
    sz_tensor *x = c->in[0];
    sz_tensor *y = c->out[0];
    int64_t h = x->shape[1];
    int64_t w = x->shape[2];
    int64_t channels = x->shape[3];
    int64_t at = 0;
    taps *rows = find_all(h, y->shape[1], (int)c->args[2]),
         *cols = find_all(w, y->shape[2], (int)c->args[2]);
    if (!rows || !cols) return -1;
    for (int64_t b = 0; b < y->shape[0]; b++)
        for (int64_t oy = 0; oy < y->shape[1]; oy++)
            for (int64_t ox = 0; ox < y->shape[2]; ox++)
                for (int64_t ch = 0; ch < channels; ch++) {
                    double s = 0;
                    for (int32_t r = 0; r < rows[oy].count; r++)
                        for (int32_t q = 0; q < cols[ox].count; q++)
                            s += (double)rows[oy].weight[r] * cols[ox].weight[q] *
                                 sz_get(x, ((b * h + rows[oy].from[r]) * w + cols[ox].from[q]) *
                                                   channels +
                                               ch);
                    sz_put(y, at++, (float)s);
                }
    return 0;
}

int sz_ref_resize_backward(const sz_call *c)
{
    sz_tensor *dy = c->in[0];
    sz_tensor *dx = c->out[0];
    int64_t h = dx->shape[1];
    int64_t w = dx->shape[2];
    int64_t channels = dx->shape[3];
    int64_t at = 0;
    taps *rows = find_all(h, dy->shape[1], (int)c->args[2]),
         *cols = find_all(w, dy->shape[2], (int)c->args[2]);
    double *sums = sz_scratch((size_t)dx->numel * sizeof *sums);
    if (!rows || !cols || !sums) return -1;
    for (int64_t i = 0; i < dx->numel; i++) sums[i] = 0;
    for (int64_t b = 0; b < dy->shape[0]; b++)
        for (int64_t oy = 0; oy < dy->shape[1]; oy++)
            for (int64_t ox = 0; ox < dy->shape[2]; ox++)
                for (int64_t ch = 0; ch < channels; ch++, at++)
                    for (int32_t r = 0; r < rows[oy].count; r++)
                        for (int32_t q = 0; q < cols[ox].count; q++)
                            sums[((b * h + rows[oy].from[r]) * w + cols[ox].from[q]) * channels +
                                 ch] += (double)rows[oy].weight[r] * cols[ox].weight[q] *
                                        sz_get(dy, at);
    for (int64_t i = 0; i < dx->numel; i++) sz_put(dx, i, (float)sums[i]);
    return 0;
}
