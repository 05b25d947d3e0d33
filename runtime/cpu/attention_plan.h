/* attention_plan.h - how the backward pass of attention is divided. attention_plan.c makes the
 * plan, and attention_backward.c follows it.
 *
 * A component is a set of segments that are connected through common keys, such as a prompt and its
 * answers. It is cut into chunks: runs of its query blocks with about equal work. There are few, so
 * that every thread gets some, or as many as keep the keys of a chunk in the cache. A task is
 * (chunk, key head).
 */
#ifndef SZ_ATTENTION_PLAN_H
#define SZ_ATTENTION_PLAN_H

#include "attention_tile.h"

/* A run of key rows [start, end) that some segments see. If several chunks see it, each has its own
 * dK and dV, in plan.sums from sums_start on. base is the range's first key within the chunk that
 * met it last, which is `chunk`. */
typedef struct {
    int64_t start, end;
    int64_t component;
    int64_t chunks; /* how many chunks see it */
    int64_t sums_start;
    int64_t chunk, base;
    bool parent; /* among the keys of a parent range */
} key_range;

/* Segments that are connected through common keys. */
typedef struct {
    int64_t keys, parent_keys;
    int64_t first_block, blocks; /* its blocks in plan.block */
    int64_t work;
} kv_component;

/* A block of queries of one segment. */
typedef struct {
    int64_t query, n;    /* first query within the segment, number of queries */
    int64_t own, parent; /* where its own keys and its parent's begin within the chunk */
    int64_t work;        /* of the component up to and including this block */
    int32_t segment;
} query_block;

/* A run of a component's blocks, and the ranges that these see, one after the other. */
typedef struct {
    int64_t first_block, blocks;
    int64_t first_ref, refs; /* its ranges in plan.ref */
    int64_t keys;            /* key rows of all its ranges */
} work_chunk;

/* A range as a chunk sees it. */
typedef struct {
    int64_t range;
    int64_t base;  /* the range's first key within the chunk */
    int64_t order; /* how many chunks saw it before */
} range_ref;

typedef struct {
    /* What the call names. */
    sz_attention_args a;
    const sz_tensor *out, *lse, *dout;
    sz_tensor *dq, *dk, *dv; /* columns as in a.q, a.k, a.v */

    /* What the sums of dK are multiplied by when they are stored. */
    float dk_scale;

    /* What sz_attention_plan finds out. */
    int64_t ld; /* length of a row of dK and dV sums: D, rounded up */
    int64_t ranges, components, chunks, refs;
    key_range *range;        /* ascending */
    kv_component *component; /* in the order of their first key rows */
    query_block *block;      /* component by component */
    work_chunk *chunk;
    range_ref *ref; /* chunk by chunk */

    int64_t queries;    /* query rows that see any key */
    int64_t keys;       /* key rows that any query sees */
    int64_t most_keys;  /* of one chunk */
    int64_t sum_floats; /* length of sums */
    float *sums;        /* dK and dV [keys][ld] of ranges that several chunks see, of
                                       each group and chunk; the caller allocates it */
} attention_plan;

/* Plans the call in p for `threads` threads; a.block must be set. -1 with a message on failure. */
int sz_attention_plan(attention_plan *p, int threads);

#endif
