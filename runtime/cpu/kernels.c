/* kernels.c - the table of the CPU kernels of one kind of processor (kernels.h).
 *
 * Compiled for processors with VNNI, where only the products with 8 and 4-bit weights differ from
 * the kind below, it is the table of those alone.
 */
#include "kernels.h"
#include "gemm.h"

int sz_cpu_sample(sz_tensor *logits, const sz_sampling *s, const uint8_t *banned,
                  const uint8_t *seen, const int64_t *row_id, const int32_t *answer_id,
                  const int32_t *position, int32_t *token, float *logprob);

int sz_cpu_moment_recode(sz_tensor *codes, sz_tensor *scales, int second, const sz_place *place,
                         sz_tensor *old_scales, int64_t rows, int64_t columns, int64_t row_slices,
                         int64_t column_slices);

#define SZ_OP(name, inputs, outputs, numbers, gradient, workspace, flops) \
    int sz_cpu_##name(const sz_call *c);
#include "ops/ops.def"
#undef SZ_OP

const sz_cpu_kernels SZ_CPU_TABLE(SZ_CPU_KIND) = {
#ifdef SZ_CPU_INT8_ONLY
    .ops = { [SZ_OP_linear_int8] = sz_cpu_linear_int8, [SZ_OP_linear_int4] = sz_cpu_linear_int4 },
#else
    .ops = {
#define SZ_OP(name, inputs, outputs, numbers, gradient, workspace, flops) sz_cpu_##name,
#include "ops/ops.def"
#undef SZ_OP
    },
    .sample = sz_cpu_sample,
    .moment_recode = sz_cpu_moment_recode,
    .gemm_workspace = sz_gemm_workspace,
    .gemm_stores_bf16 = sz_gemm_stores_bf16,
    .multiplies_bf16 = sz_gemm_multiplies_bf16,
#endif
};
