/* decode.c - hands a decode step to the backend; decode.h describes it. */
#include "decode.h"
#include "core/device.h"
#include "core/memory.h"
#include "core/tape.h"

int sz_decode_run(sz_decode_step *step, int (*run)(void *context, int (*sample)(sz_tensor *logits)),
                  void *context, int32_t *token, float *logprob)
{
    /* A profiled step is run op by op, so that each is timed. */
    step->repeat = !sz_profiling() && !step->has_collectives;
    step->arena = sz_arena_state(SZ_CUDA);
    return sz_device->decode(step, run, context, token, logprob);
}

int sz_decode_sample(int (*sample)(sz_tensor *logits), sz_tensor *logits)
{
    sz_scratch_begin();
    int rc = sample(logits);
    sz_scratch_end();
    return rc;
}
