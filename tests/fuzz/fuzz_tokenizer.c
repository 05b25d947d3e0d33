/* fuzz_tokenizer.c - a byte-level tokenizer on any text and any ids, and vocabularies with wrong
 * entries.
 * The first byte chooses: a text for the fixed tokenizer, ids to decode, or a vocabulary of pieces
 * that are separated by NULs. The tokens of a text in UTF-8 must have its bytes.
 */
#include "fuzz.h"
#include <string.h>
#include <utf8proc.h>

/* Qwen's split pattern, in PCRE2's syntax. */
static const char split[] = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}|"
                            " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

/* The byte-to-unicode alphabet: printable bytes stand for themselves, others follow from U+0100. */
static size_t letter_of(int byte, char out[2])
{
    int shifted = 0;
    int printable = (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
    for (int i = 0; i < byte; i++)
        shifted += !((i >= '!' && i <= '~') || (i >= 0xa1 && i <= 0xac) || i >= 0xae);
    int code = printable ? byte : 0x100 + shifted;
    if (code < 0x80) {
        out[0] = (char)code;
        return 1;
    }
    out[0] = (char)(0xc0 | code >> 6);
    out[1] = (char)(0x80 | (code & 0x3f));
    return 2;
}

static const char *const merges[][2] = {
    { "t", "h" }, { "th", "e" }, { "r", "e" }, { "re", "d" }, { "a", "a" }, { "aa", "aa" },
};

static sz_tokenizer *fixed_tokenizer(int nfc)
{
    static sz_tokenizer *made[2];
    if (made[nfc]) return made[nfc];
    sz_tokenizer *t = sz_tokenizer_new(split);
    int id = 0;
    for (; id < 256; id++) {
        char letter[2];
        size_t len = letter_of(id, letter);
        if (sz_tokenizer_add_token(t, letter, len, id) != 0) abort();
    }
    for (size_t i = 0; i < sizeof merges / sizeof *merges; i++) {
        const char *left = merges[i][0];
        const char *right = merges[i][1];
        char both[16];
        snprintf(both, sizeof both, "%s%s", left, right);
        if (sz_tokenizer_add_token(t, both, strlen(both), id++) != 0) abort();
        if (sz_tokenizer_add_merge(t, left, strlen(left), right, strlen(right)) != 0) abort();
    }
    if (sz_tokenizer_add_special(t, "<|im_end|>", 10, id++, 1) != 0) abort();
    if (sz_tokenizer_finish(t, nfc) != 0) abort();
    made[nfc] = t;
    return t;
}

static bool is_utf8(const char *text, size_t size)
{
    utf8proc_int32_t c;
    for (size_t i = 0; i < size;) {
        const utf8proc_uint8_t *p = (const utf8proc_uint8_t *)text + i;
        utf8proc_ssize_t n = utf8proc_iterate(p, (utf8proc_ssize_t)(size - i), &c);
        if (n <= 0) return false;
        i += (size_t)n;
    }
    return true;
}

static void encode(const char *text, size_t size)
{
    const int32_t *ids;
    const char *back;
    sz_tokenizer_encode(fixed_tokenizer(1), text, size, &ids);

    /* Without normalisation the ids stand for exactly the bytes of a text in UTF-8. */
    sz_tokenizer *t = fixed_tokenizer(0);
    int64_t n = sz_tokenizer_encode(t, text, size, &ids);
    if (n < 0 || !is_utf8(text, size)) return;
    size_t total = 0;
    for (int64_t i = 0; i < n; i++) {
        int64_t len = sz_tokenizer_bytes(t, ids[i], &back);
        if (len <= 0 || total + (size_t)len > size) abort();
        if (memcmp(text + total, back, (size_t)len) != 0) abort();
        total += (size_t)len;
    }
    if (total != size) abort();
}

static void decode(const uint8_t *data, size_t size)
{
    int64_t n = (int64_t)(size / 4);
    int32_t *ids = malloc((size_t)n * 4 + 4);
    if (!ids) return;
    memcpy(ids, data, (size_t)n * 4);
    /* Half of the ids are in the vocabulary. */
    for (int64_t i = 0; i < n; i++)
        if (ids[i] & 1) ids[i] = (int32_t)((uint32_t)ids[i] % 300);
    const char *text;
    sz_tokenizer_decode(fixed_tokenizer(0), ids, n, (int)(size & 1), &text);
    free(ids);
}

/* The length of the piece at p: up to a NUL or the end. */
static size_t piece(const char *p, const char *end)
{
    const char *stop = memchr(p, 0, (size_t)(end - p));
    return (size_t)((stop ? stop : end) - p);
}

static void build(const char *p, size_t size)
{
    enum { MOST = 64 };
    const char *end = p + size;
    char pattern[128];
    size_t len = piece(p, end);
    if (len >= sizeof pattern) len = sizeof pattern - 1;
    memcpy(pattern, p, len);
    pattern[len] = 0;
    sz_tokenizer *t = sz_tokenizer_new(pattern);
    if (!t) return;

    /* Pieces are a token, a merge's halves, a special token in turn. */
    const char *texts[3] = { "a", "a", "a" };
    size_t lens[3] = { 1, 1, 1 };
    for (int i = 0; i < MOST && p < end; i++) {
        p += piece(p, end);
        if (p < end) p++;
        texts[i % 3] = p;
        lens[i % 3] = piece(p, end);
        sz_tokenizer_add_token(t, texts[0], lens[0], i % 7 ? i : (int)lens[0] - 2);
        sz_tokenizer_add_merge(t, texts[0], lens[0], texts[1], lens[1]);
        sz_tokenizer_add_special(t, texts[2], lens[2], i * 3, i & 1);
    }
    const int32_t *ids;
    if (sz_tokenizer_finish(t, (int)(size & 1)) == 0)
        sz_tokenizer_encode(t, texts[0], lens[0], &ids);
    sz_tokenizer_free(t);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0) return 0;
    const char *text = (const char *)data + 1;
    switch (data[0] % 4) {
    case 0: decode(data + 1, size - 1); break;
    case 1: build(text, size - 1); break;
    default: encode(text, size - 1);
    }
    return 0;
}
