/* reference/rowwise.c - the reference kernels of the "rowwise" rows of ops.def: simple loops,
 * double, no threads. */
#include "core/core.h"
#include <math.h>

static double to_dtype(double v, int dtype)
{
    return dtype == SZ_BF16 ? (double)sz_from_bf16(sz_to_bf16((float)v)) : (double)(float)v;
}

static double inverse_rms(const sz_tensor *x, int64_t row, int64_t d, double eps)
{
    double s = 0;
    for (int64_t j = 0; j < d; j++)
        s += (double)sz_get(x, row * d + j) * (double)sz_get(x, row * d + j);
    return 1 / sqrt(s / (double)d + eps);
}

int sz_ref_rmsnorm(const sz_call *c)
{
    sz_tensor *x = c->in[0];
    sz_tensor *w = c->in[1];
    sz_tensor *y = c->out[0];
    int64_t d = sz_cols(x);
    for (int64_t row = 0; row < sz_rows(x); row++) {
        double r = inverse_rms(x, row, d, c->args[0]);
        for (int64_t j = 0; j < d; j++) {
            double normal = to_dtype((double)sz_get(x, row * d + j) * r, x->dtype);
            sz_put(y, row * d + j, (float)(normal * (double)sz_get(w, j)));
        }
    }
    return 0;
}

/* Column by column over all rows for dw: slow, and exact in its order. */
int sz_ref_rmsnorm_backward(const sz_call *c)
{
    sz_tensor *x = c->in[0];
    sz_tensor *w = c->in[1];
    sz_tensor *dy = c->in[2];
    sz_tensor *dx = c->out[0];
    sz_tensor *dw = c->out[1];
    int64_t d = sz_cols(x);
    int64_t rows = sz_rows(x);
    double *sums = sz_scratch((size_t)(d + 1) * sizeof *sums);
    if (!sums) return -1;
    for (int64_t j = 0; j < d; j++) sums[j] = 0;
    for (int64_t row = 0; row < rows; row++) {
        double r = inverse_rms(x, row, d, c->args[0]);
        double dot = 0;
        for (int64_t j = 0; j < d; j++)
            dot += (double)sz_get(w, j) * (double)sz_get(dy, row * d + j) *
                   (double)sz_get(x, row * d + j);
        for (int64_t j = 0; j < d; j++) {
            double v = (double)sz_get(x, row * d + j);
            double g = (double)sz_get(dy, row * d + j);
            sz_put(dx, row * d + j,
                   (float)(r * (double)sz_get(w, j) * g - v * r * r * r / (double)d * dot));
            sums[j] += g * v * r;
        }
    }
    for (int64_t j = 0; j < d; j++) sz_put(dw, j, (float)sums[j]);
    return 0;
}

static void moments(const sz_tensor *x, int64_t row, int64_t d, double eps, double *mean, double *r)
{
    double sum = 0;
    double squares = 0;
    for (int64_t j = 0; j < d; j++) sum += (double)sz_get(x, row * d + j);
    *mean = sum / (double)d;
    for (int64_t j = 0; j < d; j++) squares += pow((double)sz_get(x, row * d + j) - *mean, 2);
    *r = 1 / sqrt(squares / (double)d + eps);
}

int sz_ref_layernorm(const sz_call *c)
{
    sz_tensor *x = c->in[0];
    sz_tensor *w = c->in[1];
    sz_tensor *b = c->in[2];
    sz_tensor *y = c->out[0];
    int64_t d = sz_cols(x);
    for (int64_t row = 0; row < sz_rows(x); row++) {
        double mean, r;
        moments(x, row, d, c->args[0], &mean, &r);
        for (int64_t j = 0; j < d; j++) {
            double normal = ((double)sz_get(x, row * d + j) - mean) * r;
            sz_put(y, row * d + j, (float)(normal * (double)sz_get(w, j) + (double)sz_get(b, j)));
        }
    }
    return 0;
}

int sz_ref_layernorm_backward(const sz_call *c)
{
    sz_tensor *x = c->in[0];
    sz_tensor *w = c->in[1];
    sz_tensor *dy = c->in[2];
    sz_tensor *dx = c->out[0];
    sz_tensor *dw = c->out[1];
    sz_tensor *db = c->out[2];
    int64_t d = sz_cols(x);
    int64_t rows = sz_rows(x);
    double *sums = sz_scratch((size_t)(2 * d + 1) * sizeof *sums); /* dw, db */
    if (!sums) return -1;
    for (int64_t j = 0; j < 2 * d; j++) sums[j] = 0;
    for (int64_t row = 0; row < rows; row++) {
        double mean;
        double r;
        double sum = 0;
        double dot = 0;
        moments(x, row, d, c->args[0], &mean, &r);
        for (int64_t j = 0; j < d; j++) {
            double v = (double)sz_get(w, j) * (double)sz_get(dy, row * d + j);
            sum += v;
            dot += v * ((double)sz_get(x, row * d + j) - mean) * r;
        }
        for (int64_t j = 0; j < d; j++) {
            double g = (double)sz_get(dy, row * d + j);
            double normal = ((double)sz_get(x, row * d + j) - mean) * r;
            sz_put(dx, row * d + j,
                   (float)(r * ((double)sz_get(w, j) * g - sum / (double)d -
                                normal * dot / (double)d)));
            sums[j] += g * normal;
            sums[d + j] += g;
        }
    }
    for (int64_t j = 0; j < d; j++)
        sz_put(dw, j, (float)sums[j]), sz_put(db, j, (float)sums[d + j]);
    return 0;
}

int sz_ref_softmax(const sz_call *c)
{
    sz_tensor *x = c->in[0];
    sz_tensor *y = c->out[0];
    int64_t d = sz_cols(x);
    for (int64_t row = 0; row < sz_rows(x); row++) {
        double highest = -INFINITY;
        double sum = 0;
        for (int64_t j = 0; j < d; j++) {
            const double value = (double)sz_get(x, row * d + j);
            if (value > highest) highest = value;
        }
        for (int64_t j = 0; j < d; j++) sum += exp((double)sz_get(x, row * d + j) - highest);
        for (int64_t j = 0; j < d; j++)
            sz_put(y, row * d + j, (float)(exp((double)sz_get(x, row * d + j) - highest) / sum));
    }
    return 0;
}

int sz_ref_softmax_backward(const sz_call *c)
{
    sz_tensor *y = c->in[0];
    sz_tensor *dy = c->in[1];
    sz_tensor *dx = c->out[0];
    int64_t d = sz_cols(y);
    for (int64_t row = 0; row < sz_rows(y); row++) {
        double dot = 0;
        for (int64_t j = 0; j < d; j++)
            dot += (double)sz_get(y, row * d + j) * (double)sz_get(dy, row * d + j);
        for (int64_t j = 0; j < d; j++)
            sz_put(
                dx, row * d + j,
                (float)((double)sz_get(y, row * d + j) * ((double)sz_get(dy, row * d + j) - dot)));
    }
    return 0;
}

/* With bf16 x and bf16 angles the products are rounded to bf16 before they are added, as PyTorch
 * does. */
int sz_ref_rope(const sz_call *c)
{
    sz_tensor *x = c->in[0];
    sz_tensor *cosines = c->in[1];
    sz_tensor *sines = c->in[2];
    sz_tensor *y = c->out[0];
    int64_t cols = sz_cols(x);
    int64_t heads = (int64_t)c->args[0];
    int64_t head_dim = (int64_t)c->args[1];
    int64_t half = head_dim / 2;
    bool rounded = x->dtype == SZ_BF16 && cosines->dtype == SZ_BF16;
    for (int64_t i = 0; i < x->numel; i++) {
        int64_t row = i / cols;
        int64_t col = i % cols;
        int64_t j = col % head_dim;
        if (col >= heads * head_dim) {
            sz_put(y, i, sz_get(x, i));
            continue;
        }
        double turn = j < half ? -c->args[2] : c->args[2];
        int64_t other = j < half ? i + half : i - half;
        int64_t angle = row * half + j % half;
        double kept = (double)sz_get(x, i) * (double)sz_get(cosines, angle);
        double turned = (double)sz_get(x, other) * (double)sz_get(sines, angle) * turn;
        if (rounded) kept = to_dtype(kept, SZ_BF16), turned = to_dtype(turned, SZ_BF16);
        sz_put(y, i, (float)(kept + turned));
    }
    return 0;
}

static void copy_row(sz_tensor *to, int64_t i, const sz_tensor *from, int64_t j, int64_t n)
{
    for (int64_t k = 0; k < n; k++) sz_put(to, i + k, sz_get(from, j + k));
}

int sz_ref_embedding(const sz_call *c)
{
    sz_tensor *out = c->out[0];
    int64_t d = sz_cols(c->in[0]);
    for (int64_t i = 0; i < c->in[1]->numel; i++)
        copy_row(out, i * d, c->in[0], sz_i32(c->in[1])[i] * d, d);
    return 0;
}

int sz_ref_gather_rows(const sz_call *c) { return sz_ref_embedding(c); }

int sz_ref_index_add_(const sz_call *c)
{
    sz_tensor *acc = c->out[0];
    sz_tensor *ids = c->in[1];
    sz_tensor *x = c->in[2];
    int64_t d = sz_cols(x);
    for (int64_t i = 0; i < ids->numel; i++)
        for (int64_t j = 0; j < d; j++) {
            int64_t at = sz_i32(ids)[i] * d + j;
            sz_put(acc, at, (float)((double)sz_get(acc, at) + (double)sz_get(x, i * d + j)));
        }
    return 0;
}

int sz_ref_index_copy(const sz_call *c)
{
    sz_tensor *y = c->out[0];
    sz_tensor *ids = c->in[1];
    sz_tensor *src = c->in[2];
    int64_t d = sz_cols(src);
    copy_row(y, 0, c->in[0], 0, y->numel);
    for (int64_t i = 0; i < ids->numel; i++) copy_row(y, sz_i32(ids)[i] * d, src, i * d, d);
    return 0;
}

int sz_ref_pad_rows(const sz_call *c)
{
    sz_tensor *x = c->in[0];
    sz_tensor *y = c->out[0];
    copy_row(y, 0, x, 0, x->numel);
    for (int64_t i = x->numel; i < y->numel; i++) sz_put(y, i, 0);
    return 0;
}

/* Of the rows ids[i, ..] the first whose element of column j is largest. */
static int64_t largest(const sz_tensor *x, const sz_tensor *ids, int64_t i, int64_t j)
{
    const int32_t *row = sz_i32(ids) + i * ids->shape[1];
    int64_t d = sz_cols(x);
    int64_t best = row[0];
    for (int64_t k = 1; k < ids->shape[1]; k++)
        if (sz_get(x, row[k] * d + j) > sz_get(x, best * d + j)) best = row[k];
    return best;
}

int sz_ref_max_pool_rows(const sz_call *c)
{
    sz_tensor *x = c->in[0];
    sz_tensor *y = c->out[0];
    int64_t d = sz_cols(x);
    for (int64_t i = 0; i < y->numel; i++)
        sz_put(y, i, sz_get(x, largest(x, c->in[1], i / d, i % d) * d + i % d));
    return 0;
}

int sz_ref_max_pool_rows_backward(const sz_call *c)
{
    sz_tensor *x = c->in[0];
    sz_tensor *dy = c->in[2];
    sz_tensor *dx = c->out[0];
    int64_t d = sz_cols(x);
    double *sums = sz_scratch((size_t)(x->numel + 1) * sizeof *sums);
    if (!sums) return -1;
    for (int64_t i = 0; i < x->numel; i++) sums[i] = 0;
    for (int64_t i = 0; i < dy->numel; i++)
        sums[largest(x, c->in[1], i / d, i % d) * d + i % d] += (double)sz_get(dy, i);
    for (int64_t i = 0; i < dx->numel; i++) sz_put(dx, i, (float)sums[i]);
    return 0;
}

int sz_ref_scatter_cols_(const sz_call *c)
{
    sz_tensor *dst = c->out[0];
    sz_tensor *ids = c->in[1];
    sz_tensor *src = c->in[2];
    int64_t w = sz_cols(dst);
    int64_t col = (int64_t)c->args[0];
    for (int64_t i = 0; i < ids->numel; i++)
        copy_row(dst, sz_i32(ids)[i] * w, src, i * sz_cols(src) + col, w);
    return 0;
}
