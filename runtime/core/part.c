/* part.c - parts of whole tensors: the slice of a weight that a shard of a split model has, and of
 * that slice the range of elements whose optimizer state a rank keeps. An sz_place says where such
 * a part is; its elements are runs in the whole tensor, all of one length but the first and the
 * last.
 *
 * Leaves out: files (io/safetensors.c, io/shared_file.c), who has which part (Lua).
 */
#include "core.h"

int sz_place_check(const sz_place *p, int64_t part, int64_t whole)
{
    if (p->first < 0 || p->run < 1 || p->stride < p->run || p->skip < 0)
        return sz_fail("a part that begins at %lld of rows of %lld in %lld is none",
                       (long long)p->first, (long long)p->run, (long long)p->stride);
    if (part == 0) return 0;

    /* The last element must be in the whole. */
    const int64_t last = p->skip + part - 1;
    int64_t end = 0;
    if (__builtin_mul_overflow(last / p->run, p->stride, &end) ||
        __builtin_add_overflow(end, p->first + last % p->run, &end) || end >= whole)
        return sz_fail("a part of %lld elements ends after the %lld of the whole tensor",
                       (long long)part, (long long)whole);
    return 0;
}

/* The bytes of the part's elements, one run after another. */
static void collect(char *out, const sz_place *p, int64_t count, const char *whole, size_t size)
{
    int64_t at = 0;
    int64_t n = 0;
    for (int64_t i = 0; i < count; i += n) {
        n = sz_place_run(p, i, count, &at);
        memcpy(out + (size_t)i * size, whole + (size_t)at * size, (size_t)n * size);
    }
}

int sz_part_copy(sz_tensor *part, const sz_place *place, sz_tensor *whole)
{
    if (sz_tensor_alive(part) != 0 || !sz_tensor_data(whole)) return -1;
    if (sz_place_check(place, part->numel, whole->numel) != 0) return -1;
    if (sz_is_dry_run() || part->numel == 0) return 0;

    /* One run is a range of the whole. */
    int64_t at = 0;
    if (sz_place_run(place, 0, part->numel, &at) == part->numel) {
        sz_tensor *range = sz_tensor_view(whole, 1, &part->numel, at);
        const int rc = range ? sz_tensor_copy(part, range) : -1;
        sz_tensor_release(range);
        return rc;
    }

    const size_t size = sz_dtype_size(whole->dtype);
    if (part->device == SZ_CPU && part->dtype == whole->dtype) {
        collect(part->data, place, part->numel, whole->data, size);
        return 0;
    }
    sz_tensor *host = sz_tensor_new_heap(whole->dtype, 1, &part->numel, SZ_CPU);
    if (!host) return -1;
    collect(host->data, place, part->numel, whole->data, size);
    const int rc = sz_tensor_copy(part, host);
    sz_tensor_release(host);
    return rc;
}
