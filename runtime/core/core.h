/* core.h - what the core, the ops and the backends share: op calls and the table of ops, storage
 * and kernel workspace, the tape. graph.h, included here, has tensors, errors and op wrappers.
 * Not for models/, which include graph.h only. Leaves out: anything that names a model.
 */
#ifndef SZ_CORE_H
#define SZ_CORE_H

#include "graph.h"

enum { SZ_MOMENT_BLOCK = 256 }; /* elements that share a scale in 8-bit moments (adamw_compact_) */
enum { SZ_ROUNDING_BLOCK = 512 }; /* elements whose random numbers are drawn together (the same) */

/* The key of the random numbers that rounding draws (adamw_compact_); no likely seed of a run. */
#define SZ_ROUNDING_SEED UINT64_C(0x8f1bbcdcbfa53e0b)

/* ---- storage ---- */
/* Bytes that something else owns; done(owner) runs when the last tensor over them is released.
 * NULL with a message when memory is out. */
sz_storage *sz_storage_new(void *base, size_t bytes, void (*done)(void *owner), void *owner);
void sz_storage_release(sz_storage *s);
/* A CPU tensor over bytes of s; holds a reference to it. */
sz_tensor *sz_tensor_over(sz_storage *s, int dtype, int ndim, const int64_t *shape, void *data);
/* Whole pages inside [p, p + bytes) of a mapped file leave the process; they are read again from
 * the file (or its cache) when touched. Only for pages that nothing has written to: others would
 * fall back to the file's. */
void sz_unload_pages(const void *p, size_t bytes);
/* Zeroes private memory. Whole pages of a large block go back to the system, which hands out
 * zeroed ones when they are next touched: moments before the first step, and gradients between
 * steps, occupy nothing. Costs about what memset does. */
void sz_zero_pages(void *p, size_t bytes);

/* ---- parts of whole tensors (part.c) ---- */
/* 0 if a part of `part` elements at p is inside a tensor of `whole`; -1 with a message. */
int sz_place_check(const sz_place *p, int64_t part, int64_t whole);
/* The run that begins with element i of a part of `count` elements: returns how many elements it
 * has, and *at is the place of the first in the whole tensor. */
static inline int64_t sz_place_run(const sz_place *p, int64_t i, int64_t count, int64_t *at)
{
    const int64_t element = p->skip + i;
    const int64_t column = element % p->run;
    *at = p->first + element / p->run * p->stride + column;
    if (p->run == p->stride) return count - i;
    return p->run - column < count - i ? p->run - column : count - i;
}

/* ---- kernel workspace ---- */
/* 64-byte aligned; NULL when memory is out. Valid until the kernel returns: sz_apply takes it
 * back. Called outside parallel regions only; a kernel that wants one piece for each thread asks
 * for all at once. */
void *sz_scratch(size_t bytes);
/* restore() gives back, before the kernel returns, what was asked for since save(). */
typedef struct {
    int mark, guards;
} sz_scratch_state;
sz_scratch_state sz_scratch_save(void);
void sz_scratch_restore(sz_scratch_state s);

/* ---- op calls ---- */
typedef struct {
    sz_tensor *in[SZ_MAX_IN];
    sz_tensor *out[SZ_MAX_OUT];
    double args[SZ_MAX_ARGS]; /* the numbers, in the order of ops.def */
} sz_call;

/* A call as the tape keeps it: inputs and outputs, each with a reference held. */
typedef struct {
    int op; /* -1: a checkpointed part (sz_checkpoint) */
    sz_call call;
    struct sz_recompute *recompute; /* of such a part */
    uint8_t idle_in, idle_out;      /* bit i: this reference does not need the tensor's bytes */
} sz_node;

/* What an op's gradient rule reads the bytes of, one bit for each input and output, and whether
 * output 0 is cheap to compute again from the inputs, which the rule reads too (ops/reads.c). */
typedef struct {
    uint8_t in, out;
    bool again;
} sz_gradient_reads;
sz_gradient_reads sz_reads_of(int op);

enum {
#define SZ_OP(name, ...) SZ_OP_##name,
#include "ops/ops.def"
#undef SZ_OP
    SZ_OP_COUNT
};

typedef int (*sz_shape)(int op, sz_call *c);       /* checks inputs, makes outputs */
typedef int (*sz_kernel)(const sz_call *c);        /* 0, or -1 with a message (out of memory) */
typedef int (*sz_gradient)(sz_node *n);            /* gives the inputs their gradients */
typedef int64_t (*sz_workspace)(const sz_call *c); /* about the bytes that the CPU kernel takes */
typedef double (*sz_flops)(const sz_call *c);

/* A row of ops.def (core/dispatch.c). gradient, workspace and flops may be NULL. */
typedef struct {
    const char *name;
    const char *numbers; /* their names, with a blank between two */
    int8_t inputs, outputs;
    sz_shape shape;
    sz_kernel reference; /* the CPU's own are in processor.h */
    sz_gradient gradient;
    sz_workspace workspace;
    sz_flops flops;
} sz_op_row;
extern const sz_op_row sz_ops[SZ_OP_COUNT];

/* Checks, makes outputs, runs the kernel, records. 0 with c->out set to new references, or -1
 * with a message. */
int sz_apply(int op, sz_call *c);
/* Runs the kernel of a call once more, into the outputs that it has. 0, or -1 with a message. */
int sz_apply_again(int op, const sz_call *c);

/* ---- tape ---- */
int sz_tape_record(int op, const sz_call *c);
/* Gives t the gradient contribution g and takes over the reference. A parameter's accumulates; an
 * activation's is assigned, and a second contribution is added. -1 when g is NULL. */
int sz_accumulate_grad(sz_tensor *t, sz_tensor *g);
/* The accumulating buffer of a parameter, zeroed when new; borrowed. f32, or bf16 with
 * SZ_GRAD_BF16 (not for vectors, which are small). */
sz_tensor *sz_grad_buffer(sz_tensor *t);

#endif
