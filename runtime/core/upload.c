/* upload.c - tensors in page-locked host memory, and copies of them on the device that are made
 * during its other work: for weights that are on the device only while they are used.
 *
 *     sz_tensor *locked = sz_tensor_lock(weight);        once
 *     sz_tensor *copy = sz_tensor_upload(locked);        returns at once
 *
 * Leaves out: the way back, which an update needs (ops/optim_offload.c).
 */
#include "device.h"

enum { BEFORE = SZ_MARKS - 2, AFTER = SZ_MARKS - 1 }; /* marks; the others are optim_offload.c's */

sz_tensor *sz_tensor_lock(sz_tensor *t)
{
    if (sz_tensor_alive(t) != 0 || sz_device_ready(SZ_CUDA) != 0) return NULL;
    sz_tensor *locked = sz_tensor_new_locked(t->dtype, t->ndim, t->shape);
    if (locked && sz_tensor_copy(locked, t) == 0) return locked;
    sz_tensor_release(locked);
    return NULL;
}

/* Earlier work may still use the memory that the copy is made in, and a block that is freed may be
 * used by later work at once. So the copy comes after the one and before the other. */
static int copy_in_order(sz_tensor *to, const sz_tensor *from)
{
    if (sz_device->mark(SZ_LANE_MAIN, BEFORE) != 0) return -1;
    if (sz_device->await(SZ_LANE_UP, BEFORE) != 0) return -1;
    if (sz_device->copy_async(SZ_LANE_UP, to->data, from->data, sz_bytes(from)) != 0) return -1;
    if (sz_device->mark(SZ_LANE_UP, AFTER) != 0) return -1;
    return sz_device->await(SZ_LANE_MAIN, AFTER);
}

sz_tensor *sz_tensor_upload(sz_tensor *t)
{
    if (sz_tensor_alive(t) != 0) return NULL;
    sz_tensor *copy = sz_tensor_new_heap(t->dtype, t->ndim, t->shape, SZ_CUDA);
    if (copy && copy_in_order(copy, t) == 0) return copy;
    sz_tensor_release(copy);
    return NULL;
}
