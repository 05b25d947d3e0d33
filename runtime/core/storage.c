/* storage.c - reference counts of bytes that tensors share: heap blocks, page-locked memory, file
 * mappings, and address space without memory (meta tensors).
 * Leaves out: arena tensors, which have no storage.
 */
#include "storage.h"
#include "device.h"
#include "memory.h"
#include <stdlib.h>
#include <sys/mman.h>

sz_storage *sz_storage_new(void *base, size_t bytes, void (*done)(void *), void *owner)
{
    sz_storage *s = malloc(sizeof *s);
    if (!s) return sz_null("out of memory");
    *s = (sz_storage){ .refs = 1, .base = base, .bytes = bytes, .done = done, .owner = owner };
    sz_memory_hold((int64_t)bytes);
    return s;
}

sz_storage *sz_storage_retain(sz_storage *s)
{
    if (s) s->refs++;
    return s;
}

void sz_storage_release(sz_storage *s)
{
    if (!s || --s->refs > 0) return;
    sz_memory_hold(-(int64_t)s->bytes);
    s->done(s->owner);
    free(s);
}

/* ---- heap blocks ---- */
sz_storage *sz_storage_of_block(int device, size_t bytes, void **data)
{
    sz_heap_block *b = sz_heap_new(device, bytes);
    if (!b) return NULL;
    *data = sz_heap_data(b);
    sz_storage *s = sz_storage_new(*data, sz_heap_bytes(b), sz_heap_free, b);
    if (!s) sz_heap_free(b);
    return s;
}

bool sz_storage_is_block(const sz_storage *s) { return s->done == sz_heap_free; }

/* ---- page-locked host memory ---- */
static void release_locked(void *p) { sz_device->release_host(p); }

sz_storage *sz_storage_of_locked(size_t bytes, void **data)
{
    if (sz_memory_fails()) return NULL;
    sz_memory_asked();
    *data = sz_device->allocate_host(bytes);
    if (!*data) return NULL;
    sz_storage *s = sz_storage_new(*data, bytes, release_locked, *data);
    if (!s) release_locked(*data);
    return s;
}

/* ---- address space ---- */
typedef struct {
    void *base;
    size_t bytes;
} address_space;

static void unmap(void *owner)
{
    address_space *a = owner;
    munmap(a->base, a->bytes);
    free(a);
}

sz_storage *sz_storage_of_nothing(size_t bytes, void **data)
{
    address_space *a = malloc(sizeof *a);
    if (!a) return sz_null("out of memory: address space");
    a->bytes = bytes ? bytes : 1;
    a->base = mmap(NULL, a->bytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (a->base == MAP_FAILED) {
        free(a);
        return sz_null("out of memory: address space");
    }
    *data = a->base;
    sz_storage *s = sz_storage_new(a->base, 0, unmap, a);
    if (!s) unmap(a);
    return s;
}
