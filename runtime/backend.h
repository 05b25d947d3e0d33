/* backend.h - what a device backend and the core give each other. A backend is a shared library, opened at run time by
 * device.c only when its device is asked for; it exports one function and refers to no symbol of the core.
 *
 * Shapes are checked by the core before a kernel runs. Floating tensors of a call are on the backend's device, index tensors
 * (i32) on the host. The core does all calls from one thread. Device memory is never dereferenced by the core. All device work
 * goes to one stream in order; to_host and sample wait for it, the others return at once.
 * Leaves out: several devices in one process. */
#ifndef SZ_BACKEND_H
#define SZ_BACKEND_H

#include "core.h"

enum { SZ_BACKEND_VERSION = 1 };

/* What the backend may use of the core. */
typedef struct {
    int   (*fail)(const char *message);         /* leaves the message for sz_last_error; returns -1 */
    void *(*scratch)(size_t bytes);             /* device workspace until the running kernel returns; NULL with a message */
} sz_backend_core;

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
} sz_backend;

/* What libsegzero_cuda.so exports; never NULL. */
__attribute__((visibility("default"))) const sz_backend *sz_cuda_backend(void);

#endif
