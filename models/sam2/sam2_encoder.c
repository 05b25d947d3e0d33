/* sam2_encoder.c - Hiera and its feature pyramid: images -> the maps that the mask decoder reads.
 *
 *   pixels [B, S, S, 3] -> patches [B (S/4)^2, C] + positions -> four stages of blocks -> neck
 *   -> embedding, high1, high0
 *
 * A map is rows of channels. While blocks attend in windows of w cells, its rows are ordered window
 * after window (a layout), so that a window is a segment; only a change of w moves rows. Where a
 * window reaches past the map, the reference fills it with zeros after the norm: those cells have
 * the projection's bias as key and value. Here a few zero rows follow the map, and each such window
 * sees as many of them as it lacks cells, through its parent range. */
#include "sam2_internal.h"
#include <math.h>

/* ---- layouts ---- */
/* The row order of `images` maps of side x side cells: window after window (the last window of a
 * line may be cut), or raster order when window is 0. */
typedef struct {
    int64_t images, side, window;
} layout;

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t cells(const layout *l) { return l->images * l->side * l->side; }
static int64_t window_side(const layout *l) { return l->window ? l->window : l->side; }
static layout raster(const layout *l) { return (layout){ l->images, l->side, 0 }; }

static int64_t windows_across(const layout *l)
{
    int64_t w = window_side(l);
    return (l->side + w - 1) / w;
}

/* Cells of a window along one axis; the last window of a line may be cut. */
static int64_t extent(const layout *l, int64_t index)
{
    int64_t w = window_side(l);
    return least(w, l->side - index * w);
}

/* The row of cell (y, x) of image b. */
static int64_t row_of(const layout *l, int64_t b, int64_t y, int64_t x)
{
    int64_t side = l->side;
    int64_t w = window_side(l);
    int64_t wy = y / w;
    int64_t wx = x / w;
    int64_t rows = extent(l, wy);
    int64_t cols = extent(l, wx);
    int64_t before = b * side * side + wy * w * side + rows * wx * w;
    return before + (y - wy * w) * cols + x - wx * w;
}

/* For each row of `to` the row of `from` that holds the same cell. A map twice as fine reads each
 * coarse cell four times. */
static sz_tensor *moves(const layout *from, const layout *to)
{
    int64_t ratio = to->side / from->side;
    sz_tensor *ids = sz_new1(SZ_I32, cells(to), SZ_CPU);
    if (!ids) return NULL;
    int32_t *p = sz_i32(ids);
    for (int64_t b = 0; b < to->images; b++)
        for (int64_t y = 0; y < to->side; y++)
            for (int64_t x = 0; x < to->side; x++)
                p[row_of(to, b, y, x)] = (int32_t)row_of(from, b, y / ratio, x / ratio);
    return ids;
}

static sz_tensor *rearranged(sz_tensor *x, const layout *from, const layout *to)
{
    if (!x) return NULL;
    if (from->side == to->side && from->window == to->window) return sz_tensor_retain(x);
    sz_tensor *ids = moves(from, to);
    sz_tensor *y = ids ? sz_gather_rows(x, ids) : NULL;
    sz_tensor_release(ids);
    return y;
}

/* ---- what a block reads besides x ---- */
typedef struct {
    const sam2_model *m;
    const sam2_block *block;
    int64_t rows;                            /* of the map */
    int64_t padding;                         /* zero rows after the map */
    bool training;                           /* gradients are wanted: keep what their rules need */
    sz_tensor *segments;                     /* i32 [., 6] */
    sz_tensor *query_cells, *shortcut_cells; /* i32 [rows / 4, 4] where the block pools */
} block_ctx;

static void ctx_release(block_ctx *k)
{
    MODEL_RELEASE(k->segments, k->query_cells, k->shortcut_cells);
    k->segments = k->query_cells = k->shortcut_cells = NULL;
}

/* Windows of `queries` (the same layout, or the pooled one) over windows of `keys`. */
static int make_segments(block_ctx *k, const layout *keys, const layout *queries)
{
    int64_t across = windows_across(keys);
    int64_t w = window_side(keys);
    int64_t q = window_side(queries);
    k->rows = cells(keys);
    k->padding = 0;
    k->segments = sz_new2(SZ_I32, keys->images * across * across, 6, SZ_CPU);
    if (!k->segments) return -1;
    sz_tensor_pin(k->segments); /* a block that runs again in the backward pass reads it */

    int32_t *s = sz_i32(k->segments);
    for (int64_t b = 0; b < keys->images; b++)
        for (int64_t wy = 0; wy < across; wy++)
            for (int64_t wx = 0; wx < across; wx++, s += 6) {
                int64_t length = extent(keys, wy) * extent(keys, wx);
                int64_t lacks = w * w - length;
                s[0] = (int32_t)row_of(queries, b, wy * q, wx * q);
                s[1] = (int32_t)(extent(queries, wy) * extent(queries, wx));
                s[2] = (int32_t)row_of(keys, b, wy * w, wx * w);
                s[3] = (int32_t)length;
                s[4] = (int32_t)k->rows;
                s[5] = (int32_t)lacks;
                if (lacks > k->padding) k->padding = lacks;
            }
    return 0;
}

/* The four cells that each pooled cell is the maximum of. Queries are pooled inside their window,
 * where a cell outside the map is a padding row and an odd window drops its last line. The shortcut
 * is pooled over the whole map. */
static int make_pooling(block_ctx *k, const layout *in, const layout *out)
{
    k->query_cells = sz_new2(SZ_I32, cells(out), 4, SZ_CPU);
    k->shortcut_cells = sz_new2(SZ_I32, cells(out), 4, SZ_CPU);
    if (!k->query_cells || !k->shortcut_cells) return -1;
    sz_tensor_pin(k->query_cells);
    sz_tensor_pin(k->shortcut_cells);
    for (int64_t b = 0; b < out->images; b++)
        for (int64_t y = 0; y < out->side; y++)
            for (int64_t x = 0; x < out->side; x++) {
                int32_t *query = sz_i32(k->query_cells) + 4 * row_of(out, b, y, x);
                int32_t *shortcut = sz_i32(k->shortcut_cells) + 4 * row_of(out, b, y, x);
                int64_t y0 = y / out->window * in->window + 2 * (y % out->window);
                int64_t x0 = x / out->window * in->window + 2 * (x % out->window);
                for (int64_t i = 0; i < 4; i++) {
                    int64_t qy = y0 + i / 2;
                    int64_t qx = x0 + i % 2;
                    const bool inside = qy < in->side && qx < in->side;
                    query[i] = (int32_t)(inside ? row_of(in, b, qy, qx) : k->rows);
                    shortcut[i] = (int32_t)row_of(in, b, 2 * y + i / 2, 2 * x + i % 2);
                }
            }
    return 0;
}

/* ---- blocks ---- */
/* Part i of three of a linear layer whose output is [queries, keys, values], each `width` wide. */
static sz_tensor *linear_part(const sz_model *base, sz_tensor *x, const model_layer *qkv, int i,
                              int64_t width)
{
    int64_t first = i * width;
    const model_layer part = {
        .w = sz_narrow(qkv->w, first, width),
        .b = sz_narrow(qkv->b, first, width),
        .lora_a = qkv->lora_a,
        .lora_b = qkv->lora_b ? sz_narrow(qkv->lora_b, first, width) : NULL,
        .lora_scale = qkv->lora_scale,
        .rows = width,
    };
    sz_tensor *y = part.b ? model_linear(base, x, &part) : NULL;
    MODEL_RELEASE(part.w, part.b, part.lora_b);
    return y;
}

/* Attention of a block that pools its queries: queries, keys and values are separate products,
 * because only the queries are pooled. */
static sz_tensor *pooled_attention(const block_ctx *k, sz_tensor *x, int heads, int d)
{
    int64_t width = (int64_t)heads * d;
    sz_tensor *part[3] = { 0 };
    for (int i = 0; i < 3; i++) part[i] = linear_part(&k->m->base, x, &k->block->qkv, i, width);
    model_move(&part[0], sz_max_pool_rows(part[0], k->query_cells));
    sz_tensor *y = sz_attention_cross(part[0], part[1], part[2], k->segments, heads, heads, d,
                                      false, 1 / sqrt((double)d));
    MODEL_RELEASE(part[0], part[1], part[2]);
    return y;
}

static sz_tensor *window_attention(const block_ctx *k, sz_tensor *x, int heads, int d)
{
    sz_tensor *qkv = model_linear(&k->m->base, x, &k->block->qkv);
    sz_tensor *a = sz_attention(qkv, k->segments, heads, heads, d, false, 1 / sqrt((double)d));
    sz_tensor_release(qkv);
    if (k->padding) model_move(&a, sz_narrow(a, 0, k->rows));
    return a;
}

/* gelu(up(x)): one op for inference, two where a gradient or an adapter needs up(x) itself. */
static sz_tensor *mlp_inner(const block_ctx *k, sz_tensor *x)
{
    const model_layer *up = &k->block->up;
    const bool adapted = up->lora_a && !k->m->base.lora_off;
    if (!k->training && !adapted) return sz_linear_gelu(x, up->w, up->b);
    sz_tensor *inner = model_linear(&k->m->base, x, up);
    sz_tensor *act = sz_gelu(inner);
    sz_tensor_release(inner);
    return act;
}

static sz_tensor *block_forward(const void *context, sz_tensor *x)
{
    const block_ctx *k = context;
    const sam2_block *b = k->block;
    const sz_model *base = &k->m->base;
    const sz_sam2_config *c = &k->m->config;
    int heads = c->heads[b->stage];
    int d = c->width[b->stage] / heads;

    /* The shortcut: projected from the normalised map where the width changes, pooled where the map
     * is halved. */
    sz_tensor *n1 = sz_layernorm(x, b->norm1.w, b->norm1.b, c->norm_eps);
    sz_tensor *shortcut = sz_tensor_retain(x);
    if (b->shortcut.w) model_move(&shortcut, model_linear(base, n1, &b->shortcut));
    if (b->pool) model_move(&shortcut, sz_max_pool_rows(shortcut, k->shortcut_cells));

    /* Attention. */
    if (k->padding) model_move(&n1, sz_pad_rows(n1, k->padding));
    sz_tensor *a = b->pool ? pooled_attention(k, n1, heads, d) : window_attention(k, n1, heads, d);
    sz_tensor *o = model_linear(base, a, &b->out);
    sz_tensor *mid = sz_add(shortcut, o);

    /* MLP. */
    sz_tensor *n2 = sz_layernorm(mid, b->norm2.w, b->norm2.b, c->norm_eps);
    sz_tensor *act = mlp_inner(k, n2);
    sz_tensor *down = model_linear(base, act, &b->down);
    sz_tensor *y = sz_add(mid, down);
    MODEL_RELEASE(n1, shortcut, a, o, mid, n2, act, down);
    return y;
}

/* ---- patches and positions ---- */
/* A weight [1, C, h, w] as rows [h * w, C]: multiplied by the identity, which is exact. */
static sz_tensor *as_rows(sz_tensor *w)
{
    int64_t channels = w->shape[1];
    int64_t n = w->shape[2] * w->shape[3];
    sz_tensor *identity = sz_tensor_zeros(SZ_F32, 2, (int64_t[]){ channels, channels }, SZ_CPU);
    for (int64_t i = 0; identity && i < channels; i++) sz_f32(identity)[i * channels + i] = 1;
    if (identity && w->device != SZ_CPU) model_move(&identity, sz_tensor_to(identity, w->device));
    if (w->dtype != SZ_F32) model_move(&identity, sz_cast(identity, w->dtype));
    sz_tensor *flat = sz_reshape2(w, channels, n);
    sz_tensor *y = sz_matmul(flat, identity, true, false);
    MODEL_RELEASE(identity, flat);
    return y;
}

/* The position code of every cell [side^2, C]: the background stretched over the map plus the
 * window's, repeated. */
static sz_tensor *positions(const sam2_model *m, int64_t side)
{
    const sz_sam2_config *c = &m->config;
    int64_t width = c->width[0];
    sz_tensor *background = as_rows(m->position);
    model_move(&background, sz_reshape4(background, 1, c->background[0], c->background[1], width));
    model_move(&background, sz_resize(background, side, side, SZ_BICUBIC));
    model_move(&background, sz_reshape2(background, side * side, width));

    sz_tensor *window = as_rows(m->position_window);
    sz_tensor *ids = sz_new1(SZ_I32, side * side, SZ_CPU);
    for (int64_t i = 0; ids && i < side * side; i++)
        sz_i32(ids)[i] = (int32_t)(i / side % 8 * 8 + i % side % 8);
    model_move(&window, ids ? sz_gather_rows(window, ids) : NULL);

    sz_tensor *y = background && window ? sz_add(background, window) : NULL;
    MODEL_RELEASE(background, window, ids);
    return y;
}

/* pixels -> patches with positions, [B * side^2, C] in layout l. */
static sz_tensor *embed(const sam2_model *m, sz_tensor *pixels, const layout *l)
{
    const sz_sam2_config *c = &m->config;
    const sam2_pair *patch = &m->patch;
    int64_t side = l->side;
    int64_t width = c->width[0];
    sz_tensor *x = sz_tensor_to(pixels, patch->w->device);
    if (x && x->dtype != patch->w->dtype) model_move(&x, sz_cast(x, patch->w->dtype));
    model_move(&x, sz_conv2d(x, patch->w, patch->b, c->patch_stride, c->patch_padding));
    model_move(&x, x ? sz_reshape4(x, l->images, side * side, width, 0) : NULL);
    sz_tensor *code = positions(m, side);
    model_move(&x, code ? sz_add(x, code) : NULL);
    sz_tensor_release(code);
    model_move(&x, x ? sz_reshape2(x, cells(l), width) : NULL);
    const layout in_raster = raster(l);
    model_move(&x, rearranged(x, &in_raster, l));
    return x;
}

/* ---- stages ---- */
/* Prepares k for block b on a map in layout l, whose result has layout `out`. Tables are kept from
 * the block before where they still fit. */
static int prepare_block(block_ctx *k, const sam2_block *b, const layout *l, const layout *out,
                         bool *whole)
{
    const bool over_map = !b->window;
    if (b->pool || *whole != over_map) ctx_release(k);
    k->block = b;
    if (k->segments) return 0;
    *whole = over_map;
    if (over_map) {
        const layout all = raster(l);
        if (make_segments(k, &all, &all) != 0) return -1;
    } else if (make_segments(k, l, out) != 0) {
        return -1;
    }
    return b->pool ? make_pooling(k, l, out) : 0;
}

/* All blocks. stage_out[s], at[s]: the output of stage s and its layout. */
static int run_stages(const sam2_model *m, sz_tensor *pixels, int recompute,
                      sz_tensor *stage_out[SZ_SAM2_STAGES], layout at[SZ_SAM2_STAGES])
{
    layout l = { pixels->shape[0], m->config.image_size / 4, m->blocks[0].window };
    sz_tensor *x = embed(m, pixels, &l);
    block_ctx k = { .m = m, .training = sz_grad_enabled() };
    bool whole = false; /* the segments in k are those of a whole map */
    for (int i = 0; x && i < m->block_count; i++) {
        const sam2_block *b = &m->blocks[i];

        /* Another window size: other row order. */
        if (b->window && b->window != l.window) {
            layout to = { l.images, l.side, b->window };
            model_move(&x, rearranged(x, &l, &to));
            l = to;
            ctx_release(&k);
        }

        layout out = l;
        if (b->pool) out = (layout){ l.images, l.side / 2, l.window / 2 };
        if (prepare_block(&k, b, &l, &out, &whole) != 0) model_move(&x, NULL);
        model_move(&x, model_run(block_forward, &k, sizeof k, recompute, x));
        if (b->pool) {
            ctx_release(&k);
            l = out;
        }
        if (i + 1 == m->block_count || m->blocks[i + 1].stage != b->stage) {
            stage_out[b->stage] = sz_tensor_retain(x);
            at[b->stage] = l;
        }
    }
    ctx_release(&k);
    sz_tensor_release(x);
    return stage_out[SZ_SAM2_STAGES - 1] ? 0 : -1;
}

/* ---- the neck ---- */
/* Level s of the pyramid: the stage's map at the common width, plus the coarser level where the
 * config says so. */
static sz_tensor *neck_level(const sam2_model *m, int s, sz_tensor *stage, sz_tensor *coarser,
                             const layout l[SZ_SAM2_STAGES])
{
    sz_tensor *y = sam2_conv1x1(stage, &m->neck[SZ_SAM2_STAGES - 1 - s]);
    if (m->config.top_down[s] && coarser) {
        sz_tensor *doubled = rearranged(coarser, &l[s + 1], &l[s]);
        model_move(&y, doubled ? sz_add(y, doubled) : NULL);
        sz_tensor_release(doubled);
    }
    return y;
}

/* What the decoder reads of level s, in raster order: the embedding of level 2, the fine maps of
 * levels 1 and 0. */
static sz_tensor *decoder_input(const sam2_model *m, int s, sz_tensor *level, const layout *l)
{
    const layout in_raster = raster(l);
    sz_tensor *out;
    if (s == 2) out = sz_tensor_retain(level);
    else out = sam2_conv1x1(level, s == 1 ? &m->high1 : &m->high0);
    model_move(&out, rearranged(out, l, &in_raster));
    if (s == 2) model_move(&out, sz_add(out, m->no_memory));
    return out;
}

int sz_sam2_encode(sz_model *base, sz_tensor *pixels, int recompute, sz_tensor **embedding,
                   sz_tensor **high1, sz_tensor **high0, sz_tensor **stages)
{
    *embedding = *high1 = *high0 = NULL;
    const sam2_model *m = sam2_of(base);
    if (!m || sz_tensor_alive(pixels) != 0) return -1;
    int size = m->config.image_size;
    const bool fits = pixels->ndim == 4 && pixels->shape[0] >= 1 && pixels->shape[1] == size &&
                      pixels->shape[2] == size && pixels->shape[3] == 3;
    if (!fits) return sz_fail("sam2: pixels must be [images, %d, %d, 3]", size, size);

    /* The pyramid, from the coarsest level down. */
    sz_tensor *x[SZ_SAM2_STAGES] = { 0 };
    sz_tensor *result[3] = { 0 };
    sz_tensor *level = NULL;
    layout l[SZ_SAM2_STAGES] = { 0 };
    int rc = run_stages(m, pixels, recompute, x, l);
    for (int s = SZ_SAM2_STAGES - 1; rc == 0 && s >= 0; s--) {
        model_move(&level, neck_level(m, s, x[s], level, l));
        if (s == SZ_SAM2_STAGES - 1) continue;
        result[2 - s] = decoder_input(m, s, level, &l[s]);
        if (!result[2 - s]) rc = -1;
    }
    sz_tensor_release(level);

    /* The stages' outputs, where asked for. */
    for (int s = 0; s < SZ_SAM2_STAGES; s++) {
        const layout in_raster = raster(&l[s]);
        if (stages) stages[s] = rc == 0 ? rearranged(x[s], &l[s], &in_raster) : NULL;
        sz_tensor_release(x[s]);
    }
    for (int i = 0; rc != 0 && i < 3; i++) model_move(&result[i], NULL);
    *embedding = result[0];
    *high1 = result[1];
    *high0 = result[2];
    return rc;
}
