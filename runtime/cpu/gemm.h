/* gemm.h - matrix products on the CPU, for the kernels that contain one (matmul.c, logprob.c,
 * conv.c).
 *
 * gemm.c uses oneDNN; gemm_skinny.c is our own kernel for products with few rows, gemm_gradient.c
 * that for gradients of weights.
 * Leaves out: outputs other than f32.
 */
#ifndef SZ_CPU_GEMM_H
#define SZ_CPU_GEMM_H

#include "core/core.h"

/* C [m, n] f32 = A B + beta C, row-major with leading dimensions. A is [m, k], or [k, m] if ta; B
 * is [k, n], or [n, k] if tb. A and B are both f32 or both bf16 (dtype). beta is 0 or 1. Returns 0,
 * or -1 with a message on failure. */
int sz_gemm(bool ta, bool tb, int64_t m, int64_t n, int64_t k, const void *a, int64_t lda,
            const void *b, int64_t ldb, int dtype, float beta, float *c, int64_t ldc);

/* Y [n, m] f32 = X W^T + bias: X [n, k], W [m, k] (both dtype), bias f32 [m] or NULL, Y with
 * leading dimension ldy. With gelu it applies the exact GELU if that costs nothing extra: returns 1
 * if Y has been through GELU, 0 if not, -1 with a message on failure. */
int sz_gemm_linear(int64_t n, int64_t m, int64_t k, const void *x, const void *w, int dtype,
                   const float *bias, bool gelu, float *y, int64_t ldy);

/* Bytes of workspace that such a product takes (ops/matmul.c). */
int64_t sz_gemm_workspace(int64_t m, int64_t n, int64_t k, int dtype);

enum { SZ_LOGPROB_ROWS = 128 }; /* rows whose logits exist at one time (logprob.c) */

/* ---- gemm_gradient.c ---- */

/* Whether sz_gemm_gradient takes a product of this size, and is the fastest for it. */
bool sz_gemm_gradient_fits(int64_t m, int64_t n, int64_t k);

/* C [m, n] += A^T B, all f32: A [k, m], B [k, n]. Returns 0, or -1 with a message on failure. */
int sz_gemm_gradient(int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *b,
                     int64_t ldb, float *c, int64_t ldc);

/* Bytes of workspace that it takes. */
int64_t sz_gemm_gradient_workspace(int64_t m);

/* ---- gemm_skinny.c ---- */

/* Y [m, n] f32 = X W^T + beta Y for few rows: X [m, k], W [n, k], both f32 or both bf16. Returns 0,
 * or -1 with a message on failure. */
int sz_gemm_skinny(int64_t m, int64_t n, int64_t k, const void *x, int64_t ldx, const void *w,
                   int64_t ldw, int dtype, float beta, float *y, int64_t ldy);

/* Bytes of workspace that it takes. */
int64_t sz_gemm_skinny_workspace(int64_t m, int64_t k);

#endif
