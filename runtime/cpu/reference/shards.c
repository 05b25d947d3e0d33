/* reference/shards.c - the reference kernels of the ops of a split model: simple loops in double,
 * no threads.
 *
 * Leaves out: several ranks. Over them the fast kernels are the only ones; tests of ranks compare
 * each element.
 */
#include "core/core.h"
#include <math.h>

/* ---- collectives of one rank ---- */
int sz_ref_tp_copy(const sz_call *c)
{
    (void)c;
    return 0;
}

int sz_ref_tp_sum(const sz_call *c)
{
    if (c->args[0] != 0) return sz_fail("tp_sum: the reference kernel is for one rank");
    for (int64_t i = 0; i < c->in[0]->numel; i++) sz_put(c->out[0], i, sz_get(c->in[0], i));
    return 0;
}

int sz_ref_tp_sum_(const sz_call *c)
{
    return c->args[0] == 0 ? 0 : sz_fail("tp_sum_: the reference kernel is for one rank");
}

int sz_ref_tp_gather(const sz_call *c)
{
    if (c->args[0] != 0) return sz_fail("tp_gather: the reference kernel is for one rank");
    const char *from = c->in[0]->data;
    for (size_t i = 0; i < sz_bytes(c->in[0]); i++) ((char *)c->out[0]->data)[i] = from[i];
    return 0;
}

/* ---- embedding ---- */
int sz_ref_embedding_part(const sz_call *c)
{
    const sz_tensor *table = c->in[0];
    const int64_t d = sz_cols(table);
    for (int64_t i = 0; i < c->in[1]->numel; i++) {
        const double row = (double)sz_i32(c->in[1])[i] - c->args[0];
        const bool own = row >= 0 && row < (double)table->shape[0];
        for (int64_t k = 0; k < d; k++)
            sz_put(c->out[0], i * d + k, own ? sz_get(table, (int64_t)row * d + k) : 0);
    }
    return 0;
}

/* ---- log-probability ---- */
/* The scaled logits of row i into z [v]; returns their log-sum-exp. */
static double row_logits(const sz_tensor *x, const sz_tensor *w, int64_t i, double scale, double *z)
{
    const int64_t k = x->shape[1];
    double sum = 0;
    for (int64_t j = 0; j < w->shape[0]; j++) {
        double s = 0;
        for (int64_t q = 0; q < k; q++) s += (double)sz_get(x, i * k + q) * sz_get(w, j * k + q);
        z[j] = s * scale;
        sum += exp(z[j]);
    }
    return log(sum);
}

int sz_ref_logprob_part(const sz_call *c)
{
    const int64_t n = c->in[0]->shape[0];
    const int64_t v = c->in[1]->shape[0];
    float *out = sz_f32(c->out[0]);
    double *z = sz_scratch((size_t)v * sizeof *z);
    if (!z) return -1;
    for (int64_t i = 0; i < n; i++) {
        const double lse = row_logits(c->in[0], c->in[1], i, c->args[2], z);
        const double id = (double)sz_i32(c->in[2])[i] - c->args[0];
        double h = 0;
        for (int64_t j = 0; j < v; j++) h -= exp(z[j] - lse) * (z[j] - lse);
        out[i] = (float)lse;
        out[n + i] = (float)h;
        out[2 * n + i] = id >= 0 && id < (double)v ? (float)z[(int64_t)id] : 0;
    }
    return 0;
}

int sz_ref_logprob_part_backward(const sz_call *c)
{
    const sz_tensor *x = c->in[0];
    const sz_tensor *w = c->in[1];
    sz_tensor *acc = c->in[5];
    const int64_t n = x->shape[0];
    const int64_t k = x->shape[1];
    const int64_t v = w->shape[0];
    const float *d = sz_f32(c->in[4]);
    double *z = sz_scratch((size_t)v * sizeof *z);
    if (!z) return -1;
    for (int64_t i = 0; i < n; i++) {
        const double lse = row_logits(x, w, i, c->args[1], z);
        const double h = sz_f32(c->in[3])[n + i];

        /* The gradient of each logit. */
        for (int64_t j = 0; j < v; j++) {
            const double log_p = z[j] - lse;
            z[j] = exp(log_p) * (d[i] - d[n + i] * (log_p + h));
            if ((double)(sz_i32(c->in[2])[i] - j) == c->args[0]) z[j] += d[2 * n + i];
            z[j] *= c->args[1];
        }

        /* dx = dz w, acc += dz^T x */
        for (int64_t q = 0; q < k; q++) {
            double s = 0;
            for (int64_t j = 0; j < v; j++) s += z[j] * sz_get(w, j * k + q);
            sz_put(c->out[0], i * k + q, (float)s);
        }
        for (int64_t j = 0; acc && j < v; j++)
            for (int64_t q = 0; q < k; q++)
                sz_f32(acc)[j * k + q] += (float)(z[j] * sz_get(x, i * k + q));
    }
    return 0;
}

/* Column i of parts [p * 3, n]: its log-sum-exp over all parts. */
static double whole_lse(const sz_tensor *parts, int64_t i)
{
    const int64_t n = parts->shape[1];
    double sum = 0;
    for (int64_t r = 0; r < parts->shape[0]; r += 3) sum += exp((double)sz_get(parts, r * n + i));
    return log(sum);
}

/* The expectation of the logits in it, and from that the entropy. */
static double whole_entropy(const sz_tensor *parts, int64_t i)
{
    const int64_t n = parts->shape[1];
    const double lse = whole_lse(parts, i);
    double expectation = 0;
    for (int64_t r = 0; r < parts->shape[0]; r += 3) {
        const double own = (double)sz_get(parts, r * n + i);
        expectation += exp(own - lse) * (own - (double)sz_get(parts, (r + 1) * n + i));
    }
    return lse - expectation;
}

int sz_ref_logprob_join(const sz_call *c)
{
    const sz_tensor *parts = c->in[0];
    const int64_t n = parts->shape[1];
    for (int64_t i = 0; i < n; i++) {
        double chosen = 0;
        for (int64_t r = 2; r < parts->shape[0]; r += 3) chosen += sz_get(parts, r * n + i);
        sz_put(c->out[0], i, (float)(chosen - whole_lse(parts, i)));
        sz_put(c->out[1], i, (float)whole_entropy(parts, i));
    }
    return 0;
}

int sz_ref_logprob_join_backward(const sz_call *c)
{
    const sz_tensor *parts = c->in[0];
    const int64_t n = parts->shape[1];
    for (int64_t i = 0; i < n; i++) {
        const double lse = whole_lse(parts, i);
        const double h = whole_entropy(parts, i);
        const double g = c->in[1] ? sz_get(c->in[1], i) : 0;
        const double e = c->in[2] ? sz_get(c->in[2], i) : 0;
        for (int64_t r = 0; r < parts->shape[0]; r += 3) {
            /* share: of the probability. Its derivative by the part's log-sum-exp is
             * share (1 - share), by another's -share times that one's. */
            const double own = (double)sz_get(parts, r * n + i);
            const double share = exp(own - lse);
            const double surprise = (double)sz_get(parts, (r + 1) * n + i) - (own - lse);
            sz_put(c->out[0], r * n + i, (float)(-g * share + e * share * (surprise - h)));
            sz_put(c->out[0], (r + 1) * n + i, (float)(e * share));
            sz_put(c->out[0], (r + 2) * n + i, (float)g);
        }
    }
    return 0;
}
