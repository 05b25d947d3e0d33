/* models.h - the interface that every network has: weights by name, adapters, 8 bits, forward
 * passes over packed streams, decoding. A network is an opaque sz_model; its family says which of
 * these functions it has. Built on runtime/ only; knows no Lua.
 *
 *     sz_model *m = sz_qwen_new(&config);            a family's own constructor (models/<family>/)
 *     for (int i = 0; i < sz_model_weight_count(m); i++)
 *         sz_model_weight_set(m, i, load(sz_model_weight_name(m, i)));
 *     sz_tensor *h = sz_model_hidden(m, ids, positions, segments, ...);
 *     sz_model_free(m);
 *
 * LuaJIT's ffi.cdef reads the text between the "ffi" marks. runtime/sz.h has the conventions for
 * errors and memory. Calling a function that the family lacks fails with a message that says so.
 * Leaves out: what only one family has (its own header), files and JSON (Lua). */
#ifndef SZ_MODELS_H
#define SZ_MODELS_H

#include "sz.h"

#pragma GCC visibility push(default)
/* ffi begin */

typedef struct sz_model sz_model;
typedef struct sz_cache sz_cache;

/* Releases the weights, the adapters and the model. NULL is allowed. */
void sz_model_free(sz_model *m);

/* ---- weights ---- */
/* The weights of the config, in the order of the network. Names are those of Hugging
 * Face's files; shapes are outermost first. */
int sz_model_weight_count(const sz_model *m);
/* Borrowed; NULL with a message if there is no weight i. */
const char *sz_model_weight_name(const sz_model *m, int i);
/* Fills shape and returns the number of dimensions, or -1. */
int sz_model_weight_shape(const sz_model *m, int i, int64_t shape[6]);
/* Retains t and releases the weight that it replaces. -1 if the shape is not the config's. */
int sz_model_weight_set(sz_model *m, int i, sz_tensor *t);
/* Borrowed; NULL with a message if the weight is not set or exists in 8 bits only. */
sz_tensor *sz_model_weight(sz_model *m, int i);
/* ---- a model that is split over shards (tensor parallel) ----
 * Each of `shards` processes has a model made with the same config but for its `shard`. Everything
 * above deals in this shard's slice of a weight: its shape is the local one. */
/* Fills shape with that of the whole weight, as in the file; returns the number of dimensions, or
 * -1. */
int sz_model_weight_full_shape(const sz_model *m, int i, int64_t shape[6]);
/* The dimension (0 or 1) that is divided among the shards; *first is where this shard's slice
 * begins in it, and the local shape says how long it is. -1: this shard has the whole weight, or
 * there is no weight i. */
int sz_model_weight_slice(const sz_model *m, int i, int64_t *first);
/* How many shards have the same slice; *copy says which of them this one is, from 0, in the order
 * of the shards. The shards with one slice are neighbours. 1: no other. A whole weight has as many
 * copies as there are shards; key-value heads that are fewer than the shards have shards / heads.
 * 0 if there is no weight i. */
int sz_model_weight_copies(const sz_model *m, int i, int *copy);
/* 1: each copy's gradient is a part, and the gradient is their sum over the copies; the same holds
 * for the adapter's part that is sliced like the weight (whole weights: for both parts). A copy may
 * then have no gradient yet: zeros. So it is with key-value heads that several shards have, and in
 * the vision tower, whose images are dealt to the shards. 0: the gradient is complete, and where
 * there are copies each has the same bits. */
int sz_model_weight_gradient_is_part(const sz_model *m, int i);
/* The group of the shards, for the collectives of forward and backward passes: its size is
 * the config's shards, and this process has rank `shard` in it. Borrowed; it must outlive the
 * model or be replaced. NULL takes it away. -1 if it does not fit. */
struct sz_comm;
int sz_model_group_set(sz_model *m, struct sz_comm *shards);

/* ---- kinds of weights ---- */
/* 1: the weight belongs to the vision tower, which can be frozen as a whole. */
int sz_model_weight_is_vision(const sz_model *m, int i);
/* 1: the matrix of a linear layer, which can have an adapter. */
int sz_model_weight_is_linear(const sz_model *m, int i);
/* 1: the model has it in 8 or 4 bits only (sz_model_quantize). */
int sz_model_weight_is_packed(const sz_model *m, int i);

/* ---- adapters (LoRA), 8 and 4 bits ---- */
/* Gives the linear layer of weight i [out, in] the adapter a f32 [rank, in], b f32 [out, rank]: the
 * layer then computes with w + scale * b a. Retains both tensors; NULL and NULL remove the adapter.
 * The base weights need no gradient for the adapter to have one. */
int sz_model_lora_set(sz_model *m, int i, sz_tensor *a, sz_tensor *b, double scale);
/* 0 switches all adapters off, 1 on again. Returns the previous setting. */
int sz_model_lora_enable(sz_model *m, int on);
/* Converts the language model's linear layers to 8 bits, for inference, or to 4 bits, through which
 * gradients pass to adapters, and releases their weights. The logits use the same bits. Embeddings,
 * norms, biases and the vision tower do not change. Fails inside a scope. */
int sz_model_quantize(sz_model *m, int bits);
/* The logits use the head's bf16 weight again, as log-probabilities do: for training. */
int sz_model_release_packed_head(sz_model *m);

/* ---- forward passes ---- */
/* pixel_values [patches, numbers of a patch] f32 and grids i32 [images, 3] = (t, h, w) in patches
 * -> features [image tokens, hidden], in the order of the images' tokens. recompute: keep only the
 * inputs of blocks for the backward pass. In a split model each shard computes some of the images,
 * and all get all features. */
sz_tensor *sz_model_vision(sz_model *m, sz_tensor *pixel_values, sz_tensor *grids, int recompute);
/* The language model over one packed stream of T tokens.
 *   ids        i32 [T]            positions   i32 [3, T] (temporal, height, width)
 *   segments   i32 [S, 6]         as in ops.def; with a cache the key ranges are rows of the cache
 *   image_rows i32 [n] or NULL    rows of the stream that features [n, hidden] replace
 *   rows       i32 [k] or NULL    rows whose result is wanted (may repeat); NULL: all rows
 *   cache      NULL, or a cache into which each token's keys and values are written first, at
 *   cache_rows i32 [T]            (no gradient then)
 *   prefix     NULL, or an array of one tensor per layer: the shared prefix of several streams. If
 *              the entries are NULL, this stream is the prefix: the call makes the tensors
 *              [T, (heads + 2 kv_heads) * head_dim] and the caller releases them. Otherwise this
 *              stream continues a prefix of P rows: segments count P + T rows, and the queries are
 *              the last T. Run backward for each continuation first: the prefix gradients add up
 *              in f32 and are used by the prefix's own backward pass.
 * -> hidden states after the final norm [k, hidden]. */
sz_tensor *sz_model_hidden(sz_model *m, sz_tensor *ids, sz_tensor *positions, sz_tensor *segments,
                           sz_tensor *image_rows, sz_tensor *features, sz_tensor *rows,
                           sz_cache *cache, sz_tensor *cache_rows, sz_tensor **prefix,
                           int recompute);
/* hidden [k, hidden] -> logits f32 [k, vocab]. */
sz_tensor *sz_model_logits(sz_model *m, sz_tensor *hidden);
/* Log-probability and entropy of ids i32 [k] under softmax(logits / temperature): two new tensors
 * f32 [k]. -1 when the temperature is not above 0. */
int sz_model_logprob(sz_model *m, sz_tensor *hidden, sz_tensor *ids, double temperature,
                     sz_tensor **logprob, sz_tensor **entropy);

/* ---- the key-value cache and decoding ---- */
/* Keys and values of every layer for `rows` tokens, in the weights' dtype. The caller frees it. */
sz_cache *sz_model_cache(sz_model *m, int64_t rows);
void sz_cache_free(sz_cache *c);
int64_t sz_cache_rows(const sz_cache *c);
/* Forgets all rows; their pages go back to the system. */
void sz_cache_clear(sz_cache *c);
/* Copies rows of every layer; the ranges may overlap. */
int sz_cache_move(sz_cache *c, int64_t to, int64_t from, int64_t rows);
/* Samples the next token of each of a running answers, for a model on a device: sz_model_hidden,
 * sz_model_logits and sz_sample in one call, with one copy each way and one wait. ids and
 * cache_rows are i32 [a], positions i32 [3, a], segments i32 [a, 6], all on the CPU; the rest as in
 * sz_sample. */
int sz_model_decode(sz_model *m, sz_tensor *ids, sz_tensor *positions, sz_tensor *segments,
                    sz_cache *cache, sz_tensor *cache_rows, const sz_sampling *s,
                    const uint8_t *banned, const uint8_t *seen, const int64_t *row_id,
                    const int32_t *answer_id, const int32_t *position, int32_t *token,
                    float *logprob);

/* ffi end */
#pragma GCC visibility pop
#endif
