/* backend.h - what a device backend and the core give each other. A backend is a shared library, opened at run time by
 * device.c only when its device is asked for; it exports one function and refers to no symbol of the core.
 *
 * Shapes are checked by the core before a kernel runs. Floating tensors of a call are on the backend's device, index tensors
 * (i32) on the host. The core does all calls from one thread. Device memory is never dereferenced by the core. All device work
 * goes to one stream in order; to_host, sample and decode wait for it, the others return at once.
 * Leaves out: several devices in one process. */
#ifndef SZ_BACKEND_H
#define SZ_BACKEND_H

#include "core.h"

enum { SZ_BACKEND_VERSION = 2 };

/* What the backend may use of the core. */
typedef struct {
    int   (*fail)(const char *message);         /* leaves the message for sz_last_error; returns -1 */
    void *(*scratch)(size_t bytes);             /* device workspace until the running kernel returns; NULL with a message */
} sz_backend_core;

/* A decode step: one token for each of `rows` answers. */
typedef struct {
    int64_t rows, vocab;
    const sz_tensor *tables[6];                 /* host tensors that the step's ops read or that are copied to the device in it; NULL ends them */
    const sz_tensor *segments;                  /* one of them: of the step's attention_cached calls, which are causal and have */
    int heads, kv_heads;                        /* so many heads */
    const sz_sampling *sampling;                /* these as for sample */
    const uint8_t *banned, *seen;
    const int64_t *row_id;
    const int32_t *answer_id, *position;
    const void *place;                          /* where in the step arena its ops begin */
    uint64_t key;                               /* of all else that fixes the launches: shapes, settings, addresses of weights and caches */
    bool repeat;                                /* it may be recorded, and then repeated without run */
} sz_decode_step;

typedef struct {
    int version;                                /* SZ_BACKEND_VERSION */
    const char *name;                           /* "cuda", or "cuda, emulated" */
    const sz_kernel *kernels;                   /* [SZ_OP_COUNT] */
    size_t kernel_count;                        /* SZ_OP_COUNT as the backend was built */
    /* Makes the device ready; -1 with a message (no driver, no device, ...). The other entries need it to have succeeded. */
    int   (*open)(const sz_backend_core *core);
    int   (*device_count)(void);                /* usable before open; 0 when there is no driver or no device */
    const char *(*describe)(void);              /* several lines "what: value" for people; borrowed, until the next call */
    void *(*allocate)(size_t bytes);            /* 256-byte aligned; NULL with a message */
    void  (*release)(void *p);
    int   (*to_device)(void *dst, const void *src, size_t bytes);   /* src may be changed as soon as it returns */
    int   (*to_host)(void *dst, const void *src, size_t bytes);
    int   (*move)(void *dst, const void *src, size_t bytes);        /* device to device, ranges may overlap */
    int   (*fill)(void *dst, int byte, size_t bytes);
    int   (*synchronise)(void);                 /* waits; -1 with a message when earlier work failed */
    int   (*memory)(int64_t *available, int64_t *total);
    /* As sz_sample, with logits f32 [rows, vocab] on the device; everything else is host memory. */
    int   (*sample)(sz_tensor *logits, const sz_sampling *s, const uint8_t *banned, const uint8_t *seen,
                    const int64_t *row_id, const int32_t *answer_id, const int32_t *position, int32_t *token, float *logprob);
    /* One decode step with one copy each way and one wait. run(context, sample) calls the step's ops and then sample(logits), logits f32
     * [rows, vocab]; it leaves the step arena as it found it. It is called once; twice where recording fails; not at all for a step like one
     * that has been recorded. */
    int   (*decode)(const sz_decode_step *s, int (*run)(void *context, int (*sample)(sz_tensor *logits)), void *context,
                    int32_t *token, float *logprob);
} sz_backend;

/* What libsegzero_cuda.so exports; never NULL. */
__attribute__((visibility("default"))) const sz_backend *sz_cuda_backend(void);

#endif
