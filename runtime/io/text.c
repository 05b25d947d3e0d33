/* text.c - lower case as Python's str.lower gives it, for prompts that must equal the reference's
 * letter for letter.
 * Leaves out: rules of single languages (Turkish, Lithuanian), as str.lower does.
 */
#include "core/core.h"
#include <string.h>
#include <utf8proc.h>

/* The code point at byte i, and its length in *bytes. A byte that is not UTF-8 gives -1 and counts
 * as one. */
static int32_t code_point(const char *text, size_t len, size_t i, size_t *bytes)
{
    utf8proc_int32_t c;
    const utf8proc_uint8_t *p = (const utf8proc_uint8_t *)text + i;
    utf8proc_ssize_t n = utf8proc_iterate(p, (utf8proc_ssize_t)(len - i), &c);
    *bytes = n > 0 ? (size_t)n : 1;
    return n > 0 ? c : -1;
}

/* Where the code point before byte i begins. */
static size_t previous(const char *text, size_t i)
{
    do i--;
    while (i > 0 && ((uint8_t)text[i] & 0xc0) == 0x80);
    return i;
}

static bool is_cased(int32_t c)
{
    if (c < 0) return false;
    switch (utf8proc_category(c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT: return true;
    default: return false;
    }
}

/* Unicode's Case_Ignorable: marks, modifiers, format characters, and punctuation inside words. */
static bool is_ignorable(int32_t c)
{
    static const int32_t inside_words[] = {
        '\'',   '.',    ':',    0xb7,   0x387,  0x55f,  0x5f4,  0x2018, 0x2019,
        0x2024, 0x2027, 0xfe13, 0xfe52, 0xfe55, 0xff07, 0xff0e, 0xff1a,
    };
    if (c < 0) return false;
    for (size_t i = 0; i < sizeof inside_words / sizeof *inside_words; i++)
        if (c == inside_words[i]) return true;

    switch (utf8proc_category(c)) {
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_SK: return true;
    default: return false;
    }
}

/* Whether a capital sigma at [start, end) ends a word: a cased letter before it and none after. */
static bool ends_word(const char *text, size_t len, size_t start, size_t end)
{
    /* The letter before. */
    size_t n;
    int32_t c = -1;
    while (start > 0) {
        start = previous(text, start);
        c = code_point(text, len, start, &n);
        if (!is_ignorable(c)) break;
        c = -1;
    }
    if (!is_cased(c)) return false;

    /* The letter after. */
    for (; end < len; end += n) {
        c = code_point(text, len, end, &n);
        if (!is_ignorable(c)) return !is_cased(c);
    }
    return true;
}

int64_t sz_text_lower(const char *text, size_t len, char *to)
{
    enum { I_WITH_DOT = 0x130, DOT_ABOVE = 0x307, SIGMA = 0x3a3, FINAL_SIGMA = 0x3c2 };
    utf8proc_uint8_t *out = (utf8proc_uint8_t *)to;
    int64_t done = 0;
    for (size_t i = 0, n; i < len; i += n) {
        int32_t c = code_point(text, len, i, &n);
        if (c < 0) {
            /* Not UTF-8: copied. */
            out[done++] = (utf8proc_uint8_t)text[i];
        } else if (c == I_WITH_DOT) {
            done += utf8proc_encode_char('i', out + done);
            done += utf8proc_encode_char(DOT_ABOVE, out + done);
        } else {
            int32_t lower = utf8proc_tolower(c);
            if (c == SIGMA && ends_word(text, len, i, i + n)) lower = FINAL_SIGMA;
            done += utf8proc_encode_char(lower, out + done);
        }
    }
    return done;
}
