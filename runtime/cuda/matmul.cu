/* matmul.cu - the ops that are a matrix product, on the device: matmul, linear (also with several
 * weights side by side) and linear's gradients. Shapes: ops.def. gemm.cu computes the products:
 * summed in f32, rounded once.
 * Leaves out: column_sum_, which is in rowwise.cu. The reference is cpu/reference/matmul.c. */
#include "gemm.cuh"

enum { THREADS = 256 };

extern "C" int sz_cuda_matmul(const sz_call *c)
{
    const sz_tensor *a = c->in[0];
    const sz_tensor *b = c->in[1];
    const sz_tensor *y = c->out[0];
    const bool ta = c->args[0] != 0;
    const bool tb = c->args[1] != 0;
    const int batch = a->ndim - 2; /* 1 if there is a batch dimension, else 0 */
    const int64_t m = y->shape[batch];
    const int64_t n = y->shape[batch + 1];
    const int64_t k = a->shape[batch + (ta ? 0 : 1)];
    const int64_t count = batch ? a->shape[0] : 1;
    return sz_cuda_gemm(ta, tb, m, n, k, a->data, a->shape[batch + 1], b->data, b->shape[batch + 1],
                        a->dtype, 0, y->data, n, y->dtype, count);
}

/* ---- linear ---- */
/* y = x W^T + bias for up to `weights` weights, whose results are the columns of y from left to
 * right. */
static int linear(const sz_call *c, int weights, bool gelu)
{
    const sz_tensor *x = c->in[0];
    const sz_tensor *y = c->out[0];
    int64_t col = 0;
    for (int i = 0; i < weights && c->in[1 + i]; i++) {
        const sz_tensor *w = c->in[1 + i];
        const sz_tensor *bias = c->in[1 + weights + i];
        if (sz_cuda_gemm_linear(sz_rows(x), w->shape[0], sz_cols(x), x->data, w->data, x->dtype,
                                bias, gelu, sz_elements_from(y, col).data, sz_cols(y),
                                y->dtype) != 0)
            return -1;
        col += w->shape[0];
    }
    return 0;
}

extern "C" int sz_cuda_linear(const sz_call *c) { return linear(c, 1, false); }
extern "C" int sz_cuda_linear_gelu(const sz_call *c) { return linear(c, 1, true); }
extern "C" int sz_cuda_linear_cat(const sz_call *c) { return linear(c, 3, false); }

extern "C" int sz_cuda_linear_f32_out(const sz_call *c)
{
    const sz_tensor *x = c->in[0];
    const sz_tensor *w = c->in[1];
    const sz_tensor *y = c->out[0];
    return sz_cuda_gemm_linear(sz_rows(x), sz_cols(y), sz_cols(x), x->data, w->data, x->dtype, NULL,
                               false, y->data, sz_cols(y), SZ_F32);
}

/* y += sums [n, m]; y's rows are ld elements apart. */
static __global__ void add_columns_kernel(const float *sums, int64_t n, int64_t m, bf16 *y,
                                          int64_t ld)
{
    const int64_t first = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    for (int64_t e = first; e < n * m; e += (int64_t)gridDim.x * THREADS) {
        bf16 *to = y + e / m * ld + e % m;
        sz_store(to, sz_load(to) + sums[e]);
    }
}

extern "C" int sz_cuda_linear_add_(const sz_call *c)
{
    const sz_tensor *y = c->in[0];
    const sz_tensor *x = c->in[1];
    const sz_tensor *w = c->in[2];
    const int64_t n = sz_rows(x);
    const int64_t k = sz_cols(x);
    const int64_t m = w->shape[0];
    const int64_t ld = sz_cols(y);
    const int64_t col = (int64_t)c->args[0];
    /* An f32 y accumulates directly. */
    if (y->dtype == SZ_F32)
        return sz_cuda_gemm(false, true, n, m, k, x->data, k, w->data, k, x->dtype, 1,
                            sz_elements_from(y, col).data, ld, SZ_F32);

    /* For bf16, sum in f32 and add afterwards, by blocks of rows. */
    const int64_t block = sz_cuda_block_rows(n, m);
    float *sums = (float *)sz_cuda_scratch((size_t)(block * m + 1) * sizeof *sums);
    if (!sums) return -1;
    for (int64_t first = 0; first < n; first += block) {
        const int64_t rows = block < n - first ? block : n - first;
        const void *from = sz_elements_from(x, first * k).data;
        if (sz_cuda_gemm(false, true, rows, m, k, from, k, w->data, k, x->dtype, 0, sums, m,
                         SZ_F32) != 0)
            return -1;
        SZ_LAUNCH(add_columns_kernel, sz_grid(sz_blocks(rows * m, THREADS)), THREADS, 0, sums, rows,
                  m, (bf16 *)y->data + first * ld + col, ld);
    }
    return sz_cuda_launched("linear_add_");
}

/* ---- gradients ---- */
/* The product with one weight goes straight to dx. Products with several weights are added in f32;
 * if dx is bf16, in workspace, by blocks of rows. */
extern "C" int sz_cuda_linear_dx(const sz_call *c)
{
    const sz_tensor *dy = c->in[0];
    const sz_tensor *dx = c->out[0];
    const int64_t n = sz_rows(dy);
    const int64_t ld = sz_cols(dy);
    const int64_t k = sz_cols(dx);
    const bool direct = dx->dtype == SZ_F32 || !c->in[2];
    const int64_t block = direct ? n : sz_cuda_block_rows(n, k);
    float *sums = NULL;
    if (!direct) {
        sums = (float *)sz_cuda_scratch((size_t)(block * k + 1) * sizeof *sums);
        if (!sums) return -1;
    }
    void *to = direct ? dx->data : sums;
    const int to_dtype = direct ? (int)dx->dtype : (int)SZ_F32;

    for (int64_t first = 0; first < n; first += block) {
        const int64_t rows = block < n - first ? block : n - first;
        int64_t col = (int64_t)c->args[0];
        for (int i = 1; i <= 3 && c->in[i]; i++) {
            const sz_tensor *w = c->in[i];
            const int64_t m = w->shape[0];
            const void *from = sz_elements_from(dy, first * ld + col).data;
            const float beta = i > 1 ? 1.0f : 0.0f;
            if (sz_cuda_gemm(false, false, rows, k, m, from, ld, w->data, k, dy->dtype, beta, to, k,
                             to_dtype) != 0)
                return -1;
            col += m;
        }
        if (!direct) sz_cuda_finish(sums, rows, k, NULL, false, sz_elements_from(dx, first * k), k);
    }
    return sz_cuda_launched("linear_dx");
}

extern "C" int sz_cuda_linear_dw_(const sz_call *c)
{
    const sz_tensor *acc = c->in[0];
    const sz_tensor *x = c->in[1];
    const sz_tensor *dy = c->in[2];
    const void *from = sz_elements_from(dy, (int64_t)c->args[0]).data;
    return sz_cuda_gemm(true, false, acc->shape[0], sz_cols(x), sz_rows(x), from, sz_cols(dy),
                        x->data, sz_cols(x), x->dtype, 1, acc->data, sz_cols(x), SZ_F32);
}
