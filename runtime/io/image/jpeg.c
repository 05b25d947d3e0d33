/* jpeg.c - JPEG in and out, by libjpeg-turbo with Pillow's settings: the accurate DCT, smooth
 * upsampling, CMYK and YCCK inverted as Adobe's programs write them.
 *
 * All bytes are in memory. A file that ends before its last row is refused; damage that libjpeg
 * can read past is read past, as Pillow does. A file without Huffman tables is refused.
 * Leaves out: 12 bits a sample, lossless JPEG, colour profiles, images after the first.
 */
#include "image.h"
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <jpeglib.h>
#include <jerror.h>

enum {
    QUALITY = 92,
    BUFFER = 1 << 16,
    /* A progressive file has about 10 scans. Each costs a pass over the image, so a large image may
     * have fewer of them. */
    MOST_SCANS = 100,
    FEWEST_SCANS = 20,
    PIXELS_OF_ALL_SCANS = 1 << 28,
    /* An 8 x 8 block takes at least one bit, so a byte holds at most 512 pixels. */
    PIXELS_OF_BYTE = 512,
    /* Arithmetic coding may take less. */
    PIXELS_OF_BYTE_ARITHMETIC = 512 * 64,
};

/* Coefficients of a progressive file: 402 MB for the largest image in colour. */
static const long MAX_MEMORY = 600L << 20;

enum {
    SOF0 = 0xc0,
    SOF9 = 0xc9,
    SOF15 = 0xcf,
    DHT = 0xc4,
    JPG = 0xc8,
    DAC = 0xcc,
    RST0 = 0xd0,
    EOI = 0xd9,
    SOS = 0xda,
    APP1 = 0xe1,
    TEM = 0x01
};

/* ---- header ---- */

static bool match(const uint8_t *head, size_t n)
{
    return n >= 3 && memcmp(head, "\xff\xd8\xff", 3) == 0;
}

/* Goes to the next marker: its offset, or 0 at the end of the file. */
static size_t next_marker(const sz_source *b, size_t at, uint8_t *marker)
{
    uint8_t pair[2];
    while (sz_source_get(b, at, pair, 2)) {
        if (pair[0] == 0xff && pair[1] != 0xff && pair[1] != 0) {
            *marker = pair[1];
            return at;
        }
        at++;
    }
    return 0;
}

static bool is_frame(uint8_t marker)
{
    return marker >= SOF0 && marker <= SOF15 && marker != DHT && marker != JPG && marker != DAC;
}

enum { MOST_PARTS = 16, EXIF_NAME = 6 };

/* Where the segments with EXIF are. A block that is longer than a segment goes on in the next one.
 * Those after the first 16 (1 MB) are not looked at. */
typedef struct {
    size_t at[MOST_PARTS];
    size_t n[MOST_PARTS];
    int count;
} exif_parts;

/* Notes an APP1 segment of n bytes with EXIF, or looks for the orientation in one with XMP. */
static void read_app1(const sz_source *b, size_t at, size_t n, exif_parts *exif, int *xmp)
{
    static const char XMP[] = "http://ns.adobe.com/xap/1.0/";
    uint8_t p[sizeof XMP];
    const size_t got = sz_source_read(b, at, p, n < sizeof p ? n : sizeof p);
    const bool is_exif = got >= EXIF_NAME && memcmp(p, "Exif\0\0", EXIF_NAME) == 0;
    if (is_exif && exif->count < MOST_PARTS) {
        exif->at[exif->count] = at + EXIF_NAME;
        exif->n[exif->count++] = n - EXIF_NAME;
    }
    if (got == sizeof p && memcmp(p, XMP, sizeof p) == 0) *xmp = sz_xmp_orientation(b, at, n);
}

/* The orientation in all parts together, 0 if there is none, or -1 with a message. */
static int exif_orientation(const sz_source *b, const exif_parts *parts)
{
    if (parts->count == 0) return 0;
    if (parts->count == 1) return sz_exif_orientation(b, parts->at[0], parts->n[0]);

    /* Join them. */
    size_t total = 0;
    for (int i = 0; i < parts->count; i++) total += parts->n[i];
    uint8_t *bytes = malloc(total + 1);
    if (!bytes) return sz_fail("%s: out of memory", b->path);
    size_t size = 0;
    for (int i = 0; i < parts->count; i++)
        size += sz_source_read(b, parts->at[i], bytes + size, parts->n[i]);
    const sz_source joined = { .path = b->path, .memory = bytes, .size = size };
    const int orientation = sz_exif_orientation(&joined, 0, size);
    free(bytes);
    return orientation;
}

/* The size in a frame header of n bytes. */
static int read_frame(const sz_source *b, size_t at, size_t n, uint8_t marker, sz_size *out)
{
    uint8_t frame[6];
    if (n < sizeof frame) return sz_image_fail(b, "the frame header is damaged");
    if (!sz_source_get(b, at, frame, sizeof frame)) return sz_image_cut_off(b);
    out->height = sz_be16(frame + 1);
    out->width = sz_be16(frame + 3);
    const int64_t per_byte = marker >= SOF9 ? PIXELS_OF_BYTE_ARITHMETIC : PIXELS_OF_BYTE;
    if (out->width * out->height / per_byte > (int64_t)b->size)
        return sz_fail("%s: cannot decode the image: %zu bytes cannot hold %d x %d pixels", b->path,
                       b->size, (int)out->width, (int)out->height);
    return 0;
}

static int size(const sz_source *b, sz_size *out)
{
    exif_parts parts = { .count = 0 };
    int xmp = 0;
    size_t at = 2;
    uint8_t marker = 0;
    bool found = false;
    while ((at = next_marker(b, at, &marker)) != 0 && marker != SOS) {
        /* Markers without a segment. */
        at += 2;
        if (marker == TEM || (marker >= RST0 && marker <= EOI)) continue;

        /* The segment. */
        uint8_t length[2];
        if (!sz_source_get(b, at, length, 2)) return sz_image_cut_off(b);
        const size_t n = sz_be16(length);
        if (n < 2) return sz_image_fail(b, "a segment's length is damaged");
        if (marker == APP1) read_app1(b, at + 2, n - 2, &parts, &xmp);
        if (is_frame(marker) && !found) {
            if (read_frame(b, at + 2, n - 2, marker, out) != 0) return -1;
            found = true;
        }
        at += n;
    }
    if (at == 0) return sz_image_cut_off(b);
    if (!found) return sz_image_fail(b, "it has no frame header");
    const int exif = exif_orientation(b, &parts);
    if (exif < 0) return -1;
    out->orientation = sz_orientation(exif, xmp);
    return 0;
}

/* ---- errors ---- */

/* libjpeg leaves a function by calling error_exit, which jumps back to ours. */
typedef struct {
    struct jpeg_error_mgr base; /* first: libjpeg knows only this part */
    jmp_buf jump;
    char reason[JMSG_LENGTH_MAX];
} faults;

static void fault_exit(j_common_ptr c)
{
    faults *f = (faults *)c->err;
    c->err->format_message(c, f->reason);
    longjmp(f->jump, 1);
}

static void fault_message(j_common_ptr c) { (void)c; }

static struct jpeg_error_mgr *faults_init(faults *f)
{
    jpeg_std_error(&f->base);
    f->base.error_exit = fault_exit;
    f->base.output_message = fault_message;
    f->reason[0] = 0;
    return &f->base;
}

/* ---- reading ---- */

typedef struct {
    struct jpeg_decompress_struct c; /* first: the source's functions get this */
    faults faults;
    struct jpeg_source_mgr source;
    struct jpeg_progress_mgr progress;
    uint8_t *row; /* freed with the decoder */
} decoder;

static void source_nothing(j_decompress_ptr c) { (void)c; }

/* There are no more bytes: libjpeg gives up, and the file counts as cut off. */
static boolean source_fill(j_decompress_ptr c)
{
    (void)c;
    return FALSE;
}

static void source_skip(j_decompress_ptr c, long n)
{
    if (n <= 0) return;
    size_t step = (size_t)n;
    if (step > c->src->bytes_in_buffer) step = c->src->bytes_in_buffer;
    c->src->next_input_byte += step;
    c->src->bytes_in_buffer -= step;
}

/* How many scans an image of this size may have. */
static int scan_limit(const struct jpeg_decompress_struct *c)
{
    const int64_t limit = PIXELS_OF_ALL_SCANS / ((int64_t)c->image_width * c->image_height);
    if (limit < FEWEST_SCANS) return FEWEST_SCANS;
    return limit > MOST_SCANS ? MOST_SCANS : (int)limit;
}

static void count_scans(j_common_ptr common)
{
    decoder *d = (decoder *)common;
    const int limit = scan_limit(&d->c);
    if (d->c.input_scan_number <= limit) return;
    snprintf(d->faults.reason, sizeof d->faults.reason, "it has more than %d scans", limit);
    longjmp(d->faults.jump, 1);
}

/* Whether the first scan's Huffman tables are in the file. libjpeg-turbo would take standard ones.
 */
static bool has_tables(const struct jpeg_decompress_struct *c)
{
    if (c->arith_code || c->progressive_mode) return true;
    for (int i = 0; i < c->comps_in_scan; i++) {
        const int dc = c->cur_comp_info[i]->dc_tbl_no;
        const int ac = c->cur_comp_info[i]->ac_tbl_no;
        if (dc < 0 || dc >= NUM_HUFF_TBLS || !c->dc_huff_tbl_ptrs[dc]) return false;
        if (ac < 0 || ac >= NUM_HUFF_TBLS || !c->ac_huff_tbl_ptrs[ac]) return false;
    }
    return true;
}

/* a * b / 255, rounded. */
static unsigned times(unsigned a, unsigned b)
{
    unsigned product = a * b + 128;
    return (product + (product >> 8)) >> 8;
}

/* A row of inverted CMYK to RGB, in place, as Pillow converts it. */
static void cmyk_to_rgb(uint8_t *row, int width)
{
    uint8_t *out = row;
    for (const uint8_t *in = row; width > 0; width--, in += 4) {
        const unsigned light = in[3];
        for (int i = 0; i < 3; i++) *out++ = (uint8_t)(light - times(255u - in[i], light));
    }
}

/* Reads the header and chooses the settings: 0, or -1 with a message. */
static int start(decoder *d, const sz_source *b, sz_layout *l)
{
    struct jpeg_decompress_struct *c = &d->c;
    c->mem->max_memory_to_use = MAX_MEMORY;
    int found;
    do found = jpeg_read_header(c, FALSE);
    while (found == JPEG_HEADER_TABLES_ONLY);
    if (found != JPEG_HEADER_OK) return sz_image_cut_off(b);
    if (!has_tables(c)) return sz_image_fail(b, "it has no Huffman tables");

    /* Colours. */
    *l = (sz_layout){ .bytes = 1, .lossy = true, .samples = SZ_RGB };
    switch (c->num_components) {
    case 1:
        c->out_color_space = JCS_GRAYSCALE;
        l->samples = SZ_GREY;
        break;
    case 3: c->out_color_space = JCS_RGB; break;
    case 4: c->out_color_space = JCS_CMYK; break;
    default: return sz_image_fail(b, "it has neither 1, 3 nor 4 channels");
    }
    l->width = (int)c->image_width;
    l->height = (int)c->image_height;
    return 0;
}

static int read_rows(decoder *d, const sz_source *b, sz_target *to)
{
    sz_layout layout;
    if (start(d, b, &layout) != 0 || to->begin(to, b, &layout) != 0) return -1;
    d->row = malloc((size_t)layout.width * 4);
    if (!d->row) return sz_fail("%s: out of memory for a row", b->path);
    if (!jpeg_start_decompress(&d->c)) return sz_image_cut_off(b);
    for (int y = 0; y < layout.height; y++) {
        if (jpeg_read_scanlines(&d->c, &d->row, 1) != 1) return sz_image_cut_off(b);
        if (d->c.out_color_space == JCS_CMYK) cmyk_to_rgb(d->row, layout.width);
        to->put(to, y, d->row);
    }
    return 0;
}

static int decode(const sz_source *b, sz_target *to)
{
    decoder d = { .source = { .next_input_byte = b->memory,
                              .bytes_in_buffer = b->size,
                              .init_source = source_nothing,
                              .fill_input_buffer = source_fill,
                              .skip_input_data = source_skip,
                              .resync_to_restart = jpeg_resync_to_restart,
                              .term_source = source_nothing } };
    d.c.err = faults_init(&d.faults);
    d.progress.progress_monitor = count_scans;

    /* Errors of libjpeg arrive here. */
    int rc;
    if (setjmp(d.faults.jump)) {
        rc = sz_image_fail(b, d.faults.reason);
    } else {
        jpeg_create_decompress(&d.c);
        d.c.src = &d.source;
        d.c.progress = &d.progress;
        rc = read_rows(&d, b, to);
    }
    jpeg_destroy_decompress(&d.c);
    free(d.row);
    return rc;
}

const sz_format sz_format_jpeg = { "jpeg", match, size, decode };

/* ---- writing ---- */

typedef struct {
    struct jpeg_compress_struct c; /* first, as above */
    faults faults;
    struct jpeg_destination_mgr destination;
    sz_writer file;
    bool write_failed; /* the writer has closed itself and left its message */
    uint8_t buffer[BUFFER];
} encoder;

static void sink_start(j_compress_ptr c)
{
    encoder *e = (encoder *)c;
    e->destination.next_output_byte = e->buffer;
    e->destination.free_in_buffer = BUFFER;
}

static void sink_put(encoder *e, size_t n)
{
    if (sz_writer_put(&e->file, e->buffer, n) == 0) return;
    e->write_failed = true;
    longjmp(e->faults.jump, 1);
}

static boolean sink_full(j_compress_ptr c)
{
    sink_put((encoder *)c, BUFFER);
    sink_start(c);
    return TRUE;
}

static void sink_end(j_compress_ptr c)
{
    encoder *e = (encoder *)c;
    sink_put(e, BUFFER - e->destination.free_in_buffer);
}

static void write_rows(encoder *e, int width, int height, const uint8_t *pixels)
{
    struct jpeg_compress_struct *c = &e->c;
    jpeg_create_compress(c);
    c->dest = &e->destination;
    c->image_width = (JDIMENSION)width;
    c->image_height = (JDIMENSION)height;
    c->input_components = 3;
    c->in_color_space = JCS_RGB;
    jpeg_set_defaults(c);
    jpeg_set_quality(c, QUALITY, TRUE);

    /* Colours are stored at full size. */
    c->comp_info[0].h_samp_factor = 1;
    c->comp_info[0].v_samp_factor = 1;
    jpeg_start_compress(c, TRUE);
    for (int y = 0; y < height; y++) {
        JSAMPROW row = (JSAMPROW)(pixels + (size_t)y * (size_t)width * 3);
        jpeg_write_scanlines(c, &row, 1);
    }
    jpeg_finish_compress(c);
}

int sz_jpeg_write(const char *path, int width, int height, const uint8_t *pixels)
{
    /* The encoder has a large buffer, so it is on the heap. */
    encoder *e = calloc(1, sizeof *e);
    if (!e) return sz_fail("%s: out of memory", path);
    if (sz_writer_open(&e->file, path) != 0) {
        free(e);
        return -1;
    }
    e->destination.init_destination = sink_start;
    e->destination.empty_output_buffer = sink_full;
    e->destination.term_destination = sink_end;
    e->c.err = faults_init(&e->faults);

    /* Errors of libjpeg and of the writer arrive here. */
    int rc = -1;
    if (setjmp(e->faults.jump) == 0) {
        write_rows(e, width, height, pixels);
        rc = sz_writer_commit(&e->file);
    } else if (!e->write_failed) {
        sz_writer_abort(&e->file);
        sz_fail("%s: cannot encode an image of %d x %d: %s", path, width, height, e->faults.reason);
    }
    jpeg_destroy_compress(&e->c);
    free(e);
    return rc;
}
