/* matmul.c - the ops that are a matrix product: matmul, linear (also with several weights side by
 * side) and its gradients. Shapes: ops.def.
 *
 * f32 is read and written directly; bf16 results are summed in f32 workspace and rounded once.
 * Leaves out: products with 8-bit weights (int8.c).
 */
#include "gemm.h"
#include "vecmath.h"
#include <omp.h>

/* Where the f32 result goes: the output itself, or workspace that finish() rounds. */
static float *result_space(sz_tensor *y)
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

/* The address of element i, whatever the dtype. */
static const char *element(const sz_tensor *t, int64_t i)
{
    return (const char *)t->data + (size_t)i * sz_dtype_size(t->dtype);
}

int sz_cpu_matmul(const sz_call *c)
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
    int64_t lda = a->shape[batch + 1];
    int64_t ldb = b->shape[batch + 1];
    int64_t count = batch ? a->shape[0] : 1;
    float *sums = result_space(y);
    if (!sums) return -1;

    /* One product for each element of the batch. */
    for (int64_t i = 0; i < count; i++) {
        const char *ai = element(a, i * m * k);
        const char *bi = element(b, i * n * k);
        if (sz_gemm(ta, tb, m, n, k, ai, lda, bi, ldb, a->dtype, 0, sums + i * m * n, n)) return -1;
    }
    finish(y, sums);
    return 0;
}

/* A bias as f32: its own data, or workspace; NULL if memory is out. */
static const float *bias_f32(const sz_tensor *b)
{
    if (b->dtype == SZ_F32) return sz_f32(b);
    float *bias = sz_scratch((size_t)b->numel * sizeof *bias);
    if (!bias) return NULL;
    for (int64_t j = 0; j < b->numel; j++) bias[j] = sz_get(b, j);
    return bias;
}

/* x times `weights` weights, whose outputs are side by side in y. Inputs: x, weights, biases. */
static int linear(const sz_call *c, int weights, bool gelu)
{
    sz_tensor *x = c->in[0];
    sz_tensor *y = c->out[0];
    int64_t n = sz_rows(x);
    int64_t k = sz_cols(x);
    int64_t ld = sz_cols(y);
    int64_t col = 0;
    const bool direct = y->dtype == SZ_BF16 && !gelu && sz_gemm_stores_bf16(n, k);
    float *sums = direct ? NULL : result_space(y);
    if (!sums && !direct) return -1;

    for (int i = 0; i < weights && c->in[1 + i]; i++) {
        sz_tensor *w = c->in[1 + i];
        sz_tensor *b = c->in[1 + weights + i];
        int64_t m = w->shape[0];
        const float *bias = b ? bias_f32(b) : NULL;
        if (b && !bias) return -1;
        if (direct) {
            if (sz_gemm_linear_bf16(n, m, k, x->data, w->data, bias, sz_bf16(y) + col, ld))
                return -1;
            col += m;
            continue;
        }
        int done = sz_gemm_linear(n, m, k, x->data, w->data, x->dtype, bias, gelu, sums + col, ld);
        if (done < 0) return -1;

        /* GELU, if the product could not apply it: few rows, or no bias. */
        for (int64_t j = 0; gelu && !done && j < n * m; j++) {
            float density;
            sums[j] *= sz_normal(sums[j], &density);
        }
        col += m;
    }
    if (!direct) finish(y, sums);
    return 0;
}

int sz_cpu_linear(const sz_call *c) { return linear(c, 1, false); }
int sz_cpu_linear_gelu(const sz_call *c) { return linear(c, 1, true); }
int sz_cpu_linear_cat(const sz_call *c) { return linear(c, 3, false); }

int sz_cpu_linear_f32_out(const sz_call *c)
{
    sz_tensor *x = c->in[0];
    sz_tensor *w = c->in[1];
    sz_tensor *y = c->out[0];
    int64_t k = sz_cols(x);
    int64_t m = sz_cols(y);
    return sz_gemm(false, true, sz_rows(x), m, k, x->data, k, w->data, k, x->dtype, 0, sz_f32(y),
                   m);
}

/* y[:, col : col + m] += x w^T */
int sz_cpu_linear_add_(const sz_call *c)
{
    sz_tensor *y = c->in[0];
    sz_tensor *x = c->in[1];
    sz_tensor *w = c->in[2];
    int64_t n = sz_rows(x);
    int64_t k = sz_cols(x);
    int64_t m = w->shape[0];
    int64_t ld = sz_cols(y);
    int64_t col = (int64_t)c->args[0];
    const void *xd = x->data;
    const void *wd = w->data;
    if (y->dtype == SZ_F32)
        return sz_gemm(false, true, n, m, k, xd, k, wd, k, x->dtype, 1, sz_f32(y) + col, ld);

    /* bf16: the product in workspace, then one rounding. */
    float *sums = sz_scratch((size_t)(n * m) * sizeof *sums);
    if (!sums || sz_gemm(false, true, n, m, k, xd, k, wd, k, x->dtype, 0, sums, m)) return -1;
#pragma omp parallel for schedule(static) if (n * m > 32768)
    for (int64_t i = 0; i < n; i++) {
        uint16_t *restrict row = sz_bf16(y) + i * ld + col;
        const float *restrict addend = sums + i * m;
        for (int64_t j = 0; j < m; j++) row[j] = sz_to_bf16(sz_from_bf16(row[j]) + addend[j]);
    }
    return 0;
}

/* dx = the sum over up to three weights of their columns of dy, times w. */
int sz_cpu_linear_dx(const sz_call *c)
{
    sz_tensor *dy = c->in[0];
    sz_tensor *dx = c->out[0];
    int64_t n = sz_rows(dy);
    int64_t ld = sz_cols(dy);
    int64_t k = sz_cols(dx);
    int64_t col = (int64_t)c->args[0];
    float *sums = result_space(dx);
    if (!sums) return -1;

    /* The first weight assigns, the others add. */
    for (int i = 1; i <= 3 && c->in[i]; i++) {
        const sz_tensor *w = c->in[i];
        int64_t m = w->shape[0];
        const char *d = element(dy, col);
        if (sz_gemm(false, false, n, k, m, d, ld, w->data, k, dy->dtype, i > 1, sums, k)) return -1;
        col += m;
    }
    finish(dx, sums);
    return 0;
}

/* acc += dy[:, col : col + m]^T x */
int sz_cpu_linear_dw_(const sz_call *c)
{
    sz_tensor *acc = c->in[0];
    sz_tensor *x = c->in[1];
    sz_tensor *dy = c->in[2];
    int64_t k = sz_cols(x);
    const char *d = element(dy, (int64_t)c->args[0]);
    return sz_gemm(true, false, acc->shape[0], k, sz_rows(x), d, sz_cols(dy), x->data, k, x->dtype,
                   1, sz_f32(acc), k);
}

/* sums[j] += all rows of dy's column first + j, one row after the other. */
static void add_rows(float *restrict sums, const sz_tensor *dy, int64_t first, int64_t width)
{
    const int64_t n = sz_rows(dy);
    const int64_t ld = sz_cols(dy);
    int64_t r = 0;

    /* Four rows at a time, so that the sums are read less often. */
    for (; dy->dtype == SZ_F32 && r + 4 <= n; r += 4) {
        const float *restrict row = sz_f32(dy) + r * ld + first;
        for (int64_t j = 0; j < width; j++)
            sums[j] = sums[j] + row[j] + row[ld + j] + row[2 * ld + j] + row[3 * ld + j];
    }
    for (; dy->dtype == SZ_F32 && r < n; r++) {
        const float *restrict row = sz_f32(dy) + r * ld + first;
        for (int64_t j = 0; j < width; j++) sums[j] += row[j];
    }
    for (; r < n; r++) {
        const uint16_t *restrict row = sz_bf16(dy) + r * ld + first;
        for (int64_t j = 0; j < width; j++) sums[j] += sz_from_bf16(row[j]);
    }
}

/* acc += the column sums of dy[:, col : col + m] */
int sz_cpu_column_sum_(const sz_call *c)
{
    enum { BLOCK = 64 };
    sz_tensor *acc = c->in[0];
    sz_tensor *dy = c->in[1];
    int64_t m = acc->numel;
    int64_t n = sz_rows(dy);
    int64_t col = (int64_t)c->args[0];
    float *sums = sz_scratch((size_t)m * sizeof *sums);
    if (!sums) return -1;
    memset(sums, 0, (size_t)m * sizeof *sums);

    /* Threads own columns, so the order of the sum over rows is fixed. A thread's columns are next
     * to each other, so that it reads memory in order. */
    const int64_t blocks = (m + BLOCK - 1) / BLOCK;
    const int64_t parts = n * m > 32768 ? sz_min64(omp_get_max_threads(), blocks) : 1;
#pragma omp parallel for schedule(static) if (parts > 1)
    for (int64_t i = 0; i < parts; i++) {
        const int64_t first = blocks * i / parts * BLOCK;
        const int64_t end = sz_min64(m, blocks * (i + 1) / parts * BLOCK);
        add_rows(sums + first, dy, col + first, end - first);
    }
    for (int64_t j = 0; j < m; j++) sz_f32(acc)[j] += sums[j];
    return 0;
}
