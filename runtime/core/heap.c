/* heap.c - heap blocks: the bytes of tensors that outlive a step.
 *
 * A step makes the same few heap tensors as the one before (patches, positions). Freed blocks in
 * host memory are therefore kept and given to later tensors, and the system is asked for nothing.
 * At most a 32nd of the machine's memory is kept, so that a released model really frees its
 * memory. With guards on no block is kept: memory that was freed must not be written to.
 * Leaves out: blocks on a device (device.c keeps those), reference counts (storage.c).
 */
#include "memory.h"
#include "device.h"
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

struct sz_heap_block {
    int device;
    bool guarded; /* SZ_GUARD bytes of pattern before the data and after them */
    char *base;
    size_t bytes; /* of the data and guards, aligned */
    size_t room;  /* of the memory at base: bytes or more */
    size_t data_bytes;
};

/* ---- kept blocks ---- */
enum { KEPT_BLOCKS = 256 };
static struct {
    char *base;
    size_t bytes;
} kept_blocks[KEPT_BLOCKS];
static int kept_count;
static size_t kept_bytes;

/* The most bytes that are kept. */
static size_t kept_limit(void)
{
    static size_t limit;
    if (!limit) limit = (size_t)sysconf(_SC_PHYS_PAGES) / 32 * (size_t)sysconf(_SC_PAGESIZE);
    return limit;
}

/* Takes kept block i out of the list. */
static char *kept_remove(int i)
{
    char *p = kept_blocks[i].base;
    kept_bytes -= kept_blocks[i].bytes;
    kept_count--;
    memmove(&kept_blocks[i], &kept_blocks[i + 1], (size_t)(kept_count - i) * sizeof kept_blocks[0]);
    return p;
}

/* The smallest kept block of at least *bytes and at most a quarter more; NULL when there is none.
 * Sets *bytes to its size. */
static char *kept_take(size_t *bytes)
{
    const size_t most = *bytes + *bytes / 4;
    int best = -1;
    for (int i = 0; i < kept_count; i++) {
        const size_t size = kept_blocks[i].bytes;
        if (size < *bytes || size > most) continue;
        if (best < 0 || size < kept_blocks[best].bytes) best = i;
    }
    if (best < 0) return NULL;
    *bytes = kept_blocks[best].bytes;
    return kept_remove(best);
}

/* False when the block is not kept. The oldest blocks make room: they are those that no step asks
 * for. */
static bool kept_put(char *p, size_t bytes)
{
    if (sz_guards_on() || bytes > kept_limit()) return false;
    while (kept_count == KEPT_BLOCKS || bytes > kept_limit() - kept_bytes) free(kept_remove(0));
    kept_blocks[kept_count].base = p;
    kept_blocks[kept_count].bytes = bytes;
    kept_count++;
    kept_bytes += bytes;
    return true;
}

void sz_heap_trim(void)
{
    while (kept_count > 0) free(kept_remove(kept_count - 1));
}

/* ---- memory of a block ---- */
/* What is asked of the system. A small block is a power of two, so that blocks for prompts of
 * about the same length can replace each other, and no later mixture of lengths needs another
 * one. */
static size_t room_for(size_t bytes)
{
    enum { SMALL = 64 << 10 };
    if (bytes >= SMALL) return bytes;
    size_t room = 64;
    while (room < bytes) room *= 2;
    return room;
}

/* A large block has large pages. Gradients are given back and touched again in every step, and a
 * pass that does little but fill 1.2 GB of them takes 1.6 s, and 2.4 s in small pages. Weights are
 * read faster: of 2 to 5 MB of them in 4 bits, 28 GB/s, and 22 in small pages. */
static char *host_memory(size_t align, size_t bytes)
{
    enum { HUGE_PAGE = 2 << 20 };
    if (bytes < HUGE_PAGE) return aligned_alloc(align, bytes);
    void *p = NULL; /* aligned_alloc would want a multiple of the alignment */
    if (posix_memalign(&p, HUGE_PAGE, bytes) != 0) return NULL;
    madvise(p, bytes, MADV_HUGEPAGE);
    return p;
}

/* Finds b's memory in the kept blocks or asks the system; false when there is none. */
static bool find_host_memory(sz_heap_block *b)
{
    const size_t align = sz_alignment(SZ_CPU);
    if (!b->guarded) {
        b->room = room_for(b->bytes);
        b->base = kept_take(&b->room);
        if (b->base) return true;
    }
    sz_memory_asked();
    b->base = host_memory(align, b->room);
    if (!b->base && kept_count) {
        sz_heap_trim();
        b->base = host_memory(align, b->room);
    }
    return b->base != NULL;
}

static bool find_device_memory(sz_heap_block *b)
{
    sz_memory_asked();
    b->base = sz_device_block(&b->bytes);
    return b->base != NULL;
}

/* ---- blocks ---- */
void *sz_heap_data(const sz_heap_block *b) { return b->guarded ? b->base + SZ_GUARD : b->base; }
size_t sz_heap_bytes(const sz_heap_block *b) { return b->bytes; }

/* Guarded data are NaN, so that elements which a kernel leaves unwritten show. */
static void write_guards(const sz_heap_block *b)
{
    char *data = b->base + SZ_GUARD;
    sz_guard_write(b->device, b->base);
    sz_bytes_fill(b->device, data, 0xff, b->data_bytes);
    sz_guard_write(b->device, data + b->data_bytes);
}

sz_heap_block *sz_heap_new(int device, size_t data_bytes)
{
    if (sz_memory_fails()) return NULL;
    sz_heap_block *b = malloc(sizeof *b);
    if (!b) return sz_null("out of memory: a tensor of %zu bytes", data_bytes);

    const size_t align = sz_alignment(device);
    const bool guarded = sz_guards_on();
    const size_t guards = guarded ? 2 * SZ_GUARD : 0;
    const size_t bytes = (data_bytes + guards + align - 1) & ~(align - 1);
    *b = (sz_heap_block){ .device = device, .guarded = guarded, .data_bytes = data_bytes };
    b->bytes = bytes ? bytes : align;
    b->room = b->bytes;

    const bool found = device == SZ_CPU ? find_host_memory(b) : find_device_memory(b);
    if (!found) {
        free(b);
        /* The device has left a message of its own. */
        return device == SZ_CPU ? sz_null("out of memory: a tensor of %zu bytes", data_bytes)
                                : NULL;
    }
    if (guarded) write_guards(b);
    return b;
}

void sz_heap_free(void *block)
{
    sz_heap_block *b = block;
    if (b->guarded) {
        sz_guard_check(b->device, b->base);
        sz_guard_check(b->device, b->base + SZ_GUARD + b->data_bytes);
    }
    if (b->device != SZ_CPU) sz_device_block_free(b->base, b->bytes);
    else if (b->guarded || !kept_put(b->base, b->room)) free(b->base);
    free(b);
}
