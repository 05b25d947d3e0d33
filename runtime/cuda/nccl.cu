/* nccl.cu - messages between the devices of several ranks by NCCL, and the kernel that sums what
 * came (comm/links.h is the contract).
 *
 * libnccl.so.2 is opened when a group of ranks first needs it. SEGZERO_NCCL=0 in the environment,
 * a missing or old library, or a build without nccl.h leave the work to host memory.
 *
 * Only ncclSend and ncclRecv are used: sums are made by our kernel in the order of the ranks, so
 * they have the bits of the host's sums, and the same bits on every machine. ncclAllReduce adds in
 * an order that depends on the links, the size and the version. It would be faster where it sums
 * inside the switch (NVLS: half the bytes) and for small tensors (one launch instead of three).
 *
 * NCCL's own waits have no limit. Making a group and its first messages, in which NCCL connects
 * the devices, therefore run in a thread, and the host waits for the device by asking (wait_for).
 * Both call the core's watch, which knows the time limit and finds the rank that is missing;
 * ncclCommAbort then ends the kernels that wait for it.
 * Leaves out: the algorithms (comm/comm.c, comm/parts.c); registered buffers. */
#include "links.cuh"
#include "vector.cuh"
#include <cstdio>
#include <pthread.h>
#include <sched.h>
#include <time.h>
#if defined(SZ_EMULATE)
#include "emulate_nccl.h"
#define HAVE_NCCL 1
#elif defined(__has_include)
#if __has_include(<nccl.h>)
#include <nccl.h>
#include <dlfcn.h>
#define HAVE_NCCL 1
#endif
#endif

/* ---- sums ---- */
enum { THREADS = 256 };

typedef struct {
    const void *at[SZ_LINK_RANKS];
} part_list;

/* Elements [first, n), W for each thread; f32 and bf16 are added in f32. */
template <class T, int W> __global__ void sum_kernel(T *out,
                                                     const __grid_constant__ part_list parts,
                                                     int count, int64_t first, int64_t n)
{
    const int64_t i = first + ((int64_t)blockIdx.x * THREADS + threadIdx.x) * W;
    if (i >= n) return;
    float sum[W], part[W];
    sz_load_vector<W>((const T *)parts.at[0] + i, sum);
    for (int r = 1; r < count; r++) {
        sz_load_vector<W>((const T *)parts.at[r] + i, part);
        for (int j = 0; j < W; j++) sum[j] += part[j];
    }
    sz_store_vector<W>(out + i, sum);
}

__global__ void sum_i32_kernel(uint32_t *out, const __grid_constant__ part_list parts, int count,
                               int64_t n)
{
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= n) return;
    uint32_t sum = 0;
    for (int r = 0; r < count; r++) sum += ((const uint32_t *)parts.at[r])[i];
    out[i] = sum;
}

/* Vectors as far as they go, then single elements. */
template <class T> static void sum_floats(T *out, const part_list &parts, int count, int64_t n)
{
    bool aligned = sz_is_aligned16(out);
    for (int r = 0; r < count; r++) aligned = aligned && sz_is_aligned16(parts.at[r]);
    const int64_t vectors = aligned ? n / SZ_VECTOR : 0;
    const int64_t done = vectors * SZ_VECTOR;
    if (vectors)
        SZ_LAUNCH((sum_kernel<T, SZ_VECTOR>), (unsigned)sz_blocks(vectors, THREADS), THREADS, 0,
                  out, parts, count, (int64_t)0, done);
    if (done < n)
        SZ_LAUNCH((sum_kernel<T, 1>), (unsigned)sz_blocks(n - done, THREADS), THREADS, 0, out,
                  parts, count, done, n);
}

static int sum(int dtype, void *out, const void *const *parts, int count, int64_t n)
{
    SZ_ASSERT(count > 0 && count <= SZ_LINK_RANKS, "a sum over too many ranks");
    if (n == 0) return 0;
    part_list list = {};
    for (int r = 0; r < count; r++) list.at[r] = parts[r];
    if (dtype == SZ_F32) {
        sum_floats((float *)out, list, count, n);
    } else if (dtype == SZ_BF16) {
        sum_floats((bf16 *)out, list, count, n);
    } else {
        SZ_LAUNCH(sum_i32_kernel, (unsigned)sz_blocks(n, THREADS), THREADS, 0, (uint32_t *)out,
                  list, count, n);
    }
    return sz_cuda_launched("a sum over ranks");
}

static int copy_runs(void *to, size_t pitch, const void *from, size_t run, int64_t count)
{
    const cudaError_t e = cudaMemcpy2DAsync(to, pitch, from, run, run, (size_t)count,
                                            cudaMemcpyDeviceToDevice, sz_cuda_stream());
    return sz_cuda_check(e, "a copy");
}

static int place(char text[SZ_LINK_PLACE])
{
    int device = 0;
    if (sz_cuda_check(cudaGetDevice(&device), "the device's place") != 0) return -1;
    return sz_cuda_check(cudaDeviceGetPCIBusId(text, SZ_LINK_PLACE, device), "the device's place");
}

/* ---- waiting ---- */
static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int (*watch)(double seconds);
static void set_watch(int (*f)(double seconds)) { watch = f; }

/* Gives the processor to others more and more often. */
static void pause_a_little(int turn)
{
    enum { SPIN = 2000, YIELD = 20000 };
    if (turn < SPIN) return;
    if (turn < YIELD) {
        sched_yield();
        return;
    }
    const struct timespec t = { 0, 50 * 1000 };
    nanosleep(&t, NULL);
}

static const double EVERY = 0.1; /* seconds between calls of the watch */

#ifndef HAVE_NCCL
static const char *missing(void) { return "it was not built in (there was no nccl.h)"; }
static int new_id(char *) { return sz_fail("nccl: %s", missing()); }
static sz_link *join(const char *, const int *, int, int)
{
    return (sz_link *)sz_null("nccl: %s", missing());
}
static void leave(sz_link *) {}
static int exchange(sz_link *, const sz_message *, int) { return sz_fail("nccl: %s", missing()); }
static void poll(void) {}

int sz_cuda_wait(cudaEvent_t e, const char *what)
{
    cudaStream_t stream = sz_cuda_stream();
    return sz_cuda_check(e ? cudaEventSynchronize(e) : cudaStreamSynchronize(stream), what);
}

const char *sz_cuda_links_describe(void)
{
    return "nccl: not built in (there was no nccl.h); ranks exchange through host memory\n";
}
#else

/* ---- the library ---- */
enum { OLDEST = 21400 }; /* 2.14: ncclGetLastError, messages in CUDA graphs */

#define FUNCTIONS(F) \
    F(ncclGetVersion) \
    F(ncclGetErrorString) \
    F(ncclGetLastError) \
    F(ncclGetUniqueId) \
    F(ncclCommInitRank) \
    F(ncclCommDestroy) \
    F(ncclCommAbort) \
    F(ncclCommGetAsyncError) \
    F(ncclGroupStart) \
    F(ncclGroupEnd) \
    F(ncclSend) \
    F(ncclRecv)
static struct {
#define F(name) decltype(&::name) name;
    FUNCTIONS(F)
#undef F
} lib;
static enum { UNKNOWN, ABSENT, OPEN } state;
static char problem[256]; /* why NCCL is not used */
static int version;

static bool find_functions(void)
{
#ifdef SZ_EMULATE
#define F(name) lib.name = name;
    FUNCTIONS(F)
#undef F
#else
    void *library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        snprintf(problem, sizeof problem, "%.200s", dlerror());
        return false;
    }
#define F(name) \
    if (!(lib.name = (decltype(lib.name))dlsym(library, #name))) { \
        snprintf(problem, sizeof problem, "libnccl.so.2 has no " #name); \
        return false; \
    }
    FUNCTIONS(F)
#undef F
#endif
    return true;
}

/* Opens the library at the first call. */
static const char *missing(void)
{
    if (state != UNKNOWN) return state == OPEN ? NULL : problem;
    state = ABSENT;
    if (sz_cuda_env_is("SEGZERO_NCCL", '0')) {
        snprintf(problem, sizeof problem, "SEGZERO_NCCL=0 leaves it out");
        return problem;
    }
    if (!find_functions()) return problem;
    if (lib.ncclGetVersion(&version) != ncclSuccess || version < OLDEST) {
        snprintf(problem, sizeof problem, "libnccl.so.2 is %d.%d.%d, and 2.14 or later is needed",
                 version / 10000, version / 100 % 100, version % 100);
        return problem;
    }
    state = OPEN;
    return NULL;
}

const char *sz_cuda_links_describe(void)
{
    static char text[360];
    if (missing())
        snprintf(text, sizeof text, "nccl: %s; ranks exchange through host memory\n", problem);
    else
        snprintf(text, sizeof text, "nccl: %d.%d.%d, between ranks\n", version / 10000,
                 version / 100 % 100, version % 100);
    return text;
}

static int check(ncclResult_t result, const char *what)
{
    if (result == ncclSuccess || result == ncclInProgress) return 0;
    const char *more = lib.ncclGetLastError(NULL);
    const char *colon = more && more[0] ? ": " : "";
    return sz_fail("nccl: %s: %s%s%.300s", what, lib.ncclGetErrorString(result), colon,
                   more ? more : "");
}

/* ---- groups ---- */
struct sz_link {
    ncclComm_t comm;
    int *members; /* [size] */
    int size, rank;
    sz_link *next;
};
static sz_link *groups;
static bool ended;       /* the watch has ended all groups */
static bool joining_now; /* a thread makes a group */

static int new_id(char id[SZ_LINK_ID])
{
    ncclUniqueId made;
    static_assert(sizeof made == SZ_LINK_ID, "an id of NCCL");
    if (check(lib.ncclGetUniqueId(&made), "an id for a group of ranks") != 0) return -1;
    memcpy(id, &made, sizeof made);
    return 0;
}

static void free_link(sz_link *l)
{
    if (l) free(l->members);
    free(l);
}

/* What the thread that makes a group has to do, and what came of it. */
typedef struct {
    sz_link *link;
    ncclUniqueId id;
    int device;
    char *bytes; /* on the device, 2 for each rank */
    char failure[512];
    bool failed;
    bool finished; /* atomic: written last */
} joining;

static bool fail_joining(joining *j, const char *what, const char *why)
{
    snprintf(j->failure, sizeof j->failure, "nccl: %s: %s", what, why);
    j->failed = true;
    return false;
}

static bool is_joined(joining *j, ncclResult_t result, const char *what)
{
    if (result == ncclSuccess) return true;
    const char *more = lib.ncclGetLastError(NULL);
    char why[400];
    snprintf(why, sizeof why, "%s%s%.300s", lib.ncclGetErrorString(result),
             more && more[0] ? ": " : "", more ? more : "");
    return fail_joining(j, what, why);
}

/* A byte from each to each, so that NCCL connects them now. */
static bool greet(joining *j, cudaStream_t side)
{
    const sz_link *l = j->link;
    ncclResult_t result = lib.ncclGroupStart();
    for (int r = 0; r < l->size && result == ncclSuccess; r++) {
        if (r == l->rank) continue;
        result = lib.ncclSend(j->bytes + r, 1, ncclInt8, r, l->comm, side);
        if (result != ncclSuccess) break;
        result = lib.ncclRecv(j->bytes + l->size + r, 1, ncclInt8, r, l->comm, side);
    }
    if (!is_joined(j, result, "the first messages")) return false;
    if (!is_joined(j, lib.ncclGroupEnd(), "the first messages")) return false;
    const cudaError_t e = cudaStreamSynchronize(side);
    if (e == cudaSuccess) return true;
    return fail_joining(j, "the first messages", cudaGetErrorString(e));
}

static void *make_group(void *argument)
{
    joining *j = (joining *)argument;
    sz_link *l = j->link;
    cudaStream_t side = NULL;
    cudaError_t e = cudaSetDevice(j->device);
    if (e == cudaSuccess) e = cudaStreamCreateWithFlags(&side, cudaStreamNonBlocking);
    if (e != cudaSuccess) {
        fail_joining(j, "joining the other ranks", cudaGetErrorString(e));
    } else if (is_joined(j, lib.ncclCommInitRank(&l->comm, l->size, j->id, l->rank),
                         "joining the other ranks")) {
        greet(j, side);
    }
    if (side && !j->failed) cudaStreamDestroy(side);
    __atomic_store_n(&j->finished, true, __ATOMIC_RELEASE);
    return NULL;
}

/* Waits for the thread, as long as the watch allows. */
static int wait_for_group(joining *j)
{
    const double begin = now();
    double look = begin + EVERY;
    for (int turn = 0; !__atomic_load_n(&j->finished, __ATOMIC_ACQUIRE); turn++) {
        pause_a_little(turn);
        if (now() < look) continue;
        look = now() + EVERY;
        if (watch && watch(now() - begin) != 0) return -1;
    }
    return j->failed ? sz_fail("%s", j->failure) : 0;
}

static sz_link *new_link(const int *members, int size, int rank)
{
    sz_link *l = (sz_link *)calloc(1, sizeof *l);
    if (l) l->members = (int *)malloc(sizeof *members * (size_t)size);
    if (!l || !l->members) {
        free_link(l);
        return (sz_link *)sz_null("no memory for a group of ranks");
    }
    memcpy(l->members, members, sizeof *members * (size_t)size);
    l->size = size;
    l->rank = rank;
    return l;
}

/* What a thread that never ends still uses is never freed; the job is over then. */
static sz_link *join(const char id[SZ_LINK_ID], const int *members, int size, int rank)
{
    if (ended) return (sz_link *)sz_null("nccl: the ranks have lost each other");
    if (sz_cuda_synchronise() != 0) return NULL;
    sz_link *l = new_link(members, size, rank);
    joining *j = l ? (joining *)calloc(1, sizeof *j) : NULL;
    char *bytes = j ? (char *)sz_cuda_allocate((size_t)size * 2) : NULL;
    pthread_t thread;
    if (!bytes || sz_cuda_check(cudaGetDevice(&j->device), "the device") != 0 ||
        sz_cuda_fill(bytes, 0, (size_t)size * 2) != 0 || sz_cuda_synchronise() != 0) {
        free_link(l);
        free(j);
        return NULL;
    }
    j->link = l;
    j->bytes = bytes;
    memcpy(&j->id, id, sizeof j->id);
    joining_now = true;
    if (pthread_create(&thread, NULL, make_group, j) != 0)
        return (sz_link *)sz_null("no thread to join the other ranks");
    if (wait_for_group(j) != 0) {
        ended = true;
        return NULL;
    }
    pthread_join(thread, NULL);
    joining_now = false;
    free(j);
    sz_cuda_release(bytes);
    l->next = groups;
    groups = l;
    return l;
}

static void leave(sz_link *l)
{
    sz_link **p = &groups;
    while (*p && *p != l) p = &(*p)->next;
    if (*p) *p = l->next;
    if (!ended && sz_cuda_synchronise() == 0) lib.ncclCommDestroy(l->comm);
    free_link(l);
}

/* ---- messages ---- */
/* A rank of the group by its number in the world. */
static int find_member(const sz_link *l, int member)
{
    int low = 0;
    int high = l->size - 1;
    while (low < high) {
        const int middle = (low + high) / 2;
        if (l->members[middle] < member) low = middle + 1;
        else high = middle;
    }
    SZ_ASSERT(l->members[low] == member, "a message to a rank of another group");
    return low;
}

static int exchange(sz_link *l, const sz_message *messages, int count)
{
    SZ_ASSERT(count <= SZ_LINK_MESSAGES, "too many messages in an exchange");
    if (ended) return sz_fail("nccl: the ranks have lost each other");
    cudaStream_t stream = sz_cuda_stream();
    ncclResult_t result = lib.ncclGroupStart();
    for (int i = 0; i < count && result == ncclSuccess; i++) {
        const sz_message *m = &messages[i];
        const int peer = find_member(l, m->peer);
        if (m->send) result = lib.ncclSend(m->data, m->bytes, ncclInt8, peer, l->comm, stream);
        else result = lib.ncclRecv(m->data, m->bytes, ncclInt8, peer, l->comm, stream);
    }
    const ncclResult_t end = lib.ncclGroupEnd();
    return check(result != ncclSuccess ? result : end, "messages between ranks");
}

/* ---- the end of groups ---- */
static void end_groups(void)
{
    ended = true;
    for (sz_link *l = groups; l; l = l->next) lib.ncclCommAbort(l->comm);
}

/* -1 with a message when NCCL says that a group has failed. */
static int check_groups(void)
{
    for (sz_link *l = groups; l; l = l->next) {
        ncclResult_t result = ncclSuccess;
        if (check(lib.ncclCommGetAsyncError(l->comm, &result), "a group of ranks") != 0) return -1;
        if (check(result, "messages between ranks") != 0) return -1;
    }
    return 0;
}

int sz_cuda_wait(cudaEvent_t e, const char *what)
{
    cudaStream_t stream = sz_cuda_stream();
    if (!groups)
        return sz_cuda_check(e ? cudaEventSynchronize(e) : cudaStreamSynchronize(stream), what);
    if (ended) return sz_fail("cuda: %s: the ranks have lost each other", what);
    const double begin = now();
    double look = begin + EVERY;
    for (int turn = 0;; turn++) {
        const cudaError_t s = e ? cudaEventQuery(e) : cudaStreamQuery(stream);
        if (s != cudaErrorNotReady) return sz_cuda_check(s, what);
        pause_a_little(turn);
        if (turn % 64 != 63 || now() < look) continue;
        look = now() + EVERY;
        if (check_groups() == 0 && (!watch || watch(now() - begin) == 0)) continue;
        end_groups();
        return -1;
    }
}

/* A query is all that is needed: some drivers start work only when they are asked. */
static void poll(void)
{
    const bool is_quiet = joining_now || ended || sz_cuda_is_recording();
    if (groups && !is_quiet) cudaStreamQuery(sz_cuda_stream());
}
#endif

const sz_links *sz_cuda_links(void)
{
    static const sz_links links = {
        missing, place, new_id, join, leave, exchange, sum, copy_runs, set_watch, poll,
    };
    return &links;
}
