/* image.c - pictures in and out: PNG, JPEG, BMP, GIF, PNM by stb_image, WebP by libwebp -> 8-bit RGB [h, w, 3].
 *
 * The format is read from the content; names of picture files lie. Colours are those of Pillow's convert("RGB"): alpha is
 * dropped, grey repeated, palettes looked up, 16-bit colour cut to its high byte, 16-bit grey clipped at 255. Of an
 * animated GIF the first frame is taken. Leaves out colour profiles and EXIF rotation (Pillow's convert ignores them
 * too) and animated WebP. JPEG pixels may differ from libjpeg's by a few levels: decoders round differently. */
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

/* The same figure as Pillow's refusal of decompression bombs; also keeps width * 3 inside int. */
static const int64_t MAX_PIXELS = 2 * 89478485LL;
static const size_t MAX_FILE = (size_t)1 << 30;

enum format { UNKNOWN, PNG, JPEG, WEBP, OTHER };

static enum format sniff(const uint8_t *p, size_t n)
{
    if (n >= 8 && !memcmp(p, "\x89PNG\r\n\x1a\n", 8)) return PNG;
    if (n >= 3 && p[0] == 0xff && p[1] == 0xd8 && p[2] == 0xff) return JPEG;
    if (n >= 12 && !memcmp(p, "RIFF", 4) && !memcmp(p + 8, "WEBP", 4)) return WEBP;
    if (n >= 6 && (!memcmp(p, "GIF87a", 6) || !memcmp(p, "GIF89a", 6) || !memcmp(p, "BM", 2))) return OTHER;
    if (n >= 3 && p[0] == 'P' && (p[1] == '5' || p[1] == '6')) return OTHER;
    return UNKNOWN;
}

int sz_image_check_size(const char *path, int64_t w, int64_t h)
{
    if (w < 1 || h < 1) return sz_fail("%s: size %lld x %lld is not positive", path, (long long)w, (long long)h);
    if (w > MAX_PIXELS / h) return sz_fail("%s: %lld x %lld is over the limit of %lld pixels", path, (long long)w, (long long)h, (long long)MAX_PIXELS);
    return 0;
}

/* stb_image takes a PNG with a very large size for an unknown format; its header is read here first. */
static int check_png_header(const char *path, const uint8_t *p, size_t n)
{
    if (n < 24) return sz_fail("%s: the PNG header is cut off", path);
    int64_t w = (int64_t)p[16] << 24 | p[17] << 16 | p[18] << 8 | p[19], h = (int64_t)p[20] << 24 | p[21] << 16 | p[22] << 8 | p[23];
    return sz_image_check_size(path, w, h);
}

/* Huffman tables of at most 256 codes each: stb_image 2.28 writes past its arrays when a file claims more. */
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

/* stb_image fills what a cut-off JPEG lacks with grey and reports success, so the markers are walked first: the file is
 * whole when an end-of-image marker follows the scans. NULL, or what is wrong. */
static const char *jpeg_fault(const uint8_t *p, size_t n)
{
    size_t i = 2;
    bool in_scan = false;
    while (i + 1 < n) {
        if (p[i] != 0xff || p[i + 1] == 0xff) { i++; continue; }
        uint8_t marker = p[i + 1];
        i += 2;
        if (marker == 0xd9 && in_scan) return NULL;
        if (marker < 2 || (marker >= 0xd0 && marker <= 0xd9)) continue;
        size_t length = n - i < 2 ? 0 : (size_t)p[i] << 8 | p[i + 1];
        if (length < 2 || length > n - i) break;
        if (marker == 0xc4 && !jpeg_tables_fit(p + i + 2, length - 2)) return "a Huffman table is damaged";
        i += length;
        if (marker == 0xda) in_scan = true;
    }
    return "the JPEG data is cut off";
}

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
    WebPBitstreamFeatures f;
    if (WebPGetFeatures(bytes, len, &f) != VP8_STATUS_OK) return sz_null("%s: the WebP header is damaged or cut off", path);
    if (f.has_animation) return sz_null("%s: animated WebP is not handled", path);
    if (sz_image_check_size(path, f.width, f.height) != 0) return NULL;
    sz_image *im = sz_image_new(f.width, f.height);
    if (!im) return NULL;
    size_t size = (size_t)f.width * (size_t)f.height * 3;
    if (!WebPDecodeRGBInto(bytes, len, im->pixels, size, f.width * 3)) {
        sz_image_free(im);
        return sz_null("%s: the WebP data is damaged or cut off", path);
    }
    return im;
}

sz_image *sz_image_load(const char *path)
{
    size_t len;
    uint8_t *bytes = sz_io_read(path, MAX_FILE, &len), *pixels = NULL;
    if (!bytes) return NULL;
    enum format format = sniff(bytes, len);
    sz_image *im = NULL;
    int w, h, channels, n = (int)len;
    const char *fault;
    if (format == UNKNOWN) {
        sz_fail("%s: not a picture in a known format (PNG, JPEG, WebP, BMP, GIF, PNM)", path);
    } else if (format == WEBP) {
        im = load_webp(path, bytes, len);
    } else if (format == PNG && check_png_header(path, bytes, len) != 0) {
        /* the message is set */
    } else if (!stbi_info_from_memory(bytes, n, &w, &h, &channels)) {
        sz_fail("%s: the picture's header is damaged or cut off", path);
    } else if (sz_image_check_size(path, w, h) != 0) {
        /* the message is set */
    } else if (format == JPEG && (fault = jpeg_fault(bytes, len))) {
        sz_fail("%s: %s", path, fault);
    } else if (format == PNG && channels == 1 && stbi_is_16_bit_from_memory(bytes, n)) {
        uint16_t *grey = stbi_load_16_from_memory(bytes, n, &w, &h, &channels, 1);
        if (!grey) sz_fail("%s: cannot decode the picture: %s", path, stbi_failure_reason());
        else if ((im = sz_image_new(w, h)))
            for (size_t i = 0; i < (size_t)w * (size_t)h; i++)
                memset(im->pixels + 3 * i, grey[i] > 255 ? 255 : grey[i], 3);
        free(grey);
    } else if (!(pixels = stbi_load_from_memory(bytes, n, &w, &h, &channels, 3))) {
        sz_fail("%s: cannot decode the picture: %s", path, stbi_failure_reason());
    } else {
        im = wrap(w, h, pixels);
    }
    free(bytes);
    return im;
}

int sz_image_size(const char *path, int *width, int *height)
{
    uint8_t head[64];
    FILE *f = fopen(path, "rb");
    if (!f) return sz_fail("%s: %s", path, strerror(errno));
    size_t n = fread(head, 1, sizeof head, f);
    enum format format = sniff(head, n);
    int channels, ok = -1;
    if (n == 0) sz_fail("%s: the file is empty", path);
    else if (format == UNKNOWN) sz_fail("%s: not a picture in a known format (PNG, JPEG, WebP, BMP, GIF, PNM)", path);
    else if (format == WEBP && !WebPGetInfo(head, n, width, height)) sz_fail("%s: the WebP header is damaged or cut off", path);
    else if (format == PNG && check_png_header(path, head, n) != 0) { /* the message is set */ }
    else if (format != WEBP && (rewind(f), !stbi_info_from_file(f, width, height, &channels)))
        sz_fail("%s: the picture's header is damaged or cut off", path);
    else ok = sz_image_check_size(path, *width, *height);
    fclose(f);
    return ok;
}

sz_image *sz_image_new(int width, int height)
{
    if (sz_image_check_size("new picture", width, height) != 0) return NULL;
    uint8_t *pixels = calloc((size_t)width * (size_t)height, 3);
    return pixels ? wrap(width, height, pixels) : sz_null("out of memory for a picture of %d x %d", width, height);
}

void sz_image_free(sz_image *im)
{
    if (!im || --im->refs > 0) return;
    free(im->pixels);
    free(im);
}

int      sz_image_width(const sz_image *im) { return im->width; }
int      sz_image_height(const sz_image *im) { return im->height; }
uint8_t *sz_image_pixels(sz_image *im) { return im->pixels; }

/* ---- writing ---- */
typedef struct { sz_writer file; int failed; } sink;

static void sink_put(void *context, void *bytes, int n)
{
    sink *s = context;
    if (!s->failed) s->failed = sz_writer_put(&s->file, bytes, (size_t)n);
}

static int write_picture(const char *path, int jpeg, int w, int h, int channels, const uint8_t *pixels)
{
    sink s = { .failed = 0 };
    if (sz_image_check_size(path, w, h) != 0 || sz_writer_open(&s.file, path) != 0) return -1;
    int ok = jpeg ? stbi_write_jpg_to_func(sink_put, &s, w, h, channels, pixels, 92)
                  : stbi_write_png_to_func(sink_put, &s, w, h, channels, pixels, w * channels);
    if (s.failed) return -1;
    if (!ok) {
        sz_writer_abort(&s.file);
        return sz_fail("%s: cannot encode a picture of %d x %d", path, w, h);
    }
    return sz_writer_commit(&s.file);
}

int sz_image_save(const sz_image *im, const char *path)
{
    const char *dot = strrchr(path, '.');
    if (dot && !strcasecmp(dot, ".png")) return write_picture(path, 0, im->width, im->height, 3, im->pixels);
    if (dot && (!strcasecmp(dot, ".jpg") || !strcasecmp(dot, ".jpeg"))) return write_picture(path, 1, im->width, im->height, 3, im->pixels);
    return sz_fail("%s: pictures are saved as .png, .jpg or .jpeg", path);
}

int sz_image_write_png(const char *path, int width, int height, int channels, const uint8_t *pixels)
{
    if (channels != 1 && channels != 3) return sz_fail("%s: %d channels; a PNG is written with 1 or 3", path, channels);
    return write_picture(path, 0, width, height, channels, pixels);
}
