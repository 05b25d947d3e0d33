/* device.cuh - the entries of sz_backend (backend.h says what each does) that table.cu lists; what decode.cu has of device.cu, sample.cu and
 * attention_cached.cu. */
#ifndef SZ_CUDA_DEVICE_CUH
#define SZ_CUDA_DEVICE_CUH

#include "cuda.cuh"

extern "C" {
#include "core/backend.h"

int         sz_cuda_count(void);
int         sz_cuda_open(const sz_backend_core *core);
const char *sz_cuda_describe(void);
int         sz_cuda_memory(int64_t *available, int64_t *total);
void       *sz_cuda_allocate(size_t bytes);
void        sz_cuda_release(void *p);
int         sz_cuda_to_device(void *dst, const void *src, size_t bytes);
int         sz_cuda_to_host(void *dst, const void *src, size_t bytes);
int         sz_cuda_move(void *dst, const void *src, size_t bytes);
int         sz_cuda_fill(void *dst, int byte, size_t bytes);
int         sz_cuda_synchronise(void);
int         sz_cuda_sample(sz_tensor *logits, const sz_sampling *s, const uint8_t *banned, const uint8_t *seen, const int64_t *row_id,
                           const int32_t *answer_id, const int32_t *position, int32_t *token, float *logprob);
int         sz_cuda_decode(const sz_decode_step *s, int (*run)(void *context, int (*sample)(sz_tensor *logits)), void *context,
                           int32_t *token, float *logprob);
}

/* ---- device.cu: a step's tables, in one copy ---- */
/* Between open and send the tables and plans that are asked for are laid into the stage instead of going over one by one; between send and
 * close whoever asks for them (by the address of the host's bytes), or copies such bytes to the device, gets them from there. */
typedef struct {
    char *device;                   /* of what was staged; bytes of it */
    char *results, *device_results; /* room for what comes back: pinned, and on the device */
    size_t bytes;
} sz_cuda_stage;
void  sz_cuda_stage_open(void);
int   sz_cuda_stage_tensor(const sz_tensor *t);         /* a host tensor; 0, or -1 with a message, as the others */
char *sz_cuda_stage_bytes(size_t bytes, size_t *at);    /* to be filled before the next is asked for; on the device from `at` on. NULL with a message */
int   sz_cuda_stage_send(size_t back, sz_cuda_stage *to);   /* the one copy; room for `back` bytes of results */
void  sz_cuda_stage_close(void);
void  sz_cuda_recording(bool on);   /* the stream is captured: what cannot be repeated with other contents of the stage fails */

/* ---- attention_cached.cu ---- */
/* The plan of a causal attention_cached over this table: staged where the stage is open. NULL with a message. */
const sz_cuda_plan *sz_cuda_attention_cached_plan(const sz_tensor *segments, int heads, int kv_heads);

/* ---- sample.cu: the sampler's block of bytes, made on the host and read on the device ---- */
typedef struct { int64_t rows, vocab, words; size_t places, banned, seen, bytes, results; } sz_sample_layout;     /* offsets, 0: not there; results: bytes */
int  sz_cuda_sample_layout(int64_t rows, int64_t vocab, bool banned, bool seen, sz_sample_layout *to);
void sz_cuda_sample_fill(const sz_sample_layout &l, const sz_sampling *s, const uint8_t *banned, const uint8_t *seen, const int64_t *row_id,
                         const int32_t *answer_id, const int32_t *position, char *block);
int  sz_cuda_sample_launch(const sz_sample_layout &l, const sz_tensor *logits, const char *block, char *results);
int  sz_cuda_sample_read(const sz_sample_layout &l, const char *results, int32_t *token, float *logprob);

#endif
