/* memory.h - what the files that hand out bytes share: counters, pages, guards, the step arena,
 * heap blocks. Below tensors: nothing here knows a tensor. For the files of core/ and for
 * sampling/.
 */
#ifndef SZ_MEMORY_H
#define SZ_MEMORY_H
#include "core.h"

enum { SZ_DEVICES = 2 };

/* ---- counters (memory.c) ---- */
/* Alignment of every block and arena piece on a device, bytes. */
size_t sz_alignment(int device);
/* bytes held from now on, or no longer held when negative: sz_live_bytes. */
void sz_memory_hold(int64_t bytes);
/* The system was asked for memory: sz_system_allocs. */
void sz_memory_asked(void);
/* True when a test wants this allocation to fail (sz_fail_alloc_after); leaves the message. */
bool sz_memory_fails(void);

/* ---- guards (guards.c): a pattern around heap blocks and after workspace, for tests ---- */
enum { SZ_GUARD = 256 }; /* bytes; a multiple of every device's alignment */
bool sz_guards_on(void);
/* Writes the pattern to the SZ_GUARD bytes at p. */
void sz_guard_write(int device, char *p);
/* Counts it as broken when the pattern at p was overwritten. */
void sz_guard_check(int device, const char *p);

/* ---- the step arena (arena.c) ---- */
/* Where the next byte of each device goes. */
typedef struct {
    size_t chunk, used;
} sz_arena_place;
typedef struct {
    sz_arena_place top[SZ_DEVICES];
} sz_arena_mark;
sz_arena_mark sz_arena_now(void);
void sz_arena_back(const sz_arena_mark *mark);
/* Bytes of the arena; NULL with a message when memory is out. */
void *sz_arena_bytes(int device, size_t bytes);

/* sz_scratch on the backend's device. */
void *sz_device_scratch(size_t bytes);
/* Workspace asked for between the two calls is taken back by the second. */
void sz_scratch_begin(void);
void sz_scratch_end(void);

/* ---- heap blocks (heap.c) ---- */
typedef struct sz_heap_block sz_heap_block;
/* NULL with a message when memory is out. With guards on, its data are NaN. */
sz_heap_block *sz_heap_new(int device, size_t bytes);
void sz_heap_free(void *block);
void *sz_heap_data(const sz_heap_block *b);
size_t sz_heap_bytes(const sz_heap_block *b);
/* Gives the blocks that are kept for reuse back to the system. */
void sz_heap_trim(void);

#endif
