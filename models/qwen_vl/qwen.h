/* qwen.h - the Qwen-VL model struct, shared by qwen_vl.c (weights, entry points), qwen_vision.c and qwen_text.c. */
#ifndef SZ_QWEN_H
#define SZ_QWEN_H
#include "models.h"
#include "graph.h"

/* A linear layer: y = x w^T + b, and with an adapter lora_scale (x lora_a^T) lora_b^T besides. b and the adapter may be NULL. */
typedef struct {
    sz_tensor *w, *b;
    sz_tensor *lora_a, *lora_b;         /* f32 [rank, in], [rows, rank] */
    double lora_scale;
    int64_t rows;                       /* of w: in 8 bits w is NULL */
} qwen_proj;

/* A block of the tower. Qwen2-VL's norms have biases and its MLP has no gate (gate.w is NULL): up is fc1, down is fc2. */
typedef struct {
    sz_tensor *norm1, *norm1_b, *norm2, *norm2_b;
    qwen_proj qkv, proj, gate, up, down;
} qwen_block;

/* Up to three linear layers side by side in 8 bits (op quantize_int8); all NULL in a model that is not quantised. */
typedef struct { sz_tensor *q, *scale, *bias; int64_t rows; } qwen_int8;

typedef struct {
    sz_tensor *norm1, *norm2;
    qwen_proj q, k, v, o, gate, up, down;
    qwen_int8 qkv8, o8, gate_up8, down8;
} qwen_layer;

typedef struct {
    char name[80];
    int ndim;
    int64_t shape[SZ_MAX_DIMS];
    sz_tensor **slot;
    qwen_proj *proj;                    /* the linear layer whose w this is, else NULL */
} qwen_weight;

struct sz_qwen {
    sz_qwen_config config;
    sz_tensor *patch_embed, *ln_q, *ln_q_b;
    qwen_proj merge0, merge2;
    sz_tensor *embed, *norm, *lm_head;
    qwen_block *blocks;
    qwen_layer *layers;
    qwen_int8 head;                     /* of the logits; embed (or lm_head) stays for the log-probabilities */
    qwen_weight *weights;
    int weight_count;
    bool quantized;                     /* the layers' linear weights are gone */
    bool lora_off;                      /* adapters are left out: the base */
};

/* x through up to three linear layers side by side (p ends with NULL), or through their 8-bit form where packed has one; with their
 * adapters. */
sz_tensor *qwen_linear(const sz_qwen *m, sz_tensor *x, const qwen_int8 *packed, const qwen_proj *const p[4]);
#define QWEN_LINEAR(m, x, packed, ...) qwen_linear(m, x, packed, (const qwen_proj *const[4]){ __VA_ARGS__ })

/* Every weight set? NULL slots are named in the message. */
int qwen_check(const sz_qwen *m);

/* cos and sin [T, head_dim/2] of positions i32 [3, T], two new tensors on the processor, also where it fails; caller releases. */
int qwen_rotary(const sz_qwen_config *c, const sz_tensor *positions, int dtype, sz_tensor *angles[2]);
/* Every weight set, ids and positions of one stream? */
int qwen_check_stream(const sz_qwen *m, sz_tensor *ids, sz_tensor *positions, sz_tensor *segments);
/* sz_qwen_hidden of checked arguments, with positions as qwen_rotary's tables. */
sz_tensor *qwen_hidden(sz_qwen *m, sz_tensor *ids, sz_tensor *angles[2], sz_tensor *segments, sz_tensor *image_rows, sz_tensor *features,
                       sz_tensor *rows, struct sz_cache *cache, sz_tensor *cache_rows, sz_tensor **prefix, int recompute);

#endif
