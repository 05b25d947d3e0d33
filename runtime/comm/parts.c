/* parts.c - collectives on a list of tensors that is divided among the ranks: each rank has a range
 * of each tensor. Gradients are summed to the rank that has the range, and updated weights go from
 * there to all others.
 *
 * bounds [n, size + 1]: rank r has elements [bounds[i][r], bounds[i][r + 1]) of tensor i.
 *
 * The work goes in buckets, so that the workspace is bounded: a bucket is a list of segments, and a
 * segment is up to `most` elements of every rank's range of one tensor. All ranks compute the same
 * buckets. Small tensors share a bucket and a large one has several. Messages read and write the
 * tensors' own memory; what is on a device passes through the workspace, unless devices talk to
 * each other (nccl.c).
 * Method: ZeRO, stage 2 (Rajbhandari et al. 2020).
 * Leaves out: who has which range (lua/segzero/train/shards.lua).
 */
#include "comm/group.h"
#include "comm/links.h"
#include "core/core.h"
#include "core/memory.h"
#include <stdlib.h>

enum { SEGMENTS = 256, ALIGNMENT = 16 };

typedef struct {
    sz_tensor *tensor;
    const int64_t *bounds; /* [size + 1] */
    int64_t from, most;    /* of every rank's range */
} segment;

typedef struct {
    sz_comm *comm;
    bool sums;            /* sums to the owner; false: sends from the owner */
    bool direct;          /* all tensors are on devices that talk to each other (nccl.c) */
    sz_scratch_mark mark; /* of the arena before its space, if direct */
    int count;            /* of segments */
    size_t used;          /* of the space, at most; while the messages are made: so far */
    segment segments[SEGMENTS];
    char *space;           /* SZ_COMM_PIECE bytes and the alignment of each piece */
    char **pieces;         /* [SEGMENTS, size]: this rank's elements of each rank's range */
    const void **received; /* [SEGMENTS, size]: each rank's elements of this rank's range */
    sz_message *messages;  /* [SEGMENTS * size * 2] */
} bucket;

static void bucket_free(bucket *b)
{
    if (!b) return;
    if (b->direct) sz_scratch_back(b->mark);
    else free(b->space);
    free(b->pieces);
    free(b->received);
    free(b->messages);
    free(b);
}

static size_t space_bytes(const sz_comm *c)
{
    return SZ_COMM_PIECE + (size_t)SEGMENTS * (size_t)c->size * 2 * ALIGNMENT;
}

static void *new_space(bucket *b)
{
    if (!b->direct) return malloc(space_bytes(b->comm));
    b->mark = sz_scratch_now();
    return sz_scratch_on(SZ_CUDA, space_bytes(b->comm));
}

/* direct: of sz_comm_is_direct; NULL with a message. */
static bucket *bucket_new(sz_comm *c, bool sums, int direct)
{
    const size_t places = (size_t)SEGMENTS * (size_t)c->size;
    if (direct < 0) return NULL;
    bucket *b = calloc(1, sizeof *b);
    if (!b) return sz_null("no memory to exchange parts of tensors");
    b->comm = c;
    b->sums = sums;
    b->direct = direct;
    b->space = new_space(b);
    b->pieces = calloc(places, sizeof *b->pieces);
    b->received = calloc(places, sizeof *b->received);
    b->messages = calloc(places * 2, sizeof *b->messages);
    if (b->space && b->pieces && b->received && b->messages) return b;
    bucket_free(b);
    return sz_null("no memory to exchange parts of tensors");
}

/* ---- places ---- */
static int64_t begin_of(const segment *s, int r)
{
    const int64_t begin = s->bounds[r] + s->from;
    return begin < s->bounds[r + 1] ? begin : s->bounds[r + 1];
}

static int64_t count_of(const segment *s, int r)
{
    const int64_t left = s->bounds[r + 1] - begin_of(s, r);
    return left < s->most ? left : s->most;
}

static size_t bytes_of(const segment *s, int r)
{
    return (size_t)count_of(s, r) * sz_dtype_size(s->tensor->dtype);
}

static char *data_of(const segment *s, int r)
{
    return (char *)s->tensor->data + (size_t)begin_of(s, r) * sz_dtype_size(s->tensor->dtype);
}

static char *take(bucket *b, size_t bytes)
{
    char *p = b->space + b->used;
    b->used += (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return p;
}

/* Where messages find rank r's range in this rank's tensor: in place, or a copy of a device's. */
static int find_piece(bucket *b, int i, int r)
{
    const segment *s = &b->segments[i];
    char **piece = &b->pieces[i * b->comm->size + r];
    *piece = data_of(s, r);
    if (s->tensor->device == SZ_CPU || b->direct) return 0;
    *piece = take(b, bytes_of(s, r));
    if (!b->sums && r != b->comm->rank) return 0; /* is going to be received */
    return sz_bytes_copy(SZ_CPU, *piece, s->tensor->device, data_of(s, r), bytes_of(s, r));
}

/* ---- one bucket ---- */
static void add(bucket *b, int *count, bool send, int peer, void *data, size_t bytes)
{
    if (bytes == 0) return;
    b->messages[(*count)++] = (sz_message){ data, bytes, b->comm->world_rank[peer], send };
}

/* Segment i: this rank's elements of r's range go to r, r's of this rank's range come. */
static void add_sum(bucket *b, int *count, int i, int r)
{
    const int size = b->comm->size;
    const int rank = b->comm->rank;
    const segment *s = &b->segments[i];
    char *got = b->pieces[i * size + r];
    if (r != rank) {
        got = take(b, bytes_of(s, rank));
        add(b, count, true, r, b->pieces[i * size + r], bytes_of(s, r));
        add(b, count, false, r, got, bytes_of(s, rank));
    }
    b->received[i * size + r] = got;
}

/* Segment i: this rank's range goes to r, r's comes. */
static void add_copy(bucket *b, int *count, int i, int r)
{
    const int size = b->comm->size;
    const int rank = b->comm->rank;
    const segment *s = &b->segments[i];
    if (r == rank) return;
    add(b, count, true, r, b->pieces[i * size + rank], bytes_of(s, rank));
    add(b, count, false, r, b->pieces[i * size + r], bytes_of(s, r));
}

/* Sums what has come, and copies to the device what has changed there, unless it is there. */
static int finish_segment(bucket *b, int i)
{
    const int size = b->comm->size;
    const int rank = b->comm->rank;
    const segment *s = &b->segments[i];
    const int device = b->direct ? SZ_CPU : s->tensor->device;
    if (b->sums && b->direct) {
        if (count_of(s, rank) <= 0) return 0;
        return sz_comm_sum_direct(s->tensor->dtype, b->pieces[i * size + rank],
                                  &b->received[i * size], size, count_of(s, rank));
    }
    if (b->sums) {
        sz_comm_sum_elements(s->tensor->dtype, b->pieces[i * size + rank], &b->received[i * size],
                             size, count_of(s, rank));
    }
    for (int r = 0; device != SZ_CPU && r < size; r++) {
        const bool changed = b->sums == (r == rank);
        if (!changed) continue;
        if (sz_bytes_copy(device, data_of(s, r), SZ_CPU, b->pieces[i * size + r], bytes_of(s, r)))
            return -1;
    }
    return 0;
}

static int exchange_bucket(bucket *b)
{
    const int size = b->comm->size;
    int count = 0;
    b->used = 0;
    for (int i = 0; i < b->count; i++) {
        for (int r = 0; r < size; r++)
            if (find_piece(b, i, r) != 0) return -1;
        for (int r = 0; r < size; r++) {
            if (b->sums) add_sum(b, &count, i, r);
            else add_copy(b, &count, i, r);
        }
    }
    const char *what = b->sums ? "the sum of gradients" : "the gathering of weights";
    const int status = b->direct ? sz_comm_exchange_direct(b->comm, b->messages, count, what)
                                 : sz_comm_exchange(b->messages, count, what);
    if (status != 0) return -1;
    for (int i = 0; i < b->count; i++)
        if (finish_segment(b, i) != 0) return -1;
    b->count = 0;
    b->used = 0;
    return 0;
}

/* ---- all buckets ---- */
/* As sz_comm_is_direct for all of the tensors. */
static int are_direct(sz_comm *c, sz_tensor *const *tensors, int n)
{
    for (int i = 0; i < n; i++)
        if (tensors[i]->device == SZ_CPU) return 0;
    return n > 0 ? sz_comm_is_direct(c, tensors[0]) : 0;
}

/* Workspace of `most` elements of every rank's range, for any rank: a sum takes what it receives,
 * and a device's tensor a copy of all ranges. */
static size_t need_of(const bucket *b, const sz_tensor *t, int64_t most)
{
    const size_t copies = (t->device != SZ_CPU && !b->direct) + b->sums;
    return copies * (size_t)b->comm->size * (size_t)most * sz_dtype_size(t->dtype);
}

/* How many segments a bucket has at most. */
static int most_segments(const bucket *b)
{
    const int most = SZ_LINK_MESSAGES / (2 * b->comm->size);
    return b->direct && most < SEGMENTS ? most : SEGMENTS;
}

static int add_tensor(bucket *b, sz_tensor *t, const int64_t *bounds)
{
    /* The longest range, and how much of it a bucket can take. */
    int64_t longest = 0;
    for (int r = 0; r < b->comm->size; r++) {
        const int64_t n = bounds[r + 1] - bounds[r];
        longest = n > longest ? n : longest;
    }
    const size_t each = need_of(b, t, 1);
    int64_t most = each ? (int64_t)(SZ_COMM_PIECE / each) : longest;
    if (most < 1) most = 1;

    for (int64_t from = 0; from < longest; from += most) {
        const int64_t n = longest - from < most ? longest - from : most;
        const size_t need = need_of(b, t, n);
        const bool is_full = b->count == most_segments(b) || b->used + need > SZ_COMM_PIECE;
        if (b->count && is_full && exchange_bucket(b) != 0) return -1;
        b->segments[b->count++] = (segment){ t, bounds, from, n };
        b->used += need;
    }
    return 0;
}

static int check_bounds(const sz_comm *c, const sz_tensor *t, const int64_t *bounds)
{
    bool fits = bounds[0] == 0 && bounds[c->size] == t->numel;
    for (int r = 0; r < c->size; r++) fits = fits && bounds[r] <= bounds[r + 1];
    return fits ? 0
                : sz_fail("parts: the ranges do not cover a tensor of %lld elements",
                          (long long)t->numel);
}

int sz_comm_sum_gradient_parts(sz_comm *c, sz_tensor **parameters, int n, const int64_t *bounds)
{
    if (c->size == 1) return 0;
    bucket *b = bucket_new(c, true, are_direct(c, parameters, n));
    int status = b ? 0 : -1;
    for (int i = 0; status == 0 && i < n; i++) {
        const int64_t *own = bounds + (size_t)i * (size_t)(c->size + 1);
        if (!sz_needs_grad(parameters[i]))
            status = sz_fail("parts: tensor %d takes no gradient", i + 1);
        sz_tensor *grad = status == 0 ? sz_grad_buffer(parameters[i]) : NULL;
        if (!grad || check_bounds(c, grad, own) != 0) status = -1;
        if (status == 0) status = add_tensor(b, grad, own);
    }
    if (status == 0) status = exchange_bucket(b);
    bucket_free(b);
    return status;
}

int sz_comm_gather_parts(sz_comm *c, sz_tensor **tensors, int n, const int64_t *bounds)
{
    if (c->size == 1) return 0;
    bucket *b = bucket_new(c, false, are_direct(c, tensors, n));
    int status = b ? 0 : -1;
    for (int i = 0; status == 0 && i < n; i++) {
        const int64_t *own = bounds + (size_t)i * (size_t)(c->size + 1);
        status = check_bounds(c, tensors[i], own);
        if (status == 0) status = add_tensor(b, tensors[i], own);
    }
    if (status == 0) status = exchange_bucket(b);
    bucket_free(b);
    return status;
}
