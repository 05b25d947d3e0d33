/* optim.h - what optim.c and optim_offload.c share: the optimizer and the update of one part.
 * Leaves out: what others may call, which is in sz.h.
 */
#ifndef SZ_OPTIM_H
#define SZ_OPTIM_H

#include "op.h"

/* Kinds of state, in the order of sz_adamw_state. */
enum {
    SZ_ADAMW_FIRST,
    SZ_ADAMW_SECOND,
    SZ_ADAMW_MASTER,
    SZ_ADAMW_FIRST_SCALE,
    SZ_ADAMW_SECOND_SCALE,
    SZ_ADAMW_STATES,
};
/* The numbers of an update: lr, beta1, beta2, eps, weight_decay, step, grad_scale. */
enum { SZ_ADAMW_NUMBERS = 7 };

struct sz_adamw {
    int n;
    int offload; /* SZ_OFFLOAD_MOMENTS, SZ_OFFLOAD_MASTERS */
    int64_t steps;
    sz_tensor **params;
    double *squares;        /* [n] of the gradients, when their norm was last computed */
    int64_t *first, *count; /* the part of each parameter; NULL: all of it */
    /* One list for each kind; NULL where a parameter has none of it. */
    sz_tensor **state[SZ_ADAMW_STATES];
};

/* The range of parameter i, or of its gradient, that the optimizer has, as a view; NULL with a
 * message. */
sz_tensor *sz_adamw_part(const sz_adamw *o, int i, sz_tensor *whole);
/* Updates p with gradient g and its state: elements from `first` on of parameter i. */
int sz_adamw_update_part(sz_tensor *p, sz_tensor *g, sz_tensor *const *state, int i, int64_t first,
                         const double *numbers);
/* Updates parameter i, whose state is where it is, and clears its gradient. */
int sz_adamw_update(sz_adamw *o, int i, const double *numbers);

/* ---- optim_offload.c ---- */
/* Whether state k of this parameter or part waits in host memory. */
bool sz_adamw_is_away(const sz_adamw *o, int k, const sz_tensor *part);
/* Updates all parameters. */
int sz_adamw_step_away(sz_adamw *o, const double *numbers);

#endif
