/* sam2.h - SAM2 on single images: an image and prompts to masks. Weights, adapters and freeing are
 * in models.h.
 *
 * LuaJIT's ffi.cdef reads the text between the "ffi" marks. Weight names, shapes and pitfalls:
 * models/README.md. Leaves out: video. */
#ifndef SZ_SAM2_H
#define SZ_SAM2_H

#include "models.h"

#pragma GCC visibility push(default)
/* ffi begin */

enum { SZ_SAM2_STAGES = 4, SZ_SAM2_MAX_BLOCKS = 128, SZ_SAM2_MAX_MASKS = 8 };
typedef struct {
    /* Hiera encoder. The first block of a stage halves the map and changes the width, except in the
     * first stage. */
    int image_size, patch_kernel, patch_stride, patch_padding;
    int width[4], heads[4], blocks[4], windows[4];
    uint8_t whole[SZ_SAM2_MAX_BLOCKS]; /* 1: this block attends over the whole map */
    int background[2];                 /* height and width of pos_embed */
    double mlp_ratio, norm_eps;
    /* neck */
    uint8_t top_down[4]; /* 1: this level adds the coarser one, doubled */
    /* prompt encoder and mask decoder */
    int hidden, prompt_patch, mask_channels;
    int layers, decoder_heads, downsample, mlp, masks, iou_hidden;
} sz_sam2_config;

/* A model without weights. NULL, with the setting's name and value, if the config is impossible.
 * The caller frees it with sz_model_free. */
sz_model *sz_sam2_new(const sz_sam2_config *config);

/* pixels f32 [B, S, S, 3], normalised -> what the decoder needs, rows in raster order, image after
 * image, with D = hidden: embedding [B * (S/16)^2, D] with no_memory_embedding added, high1
 * [B * (S/8)^2, D/4], high0 [B * (S/4)^2, D/8].
 * stages: NULL, or the outputs of the four stages, raster order, [B * side^2, width]. recompute:
 * keep only the inputs of blocks for the backward pass. The caller owns the results; all are NULL
 * after a failure. */
int sz_sam2_encode(sz_model *m, sz_tensor *pixels, int recompute, sz_tensor **embedding,
                   sz_tensor **high1, sz_tensor **high0, sz_tensor **stages);
/* P prompts on B images.
 *   images   i32 [P]     the image of each prompt
 *   counts   i32 [P]     the number of points of each prompt (0 is allowed)
 *   points   f32 [N, 2]  x, y in pixels of the S x S image, prompt after prompt (NULL when N is 0)
 *   labels   i32 [N]     1 on the object, 0 off it, 2 and 3 a box's corners, -1 padding
 *   masks    f32 [P, 4g, 4g, 1] or NULL, g = S/16: earlier logits as a prompt
 * -> logits [P, masks, 4g, 4g] (mask 0 is the single-mask one), iou [P, masks] (after the sigmoid),
 * object [P, 1] (a logit). All are NULL after a failure. */
int sz_sam2_decode(sz_model *m, sz_tensor *embedding, sz_tensor *high1, sz_tensor *high0,
                   sz_tensor *images, sz_tensor *counts, sz_tensor *points, sz_tensor *labels,
                   sz_tensor *masks, sz_tensor **logits, sz_tensor **iou, sz_tensor **object);

/* ffi end */
#pragma GCC visibility pop
#endif
