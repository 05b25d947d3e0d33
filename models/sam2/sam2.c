/* sam2.c - SAM2 on single images: config checks and the list of weights.
 * The forward passes are in sam2_encoder.c and sam2_decoder.c; Lua reads files and JSON. Names are
 * transformers'; shapes and pitfalls: models/README.md. Leaves out: video (memory attention, memory
 * encoder, object pointers). */
#include "sam2_internal.h"
#include <stdio.h>
#include <stdlib.h>

/* ---- config ---- */
/* Is every size positive? The message has the name that config.json gives the size. */
static int sizes_check(const sz_sam2_config *c)
{
    int background = c->background[0] < c->background[1] ? c->background[0] : c->background[1];
    const struct {
        const char *name;
        int value;
    } positive[] = {
        { "image_size", c->image_size },
        { "patch_kernel_size", c->patch_kernel },
        { "patch_stride", c->patch_stride },
        { "window_positional_embedding_background_size", background },
        { "prompt_encoder_config.hidden_size", c->hidden },
        { "prompt_encoder_config.patch_size", c->prompt_patch },
        { "prompt_encoder_config.mask_input_channels", c->mask_channels },
        { "mask_decoder_config.num_hidden_layers", c->layers },
        { "mask_decoder_config.num_attention_heads", c->decoder_heads },
        { "mask_decoder_config.attention_downsample_rate", c->downsample },
        { "mask_decoder_config.mlp_dim", c->mlp },
        { "mask_decoder_config.iou_head_hidden_dim", c->iou_hidden },
    };
    for (size_t i = 0; i < sizeof positive / sizeof *positive; i++)
        if (positive[i].value <= 0)
            return sz_fail("config: %s is %d", positive[i].name, positive[i].value);
    if (c->patch_padding < 0) return sz_fail("config: patch_padding is %d", c->patch_padding);
    if (c->masks < 1 || c->masks > SZ_SAM2_MAX_MASKS)
        return sz_fail("config: num_multimask_outputs is %d, from 0 to %d are supported",
                       c->masks - 1, SZ_SAM2_MAX_MASKS - 1);
    return 0;
}

static int stages_check(const sz_sam2_config *c)
{
    int total = 0;
    for (int s = 0; s < SZ_SAM2_STAGES; s++) {
        if (c->width[s] <= 0 || c->heads[s] <= 0 || c->width[s] % c->heads[s])
            return sz_fail("config: embed_dim_per_stage %d over num_attention_heads_per_stage %d "
                           "in stage %d",
                           c->width[s], c->heads[s], s + 1);
        if (c->blocks[s] <= 0 || c->windows[s] <= 0)
            return sz_fail("config: blocks_per_stage %d, window_size_per_stage %d in stage %d",
                           c->blocks[s], c->windows[s], s + 1);
        total += c->blocks[s];
    }
    if (total > SZ_SAM2_MAX_BLOCKS)
        return sz_fail("config: %d blocks are over %d", total, SZ_SAM2_MAX_BLOCKS);
    return 0;
}

/* Do the maps of all stages divide as the network needs it? */
static int maps_check(const sz_sam2_config *c)
{
    int padded = c->image_size + 2 * c->patch_padding;
    int side = (padded - c->patch_kernel) / c->patch_stride + 1;
    if (padded < c->patch_kernel || side * 4 != c->image_size || side % 8)
        return sz_fail("config: image_size %d gives %d patches a side; a quarter of it, and a "
                       "multiple of 8, is needed",
                       c->image_size, side);
    if (c->prompt_patch * side != c->image_size * 4)
        return sz_fail("config: prompt_encoder_config.patch_size %d does not fit the embedding's "
                       "%d cells a side",
                       c->prompt_patch, side / 4);
    /* There must be as many pooled windows as windows. */
    for (int s = 1; s < SZ_SAM2_STAGES; s++) {
        int in = side >> (s - 1);
        int out = in / 2;
        int w = c->windows[s - 1];
        int half = w / 2;
        if (half < 1 || (in + w - 1) / w != (out + half - 1) / half)
            return sz_fail("config: windows of %d do not pool from %d to %d cells a side", w, in,
                           out);
    }
    return 0;
}

static int decoder_check(const sz_sam2_config *c)
{
    int d = c->hidden;
    int inner = d / c->downsample;
    if (d % 16 || d % c->decoder_heads || d % c->downsample || inner % c->decoder_heads)
        return sz_fail("config: hidden_size %d does not fit num_attention_heads %d and "
                       "attention_downsample_rate %d",
                       d, c->decoder_heads, c->downsample);
    if (c->mask_channels % 4)
        return sz_fail("config: mask_input_channels %d is not a multiple of 4", c->mask_channels);
    return 0;
}

static int config_check(const sz_sam2_config *c)
{
    if (sizes_check(c) != 0 || stages_check(c) != 0) return -1;
    if (maps_check(c) != 0) return -1;
    return decoder_check(c);
}

/* ---- the list of weights ---- */
static void add_norm(sam2_model *m, sam2_pair *p, int64_t width, const char *name)
{
    model_add(&m->base, &p->w, MODEL_SHAPE(width), "%s.weight", name);
    model_add(&m->base, &p->b, MODEL_SHAPE(width), "%s.bias", name);
}

static void add_conv(sam2_model *m, sam2_pair *p, int64_t first, int64_t second, int64_t kernel,
                     int64_t bias, const char *name)
{
    model_add(&m->base, &p->w, MODEL_SHAPE(first, second, kernel, kernel), "%s.weight", name);
    model_add(&m->base, &p->b, MODEL_SHAPE(bias), "%s.bias", name);
}

static void add_attention(sam2_model *m, sam2_attention *a, int64_t inner, const char *name)
{
    int64_t d = m->config.hidden;
    model_add_linear(&m->base, &a->q, inner, d, true, "%s.q_proj", name);
    model_add_linear(&m->base, &a->k, inner, d, true, "%s.k_proj", name);
    model_add_linear(&m->base, &a->v, inner, d, true, "%s.v_proj", name);
    model_add_linear(&m->base, &a->out, d, inner, true, "%s.o_proj", name);
}

static void add_head(sam2_model *m, sam2_head *h, int64_t hidden, int64_t out, const char *name)
{
    model_add_linear(&m->base, &h->in, hidden, m->config.hidden, true, "%s.proj_in", name);
    model_add_linear(&m->base, &h->mid, hidden, hidden, true, "%s.layers.0", name);
    model_add_linear(&m->base, &h->out, out, hidden, true, "%s.proj_out", name);
}

/* Block i, the k-th of stage s. */
static void list_block(sam2_model *m, int i, int s, int k)
{
    const sz_sam2_config *c = &m->config;
    sz_model *base = &m->base;
    sam2_block *b = &m->blocks[i];
    const bool first = k == 0 && s > 0;
    int64_t out = c->width[s];
    int64_t in = first ? c->width[s - 1] : out;
    int64_t inner = (int64_t)((double)out * c->mlp_ratio);

    /* A stage's first block still has the windows of the stage before. */
    b->stage = s;
    b->pool = first;
    b->window = c->whole[i] ? 0 : c->windows[first ? s - 1 : s];

    char p[64];
    char name[80];
    snprintf(p, sizeof p, "vision_encoder.backbone.blocks.%d", i);
    snprintf(name, sizeof name, "%s.layer_norm1", p);
    add_norm(m, &b->norm1, in, name);
    model_add_linear(base, &b->qkv, 3 * out, in, true, "%s.attn.qkv", p);
    model_add_linear(base, &b->out, out, out, true, "%s.attn.proj", p);
    snprintf(name, sizeof name, "%s.layer_norm2", p);
    add_norm(m, &b->norm2, out, name);
    model_add_linear(base, &b->up, inner, out, true, "%s.mlp.proj_in", p);
    model_add_linear(base, &b->down, out, inner, true, "%s.mlp.proj_out", p);
    if (in != out) model_add_linear(base, &b->shortcut, out, in, true, "%s.proj", p);
}

static void list_encoder(sam2_model *m)
{
    const sz_sam2_config *c = &m->config;
    sz_model *base = &m->base;
    int64_t width = c->width[0];
    int64_t d = c->hidden;

    base->weights.vision = true;
    model_add(base, &m->position, MODEL_SHAPE(1, width, c->background[0], c->background[1]),
              "vision_encoder.backbone.pos_embed");
    model_add(base, &m->position_window, MODEL_SHAPE(1, width, 8, 8),
              "vision_encoder.backbone.pos_embed_window");
    add_conv(m, &m->patch, width, 3, c->patch_kernel, width,
             "vision_encoder.backbone.patch_embed.projection");
    int i = 0;
    for (int s = 0; s < SZ_SAM2_STAGES; s++)
        for (int k = 0; k < c->blocks[s]; k++) list_block(m, i++, s, k);
    for (int s = 0; s < SZ_SAM2_STAGES; s++) {
        char name[48];
        snprintf(name, sizeof name, "vision_encoder.neck.convs.%d", s);
        add_conv(m, &m->neck[s], d, c->width[SZ_SAM2_STAGES - 1 - s], 1, d, name);
    }
    base->weights.vision = false;
    model_add(base, &m->no_memory, MODEL_SHAPE(1, 1, d), "no_memory_embedding");
}

static void list_prompt_encoder(sam2_model *m)
{
    sz_model *base = &m->base;
    int64_t d = m->config.hidden;
    int64_t mask = m->config.mask_channels;
    model_add(base, &m->frequencies, MODEL_SHAPE(2, d / 2),
              "shared_image_embedding.positional_embedding");
    model_add(base, &m->point_embed, MODEL_SHAPE(4, d), "prompt_encoder.point_embed.weight");
    model_add(base, &m->not_a_point, MODEL_SHAPE(1, d), "prompt_encoder.not_a_point_embed.weight");
    model_add(base, &m->no_mask, MODEL_SHAPE(1, d), "prompt_encoder.no_mask_embed.weight");
    add_conv(m, &m->mask_conv1, mask / 4, 1, 2, mask / 4, "prompt_encoder.mask_embed.conv1");
    add_norm(m, &m->mask_norm1, mask / 4, "prompt_encoder.mask_embed.layer_norm1");
    add_conv(m, &m->mask_conv2, mask, mask / 4, 2, mask, "prompt_encoder.mask_embed.conv2");
    add_norm(m, &m->mask_norm2, mask, "prompt_encoder.mask_embed.layer_norm2");
    add_conv(m, &m->mask_conv3, d, mask, 1, d, "prompt_encoder.mask_embed.conv3");
}

static void list_layer(sam2_model *m, int i)
{
    int64_t d = m->config.hidden;
    int64_t inner = d / m->config.downsample;
    sam2_layer *l = &m->layers[i];
    char p[64];
    char name[96];
    snprintf(p, sizeof p, "mask_decoder.transformer.layers.%d", i);
    snprintf(name, sizeof name, "%s.self_attn", p);
    add_attention(m, &l->self, d, name);
    snprintf(name, sizeof name, "%s.cross_attn_token_to_image", p);
    add_attention(m, &l->to_image, inner, name);
    snprintf(name, sizeof name, "%s.cross_attn_image_to_token", p);
    add_attention(m, &l->to_tokens, inner, name);
    for (int k = 0; k < 4; k++) {
        snprintf(name, sizeof name, "%s.layer_norm%d", p, k + 1);
        add_norm(m, &l->norm[k], d, name);
    }
    model_add_linear(&m->base, &l->up, m->config.mlp, d, true, "%s.mlp.proj_in", p);
    model_add_linear(&m->base, &l->down, d, m->config.mlp, true, "%s.mlp.proj_out", p);
}

static void list_decoder(sam2_model *m)
{
    const sz_sam2_config *c = &m->config;
    sz_model *base = &m->base;
    int64_t d = c->hidden;
    int64_t inner = d / c->downsample;
    model_add(base, &m->iou_token, MODEL_SHAPE(1, d), "mask_decoder.iou_token.weight");
    model_add(base, &m->mask_tokens, MODEL_SHAPE(c->masks, d), "mask_decoder.mask_tokens.weight");
    model_add(base, &m->object_token, MODEL_SHAPE(1, d), "mask_decoder.obj_score_token.weight");
    for (int i = 0; i < c->layers; i++) list_layer(m, i);
    add_attention(m, &m->final, inner, "mask_decoder.transformer.final_attn_token_to_image");
    add_norm(m, &m->final_norm, d, "mask_decoder.transformer.layer_norm_final_attn");

    add_conv(m, &m->upscale1, d, d / 4, 2, d / 4, "mask_decoder.upscale_conv1");
    add_norm(m, &m->upscale_norm, d / 4, "mask_decoder.upscale_layer_norm");
    add_conv(m, &m->upscale2, d / 4, d / 8, 2, d / 8, "mask_decoder.upscale_conv2");
    add_conv(m, &m->high0, d / 8, d, 1, d / 8, "mask_decoder.conv_s0");
    add_conv(m, &m->high1, d / 4, d, 1, d / 4, "mask_decoder.conv_s1");

    for (int i = 0; i < c->masks; i++) {
        char name[64];
        snprintf(name, sizeof name, "mask_decoder.output_hypernetworks_mlps.%d", i);
        add_head(m, &m->hyper[i], d, d / 8, name);
    }
    add_head(m, &m->iou_head, c->iou_hidden, c->masks, "mask_decoder.iou_prediction_head");
    add_head(m, &m->object_head, d, 1, "mask_decoder.pred_obj_score_head");
}

/* ---- the model ---- */
/* Drops what was computed from the frequencies; it is computed again on its next use. */
static void weight_changed(sz_model *base, sz_tensor *const *slot)
{
    sam2_model *m = (sam2_model *)base;
    if (slot != &m->frequencies) return;
    model_move(&m->frequencies_copy, NULL);
    model_move(&m->grid, NULL);
}

static void release(sz_model *base)
{
    sam2_model *m = (sam2_model *)base;
    MODEL_RELEASE(m->frequencies_copy, m->grid);
    free(m->blocks);
    free(m->layers);
}

static const model_family family = {
    .name = "SAM2",
    .release = release,
    .weight_changed = weight_changed,
};

sam2_model *sam2_of(sz_model *m)
{
    if (m->family != &family) return sz_null("sam2: this model is a %s", m->family->name);
    return model_check(m) == 0 ? (sam2_model *)m : NULL;
}

sz_model *sz_sam2_new(const sz_sam2_config *config)
{
    if (config_check(config) != 0) return NULL;
    sam2_model *m = calloc(1, sizeof *m);
    if (!m) return sz_null("out of memory");
    m->base.family = &family;
    m->config = *config;
    for (int s = 0; s < SZ_SAM2_STAGES; s++) m->block_count += config->blocks[s];
    m->blocks = calloc((size_t)m->block_count, sizeof *m->blocks);
    m->layers = calloc((size_t)config->layers, sizeof *m->layers);
    if (m->blocks && m->layers) {
        list_encoder(m);
        list_prompt_encoder(m);
        list_decoder(m);
    }
    if (!m->blocks || !m->layers || m->base.weights.failed) {
        sz_model_free(&m->base);
        return sz_null("out of memory");
    }
    for (int i = 0; i < m->block_count; i++)
        if (m->blocks[i].pool && !m->blocks[i].window) {
            sz_model_free(&m->base);
            return sz_null("config: block %d of global_attention_blocks is the first of a stage, "
                           "which needs windows",
                           i);
        }
    return &m->base;
}
