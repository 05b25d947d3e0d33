/* attention_tile.h - what the attention kernels share: blocks of query columns that attend to tiles
 * of keys.
 *
 * A column is one query of one head: column c of a block is head (first_head + c % share) of the
 * block's query c / share, where share = H / G query heads see the same keys. Columns are stored in
 * panels of SZ_PANEL, side by side in vectors: queries [D][32], scores [keys][32], output [D][32].
 * So the scores are K q, their maxima and sums are plain vector arithmetic, and neither K nor V is
 * ever transposed, except for AMX (attention_amx.h). Where the processor multiplies bf16 well,
 * queries, keys, values and exponentials are bf16 (attention_bf16.h). A column's arithmetic does
 * not depend on its neighbours.
 * Leaves out: threads, and which thread computes which block.
 */
#ifndef SZ_ATTENTION_TILE_H
#define SZ_ATTENTION_TILE_H

#include "attention_amx.h"
#include "attention_args.h"
#include "attention_pairs.h"
#include "attention_panel.h"
#include "attention_product.h"
#include "gemm.h"
#include "vecmath.h"
#include <math.h>

/* ---- moving rows ---- */

/* dst[(i * share + j) * ld + d] = scale * t[row + i, col + j * dim + d] for i < rows, j < share,
 * d < dim; t is f32 or bf16. The rows of a packed stream are pages apart, where the processor does
 * not prefetch by itself. */
static inline void sz_rows_load(float *restrict dst, int64_t ld, const sz_tensor *t, int64_t row,
                                int64_t rows, int64_t col, int64_t share, int64_t dim, float scale)
{
    enum { PREFETCH_ROWS = 6 };
    int64_t cols = sz_cols(t);
    int64_t size = (int64_t)sz_dtype_size(t->dtype);
    const char *src_row = (const char *)t->data + (row * cols + col) * size;

    for (int64_t i = 0; i < rows; i++, src_row += cols * size) {
        /* Fetch a later row. */
        if (i + PREFETCH_ROWS < rows)
            for (int64_t x = 0; x < share * dim * size; x += 64)
                __builtin_prefetch(src_row + PREFETCH_ROWS * cols * size + x);

        /* The heads of this row, each into a row of its own. */
        for (int64_t j = 0; j < share; j++, dst += ld) {
            if (t->dtype == SZ_F32) {
                const float *restrict src = (const float *)src_row + j * dim;
                for (int64_t d = 0; d < dim; d++) dst[d] = src[d] * scale;
            } else {
                const uint16_t *restrict src = (const uint16_t *)src_row + j * dim;
                for (int64_t d = 0; d < dim; d++) dst[d] = sz_from_bf16(src[d]) * scale;
            }
        }
    }
}

/* t[row, col + i] = src[i] for i < n. */
static inline void sz_rows_store(sz_tensor *t, int64_t row, int64_t col, const float *restrict src,
                                 int64_t n)
{
    int64_t first = row * sz_cols(t) + col;
    if (t->dtype == SZ_F32) {
        memcpy(sz_f32(t) + first, src, (size_t)n * 4);
    } else {
        uint16_t *restrict dst = sz_bf16(t) + first;
        for (int64_t i = 0; i < n; i++) dst[i] = sz_to_bf16(src[i]);
    }
}

/* Panels, column c times factor[c], to the heads of rows of t: t[row + i, col + j * dim + d] for
 * i < rows, j < share. buffer: rows of ld elements, for bf16. */
static inline void sz_panels_store(const float *panels, sz_tensor *t, int64_t row, int64_t rows,
                                   int64_t col, int64_t share, int64_t dim, const float *factor,
                                   float *buffer, int64_t ld)
{
    int64_t cols = sz_cols(t);
    if (t->dtype == SZ_F32) {
        float *base = sz_f32(t) + row * cols + col;
        sz_panels_unpack(&(sz_column_rows){ base, cols, share, dim }, rows * share, panels, dim,
                         factor);
        return;
    }
    sz_panels_unpack(&(sz_column_rows){ buffer, ld, 1, dim }, rows * share, panels, dim, factor);
    for (int64_t c = 0; c < rows * share; c++)
        sz_rows_store(t, row + c / share, col + c % share * dim, buffer + c * ld, dim);
}

/* Lets columns [col, col + width) of some rows of t be fetched. */
static inline void sz_ahead_rows(sz_ahead *ahead, const sz_tensor *t, int64_t row, int64_t rows,
                                 int64_t col, int64_t width)
{
    const int64_t size = (int64_t)sz_dtype_size(t->dtype);
    const int64_t cols = sz_cols(t);
    const char *first = (const char *)t->data + (row * cols + col) * size;
    sz_ahead_add(ahead, first, rows, width * size, cols * size);
}

/* ---- a block of columns ---- */

/* Buffers of one thread. Columns from n on pad the last panel to whole vectors; their results are
 * not used. */
typedef struct {
    int64_t n, width;        /* columns in use, and the same rounded up to SZ_LANES */
    int64_t dim;             /* D */
    int64_t ld;              /* length of a row in rows: D rounded up to SZ_LANES */
    float *q, *o;            /* panels: queries, scaled in f32; output not yet divided by sum */
    float q_scale;           /* by which queries are multiplied when they are loaded */
    float s_scale;           /* by which the softmax multiplies scores */
    float max_unit;          /* what 1 in max is worth: ln 2 in bf16, else 1 */
    float *max, *sum;        /* [columns] running maximum and sum of exponentials */
    float *exact_sum;        /* [columns] the same before bf16 rounds them; else sum itself */
    float *factor;           /* [columns] by which the output is multiplied at the end */
    float *rows;             /* [columns][ld] row-major copies where they are needed */
    const uint16_t **source; /* [columns] for bf16: where each has its D numbers */
    float *s;                /* [SZ_KEYS][32] scores of one panel */
    float *k, *v;            /* [SZ_KEYS][D]; for bf16 left operands */
    int32_t *limit;          /* [columns] own keys that a column sees; ascending */
    sz_ahead ahead;          /* what is fetched while this block is computed */
    bool fetch_keys;         /* fetch the next tile of keys: they do not stay in the cache */
    int32_t *fresh;          /* [panels] whether the panel has seen no key yet: o is not set */
    bool bf16;               /* q, k, v and p are operands in bf16 (attention_bf16.h) */
    float *s2;               /* for bf16: the next panel's scores, */
    uint16_t *p;             /* and [SZ_KEYS][32] softmax of one panel */
} sz_columns;

/* Whether products are those of attention_bf16.h. */
static inline bool sz_attends_in_bf16(const sz_attention_args *a)
{
#ifdef SZ_HAS_WORDS
    const bool fits = a->dim >= 16 && a->dim % SZ_HEAD_STEP == 0 && a->scale > 0;
    return a->q->dtype == SZ_BF16 && fits && sz_gemm_multiplies_bf16();
#else
    (void)a;
    return false;
#endif
}

/* Bytes that sz_columns_place needs. */
static inline size_t sz_columns_bytes(const sz_attention_args *a)
{
    int64_t columns = sz_columns_most(a);
    int64_t ld = sz_round_up(a->dim, 16);
    int64_t per_column = 2 * a->dim + ld + 5 + (int64_t)sizeof(uint16_t *) / 4;
    int64_t per_key = 2 * SZ_PANEL + 2 * a->dim + SZ_PANEL / 2;
    int64_t panels = columns / SZ_PANEL;
    int64_t floats = columns * per_column + panels + SZ_KEYS * per_key + 15 * 16;
    return (size_t)sz_round_up(4 * floats, 64);
}

/* Takes n floats from *memory, in whole cache lines. */
static inline float *sz_carve(char **memory, int64_t n)
{
    float *p = (float *)*memory;
    *memory += sz_round_up(4 * n, 64);
    return p;
}

/* Lays the buffers out in memory. */
static inline void sz_columns_place(sz_columns *b, char *memory, const sz_attention_args *a)
{
    int64_t columns = sz_columns_most(a);
    int64_t dim = a->dim;
    sz_ahead_clear(&b->ahead);
    b->fetch_keys = true;
    b->bf16 = sz_attends_in_bf16(a);
    b->q_scale = b->bf16 ? 1 : a->scale;
    b->s_scale = b->bf16 ? a->scale : 1;
    b->max_unit = b->bf16 ? 0.693147181f : 1;
    b->dim = dim;
    b->ld = sz_round_up(dim, 16);
    b->q = sz_carve(&memory, columns * dim);
    b->o = sz_carve(&memory, columns * dim);
    b->rows = sz_carve(&memory, columns * b->ld);
    b->source = (const uint16_t **)sz_carve(&memory, columns * (int64_t)sizeof *b->source / 4);
    b->max = sz_carve(&memory, columns);
    b->sum = sz_carve(&memory, columns);
    b->exact_sum = b->bf16 ? sz_carve(&memory, columns) : b->sum;
    b->factor = sz_carve(&memory, columns);
    b->limit = (int32_t *)sz_carve(&memory, columns);
    b->fresh = (int32_t *)sz_carve(&memory, columns / SZ_PANEL);
    b->s = sz_carve(&memory, SZ_KEYS * SZ_PANEL);
    b->k = sz_carve(&memory, SZ_KEYS * dim);
    b->v = sz_carve(&memory, SZ_KEYS * dim);
    b->s2 = sz_carve(&memory, SZ_KEYS * SZ_PANEL);
    b->p = (uint16_t *)sz_carve(&memory, SZ_KEYS * SZ_PANEL / 2);
}

/* Takes rows of t, whose heads share a group's keys, as columns from number `from` on:
 * t[row + i, col + j * dim + d] for i < rows, j < share. In bf16 their places are kept until
 * sz_columns_pack. */
static inline void sz_columns_take(sz_columns *b, int64_t from, const sz_tensor *t, int64_t row,
                                   int64_t rows, int64_t col, int64_t share)
{
    if (!b->bf16) {
        sz_rows_load(b->rows + from * b->ld, b->ld, t, row, rows, col, share, b->dim, b->q_scale);
        return;
    }
    const uint16_t *first = sz_bf16(t) + row * sz_cols(t) + col;
    for (int64_t i = 0; i < rows; i++, first += sz_cols(t))
        for (int64_t j = 0; j < share; j++) b->source[from++] = first + j * b->dim;
}

/* Sets q to the queries of n columns, which have been taken. */
static inline void sz_columns_pack(sz_columns *b, int64_t n)
{
#ifdef SZ_HAS_WORDS
    if (b->bf16) {
        sz_bf16_pack_columns((uint16_t *)b->q, b->source, n, b->dim);
        return;
    }
#endif
    sz_panels_pack(b->q, &(sz_column_rows){ b->rows, b->ld, 1, b->dim }, n, b->dim, 1);
}

/* Sets q to the queries that sz_columns_take would take. */
static inline void sz_columns_load(sz_columns *b, const sz_tensor *t, int64_t row, int64_t rows,
                                   int64_t col, int64_t share)
{
    if (t->dtype == SZ_F32) {
        int64_t cols = sz_cols(t);
        float *base = sz_f32(t) + row * cols + col;
        sz_panels_pack(b->q, &(sz_column_rows){ base, cols, share, b->dim }, rows * share, b->dim,
                       b->q_scale);
    } else {
        sz_columns_take(b, 0, t, row, rows, col, share);
        sz_columns_pack(b, rows * share);
    }
}

/* Starts a block of n columns whose queries are in q. */
static inline void sz_columns_start(sz_columns *b, int64_t n)
{
    b->n = n;
    b->width = sz_round_up(n, SZ_LANES);
    for (int64_t c = 0; c < b->width; c++) {
        b->max[c] = -INFINITY;
        b->sum[c] = 0;
        b->exact_sum[c] = 0;
    }
    for (int64_t p = 0; p * SZ_PANEL < n; p++) b->fresh[p] = 1;
}

/* Width of the panel that starts at column c: the last one may be half as wide. */
static inline int64_t sz_panel_width(const sz_columns *b, int64_t c)
{
    return b->width - c < SZ_PANEL ? b->width - c : SZ_PANEL;
}

/* Multiplies a vector of columns of the output by shrink, where a maximum has changed. */
static inline void sz_panel_shrink(float *o, int64_t dim, sz_vec shrink)
{
    if (!sz_mask_any(shrink != 1.0f)) return;
    for (int64_t d = 0; d < dim; d++, o += SZ_PANEL) sz_vec_store(o, sz_vec_load(o) * shrink);
}

/* Online softmax of the scores s [keys][32] of one panel: s becomes exp(s - max); o and sum are
 * rescaled to the new maximum. */
static inline void sz_panel_softmax(sz_columns *b, int64_t c, int64_t keys, int64_t width)
{
    float *o = b->o + c * b->dim;
    for (int64_t x = 0; x < width; x += SZ_LANES) {
        /* The new maximum. If no key has been seen yet, subtract 0: exp(-inf) = 0, not NaN. */
        float *s = b->s + x;
        sz_vec old_max = sz_vec_load(b->max + c + x);
        sz_vec max = old_max;
        for (int64_t j = 0; j < keys; j++) max = sz_vec_max(max, sz_vec_load(s + j * SZ_PANEL));
        sz_vec base = sz_vec_pick(max == -INFINITY, (sz_vec){ 0 }, max);

        /* The exponentials and their sum. */
        sz_vec sum = { 0 };
        for (int64_t j = 0; j < keys; j++) {
            sz_vec e = sz_vec_exp(sz_vec_load(s + j * SZ_PANEL) - base);
            sz_vec_store(s + j * SZ_PANEL, e);
            sum += e;
        }
        sz_vec shrink = sz_vec_exp(old_max - base);
        sz_vec_store(b->sum + c + x, sz_vec_load(b->sum + c + x) * shrink + sum);
        sz_vec_store(b->max + c + x, max);

        if (!b->fresh[c / SZ_PANEL]) sz_panel_shrink(o + x, b->dim, shrink);
    }
}

/* Sets how many own keys each column sees, for a block whose queries start with number `first` of a
 * segment; padding columns get the limit of the last one. Returns the largest. */
static inline int64_t sz_columns_limit(sz_columns *b, const sz_attention_args *a,
                                       const sz_segment_row *s, int64_t first)
{
    for (int64_t c = 0; c < b->width; c++) {
        int64_t column = c < b->n ? c : b->n - 1;
        b->limit[c] = (int32_t)sz_own_keys(s, first + column / a->share, a->causal);
    }
    return b->limit[b->width - 1];
}

/* Sets the scores of a panel to -inf where a column does not see key j0 + j. */
static inline void sz_panel_mask(const sz_columns *b, float *s, int64_t c, int64_t j0, int64_t keys,
                                 int64_t width)
{
    for (int64_t j = 0; j < keys; j++)
        for (int64_t x = 0; x < width; x += SZ_LANES) {
            sz_ivec visible = *(const sz_ivec_any *)(b->limit + c + x) > (int32_t)(j0 + j);
            float *to = s + j * SZ_PANEL + x;
            sz_vec_store(to, sz_vec_pick(visible, sz_vec_load(to), sz_vec_all(-INFINITY)));
        }
}

/* How many of the keys [j0, j0 + count) some column of the panel sees; not positive if none. */
static inline int64_t sz_panel_sees(const sz_columns *b, int64_t c, int64_t width, int64_t j0,
                                    int64_t count)
{
    int64_t last = b->limit[c + width - 1] - j0;
    return last < count ? last : count;
}

/* Lets the tile of keys that begins with key number `next` be fetched while this one is used. */
static inline void sz_columns_fetch(sz_columns *b, const sz_attention_args *a, int64_t group,
                                    int64_t key_row, int64_t next, int64_t key_count)
{
    if (!b->fetch_keys || next >= key_count) return;
    const int64_t rows = sz_min64(key_count - next, SZ_KEYS);
    const int64_t first = group * b->dim;
    sz_ahead_clear(&b->ahead);
    sz_ahead_rows(&b->ahead, a->v, key_row + next, rows, a->v_col + first, b->dim);
    sz_ahead_rows(&b->ahead, a->k, key_row + next, rows, a->k_col + first, b->dim);
}

#ifdef SZ_HAS_WORDS
/* A tile of keys, and how the block's columns see it. */
typedef struct {
    sz_bf16_keys keys;
    int64_t first, count; /* its first key's number, and how many there are */
    bool masked;
} sz_seen_keys;

/* How many of a tile's keys some column of the panel at c sees. */
static inline int64_t sz_keys_seen(const sz_columns *b, const sz_seen_keys *t, int64_t c)
{
    if (!t->masked) return t->count;
    return sz_panel_sees(b, c, sz_panel_width(b, c), t->first, t->count);
}

/* Scores of the panel at c into s. */
static inline void sz_bf16_panel_scores(sz_columns *b, const sz_seen_keys *t, int64_t c, float *s)
{
    const uint16_t *q = (const uint16_t *)b->q + c * sz_bf16_inner(b->dim);
    sz_bf16_scores(s, &t->keys, q, sz_keys_seen(b, t, c), sz_min64(b->n - c, SZ_PANEL), b->dim,
                   &b->ahead);
}

/* The panel's softmax into p; its earlier output is rescaled. */
static inline void sz_bf16_panel_softmax(sz_columns *b, const sz_seen_keys *t, int64_t c, float *s)
{
    const int64_t width = sz_panel_width(b, c);
    const int64_t seen = sz_keys_seen(b, t, c);
    if (t->masked && b->limit[c] < t->first + seen) sz_panel_mask(b, s, c, t->first, seen, width);
    for (int64_t x = 0; x < width; x += SZ_WORDS) {
        uint16_t *p = b->p + x / SZ_WORDS * SZ_RIGHT_HALF;
        const __m512 shrink = sz_bf16_softmax(p, s + x, seen, b->s_scale, b->max + c + x,
                                              b->sum + c + x, b->exact_sum + c + x);
        if (!b->fresh[c / SZ_PANEL]) sz_panel_shrink(b->o + c * b->dim + x, b->dim, (sz_vec)shrink);
    }
}

/* Adds the panel's output. */
static inline void sz_bf16_panel_output(sz_columns *b, const sz_seen_keys *t, int64_t c)
{
    int32_t *fresh = b->fresh + c / SZ_PANEL;
    sz_bf16_output(b->o + c * b->dim, &t->keys, b->p, sz_keys_seen(b, t, c),
                   sz_min64(b->n - c, SZ_PANEL), b->dim, !*fresh, &b->ahead);
    *fresh = 0;
}

/* sz_columns_attend in bf16. The next panel's scores are computed between a panel's softmax and its
 * output: AMX is slow to load a tile that was just written. */
static inline void sz_columns_attend_bf16(sz_columns *b, const sz_attention_args *a, int64_t group,
                                          int64_t key_row, int64_t key_count, bool masked)
{
    const int64_t dim = b->dim;
    const int64_t ldk = sz_cols(a->k);
    const int64_t ldv = sz_cols(a->v);
    const uint16_t *k = sz_bf16(a->k) + key_row * ldk + a->k_col + group * dim;
    const uint16_t *v = sz_bf16(a->v) + key_row * ldv + a->v_col + group * dim;
    float *s = b->s;
    float *next_s = b->s2;

    sz_bf16_begin();
    for (int64_t j0 = 0; j0 < key_count; j0 += SZ_KEYS) {
        const int64_t count = sz_min64(key_count - j0, SZ_KEYS);
        const sz_bf16_rows rows = { k + j0 * ldk, v + j0 * ldv, ldk, ldv };
        const sz_seen_keys t = {
            .keys = sz_bf16_load((uint16_t *)b->k, (uint16_t *)b->v, &rows, count, dim, b->n),
            .first = j0,
            .count = count,
            .masked = masked,
        };
        sz_columns_fetch(b, a, group, key_row, j0 + SZ_KEYS, key_count);

        /* From the first panel that sees any of them on. */
        int64_t c = 0;
        while (c < b->n && sz_keys_seen(b, &t, c) <= 0) c += SZ_PANEL;
        if (c < b->n) sz_bf16_panel_scores(b, &t, c, s);
        for (; c < b->n; c += SZ_PANEL) {
            sz_bf16_panel_softmax(b, &t, c, s);
            if (c + SZ_PANEL < b->n) sz_bf16_panel_scores(b, &t, c + SZ_PANEL, next_s);
            sz_bf16_panel_output(b, &t, c);
            float *done = s;
            s = next_s;
            next_s = done;
        }
    }
    sz_bf16_end();
}
#endif

/* The block attends to the first `key_count` keys of a group, whose rows start at key_row. masked:
 * only the columns with limit > j see key j. */
static inline void sz_columns_attend(sz_columns *b, const sz_attention_args *a, int64_t group,
                                     int64_t key_row, int64_t key_count, bool masked)
{
    const sz_tensor *k = a->k;
    const sz_tensor *v = a->v;
    int64_t dim = b->dim;
    int64_t k_col = a->k_col + group * dim;
    int64_t v_col = a->v_col + group * dim;
#ifdef SZ_HAS_WORDS
    if (b->bf16) {
        sz_columns_attend_bf16(b, a, group, key_row, key_count, masked);
        return;
    }
#endif

    for (int64_t j0 = 0; j0 < key_count; j0 += SZ_KEYS) {
        int64_t count = key_count - j0 < SZ_KEYS ? key_count - j0 : SZ_KEYS;
        const float *k_tile = b->k;
        const float *v_tile = b->v;
        int64_t ldk = dim;
        int64_t ldv = dim;

        /* The tile of keys: copied, or read in place if it is used only once or twice. */
        if (k->dtype == SZ_F32 && b->n <= SZ_IN_PLACE) {
            ldk = sz_cols(k);
            ldv = sz_cols(v);
            k_tile = sz_f32(k) + (key_row + j0) * ldk + k_col;
            v_tile = sz_f32(v) + (key_row + j0) * ldv + v_col;
        } else {
            sz_rows_load(b->k, dim, k, key_row + j0, count, k_col, 1, dim, 1);
            sz_rows_load(b->v, dim, v, key_row + j0, count, v_col, 1, dim, 1);
        }

        sz_columns_fetch(b, a, group, key_row, j0 + SZ_KEYS, key_count);

        /* Scores, softmax and output of each panel. */
        for (int64_t c = 0; c < b->n; c += SZ_PANEL) {
            int64_t width = sz_panel_width(b, c);
            int64_t used = sz_min64(b->n - c, SZ_PANEL);
            int64_t seen = count;
            float *q = b->q + c * dim;
            float *o = b->o + c * dim;
            if (masked) {
                seen = sz_panel_sees(b, c, width, j0, count);
                if (seen <= 0) continue;
            }
            sz_tile_few(seen, used, dim, k_tile, ldk, 1, q, SZ_PANEL, b->s, SZ_PANEL, SZ_SET,
                        &b->ahead);
            if (masked && b->limit[c] < j0 + seen) sz_panel_mask(b, b->s, c, j0, seen, width);
            sz_panel_softmax(b, c, seen, width);
            int32_t *fresh = b->fresh + c / SZ_PANEL;
            sz_tile_few(dim, used, seen, v_tile, 1, ldv, b->s, SZ_PANEL, o, SZ_PANEL,
                        *fresh ? SZ_SET : SZ_CHAIN, &b->ahead);
            *fresh = 0;
        }
    }
}

/* The block, whose queries start with number `first` of a segment, attends to the segment's own
 * keys. */
static inline void sz_columns_attend_own(sz_columns *b, const sz_attention_args *a,
                                         const sz_segment_row *s, int64_t group, int64_t first)
{
    int64_t own = sz_columns_limit(b, a, s, first);
    sz_columns_attend(b, a, group, s->k_start, own, sz_is_masked(a, s));
}

/* Sets factor to what the output of each column is multiplied by: one over its sum, or 0 where no
 * key was seen. From here on max is a natural logarithm. */
static inline void sz_columns_factors(sz_columns *b)
{
    for (int64_t c = 0; c < b->width; c++) {
        b->factor[c] = b->sum[c] == 0 ? 0 : 1 / b->sum[c];
        b->max[c] *= b->max_unit;
    }
    for (int64_t p = 0; p * SZ_PANEL < b->n; p++)
        if (b->fresh[p]) memset(b->o + p * SZ_PANEL * b->dim, 0, (size_t)(SZ_PANEL * b->dim) * 4);
}

/* Computes the output of one block: queries of a segment from number `first` on, over all keys that
 * they see. */
static inline void sz_columns_run(sz_columns *b, const sz_attention_args *a,
                                  const sz_segment_row *s, int64_t group, int64_t first,
                                  sz_tensor *out)
{
    int64_t n = s->q_len - first < a->block ? s->q_len - first : a->block;
    int64_t row = s->q_start + first;
    int64_t col = group * a->share * a->dim;

    sz_columns_load(b, a->q, row, n, a->q_col + col, a->share);
    sz_columns_start(b, n * a->share);
    sz_columns_attend(b, a, group, s->p_start, s->p_len, false);
    sz_columns_attend_own(b, a, s, group, first);
    sz_columns_factors(b);
    sz_panels_store(b->o, out, row, n, col, a->share, a->dim, b->factor, b->rows, b->ld);
}

#endif
