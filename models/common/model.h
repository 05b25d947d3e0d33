/* model.h - the tools for writing a family of networks: the model struct, the table of functions,
 * the weight registry (weights.c) and the linear layer (linear.c). Included by families, not by
 * users.
 *
 *     typedef struct { sz_model base; my_config config; model_layer up, down; } my_model;
 *     static const model_family my_family = { .name = "mine", .hidden = my_hidden, ... };
 *
 *     model_add_linear(&m->base, &m->up, inner, width, true, "layers.%d.up", i);
 *     y = model_linear(&m->base, x, &m->up);
 *
 * sz_model is the first member of a family's struct, so one pointer serves as both. */
#ifndef SZ_MODEL_H
#define SZ_MODEL_H

#include "models.h"
#include "graph.h"

/* ---- division among shards ---- */
/* How a linear layer [out, in] is divided: not at all, by its outputs (rows of w), or by its
 * inputs (columns of w; then the shards' results are summed). */
typedef enum { MODEL_WHOLE, MODEL_OUTPUTS, MODEL_INPUTS } model_division;

/* ---- linear layers ---- */
/* y = x w^T + b, and with an adapter + lora_scale (x lora_a^T) lora_b^T. b and the adapter may be
 * NULL; w is NULL if the layer exists in 8 or 4 bits only. */
typedef struct {
    sz_tensor *w, *b;
    sz_tensor *lora_a, *lora_b; /* f32 [rank, in] and [rows, rank] */
    double lora_scale;
    int64_t rows; /* of w, the local ones */
    model_division division;
} model_layer;

/* Up to three linear layers side by side in 8 or 4 bits (ops quantize_int8 and quantize_int4); all
 * NULL in a model that is not quantised. */
typedef struct {
    sz_tensor *q, *scale, *bias;
    int64_t rows;
    int bits;
} model_packed;

/* ---- weights ---- */
typedef struct {
    char name[96];
    int ndim;
    int64_t shape[SZ_MAX_DIMS]; /* of this shard's slice */
    int64_t full[SZ_MAX_DIMS];  /* of the whole weight */
    int divided;                /* the dimension that is divided, or -1 */
    int64_t first;              /* of this shard's slice in that dimension */
    int copies, copy;           /* shards with this slice; which of them this one is */
    sz_tensor **slot;           /* where the network reads it */
    model_layer *layer;         /* the linear layer whose w this is, else NULL */
    bool vision;                /* part of the vision tower */
} model_weight;

typedef struct {
    model_weight *items;
    int count, room;
    bool vision;             /* weights added now belong to the vision tower */
    model_division division; /* how weights added now are divided */
    int slices;              /* into how many equal slices; at most the number of shards */
    bool failed;             /* memory ran out while weights were added */
} model_weights;

/* ---- families ---- */
/* One packed stream, as sz_model_hidden describes it. */
typedef struct {
    sz_tensor *ids, *positions, *segments;
    sz_tensor *image_rows, *features;
    sz_tensor *rows;
    sz_cache *cache;
    sz_tensor *cache_rows;
    sz_tensor **prefix;
    int recompute;
} model_stream;

/* What one decode step draws, as sz_sample describes it. */
typedef struct {
    const sz_sampling *sampling;
    const uint8_t *banned, *seen;
    const int64_t *row_id;
    const int32_t *answer_id, *position;
    int32_t *token;
    float *logprob;
} model_draw;

/* The functions of a family. An entry may be NULL: the family does not have that function. */
typedef struct {
    const char *name; /* in messages */
    /* Frees what the family's struct owns besides its weights and the struct itself. */
    void (*release)(sz_model *m);
    /* Called after the tensor of the weight in this slot was replaced. */
    void (*weight_changed)(sz_model *m, sz_tensor *const *slot);
    sz_tensor *(*vision)(sz_model *m, sz_tensor *pixel_values, sz_tensor *grids, int recompute);
    sz_tensor *(*hidden)(sz_model *m, const model_stream *stream);
    sz_tensor *(*logits)(sz_model *m, sz_tensor *hidden);
    int (*logprob)(sz_model *m, sz_tensor *hidden, sz_tensor *ids, double temperature,
                   sz_tensor **logprob, sz_tensor **entropy);
    sz_cache *(*cache)(sz_model *m, int64_t rows);
    int (*decode)(sz_model *m, const model_stream *stream, const model_draw *draw);
    int (*quantize)(sz_model *m, int bits);
    /* The logits come from the head's bf16 weight again. */
    void (*release_packed_head)(sz_model *m);
} model_family;

struct sz_model {
    const model_family *family;
    model_weights weights;
    int quantized;     /* bits of the linear layers whose weights were released, or 0 */
    bool lora_off;     /* adapters are switched off: the base model */
    int shards, shard; /* 0 and 0, or 1 and 0, for a whole model */
    sz_comm *group;    /* of the shards; borrowed */
};

/* ---- weights.c ---- */
/* Lists a weight, divided as m->weights.division and .slices say. The dimensions of `shape`, the
 * whole weight's, end at the first 0. */
void model_add(sz_model *m, sz_tensor **slot, const int64_t shape[SZ_MAX_DIMS], const char *format,
               ...) __attribute__((format(printf, 4, 5)));
#define MODEL_SHAPE(...) \
    (const int64_t[SZ_MAX_DIMS]) { __VA_ARGS__ }
/* Lists name.weight [rows, cols] of a linear layer, and name.bias [rows] if it has a bias, which is
 * divided with the outputs; a layer divided by its inputs has none. */
void model_add_linear(sz_model *m, model_layer *layer, int64_t rows, int64_t cols, bool bias,
                      const char *format, ...) __attribute__((format(printf, 6, 7)));
/* Is every weight set, and does a shard know its group? -1 with a message that names the first
 * missing weight. */
int model_check(const sz_model *m);

/* ---- linear.c ---- */
/* y = layer(x), with its adapter. Returns a new reference; NULL for a NULL x. */
sz_tensor *model_linear(const sz_model *m, sz_tensor *x, const model_layer *layer);
/* x through up to three layers with their adapters (the list ends with NULL): the results side by
 * side in one tensor. Uses the layers' packed form if there is one. All are divided among the
 * shards in the same way. */
sz_tensor *model_linear_cat(const sz_model *m, sz_tensor *x, const model_packed *packed,
                            const model_layer *const layers[4]);
#define MODEL_LINEAR(m, x, packed, ...) \
    model_linear_cat(m, x, packed, (const model_layer *const[4]){ __VA_ARGS__ })
/* Fills packed, of 8 or 4 bits, from up to three layers (the list ends with NULL). */
int model_quantize_layers(model_packed *packed, int bits, model_layer *const layers[4]);
/* x through the packed form, which must be there. f32_out: as in linear_int8. */
sz_tensor *model_linear_packed(sz_tensor *x, const model_packed *p, bool f32_out);
/* Releases a layer's weight and bias, and drops the pages of the file that held them. */
void model_unload_layer(model_layer *layer);
void model_release_packed(model_packed *packed);
void model_release_adapter(model_layer *layer);

/* ---- small helpers ---- */
/* Replaces *t by y; releases the old *t. */
static inline void model_move(sz_tensor **t, sz_tensor *y)
{
    sz_tensor_release(*t);
    *t = y;
}

/* fn(context, x), as a checkpoint if wanted. Without gradients it is always a checkpoint, so that
 * the blocks of a network reuse the same workspace. */
static inline sz_tensor *model_run(sz_checkpoint_fn fn, const void *context, size_t size,
                                   int recompute, sz_tensor *x)
{
    if (!x) return NULL;
    if (recompute || !sz_grad_enabled()) return sz_checkpoint(fn, context, size, x);
    return fn(context, x);
}

/* Releases the tensors of a list. */
#define MODEL_RELEASE(...) \
    do { \
        sz_tensor *released_[] = { __VA_ARGS__ }; \
        for (size_t i_ = 0; i_ < sizeof released_ / sizeof *released_; i_++) \
            sz_tensor_release(released_[i_]); \
    } while (0)

#endif
