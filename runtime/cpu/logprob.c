/* logprob.c - log-probability and entropy of chosen tokens, straight from hidden states.
 *
 * The logits z = x w^T / temperature exist for CHUNK rows at a time only, forward and backward. The
 * backward pass computes them again: dz_j = dlp (1[j = id] - p_j) - dent p_j (log p_j + H), then
 * dx = dz w / temperature and acc += dz^T x / temperature.
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

/* A row of unscaled logits becomes the gradient of them. g, e: gradients of the log-probability and
 * of the entropy h. */
static inline void row_gradient(float *restrict row, int64_t v, float scale, float lse, float h,
                                float g, float e, int32_t id)
{
    for (int64_t j = 0; j < v; j++) {
        /* Below e^-80 a probability adds nothing, but the subnormal that it becomes slows the
         * products tenfold. */
        float log_p = row[j] * scale - lse;
        float p = log_p < -80 ? 0 : sz_exp(log_p);
        row[j] = -p * (g + e * (log_p + h)) * scale;
    }
    row[id] += g * scale;
}

int sz_cpu_logprob_backward(const sz_call *c)
{
    sz_tensor *x = c->in[0];
    sz_tensor *w = c->in[1];
    const int32_t *ids = sz_i32(c->in[2]);
    const float *lse = sz_f32(c->in[3]);
    const float *entropy = sz_f32(c->in[4]);
    const float *dlp = c->in[5] ? sz_f32(c->in[5]) : NULL;
    const float *dent = c->in[6] ? sz_f32(c->in[6]) : NULL;
    sz_tensor *acc = c->in[7];
    sz_tensor *dx = c->out[0];
    const bool bf16 = x->dtype == SZ_BF16;
    float scale = (float)c->args[0];
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
            int64_t i = first + r;
            float *row = z + r * v;
            float g = dlp ? dlp[i] : 0;
            float e = dent ? dent[i] : 0;
            row_gradient(row, v, scale, lse[i], entropy[i], g, e, ids[i]);
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
