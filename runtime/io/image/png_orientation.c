/* png_orientation.c - the orientation that a PNG's chunks hold: eXIf, or a text "Raw profile type
 * exif" as older programs wrote it (tEXt, zTXt), or XMP (iTXt, compressed or not).
 *
 * Walks over all chunks, because eXIf may come after the pixels.
 * Leaves out: a raw profile's bytes after the first 16 KB, which are pictures; XMP after its first
 * MB, or of more than 64 compressed chunks; checksums, which png.c checks.
 */
#include "image.h"
#include <stdlib.h>
#include <zlib.h>

enum { HEAD = 1 << 14, TEXT = 2 * HEAD + 1024, MOST_XMP = 1 << 20, MOST_PACKED = 64 };

static int digit(uint8_t c)
{
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

/* A raw profile: "\nexif\n    LENGTH\n", then the bytes in hexadecimal digits. */
static int raw_profile(const uint8_t *p, size_t n)
{
    /* Skip three lines. */
    size_t at = 0;
    for (int lines = 0; at < n && lines < 3; at++)
        if (p[at] == '\n') lines++;

    /* Two digits a byte. */
    uint8_t bytes[HEAD];
    size_t count = 0;
    int high = -1;
    for (; at < n && count < HEAD; at++) {
        const int value = digit(p[at]);
        if (value < 0) continue;
        if (high < 0) {
            high = value;
            continue;
        }
        bytes[count++] = (uint8_t)(16 * high + value);
        high = -1;
    }
    const sz_source profile = { .path = "", .memory = bytes, .size = count };
    return sz_exif_orientation(&profile, 0, count);
}

/* Inflates n bytes into `text`, which has room for *size bytes: zlib's result, and in *size how
 * many came out. */
static int unpack(const uint8_t *p, size_t n, uint8_t *text, size_t *size)
{
    z_stream z = { .next_in = (Bytef *)p, .avail_in = (uInt)n };
    if (inflateInit(&z) != Z_OK) return Z_MEM_ERROR;
    z.next_out = text;
    z.avail_out = (uInt)*size;
    const int rc = inflate(&z, Z_FINISH);
    inflateEnd(&z);
    *size -= z.avail_out;
    return rc;
}

/* The same as raw_profile for a compressed text: -1 with a message if memory is out. A damaged
 * text gives what could be read of it. */
static int packed_profile(const sz_source *b, const uint8_t *p, size_t n)
{
    uint8_t text[TEXT];
    size_t size = sizeof text;
    if (unpack(p, n, text, &size) == Z_MEM_ERROR) return sz_fail("%s: out of memory", b->path);
    return raw_profile(text, size);
}

/* The orientation in n bytes of compressed XMP from `at` on, or -1 with a message if memory is
 * out. A damaged text counts as none. */
static int packed_xmp(const sz_source *b, size_t at, size_t n)
{
    const size_t most = n < MOST_XMP ? n : MOST_XMP;
    uint8_t *packed = malloc(most + 1);
    uint8_t *text = malloc(MOST_XMP);
    int rc = Z_MEM_ERROR;
    size_t size = MOST_XMP;
    if (packed && text) rc = unpack(packed, sz_source_read(b, at, packed, most), text, &size);

    int orientation = 0;
    const sz_source xmp = { .path = b->path, .memory = text, .size = size };
    if (rc == Z_MEM_ERROR) orientation = sz_fail("%s: out of memory", b->path);
    else if (rc != Z_DATA_ERROR) orientation = sz_xmp_orientation(&xmp, 0, size);
    free(packed);
    free(text);
    return orientation;
}

typedef struct {
    int exif, profile, xmp; /* 0: not found */
    int packed;             /* compressed XMP chunks so far */
} orientations;

/* Whether the n bytes begin with this keyword and the zero after it. */
static bool keyword(const uint8_t *p, size_t n, const char *word)
{
    const size_t length = strlen(word) + 1;
    return n >= length && memcmp(p, word, length) == 0;
}

/* XMP in an iTXt chunk of n bytes: its first `got` are in p. The keyword and the two bytes that say
 * how it is compressed are followed by two texts that end in 0. Returns 0, or -1 with a message. */
static int read_xmp(const sz_source *b, size_t at, size_t n, const uint8_t *p, size_t got,
                    orientations *o)
{
    const uint8_t *end = p + got;
    const uint8_t *flags = p + strlen((const char *)p) + 1;
    const uint8_t *text = flags + 2;
    for (int skipped = 0; skipped < 2; skipped++) {
        const uint8_t *zero = text < end ? memchr(text, 0, (size_t)(end - text)) : NULL;
        if (!zero) return 0;
        text = zero + 1;
    }
    const size_t from = (size_t)(text - p);
    if (flags[0] == 0) {
        o->xmp = sz_xmp_orientation(b, at + from, n - from);
    } else if (flags[1] == 0 && o->packed++ < MOST_PACKED) {
        const int found = packed_xmp(b, at + from, n - from);
        if (found < 0) return -1;
        o->xmp = found;
    }
    return 0;
}

/* A chunk with a text: 0, or -1 with a message. */
static int read_text(const sz_source *b, const uint8_t *type, size_t at, size_t n, orientations *o)
{
    static const char PROFILE[] = "Raw profile type exif";
    static const char XMP[] = "XML:com.adobe.xmp";
    uint8_t p[TEXT];
    size_t got = sz_source_read(b, at, p, n < sizeof p ? n : sizeof p);
    if (memcmp(type, "iTXt", 4) == 0) {
        return keyword(p, got, XMP) ? read_xmp(b, at, n, p, got, o) : 0;
    }
    if (!keyword(p, got, PROFILE)) return 0;
    const uint8_t *text = p + sizeof PROFILE;
    got -= sizeof PROFILE;
    if (memcmp(type, "tEXt", 4) == 0) o->profile = raw_profile(text, got);
    else if (got > 1) o->profile = packed_profile(b, text + 1, got - 1);
    return o->profile < 0 ? -1 : 0;
}

static bool is_text(const uint8_t *type)
{
    return memcmp(type, "iTXt", 4) == 0 || memcmp(type, "tEXt", 4) == 0 ||
           memcmp(type, "zTXt", 4) == 0;
}

int sz_png_orientation(const sz_source *b)
{
    orientations o = { 0 };
    uint8_t head[8]; /* length and type */
    size_t at = 8;
    while (sz_source_get(b, at, head, sizeof head) && memcmp(head + 4, "IEND", 4) != 0) {
        const size_t n = sz_be32(head);
        const uint8_t *type = head + 4;
        if (memcmp(type, "eXIf", 4) == 0) o.exif = sz_exif_orientation(b, at + 8, n);
        if (is_text(type) && read_text(b, type, at + 8, n, &o) != 0) return -1;
        at += 12 + n;
    }
    return sz_orientation(o.exif ? o.exif : o.profile, o.xmp);
}
