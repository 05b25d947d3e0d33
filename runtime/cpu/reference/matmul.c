/* reference/matmul.c - the reference kernels of cpu/matmul.c and cpu/logprob.c: simple loops,
 * double sums. */
#include "core/core.h"
#include <math.h>
#include <stdlib.h>

int sz_ref_matmul(const sz_call *c)
{
    sz_tensor *a = c->in[0];
    sz_tensor *b = c->in[1];
    sz_tensor *y = c->out[0];
    bool ta = c->args[0] != 0;
    bool tb = c->args[1] != 0;
    int batch = a->ndim - 2;
    int64_t m = y->shape[batch];
    int64_t n = y->shape[batch + 1];
    int64_t k = a->shape[batch + (ta ? 0 : 1)];
    int64_t count = batch ? a->shape[0] : 1;
    for (int64_t z = 0; z < count; z++)
        for (int64_t i = 0; i < m; i++)
            for (int64_t j = 0; j < n; j++) {
                double s = 0;
                for (int64_t r = 0; r < k; r++)
                    s += (double)sz_get(a, z * m * k + (ta ? r * m + i : i * k + r)) *
                         sz_get(b, z * n * k + (tb ? j * k + r : r * n + j));
                sz_put(y, (z * m + i) * n + j, (float)s);
            }
    return 0;
}

static int linear(const sz_call *c, int weights, bool gelu)
{
    sz_tensor *x = c->in[0];
    sz_tensor *y = c->out[0];
    int64_t n = sz_rows(x);
    int64_t k = sz_cols(x);
    int64_t ld = sz_cols(y);
    int64_t col = 0;
    for (int i = 0; i < weights && c->in[1 + i]; i++) {
        sz_tensor *w = c->in[1 + i];
        sz_tensor *b = c->in[1 + weights + i];
        for (int64_t r = 0; r < n; r++)
            for (int64_t j = 0; j < w->shape[0]; j++) {
                double s = b ? sz_get(b, j) : 0;
                for (int64_t q = 0; q < k; q++)
                    s += (double)sz_get(x, r * k + q) * sz_get(w, j * k + q);
                sz_put(y, r * ld + col + j, (float)(gelu ? s * 0.5 * erfc(-s * M_SQRT1_2) : s));
            }
        col += w->shape[0];
    }
    return 0;
}
int sz_ref_linear(const sz_call *c) { return linear(c, 1, false); }
int sz_ref_linear_gelu(const sz_call *c) { return linear(c, 1, true); }
int sz_ref_linear_f32_out(const sz_call *c)
{
    return linear(&(sz_call){ .in = { c->in[0], c->in[1] }, .out = { c->out[0] } }, 1, false);
}
int sz_ref_linear_cat(const sz_call *c) { return linear(c, 3, false); }

int sz_ref_linear_add_(const sz_call *c)
{
    sz_tensor *y = c->in[0];
    sz_tensor *x = c->in[1];
    sz_tensor *w = c->in[2];
    int64_t n = sz_rows(x);
    int64_t k = sz_cols(x);
    int64_t m = w->shape[0];
    int64_t ld = sz_cols(y);
    int64_t col = (int64_t)c->args[0];
    for (int64_t r = 0; r < n; r++)
        for (int64_t j = 0; j < m; j++) {
            double s = sz_get(y, r * ld + col + j);
            for (int64_t q = 0; q < k; q++)
                s += (double)sz_get(x, r * k + q) * sz_get(w, j * k + q);
            sz_put(y, r * ld + col + j, (float)s);
        }
    return 0;
}

int sz_ref_linear_dx(const sz_call *c)
{
    sz_tensor *dy = c->in[0];
    sz_tensor *dx = c->out[0];
    int64_t n = sz_rows(dy);
    int64_t ld = sz_cols(dy);
    int64_t k = sz_cols(dx);
    for (int64_t r = 0; r < n; r++)
        for (int64_t q = 0; q < k; q++) {
            double s = 0;
            int64_t col = (int64_t)c->args[0];
            for (int i = 1; i <= 3 && c->in[i]; i++) {
                for (int64_t j = 0; j < c->in[i]->shape[0]; j++)
                    s += (double)sz_get(dy, r * ld + col + j) * sz_get(c->in[i], j * k + q);
                col += c->in[i]->shape[0];
            }
            sz_put(dx, r * k + q, (float)s);
        }
    return 0;
}

int sz_ref_linear_dw_(const sz_call *c)
{
    sz_tensor *acc = c->in[0];
    sz_tensor *x = c->in[1];
    sz_tensor *dy = c->in[2];
    int64_t m = acc->shape[0];
    int64_t k = sz_cols(x);
    int64_t n = sz_rows(x);
    int64_t ld = sz_cols(dy);
    int64_t col = (int64_t)c->args[0];
    for (int64_t j = 0; j < m; j++)
        for (int64_t q = 0; q < k; q++) {
            double s = 0;
            for (int64_t r = 0; r < n; r++)
                s += (double)sz_get(dy, r * ld + col + j) * sz_get(x, r * k + q);
            sz_f32(acc)[j * k + q] += (float)s;
        }
    return 0;
}

int sz_ref_column_sum_(const sz_call *c)
{
    sz_tensor *acc = c->in[0];
    sz_tensor *dy = c->in[1];
    int64_t n = sz_rows(dy);
    int64_t ld = sz_cols(dy);
    int64_t col = (int64_t)c->args[0];
    for (int64_t j = 0; j < acc->numel; j++) {
        double s = 0;
        for (int64_t r = 0; r < n; r++) s += sz_get(dy, r * ld + col + j);
        sz_f32(acc)[j] += (float)s;
    }
    return 0;
}

/* Log-probabilities of row i over the whole vocabulary into log_p [v]; returns the log-sum-exp. */
static double row_log_p(const sz_tensor *x, const sz_tensor *w, int64_t i, double scale,
                        double *log_p)
{
    int64_t k = x->shape[1];
    int64_t v = w->shape[0];
    double top = -INFINITY;
    double sum = 0;
    for (int64_t j = 0; j < v; j++) {
        double s = 0;
        for (int64_t q = 0; q < k; q++) s += (double)sz_get(x, i * k + q) * sz_get(w, j * k + q);
        log_p[j] = s * scale;
        if (log_p[j] > top) top = log_p[j];
    }
    for (int64_t j = 0; j < v; j++) sum += exp(log_p[j] - top);
    double lse = top + log(sum);
    for (int64_t j = 0; j < v; j++) log_p[j] -= lse;
    return lse;
}

int sz_ref_logprob(const sz_call *c)
{
    sz_tensor *x = c->in[0];
    sz_tensor *w = c->in[1];
    int64_t n = x->shape[0];
    int64_t v = w->shape[0];
    double *log_p = sz_scratch((size_t)v * sizeof *log_p);
    if (!log_p) return -1;
    for (int64_t i = 0; i < n; i++) {
        sz_f32(c->out[2])[i] = (float)row_log_p(x, w, i, c->args[0], log_p);
        sz_f32(c->out[0])[i] = (float)log_p[sz_i32(c->in[2])[i]];
        double h = 0;
        for (int64_t j = 0; j < v; j++) h -= exp(log_p[j]) * log_p[j];
        sz_f32(c->out[1])[i] = (float)h;
    }
    return 0;
}

int sz_ref_logprob_backward(const sz_call *c)
{
    sz_tensor *x = c->in[0];
    sz_tensor *w = c->in[1];
    sz_tensor *acc = c->in[7];
    sz_tensor *dx = c->out[0];
    int64_t n = x->shape[0];
    int64_t k = x->shape[1];
    int64_t v = w->shape[0];
    double *log_p = sz_scratch((size_t)v * sizeof *log_p);
    if (!log_p) return -1;
    for (int64_t i = 0; i < n; i++) {
        row_log_p(x, w, i, c->args[0], log_p);
        double g = c->in[5] ? sz_f32(c->in[5])[i] : 0;
        double e = c->in[6] ? sz_f32(c->in[6])[i] : 0;
        double h = sz_f32(c->in[4])[i];
        for (int64_t j = 0; j < v; j++) {
            double p = exp(log_p[j]);
            log_p[j] = ((j == sz_i32(c->in[2])[i] ? g : 0) - p * (g + e * (log_p[j] + h))) *
                       c->args[0];
        }
        for (int64_t q = 0; q < k; q++) {
            double s = 0;
            for (int64_t j = 0; j < v; j++) s += log_p[j] * sz_get(w, j * k + q);
            sz_put(dx, i * k + q, (float)s);
        }
        for (int64_t j = 0; acc && j < v; j++)
            for (int64_t q = 0; q < k; q++)
                sz_f32(acc)[j * k + q] += (float)(log_p[j] * sz_get(x, i * k + q));
    }
    return 0;
}
