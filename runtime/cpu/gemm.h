/* gemm.h - matrix product on the CPU for the kernels that contain one (matmul.c, logprob.c). */
#ifndef SZ_CPU_GEMM_H
#define SZ_CPU_GEMM_H
#include "core/core.h"

/* C [m, n] f32 = A B + beta C, row-major with leading dimensions; A is [m, k], or [k, m] when ta; B is [k, n], or [n, k]
 * when tb. A and B are f32 or bf16 (both alike). beta is 0 or 1. -1 with a message on failure. */
int sz_gemm(bool ta, bool tb, int64_t m, int64_t n, int64_t k, const void *a, int64_t lda, const void *b, int64_t ldb,
            int dtype, float beta, float *c, int64_t ldc);

/* Y [n, m] f32 = X W^T + bias: X [n, k], W [m, k] (both dtype), bias f32 [m] or NULL, Y with leading dimension ldy. gelu: its
 * exact GELU instead, where the product can do it on the way: returns 1 then, 0 when Y is still without, -1 on failure. */
int sz_gemm_linear(int64_t n, int64_t m, int64_t k, const void *x, const void *w, int dtype, const float *bias, bool gelu, float *y, int64_t ldy);

/* Bytes of workspace that such a product takes (workspace.c). */
int64_t sz_gemm_workspace(int64_t m, int64_t n, int64_t k, int dtype);

enum { SZ_LOGPROB_ROWS = 128 };     /* rows whose logits exist at one time (logprob.c) */

#endif
