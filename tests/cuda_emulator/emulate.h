/* emulate.h - the part of CUDA that our kernels use, on the host processor: the same .cu files
 * compile with g++, and tests run every kernel on a machine without a GPU, CUDA headers or driver.
 *
 * Usage. One kernel file alone, and a program of several files with the emulator's parts:
 *
 *     g++ -x c++ -std=gnu++17 -O1 -g -fPIC -Wall -Wno-unknown-pragmas -DSZ_EMULATE -Iruntime \
 *         -Itests/cuda_emulator -c runtime/cuda/rowwise.cu -o rowwise.o
 *     g++ -x c++ -std=gnu++17 -O1 -g -Wall -Wno-unknown-pragmas -DSZ_EMULATE -Iruntime \
 *         -Itests/cuda_emulator my_test.cc runtime/cuda/rowwise.cu runtime/cuda/device.cu \
 *         runtime/cuda/stage.cu tests/cuda_emulator/emulate.cc tests/cuda_emulator/threads.cc -o
 *         my_test
 *
 * device.cu provides sz_cuda_scratch, sz_cuda_indices, sz_fail and so on. `make cuda-emulated`
 * builds the whole backend, build/libsegzero_cuda_emulated.so. The first part of cuda_emulate.cc
 * is an example of such a my_test.cc.
 *
 * How it works. Blocks run one after the other. The threads of a block are fibers that switch only
 * where a kernel synchronises; a kernel without synchronisation runs all its threads on one fiber,
 * as a plain loop. Device memory is one mapped region that only a running kernel, copy or memset
 * may touch: a host dereference of a device pointer crashes, as on a GPU. Kernel arguments that
 * are pointers must point into it. These are errors that name the place: a warp function that some
 * lanes of its mask do not reach, lanes of one mask in different functions or at different lines,
 * and a barrier that a thread never reaches. New device memory and dynamic shared memory are
 * filled with NaN. Host code that stands in for a library (a matrix product as a loop) opens
 * device memory with an sz_emu_access object.
 *
 * A captured stream records what it is given, and a graph's launch runs the recording: kernels with
 * the arguments of that time, asynchronous copies and fills. Whatever CUDA refuses during a capture
 * (waiting, allocating, plain copies) breaks it here, too.
 *
 * A stream is a list of work. Usually work runs when it is given, unless it must wait: for an event
 * of another stream, or for another rank (emulate_nccl.cc). The streams that SEGZERO_EMULATE_LAZY
 * names, a sum of 1 (the first one created), 2, 4, ..., run nothing before something waits for it,
 * and then no more than is needed. A copy or kernel that should wait for another stream and does
 * not then works on old bytes, most likely on NaN.
 *
 * SEGZERO_EMULATE_ORDER=n (from 1) makes threads start and continue in a random order, and blocks
 * run from the last to the first. A result that a missing barrier leaves to chance then changes,
 * most likely to NaN.
 *
 * SEGZERO_EMULATE_DEVICES=n: how many devices there are, each of them for itself; at first 1.
 *
 * Leaves out: concurrency between blocks, textures, graphs that are not captured, cooperative
 * groups, half precision. Static shared memory keeps the last block's values. What is missing here
 * does not compile. */
#ifndef SZ_EMULATE_H
#define SZ_EMULATE_H

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __shared__ static
#define __constant__ static
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __grid_constant__
#define SZ_LAUNCH(kernel, grid, block, shared_bytes, ...) \
    sz_emu_launch(sz_cuda_stream(), kernel, #kernel, dim3(grid), dim3(block), \
                  (size_t)(shared_bytes), ##__VA_ARGS__)
#define SZ_SHARED_DYNAMIC(type, name) type *name = reinterpret_cast<type *>(sz_emu_shared())

/* ---- vector types ---- */
#define SZ_EMU_VECTORS(T, name, a2, a4) \
    struct __attribute__((aligned(a2))) name##2 { T x, y; }; \
    struct name##3 { T x, y, z; }; \
    struct __attribute__((aligned(a4))) name##4 { T x, y, z, w; }; \
    static inline name##2 make_##name##2(T x, T y) { return name##2 { x, y }; } \
    static inline name##3 make_##name##3(T x, T y, T z) { return name##3 { x, y, z }; } \
    static inline name##4 make_##name##4(T x, T y, T z, T w) { return name##4 { x, y, z, w }; }
SZ_EMU_VECTORS(float, float, 8, 16)
SZ_EMU_VECTORS(int, int, 8, 16)
SZ_EMU_VECTORS(unsigned, uint, 8, 16)
SZ_EMU_VECTORS(unsigned short, ushort, 4, 8)

struct uint3e {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
extern uint3e threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
enum { warpSize = 32 };

/* ---- bf16 ---- */
struct __nv_bfloat16 {
    uint16_t bits;
    __nv_bfloat16() = default;
    /* Rounds to nearest even; NaN stays NaN. */
    __nv_bfloat16(float f)
    {
        uint32_t u;
        memcpy(&u, &f, 4);
        const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1)) >> 16;
        bits = (u & 0x7fffffffu) > 0x7f800000u ? (uint16_t)0x7fff : (uint16_t)rounded;
    }
    operator float() const
    {
        uint32_t u = (uint32_t)bits << 16;
        float f;
        memcpy(&f, &u, 4);
        return f;
    }
};
struct __attribute__((aligned(4))) __nv_bfloat162 {
    __nv_bfloat16 x, y;
};

static inline float __bfloat162float(__nv_bfloat16 v) { return v; }
static inline __nv_bfloat16 __float2bfloat16(float v) { return v; }
static inline __nv_bfloat16 __float2bfloat16_rn(float v) { return v; }
static inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y)
{
    return __nv_bfloat162{ x, y };
}
static inline __nv_bfloat162 __float22bfloat162_rn(float2 v) { return __nv_bfloat162{ v.x, v.y }; }
static inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y)
{
    return __nv_bfloat162{ x, y };
}
static inline float2 __bfloat1622float2(__nv_bfloat162 v) { return float2{ v.x, v.y }; }
static inline float __low2float(__nv_bfloat162 v) { return v.x; }
static inline float __high2float(__nv_bfloat162 v) { return v.y; }
static inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 v) { return v.bits; }
static inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short u)
{
    __nv_bfloat16 v;
    v.bits = u;
    return v;
}

/* ---- arithmetic ---- */
template <class T> static inline T __ldg(const T *p) { return *p; }
template <class T> static inline T __ldcs(const T *p) { return *p; }
template <class T> static inline void __stcs(T *p, T v) { *p = v; }
using std::isfinite;
using std::isinf;
using std::isnan;
using std::max;
using std::min;
/* CUDA's overloads for mixed types, which std::min does not accept. */
static inline int64_t min(int64_t a, int b) { return a < b ? a : b; }
static inline int64_t min(int a, int64_t b) { return a < b ? a : b; }
static inline int64_t max(int64_t a, int b) { return a > b ? a : b; }
static inline int64_t max(int a, int64_t b) { return a > b ? a : b; }
static inline unsigned min(unsigned a, int b) { return a < (unsigned)b ? a : (unsigned)b; }
static inline unsigned min(int a, unsigned b) { return (unsigned)a < b ? (unsigned)a : b; }
static inline unsigned max(unsigned a, int b) { return a > (unsigned)b ? a : (unsigned)b; }
static inline unsigned max(int a, unsigned b) { return (unsigned)a > b ? (unsigned)a : b; }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline double rsqrt(double x) { return 1.0 / sqrt(x); }
/* Macros, because glibc has functions of these names. */
#define __expf(x) expf(x)
#define __logf(x) logf(x)
#define __powf(x, y) powf(x, y)
static inline float __fdividef(float a, float b) { return a / b; }
static inline float __frcp_rn(float a) { return 1.0f / a; }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fsqrt_rn(float a) { return sqrtf(a); }
static inline float __saturatef(float a) { return a > 0 ? std::min(a, 1.0f) : 0; }
static inline int __float2int_rn(float a) { return (int)rintf(a); }
static inline int __float2int_rd(float a) { return (int)floorf(a); }
static inline int __float2int_rz(float a) { return (int)a; }

/* The same bytes as another type. */
template <class To, class From> static inline To sz_emu_bits(From from)
{
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
static inline unsigned __float_as_uint(float f) { return sz_emu_bits<unsigned>(f); }
static inline int __float_as_int(float f) { return sz_emu_bits<int>(f); }
static inline float __uint_as_float(unsigned u) { return sz_emu_bits<float>(u); }
static inline float __int_as_float(int u) { return sz_emu_bits<float>(u); }

static inline int __popc(unsigned u) { return __builtin_popcount(u); }
static inline int __clz(int u) { return u ? __builtin_clz((unsigned)u) : 32; }
static inline int __ffs(int u) { return __builtin_ffs(u); }
static inline unsigned __umulhi(unsigned a, unsigned b)
{
    return (unsigned)((uint64_t)a * b >> 32);
}
static inline unsigned __brev(unsigned u)
{
    unsigned r = 0;
    for (int i = 0; i < 32; i++) r |= (u >> i & 1u) << (31 - i);
    return r;
}
#define CUDART_INF_F INFINITY

/* Threads switch only where they synchronise, so plain arithmetic is atomic. There are no atomics
 * on floats, because their order would be free. */
#define SZ_EMU_ATOMIC_OP(T, name, expression) \
    static inline T name(T *p, T v) \
    { \
        T old = *p; \
        *p = expression; \
        return old; \
    }
#define SZ_EMU_ATOMIC(T) \
    SZ_EMU_ATOMIC_OP(T, atomicAdd, old + v) \
    SZ_EMU_ATOMIC_OP(T, atomicMax, old > v ? old : v) \
    SZ_EMU_ATOMIC_OP(T, atomicMin, old < v ? old : v) \
    SZ_EMU_ATOMIC_OP(T, atomicOr, old | v) \
    SZ_EMU_ATOMIC_OP(T, atomicExch, v) \
    static inline T atomicCAS(T *p, T expected, T v) \
    { \
        T old = *p; \
        if (old == expected) *p = v; \
        return old; \
    }
SZ_EMU_ATOMIC(int)
SZ_EMU_ATOMIC(unsigned)
SZ_EMU_ATOMIC(unsigned long long)
static inline void __threadfence() {}
static inline void __threadfence_block() {}

/* ---- synchronisation ---- */
/* Prints the message and the current thread, and aborts. */
extern "C" void sz_emu_fatal(const char *format, ...)
    __attribute__((noreturn, format(printf, 1, 2)));

/* What a lane passes to a warp function. It is on the lane's stack. When all lanes of the mask have
 * arrived, the last one calls finish for each of them, with all requests. */
struct sz_emu_request {
    void (*finish)(sz_emu_request *self, unsigned lane, sz_emu_request *const *all);
    const char *name;
    unsigned mask;
    const char *file;
    unsigned line;
};
void sz_emu_warp(sz_emu_request *r);
void sz_emu_barrier(const char *file, unsigned line);
void *sz_emu_shared();

#define SZ_EMU_PLACE const char *file = __builtin_FILE(), unsigned line = __builtin_LINE()

static inline void __syncthreads(SZ_EMU_PLACE) { sz_emu_barrier(file, line); }

template <class V> struct sz_emu_value : sz_emu_request {
    V value, result;
    unsigned source;
    int flag;
};

static inline void sz_emu_describe(sz_emu_request *r, const char *name, unsigned mask,
                                   const char *file, unsigned line)
{
    r->name = name;
    r->mask = mask;
    r->file = file;
    r->line = line;
}

/* ---- shuffles ---- */
template <class V> static inline V sz_emu_shuffle(const char *name, unsigned mask, V v, int source,
                                                  const char *file, unsigned line)
{
    sz_emu_value<V> r;
    r.value = v;
    r.source = (unsigned)source & 31;
    sz_emu_describe(&r, name, mask, file, line);
    r.finish = [](sz_emu_request *self, unsigned, sz_emu_request *const *all) {
        sz_emu_value<V> *me = static_cast<sz_emu_value<V> *>(self);
        if (!all[me->source])
            sz_emu_fatal("%s:%u: %s reads lane %u, which is not in the mask %08x", me->file,
                         me->line, me->name, me->source, me->mask);
        me->result = static_cast<sz_emu_value<V> *>(all[me->source])->value;
    };
    sz_emu_warp(&r);
    return r.result;
}

static inline int sz_emu_lane()
{
    return (int)((threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % 32);
}

template <class V>
static inline V __shfl_sync(unsigned mask, V v, int source, int width = 32, SZ_EMU_PLACE)
{
    int first = sz_emu_lane() & ~(width - 1);
    return sz_emu_shuffle("__shfl_sync", mask, v, first + (source & (width - 1)), file, line);
}

template <class V>
static inline V __shfl_xor_sync(unsigned mask, V v, int bits, int width = 32, SZ_EMU_PLACE)
{
    int lane = sz_emu_lane();
    int source = lane ^ bits;
    if (source >= (lane & ~(width - 1)) + width) source = lane;
    return sz_emu_shuffle("__shfl_xor_sync", mask, v, source, file, line);
}

template <class V>
static inline V __shfl_down_sync(unsigned mask, V v, unsigned by, int width = 32, SZ_EMU_PLACE)
{
    int lane = sz_emu_lane();
    int source = lane + (int)by;
    if ((lane & (width - 1)) + (int)by >= width) source = lane;
    return sz_emu_shuffle("__shfl_down_sync", mask, v, source, file, line);
}

template <class V>
static inline V __shfl_up_sync(unsigned mask, V v, unsigned by, int width = 32, SZ_EMU_PLACE)
{
    int lane = sz_emu_lane();
    int source = lane - (int)by;
    if ((lane & (width - 1)) < (int)by) source = lane;
    return sz_emu_shuffle("__shfl_up_sync", mask, v, source, file, line);
}

/* ---- votes ---- */
static inline unsigned sz_emu_vote(const char *name, unsigned mask, int predicate, const char *file,
                                   unsigned line)
{
    sz_emu_value<unsigned> r;
    r.flag = predicate != 0;
    sz_emu_describe(&r, name, mask, file, line);
    r.finish = [](sz_emu_request *self, unsigned, sz_emu_request *const *all) {
        unsigned votes = 0;
        for (unsigned i = 0; i < 32; i++)
            if (all[i] && static_cast<sz_emu_value<unsigned> *>(all[i])->flag) votes |= 1u << i;
        static_cast<sz_emu_value<unsigned> *>(self)->result = votes;
    };
    sz_emu_warp(&r);
    return r.result;
}

static inline unsigned __ballot_sync(unsigned mask, int p, SZ_EMU_PLACE)
{
    return sz_emu_vote("__ballot_sync", mask, p, file, line);
}
static inline int __any_sync(unsigned mask, int p, SZ_EMU_PLACE)
{
    return sz_emu_vote("__any_sync", mask, p, file, line) != 0;
}
static inline int __all_sync(unsigned mask, int p, SZ_EMU_PLACE)
{
    return sz_emu_vote("__all_sync", mask, p, file, line) == mask;
}
static inline void __syncwarp(unsigned mask = 0xffffffffu, SZ_EMU_PLACE)
{
    sz_emu_vote("__syncwarp", mask, 0, file, line);
}

/* ---- tensor cores ---- */
/* d += a b, with a of 16 rows and b of 8 columns, in the register layouts of PTX:
 * mma.sync.aligned.row.col.m16n8k16.f32.bf16.bf16.f32 and m16n8k32.s32.s8.s8.s32. A register of a
 * and b holds two bf16 or four bytes, the lowest index in the lowest bits. */
template <class D> struct sz_emu_mma_request : sz_emu_request {
    const unsigned *a, *b;
    D *d;
    D result[4];
};

/* sum + the products of one register. */
static inline float sz_emu_mma_dot(unsigned a, unsigned b, float sum)
{
    auto half = [](unsigned pair, unsigned which) {
        return __uint_as_float(which ? pair & 0xffff0000u : pair << 16);
    };
    for (unsigned i = 0; i < 2; i++) sum += half(a, i) * half(b, i);
    return sum;
}
static inline int sz_emu_mma_dot(unsigned a, unsigned b, int sum)
{
    for (unsigned i = 0; i < 32; i += 8) sum += (int)(int8_t)(a >> i) * (int)(int8_t)(b >> i);
    return sum;
}

template <class D> static inline void sz_emu_mma(D d[4], const unsigned a[4], const unsigned b[2],
                                                 const char *file, unsigned line)
{
    typedef sz_emu_mma_request<D> request;
    request r;
    r.a = a;
    r.b = b;
    r.d = d;
    sz_emu_describe(&r, "mma", 0xffffffffu, file, line);
    r.finish = [](sz_emu_request *self, unsigned lane, sz_emu_request *const *all) {
        request *me = static_cast<request *>(self);
        for (unsigned i = 0; i < 4; i++) {
            /* Element (row, col) of the result; each k comes from the lanes that hold it. */
            unsigned row = lane / 4 + 8 * (i / 2);
            unsigned col = 2 * (lane % 4) + i % 2;
            D sum = me->d[i];
            for (unsigned k = 0; k < 8; k++) {
                const request *la = static_cast<const request *>(all[row % 8 * 4 + k % 4]);
                const request *lb = static_cast<const request *>(all[col * 4 + k % 4]);
                sum = sz_emu_mma_dot(la->a[row / 8 + 2 * (k / 4)], lb->b[k / 4], sum);
            }
            me->result[i] = sum;
        }
    };
    sz_emu_warp(&r);
    for (int i = 0; i < 4; i++) d[i] = r.result[i];
}

static inline void sz_emu_mma_m16n8k16(float d[4], const unsigned a[4], const unsigned b[2],
                                       SZ_EMU_PLACE)
{
    sz_emu_mma(d, a, b, file, line);
}
static inline void sz_emu_mma_m16n8k32(int d[4], const unsigned a[4], const unsigned b[2],
                                       SZ_EMU_PLACE)
{
    sz_emu_mma(d, a, b, file, line);
}

/* ---- launching ---- */
typedef struct sz_emu_stream *cudaStream_t;
/* Runs body(argument) once for each thread of each block. Returns false if the configuration is
 * refused; cudaGetLastError then says so. */
bool sz_emu_run(const char *name, const void *kernel, dim3 grid, dim3 block, size_t shared_bytes,
                void (*body)(void *), void *argument);
/* Aborts if p is not NULL and points to host memory. */
void sz_emu_check_argument(const char *name, int index, const void *p);
/* Adds the work to the stream, which runs it once all earlier work is done: at once, unless the
 * stream is lazy or waits. While the stream is captured, records it for the graph's launches. */
void sz_emu_do(cudaStream_t s, const std::function<void()> &work);
/* The same for work that may have to wait for others: it is called until it returns true. */
void sz_emu_try(cudaStream_t s, const std::function<bool()> &work);

template <class T> static inline void sz_emu_check_one(const char *, int, const T &) {}
template <class T> static inline void sz_emu_check_one(const char *name, int index, T *const &p)
{
    sz_emu_check_argument(name, index, p);
}

template <class... P, class... A>
static inline void sz_emu_launch(cudaStream_t s, void (*kernel)(P...), const char *name, dim3 grid,
                                 dim3 block, size_t shared_bytes, A... a)
{
    static_assert(sizeof...(P) == sizeof...(A), "the kernel takes another number of arguments");
    struct frame {
        void (*kernel)(P...);
        std::tuple<std::remove_const_t<P>...> values;
    };
    frame f{ kernel, { (P)a... } };
    int index = 0;
    (sz_emu_check_one(name, ++index, (P)a), ...);
    auto body = [](void *p) {
        frame *g = static_cast<frame *>(p);
        std::apply(g->kernel, g->values);
    };
    sz_emu_do(s, [=]() mutable {
        sz_emu_run(name, (const void *)kernel, grid, block, shared_bytes, body, &f);
    });
}

/* ---- the runtime's functions ---- */
enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorInsufficientDriver = 35,
    cudaErrorNoDevice = 100,
    cudaErrorInvalidDevice = 101,
    cudaErrorNotReady = 600,
    cudaErrorStreamCaptureUnsupported = 900,
    cudaErrorStreamCaptureInvalidated = 901,
};
enum cudaMemcpyKind {
    cudaMemcpyHostToHost,
    cudaMemcpyHostToDevice,
    cudaMemcpyDeviceToHost,
    cudaMemcpyDeviceToDevice,
    cudaMemcpyDefault,
};
enum cudaFuncAttribute {
    cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
    cudaFuncAttributePreferredSharedMemoryCarveout = 9,
};
enum cudaDeviceAttr {
    cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
    cudaDevAttrMultiProcessorCount = 16,
};
enum { cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2, cudaHostAllocDefault = 0 };
enum cudaStreamCaptureMode {
    cudaStreamCaptureModeGlobal,
    cudaStreamCaptureModeThreadLocal,
    cudaStreamCaptureModeRelaxed,
};
typedef struct sz_emu_graph *cudaGraph_t, *cudaGraphExec_t;
typedef struct sz_emu_event *cudaEvent_t;
struct cudaDeviceProp {
    char name[256];
    size_t totalGlobalMem, sharedMemPerBlock, sharedMemPerBlockOptin;
    int major, minor, multiProcessorCount, warpSize, l2CacheSize;
};

extern "C" {
const char *cudaGetErrorString(cudaError_t e);
cudaError_t cudaGetLastError(void);
cudaError_t cudaPeekAtLastError(void);
cudaError_t cudaGetDeviceCount(int *count);
cudaError_t cudaDeviceGetPCIBusId(char *text, int bytes, int device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDevice(int *device);
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int device);
cudaError_t cudaDriverGetVersion(int *version);
cudaError_t cudaRuntimeGetVersion(int *version);
cudaError_t cudaMemGetInfo(size_t *available, size_t *total);
cudaError_t cudaFree(void *p);
cudaError_t cudaFreeHost(void *p);
cudaError_t cudaMemcpy(void *dst, const void *src, size_t bytes, cudaMemcpyKind kind);
cudaError_t cudaMemset(void *dst, int value, size_t bytes);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t s);
cudaError_t cudaStreamSynchronize(cudaStream_t s);
cudaError_t cudaStreamQuery(cudaStream_t s);
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned flags);
cudaError_t cudaDeviceSynchronize(void);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags);
cudaError_t cudaEventCreate(cudaEvent_t *e);
cudaError_t cudaEventDestroy(cudaEvent_t e);
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s);
cudaError_t cudaEventQuery(cudaEvent_t e);
cudaError_t cudaEventSynchronize(cudaEvent_t e);
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t start, cudaEvent_t end);
cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *graph);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph,
                                 unsigned long long flags);
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t s);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec);

/* What has been done so far. */
typedef struct {
    unsigned long uploads, downloads; /* copies over the bus */
    unsigned long waits;              /* of the host */
    unsigned long allocations;        /* of device or pinned memory */
    unsigned long launches, graphs;   /* kernels and graphs that the host launched */
    unsigned long captures;           /* that were begun */
} sz_emu_count;
__attribute__((visibility("default"))) const sz_emu_count *sz_emu_counts(void);
/* If on, every capture ends as if something in it had been refused. */
__attribute__((visibility("default"))) void sz_emu_break_captures(int on);
/* From here on as if SEGZERO_EMULATE_ORDER=seed were set. */
void sz_emu_order(unsigned seed);
cudaError_t sz_emu_malloc(void **p, size_t bytes);
cudaError_t sz_emu_host_alloc(void **p, size_t bytes);
cudaError_t sz_emu_set_attribute(const void *kernel, cudaFuncAttribute attribute, int value);
}

template <class T> static inline cudaError_t cudaMalloc(T **p, size_t bytes)
{
    return sz_emu_malloc((void **)p, bytes);
}
template <class T> static inline cudaError_t cudaHostAlloc(T **p, size_t bytes, unsigned)
{
    return sz_emu_host_alloc((void **)p, bytes);
}
template <class T> static inline cudaError_t cudaMallocHost(T **p, size_t bytes)
{
    return sz_emu_host_alloc((void **)p, bytes);
}
template <class F>
static inline cudaError_t cudaFuncSetAttribute(F *kernel, cudaFuncAttribute attribute, int value)
{
    return sz_emu_set_attribute((const void *)kernel, attribute, value);
}
static inline cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes,
                                          cudaMemcpyKind kind, cudaStream_t s = 0)
{
    sz_emu_do(s, [=] { cudaMemcpy(dst, src, bytes, kind); });
    return cudaSuccess;
}
static inline cudaError_t cudaMemcpy2DAsync(void *dst, size_t dst_pitch, const void *src,
                                            size_t src_pitch, size_t width, size_t height,
                                            cudaMemcpyKind kind, cudaStream_t s = 0)
{
    sz_emu_do(s, [=] {
        for (size_t i = 0; i < height; i++)
            cudaMemcpy((char *)dst + i * dst_pitch, (const char *)src + i * src_pitch, width, kind);
    });
    return cudaSuccess;
}
static inline cudaError_t cudaMemsetAsync(void *dst, int value, size_t bytes, cudaStream_t s = 0)
{
    sz_emu_do(s, [=] { cudaMemset(dst, value, bytes); });
    return cudaSuccess;
}

/* Host code may touch device memory while one of these exists. */
struct sz_emu_access {
    sz_emu_access();
    ~sz_emu_access();
    sz_emu_access(const sz_emu_access &) = delete;
};

#endif
