/* bmp.c - BMP, read here: 1, 4 and 8 bits with a palette, 16, 24 and 32 bits a pixel, run lengths
 * (RLE4, RLE8), rows from the bottom or from the top. The headers of Windows and of OS/2.
 *
 * Colours as Pillow has them: of 32 bits alpha counts only if the file names its bits.
 * Leaves out: JPEG or PNG inside a BMP, colour profiles, icons.
 */
#include "image.h"
#include <stdlib.h>

enum { FILE_HEADER = 14, CORE = 12, INFO = 40, WITH_MASKS = 52, WITH_ALPHA = 56, LARGEST = 124 };
enum { PLAIN = 0, RLE8 = 1, RLE4 = 2, BITFIELDS = 3 };

typedef struct {
    int64_t width, height;
    bool from_top;
    int bits;
    uint32_t compression;
    uint32_t masks[4]; /* of red, green, blue and alpha in a pixel of 16 to 32 bits */
    int colours;       /* of the palette */
    size_t palette;    /* where it begins */
    int entry;         /* bytes of its entries: 3 or 4 */
    size_t pixels;     /* where the pixels begin */
} header;

static bool match(const uint8_t *head, size_t n) { return n >= 2 && memcmp(head, "BM", 2) == 0; }

/* ---- header ---- */

static bool known_size(uint32_t n)
{
    return n == CORE || n == INFO || n == WITH_MASKS || n == WITH_ALPHA || n == 64 || n == 108 ||
           n == LARGEST;
}

/* The bits of each colour in a pixel, if the file does not name them. */
static void usual_masks(header *h)
{
    static const uint32_t BITS15[] = { 0x7c00, 0x3e0, 0x1f, 0 };
    static const uint32_t BYTES[] = { 0xff0000, 0xff00, 0xff, 0 };
    memcpy(h->masks, h->bits == 16 ? BITS15 : BYTES, sizeof h->masks);
}

/* The masks that the file names: in the header, or behind a short one. */
static int read_masks(const sz_source *b, uint32_t header_size, header *h)
{
    uint8_t p[16] = { 0 };
    const size_t n = header_size >= WITH_ALPHA ? 16 : 12;
    if (!sz_source_get(b, FILE_HEADER + INFO, p, n)) return sz_image_cut_off(b);
    if (header_size == INFO) h->palette += n;
    for (int i = 0; i < 4; i++) h->masks[i] = sz_le32(p + 4 * i);

    /* No masks at all mean bytes of blue, green, red and alpha. */
    if (h->bits == 32 && !h->masks[0] && !h->masks[1] && !h->masks[2] && !h->masks[3]) {
        usual_masks(h);
        h->masks[3] = 0xff000000;
    }
    if (h->bits != 32) h->masks[3] = 0;
    return 0;
}

/* Whether a mask's bits are adjacent and at most 8; alpha may have none. */
static bool good_mask(uint32_t mask, bool may_be_empty)
{
    if (mask == 0) return may_be_empty;
    const uint32_t bits = mask >> __builtin_ctz(mask);
    return (bits & (bits + 1)) == 0 && bits <= 255;
}

static int check_kind(const sz_source *b, const header *h)
{
    const int bits = h->bits;
    const bool indexed = bits == 1 || bits == 4 || bits == 8;
    if (!indexed && bits != 16 && bits != 24 && bits != 32)
        return sz_fail("%s: cannot decode the image: a BMP of %d bits a pixel", b->path, bits);
    bool known = h->compression == PLAIN;
    if (h->compression == RLE8) known = bits == 8;
    if (h->compression == RLE4) known = bits == 4;
    if (h->compression == BITFIELDS) known = !indexed;
    if (!known)
        return sz_fail("%s: cannot decode the image: a BMP of %d bits with compression %u", b->path,
                       bits, h->compression);
    for (int i = 0; i < 4 && !indexed; i++)
        if (!good_mask(h->masks[i], i == 3))
            return sz_image_fail(b, "the masks of a BMP's colours are damaged");
    return 0;
}

static int read_header(const sz_source *b, header *h)
{
    /* The two headers. */
    uint8_t file[FILE_HEADER + 4];
    uint8_t p[LARGEST] = { 0 };
    *h = (header){ .entry = 4 };
    if (!sz_source_get(b, 0, file, sizeof file)) return sz_image_cut_off(b);
    const uint32_t size = sz_le32(file + FILE_HEADER);
    if (!known_size(size)) return sz_image_fail(b, "a BMP with a header of unknown size");
    if (!sz_source_get(b, FILE_HEADER, p, size)) return sz_image_cut_off(b);

    /* A negative height means rows from the top. */
    int64_t colours = 0;
    if (size == CORE) {
        h->width = sz_le16(p + 4);
        h->height = sz_le16(p + 6);
        h->bits = (int)sz_le16(p + 10);
        h->entry = 3;
    } else {
        h->width = sz_le32(p + 4);
        h->height = sz_le32(p + 8);
        h->from_top = p[11] == 0xff;
        if (h->from_top) h->height = ((int64_t)1 << 32) - h->height;
        h->bits = (int)sz_le16(p + 14);
        h->compression = sz_le32(p + 16);
        colours = sz_le32(p + 32);
    }

    /* Masks and palette. */
    h->palette = FILE_HEADER + size;
    usual_masks(h);
    if (h->compression == BITFIELDS && read_masks(b, size, h) != 0) return -1;
    if (check_kind(b, h) != 0) return -1;
    if (h->bits <= 8 && (colours == 0 || colours > 256)) colours = (int64_t)1 << h->bits;
    h->colours = h->bits <= 8 ? (int)colours : 0;

    /* Some writers put the pixels' place before the palette. */
    h->pixels = sz_le32(file + 10);
    const size_t behind = h->palette + (size_t)(h->colours * h->entry);
    if (h->pixels == 0 || (h->bits <= 8 && h->pixels == FILE_HEADER + size)) h->pixels = behind;
    return 0;
}

/* Bytes of a row, padded to four. */
static int64_t row_bytes(const header *h) { return (h->width * h->bits + 31) / 32 * 4; }

static bool run_lengths(const header *h)
{
    return h->compression == RLE4 || h->compression == RLE8;
}

static int size(const sz_source *b, sz_size *out)
{
    header h;
    if (read_header(b, &h) != 0) return -1;
    out->width = h.width;
    out->height = h.height;
    if (sz_image_check_size(b->path, h.width, h.height) != 0) return -1;

    /* The last row needs no padding. */
    const int64_t last = (h.width * h.bits + 7) / 8;
    const int64_t need = (int64_t)h.pixels + row_bytes(&h) * (h.height - 1) + last;
    if (!run_lengths(&h) && need > (int64_t)b->size) return sz_image_cut_off(b);
    return 0;
}

/* ---- rows ---- */

/* Pixels of 1, 4 or 8 bits to one byte each. */
static void unpack_indexes(const header *h, const uint8_t *p, uint8_t *out)
{
    const int per_byte = 8 / h->bits;
    const int mask = (1 << h->bits) - 1;
    for (int x = 0; x < (int)h->width; x++) {
        const int shift = 8 - h->bits * (x % per_byte + 1);
        out[x] = (uint8_t)(p[x / per_byte] >> shift & mask);
    }
}

/* One colour of a pixel, stretched to 0..255. */
static uint8_t colour_of(uint32_t pixel, uint32_t mask)
{
    const int shift = __builtin_ctz(mask);
    const uint32_t most = mask >> shift;
    const uint32_t value = (pixel & mask) >> shift;
    return (uint8_t)(most == 255 ? value : value * 255 / most);
}

static void unpack_colours(const header *h, const uint8_t *p, uint8_t *out)
{
    const int bytes = h->bits / 8;
    const int channels = h->masks[3] ? 4 : 3;
    for (int x = 0; x < (int)h->width; x++, p += bytes, out += channels) {
        uint32_t pixel = sz_le16(p);
        if (bytes > 2) pixel |= (uint32_t)p[2] << 16;
        if (bytes > 3) pixel |= (uint32_t)p[3] << 24;
        for (int c = 0; c < channels; c++) out[c] = colour_of(pixel, h->masks[c]);
    }
}

/* ---- run lengths ---- */

/* Indexes are appended to `out`, row after row. */
typedef struct {
    const sz_source *bytes;
    size_t at; /* the next byte */
    uint8_t *out;
    size_t done, total, width;
    size_t x; /* the column of the next pixel, as the runs count it */
    bool four_bits;
} runs;

static void append(runs *r, uint8_t value)
{
    if (r->done < r->total) r->out[r->done++] = value;
}

/* n pixels of one value, or of two in turn. */
static void append_run(runs *r, size_t n, uint8_t byte)
{
    if (r->x + n > r->width) n = r->x < r->width ? r->width - r->x : 0;
    for (size_t i = 0; i < n; i++) {
        if (!r->four_bits) append(r, byte);
        else append(r, i % 2 == 0 ? byte >> 4 : byte & 15);
    }
    r->x += n;
}

/* n pixels as they are; whether they were there. The next run begins at an even place. */
static bool append_plain(runs *r, size_t n)
{
    const size_t left = r->total - r->done;
    const size_t pixels = n < left ? n : left;
    const size_t bytes = r->four_bits ? (pixels + 1) / 2 : pixels;
    if (bytes > r->bytes->size - r->at) return false;
    const uint8_t *p = r->bytes->memory + r->at;
    for (size_t i = 0; i < pixels; i++) {
        if (!r->four_bits) append(r, p[i]);
        else append(r, i % 2 == 0 ? p[i / 2] >> 4 : p[i / 2] & 15);
    }
    r->at += bytes;
    r->at += r->at % 2;
    r->x += n;
    return true;
}

/* Fills up to the end of a row, or over `right` pixels and `up` rows. */
static void append_gap(runs *r, size_t right, size_t up)
{
    for (size_t n = right + up * r->width; n > 0 && r->done < r->total; n--) append(r, 0);
    r->x = r->done % r->width;
}

/* Whether the file holds all pixels. */
static bool read_runs(runs *r)
{
    uint8_t pair[2];
    while (r->done < r->total && sz_source_get(r->bytes, r->at, pair, 2)) {
        r->at += 2;
        if (pair[0] > 0) {
            append_run(r, pair[0], pair[1]);
        } else if (pair[1] == 0) { /* the end of a row */
            append_gap(r, (r->width - r->done % r->width) % r->width, 0);
            r->x = 0;
        } else if (pair[1] == 1) { /* the end of the image */
            break;
        } else if (pair[1] == 2) { /* a gap */
            if (!sz_source_get(r->bytes, r->at, pair, 2)) break;
            r->at += 2;
            append_gap(r, pair[0], pair[1]);
        } else if (!append_plain(r, pair[1])) {
            break;
        }
    }
    return r->done == r->total;
}

/* ---- decoding ---- */

static void describe(const sz_source *b, const header *h, sz_layout *l)
{
    *l = (sz_layout){ .width = (int)h->width, .height = (int)h->height, .bytes = 1 };
    l->samples = h->masks[3] ? SZ_RGBA : SZ_RGB;
    if (h->bits > 8) return;

    /* Blue comes first. */
    l->samples = SZ_INDEX;
    sz_layout_clear_palette(l);
    for (int i = 0; i < h->colours; i++) {
        uint8_t p[3];
        if (!sz_source_get(b, h->palette + (size_t)(i * h->entry), p, 3)) break;
        l->palette[i][0] = p[2];
        l->palette[i][1] = p[1];
        l->palette[i][2] = p[0];
    }
}

static int decode_runs(const sz_source *b, const header *h, sz_target *to)
{
    const size_t width = (size_t)h->width;
    runs r = { .bytes = b, .at = h->pixels, .total = width * (size_t)h->height, .width = width };
    r.four_bits = h->compression == RLE4;
    r.out = malloc(r.total);
    if (!r.out) return sz_fail("%s: out of memory for %zu pixels", b->path, r.total);
    const bool whole = r.at <= b->size && read_runs(&r);
    for (int i = 0; whole && i < (int)h->height; i++)
        to->put(to, h->from_top ? i : (int)h->height - 1 - i, r.out + (size_t)i * width);
    free(r.out);
    return whole ? 0 : sz_image_cut_off(b);
}

static int decode_plain(const sz_source *b, const header *h, sz_target *to)
{
    /* sz_format_size has compared the size of the file. */
    uint8_t *row = malloc((size_t)h->width * 4);
    if (!row) return sz_fail("%s: out of memory for a row", b->path);
    for (int i = 0; i < (int)h->height; i++) {
        const uint8_t *p = b->memory + h->pixels + (size_t)i * (size_t)row_bytes(h);
        if (h->bits <= 8) unpack_indexes(h, p, row);
        else unpack_colours(h, p, row);
        to->put(to, h->from_top ? i : (int)h->height - 1 - i, row);
    }
    free(row);
    return 0;
}

static int decode(const sz_source *b, sz_target *to)
{
    header h;
    sz_layout layout;
    if (read_header(b, &h) != 0) return -1;
    describe(b, &h, &layout);
    if (to->begin(to, b, &layout) != 0) return -1;
    return run_lengths(&h) ? decode_runs(b, &h, to) : decode_plain(b, &h, to);
}

const sz_format sz_format_bmp = { "bmp", match, size, decode };
