/* decode.cu - a decode step on the device: one token for each running answer, with one copy in each
 * direction and one wait.
 *
 * Everything the step reads from the host (ids, cache rows, segments, attention's schedule, rotary
 * angles, the sampler's block) is staged (device.cuh) and sent in one asynchronous copy from pinned
 * memory. The step's ops find it on the device; they upload, allocate and wait for nothing. The
 * sampled tokens and log-probabilities come back in one copy, for which the host waits on an event.
 *
 * Recording. A key fixes what a step launches: rows, sizes in the staging buffer, the rounded size
 * of attention's schedule, the addresses of the buffer, weights and caches, the blocks of the arena
 * in use. The second step with a key is captured from the stream into a CUDA graph, and later steps
 * launch that graph: the staged contents differ, the launches do not. This relies on
 *   - the arena: while the same blocks are in use, tensors and workspace of the same sizes get the
 *     same addresses (chunks are never given back);
 *   - cuBLASLt: with the algorithm chosen and the workspace owned by gemm.cu, both set up by the
 *   first
 *     step, a product is nothing but kernel launches;
 *   - kernels that read lengths from the schedule in device memory: those of attention_cached do,
 *   and
 *     no other kernel depends on lengths.
 * Copies over the bus stay outside the graph. Anything that cannot be replayed (another upload, an
 * allocation, a wait) fails while a step is recorded; steps with that key are then launched op by
 * op from there on. SEGZERO_CUDA_GRAPHS=0 does so for all steps: to compare the two, or to see the
 * ops in a profile.
 * Leaves out: two steps in flight at once. A step's ids are the tokens of the step before, which
 * Lua inspects. */
#include "links.cuh"
#include <cstdio>
#include <cstdlib>

enum { GRAPHS = 64, WORDS = 14 };

typedef int (*run_step)(void *context, int (*sample)(sz_tensor *logits));

/* The step in progress. */
static struct {
    sz_sample_layout layout;
    const char *block; /* the sampler's input, on the device */
    sz_cuda_stage stage;
    uint64_t key[WORDS];
    cudaEvent_t done;
} step;

struct recording {
    uint64_t key[WORDS];
    uint64_t used;         /* the clock at the last use; 0: free */
    cudaGraphExec_t graph; /* NULL: not recorded yet */
    bool failed;           /* it cannot be recorded */
};
static recording recordings[GRAPHS];
static uint64_t clock_now;

static int sample(sz_tensor *logits)
{
    const sz_sample_layout &l = step.layout;
    if (logits->ndim != 2 || logits->shape[0] != l.rows || logits->shape[1] != l.vocab ||
        logits->dtype != SZ_F32)
        return sz_fail("decode: logits must be f32 [%lld, %lld]", (long long)l.rows,
                       (long long)l.vocab);
    return sz_cuda_sample_launch(l, logits, step.block, step.stage.device_results);
}

/* Stages and sends everything that the step reads, and computes its key. */
static int send(const sz_decode_step *s)
{
    const bool seen = s->seen && s->sampling->repetition_penalty != 1;
    if (sz_cuda_sample_layout(s->rows, s->vocab, s->banned, seen, &step.layout) != 0) return -1;

    /* Host tensors, then attention's schedule, then the sampler's block. */
    sz_cuda_stage_open();
    const sz_tensor *const *end = s->tables + sizeof s->tables / sizeof *s->tables;
    for (const sz_tensor *const *t = s->tables; t < end && *t; t++)
        if (sz_cuda_stage_tensor(*t) != 0) return -1;
    const sz_cuda_cache_entry *schedule = sz_cuda_attention_cached_schedule(s->segments, s->heads,
                                                                            s->kv_heads);
    if (!schedule) return -1;
    size_t offset;
    char *block = sz_cuda_stage_bytes(step.layout.bytes, &offset);
    if (!block) return -1;
    sz_cuda_sample_fill(step.layout, s->sampling, s->banned, s->seen, s->row_id, s->answer_id,
                        s->position, block);
    if (sz_cuda_stage_send(step.layout.results, &step.stage) != 0) return -1;
    step.block = step.stage.device + offset;

    const uint64_t key[WORDS] = {
        (uint64_t)s->rows,
        (uint64_t)s->vocab,
        step.layout.banned,
        step.layout.seen,
        offset,
        step.stage.bytes,
        (uint64_t)(uintptr_t)step.stage.device,
        s->arena,
        s->key,
        (uint64_t)(s->heads / s->kv_heads),
        (uint64_t)schedule->number[0],
        (uint64_t)schedule->number[1],
        (uint64_t)schedule->number[2],
        (uint64_t)schedule->number[3],
    };
    memcpy(step.key, key, sizeof key);
    return 0;
}

/* ---- recording ---- */
/* Returns the recording of the step's key. *again tells whether a step with this key ran before. A
 * new key takes the place of the least recently used one. */
static recording *find_recording(bool *again)
{
    recording *found = recordings;
    *again = false;
    for (recording *r = recordings; r < recordings + GRAPHS && !*again; r++) {
        *again = r->used && memcmp(r->key, step.key, sizeof r->key) == 0;
        if (*again || r->used < found->used) found = r;
    }
    if (!*again) {
        if (found->graph) cudaGraphExecDestroy(found->graph);
        memset(found, 0, sizeof *found);
        memcpy(found->key, step.key, sizeof found->key);
    }
    found->used = ++clock_now;
    return found;
}

/* Captures what run launches, without executing it. Returns false if that is impossible; *error is
 * then CUDA's reason, or cudaSuccess if an op failed. */
static bool record(recording *r, run_step run, void *context, cudaError_t *error)
{
    cudaGraph_t graph = NULL;
    *error = cudaStreamBeginCapture(sz_cuda_stream(), cudaStreamCaptureModeThreadLocal);
    if (*error != cudaSuccess) return false;
    sz_cuda_recording(true);
    const int rc = run(context, sample);
    sz_cuda_recording(false);
    *error = cudaStreamEndCapture(sz_cuda_stream(), &graph);
    if (*error == cudaSuccess && rc == 0) *error = cudaGraphInstantiate(&r->graph, graph, 0);
    if (graph) cudaGraphDestroy(graph);
    if (*error != cudaSuccess) r->graph = NULL;
    return r->graph != NULL;
}

/* Prints once why steps are launched op by op. */
static void warn_not_recorded(cudaError_t error)
{
    static bool warned;
    if (warned) return;
    warned = true;
    fprintf(stderr,
            "segzero: a decode step cannot be recorded as a CUDA graph (%s); "
            "such steps are launched op by op\n",
            error == cudaSuccess ? "an op in it failed" : cudaGetErrorString(error));
}

/* Launches the step: by its graph, recording that first if the key is known, or op by op. */
static int launch(const sz_decode_step *s, run_step run, void *context)
{
    if (!s->repeat || sz_cuda_env_is("SEGZERO_CUDA_GRAPHS", '0')) return run(context, sample);
    bool again;
    recording *r = find_recording(&again);
    if (!again || r->failed) return run(context, sample);
    cudaError_t error = cudaSuccess;
    if (r->graph || record(r, run, context, &error))
        return sz_cuda_check(cudaGraphLaunch(r->graph, sz_cuda_stream()), "a decode step");

    /* Recording failed. If the step itself also fails (an interrupt, say), that is the error. */
    cudaGetLastError();
    if (run(context, sample) != 0) return -1;
    r->failed = true;
    warn_not_recorded(error);
    return 0;
}

/* Copies the results to the host, waits for them and decodes them. */
static int receive(int32_t *token, float *logprob)
{
    cudaStream_t stream = sz_cuda_stream();
    if (!step.done && sz_cuda_check(cudaEventCreateWithFlags(&step.done, cudaEventDisableTiming),
                                    "an event") != 0)
        return -1;
    if (sz_cuda_check(cudaMemcpyAsync(step.stage.results, step.stage.device_results,
                                      step.layout.results, cudaMemcpyDeviceToHost, stream),
                      "a copy to the host") != 0 ||
        sz_cuda_check(cudaEventRecord(step.done, stream), "an event") != 0 ||
        sz_cuda_wait(step.done, "waiting for a decode step") != 0)
        return -1;
    return sz_cuda_sample_read(step.layout, step.stage.results, token, logprob);
}

extern "C" int sz_cuda_decode(const sz_decode_step *s, run_step run, void *context, int32_t *token,
                              float *logprob)
{
    int rc = send(s);
    if (rc == 0) rc = launch(s, run, context);
    sz_cuda_stage_close();
    if (rc == 0) return receive(token, logprob);
    /* The copy may still be running, and the next step fills the staging buffer. */
    sz_cuda_wait(NULL, "a decode step");
    return -1;
}
