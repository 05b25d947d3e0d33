/* workspace.c - how much kernel workspace (sz_scratch) a call asks for on the CPU, in bytes: for counting a step without computing it
 * (sz_dry_run). Kept in step with matmul.c, gemm.c, logprob.c, rowwise.c and attention.c; what takes kilobytes says 0. */
#include "gemm.h"
#include <omp.h>

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* f32 sums of a bf16 result. */
static int64_t sums_of(const sz_tensor *y) { return y->dtype == SZ_F32 ? 0 : 4 * y->numel; }

/* linear, linear_cat: x [n, k], weights from input 1 on. */
static int64_t linear(const sz_call *c, int weights)
{
    int64_t most = 0;
    for (int i = 1; i <= weights && c->in[i]; i++) {
        int64_t w = sz_gemm_workspace(sz_rows(c->in[0]), c->in[i]->shape[0], sz_cols(c->in[0]), c->in[0]->dtype);
        if (w > most) most = w;
    }
    return sums_of(c->out[0]) + most;
}

static int64_t linear_dx(const sz_call *c)
{
    int64_t most = 0, n = sz_rows(c->in[0]), k = sz_cols(c->out[0]);
    for (int i = 1; i <= 3 && c->in[i]; i++) {
        int64_t w = sz_gemm_workspace(n, k, c->in[i]->shape[0], c->in[0]->dtype);
        if (w > most) most = w;
    }
    return sums_of(c->out[0]) + most;
}

static int64_t logprob(const sz_call *c, bool backward)
{
    const sz_tensor *x = c->in[0], *w = c->in[1];
    int64_t rows = least(x->shape[0], SZ_LOGPROB_ROWS), k = x->shape[1], v = w->shape[0];
    int64_t forward = sz_gemm_workspace(rows, v, k, x->dtype), logits = 4 * rows * v;
    if (!backward) return logits + forward;
    int64_t dx = sz_gemm_workspace(rows, k, v, x->dtype), dw = sz_gemm_workspace(v, k, rows, x->dtype);
    int64_t most = forward > dx ? forward : dx;
    return logits + 4 * rows * k + (x->dtype == SZ_BF16 ? 2 * rows * v : 0) + (most > dw ? most : dw);
}

/* Buffers of each thread; in backward also the sums of keys that several threads work on. */
static int64_t attention(const sz_call *c, bool backward)
{
    int64_t groups = (int64_t)c->args[1], d = (int64_t)c->args[2], keys = c->in[0]->shape[0], buffers = omp_get_max_threads() * ((128 << 10) + 3072 * d);
    return backward ? buffers + 16 * keys * groups * d : buffers;
}

int64_t sz_cpu_workspace(int op, const sz_call *c)
{
    switch (op) {
    case SZ_OP_linear: case SZ_OP_linear_gelu: return linear(c, 1);
    case SZ_OP_linear_cat: return linear(c, 3);
    case SZ_OP_linear_f32_out: return sz_gemm_workspace(sz_rows(c->in[0]), sz_cols(c->out[0]), sz_cols(c->in[0]), c->in[0]->dtype);
    case SZ_OP_linear_add_: {
        int64_t n = sz_rows(c->in[1]), m = c->in[2]->shape[0];
        return (c->in[0]->dtype == SZ_F32 ? 0 : 4 * n * m) + sz_gemm_workspace(n, m, sz_cols(c->in[1]), c->in[1]->dtype);
    }
    case SZ_OP_linear_dx: return linear_dx(c);
    case SZ_OP_linear_dw_: return sz_gemm_workspace(c->in[0]->shape[0], sz_cols(c->in[1]), sz_rows(c->in[1]), c->in[1]->dtype);
    case SZ_OP_logprob: return logprob(c, false);
    case SZ_OP_logprob_backward: return logprob(c, true);
    case SZ_OP_rmsnorm_backward: case SZ_OP_layernorm_backward: return 8 * 64 * sz_cols(c->in[0]);
    case SZ_OP_attention: case SZ_OP_attention_cached: return attention(c, false);
    case SZ_OP_attention_backward: return attention(c, true);
    default: return 0;
    }
}
