/* device.cuh - the functions behind the entries of sz_backend that table.cu lists (core/backend.h
 * says what each one does), and what decode.cu uses of device.cu, sample.cu and
 * attention_cached.cu. Leaves out: kernels; each family's file defines its own. */
#ifndef SZ_CUDA_DEVICE_CUH
#define SZ_CUDA_DEVICE_CUH

#include "cuda.cuh"

extern "C" {
#include "core/backend.h"

int sz_cuda_count(void);
int sz_cuda_open(const sz_backend_core *core);
/* What the core lends; NULL in tests of single kernel files. */
const sz_backend_core *sz_cuda_core(void);
const char *sz_cuda_describe(void);
int sz_cuda_memory(int64_t *available, int64_t *total);
void *sz_cuda_allocate(size_t bytes);
void sz_cuda_release(void *p);
int sz_cuda_to_device(void *dst, const void *src, size_t bytes);
int sz_cuda_to_host(void *dst, const void *src, size_t bytes);
int sz_cuda_move(void *dst, const void *src, size_t bytes);
int sz_cuda_fill(void *dst, int byte, size_t bytes);
int sz_cuda_synchronise(void);
void *sz_cuda_allocate_host(size_t bytes);
void sz_cuda_release_host(void *p);
int sz_cuda_copy_async(int lane, void *dst, const void *src, size_t bytes);
int sz_cuda_mark(int lane, int mark);
int sz_cuda_await(int lane, int mark);
int sz_cuda_finish(int lane);
int sz_cuda_sample(sz_tensor *logits, const sz_sampling *s, const uint8_t *banned,
                   const uint8_t *seen, const int64_t *row_id, const int32_t *answer_id,
                   const int32_t *position, int32_t *token, float *logprob);
int sz_cuda_decode(const sz_decode_step *s,
                   int (*run)(void *context, int (*sample)(sz_tensor *logits)), void *context,
                   int32_t *token, float *logprob);
}

/* ---- stage.cu: the staging buffer, which uploads a decode step's data in one copy ---- */
/* After stage_open, uploads are collected in a pinned buffer. stage_send copies the buffer to the
 * device in one transfer. From then until stage_close, a lookup or an upload of the same host bytes
 * (same address and size) uses the staged copy. */
typedef struct {
    char *device;         /* the staged bytes on the device */
    char *results;        /* room for results: pinned host memory, ... */
    char *device_results; /* ... and its counterpart on the device */
    size_t bytes;         /* bytes staged, without the results */
} sz_cuda_stage;

void sz_cuda_stage_open(void);

/* Stages a host tensor. Returns 0, or -1 with a message. */
int sz_cuda_stage_tensor(const sz_tensor *t);

/* Reserves bytes in the buffer and returns where the caller must write them before the next
 * reservation. *offset is their place relative to sz_cuda_stage.device. NULL with a message. */
char *sz_cuda_stage_bytes(size_t bytes, size_t *offset);

/* Starts the one copy to the device and reserves result_bytes for results. 0, or -1 with a
 * message. */
int sz_cuda_stage_send(size_t result_bytes, sz_cuda_stage *to);

void sz_cuda_stage_close(void);

/* Call with true while the stream is being captured: anything that could not be replayed with other
 * contents of the staging buffer (allocations, other copies, waits) then fails with a message. */
void sz_cuda_recording(bool on);
bool sz_cuda_is_recording(void);

/* ---- attention_cached.cu ---- */
/* Returns the schedule of a causal attention_cached over this segment table; stages it if the
 * staging buffer is open. NULL with a message. */
const sz_cuda_cache_entry *sz_cuda_attention_cached_schedule(const sz_tensor *segments, int heads,
                                                             int kv_heads);

/* ---- sample.cu: the sampler's input block, filled on the host and read on the device ---- */
/* Byte offsets into the block; 0 for a part that is absent. */
typedef struct {
    int64_t rows, vocab;
    int64_t words;       /* 32-bit words of a row's bit mask */
    size_t places;       /* the keys of each row's random numbers */
    size_t banned, seen; /* bit masks over the vocabulary */
    size_t bytes;        /* size of the block */
    size_t results;      /* size of the results */
} sz_sample_layout;

/* Computes the layout. Returns 0, or -1 with a message. */
int sz_cuda_sample_layout(int64_t rows, int64_t vocab, bool banned, bool seen,
                          sz_sample_layout *to);
/* Fills the block in host memory; the arguments are those of sz_sample. */
void sz_cuda_sample_fill(const sz_sample_layout &layout, const sz_sampling *s,
                         const uint8_t *banned, const uint8_t *seen, const int64_t *row_id,
                         const int32_t *answer_id, const int32_t *position, char *block);
/* Launches the sampler; block and results are device memory. Returns 0, or -1 with a message. */
int sz_cuda_sample_launch(const sz_sample_layout &layout, const sz_tensor *logits,
                          const char *block, char *results);
/* Decodes the results, copied to host memory. Returns 0, or -1 with a message. */
int sz_cuda_sample_read(const sz_sample_layout &layout, const char *results, int32_t *token,
                        float *logprob);

#endif
