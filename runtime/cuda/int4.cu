/* int4.cu - linear layers with 4-bit weights are for the CPU (cpu/int4.c); on the device these rows
 * of ops.def are refused. Models refuse earlier, with what to take instead. */
#include "device.cuh"

static int refuse(const char *op)
{
    return sz_fail("%s: 4-bit weights are for the CPU; take 8 or 16 bits on a GPU", op);
}

extern "C" int sz_cuda_quantize_int4(const sz_call *) { return refuse("quantize_int4"); }
extern "C" int sz_cuda_dequantize_int4(const sz_call *) { return refuse("dequantize_int4"); }
extern "C" int sz_cuda_linear_int4(const sz_call *) { return refuse("linear_int4"); }
