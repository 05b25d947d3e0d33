/* tensor.c - tensor objects: making, viewing, copying, and moving them between devices.
 *
 * A tensor's bytes have one of three lifetimes. Model and handle: a heap block or a mapped file,
 * counted by an sz_storage (heap.c, storage.c). Step: a block of the arena (arena.c), given back
 * when no reference needs the bytes any more, at the latest with the scope (scope.c). The object
 * itself is always reference counted and comes from a pool here, so that a handle to an arena
 * tensor outlives the scope, with data = NULL.
 * Leaves out: strides. Every tensor is contiguous.
 */
#include "core.h"
#include "device.h"
#include "memory.h"
#include "processor.h"
#include "scope.h"
#include "storage.h"
#include "tape.h"
#include <math.h>
#include <stdlib.h>

/* ---- objects ---- */
static sz_tensor *pool; /* free objects, linked through grad */

static int grow_pool(void)
{
    enum { BATCH = 256 };
    sz_tensor *block = calloc(BATCH, sizeof *block);
    if (!block) return sz_fail("out of memory");
    sz_memory_asked();
    for (int i = 0; i < BATCH; i++) {
        block[i].grad = pool;
        pool = &block[i];
    }
    return 0;
}

static sz_tensor *object_new(void)
{
    if (!pool && grow_pool() != 0) return NULL;
    sz_tensor *t = pool;
    pool = t->grad;
    memset(t, 0, sizeof *t);
    t->refs = 1;
    t->node = -1;
    return t;
}

static int set_shape(sz_tensor *t, int dtype, int ndim, const int64_t *shape, int device)
{
    const int64_t most = INT64_C(1) << 56;
    if (dtype < SZ_F32 || dtype > SZ_U8) return sz_fail("unknown dtype %d", dtype);
    if (sz_device_ready(device) != 0) return -1;
    if (ndim < 0 || ndim > SZ_MAX_DIMS)
        return sz_fail("a tensor has 0 to %d dimensions, not %d", SZ_MAX_DIMS, ndim);
    int64_t n = 1;
    for (int i = 0; i < ndim; i++) {
        if (shape[i] < 0) return sz_fail("dimension %d of a shape is %lld", i, (long long)shape[i]);
        if (__builtin_mul_overflow(n, shape[i], &n) || n > most)
            return sz_fail("the shape is too large");
        t->shape[i] = shape[i];
    }
    t->dtype = (int8_t)dtype;
    t->device = (int8_t)device;
    t->ndim = (int8_t)ndim;
    t->numel = n;
    return 0;
}

/* An object with a shape and no bytes. */
static sz_tensor *object_shaped(int dtype, int ndim, const int64_t *shape, int device)
{
    sz_tensor *t = object_new();
    if (t && set_shape(t, dtype, ndim, shape, device) == 0) return t;
    sz_tensor_release(t);
    return NULL;
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
    if (--t->refs > 0) {
        if (t->refs == t->idle && !(t->flags & SZ_PINNED)) sz_tensor_drop_bytes(t);
        return;
    }
    sz_tensor_release(t->grad);
    sz_storage_release(t->storage);
    sz_arena_release_block(t->block);
    t->block = NULL;
    t->storage = NULL;
    t->data = NULL;
    t->grad = pool;
    pool = t;
}

/* ---- bytes in the arena ---- */
void sz_tensor_drop_bytes(sz_tensor *t)
{
    if (!t->block) return;
    sz_arena_release_block(t->block);
    t->block = NULL;
    t->data = NULL;
}

int sz_tensor_take_bytes(sz_tensor *t)
{
    t->block = sz_arena_take(t->device, sz_bytes(t));
    if (!t->block) return -1;
    t->data = sz_arena_data(t->block);
    return 0;
}

void sz_tensor_pin(sz_tensor *t)
{
    if (t && !t->storage) t->flags |= SZ_PINNED;
}

/* ---- new tensors ---- */
sz_tensor *sz_tensor_meta(int dtype, int ndim, const int64_t *shape)
{
    sz_tensor *t = object_shaped(dtype, ndim, shape, SZ_CPU);
    if (!t) return NULL;
    t->storage = sz_storage_of_nothing(sz_bytes(t), &t->data);
    if (t->storage) return t;
    sz_tensor_release(t);
    return NULL;
}

sz_tensor *sz_tensor_new_heap(int dtype, int ndim, const int64_t *shape, int device)
{
    sz_tensor *t = object_shaped(dtype, ndim, shape, device);
    if (!t) return NULL;
    t->storage = sz_storage_of_block(device, sz_bytes(t), &t->data);
    if (t->storage) return t;
    sz_tensor_release(t);
    return NULL;
}

sz_tensor *sz_tensor_new_locked(int dtype, int ndim, const int64_t *shape)
{
    sz_tensor *t = object_shaped(dtype, ndim, shape, SZ_CPU);
    if (!t) return NULL;
    t->storage = sz_storage_of_locked(sz_bytes(t), &t->data);
    if (t->storage) return t;
    sz_tensor_release(t);
    return NULL;
}

sz_tensor *sz_tensor_new(int dtype, int ndim, const int64_t *shape, int device)
{
    if (!sz_scope_depth()) return sz_tensor_new_heap(dtype, ndim, shape, device);
    sz_tensor *t = object_shaped(dtype, ndim, shape, device);
    if (!t) return NULL;
    if (sz_tensor_take_bytes(t) == 0 && sz_scope_add(t) == 0) return t;
    sz_tensor_release(t);
    return NULL;
}

sz_tensor *sz_tensor_zeros(int dtype, int ndim, const int64_t *shape, int device)
{
    sz_tensor *t = sz_tensor_new(dtype, ndim, shape, device);
    if (!t || sz_is_dry_run()) return t;
    if (sz_bytes_fill(device, t->data, 0, sz_bytes(t)) == 0) return t;
    sz_tensor_release(t);
    return NULL;
}

sz_tensor *sz_tensor_like(const sz_tensor *t)
{
    return sz_tensor_new(t->dtype, t->ndim, t->shape, t->device);
}

sz_tensor *sz_new1(int dtype, int64_t n, int device) { return sz_tensor_new(dtype, 1, &n, device); }

sz_tensor *sz_new2(int dtype, int64_t n, int64_t m, int device)
{
    const int64_t shape[] = { n, m };
    return sz_tensor_new(dtype, 2, shape, device);
}

/* ---- tensors over the bytes of others ---- */
sz_tensor *sz_tensor_over(sz_storage *s, int dtype, int ndim, const int64_t *shape, void *data)
{
    sz_tensor *t = object_shaped(dtype, ndim, shape, SZ_CPU);
    if (!t) return NULL;
    t->storage = sz_storage_retain(s);
    t->data = data;
    return t;
}

sz_tensor *sz_tensor_over_block(const sz_tensor *t, sz_arena_block *b, void *bytes)
{
    sz_tensor *v = object_shaped(t->dtype, t->ndim, t->shape, t->device);
    if (!v) return NULL;
    v->data = bytes;
    v->block = sz_arena_retain(b);
    if (sz_scope_add(v) == 0) return v;
    sz_tensor_release(v);
    return NULL;
}

sz_tensor *sz_tensor_view(sz_tensor *t, int ndim, const int64_t *shape, int64_t first)
{
    if (sz_tensor_alive(t) != 0) return NULL;
    sz_tensor *v = object_shaped(t->dtype, ndim, shape, t->device);
    if (!v) return NULL;
    SZ_ASSERT(first >= 0 && first + v->numel <= t->numel, "a view reaches past its tensor");
    v->data = (char *)t->data + (size_t)first * sz_dtype_size(t->dtype);
    v->storage = sz_storage_retain(t->storage);
    v->block = sz_arena_retain(t->block);
    if (v->storage || sz_scope_add(v) == 0) return v;
    sz_tensor_release(v);
    return NULL;
}

sz_tensor *sz_tensor_detach(sz_tensor *t)
{
    return t ? sz_tensor_view(t, t->ndim, t->shape, 0) : NULL;
}

void sz_tensor_unload(const sz_tensor *t)
{
    if (t && t->storage && !sz_storage_is_block(t->storage)) sz_unload_pages(t->data, sz_bytes(t));
}

/* ---- facts ---- */
int sz_tensor_alive(const sz_tensor *t)
{
    if (t && !t->data)
        return sz_fail("this tensor belonged to a step that has ended; keep a copy with clone()");
    return t ? 0 : -1;
}

void *sz_tensor_data(sz_tensor *t)
{
    if (sz_tensor_alive(t) != 0) return NULL;
    if (t->device == SZ_CPU) return t->data;
    return sz_null("this tensor is on %s; a copy on the cpu can be read",
                   sz_device_name(t->device));
}

int sz_tensor_plain_nans(sz_tensor *t)
{
    float *x = sz_tensor_data(t);
    if (!x) return -1;
    if (t->dtype != SZ_F32) return sz_fail("plain_nans: an f32 tensor is expected");

    /* Hardly ever is there one, and memory that is not written to may be a file's pages. */
    int64_t n = sz_tensor_numel(t);
    int found = 0;
    for (int64_t i = 0; i < n; i++) found |= x[i] != x[i];
    for (int64_t i = 0; found && i < n; i++)
        if (x[i] != x[i]) x[i] = NAN;
    return 0;
}

int sz_tensor_dtype(const sz_tensor *t) { return t->dtype; }
int sz_tensor_device(const sz_tensor *t) { return t->device; }
int sz_tensor_ndim(const sz_tensor *t) { return t->ndim; }
int64_t sz_tensor_numel(const sz_tensor *t) { return t->numel; }

int64_t sz_tensor_dim(const sz_tensor *t, int i)
{
    if (i < 0) i += t->ndim;
    return i < 0 || i >= t->ndim ? 1 : t->shape[i];
}

/* ---- copies ---- */
/* Copies t's bytes into c, of the same shape and dtype; takes over c, and returns it or NULL. */
static sz_tensor *filled_from(sz_tensor *c, const sz_tensor *t)
{
    if (!c || sz_is_dry_run()) return c;
    if (sz_bytes_copy(c->device, c->data, t->device, t->data, sz_bytes(t)) == 0) return c;
    sz_tensor_release(c);
    return NULL;
}

sz_tensor *sz_tensor_clone(sz_tensor *t)
{
    if (sz_tensor_alive(t) != 0) return NULL;
    sz_tensor *c = filled_from(sz_tensor_new_heap(t->dtype, t->ndim, t->shape, t->device), t);
    if (!c || !sz_needs_grad(t) || !sz_grad_enabled()) return c;
    /* The node is a cast to the same dtype: its rule passes the gradient on. */
    const sz_call call = { .in = { t }, .out = { c }, .args = { t->dtype } };
    if (sz_tape_record(SZ_OP_cast, &call) == 0) return c;
    sz_tensor_release(c);
    return NULL;
}

sz_tensor *sz_tensor_to(sz_tensor *t, int device)
{
    if (sz_tensor_alive(t) != 0) return NULL;
    if (t->device == device) return sz_tensor_retain(t);
    const bool has_history = sz_needs_grad(t) && !(t->flags & SZ_PARAMETER);
    if (has_history && sz_grad_enabled())
        return sz_null("a gradient does not go from %s to %s; detach the tensor first",
                       sz_device_name(t->device), sz_device_name(device));
    return filled_from(sz_tensor_new(t->dtype, t->ndim, t->shape, device), t);
}

int sz_tensor_move(sz_tensor **t, int device)
{
    sz_tensor *moved = sz_tensor_to(*t, device);
    if (!moved) return -1;
    sz_tensor_release(*t);
    *t = moved;
    return 0;
}

int sz_tensor_write(sz_tensor *t, const void *from)
{
    if (sz_tensor_alive(t) != 0) return -1;
    return sz_bytes_copy(t->device, t->data, SZ_CPU, from, sz_bytes(t));
}

static char *element(const sz_tensor *t, int64_t i)
{
    return (char *)t->data + (size_t)i * sz_dtype_size(t->dtype);
}

/* Converts n elements from `first` on. The conversion runs on src's device; where dst is on
 * another one, its result is made in src's arena and then moved. */
static int convert_part(sz_tensor *dst, sz_tensor *src, int64_t first, int64_t n)
{
    sz_tensor from = *src;
    from.ndim = 1;
    from.shape[0] = n;
    from.numel = n;
    from.data = element(src, first);

    sz_tensor to = *dst;
    to.ndim = 1;
    to.shape[0] = n;
    to.numel = n;
    to.device = src->device;
    void *place = element(dst, first);
    const bool same_device = dst->device == src->device;
    to.data = same_device ? place : sz_scratch_on(src->device, sz_bytes(&to));
    if (!to.data) return -1;

    sz_kernel cast = src->device == SZ_CPU ? sz_processor()->ops[SZ_OP_cast]
                                           : sz_device->kernels[SZ_OP_cast];
    sz_call c = { .in = { &from }, .out = { &to }, .args = { dst->dtype } };
    int rc = cast(&c);
    if (rc != 0 || same_device) return rc;
    return sz_bytes_copy(dst->device, place, src->device, to.data, sz_bytes(&to));
}

int sz_tensor_copy(sz_tensor *dst, sz_tensor *src)
{
    enum { PIECE = 1 << 22 };
    if (sz_tensor_alive(dst) != 0 || sz_tensor_alive(src) != 0) return -1;
    if (dst->numel != src->numel)
        return sz_fail("copy: %lld elements into %lld", (long long)src->numel,
                       (long long)dst->numel);
    if (sz_is_dry_run()) return 0;
    if (dst->dtype == src->dtype)
        return sz_bytes_copy(dst->device, dst->data, src->device, src->data, sz_bytes(src));

    /* Between devices in pieces, so that the arena need not hold a whole embedding. */
    const int64_t piece = dst->device == src->device ? src->numel : PIECE;
    const sz_scratch_mark before = sz_scratch_now();
    int rc = 0;
    for (int64_t i = 0; rc == 0 && i < src->numel; i += piece) {
        const int64_t left = src->numel - i;
        rc = convert_part(dst, src, i, left < piece ? left : piece);
        sz_scratch_back(before);
    }
    return rc;
}

/* ---- gradients ---- */
int sz_tensor_set_requires_grad(sz_tensor *t, int on)
{
    if (on && t->dtype != SZ_F32 && t->dtype != SZ_BF16)
        return sz_fail("only f32 and bf16 tensors have gradients");
    if (on && t->node >= 0) return sz_fail("requires_grad is set on leaves, not on results");
    if (on) t->flags |= SZ_REQUIRES_GRAD | SZ_PARAMETER;
    else t->flags &= (uint8_t) ~(SZ_REQUIRES_GRAD | SZ_PARAMETER);
    return 0;
}

int sz_tensor_requires_grad(const sz_tensor *t) { return (t->flags & SZ_REQUIRES_GRAD) != 0; }

sz_tensor *sz_tensor_grad(sz_tensor *t)
{
    return t->grad ? t->grad : sz_null("this tensor has no gradient");
}

int sz_tensor_zero_grad(sz_tensor *t)
{
    if (!t->grad || sz_is_dry_run()) return 0;
    return sz_bytes_clear(t->grad->device, t->grad->data, sz_bytes(t->grad));
}

int sz_tensor_set_grad_dtype(sz_tensor *t, int dtype)
{
    if (dtype != SZ_F32 && dtype != SZ_BF16) return sz_fail("gradients are f32 or bf16");
    if (t->grad) return sz_fail("this tensor has a gradient already");
    if (dtype == SZ_BF16) t->flags |= SZ_GRAD_BF16;
    else t->flags &= (uint8_t)~SZ_GRAD_BF16;
    return 0;
}
