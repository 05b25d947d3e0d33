/* gemm.cuh - matrix products on the device, for the kernels that contain one (matmul.cu, conv.cu,
 * logprob.cu). All matrices are row-major with leading dimensions in elements. Sums are f32 and are
 * rounded once. Functions return 0, or -1 with a message.
 * Leaves out: int8 products (int8.cu). */
#ifndef SZ_CUDA_GEMM_CUH
#define SZ_CUDA_GEMM_CUH
#include "vector.cuh"

/* C [m, n] = A B + beta C. A is [m, k], or [k, m] if ta; B is [k, n], or [n, k] if tb; both of
 * dtype. beta is 0 or 1. C is f32; with beta 0 it may also be of dtype. Computes `count` such
 * products, of matrices that follow each other in memory without gaps. */
int sz_cuda_gemm(bool ta, bool tb, int64_t m, int64_t n, int64_t k, const void *a, int64_t lda,
                 const void *b, int64_t ldb, int dtype, float beta, void *c, int64_t ldc,
                 int c_dtype, int64_t count = 1);

/* Y [n, m] = X W^T + bias, followed by the exact GELU if gelu. X [n, k] and W [m, k] are of dtype;
 * bias [m] is of any dtype, or NULL; Y is f32 or of dtype. */
int sz_cuda_gemm_linear(int64_t n, int64_t m, int64_t k, const void *x, const void *w, int dtype,
                        const sz_tensor *bias, bool gelu, void *y, int64_t ldy, int y_dtype);

/* Y [n, m] = sums [n, m] + bias, followed by GELU if gelu, in Y's dtype. Y may overwrite the sums.
 * */
void sz_cuda_finish(const float *sums, int64_t n, int64_t m, const sz_tensor *bias, bool gelu,
                    sz_elements y, int64_t ldy);

/* Returns the line "cublasLt: ..." of the device description; borrowed. */
const char *sz_cuda_gemm_describe(void);

/* Returns how many rows of `cols` f32 fit into the 64 MiB of workspace that a kernel takes for
 * intermediate results: at least 64, at most n. */
static inline int64_t sz_cuda_block_rows(int64_t n, int64_t cols)
{
    const int64_t rows = (16 << 20) / (cols > 0 ? cols : 1);
    if (rows < 64) return n < 64 ? n : 64;
    return rows < n ? rows : n;
}

#endif
