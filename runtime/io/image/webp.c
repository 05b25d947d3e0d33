/* webp.c - WebP, by libwebp: lossy, lossless and with alpha. Of an animation the first frame on a
 * transparent canvas, as Pillow gives it.
 * Leaves out: colour profiles, later frames.
 */
#include "image.h"
#include <stdlib.h>
#include <webp/decode.h>
#include <webp/demux.h>

enum { LOSSY = 1, HEADER = 64 };

static bool match(const uint8_t *head, size_t n)
{
    return n >= 12 && memcmp(head, "RIFF", 4) == 0 && memcmp(head + 8, "WEBP", 4) == 0;
}

static int damaged(const sz_source *b)
{
    return sz_image_fail(b, "the WebP data is damaged or cut off");
}

/* Looks for an orientation in the chunks EXIF and "XMP ". */
static int orientation_of(const sz_source *b)
{
    int exif = 0;
    int xmp = 0;
    uint8_t head[8]; /* type and length */
    size_t at = 12;
    while (sz_source_get(b, at, head, sizeof head)) {
        const size_t n = sz_le32(head + 4);
        if (memcmp(head, "EXIF", 4) == 0) exif = sz_exif_orientation(b, at + 8, n);
        if (memcmp(head, "XMP ", 4) == 0) xmp = sz_xmp_orientation(b, at + 8, n);
        at += 8 + n + n % 2;
    }
    return sz_orientation(exif, xmp);
}

static int size(const sz_source *b, sz_size *out)
{
    uint8_t head[HEADER];
    int width;
    int height;
    const size_t n = sz_source_read(b, 0, head, sizeof head);
    if (!WebPGetInfo(head, n, &width, &height))
        return sz_image_fail(b, "the WebP header is damaged or cut off");
    out->width = width;
    out->height = height;
    out->orientation = orientation_of(b);
    return 0;
}

/* The whole file's pixels, `channels` bytes each, into `pixels`; whether that worked. */
static bool decode_still(const sz_source *b, uint8_t *pixels, int channels, size_t row,
                         size_t total)
{
    if (channels == 4) return WebPDecodeRGBAInto(b->memory, b->size, pixels, total, (int)row);
    return WebPDecodeRGBInto(b->memory, b->size, pixels, total, (int)row);
}

/* The first frame at its place on a transparent canvas of RGBA. */
static bool decode_first_frame(const sz_source *b, uint8_t *canvas, size_t row, size_t total)
{
    const WebPData data = { b->memory, b->size };
    WebPDemuxer *demuxer = WebPDemux(&data);
    WebPIterator frame;
    bool good = false;
    if (demuxer && WebPDemuxGetFrame(demuxer, 1, &frame)) {
        /* libwebp checks that the frame is inside the canvas. */
        const size_t start = (size_t)frame.y_offset * row + (size_t)frame.x_offset * 4;
        good = frame.complete && WebPDecodeRGBAInto(frame.fragment.bytes, frame.fragment.size,
                                                    canvas + start, total - start, (int)row);
        WebPDemuxReleaseIterator(&frame);
    }
    WebPDemuxDelete(demuxer);
    return good;
}

static int decode(const sz_source *b, sz_target *to)
{
    /* What the header says. */
    WebPBitstreamFeatures f;
    if (WebPGetFeatures(b->memory, b->size, &f) != VP8_STATUS_OK) return damaged(b);
    const bool rgba = f.has_alpha || f.has_animation;
    const sz_layout layout = { .width = f.width,
                               .height = f.height,
                               .bytes = 1,
                               .samples = rgba ? SZ_RGBA : SZ_RGB,
                               .lossy = f.format == LOSSY };
    if (to->begin(to, b, &layout) != 0) return -1;

    /* All pixels, then row by row. */
    const int channels = sz_layout_channels(&layout);
    const size_t row = (size_t)f.width * (size_t)channels;
    const size_t total = row * (size_t)f.height;
    uint8_t *pixels = calloc(total, 1);
    if (!pixels) return sz_fail("%s: out of memory for %d x %d pixels", b->path, f.width, f.height);
    bool good = f.has_animation ? decode_first_frame(b, pixels, row, total)
                                : decode_still(b, pixels, channels, row, total);
    for (int y = 0; good && y < f.height; y++) to->put(to, y, pixels + (size_t)y * row);
    free(pixels);
    return good ? 0 : damaged(b);
}

const sz_format sz_format_webp = { "webp", match, size, decode };
