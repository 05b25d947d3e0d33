/* shards.cu - the rows of ops.def for a model that is split over ranks, on the device: tp_copy,
 * tp_sum, tp_sum_, tp_gather, embedding_part, logprob_join and its gradient.
 *
 * The collectives go through the core (comm/), which sends the tensors from device to device or
 * through host memory. In the second case a decode step with them is not recorded as a graph.
 * Leaves out: logprob_part (logprob.cu). The reference is cpu/reference/shards.c. */
#include "vector.cuh"

enum { THREADS = 256 };

/* ---- collectives ---- */
/* The result is a view. */
extern "C" int sz_cuda_tp_copy(const sz_call *) { return 0; }

extern "C" int sz_cuda_tp_sum(const sz_call *c) { return sz_cuda_core()->tp_sum(c); }
extern "C" int sz_cuda_tp_sum_(const sz_call *c) { return sz_cuda_core()->tp_sum(c); }
extern "C" int sz_cuda_tp_gather(const sz_call *c) { return sz_cuda_core()->tp_gather(c); }

/* ---- embedding_part: out[i] = table[ids[i] - first], or zeros ---- */
/* A block for each row; elements are moved as unsigned integers of their width. */
template <class T> __global__ void embedding_part_kernel(const T *table, int64_t rows,
                                                         const int32_t *ids, int64_t first, T *out,
                                                         int64_t d)
{
    const int64_t i = blockIdx.x;
    const int64_t row = ids[i] - first;
    const bool own = row >= 0 && row < rows;
    for (int64_t k = threadIdx.x; k < d; k += THREADS)
        out[i * d + k] = own ? table[row * d + k] : (T)0;
}

extern "C" int sz_cuda_embedding_part(const sz_call *c)
{
    const sz_tensor *table = c->in[0];
    const sz_tensor *out = c->out[0];
    const int64_t d = sz_cols(table);
    const int64_t first = (int64_t)c->args[0];
    if (out->numel == 0) return 0;
    const int32_t *ids = sz_cuda_indices(c->in[1]);
    if (!ids) return -1;
    const unsigned blocks = (unsigned)out->shape[0];
    if (table->dtype == SZ_F32)
        SZ_LAUNCH((embedding_part_kernel<uint32_t>), blocks, THREADS, 0,
                  (const uint32_t *)table->data, table->shape[0], ids, first, (uint32_t *)out->data,
                  d);
    else
        SZ_LAUNCH((embedding_part_kernel<uint16_t>), blocks, THREADS, 0,
                  (const uint16_t *)table->data, table->shape[0], ids, first, (uint16_t *)out->data,
                  d);
    return sz_cuda_launched("embedding_part");
}

/* ---- logprob_join: one column of parts [p * 3, n] for each thread ---- */
/* The log-sum-exp over all parts. Part r then has the share exp(its log-sum-exp - this). */
static __device__ __forceinline__ double joined_lse(const float *parts, int64_t p, int64_t n,
                                                    int64_t i)
{
    double top = -INFINITY;
    double sum = 0;
    for (int64_t r = 0; r < p; r++) top = fmax(top, (double)parts[3 * r * n + i]);
    for (int64_t r = 0; r < p; r++) sum += exp((double)parts[3 * r * n + i] - top);
    return top + log(sum);
}

/* The entropy over all parts: sum share (entropy of the part - log share). */
static __device__ __forceinline__ double joined_entropy(const float *parts, int64_t p, int64_t n,
                                                        int64_t i, double lse)
{
    double h = 0;
    for (int64_t r = 0; r < p; r++) {
        const double log_share = (double)parts[3 * r * n + i] - lse;
        h += exp(log_share) * ((double)parts[(3 * r + 1) * n + i] - log_share);
    }
    return h;
}

__global__ void join_kernel(const float *parts, int64_t p, int64_t n, float *logprob,
                            float *entropy)
{
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= n) return;
    const double lse = joined_lse(parts, p, n, i);
    double chosen = 0;
    for (int64_t r = 0; r < p; r++) chosen += (double)parts[(3 * r + 2) * n + i];
    logprob[i] = (float)(chosen - lse);
    entropy[i] = (float)joined_entropy(parts, p, n, i, lse);
}

extern "C" int sz_cuda_logprob_join(const sz_call *c)
{
    const sz_tensor *parts = c->in[0];
    const int64_t n = parts->shape[1];
    if (n == 0) return 0;
    SZ_LAUNCH(join_kernel, (unsigned)sz_blocks(n, THREADS), THREADS, 0, sz_f32(parts),
              parts->shape[0] / 3, n, sz_f32(c->out[0]), sz_f32(c->out[1]));
    return sz_cuda_launched("logprob_join");
}

/* Either gradient may be NULL, which is 0. */
__global__ void join_backward_kernel(const float *parts, int64_t p, int64_t n,
                                     const float *dlogprob, const float *dentropy, float *out)
{
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= n) return;
    const double lse = joined_lse(parts, p, n, i);
    const double h = joined_entropy(parts, p, n, i, lse);
    const double g = dlogprob ? (double)dlogprob[i] : 0;
    const double e = dentropy ? (double)dentropy[i] : 0;
    for (int64_t r = 0; r < p; r++) {
        const double log_share = (double)parts[3 * r * n + i] - lse;
        const double share = exp(log_share);
        const double own = (double)parts[(3 * r + 1) * n + i];
        out[3 * r * n + i] = (float)(share * (e * (own - log_share - h) - g));
        out[(3 * r + 1) * n + i] = (float)(share * e);
        out[(3 * r + 2) * n + i] = (float)g;
    }
}

extern "C" int sz_cuda_logprob_join_backward(const sz_call *c)
{
    const sz_tensor *parts = c->in[0];
    const int64_t n = parts->shape[1];
    if (n == 0) return 0;
    SZ_LAUNCH(join_backward_kernel, (unsigned)sz_blocks(n, THREADS), THREADS, 0, sz_f32(parts),
              parts->shape[0] / 3, n, c->in[1] ? sz_f32(c->in[1]) : NULL,
              c->in[2] ? sz_f32(c->in[2]) : NULL, sz_f32(c->out[0]));
    return sz_cuda_launched("logprob_join_backward");
}
