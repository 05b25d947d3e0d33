/* pnm.c - PBM, PGM and PPM, as text (P1, P2, P3) or as bytes (P4, P5, P6), read here.
 *
 * Values are stretched to 0..255 as Pillow does: the nearest value, halves to even; grey with more
 * than 8 bits is stretched to 16 bits and clipped at 255 later (rows.c).
 * Leaves out: PAM (P7), floating point (Pf, PF), files of several images.
 */
#include "image.h"
#include <math.h>
#include <stdlib.h>

enum { TOKEN = 10, MOST = 65535 };

typedef struct {
    int kind; /* 1 to 6 */
    int64_t width, height;
    int maximum; /* of a sample */
    int channels;
    bool bits; /* P1, P4: a sample is one bit, and 1 is black */
    size_t at; /* where the samples begin */
} header;

static bool is_space(uint8_t c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

static bool match(const uint8_t *head, size_t n)
{
    return n >= 3 && head[0] == 'P' && head[1] >= '1' && head[1] <= '6' && is_space(head[2]);
}

/* ---- header ---- */

/* Skips the rest of a comment's line. */
static void skip_line(const sz_source *b, size_t *at)
{
    uint8_t c;
    while (sz_source_get(b, (*at)++, &c, 1) && c != '\n' && c != '\r') continue;
}

/* The next number and the one space after it, or -1. Comments may stand anywhere. */
static int64_t read_number(const sz_source *b, size_t *at)
{
    int64_t value = 0;
    int digits = 0;
    uint8_t c;
    while (sz_source_get(b, *at, &c, 1)) {
        *at += 1;
        if (c == '#') {
            skip_line(b, at);
        } else if (is_space(c)) {
            if (digits > 0) return value;
        } else {
            if (c < '0' || c > '9' || ++digits > TOKEN) return -1;
            value = 10 * value + (c - '0');
        }
    }
    return digits > 0 ? value : -1;
}

static int read_header(const sz_source *b, header *h)
{
    /* The kind: text or bytes; bits, grey or colour. */
    uint8_t magic[2];
    if (!sz_source_get(b, 0, magic, 2)) return sz_image_cut_off(b);
    *h = (header){ .kind = magic[1] - '0', .at = 2 };
    h->channels = h->kind % 3 == 0 ? 3 : 1;
    h->bits = h->kind == 1 || h->kind == 4;

    /* The numbers. */
    h->width = read_number(b, &h->at);
    h->height = read_number(b, &h->at);
    const int64_t maximum = h->bits ? 1 : read_number(b, &h->at);
    if (h->width < 0 || h->height < 0 || maximum < 0)
        return sz_image_fail(b, "the header is damaged or cut off");
    if (maximum < 1 || maximum > MOST)
        return sz_fail("%s: cannot decode the image: its largest value is %lld, expected 1 to %d",
                       b->path, (long long)maximum, MOST);
    h->maximum = (int)maximum;
    return 0;
}

/* Bytes of a row that is not text. */
static int64_t row_bytes(const header *h)
{
    if (h->bits) return (h->width + 7) / 8;
    return h->width * h->channels * (h->maximum > 255 ? 2 : 1);
}

static int size(const sz_source *b, sz_size *out)
{
    header h;
    if (read_header(b, &h) != 0) return -1;
    out->width = h.width;
    out->height = h.height;
    if (sz_image_check_size(b->path, h.width, h.height) != 0) return -1;

    /* A number in text takes two bytes, a bit one; the last needs no space behind it. */
    int64_t need = row_bytes(&h) * h.height;
    const int64_t samples = h.width * h.height * h.channels;
    if (h.kind <= 3) need = h.bits ? samples : 2 * samples - 1;
    if (need > (int64_t)(b->size - (h.at < b->size ? h.at : b->size))) return sz_image_cut_off(b);
    return 0;
}

/* ---- samples ---- */

/* How a row becomes samples for the target. */
typedef struct {
    header h;
    sz_layout layout;
    uint16_t *scale; /* for each value of the file, the target's */
} plan;

/* Stretched as Python computes it: (value / maximum) * most, halves to even. */
static unsigned stretched(int value, int maximum, int most)
{
    const double scaled = rint((double)value / maximum * most);
    return scaled > most ? (unsigned)most : (unsigned)scaled;
}

static int make_plan(const sz_source *b, plan *p)
{
    if (read_header(b, &p->h) != 0) return -1;
    const header *h = &p->h;
    const bool wide = h->maximum > 255;
    p->layout = (sz_layout){ .width = (int)h->width,
                             .height = (int)h->height,
                             .bytes = wide ? 2 : 1,
                             .samples = h->channels == 3 ? SZ_RGB : SZ_GREY };

    /* The high byte of a wide colour is what Pillow computes; the low byte only keeps values other
     * than 0 apart from 0, for masks. */
    const int values = wide ? MOST + 1 : 256;
    p->scale = malloc(sizeof(uint16_t) * (size_t)values);
    if (!p->scale) return sz_fail("%s: out of memory", b->path);
    for (int v = 0; v < values; v++) {
        unsigned value = stretched(v, h->maximum, wide && h->channels == 1 ? MOST : 255);
        if (wide && h->channels == 3) value = value << 8 | (v > 0);
        if (h->bits) value = v ? 0 : 255;
        p->scale[v] = (uint16_t)value;
    }
    return 0;
}

/* Stores sample i of a row. */
static void store(const plan *p, uint8_t *row, size_t i, unsigned value)
{
    const uint16_t scaled = p->scale[value];
    if (p->layout.bytes == 1) {
        row[i] = (uint8_t)scaled;
        return;
    }
    row[2 * i] = (uint8_t)(scaled >> 8);
    row[2 * i + 1] = (uint8_t)scaled;
}

static void read_bytes(const plan *p, const uint8_t *from, uint8_t *row)
{
    const size_t n = (size_t)p->h.width * (size_t)p->h.channels;
    for (size_t i = 0; i < n; i++) {
        unsigned value = from[p->h.bits ? i / 8 : i];
        if (p->h.bits) value = value >> (7 - i % 8) & 1;
        if (p->layout.bytes == 2) value = sz_be16(from + 2 * i);
        store(p, row, i, value);
    }
}

/* The next number of a text, or -1. */
static int64_t read_sample(const plan *p, const sz_source *b, size_t *at)
{
    if (!p->h.bits) return read_number(b, at);

    /* Bits need no space between them. */
    uint8_t c;
    while (sz_source_get(b, (*at)++, &c, 1)) {
        if (c == '#') skip_line(b, at);
        else if (c == '0' || c == '1') return c - '0';
        else if (!is_space(c)) return -1;
    }
    return -1;
}

static int read_text(const plan *p, const sz_source *b, size_t *at, uint8_t *row)
{
    const size_t n = (size_t)p->h.width * (size_t)p->h.channels;
    for (size_t i = 0; i < n; i++) {
        const int64_t value = read_sample(p, b, at);
        if (value < 0 && *at >= b->size) return sz_image_cut_off(b);
        if (value < 0) return sz_image_fail(b, "a number is damaged");
        if (value > p->h.maximum) return sz_image_fail(b, "a value is above the largest");
        store(p, row, i, (unsigned)value);
    }
    return 0;
}

static int read_rows(const plan *p, const sz_source *b, sz_target *to, uint8_t *row)
{
    /* Values that need no change are taken from the file as they are. */
    const header *h = &p->h;
    const bool plain = !h->bits && (h->maximum == 255 || (h->maximum == MOST && h->channels == 1));
    size_t at = h->at;
    for (int y = 0; y < (int)h->height; y++) {
        if (h->kind <= 3) {
            if (read_text(p, b, &at, row) != 0) return -1;
            to->put(to, y, row);
            continue;
        }
        const uint8_t *from = b->memory + at;
        if (!plain) read_bytes(p, from, row);
        to->put(to, y, plain ? from : row);
        at += (size_t)row_bytes(h);
    }
    return 0;
}

static int decode(const sz_source *b, sz_target *to)
{
    plan p = { .scale = NULL };
    int rc = make_plan(b, &p);
    if (rc == 0) rc = to->begin(to, b, &p.layout);
    if (rc == 0) {
        uint8_t *row = malloc((size_t)p.h.width * (size_t)p.h.channels * 2);
        rc = row ? read_rows(&p, b, to, row) : sz_fail("%s: out of memory for a row", b->path);
        free(row);
    }
    free(p.scale);
    return rc;
}

const sz_format sz_format_pnm = { "pnm", match, size, decode };
