/* image.c - images in memory (8-bit RGB [h, w, 3]): made, read from a file, saved.
 *
 * The content decides the format of a file, because file names are often wrong. Pixels are those
 * of transformers 5's processors: turned as EXIF says, and RGB as rows.c makes it. Of an animation
 * the first frame is read.
 * Leaves out: colour profiles; the formats (png.c, jpeg.c, ...).
 */
#include "image.h"
#include <stdlib.h>
#include <strings.h>

/* An image of these pixels, which it owns from now on. */
static sz_image *wrap(int w, int h, uint8_t *pixels)
{
    sz_image *im = malloc(sizeof *im);
    if (!im) {
        free(pixels);
        return sz_null("out of memory");
    }
    *im = (sz_image){ 1, w, h, pixels };
    return im;
}

sz_image *sz_image_new(int width, int height)
{
    if (sz_image_check_size("new image", width, height) != 0) return NULL;
    uint8_t *pixels = calloc((size_t)width * (size_t)height, 3);
    if (!pixels) return sz_null("out of memory for an image of %d x %d", width, height);
    return wrap(width, height, pixels);
}

sz_image *sz_image_retain(sz_image *im)
{
    im->refs++;
    return im;
}

void sz_image_free(sz_image *im)
{
    if (!im || --im->refs > 0) return;
    free(im->pixels);
    free(im);
}

int sz_image_width(const sz_image *im) { return im->width; }
int sz_image_height(const sz_image *im) { return im->height; }
uint8_t *sz_image_pixels(sz_image *im) { return im->pixels; }

/* ---- reading ---- */

sz_image *sz_image_decode(const sz_source *b)
{
    sz_size size;
    sz_rgb_target rgb = sz_rgb_target_new();
    const sz_format *format = sz_format_find(b);
    if (!format || sz_format_size(format, b, &size) != 0) return NULL;
    if (format->decode(b, &rgb.rows) != 0) {
        sz_image_free(rgb.image);
        return NULL;
    }

    /* Turn it upright. */
    sz_image *im = rgb.image;
    im->pixels = sz_exif_turn(im->pixels, &im->width, &im->height, 3, size.orientation);
    if (im->pixels) return im;
    sz_image_free(im);
    return NULL;
}

sz_image *sz_image_load(const char *path)
{
    sz_source b = { .path = path };
    uint8_t *memory = sz_io_read(path, SZ_IMAGE_MAX_FILE, &b.size);
    if (!memory) return NULL;
    b.memory = memory;
    sz_image *im = sz_image_decode(&b);
    free(memory);
    return im;
}

sz_image *sz_image_load_bytes(const uint8_t *bytes, size_t n, const char *name)
{
    if (sz_image_check_bytes(n, name) != 0) return NULL;
    sz_source b = { .path = name, .memory = bytes, .size = n };
    return sz_image_decode(&b);
}

/* ---- writing ---- */

int sz_image_save(const sz_image *im, const char *path)
{
    const char *dot = strrchr(path, '.');
    if (dot && !strcasecmp(dot, ".png"))
        return sz_png_write(path, im->width, im->height, 3, im->pixels);
    if (dot && (!strcasecmp(dot, ".jpg") || !strcasecmp(dot, ".jpeg")))
        return sz_jpeg_write(path, im->width, im->height, im->pixels);
    return sz_fail("%s: images are saved as .png, .jpg or .jpeg", path);
}

int sz_image_write_png(const char *path, int width, int height, int channels, const uint8_t *pixels)
{
    if (channels != 1 && channels != 3)
        return sz_fail("%s: %d channels; a PNG is written with 1 or 3", path, channels);
    if (sz_image_check_size(path, width, height) != 0) return -1;
    return sz_png_write(path, width, height, channels, pixels);
}
