/* tokenizer.c - byte-level BPE, text <-> ids, as Hugging Face tokenizers computes it for GPT-2 style vocabularies.
 *
 * Encode: bytes that are not UTF-8 become U+FFFD; added tokens are found in the raw text (leftmost, then longest); the
 * text between them is normalised (NFC) and split by the pattern; each piece starts as single-byte tokens, and the
 * adjacent pair with the lowest rank (leftmost of equals) is merged until none is left.
 * Vocabulary strings come in the byte-to-unicode alphabet (0x21-0x7E, 0xA1-0xAC, 0xAE-0xFF stand for themselves, the other
 * 68 bytes for U+0100 and up) and are kept here as the bytes they stand for. Leaves out: JSON (lua/segzero/models/tokenizer.lua
 * hands everything over), prefix spaces, unknown tokens, dropout, added tokens with strip flags.
 * A tokenizer serves one thread at a time. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "core/core.h"
#include <pcre2.h>
#include <stdio.h>
#include <stdlib.h>
#include <utf8proc.h>

enum { MAX_ID = 1 << 24, CACHE_SLOTS = 1 << 15, CACHE_WORD = 40, CACHE_IDS = 12, SHORT_WORD = 48 };

typedef struct { char *p; size_t len, room; } bytes;
typedef struct { int32_t *p; size_t len, room; } id_list;

typedef struct { size_t start; uint32_t len; int32_t kind; } entry;     /* kind: NONE, PLAIN, ADDED, SPECIAL */
enum { NONE = 0, PLAIN = 1, ADDED = 2, SPECIAL = 3 };

typedef struct { uint64_t pair; int32_t rank, id; } merge;              /* pair: left << 32 | right; rank -1: free slot */
typedef struct { uint8_t len, count; char word[CACHE_WORD]; int32_t ids[CACHE_IDS]; } cached;
typedef struct { int32_t id, prev, next; } symbol;                      /* id -1: merged into an earlier one */
typedef struct { int32_t rank, at, left, right; } candidate;

struct sz_tokenizer {
    pcre2_code *pattern;
    pcre2_match_data *match;
    pcre2_match_context *context;
    pcre2_jit_stack *stack;
    int nfc, finished;
    bytes pool;                     /* all token texts; entries point into it */
    entry *entries;                 /* [size], by id */
    int size, room;
    int32_t *words;                 /* hash of plain tokens: id + 1, 0: free slot */
    size_t word_slots, word_count;
    merge *merges;
    size_t merge_slots, merge_count;
    int32_t byte_id[256];           /* -1: no such token */
    int32_t *added;                 /* ids of added tokens, longest first */
    int added_count, added_room;
    uint8_t added_first[256];       /* 1: some added token starts with this byte */
    cached *cache;                  /* direct mapped */
    symbol *symbols;
    candidate *heap;
    size_t symbol_room, heap_len, heap_room;
    bytes clean, text;              /* repaired input; decoded output */
    id_list ids;
};

static int no_memory(void) { return sz_fail("out of memory in the tokenizer"); }

/* Grows *p (elements of size bytes) to hold need elements. */
static int reserve(void *pointer, size_t *room, size_t need, size_t size)
{
    if (need <= *room) return 0;
    size_t n = *room ? *room : 64;
    while (n < need) n *= 2;
    void *old;
    memcpy(&old, pointer, sizeof old);
    void *grown = n > SIZE_MAX / size ? NULL : realloc(old, n * size);
    if (!grown) return no_memory();
    memcpy(pointer, &grown, sizeof grown);
    *room = n;
    return 0;
}

static int put_bytes(bytes *b, const void *p, size_t n)
{
    if (reserve(&b->p, &b->room, b->len + n, 1) != 0) return -1;
    if (n) memcpy(b->p + b->len, p, n);
    b->len += n;
    return 0;
}

static int put_id(id_list *l, int32_t id)
{
    if (reserve(&l->p, &l->room, l->len + 1, sizeof *l->p) != 0) return -1;
    l->p[l->len++] = id;
    return 0;
}

static uint64_t hash_bytes(const char *p, size_t n)    /* FNV-1a, then a final mix for the low bits */
{
    uint64_t h = 1469598103934665603u;
    for (size_t i = 0; i < n; i++) h = (h ^ (uint8_t)p[i]) * 1099511628211u;
    return h ^ h >> 29;
}

static uint64_t hash_pair(uint64_t pair)
{
    pair *= 0x9e3779b97f4a7c15u;
    return pair ^ pair >> 32;
}

/* ---- UTF-8 ---- */
/* Length of the well-formed sequence at p, or minus the length of the ill-formed part that one U+FFFD replaces (the
 * longest start of a well-formed sequence, at least one byte: Unicode's "maximal subpart"). */
static int utf8_step(const uint8_t *p, size_t n)
{
    uint8_t c = p[0], lo = 0x80, hi = 0xbf;
    int more;
    if (c < 0x80) return 1;
    if (c >= 0xc2 && c <= 0xdf) more = 1;
    else if (c >= 0xe0 && c <= 0xef) {
        more = 2;
        if (c == 0xe0) lo = 0xa0;
        if (c == 0xed) hi = 0x9f;
    } else if (c >= 0xf0 && c <= 0xf4) {
        more = 3;
        if (c == 0xf0) lo = 0x90;
        if (c == 0xf4) hi = 0x8f;
    } else return -1;
    for (int i = 1; i <= more; i++) {
        if ((size_t)i >= n || p[i] < lo || p[i] > hi) return -i;
        lo = 0x80;
        hi = 0xbf;
    }
    return more + 1;
}

/* Appends text to out with U+FFFD for what is not UTF-8. */
static int put_repaired(bytes *out, const char *text, size_t len)
{
    size_t done = 0, i = 0;
    while (i < len) {
        int n = utf8_step((const uint8_t *)text + i, len - i);
        if (n > 0) { i += (size_t)n; continue; }
        if (put_bytes(out, text + done, i - done) != 0 || put_bytes(out, "\xef\xbf\xbd", 3) != 0) return -1;
        i += (size_t)-n;
        done = i;
    }
    return put_bytes(out, text + done, len - done);
}

/* The byte that a code point of the byte-to-unicode alphabet stands for, -1 if it is not in the alphabet. */
static int alphabet_byte(int32_t c)
{
    if ((c >= 0x21 && c <= 0x7e) || (c >= 0xa1 && c <= 0xac) || (c >= 0xae && c <= 0xff)) return c;
    if (c < 0x100 || c >= 0x100 + 68) return -1;
    c -= 0x100;
    return c <= 0x20 ? c : c < 0x20 + 35 ? c - 0x21 + 0x7f : 0xad;
}

/* Turns a vocabulary string into its bytes (out has room for len). Returns their count, -1 if a character is outside
 * the alphabet. */
static int64_t from_alphabet(const char *token, size_t len, char *out)
{
    int64_t n = 0;
    for (size_t i = 0; i < len;) {
        utf8proc_int32_t c;
        utf8proc_ssize_t step = utf8proc_iterate((const utf8proc_uint8_t *)token + i, (utf8proc_ssize_t)(len - i), &c);
        int b = step > 0 ? alphabet_byte(c) : -1;
        if (b < 0) return -1;
        out[n++] = (char)b;
        i += (size_t)step;
    }
    return n;
}

int sz_pattern_matches(const char *pattern, const char *text)
{
    int code;
    PCRE2_SIZE offset;
    pcre2_code *compiled = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP | PCRE2_ANCHORED | PCRE2_ENDANCHORED, &code, &offset, NULL);
    if (!compiled) {
        char why[200];
        pcre2_get_error_message(code, (PCRE2_UCHAR *)why, sizeof why);
        return sz_fail("the pattern '%s' does not compile at character %zu: %s", pattern, (size_t)offset, why);
    }
    pcre2_match_data *match = pcre2_match_data_create_from_pattern(compiled, NULL);
    int r = match ? pcre2_match(compiled, (PCRE2_SPTR)text, PCRE2_ZERO_TERMINATED, 0, 0, match, NULL) : PCRE2_ERROR_NOMEMORY;
    pcre2_match_data_free(match);
    pcre2_code_free(compiled);
    if (r < 0 && r != PCRE2_ERROR_NOMATCH) return sz_fail("the pattern '%s' failed on '%s' (PCRE2 error %d)", pattern, text, r);
    return r >= 0;
}

/* ---- building ---- */
sz_tokenizer *sz_tokenizer_new(const char *split_pattern)
{
    sz_tokenizer *t = calloc(1, sizeof *t);
    if (!t) return no_memory(), NULL;
    memset(t->byte_id, -1, sizeof t->byte_id);
    int code;
    PCRE2_SIZE offset;
    t->pattern = pcre2_compile((PCRE2_SPTR)split_pattern, PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP, &code, &offset, NULL);
    if (!t->pattern) {
        char why[200];
        pcre2_get_error_message(code, (PCRE2_UCHAR *)why, sizeof why);
        sz_tokenizer_free(t);
        return sz_null("the tokenizer's split pattern does not compile at character %zu: %s: %s", (size_t)offset, why, split_pattern);
    }
    /* Without JIT (unusual machines) the interpreter gives the same matches. */
    if (pcre2_jit_compile(t->pattern, PCRE2_JIT_COMPLETE) == 0) t->stack = pcre2_jit_stack_create(64 << 10, 16 << 20, NULL);
    t->match = pcre2_match_data_create_from_pattern(t->pattern, NULL);
    t->context = pcre2_match_context_create(NULL);
    t->cache = calloc(CACHE_SLOTS, sizeof *t->cache);
    if (!t->match || !t->context || !t->cache) {
        sz_tokenizer_free(t);
        return no_memory(), NULL;
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
    free(t->added);
    free(t->cache);
    free(t->symbols);
    free(t->heap);
    free(t->clean.p);
    free(t->text.p);
    free(t->ids.p);
    free(t);
}

/* Stores text under id; a plain token may be named again as an added one. */
static int set_entry(sz_tokenizer *t, const char *text, size_t len, int id, int kind)
{
    if (t->finished) return sz_fail("the tokenizer is finished: no token can be added");
    if (id < 0 || id >= MAX_ID) return sz_fail("token id %d is out of range", id);
    size_t room = (size_t)t->room, old = room;
    if (reserve(&t->entries, &room, (size_t)id + 1, sizeof *t->entries) != 0) return -1;
    t->room = (int)room;
    memset(t->entries + old, 0, (room - old) * sizeof *t->entries);
    entry *e = &t->entries[id];
    if (e->kind != NONE && (kind == PLAIN || e->kind != PLAIN))
        return sz_fail("token id %d is given twice: '%.*s' and '%.*s'", id, (int)(e->len < 60 ? e->len : 60), t->pool.p + e->start, (int)(len < 60 ? len : 60), text);
    *e = (entry){ t->pool.len, (uint32_t)len, kind };
    if (id >= t->size) t->size = id + 1;
    return put_bytes(&t->pool, text, len);
}

static int32_t find_word(const sz_tokenizer *t, const char *p, size_t n)    /* -1: none */
{
    if (!t->word_slots) return -1;
    for (size_t i = hash_bytes(p, n) & (t->word_slots - 1);; i = (i + 1) & (t->word_slots - 1)) {
        int32_t id = t->words[i] - 1;
        if (id < 0) return -1;
        const entry *e = &t->entries[id];
        if (e->len == n && !memcmp(t->pool.p + e->start, p, n)) return id;
    }
}

static int grow_words(sz_tokenizer *t)
{
    size_t slots = t->word_slots ? 2 * t->word_slots : 1024;
    int32_t *words = calloc(slots, sizeof *words);
    if (!words) return no_memory();
    for (size_t k = 0; k < t->word_slots; k++) {
        if (!t->words[k]) continue;
        const entry *e = &t->entries[t->words[k] - 1];
        size_t i = hash_bytes(t->pool.p + e->start, e->len) & (slots - 1);
        while (words[i]) i = (i + 1) & (slots - 1);
        words[i] = t->words[k];
    }
    free(t->words);
    t->words = words;
    t->word_slots = slots;
    return 0;
}

int sz_tokenizer_add_token(sz_tokenizer *t, const char *token, size_t len, int id)
{
    char small[256], *raw = len <= sizeof small ? small : malloc(len);
    if (!raw) return no_memory();
    int64_t n = from_alphabet(token, len, raw);
    int result;
    if (n <= 0) {    /* outside the alphabet no text can give it; decoding shows it as it is */
        result = set_entry(t, token, len, id, PLAIN);
    } else if (find_word(t, raw, (size_t)n) >= 0) {
        result = sz_fail("token '%.*s' is in the vocabulary twice", (int)(len < 60 ? len : 60), token);
    } else if ((result = set_entry(t, raw, (size_t)n, id, PLAIN)) == 0 && (2 * (t->word_count + 1) <= t->word_slots || (result = grow_words(t)) == 0)) {
        size_t i = hash_bytes(raw, (size_t)n) & (t->word_slots - 1);
        while (t->words[i]) i = (i + 1) & (t->word_slots - 1);
        t->words[i] = id + 1;
        t->word_count++;
        if (n == 1) t->byte_id[(uint8_t)raw[0]] = id;
    }
    if (raw != small) free(raw);
    return result;
}

static merge *merge_slot(merge *table, size_t slots, uint64_t pair)
{
    size_t i = hash_pair(pair) & (slots - 1);
    while (table[i].rank >= 0 && table[i].pair != pair) i = (i + 1) & (slots - 1);
    return &table[i];
}

static int grow_merges(sz_tokenizer *t)
{
    size_t slots = t->merge_slots ? 2 * t->merge_slots : 1024;
    merge *table = malloc(slots * sizeof *table);
    if (!table) return no_memory();
    for (size_t i = 0; i < slots; i++) table[i].rank = -1;
    for (size_t i = 0; i < t->merge_slots; i++)
        if (t->merges[i].rank >= 0) *merge_slot(table, slots, t->merges[i].pair) = t->merges[i];
    free(t->merges);
    t->merges = table;
    t->merge_slots = slots;
    return 0;
}

int sz_tokenizer_add_merge(sz_tokenizer *t, const char *left, size_t left_len, const char *right, size_t right_len)
{
    char small[512], *raw = left_len + right_len <= sizeof small ? small : malloc(left_len + right_len);
    if (!raw) return no_memory();
    int64_t a = from_alphabet(left, left_len, raw), b = a > 0 ? from_alphabet(right, right_len, raw + a) : -1;
    int32_t l = -1, r = -1, id = -1;
    if (a > 0 && b > 0) {
        l = find_word(t, raw, (size_t)a);
        r = find_word(t, raw + a, (size_t)b);
        id = find_word(t, raw, (size_t)(a + b));
    }
    if (raw != small) free(raw);
    if (t->finished) return sz_fail("the tokenizer is finished: no merge can be added");
    int rank = (int)t->merge_count;
    if (l < 0 || r < 0 || id < 0)
        return sz_fail("merge %d ('%.*s' '%.*s') %s", rank + 1, (int)(left_len < 60 ? left_len : 60), left, (int)(right_len < 60 ? right_len : 60), right,
                       l < 0 || r < 0 ? "has a part that is not in the vocabulary" : "makes a token that is not in the vocabulary");
    if (2 * (t->merge_count + 1) > t->merge_slots && grow_merges(t) != 0) return -1;
    uint64_t pair = (uint64_t)(uint32_t)l << 32 | (uint32_t)r;
    *merge_slot(t->merges, t->merge_slots, pair) = (merge){ pair, rank, id };    /* of a pair given twice the later rank counts */
    t->merge_count++;
    return 0;
}

int sz_tokenizer_add_special(sz_tokenizer *t, const char *text, size_t len, int id, int special)
{
    if (len == 0) return sz_fail("added token %d is empty", id);
    size_t room = (size_t)t->added_room;
    if (reserve(&t->added, &room, (size_t)t->added_count + 1, sizeof *t->added) != 0) return -1;
    t->added_room = (int)room;
    if (set_entry(t, text, len, id, special ? SPECIAL : ADDED) != 0) return -1;
    int i = t->added_count++;
    for (; i > 0 && t->entries[t->added[i - 1]].len < len; i--) t->added[i] = t->added[i - 1];
    t->added[i] = id;
    t->added_first[(uint8_t)text[0]] = 1;
    return 0;
}

int sz_tokenizer_finish(sz_tokenizer *t, int nfc)
{
    t->nfc = nfc;
    t->finished = 1;
    return 0;
}

int sz_tokenizer_size(const sz_tokenizer *t) { return t->size; }

/* ---- byte-pair merging ---- */
static inline const merge *find_merge(const sz_tokenizer *t, int32_t left, int32_t right)    /* NULL: none */
{
    if (!t->merge_slots) return NULL;
    const merge *m = merge_slot(t->merges, t->merge_slots, (uint64_t)(uint32_t)left << 32 | (uint32_t)right);
    return m->rank >= 0 ? m : NULL;
}

/* Few symbols: find the lowest rank by looking at all of them. ids [n] is merged in place; returns the new count. */
static int merge_short(const sz_tokenizer *t, int32_t *ids, int n)
{
    const merge *found[SHORT_WORD];    /* of symbol i and i + 1 */
    for (int i = 0; i + 1 < n; i++) found[i] = find_merge(t, ids[i], ids[i + 1]);
    for (;;) {
        int best = -1;
        for (int i = 0; i + 1 < n; i++)
            if (found[i] && (best < 0 || found[i]->rank < found[best]->rank)) best = i;
        if (best < 0) return n;
        ids[best] = found[best]->id;
        n--;
        for (int i = best + 1; i < n; i++) {
            ids[i] = ids[i + 1];
            found[i] = found[i + 1];
        }
        if (best > 0) found[best - 1] = find_merge(t, ids[best - 1], ids[best]);
        if (best + 1 < n) found[best] = find_merge(t, ids[best], ids[best + 1]);
    }
}

static inline bool before(const candidate *a, const candidate *b)
{
    return a->rank != b->rank ? a->rank < b->rank : a->at < b->at;
}

static int push(sz_tokenizer *t, int32_t at)    /* the pair of symbol at and its successor, if it merges */
{
    int32_t next = t->symbols[at].next;
    const merge *m = next < 0 ? NULL : find_merge(t, t->symbols[at].id, t->symbols[next].id);
    if (!m) return 0;
    if (reserve(&t->heap, &t->heap_room, t->heap_len + 1, sizeof *t->heap) != 0) return -1;
    candidate c = { m->rank, at, t->symbols[at].id, t->symbols[next].id };
    size_t i = t->heap_len++;
    for (; i > 0 && before(&c, &t->heap[(i - 1) / 2]); i = (i - 1) / 2) t->heap[i] = t->heap[(i - 1) / 2];
    t->heap[i] = c;
    return 0;
}

static candidate pop(sz_tokenizer *t)
{
    candidate top = t->heap[0], last = t->heap[--t->heap_len];
    size_t i = 0, n = t->heap_len;
    for (;;) {
        size_t k = 2 * i + 1;
        if (k >= n) break;
        if (k + 1 < n && before(&t->heap[k + 1], &t->heap[k])) k++;
        if (!before(&t->heap[k], &last)) break;
        t->heap[i] = t->heap[k];
        i = k;
    }
    t->heap[i] = last;
    return top;
}

/* Many symbols: a heap of candidate pairs over a linked list; a candidate whose symbols have changed is stale. */
static int merge_long(sz_tokenizer *t, const char *word, size_t len)
{
    if (len > INT32_MAX / 2) return sz_fail("a piece of %zu bytes is too long to tokenize", len);
    if (reserve(&t->symbols, &t->symbol_room, len, sizeof *t->symbols) != 0) return -1;
    int32_t n = (int32_t)len;
    for (int32_t i = 0; i < n; i++) t->symbols[i] = (symbol){ t->byte_id[(uint8_t)word[i]], i - 1, i + 1 < n ? i + 1 : -1 };
    t->heap_len = 0;
    for (int32_t i = 0; i < n; i++)
        if (push(t, i) != 0) return -1;
    while (t->heap_len) {
        candidate c = pop(t);
        symbol *s = &t->symbols[c.at];
        if (s->id != c.left || s->next < 0 || t->symbols[s->next].id != c.right) continue;
        symbol *gone = &t->symbols[s->next];
        s->id = find_merge(t, c.left, c.right)->id;
        s->next = gone->next;
        gone->id = -1;
        if (s->next >= 0) t->symbols[s->next].prev = c.at;
        if (push(t, c.at) != 0 || (s->prev >= 0 && push(t, s->prev) != 0)) return -1;
    }
    for (int32_t i = 0; i >= 0; i = t->symbols[i].next)
        if (put_id(&t->ids, t->symbols[i].id) != 0) return -1;
    return 0;
}

static int encode_word(sz_tokenizer *t, const char *word, size_t len)
{
    cached *slot = NULL;
    if (len <= CACHE_WORD) {
        slot = &t->cache[hash_bytes(word, len) & (CACHE_SLOTS - 1)];
        if (slot->len == len && !memcmp(slot->word, word, len)) {
            for (int i = 0; i < slot->count; i++)
                if (put_id(&t->ids, slot->ids[i]) != 0) return -1;
            return 0;
        }
    }
    for (size_t i = 0; i < len; i++)
        if (t->byte_id[(uint8_t)word[i]] < 0) return sz_fail("the vocabulary has no token for byte 0x%02x", (unsigned)(uint8_t)word[i]);
    if (len > SHORT_WORD) return merge_long(t, word, len);
    int32_t ids[SHORT_WORD];
    for (size_t i = 0; i < len; i++) ids[i] = t->byte_id[(uint8_t)word[i]];
    int n = merge_short(t, ids, (int)len);
    for (int i = 0; i < n; i++)
        if (put_id(&t->ids, ids[i]) != 0) return -1;
    if (slot && n <= CACHE_IDS) {
        slot->len = (uint8_t)len;
        slot->count = (uint8_t)n;
        memcpy(slot->word, word, len);
        memcpy(slot->ids, ids, (size_t)n * sizeof *ids);
    }
    return 0;
}

/* ---- encode ---- */
/* text is valid UTF-8 without added tokens. What the pattern leaves between its matches is a piece too. */
static int encode_pieces(sz_tokenizer *t, const char *text, size_t len)
{
    size_t at = 0, done = 0;
    PCRE2_SIZE *span = pcre2_get_ovector_pointer(t->match);
    while (at < len) {
        int r = pcre2_match(t->pattern, (PCRE2_SPTR)text, len, at, PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY, t->match, t->context);
        if (r == PCRE2_ERROR_NOMATCH) break;
        if (r < 0) return sz_fail("the tokenizer's split pattern failed (PCRE2 error %d)", r);
        if (span[0] > done && encode_word(t, text + done, span[0] - done) != 0) return -1;
        if (encode_word(t, text + span[0], span[1] - span[0]) != 0) return -1;
        at = done = span[1];
    }
    return done < len ? encode_word(t, text + done, len - done) : 0;
}

static int encode_plain(sz_tokenizer *t, const char *text, size_t len)
{
    /* Code points under U+0300, whose UTF-8 starts with a byte under 0xCC, are in NFC as they are, together too. */
    bool stable = true;
    for (size_t i = 0; i < len && stable; i++) stable = (uint8_t)text[i] < 0xcc;
    if (!t->nfc || stable) return encode_pieces(t, text, len);
    utf8proc_uint8_t *composed = NULL;
    utf8proc_ssize_t n = utf8proc_map((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)len, &composed, UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    if (n < 0) return sz_fail("the text cannot be normalised: %s", utf8proc_errmsg(n));
    int result = encode_pieces(t, (const char *)composed, (size_t)n);
    free(composed);
    return result;
}

/* The longest added token at p, -1: none. */
static int32_t added_at(const sz_tokenizer *t, const char *p, size_t n)
{
    if (!t->added_first[(uint8_t)*p]) return -1;
    for (int i = 0; i < t->added_count; i++) {
        const entry *e = &t->entries[t->added[i]];
        if (e->len <= n && !memcmp(t->pool.p + e->start, p, e->len)) return t->added[i];
    }
    return -1;
}

int64_t sz_tokenizer_encode(sz_tokenizer *t, const char *text, size_t len, const int32_t **ids)
{
    if (!t->finished) return sz_fail("the tokenizer is not finished");
    t->ids.len = t->clean.len = 0;
    if (put_repaired(&t->clean, text, len) != 0) return -1;
    const char *p = t->clean.p;
    size_t n = t->clean.len, done = 0;
    for (size_t i = 0; i < n;) {
        int32_t id = added_at(t, p + i, n - i);
        if (id < 0) { i++; continue; }
        if (i > done && encode_plain(t, p + done, i - done) != 0) return -1;
        if (put_id(&t->ids, id) != 0) return -1;
        i += t->entries[id].len;
        done = i;
    }
    if (done < n && encode_plain(t, p + done, n - done) != 0) return -1;
    *ids = t->ids.p;
    return (int64_t)t->ids.len;
}

/* ---- decode ---- */
int64_t sz_tokenizer_decode(sz_tokenizer *t, const int32_t *ids, int64_t n, int skip_special, const char **text)
{
    t->clean.len = t->text.len = 0;
    for (int64_t i = 0; i < n; i++) {
        if (ids[i] < 0) return sz_fail("token %lld has id %d", (long long)i + 1, ids[i]);
        if (ids[i] >= t->size) continue;    /* embedding rows past the vocabulary have no text */
        const entry *e = &t->entries[ids[i]];
        if (e->kind == NONE || (skip_special && e->kind == SPECIAL)) continue;
        if (put_bytes(&t->clean, t->pool.p + e->start, e->len) != 0) return -1;
    }
    if (put_repaired(&t->text, t->clean.p ? t->clean.p : "", t->clean.len) != 0 || put_bytes(&t->text, "", 1) != 0) return -1;
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
