/* stb.c - the format that stb_image reads for us: TGA.
 *
 * stb_image reads past nothing, but it takes what is missing at the end of a file for zeros. So the
 * header is read here first, and the length that it promises is checked: of the pixels, or of the
 * packets.
 * Leaves out: PSD, whose colours stb_image changes where they are transparent (psd.c); PIC and HDR,
 * which Pillow does not read either.
 */
#include "image.h"
#include <stdlib.h>

#define STB_IMAGE_IMPLEMENTATION
#define STB_IMAGE_STATIC
#define STBI_ONLY_TGA
#define STBI_NO_STDIO
#define STBI_NO_LINEAR
#define STBI_NO_HDR
#define STBI_ASSERT(x) ((void)0)
/* Unused functions are found at the end of the file. */
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
#pragma GCC diagnostic ignored "-Wshadow"
#pragma GCC diagnostic ignored "-Wsign-compare"
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"
#include <stb/stb_image.h>
#pragma GCC diagnostic pop

/* ---- decoding, of a file that has been checked ---- */

static int decode(const sz_source *b, sz_target *to)
{
    int width;
    int height;
    int channels;
    if (b->size > INT32_MAX) return sz_image_fail(b, "the file is too large");
    uint8_t *pixels = stbi_load_from_memory(b->memory, (int)b->size, &width, &height, &channels, 4);
    if (!pixels) return sz_image_fail(b, stbi_failure_reason());

    sz_layout layout = { .width = width, .height = height, .samples = SZ_RGBA, .bytes = 1 };
    int rc = to->begin(to, b, &layout);
    for (int y = 0; rc == 0 && y < height; y++)
        to->put(to, y, pixels + 4 * (size_t)width * (size_t)y);
    stbi_image_free(pixels);
    return rc;
}

/* ---- TGA: a header of 18 bytes, an identifier, a palette, pixels or packets ---- */

enum { TGA_HEADER = 18, TGA_PACKED = 8 };

static bool tga_match(const uint8_t *h, size_t n)
{
    /* TGA has no signature: all fields of the header must make sense. */
    if (n < 16 || h[1] > 1) return false;
    const int kind = h[2] & ~TGA_PACKED;
    const bool indexed = h[1] == 1;
    if ((h[2] & 0xf0) || kind < 1 || kind > 3 || indexed != (kind == 1)) return false;
    if (indexed && h[7] != 15 && h[7] != 16 && h[7] != 24 && h[7] != 32) return false;
    return sz_le16(h + 12) > 0 && sz_le16(h + 14) > 0;
}

static int tga_size(const sz_source *b, sz_size *out)
{
    uint8_t h[TGA_HEADER];
    if (!sz_source_get(b, 0, h, sizeof h)) return sz_image_cut_off(b);
    const int bits = h[16];
    const bool grey = (h[2] & ~TGA_PACKED) == 3;
    bool fits = bits == 8 || bits == 16 || bits == 24 || bits == 32;
    if (bits == 8 && !grey && h[1] == 0) fits = false;
    if (!fits && bits != 15) return sz_image_fail(b, "the TGA header is damaged");
    out->width = sz_le16(h + 12);
    out->height = sz_le16(h + 14);
    return 0;
}

static int tga_decode(const sz_source *b, sz_target *to)
{
    const uint8_t *h = b->memory;
    const size_t width = sz_le16(h + 12);
    const size_t pixel = (size_t)(h[16] + 7) / 8;
    size_t left = width * sz_le16(h + 14);
    size_t at = TGA_HEADER + h[0];
    if (h[1] == 1) at += (size_t)sz_le16(h + 5) * ((size_t)(h[7] + 7) / 8);

    if (!(h[2] & TGA_PACKED)) at += left * pixel;
    while ((h[2] & TGA_PACKED) && left > 0) {
        if (at >= b->size) return sz_image_cut_off(b);
        const size_t run = (b->memory[at] & 0x7f) + 1u;
        at += 1 + (b->memory[at] & 0x80 ? 1 : run) * pixel;
        left -= run < left ? run : left;
    }
    if (at > b->size) return sz_image_cut_off(b);
    return decode(b, to);
}

const sz_format sz_format_tga = { "TGA", tga_match, tga_size, tga_decode };
