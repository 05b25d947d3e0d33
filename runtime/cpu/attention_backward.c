/* attention_backward.c - the gradient of attention.c's forward pass.
 *
 * The work is divided as attention_plan.h describes. A task (chunk, key head) passes its query
 * blocks once, with 5 products per tile, and adds up dK and dV in f32. Keys that one chunk alone
 * sees are then done; for the others the sums of the chunks are added at the end, in the order of
 * the chunks. So results depend on the thread count through that order alone, and never on which
 * thread did what.
 *
 * With AVX512-BF16 (attention_pairs.h) all five products are of bf16, and P and dS are rounded, as
 * PyTorch does. Queries are not scaled then: the scores are, and dK when it is stored.
 * Leaves out: what attention.c leaves out.
 */
#include "attention_plan.h"
#include <omp.h>

enum {
    PARALLEL_FROM = 1 << 20, /* multiply-adds below which one thread is faster */
    BACKWARD_COLUMNS = 128   /* fixed: the order of the sums of dK and dV depends on it */
};

/* Buffers of one thread. */
typedef struct {
    sz_columns b;            /* q; o holds dQ, rows scaled queries, max lse, sum delta */
    float *dout, *dout_rows; /* laid out as b.q, b.rows */
    float *out_rows;         /* f32 rows [columns][ld] */
    float *p, *ds;           /* P and dS of a tile of keys [SZ_KEYS][lp]; with pairs, bf16 */
    int64_t lp;
    /* Products are of words of bf16. Then b.rows and dout_rows end as words of two columns, without
     * scale: [(n + 1) / 2][D]. */
    bool pairs;
    float *k, *v;   /* [keys of the chunk][D]; with pairs, bf16 */
    float *dk, *dv; /* [keys of the chunk][ld] */
    bool many_keys; /* they do not stay in the second-level cache */
} backward_buffers;

/* P and dS of the panel at column c from scores s and dP: s becomes exp(s - lse), ds becomes s *
 * (ds - delta); 0 where a column does not see a key. */
static void panel_gradient(const backward_buffers *w, int64_t c, int64_t j0, int64_t keys,
                           int64_t width, bool masked)
{
    const sz_columns *b = &w->b;
    for (int64_t x = c; x < c + width; x += SZ_LANES) {
        sz_vec lse = sz_vec_load(b->max + x);
        sz_vec delta = sz_vec_load(b->sum + x);
        sz_ivec limit = *(const sz_ivec_any *)(b->limit + x);
        for (int64_t j = 0; j < keys; j++) {
            float *s = w->p + j * w->lp + x;
            float *d = w->ds + j * w->lp + x;
            sz_vec e = sz_vec_exp(sz_vec_load(s) - lse);
            if (masked) e = sz_vec_pick(limit > (int32_t)(j0 + j), e, (sz_vec){ 0 });
            sz_vec_store(s, e);
            sz_vec_store(d, e * (sz_vec_load(d) - delta));
        }
    }
}

#ifdef SZ_HAS_PAIRS
/* The same in bf16: scores and dP are in b.s and b.s2. P and dS become rows of bf16, and in b.p dS
 * becomes words of two keys. After an odd number of keys comes a key of 0. */
static void pairs_gradient(const backward_buffers *w, int64_t c, int64_t j0, int64_t keys,
                           int64_t width, bool masked)
{
    const sz_columns *b = &w->b;
    for (int64_t x = 0; x < width; x += SZ_LANES) {
        const sz_vec lse = sz_vec_load(b->max + c + x);
        const sz_vec delta = sz_vec_load(b->sum + c + x);
        const sz_ivec limit = *(const sz_ivec_any *)(b->limit + c + x);
        for (int64_t j = 0; j < keys; j += 2) {
            sz_vec e[2] = { { 0 } };
            sz_vec d[2] = { { 0 } };
            for (int i = 0; i < 2 && j + i < keys; i++) {
                const int64_t at = (j + i) * SZ_PANEL + x;
                e[i] = sz_vec_exp(sz_vec_load(b->s + at) * b->s_scale - lse);
                if (masked) e[i] = sz_vec_pick(limit > (int32_t)(j0 + j + i), e[i], (sz_vec){ 0 });
                d[i] = e[i] * (sz_vec_load(b->s2 + at) - delta);
            }
            const int64_t at = j * w->lp + c + x;
            const __m512i ds = sz_pairs_round_rows(d[0], d[1]);
            sz_pairs_store_rows((uint16_t *)w->p + at, w->lp, sz_pairs_round_rows(e[0], e[1]));
            sz_pairs_store_rows((uint16_t *)w->ds + at, w->lp, ds);
            uint16_t *words = b->p + j / 2 * SZ_RIGHT_ROW + x / SZ_WORDS * SZ_RIGHT_HALF;
            _mm512_storeu_si512(words, sz_pairs_weave(ds));
        }
    }
}

/* Scores, dP, P, dS and dQ of the panel at column c, for `keys` keys from `key` on of the chunk. */
static void pairs_panel(backward_buffers *w, int64_t key, int64_t c, int64_t j0, int64_t keys,
                        bool masked)
{
    sz_columns *b = &w->b;
    const int64_t dim = b->dim;
    const int64_t used = sz_min64(b->n - c, SZ_PANEL);
    const int64_t words = dim / 2;
    const uint16_t *k = (const uint16_t *)w->k + key * dim;
    const uint16_t *v = (const uint16_t *)w->v + key * dim;
    const int64_t panel = c * sz_bf16_inner(dim);
    const uint16_t *q = (const uint16_t *)b->q + panel;
    const uint16_t *dout = (const uint16_t *)w->dout + panel;
    sz_ahead *ah = &b->ahead;
    sz_tile_pairs(keys, used, words, k, words, 1, q, SZ_PANEL, b->s, SZ_PANEL, SZ_SET, ah);
    sz_tile_pairs(keys, used, words, v, words, 1, dout, SZ_PANEL, b->s2, SZ_PANEL, SZ_SET, ah);
    pairs_gradient(w, c, j0, keys, sz_panel_width(b, c), masked);
    sz_tile_pairs(dim, used, (keys + 1) / 2, b->v, 1, dim, b->p, SZ_PANEL, b->o + c * dim, SZ_PANEL,
                  SZ_CHAIN, ah);
}

/* add_columns with words of two columns. Where D is no multiple of SZ_LANES, the last lanes read
 * the next row of words. They change what pads dK and dV alone. */
static void pairs_add_columns(backward_buffers *w, int64_t key, int64_t keys, int64_t from,
                              int64_t to)
{
    const sz_columns *b = &w->b;
    const int64_t dim = b->dim;
    const int64_t ld = b->ld;
    const int64_t pairs = (to - from + 1) / 2;
    const uint16_t *p = (const uint16_t *)w->p + from;
    const uint16_t *ds = (const uint16_t *)w->ds + from;
    const uint16_t *dout = (const uint16_t *)w->dout_rows + from * dim;
    const uint16_t *q = (const uint16_t *)b->rows + from * dim;
    sz_tile_pairs(keys, dim, pairs, p, w->lp / 2, 1, dout, dim, w->dv + key * ld, ld, SZ_CHAIN,
                  &w->b.ahead);
    sz_tile_pairs(keys, dim, pairs, ds, w->lp / 2, 1, q, dim, w->dk + key * ld, ld, SZ_CHAIN,
                  &w->b.ahead);
}

/* Takes t's rows as in sz_columns_take: as panels into `panels`, and in words of two columns into
 * `words`. */
static void pairs_take(backward_buffers *w, const sz_tensor *t, int64_t row, int64_t rows,
                       int64_t col, int64_t share, float *panels, float *words)
{
    sz_columns *b = &w->b;
    sz_columns_take(b, 0, t, row, rows, col, share);
    sz_bf16_pack_columns((uint16_t *)panels, b->source, b->n, b->dim);
    uint16_t *to = (uint16_t *)words;
    for (int64_t c = 0; c < b->n; c += 2, to += 2 * b->dim)
        sz_pairs_pack_two(to, b->source[c], c + 1 < b->n ? b->source[c + 1] : NULL, b->dim);
}
#endif

/* Lets w fetch `count` keys from `key` on of a chunk with many, which do not all stay in the
 * second-level cache. */
static void fetch_keys(backward_buffers *w, int64_t key, int64_t count)
{
    const int64_t wide = w->b.ld * 4;
    const int64_t narrow = w->b.dim * (w->pairs ? 2 : 4);
    sz_ahead_clear(&w->b.ahead);
    sz_ahead_add(&w->b.ahead, w->dk + key * w->b.ld, 1, count * wide, 0);
    sz_ahead_add(&w->b.ahead, w->dv + key * w->b.ld, 1, count * wide, 0);
    sz_ahead_add(&w->b.ahead, (const char *)w->v + key * narrow, 1, count * narrow, 0);
    sz_ahead_add(&w->b.ahead, (const char *)w->k + key * narrow, 1, count * narrow, 0);
}

/* dV += P dout^T and dK += dS q^T: columns [from, to), `keys` keys from `key` on of the chunk. */
static void add_columns(backward_buffers *w, int64_t key, int64_t keys, int64_t from, int64_t to)
{
    const sz_columns *b = &w->b;
    const int64_t ld = b->ld;
    if (keys <= 0 || from == to) return;
#ifdef SZ_HAS_PAIRS
    if (w->pairs) {
        pairs_add_columns(w, key, keys, from, to);
        return;
    }
#endif
    sz_tile(keys, b->dim, to - from, w->p + from, w->lp, 1, w->dout_rows + from * ld, ld,
            w->dv + key * ld, ld, SZ_CHAIN, &w->b.ahead);
    sz_tile(keys, b->dim, to - from, w->ds + from, w->lp, 1, b->rows + from * ld, ld,
            w->dk + key * ld, ld, SZ_CHAIN, &w->b.ahead);
}

/* Scores, dP, P, dS and dQ of the panel at column c, for some keys from `key` on of the chunk. The
 * first of them has number j0 in its range. */
static void backward_panel(backward_buffers *w, int64_t key, int64_t c, int64_t j0, int64_t keys,
                           bool masked)
{
#ifdef SZ_HAS_PAIRS
    if (w->pairs) {
        pairs_panel(w, key, c, j0, keys, masked);
        return;
    }
#endif
    sz_columns *b = &w->b;
    sz_ahead *ah = &b->ahead;
    const int64_t dim = b->dim;
    const int64_t width = sz_panel_width(b, c);
    const int64_t lp = w->lp;
    const float *k = w->k + key * dim;
    const float *v = w->v + key * dim;
    float *s = w->p + c;
    float *ds = w->ds + c;

    /* Scores = K q and dP = V dout, then P and dS. */
    sz_tile(keys, width, dim, k, dim, 1, b->q + c * dim, SZ_PANEL, s, lp, SZ_SET, ah);
    sz_tile(keys, width, dim, v, dim, 1, w->dout + c * dim, SZ_PANEL, ds, lp, SZ_SET, ah);
    panel_gradient(w, c, j0, keys, width, masked);

    /* dQ += K^T dS. */
    sz_tile(dim, width, keys, k, 1, dim, ds, lp, b->o + c * dim, SZ_PANEL, SZ_CHAIN, ah);
}

/* Adds the block's share of dQ, dK and dV from `key_count` keys, which start at key `first` of the
 * chunk. */
static void backward_keys(backward_buffers *w, int64_t first, int64_t key_count, bool masked)
{
    sz_columns *b = &w->b;
    for (int64_t j0 = 0; j0 < key_count; j0 += SZ_KEYS) {
        int64_t count = key_count - j0 < SZ_KEYS ? key_count - j0 : SZ_KEYS;
        int64_t key = first + j0;
        int64_t next = j0 + SZ_KEYS;
        if (w->many_keys && next < key_count)
            fetch_keys(w, key + SZ_KEYS, sz_min64(key_count - next, SZ_KEYS));
#ifdef SZ_HAS_PAIRS
        if (w->pairs)
            sz_pairs_pack_rows((uint16_t *)b->v, (const uint16_t *)w->k + key * b->dim, b->dim,
                               count, b->dim);
#endif

        /* Panels that see the same keys add to dK and dV together: columns from `waiting` on, which
         * see `rows` keys. */
        int64_t waiting = 0;
        int64_t rows = 0;
        for (int64_t c = 0; c < b->n; c += SZ_PANEL) {
            int64_t width = sz_panel_width(b, c);
            int64_t seen = masked ? sz_panel_sees(b, c, width, j0, count) : count;
            if (seen <= 0) continue;
            if (seen != rows) {
                add_columns(w, key, rows, waiting, c);
                waiting = c;
                rows = seen;
            }

            backward_panel(w, key, c, j0, seen, masked && b->limit[c] < j0 + seen);
        }
        add_columns(w, key, rows, waiting, b->n);
    }
}

/* Sets max to the log-sum-exp of each column, and sum to delta = out . dout. */
static void columns_statistics(backward_buffers *w, const attention_plan *p, int64_t row,
                               int64_t head)
{
    const sz_attention_args *a = &p->a;
    const sz_tensor *lse = p->lse;
    sz_columns *b = &w->b;

    for (int64_t i = 0; i < b->width; i++) {
        /* Padding, and queries without keys: +inf makes every exponential 0. Their sum is 0. */
        float l = INFINITY;
        if (i < b->n) l = sz_f32(lse)[(head + i % a->share) * lse->shape[1] + row + i / a->share];
        b->max[i] = l == -INFINITY ? INFINITY : l;
        if (i >= b->n) continue;

        const float *o = w->out_rows + i * b->ld;
        const float *d = w->dout_rows + i * b->ld;
        float delta = 0;
#pragma omp simd reduction(+ : delta)
        for (int64_t j = 0; j < a->dim; j++) delta += o[j] * d[j];
        b->sum[i] = delta;
    }
}

/* Loads the queries, the output and its gradient of some rows, and their statistics. */
static void load_block(backward_buffers *w, const attention_plan *p, int64_t row, int64_t rows,
                       int64_t head)
{
    const sz_attention_args *a = &p->a;
    sz_columns *b = &w->b;
    const int64_t dim = a->dim;
    const int64_t q_col = a->q_col + head * dim;
    const int64_t col = head * dim;
    sz_rows_load(w->dout_rows, b->ld, p->dout, row, rows, col, a->share, dim, 1);
    sz_rows_load(w->out_rows, b->ld, p->out, row, rows, col, a->share, dim, 1);
    columns_statistics(w, p, row, head);
#ifdef SZ_HAS_PAIRS
    /* The words take the place of the f32 rows, which the statistics have read. */
    if (w->pairs) {
        pairs_take(w, a->q, row, rows, q_col, a->share, b->q, b->rows);
        pairs_take(w, p->dout, row, rows, col, a->share, w->dout, w->dout_rows);
        return;
    }
#endif
    sz_rows_load(b->rows, b->ld, a->q, row, rows, q_col, a->share, dim, a->scale);
    sz_panels_pack(b->q, &(sz_column_rows){ b->rows, b->ld, 1, dim }, b->n, dim, 1);
    sz_panels_pack(w->dout, &(sz_column_rows){ w->dout_rows, b->ld, 1, dim }, b->n, dim, 1);
}

static void backward_block(const attention_plan *p, const query_block *t, int64_t group,
                           backward_buffers *w)
{
    const sz_attention_args *a = &p->a;
    sz_columns *b = &w->b;
    sz_segment_row s = sz_segment_get(a->segments, t->segment);
    int64_t row = s.q_start + t->query;
    int64_t head = group * a->share;
    int64_t dim = a->dim;
    int64_t n = t->n * a->share;

    sz_columns_start(b, n);
    memset(b->o, 0, (size_t)(sz_round_up(n, SZ_PANEL) * dim) * 4);
    load_block(w, p, row, t->n, head);

    /* The parent's keys, then the segment's own. */
    int64_t own = sz_columns_limit(b, a, &s, t->query);
    backward_keys(w, t->parent, s.p_len, false);
    backward_keys(w, t->own, own, sz_is_masked(a, &s));

    /* Store dQ. */
    for (int64_t i = 0; i < b->width; i++) b->factor[i] = a->scale;
    sz_panels_store(b->o, p->dq, row, t->n, a->q_col + head * dim, a->share, dim, b->factor,
                    b->rows, b->ld);
}

/* Stores rows [from, to) of a range's dK and dV [keys of the range][ld], and scales dK's. */
static void store_keys(const attention_plan *p, const key_range *r, int64_t group, float *dk,
                       const float *dv, int64_t from, int64_t to)
{
    int64_t dim = p->a.dim;
    for (int64_t j = from; j < to; j++) {
        if (p->dk_scale != 1)
            for (int64_t d = 0; d < dim; d++) dk[j * p->ld + d] *= p->dk_scale;
        sz_rows_store(p->dk, r->start + j, p->a.k_col + group * dim, dk + j * p->ld, dim);
        sz_rows_store(p->dv, r->start + j, p->a.v_col + group * dim, dv + j * p->ld, dim);
    }
}

/* One chunk's sums of a range that several chunks see: dK, followed by dV. */
static float *shared_sums(const attention_plan *p, const key_range *r, int64_t group, int64_t order)
{
    int64_t floats = 2 * (r->end - r->start) * p->ld;
    return p->sums + r->sums_start + (group * r->chunks + order) * floats;
}

/* Lets w fetch what a later block reads first and where its gradient goes. */
static void fetch_block(const attention_plan *p, const query_block *t, int64_t group,
                        backward_buffers *w)
{
    const sz_attention_args *a = &p->a;
    const int64_t row = sz_segment_get(a->segments, t->segment).q_start + t->query;
    const int64_t width = a->share * a->dim;
    const int64_t col = group * width;
    sz_ahead_rows(&w->b.ahead, p->dq, row, t->n, a->q_col + col, width);
    sz_ahead_rows(&w->b.ahead, p->out, row, t->n, col, width);
    sz_ahead_rows(&w->b.ahead, p->dout, row, t->n, col, width);
    sz_ahead_rows(&w->b.ahead, a->q, row, t->n, a->q_col + col, width);
}

/* The same for a chunk with few keys: its first range. */
static void fetch_chunk(const attention_plan *p, const work_chunk *chunk, int64_t group,
                        backward_buffers *w)
{
    const sz_attention_args *a = &p->a;
    const key_range *r = p->range + p->ref[chunk->first_ref].range;
    const int64_t col = group * a->dim;
    const int64_t keys = r->end - r->start;
    if (chunk->keys > sz_keys_few(a->dim)) return;
    sz_ahead_rows(&w->b.ahead, p->dv, r->start, keys, a->v_col + col, a->dim);
    sz_ahead_rows(&w->b.ahead, p->dk, r->start, keys, a->k_col + col, a->dim);
    fetch_block(p, p->block + chunk->first_block, group, w);
    sz_ahead_rows(&w->b.ahead, a->v, r->start, keys, a->v_col + col, a->dim);
    sz_ahead_rows(&w->b.ahead, a->k, r->start, keys, a->k_col + col, a->dim);
}

/* Copies columns [col, col + D) of a range's keys or values to the chunk's key `base` and on. */
static void load_keys(const backward_buffers *w, float *to, int64_t base, const sz_tensor *t,
                      int64_t row, int64_t keys, int64_t col)
{
    const int64_t dim = w->b.dim;
#ifdef SZ_HAS_PAIRS
    if (w->pairs) {
        const int64_t ld = sz_cols(t);
        sz_pairs_pack_keys((uint16_t *)to + base * dim, sz_bf16(t) + row * ld + col, ld, keys, dim);
        return;
    }
#endif
    sz_rows_load(to + base * dim, dim, t, row, keys, col, 1, dim, 1);
}

/* Computes task number i. The thread's next one is about `threads` later. */
static void backward_task(const attention_plan *p, int64_t i, int64_t threads, backward_buffers *w)
{
    const work_chunk *chunk = p->chunk + i / p->a.groups;
    const int64_t group = i % p->a.groups;
    const int64_t later = i + threads;
    const bool last = later >= p->chunks * p->a.groups;
    const sz_attention_args *a = &p->a;
    int64_t dim = a->dim;
    int64_t ld = p->ld;
    const range_ref *ref = p->ref + chunk->first_ref;

    /* Load the chunk's keys and values. */
    for (int64_t j = 0; j < chunk->refs; j++) {
        const key_range *r = p->range + ref[j].range;
        int64_t keys = r->end - r->start;
        load_keys(w, w->k, ref[j].base, a->k, r->start, keys, a->k_col + group * dim);
        load_keys(w, w->v, ref[j].base, a->v, r->start, keys, a->v_col + group * dim);
    }

    /* Add up the gradients of all its blocks. */
    w->many_keys = chunk->keys > sz_keys_few(dim);
    memset(w->dk, 0, (size_t)(chunk->keys * ld) * 4);
    memset(w->dv, 0, (size_t)(chunk->keys * ld) * 4);
    for (int64_t j = 0; j < chunk->blocks; j++) {
        const query_block *t = p->block + chunk->first_block + j;
        sz_ahead_clear(&w->b.ahead);
        if (j + 1 < chunk->blocks) fetch_block(p, t + 1, group, w);
        else if (!last) fetch_chunk(p, p->chunk + later / a->groups, later % a->groups, w);
        backward_block(p, t, group, w);
    }

    /* Store them, or keep them for combine() if other chunks see the keys too. */
    for (int64_t j = 0; j < chunk->refs; j++) {
        const key_range *r = p->range + ref[j].range;
        int64_t keys = r->end - r->start;
        float *dk = w->dk + ref[j].base * ld;
        const float *dv = w->dv + ref[j].base * ld;
        if (r->chunks == 1) {
            store_keys(p, r, group, dk, dv, 0, keys);
        } else {
            float *sums = shared_sums(p, r, group, ref[j].order);
            memcpy(sums, dk, (size_t)(keys * ld) * 4);
            memcpy(sums + keys * ld, dv, (size_t)(keys * ld) * 4);
        }
    }
}

/* Adds the chunks' sums of a piece of a shared range, in the order of the chunks, and stores them.
 * The range has as many pieces as chunks that see it. */
static void combine(const attention_plan *p, const range_ref *ref, int64_t group)
{
    const key_range *r = p->range + ref->range;
    if (r->chunks == 1) return;

    int64_t keys = r->end - r->start;
    int64_t from = keys * ref->order / r->chunks;
    int64_t to = keys * (ref->order + 1) / r->chunks;
    float *restrict sum = shared_sums(p, r, group, 0);
    for (int64_t i = 1; i < r->chunks; i++)
        for (int64_t which = 0; which < 2; which++) {
            int64_t start = which * keys * p->ld;
            const float *restrict addend = shared_sums(p, r, group, i) + start;
            for (int64_t j = from * p->ld; j < to * p->ld; j++) sum[start + j] += addend[j];
        }
    store_keys(p, r, group, sum, sum + keys * p->ld, from, to);
}

/* ---- the whole ---- */

/* Length of a row of P, a multiple of 16: an odd number of vectors of f32, so that a panel's rows
 * are in different sets of the first-level cache. */
static int64_t row_of_p(const attention_plan *p) { return sz_columns_most(&p->a) + 16; }

/* Floats of a thread's buffers besides sz_columns. */
static int64_t buffer_floats(const attention_plan *p)
{
    int64_t columns = sz_columns_most(&p->a);
    int64_t floats = columns * (p->a.dim + 2 * p->ld) + 2 * SZ_KEYS * row_of_p(p);
    floats += 2 * p->most_keys * (p->a.dim + p->ld);
    return sz_round_up(floats + 16 * 16, 16);
}

/* Whether the products are those of words of bf16. */
static bool multiplies_pairs(const attention_plan *p)
{
#ifdef SZ_HAS_PAIRS
    return sz_attends_in_bf16(&p->a);
#else
    (void)p;
    return false;
#endif
}

/* Lays a thread's buffers out in memory and clears what pads rows and panels. */
static void place_buffers(backward_buffers *w, char *memory, const attention_plan *p)
{
    const sz_attention_args *a = &p->a;
    int64_t columns = sz_columns_most(a);

    sz_columns_place(&w->b, memory, a);
    w->pairs = multiplies_pairs(p);
    memory += sz_columns_bytes(a);
    memset(memory, 0, (size_t)buffer_floats(p) * 4);
    memset(w->b.rows, 0, (size_t)(columns * p->ld) * 4);
    w->dout = sz_carve(&memory, columns * a->dim);
    w->dout_rows = sz_carve(&memory, columns * p->ld);
    w->out_rows = sz_carve(&memory, columns * p->ld);
    w->lp = row_of_p(p);
    w->p = sz_carve(&memory, SZ_KEYS * w->lp);
    w->ds = sz_carve(&memory, SZ_KEYS * w->lp);
    w->k = sz_carve(&memory, p->most_keys * a->dim);
    w->v = sz_carve(&memory, p->most_keys * a->dim);
    w->dk = sz_carve(&memory, p->most_keys * p->ld);
    w->dv = sz_carve(&memory, p->most_keys * p->ld);
}

/* p: what the call names; the rest is planned here. */
static int backward(attention_plan p)
{
    sz_attention_args *a = &p.a;
    int64_t covered;
    int64_t work = sz_attention_work(a, &covered);
    int threads = work > PARALLEL_FROM ? omp_get_max_threads() : 1;
    p.dk_scale = multiplies_pairs(&p) ? a->scale : 1;
    sz_attention_cut(a, BACKWARD_COLUMNS);
    if (sz_attention_plan(&p, threads)) return -1;

    /* One set of buffers for each thread, and the sums of shared keys. */
    size_t bytes = sz_columns_bytes(a) + (size_t)buffer_floats(&p) * 4;
    char *buffers = sz_scratch(bytes * (size_t)threads + (size_t)p.sum_floats * 4);
    if (!buffers) return sz_fail("attention_backward: out of memory");
    p.sums = (float *)(buffers + bytes * (size_t)threads);

    /* Rows without a gradient. */
    if (p.queries < p.dq->shape[0] || p.keys < p.dk->shape[0]) {
        memset(p.dq->data, 0, sz_bytes(p.dq));
        if (p.dk != p.dq) {
            memset(p.dk->data, 0, sz_bytes(p.dk));
            memset(p.dv->data, 0, sz_bytes(p.dv));
        }
    }

    int64_t tasks = p.chunks * a->groups;
    int64_t pieces = p.refs * a->groups;
#pragma omp parallel num_threads(threads)
    {
        backward_buffers w;
        place_buffers(&w, buffers + bytes * (size_t)omp_get_thread_num(), &p);
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < tasks; i++) backward_task(&p, i, threads, &w);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < pieces; i++) combine(&p, p.ref + i / a->groups, i % a->groups);
    }
    return 0;
}

int sz_cpu_attention_backward(const sz_call *c)
{
    sz_tensor *dx = c->out[0];
    return backward((attention_plan){
        .a = sz_attention_packed(c),
        .out = c->in[2],
        .lse = c->in[3],
        .dout = c->in[4],
        .dq = dx,
        .dk = dx,
        .dv = dx,
    });
}

int sz_cpu_attention_cross_backward(const sz_call *c)
{
    return backward((attention_plan){
        .a = sz_attention_separate(c),
        .out = c->in[4],
        .lse = c->in[5],
        .dout = c->in[6],
        .dq = c->out[0],
        .dk = c->out[1],
        .dv = c->out[2],
    });
}
