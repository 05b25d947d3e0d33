/* storage.h - what storage.c and tensor.c give each other; core.h has the rest. */
#ifndef SZ_STORAGE_H
#define SZ_STORAGE_H
#include "core.h"

struct sz_storage {
    int32_t refs;
    void *base;
    size_t bytes;
    void (*done)(void *owner); /* releases what the bytes belong to */
    void *owner;
};

/* Returns s; NULL is allowed. */
sz_storage *sz_storage_retain(sz_storage *s);
/* A new heap block, or address space that no memory is behind; *data becomes where its bytes
 * begin. NULL with a message when memory is out. */
sz_storage *sz_storage_of_block(int device, size_t bytes, void **data);
sz_storage *sz_storage_of_nothing(size_t bytes, void **data);
/* Page-locked host memory of the backend that is open. */
sz_storage *sz_storage_of_locked(size_t bytes, void **data);
bool sz_storage_is_block(const sz_storage *s);

#endif
