/* qwen_vision.c - the vision towers of Qwen2.5-VL and Qwen2-VL: patches -> features of image
 * tokens.
 *
 *   pixel_values [N, 1176] -> patch embedding [N, D] -> window order -> depth blocks
 *   -> merger [N/4, out] -> raster order
 *
 * Rows are patches in merge-block order: the 2x2 patches of one token are neighbours. Windows are
 * segments of the row order: tokens are permuted so that each window is contiguous, and permuted
 * back after the merger. The 2-D rotary table is made in the permuted order. Qwen2-VL is the case
 * of one window as large as the image, so its rows keep their order; its norms are LayerNorms and
 * its MLP is fc2(quick_gelu(fc1(x))), which shows in the weights that a block has.
 * In a split model each shard has the whole tower and runs it over some of the images; all shards
 * get all features.
 * Leaves out: videos with timestamps (t > 1 repeats the table per frame, as the reference does). */
#include "qwen_internal.h"
#include <math.h>
#include <stdlib.h>

static const double NORM_EPS = 1e-6; /* hard-coded in the reference; not rms_norm_eps */

/* ---- window order ---- */
typedef struct {
    sz_tensor *inverse;          /* i32 [N / unit]: place of each token */
    sz_tensor *patch_order;      /* i32 [N]: patch at each place */
    sz_tensor *cosines, *sines;  /* f32 [N, head_dim / 2], in window order */
    sz_tensor *windows, *frames; /* segments i32 [., 6] */
} window_layout;

static void layout_release(window_layout *p)
{
    MODEL_RELEASE(p->inverse, p->patch_order, p->cosines, p->sines, p->windows, p->frames);
}

/* Sizes of a list of images; a window has side x side tokens. */
typedef struct {
    const int32_t *grids; /* t, h, w in patches of each image */
    int64_t images, merge, side;
    int64_t frames, windows, patches; /* of all images together */
    float theta;                      /* of the rotary angles */
} image_list;

static int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* Counts frames, windows and patches. */
static int measure(image_list *list, int64_t patches)
{
    for (int64_t i = 0; i < list->images; i++) {
        int64_t t = list->grids[3 * i];
        int64_t h = list->grids[3 * i + 1];
        int64_t w = list->grids[3 * i + 2];
        if (t <= 0 || h <= 0 || w <= 0 || h % list->merge || w % list->merge)
            return sz_fail("image %lld has a grid of %lld x %lld x %lld patches", (long long)i + 1,
                           (long long)t, (long long)h, (long long)w);
        list->frames += t;
        list->windows += t * divide_up(h / list->merge, list->side) *
                         divide_up(w / list->merge, list->side);
        list->patches += t * h * w;
    }
    if (list->patches != patches)
        return sz_fail("the grids hold %lld patches, pixel_values has %lld",
                       (long long)list->patches, (long long)patches);
    return 0;
}

static int layout_allocate(window_layout *p, const image_list *list, int64_t half)
{
    p->inverse = sz_new1(SZ_I32, list->patches / (list->merge * list->merge), SZ_CPU);
    p->patch_order = sz_new1(SZ_I32, list->patches, SZ_CPU);
    p->cosines = sz_new2(SZ_F32, list->patches, half, SZ_CPU);
    p->sines = sz_new2(SZ_F32, list->patches, half, SZ_CPU);
    p->windows = sz_new2(SZ_I32, list->windows, 6, SZ_CPU);
    p->frames = sz_new2(SZ_I32, list->frames, 6, SZ_CPU);
    if (!p->inverse || !p->patch_order || !p->cosines || !p->sines) return -1;
    return p->windows && p->frames ? 0 : -1;
}

/* A segment whose rows see each other. */
static void put_segment(int32_t *s, int64_t start, int64_t length)
{
    s[0] = s[2] = (int32_t)start;
    s[1] = s[3] = (int32_t)length;
    s[4] = s[5] = 0;
}

/* Rotary angles of one row, whose patch is at (y, x) of its frame: the first quarter of the pairs
 * rotates with y, the second with x. */
static void put_angles(const window_layout *p, const image_list *list, int64_t row, int64_t half,
                       int64_t y, int64_t x)
{
    int64_t quarter = half / 2;
    const float position[2] = { (float)y, (float)x };
    for (int64_t j = 0; j < half; j++) {
        float frequency = 1.0f / powf(list->theta, (float)(2 * (j % quarter)) / (float)half);
        float angle = position[j / quarter] * frequency;
        sz_f32(p->cosines)[row * half + j] = cosf(angle);
        sz_f32(p->sines)[row * half + j] = sinf(angle);
    }
}

/* Where the next entry of each table goes. */
typedef struct {
    int64_t place; /* tokens in window order so far */
    int64_t first; /* first token of the frame */
    int64_t window, frame;
} cursor;

/* The token at (y, x) of the current frame, hm x wm tokens, takes the next place. */
static void put_token(const window_layout *p, const image_list *list, cursor *at, int64_t half,
                      int64_t y, int64_t x, int64_t wm)
{
    int64_t merge = list->merge;
    int64_t unit = merge * merge;
    int64_t token = at->first + y * wm + x;
    sz_i32(p->inverse)[token] = (int32_t)at->place;
    for (int64_t u = 0; u < unit; u++) {
        int64_t row = at->place * unit + u;
        sz_i32(p->patch_order)[row] = (int32_t)(token * unit + u);
        put_angles(p, list, row, half, y * merge + u / merge, x * merge + u % merge);
    }
    at->place++;
}

/* The windows of the current frame, hm x wm tokens, and the frame itself. */
static void put_frame(const window_layout *p, const image_list *list, cursor *at, int64_t half,
                      int64_t hm, int64_t wm)
{
    int64_t unit = list->merge * list->merge;
    int64_t side = list->side;
    put_segment(sz_i32(p->frames) + 6 * at->frame++, at->first * unit, hm * wm * unit);
    for (int64_t y0 = 0; y0 < hm; y0 += side)
        for (int64_t x0 = 0; x0 < wm; x0 += side) {
            int64_t start = at->place;
            for (int64_t y = y0; y < hm && y < y0 + side; y++)
                for (int64_t x = x0; x < wm && x < x0 + side; x++)
                    put_token(p, list, at, half, y, x, wm);
            int32_t *segment = sz_i32(p->windows) + 6 * at->window++;
            put_segment(segment, start * unit, (at->place - start) * unit);
        }
    at->first += hm * wm;
}

static image_list list_images(const sz_qwen_config *c, const sz_tensor *grids)
{
    return (image_list){
        .grids = sz_i32(grids),
        .images = grids->numel / 3,
        .merge = c->v_merge,
        .side = c->family == SZ_QWEN2_VL ? INT32_MAX : c->v_window / c->v_merge / c->v_patch,
        .theta = (float)c->v_rope_theta,
    };
}

/* Token order, segment tables and rotary angles (on the device) for a list of images. */
static int make_layout(const sz_qwen_config *c, const sz_tensor *grids, int64_t patches, int device,
                       window_layout *p)
{
    image_list list = list_images(c, grids);
    int64_t half = c->v_hidden / c->v_heads / 2;
    if (measure(&list, patches) != 0 || layout_allocate(p, &list, half) != 0) return -1;

    cursor at = { 0 };
    for (int64_t i = 0; i < list.images; i++) {
        const int32_t *grid = list.grids + 3 * i;
        for (int64_t t = 0; t < grid[0]; t++)
            put_frame(p, &list, &at, half, grid[1] / list.merge, grid[2] / list.merge);
    }
    if (sz_tensor_move(&p->cosines, device) != 0) return -1;
    if (sz_tensor_move(&p->sines, device) != 0) return -1;

    /* A block that runs again in the backward pass reads them. */
    sz_tensor *const read_later[] = { p->cosines, p->sines, p->windows, p->frames };
    for (size_t i = 0; i < sizeof read_later / sizeof *read_later; i++)
        sz_tensor_pin(read_later[i]);
    return 0;
}

/* ---- blocks and merger ---- */
typedef struct {
    const qwen_model *m;
    int index;
    sz_tensor *cosines, *sines, *segments;
} block_ctx;

static sz_tensor *normalise(sz_tensor *x, sz_tensor *weight, sz_tensor *bias)
{
    return bias ? sz_layernorm(x, weight, bias, NORM_EPS) : sz_rmsnorm(x, weight, NORM_EPS);
}

/* The activations between the MLP's linear layers. */
static sz_tensor *mlp_inner(const sz_model *base, const qwen_block *b, sz_tensor *x)
{
    const bool gated = b->gate.rows > 0;
    sz_tensor *inner = gated ? MODEL_LINEAR(base, x, &b->gate_up_packed, &b->gate, &b->up)
                             : MODEL_LINEAR(base, x, &b->gate_up_packed, &b->up);
    sz_tensor *act = gated ? sz_swiglu(inner) : sz_quick_gelu(inner);
    sz_tensor_release(inner);
    return act;
}

static sz_tensor *block_forward(const void *context, sz_tensor *x)
{
    const block_ctx *k = context;
    const sz_model *base = &k->m->base;
    const qwen_block *b = &k->m->blocks[k->index];
    int heads = k->m->config.v_heads;
    int d = k->m->config.v_hidden / heads;
    double scale = 1 / sqrt((double)d);

    sz_tensor *h = normalise(x, b->norm1, b->norm1_b);
    model_move(&h, MODEL_LINEAR(base, h, &b->qkv_packed, &b->qkv));
    model_move(&h, sz_rope(h, k->cosines, k->sines, 2 * heads, d));
    model_move(&h, sz_attention(h, k->segments, heads, heads, d, false, scale));
    model_move(&h, MODEL_LINEAR(base, h, &b->proj_packed, &b->proj));
    sz_tensor *mid = sz_add(x, h);

    model_move(&h, normalise(mid, b->norm2, b->norm2_b));
    model_move(&h, mlp_inner(base, b, h));
    model_move(&h, MODEL_LINEAR(base, h, &b->down_packed, &b->down));
    sz_tensor *y = mid ? sz_add(mid, h) : NULL;
    MODEL_RELEASE(mid, h);
    return y;
}

/* [N, D] -> features [N / unit, out], still in window order. */
static sz_tensor *merger_forward(const void *context, sz_tensor *x)
{
    const qwen_model *m = *(const qwen_model *const *)context;
    int64_t merged = (int64_t)m->config.v_hidden * m->config.v_merge * m->config.v_merge;
    sz_tensor *h = normalise(x, m->ln_q, m->ln_q_b);
    if (h) model_move(&h, sz_reshape2(h, h->numel / merged, merged));
    model_move(&h, MODEL_LINEAR(&m->base, h, &m->merge0_packed, &m->merge0));
    model_move(&h, sz_gelu(h));
    model_move(&h, MODEL_LINEAR(&m->base, h, &m->merge2_packed, &m->merge2));
    return h;
}

/* ---- the tower ---- */
/* Patches in window order -> [N, D], in the weights' dtype and on their device. */
static sz_tensor *embed_patches(const qwen_model *m, sz_tensor *pixel_values, sz_tensor *order)
{
    const sz_tensor *like = m->patch_embed;
    sz_tensor *values = sz_tensor_to(pixel_values, like->device);
    if (values && values->dtype != like->dtype) model_move(&values, sz_cast(values, like->dtype));
    sz_tensor *rows = sz_gather_rows(values, order);
    sz_tensor *x = sz_linear(rows, m->patch_embed, NULL);
    MODEL_RELEASE(values, rows);
    return x;
}

static sz_tensor *run_tower(const qwen_model *m, const window_layout *p, sz_tensor *pixel_values,
                            int recompute)
{
    sz_tensor *x = embed_patches(m, pixel_values, p->patch_order);
    for (int i = 0; x && i < m->config.v_depth; i++) {
        sz_tensor *segments = m->config.v_full[i] ? p->frames : p->windows;
        const block_ctx k = { m, i, p->cosines, p->sines, segments };
        model_move(&x, model_run(block_forward, &k, sizeof k, recompute, x));
    }
    model_move(&x, model_run(merger_forward, &m, sizeof m, recompute, x));
    if (x) model_move(&x, sz_gather_rows(x, p->inverse));
    return x;
}

/* Features of all images of the list. */
static sz_tensor *features_of(const qwen_model *m, sz_tensor *pixel_values, const sz_tensor *grids,
                              int recompute)
{
    window_layout p = { 0 };
    sz_tensor *y = NULL;
    if (make_layout(&m->config, grids, pixel_values->shape[0], m->patch_embed->device, &p) == 0)
        y = run_tower(m, &p, pixel_values, recompute);
    layout_release(&p);
    return y;
}

/* ---- images dealt to the shards ---- */
static int64_t patches_of(const int32_t *grid) { return (int64_t)grid[0] * grid[1] * grid[2]; }

/* This shard's images are neighbours, and so are their patches. */
typedef struct {
    int64_t image, images, patch, patches; /* the first one, how many */
    sz_tensor *tokens;                     /* i32 [shards], of each shard's images */
} deal;

/* The shard that image i goes to: the one in whose share of the patches its middle is. *patch: in,
 * the patches of the images before it; out, with its own. */
static int owner_of(const image_list *list, int64_t i, int shards, int64_t *patch)
{
    const int64_t patches = patches_of(list->grids + 3 * i);
    const int64_t middle = 2 * *patch + patches;
    *patch += patches;
    return (int)(middle * shards / (2 * list->patches));
}

/* Whose images this process computes: its own. Where the memory of a run is counted it stands for
 * the shard with the most. */
static int dealt_to(const qwen_model *m, const sz_tensor *tokens)
{
    if (!sz_is_dry_run()) return m->base.shard;
    int most = 0;
    for (int r = 1; r < m->base.shards; r++)
        if (sz_i32(tokens)[r] > sz_i32(tokens)[most]) most = r;
    return most;
}

static int deal_images(const qwen_model *m, const image_list *list, deal *d)
{
    const int shards = m->base.shards;
    const int64_t unit = list->merge * list->merge;
    d->tokens = sz_new1(SZ_I32, shards, SZ_CPU);
    if (!d->tokens) return -1;
    memset(d->tokens->data, 0, sz_bytes(d->tokens));
    int64_t patch = 0;
    for (int64_t i = 0; i < list->images; i++) {
        const int64_t first = patch;
        const int owner = owner_of(list, i, shards, &patch);
        sz_i32(d->tokens)[owner] += (int32_t)((patch - first) / unit);
    }

    /* The images of one shard are neighbours. */
    const int shard = dealt_to(m, d->tokens);
    patch = 0;
    for (int64_t i = 0; i < list->images; i++) {
        const int64_t first = patch;
        if (owner_of(list, i, shards, &patch) != shard) continue;
        if (d->images++ == 0) {
            d->image = i;
            d->patch = first;
        }
        d->patches += patch - first;
    }
    return 0;
}

/* Whether the tower's features need a gradient. */
static bool tower_is_trained(const sz_model *base)
{
    for (int i = 0; i < base->weights.count; i++) {
        const model_weight *w = &base->weights.items[i];
        const model_layer *layer = base->lora_off ? NULL : w->layer;
        if (!w->vision) continue;
        if (sz_needs_grad(*w->slot)) return true;
        if (layer && (sz_needs_grad(layer->lora_a) || sz_needs_grad(layer->lora_b))) return true;
    }
    return false;
}

/* A shard without images records what the others do: they all wait for each other on the way
 * back. */
static sz_tensor *no_features(const qwen_model *m)
{
    const sz_tensor *like = m->patch_embed;
    sz_tensor *none = sz_new2(like->dtype, 0, m->config.v_out, like->device);
    if (none && sz_grad_enabled() && tower_is_trained(&m->base)) none->flags |= SZ_REQUIRES_GRAD;
    return none;
}

static sz_tensor *own_features(const qwen_model *m, const deal *d, sz_tensor *pixel_values,
                               const sz_tensor *grids, int recompute)
{
    if (d->images == 0) return no_features(m);
    sz_tensor *own_grids = sz_new2(SZ_I32, d->images, 3, SZ_CPU);
    sz_tensor *own_values = sz_narrow(pixel_values, d->patch, d->patches);
    sz_tensor *y = NULL;
    if (own_grids && own_values) {
        memcpy(own_grids->data, sz_i32(grids) + 3 * d->image, sz_bytes(own_grids));
        y = features_of(m, own_values, own_grids, recompute);
    }
    MODEL_RELEASE(own_grids, own_values);
    return y;
}

/* Features of all images, each computed by one shard. */
static sz_tensor *dealt_features(const qwen_model *m, sz_tensor *pixel_values,
                                 const sz_tensor *grids, int recompute)
{
    image_list list = list_images(&m->config, grids);
    deal d = { 0 };
    if (measure(&list, pixel_values->shape[0]) != 0 || deal_images(m, &list, &d) != 0) return NULL;
    sz_tensor *own = own_features(m, &d, pixel_values, grids, recompute);
    const int group = sz_comm_handle(m->base.group);
    sz_tensor *all = own ? sz_tp_gather(own, d.tokens, group, m->base.shards, 0) : NULL;
    MODEL_RELEASE(own, d.tokens);
    return all;
}

sz_tensor *qwen_vision(sz_model *base, sz_tensor *pixel_values, sz_tensor *grids, int recompute)
{
    const qwen_model *m = qwen_of(base);
    const sz_qwen_config *c = &m->config;
    if (sz_tensor_alive(pixel_values) != 0 || !sz_tensor_data(grids)) return NULL;
    int64_t width = (int64_t)c->v_channels * c->v_temporal * c->v_patch * c->v_patch;
    const bool patches = pixel_values->ndim == 2 && pixel_values->shape[1] == width;
    if (!patches || grids->dtype != SZ_I32 || grids->numel % 3)
        return sz_null("vision: pixel_values must be [patches, %lld] and grids i32 [images, 3]",
                       (long long)width);
    if (base->shards > 1) return dealt_features(m, pixel_values, grids, recompute);
    return features_of(m, pixel_values, grids, recompute);
}
