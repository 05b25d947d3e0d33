/* png.c - PNG in and out, by libpng.
 *
 * A wrong checksum is an error, of a chunk and of the compressed data. The chunks after the last
 * row do not matter: a file without IEND is whole, as in Pillow. Chunks other than PLTE and tRNS
 * are skipped, so a damaged colour profile does not stop an image.
 * Leaves out: gamma and colour profiles; frames of an animation but the first.
 */
#include "image.h"
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <png.h>

enum {
    HEADER = 33, /* signature and the chunk IHDR */
    BUFFER = 1 << 16,
    /* Level 6, zlib's usual one, takes twice as long for a file of the same size. */
    LEVEL = 4,
    /* Deflate packs at most 1032 bytes into one. */
    DEFLATE_RATIO = 1032
};

/* ---- header ---- */

static bool match(const uint8_t *head, size_t n)
{
    return n >= 8 && memcmp(head, "\x89PNG\r\n\x1a\n", 8) == 0;
}

/* Samples of a pixel, by the header's colour type; 0 for an unknown one. */
static int channels_of(int type)
{
    switch (type) {
    case PNG_COLOR_TYPE_GRAY:
    case PNG_COLOR_TYPE_PALETTE: return 1;
    case PNG_COLOR_TYPE_GRAY_ALPHA: return 2;
    case PNG_COLOR_TYPE_RGB: return 3;
    case PNG_COLOR_TYPE_RGB_ALPHA: return 4;
    default: return 0;
    }
}

static int size(const sz_source *b, sz_size *out)
{
    uint8_t p[HEADER];
    if (!sz_source_get(b, 0, p, sizeof p)) return sz_image_cut_off(b);
    if (memcmp(p + 12, "IHDR", 4) != 0) return sz_image_fail(b, "the header is damaged");
    out->width = sz_be32(p + 16);
    out->height = sz_be32(p + 20);
    if (sz_image_check_size(b->path, out->width, out->height) != 0) return -1;

    /* The pixels must fit into the file. */
    const int64_t row = (out->width * p[24] * channels_of(p[25]) + 7) / 8 + 1;
    if (row * out->height / DEFLATE_RATIO > (int64_t)b->size)
        return sz_fail("%s: cannot decode the image: %zu bytes cannot hold %d x %d pixels", b->path,
                       b->size, (int)out->width, (int)out->height);
    out->orientation = sz_png_orientation(b);
    return out->orientation < 0 ? -1 : 0;
}

/* ---- errors ---- */

/* libpng leaves a function by calling the error function, which jumps back to ours. */
typedef struct {
    jmp_buf jump;
    bool damaged; /* a warning said that the compressed data is wrong */
    char reason[160];
} faults;

static void fault_exit(png_structp png, png_const_charp why)
{
    faults *f = png_get_error_ptr(png);
    snprintf(f->reason, sizeof f->reason, "%s", why);
    longjmp(f->jump, 1);
}

/* libpng only warns of a wrong checksum at the end of the data, and of bytes behind it, which do
 * no harm. */
static void fault_warn(png_structp png, png_const_charp why)
{
    faults *f = png_get_error_ptr(png);
    if (strncmp(why, "IDAT", 4) != 0 || strstr(why, "Extra") || strstr(why, "Too much")) return;
    snprintf(f->reason, sizeof f->reason, "%s", why);
    f->damaged = true;
}

/* ---- reading ---- */

typedef struct {
    faults faults;
    const sz_source *bytes;
    size_t at;
    png_structp png;
    png_infop info;
    uint8_t *rows; /* one row, or all rows of an interlaced image */
} decoder;

static void source_read(png_structp png, png_bytep to, size_t n)
{
    decoder *d = png_get_io_ptr(png);
    if (!sz_source_get(d->bytes, d->at, to, n)) png_error(png, "the file is cut off");
    d->at += n;
}

static void read_palette(decoder *d, sz_layout *l)
{
    png_colorp colours = NULL;
    int count = 0;
    sz_layout_clear_palette(l);
    png_get_PLTE(d->png, d->info, &colours, &count);
    for (int i = 0; i < count && i < 256; i++) {
        l->palette[i][0] = colours[i].red;
        l->palette[i][1] = colours[i].green;
        l->palette[i][2] = colours[i].blue;
    }

    /* Alpha of the first entries. */
    png_bytep alpha = NULL;
    int with_alpha = 0;
    if (png_get_tRNS(d->png, d->info, &alpha, &with_alpha, NULL) == 0 || !alpha) return;
    for (int i = 0; i < with_alpha && i < 256; i++) l->palette[i][3] = alpha[i];
}

/* The colour that is transparent, in the samples' own range, and Pillow's idea of it: the low byte
 * of what the file says, without scaling; white or black for one bit. */
static void read_key(decoder *d, sz_layout *l, int depth)
{
    png_color_16p key = NULL;
    if (png_get_tRNS(d->png, d->info, NULL, NULL, &key) == 0 || !key) return;
    l->has_key = true;
    if (l->samples == SZ_GREY) {
        const int scale = depth < 8 ? 255 / ((1 << depth) - 1) : 1;
        l->key[0] = (uint16_t)(key->gray * scale);
        l->shown_key[0] = (uint8_t)key->gray;
        if (depth == 1 && key->gray) l->shown_key[0] = 255;
        return;
    }
    l->key[0] = key->red;
    l->key[1] = key->green;
    l->key[2] = key->blue;
    for (int c = 0; c < 3; c++) l->shown_key[c] = (uint8_t)l->key[c];
}

static void describe(decoder *d, sz_layout *l)
{
    const int depth = png_get_bit_depth(d->png, d->info);
    const int type = png_get_color_type(d->png, d->info);
    *l = (sz_layout){ .width = (int)png_get_image_width(d->png, d->info),
                      .height = (int)png_get_image_height(d->png, d->info),
                      .bytes = depth == 16 ? 2 : 1 };
    switch (type) {
    case PNG_COLOR_TYPE_PALETTE:
        l->samples = SZ_INDEX;
        png_set_packing(d->png);
        read_palette(d, l);
        break;
    case PNG_COLOR_TYPE_GRAY:
        l->samples = SZ_GREY;
        if (depth < 8) png_set_expand_gray_1_2_4_to_8(d->png);
        read_key(d, l, depth);
        break;
    case PNG_COLOR_TYPE_RGB:
        l->samples = SZ_RGB;
        read_key(d, l, depth);
        break;
    case PNG_COLOR_TYPE_GRAY_ALPHA: l->samples = SZ_GREY_ALPHA; break;
    default: l->samples = SZ_RGBA; break;
    }
}

/* An interlaced image is complete only after its last pass. */
static void read_all_rows(decoder *d, sz_target *to, int height, int passes, size_t row_bytes)
{
    for (int pass = 0; pass < passes; pass++)
        for (int y = 0; y < height; y++)
            png_read_row(d->png, d->rows + (passes > 1 ? (size_t)y * row_bytes : 0), NULL);
    for (int y = 0; y < height; y++) to->put(to, y, d->rows + (size_t)y * row_bytes);
}

static int read_rows(decoder *d, const sz_source *b, sz_target *to)
{
    /* The header, without the chunks that do not matter here. */
    png_structp png = d->png;
    png_set_read_fn(png, d, source_read);
    png_set_user_limits(png, PNG_UINT_31_MAX, PNG_UINT_31_MAX);
    png_set_keep_unknown_chunks(png, PNG_HANDLE_CHUNK_NEVER, NULL, -1);
    png_set_crc_action(png, PNG_CRC_ERROR_QUIT, PNG_CRC_ERROR_QUIT);
    png_set_check_for_invalid_index(png, -1);
    png_read_info(png, d->info);

    sz_layout layout;
    describe(d, &layout);
    const int passes = png_set_interlace_handling(png);
    png_read_update_info(png, d->info);
    const size_t row_bytes = png_get_rowbytes(png, d->info);
    if (to->begin(to, b, &layout) != 0) return -1;

    /* The rows. */
    const size_t rows = passes > 1 ? (size_t)layout.height : 1;
    d->rows = malloc(rows * row_bytes);
    if (!d->rows) return sz_fail("%s: out of memory for %zu rows", b->path, rows);
    if (passes > 1) {
        read_all_rows(d, to, layout.height, passes, row_bytes);
    } else {
        for (int y = 0; y < layout.height; y++) {
            png_read_row(png, d->rows, NULL);
            to->put(to, y, d->rows);
        }
    }
    return d->faults.damaged ? sz_image_fail(b, d->faults.reason) : 0;
}

static int decode(const sz_source *b, sz_target *to)
{
    /* Errors of libpng arrive at setjmp. */
    decoder d = { .bytes = b };
    int rc;
    d.png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &d.faults, fault_exit, fault_warn);
    if (!d.png) return sz_fail("%s: out of memory", b->path);
    if (setjmp(d.faults.jump)) {
        rc = sz_image_fail(b, d.faults.reason);
    } else {
        d.info = png_create_info_struct(d.png);
        if (d.info) rc = read_rows(&d, b, to);
        else rc = sz_fail("%s: out of memory", b->path);
    }
    png_destroy_read_struct(&d.png, &d.info, NULL);
    free(d.rows);
    return rc;
}

const sz_format sz_format_png = { "png", match, size, decode };

/* ---- writing ---- */

typedef struct {
    faults faults;
    sz_writer *file;   /* NULL: to memory */
    bool write_failed; /* the sink has closed itself and left its message */
    uint8_t *memory;
    size_t len, room;
    png_structp png;
    png_infop info;
} encoder;

/* Adds bytes to the memory: 0, or -1 with a message. */
static int keep(encoder *e, const uint8_t *bytes, size_t n)
{
    if (n > e->room - e->len) {
        size_t room = 2 * e->room + n + BUFFER;
        uint8_t *more = realloc(e->memory, room);
        if (!more) return sz_fail("out of memory for a PNG");
        e->memory = more;
        e->room = room;
    }
    memcpy(e->memory + e->len, bytes, n);
    e->len += n;
    return 0;
}

static void sink_put(png_structp png, png_bytep bytes, size_t n)
{
    encoder *e = png_get_io_ptr(png);
    int rc = e->file ? sz_writer_put(e->file, bytes, n) : keep(e, bytes, n);
    if (rc == 0) return;
    e->write_failed = true;
    longjmp(e->faults.jump, 1);
}

static void sink_flush(png_structp png) { (void)png; }

static void write_rows(encoder *e, int width, int height, int channels, const uint8_t *pixels)
{
    const int type = channels == 1 ? PNG_COLOR_TYPE_GRAY : PNG_COLOR_TYPE_RGB;
    png_set_write_fn(e->png, e, sink_put, sink_flush);
    png_set_user_limits(e->png, PNG_UINT_31_MAX, PNG_UINT_31_MAX);
    png_set_compression_buffer_size(e->png, BUFFER);
    png_set_compression_level(e->png, LEVEL);
    png_set_IHDR(e->png, e->info, (png_uint_32)width, (png_uint_32)height, 8, type,
                 PNG_INTERLACE_NONE, PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
    png_write_info(e->png, e->info);
    const size_t row_bytes = (size_t)width * (size_t)channels;
    for (int y = 0; y < height; y++) png_write_row(e->png, pixels + (size_t)y * row_bytes);
    png_write_end(e->png, NULL);
}

/* Creates libpng's structures and writes; true if all went well. Errors of libpng and of the
 * writer arrive at setjmp. */
static bool encode(encoder *e, int width, int height, int channels, const uint8_t *pixels)
{
    snprintf(e->faults.reason, sizeof e->faults.reason, "out of memory");
    e->png = png_create_write_struct(PNG_LIBPNG_VER_STRING, &e->faults, fault_exit, fault_warn);
    if (!e->png) return false;
    if (setjmp(e->faults.jump)) return false;
    e->info = png_create_info_struct(e->png);
    if (!e->info) return false;
    write_rows(e, width, height, channels, pixels);
    return true;
}

int sz_png_write(const char *path, int width, int height, int channels, const uint8_t *pixels)
{
    sz_writer file;
    encoder e = { .file = &file };
    if (sz_writer_open(&file, path) != 0) return -1;
    const bool good = encode(&e, width, height, channels, pixels);
    if (e.png) png_destroy_write_struct(&e.png, &e.info);
    if (good) return sz_writer_commit(&file);
    if (e.write_failed) return -1;
    sz_writer_abort(&file);
    return sz_fail("%s: cannot encode an image of %d x %d: %s", path, width, height,
                   e.faults.reason);
}

uint8_t *sz_png_encode(int width, int height, int channels, const uint8_t *pixels, size_t *len)
{
    encoder e = { .file = NULL };
    const bool good = encode(&e, width, height, channels, pixels);
    if (e.png) png_destroy_write_struct(&e.png, &e.info);
    *len = e.len;
    if (good) return e.memory;
    free(e.memory);
    if (e.write_failed) return NULL;
    return sz_null("cannot encode an image of %d x %d: %s", width, height, e.faults.reason);
}
