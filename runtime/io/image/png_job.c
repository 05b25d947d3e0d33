/* png_job.c - a background job (jobs.c) that makes an image file of a given size: reads an image,
 * resizes it by areas and encodes it as PNG into memory. Used to prepare training data.
 * Leaves out: writing the PNG to a file.
 */
#include "image.h"
#include "graph.h"
#include <stdlib.h>

typedef struct {
    char *path;      /* owned; NULL: `image` is there already */
    uint8_t *stored; /* owned; the file's bytes, or NULL to read it */
    size_t stored_len;
    sz_image *image; /* a reference of its own */
    int width, height;
    uint8_t *bytes; /* the PNG, owned */
    size_t len;
    int source_width, source_height;
} png_job;

/* The image; without a path it is the job's own. */
static sz_image *image_of(const png_job *p)
{
    if (p->stored) return sz_image_load_bytes(p->stored, p->stored_len, p->path);
    return p->path ? sz_image_load(p->path) : p->image;
}

static int run(void *context)
{
    png_job *p = context;
    sz_image *from = image_of(p);
    if (!from) return -1;
    p->source_width = from->width;
    p->source_height = from->height;
    sz_image *resized = sz_image_resize_area(from, p->width, p->height);
    if (p->path) sz_image_free(from);
    if (!resized) return -1;
    p->bytes = sz_png_encode(p->width, p->height, 3, resized->pixels, &p->len);
    sz_image_free(resized);
    return p->bytes ? 0 : -1;
}

/* Runs on the main thread, where the image's references are counted. */
static void dispose(void *context)
{
    png_job *p = context;
    sz_image_free(p->image);
    free(p->bytes);
    free(p->stored);
    free(p->path);
    free(p);
}

sz_job *sz_image_png_start(const char *path, const uint8_t *bytes, size_t n, sz_image *im,
                           int width, int height)
{
    if (sz_image_check_size("resize", width, height) != 0) return NULL;
    png_job *p = calloc(1, sizeof *p);
    if (!p) return sz_null("out of memory");
    p->width = width;
    p->height = height;

    /* What the job reads is its own. */
    if (path) p->path = strdup(path);
    if (bytes) p->stored = malloc(n + 1);
    if (!path) p->image = sz_image_retain(im);
    if ((path && !p->path) || (bytes && !p->stored)) {
        dispose(p);
        return sz_null("%s: out of memory", path ? path : "image");
    }
    if (bytes) memcpy(p->stored, bytes, n);
    p->stored_len = n;
    return sz_job_start(run, dispose, p, false);
}

const uint8_t *sz_image_png_of(sz_job *j, size_t *len, int *width, int *height)
{
    const png_job *p = sz_job_context(j);
    *len = p->len;
    *width = p->source_width;
    *height = p->source_height;
    return p->bytes;
}
