/* peek.c - rows of large byte arrays, without decoding the pages that hold them.
 *
 * A page of images is 100 MB or more where a writer puts 100 rows into a row group, and a
 * dictionary of images as large. A peek keeps, for one chunk: the levels of the pages that were
 * used, and where their values begin. Then a row costs its own bytes (body.c).
 *
 * Only for byte arrays, plain or with a dictionary. All else is read page by page (rows.c).
 * Leaves out: DELTA encodings of byte arrays, levels packed in the old way.
 */
#include "parquet.h"
#include <stdlib.h>
#include <zlib.h>

enum { MOST_SMALL = 16 << 20, SUM_PART = 8 << 20 };

/* A list of PLAIN byte arrays. */
typedef struct {
    parquet_body body;
    int64_t *starts; /* [count + 1] of which [0, known] are known; NULL: not open */
    int64_t count, known;
} value_list;

typedef struct {
    bool is_open, is_bad;
    int64_t levels;
    uint8_t *def, *rep; /* [levels]; NULL where the column has no such level */
    int32_t *numbers;   /* [levels] of the values, -1: none */
    int32_t *rows;      /* [rows + 1] the level at which each row starts; NULL: its number */
    bool in_dictionary;
    value_list values; /* unless they are in the dictionary */
} peek_page;

struct parquet_peek {
    parquet_pages *list;
    peek_page *pages; /* [room] */
    int room;
    bool dictionary_is_bad;
    value_list dictionary;
};

/* ---- values ---- */

static bool open_values(value_list *l, int64_t at, int64_t count)
{
    if (at < 0 || (size_t)at > l->body.room || count < 0) return false;
    /* Short values are not worth it, and each has a length of four bytes. */
    const int64_t bytes = (int64_t)l->body.room - at;
    if (count > 0 && (bytes / count < 4 || bytes / count < parquet_large_chunk() >> 12))
        return false;
    l->starts = malloc((size_t)(count + 1) * sizeof *l->starts);
    if (!l->starts) return false;
    l->starts[0] = at;
    l->count = count;
    return true;
}

static void close_values(value_list *l)
{
    parquet_body_close(&l->body);
    free(l->starts);
    *l = (value_list){ 0 };
}

/* Where value k begins, after its length, and its length; -1 if it cannot be read. */
static int64_t find_value(value_list *l, int64_t k, int64_t *at)
{
    if (k < 0 || k >= l->count) return -1;
    if (!parquet_body_lengths(&l->body, l->starts, &l->known, k + 1)) return -1;
    *at = l->starts[k] + 4;
    return l->starts[k + 1] - *at;
}

/* ---- pages ---- */

/* A page is checked once. */
static bool sum_checks(const parquet_file *file, const parquet_page *page)
{
    if (!page->has_sum) return true;
    uLong sum = 0;
    for (int64_t done = 0; done < page->bytes;) {
        int64_t part = page->bytes - done;
        if (part > SUM_PART) part = SUM_PART;
        const uint8_t *from = file->base + page->body + done;
        sum = crc32_z(sum, from, (size_t)part);
        parquet_file_forget(file, from, (size_t)part);
        done += part;
    }
    return (uint32_t)sum == page->sum;
}

static int bits_of(int most)
{
    int bits = 0;
    while (most >> bits) bits++;
    return bits;
}

/* Levels of 0 to `most`; NULL if they are damaged. */
static uint8_t *read_levels(const uint8_t *bytes, size_t len, int most, int64_t count)
{
    uint8_t *levels = malloc((size_t)count + 64);
    bool good = levels && parquet_hybrid(bytes, len, bits_of(most), count, levels, false) >= 0;
    for (int64_t i = 0; good && i < count; i++) good = levels[i] <= most;
    if (good) return levels;
    free(levels);
    return NULL;
}

/* Levels of version 1 at *at of the body, which moves behind them. */
static uint8_t *levels_of_1(parquet_body *b, size_t *at, int most, int64_t count)
{
    uint32_t len;
    if (!parquet_body_read(b, *at, 4, (uint8_t *)&len) || len > MOST_SMALL) return NULL;
    uint8_t *bytes = malloc((size_t)len + 1);
    uint8_t *levels = NULL;
    if (bytes && parquet_body_read(b, *at + 4, len, bytes))
        levels = read_levels(bytes, len, most, count);
    free(bytes);
    *at += 4 + (size_t)len;
    return levels;
}

/* Reads the levels. *at: where the values begin in the body. */
static bool read_all_levels(const parquet_pages *list, const parquet_page *page, peek_page *k,
                            size_t *at)
{
    const int most_rep = list->node->max_rep;
    const int most_def = list->node->max_def;
    const uint8_t *levels = list->file->base + page->body;
    const bool is_2 = page->type == 3;
    *at = 0;
    k->levels = page->values;
    if (most_rep > 0 && is_2)
        k->rep = read_levels(levels, (size_t)page->rep_bytes, most_rep, k->levels);
    else if (most_rep > 0 && page->rep_encoding == ENCODING_RLE)
        k->rep = levels_of_1(&k->values.body, at, most_rep, k->levels);
    if (most_rep > 0 && !k->rep) return false;
    if (most_def > 0 && is_2)
        k->def = read_levels(levels + page->rep_bytes, (size_t)page->def_bytes, most_def,
                             k->levels);
    else if (most_def > 0 && page->def_encoding == ENCODING_RLE)
        k->def = levels_of_1(&k->values.body, at, most_def, k->levels);
    return most_def == 0 || k->def;
}

/* Numbers the values and finds where rows start. Returns how many values there are, or -1. */
static int64_t number_levels(parquet_pages *list, int i, peek_page *k)
{
    const int most = list->node->max_def;
    k->numbers = malloc((size_t)(k->levels + 1) * sizeof *k->numbers);
    if (k->rep) k->rows = malloc((size_t)(k->levels + 1) * sizeof *k->rows);
    if (!k->numbers || (k->rep && !k->rows)) return -1;
    int32_t n = 0;
    int32_t rows = 0;
    for (int32_t l = 0; l < (int32_t)k->levels; l++) {
        const bool valid = !k->def || k->def[l] == most;
        k->numbers[l] = valid ? n++ : -1;
        if (k->rep && k->rep[l] == 0) k->rows[rows++] = l;
    }
    if (!k->rep) rows = (int32_t)k->levels;
    else k->rows[rows] = (int32_t)k->levels;
    return parquet_pages_set_rows(list, i, rows) == 0 ? n : -1;
}

/* Turns numbers of values into numbers of the dictionary, with the indexes at `at`. */
static bool look_up(peek_page *k, size_t at, int64_t count)
{
    parquet_body *b = &k->values.body;
    if (count == 0) return true;
    if (at >= b->room || b->room - at > MOST_SMALL) return false;
    const size_t len = b->room - at;
    uint8_t *bytes = malloc(len);
    uint32_t *indexes = malloc(((size_t)count + 64) * sizeof *indexes);
    bool good = bytes && indexes && parquet_body_read(b, at, len, bytes) && bytes[0] <= 31;
    good = good && parquet_hybrid(bytes + 1, len - 1, bytes[0], count, indexes, true) >= 0;
    for (int64_t i = 0; good && i < k->levels; i++) {
        if (k->numbers[i] < 0) continue;
        const uint32_t index = indexes[k->numbers[i]];
        if (index > INT32_MAX) good = false;
        else k->numbers[i] = (int32_t)index;
    }
    free(bytes);
    free(indexes);
    return good;
}

/* Whether it is cheaper to decode a page than to keep how to enter it. */
static bool is_small(const parquet_pages *list, const peek_page *k, const parquet_page *page)
{
    const int codec = list->chunk->codec;
    if (codec == CODEC_NONE || codec == CODEC_SNAPPY) return false;
    const int64_t bytes = k->in_dictionary ? list->dictionary.unpacked : page->unpacked;
    return bytes <= parquet_small_page();
}

static bool read_page(parquet_pages *list, int i, peek_page *k)
{
    const parquet_page *page = &list->places[i].page;
    const bool is_2 = page->type == 3;
    const bool plain = page->encoding == ENCODING_PLAIN;
    k->in_dictionary = page->encoding == ENCODING_PLAIN_DICTIONARY ||
                       page->encoding == ENCODING_RLE_DICTIONARY;
    if (page->values > INT32_MAX - 1 || (!plain && !k->in_dictionary)) return false;
    if (is_small(list, k, page) || !sum_checks(list->file, page)) return false;

    /* The levels are before the packed part in version 2, in it in version 1. */
    const int64_t before = is_2 ? page->def_bytes + page->rep_bytes : 0;
    int codec = list->chunk->codec;
    if (is_2 && !page->packed) codec = CODEC_NONE;
    if (!parquet_body_open(&k->values.body, list->file, page->body + before, page->bytes - before,
                           page->unpacked - before, codec))
        return false;
    size_t at;
    if (!read_all_levels(list, page, k, &at)) return false;
    const int64_t count = number_levels(list, i, k);
    if (count < 0) return false;
    if (!k->in_dictionary) return open_values(&k->values, (int64_t)at, count);
    const bool good = look_up(k, at, count);
    close_values(&k->values);
    return good;
}

static void close_page(peek_page *k)
{
    close_values(&k->values);
    free(k->def);
    free(k->rep);
    free(k->numbers);
    free(k->rows);
    *k = (peek_page){ .is_bad = true };
}

/* Page i of the list, opened; NULL if it cannot be read. */
static peek_page *page_at(parquet_peek *p, int i)
{
    if (i >= p->room) {
        const int room = p->list->room;
        peek_page *pages = realloc(p->pages, (size_t)room * sizeof *pages);
        if (!pages) return NULL;
        memset(pages + p->room, 0, (size_t)(room - p->room) * sizeof *pages);
        p->pages = pages;
        p->room = room;
    }
    peek_page *k = &p->pages[i];
    if (k->is_open) return k;
    if (k->is_bad || parquet_pages_header(p->list, i) != 0) return NULL;
    k->is_open = read_page(p->list, i, k);
    if (k->is_open) return k;
    close_page(k);
    return NULL;
}

static bool open_dictionary(parquet_peek *p)
{
    const parquet_page *page = &p->list->dictionary;
    if (p->dictionary.starts) return true;
    if (p->dictionary_is_bad || !p->list->has_dictionary) return false;
    const bool plain = page->encoding == ENCODING_PLAIN ||
                       page->encoding == ENCODING_PLAIN_DICTIONARY;
    const bool good = plain && sum_checks(p->list->file, page) &&
                      parquet_body_open(&p->dictionary.body, p->list->file, page->body, page->bytes,
                                        page->unpacked, p->list->chunk->codec) &&
                      open_values(&p->dictionary, 0, page->values);
    if (good) return true;
    close_values(&p->dictionary);
    p->dictionary_is_bad = true;
    return false;
}

/* ---- rows ---- */

static int count_rows(void *peek, int i)
{
    if (page_at(peek, i)) return 0;
    return sz_fail("the page cannot be entered");
}

/* Room for `more` levels, and as many values of `bytes` bytes together. */
static bool make_room(parquet_result *r, int64_t more, size_t bytes)
{
    const size_t levels = (size_t)(r->head.levels + more);
    uint8_t *def = realloc(r->def, levels);
    if (def) r->def = def;
    uint8_t *rep = realloc(r->rep, levels);
    if (rep) r->rep = rep;
    int64_t *offsets = realloc(r->values.offsets, (levels + 1) * sizeof *offsets);
    if (offsets) r->values.offsets = offsets;
    uint8_t *data = realloc(r->values.data, r->used + bytes + 64);
    if (data) r->values.data = data;
    if (!def || !rep || !offsets || !data) return false;
    if (r->head.levels == 0) offsets[0] = 0;
    r->values.room = r->used + bytes + 64;
    return true;
}

/* Appends levels [from, to) of a page. */
static bool append(parquet_peek *p, peek_page *k, int64_t from, int64_t to, parquet_result *r)
{
    if (k->in_dictionary && !open_dictionary(p)) return false;
    value_list *values = k->in_dictionary ? &p->dictionary : &k->values;
    int64_t at;
    size_t bytes = 0;
    for (int64_t l = from; l < to; l++) {
        if (k->numbers[l] < 0) continue;
        const int64_t n = find_value(values, k->numbers[l], &at);
        if (n < 0) return false;
        bytes += (size_t)(n < r->most ? n : r->most);
    }
    if (!make_room(r, to - from, bytes)) return false;
    for (int64_t l = from; l < to; l++) {
        r->def[r->head.levels] = k->def ? k->def[l] : 0;
        r->rep[r->head.levels] = k->rep ? k->rep[l] : 0;
        r->head.levels++;
        if (k->numbers[l] < 0) continue;
        int64_t n = find_value(values, k->numbers[l], &at);
        if (n > r->most) n = r->most;
        if (!parquet_body_read(&values->body, (size_t)at, (size_t)n, r->values.data + r->used))
            return false;
        r->used += (size_t)n;
        r->values.offsets[++r->values.count] = (int64_t)r->used;
    }
    return true;
}

static bool read_row(parquet_peek *p, int64_t row, parquet_result *r)
{
    int i = parquet_pages_find(p->list, row, count_rows, p);
    peek_page *k = i < 0 ? NULL : page_at(p, i);
    if (!k) return false;
    const int64_t number = row - p->list->places[i].first;
    if (!k->rows) return append(p, k, number, number + 1, r);
    int64_t end = k->rows[number + 1];
    if (!append(p, k, k->rows[number], end, r)) return false;
    /* The last row of a page may go on in the next one. */
    while (end == k->levels) {
        if (++i == p->list->count) {
            const int got = parquet_pages_next(p->list);
            if (got <= 0) return got == 0;
        }
        k = page_at(p, i);
        if (!k) return false;
        end = p->list->places[i].rows > 0 ? k->rows[0] : k->levels;
        if (end == 0) return true;
        if (!append(p, k, 0, end, r)) return false;
    }
    return true;
}

parquet_peek *parquet_peek_open(parquet_pages *pages)
{
    const parquet_chunk *c = pages->chunk;
    if (pages->node->type != PARQUET_BYTE_ARRAY || c->unpacked < parquet_large_chunk()) return NULL;
    if (c->values < 1 || c->unpacked / c->values < parquet_large_chunk() >> 10) return NULL;
    parquet_peek *p = calloc(1, sizeof *p);
    if (p) p->list = pages;
    return p;
}

void parquet_peek_close(parquet_peek *p)
{
    if (!p) return;
    for (int i = 0; i < p->room; i++) close_page(&p->pages[i]);
    close_values(&p->dictionary);
    free(p->pages);
    free(p);
}

int parquet_peek_read(parquet_peek *p, int64_t row, parquet_result *r)
{
    if (read_row(p, row, r)) return 0;
    free(r->def);
    free(r->rep);
    const parquet_values empty = { .type = r->values.type, .width = r->values.width };
    parquet_values_release(&r->values);
    *r = (parquet_result){ .values = empty };
    return -1;
}
