/* qwen.h - the Qwen-VL model struct, shared by qwen_vl.c (weights, entry points), qwen_vision.c and qwen_text.c. */
#ifndef SZ_QWEN_H
#define SZ_QWEN_H
#include "models.h"
#include "core.h"

/* A block of the tower. Qwen2-VL's norms have biases and its MLP has no gate: up is fc1, down is fc2. */
typedef struct {
    sz_tensor *norm1, *norm1_b, *norm2, *norm2_b, *qkv_w, *qkv_b, *proj_w, *proj_b, *gate_w, *gate_b, *up_w, *up_b, *down_w, *down_b;
} qwen_block;

typedef struct {
    sz_tensor *norm1, *norm2, *q_w, *q_b, *k_w, *k_b, *v_w, *v_b, *o_w, *gate_w, *up_w, *down_w;
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
    qwen_weight *weights;
    int weight_count;
};

/* Every weight set? NULL slots are named in the message. */
int qwen_check(const sz_qwen *m);

#endif
