/* text.c - lower case as Python has it, for prompts that shall be the reference's letter for letter.
 * Leaves out: languages of their own (Turkish, Lithuanian), as Python's str.lower does. */
#include "core/core.h"
#include <string.h>
#include <utf8proc.h>

/* The code point at `at` and its bytes; a byte that is no UTF-8 counts as one of its own and gives -1. */
static int32_t code_point(const char *text, size_t len, size_t at, size_t *bytes)
{
    utf8proc_int32_t c;
    utf8proc_ssize_t n = utf8proc_iterate((const utf8proc_uint8_t *)text + at, (utf8proc_ssize_t)(len - at), &c);
    *bytes = n > 0 ? (size_t)n : 1;
    return n > 0 ? c : -1;
}

/* Where the code point before `at` begins. */
static size_t previous(const char *text, size_t at)
{
    do at--;
    while (at > 0 && ((uint8_t)text[at] & 0xc0) == 0x80);
    return at;
}

static bool is_cased(int32_t c)
{
    utf8proc_category_t k = c < 0 ? UTF8PROC_CATEGORY_CN : utf8proc_category(c);
    return k == UTF8PROC_CATEGORY_LU || k == UTF8PROC_CATEGORY_LL || k == UTF8PROC_CATEGORY_LT;
}

/* Unicode's Case_Ignorable: marks, modifiers, format characters, and punctuation inside words. */
static bool is_ignorable(int32_t c)
{
    static const int32_t inside_words[] = { '\'', '.', ':', 0xb7, 0x387, 0x55f, 0x5f4, 0x2018, 0x2019, 0x2024, 0x2027, 0xfe13, 0xfe52, 0xfe55, 0xff07, 0xff0e, 0xff1a };
    if (c < 0) return false;
    for (size_t i = 0; i < sizeof inside_words / sizeof *inside_words; i++)
        if (c == inside_words[i]) return true;
    utf8proc_category_t k = utf8proc_category(c);
    return k == UTF8PROC_CATEGORY_MN || k == UTF8PROC_CATEGORY_ME || k == UTF8PROC_CATEGORY_CF || k == UTF8PROC_CATEGORY_LM || k == UTF8PROC_CATEGORY_SK;
}

/* A capital sigma at [at, after) ends a word: a letter with case before it and none behind. */
static bool ends_word(const char *text, size_t len, size_t at, size_t after)
{
    size_t n;
    int32_t c = -1;
    while (at > 0) {
        at = previous(text, at);
        c = code_point(text, len, at, &n);
        if (!is_ignorable(c)) break;
        c = -1;
    }
    if (!is_cased(c)) return false;
    for (; after < len; after += n) {
        c = code_point(text, len, after, &n);
        if (!is_ignorable(c)) return !is_cased(c);
    }
    return true;
}

int64_t sz_text_lower(const char *text, size_t len, char *to)
{
    enum { I_WITH_DOT = 0x130, DOT_ABOVE = 0x307, SIGMA = 0x3a3, FINAL_SIGMA = 0x3c2 };
    utf8proc_uint8_t *out = (utf8proc_uint8_t *)to;
    int64_t done = 0;
    for (size_t at = 0, n; at < len; at += n) {
        int32_t c = code_point(text, len, at, &n);
        if (c < 0) {
            out[done++] = (utf8proc_uint8_t)text[at];
        } else if (c == I_WITH_DOT) {
            done += utf8proc_encode_char('i', out + done);
            done += utf8proc_encode_char(DOT_ABOVE, out + done);
        } else {
            done += utf8proc_encode_char(c == SIGMA && ends_word(text, len, at, at + n) ? FINAL_SIGMA : utf8proc_tolower(c), out + done);
        }
    }
    return done;
}
