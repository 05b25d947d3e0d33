/* qwen_vl.c - Qwen2-VL and Qwen2.5-VL: config checks, the table of weights, linear layers and their adapters, logits and log-probabilities.
 * The forward passes are in qwen_vision.c and qwen_text.c; reading files and JSON is Lua's. Shapes: models/README.md. */
#include "qwen.h"
#include <stdio.h>
#include <stdlib.h>

static int config_check(const sz_qwen_config *c)
{
    const bool qwen2 = c->family == SZ_QWEN2_VL;        /* the tower's width, and the one it gives, have other names there */
    const char *width = qwen2 ? "vision_config.embed_dim" : "vision_config.hidden_size";
    const char *out = qwen2 ? "vision_config.hidden_size" : "vision_config.out_hidden_size";
    const struct { const char *name; int value; } positive[] = {
        { "hidden_size", c->hidden }, { "intermediate_size", c->intermediate }, { "num_hidden_layers", c->layers },
        { "num_attention_heads", c->heads }, { "num_key_value_heads", c->kv_heads }, { "head_dim", c->head_dim },
        { "vocab_size", c->vocab }, { "vision_config.depth", c->v_depth }, { width, c->v_hidden },
        { qwen2 ? "vision_config.mlp_ratio * embed_dim" : "vision_config.intermediate_size", c->v_intermediate }, { "vision_config.num_heads", c->v_heads },
        { "vision_config.in_channels", c->v_channels }, { "vision_config.patch_size", c->v_patch },
        { "vision_config.spatial_merge_size", c->v_merge }, { "vision_config.temporal_patch_size", c->v_temporal },
        { "vision_config.window_size", qwen2 ? 1 : c->v_window }, { out, c->v_out },
    };
    for (size_t i = 0; i < sizeof positive / sizeof *positive; i++)
        if (positive[i].value <= 0) return sz_fail("config: %s is %d", positive[i].name, positive[i].value);
    if (c->heads % c->kv_heads) return sz_fail("config: num_key_value_heads %d does not divide num_attention_heads %d", c->kv_heads, c->heads);
    if (c->head_dim % 2) return sz_fail("config: head_dim %d is odd", c->head_dim);
    int pairs = c->mrope_section[0] + c->mrope_section[1] + c->mrope_section[2];
    if (pairs != c->head_dim / 2) return sz_fail("config: mrope_section adds up to %d, head_dim / 2 is %d", pairs, c->head_dim / 2);
    if (c->v_hidden % c->v_heads || c->v_hidden / c->v_heads % 4)
        return sz_fail("config: %s %d over %d heads is not a multiple of 4", width, c->v_hidden, c->v_heads);
    if (c->v_out != c->hidden) return sz_fail("config: %s %d differs from hidden_size %d", out, c->v_out, c->hidden);
    if (!qwen2 && c->v_window / c->v_merge / c->v_patch < 1) return sz_fail("config: vision_config.window_size %d is smaller than one merged patch", c->v_window);
    if (c->v_depth > SZ_QWEN_MAX_DEPTH) return sz_fail("config: vision_config.depth %d is over %d", c->v_depth, SZ_QWEN_MAX_DEPTH);
    return 0;
}

static void want(sz_qwen *m, sz_tensor **slot, int ndim, const int64_t *shape, const char *name)
{
    qwen_weight *w = &m->weights[m->weight_count++];
    snprintf(w->name, sizeof w->name, "%s", name);
    w->ndim = ndim;
    memcpy(w->shape, shape, sizeof *shape * (size_t)ndim);
    w->slot = slot;
    w->proj = NULL;
}

static void want_indexed(sz_qwen *m, sz_tensor **slot, const char *prefix, int i, const char *suffix, int64_t rows, int64_t cols)
{
    char name[80];
    snprintf(name, sizeof name, "%s.%d.%s", prefix, i, suffix);
    want(m, slot, cols ? 2 : 1, (int64_t[]){ rows, cols }, name);
}

/* name.weight [rows, cols] and, where asked for, name.bias. */
static void want_linear(sz_qwen *m, qwen_proj *p, const char *name, int64_t rows, int64_t cols, bool bias)
{
    char full[80];
    snprintf(full, sizeof full, "%s.weight", name);
    want(m, &p->w, 2, (int64_t[]){ rows, cols }, full);
    m->weights[m->weight_count - 1].proj = p;
    p->rows = rows;
    if (!bias) return;
    snprintf(full, sizeof full, "%s.bias", name);
    want(m, &p->b, 1, &rows, full);
}

static void want_linear_indexed(sz_qwen *m, qwen_proj *p, const char *prefix, int i, const char *suffix, int64_t rows, int64_t cols, bool bias)
{
    char name[70];
    snprintf(name, sizeof name, "%s.%d.%s", prefix, i, suffix);
    want_linear(m, p, name, rows, cols, bias);
}

sz_qwen *sz_qwen_new(const sz_qwen_config *config)
{
    if (config_check(config) != 0) return NULL;
    const sz_qwen_config *c = config;
    sz_qwen *m = calloc(1, sizeof *m);
    if (!m) return sz_null("out of memory");
    m->config = *c;
    m->blocks = calloc((size_t)c->v_depth, sizeof *m->blocks);
    m->layers = calloc((size_t)c->layers, sizeof *m->layers);
    m->weights = calloc((size_t)(10 + 12 * (c->v_depth + c->layers)), sizeof *m->weights);
    if (!m->blocks || !m->layers || !m->weights) {
        sz_qwen_free(m);
        return sz_null("out of memory");
    }

    const bool qwen2 = c->family == SZ_QWEN2_VL;
    int64_t vh = c->v_hidden, vi = c->v_intermediate, merged = vh * c->v_merge * c->v_merge;
    want(m, &m->patch_embed, 5, (int64_t[]){ vh, c->v_channels, c->v_temporal, c->v_patch, c->v_patch }, "visual.patch_embed.proj.weight");
    for (int i = 0; i < c->v_depth; i++) {
        qwen_block *b = &m->blocks[i];
        const char *p = "visual.blocks";
        want_indexed(m, &b->norm1, p, i, "norm1.weight", vh, 0);
        if (qwen2) want_indexed(m, &b->norm1_b, p, i, "norm1.bias", vh, 0);
        want_indexed(m, &b->norm2, p, i, "norm2.weight", vh, 0);
        if (qwen2) want_indexed(m, &b->norm2_b, p, i, "norm2.bias", vh, 0);
        want_linear_indexed(m, &b->qkv, p, i, "attn.qkv", 3 * vh, vh, true);
        want_linear_indexed(m, &b->proj, p, i, "attn.proj", vh, vh, true);
        if (!qwen2) want_linear_indexed(m, &b->gate, p, i, "mlp.gate_proj", vi, vh, true);
        want_linear_indexed(m, &b->up, p, i, qwen2 ? "mlp.fc1" : "mlp.up_proj", vi, vh, true);
        want_linear_indexed(m, &b->down, p, i, qwen2 ? "mlp.fc2" : "mlp.down_proj", vh, vi, true);
    }
    want(m, &m->ln_q, 1, (int64_t[]){ vh }, "visual.merger.ln_q.weight");
    if (qwen2) want(m, &m->ln_q_b, 1, (int64_t[]){ vh }, "visual.merger.ln_q.bias");
    want_linear(m, &m->merge0, "visual.merger.mlp.0", merged, merged, true);
    want_linear(m, &m->merge2, "visual.merger.mlp.2", c->v_out, merged, true);

    int64_t h = c->hidden, inter = c->intermediate, q = (int64_t)c->heads * c->head_dim, kv = (int64_t)c->kv_heads * c->head_dim;
    want(m, &m->embed, 2, (int64_t[]){ c->vocab, h }, "model.embed_tokens.weight");
    for (int i = 0; i < c->layers; i++) {
        qwen_layer *l = &m->layers[i];
        const char *p = "model.layers";
        want_indexed(m, &l->norm1, p, i, "input_layernorm.weight", h, 0);
        want_linear_indexed(m, &l->q, p, i, "self_attn.q_proj", q, h, true);
        want_linear_indexed(m, &l->k, p, i, "self_attn.k_proj", kv, h, true);
        want_linear_indexed(m, &l->v, p, i, "self_attn.v_proj", kv, h, true);
        want_linear_indexed(m, &l->o, p, i, "self_attn.o_proj", h, q, false);
        want_indexed(m, &l->norm2, p, i, "post_attention_layernorm.weight", h, 0);
        want_linear_indexed(m, &l->gate, p, i, "mlp.gate_proj", inter, h, false);
        want_linear_indexed(m, &l->up, p, i, "mlp.up_proj", inter, h, false);
        want_linear_indexed(m, &l->down, p, i, "mlp.down_proj", h, inter, false);
    }
    want(m, &m->norm, 1, (int64_t[]){ h }, "model.norm.weight");
    if (!c->tied) want(m, &m->lm_head, 2, (int64_t[]){ c->vocab, h }, "lm_head.weight");
    return m;
}

static void release_lora(qwen_proj *p)
{
    sz_tensor_release(p->lora_a);
    sz_tensor_release(p->lora_b);
    p->lora_a = p->lora_b = NULL;
}

static void release_int8(qwen_int8 *p)
{
    sz_tensor_release(p->q);
    sz_tensor_release(p->scale);
    sz_tensor_release(p->bias);
}

void sz_qwen_free(sz_qwen *m)
{
    if (!m) return;
    for (int i = 0; i < m->weight_count; i++) {
        sz_tensor_release(*m->weights[i].slot);
        if (m->weights[i].proj) release_lora(m->weights[i].proj);
    }
    for (int i = 0; m->layers && i < m->config.layers; i++) {
        qwen_layer *l = &m->layers[i];
        release_int8(&l->qkv8);
        release_int8(&l->o8);
        release_int8(&l->gate_up8);
        release_int8(&l->down8);
    }
    release_int8(&m->head);
    free(m->blocks);
    free(m->layers);
    free(m->weights);
    free(m);
}

int sz_qwen_weight_count(const sz_qwen *m) { return m->weight_count; }
static bool is_weight(const sz_qwen *m, int i) { return i >= 0 && i < m->weight_count; }
const char *sz_qwen_weight_name(const sz_qwen *m, int i) { return is_weight(m, i) ? m->weights[i].name : sz_null("there is no weight %d", i); }
sz_tensor *sz_qwen_weight(sz_qwen *m, int i)
{
    if (!is_weight(m, i)) return sz_null("there is no weight %d", i);
    return *m->weights[i].slot ? *m->weights[i].slot : sz_null(m->quantized ? "%s is held in 8 bits only" : "%s is not set", m->weights[i].name);
}

int sz_qwen_weight_shape(const sz_qwen *m, int i, int64_t shape[6])
{
    if (!is_weight(m, i)) return sz_fail("there is no weight %d", i);
    memcpy(shape, m->weights[i].shape, sizeof m->weights[i].shape);
    return m->weights[i].ndim;
}

int sz_qwen_weight_set(sz_qwen *m, int i, sz_tensor *t)
{
    if (!is_weight(m, i)) return sz_fail("there is no weight %d", i);
    const qwen_weight *w = &m->weights[i];
    if (t->ndim != w->ndim || memcmp(t->shape, w->shape, sizeof *w->shape * (size_t)w->ndim) != 0)
        return sz_fail("%s has another shape than the config asks for", w->name);
    sz_tensor_retain(t);
    sz_tensor_release(*w->slot);
    *w->slot = t;
    return 0;
}

int qwen_check(const sz_qwen *m)
{
    for (int i = 0; i < m->weight_count && !m->quantized; i++)
        if (!*m->weights[i].slot) return sz_fail("the model has no weight %s", m->weights[i].name);
    return 0;
}

/* ---- linear layers and their adapters ---- */
int sz_qwen_is_linear(const sz_qwen *m, int i) { return is_weight(m, i) && m->weights[i].proj; }

int sz_qwen_lora_set(sz_qwen *m, int i, sz_tensor *a, sz_tensor *b, double scale)
{
    if (!sz_qwen_is_linear(m, i)) return sz_fail("%s is not a linear layer's weight: it takes no adapter", is_weight(m, i) ? m->weights[i].name : "this");
    const qwen_weight *w = &m->weights[i];
    qwen_proj *p = w->proj;
    if (!a != !b) return sz_fail("%s: an adapter has two parts", w->name);
    if (a && (a->dtype != SZ_F32 || b->dtype != SZ_F32 || a->ndim != 2 || b->ndim != 2 || a->shape[1] != w->shape[1] || b->shape[0] != w->shape[0]
              || a->shape[0] != b->shape[1] || a->shape[0] < 1))
        return sz_fail("%s: its adapter must be f32 [rank, %lld] and [%lld, rank]", w->name, (long long)w->shape[1], (long long)w->shape[0]);
    sz_tensor_retain(a);
    sz_tensor_retain(b);
    release_lora(p);
    p->lora_a = a;
    p->lora_b = b;
    p->lora_scale = scale;
    return 0;
}

int sz_qwen_lora_enable(sz_qwen *m, int on)
{
    int before = !m->lora_off;
    m->lora_off = !on;
    return before;
}

/* y with the adapter's product added to p's columns; takes over y. The adapter is f32 and computes in y's dtype. */
static sz_tensor *adapt(sz_tensor *y, sz_tensor *x, const qwen_proj *p, int64_t col)
{
    const bool same = x->dtype == SZ_F32;
    sz_tensor *a = same ? sz_tensor_retain(p->lora_a) : sz_cast(p->lora_a, x->dtype), *b = same ? sz_tensor_retain(p->lora_b) : sz_cast(p->lora_b, x->dtype);
    sz_tensor *low = sz_linear(x, a, NULL), *scaled = sz_affine(low, p->lora_scale, 0);
    sz_tensor *sum = scaled ? sz_linear_add(y, scaled, b, col) : NULL;
    sz_tensor *made[] = { a, b, low, scaled, y };
    for (size_t i = 0; i < sizeof made / sizeof *made; i++) sz_tensor_release(made[i]);
    return sum;
}

sz_tensor *qwen_linear(const sz_qwen *m, sz_tensor *x, const qwen_int8 *packed, const qwen_proj *const p[4])
{
    if (!x) return NULL;
    sz_tensor *w[3] = { 0 }, *b[3] = { 0 };
    for (int i = 0; p[i]; i++) w[i] = p[i]->w, b[i] = p[i]->b;
    sz_tensor *y = packed && packed->q ? sz_linear_int8(x, packed->q, packed->scale, packed->bias, packed->rows, false) : sz_linear_cat(x, w, b);
    int64_t col = 0;
    for (int i = 0; y && p[i]; col += p[i++]->rows)
        if (p[i]->lora_a && !m->lora_off) y = adapt(y, x, p[i], col);
    return y;
}

/* ---- 8 bits ---- */
static int quantize(qwen_int8 *q, qwen_proj *const p[4])
{
    sz_tensor *w[3] = { 0 };
    for (int i = 0; p[i]; i++) w[i] = p[i]->w, q->rows += p[i]->rows;
    if (sz_quantize_int8(w, &q->q, &q->scale) != 0) return -1;
    if (!p[0]->b) return 0;
    if (!(q->bias = sz_new1(p[0]->b->dtype, q->rows, p[0]->b->device))) return -1;
    size_t at = 0;
    for (int i = 0; p[i]; at += sz_bytes(p[i++]->b))
        if (sz_bytes_copy(q->bias->device, (char *)q->bias->data + at, p[i]->b->device, p[i]->b->data, sz_bytes(p[i]->b)) != 0) return -1;
    return 0;
}

static void let_go(qwen_proj *p)
{
    sz_tensor_unload(p->w);         /* others in the file keep it mapped: the 3B in 8 bits would have its bf16 resident beside them */
    sz_tensor_release(p->w);
    sz_tensor_release(p->b);
    p->w = p->b = NULL;
}

int sz_qwen_quantize(sz_qwen *m)
{
    if (qwen_check(m) != 0) return -1;
    if (m->quantized) return sz_fail("the model is in 8 bits already");
    if (sz_scope_depth() > 0) return sz_fail("a model is not quantised inside a step");
    qwen_proj logits = { .w = m->config.tied ? m->embed : m->lm_head, .rows = m->config.vocab };
    int rc = quantize(&m->head, (qwen_proj *[4]){ &logits });
    for (int i = 0; rc == 0 && i < m->config.layers; i++) {
        qwen_layer *l = &m->layers[i];
        rc = quantize(&l->qkv8, (qwen_proj *[4]){ &l->q, &l->k, &l->v });
        if (rc == 0) rc = quantize(&l->o8, (qwen_proj *[4]){ &l->o });
        if (rc == 0) rc = quantize(&l->gate_up8, (qwen_proj *[4]){ &l->gate, &l->up });
        if (rc == 0) rc = quantize(&l->down8, (qwen_proj *[4]){ &l->down });
        if (rc != 0) return rc;
        m->quantized = true;
        qwen_proj *gone[] = { &l->q, &l->k, &l->v, &l->o, &l->gate, &l->up, &l->down };
        for (size_t k = 0; k < sizeof gone / sizeof *gone; k++) let_go(gone[k]);
    }
    return rc;
}

static sz_tensor *head(const sz_qwen *m) { return m->config.tied ? m->embed : m->lm_head; }

sz_tensor *sz_qwen_logits(sz_qwen *m, sz_tensor *hidden)
{
    if (!hidden) return NULL;
    /* Unrounded, as the log-probabilities of training are: in bf16 the sampler would otherwise be off by a percent. */
    if (m->head.q) return sz_linear_int8(hidden, m->head.q, m->head.scale, NULL, m->head.rows, true);
    if (!sz_grad_enabled()) return sz_linear_f32_out(hidden, head(m));
    sz_tensor *logits = sz_linear(hidden, head(m), NULL);
    if (!logits || logits->dtype == SZ_F32) return logits;
    sz_tensor *wide = sz_cast(logits, SZ_F32);
    sz_tensor_release(logits);
    return wide;
}

int sz_qwen_logprob(sz_qwen *m, sz_tensor *hidden, sz_tensor *ids, double temperature, sz_tensor **logprob, sz_tensor **entropy)
{
    if (!(temperature > 0)) return sz_fail("logprob: temperature is %g", temperature);
    return sz_logprob(hidden, head(m), ids, 1 / temperature, logprob, entropy);
}
