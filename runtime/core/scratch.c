/* scratch.c - kernel workspace: blocks of the step arena that are given back in the opposite order,
 * all of those since a mark together.
 * Leaves out: the blocks themselves (arena.c).
 */
#include "memory.h"
#include "device.h"

/* ---- blocks in the order in which they were taken ---- */
enum { MOST = 1024 };
static sz_arena_block *taken[MOST];
static int taken_count;

sz_scratch_mark sz_scratch_now(void) { return taken_count; }

void sz_scratch_back(sz_scratch_mark mark)
{
    while (taken_count > mark) sz_arena_release_block(taken[--taken_count]);
}

void *sz_scratch_on(int device, size_t bytes)
{
    SZ_ASSERT(taken_count < MOST, "too many pieces of workspace");
    sz_arena_block *b = sz_arena_take(device, bytes);
    if (!b) return NULL;
    taken[taken_count++] = b;
    return sz_arena_data(b);
}

/* ---- kernel workspace ---- */
enum { MAX_SCRATCH_GUARDS = 64 };
static struct {
    int device;
    char *p;
} scratch_guards[MAX_SCRATCH_GUARDS];
static int scratch_guard_count;
static sz_scratch_mark begun;

static void *scratch(int device, size_t bytes)
{
    const bool guarded = sz_guards_on() && scratch_guard_count < MAX_SCRATCH_GUARDS;
    if (!guarded) return sz_scratch_on(device, bytes ? bytes : 1);

    const size_t padded = (bytes + 15) & ~(size_t)15;
    char *p = sz_scratch_on(device, padded + SZ_GUARD);
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

void sz_scratch_begin(void) { begun = sz_scratch_now(); }

/* Guards first: a block that is given back is overwritten. */
void sz_scratch_end(void)
{
    check_guards(0);
    sz_scratch_back(begun);
}

sz_scratch_state sz_scratch_save(void)
{
    return (sz_scratch_state){ sz_scratch_now(), scratch_guard_count };
}

void sz_scratch_restore(sz_scratch_state s)
{
    check_guards(s.guards);
    sz_scratch_back(s.mark);
}
