/* tokenizer.c - byte-level BPE, text <-> ids, as Hugging Face tokenizers computes it for GPT-2
 * style vocabularies.
 *
 * Encode: bytes that are not UTF-8 become U+FFFD; added tokens are found in the raw text (leftmost,
 * then longest); the text between them is normalised (nfc.c) and searched for the added tokens that
 * are marked so; what is left is split by the pattern; bpe.c encodes each piece. A tokenizer serves
 * one thread at a time.
 * Leaves out: the vocabulary and the merges (vocabulary.c), prefix spaces, unknown tokens, dropout,
 * added tokens with strip flags.
 */
#include "tokenizer.h"
#include <stdlib.h>

/* SHOWN: bytes of a token in a message. */
enum { MAX_ID = (1 << 24) - 1, MAX_TOKEN = (1 << 24) - 1, SHOWN = 60 };

/* ---- growing arrays ---- */

int sz_tokenizer_no_memory(void) { return sz_fail("out of memory in the tokenizer"); }

int sz_tokenizer_reserve(void *pointer, size_t *room, size_t need, size_t size)
{
    if (need <= *room) return 0;
    size_t n = *room ? *room : 64;
    while (n < need) n *= 2;

    /* pointer is the address of a pointer of any type. */
    void *old;
    memcpy(&old, pointer, sizeof old);
    void *grown = n > SIZE_MAX / size ? NULL : realloc(old, n * size);
    if (!grown) return sz_tokenizer_no_memory();
    memcpy(pointer, &grown, sizeof grown);
    *room = n;
    return 0;
}

int sz_tokenizer_put(bytes *b, const void *p, size_t n)
{
    if (sz_tokenizer_reserve(&b->p, &b->room, b->len + n, 1) != 0) return -1;
    if (n) memcpy(b->p + b->len, p, n);
    b->len += n;
    return 0;
}

int sz_tokenizer_put_id(id_list *l, int32_t id)
{
    if (sz_tokenizer_reserve(&l->p, &l->room, l->len + 1, sizeof *l->p) != 0) return -1;
    l->p[l->len++] = id;
    return 0;
}

int sz_tokenizer_shown(size_t len) { return (int)(len < SHOWN ? len : SHOWN); }

/* ---- UTF-8 ---- */

/* The bytes that follow the first byte c of a sequence, and the range of the second; -1: c cannot
 * begin one. */
static int utf8_lead(uint8_t c, uint8_t *lo, uint8_t *hi)
{
    *lo = 0x80;
    *hi = 0xbf;
    if (c < 0x80) return 0;
    if (c >= 0xc2 && c <= 0xdf) return 1;
    if (c >= 0xe0 && c <= 0xef) {
        if (c == 0xe0) *lo = 0xa0;
        if (c == 0xed) *hi = 0x9f;
        return 2;
    }
    if (c >= 0xf0 && c <= 0xf4) {
        if (c == 0xf0) *lo = 0x90;
        if (c == 0xf4) *hi = 0x8f;
        return 3;
    }
    return -1;
}

/* The length of the well-formed sequence at p, or minus the length of the ill-formed part that one
 * U+FFFD replaces (the longest start of a well-formed sequence, at least one byte: Unicode's
 * "maximal subpart"). */
static int utf8_step(const uint8_t *p, size_t n)
{
    uint8_t lo, hi;
    int more = utf8_lead(p[0], &lo, &hi);
    if (more < 0) return -1;
    for (int i = 1; i <= more; i++) {
        if ((size_t)i >= n || p[i] < lo || p[i] > hi) return -i;
        lo = 0x80;
        hi = 0xbf;
    }
    return more + 1;
}

static bool is_utf8(const char *text, size_t len)
{
    for (size_t i = 0; i < len;) {
        int n = utf8_step((const uint8_t *)text + i, len - i);
        if (n < 0) return false;
        i += (size_t)n;
    }
    return true;
}

/* Appends text to out with U+FFFD for what is not UTF-8. */
static int put_repaired(bytes *out, const char *text, size_t len)
{
    size_t done = 0;
    size_t i = 0;
    while (i < len) {
        int n = utf8_step((const uint8_t *)text + i, len - i);
        if (n > 0) {
            i += (size_t)n;
            continue;
        }
        /* The good bytes so far, then the replacement. */
        if (sz_tokenizer_put(out, text + done, i - done) != 0) return -1;
        if (sz_tokenizer_put(out, "\xef\xbf\xbd", 3) != 0) return -1;
        i += (size_t)-n;
        done = i;
    }
    return sz_tokenizer_put(out, text + done, len - done);
}

/* ---- patterns ---- */

/* Compiles a pattern; NULL with `why` (200 bytes) and *offset set if it is not valid. */
static pcre2_code *compile(const char *pattern, uint32_t options, size_t *offset, char *why)
{
    int code;
    PCRE2_SIZE place = 0;
    pcre2_code *compiled = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED,
                                         PCRE2_UTF | PCRE2_UCP | options, &code, &place, NULL);
    if (!compiled) pcre2_get_error_message(code, (PCRE2_UCHAR *)why, 200);
    *offset = place;
    return compiled;
}

int sz_pattern_matches(const char *pattern, const char *text)
{
    char why[200];
    size_t offset;
    pcre2_code *compiled = compile(pattern, PCRE2_ANCHORED | PCRE2_ENDANCHORED, &offset, why);
    if (!compiled)
        return sz_fail("the pattern '%s' does not compile at character %zu: %s", pattern, offset,
                       why);

    /* Match once and free everything. */
    int r = PCRE2_ERROR_NOMEMORY;
    pcre2_match_data *match = pcre2_match_data_create_from_pattern(compiled, NULL);
    if (match)
        r = pcre2_match(compiled, (PCRE2_SPTR)text, PCRE2_ZERO_TERMINATED, 0, 0, match, NULL);
    pcre2_match_data_free(match);
    pcre2_code_free(compiled);
    if (r < 0 && r != PCRE2_ERROR_NOMATCH)
        return sz_fail("the pattern '%s' failed on '%s' (PCRE2 error %d)", pattern, text, r);
    return r >= 0;
}

/* ---- building ---- */

sz_tokenizer *sz_tokenizer_new(const char *split_pattern)
{
    sz_tokenizer *t = calloc(1, sizeof *t);
    if (!t) {
        sz_tokenizer_no_memory();
        return NULL;
    }
    memset(t->byte_id, -1, sizeof t->byte_id);

    char why[200];
    size_t offset;
    t->pattern = compile(split_pattern, 0, &offset, why);
    if (!t->pattern) {
        sz_tokenizer_free(t);
        return sz_null("the tokenizer's split pattern does not compile at character %zu: %s: %s",
                       offset, why, split_pattern);
    }

    /* Without JIT (unusual machines) the interpreter gives the same matches. */
    if (pcre2_jit_compile(t->pattern, PCRE2_JIT_COMPLETE) == 0)
        t->stack = pcre2_jit_stack_create(64 << 10, 16 << 20, NULL);
    t->match = pcre2_match_data_create_from_pattern(t->pattern, NULL);
    t->context = pcre2_match_context_create(NULL);
    t->cache = calloc(CACHE_SLOTS, sizeof *t->cache);
    if (!t->match || !t->context || !t->cache) {
        sz_tokenizer_free(t);
        sz_tokenizer_no_memory();
        return NULL;
    }
    if (t->stack) pcre2_jit_stack_assign(t->context, NULL, t->stack);
    return t;
}

void sz_tokenizer_free(sz_tokenizer *t)
{
    if (!t) return;
    pcre2_match_data_free(t->match);
    pcre2_match_context_free(t->context);
    pcre2_jit_stack_free(t->stack);
    pcre2_code_free(t->pattern);
    free(t->pool.p);
    free(t->entries);
    free(t->words);
    free(t->merges);
    free(t->added.ids);
    free(t->late.ids);
    free(t->cache);
    free(t->symbols);
    free(t->heap);
    free(t->clean.p);
    free(t->text.p);
    free(t->spare.p);
    free(t->ids.p);
    free(t);
}

/* Makes text the token's text. 0, or -1 with a message. */
static int put_text(sz_tokenizer *t, int32_t id, const char *text, size_t len)
{
    size_t start = t->pool.len;
    if (len > MAX_TOKEN || start + len > UINT32_MAX)
        return sz_fail("token id %d has %zu bytes, more than a vocabulary holds", id, len);
    if (sz_tokenizer_put(&t->pool, text, len) != 0) return -1;
    t->entries[id].start = (uint32_t)start;
    t->entries[id].len = (uint32_t)len;
    return 0;
}

int sz_tokenizer_set(sz_tokenizer *t, const char *text, size_t len, int id, int kind)
{
    if (t->finished) return sz_fail("the tokenizer is finished: no token can be added");
    if (id < 0 || id >= MAX_ID) return sz_fail("token id %d is out of range", id);

    /* Room for the id; new entries are NONE. */
    size_t room = (size_t)t->room;
    size_t old = room;
    size_t need = (size_t)id + 1;
    if (sz_tokenizer_reserve(&t->entries, &room, need, sizeof *t->entries) != 0) return -1;
    t->room = (int)room;
    memset(t->entries + old, 0, (room - old) * sizeof *t->entries);

    entry *e = &t->entries[id];
    if (e->kind != NONE && (kind < ADDED || e->kind >= ADDED))
        return sz_fail("token id %d is given twice: '%.*s' and '%.*s'", id,
                       sz_tokenizer_shown(e->len), t->pool.p + e->start, sz_tokenizer_shown(len),
                       text);
    if (put_text(t, id, text, len) != 0) return -1;
    e->kind = (uint32_t)kind;
    if (id >= t->size) t->size = id + 1;
    return 0;
}

/* Keeps the list sorted, the longest first; those of one length stay in the order given. */
static int list_added(sz_tokenizer *t, added_list *list, int32_t id)
{
    size_t room = (size_t)list->room;
    size_t need = (size_t)list->count + 1;
    if (sz_tokenizer_reserve(&list->ids, &room, need, sizeof *list->ids) != 0) return -1;
    list->room = (int)room;
    const entry *e = &t->entries[id];
    int i = list->count++;
    for (; i > 0 && t->entries[list->ids[i - 1]].len < e->len; i--) list->ids[i] = list->ids[i - 1];
    list->ids[i] = id;
    list->first[(uint8_t)t->pool.p[e->start]] = 1;
    return 0;
}

int sz_tokenizer_add_special(sz_tokenizer *t, const char *text, size_t len, int id, int flags)
{
    if (len == 0) return sz_fail("added token %d is empty", id);
    int kind = flags & SZ_TOKEN_SPECIAL ? SPECIAL : ADDED;
    if (sz_tokenizer_set(t, text, len, id, kind) != 0) return -1;
    return list_added(t, flags & SZ_TOKEN_NORMALIZED ? &t->late : &t->added, id);
}

/* Gives back the unused end of an array. */
static void trim(void *pointer, size_t size)
{
    void *old;
    memcpy(&old, pointer, sizeof old);
    void *less = size ? realloc(old, size) : NULL;
    if (less) memcpy(pointer, &less, sizeof less);
}

/* Code points under U+0300, whose UTF-8 starts with a byte under 0xCC, are always in NFC. */
static bool surely_normalised(const char *text, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if ((uint8_t)text[i] >= 0xcc) return false;
    return true;
}

/* Normalises the token's text. 0, or -1 with a message. */
static int normalise_token(sz_tokenizer *t, int32_t id)
{
    const entry *e = &t->entries[id];
    if (surely_normalised(t->pool.p + e->start, e->len)) return 0;
    if (!is_utf8(t->pool.p + e->start, e->len)) return sz_fail("added token %d is not UTF-8", id);
    char *composed;
    int64_t n = sz_nfc(t->pool.p + e->start, e->len, &composed);
    if (n < 0) return -1;
    int rc = 0;
    if ((size_t)n != e->len || memcmp(composed, t->pool.p + e->start, e->len) != 0)
        rc = put_text(t, id, composed, (size_t)n);
    free(composed);
    return rc;
}

/* Normalises the tokens that are found in the normalised text and lists them by their new lengths.
 * 0, or -1 with a message. */
static int normalise_late(sz_tokenizer *t)
{
    added_list sorted = { 0 };
    for (int i = 0; i < t->late.count; i++) {
        int32_t id = t->late.ids[i];
        if (normalise_token(t, id) != 0 || list_added(t, &sorted, id) != 0) {
            free(sorted.ids);
            return -1;
        }
    }
    free(t->late.ids);
    t->late = sorted;
    return 0;
}

int sz_tokenizer_finish(sz_tokenizer *t, int nfc)
{
    if (nfc && normalise_late(t) != 0) return -1;
    t->nfc = nfc;
    t->finished = 1;

    /* What only the additions need. */
    free(t->words);
    t->words = NULL;
    t->word_slots = 0;
    free(t->spare.p);
    t->spare = (bytes){ 0 };
    trim(&t->pool.p, t->pool.len);
    trim(&t->entries, (size_t)t->size * sizeof *t->entries);
    return 0;
}

int sz_tokenizer_size(const sz_tokenizer *t) { return t->size; }

/* ---- encode ---- */

/* Encodes valid UTF-8 without added tokens. What the pattern leaves between its matches is a piece
 * too. */
static int encode_pieces(sz_tokenizer *t, const char *text, size_t len)
{
    const uint32_t options = PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY;
    PCRE2_SIZE *span = pcre2_get_ovector_pointer(t->match);
    size_t done = 0;
    while (done < len) {
        int r = pcre2_match(t->pattern, (PCRE2_SPTR)text, len, done, options, t->match, t->context);
        if (r == PCRE2_ERROR_NOMATCH) break;
        if (r < 0) return sz_fail("the tokenizer's split pattern failed (PCRE2 error %d)", r);

        /* The text before the match, then the match. */
        if (span[0] > done && sz_bpe_encode(t, text + done, span[0] - done) != 0) return -1;
        if (sz_bpe_encode(t, text + span[0], span[1] - span[0]) != 0) return -1;
        done = span[1];
    }
    return done < len ? sz_bpe_encode(t, text + done, len - done) : 0;
}

/* The longest token of the list at p, -1: none. */
static int32_t added_at(const sz_tokenizer *t, const added_list *list, const char *p, size_t n)
{
    if (!list->first[(uint8_t)*p]) return -1;
    for (int i = 0; i < list->count; i++) {
        const entry *e = &t->entries[list->ids[i]];
        if (e->len <= n && !memcmp(t->pool.p + e->start, p, e->len)) return list->ids[i];
    }
    return -1;
}

/* Encodes the list's tokens in valid UTF-8, and by `rest` the text between them. */
static int encode_added(sz_tokenizer *t, const added_list *list, const char *p, size_t n,
                        int (*rest)(sz_tokenizer *, const char *, size_t))
{
    size_t done = 0;
    for (size_t i = 0; i < n;) {
        int32_t id = added_at(t, list, p + i, n - i);
        if (id < 0) {
            i++;
            continue;
        }
        if (i > done && rest(t, p + done, i - done) != 0) return -1;
        if (sz_tokenizer_put_id(&t->ids, id) != 0) return -1;
        i += t->entries[id].len;
        done = i;
    }
    return done < n ? rest(t, p + done, n - done) : 0;
}

static int encode_normalised(sz_tokenizer *t, const char *text, size_t len)
{
    if (!t->late.count) return encode_pieces(t, text, len);
    return encode_added(t, &t->late, text, len, encode_pieces);
}

/* Encodes valid UTF-8 without the tokens of the raw text: normalises it if that may change it. */
static int encode_plain(sz_tokenizer *t, const char *text, size_t len)
{
    if (!t->nfc || surely_normalised(text, len)) return encode_normalised(t, text, len);

    char *composed;
    int64_t n = sz_nfc(text, len, &composed);
    if (n < 0) return -1;
    int rc = encode_normalised(t, composed, (size_t)n);
    free(composed);
    return rc;
}

int64_t sz_tokenizer_encode(sz_tokenizer *t, const char *text, size_t len, const int32_t **ids)
{
    if (!t->finished) return sz_fail("the tokenizer is not finished");
    t->ids.len = 0;
    t->clean.len = 0;
    if (put_repaired(&t->clean, text, len) != 0) return -1;
    if (encode_added(t, &t->added, t->clean.p, t->clean.len, encode_plain) != 0) return -1;
    *ids = t->ids.p;
    return (int64_t)t->ids.len;
}

/* ---- decode ---- */

int64_t sz_tokenizer_decode(sz_tokenizer *t, const int32_t *ids, int64_t n, int skip_special,
                            const char **text)
{
    t->clean.len = 0;
    t->text.len = 0;

    /* The bytes of all tokens. Embedding rows past the vocabulary have no text. */
    for (int64_t i = 0; i < n; i++) {
        if (ids[i] < 0) return sz_fail("token %lld has id %d", (long long)i + 1, ids[i]);
        if (ids[i] >= t->size) continue;
        const entry *e = &t->entries[ids[i]];
        if (e->kind == NONE || (skip_special && e->kind == SPECIAL)) continue;
        if (sz_tokenizer_put(&t->clean, t->pool.p + e->start, e->len) != 0) return -1;
    }

    /* As UTF-8, ended by a 0 that is not counted. */
    const char *joined = t->clean.p ? t->clean.p : "";
    if (put_repaired(&t->text, joined, t->clean.len) != 0) return -1;
    if (sz_tokenizer_put(&t->text, "", 1) != 0) return -1;
    *text = t->text.p;
    return (int64_t)t->text.len - 1;
}

int64_t sz_tokenizer_bytes(sz_tokenizer *t, int32_t id, const char **text)
{
    *text = "";
    if (id < 0 || id >= t->size || t->entries[id].kind == NONE) return 0;
    *text = t->pool.p + t->entries[id].start;
    return t->entries[id].len;
}
