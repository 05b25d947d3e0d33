/* sam2_decoder.c - prompts and an image's maps to masks: prompt encoder, two-way transformer,
 * upscaling, heads.
 *
 *   tokens of prompt p: object, iou, masks, points     [Q, D]
 *   image: embedding + mask prompt                     [P E, D], E = (S/16)^2
 *   layers: tokens see tokens, tokens see the image, MLP, the image sees the tokens; after the last
 *   layer the tokens see the image once more
 *   image -> twice as fine + high1 -> twice as fine + high0 -> [P 16 E, D/8]; each mask token gives
 *   D/8 weights over it
 *
 * Prompts follow one another and segments keep them apart. Without mask prompts, all prompts of an
 * image share its rows until the image first changes. Position codes are computed here, in f32,
 * from the checkpoint's own frequencies. */
#include "sam2_internal.h"
#include <math.h>

static const double TOKEN_EPS = 1e-5; /* of the transformer's norms */
static const double MAP_EPS = 1e-6;   /* of the norms over maps */

/* What the layers share. */
typedef struct {
    const sam2_model *m;
    const sz_tensor *frequencies;   /* in host memory */
    int64_t prompts, cells, tokens; /* P, E, Q */
    int64_t side, images;           /* cells along one side of the embedding; B */
    const int32_t *count, *image;   /* points and image of each prompt */
    sz_tensor *first;               /* the first tokens, also their position code */
    sz_tensor *grid;
    sz_tensor *among_tokens, *to_shared, *to_image, *to_tokens; /* segments */
    sz_tensor *own_rows; /* i32 [P E]: the shared row of each prompt's row */
} decode_ctx;

static int fixed_tokens(const sam2_model *m) { return 2 + m->config.masks; }

/* The first token of prompt p. */
static int64_t token_start(const decode_ctx *k, int64_t p)
{
    int64_t start = p * fixed_tokens(k->m);
    for (int64_t i = 0; i < p; i++) start += k->count[i];
    return start;
}

/* An i32 tensor [n] whose element i is `expression`; NULL if memory runs out. */
#define IDS(n, expression) \
    __extension__({ \
        sz_tensor *ids_ = sz_new1(SZ_I32, (n), SZ_CPU); \
        for (int64_t i = 0; ids_ && i < (n); i++) sz_i32(ids_)[i] = (int32_t)(expression); \
        ids_; \
    })

/* ---- position codes ---- */
/* Code of a point (x, y) in [0, 1]: sines, then cosines, of 2 pi (2 p - 1) G. */
static void encode_position(const sz_tensor *frequencies, float x, float y, float *out)
{
    int64_t half = frequencies->shape[1];
    for (int64_t j = 0; j < half; j++) {
        float gx = sz_get(frequencies, j);
        float gy = sz_get(frequencies, half + j);
        float v = (2 * x - 1) * gx + (2 * y - 1) * gy;
        v *= (float)(2 * M_PI);
        out[j] = sinf(v);
        out[half + j] = cosf(v);
    }
}

/* The frequencies in host memory: the weight itself, or a copy kept with the model. NULL with a
 * message. */
static const sz_tensor *host_frequencies(sam2_model *m)
{
    sz_tensor *weight = m->frequencies;
    if (weight->device == SZ_CPU) return weight;
    if (m->frequencies_copy) return m->frequencies_copy;
    sz_tensor *t = sz_tensor_new_heap(weight->dtype, weight->ndim, weight->shape, SZ_CPU);
    if (t && sz_tensor_copy(t, weight) != 0) model_move(&t, NULL);
    m->frequencies_copy = t;
    return t;
}

/* A constant f32 tensor in the weights' dtype and on their device. Consumes x. */
static sz_tensor *as_weights(const sam2_model *m, sz_tensor *x)
{
    if (x) model_move(&x, sz_tensor_to(x, m->no_mask->device));
    if (x && m->no_mask->dtype != SZ_F32) model_move(&x, sz_cast(x, m->no_mask->dtype));
    return x;
}

/* The code of every cell of the embedding [E, D]; kept with the model. */
static sz_tensor *grid(sam2_model *m, const sz_tensor *frequencies, int64_t side)
{
    if (m->grid) return m->grid;
    int64_t d = m->config.hidden;
    const int64_t shape[] = { side * side, d };
    sz_tensor *g = sz_tensor_new_heap(SZ_F32, 2, shape, SZ_CPU);
    if (!g) return NULL;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < side * side; i++) {
        float x = ((float)(i % side) + 0.5f) / (float)side;
        float y = ((float)(i / side) + 0.5f) / (float)side;
        encode_position(frequencies, x, y, sz_f32(g) + i * d);
    }

    const sz_tensor *like = m->no_mask;
    if (like->dtype != SZ_F32 || like->device != SZ_CPU) {
        sz_tensor *converted = sz_tensor_new_heap(like->dtype, 2, shape, like->device);
        if (converted && sz_tensor_copy(converted, g) != 0) model_move(&converted, NULL);
        model_move(&g, converted);
    }
    m->grid = g;
    return g;
}

/* x + the grid, for x of any number of whole maps. */
static sz_tensor *add_grid(const decode_ctx *k, sz_tensor *x)
{
    if (!x) return NULL;
    int64_t n = x->shape[0];
    int64_t d = x->shape[1];
    sz_tensor *maps = sz_reshape4(x, n / k->cells, k->cells, d, 0);
    model_move(&maps, sz_add(maps, k->grid));
    model_move(&maps, maps ? sz_reshape2(maps, n, d) : NULL);
    return maps;
}

/* ---- tokens ---- */
/* x with rows `ids` replaced by rows `which` of the weight `table`. Consumes x, ids and which. */
static sz_tensor *put_weights(sz_tensor *x, sz_tensor *ids, sz_tensor *table, sz_tensor *which)
{
    sz_tensor *rows = ids && which ? sz_embedding(table, which) : NULL;
    sz_tensor *y = sz_index_copy(x, ids, rows);
    MODEL_RELEASE(x, ids, which, rows);
    return y;
}

/* The point tokens of all prompts: those with a position and those that are padding. */
typedef struct {
    sz_tensor *codes;         /* f32 [n, D]: position codes of the points */
    sz_tensor *rows, *labels; /* i32 [n]: their tokens and labels */
    sz_tensor *padding_rows;  /* i32 [m]: the padding tokens */
} point_tokens;

static int split_points(const decode_ctx *k, const sz_tensor *points, const sz_tensor *labels,
                        point_tokens *out)
{
    const sam2_model *m = k->m;
    int64_t d = m->config.hidden;
    int64_t n = labels ? labels->numel : 0;
    const int32_t *label = n ? sz_i32(labels) : NULL;
    int64_t real = 0;
    for (int64_t i = 0; i < n; i++) real += label[i] >= 0;

    out->codes = sz_new2(SZ_F32, real, d, SZ_CPU);
    out->rows = sz_new1(SZ_I32, real, SZ_CPU);
    out->labels = sz_new1(SZ_I32, real, SZ_CPU);
    out->padding_rows = sz_new1(SZ_I32, n - real, SZ_CPU);
    if (!out->codes || !out->rows || !out->labels || !out->padding_rows) return -1;

    const float size = (float)m->config.image_size;
    int64_t point = 0;
    int64_t padding = 0;
    int64_t i = 0;
    for (int64_t p = 0; p < k->prompts; p++) {
        int64_t row = token_start(k, p) + fixed_tokens(m);
        for (int64_t j = 0; j < k->count[p]; j++, i++, row++) {
            if (label[i] < 0) {
                sz_i32(out->padding_rows)[padding++] = (int32_t)row;
                continue;
            }
            float x = (sz_f32(points)[2 * i] + 0.5f) / size;
            float y = (sz_f32(points)[2 * i + 1] + 0.5f) / size;
            encode_position(k->frequencies, x, y, sz_f32(out->codes) + point * d);
            sz_i32(out->labels)[point] = label[i];
            sz_i32(out->rows)[point++] = (int32_t)row;
        }
    }
    return 0;
}

/* A point's token is its position's code plus its label's embedding; padding is an embedding alone.
 * Consumes x. */
static sz_tensor *put_points(const decode_ctx *k, sz_tensor *x, const sz_tensor *points,
                             const sz_tensor *labels)
{
    const sam2_model *m = k->m;
    point_tokens t = { 0 };
    if (split_points(k, points, labels, &t) != 0) model_move(&x, NULL);
    if (x && t.padding_rows->numel) {
        sz_tensor *first = IDS(t.padding_rows->numel, 0);
        x = put_weights(x, sz_tensor_retain(t.padding_rows), m->not_a_point, first);
    }
    if (x && t.rows->numel) {
        t.codes = as_weights(m, t.codes);
        sz_tensor *embedded = sz_embedding(m->point_embed, t.labels);
        model_move(&embedded, t.codes && embedded ? sz_add(t.codes, embedded) : NULL);
        model_move(&x, sz_index_copy(x, t.rows, embedded));
        sz_tensor_release(embedded);
    }
    MODEL_RELEASE(t.codes, t.rows, t.labels, t.padding_rows);
    return x;
}

/* [Q, D]: object, iou and mask tokens of each prompt, then its points. */
static sz_tensor *make_tokens(const decode_ctx *k, const sz_tensor *points, const sz_tensor *labels)
{
    const sam2_model *m = k->m;
    const sz_tensor *like = m->no_mask;
    int64_t prompts = k->prompts;
    int64_t masks = m->config.masks;
    const int64_t shape[] = { k->tokens, m->config.hidden };
    sz_tensor *x = sz_tensor_zeros(like->dtype, 2, shape, like->device);
    x = put_weights(x, IDS(prompts, token_start(k, i)), m->object_token, IDS(prompts, 0));
    x = put_weights(x, IDS(prompts, token_start(k, i) + 1), m->iou_token, IDS(prompts, 0));
    x = put_weights(x, IDS(prompts * masks, token_start(k, i / masks) + 2 + i % masks),
                    m->mask_tokens, IDS(prompts * masks, i % masks));
    return put_points(k, x, points, labels);
}

/* ---- attention ---- */
/* Rows of one side of an attention. */
typedef enum { TOKENS, OWN_IMAGE, SHARED_IMAGE } row_range;

static void put_range(const decode_ctx *k, row_range range, int64_t p, int32_t *start_and_length)
{
    if (range == TOKENS) {
        start_and_length[0] = (int32_t)token_start(k, p);
        start_and_length[1] = fixed_tokens(k->m) + k->count[p];
        return;
    }
    int64_t map = range == SHARED_IMAGE ? k->image[p] : p;
    start_and_length[0] = (int32_t)(map * k->cells);
    start_and_length[1] = (int32_t)k->cells;
}

/* One segment per prompt. */
static sz_tensor *segments(const decode_ctx *k, row_range queries, row_range keys)
{
    sz_tensor *t = sz_new2(SZ_I32, k->prompts, 6, SZ_CPU);
    for (int64_t p = 0; t && p < k->prompts; p++) {
        int32_t *row = sz_i32(t) + 6 * p;
        put_range(k, queries, p, row);
        put_range(k, keys, p, row + 2);
        row[4] = row[5] = 0;
    }
    return t;
}

/* q, k, v -> projections -> attention -> projection. expand: NULL, or the row ids by which q's
 * projection is copied. */
static sz_tensor *attend(const decode_ctx *k, const sam2_attention *a, sz_tensor *q,
                         sz_tensor *keys, sz_tensor *v, sz_tensor *table, sz_tensor *expand)
{
    const sz_model *base = &k->m->base;
    int heads = k->m->config.decoder_heads;
    int d = (int)(a->q.rows / heads);
    sz_tensor *x = model_linear(base, q, &a->q);
    sz_tensor *y = model_linear(base, keys, &a->k);
    sz_tensor *z = model_linear(base, v, &a->v);
    if (expand) model_move(&x, sz_gather_rows(x, expand));
    double scale = 1 / sqrt((double)d);
    model_move(&x, sz_attention_cross(x, y, z, table, heads, heads, d, false, scale));
    model_move(&x, model_linear(base, x, &a->out));
    MODEL_RELEASE(y, z);
    return x;
}

/* *x = norm(*x + y), or norm(y) without *x. Consumes y. */
static void add_norm(sz_tensor **x, sz_tensor *y, const sam2_pair *norm)
{
    if (*x) model_move(&y, y ? sz_add(*x, y) : NULL);
    model_move(x, sz_layernorm(y, norm->w, norm->b, TOKEN_EPS));
    sz_tensor_release(y);
}

/* ---- the transformer ---- */
/* What the layers change. The image has an image's rows once while `shared`, and a prompt's rows
 * afterwards. */
typedef struct {
    sz_tensor *tokens, *image;
    bool shared;
} decode_state;

/* Tokens see tokens. */
static void attend_self(const decode_ctx *k, const sam2_layer *l, bool first, decode_state *s)
{
    sz_tensor *tokens = s->tokens;
    if (first) {
        /* The first layer has no position code and nothing to add to. */
        sz_tensor *y = attend(k, &l->self, tokens, tokens, tokens, k->among_tokens, NULL);
        model_move(&s->tokens, NULL);
        add_norm(&s->tokens, y, &l->norm[0]);
        return;
    }
    sz_tensor *placed = sz_add(tokens, k->first);
    sz_tensor *y = attend(k, &l->self, placed, placed, tokens, k->among_tokens, NULL);
    add_norm(&s->tokens, y, &l->norm[0]);
    sz_tensor_release(placed);
}

static sz_tensor *mlp(const decode_ctx *k, const sam2_layer *l, sz_tensor *x)
{
    sz_tensor *inner = model_linear(&k->m->base, x, &l->up);
    model_move(&inner, sz_relu(inner));
    model_move(&inner, model_linear(&k->m->base, inner, &l->down));
    return inner;
}

/* One layer of the two-way transformer. */
static void two_way(const decode_ctx *k, const sam2_layer *l, bool first, decode_state *s)
{
    sz_tensor *image_placed = add_grid(k, s->image);
    attend_self(k, l, first, s);

    /* Tokens see the image. */
    sz_tensor *placed = sz_add(s->tokens, k->first);
    sz_tensor *table = s->shared ? k->to_shared : k->to_image;
    sz_tensor *y = attend(k, &l->to_image, placed, image_placed, s->image, table, NULL);
    add_norm(&s->tokens, y, &l->norm[1]);

    add_norm(&s->tokens, mlp(k, l, s->tokens), &l->norm[2]);

    /* The image sees the tokens; from here on each prompt has an image of its own. */
    model_move(&placed, sz_add(s->tokens, k->first));
    sz_tensor *expand = s->shared ? k->own_rows : NULL;
    y = attend(k, &l->to_tokens, image_placed, placed, s->tokens, k->to_tokens, expand);
    if (s->shared) model_move(&s->image, sz_gather_rows(s->image, k->own_rows));
    s->shared = false;
    add_norm(&s->image, y, &l->norm[3]);
    MODEL_RELEASE(placed, image_placed);
}

/* ---- maps ---- */
/* Mask prompts f32 [P, 4g, 4g, 1] -> [P E, D]. */
static sz_tensor *embed_masks(const sam2_model *m, sz_tensor *masks)
{
    int64_t channels = m->config.mask_channels;
    sz_tensor *x = as_weights(m, sz_tensor_retain(masks));
    model_move(&x, sz_conv2d(x, m->mask_conv1.w, m->mask_conv1.b, 2, 0));
    model_move(&x, sz_layernorm(x, m->mask_norm1.w, m->mask_norm1.b, MAP_EPS));
    model_move(&x, sz_gelu(x));
    model_move(&x, sz_conv2d(x, m->mask_conv2.w, m->mask_conv2.b, 2, 0));
    model_move(&x, sz_layernorm(x, m->mask_norm2.w, m->mask_norm2.b, MAP_EPS));
    model_move(&x, sz_gelu(x));
    model_move(&x, x ? sz_reshape2(x, x->numel / channels, channels) : NULL);
    model_move(&x, sam2_conv1x1(x, &m->mask_conv3));
    return x;
}

/* The image's rows before the first layer: the embedding plus the mask prompts, or plus the code
 * for "no mask", which leaves all prompts of an image sharing its rows. */
static sz_tensor *first_image(const decode_ctx *k, sz_tensor *embedding, sz_tensor *masks)
{
    if (!masks) return sz_add(embedding, k->m->no_mask);
    sz_tensor *dense = embed_masks(k->m, masks);
    sz_tensor *own = k->own_rows ? sz_gather_rows(embedding, k->own_rows) : NULL;
    sz_tensor *image = dense && own ? sz_add(own, dense) : NULL;
    MODEL_RELEASE(dense, own);
    return image;
}

/* Adds an image's map [B side^2, C] to each prompt's x [P, side, side, C]. Consumes x. */
static sz_tensor *add_high(const decode_ctx *k, sz_tensor *x, sz_tensor *high)
{
    if (!x) return NULL;
    int64_t cells = x->shape[1] * x->shape[2];
    int64_t c = x->shape[3];
    sz_tensor *flat = sz_reshape4(x, k->prompts, cells, c, 0);
    sz_tensor *y;
    if (k->images == 1) {
        y = sz_add(flat, high);
    } else {
        sz_tensor *ids = IDS(k->prompts * cells, k->image[i / cells] * cells + i % cells);
        sz_tensor *own = ids ? sz_gather_rows(high, ids) : NULL;
        model_move(&own, own ? sz_reshape4(own, k->prompts, cells, c, 0) : NULL);
        y = own && flat ? sz_add(flat, own) : NULL;
        MODEL_RELEASE(ids, own);
    }
    model_move(&y, y ? sz_reshape4(y, x->shape[0], x->shape[1], x->shape[2], c) : NULL);
    MODEL_RELEASE(flat, x);
    return y;
}

/* The image's rows [P E, D] -> the fine map [P, 16 E, D/8]. */
static sz_tensor *upscale(const decode_ctx *k, sz_tensor *image, sz_tensor *high1, sz_tensor *high0)
{
    const sam2_model *m = k->m;
    int64_t d = m->config.hidden;
    sz_tensor *x = image ? sz_reshape4(image, k->prompts, k->side, k->side, d) : NULL;
    model_move(&x, sz_conv_transpose2d(x, m->upscale1.w, m->upscale1.b, 2, 0));
    x = add_high(k, x, high1);
    model_move(&x, sz_layernorm(x, m->upscale_norm.w, m->upscale_norm.b, MAP_EPS));
    model_move(&x, sz_gelu(x));
    model_move(&x, sz_conv_transpose2d(x, m->upscale2.w, m->upscale2.b, 2, 0));
    x = add_high(k, x, high0);
    model_move(&x, sz_gelu(x));
    model_move(&x, x ? sz_reshape4(x, k->prompts, 16 * k->cells, d / 8, 0) : NULL);
    return x;
}

/* ---- heads ---- */
/* A three-layer head on one token of each prompt, token `index` -> [P, out]. */
static sz_tensor *head(const decode_ctx *k, sz_tensor *tokens, int64_t index, const sam2_head *h)
{
    const sz_model *base = &k->m->base;
    sz_tensor *ids = IDS(k->prompts, token_start(k, i) + index);
    sz_tensor *x = ids && tokens ? sz_gather_rows(tokens, ids) : NULL;
    model_move(&x, model_linear(base, x, &h->in));
    model_move(&x, sz_relu(x));
    model_move(&x, model_linear(base, x, &h->mid));
    model_move(&x, sz_relu(x));
    model_move(&x, model_linear(base, x, &h->out));
    sz_tensor_release(ids);
    return x;
}

/* tokens [Q, D] and the fine map -> logits [P, masks, 4g, 4g]. */
static sz_tensor *mask_logits(const decode_ctx *k, sz_tensor *tokens, sz_tensor *fine)
{
    const sam2_model *m = k->m;
    int64_t prompts = k->prompts;
    int64_t masks = m->config.masks;
    int64_t c = m->config.hidden / 8;
    const int64_t shape[] = { prompts * masks, c };
    sz_tensor *weights = fine ? sz_tensor_zeros(fine->dtype, 2, shape, fine->device) : NULL;
    for (int64_t j = 0; j < masks; j++) {
        sz_tensor *w = head(k, tokens, 2 + j, &m->hyper[j]);
        sz_tensor *ids = IDS(prompts, i * masks + j);
        model_move(&weights, ids ? sz_index_copy(weights, ids, w) : NULL);
        MODEL_RELEASE(w, ids);
    }
    model_move(&weights, weights ? sz_reshape4(weights, prompts, masks, c, 0) : NULL);
    model_move(&weights, fine ? sz_matmul(weights, fine, false, true) : NULL);
    int64_t side = 4 * k->side;
    model_move(&weights, weights ? sz_reshape4(weights, prompts, masks, side, side) : NULL);
    return weights;
}

/* ---- the call ---- */
/* The arguments of sz_sam2_decode. */
typedef struct {
    sz_tensor *embedding, *high1, *high0;
    sz_tensor *images, *counts, *points, *labels, *masks;
} decode_input;

static int maps_check(const sam2_model *m, const decode_input *in)
{
    if (sz_tensor_alive(in->embedding) != 0 || !in->high1 || !in->high0 || !in->images ||
        !in->counts)
        return sz_fail("sam2: maps, images and counts are needed");
    int64_t d = m->config.hidden;
    int64_t side = m->config.image_size / m->config.prompt_patch;
    int64_t cells = side * side;
    int64_t images = in->embedding->shape[0] / cells;
    const bool embedding = in->embedding->ndim == 2 && in->embedding->shape[1] == d &&
                           images >= 1 && in->embedding->shape[0] % cells == 0;
    const bool fine = in->high1->numel == images * 4 * cells * d / 4 &&
                      in->high0->numel == images * 16 * cells * d / 8;
    if (!embedding || !fine)
        return sz_fail("sam2: the maps are not those of %lld images", (long long)images);
    return 0;
}

static int prompts_check(const sam2_model *m, const decode_input *in)
{
    int64_t side = m->config.image_size / m->config.prompt_patch;
    int64_t images = in->embedding->shape[0] / (side * side);
    int64_t prompts = in->images->numel;
    if (in->images->dtype != SZ_I32 || in->counts->dtype != SZ_I32 || prompts < 1 ||
        in->counts->numel != prompts)
        return sz_fail("sam2: images and counts must be i32, one element per prompt");

    /* Counts must add up to the labels. */
    int64_t n = in->labels ? in->labels->numel : 0;
    int64_t total = 0;
    for (int64_t p = 0; p < prompts; p++) {
        int32_t image = sz_i32(in->images)[p];
        int32_t count = sz_i32(in->counts)[p];
        if (image < 0 || image >= images)
            return sz_fail("sam2: prompt %lld is about image %d of %lld", (long long)p + 1,
                           image + 1, (long long)images);
        if (count < 0) return sz_fail("sam2: prompt %lld has %d points", (long long)p + 1, count);
        total += count;
    }
    const sz_tensor *points = in->points;
    if (points && points->device != SZ_CPU) return sz_fail("sam2: points must be on the cpu");
    const bool given = points && points->dtype == SZ_F32 && points->numel == 2 * n && in->labels &&
                       in->labels->dtype == SZ_I32;
    if (total != n || (n && !given))
        return sz_fail("sam2: %lld points are counted, there are %lld labels", (long long)total,
                       (long long)n);
    for (int64_t i = 0; i < n; i++) {
        int32_t label = sz_i32(in->labels)[i];
        if (label < -1 || label > 3)
            return sz_fail("sam2: point %lld has the label %d", (long long)i + 1, label);
    }

    const sz_tensor *masks = in->masks;
    int64_t fine = 4 * side;
    if (masks && (masks->dtype != SZ_F32 || masks->ndim != 4 || masks->shape[0] != prompts ||
                  masks->shape[1] != fine || masks->shape[2] != fine || masks->shape[3] != 1))
        return sz_fail("sam2: mask prompts must be f32 [prompts, %lld, %lld, 1]", (long long)fine,
                       (long long)fine);
    return 0;
}

static void prepare(decode_ctx *k, sam2_model *m, const decode_input *in)
{
    k->tokens = token_start(k, k->prompts);
    k->grid = grid(m, k->frequencies, k->side);
    k->first = make_tokens(k, in->points, in->labels);
    k->among_tokens = segments(k, TOKENS, TOKENS);
    k->to_shared = segments(k, TOKENS, SHARED_IMAGE);
    k->to_image = segments(k, TOKENS, OWN_IMAGE);
    k->to_tokens = segments(k, OWN_IMAGE, TOKENS);
    k->own_rows = IDS(k->prompts * k->cells, k->image[i / k->cells] * k->cells + i % k->cells);
}

static bool is_ready(const decode_ctx *k)
{
    if (!k->grid || !k->first || !k->own_rows) return false;
    return k->among_tokens && k->to_shared && k->to_image && k->to_tokens;
}

/* The layers, and the last attention of the tokens to the image. False if something failed. */
static bool run_layers(const decode_ctx *k, decode_state *s)
{
    const sam2_model *m = k->m;
    for (int i = 0; i < m->config.layers; i++) {
        two_way(k, &m->layers[i], i == 0, s);
        if (!s->tokens || !s->image) return false;
    }
    sz_tensor *placed = sz_add(s->tokens, k->first);
    sz_tensor *image_placed = add_grid(k, s->image);
    sz_tensor *y = attend(k, &m->final, placed, image_placed, s->image, k->to_image, NULL);
    add_norm(&s->tokens, y, &m->final_norm);
    MODEL_RELEASE(placed, image_placed);
    return true;
}

int sz_sam2_decode(sz_model *base, sz_tensor *embedding, sz_tensor *high1, sz_tensor *high0,
                   sz_tensor *images, sz_tensor *counts, sz_tensor *points, sz_tensor *labels,
                   sz_tensor *masks, sz_tensor **logits, sz_tensor **iou, sz_tensor **object)
{
    *logits = *iou = *object = NULL;
    sam2_model *m = sam2_of(base);
    const decode_input in = { embedding, high1, high0, images, counts, points, labels, masks };
    if (!m || maps_check(m, &in) != 0 || prompts_check(m, &in) != 0) return -1;
    const sz_tensor *frequencies = host_frequencies(m);
    if (!frequencies) return -1;

    int64_t side = m->config.image_size / m->config.prompt_patch;
    decode_ctx k = {
        .m = m,
        .frequencies = frequencies,
        .prompts = images->numel,
        .cells = side * side,
        .side = side,
        .images = embedding->shape[0] / (side * side),
        .count = sz_i32(counts),
        .image = sz_i32(images),
    };
    prepare(&k, m, &in);
    decode_state s = {
        .tokens = sz_tensor_retain(k.first),
        .image = first_image(&k, embedding, masks),
        .shared = !masks,
    };
    if (is_ready(&k) && s.image && run_layers(&k, &s)) {
        sz_tensor *fine = upscale(&k, s.image, high1, high0);
        *logits = mask_logits(&k, s.tokens, fine);
        *iou = head(&k, s.tokens, 1, &m->iou_head);
        model_move(iou, sz_sigmoid(*iou));
        *object = head(&k, s.tokens, 0, &m->object_head);
        sz_tensor_release(fine);
    }
    MODEL_RELEASE(s.tokens, s.image, k.first, k.among_tokens, k.to_shared, k.to_image, k.to_tokens,
                  k.own_rows);
    if (*logits && *iou && *object) return 0;
    sz_tensor **results[] = { logits, iou, object };
    for (int i = 0; i < 3; i++) model_move(results[i], NULL);
    return -1;
}
