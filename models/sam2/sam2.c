/* sam2.c - SAM2 on single pictures: config checks and the table of weights.
 * The forward passes are in sam2_encoder.c and sam2_decoder.c; reading files and JSON is Lua's. Names are transformers';
 * shapes and pitfalls: models/README.md. Leaves out: video (memory attention, memory encoder, object pointers). */
#include "sam2.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

static int config_check(const sz_sam2_config *c)
{
    const struct { const char *name; int value; } positive[] = {
        { "image_size", c->image_size }, { "patch_kernel_size", c->patch_kernel }, { "patch_stride", c->patch_stride },
        { "window_positional_embedding_background_size", c->background[0] < c->background[1] ? c->background[0] : c->background[1] },
        { "prompt_encoder_config.hidden_size", c->hidden }, { "prompt_encoder_config.patch_size", c->prompt_patch },
        { "prompt_encoder_config.mask_input_channels", c->mask_channels }, { "mask_decoder_config.num_hidden_layers", c->layers },
        { "mask_decoder_config.num_attention_heads", c->decoder_heads }, { "mask_decoder_config.attention_downsample_rate", c->downsample },
        { "mask_decoder_config.mlp_dim", c->mlp }, { "mask_decoder_config.iou_head_hidden_dim", c->iou_hidden },
    };
    for (size_t i = 0; i < sizeof positive / sizeof *positive; i++)
        if (positive[i].value <= 0) return sz_fail("config: %s is %d", positive[i].name, positive[i].value);
    if (c->patch_padding < 0) return sz_fail("config: patch_padding is %d", c->patch_padding);
    if (c->masks < 1 || c->masks > SZ_SAM2_MAX_MASKS) return sz_fail("config: num_multimask_outputs is %d, from 0 to %d are supported", c->masks - 1, SZ_SAM2_MAX_MASKS - 1);
    int total = 0;
    for (int s = 0; s < SZ_SAM2_STAGES; s++) {
        if (c->width[s] <= 0 || c->heads[s] <= 0 || c->width[s] % c->heads[s])
            return sz_fail("config: embed_dim_per_stage %d over num_attention_heads_per_stage %d in stage %d", c->width[s], c->heads[s], s + 1);
        if (c->blocks[s] <= 0 || c->windows[s] <= 0) return sz_fail("config: blocks_per_stage %d, window_size_per_stage %d in stage %d", c->blocks[s], c->windows[s], s + 1);
        total += c->blocks[s];
    }
    if (total > SZ_SAM2_MAX_BLOCKS) return sz_fail("config: %d blocks are over %d", total, SZ_SAM2_MAX_BLOCKS);
    int side = (c->image_size + 2 * c->patch_padding - c->patch_kernel) / c->patch_stride + 1;
    if (c->image_size + 2 * c->patch_padding < c->patch_kernel || side * 4 != c->image_size || side % 8)
        return sz_fail("config: image_size %d gives %d patches a side; a quarter of it, and a multiple of 8, is needed", c->image_size, side);
    if (c->prompt_patch * side != c->image_size * 4) return sz_fail("config: prompt_encoder_config.patch_size %d does not fit the embedding's %d cells a side", c->prompt_patch, side / 4);
    for (int s = 1; s < SZ_SAM2_STAGES; s++) {         /* the pooled windows must be as many as the windows */
        int in = side >> (s - 1), out = in / 2, w = c->windows[s - 1], half = w / 2;
        if (half < 1 || (in + w - 1) / w != (out + half - 1) / half)
            return sz_fail("config: windows of %d do not pool from %d to %d cells a side", w, in, out);
    }
    int d = c->hidden, inner = d / c->downsample;
    if (d % 16 || d % c->decoder_heads || d % c->downsample || inner % c->decoder_heads)
        return sz_fail("config: hidden_size %d does not fit num_attention_heads %d and attention_downsample_rate %d", d, c->decoder_heads, c->downsample);
    if (c->mask_channels % 4) return sz_fail("config: mask_input_channels %d is no multiple of 4", c->mask_channels);
    return 0;
}

/* Lists a weight; dimensions end at the first 0. */
static void want(sz_sam2 *m, sz_tensor **slot, int64_t a, int64_t b, int64_t c, int64_t d, const char *format, ...)
{
    if (m->weight_count < 0) return;
    if (m->weight_count == m->weight_room) {
        int room = m->weight_room ? 2 * m->weight_room : 256;
        sam2_weight *grown = realloc(m->weights, (size_t)room * sizeof *grown);
        if (!grown) {
            m->weight_count = -1;
            return;
        }
        m->weights = grown;
        m->weight_room = room;
    }
    sam2_weight *w = &m->weights[m->weight_count++];
    const int64_t shape[SZ_MAX_DIMS] = { a, b, c, d };
    va_list args;
    va_start(args, format);
    vsnprintf(w->name, sizeof w->name, format, args);
    va_end(args);
    memcpy(w->shape, shape, sizeof shape);
    for (w->ndim = 0; w->ndim < 4 && shape[w->ndim]; w->ndim++) { }
    w->slot = slot;
}

/* name.weight [rows, cols] (cols 0: [rows]) and name.bias [rows]. */
static void want_pair(sz_sam2 *m, sam2_pair *p, int64_t rows, int64_t cols, const char *format, ...)
{
    char name[80];
    va_list args;
    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
    want(m, &p->w, rows, cols, 0, 0, "%s.weight", name);
    want(m, &p->b, rows, 0, 0, 0, "%s.bias", name);
}

static void want_conv(sz_sam2 *m, sam2_pair *p, int64_t first, int64_t second, int64_t kernel, int64_t bias, const char *name)
{
    want(m, &p->w, first, second, kernel, kernel, "%s.weight", name);
    want(m, &p->b, bias, 0, 0, 0, "%s.bias", name);
}

static void want_attention(sz_sam2 *m, sam2_attention *a, int64_t inner, const char *format, ...)
{
    char name[64];
    int64_t d = m->config.hidden;
    va_list args;
    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
    want_pair(m, &a->q, inner, d, "%s.q_proj", name);
    want_pair(m, &a->k, inner, d, "%s.k_proj", name);
    want_pair(m, &a->v, inner, d, "%s.v_proj", name);
    want_pair(m, &a->out, d, inner, "%s.o_proj", name);
}

static void want_head(sz_sam2 *m, sam2_head *h, int64_t hidden, int64_t out, const char *format, ...)
{
    char name[64];
    va_list args;
    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
    want_pair(m, &h->in, hidden, m->config.hidden, "%s.proj_in", name);
    want_pair(m, &h->mid, hidden, hidden, "%s.layers.0", name);
    want_pair(m, &h->out, out, hidden, "%s.proj_out", name);
}

static void list_encoder(sz_sam2 *m)
{
    const sz_sam2_config *c = &m->config;
    const char *p = "vision_encoder.backbone";
    int64_t d = c->hidden;
    want(m, &m->position, 1, c->width[0], c->background[0], c->background[1], "%s.pos_embed", p);
    want(m, &m->position_window, 1, c->width[0], 8, 8, "%s.pos_embed_window", p);
    want_conv(m, &m->patch, c->width[0], 3, c->patch_kernel, c->width[0], "vision_encoder.backbone.patch_embed.projection");
    int i = 0;
    for (int s = 0; s < SZ_SAM2_STAGES; s++)
        for (int k = 0; k < c->blocks[s]; k++, i++) {
            sam2_block *b = &m->blocks[i];
            int64_t in = k || !s ? c->width[s] : c->width[s - 1], out = c->width[s];
            b->stage = s;
            b->pool = s && !k;
            /* A stage's first block still has the windows of the stage before. */
            b->window = c->whole[i] ? 0 : c->windows[b->pool ? s - 1 : s];
            want_pair(m, &b->norm1, in, 0, "%s.blocks.%d.layer_norm1", p, i);
            want_pair(m, &b->qkv, 3 * out, in, "%s.blocks.%d.attn.qkv", p, i);
            want_pair(m, &b->out, out, out, "%s.blocks.%d.attn.proj", p, i);
            want_pair(m, &b->norm2, out, 0, "%s.blocks.%d.layer_norm2", p, i);
            int64_t wide = (int64_t)((double)out * c->mlp_ratio);
            want_pair(m, &b->up, wide, out, "%s.blocks.%d.mlp.proj_in", p, i);
            want_pair(m, &b->down, out, wide, "%s.blocks.%d.mlp.proj_out", p, i);
            if (in != out) want_pair(m, &b->shortcut, out, in, "%s.blocks.%d.proj", p, i);
        }
    for (int s = 0; s < SZ_SAM2_STAGES; s++) {
        char name[48];
        snprintf(name, sizeof name, "vision_encoder.neck.convs.%d", s);
        want_conv(m, &m->neck[s], d, c->width[SZ_SAM2_STAGES - 1 - s], 1, d, name);
    }
    want(m, &m->no_memory, 1, 1, d, 0, "no_memory_embedding");
}

static void list_decoder(sz_sam2 *m)
{
    const sz_sam2_config *c = &m->config;
    int64_t d = c->hidden, inner = d / c->downsample, mask = c->mask_channels;
    want(m, &m->frequencies, 2, d / 2, 0, 0, "shared_image_embedding.positional_embedding");
    want(m, &m->point_embed, 4, d, 0, 0, "prompt_encoder.point_embed.weight");
    want(m, &m->not_a_point, 1, d, 0, 0, "prompt_encoder.not_a_point_embed.weight");
    want(m, &m->no_mask, 1, d, 0, 0, "prompt_encoder.no_mask_embed.weight");
    want_conv(m, &m->mask_conv1, mask / 4, 1, 2, mask / 4, "prompt_encoder.mask_embed.conv1");
    want_pair(m, &m->mask_norm1, mask / 4, 0, "prompt_encoder.mask_embed.layer_norm1");
    want_conv(m, &m->mask_conv2, mask, mask / 4, 2, mask, "prompt_encoder.mask_embed.conv2");
    want_pair(m, &m->mask_norm2, mask, 0, "prompt_encoder.mask_embed.layer_norm2");
    want_conv(m, &m->mask_conv3, d, mask, 1, d, "prompt_encoder.mask_embed.conv3");
    want(m, &m->iou_token, 1, d, 0, 0, "mask_decoder.iou_token.weight");
    want(m, &m->mask_tokens, c->masks, d, 0, 0, "mask_decoder.mask_tokens.weight");
    want(m, &m->object_token, 1, d, 0, 0, "mask_decoder.obj_score_token.weight");
    for (int i = 0; i < c->layers; i++) {
        sam2_layer *l = &m->layers[i];
        const char *p = "mask_decoder.transformer.layers";
        want_attention(m, &l->self, d, "%s.%d.self_attn", p, i);
        want_attention(m, &l->to_image, inner, "%s.%d.cross_attn_token_to_image", p, i);
        want_attention(m, &l->to_tokens, inner, "%s.%d.cross_attn_image_to_token", p, i);
        for (int k = 0; k < 4; k++) want_pair(m, &l->norm[k], d, 0, "%s.%d.layer_norm%d", p, i, k + 1);
        want_pair(m, &l->up, c->mlp, d, "%s.%d.mlp.proj_in", p, i);
        want_pair(m, &l->down, d, c->mlp, "%s.%d.mlp.proj_out", p, i);
    }
    want_attention(m, &m->final, inner, "mask_decoder.transformer.final_attn_token_to_image");
    want_pair(m, &m->final_norm, d, 0, "mask_decoder.transformer.layer_norm_final_attn");
    want_conv(m, &m->upscale1, d, d / 4, 2, d / 4, "mask_decoder.upscale_conv1");
    want_pair(m, &m->upscale_norm, d / 4, 0, "mask_decoder.upscale_layer_norm");
    want_conv(m, &m->upscale2, d / 4, d / 8, 2, d / 8, "mask_decoder.upscale_conv2");
    want_conv(m, &m->high0, d / 8, d, 1, d / 8, "mask_decoder.conv_s0");
    want_conv(m, &m->high1, d / 4, d, 1, d / 4, "mask_decoder.conv_s1");
    for (int i = 0; i < c->masks; i++) want_head(m, &m->hyper[i], d, d / 8, "mask_decoder.output_hypernetworks_mlps.%d", i);
    want_head(m, &m->iou_head, c->iou_hidden, c->masks, "mask_decoder.iou_prediction_head");
    want_head(m, &m->object_head, d, 1, "mask_decoder.pred_obj_score_head");
}

sz_sam2 *sz_sam2_new(const sz_sam2_config *config)
{
    if (config_check(config) != 0) return NULL;
    sz_sam2 *m = calloc(1, sizeof *m);
    if (!m) return sz_null("out of memory");
    m->config = *config;
    for (int s = 0; s < SZ_SAM2_STAGES; s++) m->block_count += config->blocks[s];
    m->blocks = calloc((size_t)m->block_count, sizeof *m->blocks);
    m->layers = calloc((size_t)config->layers, sizeof *m->layers);
    if (m->blocks && m->layers) {
        list_encoder(m);
        list_decoder(m);
    }
    if (!m->blocks || !m->layers || m->weight_count < 0) {
        m->weight_count = 0;
        sz_sam2_free(m);
        return sz_null("out of memory");
    }
    for (int i = 0; i < m->block_count; i++)
        if (m->blocks[i].pool && !m->blocks[i].window) {
            sz_sam2_free(m);
            return sz_null("config: block %d of global_attention_blocks is the first of a stage, which needs windows", i);
        }
    return m;
}

void sz_sam2_free(sz_sam2 *m)
{
    if (!m) return;
    for (int i = 0; i < m->weight_count; i++) sz_tensor_release(*m->weights[i].slot);
    sz_tensor_release(m->frequencies_copy);
    sz_tensor_release(m->grid);
    free(m->weights);
    free(m->blocks);
    free(m->layers);
    free(m);
}

int sz_sam2_weight_count(const sz_sam2 *m) { return m->weight_count; }
static bool listed(const sz_sam2 *m, int i) { return i >= 0 && i < m->weight_count; }
const char *sz_sam2_weight_name(const sz_sam2 *m, int i) { return listed(m, i) ? m->weights[i].name : sz_null("there is no weight %d", i); }
int sz_sam2_weight_shape(const sz_sam2 *m, int i, int64_t shape[6])
{
    if (!listed(m, i)) return sz_fail("there is no weight %d", i);
    memcpy(shape, m->weights[i].shape, sizeof m->weights[i].shape);
    return m->weights[i].ndim;
}
sz_tensor *sz_sam2_weight(sz_sam2 *m, int i) { return listed(m, i) ? *m->weights[i].slot : sz_null("there is no weight %d", i); }

int sz_sam2_weight_set(sz_sam2 *m, int i, sz_tensor *t)
{
    if (!listed(m, i)) return sz_fail("there is no weight %d", i);
    const sam2_weight *w = &m->weights[i];
    if (t->ndim != w->ndim || memcmp(t->shape, w->shape, sizeof *w->shape * (size_t)w->ndim) != 0)
        return sz_fail("%s has another shape than the config asks for", w->name);
    sz_tensor_retain(t);
    sz_tensor_release(*w->slot);
    *w->slot = t;
    if (w->slot == &m->frequencies) {
        sam2_move(&m->frequencies_copy, NULL);
        sam2_move(&m->grid, NULL);
    }
    return 0;
}

int sam2_check(const sz_sam2 *m)
{
    for (int i = 0; i < m->weight_count; i++)
        if (!*m->weights[i].slot) return sz_fail("the model has no weight %s", m->weights[i].name);
    return 0;
}
