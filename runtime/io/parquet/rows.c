/* rows.c - the levels and values of rows, from decoded pages.
 *
 * A cursor keeps where the last row was, so that reading one row after the other does not count a
 * page's levels again.
 * Leaves out: large byte arrays, which peek.c reads without decoding their pages.
 */
#include "parquet.h"
#include <stdlib.h>

/* ---- the result ---- */

static int result_levels(parquet_result *r, int64_t more)
{
    size_t wanted = (size_t)(r->head.levels + more);
    if (wanted <= r->level_room) return 0;
    size_t room = wanted + 64;
    if (r->head.levels > 0) room += wanted / 2;
    uint8_t *def = realloc(r->def, room);
    if (def) r->def = def;
    uint8_t *rep = realloc(r->rep, room);
    if (rep) r->rep = rep;
    if (!def || !rep) return sz_fail("out of memory for %zu levels", room);
    r->level_room = room;
    return 0;
}

static int result_values(parquet_result *r, int64_t more, size_t bytes)
{
    parquet_values *v = &r->values;
    int64_t wanted = v->count + more;
    if (!v->width && (wanted > r->value_room || !v->offsets)) {
        int64_t room = wanted + 8;
        if (v->count > 0) room += wanted / 2;
        int64_t *offsets = realloc(v->offsets, (size_t)(room + 1) * sizeof *offsets);
        if (!offsets) return sz_fail("out of memory for %lld values", (long long)room);
        if (!v->offsets) offsets[0] = 0;
        v->offsets = offsets;
        r->value_room = room;
    }
    if (r->used + bytes > v->room || !v->data) {
        size_t room = r->used + bytes + 64;
        if (r->used > 0) room += room / 2;
        uint8_t *data = realloc(v->data, room);
        if (!data) return sz_fail("out of memory for %zu bytes of values", room);
        v->data = data;
        v->room = room;
    }
    return 0;
}

/* Bytes of values [from, from + count); -1 with a message. */
static int64_t bytes_of(const parquet_values *v, const parquet_values *d, int64_t from,
                        int64_t count)
{
    if (v->width) return count * v->width;
    if (!v->index) return v->offsets[from + count] - v->offsets[from];
    int64_t bytes = 0;
    for (int64_t i = from; i < from + count; i++) {
        const uint32_t k = v->index[i];
        /* The page was checked with a dictionary that may have been read again since. */
        if (k >= (uint64_t)d->count) return sz_fail("the file has changed");
        bytes += d->offsets[k + 1] - d->offsets[k];
    }
    return bytes;
}

/* Copies values [from, from + count) behind those of the result, which has room for them. */
static void copy_values(parquet_result *r, const parquet_values *v, const parquet_values *d,
                        int64_t from, int64_t count)
{
    uint8_t *to = r->values.data + r->used;
    int64_t *offsets = r->values.offsets;
    if (v->width) {
        memcpy(to, v->data + from * v->width, (size_t)(count * v->width));
    } else if (!v->index) {
        const int64_t first = v->offsets[from];
        memcpy(to, v->data + first, (size_t)(v->offsets[from + count] - first));
        for (int64_t i = 1; i <= count; i++)
            offsets[r->values.count + i] = (int64_t)r->used + v->offsets[from + i] - first;
    } else {
        size_t used = r->used;
        for (int64_t i = 0; i < count; i++) {
            const int64_t *at = d->offsets + v->index[from + i];
            const size_t n = (size_t)(at[1] - at[0]);
            memcpy(r->values.data + used, d->data + at[0], n);
            used += n;
            offsets[r->values.count + i + 1] = (int64_t)used;
        }
    }
    r->values.count += count;
}

/* Appends levels [from, to) of the piece, whose values begin at `value`. d: its dictionary. */
static int append(parquet_result *r, const parquet_piece *p, const parquet_values *d, int64_t from,
                  int64_t to, int64_t value, int64_t count)
{
    const int64_t levels = to - from;
    const int64_t bytes = bytes_of(&p->values, d, value, count);
    if (bytes < 0) return -1;
    if (result_levels(r, levels) != 0 || result_values(r, count, (size_t)bytes) != 0) return -1;
    if (p->def) memcpy(r->def + r->head.levels, p->def + from, (size_t)levels);
    else memset(r->def + r->head.levels, 0, (size_t)levels);
    if (p->rep) memcpy(r->rep + r->head.levels, p->rep + from, (size_t)levels);
    else memset(r->rep + r->head.levels, 0, (size_t)levels);
    r->head.levels += levels;
    copy_values(r, &p->values, d, value, count);
    r->used += (size_t)bytes;
    return 0;
}

/* ---- rows ---- */

/* Values at levels [from, to). */
static int64_t count_values(const parquet_piece *p, const parquet_node *node, int64_t from,
                            int64_t to)
{
    if (!p->def) return to - from;
    const uint8_t most = (uint8_t)node->max_def;
    int64_t n = 0;
    for (int64_t i = from; i < to; i++) n += p->def[i] == most;
    return n;
}

/* The levels from `level` on until `rows` more rows have started and the next one begins, or the
 * piece ends. Sets how many rows started and how many values there are. */
static int64_t row_end(const parquet_piece *p, const parquet_node *node, int64_t level,
                       int64_t rows, int64_t *started, int64_t *values)
{
    int64_t i = level;
    *started = 0;
    if (!p->rep) {
        const int64_t left = p->levels - level;
        *started = rows < left ? rows : left;
        i += *started;
    }
    /* A row starts at the repetition level 0. */
    while (p->rep && i < p->levels) {
        if (p->rep[i] == 0) {
            if (*started == rows) break;
            ++*started;
        }
        const uint8_t *next = memchr(p->rep + i + 1, 0, (size_t)(p->levels - i - 1));
        i = next ? next - p->rep : p->levels;
    }
    *values = count_values(p, node, level, i);
    return i;
}

/* A page at which the cursor stands, with its dictionary. */
typedef struct {
    const parquet_piece *piece;
    const parquet_values *dictionary;
} place;

static int open_page(parquet_pages *p, parquet_cursor *c, int i, place *at)
{
    parquet_cache_next();
    at->piece = parquet_cache_page(p, i);
    if (!at->piece) return -1;
    at->dictionary = NULL;
    if (at->piece->values.index) {
        at->dictionary = parquet_cache_dictionary(p);
        if (!at->dictionary) return -1;
    }
    if (c->page == i) return 0;
    c->page = i;
    c->row = p->places[i].first;
    c->level = 0;
    c->value = 0;
    return 0;
}

/* Moves the cursor to where `row` starts in the page. */
static void seek_row(const parquet_pages *p, parquet_cursor *c, const parquet_piece *piece,
                     int64_t row)
{
    int64_t started;
    int64_t values;
    if (row < c->row) {
        c->row = p->places[c->page].first;
        c->level = 0;
        c->value = 0;
    }
    /* A page may begin with the rest of the row before it. */
    if (c->level == 0 && piece->rep && piece->levels && piece->rep[0] != 0) {
        c->level = row_end(piece, p->node, 0, 0, &started, &values);
        c->value = values;
    }
    c->level = row_end(piece, p->node, c->level, row - c->row, &started, &values);
    c->value += values;
    c->row = row;
}

static int count_rows(void *pages, int i)
{
    parquet_cache_next();
    return parquet_cache_page(pages, i) ? 0 : -1;
}

int parquet_rows_read(parquet_pages *pages, parquet_cursor *c, int64_t row, int64_t rows,
                      parquet_result *r)
{
    place at;
    int i = parquet_pages_find(pages, row, count_rows, pages);
    if (i < 0 || open_page(pages, c, i, &at) != 0) return -1;
    seek_row(pages, c, at.piece, row);
    int64_t left = rows;
    for (;;) {
        int64_t started;
        int64_t values;
        int64_t end = row_end(at.piece, pages->node, c->level, left, &started, &values);
        if (append(r, at.piece, at.dictionary, c->level, end, c->value, values) != 0) return -1;
        c->row += started;
        c->level = end;
        c->value += values;
        left -= started;
        /* The last row may go on in the next page. */
        if (end < at.piece->levels || (left == 0 && pages->node->max_rep == 0)) return 0;
        if (++i == pages->count) {
            const int got = parquet_pages_next(pages);
            if (got < 0) return -1;
            if (got == 0) {
                if (left == 0) return 0;
                return sz_fail("the column ends before row %lld", (long long)c->row);
            }
        }
        if (open_page(pages, c, i, &at) != 0) return -1;
    }
}
