/* qwen.h - the Qwen-VL model struct, shared by qwen_vl.c (weights, entry points), qwen_vision.c and qwen_text.c. */
#ifndef SZ_QWEN_H
#define SZ_QWEN_H
#include "models.h"
#include "core.h"

/* A block of the tower. Qwen2-VL's norms have biases and its MLP has no gate: up is fc1, down is fc2. */
typedef struct {
    sz_tensor *norm1, *norm1_b, *norm2, *norm2_b, *qkv_w, *qkv_b, *proj_w, *proj_b, *gate_w, *gate_b, *up_w, *up_b, *down_w, *down_b;
} qwen_block;

/* Up to three linear layers side by side in 8 bits (op quantize_int8); all NULL in a model that is not quantised. */
typedef struct { sz_tensor *q, *scale, *bias; int64_t rows; } qwen_int8;

typedef struct {
    sz_tensor *norm1, *norm2, *q_w, *q_b, *k_w, *k_b, *v_w, *v_b, *o_w, *gate_w, *up_w, *down_w;
    qwen_int8 qkv, o, gate_up, down;
} qwen_layer;

typedef struct {
    char name[80];
    int ndim;
    int64_t shape[SZ_MAX_DIMS];
    sz_tensor **slot;
} qwen_weight;

struct sz_qwen {
    sz_qwen_config config;
    sz_tensor *patch_embed, *ln_q, *ln_q_b, *merge0_w, *merge0_b, *merge2_w, *merge2_b;
    sz_tensor *embed, *norm, *lm_head;
    qwen_block *blocks;
    qwen_layer *layers;
    qwen_int8 head;                     /* of the logits; embed (or lm_head) stays for the log-probabilities */
    qwen_weight *weights;
    int weight_count;
    bool quantized;                     /* the layers' linear weights are gone */
};

/* x through the weights w (w[1], w[2] may be NULL) side by side, or through their 8-bit form. */
sz_tensor *qwen_linear(sz_tensor *x, const qwen_int8 *packed, sz_tensor *w[3], sz_tensor *b[3]);

/* Every weight set? NULL slots are named in the message. */
int qwen_check(const sz_qwen *m);

#endif
