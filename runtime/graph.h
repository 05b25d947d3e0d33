/* graph.h - the only header of the runtime that models/ includes: tensors and their fields, typed
 * op wrappers, recomputation, sharing, scopes, errors, background work, the key-value cache, the
 * decode step, the groups of ranks. It brings sz.h, the public calls, with it.
 *
 *     sz_tensor *h = sz_rmsnorm(x, w->norm, eps);
 *     sz_tensor *y = sz_linear(h, w->proj, NULL);     NULL if either failed: check once, at the end
 *     sz_tensor_release(h);
 *     return y;
 *
 * Shapes are in ops/ops.def. Every wrapper borrows its arguments and returns a new reference, or
 * NULL with a message; an argument that is NULL means "an earlier call failed" and keeps that
 * call's message, unless ops.def says that it may be NULL.
 * Leaves out: op calls by number, the tape, storage (core/core.h), and anything that names a
 * model.
 */
#ifndef SZ_GRAPH_H
#define SZ_GRAPH_H

#include "sz.h"
#include "comm/comm.h"
#include <stdbool.h>
#include <string.h>

/* ---- errors ---- */
/* Leave a message for sz_last_error. sz_fail returns -1 and sz_null NULL, so that a caller can
 * return them. */
int sz_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
void *sz_null(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* A broken invariant: prints where and why, then aborts. Always on. */
void sz_panic(const char *file, int line, const char *what) __attribute__((noreturn));
#define SZ_ASSERT(cond, what) ((cond) ? (void)0 : sz_panic(__FILE__, __LINE__, what))

/* ---- tensors: always contiguous, row-major ---- */
enum { SZ_MAX_DIMS = 6 };

typedef struct sz_storage
    sz_storage; /* owns bytes: a heap block or a file mapping; reference counted */

/* flags of a tensor */
enum {
    SZ_REQUIRES_GRAD = 1,
    SZ_PARAMETER = 2,   /* a leaf: its gradient accumulates until the optimizer clears it */
    SZ_GRAD_SHARED = 4, /* a gradient whose bytes another gradient may read */
    SZ_GRAD_BF16 = 8,   /* the parameter's gradient is kept in bf16 */
    SZ_PINNED = 16,     /* an arena tensor that keeps its bytes until its scope is popped */
};

struct sz_tensor {
    int32_t refs;
    int32_t idle; /* how many of them do not need the bytes: the scope's, and some of the tape's */
    int8_t dtype, device, ndim;
    uint8_t flags;
    int32_t node; /* index of the tape node that made it; -1 for a leaf */
    int64_t shape[SZ_MAX_DIMS];
    int64_t numel;
    /* NULL once nothing needs an arena tensor's bytes, or its scope has been popped; off the CPU
     * only the backend follows it. */
    void *data;
    sz_storage *storage;          /* NULL for arena tensors */
    struct sz_arena_block *block; /* of an arena tensor: where its bytes are, with a reference */
    /* Owned. A parameter's is f32, or bf16 with SZ_GRAD_BF16; an activation's has its dtype. */
    sz_tensor *grad;
};

/* Bytes of an element. */
static inline size_t sz_dtype_size(int dtype)
{
    if (dtype == SZ_F32 || dtype == SZ_I32) return 4;
    return dtype == SZ_BF16 ? 2 : 1;
}
static inline size_t sz_bytes(const sz_tensor *t)
{
    return (size_t)t->numel * sz_dtype_size(t->dtype);
}
/* The data of a CPU tensor of that dtype. */
static inline float *sz_f32(const sz_tensor *t) { return (float *)t->data; }
static inline uint16_t *sz_bf16(const sz_tensor *t) { return (uint16_t *)t->data; }
static inline int32_t *sz_i32(const sz_tensor *t) { return (int32_t *)t->data; }
/* The last dimension, and the product of the others. */
static inline int64_t sz_cols(const sz_tensor *t) { return t->ndim ? t->shape[t->ndim - 1] : 1; }
static inline int64_t sz_rows(const sz_tensor *t) { return sz_cols(t) ? t->numel / sz_cols(t) : 0; }

static inline float sz_from_bf16(uint16_t h)
{
    union {
        uint32_t u;
        float f;
    } v = { (uint32_t)h << 16 };
    return v.f;
}
/* Rounds to nearest even; NaN stays NaN. */
static inline uint16_t sz_to_bf16(float f)
{
    union {
        float f;
        uint32_t u;
    } v = { f };
    uint32_t rounded = (v.u + 0x7fff + ((v.u >> 16) & 1)) >> 16;
    return (v.u & 0x7fffffff) > 0x7f800000 ? (uint16_t)((v.u >> 16) | 0x40) : (uint16_t)rounded;
}
/* Element i of an f32 or bf16 tensor as a float. */
static inline float sz_get(const sz_tensor *t, int64_t i)
{
    return t->dtype == SZ_F32 ? sz_f32(t)[i] : sz_from_bf16(sz_bf16(t)[i]);
}
static inline void sz_put(sz_tensor *t, int64_t i, float v)
{
    if (t->dtype == SZ_F32) sz_f32(t)[i] = v;
    else sz_bf16(t)[i] = sz_to_bf16(v);
}

/* A new tensor of t's shape, dtype and device. */
sz_tensor *sz_tensor_like(const sz_tensor *t);
/* New tensors of one and of two dimensions. */
sz_tensor *sz_new1(int dtype, int64_t n, int device);
sz_tensor *sz_new2(int dtype, int64_t n, int64_t m, int device);
/* A heap tensor, even inside a scope: parameters' gradients, optimizer state, caches. */
sz_tensor *sz_tensor_new_heap(int dtype, int ndim, const int64_t *shape, int device);
/* In page-locked host memory, for copies during the device's work; the device must be open. */
sz_tensor *sz_tensor_new_locked(int dtype, int ndim, const int64_t *shape);
/* A view of t's bytes from element `first` on. */
sz_tensor *sz_tensor_view(sz_tensor *t, int ndim, const int64_t *shape, int64_t first);
/* Replaces *t by its copy on the device; keeps it when it is there already. 0, or -1 with a
 * message. */
int sz_tensor_move(sz_tensor **t, int device);
/* The pages of a tensor in a mapped file leave the process. They are read again when touched. Does
 * nothing for other tensors. */
void sz_tensor_unload(const sz_tensor *t);
/* Nothing is computed or copied (sz_dry_run). */
bool sz_is_dry_run(void);
/* Copies bytes between any two devices. The ranges may overlap. 0, or -1 with a message. */
int sz_bytes_copy(int to, void *dst, int from, const void *src, size_t bytes);

/* ---- scopes, recomputation, sharing ---- */
/* Pops the scope but moves t's bytes to the outer one. Takes over the caller's reference to t and
 * returns one; NULL if t is NULL. */
sz_tensor *sz_scope_pop_keep(sz_tensor *t);

static inline bool sz_needs_grad(const sz_tensor *t) { return t && (t->flags & SZ_REQUIRES_GRAD); }

/* x for several backward passes, each of which goes back only to where its own work began
 * (sz_backward). The gradients that they give the result are summed in f32 and reach x in a later
 * pass. Returns x itself, retained, when x needs no gradient. */
sz_tensor *sz_share(sz_tensor *x);

/* y = fn(ctx, x), without recording; only y is kept. Its backward pass runs fn again, recording.
 * The ctx_size bytes of ctx are copied. Tensors that ctx names must live as long as the step (arena
 * tensors: sz_tensor_pin), and fn must be deterministic. */
typedef sz_tensor *(*sz_checkpoint_fn)(const void *ctx, sz_tensor *x);
sz_tensor *sz_checkpoint(sz_checkpoint_fn fn, const void *ctx, size_t ctx_size, sz_tensor *x);

/* ---- elementwise ---- */
sz_tensor *sz_add(sz_tensor *a, sz_tensor *b);
sz_tensor *sz_affine(sz_tensor *x, double scale, double shift);
sz_tensor *sz_cast(sz_tensor *x, int dtype);
sz_tensor *sz_gelu(sz_tensor *x);
sz_tensor *sz_quick_gelu(sz_tensor *x);
sz_tensor *sz_relu(sz_tensor *x);
sz_tensor *sz_sigmoid(sz_tensor *x);
sz_tensor *sz_swiglu(sz_tensor *x);

/* ---- norms, rotary embedding ---- */
sz_tensor *sz_rmsnorm(sz_tensor *x, sz_tensor *w, double eps);
sz_tensor *sz_layernorm(sz_tensor *x, sz_tensor *w, sz_tensor *b, double eps);
sz_tensor *sz_rope(sz_tensor *x, sz_tensor *cosines, sz_tensor *sines, int heads, int head_dim);

/* ---- rows ---- */
sz_tensor *sz_embedding(sz_tensor *table, sz_tensor *ids);
sz_tensor *sz_gather_rows(sz_tensor *x, sz_tensor *ids);
sz_tensor *sz_index_copy(sz_tensor *x, sz_tensor *ids, sz_tensor *src);
sz_tensor *sz_pad_rows(sz_tensor *x, int64_t count);
sz_tensor *sz_max_pool_rows(sz_tensor *x, sz_tensor *ids);
/* dst[ids[i]] = src[i, col : col + w], in place. 0, or -1 with a message. */
int sz_scatter_cols(sz_tensor *dst, sz_tensor *ids, sz_tensor *src, int64_t col);

/* ---- views ---- */
sz_tensor *sz_reshape2(sz_tensor *x, int64_t n, int64_t m);
sz_tensor *sz_reshape4(sz_tensor *x, int64_t b, int64_t h, int64_t w, int64_t c);
sz_tensor *sz_narrow(sz_tensor *x, int64_t start, int64_t length);

/* ---- matrix products; b may be NULL ---- */
sz_tensor *sz_matmul(sz_tensor *a, sz_tensor *b, bool trans_a, bool trans_b);
sz_tensor *sz_linear(sz_tensor *x, sz_tensor *w, sz_tensor *b);
sz_tensor *sz_linear_gelu(sz_tensor *x, sz_tensor *w, sz_tensor *b);
sz_tensor *sz_linear_f32_out(sz_tensor *x, sz_tensor *w);
/* Up to three layers side by side; a NULL weight ends them. */
sz_tensor *sz_linear_cat(sz_tensor *x, sz_tensor *w[3], sz_tensor *b[3]);
/* y[:, col : col + m] += x w^T; returns a view of y. */
sz_tensor *sz_linear_add(sz_tensor *y, sz_tensor *x, sz_tensor *w, int64_t col);
/* Two new tensors. 0, or -1 with a message. */
int sz_quantize_int8(sz_tensor *w[3], sz_tensor **q, sz_tensor **scale);
sz_tensor *sz_linear_int8(sz_tensor *x, sz_tensor *q, sz_tensor *scale, sz_tensor *b, int64_t m,
                          bool f32_out);
int sz_quantize_int4(sz_tensor *w[3], sz_tensor **q, sz_tensor **scale);
sz_tensor *sz_linear_int4(sz_tensor *x, sz_tensor *q, sz_tensor *scale, sz_tensor *b, int64_t m,
                          bool f32_out);

/* ---- attention ---- */
sz_tensor *sz_attention(sz_tensor *qkv, sz_tensor *segments, int heads, int kv_heads, int head_dim,
                        bool causal, double scale);
sz_tensor *sz_attention_cached(sz_tensor *q, sz_tensor *k, sz_tensor *v, sz_tensor *segments,
                               int heads, int kv_heads, int head_dim, bool causal, double scale);
sz_tensor *sz_attention_cross(sz_tensor *q, sz_tensor *k, sz_tensor *v, sz_tensor *segments,
                              int heads, int kv_heads, int head_dim, bool causal, double scale);

/* ---- images [b, h, w, c] ---- */
sz_tensor *sz_conv2d(sz_tensor *x, sz_tensor *w, sz_tensor *b, int stride, int padding);
sz_tensor *sz_conv_transpose2d(sz_tensor *x, sz_tensor *w, sz_tensor *b, int stride, int padding);
/* As PyTorch's interpolate with align_corners = False; bicubic has a = -0.75. */
enum { SZ_NEAREST, SZ_BILINEAR, SZ_BICUBIC, SZ_BILINEAR_ANTIALIASED };
sz_tensor *sz_resize(sz_tensor *x, int64_t height, int64_t width, int mode);

/* ---- log-probability ---- */
/* Of ids under softmax(x w^T * inverse_temperature), and that distribution's entropy: two new f32
 * [n]. 0, or -1 with a message. */
int sz_logprob(sz_tensor *x, sz_tensor *w, sz_tensor *ids, double inverse_temperature,
               sz_tensor **logprob, sz_tensor **entropy);

/* ---- a model that is split over ranks; group: of sz_comm_handle ---- */
sz_tensor *sz_tp_copy(sz_tensor *x, int group);
sz_tensor *sz_tp_sum(sz_tensor *x, int group);
/* Returns a view of x, which has become the sum; no gradient may read x. */
sz_tensor *sz_tp_sum_in_place(sz_tensor *x, int group);
/* sizes: i32 [parts], or NULL where all parts are as large as this one. */
sz_tensor *sz_tp_gather(sz_tensor *x, sz_tensor *sizes, int group, int parts, int dim);
/* table: the rows from `first` on of one with `whole` rows. */
sz_tensor *sz_embedding_part(sz_tensor *table, sz_tensor *ids, int64_t first, int64_t whole);
/* f32 [3, n]; w: the words from `first` on of a vocabulary of `whole`. */
sz_tensor *sz_logprob_part(sz_tensor *x, sz_tensor *w, sz_tensor *ids, int64_t first, int64_t whole,
                           double inverse_temperature);
/* Two new f32 [n]. 0, or -1 with a message. */
int sz_logprob_join(sz_tensor *parts, sz_tensor **logprob, sz_tensor **entropy);

/* ---- background work ---- */
/* Runs run(context) on a background thread; it returns 0, or -1 with a message. dispose(context)
 * runs on the main thread when the job is freed, or at once if the job cannot be made (NULL with a
 * message). at_once: the job has ended when this function returns. */
sz_job *sz_job_start(int (*run)(void *), void (*dispose)(void *), void *context, bool at_once);
void *sz_job_context(sz_job *j);
/* Whether the program ends: a job whose result is for the main thread only may stop. */
bool sz_jobs_are_leaving(void);
/* Another reference to an image, which sz_image_free drops. On the main thread only. */
sz_image *sz_image_retain(sz_image *im);

/* ---- sampling ---- */
#include "sampling/cache.h"
#include "sampling/decode.h"

#endif
