/* sample.c - the front door of sampling: checks a call, then runs it where the logits are
 * (cpu/sample.c, cuda/sample.cu).
 */
#include "core/device.h"
#include "core/processor.h"
#include "core/tape.h"

int sz_sampling_check(const sz_sampling *s, const uint8_t *seen)
{
    double temperature = (double)s->temperature;
    double penalty = (double)s->repetition_penalty;
    if (!(temperature >= 0))
        return sz_fail("sample: temperature is %g, must be 0 or more", temperature);
    if (!(penalty > 0))
        return sz_fail("sample: repetition_penalty is %g, must be more than 0", penalty);
    if (penalty != 1 && !seen)
        return sz_fail("sample: repetition_penalty needs to know the seen tokens");
    return 0;
}

int sz_sample(sz_tensor *logits, const sz_sampling *s, const uint8_t *banned, const uint8_t *seen,
              const int64_t *row_id, const int32_t *answer_id, const int32_t *position,
              int32_t *token, float *logprob)
{
    if (!logits) return -1;
    if (!logits->data) return sz_fail("sample: the logits' step has ended");
    if (logits->dtype != SZ_F32 || logits->ndim != 2)
        return sz_fail("sample: logits must be f32 [rows, vocab]");
    if (sz_sampling_check(s, seen) != 0) return -1;

    const bool on_cpu = logits->device == SZ_CPU;
    sz_sampler sample = on_cpu ? sz_processor()->sample : sz_device->sample;
    sz_scratch_begin();
    int rc = sample(logits, s, banned, seen, row_id, answer_id, position, token, logprob);
    sz_scratch_end();
    return rc;
}
