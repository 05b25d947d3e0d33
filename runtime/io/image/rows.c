/* rows.c - rows of raw samples -> 8-bit RGB [h, w, 3].
 *
 * Colours are those of the processors of transformers 5: grey repeated, palettes looked up, 16-bit
 * colour reduced to its high byte, 16-bit grey clipped at 255, and what is transparent put on
 * white with the arithmetic of Pillow's alpha_composite. A PNG's transparent colour is compared
 * with the 8-bit colours, as Pillow does it; the PNG standard compares the file's samples. A GIF's
 * transparent colour stays the colour of the palette, as Pillow's convert("RGB") has it.
 * Leaves out: colour profiles.
 */
#include "image.h"

int sz_layout_channels(const sz_layout *l)
{
    switch (l->samples) {
    case SZ_GREY_ALPHA: return 2;
    case SZ_RGB: return 3;
    case SZ_RGBA: return 4;
    default: return 1;
    }
}

void sz_layout_clear_palette(sz_layout *l)
{
    memset(l->palette, 0, sizeof l->palette);
    for (int i = 0; i < 256; i++) l->palette[i][3] = 255;
}

/* One sample on white, with 7 bits after the point and a rounded division by 255, as Pillow. */
static inline uint8_t on_white(uint32_t value, uint32_t alpha)
{
    const uint32_t share = alpha * 128;
    const uint32_t sum = value * share + 255 * (255 * 128 - share) + (128 << 7);
    return (uint8_t)(((sum >> 8) + sum) >> 8 >> 7);
}

static void put_on_white(uint8_t *out, uint8_t r, uint8_t g, uint8_t b, uint8_t alpha)
{
    out[0] = on_white(r, alpha);
    out[1] = on_white(g, alpha);
    out[2] = on_white(b, alpha);
}

static void put_grey(const sz_layout *l, const uint8_t *p, uint8_t *out)
{
    for (int x = 0; x < l->width; x++, out += 3, p += l->bytes) {
        unsigned value = l->bytes == 2 ? sz_be16(p) : *p;
        uint8_t grey = value > 255 ? 255 : (uint8_t)value;
        if (l->has_key && grey == l->shown_key[0]) grey = 255;
        memset(out, grey, 3);
    }
}

static void put_grey_alpha(const sz_layout *l, const uint8_t *p, uint8_t *out)
{
    for (int x = 0; x < l->width; x++, out += 3, p += 2 * l->bytes)
        memset(out, on_white(p[0], p[l->bytes]), 3);
}

static bool is_key(const sz_layout *l, const uint8_t *p)
{
    for (int c = 0; c < 3; c++)
        if (p[c * l->bytes] != l->shown_key[c]) return false;
    return true;
}

static void put_rgb(const sz_layout *l, const uint8_t *p, uint8_t *out)
{
    const int step = l->bytes;
    if (step == 1 && !l->has_key) {
        memcpy(out, p, (size_t)l->width * 3);
        return;
    }
    for (int x = 0; x < l->width; x++, out += 3, p += 3 * step) {
        if (l->has_key && is_key(l, p)) {
            memset(out, 255, 3);
            continue;
        }
        for (int c = 0; c < 3; c++) out[c] = p[c * step];
    }
}

static void put_rgba(const sz_layout *l, const uint8_t *p, uint8_t *out)
{
    const int step = l->bytes;
    for (int x = 0; x < l->width; x++, out += 3, p += 4 * step)
        put_on_white(out, p[0], p[step], p[2 * step], p[3 * step]);
}

static void put_index(const sz_layout *l, const uint8_t *p, uint8_t *out)
{
    for (int x = 0; x < l->width; x++, out += 3) memcpy(out, l->palette[p[x]], 3);
}

static void put(sz_target *rows, int y, const uint8_t *samples)
{
    const sz_rgb_target *to = (const sz_rgb_target *)rows;
    const sz_layout *l = &to->layout;
    uint8_t *out = to->image->pixels + (size_t)y * (size_t)l->width * 3;
    switch (l->samples) {
    case SZ_GREY: put_grey(l, samples, out); break;
    case SZ_GREY_ALPHA: put_grey_alpha(l, samples, out); break;
    case SZ_RGB: put_rgb(l, samples, out); break;
    case SZ_RGBA: put_rgba(l, samples, out); break;
    case SZ_INDEX: put_index(l, samples, out); break;
    }
}

static int begin(sz_target *rows, const sz_source *b, const sz_layout *layout)
{
    /* The size has been checked; this keeps the arithmetic of the rows safe in any case. */
    sz_rgb_target *to = (sz_rgb_target *)rows;
    if (sz_image_check_size(b->path, layout->width, layout->height) != 0) return -1;
    to->layout = *layout;
    to->image = sz_image_new(layout->width, layout->height);
    if (!to->image)
        return sz_fail("%s: out of memory for an image of %d x %d", b->path, layout->width,
                       layout->height);

    /* The palette's colours on white, once. */
    for (int i = 0; i < 256 && layout->samples == SZ_INDEX && !layout->index_is_flat; i++) {
        uint8_t *colour = to->layout.palette[i];
        put_on_white(colour, colour[0], colour[1], colour[2], colour[3]);
    }
    return 0;
}

sz_rgb_target sz_rgb_target_new(void) { return (sz_rgb_target){ .rows = { begin, put } }; }
