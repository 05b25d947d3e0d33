/* logprob.cu - log-probability and entropy of chosen tokens, computed directly from hidden states,
 * on the device: over the whole vocabulary, or over a part of it (logprob_part; shards.cu joins
 * the parts).
 *
 * The logits z = x w^T / temperature exist for ROWS rows and CHUNK words at a time only, as f32 in
 * workspace, in both directions. Log-sum-exp and entropy are carried from chunk to chunk as the
 * largest logit so far, top, and the sums s = sum e^(z - top) and t = sum e^(z - top) (z - top).
 * Backward recomputes the logits: dz_j = dlp (1[j = id] - p_j) - dent p_j (log p_j + H). Then
 * dx += dz w / temperature and acc += dz^T x / temperature; with bf16 weights, dz is rounded to
 * bf16 for these two products.
 * Leaves out: probabilities of tokens that were not chosen. The reference is
 * cpu/reference/matmul.c. */
#include "gemm.cuh"

enum { THREADS = 256, ROWS = 2048, CHUNK = 16384 }; /* 128 MiB of logits */

/* ---- forward ---- */
/* The log-sum-exp is top + log s, the entropy log s - t / s. */
typedef struct {
    float top, s, t;
} lse_state;

/* Expresses both sums relative to a larger top. The sums of a top of -infinity are zeros. */
static __device__ __forceinline__ lse_state rescaled(lse_state a, float top)
{
    if (a.top == top || a.top == -INFINITY) return lse_state{ top, a.s, a.t };
    const float shift = a.top - top;
    const float e = expf(shift);
    return lse_state{ top, a.s * e, e * (a.t + shift * a.s) };
}

/* Where the results go. chosen: the log-probability of the ids, or of a part the logit, which is 0
 * for ids of other parts; id_offset: the id of the part's first word. */
struct results {
    const int32_t *ids;
    int64_t id_offset;
    float *chosen, *entropy, *lse;
    bool is_part;
};

/* One block for each row of z [rows, ld], which holds the words [base, base + words). Adds them to
 * state [rows] and picks the chosen word's logit; after the last chunk, writes the results. All
 * pointers are those of the first of the rows. */
__global__ void stats_kernel(const float *z, int64_t ld, int64_t base, int64_t words, float scale,
                             results to, lse_state *state, bool last)
{
    const int64_t row = blockIdx.x;
    const float *from = z + row * ld;
    /* Each thread's words, then the block's. */
    lse_state mine = { -INFINITY, 0, 0 };
    for (int64_t j = threadIdx.x; j < words; j += THREADS) {
        const float v = from[j] * scale;
        if (v > mine.top) mine = rescaled(mine, v);
        const float distance = v - mine.top;
        const float e = expf(distance);
        mine.s += e;
        mine.t += e * distance;
    }
    const float top = sz_block_max<THREADS>(mine.top);
    mine = rescaled(mine, top);
    const float s = sz_block_sum<THREADS>(mine.s);
    const float t = sz_block_sum<THREADS>(mine.t);
    if (threadIdx.x != 0) return;
    const int64_t id = to.ids[row] - to.id_offset - base;
    if (id >= 0 && id < words) to.chosen[row] = from[id] * scale;
    else if (base == 0) to.chosen[row] = 0;

    /* Add the earlier chunks. */
    lse_state all = { top, s, t };
    if (base > 0) {
        const float highest = fmaxf(top, state[row].top);
        const lse_state before = rescaled(state[row], highest);
        all = rescaled(all, highest);
        all.s += before.s;
        all.t += before.t;
    }
    state[row] = all;
    if (!last) return;
    const double log_sum = log((double)all.s);
    to.lse[row] = (float)((double)all.top + log_sum);
    to.entropy[row] = (float)(log_sum - (double)all.t / (double)all.s);
    if (!to.is_part) to.chosen[row] = (float)((double)to.chosen[row] - ((double)all.top + log_sum));
}

/* z [rows, ld] = the unscaled logits of `rows` rows of x from `first` on, for the words
 * [base, base + words). */
static int chunk_logits(const sz_tensor *x, const sz_tensor *w, int64_t first, int64_t rows,
                        int64_t base, int64_t words, float *z, int64_t ld)
{
    const int64_t k = x->shape[1];
    return sz_cuda_gemm_linear(rows, words, k, sz_elements_from(x, first * k).data,
                               sz_elements_from(w, base * k).data, x->dtype, NULL, false, z, ld,
                               SZ_F32);
}

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* all: the results of every row, but for the ids, which the call has. */
static int forward(const sz_call *c, float scale, results all)
{
    const sz_tensor *x = c->in[0];
    const sz_tensor *w = c->in[1];
    const int64_t n = x->shape[0];
    const int64_t v = w->shape[0];
    const int64_t ld = least(CHUNK, v);
    const int64_t most = least(ROWS, n);
    if (n == 0) return 0;
    const int32_t *ids = sz_cuda_indices(c->in[2]);
    float *z = (float *)sz_cuda_scratch((size_t)(most * ld) * sizeof *z);
    lse_state *state = (lse_state *)sz_cuda_scratch((size_t)most * sizeof *state);
    if (!ids || !z || !state) return -1;
    for (int64_t first = 0; first < n; first += ROWS) {
        const int64_t rows = least(ROWS, n - first);
        const results to = { ids + first,         all.id_offset,   all.chosen + first,
                             all.entropy + first, all.lse + first, all.is_part };
        for (int64_t base = 0; base < v; base += CHUNK) {
            const int64_t words = least(CHUNK, v - base);
            if (chunk_logits(x, w, first, rows, base, words, z, ld) != 0) return -1;
            SZ_LAUNCH(stats_kernel, (unsigned)rows, THREADS, 0, z, ld, base, words, scale, to,
                      state, base + words == v);
            if (sz_cuda_launched("logprob") != 0) return -1;
        }
    }
    return 0;
}

extern "C" int sz_cuda_logprob(const sz_call *c)
{
    const results all = { NULL, 0, sz_f32(c->out[0]), sz_f32(c->out[1]), sz_f32(c->out[2]), false };
    return forward(c, (float)c->args[0], all);
}

extern "C" int sz_cuda_logprob_part(const sz_call *c)
{
    const int64_t n = c->in[0]->shape[0];
    float *lse = sz_f32(c->out[0]);
    const results all = { NULL, (int64_t)c->args[0], lse + 2 * n, lse + n, lse, true };
    return forward(c, (float)c->args[2], all);
}

/* ---- backward ---- */
/* Per-row inputs of the gradient: of minus the log-sum-exp (times sign), of the entropy and of the
 * chosen logit; each of them may be NULL, which is 0. */
struct row_inputs {
    const int32_t *ids;
    int64_t id_offset;
    const float *lse, *entropy;
    const float *dlse, *dentropy, *dchosen;
    float sign;
};

/* dz from the logits z; both [rows, ld], and the same memory if dz is f32. */
__global__ void gradient_kernel(const float *z, sz_elements dz, int64_t ld, int64_t base,
                                int64_t words, float scale, row_inputs in)
{
    const int64_t row = blockIdx.x;
    const int64_t id = in.ids[row] - in.id_offset - base;
    const float g = in.dlse ? in.sign * in.dlse[row] : 0;
    const float t = in.dchosen ? in.dchosen[row] : 0;
    const float e = in.dentropy ? in.dentropy[row] : 0;
    const float lse = in.lse[row];
    const float h = in.entropy[row];
    const int64_t start = (int64_t)blockIdx.y * THREADS + threadIdx.x;
    for (int64_t j = start; j < words; j += (int64_t)gridDim.y * THREADS) {
        /* Below the bound p counts as 0, which avoids 0 * -infinity. */
        const float log_p = z[row * ld + j] * scale - lse;
        const float p = log_p < -80 ? 0 : expf(log_p);
        const float common = p > 0 ? p * (g + e * (log_p + h)) : 0;
        sz_store_element(dz, row * ld + j, ((j == id ? t : 0) - common) * scale);
    }
}

static const float *from_row(const float *p, int64_t first) { return p ? p + first : NULL; }

/* The rows [first, ...) of the gradient's inputs. */
static row_inputs inputs_from(const row_inputs &all, const int32_t *ids, int64_t first)
{
    row_inputs in = all;
    in.ids = ids + first;
    in.lse = all.lse + first;
    in.entropy = all.entropy + first;
    in.dlse = from_row(all.dlse, first);
    in.dentropy = from_row(all.dentropy, first);
    in.dchosen = from_row(all.dchosen, first);
    return in;
}

/* dx, and acc += dw where there is one. all: the inputs of every row, but for the ids, which the
 * call has. */
static int backward(const sz_call *c, float scale, const row_inputs &all, const sz_tensor *acc)
{
    const sz_tensor *x = c->in[0];
    const sz_tensor *w = c->in[1];
    const sz_tensor *dx = c->out[0];
    const int64_t n = x->shape[0];
    const int64_t k = x->shape[1];
    const int64_t v = w->shape[0];
    const int64_t ld = least(CHUNK, v);
    const int64_t most = least(ROWS, n);
    const bool is_bf16 = x->dtype == SZ_BF16;
    if (n == 0) return 0;

    /* bf16 needs dz apart from z, and f32 sums for dx. */
    const int32_t *ids = sz_cuda_indices(c->in[2]);
    float *z = (float *)sz_cuda_scratch((size_t)(most * ld) * sizeof *z);
    void *dz = z;
    float *sums = NULL;
    if (is_bf16) {
        dz = sz_cuda_scratch((size_t)(most * ld) * sizeof(bf16));
        sums = (float *)sz_cuda_scratch((size_t)(most * k + 1) * sizeof *sums);
        if (!dz || !sums) return -1;
    }
    if (!ids || !z) return -1;

    for (int64_t first = 0; first < n; first += ROWS) {
        const int64_t rows = least(ROWS, n - first);
        const row_inputs in = inputs_from(all, ids, first);
        const void *x_rows = sz_elements_from(x, first * k).data;
        float *to = is_bf16 ? sums : sz_f32(dx) + first * k;
        for (int64_t base = 0; base < v; base += CHUNK) {
            const int64_t words = least(CHUNK, v - base);
            if (chunk_logits(x, w, first, rows, base, words, z, ld) != 0) return -1;
            const dim3 grid((unsigned)rows, (unsigned)least(8, sz_blocks(words, THREADS)));
            SZ_LAUNCH(gradient_kernel, grid, THREADS, 0, z, sz_elements{ dz, is_bf16 }, ld, base,
                      words, scale, in);
            if (sz_cuda_launched("logprob_backward") != 0) return -1;
            /* dx += dz w, then acc += dz^T x. */
            const void *w_rows = sz_elements_from(w, base * k).data;
            const float beta = base > 0 ? 1.0f : 0.0f;
            if (sz_cuda_gemm(false, false, rows, k, words, dz, ld, w_rows, k, x->dtype, beta, to, k,
                             SZ_F32) != 0)
                return -1;
            if (acc && sz_cuda_gemm(true, false, words, k, rows, dz, ld, x_rows, k, x->dtype, 1,
                                    sz_f32(acc) + base * k, k, SZ_F32) != 0)
                return -1;
        }
        if (is_bf16) sz_cuda_finish(sums, rows, k, NULL, false, sz_elements_from(dx, first * k), k);
    }
    return sz_cuda_launched("logprob_backward");
}

extern "C" int sz_cuda_logprob_backward(const sz_call *c)
{
    const float *dlogprob = c->in[5] ? sz_f32(c->in[5]) : NULL;
    const float *dentropy = c->in[6] ? sz_f32(c->in[6]) : NULL;
    const row_inputs all = { NULL,     0,        sz_f32(c->in[3]), sz_f32(c->in[4]),
                             dlogprob, dentropy, dlogprob,         1 };
    return backward(c, (float)c->args[0], all, c->in[7]);
}

extern "C" int sz_cuda_logprob_part_backward(const sz_call *c)
{
    const int64_t n = c->in[0]->shape[0];
    const float *part = sz_f32(c->in[3]);
    const float *d = sz_f32(c->in[4]);
    const row_inputs all = { NULL, (int64_t)c->args[0], part, part + n, d, d + n, d + 2 * n, -1 };
    return backward(c, (float)c->args[1], all, c->in[5]);
}
