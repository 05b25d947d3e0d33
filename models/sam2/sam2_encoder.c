/* sam2_encoder.c - Hiera and its feature pyramid: pictures -> the maps that the mask decoder reads.
 *
 *   pixels [B, S, S, 3] -> patches [B (S/4)^2, C] + positions -> four stages of blocks -> neck -> embedding, high1, high0
 *
 * A map is rows of channels. While blocks attend in windows of w cells its rows are kept window after window (a layout), so
 * that a window is a segment; only a change of w moves rows. Where windows stick out of the map the reference fills them
 * with zeros after the norm: those cells have the projection's bias as key and value. Here a few zero rows stand at the end
 * of the map, and each window that sticks out sees as many of them, as its parent range, as it lacks cells. */
#include "sam2.h"
#include <math.h>

/* How the rows of `pictures` maps of side x side cells lie: window after window (the last of a line may be cut), or in raster
 * order when window is 0. */
typedef struct { int64_t pictures, side, window; } layout;

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t cells(const layout *l) { return l->pictures * l->side * l->side; }
static int64_t windows_across(const layout *l) { return l->window ? (l->side + l->window - 1) / l->window : 1; }

/* The row of cell (y, x) of picture b. */
static int64_t place(const layout *l, int64_t b, int64_t y, int64_t x)
{
    int64_t side = l->side, w = l->window ? l->window : side, wy = y / w, wx = x / w;
    int64_t rows = least(w, side - wy * w), cols = least(w, side - wx * w);
    return b * side * side + wy * w * side + rows * wx * w + (y - wy * w) * cols + x - wx * w;
}

/* For each row of `to` the row of `from` that holds the same cell; a map twice as fine reads each coarse cell four times. */
static sz_tensor *moves(const layout *from, const layout *to)
{
    int64_t ratio = to->side / from->side;
    sz_tensor *ids = sz_new1(SZ_I32, cells(to), SZ_CPU);
    if (!ids) return NULL;
    int32_t *p = sz_i32(ids);
    for (int64_t b = 0; b < to->pictures; b++)
        for (int64_t y = 0; y < to->side; y++)
            for (int64_t x = 0; x < to->side; x++) p[place(to, b, y, x)] = (int32_t)place(from, b, y / ratio, x / ratio);
    return ids;
}

static sz_tensor *rearranged(sz_tensor *x, const layout *from, const layout *to)
{
    if (!x) return NULL;
    if (from->side == to->side && from->window == to->window) return sz_tensor_retain(x);
    sz_tensor *ids = moves(from, to), *y = ids ? sz_gather_rows(x, ids) : NULL;
    sz_tensor_release(ids);
    return y;
}

/* What one block reads besides x. */
typedef struct {
    const sz_sam2 *m;
    const sam2_block *block;
    int64_t rows, padding;          /* of the map; zero rows behind it */
    bool training;                  /* gradients are wanted: what their rules need is kept */
    sz_tensor *segments;            /* i32 [., 6] */
    sz_tensor *query_cells, *shortcut_cells;    /* i32 [rows / 4, 4] where the block pools */
} block_ctx;

static void ctx_release(block_ctx *k)
{
    sz_tensor_release(k->segments);
    sz_tensor_release(k->query_cells);
    sz_tensor_release(k->shortcut_cells);
    k->segments = k->query_cells = k->shortcut_cells = NULL;
}

/* Windows of `queries` (the same layout, or the pooled one) over windows of `keys`. */
static int plan_segments(block_ctx *k, const layout *keys, const layout *queries)
{
    int64_t across = windows_across(keys), w = keys->window ? keys->window : keys->side, q = queries->window ? queries->window : queries->side;
    k->rows = cells(keys);
    k->padding = 0;
    k->segments = sz_new2(SZ_I32, keys->pictures * across * across, 6, SZ_CPU);
    if (!k->segments) return -1;
    int32_t *s = sz_i32(k->segments);
    for (int64_t b = 0; b < keys->pictures; b++)
        for (int64_t wy = 0; wy < across; wy++)
            for (int64_t wx = 0; wx < across; wx++, s += 6) {
                int64_t length = least(w, keys->side - wy * w) * least(w, keys->side - wx * w), lacks = w * w - length;
                s[0] = (int32_t)place(queries, b, wy * q, wx * q);
                s[1] = (int32_t)(least(q, queries->side - wy * q) * least(q, queries->side - wx * q));
                s[2] = (int32_t)place(keys, b, wy * w, wx * w);
                s[3] = (int32_t)length;
                s[4] = (int32_t)k->rows;
                s[5] = (int32_t)lacks;
                if (lacks > k->padding) k->padding = lacks;
            }
    return 0;
}

/* The four cells that each pooled cell is the maximum of. Queries are pooled inside their window, where a cell beyond the map is
 * a padding row and an odd window drops its last line; the shortcut is pooled over the whole map. */
static int plan_pooling(block_ctx *k, const layout *in, const layout *out)
{
    k->query_cells = sz_new2(SZ_I32, cells(out), 4, SZ_CPU);
    k->shortcut_cells = sz_new2(SZ_I32, cells(out), 4, SZ_CPU);
    if (!k->query_cells || !k->shortcut_cells) return -1;
    for (int64_t b = 0; b < out->pictures; b++)
        for (int64_t y = 0; y < out->side; y++)
            for (int64_t x = 0; x < out->side; x++) {
                int64_t row = 4 * place(out, b, y, x);
                int64_t y0 = y / out->window * in->window + 2 * (y % out->window), x0 = x / out->window * in->window + 2 * (x % out->window);
                for (int64_t i = 0; i < 4; i++) {
                    int64_t qy = y0 + i / 2, qx = x0 + i % 2;
                    sz_i32(k->query_cells)[row + i] = (int32_t)(qy < in->side && qx < in->side ? place(in, b, qy, qx) : k->rows);
                    sz_i32(k->shortcut_cells)[row + i] = (int32_t)place(in, b, 2 * y + i / 2, 2 * x + i % 2);
                }
            }
    return 0;
}

/* Attention of a block that pools its queries: qkv as three products, since the parts go different ways. */
static sz_tensor *pooled_attention(const block_ctx *k, sz_tensor *x, int heads, int d)
{
    const sam2_block *b = k->block;
    int64_t width = (int64_t)heads * d;
    sz_tensor *part[3] = { 0 };
    for (int i = 0; i < 3; i++) {
        sz_tensor *w = sz_narrow(b->qkv.w, i * width, width), *bias = sz_narrow(b->qkv.b, i * width, width);
        part[i] = bias ? sz_linear(x, w, bias) : NULL;
        sz_tensor_release(w);
        sz_tensor_release(bias);
    }
    sam2_move(&part[0], sz_max_pool_rows(part[0], k->query_cells));
    sz_tensor *y = sz_attention_cross(part[0], part[1], part[2], k->segments, heads, heads, d, false, 1 / sqrt((double)d));
    for (int i = 0; i < 3; i++) sz_tensor_release(part[i]);
    return y;
}

static sz_tensor *block_forward(const void *context, sz_tensor *x)
{
    const block_ctx *k = context;
    const sam2_block *b = k->block;
    const sz_sam2_config *c = &k->m->config;
    int heads = c->heads[b->stage], d = c->width[b->stage] / heads;
    sz_tensor *n1 = sz_layernorm(x, b->norm1.w, b->norm1.b, c->norm_eps);
    sz_tensor *shortcut = sz_tensor_retain(x), *a;
    if (b->shortcut.w) sam2_move(&shortcut, sam2_linear(n1, &b->shortcut));        /* of the normalised map */
    if (b->pool) sam2_move(&shortcut, sz_max_pool_rows(shortcut, k->shortcut_cells));
    if (k->padding) sam2_move(&n1, sz_pad_rows(n1, k->padding));
    if (b->pool) {
        a = pooled_attention(k, n1, heads, d);
    } else {
        sz_tensor *qkv = sam2_linear(n1, &b->qkv);
        a = sz_attention(qkv, k->segments, heads, heads, d, false, 1 / sqrt((double)d));
        sz_tensor_release(qkv);
        if (k->padding) sam2_move(&a, sz_narrow(a, 0, k->rows));
    }
    sz_tensor *o = sam2_linear(a, &b->out);
    sz_tensor *mid = sz_add(shortcut, o);
    sz_tensor *n2 = sz_layernorm(mid, b->norm2.w, b->norm2.b, c->norm_eps);
    sz_tensor *up = k->training ? sam2_linear(n2, &b->up) : NULL;
    sz_tensor *act = k->training ? sz_gelu(up) : sz_linear_gelu(n2, b->up.w, b->up.b);
    sz_tensor *down = sam2_linear(act, &b->down);
    sz_tensor *y = sz_add(mid, down);
    sz_tensor *made[] = { n1, shortcut, a, o, mid, n2, up, act, down };
    for (size_t i = 0; i < sizeof made / sizeof *made; i++) sz_tensor_release(made[i]);
    return y;
}

/* A weight [1, C, h, w] as rows [h * w, C]: multiplied by the identity, which is exact. */
static sz_tensor *as_rows(sz_tensor *w)
{
    int64_t channels = w->shape[1], n = w->shape[2] * w->shape[3];
    sz_tensor *identity = sz_tensor_zeros(SZ_F32, 2, (int64_t[]){ channels, channels }, SZ_CPU);
    for (int64_t i = 0; identity && i < channels; i++) sz_f32(identity)[i * channels + i] = 1;
    if (identity && w->device != SZ_CPU) sam2_move(&identity, sz_tensor_to(identity, w->device));
    if (w->dtype != SZ_F32) sam2_move(&identity, sz_cast(identity, w->dtype));
    sz_tensor *flat = sz_reshape2(w, channels, n), *y = sz_matmul(flat, identity, true, false);
    sz_tensor_release(identity);
    sz_tensor_release(flat);
    return y;
}

/* The position code of every cell [side^2, C]: the background stretched over the map, the window's repeated. */
static sz_tensor *positions(const sz_sam2 *m, int64_t side)
{
    const sz_sam2_config *c = &m->config;
    sz_tensor *background = as_rows(m->position), *window = as_rows(m->position_window), *ids = sz_new1(SZ_I32, side * side, SZ_CPU);
    sam2_move(&background, sz_reshape4(background, 1, c->background[0], c->background[1], c->width[0]));
    sam2_move(&background, sz_resize(background, side, side, SZ_BICUBIC));
    sam2_move(&background, sz_reshape2(background, side * side, c->width[0]));
    for (int64_t i = 0; ids && i < side * side; i++) sz_i32(ids)[i] = (int32_t)(i / side % 8 * 8 + i % side % 8);
    sam2_move(&window, ids ? sz_gather_rows(window, ids) : NULL);
    sz_tensor *y = background && window ? sz_add(background, window) : NULL;
    sz_tensor_release(background);
    sz_tensor_release(window);
    sz_tensor_release(ids);
    return y;
}

/* pixels -> patches with positions, [B * side^2, C] in layout l. */
static sz_tensor *embed(const sz_sam2 *m, sz_tensor *pixels, const layout *l)
{
    const sz_sam2_config *c = &m->config;
    int64_t side = l->side, width = c->width[0];
    sz_tensor *x = sz_tensor_to(pixels, m->patch.w->device);
    if (x && x->dtype != m->patch.w->dtype) sam2_move(&x, sz_cast(x, m->patch.w->dtype));
    sam2_move(&x, sz_conv2d(x, m->patch.w, m->patch.b, c->patch_stride, c->patch_padding));
    sam2_move(&x, x ? sz_reshape4(x, l->pictures, side * side, width, 0) : NULL);
    sz_tensor *at = positions(m, side);
    sam2_move(&x, at ? sz_add(x, at) : NULL);
    sz_tensor_release(at);
    sam2_move(&x, x ? sz_reshape2(x, cells(l), width) : NULL);
    const layout raster = { l->pictures, side, 0 };
    sam2_move(&x, rearranged(x, &raster, l));
    return x;
}

/* All blocks; stage_out[s], at[s]: the output of stage s and its layout. */
static int run_stages(const sz_sam2 *m, sz_tensor *pixels, int recompute, sz_tensor *stage_out[SZ_SAM2_STAGES], layout at[SZ_SAM2_STAGES])
{
    const sz_sam2_config *c = &m->config;
    layout l = { pixels->shape[0], c->image_size / 4, m->blocks[0].window };
    sz_tensor *x = embed(m, pixels, &l);
    block_ctx k = { .m = m, .training = sz_grad_enabled() };
    bool whole = false;             /* the plan in k is one of a whole map */
    for (int i = 0; x && i < m->block_count; i++) {
        const sam2_block *b = &m->blocks[i];
        if (b->window && b->window != l.window) {
            layout to = { l.pictures, l.side, b->window };
            sam2_move(&x, rearranged(x, &l, &to));
            l = to;
            ctx_release(&k);
        }
        layout out = l;
        if (b->pool || whole != !b->window) ctx_release(&k);
        if (b->pool) out = (layout){ l.pictures, l.side / 2, l.window / 2 };
        if (!k.segments) {
            const layout all = { l.pictures, l.side, 0 };
            whole = !b->window;
            if (plan_segments(&k, whole ? &all : &l, whole ? &all : &out) != 0 || (b->pool && plan_pooling(&k, &l, &out) != 0)) sam2_move(&x, NULL);
        }
        k.block = b;
        /* Without gradients too: then the blocks use the same workspace, one after another. */
        sam2_move(&x, recompute || !sz_grad_enabled() ? sz_checkpoint(block_forward, &k, sizeof k, x) : x ? block_forward(&k, x) : NULL);
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

int sz_sam2_encode(sz_sam2 *m, sz_tensor *pixels, int recompute, sz_tensor **embedding, sz_tensor **high1, sz_tensor **high0, sz_tensor **stages)
{
    const sz_sam2_config *c = &m->config;
    if (sam2_check(m) != 0 || sz_tensor_alive(pixels) != 0) return -1;
    if (pixels->ndim != 4 || pixels->shape[1] != c->image_size || pixels->shape[2] != c->image_size || pixels->shape[3] != 3 || pixels->shape[0] < 1)
        return sz_fail("sam2: pixels must be [pictures, %d, %d, 3]", c->image_size, c->image_size);
    sz_tensor *x[SZ_SAM2_STAGES] = { 0 }, *above = NULL, *result[3] = { 0 };
    layout l[SZ_SAM2_STAGES] = { 0 };
    int rc = run_stages(m, pixels, recompute, x, l);
    for (int s = SZ_SAM2_STAGES - 1; rc == 0 && s >= 0; s--) {
        sz_tensor *y = sam2_linear(x[s], &m->neck[SZ_SAM2_STAGES - 1 - s]);
        if (c->top_down[s] && above) {
            sz_tensor *doubled = rearranged(above, &l[s + 1], &l[s]);
            sam2_move(&y, doubled ? sz_add(y, doubled) : NULL);
            sz_tensor_release(doubled);
        }
        sam2_move(&above, y);
        if (s == SZ_SAM2_STAGES - 1) continue;
        sz_tensor *out = s == 2 ? sz_tensor_retain(y) : sam2_linear(y, s ? &m->high1 : &m->high0);
        const layout raster = { l[s].pictures, l[s].side, 0 };
        sam2_move(&out, rearranged(out, &l[s], &raster));
        if (s == 2) sam2_move(&out, sz_add(out, m->no_memory));
        result[2 - s] = out;
        if (!out) rc = -1;
    }
    for (int s = 0; s < SZ_SAM2_STAGES; s++) {
        if (stages) {
            const layout raster = { l[s].pictures, l[s].side, 0 };
            stages[s] = rc == 0 ? rearranged(x[s], &l[s], &raster) : NULL;
        }
        sz_tensor_release(x[s]);
    }
    sz_tensor_release(above);
    if (rc != 0)
        for (int i = 0; i < 3; i++) sam2_move(&result[i], NULL);
    *embedding = result[0];
    *high1 = result[1];
    *high0 = result[2];
    return rc;
}
