/* qwen_processor.c - the image processor of Qwen2-VL and Qwen2.5-VL: the size that an image is
 * resized to, its patches, and the three-axis position ids of a token sequence with images.
 *
 * Arithmetic follows the Pillow-based processor of transformers: x = f32(f64(u8) * scale), then
 * (x - mean) / std in f32, so values are equal to the last bit. The row order of patches is in
 * qwen_vl.h. A background thread (runtime/io/jobs.c) can read, resize and convert an image with the
 * same functions, and so with the same bits. Leaves out: the resize itself
 * (runtime/io/image/resize.c), video, messages (lua/segzero/models/qwen_vl/processor.lua). */
#include "graph.h"
#include "qwen_vl/qwen_vl.h"
#include <limits.h>
#include <math.h>
#include <stdlib.h>

/* ---- the resized size ---- */
/* x / factor, rounded half to even as Python does, times factor. rint uses the default rounding. */
static double nearest(int x, int factor) { return rint((double)x / factor) * factor; }

int sz_qwen_smart_resize(int height, int width, int factor, int64_t min_pixels, int64_t max_pixels,
                         int *out_height, int *out_width)
{
    if (height < 1 || width < 1)
        return sz_fail("an image of %d x %d (width x height) has no pixels", width, height);
    if (factor < 1 || min_pixels < 0 || max_pixels < 1)
        return sz_fail("image processor: factor %d, min_pixels %lld, max_pixels %lld", factor,
                       (long long)min_pixels, (long long)max_pixels);
    double longer = height > width ? height : width;
    double shorter = height > width ? width : height;
    if (longer / shorter > 200)
        return sz_fail("one side of an image of %d x %d (width x height) is more than 200 times "
                       "the other; resize=840x840 changes its shape (data.resize in training)",
                       width, height);

    /* Round both sides; where the area is then out of range, scale both sides to bring it back. */
    double h = nearest(height, factor);
    double w = nearest(width, factor);
    double area = (double)height * width;
    if (h * w > (double)max_pixels) {
        double beta = sqrt(area / (double)max_pixels);
        h = fmax(factor, floor(height / beta / factor) * factor);
        w = fmax(factor, floor(width / beta / factor) * factor);
    } else if (h * w < (double)min_pixels) {
        double beta = sqrt((double)min_pixels / area);
        h = ceil(height * beta / factor) * factor;
        w = ceil(width * beta / factor) * factor;
    }
    if (h < 1 || w < 1 || h > INT_MAX || w > INT_MAX)
        return sz_fail("an image of %d x %d (width x height) would be resized to %.0f x %.0f "
                       "(min_pixels is %lld)",
                       width, height, w, h, (long long)min_pixels);
    *out_height = (int)h;
    *out_width = (int)w;
    return 0;
}

/* ---- patches ---- */
typedef struct {
    int patch, temporal, merge;
    double scale, mean[3], std[3];
} patching;

static patching patching_of(int patch, int temporal, int merge, double scale, const double *mean,
                            const double *std)
{
    patching p = { .patch = patch, .temporal = temporal, .merge = merge, .scale = scale };
    memcpy(p.mean, mean, sizeof p.mean);
    memcpy(p.std, std, sizeof p.std);
    return p;
}

/* Where the rows of an image of this size go; NULL with a message. */
static float *rows_for(const patching *p, int width, int height, sz_tensor *out, int64_t first_row)
{
    if (p->patch < 1 || p->temporal < 1 || p->merge < 1 || p->patch > 1024 || p->temporal > 64 ||
        p->merge > 64)
        return sz_null("image processor: patch_size %d, temporal_patch_size %d, merge_size %d",
                       p->patch, p->temporal, p->merge);
    int block = p->patch * p->merge;
    if (width < 1 || height < 1 || width % block || height % block)
        return sz_null("an image of %d x %d is not a multiple of %d on both sides", width, height,
                       block);
    int64_t columns = (int64_t)3 * p->temporal * p->patch * p->patch;
    int64_t rows = (int64_t)(height / p->patch) * (width / p->patch);
    const bool right_shape = out && out->dtype == SZ_F32 && out->ndim == 2 &&
                             out->shape[1] == columns;
    if (!right_shape || first_row < 0 || first_row + rows > out->shape[0])
        return sz_null("pixel values must be f32 [%lld or more, %lld]",
                       (long long)(first_row + rows), (long long)columns);
    float *first = sz_tensor_data(out);
    return first ? first + first_row * columns : NULL;
}

/* Every byte of each channel as the number that the model reads. */
static int value_table(const patching *p, float value[3][256])
{
    for (int c = 0; c < 3; c++) {
        /* volatile keeps the compiler from joining the steps into one rounding. */
        volatile float m = (float)p->mean[c];
        volatile float s = (float)p->std[c];
        if (s == 0) return sz_fail("image processor: image_std[%d] is 0", c + 1);
        for (int v = 0; v < 256; v++) {
            volatile float x = (float)(v * p->scale);
            volatile float centered = x - m;
            value[c][v] = centered / s;
        }
    }
    return 0;
}

/* One patch -> row [3, temporal, patch, patch]. corner: its first pixel; a line has stride bytes.
 * */
static void put_patch(const patching *p, float value[3][256], const uint8_t *corner, size_t stride,
                      float *row)
{
    const size_t patch = (size_t)p->patch;
    const size_t temporal = (size_t)p->temporal;
    const size_t plane = patch * patch;
    for (size_t y = 0; y < patch; y++) {
        const uint8_t *q = corner + y * stride;
        for (size_t c = 0; c < 3; c++) {
            float *line = row + c * temporal * plane + y * patch;
            for (size_t x = 0; x < patch; x++) line[x] = value[c][q[3 * x + c]];
        }
    }
    /* The image is repeated along time. */
    for (size_t c = 0; c < 3; c++) {
        float *first = row + c * temporal * plane;
        for (size_t t = 1; t < temporal; t++)
            memcpy(first + t * plane, first, plane * sizeof *first);
    }
}

/* All patches of an image. Its sides are multiples of patch * merge: rows_for has checked. */
static int put_patches(const patching *p, sz_image *im, float *rows)
{
    float value[3][256];
    if (value_table(p, value) != 0) return -1;

    const uint8_t *pixels = sz_image_pixels(im);
    const int merge = p->merge;
    const int patch = p->patch;
    const int block = patch * merge;
    const int per_block = merge * merge;
    const int blocks_x = sz_image_width(im) / block;
    const int blocks = blocks_x * (sz_image_height(im) / block);
    const size_t stride = (size_t)sz_image_width(im) * 3;
    const size_t columns = 3 * (size_t)p->temporal * (size_t)patch * (size_t)patch;
#pragma omp parallel for if (blocks * per_block > 64)
    for (int b = 0; b < blocks; b++)
        for (int k = 0; k < per_block; k++) {
            int y0 = b / blocks_x * block + k / merge * patch;
            int x0 = b % blocks_x * block + k % merge * patch;
            const uint8_t *corner = pixels + (size_t)y0 * stride + (size_t)x0 * 3;
            size_t row = (size_t)b * (size_t)per_block + (size_t)k;
            put_patch(p, value, corner, stride, rows + row * columns);
        }
    return 0;
}

int sz_qwen_patches(sz_image *im, int patch, int temporal, int merge, double scale,
                    const double *mean, const double *std, sz_tensor *out, int64_t first_row)
{
    const patching p = patching_of(patch, temporal, merge, scale, mean, std);
    float *rows = rows_for(&p, sz_image_width(im), sz_image_height(im), out, first_row);
    return rows ? put_patches(&p, im, rows) : -1;
}

/* ---- the same in a background thread ---- */
typedef struct {
    char *name;     /* NULL: im is given */
    uint8_t *bytes; /* NULL: the file is read */
    size_t count;
    sz_image *im;      /* given, or read by the job */
    sz_image *resized; /* to size[2], size[3]; NULL where im has that size */
    int size[6], filter;
    patching how;
    sz_tensor *out;
    float *rows; /* in out */
} image_work;

static int image_read(image_work *w)
{
    if (!w->name) return 0;
    if (w->bytes) w->im = sz_image_load_bytes(w->bytes, w->count, w->name);
    else w->im = sz_image_load(w->name);
    free(w->bytes);
    w->bytes = NULL;
    return w->im ? 0 : -1;
}

static bool has_size(const sz_image *im, const int *size)
{
    return sz_image_width(im) == size[0] && sz_image_height(im) == size[1];
}

static int image_run(void *context)
{
    image_work *w = context;
    if (image_read(w) != 0) return -1;
    sz_image *im = w->im;
    if (!has_size(im, w->size))
        return sz_fail("the image has %d x %d pixels, not %d x %d", sz_image_width(im),
                       sz_image_height(im), w->size[0], w->size[1]);
    if (!has_size(im, w->size + 2)) {
        w->resized = sz_image_resize(im, w->size[2], w->size[3], 0);
        im = w->resized;
        if (!im) return -1;
    }
    if (has_size(im, w->size + 4)) return put_patches(&w->how, im, w->rows);
    sz_image *last = sz_image_resize(im, w->size[4], w->size[5], w->filter);
    int rc = last ? put_patches(&w->how, last, w->rows) : -1;
    sz_image_free(last);
    return rc;
}

static void image_dispose(void *context)
{
    image_work *w = context;
    sz_image_free(w->im);
    sz_image_free(w->resized);
    sz_tensor_release(w->out);
    free(w->bytes);
    free(w->name);
    free(w);
}

/* Copies the name and the bytes; false when memory is out. */
static bool copy_source(image_work *w, const sz_qwen_image_source *source)
{
    if (source->image) {
        w->im = sz_image_retain(source->image);
        return true;
    }
    w->name = strdup(source->name);
    if (!source->bytes) return w->name != NULL;
    w->count = source->count;
    w->bytes = malloc(w->count + 1);
    if (w->bytes) memcpy(w->bytes, source->bytes, w->count);
    return w->name && w->bytes;
}

sz_job *sz_qwen_image_start(const sz_qwen_image_source *source, const int *size, int filter,
                            int patch, int temporal, int merge, double scale, const double *mean,
                            const double *std, sz_tensor *out)
{
    const patching how = patching_of(patch, temporal, merge, scale, mean, std);
    float *rows = rows_for(&how, size[4], size[5], out, 0);
    if (!rows) return NULL;
    if (!out->storage)
        return sz_null("a background thread needs a tensor that outlives the step for an image's "
                       "patches");
    image_work *w = calloc(1, sizeof *w);
    if (!w) return sz_null("out of memory");
    if (!copy_source(w, source)) {
        image_dispose(w);
        return sz_null("out of memory");
    }
    memcpy(w->size, size, sizeof w->size);
    w->filter = filter;
    w->how = how;
    w->rows = rows;
    w->out = sz_tensor_retain(out);
    return sz_job_start(image_run, image_dispose, w, false);
}

sz_image *sz_qwen_image_take(sz_job *j)
{
    image_work *w = sz_job_context(j);
    if (!w->name) return NULL;
    sz_image *im = w->im;
    w->im = NULL;
    return im;
}

sz_image *sz_qwen_image_take_resized(sz_job *j)
{
    image_work *w = sz_job_context(j);
    sz_image *im = w->resized;
    w->resized = NULL;
    return im;
}

/* ---- position ids ---- */
/* Do the ids have the image tokens that the grids ask for, altogether? */
static int positions_check(const int32_t *ids, int64_t n, const int32_t *grids, int images,
                           int image_id, int merge)
{
    if (n < 0 || n > INT_MAX / 4 || images < 0 || merge < 1)
        return sz_fail("positions: %lld tokens, %d images, merge_size %d", (long long)n, images,
                       merge);
    int64_t found = 0;
    for (int64_t i = 0; i < n; i++) found += ids[i] == image_id;
    int64_t wanted = 0;
    for (int k = 0; k < images; k++) {
        const int32_t *g = grids + 3 * k;
        const bool divides = g[0] >= 1 && g[1] >= 1 && g[2] >= 1 && g[1] % merge == 0 &&
                             g[2] % merge == 0;
        if (!divides || (int64_t)g[0] * g[1] > INT_MAX || (int64_t)g[0] * g[1] * g[2] > INT_MAX)
            return sz_fail("image %d has grid %d x %d x %d, which merge_size %d does not divide",
                           k + 1, g[0], g[1], g[2], merge);
        wanted += (int64_t)g[0] * (g[1] / merge) * (g[2] / merge);
    }
    if (found != wanted)
        return sz_fail("the text has %lld image tokens, its %d images need %lld", (long long)found,
                       images, (long long)wanted);
    return 0;
}

static int32_t largest(int32_t a, int32_t b, int32_t c)
{
    int32_t most = a > b ? a : b;
    return most > c ? most : c;
}

sz_tensor *sz_qwen_positions(const int32_t *ids, int64_t n, const int32_t *grids, int images,
                             int image_id, int merge, int32_t *next)
{
    if (positions_check(ids, n, grids, images, image_id, merge) != 0) return NULL;
    sz_tensor *out = sz_new2(SZ_I32, 3, n, SZ_CPU);
    if (!out) return NULL;
    int32_t *t = sz_i32(out);
    int32_t *h = t + n;
    int32_t *w = h + n;
    int32_t base = 0; /* the next free position */
    int image = 0;
    for (int64_t i = 0; i < n;) {
        /* A text token has the same position on every axis. */
        if (ids[i] != image_id) {
            t[i] = h[i] = w[i] = base++;
            i++;
            continue;
        }
        /* An image's tokens are positioned in its merged grid, which starts at base. */
        const int32_t *g = grids + 3 * image++;
        int32_t frames = g[0];
        int32_t high = g[1] / merge;
        int32_t wide = g[2] / merge;
        int64_t count = (int64_t)frames * high * wide;
        for (int64_t k = 0; k < count; k++, i++) {
            if (i >= n || ids[i] != image_id) {
                sz_tensor_release(out);
                return sz_null("image %d needs %lld image tokens in a row, the text has %lld",
                               image, (long long)count, (long long)k);
            }
            t[i] = base + (int32_t)(k / ((int64_t)high * wide));
            h[i] = base + (int32_t)(k / wide % high);
            w[i] = base + (int32_t)(k % wide);
        }
        base += largest(frames, high, wide);
    }
    *next = base;
    return out;
}
