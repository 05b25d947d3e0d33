/* rope.cu - rotary position embedding on the device: rope rotates the pair (j, j + half) of each
 * head by the angle of (row, j), times sign. x [rows, cols] starts with `heads` heads of 2 * half
 * columns; the other columns are copied. cosines and sines are [rows, half].
 * Leaves out: computing the angles, which the models do. The reference is cpu/reference/rowwise.c.
 * */
#include "vector.cuh"

enum { THREADS = 256 };

/* Rotates W pairs (a, b) in place. If rounded, each product is rounded to bf16 before the sum is,
 * as PyTorch computes x * cos + rotate_half(x) * sin in bf16. */
template <int W>
static __device__ __forceinline__ void rotate(float (&a)[W], float (&b)[W], const float (&c)[W],
                                              const float (&s)[W], float sign, bool rounded)
{
    for (int i = 0; i < W; i++) {
        const float sine = sign * s[i];
        const float x = a[i];
        const float y = b[i];
        if (rounded) {
            a[i] = sz_round_bf16(x * c[i]) - sz_round_bf16(y * sine);
            b[i] = sz_round_bf16(y * c[i]) + sz_round_bf16(x * sine);
        } else {
            a[i] = x * c[i] - y * sine;
            b[i] = y * c[i] + x * sine;
        }
    }
}

/* One block for each row. A unit is W pairs, or W columns that are copied. */
template <int W> __global__ void rope_kernel(sz_elements x, sz_elements cosines, sz_elements sines,
                                             sz_elements y, int64_t rows, int64_t cols, int heads,
                                             int half, float sign, bool rounded)
{
    const int64_t rotated = (int64_t)heads * 2 * half;
    const int pairs = heads * half / W;
    const int copies = (int)(cols - rotated) / W;
    for (int64_t row = blockIdx.x; row < rows; row += gridDim.x)
        for (int u = (int)threadIdx.x; u < pairs + copies; u += (int)blockDim.x) {
            if (u >= pairs) {
                const int64_t at = row * cols + rotated + (int64_t)(u - pairs) * W;
                float v[W];
                sz_load_vector<W>(x, at, v);
                sz_store_vector<W>(y, at, v);
                continue;
            }
            const int head = u * W / half;
            const int j = u * W % half;
            const int64_t at = row * cols + (int64_t)head * 2 * half + j;
            float c[W], s[W], a[W], b[W];
            sz_load_vector<W>(cosines, row * half + j, c);
            sz_load_vector<W>(sines, row * half + j, s);
            sz_load_vector<W>(x, at, a);
            sz_load_vector<W>(x, at + half, b);
            rotate<W>(a, b, c, s, sign, rounded);
            sz_store_vector<W>(y, at, a);
            sz_store_vector<W>(y, at + half, b);
        }
}

extern "C" int sz_cuda_rope(const sz_call *c)
{
    const sz_tensor *x = c->in[0];
    const sz_tensor *cosines = c->in[1];
    const sz_tensor *sines = c->in[2];
    const sz_tensor *y = c->out[0];
    const int64_t rows = sz_rows(x);
    const int64_t cols = sz_cols(x);
    const int heads = (int)c->args[0];
    const int half = (int)c->args[1] / 2;
    const float sign = (float)c->args[2];
    const bool rounded = x->dtype == SZ_BF16 && cosines->dtype == SZ_BF16;
    const bool vectors = half % SZ_VECTOR == 0 && cols % SZ_VECTOR == 0 && sz_is_aligned16(x) &&
                         sz_is_aligned16(cosines) && sz_is_aligned16(sines) && sz_is_aligned16(y);
    if (rows == 0 || cols == 0) return 0;
    const int64_t units = (cols - (int64_t)heads * half) / (vectors ? SZ_VECTOR : 1);
    const int64_t used = units < THREADS ? units : (int64_t)THREADS;
    const unsigned threads = (unsigned)sz_blocks(used, 32) * 32;
    const sz_elements from = sz_elements_of(x);
    const sz_elements cosine = sz_elements_of(cosines);
    const sz_elements sine = sz_elements_of(sines);
    const sz_elements to = sz_elements_of(y);
    if (vectors)
        SZ_LAUNCH((rope_kernel<SZ_VECTOR>), sz_grid(rows), threads, 0, from, cosine, sine, to, rows,
                  cols, heads, half, sign, rounded);
    else
        SZ_LAUNCH((rope_kernel<1>), sz_grid(rows), threads, 0, from, cosine, sine, to, rows, cols,
                  heads, half, sign, rounded);
    return sz_cuda_launched("rope");
}
