/* backend.h - the contract between the core and a device backend. A backend is a shared library
 * that device.c opens at run time, only when its device is asked for. It exports one function and
 * refers to no symbol of the core.
 *
 * The core checks shapes before a kernel runs. Floating tensors of a call are on the backend's
 * device, index tensors (i32) in host memory. The core makes all calls from one thread and never
 * dereferences device memory. All device work goes to one stream, in order, except copies of
 * copy_async; to_host, sample, decode and finish wait, the other entries return at once.
 * Leaves out: several devices in one process; ranks have one each.
 */
#ifndef SZ_BACKEND_H
#define SZ_BACKEND_H

#include "core.h"
#include "sampling/decode.h"

enum { SZ_BACKEND_VERSION = 4 };

/* Streams of work: the main one, and two for copies. */
enum { SZ_LANE_MAIN, SZ_LANE_UP, SZ_LANE_DOWN, SZ_LANES, SZ_MARKS = 16 };

/* What the backend may use of the core. */
typedef struct {
    /* Leaves the message for sz_last_error; returns -1. */
    int (*fail)(const char *message);
    /* Device workspace that is valid until the running kernel returns; NULL with a message. */
    void *(*scratch)(size_t bytes);
    /* The kernels of these ops for tensors on any device: they pass them through host memory. */
    sz_kernel tp_sum, tp_gather;
    /* This process's number among the job's processes on this machine, and how many they are; 0:
     * not known. */
    int local_rank, local_size;
} sz_backend_core;

typedef struct {
    int version;              /* SZ_BACKEND_VERSION */
    const char *name;         /* "cuda", or "cuda, emulated" */
    const sz_kernel *kernels; /* [SZ_OP_COUNT] */
    size_t kernel_count;      /* SZ_OP_COUNT of the backend's build */

    /* Makes the device ready; -1 with a message (no driver, no device, ...). Except for
     * device_count, the other entries need it to have succeeded. */
    int (*open)(const sz_backend_core *core);
    /* 0 when there is no driver or no device. */
    int (*device_count)(void);
    /* Lines "what: value" for people; borrowed until the next call. */
    const char *(*describe)(void);

    /* Device memory, 256-byte aligned; NULL with a message. */
    void *(*allocate)(size_t bytes);
    void (*release)(void *p);
    /* 0, or -1 with a message. src may be changed as soon as to_device returns. move copies within
     * the device; its ranges may overlap. */
    int (*to_device)(void *dst, const void *src, size_t bytes);
    int (*to_host)(void *dst, const void *src, size_t bytes);
    int (*move)(void *dst, const void *src, size_t bytes);
    int (*fill)(void *dst, int byte, size_t bytes);
    /* Waits for all work; -1 with a message when some of it failed. */
    int (*synchronise)(void);
    int (*memory)(int64_t *available, int64_t *total);

    /* As sz_sample, with logits f32 [rows, vocab] on the device; everything else is host memory. */
    int (*sample)(sz_tensor *logits, const sz_sampling *s, const uint8_t *banned,
                  const uint8_t *seen, const int64_t *row_id, const int32_t *answer_id,
                  const int32_t *position, int32_t *token, float *logprob);
    /* A decode step with one copy each way and one wait. run(context, sample) calls the step's
     * ops and then sample(logits), logits f32 [rows, vocab]; it leaves the step arena as it found
     * it. It is called once; twice where recording fails; not at all for a step that was recorded
     * before. */
    int (*decode)(const sz_decode_step *s,
                  int (*run)(void *context, int (*sample)(sz_tensor *logits)), void *context,
                  int32_t *token, float *logprob);

    /* Host memory that copies read and write without the host (page-locked); NULL with a
     * message. */
    void *(*allocate_host)(size_t bytes);
    void (*release_host)(void *p);
    /* Copies during the main work, in one of two lanes: to the device, SZ_LANE_UP, and from it,
     * SZ_LANE_DOWN. The host memory must be of allocate_host. These return at once. */
    int (*copy_async)(int lane, void *dst, const void *src, size_t bytes);
    /* Puts a mark, 0 <= mark < SZ_MARKS, behind the work that a lane has so far. await: what the
     * lane gets from now on waits until the work before the mark is done. */
    int (*mark)(int lane, int mark);
    int (*await)(int lane, int mark);
    /* Waits for all work of a lane. */
    int (*finish)(int lane);

    /* How the devices of several ranks talk to each other: comm/links.h. */
    const struct sz_links *links;
} sz_backend;

/* What libsegzero_cuda.so exports; never NULL. */
__attribute__((visibility("default"))) const sz_backend *sz_cuda_backend(void);

#endif
