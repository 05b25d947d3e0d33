/* matmul.c - the op rows with a matrix product: matmul, linear (also several weights side by side) and its gradients.
 * Shapes: ops.def. f32 in and out directly; bf16 results are summed in f32 workspace and rounded once. */
#include "gemm.h"
#include "vecmath.h"

/* Where the f32 result goes: the output itself, or workspace that finish() rounds. */
static float *result(sz_tensor *y)
{
    return y->dtype == SZ_F32 ? sz_f32(y) : sz_scratch((size_t)y->numel * sizeof(float));
}

static void finish(sz_tensor *y, const float *sums)
{
    if (y->dtype == SZ_F32) return;
    uint16_t *out = sz_bf16(y);
    #pragma omp parallel for schedule(static) if (y->numel > 32768)
    for (int64_t i = 0; i < y->numel; i++) out[i] = sz_to_bf16(sums[i]);
}

int sz_cpu_matmul(const sz_call *c)
{
    sz_tensor *a = c->in[0], *b = c->in[1], *y = c->out[0];
    bool ta = c->args[0] != 0, tb = c->args[1] != 0;
    int batch = a->ndim - 2;
    int64_t m = y->shape[batch], n = y->shape[batch + 1], k = a->shape[batch + (ta ? 0 : 1)], count = batch ? a->shape[0] : 1;
    size_t size = sz_dtype_size(a->dtype);
    float *sums = result(y);
    if (!sums) return -1;
    for (int64_t i = 0; i < count; i++)
        if (sz_gemm(ta, tb, m, n, k, (const char *)a->data + (size_t)(i * m * k) * size, a->shape[batch + 1],
                    (const char *)b->data + (size_t)(i * n * k) * size, b->shape[batch + 1], a->dtype, 0, sums + i * m * n, n))
            return -1;
    finish(y, sums);
    return 0;
}

static int linear(const sz_call *c, int weights, bool gelu)
{
    sz_tensor *x = c->in[0], *y = c->out[0];
    int64_t n = sz_rows(x), k = sz_cols(x), ld = sz_cols(y), col = 0;
    float *sums = result(y);
    if (!sums) return -1;
    for (int i = 0; i < weights && c->in[1 + i]; i++) {
        sz_tensor *w = c->in[1 + i], *b = c->in[1 + weights + i];
        int64_t m = w->shape[0];
        float *bias = NULL;
        if (b) {
            bias = b->dtype == SZ_F32 ? sz_f32(b) : sz_scratch((size_t)m * sizeof *bias);
            if (!bias) return -1;
            for (int64_t j = 0; b->dtype != SZ_F32 && j < m; j++) bias[j] = sz_get(b, j);
        }
        int done = sz_gemm_linear(n, m, k, x->data, w->data, x->dtype, bias, gelu, sums + col, ld);
        if (done < 0) return -1;
        for (int64_t j = 0; gelu && !done && j < n * m; j++) {        /* few rows, or no bias */
            float density;
            sums[j] *= sz_normal(sums[j], &density);
        }
        col += m;
    }
    finish(y, sums);
    return 0;
}
int sz_cpu_linear(const sz_call *c) { return linear(c, 1, false); }
int sz_cpu_linear_gelu(const sz_call *c) { return linear(c, 1, true); }
int sz_cpu_linear_f32_out(const sz_call *c)
{
    sz_tensor *x = c->in[0], *w = c->in[1], *y = c->out[0];
    int64_t k = sz_cols(x), m = sz_cols(y);
    return sz_gemm(false, true, sz_rows(x), m, k, x->data, k, w->data, k, x->dtype, 0, sz_f32(y), m);
}
int sz_cpu_linear_cat(const sz_call *c) { return linear(c, 3, false); }

int sz_cpu_linear_add_(const sz_call *c)
{
    sz_tensor *y = c->in[0], *x = c->in[1], *w = c->in[2];
    int64_t n = sz_rows(x), k = sz_cols(x), m = w->shape[0], ld = sz_cols(y), col = (int64_t)c->args[0];
    if (y->dtype == SZ_F32) return sz_gemm(false, true, n, m, k, x->data, k, w->data, k, x->dtype, 1, sz_f32(y) + col, ld);
    float *sums = sz_scratch((size_t)(n * m) * sizeof *sums);
    if (!sums || sz_gemm(false, true, n, m, k, x->data, k, w->data, k, x->dtype, 0, sums, m)) return -1;
    #pragma omp parallel for schedule(static) if (n * m > 32768)
    for (int64_t i = 0; i < n; i++) {
        uint16_t *restrict row = sz_bf16(y) + i * ld + col;
        const float *restrict more = sums + i * m;
        for (int64_t j = 0; j < m; j++) row[j] = sz_to_bf16(sz_from_bf16(row[j]) + more[j]);
    }
    return 0;
}

int sz_cpu_linear_dx(const sz_call *c)
{
    sz_tensor *dy = c->in[0], *dx = c->out[0];
    int64_t n = sz_rows(dy), ld = sz_cols(dy), k = sz_cols(dx), col = (int64_t)c->args[0];
    float *sums = result(dx);
    if (!sums) return -1;
    for (int i = 1; i <= 3 && c->in[i]; i++) {
        int64_t m = c->in[i]->shape[0];
        const char *part = (const char *)dy->data + (size_t)col * sz_dtype_size(dy->dtype);
        if (sz_gemm(false, false, n, k, m, part, ld, c->in[i]->data, k, dy->dtype, i > 1, sums, k)) return -1;
        col += m;
    }
    finish(dx, sums);
    return 0;
}

int sz_cpu_linear_dw_(const sz_call *c)
{
    sz_tensor *acc = c->in[0], *x = c->in[1], *dy = c->in[2];
    const char *part = (const char *)dy->data + (size_t)c->args[0] * sz_dtype_size(dy->dtype);
    return sz_gemm(true, false, acc->shape[0], sz_cols(x), sz_rows(x), part, sz_cols(dy), x->data, sz_cols(x), x->dtype, 1, sz_f32(acc), sz_cols(x));
}

int sz_cpu_column_sum_(const sz_call *c)
{
    sz_tensor *acc = c->in[0], *dy = c->in[1];
    int64_t m = acc->numel, n = sz_rows(dy), ld = sz_cols(dy), col = (int64_t)c->args[0];
    enum { BLOCK = 64 };
    /* Threads own columns, so the order of the sum over rows is fixed. */
    #pragma omp parallel for schedule(static) if (n * m > 32768)
    for (int64_t j0 = 0; j0 < m; j0 += BLOCK) {
        int64_t width = m - j0 < BLOCK ? m - j0 : BLOCK;
        float sums[BLOCK] = { 0 };
        for (int64_t r = 0; r < n; r++) {
            if (dy->dtype == SZ_F32) {
                const float *row = sz_f32(dy) + r * ld + col + j0;
                for (int64_t j = 0; j < width; j++) sums[j] += row[j];
            } else {
                const uint16_t *row = sz_bf16(dy) + r * ld + col + j0;
                for (int64_t j = 0; j < width; j++) sums[j] += sz_from_bf16(row[j]);
            }
        }
        for (int64_t j = 0; j < width; j++) sz_f32(acc)[j0 + j] += sums[j];
    }
    return 0;
}
