/* pages.c - where the data pages of a column chunk are, and how many rows start in each.
 *
 * Headers are read one after the other, as far as rows are asked for, and kept. With a page index
 * (the OffsetIndex of the format) all pages are known at once, and a header is read when its page
 * is used. An index that does not fit the chunk is ignored.
 * Leaves out: column indexes (least and greatest values).
 */
#include "parquet.h"
#include <stdlib.h>

void parquet_file_forget(const parquet_file *file, const uint8_t *from, size_t len)
{
    sz_io_forget(file->base, (size_t)file->bytes, from, len);
}

/* ---- the list ---- */

static parquet_place *add_place(parquet_pages *p)
{
    if (p->count == p->room) {
        int room = p->room ? 2 * p->room : 4;
        parquet_place *places = realloc(p->places, (size_t)room * sizeof *places);
        if (!places) return sz_null("out of memory for %d pages", room);
        p->places = places;
        p->room = room;
    }
    parquet_place *k = &p->places[p->count++];
    *k = (parquet_place){ .rows = -1 };
    if (p->count > 1) k->first = k[-1].first + k[-1].rows;
    return k;
}

static bool is_data(const parquet_page *page) { return page->type == 0 || page->type == 3; }

/* The rows that a header states, or -1. */
static int64_t stated_rows(const parquet_pages *p, const parquet_page *page)
{
    return p->node->max_rep == 0 ? page->values : page->rows;
}

int parquet_pages_next(parquet_pages *p)
{
    const int64_t end = p->chunk->start + p->chunk->bytes;
    if (p->is_whole) return 0;
    while (p->next < end && p->values < p->chunk->values) {
        parquet_page page;
        if (parquet_page_header(&page, p->file->base, p->next, end) != 0) return -1;
        parquet_file_forget(p->file, p->file->base + page.at, 1);
        p->next = page.body + page.bytes;
        if (page.type == 2) {
            if (p->has_dictionary) return sz_fail("a column chunk has two dictionaries");
            p->dictionary = page;
            p->has_dictionary = true;
        } else if (is_data(&page)) {
            parquet_place *k = add_place(p);
            if (!k) return -1;
            k->page = page;
            k->is_read = true;
            k->rows = stated_rows(p, &page);
            p->values += page.values;
            return 1;
        }
        /* Pages of other types are passed over. */
    }
    return 0;
}

int parquet_pages_set_rows(parquet_pages *p, int i, int64_t rows)
{
    parquet_place *k = &p->places[i];
    if (k->rows >= 0 && k->rows != rows)
        return sz_fail("a page has %lld rows, but %lld are stated", (long long)rows,
                       (long long)k->rows);
    k->rows = rows;
    return 0;
}

int parquet_pages_header(parquet_pages *p, int i)
{
    parquet_place *k = &p->places[i];
    if (k->is_read) return 0;
    const int64_t at = k->page.at;
    const int64_t end = at + k->page.bytes;
    parquet_page page;
    if (parquet_page_header(&page, p->file->base, at, end) != 0) return -1;
    parquet_file_forget(p->file, p->file->base + at, 1);
    if (!is_data(&page))
        return sz_fail("the page at %lld of the page index has no data", (long long)at);
    const int64_t rows = stated_rows(p, &page);
    if (rows >= 0 && parquet_pages_set_rows(p, i, rows) != 0) return -1;
    /* Until here the place is what the index says. */
    k->page = page;
    k->is_read = true;
    return 0;
}

int parquet_pages_find(parquet_pages *p, int64_t row, int (*count_rows)(void *context, int i),
                       void *context)
{
    int low = 0;
    int high = p->count;
    while (low < high) {
        const int middle = (low + high) / 2;
        const parquet_place *k = &p->places[middle];
        if (k->rows >= 0 && k->first + k->rows <= row) low = middle + 1;
        else high = middle;
    }
    /* Pages that are not listed, or whose rows are not counted yet. */
    for (;; low++) {
        if (low == p->count) {
            const int got = parquet_pages_next(p);
            if (got == 0) return sz_fail("the column ends before row %lld", (long long)row);
            if (got < 0) return -1;
        }
        if (parquet_pages_header(p, low) != 0) return -1;
        if (p->places[low].rows < 0 && count_rows(context, low) != 0) return -1;
        if (p->places[low].first + p->places[low].rows > row) return low;
    }
}

/* ---- the page index ---- */

typedef struct {
    int64_t at, bytes, first;
} location;

static location location_read(thrift *t)
{
    location l = { -1, -1, -1 };
    int id = 0;
    int type;
    while ((type = thrift_field(t, &id)) != THRIFT_STOP) {
        switch (id) {
        case 1: l.at = thrift_int(t); break;
        case 2: l.bytes = thrift_int(t); break;
        case 3: l.first = thrift_int(t); break;
        default: thrift_skip(t, type);
        }
    }
    return l;
}

/* Adds the pages of a list of locations; false if they do not fit the chunk. */
static bool locations_read(parquet_pages *p, thrift *t)
{
    int type;
    const int64_t n = thrift_list(t, &type);
    const int64_t end = p->chunk->start + p->chunk->bytes;
    int64_t from = p->chunk->start;
    if (type != THRIFT_STRUCT || n < 1 || n > INT32_MAX) return false;
    for (int64_t i = 0; i < n; i++) {
        const location l = location_read(t);
        const parquet_place *before = i > 0 ? &p->places[i - 1] : NULL;
        const bool rises = before ? l.first > before->first : l.first == 0;
        if (t->bad || !rises || l.first >= p->rows) return false;
        if (l.at < from || l.bytes < 1 || l.bytes > end - l.at) return false;
        if (before) p->places[i - 1].rows = l.first - before->first;
        parquet_place *k = add_place(p);
        if (!k) return false;
        k->page = (parquet_page){ .at = l.at, .bytes = l.bytes };
        k->first = l.first;
        from = l.at + l.bytes;
    }
    p->places[n - 1].rows = p->rows - p->places[n - 1].first;
    return true;
}

static bool index_read(parquet_pages *p)
{
    const parquet_chunk *c = p->chunk;
    if (c->index < 4 || c->index_bytes < 1 || c->index > p->file->bytes ||
        c->index_bytes > p->file->bytes - c->index)
        return false;
    thrift t = { p->file->base + c->index, p->file->base + c->index + c->index_bytes, false };
    bool found = false;
    int id = 0;
    int type;
    while ((type = thrift_field(&t, &id)) != THRIFT_STOP) {
        if (id != 1 || type != THRIFT_LIST) {
            thrift_skip(&t, type);
            continue;
        }
        if (found || !locations_read(p, &t)) return false;
        found = true;
    }
    return found && !t.bad;
}

/* The dictionary is before the first page. */
static bool dictionary_read(parquet_pages *p)
{
    const int64_t first = p->places[0].page.at;
    if (first == p->chunk->start) return true;
    parquet_page page;
    if (parquet_page_header(&page, p->file->base, p->chunk->start, first) != 0) return false;
    if (page.type != 2) return false;
    p->dictionary = page;
    p->has_dictionary = true;
    return true;
}

parquet_pages *parquet_pages_open(const parquet_file *file, const parquet_node *node,
                                  const parquet_chunk *chunk, int64_t rows)
{
    parquet_pages *p = calloc(1, sizeof *p);
    if (!p) return sz_null("out of memory for the pages of a column");
    p->file = file;
    p->node = node;
    p->chunk = chunk;
    p->rows = rows;
    p->next = chunk->start;
    if (chunk->index && index_read(p) && dictionary_read(p)) {
        p->is_whole = true;
    } else {
        p->count = 0;
        p->has_dictionary = false;
    }
    return p;
}

void parquet_pages_close(parquet_pages *p)
{
    if (!p) return;
    parquet_cache_drop(p);
    free(p->places);
    free(p);
}
