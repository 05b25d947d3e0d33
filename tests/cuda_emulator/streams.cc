/* streams.cc - the emulator's streams, events, captures and graphs (emulate.h says how they work).
 *
 * A stream has a queue. A step runs the first entry, which may say that it cannot be done yet.
 * Whoever waits makes steps of the stream it waits for, and of the others only while that one
 * cannot go on.
 * Leaves out: priorities, events with time stamps of a device. */
#ifdef SZ_EMULATE
#include "emulate_internal.h"
#include <cstdlib>
#include <deque>
#include <time.h>
#include <vector>

typedef std::function<bool()> attempt; /* returns whether the work is done */

struct entry {
    attempt work;
    bool is_replayed;
};

struct sz_emu_stream {
    std::deque<entry> queue;
    bool is_lazy;
};

struct sz_emu_event {
    double seconds;
    cudaStream_t stream;     /* of the last record */
    uint64_t recorded, done; /* how often */
};

struct sz_emu_graph {
    std::vector<attempt> work;
};

static std::vector<cudaStream_t> streams;
static sz_emu_stream default_stream;
static sz_emu_graph *captured; /* NULL unless a stream is being captured */
static cudaStream_t captured_stream;
static bool capture_broken;
static bool breaks_captures; /* sz_emu_break_captures */
static bool replaying;
static bool stepping;

void sz_emu_break_captures(int on) { breaks_captures = on != 0; }
void sz_emu_count_launch(void) { sz_emu_counted()->launches += !replaying; }

static cudaStream_t actual(cudaStream_t s) { return s ? s : &default_stream; }

/* ---- running ---- */
/* Runs the first entry; returns whether the stream has moved on. */
static bool step(cudaStream_t s)
{
    if (s->queue.empty() || stepping) return false;
    stepping = true;
    replaying = s->queue.front().is_replayed;
    const bool done = s->queue.front().work();
    replaying = false;
    stepping = false;
    if (done) s->queue.pop_front();
    return done;
}

/* A step of s; of another stream if s cannot go on. Returns whether there was one. */
static bool advance(cudaStream_t s)
{
    if (step(s)) return true;
    for (cudaStream_t other : streams)
        if (other != s && step(other)) return true;
    return false;
}

static void pause_a_little()
{
    const struct timespec t = { 0, 20 * 1000 };
    nanosleep(&t, NULL);
}

static void drain(cudaStream_t s)
{
    while (!s->queue.empty())
        if (!advance(s)) pause_a_little();
}

void sz_emu_drain(void)
{
    drain(&default_stream);
    for (cudaStream_t s : streams) drain(s);
}

static void add(cudaStream_t s, const attempt &work, bool is_replayed)
{
    s->queue.push_back({ work, is_replayed });
    while (!s->is_lazy && step(s)) {
    }
}

void sz_emu_try(cudaStream_t s, const attempt &work)
{
    s = actual(s);
    if (captured && s == captured_stream) captured->work.push_back(work);
    else add(s, work, false);
}

void sz_emu_do(cudaStream_t s, const std::function<void()> &work)
{
    sz_emu_try(s, [=] {
        work();
        return true;
    });
}

/* ---- captures and graphs ---- */
bool sz_emu_refused(void)
{
    if (!captured || stepping) return false;
    capture_broken = true;
    sz_emu_fail(cudaErrorStreamCaptureUnsupported);
    return true;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode)
{
    SZ_EMU_REFUSED_IN_CAPTURE;
    sz_emu_counted()->captures++;
    captured = new sz_emu_graph();
    captured_stream = actual(s);
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

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t s)
{
    SZ_EMU_REFUSED_IN_CAPTURE;
    sz_emu_counted()->graphs++;
    for (const attempt &work : exec->work) add(actual(s), work, true);
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    delete graph;
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec)
{
    sz_emu_drain();
    return cudaGraphDestroy(exec);
}

/* ---- streams ---- */
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned)
{
    const char *lazy = getenv("SEGZERO_EMULATE_LAZY");
    const long which = lazy ? atol(lazy) : 0;
    *s = new sz_emu_stream();
    (*s)->is_lazy = which >> streams.size() & 1;
    streams.push_back(*s);
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t s)
{
    drain(s);
    for (size_t i = 0; i < streams.size(); i++)
        if (streams[i] == s) streams.erase(streams.begin() + (long)i);
    delete s;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t s)
{
    SZ_EMU_REFUSED_IN_CAPTURE;
    sz_emu_counted()->waits++;
    drain(actual(s));
    return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize(void)
{
    SZ_EMU_REFUSED_IN_CAPTURE;
    sz_emu_counted()->waits++;
    sz_emu_drain();
    return cudaSuccess;
}

/* As time passes on a device, each query is a step. */
cudaError_t cudaStreamQuery(cudaStream_t s)
{
    SZ_EMU_REFUSED_IN_CAPTURE;
    if (!actual(s)->queue.empty()) advance(actual(s));
    return actual(s)->queue.empty() ? cudaSuccess : cudaErrorNotReady;
}

/* ---- events ---- */
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned)
{
    *e = new sz_emu_event();
    return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t *e) { return cudaEventCreateWithFlags(e, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t e)
{
    sz_emu_drain();
    delete e;
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s)
{
    const uint64_t number = ++e->recorded;
    e->stream = actual(s);
    sz_emu_do(s, [=] {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        e->seconds = (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
        e->done = number;
    });
    return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned)
{
    const uint64_t number = e->recorded;
    sz_emu_try(s, [=] { return e->done >= number; });
    return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t e)
{
    SZ_EMU_REFUSED_IN_CAPTURE;
    if (e->done < e->recorded) advance(e->stream);
    return e->done >= e->recorded ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaEventSynchronize(cudaEvent_t e)
{
    SZ_EMU_REFUSED_IN_CAPTURE;
    sz_emu_counted()->waits++;
    while (e->done < e->recorded)
        if (!advance(e->stream)) pause_a_little();
    return cudaSuccess;
}

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t start, cudaEvent_t end)
{
    *ms = (float)(1e3 * (end->seconds - start->seconds));
    return cudaSuccess;
}
#endif
