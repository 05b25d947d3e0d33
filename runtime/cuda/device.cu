/* device.cu - the device and its stream, error messages, memory, copies through pinned memory, and
 * the cache of index tensors on the device.
 *
 * A process has one device and one stream of work. Of several ranks on a machine each takes the
 * device of its number among them, as far as CUDA_VISIBLE_DEVICES shows devices. Copies from the
 * host go through a ring of pinned chunks, so that the caller's memory is free when the call
 * returns and the bus runs at full speed. Index tensors, and the schedules that attention derives
 * from segment tables, are cached on the device by their content, so both are sent once in a step
 * and not once in a layer. stage.cu collects what a decode step takes from the host.
 * Leaves out: several devices; several streams; what the core does (arena, caching of blocks). */
#include "links.cuh"
#include "stage.cuh"
#include <cstdarg>
#include <cstdio>
#include <cstdlib>

enum : size_t { CHUNK = (size_t)4 << 20, ALIGNMENT = 256 };
enum { CHUNKS = 4, CACHED = 64 };

static const sz_backend_core *core;
static cudaStream_t stream;
static bool ready;
static int processors = 1;
static int own_device;

/* ---- messages ---- */
/* These have the core's names. They call the core through its table, because this library refers
 * to no symbol of the core. */
int sz_fail(const char *format, ...)
{
    char text[1024];
    va_list ap;
    va_start(ap, format);
    vsnprintf(text, sizeof text, format, ap);
    va_end(ap);
    if (core) return core->fail(text);
    fprintf(stderr, "%s\n", text);
    return -1;
}

void *sz_null(const char *format, ...)
{
    char text[1024];
    va_list ap;
    va_start(ap, format);
    vsnprintf(text, sizeof text, format, ap);
    va_end(ap);
    sz_fail("%s", text);
    return NULL;
}

void sz_panic(const char *file, int line, const char *what)
{
    fprintf(stderr, "segzero: broken invariant at %s:%d: %s\n", file, line, what);
    abort();
}

int sz_cuda_check(cudaError_t e, const char *what)
{
    if (e == cudaSuccess) return 0;
    return sz_fail("cuda: %s: %s", what, cudaGetErrorString(e));
}

int sz_cuda_launched(const char *op)
{
    cudaError_t e = cudaGetLastError();
    if (e == cudaSuccess) return 0;
    return sz_fail("%s: cuda: %s", op, cudaGetErrorString(e));
}

const sz_backend_core *sz_cuda_core(void) { return core; }
cudaStream_t sz_cuda_stream(void) { return stream; }
int sz_cuda_processors(void) { return processors; }

/* ---- opening ---- */
int sz_cuda_count(void)
{
    int n = 0;
    if (cudaGetDeviceCount(&n) != cudaSuccess) {
        cudaGetLastError();
        return 0;
    }
    return n;
}

/* The ring of pinned chunks. A chunk may be reused once the event after its last copy has passed.
 * */
static struct {
    char *bytes;
    size_t used;
    cudaEvent_t free;
} ring[CHUNKS];
static int ring_current;

static int make_ring(void)
{
    for (int i = 0; i < CHUNKS; i++) {
        cudaError_t e = cudaHostAlloc(&ring[i].bytes, CHUNK, cudaHostAllocDefault);
        if (sz_cuda_check(e, "pinned memory") != 0) return -1;
        e = cudaEventCreateWithFlags(&ring[i].free, cudaEventDisableTiming);
        if (sz_cuda_check(e, "an event") != 0) return -1;
    }
    return 0;
}

/* The device of this rank, by its number among the ranks of this machine. A launcher may instead
 * show each rank a device of its own; then there is one. */
static int choose_device(int count, int *device)
{
    const int number = core ? core->local_rank : 0;
    const int size = core ? core->local_size : 0;
    const int ranks = size > number ? size : number + 1;
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    *device = number % count;
    if (ranks <= count) return 0;
    if (count == 1 && visible && *visible) return 0; /* comm/nccl.c compares the ranks' devices */
    if (sz_cuda_env_is("SEGZERO_SHARE_DEVICE", '1')) return 0;
    return sz_fail("cuda: %d ranks on this machine and %d %s: start one rank for each device, or "
                   "set SEGZERO_SHARE_DEVICE=1 to let ranks share one",
                   ranks, count, count == 1 ? "device" : "devices");
}

int sz_cuda_open(const sz_backend_core *from)
{
    core = from;
    if (ready) return 0;

    /* Is there a device? */
    int n = 0;
    cudaError_t e = cudaGetDeviceCount(&n);
    if (e == cudaErrorInsufficientDriver) {
        cudaGetLastError();
        return sz_fail("device cuda: no driver, or one that is older than the CUDA this was built "
                       "with");
    }
    if (e == cudaErrorNoDevice || (e == cudaSuccess && n == 0)) {
        cudaGetLastError();
        return sz_fail("device cuda: there is none, or CUDA_VISIBLE_DEVICES hides it");
    }
    if (sz_cuda_check(e, "counting devices") != 0) return -1;

    /* Set up this rank's. */
    if (choose_device(n, &own_device) != 0) return -1;
    if (sz_cuda_check(cudaSetDevice(own_device), "opening the device") != 0) return -1;
    e = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    if (sz_cuda_check(e, "a stream") != 0) return -1;
    e = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, own_device);
    if (sz_cuda_check(e, "the device") != 0) return -1;
    if (make_ring() != 0) return -1;
    ready = true;
    return 0;
}

const char *sz_cuda_describe(void)
{
    static char text[512];
    cudaDeviceProp p;
    int driver = 0;
    int runtime = 0;
    size_t available = 0;
    size_t total = 0;
    if (cudaGetDeviceProperties(&p, own_device) != cudaSuccess ||
        cudaDriverGetVersion(&driver) != cudaSuccess ||
        cudaRuntimeGetVersion(&runtime) != cudaSuccess ||
        cudaMemGetInfo(&available, &total) != cudaSuccess) {
        snprintf(text, sizeof text, "device: %s\n", cudaGetErrorString(cudaGetLastError()));
        return text;
    }
    snprintf(text, sizeof text,
             "device: %d, %s, compute capability %d.%d, %d multiprocessors\n"
             "memory: %.1f of %.1f GiB free\n"
             "driver: CUDA %d.%d\n"
             "runtime: CUDA %d.%d\n",
             own_device, p.name, p.major, p.minor, p.multiProcessorCount,
             (double)available / (1 << 30), (double)total / (1 << 30), driver / 1000,
             driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    return text;
}

int sz_cuda_memory(int64_t *available, int64_t *total)
{
    size_t a = 0;
    size_t t = 0;
    if (sz_cuda_check(cudaMemGetInfo(&a, &t), "memory figures") != 0) return -1;
    *available = (int64_t)a;
    *total = (int64_t)t;
    return 0;
}

/* ---- memory ---- */
void *sz_cuda_allocate(size_t bytes)
{
    void *p = NULL;
    if (sz_cuda_not_recording("memory is allocated") != 0) return NULL;
    cudaError_t e = cudaMalloc(&p, bytes ? bytes : 1);
    if (e == cudaSuccess) return p;
    cudaGetLastError();
    return sz_null("cuda: %s: %zu bytes of device memory", cudaGetErrorString(e), bytes);
}

/* cudaFree waits for the device, so no running kernel loses its memory; but it would wait for ever
 * for a rank that is gone. */
void sz_cuda_release(void *p)
{
    if (p && sz_cuda_wait(NULL, "memory is released") == 0) cudaFree(p);
}

/* Without the core (in tests of single kernel files) workspace is allocated and never freed. */
void *sz_cuda_scratch(size_t bytes)
{
    return core ? core->scratch(bytes) : sz_cuda_allocate(bytes);
}

/* ---- copies ---- */
/* Returns room for up to `bytes` bytes in the ring; *got says how many, at least one. NULL with a
 * message. */
static char *ring_room(size_t bytes, size_t *got)
{
    size_t used = (ring[ring_current].used + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    if (used >= CHUNK) {
        /* The chunk is full: go on to the next one, once its copies are done. */
        cudaError_t e = cudaEventRecord(ring[ring_current].free, stream);
        if (sz_cuda_check(e, "a copy") != 0) return NULL;
        ring_current = (ring_current + 1) % CHUNKS;
        if (sz_cuda_wait(ring[ring_current].free, "a copy") != 0) return NULL;
        used = 0;
    }
    *got = bytes < CHUNK - used ? bytes : CHUNK - used;
    ring[ring_current].used = used + *got;
    return ring[ring_current].bytes + used;
}

/* A copy on the device. */
static int copy(void *dst, const void *src, size_t bytes)
{
    cudaError_t e = cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToDevice, stream);
    return sz_cuda_check(e, "a copy");
}

int sz_cuda_to_device(void *dst, const void *src, size_t bytes)
{
    static const int32_t no_kind[4] = { 0, 0, 0, 0 };
    const sz_cuda_cache_entry *staged = sz_cuda_staged(src, bytes, no_kind);
    if (staged) return copy(dst, staged->device, bytes);
    if (sz_cuda_not_recording("something is copied to the device") != 0) return -1;
    while (bytes > 0) {
        size_t n;
        char *chunk = ring_room(bytes, &n);
        if (!chunk) return -1;
        memcpy(chunk, src, n);
        cudaError_t e = cudaMemcpyAsync(dst, chunk, n, cudaMemcpyHostToDevice, stream);
        if (sz_cuda_check(e, "a copy to the device") != 0) return -1;
        dst = (char *)dst + n;
        src = (const char *)src + n;
        bytes -= n;
    }
    return 0;
}

int sz_cuda_to_host(void *dst, const void *src, size_t bytes)
{
    if (sz_cuda_not_recording("something is copied to the host") != 0) return -1;
    while (bytes > 0) {
        size_t n;
        char *chunk = ring_room(bytes, &n);
        if (!chunk) return -1;
        cudaError_t e = cudaMemcpyAsync(chunk, src, n, cudaMemcpyDeviceToHost, stream);
        if (sz_cuda_check(e, "a copy to the host") != 0) return -1;
        if (sz_cuda_wait(NULL, "a copy to the host") != 0) return -1;
        memcpy(dst, chunk, n);
        dst = (char *)dst + n;
        src = (const char *)src + n;
        bytes -= n;
    }
    return 0;
}

/* Copies overlapping bytes by way of other memory. */
static int move_through(void *dst, const void *src, size_t bytes)
{
    void *other = sz_cuda_allocate(bytes);
    if (!other) return -1;
    int rc = copy(other, src, bytes);
    if (rc == 0) rc = copy(dst, other, bytes);
    sz_cuda_release(other);
    return rc;
}

int sz_cuda_move(void *dst, const void *src, size_t bytes)
{
    const char *from = (const char *)src;
    char *to = (char *)dst;
    const size_t distance = from > to ? (size_t)(from - to) : (size_t)(to - from);
    if (!bytes || !distance) return 0;
    /* Ranges overlap only when a step's result moves down in the arena. Then copy pieces that do
     * not overlap, starting at the safe end; but not too many. */
    const size_t piece = distance < bytes ? distance : bytes;
    if (piece < bytes && bytes / piece > 64) return move_through(dst, src, bytes);
    for (size_t done = 0; done < bytes; done += piece) {
        const size_t n = bytes - done < piece ? bytes - done : piece;
        const size_t at = to < from ? done : bytes - done - n;
        if (copy(to + at, from + at, n) != 0) return -1;
    }
    return 0;
}

int sz_cuda_fill(void *dst, int byte, size_t bytes)
{
    if (!bytes) return 0;
    return sz_cuda_check(cudaMemsetAsync(dst, byte, bytes, stream), "a fill");
}

int sz_cuda_synchronise(void)
{
    if (sz_cuda_not_recording("the device is waited for") != 0) return -1;
    return sz_cuda_wait(NULL, "waiting for the device");
}

/* ---- the cache of index tensors, and of what is derived from them ---- */
struct cached {
    sz_cuda_cache_entry entry; /* first, so that an entry's address is that of its struct */
    int32_t key[4];            /* kind and numbers */
    int32_t *content;          /* host copy of the tensor's elements */
    int64_t numel, room;
    void *memory; /* on the device */
    size_t bytes;
    uint64_t used; /* the clock at the last use */
};
static cached cache[CACHED];
static uint64_t cache_clock;

static bool matches(const cached *c, const sz_tensor *t, const int32_t key[4])
{
    return c->entry.device && c->numel == t->numel && memcmp(c->key, key, sizeof c->key) == 0 &&
           memcmp(c->content, t->data, sz_bytes(t)) == 0;
}

/* Tensor structs and their memory are reused, so an entry is found by content, of which the cache
 * has a host copy. An entry is evicted when 64 others have been used since; kernels that read it
 * come earlier in the stream. An entry that was never filled is not found again. */
sz_cuda_cache_entry *sz_cuda_cache_get(const sz_tensor *t, int32_t kind, int32_t x, int32_t y,
                                       int32_t z)
{
    const int32_t key[4] = { kind, x, y, z };
    if (sz_cuda_stage_is_open()) return sz_cuda_stage_entry(t->data, sz_bytes(t), key);
    sz_cuda_cache_entry *staged = sz_cuda_staged(t->data, sz_bytes(t), key);
    if (staged) return staged;
    if (sz_cuda_not_recording("another table is used") != 0) return NULL;

    /* Find it, or the least recently used one. */
    cached *oldest = cache;
    for (cached *c = cache; c < cache + CACHED; c++) {
        if (matches(c, t, key)) {
            c->used = ++cache_clock;
            return &c->entry;
        }
        if (c->used < oldest->used) oldest = c;
    }

    /* Reuse that for the new key. */
    memset(&oldest->entry, 0, sizeof oldest->entry);
    if (oldest->room < t->numel || !oldest->content) {
        free(oldest->content);
        oldest->room = t->numel < 256 ? 256 : t->numel;
        oldest->content = (int32_t *)malloc((size_t)oldest->room * 4);
        if (!oldest->content) return (sz_cuda_cache_entry *)sz_null("out of memory");
    }
    memcpy(oldest->key, key, sizeof key);
    memcpy(oldest->content, t->data, sz_bytes(t));
    oldest->numel = t->numel;
    oldest->used = ++cache_clock;
    return &oldest->entry;
}

int sz_cuda_cache_fill(sz_cuda_cache_entry *entry, const void *host, size_t bytes)
{
    if (sz_cuda_is_staged(entry)) return sz_cuda_stage_fill(entry, host, bytes);
    cached *c = (cached *)entry;
    if (c->bytes < bytes || !c->memory) {
        sz_cuda_release(c->memory);
        c->bytes = bytes < 1024 ? 1024 : bytes;
        c->memory = sz_cuda_allocate(c->bytes);
        if (!c->memory) return -1;
    }
    if (bytes && sz_cuda_to_device(c->memory, host, bytes) != 0) return -1;
    entry->device = (const char *)c->memory;
    return 0;
}

const int32_t *sz_cuda_indices(const sz_tensor *t)
{
    sz_cuda_cache_entry *entry = sz_cuda_cache_get(t, 0, 0, 0, 0);
    if (!entry) return NULL;
    if (!entry->device && sz_cuda_cache_fill(entry, t->data, sz_bytes(t)) != 0) return NULL;
    return (const int32_t *)entry->device;
}
