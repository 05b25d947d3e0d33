/* qwen_vision.c - the vision towers of Qwen2.5-VL and Qwen2-VL: patches -> features of the picture tokens.
 *
 *   pixel_values [N, 1176] -> patch embedding [N, D] -> window order -> depth blocks -> merger [N/4, out] -> raster order
 *
 * Rows are patches in merge-block order (2x2 patches of one token are neighbours). Windows are segments of the row order:
 * tokens are permuted so that each window is contiguous, and put back after the merger. The 2-D rotary table is made in
 * the permuted order. Qwen2-VL is the case of one window as large as the picture, so its rows keep their order; its norms
 * are LayerNorms and its MLP is fc2(quick_gelu(fc1(x))), which shows in the weights that a block has.
 * Leaves out: videos with timestamps (t > 1 repeats the table per frame, as the reference does). */
#include "qwen.h"
#include <math.h>
#include <stdlib.h>

static const double NORM_EPS = 1e-6;        /* hard-coded in the reference; not the config's rms_norm_eps */

typedef struct {
    sz_tensor *order, *back;                /* i32 [N/unit]: token at each place; place of each token */
    sz_tensor *patch_order;                 /* i32 [N] */
    sz_tensor *cosines, *sines;             /* f32 [N, head_dim/2], in window order */
    sz_tensor *windows, *wholes;            /* segments i32 [., 6] */
} vision_plan;

static void plan_release(vision_plan *p)
{
    sz_tensor *all[] = { p->order, p->back, p->patch_order, p->cosines, p->sines, p->windows, p->wholes };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) sz_tensor_release(all[i]);
}

static void put_segment(int32_t *s, int64_t start, int64_t length)
{
    const int32_t row[6] = { (int32_t)start, (int32_t)length, (int32_t)start, (int32_t)length, 0, 0 };
    memcpy(s, row, sizeof row);
}

/* Token order, segment tables and rotary angles (on the device) for a list of pictures. */
static int make_plan(const sz_qwen_config *c, const sz_tensor *grids, int64_t patches, int device, vision_plan *p)
{
    int64_t merge = c->v_merge, unit = merge * merge;
    int64_t side = c->family == SZ_QWEN2_VL ? INT32_MAX : c->v_window / merge / c->v_patch;
    const int32_t *g = sz_i32(grids);
    int64_t pictures = grids->numel / 3, frames = 0, windows = 0, total = 0;
    for (int64_t i = 0; i < pictures; i++) {
        int64_t t = g[3 * i], h = g[3 * i + 1], w = g[3 * i + 2];
        if (t <= 0 || h <= 0 || w <= 0 || h % merge || w % merge)
            return sz_fail("picture %lld has a grid of %lld x %lld x %lld patches", (long long)i + 1, (long long)t, (long long)h, (long long)w);
        frames += t;
        windows += t * ((h / merge + side - 1) / side) * ((w / merge + side - 1) / side);
        total += t * h * w;
    }
    if (total != patches) return sz_fail("the grids hold %lld patches, pixel_values has %lld", (long long)total, (long long)patches);

    int64_t half = c->v_hidden / c->v_heads / 2, quarter = half / 2;
    p->order = sz_new1(SZ_I32, total / unit, SZ_CPU);
    p->back = sz_new1(SZ_I32, total / unit, SZ_CPU);
    p->patch_order = sz_new1(SZ_I32, total, SZ_CPU);
    p->cosines = sz_new2(SZ_F32, total, half, SZ_CPU);
    p->sines = sz_new2(SZ_F32, total, half, SZ_CPU);
    p->windows = sz_new2(SZ_I32, windows, 6, SZ_CPU);
    p->wholes = sz_new2(SZ_I32, frames, 6, SZ_CPU);
    if (!p->order || !p->back || !p->patch_order || !p->cosines || !p->sines || !p->windows || !p->wholes) return -1;

    int64_t place = 0, first = 0, window = 0, whole = 0;        /* in tokens */
    for (int64_t i = 0; i < pictures; i++) {
        int64_t hm = g[3 * i + 1] / merge, wm = g[3 * i + 2] / merge;
        for (int64_t t = 0; t < g[3 * i]; t++, first += hm * wm) {
            put_segment(sz_i32(p->wholes) + 6 * whole++, first * unit, hm * wm * unit);
            for (int64_t y0 = 0; y0 < hm; y0 += side)
                for (int64_t x0 = 0; x0 < wm; x0 += side) {
                    int64_t start = place;
                    for (int64_t y = y0; y < hm && y < y0 + side; y++)
                        for (int64_t x = x0; x < wm && x < x0 + side; x++, place++) {
                            int64_t token = first + y * wm + x;
                            sz_i32(p->order)[place] = (int32_t)token;
                            sz_i32(p->back)[token] = (int32_t)place;
                            for (int64_t u = 0; u < unit; u++) {
                                int64_t row = place * unit + u;
                                sz_i32(p->patch_order)[row] = (int32_t)(token * unit + u);
                                float at[2] = { (float)(y * merge + u / merge), (float)(x * merge + u % merge) };
                                for (int64_t j = 0; j < half; j++) {
                                    float frequency = 1.0f / powf(10000.0f, (float)(2 * (j % quarter)) / (float)half);
                                    float angle = at[j / quarter] * frequency;
                                    sz_f32(p->cosines)[row * half + j] = cosf(angle);
                                    sz_f32(p->sines)[row * half + j] = sinf(angle);
                                }
                            }
                        }
                    put_segment(sz_i32(p->windows) + 6 * window++, start * unit, (place - start) * unit);
                }
        }
    }
    return sz_tensor_move(&p->cosines, device) == 0 ? sz_tensor_move(&p->sines, device) : -1;
}

typedef struct {
    const sz_qwen *m;
    int index;
    sz_tensor *cosines, *sines, *segments;
} block_ctx;

static sz_tensor *normalise(sz_tensor *x, sz_tensor *weight, sz_tensor *bias)
{
    return bias ? sz_layernorm(x, weight, bias, NORM_EPS) : sz_rmsnorm(x, weight, NORM_EPS);
}

/* The activations between the MLP's linear layers. */
static sz_tensor *mlp_inner(const sz_qwen *m, const qwen_block *b, sz_tensor *x)
{
    sz_tensor *wide = b->gate.w ? QWEN_LINEAR(m, x, NULL, &b->gate, &b->up) : QWEN_LINEAR(m, x, NULL, &b->up);
    sz_tensor *act = b->gate.w ? sz_swiglu(wide) : sz_quick_gelu(wide);
    sz_tensor_release(wide);
    return act;
}

static sz_tensor *block_forward(const void *context, sz_tensor *x)
{
    const block_ctx *k = context;
    const qwen_block *b = &k->m->blocks[k->index];
    const sz_qwen_config *c = &k->m->config;
    int heads = c->v_heads, d = c->v_hidden / heads;
    sz_tensor *n1 = normalise(x, b->norm1, b->norm1_b);
    sz_tensor *qkv = QWEN_LINEAR(k->m, n1, NULL, &b->qkv);
    sz_tensor *turned = sz_rope(qkv, k->cosines, k->sines, 2 * heads, d);
    sz_tensor *a = sz_attention(turned, k->segments, heads, heads, d, false, 1 / sqrt((double)d));
    sz_tensor *o = QWEN_LINEAR(k->m, a, NULL, &b->proj);
    sz_tensor *mid = sz_add(x, o);
    sz_tensor *n2 = normalise(mid, b->norm2, b->norm2_b);
    sz_tensor *act = mlp_inner(k->m, b, n2);
    sz_tensor *down = QWEN_LINEAR(k->m, act, NULL, &b->down);
    sz_tensor *y = mid ? sz_add(mid, down) : NULL;
    sz_tensor *made[] = { n1, qkv, turned, a, o, mid, n2, act, down };
    for (size_t i = 0; i < sizeof made / sizeof *made; i++) sz_tensor_release(made[i]);
    return y;
}

static sz_tensor *merger_forward(const void *context, sz_tensor *x)
{
    const sz_qwen *m = *(const sz_qwen *const *)context;
    int64_t merged = (int64_t)m->config.v_hidden * m->config.v_merge * m->config.v_merge;
    sz_tensor *n = normalise(x, m->ln_q, m->ln_q_b);
    sz_tensor *wide = n ? sz_reshape2(n, n->numel / merged, merged) : NULL;
    sz_tensor *a = QWEN_LINEAR(m, wide, NULL, &m->merge0);
    sz_tensor *g = sz_gelu(a);
    sz_tensor *y = QWEN_LINEAR(m, g, NULL, &m->merge2);
    sz_tensor *made[] = { n, wide, a, g };
    for (size_t i = 0; i < sizeof made / sizeof *made; i++) sz_tensor_release(made[i]);
    return y;
}

sz_tensor *sz_qwen_vision(sz_qwen *m, sz_tensor *pixel_values, sz_tensor *grids, int recompute)
{
    const sz_qwen_config *c = &m->config;
    if (qwen_check(m) != 0 || sz_tensor_alive(pixel_values) != 0 || !sz_tensor_data(grids)) return NULL;
    int64_t width = (int64_t)c->v_channels * c->v_temporal * c->v_patch * c->v_patch;
    if (pixel_values->ndim != 2 || pixel_values->shape[1] != width || grids->dtype != SZ_I32 || grids->numel % 3)
        return sz_null("vision: pixel_values must be [patches, %lld] and grids i32 [pictures, 3]", (long long)width);
    vision_plan p = { 0 };
    sz_tensor *x = NULL, *y = NULL;
    const sz_tensor *like = m->patch_embed;
    if (make_plan(c, grids, pixel_values->shape[0], like->device, &p) == 0) {
        sz_tensor *cast = sz_tensor_to(pixel_values, like->device);
        if (cast && cast->dtype != like->dtype) {
            sz_tensor *wide = cast;
            cast = sz_cast(wide, like->dtype);
            sz_tensor_release(wide);
        }
        sz_tensor *rows = sz_gather_rows(cast, p.patch_order);
        x = sz_linear(rows, m->patch_embed, NULL);
        sz_tensor_release(cast);
        sz_tensor_release(rows);
    }
    for (int i = 0; x && i < c->v_depth; i++) {
        block_ctx k = { m, i, p.cosines, p.sines, c->v_full[i] ? p.wholes : p.windows };
        /* Without gradients too: then the blocks use the same workspace, one after another. */
        sz_tensor *next = recompute || !sz_grad_enabled() ? sz_checkpoint(block_forward, &k, sizeof k, x) : block_forward(&k, x);
        sz_tensor_release(x);
        x = next;
    }
    if (x) {
        const sz_qwen *self = m;
        sz_tensor *merged = recompute || !sz_grad_enabled() ? sz_checkpoint(merger_forward, &self, sizeof self, x) : merger_forward(&self, x);
        y = sz_gather_rows(merged, p.back);
        sz_tensor_release(merged);
    }
    sz_tensor_release(x);
    plan_release(&p);
    return y;
}
