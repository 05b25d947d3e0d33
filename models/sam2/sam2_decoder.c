/* sam2_decoder.c - prompts and a picture's maps to masks: prompt encoder, two-way transformer, upscaling, heads.
 *
 *   tokens of prompt p: object, iou, masks, points   [Q, D]      image: embedding + mask prompt   [P E, D], E = (S/16)^2
 *   layers: tokens see tokens, tokens see the image, MLP, the image sees the tokens; then tokens see the image once more
 *   image -> twice as fine + high1 -> twice as fine + high0 -> [P 16 E, D/8]; each mask token gives D/8 weights over it
 *
 * Prompts lie end to end and segments keep them apart. Without mask prompts all prompts of a picture share its rows up to the
 * first time the image changes. Position codes are computed here, in f32, from the checkpoint's own frequencies. */
#include "sam2.h"
#include <math.h>

static const double TOKEN_EPS = 1e-5, MAP_EPS = 1e-6;      /* of the transformer's norms; of those over maps */

/* Code of a point (x, y) in [0, 1]: sines, then cosines, of 2 pi (2 p - 1) G. */
static void encode_position(const sz_tensor *frequencies, float x, float y, float *out)
{
    int64_t half = frequencies->shape[1];
    for (int64_t j = 0; j < half; j++) {
        float v = (2 * x - 1) * sz_get(frequencies, j) + (2 * y - 1) * sz_get(frequencies, half + j);
        v *= (float)(2 * M_PI);
        out[j] = sinf(v);
        out[half + j] = cosf(v);
    }
}

/* The frequencies in host memory: the weight itself, or a copy kept with the model. NULL with a message. */
static const sz_tensor *frequencies_here(sz_sam2 *m)
{
    if (m->frequencies->device == SZ_CPU) return m->frequencies;
    if (m->frequencies_copy) return m->frequencies_copy;
    sz_tensor *t = sz_tensor_new_heap(m->frequencies->dtype, m->frequencies->ndim, m->frequencies->shape, SZ_CPU);
    if (t && sz_tensor_copy(t, m->frequencies) != 0) sam2_move(&t, NULL);
    return m->frequencies_copy = t;
}

/* A constant f32 tensor in the weights' dtype and on their device. Takes over x. */
static sz_tensor *as_weights(const sz_sam2 *m, sz_tensor *x)
{
    if (x) sam2_move(&x, sz_tensor_to(x, m->no_mask->device));
    if (x && m->no_mask->dtype != SZ_F32) sam2_move(&x, sz_cast(x, m->no_mask->dtype));
    return x;
}

/* The code of every cell of the embedding [E, D]; kept with the model. */
static sz_tensor *grid(sz_sam2 *m, const sz_tensor *frequencies, int64_t side)
{
    if (m->grid) return m->grid;
    int64_t d = m->config.hidden;
    sz_tensor *g = sz_tensor_new_heap(SZ_F32, 2, (int64_t[]){ side * side, d }, SZ_CPU);
    #pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < (g ? side * side : 0); i++)
        encode_position(frequencies, ((float)(i % side) + 0.5f) / (float)side, ((float)(i / side) + 0.5f) / (float)side, sz_f32(g) + i * d);
    if (g && (m->no_mask->dtype != SZ_F32 || m->no_mask->device != SZ_CPU)) {
        sz_tensor *h = sz_tensor_new_heap(m->no_mask->dtype, 2, (int64_t[]){ side * side, d }, m->no_mask->device);
        if (h && sz_tensor_copy(h, g) != 0) sam2_move(&h, NULL);
        sam2_move(&g, h);
    }
    return m->grid = g;
}

/* What the layers share. */
typedef struct {
    const sz_sam2 *m;
    const sz_tensor *frequencies;               /* in host memory */
    int64_t prompts, cells, tokens;             /* P, E, Q */
    const int32_t *count, *picture;             /* points and picture of each prompt */
    sz_tensor *first;                           /* the tokens as they began; their position code throughout */
    sz_tensor *grid;
    sz_tensor *among_tokens, *to_shared, *to_image, *to_tokens;     /* segments */
    sz_tensor *own_rows;                        /* i32 [P E]: the shared row behind each prompt's row */
} decode_ctx;

static int fixed_tokens(const sz_sam2 *m) { return 2 + m->config.masks; }

/* ids[i] = f(i) for i < n. */
#define IDS(n, expression) __extension__({ sz_tensor *ids_ = sz_new1(SZ_I32, (n), SZ_CPU); for (int64_t i = 0; ids_ && i < (n); i++) sz_i32(ids_)[i] = (int32_t)(expression); ids_; })

/* x with rows `ids` replaced by rows `which` of the weight `table`. Takes over x and ids. */
static sz_tensor *put_weights(sz_tensor *x, sz_tensor *ids, sz_tensor *table, sz_tensor *which)
{
    sz_tensor *rows = ids && which ? sz_embedding(table, which) : NULL, *y = sz_index_copy(x, ids, rows);
    sz_tensor *used[] = { x, ids, which, rows };
    for (size_t i = 0; i < sizeof used / sizeof *used; i++) sz_tensor_release(used[i]);
    return y;
}

/* Prompt p's tokens begin here. */
static int64_t token_start(const decode_ctx *k, int64_t p)
{
    int64_t at = p * fixed_tokens(k->m);
    for (int64_t i = 0; i < p; i++) at += k->count[i];
    return at;
}

/* Point tokens: their position's code plus their label's embedding; padding is an embedding alone. */
static sz_tensor *put_points(decode_ctx *k, sz_tensor *x, const sz_tensor *points, const sz_tensor *labels)
{
    const sz_sam2 *m = k->m;
    int64_t d = m->config.hidden, n = labels ? labels->numel : 0, kinds[2] = { 0, 0 };
    const int32_t *label = n ? sz_i32(labels) : NULL;
    for (int64_t i = 0; i < n; i++) kinds[label[i] >= 0]++;
    sz_tensor *codes = sz_new2(SZ_F32, kinds[1], d, SZ_CPU), *with = sz_new1(SZ_I32, kinds[1], SZ_CPU), *name = sz_new1(SZ_I32, kinds[1], SZ_CPU);
    sz_tensor *without = sz_new1(SZ_I32, kinds[0], SZ_CPU), *zero = IDS(kinds[0], 0);
    if (codes && with && name && without) {
        int64_t at = 0, other = 0, i = 0;
        for (int64_t p = 0; p < k->prompts; p++) {
            int64_t row = token_start(k, p) + fixed_tokens(m);
            for (int64_t j = 0; j < k->count[p]; j++, i++, row++) {
                if (label[i] < 0) {
                    sz_i32(without)[other++] = (int32_t)row;
                    continue;
                }
                float size = (float)m->config.image_size;
                encode_position(k->frequencies, (sz_f32(points)[2 * i] + 0.5f) / size, (sz_f32(points)[2 * i + 1] + 0.5f) / size, sz_f32(codes) + at * d);
                sz_i32(name)[at] = label[i];
                sz_i32(with)[at++] = (int32_t)row;
            }
        }
    }
    if (kinds[0]) {
        x = put_weights(x, without, m->not_a_point, zero);
        without = zero = NULL;
    }
    if (kinds[1]) {
        codes = as_weights(m, codes);
        sz_tensor *embedded = name ? sz_embedding(m->point_embed, name) : NULL;
        sam2_move(&embedded, codes && embedded ? sz_add(codes, embedded) : NULL);
        sam2_move(&x, with ? sz_index_copy(x, with, embedded) : NULL);
        sz_tensor_release(embedded);
    }
    sz_tensor *made[] = { codes, with, name, without, zero };
    for (size_t i = 0; i < sizeof made / sizeof *made; i++) sz_tensor_release(made[i]);
    return x;
}

/* [Q, D]: object, iou and mask tokens of each prompt, then its points. */
static sz_tensor *make_tokens(decode_ctx *k, const sz_tensor *points, const sz_tensor *labels)
{
    const sz_sam2 *m = k->m;
    int64_t P = k->prompts, masks = m->config.masks;
    sz_tensor *x = sz_tensor_zeros(m->no_mask->dtype, 2, (int64_t[]){ k->tokens, m->config.hidden }, m->no_mask->device);
    x = put_weights(x, IDS(P, token_start(k, i)), m->object_token, IDS(P, 0));
    x = put_weights(x, IDS(P, token_start(k, i) + 1), m->iou_token, IDS(P, 0));
    x = put_weights(x, IDS(P * masks, token_start(k, i / masks) + 2 + i % masks), m->mask_tokens, IDS(P * masks, i % masks));
    return put_points(k, x, points, labels);
}

/* One segment a prompt: q rows of its own, k rows of its own (or of its picture). */
static sz_tensor *segments(const decode_ctx *k, bool tokens_ask, bool tokens_answer, bool shared)
{
    sz_tensor *t = sz_new2(SZ_I32, k->prompts, 6, SZ_CPU);
    for (int64_t p = 0; t && p < k->prompts; p++) {
        int64_t start = token_start(k, p), length = fixed_tokens(k->m) + k->count[p], rows = (shared ? k->picture[p] : p) * k->cells;
        const int32_t row[6] = { (int32_t)(tokens_ask ? start : rows), (int32_t)(tokens_ask ? length : k->cells),
                                 (int32_t)(tokens_answer ? start : rows), (int32_t)(tokens_answer ? length : k->cells), 0, 0 };
        memcpy(sz_i32(t) + 6 * p, row, sizeof row);
    }
    return t;
}

/* x + the grid, for x of any number of whole maps. */
static sz_tensor *add_grid(const decode_ctx *k, sz_tensor *x)
{
    if (!x) return NULL;
    int64_t n = x->shape[0], d = x->shape[1];
    sz_tensor *maps = sz_reshape4(x, n / k->cells, k->cells, d, 0);
    sam2_move(&maps, sz_add(maps, k->grid));
    sam2_move(&maps, maps ? sz_reshape2(maps, n, d) : NULL);
    return maps;
}

/* q, k, v -> projections -> attention -> projection. expand: NULL, or row ids that q's projection is copied by. */
static sz_tensor *attend(const decode_ctx *k, const sam2_attention *a, sz_tensor *q, sz_tensor *keys, sz_tensor *v, sz_tensor *table, sz_tensor *expand)
{
    int heads = k->m->config.decoder_heads, d = (int)(a->q.w->shape[0] / heads);
    sz_tensor *x = sam2_linear(q, &a->q), *y = sam2_linear(keys, &a->k), *z = sam2_linear(v, &a->v);
    if (expand) sam2_move(&x, sz_gather_rows(x, expand));
    sam2_move(&x, sz_attention_cross(x, y, z, table, heads, heads, d, false, 1 / sqrt((double)d)));
    sam2_move(&x, sam2_linear(x, &a->out));
    sz_tensor_release(y);
    sz_tensor_release(z);
    return x;
}

/* *x = norm(*x + y), or norm(y) without *x. Takes over y. */
static void add_norm(sz_tensor **x, sz_tensor *y, const sam2_pair *norm)
{
    if (*x) sam2_move(&y, y ? sz_add(*x, y) : NULL);
    sam2_move(x, sz_layernorm(y, norm->w, norm->b, TOKEN_EPS));
    sz_tensor_release(y);
}

/* One layer of the two-way transformer. *image has a picture's rows once while *shared, a prompt's afterwards. */
static void two_way(const decode_ctx *k, const sam2_layer *l, bool first, sz_tensor **tokens, sz_tensor **image, bool *shared)
{
    sz_tensor *asked = sz_add(*tokens, k->first), *placed = add_grid(k, *image);
    if (first) {                                    /* no position code, nothing to add to */
        sz_tensor *y = attend(k, &l->self, *tokens, *tokens, *tokens, k->among_tokens, NULL);
        sam2_move(tokens, NULL);
        add_norm(tokens, y, &l->norm[0]);
    } else {
        add_norm(tokens, attend(k, &l->self, asked, asked, *tokens, k->among_tokens, NULL), &l->norm[0]);
    }
    sam2_move(&asked, sz_add(*tokens, k->first));
    add_norm(tokens, attend(k, &l->to_image, asked, placed, *image, *shared ? k->to_shared : k->to_image, NULL), &l->norm[1]);
    sz_tensor *wide = sam2_linear(*tokens, &l->up);
    sam2_move(&wide, sz_relu(wide));
    add_norm(tokens, sam2_linear(wide, &l->down), &l->norm[2]);
    sz_tensor_release(wide);
    sam2_move(&asked, sz_add(*tokens, k->first));
    sz_tensor *seen = attend(k, &l->to_tokens, placed, asked, *tokens, k->to_tokens, *shared ? k->own_rows : NULL);
    if (*shared) sam2_move(image, sz_gather_rows(*image, k->own_rows));
    *shared = false;
    add_norm(image, seen, &l->norm[3]);
    sz_tensor_release(asked);
    sz_tensor_release(placed);
}

/* Mask prompts f32 [P, 4g, 4g, 1] -> [P E, D]. */
static sz_tensor *embed_masks(const sz_sam2 *m, sz_tensor *masks)
{
    sz_tensor *x = as_weights(m, sz_tensor_retain(masks));
    sam2_move(&x, sz_conv2d(x, m->mask_conv1.w, m->mask_conv1.b, 2, 0));
    sam2_move(&x, sz_layernorm(x, m->mask_norm1.w, m->mask_norm1.b, MAP_EPS));
    sam2_move(&x, sz_gelu(x));
    sam2_move(&x, sz_conv2d(x, m->mask_conv2.w, m->mask_conv2.b, 2, 0));
    sam2_move(&x, sz_layernorm(x, m->mask_norm2.w, m->mask_norm2.b, MAP_EPS));
    sam2_move(&x, sz_gelu(x));
    sam2_move(&x, x ? sz_reshape2(x, x->numel / m->config.mask_channels, m->config.mask_channels) : NULL);
    sam2_move(&x, sam2_linear(x, &m->mask_conv3));
    return x;
}

/* Adds a picture's map [B side^2, C] to each prompt's [P, side, side, C]. Takes over x. */
static sz_tensor *add_high(const decode_ctx *k, sz_tensor *x, sz_tensor *high, int64_t pictures)
{
    if (!x) return NULL;
    int64_t cells = x->shape[1] * x->shape[2], c = x->shape[3];
    sz_tensor *flat = sz_reshape4(x, k->prompts, cells, c, 0), *y;
    if (pictures == 1) {
        y = sz_add(flat, high);
    } else {
        sz_tensor *ids = IDS(k->prompts * cells, k->picture[i / cells] * cells + i % cells), *own = ids ? sz_gather_rows(high, ids) : NULL;
        sam2_move(&own, own ? sz_reshape4(own, k->prompts, cells, c, 0) : NULL);
        y = own && flat ? sz_add(flat, own) : NULL;
        sz_tensor_release(ids);
        sz_tensor_release(own);
    }
    sam2_move(&y, y ? sz_reshape4(y, x->shape[0], x->shape[1], x->shape[2], c) : NULL);
    sz_tensor_release(flat);
    sz_tensor_release(x);
    return y;
}

/* The image's rows [P E, D] -> the fine map [P, 16 E, D/8]. */
static sz_tensor *upscale(const decode_ctx *k, sz_tensor *image, sz_tensor *high1, sz_tensor *high0, int64_t side, int64_t pictures)
{
    const sz_sam2 *m = k->m;
    sz_tensor *x = image ? sz_reshape4(image, k->prompts, side, side, m->config.hidden) : NULL;
    sam2_move(&x, sz_conv_transpose2d(x, m->upscale1.w, m->upscale1.b, 2, 0));
    x = add_high(k, x, high1, pictures);
    sam2_move(&x, sz_layernorm(x, m->upscale_norm.w, m->upscale_norm.b, MAP_EPS));
    sam2_move(&x, sz_gelu(x));
    sam2_move(&x, sz_conv_transpose2d(x, m->upscale2.w, m->upscale2.b, 2, 0));
    x = add_high(k, x, high0, pictures);
    sam2_move(&x, sz_gelu(x));
    sam2_move(&x, x ? sz_reshape4(x, k->prompts, 16 * k->cells, m->config.hidden / 8, 0) : NULL);
    return x;
}

/* A three-layer head on one token of each prompt, token `index` -> [P, out]. */
static sz_tensor *head(const decode_ctx *k, sz_tensor *tokens, int64_t index, const sam2_head *h)
{
    sz_tensor *ids = IDS(k->prompts, token_start(k, i) + index), *x = ids && tokens ? sz_gather_rows(tokens, ids) : NULL;
    sam2_move(&x, sam2_linear(x, &h->in));
    sam2_move(&x, sz_relu(x));
    sam2_move(&x, sam2_linear(x, &h->mid));
    sam2_move(&x, sz_relu(x));
    sam2_move(&x, sam2_linear(x, &h->out));
    sz_tensor_release(ids);
    return x;
}

/* tokens [Q, D] and the fine map -> logits [P, masks, 4g, 4g]. */
static sz_tensor *mask_logits(const decode_ctx *k, sz_tensor *tokens, sz_tensor *fine, int64_t side)
{
    const sz_sam2 *m = k->m;
    int64_t P = k->prompts, masks = m->config.masks, c = m->config.hidden / 8;
    sz_tensor *weights = fine ? sz_tensor_zeros(fine->dtype, 2, (int64_t[]){ P * masks, c }, fine->device) : NULL;
    for (int64_t j = 0; j < masks; j++) {
        sz_tensor *w = head(k, tokens, 2 + j, &m->hyper[j]), *ids = IDS(P, i * masks + j);
        sam2_move(&weights, ids ? sz_index_copy(weights, ids, w) : NULL);
        sz_tensor_release(w);
        sz_tensor_release(ids);
    }
    sam2_move(&weights, weights ? sz_reshape4(weights, P, masks, c, 0) : NULL);
    sam2_move(&weights, fine ? sz_matmul(weights, fine, false, true) : NULL);
    sam2_move(&weights, weights ? sz_reshape4(weights, P, masks, 4 * side, 4 * side) : NULL);
    return weights;
}

static int input_check(const sz_sam2 *m, const sz_tensor *embedding, const sz_tensor *high1, const sz_tensor *high0, const sz_tensor *pictures,
                       const sz_tensor *counts, const sz_tensor *points, const sz_tensor *labels, const sz_tensor *masks)
{
    int64_t d = m->config.hidden, side = m->config.image_size / m->config.prompt_patch, cells = side * side;
    if (sz_tensor_alive(embedding) != 0 || !high1 || !high0 || !pictures || !counts) return sz_fail("sam2: maps, pictures and counts are needed");
    int64_t B = embedding->shape[0] / cells, P = pictures->numel, n = labels ? labels->numel : 0, total = 0;
    if (embedding->ndim != 2 || embedding->shape[1] != d || B < 1 || embedding->shape[0] % cells || high1->numel != B * 4 * cells * d / 4 || high0->numel != B * 16 * cells * d / 8)
        return sz_fail("sam2: the maps are not those of %lld pictures", (long long)B);
    if (pictures->dtype != SZ_I32 || counts->dtype != SZ_I32 || P < 1 || counts->numel != P) return sz_fail("sam2: pictures and counts must be i32, one element a prompt");
    for (int64_t p = 0; p < P; p++) {
        int32_t picture = sz_i32(pictures)[p], count = sz_i32(counts)[p];
        if (picture < 0 || picture >= B) return sz_fail("sam2: prompt %lld is about picture %d of %lld", (long long)p + 1, picture + 1, (long long)B);
        if (count < 0) return sz_fail("sam2: prompt %lld has %d points", (long long)p + 1, count);
        total += count;
    }
    if (points && points->device != SZ_CPU) return sz_fail("sam2: points must be on the cpu");
    if (total != n || (n && (!points || points->dtype != SZ_F32 || points->numel != 2 * n || labels->dtype != SZ_I32)))
        return sz_fail("sam2: %lld points are counted, there are %lld labels", (long long)total, (long long)n);
    for (int64_t i = 0; i < n; i++)
        if (sz_i32(labels)[i] < -1 || sz_i32(labels)[i] > 3) return sz_fail("sam2: point %lld has the label %d", (long long)i + 1, sz_i32(labels)[i]);
    if (masks && (masks->dtype != SZ_F32 || masks->ndim != 4 || masks->shape[0] != P || masks->shape[1] != 4 * side || masks->shape[2] != 4 * side || masks->shape[3] != 1))
        return sz_fail("sam2: mask prompts must be f32 [prompts, %lld, %lld, 1]", (long long)(4 * side), (long long)(4 * side));
    return 0;
}

int sz_sam2_decode(sz_sam2 *m, sz_tensor *embedding, sz_tensor *high1, sz_tensor *high0, sz_tensor *pictures, sz_tensor *counts,
                   sz_tensor *points, sz_tensor *labels, sz_tensor *masks, sz_tensor **logits, sz_tensor **iou, sz_tensor **object)
{
    *logits = *iou = *object = NULL;
    if (sam2_check(m) != 0 || input_check(m, embedding, high1, high0, pictures, counts, points, labels, masks) != 0) return -1;
    int64_t side = m->config.image_size / m->config.prompt_patch, P = pictures->numel, B = embedding->shape[0] / (side * side);
    const sz_tensor *frequencies = frequencies_here(m);
    if (!frequencies) return -1;
    decode_ctx k = { .m = m, .frequencies = frequencies, .prompts = P, .cells = side * side, .count = sz_i32(counts), .picture = sz_i32(pictures) };
    k.tokens = token_start(&k, P);
    k.grid = grid(m, frequencies, side);
    k.first = make_tokens(&k, points, labels);
    k.among_tokens = segments(&k, true, true, false);
    k.to_shared = segments(&k, true, false, true);
    k.to_image = segments(&k, true, false, false);
    k.to_tokens = segments(&k, false, true, false);
    k.own_rows = IDS(P * k.cells, k.picture[i / k.cells] * k.cells + i % k.cells);

    bool shared = true;
    sz_tensor *tokens = sz_tensor_retain(k.first), *image;
    if (masks) {
        sz_tensor *dense = embed_masks(m, masks), *own = k.own_rows ? sz_gather_rows(embedding, k.own_rows) : NULL;
        image = dense && own ? sz_add(own, dense) : NULL;
        sz_tensor_release(dense);
        sz_tensor_release(own);
        shared = false;
    } else {
        image = sz_add(embedding, m->no_mask);
    }
    bool ready = k.grid && tokens && image && k.among_tokens && k.to_shared && k.to_image && k.to_tokens && k.own_rows;
    for (int i = 0; ready && i < m->config.layers; i++) {
        two_way(&k, &m->layers[i], i == 0, &tokens, &image, &shared);
        ready = tokens && image;
    }
    if (ready) {
        sz_tensor *asked = sz_add(tokens, k.first), *placed = add_grid(&k, image);
        add_norm(&tokens, attend(&k, &m->final, asked, placed, image, k.to_image, NULL), &m->final_norm);
        sz_tensor_release(asked);
        sz_tensor_release(placed);
        sz_tensor *fine = upscale(&k, image, high1, high0, side, B);
        *logits = mask_logits(&k, tokens, fine, side);
        *iou = head(&k, tokens, 1, &m->iou_head);
        sam2_move(iou, sz_sigmoid(*iou));
        *object = head(&k, tokens, 0, &m->object_head);
        sz_tensor_release(fine);
    }
    sz_tensor *made[] = { tokens, image, k.first, k.among_tokens, k.to_shared, k.to_image, k.to_tokens, k.own_rows };
    for (size_t i = 0; i < sizeof made / sizeof *made; i++) sz_tensor_release(made[i]);
    if (*logits && *iou && *object) return 0;
    sz_tensor **out[] = { logits, iou, object };
    for (int i = 0; i < 3; i++) sam2_move(out[i], NULL);
    return -1;
}
