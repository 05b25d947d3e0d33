/* tensor.c - tensors and their three memory lifetimes.
 *
 * Model and handle: heap blocks, reference counted through sz_storage. Step: a bump arena made of chunks that are never
 * given back; a scope remembers where the arena stood and popping it returns there. A tensor object is always reference
 * counted (objects come from a pool), so a handle to an arena tensor outlives the scope, with data = NULL.
 * Leaves out: strides (every tensor is contiguous) and other devices. */
#include "core.h"
#include "tape.h"
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

struct sz_storage {
    int32_t refs;
    void *base;
    size_t bytes;
    void (*done)(void *owner);
    void *owner;
};

typedef struct { size_t chunk, used; } arena_mark;

enum { MAX_CHUNKS = 4096, MAX_SCOPES = 256, CHUNK_BYTES = 64 << 20, ALIGN = 64 };

static struct { char *base; size_t size, most; } chunks[MAX_CHUNKS];     /* most: bytes ever used since sz_arena_used */
static size_t chunk_count;
static arena_mark top;                                  /* where the next arena byte goes */
static struct { arena_mark mark; size_t tensors; int nodes; } scopes[MAX_SCOPES];
static int scope_depth;
static sz_tensor **arena_tensors;                       /* every tensor the open scopes made, in order */
static size_t arena_tensor_count, arena_tensor_room;
static sz_tensor *pool;                                 /* free tensor objects, linked through grad */
static int64_t live_bytes, system_allocs, fail_after = -1;

int64_t sz_live_bytes(void) { return live_bytes; }
int64_t sz_system_allocs(void) { return system_allocs; }
void    sz_fail_alloc_after(int64_t n) { fail_after = n; }
int     sz_scope_depth(void) { return scope_depth; }

/* ---- raw memory ---- */
static bool injected_failure(void)
{
    if (fail_after < 0 || fail_after-- > 0) return false;
    sz_fail("out of memory (injected)");
    return true;
}

static void *arena_bytes(size_t bytes)
{
    if (injected_failure()) return NULL;
    bytes = (bytes + ALIGN - 1) & ~(size_t)(ALIGN - 1);
    while (top.chunk < chunk_count && chunks[top.chunk].size - top.used < bytes) {
        top.chunk++;
        top.used = 0;
    }
    if (top.chunk == chunk_count) {
        /* Chunks grow with the arena so that a large model needs few of them. */
        size_t size = CHUNK_BYTES;
        for (size_t i = 0; i < chunk_count; i++)
            if (chunks[i].size > size) size = chunks[i].size;
        if (bytes > size) size = (bytes + CHUNK_BYTES - 1) / CHUNK_BYTES * CHUNK_BYTES;
        SZ_ASSERT(chunk_count < MAX_CHUNKS, "the arena has too many chunks");
        void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED) return sz_null("out of memory: the step arena needs %zu more bytes", size);
        madvise(p, size, MADV_HUGEPAGE);
        system_allocs++;
        live_bytes += (int64_t)size;
        chunks[chunk_count].base = p;
        chunks[chunk_count].most = 0;
        chunks[chunk_count++].size = size;
        top.used = 0;
    }
    void *p = chunks[top.chunk].base + top.used;
    top.used += bytes;
    if (top.used > chunks[top.chunk].most) chunks[top.chunk].most = top.used;
    return p;
}

/* ---- counting a step without computing it ---- */
static bool counting;
bool sz_counting(void) { return counting; }
void sz_count_only(int on) { counting = on != 0; }

int64_t sz_arena_used(int reset)
{
    int64_t total = 0;
    for (size_t i = 0; i < chunk_count; i++) {
        total += (int64_t)chunks[i].most;
        if (reset) chunks[i].most = 0;
    }
    return total;
}

int sz_arena_release(void)
{
    if (scope_depth > 0) return sz_fail("the arena is released while a step is open");
    for (size_t i = 0; i < chunk_count; i++) {
        munmap(chunks[i].base, chunks[i].size);
        live_bytes -= (int64_t)chunks[i].size;
    }
    chunk_count = 0;
    top = (arena_mark){ 0, 0 };
    return 0;
}

/* ---- guards: a pattern around heap blocks and after kernel workspace, so that tests see writes past the end ---- */
enum { GUARD = 64, GUARD_BYTE = 0xa5, MAX_SCRATCH_GUARDS = 64 };
static bool guards_on;
static int64_t guards_broken;
static unsigned char *scratch_guards[MAX_SCRATCH_GUARDS];
static int scratch_guard_count;

int64_t sz_debug_guards(int on)
{
    int64_t broken = guards_broken;
    guards_on = on != 0;
    guards_broken = 0;
    return broken;
}

static void guard_check(const unsigned char *p, size_t n)
{
    bool broken = false;
    for (size_t i = 0; i < n; i++) broken |= p[i] != GUARD_BYTE;
    guards_broken += broken;
}

void *sz_scratch(size_t bytes)
{
    bool guarded = guards_on && scratch_guard_count < MAX_SCRATCH_GUARDS;
    unsigned char *p = arena_bytes(guarded ? bytes + GUARD : bytes ? bytes : 1);
    if (!p || !guarded) return p;
    memset(p, 0xff, bytes);
    memset(p + bytes, GUARD_BYTE, GUARD);
    scratch_guards[scratch_guard_count++] = p + bytes;
    return p;
}

static void free_block(void *p) { free(p); }

/* A guarded block: its size and pattern in the 64 bytes before the data, pattern in the 64 bytes after. */
static void free_guarded_block(void *p)
{
    size_t bytes;
    memcpy(&bytes, p, sizeof bytes);
    guard_check((unsigned char *)p + sizeof bytes, GUARD - sizeof bytes);
    guard_check((unsigned char *)p + GUARD + bytes, GUARD);
    free(p);
}

/* Fills the guards of a new block, and the data with NaN: what a kernel leaves unwritten shows. Returns the data. */
static void *guard_block(unsigned char *p, size_t bytes)
{
    memcpy(p, &bytes, sizeof bytes);
    memset(p + sizeof bytes, GUARD_BYTE, GUARD - sizeof bytes);
    memset(p + GUARD, 0xff, bytes);
    memset(p + GUARD + bytes, GUARD_BYTE, GUARD);
    return p + GUARD;
}

sz_storage *sz_storage_new(void *base, size_t bytes, void (*done)(void *), void *owner)
{
    sz_storage *s = malloc(sizeof *s);
    if (!s) return sz_null("out of memory");
    *s = (sz_storage){ 1, base, bytes, done, owner };
    live_bytes += (int64_t)bytes;
    return s;
}

void sz_storage_release(sz_storage *s)
{
    if (!s || --s->refs > 0) return;
    live_bytes -= (int64_t)s->bytes;
    s->done(s->owner);
    free(s);
}

/* ---- tensor objects ---- */
static sz_tensor *object_new(void)
{
    if (!pool) {
        enum { BATCH = 256 };
        sz_tensor *block = calloc(BATCH, sizeof *block);
        if (!block) return sz_null("out of memory");
        system_allocs++;
        for (int i = 0; i < BATCH; i++) {
            block[i].grad = pool;
            pool = &block[i];
        }
    }
    sz_tensor *t = pool;
    pool = t->grad;
    memset(t, 0, sizeof *t);
    t->refs = 1;
    t->node = -1;
    return t;
}

static int set_shape(sz_tensor *t, int dtype, int ndim, const int64_t *shape, int device)
{
    if (dtype < SZ_F32 || dtype > SZ_U8) return sz_fail("unknown dtype %d", dtype);
    if (device != SZ_CPU) return sz_fail("device %d is not available in this build", device);
    if (ndim < 0 || ndim > SZ_MAX_DIMS) return sz_fail("a tensor has 0 to %d dimensions, not %d", SZ_MAX_DIMS, ndim);
    int64_t n = 1;
    for (int i = 0; i < ndim; i++) {
        if (shape[i] < 0) return sz_fail("dimension %d of a shape is %lld", i, (long long)shape[i]);
        if (__builtin_mul_overflow(n, shape[i], &n) || n > (INT64_C(1) << 56)) return sz_fail("the shape is too large");
        t->shape[i] = shape[i];
    }
    t->dtype = (int8_t)dtype;
    t->device = (int8_t)device;
    t->ndim = (int8_t)ndim;
    t->numel = n;
    return 0;
}

static sz_tensor *object_shaped(int dtype, int ndim, const int64_t *shape, int device)
{
    sz_tensor *t = object_new();
    if (t && set_shape(t, dtype, ndim, shape, device) != 0) {
        sz_tensor_release(t);
        return NULL;
    }
    return t;
}

typedef struct { void *base; size_t bytes; } address_space;
static void void_done(void *owner)
{
    address_space *a = owner;
    munmap(a->base, a->bytes);
    free(a);
}

sz_tensor *sz_tensor_void(int dtype, int ndim, const int64_t *shape)
{
    sz_tensor *t = object_shaped(dtype, ndim, shape, SZ_CPU);
    if (!t) return NULL;
    address_space *a = malloc(sizeof *a);
    if (a) {
        a->bytes = sz_bytes(t) ? sz_bytes(t) : 1;
        a->base = mmap(NULL, a->bytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (a->base != MAP_FAILED && !(t->storage = sz_storage_new(a->base, 0, void_done, a))) munmap(a->base, a->bytes);
    }
    if (!t->storage) {
        free(a);
        sz_tensor_release(t);
        return sz_null("out of memory: address space");
    }
    t->data = a->base;
    return t;
}

/* Puts an arena tensor on the list that its scope clears; the list holds one reference. */
static int arena_register(sz_tensor *t)
{
    if (arena_tensor_count == arena_tensor_room) {
        size_t room = arena_tensor_room ? 2 * arena_tensor_room : 4096;
        sz_tensor **list = realloc(arena_tensors, room * sizeof *list);
        if (!list) return sz_fail("out of memory");
        system_allocs++;
        arena_tensors = list;
        arena_tensor_room = room;
    }
    arena_tensors[arena_tensor_count++] = sz_tensor_retain(t);
    return 0;
}

sz_tensor *sz_tensor_new_heap(int dtype, int ndim, const int64_t *shape, int device)
{
    sz_tensor *t = object_shaped(dtype, ndim, shape, device);
    if (!t) return NULL;
    size_t bytes = (sz_bytes(t) + (guards_on ? 2 * GUARD : 0) + ALIGN - 1) & ~(size_t)(ALIGN - 1);
    void *p = injected_failure() ? NULL : aligned_alloc(ALIGN, bytes ? bytes : ALIGN);
    if (!p) {
        sz_fail("out of memory: a tensor of %zu bytes", sz_bytes(t));
    } else {
        system_allocs++;
        t->storage = sz_storage_new(p, bytes, guards_on ? free_guarded_block : free_block, p);
        if (!t->storage) free(p);
    }
    if (!t->storage) {
        sz_tensor_release(t);
        return NULL;
    }
    t->data = guards_on ? guard_block(p, sz_bytes(t)) : p;
    return t;
}

sz_tensor *sz_tensor_new(int dtype, int ndim, const int64_t *shape, int device)
{
    if (!scope_depth) return sz_tensor_new_heap(dtype, ndim, shape, device);
    sz_tensor *t = object_shaped(dtype, ndim, shape, device);
    if (!t) return NULL;
    t->data = arena_bytes(sz_bytes(t) ? sz_bytes(t) : 1);
    if (!t->data || arena_register(t) != 0) {
        sz_tensor_release(t);
        return NULL;
    }
    return t;
}

sz_tensor *sz_tensor_zeros(int dtype, int ndim, const int64_t *shape, int device)
{
    sz_tensor *t = sz_tensor_new(dtype, ndim, shape, device);
    if (t && !counting) memset(t->data, 0, sz_bytes(t));
    return t;
}

sz_tensor *sz_tensor_like(const sz_tensor *t) { return sz_tensor_new(t->dtype, t->ndim, t->shape, t->device); }
sz_tensor *sz_new1(int dtype, int64_t n) { return sz_tensor_new(dtype, 1, (int64_t[]){ n }, SZ_CPU); }
sz_tensor *sz_new2(int dtype, int64_t n, int64_t m) { return sz_tensor_new(dtype, 2, (int64_t[]){ n, m }, SZ_CPU); }

sz_tensor *sz_tensor_over(sz_storage *s, int dtype, int ndim, const int64_t *shape, void *data)
{
    sz_tensor *t = object_shaped(dtype, ndim, shape, SZ_CPU);
    if (!t) return NULL;
    s->refs++;
    t->storage = s;
    t->data = data;
    return t;
}

sz_tensor *sz_tensor_view(sz_tensor *t, int ndim, const int64_t *shape, int64_t first)
{
    if (!sz_tensor_data(t)) return NULL;
    sz_tensor *v = object_shaped(t->dtype, ndim, shape, t->device);
    if (!v) return NULL;
    SZ_ASSERT(first >= 0 && first + v->numel <= t->numel, "a view reaches past its tensor");
    v->data = (char *)t->data + (size_t)first * sz_dtype_size(t->dtype);
    v->storage = t->storage;
    if (v->storage) {
        v->storage->refs++;
    } else if (arena_register(v) != 0) {
        sz_tensor_release(v);
        return NULL;
    }
    return v;
}

sz_tensor *sz_tensor_retain(sz_tensor *t)
{
    if (t) t->refs++;
    return t;
}

void sz_tensor_release(sz_tensor *t)
{
    if (!t) return;
    SZ_ASSERT(t->refs > 0, "a tensor is released more often than retained");
    if (--t->refs > 0) return;
    sz_tensor_release(t->grad);
    sz_storage_release(t->storage);
    t->storage = NULL;
    t->data = NULL;
    t->grad = pool;
    pool = t;
}

void *sz_tensor_data(sz_tensor *t)
{
    if (!t) return NULL;
    if (!t->data) return sz_null("this tensor belonged to a step that has ended; keep a copy with clone()");
    return t->data;
}

int     sz_tensor_dtype(const sz_tensor *t) { return t->dtype; }
int     sz_tensor_device(const sz_tensor *t) { return t->device; }
int     sz_tensor_ndim(const sz_tensor *t) { return t->ndim; }
int64_t sz_tensor_numel(const sz_tensor *t) { return t->numel; }

int64_t sz_tensor_dim(const sz_tensor *t, int i)
{
    if (i < 0) i += t->ndim;
    return i < 0 || i >= t->ndim ? 1 : t->shape[i];
}

sz_tensor *sz_tensor_clone(sz_tensor *t)
{
    if (!sz_tensor_data(t)) return NULL;
    sz_tensor *c = sz_tensor_new_heap(t->dtype, t->ndim, t->shape, t->device);
    if (c && !counting) memcpy(c->data, t->data, sz_bytes(t));
    return c;
}

sz_tensor *sz_tensor_detach(sz_tensor *t) { return t ? sz_tensor_view(t, t->ndim, t->shape, 0) : NULL; }

int sz_tensor_copy(sz_tensor *dst, sz_tensor *src)
{
    if (!sz_tensor_data(dst) || !sz_tensor_data(src)) return -1;
    if (dst->numel != src->numel)
        return sz_fail("copy: %lld elements into %lld", (long long)src->numel, (long long)dst->numel);
    if (counting) return 0;
    if (dst->dtype == src->dtype) {
        memmove(dst->data, src->data, sz_bytes(src));
        return 0;
    }
    sz_call c = { .in = { src }, .out = { dst }, .args = { dst->dtype } };
    arena_mark before = top;
    int rc = sz_cpu_kernels[SZ_OP_cast](&c);
    top = before;
    return rc;
}

int sz_tensor_set_requires_grad(sz_tensor *t, int on)
{
    if (on && t->dtype != SZ_F32 && t->dtype != SZ_BF16) return sz_fail("only f32 and bf16 tensors have gradients");
    if (on && t->node >= 0) return sz_fail("requires_grad is set on leaves, not on results");
    if (on) t->flags |= SZ_REQUIRES_GRAD | SZ_PARAMETER;
    else t->flags &= (uint8_t)~(SZ_REQUIRES_GRAD | SZ_PARAMETER);
    return 0;
}

int sz_tensor_requires_grad(const sz_tensor *t) { return (t->flags & SZ_REQUIRES_GRAD) != 0; }

sz_tensor *sz_tensor_grad(sz_tensor *t)
{
    return t->grad ? t->grad : sz_null("this tensor has no gradient");
}

int sz_tensor_zero_grad(sz_tensor *t)
{
    if (t->grad) sz_zero_pages(t->grad->data, sz_bytes(t->grad));
    return 0;
}

int sz_tensor_set_grad_dtype(sz_tensor *t, int dtype)
{
    if (dtype != SZ_F32 && dtype != SZ_BF16) return sz_fail("gradients are f32 or bf16");
    if (t->grad) return sz_fail("this tensor has a gradient already");
    t->flags = (uint8_t)(dtype == SZ_BF16 ? t->flags | SZ_GRAD_BF16 : t->flags & ~SZ_GRAD_BF16);
    return 0;
}

/* ---- scopes ---- */
int sz_scope_push(void)
{
    SZ_ASSERT(scope_depth < MAX_SCOPES, "scopes are nested too deeply");
    scopes[scope_depth].mark = top;
    scopes[scope_depth].tensors = arena_tensor_count;
    scopes[scope_depth].nodes = sz_tape_length();
    return ++scope_depth;
}

void sz_scope_pop(void)
{
    SZ_ASSERT(scope_depth > 0, "a scope is popped that was not pushed");
    scope_depth--;
    sz_tape_truncate(scopes[scope_depth].nodes);
    while (arena_tensor_count > scopes[scope_depth].tensors) {
        sz_tensor *t = arena_tensors[--arena_tensor_count];
        t->data = NULL;
        t->node = -1;
        sz_tensor_release(t->grad);
        t->grad = NULL;
        sz_tensor_release(t);
    }
    top = scopes[scope_depth].mark;
}

sz_tensor *sz_scope_pop_keep(sz_tensor *t)
{
    bool inner = false;
    for (size_t i = arena_tensor_count; t && i > scopes[scope_depth - 1].tensors && !inner; i--)
        inner = arena_tensors[i - 1] == t;
    void *bytes = t ? t->data : NULL;
    sz_scope_pop();
    if (!inner) return t;
    /* The bytes are still there; the copy may overlap them, at a lower address of the same chunk. */
    sz_tensor *kept = sz_tensor_new(t->dtype, t->ndim, t->shape, t->device);
    if (kept && !counting) memmove(kept->data, bytes, sz_bytes(kept));
    sz_tensor_release(t);
    return kept;
}

/* ---- for sz_apply ---- */
static arena_mark scratch_mark;
void sz_scratch_begin(void) { scratch_mark = top; }
void sz_scratch_end(void)
{
    top = scratch_mark;
    while (scratch_guard_count > 0) guard_check(scratch_guards[--scratch_guard_count], GUARD);
}

sz_scratch_state sz_scratch_save(void) { return (sz_scratch_state){ top.chunk, top.used, scratch_guard_count }; }
void sz_scratch_restore(sz_scratch_state s)
{
    top = (arena_mark){ s.chunk, s.used };
    while (scratch_guard_count > s.guards) guard_check(scratch_guards[--scratch_guard_count], GUARD);
}
