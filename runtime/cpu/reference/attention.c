/* reference/attention.c - attention in simple loops: the reference for cpu/attention.c,
 * cpu/attention_backward.c and cpu/attention_cached.c. Shapes and the segment table are described
 * in cpu/attention.c. Scores of one query at a time, sums in double. Leaves out: speed. */
#include "cpu/attention_args.h"
#include <math.h>

static double dot(const sz_tensor *a, int64_t i, const sz_tensor *b, int64_t j, int64_t n)
{
    double s = 0;
    for (int64_t d = 0; d < n; d++) s += (double)sz_get(a, i + d) * sz_get(b, j + d);
    return s;
}

/* The row of key j of a segment: the parent's keys come first. */
static int64_t key_row(const sz_segment_row *s, int64_t j)
{
    return j < s->p_len ? s->p_start + j : s->k_start + j - s->p_len;
}

/* Scores p[0..n) of query i of a segment for head h; returns the largest. */
static double scores(const sz_attention_args *a, const sz_segment_row *s, int64_t i, int64_t h,
                     int64_t n, double *p)
{
    double max = -INFINITY;
    for (int64_t j = 0; j < n; j++) {
        int64_t q = (s->q_start + i) * sz_cols(a->q) + a->q_col + h * a->dim;
        int64_t k = key_row(s, j) * sz_cols(a->k) + a->k_col + h / a->share * a->dim;
        p[j] = a->scale * dot(a->q, q, a->k, k, a->dim);
        if (!(p[j] <= max)) max = p[j];
    }
    return max;
}

static int64_t longest(const sz_tensor *segments)
{
    int64_t n = 1;
    for (int64_t t = 0; t < segments->shape[0]; t++) {
        sz_segment_row s = sz_segment_get(segments, t);
        if (s.p_len + s.k_len > n) n = s.p_len + s.k_len;
    }
    return n;
}

static int forward(sz_attention_args a, sz_tensor *out, sz_tensor *lse)
{
    double *p = sz_scratch((size_t)(longest(a.segments) + a.dim) * sizeof(double));
    if (!p) return sz_fail("attention: out of memory");
    double *sum = p + longest(a.segments);
    memset(out->data, 0, sz_bytes(out));
    for (int64_t i = 0; lse && i < lse->numel; i++) sz_put(lse, i, -INFINITY);
    for (int64_t t = 0; t < a.segments->shape[0]; t++) {
        sz_segment_row s = sz_segment_get(a.segments, t);
        for (int64_t i = 0; i < s.q_len; i++)
            for (int64_t h = 0; h < a.heads; h++) {
                int64_t n = s.p_len + sz_own_keys(&s, i, a.causal);
                int64_t g = h / a.share;
                if (n == 0) continue;
                double max = scores(&a, &s, i, h, n, p);
                double total = 0;
                for (int64_t d = 0; d < a.dim; d++) sum[d] = 0;
                for (int64_t j = 0; j < n; j++) {
                    double e = exp(p[j] - max);
                    total += e;
                    int64_t v = key_row(&s, j) * sz_cols(a.v) + a.v_col + g * a.dim;
                    for (int64_t d = 0; d < a.dim; d++) sum[d] += e * sz_get(a.v, v + d);
                }
                int64_t row = s.q_start + i;
                int64_t o = row * sz_cols(out) + h * a.dim;
                for (int64_t d = 0; d < a.dim; d++) sz_put(out, o + d, (float)(sum[d] / total));
                if (lse) sz_put(lse, h * lse->shape[1] + row, (float)(max + log(total)));
            }
    }
    return 0;
}

int sz_ref_attention(const sz_call *c)
{
    return forward(sz_attention_packed(c), c->out[0], c->out[1]);
}

int sz_ref_attention_cached(const sz_call *c)
{
    return forward(sz_attention_separate(c), c->out[0], NULL);
}

int sz_ref_attention_cross(const sz_call *c)
{
    return forward(sz_attention_separate(c), c->out[0], c->out[1]);
}

/* Sums of dq, dk and dv, of the sizes of q, k, v; the same array if they are one tensor. p: room
 * for scores. */
typedef struct {
    double *q, *k, *v, *p;
} ref_sums;

static void add_gradients(const sz_attention_args *a, const sz_tensor *out, const sz_tensor *lse,
                          const sz_tensor *dout, const ref_sums *sums)
{
    int64_t D = a->dim;
    for (int64_t t = 0; t < a->segments->shape[0]; t++) {
        sz_segment_row s = sz_segment_get(a->segments, t);
        for (int64_t i = 0; i < s.q_len; i++)
            for (int64_t h = 0; h < a->heads; h++) {
                int64_t n = s.p_len + sz_own_keys(&s, i, a->causal);
                int64_t g = h / a->share;
                int64_t row = s.q_start + i;
                scores(a, &s, i, h, n, sums->p);
                int64_t o = row * sz_cols(out) + h * D;
                int64_t q = row * sz_cols(a->q) + a->q_col + h * D;
                double delta = dot(out, o, dout, o, D);
                double l = sz_get(lse, h * lse->shape[1] + row);
                for (int64_t j = 0; j < n; j++) {
                    int64_t k = key_row(&s, j) * sz_cols(a->k) + a->k_col + g * D;
                    int64_t v = key_row(&s, j) * sz_cols(a->v) + a->v_col + g * D;
                    double e = exp(sums->p[j] - l);
                    double ds = a->scale * e * (dot(dout, o, a->v, v, D) - delta);
                    for (int64_t d = 0; d < D; d++) {
                        sums->v[v + d] += e * sz_get(dout, o + d);
                        sums->k[k + d] += ds * sz_get(a->q, q + d);
                        sums->q[q + d] += ds * sz_get(a->k, k + d);
                    }
                }
            }
    }
}

static void put_all(sz_tensor *t, const double *from)
{
    for (int64_t i = 0; i < t->numel; i++) sz_put(t, i, (float)from[i]);
}

int sz_ref_attention_backward(const sz_call *c)
{
    sz_attention_args a = sz_attention_packed(c);
    int64_t size = a.q->numel;
    int64_t bytes = (size + longest(a.segments)) * (int64_t)sizeof(double);
    double *sums = sz_scratch((size_t)bytes);
    if (!sums) return sz_fail("attention_backward: out of memory");
    memset(sums, 0, (size_t)bytes);
    add_gradients(&a, c->in[2], c->in[3], c->in[4], &(ref_sums){ sums, sums, sums, sums + size });
    put_all(c->out[0], sums);
    return 0;
}

int sz_ref_attention_cross_backward(const sz_call *c)
{
    sz_attention_args a = sz_attention_separate(c);
    int64_t queries = a.q->numel;
    int64_t keys = a.k->numel;
    int64_t bytes = (queries + 2 * keys + longest(a.segments)) * (int64_t)sizeof(double);
    double *sums = sz_scratch((size_t)bytes);
    if (!sums) return sz_fail("attention_cross_backward: out of memory");
    memset(sums, 0, (size_t)bytes);
    add_gradients(
        &a, c->in[4], c->in[5], c->in[6],
        &(ref_sums){ sums, sums + queries, sums + queries + keys, sums + queries + 2 * keys });
    put_all(c->out[0], sums);
    put_all(c->out[1], sums + queries);
    put_all(c->out[2], sums + queries + keys);
    return 0;
}
