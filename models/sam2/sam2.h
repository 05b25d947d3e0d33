/* sam2.h - the SAM2 model struct, shared by sam2.c (config, weights), sam2_encoder.c and sam2_decoder.c. */
#ifndef SZ_SAM2_H
#define SZ_SAM2_H
#include "models.h"
#include "graph.h"

/* A linear layer, a convolution or a norm: weight and bias. */
typedef struct { sz_tensor *w, *b; } sam2_pair;

typedef struct {
    sam2_pair norm1, qkv, out, norm2, up, down, shortcut;      /* shortcut: only where the width changes */
    int stage, window;              /* window 0: the whole map */
    bool pool;                      /* its queries and its shortcut are max-pooled 2x2 */
} sam2_block;

typedef struct { sam2_pair q, k, v, out; } sam2_attention;

typedef struct {
    sam2_attention self, to_image, to_tokens;
    sam2_pair norm[4], up, down;
} sam2_layer;

typedef struct { sam2_pair in, mid, out; } sam2_head;         /* three linear layers with ReLU between */

typedef struct {
    char name[96];
    int ndim;
    int64_t shape[SZ_MAX_DIMS];
    sz_tensor **slot;
} sam2_weight;

struct sz_sam2 {
    sz_sam2_config config;
    int block_count;
    sam2_block *blocks;
    sam2_pair patch, neck[4], high0, high1;                     /* neck[0] takes the coarsest map */
    sz_tensor *position, *position_window, *no_memory;
    sz_tensor *frequencies, *point_embed, *not_a_point, *no_mask;
    sam2_pair mask_conv1, mask_norm1, mask_conv2, mask_norm2, mask_conv3;
    sz_tensor *iou_token, *mask_tokens, *object_token;
    sam2_layer *layers;
    sam2_attention final;
    sam2_pair final_norm, upscale1, upscale_norm, upscale2;
    sam2_head hyper[SZ_SAM2_MAX_MASKS], iou_head, object_head;
    sam2_weight *weights;
    int weight_count, weight_room;
    sz_tensor *frequencies_copy;    /* in host memory where the weight is on a device; made when first needed */
    sz_tensor *grid;                /* position code of the embedding's cells [E, D]; made when first needed */
};

/* Every weight set? The first missing one is named in the message. */
int sam2_check(const sz_sam2 *m);

/* Replaces *t by y, letting go of what was there. */
static inline void sam2_move(sz_tensor **t, sz_tensor *y)
{
    sz_tensor_release(*t);
    *t = y;
}
static inline sz_tensor *sam2_linear(sz_tensor *x, const sam2_pair *p) { return sz_linear(x, p->w, p->b); }

#endif
