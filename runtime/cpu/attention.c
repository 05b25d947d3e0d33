/* attention.c - attention over a table of segments, forward and backward.
 *
 * H query heads, G key heads, G value heads of width D; query head h uses key head h / (H/G). They come packed, as
 * qkv [T, (H+2G)*D] (attention), or apart, as q [A, H*D], k and v [R, G*D] (attention_cross); sz_attention_args says where.
 * Segment table i32 [S, 6], rows {q_start, q_len, k_start, k_len, p_start, p_len}: the queries of a segment see the keys of
 * the parent range whole, and own keys: all of them, or, causal, own key j for query i iff j <= i + (k_len - q_len). Query
 * ranges do not overlap; key ranges may be shared by many segments. out [A, H*D], 0 in rows without keys; lse f32 [H, A],
 * natural log of the sum of exponentials of the scaled scores, -inf without keys.
 *
 * Forward: a task is (block of about 128 query columns of one segment, key head); no score outlives its tile.
 * Backward: a family is a set of segments connected through common keys (a prompt and its answers). It is cut into parts, runs
 * of its blocks with about equal work: few, so that there is something for every thread, or as many as keep the keys of a part
 * in the cache. A unit is (part, key head): it walks its blocks once, with 5 products per tile, and adds dK and dV in f32. Keys
 * that one part alone sees are then done; for others the sums of the parts are added at the end, in the order of the parts.
 * So results depend on the thread count through that order alone, and never on which thread ran what.
 * Leaves out: dropout, biases, masks other than the table.
 */
#include "attention_tile.h"
#include <omp.h>
#include <stdlib.h>

enum {
    PARALLEL_FROM = 1 << 20,     /* multiply-adds below which one thread is faster */
    BACKWARD_COLUMNS = 128,      /* fixed: the order of the sums of dK and dV hangs on it */
    PART_KEYS = 1024             /* keys of a part that is cut for the cache */
};

typedef struct { int32_t segment, group; int64_t query; } forward_task;

static void forward_block(const sz_attention_args *a, const forward_task *t, sz_tensor *out, sz_tensor *lse, sz_columns *b)
{
    sz_segment_row s = sz_segment_get(a->segments, t->segment);
    sz_columns_run(b, a, &s, t->group, t->query, out);
    for (int64_t i = 0; i < b->n; i++) {
        int64_t h = t->group * a->share + i % a->share, r = s.q_start + t->query + i / a->share;
        sz_f32(lse)[h * lse->shape[1] + r] = b->sum[i] == 0 ? -INFINITY : b->max[i] + logf(b->sum[i]);
    }
}

static int forward(sz_attention_args a, sz_tensor *out, sz_tensor *lse)
{
    int64_t count = a.segments->shape[0], tasks = 0, covered, work = sz_attention_work(&a, &covered);
    int threads = work > PARALLEL_FROM ? omp_get_max_threads() : 1;
    sz_attention_cut(&a, sz_columns_aim(a.dim, covered * a.heads / (8 * threads)));
    int64_t step = a.block;
    for (int64_t i = 0; i < count; i++) tasks += (sz_segment_get(a.segments, i).q_len + step - 1) / step * a.groups;
    size_t block = sz_columns_bytes(&a);
    char *memory = sz_scratch(block * (size_t)threads + (size_t)(tasks + 1) * sizeof(forward_task));
    if (!memory) return sz_fail("attention: out of memory");
    forward_task *task = (forward_task *)(memory + block * (size_t)threads);
    tasks = 0;
    for (int64_t i = 0; i < count; i++) {
        sz_segment_row s = sz_segment_get(a.segments, i);
        for (int64_t g = 0; g < a.groups; g++)
            for (int64_t q = (s.q_len - 1) / step * step; s.q_len && q >= 0; q -= step)      /* the longest first */
                task[tasks++] = (forward_task){ (int32_t)i, (int32_t)g, q };
    }
    if (covered < out->shape[0]) {
        memset(out->data, 0, sz_bytes(out));
        for (int64_t i = 0; i < lse->numel; i++) sz_f32(lse)[i] = -INFINITY;
    }
#pragma omp parallel num_threads(threads)
    {
        sz_columns b;
        sz_columns_place(&b, memory + block * (size_t)omp_get_thread_num(), &a);
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < tasks; i++) forward_block(&a, task + i, out, lse, &b);
    }
    return 0;
}

int sz_cpu_attention(const sz_call *c) { return forward(sz_attention_packed(c), c->out[0], c->out[1]); }
int sz_cpu_attention_cross(const sz_call *c) { return forward(sz_attention_separate(c), c->out[0], c->out[1]); }

/* ---- backward ---- */

/* A stretch of key rows that some segments see. parent: among the keys of a parent range. parts: how many parts see it; if several,
 * their dK and dV lie from plan.sums + sums_at on. base: its first key within the part that met it last, which is `part`. */
typedef struct { int64_t start, end, family, parts, sums_at, part, base; bool parent; } key_range;
typedef struct { int64_t keys, parent_keys, first_block, blocks, work; } family;
/* A block of queries of one segment; own and parent: first keys within its part; work: up to and with this block. */
typedef struct { int64_t query, n, own, parent, work; int32_t segment; } query_block;
/* A run of a family's blocks with the ranges that these see, which lie one after the other: `keys` key rows. */
typedef struct { int64_t first_block, blocks, first_view, views, keys; } part;
/* A range as a part sees it: from which key on; order: how many parts saw it before. */
typedef struct { int64_t range, base, order; } view;

typedef struct {
    sz_attention_args a;
    const sz_tensor *out, *lse, *dout;
    sz_tensor *dq, *dk, *dv;        /* columns as in a.q, a.k, a.v */
    int64_t ranges, families, parts, views, ld;
    key_range *range;               /* ascending */
    family *fam;                    /* in order of their first key row */
    query_block *block;             /* family by family */
    part *part;
    view *view;                     /* part by part */
    float *sums;                    /* dK and dV [keys][ld] of ranges that several parts see, of each group and part */
} plan;

/* Buffers of one thread. */
typedef struct {
    sz_columns b;                   /* q, o as dQ, rows as scaled queries, s, limit, max as lse, sum as delta */
    float *dout, *dout_rows, *ds;   /* as q, rows, s */
    float *out_rows;                /* as rows */
    float *k, *v, *dk, *dv;         /* [keys of the part][D], and [..][ld] */
} backward_buffers;

static int by_start(const void *x, const void *y)
{
    const key_range *a = x, *b = y;
    if (a->start != b->start) return a->start < b->start ? -1 : 1;
    return (a->end > b->end) - (a->end < b->end);
}

static key_range *find_range(const plan *p, int64_t row)
{
    int64_t lo = 0, hi = p->ranges - 1;
    while (lo < hi) {
        int64_t mid = (lo + hi + 1) / 2;
        if (p->range[mid].start <= row) lo = mid; else hi = mid - 1;
    }
    return p->range + lo;
}

static int64_t root(key_range *r, int64_t i)
{
    while (r[i].family != i) i = r[i].family = r[r[i].family].family;
    return i;
}

/* Merges the key ranges of the table, joins those that one segment sees, numbers the families by their first key row. */
static void plan_families(plan *p)
{
    int64_t n = 0, count = p->a.segments->shape[0];
    for (int64_t i = 0; i < count; i++) {
        sz_segment_row s = sz_segment_get(p->a.segments, i);
        if (s.k_len > 0) p->range[n++] = (key_range){ .start = s.k_start, .end = s.k_start + s.k_len, .part = -1 };
        if (s.p_len > 0) p->range[n++] = (key_range){ .start = s.p_start, .end = s.p_start + s.p_len, .part = -1, .parent = true };
    }
    qsort(p->range, (size_t)n, sizeof(key_range), by_start);
    for (int64_t i = 0; i < n; i++) {
        key_range *last = p->range + p->ranges - 1;
        if (p->ranges && p->range[i].start < last->end) {
            if (p->range[i].end > last->end) last->end = p->range[i].end;
            last->parent |= p->range[i].parent;
        } else {
            p->range[p->ranges++] = p->range[i];
        }
    }
    for (int64_t i = 0; i < p->ranges; i++) p->range[i].family = i;
    for (int64_t i = 0; i < count; i++) {
        sz_segment_row s = sz_segment_get(p->a.segments, i);
        if (s.k_len <= 0 || s.p_len <= 0) continue;
        int64_t x = root(p->range, find_range(p, s.k_start) - p->range), y = root(p->range, find_range(p, s.p_start) - p->range);
        p->range[x > y ? x : y].family = x < y ? x : y;
    }
    for (int64_t i = 0; i < p->ranges; i++) p->range[i].family = root(p->range, i);
    for (int64_t i = 0; i < p->ranges; i++) {          /* a root comes before its members */
        key_range *r = p->range + i;
        if (r->family == i) {
            p->fam[p->families] = (family){ 0 };
            r->family = p->families++;
        } else {
            r->family = p->range[r->family].family;
        }
        p->fam[r->family].keys += r->end - r->start;
        p->fam[r->family].parent_keys += r->parent ? r->end - r->start : 0;
    }
}

/* Lists every family's blocks in table order. */
static void plan_blocks(plan *p)
{
    int64_t count = p->a.segments->shape[0], step = p->a.block, at = 0;
    for (int pass = 0; pass < 2; pass++) {
        for (int64_t i = 0; i < count; i++) {
            sz_segment_row s = sz_segment_get(p->a.segments, i);
            if (s.k_len + s.p_len <= 0) continue;
            family *f = p->fam + find_range(p, s.k_len > 0 ? s.k_start : s.p_start)->family;
            for (int64_t q = 0; q < s.q_len; q += step, f->blocks++) {
                if (pass == 0) continue;
                int64_t n = s.q_len - q < step ? s.q_len - q : step, own = sz_own_keys(&s, q + n - 1, p->a.causal);
                f->work += n * (s.p_len + own + 16);
                p->block[f->first_block + f->blocks] = (query_block){ q, n, 0, 0, f->work, (int32_t)i };
            }
        }
        for (int64_t f = 0; pass == 0 && f < p->families; f++) {
            p->fam[f].first_block = at;
            at += p->fam[f].blocks;
            p->fam[f].blocks = 0;
        }
    }
}

/* Into how many parts every family is cut: so many that the threads can share the units evenly. One family has equal units;
 * otherwise there should be four for each thread. */
static int64_t parts_for_threads(const plan *p, int64_t threads)
{
    int64_t units = p->families * p->a.groups;
    if (threads == 1 || units >= 4 * threads || (p->families == 1 && units % threads == 0)) return 1;
    return (4 * threads + units - 1) / units;
}

/* Into how many parts a family is cut so that the keys of a part stay in the cache: many windows that share a few parent keys.
 * A part has at least eight times as many keys of its own, so that the sums of the shared ones stay small beside dK and dV. */
static int64_t parts_for_cache(const family *f)
{
    int64_t own = f->keys - f->parent_keys, aim = 8 * f->parent_keys > PART_KEYS ? 8 * f->parent_keys : PART_KEYS;
    return f->parent_keys > 0 && own > aim ? own / aim : 1;
}

/* Where key row `row` lies in the part that is being made, which is the plan's last. */
static int64_t key_position(plan *p, int64_t row)
{
    part *last = p->part + p->parts - 1;
    key_range *r = find_range(p, row);
    if (r->part != p->parts - 1) {
        r->part = p->parts - 1;
        r->base = last->keys;
        p->view[p->views++] = (view){ r - p->range, r->base, r->parts++ };
        last->views++;
        last->keys += r->end - r->start;
    }
    return r->base + row - r->start;
}

/* Gives each block to a part by its share of the family's work. */
static void plan_parts(plan *p, int64_t least)
{
    for (int64_t i = 0; i < p->families; i++) {
        const family *f = p->fam + i;
        int64_t parts = parts_for_cache(f), before = -1;
        if (parts < least) parts = least;
        for (int64_t j = f->first_block; j < f->first_block + f->blocks; j++) {
            query_block *t = p->block + j;
            sz_segment_row s = sz_segment_get(p->a.segments, t->segment);
            int64_t number = (t->work - 1) * parts / f->work;
            if (number != before) p->part[p->parts++] = (part){ j, 0, p->views, 0, 0 };
            before = number;
            p->part[p->parts - 1].blocks++;
            if (s.p_len > 0) t->parent = key_position(p, s.p_start);
            if (s.k_len > 0) t->own = key_position(p, s.k_start);
        }
    }
}

/* P and dS of one panel from scores s and dP: s <- exp(s - lse), ds <- s * (ds - delta), 0 where a column does not see a key. */
static void panel_gradient(const sz_columns *b, float *ds, int64_t c, int64_t j0, int64_t keys, int64_t width, bool masked)
{
    for (int64_t x = 0; x < width; x += SZ_LANES) {
        sz_vec lse = sz_vec_load(b->max + c + x), delta = sz_vec_load(b->sum + c + x);
        sz_ivec limit = *(const sz_ivec_any *)(b->limit + c + x);
        for (int64_t j = 0; j < keys; j++) {
            float *s = b->s + j * SZ_PANEL + x, *d = ds + j * SZ_PANEL + x;
            sz_vec e = sz_vec_exp(sz_vec_load(s) - lse);
            if (masked) e = sz_vec_pick(limit > (int32_t)(j0 + j), e, (sz_vec){ 0 });
            sz_vec_store(s, e);
            sz_vec_store(d, e * (sz_vec_load(d) - delta));
        }
    }
}

/* The block's share of dQ, dK, dV from keys [0, to) that lie at position `first` of the part. */
static void backward_keys(backward_buffers *w, int64_t first, int64_t to, bool masked)
{
    sz_columns *b = &w->b;
    int64_t dim = b->dim, ld = b->ld;
    for (int64_t j0 = 0; j0 < to; j0 += SZ_KEYS) {
        int64_t count = to - j0 < SZ_KEYS ? to - j0 : SZ_KEYS, at = first + j0;
        for (int64_t c = 0; c < b->n; c += SZ_PANEL) {
            int64_t width = sz_panel_width(b, c), used = b->n - c < SZ_PANEL ? b->n - c : SZ_PANEL, seen = count;
            if (masked) {
                int64_t last = b->limit[c + width - 1] - j0;
                seen = last < count ? last : count;
                if (seen <= 0) continue;
            }
            const float *k = w->k + at * dim, *v = w->v + at * dim;
            sz_tile(seen, width, dim, k, dim, 1, b->q + c * dim, SZ_PANEL, b->s, SZ_PANEL, 0);
            sz_tile(seen, width, dim, v, dim, 1, w->dout + c * dim, SZ_PANEL, w->ds, SZ_PANEL, 0);
            panel_gradient(b, w->ds, c, j0, seen, width, masked && b->limit[c] < j0 + seen);
            sz_tile(seen, dim, used, b->s, SZ_PANEL, 1, w->dout_rows + c * ld, ld, w->dv + at * ld, ld, 1);
            sz_tile(seen, dim, used, w->ds, SZ_PANEL, 1, b->rows + c * ld, ld, w->dk + at * ld, ld, 1);
            sz_tile(dim, width, seen, k, 1, dim, w->ds, SZ_PANEL, b->o + c * dim, SZ_PANEL, 1);
        }
    }
}

static void backward_block(const plan *p, const query_block *t, int64_t group, backward_buffers *w)
{
    const sz_attention_args *a = &p->a;
    const sz_tensor *lse = p->lse;
    sz_columns *b = &w->b;
    sz_segment_row s = sz_segment_get(a->segments, t->segment);
    int64_t row = s.q_start + t->query, head = group * a->share, D = a->dim, n = t->n * a->share;
    sz_queries_load(b->rows, b->ld, a, &s, group, t->query, t->n);
    sz_rows_load(w->dout_rows, b->ld, p->dout, row, t->n, head * D, a->share, D, 1);
    sz_rows_load(w->out_rows, b->ld, p->out, row, t->n, head * D, a->share, D, 1);
    sz_columns_start(b, n);
    memset(w->dout_rows + n * b->ld, 0, (size_t)((b->width - n) * b->ld) * 4);
    sz_panels_pack(w->dout, w->dout_rows, b->ld, b->width, D);
    for (int64_t i = 0; i < b->width; i++) {
        float l = i < n ? sz_f32(lse)[(head + i % a->share) * lse->shape[1] + row + i / a->share] : INFINITY;
        b->max[i] = l == -INFINITY ? INFINITY : l;      /* no keys: every exponential is 0 */
        if (i >= n) continue;                           /* sum is 0 there */
        const float *o = w->out_rows + i * b->ld, *d = w->dout_rows + i * b->ld;
        float delta = 0;
#pragma omp simd reduction(+ : delta)
        for (int64_t j = 0; j < D; j++) delta += o[j] * d[j];
        b->sum[i] = delta;
    }
    int64_t own = sz_columns_limit(b, a, &s, t->query);
    backward_keys(w, t->parent, s.p_len, false);
    backward_keys(w, t->own, own, sz_is_masked(a, &s));
    sz_panels_unpack(b->rows, b->ld, b->o, b->width, D);
    for (int64_t i = 0; i < n; i++) {
        float *r = b->rows + i * b->ld;
        for (int64_t j = 0; j < D; j++) r[j] *= a->scale;
        sz_rows_store(p->dq, row + i / a->share, a->q_col + (head + i % a->share) * D, r, D);
    }
}

/* Writes dK and dV [keys of the range][ld] of rows [from, to) of a range. */
static void store_keys(const plan *p, const key_range *r, int64_t group, const float *dk, const float *dv, int64_t from, int64_t to)
{
    int64_t D = p->a.dim;
    for (int64_t j = from; j < to; j++) {
        sz_rows_store(p->dk, r->start + j, p->a.k_col + group * D, dk + j * p->ld, D);
        sz_rows_store(p->dv, r->start + j, p->a.v_col + group * D, dv + j * p->ld, D);
    }
}

/* dK, and behind it dV, of a range of which several parts see the keys: the piece of one of them. */
static float *shared_sums(const plan *p, const key_range *r, int64_t group, int64_t order)
{
    return p->sums + r->sums_at + (group * r->parts + order) * 2 * (r->end - r->start) * p->ld;
}

static void backward_unit(const plan *p, const part *u, int64_t group, backward_buffers *w)
{
    const sz_attention_args *a = &p->a;
    int64_t D = a->dim, ld = p->ld;
    const view *views = p->view + u->first_view;
    for (int64_t i = 0; i < u->views; i++) {
        const key_range *r = p->range + views[i].range;
        sz_rows_load(w->k + views[i].base * D, D, a->k, r->start, r->end - r->start, a->k_col + group * D, 1, D, 1);
        sz_rows_load(w->v + views[i].base * D, D, a->v, r->start, r->end - r->start, a->v_col + group * D, 1, D, 1);
    }
    memset(w->dk, 0, (size_t)(u->keys * ld) * 4);
    memset(w->dv, 0, (size_t)(u->keys * ld) * 4);
    for (int64_t i = 0; i < u->blocks; i++) backward_block(p, p->block + u->first_block + i, group, w);
    for (int64_t i = 0; i < u->views; i++) {
        const key_range *r = p->range + views[i].range;
        int64_t keys = r->end - r->start;
        const float *dk = w->dk + views[i].base * ld, *dv = w->dv + views[i].base * ld;
        if (r->parts == 1) {
            store_keys(p, r, group, dk, dv, 0, keys);
        } else {
            float *sums = shared_sums(p, r, group, views[i].order);
            memcpy(sums, dk, (size_t)(keys * ld) * 4);
            memcpy(sums + keys * ld, dv, (size_t)(keys * ld) * 4);
        }
    }
}

/* One stretch of a shared range, as many as parts see it: adds their pieces in the order of the parts. */
static void combine(const plan *p, const view *t, int64_t group)
{
    const key_range *r = p->range + t->range;
    if (r->parts == 1) return;
    int64_t keys = r->end - r->start, from = keys * t->order / r->parts, to = keys * (t->order + 1) / r->parts;
    float *restrict sum = shared_sums(p, r, group, 0);
    for (int64_t i = 1; i < r->parts; i++)
        for (int64_t which = 0; which < 2; which++) {
            const float *restrict piece = shared_sums(p, r, group, i) + which * keys * p->ld;
            for (int64_t j = from * p->ld; j < to * p->ld; j++) sum[which * keys * p->ld + j] += piece[j];
        }
    store_keys(p, r, group, sum, sum + keys * p->ld, from, to);
}

/* p: what the call names; the rest is planned here. */
static int backward(plan p)
{
    sz_attention_args *a = &p.a;
    sz_attention_cut(a, BACKWARD_COLUMNS);
    int64_t count = a->segments->shape[0], step = a->block, blocks = 0, queries = 0, keys = 0, most_keys = 0, sums = 0, covered;
    int64_t work = sz_attention_work(a, &covered);
    for (int64_t i = 0; i < count; i++) {
        sz_segment_row s = sz_segment_get(a->segments, i);
        blocks += (s.q_len + step - 1) / step;
        if (s.k_len + s.p_len > 0) queries += s.q_len;
    }
    p.ld = sz_round_up(a->dim, 16);
    char *memory = sz_scratch((size_t)(2 * count + 1) * (sizeof(key_range) + sizeof(family)) +
                              (size_t)blocks * (sizeof(query_block) + sizeof(part) + 2 * sizeof(view)));
    if (!memory) return sz_fail("attention_backward: out of memory");
    p.range = (key_range *)memory;
    p.fam = (family *)(p.range + 2 * count + 1);
    p.block = (query_block *)(p.fam + 2 * count + 1);
    p.part = (part *)(p.block + blocks);
    p.view = (view *)(p.part + blocks);
    plan_families(&p);
    plan_blocks(&p);
    int threads = work > PARALLEL_FROM ? omp_get_max_threads() : 1;
    plan_parts(&p, parts_for_threads(&p, threads));
    for (int64_t i = 0; i < p.parts; i++)
        if (p.part[i].keys > most_keys) most_keys = p.part[i].keys;
    for (int64_t i = 0; i < p.ranges; i++) {
        key_range *r = p.range + i;
        if (r->parts > 0) keys += r->end - r->start;
        r->sums_at = sums;
        if (r->parts > 1) sums += r->parts * a->groups * 2 * (r->end - r->start) * p.ld;
    }
    int64_t columns = sz_columns_most(a);
    int64_t extra = sz_round_up(columns * (a->dim + 2 * p.ld) + SZ_KEYS * SZ_PANEL + 2 * most_keys * (a->dim + p.ld) + 16 * 16, 16);
    size_t bytes = sz_columns_bytes(a) + (size_t)extra * 4;
    char *buffers = sz_scratch(bytes * (size_t)threads + (size_t)sums * 4);
    if (!buffers) return sz_fail("attention_backward: out of memory");
    p.sums = (float *)(buffers + bytes * (size_t)threads);
    if (queries < p.dq->shape[0] || keys < p.dk->shape[0]) {
        sz_tensor *const gradients[] = { p.dq, p.dk, p.dv };
        for (int i = 0; i < (p.dk == p.dq ? 1 : 3); i++) memset(gradients[i]->data, 0, sz_bytes(gradients[i]));
    }
#pragma omp parallel num_threads(threads)
    {
        char *at = buffers + bytes * (size_t)omp_get_thread_num();
        backward_buffers w;
        sz_columns_place(&w.b, at, a);
        at += sz_columns_bytes(a);
        memset(at, 0, (size_t)extra * 4);
        memset(w.b.rows, 0, (size_t)(columns * p.ld) * 4);     /* what pads a row stays 0 */
        w.dout = sz_carve(&at, columns * a->dim);
        w.dout_rows = sz_carve(&at, columns * p.ld);
        w.out_rows = sz_carve(&at, columns * p.ld);
        w.ds = sz_carve(&at, SZ_KEYS * SZ_PANEL);
        w.k = sz_carve(&at, most_keys * a->dim);
        w.v = sz_carve(&at, most_keys * a->dim);
        w.dk = sz_carve(&at, most_keys * p.ld);
        w.dv = sz_carve(&at, most_keys * p.ld);
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < p.parts * a->groups; i++) backward_unit(&p, p.part + i / a->groups, i % a->groups, &w);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < p.views * a->groups; i++) combine(&p, p.view + i / a->groups, i % a->groups);
    }
    return 0;
}

int sz_cpu_attention_backward(const sz_call *c)
{
    sz_tensor *dx = c->out[0];
    return backward((plan){ .a = sz_attention_packed(c), .out = c->in[2], .lse = c->in[3], .dout = c->in[4], .dq = dx, .dk = dx, .dv = dx });
}

int sz_cpu_attention_cross_backward(const sz_call *c)
{
    return backward((plan){ .a = sz_attention_separate(c), .out = c->in[4], .lse = c->in[5], .dout = c->in[6],
                            .dq = c->out[0], .dk = c->out[1], .dv = c->out[2] });
}
