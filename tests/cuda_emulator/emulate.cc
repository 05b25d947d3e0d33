/* emulate.cc - what emulate.h declares: device memory, the fibers a block's threads run on, the runtime's functions.
 *
 * A fiber takes the next thread of the block that has not started, runs it, takes the next. Where a thread must wait, its
 * fiber stays behind and another goes on: one whose thread may continue, or a fresh one. So a block needs as many fibers
 * as threads wait at once, and none besides the first if nobody waits. Not for use by more than one system thread. */
#ifdef SZ_EMULATE
#include "emulate.h"
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <sys/mman.h>
#include <time.h>
#include <vector>

uint3e threadIdx, blockIdx;
dim3 blockDim, gridDim;

void sz_emu_fatal(const char *format, ...)
{
    va_list ap;
    va_start(ap, format);
    fprintf(stderr, "emulated CUDA: ");
    vfprintf(stderr, format, ap);
    fprintf(stderr, "\n    at thread (%u, %u, %u) of block (%u, %u, %u)\n", threadIdx.x, threadIdx.y, threadIdx.z, blockIdx.x, blockIdx.y, blockIdx.z);
    va_end(ap);
    abort();
}

/* ---- device memory ---- */
enum : size_t { REGION = (size_t)64 << 30, DEVICE_BYTES = (size_t)8 << 30, PAGE = (size_t)2 << 20, GRAIN = 512 };
static char *region;
static size_t region_used;                              /* a multiple of PAGE: what is ever made accessible */
static std::map<size_t, size_t> holes, blocks;          /* offset -> bytes */
static size_t allocated;
static int open_count;
static cudaError_t last_error;

static cudaError_t fail(cudaError_t e)
{
    if (e != cudaSuccess) last_error = e;
    return e;
}

/* ---- stream capture: a list of work ---- */
struct sz_emu_graph { std::vector<std::function<void()>> work; };
static sz_emu_graph *captured;                          /* while the stream is */
static bool capture_broken, captures_break, replaying;
static sz_emu_count counted;
const sz_emu_count *sz_emu_counts(void) { return &counted; }
void sz_emu_break_captures(int on) { captures_break = on != 0; }

void sz_emu_do(const std::function<void()> &work)
{
    if (captured) captured->work.push_back(work);
    else work();
}

/* For what CUDA refuses while a stream is captured. */
static bool refused(void)
{
    if (!captured) return false;
    capture_broken = true;
    last_error = cudaErrorStreamCaptureUnsupported;
    return true;
}
#define REFUSED_IN_CAPTURE do { if (refused()) return cudaErrorStreamCaptureUnsupported; } while (0)

cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode)
{
    REFUSED_IN_CAPTURE;
    counted.captures++;
    captured = new sz_emu_graph();
    capture_broken = captures_break;
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t *graph)
{
    *graph = captured;
    captured = NULL;
    if (*graph && !capture_broken) return cudaSuccess;
    delete *graph;
    *graph = NULL;
    return fail(cudaErrorStreamCaptureInvalidated);
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long)
{
    *exec = new sz_emu_graph(*graph);
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t)
{
    REFUSED_IN_CAPTURE;
    counted.graphs++;
    replaying = true;
    for (const auto &work : exec->work) work();
    replaying = false;
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    delete graph;
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) { return cudaGraphDestroy(exec); }

static bool in_region(const void *p) { return region && (const char *)p >= region && (const char *)p < region + REGION; }

sz_emu_access::sz_emu_access()
{
    if (open_count++ == 0 && region_used) mprotect(region, region_used, PROT_READ | PROT_WRITE);
}
sz_emu_access::~sz_emu_access()
{
    if (--open_count == 0 && region_used) mprotect(region, region_used, PROT_NONE);
}

cudaError_t sz_emu_malloc(void **out, size_t bytes)
{
    *out = NULL;
    REFUSED_IN_CAPTURE;
    if (!region) {
        void *p = mmap(NULL, REGION + PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED) return fail(cudaErrorMemoryAllocation);
        region = (char *)(((uintptr_t)p + PAGE - 1) / PAGE * PAGE);
        madvise(region, REGION, MADV_HUGEPAGE);         /* opening and closing costs by the page */
    }
    counted.allocations++;
    if (!bytes) return cudaSuccess;
    size_t want = (bytes + GRAIN - 1) / GRAIN * GRAIN, at = 0;
    if (bytes > DEVICE_BYTES || allocated + want > DEVICE_BYTES) return fail(cudaErrorMemoryAllocation);
    auto hole = holes.begin();
    while (hole != holes.end() && hole->second < want) ++hole;
    if (hole != holes.end()) {
        at = hole->first;
        size_t rest = hole->second - want;
        holes.erase(hole);
        if (rest) holes[at + want] = rest;
    } else {
        static size_t end;
        if (end + want > REGION) return fail(cudaErrorMemoryAllocation);
        at = end;
        end += want;
        size_t used = (end + PAGE - 1) / PAGE * PAGE;
        if (used > region_used) {
            if (open_count) mprotect(region, used, PROT_READ | PROT_WRITE);
            region_used = used;
        }
    }
    blocks[at] = want;
    allocated += want;
    sz_emu_access access;
    memset(region + at, 0xff, want);
    *out = region + at;
    return cudaSuccess;
}

cudaError_t cudaFree(void *p)
{
    if (!p) return cudaSuccess;
    REFUSED_IN_CAPTURE;
    auto b = in_region(p) ? blocks.find((size_t)((char *)p - region)) : blocks.end();
    if (b == blocks.end()) sz_emu_fatal("cudaFree of %p, which cudaMalloc did not return", p);
    auto hole = holes.insert({ b->first, b->second }).first;
    allocated -= b->second;
    blocks.erase(b);
    auto next = std::next(hole);
    if (next != holes.end() && hole->first + hole->second == next->first) {
        hole->second += next->second;
        holes.erase(next);
    }
    if (hole != holes.begin()) {
        auto before = std::prev(hole);
        if (before->first + before->second == hole->first) {
            before->second += hole->second;
            holes.erase(hole);
        }
    }
    return cudaSuccess;
}

/* Whether [p, p + bytes) lies in one block that is allocated. */
static bool allocated_range(const void *p, size_t bytes)
{
    size_t at = (size_t)((const char *)p - region);
    auto b = blocks.upper_bound(at);
    if (b == blocks.begin()) return false;
    --b;
    return at + bytes <= b->first + b->second;
}

static void check_side(const char *what, const void *p, size_t bytes, bool device)
{
    if (!bytes) return;
    if (in_region(p) != device) sz_emu_fatal("%s: %p is %s memory", what, p, device ? "not device" : "device");
    if (device && !allocated_range(p, bytes)) sz_emu_fatal("%s: %zu bytes at %p reach outside what was allocated", what, bytes, p);
}

cudaError_t cudaMemcpy(void *dst, const void *src, size_t bytes, cudaMemcpyKind kind)
{
    REFUSED_IN_CAPTURE;
    if (kind != cudaMemcpyDefault) {
        check_side("cudaMemcpy's destination", dst, bytes, kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice);
        check_side("cudaMemcpy's source", src, bytes, kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice);
    }
    counted.uploads += kind == cudaMemcpyHostToDevice;
    counted.downloads += kind == cudaMemcpyDeviceToHost;
    sz_emu_access access;
    memmove(dst, src, bytes);
    return cudaSuccess;
}

cudaError_t cudaMemset(void *dst, int value, size_t bytes)
{
    REFUSED_IN_CAPTURE;
    check_side("cudaMemset", dst, bytes, true);
    sz_emu_access access;
    memset(dst, value, bytes);
    return cudaSuccess;
}

void sz_emu_check_argument(const char *name, int index, const void *p)
{
    if (p && !in_region(p)) sz_emu_fatal("kernel %s: argument %d, %p, points to host memory", name, index, p);
}

/* ---- fibers ---- */
enum { MAX_THREADS = 1024, STACK = 256 << 10, MAX_SHARED = 227 << 10 };

#if defined(__x86_64__)
typedef void *context;                                  /* the stack pointer; callee-saved registers lie above it */
extern "C" void sz_emu_switch(context *from, context to) __attribute__((visibility("hidden")));
asm(".text\n.globl sz_emu_switch\n.hidden sz_emu_switch\n.type sz_emu_switch,@function\nsz_emu_switch:\n"
    "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\nmovq %rsp,(%rdi)\nmovq %rsi,%rsp\n"
    "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n.size sz_emu_switch,.-sz_emu_switch\n");
static void context_make(context *c, char *stack, size_t size, void (*entry)(void))
{
    void **top = (void **)((uintptr_t)(stack + size) & ~(uintptr_t)15);
    *--top = NULL;                                      /* entry sees the stack as after a call */
    *--top = (void *)entry;
    top -= 6;
    memset(top, 0, 6 * sizeof *top);
    *c = top;
}
static inline void context_switch(context *from, context *to) { sz_emu_switch(from, *to); }
#else
#include <ucontext.h>
typedef ucontext_t context;
static void context_make(context *c, char *stack, size_t size, void (*entry)(void))
{
    getcontext(c);
    c->uc_stack.ss_sp = stack;
    c->uc_stack.ss_size = size;
    c->uc_link = NULL;
    makecontext(c, entry, 0);
}
static inline void context_switch(context *from, context *to) { swapcontext(from, to); }
#endif

struct warp { sz_emu_request *waiting[32]; unsigned arrived, alive; };

static struct {
    const char *name;
    void (*body)(void *);
    void *argument;
    unsigned threads, started, alive, current;          /* current: the running thread's number */
    unsigned at_barrier;
    const char *barrier_file;
    unsigned barrier_line;
    unsigned ready[MAX_THREADS], ready_head, ready_count;   /* threads that may go on, a ring */
    int fiber_of[MAX_THREADS];
    int barrier_list[MAX_THREADS];
    warp warps[MAX_THREADS / 32];
    bool running;
    unsigned order[MAX_THREADS];                            /* in which threads start */
} block;

/* ---- order ---- */
static uint32_t draws;              /* 0: threads and blocks take turns in the order of their numbers */

/* A number below n, from a small generator (xorshift) of its own. */
static unsigned draw(unsigned n)
{
    draws ^= draws << 13;
    draws ^= draws >> 17;
    draws ^= draws << 5;
    return draws % n;
}

void sz_emu_order(unsigned seed) { draws = seed * 2654435769u; }

static void order_begin(void)
{
    static bool asked = false;
    const char *set = asked ? NULL : getenv("SEGZERO_EMULATE_ORDER");
    asked = true;
    if (set) sz_emu_order((unsigned)atoi(set));
    for (unsigned t = 0; t < block.threads; t++) {
        const unsigned other = draws ? draw(t + 1) : t;
        block.order[t] = block.order[other];
        block.order[other] = t;
    }
}

static context main_context, fibers[MAX_THREADS];
static int fiber_count, free_fibers[MAX_THREADS], free_count, fiber_current;
static char *stacks;
alignas(128) static char shared_memory[MAX_SHARED];

void *sz_emu_shared() { return shared_memory; }

static void enter(unsigned t)
{
    block.current = t;
    threadIdx.x = t % blockDim.x;
    threadIdx.y = t / blockDim.x % blockDim.y;
    threadIdx.z = t / (blockDim.x * blockDim.y);
}

static void make_ready(unsigned t)
{
    block.ready[(block.ready_head + block.ready_count++) % MAX_THREADS] = t;
}

static void fiber_main();

static int fiber_take()
{
    if (free_count) return free_fibers[--free_count];
    if (!stacks) {
        void *p = mmap(NULL, (size_t)MAX_THREADS * STACK, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED) sz_emu_fatal("no memory for stacks");
        stacks = (char *)p;
    }
    char *s = stacks + (size_t)fiber_count * STACK;
    mprotect(s + 4096, STACK - 4096, PROT_READ | PROT_WRITE);   /* the lowest page stays closed */
    context_make(&fibers[fiber_count], s, STACK, fiber_main);
    return fiber_count++;
}

static void barrier_check()
{
    if (!block.at_barrier || block.at_barrier < block.alive) return;
    for (unsigned i = 0; i < block.at_barrier; i++) make_ready((unsigned)block.barrier_list[i]);
    block.at_barrier = 0;
}

static void nobody_goes_on()
{
    for (unsigned w = 0; w < (block.threads + 31) / 32; w++) {
        const warp *p = &block.warps[w];
        if (!p->arrived) continue;
        const sz_emu_request *r = p->waiting[__builtin_ctz(p->arrived)];
        sz_emu_fatal("kernel %s: %s at %s:%u with mask %08x is reached by lanes %08x of warp %u only; lanes alive %08x%s",
                     block.name, r->name, r->file, r->line, r->mask, p->arrived, w, p->alive,
                     block.at_barrier ? ", others wait at a __syncthreads" : "");
    }
    sz_emu_fatal("kernel %s: no thread of the block can go on", block.name);
}

/* Gives the processor to another thread of the block, or to a fresh fiber. done: this fiber's thread has ended. */
static void switch_away(bool done)
{
    int me = fiber_current, next;
    unsigned t = block.current;
    if (block.ready_count && !(draws && !done && block.started < block.threads && draw(4) == 0)) {
        if (draws) std::swap(block.ready[block.ready_head], block.ready[(block.ready_head + draw(block.ready_count)) % MAX_THREADS]);
        unsigned r = block.ready[block.ready_head];
        block.ready_head = (block.ready_head + 1) % MAX_THREADS;
        block.ready_count--;
        next = block.fiber_of[r];
        enter(r);
    } else if (!done && block.started < block.threads) {
        next = fiber_take();
    } else {
        if (block.alive) nobody_goes_on();
        next = -1;
    }
    if (done) free_fibers[free_count++] = me;
    if (next != me) {
        fiber_current = next;
        context_switch(&fibers[me], next < 0 ? &main_context : &fibers[next]);
        fiber_current = me;
    }
    if (!done) enter(t);
}

static void fiber_main()
{
    for (;;) {
        while (block.started < block.threads) {
            unsigned t = block.order[block.started++];
            block.fiber_of[t] = fiber_current;
            enter(t);
            block.body(block.argument);
            block.alive--;
            block.warps[t / 32].alive &= ~(1u << t % 32);
            barrier_check();
        }
        switch_away(true);
    }
}

void sz_emu_barrier(const char *file, unsigned line)
{
    if (!block.running) sz_emu_fatal("__syncthreads outside a kernel");
    unsigned t = block.current;
    if (block.at_barrier && (block.barrier_line != line || strcmp(block.barrier_file, file) != 0))
        sz_emu_fatal("kernel %s: threads of one block wait at different barriers, %s:%u and %s:%u", block.name, block.barrier_file, block.barrier_line, file, line);
    block.barrier_file = file;
    block.barrier_line = line;
    block.barrier_list[block.at_barrier++] = (int)t;
    barrier_check();
    switch_away(false);
}

void sz_emu_warp(sz_emu_request *r)
{
    if (!block.running) sz_emu_fatal("%s outside a kernel", r->name);
    unsigned t = block.current, lane = t % 32;
    warp *w = &block.warps[t / 32];
    unsigned present = block.threads - t / 32 * 32 < 32 ? (1u << (block.threads - t / 32 * 32)) - 1 : 0xffffffffu;
    if (!(r->mask >> lane & 1)) sz_emu_fatal("%s:%u: %s: the calling lane %u is not in its mask %08x", r->file, r->line, r->name, lane, r->mask);
    unsigned mask = r->mask & present;                  /* a block's last warp may be short */
    if (mask & ~w->alive) sz_emu_fatal("%s:%u: %s: mask %08x names lanes that have ended, %08x", r->file, r->line, r->name, r->mask, mask & ~w->alive);
    /* Who waits here already. Lanes that wait elsewhere for each other, but not for this one, will come. */
    unsigned here = 1u << lane;
    for (unsigned others = w->arrived & mask; others; others &= others - 1) {
        const unsigned i = (unsigned)__builtin_ctz(others);
        const sz_emu_request *o = w->waiting[i];
        if (o->mask == r->mask && o->line == r->line && strcmp(o->name, r->name) == 0 && strcmp(o->file, r->file) == 0) here |= 1u << i;
        else if (o->mask >> lane & 1)
            sz_emu_fatal("kernel %s: lanes of one warp diverge: %s at %s:%u with mask %08x, and %s at %s:%u with mask %08x", block.name,
                         o->name, o->file, o->line, o->mask, r->name, r->file, r->line, r->mask);
    }
    w->waiting[lane] = r;
    w->arrived |= 1u << lane;
    if (here != mask) {
        switch_away(false);
        return;
    }
    sz_emu_request *all[32];
    for (unsigned i = 0; i < 32; i++) all[i] = mask >> i & 1 ? w->waiting[i] : NULL;
    w->arrived &= ~mask;
    for (unsigned i = 0; i < 32; i++) {
        if (!all[i]) continue;
        all[i]->finish(all[i], i, all);
        if (i != lane) make_ready(t / 32 * 32 + i);
    }
}

static std::map<const void *, int> shared_limits;

cudaError_t sz_emu_set_attribute(const void *kernel, cudaFuncAttribute attribute, int value)
{
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
    if (value < 0 || value > MAX_SHARED) return fail(cudaErrorInvalidValue);
    shared_limits[kernel] = value;
    return cudaSuccess;
}

bool sz_emu_run(const char *name, const void *kernel, dim3 grid, dim3 size, size_t shared_bytes, void (*body)(void *), void *argument)
{
    uint64_t threads = (uint64_t)size.x * size.y * size.z;
    size_t limit = 48 << 10;
    auto set = shared_limits.find(kernel);
    if (set != shared_limits.end() && (size_t)set->second > limit) limit = (size_t)set->second;
    if (!threads || threads > MAX_THREADS || size.z > 64 || !grid.x || !grid.y || !grid.z || grid.x > 0x7fffffffu || grid.y > 65535
        || grid.z > 65535 || shared_bytes > limit) {
        fail(cudaErrorInvalidConfiguration);
        return false;
    }
    if (block.running) sz_emu_fatal("kernel %s is launched by a kernel", name);
    counted.launches += !replaying;
    sz_emu_access access;
    block.name = name;
    block.body = body;
    block.argument = argument;
    block.threads = (unsigned)threads;
    block.running = true;
    blockDim = size;
    gridDim = grid;
    order_begin();
    for (unsigned k = 0; k < grid.z; k++)
        for (unsigned j = 0; j < grid.y; j++)
            for (unsigned i = 0; i < grid.x; i++) {
                blockIdx = draws ? uint3e{ grid.x - 1 - i, grid.y - 1 - j, grid.z - 1 - k } : uint3e{ i, j, k };
                block.started = block.at_barrier = block.ready_count = block.ready_head = 0;
                block.alive = block.threads;
                for (unsigned w = 0; w < (block.threads + 31) / 32; w++) {
                    unsigned n = block.threads - 32 * w;
                    block.warps[w].arrived = 0;
                    block.warps[w].alive = n < 32 ? (1u << n) - 1 : 0xffffffffu;
                }
                if (shared_bytes) memset(shared_memory, 0xff, shared_bytes);
                fiber_current = fiber_take();
                context_switch(&main_context, &fibers[fiber_current]);
            }
    block.running = false;
    return true;
}

/* ---- the rest of the runtime ---- */
const char *cudaGetErrorString(cudaError_t e)
{
    switch (e) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorNoDevice: return "no CUDA-capable device is detected";
    case cudaErrorStreamCaptureUnsupported: return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureInvalidated: return "operation failed due to a previous error during capture";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    default: return "unknown error";
    }
}
cudaError_t cudaGetLastError(void)
{
    cudaError_t e = last_error;
    last_error = cudaSuccess;
    return e;
}
cudaError_t cudaPeekAtLastError(void) { return last_error; }
cudaError_t cudaGetDeviceCount(int *count) { *count = 1; return cudaSuccess; }
cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : fail(cudaErrorInvalidDevice); }
cudaError_t cudaGetDevice(int *device) { *device = 0; return cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int)
{
    *value = attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin ? MAX_SHARED : 4;
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int)
{
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "emulated device");
    p->totalGlobalMem = DEVICE_BYTES;
    p->sharedMemPerBlock = 48 << 10;
    p->sharedMemPerBlockOptin = MAX_SHARED;
    p->major = 8;
    p->multiProcessorCount = 4;                         /* few: more blocks than processors is the common case then */
    p->warpSize = 32;
    p->l2CacheSize = 1 << 20;
    return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int *version) { *version = 0; return cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int *version) { *version = 0; return cudaSuccess; }
cudaError_t cudaMemGetInfo(size_t *available, size_t *total)
{
    *total = DEVICE_BYTES;
    *available = DEVICE_BYTES - allocated;
    return cudaSuccess;
}
cudaError_t sz_emu_host_alloc(void **p, size_t bytes)
{
    REFUSED_IN_CAPTURE;
    counted.allocations++;
    *p = malloc(bytes ? bytes : 1);
    return *p ? cudaSuccess : fail(cudaErrorMemoryAllocation);
}
cudaError_t cudaFreeHost(void *p)
{
    free(p);
    return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned) { *s = NULL; return cudaSuccess; }
cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
static cudaError_t waited(void)
{
    REFUSED_IN_CAPTURE;
    counted.waits++;
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) { return waited(); }
cudaError_t cudaDeviceSynchronize(void) { return waited(); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned) { *e = new sz_emu_event(); return cudaSuccess; }
cudaError_t cudaEventCreate(cudaEvent_t *e) { return cudaEventCreateWithFlags(e, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t e) { delete e; return cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    e->seconds = (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
    return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t) { return waited(); }
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t start, cudaEvent_t end)
{
    *ms = (float)(1e3 * (end->seconds - start->seconds));
    return cudaSuccess;
}
#endif
