/* qwen_decode.c - a decode step of the language model on a device: the next token of each running
 * answer in one call of the backend.
 *
 *   ids [a], one token per answer -> keys and values into the cache, hidden states [a, h],
 *   logits [a, vocab] -> a token and its log-probability
 *
 * The ops and the numbers are those of sz_model_hidden, sz_model_logits and sz_sample. But all that
 * the ops read from the host is known before the first one runs, so the backend sends it in one
 * copy. Leaves out: the CPU, where this gains nothing. */
#include "qwen_internal.h"

typedef struct {
    qwen_model *m;
    const model_stream *stream;
    sz_tensor *angles[2];
} decode_ctx;

/* The ops of the step, in a scope of their own. */
static int run(void *context, int (*sample)(sz_tensor *logits))
{
    decode_ctx *k = context;
    sz_scope_push();
    sz_tensor *hidden = qwen_hidden_rotated(k->m, k->stream, k->angles);
    sz_tensor *logits = hidden ? qwen_logits(&k->m->base, hidden) : NULL;
    int rc = logits ? sz_decode_sample(sample, logits) : -1;
    MODEL_RELEASE(hidden, logits);
    sz_scope_pop();
    return rc;
}

/* ---- the key of a step's launches ---- */
static uint64_t mix(uint64_t h, uint64_t v)
{
    h = (h ^ v) * UINT64_C(0x9e3779b97f4a7c15);
    return h ^ h >> 29;
}

static uint64_t mix_ints(uint64_t h, int high, int low)
{
    return mix(h, (uint64_t)high << 32 | (uint32_t)low);
}

static uint64_t mix_double(uint64_t h, double v)
{
    uint64_t bits;
    memcpy(&bits, &v, sizeof v);
    return mix(h, bits);
}

static uint64_t mix_tensor(uint64_t h, const sz_tensor *t)
{
    if (!t) return mix(h, 1);
    h = mix(h, (uint64_t)(uintptr_t)t->data);
    h = mix(h, (uint64_t)t->dtype);
    return mix(h, (uint64_t)t->numel);
}

static uint64_t mix_packed(uint64_t h, const model_packed *p)
{
    h = mix_tensor(h, p->q);
    h = mix_tensor(h, p->scale);
    return mix_tensor(h, p->bias);
}

static uint64_t mix_weight(uint64_t h, const model_weight *w)
{
    h = mix_tensor(h, *w->slot);
    const model_layer *layer = w->layer;
    if (!layer || !layer->lora_a) return h;
    h = mix_tensor(h, layer->lora_a);
    h = mix_tensor(h, layer->lora_b);
    return mix_double(h, layer->lora_scale);
}

/* A 64-bit hash of the shapes, settings and addresses of the model, its adapters and the cache. */
static uint64_t key_of(const qwen_model *m, sz_cache *cache)
{
    const sz_qwen_config *c = &m->config;
    uint64_t h = mix_ints(0, c->hidden, c->intermediate);
    h = mix_ints(h, c->layers, c->heads);
    h = mix_ints(h, c->kv_heads, c->head_dim);
    h = mix(h, (uint64_t)m->base.lora_off);
    h = mix(h, (uint64_t)(uintptr_t)m->base.group);
    h = mix_double(h, c->rms_eps);
    for (int i = 0; i < m->base.weights.count; i++) h = mix_weight(h, &m->base.weights.items[i]);
    for (int i = 0; i < c->layers; i++) {
        const qwen_layer *l = &m->layers[i];
        h = mix_packed(h, &l->qkv_packed);
        h = mix_packed(h, &l->o_packed);
        h = mix_packed(h, &l->gate_up_packed);
        h = mix_packed(h, &l->down_packed);
        h = mix_tensor(h, sz_cache_keys(cache, i));
        h = mix_tensor(h, sz_cache_values(cache, i));
    }
    return mix_packed(h, &m->head);
}

/* ---- the step ---- */
static int check(const qwen_model *m, const model_stream *s, const model_draw *draw)
{
    if (m->embed->device == SZ_CPU)
        return sz_fail("decode: a step in one call is for a model on a device");
    const sz_tensor *rows = s->cache_rows;
    if (!s->cache || !rows || !sz_tensor_data(s->cache_rows) || rows->dtype != SZ_I32 ||
        rows->numel != s->ids->numel || s->ids->numel == 0)
        return sz_fail("decode: a cache needs one cache row for each token");
    if (!sz_decode_fits(s->ids, m->config.vocab, rows, s->segments, sz_cache_rows(s->cache)))
        return sz_fail("decode: an id is outside the vocabulary, or a cache row or a segment is "
                       "outside the cache");
    return sz_sampling_check(draw->sampling, draw->seen);
}

static int decode(decode_ctx *k, const model_draw *draw)
{
    const sz_qwen_config *c = &k->m->config;
    const model_stream *s = k->stream;
    if (qwen_rotary(c, s->positions, k->m->embed->dtype, k->angles) != 0) return -1;
    sz_decode_step step = {
        .rows = s->ids->numel,
        .vocab = c->vocab,
        .tables = { s->ids, s->segments, s->cache_rows, k->angles[0], k->angles[1] },
        .segments = s->segments,
        .heads = k->m->share.heads,
        .kv_heads = k->m->share.kv_heads,
        .has_collectives = k->m->base.shards > 1 && !sz_comm_is_linked(k->m->base.group),
        .sampling = draw->sampling,
        .banned = draw->banned,
        .seen = draw->seen,
        .row_id = draw->row_id,
        .answer_id = draw->answer_id,
        .position = draw->position,
        .key = key_of(k->m, s->cache),
    };
    return sz_decode_run(&step, run, k, draw->token, draw->logprob);
}

int qwen_decode(sz_model *base, const model_stream *stream, const model_draw *draw)
{
    qwen_model *m = qwen_of(base);
    if (check(m, stream, draw) != 0) return -1;
    decode_ctx k = { .m = m, .stream = stream };
    const int before = sz_set_grad_enabled(0);
    sz_scope_push();
    int rc = decode(&k, draw);
    MODEL_RELEASE(k.angles[0], k.angles[1]);
    sz_scope_pop();
    sz_set_grad_enabled(before);
    return rc;
}
