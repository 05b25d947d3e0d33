/* gemm.cuh - matrix products on the device for the kernels that contain one (matmul.cu, conv.cu, logprob.cu). All matrices are
 * row-major with leading dimensions in elements; sums are f32 and rounded once. 0, or -1 with a message. */
#ifndef SZ_CUDA_GEMM_CUH
#define SZ_CUDA_GEMM_CUH
#include "vector.cuh"

/* C [m, n] = A B + beta C. A is [m, k], or [k, m] when ta; B is [k, n], or [n, k] when tb; both of dtype. C is f32, or of dtype when
 * beta is 0; beta is 0 or 1. count products of matrices that follow each other without gaps. */
int sz_cuda_gemm(bool ta, bool tb, int64_t m, int64_t n, int64_t k, const void *a, int64_t lda, const void *b, int64_t ldb,
                 int dtype, float beta, void *c, int64_t ldc, int c_dtype, int64_t count = 1);

/* Y [n, m] = X W^T + bias, gelu: its exact GELU. X [n, k], W [m, k], both of dtype; bias [m] of any dtype, or NULL; Y f32 or of dtype. */
int sz_cuda_gemm_linear(int64_t n, int64_t m, int64_t k, const void *x, const void *w, int dtype, const sz_tensor *bias, bool gelu,
                        void *y, int64_t ldy, int y_dtype);

/* Y [n, m] = sums [n, m] + bias, gelu: its GELU, in Y's dtype; Y may be where the sums are. */
void sz_cuda_finish(const float *sums, int64_t n, int64_t m, const sz_tensor *bias, bool gelu, sz_elements y, int64_t ldy);

/* A line "cublasLt: ..." for people; borrowed. */
const char *sz_cuda_gemm_describe(void);

/* So many rows of `cols` f32 fit the workspace that a kernel takes for results on their way (64 MiB), at most n. */
static inline int64_t sz_cuda_block_rows(int64_t n, int64_t cols)
{
    const int64_t rows = (16 << 20) / (cols > 0 ? cols : 1);
    return rows < 64 ? (n < 64 ? n : 64) : rows < n ? rows : n;
}

#endif
