/* png_orientation.c - the orientation that a PNG's chunks hold: eXIf, or a text "Raw profile type
 * exif" as older programs wrote it (tEXt, zTXt), or XMP (iTXt).
 *
 * Walks over all chunks, because eXIf may come after the pixels.
 * Leaves out: compressed iTXt; checksums, which png.c checks.
 */
#include "image.h"
#include <stdlib.h>
#include <zlib.h>

enum { LIMIT = 1 << 20 }; /* bytes of a chunk or text that are looked at */

static int digit(uint8_t c)
{
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

/* A raw profile: "\nexif\n    LENGTH\n", then the bytes in hexadecimal digits. Decodes in place. */
static int raw_profile(uint8_t *p, size_t n)
{
    /* Skip three lines. */
    size_t at = 0;
    for (int lines = 0; at < n && lines < 3; at++)
        if (p[at] == '\n') lines++;

    /* Two digits a byte. */
    size_t count = 0;
    int high = -1;
    for (; at < n; at++) {
        const int value = digit(p[at]);
        if (value < 0) continue;
        if (high < 0) {
            high = value;
            continue;
        }
        p[count++] = (uint8_t)(16 * high + value);
        high = -1;
    }
    return sz_exif_orientation(p, count);
}

static int packed_profile(const uint8_t *p, size_t n)
{
    /* A damaged text gives what could be read of it. */
    uint8_t *text = malloc(LIMIT);
    if (!text) return 0;
    z_stream z = { .next_in = (Bytef *)p, .avail_in = (uInt)n };
    int found = 0;
    if (inflateInit(&z) == Z_OK) {
        z.next_out = text;
        z.avail_out = LIMIT;
        inflate(&z, Z_FINISH);
        found = raw_profile(text, LIMIT - z.avail_out);
        inflateEnd(&z);
    }
    free(text);
    return found;
}

typedef struct {
    int exif, profile, xmp; /* 0: not found */
} orientations;

/* Whether the chunk begins with this keyword and the zero after it. */
static bool keyword(const uint8_t *p, size_t n, const char *word)
{
    const size_t length = strlen(word) + 1;
    return n >= length && memcmp(p, word, length) == 0;
}

static void read_chunk(const uint8_t *type, uint8_t *p, size_t n, orientations *o)
{
    static const char PROFILE[] = "Raw profile type exif";
    static const char XMP[] = "XML:com.adobe.xmp";
    if (memcmp(type, "eXIf", 4) == 0) o->exif = sz_exif_orientation(p, n);
    if (memcmp(type, "iTXt", 4) == 0 && keyword(p, n, XMP)) o->xmp = sz_xmp_orientation(p, n);
    if (!keyword(p, n, PROFILE)) return;
    p += sizeof PROFILE;
    n -= sizeof PROFILE;
    if (memcmp(type, "tEXt", 4) == 0) o->profile = raw_profile(p, n);
    if (memcmp(type, "zTXt", 4) == 0 && n > 1) o->profile = packed_profile(p + 1, n - 1);
}

/* Whether a chunk of this type can hold an orientation. */
static bool matters(const uint8_t *type)
{
    static const char *const TYPES[] = { "eXIf", "iTXt", "tEXt", "zTXt" };
    for (size_t i = 0; i < sizeof TYPES / sizeof *TYPES; i++)
        if (memcmp(type, TYPES[i], 4) == 0) return true;
    return false;
}

int sz_png_orientation(const sz_source *b)
{
    orientations o = { 0 };
    uint8_t head[8]; /* length and type */
    size_t at = 8;
    while (sz_source_get(b, at, head, sizeof head) && memcmp(head + 4, "IEND", 4) != 0) {
        const size_t n = sz_be32(head);
        if (n <= LIMIT && matters(head + 4)) {
            uint8_t *p = malloc(n + 1);
            if (p && sz_source_get(b, at + 8, p, n)) read_chunk(head + 4, p, n, &o);
            free(p);
        }
        at += 12 + n;
    }
    return sz_orientation(o.exif ? o.exif : o.profile, o.xmp);
}
