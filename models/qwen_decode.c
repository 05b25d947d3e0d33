/* qwen_decode.c - a decode step of the language model on a device: the next token of each running answer in one call of the backend.
 *
 *   ids [a], one token an answer -> keys and values into the cache, hidden states [a, h], logits [a, vocab] -> a token and its log-probability
 *
 * The same ops as sz_qwen_hidden, sz_qwen_logits and sz_sample one after another, and the same numbers; but what they read from the host is known before
 * the first of them runs, so that the backend can send it in one copy. Leaves out: the processor, where there is nothing to gain. */
#include "qwen.h"
#include "device.h"
#include "tape.h"
#include "rollout/cache.h"

typedef struct {
    sz_qwen *m;
    sz_cache *cache;
    sz_tensor *ids, *segments, *cache_rows, *angles[2];
} decode_ctx;

/* The step's ops, in a scope of their own. */
static int run(void *context, int (*sample)(sz_tensor *logits))
{
    decode_ctx *k = context;
    sz_scope_push();
    sz_tensor *hidden = qwen_hidden(k->m, k->ids, k->angles, k->segments, NULL, NULL, NULL, k->cache, k->cache_rows, NULL, 0);
    sz_tensor *logits = sz_qwen_logits(k->m, hidden);
    int rc = logits ? 0 : -1;
    if (rc == 0) {
        sz_scratch_begin();
        rc = sample(logits);
        sz_scratch_end();
    }
    sz_tensor_release(hidden);
    sz_tensor_release(logits);
    sz_scope_pop();
    return rc;
}

static int decode(decode_ctx *k, sz_tensor *positions, const sz_sampling *s, const uint8_t *banned, const uint8_t *seen,
                  const int64_t *row_id, const int32_t *answer_id, const int32_t *position, int32_t *token, float *logprob)
{
    const sz_qwen_config *c = &k->m->config;
    if (qwen_rotary(c, positions, k->m->embed->dtype, k->angles) != 0) return -1;
    const sz_decode_step step = { .rows = k->ids->numel, .vocab = c->vocab, .tables = { k->ids, k->segments, k->cache_rows, k->angles[0], k->angles[1] },
        .segments = k->segments, .heads = c->heads, .kv_heads = c->kv_heads, .sampling = s, .banned = banned, .seen = seen,
        .row_id = row_id, .answer_id = answer_id, .position = position };
    return sz_device->decode(&step, run, k, token, logprob);
}

int sz_qwen_decode(sz_qwen *m, sz_tensor *ids, sz_tensor *positions, sz_tensor *segments, sz_cache *cache, sz_tensor *cache_rows, const sz_sampling *s,
                   const uint8_t *banned, const uint8_t *seen, const int64_t *row_id, const int32_t *answer_id, const int32_t *position,
                   int32_t *token, float *logprob)
{
    if (qwen_check_stream(m, ids, positions, segments) != 0) return -1;
    if (m->embed->device == SZ_CPU) return sz_fail("decode: a step in one call is for a model on a device");
    if (!cache || !cache_rows || !sz_tensor_data(cache_rows) || cache_rows->dtype != SZ_I32 || cache_rows->numel != ids->numel || ids->numel == 0)
        return sz_fail("decode: a cache needs one cache row for each token");
    if (!sz_decode_fits(ids, m->config.vocab, cache_rows, segments, sz_cache_rows(cache)))
        return sz_fail("decode: an id is outside the vocabulary, or a cache row or a segment outside the cache");
    if (sz_sampling_check(s, seen) != 0) return -1;
    decode_ctx k = { m, cache, ids, segments, cache_rows, { NULL, NULL } };
    const int before = sz_set_grad_enabled(0);
    sz_scope_push();
    int rc = decode(&k, positions, s, banned, seen, row_id, answer_id, position, token, logprob);
    for (int i = 0; i < 2; i++) sz_tensor_release(k.angles[i]);
    sz_scope_pop();
    sz_set_grad_enabled(before);
    return rc;
}
