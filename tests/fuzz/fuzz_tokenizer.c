/* fuzz_tokenizer.c - a byte-level tokenizer on any text and any ids, and any text as a
 * tokenizer.json.
 * The first byte chooses: a text for the fixed tokenizer, ids to decode, or a tokenizer.json whose
 * vocabulary and merges are read. The tokens of a text in UTF-8 must have its bytes.
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

/* Adds the tables of a tokenizer.json. 0, or -1. */
static int add_tables(sz_tokenizer *t, const char *json, size_t len)
{
    sz_json_place vocab;
    sz_json_place pairs;
    if (sz_tokenizer_find(json, (int64_t)len, &vocab, &pairs) != 0) return -1;
    if (vocab.stop == 0 || pairs.stop == 0) return -1;
    if (sz_tokenizer_add_vocabulary(t, json, &vocab) < 0) return -1;
    return sz_tokenizer_add_merges(t, json, &pairs) < 0 ? -1 : 0;
}

/* A tokenizer.json of the 256 bytes and the merges. Returns its length. */
static size_t fixed_json(char *out, size_t room)
{
    size_t n = (size_t)snprintf(out, room, "{\"model\": {\"vocab\": {");
    int id = 0;
    for (; id < 256; id++) {
        char letter[2];
        int len = (int)letter_of(id, letter);
        const char *escape = id == '"' || id == '\\' ? "\\" : "";
        n += (size_t)snprintf(out + n, room - n, "\"%s%.*s\": %d, ", escape, len, letter, id);
    }
    size_t count = sizeof merges / sizeof *merges;
    for (size_t i = 0; i < count; i++)
        n += (size_t)snprintf(out + n, room - n, "\"%s%s\": %d%s", merges[i][0], merges[i][1], id++,
                              i + 1 < count ? ", " : "}, \"merges\": [");
    for (size_t i = 0; i < count; i++)
        n += (size_t)snprintf(out + n, room - n, "[\"%s\", \"%s\"]%s", merges[i][0], merges[i][1],
                              i + 1 < count ? ", " : "]}}");
    return n;
}

static sz_tokenizer *fixed_tokenizer(int nfc)
{
    static sz_tokenizer *made[2];
    if (made[nfc]) return made[nfc];
    sz_tokenizer *t = sz_tokenizer_new(split);
    char json[8192];
    size_t len = fixed_json(json, sizeof json);
    if (add_tables(t, json, len) != 0) abort();
    if (sz_tokenizer_add_special(t, "<|im_end|>", 10, sz_tokenizer_size(t), 1) != 0) abort();
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

/* A split pattern up to a NUL; the rest is read as a tokenizer.json, or where that fails as each of
 * its tables. */
static void build(const char *text, size_t size)
{
    const char *nul = memchr(text, 0, size);
    sz_tokenizer *t = sz_tokenizer_new(nul && nul - text < 128 ? text : "a+");
    if (!t) return;
    if (nul) {
        size -= (size_t)(nul + 1 - text);
        text = nul + 1;
    }
    if (add_tables(t, text, size) != 0) {
        sz_json_place all = { 0, (int64_t)size };
        sz_tokenizer_add_vocabulary(t, text, &all);
        sz_tokenizer_add_merges(t, text, &all);
    }

    /* An id of the vocabulary is one of its tokens. */
    int id = sz_tokenizer_find_token(t, text, size);
    const char *raw;
    if (id >= 0 && sz_tokenizer_bytes(t, id, &raw) < 0) abort();
    sz_tokenizer_add_special(t, "<|im_end|>", 10, sz_tokenizer_size(t), 1);
    const int32_t *ids;
    if (sz_tokenizer_finish(t, (int)(size & 1)) == 0) sz_tokenizer_encode(t, text, size, &ids);
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
