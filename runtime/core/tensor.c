/* tensor.c - tensors and their three memory lifetimes.
 *
 * Model and handle: heap blocks, reference counted through sz_storage. Step: a bump arena made of chunks that are never
 * given back; a scope remembers where the arena stood and popping it returns there. A tensor object is always reference
 * counted (objects come from a pool), so a handle to an arena tensor outlives the scope, with data = NULL.
 * Each device has such an arena, and a scope marks all of them.
 * Leaves out: strides (every tensor is contiguous). */
#include "core.h"
#include "device.h"
#include "tape.h"
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

struct sz_storage {
    int32_t refs;
    void *base;
    size_t bytes;
    void (*done)(void *owner);
    void *owner;
};

typedef struct { size_t chunk, used; } arena_place;

enum { DEVICES = 2, MAX_CHUNKS = 4096, MAX_SCOPES = 256, CHUNK_BYTES = 64 << 20, HOST_CHUNK_BYTES = 1 << 30 };
static const size_t ALIGN[DEVICES] = { 64, 256 };

static struct {
    struct { char *base; size_t size, most; } chunks[MAX_CHUNKS];     /* most: bytes ever used since sz_arena_used */
    size_t count;
    arena_place top;                                    /* where the next byte goes */
} arenas[DEVICES];
typedef struct { arena_place top[DEVICES]; } arena_mark;
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

static arena_mark mark_now(void)
{
    arena_mark m;
    for (int d = 0; d < DEVICES; d++) m.top[d] = arenas[d].top;
    return m;
}
static void back_to(const arena_mark *m)
{
    for (int d = 0; d < DEVICES; d++) arenas[d].top = m->top[d];
}

static void *chunk_new(int device, size_t size)
{
    if (device != SZ_CPU) {
        void *p = sz_device->allocate(size);
        if (p) return p;
        sz_device_trim();
        p = sz_device->allocate(size);
        return p ? p : sz_null("out of memory: the step arena needs %zu more bytes on %s", size, sz_device_name(device));
    }
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return sz_null("out of memory: the step arena needs %zu more bytes", size);
    madvise(p, size, MADV_HUGEPAGE);
    return p;
}

static void *arena_bytes(int device, size_t bytes)
{
    if (injected_failure()) return NULL;
    size_t align = ALIGN[device];
    arena_place *top = &arenas[device].top;
    bytes = (bytes + align - 1) & ~(align - 1);
    while (top->chunk < arenas[device].count && arenas[device].chunks[top->chunk].size - top->used < bytes) {
        top->chunk++;
        top->used = 0;
    }
    if (top->chunk == arenas[device].count) {
        /* A tensor that does not fit into the rest of a chunk leaves that rest unused, and other shapes touch it another time: few chunks.
         * In host memory a page counts when it is touched, so each doubles the arena (16 groups of the embedded model, three steps: 0.87 GiB
         * in use where chunks of 64 MiB came to 1.00); on a device the largest so far. */
        size_t least = (bytes + CHUNK_BYTES - 1) / CHUNK_BYTES * CHUNK_BYTES, size = device == SZ_CPU ? HOST_CHUNK_BYTES : CHUNK_BYTES;
        for (size_t i = 0, sum = 0; i < arenas[device].count; i++) {
            sum += arenas[device].chunks[i].size;
            size_t wish = device == SZ_CPU ? sum : arenas[device].chunks[i].size;
            if (wish > size) size = wish;
        }
        if (least > size) size = least;
        SZ_ASSERT(arenas[device].count < MAX_CHUNKS, "the arena has too many chunks");
        void *p = chunk_new(device, size);
        if (!p && size > least) p = chunk_new(device, size = least);
        if (!p) return NULL;
        system_allocs++;
        live_bytes += (int64_t)size;
        arenas[device].chunks[arenas[device].count].base = p;
        arenas[device].chunks[arenas[device].count].most = 0;
        arenas[device].chunks[arenas[device].count++].size = size;
        top->used = 0;
    }
    void *p = arenas[device].chunks[top->chunk].base + top->used;
    top->used += bytes;
    if (top->used > arenas[device].chunks[top->chunk].most) arenas[device].chunks[top->chunk].most = top->used;
    return p;
}

static void kept_drop(void);

/* ---- counting a step without computing it ---- */
static bool counting;
bool sz_is_dry_run(void) { return counting; }
void sz_dry_run(int on) { counting = on != 0; }

int64_t sz_arena_used(int reset)
{
    int64_t total = 0;
    for (size_t i = 0; i < arenas[SZ_CPU].count; i++) {
        total += (int64_t)arenas[SZ_CPU].chunks[i].most;
        if (reset) arenas[SZ_CPU].chunks[i].most = 0;
    }
    return total;
}

int sz_arena_release(void)
{
    if (scope_depth > 0) return sz_fail("the arena is released while a step is open");
    for (size_t i = 0; i < arenas[SZ_CPU].count; i++) {
        munmap(arenas[SZ_CPU].chunks[i].base, arenas[SZ_CPU].chunks[i].size);
        live_bytes -= (int64_t)arenas[SZ_CPU].chunks[i].size;
    }
    arenas[SZ_CPU].count = 0;
    arenas[SZ_CPU].top = (arena_place){ 0, 0 };
    kept_drop();
    return 0;
}

/* ---- guards: a pattern around heap blocks and after kernel workspace, so that tests see writes past the end ---- */
enum { GUARD = 256, GUARD_BYTE = 0xa5, MAX_SCRATCH_GUARDS = 64 };      /* a multiple of every device's alignment */
static bool guards_on;
static int64_t guards_broken;
static struct { int device; char *p; } scratch_guards[MAX_SCRATCH_GUARDS];
static int scratch_guard_count;

int64_t sz_debug_guards(int on)
{
    int64_t broken = guards_broken;
    guards_on = on != 0;
    guards_broken = 0;
    return broken;
}

static void guard_check(int device, const char *p)
{
    unsigned char bytes[GUARD];
    bool broken = sz_bytes_copy(SZ_CPU, bytes, device, p, GUARD) != 0;
    for (size_t i = 0; i < GUARD; i++) broken |= bytes[i] != GUARD_BYTE;
    guards_broken += broken;
}

static void *scratch(int device, size_t bytes)
{
    bool guarded = guards_on && scratch_guard_count < MAX_SCRATCH_GUARDS;
    size_t padded = (bytes + 15) & ~(size_t)15;
    char *p = arena_bytes(device, guarded ? padded + GUARD : bytes ? bytes : 1);
    if (!p || !guarded) return p;
    sz_bytes_fill(device, p, 0xff, bytes);
    sz_bytes_fill(device, p + bytes, GUARD_BYTE, GUARD);
    scratch_guards[scratch_guard_count].device = device;
    scratch_guards[scratch_guard_count++].p = p + bytes;
    return p;
}
void *sz_scratch(size_t bytes) { return scratch(SZ_CPU, bytes); }
void *sz_device_scratch(size_t bytes) { return scratch(SZ_CUDA, bytes); }

/* ---- blocks that are free again ----
 * A step makes the same few heap tensors as the one before (patches, positions): they get the blocks that those had, and the system is
 * asked for nothing. At most a 32nd of the machine's memory is kept, so that a model that is let go of is gone. With guards none is: what
 * has been freed must not be written to. */
enum { KEPT_BLOCKS = 256 };
static struct { char *base; size_t bytes; } kept_blocks[KEPT_BLOCKS];
static int kept_count;
static size_t kept_bytes, kept_most;

static char *kept_remove(int i)
{
    char *p = kept_blocks[i].base;
    kept_bytes -= kept_blocks[i].bytes;
    memmove(&kept_blocks[i], &kept_blocks[i + 1], (size_t)(--kept_count - i) * sizeof kept_blocks[0]);
    return p;
}

/* What is asked of the system for a block: small ones are powers of two, so that positions of prompts of about the same length, say, can have each
 * other's and no later mixture of lengths wants another. */
static size_t room_for(size_t bytes)
{
    enum { SMALL = 64 << 10 };
    if (bytes >= SMALL) return bytes;
    size_t room = 64;
    while (room < bytes) room *= 2;
    return room;
}

/* A kept block of at least *bytes and not much more, the smallest there is; NULL without one. */
static char *kept_take(size_t *bytes)
{
    int best = -1;
    for (int i = 0; i < kept_count; i++) {
        size_t has = kept_blocks[i].bytes;
        if (has >= *bytes && has <= *bytes + *bytes / 4 && (best < 0 || has < kept_blocks[best].bytes)) best = i;
    }
    if (best < 0) return NULL;
    *bytes = kept_blocks[best].bytes;
    return kept_remove(best);
}

/* The oldest make room: they are what nobody asks for any more. */
static bool kept_put(char *p, size_t bytes)
{
    if (!kept_most) kept_most = (size_t)sysconf(_SC_PHYS_PAGES) / 32 * (size_t)sysconf(_SC_PAGESIZE);
    if (guards_on || bytes > kept_most) return false;
    while (kept_count == KEPT_BLOCKS || bytes > kept_most - kept_bytes) free(kept_remove(0));
    kept_blocks[kept_count].base = p;
    kept_blocks[kept_count++].bytes = bytes;
    kept_bytes += bytes;
    return true;
}

static void kept_drop(void)
{
    while (kept_count > 0) free(kept_remove(kept_count - 1));
}

/* Who owns a heap block. With guards there is a pattern in the GUARD bytes before the data and after it. */
typedef struct { int device; bool guarded; char *base; size_t bytes, room, data_bytes; } heap_block;     /* room: of a kept block, bytes or more */

static void block_free(void *owner)
{
    heap_block *b = owner;
    if (b->guarded) {
        guard_check(b->device, b->base);
        guard_check(b->device, b->base + GUARD + b->data_bytes);
    }
    if (b->device != SZ_CPU) sz_device_block_free(b->base, b->bytes);
    else if (b->guarded || !kept_put(b->base, b->room)) free(b->base);
    free(b);
}

/* Memory of a heap block. Large ones have large pages: gradients are given back and touched anew in every step, and a pass that does little but
 * fill 1.2 GB of them takes 1.6 s, in small pages 2.4. */
static char *host_block(size_t align, size_t bytes)
{
    enum { PAGE = 2 << 20, LARGE = 4 * PAGE };
    if (bytes < LARGE) return aligned_alloc(align, bytes);
    void *p = NULL;                     /* aligned_alloc wants whole pages of memory, too */
    if (posix_memalign(&p, PAGE, bytes) != 0) return NULL;
    madvise(p, bytes, MADV_HUGEPAGE);
    return p;
}

/* The block of a new heap tensor; NULL with a message. Guarded data are NaN: what a kernel leaves unwritten shows. */
static heap_block *block_new(int device, size_t data_bytes)
{
    size_t align = ALIGN[device], bytes = (data_bytes + (guards_on ? 2 * GUARD : 0) + align - 1) & ~(align - 1);
    heap_block *b = injected_failure() ? NULL : malloc(sizeof *b);
    if (!b) return sz_null("out of memory: a tensor of %zu bytes", data_bytes);
    *b = (heap_block){ device, guards_on, NULL, bytes ? bytes : align, 0, data_bytes };
    b->room = device == SZ_CPU && !guards_on ? room_for(b->bytes) : b->bytes;
    bool again = device == SZ_CPU && !guards_on && (b->base = kept_take(&b->room)) != NULL;
    if (!again) b->base = device == SZ_CPU ? host_block(align, b->room) : sz_device_block(&b->bytes);
    if (!b->base && device == SZ_CPU && kept_count) {
        kept_drop();
        b->base = host_block(align, b->room);
    }
    if (!b->base) {
        free(b);
        return device == SZ_CPU ? sz_null("out of memory: a tensor of %zu bytes", data_bytes) : NULL;
    }
    system_allocs += !again;
    if (b->guarded) {
        sz_bytes_fill(device, b->base, GUARD_BYTE, GUARD);
        sz_bytes_fill(device, b->base + GUARD, 0xff, data_bytes);
        sz_bytes_fill(device, b->base + GUARD + data_bytes, GUARD_BYTE, GUARD);
    }
    return b;
}

void sz_tensor_unload(const sz_tensor *t)
{
    if (t && t->storage && t->storage->done != block_free) sz_unload_pages(t->data, sz_bytes(t));
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
    if (sz_device_ready(device) != 0) return -1;
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

sz_tensor *sz_tensor_meta(int dtype, int ndim, const int64_t *shape)
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
    heap_block *b = block_new(device, sz_bytes(t));
    if (b && !(t->storage = sz_storage_new(b->base, b->bytes, block_free, b))) block_free(b);
    if (!t->storage) {
        sz_tensor_release(t);
        return NULL;
    }
    t->data = b->guarded ? b->base + GUARD : b->base;
    return t;
}

sz_tensor *sz_tensor_new(int dtype, int ndim, const int64_t *shape, int device)
{
    if (!scope_depth) return sz_tensor_new_heap(dtype, ndim, shape, device);
    sz_tensor *t = object_shaped(dtype, ndim, shape, device);
    if (!t) return NULL;
    t->data = arena_bytes(device, sz_bytes(t) ? sz_bytes(t) : 1);
    if (!t->data || arena_register(t) != 0) {
        sz_tensor_release(t);
        return NULL;
    }
    return t;
}

sz_tensor *sz_tensor_zeros(int dtype, int ndim, const int64_t *shape, int device)
{
    sz_tensor *t = sz_tensor_new(dtype, ndim, shape, device);
    if (t && !counting && sz_bytes_fill(device, t->data, 0, sz_bytes(t)) != 0) {
        sz_tensor_release(t);
        return NULL;
    }
    return t;
}

sz_tensor *sz_tensor_like(const sz_tensor *t) { return sz_tensor_new(t->dtype, t->ndim, t->shape, t->device); }
sz_tensor *sz_new1(int dtype, int64_t n, int device) { return sz_tensor_new(dtype, 1, (int64_t[]){ n }, device); }
sz_tensor *sz_new2(int dtype, int64_t n, int64_t m, int device) { return sz_tensor_new(dtype, 2, (int64_t[]){ n, m }, device); }

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
    if (sz_tensor_alive(t) != 0) return NULL;
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

int sz_tensor_alive(const sz_tensor *t)
{
    if (t && !t->data) return sz_fail("this tensor belonged to a step that has ended; keep a copy with clone()");
    return t ? 0 : -1;
}

void *sz_tensor_data(sz_tensor *t)
{
    if (sz_tensor_alive(t) != 0) return NULL;
    if (t->device != SZ_CPU) return sz_null("this tensor is on %s; a copy on the cpu can be read", sz_device_name(t->device));
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
    if (sz_tensor_alive(t) != 0) return NULL;
    sz_tensor *c = sz_tensor_new_heap(t->dtype, t->ndim, t->shape, t->device);
    if (c && (counting || sz_bytes_copy(t->device, c->data, t->device, t->data, sz_bytes(t)) == 0)) return c;
    sz_tensor_release(c);
    return NULL;
}

sz_tensor *sz_tensor_to(sz_tensor *t, int device)
{
    if (sz_tensor_alive(t) != 0) return NULL;
    if (t->device == device) return sz_tensor_retain(t);
    if (sz_needs_grad(t) && !(t->flags & SZ_PARAMETER) && sz_grad_enabled())
        return sz_null("a gradient does not go from %s to %s; detach the tensor first", sz_device_name(t->device), sz_device_name(device));
    sz_tensor *c = sz_tensor_new(t->dtype, t->ndim, t->shape, device);
    if (c && (counting || sz_bytes_copy(device, c->data, t->device, t->data, sz_bytes(t)) == 0)) return c;
    sz_tensor_release(c);
    return NULL;
}

int sz_tensor_move(sz_tensor **t, int device)
{
    sz_tensor *there = sz_tensor_to(*t, device);
    if (!there) return -1;
    sz_tensor_release(*t);
    *t = there;
    return 0;
}

int sz_tensor_read(sz_tensor *t, void *to)
{
    return sz_tensor_alive(t) == 0 ? sz_bytes_copy(SZ_CPU, to, t->device, t->data, sz_bytes(t)) : -1;
}
int sz_tensor_write(sz_tensor *t, const void *from)
{
    return sz_tensor_alive(t) == 0 ? sz_bytes_copy(t->device, t->data, SZ_CPU, from, sz_bytes(t)) : -1;
}

sz_tensor *sz_tensor_detach(sz_tensor *t) { return t ? sz_tensor_view(t, t->ndim, t->shape, 0) : NULL; }

/* Converts n elements from `first` on: on src's device, the result's bytes moved if dst is elsewhere. */
static int convert_part(sz_tensor *dst, sz_tensor *src, int64_t first, int64_t n)
{
    sz_tensor from = *src, to = *dst;
    from.ndim = to.ndim = 1;
    from.shape[0] = to.shape[0] = from.numel = to.numel = n;
    from.data = (char *)src->data + (size_t)first * sz_dtype_size(src->dtype);
    char *final = (char *)dst->data + (size_t)first * sz_dtype_size(dst->dtype);
    to.device = src->device;
    to.data = dst->device == src->device ? final : arena_bytes(src->device, sz_bytes(&to));
    if (!to.data) return -1;
    sz_call c = { .in = { &from }, .out = { &to }, .args = { dst->dtype } };
    int rc = (src->device == SZ_CPU ? sz_ops[SZ_OP_cast].cpu : sz_device->kernels[SZ_OP_cast])(&c);
    return rc == 0 && to.data != final ? sz_bytes_copy(dst->device, final, src->device, to.data, sz_bytes(&to)) : rc;
}

int sz_tensor_copy(sz_tensor *dst, sz_tensor *src)
{
    if (sz_tensor_alive(dst) != 0 || sz_tensor_alive(src) != 0) return -1;
    if (dst->numel != src->numel)
        return sz_fail("copy: %lld elements into %lld", (long long)src->numel, (long long)dst->numel);
    if (counting) return 0;
    if (dst->dtype == src->dtype) return sz_bytes_copy(dst->device, dst->data, src->device, src->data, sz_bytes(src));
    /* Between devices in pieces, so that the arena need not hold a whole embedding. */
    int64_t piece = dst->device == src->device ? src->numel : 1 << 22;
    arena_mark before = mark_now();
    int rc = 0;
    for (int64_t i = 0; rc == 0 && i < src->numel; i += piece) {
        rc = convert_part(dst, src, i, src->numel - i < piece ? src->numel - i : piece);
        back_to(&before);
    }
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
    return t->grad && !counting ? sz_bytes_clear(t->grad->device, t->grad->data, sz_bytes(t->grad)) : 0;
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
    scopes[scope_depth].mark = mark_now();
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
    back_to(&scopes[scope_depth].mark);
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
    if (kept && !counting && sz_bytes_copy(kept->device, kept->data, kept->device, bytes, sz_bytes(kept)) != 0) {
        sz_tensor_release(kept);
        kept = NULL;
    }
    sz_tensor_release(t);
    return kept;
}

/* ---- for sz_apply ---- */
static arena_mark scratch_mark;
static void guards_until(int left)
{
    for (; scratch_guard_count > left; scratch_guard_count--)
        guard_check(scratch_guards[scratch_guard_count - 1].device, scratch_guards[scratch_guard_count - 1].p);
}

void sz_scratch_begin(void) { scratch_mark = mark_now(); }
void sz_scratch_end(void)
{
    back_to(&scratch_mark);
    guards_until(0);
}

sz_scratch_state sz_scratch_save(void)
{
    return (sz_scratch_state){ arenas[SZ_CPU].top.chunk, arenas[SZ_CPU].top.used, scratch_guard_count };
}

void sz_scratch_restore(sz_scratch_state s)
{
    arenas[SZ_CPU].top = (arena_place){ s.chunk, s.used };
    guards_until(s.guards);
}
