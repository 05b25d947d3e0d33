/* gemm.h - matrix products on the CPU, for the kernels that contain one (matmul.c, logprob.c,
 * conv.c).
 *
 * gemm.c uses oneDNN; our own kernels are gemm_skinny.c for products with few rows, gemm_gradient.c
 * for gradients of weights, and gemm_amx.c for bf16 with AMX.
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

/* Whether a linear layer of n rows can store bf16 without f32 in workspace, and that layer: as
 * sz_gemm_linear of bf16, with Y bf16. */
bool sz_gemm_stores_bf16(int64_t n, int64_t k);
int sz_gemm_linear_bf16(int64_t n, int64_t m, int64_t k, const void *x, const void *w,
                        const float *bias, uint16_t *y, int64_t ldy);

/* Bytes of workspace that sz_gemm takes (ops/matmul.c). sz_gemm_linear takes as much as A B^T. */
int64_t sz_gemm_workspace(bool ta, bool tb, int64_t m, int64_t n, int64_t k, int dtype);

/* Whether the processor multiplies bf16 well, so that it need not be widened to f32. */
bool sz_gemm_multiplies_bf16(void);

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
int64_t sz_gemm_skinny_workspace(int64_t m, int64_t k, int dtype);

/* ---- gemm_amx.c: with SZ_AMX alone ---- */

/* sz_gemm of bf16, plus bias f32 [n] or NULL. C is f32, or bf16 (dtype) if beta is 0 and
 * sz_gemm_amx_rounds. Returns 0, or -1 with a message on failure. */
int sz_gemm_amx(bool ta, bool tb, int64_t m, int64_t n, int64_t k, const void *a, int64_t lda,
                const void *b, int64_t ldb, float beta, const float *bias, void *c, int64_t ldc,
                int dtype);

/* Whether it can store bf16: a sum is complete when it is stored for the first time. */
bool sz_gemm_amx_rounds(int64_t k);

/* Bytes of workspace that it takes. */
int64_t sz_gemm_amx_workspace(bool ta, bool tb, int64_t m, int64_t n, int64_t k);

#endif
