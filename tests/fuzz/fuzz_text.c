/* fuzz_text.c - texts: lower case, and patterns of configuration files.
 * The first byte chooses: a text to lower-case, or a pattern and a text with a NUL between them.
 */
#include "fuzz.h"
#include <string.h>

static void lower(const char *text, size_t size)
{
    char *to = malloc(2 * size + 1);
    if (!to) return;
    int64_t written = sz_text_lower(text, size, to);
    if (written < 0 || (size_t)written > 2 * size) abort();
    free(to);
}

static void match(const char *text, size_t size)
{
    char *copy = malloc(size + 2);
    if (!copy) return;
    memcpy(copy, text, size);
    copy[size] = 0;
    copy[size + 1] = 0;
    size_t pattern = strlen(copy);
    const char *subject = pattern < size ? copy + pattern + 1 : "";
    int result = sz_pattern_matches(copy, subject);
    if (result < -1 || result > 1) abort();
    free(copy);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0) return 0;
    const char *text = (const char *)data + 1;
    if (data[0] & 1) match(text, size - 1);
    else lower(text, size - 1);
    return 0;
}
