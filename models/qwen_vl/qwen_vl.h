/* qwen_vl.h - Qwen2-VL and Qwen2.5-VL: two vision towers in front of one language model, and the
 * image processor that both share. All other functions of a model are in models.h.
 *
 * LuaJIT's ffi.cdef reads the text between the "ffi" marks. Weight names, shapes and pitfalls:
 * models/README.md. */
#ifndef SZ_QWEN_VL_H
#define SZ_QWEN_VL_H

#include "models.h"

#pragma GCC visibility push(default)
/* ffi begin */

enum { SZ_QWEN_MAX_DEPTH = 128 };
enum { SZ_QWEN2_VL, SZ_QWEN2_5_VL };
enum { SZ_ROPE_DEFAULT, SZ_ROPE_LINEAR, SZ_ROPE_YARN };
typedef struct {
    int family; /* SZ_QWEN2_VL or SZ_QWEN2_5_VL */
    /* language model */
    int hidden, intermediate, layers, heads, kv_heads, head_dim, vocab, tied;
    double rms_eps, rope_theta;
    /* linear: frequencies are divided by rope_factor. yarn: those of the pairs from rope_high on
     * are, those up to rope_low are not, and between both are mixed; cos and sin are multiplied by
     * rope_attention. */
    int rope_type;
    double rope_factor, rope_low, rope_high, rope_attention;
    /* Pairs of a head that rotate with the temporal, height and width id: head_dim / 2 together. */
    int mrope_section[3];
    /* Vision tower: v_hidden is its own width, v_out that of the features it returns. */
    int v_depth, v_hidden, v_intermediate, v_heads, v_channels, v_patch, v_merge, v_temporal, v_out;
    double v_rope_theta;
    int v_window;                      /* in pixels; Qwen2-VL has none, nor v_full */
    uint8_t v_full[SZ_QWEN_MAX_DEPTH]; /* 1: this block attends over the whole image */
    /* The language model is split over `shards` processes (0 or 1: whole), and this one has part
     * `shard`, from 0. Each of num_attention_heads, intermediate_size and vocab_size must be a
     * multiple of shards; num_key_value_heads a multiple or a divisor. */
    int shards, shard;
} sz_qwen_config;

/* A model without weights. NULL, with the setting's name and value, if the config is impossible.
 * The caller frees it with sz_model_free. */
sz_model *sz_qwen_new(const sz_qwen_config *config);

/* ---- the image processor ---- */
/* The size [*out_height, *out_width] that an image is resized to: multiples of factor (patch *
 * merge), about the same shape, between min_pixels and max_pixels where possible. -1 if one side
 * is more than 200 times the other, or if a side would become 0. */
int sz_qwen_smart_resize(int height, int width, int factor, int64_t min_pixels, int64_t max_pixels,
                         int *out_height, int *out_width);
/* Writes an image's patches to rows first_row .. of out f32 [patches, 3 * temporal * patch^2], each
 * number ((u8 * scale) - mean[c]) / std[c]. Rows are blocks of merge x merge patches in raster
 * order, and a block's patches in raster order; columns are c, t, y, x. The image is repeated
 * `temporal` times. Its sides must be multiples of patch * merge. */
int sz_qwen_patches(sz_image *im, int patch, int temporal, int merge, double scale,
                    const double *mean, const double *std, sz_tensor *out, int64_t first_row);
/* Where a background job's image comes from. */
typedef struct {
    const char *name;     /* the path; with bytes, what messages call them */
    const uint8_t *bytes; /* [count] of an image file, which are copied; NULL: the file is read */
    size_t count;
    sz_image *image; /* instead of all that; retained */
} sz_qwen_image_source;
/* The same in a background thread, into the first rows of out (a heap tensor, retained). The job
 * reads the image or takes the given one. size = {width, height of the image; width, height that
 * it is resized to first, by the bilinear filter; width, height of the patches}, which it is
 * resized to by sz_image_resize's filter; a resize to the same size is none. The job fails where
 * any of the steps would, or when the image does not have the width and height in size. */
sz_job *sz_qwen_image_start(const sz_qwen_image_source *source, const int *size, int filter,
                            int patch, int temporal, int merge, double scale, const double *mean,
                            const double *std, sz_tensor *out);
/* The image that a finished job read, or the one that it was resized to first; the caller frees
 * it. A second call returns NULL. */
sz_image *sz_qwen_image_take(sz_job *j);
sz_image *sz_qwen_image_take_resized(sz_job *j);
/* Rotary position ids i32 [3, n] (temporal, height, width) of ids [n]. Text counts up; the tokens
 * of image k (grids + 3 * k = t, h, w in patches) have their place in the merged grid. *next is the
 * id of the token after the last one. Every image must have exactly its t * h * w / merge^2 tokens
 * image_id. */
sz_tensor *sz_qwen_positions(const int32_t *ids, int64_t n, const int32_t *grids, int images,
                             int image_id, int merge, int32_t *next);

/* ffi end */
#pragma GCC visibility pop
#endif
