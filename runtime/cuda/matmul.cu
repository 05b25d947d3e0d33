/* matmul.cu - the op rows with a matrix product on the device: matmul, linear (also several weights side by side) and its
 * gradients. Shapes: ops.def. The products are gemm.cu's: summed in f32, rounded once. column_sum_ is in rowwise.cu.
 * The reference is cpu/ref_matmul.c. */
#include "gemm.cuh"

extern "C" int sz_cuda_matmul(const sz_call *c)
{
    const sz_tensor *a = c->in[0], *b = c->in[1], *y = c->out[0];
    const bool ta = c->args[0] != 0, tb = c->args[1] != 0;
    const int batch = a->ndim - 2;
    const int64_t m = y->shape[batch], n = y->shape[batch + 1], k = a->shape[batch + (ta ? 0 : 1)], count = batch ? a->shape[0] : 1;
    return sz_cuda_gemm(ta, tb, m, n, k, a->data, a->shape[batch + 1], b->data, b->shape[batch + 1], a->dtype, 0, y->data, n, y->dtype, count);
}

static int linear(const sz_call *c, int weights, bool gelu)
{
    const sz_tensor *x = c->in[0], *y = c->out[0];
    const int64_t n = sz_rows(x), k = sz_cols(x), ld = sz_cols(y);
    int64_t col = 0;
    for (int i = 0; i < weights && c->in[1 + i]; i++) {
        const sz_tensor *w = c->in[1 + i];
        if (sz_cuda_gemm_linear(n, w->shape[0], k, x->data, w->data, x->dtype, c->in[1 + weights + i], gelu, sz_elements_from(y, col).data, ld, y->dtype))
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
    const sz_tensor *x = c->in[0], *w = c->in[1], *y = c->out[0];
    return sz_cuda_gemm_linear(sz_rows(x), sz_cols(y), sz_cols(x), x->data, w->data, x->dtype, NULL, false, y->data, sz_cols(y), SZ_F32);
}

enum { THREADS = 256 };

/* y += sums [n, m]; y's rows are ld apart. */
static __global__ void add_columns_kernel(const float *sums, int64_t n, int64_t m, bf16 *y, int64_t ld)
{
    for (int64_t e = (int64_t)blockIdx.x * THREADS + threadIdx.x; e < n * m; e += (int64_t)gridDim.x * THREADS) {
        bf16 *at = y + e / m * ld + e % m;
        sz_store(at, sz_load(at) + sums[e]);
    }
}

extern "C" int sz_cuda_linear_add_(const sz_call *c)
{
    const sz_tensor *y = c->in[0], *x = c->in[1], *w = c->in[2];
    const int64_t n = sz_rows(x), k = sz_cols(x), m = w->shape[0], ld = sz_cols(y), col = (int64_t)c->args[0];
    if (y->dtype == SZ_F32) return sz_cuda_gemm(false, true, n, m, k, x->data, k, w->data, k, x->dtype, 1, sz_elements_from(y, col).data, ld, SZ_F32);
    const int64_t block = sz_cuda_block_rows(n, m);
    float *sums = (float *)sz_cuda_scratch((size_t)(block * m + 1) * sizeof *sums);
    if (!sums) return -1;
    for (int64_t first = 0; first < n; first += block) {
        const int64_t rows = block < n - first ? block : n - first;
        if (sz_cuda_gemm(false, true, rows, m, k, sz_elements_from(x, first * k).data, k, w->data, k, x->dtype, 0, sums, m, SZ_F32)) return -1;
        SZ_LAUNCH(add_columns_kernel, sz_grid(sz_blocks(rows * m, THREADS)), THREADS, 0, sums, rows, m, (bf16 *)y->data + first * ld + col, ld);
    }
    return sz_cuda_launched("linear_add_");
}

/* One weight goes straight to dx; the products of several are added up in f32, by blocks of rows when dx is bf16. */
extern "C" int sz_cuda_linear_dx(const sz_call *c)
{
    const sz_tensor *dy = c->in[0], *dx = c->out[0];
    const int64_t n = sz_rows(dy), ld = sz_cols(dy), k = sz_cols(dx);
    const bool direct = dx->dtype == SZ_F32 || !c->in[2];
    const int64_t block = direct ? n : sz_cuda_block_rows(n, k);
    float *sums = direct ? NULL : (float *)sz_cuda_scratch((size_t)(block * k + 1) * sizeof *sums);
    if (!direct && !sums) return -1;
    for (int64_t first = 0; first < n; first += block) {
        const int64_t rows = block < n - first ? block : n - first;
        int64_t col = (int64_t)c->args[0];
        for (int i = 1; i <= 3 && c->in[i]; i++) {
            const int64_t m = c->in[i]->shape[0];
            if (sz_cuda_gemm(false, false, rows, k, m, sz_elements_from(dy, first * ld + col).data, ld, c->in[i]->data, k, dy->dtype, i > 1 ? 1.0f : 0.0f,
                             direct ? dx->data : sums, k, direct ? (int)dx->dtype : (int)SZ_F32))
                return -1;
            col += m;
        }
        if (!direct) sz_cuda_finish(sums, rows, k, NULL, false, sz_elements_from(dx, first * k), k);
    }
    return sz_cuda_launched("linear_dx");
}

extern "C" int sz_cuda_linear_dw_(const sz_call *c)
{
    const sz_tensor *acc = c->in[0], *x = c->in[1], *dy = c->in[2];
    return sz_cuda_gemm(true, false, acc->shape[0], sz_cols(x), sz_rows(x), sz_elements_from(dy, (int64_t)c->args[0]).data, sz_cols(dy), x->data, sz_cols(x),
                        x->dtype, 1, acc->data, sz_cols(x), SZ_F32);
}
