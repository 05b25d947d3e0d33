/* resize.c - Pillow's bilinear and bicubic resize of 8-bit RGB [h, w, 3], bit for bit.
 *
 * There are two passes. A pass whose length does not change is skipped, and each rounds to 8 bits,
 * so their order matters. It is that of Pillow 13: rows first, except if the height loses more than
 * twice the pixels that the width loses (Pillow 12 and older: always rows first). If an axis
 * shrinks, the filter widens with the scale. Weights are doubles, normalised to sum 1 and rounded
 * to 22-bit fixed point, so that sums stay inside 32 bits.
 * Leaves out: other filters, boxes, alpha, resizing of float tensors.
 */
#include "image.h"
#include <math.h>
#include <stdlib.h>

/* A fused multiply-add in the filter changes the last bit of some weights, and with them some
 * pixels. */
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=off")
#endif

enum { BITS = 22 };

typedef struct {
    int taps;           /* room for each output pixel */
    int *first, *count; /* [n]: the input pixels that it reads */
    int32_t *weights;   /* [n, taps] */
} filter_table;

static double bilinear(double x)
{
    x = fabs(x);
    return x < 1.0 ? 1.0 - x : 0.0;
}

/* Keys, a = -0.5. */
static double bicubic(double x)
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

/* The weights of one output pixel whose centre is `center`. w: room for t->taps numbers. */
static void table_row(filter_table *t, int i, int n_in, double center, double support,
                      double inverse, int cubic, double *w)
{
    /* The input pixels under the filter. */
    int lo = (int)(center - support + 0.5);
    int hi = (int)(center + support + 0.5);
    if (lo < 0) lo = 0;
    if (hi > n_in) hi = n_in;
    int n = hi - lo;

    /* Their weights, normalised and rounded. */
    double sum = 0.0;
    for (int k = 0; k < n; k++) {
        double x = (k + lo - center + 0.5) * inverse;
        w[k] = cubic ? bicubic(x) : bilinear(x);
        sum += w[k];
    }
    int32_t *weights = t->weights + (size_t)i * (size_t)t->taps;
    for (int k = 0; k < n; k++) {
        double v = (sum != 0.0 ? w[k] / sum : w[k]) * (1 << BITS);
        weights[k] = (int32_t)(v < 0 ? v - 0.5 : v + 0.5);
    }
    t->first[i] = lo;
    t->count[i] = n;
}

/* The weights that take a line of n_in pixels to n_out. 0, or -1 with a message. */
static int table_make(filter_table *t, int n_in, int n_out, int cubic)
{
    double scale = (double)n_in / n_out;
    double stretch = scale < 1.0 ? 1.0 : scale;
    double support = (cubic ? 2.0 : 1.0) * stretch;
    double inverse = 1.0 / stretch;

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

    /* One row of weights for each output pixel. */
    for (int i = 0; i < n_out; i++)
        table_row(t, i, n_in, (i + 0.5) * scale, support, inverse, cubic, w);
    free(w);
    return 0;
}

static inline uint8_t clip(int32_t v)
{
    v >>= BITS;
    if (v < 0) return 0;
    return (uint8_t)(v > 255 ? 255 : v);
}

static void pass_rows(const filter_table *t, const uint8_t *in, uint8_t *out, int height, int w_in,
                      int w_out)
{
#pragma omp parallel for if ((int64_t)height * w_out > 16384)
    for (int y = 0; y < height; y++) {
        const uint8_t *row = in + (size_t)y * (size_t)w_in * 3;
        uint8_t *dst = out + (size_t)y * (size_t)w_out * 3;
        for (int x = 0; x < w_out; x++) {
            /* The three sums start at a half, for rounding. */
            const int32_t *w = t->weights + (size_t)x * (size_t)t->taps;
            const uint8_t *p = row + (size_t)t->first[x] * 3;
            int32_t r = 1 << (BITS - 1);
            int32_t g = r;
            int32_t b = r;
            for (int k = 0; k < t->count[x]; k++, p += 3) {
                r += p[0] * w[k];
                g += p[1] * w[k];
                b += p[2] * w[k];
            }
            *dst++ = clip(r);
            *dst++ = clip(g);
            *dst++ = clip(b);
        }
    }
}

static void pass_columns(const filter_table *t, const uint8_t *in, uint8_t *out, int width,
                         int h_out)
{
    enum { STRIP = 1024 }; /* bytes of a row whose sums stay in the first-level cache */
    int bytes = width * 3;
#pragma omp parallel for if ((int64_t)width * h_out > 16384)
    for (int y = 0; y < h_out; y++) {
        int32_t sum[STRIP];
        for (int x0 = 0; x0 < bytes; x0 += STRIP) {
            /* Add the input rows, times their weights, in strips. */
            int n = bytes - x0 < STRIP ? bytes - x0 : STRIP;
            for (int x = 0; x < n; x++) sum[x] = 1 << (BITS - 1);
            for (int k = 0; k < t->count[y]; k++) {
                const uint8_t *p = in + (size_t)(t->first[y] + k) * (size_t)bytes + x0;
                int32_t w = t->weights[(size_t)y * (size_t)t->taps + (size_t)k];
                for (int x = 0; x < n; x++) sum[x] += p[x] * w;
            }
            uint8_t *dst = out + (size_t)y * (size_t)bytes + x0;
            for (int x = 0; x < n; x++) dst[x] = clip(sum[x]);
        }
    }
}

/* A new image whose columns have the given height. */
static sz_image *resize_columns(const sz_image *im, int height, int cubic)
{
    filter_table t;
    if (table_make(&t, im->height, height, cubic) != 0) return NULL;
    sz_image *out = sz_image_new(im->width, height);
    if (out) pass_columns(&t, im->pixels, out->pixels, im->width, height);
    table_free(&t);
    return out;
}

/* A new image whose rows have the given width. */
static sz_image *resize_rows(const sz_image *im, int width, int cubic)
{
    filter_table t;
    if (table_make(&t, im->width, width, cubic) != 0) return NULL;
    sz_image *out = sz_image_new(width, im->height);
    if (out) pass_rows(&t, im->pixels, out->pixels, im->height, im->width, width);
    table_free(&t);
    return out;
}

sz_image *sz_image_resize(const sz_image *im, int width, int height, int filter)
{
    /* Check the size before the filter's tables take memory. */
    if (filter < 0 || filter > 2) return sz_null("resize: unknown filter %d", filter);
    if (sz_image_check_size("resize", width, height) != 0) return NULL;
    if (filter == 2) return sz_image_resize_area(im, width, height);

    /* The passes that are needed, in Pillow's order. */
    int64_t rows_lost = im->height - height;
    int64_t columns_lost = (int64_t)im->width - width;
    bool columns_first = height < im->height && rows_lost > 2 * columns_lost;
    sz_image *done = NULL;
    for (int pass = 0; pass < 2; pass++) {
        bool columns = columns_first ? pass == 0 : pass == 1;
        const sz_image *src = done ? done : im;
        sz_image *next;
        if (columns && height != src->height) next = resize_columns(src, height, filter);
        else if (!columns && width != src->width) next = resize_rows(src, width, filter);
        else continue;
        sz_image_free(done);
        if (!next) return NULL;
        done = next;
    }
    if (done) return done;

    /* The same size: a copy. */
    sz_image *copy = sz_image_new(width, height);
    if (copy) memcpy(copy->pixels, im->pixels, (size_t)width * (size_t)height * 3);
    return copy;
}
