/* sam2_internal.h - the SAM2 model struct, shared by sam2.c (config, weights), sam2_encoder.c and
 * sam2_decoder.c. */
#ifndef SZ_SAM2_INTERNAL_H
#define SZ_SAM2_INTERNAL_H

#include "common/model.h"
#include "sam2/sam2.h"

/* Weight and bias of a norm or a convolution. */
typedef struct {
    sz_tensor *w, *b;
} sam2_pair;

/* A block of the encoder. */
typedef struct {
    sam2_pair norm1, norm2;
    model_layer qkv, out, up, down;
    model_layer shortcut; /* only where the width changes */
    int stage;
    int window; /* 0: the whole map */
    bool pool;  /* its queries and its shortcut are max-pooled 2x2 */
} sam2_block;

typedef struct {
    model_layer q, k, v, out;
} sam2_attention;

/* A layer of the two-way transformer. */
typedef struct {
    sam2_attention self, to_image, to_tokens;
    sam2_pair norm[4];
    model_layer up, down;
} sam2_layer;

/* Three linear layers with ReLU in between. */
typedef struct {
    model_layer in, mid, out;
} sam2_head;

typedef struct {
    sz_model base;
    sz_sam2_config config;
    int block_count;
    sam2_block *blocks;
    sam2_pair patch, neck[4], high0, high1; /* neck[0] takes the coarsest map */
    sz_tensor *position, *position_window, *no_memory;
    sz_tensor *frequencies, *point_embed, *not_a_point, *no_mask;
    sam2_pair mask_conv1, mask_norm1, mask_conv2, mask_norm2, mask_conv3;
    sz_tensor *iou_token, *mask_tokens, *object_token;
    sam2_layer *layers;
    sam2_attention final;
    sam2_pair final_norm, upscale1, upscale_norm, upscale2;
    sam2_head hyper[SZ_SAM2_MAX_MASKS], iou_head, object_head;
    /* Made when first needed; dropped when the frequencies change. */
    sz_tensor *frequencies_copy; /* in host memory, where the weight is on a device */
    sz_tensor *grid;             /* position code of the embedding's cells [E, D] */
} sam2_model;

/* The model, checked to be a SAM2 model with all its weights; NULL with a message. */
sam2_model *sam2_of(sz_model *m);

/* A convolution with a 1x1 kernel: a linear layer over the rows of a map. */
static inline sz_tensor *sam2_conv1x1(sz_tensor *x, const sam2_pair *p)
{
    return sz_linear(x, p->w, p->b);
}

#endif
