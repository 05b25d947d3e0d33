/* cache.c - decoded pages and dictionaries of all open files, the oldest of which are freed.
 *
 * The pages of one row and its neighbours are asked for again and again: a page of texts has
 * thousands of rows. What is kept has a limit for the whole process, however many files a set has;
 * a page that is larger than the limit is kept alone.
 * Leaves out: use from several threads.
 */
#include "parquet.h"
#include <stdlib.h>

enum { MOST_KEPT = 64 << 20, DICTIONARY = -1 };

struct parquet_entry {
    parquet_pages *owner;
    int index; /* of the page, or DICTIONARY */
    parquet_piece piece;
    size_t bytes;
    uint64_t used; /* the round in which it was asked for last */
    parquet_entry *older, *newer;
};

static parquet_entry *oldest, *newest;
static size_t kept;
static uint64_t round_number = 1;

void parquet_cache_next(void) { round_number++; }

static parquet_entry **slot_of(const parquet_entry *e)
{
    if (e->index == DICTIONARY) return &e->owner->dictionary_entry;
    return &e->owner->places[e->index].entry;
}

static void unlink_entry(parquet_entry *e)
{
    if (e->older) e->older->newer = e->newer;
    else oldest = e->newer;
    if (e->newer) e->newer->older = e->older;
    else newest = e->older;
}

static void link_newest(parquet_entry *e)
{
    e->older = newest;
    e->newer = NULL;
    if (newest) newest->newer = e;
    else oldest = e;
    newest = e;
    e->used = round_number;
}

static void free_entry(parquet_entry *e)
{
    unlink_entry(e);
    *slot_of(e) = NULL;
    kept -= e->bytes;
    parquet_piece_release(&e->piece);
    free(e);
}

void parquet_cache_drop(parquet_pages *p)
{
    for (int i = 0; i < p->count; i++)
        if (p->places[i].entry) free_entry(p->places[i].entry);
    if (p->dictionary_entry) free_entry(p->dictionary_entry);
}

static size_t bytes_of(const parquet_piece *p)
{
    const parquet_values *v = &p->values;
    size_t bytes = sizeof(parquet_entry) + v->room;
    if (p->def) bytes += (size_t)p->levels;
    if (p->rep) bytes += (size_t)p->levels;
    if (v->offsets) bytes += (size_t)(v->count + 1) * sizeof *v->offsets;
    if (v->index) bytes += (size_t)v->count * sizeof *v->index;
    return bytes;
}

/* Takes the piece over. */
static const parquet_piece *add(parquet_pages *p, int index, parquet_piece *piece)
{
    parquet_entry *e = calloc(1, sizeof *e);
    if (!e) {
        parquet_piece_release(piece);
        return sz_null("out of memory for a page");
    }
    *e = (parquet_entry){ .owner = p, .index = index, .piece = *piece, .bytes = bytes_of(piece) };
    *slot_of(e) = e;
    link_newest(e);
    kept += e->bytes;

    /* What is used now is at the newer end. */
    while (kept > MOST_KEPT && oldest->used != round_number) free_entry(oldest);
    return &e->piece;
}

static const parquet_piece *again(parquet_entry *e)
{
    unlink_entry(e);
    link_newest(e);
    return &e->piece;
}

const parquet_values *parquet_cache_dictionary(parquet_pages *p)
{
    if (!p->has_dictionary) return sz_null("a page needs a dictionary, and the column has none");
    if (p->dictionary_entry) return &again(p->dictionary_entry)->values;
    parquet_piece piece = { 0 };
    const parquet_page *page = &p->dictionary;
    if (parquet_page_dictionary(&piece.values, page, p->file->base, p->node, p->chunk->codec) != 0)
        return NULL;
    parquet_file_forget(p->file, p->file->base + page->body, (size_t)page->bytes);
    const parquet_piece *added = add(p, DICTIONARY, &piece);
    return added ? &added->values : NULL;
}

const parquet_piece *parquet_cache_page(parquet_pages *p, int i)
{
    if (parquet_pages_header(p, i) != 0) return NULL;
    if (p->places[i].entry) return again(p->places[i].entry);
    const parquet_page *page = &p->places[i].page;
    const parquet_values *dictionary = NULL;
    const bool needs_it = page->encoding == ENCODING_PLAIN_DICTIONARY ||
                          page->encoding == ENCODING_RLE_DICTIONARY;
    if (needs_it && p->has_dictionary) {
        dictionary = parquet_cache_dictionary(p);
        if (!dictionary) return NULL;
    }
    parquet_piece piece;
    if (parquet_page_decode(&piece, page, p->file->base, p->node, p->chunk->codec, dictionary) != 0)
        return NULL;
    parquet_file_forget(p->file, p->file->base + page->body, (size_t)page->bytes);

    /* The rows that start in it. */
    int64_t rows = piece.levels;
    if (piece.rep) {
        rows = 0;
        for (int64_t k = 0; k < piece.levels; k++) rows += piece.rep[k] == 0;
    }
    if (parquet_pages_set_rows(p, i, rows) != 0) {
        parquet_piece_release(&piece);
        return NULL;
    }
    return add(p, i, &piece);
}
