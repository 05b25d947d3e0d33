/* logprob.c - log-probability and entropy of chosen tokens, straight from hidden states: over the
 * whole vocabulary, or over a part of it, to be joined with the other parts.
 *
 * The logits z = x w^T / temperature exist for CHUNK rows at a time only, forward and backward. The
 * backward pass computes them again: dz_j = dlp (1[j = id] - p_j) - dent p_j (log p_j + H), then
 * dx = dz w / temperature and acc += dz^T x / temperature. Over a part, with its own p and H:
 * dz_j = dlse p_j - dH p_j (log p_j + H) + dlogit 1[j = id].
 * Leaves out: gradients with respect to the log-sum-exp.
 */
#include "gemm.h"
#include "vecmath.h"
#include <math.h>

enum { CHUNK = SZ_LOGPROB_ROWS, SUM_BLOCK = 1024 };

/* Rows [first, ...) of x, whatever its dtype. */
static const void *rows_from(const sz_tensor *x, int64_t first)
{
    return (const char *)x->data + (size_t)(first * x->shape[1]) * sz_dtype_size(x->dtype);
}

/* z [rows, v] = x[first .. first + rows) w^T. */
static int chunk_logits(const sz_tensor *x, const sz_tensor *w, int64_t first, int64_t rows,
                        float *z)
{
    int64_t k = x->shape[1];
    int64_t v = w->shape[0];
    return sz_gemm(false, true, rows, v, k, rows_from(x, first), k, w->data, k, x->dtype, 0, z, v);
}

/* Scales a row of logits in place; sets its log-sum-exp and entropy. */
static void row_stats(float *restrict z, int64_t v, float scale, float *lse, float *entropy)
{
    float top = -INFINITY;
#pragma omp simd reduction(max : top)
    for (int64_t j = 0; j < v; j++) {
        z[j] *= scale;
        top = z[j] > top ? z[j] : top;
    }

    /* Sums of e and of e log e, in f32 within a block. */
    double sum = 0;
    double weighted = 0;
    for (int64_t j0 = 0; j0 < v; j0 += SUM_BLOCK) {
        int64_t end = j0 + SUM_BLOCK < v ? j0 + SUM_BLOCK : v;
        float s = 0;
        float t = 0;
#pragma omp simd reduction(+ : s, t)
        for (int64_t j = j0; j < end; j++) {
            float e = sz_exp(z[j] - top);
            s += e;
            t += e * (z[j] - top);
        }
        sum += s;
        weighted += t;
    }

    double log_sum = log(sum);
    *lse = (float)(top + log_sum);
    *entropy = (float)(log_sum - weighted / sum);
}

int sz_cpu_logprob(const sz_call *c)
{
    sz_tensor *x = c->in[0];
    sz_tensor *w = c->in[1];
    const int32_t *ids = sz_i32(c->in[2]);
    float *logprob = sz_f32(c->out[0]);
    float *entropy = sz_f32(c->out[1]);
    float *lse = sz_f32(c->out[2]);
    float scale = (float)c->args[0];
    int64_t n = x->shape[0];
    int64_t v = w->shape[0];
    int64_t most = sz_min64(CHUNK, n);
    float *z = sz_scratch((size_t)most * (size_t)v * sizeof *z);
    if (!z) return -1;

    for (int64_t first = 0; first < n; first += CHUNK) {
        int64_t rows = sz_min64(CHUNK, n - first);
        if (chunk_logits(x, w, first, rows, z)) return -1;
/* The threads share the rows of the chunk. */
#pragma omp parallel for schedule(static)
        for (int64_t r = 0; r < rows; r++) {
            row_stats(z + r * v, v, scale, &lse[first + r], &entropy[first + r]);
            logprob[first + r] = z[r * v + ids[first + r]] - lse[first + r];
        }
    }
    return 0;
}

/* ---- backward ---- */
/* Row by row: the log-sum-exp, the entropy h, and the gradients g of -log-sum-exp, e of the
 * entropy and t of the chosen logit; of these each may be NULL, which is 0. */
typedef struct {
    const int32_t *ids;
    int64_t first; /* the word of w's row 0 */
    const float *lse, *entropy;
    const float *g, *e, *t;
    float sign; /* of g */
    float scale;
} row_inputs;

static float element(const float *p, int64_t i) { return p ? p[i] : 0; }

/* Row i of unscaled logits becomes the gradient of them. */
static inline void row_gradient(float *restrict row, int64_t v, const row_inputs *in, int64_t i)
{
    const float scale = in->scale;
    const float lse = in->lse[i];
    const float h = in->entropy[i];
    const float g = in->sign * element(in->g, i);
    const float e = element(in->e, i);
    for (int64_t j = 0; j < v; j++) {
        /* Below e^-80 a probability adds nothing, but the subnormal that it becomes slows the
         * products tenfold. */
        float log_p = row[j] * scale - lse;
        float p = log_p < -80 ? 0 : sz_exp(log_p);
        row[j] = -p * (g + e * (log_p + h)) * scale;
    }
    const int64_t chosen = in->ids[i] - in->first;
    if (chosen >= 0 && chosen < v) row[chosen] += element(in->t, i) * scale;
}

/* dx, and acc += dw where there is one. */
static int backward(sz_tensor *x, sz_tensor *w, const row_inputs *in, sz_tensor *acc, sz_tensor *dx)
{
    const bool bf16 = x->dtype == SZ_BF16;
    int64_t n = x->shape[0];
    int64_t k = x->shape[1];
    int64_t v = w->shape[0];

    /* Workspace: the logits, their gradient in bf16, and sums of dx. */
    int64_t most = sz_min64(CHUNK, n);
    float *z = sz_scratch((size_t)most * (size_t)v * sizeof *z);
    float *sums = sz_scratch((size_t)(most * k) * sizeof *sums);
    uint16_t *dz_bf16 = bf16 ? sz_scratch((size_t)most * (size_t)v * sizeof *dz_bf16) : NULL;
    if (!z || !sums || (bf16 && !dz_bf16)) return -1;

    for (int64_t first = 0; first < n; first += CHUNK) {
        int64_t rows = sz_min64(CHUNK, n - first);
        if (chunk_logits(x, w, first, rows, z)) return -1;

/* dz */
#pragma omp parallel for schedule(static)
        for (int64_t r = 0; r < rows; r++) {
            float *row = z + r * v;
            row_gradient(row, v, in, first + r);
            if (bf16)
                for (int64_t j = 0; j < v; j++) dz_bf16[r * v + j] = sz_to_bf16(row[j]);
        }

        /* dx = dz w, acc += dz^T x */
        const void *dz = bf16 ? (const void *)dz_bf16 : z;
        float *out = bf16 ? sums : sz_f32(dx) + first * k;
        if (sz_gemm(false, false, rows, k, v, dz, v, w->data, k, x->dtype, 0, out, k)) return -1;
        if (acc && sz_gemm(true, false, v, k, rows, dz, v, rows_from(x, first), k, x->dtype, 1,
                           sz_f32(acc), k))
            return -1;
        if (bf16)
            for (int64_t i = 0; i < rows * k; i++) sz_bf16(dx)[first * k + i] = sz_to_bf16(sums[i]);
    }
    return 0;
}

int sz_cpu_logprob_backward(const sz_call *c)
{
    const float *dlogprob = c->in[5] ? sz_f32(c->in[5]) : NULL;
    const row_inputs in = {
        .ids = sz_i32(c->in[2]),
        .lse = sz_f32(c->in[3]),
        .entropy = sz_f32(c->in[4]),
        .g = dlogprob,
        .e = c->in[6] ? sz_f32(c->in[6]) : NULL,
        .t = dlogprob,
        .sign = 1,
        .scale = (float)c->args[0],
    };
    return backward(c->in[0], c->in[1], &in, c->in[7], c->out[0]);
}

/* ---- over a part of the vocabulary ---- */
int sz_cpu_logprob_part(const sz_call *c)
{
    sz_tensor *x = c->in[0];
    sz_tensor *w = c->in[1];
    const int64_t n = x->shape[0];
    const int64_t v = w->shape[0];
    float *lse = sz_f32(c->out[0]);
    float *entropy = lse + n;
    float *chosen = entropy + n;
    const int64_t most = sz_min64(CHUNK, n);
    float *z = sz_scratch((size_t)most * (size_t)v * sizeof *z);
    if (!z) return -1;

    for (int64_t first = 0; first < n; first += CHUNK) {
        int64_t rows = sz_min64(CHUNK, n - first);
        if (chunk_logits(x, w, first, rows, z)) return -1;
#pragma omp parallel for schedule(static)
        for (int64_t r = 0; r < rows; r++) {
            const int64_t i = first + r;
            const int64_t id = sz_i32(c->in[2])[i] - (int64_t)c->args[0];
            row_stats(z + r * v, v, (float)c->args[2], &lse[i], &entropy[i]);
            chosen[i] = id >= 0 && id < v ? z[r * v + id] : 0;
        }
    }
    return 0;
}

int sz_cpu_logprob_part_backward(const sz_call *c)
{
    const int64_t n = c->in[0]->shape[0];
    const float *part = sz_f32(c->in[3]);
    const float *dpart = sz_f32(c->in[4]);
    const row_inputs in = {
        .ids = sz_i32(c->in[2]),
        .first = (int64_t)c->args[0],
        .lse = part,
        .entropy = part + n,
        .g = dpart,
        .e = dpart + n,
        .t = dpart + 2 * n,
        .sign = -1,
        .scale = (float)c->args[1],
    };
    return backward(c->in[0], c->in[1], &in, c->in[5], c->out[0]);
}

/* Of column i of parts [p * 3, n]: the log-sum-exp over all parts. Part r then has the share
 * exp(its log-sum-exp - this) of the probability. */
static double joined_lse(const float *parts, int64_t p, int64_t n, int64_t i)
{
    double top = -INFINITY;
    double sum = 0;
    for (int64_t r = 0; r < p; r++) {
        const double lse = parts[3 * r * n + i];
        if (lse > top) top = lse;
    }
    for (int64_t r = 0; r < p; r++) sum += exp(parts[3 * r * n + i] - top);
    return top + log(sum);
}

/* The entropy over all parts: sum share (entropy of the part - log share). */
static double joined_entropy(const float *parts, int64_t p, int64_t n, int64_t i, double lse)
{
    double h = 0;
    for (int64_t r = 0; r < p; r++) {
        const double log_share = parts[3 * r * n + i] - lse;
        h += exp(log_share) * (parts[(3 * r + 1) * n + i] - log_share);
    }
    return h;
}

int sz_cpu_logprob_join(const sz_call *c)
{
    const float *parts = sz_f32(c->in[0]);
    const int64_t p = c->in[0]->shape[0] / 3;
    const int64_t n = c->in[0]->shape[1];
#pragma omp parallel for schedule(static) if (n * p > 1024)
    for (int64_t i = 0; i < n; i++) {
        const double lse = joined_lse(parts, p, n, i);
        double chosen = 0;
        for (int64_t r = 0; r < p; r++) chosen += parts[(3 * r + 2) * n + i];
        sz_f32(c->out[0])[i] = (float)(chosen - lse);
        sz_f32(c->out[1])[i] = (float)joined_entropy(parts, p, n, i, lse);
    }
    return 0;
}

int sz_cpu_logprob_join_backward(const sz_call *c)
{
    const float *parts = sz_f32(c->in[0]);
    const int64_t p = c->in[0]->shape[0] / 3;
    const int64_t n = c->in[0]->shape[1];
    float *out = sz_f32(c->out[0]);
#pragma omp parallel for schedule(static) if (n * p > 1024)
    for (int64_t i = 0; i < n; i++) {
        const double lse = joined_lse(parts, p, n, i);
        const double h = joined_entropy(parts, p, n, i, lse);
        const double g = c->in[1] ? sz_f32(c->in[1])[i] : 0;
        const double e = c->in[2] ? sz_f32(c->in[2])[i] : 0;
        for (int64_t r = 0; r < p; r++) {
            const double log_share = parts[3 * r * n + i] - lse;
            const double share = exp(log_share);
            const double own = parts[(3 * r + 1) * n + i];
            out[3 * r * n + i] = (float)(share * (e * (own - log_share - h) - g));
            out[(3 * r + 1) * n + i] = (float)(share * e);
            out[(3 * r + 2) * n + i] = (float)g;
        }
    }
    return 0;
}
