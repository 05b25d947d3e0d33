/* qwen_text.c - the language model of Qwen2-VL and Qwen2.5-VL (the same) over one packed stream.
 *
 *   ids [T] -> embeddings, image rows replaced -> layers (grouped-query attention with m-rope,
 *   SwiGLU) -> final norm
 *
 * One function serves training, prefill and decoding. Without a cache, attention reads the stream's
 * own keys. With a cache, the keys and values are stored in it first and attention reads the cache.
 * With a shared prefix (a prompt whose answers are in several streams), attention reads the rows of
 * the prefix and then those of its own stream. Leaves out: sliding windows (off in every
 * release). */
#include "qwen_internal.h"
#include <math.h>

/* What one layer reads besides x. */
typedef struct {
    const qwen_model *m;
    int index;                  /* of the layer */
    sz_tensor *cosines, *sines; /* [T, head_dim / 2] */
    sz_tensor *segments;
    sz_cache *cache;
    sz_tensor *cache_rows;
    sz_tensor *qkv_rotated; /* of this layer, if computed already; else NULL */
    sz_tensor *prefix;      /* qkv of the shared prefix [P, width], or NULL */
    sz_tensor *positions;   /* i32 [T]: P, P + 1, ...: rows after the prefix */
    sz_tensor *rows;        /* in the last layer: the wanted rows, if not all */
} layer_ctx;

/* ---- rotary tables ---- */
enum { MAX_PAIRS = 512 };

/* The position axis (temporal, height, width) that pair j rotates with. */
static uint8_t axis_of(const sz_qwen_config *c, int64_t j)
{
    if (j < c->mrope_section[0]) return 0;
    return j < c->mrope_section[0] + c->mrope_section[1] ? 1 : 2;
}

/* The angle of pair j at position 1: theta^(-2j / head_dim), or a fraction of it. The steps and
 * their order are the reference's. */
static float frequency_of(const sz_qwen_config *c, int64_t j)
{
    float wave = powf((float)c->rope_theta, (float)(2 * j) / (float)c->head_dim);
    float plain = 1.0f / wave;
    if (c->rope_type == SZ_ROPE_LINEAR) return plain / (float)c->rope_factor;
    if (c->rope_type != SZ_ROPE_YARN) return plain;

    /* How far pair j is on the way from rope_low to rope_high. */
    float stretched = 1.0f / ((float)c->rope_factor * wave);
    float place = ((float)j - (float)c->rope_low) / (float)(c->rope_high - c->rope_low);
    float keep = 1.0f - fminf(fmaxf(place, 0.0f), 1.0f);
    return stretched * (1.0f - keep) + plain * keep;
}

/* Pair j rotates by its axis' position times its frequency. The tables have the weights' dtype: the
 * reference rounds them to it before it rotates. */
int qwen_rotary(const sz_qwen_config *c, const sz_tensor *positions, int dtype,
                sz_tensor *angles[2])
{
    int64_t t = positions->shape[1];
    int64_t half = c->head_dim / 2;
    for (int i = 0; i < 2; i++) {
        angles[i] = sz_new2(dtype, t, half, SZ_CPU);
        if (!angles[i]) return -1;
    }

    float frequency[MAX_PAIRS];
    uint8_t axis[MAX_PAIRS];
    SZ_ASSERT(half <= MAX_PAIRS, "head_dim is over 1024");
    for (int64_t j = 0; j < half; j++) {
        frequency[j] = frequency_of(c, j);
        axis[j] = axis_of(c, j);
    }

    sz_tensor *cosines = angles[0];
    sz_tensor *sines = angles[1];
    const int32_t *position = sz_i32(positions);
    const float scale = c->rope_type == SZ_ROPE_YARN ? (float)c->rope_attention : 1.0f;
#pragma omp parallel for schedule(static) if (t * half > 4096)
    for (int64_t i = 0; i < t; i++)
        for (int64_t j = 0; j < half; j++) {
            float angle = (float)position[axis[j] * t + i] * frequency[j];
            sz_put(cosines, i * half + j, cosf(angle) * scale);
            sz_put(sines, i * half + j, sinf(angle) * scale);
        }
    return 0;
}

/* ---- attention ---- */
/* The prefix's rows and then this stream's, [P + T, width], go through one attention in which only
 * this stream's rows are queries. */
static sz_tensor *attend_continuation(const layer_ctx *k, sz_tensor *qkv, double scale)
{
    const qwen_share *c = &k->m->share;
    int64_t before = k->prefix->shape[0];
    int64_t own = qkv->shape[0];
    sz_tensor *h = sz_pad_rows(k->prefix, own);
    model_move(&h, sz_index_copy(h, k->positions, qkv));
    model_move(&h, sz_attention(h, k->segments, c->heads, c->kv_heads, k->m->config.head_dim, true,
                                scale));
    model_move(&h, sz_narrow(h, before, own));
    return h;
}

/* Stores the stream's keys and values in the cache, then reads the cache. */
static sz_tensor *attend_cached(const layer_ctx *k, sz_tensor *qkv, double scale)
{
    const qwen_share *c = &k->m->share;
    const int head_dim = k->m->config.head_dim;
    int64_t q = (int64_t)c->heads * head_dim;
    int64_t kv = (int64_t)c->kv_heads * head_dim;
    sz_tensor *keys = sz_cache_keys(k->cache, k->index);
    sz_tensor *values = sz_cache_values(k->cache, k->index);
    if (sz_scatter_cols(keys, k->cache_rows, qkv, q) != 0) return NULL;
    if (sz_scatter_cols(values, k->cache_rows, qkv, q + kv) != 0) return NULL;
    return sz_attention_cached(qkv, keys, values, k->segments, c->heads, c->kv_heads, head_dim,
                               true, scale);
}

static sz_tensor *attend(const layer_ctx *k, sz_tensor *qkv)
{
    const qwen_share *c = &k->m->share;
    const int head_dim = k->m->config.head_dim;
    double scale = 1 / sqrt((double)head_dim);
    if (k->prefix) return attend_continuation(k, qkv, scale);
    if (k->cache) return attend_cached(k, qkv, scale);
    return sz_attention(qkv, k->segments, c->heads, c->kv_heads, head_dim, true, scale);
}

/* ---- layers ---- */
/* Queries, keys and values side by side, queries and keys rotated. */
static sz_tensor *project_qkv(const void *context, sz_tensor *x)
{
    const layer_ctx *k = context;
    const qwen_layer *l = &k->m->layers[k->index];
    const sz_qwen_config *c = &k->m->config;
    sz_tensor *h = sz_rmsnorm(x, l->norm1, c->rms_eps);
    model_move(&h, MODEL_LINEAR(&k->m->base, h, &l->qkv_packed, &l->q, &l->k, &l->v));
    const int rotating = k->m->share.heads + k->m->share.kv_heads;
    model_move(&h, sz_rope(h, k->cosines, k->sines, rotating, c->head_dim));
    return h;
}

static sz_tensor *layer_forward(const void *context, sz_tensor *x)
{
    const layer_ctx *k = context;
    const sz_model *base = &k->m->base;
    const qwen_layer *l = &k->m->layers[k->index];
    const sz_qwen_config *c = &k->m->config;

    /* Attention. After it, the last layer continues with the wanted rows only. */
    sz_tensor *qkv = k->qkv_rotated ? sz_tensor_retain(k->qkv_rotated) : project_qkv(k, x);
    sz_tensor *a = qkv ? attend(k, qkv) : NULL;
    sz_tensor_release(qkv);
    x = k->rows ? sz_gather_rows(x, k->rows) : sz_tensor_retain(x);
    if (a && k->rows) model_move(&a, sz_gather_rows(a, k->rows));
    model_move(&a, MODEL_LINEAR(base, a, &l->o_packed, &l->o));
    sz_tensor *mid = x ? sz_add(x, a) : NULL;
    MODEL_RELEASE(x, a);

    /* MLP. */
    sz_tensor *h = sz_rmsnorm(mid, l->norm2, c->rms_eps);
    model_move(&h, MODEL_LINEAR(base, h, &l->gate_up_packed, &l->gate, &l->up));
    model_move(&h, sz_swiglu(h));
    model_move(&h, MODEL_LINEAR(base, h, &l->down_packed, &l->down));
    sz_tensor *y = mid ? sz_add(mid, h) : NULL;
    MODEL_RELEASE(mid, h);
    return y;
}

/* ---- the stream ---- */
/* i32 [n]: first, first + 1, ... */
static sz_tensor *ascending(int64_t first, int64_t n)
{
    sz_tensor *t = sz_new1(SZ_I32, n, SZ_CPU);
    for (int64_t i = 0; t && i < n; i++) sz_i32(t)[i] = (int32_t)(first + i);
    return t;
}

/* The rows of the embedding [T, hidden]. Each shard has some of them, and zeros for the others. */
static sz_tensor *token_rows(const qwen_model *m, sz_tensor *ids)
{
    if (m->base.shards <= 1) return sz_embedding(m->embed, ids);
    sz_tensor *own = sz_embedding_part(m->embed, ids, qwen_first_word(m), m->config.vocab);
    sz_tensor *x = sz_tp_sum_in_place(own, sz_comm_handle(m->base.group));
    sz_tensor_release(own);
    return x;
}

/* Token embeddings [T, hidden], with the image features in their rows. */
static sz_tensor *embed(const qwen_model *m, const model_stream *s)
{
    sz_tensor *x = token_rows(m, s->ids);
    if (x && s->features) model_move(&x, sz_index_copy(x, s->image_rows, s->features));
    return x;
}

/* All layers. Consumes x. k has what the layers share. */
static sz_tensor *run_layers(layer_ctx k, const model_stream *s, sz_tensor *x)
{
    const int layers = k.m->config.layers;
    const bool continues = s->prefix && s->prefix[0];
    const bool is_prefix = s->prefix && !continues;
    sz_tensor *last_rows = k.rows;
    for (int i = 0; x && i < layers; i++) {
        k.index = i;
        k.rows = i == layers - 1 ? last_rows : NULL;
        k.prefix = continues ? s->prefix[i] : NULL;
        k.qkv_rotated = NULL;

        /* A prefix keeps its queries, keys and values for the streams that continue it. */
        if (is_prefix) {
            sz_tensor *rotated = model_run(project_qkv, &k, sizeof k, s->recompute, x);
            s->prefix[i] = sz_share(rotated);
            k.qkv_rotated = s->prefix[i];
            sz_tensor_release(rotated);
        }
        sz_tensor *next = NULL;
        if (!is_prefix || s->prefix[i])
            next = model_run(layer_forward, &k, sizeof k, s->recompute, x);
        model_move(&x, next);
    }
    return x;
}

sz_tensor *qwen_hidden_rotated(qwen_model *m, const model_stream *s, sz_tensor *angles[2])
{
    /* A continuation's rows come after those of its prefix. */
    const bool continues = s->prefix && s->prefix[0];
    sz_tensor *positions = NULL;
    if (continues) {
        positions = ascending(s->prefix[0]->shape[0], s->ids->numel);
        if (!positions) return NULL;
    }

    /* Embeddings and rotary tables, on the weights' device. */
    sz_tensor *x = embed(m, s);
    sz_tensor *cosines = x ? sz_tensor_to(angles[0], x->device) : NULL;
    sz_tensor *sines = cosines ? sz_tensor_to(angles[1], x->device) : NULL;
    if (!sines) model_move(&x, NULL);

    /* A layer that runs again reads them after this function. */
    sz_tensor_pin(cosines);
    sz_tensor_pin(sines);
    sz_tensor_pin(positions);

    /* Layers. After its attention the last one computes the wanted rows only, if they are fewer. */
    const bool fewer = s->rows && s->rows->numel < s->ids->numel;
    const layer_ctx k = {
        .m = m,
        .cosines = cosines,
        .sines = sines,
        .segments = s->segments,
        .cache = s->cache,
        .cache_rows = s->cache_rows,
        .positions = positions,
        .rows = fewer ? s->rows : NULL,
    };
    x = run_layers(k, s, x);
    if (x && s->rows && !fewer) model_move(&x, sz_gather_rows(x, s->rows));

    sz_tensor *y = sz_rmsnorm(x, m->norm, m->config.rms_eps);
    MODEL_RELEASE(x, cosines, sines, positions);
    return y;
}

sz_tensor *qwen_hidden(sz_model *base, const model_stream *s)
{
    qwen_model *m = qwen_of(base);
    sz_tensor *angles[2] = { NULL, NULL };
    sz_tensor *y = NULL;
    if (qwen_rotary(&m->config, s->positions, m->embed->dtype, angles) == 0)
        y = qwen_hidden_rotated(m, s, angles);
    MODEL_RELEASE(angles[0], angles[1]);
    return y;
}

sz_cache *qwen_cache(sz_model *base, int64_t rows)
{
    const qwen_model *m = qwen_of(base);
    int64_t width = (int64_t)m->share.kv_heads * m->config.head_dim;
    return sz_cache_new(m->config.layers, rows, width, m->embed->dtype, m->embed->device);
}
