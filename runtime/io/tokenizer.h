/* tokenizer.h - what tokenizer.c (encoding, decoding), vocabulary.c (reading the tables) and bpe.c
 * (the tables and merging) share. */
#ifndef SZ_TOKENIZER_H
#define SZ_TOKENIZER_H

#define PCRE2_CODE_UNIT_WIDTH 8
#include "core/core.h"
#include <pcre2.h>

typedef struct {
    char *p;
    size_t len, room;
} bytes;
typedef struct {
    int32_t *p;
    size_t len, room;
} id_list;

/* ---- the tokenizer ---- */

/* UNSPELT: plain, with a spelling that no text has. */
enum kind { NONE = 0, PLAIN, UNSPELT, ADDED, SPECIAL };

/* The tables are read at random places, and small ones stay in the cache. */
typedef struct {
    uint32_t start; /* in sz_tokenizer.pool */
    uint32_t len : 24;
    uint32_t kind : 8; /* enum kind */
} entry;

/* A slot of the vocabulary's table. */
typedef struct {
    uint32_t tag : 8;      /* of the text's hash */
    uint32_t next_id : 24; /* the token's id plus 1; 0: free slot */
} word_slot;

typedef struct {
    uint64_t pair;    /* left << 32 | right */
    int32_t rank, id; /* rank -1: free slot */
} merge;

enum { CACHE_SLOTS = 1 << 15, CACHE_WORD = 40, CACHE_IDS = 12 };

/* A short word and its ids. */
typedef struct {
    uint8_t len, count;
    char word[CACHE_WORD];
    int32_t ids[CACHE_IDS];
} cached;

/* A token of a long word that is being merged. id -1: merged into an earlier one. */
typedef struct {
    int32_t id, prev, next;
} symbol;

/* A pair of neighbours that may be merged; stale if their ids have changed. */
typedef struct {
    int32_t rank, at, left, right;
} candidate;

/* Added tokens. */
typedef struct {
    int32_t *ids; /* longest first */
    int count, room;
    uint8_t first[256]; /* 1: one of them starts with this byte */
} added_list;

struct sz_tokenizer {
    pcre2_code *pattern;
    pcre2_match_data *match;
    pcre2_match_context *context;
    pcre2_jit_stack *stack;
    int nfc, finished;

    bytes pool;     /* all token texts */
    entry *entries; /* [size], by id */
    int size, room;
    word_slot *words; /* hash of plain tokens; freed at the end of the additions */
    size_t word_slots, word_count;
    int32_t made;  /* by the last merge that was added: the next one most often makes the next id */
    merge *merges; /* hash by pair */
    size_t merge_slots, merge_count;
    int32_t byte_id[256]; /* -1: no such token */
    added_list added;     /* found in the raw text */
    added_list late;      /* found in the normalised text between those */

    cached *cache;   /* direct mapped */
    symbol *symbols; /* workspace of a long word */
    candidate *heap;
    size_t symbol_room, heap_len, heap_room;
    bytes clean, text; /* repaired input; decoded output */
    bytes spare;       /* of vocabulary.c */
    id_list ids;       /* encoded output */
};

/* ---- tokenizer.c ---- */

int sz_tokenizer_no_memory(void); /* leaves a message; returns -1 */
/* Grows the array at *pointer (elements of `size` bytes) to hold `need` elements. 0, or -1. */
int sz_tokenizer_reserve(void *pointer, size_t *room, size_t need, size_t size);
int sz_tokenizer_put(bytes *b, const void *p, size_t n);
int sz_tokenizer_put_id(id_list *l, int32_t id);
/* How many bytes of a token of this length a message shows. */
int sz_tokenizer_shown(size_t len);
/* Stores text under id. A plain token may be given again as an added one. 0, or -1 with a
 * message. */
int sz_tokenizer_set(sz_tokenizer *t, const char *text, size_t len, int id, int kind);

/* ---- nfc.c ---- */

/* Normalises valid UTF-8 to form C. Returns the length of *out, which the caller frees; -1 with a
 * message. */
int64_t sz_nfc(const char *text, size_t len, char **out);

/* ---- bpe.c ---- */

/* Whether id is the plain token with these bytes. */
bool sz_bpe_is(const sz_tokenizer *t, int32_t id, const char *p, size_t n);
/* The id of a plain token by its bytes, -1: none. Only before sz_tokenizer_finish. */
int32_t sz_bpe_find(const sz_tokenizer *t, const char *p, size_t n);
/* Makes room for a number of tokens and of merges, so that the tables grow once. 0, or -1 with a
 * message. */
int sz_bpe_reserve(sz_tokenizer *t, size_t words, size_t merges);
/* Adds plain token `id`, whose entry exists, to the vocabulary. 0, or -1 with a message. */
int sz_bpe_add_word(sz_tokenizer *t, int32_t id);
/* Adds the merge of next lower priority. 0, or -1 with a message. */
int sz_bpe_add_merge(sz_tokenizer *t, int32_t left, int32_t right, int32_t id);
/* Appends the ids of one word to t->ids. 0, or -1 with a message. */
int sz_bpe_encode(sz_tokenizer *t, const char *word, size_t len);

#endif
