/* qwen_processor.c - the image processor of Qwen2-VL and Qwen2.5-VL: the size a picture gets, its patches, and the
 * three-axis position ids of a token sequence with pictures.
 *
 * Arithmetic follows the Pillow-based processor of transformers: x = f32(f64(u8) * scale), then (x - mean) / std in f32,
 * so values are equal to the last bit. Patch row order is in models.h. Leaves out the resize itself (runtime/io/resize.c),
 * video, and the messages (lua/segzero/processor.lua). */
#include "core.h"
#include "models.h"
#include <limits.h>
#include <math.h>

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

int sz_qwen_patches(sz_image *im, int patch, int temporal, int merge, double scale, const double *mean, const double *std,
                    sz_tensor *out, int64_t first_row)
{
    if (patch < 1 || temporal < 1 || merge < 1 || patch > 1024 || temporal > 64 || merge > 64)
        return sz_fail("image processor: patch_size %d, temporal_patch_size %d, merge_size %d", patch, temporal, merge);
    int width = sz_image_width(im), height = sz_image_height(im), block = patch * merge;
    if (width % block || height % block) return sz_fail("a picture of %d x %d is not a multiple of %d on both sides", width, height, block);
    int64_t columns = (int64_t)3 * temporal * patch * patch, rows = (int64_t)(height / patch) * (width / patch);
    if (!out || out->dtype != SZ_F32 || out->ndim != 2 || out->shape[1] != columns || first_row < 0 || first_row + rows > out->shape[0])
        return sz_fail("pixel values must be f32 [%lld or more, %lld]", (long long)(first_row + rows), (long long)columns);
    float *to = sz_tensor_data(out);
    if (!to) return -1;

    float value[3][256];
    for (int c = 0; c < 3; c++) {
        /* volatile keeps the compiler from joining the steps into one rounding. */
        volatile float m = (float)mean[c], s = (float)std[c];
        if (s == 0) return sz_fail("image processor: image_std[%d] is 0", c + 1);
        for (int v = 0; v < 256; v++) {
            volatile float x = (float)(v * scale);
            volatile float centered = x - m;
            value[c][v] = centered / s;
        }
    }

    const uint8_t *pixels = sz_image_pixels(im);
    int blocks_x = width / block, blocks = blocks_x * (height / block);
    size_t plane = (size_t)patch * (size_t)patch;
    #pragma omp parallel for if (rows > 64)
    for (int b = 0; b < blocks; b++) {
        for (int k = 0; k < merge * merge; k++) {
            int y0 = b / blocks_x * block + k / merge * patch, x0 = b % blocks_x * block + k % merge * patch;
            float *row = to + (size_t)(first_row + (int64_t)b * merge * merge + k) * (size_t)columns;
            for (int y = 0; y < patch; y++) {
                const uint8_t *p = pixels + ((size_t)(y0 + y) * (size_t)width + (size_t)x0) * 3;
                for (int c = 0; c < 3; c++) {
                    float *line = row + (size_t)c * (size_t)temporal * plane + (size_t)y * (size_t)patch;
                    for (int x = 0; x < patch; x++) line[x] = value[c][p[3 * x + c]];
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
