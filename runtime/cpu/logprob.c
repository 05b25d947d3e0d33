/* logprob.c - log-probability and entropy of chosen tokens straight from hidden states.
 *
 * logits z = x w^T / temperature exist for CHUNK rows at a time only, forward and backward. Backward computes them again:
 * dz_j = dlp (1[j = id] - p_j) - dent p_j (log p_j + H), then dx = dz w / temperature and acc += dz^T x / temperature. */
#include "gemm.h"
#include "vecmath.h"
#include <math.h>

enum { CHUNK = SZ_LOGPROB_ROWS };

static float *chunk_logits(const sz_tensor *x, const sz_tensor *w, int64_t first, int64_t rows, float *z)
{
    int64_t k = x->shape[1], v = w->shape[0];
    const char *part = (const char *)x->data + (size_t)(first * k) * sz_dtype_size(x->dtype);
    return sz_gemm(false, true, rows, v, k, part, k, w->data, k, x->dtype, 0, z, v) == 0 ? z : NULL;
}

/* Scales a row of logits in place; returns its log-sum-exp and entropy. */
static void row_stats(float *restrict z, int64_t v, float scale, float *lse, float *entropy)
{
    float top = -INFINITY;
    #pragma omp simd reduction(max : top)
    for (int64_t j = 0; j < v; j++) {
        z[j] *= scale;
        top = z[j] > top ? z[j] : top;
    }
    double sum = 0, weighted = 0;
    for (int64_t j0 = 0; j0 < v; j0 += 1024) {
        int64_t end = j0 + 1024 < v ? j0 + 1024 : v;
        float s = 0, t = 0;
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
    sz_tensor *x = c->in[0], *w = c->in[1];
    int64_t n = x->shape[0], v = w->shape[0];
    const int32_t *ids = sz_i32(c->in[2]);
    float scale = (float)c->args[0], *logprob = sz_f32(c->out[0]), *entropy = sz_f32(c->out[1]), *lse = sz_f32(c->out[2]);
    float *z = sz_scratch((size_t)(CHUNK < n ? CHUNK : n) * (size_t)v * sizeof *z);
    if (!z) return -1;
    for (int64_t first = 0; first < n; first += CHUNK) {
        int64_t rows = n - first < CHUNK ? n - first : CHUNK;
        if (!chunk_logits(x, w, first, rows, z)) return -1;
        #pragma omp parallel for schedule(static)
        for (int64_t r = 0; r < rows; r++) {
            row_stats(z + r * v, v, scale, &lse[first + r], &entropy[first + r]);
            logprob[first + r] = z[r * v + ids[first + r]] - lse[first + r];
        }
    }
    return 0;
}

int sz_cpu_logprob_backward(const sz_call *c)
{
    sz_tensor *x = c->in[0], *w = c->in[1], *acc = c->in[7], *dx = c->out[0];
    int64_t n = x->shape[0], k = x->shape[1], v = w->shape[0];
    const int32_t *ids = sz_i32(c->in[2]);
    const float *lse = sz_f32(c->in[3]), *entropy = sz_f32(c->in[4]);
    const float *dlp = c->in[5] ? sz_f32(c->in[5]) : NULL, *dent = c->in[6] ? sz_f32(c->in[6]) : NULL;
    float scale = (float)c->args[0];
    int64_t most = CHUNK < n ? CHUNK : n;
    float *z = sz_scratch((size_t)most * (size_t)v * sizeof *z), *sums = sz_scratch((size_t)(most * k) * sizeof *sums);
    uint16_t *narrow = x->dtype == SZ_BF16 ? sz_scratch((size_t)most * (size_t)v * sizeof *narrow) : NULL;
    if (!z || !sums || (x->dtype == SZ_BF16 && !narrow)) return -1;
    for (int64_t first = 0; first < n; first += CHUNK) {
        int64_t rows = n - first < CHUNK ? n - first : CHUNK;
        if (!chunk_logits(x, w, first, rows, z)) return -1;
        #pragma omp parallel for schedule(static)
        for (int64_t r = 0; r < rows; r++) {
            int64_t i = first + r;
            float *restrict row = z + r * v, g = dlp ? dlp[i] : 0, e = dent ? dent[i] : 0, top = lse[i], h = entropy[i];
            for (int64_t j = 0; j < v; j++) {
                /* Below e^-80 a probability adds nothing, but the subnormal it becomes slows the products tenfold. */
                float log_p = row[j] * scale - top, p = log_p < -80 ? 0 : sz_exp(log_p);
                row[j] = -p * (g + e * (log_p + h)) * scale;
            }
            row[ids[i]] += g * scale;
            if (narrow)
                for (int64_t j = 0; j < v; j++) narrow[r * v + j] = sz_to_bf16(row[j]);
        }
        const void *dz = narrow ? (const void *)narrow : z;
        const char *part = (const char *)x->data + (size_t)(first * k) * sz_dtype_size(x->dtype);
        float *out = x->dtype == SZ_F32 ? sz_f32(dx) + first * k : sums;
        if (sz_gemm(false, false, rows, k, v, dz, v, w->data, k, x->dtype, 0, out, k)) return -1;
        if (acc && sz_gemm(true, false, v, k, rows, dz, v, part, k, x->dtype, 1, sz_f32(acc), k)) return -1;
        if (x->dtype == SZ_BF16)
            for (int64_t i = 0; i < rows * k; i++) sz_bf16(dx)[first * k + i] = sz_to_bf16(sums[i]);
    }
    return 0;
}
