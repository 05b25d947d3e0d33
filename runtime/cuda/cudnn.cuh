/* cudnn.cuh - convolutions by cuDNN, for conv.cu.
 * Leaves out: our own convolution by matrix products, which conv.cu uses where cuDNN does not
 * serve. */
#ifndef SZ_CUDA_CUDNN_CUH
#define SZ_CUDA_CUDNN_CUH

#include "cuda.cuh"

/* x [batch, h, w, c] under a kernel kh x kw gives y [batch, oh, ow, o]; k = kh * kw * c. */
typedef struct {
    int64_t batch, h, w, c;
    int64_t oh, ow, o;
    int64_t kh, kw, stride, padding;
    int64_t k;
} sz_conv;

typedef enum { SZ_CONV_FORWARD, SZ_CONV_INPUT, SZ_CONV_WEIGHT } sz_conv_kind;
enum { SZ_CUDNN_NONE = 1 };

/* Runs one convolution:
 *   FORWARD  y from x and w, plus bias [o] unless it is NULL
 *   INPUT    x from y and w, the adjoint of FORWARD
 *   WEIGHT   w from x and y, where y is the gradient of FORWARD's result
 * x, y and w [o, kh, kw, c] are of dtype, the bias of any dtype. The result is overwritten. Sums
 * are f32 and are rounded once. Returns 0; -1 with a message; or SZ_CUDNN_NONE, having done
 * nothing, if cuDNN is missing or has no algorithm that is exact and repeatable. */
int sz_cudnn_conv(sz_conv_kind kind, const sz_conv &g, int dtype, const void *x, const void *w,
                  const void *y, const sz_tensor *bias);

/* Returns the line "cudnn: ..." of the device description; borrowed. */
const char *sz_cudnn_describe(void);

#endif
