/* device.cu - the device and its stream, copies through pinned memory, index tensors on the device, error messages.
 *
 * One device (the first that CUDA shows), one stream. Copies from the host go through a ring of pinned pieces, so that the
 * caller's memory is free when the call returns and the bus runs at full speed. Index tensors, and the plans that attention
 * makes of segment tables, are kept on the device by their content: both go over once a step, not once a layer. What a decode step
 * (decode.cu) takes from the host is staged: laid side by side in pinned memory, it goes over in one copy before the step's ops ask for it.
 * Leaves out: several devices, several streams, what is done by the core (arena, caching of blocks). */
#include "device.cuh"
#include <cstdarg>
#include <cstdio>
#include <cstdlib>

enum : size_t { PIECE = (size_t)4 << 20, ALIGN_STAGE = 256 };
enum { PIECES = 4, KEPT = 64, STAGED = 16 };

static const sz_backend_core *core;
static cudaStream_t stream;
static bool ready, recording;
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
void sz_cuda_recording(bool on) { recording = on; }

/* -1 with a message while a step is recorded: what follows would belong to this one step, or break the recording. */
static int unrecorded(const char *what) { return recording ? sz_fail("cuda: %s while a decode step is recorded", what) : 0; }
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
    if (unrecorded("memory is allocated") != 0) return NULL;
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

static const sz_cuda_cache_entry *staged(const void *source, size_t bytes, const int32_t key[4]);

int sz_cuda_to_device(void *dst, const void *src, size_t bytes)
{
    static const int32_t bare[4] = { 0, 0, 0, 0 };
    const sz_cuda_cache_entry *there = staged(src, bytes, bare);
    if (there) return sz_cuda_check(cudaMemcpyAsync(dst, there->device, bytes, cudaMemcpyDeviceToDevice, stream), "a copy");
    if (unrecorded("something is copied to the device") != 0) return -1;
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
    if (unrecorded("something is copied to the host") != 0) return -1;
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

int sz_cuda_synchronise(void) { return unrecorded("the device is waited for") != 0 ? -1 : sz_cuda_check(cudaStreamSynchronize(stream), "waiting for the device"); }

/* ---- a step's tables ---- */
struct staged_entry {
    sz_cuda_cache_entry plan;              /* first: a plan is its entry */
    int32_t key[4];
    const void *source;             /* of this tensor's bytes, which are there as long as the step */
    size_t source_bytes, at;
};
static struct {
    char *host, *device;
    size_t room, used;
    staged_entry entry[STAGED];
    int count;
    enum { CLOSED, OPEN, SENT } state;
} stage;

static const sz_cuda_cache_entry *staged(const void *source, size_t bytes, const int32_t key[4])
{
    for (staged_entry *e = stage.entry; stage.state == stage.SENT && e < stage.entry + stage.count; e++)
        if (e->source == source && e->source_bytes == bytes && memcmp(e->key, key, sizeof e->key) == 0) return &e->plan;
    return NULL;
}

/* The stage with room for so many bytes. What is in it stays, on the host. */
static int stage_grow(size_t bytes)
{
    if (bytes <= stage.room) return 0;
    size_t room = stage.room ? stage.room : (size_t)1 << 20;
    while (room < bytes) room *= 2;
    char *host = NULL, *device = (char *)sz_cuda_allocate(room);
    if (!device || sz_cuda_check(cudaHostAlloc(&host, room, cudaHostAllocDefault), "pinned memory") != 0) {
        sz_cuda_release(device);
        return -1;
    }
    if (stage.used) memcpy(host, stage.host, stage.used);
    if (stage.host) cudaFreeHost(stage.host);
    sz_cuda_release(stage.device);
    stage.host = host;
    stage.device = device;
    stage.room = room;
    return 0;
}

/* The next `bytes` of the stage; (size_t)-1 with a message. */
static size_t stage_take(size_t bytes)
{
    size_t at = (stage.used + ALIGN_STAGE - 1) / ALIGN_STAGE * ALIGN_STAGE;
    if (stage_grow(at + bytes) != 0) return (size_t)-1;
    stage.used = at + bytes;
    return at;
}

static staged_entry *stage_entry(const void *source, size_t bytes, const int32_t key[4])
{
    if (stage.count == STAGED) return (staged_entry *)sz_null("cuda: a step has more than %d tables", (int)STAGED);
    staged_entry *e = &stage.entry[stage.count++];
    memset(e, 0, sizeof *e);
    memcpy(e->key, key, sizeof e->key);
    e->source = source;
    e->source_bytes = bytes;
    return e;
}

static bool is_staged(const sz_cuda_cache_entry *p) { return (const char *)p >= (const char *)stage.entry && (const char *)p < (const char *)(stage.entry + STAGED); }

void sz_cuda_stage_open(void)
{
    stage.used = 0;
    stage.count = 0;
    stage.state = stage.OPEN;
}

int sz_cuda_stage_tensor(const sz_tensor *t)
{
    sz_cuda_cache_entry *p = sz_cuda_cache_get(t, 0, 0, 0, 0);
    return p ? sz_cuda_cache_fill(p, t->data, sz_bytes(t)) : -1;
}

char *sz_cuda_stage_bytes(size_t bytes, size_t *at)
{
    *at = stage_take(bytes);
    return *at == (size_t)-1 ? NULL : stage.host + *at;
}

int sz_cuda_stage_send(size_t back, sz_cuda_stage *to)
{
    const size_t bytes = stage.used, results = stage_take(back);
    if (results == (size_t)-1) return -1;
    for (int i = 0; i < stage.count; i++) stage.entry[i].plan.device = stage.device + stage.entry[i].at;
    *to = sz_cuda_stage{ stage.device, stage.host + results, stage.device + results, bytes };
    stage.state = stage.SENT;
    return sz_cuda_check(cudaMemcpyAsync(stage.device, stage.host, bytes, cudaMemcpyHostToDevice, stream), "a copy to the device");
}

void sz_cuda_stage_close(void) { stage.state = stage.CLOSED; }

/* ---- index tensors, and what is made of them ---- */
struct kept_entry {
    sz_cuda_cache_entry plan;              /* first: a plan is its entry */
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
sz_cuda_cache_entry *sz_cuda_cache_get(const sz_tensor *t, int32_t kind, int32_t x, int32_t y, int32_t z)
{
    const int32_t key[4] = { kind, x, y, z };
    if (stage.state == stage.OPEN) return (sz_cuda_cache_entry *)stage_entry(t->data, sz_bytes(t), key);
    sz_cuda_cache_entry *there = (sz_cuda_cache_entry *)staged(t->data, sz_bytes(t), key);
    if (there) return there;
    if (unrecorded("another table is used") != 0) return NULL;
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
        if (!e->content) return (sz_cuda_cache_entry *)sz_null("out of memory");
    }
    memcpy(e->key, key, sizeof key);
    memcpy(e->content, t->data, sz_bytes(t));
    e->numel = t->numel;
    e->used = ++kept_clock;
    return &e->plan;
}

int sz_cuda_cache_fill(sz_cuda_cache_entry *plan, const void *host, size_t bytes)
{
    if (is_staged(plan)) {
        staged_entry *s = (staged_entry *)plan;
        s->at = stage_take(bytes);
        if (s->at == (size_t)-1) return -1;
        memcpy(stage.host + s->at, host, bytes);
        return 0;
    }
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
    sz_cuda_cache_entry *p = sz_cuda_cache_get(t, 0, 0, 0, 0);
    return p && (p->device || sz_cuda_cache_fill(p, t->data, sz_bytes(t)) == 0) ? (const int32_t *)p->device : NULL;
}
