/* qwen_text.c - the language model of Qwen2-VL and Qwen2.5-VL (the same) over one packed stream of tokens.
 *
 *   ids [T] -> embeddings, picture rows replaced -> layers (grouped-query attention with m-rope, SwiGLU) -> final norm
 *
 * One function serves training, prefill and decoding: without a cache attention reads the stream's own keys; with one the
 * keys and values are stored in the cache first and attention reads it. Leaves out: sliding windows (off in every release). */
#include "qwen.h"
#include "rollout/cache.h"
#include <math.h>

typedef struct {
    const sz_qwen *m;
    int index;
    sz_tensor *cosines, *sines, *segments;
    sz_cache *cache;
    sz_tensor *cache_rows;
} layer_ctx;

/* cos and sin [T, head_dim/2], on the weights' device: pair j turns by its axis' position times theta^(-2j/head_dim). In the weights' dtype: the
 * reference rounds them to it before rotating. */
static int rotary(const sz_qwen_config *c, const sz_tensor *positions, int dtype, int device, sz_tensor **cosines, sz_tensor **sines)
{
    int64_t t = positions->shape[1], half = c->head_dim / 2;
    *cosines = sz_new2(dtype, t, half, SZ_CPU);
    *sines = sz_new2(dtype, t, half, SZ_CPU);
    if (!*cosines || !*sines) return -1;
    float frequency[512];
    uint8_t axis[512];
    SZ_ASSERT(half <= 512, "head_dim is over 1024");
    for (int64_t j = 0; j < half; j++) {
        frequency[j] = 1.0f / powf((float)c->rope_theta, (float)(2 * j) / (float)c->head_dim);
        axis[j] = j < c->mrope_section[0] ? 0 : j < c->mrope_section[0] + c->mrope_section[1] ? 1 : 2;
    }
    const int32_t *at = sz_i32(positions);
    #pragma omp parallel for schedule(static) if (t * half > 4096)
    for (int64_t i = 0; i < t; i++)
        for (int64_t j = 0; j < half; j++) {
            float angle = (float)at[axis[j] * t + i] * frequency[j];
            sz_put(*cosines, i * half + j, cosf(angle));
            sz_put(*sines, i * half + j, sinf(angle));
        }
    return sz_tensor_move(cosines, device) == 0 ? sz_tensor_move(sines, device) : -1;
}

static sz_tensor *attend(const layer_ctx *k, sz_tensor *qkv)
{
    const sz_qwen_config *c = &k->m->config;
    double scale = 1 / sqrt((double)c->head_dim);
    if (!k->cache) return sz_attention(qkv, k->segments, c->heads, c->kv_heads, c->head_dim, true, scale);
    int64_t q = (int64_t)c->heads * c->head_dim, kv = (int64_t)c->kv_heads * c->head_dim;
    sz_tensor *keys = sz_cache_keys(k->cache, k->index), *values = sz_cache_values(k->cache, k->index);
    if (sz_store_cols(keys, k->cache_rows, qkv, q) != 0 || sz_store_cols(values, k->cache_rows, qkv, q + kv) != 0) return NULL;
    return sz_attention_cached(qkv, keys, values, k->segments, c->heads, c->kv_heads, c->head_dim, true, scale);
}

static sz_tensor *layer_forward(const void *context, sz_tensor *x)
{
    const layer_ctx *k = context;
    const qwen_layer *l = &k->m->layers[k->index];
    const sz_qwen_config *c = &k->m->config;
    sz_tensor *n1 = sz_rmsnorm(x, l->norm1, c->rms_eps);
    sz_tensor *qkv = QWEN_LINEAR(k->m, n1, &l->qkv8, &l->q, &l->k, &l->v);
    sz_tensor *turned = sz_rope(qkv, k->cosines, k->sines, c->heads + c->kv_heads, c->head_dim);
    sz_tensor *a = turned ? attend(k, turned) : NULL;
    sz_tensor *o = QWEN_LINEAR(k->m, a, &l->o8, &l->o);
    sz_tensor *mid = sz_add(x, o);
    sz_tensor *n2 = sz_rmsnorm(mid, l->norm2, c->rms_eps);
    sz_tensor *gate_up = QWEN_LINEAR(k->m, n2, &l->gate_up8, &l->gate, &l->up);
    sz_tensor *act = sz_swiglu(gate_up);
    sz_tensor *down = QWEN_LINEAR(k->m, act, &l->down8, &l->down);
    sz_tensor *y = mid ? sz_add(mid, down) : NULL;
    sz_tensor *made[] = { n1, qkv, turned, a, o, mid, n2, gate_up, act, down };
    for (size_t i = 0; i < sizeof made / sizeof *made; i++) sz_tensor_release(made[i]);
    return y;
}

sz_tensor *sz_qwen_hidden(sz_qwen *m, sz_tensor *ids, sz_tensor *positions, sz_tensor *segments, sz_tensor *image_rows,
                          sz_tensor *features, sz_tensor *rows, sz_cache *cache, sz_tensor *cache_rows, int recompute)
{
    const sz_qwen_config *c = &m->config;
    if (qwen_check(m) != 0 || !sz_tensor_data(ids) || !sz_tensor_data(positions) || !sz_tensor_data(segments)) return NULL;
    if (ids->dtype != SZ_I32 || positions->dtype != SZ_I32 || positions->ndim != 2 || positions->shape[0] != 3 || positions->shape[1] != ids->numel)
        return sz_null("hidden: ids must be i32 [T] and positions i32 [3, T]");
    if (!features != !image_rows) return sz_null("hidden: features and image_rows come together");
    if (cache && (!cache_rows || cache_rows->numel != ids->numel)) return sz_null("hidden: a cache needs one cache row for each token");

    sz_tensor *cosines = NULL, *sines = NULL;
    sz_tensor *x = sz_embedding(m->embed, ids);
    if (x && features) {
        sz_tensor *with = sz_put_rows(x, image_rows, features);
        sz_tensor_release(x);
        x = with;
    }
    if (x && rotary(c, positions, x->dtype, x->device, &cosines, &sines) != 0) {
        sz_tensor_release(x);
        x = NULL;
    }
    for (int i = 0; x && i < c->layers; i++) {
        layer_ctx k = { m, i, cosines, sines, segments, cache, cache_rows };
        /* Without gradients too: then the layers use the same workspace, one after another. */
        sz_tensor *next = recompute || !sz_grad_enabled() ? sz_checkpoint(layer_forward, &k, sizeof k, x) : layer_forward(&k, x);
        sz_tensor_release(x);
        x = next;
    }
    if (x && rows) {
        sz_tensor *picked = sz_gather_rows(x, rows);
        sz_tensor_release(x);
        x = picked;
    }
    sz_tensor *y = sz_rmsnorm(x, m->norm, c->rms_eps);
    sz_tensor_release(x);
    sz_tensor_release(cosines);
    sz_tensor_release(sines);
    return y;
}

sz_cache *sz_qwen_cache(sz_qwen *m, int64_t rows)
{
    if (qwen_check(m) != 0) return NULL;
    return sz_cache_new(m->config.layers, rows, (int64_t)m->config.kv_heads * m->config.head_dim, m->embed->dtype, m->embed->device);
}
