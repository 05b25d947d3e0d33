/* cuda_emulate.cc - a program that tests the emulator of CUDA itself (emulate.h): sums over blocks
 * and warps against plain sums, captures, and what must be rejected. Each of the latter runs in a
 * child process that must die with a message that contains given words.
 *
 * Copy the first part to try a single kernel file; emulate.h has the command.
 * Leaves out: the backend's kernels, which test_ops.lua and cuda_attention.cc test. */
#include "cuda/device.cuh"
#include <cstdio>
#include <cstdlib>
#include <sys/wait.h>
#include <unistd.h>

__global__ void row_sums(const float *x, float *y, int cols)
{
    float sum = 0;
    for (int i = (int)threadIdx.x; i < cols; i += (int)blockDim.x)
        sum += x[(size_t)blockIdx.x * cols + i];
    sum = sz_block_sum<128>(sum);
    float largest = sz_block_max<128>((float)threadIdx.x);
    if (threadIdx.x == 0) y[blockIdx.x] = sum + largest;
}

static int failures;
static void expect(bool ok, const char *what)
{
    if (!ok) fprintf(stderr, "FAILED: %s\n", what);
    failures += !ok;
}

static void test_sums()
{
    enum { ROWS = 5, COLS = 301 };
    static float x[ROWS * COLS], y[ROWS];
    for (int i = 0; i < ROWS * COLS; i++) x[i] = (float)(i % 17 - 8);
    float *dx = (float *)sz_cuda_allocate(sizeof x);
    float *dy = (float *)sz_cuda_allocate(sizeof y);
    sz_cuda_to_device(dx, x, sizeof x);
    SZ_LAUNCH(row_sums, ROWS, 128, 0, dx, dy, (int)COLS);
    expect(sz_cuda_launched("row_sums") == 0, "a launch");
    sz_cuda_to_host(y, dy, sizeof y);
    for (int r = 0; r < ROWS; r++) {
        float want = 127;
        for (int i = 0; i < COLS; i++) want += x[r * COLS + i];
        expect(y[r] == want, "a sum over a block");
    }
    sz_cuda_release(dx);
    sz_cuda_release(dy);
}

/* ---- warp functions, barriers, dynamic shared memory ---- */
template <class T> __global__ void reversed(const T *x, T *y, int n)
{
    SZ_SHARED_DYNAMIC(T, part);
    for (int i = (int)threadIdx.x; i < n; i += (int)blockDim.x) part[i] = x[i];
    __syncthreads();
    for (int i = (int)threadIdx.x; i < n; i += (int)blockDim.x) y[i] = part[n - 1 - i];
}

/* Lacks a barrier before the second write. That does not show when threads run in order. */
__global__ void racing(int *y)
{
    __shared__ int part[256];
    int t = (int)threadIdx.x;
    int sum = 0;
    for (int round = 1; round <= 3; round++) {
        part[t] = round;
        __syncthreads();
        sum += t < 255 ? part[t + 1] : round;
    }
    y[t] = sum;
}

__global__ void warp_functions(int *out)
{
    int lane = (int)threadIdx.x % 32;
    int ok = __shfl_sync(0xffffffffu, lane * 3, 7) == 21;
    ok &= __shfl_down_sync(0xffffffffu, lane, 4) == (lane < 28 ? lane + 4 : lane);
    ok &= __shfl_up_sync(0xffffffffu, lane, 1, 8) == (lane % 8 ? lane - 1 : lane);
    ok &= __shfl_xor_sync(0xffffffffu, lane, 5) == (lane ^ 5);
    ok &= __ballot_sync(0xffffffffu, lane < 3) == 7u;
    ok &= __any_sync(0xffffffffu, lane == 31) && !__all_sync(0xffffffffu, lane != 31);
    if (lane < 16) ok &= __shfl_xor_sync(0xffffu, lane, 1) == (lane ^ 1);
    __syncwarp();
    atomicAdd(&out[0], ok);
    atomicMax(&out[1], (int)(blockIdx.x * blockDim.x + threadIdx.x));
}

/* c [16, 8] = a [16, 16] b [16, 8], all row-major in memory, by one mma of one warp. */
__global__ void product(const bf16 *a, const bf16 *b, float *c)
{
    unsigned lane = threadIdx.x, ra[4], rb[2];
    float d[4] = { 0, 0, 0, 0 };
    auto pair = [](bf16 low, bf16 high) {
        return (unsigned)__bfloat16_as_ushort(low) | (unsigned)__bfloat16_as_ushort(high) << 16;
    };
    /* Fragments in PTX's layout. */
    for (unsigned i = 0; i < 4; i++) {
        unsigned row = lane / 4 + 8 * (i % 2);
        unsigned col = 2 * (lane % 4) + 8 * (i / 2);
        ra[i] = pair(a[row * 16 + col], a[row * 16 + col + 1]);
    }
    for (unsigned i = 0; i < 2; i++) {
        unsigned k = 2 * (lane % 4) + 8 * i;
        unsigned n = lane / 4;
        rb[i] = pair(b[k * 8 + n], b[(k + 1) * 8 + n]);
    }
    sz_emu_mma_m16n8k16(d, ra, rb);
    for (unsigned i = 0; i < 4; i++)
        c[(lane / 4 + 8 * (i / 2)) * 8 + 2 * (lane % 4) + i % 2] = d[i];
}

static void test_barriers()
{
    static double x[777], y[777];
    for (int i = 0; i < 777; i++) x[i] = i;
    double *dx = (double *)sz_cuda_allocate(sizeof x);
    double *dy = (double *)sz_cuda_allocate(sizeof y);
    sz_cuda_to_device(dx, x, sizeof x);
    SZ_LAUNCH((reversed<double>), 1, 96, sizeof x, dx, dy, 777);
    sz_cuda_to_host(y, dy, sizeof y);
    bool ok = true;
    for (int i = 0; i < 777; i++) ok &= y[i] == 776 - i;
    expect(ok, "shared memory across a barrier");

    /* The missing barrier shows in random order only. */
    int sums[256];
    int *dsums = (int *)sz_cuda_allocate(sizeof sums);
    for (unsigned order : { 0u, 1u }) {
        sz_emu_order(order);
        SZ_LAUNCH(racing, 1, 256, 0, dsums);
        sz_cuda_to_host(sums, dsums, sizeof sums);
        int wrong = 0;
        for (int v : sums) wrong += v != 6;
        expect(order ? wrong > 0 : wrong == 0, "a missing barrier shows in another order");
    }
    sz_emu_order(0);
    sz_cuda_release(dsums);

    /* More shared memory than 48 KiB has to be requested. */
    const size_t large = 64 << 10;
    SZ_LAUNCH((reversed<double>), 1, 96, large, dx, dy, 777);
    expect(cudaGetLastError() == cudaErrorInvalidConfiguration, "64 KiB must be asked for");
    cudaFuncSetAttribute(reversed<double>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)large);
    SZ_LAUNCH((reversed<double>), 1, 96, large, dx, dy, 777);
    expect(cudaGetLastError() == cudaSuccess, "64 KiB of shared memory after asking");
}

static void test_warp_functions()
{
    int got[2];
    int *counts = (int *)sz_cuda_allocate(sizeof got);
    sz_cuda_fill(counts, 0, sizeof got);
    SZ_LAUNCH(warp_functions, 3, dim3(32, 2), 0, counts);
    expect(sz_cuda_launched("warp_functions") == 0, "a launch in two dimensions");
    sz_cuda_to_host(got, counts, sizeof got);
    expect(got[0] == 3 * 64, "warp functions");
    expect(got[1] == 2 * 32 + 31, "atomicMax");
    SZ_LAUNCH(warp_functions, 1, 2048, 0, counts);
    expect(cudaGetLastError() == cudaErrorInvalidConfiguration, "refuses 2048 threads in a block");
}

static void test_mma()
{
    bf16 a[256], b[128];
    float c[128];
    for (int i = 0; i < 256; i++) a[i] = __float2bfloat16((float)(i % 7 - 3));
    for (int i = 0; i < 128; i++) b[i] = __float2bfloat16((float)(i % 5 - 2));
    bf16 *da = (bf16 *)sz_cuda_allocate(sizeof a);
    bf16 *db = (bf16 *)sz_cuda_allocate(sizeof b);
    float *dc = (float *)sz_cuda_allocate(sizeof c);
    sz_cuda_to_device(da, a, sizeof a);
    sz_cuda_to_device(db, b, sizeof b);
    SZ_LAUNCH(product, 1, 32, 0, da, db, dc);
    sz_cuda_to_host(c, dc, sizeof c);
    bool ok = true;
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 8; j++) {
            float want = 0;
            for (int k = 0; k < 16; k++) want += (float)a[i * 16 + k] * (float)b[k * 8 + j];
            ok &= c[i * 8 + j] == want;
        }
    expect(ok, "mma");
}

/* ---- capture ---- */
__global__ void add_one(const int *x, int *y, int n)
{
    int i = blockIdx.x * 32 + threadIdx.x;
    if (i < n) y[i] = x[i] + 1;
}

enum { N = 40 };

/* Three arrays on the device. */
struct arrays {
    int *x, *y, *z;
};

/* Captures y = x + 1, z = y and the clearing of y's first five; nothing of it is done yet. */
static cudaGraphExec_t capture(const arrays &a, cudaStream_t stream)
{
    cudaGraph_t graph;
    cudaGraphExec_t exec = NULL;
    cudaError_t e = cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
    expect(e == cudaSuccess, "a capture begins");
    const unsigned long launches = sz_emu_counts()->launches;
    SZ_LAUNCH(add_one, 2, 32, 0, a.x, a.y, (int)N);
    cudaMemcpyAsync(a.z, a.y, N * sizeof(int), cudaMemcpyDeviceToDevice, stream);
    cudaMemsetAsync(a.y, 0, 5 * sizeof(int), stream);
    expect(sz_emu_counts()->launches == launches, "a captured kernel does not run");
    expect(cudaStreamEndCapture(stream, &graph) == cudaSuccess, "a capture ends");
    expect(cudaGraphInstantiate(&exec, graph, 0) == cudaSuccess, "a graph is made");
    cudaGraphDestroy(graph);
    int back[N];
    sz_cuda_to_host(back, a.y, sizeof back);
    expect(back[7] == 0 && back[N - 1] == 0, "nothing was done during the capture");
    return exec;
}

/* Launches the graph twice, with other contents of x each time. */
static void test_graph(const arrays &a, cudaGraphExec_t exec, cudaStream_t stream)
{
    int host[N], back[N];
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < N; i++) host[i] = 100 * round + i;
        sz_cuda_to_device(a.x, host, sizeof host);
        expect(cudaGraphLaunch(exec, stream) == cudaSuccess, "a graph is launched");
        sz_cuda_to_host(back, a.z, sizeof back);
        bool ok = true;
        for (int i = 0; i < N; i++) ok &= back[i] == host[i] + 1;
        sz_cuda_to_host(back, a.y, sizeof back);
        for (int i = 0; i < N; i++) ok &= back[i] == (i < 5 ? 0 : host[i] + 1);
        expect(ok, "a graph does its work in order, with the present contents");
    }
}

/* Allocating and waiting are refused during a capture, and break it. */
static void test_broken_captures(cudaStream_t stream)
{
    void *p;
    cudaGraph_t graph;
    cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
    expect(cudaMalloc(&p, 64) == cudaErrorStreamCaptureUnsupported, "no memory during a capture");
    cudaError_t e = cudaStreamEndCapture(stream, &graph);
    expect(e == cudaErrorStreamCaptureInvalidated && !graph, "a refusal breaks the capture");
    cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
    e = cudaStreamSynchronize(stream);
    expect(e == cudaErrorStreamCaptureUnsupported, "no waiting during a capture");
    e = cudaStreamEndCapture(stream, &graph);
    expect(e == cudaErrorStreamCaptureInvalidated, "waiting breaks the capture");
    cudaGetLastError();
}

static void test_capture()
{
    int host[N] = { 0 };
    int back[N];
    arrays a;
    for (int **m : { &a.x, &a.y, &a.z }) *m = (int *)sz_cuda_allocate(sizeof host);
    sz_cuda_to_device(a.x, host, sizeof host);
    cudaMemset(a.y, 0, sizeof host);
    cudaStream_t stream = sz_cuda_stream();
    cudaGraphExec_t exec = capture(a, stream);
    test_graph(a, exec, stream);
    cudaGraphExecDestroy(exec);
    test_broken_captures(stream);

    const unsigned long launches = sz_emu_counts()->launches;
    SZ_LAUNCH(add_one, 2, 32, 0, a.x, a.y, (int)N);
    expect(sz_emu_counts()->launches == launches + 1, "kernels run again afterwards");
    expect(cudaGetLastError() == cudaSuccess, "and without an error");

    /* The backend refuses what a recorded step cannot repeat. */
    sz_cuda_recording(true);
    expect(sz_cuda_to_device(a.x, host, sizeof host) != 0, "no upload in a recorded step");
    expect(sz_cuda_to_host(back, a.x, sizeof back) != 0, "no download in a recorded step");
    expect(!sz_cuda_allocate(64), "no allocation in a recorded step");
    expect(sz_cuda_synchronise() != 0, "no waiting in a recorded step");
    sz_cuda_recording(false);
    for (int *m : { a.x, a.y, a.z }) sz_cuda_release(m);
}

/* ---- what must be rejected ---- */
__global__ void half_a_warp(float *y)
{
    if (threadIdx.x < 16) y[threadIdx.x] = sz_warp_sum(1.0f);
    else y[threadIdx.x] = 0;
}

__global__ void two_branches(int *y)
{
    if (threadIdx.x < 16) y[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1, 1);
    else y[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 2, 1);
}

static int waits_at_a_barrier()
{
    __syncthreads();
    return 1;
}

__global__ void two_barriers(int *y)
{
    if (threadIdx.x < 32) __syncthreads();
    else y[0] = __shfl_xor_sync(0xffffffffu, threadIdx.x == 40 ? waits_at_a_barrier() : 2, 1);
}

__global__ void nothing(const float *x) { (void)x; }

/* Checks that f kills its process with a message that contains these words. */
static void dies(void (*f)(), const char *words)
{
    int to[2];
    if (pipe(to) != 0) exit(2);
    pid_t child = fork();
    if (child == 0) {
        dup2(to[1], 2);
        f();
        _exit(0);
    }
    close(to[1]);
    /* Read what it says. */
    char text[4096] = "";
    size_t n = 0;
    for (;;) {
        ssize_t got = read(to[0], text + n, sizeof text - 1 - n);
        if (got <= 0) break;
        n += (size_t)got;
    }
    close(to[0]);
    int status = 0;
    waitpid(child, &status, 0);
    bool ok = WIFSIGNALED(status) && strstr(text, words);
    if (!ok)
        fprintf(stderr, "FAILED: expected an end with \"%s\", got status %x: %s\n", words, status,
                text);
    failures += !ok;
}

static float *some; /* 256 floats on the device */

static void launch_with_host_pointer()
{
    float x = 0;
    SZ_LAUNCH(nothing, 1, 32, 0, &x);
}

static void copy_past_the_end()
{
    float x[4];
    cudaMemcpy(x, some + 254, 16, cudaMemcpyDeviceToHost);
}

static void copy_in_the_wrong_direction()
{
    float x[4];
    cudaMemcpy(x, some, 16, cudaMemcpyHostToDevice);
}

int main()
{
    if (sz_cuda_open(NULL) != 0) return 2;
    some = (float *)sz_cuda_allocate(1024);
    test_sums();
    test_barriers();
    test_warp_functions();
    test_mma();
    test_capture();
    dies([] { SZ_LAUNCH(half_a_warp, 1, 32, 0, some); }, "by lanes 0000ffff of warp 0 only");
    dies([] { SZ_LAUNCH(two_branches, 1, 32, 0, (int *)some); }, "lanes of one warp diverge");
    dies([] { SZ_LAUNCH(two_barriers, 1, 64, 0, (int *)some); }, "different barriers");
    dies(launch_with_host_pointer, "points to host memory");
    dies([] { some[3] = 1; }, "");
    dies(copy_past_the_end, "reach outside what was allocated");
    dies(copy_in_the_wrong_direction, "is not device memory");
    if (!failures) printf("cuda_emulate: ok\n");
    return failures != 0;
}
