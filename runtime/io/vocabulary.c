/* vocabulary.c - the tokens and merges of a tokenizer, read from the text of a tokenizer.json:
 *
 *     {..., "model": {..., "vocab": {"token": id, ...}, "merges": [["left", "right"], "a b", ...]}}
 *
 * These two tables are nearly all of the file: 151,000 tokens and as many merges in one of 6 MB.
 * They go straight from the text into the tokenizer's own tables, because values of Lua for all of
 * them would take most of the time and memory. Tokens are written in the byte-to-unicode alphabet
 * (0x21-0x7E, 0xA1-0xAC, 0xAE-0xFF stand for themselves, the other 68 bytes for U+0100 and up) and
 * are stored as the bytes that they stand for.
 * Leaves out: the rest of the file, which Lua decodes (lua/segzero/models/text/tokenizer_file.lua);
 * ids that are written as 1.0 or 1e3.
 */
#include "tokenizer.h"
#include <stdlib.h>
#include <utf8proc.h>

enum { USUAL_ENTRY = 20 }; /* bytes of the text for one token or merge: the tables' first size */

/* ---- the alphabet ---- */

/* The byte that a code point of the byte-to-unicode alphabet stands for, -1 if it is not in it. */
static int alphabet_byte(int c)
{
    if ((c >= 0x21 && c <= 0x7e) || (c >= 0xa1 && c <= 0xac) || (c >= 0xae && c <= 0xff)) return c;
    if (c < 0x100 || c >= 0x100 + 68) return -1;

    /* The 68 others in order: 0x00-0x20, 0x7f-0xa0, 0xad. */
    c -= 0x100;
    if (c <= 0x20) return c;
    return c < 0x20 + 35 ? c - 0x21 + 0x7f : 0xad;
}

/* Turns a spelt token into its bytes (out has room for len). Returns their count, -1 if a character
 * is outside the alphabet. */
static int64_t from_alphabet(const char *token, size_t len, char *out)
{
    int64_t n = 0;
    for (size_t i = 0; i < len; i++) {
        int c = (uint8_t)token[i];
        /* The alphabet ends below U+0800: its characters have one byte or two. */
        if (c >= 0x80) {
            if (c < 0xc2 || c > 0xdf || ++i == len) return -1;
            int next = (uint8_t)token[i];
            if ((next & 0xc0) != 0x80) return -1;
            c = (c & 0x1f) << 6 | (next & 0x3f);
        }
        int b = alphabet_byte(c);
        if (b < 0) return -1;
        out[n++] = (char)b;
    }
    return n;
}

/* ---- tokens and merges ---- */

typedef struct {
    const char *p;
    size_t len;
} slice;

/* Makes t->text hold `len` bytes and returns them; NULL with a message. */
static char *workspace(sz_tokenizer *t, size_t len)
{
    if (sz_tokenizer_reserve(&t->text.p, &t->text.room, len + 1, 1) != 0) return NULL;
    return t->text.p;
}

static int add_token(sz_tokenizer *t, slice token, int id)
{
    char *raw = workspace(t, token.len);
    if (!raw) return -1;
    int64_t n = from_alphabet(token.p, token.len, raw);
    /* Outside the alphabet: no text encodes to it, and decoding shows it unchanged. */
    if (n <= 0) return sz_tokenizer_set(t, token.p, token.len, id, UNSPELT);

    if (sz_bpe_find(t, raw, (size_t)n) >= 0)
        return sz_fail("token '%.*s' is in the vocabulary twice", sz_tokenizer_shown(token.len),
                       token.p);
    if (sz_tokenizer_set(t, raw, (size_t)n, id, PLAIN) != 0) return -1;
    if (sz_bpe_add_word(t, id) != 0) return -1;
    if (n == 1) t->byte_id[(uint8_t)raw[0]] = id;
    return 0;
}

static int add_merge(sz_tokenizer *t, slice left, slice right)
{
    char *raw = workspace(t, left.len + right.len);
    if (!raw) return -1;

    /* The ids of both parts and of what they make. */
    int64_t a = from_alphabet(left.p, left.len, raw);
    int64_t b = a > 0 ? from_alphabet(right.p, right.len, raw + a) : -1;
    int32_t left_id = -1;
    int32_t right_id = -1;
    int32_t id = -1;
    if (a > 0 && b > 0) {
        left_id = sz_bpe_find(t, raw, (size_t)a);
        right_id = sz_bpe_find(t, raw + a, (size_t)b);
        id = t->made + 1;
        size_t len = (size_t)(a + b);
        if (!sz_bpe_is(t, id, raw, len)) id = sz_bpe_find(t, raw, len);
    }

    const char *fault = NULL;
    if (id < 0) fault = "makes a token that is not in the vocabulary";
    if (left_id < 0 || right_id < 0) fault = "has a part that is not in the vocabulary";
    if (fault)
        return sz_fail("merge %d ('%.*s' '%.*s') %s", (int)t->merge_count + 1,
                       sz_tokenizer_shown(left.len), left.p, sz_tokenizer_shown(right.len), right.p,
                       fault);
    t->made = id;
    return sz_bpe_add_merge(t, left_id, right_id, id);
}

int sz_tokenizer_find_token(sz_tokenizer *t, const char *token, size_t len)
{
    char *raw = workspace(t, len);
    if (!raw) return -1;
    int64_t n = from_alphabet(token, len, raw);
    if (n > 0) return sz_bpe_find(t, raw, (size_t)n);

    /* A token outside the alphabet is in no table. */
    for (int id = 0; id < t->size; id++) {
        const entry *e = &t->entries[id];
        bool is_it = e->kind == UNSPELT && e->len == len;
        if (is_it && !memcmp(t->pool.p + e->start, token, len)) return id;
    }
    return -1;
}

/* ---- JSON ---- */

/* A place in a text of JSON. */
typedef struct {
    const char *start, *at, *end;
} cursor;

static int json_fault(const cursor *c, const char *what)
{
    return sz_fail("not valid JSON: byte %lld: %s", (long long)(c->at - c->start), what);
}

static void skip_space(cursor *c)
{
    while (c->at < c->end && (*c->at == ' ' || (*c->at >= '\t' && *c->at <= '\r'))) c->at++;
}

/* Skips white space; whether `ch` follows. */
static bool is_next(cursor *c, char ch)
{
    skip_space(c);
    return c->at < c->end && *c->at == ch;
}

static bool accept(cursor *c, char ch)
{
    if (!is_next(c, ch)) return false;
    c->at++;
    return true;
}

/* The string that begins at the cursor, as it is written, without its quotes. *escaped: it has a
 * backslash. 0, or -1 with a message. */
static int raw_string(cursor *c, slice *out, bool *escaped)
{
    if (!accept(c, '"')) return json_fault(c, "a string is expected");
    const char *p = c->at;
    *escaped = false;
    while (p < c->end && *p != '"') {
        if (*p == '\\') {
            *escaped = true;
            p++;
        }
        p++;
    }
    if (p >= c->end) return json_fault(c, "a string has no end");
    *out = (slice){ c->at, (size_t)(p - c->at) };
    c->at = p + 1;
    return 0;
}

/* The four hexadecimal digits at p, -1: they are not there. */
static int hex4(const char *p, const char *end)
{
    if (end - p < 4) return -1;
    int value = 0;
    for (int i = 0; i < 4; i++) {
        int c = (uint8_t)p[i];
        int letter = (c | 0x20) - 'a';
        int digit = -1;
        if (c >= '0' && c <= '9') digit = c - '0';
        else if (letter >= 0 && letter < 6) digit = letter + 10;
        if (digit < 0) return -1;
        value = value << 4 | digit;
    }
    return value;
}

/* The code point of the \u at p, whose digits follow. *used: the bytes after the u. -1: none. */
static int code_point(const char *p, const char *end, int *used)
{
    *used = 4;
    int high = hex4(p, end);
    if (high < 0xd800 || high > 0xdfff) return high;

    /* Two surrogates make one character. */
    if (high > 0xdbff || end - p < 10 || p[4] != '\\' || p[5] != 'u') return -1;
    int low = hex4(p + 6, end);
    if (low < 0xdc00 || low > 0xdfff) return -1;
    *used = 10;
    return 0x10000 + ((high - 0xd800) << 10 | (low - 0xdc00));
}

/* Appends the escaped character at p, after its backslash. Returns the bytes that it takes, -1 for
 * no escape, -2 with a message. */
static int put_escape(bytes *out, const char *p, const char *end)
{
    static const char names[] = "\"\\/bfnrt";
    static const char means[] = "\"\\/\b\f\n\r\t";
    if (*p != 'u') {
        const char *name = *p ? strchr(names, *p) : NULL;
        if (!name) return -1;
        return sz_tokenizer_put(out, &means[name - names], 1) == 0 ? 1 : -2;
    }

    int used;
    int c = code_point(p + 1, end, &used);
    if (c < 0) return -1;
    utf8proc_uint8_t utf8[4];
    size_t n = (size_t)utf8proc_encode_char(c, utf8);
    return sz_tokenizer_put(out, utf8, n) == 0 ? 1 + used : -2;
}

/* Reads a string. One with escapes is put into `spare`, others stay in the text. 0, or -1. */
static int read_string(cursor *c, bytes *spare, slice *out)
{
    bool escaped;
    if (raw_string(c, out, &escaped) != 0) return -1;
    if (!escaped) return 0;

    spare->len = 0;
    const char *end = out->p + out->len;
    for (const char *p = out->p; p < end;) {
        if (*p != '\\') {
            if (sz_tokenizer_put(spare, p++, 1) != 0) return -1;
            continue;
        }
        int n = put_escape(spare, p + 1, end);
        if (n == -1) return json_fault(c, "the string before it has an escape that JSON has not");
        if (n < 0) return -1;
        p += 1 + n;
    }
    *out = (slice){ spare->p, spare->len };
    return 0;
}

/* The value at the cursor as it is written. Brackets are matched; what is in them is not looked at.
 * 0, or -1 with a message. */
static int skip_value(cursor *c, slice *out)
{
    skip_space(c);
    const char *first = c->at;
    int64_t depth = 0;
    while (c->at < c->end) {
        char ch = *c->at;
        bool is_end = ch == ']' || ch == '}' || ch == ',';
        if (depth == 0 && (is_end || ch == ' ' || (ch >= '\t' && ch <= '\r'))) break;
        if (ch == '"') {
            bool escaped;
            if (raw_string(c, out, &escaped) != 0) return -1;
            continue;
        }
        c->at++;
        if (ch == '[' || ch == '{') depth++;
        if (ch == ']' || ch == '}') depth--;
    }
    if (c->at == first || depth > 0) return json_fault(c, "a value is expected");
    *out = (slice){ first, (size_t)(c->at - first) };
    return 0;
}

/* Moves to the next member of an object or element of a list, which ends with `close`. 1: there is
 * one, 0: the end, -1 with a message. first: nothing has been read of it. */
static int next_item(cursor *c, char close, bool first)
{
    if (accept(c, close)) return 0;
    if (!first && !accept(c, ',')) return json_fault(c, "a comma is expected");
    return 1;
}

/* Reads the key of the next member and its colon: as next_item. */
static int next_member(cursor *c, bool first, bytes *spare, slice *key)
{
    int more = next_item(c, '}', first);
    if (more <= 0) return more;
    if (read_string(c, spare, key) != 0) return -1;
    if (!accept(c, ':')) return json_fault(c, "a colon is expected");
    return 1;
}

static bool is_named(slice key, const char *name)
{
    return key.len == strlen(name) && !memcmp(key.p, name, key.len);
}

/* ---- where the tables are ---- */

static void set_place(sz_json_place *place, const cursor *c, slice value, char open)
{
    *place = (sz_json_place){ 0, 0 };
    if (*value.p != open) return;
    place->start = value.p - c->start;
    place->stop = place->start + (int64_t)value.len;
}

/* Finds both tables in the object at the cursor. 0, or -1 with a message. */
static int find_in_model(cursor *c, bytes *spare, sz_json_place *vocab, sz_json_place *merges)
{
    if (!accept(c, '{')) return json_fault(c, "an object is expected");
    slice key;
    int more;
    for (bool first = true; (more = next_member(c, first, spare, &key)) > 0; first = false) {
        bool is_vocab = is_named(key, "vocab");
        bool is_merges = is_named(key, "merges");
        slice value;
        if (skip_value(c, &value) != 0) return -1;
        if (is_vocab) set_place(vocab, c, value, '{');
        if (is_merges) set_place(merges, c, value, '[');
    }
    return more;
}

/* The same in the whole text. If a key is given twice, the later one counts. */
static int find_in_file(cursor *c, bytes *spare, sz_json_place *vocab, sz_json_place *merges)
{
    if (!accept(c, '{')) return json_fault(c, "an object is expected");
    slice key;
    int more;
    for (bool first = true; (more = next_member(c, first, spare, &key)) > 0; first = false) {
        if (is_named(key, "model")) {
            *vocab = (sz_json_place){ 0, 0 };
            *merges = (sz_json_place){ 0, 0 };
            if (is_next(c, '{')) {
                if (find_in_model(c, spare, vocab, merges) != 0) return -1;
                continue;
            }
        }
        slice value;
        if (skip_value(c, &value) != 0) return -1;
    }
    return more;
}

int sz_tokenizer_find(const char *json, int64_t len, sz_json_place *vocab, sz_json_place *merges)
{
    cursor c = { json, json, json + len };
    bytes spare = { 0 };
    *vocab = (sz_json_place){ 0, 0 };
    *merges = (sz_json_place){ 0, 0 };
    int rc = find_in_file(&c, &spare, vocab, merges);
    free(spare.p);
    return rc;
}

/* ---- the tables ---- */

/* The whole number at the cursor, which a separator follows. False: it is none. */
static bool read_id(cursor *c, int *id)
{
    skip_space(c);
    const char *p = c->at;
    bool negative = p < c->end && *p == '-';
    if (negative) p++;
    const char *first = p;
    int64_t value = 0;
    for (; p < c->end && *p >= '0' && *p <= '9' && value <= INT32_MAX; p++)
        value = 10 * value + (*p - '0');
    if (p == first || value > INT32_MAX) return false;
    if (p < c->end && *p != ',' && *p != '}' && *p > ' ') return false;
    *id = (int)(negative ? -value : value);
    c->at = p;
    return true;
}

static int read_token(sz_tokenizer *t, cursor *c, slice token)
{
    int id;
    if (read_id(c, &id)) return add_token(t, token, id);
    slice value;
    if (skip_value(c, &value) != 0) return -1;
    return sz_fail("model.vocab: token '%.*s' has id %.*s", sz_tokenizer_shown(token.len), token.p,
                   sz_tokenizer_shown(value.len), value.p);
}

int64_t sz_tokenizer_add_vocabulary(sz_tokenizer *t, const char *json, const sz_json_place *place)
{
    cursor c = { json, json + place->start, json + place->stop };
    if (sz_bpe_reserve(t, (size_t)(place->stop - place->start) / USUAL_ENTRY, 0) != 0) return -1;
    if (!accept(&c, '{')) return json_fault(&c, "an object is expected");
    int64_t count = 0;
    slice token;
    int more;
    while ((more = next_member(&c, count == 0, &t->clean, &token)) > 0) {
        if (read_token(t, &c, token) != 0) return -1;
        count++;
    }
    return more < 0 ? -1 : count;
}

/* Splits "left right" at its only space. */
static bool split_pair(slice pair, slice *left, slice *right)
{
    for (size_t i = 0; i < pair.len; i++)
        if (pair.p[i] >= '\t' && pair.p[i] <= '\r') return false;
    const char *space = memchr(pair.p, ' ', pair.len);
    if (!space) return false;
    *left = (slice){ pair.p, (size_t)(space - pair.p) };
    *right = (slice){ space + 1, pair.len - left->len - 1 };
    return left->len && right->len && !memchr(right->p, ' ', right->len);
}

/* Reads "left right" or ["left", "right"]. 1; 0: it is something else; -1 with a message. */
static int read_pair(sz_tokenizer *t, cursor *c, slice *left, slice *right)
{
    if (is_next(c, '"')) {
        slice pair;
        if (read_string(c, &t->clean, &pair) != 0) return -1;
        return split_pair(pair, left, right);
    }
    if (!accept(c, '[') || !is_next(c, '"')) return 0;
    if (read_string(c, &t->clean, left) != 0) return -1;
    if (!accept(c, ',') || !is_next(c, '"')) return 0;
    if (read_string(c, &t->spare, right) != 0) return -1;
    return accept(c, ']');
}

int64_t sz_tokenizer_add_merges(sz_tokenizer *t, const char *json, const sz_json_place *place)
{
    cursor c = { json, json + place->start, json + place->stop };
    if (sz_bpe_reserve(t, 0, (size_t)(place->stop - place->start) / USUAL_ENTRY) != 0) return -1;
    if (!accept(&c, '[')) return json_fault(&c, "a list is expected");
    int64_t count = 0;
    int more;
    while ((more = next_item(&c, ']', count == 0)) > 0) {
        slice left;
        slice right;
        int is_pair = read_pair(t, &c, &left, &right);
        if (is_pair < 0) return -1;
        if (!is_pair)
            return sz_fail("model.merges: entry %lld is not a pair", (long long)count + 1);
        if (add_merge(t, left, right) != 0) return -1;
        count++;
    }
    return more < 0 ? -1 : count;
}
