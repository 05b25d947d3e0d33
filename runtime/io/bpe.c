/* bpe.c - byte-pair encoding of one word: it starts as single-byte tokens, and the adjacent pair
 * with the lowest rank (leftmost of equals) is merged until no pair can be.
 *
 * The vocabulary and the merges are hash tables with open addressing; the vocabulary's is needed
 * only while the merges are added. Short words are searched for the lowest rank each time and
 * cached; long ones keep their pairs in a heap.
 * Leaves out: dropout, unknown tokens.
 */
#include "tokenizer.h"
#include <stdlib.h>

enum { SHORT_WORD = 48 }; /* symbols of a word that is searched without a heap */

/* ---- hash tables ---- */

/* FNV-1a, then a final mix for the low bits. */
static uint64_t hash_bytes(const char *p, size_t n)
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

/* The part of a hash that a slot keeps: bits that do not choose the slot. */
static inline uint32_t tag_of(uint64_t hash) { return (uint32_t)(hash >> 40) & 0xff; }

/* The least power of two of slots that leaves a quarter of them free. */
static size_t slots_for(size_t count)
{
    size_t slots = 1024;
    while (slots / 4 * 3 < count) slots *= 2;
    return slots;
}

bool sz_bpe_is(const sz_tokenizer *t, int32_t id, const char *p, size_t n)
{
    if (id >= t->size) return false;
    const entry *e = &t->entries[id];
    return e->kind == PLAIN && e->len == n && !memcmp(t->pool.p + e->start, p, n);
}

int32_t sz_bpe_find(const sz_tokenizer *t, const char *p, size_t n)
{
    if (!t->word_slots) return -1;
    size_t mask = t->word_slots - 1;
    uint64_t h = hash_bytes(p, n);
    for (size_t i = h & mask;; i = (i + 1) & mask) {
        const word_slot *w = &t->words[i];
        if (!w->next_id) return -1;
        int32_t id = (int32_t)w->next_id - 1;
        if (w->tag == tag_of(h) && sz_bpe_is(t, id, p, n)) return id;
    }
}

/* Puts id into the first free slot of its text's chain. */
static void insert_word(const sz_tokenizer *t, word_slot *words, size_t slots, int32_t id)
{
    const entry *e = &t->entries[id];
    uint64_t h = hash_bytes(t->pool.p + e->start, e->len);
    size_t i = h & (slots - 1);
    while (words[i].next_id) i = (i + 1) & (slots - 1);
    words[i].tag = tag_of(h);
    words[i].next_id = (uint32_t)id + 1;
}

static int resize_words(sz_tokenizer *t, size_t slots)
{
    word_slot *words = calloc(slots, sizeof *words);
    if (!words) return sz_tokenizer_no_memory();
    for (size_t k = 0; k < t->word_slots; k++)
        if (t->words[k].next_id) insert_word(t, words, slots, (int32_t)t->words[k].next_id - 1);
    free(t->words);
    t->words = words;
    t->word_slots = slots;
    return 0;
}

int sz_bpe_add_word(sz_tokenizer *t, int32_t id)
{
    size_t slots = slots_for(t->word_count + 1);
    if (slots > t->word_slots && resize_words(t, slots) != 0) return -1;
    insert_word(t, t->words, t->word_slots, id);
    t->word_count++;
    return 0;
}

static uint64_t pair_of(int32_t left, int32_t right)
{
    return (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
}

/* The slot of a pair, or the free slot where it belongs. */
static merge *merge_slot(merge *table, size_t slots, uint64_t pair)
{
    size_t i = hash_pair(pair) & (slots - 1);
    while (table[i].rank >= 0 && table[i].pair != pair) i = (i + 1) & (slots - 1);
    return &table[i];
}

static int resize_merges(sz_tokenizer *t, size_t slots)
{
    merge *table = malloc(slots * sizeof *table);
    if (!table) return sz_tokenizer_no_memory();
    for (size_t i = 0; i < slots; i++) table[i].rank = -1;
    for (size_t i = 0; i < t->merge_slots; i++) {
        const merge *m = &t->merges[i];
        if (m->rank >= 0) *merge_slot(table, slots, m->pair) = *m;
    }
    free(t->merges);
    t->merges = table;
    t->merge_slots = slots;
    return 0;
}

int sz_bpe_add_merge(sz_tokenizer *t, int32_t left, int32_t right, int32_t id)
{
    size_t slots = slots_for(t->merge_count + 1);
    if (slots > t->merge_slots && resize_merges(t, slots) != 0) return -1;
    /* If a pair is given twice, the later rank counts. */
    uint64_t pair = pair_of(left, right);
    int32_t rank = (int32_t)t->merge_count;
    *merge_slot(t->merges, t->merge_slots, pair) = (merge){ pair, rank, id };
    t->merge_count++;
    return 0;
}

int sz_bpe_reserve(sz_tokenizer *t, size_t words, size_t merges)
{
    size_t word_slots = slots_for(words);
    size_t merge_slots = slots_for(merges);
    if (words && word_slots > t->word_slots && resize_words(t, word_slots) != 0) return -1;
    if (merges && merge_slots > t->merge_slots) return resize_merges(t, merge_slots);
    return 0;
}

/* NULL: the pair cannot be merged. */
static inline const merge *find_merge(const sz_tokenizer *t, int32_t left, int32_t right)
{
    if (!t->merge_slots) return NULL;
    const merge *m = merge_slot(t->merges, t->merge_slots, pair_of(left, right));
    return m->rank >= 0 ? m : NULL;
}

/* ---- short words ---- */

/* Merges ids [n] in place; returns the new count. Each round looks at all pairs. */
static int merge_short(const sz_tokenizer *t, int32_t *ids, int n)
{
    const merge *found[SHORT_WORD]; /* of symbols i and i + 1 */
    for (int i = 0; i + 1 < n; i++) found[i] = find_merge(t, ids[i], ids[i + 1]);
    for (;;) {
        /* The lowest rank, the leftmost of equals. */
        int best = -1;
        for (int i = 0; i + 1 < n; i++)
            if (found[i] && (best < 0 || found[i]->rank < found[best]->rank)) best = i;
        if (best < 0) return n;

        /* Merge it, and look up its new neighbours. */
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

/* ---- long words: a heap of candidate pairs over a linked list of symbols ---- */

static inline bool before(const candidate *a, const candidate *b)
{
    return a->rank != b->rank ? a->rank < b->rank : a->at < b->at;
}

/* Adds the pair of symbol `at` and its successor, if it can be merged. */
static int push(sz_tokenizer *t, int32_t at)
{
    int32_t next = t->symbols[at].next;
    if (next < 0) return 0;
    const merge *m = find_merge(t, t->symbols[at].id, t->symbols[next].id);
    if (!m) return 0;
    size_t need = t->heap_len + 1;
    if (sz_tokenizer_reserve(&t->heap, &t->heap_room, need, sizeof *t->heap) != 0) return -1;

    /* Sift up. */
    candidate c = { m->rank, at, t->symbols[at].id, t->symbols[next].id };
    size_t i = t->heap_len++;
    for (; i > 0 && before(&c, &t->heap[(i - 1) / 2]); i = (i - 1) / 2)
        t->heap[i] = t->heap[(i - 1) / 2];
    t->heap[i] = c;
    return 0;
}

static candidate pop(sz_tokenizer *t)
{
    candidate top = t->heap[0];
    candidate last = t->heap[--t->heap_len];
    size_t n = t->heap_len;
    size_t i = 0;
    for (;;) {
        /* Sift down: the smaller child moves up while it comes before `last`. */
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

/* Merges the pair of a candidate, unless it is stale, and adds its new neighbours. */
static int merge_candidate(sz_tokenizer *t, candidate c)
{
    symbol *s = &t->symbols[c.at];
    if (s->id != c.left || s->next < 0 || t->symbols[s->next].id != c.right) return 0;
    symbol *gone = &t->symbols[s->next];
    s->id = find_merge(t, c.left, c.right)->id;
    s->next = gone->next;
    gone->id = -1;
    if (s->next >= 0) t->symbols[s->next].prev = c.at;
    if (push(t, c.at) != 0) return -1;
    return s->prev >= 0 ? push(t, s->prev) : 0;
}

static int encode_long(sz_tokenizer *t, const char *word, size_t len)
{
    if (len > INT32_MAX / 2) return sz_fail("a piece of %zu bytes is too long to tokenize", len);
    if (sz_tokenizer_reserve(&t->symbols, &t->symbol_room, len, sizeof *t->symbols) != 0) return -1;

    /* Single bytes, and the pairs of neighbours. */
    int32_t n = (int32_t)len;
    for (int32_t i = 0; i < n; i++) {
        int32_t next = i + 1 < n ? i + 1 : -1;
        t->symbols[i] = (symbol){ t->byte_id[(uint8_t)word[i]], i - 1, next };
    }
    t->heap_len = 0;
    for (int32_t i = 0; i < n; i++)
        if (push(t, i) != 0) return -1;

    /* Merge, then collect what is left. */
    while (t->heap_len)
        if (merge_candidate(t, pop(t)) != 0) return -1;
    for (int32_t i = 0; i >= 0; i = t->symbols[i].next)
        if (sz_tokenizer_put_id(&t->ids, t->symbols[i].id) != 0) return -1;
    return 0;
}

/* ---- any word ---- */

static int put_ids(sz_tokenizer *t, const int32_t *ids, int n)
{
    for (int i = 0; i < n; i++)
        if (sz_tokenizer_put_id(&t->ids, ids[i]) != 0) return -1;
    return 0;
}

int sz_bpe_encode(sz_tokenizer *t, const char *word, size_t len)
{
    /* A short word may be in the cache. */
    cached *slot = NULL;
    if (len <= CACHE_WORD) {
        slot = &t->cache[hash_bytes(word, len) & (CACHE_SLOTS - 1)];
        if (slot->len == len && !memcmp(slot->word, word, len))
            return put_ids(t, slot->ids, slot->count);
    }

    for (size_t i = 0; i < len; i++) {
        unsigned byte = (uint8_t)word[i];
        if (t->byte_id[byte] < 0)
            return sz_fail("the vocabulary has no token for byte 0x%02x", byte);
    }
    if (len > SHORT_WORD) return encode_long(t, word, len);

    /* Merge it and keep the result. */
    int32_t ids[SHORT_WORD];
    for (size_t i = 0; i < len; i++) ids[i] = t->byte_id[(uint8_t)word[i]];
    int n = merge_short(t, ids, (int)len);
    if (slot && n <= CACHE_IDS) {
        slot->len = (uint8_t)len;
        slot->count = (uint8_t)n;
        memcpy(slot->word, word, len);
        memcpy(slot->ids, ids, (size_t)n * sizeof *ids);
    }
    return put_ids(t, ids, n);
}
