/* device.c - opens a backend's library when its device is first asked for, and hands out its memory.
 *
 * The library is libsegzero_cuda.so beside the core's, or what SEGZERO_CUDA_LIBRARY names. Nothing here is reached by a
 * program that only computes on the processor.
 * Heap blocks on the device are cached: the driver's own allocation and release wait for the device. A freed block may be
 * handed out at once, because all work is in one stream.
 * Leaves out: more than one device. */
#define _GNU_SOURCE
#include "device.h"
#include "tape.h"
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

const sz_backend *sz_device;

static void *library;
static const sz_backend *loaded;

static int leave_message(const char *message) { return sz_fail("%s", message); }

static const char *library_path(char *buffer, size_t size)
{
    const char *given = getenv("SEGZERO_CUDA_LIBRARY");
    if (given && *given) return given;
    Dl_info info;
    const char *own = dladdr((void *)sz_version, &info) && info.dli_fname ? info.dli_fname : "", *slash = strrchr(own, '/');
    snprintf(buffer, size, "%.*slibsegzero_cuda.so", slash ? (int)(slash - own + 1) : 0, own);
    return buffer;
}

/* Loads the library without opening the device; NULL with a message. */
static const sz_backend *load(void)
{
    if (loaded) return loaded;
    char buffer[4096];
    const char *path = library_path(buffer, sizeof buffer);
    FILE *there = fopen(path, "rb");
    if (!there) return sz_null("device cuda: there is no %s (make builds it where nvcc is)", path);
    fclose(there);
    library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) return sz_null("device cuda: %s", dlerror());
    const sz_backend *(*get)(void);
    *(void **)&get = dlsym(library, "sz_cuda_backend");
    const sz_backend *b = get ? get() : NULL;
    if (!b || b->version != SZ_BACKEND_VERSION || b->kernel_count != SZ_OP_COUNT) {
        dlclose(library);
        return sz_null("device cuda: %s is not of this version; build both again", path);
    }
    return loaded = b;
}

int sz_device_ready(int device)
{
    if (device == SZ_CPU || (device == SZ_CUDA && sz_device)) return 0;
    if (device != SZ_CUDA) return sz_fail("there is no device %d", device);
    static const sz_backend_core core = { leave_message, sz_device_scratch };
    const sz_backend *b = load();
    if (!b || b->open(&core) != 0) return -1;
    sz_device = b;
    return 0;
}

const char *sz_device_name(int device) { return device == SZ_CPU ? "cpu" : device == SZ_CUDA ? "cuda:0" : "unknown"; }

int sz_device_count(int device)
{
    if (device == SZ_CPU) return 1;
    const sz_backend *b = device == SZ_CUDA ? load() : NULL;
    if (!b) return 0;
    int n = b->device_count();
    return n < 1 ? 0 : 1;
}

const char *sz_device_describe(int device)
{
    if (sz_device_ready(device) != 0) return NULL;
    return device == SZ_CPU ? "" : sz_device->describe();
}

int sz_device_synchronise(void) { return sz_device ? sz_device->synchronise() : 0; }

int64_t sz_device_available(int device)
{
    int64_t available = 0, total = 0;
    if (device == SZ_CPU || sz_device_ready(device) != 0 || sz_device->memory(&available, &total) != 0) return -1;
    return available;
}

/* ---- blocks ---- */
static struct { char *p; size_t bytes; } *kept;
static size_t kept_count, kept_room;

void sz_device_trim(void)
{
    while (kept_count > 0) sz_device->release(kept[--kept_count].p);
}

void *sz_device_block(size_t *bytes)
{
    size_t want = (*bytes + 511) / 512 * 512, best = kept_count;
    if (!want) want = 512;
    for (size_t i = 0; i < kept_count; i++) {
        if (kept[i].bytes < want || kept[i].bytes - want > want / 8) continue;
        /* Of equal ones the lowest address: a cache that is given back and made again is where it was, and recorded decode steps know it. */
        if (best == kept_count || kept[i].bytes < kept[best].bytes || (kept[i].bytes == kept[best].bytes && kept[i].p < kept[best].p)) best = i;
    }
    if (best < kept_count) {
        void *p = kept[best].p;
        *bytes = kept[best].bytes;
        kept[best] = kept[--kept_count];
        return p;
    }
    void *p = sz_device->allocate(want);
    if (!p && kept_count) {
        sz_device_trim();
        p = sz_device->allocate(want);
    }
    *bytes = want;
    return p;
}

void sz_device_block_free(void *p, size_t bytes)
{
    if (!p) return;
    if (kept_count == kept_room) {
        size_t room = kept_room ? 2 * kept_room : 256;
        void *grown = realloc(kept, room * sizeof *kept);
        if (!grown) {
            sz_device->release(p);
            return;
        }
        kept = grown;
        kept_room = room;
    }
    kept[kept_count].p = p;
    kept[kept_count++].bytes = bytes;
}

/* ---- bytes ---- */
int sz_bytes_copy(int to, void *dst, int from, const void *src, size_t bytes)
{
    if (!bytes) return 0;
    if (to == SZ_CPU && from == SZ_CPU) {
        memmove(dst, src, bytes);
        return 0;
    }
    return (to == from ? sz_device->move : to == SZ_CPU ? sz_device->to_host : sz_device->to_device)(dst, src, bytes);
}

int sz_bytes_fill(int device, void *p, int byte, size_t bytes)
{
    if (device != SZ_CPU) return sz_device->fill(p, byte, bytes);
    memset(p, byte, bytes);
    return 0;
}

int sz_bytes_clear(int device, void *p, size_t bytes)
{
    if (device != SZ_CPU) return sz_device->fill(p, 0, bytes);
    sz_zero_pages(p, bytes);
    return 0;
}
