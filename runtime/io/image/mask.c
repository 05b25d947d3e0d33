/* mask.c - a mask from an image file: u8 [h, w], 1 inside and 0 outside.
 *
 * Anything but 0 is inside, so 0/1, 0/255, 16-bit, coloured and label masks all work. In order:
 *
 *   1. Alpha decides if the image has fully transparent pixels and others: any alpha but 0 is
 *      inside. (An alpha channel that is the same everywhere says nothing.)
 *   2. A palette's index decides, because label maps are stored so: any index but 0 is inside. But
 *      if index 0 is not black and another index in use is, the colour decides: such a palette was
 *      made by a program that sorts colours.
 *   3. Else the samples decide, before any conversion: any channel but 0 is inside. JPEG and lossy
 *      WebP blur edges, so there a channel must be above 127.
 *
 * The EXIF orientation turns a mask as it turns an image (exif.c).
 * Leaves out: an error for an empty mask, which the data check raises.
 */
#include "image.h"
#include <stdlib.h>

enum { LOSSY_LEVEL = 127 };

typedef struct {
    sz_target rows;
    sz_layout layout;
    uint8_t *samples;         /* [h, w]: the index, or whether the colour is inside */
    uint8_t *alpha;           /* [h, w]: whether alpha is not 0; NULL without alpha */
    bool transparent, opaque; /* some pixel has alpha 0; some other has not */
    bool used[256];           /* the indexes that occur */
} mask_target;

static int begin(sz_target *rows, const sz_source *b, const sz_layout *layout)
{
    mask_target *to = (mask_target *)rows;
    if (sz_image_check_size(b->path, layout->width, layout->height) != 0) return -1;
    to->layout = *layout;
    const size_t pixels = (size_t)layout->width * (size_t)layout->height;
    const sz_samples s = layout->samples;
    const bool has_alpha = s == SZ_GREY_ALPHA || s == SZ_RGBA || layout->has_key;
    to->samples = calloc(pixels, 1);
    if (has_alpha) to->alpha = calloc(pixels, 1);
    if (!to->samples || (has_alpha && !to->alpha))
        return sz_fail("%s: out of memory for a mask of %d x %d", b->path, layout->width,
                       layout->height);
    return 0;
}

static void put_index(mask_target *to, uint8_t *out, const uint8_t *samples)
{
    memcpy(out, samples, (size_t)to->layout.width);
    for (int x = 0; x < to->layout.width; x++) to->used[samples[x]] = true;
}

static unsigned sample_of(const sz_layout *l, const uint8_t *p)
{
    return l->bytes == 2 ? sz_be16(p) : *p;
}

static void put(sz_target *rows, int y, const uint8_t *p)
{
    mask_target *to = (mask_target *)rows;
    const sz_layout *l = &to->layout;
    const size_t row = (size_t)y * (size_t)l->width;
    if (l->samples == SZ_INDEX) {
        put_index(to, to->samples + row, p);
        return;
    }

    /* The colour's channels come first, then alpha. */
    const int channels = sz_layout_channels(l);
    const bool alpha_channel = l->samples == SZ_GREY_ALPHA || l->samples == SZ_RGBA;
    const int colours = alpha_channel ? channels - 1 : channels;
    const unsigned level = l->lossy ? LOSSY_LEVEL : 0;
    for (int x = 0; x < l->width; x++, p += channels * l->bytes) {
        bool inside = false;
        bool key = l->has_key;
        for (int c = 0; c < colours; c++) {
            unsigned value = sample_of(l, p + c * l->bytes);
            if (value > level) inside = true;
            if (value != l->key[c]) key = false;
        }
        to->samples[row + (size_t)x] = inside;
        if (!to->alpha) continue;
        bool seen = alpha_channel ? sample_of(l, p + colours * l->bytes) != 0 : !key;
        to->alpha[row + (size_t)x] = seen;
        if (seen) to->opaque = true;
        else to->transparent = true;
    }
}

/* Which indexes are inside. */
static void inside_of_palette(const mask_target *m, bool *inside)
{
    /* What the indexes in use are. */
    bool black[256];
    bool transparent = false;
    bool opaque = false;
    bool some_black = false;
    for (int i = 0; i < 256; i++) {
        const uint8_t *colour = m->layout.palette[i];
        black[i] = colour[0] == 0 && colour[1] == 0 && colour[2] == 0;
        if (!m->used[i]) continue;
        if (colour[3] == 0) transparent = true;
        else opaque = true;
        if (black[i]) some_black = true;
    }

    /* Alpha, colour or index. */
    const bool by_alpha = transparent && opaque;
    const bool by_colour = !black[0] && some_black;
    for (int i = 0; i < 256; i++) {
        if (by_alpha) inside[i] = m->layout.palette[i][3] != 0;
        else if (by_colour) inside[i] = !black[i];
        else inside[i] = i != 0;
    }
}

/* The mask of all rows; the caller frees it. */
static uint8_t *finish(mask_target *m)
{
    /* Alpha takes the place of the colour. */
    if (m->alpha && m->transparent && m->opaque) {
        uint8_t *alpha = m->alpha;
        m->alpha = NULL;
        return alpha;
    }

    uint8_t *mask = m->samples;
    m->samples = NULL;
    if (m->layout.samples != SZ_INDEX) return mask;
    bool inside[256];
    inside_of_palette(m, inside);
    const size_t pixels = (size_t)m->layout.width * (size_t)m->layout.height;
    for (size_t i = 0; i < pixels; i++) mask[i] = inside[mask[i]];
    return mask;
}

uint8_t *sz_mask_decode(const sz_source *b, int *width, int *height)
{
    sz_size size;
    mask_target m = { .rows = { begin, put } };
    const sz_format *format = sz_format_find(b);
    if (!format || sz_format_size(format, b, &size) != 0) return NULL;

    uint8_t *mask = NULL;
    if (format->decode(b, &m.rows) == 0) mask = finish(&m);
    free(m.samples);
    free(m.alpha);
    *width = m.layout.width;
    *height = m.layout.height;
    return mask ? sz_exif_turn(mask, width, height, 1, size.orientation) : NULL;
}

uint8_t *sz_mask_load(const char *path, int *width, int *height)
{
    sz_source b = { .path = path };
    uint8_t *memory = sz_io_read(path, SZ_IMAGE_MAX_FILE, &b.size);
    if (!memory) return NULL;
    b.memory = memory;
    uint8_t *mask = sz_mask_decode(&b, width, height);
    free(memory);
    return mask;
}

uint8_t *sz_mask_load_bytes(const uint8_t *bytes, size_t n, const char *name, int *width,
                            int *height)
{
    if (sz_image_check_bytes(n, name) != 0) return NULL;
    sz_source b = { .path = name, .memory = bytes, .size = n };
    return sz_mask_decode(&b, width, height);
}

void sz_mask_free(uint8_t *mask) { free(mask); }
