/* lanes.cu - copies over the bus during the main stream of work: page-locked host memory, a stream
 * for copies to the device and one for copies from it, so that both directions run at once, and
 * events that let one stream wait for another (core/backend.h says how they are used).
 *
 * Leaves out: copies of ordinary host memory, which go through the ring in device.cu. */
#include "links.cuh"
#include "stage.cuh"

static cudaStream_t lanes[SZ_LANES]; /* those but SZ_LANE_MAIN, made at the first use */
static cudaEvent_t marks[SZ_MARKS];

void *sz_cuda_allocate_host(size_t bytes)
{
    void *p = NULL;
    if (sz_cuda_not_recording("memory is allocated") != 0) return NULL;
    const cudaError_t e = cudaHostAlloc(&p, bytes ? bytes : 1, cudaHostAllocDefault);
    if (e == cudaSuccess) return p;
    cudaGetLastError();
    return sz_null("cuda: %s: %zu bytes of page-locked host memory", cudaGetErrorString(e), bytes);
}

void sz_cuda_release_host(void *p) { cudaFreeHost(p); }

/* NULL with a message. */
static cudaStream_t stream_of(int lane)
{
    SZ_ASSERT(lane >= 0 && lane < SZ_LANES, "a lane that does not exist");
    if (lane == SZ_LANE_MAIN) return sz_cuda_stream();
    if (lanes[lane]) return lanes[lane];
    const cudaError_t e = cudaStreamCreateWithFlags(&lanes[lane], cudaStreamNonBlocking);
    if (sz_cuda_check(e, "a stream for copies") != 0) lanes[lane] = NULL;
    return lanes[lane];
}

int sz_cuda_copy_async(int lane, void *dst, const void *src, size_t bytes)
{
    cudaStream_t stream = stream_of(lane);
    if (!stream) return -1;
    const cudaMemcpyKind kind = lane == SZ_LANE_UP ? cudaMemcpyHostToDevice
                                                   : cudaMemcpyDeviceToHost;
    return sz_cuda_check(cudaMemcpyAsync(dst, src, bytes, kind, stream), "a copy over the bus");
}

int sz_cuda_mark(int lane, int mark)
{
    SZ_ASSERT(mark >= 0 && mark < SZ_MARKS, "a mark that does not exist");
    cudaStream_t stream = stream_of(lane);
    if (!stream) return -1;
    cudaError_t e = cudaSuccess;
    if (!marks[mark]) e = cudaEventCreateWithFlags(&marks[mark], cudaEventDisableTiming);
    if (e == cudaSuccess) e = cudaEventRecord(marks[mark], stream);
    return sz_cuda_check(e, "a mark");
}

int sz_cuda_await(int lane, int mark)
{
    SZ_ASSERT(mark >= 0 && mark < SZ_MARKS, "a mark that does not exist");
    cudaStream_t stream = stream_of(lane);
    if (!stream) return -1;
    if (!marks[mark]) return 0;
    return sz_cuda_check(cudaStreamWaitEvent(stream, marks[mark], 0), "waiting for a copy");
}

int sz_cuda_finish(int lane)
{
    cudaStream_t stream = stream_of(lane);
    /* A copy may wait for main work, and that for another rank. */
    if (!stream || sz_cuda_wait(NULL, "copies over the bus") != 0) return -1;
    return sz_cuda_check(cudaStreamSynchronize(stream), "copies over the bus");
}
