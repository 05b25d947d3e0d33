/* font.c - text on images, in an outline font: TrueType and OpenType files, by stb_truetype.
 *
 *   sz_font *f = sz_font_open("/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf");
 *   sz_font_draw(f, im, 10, 30, 16, "naïve", 6, (uint8_t[]){ 0, 0, 0 });
 *
 * Text is UTF-8; a byte that belongs to no character counts as U+FFFD. Letters are antialiased and
 * placed to a quarter of a pixel. `size` is the height of a line from the highest ascender to the
 * lowest descender, in pixels. stb_truetype trusts its files, so only fonts that are installed on
 * the system are to be opened.
 * Leaves out: shaping (ligatures, joined scripts, right to left), hints, colours of emoji.
 */
#include "image.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <utf8proc.h>

/* stb_truetype would end the program where memory runs out in the middle of a letter. It goes on
 * without the rest of it instead, and draw_letter reports that. */
static __thread bool is_incomplete;

static void *letter_memory(size_t bytes)
{
    void *p = malloc(bytes);
    if (!p) is_incomplete = true;
    return p;
}

static void require(bool is_fine)
{
    if (!is_fine) is_incomplete = true;
}

#define STBTT_malloc(bytes, context) ((void)(context), letter_memory(bytes))
#define STBTT_free(p, context) ((void)(context), free(p))
#define STBTT_assert(condition) require(condition)
#define STB_TRUETYPE_IMPLEMENTATION
#define STBTT_STATIC
/* Unused functions are found at the end of the file. */
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
#pragma GCC diagnostic ignored "-Wshadow"
#pragma GCC diagnostic ignored "-Wsign-compare"
#pragma GCC diagnostic ignored "-Wunused-but-set-variable"
#include <stb/stb_truetype.h>
#pragma GCC diagnostic pop

enum {
    MAX_FILE = 64 << 20, /* bytes of a font file */
    MAX_SIDE = 4096,     /* pixels of one letter */
    REPLACEMENT = 0xfffd,
    SHIFTS = 4, /* places of a letter inside a pixel */
};

struct sz_font {
    uint8_t *bytes;
    stbtt_fontinfo info;
    int ascent, descent; /* in the font's units; descent is below 0 */
    const sz_font *fallback;
};

/* ---- opening ---- */

/* The whole file; NULL with a message. Freed by the caller. */
static uint8_t *read_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (!file) return sz_null("%s: the font cannot be opened", path);

    uint8_t *bytes = NULL;
    long size = -1;
    if (fseek(file, 0, SEEK_END) == 0) size = ftell(file);
    if (size > 0 && size <= MAX_FILE) bytes = malloc((size_t)size);
    rewind(file);
    if (bytes && fread(bytes, 1, (size_t)size, file) != (size_t)size) {
        free(bytes);
        bytes = NULL;
    }
    fclose(file);
    return bytes ? bytes : sz_null("%s: the font cannot be read", path);
}

sz_font *sz_font_open(const char *path)
{
    uint8_t *bytes = read_file(path);
    if (!bytes) return NULL;
    sz_font *f = calloc(1, sizeof *f);
    int offset = stbtt_GetFontOffsetForIndex(bytes, 0);
    if (!f || offset < 0 || !stbtt_InitFont(&f->info, bytes, offset)) {
        free(f);
        free(bytes);
        return sz_null("%s: it is no TrueType or OpenType font", path);
    }
    f->bytes = bytes;
    int gap;
    stbtt_GetFontVMetrics(&f->info, &f->ascent, &f->descent, &gap);
    return f;
}

void sz_font_free(sz_font *f)
{
    if (!f) return;
    free(f->bytes);
    free(f);
}

void sz_font_fallback(sz_font *f, const sz_font *other) { f->fallback = other; }

double sz_font_ascent(const sz_font *f, double size)
{
    return size * f->ascent / (f->ascent - f->descent);
}

/* ---- letters ---- */

/* Takes one character off the text. */
static int next_character(const char **text, size_t *n)
{
    utf8proc_int32_t code;
    utf8proc_ssize_t used = utf8proc_iterate((const uint8_t *)*text, (utf8proc_ssize_t)*n, &code);
    if (used <= 0) {
        used = 1;
        code = REPLACEMENT;
    }
    *text += used;
    *n -= (size_t)used;
    return code;
}

/* A letter: the face that has it, its number there, the scale of its units, its advance
 * (pixels). */
typedef struct {
    const sz_font *face;
    int glyph;
    float scale;
    double advance;
} letter;

static letter find_letter(const sz_font *f, int code, double size)
{
    letter l = { .face = f, .glyph = stbtt_FindGlyphIndex(&f->info, code) };
    for (const sz_font *other = f->fallback; l.glyph == 0 && other; other = other->fallback) {
        int glyph = stbtt_FindGlyphIndex(&other->info, code);
        if (glyph == 0) continue;
        l.face = other;
        l.glyph = glyph;
    }
    int advance;
    int bearing;
    l.scale = stbtt_ScaleForPixelHeight(&l.face->info, (float)size);
    stbtt_GetGlyphHMetrics(&l.face->info, l.glyph, &advance, &bearing);
    l.advance = advance * (double)l.scale;
    return l;
}

/* What two neighbours of one face come closer. */
static double kerning(const letter *a, const letter *b)
{
    if (!a->face || a->face != b->face) return 0;
    return stbtt_GetGlyphKernAdvance(&a->face->info, a->glyph, b->glyph) * (double)a->scale;
}

double sz_font_width(const sz_font *f, const char *text, size_t n, double size)
{
    letter before = { 0 };
    double width = 0;
    while (n > 0) {
        letter l = find_letter(f, next_character(&text, &n), size);
        width += kerning(&before, &l) + l.advance;
        before = l;
    }
    return width;
}

/* ---- drawing ---- */

/* Blends the colour into the image where the letter covers it; the part outside is left out. */
static void blend(sz_image *im, const uint8_t *cover, int x0, int y0, int w, int h,
                  const uint8_t colour[3])
{
    const int width = sz_image_width(im);
    const int height = sz_image_height(im);
    uint8_t *pixels = sz_image_pixels(im);

    for (int y = 0; y < h; y++) {
        if (y0 + y < 0 || y0 + y >= height) continue;
        for (int x = 0; x < w; x++) {
            if (x0 + x < 0 || x0 + x >= width) continue;
            const int a = cover[y * w + x];
            uint8_t *p = pixels + 3 * ((size_t)(y0 + y) * (size_t)width + (size_t)(x0 + x));
            for (int c = 0; c < 3; c++)
                p[c] = (uint8_t)((p[c] * (255 - a) + colour[c] * a + 127) / 255);
        }
    }
}

/* Draws one letter with its origin at (x, y). Returns 0, or -1 without memory. */
static int draw_letter(const letter *l, sz_image *im, double x, double y, const uint8_t colour[3])
{
    const stbtt_fontinfo *info = &l->face->info;
    const int left = (int)floor(x);
    const float shift = (float)floor((x - left) * SHIFTS) / SHIFTS;
    int x0;
    int y0;
    int x1;
    int y1;

    /* Blanks have no box; letters outside the image need no drawing. */
    stbtt_GetGlyphBitmapBoxSubpixel(info, l->glyph, l->scale, l->scale, shift, 0, &x0, &y0, &x1,
                                    &y1);
    const int w = x1 - x0;
    const int h = y1 - y0;
    if (w <= 0 || h <= 0 || w > MAX_SIDE || h > MAX_SIDE) return 0;
    const int top = (int)floor(y + 0.5) + y0;
    if (left + x1 <= 0 || left + x0 >= sz_image_width(im)) return 0;
    if (top + h <= 0 || top >= sz_image_height(im)) return 0;

    uint8_t *cover = calloc((size_t)w, (size_t)h);
    if (!cover) return sz_fail("out of memory for a letter of %d x %d", w, h);
    is_incomplete = false;
    stbtt_MakeGlyphBitmapSubpixel(info, cover, w, h, w, l->scale, l->scale, shift, 0, l->glyph);
    if (!is_incomplete) blend(im, cover, left + x0, top, w, h, colour);
    free(cover);
    return is_incomplete ? sz_fail("out of memory for a letter of %d x %d", w, h) : 0;
}

int sz_font_draw(const sz_font *f, sz_image *im, double x, double y, double size, const char *text,
                 size_t n, const uint8_t colour[3])
{
    letter before = { 0 };
    if (!(fabs(x) < 1e6 && fabs(y) < 1e6 && size > 0 && size < MAX_SIDE)) return 0;
    while (n > 0) {
        letter l = find_letter(f, next_character(&text, &n), size);
        x += kerning(&before, &l);
        if (draw_letter(&l, im, x, y, colour) != 0) return -1;
        x += l.advance;
        before = l;
    }
    return 0;
}
