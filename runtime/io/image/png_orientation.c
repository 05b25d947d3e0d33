/* png_orientation.c - the orientation that a PNG's chunks hold: eXIf, or a text "Raw profile type
 * exif" as older programs wrote it (tEXt, zTXt), or XMP (iTXt).
 *
 * Walks over all chunks, because eXIf may come after the pixels.
 * Leaves out: compressed iTXt; a raw profile's bytes after the first 16 KB, which are pictures;
 * checksums, which png.c checks.
 */
#include "image.h"
#include <zlib.h>

enum { HEAD = 1 << 14, TEXT = 2 * HEAD + 1024 };

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

/* The same for a compressed text: -1 with a message if memory is out. A damaged text gives what
 * could be read of it. */
static int packed_profile(const sz_source *b, const uint8_t *p, size_t n)
{
    uint8_t text[TEXT];
    z_stream z = { .next_in = (Bytef *)p, .avail_in = (uInt)n };
    if (inflateInit(&z) != Z_OK) return sz_fail("%s: out of memory", b->path);
    z.next_out = text;
    z.avail_out = sizeof text;
    const int rc = inflate(&z, Z_FINISH);
    inflateEnd(&z);
    if (rc == Z_MEM_ERROR) return sz_fail("%s: out of memory", b->path);
    return raw_profile(text, sizeof text - z.avail_out);
}

typedef struct {
    int exif, profile, xmp; /* 0: not found */
} orientations;

/* Whether the n bytes begin with this keyword and the zero after it. */
static bool keyword(const uint8_t *p, size_t n, const char *word)
{
    const size_t length = strlen(word) + 1;
    return n >= length && memcmp(p, word, length) == 0;
}

/* A chunk with a text: 0, or -1 with a message. */
static int read_text(const sz_source *b, const uint8_t *type, size_t at, size_t n, orientations *o)
{
    static const char PROFILE[] = "Raw profile type exif";
    static const char XMP[] = "XML:com.adobe.xmp";
    uint8_t p[TEXT];
    size_t got = sz_source_read(b, at, p, n < sizeof p ? n : sizeof p);
    if (memcmp(type, "iTXt", 4) == 0) {
        if (keyword(p, got, XMP)) o->xmp = sz_xmp_orientation(b, at, n);
        return 0;
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
