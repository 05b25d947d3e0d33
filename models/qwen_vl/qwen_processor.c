/* qwen_processor.c - the image processor of Qwen2-VL and Qwen2.5-VL: the size a picture gets, its patches, and the
 * three-axis position ids of a token sequence with pictures.
 *
 * Arithmetic follows the Pillow-based processor of transformers: x = f32(f64(u8) * scale), then (x - mean) / std in f32,
 * so values are equal to the last bit. Patch row order is in models.h. A picture can also be
 * read, resized and cut by a thread beside the main one (runtime/io/jobs.c): the same functions, the same bits. Leaves out the resize itself (runtime/io/resize.c),
 * video, and the messages (lua/segzero/models/processor.lua). */
#include "graph.h"
#include "io/io.h"
#include "models.h"
#include <limits.h>
#include <math.h>
#include <stdlib.h>

/* x / factor, rounded half to even as Python does, times factor; rint uses the default rounding mode. */
static double nearest(int x, int factor) { return rint((double)x / factor) * factor; }

int sz_qwen_smart_resize(int height, int width, int factor, int64_t min_pixels, int64_t max_pixels, int *out_height, int *out_width)
{
    if (height < 1 || width < 1) return sz_fail("a picture of %d x %d (width x height) has no pixels", width, height);
    if (factor < 1 || min_pixels < 0 || max_pixels < 1)
        return sz_fail("image processor: factor %d, min_pixels %lld, max_pixels %lld", factor, (long long)min_pixels, (long long)max_pixels);
    double longer = height > width ? height : width, shorter = height > width ? width : height;
    if (longer / shorter > 200) return sz_fail("a picture of %d x %d (width x height) is more than 200 times longer than wide", width, height);
    double h = nearest(height, factor), w = nearest(width, factor), area = (double)height * width;
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
        return sz_fail("a picture of %d x %d (width x height) would be resized to %.0f x %.0f (min_pixels is %lld)", width, height, w, h, (long long)min_pixels);
    *out_height = (int)h;
    *out_width = (int)w;
    return 0;
}

typedef struct {
    int patch, temporal, merge;
    double scale, mean[3], std[3];
} patching;

/* Where the rows of a picture of this size go; NULL with a message. */
static float *rows_for(const patching *p, int width, int height, sz_tensor *out, int64_t first_row)
{
    if (p->patch < 1 || p->temporal < 1 || p->merge < 1 || p->patch > 1024 || p->temporal > 64 || p->merge > 64)
        return sz_null("image processor: patch_size %d, temporal_patch_size %d, merge_size %d", p->patch, p->temporal, p->merge);
    int block = p->patch * p->merge;
    if (width < 1 || height < 1 || width % block || height % block)
        return sz_null("a picture of %d x %d is not a multiple of %d on both sides", width, height, block);
    int64_t columns = (int64_t)3 * p->temporal * p->patch * p->patch, rows = (int64_t)(height / p->patch) * (width / p->patch);
    if (!out || out->dtype != SZ_F32 || out->ndim != 2 || out->shape[1] != columns || first_row < 0 || first_row + rows > out->shape[0])
        return sz_null("pixel values must be f32 [%lld or more, %lld]", (long long)(first_row + rows), (long long)columns);
    float *to = sz_tensor_data(out);
    return to ? to + first_row * columns : NULL;
}

/* Sides are multiples of patch * merge (rows_for has looked). */
static int cut(const patching *p, sz_image *im, float *to)
{
    const int patch = p->patch, temporal = p->temporal, merge = p->merge, block = patch * merge;
    float value[3][256];
    for (int c = 0; c < 3; c++) {
        /* volatile keeps the compiler from joining the steps into one rounding. */
        volatile float m = (float)p->mean[c], s = (float)p->std[c];
        if (s == 0) return sz_fail("image processor: image_std[%d] is 0", c + 1);
        for (int v = 0; v < 256; v++) {
            volatile float x = (float)(v * p->scale);
            volatile float centered = x - m;
            value[c][v] = centered / s;
        }
    }

    const uint8_t *pixels = sz_image_pixels(im);
    int width = sz_image_width(im), blocks_x = width / block, blocks = blocks_x * (sz_image_height(im) / block);
    size_t plane = (size_t)patch * (size_t)patch, columns = 3 * (size_t)temporal * plane;
    #pragma omp parallel for if (blocks * merge * merge > 64)
    for (int b = 0; b < blocks; b++) {
        for (int k = 0; k < merge * merge; k++) {
            int y0 = b / blocks_x * block + k / merge * patch, x0 = b % blocks_x * block + k % merge * patch;
            float *row = to + ((size_t)b * (size_t)(merge * merge) + (size_t)k) * columns;
            for (int y = 0; y < patch; y++) {
                const uint8_t *q = pixels + ((size_t)(y0 + y) * (size_t)width + (size_t)x0) * 3;
                for (int c = 0; c < 3; c++) {
                    float *line = row + (size_t)c * (size_t)temporal * plane + (size_t)y * (size_t)patch;
                    for (int x = 0; x < patch; x++) line[x] = value[c][q[3 * x + c]];
                }
            }
            for (int c = 0; c < 3; c++)
                for (int t = 1; t < temporal; t++) {
                    float *first = row + (size_t)c * (size_t)temporal * plane;
                    memcpy(first + (size_t)t * plane, first, plane * sizeof *first);
                }
        }
    }
    return 0;
}

int sz_qwen_patches(sz_image *im, int patch, int temporal, int merge, double scale, const double *mean, const double *std,
                    sz_tensor *out, int64_t first_row)
{
    const patching p = { patch, temporal, merge, scale, { mean[0], mean[1], mean[2] }, { std[0], std[1], std[2] } };
    float *to = rows_for(&p, sz_image_width(im), sz_image_height(im), out, first_row);
    return to ? cut(&p, im, to) : -1;
}

/* ---- the same ahead of the step ---- */
typedef struct {
    char *path;                 /* NULL: im is given */
    sz_image *im;               /* given, or read by the job */
    int size[4], filter;
    patching how;
    sz_tensor *out;
    float *to;
} picture_work;

static int picture_run(void *context)
{
    picture_work *w = context;
    if (w->path && !(w->im = sz_image_load(w->path))) return -1;
    if (sz_image_width(w->im) != w->size[0] || sz_image_height(w->im) != w->size[1])
        return sz_fail("the picture has %d x %d pixels, not %d x %d", sz_image_width(w->im), sz_image_height(w->im), w->size[0], w->size[1]);
    if (w->size[0] == w->size[2] && w->size[1] == w->size[3]) return cut(&w->how, w->im, w->to);
    sz_image *small = sz_image_resize(w->im, w->size[2], w->size[3], w->filter);
    int rc = small ? cut(&w->how, small, w->to) : -1;
    sz_image_free(small);
    return rc;
}

static void picture_dispose(void *context)
{
    picture_work *w = context;
    sz_image_free(w->im);
    sz_tensor_release(w->out);
    free(w->path);
    free(w);
}

sz_job *sz_qwen_image_start(const char *path, sz_image *im, const int *size, int filter, int patch, int temporal, int merge,
                              double scale, const double *mean, const double *std, sz_tensor *out)
{
    const patching how = { patch, temporal, merge, scale, { mean[0], mean[1], mean[2] }, { std[0], std[1], std[2] } };
    float *to = rows_for(&how, size[2], size[3], out, 0);
    if (!to) return NULL;
    if (!out->storage) return sz_null("a picture that is cut by another thread needs a tensor that outlives the step");
    picture_work *w = calloc(1, sizeof *w);
    if (!w || (path && !(w->path = strdup(path)))) {
        free(w);
        return sz_null("out of memory");
    }
    memcpy(w->size, size, sizeof w->size);
    w->filter = filter;
    w->how = how;
    w->to = to;
    w->out = sz_tensor_retain(out);
    if (!path) {
        w->im = im;
        im->refs++;
    }
    return sz_job_start(picture_run, picture_dispose, w, false);
}

sz_image *sz_qwen_image_take(sz_job *j)
{
    picture_work *w = sz_job_context(j);
    sz_image *im = w->path ? w->im : NULL;
    if (w->path) w->im = NULL;
    return im;
}

sz_tensor *sz_qwen_positions(const int32_t *ids, int64_t n, const int32_t *grids, int pictures, int image_id, int merge, int32_t *next)
{
    if (n < 0 || n > INT_MAX / 4 || pictures < 0 || merge < 1) return sz_null("positions: %lld tokens, %d pictures, merge_size %d", (long long)n, pictures, merge);
    int64_t found = 0, wanted = 0;
    for (int64_t i = 0; i < n; i++) found += ids[i] == image_id;
    for (int k = 0; k < pictures; k++) {
        const int32_t *g = grids + 3 * k;
        if (g[0] < 1 || g[1] < 1 || g[2] < 1 || g[1] % merge || g[2] % merge || (int64_t)g[0] * g[1] > INT_MAX || (int64_t)g[0] * g[1] * g[2] > INT_MAX)
            return sz_null("picture %d has grid %d x %d x %d, which merge_size %d does not divide", k + 1, g[0], g[1], g[2], merge);
        wanted += (int64_t)g[0] * (g[1] / merge) * (g[2] / merge);
    }
    if (found != wanted) return sz_null("the text has %lld picture tokens, its %d pictures need %lld", (long long)found, pictures, (long long)wanted);

    sz_tensor *out = sz_new2(SZ_I32, 3, n, SZ_CPU);
    if (!out) return NULL;
    int32_t *t = sz_i32(out), *h = t + n, *w = h + n, base = 0;
    int picture = 0;
    for (int64_t i = 0; i < n;) {
        if (ids[i] != image_id) {
            t[i] = h[i] = w[i] = base++;
            i++;
            continue;
        }
        const int32_t *g = grids + 3 * picture++;
        int32_t frames = g[0], high = g[1] / merge, wide = g[2] / merge;
        int64_t count = (int64_t)frames * high * wide;
        for (int64_t k = 0; k < count; k++, i++) {
            if (i >= n || ids[i] != image_id) {
                sz_tensor_release(out);
                return sz_null("picture %d needs %lld picture tokens in a row, the text has %lld", picture, (long long)count, (long long)k);
            }
            t[i] = base + (int32_t)(k / ((int64_t)high * wide));
            h[i] = base + (int32_t)(k / wide % high);
            w[i] = base + (int32_t)(k % wide);
        }
        int32_t most = frames > high ? frames : high;
        base += most > wide ? most : wide;
    }
    *next = base;
    return out;
}
