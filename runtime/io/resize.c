/* resize.c - Pillow's bilinear and bicubic resize of 8-bit RGB [h, w, 3], bit for bit.
 *
 * Two passes; a pass whose length does not change is left out, and each rounds to 8 bits, so their order shows. It is
 * that of Pillow 13: rows first, except when the height loses more than twice the pixels that the width loses (Pillow 12
 * and older: always rows first). When an axis shrinks, the filter widens with the scale. Weights are doubles, normalised to sum 1, rounded to 22-bit fixed point,
 * so sums stay inside 32 bits. Leaves out other filters, boxes, alpha, and resizing of float tensors. */
#include "io.h"
#include <math.h>
#include <stdlib.h>

/* A fused multiply-add in the filter changes the last bit of a weight, and with it a pixel here and there. */
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=off")
#endif

enum { BITS = 22 };

typedef struct {
    int taps;           /* room per output pixel */
    int *first, *count; /* [n]: the input pixels it is made of */
    int32_t *weights;   /* [n, taps] */
} filter_table;

static double bilinear(double x)
{
    x = fabs(x);
    return x < 1.0 ? 1.0 - x : 0.0;
}

static double bicubic(double x)    /* Keys, a = -0.5 */
{
    const double a = -0.5;
    x = fabs(x);
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
    return 0.0;
}

static void table_free(filter_table *t)
{
    free(t->first);
    free(t->count);
    free(t->weights);
}

/* Weights that take a line of n_in pixels to n_out. */
static int table_make(filter_table *t, int n_in, int n_out, int cubic)
{
    double scale = (double)n_in / n_out, stretch = scale < 1.0 ? 1.0 : scale;
    double support = (cubic ? 2.0 : 1.0) * stretch, inverse = 1.0 / stretch;
    t->taps = (int)ceil(support) * 2 + 1;
    t->first = malloc((size_t)n_out * sizeof *t->first);
    t->count = malloc((size_t)n_out * sizeof *t->count);
    t->weights = calloc((size_t)n_out * (size_t)t->taps, sizeof *t->weights);
    double *w = malloc((size_t)t->taps * sizeof *w);
    if (!t->first || !t->count || !t->weights || !w) {
        table_free(t);
        free(w);
        return sz_fail("out of memory while resizing");
    }
    for (int i = 0; i < n_out; i++) {
        double center = (i + 0.5) * scale, sum = 0.0;
        int lo = (int)(center - support + 0.5), hi = (int)(center + support + 0.5);
        if (lo < 0) lo = 0;
        if (hi > n_in) hi = n_in;
        int n = hi - lo;
        for (int k = 0; k < n; k++) {
            double x = (k + lo - center + 0.5) * inverse;
            w[k] = cubic ? bicubic(x) : bilinear(x);
            sum += w[k];
        }
        for (int k = 0; k < n; k++) {
            double v = (sum != 0.0 ? w[k] / sum : w[k]) * (1 << BITS);
            t->weights[(size_t)i * (size_t)t->taps + (size_t)k] = (int32_t)(v < 0 ? v - 0.5 : v + 0.5);
        }
        t->first[i] = lo;
        t->count[i] = n;
    }
    free(w);
    return 0;
}

static inline uint8_t clip(int32_t v)
{
    v >>= BITS;
    return (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
}

static void pass_rows(const filter_table *t, const uint8_t *in, uint8_t *out, int height, int w_in, int w_out)
{
    #pragma omp parallel for if ((int64_t)height * w_out > 16384)
    for (int y = 0; y < height; y++) {
        const uint8_t *row = in + (size_t)y * (size_t)w_in * 3;
        uint8_t *to = out + (size_t)y * (size_t)w_out * 3;
        for (int x = 0; x < w_out; x++) {
            const int32_t *w = t->weights + (size_t)x * (size_t)t->taps;
            const uint8_t *p = row + (size_t)t->first[x] * 3;
            int32_t r = 1 << (BITS - 1), g = r, b = r;
            for (int k = 0; k < t->count[x]; k++, p += 3) {
                r += p[0] * w[k];
                g += p[1] * w[k];
                b += p[2] * w[k];
            }
            *to++ = clip(r);
            *to++ = clip(g);
            *to++ = clip(b);
        }
    }
}

static void pass_columns(const filter_table *t, const uint8_t *in, uint8_t *out, int width, int h_out)
{
    enum { STRIP = 1024 };    /* bytes of a row whose sums stay in the first-level cache */
    int bytes = width * 3;
    #pragma omp parallel for if ((int64_t)width * h_out > 16384)
    for (int y = 0; y < h_out; y++) {
        int32_t sum[STRIP];
        for (int x0 = 0; x0 < bytes; x0 += STRIP) {
            int n = bytes - x0 < STRIP ? bytes - x0 : STRIP;
            for (int x = 0; x < n; x++) sum[x] = 1 << (BITS - 1);
            for (int k = 0; k < t->count[y]; k++) {
                const uint8_t *p = in + (size_t)(t->first[y] + k) * (size_t)bytes + x0;
                int32_t w = t->weights[(size_t)y * (size_t)t->taps + (size_t)k];
                for (int x = 0; x < n; x++) sum[x] += p[x] * w;
            }
            uint8_t *to = out + (size_t)y * (size_t)bytes + x0;
            for (int x = 0; x < n; x++) to[x] = clip(sum[x]);
        }
    }
}

static sz_image *one_pass(const sz_image *im, int width, int height, int cubic, int columns)
{
    filter_table t;
    if (table_make(&t, columns ? im->height : im->width, columns ? height : width, cubic) != 0) return NULL;
    sz_image *out = sz_image_new(width, height);
    if (out && columns) pass_columns(&t, im->pixels, out->pixels, width, height);
    else if (out) pass_rows(&t, im->pixels, out->pixels, height, im->width, width);
    table_free(&t);
    return out;
}

sz_image *sz_image_resize(const sz_image *im, int width, int height, int filter)
{
    if (filter != 0 && filter != 1) return sz_null("resize: unknown filter %d", filter);
    if (sz_image_check_size("resize", width, height) != 0) return NULL;     /* before the filter's tables take memory */
    bool shorter = height < im->height && im->height - height > 2 * ((int64_t)im->width - width);
    sz_image *done = NULL;
    for (int pass = 0; pass < 2; pass++) {
        int columns = shorter ? pass == 0 : pass == 1;
        const sz_image *from = done ? done : im;
        if (columns ? height == from->height : width == from->width) continue;
        sz_image *next = one_pass(from, columns ? from->width : width, columns ? height : from->height, filter, columns);
        sz_image_free(done);
        if (!next) return NULL;
        done = next;
    }
    if (done) return done;
    sz_image *copy = sz_image_new(width, height);
    if (copy) memcpy(copy->pixels, im->pixels, (size_t)width * (size_t)height * 3);
    return copy;
}
