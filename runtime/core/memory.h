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
typedef struct sz_arena_block sz_arena_block;
/* A block of at least that many bytes, with one reference; NULL with a message when memory is
 * out. */
sz_arena_block *sz_arena_take(int device, size_t bytes);
sz_arena_block *sz_arena_retain(sz_arena_block *b);
/* NULL is allowed. With guards on, the bytes of a block that is free are NaN. */
void sz_arena_release_block(sz_arena_block *b);
void *sz_arena_data(const sz_arena_block *b);
size_t sz_arena_bytes(const sz_arena_block *b);
/* Gives the memory behind a long free end of a chunk back to the system; the addresses stay. For
 * the walk back: parameters' gradients need memory as activations stop to. Host memory only. */
void sz_arena_trim(void);
/* A hash of which blocks of a device are in use: from equal states, equal calls give equal
 * addresses. */
uint64_t sz_arena_state(int device);

/* ---- workspace (scratch.c) ---- */
/* Bytes of the arena until sz_scratch_back with an earlier mark; NULL with a message when memory is
 * out. */
void *sz_scratch_on(int device, size_t bytes);
typedef int sz_scratch_mark;
sz_scratch_mark sz_scratch_now(void);
void sz_scratch_back(sz_scratch_mark mark);
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
