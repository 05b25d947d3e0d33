/* threads.cc - runs kernels for emulate.h: the fibers of a block's threads, barriers, warp
 * functions.
 *
 * A fiber takes the next thread of the block that has not started, runs it and takes the next one.
 * Where a thread must wait, its fiber is suspended and another one continues: one whose thread may
 * go on, or a fresh one. So a block needs as many fibers as threads wait at once, and only one if
 * no thread waits.
 * Leaves out: use by more than one system thread. */
#ifdef SZ_EMULATE
#include "emulate_internal.h"
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <sys/mman.h>

uint3e threadIdx, blockIdx;
dim3 blockDim, gridDim;

void sz_emu_fatal(const char *format, ...)
{
    va_list ap;
    va_start(ap, format);
    fprintf(stderr, "emulated CUDA: ");
    vfprintf(stderr, format, ap);
    fprintf(stderr, "\n    at thread (%u, %u, %u) of block (%u, %u, %u)\n", threadIdx.x,
            threadIdx.y, threadIdx.z, blockIdx.x, blockIdx.y, blockIdx.z);
    va_end(ap);
    abort();
}

enum { MAX_THREADS = 1024, STACK = 256 << 10 };

/* ---- switching stacks ---- */
#if defined(__x86_64__)
typedef void *context; /* the stack pointer; the callee-saved registers are on the stack */
extern "C" void sz_emu_switch(context *from, context to) __attribute__((visibility("hidden")));
asm(".text\n"
    ".globl sz_emu_switch\n"
    ".hidden sz_emu_switch\n"
    ".type sz_emu_switch,@function\n"
    "sz_emu_switch:\n"
    "pushq %rbp\n"
    "pushq %rbx\n"
    "pushq %r12\n"
    "pushq %r13\n"
    "pushq %r14\n"
    "pushq %r15\n"
    "movq %rsp,(%rdi)\n"
    "movq %rsi,%rsp\n"
    "popq %r15\n"
    "popq %r14\n"
    "popq %r13\n"
    "popq %r12\n"
    "popq %rbx\n"
    "popq %rbp\n"
    "ret\n"
    ".size sz_emu_switch,.-sz_emu_switch\n");

static void context_make(context *c, char *stack, size_t size, void (*entry)(void))
{
    void **top = (void **)((uintptr_t)(stack + size) & ~(uintptr_t)15);
    /* entry sees the stack as after a call. */
    *--top = NULL;
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

/* ---- the running block ---- */
struct warp {
    sz_emu_request *waiting[32];
    unsigned arrived, alive; /* bits of lanes */
};

static struct {
    const char *name;
    void (*body)(void *);
    void *argument;
    bool running;
    unsigned threads, started, alive; /* counts */
    unsigned current;                 /* number of the running thread */
    warp warps[MAX_THREADS / 32];
    int fiber_of[MAX_THREADS];
    unsigned order[MAX_THREADS]; /* in which threads start */
    /* The barrier at which threads wait. */
    unsigned at_barrier;
    const char *barrier_file;
    unsigned barrier_line;
    int barrier_list[MAX_THREADS];
    /* Threads that may continue: a ring. */
    unsigned ready[MAX_THREADS];
    unsigned ready_head, ready_count;
} block;

static context main_context, fibers[MAX_THREADS];
static int fiber_count;
static int free_fibers[MAX_THREADS], free_count;
static int fiber_current;
static char *stacks;
alignas(128) static char shared_memory[SZ_EMU_MAX_SHARED];

void *sz_emu_shared() { return shared_memory; }

/* ---- order ---- */
/* State of a small generator (xorshift). 0: threads and blocks run in the order of their numbers.
 * */
static uint32_t random_state;

/* Returns a random number below n. */
static unsigned draw(unsigned n)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 17;
    random_state ^= random_state << 5;
    return random_state % n;
}

void sz_emu_order(unsigned seed) { random_state = seed * 2654435769u; }

/* Chooses the order in which the block's threads start. */
static void order_begin(void)
{
    static bool asked = false;
    const char *set = asked ? NULL : getenv("SEGZERO_EMULATE_ORDER");
    asked = true;
    if (set) sz_emu_order((unsigned)atoi(set));
    for (unsigned t = 0; t < block.threads; t++) {
        const unsigned other = random_state ? draw(t + 1) : t;
        block.order[t] = block.order[other];
        block.order[other] = t;
    }
}

/* ---- fibers ---- */
/* Makes thread t the current one. */
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

/* Returns a fiber that runs no thread. */
static int fiber_take()
{
    if (free_count) return free_fibers[--free_count];
    if (!stacks) {
        const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        void *p = mmap(NULL, (size_t)MAX_THREADS * STACK, PROT_NONE, flags, -1, 0);
        if (p == MAP_FAILED) sz_emu_fatal("no memory for stacks");
        stacks = (char *)p;
    }
    char *s = stacks + (size_t)fiber_count * STACK;
    mprotect(s + 4096, STACK - 4096, PROT_READ | PROT_WRITE); /* the lowest page is a guard */
    context_make(&fibers[fiber_count], s, STACK, fiber_main);
    return fiber_count++;
}

/* Releases the barrier once all living threads have arrived. */
static void barrier_check()
{
    if (!block.at_barrier || block.at_barrier < block.alive) return;
    for (unsigned i = 0; i < block.at_barrier; i++) make_ready((unsigned)block.barrier_list[i]);
    block.at_barrier = 0;
}

/* Aborts with the reason why no thread can continue. */
static void report_deadlock()
{
    for (unsigned w = 0; w < (block.threads + 31) / 32; w++) {
        const warp *p = &block.warps[w];
        if (!p->arrived) continue;
        const sz_emu_request *r = p->waiting[__builtin_ctz(p->arrived)];
        sz_emu_fatal("kernel %s: %s at %s:%u with mask %08x is reached by lanes %08x of warp %u "
                     "only; lanes alive %08x%s",
                     block.name, r->name, r->file, r->line, r->mask, p->arrived, w, p->alive,
                     block.at_barrier ? ", others wait at a __syncthreads" : "");
    }
    sz_emu_fatal("kernel %s: no thread of the block can go on", block.name);
}

/* Takes a ready thread, a random one if the order is random, makes it current and returns its
 * fiber. */
static int take_ready()
{
    if (random_state) {
        const unsigned other = (block.ready_head + draw(block.ready_count)) % MAX_THREADS;
        std::swap(block.ready[block.ready_head], block.ready[other]);
    }
    unsigned t = block.ready[block.ready_head];
    block.ready_head = (block.ready_head + 1) % MAX_THREADS;
    block.ready_count--;
    enter(t);
    return block.fiber_of[t];
}

/* Switches to another thread of the block, or to a fresh fiber, or, if all threads are done, to
 * sz_emu_run. done: this fiber's thread has ended. */
static void switch_away(bool done)
{
    const int me = fiber_current;
    const unsigned t = block.current;
    const bool can_start = !done && block.started < block.threads;
    int next = -1;
    /* In random order, one time in four a new thread starts though others are ready. */
    if (block.ready_count && !(random_state && can_start && draw(4) == 0)) {
        next = take_ready();
    } else if (can_start) {
        next = fiber_take();
    } else if (block.alive) {
        report_deadlock();
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

/* ---- barriers and warp functions ---- */
void sz_emu_barrier(const char *file, unsigned line)
{
    if (!block.running) sz_emu_fatal("__syncthreads outside a kernel");
    const bool is_other = block.barrier_line != line || !block.barrier_file ||
                          strcmp(block.barrier_file, file) != 0;
    if (block.at_barrier && is_other)
        sz_emu_fatal("kernel %s: threads of one block wait at different barriers, "
                     "%s:%u and %s:%u",
                     block.name, block.barrier_file, block.barrier_line, file, line);
    block.barrier_file = file;
    block.barrier_line = line;
    block.barrier_list[block.at_barrier++] = (int)block.current;
    barrier_check();
    switch_away(false);
}

static bool same_place(const sz_emu_request *a, const sz_emu_request *b)
{
    return a->mask == b->mask && a->line == b->line && strcmp(a->name, b->name) == 0 &&
           strcmp(a->file, b->file) == 0;
}

/* Returns the lanes of mask that wait for r, with this lane. Lanes that wait elsewhere, for each
 * other but not for this lane, will still come; lanes that wait elsewhere for this one never do. */
static unsigned lanes_here(const warp *w, const sz_emu_request *r, unsigned lane, unsigned mask)
{
    unsigned here = 1u << lane;
    for (unsigned others = w->arrived & mask; others; others &= others - 1) {
        const unsigned i = (unsigned)__builtin_ctz(others);
        const sz_emu_request *o = w->waiting[i];
        if (same_place(o, r)) here |= 1u << i;
        else if (o->mask >> lane & 1)
            sz_emu_fatal("kernel %s: lanes of one warp diverge: %s at %s:%u with mask %08x, and "
                         "%s at %s:%u with mask %08x",
                         block.name, o->name, o->file, o->line, o->mask, r->name, r->file, r->line,
                         r->mask);
    }
    return here;
}

void sz_emu_warp(sz_emu_request *r)
{
    if (!block.running) sz_emu_fatal("%s outside a kernel", r->name);
    const unsigned t = block.current;
    const unsigned lane = t % 32;
    const unsigned first = t / 32 * 32;
    warp *w = &block.warps[t / 32];
    if (!(r->mask >> lane & 1))
        sz_emu_fatal("%s:%u: %s: the calling lane %u is not in its mask %08x", r->file, r->line,
                     r->name, lane, r->mask);
    /* A block's last warp may have fewer lanes. */
    const unsigned lanes = block.threads - first;
    const unsigned present = lanes < 32 ? (1u << lanes) - 1 : 0xffffffffu;
    const unsigned mask = r->mask & present;
    if (mask & ~w->alive)
        sz_emu_fatal("%s:%u: %s: mask %08x names lanes that have ended, %08x", r->file, r->line,
                     r->name, r->mask, mask & ~w->alive);

    /* Wait, unless this is the last lane to arrive. */
    const unsigned here = lanes_here(w, r, lane, mask);
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
        if (i != lane) make_ready(first + i);
    }
}

/* ---- launching ---- */
static std::map<const void *, int> shared_limits; /* bytes by kernel */

cudaError_t sz_emu_set_attribute(const void *kernel, cudaFuncAttribute attribute, int value)
{
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
    if (value < 0 || value > SZ_EMU_MAX_SHARED) return sz_emu_fail(cudaErrorInvalidValue);
    shared_limits[kernel] = value;
    return cudaSuccess;
}

static bool is_valid(const void *kernel, const dim3 &grid, const dim3 &size, size_t shared_bytes)
{
    const uint64_t threads = (uint64_t)size.x * size.y * size.z;
    if (!threads || threads > MAX_THREADS || size.z > 64) return false;
    if (!grid.x || !grid.y || !grid.z) return false;
    if (grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) return false;
    size_t limit = 48 << 10;
    auto set = shared_limits.find(kernel);
    if (set != shared_limits.end() && (size_t)set->second > limit) limit = (size_t)set->second;
    return shared_bytes <= limit;
}

/* Runs the block blockIdx. */
static void run_block(size_t shared_bytes)
{
    block.started = 0;
    block.at_barrier = 0;
    block.ready_count = 0;
    block.ready_head = 0;
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

bool sz_emu_run(const char *name, const void *kernel, dim3 grid, dim3 size, size_t shared_bytes,
                void (*body)(void *), void *argument)
{
    if (!is_valid(kernel, grid, size, shared_bytes)) {
        sz_emu_fail(cudaErrorInvalidConfiguration);
        return false;
    }
    if (block.running) sz_emu_fatal("kernel %s is launched by a kernel", name);
    sz_emu_count_launch();
    sz_emu_access access;
    block.name = name;
    block.body = body;
    block.argument = argument;
    block.threads = size.x * size.y * size.z;
    block.running = true;
    blockDim = size;
    gridDim = grid;
    order_begin();
    for (unsigned k = 0; k < grid.z; k++)
        for (unsigned j = 0; j < grid.y; j++)
            for (unsigned i = 0; i < grid.x; i++) {
                blockIdx = uint3e{ i, j, k };
                if (random_state)
                    blockIdx = uint3e{ grid.x - 1 - i, grid.y - 1 - j, grid.z - 1 - k };
                run_block(shared_bytes);
            }
    block.running = false;
    return true;
}
#endif
