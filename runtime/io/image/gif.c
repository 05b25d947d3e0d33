/* gif.c - the first image of a GIF, decoded here because no packaged library reads GIF alone.
 *
 * A screen larger than the image is filled with the transparent colour, or with colour 0. A
 * transparent pixel keeps its colour of the palette, as Pillow's convert("RGB") has it. Every pixel
 * of the image must be in the file.
 * Leaves out: later frames, comments, text.
 */
#include "image.h"
#include <stdlib.h>

enum { SCREEN = 13, DESCRIPTOR = 9, CODES = 4096, MAX_BITS = 12, CONTROL = 0xf9 };

static bool match(const uint8_t *head, size_t n)
{
    return n >= 6 && (memcmp(head, "GIF87a", 6) == 0 || memcmp(head, "GIF89a", 6) == 0);
}

/* ---- header ---- */

typedef struct {
    int width, height; /* of the screen, grown to hold the image */
    int x, y, w, h;    /* the image on it */
    bool interlaced;
    size_t colours; /* how many the palette has */
    uint8_t palette[256 * 3];
    int transparent; /* a colour, or -1 */
    size_t data;     /* where the compressed data begins */
} header;

/* Reads a palette of 2^(bits + 1) colours. */
static bool read_palette(const sz_source *b, size_t *at, int flags, header *h)
{
    const size_t n = (size_t)3 << ((flags & 7) + 1);
    if (!sz_source_get(b, *at, h->palette, n)) return false;
    h->colours = n / 3;
    *at += n;
    return true;
}

/* Skips a chain of blocks, each with its length in front. */
static bool skip_blocks(const sz_source *b, size_t *at)
{
    uint8_t n;
    do {
        if (!sz_source_get(b, *at, &n, 1)) return false;
        *at += 1 + (size_t)n;
    } while (n != 0);
    return true;
}

static bool read_extension(const sz_source *b, size_t *at, header *h)
{
    uint8_t p[6]; /* label, length, then the four bytes of a control block */
    const size_t n = sz_source_read(b, *at, p, sizeof p);
    if (n == sizeof p && p[0] == CONTROL && p[1] >= 4 && (p[2] & 1)) h->transparent = p[5];
    *at += 1;
    return skip_blocks(b, at);
}

/* The image descriptor and its palette. */
static bool read_descriptor(const sz_source *b, size_t *at, header *h)
{
    uint8_t p[DESCRIPTOR];
    if (!sz_source_get(b, *at, p, sizeof p)) return false;
    *at += sizeof p;
    h->x = (int)sz_le16(p);
    h->y = (int)sz_le16(p + 2);
    h->w = (int)sz_le16(p + 4);
    h->h = (int)sz_le16(p + 6);
    h->interlaced = (p[8] & 0x40) != 0;
    if (h->x + h->w > h->width) h->width = h->x + h->w;
    if (h->y + h->h > h->height) h->height = h->y + h->h;
    if ((p[8] & 0x80) && !read_palette(b, at, p[8], h)) return false;
    h->data = *at;
    return true;
}

/* Everything before the compressed data: 0, or -1 with a message. */
static int read_header(const sz_source *b, header *h)
{
    /* The screen. */
    uint8_t p[SCREEN];
    *h = (header){ .transparent = -1 };
    if (!sz_source_get(b, 0, p, sizeof p)) return sz_image_cut_off(b);
    h->width = (int)sz_le16(p + 6);
    h->height = (int)sz_le16(p + 8);
    size_t at = sizeof p;
    if ((p[10] & 0x80) && !read_palette(b, &at, p[10], h)) return sz_image_cut_off(b);

    /* Extensions up to the first image; other bytes are skipped, as in Pillow. */
    uint8_t kind;
    while (sz_source_get(b, at++, &kind, 1) && kind != ';') {
        if (kind == '!' && !read_extension(b, &at, h)) break;
        if (kind == ',') return read_descriptor(b, &at, h) ? 0 : sz_image_cut_off(b);
    }
    return sz_image_fail(b, "the file is cut off or holds no image");
}

static int size(const sz_source *b, sz_size *out)
{
    header h;
    if (read_header(b, &h) != 0) return -1;
    out->width = h.width;
    out->height = h.height;
    return 0;
}

/* ---- LZW ---- */

/* The next code of the data, whose bytes come in blocks. */
typedef struct {
    const sz_source *bytes;
    size_t at, block; /* the next byte; how many are left in its block */
    uint32_t bits;
    int count;
} reader;

static int next_code(reader *r, int width)
{
    while (r->count < width) {
        /* A block of length 0 ends the data. */
        if (r->block == 0) {
            if (r->at >= r->bytes->size) return -1;
            r->block = r->bytes->memory[r->at++];
            if (r->block == 0) return -1;
        }
        if (r->at >= r->bytes->size) return -1;
        r->bits |= (uint32_t)r->bytes->memory[r->at++] << r->count;
        r->count += 8;
        r->block--;
    }
    const int code = (int)(r->bits & ((1u << width) - 1));
    r->bits >>= width;
    r->count -= width;
    return code;
}

/* The table: the string of a code is the string of `before` and then `last`. */
typedef struct {
    uint16_t before[CODES];
    uint8_t last[CODES];
    uint8_t text[CODES + 1];
} table;

/* Decodes n pixels: NULL, or the reason why there are fewer. */
static const char *unpack(reader *r, int bits, uint8_t *out, size_t n)
{
    table t;
    const int clear = 1 << bits;
    int next = clear + 2; /* the next free code */
    int width = bits + 1;
    int previous = -1;
    uint8_t first = 0; /* of the previous string */
    size_t done = 0;
    while (done < n) {
        int code = next_code(r, width);
        if (code < 0) return "the file is cut off";
        if (code == clear) {
            next = clear + 2;
            width = bits + 1;
            previous = -1;
            continue;
        }
        if (code == clear + 1) return "it ends before its last pixel";
        if (code > next || (previous < 0 && code > clear)) return "the data is damaged";

        /* The string, from its end. The code that is about to be made repeats its first pixel. */
        const int whole = code;
        size_t length = 0;
        if (code == next) {
            t.text[length++] = first;
            code = previous;
        }
        while (code >= clear) {
            if (length >= CODES || code >= CODES) return "the data is damaged";
            t.text[length++] = t.last[code];
            code = t.before[code];
        }
        t.text[length++] = (uint8_t)code;
        first = (uint8_t)code;
        while (length > 0 && done < n) out[done++] = t.text[--length];

        /* The new code. */
        if (previous >= 0 && next < CODES) {
            t.before[next] = (uint16_t)previous;
            t.last[next] = first;
            if (next == (1 << width) - 1 && width < MAX_BITS) width++;
            next++;
        }
        previous = whole;
    }
    return NULL;
}

/* ---- decoding ---- */

/* The row of the image that is the i-th in the file. */
static int row_of(int i, int height, bool interlaced)
{
    static const int START[] = { 0, 4, 2, 1 };
    static const int STEP[] = { 8, 8, 4, 2 };
    if (!interlaced) return i;
    for (int pass = 0; pass < 4; pass++) {
        const int rows = (height - START[pass] + STEP[pass] - 1) / STEP[pass];
        if (i < rows) return START[pass] + i * STEP[pass];
        i -= rows;
    }
    return 0;
}

/* Without a palette, or with one of (0, 0, 0), (1, 1, 1), ..., an index is a grey. */
static bool is_grey(const header *h)
{
    for (size_t i = 0; i < 3 * h->colours; i++)
        if (h->palette[i] != i / 3) return false;
    return true;
}

static void describe(const header *h, sz_layout *l)
{
    *l = (sz_layout){ .width = h->width, .height = h->height, .bytes = 1, .samples = SZ_INDEX };
    l->index_is_flat = true;
    sz_layout_clear_palette(l);
    const bool grey = is_grey(h);
    for (size_t i = 0; i < 256; i++) {
        if (grey) memset(l->palette[i], (int)i, 3);
        else if (i < h->colours) memcpy(l->palette[i], h->palette + 3 * i, 3);
    }
    if (h->transparent >= 0) l->palette[h->transparent][3] = 0;
}

/* Puts the image on a screen of the background colour. */
static int put_rows(const sz_source *b, sz_target *to, const header *h, const uint8_t *pixels)
{
    uint8_t *row = malloc((size_t)h->width);
    if (!row) return sz_fail("%s: out of memory for a row", b->path);
    const int background = h->transparent >= 0 ? h->transparent : 0;
    memset(row, background, (size_t)h->width);
    for (int y = 0; y < h->height; y++)
        if (y < h->y || y >= h->y + h->h) to->put(to, y, row);
    for (int i = 0; i < h->h; i++) {
        memcpy(row + h->x, pixels + (size_t)i * (size_t)h->w, (size_t)h->w);
        to->put(to, h->y + row_of(i, h->h, h->interlaced), row);
    }
    free(row);
    return 0;
}

static int decode(const sz_source *b, sz_target *to)
{
    /* The header. */
    header h;
    if (read_header(b, &h) != 0) return -1;
    uint8_t bits;
    if (!sz_source_get(b, h.data, &bits, 1)) return sz_image_cut_off(b);
    if (bits > MAX_BITS - 1) return sz_image_fail(b, "the code size is damaged");
    sz_layout layout;
    describe(&h, &layout);
    if (to->begin(to, b, &layout) != 0) return -1;

    /* The pixels. */
    const size_t n = (size_t)h.w * (size_t)h.h;
    uint8_t *pixels = malloc(n ? n : 1);
    if (!pixels) return sz_fail("%s: out of memory for %d x %d pixels", b->path, h.w, h.h);
    reader r = { .bytes = b, .at = h.data + 1 };
    const char *fault = unpack(&r, bits, pixels, n);
    const int rc = fault ? sz_image_fail(b, fault) : put_rows(b, to, &h, pixels);
    free(pixels);
    return rc;
}

const sz_format sz_format_gif = { "gif", match, size, decode };
