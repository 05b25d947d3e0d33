/* decode.cu - a decode step on the device: one token for each running answer, one copy each way, one wait.
 *
 * What the step takes from the host (ids, cache rows, segments, the attention's plan, angles, the sampler's block) is staged (device.cu)
 * and goes over in one asynchronous copy from pinned memory. The step's ops find it there; they upload, allocate and wait for nothing. The sampler's
 * tokens and log-probabilities come back in one copy, for which the host waits by an event.
 *
 * Recording. What a step launches is fixed by its key: rows, the sizes in the stage, the rounded size of the attention's plan, the addresses of the stage,
 * the arena, weights and caches. The second step with a key is captured from the stream into a CUDA graph, which the steps after it launch: the stage's
 * contents differ, the launches do not. This relies on
 *   - the arena: from the same place, tensors and workspace of the same sizes lie where they did (its chunks are never given back);
 *   - cuBLASLt: with an algorithm chosen and the workspace that gemm.cu owns (the first step saw to both) a product is kernel launches alone;
 *   - kernels that read lengths from the plan in device memory: those of attention_cached do, no other depends on them.
 * Copies over the bus stay outside of the graph. What cannot be repeated (another upload, memory, waiting) fails while a step is recorded; then that key is
 * launched op by op from there on. SEGZERO_CUDA_GRAPHS=0 does so with all: to compare the two, or to see ops in a profile.
 * Leaves out: two steps under way at once, since a step's ids are the tokens of the one before, which Lua looks at. */
#include "device.cuh"
#include <cstdio>
#include <cstdlib>

enum { GRAPHS = 64, WORDS = 14 };

static struct {
    sz_sample_layout layout;
    const char *block;              /* the sampler's, on the device */
    sz_cuda_stage stage;
    uint64_t key[WORDS];
    cudaEvent_t done;
} step;

struct recorded {
    uint64_t key[WORDS], used;      /* used: 0, or when last */
    cudaGraphExec_t graph;          /* NULL: not recorded yet */
    bool failed;                    /* nor will be */
};
static recorded graphs[GRAPHS];
static uint64_t clock_now;

static int sample(sz_tensor *logits)
{
    if (logits->ndim != 2 || logits->shape[0] != step.layout.rows || logits->shape[1] != step.layout.vocab || logits->dtype != SZ_F32)
        return sz_fail("decode: logits must be f32 [%lld, %lld]", (long long)step.layout.rows, (long long)step.layout.vocab);
    return sz_cuda_sample_launch(step.layout, logits, step.block, step.stage.device_results);
}

/* Everything that the step reads, sent. */
static int send(const sz_decode_step *s)
{
    const bool seen = s->seen && s->sampling->repetition_penalty != 1;
    if (sz_cuda_sample_layout(s->rows, s->vocab, s->banned, seen, &step.layout) != 0) return -1;
    sz_cuda_stage_open();
    for (const sz_tensor *const *t = s->tables; t < s->tables + sizeof s->tables / sizeof *s->tables && *t; t++)
        if (sz_cuda_stage_tensor(*t) != 0) return -1;
    const sz_cuda_cache_entry *plan = sz_cuda_attention_cached_schedule(s->segments, s->heads, s->kv_heads);
    if (!plan) return -1;
    size_t at;
    char *block = sz_cuda_stage_bytes(step.layout.bytes, &at);
    if (!block) return -1;
    sz_cuda_sample_fill(step.layout, s->sampling, s->banned, s->seen, s->row_id, s->answer_id, s->position, block);
    if (sz_cuda_stage_send(step.layout.results, &step.stage) != 0) return -1;
    step.block = step.stage.device + at;
    const uint64_t key[WORDS] = { (uint64_t)s->rows, (uint64_t)s->vocab, step.layout.banned, step.layout.seen, at, step.stage.bytes, (uint64_t)(uintptr_t)step.stage.device,
                                  (uint64_t)(uintptr_t)s->place, s->key, (uint64_t)(s->heads / s->kv_heads),
                                  (uint64_t)plan->number[0], (uint64_t)plan->number[1], (uint64_t)plan->number[2], (uint64_t)plan->number[3] };
    memcpy(step.key, key, sizeof key);
    return 0;
}

/* ---- recording ---- */
static bool wanted(void) { return !sz_cuda_env_is("SEGZERO_CUDA_GRAPHS", '0'); }

/* The step's entry and whether there has been one before it; the one that was not used for longest makes room. */
static recorded *entry_of(bool *again)
{
    recorded *e = graphs;
    *again = false;
    for (recorded *g = graphs; g < graphs + GRAPHS && !*again; g++) {
        *again = g->used && memcmp(g->key, step.key, sizeof g->key) == 0;
        if (*again || g->used < e->used) e = g;
    }
    if (!*again) {
        if (e->graph) cudaGraphExecDestroy(e->graph);
        memset(e, 0, sizeof *e);
        memcpy(e->key, step.key, sizeof e->key);
    }
    e->used = ++clock_now;
    return e;
}

/* Captures what run launches; nothing of it is done yet. false: it cannot be, `why` says what CUDA thinks of it. */
static bool record(recorded *e, int (*run)(void *context, int (*sample)(sz_tensor *logits)), void *context, cudaError_t *why)
{
    cudaGraph_t graph = NULL;
    *why = cudaStreamBeginCapture(sz_cuda_stream(), cudaStreamCaptureModeThreadLocal);
    if (*why != cudaSuccess) return false;
    sz_cuda_recording(true);
    const int rc = run(context, sample);
    sz_cuda_recording(false);
    *why = cudaStreamEndCapture(sz_cuda_stream(), &graph);
    if (*why == cudaSuccess && rc == 0) *why = cudaGraphInstantiate(&e->graph, graph, 0);
    if (graph) cudaGraphDestroy(graph);
    if (*why != cudaSuccess) e->graph = NULL;
    return e->graph != NULL;
}

static int launch(const sz_decode_step *s, int (*run)(void *context, int (*sample)(sz_tensor *logits)), void *context)
{
    bool again;
    cudaError_t why = cudaSuccess;
    if (!s->repeat || !wanted()) return run(context, sample);
    recorded *e = entry_of(&again);
    if (!again || e->failed) return run(context, sample);
    if (e->graph || record(e, run, context, &why)) return sz_cuda_check(cudaGraphLaunch(e->graph, sz_cuda_stream()), "a decode step");
    cudaGetLastError();
    if (run(context, sample) != 0) return -1;           /* interrupted, say: the step itself cannot be done */
    static bool told;
    if (!told) fprintf(stderr, "segzero: a decode step cannot be recorded as a CUDA graph (%s); such steps are launched op by op\n",
                       why == cudaSuccess ? "an op in it failed" : cudaGetErrorString(why));
    told = e->failed = true;
    return 0;
}

static int receive(int32_t *token, float *logprob)
{
    if (!step.done && sz_cuda_check(cudaEventCreateWithFlags(&step.done, cudaEventDisableTiming), "an event") != 0) return -1;
    if (sz_cuda_check(cudaMemcpyAsync(step.stage.results, step.stage.device_results, step.layout.results, cudaMemcpyDeviceToHost, sz_cuda_stream()),
                      "a copy to the host") != 0
        || sz_cuda_check(cudaEventRecord(step.done, sz_cuda_stream()), "an event") != 0
        || sz_cuda_check(cudaEventSynchronize(step.done), "waiting for a decode step") != 0)
        return -1;
    return sz_cuda_sample_read(step.layout, step.stage.results, token, logprob);
}

extern "C" int sz_cuda_decode(const sz_decode_step *s, int (*run)(void *context, int (*sample)(sz_tensor *logits)), void *context,
                              int32_t *token, float *logprob)
{
    int rc = send(s);
    if (rc == 0) rc = launch(s, run, context);
    sz_cuda_stage_close();
    if (rc == 0) return receive(token, logprob);
    cudaStreamSynchronize(sz_cuda_stream());        /* the stage may still be on its way, and the next step fills it */
    return -1;
}
