/* header.c - which format a file has and how large its image is, from the first bytes.
 *
 * Only regular files are opened. Leaves out: the formats' own headers (png.c, jpeg.c, ...).
 */
#include "image.h"
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

/* 8192 x 8192: 201 MB as RGB, and about 600 MB while a decoder works on the worst file. Training
 * sees at most 12.8 million pixels of an image (data.max_pixels). */
static const int64_t MAX_PIXELS = (int64_t)1 << 26;

static const sz_format *const FORMATS[] = { &sz_format_jpeg, &sz_format_png, &sz_format_webp,
                                            &sz_format_gif,  &sz_format_bmp, &sz_format_pnm,
                                            &sz_format_psd,  &sz_format_tga };

int sz_image_check_size(const char *path, int64_t w, int64_t h)
{
    long long width = w;
    long long height = h;
    if (w < 1 || h < 1) return sz_fail("%s: size %lld x %lld is not positive", path, width, height);
    if (w > MAX_PIXELS / h)
        return sz_fail("%s: %lld x %lld is over the limit of %lld pixels; make the image smaller",
                       path, width, height, (long long)MAX_PIXELS);
    return 0;
}

/* ---- bytes ---- */

static size_t read_at(int fd, size_t offset, void *to, size_t n)
{
    size_t got = 0;
    while (got < n) {
        ssize_t k = pread(fd, (char *)to + got, n - got, (off_t)(offset + got));
        if (k < 0 && errno == EINTR) continue;
        if (k <= 0) break;
        got += (size_t)k;
    }
    return got;
}

/* n bytes of the file at offset, n at most a window: they are in the window, unless fewer are
 * left. */
static const uint8_t *in_window(const sz_source *b, size_t offset, size_t *n)
{
    sz_window *w = b->window;
    if (offset < w->start || offset - w->start > w->size || *n > w->size - (offset - w->start)) {
        w->start = offset;
        w->size = read_at(b->fd, offset, w->bytes, sizeof w->bytes);
        if (*n > w->size) *n = w->size;
    }
    return w->bytes + (offset - w->start);
}

size_t sz_source_read(const sz_source *b, size_t offset, void *to, size_t n)
{
    if (offset >= b->size) return 0;
    if (n > b->size - offset) n = b->size - offset;
    if (!b->memory && n > sizeof b->window->bytes) return read_at(b->fd, offset, to, n);
    const uint8_t *from = b->memory ? b->memory + offset : in_window(b, offset, &n);
    memcpy(to, from, n);
    return n;
}

bool sz_source_get(const sz_source *b, size_t offset, void *to, size_t n)
{
    return sz_source_read(b, offset, to, n) == n;
}

int sz_image_fail(const sz_source *b, const char *reason)
{
    return sz_fail("%s: cannot decode the image: %s", b->path, reason);
}

int sz_image_cut_off(const sz_source *b) { return sz_image_fail(b, "the file is cut off"); }

/* ---- formats ---- */

/* Files that are often met where an image was expected. */
typedef struct {
    size_t at;
    const char *magic;
    size_t length;
    const char *name;
} stranger;
static const stranger STRANGERS[] = {
    { 0, "II*\0", 4, "a TIFF file; convert it to PNG" },
    { 0, "MM\0*", 4, "a TIFF file; convert it to PNG" },
    { 4, "ftypavif", 8, "an AVIF file; convert it to PNG" },
    { 4, "ftyphei", 7, "an HEIC file; convert it to PNG" },
    { 4, "ftypmif1", 8, "an HEIC file; convert it to PNG" },
    { 4, "jP  ", 4, "a JPEG 2000 file; convert it to PNG" },
    { 0, "%PDF", 4, "a PDF file; convert it to PNG" },
    { 0, "<svg", 4, "an SVG file; convert it to PNG" },
    { 0, "<!DOCTYPE html", 14, "a web page, perhaps of a failed download" },
    { 0, "<!doctype html", 14, "a web page, perhaps of a failed download" },
    { 0, "<html", 5, "a web page, perhaps of a failed download" },
    { 0, "version https://", 16, "a pointer of Git LFS; git lfs pull gets the image" },
};

/* The message for a file that no reader knows. */
static const sz_format *unknown(const sz_source *b, const uint8_t *head, size_t n)
{
    for (size_t i = 0; i < sizeof STRANGERS / sizeof *STRANGERS; i++) {
        const stranger *s = &STRANGERS[i];
        if (n >= s->at + s->length && memcmp(head + s->at, s->magic, s->length) == 0)
            return sz_null("%s: not an image in a known format: it is %s", b->path, s->name);
    }
    return sz_null("%s: not an image in a known format (PNG, JPEG, WebP, BMP, GIF, PNM, TGA, PSD)",
                   b->path);
}

const sz_format *sz_format_find(const sz_source *b)
{
    uint8_t head[16] = { 0 };
    size_t n = sz_source_read(b, 0, head, sizeof head);
    /* TGA, which has no signature, is the last one. */
    for (size_t i = 0; i < sizeof FORMATS / sizeof *FORMATS; i++)
        if (FORMATS[i]->match(head, n)) return FORMATS[i];
    return unknown(b, head, n);
}

int sz_format_size(const sz_format *f, const sz_source *b, sz_size *out)
{
    *out = (sz_size){ .orientation = 1 };
    if (f->size(b, out) != 0) return -1;
    return sz_image_check_size(b->path, out->width, out->height);
}

/* ---- the public functions ---- */

/* Opens a regular file that is not empty: a descriptor, or -1 with a message. */
static int open_file(const char *path, size_t *size)
{
    /* Opening a named pipe would wait for its writer without O_NONBLOCK. */
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return sz_fail("%s: %s", path, strerror(errno));
    if (fstat(fd, &st) != 0) sz_fail("%s: %s", path, strerror(errno));
    else if (!S_ISREG(st.st_mode)) sz_fail("%s: not a regular file", path);
    else if (st.st_size == 0) sz_fail("%s: the file is empty", path);
    else {
        *size = (size_t)st.st_size;
        return fd;
    }
    close(fd);
    return -1;
}

/* What the header of an open source says. */
static int read_header(const sz_source *b, sz_image_header *out)
{
    /* The size as stored. */
    sz_size size;
    const sz_format *format = sz_format_find(b);
    if (!format || sz_format_size(format, b, &size) != 0) return -1;

    /* Orientations from 5 on swap the sides. */
    bool swapped = size.orientation >= 5;
    int64_t width = swapped ? size.height : size.width;
    int64_t height = swapped ? size.width : size.height;
    *out = (sz_image_header){ (int)width, (int)height, size.orientation, format->name };
    return 0;
}

int sz_image_info(const char *path, sz_image_header *out)
{
    sz_window window = { 0 };
    sz_source b = { .path = path, .window = &window };
    b.fd = open_file(path, &b.size);
    if (b.fd < 0) return -1;
    int rc = read_header(&b, out);
    close(b.fd);
    return rc;
}

int sz_image_check_bytes(size_t n, const char *name)
{
    if (n == 0) return sz_fail("%s: the file is empty", name);
    if (n > SZ_IMAGE_MAX_FILE)
        return sz_fail("%s: %zu bytes, more than the limit of %zu", name, n, SZ_IMAGE_MAX_FILE);
    return 0;
}

int sz_image_info_bytes(const uint8_t *bytes, size_t n, const char *name, sz_image_header *out)
{
    if (sz_image_check_bytes(n, name) != 0) return -1;
    sz_source b = { .path = name, .memory = bytes, .size = n };
    return read_header(&b, out);
}

int sz_image_size(const char *path, int *width, int *height)
{
    sz_image_header header;
    if (sz_image_info(path, &header) != 0) return -1;
    *width = header.width;
    *height = header.height;
    return 0;
}
