/* cudnn.cuh - convolutions by cuDNN, for conv.cu. */
#ifndef SZ_CUDA_CUDNN_CUH
#define SZ_CUDA_CUDNN_CUH

#include "cuda.cuh"

/* x [batch, h, w, c] under a kernel kh x kw gives y [batch, oh, ow, o]; k = kh * kw * c. */
typedef struct {
    int64_t batch, h, w, c, oh, ow, o, kh, kw, stride, padding, k;
} sz_conv;

typedef enum { SZ_CONV_FORWARD, SZ_CONV_INPUT, SZ_CONV_WEIGHT } sz_conv_kind;
enum { SZ_CUDNN_NONE = 1 };

/* FORWARD: y from x and w, plus bias [o] where there is one; INPUT: x from y and w, the adjoint of FORWARD; WEIGHT: w from x and y, y being
 * FORWARD's gradient. x, y and w [o, kh, kw, c] are of dtype, whichever is made is overwritten; the bias of any dtype. Sums are f32, rounded
 * once. 0; -1 with a message; SZ_CUDNN_NONE, and nothing done, where cuDNN is not there or has no way that is exact and repeatable. */
int sz_cudnn_conv(sz_conv_kind kind, const sz_conv &g, int dtype, const void *x, const void *w, const void *y, const sz_tensor *bias);

/* A line "cudnn: ..." for people; borrowed. */
const char *sz_cudnn_describe(void);

#endif
