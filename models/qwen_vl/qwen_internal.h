/* qwen_internal.h - the Qwen-VL model struct, shared by qwen_vl.c (weights, entry points),
 * qwen_vision.c, qwen_text.c and qwen_decode.c. */
#ifndef SZ_QWEN_INTERNAL_H
#define SZ_QWEN_INTERNAL_H

#include "common/model.h"
#include "qwen_vl/qwen_vl.h"

/* A block of the vision tower. Qwen2-VL's norms have biases and its MLP has no gate (gate.rows is
 * 0): up is fc1, down is fc2. */
typedef struct {
    sz_tensor *norm1, *norm1_b, *norm2, *norm2_b;
    model_layer qkv, proj, gate, up, down;
    model_packed qkv_packed, proj_packed, gate_up_packed, down_packed;
} qwen_block;

/* A layer of the language model. */
typedef struct {
    sz_tensor *norm1, *norm2;
    model_layer q, k, v, o, gate, up, down;
    model_packed qkv_packed, o_packed, gate_up_packed, down_packed;
} qwen_layer;

/* What this shard has of the sizes that are divided; all of them in a whole model. */
typedef struct {
    int heads, kv_heads, vocab;
} qwen_share;

typedef struct {
    sz_model base;
    sz_qwen_config config; /* of the whole model */
    qwen_share share;
    sz_tensor *patch_embed, *ln_q, *ln_q_b;
    model_layer merge0, merge2;
    model_packed merge0_packed, merge2_packed;
    sz_tensor *embed, *norm, *lm_head;
    qwen_block *blocks;
    qwen_layer *layers;
    model_packed head; /* of the logits; the bf16 head stays for the log-probabilities */
} qwen_model;

static inline qwen_model *qwen_of(sz_model *m) { return (qwen_model *)m; }
/* The word of row 0 of this shard's embedding and head. */
static inline int64_t qwen_first_word(const qwen_model *m)
{
    return (int64_t)m->share.vocab * m->base.shard;
}

/* Functions of the family's table. */
sz_tensor *qwen_vision(sz_model *m, sz_tensor *pixel_values, sz_tensor *grids, int recompute);
sz_tensor *qwen_hidden(sz_model *m, const model_stream *stream);
sz_tensor *qwen_logits(sz_model *m, sz_tensor *hidden);
sz_cache *qwen_cache(sz_model *m, int64_t rows);
int qwen_decode(sz_model *m, const model_stream *stream, const model_draw *draw);

/* cos and sin [T, head_dim / 2] of positions i32 [3, T]: two new tensors on the CPU, which the
 * caller releases, also after a failure. */
int qwen_rotary(const sz_qwen_config *c, const sz_tensor *positions, int dtype,
                sz_tensor *angles[2]);
/* qwen_hidden with the positions as qwen_rotary's tables. */
sz_tensor *qwen_hidden_rotated(qwen_model *m, const model_stream *stream, sz_tensor *angles[2]);

#endif
