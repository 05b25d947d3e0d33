/* image.c - images in and out: PNG, JPEG, BMP, GIF, PNM by stb_image, WebP by libwebp -> 8-bit RGB
 * [h, w, 3].
 *
 * The content decides the format, because file names are often wrong. Colours are those of Pillow's
 * convert("RGB"): alpha is dropped, grey repeated, palettes looked up, 16-bit colour reduced to its
 * high byte, 16-bit grey clipped at 255. Of an animated GIF the first frame is read. JPEG pixels
 * may differ from libjpeg's by a few levels, because decoders round differently.
 * Leaves out: colour profiles and EXIF rotation (Pillow's convert ignores them too), animated WebP.
 */
#include "io.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>
#include <webp/decode.h>

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wunused-parameter"
#pragma GCC diagnostic ignored "-Wunused-but-set-variable"
#pragma GCC diagnostic ignored "-Wsign-compare"
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"
#pragma GCC diagnostic ignored "-Wshadow"
#pragma GCC diagnostic ignored "-Wtype-limits"
#pragma GCC diagnostic ignored "-Wimplicit-fallthrough"
#pragma GCC diagnostic ignored "-Wstringop-overflow"
/* stb_image_write shifts bits out of an int, which C leaves undefined and UBSan reports. */
#if !defined(__clang__)
#pragma GCC push_options
#pragma GCC optimize("wrapv")
#endif
#define STB_IMAGE_IMPLEMENTATION
#define STBI_ONLY_PNG
#define STBI_ONLY_JPEG
#define STBI_ONLY_BMP
#define STBI_ONLY_GIF
#define STBI_ONLY_PNM
#define STBI_NO_LINEAR
#define STBI_NO_HDR
#include <stb/stb_image.h>
#define STB_IMAGE_WRITE_IMPLEMENTATION
#define STBI_WRITE_NO_STDIO
#include <stb/stb_image_write.h>
#pragma GCC diagnostic pop
#if !defined(__clang__)
#pragma GCC pop_options
#endif

/* The same figure as Pillow's limit against decompression bombs; also keeps width * 3 inside int.
 */
static const int64_t MAX_PIXELS = 2 * 89478485LL;
static const size_t MAX_FILE = (size_t)1 << 30;

enum format { UNKNOWN, PNG, JPEG, WEBP, OTHER };

static bool starts_with(const uint8_t *p, size_t n, const char *magic)
{
    size_t length = strlen(magic);
    return n >= length && memcmp(p, magic, length) == 0;
}

/* The format that the first bytes of a file show. */
static enum format sniff(const uint8_t *p, size_t n)
{
    if (starts_with(p, n, "\x89PNG\r\n\x1a\n")) return PNG;
    if (starts_with(p, n, "\xff\xd8\xff")) return JPEG;
    if (n >= 12 && starts_with(p, n, "RIFF") && !memcmp(p + 8, "WEBP", 4)) return WEBP;
    if (starts_with(p, n, "GIF87a") || starts_with(p, n, "GIF89a")) return OTHER;
    if (n >= 6 && starts_with(p, n, "BM")) return OTHER;
    if (n >= 3 && (starts_with(p, n, "P5") || starts_with(p, n, "P6"))) return OTHER;
    return UNKNOWN;
}

int sz_image_check_size(const char *path, int64_t w, int64_t h)
{
    long long width = w;
    long long height = h;
    if (w < 1 || h < 1) return sz_fail("%s: size %lld x %lld is not positive", path, width, height);
    if (w > MAX_PIXELS / h)
        return sz_fail("%s: %lld x %lld is over the limit of %lld pixels", path, width, height,
                       (long long)MAX_PIXELS);
    return 0;
}

/* ---- damaged files ---- */

static int64_t big_endian32(const uint8_t *p)
{
    return (int64_t)p[0] << 24 | p[1] << 16 | p[2] << 8 | p[3];
}

/* stb_image reports a PNG of very large size as an unknown format, so its header is read here
 * first. */
static int check_png_header(const char *path, const uint8_t *p, size_t n)
{
    if (n < 24) return sz_fail("%s: the PNG header is cut off", path);
    return sz_image_check_size(path, big_endian32(p + 16), big_endian32(p + 20));
}

/* Whether Huffman tables have at most 256 codes each: stb_image 2.28 writes past its arrays if a
 * file claims more. */
static bool jpeg_tables_fit(const uint8_t *p, size_t n)
{
    while (n > 0) {
        if (n < 17) return false;
        size_t codes = 0;
        for (int i = 1; i <= 16; i++) codes += p[i];
        if (codes > 256 || codes > n - 17) return false;
        p += 17 + codes;
        n -= 17 + codes;
    }
    return true;
}

/* stb_image fills what a truncated JPEG lacks with grey and reports success, so the markers are
 * checked first: the file is whole if an end-of-image marker follows the scans. Returns NULL, or
 * what is wrong. */
static const char *jpeg_fault(const uint8_t *p, size_t n)
{
    size_t i = 2;
    bool in_scan = false;
    while (i + 1 < n) {
        /* Skip to the next marker. */
        if (p[i] != 0xff || p[i + 1] == 0xff) {
            i++;
            continue;
        }
        uint8_t marker = p[i + 1];
        i += 2;
        if (marker == 0xd9 && in_scan) return NULL;
        if (marker < 2 || (marker >= 0xd0 && marker <= 0xd9)) continue;

        /* Skip its segment. */
        size_t length = n - i < 2 ? 0 : (size_t)p[i] << 8 | p[i + 1];
        if (length < 2 || length > n - i) break;
        if (marker == 0xc4 && !jpeg_tables_fit(p + i + 2, length - 2))
            return "a Huffman table is damaged";
        i += length;
        if (marker == 0xda) in_scan = true;
    }
    return "the JPEG data is cut off";
}

/* ---- reading ---- */

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

static sz_image *load_webp(const char *path, const uint8_t *bytes, size_t len)
{
    /* The header. */
    WebPBitstreamFeatures f;
    if (WebPGetFeatures(bytes, len, &f) != VP8_STATUS_OK)
        return sz_null("%s: the WebP header is damaged or cut off", path);
    if (f.has_animation) return sz_null("%s: animated WebP is not supported", path);
    if (sz_image_check_size(path, f.width, f.height) != 0) return NULL;

    /* The pixels. */
    sz_image *im = sz_image_new(f.width, f.height);
    if (!im) return NULL;
    size_t size = (size_t)f.width * (size_t)f.height * 3;
    if (!WebPDecodeRGBInto(bytes, len, im->pixels, size, f.width * 3)) {
        sz_image_free(im);
        return sz_null("%s: the WebP data is damaged or cut off", path);
    }
    return im;
}

static sz_image *decode_failed(const char *path)
{
    return sz_null("%s: cannot decode the image: %s", path, stbi_failure_reason());
}

/* 16-bit grey, clipped at 255 as Pillow does. */
static sz_image *load_grey16(const char *path, const uint8_t *bytes, int len)
{
    int w, h, channels;
    uint16_t *grey = stbi_load_16_from_memory(bytes, len, &w, &h, &channels, 1);
    if (!grey) return decode_failed(path);
    sz_image *im = sz_image_new(w, h);
    for (size_t i = 0; im && i < (size_t)w * (size_t)h; i++)
        memset(im->pixels + 3 * i, grey[i] > 255 ? 255 : grey[i], 3);
    free(grey);
    return im;
}

/* What stb_image reads; the header is checked before anything is decoded. */
static sz_image *load_stb(const char *path, enum format format, const uint8_t *bytes, size_t len)
{
    int n = (int)len;
    int w, h, channels;
    if (format == PNG && check_png_header(path, bytes, len) != 0) return NULL;
    if (!stbi_info_from_memory(bytes, n, &w, &h, &channels))
        return sz_null("%s: the image header is damaged or cut off", path);
    if (sz_image_check_size(path, w, h) != 0) return NULL;
    const char *fault = format == JPEG ? jpeg_fault(bytes, len) : NULL;
    if (fault) return sz_null("%s: %s", path, fault);

    /* Decode. */
    if (format == PNG && channels == 1 && stbi_is_16_bit_from_memory(bytes, n))
        return load_grey16(path, bytes, n);
    uint8_t *pixels = stbi_load_from_memory(bytes, n, &w, &h, &channels, 3);
    return pixels ? wrap(w, h, pixels) : decode_failed(path);
}

static int unknown_format(const char *path)
{
    return sz_fail("%s: not an image in a known format (PNG, JPEG, WebP, BMP, GIF, PNM)", path);
}

sz_image *sz_image_load(const char *path)
{
    size_t len;
    uint8_t *bytes = sz_io_read(path, MAX_FILE, &len);
    if (!bytes) return NULL;

    enum format format = sniff(bytes, len);
    sz_image *im = NULL;
    if (format == UNKNOWN) unknown_format(path);
    else if (format == WEBP) im = load_webp(path, bytes, len);
    else im = load_stb(path, format, bytes, len);
    free(bytes);
    return im;
}

/* The size in the header of an open file whose first n bytes are in head. */
static int size_of_file(FILE *f, const char *path, const uint8_t *head, size_t n, int *width,
                        int *height)
{
    if (n == 0) return sz_fail("%s: the file is empty", path);
    enum format format = sniff(head, n);
    int channels;
    if (format == UNKNOWN) return unknown_format(path);

    /* WebP, then what stb_image reads. */
    if (format == WEBP) {
        if (!WebPGetInfo(head, n, width, height))
            return sz_fail("%s: the WebP header is damaged or cut off", path);
        return sz_image_check_size(path, *width, *height);
    }
    if (format == PNG && check_png_header(path, head, n) != 0) return -1;
    rewind(f);
    if (!stbi_info_from_file(f, width, height, &channels))
        return sz_fail("%s: the image header is damaged or cut off", path);
    return sz_image_check_size(path, *width, *height);
}

int sz_image_size(const char *path, int *width, int *height)
{
    uint8_t head[64];
    FILE *f = fopen(path, "rb");
    if (!f) return sz_fail("%s: %s", path, strerror(errno));
    size_t n = fread(head, 1, sizeof head, f);
    int rc = size_of_file(f, path, head, n, width, height);
    fclose(f);
    return rc;
}

sz_image *sz_image_new(int width, int height)
{
    if (sz_image_check_size("new image", width, height) != 0) return NULL;
    uint8_t *pixels = calloc((size_t)width * (size_t)height, 3);
    if (!pixels) return sz_null("out of memory for an image of %d x %d", width, height);
    return wrap(width, height, pixels);
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

/* ---- writing ---- */

enum { JPEG_QUALITY = 92 };

typedef struct {
    sz_writer file;
    int failed;
} sink;

static void sink_put(void *context, void *bytes, int n)
{
    sink *s = context;
    if (!s->failed) s->failed = sz_writer_put(&s->file, bytes, (size_t)n);
}

static int write_image(const char *path, enum format format, int w, int h, int channels,
                       const uint8_t *pixels)
{
    sink s = { .failed = 0 };
    if (sz_image_check_size(path, w, h) != 0 || sz_writer_open(&s.file, path) != 0) return -1;

    /* After a failed write the writer has cleaned up by itself. */
    int ok;
    if (format == JPEG)
        ok = stbi_write_jpg_to_func(sink_put, &s, w, h, channels, pixels, JPEG_QUALITY);
    else ok = stbi_write_png_to_func(sink_put, &s, w, h, channels, pixels, w * channels);
    if (s.failed) return -1;
    if (!ok) {
        sz_writer_abort(&s.file);
        return sz_fail("%s: cannot encode an image of %d x %d", path, w, h);
    }
    return sz_writer_commit(&s.file);
}

int sz_image_save(const sz_image *im, const char *path)
{
    const char *dot = strrchr(path, '.');
    enum format format = UNKNOWN;
    if (dot && !strcasecmp(dot, ".png")) format = PNG;
    if (dot && (!strcasecmp(dot, ".jpg") || !strcasecmp(dot, ".jpeg"))) format = JPEG;
    if (format == UNKNOWN) return sz_fail("%s: images are saved as .png, .jpg or .jpeg", path);
    return write_image(path, format, im->width, im->height, 3, im->pixels);
}

int sz_image_write_png(const char *path, int width, int height, int channels, const uint8_t *pixels)
{
    if (channels != 1 && channels != 3)
        return sz_fail("%s: %d channels; a PNG is written with 1 or 3", path, channels);
    return write_image(path, PNG, width, height, channels, pixels);
}
