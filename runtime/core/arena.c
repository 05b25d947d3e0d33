/* arena.c - the step arena of each device: memory from which a step's tensors and kernel workspace
 * take blocks, and to which they give them back as soon as nothing needs them.
 *
 * Memory comes in chunks, which are kept from step to step, so that after the first steps the
 * system is asked for nothing. A chunk is a row of blocks, used and free ones; free neighbours are
 * one block. A new block goes into the smallest free one that it fits (the lowest of equal ones),
 * so which addresses a step gets depends on which blocks are in use, and on nothing else.
 * Leaves out: which tensors are in it (scope.c, tensor.c), workspace (scratch.c).
 */
#include "memory.h"
#include "device.h"
#include <stdlib.h>
#include <sys/mman.h>

enum { MAX_CHUNKS = 4096, DEVICE_CHUNK_BYTES = 64 << 20, HOST_CHUNK_BYTES = 1 << 30 };
enum { BINS = 48 }; /* free blocks of 2^i to 2^(i + 1) - 1 bytes are in bin i */

struct sz_arena_block {
    char *data;
    size_t bytes;
    int refs; /* 0: free */
    int8_t device;
    int chunk;
    sz_arena_block *before, *after; /* its neighbours in the chunk */
    sz_arena_block *previous,
        *next; /* of a free block: in its bin. next also links the spare ones */
};

typedef struct {
    char *base;
    size_t size;
    size_t most;    /* bytes up to the last one used since sz_arena_used was reset */
    size_t touched; /* bytes up to the last one that may have memory behind it */
    sz_arena_block *first, *last;
} arena_chunk;

typedef struct {
    arena_chunk chunks[MAX_CHUNKS];
    int count;
    sz_arena_block *bins[BINS];
    uint64_t state; /* of sz_arena_state */
} arena;

static arena arenas[SZ_DEVICES];

/* ---- block objects ---- */
static sz_arena_block *spare;

static sz_arena_block *object_new(void)
{
    enum { BATCH = 256 };
    if (!spare) {
        sz_arena_block *objects = calloc(BATCH, sizeof *objects);
        if (!objects) return sz_null("out of memory");
        sz_memory_asked();
        for (int i = 0; i < BATCH; i++) {
            objects[i].next = spare;
            spare = &objects[i];
        }
    }
    sz_arena_block *b = spare;
    spare = b->next;
    memset(b, 0, sizeof *b);
    return b;
}

static void object_free(sz_arena_block *b)
{
    b->next = spare;
    spare = b;
}

/* ---- bins of free blocks ---- */
static int bin_of(size_t bytes) { return 63 - __builtin_clzll((unsigned long long)bytes); }

static void bin_put(sz_arena_block *b)
{
    sz_arena_block **first = &arenas[b->device].bins[bin_of(b->bytes)];
    b->previous = NULL;
    b->next = *first;
    if (*first) (*first)->previous = b;
    *first = b;
}

static void bin_remove(sz_arena_block *b)
{
    if (b->previous) b->previous->next = b->next;
    else arenas[b->device].bins[bin_of(b->bytes)] = b->next;
    if (b->next) b->next->previous = b->previous;
}

/* Whether a goes before b: the smaller one, or the one in the earlier chunk or place. */
static bool fits_better(const sz_arena_block *a, const sz_arena_block *b)
{
    if (a->bytes != b->bytes) return a->bytes < b->bytes;
    if (a->chunk != b->chunk) return a->chunk < b->chunk;
    return a->data < b->data;
}

/* The free block that these bytes go into; NULL when none is large enough. */
static sz_arena_block *find(const arena *a, size_t bytes)
{
    sz_arena_block *best = NULL;
    for (int i = bin_of(bytes); i < BINS && !best; i++)
        for (sz_arena_block *b = a->bins[i]; b; b = b->next)
            if (b->bytes >= bytes && (!best || fits_better(b, best))) best = b;
    return best;
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

/* The size of the next chunk. A block is in one chunk, so few chunks are better than many. Host
 * memory counts only when it is touched, so each chunk there doubles the arena. On a device a
 * chunk is as large as the largest so far. */
static size_t chunk_size(const arena *a, int device, size_t least)
{
    size_t size = device == SZ_CPU ? HOST_CHUNK_BYTES : DEVICE_CHUNK_BYTES;
    size_t sum = 0;
    for (int i = 0; i < a->count; i++) {
        sum += a->chunks[i].size;
        const size_t wish = device == SZ_CPU ? sum : a->chunks[i].size;
        if (wish > size) size = wish;
    }
    return size > least ? size : least;
}

/* A hash of a block or chunk, for the state. */
static uint64_t mixed(const void *p, size_t bytes)
{
    uint64_t h = (uint64_t)(uintptr_t)p * UINT64_C(0x9e3779b97f4a7c15);
    h = (h ^ h >> 32 ^ (uint64_t)bytes) * UINT64_C(0xbf58476d1ce4e5b9);
    return h ^ h >> 29;
}

/* Adds a chunk of at least that many bytes, and returns its only block; NULL with a message. */
static sz_arena_block *add_chunk(arena *a, int device, size_t bytes)
{
    const size_t least = (bytes + DEVICE_CHUNK_BYTES - 1) / DEVICE_CHUNK_BYTES * DEVICE_CHUNK_BYTES;
    size_t size = chunk_size(a, device, least);
    SZ_ASSERT(a->count < MAX_CHUNKS, "the arena has too many chunks");
    sz_arena_block *b = object_new();
    if (!b) return NULL;
    void *p = chunk_memory(device, size);
    if (!p && size > least) {
        size = least;
        p = chunk_memory(device, size);
    }
    if (!p) {
        object_free(b);
        return NULL;
    }
    sz_memory_asked();
    sz_memory_hold((int64_t)size);
    *b = (sz_arena_block){ .data = p, .bytes = size, .device = (int8_t)device, .chunk = a->count };
    a->chunks[a->count++] = (arena_chunk){ .base = p, .size = size, .first = b, .last = b };
    a->state ^= mixed(p, size);
    bin_put(b);
    return b;
}

/* ---- blocks ---- */
void *sz_arena_data(const sz_arena_block *b) { return b->data; }
size_t sz_arena_bytes(const sz_arena_block *b) { return b->bytes; }
uint64_t sz_arena_state(int device) { return arenas[device].state; }

/* Leaves b with these bytes; the rest of it becomes a free block. Where no object for that is to be
 * had, b keeps the rest. */
static void split(sz_arena_block *b, size_t bytes)
{
    if (b->bytes == bytes) return;
    sz_arena_block *rest = object_new();
    if (!rest) return;
    *rest = (sz_arena_block){ .data = b->data + bytes,
                              .bytes = b->bytes - bytes,
                              .device = b->device,
                              .chunk = b->chunk,
                              .before = b,
                              .after = b->after };
    if (b->after) b->after->before = rest;
    else arenas[b->device].chunks[b->chunk].last = rest;
    b->after = rest;
    b->bytes = bytes;
    bin_put(rest);
}

sz_arena_block *sz_arena_take(int device, size_t bytes)
{
    if (sz_memory_fails()) return NULL;
    arena *a = &arenas[device];
    const size_t align = sz_alignment(device);
    bytes = (bytes + align - 1) & ~(align - 1);
    if (bytes == 0) bytes = align;
    sz_arena_block *b = find(a, bytes);
    if (!b) b = add_chunk(a, device, bytes);
    if (!b) return NULL;

    bin_remove(b);
    split(b, bytes);
    b->refs = 1;
    arena_chunk *chunk = &a->chunks[b->chunk];
    const size_t end = (size_t)(b->data - chunk->base) + b->bytes;
    if (end > chunk->most) chunk->most = end;
    if (end > chunk->touched) chunk->touched = end;
    a->state ^= mixed(b->data, b->bytes);
    return b;
}

sz_arena_block *sz_arena_retain(sz_arena_block *b)
{
    if (b) b->refs++;
    return b;
}

/* b takes in its neighbour after it; neither is in a bin. */
static void take_in(sz_arena_block *b)
{
    sz_arena_block *gone = b->after;
    b->bytes += gone->bytes;
    b->after = gone->after;
    if (b->after) b->after->before = b;
    else arenas[b->device].chunks[b->chunk].last = b;
    object_free(gone);
}

void sz_arena_release_block(sz_arena_block *b)
{
    if (!b || --b->refs > 0) return;
    SZ_ASSERT(b->refs == 0, "a block of the arena is released more often than retained");
    arenas[b->device].state ^= mixed(b->data, b->bytes);
    /* With guards on, code that still reads the block reads NaN. */
    if (sz_guards_on()) sz_bytes_fill(b->device, b->data, 0xff, b->bytes);
    if (b->after && b->after->refs == 0) {
        bin_remove(b->after);
        take_in(b);
    }
    if (b->before && b->before->refs == 0) {
        b = b->before;
        bin_remove(b);
        take_in(b);
    }
    bin_put(b);
}

/* ---- memory that a step no longer needs ---- */
/* Activations go from the end of a chunk to its beginning while a backward pass walks over them. */
void sz_arena_trim(void)
{
    enum { WORTH = 256 << 20, KEPT = 128 << 20 };
    arena *a = &arenas[SZ_CPU];
    for (int i = 0; i < a->count; i++) {
        arena_chunk *chunk = &a->chunks[i];
        const sz_arena_block *last = chunk->last;
        const size_t from = (size_t)(last->data - chunk->base) + KEPT;
        if (last->refs > 0 || chunk->touched < from + WORTH - KEPT) continue;
        sz_unload_pages(chunk->base + from, chunk->touched - from);
        chunk->touched = from;
    }
}

/* ---- counting a step without computing it ---- */
static bool dry_run;
bool sz_is_dry_run(void) { return dry_run; }
void sz_dry_run(int on) { dry_run = on != 0; }

int64_t sz_arena_used(int reset)
{
    arena *a = &arenas[SZ_CPU];
    int64_t total = 0;
    for (int i = 0; i < a->count; i++) {
        total += (int64_t)a->chunks[i].most;
        if (reset) a->chunks[i].most = 0;
    }
    return total;
}

int sz_arena_release(void)
{
    arena *a = &arenas[SZ_CPU];
    if (sz_scope_depth() > 0) return sz_fail("the arena is released while a step is open");
    for (int i = 0; i < a->count; i++) {
        const arena_chunk *chunk = &a->chunks[i];
        SZ_ASSERT(chunk->first->bytes == chunk->size && chunk->first->refs == 0,
                  "a block of the arena outlives its step");
        bin_remove(chunk->first);
        object_free(chunk->first);
        munmap(chunk->base, chunk->size);
        sz_memory_hold(-(int64_t)chunk->size);
        a->state ^= mixed(chunk->base, chunk->size);
    }
    a->count = 0;
    sz_heap_trim();
    return 0;
}
