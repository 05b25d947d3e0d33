/* comm.c - the collectives, made of messages (transport.h), and the groups of ranks.
 *
 * A sum goes in pieces of at most PIECE bytes: each rank sends chunk r of its piece to rank r, adds
 * the chunks that it got in the order of the ranks, and sends its sum to all. That fixes the order
 * of every sum, and moves as many bytes as a ring does. Method: Megatron-LM's reduce-scatter with
 * f32 accumulation.
 * Tensors on a device are copied to host memory and back, unless their devices can talk to each
 * other (nccl.c).
 * Leaves out: overlap with computation.
 */
#define _GNU_SOURCE
#include "comm/group.h"
#include "comm/launch.h"
#include "comm/tcp.h"
#include "core/core.h"
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { PIECE = SZ_COMM_PIECE, PAIR = 256 << 10 };

static const sz_transport *transport; /* NULL: one rank */
static sz_comm *world;
static double timeout = 600;
static int64_t bytes_sent;
static int64_t exchanges;
static int64_t fail_after = -1; /* exchanges until one fails, for tests */

/* ---- the job ---- */
static int leave_message(const char *message) { return sz_fail("%s", message); }

static const sz_launch *launch(void)
{
    static sz_launch l;
    static bool is_read;
    if (!is_read) sz_launch_read(&l);
    is_read = true;
    return &l;
}

int sz_comm_launched(void)
{
    const int kind = launch()->kind;
    return kind == SZ_LAUNCH_MPI || kind == SZ_LAUNCH_TCP;
}

const char *sz_comm_stray(void)
{
    return launch()->kind == SZ_LAUNCH_STRAY ? launch()->problem : NULL;
}

const char *sz_comm_transport_name(void)
{
    switch (launch()->kind) {
    case SZ_LAUNCH_MPI: return "MPI";
    case SZ_LAUNCH_TCP: return "TCP";
    default: return "";
    }
}

/* The library over MPI, which is in the folder of this one. */
static const sz_transport *open_mpi(const sz_transport_core *core)
{
    /* The folder of this library, with its slash. */
    Dl_info info;
    char path[4096];
    const char *own = "";
    if (dladdr((void *)sz_version, &info) && info.dli_fname) own = info.dli_fname;
    const char *slash = strrchr(own, '/');
    const int folder = slash ? (int)(slash - own + 1) : 0;
    snprintf(path, sizeof path, "%.*slibsegzero_mpi.so", folder, own);

    if (access(path, R_OK) != 0)
        return sz_null("several ranks: there is no %s (make builds it where Open MPI is: apt-get "
                       "install libopenmpi-dev openmpi-bin). srun --mpi=none, torchrun and "
                       "--ranks need no MPI",
                       path);
    /* Global, because MPI opens parts of itself that look for its symbols. */
    void *library = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
    if (!library) return sz_null("several ranks: %s", dlerror());
    const sz_transport *(*get)(const sz_transport_core *);
    *(void **)&get = dlsym(library, "sz_transport_open");
    const sz_transport *t = get ? get(core) : NULL;
    if (!get || (t && t->version != SZ_TRANSPORT_VERSION))
        return sz_null("several ranks: %s is not of this version; build both again", path);
    return t;
}

static sz_comm *new_comm(int rank, int size)
{
    sz_comm *c = calloc(1, sizeof *c);
    if (!c) return sz_null("no memory for a group of ranks");
    c->rank = rank;
    c->size = size;
    c->world_rank = calloc((size_t)size, sizeof *c->world_rank);
    c->messages = calloc((size_t)size * 2, sizeof *c->messages);
    if (!c->world_rank || !c->messages) {
        sz_comm_free(c);
        return sz_null("no memory for a group of ranks");
    }
    return c;
}

/* ---- handles ---- */
enum { MOST_HANDLES = 64 };
static sz_comm *handles[MOST_HANDLES]; /* that of handle h is at h - 1 */

int sz_comm_handle(sz_comm *c)
{
    int unused = -1;
    if (!c) return 0;
    for (int i = MOST_HANDLES - 1; i >= 0; i--) {
        if (handles[i] == c) return i + 1;
        if (!handles[i]) unused = i;
    }
    if (unused < 0) return sz_fail("more than %d groups of ranks have a handle", MOST_HANDLES);
    handles[unused] = c;
    return unused + 1;
}

sz_comm *sz_comm_of_handle(int handle)
{
    if (handle >= 1 && handle <= MOST_HANDLES && handles[handle - 1]) return handles[handle - 1];
    return sz_null("there is no group of ranks with handle %d", handle);
}

void sz_comm_free(sz_comm *c)
{
    if (!c) return;
    sz_comm_unlink(c);
    for (int i = 0; i < MOST_HANDLES; i++)
        if (handles[i] == c) handles[i] = NULL;
    free(c->world_rank);
    free(c->messages);
    free(c);
}

static const sz_transport *open_transport(void)
{
    static const sz_transport_core core = { leave_message, sz_comm_interrupted };
    const sz_launch *l = launch();
    if (l->kind == SZ_LAUNCH_TCP) return sz_tcp_open(l, &core);
    const sz_transport *t = open_mpi(&core);
    /* Otherwise each process would do the whole job, side by side. */
    if (t && t->size == 1 && l->size > 1)
        return sz_null("the launcher started %d processes, but Open MPI sees one: start them with "
                       "Open MPI's mpirun, or with srun --mpi=none",
                       l->size);
    return t;
}

sz_comm *sz_comm_world(void)
{
    if (world) return world;
    if (launch()->kind == SZ_LAUNCH_STRAY) return sz_null("%s", launch()->problem);
    if (sz_comm_launched() && !transport) {
        transport = open_transport();
        if (!transport) return NULL;
    }
    world = new_comm(transport ? transport->rank : 0, transport ? transport->size : 1);
    for (int i = 0; world && i < world->size; i++) world->world_rank[i] = i;
    return world;
}

int sz_comm_rank(const sz_comm *c) { return c->rank; }
int sz_comm_size(const sz_comm *c) { return c->size; }
const sz_transport *sz_comm_transport(void) { return transport; }
double sz_comm_timeout(void) { return timeout; }
void sz_comm_set_timeout(double seconds) { timeout = seconds; }
int64_t sz_comm_bytes_sent(void) { return bytes_sent; }

const char *sz_comm_name(const sz_comm *c, int rank)
{
    static char name[SZ_HOST_NAME + 32];
    if (!transport) return "0";
    const int r = c->world_rank[rank];
    snprintf(name, sizeof name, "%d (host %s)", r, transport->hosts[r]);
    return name;
}

void sz_comm_fail_after(int64_t n) { fail_after = n; }
int64_t sz_comm_exchanges(void) { return exchanges; }

void sz_comm_abort(int status)
{
    if (transport && transport->size > 1) transport->abort(status);
}

/* ---- messages ---- */
static void add(sz_comm *c, int *count, bool send, int peer, void *data, size_t bytes)
{
    if (bytes == 0) return;
    c->messages[(*count)++] = (sz_message){ data, bytes, c->world_rank[peer], send };
}

/* True when a test wants this exchange to fail; leaves the message. */
static bool fails_for_test(const char *what)
{
    if (fail_after < 0 || fail_after-- > 0) return false;
    sz_fail("a test made this collective fail (%s)", what);
    return true;
}

int sz_comm_count_messages(const sz_message *messages, int count, const char *what)
{
    if (fails_for_test(what)) return -1;
    exchanges++;
    for (int i = 0; i < count; i++)
        if (messages[i].send) bytes_sent += (int64_t)messages[i].bytes;
    return 0;
}

int sz_comm_exchange(const sz_message *messages, int count, const char *what)
{
    int late = -1;
    if (count == 0) return 0;
    if (sz_comm_count_messages(messages, count, what) != 0) return -1;
    const int status = transport->exchange(messages, count, timeout, &late);
    if (status == 0) return 0;
    if (late < 0) return -1;
    if (status == -2)
        return sz_fail("rank %d (host %s) is gone (%s)", late, transport->hosts[late], what);
    return sz_fail("rank %d (host %s) has not answered for %g s (%s): it has stalled or is gone",
                   late, transport->hosts[late], timeout, what);
}

static int exchange(sz_comm *c, int count, const char *what)
{
    return sz_comm_exchange(c->messages, count, what);
}

/* Chunk r of a range of n elements goes to rank r; the last ones may be empty. */
static int64_t chunk_size(const sz_comm *c, int64_t n) { return (n + c->size - 1) / c->size; }

static int64_t chunk_begin(const sz_comm *c, int64_t n, int r)
{
    const int64_t begin = chunk_size(c, n) * r;
    return begin < n ? begin : n;
}

/* ---- host memory of tensors ---- */
void *sz_comm_to_host(const sz_tensor *t)
{
    if (t->device == SZ_CPU) return t->data;
    void *p = malloc(sz_bytes(t) ? sz_bytes(t) : 1);
    if (!p) return sz_null("no memory for a tensor of %zu bytes", sz_bytes(t));
    if (sz_bytes_copy(SZ_CPU, p, t->device, t->data, sz_bytes(t)) == 0) return p;
    free(p);
    return NULL;
}

int sz_comm_to_tensor(sz_tensor *t, void *host, int status)
{
    if (t->device == SZ_CPU) return status;
    if (status == 0) status = sz_bytes_copy(t->device, t->data, SZ_CPU, host, sz_bytes(t));
    free(host);
    return status;
}

/* ---- sums ---- */
/* The workspace of a sum: room for one chunk of each rank, and the list of them. */
typedef struct {
    char *chunks;
    const void **parts;
} sum_space;

static int sum_space_new(sum_space *s, const sz_comm *c, size_t chunk_bytes)
{
    s->chunks = malloc(chunk_bytes * (size_t)c->size + 1);
    s->parts = malloc(sizeof *s->parts * (size_t)c->size);
    if (s->chunks && s->parts) return 0;
    return sz_fail("no memory to sum over %d ranks", c->size);
}

static void sum_space_free(sum_space *s)
{
    free(s->chunks);
    free(s->parts);
}

/* out [n] = the sum over all ranks of their own chunk for this rank; pieces[r]: this rank's chunk
 * for rank r, counts[r] elements of it (n for r = rank). */
static int sum_chunks(sz_comm *c, sum_space *s, int dtype, void *const *pieces,
                      const int64_t *counts, void *out, const char *what)
{
    const size_t width = sz_dtype_size(dtype);
    const int64_t n = counts[c->rank];
    int count = 0;
    for (int r = 0; r < c->size; r++) {
        char *got = s->chunks + (size_t)n * width * (size_t)r;
        s->parts[r] = r == c->rank ? pieces[r] : got;
        if (r == c->rank) continue;
        add(c, &count, true, r, pieces[r], (size_t)counts[r] * width);
        add(c, &count, false, r, got, (size_t)n * width);
    }
    if (exchange(c, count, what) != 0) return -1;
    sz_comm_sum_elements(dtype, out, s->parts, c->size, n);
    return 0;
}

/* ---- all_reduce ---- */
typedef struct {
    void **pieces;
    int64_t *counts;
} chunk_list;

static int chunk_list_new(chunk_list *l, const sz_comm *c)
{
    l->pieces = calloc((size_t)c->size, sizeof *l->pieces);
    l->counts = calloc((size_t)c->size, sizeof *l->counts);
    return l->pieces && l->counts ? 0 : sz_fail("no memory to sum over %d ranks", c->size);
}

static void chunk_list_free(chunk_list *l)
{
    free(l->pieces);
    free(l->counts);
}

/* The sum of n elements at p over all ranks, in place. */
static int reduce_piece(sz_comm *c, sum_space *s, chunk_list *l, int dtype, char *p, int64_t n)
{
    const size_t width = sz_dtype_size(dtype);
    for (int r = 0; r < c->size; r++) {
        l->pieces[r] = p + (size_t)chunk_begin(c, n, r) * width;
        l->counts[r] = chunk_begin(c, n, r + 1) - chunk_begin(c, n, r);
    }
    void *own = l->pieces[c->rank];
    if (sum_chunks(c, s, dtype, l->pieces, l->counts, own, "all_reduce") != 0) return -1;

    /* Every rank's sum to every other. */
    int count = 0;
    for (int r = 0; r < c->size; r++) {
        if (r == c->rank) continue;
        add(c, &count, true, r, own, (size_t)l->counts[c->rank] * width);
        add(c, &count, false, r, l->pieces[r], (size_t)l->counts[r] * width);
    }
    return exchange(c, count, "all_reduce");
}

/* The same between two ranks: each sends all it has, which is as many bytes and one message less:
 * 2 times as fast up to PAIR bytes, slower from a megabyte on. s has room for n elements. */
static int reduce_pair(sz_comm *c, sum_space *s, int dtype, char *p, int64_t n)
{
    const size_t bytes = (size_t)n * sz_dtype_size(dtype);
    int count = 0;
    add(c, &count, true, 1 - c->rank, p, bytes);
    add(c, &count, false, 1 - c->rank, s->chunks, bytes);
    if (exchange(c, count, "all_reduce") != 0) return -1;
    s->parts[c->rank] = p;
    s->parts[1 - c->rank] = s->chunks;
    sz_comm_sum_elements(dtype, p, s->parts, 2, n);
    return 0;
}

static int reduce_bytes(sz_comm *c, int dtype, char *p, int64_t n)
{
    const size_t width = sz_dtype_size(dtype);
    const int64_t most = PIECE / (int64_t)width;
    const int64_t piece = n < most ? n : most;
    sum_space s = { 0 };
    chunk_list l = { 0 };
    const bool is_pair = c->size == 2 && (size_t)n * width <= PAIR;
    int status = sum_space_new(&s, c, (size_t)chunk_size(c, piece) * width);
    if (status == 0 && !is_pair) status = chunk_list_new(&l, c);
    for (int64_t at = 0; status == 0 && at < n; at += piece) {
        const int64_t count = n - at < piece ? n - at : piece;
        char *begin = p + (size_t)at * width;
        if (is_pair) status = reduce_pair(c, &s, dtype, begin, count);
        else status = reduce_piece(c, &s, &l, dtype, begin, count);
    }
    sum_space_free(&s);
    chunk_list_free(&l);
    return status;
}

int sz_comm_all_reduce(sz_comm *c, sz_tensor *t)
{
    if (!sz_comm_can_sum(t->dtype)) return sz_fail("all_reduce: only f32, bf16 and i32 have a sum");
    if (c->size == 1 || t->numel == 0) return 0;
    const int direct = sz_comm_is_direct(c, t);
    if (direct) return direct < 0 ? -1 : sz_comm_reduce_direct(c, t, "all_reduce");
    char *host = sz_comm_to_host(t);
    if (!host) return -1;
    return sz_comm_to_tensor(t, host, reduce_bytes(c, t->dtype, host, t->numel));
}

int sz_comm_sum_gradient(sz_comm *c, sz_tensor *parameter)
{
    if (!sz_needs_grad(parameter)) return sz_fail("sum_gradient: this tensor takes no gradient");
    sz_tensor *grad = sz_grad_buffer(parameter);
    return grad ? sz_comm_all_reduce(c, grad) : -1;
}

/* ---- reduce_scatter ---- */
/* whole: this rank's elements for all ranks, n for each; out [n]: this rank's sums. */
static int scatter_bytes(sz_comm *c, int dtype, char *whole, char *out, int64_t n)
{
    const size_t width = sz_dtype_size(dtype);
    const int64_t most = PIECE / (int64_t)width / c->size + 1;
    const int64_t piece = n < most ? n : most;
    sum_space s = { 0 };
    chunk_list l = { 0 };
    int status = sum_space_new(&s, c, (size_t)piece * width);
    if (status == 0) status = chunk_list_new(&l, c);
    for (int64_t at = 0; status == 0 && at < n; at += piece) {
        const int64_t count = n - at < piece ? n - at : piece;
        for (int r = 0; r < c->size; r++) {
            l.pieces[r] = whole + (size_t)(n * r + at) * width;
            l.counts[r] = count;
        }
        status = sum_chunks(c, &s, dtype, l.pieces, l.counts, out + (size_t)at * width,
                            "reduce_scatter");
    }
    sum_space_free(&s);
    chunk_list_free(&l);
    return status;
}

static int check_parts(const sz_comm *c, const char *what, const sz_tensor *whole,
                       const sz_tensor *part)
{
    if (whole->dtype != part->dtype) return sz_fail("%s: the two tensors differ in dtype", what);
    if (whole->device != part->device) return sz_fail("%s: the tensors are on two devices", what);
    if (whole->numel == part->numel * c->size) return 0;
    return sz_fail("%s: the whole has %lld elements and a part %lld, with %d ranks", what,
                   (long long)whole->numel, (long long)part->numel, c->size);
}

int sz_comm_reduce_scatter(sz_comm *c, sz_tensor *whole, sz_tensor *part)
{
    if (!sz_comm_can_sum(whole->dtype))
        return sz_fail("reduce_scatter: only f32, bf16 and i32 have a sum");
    if (check_parts(c, "reduce_scatter", whole, part) != 0) return -1;
    if (part->numel == 0) return 0;
    if (c->size == 1)
        return sz_bytes_copy(part->device, part->data, whole->device, whole->data, sz_bytes(part));
    const int direct = sz_comm_is_direct(c, whole);
    if (direct) return direct < 0 ? -1 : sz_comm_scatter_direct(c, whole, part);
    char *from = sz_comm_to_host(whole);
    char *to = from ? sz_comm_to_host(part) : NULL;
    int status = -1;
    if (to) {
        status = scatter_bytes(c, whole->dtype, from, to, part->numel);
        status = sz_comm_to_tensor(part, to, status);
    }
    if (from && whole->device != SZ_CPU) free(from);
    return status;
}

/* ---- moving ---- */
static int broadcast_bytes(sz_comm *c, void *p, size_t bytes, int root)
{
    int count = 0;
    for (int r = 0; r < c->size; r++) {
        if (c->rank == root && r != root) add(c, &count, true, r, p, bytes);
    }
    if (c->rank != root) add(c, &count, false, root, p, bytes);
    return exchange(c, count, "broadcast");
}

int sz_comm_broadcast(sz_comm *c, sz_tensor *t, int root)
{
    if (root < 0 || root >= c->size) return sz_fail("broadcast: there is no rank %d", root);
    if (c->size == 1 || t->numel == 0) return 0;
    const int direct = sz_comm_is_direct(c, t);
    if (direct) return direct < 0 ? -1 : sz_comm_broadcast_direct(c, t, root);
    void *host = sz_comm_to_host(t);
    if (!host) return -1;
    return sz_comm_to_tensor(t, host, broadcast_bytes(c, host, sz_bytes(t), root));
}

/* all: sizes[r] bytes of each rank r, one after another; this rank's are in place. */
static int gather_in_place(sz_comm *c, char *all, const int64_t *sizes, const char *what)
{
    int count = 0;
    char *own = all;
    for (int r = 0; r < c->rank; r++) own += sizes[r];
    for (int r = 0; r < c->size; r++) {
        if (r != c->rank) {
            add(c, &count, true, r, own, (size_t)sizes[c->rank]);
            add(c, &count, false, r, all, (size_t)sizes[r]);
        }
        all += sizes[r];
    }
    return exchange(c, count, what);
}

static int gather_bytes(sz_comm *c, const void *bytes, const int64_t *sizes, void *all,
                        const char *what)
{
    char *own = all;
    for (int r = 0; r < c->rank; r++) own += sizes[r];
    if (sizes[c->rank] > 0 && own != (const char *)bytes)
        memmove(own, bytes, (size_t)sizes[c->rank]);
    return c->size == 1 ? 0 : gather_in_place(c, all, sizes, what);
}

int sz_comm_all_gather_bytes(sz_comm *c, const void *bytes, const int64_t *sizes, void *all)
{
    return gather_bytes(c, bytes, sizes, all, "all_gather");
}

/* Gathers n bytes of each rank. */
static int gather_equal(sz_comm *c, const void *own, size_t n, void *all, const char *what)
{
    int64_t *sizes = malloc(sizeof *sizes * (size_t)c->size);
    if (!sizes) return sz_fail("no memory for %s", what);
    for (int r = 0; r < c->size; r++) sizes[r] = (int64_t)n;
    const int status = gather_bytes(c, own, sizes, all, what);
    free(sizes);
    return status;
}

int sz_comm_all_gather(sz_comm *c, sz_tensor *part, sz_tensor *whole)
{
    if (check_parts(c, "all_gather", whole, part) != 0) return -1;
    if (part->numel == 0) return 0;
    const int direct = sz_comm_is_direct(c, part);
    if (direct) return direct < 0 ? -1 : sz_comm_gather_direct(c, part, whole);
    char *from = sz_comm_to_host(part);
    char *to = from ? sz_comm_to_host(whole) : NULL;
    int status = -1;
    if (to) {
        status = gather_equal(c, from, sz_bytes(part), to, "all_gather");
        status = sz_comm_to_tensor(whole, to, status);
    }
    if (from && part->device != SZ_CPU) free(from);
    return status;
}

int sz_comm_sizes(sz_comm *c, int64_t n, int64_t *sizes)
{
    return gather_equal(c, &n, sizeof n, sizes, "sizes");
}

int sz_comm_sum(sz_comm *c, double *numbers, int n)
{
    if (c->size == 1 || n == 0) return 0;
    double *all = malloc(sizeof *all * (size_t)n * (size_t)c->size);
    if (!all) return sz_fail("no memory for a sum over %d ranks", c->size);
    const int status = gather_equal(c, numbers, sizeof *all * (size_t)n, all, "sum");
    for (int i = 0; status == 0 && i < n; i++) {
        numbers[i] = 0;
        for (int r = 0; r < c->size; r++) numbers[i] += all[(size_t)r * (size_t)n + (size_t)i];
    }
    free(all);
    return status;
}

int sz_comm_barrier(sz_comm *c)
{
    char nothing = 0;
    char *all = malloc((size_t)c->size);
    if (!all) return sz_fail("no memory for a barrier");
    const int status = gather_equal(c, &nothing, 1, all, "barrier");
    free(all);
    return status;
}

/* ---- groups ---- */
sz_comm *sz_comm_split(sz_comm *c, int colour)
{
    int64_t *colours = malloc(sizeof *colours * (size_t)c->size);
    if (!colours) return sz_null("no memory for a group of ranks");
    sz_comm *group = NULL;
    if (sz_comm_sizes(c, colour, colours) == 0) {
        int size = 0;
        int rank = 0;
        for (int r = 0; r < c->size; r++) {
            if (r == c->rank) rank = size;
            if (colours[r] == colour) size++;
        }
        group = new_comm(rank, size);
    }
    for (int r = 0, i = 0; group && r < c->size; r++)
        if (colours[r] == colour) group->world_rank[i++] = c->world_rank[r];
    free(colours);
    return group;
}
