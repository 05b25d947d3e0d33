/* psd.c - reads the flattened image of a PSD file in RGB, with 8 or 16 bits a sample.
 *
 * The file is a header of 26 bytes, three sections with their lengths, and the image: a code (0
 * raw, 1 packed), with packed rows the length of each, then one plane after the other. All lengths
 * are checked before anything is decoded. The fourth of four planes is alpha, as Pillow takes it;
 * of more planes the first three are read.
 * Source: Adobe Photoshop File Formats Specification, "Image Data Section".
 * Leaves out: layers, modes other than RGB, PSB.
 */
#include "image.h"
#include <stdlib.h>

enum { HEADER = 26, SECTIONS = 3, MODE_RGB = 3, RAW = 0, PACKED = 1, MOST_CHANNELS = 4 };

static bool psd_match(const uint8_t *h, size_t n)
{
    return n >= 6 && memcmp(h, "8BPS\0\1", 6) == 0;
}

static int psd_size(const sz_source *b, sz_size *out)
{
    uint8_t h[HEADER];
    if (!sz_source_get(b, 0, h, sizeof h)) return sz_image_cut_off(b);
    if (sz_be16(h + 24) != MODE_RGB) return sz_image_fail(b, "only RGB is read of PSD files");
    if (sz_be16(h + 12) < 3) return sz_image_fail(b, "an RGB PSD with fewer than three planes");
    if (sz_be16(h + 22) != 8 && sz_be16(h + 22) != 16)
        return sz_image_fail(b, "only 8 and 16 bits are read of PSD files");
    out->height = sz_be32(h + 14);
    out->width = sz_be32(h + 18);
    return 0;
}

/* Where the image's code is; 0 if the file ends before. */
static size_t find_image(const sz_source *b)
{
    size_t at = HEADER;
    for (int i = 0; i < SECTIONS; i++) {
        if (at + 4 > b->size) return 0;
        at += 4 + (size_t)sz_be32(b->memory + at);
    }
    return at + 2 > b->size ? 0 : at;
}

/* Unpacks n bytes at p (PackBits) into exactly `room` bytes. */
static bool unpack(const uint8_t *p, size_t n, uint8_t *out, size_t room)
{
    const uint8_t *end = p + n;
    while (p < end) {
        const uint8_t code = *p++;
        const bool is_run = code > 128;
        const size_t count = is_run ? 257u - code : code + 1u;
        if (code == 128) continue;
        if (count > room || (size_t)(end - p) < (is_run ? 1 : count)) return false;
        if (is_run) memset(out, *p, count);
        else memcpy(out, p, count);
        p += is_run ? 1 : count;
        out += count;
        room -= count;
    }
    return room == 0;
}

/* The planes of an image: where the next row of each begins, and the packed rows' lengths. */
typedef struct {
    const sz_source *file;
    size_t row_bytes; /* of a plane, unpacked */
    size_t next[MOST_CHANNELS];
    const uint8_t *lengths; /* NULL: raw */
    size_t height;
} planes;

/* The next row of plane c into `row`. False if it is damaged. */
static bool next_row(planes *p, int c, size_t y, uint8_t *row)
{
    const uint8_t *from = p->file->memory + p->next[c];
    if (!p->lengths) {
        memcpy(row, from, p->row_bytes);
        p->next[c] += p->row_bytes;
        return true;
    }
    const size_t n = sz_be16(p->lengths + 2 * ((size_t)c * p->height + y));
    p->next[c] += n;
    return unpack(from, n, row, p->row_bytes);
}

/* Finds the planes; all of them must be in the file, also those that are not read. */
static int find_planes(const sz_source *b, planes *p, size_t channels, int wanted)
{
    size_t at = find_image(b);
    if (at == 0) return sz_image_cut_off(b);
    const uint32_t code = sz_be16(b->memory + at);
    if (code != RAW && code != PACKED)
        return sz_image_fail(b, "only raw and packed rows are read of PSD files");
    at += 2;

    const size_t rows = channels * p->height;
    if (code == PACKED) {
        if (rows > (b->size - at) / 2) return sz_image_cut_off(b);
        p->lengths = b->memory + at;
        at += 2 * rows;
    }
    for (size_t c = 0; c < channels; c++) {
        if ((int)c < wanted) p->next[c] = at;
        size_t bytes = p->lengths ? 0 : p->height * p->row_bytes;
        for (size_t y = 0; p->lengths && y < p->height; y++)
            bytes += sz_be16(p->lengths + 2 * (c * p->height + y));
        if (bytes > b->size - at) return sz_image_cut_off(b);
        at += bytes;
    }
    return 0;
}

static int psd_decode(const sz_source *b, sz_target *to)
{
    const uint8_t *h = b->memory;
    const size_t channels = sz_be16(h + 12);
    const size_t bytes = sz_be16(h + 22) / 8;
    const size_t width = sz_be32(h + 18);
    const int wanted = channels == 4 ? 4 : 3;
    planes p = { .file = b, .row_bytes = width * bytes, .height = sz_be32(h + 14) };
    if (find_planes(b, &p, channels, wanted) != 0) return -1;

    sz_layout layout = { .width = (int)width, .height = (int)p.height, .bytes = (int)bytes };
    layout.samples = wanted == 4 ? SZ_RGBA : SZ_RGB;
    uint8_t *plane = malloc(p.row_bytes);
    uint8_t *row = malloc(p.row_bytes * (size_t)wanted);
    int rc = plane && row ? to->begin(to, b, &layout) : sz_fail("%s: no memory", b->path);
    for (size_t y = 0; rc == 0 && y < p.height; y++) {
        /* A row of each plane, then their samples side by side. */
        for (int c = 0; rc == 0 && c < wanted; c++) {
            if (!next_row(&p, c, y, plane)) rc = sz_image_fail(b, "a packed row is damaged");
            for (size_t x = 0; rc == 0 && x < width; x++)
                memcpy(row + (x * (size_t)wanted + (size_t)c) * bytes, plane + x * bytes, bytes);
        }
        if (rc == 0) to->put(to, (int)y, row);
    }
    free(plane);
    free(row);
    return rc;
}

const sz_format sz_format_psd = { "PSD", psd_match, psd_size, psd_decode };
