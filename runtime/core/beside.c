/* beside.c - tensors that go to the device beside its other work (backend.h, lanes): for weights that
 * wait in host memory.
 *
 *     sz_tensor *waiting = sz_tensor_lock(weight);       once
 *     sz_uploads_begin();
 *     sz_tensor *there = sz_tensor_upload(waiting);      for each weight; returns at once
 *     sz_uploads_end();                                  what the device gets from now on waits
 *
 * Leaves out: the way back, which an update needs (ops/optim_offload.c).
 */
#include "device.h"

enum { BEGUN = SZ_MARKS - 2, ENDED = SZ_MARKS - 1 }; /* marks; the others are optim_offload.c's */

sz_tensor *sz_tensor_lock(sz_tensor *t)
{
    if (sz_tensor_alive(t) != 0 || sz_device_ready(SZ_CUDA) != 0) return NULL;
    sz_tensor *locked = sz_tensor_new_locked(t->dtype, t->ndim, t->shape);
    if (locked && sz_tensor_copy(locked, t) == 0) return locked;
    sz_tensor_release(locked);
    return NULL;
}

int sz_uploads_begin(void)
{
    if (sz_device_ready(SZ_CUDA) != 0 || sz_device->mark(SZ_LANE_MAIN, BEGUN) != 0) return -1;
    return sz_device->await(SZ_LANE_UP, BEGUN);
}

sz_tensor *sz_tensor_upload(sz_tensor *t)
{
    if (sz_tensor_alive(t) != 0) return NULL;
    sz_tensor *there = sz_tensor_new_heap(t->dtype, t->ndim, t->shape, SZ_CUDA);
    if (!there) return NULL;
    if (sz_device->copy_beside(SZ_LANE_UP, there->data, t->data, sz_bytes(t)) == 0) return there;
    sz_tensor_release(there);
    return NULL;
}

int sz_uploads_end(void)
{
    if (sz_device->mark(SZ_LANE_UP, ENDED) != 0) return -1;
    return sz_device->await(SZ_LANE_MAIN, ENDED);
}
