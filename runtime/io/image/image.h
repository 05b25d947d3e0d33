/* image.h - what the image readers share. A reader turns the bytes of one format into rows of raw
 * samples and hands them to a target, which makes RGB pixels (rows.c) or a mask (mask.c) of them.
 *
 *   sz_target target = { ... };                       a target's three functions
 *   sz_png_decode(&bytes, &target)                  begin, then each row once, in any order
 *
 * Every size comes from the file and is checked before memory is allocated for it. A reader returns
 * 0, or -1 with a message that begins with the file's name.
 * Leaves out: the public functions (sz.h).
 */
#ifndef SZ_IMAGE_H
#define SZ_IMAGE_H

#include "io/io.h"

/* The largest image of 16-bit RGBA without compression. */
#define SZ_IMAGE_MAX_FILE ((size_t)600 << 20)

/* ---- the bytes of a file ---- */

/* The part of an open file that was read last, so that many small reads are few calls. */
typedef struct {
    size_t start, size;
    uint8_t bytes[4096];
} sz_window;

/* A file in memory, or an open one of which only the header is read. */
typedef struct {
    const char *path;
    const uint8_t *memory; /* NULL: read from fd, through the window */
    int fd;
    sz_window *window;
    size_t size;
} sz_source;

/* Copies up to n bytes that begin at offset; returns how many there were. */
size_t sz_source_read(const sz_source *b, size_t offset, void *to, size_t n);
/* Whether n bytes were there. */
bool sz_source_get(const sz_source *b, size_t offset, void *to, size_t n);

/* Whether n bytes may be an image: 0, or -1 with a message that begins with `name`. */
int sz_image_check_bytes(size_t n, const char *name);

/* "PATH: cannot decode the image: REASON"; returns -1. */
int sz_image_fail(const sz_source *b, const char *reason);
/* The same for a file that ends too early. */
int sz_image_cut_off(const sz_source *b);

static inline uint32_t sz_be16(const uint8_t *p) { return (uint32_t)p[0] << 8 | p[1]; }
static inline uint32_t sz_le16(const uint8_t *p) { return (uint32_t)p[1] << 8 | p[0]; }
static inline uint32_t sz_be32(const uint8_t *p) { return sz_be16(p) << 16 | sz_be16(p + 2); }
static inline uint32_t sz_le32(const uint8_t *p) { return sz_le16(p + 2) << 16 | sz_le16(p); }

/* ---- samples ---- */

typedef enum { SZ_GREY, SZ_GREY_ALPHA, SZ_RGB, SZ_RGBA, SZ_INDEX } sz_samples;

/* The layout of a reader's rows. */
typedef struct {
    int width, height;
    sz_samples samples;
    int bytes;          /* of a sample: 1, or 2 with the high byte first */
    bool lossy;         /* values are not exact, as in JPEG */
    bool has_key;       /* pixels of the colour `key` are transparent (SZ_GREY, SZ_RGB) */
    bool index_is_flat; /* SZ_INDEX: alpha does not count for colours, as in GIF */
    uint16_t key[3];
    uint8_t shown_key[3]; /* what Pillow takes `key` for: it compares the 8-bit colours with it */
    uint8_t palette[256][4]; /* SZ_INDEX: red, green, blue, alpha */
} sz_layout;

/* Samples of one pixel: 1 to 4. */
int sz_layout_channels(const sz_layout *l);
/* Makes all indexes black and opaque, as Pillow has those that are not in a file's palette. */
void sz_layout_clear_palette(sz_layout *l);

/* Where rows go. begin is called once, before the rows; put, once for each row. */
typedef struct sz_target sz_target;
struct sz_target {
    int (*begin)(sz_target *to, const sz_source *b, const sz_layout *layout);
    void (*put)(sz_target *to, int y, const uint8_t *samples);
};

/* ---- formats ---- */

/* What a header says. Width and height are those of the stored rows, before the orientation. */
typedef struct {
    int64_t width, height;
    int orientation; /* EXIF's, 1 to 8 */
} sz_size;

typedef struct {
    const char *name;
    bool (*match)(const uint8_t *head, size_t n);
    int (*size)(const sz_source *b, sz_size *out);
    int (*decode)(const sz_source *b, sz_target *to);
} sz_format;

extern const sz_format sz_format_png, sz_format_jpeg, sz_format_webp, sz_format_gif, sz_format_bmp,
    sz_format_pnm, sz_format_psd, sz_format_tga;

/* The format that the first bytes show, or NULL with a message. */
const sz_format *sz_format_find(const sz_source *b);
/* Reads the header and checks the size against the limit. */
int sz_format_size(const sz_format *f, const sz_source *b, sz_size *out);

/* Reads a whole image or mask; NULL with a message. The mask is u8 [h, w], freed by the caller. */
sz_image *sz_image_decode(const sz_source *b);
uint8_t *sz_mask_decode(const sz_source *b, int *width, int *height);

/* Encoders: pixels [h, w, channels]. */
int sz_png_write(const char *path, int width, int height, int channels, const uint8_t *pixels);
/* The same into memory that the caller frees; NULL with a message. */
uint8_t *sz_png_encode(int width, int height, int channels, const uint8_t *pixels, size_t *len);
int sz_jpeg_write(const char *path, int width, int height, const uint8_t *pixels);

/* The orientation in a PNG's chunks, 1 to 8, or -1 with a message (png_orientation.c). */
int sz_png_orientation(const sz_source *b);

/* ---- resize_area.c ---- */

/* A new image as OpenCV's INTER_AREA makes it; NULL with a message. */
sz_image *sz_image_resize_area(const sz_image *im, int width, int height);

/* ---- exif.c ---- */

/* The orientation in n bytes of EXIF (TIFF, with or without "Exif\0\0" in front) that begin at
 * `at`, or 0 if there is none. */
int sz_exif_orientation(const sz_source *b, size_t at, size_t n);
/* The same for XMP text. */
int sz_xmp_orientation(const sz_source *b, size_t at, size_t n);
/* The orientation of both, EXIF's first: 1 to 8. Either may be 0. */
int sz_orientation(int exif, int xmp);
/* Turns pixels [h, w, channels] upright. Takes over `pixels` and returns them or a new array, and
 * updates the size; NULL if memory is out (pixels are freed). */
uint8_t *sz_exif_turn(uint8_t *pixels, int *width, int *height, int channels, int orientation);

/* ---- rows.c ---- */

/* A target that makes 8-bit RGB. */
typedef struct {
    sz_target rows;
    sz_layout layout;
    sz_image *image; /* NULL before begin */
} sz_rgb_target;
sz_rgb_target sz_rgb_target_new(void);

#endif
