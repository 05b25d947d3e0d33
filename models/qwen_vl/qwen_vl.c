/* qwen_vl.c - Qwen2-VL and Qwen2.5-VL: config checks, the list of weights, 8 and 4 bits, logits and
 * log-probabilities. The forward passes are in qwen_vision.c and qwen_text.c; Lua reads files and
 * JSON. Shapes: models/README.md. */
#include "qwen_internal.h"
#include <stdio.h>
#include <stdlib.h>

/* ---- config ---- */
/* Is every size positive? The message has the name that config.json gives the size. */
static int sizes_check(const sz_qwen_config *c)
{
    const bool qwen2 = c->family == SZ_QWEN2_VL;
    const struct {
        const char *name;
        int value;
    } positive[] = {
        { "hidden_size", c->hidden },
        { "intermediate_size", c->intermediate },
        { "num_hidden_layers", c->layers },
        { "num_attention_heads", c->heads },
        { "num_key_value_heads", c->kv_heads },
        { "head_dim", c->head_dim },
        { "vocab_size", c->vocab },
        { "vision_config.depth", c->v_depth },
        { qwen2 ? "vision_config.embed_dim" : "vision_config.hidden_size", c->v_hidden },
        { qwen2 ? "vision_config.mlp_ratio * embed_dim" : "vision_config.intermediate_size",
          c->v_intermediate },
        { "vision_config.num_heads", c->v_heads },
        { "vision_config.in_channels", c->v_channels },
        { "vision_config.patch_size", c->v_patch },
        { "vision_config.spatial_merge_size", c->v_merge },
        { "vision_config.temporal_patch_size", c->v_temporal },
        { "vision_config.window_size", qwen2 ? 1 : c->v_window },
        { qwen2 ? "vision_config.hidden_size" : "vision_config.out_hidden_size", c->v_out },
    };
    for (size_t i = 0; i < sizeof positive / sizeof *positive; i++)
        if (positive[i].value <= 0)
            return sz_fail("config: %s is %d", positive[i].name, positive[i].value);
    return 0;
}

static int text_check(const sz_qwen_config *c)
{
    if (c->heads % c->kv_heads)
        return sz_fail("config: num_key_value_heads %d does not divide num_attention_heads %d",
                       c->kv_heads, c->heads);
    if (c->head_dim % 2) return sz_fail("config: head_dim %d is odd", c->head_dim);
    int pairs = c->mrope_section[0] + c->mrope_section[1] + c->mrope_section[2];
    if (pairs != c->head_dim / 2)
        return sz_fail("config: mrope_section adds up to %d, head_dim / 2 is %d", pairs,
                       c->head_dim / 2);
    return 0;
}

static int vision_check(const sz_qwen_config *c)
{
    /* Qwen2-VL has other names for the tower's own width and for the width of its features. */
    const bool qwen2 = c->family == SZ_QWEN2_VL;
    const char *width = qwen2 ? "vision_config.embed_dim" : "vision_config.hidden_size";
    const char *out = qwen2 ? "vision_config.hidden_size" : "vision_config.out_hidden_size";
    if (c->v_hidden % c->v_heads || c->v_hidden / c->v_heads % 4)
        return sz_fail("config: %s %d over %d heads is not a multiple of 4", width, c->v_hidden,
                       c->v_heads);
    if (c->v_out != c->hidden)
        return sz_fail("config: %s %d differs from hidden_size %d", out, c->v_out, c->hidden);
    if (!qwen2 && c->v_window / c->v_merge / c->v_patch < 1)
        return sz_fail("config: vision_config.window_size %d is smaller than one merged patch",
                       c->v_window);
    if (c->v_depth > SZ_QWEN_MAX_DEPTH)
        return sz_fail("config: vision_config.depth %d is over %d", c->v_depth, SZ_QWEN_MAX_DEPTH);
    return 0;
}

/* ---- division among shards ---- */
/* The first setting that this number of shards cannot divide, and its value; NULL if there is
 * none. */
static const char *undivided(const sz_qwen_config *c, int shards, int *value)
{
    const struct {
        const char *name;
        int value;
        bool may_divide; /* a divisor of the shards will do, too */
    } divided[] = {
        { "num_attention_heads", c->heads, false },
        { "num_key_value_heads", c->kv_heads, true },
        { "intermediate_size", c->intermediate, false },
        { "vocab_size", c->vocab, false },
    };
    for (size_t i = 0; i < sizeof divided / sizeof *divided; i++) {
        *value = divided[i].value;
        if (*value % shards == 0) continue;
        if (!divided[i].may_divide || shards % *value) return divided[i].name;
    }
    return NULL;
}

/* Writes "1, 2 or 4": the numbers of shards that would do. */
static void list_shards(const sz_qwen_config *c, char *text, size_t size)
{
    int value;
    int last = 0; /* not written yet: "or" stands before the last one */
    size_t length = 0;
    text[0] = 0;
    for (int n = 1; n <= c->heads && length < size; n++) {
        if (undivided(c, n, &value)) continue;
        const char *comma = length ? ", " : "";
        if (last) length += (size_t)snprintf(text + length, size - length, "%s%d", comma, last);
        last = n;
    }
    if (length < size)
        snprintf(text + length, size - length, "%s%d", length ? " or " : "only ", last);
}

static int shards_check(const sz_qwen_config *c)
{
    if (c->shards < 0 || c->shard < 0 || c->shard >= (c->shards ? c->shards : 1))
        return sz_fail("config: there is no shard %d of %d", c->shard, c->shards);
    if (c->shards <= 1) return 0;
    int value;
    const char *name = undivided(c, c->shards, &value);
    if (!name) return 0;
    char would_do[200];
    list_shards(c, would_do, sizeof would_do);
    return sz_fail("config: %s %d cannot be split over %d shards (%s would do)", name, value,
                   c->shards, would_do);
}

static int config_check(const sz_qwen_config *c)
{
    if (sizes_check(c) != 0 || text_check(c) != 0 || vision_check(c) != 0) return -1;
    return shards_check(c);
}

static qwen_share share_of(const sz_qwen_config *c)
{
    const int shards = c->shards > 1 ? c->shards : 1;
    return (qwen_share){
        .heads = c->heads / shards,
        .kv_heads = c->kv_heads > shards ? c->kv_heads / shards : 1,
        .vocab = c->vocab / shards,
    };
}

/* ---- the list of weights ---- */
/* A norm's weight and, where the tower has LayerNorms, its bias. */
static void add_norm(sz_model *m, sz_tensor **weight, sz_tensor **bias, int64_t width,
                     bool has_bias, const char *name)
{
    model_add(m, weight, MODEL_SHAPE(width), "%s.weight", name);
    if (has_bias) model_add(m, bias, MODEL_SHAPE(width), "%s.bias", name);
}

static void list_block(qwen_model *m, int i)
{
    const sz_qwen_config *c = &m->config;
    sz_model *base = &m->base;
    qwen_block *b = &m->blocks[i];
    const bool qwen2 = c->family == SZ_QWEN2_VL;
    int64_t width = c->v_hidden;
    int64_t inner = c->v_intermediate;

    char p[32];
    char norm[48];
    snprintf(p, sizeof p, "visual.blocks.%d", i);
    snprintf(norm, sizeof norm, "%s.norm1", p);
    add_norm(base, &b->norm1, &b->norm1_b, width, qwen2, norm);
    snprintf(norm, sizeof norm, "%s.norm2", p);
    add_norm(base, &b->norm2, &b->norm2_b, width, qwen2, norm);

    model_add_linear(base, &b->qkv, 3 * width, width, true, "%s.attn.qkv", p);
    model_add_linear(base, &b->proj, width, width, true, "%s.attn.proj", p);
    if (qwen2) {
        model_add_linear(base, &b->up, inner, width, true, "%s.mlp.fc1", p);
        model_add_linear(base, &b->down, width, inner, true, "%s.mlp.fc2", p);
    } else {
        model_add_linear(base, &b->gate, inner, width, true, "%s.mlp.gate_proj", p);
        model_add_linear(base, &b->up, inner, width, true, "%s.mlp.up_proj", p);
        model_add_linear(base, &b->down, width, inner, true, "%s.mlp.down_proj", p);
    }
}

static void list_vision(qwen_model *m)
{
    const sz_qwen_config *c = &m->config;
    sz_model *base = &m->base;
    int64_t width = c->v_hidden;
    int64_t merged = width * c->v_merge * c->v_merge;

    base->weights.vision = true;
    model_add(base, &m->patch_embed,
              MODEL_SHAPE(width, c->v_channels, c->v_temporal, c->v_patch, c->v_patch),
              "visual.patch_embed.proj.weight");
    for (int i = 0; i < c->v_depth; i++) list_block(m, i);
    add_norm(base, &m->ln_q, &m->ln_q_b, width, c->family == SZ_QWEN2_VL, "visual.merger.ln_q");
    model_add_linear(base, &m->merge0, merged, merged, true, "visual.merger.mlp.0");
    model_add_linear(base, &m->merge2, c->v_out, merged, true, "visual.merger.mlp.2");
    base->weights.vision = false;
}

/* Weights that are listed from now on are divided so. */
static void divide(qwen_model *m, model_division division, int slices)
{
    m->base.weights.division = division;
    m->base.weights.slices = slices;
}

static void list_layer(qwen_model *m, int i)
{
    const sz_qwen_config *c = &m->config;
    sz_model *base = &m->base;
    qwen_layer *l = &m->layers[i];
    int64_t width = c->hidden;
    int64_t inner = c->intermediate;
    int64_t q = (int64_t)c->heads * c->head_dim;
    int64_t kv = (int64_t)c->kv_heads * c->head_dim;

    /* Attention. Key-value heads that are fewer than the shards are repeated. */
    const int shards = c->shards > 1 ? c->shards : 1;
    const int kv_slices = shards < c->kv_heads ? shards : c->kv_heads;
    char p[32];
    snprintf(p, sizeof p, "model.layers.%d", i);
    divide(m, MODEL_WHOLE, 1);
    model_add(base, &l->norm1, MODEL_SHAPE(width), "%s.input_layernorm.weight", p);
    divide(m, MODEL_OUTPUTS, shards);
    model_add_linear(base, &l->q, q, width, true, "%s.self_attn.q_proj", p);
    divide(m, MODEL_OUTPUTS, kv_slices);
    model_add_linear(base, &l->k, kv, width, true, "%s.self_attn.k_proj", p);
    model_add_linear(base, &l->v, kv, width, true, "%s.self_attn.v_proj", p);
    divide(m, MODEL_INPUTS, shards);
    model_add_linear(base, &l->o, width, q, false, "%s.self_attn.o_proj", p);

    /* MLP. */
    divide(m, MODEL_WHOLE, 1);
    model_add(base, &l->norm2, MODEL_SHAPE(width), "%s.post_attention_layernorm.weight", p);
    divide(m, MODEL_OUTPUTS, shards);
    model_add_linear(base, &l->gate, inner, width, false, "%s.mlp.gate_proj", p);
    model_add_linear(base, &l->up, inner, width, false, "%s.mlp.up_proj", p);
    divide(m, MODEL_INPUTS, shards);
    model_add_linear(base, &l->down, width, inner, false, "%s.mlp.down_proj", p);
}

static void list_text(qwen_model *m)
{
    const sz_qwen_config *c = &m->config;
    sz_model *base = &m->base;
    const int shards = c->shards > 1 ? c->shards : 1;
    divide(m, MODEL_OUTPUTS, shards);
    model_add(base, &m->embed, MODEL_SHAPE(c->vocab, c->hidden), "model.embed_tokens.weight");
    for (int i = 0; i < c->layers; i++) list_layer(m, i);
    divide(m, MODEL_WHOLE, 1);
    model_add(base, &m->norm, MODEL_SHAPE(c->hidden), "model.norm.weight");
    divide(m, MODEL_OUTPUTS, shards);
    if (!c->tied) model_add(base, &m->lm_head, MODEL_SHAPE(c->vocab, c->hidden), "lm_head.weight");
}

/* ---- 8 and 4 bits ---- */
static sz_tensor *head_weight(const qwen_model *m)
{
    return m->config.tied ? m->embed : m->lm_head;
}

/* Layers side by side, and their packed form. */
typedef struct {
    model_packed *packed;
    model_layer *layers[4];
} packing;

/* Packs them and releases their weights. */
static int pack(int bits, const packing *list, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (model_quantize_layers(list[i].packed, bits, list[i].layers) != 0) return -1;
    for (size_t i = 0; i < count; i++)
        for (int k = 0; list[i].layers[k]; k++) model_unload_layer(list[i].layers[k]);
    return 0;
}

static int pack_layer(int bits, qwen_layer *l)
{
    const packing list[] = {
        { &l->qkv_packed, { &l->q, &l->k, &l->v } },
        { &l->o_packed, { &l->o } },
        { &l->gate_up_packed, { &l->gate, &l->up } },
        { &l->down_packed, { &l->down } },
    };
    return pack(bits, list, sizeof list / sizeof *list);
}

static int pack_block(qwen_block *b)
{
    packing gate_up = { &b->gate_up_packed, { &b->gate, &b->up } };
    if (b->gate.rows == 0) gate_up = (packing){ &b->gate_up_packed, { &b->up } };
    const packing list[] = {
        { &b->qkv_packed, { &b->qkv } },
        { &b->proj_packed, { &b->proj } },
        gate_up,
        { &b->down_packed, { &b->down } },
    };
    return pack(8, list, sizeof list / sizeof *list);
}

/* The vision tower has 8 bits in a model of 4, too: it is a fifth of a 3B's weights. */
static int pack_vision(qwen_model *m)
{
    const packing merger[] = {
        { &m->merge0_packed, { &m->merge0 } },
        { &m->merge2_packed, { &m->merge2 } },
    };
    for (int i = 0; i < m->config.v_depth; i++)
        if (pack_block(&m->blocks[i]) != 0) return -1;
    return pack(8, merger, sizeof merger / sizeof *merger);
}

static int quantize(sz_model *base, int bits)
{
    qwen_model *m = qwen_of(base);
    model_layer logits = { .w = head_weight(m), .rows = m->share.vocab };
    if (model_quantize_layers(&m->head, bits, (model_layer *[4]){ &logits }) != 0) return -1;
    base->quantized = bits;
    for (int i = 0; i < m->config.layers; i++)
        if (pack_layer(bits, &m->layers[i]) != 0) return -1;
    return pack_vision(m);
}

static void release_packed_head(sz_model *base) { model_release_packed(&qwen_of(base)->head); }

/* ---- logits and log-probabilities ---- */
/* hidden [k, hidden] -> f32 [k, this shard's words]. */
static sz_tensor *own_logits(const qwen_model *m, sz_tensor *hidden)
{
    /* The logits are not rounded, like the log-probabilities of training: in bf16 the sampler would
     * be off by a percent. */
    if (m->head.q) return model_linear_packed(hidden, &m->head, true);
    if (!sz_grad_enabled()) return sz_linear_f32_out(hidden, head_weight(m));

    sz_tensor *logits = sz_linear(hidden, head_weight(m), NULL);
    if (!logits || logits->dtype == SZ_F32) return logits;
    model_move(&logits, sz_cast(logits, SZ_F32));
    return logits;
}

sz_tensor *qwen_logits(sz_model *base, sz_tensor *hidden)
{
    const qwen_model *m = qwen_of(base);
    if (base->shards <= 1) return own_logits(m, hidden);

    /* Each shard has some of the columns; all get them all. */
    const int group = sz_comm_handle(base->group);
    sz_tensor *x = sz_tp_copy(hidden, group);
    sz_tensor *own = x ? own_logits(m, x) : NULL;
    sz_tensor *logits = sz_tp_gather(own, NULL, group, base->shards, 1);
    MODEL_RELEASE(x, own);
    return logits;
}

static int logprob(sz_model *base, sz_tensor *hidden, sz_tensor *ids, double temperature,
                   sz_tensor **result, sz_tensor **entropy)
{
    qwen_model *m = qwen_of(base);
    sz_tensor *w = head_weight(m);
    if (base->shards <= 1) return sz_logprob(hidden, w, ids, 1 / temperature, result, entropy);

    /* Each shard's words give three numbers for each id, from which all compute the result. */
    const int group = sz_comm_handle(base->group);
    sz_tensor *x = sz_tp_copy(hidden, group);
    sz_tensor *own =
        x ? sz_logprob_part(x, w, ids, qwen_first_word(m), m->config.vocab, 1 / temperature) : NULL;
    sz_tensor *parts = sz_tp_gather(own, NULL, group, base->shards, 0);
    int rc = sz_logprob_join(parts, result, entropy);
    MODEL_RELEASE(x, own, parts);
    return rc;
}

/* ---- the model ---- */
static void release(sz_model *base)
{
    qwen_model *m = qwen_of(base);
    for (int i = 0; m->blocks && i < m->config.v_depth; i++) {
        qwen_block *b = &m->blocks[i];
        model_release_packed(&b->qkv_packed);
        model_release_packed(&b->proj_packed);
        model_release_packed(&b->gate_up_packed);
        model_release_packed(&b->down_packed);
    }
    model_release_packed(&m->merge0_packed);
    model_release_packed(&m->merge2_packed);
    for (int i = 0; m->layers && i < m->config.layers; i++) {
        qwen_layer *l = &m->layers[i];
        model_release_packed(&l->qkv_packed);
        model_release_packed(&l->o_packed);
        model_release_packed(&l->gate_up_packed);
        model_release_packed(&l->down_packed);
    }
    model_release_packed(&m->head);
    free(m->blocks);
    free(m->layers);
}

static const model_family family = {
    .name = "Qwen-VL",
    .release = release,
    .vision = qwen_vision,
    .hidden = qwen_hidden,
    .logits = qwen_logits,
    .logprob = logprob,
    .cache = qwen_cache,
    .decode = qwen_decode,
    .quantize = quantize,
    .release_packed_head = release_packed_head,
};

sz_model *sz_qwen_new(const sz_qwen_config *config)
{
    if (config_check(config) != 0) return NULL;
    qwen_model *m = calloc(1, sizeof *m);
    if (!m) return sz_null("out of memory");
    m->base.family = &family;
    m->config = *config;
    m->share = share_of(config);
    m->base.shards = config->shards;
    m->base.shard = config->shard;
    m->blocks = calloc((size_t)config->v_depth, sizeof *m->blocks);
    m->layers = calloc((size_t)config->layers, sizeof *m->layers);
    if (m->blocks && m->layers) {
        list_vision(m);
        list_text(m);
    }
    if (!m->blocks || !m->layers || m->base.weights.failed) {
        sz_model_free(&m->base);
        return sz_null("out of memory");
    }
    return &m->base;
}
