/* logprob.cu - log-probability and entropy of chosen tokens straight from hidden states, on the device.
 *
 * logits z = x w^T / temperature exist for ROWS rows and CHUNK words at a time only, as f32 in workspace, forward and backward. The
 * log-sum-exp and the entropy are carried from chunk to chunk: with the largest logit so far, top, s = sum e^(z - top) and
 * t = sum e^(z - top) (z - top). Backward computes the logits again: dz_j = dlp (1[j = id] - p_j) - dent p_j (log p_j + H), then
 * dx += dz w / temperature and acc += dz^T x / temperature; with bf16 weights dz is rounded to bf16 for those two products.
 * The reference is cpu/ref_matmul.c. */
#include "gemm.cuh"

enum { THREADS = 256, ROWS = 2048, CHUNK = 16384 };     /* 128 MiB of logits */

/* lse and entropy of top, s, t: top + log s and log s - t / s. */
typedef struct { float top, s, t; } running;

/* Both sums moved to a larger top; a top of -infinity has none. */
static __device__ __forceinline__ running moved(running a, float top)
{
    if (a.top == top || a.top == -INFINITY) return running{ top, a.s, a.t };
    const float by = a.top - top, e = expf(by);
    return running{ top, a.s * e, e * (a.t + by * a.s) };
}

/* A block a row of z [rows, ld], words [base, base + words): joins them to state [rows], picks the chosen word's logit, and after
 * the last chunk writes the results. All pointers are at the first of the rows. */
__global__ void stats_kernel(const float *z, int64_t ld, int64_t base, int64_t words, float scale, const int32_t *ids, running *state, float *logprob,
                             float *entropy, float *lse, bool last)
{
    const int64_t row = blockIdx.x;
    const float *from = z + row * ld;
    running mine = { -INFINITY, 0, 0 };
    for (int64_t j = threadIdx.x; j < words; j += THREADS) {
        const float v = from[j] * scale;
        if (v > mine.top) mine = moved(mine, v);
        const float distance = v - mine.top, e = expf(distance);
        mine.s += e;
        mine.t += e * distance;
    }
    const float top = sz_block_max<THREADS>(mine.top);
    mine = moved(mine, top);
    const float s = sz_block_sum<THREADS>(mine.s), t = sz_block_sum<THREADS>(mine.t);
    if (threadIdx.x != 0) return;
    const int64_t id = ids[row] - base;
    if (id >= 0 && id < words) logprob[row] = from[id] * scale;
    running all = { top, s, t };
    if (base > 0) {
        const float highest = fmaxf(top, state[row].top);
        const running before = moved(state[row], highest);
        all = moved(all, highest);
        all.s += before.s;
        all.t += before.t;
    }
    state[row] = all;
    if (!last) return;
    const double log_sum = log((double)all.s);
    lse[row] = (float)((double)all.top + log_sum);
    entropy[row] = (float)(log_sum - (double)all.t / (double)all.s);
    logprob[row] = (float)((double)logprob[row] - ((double)all.top + log_sum));
}

static int chunk_logits(const sz_tensor *x, const sz_tensor *w, int64_t first, int64_t rows, int64_t base, int64_t words, float *z, int64_t ld)
{
    const int64_t k = x->shape[1];
    return sz_cuda_gemm_linear(rows, words, k, sz_elements_from(x, first * k).data, sz_elements_from(w, base * k).data, x->dtype, NULL, false, z, ld, SZ_F32);
}

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

extern "C" int sz_cuda_logprob(const sz_call *c)
{
    const sz_tensor *x = c->in[0], *w = c->in[1];
    const int64_t n = x->shape[0], v = w->shape[0], ld = least(CHUNK, v), most = least(ROWS, n);
    if (n == 0) return 0;
    const int32_t *ids = sz_cuda_indices(c->in[2]);
    float *z = (float *)sz_cuda_scratch((size_t)(most * ld) * sizeof *z);
    running *state = (running *)sz_cuda_scratch((size_t)most * sizeof *state);
    if (!ids || !z || !state) return -1;
    for (int64_t first = 0; first < n; first += ROWS)
        for (int64_t base = 0; base < v; base += CHUNK) {
            const int64_t rows = least(ROWS, n - first), words = least(CHUNK, v - base);
            if (chunk_logits(x, w, first, rows, base, words, z, ld)) return -1;
            SZ_LAUNCH(stats_kernel, (unsigned)rows, THREADS, 0, z, ld, base, words, (float)c->args[0], ids + first, state, sz_f32(c->out[0]) + first,
                      sz_f32(c->out[1]) + first, sz_f32(c->out[2]) + first, base + words == v);
            if (sz_cuda_launched("logprob")) return -1;
        }
    return 0;
}

/* dz, in place when it is f32, from the logits z; both [rows, ld]. */
__global__ void gradient_kernel(const float *z, sz_elements dz, int64_t ld, int64_t base, int64_t words, float scale, const int32_t *ids, const float *lse,
                                const float *entropy, const float *dlogprob, const float *dentropy)
{
    const int64_t row = blockIdx.x, id = ids[row] - base;
    const float g = dlogprob ? dlogprob[row] : 0, e = dentropy ? dentropy[row] : 0, sum = lse[row], h = entropy[row];
    for (int64_t j = (int64_t)blockIdx.y * THREADS + threadIdx.x; j < words; j += (int64_t)gridDim.y * THREADS) {
        /* The bound keeps 0 * -infinity out. */
        const float log_p = z[row * ld + j] * scale - sum, p = log_p < -80 ? 0 : expf(log_p);
        const float rest = p > 0 ? p * (g + e * (log_p + h)) : 0;
        sz_store_element(dz, row * ld + j, ((j == id ? g : 0) - rest) * scale);
    }
}

extern "C" int sz_cuda_logprob_backward(const sz_call *c)
{
    const sz_tensor *x = c->in[0], *w = c->in[1], *acc = c->in[7], *dx = c->out[0];
    const int64_t n = x->shape[0], k = x->shape[1], v = w->shape[0], ld = least(CHUNK, v), most = least(ROWS, n);
    const bool narrow = x->dtype == SZ_BF16;
    if (n == 0) return 0;
    const int32_t *ids = sz_cuda_indices(c->in[2]);
    float *z = (float *)sz_cuda_scratch((size_t)(most * ld) * sizeof *z);
    void *dz = narrow ? sz_cuda_scratch((size_t)(most * ld) * sizeof(bf16)) : z;
    float *sums = narrow ? (float *)sz_cuda_scratch((size_t)(most * k + 1) * sizeof *sums) : NULL;
    if (!ids || !z || !dz || (narrow && !sums)) return -1;
    for (int64_t first = 0; first < n; first += ROWS) {
        const int64_t rows = least(ROWS, n - first);
        float *to = narrow ? sums : sz_f32(dx) + first * k;
        for (int64_t base = 0; base < v; base += CHUNK) {
            const int64_t words = least(CHUNK, v - base);
            if (chunk_logits(x, w, first, rows, base, words, z, ld)) return -1;
            const dim3 grid((unsigned)rows, (unsigned)least(8, sz_blocks(words, THREADS)));
            SZ_LAUNCH(gradient_kernel, grid, THREADS, 0, z, sz_elements{ dz, narrow }, ld, base, words, (float)c->args[0], ids + first, sz_f32(c->in[3]) + first,
                      sz_f32(c->in[4]) + first, c->in[5] ? sz_f32(c->in[5]) + first : NULL, c->in[6] ? sz_f32(c->in[6]) + first : NULL);
            if (sz_cuda_launched("logprob_backward")) return -1;
            if (sz_cuda_gemm(false, false, rows, k, words, dz, ld, sz_elements_from(w, base * k).data, k, x->dtype, base > 0 ? 1.0f : 0.0f, to, k, SZ_F32)) return -1;
            if (acc && sz_cuda_gemm(true, false, words, k, rows, dz, ld, sz_elements_from(x, first * k).data, k, x->dtype, 1, sz_f32(acc) + base * k, k, SZ_F32)) return -1;
        }
        if (narrow) sz_cuda_finish(sums, rows, k, NULL, false, sz_elements_from(dx, first * k), k);
    }
    return sz_cuda_launched("logprob_backward");
}
