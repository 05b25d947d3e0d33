/* core.h - what the core's own files share: the tensor struct, the op call, allocation, error messages.
 * Not for users of the library; models/ uses the typed op wrappers at the end. Leaves out: anything that names a model. */
#ifndef SZ_CORE_H
#define SZ_CORE_H

#include "sz.h"
#include <stdbool.h>
#include <string.h>

enum { SZ_MAX_DIMS = 6, SZ_MAX_IN = 8, SZ_MAX_OUT = 3, SZ_MAX_ARGS = 8 };

/* ---- errors ---- */
/* Leave a message for sz_last_error; sz_fail returns -1 and sz_null NULL so that a caller can return them. */
int   sz_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
void *sz_null(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* A broken invariant: prints where and why, aborts. Always on. */
void  sz_panic(const char *file, int line, const char *what) __attribute__((noreturn));
#define SZ_ASSERT(cond, what) ((cond) ? (void)0 : sz_panic(__FILE__, __LINE__, what))

/* ---- tensors: always contiguous, row-major ---- */
typedef struct sz_storage sz_storage;   /* who owns the bytes: heap block or file mapping, reference counted */

enum { SZ_REQUIRES_GRAD = 1, SZ_PARAMETER = 2, SZ_GRAD_SHARED = 4, SZ_GRAD_BF16 = 8 };
enum { SZ_MOMENT_BLOCK = 256 };         /* elements that share a scale in 8-bit moments (adamw_compact_) */

struct sz_tensor {
    int32_t refs;
    int8_t dtype, device, ndim;
    uint8_t flags;
    int32_t node;                   /* index of the tape node that made it, -1: a leaf */
    int64_t shape[SZ_MAX_DIMS];
    int64_t numel;
    void *data;                     /* NULL once the scope that owned the bytes has been popped; off the CPU only the backend may follow it */
    sz_storage *storage;            /* NULL for arena tensors */
    sz_tensor *grad;                /* owned; f32 for parameters (bf16 with SZ_GRAD_BF16), the tensor's dtype for activations */
};

static inline size_t sz_dtype_size(int dtype) { return dtype == SZ_F32 || dtype == SZ_I32 ? 4 : dtype == SZ_BF16 ? 2 : 1; }
static inline size_t sz_bytes(const sz_tensor *t) { return (size_t)t->numel * sz_dtype_size(t->dtype); }
static inline float *sz_f32(const sz_tensor *t) { return (float *)t->data; }
static inline uint16_t *sz_bf16(const sz_tensor *t) { return (uint16_t *)t->data; }
static inline int32_t *sz_i32(const sz_tensor *t) { return (int32_t *)t->data; }
/* Last dimension, and the product of the others. */
static inline int64_t sz_cols(const sz_tensor *t) { return t->ndim ? t->shape[t->ndim - 1] : 1; }
static inline int64_t sz_rows(const sz_tensor *t) { return sz_cols(t) ? t->numel / sz_cols(t) : 0; }

static inline float sz_from_bf16(uint16_t h)
{
    union { uint32_t u; float f; } v = { (uint32_t)h << 16 };
    return v.f;
}
/* Round to nearest even; NaN stays NaN. */
static inline uint16_t sz_to_bf16(float f)
{
    union { float f; uint32_t u; } v = { f };
    uint32_t rounded = (v.u + 0x7fff + ((v.u >> 16) & 1)) >> 16;
    return (v.u & 0x7fffffff) > 0x7f800000 ? (uint16_t)((v.u >> 16) | 0x40) : (uint16_t)rounded;
}
static inline float sz_get(const sz_tensor *t, int64_t i)    /* f32 or bf16 element as float */
{
    return t->dtype == SZ_F32 ? sz_f32(t)[i] : sz_from_bf16(sz_bf16(t)[i]);
}
static inline void sz_put(sz_tensor *t, int64_t i, float v)
{
    if (t->dtype == SZ_F32) sz_f32(t)[i] = v; else sz_bf16(t)[i] = sz_to_bf16(v);
}

sz_tensor *sz_tensor_like(const sz_tensor *t);                       /* same shape, dtype, device */
sz_tensor *sz_tensor_view(sz_tensor *t, int ndim, const int64_t *shape, int64_t first_element);
sz_tensor *sz_new1(int dtype, int64_t n, int device);
sz_tensor *sz_new2(int dtype, int64_t n, int64_t m, int device);
/* Replaces *t by its copy on the device (itself, when it is there). */
int        sz_tensor_move(sz_tensor **t, int device);
/* A heap tensor even inside a scope (parameters' gradients, optimizer state). */
sz_tensor *sz_tensor_new_heap(int dtype, int ndim, const int64_t *shape, int device);
/* Tensors over bytes owned by something else; done(owner) runs when the last one goes. */
sz_storage *sz_storage_new(void *base, size_t bytes, void (*done)(void *owner), void *owner);
void        sz_storage_release(sz_storage *s);
sz_tensor *sz_tensor_over(sz_storage *s, int dtype, int ndim, const int64_t *shape, void *data);
/* Pops the scope but moves t's bytes to the outer one. Takes over the caller's reference to t and returns one (NULL if t is NULL). */
sz_tensor *sz_scope_pop_keep(sz_tensor *t);
/* Whole pages inside [p, p + bytes) of a mapped file leave the process; they are read again from the file (or its cache) if touched again. Only for
 * what nothing has written to: written pages would fall back to the file's. */
void        sz_unload_pages(const void *p, size_t bytes);
/* The same for a tensor that lies in a mapped file; nothing for others. */
void        sz_tensor_unload(const sz_tensor *t);
/* Zeroes private memory. Whole pages of large blocks go back to the system, which hands out zeroed ones when they are next touched: moments
 * before the first step and gradients between steps occupy nothing. Costs about what memset does. */
void        sz_zero_pages(void *p, size_t bytes);
/* Kernel workspace, 64-byte aligned, NULL when memory is out: valid until the kernel returns (sz_apply takes it back).
 * Called outside parallel regions only; a kernel that wants one piece per thread asks for all of them at once. */
void      *sz_scratch(size_t bytes);
/* Gives back, before the kernel returns, what was asked for since save(). */
typedef struct { size_t chunk, used; int guards; } sz_scratch_state;
sz_scratch_state sz_scratch_save(void);
void       sz_scratch_restore(sz_scratch_state s);
/* Nothing is computed or copied (sz_dry_run). */
bool       sz_is_dry_run(void);

/* The key of the random numbers that rounding draws (adamw_compact_): not one that a run's seed is likely to be. */
#define SZ_ROUNDING_SEED UINT64_C(0x8f1bbcdcbfa53e0b)

/* ---- op calls ---- */
typedef struct {
    sz_tensor *in[SZ_MAX_IN];
    sz_tensor *out[SZ_MAX_OUT];
    double args[SZ_MAX_ARGS];
} sz_call;

typedef int (*sz_kernel)(const sz_call *c);    /* 0, or -1 with a message (out of memory) */

enum {
#define SZ_OP(name, inputs, outputs, args, gradient) SZ_OP_##name,
#include "ops/ops.def"
#undef SZ_OP
    SZ_OP_COUNT
};

extern const sz_kernel sz_cpu_kernels[SZ_OP_COUNT], sz_ref_kernels[SZ_OP_COUNT];
extern const char *const sz_op_names[SZ_OP_COUNT];

int64_t sz_cpu_workspace(int op, const sz_call *c);       /* bytes that the call's kernel will ask for, about */
/* Checks, allocates outputs, runs the kernel, records. -1 with a message on failure. */
int sz_apply(int op, sz_call *c);
/* What the ops of a decode step check of its ids i32 [a], cache rows i32 [a] and segments, at once: a step that is replayed does not run them. */
bool sz_decode_fits(const sz_tensor *ids, int64_t vocab, const sz_tensor *cache_rows, const sz_tensor *segments, int64_t rows);
int sz_sampling_check(const sz_sampling *s, const uint8_t *seen);      /* 0, or -1 with a message */

/* ---- tape ---- */
typedef struct {
    int op;                         /* -1: a checkpointed segment */
    sz_call call;                   /* inputs and outputs, each with a reference held */
    struct sz_recompute *segment;     /* for checkpoints */
} sz_node;
typedef int (*sz_gradient)(sz_node *n);
extern const sz_gradient sz_gradients[SZ_OP_COUNT];

int sz_tape_record(int op, const sz_call *c);
/* Gives t the gradient contribution g (consumes the reference). Parameters accumulate in f32; activations are assigned,
 * a second contribution is added. */
int sz_accumulate_grad(sz_tensor *t, sz_tensor *g);
/* The accumulating buffer of a parameter, zeroed when new: f32, or bf16 with SZ_GRAD_BF16 (not for vectors: they are small). */
sz_tensor *sz_grad_buffer(sz_tensor *t);
static inline bool sz_needs_grad(const sz_tensor *t) { return t && (t->flags & SZ_REQUIRES_GRAD); }

/* x's bytes for several backward passes, each back to where its own work began (sz_backward): what they give the result is summed in f32 and
 * goes to x when a later pass comes by. Without recording x itself, retained. */
sz_tensor *sz_share(sz_tensor *x);

/* Recomputation: y = fn(ctx, x) runs without recording and keeps only y; its backward runs fn again, recording.
 * ctx (ctx_size bytes) is copied; tensors it names must live as long as the step. fn must be deterministic. */
typedef sz_tensor *(*sz_checkpoint_fn)(const void *ctx, sz_tensor *x);
sz_tensor *sz_checkpoint(sz_checkpoint_fn fn, const void *ctx, size_t ctx_size, sz_tensor *x);

/* ---- typed wrappers used by models/ (shapes: ops.def). They borrow their arguments and return a new reference. ---- */
sz_tensor *sz_add(sz_tensor *a, sz_tensor *b);
sz_tensor *sz_affine(sz_tensor *x, double scale, double shift);
sz_tensor *sz_cast(sz_tensor *x, int dtype);
sz_tensor *sz_gelu(sz_tensor *x);
sz_tensor *sz_quick_gelu(sz_tensor *x);
sz_tensor *sz_relu(sz_tensor *x);
sz_tensor *sz_sigmoid(sz_tensor *x);
sz_tensor *sz_swiglu(sz_tensor *x);
sz_tensor *sz_rmsnorm(sz_tensor *x, sz_tensor *w, double eps);
sz_tensor *sz_layernorm(sz_tensor *x, sz_tensor *w, sz_tensor *b, double eps);
sz_tensor *sz_rope(sz_tensor *x, sz_tensor *cosines, sz_tensor *sines, int heads, int head_dim);
sz_tensor *sz_embedding(sz_tensor *table, sz_tensor *ids);
sz_tensor *sz_gather_rows(sz_tensor *x, sz_tensor *ids);
sz_tensor *sz_index_copy(sz_tensor *x, sz_tensor *ids, sz_tensor *src);
int        sz_scatter_cols(sz_tensor *dst, sz_tensor *ids, sz_tensor *src, int64_t col);
sz_tensor *sz_pad_rows(sz_tensor *x, int64_t count);
sz_tensor *sz_max_pool_rows(sz_tensor *x, sz_tensor *ids);
sz_tensor *sz_reshape2(sz_tensor *x, int64_t n, int64_t m);
sz_tensor *sz_reshape4(sz_tensor *x, int64_t b, int64_t h, int64_t w, int64_t c);
sz_tensor *sz_narrow(sz_tensor *x, int64_t start, int64_t length);
sz_tensor *sz_matmul(sz_tensor *a, sz_tensor *b, bool trans_a, bool trans_b);
sz_tensor *sz_linear(sz_tensor *x, sz_tensor *w, sz_tensor *b);
sz_tensor *sz_linear_gelu(sz_tensor *x, sz_tensor *w, sz_tensor *b);
sz_tensor *sz_linear_f32_out(sz_tensor *x, sz_tensor *w);
sz_tensor *sz_linear_cat(sz_tensor *x, sz_tensor *w[3], sz_tensor *b[3]);
sz_tensor *sz_linear_add(sz_tensor *y, sz_tensor *x, sz_tensor *w, int64_t col);
int        sz_quantize_int8(sz_tensor *w[3], sz_tensor **q, sz_tensor **scale);
sz_tensor *sz_linear_int8(sz_tensor *x, sz_tensor *q, sz_tensor *scale, sz_tensor *b, int64_t m, bool wide);
sz_tensor *sz_attention(sz_tensor *qkv, sz_tensor *segments, int heads, int kv_heads, int head_dim, bool causal, double scale);
sz_tensor *sz_attention_cached(sz_tensor *q, sz_tensor *k, sz_tensor *v, sz_tensor *segments, int heads, int kv_heads, int head_dim, bool causal, double scale);
sz_tensor *sz_attention_cross(sz_tensor *q, sz_tensor *k, sz_tensor *v, sz_tensor *segments, int heads, int kv_heads, int head_dim, bool causal, double scale);
/* Pictures are [b, h, w, c]. */
sz_tensor *sz_conv2d(sz_tensor *x, sz_tensor *w, sz_tensor *b, int stride, int padding);
sz_tensor *sz_conv_transpose2d(sz_tensor *x, sz_tensor *w, sz_tensor *b, int stride, int padding);
/* As PyTorch's interpolate with align_corners = False; bicubic has a = -0.75. */
enum { SZ_NEAREST, SZ_BILINEAR, SZ_BICUBIC, SZ_BILINEAR_ANTIALIASED };
sz_tensor *sz_resize(sz_tensor *x, int64_t height, int64_t width, int mode);
int        sz_logprob(sz_tensor *x, sz_tensor *w, sz_tensor *ids, double inverse_temperature, sz_tensor **logprob, sz_tensor **entropy);

#endif
