/* resize_area.c - OpenCV's INTER_AREA resize of 8-bit RGB [h, w, 3], byte for byte (4.9, 4.11 and
 * 5.0 on x86).
 *
 * Three cases, as OpenCV 4 has them:
 *   both sides shrink by whole numbers    the mean of each block in integers; of 2 x 2 blocks
 *                                         halves round up, else to even
 *   both sides shrink or stay             each output pixel is the mean of the area that it covers,
 *                                         summed in floats: a row first, then over the rows
 *   a side grows                          bilinear in 11-bit fixed point, with weights that leave
 *                                         flat pixels flat and blend only at their borders
 * The order of the float sums is OpenCV's, which has no fused multiply-add here.
 * Leaves out: other channels and types.
 */
#include "image.h"
#include <math.h>
#include <stdlib.h>

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=off")
#endif

enum { CHANNELS = 3 };

static inline uint8_t to_byte(float v)
{
    long n = lrintf(v);
    if (n < 0) return 0;
    return (uint8_t)(n > 255 ? 255 : n);
}

/* ---- blocks of whole pixels ---- */

/* The mean of a sum over a block. */
static inline uint8_t mean(int sum, float scale, bool quarters)
{
    return quarters ? (uint8_t)((sum + 2) >> 2) : to_byte((float)sum * scale);
}

static void blocks(const sz_image *im, sz_image *out, int kx, int ky)
{
    const float scale = 1.0f / (float)(kx * ky);
    const bool quarters = kx == 2 && ky == 2;
    const size_t stride = (size_t)im->width * CHANNELS;
#pragma omp parallel for
    for (int y = 0; y < out->height; y++) {
        uint8_t *to = out->pixels + (size_t)y * (size_t)out->width * CHANNELS;
        const uint8_t *from = im->pixels + (size_t)y * (size_t)ky * stride;
        for (int x = 0; x < out->width; x++, from += (size_t)kx * CHANNELS) {
            int r = 0;
            int g = 0;
            int b = 0;
            for (int v = 0; v < ky; v++) {
                const uint8_t *p = from + (size_t)v * stride;
                for (int u = 0; u < kx; u++, p += CHANNELS) {
                    r += p[0];
                    g += p[1];
                    b += p[2];
                }
            }
            *to++ = mean(r, scale, quarters);
            *to++ = mean(g, scale, quarters);
            *to++ = mean(b, scale, quarters);
        }
    }
}

/* ---- areas ---- */

/* A share of an input pixel that an output pixel covers. */
typedef struct {
    int out, in;
    float weight;
} share;

typedef struct {
    share *shares;
    int *first; /* [n_out + 1] the shares of each output pixel */
} share_table;

static void shares_free(share_table *t)
{
    free(t->shares);
    free(t->first);
}

/* The shares of output pixel `out`, from place n on; returns the place after them. */
static int shares_of(share *list, int n, int out, int n_in, double scale)
{
    const double least = 1e-3; /* a smaller part of a pixel is left out */
    double begin = out * scale;
    double end = begin + scale;
    double cell = fmin(scale, n_in - begin);
    int lo = (int)ceil(begin);
    int hi = (int)floor(end);
    if (hi > n_in - 1) hi = n_in - 1;
    if (lo > hi) lo = hi;

    /* A part of the first pixel, whole pixels, a part of the last one. */
    if (lo - begin > least) list[n++] = (share){ out, lo - 1, (float)((lo - begin) / cell) };
    for (int i = lo; i < hi; i++) list[n++] = (share){ out, i, (float)(1.0 / cell) };
    if (end - hi > least) {
        double part = fmin(fmin(end - hi, 1.0), cell);
        list[n++] = (share){ out, hi, (float)(part / cell) };
    }
    return n;
}

/* 0, or -1 with a message. */
static int shares_make(share_table *t, int n_in, int n_out)
{
    double scale = 1.0 / ((double)n_out / n_in);
    size_t most = 2 * (size_t)n_out + (size_t)n_in;
    t->shares = malloc(most * sizeof *t->shares);
    t->first = malloc(((size_t)n_out + 1) * sizeof *t->first);
    if (!t->shares || !t->first) {
        shares_free(t);
        return sz_fail("out of memory while resizing");
    }
    int n = 0;
    for (int i = 0; i < n_out; i++) {
        t->first[i] = n;
        n = shares_of(t->shares, n, i, n_in, scale);
    }
    t->first[n_out] = n;
    return 0;
}

/* One row of the input, resized. */
static void area_row(const share_table *t, const uint8_t *row, float *to, int width)
{
    for (int i = 0; i < width * CHANNELS; i++) to[i] = 0.0f;
    for (int k = 0; k < t->first[width]; k++) {
        const share *s = &t->shares[k];
        const uint8_t *p = row + (size_t)s->in * CHANNELS;
        float *sum = to + (size_t)s->out * CHANNELS;
        for (int c = 0; c < CHANNELS; c++) sum[c] = sum[c] + (float)p[c] * s->weight;
    }
}

/* Output row y. row and sum: room for a row of the output each. */
static void area_output(const sz_image *im, sz_image *out, const share_table *across,
                        const share_table *down, int y, float *row, float *sum)
{
    int n = out->width * CHANNELS;
    for (int k = down->first[y]; k < down->first[y + 1]; k++) {
        const share *s = &down->shares[k];
        const uint8_t *from = im->pixels + (size_t)s->in * (size_t)im->width * CHANNELS;
        area_row(across, from, row, out->width);
        for (int i = 0; i < n; i++) {
            float part = s->weight * row[i];
            sum[i] = k == down->first[y] ? part : sum[i] + part;
        }
    }
    uint8_t *to = out->pixels + (size_t)y * (size_t)n;
    for (int i = 0; i < n; i++) to[i] = to_byte(sum[i]);
}

static int areas(const sz_image *im, sz_image *out)
{
    share_table across = { 0 };
    share_table down = { 0 };
    if (shares_make(&across, im->width, out->width) != 0) return -1;
    if (shares_make(&down, im->height, out->height) != 0) {
        shares_free(&across);
        return -1;
    }

    /* Each thread has room of its own. */
    bool failed = false;
#pragma omp parallel
    {
        float *row = malloc((size_t)out->width * CHANNELS * sizeof *row);
        float *sum = malloc((size_t)out->width * CHANNELS * sizeof *sum);
#pragma omp for
        for (int y = 0; y < out->height; y++) {
            if (row && sum) area_output(im, out, &across, &down, y, row, sum);
        }
        if (!row || !sum) {
#pragma omp atomic write
            failed = true;
        }
        free(row);
        free(sum);
    }
    shares_free(&across);
    shares_free(&down);
    return failed ? sz_fail("out of memory while resizing") : 0;
}

/* ---- bilinear, when a side grows ---- */

enum { ONE = 2048 };

/* The two input pixels of an output pixel, and their weights of ONE. */
typedef struct {
    int first, second;
    int weight, other;
} blend;

static blend *blends_make(int n_in, int n_out)
{
    double inverse = (double)n_out / n_in;
    double scale = 1.0 / inverse;
    blend *list = malloc((size_t)n_out * sizeof *list);
    if (!list) return sz_null("out of memory while resizing");
    for (int i = 0; i < n_out; i++) {
        /* How much of this output pixel is past the end of its input pixel. */
        int at = (int)floor(i * scale);
        float past = (float)((i + 1) - (at + 1) * inverse);
        past = past <= 0 ? 0.0f : past - floorf(past);
        if (at >= n_in - 1) {
            at = n_in - 1;
            past = 0.0f;
        }
        int next = at + 1 < n_in ? at + 1 : at;
        int weight = (int)lrintf((1.0f - past) * ONE);
        list[i] = (blend){ at, next, weight, (int)lrintf(past * ONE) };
    }
    return list;
}

/* Rows of the input, blended along x: the last two that an output row needed. */
typedef struct {
    int number[2]; /* of the input's rows; -1: none */
    int32_t *values[2];
} blended_rows;

/* Row `number` of the input, blended; computed unless it is held. keep: a row that stays. */
static const int32_t *row_of(blended_rows *r, const sz_image *im, const blend *across, int width,
                             int number, int keep)
{
    for (int k = 0; k < 2; k++)
        if (r->number[k] == number) return r->values[k];
    int k = r->number[0] == keep ? 1 : 0;
    r->number[k] = number;
    const uint8_t *row = im->pixels + (size_t)number * (size_t)im->width * CHANNELS;
    int32_t *to = r->values[k];
    for (int x = 0; x < width; x++) {
        const uint8_t *p = row + (size_t)across[x].first * CHANNELS;
        const uint8_t *q = row + (size_t)across[x].second * CHANNELS;
        for (int c = 0; c < CHANNELS; c++)
            *to++ = (p[c] * across[x].weight + q[c] * across[x].other) >> 4;
    }
    return r->values[k];
}

static void blend_output(const sz_image *im, sz_image *out, const blend *across, const blend *down,
                         int y, blended_rows *rows)
{
    const blend *b = &down[y];
    const int32_t *upper = row_of(rows, im, across, out->width, b->first, b->second);
    const int32_t *lower = row_of(rows, im, across, out->width, b->second, b->first);
    const int n = out->width * CHANNELS;
    const int32_t weight = b->weight;
    const int32_t other = b->other;
    uint8_t *to = out->pixels + (size_t)y * (size_t)n;
    for (int i = 0; i < n; i++)
        to[i] = (uint8_t)(((weight * upper[i] >> 16) + (other * lower[i] >> 16) + 2) >> 2);
}

/* All output rows; false if memory is out. */
static bool blend_rows(const sz_image *im, sz_image *out, const blend *across, const blend *down)
{
    bool failed = false;
    size_t bytes = (size_t)out->width * CHANNELS * sizeof(int32_t);
#pragma omp parallel
    {
        blended_rows rows = { { -1, -1 }, { malloc(bytes), malloc(bytes) } };
        const bool ready = rows.values[0] && rows.values[1];
#pragma omp for schedule(static)
        for (int y = 0; y < out->height; y++) {
            if (ready) blend_output(im, out, across, down, y, &rows);
        }
        if (!ready) {
#pragma omp atomic write
            failed = true;
        }
        free(rows.values[0]);
        free(rows.values[1]);
    }
    return !failed;
}

static int blends(const sz_image *im, sz_image *out)
{
    blend *across = blends_make(im->width, out->width);
    blend *down = across ? blends_make(im->height, out->height) : NULL;
    int rc = down ? 0 : -1;
    if (down && !blend_rows(im, out, across, down)) rc = sz_fail("out of memory while resizing");
    free(across);
    free(down);
    return rc;
}

/* ---- which case ---- */

sz_image *sz_image_resize_area(const sz_image *im, int width, int height)
{
    sz_image *out = sz_image_new(width, height);
    if (!out) return NULL;
    if (width == im->width && height == im->height) {
        memcpy(out->pixels, im->pixels, (size_t)width * (size_t)height * CHANNELS);
        return out;
    }

    int rc = 0;
    bool shrinks = width <= im->width && height <= im->height;
    if (shrinks && im->width % width == 0 && im->height % height == 0)
        blocks(im, out, im->width / width, im->height / height);
    else if (shrinks) rc = areas(im, out);
    else rc = blends(im, out);
    if (rc == 0) return out;
    sz_image_free(out);
    return NULL;
}
