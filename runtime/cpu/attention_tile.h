/* attention_tile.h - what the attention kernels share: blocks of query columns that run past tiles of keys.
 *
 * A column is one query of one head: column c of a block is head (first_head + c % share) of the block's query c / share,
 * where share = H / G query heads see the same keys. Columns come in panels of SZ_PANEL that lie side by side in vectors:
 * queries [D][32], scores [keys][32], output [D][32]. So scores are K q, their maxima and sums are plain vector arithmetic,
 * and neither K nor V is ever transposed. A column's arithmetic does not depend on the columns beside it.
 * The segment table is described in attention.c. Leaves out: threads, who owns which block.
 */
#ifndef SZ_ATTENTION_TILE_H
#define SZ_ATTENTION_TILE_H

#include "core/core.h"
#include "gemm_tile.h"
#include <math.h>

enum { SZ_PANEL = 32, SZ_KEYS = 96 };     /* columns a panel, keys a tile */

typedef struct { int64_t q_start, q_len, k_start, k_len, p_start, p_len; } sz_segment_row;

static inline sz_segment_row sz_segment_get(const sz_tensor *table, int64_t i)
{
    const int32_t *r = sz_i32(table) + 6 * i;
    return (sz_segment_row){ r[0], r[1], r[2], r[3], r[4], r[5] };
}

typedef struct {
    int64_t heads, groups, dim, share;     /* H, G, D, H / G */
    int64_t block;                         /* queries a block holds */
    bool causal;
    float scale;
    const sz_tensor *q, *k, *v, *segments; /* q_start counts rows of q; k_start and p_start count rows of k and v */
    int64_t q_col, k_col, v_col;           /* where head 0 begins in a row */
} sz_attention_args;

/* Queries, keys and values in three tensors: inputs q, k, v, segments. */
static inline sz_attention_args sz_attention_separate(const sz_call *c)
{
    sz_attention_args a = { .heads = (int64_t)c->args[0], .groups = (int64_t)c->args[1], .dim = (int64_t)c->args[2], .block = 1,
                            .causal = c->args[3] != 0, .scale = (float)c->args[4],
                            .q = c->in[0], .k = c->in[1], .v = c->in[2], .segments = c->in[3] };
    a.share = a.heads / a.groups;
    return a;
}
/* Side by side in one tensor: inputs qkv, segments. */
static inline sz_attention_args sz_attention_packed(const sz_call *c)
{
    sz_attention_args a = sz_attention_separate(c);
    a.k = a.v = a.q;
    a.segments = c->in[1];
    a.k_col = a.heads * a.dim;
    a.v_col = a.k_col + a.groups * a.dim;
    return a;
}

/* Multiply-adds of the scores, and how many queries the table names. */
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

/* Blocks of about `columns` columns. How queries are cut into blocks has no effect on the results of a forward pass. */
static inline void sz_attention_cut(sz_attention_args *a, int64_t columns) { a->block = columns > a->share ? columns / a->share : 1; }

static inline int64_t sz_round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
static inline int64_t sz_columns_most(const sz_attention_args *a) { return sz_round_up(a->block * a->share, SZ_PANEL); }
/* How many of its segment's own keys query i sees. */
static inline int64_t sz_own_keys(const sz_segment_row *s, int64_t i, bool causal)
{
    int64_t n = i + s->k_len - s->q_len + 1;
    return !causal || n > s->k_len ? s->k_len : n < 0 ? 0 : n;
}

/* Columns for a block: many, so that a tile of keys is used often once it is loaded, but queries and output stay within 256
 * KiB, and not more than `share_of_work` unless the block got small. */
static inline int64_t sz_columns_aim(int64_t dim, int64_t share_of_work)
{
    int64_t fit = 32768 / dim, n = fit > 512 ? 512 : fit < 128 ? 128 : fit;
    return share_of_work > n ? n : share_of_work < 128 ? 128 : share_of_work;
}
/* Whether queries of a segment differ in the own keys that they see. */
static inline bool sz_is_masked(const sz_attention_args *a, const sz_segment_row *s) { return a->causal && s->q_len > 1; }

/* ---- moving rows ---- */

/* dst[(i * share + j) * ld + d] = scale * t[row + i, col + j * dim + d] for i < rows, j < share, d < dim; t is f32 or bf16.
 * Rows of a packed stream lie pages apart, where the processor does not look ahead by itself. */
static inline void sz_rows_load(float *restrict dst, int64_t ld, const sz_tensor *t, int64_t row, int64_t rows, int64_t col,
                                int64_t share, int64_t dim, float scale)
{
    enum { AHEAD = 6 };
    int64_t cols = sz_cols(t), size = (int64_t)sz_dtype_size(t->dtype);
    const char *at = (const char *)t->data + (row * cols + col) * size;
    for (int64_t i = 0; i < rows; i++, at += cols * size) {
        if (i + AHEAD < rows)
            for (int64_t x = 0; x < share * dim * size; x += 64) __builtin_prefetch(at + AHEAD * cols * size + x);
        for (int64_t j = 0; j < share; j++, dst += ld) {
            if (t->dtype == SZ_F32) {
                const float *restrict src = (const float *)at + j * dim;
                for (int64_t d = 0; d < dim; d++) dst[d] = src[d] * scale;
            } else {
                const uint16_t *restrict src = (const uint16_t *)at + j * dim;
                for (int64_t d = 0; d < dim; d++) dst[d] = sz_from_bf16(src[d]) * scale;
            }
        }
    }
}

/* Scaled queries [first, first + n) of a segment, of the heads that share a group's keys. */
static inline void sz_queries_load(float *dst, int64_t ld, const sz_attention_args *a, const sz_segment_row *s, int64_t group, int64_t first, int64_t n)
{
    sz_rows_load(dst, ld, a->q, s->q_start + first, n, a->q_col + group * a->share * a->dim, a->share, a->dim, a->scale);
}

static inline void sz_rows_store(sz_tensor *t, int64_t row, int64_t col, const float *restrict src, int64_t n)
{
    int64_t at = row * sz_cols(t) + col;
    if (t->dtype == SZ_F32) {
        memcpy(sz_f32(t) + at, src, (size_t)n * 4);
    } else {
        uint16_t *restrict dst = sz_bf16(t) + at;
        for (int64_t i = 0; i < n; i++) dst[i] = sz_to_bf16(src[i]);
    }
}

/* panels [D][32], one after the other, from rows [columns][ld]; columns is a multiple of 4. */
static inline void sz_panels_pack(float *panels, const float *rows, int64_t ld, int64_t columns, int64_t dim)
{
    for (int64_t c = 0; c < columns; c += 4)
        sz_transpose4(panels + c / SZ_PANEL * SZ_PANEL * dim + c % SZ_PANEL, SZ_PANEL, rows + c * ld, ld, (int)dim);
}

/* rows [columns][ld] from panels: the inverse of sz_panels_pack. */
static inline void sz_panels_unpack(float *rows, int64_t ld, const float *panels, int64_t columns, int64_t dim)
{
    for (int64_t c = 0; c < columns; c += 4) {
        const float *panel = panels + c / SZ_PANEL * SZ_PANEL * dim + c % SZ_PANEL;
        int64_t d = 0;
        for (; d + 4 <= dim; d += 4) sz_transpose4(rows + c * ld + d, ld, panel + d * SZ_PANEL, SZ_PANEL, 4);
        for (; d < dim; d++)
            for (int64_t j = 0; j < 4; j++) rows[(c + j) * ld + d] = panel[d * SZ_PANEL + j];
    }
}

/* ---- a block in flight ---- */

/* Buffers of one thread. Columns past n pad the last panel to whole vectors; their results are not used. */
typedef struct {
    int64_t n, width;               /* columns in use, and rounded up to SZ_LANES */
    int64_t dim, ld;                /* D, and the length of a row in rows: D rounded up to SZ_LANES */
    float *q, *o;                   /* panels: scaled queries; output not yet divided by sum */
    float *max, *sum;               /* [columns] running maximum and sum of exponentials */
    float *rows;                    /* [columns][ld] row-major copies on the way in and out */
    float *s;                       /* [SZ_KEYS][32] scores of one panel */
    float *k, *v;                   /* [SZ_KEYS][D] */
    int32_t *limit;                 /* [columns] own keys that a column sees; ascending */
} sz_columns;

static inline size_t sz_columns_bytes(const sz_attention_args *a)
{
    int64_t columns = sz_columns_most(a), dim = a->dim, ld = sz_round_up(dim, 16);
    int64_t floats = columns * (2 * dim + ld + 3) + SZ_KEYS * (SZ_PANEL + 2 * dim) + 9 * 16;
    return (size_t)sz_round_up(4 * floats, 64);
}

static inline float *sz_carve(char **at, int64_t n)
{
    float *p = (float *)*at;
    *at += sz_round_up(4 * n, 64);
    return p;
}

static inline void sz_columns_place(sz_columns *b, char *memory, const sz_attention_args *a)
{
    int64_t columns = sz_columns_most(a), dim = a->dim;
    b->dim = dim;
    b->ld = sz_round_up(dim, 16);
    b->q = sz_carve(&memory, columns * dim);
    b->o = sz_carve(&memory, columns * dim);
    b->rows = sz_carve(&memory, columns * b->ld);
    b->max = sz_carve(&memory, columns);
    b->sum = sz_carve(&memory, columns);
    b->limit = (int32_t *)sz_carve(&memory, columns);
    b->s = sz_carve(&memory, SZ_KEYS * SZ_PANEL);
    b->k = sz_carve(&memory, SZ_KEYS * dim);
    b->v = sz_carve(&memory, SZ_KEYS * dim);
}

/* Starts with n columns whose scaled queries are in rows. */
static inline void sz_columns_start(sz_columns *b, int64_t n)
{
    b->n = n;
    b->width = sz_round_up(n, SZ_LANES);
    memset(b->rows + n * b->ld, 0, (size_t)((b->width - n) * b->ld) * 4);
    sz_panels_pack(b->q, b->rows, b->ld, b->width, b->dim);
    memset(b->o, 0, (size_t)(sz_round_up(n, SZ_PANEL) * b->dim) * 4);
    for (int64_t c = 0; c < b->width; c++) b->max[c] = -INFINITY, b->sum[c] = 0;
}

/* Width of the panel that starts at column c: the last one may be half as wide. */
static inline int64_t sz_panel_width(const sz_columns *b, int64_t c) { return b->width - c < SZ_PANEL ? b->width - c : SZ_PANEL; }

/* Online softmax of the scores s [keys][32] of one panel: s becomes exp(s - max); o and sum are brought to the new maximum. */
static inline void sz_panel_softmax(sz_columns *b, int64_t c, int64_t keys, int64_t width)
{
    float *o = b->o + c * b->dim;
    for (int64_t x = 0; x < width; x += SZ_LANES) {
        float *s = b->s + x;
        sz_vec old = sz_vec_load(b->max + c + x), max = old, sum = { 0 };
        for (int64_t j = 0; j < keys; j++) max = sz_vec_max(max, sz_vec_load(s + j * SZ_PANEL));
        sz_vec base = sz_vec_pick(max == -INFINITY, (sz_vec){ 0 }, max);      /* nothing seen yet: exp(-inf) = 0, not NaN */
        for (int64_t j = 0; j < keys; j++) {
            sz_vec e = sz_vec_exp(sz_vec_load(s + j * SZ_PANEL) - base);
            sz_vec_store(s + j * SZ_PANEL, e);
            sum += e;
        }
        sz_vec shrink = sz_vec_exp(old - base);
        sz_vec_store(b->sum + c + x, sz_vec_load(b->sum + c + x) * shrink + sum);
        sz_vec_store(b->max + c + x, max);
        sz_ivec changed = shrink != 1.0f;
        int any = 0;
        for (int l = 0; l < SZ_LANES; l++) any |= changed[l];
        if (any)
            for (int64_t d = 0; d < b->dim; d++) sz_vec_store(o + d * SZ_PANEL + x, sz_vec_load(o + d * SZ_PANEL + x) * shrink);
    }
}

/* Own keys that each column sees, of a block that holds queries from `first` of a segment; columns that pad get the last one's.
 * Returns the most. */
static inline int64_t sz_columns_limit(sz_columns *b, const sz_attention_args *a, const sz_segment_row *s, int64_t first)
{
    for (int64_t c = 0; c < b->width; c++)
        b->limit[c] = (int32_t)sz_own_keys(s, first + (c < b->n ? c : b->n - 1) / a->share, a->causal);
    return b->limit[b->width - 1];
}

/* The block passes keys [0, to) of a group, whose rows start at key_row. masked: key j is seen by columns with limit > j only. */
static inline void sz_columns_attend(sz_columns *b, const sz_attention_args *a, int64_t group, int64_t key_row, int64_t to, bool masked)
{
    const sz_tensor *k = a->k, *v = a->v;
    int64_t dim = b->dim, k_col = a->k_col + group * dim, v_col = a->v_col + group * dim;
    for (int64_t j0 = 0; j0 < to; j0 += SZ_KEYS) {
        int64_t count = to - j0 < SZ_KEYS ? to - j0 : SZ_KEYS;
        const float *kt = b->k, *vt = b->v;
        int64_t ldk = dim, ldv = dim;
        if (k->dtype == SZ_F32 && b->n <= SZ_PANEL) {      /* each key is used once: read it where it lies */
            ldk = sz_cols(k);
            ldv = sz_cols(v);
            kt = sz_f32(k) + (key_row + j0) * ldk + k_col;
            vt = sz_f32(v) + (key_row + j0) * ldv + v_col;
        } else {
            sz_rows_load(b->k, dim, k, key_row + j0, count, k_col, 1, dim, 1);
            sz_rows_load(b->v, dim, v, key_row + j0, count, v_col, 1, dim, 1);
        }
        for (int64_t c = 0; c < b->n; c += SZ_PANEL) {
            int64_t width = sz_panel_width(b, c), seen = count;
            if (masked) {
                int64_t last = b->limit[c + width - 1] - j0;
                seen = last < count ? last : count;
                if (seen <= 0) continue;
            }
            sz_tile(seen, width, dim, kt, ldk, 1, b->q + c * dim, SZ_PANEL, b->s, SZ_PANEL, 0);
            if (masked && b->limit[c] < j0 + seen)
                for (int64_t j = 0; j < seen; j++)
                    for (int64_t x = 0; x < width; x += SZ_LANES) {
                        sz_ivec visible = *(const sz_ivec_any *)(b->limit + c + x) > (int32_t)(j0 + j);
                        float *s = b->s + j * SZ_PANEL + x;
                        sz_vec_store(s, sz_vec_pick(visible, sz_vec_load(s), sz_vec_all(-INFINITY)));
                    }
            sz_panel_softmax(b, c, seen, width);
            sz_tile(dim, width, seen, vt, 1, ldv, b->s, SZ_PANEL, b->o + c * dim, SZ_PANEL, 1);
        }
    }
}

/* The block, holding queries from `first` of a segment, passes the segment's own keys. */
static inline void sz_columns_attend_own(sz_columns *b, const sz_attention_args *a, const sz_segment_row *s, int64_t group, int64_t first)
{
    int64_t own = sz_columns_limit(b, a, s, first);
    sz_columns_attend(b, a, group, s->k_start, own, sz_is_masked(a, s));
}

/* Output rows [n][ld], divided by their sums (0 where no key was seen), into rows. */
static inline void sz_columns_finish(sz_columns *b)
{
    sz_panels_unpack(b->rows, b->ld, b->o, b->width, b->dim);
    for (int64_t c = 0; c < b->n; c++) {
        float inverse = b->sum[c] == 0 ? 0 : 1 / b->sum[c], *row = b->rows + c * b->ld;
        for (int64_t d = 0; d < b->dim; d++) row[d] *= inverse;
    }
}

/* Finished rows of a block that holds queries from `first` of a segment, into out [., H*D]. */
static inline void sz_queries_store(const sz_columns *b, const sz_attention_args *a, const sz_segment_row *s, int64_t group, int64_t first, sz_tensor *out)
{
    for (int64_t i = 0; i < b->n; i++)
        sz_rows_store(out, s->q_start + first + i / a->share, (group * a->share + i % a->share) * a->dim, b->rows + i * b->ld, a->dim);
}

/* Queries of one segment from `first` on, as many as a block holds, over all keys that they see. */
static inline void sz_columns_run(sz_columns *b, const sz_attention_args *a, const sz_segment_row *s, int64_t group, int64_t first, sz_tensor *out)
{
    int64_t n = s->q_len - first < a->block ? s->q_len - first : a->block;
    sz_queries_load(b->rows, b->ld, a, s, group, first, n);
    sz_columns_start(b, n * a->share);
    sz_columns_attend(b, a, group, s->p_start, s->p_len, false);
    sz_columns_attend_own(b, a, s, group, first);
    sz_columns_finish(b);
    sz_queries_store(b, a, s, group, first, out);
}

#endif
