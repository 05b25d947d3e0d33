/* scope.c - scopes of the step arena. A scope remembers how long the tape was;
 * popping it clears every tensor that was made inside and that still has bytes: handles stay valid
 * as objects, with data = NULL.
 * Leaves out: the arena's memory (arena.c), bytes that go back earlier (tensor.c).
 */
#include "scope.h"
#include "memory.h"
#include "device.h"
#include "tape.h"
#include <stdlib.h>

enum { MAX_SCOPES = 256 };

typedef struct {
    sz_scratch_mark mark;
    size_t tensors; /* how many were in the list */
    int nodes;      /* length of the tape */
} scope;

static scope scopes[MAX_SCOPES];
static int depth;

/* Every tensor that the open scopes made, in order; the list holds a reference to each. */
static sz_tensor **list;
static size_t list_count;
static size_t list_room;

int sz_scope_depth(void) { return depth; }

int sz_scope_add(sz_tensor *t)
{
    if (list_count == list_room) {
        const size_t room = list_room ? 2 * list_room : 4096;
        sz_tensor **grown = realloc(list, room * sizeof *grown);
        if (!grown) return sz_fail("out of memory");
        sz_memory_asked();
        list = grown;
        list_room = room;
    }
    list[list_count++] = sz_tensor_retain(t);
    t->idle++;
    return 0;
}

int sz_scope_push(void)
{
    SZ_ASSERT(depth < MAX_SCOPES, "scopes are nested too deeply");
    scopes[depth].mark = sz_scratch_now();
    scopes[depth].tensors = list_count;
    scopes[depth].nodes = sz_tape_length();
    return ++depth;
}

void sz_scope_pop(void)
{
    SZ_ASSERT(depth > 0, "a scope is popped that was not pushed");
    const scope *s = &scopes[--depth];
    sz_tape_truncate(s->nodes);
    while (list_count > s->tensors) {
        sz_tensor *t = list[--list_count];
        sz_tensor_drop_bytes(t);
        t->data = NULL;
        t->node = -1;
        t->idle--;
        sz_tensor_release(t->grad);
        t->grad = NULL;
        sz_tensor_release(t);
    }
    sz_scratch_back(s->mark);
}

/* Whether the innermost scope made t. */
static bool is_inner(const sz_tensor *t)
{
    for (size_t i = list_count; i > scopes[depth - 1].tensors; i--)
        if (list[i - 1] == t) return true;
    return false;
}

/* A new tensor with a copy of t's former bytes. */
static sz_tensor *copied(const sz_tensor *t, const void *bytes)
{
    sz_tensor *kept = sz_tensor_like(t);
    if (!kept || sz_is_dry_run()) return kept;
    if (sz_bytes_copy(kept->device, kept->data, kept->device, bytes, sz_bytes(kept)) == 0)
        return kept;
    sz_tensor_release(kept);
    return NULL;
}

sz_tensor *sz_scope_pop_keep(sz_tensor *t)
{
    if (!t || !t->block || !is_inner(t)) {
        sz_scope_pop();
        return t;
    }
    sz_arena_block *block = sz_arena_retain(t->block);
    void *bytes = t->data;
    sz_scope_pop();

    /* A view of much more would keep all of that. Outside of scopes a tensor is on the heap. */
    const bool fills = sz_arena_bytes(block) < 2 * sz_bytes(t);
    sz_tensor *kept = fills && depth > 0 ? sz_tensor_over_block(t, block, bytes) : copied(t, bytes);
    sz_arena_release_block(block);
    sz_tensor_release(t);
    return kept;
}
