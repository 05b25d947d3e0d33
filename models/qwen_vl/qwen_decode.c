/* qwen_decode.c - a decode step of the language model on a device: the next token of each running answer in one call of the backend.
 *
 *   ids [a], one token an answer -> keys and values into the cache, hidden states [a, h], logits [a, vocab] -> a token and its log-probability
 *
 * The same ops as sz_qwen_hidden, sz_qwen_logits and sz_sample one after another, and the same numbers; but what they read from the host is known before
 * the first of them runs, so that the backend can send it in one copy. Leaves out: the processor, where there is nothing to gain. */
#include "qwen.h"
#include "sampling/cache.h"
#include "sampling/decode.h"

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
    int rc = logits ? sz_decode_sample(sample, logits) : -1;
    sz_tensor_release(hidden);
    sz_tensor_release(logits);
    sz_scope_pop();
    return rc;
}

/* ---- what fixes the step's launches ---- */
static uint64_t mix(uint64_t h, uint64_t v)
{
    h = (h ^ v) * UINT64_C(0x9e3779b97f4a7c15);
    return h ^ h >> 29;
}
static uint64_t mix_tensor(uint64_t h, const sz_tensor *t)
{
    return t ? mix(mix(mix(h, (uint64_t)(uintptr_t)t->data), (uint64_t)t->dtype), (uint64_t)t->numel) : mix(h, 1);
}
static uint64_t mix_int8(uint64_t h, const qwen_int8 *p) { return mix_tensor(mix_tensor(mix_tensor(h, p->q), p->scale), p->bias); }

/* Of the model as it is now, its adapters, and the cache: 64 bits of their shapes and addresses. */
static uint64_t key_of(const sz_qwen *m, sz_cache *cache)
{
    const sz_qwen_config *c = &m->config;
    uint64_t h = mix(mix(0, (uint64_t)c->hidden << 32 | (uint32_t)c->intermediate), (uint64_t)c->layers << 32 | (uint32_t)c->heads);
    h = mix(mix(h, (uint64_t)c->kv_heads << 32 | (uint32_t)c->head_dim), (uint64_t)m->lora_off);
    uint64_t eps = 0;
    memcpy(&eps, &c->rms_eps, sizeof c->rms_eps);
    h = mix(h, eps);
    for (int i = 0; i < m->weight_count; i++) {
        const qwen_proj *p = m->weights[i].proj;
        h = mix_tensor(h, *m->weights[i].slot);
        if (!p || !p->lora_a) continue;
        uint64_t scale;
        memcpy(&scale, &p->lora_scale, sizeof scale);
        h = mix(mix_tensor(mix_tensor(h, p->lora_a), p->lora_b), scale);
    }
    for (int i = 0; i < c->layers; i++) {
        const qwen_layer *l = &m->layers[i];
        h = mix_int8(mix_int8(mix_int8(mix_int8(h, &l->qkv8), &l->o8), &l->gate_up8), &l->down8);
        h = mix_tensor(mix_tensor(h, sz_cache_keys(cache, i)), sz_cache_values(cache, i));
    }
    return mix_int8(h, &m->head);
}

static int decode(decode_ctx *k, sz_tensor *positions, const sz_sampling *s, const uint8_t *banned, const uint8_t *seen,
                  const int64_t *row_id, const int32_t *answer_id, const int32_t *position, int32_t *token, float *logprob)
{
    const sz_qwen_config *c = &k->m->config;
    if (qwen_rotary(c, positions, k->m->embed->dtype, k->angles) != 0) return -1;
    sz_decode_step step = { .rows = k->ids->numel, .vocab = c->vocab, .tables = { k->ids, k->segments, k->cache_rows, k->angles[0], k->angles[1] },
        .segments = k->segments, .heads = c->heads, .kv_heads = c->kv_heads, .sampling = s, .banned = banned, .seen = seen,
        .row_id = row_id, .answer_id = answer_id, .position = position, .key = key_of(k->m, k->cache) };
    return sz_decode_run(&step, run, k, token, logprob);
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
