/* metadata.c - the metadata at the end of a file: schema, row groups, column chunks, pairs of keys
 * and values.
 *
 * The schema is a tree in preorder. A leaf column's max_def counts the optional and repeated nodes
 * on the way to it, max_rep the repeated ones.
 * Leaves out: statistics, column indexes, Bloom filters, encryption.
 */
#include "parquet.h"
#include <stdio.h>
#include <stdlib.h>

enum { MAX_DEPTH = 32, MAX_NODES = 1 << 16, MAX_GROUPS = 1 << 20 };

enum { REQUIRED, OPTIONAL, REPEATED };

static char *text_of(thrift *t)
{
    size_t len;
    const uint8_t *p = thrift_binary(t, &len);
    char *copy = malloc(len + 1);
    if (!copy) {
        t->bad = true;
        return NULL;
    }
    if (len) memcpy(copy, p, len);
    copy[len] = 0;
    return copy;
}

/* ---- the schema ---- */

enum { LOGICAL_DECIMAL = 5, LOGICAL_TIME = 7, LOGICAL_TIMESTAMP = 8 };

static void decimal_read(thrift *t, parquet_node *n)
{
    int id = 0;
    int type;
    while ((type = thrift_field(t, &id)) != THRIFT_STOP) {
        if (id == 1 && type == THRIFT_I32) n->scale = (int)thrift_int(t);
        else thrift_skip(t, type);
    }
}

/* The union TimeUnit: milliseconds, microseconds, nanoseconds. */
static void unit_read(thrift *t, parquet_node *n)
{
    int id = 0;
    int type;
    while ((type = thrift_field(t, &id)) != THRIFT_STOP) {
        if (id >= 1 && id <= 3) n->unit = id;
        thrift_skip(t, type);
    }
}

static void time_read(thrift *t, parquet_node *n)
{
    int id = 0;
    int type;
    while ((type = thrift_field(t, &id)) != THRIFT_STOP) {
        if (id == 1) n->is_utc = type == THRIFT_TRUE;
        if (id == 2 && type == THRIFT_STRUCT) unit_read(t, n);
        else thrift_skip(t, type);
    }
}

/* A union: the id of the field that is set. A decimal has its scale in it, a time its unit. */
static void logical_read(thrift *t, parquet_node *n)
{
    int id = 0;
    int type;
    while ((type = thrift_field(t, &id)) != THRIFT_STOP) {
        n->logical = id;
        bool is_time = id == LOGICAL_TIME || id == LOGICAL_TIMESTAMP;
        if (id == LOGICAL_DECIMAL && type == THRIFT_STRUCT) decimal_read(t, n);
        else if (is_time && type == THRIFT_STRUCT) time_read(t, n);
        else thrift_skip(t, type);
    }
}

static void node_read(thrift *t, parquet_node *n)
{
    *n = (parquet_node){ .type = PARQUET_GROUP, .converted = -1, .leaf = -1 };
    int id = 0;
    int type;
    while ((type = thrift_field(t, &id)) != THRIFT_STOP) {
        switch (id) {
        case 1: n->type = (int)thrift_int(t); break;
        case 2: n->width = (int)thrift_int(t); break;
        case 3: n->repetition = (int)thrift_int(t); break;
        case 4:
            free(n->name);
            n->name = text_of(t);
            break;
        case 5: n->children = (int)thrift_int(t); break;
        case 6: n->converted = (int)thrift_int(t); break;
        case 7: n->scale = (int)thrift_int(t); break;
        case 10: logical_read(t, n); break;
        default: thrift_skip(t, type);
        }
    }
    if (!n->name) n->name = calloc(1, 1);
}

static int nodes_read(thrift *t, parquet_metadata *m)
{
    int type;
    int64_t n = thrift_list(t, &type);
    if (m->nodes || type != THRIFT_STRUCT || n < 1 || n > MAX_NODES)
        return sz_fail("the schema is damaged");
    m->nodes = calloc((size_t)n, sizeof *m->nodes);
    m->leaf_nodes = calloc((size_t)n, sizeof *m->leaf_nodes);
    if (!m->nodes || !m->leaf_nodes) return sz_fail("out of memory for the schema");
    for (int64_t i = 0; i < n && !t->bad; i++) {
        node_read(t, &m->nodes[i]);
        m->node_count++;
        if (!m->nodes[i].name) return sz_fail("out of memory for the schema");
    }
    return 0;
}

/* Bytes of a number of this type, 0 for byte arrays; -1 for an unknown type. */
static int width_of(const parquet_node *n)
{
    switch (n->type) {
    case PARQUET_BOOLEAN: return 1;
    case PARQUET_INT32:
    case PARQUET_FLOAT: return 4;
    case PARQUET_INT64:
    case PARQUET_DOUBLE: return 8;
    case PARQUET_INT96: return 12;
    case PARQUET_BYTE_ARRAY: return 0;
    case PARQUET_FIXED: return n->width > 0 ? n->width : -1;
    default: return -1;
    }
}

/* Gives node i and what is below it their levels. Returns the index after its subtree, or -1 with a
 * message. */
static int node_levels(parquet_metadata *m, int i, int def, int rep, int depth)
{
    if (i >= m->node_count || depth > MAX_DEPTH) return sz_fail("the schema is damaged");
    parquet_node *n = &m->nodes[i];
    if (i > 0) {
        if (n->repetition < REQUIRED || n->repetition > REPEATED)
            return sz_fail("the schema is damaged");
        def += n->repetition != REQUIRED;
        rep += n->repetition == REPEATED;
    }
    n->max_def = def;
    n->max_rep = rep;

    if (n->children == 0 && n->type != PARQUET_GROUP) {
        n->width = width_of(n);
        if (n->width < 0) return sz_fail("column '%s' has an unknown type", n->name);
        n->leaf = m->leaves;
        m->leaf_nodes[m->leaves++] = i;
        return i + 1;
    }
    if (n->children < 0 || n->type != PARQUET_GROUP) return sz_fail("the schema is damaged");
    int next = i + 1;
    for (int k = 0; k < n->children && next > 0; k++)
        next = node_levels(m, next, def, rep, depth + 1);
    return next;
}

/* ---- row groups ---- */

static void chunk_metadata(thrift *t, parquet_chunk *c)
{
    int64_t dictionary = 0;
    int64_t data = 0;
    int id = 0;
    int type;
    while ((type = thrift_field(t, &id)) != THRIFT_STOP) {
        switch (id) {
        case 4: c->codec = (int)thrift_int(t); break;
        case 5: c->values = thrift_int(t); break;
        case 6: c->unpacked = thrift_int(t); break;
        case 7: c->bytes = thrift_int(t); break;
        case 9: data = thrift_int(t); break;
        case 11: dictionary = thrift_int(t); break;
        default: thrift_skip(t, type);
        }
    }
    /* Some writers state a dictionary that is not there, at 0. */
    c->start = dictionary > 0 && dictionary < data ? dictionary : data;
}

static int chunk_read(thrift *t, parquet_chunk *c, int64_t file_bytes)
{
    int id = 0;
    int type;
    bool elsewhere = false;
    bool found = false;
    while ((type = thrift_field(t, &id)) != THRIFT_STOP) {
        if (id == 1) elsewhere = true;
        if (id == 3 && type == THRIFT_STRUCT) {
            chunk_metadata(t, c);
            found = true;
        } else if (id == 4 && type == THRIFT_I64) {
            c->index = thrift_int(t);
        } else if (id == 5 && type == THRIFT_I32) {
            c->index_bytes = thrift_int(t);
        } else thrift_skip(t, type);
    }
    if (elsewhere) return sz_fail("a column is in another file");
    if (!found) return sz_fail("a column chunk has no metadata (encrypted files are not read)");
    if (c->values == 0) { /* some writers state no place then */
        c->start = c->bytes = 0;
        return 0;
    }
    bool fits = c->start >= 4 && c->bytes >= 0 && c->start <= file_bytes &&
                c->bytes <= file_bytes - c->start && c->values >= 0;
    return fits ? 0 : sz_fail("a column chunk is outside the file");
}

static int chunks_read(thrift *t, parquet_metadata *m, parquet_group *g, int64_t file_bytes)
{
    int type;
    int64_t n = thrift_list(t, &type);
    if (g->chunks || type != THRIFT_STRUCT || n != m->leaves)
        return sz_fail("a row group has %lld columns, the schema %d", (long long)n, m->leaves);
    g->chunks = calloc((size_t)n + 1, sizeof *g->chunks);
    if (!g->chunks) return sz_fail("out of memory for %lld columns", (long long)n);
    for (int64_t i = 0; i < n; i++)
        if (chunk_read(t, &g->chunks[i], file_bytes) != 0) return -1;
    return 0;
}

static int group_read(thrift *t, parquet_metadata *m, parquet_group *g, int64_t file_bytes)
{
    int id = 0;
    int type;
    while ((type = thrift_field(t, &id)) != THRIFT_STOP) {
        if (id == 1 && type == THRIFT_LIST) {
            if (chunks_read(t, m, g, file_bytes) != 0) return -1;
        } else if (id == 3) g->rows = thrift_int(t);
        else thrift_skip(t, type);
    }
    if (!g->chunks || g->rows < 0) return sz_fail("a row group is damaged");
    return 0;
}

static int groups_read(thrift *t, parquet_metadata *m, int64_t file_bytes)
{
    int type;
    int64_t n = thrift_list(t, &type);
    if (m->groups || !m->nodes || (n > 0 && type != THRIFT_STRUCT) || n > MAX_GROUPS)
        return sz_fail("the list of row groups is damaged");
    m->groups = calloc((size_t)n + 1, sizeof *m->groups);
    if (!m->groups) return sz_fail("out of memory for %lld row groups", (long long)n);
    int64_t rows = 0;
    for (int64_t i = 0; i < n && !t->bad; i++) {
        parquet_group *g = &m->groups[i];
        m->group_count++;
        if (group_read(t, m, g, file_bytes) != 0) return -1;
        g->first = rows;
        if (__builtin_add_overflow(rows, g->rows, &rows)) return sz_fail("too many rows");
    }
    m->rows = rows;
    return 0;
}

/* ---- pairs ---- */

static void pair_read(thrift *t, parquet_pair *pair)
{
    int id = 0;
    int type;
    while ((type = thrift_field(t, &id)) != THRIFT_STOP) {
        char **to = id == 1 ? &pair->key : id == 2 ? &pair->value : NULL;
        if (to && type == THRIFT_BINARY) {
            free(*to);
            *to = text_of(t);
        } else thrift_skip(t, type);
    }
}

static int pairs_read(thrift *t, parquet_metadata *m)
{
    int type;
    int64_t n = thrift_list(t, &type);
    if (m->pairs || (n > 0 && type != THRIFT_STRUCT)) return sz_fail("the metadata are damaged");
    m->pairs = calloc((size_t)n + 1, sizeof *m->pairs);
    if (!m->pairs) return sz_fail("out of memory for %lld pairs", (long long)n);
    for (int64_t i = 0; i < n && !t->bad; i++) pair_read(t, &m->pairs[m->pair_count++]);
    return 0;
}

/* ---- all of it ---- */

static int fields_read(parquet_metadata *m, thrift *t, int64_t file_bytes)
{
    int id = 0;
    int type;
    int64_t rows = -1;
    while ((type = thrift_field(t, &id)) != THRIFT_STOP) {
        int result = 0;
        switch (id) {
        case 2:
            result = nodes_read(t, m);
            if (result == 0 && !t->bad) result = node_levels(m, 0, 0, 0, 0) < 0 ? -1 : 0;
            break;
        case 3: rows = thrift_int(t); break;
        case 4: result = groups_read(t, m, file_bytes); break;
        case 5: result = pairs_read(t, m); break;
        default: thrift_skip(t, type);
        }
        if (result != 0) return -1;
    }
    if (t->bad || !m->nodes || !m->groups) return sz_fail("the metadata are damaged");
    if (rows != m->rows)
        return sz_fail("the metadata say %lld rows, the row groups %lld", (long long)rows,
                       (long long)m->rows);
    return 0;
}

int parquet_metadata_read(parquet_metadata *m, const char *path, const uint8_t *bytes, size_t len,
                          int64_t file_bytes)
{
    thrift t = { bytes, bytes + len, false };
    *m = (parquet_metadata){ 0 };
    if (fields_read(m, &t, file_bytes) == 0) return 0;
    char reason[256];
    snprintf(reason, sizeof reason, "%s", sz_last_error());
    return sz_fail("%s: %s", path, reason);
}

void parquet_metadata_release(parquet_metadata *m)
{
    for (int i = 0; i < m->node_count; i++) free(m->nodes[i].name);
    for (int i = 0; i < m->group_count; i++) free(m->groups[i].chunks);
    for (int i = 0; i < m->pair_count; i++) {
        free(m->pairs[i].key);
        free(m->pairs[i].value);
    }
    free(m->nodes);
    free(m->leaf_nodes);
    free(m->groups);
    free(m->pairs);
    *m = (parquet_metadata){ 0 };
}
