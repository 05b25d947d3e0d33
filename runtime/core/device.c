/* device.c - opens a backend's library when its device is first asked for, and hands out its
 * memory.
 *
 * The library is libsegzero_cuda.so in the folder of the core's library, or the file that
 * SEGZERO_CUDA_LIBRARY names. A program that computes only on the CPU loads nothing. Freed blocks
 * of device memory are kept: the driver's own allocation and release wait for the device. A freed
 * block may be reused at once, because all work is in one stream.
 * Leaves out: more than one device.
 */
#define _GNU_SOURCE
#include "device.h"
#include "memory.h"
#include "processor.h"
#include "comm/launch.h"
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

const sz_backend *sz_device;

/* ---- loading ---- */
static void *library;
static const sz_backend *loaded;

static int leave_message(const char *message) { return sz_fail("%s", message); }

static const char *library_path(char *buffer, size_t size)
{
    const char *given = getenv("SEGZERO_CUDA_LIBRARY");
    if (given && *given) return given;

    /* The folder of this library, with its slash. */
    Dl_info info;
    const char *own = "";
    if (dladdr((void *)sz_version, &info) && info.dli_fname) own = info.dli_fname;
    const char *slash = strrchr(own, '/');
    const int folder = slash ? (int)(slash - own + 1) : 0;
    snprintf(buffer, size, "%.*slibsegzero_cuda.so", folder, own);
    return buffer;
}

static bool fits_this_core(const sz_backend *b)
{
    return b && b->version == SZ_BACKEND_VERSION && b->kernel_count == SZ_OP_COUNT;
}

/* Loads the library without opening the device; NULL with a message. */
static const sz_backend *load(void)
{
    if (loaded) return loaded;
    char buffer[4096];
    const char *path = library_path(buffer, sizeof buffer);
    FILE *file = fopen(path, "rb");
    if (!file) return sz_null("device cuda: there is no %s (make builds it where nvcc is)", path);
    fclose(file);

    library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) return sz_null("device cuda: %s", dlerror());
    const sz_backend *(*get)(void);
    *(void **)&get = dlsym(library, "sz_cuda_backend");
    const sz_backend *backend = get ? get() : NULL;
    if (!fits_this_core(backend)) {
        dlclose(library);
        return sz_null("device cuda: %s is not of this version; build both again", path);
    }
    loaded = backend;
    return loaded;
}

int sz_device_ready(int device)
{
    static sz_backend_core core = { .fail = leave_message, .scratch = sz_device_scratch };
    if (device == SZ_CPU) return 0;
    if (device != SZ_CUDA) return sz_fail("there is no device %d", device);
    if (sz_device) return 0;
    const sz_backend *backend = load();
    core.tp_sum = sz_processor()->ops[SZ_OP_tp_sum];
    core.tp_gather = sz_processor()->ops[SZ_OP_tp_gather];
    sz_launch launch;
    sz_launch_read(&launch);
    core.local_rank = launch.local_rank;
    core.local_size = launch.local_size;
    if (!backend || backend->open(&core) != 0) return -1;
    sz_device = backend;
    return 0;
}

/* ---- facts ---- */
const char *sz_device_name(int device)
{
    if (device == SZ_CPU) return "cpu";
    return device == SZ_CUDA ? "cuda:0" : "unknown";
}

int sz_device_count(int device)
{
    if (device == SZ_CPU) return 1;
    const sz_backend *backend = device == SZ_CUDA ? load() : NULL;
    return backend && backend->device_count() >= 1 ? 1 : 0;
}

const char *sz_device_describe(int device)
{
    if (sz_device_ready(device) != 0) return NULL;
    return device == SZ_CPU ? "" : sz_device->describe();
}

int sz_device_synchronise(void) { return sz_device ? sz_device->synchronise() : 0; }

int64_t sz_device_available(int device)
{
    int64_t available = 0;
    int64_t total = 0;
    if (device == SZ_CPU || sz_device_ready(device) != 0) return -1;
    return sz_device->memory(&available, &total) == 0 ? available : -1;
}

/* ---- blocks ---- */
typedef struct {
    char *p;
    size_t bytes;
} kept_block;

static kept_block *kept;
static size_t kept_count;
static size_t kept_room;

void sz_device_trim(void)
{
    while (kept_count > 0) sz_device->release(kept[--kept_count].p);
}

/* Of two kept blocks the smaller one; of equal ones the one at the lower address: a cache that is
 * given back and made again is then where it was, and the recorded decode steps still fit. */
static bool is_better(const kept_block *a, const kept_block *b)
{
    return a->bytes != b->bytes ? a->bytes < b->bytes : a->p < b->p;
}

/* The best kept block of at least `want` bytes and at most an eighth more; NULL when there is
 * none. */
static kept_block *find_kept(size_t want)
{
    kept_block *best = NULL;
    for (size_t i = 0; i < kept_count; i++) {
        if (kept[i].bytes < want || kept[i].bytes - want > want / 8) continue;
        if (!best || is_better(&kept[i], best)) best = &kept[i];
    }
    return best;
}

void *sz_device_block(size_t *bytes)
{
    enum { UNIT = 512 };
    size_t want = (*bytes + UNIT - 1) / UNIT * UNIT;
    if (!want) want = UNIT;
    kept_block *found = find_kept(want);
    if (found) {
        void *p = found->p;
        *bytes = found->bytes;
        *found = kept[--kept_count];
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
        const size_t room = kept_room ? 2 * kept_room : 256;
        kept_block *grown = realloc(kept, room * sizeof *grown);
        if (!grown) {
            sz_device->release(p);
            return;
        }
        kept = grown;
        kept_room = room;
    }
    kept[kept_count++] = (kept_block){ p, bytes };
}

/* ---- bytes ---- */
int sz_bytes_copy(int to, void *dst, int from, const void *src, size_t bytes)
{
    if (!bytes) return 0;
    if (to == SZ_CPU && from == SZ_CPU) {
        memmove(dst, src, bytes);
        return 0;
    }
    if (to == from) return sz_device->move(dst, src, bytes);
    return to == SZ_CPU ? sz_device->to_host(dst, src, bytes)
                        : sz_device->to_device(dst, src, bytes);
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
