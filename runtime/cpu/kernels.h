/* kernels.h - the CPU kernels as a table. The files of this folder are compiled several times, once
 * for each kind of processor; each time makes one table, and core/processor.c picks one of them
 * when the program starts. Within a kind the bits of a result are always the same, except that
 * AMD's processors with AVX512-BF16 sum bf16 in pairs (gemm.h, attention_pairs.h). Between kinds
 * they may differ in the last places.
 *
 * The Makefile joins the objects of a kind into one and hides all names but that of the table, so
 * nothing outside this folder may call a function of it by name.
 * Leaves out: the reference kernels, which are compiled once.
 */
#ifndef SZ_CPU_KERNELS_H
#define SZ_CPU_KERNELS_H

#include "core/core.h"

/* As sz_sample, with a checked call. */
typedef int (*sz_sampler)(sz_tensor *logits, const sz_sampling *s, const uint8_t *banned,
                          const uint8_t *seen, const int64_t *row_id, const int32_t *answer_id,
                          const int32_t *position, int32_t *token, float *logprob);

/* As sz_moment_recode. */
typedef int (*sz_moment_recoder)(sz_tensor *codes, sz_tensor *scales, int second,
                                 const sz_place *place, sz_tensor *old_scales, int64_t rows,
                                 int64_t columns, int64_t row_slices, int64_t column_slices);

typedef struct {
    sz_kernel ops[SZ_OP_COUNT];
    sz_sampler sample;
    sz_moment_recoder moment_recode;
    /* Bytes of workspace that a product takes, and whether a linear layer needs none for its sums
     * (gemm.h). */
    int64_t (*gemm_workspace)(bool ta, bool tb, int64_t m, int64_t n, int64_t k, int dtype);
    bool (*gemm_stores_bf16)(int64_t n, int64_t k);
    /* Whether products of bf16 are computed in bf16, not f32, and attention's weights rounded. */
    bool (*multiplies_bf16)(void);
} sz_cpu_kernels;

/* The table of the kind that this file is compiled for: sz_cpu_kernels_avx2 and so on. */
#ifdef SZ_CPU_KIND
#define SZ_CPU_JOIN(a, b) a##b
#define SZ_CPU_TABLE(kind) SZ_CPU_JOIN(sz_cpu_kernels_, kind)
extern const sz_cpu_kernels SZ_CPU_TABLE(SZ_CPU_KIND);
#endif

#endif
