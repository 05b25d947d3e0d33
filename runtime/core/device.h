/* device.h - memory of either device for tensor.c and whoever moves bytes: the opened backend, blocks, copies, fills. */
#ifndef SZ_DEVICE_H
#define SZ_DEVICE_H

#include "backend.h"

/* The backend once a tensor on its device was asked for; a tensor there exists only after that, so code that has one may use it. */
extern const sz_backend *sz_device;

const char *sz_device_name(int device);         /* "cpu", "cuda:0" */
/* A block of at least *bytes; *bytes becomes its real size, which freeing wants again. Freed blocks are kept for later ones. */
void *sz_device_block(size_t *bytes);
void  sz_device_block_free(void *p, size_t bytes);
void  sz_device_trim(void);                     /* gives kept blocks back to the driver */

int   sz_bytes_copy(int to, void *dst, int from, const void *src, size_t bytes);   /* ranges may overlap */
int   sz_bytes_fill(int device, void *p, int byte, size_t bytes);
int   sz_bytes_clear(int device, void *p, size_t bytes);        /* to 0; on the CPU a large block's pages go back to the system */

#endif
