/* decode.cu - a decode step on the device: one token for each running answer, one copy each way, one wait.
 *
 * What the step takes from the host (ids, cache rows, segments, the attention's plan, angles, the sampler's block) is staged (device.cu)
 * and goes over in one asynchronous copy from pinned memory. The step's ops find it there; they upload, allocate and wait for nothing. The sampler's
 * tokens and log-probabilities come back in one copy, for which the host waits by an event.
 * Leaves out: two steps under way at once, since a step's ids are the tokens of the one before, which Lua looks at. */
#include "device.cuh"

static struct {
    sz_sample_layout layout;
    const char *block;              /* the sampler's, on the device */
    sz_cuda_stage stage;
    cudaEvent_t done;
} step;

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
    if (!sz_cuda_attention_cached_plan(s->segments, s->heads, s->kv_heads)) return -1;
    size_t at;
    char *block = sz_cuda_stage_bytes(step.layout.bytes, &at);
    if (!block) return -1;
    sz_cuda_sample_fill(step.layout, s->sampling, s->banned, s->seen, s->row_id, s->answer_id, s->position, block);
    if (sz_cuda_stage_send(step.layout.results, &step.stage) != 0) return -1;
    step.block = step.stage.device + at;
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
    if (rc == 0) rc = run(context, sample);
    sz_cuda_stage_close();
    if (rc == 0) return receive(token, logprob);
    cudaStreamSynchronize(sz_cuda_stream());        /* the stage may still be on its way, and the next step fills it */
    return -1;
}
