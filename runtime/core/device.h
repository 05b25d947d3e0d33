/* device.h - the opened backend, its memory blocks, and copies and fills of bytes on any device.
 * Leaves out: kernels (backend.h).
 */
#ifndef SZ_DEVICE_H
#define SZ_DEVICE_H

#include "backend.h"

/* NULL until a tensor on the backend's device is asked for. Code that has such a tensor may use
 * it. */
extern const sz_backend *sz_device;

/* "cpu", "cuda:0" */
const char *sz_device_name(int device);

/* A block of device memory of at least *bytes; *bytes becomes its real size, which freeing needs.
 * Freed blocks are kept for later ones. NULL with a message. */
void *sz_device_block(size_t *bytes);
void sz_device_block_free(void *p, size_t bytes);
/* Gives the kept blocks back to the driver. */
void sz_device_trim(void);

/* 0, or -1 with a message. The ranges of a copy may overlap (graph.h declares sz_bytes_copy). */
int sz_bytes_fill(int device, void *p, int byte, size_t bytes);
/* Fills with 0. On the CPU, whole pages of a large block go back to the system. */
int sz_bytes_clear(int device, void *p, size_t bytes);

#endif
