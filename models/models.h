/* models.h - the networks' public face: Qwen2-VL and Qwen2.5-VL with their image processor, and SAM2. Built on runtime/ only;
 * knows no Lua. The part between the "ffi" marks is read by LuaJIT's ffi.cdef as it stands. Conventions (errors, memory): runtime/sz.h.
 * Weight names, shapes and pitfalls: models/README.md. */
#ifndef SZ_MODELS_H
#define SZ_MODELS_H

#include "sz.h"

#pragma GCC visibility push(default)
/* ffi begin */

/* ---- Qwen2-VL and Qwen2.5-VL: two vision towers before one language model ---- */
enum { SZ_QWEN_MAX_DEPTH = 128 };
enum { SZ_QWEN2_VL, SZ_QWEN2_5_VL };
typedef struct {
    int family;                                 /* SZ_QWEN2_VL or SZ_QWEN2_5_VL */
    /* language model */
    int hidden, intermediate, layers, heads, kv_heads, head_dim, vocab, tied;
    double rms_eps, rope_theta;
    int mrope_section[3];                       /* pairs that turn with the temporal, height, width id; sum = head_dim / 2 */
    /* vision tower; v_hidden is its own width, v_out the one it gives to the language model */
    int v_depth, v_hidden, v_intermediate, v_heads, v_channels, v_patch, v_merge, v_temporal, v_out;
    int v_window;                               /* in pixels; Qwen2-VL has no windows and does not read this and v_full */
    uint8_t v_full[SZ_QWEN_MAX_DEPTH];          /* 1: this block attends over the whole picture */
} sz_qwen_config;

typedef struct sz_qwen sz_qwen;
typedef struct sz_cache sz_cache;

/* A model without weights; refuses impossible configs by name and value. Caller frees. */
sz_qwen    *sz_qwen_new(const sz_qwen_config *config);
void        sz_qwen_free(sz_qwen *m);
/* The weights it wants, in Hugging Face's (older) names; all shapes outermost first. */
int         sz_qwen_weight_count(const sz_qwen *m);
const char *sz_qwen_weight_name(const sz_qwen *m, int i);                   /* borrowed */
int         sz_qwen_weight_shape(const sz_qwen *m, int i, int64_t shape[6]);   /* returns the number of dimensions */
int         sz_qwen_weight_set(sz_qwen *m, int i, sz_tensor *t);            /* checks the shape; retains t */
sz_tensor  *sz_qwen_weight(sz_qwen *m, int i);                              /* borrowed; NULL when not set */

/* Low-rank adapters of linear layers (of both networks; not the patch embedding, the embedding, the head): with a f32 [rank, in] and
 * b f32 [out, rank] weight i [out, in] counts as w + scale * b a. Retains both; NULL and NULL take the adapter away. Base weights
 * need no gradient for the adapters to have one. enable(0) leaves all adapters out until enable(1); it returns what was so before. */
int         sz_qwen_is_linear(const sz_qwen *m, int i);
int         sz_qwen_lora_set(sz_qwen *m, int i, sz_tensor *a, sz_tensor *b, double scale);
int         sz_qwen_lora_enable(sz_qwen *m, int on);

/* Brings the language model's linear layers to 8 bits, for inference, and lets go of what they were; the logits are computed
 * with 8 bits too. Embeddings, norms, biases and the tower stay. Not inside a scope. */
int         sz_qwen_quantize(sz_qwen *m);

/* pixel_values [patches, channels * temporal * patch^2] (f32, in merge-block order), grids i32 [pictures, 3] = (t, h, w) in
 * patches -> features [patches / merge^2, hidden] in the order of the picture tokens. recompute: keep only block inputs
 * for the backward pass. */
sz_tensor  *sz_qwen_vision(sz_qwen *m, sz_tensor *pixel_values, sz_tensor *grids, int recompute);

/* The language model over one packed stream of T tokens.
 *   ids        i32 [T]            positions   i32 [3, T] (temporal, height, width)
 *   segments   i32 [S, 6]         as in ops.def; with a cache the key ranges are cache rows
 *   image_rows i32 [n] or NULL    rows of the stream that features [n, hidden] replace
 *   rows       i32 [k] or NULL    rows whose result is wanted (may repeat); NULL: all
 *   cache, cache_rows i32 [T]     NULL, or where each token's keys and values are stored first (no gradient then)
 *   prefix     NULL, or a tensor for each layer, so that several streams see one. All NULL: they are made, [T, (heads + 2 kv_heads) * head_dim],
 *              for the caller to release. Not NULL: those P rows come before this stream's; segments count P + T rows, their queries are
 *              in the last T. Gradients of such streams, each walked back over by itself, are summed in f32 until the first one's.
 * -> hidden states after the final norm [k, hidden]. */
sz_tensor  *sz_qwen_hidden(sz_qwen *m, sz_tensor *ids, sz_tensor *positions, sz_tensor *segments, sz_tensor *image_rows,
                           sz_tensor *features, sz_tensor *rows, sz_cache *cache, sz_tensor *cache_rows, sz_tensor **prefix, int recompute);
/* hidden [k, hidden] -> logits f32 [k, vocab]. */
sz_tensor  *sz_qwen_logits(sz_qwen *m, sz_tensor *hidden);
/* log-probability and entropy of ids i32 [k] under softmax(logits / temperature); two new f32 [k] tensors. */
int         sz_qwen_logprob(sz_qwen *m, sz_tensor *hidden, sz_tensor *ids, double temperature, sz_tensor **logprob, sz_tensor **entropy);
/* Keys and values of every layer for `rows` tokens, in the weights' dtype. Caller frees. */
sz_cache   *sz_qwen_cache(sz_qwen *m, int64_t rows);
/* The next token of each of a running answers, of a model on a device: sz_qwen_hidden, sz_qwen_logits and sz_sample in one, with one copy each way and
 * one wait. ids, cache_rows i32 [a], positions i32 [3, a], segments i32 [a, 6] on the processor; the rest as for sz_sample. */
int         sz_qwen_decode(sz_qwen *m, sz_tensor *ids, sz_tensor *positions, sz_tensor *segments, sz_cache *cache, sz_tensor *cache_rows,
                           const sz_sampling *s, const uint8_t *banned, const uint8_t *seen, const int64_t *row_id, const int32_t *answer_id,
                           const int32_t *position, int32_t *token, float *logprob);
void        sz_cache_free(sz_cache *c);
int64_t     sz_cache_rows(const sz_cache *c);
void        sz_cache_clear(sz_cache *c);                                    /* forgets all rows; their pages go back to the system */
int         sz_cache_move(sz_cache *c, int64_t to, int64_t from, int64_t rows);   /* of every layer; the ranges may overlap */

/* ---- the image processor of both ---- */
/* The size [*out_height, *out_width] a picture is resized to: multiples of factor (patch * merge), about the same shape,
 * between min_pixels and max_pixels where that can be had. -1: a side ratio over 200, or a side that becomes 0. */
int         sz_qwen_smart_resize(int height, int width, int factor, int64_t min_pixels, int64_t max_pixels, int *out_height, int *out_width);
/* Writes a picture's patches to rows first_row .. of out f32 [patches, 3 * temporal * patch^2]: ((u8 * scale) - mean[c]) / std[c].
 * Row order: merge x merge blocks in raster order, the patches of a block in raster order; column order c, t, y, x. The
 * picture is repeated `temporal` times. Its sides must be multiples of patch * merge. */
int         sz_qwen_patches(sz_image *im, int patch, int temporal, int merge, double scale, const double *mean, const double *std,
                            sz_tensor *out, int64_t first_row);
/* The same by a thread beside the main one, into the first rows of out (a heap tensor, retained): reads the picture from path, or takes im
 * (retained; path NULL); resizes it with sz_image_resize's filter where size = {width, height, resized width, resized height} says so.
 * The job fails where any of the steps would, or when the picture has not the width and height that size says. */
sz_job     *sz_qwen_image_start(const char *path, sz_image *im, const int *size, int filter, int patch, int temporal, int merge,
                                  double scale, const double *mean, const double *std, sz_tensor *out);
sz_image   *sz_qwen_image_take(sz_job *j);                                 /* the picture that an ended job has read; the caller frees. Once */
/* Rotary position ids i32 [3, n] (temporal, height, width) of ids [n]: text counts up, the tokens of picture k (grids + 3 * k =
 * t, h, w in patches) take their place in the merged grid. *next is the id that the token after the last one has. Every
 * picture must have exactly its t * h * w / merge^2 tokens image_id. */
sz_tensor  *sz_qwen_positions(const int32_t *ids, int64_t n, const int32_t *grids, int pictures, int image_id, int merge, int32_t *next);

/* ---- SAM2: picture and prompts to masks ---- */
enum { SZ_SAM2_STAGES = 4, SZ_SAM2_MAX_BLOCKS = 128, SZ_SAM2_MAX_MASKS = 8 };
typedef struct {
    /* Hiera encoder; a stage's first block (but for the first stage's) halves the map and changes the width */
    int image_size, patch_kernel, patch_stride, patch_padding;
    int width[4], heads[4], blocks[4], windows[4];
    uint8_t whole[SZ_SAM2_MAX_BLOCKS];          /* 1: this block attends over the whole map */
    int background[2];                          /* height and width of pos_embed */
    double mlp_ratio, norm_eps;
    /* neck */
    uint8_t top_down[4];                        /* 1: this level receives the one below it, doubled */
    /* prompt encoder and mask decoder */
    int hidden, prompt_patch, mask_channels, layers, decoder_heads, downsample, mlp, masks, iou_hidden;
} sz_sam2_config;

typedef struct sz_sam2 sz_sam2;

/* A model without weights; refuses impossible configs by name and value. Caller frees. */
sz_sam2    *sz_sam2_new(const sz_sam2_config *config);
void        sz_sam2_free(sz_sam2 *m);
/* The weights it wants, in transformers' names; all shapes outermost first. */
int         sz_sam2_weight_count(const sz_sam2 *m);
const char *sz_sam2_weight_name(const sz_sam2 *m, int i);                   /* borrowed */
int         sz_sam2_weight_shape(const sz_sam2 *m, int i, int64_t shape[6]);   /* returns the number of dimensions */
int         sz_sam2_weight_set(sz_sam2 *m, int i, sz_tensor *t);            /* checks the shape; retains t */
sz_tensor  *sz_sam2_weight(sz_sam2 *m, int i);                              /* borrowed; NULL when not set */

/* pixels f32 [B, S, S, 3], normalised -> what the decoder needs, rows in raster order, picture after picture, with D = hidden:
 * embedding [B * (S/16)^2, D] with no_memory_embedding added, high1 [B * (S/8)^2, D/4], high0 [B * (S/4)^2, D/8].
 * stages: NULL, or the outputs of the four stages, raster order, [B * side^2, width]. recompute: keep only block inputs for
 * the backward pass. Caller owns the results. */
int         sz_sam2_encode(sz_sam2 *m, sz_tensor *pixels, int recompute, sz_tensor **embedding, sz_tensor **high1, sz_tensor **high0, sz_tensor **stages);
/* P prompts on B pictures.
 *   pictures i32 [P]     the picture of each prompt           counts i32 [P]   points of each prompt (0 is allowed)
 *   points   f32 [N, 2]  x, y in pixels of the S x S picture, prompt after prompt (NULL when N is 0)
 *   labels   i32 [N]     1 on the thing, 0 off it, 2 and 3 a box's corners, -1 padding
 *   masks    f32 [P, 4g, 4g, 1] or NULL, g = S/16             earlier logits as a prompt
 * -> logits [P, masks, 4g, 4g] (mask 0 is the single-mask one), iou [P, masks] (after the sigmoid), object [P, 1] (a logit). */
int         sz_sam2_decode(sz_sam2 *m, sz_tensor *embedding, sz_tensor *high1, sz_tensor *high0, sz_tensor *pictures, sz_tensor *counts,
                           sz_tensor *points, sz_tensor *labels, sz_tensor *masks, sz_tensor **logits, sz_tensor **iou, sz_tensor **object);

/* ffi end */
#pragma GCC visibility pop
#endif
