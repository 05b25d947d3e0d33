/* fuzz_image.c - an image file of any format: its header, its pixels, and the same file as a mask.
 *
 * The header and the pixels must agree on the size, a mask has the image's size, and a look at the
 * mask's data must agree with the mask.
 */
#include "fuzz.h"

/* Stores the pixels' sum, so that all of them are read. */
static volatile unsigned seen;

static unsigned touch(const uint8_t *p, size_t n)
{
    unsigned sum = 0;
    for (size_t i = 0; i < n; i++) sum += p[i];
    seen = sum;
    return sum;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0) return 0;
    const char *path = fuzz_file(data, size);
    sz_image_header header = { 0 };
    const int known = sz_image_info(path, &header);

    /* An image of millions of pixels takes longer than it teaches. */
    if (known == 0 && (int64_t)header.width * header.height > 1 << 20) return 0;
    sz_image *im = sz_image_load(path);
    if (im) {
        if (known != 0) abort();
        if (sz_image_width(im) != header.width || sz_image_height(im) != header.height) abort();
        touch(sz_image_pixels(im), (size_t)header.width * (size_t)header.height * 3);
        sz_image_free(im);
    }

    int width;
    int height;
    const int inside = sz_mask_peek(path, &width, &height);
    uint8_t *mask = sz_mask_load(path, &width, &height);
    if ((mask != NULL) != (im != NULL)) abort();
    if (mask) {
        if (width != header.width || height != header.height) abort();
        const unsigned sum = touch(mask, (size_t)width * (size_t)height);
        if (inside != (sum > 0)) abort();
        sz_mask_free(mask);
    }
    return 0;
}
