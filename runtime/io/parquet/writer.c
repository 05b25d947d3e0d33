/* writer.c - writes a Parquet file: row groups of column chunks, then the metadata.
 *
 * The bytes go to "path.tmp", which is synced and renamed at the end, so a half-written file never
 * has the name. A row group is held in memory until it is complete: after group_rows rows, or when
 * it has GROUP_BYTES. Lua makes the schema and the levels (lua/segzero/formats/parquet_writer.lua).
 * Leaves out: adding to a file that exists, column indexes, statistics.
 */
#include "write.h"
#include <stdio.h>
#include <stdlib.h>

enum { GROUP_BYTES = 100 << 20, LAST_VERSION = 2 };

struct sz_parquet_writer {
    sz_writer file;
    int codec;
    int64_t group_rows;
    sz_parquet_node *nodes; /* names are owned */
    int node_count;
    parquet_column *columns; /* of the leaves */
    int *leaf_nodes;
    int leaves;
    parquet_buffer pairs; /* of the metadata, as elements of its list */
    int pair_count;
    parquet_buffer groups; /* likewise */
    int group_count;
    int64_t offset;   /* bytes of the file so far */
    int64_t rows;     /* of the file, without those of the group */
    int64_t in_group; /* rows of the group */
    bool failed;      /* nothing more is written */
};

static const char MAGIC[] = { 'P', 'A', 'R', '1' };

static int put_bytes(sz_parquet_writer *w, const void *bytes, size_t len)
{
    if (sz_writer_put(&w->file, bytes, len) != 0) {
        w->failed = true;
        return -1;
    }
    w->offset += (int64_t)len;
    return 0;
}

sz_parquet_writer *sz_parquet_writer_new(const char *path, int snappy, int64_t group_rows)
{
    sz_parquet_writer *w = calloc(1, sizeof *w);
    if (!w) return sz_null("%s: out of memory", path);
    w->codec = snappy ? CODEC_SNAPPY : CODEC_NONE;
    w->group_rows = group_rows > 0 ? group_rows : 1;
    w->file.fd = -1;
    if (sz_writer_open(&w->file, path) == 0 && put_bytes(w, MAGIC, sizeof MAGIC) == 0) return w;
    sz_parquet_writer_free(w);
    return NULL;
}

void sz_parquet_writer_free(sz_parquet_writer *w)
{
    if (!w) return;
    sz_writer_abort(&w->file);
    for (int i = 0; i < w->node_count; i++) free((char *)w->nodes[i].name);
    for (int i = 0; i < w->leaves; i++) parquet_column_release(&w->columns[i]);
    parquet_buffer_release(&w->pairs);
    parquet_buffer_release(&w->groups);
    free(w->nodes);
    free(w->columns);
    free(w->leaf_nodes);
    free(w);
}

/* ---- the schema ---- */

enum { DEEPEST = 16 };

/* The names of a node and of those around it, the root first. Returns how many, 0 if too many. */
static int path_of(const sz_parquet_writer *w, int node, const char *path[DEEPEST])
{
    int left[DEEPEST]; /* children that are still to come */
    int depth = 0;
    for (int i = 0; i <= node; i++) {
        while (depth > 0 && left[depth - 1] == 0) depth--;
        if (depth > 0) left[depth - 1]--;
        if (depth == DEEPEST) return 0;
        path[depth] = w->nodes[i].name;
        left[depth++] = w->nodes[i].children;
    }
    return depth;
}

static int add_leaf(sz_parquet_writer *w, const sz_parquet_node *node)
{
    size_t n = (size_t)w->leaves + 1;
    parquet_column *columns = realloc(w->columns, n * sizeof *columns);
    if (columns) w->columns = columns;
    int *leaf_nodes = realloc(w->leaf_nodes, n * sizeof *leaf_nodes);
    if (leaf_nodes) w->leaf_nodes = leaf_nodes;
    if (!columns || !leaf_nodes) return sz_fail("out of memory");
    w->columns[w->leaves] = (parquet_column){ .type = node->type,
                                              .width = node->width,
                                              .max_def = node->max_def,
                                              .max_rep = node->max_rep,
                                              .codec = w->codec };
    w->leaf_nodes[w->leaves++] = w->node_count;
    return 0;
}

int sz_parquet_writer_node(sz_parquet_writer *w, const sz_parquet_node *node)
{
    size_t n = (size_t)w->node_count + 1;
    sz_parquet_node *nodes = realloc(w->nodes, n * sizeof *nodes);
    if (!nodes) return sz_fail("out of memory");
    w->nodes = nodes;
    if (node->type != PARQUET_GROUP && add_leaf(w, node) != 0) return -1;
    char *name = strdup(node->name);
    if (!name) return sz_fail("out of memory");
    w->nodes[w->node_count] = *node;
    w->nodes[w->node_count++].name = name;
    const char *path[DEEPEST];
    if (path_of(w, w->node_count - 1, path) == 0)
        return sz_fail("the column '%s' is nested too deeply", node->name);
    return 0;
}

int sz_parquet_writer_pair(sz_parquet_writer *w, const char *key, const char *value)
{
    thrift_out t = { .to = &w->pairs };
    thrift_put_binary(&t, 1, key, strlen(key));
    thrift_put_binary(&t, 2, value, strlen(value));
    thrift_end(&t);
    w->pair_count++;
    return w->pairs.failed ? sz_fail("out of memory") : 0;
}

/* ---- rows ---- */

int sz_parquet_writer_put(sz_parquet_writer *w, int leaf, int rep, int def, const void *bytes,
                          size_t len)
{
    if (leaf < 0 || leaf >= w->leaves) return sz_fail("there is no leaf column %d", leaf);
    if (len > INT32_MAX) return sz_fail("a value of %zu bytes, the most is 2 GB", len);
    parquet_column_put(&w->columns[leaf], rep, def, bytes, len);
    return 0;
}

int sz_parquet_writer_mask(sz_parquet_writer *w, int leaf, const uint8_t *mask, int height,
                           int width)
{
    if (leaf < 0 || leaf >= w->leaves) return sz_fail("there is no leaf column %d", leaf);
    if (height < 1 || width < 1) return sz_fail("a mask of %d x %d pixels", width, height);
    parquet_column *c = &w->columns[leaf];
    for (int y = 0; y < height; y++) {
        for (int x = 0; x < width; x++) {
            int rep = 0;
            if (x) rep = 2;
            else if (y) rep = 1;
            uint8_t inside = mask[(size_t)y * (size_t)width + (size_t)x] != 0;
            parquet_column_put(c, rep, c->max_def, &inside, 1);
        }
    }
    return 0;
}

/* The metadata of one chunk, an element of its group's list. */
static void put_chunk(thrift_out *t, const sz_parquet_writer *w, int leaf, int64_t at)
{
    const parquet_column *c = &w->columns[leaf];
    int64_t bytes = (int64_t)c->pages.len;

    thrift_element(t);
    thrift_put_i64(t, 2, at);
    thrift_begin(t, 3);
    thrift_put_i32(t, 1, c->type);
    thrift_put_list(t, 2, THRIFT_I32, 2);
    thrift_element_i32(t, ENCODING_PLAIN);
    thrift_element_i32(t, ENCODING_RLE);

    /* The path, without the root. */
    const char *path[DEEPEST];
    int depth = path_of(w, w->leaf_nodes[leaf], path);
    thrift_put_list(t, 3, THRIFT_BINARY, depth - 1);
    for (int i = 1; i < depth; i++) thrift_element_binary(t, path[i], strlen(path[i]));

    thrift_put_i32(t, 4, c->codec);
    thrift_put_i64(t, 5, c->chunk_levels);
    thrift_put_i64(t, 6, c->chunk_unpacked);
    thrift_put_i64(t, 7, bytes);
    thrift_put_i64(t, 9, at);
    thrift_end(t);
    thrift_end(t);
}

/* Writes the row group that is held, if it has rows. */
static int end_group(sz_parquet_writer *w)
{
    if (w->in_group == 0) return 0;
    for (int i = 0; i < w->leaves; i++) {
        if (parquet_column_page(&w->columns[i]) != 0) return -1;
    }

    /* Its metadata, then the pages of one column after the other. */
    thrift_out t = { .to = &w->groups };
    int64_t start = w->offset;
    int64_t at = start;
    int64_t unpacked = 0;
    thrift_put_list(&t, 1, THRIFT_STRUCT, w->leaves);
    for (int i = 0; i < w->leaves; i++) {
        put_chunk(&t, w, i, at);
        at += (int64_t)w->columns[i].pages.len;
        unpacked += w->columns[i].chunk_unpacked;
    }
    thrift_put_i64(&t, 2, unpacked);
    thrift_put_i64(&t, 3, w->in_group);
    thrift_put_i64(&t, 5, start);
    thrift_put_i64(&t, 6, at - start);
    thrift_put_i16(&t, 7, w->group_count);
    thrift_end(&t);
    if (w->groups.failed) return sz_fail("%s: out of memory", w->file.path);
    for (int i = 0; i < w->leaves; i++) {
        parquet_column *c = &w->columns[i];
        if (put_bytes(w, c->pages.bytes, c->pages.len) != 0) return -1;
        c->pages.len = 0;
        c->chunk_levels = 0;
        c->chunk_unpacked = 0;
    }
    w->rows += w->in_group;
    w->in_group = 0;
    w->group_count++;
    return 0;
}

int sz_parquet_writer_row(sz_parquet_writer *w)
{
    if (w->failed) return sz_fail("nothing is written after a failure");
    w->in_group++;
    size_t held = 0;
    for (int i = 0; i < w->leaves; i++) {
        parquet_column *c = &w->columns[i];
        if (parquet_column_is_long(c) && parquet_column_page(c) != 0) {
            w->failed = true;
            return -1;
        }
        held += c->pages.len;
    }
    if (w->in_group < w->group_rows && held < GROUP_BYTES) return 0;
    int rc = end_group(w);
    w->failed = rc != 0;
    return rc;
}

/* ---- the end ---- */

/* A node of the schema, an element of its list. */
static void put_node(thrift_out *t, const sz_parquet_node *node, bool is_root)
{
    thrift_element(t);
    if (node->type != PARQUET_GROUP) thrift_put_i32(t, 1, node->type);
    if (!is_root) thrift_put_i32(t, 3, node->repetition);
    thrift_put_binary(t, 4, node->name, strlen(node->name));
    if (node->type == PARQUET_GROUP) thrift_put_i32(t, 5, node->children);
    if (node->converted >= 0) thrift_put_i32(t, 6, node->converted);
    if (node->logical > 0) {
        /* A union with one empty struct. */
        thrift_begin(t, 10);
        thrift_begin(t, node->logical);
        thrift_end(t);
        thrift_end(t);
    }
    thrift_end(t);
}

static void put_metadata(const sz_parquet_writer *w, parquet_buffer *to)
{
    thrift_out t = { .to = to };
    thrift_put_i32(&t, 1, LAST_VERSION);
    thrift_put_list(&t, 2, THRIFT_STRUCT, w->node_count);
    for (int i = 0; i < w->node_count; i++) put_node(&t, &w->nodes[i], i == 0);
    thrift_put_i64(&t, 3, w->rows);

    /* Lists whose elements were made before. */
    thrift_put_list(&t, 4, THRIFT_STRUCT, w->group_count);
    parquet_buffer_put(to, w->groups.bytes, w->groups.len);
    if (w->pair_count) {
        thrift_put_list(&t, 5, THRIFT_STRUCT, w->pair_count);
        parquet_buffer_put(to, w->pairs.bytes, w->pairs.len);
    }
    char by[64];
    snprintf(by, sizeof by, "segzero version %s", sz_version());
    thrift_put_binary(&t, 6, by, strlen(by));
    thrift_end(&t);
}

int sz_parquet_writer_commit(sz_parquet_writer *w)
{
    if (w->failed) return sz_fail("nothing is written after a failure");
    w->failed = true;
    if (end_group(w) != 0) return -1;

    parquet_buffer footer = { 0 };
    put_metadata(w, &footer);
    size_t len = footer.len;
    parquet_buffer_u32(&footer, (uint32_t)len);
    parquet_buffer_put(&footer, MAGIC, sizeof MAGIC);
    int rc = -1;
    if (footer.failed) sz_fail("%s: out of memory", w->file.path);
    else rc = put_bytes(w, footer.bytes, footer.len);
    parquet_buffer_release(&footer);
    return rc == 0 ? sz_writer_commit(&w->file) : -1;
}
