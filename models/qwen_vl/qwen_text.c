/* qwen_text.c - the language model of Qwen2-VL and Qwen2.5-VL (the same) over one packed stream of tokens.
 *
 *   ids [T] -> embeddings, picture rows replaced -> layers (grouped-query attention with m-rope, SwiGLU) -> final norm
 *
 * One function serves training, prefill and decoding: without a cache attention reads the stream's own keys; with one the
 * keys and values are stored in the cache first and attention reads it; with a prefix (the prompt of answers that come in several streams)
 * attention reads the rows of an earlier stream before its own. Leaves out: sliding windows (off in every release). */
#include "qwen.h"
#include "sampling/cache.h"
#include <math.h>

typedef struct {
    const sz_qwen *m;
    int index;
    sz_tensor *cosines, *sines, *segments;
    sz_cache *cache;
    sz_tensor *cache_rows;
    sz_tensor *turned;          /* queries, keys and values of this layer, if they are there already */
    sz_tensor *prefix, *places; /* those of an earlier stream, and where this one's rows come behind them */
    sz_tensor *rows;            /* in the last layer, if fewer than all are wanted: which */
} layer_ctx;

/* Pair j turns by its axis' position times theta^(-2j/head_dim). In the weights' dtype: the reference rounds them to it before rotating. */
int qwen_rotary(const sz_qwen_config *c, const sz_tensor *positions, int dtype, sz_tensor *angles[2])
{
    int64_t t = positions->shape[1], half = c->head_dim / 2;
    for (int i = 0; i < 2; i++)
        if (!(angles[i] = sz_new2(dtype, t, half, SZ_CPU))) return -1;
    sz_tensor *cosines = angles[0], *sines = angles[1];
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
            sz_put(cosines, i * half + j, cosf(angle));
            sz_put(sines, i * half + j, sinf(angle));
        }
    return 0;
}

/* The prefix's rows and then this stream's, [P + T, width], go through one attention in which only the latter ask. */
static sz_tensor *attend_behind(const layer_ctx *k, sz_tensor *qkv, double scale)
{
    const sz_qwen_config *c = &k->m->config;
    int64_t before = k->prefix->shape[0], here = qkv->shape[0];
    sz_tensor *padded = sz_pad_rows(k->prefix, here);
    sz_tensor *both = sz_index_copy(padded, k->places, qkv);
    sz_tensor *all = sz_attention(both, k->segments, c->heads, c->kv_heads, c->head_dim, true, scale);
    sz_tensor *a = sz_narrow(all, before, here);
    sz_tensor_release(padded);
    sz_tensor_release(both);
    sz_tensor_release(all);
    return a;
}

static sz_tensor *attend(const layer_ctx *k, sz_tensor *qkv)
{
    const sz_qwen_config *c = &k->m->config;
    double scale = 1 / sqrt((double)c->head_dim);
    if (k->prefix) return attend_behind(k, qkv, scale);
    if (!k->cache) return sz_attention(qkv, k->segments, c->heads, c->kv_heads, c->head_dim, true, scale);
    int64_t q = (int64_t)c->heads * c->head_dim, kv = (int64_t)c->kv_heads * c->head_dim;
    sz_tensor *keys = sz_cache_keys(k->cache, k->index), *values = sz_cache_values(k->cache, k->index);
    if (sz_scatter_cols(keys, k->cache_rows, qkv, q) != 0 || sz_scatter_cols(values, k->cache_rows, qkv, q + kv) != 0) return NULL;
    return sz_attention_cached(qkv, keys, values, k->segments, c->heads, c->kv_heads, c->head_dim, true, scale);
}

/* Queries, keys and values side by side, queries and keys rotated. */
static sz_tensor *project(const void *context, sz_tensor *x)
{
    const layer_ctx *k = context;
    const qwen_layer *l = &k->m->layers[k->index];
    const sz_qwen_config *c = &k->m->config;
    sz_tensor *n1 = sz_rmsnorm(x, l->norm1, c->rms_eps);
    sz_tensor *qkv = QWEN_LINEAR(k->m, n1, &l->qkv8, &l->q, &l->k, &l->v);
    sz_tensor *turned = sz_rope(qkv, k->cosines, k->sines, c->heads + c->kv_heads, c->head_dim);
    sz_tensor_release(n1);
    sz_tensor_release(qkv);
    return turned;
}

static sz_tensor *layer_forward(const void *context, sz_tensor *x)
{
    const layer_ctx *k = context;
    const qwen_layer *l = &k->m->layers[k->index];
    const sz_qwen_config *c = &k->m->config;
    sz_tensor *turned = k->turned ? sz_tensor_retain(k->turned) : project(k, x);
    sz_tensor *a = turned ? attend(k, turned) : NULL;
    x = k->rows ? sz_gather_rows(x, k->rows) : sz_tensor_retain(x);
    if (a && k->rows) {
        sz_tensor *picked = sz_gather_rows(a, k->rows);
        sz_tensor_release(a);
        a = picked;
    }
    sz_tensor *o = QWEN_LINEAR(k->m, a, &l->o8, &l->o);
    sz_tensor *mid = x ? sz_add(x, o) : NULL;
    sz_tensor *n2 = sz_rmsnorm(mid, l->norm2, c->rms_eps);
    sz_tensor *gate_up = QWEN_LINEAR(k->m, n2, &l->gate_up8, &l->gate, &l->up);
    sz_tensor *act = sz_swiglu(gate_up);
    sz_tensor *down = QWEN_LINEAR(k->m, act, &l->down8, &l->down);
    sz_tensor *y = mid ? sz_add(mid, down) : NULL;
    sz_tensor *made[] = { turned, x, a, o, mid, n2, gate_up, act, down };
    for (size_t i = 0; i < sizeof made / sizeof *made; i++) sz_tensor_release(made[i]);
    return y;
}

/* Without gradients, too, a layer is a checkpoint: then the layers use the same workspace, one after another. */
static sz_tensor *run(sz_checkpoint_fn fn, const layer_ctx *k, int recompute, sz_tensor *x)
{
    return recompute || !sz_grad_enabled() ? sz_checkpoint(fn, k, sizeof *k, x) : fn(k, x);
}

/* first, first + 1, ... as ids. */
static sz_tensor *counting(int64_t first, int64_t n)
{
    sz_tensor *t = sz_new1(SZ_I32, n, SZ_CPU);
    for (int64_t i = 0; t && i < n; i++) sz_i32(t)[i] = (int32_t)(first + i);
    return t;
}

int qwen_check_stream(const sz_qwen *m, sz_tensor *ids, sz_tensor *positions, sz_tensor *segments)
{
    if (qwen_check(m) != 0 || !sz_tensor_data(ids) || !sz_tensor_data(positions) || !sz_tensor_data(segments)) return -1;
    if (ids->dtype != SZ_I32 || positions->dtype != SZ_I32 || positions->ndim != 2 || positions->shape[0] != 3 || positions->shape[1] != ids->numel)
        return sz_fail("hidden: ids must be i32 [T] and positions i32 [3, T]");
    return 0;
}

sz_tensor *qwen_hidden(sz_qwen *m, sz_tensor *ids, sz_tensor *angles[2], sz_tensor *segments, sz_tensor *image_rows, sz_tensor *features,
                       sz_tensor *rows, sz_cache *cache, sz_tensor *cache_rows, sz_tensor **prefix, int recompute)
{
    const sz_qwen_config *c = &m->config;
    const bool behind = prefix && prefix[0];
    sz_tensor *places = behind ? counting(prefix[0]->shape[0], ids->numel) : NULL;
    if (behind && !places) return NULL;
    sz_tensor *x = sz_embedding(m->embed, ids);
    if (x && features) {
        sz_tensor *with = sz_index_copy(x, image_rows, features);
        sz_tensor_release(x);
        x = with;
    }
    sz_tensor *cosines = x ? sz_tensor_to(angles[0], x->device) : NULL, *sines = cosines ? sz_tensor_to(angles[1], x->device) : NULL;
    if (!sines) {
        sz_tensor_release(x);
        x = NULL;
    }
    /* What the last layer makes of a row after its attention is wanted for the caller's rows only. */
    const bool early = rows && rows->numel < ids->numel;
    for (int i = 0; x && i < c->layers; i++) {
        layer_ctx k = { m, i, cosines, sines, segments, cache, cache_rows, NULL, behind ? prefix[i] : NULL, places,
                        early && i == c->layers - 1 ? rows : NULL };
        if (prefix && !behind) {
            sz_tensor *turned = run(project, &k, recompute, x);
            prefix[i] = k.turned = sz_share(turned);
            sz_tensor_release(turned);
        }
        sz_tensor *next = prefix && !prefix[i] ? NULL : run(layer_forward, &k, recompute, x);
        sz_tensor_release(x);
        x = next;
    }
    if (x && rows && !early) {
        sz_tensor *picked = sz_gather_rows(x, rows);
        sz_tensor_release(x);
        x = picked;
    }
    sz_tensor *y = sz_rmsnorm(x, m->norm, c->rms_eps);
    sz_tensor_release(x);
    sz_tensor_release(cosines);
    sz_tensor_release(sines);
    sz_tensor_release(places);
    return y;
}

sz_tensor *sz_qwen_hidden(sz_qwen *m, sz_tensor *ids, sz_tensor *positions, sz_tensor *segments, sz_tensor *image_rows, sz_tensor *features,
                          sz_tensor *rows, sz_cache *cache, sz_tensor *cache_rows, sz_tensor **prefix, int recompute)
{
    if (qwen_check_stream(m, ids, positions, segments) != 0) return NULL;
    if (!features != !image_rows) return sz_null("hidden: features and image_rows come together");
    if (cache && (!cache_rows || cache_rows->numel != ids->numel)) return sz_null("hidden: a cache needs one cache row for each token");
    if (cache && prefix) return sz_null("hidden: a cache or a prefix, not both");
    sz_tensor *angles[2] = { NULL, NULL }, *y = NULL;
    if (qwen_rotary(&m->config, positions, m->embed->dtype, angles) == 0)
        y = qwen_hidden(m, ids, angles, segments, image_rows, features, rows, cache, cache_rows, prefix, recompute);
    for (int i = 0; i < 2; i++) sz_tensor_release(angles[i]);
    return y;
}

sz_cache *sz_qwen_cache(sz_qwen *m, int64_t rows)
{
    if (qwen_check(m) != 0) return NULL;
    return sz_cache_new(m->config.layers, rows, (int64_t)m->config.kv_heads * m->config.head_dim, m->embed->dtype, m->embed->device);
}
