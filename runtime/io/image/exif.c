/* exif.c - the orientation that a camera wrote into an image file, and turning the pixels upright,
 * as Pillow's ImageOps.exif_transpose does.
 *
 * EXIF is a TIFF directory; tag 0x0112 holds 1 to 8. Without it an XMP text may have
 * tiff:Orientation. A damaged block counts as no orientation. As in Pillow, any type of number will
 * do, and the first of several.
 * Leaves out: everything else in EXIF and XMP.
 */
#define _GNU_SOURCE /* memmem */
#include "image.h"
#include <stdlib.h>

enum { ORIENTATION = 0x0112, ENTRY_SIZE = 12, LARGEST_NUMBER = 8 };
enum { PIECE = 4096, OVERLAP = 32 };

/* TIFF's types of a value, and LONG8 of BigTIFF, which Pillow takes too. */
enum {
    TYPE_SHORT = 3,
    TYPE_LONG = 4,
    TYPE_RATIONAL = 5,
    TYPE_SBYTE = 6,
    TYPE_SSHORT = 8,
    TYPE_SLONG = 9,
    TYPE_SRATIONAL = 10,
    TYPE_FLOAT = 11,
    TYPE_DOUBLE = 12,
    TYPE_IFD = 13,
    TYPE_LONG8 = 16,
    TYPES
};

/* Bytes of one value; 0: no such type. */
static const uint8_t SIZE_OF_TYPE[TYPES] = { 0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8 };

typedef struct {
    uint32_t (*get16)(const uint8_t *p);
    uint32_t (*get32)(const uint8_t *p);
    bool little;
} byte_order;

static uint64_t get64(const byte_order *o, const uint8_t *p)
{
    const uint64_t first = o->get32(p);
    const uint64_t second = o->get32(p + 4);
    return o->little ? second << 32 | first : first << 32 | second;
}

/* A value as a number. Bytes and text are none for Pillow: 0. */
static double number_of(const byte_order *o, uint32_t type, const uint8_t *p)
{
    const uint32_t bits = SIZE_OF_TYPE[type] >= 4 ? o->get32(p) : 0;
    switch (type) {
    case TYPE_SHORT: return o->get16(p);
    case TYPE_SSHORT: return (int16_t)o->get16(p);
    case TYPE_SBYTE: return (int8_t)p[0];
    case TYPE_LONG:
    case TYPE_IFD: return bits;
    case TYPE_SLONG: return (int32_t)bits;
    case TYPE_LONG8: return (double)get64(o, p);
    case TYPE_RATIONAL: return (double)bits / o->get32(p + 4);
    case TYPE_SRATIONAL: return (double)(int32_t)bits / (int32_t)o->get32(p + 4);
    case TYPE_FLOAT: {
        float value;
        memcpy(&value, &bits, sizeof value);
        return value;
    }
    case TYPE_DOUBLE: {
        const uint64_t wide = get64(o, p);
        double value;
        memcpy(&value, &wide, sizeof value);
        return value;
    }
    default: return 0;
    }
}

/* The first value of an orientation's directory entry: 1 to 8, where 1 also stands for one that
 * says nothing; 0 if the value is missing. The block is n bytes from `at` on. */
static int entry_value(const sz_source *b, size_t at, size_t n, const byte_order *o,
                       const uint8_t *entry)
{
    /* Up to 4 bytes are in the entry itself. */
    const uint32_t type = o->get16(entry + 2);
    const uint64_t bytes = (uint64_t)o->get32(entry + 4) * SIZE_OF_TYPE[type];
    uint8_t p[LARGEST_NUMBER] = { 0 };
    memcpy(p, entry + 8, 4);
    if (bytes > 4) {
        const size_t offset = o->get32(entry + 8);
        if (offset > n || bytes > n - offset) return 0;
        if (!sz_source_get(b, at + offset, p, SIZE_OF_TYPE[type])) return 0;
    }
    const double value = number_of(o, type, p);
    return value >= 1 && value <= 8 && value == (int)value ? (int)value : 1;
}

int sz_exif_orientation(const sz_source *b, size_t at, size_t n)
{
    /* The TIFF header. Its offsets count from its own start. */
    uint8_t p[ENTRY_SIZE];
    while (n >= 6 && sz_source_get(b, at, p, 6) && memcmp(p, "Exif\0\0", 6) == 0) {
        at += 6;
        n -= 6;
    }
    if (n < 8 || !sz_source_get(b, at, p, 8)) return 0;
    const bool little = memcmp(p, "II\x2a\0", 4) == 0;
    if (!little && memcmp(p, "MM\0\x2a", 4) != 0) return 0;
    byte_order o = { sz_be16, sz_be32, little };
    if (little) {
        o.get16 = sz_le16;
        o.get32 = sz_le32;
    }

    /* The first directory. An entry without a value or of an unknown type is none. */
    size_t entry = o.get32(p + 4);
    if (entry > n - 2 || !sz_source_get(b, at + entry, p, 2)) return 0;
    size_t count = o.get16(p);
    entry += 2;
    for (; count > 0 && n - entry >= ENTRY_SIZE; count--, entry += ENTRY_SIZE) {
        if (!sz_source_get(b, at + entry, p, ENTRY_SIZE)) return 0;
        if (o.get16(p) != ORIENTATION || o.get32(p + 4) == 0) continue;
        const uint32_t type = o.get16(p + 2);
        if (type >= TYPES || SIZE_OF_TYPE[type] == 0) continue;
        return entry_value(b, at, n, &o, p);
    }
    return 0;
}

/* The digit after a name that ends at p, or 0. */
static int digit_after(const uint8_t *p, const uint8_t *end)
{
    if (end - p >= 3 && memcmp(p, "=\"", 2) == 0) p += 2;
    else if (end - p >= 2 && *p == '>') p += 1;
    else return 0;
    if (*p < '0' || *p > '9') return 0;
    return *p >= '1' && *p <= '8' ? *p - '0' : 1;
}

int sz_xmp_orientation(const sz_source *b, size_t at, size_t n)
{
    /* Pieces of the text overlap by more than the name and its value. */
    static const char NAME[] = "tiff:Orientation";
    const size_t length = sizeof NAME - 1;
    uint8_t piece[PIECE];
    for (size_t from = 0; from < n; from += PIECE - OVERLAP) {
        const size_t most = n - from < PIECE ? n - from : PIECE;
        const uint8_t *end = piece + sz_source_read(b, at + from, piece, most);
        const uint8_t *p = piece;
        while ((p = memmem(p, (size_t)(end - p), NAME, length))) {
            p += length;
            const int value = digit_after(p, end);
            if (value) return value;
        }
    }
    return 0;
}

int sz_orientation(int exif, int xmp)
{
    if (exif) return exif;
    return xmp ? xmp : 1;
}

/* ---- turning ---- */

/* Where the upright image's pixel (0, 0) comes from, and how far to go for the next one. */
typedef struct {
    ptrdiff_t start, right, down;
} walk;

static walk walk_of(int orientation, ptrdiff_t w, ptrdiff_t h)
{
    const ptrdiff_t last_column = w - 1;
    const ptrdiff_t last_row = (h - 1) * w;
    switch (orientation) {
    case 2: return (walk){ last_column, -1, w };
    case 3: return (walk){ last_row + last_column, -1, -w };
    case 4: return (walk){ last_row, 1, -w };
    case 5: return (walk){ 0, w, 1 };
    case 6: return (walk){ last_row, -w, 1 };
    case 7: return (walk){ last_row + last_column, -w, -1 };
    case 8: return (walk){ last_column, w, -1 };
    default: return (walk){ 0, 1, w };
    }
}

uint8_t *sz_exif_turn(uint8_t *pixels, int *width, int *height, int channels, int orientation)
{
    if (orientation <= 1) return pixels;
    const int w = orientation >= 5 ? *height : *width;
    const int h = orientation >= 5 ? *width : *height;
    uint8_t *turned = malloc((size_t)w * (size_t)h * (size_t)channels);
    if (!turned) {
        free(pixels);
        return sz_null("out of memory for an image of %d x %d", w, h);
    }

    /* Copy pixel by pixel in the order of the result. */
    const walk from = walk_of(orientation, *width, *height);
    uint8_t *to = turned;
    for (int y = 0; y < h; y++) {
        const uint8_t *p = pixels + (from.start + y * from.down) * channels;
        for (int x = 0; x < w; x++, p += from.right * channels)
            for (int c = 0; c < channels; c++) *to++ = p[c];
    }
    free(pixels);
    *width = w;
    *height = h;
    return turned;
}
