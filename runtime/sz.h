/* sz.h - the public face of the segzero core: tensors, the tape, ops, files, sampling.
 *
 *     sz_tensor *x = sz_tensor_new(SZ_F32, 2, (int64_t[]){2, 3}, SZ_CPU);   caller owns one reference
 *     sz_tensor *y = sz_affine(x, 2.0, 1.0);                               y = 2x + 1
 *     if (!y) fprintf(stderr, "%s\n", sz_last_error());
 *     sz_tensor_release(y); sz_tensor_release(x);
 *
 * The part between the two "ffi" marks is read by LuaJIT's ffi.cdef as it stands: no preprocessor line,
 * no macro, plain C. lua/segzero/core/ffi.lua cuts it out of this file, so no declaration is typed twice.
 *
 * Conventions. Shapes are written outermost first. A function that returns a pointer returns NULL on failure;
 * one that returns int returns 0 on success and -1 on failure; sz_last_error() then has the message of this
 * thread. Every op takes a NULL tensor argument for "an earlier call failed", keeps that call's message and
 * returns NULL, so that a chain of ops is checked once, at its end.
 *
 * Memory. A tensor made while a scope is open (sz_scope_push) lives in the step arena and dies with the scope;
 * a handle to it stays valid as an object, but using its data is then an error, not a crash. Outside scopes
 * tensors are reference counted and live on the heap. Files are mapped privately: their pages are shared with
 * the page cache until something writes to them.
 */
#ifndef SZ_H
#define SZ_H

#include <stddef.h>
#include <stdint.h>

#pragma GCC visibility push(default)
/* ffi begin */

typedef struct sz_tensor sz_tensor;

enum { SZ_F32 = 0, SZ_BF16 = 1, SZ_I32 = 2, SZ_U8 = 3 };   /* dtypes */
enum { SZ_CPU = 0, SZ_CUDA = 1 };                           /* devices */

/* ---- program ---- */
const char *sz_version(void);
const char *sz_last_error(void);              /* message of the last failure on this thread; borrowed */
void        sz_set_threads(int n);            /* worker threads for kernels; n < 1 means all cores */
int         sz_threads(void);
void        sz_use_reference(int on);         /* 1: run the plain reference kernels */
void        sz_interrupt_set(int on);         /* a pending interrupt makes the next op fail with "interrupted" */
int         sz_interrupt_pending(void);
double      sz_seconds(void);                 /* monotonic clock, seconds */
int64_t     sz_live_bytes(void);              /* bytes held by heap tensors and the arena */
int64_t     sz_system_allocs(void);           /* how often the core asked the system for memory so far */
int64_t     sz_peak_rss(void);                /* peak resident set of the process, bytes */
/* For plans. 1: ops check, allocate and record, but compute and copy nothing, so that a step can be counted in milliseconds: memory that is
 * only reserved costs nothing. Results hold garbage. */
void        sz_dry_run(int on);
int64_t     sz_arena_used(int reset);         /* most bytes of the step arena in use since it was last reset */
int         sz_arena_release(void);           /* gives the whole arena back; no scope may be open */
void        sz_fail_alloc_after(int64_t n);   /* tests: the n-th allocation from now fails; -1 switches it off */
/* Tests: 1 surrounds heap tensors made from now on, and kernel workspace, with a pattern and fills them with NaN. Returns
 * how many patterns were found overwritten (tensors: when released) since the last call. */
int64_t     sz_debug_guards(int on);

/* ---- devices: SZ_CUDA is there where libsegzero_cuda.so, a driver and a device are; it is opened when first used ---- */
int         sz_device_ready(int device);      /* 0; -1 with a message when tensors cannot be made there. Opens it the first time */
int         sz_device_count(int device);      /* usable ones, 0 or 1; when 0, sz_last_error may say why */
const char *sz_device_describe(int device);   /* lines "what: value" for people; borrowed until the next call. NULL: it cannot be used */
int64_t     sz_device_available(int device);  /* free bytes; -1 when not known */
int         sz_device_synchronise(void);      /* waits for all work; -1 when some of it failed */

/* ---- tensors ---- */
sz_tensor  *sz_tensor_new(int dtype, int ndim, const int64_t *shape, int device);   /* contents undefined */
sz_tensor  *sz_tensor_zeros(int dtype, int ndim, const int64_t *shape, int device);
sz_tensor  *sz_tensor_meta(int dtype, int ndim, const int64_t *shape);   /* on the CPU, without memory behind it: for counting */
sz_tensor  *sz_tensor_retain(sz_tensor *t);   /* returns t */
void        sz_tensor_release(sz_tensor *t);  /* NULL is allowed */
int         sz_tensor_alive(const sz_tensor *t);   /* 0; -1 (with a message) when its step has ended */
void       *sz_tensor_data(sz_tensor *t);     /* borrowed; NULL (with a message) when its step has ended or it is not on the cpu */
int         sz_tensor_dtype(const sz_tensor *t);
int         sz_tensor_device(const sz_tensor *t);
int         sz_tensor_ndim(const sz_tensor *t);
int64_t     sz_tensor_dim(const sz_tensor *t, int i);        /* negative i counts from the end */
int64_t     sz_tensor_numel(const sz_tensor *t);
sz_tensor  *sz_tensor_clone(sz_tensor *t);                   /* a heap copy that outlives every scope; no history */
sz_tensor  *sz_tensor_detach(sz_tensor *t);                  /* same data, no history */
int         sz_tensor_copy(sz_tensor *dst, sz_tensor *src);  /* equal numel; converts the dtype, crosses devices */
sz_tensor  *sz_tensor_to(sz_tensor *t, int device);          /* a copy there (no history), or t itself, retained */
int         sz_tensor_read(sz_tensor *t, void *to);          /* all bytes, from whatever device */
int         sz_tensor_write(sz_tensor *t, const void *from);
int         sz_tensor_set_requires_grad(sz_tensor *t, int on);
int         sz_tensor_requires_grad(const sz_tensor *t);
sz_tensor  *sz_tensor_grad(sz_tensor *t);                    /* borrowed; NULL when there is none yet */
int         sz_tensor_zero_grad(sz_tensor *t);               /* keeps the buffer, clears it */
int         sz_tensor_set_grad_dtype(sz_tensor *t, int dtype);   /* of a parameter: f32 (the default), or bf16 to save memory */

/* ---- scopes, tape ---- */
int         sz_scope_push(void);              /* opens a scope of the step arena; returns its depth */
void        sz_scope_pop(void);               /* releases all that the scope made, its part of the tape too */
int         sz_scope_depth(void);
int         sz_grad_enabled(void);
int         sz_set_grad_enabled(int on);      /* returns the previous setting */
int         sz_tape_length(void);             /* what has been recorded and not yet walked back over */
/* loss: one f32 element. Parameter gradients accumulate. Takes the tape back to the length `from`: 0, or what it was before the loss's own work,
 * if that has nothing but parameters and shared prefixes in common with what came before. */
int         sz_backward(sz_tensor *loss, int from);

/* ---- ops: one row of ops.def each; apply checks, allocates, runs, records ---- */
int         sz_op_count(void);
const char *sz_op_name(int op);
int         sz_op_inputs(int op);
int         sz_op_outputs(int op);
int         sz_op_args(int op);               /* how many numbers follow the tensors */
const char *sz_op_number_names(int op);       /* their names as in ops.def: "heads head_dim sign=1" */
int         sz_op_has_grad(int op);
/* in: sz_op_inputs tensors (NULL where the op allows it); args: sz_op_args numbers; out: receives new references. */
int         sz_op_apply(int op, sz_tensor **in, const double *args, sz_tensor **out);

/* ---- random numbers: Philox-4x32-10 keyed by (seed, row, answer, position) ---- */
void        sz_random_bits(uint64_t seed, uint64_t row, uint32_t answer, uint32_t position, uint32_t out[4]);
double      sz_random_uniform(uint64_t seed, uint64_t row, uint32_t answer, uint32_t position);   /* in (0, 1) */
int         sz_random_normal_(sz_tensor *t, uint64_t seed, uint64_t stream, double mean, double std);

/* ---- optimizer ---- */
/* AdamW on n parameters. moments: SZ_F32, SZ_BF16, or SZ_U8 for 8-bit codes in blocks with an f32 scale. masters: bf16 parameters get an
 * f32 master copy; without, they are updated in place and rounded stochastically. Owned by the caller; retains the parameters. */
typedef struct sz_adamw sz_adamw;
sz_adamw   *sz_adamw_new(sz_tensor **params, int n, int moments, int masters);
void        sz_adamw_free(sz_adamw *o);
/* Global gradient norm (f64 accumulation) of all parameters; NaN/inf come through. -1 on failure. */
double      sz_adamw_grad_norm(sz_adamw *o);
/* One update with gradients multiplied by grad_scale; then gradients are cleared. */
int         sz_adamw_step(sz_adamw *o, double lr, double beta1, double beta2, double eps, double weight_decay, double grad_scale);
void        sz_adamw_zero_grad(sz_adamw *o);
int64_t     sz_adamw_steps(const sz_adamw *o);
void        sz_adamw_set_steps(sz_adamw *o, int64_t steps);
/* State tensors of parameter i, borrowed: which = 0 first moment, 1 second moment, 2 f32 master, 3 and 4 the moments' scales; NULL: not there. */
sz_tensor  *sz_adamw_state(sz_adamw *o, int i, int which);

/* ---- jobs: work of threads beside the main one ---- */
typedef struct sz_job sz_job;
int         sz_job_done(sz_job *j);           /* 1: waiting for it would not take long */
int         sz_job_wait(sz_job *j);           /* 0, or -1 with the message that the job left; may be asked again */
void        sz_job_free(sz_job *j);           /* one that has not begun is dropped, one that runs is waited for */
void        sz_jobs_end(void);                /* does what is left and ends the threads: before the library is unloaded */

/* Files to be written in order, and names to be given: a checkpoint. Until the job has ended nothing may write to its tensors. */
typedef struct sz_writing sz_writing;
sz_writing *sz_writing_new(void);
void        sz_writing_free(sz_writing *w);                         /* one that was not started */
int         sz_writing_text(sz_writing *w, const char *path, const char *text, size_t len);      /* copies the text */
int         sz_writing_rename(sz_writing *w, const char *path, const char *to);
int         sz_writing_tensors(sz_writing *w, const char *path, const char *header, size_t header_len, sz_tensor **tensors, int n);   /* retains them */
sz_job     *sz_writing_start(sz_writing *w);                        /* takes w over; NULL with a message */

/* ---- safetensors: mapping and writing; the JSON header is read and made by Lua ---- */
typedef struct sz_file sz_file;
sz_file    *sz_file_map(const char *path);                          /* checks the 8-byte length against the file size */
void        sz_file_close(sz_file *f);                              /* tensors made from it keep the mapping alive */
const char *sz_file_header(sz_file *f, size_t *len);                /* the JSON text; borrowed */
int64_t     sz_file_data_bytes(sz_file *f);
/* A tensor over bytes [begin, end) of the data part; bounds, size and alignment are checked. name is for messages. */
sz_tensor  *sz_file_tensor(sz_file *f, const char *name, int dtype, int ndim, const int64_t *shape, int64_t begin, int64_t end);
/* The same bytes as a new heap tensor of another dtype: from SZ_F32, SZ_BF16 or SZ_FILE_F16 (IEEE half) to SZ_F32 or SZ_BF16. The
 * file's pages are given back as they are read, so that source and result are never in memory together. */
enum { SZ_FILE_F16 = 16 };
sz_tensor  *sz_file_convert(sz_file *f, const char *name, int from, int to, int ndim, const int64_t *shape, int64_t begin, int64_t end);
/* Writes header and tensors to path.tmp, syncs, renames: nothing half-written under path. */
int         sz_safetensors_write(const char *path, const char *header, size_t header_len, sz_tensor **tensors, int n);

/* ---- pictures: 8-bit RGB, row-major [h, w, 3] ---- */
typedef struct sz_image sz_image;
sz_image   *sz_image_load(const char *path);                        /* PNG, JPEG, WebP, ... -> RGB as Pillow's convert("RGB") */
sz_image   *sz_image_new(int width, int height);                    /* black */
void        sz_image_free(sz_image *im);
int         sz_image_width(const sz_image *im);
int         sz_image_height(const sz_image *im);
uint8_t    *sz_image_pixels(sz_image *im);                          /* borrowed, [h, w, 3] */
sz_image   *sz_image_resize(const sz_image *im, int width, int height, int filter);   /* 0 bilinear, 1 bicubic, as Pillow does */
int         sz_image_save(const sz_image *im, const char *path);    /* by extension: .png .jpg .jpeg; written whole or not at all */
/* Any 8-bit pixels [h, w, channels] (1 or 3) as PNG. */
int         sz_image_write_png(const char *path, int width, int height, int channels, const uint8_t *pixels);
int         sz_image_size(const char *path, int *width, int *height);   /* from the header, without decoding */

/* ---- tokenizer: byte-level BPE; vocabulary and merges are handed over by Lua ---- */
typedef struct sz_tokenizer sz_tokenizer;
sz_tokenizer *sz_tokenizer_new(const char *split_pattern);          /* PCRE2 syntax; NULL with a message when it does not compile */
void        sz_tokenizer_free(sz_tokenizer *t);
int         sz_tokenizer_add_token(sz_tokenizer *t, const char *token, size_t len, int id);        /* in the byte-to-unicode alphabet */
int         sz_tokenizer_add_merge(sz_tokenizer *t, const char *left, size_t left_len, const char *right, size_t right_len);  /* in rank order */
int         sz_tokenizer_add_special(sz_tokenizer *t, const char *text, size_t len, int id, int special);   /* an added token */
int         sz_tokenizer_finish(sz_tokenizer *t, int nfc);           /* no more additions; nfc: normalise first */
/* ids is owned by the tokenizer until its next call; returns the count or -1. */
int64_t     sz_tokenizer_encode(sz_tokenizer *t, const char *text, size_t len, const int32_t **ids);
/* UTF-8 with U+FFFD for bytes that are none; text is owned by the tokenizer until its next call; returns the length or -1. */
int64_t     sz_tokenizer_decode(sz_tokenizer *t, const int32_t *ids, int64_t n, int skip_special, const char **text);
/* The bytes of one token as they stand, borrowed until the tokenizer is freed; length 0 for an id without a token. */
int64_t     sz_tokenizer_bytes(sz_tokenizer *t, int32_t id, const char **bytes);
int         sz_tokenizer_size(const sz_tokenizer *t);                /* largest id + 1 */
/* 1 when the whole of text matches the pattern (PCRE2 syntax, as Python's re.fullmatch), 0 when not; -1 with a message when it does not compile. */
int         sz_pattern_matches(const char *pattern, const char *text);

/* Lower case as Python's str.lower has it; bytes that are no UTF-8 stay. to: room for 2 * len bytes. Returns the bytes written. */
int64_t     sz_text_lower(const char *text, size_t len, char *to);

/* ---- sampling ---- */
typedef struct {
    float temperature;          /* 0: greedy */
    int   top_k;                /* < 1: off */
    float top_p;                /* >= 1: off */
    float repetition_penalty;   /* 1: off; applied to prompt and answer tokens, in greedy mode too */
    uint64_t seed;
} sz_sampling;
/* Picks one token per row of logits [rows, vocab] f32 (left as they are). banned [vocab] u8: 1 = never sampled (NULL: none).
 * seen [rows, vocab] u8: 1 = present in prompt or answer (NULL when the penalty is off). row_id/answer_id/position key
 * the random number of each row. Writes token and its log-prob under softmax(logits / temperature) before top-k and
 * top-p (temperature 0: of the unscaled logits). */
int         sz_sample(sz_tensor *logits, const sz_sampling *s, const uint8_t *banned, const uint8_t *seen,
                      const int64_t *row_id, const int32_t *answer_id, const int32_t *position, int32_t *token, float *logprob);

/* ffi end */
#pragma GCC visibility pop
#endif
