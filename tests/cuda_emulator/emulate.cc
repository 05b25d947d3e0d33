/* emulate.cc - device memory, stream capture and the runtime's functions for emulate.h. threads.cc
 * runs the kernels.
 * Leaves out: use by more than one system thread. */
#ifdef SZ_EMULATE
#include "emulate_internal.h"
#include <cstdio>
#include <cstdlib>
#include <map>
#include <sys/mman.h>
#include <time.h>
#include <vector>

/* ---- device memory ---- */
enum : size_t {
    REGION = (size_t)64 << 30,      /* address space */
    DEVICE_BYTES = (size_t)8 << 30, /* the emulated device's memory */
    PAGE = (size_t)2 << 20,
    GRAIN = 512,
};
static char *region;
static size_t region_used;              /* bytes ever in use, rounded up to PAGE */
static size_t region_end;               /* the same, not rounded */
static std::map<size_t, size_t> holes;  /* free ranges: offset -> bytes */
static std::map<size_t, size_t> blocks; /* allocated ranges */
static size_t allocated;
static int open_count; /* of sz_emu_access objects */
static cudaError_t last_error;

cudaError_t sz_emu_fail(cudaError_t e)
{
    if (e != cudaSuccess) last_error = e;
    return e;
}

/* ---- stream capture: a list of work ---- */
struct sz_emu_graph {
    std::vector<std::function<void()>> work;
};
static sz_emu_graph *captured; /* NULL unless the stream is being captured */
static bool capture_broken;
static bool breaks_captures; /* sz_emu_break_captures */
static bool replaying;
static sz_emu_count counted;

const sz_emu_count *sz_emu_counts(void) { return &counted; }
void sz_emu_break_captures(int on) { breaks_captures = on != 0; }
void sz_emu_count_launch(void) { counted.launches += !replaying; }

void sz_emu_do(const std::function<void()> &work)
{
    if (captured) captured->work.push_back(work);
    else work();
}

/* Whether a call that CUDA refuses during a capture is to be refused now. */
static bool refused(void)
{
    if (!captured) return false;
    capture_broken = true;
    last_error = cudaErrorStreamCaptureUnsupported;
    return true;
}
#define REFUSED_IN_CAPTURE \
    do { \
        if (refused()) return cudaErrorStreamCaptureUnsupported; \
    } while (0)

cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode)
{
    REFUSED_IN_CAPTURE;
    counted.captures++;
    captured = new sz_emu_graph();
    capture_broken = breaks_captures;
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t *graph)
{
    *graph = captured;
    captured = NULL;
    if (*graph && !capture_broken) return cudaSuccess;
    delete *graph;
    *graph = NULL;
    return sz_emu_fail(cudaErrorStreamCaptureInvalidated);
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

/* ---- allocating ---- */
static bool in_region(const void *p)
{
    return region && (const char *)p >= region && (const char *)p < region + REGION;
}

sz_emu_access::sz_emu_access()
{
    if (open_count++ == 0 && region_used) mprotect(region, region_used, PROT_READ | PROT_WRITE);
}

sz_emu_access::~sz_emu_access()
{
    if (--open_count == 0 && region_used) mprotect(region, region_used, PROT_NONE);
}

static bool map_region(void)
{
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void *p = mmap(NULL, REGION + PAGE, PROT_NONE, flags, -1, 0);
    if (p == MAP_FAILED) return false;
    region = (char *)(((uintptr_t)p + PAGE - 1) / PAGE * PAGE);
    madvise(region, REGION, MADV_HUGEPAGE); /* opening and closing costs by the page */
    return true;
}

/* Takes `want` bytes from a hole, or from the end of the region. Returns false if there are none.
 * */
static bool take_range(size_t want, size_t *offset)
{
    for (auto hole = holes.begin(); hole != holes.end(); ++hole) {
        if (hole->second < want) continue;
        *offset = hole->first;
        const size_t left = hole->second - want;
        holes.erase(hole);
        if (left) holes[*offset + want] = left;
        return true;
    }
    if (region_end + want > REGION) return false;
    *offset = region_end;
    region_end += want;
    const size_t used = (region_end + PAGE - 1) / PAGE * PAGE;
    if (used > region_used) {
        if (open_count) mprotect(region, used, PROT_READ | PROT_WRITE);
        region_used = used;
    }
    return true;
}

cudaError_t sz_emu_malloc(void **out, size_t bytes)
{
    *out = NULL;
    REFUSED_IN_CAPTURE;
    if (!region && !map_region()) return sz_emu_fail(cudaErrorMemoryAllocation);
    counted.allocations++;
    if (!bytes) return cudaSuccess;
    const size_t want = (bytes + GRAIN - 1) / GRAIN * GRAIN;
    size_t offset = 0;
    if (bytes > DEVICE_BYTES || allocated + want > DEVICE_BYTES || !take_range(want, &offset))
        return sz_emu_fail(cudaErrorMemoryAllocation);
    blocks[offset] = want;
    allocated += want;
    sz_emu_access access;
    memset(region + offset, 0xff, want);
    *out = region + offset;
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
    /* Merge with the holes on both sides. */
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

/* ---- copies ---- */
/* Whether [p, p + bytes) is inside one allocated block. */
static bool allocated_range(const void *p, size_t bytes)
{
    size_t at = (size_t)((const char *)p - region);
    auto b = blocks.upper_bound(at);
    if (b == blocks.begin()) return false;
    --b;
    return at + bytes <= b->first + b->second;
}

/* Aborts unless the bytes are allocated device memory, or host memory. */
static void check_side(const char *what, const void *p, size_t bytes, bool device)
{
    if (!bytes) return;
    if (in_region(p) != device)
        sz_emu_fatal("%s: %p is %s memory", what, p, device ? "not device" : "device");
    if (device && !allocated_range(p, bytes))
        sz_emu_fatal("%s: %zu bytes at %p reach outside what was allocated", what, bytes, p);
}

cudaError_t cudaMemcpy(void *dst, const void *src, size_t bytes, cudaMemcpyKind kind)
{
    REFUSED_IN_CAPTURE;
    const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (kind != cudaMemcpyDefault) {
        check_side("cudaMemcpy's destination", dst, bytes, to_device);
        check_side("cudaMemcpy's source", src, bytes, from_device);
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
    if (p && !in_region(p))
        sz_emu_fatal("kernel %s: argument %d, %p, points to host memory", name, index, p);
}

/* ---- errors and devices ---- */
const char *cudaGetErrorString(cudaError_t e)
{
    switch (e) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorNoDevice: return "no CUDA-capable device is detected";
    case cudaErrorStreamCaptureUnsupported:
        return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureInvalidated:
        return "operation failed due to a previous error during capture";
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

cudaError_t cudaGetDeviceCount(int *count)
{
    *count = 1;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int device)
{
    return device == 0 ? cudaSuccess : sz_emu_fail(cudaErrorInvalidDevice);
}
cudaError_t cudaGetDevice(int *device)
{
    *device = 0;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int)
{
    *value = attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin ? SZ_EMU_MAX_SHARED : 4;
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int)
{
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "emulated device");
    p->totalGlobalMem = DEVICE_BYTES;
    p->sharedMemPerBlock = 48 << 10;
    p->sharedMemPerBlockOptin = SZ_EMU_MAX_SHARED;
    p->major = 8;
    p->multiProcessorCount = 4; /* so few that most launches have more blocks */
    p->warpSize = 32;
    p->l2CacheSize = 1 << 20;
    return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int *version)
{
    *version = 0;
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *version)
{
    *version = 0;
    return cudaSuccess;
}
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
    return *p ? cudaSuccess : sz_emu_fail(cudaErrorMemoryAllocation);
}
cudaError_t cudaFreeHost(void *p)
{
    free(p);
    return cudaSuccess;
}

/* ---- streams and events ---- */
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned)
{
    *s = NULL;
    return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
static cudaError_t waited(void)
{
    REFUSED_IN_CAPTURE;
    counted.waits++;
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) { return waited(); }
cudaError_t cudaDeviceSynchronize(void) { return waited(); }

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned)
{
    *e = new sz_emu_event();
    return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t *e) { return cudaEventCreateWithFlags(e, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t e)
{
    delete e;
    return cudaSuccess;
}
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
