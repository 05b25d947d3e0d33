/* tape.h - what tensor.c, tape.c, ops.c, profile.c and device.c share and no one else needs. */
#ifndef SZ_TAPE_H
#define SZ_TAPE_H

#include "core.h"

void sz_tape_truncate(int length);      /* drops later nodes and the references they hold */
void *sz_device_scratch(size_t bytes);  /* sz_scratch on the backend's device */
void sz_scratch_begin(void);            /* kernel workspace asked for between the two calls is taken back by the second */
void sz_scratch_end(void);

bool sz_profiling(void);                /* SEGZERO_PROFILE=1; then kernels are run through */
int  sz_profile(int op, sz_kernel kernel, const sz_call *c, int device);

#endif
