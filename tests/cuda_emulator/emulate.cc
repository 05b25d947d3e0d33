/* emulate.cc - device memory, copies and the runtime's functions for emulate.h. streams.cc has
 * streams, events and captures; threads.cc runs the kernels.
 * Leaves out: use by more than one system thread. */
#ifdef SZ_EMULATE
#include "emulate_internal.h"
#include <cstdio>
#include <cstdlib>
#include <map>
#include <sys/mman.h>
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

static sz_emu_count counted;
const sz_emu_count *sz_emu_counts(void) { return &counted; }
sz_emu_count *sz_emu_counted(void) { return &counted; }

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
    SZ_EMU_REFUSED_IN_CAPTURE;
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
    SZ_EMU_REFUSED_IN_CAPTURE;
    sz_emu_drain(); /* as CUDA does */
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

void sz_emu_check_memory(const char *what, const void *p, size_t bytes, bool device)
{
    if (!bytes) return;
    if (in_region(p) != device)
        sz_emu_fatal("%s: %p is %s memory", what, p, device ? "not device" : "device");
    if (device && !allocated_range(p, bytes))
        sz_emu_fatal("%s: %zu bytes at %p reach outside what was allocated", what, bytes, p);
}

cudaError_t cudaMemcpy(void *dst, const void *src, size_t bytes, cudaMemcpyKind kind)
{
    SZ_EMU_REFUSED_IN_CAPTURE;
    const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (kind != cudaMemcpyDefault) {
        sz_emu_check_memory("cudaMemcpy's destination", dst, bytes, to_device);
        sz_emu_check_memory("cudaMemcpy's source", src, bytes, from_device);
    }
    counted.uploads += kind == cudaMemcpyHostToDevice;
    counted.downloads += kind == cudaMemcpyDeviceToHost;
    sz_emu_access access;
    memmove(dst, src, bytes);
    return cudaSuccess;
}

cudaError_t cudaMemset(void *dst, int value, size_t bytes)
{
    SZ_EMU_REFUSED_IN_CAPTURE;
    sz_emu_check_memory("cudaMemset", dst, bytes, true);
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
    case cudaErrorNotReady: return "device not ready";
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

/* The devices that CUDA_VISIBLE_DEVICES leaves, by their numbers on the machine. */
static const std::vector<int> &visible_devices(void)
{
    static std::vector<int> list;
    if (!list.empty()) return list;
    const char *all = getenv("SEGZERO_EMULATE_DEVICES");
    const int count = all ? atoi(all) : 1;
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    for (int i = 0; !visible && i < count; i++) list.push_back(i);
    for (const char *p = visible; p && *p; p += strspn(p, ",")) {
        const int device = atoi(p);
        if (device < 0 || device >= count) break; /* CUDA ignores what follows, too */
        list.push_back(device);
        p += strcspn(p, ",");
    }
    return list;
}
static int current_device;

cudaError_t cudaGetDeviceCount(int *count)
{
    *count = (int)visible_devices().size();
    return *count ? cudaSuccess : sz_emu_fail(cudaErrorNoDevice);
}
cudaError_t cudaSetDevice(int device)
{
    if (device < 0 || device >= (int)visible_devices().size())
        return sz_emu_fail(cudaErrorInvalidDevice);
    current_device = device;
    return cudaSuccess;
}
cudaError_t cudaGetDevice(int *device)
{
    *device = current_device;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char *text, int bytes, int device)
{
    if (device < 0 || device >= (int)visible_devices().size())
        return sz_emu_fail(cudaErrorInvalidDevice);
    snprintf(text, (size_t)bytes, "0000:%02x:00.0", 16 + visible_devices()[(size_t)device]);
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
    SZ_EMU_REFUSED_IN_CAPTURE;
    counted.allocations++;
    *p = malloc(bytes ? bytes : 1);
    return *p ? cudaSuccess : sz_emu_fail(cudaErrorMemoryAllocation);
}
cudaError_t cudaFreeHost(void *p)
{
    free(p);
    return cudaSuccess;
}
#endif
