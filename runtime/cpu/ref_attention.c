/* ref_attention.c - attention in plain loops: the reference for attention.c and attention_cached.c.
 * Shapes and the segment table: attention.c. Scores of one query at a time, sums in double. Leaves out: speed. */
#include "attention_tile.h"

typedef struct { const sz_tensor *q, *k, *v; int64_t q_col, k_col, v_col; } ref_source;

static double dot(const sz_tensor *a, int64_t i, const sz_tensor *b, int64_t j, int64_t n)
{
    double s = 0;
    for (int64_t d = 0; d < n; d++) s += (double)sz_get(a, i + d) * sz_get(b, j + d);
    return s;
}

static int64_t key_row(const sz_segment_row *s, int64_t j) { return j < s->p_len ? s->p_start + j : s->k_start + j - s->p_len; }

/* Scores p[0..n) of query i of a segment for head h; returns the largest. */
static double scores(const sz_attention_args *a, const ref_source *x, const sz_segment_row *s, int64_t i, int64_t h, int64_t n, double *p)
{
    double max = -INFINITY;
    for (int64_t j = 0; j < n; j++) {
        p[j] = a->scale * dot(x->q, (s->q_start + i) * sz_cols(x->q) + x->q_col + h * a->dim,
                              x->k, key_row(s, j) * sz_cols(x->k) + x->k_col + h / a->share * a->dim, a->dim);
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

static int forward(const sz_call *c, const ref_source *x, const sz_tensor *segments, sz_tensor *out, sz_tensor *lse)
{
    sz_attention_args a = sz_attention_read(c);
    double *p = sz_scratch((size_t)(longest(segments) + a.dim) * sizeof(double));
    if (!p) return sz_fail("attention: out of memory");
    double *sum = p + longest(segments);
    memset(out->data, 0, sz_bytes(out));
    for (int64_t i = 0; lse && i < lse->numel; i++) sz_put(lse, i, -INFINITY);
    for (int64_t t = 0; t < segments->shape[0]; t++) {
        sz_segment_row s = sz_segment_get(segments, t);
        for (int64_t i = 0; i < s.q_len; i++)
            for (int64_t h = 0; h < a.heads; h++) {
                int64_t n = s.p_len + sz_own_keys(&s, i, a.causal), g = h / a.share;
                if (n == 0) continue;
                double max = scores(&a, x, &s, i, h, n, p), total = 0;
                for (int64_t d = 0; d < a.dim; d++) sum[d] = 0;
                for (int64_t j = 0; j < n; j++) {
                    double e = exp(p[j] - max);
                    total += e;
                    for (int64_t d = 0; d < a.dim; d++) sum[d] += e * sz_get(x->v, key_row(&s, j) * sz_cols(x->v) + x->v_col + g * a.dim + d);
                }
                for (int64_t d = 0; d < a.dim; d++) sz_put(out, (s.q_start + i) * sz_cols(out) + h * a.dim + d, (float)(sum[d] / total));
                if (lse) sz_put(lse, h * lse->shape[1] + s.q_start + i, (float)(max + log(total)));
            }
    }
    return 0;
}

int sz_ref_attention(const sz_call *c)
{
    sz_attention_args a = sz_attention_read(c);
    const sz_tensor *x = c->in[0];
    ref_source s = { x, x, x, 0, a.heads * a.dim, (a.heads + a.groups) * a.dim };
    return forward(c, &s, c->in[1], c->out[0], c->out[1]);
}

int sz_ref_attention_cached(const sz_call *c)
{
    ref_source s = { c->in[0], c->in[1], c->in[2], 0, 0, 0 };
    return forward(c, &s, c->in[3], c->out[0], NULL);
}

int sz_ref_attention_backward(const sz_call *c)
{
    sz_attention_args a = sz_attention_read(c);
    const sz_tensor *x = c->in[0], *segments = c->in[1], *out = c->in[2], *lse = c->in[3], *dout = c->in[4];
    sz_tensor *dx = c->out[0];
    ref_source src = { x, x, x, 0, a.heads * a.dim, (a.heads + a.groups) * a.dim };
    int64_t cols = sz_cols(x), D = a.dim;
    double *acc = sz_scratch((size_t)(x->numel + longest(segments)) * sizeof(double));
    if (!acc) return sz_fail("attention_backward: out of memory");
    double *p = acc + x->numel;
    for (int64_t i = 0; i < x->numel; i++) acc[i] = 0;
    for (int64_t t = 0; t < segments->shape[0]; t++) {
        sz_segment_row s = sz_segment_get(segments, t);
        for (int64_t i = 0; i < s.q_len; i++)
            for (int64_t h = 0; h < a.heads; h++) {
                int64_t n = s.p_len + sz_own_keys(&s, i, a.causal), g = h / a.share, row = s.q_start + i;
                scores(&a, &src, &s, i, h, n, p);
                int64_t o = row * sz_cols(out) + h * D, q = row * cols + h * D;
                double delta = dot(out, o, dout, o, D), l = sz_get(lse, h * lse->shape[1] + row);
                for (int64_t j = 0; j < n; j++) {
                    int64_t k = key_row(&s, j) * cols + src.k_col + g * D, v = key_row(&s, j) * cols + src.v_col + g * D;
                    double e = exp(p[j] - l), ds = a.scale * e * (dot(dout, o, x, v, D) - delta);
                    for (int64_t d = 0; d < D; d++) {
                        acc[v + d] += e * sz_get(dout, o + d);
                        acc[k + d] += ds * sz_get(x, q + d);
                        acc[q + d] += ds * sz_get(x, k + d);
                    }
                }
            }
    }
    for (int64_t i = 0; i < dx->numel; i++) sz_put(dx, i, (float)acc[i]);
    return 0;
}
