/* nfc.c - Unicode normalisation form C, in time that grows with the length of the text.
 *
 *   UTF-8 -> decomposed code points -> runs of combining marks sorted by their class -> composed
 *   -> UTF-8
 *
 * utf8proc decomposes and composes. It sorts a run of marks by exchanging neighbours, which takes
 * minutes for a megabyte of them; here a long run is sorted by counting. It also drops U+11A7 after
 * a Hangul syllable; here that character composes with nothing.
 * Leaves out: the other forms.
 */
#include "tokenizer.h"
#include <stdlib.h>
#include <utf8proc.h>

enum {
    CLASSES = 256, /* of combining marks; 0 is no mark */
    SHORT_RUN = 32,
    TRAILING_BASE = 0x11a7 /* one before the first trailing consonant of Hangul */
};
static const utf8proc_option_t options = UTF8PROC_STABLE | UTF8PROC_COMPOSE;

typedef struct {
    utf8proc_int32_t *p;
    size_t len, room;
} code_points;

static int class_of(utf8proc_int32_t c)
{
    return (uint8_t)utf8proc_get_property(c)->combining_class;
}

/* Appends the code points of valid UTF-8, decomposed. */
static int decompose(code_points *out, const char *text, size_t len)
{
    enum { MOST = 32 }; /* code points of one character */
    int last_boundclass = UTF8PROC_BOUNDCLASS_START;
    for (size_t i = 0; i < len;) {
        utf8proc_int32_t c;
        const utf8proc_uint8_t *p = (const utf8proc_uint8_t *)text + i;
        utf8proc_ssize_t n = utf8proc_iterate(p, (utf8proc_ssize_t)(len - i), &c);
        if (n <= 0) return sz_fail("the text cannot be normalised: %s", utf8proc_errmsg(n));
        i += (size_t)n;

        if (sz_tokenizer_reserve(&out->p, &out->room, out->len + MOST, sizeof *out->p) != 0)
            return -1;
        n = utf8proc_decompose_char(c, out->p + out->len, MOST, options, &last_boundclass);
        if (n < 0 || n > MOST)
            return sz_fail("the text cannot be normalised: %s", utf8proc_errmsg(n));
        out->len += (size_t)n;
    }
    return 0;
}

/* Sorts marks by class; equal ones keep their order. */
static void sort_short(utf8proc_int32_t *p, size_t n)
{
    for (size_t i = 1; i < n; i++) {
        utf8proc_int32_t c = p[i];
        size_t k = i;
        for (; k > 0 && class_of(p[k - 1]) > class_of(c); k--) p[k] = p[k - 1];
        p[k] = c;
    }
}

static int sort_long(utf8proc_int32_t *p, size_t n)
{
    size_t place[CLASSES + 1] = { 0 };
    utf8proc_int32_t *sorted = malloc(n * sizeof *sorted);
    if (!sorted) return sz_tokenizer_no_memory();
    for (size_t i = 0; i < n; i++) place[class_of(p[i]) + 1]++;
    for (int k = 0; k < CLASSES; k++) place[k + 1] += place[k];
    for (size_t i = 0; i < n; i++) sorted[place[class_of(p[i])]++] = p[i];
    memcpy(p, sorted, n * sizeof *sorted);
    free(sorted);
    return 0;
}

/* Sorts every run of marks. */
static int order(code_points *t)
{
    for (size_t i = 0; i < t->len;) {
        size_t end = i;
        while (end < t->len && class_of(t->p[end]) != 0) end++;
        if (end - i > SHORT_RUN) {
            if (sort_long(t->p + i, end - i) != 0) return -1;
        } else {
            sort_short(t->p + i, end - i);
        }
        i = end > i ? end : i + 1;
    }
    return 0;
}

/* Composes in place. U+11A7 composes with nothing: the consonants that follow a syllable are
 * U+11A8..U+11C2. utf8proc counts it as one of them, so a piece of its own begins at each. 0, or -1
 * with a message. */
static int compose(code_points *t)
{
    size_t done = 0;
    for (size_t i = 0; i < t->len;) {
        size_t end = i + 1;
        while (end < t->len && t->p[end] != TRAILING_BASE) end++;
        utf8proc_ssize_t n = utf8proc_normalize_utf32(t->p + i, (utf8proc_ssize_t)(end - i),
                                                      options);
        if (n < 0) return sz_fail("the text cannot be normalised: %s", utf8proc_errmsg(n));

        /* A composed piece is never longer, so it moves towards the start. */
        memmove(t->p + done, t->p + i, (size_t)n * sizeof *t->p);
        done += (size_t)n;
        i = end;
    }
    t->len = done;
    return 0;
}

int64_t sz_nfc(const char *text, size_t len, char **out)
{
    *out = NULL;
    code_points t = { 0 };
    int64_t n = -1;
    if (decompose(&t, text, len) == 0 && order(&t) == 0 && compose(&t) == 0 &&
        sz_tokenizer_reserve(&t.p, &t.room, t.len + 1, sizeof *t.p) == 0) {
        /* Written over itself as UTF-8 with a 0 at the end. */
        n = utf8proc_reencode(t.p, (utf8proc_ssize_t)t.len, UTF8PROC_STABLE);
        if (n < 0) sz_fail("the text cannot be normalised: %s", utf8proc_errmsg(n));
    }
    if (n < 0) {
        free(t.p);
        return -1;
    }
    *out = (char *)t.p;
    return n;
}
