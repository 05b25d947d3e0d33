/* sz.h - the public face of the segzero core: tensors, the tape, ops, files, images, sampling.
 *
 *     int64_t shape[] = { 2, 3 };
 *     sz_tensor *x = sz_tensor_zeros(SZ_F32, 2, shape, SZ_CPU);     the caller owns one reference
 *     double numbers[] = { 2.0, 1.0 };
 *     sz_tensor *y;
 *     if (sz_op_apply(op, &x, numbers, &y) != 0)                    op "affine": y = 2 x + 1
 *         fprintf(stderr, "%s\n", sz_last_error());
 *     sz_tensor_release(y);
 *     sz_tensor_release(x);
 *
 * LuaJIT's ffi.cdef reads the part between the two "ffi" marks unchanged: no preprocessor line,
 * no macro, plain C. lua/segzero/core/ffi.lua cuts it out of this file, so no declaration is
 * typed twice.
 *
 * Conventions. Shapes are written outermost first. Unless a comment says otherwise, a function
 * that returns a pointer returns NULL on failure, and one that returns int returns 0 on success
 * and -1 on failure; sz_last_error() then has the message of this thread. A tensor argument that
 * is NULL means that an earlier call failed: the function keeps that call's message and fails
 * too, so that a chain of calls is checked once, at its end.
 *
 * Memory. A tensor made while a scope is open (sz_scope_push) is in the step arena and is
 * released with the scope. A handle to it stays valid as an object; to use its data is then an
 * error, not a crash. Outside scopes tensors are reference counted and on the heap. Files are
 * mapped privately: their pages are shared with the page cache until something writes to them.
 */
#ifndef SZ_H
#define SZ_H

#include <stddef.h>
#include <stdint.h>

#pragma GCC visibility push(default)
/* ffi begin */

typedef struct sz_tensor sz_tensor;

enum { SZ_F32 = 0, SZ_BF16 = 1, SZ_I32 = 2, SZ_U8 = 3 }; /* dtypes */
enum { SZ_CPU = 0, SZ_CUDA = 1 };                        /* devices */

/* ---- program ---- */
const char *sz_version(void);
/* The message of this thread's last failure; borrowed. */
const char *sz_last_error(void);
/* Worker threads of kernels; n < 1 means all cores. */
void sz_set_threads(int n);
int sz_threads(void);
/* The kinds of processors that this build has CPU kernels for, from the plainest to the best: 0,
 * 1, ... count - 1. The best one that runs here is used, unless another is chosen before anything
 * computes or asks which one it is. */
int sz_processor_count(void);
const char *sz_processor_name(int kind);
int sz_processor_runs(int kind); /* 1: it runs on this processor */
int sz_processor_chosen(void);
/* 0, or -1 with a message: it does not run here, or another one is in use already. */
int sz_processor_choose(int kind);
/* 1: products of bf16 tensors are computed in bf16, and not widened to f32. Then attention rounds
 * its weights and, without AMX, their gradients. */
int sz_processor_multiplies_bf16(void);
/* The kernels in use, the instructions that oneDNN may use, and whether products of bf16 are in
 * bf16, as "avx2 (oneDNN 0x7)" or "amx (oneDNN 0xfef, products in bf16)"; borrowed.
 * Processes with equal texts round alike. */
const char *sz_processor_describe(void);
/* 1: run the plain reference kernels. */
void sz_use_reference(int on);
/* A pending interrupt makes the next op fail with "interrupted". */
void sz_interrupt_set(int on);
int sz_interrupt_pending(void);
/* Seconds of a monotonic clock. */
double sz_seconds(void);

/* ---- memory: figures, counting, tests ---- */
/* Bytes that heap tensors and the arena hold. */
int64_t sz_live_bytes(void);
/* How often the core has asked the system for memory so far. */
int64_t sz_system_allocs(void);
/* Peak resident set of the process, bytes. */
int64_t sz_peak_rss(void);
/* A dry run, for plans. 1: ops check, allocate and record, but compute and copy nothing, so that a
 * step is counted in milliseconds: memory that is only reserved costs nothing. Results hold
 * garbage. */
void sz_dry_run(int on);
/* Bytes of the step arena up to the last one that was in use since this was last reset. */
int64_t sz_arena_used(int reset);
/* Gives the whole arena back. No scope may be open. */
int sz_arena_release(void);
/* Tests: the n-th allocation from now on fails; -1 switches this off. */
void sz_fail_alloc_after(int64_t n);
/* Tests: 1 surrounds new heap tensors and kernel workspace with a pattern and fills them with NaN.
 * Returns how many patterns were found overwritten since the last call. A tensor's is checked when
 * the tensor is released. */
int64_t sz_debug_guards(int on);

/* ---- devices ----
 * SZ_CUDA needs libsegzero_cuda.so, a driver and a device; all are opened when first used. */
/* 0; -1 with a message when no tensor can be made on it. Opens the device the first time. */
int sz_device_ready(int device);
/* How many can be used, 0 or 1. When 0, sz_last_error may say why. */
int sz_device_count(int device);
/* Lines "what: value" for people; borrowed until the next call. NULL when it cannot be used. */
const char *sz_device_describe(int device);
/* Free bytes; -1 when not known. */
int64_t sz_device_available(int device);
/* Waits for all work; -1 when some of it failed. */
int sz_device_synchronise(void);

/* ---- tensors ---- */
/* A new tensor; its contents are undefined. */
sz_tensor *sz_tensor_new(int dtype, int ndim, const int64_t *shape, int device);
sz_tensor *sz_tensor_zeros(int dtype, int ndim, const int64_t *shape, int device);
/* On the CPU and without memory behind it: for counting. */
sz_tensor *sz_tensor_meta(int dtype, int ndim, const int64_t *shape);
/* Returns t. */
sz_tensor *sz_tensor_retain(sz_tensor *t);
/* NULL is allowed. A tensor of a step whose last reference goes gives its memory back to the step,
 * unless it is pinned. */
void sz_tensor_release(sz_tensor *t);
/* The tensor keeps its bytes until its scope is popped, even if it is released: for callers whose
 * references a collector drops at any time. Does nothing for tensors that no scope owns. */
void sz_tensor_pin(sz_tensor *t);
/* 0; -1 with a message when the tensor's step has ended. */
int sz_tensor_alive(const sz_tensor *t);
/* Borrowed. NULL with a message when the step has ended or the tensor is not on the CPU. */
void *sz_tensor_data(sz_tensor *t);
/* Gives every NaN of an f32 tensor on the CPU the same bits, for Lua: LuaJIT stores the type of
 * every other value in the bits of a NaN. 0, or -1 for another tensor. */
int sz_tensor_plain_nans(sz_tensor *t);
int sz_tensor_dtype(const sz_tensor *t);
int sz_tensor_device(const sz_tensor *t);
int sz_tensor_ndim(const sz_tensor *t);
/* The size of dimension i; a negative i counts from the end. 1 where there is no such dimension. */
int64_t sz_tensor_dim(const sz_tensor *t, int i);
int64_t sz_tensor_numel(const sz_tensor *t);
/* A heap copy that outlives every scope. A gradient goes through it while its scope lasts. */
sz_tensor *sz_tensor_clone(sz_tensor *t);
/* The same data, no history. */
sz_tensor *sz_tensor_detach(sz_tensor *t);
/* Copies equal numbers of elements; converts the dtype and crosses devices. */
int sz_tensor_copy(sz_tensor *dst, sz_tensor *src);
/* Where the elements of a part are in a whole tensor. The part is a range of a slice; element e of
 * the slice is element first + e / run * stride + e % run of the whole, and the range begins at
 * element `skip` of the slice. */
typedef struct {
    int64_t first, run, stride, skip;
} sz_place;
/* part = its elements of `whole`, which is on the CPU; converts the dtype and crosses devices. */
int sz_part_copy(sz_tensor *part, const sz_place *place, sz_tensor *whole);
/* A copy on that device (no history), or t itself, retained, when it is there already. */
sz_tensor *sz_tensor_to(sz_tensor *t, int device);
/* Writes all bytes from host memory. */
int sz_tensor_write(sz_tensor *t, const void *from);
int sz_tensor_set_requires_grad(sz_tensor *t, int on);
int sz_tensor_requires_grad(const sz_tensor *t);
/* Borrowed; NULL when there is none yet. */
sz_tensor *sz_tensor_grad(sz_tensor *t);
/* Clears the gradient's buffer and keeps it. */
int sz_tensor_zero_grad(sz_tensor *t);
/* Of a parameter: f32 (the default), or bf16 to save memory. */
int sz_tensor_set_grad_dtype(sz_tensor *t, int dtype);

/* ---- tensors in page-locked host memory, and copies of them on the device ---- */
/* A copy of a tensor in page-locked host memory; NULL with a message. */
sz_tensor *sz_tensor_lock(sz_tensor *t);
/* A copy of a locked tensor on the device; NULL with a message. It returns at once: the bytes are
 * copied when the device has done its earlier work, and what it gets later waits for them. */
sz_tensor *sz_tensor_upload(sz_tensor *t);

/* ---- scopes, tape ---- */
/* Opens a scope of the step arena; returns its depth. */
int sz_scope_push(void);
/* Releases everything that the scope made, its part of the tape too. */
void sz_scope_pop(void);
int sz_scope_depth(void);
int sz_grad_enabled(void);
/* Returns the previous setting. */
int sz_set_grad_enabled(int on);
/* The number of recorded ops that no backward pass has walked over yet. */
int sz_tape_length(void);
/* Walks back from a loss of one f32 element; parameter gradients accumulate. It takes the tape
 * back to the length `from`: 0, or the length before the loss's own work, if that work shares
 * nothing but parameters and shared prefixes with what came before. */
int sz_backward(sz_tensor *loss, int from);

/* ---- ops: the rows of ops.def, numbered from 0 ---- */
enum { SZ_MAX_IN = 8, SZ_MAX_OUT = 3, SZ_MAX_ARGS = 9 }; /* tensors, results, numbers of any op */
int sz_op_count(void);
const char *sz_op_name(int op);
/* How many tensors it takes and returns, and how many numbers follow the tensors. */
int sz_op_inputs(int op);
int sz_op_outputs(int op);
int sz_op_args(int op);
/* The names of these numbers as ops.def has them: "heads head_dim sign=1". */
const char *sz_op_number_names(int op);
int sz_op_has_grad(int op);
/* Checks, allocates, runs, records. in: sz_op_inputs tensors, NULL where the op allows it; args:
 * sz_op_args numbers; out receives sz_op_outputs new references. */
int sz_op_apply(int op, sz_tensor **in, const double *args, sz_tensor **out);

/* ---- random numbers: Philox-4x32-10 keyed by (seed, row, answer, position) ---- */
void sz_random_bits(uint64_t seed, uint64_t row, uint32_t answer, uint32_t position,
                    uint32_t out[4]);
/* In (0, 1). */
double sz_random_uniform(uint64_t seed, uint64_t row, uint32_t answer, uint32_t position);
int sz_random_normal_(sz_tensor *t, uint64_t seed, uint64_t stream, double mean, double std);
/* The numbers that sz_random_normal_ would give to the elements at `place` of a whole tensor. */
int sz_random_normal_part_(sz_tensor *t, const sz_place *place, uint64_t seed, uint64_t stream,
                           double mean, double std);

/* ---- optimizer ---- */
/* AdamW on n parameters, which it retains; the caller frees it. moments: SZ_F32, SZ_BF16, or SZ_U8
 * for 8-bit codes in blocks with an f32 scale. masters: bf16 parameters get an f32 master copy;
 * without it they are updated in place and rounded stochastically. */
typedef struct sz_adamw sz_adamw;
sz_adamw *sz_adamw_new(sz_tensor **params, int n, int moments, int masters);
/* The same for a part of each parameter: elements [first[i], first[i] + count[i]), where first[i]
 * is a multiple of 512. It has state of these parts, as [count[i]], and updates them with the
 * numbers that the whole would get. */
sz_adamw *sz_adamw_new_parts(sz_tensor **params, int n, int moments, int masters,
                             const int64_t *first, const int64_t *count, int offload);
/* offload, for parameters on a device: what of the state is in host memory between updates, while
 * copies of it run during the update. It changes no number. */
enum { SZ_OFFLOAD_MOMENTS = 1, SZ_OFFLOAD_MASTERS = 2 };
void sz_adamw_free(sz_adamw *o);
/* The norm of all parameters' gradients together, summed in f64; NaN and infinity come through. */
double sz_adamw_grad_norm(sz_adamw *o);
/* Its square; of the parts alone, if there are parts. counts: NULL, or for each parameter 0 if it
 * is left out, because another rank counts it. Negative with a message on failure. */
double sz_adamw_grad_squares(sz_adamw *o, const uint8_t *counts);
/* The squares of each parameter in the last of the two calls, n numbers; borrowed. */
const double *sz_adamw_squares(const sz_adamw *o);
/* The norm of the parameters' values, of whole parameters; and its square, as above. */
double sz_adamw_weight_norm(sz_adamw *o);
double sz_adamw_weight_squares(sz_adamw *o, const uint8_t *counts);
/* One update with the gradients multiplied by grad_scale; then the gradients are cleared. */
int sz_adamw_step(sz_adamw *o, double lr, double beta1, double beta2, double eps,
                  double weight_decay, double grad_scale);
void sz_adamw_zero_grad(sz_adamw *o);
int64_t sz_adamw_steps(const sz_adamw *o);
void sz_adamw_set_steps(sz_adamw *o, int64_t steps);
/* A state tensor of parameter i, borrowed; NULL when there is none. which: 0 first moment, 1 second
 * moment, 2 f32 master, 3 and 4 the moments' scales. */
sz_tensor *sz_adamw_state(sz_adamw *o, int i, int which);
/* Element `first` of the parameter's whole state is the first of the part's. */
int64_t sz_adamw_state_first(const sz_adamw *o, int i, int which);
/* 8-bit moments of other blocks. codes u8 [n] of the first moment (second = 0) or the second are
 * the part at `place` of a whole parameter [rows, columns]; old_scales f32 has the scales of its
 * blocks, those of each of row_slices x column_slices slices together, in the order of rows. The
 * codes become those of this part's own blocks, rounded to nearest, and scales [n / 256, rounded
 * up] theirs. All on the CPU. */
int sz_moment_recode(sz_tensor *codes, sz_tensor *scales, int second, const sz_place *place,
                     sz_tensor *old_scales, int64_t rows, int64_t columns, int64_t row_slices,
                     int64_t column_slices);

/* ---- jobs: work in background threads ---- */
typedef struct sz_job sz_job;
/* 1: waiting for it would not take long. */
int sz_job_done(sz_job *j);
/* Waits. 0, or -1 with the message that the job left. May be called again. */
int sz_job_wait(sz_job *j);
/* Drops a job that has not begun; waits for one that runs. */
void sz_job_free(sz_job *j);
/* Finishes all jobs and ends the threads, before the library is unloaded. */
void sz_jobs_end(void);

/* Files to be written and renamed in order: a checkpoint. Until the job has ended, nothing may
 * write to its tensors. */
typedef struct sz_writing sz_writing;
sz_writing *sz_writing_new(void);
/* Of a list that was not started, or whose beginning was. */
void sz_writing_free(sz_writing *w);
/* Copies the text. */
int sz_writing_text(sz_writing *w, const char *path, const char *text, size_t len);
int sz_writing_rename(sz_writing *w, const char *path, const char *to);
/* Retains the tensors. */
int sz_writing_tensors(sz_writing *w, const char *path, const char *header, size_t header_len,
                       sz_tensor **tensors, int n);
/* Syncs a file that exists and takes a checksum of each of n ranges of bytes [begin, end). */
int sz_writing_sync(sz_writing *w, const char *path, int n, const int64_t *begin,
                    const int64_t *end);
/* Writes a text in which each '%' stands for the next checksum of what was done before: one for a
 * text, 1 + n for n tensors (the first is of the header with its length), n for n ranges. */
int sz_writing_manifest(sz_writing *w, const char *path, const char *text, size_t len);
/* Writes n tensors into a file that sz_shared_file_begin has made, and syncs it. Tensor i is the
 * part at places[i] of a whole tensor whose bytes begin at begin[i], from the start of the file. It
 * has no checksum. Retains the tensors. */
int sz_writing_parts(sz_writing *w, const char *path, sz_tensor **tensors, const int64_t *begin,
                     const sz_place *places, int n);
/* Makes a safetensors file with this header and of this length in all, whose data is zeros. */
int sz_shared_file_begin(const char *path, const char *header, size_t header_len, int64_t bytes);
/* Writes one such tensor at once, and does not sync. */
int sz_shared_file_put(const char *path, sz_tensor *t, int64_t begin, const sz_place *place);
/* Takes over w, also when it fails. */
sz_job *sz_writing_start(sz_writing *w);
/* Starts what the list has so far. When that job has ended more can be added, and the list started
 * again or freed. */
sz_job *sz_writing_start_first(sz_writing *w);

/* ---- checksums: XXH3, 64 bits ---- */
uint64_t sz_checksum(const void *bytes, size_t len, uint64_t seed);
/* The checksums of n ranges of bytes [begin, end) of a regular file, read by all threads; with sync
 * the file is synced to the disk, too. 0, or -1 with a message that names the file. */
int sz_file_sums(const char *path, int n, const int64_t *begin, const int64_t *end, int sync,
                 uint64_t *sums);
/* The same in a background thread. sums must stay until the job is freed; what it holds counts once
 * sz_job_wait has returned 0. NULL with a message if there is no memory. */
sz_job *sz_file_sums_start(const char *path, int n, const int64_t *begin, const int64_t *end,
                           uint64_t *sums);
/* Files of text lines that grow (lua/segzero/core/lines.lua). path is for messages. */
/* Opens or makes a file and cuts off an unfinished last line; empty != 0: removes what it holds.
 * Returns a descriptor for the others, or -1. */
int sz_lines_open(const char *path, int empty);
/* Appends len bytes of whole lines: all of them, or none and -1. */
int sz_lines_write(int fd, const char *path, const char *text, size_t len);
int sz_lines_close(int fd, const char *path);
/* Writes len bytes to standard output, after what stdio holds for it. */
int sz_print(const char *text, size_t len);

/* ---- safetensors: mapping and writing; Lua reads and makes the JSON header ---- */
typedef struct sz_file sz_file;
/* Checks the 8-byte length against the file's size. */
sz_file *sz_file_map(const char *path);
/* Tensors made from the file keep the mapping alive. */
void sz_file_close(sz_file *f);
/* The JSON text; borrowed. */
const char *sz_file_header(sz_file *f, size_t *len);
int64_t sz_file_data_bytes(sz_file *f);
/* A tensor over bytes [begin, end) of the data part; bounds, size and alignment are checked. name
 * is for messages. */
sz_tensor *sz_file_tensor(sz_file *f, const char *name, int dtype, int ndim, const int64_t *shape,
                          int64_t begin, int64_t end);
/* The same bytes as a new heap tensor of another dtype: from SZ_F32, SZ_BF16 or SZ_FILE_F16 (IEEE
 * half) to SZ_F32 or SZ_BF16. The file's pages are given back as they are read, so that source and
 * result are never in memory together. */
enum { SZ_FILE_F16 = 16 };
sz_tensor *sz_file_convert(sz_file *f, const char *name, int from, int to, int ndim,
                           const int64_t *shape, int64_t begin, int64_t end);
/* The part [ndim dimensions of shape] at `place` of the tensor in bytes [begin, end), as a new heap
 * tensor of dtype `to`; from as above, or equal to `to`. */
sz_tensor *sz_file_part(sz_file *f, const char *name, int from, int to, int ndim,
                        const int64_t *shape, const sz_place *place, int64_t begin, int64_t end);
/* Writes header and tensors to path.tmp, syncs, renames: path never holds a partial file. */
int sz_safetensors_write(const char *path, const char *header, size_t header_len,
                         sz_tensor **tensors, int n);

/* ---- images: 8-bit RGB, row-major [h, w, 3] ---- */
typedef struct sz_image sz_image;
/* Reads PNG, JPEG, WebP, GIF, BMP, PNM: turned upright as EXIF says, RGB, what is transparent on
 * white, as the processors of transformers 5 do. NULL with a message. */
sz_image *sz_image_load(const char *path);
/* The same of a file's bytes in memory; `name` stands for the path in messages. */
sz_image *sz_image_load_bytes(const uint8_t *bytes, size_t n, const char *name);
/* A black image. */
sz_image *sz_image_new(int width, int height);
void sz_image_free(sz_image *im);
int sz_image_width(const sz_image *im);
int sz_image_height(const sz_image *im);
/* Borrowed, [h, w, 3]. */
uint8_t *sz_image_pixels(sz_image *im);
/* filter: 0 bilinear, 1 bicubic, as Pillow resizes; 2 area, as OpenCV does. */
sz_image *sz_image_resize(const sz_image *im, int width, int height, int filter);
/* The extension chooses the format: .png .jpg .jpeg. Writes the whole file or none. */
int sz_image_save(const sz_image *im, const char *path);
/* Any 8-bit pixels [h, w, channels], 1 or 3 channels, as PNG. */
int sz_image_write_png(const char *path, int width, int height, int channels,
                       const uint8_t *pixels);
/* What a file's header says, without decoding: the size of the upright image, its EXIF orientation
 * (1 to 8; from 5 on the stored rows are the columns), and "png", "jpeg", "webp", "gif", "bmp" or
 * "pnm", a constant. Returns 0, or -1 with a message. */
typedef struct {
    int width, height, orientation;
    const char *format;
} sz_image_header;
int sz_image_info(const char *path, sz_image_header *out);
int sz_image_info_bytes(const uint8_t *bytes, size_t n, const char *name, sz_image_header *out);
/* Only the size. */
int sz_image_size(const char *path, int *width, int *height);
/* In the background: reads the file `path`; or n bytes of a file, which are copied and which path
 * names in messages; or takes the image `im` if both are NULL. Resizes it as OpenCV's INTER_AREA
 * does and encodes it as PNG. */
sz_job *sz_image_png_start(const char *path, const uint8_t *bytes, size_t n, sz_image *im,
                           int width, int height);
/* The PNG of a job that ended well, borrowed until sz_job_free, and the size of the image
 * before. */
const uint8_t *sz_image_png_of(sz_job *j, size_t *len, int *width, int *height);
/* A mask, u8 [height, width], 1 inside and 0 outside; the rules are in runtime/io/image/mask.c.
 * Turned upright as an image. NULL with a message; freed by sz_mask_free. */
uint8_t *sz_mask_load(const char *path, int *width, int *height);
uint8_t *sz_mask_load_bytes(const uint8_t *bytes, size_t n, const char *name, int *width,
                            int *height);
void sz_mask_free(uint8_t *mask);
/* Whether a mask has anything inside: 1 or 0, and its size; -1 with a message. Decodes it only if
 * the start of its data does not show it (runtime/io/image/mask_peek.c). */
int sz_mask_peek(const char *path, int *width, int *height);

/* ---- text on images (runtime/io/image/font.c) ---- */
typedef struct sz_font sz_font;
/* A TrueType or OpenType file, which must be one of the system's: damaged files are not refused.
 * NULL with a message; freed by sz_font_free. */
sz_font *sz_font_open(const char *path);
void sz_font_free(sz_font *f);
/* Characters that f lacks are taken from `other`, which must live longer; or from its own
 * fallback. */
void sz_font_fallback(sz_font *f, const sz_font *other);
/* In pixels, of a line that is `size` pixels high: its width, and how far its base line is below
 * its top. Text is UTF-8, n bytes. */
double sz_font_width(const sz_font *f, const char *text, size_t n, double size);
double sz_font_ascent(const sz_font *f, double size);
/* Draws a line with its left end at x and its base line at y; what is outside of the image is left
 * out. Returns 0, or -1 with a message. */
int sz_font_draw(const sz_font *f, sz_image *im, double x, double y, double size, const char *text,
                 size_t n, const uint8_t colour[3]);

/* ---- Parquet: rows of a mapped file; Lua puts nested values together ---- */
typedef struct sz_parquet sz_parquet;
/* A node of the schema, in preorder; node 0 is the root. type: 0 BOOLEAN, 1 INT32, 2 INT64, 3
 * INT96, 4 FLOAT, 5 DOUBLE, 6 BYTE_ARRAY, 7 FIXED_LEN_BYTE_ARRAY, 8 a group of other nodes.
 * repetition: 0 required, 1 optional, 2 repeated. */
typedef struct {
    const char *name; /* borrowed from the file */
    int type;
    int width; /* bytes of a value, 0 for byte arrays */
    int repetition;
    int children;         /* nodes directly below a group */
    int converted;        /* ConvertedType, -1: none */
    int logical;          /* field id in LogicalType, 0: none */
    int leaf;             /* index for sz_parquet_read, -1 for a group */
    int max_def, max_rep; /* of the levels below */
    int scale;            /* of a decimal: its digits after the point */
    int unit;             /* of a logical time: 1, 2, 3 for ms, us, ns; 0: none */
    int is_utc;           /* of a logical time: whether it is counted from UTC */
} sz_parquet_node;
/* Values of one leaf column: an entry of def and rep for each level, a value where def is the
 * column's max_def. */
typedef struct {
    int64_t levels;
    const uint8_t *def, *rep;
    int64_t count;          /* of values */
    int type, width;        /* as in the node */
    const uint8_t *data;    /* numbers of `width` bytes, a boolean is one; or bytes of all values */
    const int64_t *offsets; /* byte arrays: value i has bytes [offsets[i], offsets[i + 1]); NULL */
} sz_parquet_values;
/* Reads the metadata alone. */
sz_parquet *sz_parquet_open(const char *path);
void sz_parquet_close(sz_parquet *f);
int64_t sz_parquet_rows(const sz_parquet *f);
int sz_parquet_groups(const sz_parquet *f);
int64_t sz_parquet_group_rows(const sz_parquet *f, int group);
int sz_parquet_nodes(const sz_parquet *f);
int sz_parquet_node_at(const sz_parquet *f, int i, sz_parquet_node *to);
/* The value of a key of the file's metadata, or NULL; borrowed. */
const char *sz_parquet_pair(const sz_parquet *f, const char *key);
/* Rows [first, first + count) of a leaf column. */
sz_parquet_values *sz_parquet_read(sz_parquet *f, int leaf, int64_t first, int64_t count);
/* One row likewise, from 0. Of byte arrays that are read without their page, only the first `most`
 * bytes of each are read: for the header of an image. */
sz_parquet_values *sz_parquet_read_front(sz_parquet *f, int leaf, int64_t row, int64_t most);
void sz_parquet_values_free(sz_parquet_values *v);
/* From how many bytes on a column chunk of byte arrays is large: its rows are read without decoding
 * their pages, and pages four times as large are unpacked into a temporary file where their codec
 * cannot be entered. 1 MB at first; tests set it. Files that are open keep to what they had. */
void sz_parquet_set_large(int64_t bytes);

/* ---- Parquet: writing; Lua makes the schema and the levels ---- */
typedef struct sz_parquet_writer sz_parquet_writer;
/* Writes to path.tmp; snappy != 0: pages are packed. A row group ends after group_rows rows, or
 * earlier when it is large. */
sz_parquet_writer *sz_parquet_writer_new(const char *path, int snappy, int64_t group_rows);
/* Adds a node of the schema, in preorder, the root first; all nodes come before the first row. Of
 * `node` leaf is not read, and max_def and max_rep are read of leaves. */
int sz_parquet_writer_node(sz_parquet_writer *w, const sz_parquet_node *node);
/* A text of the file's metadata. */
int sz_parquet_writer_pair(sz_parquet_writer *w, const char *key, const char *value);
/* An entry of a leaf column, counted in the order of the nodes: its levels, and the value's bytes
 * (numbers as in memory, a boolean is one byte), or NULL if def says that there is none. */
int sz_parquet_writer_put(sz_parquet_writer *w, int leaf, int rep, int def, const void *bytes,
                          size_t len);
/* The entries of one row of a column list<list<bool>>: mask is u8 [height, width]. */
int sz_parquet_writer_mask(sz_parquet_writer *w, int leaf, const uint8_t *mask, int height,
                           int width);
/* Ends a row, after the entries of all columns. */
int sz_parquet_writer_row(sz_parquet_writer *w);
/* Writes the metadata, syncs, renames. After it or a failure only free may be called. */
int sz_parquet_writer_commit(sz_parquet_writer *w);
/* Without a commit, the temporary file is removed. */
void sz_parquet_writer_free(sz_parquet_writer *w);

/* ---- Arrow: a map of a file, which Lua reads; compressed buffers ---- */
typedef struct sz_map sz_map;
/* A regular file that is not empty; NULL with a message. */
sz_map *sz_map_open(const char *path);
void sz_map_close(sz_map *m);
const uint8_t *sz_map_bytes(const sz_map *m);
int64_t sz_map_size(const sz_map *m);
/* Gives back the resident pages around a range; the map stays valid. */
void sz_map_forget(sz_map *m, const uint8_t *from, int64_t len);
/* Unpacks len bytes into exactly room bytes; codec: 0 a frame of LZ4, 1 zstd. NULL with the reason
 * as the message; freed by sz_arrow_free. */
uint8_t *sz_arrow_unpack(int codec, const uint8_t *from, int64_t len, int64_t room);
void sz_arrow_free(uint8_t *bytes);

/* ---- tokenizer: byte-level BPE ---- */
typedef struct sz_tokenizer sz_tokenizer;
/* Bytes [start, stop) of a text of JSON; stop 0: nowhere. */
typedef struct {
    int64_t start, stop;
} sz_json_place;
/* split_pattern is in PCRE2's syntax; NULL with a message when it does not compile. */
sz_tokenizer *sz_tokenizer_new(const char *split_pattern);
void sz_tokenizer_free(sz_tokenizer *t);
/* Where model.vocab, an object, and model.merges, a list, are in the text [len] of a
 * tokenizer.json. 0; -1 with a message when the text is not JSON, as far as it was looked at: what
 * is inside the two tables and behind other keys is not. */
int sz_tokenizer_find(const char *json, int64_t len, sz_json_place *vocab, sz_json_place *merges);
/* Adds {"token": id, ...} at a place of the text. Tokens are in the byte-to-unicode alphabet.
 * Returns how many; -1 with a message. */
int64_t sz_tokenizer_add_vocabulary(sz_tokenizer *t, const char *json, const sz_json_place *place);
/* Adds the merges of "left right" or ["left", "right"], in the order of their ranks, after the
 * vocabulary. Returns how many; -1 with a message. */
int64_t sz_tokenizer_add_merges(sz_tokenizer *t, const char *json, const sz_json_place *place);
/* The id of a token of the vocabulary by its spelling there; -1: none. Before
 * sz_tokenizer_finish. */
int sz_tokenizer_find_token(sz_tokenizer *t, const char *token, size_t len);
/* An added token. flags: SZ_TOKEN_SPECIAL: decoding may leave it out; SZ_TOKEN_NORMALIZED: it is
 * found in the normalised text, after all others were found in the raw text, and its own text is
 * normalised by sz_tokenizer_finish. 0; -1 with a message. */
enum { SZ_TOKEN_SPECIAL = 1, SZ_TOKEN_NORMALIZED = 2 };
int sz_tokenizer_add_special(sz_tokenizer *t, const char *text, size_t len, int id, int flags);
/* Ends the additions. nfc: texts are normalised first, and so are the added tokens that are marked
 * SZ_TOKEN_NORMALIZED, which decode to their normalised text. Of two tokens that become the same
 * text, one is found. 0; -1 with a message, and the tokenizer can only be freed. */
int sz_tokenizer_finish(sz_tokenizer *t, int nfc);
/* Returns the count, or -1. The tokenizer owns ids until its next call. */
int64_t sz_tokenizer_encode(sz_tokenizer *t, const char *text, size_t len, const int32_t **ids);
/* UTF-8, with U+FFFD for bytes that are not. Returns the length, or -1. The tokenizer owns text
 * until its next call. */
int64_t sz_tokenizer_decode(sz_tokenizer *t, const int32_t *ids, int64_t n, int skip_special,
                            const char **text);
/* The raw bytes of one token, borrowed until the tokenizer is freed; length 0 for an id without a
 * token. */
int64_t sz_tokenizer_bytes(sz_tokenizer *t, int32_t id, const char **bytes);
/* The largest id plus 1. */
int sz_tokenizer_size(const sz_tokenizer *t);
/* 1 when the whole of text matches the pattern (PCRE2's syntax, like Python's re.fullmatch), 0 when
 * it does not; -1 with a message when the pattern does not compile. */
int sz_pattern_matches(const char *pattern, const char *text);

/* Lower case as Python's str.lower makes it; bytes that are not UTF-8 stay. to has room for 2 * len
 * bytes. Returns the number of bytes written. */
int64_t sz_text_lower(const char *text, size_t len, char *to);

/* ---- sampling ---- */
typedef struct {
    float temperature;        /* 0: greedy */
    int top_k;                /* < 1: off */
    float top_p;              /* >= 1: off */
    float repetition_penalty; /* 1: off; applied to prompt and answer, in greedy mode too */
    uint64_t seed;
} sz_sampling;
/* Picks one token for each row of logits [rows, vocab] f32, which it does not change.
 *   banned [vocab] u8         1: never sampled (NULL: none is banned)
 *   seen [rows, vocab] u8     1: in prompt or answer (NULL when the penalty is off)
 *   row_id, answer_id, position    key the random number of each row
 * Writes each token and its log-probability under softmax(logits / temperature), before top-k and
 * top-p; at temperature 0 that of the unscaled logits. */
int sz_sample(sz_tensor *logits, const sz_sampling *s, const uint8_t *banned, const uint8_t *seen,
              const int64_t *row_id, const int32_t *answer_id, const int32_t *position,
              int32_t *token, float *logprob);

/* ffi end */
#pragma GCC visibility pop
#endif
