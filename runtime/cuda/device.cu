/* device.cu - the device and its stream, copies through pinned memory, index tensors on the device, error messages.
 *
 * One device (the first that CUDA shows), one stream. Copies from the host go through a ring of pinned pieces, so that the
 * caller's memory is free when the call returns and the bus runs at full speed. Index tensors, and the plans that attention
 * makes of segment tables, are kept on the device by their content: both go over once a step, not once a layer.
 * Leaves out: several devices, several streams, what is done by the core (arena, caching of blocks). */
#include "device.cuh"
#include <cstdarg>
#include <cstdio>
#include <cstdlib>

enum : size_t { PIECE = (size_t)4 << 20, ALIGN_STAGE = 256 };
enum { PIECES = 4, KEPT = 64 };

static const sz_backend_core *core;
static cudaStream_t stream;
static bool ready;
static int processors = 1;
static struct { char *bytes; size_t used; cudaEvent_t free; } ring[PIECES];
static int ring_at;

/* ---- messages: the core's own functions by another road, because this library refers to no symbol of the core ---- */
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
    return e == cudaSuccess ? 0 : sz_fail("cuda: %s: %s", what, cudaGetErrorString(e));
}

int sz_cuda_launched(const char *op)
{
    cudaError_t e = cudaGetLastError();
    return e == cudaSuccess ? 0 : sz_fail("%s: cuda: %s", op, cudaGetErrorString(e));
}

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

int sz_cuda_open(const sz_backend_core *from)
{
    core = from;
    if (ready) return 0;
    int n = 0;
    cudaError_t e = cudaGetDeviceCount(&n);
    if (e == cudaErrorInsufficientDriver) {
        cudaGetLastError();
        return sz_fail("cuda: no driver, or one that is older than the CUDA this was built with");
    }
    if (e == cudaErrorNoDevice || (e == cudaSuccess && n == 0)) {
        cudaGetLastError();
        return sz_fail("cuda: no device");
    }
    if (sz_cuda_check(e, "counting devices") != 0 || sz_cuda_check(cudaSetDevice(0), "opening device 0") != 0
        || sz_cuda_check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "a stream") != 0
        || sz_cuda_check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, 0), "device 0") != 0)
        return -1;
    for (int i = 0; i < PIECES; i++)
        if (sz_cuda_check(cudaHostAlloc(&ring[i].bytes, PIECE, cudaHostAllocDefault), "pinned memory") != 0
            || sz_cuda_check(cudaEventCreateWithFlags(&ring[i].free, cudaEventDisableTiming), "an event") != 0)
            return -1;
    ready = true;
    return 0;
}

const char *sz_cuda_describe(void)
{
    static char text[512];
    cudaDeviceProp p;
    int driver = 0, runtime = 0;
    size_t available = 0, total = 0;
    if (cudaGetDeviceProperties(&p, 0) != cudaSuccess || cudaDriverGetVersion(&driver) != cudaSuccess
        || cudaRuntimeGetVersion(&runtime) != cudaSuccess || cudaMemGetInfo(&available, &total) != cudaSuccess) {
        snprintf(text, sizeof text, "device: %s\n", cudaGetErrorString(cudaGetLastError()));
        return text;
    }
    snprintf(text, sizeof text, "device: %s, compute capability %d.%d, %d multiprocessors\nmemory: %.1f of %.1f GiB free\n"
             "driver: CUDA %d.%d\nruntime: CUDA %d.%d\n", p.name, p.major, p.minor, p.multiProcessorCount,
             (double)available / (1 << 30), (double)total / (1 << 30),
             driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    return text;
}

int sz_cuda_memory(int64_t *available, int64_t *total)
{
    size_t a = 0, t = 0;
    if (sz_cuda_check(cudaMemGetInfo(&a, &t), "memory figures") != 0) return -1;
    *available = (int64_t)a;
    *total = (int64_t)t;
    return 0;
}

/* ---- memory ---- */
void *sz_cuda_allocate(size_t bytes)
{
    void *p = NULL;
    cudaError_t e = cudaMalloc(&p, bytes ? bytes : 1);
    if (e == cudaSuccess) return p;
    cudaGetLastError();
    return sz_null("cuda: %s: %zu bytes of device memory", cudaGetErrorString(e), bytes);
}

/* cudaFree waits for the device, so nothing that still runs loses its memory. */
void sz_cuda_release(void *p) { cudaFree(p); }

/* Without the core (a test of some kernel files) workspace is simply taken and never given back. */
void *sz_cuda_scratch(size_t bytes) { return core ? core->scratch(bytes) : sz_cuda_allocate(bytes); }

/* ---- copies ---- */
/* Room for up to bytes in the ring, at least one byte; *got says how much. */
static char *ring_room(size_t bytes, size_t *got)
{
    size_t used = (ring[ring_at].used + ALIGN_STAGE - 1) / ALIGN_STAGE * ALIGN_STAGE;
    if (used >= PIECE) {
        if (sz_cuda_check(cudaEventRecord(ring[ring_at].free, stream), "a copy") != 0) return NULL;
        ring_at = (ring_at + 1) % PIECES;
        if (sz_cuda_check(cudaEventSynchronize(ring[ring_at].free), "a copy") != 0) return NULL;
        used = 0;
    }
    *got = bytes < PIECE - used ? bytes : PIECE - used;
    ring[ring_at].used = used + *got;
    return ring[ring_at].bytes + used;
}

int sz_cuda_to_device(void *dst, const void *src, size_t bytes)
{
    while (bytes > 0) {
        size_t n;
        char *stage = ring_room(bytes, &n);
        if (!stage) return -1;
        memcpy(stage, src, n);
        if (sz_cuda_check(cudaMemcpyAsync(dst, stage, n, cudaMemcpyHostToDevice, stream), "a copy to the device") != 0) return -1;
        dst = (char *)dst + n;
        src = (const char *)src + n;
        bytes -= n;
    }
    return 0;
}

int sz_cuda_to_host(void *dst, const void *src, size_t bytes)
{
    while (bytes > 0) {
        size_t n;
        char *stage = ring_room(bytes, &n);
        if (!stage || sz_cuda_check(cudaMemcpyAsync(stage, src, n, cudaMemcpyDeviceToHost, stream), "a copy to the host") != 0
            || sz_cuda_check(cudaStreamSynchronize(stream), "a copy to the host") != 0)
            return -1;
        memcpy(dst, stage, n);
        dst = (char *)dst + n;
        src = (const char *)src + n;
        bytes -= n;
    }
    return 0;
}

int sz_cuda_move(void *dst, const void *src, size_t bytes)
{
    const char *from = (const char *)src;
    char *to = (char *)dst;
    size_t apart = from > to ? (size_t)(from - to) : (size_t)(to - from);
    if (!bytes || !apart) return 0;
    /* Only a step's result that moves down in the arena overlaps itself: then in pieces that do not, from the safe end. */
    size_t piece = apart < bytes ? apart : bytes;
    for (size_t done = 0; done < bytes; done += piece) {
        size_t n = bytes - done < piece ? bytes - done : piece, at = to < from ? done : bytes - done - n;
        if (piece < bytes && bytes / piece > 64) {
            /* Nearly the same place: through other memory. */
            void *other = sz_cuda_allocate(bytes);
            if (!other) return -1;
            int rc = sz_cuda_check(cudaMemcpyAsync(other, src, bytes, cudaMemcpyDeviceToDevice, stream), "a copy") == 0
                  && sz_cuda_check(cudaMemcpyAsync(dst, other, bytes, cudaMemcpyDeviceToDevice, stream), "a copy") == 0 ? 0 : -1;
            cudaStreamSynchronize(stream);
            sz_cuda_release(other);
            return rc;
        }
        if (sz_cuda_check(cudaMemcpyAsync(to + at, from + at, n, cudaMemcpyDeviceToDevice, stream), "a copy") != 0) return -1;
    }
    return 0;
}

int sz_cuda_fill(void *dst, int byte, size_t bytes)
{
    return bytes ? sz_cuda_check(cudaMemsetAsync(dst, byte, bytes, stream), "a fill") : 0;
}

int sz_cuda_synchronise(void) { return sz_cuda_check(cudaStreamSynchronize(stream), "waiting for the device"); }

/* ---- index tensors, and what is made of them ---- */
struct kept_entry {
    sz_cuda_plan plan;              /* first: a plan is its entry */
    int32_t key[4], *content;
    int64_t numel, room;
    void *memory;
    size_t bytes;
    uint64_t used;
};
static kept_entry kept[KEPT];
static uint64_t kept_clock;

/* A tensor's object and bytes are reused by others, so what counts is the content, of which a host copy is kept. An entry is given
 * up 64 others later; what runs on it by then is earlier in the stream. One that was never filled is not found again. */
sz_cuda_plan *sz_cuda_plan_of(const sz_tensor *t, int32_t kind, int32_t x, int32_t y, int32_t z)
{
    const int32_t key[4] = { kind, x, y, z };
    kept_entry *e = kept;
    for (kept_entry *k = kept; k < kept + KEPT; k++) {
        if (k->plan.device && k->numel == t->numel && memcmp(k->key, key, sizeof key) == 0 && memcmp(k->content, t->data, sz_bytes(t)) == 0) {
            k->used = ++kept_clock;
            return &k->plan;
        }
        if (k->used < e->used) e = k;
    }
    memset(&e->plan, 0, sizeof e->plan);
    if (e->room < t->numel || !e->content) {
        free(e->content);
        e->room = t->numel < 256 ? 256 : t->numel;
        e->content = (int32_t *)malloc((size_t)e->room * 4);
        if (!e->content) return (sz_cuda_plan *)sz_null("out of memory");
    }
    memcpy(e->key, key, sizeof key);
    memcpy(e->content, t->data, sz_bytes(t));
    e->numel = t->numel;
    e->used = ++kept_clock;
    return &e->plan;
}

int sz_cuda_plan_fill(sz_cuda_plan *plan, const void *host, size_t bytes)
{
    kept_entry *e = (kept_entry *)plan;
    if (e->bytes < bytes || !e->memory) {
        sz_cuda_release(e->memory);
        e->bytes = bytes < 1024 ? 1024 : bytes;
        e->memory = sz_cuda_allocate(e->bytes);
        if (!e->memory) return -1;
    }
    if (bytes && sz_cuda_to_device(e->memory, host, bytes) != 0) return -1;
    plan->device = (const char *)e->memory;
    return 0;
}

const int32_t *sz_cuda_indices(const sz_tensor *t)
{
    sz_cuda_plan *p = sz_cuda_plan_of(t, 0, 0, 0, 0);
    return p && (p->device || sz_cuda_plan_fill(p, t->data, sz_bytes(t)) == 0) ? (const int32_t *)p->device : NULL;
}
