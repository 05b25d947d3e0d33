/* absent.cu - the rows of ops.def that CUDA does not have yet: 8-bit weights, and AdamW with narrow moments. Each says so. */
#include "cuda.cuh"

extern "C" int sz_cuda_quantize_int8(const sz_call *c) { (void)c; return sz_fail("quantize_int8: 8-bit weights are not there on cuda"); }
extern "C" int sz_cuda_linear_int8(const sz_call *c) { (void)c; return sz_fail("linear_int8: 8-bit weights are not there on cuda"); }
extern "C" int sz_cuda_adamw_compact_(const sz_call *c) { (void)c; return sz_fail("adamw: moments other than f32, or bf16 weights without masters, are not there on cuda"); }
