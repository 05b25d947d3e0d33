/* parquet.c - Parquet files: opening, the schema, and the values of a range of rows.
 *
 * The file is mapped; opening reads its metadata alone. Each leaf column has a cursor: the row
 * group it is in, the pages met so far with their first rows, the dictionary, and the last page
 * decoded. Reading one row after the other decodes each page once. Going back within a row group
 * decodes the page again, and no other. Where pages do not state their rows (version 1 with
 * repeated columns), they are decoded in order once to find out. A single value of a large chunk is
 * read without its page where that works (peek.c).
 * Leaves out: writing, encryption, page indexes, Bloom filters, several threads on one handle.
 */
#include "parquet.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct {
    parquet_page page;
    int64_t first; /* rows of the group that start before it */
    int64_t rows;  /* rows that start in it; -1: not known yet */
} place;

typedef struct {
    int group; /* -1: none */
    place *places;
    int count, room;
    int64_t next;   /* where the next header is */
    int64_t values; /* levels in the pages met so far */
    bool has_dictionary;
    parquet_values dictionary;
    int decoded; /* the page that piece holds, -1: none */
    parquet_piece piece;
    int64_t row, level, value; /* row `row` of the group starts here in the piece */
} cursor;

struct sz_parquet {
    char *path;
    uint8_t *base;
    int64_t bytes;
    parquet_metadata meta;
    cursor *cursors; /* [leaves] */
    /* [leaves] for large chunks: [groups] of parquet_peek; NULL until they are wanted. */
    parquet_peek ***peeks;
    uint8_t **no_peek; /* [leaves][groups] whether a chunk cannot be peeked into */
    parquet_file file; /* what the peeks read */
    size_t touched;    /* bytes read since the map's pages were given back */
};

/* ---- opening ---- */

static uint32_t u32_at(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, 4);
    return v;
}

static int map_file(sz_parquet *f)
{
    struct stat st;
    int fd = open(f->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return sz_fail("%s: %s", f->path, strerror(errno));
    int result = 0;
    if (fstat(fd, &st) != 0) result = sz_fail("%s: %s", f->path, strerror(errno));
    else if (!S_ISREG(st.st_mode)) result = sz_fail("%s: not a regular file", f->path);
    else if (st.st_size < 12) result = sz_fail("%s: not a Parquet file", f->path);
    if (result == 0) {
        f->bytes = st.st_size;
        f->base = mmap(NULL, (size_t)f->bytes, PROT_READ, MAP_PRIVATE, fd, 0);
        if (f->base == MAP_FAILED) {
            f->base = NULL;
            result = sz_fail("%s: cannot map the file: %s", f->path, strerror(errno));
        }
    }
    close(fd);
    return result;
}

static int open_file(sz_parquet *f)
{
    if (map_file(f) != 0) return -1;
    const uint8_t *end = f->base + f->bytes;
    if (memcmp(end - 4, "PARE", 4) == 0) return sz_fail("%s: the file is encrypted", f->path);
    if (memcmp(f->base, "PAR1", 4) != 0) return sz_fail("%s: not a Parquet file", f->path);
    if (memcmp(end - 4, "PAR1", 4) != 0)
        return sz_fail("%s: a Parquet file that does not end as one: it is cut off", f->path);
    const int64_t len = u32_at(end - 8);
    if (len > f->bytes - 12) return sz_fail("%s: the metadata are outside the file", f->path);
    if (parquet_metadata_read(&f->meta, f->path, end - 8 - len, (size_t)len, f->bytes) != 0)
        return -1;

    const size_t leaves = (size_t)f->meta.leaves + 1;
    f->cursors = calloc(leaves, sizeof *f->cursors);
    f->peeks = calloc(leaves, sizeof(parquet_peek **));
    f->no_peek = calloc(leaves, sizeof *f->no_peek);
    if (!f->cursors || !f->peeks || !f->no_peek)
        return sz_fail("%s: out of memory for its columns", f->path);
    for (int i = 0; i < f->meta.leaves; i++) f->cursors[i].group = -1;
    return 0;
}

sz_parquet *sz_parquet_open(const char *path)
{
    sz_parquet *f = calloc(1, sizeof *f);
    if (f) f->path = strdup(path);
    if (!f || !f->path) {
        free(f);
        return sz_null("%s: out of memory", path);
    }
    if (open_file(f) == 0) return f;
    sz_parquet_close(f);
    return NULL;
}

static void cursor_reset(cursor *c)
{
    free(c->places);
    parquet_values_release(&c->dictionary);
    parquet_piece_release(&c->piece);
    *c = (cursor){ .group = -1, .decoded = -1 };
}

static void close_peeks(sz_parquet *f)
{
    for (int i = 0; f->peeks && i < f->meta.leaves; i++) {
        for (int g = 0; f->peeks[i] && g < f->meta.group_count; g++)
            parquet_peek_close(f->peeks[i][g]);
        free(f->peeks[i]);
    }
    for (int i = 0; f->no_peek && i < f->meta.leaves; i++) free(f->no_peek[i]);
    free(f->peeks);
    free(f->no_peek);
}

void sz_parquet_close(sz_parquet *f)
{
    if (!f) return;
    close_peeks(f);
    for (int i = 0; f->cursors && i < f->meta.leaves; i++) cursor_reset(&f->cursors[i]);
    free(f->cursors);
    parquet_metadata_release(&f->meta);
    if (f->base) munmap(f->base, (size_t)f->bytes);
    free(f->path);
    free(f);
}

/* ---- the schema ---- */

int64_t sz_parquet_rows(const sz_parquet *f) { return f->meta.rows; }
int sz_parquet_groups(const sz_parquet *f) { return f->meta.group_count; }

int64_t sz_parquet_group_rows(const sz_parquet *f, int group)
{
    return group >= 0 && group < f->meta.group_count ? f->meta.groups[group].rows : 0;
}

int sz_parquet_nodes(const sz_parquet *f) { return f->meta.node_count; }

int sz_parquet_node_at(const sz_parquet *f, int i, sz_parquet_node *to)
{
    if (i < 0 || i >= f->meta.node_count) return sz_fail("%s: no node %d", f->path, i);
    const parquet_node *n = &f->meta.nodes[i];
    *to = (sz_parquet_node){ n->name,      n->type,    n->width, n->repetition, n->children,
                             n->converted, n->logical, n->leaf,  n->max_def,    n->max_rep };
    return 0;
}

const char *sz_parquet_pair(const sz_parquet *f, const char *key)
{
    for (int i = 0; i < f->meta.pair_count; i++) {
        const parquet_pair *p = &f->meta.pairs[i];
        if (p->key && p->value && strcmp(p->key, key) == 0) return p->value;
    }
    return NULL;
}

/* ---- pages of a column chunk ---- */

typedef struct {
    sz_parquet *file;
    const parquet_node *node;
    const parquet_chunk *chunk;
    cursor *c;
} column;

/* Adds a data page to the list. */
static int add_place(cursor *c, const parquet_page *page, int64_t rows)
{
    if (c->count == c->room) {
        int room = c->room ? 2 * c->room : 16;
        place *places = realloc(c->places, (size_t)room * sizeof *places);
        if (!places) return sz_fail("out of memory for %d pages", room);
        c->places = places;
        c->room = room;
    }
    int64_t first = 0;
    if (c->count) first = c->places[c->count - 1].first + c->places[c->count - 1].rows;
    c->places[c->count++] = (place){ *page, first, rows };
    c->values += page->values;
    return 0;
}

/* Meets the next page. 1: a data page was added to the list; 0: the chunk has ended; -1: a
 * message. */
static int next_page(column *k)
{
    cursor *c = k->c;
    const int64_t end = k->chunk->start + k->chunk->bytes;
    while (c->next < end && c->values < k->chunk->values) {
        parquet_page page;
        if (parquet_page_header(&page, k->file->base, c->next, end) != 0) return -1;
        c->next = page.body + page.bytes;
        if (page.type == 2) {
            if (c->has_dictionary) return sz_fail("a column chunk has two dictionaries");
            if (parquet_page_dictionary(&c->dictionary, &page, k->file->base, k->node,
                                        k->chunk->codec) != 0)
                return -1;
            c->has_dictionary = true;
        } else if (page.type == 0 || page.type == 3) {
            int64_t rows = page.rows;
            if (k->node->max_rep == 0) rows = page.values;
            if (add_place(c, &page, rows) != 0) return -1;
            return 1;
        }
        /* Pages of other types are passed over. */
    }
    return 0;
}

static int64_t row_starts(const parquet_piece *piece)
{
    if (!piece->rep) return piece->levels;
    int64_t n = 0;
    for (int64_t i = 0; i < piece->levels; i++) n += piece->rep[i] == 0;
    return n;
}

/* Decodes page i into the cursor's piece, unless it is there. */
static int decode_page(column *k, int i)
{
    cursor *c = k->c;
    if (c->decoded == i) return 0;
    parquet_piece_release(&c->piece);
    c->decoded = -1;
    const parquet_values *dictionary = c->has_dictionary ? &c->dictionary : NULL;
    if (parquet_page_decode(&c->piece, &c->places[i].page, k->file->base, k->node, k->chunk->codec,
                            dictionary) != 0)
        return -1;
    const int64_t rows = row_starts(&c->piece);
    if (c->places[i].rows >= 0 && c->places[i].rows != rows)
        return sz_fail("a page has %lld rows, its header says %lld", (long long)rows,
                       (long long)c->places[i].rows);
    c->places[i].rows = rows;
    c->decoded = i;
    /* Where its first row starts. */
    c->row = c->places[i].first;
    c->level = 0;
    c->value = 0;
    return 0;
}

/* The page in which row `row` of the group starts; -1 with a message. */
static int page_of_row(column *k, int64_t row)
{
    cursor *c = k->c;
    int low = 0;
    int high = c->count;
    while (low < high) {
        int middle = (low + high) / 2;
        if (c->places[middle].first + c->places[middle].rows <= row) low = middle + 1;
        else high = middle;
    }
    while (low == c->count) {
        int got = next_page(k);
        if (got == 0) return sz_fail("the column ends before row %lld", (long long)row);
        if (got < 0 || (c->places[low].rows < 0 && decode_page(k, low) != 0)) return -1;
        if (c->places[low].first + c->places[low].rows <= row) low++;
    }
    return low;
}

/* ---- the result ---- */

typedef struct {
    sz_parquet_values head;
    uint8_t *def, *rep;
    parquet_values values;
    size_t level_room;
    int64_t value_room;
    size_t used; /* bytes of byte arrays */
} result;

static int result_levels(result *r, int64_t more)
{
    size_t wanted = (size_t)(r->head.levels + more);
    if (wanted <= r->level_room) return 0;
    size_t room = wanted + wanted / 2 + 64;
    uint8_t *def = realloc(r->def, room);
    if (def) r->def = def;
    uint8_t *rep = realloc(r->rep, room);
    if (rep) r->rep = rep;
    if (!def || !rep) return sz_fail("out of memory for %zu levels", room);
    r->level_room = room;
    return 0;
}

static int result_values(result *r, int64_t more, size_t bytes)
{
    parquet_values *v = &r->values;
    int64_t wanted = v->count + more;
    if (!v->width && (wanted > r->value_room || !v->offsets)) {
        int64_t room = wanted + wanted / 2 + 8;
        int64_t *offsets = realloc(v->offsets, (size_t)(room + 1) * sizeof *offsets);
        if (!offsets) return sz_fail("out of memory for %lld values", (long long)room);
        if (!v->offsets) offsets[0] = 0;
        v->offsets = offsets;
        r->value_room = room;
    }
    if (r->used + bytes > v->room || !v->data) {
        size_t room = r->used + bytes + (r->used + bytes) / 2 + 64;
        if (r->used == 0) room = bytes + 64;
        uint8_t *data = realloc(v->data, room);
        if (!data) return sz_fail("out of memory for %zu bytes of values", room);
        v->data = data;
        v->room = room;
    }
    return 0;
}

/* Appends levels [from, to) of the piece, whose values begin at `value`. */
static int append(result *r, const parquet_piece *p, int64_t from, int64_t to, int64_t value,
                  int64_t count)
{
    const parquet_values *v = &p->values;
    const int64_t levels = to - from;
    size_t bytes = (size_t)(count * v->width);
    const uint8_t *source = v->data + value * v->width;
    if (!v->width) {
        bytes = (size_t)(v->offsets[value + count] - v->offsets[value]);
        source = v->data + v->offsets[value];
    }
    if (result_levels(r, levels) != 0 || result_values(r, count, bytes) != 0) return -1;
    if (p->def) memcpy(r->def + r->head.levels, p->def + from, (size_t)levels);
    else memset(r->def + r->head.levels, 0, (size_t)levels);
    if (p->rep) memcpy(r->rep + r->head.levels, p->rep + from, (size_t)levels);
    else memset(r->rep + r->head.levels, 0, (size_t)levels);
    r->head.levels += levels;

    memcpy(r->values.data + r->used, source, bytes);
    if (!v->width)
        for (int64_t i = 1; i <= count; i++)
            r->values.offsets[r->values.count + i] = (int64_t)r->used + v->offsets[value + i] -
                                                     v->offsets[value];
    r->values.count += count;
    r->used += bytes;
    return 0;
}

/* ---- rows ---- */

/* The levels from `level` on until `rows` more rows have started and the next one begins, or the
 * piece ends. Sets how many rows started and how many values there are. */
static int64_t row_end(const parquet_piece *p, const parquet_node *node, int64_t level,
                       int64_t rows, int64_t *started, int64_t *values)
{
    int64_t i = level;
    *started = 0;
    *values = 0;
    for (; i < p->levels; i++) {
        const bool starts = !p->rep || p->rep[i] == 0;
        if (starts && *started == rows) break;
        *started += starts;
        *values += !p->def || p->def[i] == node->max_def;
    }
    return i;
}

/* Moves the cursor to where `row` starts in the decoded piece. */
static void seek_row(column *k, int64_t row)
{
    cursor *c = k->c;
    int64_t started;
    int64_t values;
    if (row < c->row) {
        c->row = c->places[c->decoded].first;
        c->level = 0;
        c->value = 0;
    }
    /* A page may begin with the rest of the row before it. */
    if (c->level == 0 && c->piece.rep && c->piece.levels && c->piece.rep[0] != 0) {
        c->level = row_end(&c->piece, k->node, 0, 0, &started, &values);
        c->value = values;
    }
    c->level = row_end(&c->piece, k->node, c->level, row - c->row, &started, &values);
    c->value += values;
    c->row = row;
}

/* Appends `rows` rows of the group from `row` on. */
static int read_rows(column *k, int64_t row, int64_t rows, result *r)
{
    cursor *c = k->c;
    int i = page_of_row(k, row);
    if (i < 0 || decode_page(k, i) != 0) return -1;
    seek_row(k, row);
    int64_t left = rows;
    for (;;) {
        int64_t started;
        int64_t values;
        int64_t end = row_end(&c->piece, k->node, c->level, left, &started, &values);
        if (append(r, &c->piece, c->level, end, c->value, values) != 0) return -1;
        c->row += started;
        c->level = end;
        c->value += values;
        left -= started;
        /* The last row may go on in the next page. */
        if (end < c->piece.levels || (left == 0 && k->node->max_rep == 0)) return 0;
        if (++i == c->count) {
            int got = next_page(k);
            if (got < 0) return -1;
            if (got == 0) {
                if (left == 0) return 0;
                return sz_fail("the column ends before row %lld", (long long)c->row);
            }
        }
        if (decode_page(k, i) != 0) return -1;
    }
}

static int read_groups(sz_parquet *f, int leaf, int64_t first, int64_t count, result *r)
{
    cursor *c = &f->cursors[leaf];
    const parquet_node *node = &f->meta.nodes[f->meta.leaf_nodes[leaf]];
    for (int g = 0; g < f->meta.group_count && count > 0; g++) {
        const parquet_group *group = &f->meta.groups[g];
        if (first >= group->first + group->rows) continue;
        int64_t take = group->first + group->rows - first;
        if (take > count) take = count;
        column k = { f, node, &group->chunks[leaf], c };
        if (c->group != g) {
            cursor_reset(c);
            c->group = g;
            c->next = k.chunk->start;
        }
        if (read_rows(&k, first - group->first, take, r) != 0) return -1;
        first += take;
        count -= take;
    }
    return 0;
}

/* ---- one value of a large chunk ---- */

enum { LARGE_CHUNK = 1 << 20, MOST_TOUCHED = 64 << 20 };

/* Gives back the map's resident pages now and then. They stay in the page cache. */
static void give_back(sz_parquet *f, const result *r)
{
    f->touched += (size_t)r->head.levels + r->used;
    if (f->touched < MOST_TOUCHED) return;
    madvise(f->base, (size_t)f->bytes, MADV_DONTNEED);
    f->touched = 0;
}

/* The peek of a chunk, or NULL if there is none. */
static parquet_peek *peek_of(sz_parquet *f, int leaf, int group)
{
    if (!f->peeks[leaf]) {
        const size_t groups = (size_t)f->meta.group_count;
        f->peeks[leaf] = calloc(groups, sizeof(parquet_peek *));
        f->no_peek[leaf] = calloc(groups, 1);
        if (!f->peeks[leaf] || !f->no_peek[leaf]) return NULL;
    }
    if (f->peeks[leaf][group] || f->no_peek[leaf][group]) return f->peeks[leaf][group];
    const parquet_node *node = &f->meta.nodes[f->meta.leaf_nodes[leaf]];
    const parquet_chunk *chunk = &f->meta.groups[group].chunks[leaf];
    f->file = (parquet_file){ f->path, f->base, f->bytes };
    parquet_peek *p = parquet_peek_open(&f->file, chunk, node);
    f->peeks[leaf][group] = p;
    f->no_peek[leaf][group] = !p;
    return p;
}

/* Reads one row; false if that must go the usual way. */
static bool read_one(sz_parquet *f, int leaf, int64_t row, result *r)
{
    int g = 0;
    while (g < f->meta.group_count && row >= f->meta.groups[g].first + f->meta.groups[g].rows) g++;
    if (g == f->meta.group_count || f->meta.groups[g].chunks[leaf].unpacked < LARGE_CHUNK)
        return false;
    parquet_peek *p = peek_of(f, leaf, g);
    if (!p || result_levels(r, 1) != 0) return false;
    const int got = parquet_peek_read(p, row - f->meta.groups[g].first, &r->values);
    if (got < 0) {
        const parquet_values empty = { .type = r->values.type, .width = r->values.width };
        parquet_values_release(&r->values);
        r->values = empty;
        return false;
    }
    /* A null's level is not known any more, and 0 says as much. */
    const parquet_node *node = &f->meta.nodes[f->meta.leaf_nodes[leaf]];
    r->def[0] = (uint8_t)(got ? node->max_def : 0);
    r->rep[0] = 0;
    r->head.levels = 1;
    return true;
}

sz_parquet_values *sz_parquet_read(sz_parquet *f, int leaf, int64_t first, int64_t count)
{
    if (leaf < 0 || leaf >= f->meta.leaves)
        return sz_null("%s: there is no leaf column %d", f->path, leaf);
    if (first < 0 || count < 1 || first > f->meta.rows || count > f->meta.rows - first)
        return sz_null("%s: rows %lld to %lld of %lld", f->path, (long long)first,
                       (long long)(first + count), (long long)f->meta.rows);
    const parquet_node *node = &f->meta.nodes[f->meta.leaf_nodes[leaf]];
    result *r = calloc(1, sizeof *r);
    if (!r) return sz_null("%s: out of memory", f->path);
    r->values = (parquet_values){ .type = node->type, .width = node->width };

    const bool is_one = count == 1 && node->max_rep == 0 && read_one(f, leaf, first, r);
    if (!is_one && read_groups(f, leaf, first, count, r) != 0) {
        char reason[256];
        snprintf(reason, sizeof reason, "%s", sz_last_error());
        cursor_reset(&f->cursors[leaf]);
        sz_parquet_values_free(&r->head);
        return sz_null("%s: column '%s', row %lld: %s", f->path, node->name, (long long)first + 1,
                       reason);
    }
    if (is_one && r->values.count) r->used = (size_t)r->values.offsets[1];
    give_back(f, r);
    r->head.def = r->def;
    r->head.rep = r->rep;
    r->head.count = r->values.count;
    r->head.type = node->type;
    r->head.width = node->width;
    r->head.data = r->values.data;
    r->head.offsets = r->values.offsets;
    return &r->head;
}

void sz_parquet_values_free(sz_parquet_values *v)
{
    if (!v) return;
    result *r = (result *)v;
    free(r->def);
    free(r->rep);
    parquet_values_release(&r->values);
    free(r);
}
