/* shards.c - the collectives inside a forward and backward pass of a model that is split over
 * ranks: the ops tp_sum and tp_gather (ops/shards.c) call them with the handle of their group.
 *
 * Tensors on a device pass through host memory, unless the devices talk to each other (nccl.c).
 * Leaves out: gradients, which are the ops'.
 */
#include "comm/group.h"
#include "ops/dims.h"
#include <stdlib.h>

/* y = x, on any device; nothing where they are the same bytes. */
static int copy(const sz_tensor *x, sz_tensor *y)
{
    if (x->data == y->data) return 0;
    return sz_bytes_copy(y->device, y->data, x->device, x->data, sz_bytes(x));
}

int sz_comm_sum_into(int handle, const sz_tensor *x, sz_tensor *y)
{
    if (copy(x, y) != 0) return -1;
    if (handle == 0) return 0;
    sz_comm *c = sz_comm_of_handle(handle);
    return c ? sz_comm_all_reduce(c, y) : -1;
}

/* ---- joining ---- */
/* What each rank has, as bytes. */
typedef struct {
    int64_t *sizes;  /* [ranks] of its whole x */
    int64_t outer;   /* the number of runs of bytes in x, which are apart in y */
    int64_t y_bytes; /* of all runs with one outer index */
} layout;

/* Fills l->sizes, which has room for all ranks; -1 with a message where y does not fit. */
static int measure(layout *l, int ranks, const sz_tensor *x, int dim, const int32_t *sizes,
                   const sz_tensor *y)
{
    const sz_around around = sz_around_dim(x, dim);
    const int64_t unit = around.inner * (int64_t)sz_dtype_size(x->dtype);
    int64_t total = 0;
    l->outer = around.outer;
    for (int r = 0; r < ranks; r++) {
        const int64_t size = sizes ? sizes[r] : around.n;
        l->sizes[r] = around.outer * size * unit;
        total += size;
    }
    l->y_bytes = total * unit;
    if (y->shape[dim] == total) return 0;
    return sz_fail("tp_gather: the parts of %d ranks are %lld long, not %lld", ranks,
                   (long long)total, (long long)y->shape[dim]);
}

/* all: the ranks' x one after another; to: their runs side by side. */
static void interleave(const layout *l, int ranks, const char *all, char *to)
{
    for (int r = 0; r < ranks; r++) {
        const int64_t run = l->sizes[r] / (l->outer ? l->outer : 1);
        for (int64_t i = 0; i < l->outer; i++)
            memcpy(to + i * l->y_bytes, all + i * run, (size_t)run);
        all += l->sizes[r];
        to += run;
    }
}

/* from: x; to: y, both in host memory. */
static int join_bytes(sz_comm *c, const layout *l, const void *from, char *to, size_t bytes)
{
    if (l->outer == 1) return sz_comm_all_gather_bytes(c, from, l->sizes, to);
    char *all = malloc(bytes ? bytes : 1);
    if (!all) return sz_fail("no memory to gather %zu bytes", bytes);
    const int status = sz_comm_all_gather_bytes(c, from, l->sizes, all);
    if (status == 0) interleave(l, sz_comm_size(c), all, to);
    free(all);
    return status;
}

static int join(sz_comm *c, const layout *l, const sz_tensor *x, sz_tensor *y)
{
    const int direct = sz_comm_is_direct(c, x);
    if (direct < 0) return -1;
    if (direct) return sz_comm_join_direct(c, x, l->sizes, l->outer, y);
    void *from = sz_comm_to_host(x);
    void *to = from ? sz_comm_to_host(y) : NULL;
    int status = -1;
    if (to) {
        status = join_bytes(c, l, from, to, sz_bytes(y));
        status = sz_comm_to_tensor(y, to, status);
    }
    if (from && x->device != SZ_CPU) free(from);
    return status;
}

int sz_comm_join(int handle, const sz_tensor *x, int dim, const int32_t *sizes, sz_tensor *y)
{
    sz_comm *c = handle ? sz_comm_of_handle(handle) : NULL;
    if (handle && !c) return -1;
    const int ranks = c ? sz_comm_size(c) : 1;
    layout l = { .sizes = malloc(sizeof *l.sizes * (size_t)ranks) };
    if (!l.sizes) return sz_fail("no memory to gather over %d ranks", ranks);
    int status = measure(&l, ranks, x, dim, sizes, y);
    if (status == 0 && ranks == 1) status = copy(x, y);
    else if (status == 0 && y->numel > 0) status = join(c, &l, x, y);
    free(l.sizes);
    return status;
}
