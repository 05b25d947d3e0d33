/* tape.h - what tensor.c, tape.c, ops.c and device.c share and no one else needs. */
#ifndef SZ_TAPE_H
#define SZ_TAPE_H

#include <stddef.h>

void sz_tape_truncate(int length);      /* drops later nodes and the references they hold */
void *sz_device_scratch(size_t bytes);  /* sz_scratch on the backend's device */
void sz_scratch_begin(void);            /* kernel workspace asked for between the two calls is taken back by the second */
void sz_scratch_end(void);

#endif
