/* nccl.c - the collectives of tensors on a device, whose ranks talk to each other without host
 * memory: messages by NCCL, sums by the backend's kernel (links.h). Same algorithms, same order of
 * sums and same number of bytes as comm.c, so the same bits.
 *
 * A group's devices are joined by the first collective that needs them: the ranks compare what they
 * have, and one makes the id that the others get as bytes. Where that cannot be, because a rank has
 * no NCCL or ranks share a device, all of them go through host memory, and one line says so.
 *
 * A collective is put in line behind the device's other work; the host does not wait. What fails is
 * told where it next waits for the device: the backend then calls watch().
 * Leaves out: overlap with other device work; collectives of NCCL's own (cuda/nccl.cu says why).
 */
#include "comm/group.h"
#include "comm/links.h"
#include "core/device.h"
#include "core/memory.h"
#include <stdio.h>
#include <stdlib.h>

enum { UNKNOWN, LINKED, APART };  /* sz_comm.link_state */
enum { DIRECT_PIECE = 32 << 20 }; /* bytes of workspace that a sum takes */
static const double PATIENCE = 5; /* seconds in which a rank that waits answers */

/* The last collective, for messages. */
static const sz_comm *last_group;
static const char *last_what = "a collective";

/* ---- while the host waits for the device ---- */
/* The ranks of the last collective, then all others: the first one that does not answer. */
static int find_absent(void)
{
    const sz_comm *world = sz_comm_world();
    int *ranks = calloc((size_t)world->size * 2, sizeof *ranks);
    if (!ranks) return -1;
    int count = 0;
    for (int r = 0; last_group && r < last_group->size; r++)
        ranks[count++] = last_group->world_rank[r];
    for (int r = 0; r < world->size; r++) ranks[count++] = r;
    const double limit = sz_comm_timeout();
    const double patience = limit < PATIENCE ? limit : PATIENCE;
    const int absent = sz_comm_transport()->absent(ranks, count, patience);
    free(ranks);
    return absent;
}

static int watch(double seconds)
{
    const sz_transport *transport = sz_comm_transport();
    const sz_comm *world = sz_comm_world();
    if (sz_interrupt_pending()) return sz_fail("interrupted");
    const int gone = transport->attend();
    if (gone >= 0) return sz_fail("rank %s is gone (%s)", sz_comm_name(world, gone), last_what);
    const double limit = sz_comm_timeout();
    if (seconds < limit) return 0;
    const int absent = find_absent();
    if (absent >= 0)
        return sz_fail("rank %s has not answered for %g s (%s): it has stalled or is gone",
                       sz_comm_name(world, absent), limit, last_what);
    return sz_fail("%s has not ended for %g s, and all ranks wait for it: NCCL_DEBUG=INFO shows "
                   "what NCCL does, and SEGZERO_NCCL=0 goes through host memory",
                   last_what, limit);
}

int sz_comm_interrupted(void)
{
    static unsigned turn;
    if (sz_device && turn++ % 64 == 0) sz_device->links->poll();
    return sz_interrupt_pending();
}

/* ---- joining ---- */
/* What a rank tells the others before they join. */
typedef struct {
    int can_link, shares; /* it has NCCL; it may share its device */
    char place[SZ_LINK_PLACE];
    char why[128]; /* it has no NCCL */
} facts;

static bool same_host(const sz_comm *c, int a, int b)
{
    char name[SZ_HOST_NAME + 32];
    snprintf(name, sizeof name, "%s", strchr(sz_comm_name(c, a), '('));
    return strcmp(name, strchr(sz_comm_name(c, b), '(')) == 0;
}

/* Says once why the devices do not talk to each other; one rank says it. */
static void say_apart(const sz_comm *c, const char *why)
{
    static bool said;
    if (!said && c->world_rank[0] == 0 && c->rank == 0)
        fprintf(stderr, "segzero: ranks exchange through host memory: %s\n", why);
    said = true;
}

/* Two ranks on one device: rank *a and *b. */
static bool find_shared(const sz_comm *c, const facts *all, int *a, int *b)
{
    for (*b = 0; *b < c->size; ++*b)
        for (*a = 0; *a < *b; ++*a)
            if (strcmp(all[*a].place, all[*b].place) == 0 && same_host(c, *a, *b)) return true;
    return false;
}

/* Whether the ranks' devices can be joined; all ranks come to the same result. -1 with a
 * message. */
static int can_join(const sz_comm *c, const facts *all)
{
    char text[256];
    int a;
    int b;
    if (find_shared(c, all, &a, &b)) {
        char name[SZ_HOST_NAME + 32];
        snprintf(name, sizeof name, "%s", sz_comm_name(c, a));
        if (!all[a].shares || !all[b].shares)
            return sz_fail("cuda: rank %s and rank %s are on one device (%s): start one rank for "
                           "each device, or set SEGZERO_SHARE_DEVICE=1 to let ranks share one",
                           name, sz_comm_name(c, b), all[a].place);
        snprintf(text, sizeof text, "rank %s and rank %s share a device, which NCCL refuses", name,
                 sz_comm_name(c, b));
        say_apart(c, text);
        return 0;
    }
    for (int r = 0; r < c->size; r++) {
        if (all[r].can_link) continue;
        snprintf(text, sizeof text, "rank %s: NCCL: %s", sz_comm_name(c, r), all[r].why);
        say_apart(c, text);
        return 0;
    }
    if (c->size <= SZ_LINK_RANKS) return 1;
    say_apart(c, "a group has too many ranks");
    return 0;
}

static int gather_facts(sz_comm *c, facts *all)
{
    const sz_links *links = sz_device->links;
    const char *missing = links->missing();
    const char *share = getenv("SEGZERO_SHARE_DEVICE");
    facts own = { .can_link = !missing, .shares = share && strcmp(share, "1") == 0 };
    if (missing) snprintf(own.why, sizeof own.why, "%s", missing);
    if (links->place(own.place) != 0) return -1;
    int64_t *sizes = malloc(sizeof *sizes * (size_t)c->size);
    if (!sizes) return sz_fail("no memory for a group of ranks");
    for (int r = 0; r < c->size; r++) sizes[r] = sizeof own;
    const int status = sz_comm_all_gather_bytes(c, &own, sizes, all);
    free(sizes);
    return status;
}

/* The first rank makes the id, and all join with it. */
static int join(sz_comm *c)
{
    struct {
        char id[SZ_LINK_ID];
        int status;
        char failure[256];
    } made = { 0 };
    const sz_links *links = sz_device->links;
    if (c->rank == 0) {
        made.status = links->new_id(made.id);
        if (made.status != 0) snprintf(made.failure, sizeof made.failure, "%s", sz_last_error());
    }
    int64_t *sizes = calloc((size_t)c->size, sizeof *sizes);
    if (!sizes) return sz_fail("no memory for a group of ranks");
    sizes[0] = sizeof made;
    const int status = sz_comm_all_gather_bytes(c, &made, sizes, &made);
    free(sizes);
    if (status != 0) return -1;
    if (made.status != 0) return sz_fail("rank %s: %s", sz_comm_name(c, 0), made.failure);

    links->set_watch(watch);
    last_group = c;
    last_what = "joining the ranks' devices";
    c->link = links->join(made.id, c->world_rank, c->size, c->rank);
    if (c->link) return 0;
    char why[512];
    snprintf(why, sizeof why, "%s", sz_last_error());
    return sz_fail("%s (SEGZERO_NCCL=0 goes through host memory)", why);
}

static int link_devices(sz_comm *c)
{
    facts *all = calloc((size_t)c->size, sizeof *all);
    if (!all) return sz_fail("no memory for a group of ranks");
    int status = gather_facts(c, all);
    const int joins = status == 0 ? can_join(c, all) : -1;
    free(all);
    if (joins < 0) return -1;
    if (joins && join(c) != 0) return -1;
    c->link_state = joins ? LINKED : APART;
    return 0;
}

int sz_comm_is_direct(sz_comm *c, const sz_tensor *t)
{
    if (c->size == 1 || t->device == SZ_CPU || sz_is_dry_run()) return 0;
    if (c->link_state == UNKNOWN && link_devices(c) != 0) return -1;
    return c->link_state == LINKED;
}

int sz_comm_is_linked(const sz_comm *c) { return c->link_state == LINKED; }

void sz_comm_unlink(sz_comm *c)
{
    if (last_group == c) last_group = NULL;
    if (c->link) sz_device->links->leave(c->link);
    c->link = NULL;
}

/* ---- messages and workspace ---- */
int sz_comm_exchange_direct(sz_comm *c, const sz_message *messages, int count, const char *what)
{
    if (count == 0) return 0;
    if (sz_comm_count_messages(messages, count, what) != 0) return -1;
    last_group = c;
    last_what = what;
    return sz_device->links->exchange(c->link, messages, count);
}

int sz_comm_sum_direct(int dtype, void *out, const void *const *parts, int count, int64_t n)
{
    return sz_device->links->sum(dtype, out, parts, count, n);
}

static void add(sz_comm *c, int *count, bool send, int peer, void *data, size_t bytes)
{
    if (bytes == 0) return;
    c->messages[(*count)++] = (sz_message){ data, bytes, c->world_rank[peer], send };
}

/* ---- sums ---- */
/* A sum in pieces. Rank r has elements [begins[r], begins[r + 1]) of a piece. */
typedef struct {
    sz_comm *comm;
    int dtype;
    size_t width;
    char *space; /* one chunk of each rank */
    const void *parts[SZ_LINK_RANKS];
} summing;

static char *chunk_of(const summing *s, int r, int64_t n)
{
    return s->space + (size_t)r * (((size_t)n * s->width + 15) / 16 * 16);
}

/* out [n] = the sum of n elements of each rank: this rank's at own[rank], and those that it has for
 * rank r, counts[r] of them, at own[r]. */
static int sum_chunks(summing *s, char *const *own, const int64_t *counts, char *out,
                      const char *what)
{
    sz_comm *c = s->comm;
    const int64_t n = counts[c->rank];
    int count = 0;
    for (int r = 0; r < c->size; r++) {
        s->parts[r] = r == c->rank ? own[r] : chunk_of(s, r, n);
        if (r == c->rank) continue;
        add(c, &count, true, r, own[r], (size_t)counts[r] * s->width);
        add(c, &count, false, r, chunk_of(s, r, n), (size_t)n * s->width);
    }
    if (sz_comm_exchange_direct(c, c->messages, count, what) != 0) return -1;
    return n ? sz_comm_sum_direct(s->dtype, out, s->parts, c->size, n) : 0;
}

static int64_t begin_of(const sz_comm *c, int64_t n, int r)
{
    const int64_t each = (n + c->size - 1) / c->size;
    return each * r < n ? each * r : n;
}

/* The sum of n elements at p over all ranks, in place. Two ranks send each other everything: as
 * many bytes as in two halves, and one message instead of two. */
static int reduce_piece(summing *s, char *p, int64_t n, const char *what)
{
    sz_comm *c = s->comm;
    char *own[SZ_LINK_RANKS];
    int64_t counts[SZ_LINK_RANKS];
    for (int r = 0; r < c->size; r++) {
        const int64_t begin = c->size == 2 ? 0 : begin_of(c, n, r);
        own[r] = p + (size_t)begin * s->width;
        counts[r] = c->size == 2 ? n : begin_of(c, n, r + 1) - begin;
    }
    if (sum_chunks(s, own, counts, own[c->rank], what) != 0) return -1;
    if (c->size == 2) return 0;

    /* Every rank's sum to every other. */
    int count = 0;
    for (int r = 0; r < c->size; r++) {
        if (r == c->rank) continue;
        add(c, &count, true, r, own[c->rank], (size_t)counts[c->rank] * s->width);
        add(c, &count, false, r, own[r], (size_t)counts[r] * s->width);
    }
    return sz_comm_exchange_direct(c, c->messages, count, what);
}

/* Workspace for chunks of n elements; sz_scratch_back gives it back. */
static int summing_begin(summing *s, sz_comm *c, int dtype, int64_t n)
{
    *s = (summing){ .comm = c, .dtype = dtype, .width = sz_dtype_size(dtype) };
    const size_t chunk = ((size_t)n * s->width + 15) / 16 * 16;
    s->space = sz_scratch_on(SZ_CUDA, chunk * (size_t)c->size);
    return s->space ? 0 : -1;
}

int sz_comm_reduce_direct(sz_comm *c, sz_tensor *t, const char *what)
{
    const int64_t most = DIRECT_PIECE / (int64_t)sz_dtype_size(t->dtype);
    const int64_t piece = t->numel < most ? t->numel : most;
    const int64_t chunk = c->size == 2 ? piece : begin_of(c, piece, 1);
    const sz_scratch_mark mark = sz_scratch_now();
    summing s;
    int status = summing_begin(&s, c, t->dtype, chunk);
    for (int64_t at = 0; status == 0 && at < t->numel; at += piece) {
        const int64_t left = t->numel - at;
        char *begin = (char *)t->data + (size_t)at * s.width;
        status = reduce_piece(&s, begin, left < piece ? left : piece, what);
    }
    sz_scratch_back(mark);
    return status;
}

int sz_comm_scatter_direct(sz_comm *c, sz_tensor *whole, sz_tensor *part)
{
    const int64_t n = part->numel;
    const int64_t most = DIRECT_PIECE / (int64_t)sz_dtype_size(whole->dtype) / c->size + 1;
    const int64_t piece = n < most ? n : most;
    const sz_scratch_mark mark = sz_scratch_now();
    summing s;
    int status = summing_begin(&s, c, whole->dtype, piece);
    for (int64_t at = 0; status == 0 && at < n; at += piece) {
        char *own[SZ_LINK_RANKS];
        int64_t counts[SZ_LINK_RANKS];
        for (int r = 0; r < c->size; r++) {
            own[r] = (char *)whole->data + (size_t)(n * r + at) * s.width;
            counts[r] = n - at < piece ? n - at : piece;
        }
        char *out = (char *)part->data + (size_t)at * s.width;
        status = sum_chunks(&s, own, counts, out, "reduce_scatter");
    }
    sz_scratch_back(mark);
    return status;
}

/* ---- moving ---- */
int sz_comm_broadcast_direct(sz_comm *c, sz_tensor *t, int root)
{
    int count = 0;
    for (int r = 0; c->rank == root && r < c->size; r++)
        if (r != root) add(c, &count, true, r, t->data, sz_bytes(t));
    if (c->rank != root) add(c, &count, false, root, t->data, sz_bytes(t));
    return sz_comm_exchange_direct(c, c->messages, count, "broadcast");
}

int sz_comm_gather_direct(sz_comm *c, const sz_tensor *part, sz_tensor *whole)
{
    const size_t bytes = sz_bytes(part);
    char *all = whole->data;
    char *own = all + bytes * (size_t)c->rank;
    if (own != part->data && sz_device->move(own, part->data, bytes) != 0) return -1;
    int count = 0;
    for (int r = 0; r < c->size; r++) {
        if (r == c->rank) continue;
        add(c, &count, true, r, own, bytes);
        add(c, &count, false, r, all + bytes * (size_t)r, bytes);
    }
    return sz_comm_exchange_direct(c, c->messages, count, "all_gather");
}

int sz_comm_join_direct(sz_comm *c, const sz_tensor *x, const int64_t *sizes, int64_t outer,
                        sz_tensor *y)
{
    const sz_links *links = sz_device->links;
    const sz_scratch_mark mark = sz_scratch_now();
    const size_t row = sz_bytes(y) / (size_t)outer;
    char *all = outer == 1 ? y->data : sz_scratch_on(SZ_CUDA, sz_bytes(y));
    if (!all) return -1;

    /* The ranks' x one after another, and then, unless they are one run each, their runs. */
    int status = 0;
    int count = 0;
    char *from = all;
    char *to = y->data;
    for (int r = 0; r < c->size; r++, from += sizes[r - 1]) {
        if (r == c->rank) status = sz_device->move(from, x->data, sz_bytes(x));
        if (r == c->rank || status != 0) continue;
        add(c, &count, true, r, x->data, sz_bytes(x));
        add(c, &count, false, r, from, (size_t)sizes[r]);
    }
    if (status == 0) status = sz_comm_exchange_direct(c, c->messages, count, "tp_gather");
    from = all;
    for (int r = 0; outer > 1 && status == 0 && r < c->size; r++) {
        const size_t run = (size_t)(sizes[r] / outer);
        if (run > 0) status = links->copy_runs(to, row, from, run, outer);
        from += sizes[r];
        to += run;
    }
    sz_scratch_back(mark);
    return status;
}
