/* mask_peek.c - whether a mask's file has anything inside, mostly without decoding it.
 *
 * A PNG's samples are stored as differences, each row after the number of its filter (0 to 4), and
 * rows of 0 as zeros. Two things tell that a sample is not 0:
 *
 *   1. The data's Adler-32 checksum, whose low half is 1 plus the sum of all bytes: it is more than
 *      all filters' numbers can add up to.
 *   2. The first byte of the inflated data that is not 0 and not a filter's number. The data up to
 *      it is all that is inflated.
 *
 * Checksums and lengths of all chunks are checked, so a file that is cut off or damaged is noticed.
 * This holds for grey, for colour, and for palettes whose index 0 is black; not with transparency
 * or interlacing. Such files, other formats, and masks that seem to be empty are decoded (mask.c).
 */
#include "image.h"
#include <stdlib.h>
#include <zlib.h>

enum {
    SIGNATURE = 8,
    CHUNK = 12, /* length, name and checksum of a chunk */
    HEADER_DATA = 13,
    ROOM = 1 << 14,
    GREY = 0,
    COLOUR = 2,
    PALETTE = 3,
    MOST_FILTER = 4, /* the largest number of a filter */
    ADLER_BASE = 65521
};

typedef struct {
    const uint8_t *memory;
    size_t size;
    size_t row_bytes; /* of a row without its filter's number */
    size_t rows;
    size_t first, last; /* where the first and the last chunk with image data begin */
} png;

static bool is_named(const uint8_t *chunk, const char *name)
{
    return memcmp(chunk + 4, name, 4) == 0;
}

/* The chunk after this one; 0 if its length or checksum is wrong. */
static size_t next_chunk(const png *p, size_t at)
{
    if (p->size - at < CHUNK) return 0;
    const uint8_t *chunk = p->memory + at;
    const size_t length = sz_be32(chunk);
    if (length > p->size - at - CHUNK) return 0;
    const uint32_t sum = sz_be32(chunk + 8 + length);
    if (crc32(0, chunk + 4, (uInt)length + 4) != sum) return 0;
    return at + CHUNK + length;
}

/* Reads the header; false if the samples' zeros may mean something else. */
static bool read_header(png *p)
{
    static const int channels[] = { [GREY] = 1, [COLOUR] = 3, [PALETTE] = 1 };
    if (p->size < SIGNATURE + CHUNK + HEADER_DATA) return false;
    if (memcmp(p->memory, "\x89PNG\r\n\x1a\n", SIGNATURE) != 0) return false;
    const uint8_t *header = p->memory + SIGNATURE;
    if (sz_be32(header) != HEADER_DATA || !is_named(header, "IHDR")) return false;
    const uint8_t *data = header + 8;
    const int depth = data[8];
    const int type = data[9];
    const bool interlaced = data[12] != 0;
    if ((type != GREY && type != COLOUR && type != PALETTE) || interlaced) return false;
    const size_t row_bits = (size_t)sz_be32(data) * (size_t)(depth * channels[type]);
    p->row_bytes = row_bits / 8;
    p->rows = sz_be32(data + 4);
    return p->row_bytes > 0 && row_bits % 8 == 0; /* else the last byte has bits of no sample */
}

/* Walks all chunks; false if the file is damaged or has transparency or another first colour. */
static bool check_chunks(png *p)
{
    size_t at = SIGNATURE;
    while (at < p->size) {
        const uint8_t *chunk = p->memory + at;
        const size_t next = next_chunk(p, at);
        if (next == 0 || is_named(chunk, "tRNS")) return false;
        if (is_named(chunk, "PLTE")) {
            const bool black = next - at >= CHUNK + 3 && !chunk[8] && !chunk[9] && !chunk[10];
            if (!black) return false;
        }
        if (is_named(chunk, "IDAT")) {
            if (p->first == 0) p->first = at;
            p->last = at;
        }
        if (is_named(chunk, "IEND")) return p->first != 0;
        at = next;
    }
    return false;
}

/* Whether the sum of all bytes, modulo the checksum's base, is too large for an empty mask. The
 * checksum is the last four bytes of the data. */
static bool sum_is_large(const png *p)
{
    const uint8_t *chunk = p->memory + p->last;
    const size_t length = sz_be32(chunk);
    if (length < 4) return false;
    const uint32_t low = sz_be32(chunk + 8 + length - 4) & 0xffff;
    return low < ADLER_BASE && low > 1 + MOST_FILTER * p->rows;
}

/* Whether these inflated bytes, which begin at `place` of the data, have a sample that is not 0. */
static bool has_sample(const png *p, size_t place, const uint8_t *bytes, size_t n)
{
    size_t i = 0;
    while (i < n) {
        /* Zeros are the rule: eight at a time. */
        uint64_t word = 1;
        if (n - i >= sizeof word) memcpy(&word, bytes + i, sizeof word);
        if (word == 0) {
            i += sizeof word;
            continue;
        }
        if (bytes[i] != 0 && (place + i) % (p->row_bytes + 1) != 0) return true;
        i++;
    }
    return false;
}

/* Inflates until a sample is not 0; false if none was found. */
static bool inflate_to_sample(const png *p)
{
    uint8_t room[ROOM];
    z_stream z = { 0 };
    if (inflateInit(&z) != Z_OK) return false;
    size_t at = p->first;
    size_t place = 0;
    int rc = Z_OK;
    bool found = false;
    while (rc == Z_OK && !found) {
        /* The next chunk's data, when the last one's is used up. */
        while (z.avail_in == 0 && at < p->size && is_named(p->memory + at, "IDAT")) {
            z.next_in = (Bytef *)(p->memory + at + 8);
            z.avail_in = sz_be32(p->memory + at);
            at += CHUNK + z.avail_in;
        }
        z.next_out = room;
        z.avail_out = ROOM;
        rc = inflate(&z, Z_NO_FLUSH);
        const size_t n = ROOM - z.avail_out;
        found = has_sample(p, place, room, n);
        place += n;
    }
    inflateEnd(&z);
    return found;
}

static bool is_surely_inside(const sz_source *b)
{
    png p = { .memory = b->memory, .size = b->size };
    if (!read_header(&p) || !check_chunks(&p)) return false;
    return sum_is_large(&p) || inflate_to_sample(&p);
}

int sz_mask_peek(const char *path, int *width, int *height)
{
    sz_source b = { .path = path };
    uint8_t *memory = sz_io_read(path, SZ_IMAGE_MAX_FILE, &b.size);
    if (!memory) return -1;
    b.memory = memory;

    /* The quick way. The size is that of the upright mask. */
    int rc = -1;
    sz_size size;
    const sz_format *format = sz_format_find(&b);
    if (!format || sz_format_size(format, &b, &size) != 0) goto done;
    if (format == &sz_format_png && is_surely_inside(&b)) {
        const bool turned = size.orientation > 4;
        *width = (int)(turned ? size.height : size.width);
        *height = (int)(turned ? size.width : size.height);
        rc = 1;
        goto done;
    }

    /* Decoding. */
    uint8_t *mask = sz_mask_decode(&b, width, height);
    if (!mask) goto done;
    rc = 0;
    for (size_t i = 0; i < (size_t)*width * (size_t)*height && rc == 0; i++) rc = mask[i] != 0;
    free(mask);
done:
    free(memory);
    return rc;
}
