/* cuda_emulate.cc - a program: the emulator of CUDA (tests/cuda_emulator/emulate.h) itself. Sums over blocks and warps against plain
 * sums, then what must be refused: each of those runs in a child process that has to die with a message that has given words.
 *
 * Copy the first part to try one kernel file alone; emulate.h has the command. */
#include "cuda/device.cuh"
#include <cstdio>
#include <cstdlib>
#include <sys/wait.h>
#include <unistd.h>

__global__ void row_sums(const float *x, float *y, int cols)
{
    float sum = 0;
    for (int i = (int)threadIdx.x; i < cols; i += (int)blockDim.x) sum += x[(size_t)blockIdx.x * cols + i];
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
    float *dx = (float *)sz_cuda_allocate(sizeof x), *dy = (float *)sz_cuda_allocate(sizeof y);
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

/* Lacks a barrier before the second write, which thread after thread in order does not show. */
__global__ void racing(int *y)
{
    __shared__ int part[256];
    int t = (int)threadIdx.x, sum = 0;
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

/* The first fragment's rows times the second's columns, a [16, 16] and b [16, 8] row-major in memory. */
__global__ void product(const bf16 *a, const bf16 *b, float *c)
{
    unsigned lane = threadIdx.x, ra[4], rb[2];
    float d[4] = { 0, 0, 0, 0 };
    auto pair = [](bf16 lo, bf16 hi) { return (unsigned)__bfloat16_as_ushort(lo) | (unsigned)__bfloat16_as_ushort(hi) << 16; };
    for (unsigned i = 0; i < 4; i++) {
        unsigned row = lane / 4 + 8 * (i % 2), col = 2 * (lane % 4) + 8 * (i / 2);
        ra[i] = pair(a[row * 16 + col], a[row * 16 + col + 1]);
    }
    for (unsigned i = 0; i < 2; i++) {
        unsigned k = 2 * (lane % 4) + 8 * i, n = lane / 4;
        rb[i] = pair(b[k * 8 + n], b[(k + 1) * 8 + n]);
    }
    sz_emu_mma_m16n8k16(d, ra, rb);
    for (unsigned i = 0; i < 4; i++) c[(lane / 4 + 8 * (i / 2)) * 8 + 2 * (lane % 4) + i % 2] = d[i];
}

static void test_functions()
{
    static double x[777], y[777];
    for (int i = 0; i < 777; i++) x[i] = i;
    double *dx = (double *)sz_cuda_allocate(sizeof x), *dy = (double *)sz_cuda_allocate(sizeof y);
    sz_cuda_to_device(dx, x, sizeof x);
    SZ_LAUNCH((reversed<double>), 1, 96, sizeof x, dx, dy, 777);
    sz_cuda_to_host(y, dy, sizeof y);
    bool ok = true;
    for (int i = 0; i < 777; i++) ok &= y[i] == 776 - i;
    expect(ok, "shared memory across a barrier");

    int sums[256], *dsums = (int *)sz_cuda_allocate(sizeof sums);
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

    int *counts = (int *)sz_cuda_allocate(8), got[2];
    sz_cuda_fill(counts, 0, 8);
    SZ_LAUNCH(warp_functions, 3, dim3(32, 2), 0, counts);
    expect(sz_cuda_launched("warp_functions") == 0, "a launch in two dimensions");
    sz_cuda_to_host(got, counts, 8);
    expect(got[0] == 3 * 64, "warp functions");
    expect(got[1] == 2 * 32 + 31, "atomicMax");

    bf16 a[256], b[128];
    float c[128];
    for (int i = 0; i < 256; i++) a[i] = __float2bfloat16((float)(i % 7 - 3));
    for (int i = 0; i < 128; i++) b[i] = __float2bfloat16((float)(i % 5 - 2));
    bf16 *da = (bf16 *)sz_cuda_allocate(sizeof a), *db = (bf16 *)sz_cuda_allocate(sizeof b);
    float *dc = (float *)sz_cuda_allocate(sizeof c);
    sz_cuda_to_device(da, a, sizeof a);
    sz_cuda_to_device(db, b, sizeof b);
    SZ_LAUNCH(product, 1, 32, 0, da, db, dc);
    sz_cuda_to_host(c, dc, sizeof c);
    ok = true;
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 8; j++) {
            float want = 0;
            for (int k = 0; k < 16; k++) want += (float)a[i * 16 + k] * (float)b[k * 8 + j];
            ok &= c[i * 8 + j] == want;
        }
    expect(ok, "mma");

    SZ_LAUNCH(warp_functions, 1, 2048, 0, counts);
    expect(cudaGetLastError() == cudaErrorInvalidConfiguration, "2048 threads in a block are refused");
    SZ_LAUNCH((reversed<double>), 1, 96, 64 << 10, dx, dy, 777);
    expect(cudaGetLastError() == cudaErrorInvalidConfiguration, "64 KiB of shared memory have to be asked for");
    cudaFuncSetAttribute(reversed<double>, cudaFuncAttributeMaxDynamicSharedMemorySize, 64 << 10);
    SZ_LAUNCH((reversed<double>), 1, 96, 64 << 10, dx, dy, 777);
    expect(cudaGetLastError() == cudaSuccess, "64 KiB of shared memory after asking");
}

/* ---- capture ---- */
__global__ void add_one(const int *x, int *y, int n)
{
    int i = blockIdx.x * 32 + threadIdx.x;
    if (i < n) y[i] = x[i] + 1;
}

static void test_capture()
{
    int host[40], back[40];
    int *x = (int *)sz_cuda_allocate(sizeof host), *y = (int *)sz_cuda_allocate(sizeof host), *z = (int *)sz_cuda_allocate(sizeof host);
    for (int i = 0; i < 40; i++) host[i] = i;
    sz_cuda_to_device(x, host, sizeof host);
    cudaMemset(y, 0, sizeof host);
    cudaStream_t stream = sz_cuda_stream();
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    expect(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess, "a capture begins");
    const unsigned long launches = sz_emu_counts()->launches;
    SZ_LAUNCH(add_one, 2, 32, 0, x, y, 40);
    cudaMemcpyAsync(z, y, sizeof host, cudaMemcpyDeviceToDevice, stream);
    cudaMemsetAsync(y, 0, 20, stream);
    expect(sz_emu_counts()->launches == launches, "a captured kernel does not run");
    expect(cudaStreamEndCapture(stream, &graph) == cudaSuccess && cudaGraphInstantiate(&exec, graph, 0) == cudaSuccess, "a capture ends");
    cudaGraphDestroy(graph);
    sz_cuda_to_host(back, y, sizeof back);
    expect(back[7] == 0 && back[39] == 0, "nothing was done during the capture");
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < 40; i++) host[i] = 100 * round + i;
        sz_cuda_to_device(x, host, sizeof host);
        expect(cudaGraphLaunch(exec, stream) == cudaSuccess, "a graph is launched");
        sz_cuda_to_host(back, z, sizeof back);
        bool ok = true;
        for (int i = 0; i < 40; i++) ok &= back[i] == host[i] + 1;
        sz_cuda_to_host(back, y, sizeof back);
        for (int i = 0; i < 40; i++) ok &= back[i] == (i < 5 ? 0 : host[i] + 1);
        expect(ok, "a graph's work is done in order, with the contents of now");
    }
    cudaGraphExecDestroy(exec);
    void *p;
    cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
    expect(cudaMalloc(&p, 64) == cudaErrorStreamCaptureUnsupported, "no memory during a capture");
    expect(cudaStreamEndCapture(stream, &graph) == cudaErrorStreamCaptureInvalidated && !graph, "what was refused breaks the capture");
    cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
    expect(cudaStreamSynchronize(stream) == cudaErrorStreamCaptureUnsupported, "no waiting during a capture");
    expect(cudaStreamEndCapture(stream, &graph) == cudaErrorStreamCaptureInvalidated, "waiting breaks the capture");
    cudaGetLastError();
    SZ_LAUNCH(add_one, 2, 32, 0, x, y, 40);
    expect(sz_emu_counts()->launches > launches && cudaGetLastError() == cudaSuccess, "kernels run again afterwards");
    sz_cuda_recording(true);
    expect(sz_cuda_to_device(x, host, sizeof host) != 0 && sz_cuda_to_host(back, x, sizeof back) != 0 && !sz_cuda_allocate(64) && sz_cuda_synchronise() != 0,
           "the backend refuses what a recorded step cannot repeat");
    sz_cuda_recording(false);
    for (int *m : { x, y, z }) sz_cuda_release(m);
}

/* ---- what must not pass ---- */
__global__ void half_a_warp(float *y) { if (threadIdx.x < 16) y[threadIdx.x] = sz_warp_sum(1.0f); else y[threadIdx.x] = 0; }
__global__ void two_branches(int *y)
{
    if (threadIdx.x < 16) y[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1, 1);
    else y[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 2, 1);
}
__global__ void warps_of_two_minds(int *y)
{
    if (threadIdx.x < 32) __syncthreads();
    else y[0] = __shfl_xor_sync(0xffffffffu, (int)(threadIdx.x == 40 ? (__syncthreads(), 1) : 2), 1);
}
__global__ void nothing(const float *x) { (void)x; }

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
    char text[4096] = "";
    size_t n = 0;
    ssize_t got;
    while (n < sizeof text - 1 && (got = read(to[0], text + n, sizeof text - 1 - n)) > 0) n += (size_t)got;
    close(to[0]);
    int status = 0;
    waitpid(child, &status, 0);
    bool ok = WIFSIGNALED(status) && strstr(text, words);
    if (!ok) fprintf(stderr, "FAILED: expected an end with \"%s\", got status %x: %s\n", words, status, text);
    failures += !ok;
}

static float *some;

int main()
{
    if (sz_cuda_open(NULL) != 0) return 2;
    some = (float *)sz_cuda_allocate(1024);
    test_sums();
    test_functions();
    test_capture();
    dies([] { SZ_LAUNCH(half_a_warp, 1, 32, 0, some); }, "by lanes 0000ffff of warp 0 only");
    dies([] { SZ_LAUNCH(two_branches, 1, 32, 0, (int *)some); }, "lanes of one warp diverge");
    dies([] { SZ_LAUNCH(warps_of_two_minds, 1, 64, 0, (int *)some); }, "different barriers");
    dies([] { float x = 0; SZ_LAUNCH(nothing, 1, 32, 0, &x); }, "points to host memory");
    dies([] { some[3] = 1; }, "");
    dies([] { float x[4]; cudaMemcpy(x, some + 254, 16, cudaMemcpyDeviceToHost); }, "reach outside what was allocated");
    dies([] { float x[4]; cudaMemcpy(x, some, 16, cudaMemcpyHostToDevice); }, "is not device memory");
    if (!failures) printf("cuda_emulate: ok\n");
    return failures != 0;
}
