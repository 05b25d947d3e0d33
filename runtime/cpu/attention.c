/* attention.c - attention over one packed stream of tokens, forward and backward.
 *
 * qkv [T, (H+2G)*D]: H query heads, G key heads, G value heads of width D; query head h uses key head h / (H/G).
 * Segment table i32 [S, 6], rows {q_start, q_len, k_start, k_len, p_start, p_len}: the queries of a segment see the keys of
 * the parent range whole, and own keys: all of them, or, causal, own key j for query i iff j <= i + (k_len - q_len). Query
 * ranges do not overlap; key ranges may be shared by many segments. out [T, H*D], 0 in rows without keys; lse f32 [H, T],
 * natural log of the sum of exponentials of the scaled scores, -inf without keys.
 *
 * Forward: a task is (block of about 128 query columns of one segment, key head); no score outlives its tile.
 * Backward: a family is a set of segments connected through common keys (a prompt and its answers). A unit is (family, key
 * head): it walks the family's blocks once, with 5 products per tile, and adds dK and dV in f32. When there are too few units
 * for the threads, each is split into parts of about equal work whose dK and dV are summed in the order of the parts.
 * So results depend on the thread count through that order alone, and never on which thread ran what.
 * Leaves out: dropout, biases, masks other than the table.
 */
#include "attention_tile.h"
#include <omp.h>
#include <stdlib.h>

enum {
    PARALLEL_FROM = 1 << 20,     /* multiply-adds below which one thread is faster */
    BACKWARD_COLUMNS = 128       /* fixed: the order of the sums of dK and dV hangs on it */
};

typedef struct { int32_t segment, group; int64_t query; } forward_task;

/* Own keys that each column of queries [first, first + n) sees; columns that pad get the last one's. Returns the most. */
static int64_t set_limits(int32_t *limit, const sz_attention_args *a, const sz_segment_row *s, int64_t first, int64_t n, int64_t width)
{
    for (int64_t c = 0; c < width; c++) {
        int64_t i = c / a->share < n ? c / a->share : n - 1;
        limit[c] = (int32_t)sz_own_keys(s, first + i, a->causal);
    }
    return limit[width - 1];
}

static void forward_block(const sz_call *c, const sz_attention_args *a, const forward_task *t, sz_columns *b)
{
    const sz_tensor *x = c->in[0];
    sz_tensor *out = c->out[0], *lse = c->out[1];
    sz_segment_row s = sz_segment_get(c->in[1], t->segment);
    int64_t left = s.q_len - t->query, n = left < a->block ? left : a->block;
    int64_t row = s.q_start + t->query, head = t->group * a->share, D = a->dim;
    int64_t k_col = (a->heads + t->group) * D, v_col = k_col + a->groups * D;
    sz_rows_load(b->rows, b->ld, x, row, n, head * D, a->share, D, a->scale);
    sz_columns_start(b, n * a->share);
    int64_t own = set_limits(b->limit, a, &s, t->query, n, b->width);
    sz_columns_attend(b, x, k_col, x, v_col, s.p_start, s.p_len, false);
    sz_columns_attend(b, x, k_col, x, v_col, s.k_start, own, sz_is_masked(a, &s));
    sz_columns_finish(b);
    for (int64_t i = 0; i < b->n; i++) {
        int64_t h = head + i % a->share, r = row + i / a->share;
        sz_rows_store(out, r, h * D, b->rows + i * b->ld, D);
        sz_f32(lse)[h * lse->shape[1] + r] = b->sum[i] == 0 ? -INFINITY : b->max[i] + logf(b->sum[i]);
    }
}

int sz_cpu_attention(const sz_call *c)
{
    sz_attention_args a = sz_attention_read(c);
    const sz_tensor *segments = c->in[1];
    sz_tensor *out = c->out[0], *lse = c->out[1];
    int64_t count = segments->shape[0], tasks = 0, covered = 0, work = 0;
    for (int64_t i = 0; i < count; i++) {
        sz_segment_row s = sz_segment_get(segments, i);
        covered += s.q_len;
        work += s.q_len * (s.p_len + s.k_len) * a.heads * a.dim;
    }
    int threads = work > PARALLEL_FROM ? omp_get_max_threads() : 1;
    sz_attention_cut(&a, sz_columns_aim(a.dim, covered * a.heads / (8 * threads)));
    int64_t step = a.block;
    for (int64_t i = 0; i < count; i++) tasks += (sz_segment_get(segments, i).q_len + step - 1) / step * a.groups;
    size_t block = sz_columns_bytes(&a);
    char *memory = sz_scratch(block * (size_t)threads + (size_t)(tasks + 1) * sizeof(forward_task));
    if (!memory) return sz_fail("attention: out of memory");
    forward_task *task = (forward_task *)(memory + block * (size_t)threads);
    tasks = 0;
    for (int64_t i = 0; i < count; i++) {
        sz_segment_row s = sz_segment_get(segments, i);
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
        for (int64_t i = 0; i < tasks; i++) forward_block(c, &a, task + i, &b);
    }
    return 0;
}

/* ---- backward ---- */

/* A stretch of key rows that some segments see, and where it lies among the keys of its family. */
typedef struct { int64_t start, end, family, base; } key_range;
/* work: of all its blocks; sums_at: where its units' dK and dV lie in plan.sums. */
typedef struct { int64_t keys, first_range, ranges, first_block, blocks, work, sums_at; } family;
/* A block of queries of one segment; own and parent are key positions within the family; work: up to and with this block. */
typedef struct { int64_t query, n, own, parent, work; int32_t segment; } query_block;

typedef struct {
    const sz_call *call;
    sz_attention_args a;
    int64_t ranges, families, parts, most_keys, ld;
    key_range *range;               /* ascending */
    family *fam;                    /* in order of their first key row */
    int64_t *member;                /* indices of ranges, family by family */
    query_block *block;             /* family by family */
    float *sums;                    /* parts > 1: dK and dV [keys][ld] of every unit */
} plan;

/* Buffers of one thread. */
typedef struct {
    sz_columns b;                     /* q, o as dQ, rows as scaled queries, s, limit, max as lse, sum as delta */
    float *dout, *dout_rows, *ds;   /* as q, rows, s */
    float *out_rows;                /* as rows */
    float *k, *v, *dk, *dv;         /* [keys of the family][D], and [..][ld] */
} backward_buffers;

static int by_start(const void *x, const void *y)
{
    const key_range *a = x, *b = y;
    return a->start != b->start ? (a->start < b->start ? -1 : 1) : (a->end > b->end) - (a->end < b->end);
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
static void plan_families(plan *p, const sz_tensor *segments)
{
    int64_t n = 0, count = segments->shape[0];
    for (int64_t i = 0; i < count; i++) {
        sz_segment_row s = sz_segment_get(segments, i);
        if (s.k_len > 0) p->range[n++] = (key_range){ s.k_start, s.k_start + s.k_len, 0, 0 };
        if (s.p_len > 0) p->range[n++] = (key_range){ s.p_start, s.p_start + s.p_len, 0, 0 };
    }
    qsort(p->range, (size_t)n, sizeof(key_range), by_start);
    p->ranges = 0;
    for (int64_t i = 0; i < n; i++) {
        key_range *last = p->range + p->ranges - 1;
        if (p->ranges && p->range[i].start < last->end) {
            if (p->range[i].end > last->end) last->end = p->range[i].end;
        } else {
            p->range[p->ranges++] = p->range[i];
        }
    }
    for (int64_t i = 0; i < p->ranges; i++) p->range[i].family = i;
    for (int64_t i = 0; i < count; i++) {
        sz_segment_row s = sz_segment_get(segments, i);
        if (s.k_len <= 0 || s.p_len <= 0) continue;
        int64_t x = root(p->range, find_range(p, s.k_start) - p->range), y = root(p->range, find_range(p, s.p_start) - p->range);
        p->range[x > y ? x : y].family = x < y ? x : y;
    }
    p->families = 0;
    for (int64_t i = 0; i < p->ranges; i++) p->range[i].family = root(p->range, i);
    for (int64_t i = 0; i < p->ranges; i++) {          /* a root comes before its members */
        key_range *r = p->range + i;
        if (r->family == i) {
            p->fam[p->families] = (family){ 0 };
            r->family = p->families++;
        } else {
            r->family = p->range[r->family].family;
        }
        family *f = p->fam + r->family;
        r->base = f->keys;
        f->keys += r->end - r->start;
        f->ranges++;
        if (f->keys > p->most_keys) p->most_keys = f->keys;
    }
    int64_t at = 0;
    for (int64_t f = 0; f < p->families; f++) {
        p->fam[f].first_range = at;
        at += p->fam[f].ranges;
        p->fam[f].ranges = 0;
    }
    for (int64_t i = 0; i < p->ranges; i++) {
        family *f = p->fam + p->range[i].family;
        p->member[f->first_range + f->ranges++] = i;
    }
}

static int64_t key_position(const plan *p, int64_t row)
{
    const key_range *r = find_range(p, row);
    return r->base + row - r->start;
}

/* Lists every family's blocks, in table order, and gives each a part by its share of the family's work. */
static void plan_blocks(plan *p, const sz_tensor *segments)
{
    int64_t count = segments->shape[0], step = p->a.block, at = 0;
    for (int pass = 0; pass < 2; pass++) {
        for (int64_t i = 0; i < count; i++) {
            sz_segment_row s = sz_segment_get(segments, i);
            if (s.k_len + s.p_len <= 0) continue;
            family *f = p->fam + find_range(p, s.k_len > 0 ? s.k_start : s.p_start)->family;
            for (int64_t q = 0; q < s.q_len; q += step, f->blocks++) {
                if (pass == 0) continue;
                int64_t n = s.q_len - q < step ? s.q_len - q : step, own = sz_own_keys(&s, q + n - 1, p->a.causal);
                f->work += n * (s.p_len + own + 16);
                p->block[f->first_block + f->blocks] = (query_block){ q, n, s.k_len > 0 ? key_position(p, s.k_start) : 0,
                    s.p_len > 0 ? key_position(p, s.p_start) : 0, f->work, (int32_t)i };
            }
        }
        for (int64_t f = 0; pass == 0 && f < p->families; f++) {
            p->fam[f].first_block = at;
            at += p->fam[f].blocks;
            p->fam[f].blocks = 0;
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

/* The block's share of dQ, dK, dV from keys [0, to) that lie at position `first` of the family. */
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
    const sz_call *c = p->call;
    const sz_attention_args *a = &p->a;
    const sz_tensor *x = c->in[0], *out = c->in[2], *lse = c->in[3], *dout = c->in[4];
    sz_columns *b = &w->b;
    sz_segment_row s = sz_segment_get(c->in[1], t->segment);
    int64_t row = s.q_start + t->query, head = group * a->share, D = a->dim, n = t->n * a->share;
    sz_rows_load(b->rows, b->ld, x, row, t->n, head * D, a->share, D, a->scale);
    sz_rows_load(w->dout_rows, b->ld, dout, row, t->n, head * D, a->share, D, 1);
    sz_rows_load(w->out_rows, b->ld, out, row, t->n, head * D, a->share, D, 1);
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
    int64_t own = set_limits(b->limit, a, &s, t->query, t->n, b->width);
    backward_keys(w, t->parent, s.p_len, false);
    backward_keys(w, t->own, own, sz_is_masked(a, &s));
    sz_panels_unpack(b->rows, b->ld, b->o, b->width, D);
    for (int64_t i = 0; i < n; i++) {
        float *r = b->rows + i * b->ld;
        for (int64_t j = 0; j < D; j++) r[j] *= a->scale;
        sz_rows_store(c->out[0], row + i / a->share, (head + i % a->share) * D, r, D);
    }
}

/* Writes dK and dV of key positions [from, to) of a family: the sum of `parts` pieces of dK [keys][ld], dV [keys][ld]. */
static void store_keys(const plan *p, const family *f, int64_t group, float *sums, int64_t parts, int64_t from, int64_t to)
{
    int64_t D = p->a.dim, ld = p->ld, k_col = (p->a.heads + group) * D, v_col = k_col + p->a.groups * D;
    for (int64_t i = 1; i < parts; i++)
        for (int64_t which = 0; which < 2; which++) {
            float *restrict sum = sums + which * f->keys * ld;
            const float *restrict piece = sum + 2 * i * f->keys * ld;
            for (int64_t j = from * ld; j < to * ld; j++) sum[j] += piece[j];
        }
    for (int64_t m = 0; m < f->ranges; m++) {
        const key_range *r = p->range + p->member[f->first_range + m];
        int64_t lo = r->base > from ? r->base : from, hi = r->base + r->end - r->start < to ? r->base + r->end - r->start : to;
        for (int64_t j = lo; j < hi; j++) {
            sz_rows_store(p->call->out[0], r->start + j - r->base, k_col, sums + j * ld, D);
            sz_rows_store(p->call->out[0], r->start + j - r->base, v_col, sums + (f->keys + j) * ld, D);
        }
    }
}

static void backward_unit(const plan *p, int64_t unit, backward_buffers *w, float *own_sums)
{
    int64_t part = unit % p->parts, group = unit / p->parts % p->a.groups;
    const family *f = p->fam + unit / p->parts / p->a.groups;
    int64_t D = p->a.dim, k_col = (p->a.heads + group) * D, v_col = k_col + p->a.groups * D;
    float *sums = p->parts > 1 ? p->sums + f->sums_at + (group * p->parts + part) * 2 * f->keys * p->ld : own_sums;
    for (int64_t m = 0; m < f->ranges; m++) {
        const key_range *r = p->range + p->member[f->first_range + m];
        sz_rows_load(w->k + r->base * D, D, p->call->in[0], r->start, r->end - r->start, k_col, 1, D, 1);
        sz_rows_load(w->v + r->base * D, D, p->call->in[0], r->start, r->end - r->start, v_col, 1, D, 1);
    }
    memset(sums, 0, (size_t)(2 * f->keys * p->ld) * 4);
    w->dk = sums;
    w->dv = sums + f->keys * p->ld;
    for (int64_t i = 0; i < f->blocks; i++) {
        const query_block *t = p->block + f->first_block + i;
        if ((t->work - 1) * p->parts / f->work == part) backward_block(p, t, group, w);
    }
    if (p->parts == 1) store_keys(p, f, group, sums, 1, 0, f->keys);
}

/* Units that the threads can share evenly: one family has equal units; otherwise there should be four for each thread. */
static int64_t choose_parts(const plan *p, int64_t threads)
{
    int64_t units = p->families * p->a.groups;
    if (threads == 1 || units >= 4 * threads || (p->families == 1 && units % threads == 0)) return 1;
    return (4 * threads + units - 1) / units;
}

int sz_cpu_attention_backward(const sz_call *c)
{
    plan p = { .call = c, .a = sz_attention_read(c) };
    const sz_attention_args *a = &p.a;
    const sz_tensor *segments = c->in[1];
    sz_attention_cut(&p.a, BACKWARD_COLUMNS);
    int64_t count = segments->shape[0], step = a->block, blocks = 0, queries = 0, work = 0, keys = 0;
    for (int64_t i = 0; i < count; i++) {
        sz_segment_row s = sz_segment_get(segments, i);
        blocks += (s.q_len + step - 1) / step;
        if (s.k_len + s.p_len > 0) queries += s.q_len;
        work += s.q_len * (s.p_len + s.k_len) * a->heads * a->dim;
    }
    p.ld = sz_round_up(a->dim, 16);
    char *memory = sz_scratch((size_t)(2 * count + 1) * (sizeof(key_range) + sizeof(family) + sizeof(int64_t)) +
                              (size_t)blocks * sizeof(query_block));
    if (!memory) return sz_fail("attention_backward: out of memory");
    p.range = (key_range *)memory;
    p.fam = (family *)(p.range + 2 * count + 1);
    p.member = (int64_t *)(p.fam + 2 * count + 1);
    p.block = (query_block *)(p.member + 2 * count + 1);
    plan_families(&p, segments);
    plan_blocks(&p, segments);
    int threads = work > PARALLEL_FROM ? omp_get_max_threads() : 1;
    p.parts = choose_parts(&p, threads);
    int64_t units = p.families * a->groups * p.parts, sums = 0;
    for (int64_t f = 0; f < p.families; f++) {
        p.fam[f].sums_at = sums;
        sums += p.parts > 1 ? a->groups * p.parts * 2 * p.fam[f].keys * p.ld : 0;
        keys += p.fam[f].keys;
    }
    int64_t columns = sz_columns_most(a);
    int64_t extra = sz_round_up(columns * (a->dim + 2 * p.ld) + SZ_KEYS * SZ_PANEL + 2 * p.most_keys * a->dim +
                                (p.parts > 1 ? 0 : 2 * p.most_keys * p.ld) + 16 * 16, 16);
    size_t bytes = sz_columns_bytes(a) + (size_t)extra * 4;
    char *buffers = sz_scratch(bytes * (size_t)threads + (size_t)sums * 4);
    if (!buffers) return sz_fail("attention_backward: out of memory");
    p.sums = (float *)(buffers + bytes * (size_t)threads);
    if (queries < c->out[0]->shape[0] || keys < c->out[0]->shape[0]) memset(c->out[0]->data, 0, sz_bytes(c->out[0]));
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
        w.k = sz_carve(&at, p.most_keys * a->dim);
        w.v = sz_carve(&at, p.most_keys * a->dim);
        float *own_sums = p.parts > 1 ? NULL : sz_carve(&at, 2 * p.most_keys * p.ld);
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < units; i++) backward_unit(&p, i, &w, own_sums);
        if (p.parts > 1) {
#pragma omp for schedule(static)
            for (int64_t i = 0; i < units; i++) {      /* each sums one stretch of a family's keys */
                int64_t part = i % p.parts, g = i / p.parts % a->groups;
                const family *f = p.fam + i / p.parts / a->groups;
                float *first = p.sums + f->sums_at + g * p.parts * 2 * f->keys * p.ld;
                store_keys(&p, f, g, first, p.parts, f->keys * part / p.parts, f->keys * (part + 1) / p.parts);
            }
        }
    }
    return 0;
}
