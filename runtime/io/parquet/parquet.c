/* parquet.c - Parquet files: opening, the schema, and the values of a range of rows.
 *
 * The file is mapped; opening reads its metadata alone. Each column chunk keeps the list of its
 * pages (pages.c) and, where its values are large, how to read one without its page (peek.c).
 * Decoded pages are kept for a while (cache.c), so that a row costs no page twice.
 * Leaves out: writing, encryption, Bloom filters, several threads on one handle.
 */
#include "parquet.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* A column chunk that was read. */
typedef struct {
    parquet_pages *pages; /* NULL: not yet */
    parquet_peek *peek;   /* NULL: there is none */
    bool is_tried;        /* whether a peek was tried */
} chunk;

struct sz_parquet {
    char *path;
    uint8_t *base;
    int64_t bytes;
    parquet_metadata meta;
    parquet_file file;       /* what the chunks read */
    chunk **chunks;          /* [leaves] of [groups]; NULL until a leaf is read */
    parquet_cursor *cursors; /* [leaves] */
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
        f->file.device = st.st_dev;
        f->file.number = st.st_ino;
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

    sz_io_forget(f->base, (size_t)f->bytes, end - 8 - len, (size_t)len);

    const size_t leaves = (size_t)f->meta.leaves + 1;
    f->file.path = f->path;
    f->file.base = f->base;
    f->file.bytes = f->bytes;
    f->cursors = calloc(leaves, sizeof *f->cursors);
    f->chunks = calloc(leaves, sizeof *f->chunks);
    if (!f->cursors || !f->chunks) return sz_fail("%s: out of memory for its columns", f->path);
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

static void close_chunk(chunk *c)
{
    parquet_peek_close(c->peek);
    parquet_pages_close(c->pages);
    *c = (chunk){ 0 };
}

void sz_parquet_close(sz_parquet *f)
{
    if (!f) return;
    for (int i = 0; f->chunks && i < f->meta.leaves; i++) {
        for (int g = 0; f->chunks[i] && g < f->meta.group_count; g++) close_chunk(&f->chunks[i][g]);
        free(f->chunks[i]);
    }
    free(f->chunks);
    free(f->cursors);
    free(f->file.piece);
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
                             n->converted, n->logical, n->leaf,  n->max_def,    n->max_rep,
                             n->scale,     n->unit,    n->is_utc };
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

/* ---- rows ---- */

static const parquet_node *node_of(const sz_parquet *f, int leaf)
{
    return &f->meta.nodes[f->meta.leaf_nodes[leaf]];
}

/* The group that has row `row` of the file. */
static int group_of_row(const sz_parquet *f, int64_t row)
{
    int low = 0;
    int high = f->meta.group_count - 1;
    while (low < high) {
        const int middle = (low + high) / 2;
        const parquet_group *g = &f->meta.groups[middle];
        if (g->first + g->rows <= row) low = middle + 1;
        else high = middle;
    }
    return low;
}

/* A chunk with the list of its pages; NULL with a message. */
static chunk *chunk_at(sz_parquet *f, int leaf, int group)
{
    if (!f->chunks[leaf]) {
        f->chunks[leaf] = calloc((size_t)f->meta.group_count, sizeof(chunk));
        if (!f->chunks[leaf]) return sz_null("out of memory for a column");
    }
    chunk *c = &f->chunks[leaf][group];
    const parquet_group *g = &f->meta.groups[group];
    if (!c->pages)
        c->pages = parquet_pages_open(&f->file, node_of(f, leaf), &g->chunks[leaf], g->rows);
    return c->pages ? c : NULL;
}

/* Reads one row without its page; false if that must go the usual way. */
static bool peek_row(chunk *c, int64_t row, parquet_result *r)
{
    if (!c->is_tried) {
        c->peek = parquet_peek_open(c->pages);
        c->is_tried = true;
    }
    return c->peek && parquet_peek_read(c->peek, row, r) == 0;
}

static int read_groups(sz_parquet *f, int leaf, int64_t first, int64_t count, parquet_result *r)
{
    parquet_cursor *cursor = &f->cursors[leaf];
    const bool is_one = count == 1;
    for (int g = group_of_row(f, first); g < f->meta.group_count && count > 0; g++) {
        const parquet_group *group = &f->meta.groups[g];
        int64_t take = group->first + group->rows - first;
        if (take > count) take = count;
        if (take == 0) continue;
        chunk *c = chunk_at(f, leaf, g);
        if (!c) return -1;
        if (is_one && peek_row(c, first - group->first, r)) return 0;
        if (cursor->group != g) *cursor = (parquet_cursor){ .group = g, .page = -1 };
        if (parquet_rows_read(c->pages, cursor, first - group->first, take, r) != 0) return -1;
        first += take;
        count -= take;
    }
    return 0;
}

static sz_parquet_values *read_values(sz_parquet *f, int leaf, int64_t first, int64_t count,
                                      int64_t most)
{
    if (leaf < 0 || leaf >= f->meta.leaves)
        return sz_null("%s: there is no leaf column %d", f->path, leaf);
    if (first < 0 || count < 1 || first > f->meta.rows || count > f->meta.rows - first)
        return sz_null("%s: rows %lld to %lld of %lld", f->path, (long long)first,
                       (long long)(first + count), (long long)f->meta.rows);
    const parquet_node *node = node_of(f, leaf);
    parquet_result *r = calloc(1, sizeof *r);
    if (!r) return sz_null("%s: out of memory", f->path);
    r->values = (parquet_values){ .type = node->type, .width = node->width };
    r->most = most;

    if (read_groups(f, leaf, first, count, r) != 0) {
        char reason[256];
        snprintf(reason, sizeof reason, "%s", sz_last_error());
        f->cursors[leaf].group = -1;
        sz_parquet_values_free(&r->head);
        return sz_null("%s: column '%s', row %lld: %s", f->path, node->name, (long long)first + 1,
                       reason);
    }
    r->head.def = r->def;
    r->head.rep = r->rep;
    r->head.count = r->values.count;
    r->head.type = node->type;
    r->head.width = node->width;
    r->head.data = r->values.data;
    r->head.offsets = r->values.offsets;
    return &r->head;
}

sz_parquet_values *sz_parquet_read(sz_parquet *f, int leaf, int64_t first, int64_t count)
{
    return read_values(f, leaf, first, count, INT64_MAX);
}

sz_parquet_values *sz_parquet_read_front(sz_parquet *f, int leaf, int64_t row, int64_t most)
{
    return read_values(f, leaf, row, 1, most < 0 ? 0 : most);
}

void sz_parquet_values_free(sz_parquet_values *v)
{
    if (!v) return;
    parquet_result *r = (parquet_result *)v;
    free(r->def);
    free(r->rep);
    parquet_values_release(&r->values);
    free(r);
}
