/* attention_args.h - what a call of attention names, its segment table, and how its queries are cut
 * into blocks, for all attention kernels and their reference.
 * The segment table is described in attention.c.
 * Leaves out: anything that computes.
 */
#ifndef SZ_ATTENTION_ARGS_H
#define SZ_ATTENTION_ARGS_H

#include "core/core.h"
#include <unistd.h>

enum {
    SZ_PANEL = 32,              /* columns of a panel (attention_tile.h) */
    SZ_KEYS = 96,               /* keys of a tile */
    SZ_IN_PLACE = 2 * SZ_PANEL, /* columns up to which a tile's rows are not copied */
};

typedef struct {
    int64_t q_start, q_len, k_start, k_len, p_start, p_len;
} sz_segment_row;

static inline sz_segment_row sz_segment_get(const sz_tensor *table, int64_t i)
{
    const int32_t *r = sz_i32(table) + 6 * i;
    return (sz_segment_row){ r[0], r[1], r[2], r[3], r[4], r[5] };
}

typedef struct {
    int64_t heads, groups, dim; /* H, G, D */
    int64_t share;              /* H / G */
    int64_t block;              /* queries of a block */
    bool causal;
    float scale;
    const sz_tensor *q;     /* q_start counts its rows */
    const sz_tensor *k, *v; /* k_start and p_start count their rows */
    const sz_tensor *segments;
    int64_t q_col, k_col, v_col; /* column where head 0 begins */
} sz_attention_args;

/* Queries, keys and values in three tensors: inputs q, k, v, segments. */
static inline sz_attention_args sz_attention_separate(const sz_call *c)
{
    sz_attention_args a = {
        .heads = (int64_t)c->args[0],
        .groups = (int64_t)c->args[1],
        .dim = (int64_t)c->args[2],
        .block = 1,
        .causal = c->args[3] != 0,
        .scale = (float)c->args[4],
        .q = c->in[0],
        .k = c->in[1],
        .v = c->in[2],
        .segments = c->in[3],
    };
    a.share = a.heads / a.groups;
    return a;
}

/* Queries, keys and values side by side in one tensor: inputs qkv, segments. */
static inline sz_attention_args sz_attention_packed(const sz_call *c)
{
    sz_attention_args a = sz_attention_separate(c);
    a.k = a.q;
    a.v = a.q;
    a.segments = c->in[1];
    a.k_col = a.heads * a.dim;
    a.v_col = a.k_col + a.groups * a.dim;
    return a;
}

/* Multiply-adds of the scores. *queries is set to the number of queries in the table. */
static inline int64_t sz_attention_work(const sz_attention_args *a, int64_t *queries)
{
    int64_t work = 0;
    *queries = 0;
    for (int64_t i = 0; i < a->segments->shape[0]; i++) {
        sz_segment_row s = sz_segment_get(a->segments, i);
        *queries += s.q_len;
        work += s.q_len * (s.p_len + s.k_len) * a->heads * a->dim;
    }
    return work;
}

/* Sets the size of blocks to about `columns` columns. How queries are cut into blocks does not
 * change the results of a forward pass. */
static inline void sz_attention_cut(sz_attention_args *a, int64_t columns)
{
    a->block = columns > a->share ? columns / a->share : 1;
}

static inline int64_t sz_round_up(int64_t n, int64_t multiple)
{
    return (n + multiple - 1) / multiple * multiple;
}

/* The most columns that a block can have. */
static inline int64_t sz_columns_most(const sz_attention_args *a)
{
    return sz_round_up(a->block * a->share, SZ_PANEL);
}

/* How many of its segment's own keys query i sees. */
static inline int64_t sz_own_keys(const sz_segment_row *s, int64_t i, bool causal)
{
    int64_t n = i + s->k_len - s->q_len + 1;
    if (!causal || n > s->k_len) return s->k_len;
    return n < 0 ? 0 : n;
}

/* Bytes of a core's second-level cache; 1 MiB where the system does not say. */
static inline int64_t sz_cache_bytes(void)
{
    static _Atomic int64_t known;
    if (!known) {
        long bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
        known = bytes > 0 ? bytes : 1 << 20;
    }
    return known;
}

/* Keys up to which a segment's keys and values stay in half of the second-level cache. */
static inline int64_t sz_keys_few(int64_t dim) { return sz_cache_bytes() / 2 / (2 * 4 * dim); }

/* Sets the size of blocks for a forward pass of `even_share` columns for each piece of work. More
 * columns use a loaded tile of keys more often, but queries and output should stay within a quarter
 * of the second-level cache, and no block should have more than even_share columns, so that every
 * thread gets work. From 128 to 512, and whole panels where that is possible. */
static inline void sz_attention_cut_even(sz_attention_args *a, int64_t even_share)
{
    int64_t columns = sz_cache_bytes() / 4 / (2 * 4 * a->dim);
    if (columns > 512) columns = 512;
    if (columns > even_share) columns = even_share;
    if (columns < 128) columns = 128;
    sz_attention_cut(a, columns);

    /* Queries whose columns are whole panels. */
    int64_t queries = SZ_PANEL;
    while (queries % 2 == 0 && queries / 2 * a->share % SZ_PANEL == 0) queries /= 2;
    if (a->block > queries) a->block -= a->block % queries;
}

/* Whether the queries of a segment see different numbers of its own keys. */
static inline bool sz_is_masked(const sz_attention_args *a, const sz_segment_row *s)
{
    return a->causal && s->q_len > 1;
}

#endif
