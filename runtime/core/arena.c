/* arena.c - the step arena of each device: bytes are handed out one after another and taken back
 * all at once, by going back to a mark. Memory comes in chunks, which are kept from step to step,
 * so that after the first steps the system is asked for nothing. Kernel workspace comes from the
 * same arenas.
 * Leaves out: which tensors are in it (scope.c).
 */
#include "memory.h"
#include "device.h"
#include <sys/mman.h>

enum { MAX_CHUNKS = 4096, DEVICE_CHUNK_BYTES = 64 << 20, HOST_CHUNK_BYTES = 1 << 30 };

typedef struct {
    char *base;
    size_t size;
    size_t most; /* bytes ever used since sz_arena_used was reset */
} arena_chunk;

typedef struct {
    arena_chunk chunks[MAX_CHUNKS];
    size_t count;
    sz_arena_place top;
} arena;

static arena arenas[SZ_DEVICES];

sz_arena_mark sz_arena_now(void)
{
    sz_arena_mark mark;
    for (int d = 0; d < SZ_DEVICES; d++) mark.top[d] = arenas[d].top;
    return mark;
}

void sz_arena_back(const sz_arena_mark *mark)
{
    for (int d = 0; d < SZ_DEVICES; d++) arenas[d].top = mark->top[d];
}

/* ---- chunks ---- */
static void *chunk_memory(int device, size_t size)
{
    if (device != SZ_CPU) {
        void *p = sz_device->allocate(size);
        if (p) return p;
        sz_device_trim();
        p = sz_device->allocate(size);
        if (p) return p;
        return sz_null("out of memory: the step arena needs %zu more bytes on %s", size,
                       sz_device_name(device));
    }
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                   -1, 0);
    if (p == MAP_FAILED) return sz_null("out of memory: the step arena needs %zu more bytes", size);
    madvise(p, size, MADV_HUGEPAGE);
    return p;
}

/* The size of the next chunk. What does not fit into the rest of a chunk leaves that rest unused,
 * and other shapes touch it another time, so few chunks are better than many. Host memory counts
 * only when it is touched, so each chunk there doubles the arena: 16 groups of the embedded
 * model, three steps, use 0.87 GiB, and 1.00 in chunks of 64 MiB. On a device a chunk is as large
 * as the largest so far. */
static size_t chunk_size(const arena *a, int device, size_t least)
{
    size_t size = device == SZ_CPU ? HOST_CHUNK_BYTES : DEVICE_CHUNK_BYTES;
    size_t sum = 0;
    for (size_t i = 0; i < a->count; i++) {
        sum += a->chunks[i].size;
        const size_t wish = device == SZ_CPU ? sum : a->chunks[i].size;
        if (wish > size) size = wish;
    }
    return size > least ? size : least;
}

/* Adds a chunk of at least that many bytes; 0, or -1 with a message. */
static int add_chunk(arena *a, int device, size_t bytes)
{
    const size_t least = (bytes + DEVICE_CHUNK_BYTES - 1) / DEVICE_CHUNK_BYTES * DEVICE_CHUNK_BYTES;
    size_t size = chunk_size(a, device, least);
    SZ_ASSERT(a->count < MAX_CHUNKS, "the arena has too many chunks");
    void *p = chunk_memory(device, size);
    if (!p && size > least) {
        size = least;
        p = chunk_memory(device, size);
    }
    if (!p) return -1;
    sz_memory_asked();
    sz_memory_hold((int64_t)size);
    a->chunks[a->count++] = (arena_chunk){ p, size, 0 };
    return 0;
}

void *sz_arena_bytes(int device, size_t bytes)
{
    if (sz_memory_fails()) return NULL;
    arena *a = &arenas[device];
    const size_t align = sz_alignment(device);
    bytes = (bytes + align - 1) & ~(align - 1);

    /* The first chunk from the top on that has room, or a new one. */
    while (a->top.chunk < a->count && a->chunks[a->top.chunk].size - a->top.used < bytes) {
        a->top.chunk++;
        a->top.used = 0;
    }
    if (a->top.chunk == a->count) {
        if (add_chunk(a, device, bytes) != 0) return NULL;
        a->top.used = 0;
    }

    arena_chunk *chunk = &a->chunks[a->top.chunk];
    void *p = chunk->base + a->top.used;
    a->top.used += bytes;
    if (a->top.used > chunk->most) chunk->most = a->top.used;
    return p;
}

/* ---- counting a step without computing it ---- */
static bool dry_run;
bool sz_is_dry_run(void) { return dry_run; }
void sz_dry_run(int on) { dry_run = on != 0; }

int64_t sz_arena_used(int reset)
{
    arena *a = &arenas[SZ_CPU];
    int64_t total = 0;
    for (size_t i = 0; i < a->count; i++) {
        total += (int64_t)a->chunks[i].most;
        if (reset) a->chunks[i].most = 0;
    }
    return total;
}

int sz_arena_release(void)
{
    arena *a = &arenas[SZ_CPU];
    if (sz_scope_depth() > 0) return sz_fail("the arena is released while a step is open");
    for (size_t i = 0; i < a->count; i++) {
        munmap(a->chunks[i].base, a->chunks[i].size);
        sz_memory_hold(-(int64_t)a->chunks[i].size);
    }
    a->count = 0;
    a->top = (sz_arena_place){ 0, 0 };
    sz_heap_trim();
    return 0;
}

/* ---- kernel workspace ---- */
enum { MAX_SCRATCH_GUARDS = 64 };
static struct {
    int device;
    char *p;
} scratch_guards[MAX_SCRATCH_GUARDS];
static int scratch_guard_count;
static sz_arena_mark scratch_mark;

static void *scratch(int device, size_t bytes)
{
    const bool guarded = sz_guards_on() && scratch_guard_count < MAX_SCRATCH_GUARDS;
    if (!guarded) return sz_arena_bytes(device, bytes ? bytes : 1);

    const size_t padded = (bytes + 15) & ~(size_t)15;
    char *p = sz_arena_bytes(device, padded + SZ_GUARD);
    if (!p) return NULL;
    sz_bytes_fill(device, p, 0xff, bytes);
    sz_guard_write(device, p + bytes);
    scratch_guards[scratch_guard_count].device = device;
    scratch_guards[scratch_guard_count].p = p + bytes;
    scratch_guard_count++;
    return p;
}

void *sz_scratch(size_t bytes) { return scratch(SZ_CPU, bytes); }
void *sz_device_scratch(size_t bytes) { return scratch(SZ_CUDA, bytes); }

/* Checks the newest guards until `left` are left. */
static void check_guards(int left)
{
    while (scratch_guard_count > left) {
        scratch_guard_count--;
        sz_guard_check(scratch_guards[scratch_guard_count].device,
                       scratch_guards[scratch_guard_count].p);
    }
}

void sz_scratch_begin(void) { scratch_mark = sz_arena_now(); }

void sz_scratch_end(void)
{
    sz_arena_back(&scratch_mark);
    check_guards(0);
}

sz_scratch_state sz_scratch_save(void)
{
    const sz_arena_place top = arenas[SZ_CPU].top;
    return (sz_scratch_state){ top.chunk, top.used, scratch_guard_count };
}

void sz_scratch_restore(sz_scratch_state s)
{
    arenas[SZ_CPU].top = (sz_arena_place){ s.chunk, s.used };
    check_guards(s.guards);
}
